"""Alignment on planted spaces: independent noise first, then the same space rotated and with noise."""

import numpy as np
import pytest
import torch
from helpers import generator, plant_features
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

import align
import common

SPLIT = {"train": torch.arange(40), "val": torch.arange(40, 60), "test": torch.arange(60, 90)}
WRONG = {
    "--target stranger": ("'item-59' is missing", "stranger"),
    "--random reversed": ("reversed",),
    "--features broken": ("layer.2", "non-finite"),
    "--random target": ("'layer.1'", "target"),
    "--features constant": ("layer.2", "same for every item"),
    "--features few --target few": ("9 items", "at least 10"),
    "--target-point latent": ("latent", "latents"),
    "--out target/index.yaml/align.yaml": ("cannot write", "--out"),
}
IDS = [f"item-{i}" for i in range(60)]
LATENTS = torch.randn(60, 1, 2, 2, 4, generator=generator(9))


def noise(*shape_seed):
    return torch.randn(shape_seed[:-1], generator=generator(shape_seed[-1]))


def compare(x, y, k=10, names=align.PAIRED):
    return {m: align.pairs([align.space_of(x)], [align.space_of(y)], m, k).item() for m in names}


def test_independent_noise_scores_0_and_a_rotated_scaled_and_shifted_space_is_the_same_space():
    rows = [compare(noise(200, 20, 2 * i), noise(200, 20, 2 * i + 1)) for i in range(8)]
    mean = {m: np.mean([row[m] for row in rows]) for m in align.PAIRED}
    assert abs(mean["cka"]) < 0.02 and abs(mean["spearman"]) < 0.05
    assert mean["recall10"] == pytest.approx(10 / 199, abs=0.01)
    x = noise(120, 12, 0).double()
    y = 0.01 * x @ torch.linalg.qr(noise(12, 12, 1).double())[0] + 7
    assert compare(x, y) == pytest.approx({"cka": 1, "spearman": 1, "recall10": 1}, abs=1e-5)


def test_cka_is_the_ratio_of_unbiased_hsic_by_its_published_formula():
    def hsic(k, l):  # Song et al. 2012, equation 5
        n, one = len(k), np.ones(len(k))
        sums = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + sums - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    x = noise(30, 5, 0)
    y = x @ noise(5, 7, 1) + noise(30, 7, 2)
    k, l = ((z @ z.T).double().fill_diagonal_(0).numpy() for z in (x, y))
    assert compare(x, y)["cka"] == pytest.approx(hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5, abs=1e-6)


def test_spearman_is_that_of_scipy_on_pairwise_distances_also_with_ties():
    x = noise(1500, 9, 0).double()  # a million squared ranks would lose precision in fp32
    y = x[:, :6] + 0.7 * noise(1500, 6, 1).double()
    expected = spearmanr(*(pdist(z.numpy()) for z in (x, y))).statistic
    assert compare(x, y, names=["spearman"])["spearman"] == pytest.approx(expected, abs=1e-5)
    x = torch.randint(3, (30, 2), generator=generator(0)).double()
    y = x + (torch.randint(3, (30, 2), generator=generator(1)) > 1)
    expected = spearmanr(*(pdist(z.numpy()) ** 2 for z in (x, y))).statistic
    found = align.pairs([align.of_gram(x @ x.T)], [align.of_gram(y @ y.T)], "spearman")
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_neighbours_are_the_nearest_items_of_other_sources():
    twins = [noise(40, 8, k).repeat_interleave(2, 0) + 0.01 * noise(80, 8, 9 + k) for k in range(2)]
    sources = [str(i // 2) for i in range(80)]
    for given, expected in ((None, 0.5), (sources, 1 / 39)):
        found = align.pairs(*([align.space_of(x, given)] for x in twins), "recall10", 2).item()
        assert found == pytest.approx(expected, abs=0.05), given
    assert [align.chance(x, 2) for x in (sources, range(80))] == pytest.approx([2 / 78, 2 / 79])


@pytest.mark.parametrize("measure", align.PAIRED)
def test_p_is_uniform_for_noise_smallest_for_a_planted_relation_and_of_permuted_items(measure):
    def p_of(x, y, n_perm, seed, k):
        a, b = ([align.space_of(z)] for z in (x, y))
        held = (align.held(z, measure, k) for z in (a, b))
        null = align.permuted(*held, measure != "recall10", torch.arange(len(x)).split(1), n_perm, seed)
        return align.p_values(align.pairs(a, b, measure, k), null)[0].item()

    ps = [p_of(noise(20, 5, 2 * k), noise(20, 5, 2 * k + 1), 39, k, 3) for k in range(150)]
    assert np.mean(np.array(ps) <= 0.05) <= 0.10 and 0.4 < np.mean(ps) < 0.65, np.mean(ps)
    x = noise(40, 8, 0)
    assert p_of(x, x + 0.5 * noise(40, 8, 1), 99, 0, 10) == pytest.approx(0.01)
    x, y = [noise(30, 5, 0), noise(30, 5, 1)], [noise(30, 5, k) for k in (2, 3, 4)]
    a, b = (align.held([align.space_of(z) for z in side], measure, 3) for side in (x, y))
    (found,) = align.permuted(a, b, measure != "recall10", torch.arange(30).split(1), 1, 0)
    order = align.shuffle(torch.arange(30).split(1), generator(0))  # the smaller side, x, is permuted
    spaces = ([align.space_of(z) for z in side] for side in ([z[order] for z in x], y))
    assert torch.allclose(found.double(), align.pairs(*spaces, measure, 3), atol=1e-5)


def test_sources_are_permuted_whole_among_those_of_equal_size_and_the_largest_has_its_own_p():
    blocks = [torch.tensor(b) for b in ([0, 5], [1, 2], [3, 4, 6], [7, 8, 9], [10], [11, 12])]
    orders = [align.shuffle(blocks, generator(k)) for k in range(30)]
    for order in orders:
        assert {tuple(order[b].tolist()) for b in blocks} == {tuple(b.tolist()) for b in blocks}
    assert len({str(order) for order in orders}) > 5
    null = torch.stack([noise(4, 3, k) for k in range(19)])
    observed = torch.full((4, 3), null.flatten(1).max(1).values.median().item())
    p, p_max = align.p_values(observed, null)
    assert p_max.flatten().tolist() == pytest.approx([11 / 20] * 12) and p.max() < 0.3
    assert torch.allclose(p, (1 + (null >= observed).sum(0)) / 20)


def test_intervals_cover_0_for_noise_95_times_in_100_and_resample_sources_not_items():
    hits = 0
    for k in range(60):
        x, y = noise(40, 6, 2 * k), noise(40, 6, 2 * k + 1)
        spaces = [align.space_of(x)], [align.space_of(y)]
        value, low, high = align.jackknife(*spaces, "cka", torch.arange(40).split(1))
        hits += low <= 0 <= high
    assert value == pytest.approx(compare(x, y)["cka"]) and 52 <= hits <= 60, hits
    residual = torch.rand(20, generator=generator(), dtype=torch.float64).repeat_interleave(6)
    sources = [i // 6 for i in range(120)], range(120)
    two = [align.ratio_bootstrap(residual, torch.ones_like(residual), list(names)) for names in sources]
    (value, low, high), (_, alone_low, alone_high) = two
    assert value == pytest.approx(1 - residual.mean().item()) and low < value < high
    assert high - low > 1.8 * (alone_high - alone_low)  # sqrt(6) = 2.4


def token_r2(x, y, **more):
    fit = align.token_r2(x, y, SPLIT, **more)
    p = (1 + (fit["null"] >= fit["reduced"]).sum().item()) / (1 + len(fit["null"])) if "null" in fit else None
    return align.r2_of(fit, SPLIT["test"]), p


def test_r2_is_0_of_noise_and_of_positions_and_1_less_the_noise_of_a_planted_map():
    null = {"n_perm": 19, "blocks": torch.arange(40).split(1)}
    found, p = token_r2(noise(90, 9, 60, 0), noise(90, 9, 4, 1), **null)
    assert -0.1 < found < 0.02 and p > 0.1
    x = noise(90, 9, 12, 0)
    found, p = token_r2(x, x @ torch.linalg.qr(noise(12, 12, 1))[0] + noise(90, 9, 12, 2), **null)
    assert found == pytest.approx(0.5, abs=0.05) and p == 0.05
    y = x @ noise(12, 3, 1)
    y[60:] *= -1  # the relation is reversed on test: R2 = 1 - 4, not clipped
    assert token_r2(x, y)[0] == pytest.approx(-3, abs=0.2)
    position = noise(9, 20, 0)
    y = 5 * noise(9, 3, 1) + noise(90, 9, 3, 2)
    for x in (position.expand(90, -1, -1), position + 1e-3 * noise(90, 9, 20, 3)):
        assert token_r2(x, y)[0] == pytest.approx(0, abs=0.05)  # a plain R2 is about 0.96


def test_the_dimension_of_a_plane_is_its_own():
    x = torch.rand(800, 5, generator=generator(0)) @ torch.linalg.qr(noise(20, 5, 1))[0].T
    found = align.intrinsic_dimension(torch.cat([x, x[:50]]))  # copies change nothing
    names = ("two_nn", "mle", "participation", "two_nn_half", "participation_quarter")
    assert [found[k] for k in names] == pytest.approx([5] * 5, rel=0.2) and found["agree"], found


def test_token_grids_are_pooled_or_repeated_cell_by_cell():
    x = torch.arange(1.0, 25).view(1, 1, 4, 6, 1)
    assert align.match(x, 1, 2, 3).view(2, 3)[0, 0] == x[0, 0, :2, :2].mean()
    assert torch.equal(align.match(x, 1, 8, 12).view(8, 12)[::2, 1::2], x[0, 0, ..., 0])
    clip = torch.arange(8.0).view(1, 4, 1, 2, 1)  # time steps as rows, columns
    assert align.match(clip, 2, 1, 2).flatten().tolist() == [1, 2, 5, 6]


def test_the_layer_is_chosen_on_val_and_the_baseline_is_the_best_of_three():
    def layer(score, val):
        row = {"score": score, "low": score - 0.1, "high": score + 0.1, "p": 0.01, "p_max": 0.02, "val": val}
        return {"cka": row | {"n": 101}}

    found = align.record({"a": layer(0.9, 0.1), "b": layer(0.6, 0.7)}, {}, None, "cka", 2)
    assert (found["layer"], found["baseline_name"], found["baseline"]) == ("b", "chance", 0)
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((0.5, 0.7))
    found = align.record({"a": layer(0.6, 0.7)}, {"a": layer(0.4, 0.9)}, layer(0.5, 0.5), "cka", 1)
    assert found["baseline_name"] == "pixels" and (found["gain"], found["skill"]) == pytest.approx((0.1, 0.2))
    assert found["gain_low"] < 0 < found["gain_high"]  # sqrt(2) times the half-width of 0.1


def near(s, seed=1):
    return LATENTS + s * noise(60, 1, 2, 2, 4, seed)


def planted(folder, points, target=LATENTS, ids=IDS, gridless=(), random=None):
    same = {"width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}
    items = [same | {"id": i, "source": i} for i in ids]
    common.write_items(folder / "data", items, {"data": "synthetic", "name": "planted"})
    features = plant_features(folder / "features", ids, points, folder / "data", gridless=gridless)
    other = plant_features(folder / "target", ids, {"latents": target}, folder / "data")
    args = ["--features", features, "--target", other, "--permutations", "20"]
    if random:
        args += ["--random", plant_features(folder / "random", ids, random, folder / "data")]
    return args


def test_main_chooses_the_planted_layer_and_writes_what_it_prints(tmp_path, capsys):
    study, half = tmp_path / "study.md", near(0.5, 3)
    half[..., 2:] = noise(60, 1, 2, 2, 2, 8)
    points = {"rotated": near(0.05) @ torch.linalg.qr(noise(4, 4, 2))[0], "half": half}
    args = planted(tmp_path, points | {"before": near(0.5, 2), "independent": noise(60, 1, 2, 2, 4, 3)})
    align.main([*args, "--out", str(tmp_path / "align.yaml"), "--study", str(study)])
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.strip().splitlines())
    for m in align.MEASURES:
        assert found[f"{m}_layer"] == printed[f"{m}_layer"] == "rotated" and float(printed[m]) == found[m]
        assert found[m] > 0.8 and found[m] == found["criteria"][m]["score"]
        null = found["layers"]["independent"][m]
        assert null["score"] < 0.35 and null["p_max"] > 0.05 and null["high"] < found[f"{m}_low"]
    assert found["recommended"] == "rotated" and found["recommended_share"] == 1
    assert found["linear_r2"] > 0.99 and all(r > 0.99 for r in found["channels"]["rotated"])
    channels = found["channels"]["half"]
    assert min(channels[:2]) > 0.6 and max(channels[2:]) < 0.1 and min(channels[2:]) < 0  # not clipped
    choice = align.main([*args, "--choose", str(tmp_path / "choice.yaml")])
    assert common.load_yaml(tmp_path / "choice.yaml", "align") == choice and choice["points"] == "rotated"
    assert set(align.MEASURES) < set(choice["layers"]) and choice["layers"]["recommended"] == "rotated"
    assert "**rotated**" in study.read_text() and (tmp_path / "align.png").stat().st_size > 5000


def test_noise_gains_nothing_and_pixels_and_the_untrained_network_are_baselines(tmp_path):
    found = align.main(planted(tmp_path, {"noise": noise(60, 1, 2, 2, 4, 6)}))
    for m, record in found["criteria"].items():
        assert record["p"] > 0.05 and record["gain_low"] < 0.05 and abs(record["gain"]) < 0.15, (m, record)
    mixed = (noise(5, 4, 20) @ LATENTS.flatten(1, 3))[:, None, None] + 0.1 * noise(60, 1, 1, 5, 4, 21)
    points = {"layer.1": near(0.5), "pixels": near(0.1, 2), "queries": mixed}
    random = {"layer.1": near(2.0, 3), "queries": mixed.flip(0)}
    found = align.main(planted(tmp_path, points, random=random, gridless=("queries",)))
    assert set(found["layers"]["layer.1"]) - set(found["layers"]["queries"]) == {"linear_r2"}
    assert [found["criteria"][m]["options_searched"] for m in ("cka", "linear_r2")] == [2, 1]
    found = found["criteria"]["linear_r2"]
    assert (found["layer"], found["baseline_name"]) == ("layer.1", "pixels")
    assert found["gain_high"] < 0 < found["baselines"]["random_init"] < found["score"]


def test_all_layers_are_compared_with_all_points_and_the_pair_is_chosen_on_val(tmp_path):
    args = planted(tmp_path, {"near": near(0.2), "far": near(3.0)})
    points = {"vision.0": near(4.0, 5), "vision.1": near(0.1, 6)}
    plant_features(tmp_path / "target", IDS, points, tmp_path / "data")
    found = align.main(args)
    assert found["target_point"] == "vision.1"
    for m in align.PAIRED:
        best = found["pooled_best"][m]
        assert (best["layer"], best["point"], best["options_searched"]) == ("near", "vision.1", 4)
        assert best["p_max"] == pytest.approx(1 / 21, abs=1e-4)
    r2 = found["pooled"]["linear_r2"]
    assert r2["near"]["vision.1"] > 0.8 > 0.3 > r2["far"]["vision.1"]
    assert align.main([*args, "--target-point", "vision.0"])["linear_r2"] < 0.3


def test_above_the_limits_some_items_are_permuted_and_a_seeded_part_is_compared(tmp_path, monkeypatch):
    args = planted(tmp_path, {"a": near(0.5)})
    whole = align.main(args)
    with monkeypatch.context() as limited:
        limited.setattr(align, "EXACT", 25)
        some = align.main(args)
    assert some["permuted_items"] == 25 < whole["permuted_items"] == whole["criteria"]["cka"]["n"]
    for m in align.PAIRED:
        one, other = (r["layers"]["a"][m] for r in (whole, some))
        assert other["score"] == pytest.approx(one["score"], abs=1e-3) and other["n"] == one["n"]
    monkeypatch.setattr(align, "SUBSET", 40)
    found = align.main(args)
    keep = torch.randperm(60, generator=generator(0))[:40].sort().values
    alone = align.main(planted(tmp_path, {"a": near(0.5)[keep]}, LATENTS[keep], [IDS[k] for k in keep]))
    assert (found["items"], found["subset"]) == (60, 40) and alone["layers"] == found["layers"]


@pytest.mark.parametrize("flags", WRONG)
def test_input_that_cannot_be_compared_is_refused(tmp_path, monkeypatch, refused, flags):
    monkeypatch.chdir(tmp_path)
    args = planted(tmp_path, {"layer.1": near(0.5), "layer.2": near(2.0)})
    broken = near(1)
    broken[3, 0, 1, 1, 2] = float("nan")
    for name, x in {"broken": broken, "constant": LATENTS[:1].expand(60, -1, -1, -1, -1)}.items():
        plant_features(tmp_path / name, IDS, {"layer.2": x}, tmp_path / "data")
    for name, ids in {"stranger": [*IDS[:-1], "stranger"], "reversed": IDS[::-1], "few": IDS[:9]}.items():
        plant_features(tmp_path / name, ids, {"latents": LATENTS[: len(ids)]}, tmp_path / "data")
    refused(lambda: align.main([*args, *flags.split()]), *WRONG[flags])
