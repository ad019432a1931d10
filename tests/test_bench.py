"""The benchmarks at small sizes: every row's code, and the numbers that must be equal."""

import bench
import bench_gpu
import pytest
import torch

import common
import extract
import streaming


@pytest.mark.slow
def test_every_row_of_the_gpu_is_written_and_what_must_be_equal_is(tmp_path):
    out = tmp_path / "bench-gpu.yaml"
    bench_gpu.main(["--small", "--folder", str(tmp_path / "work"), "--out", str(out)])
    rows = common.load_yaml(out, "bench-gpu")["rows"]
    names = {"exit_forward", "exit_gemm", "memory_lora", "writing_free", "writing_thread"}
    streams = {f"stream_{m}_{peer}" for m in ("cogvlm2", "internvl2") for peer in ("accelerate", "resident")}
    assert set(rows) == names | streams
    for row in rows.values():
        assert row["same_numbers"] and row["ratio"] > 0 and row["small"]
        assert row["aim"] and row["what"] and row["peer"]
    assert all(rows[name]["difference"] == 0 for name in streams)


@pytest.mark.slow
def test_a_run_of_some_rows_leaves_the_others_and_numbers_that_differ_end_it_with_1(tmp_path, monkeypatch):
    out, capture = tmp_path / "bench-gpu.yaml", streaming.capture

    def wrong(*args):
        return {point: 2 * x for point, x in capture(*args).items()}

    bench_gpu.main(["--small", "--out", str(out), "memory"])
    before = common.load_yaml(out)["rows"]
    monkeypatch.setattr(extract, "capture", wrong)
    with pytest.raises(SystemExit, match="1"):
        bench_gpu.main(["--small", "--out", str(out), "exit"])
    after = common.load_yaml(out)["rows"]
    assert {name: after[name] for name in before} == before and not after["exit_forward"]["same_numbers"]


def test_without_a_gpu_it_asks_for_small(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: bench_gpu.main([]), "--small")


def test_a_ratio_is_the_median_of_the_rounds_and_an_aim_needs_equal_numbers():
    row = bench.row_of([1.0, 2.0, 4.0], [3.0, 4.0, 4.0], 2, True)
    assert (row["ratio"], row["met"], row["seconds"], row["peer_seconds"]) == (2, True, 2, 4)
    assert not bench.row_of([1.0], [1.9], 2, True)["met"] and not bench.row_of([1.0], [9.0], 2, False)["met"]
