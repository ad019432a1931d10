"""Sets with text: the same items from every format, what files state is honoured, every problem named."""

import base64
import io
import json
import re
import tarfile
import zipfile
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import data
from common import Items, load_items, split_of
from media import frames_of

ASK, PATH, RED = "Describe the picture.", "images/1.jpg", (220, 20, 20)
CAPTIONS = ["a red cat", "two dogs, one black", 'a "quoted" bird', "naïve café", "a horse", "an empty field"]


def jpeg(k, size=(40, 30)):
    file, coarse = io.BytesIO(), np.random.default_rng(k).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def url(content, kind="image/jpeg"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def film(times):
    """An MP4 of 64x48 pixels whose frames, grey 10 + 20 t, are shown at these seconds."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.thread_count = 1
        for t in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), round(10 + 20 * t), np.uint8), "rgb24")
            frame.pts, frame.time_base = round(1000 * t), Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return file.getvalue()


def levels(item):
    return frames_of(item).float().mean((1, 2, 3))


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
        err = printed(lambda: run(*args, **more)).replace("\r", "\n")
        return [x for x in err.split("\n") if x.strip() and not re.search("it(em)?/s", x)]

    return check


IMAGES = {f"images/{k}.jpg": jpeg(k) for k in range(6)}
CAPTION = list(enumerate(CAPTIONS))
TABLE = [f'images/{k}.jpg,"{c.replace(chr(34), 2 * chr(34))}"\n' for k, c in CAPTION]
ASKED = {"type": "text", "text": ASK}
QWEN = [chat([{"type": "image", "image": f"images/{k}.jpg"}, ASKED], c) for k, c in CAPTION]
SWIFT = [{"query": f"<image>{ASK}", "response": c, "images": [f"images/{k}.jpg"]} for k, c in CAPTION]
PAIRS = {f"images/{k}.txt": c for k, c in enumerate(CAPTIONS)} | IMAGES  # all texts, then all images
METADATA = [{"file_name": f"{k}.jpg", "text": c} for k, c in CAPTION]
TWO_FILES = {"a/metadata.jsonl": METADATA[:3], "a/metadata.csv": "file_name,text\n3.jpg,naïve café\n"}
TWO_FILES |= {"b/metadata.jsonl": METADATA[4:]} | {f"{'aaaabb'[k]}/{k}.jpg": jpeg(k) for k in range(6)}
FORMATS = {
    "llava": IMAGES | {"set.json": [llava(k) for k in range(6)]},
    "llava lines": IMAGES | {"set.jsonl": [llava(k) for k in range(6)]},
    "qwen": IMAGES | {"set.jsonl": QWEN},
    "swift": IMAGES | {"set.jsonl": SWIFT},
    "clip": IMAGES | {"set.csv": "filepath,title\n" + "".join(TABLE)},
    "webdataset": PAIRS,
    "imagefolder": {f"train/{k}.jpg": jpeg(k) for k in range(6)} | {"train/metadata.jsonl": METADATA},
    "imagefolder pairs": PAIRS,
    "imagefolder of two files": TWO_FILES,
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
TRL = {"prompt": [*chat("A?", "c")["messages"], {"role": "user", "content": "Sure?"}], "images": [PATH]}
TRL["completion"] = [{"role": "assistant", "content": "b"}]
HISTORY = {"query": "Why?", "response": "colour", "history": [["<image>A?", "b"]], "images": PATH}
TALK = [["Same?", "no"], ["Why?", "colour"]]
OBJECTS = {"ref": ["cat"], "bbox": [[0.1, 0.2, 0.5, 0.8]], "bbox_type": "norm1"}
SWIFT_BOX = chat("<image>Where is the <ref-object>?", "at <bbox>", images=[PATH], objects=OBJECTS)
LAYOUTS = [  # an entry as it is published, its turns, its images, and what else its item has
    (chat(ROW, [TEXT | {"text": "b", "image": None}]), AB, [1], {}),  # a row of a table
    (talk("<image>A?", "b", image=None, images=[{"path": PATH, "bytes": None}]), AB, [1], {}),
    (talk(*SYSTEM, image=TWO), TALK, [0, 1], {"chat": 1, "system": "Be brief."}),
    (chat("A <image>, B <image>?", "no", images=TWO), [["A <image>, B <image>?", "no"]], [0, 1], {}),
    (LATE, [["Ready?", "yes"], ["<image>\nWhat?", "a bird"]], [1], {"chat": True}),
    (QWEN_VL, [["Picture 1: <image>\nA?", "b"]], [1], {}),
    (OPENAI, [["A?<image>", "b"]], [1], {}),
    (chat([{"type": "image"}, TEXT], "b", images=[PATH]), AB, [1], {}),  # TRL
    (TRL, [["A?", "c"], ["Sure?", "b"]], [1], {"chat": True, "trained": [False, True]}),
    (HISTORY, [["A?", "b"], ["Why?", "colour"]], [1], {"chat": True}),
    (SWIFT_BOX, [["Where is the cat?", 'at {"bbox_2d": [4, 6, 20, 24]}']], [1], {}),
    (talk("<image>A?", "b", image="images\\1.jpg"), AB, [1], {}),
]
PROBLEMS = {  # the reason, and an entry or the bytes of its image
    "images/gone.jpg is not there (": llava(1, image="images/gone.jpg"),
    "is a URL; download it first": llava(1, image="https://a.org/b.jpg"),
    "images/1.jpg cannot be decoded (": jpeg(1)[:200],
    "169,000,000 pixels": png(np.zeros((13000, 13000), bool)),
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
    "22.05.txt: an item's name in a tar ends at the first dot": {"22.05.jpg": jpeg(0), "22.05.txt": "a"},
}


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_every_format_gives_the_same_items_from_a_file_a_folder_and_an_archive(tmp_path, name, place):
    files = FORMATS[name]
    if ".tar" in place:
        files = {f"./{path}": x for path, x in files.items()}
    put(tmp_path / place.split("/")[0], files)
    index = run(tmp_path / place, tmp_path / "out")
    items = sorted(load_items(tmp_path / "out")[0], key=lambda i: CAPTIONS.index(i["turns"][0][1]))
    assert (index["format"], index["data"], index["skipped"]) == (name.split()[0], "real", 0)
    assert [i["turns"] for i in items] == [[[ASK, c]] for c in CAPTIONS]
    assert [bytes(i["encoded"].numpy()) for i in items] == list(IMAGES.values())
    assert {(i["width"], i["height"]) for i in items} == {(40, 30)} and len({i["id"] for i in items}) == 6
    assert all(("text" in i) == (name[0] in "ciw") and "chat" not in i for i in items)


def test_a_parquet_file_gives_the_same_items(tmp_path):
    put(tmp_path, {"in/.x": ""})
    rows = [{"image": {"bytes": jpeg(k), "path": None}, "text": c} for k, c in enumerate(CAPTIONS)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in/a[1].parquet")
    items, index = build(tmp_path, {})
    assert [i["text"] for i in items] == CAPTIONS and index["sources"] == 6
    assert [bytes(i["encoded"].numpy()) for i in items] == list(IMAGES.values())


@pytest.mark.parametrize(("entry", "turns", "images", "more"), LAYOUTS)
def test_published_layouts_are_read_with_turns_and_placeholders(tmp_path, entry, turns, images, more):
    (item,), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]})
    assert [bytes(x.numpy()) for x in item.get("images", [item.get("encoded")])] == [
        jpeg(k) for k in images
    ] and item["turns"] == turns
    assert frames_of(item, 16).shape == (len(images), 16, 16, 3)
    assert all(item.get(k) == more.get(k) for k in ("chat", "system", "text", "trained"))


def test_options_and_the_hint_are_part_of_the_question_and_the_answer_is_the_letter(tmp_path):
    head = "index\tquestion\thint\tA\tB\tanswer\tcategory\timage\timage_path\n"
    row = f"7\tWhich?\tLook up.\tred\tblue\tB\tcolour\t{base64.b64encode(jpeg(1)).decode()}\t1.jpg\n"
    (item,), index = build(tmp_path, {"mine.tsv": head + row})
    question = "Hint: Look up.\nWhich?\nA. red\nB. blue\nAnswer with the letter of the option."
    assert (item["id"], item["turns"], index["format"]) == ("7", [[question, "B"]], "choices")
    assert index["not_read"] == {"category": 1}


@pytest.mark.parametrize("mark", [{"weight": 0}, {"loss": False}])
def test_an_answer_without_loss_stays_in_the_prompt_and_is_marked(tmp_path, mark):
    entry = chat("<image>Which colour?", "blue", images=[PATH])
    entry["messages"][1] |= mark
    entry["messages"] += chat("Look again.", "red")["messages"]
    (item,), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]})
    assert item["trained"] == [False, True] and item["turns"][0] == ["Which colour?", "blue"]


def test_images_in_the_lines_are_as_many_items_and_sources_in_three_splits(tmp_path):
    lines = [chat([{"type": "image", "image": url(jpeg(k))}, TEXT], str(k)) for k in range(12)]
    _, index = build(tmp_path, {"set.jsonl": lines})
    assert index["items"] == index["sources"] == 12 and min(index[s] for s in ("train", "val", "test")) > 0


def test_text_alone_is_left_out_and_counted_and_fields_that_are_not_read_are_named(tmp_path, capsys):
    entries = [
        llava(0, model="x"),
        llava(1, model="x"),
        talk("A?", "b", image=None),
        talk("A?", "c", image=""),
    ]
    items, index = build(tmp_path, IMAGES | {"set.jsonl": entries})
    assert (len(items), index["text_only"], index["skipped"], index["not_read"]) == (2, 2, 0, {"model": 2})
    assert "'model' is not read (2 times)" in capsys.readouterr().err


def test_names_with_a_dot_before_the_ending_are_items_of_their_own(tmp_path, problems):
    files = {f"22.0{k}.jpg": jpeg(k) for k in (5, 6)}
    files |= {"22.05.json": '{"caption": "5"}', "22.06.json": '{"caption": "6"}'}
    items, _ = build(tmp_path, files)
    assert [(i["id"], i["text"]) for i in items] == [("22.05.jpg", "5"), ("22.06.jpg", "6")]
    (tmp_path / "in/22.06.json").unlink()
    assert "22.06: has no text" in problems(tmp_path / "in")[0]


def test_every_kind_of_image_is_shown_upright_on_white_in_8_bits(tmp_path):
    exif, stored, rgba = Image.Exif(), io.BytesIO(), np.zeros((64, 64, 4), np.uint8)
    exif[274] = 6
    Image.open(io.BytesIO(jpeg(0))).save(stored, "JPEG", exif=exif)
    rgba[16:48, 16:48] = (*RED, 255)
    deep = np.full((64, 64), 0x4000, np.uint16)
    deep[16:48, 16:48] = 0xC000
    files = {"0.jpg": stored.getvalue(), "1.png": png(rgba), "2.png": png(deep)}
    rows = [{"file_name": name, "text": name} for name in files]
    (upright, clear, grey), _ = build(tmp_path, files | {"metadata.jsonl": rows})
    assert (upright["width"], upright["height"]) == (30, 40) == frames_of(upright).shape[2:0:-1]
    assert bytes(upright["encoded"].numpy()) == stored.getvalue()
    expected = np.rot90(np.array(Image.open(stored)), -1).astype(int)
    assert np.abs(expected - frames_of(upright)[0].numpy()).max() < 3
    for item, outside, inside in ((clear, (255, 255, 255), RED), (grey, (64,) * 3, (192,) * 3)):
        pixels = frames_of(item)[0]
        assert tuple(pixels[8, 8]) == outside and tuple(pixels[32, 32]) == inside


def test_a_video_is_a_file_a_folder_or_a_list_of_images_evenly_in_time(tmp_path, problems):
    clip = film([k / 10 for k in range(20)] + [8 + k / 10 for k in range(40)])
    films = [talk("<video>\nHow?", x, image=None, video=x) for x in ("v.MP4", "images")]
    listed = talk("<image>\nHow?", "c", image=None, video=list(IMAGES))
    files = IMAGES | {"v.MP4": clip, "set.jsonl": [*films, listed]}
    for place in ("in", "set.zip"):
        run(put(tmp_path / place, files), tmp_path / "out", frames=4, size=32)
        item, folder, listed = load_items(tmp_path / "out")[0]
        assert item["times"].tolist() == [0, 3, 6, 9] and (item["width"], item["height"]) == (64, 48)
        assert (levels(item) - torch.tensor([10.0, 48, 48, 190])).abs().max() < 3  # the last frame is held
        second = frames_of({"encoded": torch.frombuffer(bytearray(jpeg(2)), dtype=torch.uint8)}, 32)[0]
        assert (listed["frames"][1] == second).all() and listed["turns"] == [["How?", "c"]]
        assert folder["frames"].shape == (4, 32, 32, 3)
    assert "v.MP4 has 60 frames, fewer than 61" in problems(tmp_path / "in", frames=61)[0]


def test_video_start_and_video_end_cut_the_clip(tmp_path, problems):
    part = {"type": "video", "video": "v.mp4", "video_start": 2, "video_end": 4}
    files = {"v.mp4": film([k / 10 for k in range(60)]), "set.jsonl": [chat([part, TEXT], "b")]}
    (item,), _ = build(tmp_path, files, frames=4)
    assert (levels(item) - torch.tensor([50.0, 60, 70, 80])).abs().max() < 3
    assert item["times"].tolist() == [0, 0.5, 1, 1.5]
    part["video_start"] = 7
    root = put(tmp_path / "late", files | {"set.jsonl": [chat([part, TEXT], "b")]})
    assert "has no seconds 7 to 4, but 0 to 6" in problems(root)[0]


def test_an_animation_is_a_video_or_an_image(tmp_path):
    frames, files = [Image.new("RGB", (64, 48), (20 + 20 * k,) * 3) for k in range(10)], {}
    for name in ("a.gif", "a.webp"):
        file = io.BytesIO()
        frames[0].save(file, name[2:], save_all=True, append_images=frames[1:], duration=100, lossless=True)
        files[name] = file.getvalue()
    entries = [talk("<video>A?", x, image=None, video=x) for x in files]
    entries += [talk("<image>A?", x, image=x) for x in files]
    *videos, first, second = build(tmp_path, files | {"set.jsonl": entries}, frames=5)[0]
    for item in videos:
        assert (levels(item) - torch.tensor([20.0, 60, 100, 140, 180])).abs().max() < 3
    assert levels(first).tolist() == levels(second).tolist() == [20]


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
        files = {f"{k}.json": json.dumps({"caption": f"{part} {k}"}) for k in range(4)}
        files |= {f"{k}.JPG": jpeg(10 * n + k) for k in range(4)} | {"._0.JPG": b"junk"}
        put(tmp_path / "in", {f"{part}_stats.json": '{"count": 4}'})  # as img2dataset does
        put(tmp_path / f"in/{part}.tar", files)
    index = run(tmp_path / "in", tmp_path / "out")
    assert index["items"] == 12 == index["sources"] and index["test"] == 4 and index["same_id"] == 0
    assert [i["text"] for i in load_items(tmp_path / "out")[0]][:2] == ["test-0 0", "test-0 1"]


def test_one_image_under_two_names_is_one_source_and_a_repeated_id_is_renamed(tmp_path):
    files = {f"{k}.jpg": jpeg(k % 40) for k in range(41)} | {"41.jpg": jpeg(41)}
    entries = [llava(0, id=str(k % 41), image=f"{k}.jpg") for k in range(42)]
    items, index = build(tmp_path, files | {"set.jsonl": entries})
    assert items[40]["source"] == items[0]["source"] and items[41]["source"] != items[0]["source"]
    assert (index["sources"], index["same_id"], index["skipped"]) == (41, 1, 0) and items[41]["id"] == "0#2"


@pytest.mark.parametrize("reason", PROBLEMS)
def test_a_problem_is_named_with_its_item_and_skip_bad_leaves_that_out(tmp_path, problems, reason):
    entry = PROBLEMS[reason]
    given = llava(1) if isinstance(entry, bytes) else entry
    lines = [json.dumps(llava(0)), json.dumps(given) if given else "{oops", json.dumps(llava(2)), ""]
    spoilt = {PATH: entry} if isinstance(entry, bytes) else {}
    root = put(tmp_path / "in", IMAGES | {"set.jsonl": "\n".join(lines)} | spoilt) / "set.jsonl"
    line, last = problems(root, max_bytes=50000)
    assert line.startswith("set.jsonl: ") and "line 2" in line and reason in line
    assert f"error: 1 problems in {root} (1 " in last
    line, last = problems(root, tmp_path / "out", max_bytes=50000)
    assert reason in line and "--skip-bad" in last and not list((tmp_path / "out").iterdir())
    index = run(root, tmp_path / "out", "--skip-bad", max_bytes=50000)
    assert (index["items"], index["skipped"], sum(index["skipped_kinds"].values())) == (2, 1, 1)
    assert [i["turns"][0][1] for i in load_items(tmp_path / "out")[0]] == [CAPTIONS[0], CAPTIONS[2]]


@pytest.mark.parametrize("words", NO_SETS)
def test_what_is_not_a_set_is_refused_by_what_it_is(tmp_path, problems, words):
    place = "in.tar" if "in a tar" in words else "in"
    root = put(tmp_path / place, NO_SETS[words]) / ("set.tar" if "archive" in words else "")
    assert words in " ".join(problems(root, tmp_path / "out")) and not [*tmp_path.glob("out/*")]
