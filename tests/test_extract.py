"""Features of the right items, a kill survived, layers streamed to the same bytes, what fits in memory."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_families import SIDES, TEMPORAL, features, folder_of, load, noise

import check
import cost
import extract
import families
import features as extraction
import models
import streaming
from common import HERE, load_features, load_items, load_yaml, save_yaml, split_of, with_grid, write_items
from models import MODELS, find_model


def write_set(folder, clips, **more):
    """A data folder of given frames: uint8 [n,T,H,W,3]."""
    items = []
    for k, x in enumerate(clips):
        item = {"id": f"i{k:04d}", "source": f"i{k:04d}", "height": x.shape[1], "width": x.shape[2]}
        items.append(item | {"frames": x.clone()})
    write_items(folder, items, {"data": "synthetic", "name": folder.name} | more)
    return folder


def run(model, data, out, *more):
    more = more if "--grids" in more else ("--grids", "all", *more)
    return extract.main([str(x) for x in ("--model", model, "--data", data, "--out", out, *more)])


def same_features(a, b):
    found = []
    for folder in (a, b):
        files = sorted(p for p in folder.glob("*/*.pt") if p.parent.name != "pooled")
        found.append([(p.relative_to(folder), p.read_bytes()) for p in files])
    return found[0] and found[0] == found[1]


def close(found, expected, tolerance=2e-3):
    """Equal within the precision of fp16."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def changed_dino(small_dino, folder, name, factor):
    shutil.copytree(small_dino, folder)
    weights = load_file(folder / "model.safetensors")
    (key,) = (k for k in weights if k.endswith(name))
    save_file(weights | {key: weights[key] * factor}, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "few", noise(6, 48))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """70 images: two shards, the second of which ends in a micro-batch of two."""
    return write_set(tmp_path_factory.mktemp("data") / "images", noise(70, 48))


VLM = ("--size", "80", "--points", "all", "--batch", "4")
SMALL = ("--size", "48", "--points", "all")


@pytest.fixture(scope="module")
def whole(small_vlm, images, tmp_path_factory):
    """(folder, index) of the small VLM on 70 images, all at once."""
    out = tmp_path_factory.mktemp("features") / "whole"
    return out, run(small_vlm, images, out, *VLM)


def test_the_index_describes_the_files_and_pooled_is_mean_and_maximum_of_the_grid(whole, images):
    out, index = whole
    _, read = load_features(out)
    pooled = torch.load(out / "pooled.pt", weights_only=True)
    names = ["pixels", "patch_embed", *(f"vision.{i}" for i in range(3)), "merger"]
    assert list(index["points"]) == names + [f"language.{i}" for i in range(3)] == list(pooled["pooled"])
    assert index["ids"] == pooled["ids"] == load_items(images)[1]["ids"]
    assert (index["items"], index["shards"], index["nonfinite"], index["weights"]) == (70, 2, 0, "unstated")
    assert 0 < index["seconds_per_item"] < 10 and index["run"]["micro_batch"] == 4
    for point, row in index["points"].items():
        x = read(point)
        assert row["bytes"] == sum(f.stat().st_size for f in (out / point).glob("*.pt")) > 0
        assert list(x.shape) == [70, *row["shape"]] and row["dtype"] == "float16"
        close(pooled["pooled"][point]["mean"], x.mean((2, 3)))
        close(pooled["pooled"][point]["max"], x.amax((2, 3)))


MARKED = {  # first frames of time steps; points with `causal: false`, with `grid: false`; side of the pixels
    "small_vjepa2": ([0, 2, 4], "vision.0 vision.1 vision.2", "", 6),
    "noncausal_vae": ([0, 1, 3], "latents latents-raw", "", 6),
    "small_vae": ([0, 1, 3], "", "", 6),
    "small_kosmos2": ([0], "", "merger language.0 language.1 language.2", 6),
    "small_grounding_dino": ([0], "", "", 2),
}


@pytest.mark.parametrize("which", MARKED)
def test_the_index_marks_later_frames_and_missing_grids(request, tmp_path, which):
    starts, late, gridless, side = MARKED[which]
    size, frames = 64 if which == "small_grounding_dino" else 48, 2 * len(starts) - which.endswith("vae")
    folder, clips = request.getfixturevalue(which), noise(2, size, frames=frames)
    data, out = write_set(tmp_path / "data", clips), tmp_path / "out"
    index = run(folder, data, out, "--size", size, "--points", "all")
    assert {p for p, row in index["points"].items() if row.get("causal") is False} == set(late.split())
    assert set(index["points"]) - set(with_grid(index)) == set(gridless.split())
    read = load_features(out)[1]
    starts = starts if which in TEMPORAL else range(frames)
    k, of_step = size // side, range(2 if which in TEMPORAL else 1)  # all frames of a step, the last repeated
    assert read("pixels").shape == (2, len(starts), side, side, len(of_step) * k**2 * 3)
    ends = [*starts[1:], frames]
    rows = [min(a + i, b - 1) for a, b in zip(starts, ends, strict=True) for i in of_step]
    second = clips[:, rows, :k, k : 2 * k].unflatten(1, (len(starts), -1))  # of the first row
    close(read("pixels")[:, :, 0, 1], second.flatten(2).float() / 255)
    for point, x in features(load(folder), clips)[0].items():
        close(read(point), x, 5e-3)


def test_tiles_are_the_size_of_the_whole_image_or_twice_that(small_llavas, few, tmp_path):
    for tiles, side in (("base", 6), ("all", 12)):
        index = run(small_llavas["llava_next"], few, tmp_path / tiles, "--tiles", tiles, "--points", "merger")
        assert index["points"]["merger"]["shape"] == [1, side, side, 32] and index["size"] == 8 * side


def test_random_weights_differ_from_the_checkpoint_and_depend_on_the_seed_alone(request, few, tmp_path):
    for which, point in (("small_vlm", "language.1"), ("small_vae", "latents")):
        x, out = {}, tmp_path / which
        for name, seed in (("trained", None), ("a", 1), ("b", 1), ("c", 2)):
            more = ("--random-init", "--seed", seed) if seed else ()
            ask = request.getfixturevalue(which), few, out / name, "--size", 48, "--points", point, *more
            assert (run(*ask)["weights"] == "random") == (name != "trained")
            x[name] = load_features(out / name)[1](point)
        assert torch.equal(x["a"], x["b"])
        assert (x["a"] - x["trained"]).abs().mean() > 0.01 and (x["a"] - x["c"]).abs().mean() > 0.01


def test_values_that_overflow_fp16_are_stored_in_fp32_and_non_finite_ones_counted(small_dino, few, tmp_path):
    for factor, finite in ((1e8, True), (float("inf"), False)):
        folder, out = tmp_path / f"model{finite}", tmp_path / f"out{finite}"
        changed_dino(small_dino, folder, "layer.2.layer_scale2.lambda1", factor)
        index = run(folder, few, out, "--size", 48)
        stored = torch.load(out / "vision.2/00000.pt", weights_only=True)["features"]
        row = index["points"]["vision.2"]
        bad = int((~stored.isfinite()).sum())
        assert row["nonfinite"] == index["nonfinite"] == bad and (bad == 0) == finite
        assert (row["dtype"] == "float32") == finite and (stored.nan_to_num(posinf=0).max() > 65504) == finite
        assert index["points"]["vision.1"]["nonfinite"] == 0
        assert index["points"]["vision.1"]["dtype"] == "float16"


def test_a_residual_stream_that_overflows_fp16_is_computed_again_in_fp32(
    small_dino, few, tmp_path, monkeypatch
):
    changed_dino(small_dino, tmp_path / "model", "layer.1.layer_scale2.lambda1", 3e6)
    ask = tmp_path / "model", few, *("--size", 48, "--points", "all", "--batch", 3)
    run(ask[0], ask[1], tmp_path / "fp32", *ask[2:])
    half = torch.device("cpu"), torch.float16, "as on a T4"
    monkeypatch.setattr(extract, "choose_device", lambda asked: half)
    for way in ([], ["--stream"]):
        index = run(ask[0], ask[1], tmp_path / f"fp16{len(way)}", *ask[2:], *way)
        assert (index["nonfinite"], index["run"]["dtype"]) == (0, "mixed")
        for point in ("vision.0", "vision.2"):
            expected = load_features(tmp_path / "fp32")[1](point)
            found = load_features(tmp_path / f"fp16{len(way)}")[1](point)
            assert (found - expected).norm() < 5e-3 * expected.norm()


def test_of_clips_only_means_are_stored_and_tokens_where_they_are_asked_for(small_vlm, tmp_path):
    data = write_set(tmp_path / "data", noise(3, 48, frames=4))
    ask = small_vlm, data, ("--size", 64, "--points", "all")
    whole = run(*ask[:2], tmp_path / "whole", *ask[2])
    index = run(*ask[:2], tmp_path / "out", *ask[2], "--grids", "middle")
    folders = {p.name for p in (tmp_path / "out").iterdir() if p.is_dir()}
    assert folders == {"pooled", "language.1"} and with_grid(index) == ["language.1"]
    assert {row["stored"] for p, row in index["points"].items() if p != "language.1"} == {"pooled"}
    assert list(index["points"]) == list(whole["points"])
    both = [
        torch.load(tmp_path / name / "pooled.pt", weights_only=True)["pooled"] for name in ("whole", "out")
    ]
    torch.testing.assert_close(*both, atol=0, rtol=0)


def test_a_model_of_single_images_sees_few_frames_of_a_clip_and_a_frozen_clip_once(
    small_dino, tmp_path, monkeypatch
):
    clips, seen, inputs_of = noise(3, 48, frames=6), [], extraction.inputs_of

    def noted(job, frames):
        seen.append(frames.shape[1])
        return inputs_of(job, frames)

    monkeypatch.setattr(extraction, "inputs_of", noted)
    frozen = write_set(tmp_path / "frozen", clips[:, :1].expand(-1, 6, -1, -1, -1))
    more = ("--size", 48, "--single-frames", 3)
    moving = run(small_dino, write_set(tmp_path / "data", clips), tmp_path / "out", *more)
    assert moving["shown"] == [[0, 2, 5]] * 3 and moving["points"]["vision.0"]["shape"][0] == 3
    run(small_dino, frozen, tmp_path / "all", *more)
    index = load_yaml(frozen / "index.yaml")
    save_yaml(frozen / "index.yaml", index | {"freeze": "first"})
    run(small_dino, frozen, tmp_path / "one", *more)
    assert seen == [3, 3, 1]  # frames of a clip, of one that is not known to be frozen, of one that is
    a, b = (load_features(tmp_path / name)[1] for name in ("all", "one"))
    assert all(torch.equal(a(p), b(p)) for p in ("pixels", "vision.2"))


def test_tokens_are_stored_as_few_numbers_by_one_map_of_train_items(shapes_folder, small_dino, tmp_path):
    ask = small_dino, shapes_folder, ("--size", 48, "--points", "all")
    run(*ask[:2], tmp_path / "full", *ask[2])
    more = *ask[2], "--reduce", 12
    for shard in ("0/2", "1/2", "0/2"):  # both parts read the map of the one that came first
        index = run(*ask[:2], tmp_path / "apart", *more, "--shard", shard)
    assert index["reduced"] == 12 and index["points"]["vision.1"]["shape"] == [1, 6, 6, 12]
    run(*ask[:2], tmp_path / "one", *more)
    assert same_features(tmp_path / "apart", tmp_path / "one")
    stored = torch.load(tmp_path / "one/reduce.pt", weights_only=True)
    items, _ = load_items(shapes_folder)
    assert stored["ids"] == [i["id"] for i in items if split_of(i["source"]) == "train"]
    full, reduced = (load_features(tmp_path / name)[1]("vision.1") for name in ("full", "one"))
    one = stored["maps"]["vision.1"]
    close(reduced, (full - one["mean"]) @ one["directions"], 1e-2)
    # the Gram matrix of images is kept
    grams = [(x.flatten(1) - x.flatten(1).mean(0)) for x in (full, reduced)]
    a, b = (x @ x.T for x in grams)
    assert (a - b).norm() < 0.1 * a.norm()


def test_a_shard_holds_fewer_items_where_they_are_large(small_dino, images, tmp_path, monkeypatch):
    run(small_dino, images, tmp_path / "one", *SMALL)
    monkeypatch.setattr(extract, "IN_MEMORY", 1e5)
    sizes = {"vision.0": (1, 6, 6, 32), "vision.1": (1, 6, 6, 32)}
    monkeypatch.setattr(cost, "shapes", lambda *settings: sizes)
    index = run(small_dino, images, tmp_path / "several", *SMALL)
    assert index["shards"] == 4
    a, b = (load_features(tmp_path / name)[1] for name in ("one", "several"))
    assert all(torch.equal(a(p), b(p)) for p in index["points"])


def test_shards_computed_apart_give_the_same_bytes_as_one_process(small_vlm, images, whole, tmp_path):
    out = tmp_path / "out"
    assert run(small_vlm, images, out, *VLM, "--shard", "0/2") == {"shards_missing": 1}
    assert not (out / "index.yaml").exists()
    with pytest.raises(SystemExit):
        load_features(out)
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/00000.pt")}
    index = run(small_vlm, images, out, *VLM, "--shard", "1/2")
    assert index["items"] == 70 and same_features(out, whole[0])
    assert before == {p: p.stat().st_mtime_ns for p in before}


@pytest.mark.slow
def test_killed_after_a_shard_the_next_run_of_two_ranks_completes_the_folder(small_vlm, tmp_path):
    data, out = write_set(tmp_path / "data", noise(260, 48)), tmp_path / "killed"
    flags = *VLM, "--reduce", "12"
    run(small_vlm, data, tmp_path / "whole", *flags)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launch, HERE / "extract.py", "--model", small_vlm, "--data", data, "--out", out, *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 120
    while not list(out.glob("pooled/*.pt")) and time.time() < deadline:
        time.sleep(0.002)
    ranks = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for rank in ranks:  # each leads a session of its own
        rank.kill()
    assert process.wait(timeout=120) != 0 and not (out / "index.yaml").exists()
    done = [p for shard in out.glob("pooled/*.pt") for p in out.glob(f"*/{shard.name}")]
    before = {p: p.stat().st_mtime_ns for p in done}
    subprocess.run(command, check=True)
    assert before and before == {p: p.stat().st_mtime_ns for p in before}
    assert same_features(tmp_path / "whole", out)


MISTAKES = {  # flags (with names of fixtures): words of the message
    "--model small_vjepa2 --size 96": "give --size 48",
    "--model small_dino --size 50": "give 48",
    "--model small_dino --tiles all": "--tiles is for llava_next",
    "--model small_dino --data nowhere": "nowhere/index.yaml does not exist",
    "--model small_dino --revision v2": "--revision v2 is for the hub",
    "--model tiny-ltx": "give its autoencoder, tiny-vae",
    "--model tiny --points patch_embed,L3": "llava, llava_next, llava_onevision",
    "--model small_dino --shard 2/2": "--shard '2/2'",
    "--model small_vae --size 32 --stream": "leave --stream out",
    "--model small_dino --max-memory=-1GB": "give one as 15GB",
    "--model small_dino --max-memory=1MB": "even layer by layer",
    "--model small_dino --questions QUESTIONS": "causal language model",
    "--model small_vlm --questions QUESTIONS --stream": "leave --stream out",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_refused(request, few, tmp_path, refused, questions, line):
    flags = line.replace("QUESTIONS", str(questions)).split()
    names = [folder_of(request, n) if n.startswith(("small", "llava")) else n for n in flags[1].split("+")]
    flags[1], out = "+".join(map(str, names)), tmp_path / "out"
    size = [] if "--size" in line or "--tiles" in line else ["--size", "48"]
    refused(lambda: extract.main(["--data", str(few), *flags, *size, "--out", str(out)]), MISTAKES[line])
    assert "+" in line or not list(out.rglob("*.*"))


def test_other_settings_in_the_same_out_are_refused(small_dino, few, tmp_path, refused, questions):
    run(small_dino, few, tmp_path / "out", "--size", 48)
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*") if p.is_file()}
    other = tmp_path / "elsewhere" / small_dino.name
    changed_dino(small_dino, other, "layer.0.mlp.fc1.weight", 2)
    items = write_set(tmp_path / "other", noise(7, 48))
    changes = {"size": ("--size", 64), "points": ("--points", "vision.0"), "items": ("--data", items)}
    changes |= {"weights": ("--random-init",), "checkpoint": ("--model", other), "batch": ("--batch", 3)}
    changes |= {"questions": ("--questions", questions)}
    for what, change in changes.items():
        ask = small_dino, few, tmp_path / "out", "--size", 48, *change
        refused(lambda ask=ask: run(*ask), f"extracted with {what} ")
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").rglob("*.*") if p.is_file()}
    run(small_dino, few, tmp_path / "out", "--size", 48, "--points", "vision.0", "--overwrite")
    folders = sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir())
    assert folders == ["pixels", "pooled", "vision.0"]


@pytest.mark.parametrize("which", [which for which in SIDES if which not in ("small_vlm", "small_vae")])
def test_layer_by_layer_gives_the_bytes_of_the_whole_model_at_once(request, tmp_path, which):
    folder, size = folder_of(request, which), SIDES[which]
    temporal = which in ("small_internvl", "small_vjepa2")
    data = write_set(tmp_path / "data", noise(5, 48, frames=4 if temporal else 1))
    more = ("--size", size, "--points", "all", "--batch", 2)
    whole = run(folder, data, tmp_path / "whole", *more)
    streamed = run(folder, data, tmp_path / "streamed", *more, "--stream")
    assert len(streamed["points"]) >= 5 and list(streamed["points"]) == list(whole["points"])
    assert streamed["run"]["streamed"] and not whole["run"]["streamed"]
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


def test_a_stream_holds_one_layer_and_reads_the_next_ahead(small_vlm, images, tmp_path, monkeypatch):
    runs, reads, layer, read = [], [], streaming.Network.layer, models.Weights.read

    def logged_layer(self, path, *args, **kwargs):
        first = {p: next(self.model.get_submodule(p).parameters()) for p in self.layers}
        runs.append((path, [p for p in self.layers if not first[p].is_meta]))
        return layer(self, path, *args, **kwargs)

    def logged_read(self, names):
        reads.append(threading.current_thread() is threading.main_thread())
        yield from read(self, names)

    monkeypatch.setattr(streaming.Network, "layer", logged_layer)
    monkeypatch.setattr(models.Weights, "read", logged_read)
    more = ("--size", 80, "--batch", 7, "--stream", "--points", "merger,language.1")
    index = run(small_vlm, images, tmp_path / "out", *more)
    layers = [f"model.visual.blocks.{i}" for i in range(3)]
    layers += [f"model.language_model.layers.{i}" for i in range(2)]
    # 70 images, 7 at a time and never across two shards of 64
    assert runs == [(path, [path]) for path in layers for _ in range(11)]
    # what is outside the stacks, then every layer once, in another thread
    assert reads == [True] + 5 * [False]
    weights = load_file(small_vlm / "model.safetensors")
    expected = sum(x.nbytes for name, x in weights.items() if "layers.2." not in name)
    assert index["run"]["weights_read_gb"] * 1e9 == pytest.approx(expected, rel=1e-5)


def test_what_does_not_fit_is_streamed_in_rounds(small_vlm, images, whole, tmp_path, monkeypatch):
    once = run(small_vlm, images, tmp_path / "stream", *VLM, "--stream")
    monkeypatch.setattr(extract, "activations", lambda job: 0)
    held = 2 * whole[1]["bytes"] * 64 / 70  # of two shards
    monkeypatch.setattr(extract, "memory_left", lambda device, asked: 3.5e5 + held)
    several = run(small_vlm, images, tmp_path / "rounds", *VLM)
    assert several["run"]["streamed"] and several["seconds_per_item"] is None
    assert several["run"]["weights_read_gb"] > 2 * once["run"]["weights_read_gb"]
    assert same_features(whole[0], tmp_path / "stream") and same_features(whole[0], tmp_path / "rounds")


def test_after_an_exhausted_memory_nothing_stays_and_the_round_is_halved(
    small_vlm, images, whole, tmp_path, monkeypatch
):
    layer, calls, inputs, alive = streaming.Network.layer, [], [], []
    start = streaming.Pass.__init__

    def sometimes(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 101:
            raise torch.OutOfMemoryError("made up")
        return layer(self, *args, **kwargs)

    def noted(self, forward, given):
        if len(calls) == 101 and not alive:  # the next round begins
            alive.append(sum(ref() is not None for ref in inputs))
        inputs.append(weakref.ref(given["pixel_values"]))
        start(self, forward, given)

    monkeypatch.setattr(streaming.Network, "layer", sometimes)
    monkeypatch.setattr(streaming.Pass, "__init__", noted)
    gc.disable()
    try:
        run(small_vlm, images, tmp_path / "halved", *VLM, "--stream")
    finally:
        gc.enable()
    assert alive == [0] and same_features(whole[0], tmp_path / "halved")


def test_streamed_untrained_weights_depend_on_name_and_seed_in_any_order(small_cogvlm2, few, tmp_path):
    for name, seed, batch in (("one", 1, 4), ("again", 1, 8), ("two", 2, 4)):
        more = ("--random-init", "--stream", "--seed", seed, "--batch", batch)
        run(small_cogvlm2, few, tmp_path / name, "--size", 56, *more)
    assert same_features(tmp_path / "one", tmp_path / "again")
    one, two = (load_features(tmp_path / name)[1]("language.2") for name in ("one", "two"))
    assert one.std() > 0 and (one - two).abs().mean() > 0.01 * one.std()


QUESTIONS = ["Where is the red circle?", "What moves?", "Is a blue square to the left of the green one?"]


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.txt").write_text("\n\n".join(QUESTIONS))
    return tmp_path / "questions.txt"


def last_rows(folder, frames, monkeypatch):
    """{point: [n, questions, D]} of the last row in a full pass for every question."""
    found, (model, processor) = [], models.load_vlm(find_model(str(folder)))
    for question in QUESTIONS:
        monkeypatch.setattr(families, "PROMPT", question)
        inputs_of, points, *_ = families.family_of(model)(model, processor)
        layers = {n: point[0] for n, point in points.items() if n.startswith("language.")}
        given = families.on(inputs_of(frames), torch.device("cpu"), torch.float32)
        found.append({n: x[:, -1] for n, x in streaming.capture(model, given, layers).items()})
    monkeypatch.undo()
    return {n: torch.stack([f[n] for f in found], 1) for n in layers}


ASKED = ["llava", "llava_next", "llava_onevision", "small_internvl", "small_cogvlm2"]
ASKED += ["small_vlm", "small_qwen2vl", "small_qwen3vl"]
CASES = [(which, SIDES[which], 1) for which in ASKED]
CASES += [("small_vlm", 64, 4), ("small_qwen3vl", 64, 4), ("small_internvl", 48, 3)]


@pytest.mark.parametrize("which, size, frames", CASES)
def test_a_question_is_a_full_pass(request, questions, tmp_path, monkeypatch, which, size, frames):
    folder, clips = folder_of(request, which), noise(5, size, frames=frames)
    data = write_set(tmp_path / "data", clips)
    more = ("--points", "all", "--size", size, "--batch", 2)
    points = run(folder, data, tmp_path / "plain", *more)["points"]
    index = run(folder, data, tmp_path / "asked", *more, "--questions", questions)
    plain, asked = load_features(tmp_path / "plain")[1], load_features(tmp_path / "asked")[1]
    for point in points:
        close(plain(point), asked(point))
    expected = last_rows(folder, clips, monkeypatch)
    assert len(expected) == 3
    for layer, x in expected.items():
        point = layer.replace("language", "question")
        row = index["points"][point]
        assert row["shape"][1:] == [1, 3, x.shape[-1]] and row["grid"] is False
        close(asked(point).flatten(0, 1)[:, 0], x)  # of each frame, where frames are single images
        # both the question and the image matter
        assert (x[:, 0] - x[:, 1]).abs().max() > 0.01 and (x[0] - x[1]).abs().max() > 1e-3


def test_the_list_imports_no_heavy_library_and_says_what_it_derives():
    code = "import sys, extract; extract.main(['--list']); assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    head, *lines, _ = done.stdout.splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == list(MODELS)
    found = {x: rows["qwen2.5-vl-7b"][head.index(x) :].split("  ")[0].strip() for x in head.split()}
    expected = {"points": "patch_embed vision.0-31 merger language.0-27", "tokens": "1024/256", "px": "448"}
    expected |= {"kB": "2621/1835", "GB_whole": "15.5", "params_B": "8.29", "licence": "Apache 2.0"}
    assert expected.items() <= found.items(), found
    row = cost.registry_row(MODELS["cogvlm2"])
    streamed = 2 * (0.739 + 2 * 0.436) + 1 + 32 * 9216 * 1792 / 1e9
    assert float(row["GB_streamed"]) == pytest.approx(streamed, rel=0.02) and streamed < 15


def test_a_checkpoint_is_compared_with_its_library(small_vlm, small_cogvlm2, capsys, monkeypatch):
    ask = ["--check", "--size", "80", "--model", str(small_vlm)]
    assert set(extract.main(ask).values()) == {"PASS"}
    assert "PASS  hidden_states: 4 layers" in capsys.readouterr().out
    assert "hidden_states" not in extract.main([*ask, "--stream"])
    extract.main(["--check", "--size", "56", "--model", str(small_cogvlm2)])
    run_once = check.run_once

    def one_layer_off(*given):
        found, streamed = run_once(*given)
        found.features["language.0"] *= 1.01
        return found, streamed

    monkeypatch.setattr(check, "run_once", one_layer_off)
    with pytest.raises(SystemExit, match="1"):
        extract.main(ask)
    assert "FAIL  hidden_states" in capsys.readouterr().out
