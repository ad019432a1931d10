"""The MLP beside ridge, what probes are given, and their controls, on worlds whose answer is known: nulls first."""
import pytest
import torch

import common
import probe
from common import box_iou

N = 240
SPLIT = {"train": torch.arange(0, 144), "val": torch.arange(144, 192), "test": torch.arange(192, N)}


def generator(seed):
    return torch.Generator().manual_seed(seed)


def boxes_of(seed=0, n=N):
    g = generator(seed)
    corner = torch.rand(n, 2, generator=g) * 0.5
    return torch.cat([corner, corner + 0.2 + torch.rand(n, 2, generator=g) * 0.3], 1)


def constant(boxes):
    return box_iou(boxes[SPLIT["train"]].median(0).values, boxes[SPLIT["test"]]).mean().item()


def scored(x, boxes):
    found, parameters = probe.train_mlp(x[None], boxes, SPLIT, seeds=2)
    return box_iou(found[0][:, SPLIT["test"]], boxes[SPLIT["test"]]).mean().item(), parameters


def test_an_mlp_reads_what_is_there_and_no_more_and_declares_its_size():
    boxes = boxes_of()
    assert scored(torch.randn(N, 64, generator=generator(3)), boxes)[0] < constant(boxes) + 0.03
    x = torch.cat([boxes, torch.randn(N, 4, generator=generator(1))], 1) @ torch.randn(8, 8, generator=generator(2))
    score, parameters = scored(x, boxes)
    assert score > constant(boxes) + 0.1 and parameters == 8 * 64 + 64 + 64 * 4 + 4


def test_a_hidden_layer_reads_what_no_linear_map_can():
    """The sign of a product says which of two places the object is at."""
    g = generator(5)
    x = torch.randn(N, 2, generator=g)
    boxes = torch.where((x.prod(1) > 0)[:, None], torch.tensor([0.0, 0, 0.4, 0.4]), torch.tensor([0.6, 0.6, 1, 1])) + 0.0
    straight = common.ridge(x, {"y": boxes}, SPLIT["train"])["y"]
    assert box_iou(straight[SPLIT["test"]].clamp(0, 1), boxes[SPLIT["test"]]).mean() < 0.2 < 0.55 < scored(x, boxes)[0]


def test_shuffled_labels_are_those_of_the_training_items_dealt_anew():
    boxes = boxes_of()
    targets = probe.box_targets(boxes, SPLIT)
    assert set(targets) == {"true", *(f"shuffled{s}" for s in range(5))} and torch.equal(targets["true"], boxes)
    for wrong in (targets["shuffled0"], targets["shuffled4"]):
        assert torch.equal(wrong[144:], boxes[144:]) and not torch.equal(wrong[:144], boxes[:144])
        assert torch.equal(wrong[:144].sort(0).values, boxes[:144].sort(0).values)


def test_layers_and_seeds_that_train_together_are_each_alone():
    boxes, x = boxes_of(), torch.randn(3, N, 6, generator=generator(7))
    together, _ = probe.train_mlp(x, boxes, SPLIT, seeds=2, steps=40)
    alone = torch.stack([torch.stack([probe.train_mlp(a[None], boxes, SPLIT, seeds=2, steps=40, only=s)[0][0, 0] for s in range(2)]) for a in x])
    torch.testing.assert_close(together, alone, atol=2e-3, rtol=0)


def test_early_stopping_keeps_the_weights_of_the_lowest_validation_loss():
    """Labels of the training items alone are noise: the longer it trains, the worse; what is kept is no worse than the start."""
    boxes, x = boxes_of(), torch.randn(N, 64, generator=generator(9))
    short, long = (probe.box_loss(probe.train_mlp(x[None], boxes, SPLIT, seeds=2, steps=s)[0][0][:, SPLIT["val"]], boxes[SPLIT["val"]]).mean().item() for s in (20, 240))
    assert long <= short + 0.05


# ---------------------------------------------------------------- what probes read; controls

def test_principal_components_keep_what_a_ridge_reads():
    x, train = torch.randn(N, 30, generator=generator(1)) @ torch.randn(30, 400, generator=generator(2)), SPLIT["train"]
    y = x[:, :3].contiguous()
    parts = probe.components(*common.spectrum(probe.gram(x, train)[None], train), most=40)[0]
    assert parts.shape == (N, 40) and parts.square().mean() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(common.ridge(parts, {"y": y}, train)["y"], common.ridge(x, {"y": y}, train)["y"], atol=0.02, rtol=0.02)


@pytest.mark.parametrize("dim", [8, 300])
def test_tokens_are_brought_to_one_size(dim):
    x = torch.randn(40, 12, 12, dim, generator=generator(1))
    tokens, grid = probe.token_components(x, torch.arange(30))
    assert tokens.shape == (40, 36, probe.TOKEN) and grid == (6, 6) and tokens.isfinite().all()
    assert probe.token_components(x[:, :2, :3], torch.arange(30))[1] == (2, 3)


def test_the_class_constant_knows_the_name_and_no_more():
    left, right = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[20.0, 20, 30, 30]])
    items = [{"boxes": left if i % 2 else right, "labels": ["cup" if i % 2 else "cat"], "width": 32, "height": 32} for i in range(20)] + [{"boxes": left, "labels": ["dog"], "width": 32, "height": 32}]
    largest, _, _ = common.box_truth(items)
    found = probe.class_constant(items, largest, torch.arange(12))
    assert torch.equal(found[:20], largest[:20]) and torch.equal(found[20], largest[:12].median(0).values)  # an unknown name: everybody's constant


def test_another_items_features_say_nothing():
    boxes = boxes_of()
    record = probe.box_criterion({"oracle": probe.probe_boxes(boxes, boxes, SPLIT)}, boxes, SPLIT, [str(i) for i in range(48)])
    assert record["floors"]["shuffled_images"] < constant(boxes) + 0.02 < 0.9 < record["score"]


# ---------------------------------------------------------------- results side by side

def test_results_are_compared_item_by_item(tmp_path, refused):
    ids = [f"i{k}" for k in range(40)]
    base = torch.rand(40, generator=generator(0))
    for name, scores, size in (("low", base * 0.5, 64), ("same", base * 0.5, 96), ("high", base * 0.5 + 0.2, 128)):
        record = {"score": scores.mean(), "low": 0.0, "high": 1.0, "floor": 0.1, "layer": "merger"}
        common.save_yaml(tmp_path / name / "probe.yaml", {"stage": "probe", "model": "made-up", "criteria": {"bbox_iou": record, "spatial_iou": record}})
        common.save_pt(tmp_path / name / "probe.pt", common.RESULT, ids, {}, sources=ids, scores={"bbox_iou": scores, "spatial_iou": scores})
        common.save_yaml(tmp_path / name / "features" / "index.yaml", {"stage": "extract", "size": size, "points": {"merger": {"shape": [1, 6, 6, 8]}}})
    found = probe.main(["--compare", *(str(tmp_path / n) for n in ("low", "same", "high")), "--out", str(tmp_path / "compare.yaml")])
    rows = common.load_yaml(tmp_path / "compare.yaml", "probe-compare")["rows"]
    assert found["bbox_iou_best"] == "high" and rows["high"]["bbox_iou_gain"] == pytest.approx(0.2, abs=1e-5) and rows["high"]["bbox_iou_p_holm"] < 0.01
    assert rows["same"]["bbox_iou_gain"] == 0 and rows["same"]["bbox_iou_p_holm"] == 1 and rows["same"]["bbox_iou_grid"] == "6x6" and rows["same"]["size"] == 96
    refused(lambda: probe.main(["--compare", str(tmp_path / "low")]), "--compare", "two or more")
    common.save_pt(tmp_path / "same" / "probe.pt", common.RESULT, ids[::-1], {}, sources=ids, scores={"bbox_iou": base, "spatial_iou": base})
    refused(lambda: probe.main(["--compare", str(tmp_path / "low"), str(tmp_path / "same")]), "other items")


# ---------------------------------------------------------------- reconstruction

FEW = {"train": torch.arange(40), "val": torch.arange(40, 50), "test": torch.arange(50, 60)}


@pytest.fixture(scope="module")
def pictures():
    """Pictures of 8 x 8 coloured cells, and tokens that hold each cell's colour."""
    colours = torch.rand(60, 8, 8, 3, generator=generator(0))
    return colours.repeat_interleave(8, 1).repeat_interleave(8, 2).mul(255).round().byte(), colours


@pytest.mark.slow
def test_a_decoder_of_one_size_reads_colours_that_are_there_and_none_from_noise(pictures):
    frames, colours = pictures
    noise = torch.randn(60, 8, 8, 20, generator=generator(1))
    found, parameters = probe.train_decoder(torch.stack([probe.token_components(x, FEW["train"], side=8)[0] for x in (colours, noise)]), frames, FEW)
    assert found.shape == (2, 3, 60, 64, 64, 3) and parameters == probe.TOKEN * 128 + 128 + 128 * 8 * 8 * 3
    error = (found.float() - frames).abs().mean((1, 3, 4, 5))[:, FEW["test"]].mean(1)
    blank = (frames[:40].float().mean(0) - frames[50:]).abs().mean()
    assert error[0] < 0.4 * blank and 0.9 * blank < error[1] < 1.1 * blank


@pytest.mark.slow
def test_the_record_of_a_decoder_names_its_floors_its_controls_and_its_oracle(pictures):
    frames, colours = pictures
    others = {"mean_image": frames[:40].float().mean(0).byte().expand(10, -1, -1, -1), "blur": frames[50:]}  # blur is the picture itself here
    jobs = {"own": colours + 0.1 * torch.randn(60, 8, 8, 3, generator=generator(2)), "oracle": colours, "random_init": torch.randn(60, 8, 8, 5, generator=generator(3))}
    record, scores = probe.reconstruction(jobs, frames, others, {"ssim": (common.ssim, "higher", 1.0)}, FEW, [str(i) for i in range(10)], "merger", 0)["decoder_ssim"]
    assert set(record["floors"]) == {"mean_image", "shuffled_images"} and scores.shape == (3, 10) and record["score"] == pytest.approx(scores.mean().item())
    assert record["controls"]["random_init"] < record["score"] < record["ceiling"] < record["controls"]["blur"] == 1
    assert record["gain_low"] > 0 and "oracle" in record["ceiling_is"] and record["parameters"] > 0
