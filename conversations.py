"""Images and videos with words: LLaVA, Qwen messages, CLIP, webdataset, image folders. Found, read, checked, augmented."""

import base64
import bz2
import csv
import functools
import gzip
import io
import itertools
import json
import lzma
import math
import os
import re
import stat
import sys
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from common import digest, refuse, split_of
from media import Unusable, frames_of, upright, whole_video


def spoken_of(turns, count):
    """For each turn the number, below `count`, of the picture that its boxes are of: the only one that its question shows, or if it shows none the only one shown before. None: who knows."""
    shown, found = 0 if any("<image>" in question for question, _ in turns) else count, []
    for question, _ in turns:
        first = shown if "<image>" in question else 0
        shown += question.count("<image>")
        found.append(first if shown - first == 1 and shown <= count else None)
    return found


# who speaks, as LLaVA and as Qwen say it
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PARTS = ("text", "image", "image_url", "video", "video_url")  # of what is said, where that is a list
# fields of an entry
PICTURES = ("image", "images", "file_name", "file_names", "filepath", "filename", "image_path")
VIDEOS, CAPTIONS = ("video", "videos"), ("text", "caption", "title")
ENDINGS = dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "images")
ENDINGS |= dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg"), "videos")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
MARK = "(?:<image>|<video>)"
SIDED = re.compile(r"(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)", re.I)
SITED = re.compile(r"\b(top|bottom|upper|lower|middle|cent(er|re)|corner|edge)", re.I)
# places in any other form
LOOSE = re.compile(r"[\[(]\s*-?\d*\.?\d+\s*,\s*-?\d*\.?\d|<\W?(box|bbox|loc|point|quad)", re.I)
PLACED = re.compile(r'("(bbox_2d|point_2d)"\s*:\s*\[)([^\[\]]*)(\])')


SET_FORMATS = ("llava", "qwen", "clip", "webdataset", "imagefolder")


# ---------------------------------------------------------------- sets with words: LLaVA, Qwen, CLIP, webdataset, imagefolder


def hidden(name):
    """Is a file one of those that file managers, notebooks and downloads leave?"""
    # pathlib would intern each part
    return any(part[:1] == "." != part or part == "__MACOSX" for part in name.split("/"))


# What tarfile, zipfile and the decompressors raise; ValueError for a sparse file's map, RuntimeError for
# header on header and for what is not implemented
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class Modest(tarfile.TarInfo):
    """A header of a tar. tarfile reads those that extend it (long names, pax) into memory whole: a large one is refused."""

    def _proc_member(self, archive):
        if not self.isreg() and self.size > 2**20:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def unpacked(path, max_bytes):
    """(names, read) of a .tar (also compressed) or .zip: the names of its files, and their bytes by name. Nothing is ever written under a name that the archive chose.

    First all of it is looked at: what climbs out, is no plain file or is there twice is listed, and such an archive, or one that expands beyond max_bytes or what any honest one would, refused.
    """
    # pictures hardly shrink, and words to a tenth
    names = {}
    problems = []
    total = 0
    honest = max(2**30, 200 * path.stat().st_size)

    def admit(name, size, odd, where):
        nonlocal total
        total, parts, reason = total + size, re.split(r"[\\/]", name), None
        if odd:
            reason = f"is {odd}, not a file"
        elif not parts[0] or parts[0][1:2] == ":":
            reason = "has an absolute path"
        elif ".." in parts:
            reason = "climbs out of the archive"
        elif where and os.path.normpath(name) in names:
            reason = "is there twice"
        grows = f"({name!r} makes it {total}); if it can be trusted,"
        if total > max_bytes:
            refuse(f"{path} expands beyond --max-bytes {max_bytes} {grows} allow more")
        if total > honest:
            refuse(f"{path} expands to more than 200 times its size {grows} unpack it and give the folder")
        if reason:
            problems.append((f"{path}: {name}", "archive", reason))
        elif where and not hidden(name):
            names[os.path.normpath(name)] = where

    try:
        if zipfile.is_zipfile(path):
            file = zipfile.ZipFile(path)
            for m in file.infolist():
                kind = stat.S_IFMT(m.external_attr >> 16)
                odd = "encrypted" if m.flag_bits & 1 else None
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    odd = "a link" if kind == stat.S_IFLNK else "a device"
                admit(m.filename, m.file_size, odd, None if m.is_dir() else m)
        else:
            with tarfile.open(path, "r|*", tarinfo=Modest) as tar:
                end = 0
                while m := tar.next():
                    tar.members.clear()  # or every header stays in memory
                    end = m.offset_data + -(-m.size // 512) * 512
                    odd = None
                    if m.issym() or m.islnk():
                        odd = "a link"
                    elif m.issparse():
                        odd = "sparse"
                    elif not m.isreg() and not m.isdir():
                        odd = "a device"
                    admit(m.name, m.size, odd, None if m.isdir() else (m.offset_data, m.size))
            with open(path, "rb") as f:
                magic = f.read(2)
            expand = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(magic)
            file = tempfile.TemporaryFile() if expand else open(path, "rb")  # noqa: SIM115 (it outlives this function)
            if expand and not problems:  # what is compressed can only be read from its beginning
                with expand(path) as compressed:
                    while chunk := compressed.read(2**20):  # up to its end, where the checksum is
                        if file.tell() > end + 2**20:
                            raise EOFError("it goes on after its end")
                        file.write(chunk)
                    file.flush()
            if not problems and os.pread(file.fileno(), 512, end) != bytes(512):
                raise EOFError("it ends before its end")
    except BROKEN as e:
        refuse(f"{path} cannot be read as an archive ({' '.join(str(e).split())}); fetch or unpack it again")
    if problems:
        listed(problems)
        refuse(f"{path} holds {len(problems)} members that no honest archive holds, listed above; leave it")

    def read(name):
        try:
            if isinstance(file, zipfile.ZipFile):
                return file.read(names[name])
            return os.pread(file.fileno(), names[name][1], names[name][0])
        except KeyError:
            raise Unusable("missing", f"is not in {path.name}") from None
        except BROKEN as e:
            raise Unusable("broken", f"cannot be unpacked ({e})") from e

    return list(names), read


def read_from(folder, max_bytes):
    """A function from the name of a file, relative to a folder or absolute, to its bytes."""

    def read(name):
        path = folder / name
        if re.match(r"https?:", name):
            raise Unusable("missing", "is on the network; fetch it first")
        try:
            if not path.is_file():
                raise Unusable("missing", f"is {'a folder' if path.is_dir() else 'not there'} ({path})")
            if path.stat().st_size > max_bytes:
                raise Unusable("large", f"has {path.stat().st_size} bytes, and --max-bytes is {max_bytes}")
            return path.read_bytes()
        except OSError as e:
            raise Unusable("missing", f"cannot be read ({e.strerror})") from e

    return read


def read_json(file):
    """The entries of a JSON array, or of JSON one a line or over several lines each, as (where, entry); the file, open as text, is never in memory whole."""
    text = file.read(2**20).lstrip("\ufeff \t\r\n")
    array = text.startswith("[")
    if not array and not text.partition("\n")[0].rstrip().endswith(("{", "[", ",")):
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line := line.strip("\ufeff \t\r\n"):
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as e:
                    yield f"line {number}", Unusable("syntax", f"is not JSON ({e})")
        return
    decoder = json.JSONDecoder()
    at = int(array)
    number = 0
    more = 2**20
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()
        if text[at : at + 1] == "]":
            return
        try:
            entry, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            if len(text) - at < 2**26 and (chunk := file.read(more)):  # it goes on
                text, at, more = text[at:] + chunk, 0, 2 * more
                continue
            if not array and at == len(text):
                return
            why = e.msg if isinstance(e, ValueError) else e
            yield (
                f"entry {number}",
                Unusable("syntax", f"is not JSON, or cut short: the rest is lost ({why})"),
            )
            return
        yield f"entry {number}", entry
        number, more = number + 1, 2**20


def read_table(file):
    """The rows of a CSV, or of one with tabs, as (where, {column: value})."""
    head = file.readline()
    table = csv.DictReader(
        itertools.chain([head.lstrip("\ufeff")], file), delimiter="\t" if "\t" in head else ","
    )
    while True:
        try:
            if (row := next(table, None)) is None:
                return
        except csv.Error as e:
            row = Unusable("syntax", f"is no row ({e})")
        if isinstance(row, dict) and None in row:
            row = Unusable("syntax", f"has {len(row[None])} fields more than the header")
        elif isinstance(row, dict):
            row = {k: v for k, v in row.items() if v}
        yield f"line {table.line_num}", row


def key_of(name):
    """A path up to the first dot of its last part: what the files of one item of a webdataset share."""
    return str(PurePosixPath(name).parent / PurePosixPath(name).name.partition(".")[0])


def read_groups(names, read):
    """Files that share a name up to its first dot, as (name, entry): pictures or a video, and words in .txt, .caption or .json."""
    for key, members in itertools.groupby(sorted(names, key=key_of), key=key_of):
        entry, media = {}, {"images": [], "videos": []}
        try:
            for name in members:
                ending = PurePosixPath(name).suffix.lower()
                if ending in (".txt", ".caption"):
                    if "text" in entry:
                        why = "what is alike up to the first dot is one item"
                        raise Unusable("syntax", f"has its words twice, at last in {name}; {why}")
                    entry["text"] = read(name).decode("utf-8-sig").strip()
                elif ending == ".json":
                    said = json.loads(read(name))
                    if isinstance(said, list):
                        entry = {"messages": said}
                    else:
                        entry = {k: v for k, v in said.items() if not kind_of(k)} | entry
                elif ending in ENDINGS:
                    media[ENDINGS[ending]].append(name)
            yield key, {"id": key} | entry | media
        except Unusable as e:
            yield key, e
        except (ValueError, AttributeError) as e:
            yield key, Unusable("syntax", f"has words that cannot be read ({e})")


def form_of(entry, name):
    """The format that an entry is in, or None."""
    if not isinstance(entry, dict):
        return "qwen" if isinstance(entry, list) else "llava"
    if "conversations" in entry or "messages" in entry:
        return "llava" if "conversations" in entry else "qwen"
    if any(map(kind_of, entry)) and {*CAPTIONS, "question"} & set(entry):
        table = name.lower().endswith((".csv", ".tsv")) and not name.startswith("metadata.")
        return "clip" if table else "imagefolder"


def part_in(name):
    """train, val or test, where a path says it."""
    return next((SPLITS[w] for w in reversed(re.split(r"[^a-z]+", name.lower())) if w in SPLITS), None)


def find_set(root, form, media, max_bytes):
    """(format, entries) of a file, a folder or an archive, found by looking: entries yields (file, where, entry or Unusable, the split that is said, read: from a reference to its bytes)."""
    root = Path(root)
    if not root.exists():
        refuse(f"--root {root} does not exist; give a JSON, CSV, .tar or .zip file, or a folder")
    place = root if root.is_dir() else root.parent
    endings = ".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz"
    packed = root.is_file() and root.name.lower().endswith(endings)
    if packed:
        names, fetch = unpacked(root, max_bytes)
    else:
        found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        names = [n for n in found if not hidden(n)] if root.is_dir() else [root.name]
        fetch = read_from(place, max_bytes)
    given = None
    if media and Path(media).is_file():
        _, given = unpacked(Path(media), max_bytes)
    elif media:
        given = read_from(Path(media), max_bytes)

    def opened(name):
        try:
            file = io.BytesIO(fetch(name)) if packed else open(place / name, "rb")  # noqa: SIM115 (it outlives this function)
        except (Unusable, OSError) as e:
            refuse(f"{name} of {root} {e.args[1]}; fetch it again")
        return io.TextIOWrapper(file, "utf-8", newline="")

    def reader(name):
        if form:
            return read_table if form == "clip" else read_json
        with opened(name) as file:
            return read_json if file.read(2**10).lstrip("\ufeff \t\r\n")[:1] in ("[", "{") else read_table

    pictured = {key_of(n) for n in names if PurePosixPath(n).suffix.lower() in ENDINGS}
    tables = names
    if packed or root.is_dir():
        tables = [n for n in names if n.lower().endswith((".json", ".jsonl", ".csv", ".tsv"))]
        # img2dataset counts its shards
        tables = [n for n in tables if not n.endswith("_stats.json") and key_of(n) not in pictured]
    metadata = [n for n in tables if PurePosixPath(n).name in ("metadata.jsonl", "metadata.csv")]
    chosen, tars, grouped = [], [], set()
    if form != "webdataset":
        chosen = metadata or (tables if len(tables) == 1 else [n for n in tables if part_in(n)])
    if not chosen and form in (None, "webdataset"):
        if root.is_dir():
            tars = [n for n in names if n.lower().endswith((".tar", ".tar.gz", ".tgz"))]
        worded = {key_of(n) for n in names if n.lower().endswith((".txt", ".caption", ".json"))}
        grouped = set() if tars else pictured & worded
    if chosen:
        with opened(chosen[0]) as file:
            try:
                where, first = next(reader(chosen[0])(file), ("", None))
            except UnicodeDecodeError as e:
                refuse(f"{root} is not UTF-8 ({e.reason} at byte {e.start}); save it as such")
        found = form or form_of(first, chosen[0].rpartition("/")[2])
        if first is None or not found:
            fields = f"{chosen[0]} is empty"
            if first:
                fields = f"{where} of {chosen[0]} has the fields {', '.join(map(str, first))}"
            known = "conversations (LLaVA), messages (Qwen), filepath and title, file_name and text"
            refuse(f"{root} is in no known format: {fields}; known are {known}")
    elif len(tables) > 1 and form != "webdataset":
        some = ", ".join(tables[:4]) + ", ..." * (len(tables) > 4)
        refuse(f"{root} holds {len(tables)} tables ({some}); give one, or name them train, val and test")
    elif not tars and not grouped:
        kinds = Counter(PurePosixPath(n).suffix or n for n in names).most_common(5)
        there = ", ".join(f"{n} {ending}" for ending, n in kinds) or "nothing"
        known = (
            "JSON, CSV or TSV, metadata.jsonl beside images, and images with a .txt or .json of the same name"
        )
        refuse(f"{root} holds no set{f' of format {form}' if form else ''} but {there}; known are {known}")
    said = {part_in(n) for n in chosen or tars} - {None}
    meant = {s: s for s in said}
    if len(said) < 3 and "train" in said:  # of two, one is the test
        meant = dict.fromkeys(said, "test") | {"train": "train and val"}

    def entries():
        for name in chosen or tars or [root.name]:
            part = meant.get(part_in(name)) if len(said) > 1 else None
            if chosen:
                folder = PurePosixPath(name).parent
                read = given or (lambda x, folder=folder: fetch(os.path.normpath(folder / x)))
                try:
                    with opened(name) as file:
                        for where, entry in reader(name)(file):
                            # as Qwen packs its entries
                            rows = isinstance(entry, list) and any(
                                isinstance(x, dict) and {"conversations", "messages"} & set(x) for x in entry
                            )
                            for one in entry if rows else [entry]:
                                yield name, where, one, part, read
                except UnicodeDecodeError as e:
                    broken = Unusable("syntax", f"is not UTF-8 ({e.reason} at byte {e.start})")
                    yield name, "the file", broken, part, read
            else:
                members, read = unpacked(root / name, max_bytes) if tars else (names, fetch)
                for where, entry in read_groups(members, read):
                    yield name, where, entry, part, read

    return found if chosen else "webdataset", entries()


def kind_of(field):
    """What a field of an entry names, by its name: image, video or None."""
    if field in VIDEOS:
        return "video"
    return "image" if field in PICTURES or field.endswith(("_file_name", "_file_names")) else None


def path_of(x):
    """A reference to a medium, also out of a mapping: {"path": ...}, as datasets writes it, or {"url": ...}."""
    return next((x[k] for k in ("url", "path") if x.get(k)), x) if isinstance(x, dict) else x


def named(entry):
    """(kind, reference) of the media that an entry's fields name. A video among its files is one by its ending, and a list of pictures as its video is one clip."""

    def ending(x):
        return ENDINGS.get(PurePosixPath(x).suffix.lower()) if isinstance(x, str) else None

    found = []
    for field, x in entry.items():
        kind = kind_of(field)
        if not kind or not x:
            continue
        several = isinstance(x, list) and not (kind == "video" and {ending(v) for v in x} == {"images"})
        for v in x if several else [x]:
            found.append(("video" if ending(v) == "videos" else kind, path_of(v)))
    return found


def spoken(messages, media, problems):
    """(said, system) of a conversation in LLaVA's or Qwen's words, said being (number, user or assistant, words); `media` gets what its parts show, `problems` what is wrong."""
    said, system = [], None
    for number, message in enumerate(messages if isinstance(messages, list) else [messages], 1):
        message = message if isinstance(message, dict) else {}
        role, words = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if isinstance(words, list):
            parts, words = words, ""
            for part in parts:
                # a table's rows have all keys in every part, null where it is of another type
                part = part if isinstance(part, dict) else {}
                kind = next((k for k in PARTS if part.get(k) is not None), None)
                kind = next((k for k in PARTS if part.get("type") == k), kind)
                values = (part.get(k) for k in (kind, "value", "url", "path"))
                given = next((v for v in values if kind and v is not None), None)
                if not kind or kind == "text" and not isinstance(given, (str, int, float)):
                    problems.append(("syntax", f"turn {number} has a part that is no text, image or video"))
                elif kind == "text":
                    words += str(given)
                else:
                    kind = kind.removesuffix("_url")
                    words += f"<{kind}>"
                    media += [(kind, path_of(given))] if given else []
        if str(role) not in ROLES:
            problems.append(("role", f"turn {number} is said by {role!r}; known: {', '.join(ROLES)}"))
        elif not isinstance(words, str):
            problems.append(("syntax", f"turn {number} has no text"))
        elif ROLES[role] == "system" and number == 1:
            system = words
        else:
            said.append((number, ROLES[role], words))
    if problems:
        return said, system
    for (n, role, _), due in zip(said, itertools.cycle(("user", "assistant")), strict=False):
        if role != due:
            problems.append(("order", f"turn {n} is the {role}'s, where the {due}'s is due"))
            return said, system
    if len(said) % 2 or not said:
        problems.append(("order", "the last question has no answer" if said else "has no turns"))
    return said, system


def normal(entry, question):
    """An entry of any format as (media, turns, system, caption, problems).

    media: (kind, reference), kind `image` or `video`; turns: [question, answer], with `<image>` and `<video>` where the media do not simply stand first; problems: (kind, reason).
    """
    entry = {"messages": entry} if isinstance(entry, list) else entry
    problems = []
    said = []
    caption = None
    if not isinstance(entry, dict):
        return [], [], None, None, [("syntax", f"is {entry!r:.40}, not a mapping of fields")]
    media, messages, system = named(entry), entry.get("conversations", entry.get("messages")), None
    if messages is None:
        answer = next((entry[k] for k in ("answer", *CAPTIONS) if entry.get(k)), "")
        if not isinstance(answer, (str, int, float)):
            problems.append(("syntax", f"has words that are no text but {answer!r:.40}"))
        caption = None if "question" in entry else str(answer)
        turns = [[str(entry.get("question", question)), str(answer)]]
    else:
        said, system = spoken(messages, media, problems)
        # LLaVA-Video says <image> for its video
        if [k for k, _ in media] == ["video"] and not any("<video>" in w for _, _, w in said):
            said = [(n, role, w.replace("<image>", "<video>")) for n, role, w in said]
        turns = [[said[k][2], said[k + 1][2]] for k in range(0, len(said) - 1, 2)]
    for number, turn in enumerate(turns, 1):
        if not turn[1].strip():
            problems.append(("empty", "has no words" if messages is None else f"answer {number} is empty"))
        if turn in turns[: number - 1]:
            earlier = turns.index(turn) + 1
            problems.append(("repeated", f"turn {number} repeats turn {earlier}: {turn[0]!r:.60}"))
    every = " ".join([w for _, _, w in said] or sum(turns, []))
    kinds = [k for k, _ in media]
    for kind in ("image", "video") if said or re.search(MARK, every) else ():
        marks, there = every.count(f"<{kind}>"), kinds.count(kind)
        answers = [n for n, (_, answer) in enumerate(turns, 1) if f"<{kind}>" in answer]
        if marks != there:
            problems.append(("placeholder", f"has {marks} <{kind}> for {there} {kind}{'s' * (there != 1)}"))
        elif answers:
            problems.append(("placeholder", f"has <{kind}> in answer {answers[0]}; models answer in words"))
    if other := re.search("<(audio|bbox|ref-object)>", every):
        problems.append(("placeholder", f"has {other[0]}, and what belongs there is not read; write it out"))
    if kinds.count("video") > 1 or len(set(kinds)) != 1:
        has = f"has {kinds.count('image')} images and {kinds.count('video')} videos"
        problems.append(("media", f"{has}; an item shows images or one video"))
    if turns:
        bare = re.sub(rf"^(\s*{MARK})+\s*", "", turns[0][0])
        if not re.search(MARK, " ".join([bare, turns[0][1], *sum(turns[1:], [])])):
            turns[0][0] = bare
    return media, turns, system or entry.get("system") and str(entry["system"]), caption, problems


def picture(content, max_side):
    """A picture's bytes as (encoded uint8 [bytes], size in pixels, its hash, degrees it was turned). What is not upright, transparent or of 16 bits is encoded anew."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > max_side:
                raise Unusable("large", f"is {image.width}x{image.height}, and --max-side is {max_side}")
            image.load()
            turned = {3: 180, 6: 90, 8: 270}.get(image.getexif().get(274, 1), 0)
            if image.getexif().get(274, 1) != 1 or image.mode.startswith("I") or image.has_transparency_data:
                image, packed = upright(image), io.BytesIO()
                image.save(packed, "PNG")
                content = packed.getvalue()
            return (
                torch.frombuffer(bytearray(content), dtype=torch.uint8),
                image.size,
                difference_hash(image),
                turned,
            )
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable("large", f"has more than {2 * Image.MAX_IMAGE_PIXELS:.0f} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("broken", "is no picture" if content else "has no bytes") from None
    except Exception as e:  # Pillow's plugins raise what they like for a broken file
        raise Unusable("broken", f"cannot be decoded ({e})") from e


def difference_hash(image):
    """128 bits: of a grey 9 x 9 picture, is a point darker than the next on its right, than the next below? (dHash, N. Krawetz 2013, with columns too.) 0 for a picture of one value."""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), np.int16)
    return int.from_bytes(
        np.packbits([grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]]).tobytes(), "big"
    )


def near_duplicates(hashes, most=7):
    """Pairs of (split, name), of two splits, whose pictures' hashes differ in at most `most` bits. hashes: {split: {hash: name}}.

    Two that differ in at most seven of 128 bits agree in one of eight bands of 16: only those are compared. (Of 19900 pairs of 200 photographs from the web eight are found, all eight the same
    photograph; of copies at half the size or saved at quality 50, 99%; of copies that lost 5% at each side, 3%; of those mirrored, none.)
    """
    rows, pairs = [(split, name, h) for split, names in hashes.items() for h, name in names.items()], set()
    codes = np.array([[h >> 64, h & 2**64 - 1] for _, _, h in rows], np.uint64).reshape(-1, 2)
    splits, bands = np.array([list(hashes).index(split) for split, _, _ in rows]), codes.view(np.uint16).T
    for k, band in enumerate(bands):
        # by this band, then by the others
        order, at = np.lexsort(np.roll(bands, -k - 1, 0)), np.arange(len(band))
        # a band that more share (a white edge) says little, and to compare all of them would take n^2
        for step in range(1, 200):
            at = at[at + step < len(band)]
            at = at[band[order[at]] == band[order[at + step]]]
            a, b = order[at], order[at + step]
            near = (splits[a] != splits[b]) & (np.bitwise_count(codes[a] ^ codes[b]).sum(1) <= most)
            pairs |= set(zip(np.minimum(a, b)[near].tolist(), np.maximum(a, b)[near].tolist(), strict=True))
            if not len(at):
                break
    return [(rows[k][:2], rows[j][:2]) for k, j in sorted(pairs)]


def numbers_of(match):
    """What PLACED found as floats; what is no number is nan. Where none is one ([x1, y1, x2, y2], or nothing) it is no box but a form to fill in: []."""

    def number(x):
        try:
            return float(x)
        except ValueError:
            return math.nan

    found = [number(x) for x in match[3].split(",")]
    return [] if all(map(math.isnan, found)) else found


def numbers_in(words):
    """The boxes and points that words name: {"bbox_2d": [x1, y1, x2, y2]} and {"point_2d": [x, y]}."""
    return [(m[2], numbers) for m in PLACED.finditer(words) if (numbers := numbers_of(m))]


def medium(read, kind, reference, how):
    """What an item keeps of a medium: (encoded or frames, size in pixels, its hash, degrees it was turned, digest). reference: a path, or for a clip a tuple of paths."""
    from PIL import Image

    def content(path):
        if not path.startswith("data:"):
            return read(path.removeprefix("file://"))
        try:
            return base64.b64decode(path.partition(",")[2])
        except ValueError:
            raise Unusable("broken", "is no base64") from None

    if kind == "image":
        found = content(reference)
        return *picture(found, how.max_side), digest(found)
    if isinstance(reference, tuple):  # a clip of pictures
        if len(reference) < how.frames:
            raise Unusable("short", f"has {len(reference)} frames, and {how.frames} are wanted")
        found = [
            content(reference[k]) for k in np.linspace(0, len(reference) - 1, how.frames).round().astype(int)
        ]
        shots = [picture(x, how.max_side) for x in found]
        clip = torch.cat([frames_of({"encoded": shot[0]}, how.size) for shot in shots])
        size = shots[0][1]
        turned = shots[0][3]
        found = b"".join(found)
    else:
        found = content(reference)
        with tempfile.NamedTemporaryFile() as file:
            file.write(found)
            file.flush()
            clip, size, turned = whole_video(Path(file.name), how.frames, how.size, how.max_side)
    return clip, size, difference_hash(Image.fromarray(clip[len(clip) // 2].numpy())), turned, digest(found)


def set_items(entries, how, notes):
    """Items of a set's entries, one at a time. notes gets what there is to say, (item, kind, reason); after the first problem the rest is only checked, unless skip_bad or check is set in `how`."""
    ids, said, first, hashes, bad = Counter(), set(), {}, {}, False
    # many an entry shows what the one before it shows
    load = functools.lru_cache(8)(functools.partial(medium, how=how))
    for file, where, entry, part, read in entries:
        try:
            if isinstance(entry, Unusable):
                raise entry
            json.dumps(entry, ensure_ascii=False).encode()
        except Unusable as e:
            notes.append((f"{file}: {where}", *e.args))
            bad = True
            continue
        except UnicodeEncodeError:
            notes.append((f"{file}: {where}", "syntax", "holds half a character (a lone surrogate)"))
            bad = True
            continue
        media, turns, system, caption, problems = normal(entry, how.question)
        fields, shows, soft = entry if isinstance(entry, dict) else {}, [], []
        for kind, reference in media:
            paths = reference if kind == "video" and isinstance(reference, list) else [reference]
            try:
                if not all(isinstance(x, str) for x in paths):
                    raise Unusable("missing", "is no path")
                shows.append(load(read, kind, tuple(paths) if paths is reference else reference))
            except Unusable as e:
                problems.append((e.args[0], f"{reference!s:.80} {e.args[1]}"))
        given = fields.get("id") not in (None, "")
        name = str(fields["id"]) if given else f"{media[0][1]!s:.200}" if media else where
        label = f"{file}: {name:.99}" + (f" ({where})" if where != name else "")
        if name in ids and given:
            soft.append(("same id", f"has the id of an item before it, and is called {name}#{ids[name] + 1}"))
        ids[name] += 1
        if (content := digest(json.dumps([turns, media]).encode())) in said:
            problems.append(("duplicate", "is an earlier item again, word for word"))
        said.add(content)
        if part_said := fields.get("split"):
            part = SPLITS.get(str(part_said).lower())
            problems += [] if part else [("split", f"says split {part_said!r}; known: train, val, test")]
        # one of each split, of all that show one of these pictures
        twins = {split_of(t[2]): t for t in (first[x[4]] for x in shows if x[4] in first)}
        elsewhere = [t for t in twins.values() if t[1] != part]
        for name_of, there, _ in elsewhere:
            where_each = f"which is in {there or 'no split'}, and this in {part or 'no split'}"
            problems.append(("split", f"shows what {name_of} shows, {where_each}"))
        if len(twins) > 1 and not elsewhere:
            fell_to = " and what ".join(f"{t[0]} shows, which fell to {s}" for s, t in twins.items())
            problems.append(("split", f"shows what {fell_to}: say a split for them"))
        sizes = [x[1] for x in shows]
        if len(sizes) == len(media) > 0:
            problems += misplaced(turns, sizes)
        for (_, reference), x in zip(media, shows, strict=False):
            if x[3]:
                soft.append(("turned", f"{reference} is turned by {x[3]} degrees to the right"))
        notes += [(label, *x) for x in soft + problems]
        bad = bad or bool(problems)
        if problems or bad and not (how.skip_bad or how.check):
            continue
        fell = part
        if part == "train and val":
            fell = "val" if int(digest(name.encode()), 16) % 100 < 25 else "train"
        source = f"{fell}:{name}" if fell else name
        if twins:
            source = next(iter(twins.values()))[2]
        for k, x in enumerate(shows, 1):
            first.setdefault(x[4], (name, part, source))
            if x[2]:  # a picture of one value is like any other
                shown = label if len(shows) == 1 else f"{label}, picture {k}"
                hashes.setdefault(split_of(source), {}).setdefault(x[2], shown)
        item = {"id": name if ids[name] == 1 else f"{name}#{ids[name]}", "source": source}
        item["width"], item["height"] = shows[0][1]
        if media[0][0] == "video":
            item["frames"] = shows[0][0]
        elif len(shows) == 1:
            item["encoded"] = shows[0][0]
        else:
            item["album"] = [x[0] for x in shows]
        more = {"chat": len(turns) > 1, "system": system, "text": caption}
        yield item | {"turns": turns} | {k: v for k, v in more.items() if v}
    for (s, a), (t, b) in near_duplicates(hashes):
        notes.append((b, "near", f"is in {t}, and nearly the same picture in {s}: {a}"))


def misplaced(turns, sizes):
    """Problems (kind, reason) with the boxes and points in turns about images of these sizes."""
    problems = []
    for turn, number in zip(turns, spoken_of(turns, len(sizes)), strict=True):
        width, height = sizes[number or 0]
        for kind, numbers in numbers_in(" ".join(turn)):
            if number is None and len(set(sizes)) > 1:
                reason = "and of which of its pictures cannot be known; ask of each in a turn of its own"
            elif not inside(numbers, width, height):
                reason = f"which does not lie inside {width}x{height} pixels"
            else:
                continue
            problems.append(("box", f"says {kind} {numbers}, {reason}"))
    return problems


def inside(numbers, width, height):
    """Do a box [x1, y1, x2, y2] or a point [x, y] lie in a picture?"""
    x, y = numbers[::2], numbers[1::2]
    return (
        len(numbers) in (2, 4)
        and all(0 <= v <= width for v in x)
        and all(0 <= v <= height for v in y)
        and (len(x) == 1 or x[0] < x[1] and y[0] < y[1])
    )


def tallied(items, table):
    """The same items; `table` is, once they are through, what they are per split: how many of each, and [least, median, most] words of an answer and pixels of the longer side."""
    counts, words, sides = {}, {}, {}
    for item in items:
        part = split_of(item["source"])
        clip, pictures = "frames" in item, len(item.get("album", "1"))
        counts.setdefault(part, Counter()).update(
            items=1, pictures=0 if clip else pictures, videos=int(clip), turns=len(item["turns"])
        )
        words.setdefault(part, Counter()).update(len(answer.split()) for _, answer in item["turns"])
        sides.setdefault(part, Counter())[max(item["width"], item["height"])] += 1
        yield item

    def spread(counter):
        ordered, total = sorted(counter.items()), 0
        for value, n in ordered:
            total += n
            if 2 * total >= counter.total():
                return [ordered[0][0], value, ordered[-1][0]]

    for s in ("train", "val", "test"):
        if s in counts:
            table[s] = dict(counts[s]) | {"words_per_answer": spread(words[s]), "side": spread(sides[s])}


def listed(notes, most=20):
    """Say what there is to say, at most so many of a kind."""
    kinds = Counter()
    for name, kind, reason in notes:
        kinds[kind] += 1
        if kinds[kind] <= most:
            print("".join(c if c.isprintable() else " " for c in f"{name}: {reason}"), file=sys.stderr)
    for kind, n in kinds.items():
        if n > most:
            print(f"... and {n - most} more of this kind ({kind})", file=sys.stderr)
    return kinds


# ---------------------------------------------------------------- augmentation


def changed(item, flip, crop, jitter, rng):
    """A copy of an item, mirrored, cropped to a window that holds every box (each side at least the fraction `crop`) and in other light; its boxes, also those in its words, move with it.

    Not mirrored is what says left or right, boxes in another form than ours or of who knows which picture of an album; not cropped is what says any place, nor an album with boxes, and of
    one without only the first picture is. None if nothing is changed.
    """
    from PIL import Image, ImageEnhance

    width, height, words = item["width"], item["height"], sum(item.get("turns", ()), [])
    said = " ".join(filter(None, [*words, *item.get("labels", ()), item.get("text"), item.get("system")]))
    owners = spoken_of(item.get("turns", ()), len(item.get("album", "1")))
    sided = SIDED.search(said) or LOOSE.search(PLACED.sub("", said))
    if "album" in item:
        for turn, number in zip(item["turns"], owners, strict=True):
            sided = sided or number is None and numbers_in(" ".join(turn))
    flip = flip and not sided
    crop = crop if not (sided or SITED.search(said) or "album" in item and PLACED.search(said)) else None
    if not (flip or crop or jitter):
        return None
    boxes = item.get("boxes", torch.zeros(0, 4)).tolist() + [x for _, x in numbers_in(" ".join(words))]
    window = [0, 0, width, height]
    for axis, side in enumerate((width, height) if crop else ()):
        first = min((math.floor(v) for b in boxes for v in b[axis::2]), default=side)
        last = max((math.ceil(v) for b in boxes for v in b[axis::2]), default=0)
        length = max(last - first, math.ceil(rng.uniform(crop, 1) * side))
        start = int(rng.integers(max(0, last - length), min(first, side - length) + 1))
        window[axis], window[axis + 2] = start, start + length
    light = rng.uniform(0.7, 1.3, 3)

    def seen(image, window):
        image = image.crop(window) if window else image
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color) if jitter else ()
        for factor, enhancer in zip(light, enhancers, strict=False):
            image = enhancer(image).enhance(factor)
        return image

    def encoded(x, window):
        image, file = Image.open(io.BytesIO(x.numpy().tobytes())), io.BytesIO()
        how = {"format": "JPEG", "quality": 95} if image.format == "JPEG" else {"format": "PNG"}
        seen(image.convert("RGB"), window).save(file, **how)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def moved(numbers, right=window[2]):
        x = [right - v if flip else v - window[0] for v in numbers[::2]]
        y = [v - window[1] for v in numbers[1::2]]
        return [v for point in zip(sorted(x), y, strict=True) for v in point]

    def told(words, number):
        right = Image.open(io.BytesIO(item["album"][number].numpy().tobytes())).width if number else window[2]

        def replaced(match):
            if not (numbers := numbers_of(match)):
                return match[0]
            return match[1] + ", ".join(f"{round(v, 2):.9g}" for v in moved(numbers, right)) + match[4]

        return PLACED.sub(replaced, words)

    new = item | {"id": f"{item['id']}~", "width": window[2] - window[0], "height": window[3] - window[1]}
    if "frames" in item:
        h, w = item["frames"].shape[1:3]  # squashed, as the window is then
        part = [window[0] * w / width, window[1] * h / height, window[2] * w / width, window[3] * h / height]
        frames = [seen(Image.fromarray(f.numpy()), part) for f in item["frames"]]
        frames = [np.array(f.resize((w, h), Image.Resampling.BICUBIC)) for f in frames]
        new["frames"] = torch.from_numpy(np.stack(frames))
    elif "album" in item:
        new["album"] = [encoded(x, None if k else window) for k, x in enumerate(item["album"])]
    else:
        new["encoded"] = encoded(item["encoded"], window)
    if "boxes" in item:
        new["boxes"] = torch.tensor([moved(b) for b in item["boxes"].tolist()]).float().reshape(-1, 4)
    if words:
        turns = zip(item["turns"], owners, strict=True)
        new["turns"] = [[told(question, k), told(answer, k)] for (question, answer), k in turns]
        new |= {"text": new["turns"][0][1]} if "text" in item else {}
    return new


def augmented(items, args):
    """The same items, and after each of the train split a changed copy of the same source, drawn by --seed and the item's id."""
    for item in items:
        yield item
        if split_of(item["source"]) == "train":
            rng = np.random.default_rng([args.seed, int(digest(item["id"].encode()), 16)])
            if copy := changed(item, args.flip, args.crop, args.jitter, rng):
                yield copy


# ---------------------------------------------------------------- a contact sheet


def preview(items, path, columns=8, rows=5, tile=160):
    """A contact sheet PNG: first (and for a clip last) frames with their boxes drawn, also those that answers name, or else with what is done, and below them questions and answers."""
    from PIL import Image, ImageDraw

    worded, cells = "boxes" not in items[0] and "turns" in items[0], []
    height, white = tile + 90 * worded, {"fill": "white", "stroke_width": 1, "stroke_fill": "black"}
    for item in items:
        cells += [(item, t) for t in ([0, -1] if len(item.get("frames", ())) > 1 else [0])]
        if len(cells) >= columns * rows:
            break
    sheet = Image.new("RGB", (columns * tile, rows * height), "white")
    for k, (item, t) in enumerate(cells[: columns * rows]):
        picture = Image.fromarray(frames_of(item, tile)[t].numpy())
        pen, at = ImageDraw.Draw(picture), (k % columns * tile, k // columns * height)
        scale = torch.tensor([tile / item["width"], tile / item["height"]] * 2)
        if worded:
            lines = [
                f"{who}: {words}" for turn in item["turns"] for who, words in zip("QA", turn, strict=True)
            ]
            words = "\n".join(textwrap.fill(line, tile // 6) for line in lines).split("\n")[:6]
            ImageDraw.Draw(sheet).text((at[0] + 3, at[1] + tile + 2), "\n".join(words), fill="black")
            owners = spoken_of(item["turns"], len(item.get("album", "1")))
            firsts = [answer for (_, answer), k in zip(item["turns"], owners, strict=True) if not k]
            said = [numbers for kind, numbers in numbers_in(" ".join(firsts)) if kind == "bbox_2d"]
            found, names = torch.tensor(said).reshape(-1, 4), [""] * len(said)
        else:
            found, names = item.get("boxes", torch.zeros(0, 4)), item.get("names", item.get("labels", []))
            if "boxes" not in item:
                pen.text((3, 2), textwrap.fill(item["action"], tile // 7), **white)
        for box, label in zip((found if found.ndim == 2 else found[t]) * scale, names, strict=True):
            if box[2] > box[0]:
                pen.rectangle(box.tolist(), outline="white", width=3)
                pen.rectangle(box.tolist(), outline="black")
                pen.text((box[0].item() + 3, box[1].item() + 2), label, **white)
        sheet.paste(picture, at)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
