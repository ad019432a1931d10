"""The MLP beside ridge, what probes are given, and their controls, on worlds whose answer is known: nulls first."""

import pytest
import torch

import common
import metrics
import probe
import stats
from metrics import box_iou

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
    both = torch.cat([boxes, torch.randn(N, 4, generator=generator(1))], 1)
    x = both @ torch.randn(8, 8, generator=generator(2))
    score, parameters = scored(x, boxes)
    assert score > constant(boxes) + 0.1 and parameters == 8 * 64 + 64 + 64 * 4 + 4


def test_a_hidden_layer_reads_what_no_linear_map_can():
    """The sign of a product says which of two places the object is at."""
    g = generator(5)
    x = torch.randn(N, 2, generator=g)
    boxes = torch.tensor([[0.6, 0.6, 1, 1], [0.0, 0, 0.4, 0.4]])[(x.prod(1) > 0).long()]
    straight = stats.ridge(x, {"y": boxes}, SPLIT["train"])["y"].clamp(0, 1)
    assert box_iou(straight, boxes)[SPLIT["test"]].mean() < 0.2 and scored(x, boxes)[0] > 0.55


def test_shuffled_labels_are_those_of_the_training_items_dealt_anew():
    boxes = boxes_of()
    targets = probe.box_targets(boxes, SPLIT)
    assert set(targets) == {"true", *(f"shuffled{s}" for s in range(5))}
    assert torch.equal(targets["true"], boxes)
    for wrong in (targets["shuffled0"], targets["shuffled4"]):
        assert torch.equal(wrong[144:], boxes[144:]) and not torch.equal(wrong[:144], boxes[:144])
        assert torch.equal(wrong[:144].sort(0).values, boxes[:144].sort(0).values)


def test_layers_and_seeds_that_train_together_are_each_alone():
    boxes, x = boxes_of(), torch.randn(3, N, 6, generator=generator(7))
    together, _ = probe.train_mlp(x, boxes, SPLIT, seeds=2, steps=40)
    for k in range(3):
        for seed in range(2):
            alone = probe.train_mlp(x[k : k + 1], boxes, SPLIT, seeds=2, steps=40, only=seed)[0][0, 0]
            torch.testing.assert_close(together[k, seed], alone, atol=2e-3, rtol=0)


def test_early_stopping_keeps_the_weights_of_the_lowest_validation_loss():
    """Labels of the training items alone are noise: the longer it trains, the worse; what is kept is no worse than the start."""
    boxes, x = boxes_of(), torch.randn(N, 64, generator=generator(9))
    short, long = (
        probe.train_mlp(x[None], boxes, SPLIT, seeds=2, steps=s)[0][0][:, SPLIT["val"]] for s in (20, 240)
    )
    assert (
        probe.box_loss(long, boxes[SPLIT["val"]]).mean()
        <= probe.box_loss(short, boxes[SPLIT["val"]]).mean() + 0.05
    )


# ---------------------------------------------------------------- what probes read; controls


def test_principal_components_keep_what_a_ridge_reads():
    x = torch.randn(N, 30, generator=generator(1)) @ torch.randn(30, 400, generator=generator(2))
    train = SPLIT["train"]
    y = x[:, :3].contiguous()
    parts = probe.components(*stats.spectrum(probe.gram(x, train)[None], train), most=40)[0]
    assert parts.shape == (N, 40) and parts.square().mean() == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(
        stats.ridge(parts, {"y": y}, train)["y"], stats.ridge(x, {"y": y}, train)["y"], atol=0.02, rtol=0.02
    )


@pytest.mark.parametrize("dim", [8, 300])
def test_tokens_are_brought_to_one_size(dim):
    x = torch.randn(40, 12, 12, dim, generator=generator(1))
    tokens, grid = probe.token_components(x, torch.arange(30))
    assert tokens.shape == (40, 36, probe.TOKEN) and grid == (6, 6) and tokens.isfinite().all()
    assert probe.token_components(x[:, :2, :3], torch.arange(30))[1] == (2, 3)


def test_the_class_constant_knows_the_name_and_no_more():
    left, right = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[20.0, 20, 30, 30]])
    cup, cat, dog = (
        {"boxes": b, "labels": [name], "width": 32, "height": 32}
        for b, name in ((left, "cup"), (right, "cat"), (left, "dog"))
    )
    items = [cat, cup] * 10 + [dog]
    largest, _, _ = metrics.box_truth(items)
    found = probe.class_constant(items, largest, torch.arange(12))
    # an unknown name: everybody's constant
    assert torch.equal(found[:20], largest[:20]) and torch.equal(found[20], largest[:12].median(0).values)


def test_another_items_features_say_nothing():
    boxes = boxes_of()
    found = {"oracle": probe.probe_boxes(boxes, boxes, SPLIT)}
    record = probe.box_criterion(found, boxes, SPLIT, [str(i) for i in range(48)])
    assert record["floors"]["shuffled_images"] < constant(boxes) + 0.02 < 0.9 < record["score"]


# ---------------------------------------------------------------- results side by side


def test_results_are_compared_item_by_item(tmp_path, refused):
    ids = [f"i{k}" for k in range(40)]
    base = torch.rand(40, generator=generator(0))

    def write(name, scores, size, ids=ids):
        record = {"score": scores.mean(), "low": 0.0, "high": 1.0, "floor": 0.1, "layer": "merger"}
        folder = tmp_path / name
        both, points = dict.fromkeys(("bbox_iou", "spatial_iou"), scores), {"merger": {"shape": [1, 6, 6, 8]}}
        common.save_yaml(
            folder / "probe.yaml",
            {"stage": "probe", "model": "made-up", "criteria": dict.fromkeys(both, record)},
        )
        common.save_pt(folder / "probe.pt", common.RESULT, ids, {}, sources=ids, scores=both)
        common.save_yaml(
            folder / "features" / "index.yaml", {"stage": "extract", "size": size, "points": points}
        )
        return str(folder)

    low = write("low", base * 0.5, 64)
    same = write("same", base * 0.5, 96)
    high = write("high", base * 0.5 + 0.2, 128)
    found = probe.main(["--compare", low, same, high, "--out", str(tmp_path / "compare.yaml")])
    rows = common.load_yaml(tmp_path / "compare.yaml", "probe-compare")["rows"]
    assert found["bbox_iou_best"] == "high" and rows["high"]["bbox_iou_p_holm"] < 0.01
    assert rows["high"]["bbox_iou_gain"] == pytest.approx(0.2, abs=1e-5)
    assert rows["same"]["bbox_iou_gain"] == 0 and rows["same"]["bbox_iou_p_holm"] == 1
    assert rows["same"]["bbox_iou_grid"] == "6x6" and rows["same"]["size"] == 96
    refused(lambda: probe.main(["--compare", low]), "--compare", "two or more")
    write("same", base, 96, ids[::-1])
    refused(lambda: probe.main(["--compare", low, same]), "other items")


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
    tokens = torch.stack([probe.token_components(x, FEW["train"], side=8)[0] for x in (colours, noise)])
    found, parameters = probe.train_decoder(tokens, frames, FEW)
    assert found.shape == (2, 3, 60, 64, 64, 3) and parameters == probe.TOKEN * 128 + 128 + 128 * 8 * 8 * 3
    error = (found.float() - frames).abs().mean((1, 3, 4, 5))[:, FEW["test"]].mean(1)
    blank = (frames[:40].float().mean(0) - frames[50:]).abs().mean()
    assert error[0] < 0.4 * blank and 0.9 * blank < error[1] < 1.1 * blank


@pytest.mark.slow
def test_the_record_of_a_decoder_names_its_floors_its_controls_and_its_oracle(pictures):
    frames, colours = pictures
    grey = frames[:40].float().mean(0).byte().expand(10, -1, -1, -1)
    others = {"mean_image": grey, "blur": frames[50:]}  # blur is the picture itself here
    noisy = colours + 0.1 * torch.randn(60, 8, 8, 3, generator=generator(2))
    random = torch.randn(60, 8, 8, 5, generator=generator(3))
    jobs = {"own": noisy, "oracle": colours, "random_init": random}
    sources, measures = [str(i) for i in range(10)], {"ssim": (metrics.ssim, "higher", 1.0)}
    record, scores = probe.reconstruction(jobs, frames, others, measures, FEW, sources, "merger", 0)[
        "decoder_ssim"
    ]
    assert set(record["floors"]) == {"mean_image", "shuffled_images"} and scores.shape == (3, 10)
    assert record["score"] == pytest.approx(scores.mean().item())
    random, blur = (record["controls"][k] for k in ("random_init", "blur"))
    assert random < record["score"] < record["ceiling"] < blur == 1
    assert record["gain_low"] > 0 and "oracle" in record["ceiling_is"] and record["parameters"] > 0
