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

import common


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def r2(found, true):
    return (1 - (found - true).square().sum() / (true - true.mean(0)).square().sum()).item()


# ---------------------------------------------------------------- ridge

def closed_form(x, y, train, penalty):
    """Primal ridge with an unpenalised intercept, in fp64 by numpy."""
    x, y = x.double().numpy(), y.double().numpy()
    mx, my = x[train].mean(0), y[train].mean(0)
    a = x[train] - mx
    return (x - mx) @ np.linalg.solve(a.T @ a + penalty * np.eye(x.shape[1]), a.T @ (y[train] - my)) + my


@pytest.mark.parametrize(("d", "noise"), [(6, 0.3), (6, 3.0), (40, 12.0)])  # d > n as well
def test_ridge_predicts_with_the_penalty_that_brute_force_leave_one_out_chooses(d, noise):
    g = generator(d)
    n, n_train = 34, 24
    x = torch.randn(n, d, generator=g) + 2
    y = x @ torch.randn(d, 2, generator=g) + noise * torch.randn(n, 2, generator=g) + 5
    train = torch.arange(n_train)
    centred = (x[train] - x[train].mean(0)).double()
    penalties = (common.PENALTIES * torch.linalg.eigvalsh(centred @ centred.T).mean()).tolist()
    errors = []
    for penalty in penalties:
        left_out = [closed_form(x, y, [k for k in range(n_train) if k != i], penalty)[i] for i in range(n_train)]
        errors.append(((np.stack(left_out) - y[train].numpy()) ** 2).mean())
    found = common.ridge(x, {"task": y}, train)["task"]
    assert 0 < np.argmin(errors) < len(errors) - 1, "the toy problem must have its optimum inside the range of penalties"
    np.testing.assert_allclose(found.numpy(), closed_form(x, y, train, penalties[np.argmin(errors)]), rtol=1e-3, atol=1e-3)
    neighbour = closed_form(x, y, train, penalties[np.argmin(errors) + 1])
    assert np.abs(found.numpy() - neighbour).max() > 1e-2, "the neighbouring penalty must be told apart, or this test could not fail"


def test_ridge_is_blind_to_the_scale_of_the_features():
    g = generator()
    x = torch.randn(80, 30, generator=g)
    y = x[:, :3] + 0.5 * torch.randn(80, 3, generator=g)
    big, small = (common.ridge(x * s, {"task": y}, torch.arange(50))["task"] for s in (1, 0.01))
    torch.testing.assert_close(big, small, rtol=1e-3, atol=1e-3)


def test_ridge_chooses_a_penalty_for_each_task_alone():
    g = generator()
    x = torch.randn(60, 20, generator=g)
    easy, hard = x[:, :1], torch.randn(60, 1, generator=g)
    train = torch.arange(40)
    both = common.ridge(x, {"easy": easy, "hard": hard}, train)
    torch.testing.assert_close(both["easy"], common.ridge(x, {"only": easy}, train)["only"])
    assert r2(both["easy"][40:], easy[40:]) > 0.99


def test_ridge_on_shuffled_boxes_is_no_better_than_a_constant_box():
    g = generator()
    n, train, test = 400, torch.arange(240), torch.arange(240, 400)
    corner = torch.rand(n, 2, generator=g) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(n, 2, generator=g)], 1)
    x = boxes @ torch.randn(4, 500, generator=g) + 0.05 * torch.randn(n, 500, generator=g)
    wrong = boxes.clone()
    wrong[train] = boxes[train][torch.randperm(len(train), generator=g)]
    found = common.ridge(x, {"true": boxes, "shuffled": wrong}, train)
    assert abs(r2(found["shuffled"][test], boxes[test])) < 0.1
    constant = common.box_iou(boxes[train].mean(0).expand(len(test), 4), boxes[test]).mean()
    assert common.box_iou(found["shuffled"][test], boxes[test]).mean() < constant + 0.03
    assert common.box_iou(found["true"][test], boxes[test]).mean() > constant + 0.3


def test_ridge_has_the_r2_of_scikit_learn():
    """The same penalties, the same leave-one-out, of wide, tall and nearly collinear features."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    for seed, (n, d, noise) in enumerate(((120, 600, 0.5), (200, 20, 0.1), (90, 90, 3.0))):
        g = generator(seed)
        x = torch.randn(n, d, generator=g)
        x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
        y = x @ torch.randn(d, 3, generator=g) + noise * d**0.5 * torch.randn(n, 3, generator=g) + 7
        train, test = torch.arange(n * 2 // 3), torch.arange(n * 2 // 3, n)
        centred = x[train].double() - x[train].double().mean(0)
        theirs = RidgeCV(alphas=(common.PENALTIES * centred.square().sum() / len(train)).numpy()).fit(x[train].double().numpy(), y[train].double().numpy())
        ours = common.ridge(x, {"y": y}, train)["y"]
        assert r2_score(y[test], ours[test]) == pytest.approx(r2_score(y[test], theirs.predict(x[test].double().numpy())), abs=1e-6)


def test_many_layers_in_one_solve_are_each_layer_alone():
    g, train = generator(3), torch.arange(40)
    layers, y = [torch.randn(60, d, generator=g) for d in (5, 80, 200)], {"a": torch.randn(60, 2, generator=g), "b": torch.randn(60, 1, generator=g)}
    found = common.solve_ridge(*common.spectrum(torch.stack([x @ x.T for x in layers]), train), y, train)
    for k, x in enumerate(layers):
        alone = common.ridge(x, y, train)
        for task in y:
            torch.testing.assert_close(found[task][0][k], alone[task], atol=1e-4, rtol=1e-4)


def test_the_error_that_ridge_reports_is_that_of_leaving_each_item_out():
    x, y, train = torch.randn(30, 8, generator=generator(4)), torch.randn(30, 1, generator=generator(5)), torch.arange(30)
    _, error = common.solve_ridge(*common.spectrum((x @ x.T)[None], train), {"y": y}, train)["y"]
    penalties = common.PENALTIES
    try:
        left_out = []
        for penalty in penalties:
            common.PENALTIES, missed = penalty[None], []
            for i in range(30):
                others = torch.cat([train[:i], train[i + 1:]])
                scale = (x - x.mean(0)).square().sum() / 30 / ((x[others] - x[others].mean(0)).square().sum() / 29)  # the penalty is that of all items
                common.PENALTIES = penalty[None] * scale
                missed.append((common.ridge(x, {"y": y}, others)["y"][i] - y[i]).square().item())
            left_out.append(sum(missed) / 30)
    finally:
        common.PENALTIES = penalties
    assert error.item() == pytest.approx(min(left_out), rel=1e-3)


def test_token_ridge_recovers_a_planted_linear_map():
    g = generator()
    x = torch.randn(40, 9, 12, generator=g) + 1
    y = x @ torch.randn(12, 3, generator=g) + 4
    found = common.token_ridge(x, {"task": y}, torch.arange(20), torch.arange(20, 30))["task"]
    torch.testing.assert_close(found[30:], y[30:], rtol=1e-3, atol=1e-2)


def test_token_ridge_finds_nothing_in_noise():
    g = generator()
    x, y = torch.randn(60, 9, 12, generator=g), torch.randn(60, 9, 3, generator=g)
    found = common.token_ridge(x, {"task": y}, torch.arange(30), torch.arange(30, 45))["task"]
    assert abs(r2(found[45:].flatten(0, 1), y[45:].flatten(0, 1))) < 0.05


def test_token_ridge_never_looks_at_test_items():
    g = generator()
    x = torch.randn(40, 9, 12, generator=g)
    y = x @ torch.randn(12, 3, generator=g) + torch.randn(40, 9, 3, generator=g)
    train, val = torch.arange(20), torch.arange(20, 30)
    before = common.token_ridge(x, {"task": y}, train, val)["task"]
    x[30:], y[30:] = 1e3 * torch.randn(10, 9, 12, generator=g), 1e3
    after = common.token_ridge(x, {"task": y}, train, val)["task"]
    torch.testing.assert_close(before[:30], after[:30], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- statistics

def test_bootstrap_interval_of_clustered_items_is_wider_than_of_independent_ones():
    g = generator()
    scores = torch.randn(30, generator=g).repeat_interleave(8) + 0.1 * torch.randn(240, generator=g)
    _, low, high = common.bootstrap(scores, [i // 8 for i in range(240)])
    _, alone_low, alone_high = common.bootstrap(scores, list(range(240)))
    assert (high - low) > 2 * (alone_high - alone_low)  # the design effect is 8 items: sqrt(8) = 2.8


def test_bootstrap_interval_covers_the_true_mean_about_95_times_in_100():
    g = generator()
    hits = 0
    for k in range(200):
        scores = 0.3 + torch.randn(50, generator=g).repeat_interleave(3) + torch.randn(150, generator=g)
        _, low, high = common.bootstrap(scores, [i // 3 for i in range(150)], n_boot=500, seed=k)
        hits += low <= 0.3 <= high
    assert 0.89 <= hits / 200 <= 0.985, hits


@pytest.mark.parametrize("sources", [2, 3, 5])
def test_bootstrap_of_few_sources_is_as_wide_as_students_t_asks(sources):
    g = generator()
    outside = 0
    for k in range(300):
        _, low, high = common.bootstrap(torch.randn(sources, generator=g).repeat_interleave(4), [i // 4 for i in range(4 * sources)], n_boot=500, seed=k)
        outside += low > 0  # percentiles alone: 0.25, 0.12, 0.08
    assert outside / 300 <= 0.055, outside


def test_the_interval_of_many_sources_is_that_of_percentiles_and_a_single_source_has_none():
    assert common.widened(0.5, 0.4, 0.7, 10**6) == pytest.approx((0.4, 0.7), abs=1e-5)
    assert common.widened(0.5, 0.4, 0.7, 5) == pytest.approx((0.5 - 0.1 * 1.5838, 0.5 + 0.2 * 1.5838), abs=1e-4)  # 2.7764 / 1.96 * sqrt(5 / 4)
    assert common.bootstrap([0.2, 0.4], ["a", "a"])[1:] == (-np.inf, np.inf)


def test_bootstrap_weighs_items_not_sources():
    large, small = [f"large-{i // 9}" for i in range(180)], [f"small-{i}" for i in range(20)]  # 20 sources of nine items, 20 of one
    value, low, high = common.bootstrap([1.0] * 180 + [0.0] * 20, large + small, n_boot=500)
    assert value == pytest.approx(0.9) and 0.8 < low < 0.9 < high < 0.97  # a mean of the sources' means would be about 0.5


def test_bootstrap_of_seeds_adds_their_spread_to_the_interval():
    g = generator()
    items = 0.1 * torch.randn(100, generator=g)
    sources = list(range(100))
    agreeing = common.bootstrap(items.repeat(5, 1), sources)
    spread = common.bootstrap(items + torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None], sources)
    assert agreeing[0] == pytest.approx(items.mean().item(), abs=1e-6) == spread[0]
    assert spread[2] - spread[1] > 5 * (agreeing[2] - agreeing[1])


def test_paired_test_rejects_a_true_null_about_5_times_in_100_though_items_of_a_source_agree():
    g = generator()
    sources = [i // 4 for i in range(80)]
    small = 0
    for k in range(300):
        a, b = (torch.randn(20, generator=g).repeat_interleave(4) for _ in range(2))
        small += common.paired_test(a, b, sources, n_perm=199, seed=k)["p"] <= 0.05
    assert 0.015 <= small / 300 <= 0.095, small  # 95% +- 3.5 standard errors; items taken as independent would give about 0.3


def test_paired_test_sees_a_planted_difference_that_items_share():
    g = generator()
    difficulty = 5 * torch.randn(60, generator=g)
    found = common.paired_test(difficulty + 0.5 + 0.2 * torch.randn(60, generator=g), difficulty, list(range(60)))
    assert found["gain"] == pytest.approx(0.5, abs=0.1) and found["gain_low"] > 0.3
    assert found["p"] == pytest.approx(1 / 2001)  # the smallest that 2000 permutations can give, never 0
    back = common.paired_test(difficulty, difficulty + 0.5, list(range(60)))
    assert back["gain"] == pytest.approx(-0.5) and back["gain_high"] < 0 and back["p"] < 0.001


def test_paired_test_of_equal_scores_is_no_evidence():
    found = common.paired_test([0.5] * 20, [0.5] * 20, list(range(20)))
    assert found == {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "p": 1.0}


def test_paired_test_compares_seeds_by_their_mean():
    seeds = torch.tensor([[0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]])
    assert common.paired_test(seeds, [0.0, 0.0, 0.0, 0.0], list("abcd"))["gain"] == 4.0


def test_holm_agrees_with_a_hand_computed_example():
    found = common.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})  # x3, x1 raised to c's, x2, x4
    assert list(found) == ["a", "b", "c", "d"]
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert common.holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}


def test_criterion_of_a_score_that_should_be_low_has_a_positive_gain_when_it_is_low():
    g = generator()
    noise = 0.01 * torch.randn(30, generator=g)
    found = common.criterion(0.2 + noise, {"bad": 0.9 + noise, "best": 0.5 + noise}, list(range(30)), ceiling=0.1, better="lower")
    shift = noise.mean().item()
    assert (found["floor_name"], found["better"]) == ("best", "lower")
    assert found["gain"] == pytest.approx(0.3, abs=1e-6) and found["gain_low"] > 0
    assert found["skill"] == pytest.approx(0.3 / (0.4 + shift), abs=1e-6)
    assert found["low"] < found["score"] < found["high"]


def test_criterion_of_a_score_that_should_be_high_takes_the_highest_floor():
    found = common.criterion([0.6] * 8, {"constant": [0.4] * 8, "pixels": [0.2] * 8}, list("aabbccdd"), ceiling=0.8)
    assert (found["floor_name"], found["n"], found["sources"]) == ("constant", 8, 4)
    assert found["gain"] == pytest.approx(0.2) and found["skill"] == pytest.approx(0.5)
    assert found["floors"] == pytest.approx({"constant": 0.4, "pixels": 0.2})


@pytest.mark.parametrize(("better", "ceiling"), [("higher", 0.5), ("higher", 0.4), ("lower", 0.5), ("lower", 0.6)])
def test_criterion_states_no_skill_where_the_ceiling_is_not_better_than_the_floor(better, ceiling):
    assert common.criterion([0.7, 0.8], {"floor": [0.5, 0.5]}, ["a", "b"], ceiling=ceiling, better=better)["skill"] is None


# ---------------------------------------------------------------- splits

def test_split_of_gives_the_answers_it_has_always_given():
    # the first 8 digits of `printf %s NAME | sha256sum`, modulo 100: 7, 55, 67, 63, 43
    assert [common.split_of(name) for name in ("cat", "dog", "video-3", "photo.jpg", 7)] == ["train", "train", "val", "val", "train"]
    assert common.split_of("item-2") == "test"


def test_split_of_makes_parts_of_about_60_20_20():
    splits = [common.split_of(f"source-{i}") for i in range(5000)]
    assert {s: round(splits.count(s) / 5000, 1) for s in ("train", "val", "test")} == {"train": 0.6, "val": 0.2, "test": 0.2}


def test_items_of_one_source_are_never_torn_and_every_item_is_somewhere():
    items = [{"id": f"{s}-{k}", "source": f"video-{s}"} for k in range(3) for s in range(60)]
    parts = common.split_indices(items, "a folder")
    sources = [{items[i]["source"] for i in part.tolist()} for part in parts.values()]
    assert sum(len(p) for p in parts.values()) == 180
    assert sum(len(s) for s in sources) == len(set.union(*sources)) == 60


def test_a_split_that_is_too_small_is_refused(refused):
    refused(lambda: common.split_indices([{"source": "one"}] * 50, "some/folder"), "some/folder", "use more items")


def pictured(n=60, blank=()):
    """Items with a picture of noise each, of one colour at the numbers in `blank`."""
    noise = torch.randint(0, 256, (n, 1, 8, 8, 3), generator=generator()).byte()
    return [{"id": f"item-{i}", "source": f"item-{i}", "frames": torch.full_like(x, 7) if i in blank else x} for i, x in enumerate(noise)]


def in_split(items, name):
    return next(i for i in items if common.split_of(i["source"]) == name)


@pytest.mark.parametrize("form", ["frames", "encoded"])
def test_one_picture_in_train_and_in_test_under_other_names_is_refused_as_a_split_leak(refused, form):
    items = pictured()
    if form == "encoded":
        items = [{"id": i["id"], "source": i["source"], "encoded": i["frames"].flatten()} for i in items]
    a, b = in_split(items, "train"), in_split(items, "test")
    common.split_indices(items, "some/folder")
    b[form] = a[form].clone()
    refused(lambda: common.split_indices(items, "some/folder"), "split leak", a["id"], b["id"], "some/folder", "the same source")
    b["source"] = a["source"]  # as the sentence says
    common.split_indices(items, "some/folder")


def test_pictures_that_differ_in_one_byte_or_hold_one_colour_are_no_split_leak():
    items = pictured(blank=range(10, 40))
    a, b = in_split(items, "train"), in_split(items, "test")
    b["frames"] = a["frames"].clone()
    b["frames"][0, 7, 7, 2] ^= 1
    assert common.twins(items) == []
    common.split_indices(items, "some/folder")


def test_an_id_that_stands_twice_is_refused_as_a_split_leak(refused):
    items = pictured()
    items[5]["id"] = items[3]["id"]
    refused(lambda: common.split_indices(items, "some/folder"), "split leak", "item-3", "more than once")


def test_shuffled_labels_that_score_above_the_blind_control_are_a_leak_and_those_at_its_level_are_not():
    noise = 0.05 * torch.rand(60, generator=generator())

    def of(shuffled, blind="constant", **more):
        return common.criterion(0.9 + noise, {"constant": 0.4 + noise, "shuffled": shuffled + noise.flip(0)}, list(range(60)), blind=blind, **more)["leak"]
    assert of(0.4) is None and of(0.45) is None  # a tenth of the room is 0.06
    assert of(0.6) == "shuffled" and of(0.6, blind=None) is None
    assert of(0.2, better="lower", ceiling=0.0) == "shuffled" and of(0.6, better="lower", ceiling=0.0) is None


def test_a_leak_into_map_is_named_too():
    draws = torch.rand(3, 100, generator=generator()) / 10
    low, high = ({"ap": torch.full((3,), x), "draws": x + draws} for x in (0.1, 0.8))
    assert common.ap_criterion(high, {"position_only": low, "shuffled": high}, sources=range(30), blind="position_only")["leak"] == "shuffled"
    assert common.ap_criterion(high, {"position_only": low, "shuffled": low}, sources=range(30), blind="position_only")["leak"] is None


# ---------------------------------------------------------------- boxes, masks, detection

def test_box_iou_of_hand_computed_pairs():
    a = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1], [2, 2, 0, 0]])
    b = torch.tensor([[3.0, 3, 4, 4], [1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 2, 1], [1, 1, 1, 1], [0, 0, 2, 2]])
    torch.testing.assert_close(common.box_iou(a, b), torch.tensor([0, 1 / 7, 1, 0.5, 0, 0]))


def test_mask_iou_of_hand_computed_pairs():
    a = torch.zeros(4, 4, 4, dtype=torch.bool)
    b = a.clone()
    a[1, :2], b[1, 2:] = True, True  # disjoint
    a[2, :2], b[2, 1:3] = True, True  # one row of three in common
    a[3, :2], b[3, :2] = True, True
    torch.testing.assert_close(common.mask_iou(a, b), torch.tensor([1.0, 0, 1 / 3, 1]))


def detections(n=12, seed=0):
    """Truth of n pictures with two boxes each, in two classes; and the same as predictions."""
    g = generator(seed)
    truth = []
    for _ in range(n):
        corner = torch.rand(2, 2, generator=g) * 40 + torch.tensor([[0.0, 0], [500, 500]])
        truth.append((torch.cat([corner, corner + 100], 1), torch.tensor([0, 1])))
    return truth, [(b, c, torch.ones(len(b))) for b, c in truth]


def stock_ap50(truth, found, folder):
    """pycocotools as its documentation uses it: two JSON files, loadRes, COCOeval; mAP at IoU 0.5."""
    import json

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    xywh = [[[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in b.tolist()] for b, *_ in truth]
    rows = [{"image_id": i, "category_id": int(c), "bbox": box, "area": box[2] * box[3], "iscrowd": 0} for i, (_, cs) in enumerate(truth) for box, c in zip(xywh[i], cs, strict=True)]
    content = {"images": [{"id": i} for i in range(len(truth))], "categories": [{"id": c} for c in sorted({r["category_id"] for r in rows})],
               "annotations": [r | {"id": k + 1} for k, r in enumerate(rows)]}
    (folder / "truth.json").write_text(json.dumps(content))
    results = [{"image_id": i, "category_id": int(c), "bbox": [x1, y1, x2 - x1, y2 - y1], "score": s} for i, (b, cs, ss) in enumerate(found)
               for (x1, y1, x2, y2), c, s in zip(b.tolist(), cs, ss.tolist(), strict=True)]
    (folder / "found.json").write_text(json.dumps(results))
    coco = COCO(folder / "truth.json")
    run = COCOeval(coco, coco.loadRes(str(folder / "found.json")), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    return run.stats[1]


A, B, FAR = [10.0, 10, 50, 50], [100.0, 100, 180, 160], [400.0, 400, 440, 440]
HAND_MADE = {  # name: (truth per picture, found per picture: box, class, score)
    "a picture without truth": ([[(A, 0)], []], [[(A, 0, 0.9)], [(A, 0, 0.95)]]),
    "duplicates of one box": ([[(A, 0), (B, 0)]], [[(A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7)]]),
    "a duplicate that is surer than another's first": ([[(A, 0)], [(B, 0)]], [[(A, 0, 0.9), (A, 0, 0.8)], [(B, 0, 0.5)]]),
    "ties within a picture": ([[(A, 0), (B, 0)]], [[(FAR, 0, 0.5), (A, 0, 0.5), (B, 0, 0.5)]]),
    "ties across pictures": ([[(A, 0)], [(B, 0)], [(A, 0)]], [[(FAR, 0, 0.5)], [(B, 0, 0.5)], [(A, 0, 0.5), (FAR, 0, 0.5)]]),
    "a class that is never found": ([[(A, 0), (B, 1)]], [[(A, 0, 0.9)]]),
    "the right box under the wrong name": ([[(A, 0), (B, 1)]], [[(A, 1, 0.9), (B, 1, 0.8)]]),
    "one box that could be two": ([[(A, 0), ([12.0, 10, 52, 50], 0)]], [[([11.0, 10, 51, 50], 0, 0.9), ([11.0, 10, 51, 50], 0, 0.9)]]),
    "nothing found": ([[(A, 0)]], [[(FAR, 0, 0.9)]]),
}


@pytest.mark.parametrize("case", HAND_MADE)
def test_ap50_is_what_pycocotools_says_of_hand_made_cases(case, tmp_path):
    truth, found = HAND_MADE[case]
    truth = [(torch.tensor([b for b, _ in p]).reshape(-1, 4), torch.tensor([c for _, c in p])) for p in truth]
    found = [(torch.tensor([b for b, *_ in p]).reshape(-1, 4), torch.tensor([c for _, c, _ in p]), torch.tensor([s for *_, s in p])) for p in found]
    assert common.coco_ap50(truth, found, n_boot=0)[0] == pytest.approx(stock_ap50(truth, found, tmp_path), abs=1e-12)


def test_ap50_of_a_perfect_detector_is_1_on_every_resample():
    value, low, high, draws = common.coco_ap50(*detections(), n_boot=20)
    assert (value, low, high) == (1, 1, 1) and len(draws) == 20


def test_the_interval_of_ap_resamples_sources_and_not_images():
    truth, found = detections(60)
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    found = [f if i % 20 < 10 else nothing for i, f in enumerate(found)]  # a source of ten is found or missed as one
    alone, together = (common.coco_ap50(truth, found, n_boot=200, sources=s) for s in (None, [i // 10 for i in range(60)]))
    assert alone[0] == together[0] and np.std(together[3]) > 2 * np.std(alone[3])  # sqrt(10) = 3.2
    runs, none = {"ap": torch.tensor([together[0]] * 2), "draws": torch.tensor([together[3]] * 2)}, {"none": {"ap": torch.zeros(2), "draws": torch.zeros(2, 200)}}
    record = common.ap_criterion(runs, none, [i // 10 for i in range(60)])
    assert (record["n"], record["sources"]) == (60, 6) and record["low"] < common.ap_criterion(runs, none, range(60))["low"]


def test_ap50_is_0_without_detections_and_with_the_wrong_classes():
    truth, found = detections()
    nothing = [(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))] * len(truth)
    assert common.coco_ap50(truth, nothing, n_boot=5)[:3] == (0, 0, 0)
    assert common.coco_ap50(truth, [(b, 1 - c, s) for b, c, s in found], n_boot=5)[:3] == (0, 0, 0)


def test_ap50_does_not_count_boxes_that_overlap_by_less_than_half():
    truth, found = detections()
    assert common.coco_ap50(truth, [(b + torch.tensor([30.0, 0, 30, 0]), c, s) for b, c, s in found], n_boot=0)[0] == pytest.approx(1)  # IoU 70 / 130
    assert common.coco_ap50(truth, [(b + torch.tensor([40.0, 0, 40, 0]), c, s) for b, c, s in found], n_boot=0)[0] == 0  # IoU 60 / 140


def test_ap50_of_half_the_boxes_is_51_of_101_recall_levels():
    truth, found = detections()
    nothing = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0))
    value, low, high, draws = common.coco_ap50(truth, [f if i % 2 else nothing for i, f in enumerate(found)], n_boot=100)
    assert value == pytest.approx(51 / 101)
    assert low < value < high and high - low > 0.1
    assert np.std(draws) > 0.05


def test_ap50_charges_for_false_boxes_that_are_surer_than_the_true_ones():
    truth, found = detections()
    doubled = [(torch.cat([b + 300, b]), torch.cat([c, c]), torch.tensor([0.9, 0.9, 0.5, 0.5])) for b, c, _ in found]
    assert common.coco_ap50(truth, doubled, n_boot=0)[0] == pytest.approx(0.5, abs=0.02)


def test_ap_criterion_pairs_the_resamples_of_probe_and_floor():
    draws = torch.rand(3, 100, generator=generator())
    own, floor = {"ap": torch.tensor([0.5, 0.6, 0.7]), "draws": draws + 0.2}, {"ap": torch.tensor([0.4, 0.4, 0.4]), "draws": draws}
    found = common.ap_criterion(own, {"constant": floor, "worse": {"ap": torch.zeros(3), "draws": draws * 0}}, sources=range(30))
    assert (found["floor_name"], found["n"], found["seeds"]) == ("constant", 30, 3)
    assert found["score"] == pytest.approx(0.6) and found["skill"] == pytest.approx(0.2 / 0.6)
    assert found["gain_low"] == pytest.approx(0.2, abs=1e-6) and found["gain_high"] == pytest.approx(0.2, abs=1e-6)  # unpaired it would be about 0.2 +- 0.8
    null = common.ap_criterion(floor, {"same": floor}, sources=range(30))
    assert null["gain"] == 0 and null["p"] == 1


# ---------------------------------------------------------------- set probe, cells, truth

def planted_boxes(n=120, side=4, seed=0):
    """One box a picture, of class 0 or 1; the tokens of its cells hold its class and corners (and noise): an oracle."""
    g = generator(seed)
    x, truth = 0.1 * torch.randn(n, side * side, 8, generator=g), []
    for i in range(n):
        low = torch.randint(0, side - 1, (2,), generator=g)
        high = torch.minimum(low + torch.randint(1, 3, (2,), generator=g), torch.tensor(side))
        name = int(torch.randint(2, (1,), generator=g))
        box = torch.cat([low, high]).float() / side
        cells = x[i].view(side, side, -1)[low[1]:high[1], low[0]:high[0]]
        cells[..., name] += 2
        cells[..., 2:6] += box
        truth.append((box[None], torch.tensor([name])))
    return x, truth


def test_set_probe_learns_planted_boxes_and_a_shuffled_run_does_not():
    x, truth = planted_boxes()
    train, val, test = torch.arange(80), torch.arange(80, 100), torch.arange(100, 120)
    wrong = [truth[i] for i in torch.randperm(100, generator=generator()).tolist()] + truth[100:]
    iou, right = {}, {}
    for name, labels in (("true", truth), ("shuffled", wrong)):
        predict = common.train_set_probe(x, (4, 4), labels, 2, train, val, seeds=2, epochs=40, batch=40)
        boxes, names, scores = predict(x[test])
        surest = scores.argmax(-1, keepdim=True)
        picked = boxes.gather(2, surest[..., None].expand(-1, -1, -1, 4))[:, :, 0]
        iou[name] = common.box_iou(picked, torch.cat([truth[i][0] for i in test]).expand(2, -1, -1)).mean()
        right[name] = (names.gather(2, surest)[..., 0] == torch.cat([truth[i][1] for i in test])).float().mean()
    assert iou["true"] > 0.45 and iou["true"] > iou["shuffled"] + 0.2, iou
    assert right["true"] > 0.9 and right["shuffled"] < 0.75, right


def test_seeds_of_the_set_probe_differ_and_a_run_repeats_itself():
    x, truth = planted_boxes(30)
    runs = [common.train_set_probe(x, (4, 4), truth, 2, torch.arange(20), torch.arange(20, 30), seeds=2, epochs=3, batch=10, seed=7)(x)[0] for _ in range(2)]
    assert torch.equal(runs[0], runs[1])
    assert (runs[0][0] - runs[0][1]).abs().max() > 1e-3


def test_set_loss_is_least_for_the_true_boxes_in_any_order():
    boxes = torch.tensor([[[[0.1, 0.1, 0.4, 0.4], [0.5, 0.5, 0.9, 0.8], [0, 0, 0.1, 0.1]]]])  # [1 seed, 1 picture, 3 queries, 4]
    logits = torch.tensor([[[[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0]]]])
    truth = [(boxes[0, 0, :2], torch.tensor([0, 1]))]
    swapped = [(boxes[0, 0, [1, 0]], torch.tensor([1, 0]))]
    assert common.set_loss(boxes, logits, truth) < 0.01
    torch.testing.assert_close(common.set_loss(boxes, logits, truth), common.set_loss(boxes, logits, swapped))
    assert common.set_loss(boxes, logits.flip(-1), truth) > 1 and common.set_loss(boxes + 0.3, logits, truth) > 1


def test_cells_put_back_together_are_the_maps():
    maps = torch.rand(3, 2, 4 * 6, 5 * 6, generator=generator())
    cells = common.to_cells(maps, 4, 5)
    assert cells.shape == (3, 20, 2 * 36)
    torch.testing.assert_close(cells[1, 7].reshape(2, 6, 6), maps[1, :, 6:12, 12:18])  # row 1, column 2
    square = maps[..., :24]
    torch.testing.assert_close(common.from_cells(common.to_cells(square, 4, 4), 4, 4, 2, 24), square)


def test_mask_threshold_is_chosen_on_val_and_not_on_test():
    truth = torch.zeros(20, 8, 8, dtype=torch.bool)
    truth[:, :4] = True
    soft = torch.where(truth, 0.3, 0.12)
    split = {"val": torch.arange(10), "test": torch.arange(10, 20)}
    assert common.mask_scores(soft, truth, split).mean() == 1
    soft[10:], truth[10:] = torch.where(truth[10:], 0.9, 0.6), True
    assert common.mask_scores(soft, truth, split)[10:].mean() == 1  # a threshold of 0.2, from val; best on test would hide nothing here
    soft[10:] = 0.12
    assert common.mask_scores(soft, truth, split)[10:].mean() == 0


def test_largest_box_and_foreground_are_fractions_of_the_picture():
    item = {"width": 40, "height": 20, "boxes": torch.tensor([[0.0, 0, 4, 4], [20, 10, 40, 20]]), "labels": ["b", "a"]}
    largest, every, names = common.box_truth([item])
    torch.testing.assert_close(largest, torch.tensor([[0.5, 0.5, 1, 1]]))
    assert names == ["a", "b"] and every[0][1].tolist() == [1, 0]
    area = common.foreground([item], 2)[0]
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
    assert common.ssim(pictures(), pictures(seed=1)).abs().max() < 0.1
    assert common.ssim(pictures(), pictures()).tolist() == [1, 1]


def test_edge_f1_is_0_where_one_picture_has_no_edges_and_1_where_neither_has():
    assert common.edge_f1(bars(), bars(32)).item() == common.edge_f1(bars(32), bars()).item() == 0
    assert common.edge_f1(bars(), bars()).item() == 1


def test_edge_f1_forgives_one_pixel_and_not_six():
    assert common.edge_f1(bars(32), bars(32)).item() == 1
    assert common.edge_f1(bars(33), bars(32)).item() == 1
    assert common.edge_f1(bars(38), bars(32)).item() == 0


def test_edge_f1_does_not_reward_two_edges_around_a_true_one():
    true = bars(32)
    true[:, :, 32] = 127  # a grey column in the middle: an edge one pixel wide
    assert common.edge_f1(true, true).item() == 1
    assert common.edge_f1(bars(31, 34), true).item() == pytest.approx(2 / 3, abs=0.05)  # edges at 30 and 34; one to many would say 1


def test_lpips_of_kept_features_is_that_of_the_package_and_so_is_its_gradient():
    model, _ = common.lpips_model()
    x, y = (torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in range(2))
    plain, kept = x.clone().requires_grad_(), x.clone().requires_grad_()
    theirs, ours = model(plain, y).flatten(), common.lpips_to(model, kept, common.lpips_features(model, y))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    theirs.sum().backward(), ours.sum().backward()
    torch.testing.assert_close(kept.grad, plain.grad, atol=1e-8, rtol=1e-4)
    assert common.lpips_to(model, y, common.lpips_features(model, y)).abs().max() < 1e-9


def test_lpips_without_its_backbone_says_so_in_its_name(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", no_network)
    state = torch.random.get_rng_state()
    (distance, name), (again, _) = common.load_lpips(), common.load_lpips()
    assert name == "lpips_random_backbone"
    assert torch.equal(state, torch.random.get_rng_state()), "loading must not disturb the caller's random numbers"
    a, b = pictures(side=64), pictures(side=64, seed=1)
    assert distance(a, a).abs().max() == 0
    assert distance(a, b).min() > 0 and torch.equal(distance(a, b), again(a, b))


# ---------------------------------------------------------------- YAML

@pytest.mark.parametrize(("given", "back"), [
    (np.float32(0.5), 0.5), (np.int64(3), 3), (np.bool_(True), True), (torch.tensor(2.0), 2.0), (torch.tensor([[1, 2]]), [[1, 2]]),
    (np.array([1.5, 2.0]), [1.5, 2.0]), (Path("a/b"), "a/b"), (torch.__version__, str(torch.__version__)), ((1, 2), [1, 2]), (None, None),
    (1e-6, 1e-6), (1e22, 1e22), (-2.5e-9, -2.5e-9), (3.0, 3.0), (float("inf"), math.inf), (-math.inf, -math.inf), (10**12, 10**12),
    (True, True), (False, False), ("no", "no"), ("1e-6", "1e-6"), ("1.5", "1.5"), ("2026-01-02", "2026-01-02"), ("null", "null"), ("~", "~"), ("", ""),
    ("a: b # c", "a: b # c"), ("two\nlines", "two\nlines"), ("é", "é"), ({3: {"x": np.float64(1)}}, {"3": {"x": 1.0}}), ([], []), ({}, {})])
def test_yaml_gives_back_the_value_and_the_type(tmp_path, given, back):
    common.save_yaml(tmp_path / "x.yaml", {"stage": "s", "value": given})
    found = common.load_yaml(tmp_path / "x.yaml", "s")["value"]
    assert found == back and type(found) is type(back)


def test_yaml_gives_back_nan(tmp_path):
    common.save_yaml(tmp_path / "x.yaml", {"value": np.float64("nan"), "more": [float("nan"), 1e-7]})
    found = common.load_yaml(tmp_path / "x.yaml")
    assert math.isnan(found["value"]) and math.isnan(found["more"][0]) and found["more"][1] == 1e-7


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
    whole = path.read_bytes()
    for content in (b"", b"no tensor", whole[:len(whole) // 2]):
        path.write_bytes(content)
        refused(lambda: common.load_pt(path, "s.v1"), path, "cannot be read")
    torch.save([1, 2], path)
    refused(lambda: common.load_pt(path, "s.v1"), path)


def test_a_pt_that_would_run_code_is_refused(tmp_path, refused):
    torch.save({"schema": "s.v1", "x": Path("a")}, tmp_path / "x.pt")  # any class outside torch's list of safe ones
    refused(lambda: common.load_pt(tmp_path / "x.pt", "s.v1"), "cannot be read")


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


def test_a_full_disk_while_writing_yaml_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.yaml"
    common.save_yaml(path, {"old": 1})

    def full(_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(common.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        common.save_yaml(path, {"new": 2})
    assert common.load_yaml(path) == {"old": 1} and [p.name for p in tmp_path.iterdir()] == ["x.yaml"]


def test_an_unwritable_place_is_refused_before_the_work(tmp_path, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: common.check_writable(tmp_path / "file" / "deep" / "out.yaml"), "out.yaml", "--out")
    refused(lambda: common.check_writable(tmp_path), tmp_path)  # a folder where a file is wanted
    common.check_writable(tmp_path / "new" / "out.yaml")
    assert list((tmp_path / "new").iterdir()) == []


# ---------------------------------------------------------------- items

def some_items(n, text=""):
    return [{"id": f"{text}{i}", "source": f"s{i // 2}", "frames": torch.full((1, 4, 4, 3), i % 256, dtype=torch.uint8)} for i in range(n)]


def test_items_come_back_in_order_and_stale_shards_go(tmp_path):
    common.write_items(tmp_path, some_items(common.SHARD * 2 + 3, "old"), {"name": "x"})
    common.write_items(tmp_path, iter(some_items(common.SHARD + 1)), {"name": "x"})
    items, index = common.load_items(tmp_path)
    assert [i["id"] for i in items] == [str(i) for i in range(common.SHARD + 1)]
    assert (index["items"], index["shards"], len(list(tmp_path.glob("*.pt")))) == (common.SHARD + 1, 2, 2)
    assert index["train"] + index["val"] + index["test"] == index["items"]
    assert (common.frames_of(items[5]) == 5).all()


def test_items_are_read_one_at_a_time_with_few_shards_open(tmp_path):
    n = common.SHARD * 6 + 3
    common.write_items(tmp_path, some_items(n), {"name": "x"})
    items, whole = common.Items(tmp_path), common.load_items(tmp_path)[0]
    assert len(items) == n and items.ids == [i["id"] for i in whole] and items.sources == [i["source"] for i in whole] and items.index["ids"] == items.ids
    for k in (n - 1, 0, 70, -1, 200, 0):
        assert items[k].keys() == whole[k].keys() and items[k]["id"] == whole[k]["id"] and torch.equal(items[k]["frames"], whole[k]["frames"])
    with pytest.raises(IndexError):
        items[n]
    del whole
    assert [i["id"] for i in items] == items.ids  # reads every shard
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line}
    assert 1 <= len(mapped) <= 5, mapped  # four, and that of the last item in hand


def test_items_of_a_folder_that_lists_its_ids_in_the_yaml_are_read_as_before(tmp_path):
    common.write_items(tmp_path, some_items(5), {"name": "x"})
    (tmp_path / "ids.jsonl").unlink()
    common.save_yaml(tmp_path / "index.yaml", common.load_yaml(tmp_path / "index.yaml") | {"ids": [str(i) for i in range(5)]})
    assert common.Items(tmp_path).sources == ["s0", "s0", "s1", "s1", "s2"] and len(common.load_items(tmp_path)[0]) == 5


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
    found = common.frames_of(item, 14)
    assert found.shape == (2, 14, 14, 3) and found.dtype == torch.uint8 and (found == 200).all()


# ---------------------------------------------------------------- names

def test_an_unknown_name_is_refused_with_the_known_ones_and_the_nearest(refused):
    table = {"shapes": 1, "moving": 2}
    assert common.known("moving", table, "set") == 2
    refused(lambda: common.known("shape", table, "set"), "unknown set 'shape'", "Did you mean 'shapes'?", "shapes, moving")
    with pytest.raises(SystemExit):
        common.known("zzz", table, "set")


def test_a_model_that_does_not_exist_is_corrected(refused):
    refused(lambda: common.find_model("qwen2.5-vl-2b"), "qwen2.5-vl-2b", "qwen2.5-vl-3b")
    refused(lambda: common.find_model("dinov2-m"), "dinov2-m", "dinov2-l")


@pytest.mark.parametrize("name", common.MISNOMERS)
def test_a_misnomer_is_refused_in_one_sentence_with_a_name_that_works(refused, name):
    said = common.MISNOMERS[name]
    for written in (name, name.upper(), *([] if "/" in name else [f"somebody/{name}"])):
        refused(lambda written=written: common.find_model(written), f"{written!r} {said}")
    offered = re.findall(r"[\w./-]+", said.split("; use ")[1].split(", the same weights")[0].split(", which")[0].split(" and ask")[0].replace(" or ", " "))
    assert offered and all(common.registry_name(o) in common.MODELS for o in offered), offered
    assert common.registry_name(name) == name, "a name that works needs no correction"


@pytest.mark.parametrize("written, own", [("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"), ("Qwen2.5-VL-3B", "qwen2.5-vl-3b"), ("qwen2.5-vl-7b-instruct", "qwen2.5-vl-7b"),
                                          ("internvl2-8b", "internvl2"), ("OpenGVLab/InternVL3-8B-hf", "internvl3-8b"), ("llava-hf/llava-v1.6-mistral-7b-hf", "llava-next"),
                                          ("zai-org/cogvlm2-llama3-chat-19B", "cogvlm2"), ("facebook/dinov2-large", "dinov2-l"), ("Lightricks/LTX-Video", "ltx"), ("dinov2-giant", "dinov2-g")])
def test_a_repository_of_the_registry_is_its_entry(written, own):
    assert common.find_model(written) == common.find_model(own) and common.find_model(own)["name"] == own


def test_a_folder_of_the_name_of_a_misnomer_or_a_repository_is_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("qwen2.5-vl", "facebook/dinov2-large"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text('{"model_type": "dinov2", "patch_size": 8}')
        assert common.find_model(name)["path"] == name and common.find_model(name)["weights"] == "unstated"


def test_the_small_models_answer_to_their_own_names_alone(refused):
    refused(lambda: common.find_model("vlm"), "unknown model 'vlm'")


def test_a_folder_that_is_no_model_is_refused(tmp_path, refused):
    refused(lambda: common.find_model(str(tmp_path)), tmp_path, "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(lambda: common.find_model(str(tmp_path)), "bert", "dinov2")


def test_a_local_folder_is_known_by_its_config_and_sized_to_whole_tokens(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl", "vision_config": {"patch_size": 14, "spatial_merge_size": 2}}')
    found = common.find_model(str(tmp_path))
    assert (found["kind"], found["weights"], found["name"]) == ("vlm", "unstated", tmp_path.name)
    assert found["size"] % 28 == 0 and found["size"] > 0


def test_every_size_in_the_registry_is_a_whole_number_of_tokens():
    step = {"dinov2": 14, "qwen2.5": 28, "ltx": 32}
    for name, entry in common.MODELS.items():
        for prefix, pixels in step.items():
            if name.startswith(prefix) and "size" in entry:
                assert entry["size"] % pixels == 0 and entry["clip"] % pixels == 0, name


# ---------------------------------------------------------------- a checkpoint that does not load: one sentence, with the remedy

REPOSITORY = "facebook/dinov2-small"


def hub_error(name, status):
    """One of huggingface_hub's own exceptions, as a response with this status raises it."""
    from huggingface_hub import errors
    response = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="https://huggingface.co", method="GET"))
    return getattr(errors, name)(f"{status} Client Error.", response=response)


def network_error(name):
    """What the library raises without a network; of its HTTP client, the very exception of a port where nobody listens."""
    import huggingface_hub
    if name == "client":
        try:
            huggingface_hub.get_hf_file_metadata("http://127.0.0.1:9/none")
        except Exception as e:
            return e
    return getattr(huggingface_hub.errors, name)("no network") if hasattr(huggingface_hub.errors, name) else {"ConnectionError": ConnectionError, "TimeoutError": TimeoutError}[name]("no network")


def fails_with(monkeypatch, error, wrapped, where):
    """Loading dinov2-s fails with `error`, in transformers (as the cause of an OSError, when `wrapped`) or already when the hub is asked for its config."""
    import huggingface_hub
    import transformers

    def fail(*args, **more):
        if wrapped:
            raise OSError("a long story.\nMore of it.") from error
        raise error
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail if where == "hub" else lambda *args, **more: None)
    if where == "processor":
        monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fail)
    elif where == "model":
        monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *args, **more: None)
        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", fail)


@pytest.mark.parametrize("where", ["hub", "processor", "model"])
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("make, words", [
    (lambda: hub_error("GatedRepoError", 403), (f"https://huggingface.co/{REPOSITORY}", "licence", "`hf auth login`")),
    (lambda: hub_error("GatedRepoError", 401), ("licence", "`hf auth login`")),
    (lambda: hub_error("HfHubHTTPError", 403), ("licence", "`hf auth login`")),
    (lambda: hub_error("RepositoryNotFoundError", 401), ("no such repository", "`hf auth login`")),
    (lambda: hub_error("RevisionNotFoundError", 404), ("no revision 'v9'", f"https://huggingface.co/{REPOSITORY}/commits/main", "--revision")),
    (lambda: network_error("OfflineModeIsEnabled"), ("HF_HUB_OFFLINE", f"`hf download {REPOSITORY}`", "MODEL")),
    *[(lambda name=name: network_error(name), ("cannot be reached", f"`hf download {REPOSITORY}`", "MODEL")) for name in ("LocalEntryNotFoundError", "ConnectionError", "TimeoutError", "client")],
], ids=lambda x: "" if callable(x) else x[0])
def test_what_the_hub_says_becomes_one_sentence_with_the_remedy(monkeypatch, refused, make, words, wrapped, where):
    import huggingface_hub.constants
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read from the environment when it was imported
    error = make()
    fails_with(monkeypatch, error, wrapped, where)
    refused(lambda: common.load_encoder(common.find_model("dinov2-s") | {"revision": "v9"}), f"cannot load {REPOSITORY}: ", *words)


def folder_with(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return {"path": str(folder), "name": folder.name, "kind": "encoder"}


def test_a_model_type_that_is_too_new_is_refused_with_the_version_that_is_installed(tmp_path, refused):
    import transformers
    entry = folder_with(tmp_path, model_type="qwen9_vl")
    refused(lambda: common.attempt(lambda: transformers.AutoConfig.from_pretrained(tmp_path), entry), tmp_path, "newer transformers", f"{transformers.__version__} is installed", "pip install -U")
    refused(lambda: common.attempt(lambda: transformers.utils.versions.require_version("transformers>=99.0"), entry), "transformers>=99.0", f"{transformers.__version__} is installed")


def test_a_checkpoint_that_needs_code_from_the_hub_is_refused_with_the_entry_to_use_instead(tmp_path, refused):
    from transformers import AutoConfig
    for name, instead in (("InternVL3-8B", "use internvl3-8b"), ("something-else", "`python extract.py --list`")):
        (tmp_path / name).mkdir()
        entry = folder_with(tmp_path / name, model_type="internvl_chat", auto_map={"AutoConfig": "configuration_own.Own"})
        refused(lambda e=entry: common.attempt(lambda: AutoConfig.from_pretrained(e["path"], trust_remote_code=False), e), tmp_path / name, "code from the hub", instead)


def test_transformers_never_asks_on_the_terminal_whether_to_run_code(monkeypatch, tmp_path, refused):
    entry = folder_with(tmp_path, model_type="own", auto_map={"AutoConfig": "configuration_own.Own", "AutoModel": "modelling_own.Own"})
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "BitImageProcessor"}')
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked"))
    refused(lambda: common.load_encoder(entry), "code from the hub")


def test_a_part_of_a_repository_is_fetched_as_that_part(monkeypatch, refused):
    import huggingface_hub

    def fail(*args, **more):
        raise ConnectionError("no network")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    refused(lambda: common.load_video_vae(common.find_model("ltx")), "`hf download Lightricks/LTX-Video --include vae/*`", "the folder vae in it")


@pytest.mark.parametrize("name", ["cogvlm2", "dinov2-s"])
def test_a_model_of_the_hub_without_a_network_is_refused_in_seconds(shapes_folder, tmp_path, name):
    """A port where nobody listens, so that a machine with a network cannot pass or fail otherwise; transformers by itself would go on trying for minutes."""
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "extract.py", "--model", name, "--data", str(shapes_folder), "--out", str(tmp_path / "out")], cwd=common.HERE,
                          capture_output=True, text=True, env=environment, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("error: cannot load ") and f"`hf download {common.MODELS[name]['path']}`" in lines[0] and not list((tmp_path / "out").rglob("*.*"))


def test_features_with_values_that_are_not_finite_are_refused(tmp_path, refused):
    x = torch.ones(2, 1, 2, 2, 3)
    x[1, 0, 0, 0, 0] = float("inf")
    common.save_pt(tmp_path / "layer.1" / "00000.pt", common.FEATURES, ["a", "b"], {}, features=x.half())
    common.save_yaml(tmp_path / "index.yaml", {"stage": "extract", "schema": common.FEATURES, "shards": 1, "points": {"layer.1": {}}, "ids": ["a", "b"]})
    _, read = common.load_features(tmp_path)
    refused(lambda: read("layer.1"), "layer.1", "1 non-finite")
    refused(lambda: read("layer.2"), "layer.2", "Did you mean 'layer.1'?")


def test_features_of_items_that_the_data_lack_are_refused(refused):
    items = [{"id": "a"}, {"id": "b"}]
    assert [i["id"] for i in common.join(items, {"ids": ["b", "a"]}, "f")] == ["b", "a"]
    refused(lambda: common.join(items, {"ids": ["a", "z"], "data_path": "data/x"}, "feature/folder"), "'z'", "feature/folder", "data/x")
