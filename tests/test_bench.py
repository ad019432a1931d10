"""The benchmarks at small sizes: every row's code, and the numbers that must be equal."""

import bench
import bench_gpu
import pytest
import rehearse
import torch

import common
import streaming


@pytest.mark.slow
def test_every_row_of_the_gpu_is_measured_and_what_must_be_equal_is(tmp_path):
    rows = bench_gpu.main(["--small", "--folder", str(tmp_path)])
    streams = {f"stream_{m}_{peer}" for m in ("cogvlm2", "internvl2") for peer in ("accelerate", "resident")}
    assert set(rows) == {"exit_forward", "exit_gemm"} | streams
    assert all(row["same_numbers"] and row["ratio"] > 0 and row["peer"] for row in rows.values())
    assert all(rows[name]["difference"] == 0 for name in streams)


@pytest.mark.slow
def test_a_run_of_some_rows_leaves_the_others_and_numbers_that_differ_end_it_with_1(tmp_path, monkeypatch):
    out, capture = tmp_path / "bench-gpu.yaml", streaming.capture
    before = {"stream_earlier": {"ratio": 1.0}}
    common.save_yaml(out, {"stage": "bench-gpu", "rows": before})
    monkeypatch.setattr(streaming, "capture", lambda *given: {p: 2 * x for p, x in capture(*given).items()})
    with pytest.raises(SystemExit, match="1"):
        bench_gpu.main(["--small", "--out", str(out), "exit"])
    after = common.load_yaml(out)["rows"]
    assert before.items() <= after.items() and not after["exit_forward"]["same_numbers"]


@pytest.mark.slow
def test_a_rehearsal_of_a_small_network_measures_about_what_is_predicted(tmp_path):
    rows = rehearse.main(["cogvlm2", "--small", "--folder", str(tmp_path)])
    assert all(0.8 < rows[f"cogvlm2_{key}"]["ratio"] < 1.25 for key in ("disk", "flops_cogvlm2")), rows
    assert rows["cogvlm2_ram"]["measured"] > 1e8 and not list(tmp_path.iterdir())


def test_without_a_gpu_it_asks_for_small(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: bench_gpu.main([]), "--small")


def test_a_ratio_is_the_median_of_the_rounds_and_an_aim_needs_equal_numbers():
    row = bench.row_of([1.0, 2.0, 4.0], [3.0, 4.0, 4.0], 2, True)
    assert (row["ratio"], row["met"], row["seconds"], row["peer_seconds"]) == (2, True, 2, 4)
    assert not bench.row_of([1.0], [1.9], 2, True)["met"] and not bench.row_of([1.0], [9.0], 2, False)["met"]
