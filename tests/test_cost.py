"""What cost.py predicts is what networks compute, what extract.py writes, and what it says of a disk."""

import subprocess
import sys

import pytest
import torch
from published import COGVLM2
from test_families import SIDES, features, folder_of, load, noise
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model

import cost
import extract
import streaming
from cogvlm2 import CogVLM2
from common import HERE
from models import MODELS, find_model

# not: heads and scales with published widths alone; a size of a folder that its small network cannot take
OTHERS = "small_vae", "small_owlvit", "small_owlv2", "small_grounding_dino", "small_florence2"
WHICH = [which for which in SIDES if which not in OTHERS]


def counted(work):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("which", WHICH)
def test_flop_and_shapes_of_a_folder_are_those_of_its_network(request, which):
    folder = folder_of(request, which)
    entry, size, frames = find_model(str(folder)), SIDES[which], noise(1, SIDES[which])
    found, given = features(load(folder), frames)
    shapes = {point: (*x.shape[1:],) for point, x in found.items()}
    predicted = cost.shapes(entry, list(shapes), size)
    assert predicted == shapes | {"pixels": predicted["pixels"]}
    model, _, points, _ = load(folder)
    last = {"last": [*points.values()][-1][0]}
    measured = counted(lambda: streaming.capture(model.requires_grad_(False), given, last))
    assert cost.flop_of(entry, size) == pytest.approx(measured, rel=0.1)


def test_flop_of_published_networks_at_full_size():
    size = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 518}
    with torch.device("meta"):
        dino, cogvlm2 = Dinov2Model(Dinov2Config(**size)), CogVLM2(COGVLM2)
        rows = torch.empty(1, 2306 + 33, 4096), torch.arange(2306 + 33)[None]
    image = torch.empty(1, 3, 1344, 1344, device="meta")
    layer, no_expert = cogvlm2.model.layers[0], torch.zeros(1, 2306 + 33, dtype=torch.bool)
    measured = {"dinov2-l": counted(lambda: dino(image[..., :448, :448]))}
    measured["cogvlm2"] = counted(lambda: cogvlm2.model.vision(image))
    measured["cogvlm2"] += 32 * counted(lambda: layer(rows[0], no_expert, rows[1]))
    for name, flop in measured.items():
        assert cost.flop_of(find_model(name), MODELS[name]["size"]) == pytest.approx(flop, rel=0.02)


def test_bytes_on_disk_are_those_that_extraction_writes(shapes_folder, tmp_path):
    extract.main(["--data", str(shapes_folder), "--out", str(tmp_path)])
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.pt"))
    assert cost.disk_needed(find_model("tiny"), "quarters", 96, 1, 60) == pytest.approx(written, rel=0.05)


def test_gate1_of_cogvlm2_fits_reduced_and_names_what_helps_where_it_does_not():
    entry = find_model("cogvlm2")
    assert cost.cost_of(entry, reduce=256)[0]["targets"] == "met"
    total, _ = cost.cost_of(entry)
    assert total["disk_gb"] > 200 and "disk_gb" in total["targets"] and "REDUCE=256" in total["targets"]


def test_every_vlm_of_the_registry_has_a_price(capsys):
    rows = cost.cost_table()
    assert len(rows) == sum(e["kind"] == "vlm" and "params" in e for e in MODELS.values())
    assert all(row["t4_hours"] > row["a100_hours"] > 0 and row["disk_gb"] > 1 for row in rows)
    assert cost.print_cost(find_model("cogvlm2"), n=20, clips=10)["gate1_passes"] == 5 * 20 + 18 * 10
    out = capsys.readouterr().out
    assert "gate1_passes 280" in out and max(map(len, out.splitlines())) <= 110


def test_a_full_disk_an_unknown_point_and_a_model_without_a_gate_are_refused(tmp_path, refused):
    refused(lambda: cost.check_disk(tmp_path / "new", 1e18, "give REDUCE=256"), "new", "1e+09 GB", "=256")
    refused(lambda: cost.points_of(find_model("cogvlm2"), "vision.63"), "vision.63", "vision.62")
    refused(lambda: cost.cost_of(find_model("ltx")), "ltx", "encoder")


def test_importing_it_imports_no_transformers():
    code = "import sys, cost; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=HERE, check=True)
