"""Alignment on planted spaces: independent noise first, then the same space turned, scaled and blurred."""
import math
import subprocess
import sys

import cka_null
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import pdist
from scipy.stats import kstest, spearmanr

import align
import common


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, d, seed):
    return torch.randn(n, d, generator=generator(seed))


PLAIN = ("cka", "spearman", "recall10")


def compare(x, y, k=10, names=PLAIN):
    return {m: align.pairs([align.space_of(x)], [align.space_of(y)], m, k).item() for m in names}


def p_of(x, y, measure, blocks, n_perm, seed, k=10):
    a, b = ([align.space_of(z)] for z in (x, y))
    null = align.permuted(align.held(a, measure, k), align.held(b, measure, k), measure != "recall10", blocks, n_perm, seed)
    return align.p_values(align.pairs(a, b, measure, k), null)[0].item()


def singles(n):
    return [torch.tensor([i]) for i in range(n)]


# ---------------------------------------------------------------- measures

def test_cka_of_independent_noise_is_0_where_the_biased_one_is_not():
    x, y = noise(200, 2000, 0), noise(200, 2000, 1)
    assert abs(compare(x, y)["cka"]) < 0.02
    k, l = (z.double() - z.double().mean(0) for z in (x, y))
    k, l = k @ k.T, l @ l.T
    assert (k * l).sum() / (k.norm() * l.norm()) > 0.8  # what counting the diagonal makes of nothing


def test_cka_is_the_ratio_of_unbiased_hsic_by_its_published_formula():
    def hsic(k, l):  # Song et al. 2012, equation 5
        n, one = len(k), np.ones(len(k))
        k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
        return (np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))
    x = noise(30, 5, 0)
    y = x @ noise(5, 7, 1) + noise(30, 7, 2)
    k, l = ((z @ z.T).double().numpy() for z in (x, y))
    assert compare(x, y)["cka"] == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)), abs=1e-6)


@pytest.mark.parametrize("turned", ["self", "rotated", "scaled", "shifted", "rotated, scaled and shifted"])
def test_a_space_that_is_only_turned_scaled_or_shifted_is_the_same_space(turned):
    x = noise(60, 12, 0).double()
    y = x @ torch.linalg.qr(noise(12, 12, 1).double())[0] if "rotated" in turned else x
    y = (y * 0.01 if "scaled" in turned else y) + (7 if "shifted" in turned else 0)
    assert compare(x, y) == pytest.approx({"cka": 1, "spearman": 1, "recall10": 1}, abs=1e-5)


def test_scaling_one_side_by_a_hundredth_changes_no_measure():
    x = noise(60, 12, 0)
    y = x + noise(60, 12, 1)
    assert compare(x, y * 0.01) == pytest.approx(compare(x, y), abs=1e-5)


def test_spearman_is_that_of_scipy_on_pairwise_distances():
    x = noise(30, 9, 0).double()
    y = x[:, :6] + 0.7 * noise(30, 6, 1).double()
    apart = [pdist(z.numpy()) for z in (x, y)]
    assert all(np.diff(np.sort(d**2)).min() > 1e-6 * np.mean(d**2) for d in apart)  # nearer ones fp32 may exchange, which is no error of the ranks
    expected = spearmanr(*apart).statistic
    assert 0.2 < expected < 0.9
    assert compare(x, y)["spearman"] == pytest.approx(expected, abs=1e-6)
    assert abs(np.mean([compare(noise(50, 9, 2 * i), noise(50, 9, 2 * i + 1))["spearman"] for i in range(8)])) < 0.05


def test_recall_of_independent_noise_is_its_chance_and_no_item_is_its_own_neighbour():
    n, k = 200, 10
    values = [compare(noise(n, 20, 2 * i), noise(n, 20, 2 * i + 1))["recall10"] for i in range(8)]
    assert np.mean(values) == pytest.approx(k / (n - 1), abs=0.01)
    near = align.neighbours(align.space_of(noise(n, 20, 0)), torch.arange(n))
    assert not near.diagonal().any() and (near.sum(1) == k).all()


def test_neighbours_are_the_nearest_items():
    near = align.neighbours(align.space_of(torch.arange(13.0)[:, None] ** 1.1), torch.arange(13), 2)
    assert near[0].nonzero().flatten().tolist() == [1, 2] and near[12].nonzero().flatten().tolist() == [10, 11]


def test_recall_of_two_spaces_that_share_half_of_the_neighbours_is_one_half():
    pairs, half = torch.tensor([0, 0.1, 10, 10.1, 20, 20.1, 30, 30.1]), torch.tensor([0, 0.1, 10, 30, 20, 20.1, 30.1, 10.1])  # two of four pairs stay together
    assert compare(pairs[:, None], half[:, None], 1, ["recall10"])["recall10"] == pytest.approx(0.5)


def test_neighbours_of_an_items_own_source_do_not_count():
    twins, sources = [noise(40, 8, k).repeat_interleave(2, 0) + 0.01 * noise(80, 8, 9 + k) for k in range(2)], [str(i // 2) for i in range(80)]
    for given, expected in ((None, 0.5), (sources, 1 / 39)):
        found = align.pairs(*([align.space_of(x, given)] for x in twins), "recall10", 2).item()
        assert found == pytest.approx(expected, abs=0.05), given
    assert align.chance(sources, 2) == pytest.approx(2 / 78) and align.chance(list(range(80)), 2) == pytest.approx(2 / 79)
    near = align.neighbours(align.space_of(twins[0], sources), torch.arange(80), 2)
    assert not near.view(40, 2, 40, 2).diagonal(dim1=0, dim2=2).any() and (near.sum(1) == 2).all()


def test_cknna_is_its_published_formula_on_u_centred_kernels():
    x, y, k = noise(25, 6, 0).double(), noise(25, 6, 1).double(), 4
    y = x + 0.5 * y
    values, near = [], []
    for z in (x, y):
        gram = z @ z.T
        gram.fill_diagonal_(0)
        r = gram.sum(1) / 23
        values.append(gram - r[:, None] - r + r.sum() / 24)
        d = torch.cdist(z, z).fill_diagonal_(math.inf)
        near.append(torch.zeros(25, 25).scatter_(1, d.topk(k, largest=False).indices, 1.0))
    both = (near[0] * near[1] * values[0] * values[1]).sum()
    expected = both / ((near[0] * values[0] ** 2).sum() * (near[1] * values[1] ** 2).sum()).sqrt()  # Huh et al. 2024, equation 15: alpha(i, j) is 1 between mutual neighbours
    assert compare(x, y, k, ["cknna"])["cknna"] == pytest.approx(expected.item(), abs=1e-5) and 0.1 < expected < 0.95


def test_equal_distances_share_their_mean_rank():
    x = torch.randint(3, (30, 2), generator=generator(0)).double()
    y = x + (torch.randint(3, (30, 2), generator=generator(1)) > 1)
    a, b = (pdist(z.numpy()) ** 2 for z in (x, y))
    assert len(set(a)) < 10
    assert align.pairs([align.of_gram(x @ x.T)], [align.of_gram(y @ y.T)], "spearman").item() == pytest.approx(spearmanr(a, b).statistic, abs=1e-6)


@pytest.mark.parametrize("outlier", [1, 1000])
def test_ranks_in_bins_are_nearly_the_sorted_ones_whatever_an_outlier_does(monkeypatch, outlier):
    x = noise(300, 12, 0)
    y = x + noise(300, 12, 1)
    x[0] *= outlier
    exact = compare(x, y)["spearman"]
    monkeypatch.setattr(align, "EXACT", 10)
    assert compare(x, y)["spearman"] == pytest.approx(exact, abs=1e-4) and 0.1 < exact < 0.95


@pytest.mark.parametrize("measure", align.PAIRED)
def test_rows_by_blocks_give_what_whole_matrices_give_and_scale_is_nothing(monkeypatch, measure):
    spaces = [noise(150, 9, 0), noise(150, 9, 0) + noise(150, 9, 1), noise(150, 4, 2)]
    whole = align.compare(spaces, spaces[::-1], measure)
    monkeypatch.setattr(align, "EXACT", 10)
    blocks = align.pairs([align.space_of(x) for x in spaces], [align.space_of(x * 0.01) for x in spaces[::-1]], measure, block=64)
    assert torch.allclose(blocks, whole, atol=1e-4) and torch.allclose(whole[[0, 1, 2], [2, 1, 0]], torch.ones(3, dtype=torch.float64), atol=1e-4)


def test_batches_of_many_items_are_unbiased(monkeypatch):
    x = noise(400, 20, 0)
    y = x[:, :10] + 0.5 * noise(400, 10, 1)
    whole = {m: align.compare([x], [y], m).item() for m in ("cka", "spearman")}
    monkeypatch.setattr(align, "BATCH", 100)
    for m, value in whole.items():
        assert align.compare([x], [y], m, [str(i // 2) for i in range(400)]).item() == pytest.approx(value, abs=0.03)
        assert abs(align.compare([noise(400, 900, 4)], [noise(400, 900, 5)], m).item()) < 0.05


def test_biased_cka_of_noise_is_what_the_option_says_of_it():
    assert align.biased_cka(noise(50, 3584, 0), noise(50, 3584, 1)) > 0.8 and abs(compare(noise(50, 3584, 0), noise(50, 3584, 1))["cka"]) < 0.05


def test_every_measure_falls_as_noise_grows():
    y = noise(120, 8, 0)
    ladder = [compare(y + s * noise(120, 8, 1), y) for s in (0.1, 0.5, 1, 2, 5)]
    for m in PLAIN:
        values = [step[m] for step in ladder]
        assert values == sorted(values, reverse=True) and values[0] > 0.75 and values[-1] < 0.3, (m, values)


# ---------------------------------------------------------------- permutations and intervals

@pytest.mark.parametrize("measure", ["cka", "spearman", "recall10"])
def test_p_is_uniform_where_nothing_is_shared(measure):
    ps = []
    for k in range(150):
        ps.append(p_of(noise(20, 5, 2 * k), noise(20, 5, 2 * k + 1), measure, singles(20), 39, k, 3))
    assert np.mean(np.array(ps) <= 0.05) <= 0.10, "too many small p-values"
    assert 0.4 < np.mean(ps) < 0.65, np.mean(ps)  # ties of recall lift it a little above one half


def test_p_is_as_small_as_can_be_where_a_relation_is_planted():
    x = noise(40, 8, 0)
    for m in PLAIN:
        assert p_of(x, x + 0.5 * noise(40, 8, 1), m, singles(40), 99, 0) == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "biased"), [(50, 0.84), (100, 0.74), (500, 0.42), (2000, 0.2)])
def test_cka_of_independent_gaussians_is_0_on_the_mean_where_the_biased_one_is_far_from_it(n, biased):
    found = cka_null.measure(n, cka_null.DRAWS[n], seed=1)
    assert abs(found["debiased"]) < 0.01 and found["biased"] == pytest.approx(biased, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["cka", "spearman"])
def test_p_is_uniform_under_the_null_by_kolmogorov_and_smirnov(measure):
    ps = [p_of(noise(24, 5, 2 * k), noise(24, 5, 2 * k + 1), measure, singles(24), 199, k) for k in range(200)]
    assert kstest(np.array(ps) - np.random.default_rng(0).uniform(0, 1 / 200, 200), "uniform").pvalue > 0.01  # a p lies on a grid of 1 / 200


@pytest.mark.parametrize("measure", align.PAIRED)
def test_permuting_matrices_is_permuting_items(measure):
    x, y = [noise(30, 5, 0), noise(30, 5, 1)], [noise(30, 5, k) for k in (2, 3, 4)]
    null = align.permuted(*(align.held([align.space_of(z) for z in side], measure, 3) for side in (x, y)), measure in ("cka", "spearman"), singles(30), 4, 0)
    g = generator(0)
    for found in null:
        order = align.shuffle(singles(30), g)  # the smaller side, x, is permuted
        expected = align.pairs([align.space_of(z[order]) for z in x], [align.space_of(z) for z in y], measure, 3)
        assert torch.allclose(found.double(), expected, atol=1e-5)


def test_the_largest_of_many_layers_of_noise_is_not_found_remarkable():
    alone, together = [], []
    for k in range(60):
        layers, target = [align.space_of(noise(20, 4, 100 * k + j)) for j in range(8)], [align.space_of(noise(20, 4, 100 * k + 50))]
        p, p_max = align.p_values(align.pairs(layers, target, "cka"), align.permuted(align.held(layers, "cka"), align.held(target, "cka"), True, singles(20), 39, k))
        alone.append(p.min().item() <= 0.05)
        together.append(p_max.min().item() <= 0.05)
    assert np.mean(alone) > 0.15 and np.mean(together) <= 0.12, (np.mean(alone), np.mean(together))


def test_what_two_spaces_share_only_through_a_nuisance_is_taken_out_and_the_rest_is_left():
    z, own = noise(200, 2, 0), noise(200, 3, 1)
    spaces = [align.space_of(torch.cat([3 * z, extra], 1)) for extra in (noise(200, 3, 2), noise(200, 3, 3), own, own + 0.2 * noise(200, 3, 4))]
    for m in ("cka", "spearman"):
        a, b, c, d = align.held(spaces, m)
        nuisance = align.held([align.space_of(z)], m)
        assert (a * b).sum() > 0.5 and (c * d).sum() > 0.5
        left = align.without(torch.stack([a, b, c, d]), nuisance)
        assert abs((left[0] * left[1]).sum()) < 0.1 and (left[2] * left[3]).sum() > 0.4
    xy, xz, yz = (a * b).sum(), (a * nuisance[0]).sum(), (b * nuisance[0]).sum()
    assert (left[0] * left[1]).sum() == pytest.approx(((xy - xz * yz) / ((1 - xz**2) * (1 - yz**2)).sqrt()).item(), abs=1e-4)  # partial correlation


def test_nuisances_are_where_the_largest_object_is_its_pictures_colour_and_light():
    def item(x, value, frames=1):
        boxes = torch.tensor([[[x, 0.0, x + 4, 4], [0, 0, 1, 1]]]).repeat(frames, 1, 1)
        return {"width": 16, "height": 16, "frames": torch.full((frames, 16, 16, 3), value, dtype=torch.uint8), "boxes": boxes if frames > 1 else boxes[0]}
    for frames in (1, 3):
        found = align.nuisances([item(x, v, frames) for x, v in ((0, 10), (4, 20), (8, 60))])
        assert found["position"][:, 0] == pytest.approx([-1, 0, 1], abs=1e-5) and not found["position"][:, 1].any()  # standardised; none moves down
        assert found["colour"].shape == (3, 3) and found["luminance"][0, 0] < found["luminance"][1, 0] < found["luminance"][2, 0]
    assert "position" not in align.nuisances([item(0, 10) | {"boxes": torch.empty(0, 4)}, item(4, 30)])


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
        x, y = (noise(8, 6, 2 * k + j).repeat_interleave(4, 0) + 0.1 * noise(32, 6, 1000 + 2 * k + j) for j in range(2))
        whole = [torch.arange(4 * i, 4 * i + 4) for i in range(8)]
        for name, blocks in (("whole", whole), ("torn", singles(32))):
            small[name] += p_of(x, y, "spearman", blocks, 39, k) <= 0.05
    assert small["whole"] <= 12 and small["torn"] > 50, small


def test_interval_of_cka_holds_the_score_and_is_narrower_with_more_items():
    def width(n):
        x = noise(n, 6, 0)
        value, low, high = (v.item() for v in align.jackknife([align.space_of(x)], [align.space_of(x + noise(n, 6, 1))], "cka", singles(n)))
        assert low < value < high and value == pytest.approx(compare(x, x + noise(n, 6, 1))["cka"])
        return high - low
    assert 0 < width(400) < 0.7 * width(50)


def test_interval_of_cka_covers_0_for_noise_about_95_times_in_100():
    hits = 0
    for k in range(60):
        _, low, high = align.jackknife([align.space_of(noise(40, 6, 2 * k))], [align.space_of(noise(40, 6, 2 * k + 1))], "cka", singles(40))
        hits += low <= 0 <= high
    assert hits >= 52, hits


# ---------------------------------------------------------------- linear prediction

SPLIT = {"train": torch.arange(40), "val": torch.arange(40, 60), "test": torch.arange(60, 90)}


def token_r2(x, y, **more):
    fit = align.token_r2(x, y, SPLIT, **more)
    return align.r2_of(fit, SPLIT["test"]), (1 + (fit["null"] >= fit["reduced"]).sum().item()) / (1 + len(fit["null"])) if "null" in fit else None


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
    assert token_r2(position.expand(90, -1, -1), y)[0] == pytest.approx(0, abs=0.05)  # a plain R2 would be about 0.96
    x = position + 1e-3 * torch.randn(90, 9, 20, generator=generator(3))
    assert token_r2(x, y)[0] == pytest.approx(0, abs=0.05)


def test_r2_interval_resamples_sources_and_not_items():
    g = generator()
    residual = torch.rand(20, generator=g, dtype=torch.float64).repeat_interleave(6)
    variance = torch.ones(120, dtype=torch.float64)
    value, low, high = align.ratio_bootstrap(residual, variance, [i // 6 for i in range(120)])
    _, alone_low, alone_high = align.ratio_bootstrap(residual, variance, list(range(120)))
    assert value == pytest.approx(1 - residual.mean().item()) and low < value < high
    assert high - low > 1.8 * (alone_high - alone_low)  # sqrt(6) = 2.4


def test_procrustes_sees_a_rotation_and_a_scale_and_not_noise():
    train, test, x = torch.arange(120), torch.arange(120, 180), noise(180, 10, 0) * torch.arange(1, 11)
    turn = torch.linalg.qr(noise(10, 10, 1))[0]
    assert align.procrustes(x, 5 * x @ turn + 3, train, test) == pytest.approx(1, abs=1e-5)
    assert align.procrustes(x, noise(180, 10, 2), train, test) < 0.02


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
    found = align.intrinsic_dimension(torch.cat([torch.sin(k * t * 6.28) for k in (1, 2, 3)] + [torch.cos(k * t * 6.28) for k in (1, 2, 3)], 1))
    assert found["two_nn"] == pytest.approx(1, rel=0.15) and found["mle"] == pytest.approx(1, rel=0.25) and found["participation"] > 4 and not found["agree"]


@pytest.mark.parametrize(("side", "wanted"), [((4, 6), (2, 3)), ((2, 3), (4, 6))])
def test_token_grids_are_pooled_or_repeated_cell_by_cell(side, wanted):
    x = torch.arange(1.0, 1 + side[0] * side[1]).view(1, 1, *side, 1)
    found = align.match(x, 1, *wanted).view(wanted)
    assert found[0, 0] == (x[0, 0, :2, :2].mean() if side == (4, 6) else 1)
    assert found.mean() == pytest.approx(x.mean().item())


# ---------------------------------------------------------------- the record

def layer(score, val, n=101):
    return {m: {"score": score, "low": score - 0.1, "high": score + 0.1, "p": 0.01, "p_max": 0.02, "val": val, "n": n} | ({"chance": 0.1} if m == "recall10" else {}) for m in align.MEASURES}


def test_the_layer_is_chosen_on_val_though_another_is_better_in_the_report():
    found = align.record({"a": layer(0.9, 0.1), "b": layer(0.6, 0.7)}, {}, None, "cka", 2)
    assert (found["layer"], found["score"], found["options_searched"]) == ("b", 0.6, 2)
    assert (found["floor_name"], found["floor"], found["gain_low"], found["gain_high"]) == ("chance", 0, pytest.approx(0.5), pytest.approx(0.7))


def test_the_floor_is_the_best_of_chance_pixels_and_the_untrained_network():
    layers, random = {"a": layer(0.6, 0.7)}, {"a": layer(0.4, 0.9)}
    assert align.record(layers, {}, None, "recall10", 1)["floor"] == pytest.approx(0.1)  # 10 of 100 others
    assert align.record(layers, random, layer(0.3, 0.3), "cka", 1)["floor_name"] == "random_init"
    found = align.record(layers, random, layer(0.5, 0.5), "cka", 1)
    assert found["floor_name"] == "pixels" and found["gain"] == pytest.approx(0.1) and found["skill"] == pytest.approx(0.2)
    assert found["gain_low"] < 0 < found["gain_high"]  # both intervals are +- 0.1: the gain's is sqrt(2) as wide


# ---------------------------------------------------------------- the stage

IDS = [f"item-{i}" for i in range(60)]
LATENTS = torch.randn(60, 1, 2, 2, 4, generator=generator(9))


def plant(folder, points, ids=IDS, data=None, schema=common.FEATURES, gridless=()):
    """A features folder as extract.py writes it; points {name: [n, t, h, w, D]}."""
    for name, x in points.items():
        common.save_pt(folder / name / "00000.pt", schema, ids, {}, features=x.half())
    rows = {k: {"shape": list(x.shape[1:])} | ({"grid": False} if k in gridless else {}) for k, x in points.items()}
    common.save_pt(folder / "pooled.pt", common.POOLED, ids, {}, pooled={k: {"mean": x.mean((2, 3)), "max": x.amax((2, 3))} for k, x in points.items()})
    common.save_yaml(folder / "index.yaml", {"stage": "extract", "schema": schema, "model": "planted", "weights": "random", "data": "synthetic", "data_path": str(data),
                                             "shards": 1, "points": rows, "ids": ids})
    return str(folder)


def world(tmp_path, points, target=LATENTS, ids=IDS, target_ids=None, gridless=()):
    """Items, features and latents on disk; the arguments that main needs."""
    frame = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    common.write_items(tmp_path / "data", [{"id": i, "source": i, "width": 8, "height": 8, "frames": frame} for i in ids], {"data": "synthetic", "name": "planted"})
    return ["--features", plant(tmp_path / "features", points, ids, tmp_path / "data", gridless=gridless),
            "--target", plant(tmp_path / "target", {"latents": target}, target_ids or ids, tmp_path / "data"),
            "--permutations", "20"]


def near(s, seed=1):
    return LATENTS + s * torch.randn(LATENTS.shape, generator=generator(seed))


def test_main_chooses_the_planted_layer_and_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "align.yaml"
    result = align.main(["--smoke", "--out", str(out)])
    found = common.load_yaml(out, "align")
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.strip().splitlines())
    for m in align.MEASURES:
        assert found[f"{m}_layer"] == result["criteria"][m]["layer"] == printed[f"{m}_layer"] == "rotated"
        assert found[m] > 0.8 and found[m] == found["criteria"][m]["score"] and float(printed[m]) == found[m]
        assert {f"{m}_low", f"{m}_high", f"{m}_floor", f"{m}_p"} <= found.keys()
        noise_score = found["layers"]["independent"][m]
        assert noise_score["score"] < 0.35 and noise_score["p_max"] > 0.05
        assert found["layers"]["rotated"][m]["low"] > noise_score["high"]
    assert found["chance_recall10"] == pytest.approx(10 / (found["criteria"]["cka"]["n"] - 1), rel=1e-5)
    assert found["run"]["seed"] == 0 and found["run"]["arguments"]["permutations"] == 50


def test_main_puts_a_ladder_of_noise_in_order_and_writes_beside_the_features(tmp_path):
    align.main(world(tmp_path, {f"layer.{k}": near(s) for k, s in enumerate((3.0, 1.0, 0.2))}))
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    for m in align.MEASURES:
        scores = [found["layers"][f"layer.{k}"][m]["score"] for k in range(3)]
        assert scores == sorted(scores) and found[f"{m}_layer"] == "layer.2", (m, scores)


def test_main_finds_the_layer_that_a_linear_map_of_the_latents_was_planted_in(tmp_path):
    turned = LATENTS @ torch.randn(4, 9, generator=generator(30))
    found = align.main(world(tmp_path, {"before": near(0.5, 2), "here": turned, "after": near(0.5, 3)}))
    assert found["recommended"] == found["linear_r2_layer"] == "here" and found["linear_r2"] > 0.99 and found["recommended_share"] == 1
    assert all(r > 0.99 for r in found["channels"]["here"]) and found["at_layer"]["linear_r2_back"] > 0.99


def test_main_reports_pixels_and_the_untrained_network_as_floors_and_never_as_the_answer(tmp_path):
    args = world(tmp_path, {"layer.1": near(0.5), "pixels": near(0.1, 2)})
    untrained = plant(tmp_path / "random", {"layer.1": near(2.0, 3)}, data=tmp_path / "data")
    found = align.main([*args, "--random", untrained])["criteria"]["cka"]
    assert (found["layer"], found["floor_name"], set(found["floors"])) == ("layer.1", "pixels", {"chance", "pixels", "random_init"})
    assert found["gain_high"] < 0 < found["floors"]["random_init"] < found["score"]


def test_main_refuses_an_untrained_network_that_lacks_a_layer(tmp_path, refused):
    args = world(tmp_path, {"layer.1": near(0.5), "layer.2": near(2.0)})
    for name in ("layer.2", "layer.3"):  # without a floor that was asked for, the gain over the best floor would flatter
        untrained = plant(tmp_path / name, {name: near(2.0, 3)}, data=tmp_path / "data")
        refused(lambda untrained=untrained: align.main([*args, "--random", untrained]), untrained, "layer.1")


def test_chance_of_recall_is_that_of_the_neighbours_that_are_counted(tmp_path):
    some = {s: [k for k in range(60) if common.split_of(IDS[k]) == s][:4] for s in ("train", "val", "test")}
    pick = some["train"] + some["val"] + some["test"]  # 8 items in the report: 6 neighbours each, of 7
    found = align.main(world(tmp_path, {"a": near(1)[pick]}, LATENTS[pick], [IDS[k] for k in pick]))
    assert found["chance_recall10"] == pytest.approx(6 / 7) and found["criteria"]["recall10"]["floor"] == pytest.approx(6 / 7)


def test_main_compares_all_layers_with_all_points_of_another_model_and_chooses_the_pair_on_val(tmp_path):
    args = world(tmp_path, {"near": near(0.2), "far": near(3.0)})
    plant(tmp_path / "target", {"vision.0": near(4.0, 5), "vision.1": near(0.1, 6)}, data=tmp_path / "data")
    align.main(args)
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    assert found["target_point"] == "vision.1" and {p: set(row) for p, row in found["pooled"]["cka"].items()} == {p: {"vision.0", "vision.1"} for p in ("near", "far")}
    for m in ("cka", "spearman", "recall10"):
        b = found["pooled_best"][m]
        assert (b["layer"], b["point"], b["options_searched"]) == ("near", "vision.1", 4) and b["p_max"] == pytest.approx(1 / 21, abs=1e-4)
        assert b["score"] == max(v for row in found["pooled"][m].values() for v in row.values())
    assert found["pooled"]["linear_r2"]["near"]["vision.1"] > 0.8 > 0.3 > found["pooled"]["linear_r2"]["far"]["vision.1"]
    align.main([*args, "--target-point", "vision.0"])
    assert common.load_yaml(tmp_path / "align.yaml", "align")["linear_r2"] < 0.3


def test_main_refuses_a_point_that_the_target_lacks_and_no_permutations(tmp_path, refused):
    args = world(tmp_path, {"a": near(1)})
    refused(lambda: align.main([*args, "--target-point", "latent"]), "latent", "latents")
    refused(lambda: align.main([*args, "--permutations", "0"]), "--permutations 0")


def test_with_more_items_than_are_held_at_once_scores_are_of_all_and_permutations_of_some(tmp_path, monkeypatch):
    args = world(tmp_path, {"a": near(0.5), "b": near(2.0, 2)})
    whole = align.main(args)
    monkeypatch.setattr(align, "EXACT", 25)
    some = align.main(args)
    assert some["permuted_items"] == 25 < whole["permuted_items"] == whole["criteria"]["cka"]["n"]
    for m in ("cka", "cknna", "spearman", "recall10"):
        for layer in "ab":
            one, other = (r["layers"][layer][m] for r in (whole, some))
            assert other["score"] == pytest.approx(one["score"], abs=1e-3) and other["n"] == one["n"] and other["low"] < other["score"] < other["high"]
    assert some["pooled"]["spearman"]["a"]["latents"] == pytest.approx(whole["pooled"]["spearman"]["a"]["latents"], abs=1e-3) and some["controls_hold"]


def test_main_says_how_sure_the_choice_of_a_layer_is(tmp_path):
    assert align.main(world(tmp_path, {"a": near(0.2), "b": near(2.0, 2)}))["recommended_share"] == 1
    same = align.main(world(tmp_path, {"a": near(1.0, 1), "b": near(1.0, 2)}))
    assert 0.2 < same["recommended_share"] < 0.99 and {same["recommended"], same["runner_up"]} == {"a", "b"}


def test_channels_that_are_not_there_score_below_zero_and_are_not_clipped(tmp_path):
    x = near(0.1)
    x[..., 2:] = torch.randn(60, 1, 2, 2, 2, generator=generator(8))
    align.main(world(tmp_path, {"a": x}))
    good, bad = (common.load_yaml(tmp_path / "align.yaml", "align")["channels"]["a"][k] for k in (slice(0, 2), slice(2, 4)))
    assert min(good) > 0.9 and max(bad) < 0.1 and min(bad) < 0


def test_the_report_is_written_from_the_yaml_beside_a_picture_and_the_biased_figure_only_on_request(tmp_path):
    args = [*world(tmp_path, {"a": near(0.3), "b": near(1.0, 2)}), "--study", str(tmp_path / "study.md")]
    align.main(args)
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    text = (tmp_path / "study.md").read_text()
    for words in ("**a**", f"{found['cka']:.3f} [{found['cka_low']:.3f}, {found['cka_high']:.3f}]", "0.687", "0.258", f"Procrustes, 32 components): {found['at_layer']['procrustes']:.3f}"):
        assert words in text, words
    assert "cka_biased" not in found["at_layer"] and text == align.study(found)
    with Image.open(tmp_path / "align.png") as picture:
        low, high = picture.convert("L").getextrema()
        assert min(picture.size) > 200 and low < 50 and high > 200
    at = align.main([*args, "--biased"])["at_layer"]
    assert at["cka_biased"] > found["layers"]["a"]["cka"]["score"] and at["cka_biased_null"] > 0.1


def test_a_control_that_does_not_hold_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(align, "shuffle", lambda blocks, g: torch.arange(sum(len(b) for b in blocks)))  # nothing is shuffled
    found = align.main(world(tmp_path, {"a": near(1.0)}))
    assert not found["controls_hold"] and "shuffled of cka" in found["controls_broken"] and "Trust nothing" in align.study(common.plain(found))


def test_time_steps_of_clips_are_matched_as_rows_and_columns_are():
    x = torch.arange(8.0).view(1, 4, 1, 2, 1)
    assert align.match(x, 2, 1, 2).flatten().tolist() == [1, 2, 5, 6]


def test_main_of_noise_claims_nothing(tmp_path):
    found = align.main(world(tmp_path, {"noise": torch.randn(60, 1, 2, 2, 4, generator=generator(6))}))
    for m, record in found["criteria"].items():
        assert record["p"] > 0.05 and record["gain_low"] < 0.05 and abs(record["gain"]) < 0.15, (m, record)


def test_main_refuses_other_items_and_names_one(tmp_path, refused):
    refused(lambda: align.main(world(tmp_path, {"a": near(1)}, target_ids=IDS[:-1] + ["stranger"])), "'item-59' is missing", tmp_path / "target")
    refused(lambda: align.main(world(tmp_path, {"a": near(1)}, target_ids=IDS[::-1])), "other order")
    args = world(tmp_path, {"a": near(1)})
    refused(lambda: align.main([*args, "--random", plant(tmp_path / "random", {"a": near(1)}, IDS[::-1])]), tmp_path / "random")


def test_main_refuses_features_that_are_not_finite(tmp_path, refused):
    x = near(1)
    x[3, 0, 1, 1, 2] = float("nan")
    refused(lambda: align.main(world(tmp_path, {"layer.7": x})), "layer.7", "1 non-finite")


def test_main_refuses_too_few_items(tmp_path, refused):
    refused(lambda: align.main(world(tmp_path, {"a": near(1)[:9]}, LATENTS[:9], IDS[:9])), "9 items", "at least 10")


def test_main_refuses_a_layer_that_is_the_same_for_every_item(tmp_path, refused):
    refused(lambda: align.main(world(tmp_path, {"layer.7": near(1)[:1].expand(60, -1, -1, -1, -1)})), "layer.7", "same for every item")


def test_main_refuses_latents_that_are_the_same_for_every_item(tmp_path, refused):
    refused(lambda: align.main(world(tmp_path, {"layer.7": near(1)}, LATENTS[:1].expand(60, -1, -1, -1, -1))), "latents", "same for every item")


def test_main_refuses_a_missing_folder_and_another_schema(tmp_path, refused):
    args = world(tmp_path, {"a": near(1)})
    refused(lambda: align.main(["--features", str(tmp_path / "nowhere"), *args[2:]]), tmp_path / "nowhere", "does not exist")
    other = plant(tmp_path / "old", {"latents": LATENTS}, data=tmp_path / "data", schema="foresight.features.v0")
    refused(lambda: align.main([*args, "--target", other]), "foresight.features.v0", common.FEATURES)


def test_main_refuses_an_unwritable_place_before_the_work(tmp_path, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: align.main([*world(tmp_path, {"a": near(1)}), "--out", str(tmp_path / "file" / "align.yaml")]), "cannot write", "--out")


# ---------------------------------------------------------------- tokens without a place in the picture

def queries(s):
    """The latents, mixed over their places into five tokens, plus noise."""
    mixed = noise(5, 4, 20) @ LATENTS.flatten(1, 3)
    return (mixed + s * torch.randn(mixed.shape, generator=generator(21)))[:, None, None]


def test_a_layer_without_a_grid_is_compared_as_a_whole_and_predicts_no_cell(tmp_path):
    points = {"placed": near(1.0), "queries": queries(0.1)}
    untrained = plant(tmp_path / "random", {p: torch.randn(x.shape, generator=generator(22)) for p, x in points.items()}, data=tmp_path / "data", gridless=("queries",))
    align.main([*world(tmp_path, points, gridless=("queries",)), "--random", untrained])
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    assert set(found["layers"]["queries"]) == set(align.PAIRED) and set(found["layers"]["placed"]) == {*align.PAIRED, "linear_r2"}
    assert (found["cka_layer"], found["linear_r2_layer"]) == ("queries", "placed")
    assert (found["criteria"]["cka"]["options_searched"], found["criteria"]["linear_r2"]["options_searched"]) == (2, 1)


def test_layers_without_a_grid_alone_have_no_r2_and_the_yaml_says_why(tmp_path):
    found = align.main(world(tmp_path, {"queries": queries(0.5)}, gridless=("queries",)))
    assert found["linear_r2"] is None and found["linear_r2_layer"] is None and "place" in found["linear_r2_reason"]
    assert "linear_r2" not in found["criteria"] and found["cka_layer"] == "queries"


def test_make_align_extracts_what_it_compares_and_writes_the_report():
    def would(*arguments):
        return subprocess.run(["make", "-n", "-W", "data.py", "align", "MODEL=llava-next", "DATA=photos", f"PY={sys.executable}", *arguments], cwd=common.HERE, capture_output=True, text=True).stdout
    first, second = would(), would("TARGET=dinov2-l")
    assert "--target results/ltx/photos/features --study results/llava-next/alignment-study.md" in first and first.count("extract.py --model") == 3
    assert "--target results/dinov2-l/photos/features" in second and "--out results/llava-next/photos/align-dinov2-l.yaml" in second and "extract.py --model dinov2-l" in second
