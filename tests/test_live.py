"""One's own pictures: read upright and whole, made into a film that holds them, asked about, and answered word by word."""
import io
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_clips import encode

import common
import data
import explain
import predict


def drawn(path, shape, colour, cx=30, cy=30, radius=20):
    """A picture in the style of data.py: one shape of 96 px on grey."""
    thing = {"shape": shape, "radius": radius, "cx": cx, "cy": cy, "angle": 0, "texture": 0, "rgb": data.COLOURS[colour]}
    Image.fromarray(data.draw([thing], np.full((96, 96, 3), 120, np.float32))[0]).save(path)
    return str(path)


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("drawn") / "circle.png", "circle", "blue")


@pytest.fixture(scope="module")
def clips():
    """Clips of 9 frames, 64 px, in which an object moves before a still background."""
    return predict.windows([i for i in data.moving(60, 64, 913) if i["direction"] != "still" and not any(i["camera"])], 9, 64)


@pytest.fixture
def ask(capsys):
    """ask(*flags): (explain.py's result, what it printed)."""
    def run(*flags):
        capsys.readouterr()
        return explain.main([str(f) for f in flags]), capsys.readouterr().out
    return run


def saved(folder, item, *numbers):
    """Frames of a clip as PNG files."""
    paths = [str(folder / f"{k}.png") for k in numbers]
    for path, k in zip(paths, numbers, strict=True):
        Image.fromarray(item["frames"][k].numpy()).save(path)
    return paths


def film(path, size=64):
    """(frames uint8 [T, size, size, 3] of an mp4, their height, width, frames a second), read by PyAV."""
    with av.open(str(path)) as file:
        frames, rate = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)]), float(file.streams.video[0].average_rate)
    return common.frames_of({"frames": torch.from_numpy(frames)}, size), *frames.shape[1:3], rate


def gone(item, x):
    """Which way a clip's object goes in a film that begins with the clip's first frame, by its colour there."""
    return common.heading(common.whereabouts(torch.cat([item["frames"][:1], x])[None], (item["mask"][0] == len(item["names"]))[None])[:, 1:])[0]


def apart(a, b):
    """Mean absolute difference, colours in 0..1."""
    return (a.float() - b.float()).abs().mean().item() / 255


# ---------------------------------------------------------------- pictures

@pytest.mark.parametrize("orientation, stored", [(1, lambda x: x), (2, np.fliplr), (3, lambda x: np.rot90(x, 2)), (6, np.rot90), (8, lambda x: np.rot90(x, -1))])
def test_a_picture_stands_as_its_exif_says(tmp_path, orientation, stored):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[20:, 30:] = (250, 20, 20), (20, 20, 250)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored(upright))).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    assert apart(common.read_picture(tmp_path / "a.jpg"), torch.from_numpy(upright)[None]) < 0.02
    assert orientation == 1 or stored(upright).shape != upright.shape or np.abs(stored(upright).astype(int) - upright).mean() > 50  # unread it would be another picture


def test_pictures_of_every_kind_become_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    truth, colour = torch.from_numpy(grey)[None, ..., None].expand(1, 48, 64, 3), Image.fromarray(np.stack([grey] * 3, 2))
    for mode, name in (("RGB", "a.png"), ("L", "a.png"), ("P", "a.gif"), ("CMYK", "a.tif"), ("RGBA", "a.webp"), ("YCbCr", "a.jpg")):
        (colour.quantize(256) if mode == "P" else colour.convert(mode)).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
        assert apart(common.read_picture(tmp_path / name), truth) < 0.02, mode
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert Image.open(tmp_path / "deep.png").mode.startswith("I") and apart(common.read_picture(tmp_path / "deep.png"), truth) == 0
    see_through = np.zeros((8, 8, 4), np.uint8)
    see_through[:4] = 10, 200, 10, 255
    Image.fromarray(see_through).save(tmp_path / "cut.png")
    x = common.read_picture(tmp_path / "cut.png")[0]
    assert x[0, 0].tolist() == [10, 200, 10] and x[7, 0].tolist() == [255, 255, 255]


# ---------------------------------------------------------------- films

@pytest.mark.slow
def test_a_film_begins_with_the_picture_and_is_written_three_times(tmp_path, clips):
    item, other = clips[0], clips[1]
    line = ["--image", *saved(tmp_path, item, 0), "--prompt", common.caption(item), "--video", str(tmp_path / "out.mp4")]
    found = predict.main(line)
    x, height, width, rate = film(tmp_path / "out.mp4")
    assert (len(x), height, width, rate) == (9, 256, 256, 2) == (found["frames"], found["height"], found["width"], found["fps"])
    vae, _ = common.load_video_vae(common.find_model("tiny-vae"))
    through, wrong = (common.decode_films(vae, common.encode_films(vae, i["frames"][None, :1]))[0, 0] for i in (item, other))
    assert apart(x[0], through) < 0.02 < 0.06 < apart(x[0], wrong) and apart(x[0], x[8]) > 0.005  # it moves
    gif = Image.open(tmp_path / "out.gif")
    assert gif.n_frames == 9 and gif.size == (256, 256) and gif.info["duration"] == 500
    first = common.frames_of({"frames": torch.from_numpy(np.array(gif.convert("RGB")))[None]}, 64)[0]
    assert apart(first, x[0]) < 0.02
    facts = common.load_yaml(tmp_path / "out.yaml", "predict")
    assert (facts["mode"], facts["model"], facts["weights"], facts["shown_at"]) == ("film", "tiny-ltx", "small", [0])
    before = (tmp_path / "out.mp4").read_bytes()
    predict.main(line)
    assert (tmp_path / "out.mp4").read_bytes() == before and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_films_go_the_way_that_the_prompt_says(tmp_path, clips):
    ways = []
    for item in clips[:10]:
        predict.main(["--image", *saved(tmp_path, item, 0), "--prompt", common.caption(item), "--video", str(tmp_path / "out.mp4")])
        ways.append(gone(item, film(tmp_path / "out.mp4")[0]))
    asked = [i["direction"] for i in clips[:10]]  # twins follow one another: the same scene, another way
    assert sum(a == b for a, b in zip(ways, asked, strict=True)) >= 5 > 1 >= sum(a == asked[k ^ 1] for k, a in enumerate(ways))


def test_several_pictures_stand_evenly_up_to_the_middle_and_what_follows_is_predicted(tmp_path, clips):
    item, ways, ends = clips[2], {}, {}
    for numbers in ((0,), (0, 4), (0, 2, 4)):
        found = predict.main(["--image", *saved(tmp_path, item, *numbers), "--video", str(tmp_path / "out.mp4")])
        assert found["shown_at"] == list(numbers) and found["prompt"] == ""
        x = film(tmp_path / "out.mp4")[0]
        ways[len(numbers)] = gone(item, x)
        ends[len(numbers)] = apart(x[8], item["frames"][8])
    assert ways[2] == ways[3] == item["direction"] and ends[1] > 1.3 * max(ends[2], ends[3])  # one picture does not tell where it goes


@pytest.mark.parametrize("shape, expected", [((30, 60), (256, 512)), ((61, 50), (312, 256)), ((10, 100), (256, 1024))])
def test_a_film_gets_the_shape_of_the_picture_back_in_even_sides(tmp_path, shape, expected):
    x = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    x[:, :32, :32], x[1] = 200, 90
    assert predict.save_film(tmp_path / "a.mp4", x, shape, 12.5) == expected
    y, height, width, rate = film(tmp_path / "a.mp4")
    assert (height, width) == expected and rate == 12.5 and len(y) == 3 and apart(y, x) < 0.02
    big = torch.zeros(2, 320, 320, 3, dtype=torch.uint8)
    assert predict.save_film(tmp_path / "b.mp4", big, (10, 10), 25) == (320, 320)


def test_what_cannot_be_filmed_is_refused_before_anything_is_loaded(tmp_path, circle, refused, monkeypatch):
    monkeypatch.setattr(predict, "load_video_pipeline", None)
    (tmp_path / "half.png").write_bytes(Path(circle).read_bytes()[:200])
    Image.open(circle).save(tmp_path / "b.gif")

    def make(*flags, image=(circle,)):
        return lambda: predict.main(["--image", *map(str, image), "--video", str(tmp_path / "x.mp4"), *map(str, flags)])
    refused(make(image=[tmp_path / "none.jpg"]), tmp_path / "none.jpg", "does not exist")
    refused(make(image=[tmp_path / "half.png"]), "half.png", "cannot be read as a picture")
    refused(make("--video", "tiny-ltx"), "--video tiny-ltx", "--model")
    refused(make("--video", tmp_path / "b.mp4", image=[tmp_path / "b.gif"]), "over the picture")
    refused(make(image=[circle] * 6), "6 pictures", "first 5")
    refused(make("--frames", 12), "--frames 12", "2k+1")
    refused(make("--fps", 500), "--fps 500")
    refused(lambda: predict.main(["--mode", "film"]), "--image")
    refused(lambda: predict.main(["--mode", "futures", "--image", circle]), "--mode futures")


# ---------------------------------------------------------------- questions

@pytest.mark.parametrize("model", ["tiny", "tiny-semantic", "tiny-llava-next", "tiny-internvl2", "tiny-cogvlm2"])
def test_every_small_model_names_what_is_drawn(model, circle, ask, tmp_path):
    found, printed = ask("--image", circle, "--ask", "What is in the picture?", "--model", model, "--out", tmp_path / "a.yaml")
    assert found["answer"] == "a blue circle" and found["tokens"] >= 3 and found["weights"] == "small" and found["seconds"] > 0
    assert [line.strip() for line in printed.splitlines()].count("a blue circle") == 1 and "\nanswer a blue circle\n" in printed
    assert common.load_yaml(tmp_path / "a.yaml", "explain")["images"] == [circle]
    other, _ = ask("--image", drawn(tmp_path / "star.png", "star", "yellow"), "--ask", "What is in the picture?", "--model", model)
    assert "yellow" in other["answer"] and "blue" not in other["answer"]


def test_the_picture_on_its_side_is_asked_about_upright(tmp_path, ask):
    path = drawn(tmp_path / "a.png", "circle", "blue", cx=20, cy=20, radius=17)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter: top left is stored bottom left
    Image.open(path).rotate(90).save(tmp_path / "a.jpg", exif=exif, quality=95)
    Image.open(path).rotate(90).save(tmp_path / "b.jpg", quality=95)
    said = [ask("--image", p, "--ask", "Where is the blue circle?")[0]["answer"] for p in (path, tmp_path / "a.jpg", tmp_path / "b.jpg")]
    assert said == ["top left", "top left", "bottom left"]


def test_several_pictures_are_asked_about_together_and_are_no_clip(tmp_path, circle, ask, small_qwen3vl):
    star = drawn(tmp_path / "star.png", "star", "red", cx=60, cy=60)
    for model in ("tiny", "tiny-internvl2"):
        found, _ = ask("--image", circle, star, "--ask", "What is in the picture?", "--model", model)
        assert found["frames"] == 2 and {"blue circle", "red star"} <= set(found["answer"].removeprefix("a ").split(" and a ")), found["answer"]
    for name in ("tiny", str(small_qwen3vl)):
        model, processor = common.load_vlm(common.find_model(name))
        frames = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
        album, clip = explain.put_to(model, processor, frames, "Where?"), explain.put_to(model, processor, frames, "Where?", ([0, 1], 2))
        assert len(album["image_grid_thw"]) == 2 and "video_grid_thw" not in album and len(clip["video_grid_thw"]) == 1 and "image_grid_thw" not in clip


def test_words_are_printed_while_the_model_still_computes(circle, monkeypatch):
    steps, written, load = [], [], explain.load_vlm

    def counted(*args):
        model, processor = load(*args)
        model.register_forward_hook(lambda *_: steps.append(1))
        return model, processor

    class Screen(io.StringIO):
        def write(self, text):
            written.append((len(steps), text))
            return len(text)
    monkeypatch.setattr(explain, "load_vlm", counted)
    monkeypatch.setattr(sys, "stdout", Screen())
    found = explain.main(["--image", circle, "--ask", "What is in the picture?"])
    monkeypatch.undo()
    at = {word: next(step for step, text in written if text.strip() == word) for word in ("a", "blue", "circle")}
    assert found["tokens"] == len(steps) == 4
    assert 0 < at["a"] < at["blue"] < at["circle"] == len(steps)  # the last word may still grow until the end is known
    assert "".join(text for step, text in written if step > 0).startswith("a blue circle\n")


@pytest.mark.parametrize("folder", ["small_kosmos2", "small_florence2", "small_cogvlm2", "small_qwen2vl"])
def test_the_other_families_take_one_picture(folder, request, circle, ask, refused):
    path = request.getfixturevalue(folder)
    found, printed = ask("--image", circle, "--ask", "Describe the picture.", "--model", path)
    assert 1 <= found["tokens"] <= explain.MOST + 2 and found["answer"].split() == printed.split("\nstage explain")[0].split("\n", 1)[1].split()
    if folder != "small_qwen2vl":
        refused(lambda: ask("--image", circle, circle, "--ask", "Where?", "--model", path), "one picture at a time")
        refused(lambda: ask("--clip", circle, "--ask", "Where?", "--model", path), "one picture at a time")


# ---------------------------------------------------------------- questions about films

@pytest.mark.slow
def test_a_written_clip_is_understood_forwards_and_backwards(tmp_path, ask):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    said = []
    for item in [i for i in data.moving(60, 64, 913) if i["direction"] in opposite][:3]:
        for name, frames, way in (("there", item["frames"], item["direction"]), ("back", item["frames"].flip(0), opposite[item["direction"]])):
            predict.save_film(tmp_path / f"{name}.mp4", frames, (64, 64), 2)
            found, _ = ask("--clip", tmp_path / f"{name}.mp4", "--ask", item["turns"][0][0], "--frames", "17")
            said.append(found["answer"] == way)
            assert found["frames"] == 17 and found["frames_used"] == list(range(17)) and found["size"] == 64
    assert sum(said) >= 5


def test_a_film_of_predict_is_read_by_explain(tmp_path, clips, ask):
    predict.main(["--image", *saved(tmp_path, clips[0], 0, 4), "--video", str(tmp_path / "out.mp4")])
    for name in ("out.mp4", "out.gif"):
        found, printed = ask("--clip", tmp_path / name, "--ask", clips[0]["turns"][0][0])
        assert found["frames_used"] == list(range(9)) and found["answer"] in {w for row in common.WORDS["direction"] for w in row} and f"answer {found['answer']}" in printed
    x = explain.watched(tmp_path / "out.mp4", 16, 64)[0]
    assert torch.equal(x, film(tmp_path / "out.mp4")[0])


def test_of_a_long_video_frames_are_spread_evenly_and_its_own_rate_is_told(tmp_path):
    x = (torch.arange(40, dtype=torch.uint8) * 6)[:, None, None, None].expand(40, 64, 64, 3).contiguous()
    predict.save_film(tmp_path / "long.mp4", x, (64, 128), 10)
    frames, (numbers, length, rate) = explain.watched(tmp_path / "long.mp4", 5, 32)
    assert (numbers, length, rate) == ([0, 10, 20, 29, 39], 40, 10) and frames.shape == (5, 32, 32, 3)
    assert [round(f.float().mean().item() / 6) for f in frames] == numbers
    assert explain.watched(tmp_path / "long.mp4", 40, 32)[1] == (list(range(40)), 40, 2)  # ten a second would share positions in time
    processor = common.load_vlm(common.find_model("tiny"))[1]
    clip = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    seconds = [float(common.qwen_inputs(processor, clip, "Where?", at)["second_per_grid_ts"][0]) for at in (([0, 2, 4, 6], 8, 10.0), ([0, 2, 4, 6], 8), None)]
    assert seconds == pytest.approx([0.4, 2.0, 1.0])  # two frames to a step


def test_a_video_on_its_side_is_watched_upright(tmp_path):
    x = np.zeros((6, 48, 64, 3), np.uint8)
    x[:, :16, :20], x[:, 30:, 50:] = (220, 30, 30), (30, 30, 220)
    encode(tmp_path / "a.mp4", np.rot90(x, 1, (1, 2)), turned=90)  # stored turned left: the header asks to turn right
    encode(tmp_path / "a.avi", x)
    for name in ("a.mp4", "a.avi"):
        assert apart(explain.watched(tmp_path / name, 3, 48)[0], common.frames_of({"frames": torch.from_numpy(x[:3])}, 48)) < 0.02, name


def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(tmp_path, circle, refused, monkeypatch):
    monkeypatch.setattr(explain, "load_vlm", None)
    (tmp_path / "words.mp4").write_text("no video")
    (tmp_path / "file").touch()

    def make(*flags):
        return lambda: explain.main([str(f) for f in flags])
    refused(make("--image", circle), "--ask")
    refused(make("--clip", circle), "--ask")
    refused(make("--ask", "Where?"), "--image", "--clip")
    refused(make("--ask", "Where?", "--image", circle, "--films", tmp_path), "--films")
    refused(make("--ask", "Where?", "--image", circle, "--mode", "describe"), "--mode")
    refused(make("--ask", " ", "--image", circle), "question")
    refused(make("--ask", "Where?", "--image", circle, "--clip", circle), "either")
    refused(make("--ask", "Where?", "--image", tmp_path / "none.jpg"), "none.jpg", "does not exist")
    refused(make("--ask", "Where?", "--image", tmp_path / "words.mp4"), "words.mp4", "cannot be read as a picture")
    refused(make("--ask", "Where?", "--clip", tmp_path / "none.mp4"), "none.mp4", "does not exist")
    refused(make("--ask", "Where?", "--clip", tmp_path / "words.mp4"), "words.mp4", "cannot be read as a video")
    refused(make("--ask", "Where?", "--clip", circle, "--frames", "3,8"), "--frames 3,8")
    refused(make("--ask", "Where?", "--image", circle, "--size", "0"), "--size 0")
    refused(make("--ask", "Where?", "--image", circle, "--out", tmp_path / "file" / "a.yaml"), "cannot write")
    refused(make("--ask", "Where?", "--image", circle, "--model", "tiny-dinov2"), "dinov2", "question")
    refused(make("--ask", "Where?", "--image", circle, "--model", "internvl2"), "internvl_chat")
    refused(make("--ask", "Where?", "--image", circle, "--model", "tinny"), "tiny")


@pytest.mark.slow
def test_make_demo_looks_at_a_photograph_films_it_and_watches_the_film(tmp_path):
    for name in ("common.py", "predict.py", "explain.py", "Makefile"):
        shutil.copy(common.HERE / name, tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/checkpoints").symlink_to(common.HERE / common.TINY)
    done = subprocess.run(["make", "demo", f"PY={sys.executable}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("never seen a photograph") == 1 and "results/demo/: coffee.png, coffee.mp4, coffee.gif" in done.stdout
    at = tmp_path / "results/demo"
    picture, made, watched = (common.load_yaml(at / name) for name in ("picture.yaml", "coffee.yaml", "film.yaml"))
    assert f"answer {picture['answer']}\n" in done.stdout and f"answer {watched['answer']}\n" in done.stdout and picture["answer"] and watched["answer"]
    x, height, width, _ = film(at / "coffee.mp4")
    assert (len(x), height, width) == (made["frames"], 256, 384) and watched["frames_used"] == list(range(9))
    photograph = common.frames_of({"frames": common.read_picture(at / "coffee.png")}, 64)[0]
    assert apart(x[0], photograph) < 0.08 < 0.2 < apart(x[0], photograph.flip(0))
