"""Weights in part and layer by layer: the same bits as the whole model at once, and no byte read that is not needed."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from test_extract import GOLDEN, argv_of, folder_of, load, noise, refused, run, same_features, write_set

import extract
import families
import models
from common import load_features, load_yaml
from models import find_model, skeleton

ROOT = Path(__file__).resolve().parent.parent
ALL = ("--size", 80, "--points", "all", "--batch", 4)
FAMILIES = {"small_vlm": 80, "small_cogvlm2": 56, "llava": 48, "llava_next": 96, "llava_onevision": 96}
FAMILIES |= {f"small_{name}": 64 for name in ("qwen2vl", "qwen3vl", "florence2", "grounding_dino")}
FAMILIES |= {
    f"small_{name}": 48
    for name in ("internvl", "kosmos2", "dino", "dinov3", "siglip", "owlvit", "owlv2", "vjepa2")
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """70 pictures: two shards, the second of which ends in a micro-batch of two."""
    return write_set(tmp_path_factory.mktemp("data") / "pictures", noise(70, 48))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "few", noise(6, 48))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "clips", noise(5, 48, frames=4))


@pytest.mark.parametrize("which", FAMILIES)
def test_layer_by_layer_gives_the_bits_of_the_whole_model_at_once(request, pictures, tmp_path, which):
    folder, more = folder_of(request, which), ("--size", FAMILIES[which], "--points", "all", "--batch", 4)
    whole = run(folder, pictures, tmp_path / "whole", *more)
    streamed = run(folder, pictures, tmp_path / "streamed", *more, "--stream")
    assert len(streamed["points"]) >= 5 and list(streamed["points"]) == list(whole["points"])
    assert streamed["run"]["streamed"] and not whole["run"]["streamed"]
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


@pytest.mark.parametrize("which", FAMILIES)
def test_weights_brought_one_by_one_compute_what_the_library_does_with_its_own_loading(request, which):
    folder = folder_of(request, which)
    model, processor, weights = skeleton(find_model(str(folder)), torch.float32)
    inputs_of, points, *_ = families.family_of(model)(model, processor)
    network = extract.Network(model, weights, torch.device("cpu"), points, list(points)[-1])
    network.fill([point[0] for name, point in points.items() if name.startswith(("vision.", "language."))])
    given = families.on(inputs_of(noise(2, FAMILIES[which])), torch.device("cpu"), torch.float32)
    ours = extract.capture(model, given, {n: point[0] for n, point in points.items()})
    whole, inputs_of, points = load(folder)
    theirs = extract.capture(whole, given, {n: point[0] for n, point in points.items()})
    for n in points:  # not to the bit: where a weight lies in memory decides which kernel a product takes
        torch.testing.assert_close(ours[n], theirs[n], atol=1e-5, rtol=1e-5)
    assert all(
        torch.equal(x, whole.state_dict()[name]) for name, x in model.state_dict().items() if not x.is_meta
    )


@pytest.mark.parametrize("which", ["small_vlm", "small_internvl", "small_vjepa2"])
def test_clips_layer_by_layer(request, clips, tmp_path, which):
    folder, more = folder_of(request, which), ("--size", 48, "--points", "all", "--batch", 2)
    run(folder, clips, tmp_path / "whole", *more)
    run(folder, clips, tmp_path / "streamed", *more, "--stream")
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


@pytest.mark.skipif(
    not GOLDEN.is_dir(),
    reason=f"{GOLDEN} is not there: checkpoints in the original layout come beside the repository",
)
def test_the_original_layout_of_internvl2_layer_by_layer(pictures, tmp_path):
    for name, more in (("whole", ()), ("streamed", ("--stream",))):
        run(GOLDEN / "internvl2-tiny-a", pictures, tmp_path / name, "--points", "all", *more)
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


def test_dinov2s_gated_mlp_which_is_stored_as_one_matrix_is_split(tmp_path):
    from safetensors.torch import load_file
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Dinov2Model(Dinov2Config(**sizes, image_size=48, patch_size=8, use_swiglu_ffn=True))
    model.save_pretrained(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    assert any("weights_in" in name for name in load_file(tmp_path / "model.safetensors"))
    found, _, weights = skeleton(find_model(str(tmp_path)), torch.float32)
    models.fill(found, weights, weights.like)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in found.state_dict().items())


# ---------------------------------------------------------------- how much is read, and held


def size_in_file(folder, names):
    from safetensors.torch import load_file

    return sum(x.nbytes for name, x in load_file(folder / "model.safetensors").items() if names(name))


def test_an_early_exit_reads_neither_the_head_nor_the_layers_above(small_llavas, few, tmp_path):
    folder, last = small_llavas["llava"], "language_model.model.layers"
    unread = {
        "language.0": (f"{last}.1.", f"{last}.2.", "lm_head"),
        "vision.0": (last, "lm_head", "encoder.layers.1.", "encoder.layers.2."),
    }
    for point, parts in unread.items():
        index = run(folder, few, tmp_path / point, "--size", 48, "--points", point)
        read = size_in_file(folder, lambda name, parts=parts: not any(part in name for part in parts))
        assert 0 < read < size_in_file(folder, lambda name: True)
        assert index["run"]["weights_read_gb"] * 1e9 == pytest.approx(read, rel=1e-5)


def test_a_stream_holds_one_layer_and_reads_the_next_ahead(small_vlm, pictures, tmp_path, monkeypatch):
    runs = []
    reads = []
    layer = extract.Network.layer
    read = models.Weights.read

    def logged_layer(self, path, *args, **kwargs):
        there = [
            p for p in self.layers if not any(x.is_meta for x in self.model.get_submodule(p).parameters())
        ]
        runs.append((path, there))
        return layer(self, path, *args, **kwargs)

    def logged_read(self, names):
        reads.append(threading.current_thread() is threading.main_thread())
        yield from read(self, names)

    monkeypatch.setattr(extract.Network, "layer", logged_layer)
    monkeypatch.setattr(models.Weights, "read", logged_read)
    more = ("--size", 80, "--batch", 7, "--stream", "--points", "merger,language.1")
    index = run(small_vlm, pictures, tmp_path / "out", *more)
    layers = [f"model.visual.blocks.{i}" for i in range(3)] + [
        f"model.language_model.layers.{i}" for i in range(2)
    ]
    # 70 pictures, 7 at a time and never across two shards of 64
    assert [path for path, _ in runs] == [path for path in layers for _ in range(11)] and all(
        there == [path] for path, there in runs
    )
    # what is outside the stacks, then every layer once, in another thread
    assert reads == [True] + 5 * [False]
    read_bytes = size_in_file(small_vlm, lambda name: "layers.2." not in name)
    assert index["run"]["weights_read_gb"] * 1e9 == pytest.approx(read_bytes, rel=1e-5)


def test_what_does_not_fit_is_streamed_and_in_several_rounds_if_it_must(
    small_vlm, pictures, tmp_path, monkeypatch, capsys
):
    more = ("--size", 80, "--points", "all", "--batch", 4)
    run(small_vlm, pictures, tmp_path / "whole", *more)
    once = run(small_vlm, pictures, tmp_path / "stream", *more, "--stream")
    model, processor, weights = skeleton(find_model(str(small_vlm)), torch.float32)
    points = families.family_of(model)(model, processor)[1]
    network = extract.Network(model, weights, torch.device("cpu"), points, "language.2")
    whole, least = network.bytes(network.wanted), network.bytes(network.largest(2))
    assert least < whole
    monkeypatch.setattr(extract, "memory_left", lambda device, most: whole)
    several = run(small_vlm, pictures, tmp_path / "rounds", *more)
    assert several["run"]["streamed"] and several["seconds_per_item"] is None
    assert several["run"]["weights_read_gb"] > 2 * once["run"]["weights_read_gb"]
    assert same_features(tmp_path / "whole", tmp_path / "stream") and same_features(
        tmp_path / "whole", tmp_path / "rounds"
    )
    monkeypatch.setattr(extract, "memory_left", lambda device, most: least - 1)
    assert "even layer by layer" in refused(
        capsys, "--model", small_vlm, "--data", pictures, "--out", tmp_path / "none", *more
    )
    assert not list((tmp_path / "none").rglob("*.*"))


def test_running_out_of_memory_on_the_way_halves_the_round_and_loses_nothing(
    small_vlm, pictures, tmp_path, monkeypatch, capsys
):
    more = ("--size", 80, "--points", "all", "--batch", 4)
    run(small_vlm, pictures, tmp_path / "whole", *more)
    layer, failures = extract.Network.layer, iter([False] * 100 + [True])

    def sometimes(self, *args, **kwargs):
        if next(failures, False):
            raise torch.OutOfMemoryError("made up")
        return layer(self, *args, **kwargs)

    monkeypatch.setattr(extract.Network, "layer", sometimes)
    run(small_vlm, pictures, tmp_path / "streamed", *more, "--stream")
    assert same_features(tmp_path / "whole", tmp_path / "streamed")
    failures = itertools.repeat(True)  # not even one micro-batch fits; the largest is of 64
    out = tmp_path / "none"
    err = refused(capsys, *argv_of(small_vlm, pictures, out, "--size", 80, "--stream", "--batch", 64))
    assert "--batch smaller than" in err and not (out / "index.yaml").exists()


def test_untrained_weights_by_name_are_the_same_in_any_order_and_depend_on_the_seed(
    small_cogvlm2, few, tmp_path
):
    for name, seed, batch in (("one", 1, 4), ("again", 1, 8), ("two", 2, 4)):
        more = ("--random-init", "--stream", "--seed", seed, "--batch", batch)
        run(small_cogvlm2, few, tmp_path / name, "--size", 56, *more)
    assert same_features(tmp_path / "one", tmp_path / "again")
    one, two = (load_features(tmp_path / name)[1]("language.2") for name in ("one", "two"))
    assert one.std() > 0 and (one - two).abs().mean() > 0.01 * one.std()
    assert load_yaml(tmp_path / "one/plan.yaml")["random_seed"] == "1, by name"


def test_an_error_in_a_layer_ends_the_run_and_leaves_no_thread(small_vlm, few, tmp_path, monkeypatch):
    def broken(self, *args, **kwargs):
        raise ArithmeticError("made up")

    before = threading.active_count()
    monkeypatch.setattr(extract.Network, "layer", broken)
    with pytest.raises(ArithmeticError, match="made up"):
        run(small_vlm, few, tmp_path / "out", "--size", 80, "--stream")
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before and not (tmp_path / "out/index.yaml").exists()


def test_an_autoencoder_is_not_streamed_and_a_size_must_be_one(small_vae, small_dino, few, tmp_path, capsys):
    more = ("--data", few, "--out", tmp_path / "out")
    assert "leave --stream out" in refused(capsys, "--model", small_vae, *more, "--size", 32, "--stream")
    for size in ("15", "-1GB", "many"):
        assert "give one as 15GB" in refused(capsys, "--model", small_dino, *more, f"--max-memory={size}")
    assert "even layer by layer" in refused(
        capsys, "--model", small_dino, *more, "--size", 48, "--max-memory", "1MB"
    )


@pytest.mark.parametrize("broken", ["cut", "gone"])
def test_a_checkpoint_in_several_files_one_of_which_is_broken_is_refused_before_anything_is_computed(
    small_vlm, few, tmp_path, capsys, broken
):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, more = tmp_path / "model", ("--size", 80, "--points", "all")
    AutoModelForImageTextToText.from_pretrained(small_vlm).save_pretrained(folder, max_shard_size="60KB")
    AutoProcessor.from_pretrained(small_vlm).save_pretrained(folder)
    files = sorted(
        set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values())
    )
    assert len(files) > 3
    run(folder, few, tmp_path / "whole", *more)
    last = folder / files[-2]
    last.write_bytes(last.read_bytes()[:-100]) if broken == "cut" else last.unlink()
    err = refused(capsys, "--model", folder, "--data", few, "--out", tmp_path / "out", *more, "--stream")
    assert "copy the folder again" in err and not list((tmp_path / "out").rglob("*.*"))


# ---------------------------------------------------------------- killed at any moment


def command(model, data, out, *more):
    return [sys.executable, str(ROOT / "extract.py"), *argv_of(model, data, out, *ALL, *more)]


@pytest.mark.slow
def test_killed_at_five_moments_the_folder_is_never_read_as_whole_and_the_last_run_completes_it(
    small_vlm, tmp_path
):
    data, out = write_set(tmp_path / "data", noise(200, 48)), tmp_path / "killed"
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
    }
    started = time.time()
    subprocess.run(command(small_vlm, data, tmp_path / "whole"), check=True, **quiet)
    took = time.time() - started
    # the first half is imports
    moments = torch.rand(5, generator=torch.Generator().manual_seed(0)).mul(0.5).add(0.45).tolist()
    for k, moment in enumerate(moments):
        process = subprocess.Popen(command(small_vlm, data, out, *["--stream"] * (k % 2)), **quiet)
        time.sleep(took * moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if (out / "index.yaml").exists():
            assert same_features(tmp_path / "whole", out)  # it was faster than the kill
        else:
            with pytest.raises(SystemExit):
                load_features(out)
    subprocess.run(command(small_vlm, data, out, "--stream"), check=True, **quiet)
    assert (
        same_features(tmp_path / "whole", out)
        and load_features(out)[0]["ids"] == load_features(tmp_path / "whole")[0]["ids"]
    )


@pytest.mark.slow
def test_a_rank_that_dies_leaves_a_folder_that_the_next_run_completes(small_vlm, tmp_path):
    data = write_set(tmp_path / "data", noise(200, 48))
    run(small_vlm, data, tmp_path / "whole", "--size", 80, "--points", "all", "--batch", 4)
    out = tmp_path / "out"
    launch = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]]
    process = subprocess.Popen(
        [*launch, *command(small_vlm, data, out)[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.time() + 120
    while not list(out.glob("pooled/*.pt")) and time.time() < deadline:
        time.sleep(0.005)
    running = {
        int(p.parent.name): p.read_bytes().decode(errors="ignore")
        for p in Path("/proc").glob("[0-9]*/cmdline")
    }
    ranks = [pid for pid, text in running.items() if str(out) in text and "torch.distributed" not in text]
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0 and not (out / "index.yaml").exists()
    run(small_vlm, data, out, "--size", 80, "--points", "all", "--batch", 4)
    assert same_features(tmp_path / "whole", out)
