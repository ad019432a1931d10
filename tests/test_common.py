"""The shared instruments on worlds whose answer is known: each metric meets its null value before a real one."""

import json
import math
import os
import re
import subprocess
import sys
import urllib.error
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import plant_features

import common
import media
import metrics
import models
import stats


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def r2(found, true):
    return (1 - (found - true).square().sum() / (true - true.mean(0)).square().sum()).item()


# ---------------------------------------------------------------- ridge


def test_ridge_on_shuffled_boxes_is_no_better_than_a_constant_box():
    g = generator()
    n, train, test = 400, torch.arange(240), torch.arange(240, 400)
    corner = torch.rand(n, 2, generator=g) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(n, 2, generator=g)], 1)
    x = boxes @ torch.randn(4, 500, generator=g) + 0.05 * torch.randn(n, 500, generator=g)
    wrong = boxes.clone()
    wrong[train] = boxes[train][torch.randperm(len(train), generator=g)]
    found = stats.ridge(x, {"true": boxes, "shuffled": wrong}, train)
    assert abs(r2(found["shuffled"][test], boxes[test])) < 0.1
    constant = metrics.box_iou(boxes[train].mean(0).expand(len(test), 4), boxes[test]).mean()
    assert metrics.box_iou(found["shuffled"][test], boxes[test]).mean() < constant + 0.03
    assert metrics.box_iou(found["true"][test], boxes[test]).mean() > constant + 0.3


@pytest.mark.parametrize("n, d, noise", [(120, 600, 0.5), (200, 20, 0.1), (90, 90, 3.0)])
def test_ridge_chooses_and_predicts_as_scikit_learn_does(n, d, noise):
    """The same penalties, the same leave-one-out and its error, of wide, tall and nearly collinear features."""
    from sklearn.linear_model import RidgeCV

    g = generator(n)
    x = torch.randn(n, d, generator=g) + 2
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    y = x @ torch.randn(d, 1, generator=g) + noise * d**0.5 * torch.randn(n, 1, generator=g) + 7
    train, test = torch.arange(n * 2 // 3), torch.arange(n * 2 // 3, n)
    wide = x.double()
    centred = wide[train] - wide[train].mean(0)
    penalties = stats.PENALTIES * centred.square().sum() / len(train)
    theirs = RidgeCV(alphas=penalties.numpy()).fit(wide[train].numpy(), y[train, 0].double().numpy())
    assert penalties[0] < theirs.alpha_ < penalties[-1], "the toy problem must have its optimum inside"
    kernel = (wide @ wide.T)[None]
    ours, error = stats.solve_ridge(*stats.spectrum(kernel, train), {"y": y}, train)["y"]
    np.testing.assert_allclose(ours[0, test, 0], theirs.predict(wide[test].numpy()), rtol=1e-4)
    assert error.item() == pytest.approx(-theirs.best_score_, rel=1e-4)


def test_layers_and_tasks_in_one_solve_are_each_alone():
    g, train = generator(3), torch.arange(40)
    layers = [torch.randn(60, d, generator=g) for d in (5, 80, 200)]
    # each chooses its own penalty
    tasks = {"easy": layers[0][:, :1], "hard": torch.randn(60, 2, generator=g)}
    kernels = torch.stack([x @ x.T for x in layers])
    found = stats.solve_ridge(*stats.spectrum(kernels, train), tasks, train)
    for k, x in enumerate(layers):
        for task, y in tasks.items():
            alone = stats.ridge(x, {task: y}, train)[task]
            torch.testing.assert_close(found[task][0][k], alone, atol=1e-4, rtol=1e-4)


def test_token_ridge_recovers_a_planted_linear_map():
    g = generator()
    x = torch.randn(40, 9, 12, generator=g) + 1
    y = x @ torch.randn(12, 3, generator=g) + 4
    found = stats.token_ridge(x, {"task": y}, torch.arange(20), torch.arange(20, 30))["task"]
    torch.testing.assert_close(found[30:], y[30:], rtol=1e-3, atol=1e-2)


def test_token_ridge_finds_nothing_in_noise():
    g = generator()
    x, y = torch.randn(60, 9, 12, generator=g), torch.randn(60, 9, 3, generator=g)
    found = stats.token_ridge(x, {"task": y}, torch.arange(30), torch.arange(30, 45))["task"]
    assert abs(r2(found[45:].flatten(0, 1), y[45:].flatten(0, 1))) < 0.05


def test_token_ridge_never_looks_at_test_items():
    g = generator()
    x = torch.randn(40, 9, 12, generator=g)
    y = x @ torch.randn(12, 3, generator=g) + torch.randn(40, 9, 3, generator=g)
    train, val = torch.arange(20), torch.arange(20, 30)
    before = stats.token_ridge(x, {"task": y}, train, val)["task"]
    x[30:], y[30:] = 1e3 * torch.randn(10, 9, 12, generator=g), 1e3
    after = stats.token_ridge(x, {"task": y}, train, val)["task"]
    torch.testing.assert_close(before[:30], after[:30], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- statistics


def test_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    g = generator()
    hits = 0
    for k in range(200):
        scores = 0.3 + torch.randn(50, generator=g).repeat_interleave(3) + torch.randn(150, generator=g)
        _, low, high = stats.bootstrap(scores, [i // 3 for i in range(150)], n_boot=500, seed=k)
        hits += low <= 0.3 <= high
    assert 0.89 <= hits / 200 <= 0.985, hits


@pytest.mark.parametrize("n", [2, 3, 5])
def test_bootstrap_of_few_sources_is_as_wide_as_students_t_asks(n):
    g, outside = generator(), 0
    for k in range(300):
        scores = torch.randn(n, generator=g).repeat_interleave(4)
        outside += stats.bootstrap(scores, [i // 4 for i in range(4 * n)], n_boot=500, seed=k)[1] > 0
    assert outside / 300 <= 0.055, outside  # percentiles alone: 0.25, 0.12, 0.08


def test_the_interval_of_many_sources_is_that_of_percentiles_and_a_single_source_has_none():
    assert stats.widened(0.5, 0.4, 0.7, 10**6) == pytest.approx((0.4, 0.7), abs=1e-5)
    t = 2.7764 / 1.96 * (5 / 4) ** 0.5
    assert stats.widened(0.5, 0.4, 0.7, 5) == pytest.approx((0.5 - 0.1 * t, 0.5 + 0.2 * t), abs=1e-4)
    assert stats.bootstrap([0.2, 0.4], ["a", "a"])[1:] == (-np.inf, np.inf)


def test_bootstrap_weighs_items_not_sources():
    # 20 sources of nine items, 20 of one
    large, small = [f"large-{i // 9}" for i in range(180)], [f"small-{i}" for i in range(20)]
    value, low, high = stats.bootstrap([1.0] * 180 + [0.0] * 20, large + small, n_boot=500)
    # a mean of the sources' means would be about 0.5
    assert value == pytest.approx(0.9) and 0.8 < low < 0.9 < high < 0.97


def test_bootstrap_of_seeds_adds_their_spread_to_the_interval():
    g = generator()
    items = 0.1 * torch.randn(100, generator=g)
    sources = list(range(100))
    agreeing = stats.bootstrap(items.repeat(5, 1), sources)
    spread = stats.bootstrap(items + torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None], sources)
    assert agreeing[0] == pytest.approx(items.mean().item(), abs=1e-6) == spread[0]
    assert spread[2] - spread[1] > 5 * (agreeing[2] - agreeing[1])


def test_paired_test_rejects_a_true_null_about_5_times_in_100_though_items_of_a_source_agree():
    g = generator()
    sources = [i // 4 for i in range(80)]
    small = 0
    for k in range(300):
        a, b = (torch.randn(20, generator=g).repeat_interleave(4) for _ in range(2))
        small += stats.paired_test(a, b, sources, n_perm=199, seed=k)["p"] <= 0.05
    # 95% +- 3.5 standard errors; items taken as independent would give about 0.3
    assert 0.015 <= small / 300 <= 0.095, small


def test_paired_test_sees_a_planted_difference_that_items_share():
    g, names = generator(), list(range(60))
    difficulty = 5 * torch.randn(60, generator=g)
    found = stats.paired_test(difficulty + 0.5 + 0.2 * torch.randn(60, generator=g), difficulty, names)
    assert found["gain"] == pytest.approx(0.5, abs=0.1) and found["gain_low"] > 0.3
    assert found["p"] == pytest.approx(1 / 2001)  # the smallest that 2000 permutations can give, never 0
    back = stats.paired_test(difficulty, difficulty + 0.5, names)
    assert back["gain"] == pytest.approx(-0.5) and back["gain_high"] < 0 and back["p"] < 0.001
    equal = {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "p": 1.0}
    assert stats.paired_test([0.5] * 20, [0.5] * 20, list(range(20))) == equal
    seeds = torch.tensor([[0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]])
    assert stats.paired_test(seeds, [0.0] * 4, list("abcd"))["gain"] == 4.0


def test_holm_agrees_with_a_hand_computed_example():
    found = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})  # x3, x1 raised to c's, x2, x4
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert stats.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_criterion_of_a_score_that_should_be_low_has_a_positive_gain_when_it_is_low():
    noise = 0.01 * torch.randn(30, generator=generator())
    floors = {"bad": 0.9 + noise, "best": 0.5 + noise}
    found = stats.criterion(0.2 + noise, floors, list(range(30)), ceiling=0.1, better="lower")
    assert (found["floor_name"], found["better"]) == ("best", "lower")
    assert found["gain"] == pytest.approx(0.3, abs=1e-6) and found["gain_low"] > 0
    assert found["skill"] == pytest.approx(0.3 / (0.4 + noise.mean().item()), abs=1e-6)
    assert found["low"] < found["score"] < found["high"]


def test_criterion_of_a_score_that_should_be_high_takes_the_highest_floor():
    floors = {"constant": [0.4] * 8, "pixels": [0.2] * 8}
    found = stats.criterion([0.6] * 8, floors, list("aabbccdd"), ceiling=0.8)
    assert (found["floor_name"], found["n"], found["sources"]) == ("constant", 8, 4)
    assert found["gain"] == pytest.approx(0.2) and found["skill"] == pytest.approx(0.5)
    assert found["floors"] == pytest.approx({"constant": 0.4, "pixels": 0.2})
    for better, ceiling in (("higher", 0.4), ("lower", 0.4)):  # not better than the floor: no skill
        assert stats.criterion([0.7] * 8, floors, list("aabbccdd"), ceiling, better)["skill"] is None


# ---------------------------------------------------------------- splits


def test_split_of_gives_the_answers_it_has_always_given_in_parts_of_60_20_20():
    # the first 8 digits of `printf %s NAME | sha256sum`, modulo 100: 7, 55, 67, 63, 43
    names = ("cat", "dog", "video-3", "photo.jpg", 7)
    assert [common.split_of(name) for name in names] == ["train", "train", "val", "val", "train"]
    splits = [common.split_of(f"source-{i}") for i in range(5000)]
    shares = {s: round(splits.count(s) / 5000, 1) for s in ("train", "val", "test")}
    assert shares == {"train": 0.6, "val": 0.2, "test": 0.2}


def test_items_of_one_source_are_never_torn_and_every_item_is_somewhere(refused):
    items = [{"id": f"{s}-{k}", "source": f"video-{s}"} for k in range(3) for s in range(60)]
    parts = common.split_indices(items, "a folder")
    sources = [{items[i]["source"] for i in part.tolist()} for part in parts.values()]
    assert sum(len(p) for p in parts.values()) == 180
    assert sum(len(s) for s in sources) == len(set.union(*sources)) == 60
    one = [{"source": "one"}] * 50
    refused(lambda: common.split_indices(one, "some/folder"), "some/folder", "use more items")


def pictured(blank=()):
    """Sixty items with a picture of noise each, of one colour at the numbers in `blank`."""
    noise = torch.randint(0, 256, (60, 1, 8, 8, 3), generator=generator()).byte()
    frames = [torch.full_like(x, 7) if i in blank else x for i, x in enumerate(noise)]
    return [{"id": f"item-{i}", "source": f"item-{i}", "frames": x} for i, x in enumerate(frames)]


def in_split(items, name):
    return next(i for i in items if common.split_of(i["source"]) == name)


@pytest.mark.parametrize("form", ["frames", "encoded"])
def test_one_picture_in_train_and_in_test_is_a_split_leak(refused, form):
    items = [{"id": i["id"], "source": i["source"], form: i["frames"].flatten()} for i in pictured()]
    a, b = in_split(items, "train"), in_split(items, "test")
    common.split_indices(items, "some/folder")
    b[form] = a[form].clone()
    words = "split leak", a["id"], b["id"], "some/folder", "the same source"
    refused(lambda: common.split_indices(items, "some/folder"), *words)
    b["source"] = a["source"]  # as the sentence says
    common.split_indices(items, "some/folder")
    items[5]["id"] = items[3]["id"]
    refused(lambda: common.split_indices(items, "some/folder"), "split leak", "item-3", "more than once")


def test_pictures_that_differ_in_one_byte_or_hold_one_colour_are_no_split_leak():
    items = pictured(blank=range(10, 40))
    a, b = in_split(items, "train"), in_split(items, "test")
    b["frames"] = a["frames"].clone()
    b["frames"][0, 7, 7, 2] ^= 1
    assert common.twins(items) == []
    common.split_indices(items, "some/folder")


def test_shuffled_labels_that_score_above_the_blind_control_are_a_leak():
    noise = 0.05 * torch.rand(60, generator=generator())

    def of(shuffled, blind="constant", **more):
        floors = {"constant": 0.4 + noise, "shuffled": shuffled + noise.flip(0)}
        return stats.criterion(0.9 + noise, floors, list(range(60)), blind=blind, **more)["leak"]

    assert of(0.4) is None and of(0.45) is None  # a tenth of the room is 0.06
    assert of(0.6) == "shuffled" and of(0.6, blind=None) is None
    assert of(0.2, better="lower", ceiling=0.0) == "shuffled" and of(0.6, better="lower", ceiling=0.0) is None


def test_a_leak_into_map_is_named_too():
    draws = torch.rand(3, 100, generator=generator()) / 10
    low, high = ({"ap": torch.full((3,), x), "draws": x + draws} for x in (0.1, 0.8))
    for shuffled, leak in ((high, "shuffled"), (low, None)):
        floors = {"position_only": low, "shuffled": shuffled}
        assert metrics.ap_criterion(high, floors, range(30), blind="position_only")["leak"] == leak


# ---------------------------------------------------------------- boxes, masks, detection


def test_box_iou_of_hand_computed_pairs():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1], [2, 2, 0, 0]])
    b = torch.tensor([[3.0, 3, 4, 4], [1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 2, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    torch.testing.assert_close(metrics.box_iou(a, b), torch.tensor([0, 1 / 7, 1, 0.5, 0, 0]))


def test_mask_iou_of_hand_computed_pairs():
    a = torch.zeros(4, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[1, :2], b[1, 2:] = True, True  # disjoint
    a[2, :2], b[2, 1:3] = True, True  # one row of three in common
    a[3, :2], b[3, :2] = True, True
    torch.testing.assert_close(metrics.mask_iou(a, b), torch.tensor([1.0, 0, 1 / 3, 1]))


def detections(n):
    """Truth of n pictures with two boxes each, in two classes; and the same as predictions."""
    truth, g = [], generator()
    for _ in range(n):
        corner = torch.rand(2, 2, generator=g) * 40 + torch.tensor([[0.0, 0], [500, 500]])
        truth.append((torch.cat([corner, corner + 100], 1), torch.tensor([0, 1])))
    return truth, [(b, c, torch.ones(len(b))) for b, c in truth]


def stock_ap50(truth, found, folder):
    """pycocotools as its documentation uses it: two JSON files, loadRes, COCOeval; mAP at IoU 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(pictures):
        for i, (boxes, names, *scores) in enumerate(pictures):
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                row = {"image_id": i, "category_id": int(names[k]), "bbox": [x1, y1, x2 - x1, y2 - y1]}
                yield row | (
                    {"score": float(scores[0][k])}
                    if scores
                    else {"area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
                )

    annotations = [row | {"id": k} for k, row in enumerate(rows(truth), 1)]
    content = {"images": [{"id": i} for i in range(len(truth))], "annotations": annotations}
    content["categories"] = [{"id": c} for c in sorted({r["category_id"] for r in annotations})]
    (folder / "truth.json").write_text(json.dumps(content))
    (folder / "found.json").write_text(json.dumps(list(rows(found))))
    coco = COCO(folder / "truth.json")
    run = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats[1]


A = [10.0, 10, 50, 50]
B = [100.0, 100, 180, 160]
FAR = [400.0, 400, 440, 440]
NEAR = [12.0, 10, 52, 50]
# IoU with A: 39 / 41, 28 / 52, 26 / 54
BETWEEN, HALF, LESS = [11.0, 10, 51, 50], [22.0, 10, 62, 50], [24.0, 10, 64, 50]
HAND_MADE = {  # name: (truth per picture, found per picture: box, class, score)
    "a picture without truth": ([[(A, 0)], []], [[(A, 0, 0.9)], [(A, 0, 0.95)]]),
    "duplicates of one box": ([[(A, 0), (B, 0)]], [[(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)]]),
    "a surer duplicate": ([[(A, 0)], [(B, 0)]], [[(A, 0, 0.9), (A, 0, 0.8)], [(B, 0, 0.5)]]),
    "ties within a picture": ([[(A, 0), (B, 0)]], [[(FAR, 0, 0.5), (A, 0, 0.5), (B, 0, 0.5)]]),
    "ties across pictures": ([[(A, 0)], [(B, 0)]], [[(FAR, 0, 0.5)], [(B, 0, 0.5), (FAR, 0, 0.5)]]),
    "a class that is never found": ([[(A, 0), (B, 1)]], [[(A, 0, 0.9)]]),
    "the wrong name": ([[(A, 0), (B, 1)]], [[(A, 1, 0.9), (B, 1, 0.8)]]),
    "one box that could be two": ([[(A, 0), (NEAR, 0)]], [[(BETWEEN, 0, 0.9), (BETWEEN, 0, 0.9)]]),
    "an overlap of half and of less": ([[(A, 0)], [(A, 0)]], [[(HALF, 0, 0.9)], [(LESS, 0, 0.8)]]),
    "surer false boxes": ([[(A, 0), (B, 0)]], [[(FAR, 0, 0.9), (A, 0, 0.5), (B, 0, 0.4)]]),
    "nothing found": ([[(A, 0)]], [[(FAR, 0, 0.9)]]),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_ap50_is_what_pycocotools_says_of_hand_made_cases(case, tmp_path):
    def tensors(picture):
        boxes, *rest = zip(*picture, strict=True) if picture else ((), ())
        return (torch.tensor(boxes).reshape(-1, 4), *(torch.tensor(x) for x in rest))

    truth, found = ([tensors(picture) for picture in pictures] for pictures in HAND_MADE[case])
    stock = stock_ap50(truth, found, tmp_path)
    assert metrics.coco_ap50(truth, found, n_boot=0)[0] == pytest.approx(stock, abs=1e-12)


def test_the_interval_of_ap_resamples_sources_and_not_images():
    truth, found = detections(60)
    assert metrics.coco_ap50(truth, found, n_boot=20)[:3] == (
        1,
        1,
        1,
    )  # a perfect detector, on every resample
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    # a source of ten is found or missed as one
    found = [f if i % 20 < 10 else nothing for i, f in enumerate(found)]
    tens = [i // 10 for i in range(60)]
    alone, together = (metrics.coco_ap50(truth, found, n_boot=200, sources=s) for s in (None, tens))
    assert alone[0] == together[0] == pytest.approx(51 / 101)  # half of the boxes: 51 of 101 levels of recall
    assert np.std(together[3]) > 2 * np.std(alone[3])  # sqrt(10) = 3.2
    runs = {"ap": torch.tensor([together[0]] * 2), "draws": torch.tensor([together[3]] * 2)}
    none = {"none": {"ap": torch.zeros(2), "draws": torch.zeros(2, 200)}}
    record = metrics.ap_criterion(runs, none, tens)
    assert (record["n"], record["sources"]) == (60, 6)
    assert record["low"] < metrics.ap_criterion(runs, none, range(60))["low"]


def test_ap_criterion_pairs_the_resamples_of_probe_and_floor():
    draws = torch.rand(3, 100, generator=generator())
    own = {"ap": torch.tensor([0.5, 0.6, 0.7]), "draws": draws + 0.2}
    floor, worse = {"ap": torch.full((3,), 0.4), "draws": draws}, {"ap": torch.zeros(3), "draws": draws * 0}
    found = metrics.ap_criterion(own, {"constant": floor, "worse": worse}, sources=range(30))
    assert (found["floor_name"], found["n"], found["seeds"]) == ("constant", 30, 3)
    assert found["score"] == pytest.approx(0.6) and found["skill"] == pytest.approx(0.2 / 0.6)
    # unpaired it would be about 0.2 +- 0.8
    assert found["gain_low"] == pytest.approx(0.2, abs=1e-6) == found["gain_high"]
    null = metrics.ap_criterion(floor, {"same": floor}, sources=range(30))
    assert null["gain"] == 0 and null["p"] == 1


# ---------------------------------------------------------------- set probe, cells, truth


def planted_boxes(n):
    """One box a picture, of class 0 or 1; the tokens of its 4x4 cells hold its class and corners (and noise): an oracle."""
    g, truth = generator(), []
    x = 0.1 * torch.randn(n, 16, 8, generator=g)
    for i in range(n):
        low = torch.randint(0, 3, (2,), generator=g)
        high = torch.minimum(low + torch.randint(1, 3, (2,), generator=g), torch.tensor(4))
        name = int(torch.randint(2, (1,), generator=g))
        box = torch.cat([low, high]).float() / 4
        cells = x[i].view(4, 4, -1)[low[1] : high[1], low[0] : high[0]]
        cells[..., name] += 2
        cells[..., 2:6] += box
        truth.append((box[None], torch.tensor([name])))
    return x, truth


def test_set_probe_learns_planted_boxes_and_a_shuffled_run_does_not():
    x, truth = planted_boxes(120)
    train, val, test = torch.arange(80), torch.arange(80, 100), torch.arange(100, 120)
    wrong = [truth[i] for i in torch.randperm(100, generator=generator()).tolist()] + truth[100:]
    iou, right = {}, {}
    for name, labels in (("true", truth), ("shuffled", wrong)):
        predict = metrics.train_set_probe(x, (4, 4), labels, 2, train, val, seeds=2, epochs=40, batch=40)
        boxes, names, scores = predict(x[test])
        surest = scores.argmax(-1, keepdim=True)
        picked = boxes.gather(2, surest[..., None].expand(-1, -1, -1, 4))[:, :, 0]
        iou[name] = metrics.box_iou(picked, torch.cat([truth[i][0] for i in test]).expand(2, -1, -1)).mean()
        named = names.gather(2, surest)[..., 0]
        right[name] = (named == torch.cat([truth[i][1] for i in test])).float().mean()
    assert iou["true"] > 0.45 and iou["true"] > iou["shuffled"] + 0.2, iou
    assert right["true"] > 0.9 and right["shuffled"] < 0.75, right


def test_seeds_of_the_set_probe_differ_and_a_run_repeats_itself():
    x, truth = planted_boxes(30)
    split, how = (torch.arange(20), torch.arange(20, 30)), {"seeds": 2, "epochs": 3, "batch": 10, "seed": 7}
    runs = [metrics.train_set_probe(x, (4, 4), truth, 2, *split, **how)(x)[0] for _ in range(2)]
    assert torch.equal(runs[0], runs[1])
    assert (runs[0][0] - runs[0][1]).abs().max() > 1e-3


def test_set_loss_is_least_for_the_true_boxes_in_any_order():
    # [1 seed, 1 picture, 3 queries, 4]
    boxes = torch.tensor([[[[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8], [0, 0, 0.1, 0.1]]]])
    logits = torch.tensor([[[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]]])
    truth = [(boxes[0, 0, :2], torch.tensor([0, 1]))]
    swapped = [(boxes[0, 0, [1, 0]], torch.tensor([1, 0]))]
    assert metrics.set_loss(boxes, logits, truth) < 0.01
    torch.testing.assert_close(
        metrics.set_loss(boxes, logits, truth), metrics.set_loss(boxes, logits, swapped)
    )
    assert metrics.set_loss(boxes, logits.flip(-1), truth) > 1
    assert metrics.set_loss(boxes + 0.3, logits, truth) > 1


def test_cells_put_back_together_are_the_maps():
    maps = torch.rand(3, 2, 4 * 6, 5 * 6, generator=generator())
    cells = metrics.to_cells(maps, 4, 5)
    assert cells.shape == (3, 20, 2 * 36)
    torch.testing.assert_close(cells[1, 7].reshape(2, 6, 6), maps[1, :, 6:12, 12:18])  # row 1, column 2
    square = maps[..., :24]
    torch.testing.assert_close(metrics.from_cells(metrics.to_cells(square, 4, 4), 4, 4, 2, 24), square)


def test_mask_threshold_is_chosen_on_val_and_not_on_test():
    truth = torch.zeros(20, 8, 8, dtype=torch.bool)
    truth[:, :4] = True
    soft = torch.where(truth, 0.3, 0.12)
    split = {"val": torch.arange(10), "test": torch.arange(10, 20)}
    assert metrics.mask_scores(soft, truth, split).mean() == 1
    soft[10:], truth[10:] = torch.where(truth[10:], 0.9, 0.6), True
    # a threshold of 0.2, from val; best on test would hide nothing here
    assert metrics.mask_scores(soft, truth, split)[10:].mean() == 1
    soft[10:] = 0.12
    assert metrics.mask_scores(soft, truth, split)[10:].mean() == 0


def test_largest_box_and_foreground_are_fractions_of_the_picture():
    boxes = torch.tensor([[0.0, 0, 4, 4], [20, 10, 40, 20]])
    item = {"width": 40, "height": 20, "boxes": boxes, "labels": ["b", "a"]}
    largest, every, names = metrics.box_truth([item])
    torch.testing.assert_close(largest, torch.tensor([[0.5, 0.5, 1, 1]]))
    assert names == ["a", "b"] and every[0][1].tolist() == [1, 0]
    area = metrics.foreground([item], 2)[0]
    torch.testing.assert_close(area, torch.tensor([[16 / 200, 0], [0, 1]]))


# ---------------------------------------------------------------- images


def pictures(n=2, side=48, seed=0):
    return torch.randint(0, 256, (n, side, side, 3), generator=generator(seed)).byte()


def bars(*columns, side=64):
    """One picture, black and white by turns from the given columns on: [1, side, side, 3]."""
    x = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    for k, column in enumerate(columns):
        x[:, :, column:] = 255 * (1 - k % 2)
    return x


def test_ssim_of_noise_is_about_0_and_of_the_same_picture_1():
    assert metrics.ssim(pictures(), pictures(seed=1)).abs().max() < 0.1
    assert metrics.ssim(pictures(), pictures()).tolist() == [1, 1]


def test_edge_f1_forgives_one_pixel_and_not_six_and_needs_edges_in_both():
    assert [metrics.edge_f1(bars(column), bars(32)).item() for column in (32, 33, 38)] == [1, 1, 0]
    assert metrics.edge_f1(bars(), bars(32)).item() == metrics.edge_f1(bars(32), bars()).item() == 0
    assert metrics.edge_f1(bars(), bars()).item() == 1


def test_edge_f1_does_not_reward_two_edges_around_a_true_one():
    true = bars(32)
    true[:, :, 32] = 127  # a grey column in the middle: an edge one pixel wide
    assert metrics.edge_f1(true, true).item() == 1
    # edges at 30 and 34; one to many would say 1
    assert metrics.edge_f1(bars(31, 34), true).item() == pytest.approx(2 / 3, abs=0.05)


def test_lpips_of_kept_features_is_that_of_the_package_and_so_is_its_gradient():
    model, _ = metrics.lpips_model()
    x, y = (torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in range(2))
    plain, kept = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs, ours = model(plain, y).flatten(), metrics.lpips_to(model, kept, metrics.lpips_features(model, y))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    theirs.sum().backward(), ours.sum().backward()
    torch.testing.assert_close(kept.grad, plain.grad, atol=1e-8, rtol=1e-4)
    assert metrics.lpips_to(model, y, metrics.lpips_features(model, y)).abs().max() < 1e-9


def test_lpips_without_its_backbone_says_so_in_its_name(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    state = torch.random.get_rng_state()
    (distance, name), (again, _) = metrics.load_lpips(), metrics.load_lpips()
    assert name == "lpips_random_backbone"
    assert torch.equal(state, torch.random.get_rng_state()), "loading must not disturb the caller"
    a, b = pictures(side=64), pictures(side=64, seed=1)
    assert distance(a, a).abs().max() == 0
    assert distance(a, b).min() > 0 and torch.equal(distance(a, b), again(a, b))


# ---------------------------------------------------------------- YAML

TEXTS = ["no", "1e-6", "1.5", "2026-01-02", "null", "~", "", "a: b # c", "two\nlines", "é"]
NUMBERS = [1e-6, 1e22, -2.5e-9, 3.0, math.inf, -math.inf, 10**12, True, False, None, [], {}]
FOREIGN = [
    (np.float32(0.5), 0.5),
    (np.int64(3), 3),
    (np.bool_(True), True),
    (np.array([1.5, 2.0]), [1.5, 2.0]),
    (Path("a/b"), "a/b"),
    ((1, 2), [1, 2]),
    (torch.tensor([[1, 2]]), [[1, 2]]),
    (torch.__version__, str(torch.__version__)),
    ({3: {"x": np.float64(1)}}, {"3": {"x": 1.0}}),
]


@pytest.mark.parametrize("given, back", [*FOREIGN, *((x, x) for x in (*TEXTS, *NUMBERS))])
def test_yaml_gives_back_the_value_and_the_type(tmp_path, given, back):
    common.save_yaml(tmp_path / "x.yaml", {"stage": "s", "value": given, "nan": np.float64("nan")})
    content = common.load_yaml(tmp_path / "x.yaml", "s")
    found = content["value"]
    assert found == back and type(found) is type(back) and math.isnan(content["nan"])


def test_yaml_has_its_scalars_one_a_line_for_grep(tmp_path):
    common.save_yaml(tmp_path / "x.yaml", {"b": 0.25, "a": "x", "table": {"z": 1}})
    assert (tmp_path / "x.yaml").read_text().splitlines()[:2] == ["b: 0.25", "a: x"]


def test_a_yaml_that_is_missing_or_broken_or_of_another_stage_is_refused(tmp_path, refused):
    path = tmp_path / "probe.yaml"
    refused(lambda: common.load_yaml(path, "probe"), path, "probe.py")
    for text in ("{", "just words", "", "[1, 2]"):
        path.write_text(text)
        refused(lambda: common.load_yaml(path), path)
    path.write_text("stage: align\n")
    refused(lambda: common.load_yaml(path, "probe"), path, "align", "probe")


# ---------------------------------------------------------------- tensors on disk


def test_tensors_come_back_as_they_were(tmp_path):
    x = torch.randn(3, 4, generator=generator()).half()
    common.save_pt(tmp_path / "deep" / "x.pt", "s.v1", ["a", "b", "c"], {"path": Path("p")}, x=x)
    found = common.load_pt(tmp_path / "deep" / "x.pt", "s.v1")
    assert torch.equal(found["x"], x) and found["x"].dtype == torch.float16
    assert found["ids"] == ["a", "b", "c"] and found["meta"] == {"path": "p"}


def test_a_pt_that_is_missing_or_broken_or_of_another_schema_is_refused(tmp_path, refused):
    path = tmp_path / "x.pt"
    refused(lambda: common.load_pt(path, "s.v1"), path, "does not exist")
    common.save_pt(path, "s.v1", [], {}, x=torch.arange(1000))
    refused(lambda: common.load_pt(path, "s.v2"), path, "s.v1", "s.v2")
    path.write_bytes(path.read_bytes()[:999])
    refused(lambda: common.load_pt(path, "s.v1"), path, "cannot be read")
    torch.save([1, 2], path)
    refused(lambda: common.load_pt(path, "s.v1"), path)
    # a class outside torch's list of safe ones would run code
    torch.save({"schema": "s.v1", "x": Path("a")}, path)
    refused(lambda: common.load_pt(path, "s.v1"), "cannot be read")


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    common.save_pt(path, "s.v1", ["old"], {})
    before = path.read_bytes()

    def half(content, f):
        f.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        common.save_pt(path, "s.v1", ["new"], {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_an_unwritable_place_is_refused_before_the_work(tmp_path, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: common.check_writable(tmp_path / "file" / "deep" / "out.yaml"), "out.yaml", "--out")
    refused(lambda: common.check_writable(tmp_path), tmp_path)  # a folder where a file is wanted
    common.check_writable(tmp_path / "new" / "out.yaml")
    assert list((tmp_path / "new").iterdir()) == []


# ---------------------------------------------------------------- items


def some_items(n, text=""):
    frames = (torch.full((1, 4, 4, 3), i % 256, dtype=torch.uint8) for i in range(n))
    return [{"id": f"{text}{i}", "source": f"s{i // 2}", "frames": x} for i, x in enumerate(frames)]


def test_items_come_back_in_order_and_stale_shards_go(tmp_path):
    common.write_items(tmp_path, some_items(common.SHARD * 2 + 3, "old"), {"name": "x"})
    common.write_items(tmp_path, iter(some_items(common.SHARD + 1)), {"name": "x"})
    items, index = common.load_items(tmp_path)
    assert [i["id"] for i in items] == [str(i) for i in range(common.SHARD + 1)]
    assert (index["items"], index["shards"], len(list(tmp_path.glob("*.pt")))) == (common.SHARD + 1, 2, 2)
    assert index["train"] + index["val"] + index["test"] == index["items"]
    assert (media.frames_of(items[5]) == 5).all()


def test_items_are_read_one_at_a_time_with_few_shards_open(tmp_path):
    n = common.SHARD * 6 + 3
    common.write_items(tmp_path, some_items(n), {"name": "x"})
    items, whole = common.Items(tmp_path), common.load_items(tmp_path)[0]
    assert len(items) == n and items.ids == [i["id"] for i in whole] == items.index["ids"]
    assert items.sources == [i["source"] for i in whole]
    for k in (n - 1, 0, 70, -1, 200, 0):
        assert items[k]["id"] == whole[k]["id"] and torch.equal(items[k]["frames"], whole[k]["frames"])
    with pytest.raises(IndexError):
        items[n]
    del whole
    assert [i["id"] for i in items] == items.ids  # reads every shard
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line.split()[-1] for line in maps if str(tmp_path) in line]
    assert 1 <= len(set(mapped)) <= 5, mapped  # four, and that of the last item in hand


def test_items_of_a_folder_that_lists_its_ids_in_the_yaml_are_read_as_before(tmp_path):
    common.write_items(tmp_path, some_items(5), {"name": "x"})
    (tmp_path / "ids.jsonl").unlink()
    index = common.load_yaml(tmp_path / "index.yaml")
    common.save_yaml(tmp_path / "index.yaml", index | {"ids": list("01234")})
    assert common.Items(tmp_path).sources == ["s0", "s0", "s1", "s1", "s2"]


def test_writing_items_that_was_cut_short_is_noticed(tmp_path, refused):
    common.write_items(tmp_path, some_items(3), {"name": "x"})

    def broken():
        yield from some_items(common.SHARD + 1, "new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        common.write_items(tmp_path, broken(), {"name": "x"})
    refused(lambda: common.load_items(tmp_path), "index.yaml", "does not exist")


def test_a_folder_without_items_and_one_with_foreign_shards_are_refused(tmp_path, refused):
    common.write_items(tmp_path / "none", [], {"name": "x"})
    refused(lambda: common.load_items(tmp_path / "none"), "holds no items")
    common.write_items(tmp_path / "a", some_items(3), {"name": "x"})
    common.write_items(tmp_path / "b", some_items(3, "other"), {"name": "x"})
    (tmp_path / "b" / "00000.pt").rename(tmp_path / "a" / "00000.pt")
    refused(lambda: common.load_items(tmp_path / "a"), "run data.py again")
    (tmp_path / "b" / "ids.jsonl").unlink()
    refused(lambda: common.load_items(tmp_path / "b"), "ids.jsonl does not exist")


def test_frames_are_squashed_to_the_wanted_size_and_stay_bytes():
    item = {"frames": torch.full((2, 30, 50, 3), 200, dtype=torch.uint8)}
    found = media.frames_of(item, 14)
    assert found.shape == (2, 14, 14, 3) and found.dtype == torch.uint8 and (found == 200).all()


# ---------------------------------------------------------------- names


def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest(refused):
    table = {"shapes": 1, "moving": 2}
    assert common.known("moving", table, "set") == 2
    words = "unknown set 'shape'", "Did you mean 'shapes'?", "shapes, moving"
    refused(lambda: common.known("shape", table, "set"), *words)
    refused(lambda: models.find_model("qwen2.5-vl-2b"), "qwen2.5-vl-2b", "qwen2.5-vl-3b")
    refused(lambda: models.find_model("vlm"), "unknown model 'vlm'")  # a small model's folder, not its name


@pytest.mark.parametrize("name", models.MISNOMERS)
def test_a_misnomer_is_refused_in_one_sentence_with_a_name_that_works(refused, name):
    said = models.MISNOMERS[name]
    refused(lambda: models.find_model(name.upper()), f"{name.upper()!r} {said}")
    offered = re.split(", the same weights|, which| and ask", said.split("; use ")[1])[0].replace(" or ", " ")
    offered = re.findall(r"[\w./-]+", offered)
    assert offered and all(models.registry_name(o) in models.MODELS for o in offered), offered
    assert models.registry_name(name) == name, "a name that works needs no correction"


@pytest.mark.parametrize(
    "written, own",
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"),
        ("Qwen2.5-VL-3B", "qwen2.5-vl-3b"),
        ("OpenGVLab/InternVL3-8B-hf", "internvl3-8b"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-next"),
        ("zai-org/cogvlm2-llama3-chat-19B", "cogvlm2"),
        ("dinov2-giant", "dinov2-g"),
    ],
)
def test_a_repository_of_the_registry_is_its_entry(written, own):
    assert models.find_model(written) == models.find_model(own) and models.find_model(own)["name"] == own


def test_a_folder_of_the_name_of_a_misnomer_or_a_repository_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("qwen2.5-vl", "facebook/dinov2-large"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "dinov2", "patch_size": 8}')
        assert models.find_model(name)["path"] == name and models.find_model(name)["weights"] == "unstated"


def test_a_folder_that_is_no_model_is_refused(tmp_path, refused):
    refused(lambda: models.find_model(str(tmp_path)), tmp_path, "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(lambda: models.find_model(str(tmp_path)), "bert", "dinov2")


def test_a_local_folder_is_known_by_its_config_and_sized_to_whole_tokens(tmp_path):
    folder_with(tmp_path, model_type="qwen2_5_vl", vision_config={"patch_size": 14, "spatial_merge_size": 2})
    found = models.find_model(str(tmp_path))
    assert (found["kind"], found["weights"], found["name"]) == ("vlm", "unstated", tmp_path.name)
    assert found["size"] % 28 == 0 and found["size"] > 0


def test_every_size_in_the_registry_is_a_whole_number_of_tokens():
    step = {"dinov2": 14, "qwen2.5": 28, "ltx": 32}
    for name, entry in models.MODELS.items():
        for prefix, pixels in step.items():
            if name.startswith(prefix) and "size" in entry:
                assert entry["size"] % pixels == 0 and entry["clip"] % pixels == 0, name


# ---------------------------------------------------------------- a checkpoint that does not load: one sentence, with the remedy

REPOSITORY = "facebook/dinov2-small"


def hub_error(name, status):
    """One of huggingface_hub's own exceptions, as a response with this status raises it."""
    from huggingface_hub import errors

    request = SimpleNamespace(url="https://huggingface.co", method="GET")
    response = SimpleNamespace(status_code=status, headers={}, request=request)
    return getattr(errors, name)(f"{status} Client Error.", response=response)


def refused_connection():
    """What the library's HTTP client raises of a port where nobody listens."""
    import huggingface_hub

    try:
        huggingface_hub.get_hf_file_metadata("http://127.0.0.1:9/none")
    except Exception as e:
        return e


def offline():
    from huggingface_hub import errors

    return errors.OfflineModeIsEnabled("no network")


FETCH, ACCEPT = f"`hf download {REPOSITORY}`", "accept its licence at https://huggingface.co/"
LICENCE = f"{ACCEPT}{REPOSITORY}, then `hf auth login`"


@pytest.mark.parametrize("where", ["hub", "hidden in the library's"])
@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: hub_error("GatedRepoError", 403), [LICENCE]),
        (lambda: hub_error("HfHubHTTPError", 403), [LICENCE]),
        (lambda: hub_error("RepositoryNotFoundError", 401), ["no such repository", "`hf auth login`"]),
        (lambda: hub_error("RevisionNotFoundError", 404), ["no revision 'v9'", f"{REPOSITORY}/commits/main"]),
        (offline, ["HF_HUB_OFFLINE", FETCH, "MODEL"]),
        (refused_connection, ["cannot be reached", FETCH, "MODEL"]),
        (lambda: TimeoutError("no network"), ["cannot be reached", FETCH, "MODEL"]),
    ],
)
def test_what_the_hub_says_becomes_one_sentence_with_the_remedy(monkeypatch, refused, make, words, where):
    import huggingface_hub
    import transformers

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when it was imported
    error = make()

    def fail(*args, **more):
        if where == "hub":
            raise error
        raise OSError("a long story.\nMore of it.") from error

    if where == "hub":
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    else:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **more: None)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fail)
    entry = models.find_model("dinov2-s") | {"revision": "v9"}
    refused(lambda: models.load_encoder(entry), f"cannot load {REPOSITORY}: ", *words)


def folder_with(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return {"path": str(folder), "name": folder.name, "kind": "encoder"}


def test_a_model_type_that_is_too_new_is_refused_with_the_version_that_is_installed(tmp_path, refused):
    import transformers

    entry = folder_with(tmp_path, model_type="qwen9_vl")
    words = tmp_path, "newer transformers", f"{transformers.__version__} is installed", "pip install -U"
    refused(lambda: models.attempt(lambda: transformers.AutoConfig.from_pretrained(tmp_path), entry), *words)
    need = transformers.utils.versions.require_version
    refused(lambda: models.attempt(lambda: need("transformers>=99.0"), entry), "transformers>=99.0")


HELP = {"InternVL3-8B": "use internvl3-8b", "other": "`python extract.py --list`"}


@pytest.mark.parametrize("name", HELP)
def test_a_checkpoint_that_needs_code_is_refused_and_not_asked_about(monkeypatch, tmp_path, refused, name):
    (tmp_path / name).mkdir()
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModel": "modelling_own.Own"}
    entry = folder_with(tmp_path / name, model_type="internvl_chat", auto_map=auto_map)
    (tmp_path / name / "preprocessor_config.json").write_text('{"image_processor_type": "BitImageProcessor"}')
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    refused(lambda: models.load_encoder(entry), tmp_path / name, "code from the hub", HELP[name])


def test_a_part_of_a_repository_is_fetched_as_that_part(monkeypatch, refused):
    import huggingface_hub

    def fail(*args, **more):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    words = "`hf download Lightricks/LTX-Video --include vae/*`", "the folder vae in it"
    refused(lambda: models.load_video_vae(models.find_model("ltx")), *words)


@pytest.mark.parametrize("name", ["cogvlm2", "dinov2-s"])
def test_a_model_of_the_hub_without_a_network_is_refused_in_seconds(shapes_folder, tmp_path, name):
    """A port where nobody listens; transformers by itself would go on trying for minutes."""
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    del environment["HF_HUB_OFFLINE"]
    ask = [sys.executable, "extract.py", "--model", name, "--data", shapes_folder, "--out", tmp_path / "out"]
    done = subprocess.run(ask, cwd=common.HERE, capture_output=True, text=True, env=environment, timeout=60)
    (sentence,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and sentence.startswith("error: cannot load ")
    assert f"`hf download {models.MODELS[name]['path']}`" in sentence
    assert not list((tmp_path / "out").rglob("*.*"))


def test_features_that_are_not_finite_or_of_items_that_the_data_lack_are_refused(tmp_path, refused):
    x = torch.ones(2, 1, 2, 2, 3)
    x[1, 0, 0, 0, 0] = float("inf")
    plant_features(tmp_path, ["a", "b"], {"layer.1": x}, "data/x")
    index, read = common.load_features(tmp_path)
    refused(lambda: read("layer.1"), "layer.1", "1 non-finite")
    refused(lambda: read("layer.2"), "layer.2", "Did you mean 'layer.1'?")
    assert [i["id"] for i in common.join([{"id": "b"}, {"id": "a"}], index, "f")] == ["a", "b"]
    refused(lambda: common.join([{"id": "a"}], index, "some/folder"), "'b'", "some/folder", "data/x")


def test_every_result_names_the_versions_it_was_made_with_and_the_gpu(monkeypatch, tmp_path):
    from importlib.metadata import version

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2e9)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:13:39 UTC 2025\nGCC version: 12\n"
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(common, "DRIVER", str(tmp_path / "version"))
    run = common.run_info(SimpleNamespace(seed=3), 0)
    assert run["versions"]["torch"] == str(torch.__version__)
    for name in ("transformers", "peft", "av", "scikit-image"):
        assert run["versions"][name] == version(name)
    assert (run["gpu"], run["peak_gpu_gb"]) == ("Tesla T4", 2)
    assert (run["versions"]["cuda"], run["versions"]["driver"]) == ("13.2", "580.65.06")
