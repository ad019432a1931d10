"""Turn any source into one contract on disk: data/<name>/.

    python data.py shapes                                      500 images of coloured shapes, 224 px
    python data.py moving                                      200 clips of 17 frames: which way does it move?
    python data.py moving --freeze first --clips data/moving   the same clips, each repeating a frame
    python data.py moving --wait 47                            47 still frames before and after the motion
    python data.py cut --clips data/future --frames 8          frames 0 ... 7 of every clip
    python data.py trajectories                                2000 clips of objects that stay, come, go, hide
    python data.py coco --root DIR --out data/mine             images with boxes; also voc, yolo and csv
    python data.py clips --root DIR --fps 12                   labels.csv: filename,label[,split,source]
    python data.py ssv2 --root ROOT --n 1000                   Something-Something v2
    python data.py sets --root set.json --out data/mine        images or videos with text, in many formats
    python data.py sets --root set.json --check --stats        write nothing; list every problem

Every unusable file is named and nothing is written (--skip-bad: it is left out and counted). Writes shards
`00000.pt` ... of at most 64 items, `ids.jsonl` ([id, source] per line) and `index.yaml`. An item is a dict:

    id, source     str; all items of a source share a split (60/20/20 by its hash, or a prefix `train:`, ...)
    frames         uint8 [T,H,W,3], or `encoded`: the file's own bytes; width, height in pixels, upright
    times          (clips) seconds from the first frame [T], where they are known
    boxes          float32 [n,4], or [T,n,4] in a clip: xyxy of the visible part, pixels of the upright frame
    labels, names  n class names (e.g. the shape) and n object names ("red circle")
    crowd          float32 [k,4], with crowd_labels: boxes of many objects; matches with them do not count
    mask           uint8 [H,W] or [T,H,W]: 0 background, i the i-th object
    text, turns    a caption; [question, answer] pairs; chat: turns are one conversation; system: its prompt
    images         several images, each as `encoded`; a box in a turn belongs to the image of its question
    action         (clips) the class: a label, a template, or the direction; repeat: the scene
    direction, speed, camera        (moving) of 8 directions or "still"; pixels per frame; of the background
    count, absent, tracks, topics   (trajectories) see `clip_item` in drawn_trajectories.py

Generated sets depend on --seed alone: the same bytes every time. Needs augment.py, boxes.py, common.py,
conversations.py, drawn_trajectories.py, media.py, synthetic.py, tables.py.
"""

import hashlib
import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import augment
import boxes
import common
import conversations
import drawn_trajectories
import media
import synthetic
from common import fail
from media import Unusable

# ---------------------------------------------------------------- clips made from clips


def subclip(clip, numbers, keys=("frames", "mask", "boxes")):
    """A clip cut to the frames of these numbers, with its masks and boxes."""
    length = len(clip["frames"])
    return clip | {key: clip[key][numbers] for key in keys if len(clip.get(key, ())) == length}


def freeze(clips, frame):
    """The same clips and answers, each repeating its `first` or `middle` frame: a baseline without motion."""
    for clip in clips:
        length = len(clip["frames"])
        yield subclip(clip, [0 if frame == "first" else length // 2] * length)


def waiting(clips, still, seed):
    """The same clips with `still` frames without motion before and after, and noise of 2 grey levels."""
    for clip in clips:
        rng, length = np.random.default_rng([seed, zlib.crc32(clip["id"].encode())]), len(clip["frames"])
        before = int(rng.integers(still + 1))
        longer = subclip(clip, [0] * before + list(range(length)) + [length - 1] * (still - before))
        noise = torch.from_numpy(rng.standard_normal(longer["frames"].shape, np.float32))
        yield longer | {"frames": (longer["frames"] + 2 * noise).round().clamp(0, 255).byte()}


def cut(clips, first, frames, evenly=False):
    """`frames` frames of every clip, from number `first` on or evenly spread over the clip."""
    for clip in clips:
        numbers = list(range(first, first + frames))
        if evenly:
            numbers = media.choose_frames(clip["frames"], frames, "uniform")
            clip = clip | {"times": media.times_of(clip)}
        found = subclip(clip, numbers, ("frames", "mask", "boxes", "times"))
        yield found | {"times": found["times"] - found["times"][0]} if "times" in found else found


# ---------------------------------------------------------------- real clips


def problem_of(row, source, there):
    """(kind, reason) if a row of labels.csv cannot be used; `there`: the split of its source elsewhere."""
    part = row.get("split", "")
    if not row["filename"]:
        return "missing", "has no filename"
    if not row["label"]:
        return "label", "has no label"
    if part not in ("", "train", "val", "test"):
        return "split", f"has the split {part!r}; give train, val, test or nothing"
    if part != there:
        here = f"has source {source!r} in {part or 'no split'}"
        return "split", f"{here}, which is in {there or 'no split'} elsewhere"
    return None


def read_labels(root, annotations):
    """Rows of a CSV, one per clip: filename, label and optionally split, source and repeat (the scene)."""
    if not annotations.is_file():
        fail(f"{annotations} is not a file; give the CSV of labels with --annotations")
    rows, first, unread = [], {}, Counter()
    more = ("split", "source", "repeat")
    for line, row in boxes.read_table(annotations, ("filename", "label"), more, unread):
        name = Path(row["filename"].replace("\\", "/")).as_posix() if row["filename"] else f"line {line}"
        part, label, repeat = row.get("split", ""), row["label"], row.get("repeat", "")
        source = row.get("source") or repeat or name
        problem = problem_of(row, source, first.setdefault(source, part))
        truth = {"action": label, "text": label.replace("_", " ")} | ({"repeat": repeat} if repeat else {})
        source = f"{part}:{source}" if part else source
        rows.append({"id": name, "path": root / name, "source": source, "part": part})
        rows[-1] |= {"problem": problem, "truth": truth}
    return rows, unread


def published(root, *names):
    """(path, content) of the first JSON file of these that is in root or root/labels. Exit 2 if none is."""
    for path in [folder / name for name in names for folder in (root, root / "labels")]:
        if path.is_file():
            try:
                return path, json.loads(path.read_text())
            except ValueError as e:
                fail(f"{path} is not JSON ({e}); download it again")
    fail(f"{' or '.join(names)} is neither in {root} nor in {root}/labels; give --root the published folder")


def read_ssv2(root):
    """Rows of Something-Something v2 (Goyal et al. 2017), as distributed first or today.

    train and val are its train list (75/25), test is its validation list, on which results are published.
    Its test list (today labels/test.json, with labels/test-answers.csv) is not read.
    """
    name = "20bn-something-something-v2"
    videos = next((p for p in (root / name, root / "videos" / name, root / "videos") if p.is_dir()), None)
    if videos is None:
        fail(f"{root / name} is not a folder; give the folder above the published videos with --root")
    listed, classes = published(root, "something-something-v2-labels.json", "labels.json")
    rows, unread = [], Counter(p.name for p in (root / "labels").glob("test*"))
    for part in ("train", "validation"):
        path, entries = published(root, f"something-something-v2-{part}.json", f"{part}.json")
        try:
            for entry in entries:
                name, template = str(entry["id"]), entry["template"]
                action, problem = template.replace("[", "").replace("]", ""), None
                if action not in classes:
                    problem = "label", f"template {action!r} is not in {listed.name}"
                truth = {"action": action, "text": entry["label"], "template": template}
                share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100
                of_train = "train" if share < 75 else "val"
                source = f"{of_train if part == 'train' else 'test'}:{name}"
                rows.append({"id": name, "path": videos / f"{name}.webm", "source": source, "part": part})
                rows[-1] |= {"problem": problem, "truth": truth}
                unread.update(entry.keys() - {"id", "template", "label"})
        except (KeyError, TypeError, AttributeError) as e:
            fail(f"{path} is damaged ({type(e).__name__}: {e}); fetch it again")
    return rows, unread


def choose(rows, n, seed):
    """n rows in their order, drawn by `seed`: parts in proportion, actions of a part equally often."""
    rng, taken, before = np.random.default_rng(seed), [], 0
    for part in sorted({r["part"] for r in rows}):
        members = [k for k in rng.permutation(len(rows)).tolist() if rows[k]["part"] == part]
        of_action, turn = Counter(), {}
        for k in members:
            turn[k] = of_action[rows[k]["truth"]["action"]]
            of_action[rows[k]["truth"]["action"]] += 1
        share = round(n * (before + len(members)) / len(rows)) - round(n * before / len(rows))
        taken += sorted(members, key=turn.get)[:share]
        before += len(members)
    return [rows[k] for k in sorted(taken)]


def decoded(row, args, seen, first):
    """(Clip, first row with the same content) of a row. Raises Unusable."""
    path = row["path"]
    if row["problem"] or row["id"] in seen:
        raise Unusable(*row["problem"] or ("duplicate", "is listed twice"))
    seen.add(row["id"])
    if not path.exists():
        raise Unusable("missing", f"no such clip ({path})")
    clip = media.read_clip(path, args.frames, args.fps, args.size)
    # the same clip under two names is one source, so that both are in one split
    twin = first.setdefault(media.content_hash(path), row)
    if twin["part"] != row["part"]:
        there, here = twin["part"] or "no split", row["part"] or "no split"
        raise Unusable("split", f"is in {here}, and the same clip {twin['id']} is in {there}")
    return clip, twin


def decoded_clips(rows, args, notes):
    """Items of rows, decoded one at a time. Problems are appended to `notes` as (id, kind, reason).

    After a problem, without --skip-bad, nothing is yielded.
    """
    seen, first, bad = set(), {}, False
    for row in tqdm(rows, desc="clips", unit="clip"):
        try:
            clip, twin = decoded(row, args, seen, first)
        except Unusable as e:
            notes.append((row["id"], *e.args))
            bad = True
            continue
        if clip.rotated:
            notes.append((row["id"], "rotated", f"is rotated by {clip.rotated} degrees clockwise"))
        if args.skip_bad or not bad:
            item = {"id": row["id"], "source": twin["source"], "width": args.size, "height": args.size}
            yield item | {"frames": clip.frames, "times": torch.as_tensor(clip.times)} | row["truth"]


def write_clips(args, out, meta):
    root = Path(args.root)
    if args.mode == "ssv2":
        rows, unread = read_ssv2(root)
    else:
        rows, unread = read_labels(root, Path(args.annotations or root / "labels.csv"))
    folders = [row["id"] for row in rows if not row["problem"] and row["path"].is_dir()]
    if args.fps and folders:
        fail(f"{folders[0]} is a folder of frames, which has no frame rate; leave out --fps {args.fps:g}")
    if args.n and args.n < len(rows):
        rows = choose(rows, args.n, args.seed)
    notes = []
    meta |= {"frames": args.frames, "fps": args.fps, "size": args.size, "not_read": boxes.name_unread(unread)}
    verdict = boxes.verdict_on(args, notes, len(rows), "clips")
    media.write_whole(out, decoded_clips(rows, args, notes), meta, verdict)


def write_set(args, out, meta):
    """Write a set, or with --check return what is found."""
    args.max_bytes, args.question = int(args.max_bytes), args.question or QUESTION
    found = conversations.write_set(args, out, meta | {"frames": args.frames, "size": args.size})
    return found if args.check else None


# ---------------------------------------------------------------- command line

JOBS = {
    "shapes": "images of one to four coloured shapes",
    "moving": "clips of one moving shape",
    "trajectories": "clips of objects that stay, enter, leave and hide",
    "cut": "some frames of every clip of a data folder",
    "voc": "a folder of images with Pascal VOC XML boxes",
    "csv": "a folder of images with a CSV of boxes",
    "coco": "a folder of images with COCO JSON boxes",
    "yolo": "a folder of images with YOLO text files of boxes",
    "clips": "videos, or folders of frames, with a CSV of labels",
    "ssv2": "Something-Something v2 as published",
    "sets": "images or videos with text: LLaVA, Qwen messages, CLIP, webdataset, metadata.jsonl",
}
QUESTION = "Describe the picture."
BOXED, REAL = "voc csv coco yolo", "voc csv coco yolo clips ssv2 sets"
FILES = f"shapes=500 moving=200 trajectories=2000 {REAL}"
SIDES = "shapes=224 moving=64 trajectories=48 clips=224 ssv2=224 sets=224"
FLAGS = [  # flag, type or choices (bool: a switch), jobs that have it (=default, ! if it is required), help
    ("--out", str, "*", "the folder to write (default: data/JOB)"),
    ("--preview", bool, "*", "also write preview.png, a contact sheet"),
    ("--n", int, FILES, "number of items; of files, the most that are read"),
    ("--size", int, SIDES, "side of an image or a frame in pixels"),
    ("--frames", int, "moving=17 trajectories=32 clips=24 ssv2=24 sets=8 cut!", "frames per clip"),
    ("--freeze", ["first", "middle"], "moving", "repeat this frame in the whole clip"),
    ("--wait", int, "moving", "still frames, before and after the motion together"),
    ("--clips", str, "moving cut!", "a data folder of clips: to cut, or with --freeze"),
    (
        "--change",
        list(drawn_trajectories.CHANGES),
        "trajectories",
        "the same scenes, reversed or with other objects",
    ),
    ("--only", ["train", "val", "test"], "trajectories", "write only the items of this split"),
    ("--first", int, "cut=0", "the number of the first frame"),
    ("--evenly", bool, "cut", "spread the frames evenly over the whole clip"),
    ("--root", str, REAL.replace(" ", "! ") + "!", "the folder to read; of sets also a file or an archive"),
    ("--skip-bad", bool, REAL, "leave out the items that have problems"),
    ("--annotations", str, f"{BOXED} clips", "their file (voc: folder; default: found in ROOT)"),
    ("--classes", str, BOXED, "allowed class names, separated by commas (default: any)"),
    ("--units", list(boxes.UNITS), f"{BOXED} sets", "of coordinates (default: pixels, of YOLO relative)"),
    ("--origin", ["0", "1"], "voc", "number of the first pixel (default: 1 in VOC's own layout, else 0)"),
    ("--require-boxes", bool, BOXED, "leave out images without objects"),
    ("--resplit", bool, BOXED, "split by a hash, whatever the set states"),
    ("--fps", float, "clips ssv2", "frames per second (default: every frame)"),
    ("--format", list(conversations.SET_FORMATS), "sets", "(default: detected)"),
    ("--media", str, "sets", "the folder or archive that paths of images and videos are relative to"),
    ("--check", bool, "sets", "write nothing and list every problem"),
    ("--stats", bool, "sets", "also print counts and sizes for each split"),
    ("--question", str, "sets", f"the question that a caption answers (default: {QUESTION})"),
    ("--max-bytes", float, "sets=2e10", "largest size of a file or of an expanded archive"),
    ("--flip", bool, f"{BOXED} sets", "add mirrored copies, unless the text says left or right"),
    ("--crop", float, f"{BOXED} sets", "add copies with sides cropped to at least this fraction"),
    ("--jitter", bool, f"{BOXED} sets", "add copies with other brightness, contrast, saturation"),
]
LEAST = {"n": 1, "frames": 1, "wait": 1, "size": 16, "first": 0, "max_bytes": 1}
LEAST_OF = {"trajectories": {"size": 32, "frames": 16}}


def get_args(argv):
    p, jobs = common.subcommands(__doc__, JOBS)
    for flag, kind, names, line in FLAGS:
        how = {"choices": kind} if isinstance(kind, list) else {"type": kind}
        how = {"action": "store_true"} if kind is bool else how
        for name in " ".join(jobs if names == "*" else [names]).split():
            job, _, default = name.partition("=")
            more = {"default": default} if default else {}
            more |= {"required": True} if job.endswith("!") else {}
            jobs[job.rstrip("!")].add_argument(flag, help=line, **how, **more)
    return p.parse_args(argv)


def check_args(args):
    """Exit with code 2 on flags that contradict each other or are out of range."""
    given = {key: value for key, value in vars(args).items() if value is not None and value is not False}
    for key, least in (LEAST | LEAST_OF.get(args.mode, {})).items():
        if given.get(key, least) < least:
            fail(f"--{key.replace('_', '-')} {given[key]:g} is too small; give {least} or more")
    if given.get("fps", 1) <= 0:
        fail(f"--fps {args.fps:g} is not positive; give more than 0 or leave it out")
    if not 0 < given.get("crop", 1) <= 1:
        fail(f"--crop {args.crop:g} is not a fraction; give more than 0 and at most 1")
    if given.keys() >= {"wait", "freeze"}:
        fail(f"--wait {args.wait} needs clips that move; leave out --freeze {args.freeze}")
    if args.mode == "moving" and "clips" in given and "freeze" not in given:
        fail(f"--clips {args.clips} needs --freeze first or middle; give it or leave out --clips")
    if "check" in given and {"flip", "crop", "jitter"} & given.keys():
        fail("--check writes nothing; leave out --flip, --crop and --jitter")


def default_out(args):
    """data/<job>, or data/<job>-<variant>."""
    if getattr(args, "wait", None):
        return Path("data/waiting")
    variant = getattr(args, "freeze", None) or getattr(args, "change", None)
    return Path(f"data/{args.mode}-{variant}" if variant else f"data/{args.mode}")


def clips_in(folder):
    """(items, index) of a data folder of clips. Exits with code 2 on images."""
    items, index = common.load_items(folder)
    if len(items[0].get("frames", ())) < 2:
        fail(f"{folder} holds no clips; give --clips a data folder of clips")
    return items, index


def cut_items(args):
    """(items, their number, further keys of index.yaml) of frames of clips."""
    items, index = clips_in(args.clips)
    last = args.frames - 1 if args.evenly else args.first + args.frames - 1
    for item in items:
        if len(item.get("frames", ())) <= last:
            fail(f"{item['id']} has no frames {args.first} to {last}; give smaller --first or --frames")
    more = {"data": index["data"], "seed": index.get("seed"), "cut_from": index["name"]}
    more |= {"frames": args.frames} | ({"evenly": True} if args.evenly else {"first": args.first})
    return cut(items, args.first, args.frames, args.evenly), len(items), more


def generated(args):
    """(items, their number, further keys of index.yaml) of a generated set."""
    if args.mode == "shapes":
        return synthetic.shapes(args.n, args.size, args.seed), args.n, {}
    if args.mode == "trajectories":
        how = args.frames, args.change, args.only
        return drawn_trajectories.trajectories(args.n, args.size, args.seed, *how), args.n, {}
    more, n = {}, args.n
    if args.clips:
        items, index = clips_in(args.clips)
        more, n = {"data": index["data"], "seed": index.get("seed")}, len(items)
    else:
        items = synthetic.moving(args.n, args.size, args.seed, frames=args.frames)
    if args.freeze:
        items = freeze(items, args.freeze)
    elif args.wait:
        items = waiting(items, args.wait, args.seed)
    return items, n, more


def write_generated(args, out, meta):
    items, n, more = (cut_items if args.mode == "cut" else generated)(args)
    items = tqdm(items, total=n, desc=args.mode, unit="item")
    common.write_items(out, items, meta | more | {"skipped": 0})


WRITERS = {"clips": write_clips, "ssv2": write_clips, "sets": write_set}
WRITERS |= dict.fromkeys(BOXED.split(), boxes.write_boxes)


def main(argv=None):
    args = get_args(argv)
    check_args(args)
    out = Path(args.out or default_out(args))
    if args.mode != "sets":  # an archive is checked before anything is written
        common.check_writable(out / "index.yaml")
    kind = "real" if args.mode in WRITERS else "synthetic"
    meta = {"name": out.name, "source_kind": args.mode, "data": kind, "seed": args.seed}
    options = ("freeze", "wait", "change", "only", "flip", "crop", "jitter", "require_boxes", "resplit")
    meta |= {k: getattr(args, k) for k in options if getattr(args, k, None)}
    if found := WRITERS.get(args.mode, write_generated)(args, out, meta):
        common.print_summary(found)
        return found
    items = common.Items(out)
    if args.preview:
        augment.preview(items, out / "preview.png")
    headline = [
        "format",
        "items",
        "sources",
        "train",
        "val",
        "test",
        "skipped",
        "rotated",
        "same_id",
        "text_only",
    ]
    common.print_summary(items.index, headline)
    return items.index


if __name__ == "__main__":
    main()
