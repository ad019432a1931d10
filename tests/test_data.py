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
import media
from common import load_items, split_of

COLUMNS = ("filename", "label", "split", "source", "repeat")
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
    "coco --root x --crop 2": "--crop 2",
    "clips --root x --fps 0": "--fps 0",
}
TABLES = [
    (COLUMNS, [("a", "x", "test"), ("copy", "x", "train")], "copy: is in train, and the same clip a"),
    (COLUMNS, [("a", "x", "train", "s"), ("b", "x", "test", "s")], "b: has source 's' in test"),
    (COLUMNS, [("a", "x", "train"), ("b", "x", "training")], "b: has the split 'training'"),
    (COLUMNS[:2], [("a", "put", "take")], "line 2 has more fields than the header"),
    (("filename", "label"), [("a", "sch\udcf6n")], "labels.csv cannot be read as UTF-8"),
]
PROBLEMS = {  # of a clip: the kind, and words that are printed
    "short.mp4": ("short", "has 9 frames, fewer than 10"),
    "cut.webm": ("broken", "cut off"),
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
        assert c["times"].tolist() == [0, 2, 3.5, 5.5]  # of two frames a second, where none is stated
    timed = {"id": "t", "frames": torch.zeros(4, 8, 8, 3), "times": torch.tensor([0, 0.1, 0.5, 2.5])}
    (found,) = data.cut([timed], 1, 3)
    assert found["times"].tolist() == pytest.approx([0, 0.4, 2.4])
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


def write_ssv2(root, train=60, validation=20, under="labels", lists="{}.json", videos=VIDEOS):
    """A published layout with small videos, half of them of the first class: {id: (list, action)}."""
    truth = {}
    for path in (root / under, root / videos):
        path.mkdir(parents=True, exist_ok=True)
    for part, ks in (("train", range(train)), ("validation", range(train, train + validation))):
        entries = []
        for k in ks:
            name, template = str(1007 + 7 * k), TEMPLATES[max(0, k % 6 - 2)]
            truth[name] = part, template.replace("[", "").replace("]", "")
            label = template.replace("[something]", "a cup").lower()
            entries.append({"id": name, "label": label, "template": template})
            encode(root / videos / f"{name}.webm", np.roll(numbered()[:6], k, 2))
        (root / under / lists.format(part)).write_text(json.dumps(entries))
    classes = json.dumps({action: "0" for _, action in truth.values()})
    (root / under / lists.format("labels")).write_text(classes)
    return truth


def test_ssv2_keeps_the_published_split_and_n_takes_every_action_alike(tmp_path):
    truth = write_ssv2(tmp_path)
    (tmp_path / "labels/test.json").write_text('[{"id": "9"}]')
    (tmp_path / "labels/test-answers.csv").write_text("9;Folding\n")
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
    truth = write_ssv2(tmp_path, 4, 2, ".", LISTS)
    (tmp_path / LISTS.format("labels")).write_text('{"Putting something on something": "0"}')
    (gone,) = [k for k, (_, action) in truth.items() if action.startswith("Putting")]
    (tmp_path / VIDEOS / f"{gone}.webm").unlink()
    err = printed(lambda: read(tmp_path, tmp_path / "out", kind="ssv2", frames=4))
    assert "6 of 6 clips" in err and f"{gone}: no such clip" in err
    assert all(f"{k}: template {action!r} is not in" in err for k, (_, action) in truth.items() if k != gone)


@pytest.mark.parametrize(
    "layout", [("labels", "{}.json", "videos"), ("labels", LISTS, VIDEOS), (".", LISTS, VIDEOS)]
)
def test_every_published_layout_of_ssv2_gives_the_same_items(tmp_path, layout):
    truth = write_ssv2(tmp_path, 4, 2, *layout)
    items, index = read(tmp_path, tmp_path / "out", kind="ssv2", frames=4)
    assert {i["id"]: i["action"] for i in items} == {k: action for k, (_, action) in truth.items()}
    assert index["test"] == 2


def test_clips_carry_their_times_and_a_column_that_is_not_read_is_named(tmp_path, capsys):
    encode(tmp_path / "a.mp4", numbered(), rate=12)
    labels(tmp_path, (".\\a.mp4", "x", 3), header=("filename", "label", "quality"))
    items, index = read(tmp_path, tmp_path / "out", fps=4)
    assert items[0]["times"].tolist() == pytest.approx([k / 4 for k in range(10)])
    assert index["not_read"] == {"quality": 1} and "not read: quality (1)" in capsys.readouterr().out
    assert index["ids"] == ["a.mp4"] and "fps" not in items[0]
    assert items[0]["times"].dtype == torch.float64 and media.times_of(items[0]).shape == (10,)
