"""Every stage runs on a GPU as on the CPU, and in either half precision.

A pretend device notes what CUDA would refuse. `make test-gpu` runs the same on a real one, in its precision.
"""

import contextlib
import functools
import importlib

import helpers
import helpers_pretend as pretend
import pytest
import torch
from helpers import adapter_world, plant_features, random_autoencoder, random_language_model, video_world
from test_extract import run as extract_features
from test_extract import write_set
from test_families import ROWS, SIDES, folder_of, noise
from test_tune import embedded, item
from test_verify import clips, planted_clips, write_planted

import adapt
import answering
import common
import data
import extract
import models
import tune

HOWS = ["pretended", pytest.param("gpu", marks=pytest.mark.gpu)]
HOWS += [pytest.param(half, marks=pytest.mark.slow) for half in ("bfloat16", "float16")]
MOST = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}  # error, of the norm of a feature
MISTAKES = {
    "add of [(2,)] on the CPU": lambda x: x + torch.ones(2),
    "uniform_ with a CPU generator": lambda x: x.uniform_(generator=torch.Generator()),
    "numpy()": lambda x: x.numpy(),
    "index of [(3,)] on the CPU": lambda x: torch.ones(3)[x.long()],
}


@contextlib.contextmanager
def on(how):
    """The device and precision of a test; afterwards nothing may have been refused."""
    if how == "pretended":
        with pretend.gpu() as refused:
            yield
        assert not refused, "\n".join(refused)
    else:
        with contextlib.nullcontext() if how == "gpu" else pretend.chosen("cpu", getattr(torch, how)):
            yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """call(write, *arguments): a folder that write(folder, *arguments) has filled on the CPU, once."""

    @functools.cache
    def call(write, *arguments):
        folder = tmp_path_factory.mktemp("made")
        with pretend.chosen("cpu"):
            write(folder, *arguments)
        return folder

    return call


@pytest.mark.parametrize("what", MISTAKES)
def test_the_pretend_device_notes_what_cuda_refuses_and_where(what):
    with pretend.gpu() as refused:
        x = torch.ones(2).to(pretend.DEVICE)
        assert (x * 2 + torch.tensor(1.0)).sum().item() == 6 and not refused
        MISTAKES[what](x)
    (place,) = refused
    assert place.startswith(what) and "test_device.py" in place


def pooled(folder, images, out, side, *more):
    extract_features(folder, images, out, "--size", side, "--points", "all", "--batch", "2", *more)
    found = common.load_pt(out / "pooled.pt", common.POOLED)["pooled"]
    return {point: torch.stack([rows["mean"], rows["max"]]) for point, rows in found.items()}


def in_fp32(folder, model, side, frames):
    write_set(folder / "data", noise(3, side, frames=frames))
    torch.save(pooled(model, folder / "data", folder / "features", side), folder / "pooled.pt")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("which", SIDES)
def test_features_are_those_of_the_cpu_whole_and_streamed(request, which, how, made, tmp_path):
    model, side = folder_of(request, which), SIDES[which]
    for frames, flag in ((1, []), (5, ["--stream"] * (which != "small_vae"))):
        expected = made(in_fp32, model, side, frames)
        with on(how):
            most = MOST[common.choose_device()[1]]
            found = pooled(model, expected / "data", tmp_path / str(frames), side, *flag)
        for point, y in torch.load(expected / "pooled.pt").items():
            assert (found[point] - y).norm() < most * y.norm(), (point, frames)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("which", ROWS)
def test_every_family_answers_about_clips(request, which, how):
    entry, frames = models.find_model(str(folder_of(request, which))), noise(2, SIDES[which], frames=2)
    with on(how):
        model, processor = models.load_vlm(entry, *common.choose_device()[:2])
        assert len(models.answers_to(model, processor, frames, "Where is it?", ([0, 1], 2), 4)) == 2


def clips_and_tokens(at):
    video_world(at)
    ids = common.Items(at / "data").ids
    plant_features(at / "tokens", ids, {"language.0": torch.randn(32, 2, 2, 2, 8)}, at / "data", size=32)


def trajectories(at):
    data.main(f"trajectories --n 40 --seed 21 --out {at}/data".split())
    items = common.load_items(at / "data")[0]
    helpers.planted_tracks(at / "tracks.pt", items, embedding=embedded(items))
    random_language_model(at / "language", 0)


def conversations(at):
    common.write_items(at / "data", [item(k) for k in range(16)], {"data": "synthetic", "name": "made-up"})
    data.main(f"shapes --n 20 --size 64 --out {at}/shapes".split())


def discs(at):
    common.write_items(at / "data", clips(24), {"name": "discs", "data": "synthetic"})
    random_autoencoder(patch_size=4, scaling=(True, False)).save_pretrained(at / "vae")
    write_planted(at / "planted", planted_clips(18))


def past_and_future(at):
    data.main(f"moving --n 30 --frames 9 --out {at}/clips".split())
    data.main(f"cut --clips {at}/clips --first 0 --frames 4 --out {at}/past".split())
    extract.main(f"--model tiny --data {at}/past --points language.0 --grids all --out {at}/features".split())


ONCE = "--epochs 1 --seeds 1"
ADAPT = f"--features AT/features --latents AT/latents --vae AT/vae --evaluator AT/evaluator {ONCE}"
LTX = "--model AT/ltx --evaluator AT/evaluator --data AT/data --frames 5 --size 32 --steps 1 --clips 2"
AHEAD = "--data AT/clips --features AT/features --size 32"
STAGES = {
    "adapt latents": (adapter_world, f"{ADAPT} --point rotated"),
    "adapt scaling": (adapter_world, f"{ADAPT} --point rotated --adapters mlp --warm 1"),
    "adapt prompt": (clips_and_tokens, f"--features AT/tokens --video AT/ltx {ONCE}"),
    "video continue": (clips_and_tokens, f"--past 3 --horizon 4 {LTX}"),
    "video coherence": (clips_and_tokens, f"--adapter AT/conditioning.pt --seeds 1 --strengths 0.5 {LTX}"),
    "tune words": (trajectories, f"--embeddings AT/tracks.pt --data AT/data --language AT/language {ONCE}"),
    "tune train": (conversations, "--model tiny --data AT/data --epochs 1 --accumulate 2 --checkpoint"),
    "track": (trajectories, "--model tiny-tracker --data AT/data"),
    "verify plant": (discs, "--data AT/data --vae AT/vae --past 4 --horizon 8"),
    "verify score": (discs, "--rollouts AT/planted"),
    "predict": (past_and_future, f"{AHEAD} --past 4 --variants lora --no-scaling {ONCE}"),
    "explain ask": (conversations, "--model tiny-cogvlm2 --data AT/shapes"),
}


# the others compute in fp32 whatever the precision
HALVES = [stage for stage in STAGES if stage not in ("adapt scaling", "track", "verify score")]
RUNS = [(stage, "pretended") for stage in STAGES]
RUNS += [(stage, half) for stage in HALVES for half in ("bfloat16", "float16")]
RUNS += [pytest.param(stage, "gpu", marks=pytest.mark.gpu) for stage in STAGES]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "how"), RUNS)
def test_every_stage_runs(stage, how, made, tmp_path, monkeypatch):
    monkeypatch.setattr(adapt, "REFERENCE_WIDTH", 200)  # smaller adapters, and fewer
    monkeypatch.setattr(adapt, "LADDER", (5, 10, 100))
    monkeypatch.setattr(tune, "LISTS", 2)
    monkeypatch.setattr(tune, "answered", functools.partial(answering.answered, most=4))
    script, *job = stage.split()
    write, line = STAGES[stage]
    folder, out = made(write), tmp_path / ("out.pt" if stage in ("track", "explain ask") else "out.yaml")
    main = importlib.import_module(script).main
    with on(how):
        found = main([*job, *line.replace("AT", str(folder)).split(), "--out", str(out)])
    numbers = [x for x in found.values() if isinstance(x, float)]
    assert torch.tensor(numbers).isfinite().all(), found
