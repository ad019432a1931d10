"""The GPU's benchmark at small sizes: every row's code, and what must be equal is."""

import bench_gpu
import pytest
import torch

from common import load_yaml


@pytest.mark.slow
def test_every_row_is_written_and_what_must_be_equal_is(tmp_path):
    out = tmp_path / "bench-gpu.yaml"
    bench_gpu.main(["--small", "--folder", str(tmp_path / "work"), "--out", str(out)])
    rows = load_yaml(out, "bench-gpu")["rows"]
    windows = {f"windows_{'bfloat16' if torch.cuda.is_available() else 'float32'}", "windows_float32"}
    streams = {
        f"stream_{model}_{how}" for model in ("cogvlm2", "internvl2") for how in ("accelerate", "resident")
    }
    others = {"exit_forward", "exit_gemm", "memory_lora", "writing_free", "writing_thread"}
    assert set(rows) == windows | streams | others
    for row in rows.values():
        assert (
            row["same_numbers"]
            and row["ratio"] > 0
            and row["aim"]
            and row["what"]
            and row["peer"]
            and row["small"]
        )
    assert all(rows[name]["difference"] == 0 for name in streams)


@pytest.mark.slow
def test_a_run_of_some_rows_leaves_the_others_and_numbers_that_differ_end_it_with_1(tmp_path, monkeypatch):
    out, right = tmp_path / "bench-gpu.yaml", torch.nn.functional.scaled_dot_product_attention

    def wrong(q, k, v, **more):  # where windows are a batch
        return right(q, k, v, **more) * (1 + (len(q) > 1))

    bench_gpu.main(["--small", "--out", str(out), "exit"])
    before = load_yaml(out)["rows"]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", wrong)
    with pytest.raises(SystemExit, match="1"):
        bench_gpu.main(["--small", "--out", str(out), "windows"])
    after = load_yaml(out)["rows"]
    assert {name: after[name] for name in before} == before and not after["windows_float32"]["same_numbers"]


def test_without_a_gpu_it_asks_for_small(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: bench_gpu.main([]), "--small")
