"""Stage 0, real clips: what is encoded comes back, the published split is kept, and every clip that cannot be used is named."""

import csv
import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections import Counter

import av
import numpy as np
import pytest
import torch
from PIL import Image

import common
import data
import media
import synthetic
from common import load_items, split_of

CODECS = {".webm": "libvpx-vp9", ".mp4": "libx264", ".mkv": "libx264", ".mov": "libx264", ".avi": "libx264"}


@pytest.fixture(scope="module")
def film():
    """40 frames, uint8 [40,48,64,3], that no flip, turn or shift leaves alone: a made-up clip with a frame number in grey levels at the left edge."""
    frames = next(iter(synthetic.moving(3, 64, 5, frames=40)))["frames"][:, :48].numpy().copy()
    frames[:, :16, :16] = (np.arange(40) * 6)[:, None, None, None]
    return frames


def encode(path, frames, rate=12, turned=0, options=None):
    """A video of frames [T,H,W,3]; `turned`: the degrees (clockwise) that its header asks to be turned by."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream(CODECS[path.suffix], rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": "8", "b": "0"} if path.suffix == ".webm" else {"crf": "8"}
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    # QuickTime: (x, y, 1) times the matrix of tkhd, here (x, y) -> (height - y, x), is where a stored pixel
    # is shown
    if turned == 90:
        content = bytearray(path.read_bytes())
        at = content.index(b"tkhd") + 44
        content[at : at + 36] = struct.pack(
            ">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, frames.shape[1] << 16, 0, 1 << 30
        )
        path.write_bytes(content)
    return path


def pictures(folder, frames, name="{}.jpg"):
    folder.mkdir(parents=True, exist_ok=True)
    for t, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / name.format(t + 1), quality=95)
    return folder


def table(root, *rows, header=("filename", "label")):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])
    return root


def read(root, out, *more, kind="clips"):
    data.main([str(a) for a in (kind, "--root", root, "--out", out, "--size", 48, *more)])
    return load_items(out)


def squashed(frames, size=48):
    return media.frames_of({"frames": torch.from_numpy(frames)}, size)


def error(item, frames):
    """Mean absolute error in grey levels."""
    assert item["frames"].shape == (len(frames), 48, 48, 3) and (item["width"], item["height"]) == (48, 48)
    return (item["frames"].float() - squashed(frames).float()).abs().mean().item()


def numbers(item):
    """The numbers of an item's frames in `film`, as their upper left corner says."""
    return (item["frames"][:, 2:8, 2:8].float().mean((1, 2, 3)) / 6).round().int().tolist()


# ---------------------------------------------------------------- what is encoded comes back


def test_the_middle_frames_come_back_in_order_and_upright_from_every_container(tmp_path, film):
    root = tmp_path / "in"
    for suffix in CODECS:
        encode(root / f"a{suffix}", film)
    # stored turned left: the header asks to turn right
    encode(root / "turned.mp4", np.rot90(film, 1, (1, 2)), turned=90)
    pictures(root / "folder", film)  # 1.jpg ... 40.jpg: by letters 10 would come before 2
    names = [f"a{s}" for s in CODECS] + ["turned.mp4", "folder"]
    items, index = read(table(root, *((n, "push_left") for n in names)), tmp_path / "out", "--frames", 10)
    assert [i["id"] for i in items] == names == [i["source"] for i in items]
    for item in items:
        # mirrored or transposed: above 4
        assert numbers(item) == list(range(15, 25)) and error(item, film[15:25]) < 2, item["id"]
        assert (item["action"], item["text"]) == ("push_left", "push left") and not {
            "boxes",
            "mask",
            "labels",
        } & set(item)
    assert [index[k] for k in ("data", "frames", "size", "skipped", "rotated")] == ["real", 10, 48, 0, 1]


LOWER = {12: list(range(15, 25)), 6: list(range(10, 30, 2)), 4: list(range(6, 36, 3))}


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".avi"])
def test_frames_at_a_lower_rate_are_those_at_their_times(tmp_path, film, suffix):
    encode(tmp_path / f"a{suffix}", film)
    table(tmp_path, (f"a{suffix}", "x"))
    for fps, wanted in LOWER.items():
        items, index = read(tmp_path, tmp_path / f"out{fps}", "--frames", 10, "--fps", fps)
        assert numbers(items[0]) == wanted and index["fps"] == fps


# 40 frames of 1/30 s: 16 of 1/12 s, 32 of 1/24 s
@pytest.mark.parametrize(("fps", "frames", "first"), [(12, 16, 0), (12, 4, 6), (24, 4, 14)])
def test_a_rate_that_does_not_divide_the_own_takes_the_nearest_frames(tmp_path, film, fps, frames, first):
    encode(tmp_path / "a.mp4", film, rate=30)
    items, _ = read(table(tmp_path, ("a.mp4", "x")), tmp_path / "out", "--frames", frames, "--fps", fps)
    assert all(abs(n - 30 / fps * k) <= 0.5 for k, n in enumerate(numbers(items[0]), first))


def test_a_long_clip_is_decoded_no_further_than_wanted_and_keeps_only_what_is(tmp_path, film, monkeypatch):
    long = np.concatenate([film] * 5)
    for name in ("a.mp4", "a.webm"):
        encode(tmp_path / name, long)
        decoded, real = [], media.shown
        monkeypatch.setattr(
            media, "shown", lambda *a, seen=decoded, real=real: (seen.append(1) or x for x in real(*a))
        )
        frames, _ = media.middle_frames(tmp_path / name, 10, None, 48)
        monkeypatch.undo()
        assert len(decoded) == 105 and frames.shape[0] == 10  # 95 before the middle ten, of 200
        assert frames.untyped_storage().nbytes() == 10 * 48 * 48 * 3


def test_a_damaged_tail_does_no_harm_to_the_frames_before_it(tmp_path, film):
    content = encode(tmp_path / "a.webm", film).read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: int(0.9 * len(content))])
    assert numbers(read(table(tmp_path, ("a.webm", "x")), tmp_path / "out", "--frames", 10)[0][0]) == list(
        range(15, 25)
    )


def test_a_clip_whose_header_states_no_length_is_decoded_twice(tmp_path, film):
    encode(tmp_path / "a.webm", film, options={"live": "1"})
    assert media.header(tmp_path / "a.webm", None)[0] == 0
    assert numbers(read(table(tmp_path, ("a.webm", "x")), tmp_path / "out", "--frames", 10)[0][0]) == list(
        range(15, 25)
    )


# ---------------------------------------------------------------- every problem is named

REASONS = {
    "short.mp4": ("short", "has 9 frames, and 10 are wanted"),
    "cut.webm": ("broken", "of 3.33 seconds"),
    "mid.mp4": ("broken", "is damaged"),
    "text.mp4": ("broken", "cannot be decoded"),
    "empty.mp4": ("empty", "no bytes"),
    "few": ("short", "has 3 frames"),
    "none": ("empty", "no JPEG or PNG"),
    "torn": ("broken", "7.jpg"),
    "gone.mp4": ("missing", "no such clip"),
    "twice.mp4": ("duplicate", "listed twice"),
    "unsaid.mp4": ("label", "no label"),
}


def spoilt(root, film):
    """A folder with one good clip and one of each problem, and a clip that is listed twice."""
    encode(root / "good.mp4", film)
    encode(root / "short.mp4", film[:9])
    encode(root / "twice.mp4", film[::-1])
    whole = encode(root / "cut.webm", film[:, ::-1]).read_bytes()
    (root / "cut.webm").write_bytes(whole[: len(whole) // 3])
    mid = bytearray(encode(root / "mid.mp4", film[:, :, ::-1]).read_bytes())
    mid[2400:2402] = b"\xaa\xaa"  # the decoder mends it without a word
    (root / "mid.mp4").write_bytes(mid)
    (root / "text.mp4").write_bytes(b"this is no video" * 100)
    (root / "empty.mp4").write_bytes(b"")
    pictures(root / "few", film[:3])
    (root / "none").mkdir()
    (pictures(root / "torn", film[:12]) / "7.jpg").write_bytes((root / "torn/7.jpg").read_bytes()[:300])
    encode(root / "unsaid.mp4", film[:, ::-1, ::-1])
    return table(root, *((n, "" if n == "unsaid.mp4" else "x") for n in ("good.mp4", *REASONS, "twice.mp4")))


def content_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_problem_is_named_and_nothing_that_was_there_is_lost(tmp_path, film, capsys):
    root, out = spoilt(tmp_path / "in", film), tmp_path / "out"
    data.main(["moving", "--n", "70", "--size", "16", "--out", str(out), "--preview"])
    before = content_of(out)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        read(root, out, "--frames", 10)
    said = [
        line
        for line in capsys.readouterr().err.splitlines()
        if ": " in line and "clip/s" not in line and "clips:" not in line
    ]
    assert stop.value.code == 2 and said[-1].startswith("error: 11 of 13 clips") and "--skip-bad" in said[-1]
    assert sorted(line.split(": ")[0] for line in said[:-1]) == sorted(REASONS)
    assert all(REASONS[line.split(": ")[0]][1] in line for line in said[:-1]), said
    assert content_of(out) == before

    items, index = read(root, out, "--frames", 10, "--skip-bad")
    assert [i["id"] for i in items] == index["ids"] == ["good.mp4", "twice.mp4"] and index["skipped"] == 11
    assert index["skipped_kinds"] == dict(sorted(Counter(kind for kind, _ in REASONS.values()).items()))
    assert [p.name for p in out.glob("*.pt")] == ["00000.pt"]  # of 70 there were two shards


@pytest.mark.parametrize("name", ["mid.mp4", "cut.webm"])
def test_a_clip_that_breaks_while_the_last_shard_is_written_loses_nothing_either(
    tmp_path, film, name, monkeypatch, refused
):
    monkeypatch.setattr(common, "SHARD", 1)
    root = spoilt(tmp_path / "in", film)
    read(table(root, ("good.mp4", "x")), tmp_path / "out", "--frames", 10)
    before = content_of(tmp_path / "out")
    table(root, ("good.mp4", "x"), ("twice.mp4", "x"), (name, "x"))
    refused(lambda: read(root, tmp_path / "out", "--frames", 10), "1 of 3 clips")
    assert content_of(tmp_path / "out") == before


def test_a_clip_that_is_slow_or_short_at_the_rate_wanted_is_named_so(tmp_path, film, refused, capsys):
    encode(tmp_path / "slow.webm", film)
    encode(tmp_path / "short.mp4", film[:30], rate=30)
    encode(tmp_path / "good.mp4", film, rate=30)
    refused(
        lambda: read(table(tmp_path, ("slow.webm", "x")), tmp_path / "out", "--fps", 24, "--skip-bad"),
        "none of 1 clips",
    )
    assert not list((tmp_path / "out").iterdir())
    table(tmp_path, *((name, "x") for name in ("slow.webm", "short.mp4", "good.mp4")))
    index = read(tmp_path, tmp_path / "out", "--fps", 24, "--frames", 30, "--skip-bad")[1]
    err = capsys.readouterr().err
    assert index["skipped_kinds"] == {"short": 1, "slow": 1} and "slow.webm: has 12 frames a second" in err
    assert "short.mp4: has 24 frames at 24 a second, and 30 are wanted" in err


def test_what_cannot_be_meant_is_refused(tmp_path, film, refused):
    pictures(tmp_path / "folder", film[:10])
    refused(
        lambda: read(table(tmp_path, ("folder", "x")), tmp_path / "out", "--fps", "12"),
        "folder is a folder of frames",
        "--fps 12",
    )
    refused(
        lambda: read(table(tmp_path, ("a", "x"), header=("filename", "class")), tmp_path / "out"),
        "lacks the columns label",
    )
    (tmp_path / "labels.csv").write_bytes("filename,label\na,sch\u00f6n\n".encode("latin-1"))
    refused(lambda: read(tmp_path, tmp_path / "out"), "labels.csv is not UTF-8")


# ---------------------------------------------------------------- splits


def test_a_source_that_says_its_split_is_obeyed_and_any_other_is_hashed():
    assert [split_of(f"{s}:{k}") for s in ("train", "val", "test") for k in range(20)] == ["train"] * 20 + [
        "val"
    ] * 20 + ["test"] * 20
    others = [
        f"{s}{k}" for s in ("train", "test-", "kitchen:", "training:", ":test:", "Test:") for k in range(50)
    ]
    others += ["train", "val", "test"]
    hashed = [int(hashlib.sha256(s.encode()).hexdigest()[:8], 16) % 100 for s in others]
    assert [split_of(s) for s in others] == [
        "train" if b < 60 else "val" if b < 80 else "test" for b in hashed
    ]


def test_splits_and_sources_of_the_table_are_kept_and_a_copy_is_of_its_originals_source(tmp_path, film):
    for k, name in enumerate("abcd"):
        pictures(tmp_path / name, np.roll(film[:4], k, 2))
    pictures(tmp_path / "copy", film[:4])
    header = ("filename", "label", "split", "source")
    rows = [("a", "x", "test", ""), *((name, "x", "train", "kitchen") for name in "bc"), ("d", "x", "", "")]
    rows.append(("copy", "x", "test", "elsewhere"))
    items, index = read(table(tmp_path, *rows, header=header), tmp_path / "out", "--frames", 4)
    assert [i["source"] for i in items] == ["test:a", "train:kitchen", "train:kitchen", "d", "test:a"]
    assert index["test"] == 2 + (split_of("d") == "test") and index["sources"] == 3


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([("a", "x", "test", ""), ("copy", "x", "train", "")], "copy: is the same clip as a"),
        (
            [("a", "x", "train", "s"), ("b", "x", "test", "s")],
            "b: source 's' is in test here and in train elsewhere",
        ),
        ([("a", "x", "train", ""), ("b", "x", "training", "")], "b: says split 'training'"),
    ],
)
def test_what_would_tear_a_source_apart_is_a_problem(tmp_path, film, capsys, rows, named):
    for name, frames in (("a", film[:4]), ("copy", film[:4]), ("b", film[4:8])):
        pictures(tmp_path / name, frames)
    with pytest.raises(SystemExit) as stop:
        read(
            table(tmp_path, *rows, header=("filename", "label", "split", "source")),
            tmp_path / "out",
            "--frames",
            4,
        )
    assert stop.value.code == 2 and named in capsys.readouterr().err


# ---------------------------------------------------------------- Something-Something v2

TEMPLATES = ["Pushing [something] from left to right", "Putting [something] on [something]"]
TEMPLATES += ["Dropping [something]", "Folding [something]"]


def write_ssv2(root, film, train=60, validation=20, labels="labels", videos=True):
    """The published layout, made small; every video differs. Classes are uneven: half of the clips are of the first. Returns {id: (part, action)}."""
    (root / labels).mkdir(parents=True, exist_ok=True)
    said, number = {}, 1000
    for part, count in (("train", train), ("validation", validation)):
        entries = []
        for k in range(count):
            number += 7
            template = TEMPLATES[max(0, k % 6 - 2)]
            said[str(number)] = part, template.replace("[", "").replace("]", "")
            label = template.replace("[something]", "a cup").lower()
            entries.append(
                {"id": str(number), "label": label, "template": template, "placeholders": ["a cup"]}
            )
            if videos:
                encode(root / "20bn-something-something-v2" / f"{number}.webm", np.roll(film[:6], number, 2))
        (root / labels / f"something-something-v2-{part}.json").write_text(json.dumps(entries))
    classes = {t.replace("[", "").replace("]", ""): str(k) for k, t in enumerate(TEMPLATES)}
    (root / labels / "something-something-v2-labels.json").write_text(json.dumps(classes))
    return said


@pytest.fixture(scope="module")
def ssv2(tmp_path_factory, film):
    root = tmp_path_factory.mktemp("ssv2")
    return root, write_ssv2(root, film)


def test_the_published_split_is_kept_exactly_and_actions_are_templates_without_brackets(tmp_path, ssv2):
    root, said = ssv2
    items, index = read(root, tmp_path / "out", "--frames", 4, kind="ssv2")
    assert {i["id"]: i["action"] for i in items} == {k: action for k, (_, action) in said.items()}
    hashed = {
        k: "train" if int(hashlib.sha256(k.encode()).hexdigest()[:8], 16) % 100 < 75 else "val" for k in said
    }
    assert {i["id"]: split_of(i["source"]) for i in items} == {
        k: "test" if part == "validation" else hashed[k] for k, (part, _) in said.items()
    }
    assert index["test"] == 20 and index["train"] + index["val"] == 60 and 36 < index["train"] < 54
    for item in items:
        assert (
            item["template"] in TEMPLATES
            and item["text"] == item["template"].replace("[something]", "a cup").lower()
        )


def test_n_takes_every_action_alike_in_the_published_proportion_and_reads_nothing_else(tmp_path, ssv2):
    root, said = ssv2
    chosen = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        items, index = read(root, tmp_path / name, "--frames", 4, "--n", 32, "--seed", seed, kind="ssv2")
        for part, each in (("train", 6), ("validation", 2)):
            assert (
                sorted(Counter(i["action"] for i in items if said[i["id"]][0] == part).values()) == [each] * 4
            )
        chosen.append(index["ids"])
    assert chosen[0] == chosen[1] != chosen[2]
    some, videos = tmp_path / "some", "20bn-something-something-v2"
    write_ssv2(some, None, videos=False)
    (some / videos).mkdir()
    for name in chosen[0]:
        os.link(root / videos / f"{name}.webm", some / videos / f"{name}.webm")
    assert read(some, tmp_path / "d", "--frames", 4, "--n", 32, kind="ssv2")[1]["ids"] == chosen[0]


def test_an_action_with_few_clips_gives_all_it_has_and_the_others_the_rest():
    rows = [
        {"part": "", "truth": {"action": a}, "id": k} for k, a in enumerate("a" * 50 + "b" * 50 + "c" * 3)
    ]
    assert Counter(r["truth"]["action"] for r in data.choose(rows, 43, 0)) == {"a": 20, "b": 20, "c": 3}


def test_a_template_that_is_no_class_and_a_missing_video_are_named(tmp_path, film, capsys):
    said = write_ssv2(tmp_path, film, 4, 2, ".")
    (tmp_path / "something-something-v2-labels.json").write_text(
        json.dumps({"Putting something on something": "0"})
    )
    with pytest.raises(SystemExit) as stop:
        read(tmp_path, tmp_path / "out", "--frames", 4, kind="ssv2")
    err = capsys.readouterr().err
    unknown = [k for k, (_, action) in said.items() if action.startswith("Pushing")]
    assert stop.value.code == 2 and "5 of 6 clips" in err and len(unknown) == 5
    assert all(f"{k}: template 'Pushing something from left to right' is not in" in err for k in unknown)
    (gone,) = said.keys() - unknown
    (tmp_path / f"20bn-something-something-v2/{gone}.webm").unlink()
    with pytest.raises(SystemExit):
        read(tmp_path, tmp_path / "out", "--frames", 4, kind="ssv2")
    assert f"{gone}: no such clip" in capsys.readouterr().err


def test_a_list_that_is_missing_or_is_none_is_refused(tmp_path, refused):
    write_ssv2(tmp_path, None, 2, 2, videos=False)
    published = tmp_path / "labels/something-something-v2-validation.json"
    refused(
        lambda: read(tmp_path, tmp_path / "out", kind="ssv2"), "20bn-something-something-v2 is not a folder"
    )
    (tmp_path / "20bn-something-something-v2").mkdir()
    for content, said in (('[{"id": "1"}]', "KeyError: 'template'"), ("[", "is not JSON")):
        published.write_text(content)
        refused(
            lambda said=said: read(tmp_path, tmp_path / "out", kind="ssv2"),
            "something-something-v2-validation.json",
            said,
        )


# ---------------------------------------------------------------- the rest of the house


def test_the_action_of_a_moving_clip_is_its_direction(moving_folder):
    assert all(i["action"] == i["direction"] for i in load_items(moving_folder)[0])


MAKES = """
mine: DATA=mine ROOT=/r FORMAT=clips ANNOTATIONS=/a.csv CLIPSIZE=64 N=9 FPS=12
    data.py clips --frames 24 --fps 12 --size 64 --root /r --annotations /a.csv --n 9 --out data/mine
ssv2: DATA=ssv2 ROOT=/r FRAMES=16
    data.py ssv2 --frames 16 --root /r --out data/ssv2
mine: DATA=mine ROOT=/r FORMAT=coco
    data.py coco --root /r --out data/mine
mine: DATA=mine ROOT=/r/set.json FORMAT=sets N=9
    data.py sets --root /r/set.json --n 9 --out data/mine
future-last: PAST=5
    data.py moving --frames 21 --n 300 --out data/future
    data.py cut --clips data/future --first 4 --frames 1 --out data/future-last
moving-first:
    data.py moving --out data/moving
    data.py moving --freeze first --clips data/moving --out data/moving-first
"""


@pytest.mark.parametrize("case", MAKES.strip().replace("\n    ", "|").splitlines())
def test_make_reads_clips_and_cuts_them(tmp_path, case):
    (tmp_path / "data.py").touch()
    shutil.copy(common.HERE / "Makefile", tmp_path)
    asked, *wanted = case.split("|")
    target, _, arguments = asked.partition(":")
    command = ["make", "-n", f"data/{target}/index.yaml", "PY=python", *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    printed = done.stdout.replace("$((5 - 1))", "4").replace("\\\n", " ").splitlines()
    lines = [" ".join(line.split()) for line in printed if "data.py" in line]
    assert done.returncode == 0 and len(lines) == len(wanted), done.stdout + done.stderr
    assert all(line.startswith(f"python {w} --seed 0") for line, w in zip(lines, wanted, strict=True)), lines


def test_frames_cut_evenly_are_spread_over_the_whole_clip_and_slower(tmp_path):
    data.main(["trajectories", "--n", "12", "--out", str(tmp_path / "whole")])
    cut = f"cut --clips {tmp_path}/whole --frames 8 --evenly --out {tmp_path}/eight"
    data.main(cut.split())
    at = [0, 4, 9, 13, 18, 22, 27, 31]
    for whole, eight in zip(
        load_items(tmp_path / "whole")[0], load_items(tmp_path / "eight")[0], strict=True
    ):
        assert all(torch.equal(eight[k], whole[k][at]) for k in ("frames", "boxes"))
        assert eight["turns"] == whole["turns"] and eight["fps"] == 0.5
