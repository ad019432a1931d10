"""Sets with text: the same items from every format, every problem named, boxes that move with the image."""

import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_media import encode
from test_synthetic import extents

import conversations
import data
from common import Items, load_items, split_of
from media import frames_of

ASK, PATH = "Describe the picture.", "images/1.jpg"
CAPTIONS = ["a red cat", "two dogs, one black", 'a "quoted" bird', "naïve café", "a horse", "an empty field"]
FLAGS = {"flip": ["--flip"], "crop": ["--crop", "0.4"], "jitter": ["--jitter"]}
FLAGS["all"] = [flag for flags in FLAGS.values() for flag in flags]
# neither mirrored nor cropped (also boxes in an unknown form), only mirrored, and both
SIDES = ["to the LEFT", "right-hand side", "turns clockwise", "[0.1, 0.2, 0.5, 0.9]", "{'bbox_2d': [1, 2]}"]
SIDES.append("<|box_start|>(221,423),(569,886)<|box_end|>")
PLACE, FREE = ["at the top"], ["it is bright", "upright", "two [sic], 1, 2"]


def jpeg(k, size=(40, 30)):
    file, coarse = io.BytesIO(), np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def talk(*turns, image=PATH, **fields):
    """An entry of LLaVA; turns are by the human and the model alternately, or "role: text"."""
    spoken = []
    for k, turn in enumerate(turns):
        role, text = re.fullmatch(r"(?:(\w+): )?(.*)", turn, re.S).groups()
        spoken.append({"from": role or ("human", "gpt")[k % 2], "value": text})
    return {"image": image, "conversations": spoken} | fields


def chat(content, answer, **fields):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": turns} | fields


def llava(k, question=f"<image>\n{ASK}", **fields):
    return talk(question, CAPTIONS[k], **{"id": f"images/{k}.jpg", "image": f"images/{k}.jpg"} | fields)


def put(path, files):
    """A folder or, by its name, an archive of {name: bytes, text or entries}."""
    found = {}
    for name, x in files.items():
        if isinstance(x, list):
            x = json.dumps(x) if name.endswith(".json") else "".join(json.dumps(e) + "\n" for e in x)
        found[name] = x.encode() if isinstance(x, str) else x
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, x in found.items():
                file.writestr(name, x, zipfile.ZIP_DEFLATED)
    elif ".tar" in path.suffixes:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, x in found.items():
                member = tarfile.TarInfo(name) if isinstance(name, str) else name
                member.size = len(x)
                file.addfile(member, io.BytesIO(x))
    else:
        for name, x in found.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(x)
    return path


def run(root, out=None, *flags, **more):
    """data.py sets with these arguments; without `out` it only checks."""
    given = [x for k, v in more.items() for x in (f"--{k.replace('_', '-')}", v)]
    given += ["--out", out] if out else ["--check"]
    return data.main(["sets", "--root", *map(str, [root, *flags, *given])])


def build(tmp_path, files, *flags, **more):
    """(items, index) of the set in a folder of these files."""
    index = run(put(tmp_path / "in", files), tmp_path / "out", *flags, **more)
    return load_items(tmp_path / "out")[0], index


@pytest.fixture
def problems(printed):
    """The lines that `run`, which must exit with code 2, prints to stderr."""

    def check(*args, **more):
        err = printed(lambda: run(*args, **more))
        return [x for x in err.split("\n") if x and not re.search("it(em)?/s", x)]

    return check


IMAGES = {f"images/{k}.jpg": jpeg(k) for k in range(6)}
TABLE = [f'images/{k}.jpg,"{c.replace(chr(34), 2 * chr(34))}"\n' for k, c in enumerate(CAPTIONS)]
LLAVA = [llava(k) for k in range(6)]
QWEN = []
for name, caption in zip(IMAGES, CAPTIONS, strict=True):
    parts = [{"type": "image", "image": name}, {"type": "text", "text": ASK}]
    QWEN.append(chat(parts, [{"type": "text", "text": caption}], id=name))
SAMPLES = {f"images/{k}.txt": c for k, c in enumerate(CAPTIONS)} | IMAGES  # all texts, then all images
METADATA = [{"file_name": f"{k}.jpg", "text": c} for k, c in enumerate(CAPTIONS)]
FORMATS = {
    "llava": IMAGES | {"set.json": LLAVA},
    "llava lines": IMAGES | {"set.jsonl": LLAVA},
    "qwen": IMAGES | {"set.jsonl": QWEN},
    "clip": IMAGES | {"set.csv": "filepath,title\n" + "".join(TABLE)},
    "webdataset": SAMPLES,
    "imagefolder": {f"train/{k}.jpg": jpeg(k) for k in range(6)} | {"train/metadata.jsonl": METADATA},
}
PLACES = [(name, "in") for name in FORMATS] + [("llava", "in/set.json"), ("qwen", "in/set.jsonl")]
PLACES += [("clip", "in/set.csv"), ("llava", "a.zip"), ("webdataset", "a.tar"), ("webdataset", "a.tar.gz")]
TEXT, AB, TWO = {"type": "text", "text": "A?"}, [["A?", "b"]], ["images/0.jpg", PATH]
ROW = [{"type": "image", "image": PATH, "text": None}, TEXT | {"image": None}]
SYSTEM = ("system: Be brief.", "human: <image>\n<image>\nSame?", "gpt: no", "human: Why?", "gpt: colour")
LATE = talk("user: Ready?", "assistant: yes", "<image>\nWhat?", "a bird")
TALK = [["Same?", "no"], ["Why?", "colour"]]
LAYOUTS = [  # an entry as it is published, its turns, its images, and what else its item has
    (chat(ROW, [TEXT | {"text": "b", "image": None}]), AB, [1], {}),  # a row of a table
    (talk("<image>A?", "b", image=None, images=[{"path": PATH, "bytes": None}]), AB, [1], {}),
    (talk(*SYSTEM, image=TWO), TALK, [0, 1], {"chat": 1, "system": "Be brief."}),
    (chat("A <image>, B <image>?", "no", images=TWO), [["A <image>, B <image>?", "no"]], [0, 1], {}),
    (LATE, [["Ready?", "yes"], ["<image>\nWhat?", "a bird"]], [1], {"chat": True}),
]
PROBLEMS = {  # the reason, and an entry or the bytes of its image
    "images/gone.jpg is not there (": llava(1, image="images/gone.jpg"),
    "images/1.jpg cannot be decoded (": jpeg(1)[:200],
    "images/1.jpg is 300x20, more than --max-side 256": jpeg(1, (300, 20)),
    "more than --max-bytes 50000": jpeg(1) + bytes(10**5),
    "has 0 <image> for 1 image": llava(1, ASK),
    "has <image> in answer 1": talk("Where?", "<image>"),
    "answer 1 is empty": talk("<image>", " \n"),
    "turn 2 has role 'narrator'; known: human, user": talk("<image>", "narrator: b"),
    "turn 1 has role assistant instead of user": talk("gpt: <image>", "human: b"),
    "[1.0, 2.0, 41.0, 20.0], not inside 40x30": talk("<image>\nWhere?", '{"bbox_2d": [1, 2, 41, 20]}'),
    "has point_2d [3.0, 31.0]": talk("<image>\nWhere?", '{"point_2d": [3, 31]}'),
    "repeats an earlier item": llava(0, id="other"),
    "has the split 'holdout'": llava(1, split="holdout"),
    "is not JSON (": None,
}
NO_SETS = {
    "holds 2 tables (a.json, b.json)": {"a.json": [], "b.json": []},
    "entry 0 of set.json has the fields path": {"set.json": [{"path": "a"}]},
    "holds no set but 6 .jpg": IMAGES,
    "cannot be read as an archive": {"set.tar": b"junk" * 999},
    "is not UTF-8": {"a.csv": b"filepath,title\n0.jpg,caf\xe9\n"},
}
EVIL, NOISE = "../out/evil.jpg", np.random.default_rng(0).bytes(9000)
HOSTILE = [  # the archive, name, header and content of its last member, and words that are printed
    ("a.tar", EVIL, {}, b"", "a.tar: ../out/evil.jpg: leads out of the archive"),
    ("a.tar", "/tmp/evil.jpg", {}, b"", "has an absolute path"),
    ("a.tar", PATH, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"", "1.jpg: is a link"),
    ("a.tar", "./images/0.jpg", {}, b"", "occurs twice"),
    ("a.tar.gz", PATH, {}, bytes(10**7), "beyond --max-bytes 1000000 ("),
    ("a.tar.gz", PATH, {"type": tarfile.XHDTYPE}, bytes(2**24), "a header of 16,777,216 bytes"),
    ("a.tar", PATH, {"pax_headers": {"path": EVIL}}, b"", "leads out of the archive"),
    ("cut.tar.gz", PATH, {}, NOISE, "cannot be read as an archive"),
    ("a.zip", "C:\\evil.jpg", {}, b"", "has an absolute path"),
    ("a.zip", PATH, {"external_attr": 0o120777 << 16}, b"/etc/passwd", "is a link, not a file"),
    ("a.zip", PATH, {}, bytes(10**7), "expands beyond --max-bytes 1000000"),
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_every_format_gives_the_same_items_from_a_file_a_folder_and_an_archive(tmp_path, name, place):
    files = FORMATS[name]
    if ".tar" in place:
        files = {f"./{path}": x for path, x in files.items()}
    put(tmp_path / place.split("/")[0], files)
    index = run(tmp_path / place, tmp_path / "out")
    items = load_items(tmp_path / "out")[0]
    assert (index["format"], index["data"], index["skipped"]) == (name.split()[0], "real", 0)
    assert [i["turns"] for i in items] == [[[ASK, c]] for c in CAPTIONS]
    assert [bytes(i["encoded"].numpy()) for i in items] == list(IMAGES.values())
    assert {(i["width"], i["height"]) for i in items} == {(40, 30)} and len({i["id"] for i in items}) == 6
    assert all(("text" in i) == (name[0] in "ciw") and "chat" not in i for i in items)


@pytest.mark.parametrize(("entry", "turns", "images", "more"), LAYOUTS)
def test_published_layouts_are_read_with_turns_and_placeholders(tmp_path, entry, turns, images, more):
    (item,), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]})
    shown = item["images"] if len(images) > 1 else [item["encoded"]]
    assert [bytes(x.numpy()) for x in shown] == [jpeg(k) for k in images] and item["turns"] == turns
    assert frames_of(item, 16).shape == (len(images), 16, 16, 3)
    assert all(item.get(k) == more.get(k) for k in ("chat", "system", "text"))


def test_a_video_is_a_file_or_a_list_of_images_and_shown_from_beginning_to_end(tmp_path, problems):
    grey = np.full((20, 48, 64, 3), 10 * np.arange(20)[:, None, None, None], np.uint8)
    clip, paths = encode(tmp_path / "v.mp4", grey, 10).read_bytes(), list(IMAGES)
    films = [talk("<video>\nHow?", "b", image=None, video=video) for video in ("v.MP4", paths)]
    files = IMAGES | {"v.MP4": clip, "set.jsonl": films}
    for place in ("in", "set.zip"):
        run(put(tmp_path / place, files), tmp_path / "out", frames=5, size=32)
        item, shown = load_items(tmp_path / "out")[0]
        assert item["frames"].shape == shown["frames"].shape == (5, 32, 32, 3)
        levels = item["frames"].float().mean((1, 2, 3)) - torch.tensor([0.0, 40, 80, 120, 160])
        assert levels.abs().max() < 6 and (item["width"], item["height"]) == (64, 48)
        second = frames_of({"encoded": torch.frombuffer(bytearray(jpeg(1)), dtype=torch.uint8)}, 32)[0]
        assert (shown["frames"][1] == second).all() and shown["turns"] == [["How?", "b"]]
    root = put(tmp_path / "bad", {"v.MP4": clip, "set.jsonl": films[:1]})
    assert "v.MP4 is 64x48 pixels, more than --max-side 50" in problems(root, max_side=50)[0]
    assert "v.MP4 has 20 frames, fewer than 21" in problems(root, frames=21)[0]


def test_a_phones_image_is_rotated_and_a_transparent_one_lies_on_white(tmp_path):
    exif, stored, white = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[274] = 6
    Image.open(io.BytesIO(jpeg(0))).save(stored, "JPEG", exif=exif)
    Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(white, "PNG")
    files = {"images/0.jpg": stored.getvalue(), PATH: white.getvalue(), "set.jsonl": LLAVA[:2]}
    (upright, transparent), index = build(tmp_path, files)
    assert (upright["width"], upright["height"]) == (30, 40) == frames_of(upright).shape[2:0:-1]
    expected = np.rot90(np.array(Image.open(stored)), -1).astype(int)
    assert np.abs(expected - frames_of(upright)[0].numpy()).max() < 3
    assert index["rotated"] == 1 and (frames_of(transparent) == 255).all()


def test_splits_of_folders_are_kept_and_of_two_the_other_is_the_test(tmp_path):
    files = {f"{part}/{k}.jpg": jpeg(k) for part in ("train", "valid") for k in range(6)}
    files |= {"train/metadata.jsonl": METADATA[:4], "valid/metadata.jsonl": METADATA[4:]}
    run(put(tmp_path / "in", files), tmp_path / "two")
    splits = [split_of(s) for s in Items(tmp_path / "two").sources]
    assert set(splits[:4]) <= {"train", "val"} and set(splits[4:]) == {"test"}
    put(tmp_path / "in/test", {"0.jpg": jpeg(77), "metadata.csv": "file_name,text\n0.jpg,a boat\n"})
    index = run(tmp_path / "in", tmp_path / "three")
    assert (index["train"], index["val"], index["test"]) == (4, 2, 1)


def test_shards_of_a_webdataset_are_read_in_order(tmp_path):
    for n, part in enumerate(("train-0", "train-1", "test-0")):
        files = {f"{part}-{k}.json": json.dumps({"caption": f"{part} {k}"}) for k in range(4)}
        files |= {f"{part}-{k}.JPG": jpeg(10 * n + k) for k in range(4)} | {"._0.JPG": b"junk"}
        put(tmp_path / "in", {f"{part}_stats.json": '{"count": 4}'})  # as img2dataset does
        put(tmp_path / f"in/{part}.tar", files)
    index = run(tmp_path / "in", tmp_path / "out")
    assert index["items"] == 12 and index["test"] == 4 and index["train"] + index["val"] == 8
    assert [i["text"] for i in load_items(tmp_path / "out")[0]][:2] == ["test-0 0", "test-0 1"]


def test_one_image_under_two_names_is_one_source_and_a_repeated_id_is_renamed(tmp_path):
    files = {f"{k}.jpg": jpeg(k % 40) for k in range(41)} | {"41.jpg": jpeg(41)}
    entries = [llava(0, id=str(k % 41), image=f"{k}.jpg") for k in range(42)]
    items, index = build(tmp_path, files | {"set.jsonl": entries})
    assert items[40]["source"] == items[0]["source"] and (index["sources"], index["near"]) == (40, 0)
    assert [i["id"] for i in items[40:]] == ["40", "0#2"] and (index["same_id"], index["skipped"]) == (1, 0)


def test_near_duplicates_are_those_that_comparing_every_pair_finds():
    rng, hashes = np.random.default_rng(0), {}
    for k in range(120):
        h = int.from_bytes(rng.bytes(16), "big")
        for n, flips in enumerate((0, 3, 7, 8)):  # 7 bits are the most that count
            changed = h ^ sum(1 << int(b) for b in rng.permutation(128)[:flips])
            hashes.setdefault(["train", "val", "test"][(k + n) % 3], {})[changed] = f"{k}-{n}"
    rows = [(h, split, name) for split, names in hashes.items() for h, name in names.items()]
    pairs = [(a, b) for k, a in enumerate(rows) for b in rows[:k] if a[1] != b[1]]
    expected = {frozenset((a[2], b[2])) for a, b in pairs if (a[0] ^ b[0]).bit_count() <= 7}
    found = {frozenset((a[1], b[1])) for a, b in conversations.near_duplicates(hashes)}
    assert found == expected >= {frozenset((f"{k}-0", f"{k}-2")) for k in range(120)}


def test_every_one_of_several_images_is_compared_with_those_of_other_splits(tmp_path, problems):
    folder, entries = put(tmp_path / "in", {f"images/{k}.jpg": jpeg(k, (240, 180)) for k in range(8)}), []
    darker = Image.open(folder / "images/2.jpg").point(lambda v: v * 0.8)
    darker.resize((120, 90)).save(folder / "images/9.jpg")
    for a, b, part in ((0, 1, "train"), (2, 3, "train"), (4, 5, "test"), (9, 6, "test"), (7, 1, "test")):
        paths = [f"images/{a}.jpg", f"images/{b}.jpg"]
        entries.append(talk("<image><image>\nSame?", f"{a} {b}", image=paths, id=f"{a}{b}", split=part))
    exact, near, last = problems(put(folder, {"set.jsonl": entries}))
    assert exact == "set.jsonl: 71 (line 5): is in test; 01 of train has its image"
    assert near.startswith("set.jsonl: 96 (line 4), image 1: is in test") and "1 near" in last
    assert near.endswith("23 (line 2), image 1")


@pytest.mark.parametrize("reason", PROBLEMS)
def test_a_problem_is_named_with_its_item_and_skip_bad_leaves_that_out(tmp_path, problems, reason):
    entry, limits = PROBLEMS[reason], {"max_side": 256, "max_bytes": 50000}
    given = llava(1) if isinstance(entry, bytes) else entry
    lines = [json.dumps(llava(0)), json.dumps(given) if given else "{oops", json.dumps(llava(2)), ""]
    spoilt = {PATH: entry} if isinstance(entry, bytes) else {}
    root = put(tmp_path / "in", IMAGES | {"set.jsonl": "\n".join(lines)} | spoilt) / "set.jsonl"
    line, last = problems(root, **limits)
    assert line.startswith("set.jsonl: ") and ("(line 2): " in line or " line 2: " in line) and reason in line
    assert f"error: 1 problems in {root} (1 " in last
    line, last = problems(root, tmp_path / "out", **limits)
    assert reason in line and "--skip-bad" in last and not list((tmp_path / "out").iterdir())
    index = run(root, tmp_path / "out", "--skip-bad", **limits)
    assert (index["items"], index["skipped"], sum(index["skipped_kinds"].values())) == (2, 1, 1)
    assert [i["turns"][0][1] for i in load_items(tmp_path / "out")[0]] == [CAPTIONS[0], CAPTIONS[2]]


@pytest.mark.parametrize("words", NO_SETS)
def test_what_is_not_a_set_is_refused_by_what_it_is(tmp_path, problems, words):
    root = put(tmp_path / "in", NO_SETS[words]) / ("set.tar" if "archive" in words else "")
    assert words in " ".join(problems(root, tmp_path / "out")) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("archive", "name", "header", "content", "words"), HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, problems, archive, name, header, content, words):
    member = (zipfile.ZipInfo if archive.endswith("zip") else tarfile.TarInfo)(name)
    for key, value in header.items():
        setattr(member, key, value)
    (tmp_path / "in").mkdir()
    root = put(tmp_path / "in" / archive, {"images/0.jpg": jpeg(0), "images/0.txt": "a cat", member: content})
    if archive.startswith("cut"):
        root.write_bytes(root.read_bytes()[:-4000])
    before = sorted(tmp_path.rglob("*"))
    for out, flags in ((None, []), (tmp_path / "out", []), (tmp_path / "out", ["--skip-bad"])):
        assert words in "\n".join(problems(root, out, *flags, max_bytes=10**6))
        assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/evil.jpg").exists()


def rectangle(path, xyxy, size=(64, 48)):
    x = np.full((size[1], size[0], 3), 120, np.uint8)
    x[xyxy[1] : xyxy[3], xyxy[0] : xyxy[2]] = (220, 0, 0)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(x).save(path)


def where_red(item):
    image = frames_of(item)[0].int()
    return extents(image[..., 0] - image[..., 1] > 40)


@pytest.mark.parametrize("name", FLAGS)
def test_boxes_in_answers_and_in_tables_move_with_the_image(tmp_path, name):
    rng, folder, entries = np.random.default_rng(0), tmp_path / "in", []
    rows = "filename,class,xmin,ymin,xmax,ymax\n"
    for k in range(30):
        x, y, w, h = (int(rng.integers(low, high)) for low, high in ((0, 40), (0, 30), (4, 24), (4, 18)))
        rectangle(folder / f"{k}.png", xyxy := [x, y, x + w, y + h])
        answer = json.dumps([{"bbox_2d": xyxy, "label": "red"}, {"point_2d": xyxy[:2]}])
        more = {"id": str(k), "image": f"{k}.png", "split": ("train", "test")[k % 2]}
        entries.append(talk("<image>\nWhere?", answer, **more))
        rows += f"{k}.png,cat,{x},{y},{x + w},{y + h}\n"
    root = put(folder, {"set.jsonl": entries, "labels.csv": rows}) / "set.jsonl"
    index = run(root, tmp_path / "out", *FLAGS[name])
    items = {i["id"]: i for i in load_items(tmp_path / "out")[0]}
    copies, moved = [i for i in items.values() if i["id"].endswith("~")], 0
    assert (index["train"], index["test"], len(copies)) == (30, 15, 15)
    for item in copies:
        before, (found, point) = items[item["id"][:-1]], json.loads(item["turns"][0][1])
        new, old, size = found["bbox_2d"], where_red(before), (item["height"], item["width"])
        assert where_red(item) == new and found["label"] == "red" and frames_of(item).shape[1:3] == size
        assert point["point_2d"] == [new[2] if "flip" in index else new[0], new[1]]
        assert before["source"] == item["source"] and split_of(item["source"]) == "train"
        assert name != "crop" or (item["width"] >= 0.4 * 64 and item["height"] >= 0.4 * 48)
        assert name != "jitter" or not torch.equal(frames_of(item), frames_of(before))
        moved += new != old
    assert moved == 0 if name == "jitter" else moved > 10
    index = data.main(["csv", "--root", str(folder), "--out", str(tmp_path / "csv"), *FLAGS[name]])
    items = load_items(tmp_path / "csv")[0]
    assert len(items) == 30 + index["train"] // 2
    assert all(where_red(i) == i["boxes"][0].tolist() for i in items)


def test_what_says_left_or_right_is_not_mirrored_and_what_says_a_place_is_not_cropped(tmp_path):
    ask = 'Where? Say {"bbox_2d": [x1, y1, x2, y2]}.'
    files = {"set.jsonl": [talk(f"<image>\n{ask}", x, split="train") for x in SIDES + PLACE + FREE]}
    for expected, flags in ((PLACE + FREE, ["--flip"]), (FREE, ["--crop", "0.5"])):
        copies = [i for i in build(tmp_path, IMAGES | files, *flags)[0] if i["id"].endswith("~")]
        assert [i["turns"] for i in copies] == [[[ask, x]] for x in expected]


def test_a_clip_is_mirrored_as_one(tmp_path):
    entry = talk("<video>\nHow?", "b", image=None, split="train", video=list(IMAGES)[:4])
    (item, copy), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]}, "--flip", frames=4, size=24)
    assert torch.equal(copy["frames"], item["frames"].flip(2)) and copy["turns"] == item["turns"]


def test_a_box_belongs_to_the_image_of_its_question(tmp_path):
    first, second = [4, 5, 20, 30], [70, 8, 100, 40]  # of 64x48 and of 100x48
    rectangle(tmp_path / "in/a.png", first)
    rectangle(tmp_path / "in/b.png", second, (100, 48))
    x, y = (json.dumps({"bbox_2d": xyxy}) for xyxy in (first, second))
    entry = talk("<image>\nWhere?", x, "And here? <image>", y, image=["a.png", "b.png"], split="train")
    (_, copy), _ = build(tmp_path, {"set.jsonl": [entry]}, "--flip", "--crop", "0.5")
    found = [json.loads(answer)["bbox_2d"] for _, answer in copy["turns"]]
    assert found == [[44, 5, 60, 30], [0, 8, 30, 40]] == [where_red({"encoded": x}) for x in copy["images"]]
