"""What data.py writes is what it reads or draws; every bad input is named, and then nothing is written."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
import torch
from helpers_data import encode, facts, labels, packed, put, read, run
from test_media import numbered, numbers

import data
import media
from common import load_items, split_of

COLUMNS = ("filename", "label", "split", "source", "repeat")
QUARTERS = [k / 4 for k in range(10)]
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
    (COLUMNS[:2], [("a", "sch\udcf6n")], "labels.csv cannot be read as UTF-8"),
]
PROBLEMS = {  # of a clip: the kind, and words that are printed
    "short.mp4": ("short", "has 9 frames, fewer than 10"),
    "cut.webm": ("broken", "cut off"),
    "torn": ("broken", "7.jpg"),
    "gone.mp4": ("missing", "no such clip"),
    "twice.mp4": ("duplicate", "listed twice"),
    "plain.mp4": ("label", "no label"),
}


@pytest.mark.parametrize(("frame", "t", "given"), [("first", 0, True), ("middle", 8, False)])
def test_frozen_clips_repeat_one_frame_and_keep_everything_else(tmp_path, moving_folder, frame, t, given):
    which, tensors = {"clips": moving_folder} if given else {"n": 24}, {"frames", "mask", "boxes"}
    index = run("moving", **which, freeze=frame, out=tmp_path)
    assert facts(index, "freeze", "items", "sources") == [frame, 24, 12]
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
    assert facts(index, "cut_from", "first", "frames", "data") == ["long", 2, 3, "synthetic"]


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
    return put(folder, {f"{t}.jpg": packed(frame, "JPEG") for t, frame in enumerate(frames, 1)})


def clips(root, out, *flags, job="clips", frames=4, **more):
    items, index = read(job, root, out, *flags, size=48, frames=frames, **more)
    return [*items.values()], index


def test_every_problem_with_clips_is_named_and_nothing_is_lost(tmp_path, printed):
    spoilt, out, frames = tmp_path / "in", tmp_path / "out", numbered()
    encode(spoilt / "good.mp4", np.rot90(frames, 1, (1, 2)), turn=(270,))
    for name, x in (("short", frames[:9]), ("twice", frames[::-1]), ("plain", frames[:, ::-1])):
        encode(spoilt / f"{name}.mp4", x)
    content = encode(spoilt / "cut.webm", frames[:, ::-1]).read_bytes()
    put(spoilt, {"cut.webm": content[: len(content) // 3]})
    put(frame_folder(spoilt / "torn", frames[:12]), {"7.jpg": b"\xff\xd8\xff"})
    rows = [(n, "" if n == "plain.mp4" else "push_left") for n in ("good.mp4", *PROBLEMS, "twice.mp4")]
    run("moving", "--preview", n=70, size=16, out=out)
    before = {p: p.read_bytes() for p in out.iterdir()}
    err = printed(lambda: clips(labels(spoilt, *rows), out, frames=10))
    *lines, last = [line for line in err.splitlines() if ": " in line and "clips:" not in line]
    assert last.startswith("error: 6 of 8 clips") and "--skip-bad" in last
    assert {p: p.read_bytes() for p in out.iterdir()} == before
    words = {name: x for name, (_, x) in PROBLEMS.items()} | {"good.mp4": "rotated by 90 degrees clockwise"}
    assert sorted(line.split(": ")[0] for line in lines) == sorted(words)
    assert all(words[line.split(": ")[0]] in line for line in lines), lines
    items, index = clips(spoilt, out, "--skip-bad", frames=10)
    assert [i["id"] for i in items] == ["good.mp4", "twice.mp4"] and index["skipped"] == 6
    assert index["skipped_kinds"] == dict(sorted(Counter(kind for kind, _ in PROBLEMS.values()).items()))
    assert [p.name for p in out.glob("*.pt")] == ["00000.pt"]  # of 70 there were two shards
    assert numbers(items[0]["frames"]) == list(range(15, 25)) and index["rotated"] == 1
    assert (items[0]["action"], items[0]["text"]) == ("push_left", "push left")


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
    items, index = clips(folders, tmp_path)
    assert [i["source"] for i in items] == ["test:a", "train:k", "train:k", "d", "test:a"]
    assert index["test"] == 2 + (split_of("d") == "test") and index["sources"] == 3
    assert [i.get("repeat") for i in items] == [None, None, "k", None, None]


@pytest.mark.parametrize(("header", "rows", "line"), TABLES)
def test_a_table_that_splits_a_source_is_refused(tmp_path, folders, printed, header, rows, line):
    labels(folders, *rows, header=header)
    assert line in printed(lambda: clips(folders, tmp_path))


def test_clips_carry_their_times_and_a_column_that_is_not_read_is_named(tmp_path, capsys):
    encode(tmp_path / "a.mp4", numbered(), rate=12)
    labels(tmp_path, (".\\a.mp4", "x", 3), header=("filename", "label", "quality"))
    (item,), index = clips(tmp_path, tmp_path / "out", frames=10, fps=4)
    assert item["id"] == "a.mp4" and media.times_of(item).tolist() == pytest.approx(QUARTERS)
    assert index["not_read"] == {"quality": 1} and "not read: quality (1)" in capsys.readouterr().out


def write_ssv2(root, train, validation, under=".", lists=LISTS, videos=VIDEOS):
    """A published layout with small videos, half of them of the first class: {id: (list, action)}."""
    truth, written = {}, {"train": [], "validation": []}
    for k in range(train + validation):
        name, template = str(1007 + 7 * k), TEMPLATES[max(0, k % 6 - 2)]
        part = "train" if k < train else "validation"
        truth[name] = part, template.replace("[", "").replace("]", "")
        label = template.replace("[something]", "a cup").lower()
        written[part].append({"id": name, "label": label, "template": template})
        encode(root / videos / f"{name}.webm", np.roll(numbered()[:6], k, 2))
    written["labels"] = {action: "0" for _, action in truth.values()}
    put(root / under, {lists.format(name): json.dumps(x) for name, x in written.items()})
    return truth


def test_ssv2_keeps_the_published_split_and_n_takes_every_action_alike(tmp_path):
    truth, out = write_ssv2(tmp_path, 60, 20, "labels", "{}.json", "videos"), tmp_path / "out"
    put(tmp_path / "labels", {"test.json": '[{"id": "9"}]', "test-answers.csv": "9;Folding\n"})
    items, index = clips(tmp_path, out, job="ssv2")
    for item in items:
        part, action = truth[item["id"]]
        train = int(hashlib.sha256(item["id"].encode()).hexdigest()[:8], 16) % 100 < 75
        split = "test" if part == "validation" else ("val", "train")[train]
        assert split_of(item["source"]) == split and item["action"] == action
        assert item["text"] == item["template"].replace("[something]", "a cup").lower()
    assert index["test"] == 20 and index["train"] + index["val"] == 60 and 36 < index["train"] < 54
    items, index = clips(tmp_path, out, job="ssv2", n=32)
    count = Counter((truth[i["id"]][0], i["action"]) for i in items)
    assert count == {x: 2 if x[0] == "validation" else 6 for x in truth.values()}
    assert clips(tmp_path, out, job="ssv2", n=32, seed=1)[1]["ids"] != index["ids"]
    rows = [{"part": "", "truth": {"action": a}, "id": k} for k, a in enumerate("a" * 50 + "b" * 50 + "ccc")]
    assert Counter(r["truth"]["action"] for r in data.choose(rows, 43, 0)) == {"a": 20, "b": 20, "c": 3}


def test_templates_without_a_class_and_missing_videos_are_named(tmp_path, printed):
    truth = write_ssv2(tmp_path, 4, 2)
    (tmp_path / LISTS.format("labels")).write_text('{"Putting something on something": "0"}')
    (gone,) = [k for k, (_, action) in truth.items() if action.startswith("Putting")]
    (tmp_path / VIDEOS / f"{gone}.webm").unlink()
    err = printed(lambda: clips(tmp_path, tmp_path / "out", job="ssv2"))
    assert "6 of 6 clips" in err and f"{gone}: no such clip" in err
    assert all(f"{k}: template {action!r} is not in" in err for k, (_, action) in truth.items() if k != gone)
