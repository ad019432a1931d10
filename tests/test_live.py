"""One's own pictures: read upright and whole, made into a film that holds them, asked about, and answered word by word."""

import io
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from PIL import Image

import claims
import common
import explain
import media
import metrics
import models
import synthetic
import video


def drawn(path, shape, colour, cx=30, cy=30, radius=20):
    """A picture in the style of data.py: one shape of 96 px on grey."""
    thing = {"shape": shape, "radius": radius, "cx": cx, "cy": cy, "angle": 0, "texture": 0}
    thing["rgb"] = synthetic.COLOURS[colour]
    Image.fromarray(synthetic.draw([thing], np.full((96, 96, 3), 120, np.float32))[0]).save(path)
    return str(path)


@pytest.fixture(scope="module")
def circle(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp("drawn") / "circle.png", "circle", "blue")


@pytest.fixture(scope="module")
def clips():
    """Clips of 9 frames, 64 px, in which an object moves before a still background."""
    moving = [i for i in synthetic.moving(60, 64, 913) if i["direction"] != "still" and not any(i["camera"])]
    return metrics.windows(moving, 9, 64)


@pytest.fixture
def ask(capsys):
    """ask(question, *flags): (explain.py's result, what it printed)."""

    def run(question, *flags):
        capsys.readouterr()
        return explain.main(["ask", "--question", question, *map(str, flags)]), capsys.readouterr().out

    return run


def saved(folder, item, *numbers):
    """Frames of a clip as PNG files."""
    paths = [str(folder / f"{k}.png") for k in numbers]
    for path, k in zip(paths, numbers, strict=True):
        Image.fromarray(item["frames"][k].numpy()).save(path)
    return paths


def made(folder, item, *numbers, prompt=""):
    """What video.py says of the film out.mp4 that it makes of frames of a clip."""
    flags = ["--prompt", prompt, "--video", str(folder / "out.mp4")]
    return video.main(["animate", "--image", *saved(folder, item, *numbers), *flags])


def film(path, size=64):
    """(frames uint8 [T, size, size, 3] of an mp4, their height, width, frames a second), read by PyAV."""
    with av.open(str(path)) as file:
        rate = float(file.streams.video[0].average_rate)
        frames = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)])
    return media.frames_of({"frames": torch.from_numpy(frames)}, size), *frames.shape[1:3], rate


def gone(item, x):
    """Which way a clip's object goes in a film that begins with the clip's first frame, by its colour there."""
    mask = item["mask"][0] == len(item["names"])
    return claims.heading(claims.whereabouts(torch.cat([item["frames"][:1], x])[None], mask[None])[:, 1:])[0]


def apart(a, b):
    """Mean absolute difference, colours in 0..1."""
    return (a.float() - b.float()).abs().mean().item() / 255


# ---------------------------------------------------------------- pictures


def test_a_picture_stands_as_its_exif_says(tmp_path):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:20, :30], upright[20:, 30:] = (250, 20, 20), (20, 20, 250)
    stored = {2: np.fliplr(upright), 3: np.rot90(upright, 2), 6: np.rot90(upright), 8: np.rot90(upright, -1)}
    for orientation, x in stored.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(x)).save(tmp_path / "a.jpg", exif=exif, quality=95)
        found = media.read_picture(tmp_path / "a.jpg")
        assert apart(found, torch.from_numpy(upright)[None]) < 0.03, orientation


def test_pictures_of_every_kind_become_rgb(tmp_path):
    grey = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1))
    truth = torch.from_numpy(grey)[None, ..., None].expand(1, 48, 64, 3)
    colour = Image.fromarray(np.stack([grey] * 3, 2))
    for name, kind in (("a.png", "L"), ("b.gif", "P"), ("c.tif", "CMYK"), ("d.jpg", "YCbCr")):
        (colour.quantize(256) if kind == "P" else colour.convert(kind)).save(tmp_path / name)
        assert apart(media.read_picture(tmp_path / name), truth) < 0.02, kind
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert apart(media.read_picture(tmp_path / "deep.png"), truth) == 0
    see_through = np.zeros((8, 8, 4), np.uint8)
    see_through[:4] = 10, 200, 10, 255
    Image.fromarray(see_through).save(tmp_path / "cut.png")
    x = media.read_picture(tmp_path / "cut.png")[0]
    assert x[0, 0].tolist() == [10, 200, 10] and x[7, 0].tolist() == [255, 255, 255]


# ---------------------------------------------------------------- films


@pytest.mark.slow
def test_a_film_begins_with_the_picture_and_is_written_three_times(tmp_path, clips, capsys):
    item, other = clips[0], clips[1]
    found = made(tmp_path, item, 0, prompt=claims.caption(item))
    said = capsys.readouterr().out
    x, *shape = film(tmp_path / "out.mp4")
    assert len(x) == found["frames"] == 9
    assert shape == [256, 256, 2] == [found[k] for k in ("height", "width", "fps")]
    vae, _ = models.load_video_vae(models.find_model("tiny-vae"))
    firsts = [models.encode_films(vae, i["frames"][None, :1]) for i in (item, other)]
    through, wrong = (models.decode_films(vae, z)[0, 0] for z in firsts)
    assert apart(x[0], through) < 0.02 < 0.06 < apart(x[0], wrong)
    assert apart(x[0], x[8]) > 0.005  # it moves
    gif = Image.open(tmp_path / "out.gif")
    assert gif.n_frames == 9 and gif.size == (256, 256) and gif.info["duration"] == 500
    first = media.frames_of({"frames": torch.from_numpy(np.array(gif.convert("RGB")))[None]}, 64)[0]
    assert apart(first, x[0]) < 0.02
    facts = common.load_yaml(tmp_path / "out.yaml", "video")
    assert facts["mode"] == "animate" and facts["weights"] == "small" and facts["shown_at"] == [0]
    for key in ("video", "gif", "frames", "seconds", "model", "weights"):
        assert f"\n{key} {facts[key]}\n" in said
    before = (tmp_path / "out.mp4").read_bytes()
    made(tmp_path, item, 0, prompt=claims.caption(item))
    assert (tmp_path / "out.mp4").read_bytes() == before and not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_films_go_the_way_that_the_prompt_says(tmp_path, clips):
    ways = []
    for item in clips[:10]:
        made(tmp_path, item, 0, prompt=claims.caption(item))
        ways.append(gone(item, film(tmp_path / "out.mp4")[0]))
    asked = [i["direction"] for i in clips[:10]]  # twins follow one another: the same scene, another way
    assert (
        sum(a == b for a, b in zip(ways, asked, strict=True))
        >= 5
        > 1
        >= sum(a == asked[k ^ 1] for k, a in enumerate(ways))
    )


def test_several_pictures_stand_evenly_up_to_the_middle_and_what_follows_is_predicted(tmp_path, clips):
    item, ways, ends = clips[2], {}, {}
    for numbers in ((0,), (0, 4), (0, 2, 4)):
        found = made(tmp_path, item, *numbers)
        assert found["shown_at"] == list(numbers) and found["prompt"] == ""
        x = film(tmp_path / "out.mp4")[0]
        ways[len(numbers)] = gone(item, x)
        ends[len(numbers)] = apart(x[8], item["frames"][8])
    # one picture does not tell where it goes
    assert ways[2] == ways[3] == item["direction"] and ends[1] > 1.3 * max(ends[2], ends[3])


def test_a_film_gets_the_shape_of_the_picture_back_in_even_sides(tmp_path):
    x = torch.zeros(3, 64, 64, 3, dtype=torch.uint8)
    x[:, :32, :32], x[1] = 200, 90
    assert video.save_film(tmp_path / "a.mp4", x, (61, 50), 12.5) == (312, 256)
    y, height, width, rate = film(tmp_path / "a.mp4")
    assert (height, width, rate) == (312, 256, 12.5) and len(y) == 3 and apart(y, x) < 0.02
    assert video.save_film(
        tmp_path / "b.mp4", torch.zeros(2, 320, 320, 3, dtype=torch.uint8), (10, 10), 25
    ) == (320, 320)


MISTAKES = """
video animate --image FOLDER/none.jpg | FOLDER/none.jpg does not exist
video animate --image CIRCLE FOLDER/words.mp4 | words.mp4 cannot be read as a picture
video animate --image CIRCLE --video tiny-ltx | --video tiny-ltx
video animate --prompt a | --image
video animate --image CIRCLE --video FOLDER/words.mp4/x.mp4 | cannot write
video animate --image CIRCLE CIRCLE CIRCLE CIRCLE CIRCLE CIRCLE | first 5
video animate --image CIRCLE --frames 12 | 2k+1
video animate --image CIRCLE --model tiny-vae | is a vae
explain ask --clip CIRCLE | --question
explain ask --question Where? --image CIRCLE --films FOLDER | --films
explain ask --question Where? --image CIRCLE --clip CIRCLE | either
explain ask --question Where? --image FOLDER/words.mp4 | words.mp4 cannot be read as a picture
explain ask --question Where? --clip FOLDER/words.mp4 | words.mp4 cannot be read as a video
explain ask --question Where? --clip CIRCLE --frames 3,8 | --frames 3,8
explain ask --question Where? --image CIRCLE --size 0 | --size 0
explain ask --question Where? --image CIRCLE --model internvl2 | internvl_chat
explain ask --question Where? --image CIRCLE CIRCLE --model small_kosmos2 | one picture at a time
explain ask --question Where? --clip CIRCLE --model small_cogvlm2 | one picture at a time"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_a_mistake_is_refused_before_anything_is_loaded(
    line, tmp_path, circle, refused, monkeypatch, request
):
    monkeypatch.setattr(video, "load_video_pipeline", None)
    monkeypatch.setattr(explain, "load_vlm", None)
    (tmp_path / "words.mp4").write_text("neither a picture nor a video")
    command, _, words = line.replace("FOLDER", str(tmp_path)).replace("CIRCLE", circle).partition(" | ")
    stage, *flags = [
        str(request.getfixturevalue(f)) if f.startswith("small_") else f for f in command.split()
    ]
    refused(lambda: {"video": video, "explain": explain}[stage].main(flags), words)


# ---------------------------------------------------------------- questions


@pytest.mark.parametrize(
    "model", ["tiny", "tiny-semantic", "tiny-llava-next", "tiny-internvl2", "tiny-cogvlm2"]
)
def test_every_small_model_names_what_is_drawn(model, circle, ask, tmp_path):
    found, printed = ask(
        "What is in the picture?", "--image", circle, "--model", model, "--out", tmp_path / "a.yaml"
    )
    assert found["answer"] == "a blue circle" and found["tokens"] >= 3 and found["weights"] == "small"
    assert [line.strip() for line in printed.splitlines()].count("a blue circle") == 1
    assert "\nanswer a blue circle\n" in printed
    assert common.load_yaml(tmp_path / "a.yaml", "explain")["images"] == [circle]
    star = drawn(tmp_path / "star.png", "star", "yellow")
    other, _ = ask("What is in the picture?", "--image", star, "--model", model)
    assert "yellow" in other["answer"] and "blue" not in other["answer"]


def test_several_pictures_are_asked_about_together_and_are_no_clip(tmp_path, circle, ask, small_qwen3vl):
    star = drawn(tmp_path / "star.png", "star", "red", cx=60, cy=60)
    for model in ("tiny", "tiny-internvl2"):
        found, _ = ask("What is in the picture?", "--image", circle, star, "--model", model)
        assert found["frames"] == 2
        assert {"blue circle", "red star"} <= set(found["answer"].removeprefix("a ").split(" and a ")), model
    for name in ("tiny", str(small_qwen3vl)):
        model, processor = models.load_vlm(models.find_model(name))
        frames = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
        album, clip = (models.put_to(model, processor, frames, "Where?", *at) for at in ((), (([0, 1], 2),)))
        assert len(album["image_grid_thw"]) == 2 and "video_grid_thw" not in album
        assert len(clip["video_grid_thw"]) == 1 and "image_grid_thw" not in clip


def test_words_are_printed_while_the_model_still_computes(circle, monkeypatch):
    steps, written, load = [], [], models.load_vlm

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
    found = explain.main(["ask", "--image", circle, "--question", "What is in the picture?"])
    monkeypatch.undo()
    at = [next(step for step, text in written if text.strip() == word) for word in ("a", "blue", "circle")]
    assert found["tokens"] == len(steps) == 4
    assert 0 < at[0] < at[1] < at[2] == len(steps)  # the last word may still grow until the end is known
    assert "".join(text for step, text in written if step > 0).startswith("a blue circle\n")


@pytest.mark.parametrize("folder", ["small_kosmos2", "small_florence2", "small_cogvlm2", "small_qwen2vl"])
def test_the_other_families_take_one_picture(folder, request, circle, ask):
    path = request.getfixturevalue(folder)
    found, printed = ask("Describe the picture.", "--image", circle, "--model", path)
    streamed = printed.split("\nstage explain")[0].split("\n", 1)[1]
    assert 1 <= found["tokens"] <= explain.MOST + 2 and found["answer"].split() == streamed.split()


# ---------------------------------------------------------------- questions about films


@pytest.mark.slow
def test_a_written_clip_is_understood_forwards_and_backwards(tmp_path, ask):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    said = []
    for item in [i for i in synthetic.moving(60, 64, 913) if i["direction"] in opposite][:3]:
        there = item["direction"]
        for frames, way in ((item["frames"], there), (item["frames"].flip(0), opposite[there])):
            video.save_film(tmp_path / "a.mp4", frames, (64, 64), 2)
            found, _ = ask(item["turns"][0][0], "--clip", tmp_path / "a.mp4", "--frames", "17")
            said.append(found["answer"] == way)
            assert found["frames_used"] == list(range(17)) and found["size"] == 64
    assert sum(said) >= 5


def test_a_clip_of_video_is_read_by_explain(tmp_path, clips, ask):
    made(tmp_path, clips[0], 0, 4)
    for name in ("out.mp4", "out.gif"):
        found, printed = ask(clips[0]["turns"][0][0], "--clip", tmp_path / name)
        assert found["frames_used"] == list(range(9)) and f"answer {found['answer']}" in printed
        assert found["answer"] in {w for row in claims.WORDS["direction"] for w in row}
    x = explain.watched(tmp_path / "out.mp4", 16, 64)[0]
    assert torch.equal(x, film(tmp_path / "out.mp4")[0])


def test_of_a_long_video_frames_are_spread_evenly_and_its_own_rate_is_told(tmp_path):
    x = (torch.arange(40, dtype=torch.uint8) * 6)[:, None, None, None].expand(40, 64, 64, 3).contiguous()
    video.save_film(tmp_path / "long.mp4", x, (64, 128), 10)
    frames, (numbers, length, rate) = explain.watched(tmp_path / "long.mp4", 5, 32)
    assert (numbers, length, rate) == ([0, 10, 20, 29, 39], 40, 10) and frames.shape == (5, 32, 32, 3)
    assert [round(f.float().mean().item() / 6) for f in frames] == numbers
    every = explain.watched(tmp_path / "long.mp4", 40, 32)[1]
    assert every == (list(range(40)), 40, 2)  # ten a second would share positions in time
    processor = models.load_vlm(models.find_model("tiny"))[1]
    clip = torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8)
    # two frames to a step
    for at, seconds in ((([0, 2, 4, 6], 8, 10.0), 0.4), (([0, 2, 4, 6], 8), 2.0), (None, 1.0)):
        given = models.qwen_inputs(processor, clip, "Where?", at)
        assert float(given["second_per_grid_ts"][0]) == pytest.approx(seconds)


@pytest.mark.slow
def test_make_demo_looks_at_a_photograph_films_it_and_watches_the_film(tmp_path):
    for path in (*common.HERE.glob("*.py"), common.HERE / "Makefile"):
        shutil.copy(path, tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    (tmp_path / "results/tiny/checkpoints").symlink_to(common.HERE / models.TINY)
    make = ["make", "demo", f"PY={sys.executable}"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("never seen a photograph") == 1
    assert "results/demo/: coffee.png, coffee.mp4, coffee.gif" in done.stdout
    at = tmp_path / "results/demo"
    picture, coffee, watched = (
        common.load_yaml(at / f"{name}.yaml") for name in ("picture", "coffee", "film")
    )
    assert all(
        found["answer"] and f"answer {found['answer']}\n" in done.stdout for found in (picture, watched)
    )
    x, height, width, _ = film(at / "coffee.mp4")
    assert (len(x), height, width) == (coffee["frames"], 256, 384)
    assert watched["frames_used"] == list(range(9))
    photograph = media.frames_of({"frames": media.read_picture(at / "coffee.png")}, 64)[0]
    assert apart(x[0], photograph) < 0.08 < 0.2 < apart(x[0], photograph.flip(0))
