"""Sets with words: the same items from every format, every problem named, nothing hostile let in."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import conversations
import data
from common import HERE, Items, load_items, load_yaml, split_of
from media import frames_of

ASK = "Describe the picture."
CAPTIONS = ["a red cat", "two dogs, one black", 'a "quoted" bird', "naïve café", "a horse", "an empty field"]


def jpeg(k, size=(40, 30), form="JPEG"):
    file = io.BytesIO()
    coarse = np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
        file, form, **({"quality": 90} if form == "JPEG" else {})
    )
    return file.getvalue()


def pictures(folder, n=6, under="images"):
    (folder / under).mkdir(parents=True, exist_ok=True)
    for k in range(n):
        (folder / under / f"{k}.jpg").write_bytes(jpeg(k))
    return folder


def llava(k, question=f"<image>\n{ASK}", image=None):
    return {
        "id": f"images/{k}.jpg",
        "image": image or f"images/{k}.jpg",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": CAPTIONS[k]}],
    }


def qwen(k):
    asked = [{"type": "image", "image": f"images/{k}.jpg"}, {"type": "text", "text": ASK}]
    answered = [{"type": "text", "text": CAPTIONS[k]}]
    return {
        "id": f"images/{k}.jpg",
        "messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}],
    }


def say(*turns, **more):
    """An entry whose turns are "h..." of the human, "g..." of the model, or "narrator: ..."."""
    said = [t.split(": ", 1) if t[0] == "n" else ({"h": "human", "g": "gpt"}[t[0]], t[1:]) for t in turns]
    return llava(1) | {"conversations": [{"from": a, "value": b} for a, b in said]} | more


def table(folder, name, comma):
    quoted = [f'"{c.replace(chr(34), chr(34) * 2)}"' for c in CAPTIONS]
    (folder / name).write_text(
        f"filepath{comma}title\n" + "".join(f"images/{k}.jpg{comma}{c}\n" for k, c in enumerate(quoted))
    )
    return folder / name


def packed(path, files):
    """An archive of {name: bytes}, its kind by its name."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]) as file:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return path


def written(path, entries):
    path.write_text(
        json.dumps(entries) if path.suffix == ".json" else "".join(json.dumps(e) + "\n" for e in entries)
    )
    return path


def files_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def imagefolder(folder):
    pictures(folder, under="train")
    (folder / "train" / "metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": f"{k}.jpg", "text": c}) + "\n" for k, c in enumerate(CAPTIONS))
    )
    return folder


def webdataset(path):
    files = {}
    for k, caption in enumerate(CAPTIONS):
        files |= {f"images/{k}.jpg": jpeg(k), f"images/{k}.txt": caption.encode()}
    return packed(path, files)


def llavas(folder, name="set.json"):
    return written(pictures(folder) / name, [llava(k) for k in range(6)])


MAKE = {
    "llava.json": llavas,
    "llava.jsonl": lambda f: llavas(f, "set.jsonl"),
    "llava folder": lambda f: llavas(f).parent,
    "llava zip": lambda f: packed(f / "set.zip", files_of(llavas(f / "x").parent)),
    "qwen.jsonl": lambda f: written(pictures(f) / "set.jsonl", [qwen(k) for k in range(6)]),
    "clip.csv": lambda f: table(pictures(f), "set.csv", ","),
    "clip.tsv": lambda f: table(pictures(f), "set.tsv", "\t"),
    "webdataset.tar": lambda f: webdataset(f / "set.tar"),
    "webdataset.tar.gz": lambda f: webdataset(f / "set.tar.gz"),
    "imagefolder": lambda f: imagefolder(f / "set"),
    "imagefolder.zip": lambda f: packed(f / "set.zip", files_of(imagefolder(f / "x"))),
    "imagefolder.tar.gz": lambda f: packed(
        f / "set.tar.gz", {f"./{n}": x for n, x in files_of(imagefolder(f / "x")).items()}
    ),
    "imagefolder.tar.xz": lambda f: packed(f / "set.tar.xz", files_of(imagefolder(f / "x"))),
}


@pytest.mark.parametrize("name", MAKE)
def test_every_format_gives_the_same_items(tmp_path, name):
    (tmp_path / "in").mkdir()
    root = MAKE[name](tmp_path / "in")
    index = data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out")])
    items = load_items(tmp_path / "out")[0]
    assert (index["format"], index["data"], index["skipped"]) == (name.split()[0].split(".")[0], "real", 0)
    assert [i["turns"] for i in items] == [[[ASK, c]] for c in CAPTIONS] and not any(
        "chat" in i for i in items
    )
    assert [bytes(i["encoded"].numpy()) for i in items] == [jpeg(k) for k in range(6)]
    assert {(i["width"], i["height"]) for i in items} == {(40, 30)} and len({i["id"] for i in items}) == 6
    assert all(("text" in i) == (name[0] in "ciw") for i in items)
    assert data.main(["sets", "--check", "--root", str(root)])["splits"] == index["splits"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["00000.pt", "ids.jsonl", "index.yaml"]


# ---------------------------------------------------------------- what is said of an item


def build(tmp_path, entries, *flags, n=6):
    """The items, and the index, of a JSONL set of these entries."""
    folder = pictures(tmp_path / "in", n)
    root = written(folder / "set.jsonl", entries)
    index = data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out"), *map(str, flags)])
    return load_items(tmp_path / "out")[0], index


CHATS = """
{"id": "a", "image": ["images/0.jpg", "images/1.jpg"], "conversations": [
    {"from": "system", "value": "Be brief."}, {"from": "human", "value": "<image>\\n<image>\\nSame?"},
    {"from": "gpt", "value": "no"}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "colour"}]}
{"id": "b", "images": ["images/0.jpg", "images/1.jpg"], "messages": [
    {"role": "user", "content": "First <image>, then <image>: same?"}, {"role": "assistant", "content": "no"}]}
{"id": "c", "image": "images/2.jpg", "conversations": [
    {"from": "user", "value": "Ready?"}, {"from": "assistant", "value": "yes"},
    {"from": "user", "value": "<image>\\nWhat?"}, {"from": "assistant", "value": "a bird"}]}
[{"role": "user", "content": [{"text": "Which of the two? "}, {"image": "images/3.jpg"},
    {"type": "image_url", "image_url": {"url": "file://HERE/images/4.jpg"}}]}, {"role": "assistant", "content": "the first"}]
{"id": 0, "file_name": "images/0.jpg", "question": "<image>\\nWhich?", "answer": "this"}
"""


def test_a_conversation_keeps_its_turns_its_system_words_and_placeholders_that_do_not_stand_first(tmp_path):
    chats = CHATS.replace("HERE", str(tmp_path / "in"))
    a, b, c, d, e = build(tmp_path, [x for _, x in conversations.read_json(io.StringIO(chats))])[0]
    assert (
        a["turns"] == [["Same?", "no"], ["Why?", "colour"]]
        and a["chat"] is True
        and a["system"] == "Be brief."
    )
    assert len(a["album"]) == 2 and "encoded" not in a and frames_of(a, 16).shape == (2, 16, 16, 3)
    assert (
        b["turns"] == [["First <image>, then <image>: same?", "no"]] and "chat" not in b and "system" not in b
    )
    assert (
        c["turns"] == [["Ready?", "yes"], ["<image>\nWhat?", "a bird"]]
        and c["chat"] is True
        and "encoded" in c
    )
    assert d["turns"] == [["Which of the two? <image><image>", "the first"]]
    assert [bytes(x.numpy()) for x in d["album"]] == [jpeg(3), jpeg(4)]
    assert (e["id"], e["turns"]) == ("0", [["Which?", "this"]]) and "text" not in e


def film(path, frames=20, rate=10):
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.width = 64
        stream.height = 48
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 10**6
        for t in range(frames):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * t, np.uint8))):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)


LAYOUTS = """
{"messages": [{"role": "user", "content": [{"type": "image", "image": "images/1.jpg", "text": null}, {"type": "text", "text": "A?", "image": null}]},
              {"role": "assistant", "content": [{"type": "text", "text": "b", "image": null}]}]}
{"messages": [{"role": "user", "content": [{"type": "image", "url": "images/1.jpg"}, {"type": "text", "text": "A?"}]}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": [{"type": "image", "path": "images/1.jpg"}, {"type": "text", "text": "A?"}]}, {"role": "assistant", "content": "b"}]}
{"messages": [{"role": "user", "content": [{"type": "image_url", "value": "images/1.jpg"}, {"type": "text", "value": "A?"}]},
              {"role": "assistant", "content": [{"type": "text", "value": "b"}]}]}
{"images": ["images/1.jpg"], "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A?"}]}, {"role": "assistant", "content": "b"}]}
{"images": [{"path": "images/1.jpg", "bytes": null}], "conversations": [{"from": "human", "value": "<image>A?"}, {"from": "gpt", "value": "b"}]}
{"photo_file_name": "images/1.jpg", "question": "A?", "answer": "b", "additional_feature": 7, "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}}
"""  # as they are published: rows of a table, a chat template's three ways, the picture beside the words, a mapping, any file name


def test_layouts_that_are_published_are_read(tmp_path):
    for k, (_, entry) in enumerate(conversations.read_json(io.StringIO(LAYOUTS))):
        (tmp_path / str(k)).mkdir()
        (item,) = build(tmp_path / str(k), [entry])[0]
        assert (
            item["turns"] == [["A?", "b"]]
            and bytes(item["encoded"].numpy()) == jpeg(1)
            and "album" not in item
        ), entry
    assert k == 6


def test_rows_that_are_packed_or_stand_over_several_lines_are_entries(tmp_path):
    root, rows = pictures(tmp_path) / "set.json", [llava(k) for k in range(3)]
    for text in (
        json.dumps([rows[:2], rows[2:]]),
        "\n".join(json.dumps(row, indent=2) for row in rows) + "\n",
    ):
        root.write_text(text)
        assert data.main(["sets", "--check", "--root", str(root)])["items"] == 3


def asked_of_video(**more):
    return {
        "conversations": [{"from": "human", "value": "<video>\nHow?"}, {"from": "gpt", "value": "brighter"}]
    } | more


def test_a_video_may_be_a_file_name_or_a_list_of_pictures(tmp_path):
    folder, listed = pictures(tmp_path / "in"), [f"images/{k}.jpg" for k in range(6)]
    film(folder / "v.MP4", 20)
    asked = {"role": "user", "content": [{"type": "video", "video": listed}, {"text": "How?"}]}
    entries = [
        asked_of_video(video="v.MP4"),
        {"file_name": "v.MP4", "text": "b"},
        asked_of_video(video=listed),
    ]
    entries.append({"messages": [asked, {"role": "assistant", "content": "b"}]})
    items, _ = build(tmp_path, entries, "--frames", 3, "--size", 20)
    assert [i["frames"].shape for i in items] == 4 * [(3, 20, 20, 3)] and [
        i["turns"][0][0] for i in items
    ] == ["How?", ASK, "How?", "How?"]
    middle = frames_of({"encoded": torch.frombuffer(bytearray(jpeg(2)), dtype=torch.uint8)}, 20)[0]
    assert all((i["frames"][1] == middle).all() for i in items[2:])


@pytest.mark.parametrize("archive", [False, True])
def test_a_video_is_shown_from_beginning_to_end(tmp_path, archive):
    film(tmp_path / "v.mp4", 20)
    root = written(tmp_path / "set.jsonl", [asked_of_video(video="v.mp4")])
    root = (
        packed(tmp_path / "set.zip", {p.name: p.read_bytes() for p in (tmp_path / "v.mp4", root)})
        if archive
        else root
    )
    data.main(["sets", "--root", str(root), "--frames", "5", "--size", "32", "--out", str(tmp_path / "out")])
    item = load_items(tmp_path / "out")[0][0]
    assert item["frames"].shape == (5, 32, 32, 3) and (item["width"], item["height"]) == (64, 48)
    assert (item["frames"].float().mean((1, 2, 3)) - torch.tensor([0.0, 40, 80, 120, 160])).abs().max() < 6


def test_a_video_that_cannot_be_used_is_a_problem(tmp_path, capsys):
    film(tmp_path / "v.mp4", 20)
    root = written(tmp_path / "set.jsonl", [asked_of_video(video="v.mp4")])
    assert (
        "v.mp4 is 64x48, and --max-side is 50"
        in checked(capsys, "sets", "--check", "--root", root, "--max-side", 50)[0]
    )
    assert (
        "v.mp4 has 20 frames, and 21 are wanted"
        in checked(capsys, "sets", "--check", "--root", root, "--frames", 21)[0]
    )
    (tmp_path / "v.mp4").write_bytes(b"\0" * 999)
    assert "v.mp4 cannot be decoded" in checked(capsys, "sets", "--check", "--root", root)[0]


def test_a_phones_picture_is_turned_and_what_is_transparent_lies_on_white(tmp_path):
    folder, exif = pictures(tmp_path / "in"), Image.Exif()
    exif[274] = 6
    Image.open(folder / "images/0.jpg").save(folder / "images/0.jpg", exif=exif)
    Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(folder / "images/1.png")
    root = written(folder / "set.jsonl", [llava(0), llava(1, image="images/1.png")])
    index = data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out")])
    turned, white = load_items(tmp_path / "out")[0]
    assert (turned["width"], turned["height"]) == (30, 40) == frames_of(turned).shape[2:0:-1]
    assert index["turned"] == 1 and (frames_of(white) == 255).all()


def test_splits_that_folders_say_are_kept_and_of_two_the_other_is_the_test(tmp_path):
    for part, numbers in (("train", range(4)), ("validation", (4, 5))):
        folder = pictures(tmp_path / "in", 6, under=part) / part
        written(folder / "metadata.jsonl", [{"file_name": f"{k}.jpg", "text": CAPTIONS[k]} for k in numbers])
    data.main(["sets", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "two")])
    splits = [split_of(s) for s in Items(tmp_path / "two").sources]
    assert set(splits[:4]) <= {"train", "val"} and set(splits[4:]) == {"test"}
    (tmp_path / "in/validation").rename(tmp_path / "in/val")
    (pictures(tmp_path / "in", 1, under="test") / "test/0.jpg").write_bytes(jpeg(77))
    (tmp_path / "in/test/metadata.csv").write_text("file_name,text\n0.jpg,a boat\n")
    index = data.main(["sets", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "three")])
    assert (index["train"], index["val"], index["test"]) == (4, 2, 1)
    assert load_items(tmp_path / "three")[0][0]["text"] == "a boat"


def test_one_picture_under_two_names_is_one_source(tmp_path):
    folder = pictures(tmp_path / "in", 40)
    (folder / "images/copy.jpg").write_bytes(jpeg(3))
    entries = [llava(0) | {"id": str(k), "image": f"images/{k}.jpg"} for k in range(40)] + [
        llava(0, image="images/copy.jpg") | {"id": "copy"}
    ]
    items, index = build(tmp_path, entries, n=40)
    assert items[40]["source"] == items[3]["source"] and index["sources"] == 40 and index["near"] == 0


def test_an_id_that_is_there_twice_is_told_apart(tmp_path, capsys):
    items, index = build(tmp_path, [llava(0), llava(1) | {"id": "images/0.jpg"}])
    assert (
        [i["id"] for i in items] == ["images/0.jpg", "images/0.jpg#2"]
        and index["same_id"] == 1
        and index["skipped"] == 0
    )


# ---------------------------------------------------------------- problems


def bare(answer, **more):
    return say("h<image>\nWhere?", f"g{answer}") | more


def spoilt(change):
    """What to do to the folder: images/1.jpg with other bytes."""
    return lambda folder: (folder / "images/1.jpg").write_bytes(change)


PROBLEMS = {
    "missing": (llava(1, image="images/gone.jpg"), "images/gone.jpg is not there ("),
    "network": (llava(1, image="https://example.org/a.jpg"), "is on the network; fetch it first"),
    "broken": (spoilt(jpeg(1)[:200]), "images/1.jpg cannot be decoded ("),
    "no picture": (spoilt(b"<html>"), "images/1.jpg is no picture"),
    "large": (spoilt(jpeg(1, (300, 20))), "images/1.jpg is 300x20, and --max-side is 256"),
    "bytes": (spoilt(jpeg(1) + bytes(10**5)), "and --max-bytes is 50000"),
    "placeholders missing": (llava(1, ASK), "has 0 <image> for 1 image"),
    "placeholders for a video": (llava(1, "<image><video>\nWhat?"), "has 1 <video> for 0 videos"),
    "no media": ({"conversations": llava(1, ASK)["conversations"]}, "has 0 images and 0 videos"),
    "repeated": (say("h<image>", "gb", "hC?", "gd", "hC?", "gd"), "turn 3 repeats turn 2: 'C?'"),
    "empty": (say("h<image>", "g \n"), "answer 1 is empty"),
    "role": (say("h<image>", "narrator: b"), "turn 2 is said by 'narrator'; known: human, user"),
    "order": (say("g<image>", "hb"), "turn 1 is the assistant's, where the user's is due"),
    "no answer": (say("h<image>"), "the last question has no answer"),
    "outside": (
        bare('{"bbox_2d": [1, 2, 41, 20]}'),
        "[1.0, 2.0, 41.0, 20.0], which does not lie inside 40x30",
    ),
    "inside out": (bare('[{"bbox_2d": [9, 2, 4, 20]}]'), "says bbox_2d [9.0, 2.0, 4.0, 20.0]"),
    "three numbers": (bare('{"bbox_2d": [9, 2, 4]}'), "says bbox_2d [9.0, 2.0, 4.0]"),
    "a point outside": (bare('{"point_2d": [3, 31]}'), "says point_2d [3.0, 31.0]"),
    "duplicate": (llava(0) | {"id": "other"}, "is an earlier item again, word for word"),
    "split": (llava(1) | {"split": "holdout"}, "says split 'holdout'; known: train, val, test"),
    "other placeholders": (bare('{"bbox_2d": <bbox>}'), "has <bbox>, and what belongs there is not read"),
    "no mapping": ("a string", "is 'a string', not a mapping"),
}


def checked(capsys, *argv, code=2):
    """What data.py, which must exit with code 2, writes to stderr; one line each."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        data.main([str(a) for a in argv])
    assert e.value.code == code
    return [
        line
        for line in capsys.readouterr().err.split("\n")
        if line and "it/s" not in line and "item/s" not in line
    ]


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_named_by_file_item_and_reason(tmp_path, capsys, name):
    spoil, reason = PROBLEMS[name]
    folder = pictures(tmp_path / "in")
    root = written(folder / "set.jsonl", [llava(0), llava(1) if callable(spoil) else spoil, llava(2)])
    limits = ["--max-side", "256", "--max-bytes", "50000"]
    if callable(spoil):
        spoil(folder)
    line, last = checked(capsys, "sets", "--check", "--root", root, *limits)
    assert line.startswith("set.jsonl: ") and ("(line 2): " in line or " line 2: " in line) and reason in line
    assert f"error: 1 problems in {root} (1 " in last
    line, last = checked(capsys, "sets", "--root", root, "--out", tmp_path / "out", *limits)
    assert reason in line and "--skip-bad" in last and not list((tmp_path / "out").iterdir())
    index = data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out"), "--skip-bad", *limits])
    assert (index["items"], index["skipped"], sum(index["skipped_kinds"].values())) == (2, 1, 1)
    assert [i["turns"][0][1] for i in load_items(tmp_path / "out")[0]] == [CAPTIONS[0], CAPTIONS[2]]


def test_all_problems_of_an_item_are_listed_and_at_most_twenty_of_a_kind(tmp_path, capsys):
    entries = [say("hWhat?", "narrator: b", image=f"images/gone{k}.jpg", id=str(k)) for k in range(25)]
    lines = checked(capsys, "sets", "--check", "--root", written(pictures(tmp_path) / "set.jsonl", entries))
    assert [sum(w in line for line in lines) for w in ("narrator", "is not there", "has 0 <image>")] == [
        20,
        20,
        20,
    ]
    assert (
        sum("... and 5 more of this kind" in line for line in lines) == 3
        and "75 problems" in lines[-1]
        and "25 role" in lines[-1]
    )


def test_an_array_that_is_cut_short_or_a_line_that_is_no_json_leaves_the_others(tmp_path, capsys):
    root, text = pictures(tmp_path) / "set.json", json.dumps([llava(k) for k in range(6)], indent=1)
    lines = json.dumps(llava(0)) + "\n{oops\n\n" + json.dumps(llava(1)) + "\n"
    for content, said, left in (
        (text[: int(len(text) * 0.6)], "set.json: entry 3: ", 3),
        (lines, "set.json: line 2: is not JSON (", 2),
    ):
        root.write_text(content)
        assert checked(capsys, "sets", "--check", "--root", root)[0].startswith(said)
        assert (
            data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out"), "--skip-bad"])["items"]
            == left
        )


def test_an_array_is_read_through_pieces_smaller_than_an_entry(monkeypatch):
    class Slow(io.StringIO):
        def read(self, n=-1):
            return super().read(min(n, 7))

    entries = [{"a": "]},[{" * k, "b": [1, {"c": "naïve"}]} for k in range(20)]
    for indent in (None, 2):
        assert [e for _, e in conversations.read_json(Slow(json.dumps(entries, indent=indent)))] == entries


def replaced(x, odd):
    """`x` with one value after the other, at any depth, replaced by an odd one, and without it."""
    for key in list(x) if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ():
        for value in odd:
            yield {**x, key: value} if isinstance(x, dict) else [*x[:key], value, *x[key + 1 :]]
        yield {k: v for k, v in x.items() if k != key} if isinstance(x, dict) else x[:key] + x[key + 1 :]
        for value in replaced(x[key], odd):
            yield {**x, key: value} if isinstance(x, dict) else [*x[:key], value, *x[key + 1 :]]


ODD = r"""[null, 0, true, 1.5, "", "x", "\ud800", "data:image/png;base64,?", "a\u0000b", [], [[]], {}, [{}], {"url": 1}, [null],
    ["images/0.jpg"], "{\"bbox_2d\": [1, 2, \"x\"]}", "<image>"]"""


def test_nothing_that_json_can_hold_makes_it_stumble(tmp_path, capsys):
    folder, odd = pictures(tmp_path), [*json.loads(ODD), "a" * 5000]
    worlds = [
        llava(1),
        qwen(1),
        qwen(1)["messages"],
        {"file_name": "images/1.jpg", "text": "a", "split": "train", "system": "s"},
        say("h<video>", "gb", video=["a.mp4"]),
        say("h<image>\nA?", "gb", "hC?", "gd"),
        {"images": [{"path": "images/1.jpg", "bytes": None}], "caption": "e"},
    ]
    entries = [entry for world in worlds for entry in [world, *replaced(world, odd)]]
    checked(capsys, "sets", "--check", "--root", written(folder / "set.jsonl", entries))
    index = data.main(
        ["sets", "--root", str(folder / "set.jsonl"), "--skip-bad", "--out", str(tmp_path / "out")]
    )
    items = load_items(tmp_path / "out")[0]
    assert len(entries) > 1000 and 20 < len(items) == index["items"]
    assert all(
        i["turns"] and all(isinstance(w, str) for t in i["turns"] for w in t) and i["turns"][-1][1].strip()
        for i in items
    )


def test_a_tar_whose_pictures_and_words_lie_apart_and_a_folder_are_read_alike(tmp_path):
    words, shown = (
        {f"{k}.{e}": x(k) for k in range(6)}
        for e, x in (("txt", lambda k: CAPTIONS[k].encode()), ("jpg", jpeg))
    )
    with tarfile.open(packed(tmp_path / "set.tar", words | shown)) as file:
        file.extractall(tmp_path / "in", filter="data")
    for n, root in enumerate(("set.tar", "in")):
        arguments = ["sets", "--root", str(tmp_path / root), "--out", str(tmp_path / f"out{n}")]
        assert data.main(arguments)["format"] == "webdataset"
        assert [i["text"] for i in load_items(tmp_path / f"out{n}")[0]] == CAPTIONS


def test_shards_of_a_webdataset_are_read_one_after_the_other_and_what_tools_leave_is_not(tmp_path):
    (tmp_path / "in").mkdir()
    for n, part in enumerate(("train-0", "train-1", "test-0")):
        words = {f"{part}-{k}.json": json.dumps({"caption": f"{part} {k}"}).encode() for k in range(4)}
        packed(
            tmp_path / f"in/{part}.tar",
            {f"{part}-{k}.JPG": jpeg(10 * n + k) for k in range(4)} | words | {"._0.JPG": b"junk"},
        )
        (tmp_path / f"in/{part}_stats.json").write_text('{"count": 4}')  # img2dataset counts its shards
    index = data.main(["sets", "--root", str(tmp_path / "in"), "--out", str(tmp_path / "out")])
    assert index["items"] == 12 and index["test"] == 4 and index["train"] + index["val"] == 8
    assert [i["text"] for i in load_items(tmp_path / "out")[0]][:2] == ["test-0 0", "test-0 1"]
    (tmp_path / "notes/.ipynb_checkpoints").mkdir(parents=True)
    for name in (".ipynb_checkpoints/set-checkpoint.json", "SET.JSON"):
        written(pictures(tmp_path / "notes") / name.lower(), [llava(0)]).rename(tmp_path / "notes" / name)
    packed(tmp_path / "a.zip", files_of(tmp_path / "notes") | {"__MACOSX/._SET.JSON": b"junk"}).rename(
        tmp_path / "SET.ZIP"
    )
    for root in ("notes", "SET.ZIP"):
        assert data.main(["sets", "--check", "--root", str(tmp_path / root)])["items"] == 1


def test_names_with_dots_that_fall_together_are_a_problem(tmp_path, capsys):
    root = packed(
        tmp_path / "set.tar",
        {f"shot-1.{k}.{e}": x for k in range(2) for e, x in (("jpg", jpeg(k)), ("txt", b"a"))},
    )
    assert checked(capsys, "sets", "--check", "--root", root)[0].startswith(
        "set.tar: shot-1: has its words twice, at last in shot-1.1.txt;"
    )
    packed(
        root, {"1.left.jpg": jpeg(0), "1.right.jpg": jpeg(1), "1.json": b'{"caption": "two"}', "1.cls": b"3"}
    )
    data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out")])
    assert [bytes(x.numpy()) for x in load_items(tmp_path / "out")[0][0]["album"]] == [jpeg(0), jpeg(1)]


def test_a_remedy_is_named_for_paths_that_begin_elsewhere(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    root = written(tmp_path / "in/set.json", [llava(0), llava(1)])
    last = checked(capsys, "sets", "--check", "--root", root)[-1]
    assert last.endswith("mend them, or give --media the folder or archive in which their paths begin")
    there = pictures(tmp_path / "there")
    for media in (there, packed(tmp_path / "there.zip", files_of(there))):
        assert data.main(["sets", "--check", "--root", str(root), "--media", str(media)])["items"] == 2


NO_SETS = {
    "two tables": (
        lambda f: written(f / "a.json", []) and written(f / "b.json", []).parent,
        "holds 2 tables (a.json, b.json)",
    ),
    "other fields": (
        lambda f: written(f / "set.json", [{"path": "a"}]),
        "entry 0 of set.json has the fields path",
    ),
    "empty": (lambda f: written(f / "set.json", []), "set.json is empty"),
    "pictures alone": (pictures, "holds no set but 6 .jpg"),
    "no tar": (
        lambda f: (f / "set.tar").write_bytes(b"junk" * 999) and f / "set.tar",
        "cannot be read as an archive",
    ),
    "latin-1": (
        lambda f: (f / "a.csv").write_bytes(b"filepath,title\n0.jpg,caf\xe9\n") and f / "a.csv",
        "is not UTF-8",
    ),
}


@pytest.mark.parametrize("name", NO_SETS)
def test_what_is_no_set_is_refused_by_what_it_is(tmp_path, capsys, name):
    make, said = NO_SETS[name]
    (tmp_path / "in").mkdir()
    assert said in " ".join(
        checked(capsys, "sets", "--root", make(tmp_path / "in"), "--out", tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


def test_formats_and_flags_of_others_are_refused(refused):
    refused(
        lambda: data.main(["sets", "--root", "x", "--format", "voc"]),
        "invalid choice: 'voc'",
        "'llava', 'qwen', 'clip', 'webdataset', 'imagefolder'",
    )
    refused(lambda: data.main(["sets", "--root", "x.json", "--crop", "1.5"]), "--crop 1.5")


# ---------------------------------------------------------------- hostile archives


def tar_of(path, name="images/1.jpg", kind=tarfile.REGTYPE, link="", content=b"", more=(), pax=None):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as file:
        for n, x in [*files_of_set().items(), *more]:
            m = tarfile.TarInfo(n)
            m.size = len(x)
            file.addfile(m, io.BytesIO(x))
        m = tarfile.TarInfo(name)
        m.type = kind
        m.linkname = link
        m.size = len(content)
        m.pax_headers = pax or {}
        file.addfile(m, io.BytesIO(content))
    return path


def files_of_set():
    return {"images/0.jpg": jpeg(0), "images/0.txt": b"a cat"}


def zip_of(path, name="images/1.jpg", content=b"x", mode=0):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for n, x in files_of_set().items():
            file.writestr(n, x)
        info = zipfile.ZipInfo(name)
        info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
        file.writestr(info, content)
    return path


EVIL, ONE = "../out/evil.jpg", "images/1.jpg"
EVIL, ONE, MANY_FILES = "../out/evil.jpg", "images/1.jpg", [(f"{k}.png", bytes(10**5)) for k in range(12)]
HOSTILE = {  # the archive, what is the matter with its last member, and what is said of it
    "climbs": ("a.tar", {"name": EVIL}, "a.tar: ../out/evil.jpg: climbs out of the archive"),
    "climbs within": ("a.tar.gz", {"name": "images/../../evil.jpg"}, "climbs out"),
    "a folder climbs": (
        "a.tar",
        {"name": "../out", "kind": tarfile.DIRTYPE},
        "../out: climbs out of the archive",
    ),
    "absolute": ("a.tar", {"name": "/tmp/evil.jpg"}, "has an absolute path"),
    "link": (
        "a.tar",
        {"kind": tarfile.SYMTYPE, "link": "/etc/passwd"},
        "images/1.jpg: is a link, not a file",
    ),
    "hard link": ("a.tar", {"kind": tarfile.LNKTYPE, "link": "images/0.jpg"}, "is a link, not a file"),
    "device": ("a.tar", {"kind": tarfile.CHRTYPE}, "is a device, not a file"),
    "twice": ("a.tar", {"name": "./images/0.jpg"}, "is there twice"),
    "expands": ("a.tar.gz", {"content": bytes(10**7)}, "beyond --max-bytes 1000000 ('images/1.jpg' makes"),
    "expands in many files": ("a.tar.gz", {"more": MANY_FILES}, "expands beyond"),
    "long header": (
        "a.tar.gz",
        {"kind": tarfile.XHDTYPE, "content": bytes(2**24)},
        "a header of 16,777,216 bytes",
    ),
    "a header's other name": ("a.tar", {"pax": {"path": EVIL}}, "climbs out of the archive"),
    "zip climbs": ("a.zip", {"name": EVIL}, "climbs out"),
    "zip climbs as on Windows": ("a.zip", {"name": "..\\out\\evil.jpg"}, "climbs out"),
    "zip drive": ("a.zip", {"name": "C:\\evil.jpg"}, "has an absolute path"),
    "zip link": ("a.zip", {"content": b"/etc/passwd", "mode": 0o120777}, "is a link, not a file"),
    "zip pipe": ("a.zip", {"mode": 0o010666}, "is a device, not a file"),
    "zip expands": ("a.zip", {"content": bytes(10**7)}, "expands beyond --max-bytes 1000000"),
    "zip twice": ("a.zip", {"name": "./images/0.jpg"}, "is there twice"),
    "zip cut short": ("a.zip", {"cut": 30}, "cannot be read as an archive"),
    "cut short": (
        "a.tar.gz",
        {"content": np.random.default_rng(0).bytes(9000), "cut": 4000},
        "cannot be read as an archive",
    ),
}


@pytest.mark.parametrize("flags", [[], ["--skip-bad"]])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written(tmp_path, capsys, name, flags):
    archive, member, said = HOSTILE[name]
    (tmp_path / "in").mkdir()
    make = zip_of if archive.endswith("zip") else tar_of
    root = make(tmp_path / "in" / archive, **{k: v for k, v in member.items() if k != "cut"})
    root.write_bytes(root.read_bytes()[: -member["cut"]] if "cut" in member else root.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    lines = checked(capsys, "sets", "--root", root, "--out", tmp_path / "out", "--max-bytes", 10**6, *flags)
    assert said in "\n".join(lines) and sorted(tmp_path.rglob("*")) == before
    assert (
        said in "\n".join(checked(capsys, "sets", "--check", "--root", root, "--max-bytes", 10**6))
        and not Path("/tmp/evil.jpg").exists()
    )


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_expands_as_no_honest_archive_does_is_refused_under_any_max_bytes(tmp_path, capsys, name):
    if name == "a.zip":
        path, size = zip_of(tmp_path / name, "images/1.jpg"), (2**31).to_bytes(4, "little")
        content = bytearray(path.read_bytes())
        at = content.rindex(b"PK\1\2") + 24  # what the last of the directory says is its size
        content[at : at + 4] = size
        path.write_bytes(content)
    else:
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as file:
            member = tarfile.TarInfo("images/1.jpg")
            member.size = 2**31
            file.fileobj.write(member.tobuf())
    assert (
        "expands to more than 200 times its size ('images/1.jpg' makes it 21474"
        in checked(capsys, "sets", "--check", "--root", path)[-1]
    )


# ---------------------------------------------------------------- near duplicates, statistics, the sheet


def brute_force(hashes, most):
    rows = [(h, split, name) for split, names in hashes.items() for h, name in names.items()]
    pairs = [(a, b) for k, a in enumerate(rows) for b in rows[:k] if a[1] != b[1]]
    return {frozenset((a[2], b[2])) for a, b in pairs if (a[0] ^ b[0]).bit_count() <= most}


def test_near_duplicates_are_those_that_comparing_every_pair_finds():
    rng, hashes = np.random.default_rng(0), {}
    for k in range(120):
        h = int.from_bytes(rng.bytes(16), "big")
        # of the first two, 7 and 8 bits are the last that count and the first that do not
        for n, flips in enumerate((0, 3, 7, 8)):
            changed = h ^ sum(1 << int(b) for b in rng.permutation(128)[:flips])
            hashes.setdefault(["train", "val", "test"][(k + n) % 3], {})[changed] = f"{k}-{n}"
    found = {frozenset((a[1], b[1])) for a, b in conversations.near_duplicates(hashes)}
    assert found == brute_force(hashes, 7) and frozenset(("1-0", "1-3")) not in found
    assert {frozenset((f"{k}-0", f"{k}-2")) for k in range(120)} <= found
    assert conversations.near_duplicates({"train": {5: "a", 6: "b"}}) == []
    assert len(conversations.near_duplicates({"train": {5: "a"}, "test": {5: "b"}})) == 1


def photographs(folder, n=12):
    rng = np.random.default_rng(1)
    (folder / "images").mkdir(parents=True)
    for k in range(n):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
            (240, 180), Image.Resampling.BICUBIC
        ).save(folder / "images" / f"{k}.jpg", quality=95)
    return folder


@pytest.mark.parametrize("twin", [None, "half", "darker", "again"])
def test_a_picture_that_is_nearly_in_another_split_is_listed(tmp_path, capsys, twin):
    folder = photographs(tmp_path / "in")
    image = Image.open(folder / "images/0.jpg")
    if twin:
        changed = {"half": image.resize((120, 90)), "darker": image.point(lambda v: v * 0.8), "again": image}[
            twin
        ]
        changed.save(folder / "images/11.jpg", quality=60)
    entries = [
        llava(0, image=f"images/{k}.jpg") | {"id": str(k), "split": "train" if k < 6 else "test"}
        for k in range(12)
    ]
    root = written(folder / "set.jsonl", entries)
    if twin:
        line, last = checked(capsys, "sets", "--check", "--root", root)
        assert (
            line
            == "set.jsonl: 11 (line 12): is in test, and nearly the same picture in train: set.jsonl: 0 (line 1)"
        )
        assert "1 near" in last
    assert data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out")])["near"] == bool(twin)


def test_every_picture_of_an_album_is_compared_with_those_of_other_splits(tmp_path, capsys):
    folder = photographs(tmp_path / "in")
    Image.open(folder / "images/2.jpg").resize((120, 90)).save(folder / "images/9.jpg")

    def album(a, b, split):
        shown = [f"images/{a}.jpg", f"images/{b}.jpg"]
        return say("h<image><image>\nSame?", f"g{a} {b}", image=shown, id=f"{a}{b}", split=split)

    albums = [album(a, b, "train" if a < 3 else "test") for a, b in ((0, 1), (2, 3), (4, 5), (9, 6), (7, 1))]
    exact, near, _ = checked(capsys, "sets", "--check", "--root", written(folder / "set.jsonl", albums))
    assert exact == "set.jsonl: 71 (line 5): shows what 01 shows, which is in train, and this in test"
    assert near.startswith("set.jsonl: 96 (line 4), picture 1: is in test, and nearly the same")
    assert near.endswith("picture in train: set.jsonl: 23 (line 2), picture 1")


def test_pictures_of_one_value_are_nobodys_duplicates(tmp_path):
    folder = pictures(tmp_path / "in")
    for k in range(2):
        Image.new("RGB", (20, 20), (k * 90, 0, 0)).save(folder / f"images/{k}.jpg")
    root = written(folder / "set.jsonl", [llava(k) | {"split": ("train", "test")[k]} for k in range(2)])
    assert data.main(["sets", "--check", "--root", str(root)])["items"] == 2


def test_statistics_count_what_is_there(tmp_path, capsys):
    folder = pictures(tmp_path / "in")
    (folder / "images/2.jpg").write_bytes(jpeg(2, (10, 70)))
    shown = ["images/1.jpg", "images/3.jpg"]
    album = say("h<image><image>\nA?", "gone two three four", "hB?", "gb", image=shown, id="x")
    entries = [llava(0) | {"split": "train"}, album | {"split": "train"}, llava(2) | {"split": "test"}]
    root = written(folder / "set.jsonl", entries)
    index = data.main(["sets", "--check", "--root", str(root), "--stats"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        lines[0] == "train items 2 pictures 3 videos 0 turns 3 words_per_answer [1, 3, 4] side [40, 40, 40]"
    )
    assert lines[1] == "test items 1 pictures 1 videos 0 turns 1 words_per_answer [3, 3, 3] side [70, 70, 70]"
    assert "val" not in index["splits"]
    data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out"), "--stats"])
    assert load_yaml(tmp_path / "out/index.yaml")["splits"] == index["splits"]


# ---------------------------------------------------------------- changed copies


def rectangle(path, box, size=(64, 48), form="PNG"):
    """A grey picture with one red rectangle where the box [x1, y1, x2, y2] is."""
    x = np.full((size[1], size[0], 3), 120, np.uint8)
    x[box[1] : box[3], box[0] : box[2]] = (220, 0, 0)
    Image.fromarray(x).save(path, form)


def where_red(picture):
    y, x = np.nonzero(picture[..., 0].astype(int) - picture[..., 1] > 40)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


FLAGS = {"flip": ["--flip"], "crop": ["--crop", "0.4"], "jitter": ["--jitter"]}
FLAGS["all"] = [flag for flags in FLAGS.values() for flag in flags]


@pytest.mark.parametrize("name", FLAGS)
def test_boxes_in_answers_move_with_the_picture(tmp_path, name):
    rng, folder, entries = np.random.default_rng(0), tmp_path / "in", []
    folder.mkdir()
    for k in range(30):
        x, y, w, h = (int(rng.integers(low, high)) for low, high in ((0, 40), (0, 30), (4, 24), (4, 18)))
        rectangle(folder / f"{k}.png", box := [x, y, x + w, y + h])
        answer = json.dumps([{"bbox_2d": box, "label": "red"}, {"point_2d": box[:2]}])
        entries.append(bare(answer, id=str(k), image=f"{k}.png", split=("train", "test")[k % 2]))
    arguments = ["sets", "--root", str(written(folder / "set.jsonl", entries)), *FLAGS[name], "--out"]
    index = data.main([*arguments, str(tmp_path / "out")])
    items = {i["id"]: i for i in load_items(tmp_path / "out")[0]}
    copies = [i for i in items.values() if i["id"].endswith("~")]
    assert (index["train"], index["test"], len(copies)) == (30, 15, 15)
    moved = 0
    for item in copies:
        before, (said, point) = items[item["id"][:-1]], json.loads(item["turns"][0][1])
        picture = frames_of(item)[0].numpy()
        box = said["bbox_2d"]
        old = json.loads(before["turns"][0][1])[0]["bbox_2d"]
        assert (
            picture.shape == (item["height"], item["width"], 3)
            and where_red(picture) == box
            and said["label"] == "red"
        )
        assert point["point_2d"] == [box[2] if "flip" in index else box[0], box[1]]
        assert before["source"] == item["source"] and split_of(item["source"]) == "train"
        assert name != "crop" or (item["width"] >= 0.4 * 64 and item["height"] >= 0.4 * 48)
        moved += box != old
        if name == "flip":
            assert (picture[:, ::-1] == frames_of(before)[0].numpy()).all()
            assert box == [64 - old[2], old[1], 64 - old[0], old[3]]
    assert moved == 0 if name == "jitter" else moved > 10
    assert data.main([*arguments, str(tmp_path / "again")]) == index | {"name": "again"}


def test_boxes_of_a_folder_of_pictures_move_with_them(tmp_path):
    folder, rows = tmp_path / "in", ["filename,class,xmin,ymin,xmax,ymax"]
    folder.mkdir()
    for k in range(20):
        rectangle(folder / f"{k}.png", [k, 5, k + 20, 30])
        rows.append(f"{k}.png,cat,{k},5,{k + 20},30")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    arguments = ["csv", "--root", str(folder), "--out", str(tmp_path / "out")]
    index = data.main([*arguments, "--flip", "--crop", "0.5"])
    items = load_items(tmp_path / "out")[0]
    assert index["items"] == len(items) == 20 + index["train"] // 2 and any(i["width"] < 64 for i in items)
    assert all(where_red(frames_of(i)[0].numpy()) == i["boxes"][0].tolist() for i in items)


def test_what_says_left_or_right_is_not_mirrored_and_what_says_a_place_is_not_cropped(tmp_path):
    words = ["it is bright", "to the LEFT", "right-hand side", "upright", "at the top", "turns clockwise"]
    entries = [bare(w, id=str(k), image=f"images/{k}.jpg", split="train") for k, w in enumerate(words)]
    for flags, kept in (
        (["--flip"], ["it is bright", "upright", "at the top"]),
        (["--crop", "0.5"], ["it is bright", "upright"]),
    ):
        assert [
            i["turns"][0][1] for i in build(tmp_path, entries, *flags)[0] if i["id"].endswith("~")
        ] == kept


def test_clips_and_albums_are_changed_as_one(tmp_path):
    clip = asked_of_video(id="clip", split="train", video=[[f"images/{k}.jpg" for k in range(4)]])
    album = say(
        "h<image><image>\nSame?", "gno", image=["images/4.jpg", "images/5.jpg"], id="album", split="train"
    )
    boxed = album | {
        "id": "boxed",
        "conversations": [album["conversations"][0], {"from": "gpt", "value": '{"bbox_2d": [1, 2, 3, 4]}'}],
    }
    items = {
        i["id"]: i
        for i in build(tmp_path, [clip, album, boxed], "--flip", "--frames", "4", "--size", "24")[0]
    }
    assert set(items) == {"clip", "clip~", "album", "album~", "boxed"}
    assert (items["clip~"]["frames"] == items["clip"]["frames"].flip(2)).all()
    a, b = (frames_of(items[name], 30).float() for name in ("album", "album~"))
    assert (a.flip(2) - b).abs().mean() < 4 < (a - b).abs().mean()


def album_of_two(folder, boxes, *more):
    """Two pictures of two sizes, a red rectangle in each; asked of each in a turn of its own."""
    rectangle(folder / "a.png", boxes[0])
    rectangle(folder / "b.png", boxes[1], (100, 48))
    said = [json.dumps({"bbox_2d": box}) for box in boxes]
    turns = ["<image>\nWhere?", said[0], "And here? <image>", said[1], *more]
    talk = [{"from": ("human", "gpt")[k % 2], "value": v} for k, v in enumerate(turns)]
    return written(
        folder / "set.jsonl",
        [{"id": "two", "split": "train", "image": ["a.png", "b.png"], "conversations": talk}],
    )


def test_boxes_of_an_album_are_of_the_picture_that_their_question_shows(tmp_path, capsys):
    # the second lies outside the first picture
    root = album_of_two(tmp_path, [[4, 5, 20, 30], [70, 8, 100, 40]])
    data.main(["sets", "--root", str(root), "--out", str(tmp_path / "out"), "--flip", "--crop", "0.5"])
    items = load_items(tmp_path / "out")[0]
    said = [json.loads(answer)["bbox_2d"] for _, answer in items[1]["turns"]]
    assert [i["id"] for i in items] == ["two", "two~"] and said == [[44, 5, 60, 30], [0, 8, 30, 40]]
    assert [where_red(frames_of({"encoded": x})[0].numpy()) for x in items[1]["album"]] == said
    root = album_of_two(
        tmp_path, [[4, 5, 20, 30], [70, 8, 101, 40]], "And in the first?", '{"bbox_2d": [4, 5, 20, 30]}'
    )
    outside, unknown, _ = checked(capsys, "sets", "--check", "--root", root)
    assert outside.endswith("says bbox_2d [70.0, 8.0, 101.0, 40.0], which does not lie inside 100x48 pixels")
    assert "says bbox_2d [4.0, 5.0, 20.0, 30.0], and of which of its pictures cannot be known" in unknown


FORMS = {
    "[0.1, 0.2, 0.5, 0.9]": 1,
    "<|box_start|>(221,423),(569,886)<|box_end|>": 1,
    "{'bbox_2d': [1, 2]}": 1,
    "two [sic], 1, 2": 2,
}


@pytest.mark.parametrize("answer", FORMS)
def test_boxes_in_a_form_that_is_not_known_stay_where_they_are(tmp_path, answer):
    ask = 'Where? Say {"bbox_2d": [x1, y1, x2, y2]}.'
    entry = llava(0, f"<image>\n{ask}") | {"split": "train"}
    entry["conversations"][1]["value"] = answer
    items, _ = build(tmp_path, [entry], "--flip", "--crop", "0.5")
    assert len(items) == FORMS[answer] and items[-1]["turns"] == [[ask, answer]]


# ---------------------------------------------------------------- many

MANY = """
import re, sys
sys.path.insert(0, {here!r})
import data
data.main(["sets", "--root", {root!r}, "--out", {out!r}])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) // 1024)  # ru_maxrss starts at the parent's
"""


@pytest.mark.slow
def test_memory_stays_flat_at_a_hundred_thousand_items(tmp_path):
    folder, used = pictures(tmp_path / "in"), {}
    for n in (1000, 100_000):
        out = tmp_path / f"out{n}"
        with open(root := folder / "set.jsonl", "w") as file:
            file.writelines(
                json.dumps(llava(k % 6, f"<image>\n{ASK} {k}") | {"id": f"item-{k}"}) + "\n" for k in range(n)
            )
        code = MANY.format(here=str(HERE), root=str(root), out=str(out))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        used[n] = int(done.stdout.split()[-1])
        assert load_yaml(out / "index.yaml")["items"] == n
    # MB: what is left are ids and digests, half a kilobyte each
    assert used[100_000] - used[1000] < 100, used
    assert Items(tmp_path / "out100000")[99_999]["turns"] == [[f"{ASK} 99999", CAPTIONS[99_999 % 6]]]
