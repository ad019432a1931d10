"""Alignment on planted spaces: independent noise first, then the same space rotated and with noise."""

import numpy as np
import pytest
import torch
from helpers import generator, plant_features
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from torch.nn import functional as F

import align
import common
import stats

SPLIT = {"train": torch.arange(40), "val": torch.arange(40, 60), "test": torch.arange(60, 90)}
WRONG = {
    "--target stranger": ("'item-59' is missing", "stranger"),
    "--random reversed": ("reversed",),
    "--features broken": ("layer.2", "non-finite"),
    "--random target": ("'layer.1'", "target"),
    "--features constant": ("layer.2", "same for every item"),
    "--features few --target few": ("few", "of 9 items"),
    "--target-point latent": ("latent", "latents"),
    "--out target/index.yaml/align.yaml": ("cannot write", "--out"),
}
IDS, BLACK = [f"item-{i}" for i in range(60)], torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
LATENTS = torch.randn(60, 1, 2, 2, 4, generator=generator(9))


def noise(*shape_seed):
    return torch.randn(shape_seed[:-1], generator=generator(shape_seed[-1]))


def near(s, seed=1):
    return LATENTS + s * noise(60, 1, 2, 2, 4, seed)


def compare(x, y, names=align.PAIRED):
    return {m: align.pairs([align.space_of(x)], [align.space_of(y)], m).item() for m in names}


def test_independent_noise_scores_0_and_a_rotated_scaled_and_shifted_space_is_the_same_space():
    rows = [list(compare(noise(200, 20, 2 * i), noise(200, 20, 2 * i + 1)).values()) for i in range(8)]
    assert (abs(np.mean(rows, 0) - [0, 0, 10 / 199]) < [0.02, 0.05, 0.01]).all()
    x = noise(120, 12, 0).double()
    y = 0.01 * x @ torch.linalg.qr(noise(12, 12, 1).double())[0]
    assert compare(x, y) == pytest.approx({"cka": 1, "spearman": 1, "recall10": 1}, abs=1e-5)
    assert compare(x, y + 7, align.PAIRED[:2]) == pytest.approx({"cka": 1, "spearman": 1}, abs=1e-5)


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
    spaces = [align.Space(z @ z.T, torch.zeros(30), torch.arange(30)) for z in (x, y)]
    assert align.pairs(spaces[:1], spaces[1:], "spearman").item() == pytest.approx(expected, abs=1e-6)


def test_recall_is_mutual_knn_as_published_of_normalised_and_not_centred_features(monkeypatch):
    def published(x, y):  # mutual_knn of github.com/minyoungg/platonic-rep, k = 10
        near = [F.normalize(z.double()) for z in (x, y)]
        near = [(z @ z.T).fill_diagonal_(-1e8).argsort(1, descending=True)[:, :10] for z in near]
        return (near[0][:, :, None] == near[1][:, None]).sum().item() / near[0].numel()

    unit = F.normalize(noise(200, 32, 0))
    x, y = (unit * noise(200, 1, k).exp() for k in (1, 2))
    assert compare(x, y)["recall10"] == pytest.approx(1) == published(x, y)
    x, y = noise(200, 32, 3) + 30 * noise(32, 4), noise(200, 32, 3) + noise(200, 32, 5) - 0.5
    assert compare(x, y)["recall10"] == pytest.approx(published(x, y), abs=1e-6) and published(x, y) < 0.5
    monkeypatch.setattr(align, "K", 2)  # without other items of the same source
    twins = [noise(40, 8, k).repeat_interleave(2, 0) + 0.01 * noise(80, 8, 9 + k) for k in range(2)]
    for sources, expected in ((None, 0.5), ([i // 2 for i in range(80)], 1 / 39)):
        found = align.pairs(*([align.space_of(z, sources)] for z in twins), "recall10").item()
        assert found == pytest.approx(expected, abs=0.05), sources


def measured(x, y, n_perm, split=SPLIT, **more):
    items = [{"source": str(k)} for k in range(len(y))]
    return align.measure_layers({"x": x[:, None, None]}, y[:, None, None], items, split, n_perm, **more)


def test_p_is_uniform_for_noise_and_smallest_for_a_planted_relation(monkeypatch):
    monkeypatch.setattr(align, "K", 3)
    small = {"train": torch.arange(10), "val": torch.arange(10, 16), "test": torch.arange(16, 26)}
    ps = {m: [] for m in align.PAIRED}
    for k in range(100):
        both = noise(26, 1, 5, 2 * k), noise(26, 1, 5, 2 * k + 1)
        for m, column in measured(*both, 39, small, seed=k, gridless=("x",)).items():
            ps[m].append(align.p_values(column, "x")["p"])
    assert all(np.mean(np.array(p) <= 0.05) <= 0.10 and 0.4 < np.mean(p) < 0.65 for p in ps.values()), ps
    found = measured(LATENTS[:26, 0, 0], near(0.3)[:26, 0, 0], 99, small, gridless=("x",))
    assert all(align.p_values(column, "x")["p"] == pytest.approx(0.01) for column in found.values())


def test_sources_are_permuted_whole_among_those_of_equal_size_and_the_largest_has_its_own_p():
    blocks = [torch.tensor(b) for b in ([0, 5], [1, 2], [3, 4, 6], [7, 8, 9], [10], [11, 12])]
    source = torch.tensor([0, 1, 1, 2, 2, 0, 2, 3, 3, 3, 4, 5, 5])
    orders = [align.shuffle(source, generator(k)) for k in range(30)]
    for order in orders:
        assert {tuple(order[b].tolist()) for b in blocks} == {tuple(b.tolist()) for b in blocks}
    assert len({str(order) for order in orders}) > 5
    null = noise(4, 19, 0)
    found = align.p_values({k: {"observed": 1.0, "null": row} for k, row in enumerate(null)}, 0)
    assert list(found.values()) == [(1 + int((x >= 1).sum())) / 20 for x in (null[0], null.amax(0))]


def test_intervals_cover_0_for_noise_95_times_in_100_and_groups_hold_whole_sources():
    hits = 0
    for k in range(60):
        x, y = noise(40, 6, 2 * k), noise(40, 6, 2 * k + 1)
        (values,) = align.jackknife([align.space_of(x)], align.space_of(y), "cka")
        value, low, high = stats.mean_interval(values, range(20))
        hits += low <= 0 <= high
    assert value == pytest.approx(compare(x, y)["cka"]) and 52 <= hits <= 60, hits
    for sources, least in (([k // 5 for k in range(200)], 0.2), (None, 0)):
        spaces = [align.space_of(z.repeat_interleave(5, 0), sources) for z in (x, y)]
        (values,) = align.jackknife(spaces[:1], spaces[1], "spearman")
        assert least < values.std() < least + 0.2, (sources, values.std())


def test_gains_of_scores_that_move_together_have_narrow_paired_intervals():
    y, spread = noise(90, 9, 4, 0), torch.linspace(1, 0.1, 90)[:, None, None] * noise(90, 9, 4, 1)
    both = [measured(y + spread + 0.002 * noise(90, 9, 4, k), y, 38) for k in (2, 3)]
    for m in align.MEASURES:
        found, scores = align.record(both[0][m], both[1][m]), [s[m]["x"] for s in both]
        bounds = [stats.mean_interval(score["values"], score["groups"]) for score in scores]
        apart = np.hypot(*(high - low for _, low, high in bounds))
        assert found["gain_high"] - found["gain_low"] < apart / 5, (m, found, apart)
        assert found["baseline_name"] == "random_init" and found["p"] == 1 / (1 + len(scores[0]["null"]))


def token_r2(x, y, n_perm=0):
    fit = align.token_r2(x[:, None, None], y[:, None, None], SPLIT, torch.arange(90), n_perm)
    return fit["values"].mean().item(), align.p_values({"x": fit}, "x").get("p")


def test_r2_is_0_of_noise_and_of_positions_and_1_less_the_noise_of_a_planted_map():
    found, p = token_r2(noise(90, 9, 60, 0), noise(90, 9, 4, 1), 19)
    assert found == pytest.approx(-0.04, abs=0.06) and p > 0.1
    x = noise(90, 9, 12, 0)
    found, p = token_r2(x, x @ torch.linalg.qr(noise(12, 12, 1))[0] + noise(90, 9, 12, 2), 19)
    assert found == pytest.approx(0.5, abs=0.05) and p == 0.05
    y = torch.cat([x[:60], -x[60:]]) @ noise(12, 3, 1)  # reversed on test: R2 = 1 - 4, not clipped
    assert token_r2(x, y)[0] == pytest.approx(-3, abs=0.2)
    position, y = noise(9, 20, 0), 5 * noise(9, 3, 1) + noise(90, 9, 3, 2)
    for x in (position.expand(90, -1, -1), position + 1e-3 * noise(90, 9, 20, 3)):
        assert token_r2(x, y)[0] == pytest.approx(0, abs=0.05)  # a plain R2 is about 0.96


def test_the_dimension_of_tori_is_their_own(monkeypatch):
    angle = 2 * torch.pi * torch.rand(2000, 2, generator=generator(0))
    x = torch.cat([angle.cos(), angle.sin()], 1)
    found = align.intrinsic_dimension(torch.cat([x, x[:50]]))  # copies change nothing
    assert found["mle"] == pytest.approx(1.997, abs=0.02)
    assert [found[k] for k in ("two_nn", "participation")] == pytest.approx([2, 4], abs=0.1)

    def around(x, y):  # distances on a torus of side 1, which no embedding bends
        apart = ((x[:, None, k] - y[:, k]).abs() for k in range(x.shape[1]))
        return sum(torch.minimum(d, 1 - d).square() for d in apart).sqrt()

    monkeypatch.setattr(torch, "cdist", around)
    for dimension, k in ((5, 20), (10, 5)):  # balls of k neighbours do not reach around
        x = torch.rand(2000, dimension, generator=generator(dimension))
        assert align.intrinsic_dimension(x, k)["mle"] == pytest.approx(dimension, rel=0.03)


def test_token_grids_are_pooled_or_repeated_cell_by_cell_about_the_mean_of_training_items():
    def read(x, side, most):  # of the first item; the mean is that of the second, 0
        return align.resampled(torch.cat([x, 0 * x]), side, torch.tensor([1]), most)[torch.tensor([0])]

    x = torch.arange(1.0, 25).view(1, 1, 4, 6, 1)
    assert read(x, (1, 2, 3), 1e9).view(2, 3)[0, 0] == x[0, 0, :2, :2].mean()
    assert torch.equal(read(x, (1, 8, 12), 1e9).view(8, 12)[::2, 1::2], x[0, 0, ..., 0])
    clip = torch.arange(8.0).view(1, 4, 1, 2, 1)  # time steps as rows, columns
    assert read(clip, (2, 1, 2), 0).flatten().tolist() == [1, 2, 5, 6]


def test_the_layer_is_chosen_on_val_and_the_baseline_is_the_best_of_three():
    def score(mean, val):
        values = mean + 0.01 * torch.tensor([-1.0, 1, -1, 1, 2, -2])
        score = {"values": values, "groups": range(6), "n": 101, "sources": 101, "chance": 0.0, "val": val}
        return score | {"observed": mean, "null": torch.zeros(19)}

    found = align.record({"a": score(0.9, 0.1), "b": score(0.6, 0.7)})
    assert (found["layer"], found["baseline_name"], found["baseline"]) == ("b", "chance", 0)
    found = align.record({"a": score(0.6, 0.7), "pixels": score(0.5, 0.9)}, {"a": score(0.4, 0.9)})
    assert found["baseline_name"] == "pixels" and found["gain_low"] == pytest.approx(0.1)


def planted(folder, points, target=LATENTS, ids=IDS, gridless=(), random=None):
    items = [{"id": i, "source": i, "width": 8, "height": 8, "frames": BLACK} for i in ids]
    common.write_items(folder / "data", items, {"data": "synthetic", "name": "planted"})
    features = plant_features(folder / "features", ids, points, folder / "data", gridless=gridless)
    other = plant_features(folder / "target", ids, {"latents": target}, folder / "data")
    args = ["--features", features, "--target", other, "--permutations", "20"]
    flags = ["--random", plant_features(folder / "random", ids, random, folder / "data")] if random else []
    return args + flags


def test_main_chooses_the_planted_layer_and_writes_what_it_prints(tmp_path, capsys):
    rotated, study = near(0.1) @ torch.linalg.qr(noise(4, 4, 2))[0], tmp_path / "study.md"
    args = planted(tmp_path, {"rotated": rotated, "independent": noise(60, 1, 2, 2, 4, 3)})
    align.main([*args, "--out", str(tmp_path / "align.yaml"), "--study", str(study)])
    found = common.load_yaml(tmp_path / "align.yaml", "align")
    printed = dict(line.split(" ", 1) for line in capsys.readouterr().out.strip().splitlines())
    for m in align.MEASURES:
        assert found[f"{m}_layer"] == printed[f"{m}_layer"] == "rotated" and float(printed[m]) == found[m]
        assert found[m] > 0.8 and found[m] == found["criteria"][m]["score"]
        null = found["layers"]["independent"][m]
        assert null["score"] < 0.35 and null["p_max"] > 0.05 and null["high"] < found[f"{m}_low"]
    choice = align.main([*args, "--choose", str(tmp_path / "choice.yaml")])
    assert common.load_yaml(tmp_path / "choice.yaml", "align") == choice and choice["points"] == "rotated"
    assert set(align.MEASURES) < set(choice["layers"]) and choice["layers"]["recommended"] == "rotated"
    assert "recommended layer: rotated" in study.read_text()
    assert (tmp_path / "align.png").stat().st_size > 5000


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


def test_the_recommended_layer_has_the_planted_map_to_the_last_point_or_the_given(tmp_path):
    rotated = LATENTS @ noise(4, 9, 30)
    half = torch.cat([near(0.5, 3)[..., :2], noise(60, 1, 2, 2, 2, 8)], -1)
    args = planted(tmp_path, {"before": near(0.5, 2), "here": rotated, "half": half})
    found = align.main(args)
    assert found["recommended"] == found["linear_r2_layer"] == "here" and found["target_point"] == "latents"
    assert found["criteria"]["linear_r2"]["band"] == "target"
    assert found["linear_r2"] > 0.99 and all(r > 0.99 for r in found["channels"]["here"])
    *seen, a, b = found["channels"]["half"]
    assert min(seen) > 0.6 and max(a, b) < 0.1 and min(a, b) < 0  # not clipped
    plant_features(tmp_path / "target", IDS, {"vision.0": near(4), "vision.1": near(0.1)}, tmp_path / "data")
    assert align.main(args)["target_point"] == "vision.1"
    assert align.main([*args, "--target-point", "vision.0"])["linear_r2"] < 0.3


def test_above_the_limit_a_seeded_part_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(align, "SUBSET", 40)
    found = align.main(planted(tmp_path, {"a": near(0.5)}))
    keep = torch.randperm(60, generator=generator(0))[:40].sort().values
    alone = align.main(planted(tmp_path, {"a": near(0.5)[keep]}, LATENTS[keep], [IDS[k] for k in keep]))
    assert (found["items"], found["subset"]) == (60, 40) and alone["layers"] == found["layers"]


@pytest.mark.parametrize("flags", WRONG)
def test_input_that_cannot_be_compared_is_refused(tmp_path, monkeypatch, refused, flags):
    monkeypatch.chdir(tmp_path)
    args = planted(tmp_path, {"layer.1": near(0.5), "layer.2": near(2.0)})
    broken = near(1).index_fill(0, torch.tensor([3]), torch.nan)
    for name, x in {"broken": broken, "constant": 0 * LATENTS + 1}.items():
        plant_features(tmp_path / name, IDS, {"layer.2": x}, tmp_path / "data")
    for name, ids in {"stranger": [*IDS[:-1], "stranger"], "reversed": IDS[::-1], "few": IDS[:9]}.items():
        plant_features(tmp_path / name, ids, {"latents": LATENTS[: len(ids)]}, tmp_path / "data")
    refused(lambda: align.main([*args, *flags.split()]), *WRONG[flags])
