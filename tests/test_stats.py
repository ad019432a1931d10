"""Ridge, intervals, paired tests and the record of a criterion: null first, then planted effects."""

import math

import numpy as np
import pytest
import torch

import metrics
import stats


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def r2(found, true):
    return (1 - (found - true).square().sum() / (true - true.mean(0)).square().sum()).item()


def test_ridge_on_shuffled_boxes_is_no_better_than_a_constant_box():
    g, train, test = generator(), torch.arange(240), torch.arange(240, 400)
    corner = torch.rand(400, 2, generator=g) * 0.5
    boxes = torch.cat([corner, corner + 0.2 + 0.3 * torch.rand(400, 2, generator=g)], 1)
    x = boxes @ torch.randn(4, 500, generator=g) + 0.05 * torch.randn(400, 500, generator=g)
    wrong = boxes.clone()
    wrong[train] = boxes[train][torch.randperm(len(train), generator=g)]
    found = stats.ridge(x, {"true": boxes, "shuffled": wrong}, train, range(400))
    iou = {name: metrics.box_iou(z[test], boxes[test]).mean() for name, z in found.items()}
    constant = metrics.box_iou(boxes[train].mean(0).expand(len(test), 4), boxes[test]).mean()
    assert abs(r2(found["shuffled"][test], boxes[test])) < 0.1
    assert iou["shuffled"] < constant + 0.03 and iou["true"] > constant + 0.3


@pytest.mark.parametrize("n, d, noise", [(120, 600, 0.5), (200, 20, 0.1), (90, 90, 3.0)])
def test_ridge_chooses_and_predicts_as_scikit_learn_does(n, d, noise):
    """Equal penalties, leave-one-out error and predictions, of wide, tall and nearly collinear features."""
    from sklearn.linear_model import RidgeCV

    g = generator(n)
    x = torch.randn(n, d, generator=g) + 2
    x[:, 1] = x[:, 0] + 1e-3 * x[:, 1]
    y = x @ torch.randn(d, 1, generator=g) + noise * d**0.5 * torch.randn(n, 1, generator=g) + 7
    train, test = torch.arange(n * 2 // 3), torch.arange(n * 2 // 3, n)
    wide = x.double()
    penalties = stats.PENALTIES * (wide[train] - wide[train].mean(0)).square().sum() / len(train)
    theirs = RidgeCV(alphas=penalties.numpy()).fit(wide[train].numpy(), y[train, 0].double().numpy())
    assert penalties[0] < theirs.alpha_ < penalties[-1], "the optimum must lie inside the grid"
    kernels = torch.stack([wide[:, :9] @ wide[:, :9].T, wide @ wide.T])  # another layer and another task
    tasks = {"noise": torch.randn(n, 2, generator=g), "y": y}
    solved = stats.solve_ridge(*stats.spectrum(kernels, train), tasks, train, range(n))["y"]
    np.testing.assert_allclose(solved[0][1, test, 0], theirs.predict(wide[test].numpy()), rtol=1e-4)
    assert solved[1][1].item() == pytest.approx(-theirs.best_score_, rel=1e-4)


def test_token_ridge_finds_nothing_in_noise_and_a_planted_map_without_using_test_items():
    g, train, val = generator(), torch.arange(30), torch.arange(30, 45)
    x, noise = torch.randn(60, 9, 12, generator=g) + 1, torch.randn(60, 9, 3, generator=g)
    tasks = {"noise": noise, "planted": x @ torch.randn(12, 3, generator=g) + 4}
    tasks["both"] = tasks["planted"] + noise
    found = stats.token_ridge(x, tasks, train, val)
    assert abs(r2(found["noise"][45:].flatten(0, 1), noise[45:].flatten(0, 1))) < 0.05
    torch.testing.assert_close(found["planted"][45:], tasks["planted"][45:], rtol=1e-3, atol=1e-2)
    x[45:] = 1e3 * torch.randn(15, 9, 12, generator=g)
    for y in tasks.values():
        y[45:] = 1e3
    for task, z in stats.token_ridge(x, tasks, train, val).items():
        torch.testing.assert_close(z[:45], found[task][:45], rtol=1e-5, atol=1e-5)
    g, train, val = generator(), torch.arange(8), torch.arange(20, 40)  # the penalty is chosen on val
    x = torch.randn(60, 4, 40, generator=g)
    y = x @ torch.randn(40, 1, generator=g) + 30 * torch.randn(60, 4, 1, generator=g)
    errors = [(stats.token_ridge(x, {"y": y}, train, v)["y"] - y)[40:].square().mean() for v in (train, val)]
    assert errors[0] > 1.2 * errors[1]


def test_what_is_read_in_chunks_is_what_is_read_at_once(monkeypatch):
    g, train, val = generator(), torch.arange(20), torch.arange(20, 30)
    x, y = 50 + torch.randn(40, 9, 5, generator=g), torch.randn(40, 9, 3, generator=g)
    lazy = stats.Lazy(x.__getitem__, 40, lambda: (z.clone() for z in x.split(4, 1)))
    whole = stats.gram(x, train), stats.token_ridge(x, {"y": y}, train, val)["y"]
    monkeypatch.setattr(stats.chunks, "__kwdefaults__", {"most": 4 * 9 * 5 * 3})  # three items
    part = stats.gram(lazy, train), stats.token_ridge(lazy, {"y": y}, train, val)["y"]
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


def test_penalties_are_chosen_without_the_twins_of_an_item():
    """Every training image twice: with its twin in the fit, the smallest penalty looks best."""
    errors, train = {"source": [], "item": [], "constant": []}, torch.arange(200)
    sources = {"source": [i % 100 for i in range(200)] + list(range(100, 500)), "item": range(600)}
    for seed in range(10):
        g = generator(seed)
        x, noise = torch.randn(500, 300, generator=g), 1.2 * torch.randn(500, 1, generator=g)
        y = x.sum(1, keepdim=True) / 300**0.5 + noise
        twins = x[:100] + 0.01 * torch.randn(100, 300, generator=g)
        x, y = torch.cat([x[:100], twins, x[100:]]), torch.cat([y[:100], y])
        found = {name: stats.ridge(x, {"y": y}, train, rows)["y"] for name, rows in sources.items()}
        found["constant"] = y[train].mean().expand_as(y)
        for name, z in found.items():
            errors[name].append((z - y)[200:].square().mean().item())
    mean = {name: np.mean(values) for name, values in errors.items()}
    assert mean["source"] < mean["constant"] + 0.02 and mean["item"] > mean["constant"] + 0.2, mean


def test_errors_of_left_out_sources_are_those_of_fits_without_them():
    g, train, sources = generator(), torch.arange(12), [i // 3 for i in range(6)] + list(range(5, 11))
    x, y = torch.randn(12, 30, generator=g).double() + 2, torch.randn(12, 2, generator=g).double()
    solved = stats.spectrum((x @ x.T)[None], train)
    _, errors = stats.solve_ridge(*solved, {"y": y}, train, sources)["y"]
    penalties, best = stats.PENALTIES * solved[1].mean(), []
    for penalty in penalties:
        squares = []
        for source in set(sources):
            out = torch.tensor([s == source for s in sources])
            a, b = x[~out] - x[~out].mean(0), y[~out] - y[~out].mean(0)
            slope = torch.linalg.solve(a.T @ a + penalty * torch.eye(30), a.T @ b)
            squares.append((y[out] - y[~out].mean(0) - (x[out] - x[~out].mean(0)) @ slope).square())
        best.append(torch.cat(squares).mean(0))
    expected = min(best, key=lambda e: e.mean())
    torch.testing.assert_close(errors[0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [2, 5, 50])
def test_the_interval_of_clustered_scores_misses_the_true_mean_5_times_in_100(n):
    g, missed, sources = generator(), 0, [i // 3 for i in range(3 * n)]
    for _ in range(400):
        scores = 0.3 + torch.randn(n, generator=g).repeat_interleave(3) + torch.randn(3 * n, generator=g) / 9
        _, low, high = stats.mean_interval(scores, sources)
        missed += not low <= 0.3 <= high
    assert 0.02 <= missed / 400 <= 0.08, missed


@pytest.mark.parametrize("spread, chance", [(0.0, 0.0), (0.02, 0.0), (0.03, 0.0), (0.03, 0.05)])
def test_intervals_of_five_seeds_exclude_a_true_zero_5_times_in_100(spread, chance):
    """Item sd 0.1; averaging seeds before the interval excludes zero 13 to 25 times."""
    g, excluded, runs = generator(), 0, 2000
    for _ in range(runs):
        items, seeds = 0.1 * torch.randn(100, generator=g), spread * torch.randn(5, 1, generator=g)
        found = stats.paired_test(
            items + seeds + chance * torch.randn(5, 100, generator=g), torch.zeros(100), range(100)
        )
        assert (found["gain_low"] > 0 or found["gain_high"] < 0) == (found["p"] < 0.05)
        excluded += found["p"] < 0.05
    assert 0.03 <= excluded / runs <= 0.07, excluded


def test_the_interval_weighs_items_not_sources_and_adds_the_spread_of_seeds():
    large, small = [f"large-{i // 9}" for i in range(180)], [f"small-{i}" for i in range(20)]
    value, low, high = stats.mean_interval([1.0] * 180 + [0.0] * 20, large + small)
    assert value == pytest.approx(0.9) and 0.8 < low < 0.9 < high < 1.0  # a mean of sources: about 0.5
    items, sources = 0.1 * torch.randn(100, generator=generator()), list(range(100))
    same = stats.mean_interval(items.repeat(5, 1), sources)
    spread = stats.mean_interval(items + torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])[:, None], sources)
    assert same[0] == pytest.approx(items.mean().item(), abs=1e-6) == spread[0]
    assert same == pytest.approx(stats.mean_interval(items, sources))
    assert spread[2] - spread[1] > 5 * (same[2] - same[1])
    assert stats.mean_interval([0.2, 0.4], ["a", "a"])[1:] == (-math.inf, math.inf)


def test_pseudo_values_of_a_mean_are_its_items_and_of_any_statistic_average_to_it():
    x = torch.randn(2, 30, generator=generator(), dtype=torch.float64)
    deleted = (x.sum(1, keepdim=True) - x) / 29
    torch.testing.assert_close(stats.pseudo_values(x.mean(1), deleted), x)
    found = stats.pseudo_values(x.mean(1).square(), deleted.square())
    torch.testing.assert_close(found.mean(1), x.mean(1).square())


def test_the_paired_test_rejects_a_true_null_5_times_in_100_though_items_of_a_source_agree():
    g, small = generator(), 0
    for k in range(300):
        a, b = (torch.randn(20, generator=g).repeat_interleave(4) for _ in range(2))
        small += stats.paired_test(a, b, [i // 4 for i in range(80)], seed=k)["p"] <= 0.05
    assert 0.015 <= small / 300 <= 0.095, small  # items taken as independent: about 0.3


def test_the_paired_test_finds_a_planted_difference_in_items_of_very_different_difficulty():
    g, names = generator(), list(range(60))
    difficulty = 5 * torch.randn(60, generator=g)
    found = stats.paired_test(difficulty + 0.5 + 0.2 * torch.randn(60, generator=g), difficulty, names)
    assert found["gain"] == pytest.approx(0.5, abs=0.1) and found["gain_low"] > 0.3
    assert found["p"] == pytest.approx(1 / 2001)  # the smallest p of 2000 permutations, never 0
    assert stats.paired_test(difficulty, difficulty + 0.5, names)["gain_high"] < 0
    equal = {"gain": 0.0, "gain_low": 0.0, "gain_high": 0.0, "p": 1.0}
    for same in ([0.5] * 20, torch.full((3, 20), 0.5)):
        assert stats.paired_test(same, [0.5] * 20, list(range(20))) == equal
    seeds = torch.tensor([[0.0, 2.0, 4.0, 6.0], [2.0, 4.0, 6.0, 8.0]])
    assert stats.paired_test(seeds, [0.0] * 4, list("abcd"))["gain"] == 4.0


def test_holm_over_124_tests_can_reject_and_rejects_nothing_in_noise():
    g, names = generator(), list(range(40))
    noise = {k: torch.randn(40, generator=g) for k in range(124)}
    planted = noise | {k: noise[k] + 3 for k in range(0, 124, 2)}
    assert min(stats.holm(stats.sign_flips(noise, names)).values()) > 0.05
    found = stats.holm(stats.sign_flips(planted, names))
    assert max(found[k] for k in range(0, 124, 2)) < 0.05 and found[0] < 124 * 1.5 / 49600


def test_holm_agrees_with_a_hand_computed_example():
    found = stats.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})  # x3, x1 raised to c's, x2, x4
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    x, y = {"p": 0.01, "p_wilcoxon": 0.04}, {"p": 0.5, "p_wilcoxon": 0.02}
    gains = stats.adjusted({"x": x, "none": None, "y": y})
    assert gains["none"] is None and gains["x"]["p_holm"] == 0.02 and gains["y"]["p_wilcoxon_holm"] == 0.04


def test_a_ratio_of_means_has_the_value_and_interval_of_both_means():
    real = torch.rand(400, generator=generator(), dtype=torch.float64) + 0.01
    assert stats.ratio(2 * real[None], real).flatten().tolist() == pytest.approx([2.0] * 400)
    mixed = stats.ratio(real.flip(0)[None], real)  # a mean of single ratios is far above 1
    assert mixed.mean().item() == pytest.approx(1) and mixed.std() > 0.3


def test_the_ratio_of_two_adapters_is_one_between_equals_and_its_interval_covers_the_truth():
    g, sources, inside = torch.Generator().manual_seed(0), [str(i) for i in range(80)], 0
    a = torch.rand(3, 80, generator=g)
    assert stats.ratio_interval(a, a, sources) == (1.0, 1.0, 1.0)
    for seed in range(60):
        g.manual_seed(seed + 1)
        base = torch.rand(80, generator=g) + 0.5
        a, b = (base * k + 0.1 * torch.randn(3, 80, generator=g) for k in (1.2, 1))
        _, low, high = stats.ratio_interval(a, b, sources)
        inside += low <= 1.2 <= high
    assert inside >= 51  # of 60 at 95%: fewer happens once in a thousand times


def test_wilcoxon_is_scipys_on_sources_and_gains_leave_out_clips_without_a_score():
    from scipy.stats import wilcoxon

    x, names = torch.randn(12, generator=generator()), list("abcdefg")
    pairs = wilcoxon(x.double().view(6, 2).mean(1).numpy()).pvalue
    assert stats.signed_rank(x, list("aabbccddeeff")) == pairs and stats.signed_rank(0 * x, range(12)) == 1
    errors = torch.tensor([[1.0, 2, torch.nan, 3, 4, 5, 6]], dtype=torch.float64)
    found = stats.gain_of(errors, errors + 1, names, 0)
    assert found["gain"] == found["gain_low"] == 1 and found["p_wilcoxon"] == pytest.approx(2 / 2**6)
    assert stats.gain_of(errors * torch.nan, errors, names, 0) is None
    assert stats.averaged("l1", errors, names)["l1"] == 3.5


def test_a_verdict_over_several_gains_is_that_of_the_worst():
    for low, high, answer in ((0.01, 0.3, "yes"), (-0.01, 0.3, "inconclusive"), (-0.3, 0.04, "no")):
        bounds = ({"gain_low": a, "gain_high": b} for a, b in ((0.1, 0.2), (low, high)))
        assert stats.verdict(*bounds) == answer


def test_the_record_of_a_score_that_should_be_low_or_high_has_the_best_baseline_and_a_positive_gain():
    noise = 0.01 * torch.randn(30, generator=generator())
    baselines = {"bad": 0.9 + noise, "best": 0.5 + noise}
    found = stats.criterion(0.2 + noise, baselines, list(range(30)), upper_bound=0.1, better="lower")
    assert (found["baseline_name"], found["better"]) == ("best", "lower")
    assert found["gain"] == pytest.approx(0.3, abs=1e-6) and found["gain_low"] > 0
    assert found["skill"] == pytest.approx(0.3 / (0.4 + noise.mean().item()), abs=1e-6)
    baselines = {"constant": [0.4] * 8, "pixels": [0.2] * 8}
    found = stats.criterion([0.6] * 8, baselines, list("aabbccdd"), upper_bound=0.8)
    assert (found["baseline_name"], found["n"], found["sources"]) == ("constant", 8, 4)
    assert found["gain"] == pytest.approx(0.2) and found["skill"] == pytest.approx(0.5)
    for better in ("higher", "lower"):  # no headroom: no skill
        assert stats.criterion([0.7] * 8, baselines, list("aabbccdd"), 0.4, better)["skill"] is None


def test_a_band_is_the_plans_target_acceptable_or_fail_in_either_direction():
    bands = "target", "acceptable", "between acceptable and fail", "fail"
    assert tuple(stats.band(x, (0.6, 0.5, 0.4)) for x in (0.61, 0.55, 0.45, 0.3)) == bands
    assert tuple(stats.band(x, (0.3, 0.35, 0.45), "lower") for x in (0.2, 0.33, 0.4, 0.5)) == bands


def test_shuffled_labels_that_score_above_the_baseline_without_features_are_a_leak():
    noise = 0.05 * torch.rand(60, generator=generator())

    def leak(shuffled, blind="constant", **more):
        baselines = {"constant": 0.4 + noise, "shuffled": shuffled + noise.flip(0)}
        return stats.criterion(0.9 + noise, baselines, list(range(60)), blind=blind, **more)["leak"]

    assert leak(0.4) is None and leak(0.45) is None  # a tenth of the headroom is 0.06
    assert leak(0.6) == "shuffled" and leak(0.6, blind=None) is None
    lower = {"better": "lower", "upper_bound": 0.0}
    assert leak(0.2, **lower) == "shuffled" and leak(0.6, **lower) is None


def test_the_detectable_gain_is_found_four_times_in_five():
    g, sources, found = generator(), [str(i) for i in range(200)], []
    for _ in range(120):
        baseline, *noise = torch.rand(200, generator=g), *(0.1 * torch.randn(2, 200, generator=g))
        null = stats.criterion(baseline + noise[0], {"baseline": baseline}, sources)
        shifted = stats.criterion(baseline + noise[1] + null["mde"], {"baseline": baseline}, sources)
        found.append(shifted["gain_low"] > 0)
    assert 0.68 <= sum(found) / len(found) <= 0.91  # a standard error of 0.037 around 0.80
