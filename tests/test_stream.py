"""Weights in part and layer by layer: the same bits as the whole model at once, and no byte read that is not needed."""
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
from test_extract import GOLDEN, load, noise, refused, run, same_features, write_set

import common
import extract
from common import find_model, load_features, load_yaml, skeleton

ROOT = Path(__file__).resolve().parent.parent
FAMILIES = {"small_vlm": 80, "small_qwen2vl": 64, "small_qwen3vl": 64, "small_internvl": 48, "small_cogvlm2": 56, "small_dino": 48, "small_dinov3": 48, "small_siglip": 48,
            "small_owlvit": 48, "small_owlv2": 48, "small_vjepa2": 48, "small_kosmos2": 48, "small_florence2": 64, "small_grounding_dino": 64, "llava": 48, "llava_next": 96, "llava_onevision": 96}


@pytest.fixture
def folder_of(request):
    def find(which):
        return request.getfixturevalue("small_llavas")[which] if which.startswith("llava") else request.getfixturevalue(which)
    return find


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
def test_layer_by_layer_gives_the_bits_of_the_whole_model_at_once(folder_of, pictures, tmp_path, which):
    more = ("--size", FAMILIES[which], "--points", "all", "--batch", 4)
    whole = run(folder_of(which), pictures, tmp_path / "whole", *more)
    streamed = run(folder_of(which), pictures, tmp_path / "streamed", *more, "--stream")
    assert len(streamed["points"]) >= 5 and list(streamed["points"]) == list(whole["points"])
    assert streamed["run"]["streamed"] and not whole["run"]["streamed"]
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


@pytest.mark.parametrize("which", FAMILIES)
def test_weights_brought_one_by_one_compute_what_the_library_does_with_its_own_loading(folder_of, which):
    folder = folder_of(which)
    entry, frames = find_model(str(folder)), noise(2, FAMILIES[which])
    model, processor, weights = skeleton(entry, torch.float32)
    inputs_of, points, *_ = extract.family_of(model)(model, processor)
    extract.Network(model, weights, torch.device("cpu"), points, list(points)[-1]).fill([point[0] for name, point in points.items() if name.startswith(("vision.", "language."))])
    batch = inputs_of(frames)
    given = extract.on(batch, torch.device("cpu"), torch.float32)
    ours = extract.capture(model, given, {n: point[0] for n, point in points.items()})
    whole, inputs_of, points = load(folder)
    theirs = extract.capture(whole, given, {n: point[0] for n, point in points.items()})
    for n in points:  # not to the bit: where a weight lies in memory decides which kernel a product takes
        torch.testing.assert_close(ours[n], theirs[n], atol=1e-5, rtol=1e-5)
    assert all(torch.equal(x, whole.state_dict()[name]) for name, x in model.state_dict().items() if not x.is_meta)


@pytest.mark.parametrize("which", ["small_vlm", "small_internvl", "small_vjepa2"])
def test_clips_layer_by_layer(folder_of, clips, tmp_path, which):
    more = ("--size", 48, "--points", "all", "--batch", 2)
    run(folder_of(which), clips, tmp_path / "whole", *more)
    run(folder_of(which), clips, tmp_path / "streamed", *more, "--stream")
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN} is not there: checkpoints in the original layout come beside the repository, not in it")
def test_the_original_layout_of_internvl2_layer_by_layer(pictures, tmp_path):
    folder = GOLDEN / "internvl2-tiny-a"
    run(folder, pictures, tmp_path / "whole", "--points", "all")
    run(folder, pictures, tmp_path / "streamed", "--points", "all", "--stream")
    assert same_features(tmp_path / "whole", tmp_path / "streamed")


def test_dinov2s_gated_mlp_which_is_stored_as_one_matrix_is_split(tmp_path):
    from safetensors.torch import load_file
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=48, patch_size=8, use_swiglu_ffn=True))
    model.save_pretrained(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    assert any("weights_in" in name for name in load_file(tmp_path / "model.safetensors"))
    found, _, weights = skeleton(find_model(str(tmp_path)), torch.float32)
    common.fill(found, weights, weights.like)
    assert all(torch.equal(x, model.state_dict()[name]) for name, x in found.state_dict().items())


# ---------------------------------------------------------------- how much is read, and held

def size_in_file(folder, names):
    from safetensors.torch import load_file
    return sum(x.nbytes for name, x in load_file(folder / "model.safetensors").items() if names(name))


def test_an_early_exit_reads_neither_the_head_nor_the_layers_above(small_llavas, few, tmp_path):
    folder = small_llavas["llava"]
    whole = size_in_file(folder, lambda name: True)
    for points, left_out in (("language.0", ("lm_head", "layers.1.", "layers.2.")), ("vision.0", ("lm_head", "language_model.model.layers", "encoder.layers.1.", "encoder.layers.2."))):
        index = run(folder, few, tmp_path / points, "--size", 48, "--points", points)
        of_language = points == "language.0"
        unread = size_in_file(folder, lambda name, some=left_out, only=of_language: not (only and "vision" in name) and any(part in name for part in some))
        assert 0 < unread < whole and index["run"]["weights_read_gb"] * 1e9 == pytest.approx(whole - unread, rel=1e-5)


def test_a_stream_holds_one_layer_and_reads_the_next_ahead(small_vlm, pictures, tmp_path, monkeypatch):
    log, layer, read = [], extract.Network.layer, common.Weights.read

    def logged_layer(self, path, *args, **kwargs):
        there = [p for p in self.layers if not any(x.is_meta for x in self.model.get_submodule(p).parameters())]
        log.append(("run", path, there))
        return layer(self, path, *args, **kwargs)

    def logged_read(self, names):
        log.append(("read", names[0].rpartition(".")[0], threading.current_thread() is threading.main_thread()))
        yield from read(self, names)

    monkeypatch.setattr(extract.Network, "layer", logged_layer)
    monkeypatch.setattr(common.Weights, "read", logged_read)
    index = run(small_vlm, pictures, tmp_path / "out", "--size", 80, "--batch", 7, "--stream", "--points", "merger,language.1")
    runs, layers = [x for x in log if x[0] == "run"], ["model.visual.blocks.0", "model.visual.blocks.1", "model.visual.blocks.2", "model.language_model.layers.0", "model.language_model.layers.1"]
    assert [path for _, path, _ in runs] == [path for path in layers for _ in range(11)]  # 70 pictures, 7 at a time and never across two shards of 64
    assert all(there == [path] for _, path, there in runs)
    reads = [x for x in log if x[0] == "read"]
    assert len(reads) == 1 + 5 and reads[0][2] and not any(main for _, _, main in reads[1:])  # what is outside the stacks, then every layer once
    assert index["run"]["weights_read_gb"] * 1e9 == pytest.approx(size_in_file(small_vlm, lambda name: "layers.2." not in name), rel=1e-5)


def with_memory(monkeypatch, size):
    """Let there be this many bytes."""
    monkeypatch.setattr(extract, "memory_left", lambda device, most: size)


def test_what_does_not_fit_is_streamed_and_in_several_rounds_if_it_must(small_vlm, pictures, tmp_path, monkeypatch, capsys):
    more = ("--size", 80, "--points", "all", "--batch", 4)
    run(small_vlm, pictures, tmp_path / "whole", *more)
    once = run(small_vlm, pictures, tmp_path / "stream", *more, "--stream")
    model, processor, weights = skeleton(find_model(str(small_vlm)), torch.float32)
    points = extract.family_of(model)(model, processor)[1]
    network = extract.Network(model, weights, torch.device("cpu"), points, "language.2")
    least = network.bytes(network.largest(2))
    assert least < network.bytes(network.wanted)
    with_memory(monkeypatch, network.bytes(network.wanted))
    capsys.readouterr()
    several = run(small_vlm, pictures, tmp_path / "rounds", *more)
    assert "layer by layer" in capsys.readouterr().out and several["run"]["streamed"] and several["seconds_per_item"] is None
    assert several["run"]["weights_read_gb"] > 2 * once["run"]["weights_read_gb"]
    assert same_features(tmp_path / "whole", tmp_path / "stream") and same_features(tmp_path / "whole", tmp_path / "rounds")
    with_memory(monkeypatch, least - 1)
    assert "even layer by layer" in refused(capsys, "--model", small_vlm, "--data", pictures, "--out", tmp_path / "none", *more)
    assert not list((tmp_path / "none").rglob("*.*"))


def test_running_out_of_memory_on_the_way_halves_the_round_and_loses_nothing(small_vlm, pictures, tmp_path, monkeypatch):
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


def test_a_single_micro_batch_that_does_not_fit_is_refused_with_a_smaller_one(small_vlm, few, tmp_path, monkeypatch, capsys):
    def never(self, *args, **kwargs):
        raise torch.OutOfMemoryError("made up")

    monkeypatch.setattr(extract.Network, "layer", never)
    assert "--batch smaller than 6" in refused(capsys, "--model", small_vlm, "--data", few, "--out", tmp_path / "out", "--size", 80, "--stream", "--batch", 64)


def test_untrained_weights_by_name_are_the_same_in_any_order_and_depend_on_the_seed(small_cogvlm2, few, tmp_path, capsys):
    out = {seed: tmp_path / str(seed) for seed in (1, 2)}
    for seed in out:
        run(small_cogvlm2, few, out[seed], "--size", 56, "--random-init", "--stream", "--seed", seed)
    run(small_cogvlm2, few, tmp_path / "again", "--size", 56, "--random-init", "--stream", "--seed", 1, "--batch", 8)
    assert same_features(out[1], tmp_path / "again")
    one, two = (load_features(out[seed])[1]("language.2") for seed in out)
    assert one.std() > 0 and (one - two).abs().mean() > 0.01 * one.std()
    assert load_yaml(out[1] / "plan.yaml")["random_seed"] == "1, by name"


def test_an_error_in_a_layer_ends_the_run_and_leaves_no_thread(small_vlm, few, tmp_path, monkeypatch):
    before = threading.active_count()

    def broken(self, *args, **kwargs):
        raise ArithmeticError("made up")

    monkeypatch.setattr(extract.Network, "layer", broken)
    with pytest.raises(ArithmeticError, match="made up"):
        run(small_vlm, few, tmp_path / "out", "--size", 80, "--stream")
    deadline = time.time() + 5
    while threading.active_count() > before and time.time() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before and not (tmp_path / "out/index.yaml").exists()


def test_an_autoencoder_is_not_streamed_and_a_size_must_be_one(small_vae, small_dino, few, tmp_path, capsys):
    assert "leave --stream out" in refused(capsys, "--model", small_vae, "--data", few, "--out", tmp_path / "out", "--size", 32, "--stream")
    for size in ("15", "GB", "-1GB", "many"):
        assert "give one as 15GB" in refused(capsys, "--model", small_dino, "--data", few, "--out", tmp_path / "out", f"--max-memory={size}")
    assert "even layer by layer" in refused(capsys, "--model", small_dino, "--data", few, "--out", tmp_path / "out", "--size", 48, "--max-memory", "1MB")


@pytest.mark.parametrize("broken", ["cut", "gone"])
def test_a_checkpoint_in_several_files_one_of_which_is_broken_is_refused_before_anything_is_computed(small_vlm, few, tmp_path, capsys, broken):
    from transformers import AutoModelForImageTextToText, AutoProcessor
    AutoModelForImageTextToText.from_pretrained(small_vlm).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    AutoProcessor.from_pretrained(small_vlm).save_pretrained(tmp_path / "model")
    files = sorted(set(json.loads((tmp_path / "model/model.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(files) > 3
    run(tmp_path / "model", few, tmp_path / "whole", "--size", 80, "--points", "all")
    last = tmp_path / "model" / files[-2]
    last.write_bytes(last.read_bytes()[:-100]) if broken == "cut" else last.unlink()
    err = refused(capsys, "--model", tmp_path / "model", "--data", few, "--out", tmp_path / "out", "--size", 80, "--points", "all", "--stream")
    assert "copy the folder again" in err and not list((tmp_path / "out").rglob("*.*"))


# ---------------------------------------------------------------- killed at any moment

def command(model, data, out, *more):
    return [sys.executable, str(ROOT / "extract.py"), "--model", str(model), "--data", str(data), "--out", str(out), "--size", "80", "--points", "all", "--batch", "4", *more]


@pytest.mark.slow
def test_killed_at_five_moments_the_folder_is_never_read_as_whole_and_the_last_run_completes_it(small_vlm, tmp_path):
    data, out = write_set(tmp_path / "data", noise(200, 48)), tmp_path / "killed"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}}
    started = time.time()
    subprocess.run(command(small_vlm, data, tmp_path / "whole"), check=True, **quiet)
    took = time.time() - started
    moments = torch.rand(5, generator=torch.Generator().manual_seed(0)).mul(0.5).add(0.45).tolist()  # the first half is imports
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
    assert same_features(tmp_path / "whole", out) and load_features(out)[0]["ids"] == load_features(tmp_path / "whole")[0]["ids"]


@pytest.mark.slow
def test_a_rank_that_dies_leaves_a_folder_that_the_next_run_completes(small_vlm, tmp_path):
    data = write_set(tmp_path / "data", noise(200, 48))
    run(small_vlm, data, tmp_path / "whole", "--size", 80, "--points", "all", "--batch", 4)
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command(small_vlm, data, out)[1:]]
    process = subprocess.Popen(launch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list(out.glob("pooled/*.pt")) and time.time() < deadline:
        time.sleep(0.005)
    running = {int(p.parent.name): p.read_bytes().decode(errors="ignore") for p in Path("/proc").glob("[0-9]*/cmdline")}
    ranks = [pid for pid, text in running.items() if str(out) in text and "torch.distributed" not in text]
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0 and not (out / "index.yaml").exists()
    run(small_vlm, data, out, "--size", 80, "--points", "all", "--batch", 4)
    assert same_features(tmp_path / "whole", out)
