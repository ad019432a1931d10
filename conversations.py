"""Images and videos with text (LLaVA, Qwen messages, CLIP, webdataset, image folders): reading, checks, augmentation."""

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

from common import digest, fail, split_of
from media import Unusable, frames_of, upright, whole_video


def image_of_turn(turns, count):
    """Per turn the number (< `count`) of the image of its boxes: the only one in its question, else the only one before; or None."""
    shown, found = 0 if any("<image>" in question for question, _ in turns) else count, []
    for question, _ in turns:
        first = shown if "<image>" in question else 0
        shown += question.count("<image>")
        found.append(first if shown - first == 1 and shown <= count else None)
    return found


# roles of LLaVA and of Qwen
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PARTS = ("text", "image", "image_url", "video", "video_url")  # of a message whose content is a list
# fields of an entry
IMAGES = ("image", "images", "file_name", "file_names", "filepath", "filename", "image_path")
VIDEOS, CAPTIONS = ("video", "videos"), ("text", "caption", "title")
ENDINGS = dict.fromkeys((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "images")
ENDINGS |= dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg"), "videos")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")
MARK = "(?:<image>|<video>)"
SIDE_WORDS = re.compile(r"(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)", re.I)
PLACE_WORDS = re.compile(r"\b(top|bottom|upper|lower|middle|cent(er|re)|corner|edge)", re.I)
# coordinates in any other form
OTHER_COORDINATES = re.compile(r"[\[(]\s*-?\d*\.?\d+\s*,\s*-?\d*\.?\d|<\W?(box|bbox|loc|point|quad)", re.I)
BOX_OR_POINT = re.compile(r'("(bbox_2d|point_2d)"\s*:\s*\[)([^\[\]]*)(\])')


SET_FORMATS = ("llava", "qwen", "clip", "webdataset", "imagefolder")


# ---------------------------------------------------------------- files, archives and formats


def hidden(name):
    """Is a file left by a file manager, a notebook or a download?"""
    # pathlib would intern each part
    return any(part[:1] == "." != part or part == "__MACOSX" for part in name.split("/"))


# What tarfile, zipfile and the decompressors raise: ValueError for the map of a sparse file, RuntimeError
# for nested headers and unsupported methods
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
    """A tar header. Raises ReadError if an extension of it (long name, pax), which tarfile reads into memory, is large."""

    def _proc_member(self, archive):
        if not self.isreg() and self.size > 2**20:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def unpacked(path, max_bytes):
    """(names, read) of a .tar (also compressed) or .zip: the names of its files, and a function from name to bytes.

    Nothing is written under a name from the archive. All members are checked first. Exits with code 2 on paths outside the archive,
    links, devices, duplicates, or an expansion beyond max_bytes or 200 times the file's size (text compresses to about a tenth).
    """
    names, problems, total = {}, [], 0
    plausible = max(2**30, 200 * path.stat().st_size)

    def admit(name, size, odd, where):
        nonlocal total
        total, parts, reason = total + size, re.split(r"[\\/]", name), None
        if odd:
            reason = f"is {odd}, not a file"
        elif not parts[0] or parts[0][1:2] == ":":
            reason = "has an absolute path"
        elif ".." in parts:
            reason = "leads out of the archive"
        elif where and os.path.normpath(name) in names:
            reason = "occurs twice"
        size_there = f"({total} bytes at {name!r}); if you trust it,"
        if total > max_bytes:
            fail(f"{path} expands beyond --max-bytes {max_bytes} {size_there} allow more")
        if total > plausible:
            fail(f"{path} expands to over 200 times its size {size_there} unpack it and give the folder")
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
            if expand and not problems:  # a compressed file can only be read from its beginning
                with expand(path) as compressed:
                    while chunk := compressed.read(2**20):  # to the end, where the checksum is
                        if file.tell() > end + 2**20:
                            raise EOFError("data after the end of the archive")
                        file.write(chunk)
                    file.flush()
            if not problems and os.pread(file.fileno(), 512, end) != bytes(512):
                raise EOFError("it is truncated")
    except BROKEN as e:
        fail(f"{path} cannot be read as an archive ({' '.join(str(e).split())}); download or unpack it again")
    if problems:
        print_problems(problems)
        fail(f"{path} holds {len(problems)} unsafe members, listed above; do not use it")

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
    """A function from the name of a file, relative to `folder` or absolute, to its bytes."""

    def read(name):
        path = folder / name
        if re.match(r"https?:", name):
            raise Unusable("missing", "is a URL; download it first")
        try:
            if not path.is_file():
                raise Unusable("missing", f"is {'a folder' if path.is_dir() else 'not there'} ({path})")
            if path.stat().st_size > max_bytes:
                raise Unusable("large", f"has {path.stat().st_size} bytes, more than --max-bytes {max_bytes}")
            return path.read_bytes()
        except OSError as e:
            raise Unusable("missing", f"cannot be read ({e.strerror})") from e

    return read


def read_json(file):
    """Yield (place, entry) of a JSON array or of JSON objects one after the other. The whole text file is never in memory."""
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
    at, number, more = int(array), 0, 2**20
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()
        if text[at : at + 1] == "]":
            return
        try:
            entry, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            if len(text) - at < 2**26 and (chunk := file.read(more)):  # the entry continues
                text, at, more = text[at:] + chunk, 0, 2 * more
                continue
            if not array and at == len(text):
                return
            why = e.msg if isinstance(e, ValueError) else e
            yield (
                f"entry {number}",
                Unusable("syntax", f"is not JSON, or truncated; the rest is not read ({why})"),
            )
            return
        yield f"entry {number}", entry
        number, more = number + 1, 2**20


def read_table(file):
    """Yield (line, {column: value}) of the rows of a CSV or TSV file."""
    head = file.readline()
    table = csv.DictReader(
        itertools.chain([head.lstrip("\ufeff")], file), delimiter="\t" if "\t" in head else ","
    )
    while True:
        try:
            if (row := next(table, None)) is None:
                return
        except csv.Error as e:
            row = Unusable("syntax", f"is not a valid row ({e})")
        if isinstance(row, dict) and None in row:
            row = Unusable("syntax", f"has {len(row[None])} more fields than the header")
        elif isinstance(row, dict):
            row = {k: v for k, v in row.items() if v}
        yield f"line {table.line_num}", row


def key_of(name):
    """A path up to the first dot of its file name: the key of an item of a webdataset."""
    return str(PurePosixPath(name).parent / PurePosixPath(name).name.partition(".")[0])


def read_groups(names, read):
    """Yield (key, entry) of files with the same key: images or a video, and text in .txt, .caption or .json."""
    for key, members in itertools.groupby(sorted(names, key=key_of), key=key_of):
        entry, media = {}, {"images": [], "videos": []}
        try:
            for name in members:
                ending = PurePosixPath(name).suffix.lower()
                if ending in (".txt", ".caption"):
                    if "text" in entry:
                        why = "files with the same name up to the first dot are one item"
                        raise Unusable("syntax", f"has a second text in {name}; {why}")
                    entry["text"] = read(name).decode("utf-8-sig").strip()
                elif ending == ".json":
                    content = json.loads(read(name))
                    if isinstance(content, list):
                        entry = {"messages": content}
                    else:
                        entry = {k: v for k, v in content.items() if not kind_of(k)} | entry
                elif ending in ENDINGS:
                    media[ENDINGS[ending]].append(name)
            yield key, {"id": key} | entry | media
        except Unusable as e:
            yield key, e
        except (ValueError, AttributeError) as e:
            yield key, Unusable("syntax", f"has text that cannot be read ({e})")


def form_of(entry, name):
    """The format of an entry, or None."""
    if not isinstance(entry, dict):
        return "qwen" if isinstance(entry, list) else "llava"
    if "conversations" in entry or "messages" in entry:
        return "llava" if "conversations" in entry else "qwen"
    if any(map(kind_of, entry)) and {*CAPTIONS, "question"} & set(entry):
        table = name.lower().endswith((".csv", ".tsv")) and not name.startswith("metadata.")
        return "clip" if table else "imagefolder"


def part_in(name):
    """The split that a path names, or None."""
    return next((SPLITS[w] for w in reversed(re.split(r"[^a-z]+", name.lower())) if w in SPLITS), None)


def find_set(root, form, media, max_bytes):
    """(format, entries) of a file, folder or archive. entries yields (file, place, entry or Unusable, split or None, read)."""
    root = Path(root)
    if not root.exists():
        fail(f"--root {root} does not exist; give a JSON, CSV, .tar or .zip file, or a folder")
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
            fail(f"{name} of {root} {e.args[1]}; download it again")
        return io.TextIOWrapper(file, "utf-8", newline="")

    def reader(name):
        if form:
            return read_table if form == "clip" else read_json
        with opened(name) as file:
            return read_json if file.read(2**10).lstrip("\ufeff \t\r\n")[:1] in ("[", "{") else read_table

    with_media = {key_of(n) for n in names if PurePosixPath(n).suffix.lower() in ENDINGS}
    tables = names
    if packed or root.is_dir():
        tables = [n for n in names if n.lower().endswith((".json", ".jsonl", ".csv", ".tsv"))]
        # img2dataset writes a _stats.json for each shard
        tables = [n for n in tables if not n.endswith("_stats.json") and key_of(n) not in with_media]
    metadata = [n for n in tables if PurePosixPath(n).name in ("metadata.jsonl", "metadata.csv")]
    chosen, tars, grouped = [], [], set()
    if form != "webdataset":
        chosen = metadata or (tables if len(tables) == 1 else [n for n in tables if part_in(n)])
    if not chosen and form in (None, "webdataset"):
        if root.is_dir():
            tars = [n for n in names if n.lower().endswith((".tar", ".tar.gz", ".tgz"))]
        with_text = {key_of(n) for n in names if n.lower().endswith((".txt", ".caption", ".json"))}
        grouped = set() if tars else with_media & with_text
    if chosen:
        with opened(chosen[0]) as file:
            try:
                where, first = next(reader(chosen[0])(file), ("", None))
            except UnicodeDecodeError as e:
                fail(f"{root} is not UTF-8 ({e.reason} at byte {e.start}); save it as UTF-8")
        found = form or form_of(first, chosen[0].rpartition("/")[2])
        if first is None or not found:
            fields = f"{chosen[0]} is empty"
            if first:
                fields = f"{where} of {chosen[0]} has the fields {', '.join(map(str, first))}"
            known = "conversations (LLaVA), messages (Qwen), filepath and title, file_name and text"
            fail(f"{root} has an unknown format: {fields}; known are {known}")
    elif len(tables) > 1 and form != "webdataset":
        some = ", ".join(tables[:4]) + ", ..." * (len(tables) > 4)
        fail(f"{root} holds {len(tables)} tables ({some}); give one, or name them train, val and test")
    elif not tars and not grouped:
        kinds = Counter(PurePosixPath(n).suffix or n for n in names).most_common(5)
        there = ", ".join(f"{n} {ending}" for ending, n in kinds) or "nothing"
        known = (
            "JSON, CSV or TSV, metadata.jsonl beside images, and images with a .txt or .json of the same name"
        )
        fail(f"{root} holds no set{f' of format {form}' if form else ''} but {there}; known are {known}")
    parts = {part_in(n) for n in chosen or tars} - {None}
    split_of_part = {s: s for s in parts}
    if len(parts) < 3 and "train" in parts:  # with two files, the other one is the test
        split_of_part = dict.fromkeys(parts, "test") | {"train": "train and val"}

    def entries():
        for name in chosen or tars or [root.name]:
            part = split_of_part.get(part_in(name)) if len(parts) > 1 else None
            if chosen:
                folder = PurePosixPath(name).parent
                read = given or (lambda x, folder=folder: fetch(os.path.normpath(folder / x)))
                try:
                    with opened(name) as file:
                        for where, entry in reader(name)(file):
                            # Qwen packs several entries in one list
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
    """image, video or None: what a field of an entry refers to."""
    if field in VIDEOS:
        return "video"
    return "image" if field in IMAGES or field.endswith(("_file_name", "_file_names")) else None


def path_of(x):
    """A reference to a medium, also from {"path": ...}, as the library datasets writes it, or {"url": ...}."""
    return next((x[k] for k in ("url", "path") if x.get(k)), x) if isinstance(x, dict) else x


def media_of(entry):
    """[(kind, reference)] of an entry's media. A file is a video by its ending; a list of images as video is one clip."""

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


def read_messages(messages, media, problems):
    """([(number, role, text)], system prompt) of a conversation of LLaVA or Qwen. Appends to `media` and `problems`."""
    found, system = [], None
    for number, message in enumerate(messages if isinstance(messages, list) else [messages], 1):
        message = message if isinstance(message, dict) else {}
        role, words = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if isinstance(words, list):
            parts, words = words, ""
            for part in parts:
                # rows of a table have all keys in every part, null for another type
                part = part if isinstance(part, dict) else {}
                kind = next((k for k in PARTS if part.get(k) is not None), None)
                kind = next((k for k in PARTS if part.get("type") == k), kind)
                values = (part.get(k) for k in (kind, "value", "url", "path"))
                given = next((v for v in values if kind and v is not None), None)
                if not kind or kind == "text" and not isinstance(given, (str, int, float)):
                    problems.append(("syntax", f"turn {number} has a part that is not text, image or video"))
                elif kind == "text":
                    words += str(given)
                else:
                    kind = kind.removesuffix("_url")
                    words += f"<{kind}>"
                    media += [(kind, path_of(given))] if given else []
        if str(role) not in ROLES:
            problems.append(("role", f"turn {number} has role {role!r}; known: {', '.join(ROLES)}"))
        elif not isinstance(words, str):
            problems.append(("syntax", f"turn {number} has no text"))
        elif ROLES[role] == "system" and number == 1:
            system = words
        else:
            found.append((number, ROLES[role], words))
    if problems:
        return found, system
    for (n, role, _), due in zip(found, itertools.cycle(("user", "assistant")), strict=False):
        if role != due:
            problems.append(("order", f"turn {n} has role {role} instead of {due}"))
            return found, system
    if len(found) % 2 or not found:
        problems.append(("order", "the last question has no answer" if found else "has no turns"))
    return found, system


def normalise(entry, question):
    """An entry of any format as (media, turns, system, caption, problems).

    media: (kind, reference), kind `image` or `video`; problems: (kind, reason). Questions of turns keep `<image>` and `<video>` unless
    these only stand at the beginning of the first.
    """
    entry = {"messages": entry} if isinstance(entry, list) else entry
    problems, parsed, caption = [], [], None
    if not isinstance(entry, dict):
        return [], [], None, None, [("syntax", f"is {entry!r:.40}, not a mapping of fields")]
    media, messages, system = media_of(entry), entry.get("conversations", entry.get("messages")), None
    if messages is None:
        answer = next((entry[k] for k in ("answer", *CAPTIONS) if entry.get(k)), "")
        if not isinstance(answer, (str, int, float)):
            problems.append(("syntax", f"has {answer!r:.40} as text"))
        caption = None if "question" in entry else str(answer)
        turns = [[str(entry.get("question", question)), str(answer)]]
    else:
        parsed, system = read_messages(messages, media, problems)
        # LLaVA-Video writes <image> for its video
        if [k for k, _ in media] == ["video"] and not any("<video>" in w for _, _, w in parsed):
            parsed = [(n, role, w.replace("<image>", "<video>")) for n, role, w in parsed]
        turns = [[parsed[k][2], parsed[k + 1][2]] for k in range(0, len(parsed) - 1, 2)]
    for number, turn in enumerate(turns, 1):
        if not turn[1].strip():
            problems.append(("empty", "has no text" if messages is None else f"answer {number} is empty"))
        if turn in turns[: number - 1]:
            earlier = turns.index(turn) + 1
            problems.append(("repeated", f"turn {number} repeats turn {earlier}: {turn[0]!r:.60}"))
    every = " ".join([w for _, _, w in parsed] or sum(turns, []))
    kinds = [k for k, _ in media]
    for kind in ("image", "video") if parsed or re.search(MARK, every) else ():
        marks, there = every.count(f"<{kind}>"), kinds.count(kind)
        answers = [n for n, (_, answer) in enumerate(turns, 1) if f"<{kind}>" in answer]
        if marks != there:
            problems.append(("placeholder", f"has {marks} <{kind}> for {there} {kind}{'s' * (there != 1)}"))
        elif answers:
            problems.append(("placeholder", f"has <{kind}> in answer {answers[0]}; answers are text"))
    if other := re.search("<(audio|bbox|ref-object)>", every):
        problems.append(("placeholder", f"has {other[0]}, which is not supported; write it out"))
    if kinds.count("video") > 1 or len(set(kinds)) != 1:
        has = f"has {kinds.count('image')} images and {kinds.count('video')} videos"
        problems.append(("media", f"{has}; an item has images or one video"))
    if turns:
        bare = re.sub(rf"^(\s*{MARK})+\s*", "", turns[0][0])
        if not re.search(MARK, " ".join([bare, turns[0][1], *sum(turns[1:], [])])):
            turns[0][0] = bare
    return media, turns, system or entry.get("system") and str(entry["system"]), caption, problems


def read_image(content, max_side):
    """(encoded uint8 [bytes], size in pixels, hash, degrees rotated) of an image. Encoded again if rotated, transparent or 16 bit."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > max_side:
                raise Unusable("large", f"is {image.width}x{image.height}, more than --max-side {max_side}")
            image.load()
            degrees = {3: 180, 6: 90, 8: 270}.get(image.getexif().get(274, 1), 0)
            if image.getexif().get(274, 1) != 1 or image.mode.startswith("I") or image.has_transparency_data:
                image, packed = upright(image), io.BytesIO()
                image.save(packed, "PNG")
                content = packed.getvalue()
            return (
                torch.frombuffer(bytearray(content), dtype=torch.uint8),
                image.size,
                difference_hash(image),
                degrees,
            )
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable("large", f"has more than {2 * Image.MAX_IMAGE_PIXELS:.0f} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("broken", "is not an image" if content else "has no bytes") from None
    except Exception as e:  # Pillow's plugins raise anything for a broken file
        raise Unusable("broken", f"cannot be decoded ({e})") from e


def difference_hash(image):
    """128 bits: is a pixel of the grey 9 x 9 image darker than its right, than its lower neighbour? (dHash, N. Krawetz 2013)"""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), np.int16)
    return int.from_bytes(
        np.packbits([grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]]).tobytes(), "big"
    )


def near_duplicates(hashes, most=7):
    """Pairs of (split, name), of two splits, whose hashes differ in at most `most` bits. hashes: {split: {hash: name}}.

    Hashes that differ in at most 7 of 128 bits agree in one of 8 bands of 16: only those are compared. Among 200 photographs it finds
    8 pairs, all correct. It finds 99% of copies at half the size or JPEG quality 50, 3% of those cropped by 5% a side, none mirrored.
    """
    rows, pairs = [(split, name, h) for split, names in hashes.items() for h, name in names.items()], set()
    codes = np.array([[h >> 64, h & 2**64 - 1] for _, _, h in rows], np.uint64).reshape(-1, 2)
    splits, bands = np.array([list(hashes).index(split) for split, _, _ in rows]), codes.view(np.uint16).T
    for k, band in enumerate(bands):
        # by this band, then by the others
        order, at = np.lexsort(np.roll(bands, -k - 1, 0)), np.arange(len(band))
        # a band that more images share (a white edge) says little; comparing all of them takes n^2
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
    """The numbers of a match of BOX_OR_POINT as floats, nan for other text. [] if none is a number: a template such as [x1, y1]."""

    def number(x):
        try:
            return float(x)
        except ValueError:
            return math.nan

    found = [number(x) for x in match[3].split(",")]
    return [] if all(map(math.isnan, found)) else found


def numbers_in(words):
    """(kind, numbers) of {"bbox_2d": [x1, y1, x2, y2]} and {"point_2d": [x, y]} in a text."""
    return [(m[2], numbers) for m in BOX_OR_POINT.finditer(words) if (numbers := numbers_of(m))]


def medium(read, kind, reference, how):
    """(encoded or frames, size in pixels, hash, degrees rotated, digest) of a path, or of a tuple of paths (a clip)."""
    from PIL import Image

    def content(path):
        if not path.startswith("data:"):
            return read(path.removeprefix("file://"))
        try:
            return base64.b64decode(path.partition(",")[2])
        except ValueError:
            raise Unusable("broken", "is not base64") from None

    if kind == "image":
        found = content(reference)
        return *read_image(found, how.max_side), digest(found)
    if isinstance(reference, tuple):  # a clip of images
        if len(reference) < how.frames:
            raise Unusable("short", f"has {len(reference)} frames, fewer than {how.frames}")
        found = [
            content(reference[k]) for k in np.linspace(0, len(reference) - 1, how.frames).round().astype(int)
        ]
        shots = [read_image(x, how.max_side) for x in found]
        clip = torch.cat([frames_of({"encoded": shot[0]}, how.size) for shot in shots])
        size = shots[0][1]
        degrees = shots[0][3]
        found = b"".join(found)
    else:
        found = content(reference)
        with tempfile.NamedTemporaryFile() as file:
            file.write(found)
            file.flush()
            clip, size, degrees = whole_video(Path(file.name), how.frames, how.size, how.max_side)
    return clip, size, difference_hash(Image.fromarray(clip[len(clip) // 2].numpy())), degrees, digest(found)


def set_items(entries, how, notes):
    """Yield items of a set. Problems are appended to `notes` as (item, kind, reason); after one nothing is yielded, unless how.skip_bad or how.check."""
    ids, contents, first, hashes, bad = Counter(), set(), {}, {}, False
    # successive entries often have the same image
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
            notes.append((f"{file}: {where}", "syntax", "has a lone surrogate (half a character)"))
            bad = True
            continue
        media, turns, system, caption, problems = normalise(entry, how.question)
        fields, shows, soft = entry if isinstance(entry, dict) else {}, [], []
        for kind, reference in media:
            paths = reference if kind == "video" and isinstance(reference, list) else [reference]
            try:
                if not all(isinstance(x, str) for x in paths):
                    raise Unusable("missing", "is not a path")
                shows.append(load(read, kind, tuple(paths) if paths is reference else reference))
            except Unusable as e:
                problems.append((e.args[0], f"{reference!s:.80} {e.args[1]}"))
        given = fields.get("id") not in (None, "")
        name = str(fields["id"]) if given else f"{media[0][1]!s:.200}" if media else where
        label = f"{file}: {name:.99}" + (f" ({where})" if where != name else "")
        if name in ids and given:
            soft.append(("same id", f"has the id of an earlier item; renamed to {name}#{ids[name] + 1}"))
        ids[name] += 1
        if (content := digest(json.dumps([turns, media]).encode())) in contents:
            problems.append(("duplicate", "repeats an earlier item"))
        contents.add(content)
        if split := fields.get("split"):
            part = SPLITS.get(str(split).lower())
            problems += [] if part else [("split", f"has the split {split!r}; give train, val or test")]
        # one item of each split that has one of these images
        twins = {split_of(t[2]): t for t in (first[x[4]] for x in shows if x[4] in first)}
        elsewhere = [t for t in twins.values() if t[1] != part]
        for name_of, there, _ in elsewhere:
            where_each = f"is in {part or 'no split'}; {name_of} of {there or 'no split'}"
            problems.append(("split", f"{where_each} has its image"))
        if len(twins) > 1 and not elsewhere:
            others = " and ".join(f"{t[0]} of {s}" for s, t in twins.items())
            problems.append(("split", f"has images of {others}; give a split for each"))
        sizes = [x[1] for x in shows]
        if len(sizes) == len(media) > 0:
            problems += box_problems(turns, sizes)
        for (_, reference), x in zip(media, shows, strict=False):
            if x[3]:
                soft.append(("rotated", f"{reference} is rotated by {x[3]} degrees clockwise"))
        notes += [(label, *x) for x in soft + problems]
        bad = bad or bool(problems)
        if problems or bad and not (how.skip_bad or how.check):
            continue
        assigned = part
        if part == "train and val":
            assigned = "val" if int(digest(name.encode()), 16) % 100 < 25 else "train"
        source = f"{assigned}:{name}" if assigned else name
        if twins:
            source = next(iter(twins.values()))[2]
        for k, x in enumerate(shows, 1):
            first.setdefault(x[4], (name, part, source))
            if x[2]:  # an image of one value is like any other
                shown = label if len(shows) == 1 else f"{label}, image {k}"
                hashes.setdefault(split_of(source), {}).setdefault(x[2], shown)
        item = {"id": name if ids[name] == 1 else f"{name}#{ids[name]}", "source": source}
        item["width"], item["height"] = shows[0][1]
        if media[0][0] == "video":
            item["frames"] = shows[0][0]
        elif len(shows) == 1:
            item["encoded"] = shows[0][0]
        else:
            item["images"] = [x[0] for x in shows]
        more = {"chat": len(turns) > 1, "system": system, "text": caption}
        yield item | {"turns": turns} | {k: v for k, v in more.items() if v}
    for (s, a), (t, b) in near_duplicates(hashes):
        notes.append((b, "near", f"is in {t}; nearly the same image is in {s}: {a}"))


def box_problems(turns, sizes):
    """Problems (kind, reason) with the boxes and points in turns about images of these sizes."""
    problems = []
    for turn, number in zip(turns, image_of_turn(turns, len(sizes)), strict=True):
        width, height = sizes[number or 0]
        for kind, numbers in numbers_in(" ".join(turn)):
            if number is None and len(set(sizes)) > 1:
                reason = "for an unknown image; ask about each image in its own turn"
            elif not inside(numbers, width, height):
                reason = f"not inside {width}x{height} pixels"
            else:
                continue
            problems.append(("box", f"has {kind} {numbers}, {reason}"))
    return problems


def inside(numbers, width, height):
    """Do a box [x1, y1, x2, y2] or a point [x, y] lie in an image?"""
    x, y = numbers[::2], numbers[1::2]
    return (
        len(numbers) in (2, 4)
        and all(0 <= v <= width for v in x)
        and all(0 <= v <= height for v in y)
        and (len(x) == 1 or x[0] < x[1] and y[0] < y[1])
    )


def with_counts(items, table):
    """The same items. At the end `table` has, per split, counts and [min, median, max] of words per answer and longer side (px)."""
    counts, words, sides = {}, {}, {}
    for item in items:
        part = split_of(item["source"])
        clip, images = "frames" in item, len(item.get("images", "1"))
        counts.setdefault(part, Counter()).update(
            items=1, images=0 if clip else images, videos=int(clip), turns=len(item["turns"])
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


def print_problems(notes, most=20):
    """Print notes (name, kind, reason) to stderr, at most `most` of a kind. Returns {kind: count}."""
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


def augment(item, flip, crop, jitter, rng):
    """A copy of an item: mirrored, cropped (sides at least the fraction `crop`, no box cut) and in other light; boxes move with it.

    Not mirrored: text that says left or right, boxes in another form, or of an unknown image. Not cropped: also text that says a place,
    and several images with boxes; of several without, the first is. None if nothing changes.
    """
    from PIL import Image, ImageEnhance

    width, height, words = item["width"], item["height"], sum(item.get("turns", ()), [])
    text = " ".join(filter(None, [*words, *item.get("labels", ()), item.get("text"), item.get("system")]))
    owners = image_of_turn(item.get("turns", ()), len(item.get("images", "1")))
    sided = SIDE_WORDS.search(text) or OTHER_COORDINATES.search(BOX_OR_POINT.sub("", text))
    if "images" in item:
        for turn, number in zip(item["turns"], owners, strict=True):
            sided = sided or number is None and numbers_in(" ".join(turn))
    flip = flip and not sided
    if sided or PLACE_WORDS.search(text) or "images" in item and BOX_OR_POINT.search(text):
        crop = None
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

    def transformed(image, window):
        image = image.crop(window) if window else image
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color) if jitter else ()
        for factor, enhancer in zip(light, enhancers, strict=False):
            image = enhancer(image).enhance(factor)
        return image

    def encoded(x, window):
        image, file = Image.open(io.BytesIO(x.numpy().tobytes())), io.BytesIO()
        how = {"format": "JPEG", "quality": 95} if image.format == "JPEG" else {"format": "PNG"}
        transformed(image.convert("RGB"), window).save(file, **how)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def moved(numbers, right=window[2]):
        x = [right - v if flip else v - window[0] for v in numbers[::2]]
        y = [v - window[1] for v in numbers[1::2]]
        return [v for point in zip(sorted(x), y, strict=True) for v in point]

    def moved_words(words, number):
        right = (
            Image.open(io.BytesIO(item["images"][number].numpy().tobytes())).width if number else window[2]
        )

        def replaced(match):
            if not (numbers := numbers_of(match)):
                return match[0]
            return match[1] + ", ".join(f"{round(v, 2):.9g}" for v in moved(numbers, right)) + match[4]

        return BOX_OR_POINT.sub(replaced, words)

    new = item | {"id": f"{item['id']}~", "width": window[2] - window[0], "height": window[3] - window[1]}
    if "frames" in item:
        h, w = item["frames"].shape[1:3]  # frames are resized, so the window is too
        part = [window[0] * w / width, window[1] * h / height, window[2] * w / width, window[3] * h / height]
        frames = [transformed(Image.fromarray(f.numpy()), part) for f in item["frames"]]
        frames = [np.array(f.resize((w, h), Image.Resampling.BICUBIC)) for f in frames]
        new["frames"] = torch.from_numpy(np.stack(frames))
    elif "images" in item:
        new["images"] = [encoded(x, None if k else window) for k, x in enumerate(item["images"])]
    else:
        new["encoded"] = encoded(item["encoded"], window)
    if "boxes" in item:
        new["boxes"] = torch.tensor([moved(b) for b in item["boxes"].tolist()]).float().reshape(-1, 4)
    if words:
        turns = zip(item["turns"], owners, strict=True)
        new["turns"] = [[moved_words(q, k), moved_words(a, k)] for (q, a), k in turns]
        new |= {"text": new["turns"][0][1]} if "text" in item else {}
    return new


def augmented(items, args):
    """The same items, each of the train split followed by an augmented copy of the same source, drawn by --seed and id."""
    for item in items:
        yield item
        if split_of(item["source"]) == "train":
            rng = np.random.default_rng([args.seed, int(digest(item["id"].encode()), 16)])
            if copy := augment(item, args.flip, args.crop, args.jitter, rng):
                yield copy


# ---------------------------------------------------------------- a contact sheet


def preview(items, path, columns=8, rows=5, tile=160):
    """Save a contact sheet: first (of a clip also last) frames with boxes, also those in answers, or the action; questions below."""
    from PIL import Image, ImageDraw

    has_text, cells = "boxes" not in items[0] and "turns" in items[0], []
    height, white = tile + 90 * has_text, {"fill": "white", "stroke_width": 1, "stroke_fill": "black"}
    for item in items:
        cells += [(item, t) for t in ([0, -1] if len(item.get("frames", ())) > 1 else [0])]
        if len(cells) >= columns * rows:
            break
    sheet = Image.new("RGB", (columns * tile, rows * height), "white")
    for k, (item, t) in enumerate(cells[: columns * rows]):
        image = Image.fromarray(frames_of(item, tile)[t].numpy())
        pen, at = ImageDraw.Draw(image), (k % columns * tile, k // columns * height)
        scale = torch.tensor([tile / item["width"], tile / item["height"]] * 2)
        if has_text:
            lines = [line for q, a in item["turns"] for line in (f"Q: {q}", f"A: {a}")]
            words = "\n".join(textwrap.fill(line, tile // 6) for line in lines).split("\n")[:6]
            ImageDraw.Draw(sheet).text((at[0] + 3, at[1] + tile + 2), "\n".join(words), fill="black")
            owners = image_of_turn(item["turns"], len(item.get("images", "1")))
            firsts = [answer for (_, answer), k in zip(item["turns"], owners, strict=True) if not k]
            in_text = [numbers for kind, numbers in numbers_in(" ".join(firsts)) if kind == "bbox_2d"]
            found, names = torch.tensor(in_text).reshape(-1, 4), [""] * len(in_text)
        else:
            found, names = item.get("boxes", torch.zeros(0, 4)), item.get("names", item.get("labels", []))
            if "boxes" not in item:
                pen.text((3, 2), textwrap.fill(item["action"], tile // 7), **white)
        for box, label in zip((found if found.ndim == 2 else found[t]) * scale, names, strict=True):
            if box[2] > box[0]:
                pen.rectangle(box.tolist(), outline="white", width=3)
                pen.rectangle(box.tolist(), outline="black")
                pen.text((box[0].item() + 3, box[1].item() + 2), label, **white)
        sheet.paste(image, at)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
