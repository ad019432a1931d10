"""The GPU's benchmark at small sizes: every row's code, and what must be equal is."""
import bench_gpu
import pytest
import torch

from common import load_yaml


@pytest.mark.slow
def test_every_row_is_written_and_what_must_be_equal_is(tmp_path, capsys):
    out = tmp_path / "bench-gpu.yaml"
    bench_gpu.main(["--small", "--folder", str(tmp_path / "work"), "--out", str(out)])
    rows = load_yaml(out, "bench-gpu")["rows"]
    ours = "float32" if not torch.cuda.is_available() else "bfloat16"
    assert {"windows_float32", f"windows_{ours}", "exit_forward", "exit_gemm", "stream_cogvlm2_accelerate", "stream_cogvlm2_resident", "stream_internvl2_accelerate", "stream_internvl2_resident",
            "memory_lora", "writing_free", "writing_thread"} == set(rows)
    assert all(row["same_numbers"] and row["ratio"] > 0 and row["aim"] and row["what"] and row["peer"] and row["small"] for row in rows.values())
    assert all(rows[name]["difference"] == 0 for name in rows if name.startswith("stream"))
    assert (tmp_path / "work/cogvlm2-small/model.safetensors.index.json").is_file()
    printed = capsys.readouterr().out
    assert all(any(line.startswith(f"{name} ") and " aim " in line for line in printed.splitlines()) for name in rows)


@pytest.mark.slow
def test_a_run_of_some_rows_leaves_the_others_and_numbers_that_differ_end_it_with_1(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench-gpu.yaml"
    bench_gpu.main(["--small", "--out", str(out), "exit"])
    before = load_yaml(out)["rows"]
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", lambda q, k, v, attention=torch.nn.functional.scaled_dot_product_attention, **more:
                        attention(q, k, v, **more) * (1 + (len(q) > 1)))  # wrong where windows are a batch
    with pytest.raises(SystemExit) as stop:
        bench_gpu.main(["--small", "--out", str(out), "windows"])
    assert stop.value.code == 1 and "windows_float32" in capsys.readouterr().err
    after = load_yaml(out)["rows"]
    assert {name: after[name] for name in before} == before and not after["windows_float32"]["same_numbers"]


def test_without_a_gpu_it_asks_for_small(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(lambda: bench_gpu.main([]), "--small")
