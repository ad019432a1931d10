"""What data.py writes is what it reads or draws; every bad input is named, and then nothing is written."""

import csv
import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_media import encode, numbered, numbers

import data
from common import load_items, split_of
from media import frames_of

COLUMNS = ("filename", "label", "split", "source", "repeat")
ROWS = [("a.png", "cat", 2, 3, 20, 30), ("b.png", "dog", 0, 0, 40, 32), ("b.png", "cat", 5, 6, 7, 8)]
ROWS.append(("c.png", "cat", 10, 1, 39, 31))
VOC = "<xmin>{1}</xmin><ymin>{2}</ymin><xmax>{3}</xmax><ymax>{4}</ymax>"
VOC = f"<object><name>{{0}}</name><bndbox>{VOC}</bndbox></object>"
TEMPLATES = "Pushing [something]", "Putting [something] on [something]", "Dropping [something]", "Folding"
VIDEOS, LISTS = "20bn-something-something-v2", "something-something-v2-{}.json"
WRONG = {
    "moving --clips MOVING": "--freeze",
    "moving --freeze first --clips SHAPES": "no clips",
    "moving --freeze first --wait 3": "--wait 3",
    "shapes --size 8": "--size 8",
    "trajectories --frames 8": "--frames 8",
    "cut --clips MOVING --frames 3 --first 15": "frames 15 to 17",
    "voc --root nowhere": "nowhere is not a folder",
    "sets --root x --check --flip": "--flip",
}
BAD = [  # a format, a file, words in it, or none, and new ones, what is printed, what --skip-bad leaves
    ("csv", "labels.csv", "", "a.png,cat,5,5,41,20", "a.png: box [5.0, 5.0, 41.0, 20.0]", "bc"),
    ("csv", "labels.csv", "", "b.png,cat,9,5,4,20", "b.png: box [9.0, 5.0, 4.0, 20.0]", "ac"),
    ("csv", "labels.csv", "", "c.png,cat,1,2,three,4", "c.png: line 6", "ab"),
    ("csv", "labels.csv", "", "a.png,bird,1,2,3,4", "a.png: unknown class 'bird'", "bc"),
    ("csv", "a.png", "PNG", "GNP", "a.png: broken image", "bc"),
    ("voc", "annotations/b.xml", "<annotation>", "&", "b.xml: not a readable VOC annotation", "ac"),
    ("voc", "annotations/d.xml", "", "<a><filename>a.png</filename></a>", "a.png: is annotated twice", "abc"),
    ("coco", "annotations.json", '"annotations"', '"x"', "is not a COCO instances file", None),
    ("coco", "annotations.json", '3, "image_id": 8', '3, "image_id": 99', "image 99", "abc"),
]
TABLES = [
    (COLUMNS, [("a", "x", "test"), ("copy", "x", "train")], "copy: is in train, and the same clip a"),
    (COLUMNS, [("a", "x", "train", "s"), ("b", "x", "test", "s")], "b: has source 's' in test"),
    (COLUMNS, [("a", "x", "train"), ("b", "x", "training")], "b: has the split 'training'"),
    (("filename", "label"), [("a", "sch\udcf6n")], "labels.csv is not UTF-8"),
]
PROBLEMS = {  # of a clip: the kind, and words that are printed
    "short.mp4": ("short", "has 9 frames, fewer than 10"),
    "cut.webm": ("broken", "of 3.33 seconds"),
    "mid.mp4": ("broken", "is damaged"),
    "few": ("short", "has 3 frames"),
    "torn": ("broken", "7.jpg"),
    "gone.mp4": ("missing", "no such clip"),
    "twice.mp4": ("duplicate", "listed twice"),
    "plain.mp4": ("label", "no label"),
}


def run(job, *argv, **flags):
    return data.main([job, *argv, *(str(x) for k, v in flags.items() for x in (f"--{k}", v))])


def content_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("frame", "t", "given"), [("first", 0, True), ("middle", 8, False)])
def test_frozen_clips_repeat_one_frame_and_keep_everything_else(tmp_path, moving_folder, frame, t, given):
    which, tensors = {"clips": moving_folder} if given else {"n": 24}, {"frames", "mask", "boxes"}
    index = run("moving", **which, freeze=frame, out=tmp_path)
    assert [index[k] for k in ("freeze", "items", "sources")] == [frame, 24, 12]
    for item, clip in zip(load_items(tmp_path)[0], load_items(moving_folder)[0], strict=True):
        assert item.keys() == clip.keys() and all(item[k] == clip[k] for k in item.keys() - tensors)
        assert all(item[k].shape == clip[k].shape and (item[k] == clip[k][t]).all() for k in tensors)


def test_cut_clips_hold_those_frames_and_nothing_of_the_others(tmp_path):
    folders = long, short, spread = [tmp_path / name for name in ("long", "short", "spread")]
    run("moving", n=4, frames=12, out=long)
    index = run("cut", clips=long, first=2, frames=3, out=short)
    run("cut", "--evenly", clips=long, frames=4, out=spread)
    for a, b, c in zip(*(load_items(folder)[0] for folder in folders), strict=True):
        assert all(a[k] == b[k] == c[k] for k in ("id", "source", "direction", "turns"))
        for k in ("frames", "mask", "boxes"):
            assert torch.equal(b[k], a[k][2:5]) and torch.equal(c[k], a[k][[0, 4, 7, 11]])
            assert b[k].untyped_storage().nbytes() < a[k].untyped_storage().nbytes()
        assert c["fps"] == pytest.approx(data.RATE / 3)
    assert [index[k] for k in ("cut_from", "first", "frames", "data")] == ["long", 2, 3, "synthetic"]


def test_waiting_clips_move_as_those_they_are_made_of_and_are_still_before_and_after(tmp_path, moving_folder):
    index, starts = run("moving", n=24, wait=24, out=tmp_path), set()
    for item, clip in zip(load_items(tmp_path)[0], load_items(moving_folder)[0], strict=True):
        shown, moving = item["frames"].float(), clip["frames"].float()
        assert len(shown) == len(item["mask"]) == len(item["boxes"]) == 41 and item["turns"] == clip["turns"]
        errors = [(shown[s : s + 17] - moving).abs().mean().item() for s in range(25)]
        start = int(np.argmin(errors))
        assert errors[start] < 2 and torch.equal(item["boxes"][start : start + 17], clip["boxes"])
        assert (shown[-1] - moving[-1]).abs().mean() < 2 and (shown[0] != shown[1]).any()
        starts.add(start)
    assert len(starts) > 5 and index["wait"] == 24


@pytest.mark.parametrize("given", WRONG)
def test_wrong_arguments_are_refused(refused, shapes_folder, moving_folder, tmp_path, given):
    argv = given.replace("MOVING", str(moving_folder)).replace("SHAPES", str(shapes_folder)).split()
    refused(lambda: run(*argv, out=tmp_path / "x"), WRONG[given])
    assert not (tmp_path / "x/index.yaml").exists()


def image_folder(folder):
    """Images of 40x32 px with the boxes ROWS in each format; COCO also has a crowd."""
    (folder / "annotations").mkdir(parents=True)
    coco = {"images": [], "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]}
    coco["annotations"] = [{"id": 0, "image_id": 7, "iscrowd": 1, "bbox": [0, 0, 40, 32], "category_id": 10}]
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(k).integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        rows = [row[1:] for row in ROWS if row[0] == name]
        xml = f"<filename>{name}</filename>" + "".join(VOC.format(*row) for row in rows)
        (folder / f"annotations/{name[0]}.xml").write_text(f"<annotation>{xml}</annotation>")
        coco["images"].append({"id": 7 + k, "file_name": name})
        for label, x1, y1, x2, y2 in rows:
            row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": {"cat": 10, "dog": 20}[label]}
            coco["annotations"].append(row | {"id": len(coco["annotations"]), "image_id": 7 + k})
    (folder / "annotations.json").write_text(json.dumps(coco))
    return labels(folder, *ROWS, header=("filename", "class", "xmin", "ymin", "xmax", "ymax"))


@pytest.mark.parametrize("form", ["voc", "csv", "coco"])
def test_every_format_gives_the_same_boxes_labels_and_pixels(tmp_path, form):
    folder = image_folder(tmp_path / "in")
    index = run(form, "--preview", root=folder, out=tmp_path / "out")
    items = {i["id"]: i for i in load_items(tmp_path / "out")[0]}
    assert (index["items"], index["data"], index["skipped"]) == (3, "real", 0)
    for name in ("a.png", "b.png", "c.png"):
        item, rows = items[name], [row for row in ROWS if row[0] == name]
        assert item["boxes"].tolist() == [list(row[2:]) for row in rows] and item["source"] == name
        assert item["labels"] == [row[1] for row in rows] and (item["width"], item["height"]) == (40, 32)
        assert (frames_of(item)[0].numpy() == np.array(Image.open(folder / name))).all()
    assert Image.open(tmp_path / "out/preview.png").size == (8 * 160, 5 * 160)


@pytest.mark.parametrize(("form", "name", "old", "new", "line", "left"), BAD)
def test_a_problem_with_boxes_is_listed_and_skip_bad_works(
    tmp_path, printed, form, name, old, new, line, left
):
    path = image_folder(tmp_path / "in") / name
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content.replace(old.encode(), new.encode()) if old else content + f"{new}\n".encode())
    given = {"root": tmp_path / "in", "classes": "cat,dog", "out": tmp_path / "out"}
    err = printed(lambda: run(form, **given))
    assert line in err and not content_of(tmp_path / "out")
    if left is not None:
        assert "1 problems" in err and "--skip-bad" in err
        index = run(form, "--skip-bad", **given)
        assert index["ids"] == [f"{k}.png" for k in left] and index["skipped"] == 1
        assert run(form, "--skip-bad", n=1, **given)["ids"] == index["ids"][:1]


def frame_folder(folder, frames):
    folder.mkdir(parents=True)
    for t, frame in enumerate(frames, 1):
        Image.fromarray(frame).save(folder / f"{t}.jpg")
    return folder


def labels(root, *rows, header=("filename", "label")):
    with open(root / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])
    return root


def read(root, out, *flags, kind="clips", frames=10, **more):
    index = run(kind, *flags, root=root, out=out, size=48, frames=frames, **more)
    return load_items(out)[0], index


def write_problems(root):
    """Two good clips, one of them to be listed twice, and one of each other problem."""
    frames = numbered()
    encode(root / "good.mp4", np.rot90(frames, 1, (1, 2)), rotated=True)
    for name, x in (("short", frames[:9]), ("twice", frames[::-1]), ("plain", frames[:, ::-1])):
        encode(root / f"{name}.mp4", x)
    content = encode(root / "cut.webm", frames[:, ::-1]).read_bytes()
    (root / "cut.webm").write_bytes(content[: len(content) // 3])
    content = bytearray(encode(root / "mid.mp4", frames[:, :, ::-1]).read_bytes())
    content[2400:2402] = b"\xaa\xaa"  # the decoder conceals it
    (root / "mid.mp4").write_bytes(content)
    frame_folder(root / "few", frames[:3])
    torn = frame_folder(root / "torn", frames[:12]) / "7.jpg"
    torn.write_bytes(torn.read_bytes()[:200])


def test_every_problem_with_clips_is_named_and_nothing_is_lost(tmp_path, printed):
    spoilt, out = tmp_path / "in", tmp_path / "out"
    write_problems(spoilt)
    rows = [(n, "" if n == "plain.mp4" else "push_left") for n in ("good.mp4", *PROBLEMS, "twice.mp4")]
    run("moving", "--preview", n=70, size=16, out=out)
    before = content_of(out)
    err = printed(lambda: read(labels(spoilt, *rows), out))
    *lines, last = [line for line in err.splitlines() if ": " in line and "clips:" not in line]
    assert last.startswith("error: 8 of 10 clips") and "--skip-bad" in last
    assert content_of(out) == before
    words = {name: x for name, (_, x) in PROBLEMS.items()} | {"good.mp4": "rotated by 90 degrees clockwise"}
    assert sorted(line.split(": ")[0] for line in lines) == sorted(words)
    assert all(words[line.split(": ")[0]] in line for line in lines), lines
    items, index = read(spoilt, out, "--skip-bad")
    assert [i["id"] for i in items] == ["good.mp4", "twice.mp4"] and index["skipped"] == 8
    assert index["skipped_kinds"] == dict(sorted(Counter(kind for kind, _ in PROBLEMS.values()).items()))
    assert [p.name for p in out.glob("*.pt")] == ["00000.pt"]  # of 70 there were two shards
    assert numbers(items[0]["frames"]) == list(range(15, 25)) and index["data"] == "real"
    assert (items[0]["action"], items[0]["text"], index["rotated"]) == ("push_left", "push left", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Clips a to d, and a copy of a, as folders of frames."""
    root = tmp_path_factory.mktemp("folders")
    for name, shift in (("a", 0), ("b", 1), ("c", 2), ("d", 3), ("copy", 0)):
        frame_folder(root / name, np.roll(numbered()[:4], shift, 2))
    return root


def test_splits_and_sources_of_the_table_are_kept_and_a_copy_has_that_of_its_original(tmp_path, folders):
    rows = [("a", "x", "test"), ("b", "x", "train", "k"), ("c", "x", "train", "", "k"), ("d", "x")]
    labels(folders, *rows, ("copy", "x", "test", "elsewhere"), header=COLUMNS)
    items, index = read(folders, tmp_path, frames=4)
    assert [i["source"] for i in items] == ["test:a", "train:k", "train:k", "d", "test:a"]
    assert index["test"] == 2 + (split_of("d") == "test") and index["sources"] == 3
    assert [i.get("repeat") for i in items] == [None, None, "k", None, None]


@pytest.mark.parametrize(("header", "rows", "line"), TABLES)
def test_a_table_that_splits_a_source_is_refused(tmp_path, folders, printed, header, rows, line):
    text = "\n".join(",".join(row) for row in (header, *rows)) + "\n"
    (folders / "labels.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert line in printed(lambda: read(folders, tmp_path, frames=4))


def write_ssv2(root, train=60, validation=20, under="labels"):
    """The published layout with small videos, half of them of the first class: {id: (list, action)}."""
    truth = {}
    for path in (root / under, root / VIDEOS):
        path.mkdir(parents=True, exist_ok=True)
    for part, ks in (("train", range(train)), ("validation", range(train, train + validation))):
        entries = []
        for k in ks:
            name, template = str(1007 + 7 * k), TEMPLATES[max(0, k % 6 - 2)]
            truth[name] = part, template.replace("[", "").replace("]", "")
            label = template.replace("[something]", "a cup").lower()
            entries.append({"id": name, "label": label, "template": template})
            encode(root / VIDEOS / f"{name}.webm", np.roll(numbered()[:6], k, 2))
        (root / under / LISTS.format(part)).write_text(json.dumps(entries))
    classes = json.dumps({action: "0" for _, action in truth.values()})
    (root / under / LISTS.format("labels")).write_text(classes)
    return truth


def test_ssv2_keeps_the_published_split_and_n_takes_every_action_alike(tmp_path):
    truth = write_ssv2(tmp_path)
    items, index = read(tmp_path, tmp_path / "out", kind="ssv2", frames=4)
    for item in items:
        part, action = truth[item["id"]]
        train = int(hashlib.sha256(item["id"].encode()).hexdigest()[:8], 16) % 100 < 75
        split = "test" if part == "validation" else ("val", "train")[train]
        assert split_of(item["source"]) == split and item["action"] == action
        assert item["text"] == item["template"].replace("[something]", "a cup").lower()
    assert index["test"] == 20 and index["train"] + index["val"] == 60 and 36 < index["train"] < 54
    items, index = read(tmp_path, tmp_path / "out", kind="ssv2", frames=4, n=32)
    count = Counter((truth[i["id"]][0], i["action"]) for i in items)
    assert count == {x: 2 if x[0] == "validation" else 6 for x in truth.values()}
    assert read(tmp_path, tmp_path / "out", kind="ssv2", frames=4, n=32, seed=1)[1]["ids"] != index["ids"]
    rows = [{"part": "", "truth": {"action": a}, "id": k} for k, a in enumerate("a" * 50 + "b" * 50 + "ccc")]
    assert Counter(r["truth"]["action"] for r in data.choose(rows, 43, 0)) == {"a": 20, "b": 20, "c": 3}


def test_templates_without_a_class_and_missing_videos_are_named(tmp_path, printed):
    truth = write_ssv2(tmp_path, 4, 2, ".")
    (tmp_path / LISTS.format("labels")).write_text('{"Putting something on something": "0"}')
    (gone,) = [k for k, (_, action) in truth.items() if action.startswith("Putting")]
    (tmp_path / VIDEOS / f"{gone}.webm").unlink()
    err = printed(lambda: read(tmp_path, tmp_path / "out", kind="ssv2", frames=4))
    assert "6 of 6 clips" in err and f"{gone}: no such clip" in err
    assert all(f"{k}: template {action!r} is not in" in err for k, (_, action) in truth.items() if k != gone)
