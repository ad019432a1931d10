"""Sets with text: the same items from every format, what files state is honoured, every problem named."""

import base64
import functools
import json
import re

import numpy as np
import pytest
from helpers_data import HELD, animation, facts, film, levels, packed, put, run
from PIL import Image

from common import load_items, split_of
from media import frames_of, read_image

ASK, PATH = "Describe the picture.", "images/1.jpg"
CAPTIONS = ["a red cat", "two dogs, one black", 'a "quoted" bird', "naïve café", "a horse", "an empty field"]


@functools.cache
def jpeg(k, **how):
    coarse = np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return packed(
        Image.fromarray(coarse).resize((40, 30), Image.Resampling.BICUBIC), "JPEG", quality=90, **how
    )


def url(content):
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def talk(*turns, image=PATH, **fields):
    """An entry of LLaVA; turns are by the human and the model alternately, or "role: text"."""
    spoken = []
    for k, turn in enumerate(turns):
        role, text = re.fullmatch(r"(?:(\w+): )?(.*)", turn, re.S).groups()
        spoken.append({"from": role or ("human", "gpt")[k % 2], "value": text})
    return {"image": image, "conversations": spoken} | fields


def chat(*turns, marks=(), **fields):
    """An entry of messages; `marks` are added to the first answer."""
    messages = [{"role": ("user", "assistant")[k % 2], "content": x} for k, x in enumerate(turns)]
    messages[1] |= dict(marks)
    return {"messages": messages} | fields


def llava(k, question=f"<image>\n{ASK}", **fields):
    return talk(question, CAPTIONS[k], **{"id": f"images/{k}.jpg", "image": f"images/{k}.jpg"} | fields)


def sets(root, out=None, *flags, **more):
    """data.py sets with these arguments; without `out` it only checks."""
    return run("sets", *flags, *(["--out", out] if out else ["--check"]), root=root, **more)


def build(tmp_path, files, *flags, **more):
    """(items, index) of the set in a folder of these files."""
    index = sets(put(tmp_path / "in", files), tmp_path / "out", *flags, **more)
    return load_items(tmp_path / "out")[0], index


IMAGES = {f"images/{k}.jpg": jpeg(k) for k in range(6)}
CAPTION = list(enumerate(CAPTIONS))
TABLE = [f'images/{k}.jpg,"{c.replace(chr(34), 2 * chr(34))}"\n' for k, c in CAPTION]
QWEN = [chat([{"type": "image", "image": f"images/{k}.jpg"}, {"text": ASK}], c) for k, c in CAPTION]
SWIFT = [{"query": f"<image>{ASK}", "response": c, "images": [f"images/{k}.jpg"]} for k, c in CAPTION]
PAIRS = {f"images/{k}.txt": c for k, c in enumerate(CAPTIONS)} | IMAGES  # all texts, then all images
METADATA = [{"file_name": f"{k}.jpg", "text": c} for k, c in CAPTION]
TWO_FILES = {"a/metadata.jsonl": METADATA[:3], "a/metadata.csv": "file_name,text\n3.jpg,naïve café\n"}
TWO_FILES |= {"b/metadata.jsonl": METADATA[4:]} | {f"{'aaaabb'[k]}/{k}.jpg": jpeg(k) for k in range(6)}
DOTTED = {f"22.0{k}.json": json.dumps({"caption": c}) for k, c in CAPTION}
DOTTED |= {f"22.0{k}.jpg": jpeg(k) for k in range(6)}
ROWS = [{"image": {"bytes": jpeg(k), "path": None}, "text": c} for k, c in CAPTION]
FORMATS = {
    "llava": IMAGES | {"set.json": [llava(k) for k in range(6)]},
    "llava lines": IMAGES | {"set.jsonl": [llava(k) for k in range(6)]},
    "qwen": IMAGES | {"set.jsonl": QWEN},
    "swift": IMAGES | {"set.jsonl": SWIFT},
    "clip": IMAGES | {"set.csv": "filepath,title\n" + "".join(TABLE)},
    "webdataset": PAIRS,
    "imagefolder": {f"train/{k}.jpg": jpeg(k) for k in range(6)} | {"train/metadata.jsonl": METADATA},
    "imagefolder pairs": PAIRS,
    "imagefolder of dotted names": DOTTED,
    "imagefolder of two files": TWO_FILES,
    "imagefolder of parquet": {"a[1].parquet": ROWS},
}
PLACES = [(name, "in") for name in FORMATS if name != "webdataset"] + [("llava", "in/set.json")]
PLACES += [("qwen", "in/set.jsonl"), ("clip", "in/set.csv"), ("llava", "a.zip"), ("webdataset", "a.tar")]
PLACES += [("webdataset", "a.tar.gz"), ("imagefolder pairs", "a.zip")]
TEXT, AB, TWO = {"type": "text", "text": "A?"}, [["A?", "b"]], ["images/0.jpg", PATH]
ROW = [{"type": "image", "image": PATH, "text": None}, TEXT | {"image": None}]
SYSTEM = ("system: Be brief.", "human: <image>\n<image>\nSame?", "gpt: no", "human: Why?", "gpt: colour")
LATE = talk("user: Ready?", "assistant: yes", "<image>\nWhat?", "a bird")
QWEN_VL = talk("user: Picture 1: <img>images/1.jpg</img>\nA?", "assistant: b", image=None)
OPENAI = chat([TEXT, {"type": "image_url", "image_url": {"url": url(jpeg(1)), "detail": "low"}}], "b")
TRL = {"prompt": chat("A?", "c", "Sure?")["messages"], "images": [PATH]}
TRL["completion"] = [{"role": "assistant", "content": "b"}]
HISTORY = {"query": "Why?", "response": "colour", "history": [["<image>A?", "b"]], "images": PATH}
TALK, FIRST = [["Same?", "no"], ["Why?", "colour"]], {"chat": True, "trained": [False, True]}
OBJECTS = {"ref": ["cat"], "bbox": [[0.1, 0.2, 0.5, 0.8]], "bbox_type": "norm1"}
SWIFT_BOX = chat("<image>Where is the <ref-object>?", "at <bbox>", images=[PATH], objects=OBJECTS)
CONTEXT = "<image>A?", "b", "Look again.", "red"  # whose first answer may carry no loss
CHOICES = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\timage_path\n"
CHOICES += f"7\tWhich?\tLook up.\tred\tblue\tB\tcolour\t{url(jpeg(1)).partition(',')[2]}\t1.jpg\n"
CHOSEN = "Hint: Look up.\nWhich?\nA. red\nB. blue\nAnswer with the letter of the option."
TEXT_ONLY = [talk("A?", "b", model="x"), talk("A?", "b", image=None), talk("A?", "c", image="")]
LAYOUTS = [  # an entry as it is published, its turns, its images, and what else its item or index has
    (chat(ROW, [TEXT | {"text": "b", "image": None}]), AB, [1], {}),  # a row of a table
    (talk("<image>A?", "b", image=None, images=[{"path": PATH, "bytes": None}]), AB, [1], {}),
    (talk(*SYSTEM, image=TWO), TALK, [0, 1], {"chat": 1, "system": "Be brief."}),
    (chat("A <image>, B <image>?", "no", images=TWO), [["A <image>, B <image>?", "no"]], [0, 1], {}),
    (LATE, [["Ready?", "yes"], ["<image>\nWhat?", "a bird"]], [1], {"chat": True}),
    (QWEN_VL, [["Picture 1: <image>\nA?", "b"]], [1], {}),
    (OPENAI, [["A?<image>", "b"]], [1], {}),
    (chat([{"type": "image"}, TEXT], "b", images=[PATH]), AB, [1], {}),  # TRL
    (TRL, [["A?", "c"], ["Sure?", "b"]], [1], FIRST),
    (HISTORY, [["A?", "b"], ["Why?", "colour"]], [1], {"chat": True}),
    (SWIFT_BOX, [["Where is the cat?", 'at {"bbox_2d": [4, 6, 20, 24]}']], [1], {}),
    (talk("<image>A?", "b", image="images\\1.jpg"), AB, [1], {}),
    (chat(*CONTEXT, images=[PATH], marks={"weight": 0}), [*AB, [*CONTEXT[2:]]], [1], FIRST),
    (chat(*CONTEXT, images=[PATH], marks={"loss": False}), [*AB, [*CONTEXT[2:]]], [1], FIRST),
    (CHOICES, [[CHOSEN, "B"]], [1], {"id": "7", "format": "choices", "not_read": {"category": 1}}),
    (TEXT_ONLY, AB, [1], {"text_only": 2, "skipped": 0, "not_read": {"model": 1}}),
]
PROBLEMS = {  # the reason, and an entry or the bytes of its image
    "images/gone.jpg is not there (": llava(1, image="images/gone.jpg"),
    "is a URL; download it first": llava(1, image="https://a.org/b.jpg"),
    "images/1.jpg cannot be decoded (": jpeg(1)[:200],
    "169,000,000 pixels": packed(np.zeros((13000, 13000), bool)),
    "than --max-bytes 50000; raise it": jpeg(1) + bytes(10**5),
    "has placeholders for 2 of 1 images": llava(1, "<image><image>A?"),
    "has a placeholder in an answer": talk("Where?", "<image>"),
    "answer 1 is empty": talk("<image>", " \n"),
    "turn 2 has role 'narrator'; known: human, user": talk("<image>", "narrator: b"),
    "turn 1 has role assistant instead of user": talk("gpt: <image>", "human: b"),
    "[1.0, 2.0, 42.0, 20.0], no box or point inside": talk("<image>\nWhere?", '{"bbox_2d": [1, 2, 42, 20]}'),
    "[0.1, 0.2, 0.5, 0.9]: pixels, relative or thousandths?": talk("<image>\nWhere?", "[0.1, 0.2, 0.5, 0.9]"),
    "repeats an earlier item": llava(0, id="other"),
    "is in test, and images/0.jpg, in no split, has its image": llava(0, "And?", id="c", split="test"),
    "has the split 'holdout'": llava(1, split="holdout"),
    "has the weight 0.5; give 0 or 1": {"image": PATH, "messages": [{"role": "user", "weight": 0.5}]},
    "has more <bbox> than `objects`": chat("<image>A?", "<bbox>", images=PATH),
    "has the answer 'E', which is not one of A, B": {"question": "?", "A": 1, "B": 2, "answer": "E"},
    "has text that is not UTF-8": llava(1, question="\ud83d"),
    "has a layout that is not known": {"messages": 3, "image": PATH},
    "cannot be read (": None,
}
NO_SETS = {
    "holds 2 tables (a.json, b.json)": {"a.json": [], "b.json": []},
    "has no text in its fields ['path']": {"set.json": [{"path": "a"}]},
    "holds no set but .jpg": IMAGES,
    "cannot be read as an archive": {"set.tar": b"junk" * 999},
    "is not UTF-8": {"a.csv": b"filepath,title\n0.jpg,caf\xe9\n"},
    "is the name of 1.jpg, 1.png": {"1.jpg": jpeg(0), "1.png": jpeg(0), "1.txt": "a"},
    "22.06: has no text": DOTTED | {"22.06.jpg": jpeg(6)},
    "22.05.txt: an item's name in a tar ends at the first dot": {"22.05.jpg": jpeg(0), "22.05.txt": "a"},
}


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_every_format_gives_the_same_items_from_a_file_a_folder_and_an_archive(tmp_path, name, place):
    files = FORMATS[name]
    if ".tar" in place:
        files = {f"./{path}": x for path, x in files.items()}
    put(tmp_path / place.split("/")[0], files)
    index = sets(tmp_path / place, tmp_path / "out")
    items = sorted(load_items(tmp_path / "out")[0], key=lambda i: CAPTIONS.index(i["turns"][0][1]))
    assert facts(index, "format", "data", "skipped", "sources") == [name.split()[0], "real", 0, 6]
    assert [i["turns"] for i in items] == [[[ASK, c]] for c in CAPTIONS]
    assert [bytes(i["encoded"].numpy()) for i in items] == list(IMAGES.values())
    assert {(i["width"], i["height"]) for i in items} == {(40, 30)} and len({i["id"] for i in items}) == 6
    assert all(("text" in i) == (name[0] in "ciw") and "chat" not in i for i in items)


@pytest.mark.parametrize(("entry", "turns", "images", "more"), LAYOUTS)
def test_published_layouts_are_read_with_turns_and_placeholders(tmp_path, capsys, entry, turns, images, more):
    table = {"set.tsv": entry} if isinstance(entry, str) else {"set.jsonl": np.ravel(entry).tolist()}
    (item,), index = build(tmp_path, IMAGES | table)
    assert all(f"{name!r} is not read" in capsys.readouterr().err for name in more.get("not_read", ()))
    shown = item["images"] if len(images) > 1 else [item["encoded"]]
    assert [bytes(x.numpy()) for x in shown] == [jpeg(k) for k in images] and item["turns"] == turns
    assert frames_of(item, 16).shape == (len(images), 16, 16, 3)
    found = {k: index[k] for k in ("format", "text_only", "skipped", "not_read") if k in more} | item
    assert all(found.get(k) == more.get(k) for k in ("chat", "system", "text", "trained", *more))


def test_images_in_the_lines_are_as_many_items_and_sources_in_three_splits(tmp_path):
    lines = [chat([{"type": "image", "image": url(jpeg(k))}, TEXT], str(k)) for k in range(12)]
    _, index = build(tmp_path, {"set.jsonl": lines})
    assert index["items"] == index["sources"] == 12 and min(facts(index, "train", "val", "test")) > 0


def test_an_image_is_shown_upright_and_keeps_its_bytes(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    (item,), _ = build(tmp_path, {"0.jpg": jpeg(0, exif=exif.tobytes()), "metadata.jsonl": METADATA[:1]})
    assert bytes(item["encoded"].numpy()) == jpeg(0, exif=exif.tobytes())
    assert (item["width"], item["height"]) == (30, 40) == frames_of(item).shape[2:0:-1]
    assert (frames_of(item)[0].numpy() == np.rot90(read_image(jpeg(0)).numpy(), -1)).all()


def test_a_video_is_a_file_a_folder_a_list_or_an_animation_evenly_in_time(tmp_path, printed):
    files = IMAGES | {"v.MP4": film(tmp_path / "v.mp4", HELD), "a.gif": animation("GIF")}
    names = ["v.MP4", "images", list(IMAGES), "a.gif", "a.webp"]
    entries = [talk("<video>\nHow?", f"{k}", image=None, video=x) for k, x in enumerate(names)]
    entries += [talk("<image>A?", x, image=x) for x in ("a.gif", "a.webp")]
    files |= {"a.webp": animation("WEBP"), "set.jsonl": entries}
    for place in ("in", "set.zip"):
        sets(put(tmp_path / place, files), tmp_path / "out", frames=4, size=32)
        film_item, folder, listed, *animations, gif, webp = load_items(tmp_path / "out")[0]
        assert levels(film_item) == [10, 48, 48, 190] and film_item["times"].tolist() == [0, 3, 6, 9]
        assert (film_item["width"], film_item["height"]) == (64, 48) and listed["turns"] == [["How?", "2"]]
        second = frames_of({"frames": read_image(jpeg(2))[None]}, 32)[0]
        assert all((item["frames"][1] == second).all() for item in (listed, folder))
        assert [levels(item) == [20, 60, 120, 160] for item in animations] == [True, True]
        assert levels(gif) == [20] and levels(webp) == [20]
    assert "v.MP4 has 60 frames, fewer than 61" in printed(lambda: sets(tmp_path / "in", frames=61))


def test_video_start_and_video_end_cut_the_clip(tmp_path, printed):
    part = {"type": "video", "video": "v.mp4", "video_start": 2, "video_end": 4}
    files = {"v.mp4": film(tmp_path / "v.mp4", HELD[:20] + [2 + k / 10 for k in range(40)])}
    (item,), _ = build(tmp_path, files | {"set.jsonl": [chat([part, TEXT], "b")]}, frames=4)
    assert levels(item) == [50, 60, 70, 80] and item["times"].tolist() == [0, 0.5, 1, 1.5]
    part["video_start"] = 7
    root = put(tmp_path / "in", {"set.jsonl": [chat([part, TEXT], "b")]})
    assert "has no seconds 7 to 4, but 0 to 6" in printed(lambda: sets(root))


def test_splits_of_folders_and_shards_are_kept_and_of_two_the_other_is_the_test(tmp_path):
    files = {f"{part}/{k}.jpg": jpeg(k) for part in ("train", "valid") for k in range(6)}
    files |= {"train/metadata.jsonl": METADATA[:4], "valid/metadata.jsonl": METADATA[4:]}
    splits = [split_of(item["source"]) for item in build(tmp_path, files)[0]]
    assert set(splits[:4]) <= {"train", "val"} and set(splits[4:]) == {"test"}
    files = {"test/0.jpg": jpeg(77), "test/metadata.csv": "file_name,text\n0.jpg,a boat\n"}
    assert facts(build(tmp_path, files)[1], "train", "val", "test") == [4, 2, 1]
    for n, part in enumerate(("train-0", "train-1", "test-0")):
        files = {f"{k}.json": json.dumps({"caption": f"{part} {k}"}) for k in range(4)}
        files |= {f"{k}.JPG": jpeg(10 * n + k) for k in range(4)} | {"._0.JPG": b"junk"}
        put(tmp_path / "shards", {f"{part}_stats.json": '{"count": 4}'})  # as img2dataset does
        put(tmp_path / f"shards/{part}.tar", files)
    index = sets(tmp_path / "shards", tmp_path / "out")
    assert facts(index, "items", "sources", "test", "same_id") == [12, 12, 4, 0]
    assert [i["text"] for i in load_items(tmp_path / "out")[0]][:2] == ["test-0 0", "test-0 1"]


def test_one_image_under_two_names_is_one_source_and_a_repeated_id_is_renamed(tmp_path):
    files = {f"{k}.jpg": jpeg(k % 40) for k in range(41)} | {"41.jpg": jpeg(41)}
    entries = [llava(0, id=str(k % 41), image=f"{k}.jpg") for k in range(42)]
    items, index = build(tmp_path, files | {"set.jsonl": entries})
    assert items[40]["source"] == items[0]["source"] and items[41]["source"] != items[0]["source"]
    assert facts(index, "sources", "same_id", "skipped") == [41, 1, 0] and items[41]["id"] == "0#2"


@pytest.mark.parametrize("reason", PROBLEMS)
def test_a_problem_is_named_with_its_item_and_skip_bad_leaves_that_out(tmp_path, printed, reason):
    entry = PROBLEMS[reason]
    given = llava(1) if isinstance(entry, bytes) else entry
    lines = [json.dumps(llava(0)), json.dumps(given) if given else "{oops", json.dumps(llava(2)), ""]
    spoilt = {PATH: entry} if isinstance(entry, bytes) else {}
    root = put(tmp_path / "in", IMAGES | {"set.jsonl": "\n".join(lines)} | spoilt) / "set.jsonl"
    for out in (None, tmp_path / "out"):
        err = printed(lambda out=out: sets(root, out, max_bytes=50000)).replace("\r", "\n")
        line, last = [x for x in err.split("\n") if x.strip() and not re.search("it(em)?/s", x)]
        assert line.startswith("set.jsonl: ") and "line 2" in line and reason in line
        assert f"error: 1 problems in {root} (1 " in last and ("--skip-bad" in last) == bool(out)
    assert not list((tmp_path / "out").iterdir())
    index = sets(root, tmp_path / "out", "--skip-bad", max_bytes=50000)
    assert [*facts(index, "items", "skipped"), sum(index["skipped_kinds"].values())] == [2, 1, 1]
    assert [i["turns"][0][1] for i in load_items(tmp_path / "out")[0]] == [CAPTIONS[0], CAPTIONS[2]]


@pytest.mark.parametrize("words", NO_SETS)
def test_what_is_not_a_set_is_refused_by_what_it_is(tmp_path, printed, words):
    place = "in.tar" if "in a tar" in words else "in"
    root = put(tmp_path / place, NO_SETS[words]) / ("set.tar" if "archive" in words else "")
    assert words in printed(lambda: sets(root, tmp_path / "out")) and not [*tmp_path.glob("out/*")]
