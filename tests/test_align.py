"""Alignment on planted spaces: independent noise first, then the same space turned, scaled and blurred."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import plant_features, planted_spaces
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

import align
import common


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, d, seed):
    return torch.randn(n, d, generator=generator(seed))


def compare(x, y, k=10, names=align.PAIRED):
    return {m: align.pairs([align.space_of(x)], [align.space_of(y)], m, k).item() for m in names}


def p_of(x, y, measure, blocks, n_perm, seed, k=10):
    a, b = ([align.space_of(z)] for z in (x, y))
    null = align.permuted(
        align.held(a, measure, k), align.held(b, measure, k), measure != "recall10", blocks, n_perm, seed
    )
    return align.p_values(align.pairs(a, b, measure, k), null)[0].item()


def singles(n):
    return [torch.tensor([i]) for i in range(n)]


# ---------------------------------------------------------------- measures


@pytest.mark.parametrize(("n", "d", "most"), [(200, 2000, 0.02), (50, 3584, 0.05)])
def test_cka_of_independent_noise_is_0(n, d, most):
    x, y = noise(n, d, 0), noise(n, d, 1)
    assert abs(compare(x, y)["cka"]) < most


def test_cka_is_the_ratio_of_unbiased_hsic_by_its_published_formula():
    def hsic(k, l):  # Song et al. 2012, equation 5
        n, one = len(k), np.ones(len(k))
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        return (
            np.trace(k @ l)
            + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ k @ l @ one)
        ) / (n * (n - 3))

    x = noise(30, 5, 0)
    y = x @ noise(5, 7, 1) + noise(30, 7, 2)
    k, l = ((z @ z.T).double().numpy() for z in (x, y))
    assert compare(x, y)["cka"] == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)), abs=1e-6)


@pytest.mark.parametrize("turned", ["self", "rotated", "rotated, scaled and shifted"])
def test_a_space_that_is_only_turned_scaled_or_shifted_is_the_same_space(turned):
    x = noise(60, 12, 0).double()
    y = x @ torch.linalg.qr(noise(12, 12, 1).double())[0] if "rotated" in turned else x
    y = (y * 0.01 if "scaled" in turned else y) + (7 if "shifted" in turned else 0)
    assert compare(x, y) == pytest.approx({"cka": 1, "spearman": 1, "recall10": 1}, abs=1e-5)


# 4.5 million distances: sums of their squared ranks in fp32 would lose digits
@pytest.mark.parametrize("n", [30, 3000])
def test_spearman_is_that_of_scipy_on_pairwise_distances(n):
    x = noise(n, 9, 0).double()
    y = x[:, :6] + 0.7 * noise(n, 6, 1).double()
    expected = spearmanr(*(pdist(z.numpy()) for z in (x, y))).statistic
    assert 0.2 < expected < 0.9
    assert compare(x, y, names=["spearman"])["spearman"] == pytest.approx(
        expected, abs=1e-6 if n == 30 else 1e-5
    )


def test_spearman_of_independent_noise_is_0():
    assert (
        abs(np.mean([compare(noise(50, 9, 2 * i), noise(50, 9, 2 * i + 1))["spearman"] for i in range(8)]))
        < 0.05
    )


def test_recall_of_independent_noise_is_its_chance_and_no_item_is_its_own_neighbour():
    n, k = 200, 10
    values = [compare(noise(n, 20, 2 * i), noise(n, 20, 2 * i + 1))["recall10"] for i in range(8)]
    assert np.mean(values) == pytest.approx(k / (n - 1), abs=0.01)
    near = align.neighbours(align.space_of(noise(n, 20, 0)), torch.arange(n))
    assert not near.diagonal().any() and (near.sum(1) == k).all()


def test_neighbours_are_the_nearest_items():
    near = align.neighbours(align.space_of(torch.arange(13.0)[:, None] ** 1.1), torch.arange(13), 2)
    assert [near[k].nonzero().flatten().tolist() for k in (0, 12)] == [[1, 2], [10, 11]]


def test_recall_of_two_spaces_that_share_half_of_the_neighbours_is_one_half():
    pairs = torch.tensor([0, 0.1, 10, 10.1, 20, 20.1, 30, 30.1])
    half = torch.tensor([0, 0.1, 10, 30, 20, 20.1, 30.1, 10.1])  # two of four pairs stay together
    assert compare(pairs[:, None], half[:, None], 1, ["recall10"])["recall10"] == pytest.approx(0.5)


def test_neighbours_of_an_items_own_source_do_not_count():
    twins = [noise(40, 8, k).repeat_interleave(2, 0) + 0.01 * noise(80, 8, 9 + k) for k in range(2)]
    sources = [str(i // 2) for i in range(80)]
    for given, expected in ((None, 0.5), (sources, 1 / 39)):
        found = align.pairs(*([align.space_of(x, given)] for x in twins), "recall10", 2).item()
        assert found == pytest.approx(expected, abs=0.05), given
    assert align.chance(sources, 2) == pytest.approx(2 / 78)
    assert align.chance(list(range(80)), 2) == pytest.approx(2 / 79)
    near = align.neighbours(align.space_of(twins[0], sources), torch.arange(80), 2)
    assert not near.view(40, 2, 40, 2).diagonal(dim1=0, dim2=2).any() and (near.sum(1) == 2).all()


def test_equal_distances_share_their_mean_rank():
    x = torch.randint(3, (30, 2), generator=generator(0)).double()
    y = x + (torch.randint(3, (30, 2), generator=generator(1)) > 1)
    a, b = (pdist(z.numpy()) ** 2 for z in (x, y))
    assert len(set(a)) < 10
    found = align.pairs([align.of_gram(x @ x.T)], [align.of_gram(y @ y.T)], "spearman")
    assert found.item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)


@pytest.mark.parametrize("measure", align.PAIRED)
def test_rows_by_blocks_give_what_whole_matrices_give_and_scale_is_nothing(monkeypatch, measure):
    spaces = [noise(150, 9, 0), noise(150, 9, 0) + noise(150, 9, 1), noise(150, 4, 2)]
    whole = align.compare(spaces, spaces[::-1], measure)
    monkeypatch.setattr(align, "EXACT", 10)
    own, small = ([align.space_of(x * scale) for x in spaces] for scale in (1, 0.01))
    assert torch.allclose(align.pairs(own, small[::-1], measure, block=64), whole, atol=1e-4)
    assert whole[[0, 1, 2], [2, 1, 0]].tolist() == pytest.approx([1, 1, 1], abs=1e-4)


def test_every_measure_falls_as_noise_grows():
    y = noise(120, 8, 0)
    ladder = [compare(y + s * noise(120, 8, 1), y) for s in (0.1, 0.5, 1, 2, 5)]
    for m in align.PAIRED:
        values = [step[m] for step in ladder]
        assert values == sorted(values, reverse=True) and values[0] > 0.75 and values[-1] < 0.3, (m, values)


# ---------------------------------------------------------------- permutations and intervals


@pytest.mark.parametrize("measure", align.PAIRED)
def test_p_is_uniform_where_nothing_is_shared(measure):
    ps = [
        p_of(noise(20, 5, 2 * k), noise(20, 5, 2 * k + 1), measure, singles(20), 39, k, 3) for k in range(150)
    ]
    assert np.mean(np.array(ps) <= 0.05) <= 0.10, "too many small p-values"
    assert 0.4 < np.mean(ps) < 0.65, np.mean(ps)  # ties of recall lift it a little above one half


def test_p_is_as_small_as_can_be_where_a_relation_is_planted():
    x = noise(40, 8, 0)
    for m in align.PAIRED:
        assert p_of(x, x + 0.5 * noise(40, 8, 1), m, singles(40), 99, 0) == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "draws"), [(50, 200), (100, 100), (500, 20), (2000, 5)])
def test_cka_of_independent_gaussians_is_0_on_the_mean(n, draws):
    g = generator(1)
    pairs = [[torch.randn(n, width, generator=g) for width in (3584, 128)] for _ in range(draws)]
    assert abs(sum(compare(x, y, names=["cka"])["cka"] for x, y in pairs)) / draws < 0.01


@pytest.mark.parametrize("measure", align.PAIRED)
def test_permuting_matrices_is_permuting_items(measure):
    x, y = [noise(30, 5, 0), noise(30, 5, 1)], [noise(30, 5, k) for k in (2, 3, 4)]
    a, b = (align.held([align.space_of(z) for z in side], measure, 3) for side in (x, y))
    null = align.permuted(a, b, measure != "recall10", singles(30), 4, 0)
    g = generator(0)
    for found in null:
        order = align.shuffle(singles(30), g)  # the smaller side, x, is permuted
        expected = align.pairs(
            [align.space_of(z[order]) for z in x], [align.space_of(z) for z in y], measure, 3
        )
        assert torch.allclose(found.double(), expected, atol=1e-5)


def test_the_largest_of_many_layers_of_noise_is_not_found_remarkable():
    alone, together = [], []
    for k in range(60):
        layers = [align.space_of(noise(20, 4, 100 * k + j)) for j in range(8)]
        target = [align.space_of(noise(20, 4, 100 * k + 50))]
        null = align.permuted(align.held(layers, "cka"), align.held(target, "cka"), True, singles(20), 39, k)
        p, p_max = align.p_values(align.pairs(layers, target, "cka"), null)
        alone.append(p.min().item() <= 0.05)
        together.append(p_max.min().item() <= 0.05)
    assert np.mean(alone) > 0.15 and np.mean(together) <= 0.12, (np.mean(alone), np.mean(together))


def test_sources_are_shuffled_whole_and_only_among_their_equals():
    blocks = [torch.tensor(b) for b in ([0, 5], [1, 2], [3, 4, 6], [7, 8, 9], [10], [11, 12])]
    seen = set()
    for k in range(30):
        order = align.shuffle(blocks, generator(k))
        assert sorted(order.tolist()) == list(range(13))
        for b in blocks:
            moved = tuple(order[b].tolist())
            assert moved in {tuple(c.tolist()) for c in blocks if len(c) == len(b)}
        seen.add(tuple(order.tolist()))
    assert len(seen) > 5


def test_items_of_a_source_that_agree_make_no_small_p():
    small = {"whole": 0, "torn": 0}
    for k in range(100):
        x, y = (
            noise(8, 6, 2 * k + j).repeat_interleave(4, 0) + 0.1 * noise(32, 6, 1000 + 2 * k + j)
            for j in range(2)
        )
        whole = [torch.arange(4 * i, 4 * i + 4) for i in range(8)]
        for name, blocks in (("whole", whole), ("torn", singles(32))):
            small[name] += p_of(x, y, "spearman", blocks, 39, k) <= 0.05
    assert small["whole"] <= 12 and small["torn"] > 50, small


def test_interval_of_cka_is_about_the_score_and_covers_0_for_noise_about_95_times_in_100():
    hits = 0
    for k in range(60):
        x, y = noise(40, 6, 2 * k), noise(40, 6, 2 * k + 1)
        value, low, high = align.jackknife([align.space_of(x)], [align.space_of(y)], "cka", singles(40))
        assert value == pytest.approx(compare(x, y)["cka"])
        hits += low <= 0 <= high
    assert hits >= 52, hits


# ---------------------------------------------------------------- linear prediction

SPLIT = {"train": torch.arange(40), "val": torch.arange(40, 60), "test": torch.arange(60, 90)}


def token_r2(x, y, **more):
    fit = align.token_r2(x, y, SPLIT, **more)
    p = (1 + (fit["null"] >= fit["reduced"]).sum().item()) / (1 + len(fit["null"])) if "null" in fit else None
    return align.r2_of(fit, SPLIT["test"]), p


def test_r2_of_noise_is_0_and_its_p_is_not_small():
    x, y = torch.randn(90, 9, 60, generator=generator(0)), torch.randn(90, 9, 4, generator=generator(1))
    found, p = token_r2(x, y, n_perm=19, blocks=singles(40))
    assert -0.1 < found < 0.02 and p > 0.1


def test_r2_of_a_planted_map_is_1_less_its_noise_and_its_p_is_small():
    x = torch.randn(90, 9, 12, generator=generator(0))
    y = x @ torch.linalg.qr(noise(12, 12, 1))[0] + torch.randn(90, 9, 12, generator=generator(2))
    found, p = token_r2(x, y, n_perm=19, blocks=singles(40))
    assert found == pytest.approx(0.5, abs=0.05) and p == 0.05


def test_r2_below_0_is_not_clipped():
    x = torch.randn(90, 9, 6, generator=generator(0))
    y = x @ noise(6, 3, 1)
    y[60:] *= -1  # on test items the relation is turned round: residual 2y, R2 = 1 - 4
    assert token_r2(x, y)[0] == pytest.approx(-3, abs=0.2)


def test_features_that_hold_only_the_position_predict_nothing():
    position = torch.randn(1, 9, 20, generator=generator(0))
    y = 5 * torch.randn(1, 9, 3, generator=generator(1)) + torch.randn(90, 9, 3, generator=generator(2))
    for x in (position.expand(90, -1, -1), position + 1e-3 * torch.randn(90, 9, 20, generator=generator(3))):
        assert token_r2(x, y)[0] == pytest.approx(0, abs=0.05)  # a plain R2 would be about 0.96


def test_r2_interval_resamples_sources_and_not_items():
    g = generator()
    residual = torch.rand(20, generator=g, dtype=torch.float64).repeat_interleave(6)
    variance = torch.ones(120, dtype=torch.float64)
    value, low, high = align.ratio_bootstrap(residual, variance, [i // 6 for i in range(120)])
    _, alone_low, alone_high = align.ratio_bootstrap(residual, variance, list(range(120)))
    assert value == pytest.approx(1 - residual.mean().item()) and low < value < high
    assert high - low > 1.8 * (alone_high - alone_low)  # sqrt(6) = 2.4


@pytest.mark.parametrize("d", [2, 5])
def test_dimension_of_a_flat_piece_is_its_own_and_copies_change_nothing(d):
    x = torch.rand(800, d, generator=generator(0)) @ torch.linalg.qr(noise(20, d, 1))[0].T
    found = align.intrinsic_dimension(torch.cat([x, x[:50]]))
    for name in ("two_nn", "mle", "participation", "two_nn_half", "participation_quarter"):
        assert found[name] == pytest.approx(d, rel=0.2), (name, found)
    assert found["mle_quarter"] < found["mle"] + 0.1  # few items: too small, as is known of it
    assert found["agree"]


def test_dimension_of_a_curled_line_is_one_to_its_neighbours_and_more_to_its_covariance_and_they_do_not_agree():
    t = torch.rand(600, 1, generator=generator(0))
    found = align.intrinsic_dimension(
        torch.cat([wave(k * t * 6.28) for wave in (torch.sin, torch.cos) for k in (1, 2, 3)], 1)
    )
    assert found["two_nn"] == pytest.approx(1, rel=0.15) and found["mle"] == pytest.approx(1, rel=0.25)
    assert found["participation"] > 4 and not found["agree"]


@pytest.mark.parametrize(("side", "wanted"), [((4, 6), (2, 3)), ((2, 3), (4, 6))])
def test_token_grids_are_pooled_or_repeated_cell_by_cell(side, wanted):
    x = torch.arange(1.0, 1 + side[0] * side[1]).view(1, 1, *side, 1)
    found = align.match(x, 1, *wanted).view(wanted)
    assert found[0, 0] == (x[0, 0, :2, :2].mean() if side == (4, 6) else 1)
    assert found.mean() == pytest.approx(x.mean().item())
    clip = torch.arange(8.0).view(1, 4, 1, 2, 1)  # time steps as rows and columns
    assert align.match(clip, 2, 1, 2).flatten().tolist() == [1, 2, 5, 6]


# ---------------------------------------------------------------- the record


def layer(score, val, n=101):
    row = {
        "score": score,
        "low": score - 0.1,
        "high": score + 0.1,
        "p": 0.01,
        "p_max": 0.02,
        "val": val,
        "n": n,
    }
    return {m: row for m in align.MEASURES} | {"recall10": row | {"chance": 0.1}}


def test_the_layer_is_chosen_on_val_though_another_is_better_in_the_report():
    found = align.record({"a": layer(0.9, 0.1), "b": layer(0.6, 0.7)}, {}, None, "cka", 2)
    assert (found["layer"], found["score"], found["options_searched"]) == ("b", 0.6, 2)
    assert (found["floor_name"], found["floor"]) == ("chance", 0)
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((0.5, 0.7))


def test_the_floor_is_the_best_of_chance_pixels_and_the_untrained_network():
    layers, random = {"a": layer(0.6, 0.7)}, {"a": layer(0.4, 0.9)}
    assert align.record(layers, {}, None, "recall10", 1)["floor"] == pytest.approx(0.1)  # 10 of 100 others
    assert align.record(layers, random, layer(0.3, 0.3), "cka", 1)["floor_name"] == "random_init"
    found = align.record(layers, random, layer(0.5, 0.5), "cka", 1)
    assert found["floor_name"] == "pixels" and (found["gain"], found["skill"]) == pytest.approx((0.1, 0.2))
    # both intervals are +- 0.1: the gain's is sqrt(2) as wide
    assert found["gain_low"] < 0 < found["gain_high"]


# ---------------------------------------------------------------- the stage

IDS = [f"item-{i}" for i in range(60)]
LATENTS = torch.randn(60, 1, 2, 2, 4, generator=generator(9))


def plant(folder, points, ids=IDS, data=None, **more):
    return plant_features(folder, ids, points, data, **more)


def world(tmp_path, points, target=LATENTS, ids=IDS, target_ids=None, gridless=()):
    """Items, features and latents on disk; the arguments that main needs."""
    same = {"width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}
    common.write_items(
        tmp_path / "data",
        [same | {"id": i, "source": i} for i in ids],
        {"data": "synthetic", "name": "planted"},
    )
    own = plant(tmp_path / "features", points, ids, tmp_path / "data", gridless=gridless)
    other = plant(tmp_path / "target", {"latents": target}, target_ids or ids, tmp_path / "data")
    return ["--features", own, "--target", other, "--permutations", "20"]


def near(s, seed=1):
    return LATENTS + s * torch.randn(LATENTS.shape, generator=generator(seed))


def test_main_chooses_the_planted_layer_and_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "align.yaml"
    result = align.main([*planted_spaces(tmp_path), "--out", str(out)])
    found = common.load_yaml(out, "align")
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.strip().splitlines())
    for m in align.MEASURES:
        assert found[f"{m}_layer"] == result["criteria"][m]["layer"] == printed[f"{m}_layer"] == "rotated"
        assert found[m] > 0.8 and found[m] == found["criteria"][m]["score"]
        assert float(printed[m]) == found[m]
        assert {f"{m}_low", f"{m}_high", f"{m}_floor", f"{m}_p"} <= found.keys()
        noise_score = found["layers"]["independent"][m]
        assert noise_score["score"] < 0.35 and noise_score["p_max"] > 0.05
        assert found["layers"]["rotated"][m]["low"] > noise_score["high"]
    assert found["chance_recall10"] == pytest.approx(10 / (found["criteria"]["cka"]["n"] - 1), rel=1e-5)
    assert found["run"]["seed"] == 0 and found["run"]["arguments"]["permutations"] == 50


def test_main_finds_the_layer_that_a_linear_map_of_the_latents_was_planted_in_and_says_how_sure_that_is(
    tmp_path,
):
    turned = LATENTS @ torch.randn(4, 9, generator=generator(30))
    found = align.main(world(tmp_path, {"before": near(0.5, 2), "here": turned, "after": near(0.5, 3)}))
    assert found["recommended"] == found["linear_r2_layer"] == "here" and found["recommended_share"] == 1
    assert found["linear_r2"] > 0.99 and all(r > 0.99 for r in found["channels"]["here"])
    same = align.main(world(tmp_path, {"a": near(1.0, 1), "b": near(1.0, 2)}))
    assert 0.2 < same["recommended_share"] < 0.99 and {same["recommended"], same["runner_up"]} == {"a", "b"}


def test_main_reports_pixels_and_the_untrained_network_as_floors_and_never_as_the_answer(tmp_path):
    args = world(tmp_path, {"layer.1": near(0.5), "pixels": near(0.1, 2)})
    untrained = plant(tmp_path / "random", {"layer.1": near(2.0, 3)}, data=tmp_path / "data")
    found = align.main([*args, "--random", untrained])["criteria"]["cka"]
    assert (found["layer"], found["floor_name"]) == ("layer.1", "pixels")
    assert set(found["floors"]) == {"chance", "pixels", "random_init"}
    assert found["gain_high"] < 0 < found["floors"]["random_init"] < found["score"]


def test_chance_of_recall_is_that_of_the_neighbours_that_are_counted(tmp_path):
    some = {s: [k for k in range(60) if common.split_of(IDS[k]) == s][:4] for s in ("train", "val", "test")}
    pick = some["train"] + some["val"] + some["test"]  # 8 items in the report: 6 neighbours each, of 7
    found = align.main(world(tmp_path, {"a": near(1)[pick]}, LATENTS[pick], [IDS[k] for k in pick]))
    assert found["chance_recall10"] == found["criteria"]["recall10"]["floor"] == pytest.approx(6 / 7)


def test_main_compares_all_layers_with_all_points_of_another_model_and_chooses_the_pair_on_val(tmp_path):
    args = world(tmp_path, {"near": near(0.2), "far": near(3.0)})
    plant(tmp_path / "target", {"vision.0": near(4.0, 5), "vision.1": near(0.1, 6)}, data=tmp_path / "data")
    align.main(args)
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    assert found["target_point"] == "vision.1"
    for m in align.PAIRED:
        b = found["pooled_best"][m]
        assert (b["layer"], b["point"], b["options_searched"]) == ("near", "vision.1", 4)
        assert b["p_max"] == pytest.approx(1 / 21, abs=1e-4)
        assert b["score"] == max(v for row in found["pooled"][m].values() for v in row.values())
    r2 = found["pooled"]["linear_r2"]
    assert r2["near"]["vision.1"] > 0.8 > 0.3 > r2["far"]["vision.1"]
    align.main([*args, "--target-point", "vision.0"])
    assert common.load_yaml(tmp_path / "align.yaml", "align")["linear_r2"] < 0.3


def test_with_more_items_than_are_held_at_once_scores_are_of_all_and_permutations_of_some(
    tmp_path, monkeypatch
):
    args = world(tmp_path, {"a": near(0.5), "b": near(2.0, 2)})
    whole = align.main(args)
    monkeypatch.setattr(align, "EXACT", 25)
    some = align.main(args)
    assert some["permuted_items"] == 25 < whole["permuted_items"] == whole["criteria"]["cka"]["n"]
    for m in align.PAIRED:
        for layer in "ab":
            one, other = (r["layers"][layer][m] for r in (whole, some))
            assert other["score"] == pytest.approx(one["score"], abs=1e-3) and other["n"] == one["n"]
            assert other["low"] < other["score"] < other["high"]
        assert some["pooled"][m]["a"] == pytest.approx(whole["pooled"][m]["a"], abs=1e-3)


def test_of_many_items_a_random_part_is_compared_that_the_seed_draws_and_the_yaml_states(
    tmp_path, monkeypatch
):
    points, study = {"a": near(0.5), "b": near(2.0, 2)}, tmp_path / "study.md"
    args = [
        *world(tmp_path, points),
        "--random",
        plant(tmp_path / "random", points, data=tmp_path / "data"),
        "--study",
        str(study),
    ]
    assert "subset" not in align.main(args)
    monkeypatch.setattr(align, "SUBSET", 40)
    other, found = (align.main([*args, "--seed", seed]) for seed in "10")
    assert (found["items"], found["subset"]) == (60, 40) and "40 of 60 items" in study.read_text()
    keep = torch.randperm(60, generator=generator(0))[:40].sort().values
    alone = align.main(
        world(
            tmp_path / "alone",
            {name: x[keep] for name, x in points.items()},
            LATENTS[keep],
            [IDS[k] for k in keep],
        )
    )
    assert alone["layers"] == found["layers"] != other["layers"] and alone["pooled"] == found["pooled"]


def test_channels_that_are_not_there_score_below_zero_and_are_not_clipped(tmp_path):
    x = near(0.1)
    x[..., 2:] = torch.randn(60, 1, 2, 2, 2, generator=generator(8))
    scores = align.main(world(tmp_path, {"a": x}))["channels"]["a"]
    assert min(scores[:2]) > 0.9 and max(scores[2:]) < 0.1 and min(scores[2:]) < 0


def test_the_report_is_written_from_the_yaml(tmp_path):
    args = [*world(tmp_path, {"a": near(0.3), "b": near(1.0, 2)}), "--study", str(tmp_path / "study.md")]
    align.main(args)
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    text = (tmp_path / "study.md").read_text()
    assert "**a**" in text
    assert f"{found['cka']:.3f} [{found['cka_low']:.3f}, {found['cka_high']:.3f}]" in text
    assert text == align.study(found)
    assert (tmp_path / "align.png").stat().st_size > 5000


def test_main_of_noise_claims_nothing(tmp_path):
    found = align.main(world(tmp_path, {"noise": torch.randn(60, 1, 2, 2, 4, generator=generator(6))}))
    for m, record in found["criteria"].items():
        assert record["p"] > 0.05 and record["gain_low"] < 0.05 and abs(record["gain"]) < 0.15, (m, record)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "stranger"), ("'item-59' is missing", "stranger")),
        (("--target", "reversed"), ("other order",)),
        (("--random", "reversed"), ("reversed",)),
        # without a floor that was asked for, the gain over the best floor would flatter
        (("--random", "lacking"), ("lacking", "layer.2")),
        (("--features", "broken"), ("layer.2", "1 non-finite")),
        (("--features", "constant"), ("layer.2", "same for every item")),
        (("--target-point", "latent"), ("latent", "latents")),
        (("--permutations", "0"), ("--permutations 0",)),
        (("--out", "target/index.yaml/align.yaml"), ("cannot write", "--out")),
    ],
)
def test_input_that_cannot_be_compared_is_refused(tmp_path, monkeypatch, refused, arguments, words):
    monkeypatch.chdir(tmp_path)
    args = world(tmp_path, {"layer.1": near(0.5), "layer.2": near(2.0)})
    broken = near(1)
    broken[3, 0, 1, 1, 2] = float("nan")
    other = {
        "stranger": ({"latents": LATENTS}, IDS[:-1] + ["stranger"]),
        "reversed": ({"latents": LATENTS}, IDS[::-1]),
        "lacking": ({"layer.1": near(2.0)}, IDS),
        "broken": ({"layer.2": broken}, IDS),
        "constant": ({"layer.2": near(1)[:1].expand(60, -1, -1, -1, -1)}, IDS),
    }
    for name in set(arguments) & set(other):
        plant(tmp_path / name, *other[name], data=tmp_path / "data")
    refused(lambda: align.main([*args, *arguments]), *words)


def test_too_few_items_are_refused(tmp_path, refused):
    refused(
        lambda: align.main(world(tmp_path, {"a": near(1)[:9]}, LATENTS[:9], IDS[:9])),
        "9 items",
        "at least 10",
    )


# ---------------------------------------------------------------- tokens without a place in the picture


def queries(s):
    """The latents, mixed over their places into five tokens, plus noise."""
    mixed = noise(5, 4, 20) @ LATENTS.flatten(1, 3)
    return (mixed + s * torch.randn(mixed.shape, generator=generator(21)))[:, None, None]


def test_a_layer_without_a_grid_is_compared_as_a_whole_and_predicts_no_cell(tmp_path):
    points = {"placed": near(1.0), "queries": queries(0.1)}
    random = {p: torch.randn(x.shape, generator=generator(22)) for p, x in points.items()}
    untrained = plant(tmp_path / "random", random, data=tmp_path / "data", gridless=("queries",))
    align.main([*world(tmp_path, points, gridless=("queries",)), "--random", untrained])
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    assert set(found["layers"]["placed"]) - set(found["layers"]["queries"]) == {"linear_r2"}
    assert (found["cka_layer"], found["linear_r2_layer"]) == ("queries", "placed")
    assert [found["criteria"][m]["options_searched"] for m in ("cka", "linear_r2")] == [2, 1]


def test_layers_without_a_grid_alone_have_no_r2_and_the_yaml_says_why(tmp_path):
    found = align.main(world(tmp_path, {"queries": queries(0.5)}, gridless=("queries",)))
    assert found["linear_r2"] is found["linear_r2_layer"] is None and "place" in found["linear_r2_reason"]
    assert "linear_r2" not in found["criteria"] and found["cka_layer"] == "queries"


def test_make_align_extracts_what_it_compares_and_writes_the_report():
    def would(*arguments):
        command = [
            "make",
            "-n",
            "-W",
            "data.py",
            "align",
            "MODEL=llava-next",
            "DATA=shapes",
            f"PY={sys.executable}",
        ]
        return subprocess.run([*command, *arguments], cwd=common.HERE, capture_output=True, text=True).stdout

    first, second = would(), would("TARGET=dinov2-l")
    assert "--target results/ltx/shapes/features --study results/llava-next/alignment-study.md" in first
    assert first.count("extract.py --model") == 3
    for words in (
        "--target results/dinov2-l/shapes/features",
        "--out results/llava-next/shapes/align-dinov2-l.yaml",
        "extract.py --model dinov2-l",
    ):
        assert words in second, words
