"""Turn any source into one contract on disk: data/<name>/.

    python data.py shapes                                      500 images of coloured shapes, 224 px
    python data.py moving                                      200 clips of 17 frames, 64 px: which way does it move?
    python data.py moving --freeze first --clips data/moving   the same clips, each repeating its first (or middle) frame
    python data.py moving --wait 47                            the same, with 47 still frames shared out before and after the motion
    python data.py moving --frames 24 --out data/future        eight past frames and sixteen to predict
    python data.py cut --clips data/future --frames 8 --out data/future-past     frames 0 ... 7 of every clip
    python data.py trajectories                                2000 clips of 32 frames, 48 px: objects that stay, come, go and hide
    python data.py coco --root DIR --out data/mine             images with boxes; also voc and csv
    python data.py clips --root DIR --fps 12 --out data/mine   videos or folders of frames; labels.csv: filename,label[,split,source,repeat]
    python data.py ssv2 --root ROOT --n 1000                   Something-Something v2: ROOT/20bn-something-something-v2/*.webm and JSON
    python data.py sets --root set.json --out data/mine        images or videos with text: LLaVA, Qwen, CLIP, webdataset, metadata.jsonl
    python data.py sets --root set.json --check --stats        write nothing; list every problem by file, item and reason

The middle --frames frames of a video are kept, rotated upright and resized to --size x --size. Every unusable file is listed and nothing
is written (--skip-bad: it is counted and left out). Writes shards `00000.pt` ... of at most 64 items, `ids.jsonl` ([id, source] per
line) and, last, `index.yaml`. An item is a dict:

    id, source     str; all items of a source share a split (60/20/20 by its hash, or by its prefix `train:`, `val:` or `test:`)
    frames         uint8 [T,H,W,3], or `encoded`: the file's own bytes, uint8 [bytes]; width, height in pixels
    boxes          float32 [n,4], or [T,n,4] in a clip: xyxy of the visible part, pixels of the original frame
    labels, names  n class names (e.g. the shape) and n object names ("red circle")
    mask           uint8 [H,W] or [T,H,W]: 0 background, i the i-th object
    text, turns    a caption; [question, answer] pairs. chat: True if the turns are one conversation; system: the system prompt
    images         several images, each as `encoded`; a box in a turn belongs to the only image of its question
    action         (clips) the class: a label, a template of Something-Something, or the direction; repeat: the scene
    direction, speed, camera   (moving) one of 8 directions or "still"; pixels per frame; background pixels per frame (dx, dy)
    count, absent, tracks, topics   (trajectories) number of objects; an object that is not there; the truth about each object, see
                   `track_objects` in synthetic.py; [kind, object] of each turn

Real clips have no boxes, labels or mask. Generated sets depend on --seed alone: the same bytes every time.

Copy with it: checkpoints.py, cogvlm2.py, common.py, conversations.py, media.py, models.py, synthetic.py.
"""

import csv
import hashlib
import io
import itertools
import json
import sys
import xml.etree.ElementTree as ET
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import (
    Items,
    check_writable,
    fail,
    load_items,
    load_yaml,
    positive,
    print_summary,
    subcommands,
    write_items,
)
from conversations import SET_FORMATS, augmented, find_set, preview, print_problems, set_items, with_counts
from media import Unusable, choose_frames, content_hash, middle_frames, middle_images, verdict_on, write_whole
from models import RATE
from synthetic import CHANGES, moving, shapes, trajectories

# ---------------------------------------------------------------- sources


def subclip(clip, numbers):
    """A clip cut to the frames of these numbers, with its masks and boxes."""
    selected = {"frames": clip["frames"][numbers]}
    for key in ("mask", "boxes"):
        if len(clip.get(key, ())) == len(clip["frames"]):
            selected[key] = clip[key][numbers]
    return clip | selected


def freeze(clips, frame):
    """The same clips and answers, each repeating its `first` or `middle` frame: a baseline without motion."""
    for clip in clips:
        length = len(clip["frames"])
        yield subclip(clip, [0 if frame == "first" else length // 2] * length)


def waiting(clips, still, seed):
    """The same clips with `still` frames without motion, divided by `seed` between start and end, and noise of 2 grey levels."""
    for clip in clips:
        rng, length = np.random.default_rng([seed, zlib.crc32(clip["id"].encode())]), len(clip["frames"])
        before = int(rng.integers(still + 1))
        longer = subclip(clip, [0] * before + list(range(length)) + [length - 1] * (still - before))
        noise = torch.from_numpy(rng.standard_normal(longer["frames"].shape, np.float32))
        yield longer | {"frames": (longer["frames"] + 2 * noise).round().clamp(0, 255).byte()}


def cut(clips, first, frames, evenly=False):
    """`frames` frames of every clip, from number `first` on or evenly spread over the clip."""
    if evenly:
        for clip in clips:
            numbers = choose_frames(clip["frames"], frames, "uniform")
            rate = clip.get("fps", RATE) * frames / len(clip["frames"])
            yield subclip(clip, numbers) | {"fps": rate}
        return
    for clip in clips:
        yield subclip(clip, list(range(first, first + frames)))


# ---------------------------------------------------------------- images with boxes


def read_voc(root, annotations):
    """Pascal VOC: one XML per image. Yields (file name, boxes, labels) or (file, problem)."""
    for path in sorted(annotations.glob("*.xml")):
        try:
            tree = ET.parse(path).getroot()
            boxes, labels = [], []
            for o in tree.iter("object"):
                labels.append(o.findtext("name"))
                boxes.append([float(o.find("bndbox").findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")])
            yield tree.findtext("filename") or path.stem, boxes, labels
        except (ET.ParseError, AttributeError, TypeError, ValueError) as e:
            yield path.name, f"not a readable VOC annotation ({e})"


def read_csv(root, annotations):
    """CSV with the columns filename, class, xmin, ymin, xmax, ymax; one row per box."""
    if annotations.is_dir():
        fail(f"{annotations} is a folder; give the CSV file with --annotations")
    with open(annotations, newline="") as f:
        rows = csv.DictReader(f)
        missing = {"filename", "class", "xmin", "ymin", "xmax", "ymax"} - set(rows.fieldnames or ())
        if missing:
            fail(f"{annotations} lacks the columns {', '.join(sorted(missing))}; correct its header")
        files, broken = {}, {}
        for line, row in enumerate(rows, 2):
            boxes, labels = files.setdefault(row["filename"], ([], []))
            try:
                boxes.append([float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax")])
                labels.append(row["class"])
            except (TypeError, ValueError):
                broken[row["filename"]] = f"line {line} has a coordinate that is not a number"
    for name, truth in files.items():
        yield (name, broken[name]) if name in broken else (name, *truth)


def read_coco(root, annotations):
    """COCO instances: xywh boxes. Crowds are left out, as is common in training."""
    try:
        content = json.loads(annotations.read_text())
        classes = {c["id"]: c["name"] for c in content["categories"]}
        images = {i["id"]: (i["file_name"], [], []) for i in content["images"]}
        found = [
            (a.get("id"), a["image_id"], a["category_id"], [float(v) for v in a["bbox"]])
            for a in content["annotations"]
            if not a.get("iscrowd")
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        fail(f"{annotations} is not a COCO instances file ({type(e).__name__}: {e}); give one")
    for name, image, category, (x, y, w, h) in found:
        if image not in images:
            yield f"annotation {name}", f"refers to image {image}, which the file does not list"
        else:
            images[image][1].append([x, y, x + w, y + h])
            images[image][2].append(classes.get(category, f"category {category}"))
    yield from images.values()


FORMATS = {
    "voc": (read_voc, "annotations"),
    "csv": (read_csv, "labels.csv"),
    "coco": (read_coco, "annotations.json"),
}


def boxed_item(key, path, boxes, labels, classes):
    """The item of an image and its boxes. Raises ValueError with the reason if it is unusable."""
    from PIL import Image

    if not boxes:
        raise ValueError("has no box")
    # read_coco calls a category that the file does not list by its number
    unknown = [x for x in labels if (x not in classes if classes else x.startswith("category "))]
    if unknown:
        raise ValueError(f"unknown class {min(unknown)!r}")
    try:
        encoded = path.read_bytes()
        with Image.open(io.BytesIO(encoded)) as image:
            image.load()
            width, height = image.size
    except OSError as e:
        raise ValueError(f"broken image ({e})") from e
    for box in boxes:
        if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
            raise ValueError(f"box {box} (xyxy) does not lie inside the image of {width}x{height}")
    item = {"id": key, "source": key, "width": width, "height": height}
    item["encoded"] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    return item | {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": list(labels)}


def boxes(root, form, annotations, classes, max_items, skip_bad):
    """(items, number of problems) of a folder of images with boxes. Every problem is printed; with `skip_bad` the good items remain."""
    read, default = FORMATS[form]
    root, annotations = Path(root), Path(annotations or Path(root) / default)
    if not root.is_dir():
        fail(f"--root {root} is not a folder; give the folder that holds the images")
    if not annotations.exists():
        fail(f"{annotations} does not exist; give the {form} annotations with --annotations")
    if form == "voc" and not annotations.is_dir():
        fail(f"{annotations} is not a folder; give the folder of the XML files with --annotations")
    files, items, problems, seen, first = {}, [], [], set(), {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".bmp", ".webp"):
            continue
        if path.name in files:
            problems.append((path.name, f"is in {files[path.name].parent} and again in {path.parent}"))
        files.setdefault(path.name, path)
    for name, *truth in tqdm(list(read(root, annotations)), desc="reading", unit="file"):
        key = Path(str(name)).name
        path = files.get(key) or files.get(f"{key}.jpg") or files.get(f"{key}.png")
        try:
            if len(truth) == 1:
                raise ValueError(truth[0])
            if path is None:
                raise ValueError(f"no such image under {root}")
            if key in seen:
                raise ValueError("is annotated twice")
            seen.add(key)
            item = boxed_item(key, path, *truth, classes)
        except ValueError as e:
            problems.append((name, e))
            continue
        # the same photograph under two names is one source, so that both are in one split
        item["source"] = first.setdefault(hashlib.sha256(item["encoded"].numpy()).digest(), key)
        items.append(item)
        if max_items and len(items) == max_items:
            break
    for name, problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    if problems and not skip_bad:
        fail(f"{len(problems)} problems in {annotations}, listed above; correct them or give --skip-bad")
    if not items:
        fail(f"{annotations} leaves no usable item; check --root and --annotations")
    return items, len(problems)


# ---------------------------------------------------------------- real clips


def read_labels(root, annotations):
    """Rows of a CSV, one per clip: filename, label and optionally split (train, val, test or empty), source and repeat (the scene)."""
    if not annotations.is_file():
        fail(f"{annotations} is not a file; give the CSV of labels with --annotations")
    try:
        # Excel begins a file with a byte order mark
        table = csv.DictReader(io.StringIO(annotations.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as e:
        fail(f"{annotations} is not UTF-8 ({e.reason} at byte {e.start}); save it as UTF-8")
    if missing := {"filename", "label"} - set(table.fieldnames or ()):
        fail(f"{annotations} lacks the columns {', '.join(sorted(missing))}; correct its header")
    rows, part_of = [], {}
    for line, row in enumerate(table, 2):
        file, label, part, source, repeat = (
            (row.get(k) or "").strip() for k in ("filename", "label", "split", "source", "repeat")
        )
        name = file or f"line {line}"
        source = source or repeat or file
        other = part_of.setdefault(source, part)
        problem = None
        if not file:
            problem = "missing", "has no filename"
        elif not label:
            problem = "label", "has no label"
        elif part not in ("", "train", "val", "test"):
            problem = "split", f"has the split {part!r}; give train, val, test or nothing"
        elif part != other:
            problem = (
                "split",
                f"has source {source!r} in {part or 'no split'}, which is in {other or 'no split'} elsewhere",
            )
        truth = {"action": label, "text": label.replace("_", " ")}
        if repeat:
            truth["repeat"] = repeat
        source = f"{part}:{source}" if part else source
        row = {"id": name, "path": root / name, "source": source, "part": part}
        rows.append(row | {"problem": problem, "truth": truth})
    return rows


def read_ssv2(root):
    """Rows of Something-Something v2 (Goyal et al. 2017): train and val are its train list (75/25), test is its validation list."""

    def published(name):
        found = [p for p in (root / name, root / "labels" / name) if p.is_file()]
        if not found:
            fail(f"{name} is neither in {root} nor in {root}/labels; give --root the published folder")
        try:
            return json.loads(found[0].read_text())
        except ValueError as e:
            fail(f"{found[0]} is not JSON ({e}); download it again")

    videos, rows = root / "20bn-something-something-v2", []
    if not videos.is_dir():
        fail(f"{videos} is not a folder; give the folder above the published videos with --root")
    classes = published("something-something-v2-labels.json")
    for part in ("train", "validation"):
        try:
            for entry in published(f"something-something-v2-{part}.json"):
                name, template = str(entry["id"]), entry["template"]
                action = template.replace("[", "").replace("]", "")
                if part == "validation":
                    split = "test"
                elif int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100 < 75:
                    split = "train"
                else:
                    split = "val"
                problem = None
                if action not in classes:
                    problem = "label", f"template {action!r} is not in something-something-v2-labels.json"
                truth = {"action": action, "text": entry["label"], "template": template}
                row = {"id": name, "path": videos / f"{name}.webm", "source": f"{split}:{name}", "part": part}
                rows.append(row | {"problem": problem, "truth": truth})
        except (KeyError, TypeError, AttributeError) as e:
            fail(f"something-something-v2-{part}.json is damaged ({type(e).__name__}: {e}); fetch it again")
    return rows


def choose(rows, n, seed):
    """n rows in their order: each part in proportion to its size, and within a part equally many of each action, drawn by `seed`."""
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


def clips(rows, frames, fps, size, skip_bad, notes):
    """Items of rows, decoded one at a time. Problems are appended to `notes` as (id, kind, reason); after one, without skip_bad, nothing is yielded."""
    seen, first, bad = set(), {}, False
    for row in tqdm(rows, desc="clips", unit="clip"):
        path = row["path"]
        try:
            if row["problem"] or row["id"] in seen:
                raise Unusable(*row["problem"] or ("duplicate", "is listed twice"))
            seen.add(row["id"])
            if not path.exists():
                raise Unusable("missing", f"no such clip ({path})")
            if path.is_dir():
                shot, degrees = middle_images(path, frames, size), 0
            else:
                shot, degrees = middle_frames(path, frames, fps, size)
            # the same clip under two names is one source, so that both are in one split
            twin = first.setdefault(content_hash(path), row)
            if twin["part"] != row["part"]:
                there, here = twin["part"] or "no split", row["part"] or "no split"
                raise Unusable("split", f"is in {here}, and the same clip {twin['id']} is in {there}")
        except Unusable as e:
            notes.append((row["id"], *e.args))
            bad = True
            continue
        if degrees:
            notes.append((row["id"], "rotated", f"is rotated by {degrees} degrees clockwise"))
        if skip_bad or not bad:
            item = {"id": row["id"], "source": twin["source"], "width": size, "height": size, "frames": shot}
            yield item | row["truth"]


def write_clips(out, rows, frames, fps, size, skip_bad, meta):
    """Write the clips of these rows and list every unusable one."""
    if folder := fps and next((r["id"] for r in rows if not r["problem"] and r["path"].is_dir()), None):
        fail(f"{folder} is a folder of frames, which has no frame rate; leave out --fps {fps:g}")
    notes = []
    items = clips(rows, frames, fps, size, skip_bad, notes)
    write_whole(out, items, meta, verdict_on(notes, len(rows), skip_bad))


# ---------------------------------------------------------------- sets with text: LLaVA, Qwen, CLIP, webdataset, imagefolder


def write_set(args, out, meta):
    """Read a set and write it, or with args.check only list its problems. Exits with code 2 on any problem unless --skip-bad is given."""
    form, entries = find_set(args.root, args.format, args.media, args.max_bytes)
    notes, table = [], {}
    items = set_items(tqdm(itertools.islice(entries, args.n), desc="sets", unit="item"), args, notes)
    items = with_counts(items if args.check else augmented(items, args), table)
    harmless = {"rotated"} if args.check else {"rotated", "same id", "near"}

    def verdict(index):
        kinds = print_problems(notes)
        for split, row in table.items() if args.stats else ():
            print(split, *(f"{k} {v}" for k, v in row.items()))
        problems = {k: n for k, n in sorted(kinds.items()) if k not in harmless}
        if problems and (args.check or not args.skip_bad):
            by_kind = ", ".join(f"{n} {kind}" for kind, n in problems.items())
            remedy = "correct them"
            if "missing" in problems and not args.media:
                remedy += ", or give --media the folder or archive that their paths are relative to"
            if not args.check:
                remedy += ", or give --skip-bad"
            fail(f"{sum(problems.values())} problems in {args.root} ({by_kind}), listed above; {remedy}")
        if not index["items"]:
            fail(f"{args.root} leaves no usable item; check --media and --format")
        return {
            "skipped": len({name for name, kind, _ in notes if kind in problems}),
            "skipped_kinds": problems,
            **{k.replace(" ", "_"): kinds[k] for k in sorted(harmless)},
            "splits": table,
        }

    if args.check:
        index = {"format": form, "items": sum(1 for _ in items), "problems": 0}
        return index | {k: v for k, v in verdict(index).items() if not k.startswith("skipped")}
    check_writable(out / "index.yaml")
    write_whole(out, items, meta | {"format": form, "question": args.question}, verdict)
    return load_yaml(out / "index.yaml")


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "shapes": "images of one to four coloured shapes",
            "moving": "clips of one moving shape",
            "trajectories": "clips of objects that stay, enter, leave and hide",
            "cut": "some frames of every clip of a data folder",
            "voc": "a folder of images with Pascal VOC XML boxes",
            "csv": "a folder of images with a CSV of boxes",
            "coco": "a folder of images with COCO JSON boxes",
            "clips": "videos, or folders of frames, with a CSV of labels",
            "ssv2": "Something-Something v2 as published",
            "sets": "images or videos with text: LLaVA, Qwen messages, CLIP, webdataset, metadata.jsonl",
        },
    )
    for name, q in jobs.items():
        add = q.add_argument
        add("--out", help=f"the folder to write (default: data/{name})")
        add("--preview", action="store_true", help="also write preview.png, a contact sheet")
    for name, n, size in (("shapes", 500, 224), ("moving", 200, 64), ("trajectories", 2000, 48)):
        jobs[name].add_argument("--n", type=int, default=n, help="number of items")
        jobs[name].add_argument("--size", type=int, default=size, help="side in pixels")
    add = jobs["moving"].add_argument
    add("--frames", type=int, default=17, help="frames per clip")
    add("--freeze", choices=["first", "middle"], help="repeat this frame in the whole clip")
    add("--wait", type=int, help="still frames, before and after the motion together")
    add("--clips", help="with --freeze: the data folder of the clips to freeze")
    add = jobs["trajectories"].add_argument
    add("--frames", type=int, default=32, help="frames per clip")
    add("--change", choices=CHANGES, help="the same scenes reversed, or with objects deleted or swapped")
    add("--only", choices=["train", "val", "test"], help="write only the items of this split")
    add = jobs["cut"].add_argument
    add("--clips", required=True, help="a data folder of clips")
    add("--frames", type=int, required=True, help="frames per clip")
    add("--first", type=int, default=0, help="the number of the first frame")
    add("--evenly", action="store_true", help="spread the frames evenly over the whole clip")
    for name in ("voc", "csv", "coco", "clips", "ssv2", "sets"):
        add = jobs[name].add_argument
        add("--n", type=int, help="maximum number of items (default: all)")
        add("--skip-bad", action="store_true", help="leave out the items that have problems")
    for name in ("voc", "csv", "coco"):
        add = jobs[name].add_argument
        add("--root", required=True, help="the folder that holds the images")
        add("--annotations", help=f"default: ROOT/{FORMATS[name][1]}")
        add("--classes", help="allowed class names, separated by commas (default: any)")
    for name in ("clips", "ssv2"):
        add = jobs[name].add_argument
        add("--root", required=True, help="the folder of the videos, or of the published files")
        add("--frames", type=int, default=24, help="frames per clip, from its middle")
        add("--size", type=int, default=224, help="side of a frame in pixels")
        add("--fps", type=float, help="frames per second (default: every frame)")
    jobs["clips"].add_argument("--annotations", help="default: ROOT/labels.csv")
    add = jobs["sets"].add_argument
    add("--root", required=True, help="a JSON, CSV or TSV file, a folder, a .tar or a .zip")
    add("--format", choices=SET_FORMATS, help="(default: detected)")
    add("--media", help="the folder or archive that the paths of images and videos are relative to")
    add("--check", action="store_true", help="write nothing and list every problem")
    add("--stats", action="store_true", help="also print counts and sizes for each split")
    add("--question", default="Describe the picture.", help="the question that a caption answers")
    add("--frames", type=int, default=8, help="frames per video")
    add("--size", type=int, default=224, help="side of a video frame in pixels")
    add("--max-side", type=int, default=8192, help="the longest side of an image, in pixels")
    add("--max-bytes", type=float, default=2e10, help="largest size of a file or of an expanded archive")
    for name in ("voc", "csv", "coco", "sets"):
        add = jobs[name].add_argument
        add("--flip", action="store_true", help="add mirrored copies, unless the text says left or right")
        add("--crop", type=float, help="add copies with sides cropped to at least this fraction")
        add("--jitter", action="store_true", help="add copies with other brightness, contrast, saturation")
    return p.parse_args(argv)


def check_args(args):
    """Exit with code 2 on flags that contradict each other or are out of range."""
    positive(args, "n", "frames", "wait")
    if getattr(args, "size", 16) < 16:
        fail(f"--size {args.size} is too small; give 16 or more")
    if args.mode == "moving":
        if args.wait and args.freeze:
            fail(f"--wait {args.wait} needs clips that move; leave out --freeze {args.freeze}")
        if args.clips and not args.freeze:
            fail(f"--clips {args.clips} needs --freeze first or middle; give it or leave out --clips")
    if args.mode == "trajectories" and (args.size < 32 or args.frames < 16):
        fail(f"--size {args.size} --frames {args.frames} are too small; give at least 32 and 16")
    if args.mode == "cut" and args.first < 0:
        fail(f"--first {args.first} is negative; give 0 or more")
    if getattr(args, "fps", None) is not None and not args.fps > 0:
        fail(f"--fps {args.fps:g} is not positive; give more than 0 or leave it out")
    if getattr(args, "crop", None) is not None and not 0 < args.crop <= 1:
        fail(f"--crop {args.crop:g} is not a fraction; give more than 0 and at most 1")
    if args.mode == "sets":
        if args.max_side < 1 or args.max_bytes < 1:
            fail(f"--max-side {args.max_side} --max-bytes {args.max_bytes:g} admit no file; give 1 or more")
        if args.check and (args.flip or args.crop is not None or args.jitter):
            fail("--check writes nothing; leave out --flip, --crop and --jitter")


def default_out(args):
    """data/<job>, or data/<job>-<variant>."""
    if getattr(args, "wait", None):
        return Path("data/waiting")
    variant = getattr(args, "freeze", None) or getattr(args, "change", None)
    return Path(f"data/{args.mode}-{variant}" if variant else f"data/{args.mode}")


def clips_in(folder):
    """(items, index) of a data folder of clips. Exits with code 2 on images."""
    items, index = load_items(folder)
    if len(items[0].get("frames", ())) < 2:
        fail(f"{folder} holds no clips; give --clips a data folder of clips")
    return items, index


def generated(args):
    """(items, their number, further keys of index.yaml) of a generated set or of cut."""
    if args.mode == "cut":
        items, index = clips_in(args.clips)
        last = args.first + args.frames - 1
        for item in items:
            if len(item.get("frames", ())) <= last:
                fail(f"{item['id']} has no frames {args.first} to {last}; give smaller --first or --frames")
        more = {"data": index["data"], "seed": index.get("seed"), "cut_from": index["name"]}
        more["frames"] = args.frames
        more |= {"evenly": True} if args.evenly else {"first": args.first}
        return cut(items, args.first, args.frames, args.evenly), len(items), more
    if args.mode == "shapes":
        return shapes(args.n, args.size, args.seed), args.n, {}
    if args.mode == "trajectories":
        return trajectories(args.n, args.size, args.seed, args.frames, args.change, args.only), args.n, {}
    more, n = {}, args.n
    if args.clips:
        items, index = clips_in(args.clips)
        more, n = {"data": index["data"], "seed": index.get("seed")}, len(items)
    else:
        items = moving(args.n, args.size, args.seed, frames=args.frames)
    if args.freeze:
        items = freeze(items, args.freeze)
    elif args.wait:
        items = waiting(items, args.wait, args.seed)
    return items, n, more


def write_job(args, out, meta):
    """Write `out`. Returns the findings of `sets --check`, else None."""
    if args.mode in ("clips", "ssv2"):
        root = Path(args.root)
        if args.mode == "ssv2":
            rows = read_ssv2(root)
        else:
            rows = read_labels(root, Path(args.annotations or root / "labels.csv"))
        if args.n and args.n < len(rows):
            rows = choose(rows, args.n, args.seed)
        meta |= {"frames": args.frames, "fps": args.fps, "size": args.size}
        write_clips(out, rows, args.frames, args.fps, args.size, args.skip_bad, meta)
    elif args.mode == "sets":
        args.max_bytes = int(args.max_bytes)
        found = write_set(args, out, meta | {"frames": args.frames, "size": args.size})
        return found if args.check else None
    elif args.mode in ("voc", "csv", "coco"):
        classes = args.classes and [c.strip() for c in args.classes.split(",")]
        items, meta["skipped"] = boxes(args.root, args.mode, args.annotations, classes, args.n, args.skip_bad)
        write_items(out, augmented(items, args), meta)
    else:
        items, n, more = generated(args)
        write_items(out, tqdm(items, total=n, desc=args.mode, unit="item"), meta | more | {"skipped": 0})


def main(argv=None):
    args = get_args(argv)
    check_args(args)
    out = Path(args.out or default_out(args))
    if args.mode != "sets":  # an archive is checked before anything is written
        check_writable(out / "index.yaml")
    kind = "synthetic" if args.mode in ("shapes", "moving", "trajectories", "cut") else "real"
    meta = {"name": out.name, "source_kind": args.mode, "data": kind, "seed": args.seed}
    options = ("freeze", "wait", "change", "only", "flip", "crop", "jitter")
    meta |= {k: getattr(args, k) for k in options if getattr(args, k, None)}
    if found := write_job(args, out, meta):
        print_summary(found)
        return found
    items = Items(out)
    if args.preview:
        preview(items, out / "preview.png")
    headline = ["format", "items", "sources", "train", "val", "test"]
    print_summary(items.index, [*headline, "skipped", "rotated", "same_id", "near"])
    return items.index


if __name__ == "__main__":
    main()
