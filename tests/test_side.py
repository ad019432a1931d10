"""Two encoders side by side: the features of both, unchanged, on the coarser grid."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_extract import noise, refused, run, same_features, write_set

import extract
from common import load_features

ROOT = Path(__file__).resolve().parent.parent


def test_fusing_keeps_every_token_of_a_cell_at_its_place():
    fine = torch.arange(2 * 4 * 4.0).view(2, 1, 4, 4, 1)
    coarse = torch.arange(2 * 2 * 2.0).view(2, 1, 2, 2, 1)
    x = extract.fuse(fine, coarse)
    assert x.shape == (2, 1, 2, 2, 5) and x[1, 0, 0, 1].tolist() == [18, 19, 22, 23, 5]
    assert torch.equal(extract.fuse(coarse, fine)[..., 1:], x[..., :4])


def test_fusing_averages_where_grids_do_not_divide_and_over_time():
    fine, coarse = torch.arange(1.0, 4).view(1, 1, 1, 3, 1).expand(1, 4, 3, 3, 1), torch.zeros(1, 2, 2, 2, 3)
    x = extract.fuse(fine, coarse)
    assert x.shape == (1, 2, 2, 2, 4) and x[0, 0, 0, :, 0].tolist() == [1.5, 2.5]
    steps = torch.arange(4.0).view(1, 4, 1, 1, 1)
    assert extract.fuse(steps, torch.zeros(1, 2, 1, 1, 1))[0, :, 0, 0, 0].tolist() == [0.5, 2.5]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "pictures", noise(70, 48))


def test_both_models_are_in_it_and_the_parts_are_what_each_gives_alone(
    small_dino, small_vlm, pictures, tmp_path
):
    both, a, b = (tmp_path / name for name in ("both", "a", "b"))
    model, points = f"{small_dino}+{small_vlm}", ("--size", 48, "--points", "merger,language.1")
    index = run(model, pictures, both, *points)
    assert (
        index["model"] == "small-dino+small-vlm" and index["kind"] == "vlm" and index["seconds_per_item"] > 0
    )
    assert list(index["points"]) == ["pixels", "fused.merger", "fused.language.1"]
    run(small_dino, pictures, a, "--size", 48, "--points", "last")
    run(small_vlm, pictures, b, *points)
    assert same_features(a, both / "small-dino") and same_features(b, both / "small-vlm")
    fused, first, second = (load_features(folder)[1] for folder in (both, a, b))
    x = fused("fused.language.1")
    assert x.shape == (70, 1, 3, 3, 4 * 32 + 32) and torch.equal(x[..., 128:], second("language.1"))
    assert torch.equal(x[:, 0, 1, 2, 32:64], first("vision.2")[:, 0, 2, 5]) and torch.equal(
        fused("pixels"), second("pixels")
    )
    before = (both / "fused.merger/00000.pt").stat().st_mtime_ns
    run(model, pictures, both, *points)
    assert (both / "fused.merger/00000.pt").stat().st_mtime_ns == before


def test_clips_side_by_side_are_averaged_to_the_coarser_time_steps(small_dino, small_vlm, tmp_path):
    data = write_set(tmp_path / "clips", noise(3, 48, frames=4))
    run(f"{small_dino}+{small_vlm}", data, tmp_path / "both", "--size", 48, "--points", "merger")
    x, frames = (load_features(tmp_path / f)[1] for f in ("both", "both/small-dino"))
    assert x("fused.merger").shape[1] == 2
    torch.testing.assert_close(
        x("fused.merger")[:, 0, 0, 0, :32], frames("vision.2")[:, :2, 0, 0].mean(1), atol=2e-3, rtol=2e-3
    )


@pytest.mark.slow
def test_ranks_and_shards_side_by_side(small_dino, small_vlm, pictures, tmp_path):
    model, more = f"{small_dino}+{small_vlm}", ("--size", 48, "--points", "merger")
    run(model, pictures, tmp_path / "whole", *more)
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        ROOT / "extract.py",
    ]
    launch += ["--model", model, "--data", pictures, "--out", tmp_path / "ranks", *more]
    subprocess.run(
        [str(x) for x in launch],
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert "shards_missing" in run(model, pictures, tmp_path / "shards", *more, "--shard", "0/2")
    for shard in ("1/2", "0/2", "1/2"):  # each model apart first: the last to come finds all of both
        run(model, pictures, tmp_path / "shards", *more, "--shard", shard)
    whole, *others = (
        load_features(tmp_path / out)[1]("fused.merger") for out in ("whole", "ranks", "shards")
    )
    for x in others:
        torch.testing.assert_close(x, whole, atol=1e-3, rtol=1e-3)


def test_pairs_that_make_no_sense_are_refused(small_dino, small_kosmos2, pictures, tmp_path, capsys):
    more = ("--data", pictures, "--out", tmp_path / "out", "--size", 48)
    assert "names 3 models" in refused(capsys, "--model", "tiny+tiny-dinov2+tiny-vae", *more)
    assert "same model twice" in refused(capsys, "--model", f"{small_dino}+{small_dino}", *more)
    assert "none to stand beside" in refused(
        capsys, "--model", f"{small_dino}+{small_kosmos2}", *more, "--points", "merger"
    )
