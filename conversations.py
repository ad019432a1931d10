"""Conversation sets, images and videos with text: reading and checks.

Conversations of LLaVA, messages of Qwen, OpenAI, TRL and ms-swift, questions with options (VLMEvalKit),
captions (CLIP, image folders, webdataset); as JSON, CSV, TSV or parquet, in folders, .zip or .tar.
"""

import base64
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import string
import sys
import tempfile
from collections import Counter
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import torch
from tqdm import tqdm

import media
from augment import augmented, place_boxes
from common import check_writable, digest, fail, load_yaml, split_of
from media import Unusable, is_image, is_video
from tables import TABLES, TARS, read_table, unpack

FORMATS = {
    "llava": "conversations",
    "qwen": "messages",
    "trl": "completion",
    "swift": "response",
    "choices": "A",
}
SET_FORMATS = (*FORMATS, "clip", "imagefolder", "webdataset")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
ROLES |= {"system": "system", "developer": "system"}
IMAGES = ("image", "images", "file_name", "file_names", "filepath", "filename", "image_path")
VIDEOS, CAPTIONS, TEXTS = ("video", "videos"), ("text", "caption", "title"), (".txt", ".caption", ".json")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation", "dev"), "val")
SPLIT_WORD = r"(?<![a-z])(train|test|val|dev)(?:ing|id|idation)?(?![a-z])"
INLINE = ("data:", "/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk0", "SUkqA")  # a URL, or an image in base64
MARK, IMAGE_TAG, PARTS = "<image>|<video>", r"<img>([^<>\n]+)</img>", ("text", "image", "video")


# ---------------------------------------------------------------- folders


@dataclasses.dataclass
class Row:
    """An entry of a set, and where it stands."""

    file: str
    place: str
    entry: object  # a dict of fields, a list of messages, or Unusable
    part: str | None  # the split that the file's name states
    folder: Path  # its paths are relative to this
    above: str = ""  # the folder in ids


def parts_of(names):
    """{name: split}, as names state them. Where only train and another one are stated, that is the test."""
    found = {name: re.findall(SPLIT_WORD, name.lower()) for name in names}
    parts = {name: words[-1].replace("dev", "val") if words else None for name, words in found.items()}
    stated = set(parts.values()) - {None}
    if len(stated) == 2 and "train" in stated:
        of_two = dict.fromkeys(stated, "test") | {"train": "train and val", None: None}
        parts = {name: of_two[part] for name, part in parts.items()}
    return parts if len(stated) > 1 else dict.fromkeys(names)


def item_name(name, packed):
    """The name that the files of an item share: up to the last dot, in a tar up to the first."""
    path = PurePosixPath(name)
    return str(path.parent / path.name.partition(".")[0] if packed else path.with_suffix(""))


def group(folder, names, packed):
    """The entry of the files of an item: images or a video, and text in .txt, .caption or .json."""
    texts = [name for name in names if name.lower().endswith(TEXTS)]
    shown = [name for name in names if name not in texts]
    if len(shown) > 1 and not packed:
        raise Unusable("syntax", f"is the name of {', '.join(shown)}; rename all but one")
    entry = {}
    for name in texts:
        if item_name(name, packed) != item_name(name, False):
            raise Unusable("syntax", f"has {name}: an item's name in a tar ends at the first dot; rename it")
        content = (folder / name).read_text("utf-8-sig").strip()
        content = json.loads(content) if name.lower().endswith(".json") else {"text": content}
        if "text" in content and "text" in entry:
            raise Unusable("syntax", f"has a second text in {name}; keep one")
        entry |= content if isinstance(content, dict) else {"messages": content}
    return {key: value for key, value in entry.items() if not kind_of(key)} | {"images": shown}


def read_groups(folder, packed, unread):
    """Yield (name, entry) of images or videos that have text files of the same name."""
    names = [n for n in listing(folder) if is_image(n) or is_video(n) or n.lower().endswith(TEXTS)]
    unread.update(f"file {Path(name).suffix}" for name in {*listing(folder)} - {*names})
    key_of = functools.partial(item_name, packed=packed)
    for key, members in itertools.groupby(sorted(names, key=key_of), key=key_of):
        try:
            entry = group(folder, list(members), packed)
        except Unusable as e:
            entry = e
        except (OSError, ValueError) as e:
            entry = Unusable("syntax", f"has a text that cannot be read ({e})")
        yield key, entry


def listing(folder):
    """The files of a folder by relative name, without those of file managers, notebooks and downloads."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    return [name for name in names if not re.search(r"(^|/)(\.|__MACOSX/)", name)]


def choose_tables(root, names, packed, unread):
    """The tables to read: metadata files, else all, if their names differ only in numbers and splits."""
    beside = {item_name(name, packed) for name in names if is_image(name) or is_video(name)}
    tables = [n for n in names if n.lower().endswith(TABLES) and item_name(n, packed) not in beside]
    metadata = [name for name in tables if PurePosixPath(name).name.startswith("metadata.")]
    if metadata or any(name.lower().endswith(TARS) for name in names):
        unread.update(f"table {name}" for name in tables if name not in metadata)
        return metadata
    if len({re.sub(rf"{SPLIT_WORD}|\d", "", name.lower()) for name in tables}) > 1:
        some = ", ".join(tables[:4]) + ", ..." * (len(tables) > 4)
        fail(f"{root} holds {len(tables)} tables ({some}); give one, or name them train, val and test")
    return tables


def rows_of_tables(folder, tables, base):
    for name, part in parts_of(tables).items():
        at = PurePosixPath(name).parent
        for place, entry in read_table(folder / name):
            entries = [entry]
            if isinstance(entry, list) and not any({"role", "from"} & set(one) for one in entry):
                entries = entry  # Qwen packs several in a line
            for one in entries:
                yield Row(name, place, one, part, base or folder / at, "" if base else str(at))


def rows_of_groups(folder, name, part, packed, unread):
    parts = parts_of({str(PurePosixPath(file).parent) for file in listing(folder)})
    for key, entry in read_groups(folder, packed, unread):
        there = part or parts[str(PurePosixPath(key).parent)]
        yield Row(name, key, entry, there, folder, name if packed else "")


def find_rows(args, scratch, unread):
    """Yield the rows of --root: of its tables, else its tars, else images with texts of the same name."""
    root = Path(args.root)
    base = args.media and unpack(Path(args.media), scratch / "media", args.max_bytes)
    folder = unpack(root, scratch / "set", args.max_bytes)
    names = listing(folder) if folder.is_dir() else [root.name]
    folder = folder if folder.is_dir() else root.parent
    is_tar = root.name.lower().endswith(TARS)
    tables = choose_tables(root, names, is_tar, unread)
    tars = [name for name in names if name.lower().endswith(TARS)]
    if tables:
        yield from rows_of_tables(folder, tables, base)
    elif tars:
        for name, part in parts_of(tars).items():
            home = unpack(folder / name, scratch / name, args.max_bytes)
            yield from rows_of_groups(home, name, part, True, unread)
            shutil.rmtree(home)
    elif any(name.lower().endswith(TEXTS) for name in names):
        yield from rows_of_groups(folder, root.name, None, is_tar, unread)
    else:
        there = ", ".join(sorted({Path(name).suffix for name in names})) or "no files"
        known = "JSON, CSV, parquet, metadata.jsonl, and images with a .txt or .json of the same name"
        fail(f"{root} holds no set but {there}; known are {known}")


def format_of(row):
    """The format of a row, one of SET_FORMATS."""
    if row.file.lower().endswith(TARS):
        return "webdataset"
    fields = row.entry if isinstance(row.entry, dict) else {"messages"}
    table = row.file.endswith((".csv", ".tsv")) and "metadata." not in row.file
    return next((name for name in FORMATS if FORMATS[name] in fields), "clip" if table else "imagefolder")


# ---------------------------------------------------------------- entries


def kind_of(name):
    """image, video or None: what a field of an entry refers to."""
    if name in VIDEOS:
        return "video"
    return "image" if name in IMAGES or name.endswith(("_file_name", "_file_names")) else None


def add_media(found, kind, value, span=(None, None)):
    """Append bytes, a path, {"bytes"}, {"path"}, {"url"}, or several. Images listed as video are one clip."""
    if isinstance(value, dict):
        found.unread.update(value.keys() - {"bytes", "url", "path"})
        value = value.get("bytes") or value.get("url") or value.get("path")
    if isinstance(value, list) and not (kind == "video" and is_image(value[0])):
        for one in value:
            add_media(found, kind, one, span)
        return
    if isinstance(value, str) and is_video(value) and not is_image(value):
        kind = "video"
    found.media.append(SimpleNamespace(kind=kind, source=value, span=span))


def question_with_options(fields):
    """The question of an entry with its hint and options, and the answer, which must be the letter of one."""
    letters = [letter for letter in string.ascii_uppercase if letter in fields]
    lines = [f"Hint: {fields.pop('hint')}"] if "hint" in fields else []
    lines += [fields.pop("question"), *(f"{letter}. {fields.pop(letter)}" for letter in letters)]
    answer = fields.pop("answer", "")
    if letters and answer not in letters:
        raise Unusable("answer", f"has the answer {answer!r:.40}, which is not one of {', '.join(letters)}")
    lines += ["Answer with the letter of the option."] if letters else []
    return "\n".join(map(str, lines)), answer


def messages_of(fields, question, found):
    """The messages of an entry, from whichever fields hold them."""
    for name in ("conversations", "messages"):
        if name in fields:
            return fields.pop(name)
    if isinstance(fields.get("completion"), list):  # of TRL; its prompt carries no loss
        prompt = [{**message, "loss": False} for message in fields.pop("prompt")]
        return [*prompt, *fields.pop("completion")]
    words = fields.pop("history", [])
    if "response" in fields:
        words = [*words, (fields.pop("query", ""), fields.pop("response"))]
    elif "question" in fields:
        words = [question_with_options(fields)]
    else:
        name = next((name for name in CAPTIONS if name in fields), None)
        if name is None:
            known = "conversations, messages, query and response, question and answer, text"
            raise Unusable("syntax", f"has no text in its fields {[*fields]}; known are {known}")
        found.caption = str(fields.pop(name))
        words = [(question, found.caption)]
    roles = itertools.cycle(("user", "assistant"))
    return [{"role": role, "content": x} for role, x in zip(roles, itertools.chain(*words), strict=False)]


def text_of(content, found):
    """The text of a message, with placeholders for media in it, which are appended to found.media."""
    if isinstance(content, (str, int, float)):
        for path in re.findall(IMAGE_TAG, str(content)):
            add_media(found, "image", path)
        return re.sub(IMAGE_TAG, "<image>", str(content))
    return "".join(text_of_part(part, found) for part in content)


def text_of_part(part, found):
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.pop("type", None) or next(key for key in part if key.removesuffix("_url") in PARTS)
    value = next((part.pop(key) for key in (kind, "value", "url", "path") if key in part), None)
    kind = kind.removesuffix("_url")
    span = [part.pop(key, None) for key in ("video_start", "video_end")]
    found.unread.update(part)
    if kind == "text":
        return str(value)
    if kind not in PARTS:
        raise Unusable("syntax", f"has a part of type {kind!r:.40}; known are {', '.join(PARTS)}")
    if value:
        add_media(found, kind, value, span)
    return f"<{kind}>"


def read_message(message, number, found):
    """(role, text, does it carry loss?) of a message. Raises Unusable."""
    message = {key: value for key, value in message.items() if value is not None}
    role = message.pop("from", None) or message.pop("role", None)
    content = message.pop("value" if "value" in message else "content", "")
    weights = [message.pop(key) for key in ("weight", "loss") if key in message]
    found.unread.update(message)
    if role not in ROLES:
        raise Unusable("role", f"turn {number} has role {role!r:.40}; known: {', '.join(ROLES)}")
    if any(weight not in (0, 1) for weight in weights):
        raise Unusable("weight", f"turn {number} has the weight {weights[0]!r:.40}; give 0 or 1")
    return ROLES[role], text_of(content, found), all(weights)


def read_messages(messages, found):
    """Append the turns of messages to found.turns, and to found.trained whether their answers carry loss."""
    texts = []
    for number, message in enumerate(messages, 1):
        role, text, trained = read_message(message, number, found)
        due = ("user", "assistant")[len(texts) % 2]
        if role == "system" and number == 1:
            found.system = text
            continue
        if role != due:
            raise Unusable("order", f"turn {number} has role {role} instead of {due}")
        texts.append(text)
        if due == "assistant":
            found.turns.append(texts[-2:])
            found.trained.append(trained)
            if not text.strip():
                raise Unusable("empty", f"answer {len(found.turns)} is empty")
    if len(texts) % 2 or not any(found.trained):
        raise Unusable("order", "has no answer that carries loss, or a last question without one")


def split_stated(name):
    """The split that an entry states, or None. Raises Unusable for another name."""
    if name is not None and str(name).lower() not in SPLITS:
        raise Unusable("split", f"has the split {name!r:.40}; give train, val or test")
    return None if name is None else SPLITS[str(name).lower()]


def check_placeholders(found):
    """Raise Unusable for placeholders that do not match the media. Those before the first question go."""
    kinds = [medium.kind for medium in found.media]
    if kinds.count("video") > 1 or len(set(kinds)) > 1:
        raise Unusable("media", f"has {', '.join(kinds)}; an item has images or one video")
    if kinds == ["video"] and "<video>" not in str(found.turns):  # as LLaVA-Video writes
        found.turns = [[question.replace("<image>", "<video>"), answer] for question, answer in found.turns]
    questions, answers = map("\n".join, zip(*found.turns, strict=True))
    marks = [mark[1:-1] for mark in re.findall(MARK, questions)]
    if marks and marks != kinds:
        raise Unusable("placeholder", f"has placeholders for {len(marks)} of {len(kinds)} images or videos")
    if re.search(f"{MARK}|<audio>", answers):
        raise Unusable("placeholder", "has a placeholder in an answer; answers are text")
    bare = re.sub(rf"^(\s*({MARK}))+\s*", "", questions)
    if not re.search(MARK, bare):
        found.turns[0][0] = re.sub(rf"^(\s*({MARK}))+\s*", "", found.turns[0][0])


def parse(entry, question, unread):
    """media, turns, trained, system, caption, objects, id, split of an entry. Raises Unusable.

    The names of fields that are not read are counted in `unread`.
    """
    if isinstance(entry, Unusable):
        raise entry
    entry = {"messages": entry} if isinstance(entry, list) else entry
    if None in entry:
        raise Unusable("syntax", f"has {len(entry[None])} more fields than the header")
    fields = {key: value for key, value in entry.items() if value not in (None, "", [])}
    found = SimpleNamespace(media=[], turns=[], trained=[], caption=None, unread=Counter())
    for name in ("system", "objects", "split", "id", "index"):
        setattr(found, name, fields.pop(name, None))
    if str(fields.get("image", "")).startswith(INLINE):
        fields.pop("image_path", None)  # VLMEvalKit's name for it
    span = [fields.pop(key, None) for key in ("video_start", "video_end")]
    for name in [name for name in fields if kind_of(name)]:
        add_media(found, kind_of(name), fields.pop(name), span)
    read_messages(messages_of(fields, question, found), found)
    if re.search("[\ud800-\udfff]", "".join([*itertools.chain(*found.turns), found.system or ""])):
        raise Unusable("syntax", "has text that is not UTF-8, or half a character")
    unread.update({*found.unread, *fields})
    check_placeholders(found)
    return found


# ---------------------------------------------------------------- items


def locate(name, folder, scratch):
    """The file or folder that an entry names; it may not lead out of an unpacked archive. Raises Unusable."""
    if re.match(r"(?!file:)\w+://", name):
        raise Unusable("missing", "is a URL; download it first")
    name = name.removeprefix("file://")
    path = folder / name if (folder / name).exists() else folder / name.replace("\\", "/")
    packed = folder.is_relative_to(scratch)
    if not path.exists() or (packed and not path.resolve().is_relative_to(scratch.resolve())):
        raise Unusable("missing", f"is not there ({path})")
    return path


def clip_between(path, span, args):
    """A Clip of --frames frames spread evenly over a video, or over its seconds [start, end]."""
    if span == [None, None]:
        return media.read_clip(path, args.frames, size=args.size, evenly=True)
    line = media.timeline(path)
    start, end = float(span[0] or 0), float(line.end if span[1] is None else span[1])
    if not 0 <= start < min(end, line.end):
        raise Unusable("span", f"has no seconds {start:g} to {end:g}, but 0 to {line.end:g}")
    part = dataclasses.replace(line, stamps=line.stamps - start, end=min(end, line.end) - start)
    numbers, times = media.instants(part, args.frames, evenly=True)
    frames = media.frames_at(path, numbers.tolist(), args.size)
    return media.Clip(frames, torch.from_numpy(times), line.width, line.height, line.rotated)


def load(medium, folder, args, scratch):
    """(what a medium gives to an item, digests of its files, degrees rotated). Raises Unusable."""
    source, digests = medium.source, []

    def content(name):
        if isinstance(name, str) and name.startswith(INLINE):
            name = base64.b64decode(name.partition(",")[2] or name, validate=True)
        elif isinstance(name, str):
            path = locate(name, folder, scratch)
            if path.stat().st_size > args.max_bytes:
                raise Unusable("large", f"has more bytes than --max-bytes {args.max_bytes}; raise it")
            name = path.read_bytes()
        digests.append(digest(name))
        return name

    if medium.kind == "image":
        encoded = content(source)
        height, width = media.read_image(encoded).shape[:2]
        encoded = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
        return {"encoded": encoded, "width": width, "height": height}, digests, 0
    if isinstance(source, list):
        clip = media.read_frames(source, content, args.frames, args.size)
    elif isinstance(source, str) and not source.startswith(INLINE):
        path = locate(source, folder, scratch)
        digests.append(media.content_hash(path).hex()[:16])
        clip = clip_between(path, medium.span, args)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content(source))
            file.flush()
            clip = clip_between(Path(file.name), medium.span, args)
    given = {"frames": clip.frames, "times": clip.times, "width": clip.width, "height": clip.height}
    return given, digests, clip.rotated


class SetReader:
    """Makes items of rows: ids are unique, an image stays in one split, problems are counted by kind."""

    def __init__(self, args, scratch):
        self.args, self.scratch = args, scratch
        self.kinds, self.unread, self.splits = Counter(), Counter(), {}
        self.ids, self.contents, self.owners = Counter(), set(), {}

    def note(self, row, kind, reason, most=20):
        """Count a note by its kind; the first ones are printed."""
        self.kinds[kind] += 1
        name = row.entry.get("id") if isinstance(row.entry, dict) else None
        where = row.place if name is None else f"{name!s:.99} ({row.place})"
        line = f"{row.file}: {where}: {reason}"
        if self.kinds[kind] > most:
            line = f"... and more of this kind ({kind})"
        if self.kinds[kind] <= most + 1:
            tqdm.write("".join(c if c.isprintable() else " " for c in line), sys.stderr)

    def name_of(self, row, found):
        """The id of an item: as given, or else its path or place; with a number if that is taken."""
        first = found.media[0].source
        given = found.index if found.id is None else found.id
        name = f"{row.file}: {row.place}" if given is None else str(given)
        if given is None and isinstance(first, str) and not first.startswith(INLINE):
            name = os.path.normpath(os.path.join(row.above, first))
        while self.ids[name]:
            self.ids[name] += 1
            name = f"{name}#{self.ids[name]}"
        if given is not None and name != str(given):
            self.note(row, "same id", f"has the id of an earlier item; renamed to {name}")
        return name

    def source_of(self, name, part, digests):
        """The source of an item: that of an earlier one with an image of it. Raises Unusable."""
        twins = [self.owners[d] for d in digests if d in self.owners]
        for other, there, source in twins:
            if there != part or split_of(source) != split_of(twins[0][2]):
                here, there = part or "no split", there or "no split"
                raise Unusable("split", f"is in {here}, and {other}, in {there}, has its image")
        assigned = part
        if part == "train and val":
            assigned = "val" if int(digest(name.encode()), 16) % 100 < 25 else "train"
        source = f"{assigned}:{name}" if assigned else name
        source = twins[0][2] if twins else source
        self.ids[name] += 1
        self.owners |= {d: (name, part, source) for d in digests if d not in self.owners}
        return source

    def loaded(self, row, found):
        """(what each medium gives to the item, digests of all files). Raises Unusable."""
        given, digests = [], []
        for medium in found.media:
            try:
                parts, files, rotated = load(medium, row.folder, self.args, self.scratch)
            except Unusable as e:
                raise Unusable(e.args[0], f"{medium.source!s:.80} {e.args[1]}") from e
            given.append(parts)
            digests += files
            if rotated:
                self.note(row, "rotated", f"{medium.source!s:.80} is rotated by {rotated} degrees clockwise")
        return given, digests

    def item(self, row):
        """The item of a row, None if it has text alone. Raises Unusable."""
        found = parse(row.entry, self.args.question, self.unread)
        if not found.media:
            self.kinds["text only"] += 1
            return None
        part = split_stated(found.split) or row.part
        given, digests = self.loaded(row, found)
        sizes = [(parts["width"], parts["height"]) for parts in given]
        turns = place_boxes(found.turns, found.objects or {}, self.args.units, sizes)
        named = [row.above, *(f"{medium.kind} {medium.source}" for medium in found.media)]
        content = digest(json.dumps([turns, named]).encode())
        if content in self.contents:
            raise Unusable("duplicate", "repeats an earlier item")
        name = self.name_of(row, found)
        item = {"id": name, "source": self.source_of(name, part, digests), **given[0], "turns": turns}
        self.contents.add(content)
        if len(given) > 1:
            item["images"] = [parts["encoded"] for parts in given]
            del item["encoded"]
        more = {"chat": len(found.turns) > 1, "system": found.system, "text": found.caption}
        more["trained"] = None if all(found.trained) else found.trained
        return item | {key: value for key, value in more.items() if value}

    def items(self, rows):
        """Yield the items of rows; none after a problem, unless --skip-bad or --check is given."""
        for row in tqdm(rows, desc="sets", unit="item"):
            try:
                item = self.item(row)
            except Unusable as e:
                self.note(row, *e.args)
            except (AttributeError, LookupError, OSError, StopIteration, TypeError, ValueError) as e:
                self.note(row, "syntax", f"has a layout that is not known ({type(e).__name__}: {e!s:.80})")
            else:
                if item and (self.args.skip_bad or self.args.check or not self.problems()):
                    self.count(item)
                    yield item

    def count(self, item):
        """Add an item to the counts of its split."""
        row = self.splits.setdefault(split_of(item["source"]), Counter())
        video = "frames" in item
        row.update(items=1, videos=int(video), images=0 if video else len(item.get("images", "1")))
        row.update(turns=len(item["turns"]), answer_words=sum(len(x.split()) for _, x in item["turns"]))
        row["longest_side"] = max(row["longest_side"], item["width"], item["height"])

    def problems(self):
        """{kind: count} of what makes an item unusable."""
        harmless = ("rotated", "text only") if self.args.check else ("rotated", "text only", "same id")
        return {kind: n for kind, n in sorted(self.kinds.items()) if kind not in harmless}

    def print_counts(self):
        """Name what is not read; with --stats print the counts of each split."""
        for name, n in self.unread.items():
            print(f"{self.args.root}: {name!r} is not read ({n} times)", file=sys.stderr)
        for split, row in self.splits.items() if self.args.stats else ():
            print(split, *(f"{key} {value}" for key, value in row.items()))

    def verdict(self, index):
        """More entries of index.yaml. Exits with code 2 if there were problems or no items."""
        args, problems = self.args, self.problems()
        self.print_counts()
        if problems and (args.check or not args.skip_bad):
            by_kind = ", ".join(f"{n} {kind}" for kind, n in problems.items())
            remedy = "correct them" if args.check else "correct them, or give --skip-bad"
            if "missing" in problems and not args.media:
                remedy += ", or give --media the folder or archive that their paths are relative to"
            fail(f"{sum(problems.values())} problems in {args.root} ({by_kind}), listed above; {remedy}")
        if not index["items"]:
            fail(f"{args.root} leaves no usable item; check --media and --format")
        more = {"skipped": sum(problems.values()), "skipped_kinds": problems, "not_read": dict(self.unread)}
        more |= {kind.replace(" ", "_"): self.kinds[kind] for kind in ("rotated", "text only", "same id")}
        return more | {"splits": {split: dict(row) for split, row in self.splits.items()}}


def write_set(args, out, meta):
    """Write a set to `out` and return its index, or with --check only what it finds. Exits with code 2 on any
    problem, unless --skip-bad is given."""
    with tempfile.TemporaryDirectory() as scratch:
        reader = SetReader(args, Path(scratch))
        rows = find_rows(args, Path(scratch), reader.unread)
        first = next(rows, None)
        if first is None:
            fail(f"{args.root} holds no entry; give a set")
        form = format_of(first)
        if args.format not in (None, form):
            fail(f"{args.root} has the format {form}, not {args.format}; leave out --format")
        items = reader.items(itertools.islice(itertools.chain([first], rows), args.n))
        if args.check:
            index = {"format": form, "items": sum(1 for _ in items), "problems": 0}
            return index | {k: v for k, v in reader.verdict(index).items() if not k.startswith("skipped")}
        check_writable(out / "index.yaml")
        items = augmented(items, args)
        media.write_whole(out, items, meta | {"format": form, "question": args.question}, reader.verdict)
    return load_yaml(out / "index.yaml")
