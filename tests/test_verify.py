"""verify.py: planted clips of known correctness, the verifiers, their statistics, the command, gate 4."""

import math
import types

import numpy as np
import pytest
import torch
from helpers import holds, plant_features
from sklearn.metrics import roc_auc_score

import claims
import common
import data
import gate
import verify

SIDE, PAST, AHEAD = 48, 4, 8
DIRECTIONS = {"right": (0, 2), "left": (0, -2), "down": (2, 0), "up": (-2, 0)}
COLOURS = (220, 40, 40), (40, 60, 220), (240, 230, 60)


def clip(k, word="right", colour=(220, 40, 40), step=None):
    """A disc of 4 px that moves `step` (rows, columns) a frame over a slope of grey: 12 frames."""
    y, x = torch.meshgrid(*(torch.arange(SIDE),) * 2, indexing="ij")
    (down, right), t = step or DIRECTIONS[word], torch.arange(PAST + AHEAD)[:, None, None] - 5
    masks = (y - 24 - down * t - k % 3) ** 2 + (x - 24 - right * t + k % 2) ** 2 <= 16
    frames = torch.where(masks[..., None], torch.tensor(colour), (90 + x + k % 20)[..., None]).byte()
    item = {"id": f"clip-{k}", "source": f"clip-{k}", "width": SIDE, "height": SIDE, "camera": [0, 0]}
    item |= {"frames": frames, "mask": masks.byte(), "names": ["disc"]}
    return item | {"direction": word}


def clips(n, colours=COLOURS):
    return [clip(k, list(DIRECTIONS)[k % 4], colours[k % len(colours)]) for k in range(n)]


def planted(item, draws=(3, 0, 2)):
    """The planted versions of a clip; draws: the three random numbers."""
    numbers = iter(draws)
    green = clip(1, colour=(60, 200, 60))
    other = verify.sprite(green["frames"][5], green["mask"][5] > 0)
    return verify.plant(item["frames"], item["mask"] > 0, other, PAST, lambda n: next(numbers))


def distance(a, b):
    return (a.float() - b.float()).abs().mean((1, 2, 3)) / 255


def scores_of(name, x, truth):
    return verify.PIXELS[name](x, truth, types.SimpleNamespace(horizons=[1, 2, 4, 8], lpips=distance))


def test_auroc_is_sklearns_a_half_for_random_scores_and_has_honest_intervals():
    g, found = torch.Generator().manual_seed(0), []
    for k in range(100):
        sources = [f"{k}-{i // 4}" for i in range(120)]
        scores, right = torch.randn(120, generator=g).double(), torch.rand(120, generator=g) < 0.5
        values = verify.aurocs(scores, right, verify.source_weights(sources, k))
        found.append(verify.interval(values, 30))
    assert abs(sum(area for area, *_ in found) / 100 - 0.5) < 0.02
    assert sum(low <= 0.5 <= high for _, low, high in found) >= 89
    x, w = torch.randint(5, (120,), generator=g).double(), torch.randint(4, (7, 120), generator=g).double()
    expected = [roc_auc_score(right, x, sample_weight=row) for row in w]
    assert verify.aurocs(x, right, w).tolist() == pytest.approx(expected)
    draws = verify.source_weights([f"s{i // 12}" for i in range(120)], 0)
    assert draws.shape == (1 + verify.RESAMPLES, 120) and (draws[0] == 1).all()
    assert (draws.unflatten(1, (10, 12)) == draws[:, ::12, None]).all()  # whole sources
    certain = verify.aurocs(right.double(), right, draws)  # ten sources without an error: rule of three
    assert verify.named_interval("x", certain, 10) == {"x": 1, "x_low": pytest.approx(0.7), "x_high": 1}


def test_risk_of_random_acceptance_is_the_share_of_wrong_and_of_perfect_scores_the_least():
    right = torch.arange(100) % 4 > 0  # a quarter is wrong
    one, g = torch.ones(1, 100).double(), torch.Generator().manual_seed(0)
    noise = [verify.mean_risk(torch.randn(100, generator=g).double(), right, one).item() for _ in range(100)]
    assert sum(noise) / 100 == pytest.approx(0.25, abs=0.02)
    draws = verify.source_weights([f"s{i // 4}" for i in range(100)], 0)
    equal = verify.mean_risk(torch.zeros(100).double(), right, draws)  # ties have no order, in any resample
    assert (equal - draws[:, ~right].sum(1) / draws.sum(1)).abs().max() < 1e-9
    risk, _ = verify.risk_coverage(right.double(), right, one)
    assert risk[0, 74] == 0 and risk[0, -1] == pytest.approx(0.25) and (risk[0].diff() >= 0).all()


def test_a_conformal_bound_lets_through_at_most_the_promised_share_of_exchangeable_scores():
    for n in (8, 25, 60):
        scores = torch.randn(2000, n + 1, generator=torch.Generator().manual_seed(n)).double()
        passed = sum(bool(x[-1] > verify.conformal_bound(x[:-1], 0.1)) for x in scores) / 2000
        assert passed == pytest.approx(math.floor((n + 1) * 0.1) / (n + 1), abs=0.02)  # of 8 none
    assert verify.conformal_bound(torch.arange(19).double(), 0.1) == 17  # two of 20 may exceed it


def test_a_region_moves_where_it_is_more_than_ten_from_its_running_mean_also_at_the_border():
    x = torch.full((1, 5, 16, 16, 3), 100, dtype=torch.uint8)
    assert not verify.moving_regions(x).any()
    x[:, 2:, 4:8, 4:8] = 120  # running means 106, 110.2, 113.1: differences 14, 9.8, 6.9
    found = verify.moving_regions(x)
    assert found.sum((2, 3)).tolist() == [[0, 16, 0, 0]] and found[0, 1, 4:8, 4:8].all()
    for place in (np.s_[4:9, :3], np.s_[:3, :3], np.s_[13:, 2:9]):  # 3 px wide, as the window
        mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
        mask[0, 0][place] = True
        assert torch.equal(verify.opened_and_closed(mask, 3), mask)
    speck = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    speck[0, 0, 5, 5] = True
    assert not verify.opened_and_closed(speck, 3).any()


def test_overlaps_of_moving_regions_are_those_of_the_published_formulas():
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        a, b = (torch.rand(4, 8, 8, generator=g) > 0.6 for _ in range(2))
        found = verify.regions_overlap(a[None], b[None], [4])
        ever = [x.any(0).numpy() for x in (a, b)]
        assert found["spatial_iou"].item() == pytest.approx(
            (ever[0] & ever[1]).sum() / (ever[0] | ever[1]).sum()
        )
        each = [(x & y).sum().item() / (x | y).sum().item() for x, y in zip(a, b, strict=True)]
        assert found["spatiotemporal_iou"].item() == pytest.approx(np.mean(each))
        share = [x.float().mean(0).numpy() for x in (a, b)]
        weighted = np.minimum(*share).sum() / np.maximum(*share).sum()
        assert found["weighted_spatial_iou"].item() == pytest.approx(weighted)


def test_planted_clips_have_the_errors_they_name():
    item = clip(0)
    kinds, truth = planted(item), item["frames"][PAST - 1 :]
    assert set(kinds) == set(verify.PLANTED) and torch.equal(kinds["right"], truth)
    assert all(torch.equal(x[0], truth[0]) and x.shape == truth.shape for x in kinds.values())
    every, mask = torch.stack(list(kinds.values())), item["mask"][PAST - 1] > 0
    here = dict(zip(kinds, claims.whereabouts(every, mask.expand(len(kinds), -1, -1)), strict=True))
    step = {k: x[4] - x[0] for k, x in here.items()}  # (x, y) after four frames of two pixels to the right
    assert step["right"].tolist() == pytest.approx([8, 0], abs=0.2)
    assert step["direction"].tolist() == pytest.approx([-8, 0], abs=0.5)  # draw 3 of 7: by 180 degrees
    assert step["speed"].tolist() == pytest.approx([2, 0], abs=0.5) and step["identity"].isnan().all()
    assert here["vanished"].isnan().any(-1).tolist() == [t > 2 for t in range(9)]  # draw 2: after the third
    # the same rule that scores a video model's clips: an eighth of the path is right, four fifths is wrong
    found = {}
    for name, x in verify.correctness(every, truth, mask, "right").items():
        found[name] = {k for k, ok in zip(kinds, x.tolist(), strict=True) if ok}
    assert found["position"] == {"right", "pasted", "blurred", "late"}
    assert "right" in found["direction"] and "direction" not in found["direction"]
    assert "speed" in found["identity"] and not {"vanished", "identity"} & found["identity"]
    assert verify.correctness(every[:1], truth, mask, "up") is None  # not the clip's own direction


def test_only_whole_moving_objects_are_planted_and_without_masks_only_time_is_changed():
    item = clip(0)
    wrong = clip(0, step=(0, 5)), item | {"camera": [1, 0]}, item | {"direction": "still"}
    assert [verify.can_be_planted(x, PAST) for x in (item, *wrong)] == [True, False, False, False]
    assert [verify.has_motion(x["frames"], PAST) for x in (item, clip(0, step=(0, 0)))] == [True, False]
    kinds = verify.plant(item["frames"], None, None, PAST, None)
    assert set(kinds) == {"right", "blurred", "late", "direction", "speed"}
    assert torch.equal(kinds["direction"][:PAST], item["frames"][:PAST].flip(0))
    assert torch.equal(kinds["speed"][::2], item["frames"][PAST - 1 :][:5])


@pytest.mark.parametrize("name", verify.PIXELS)
def test_a_verifier_prefers_the_outcome_sees_planted_errors_and_ignores_later_frames(name):
    kinds = planted(clip(0))
    x, truth = torch.stack(list(kinds.values())), kinds["right"]
    scores = scores_of(name, x, truth)
    assert scores.shape == (len(kinds), 4) and scores.dtype == torch.float64 and scores.isfinite().all()
    assert (scores <= scores[0] + 1e-6).all()
    final = dict(zip(kinds, scores[:, -1].tolist(), strict=True))
    seen = ["direction"] if name == "flow_agreement" else ["direction", "speed", "vanished", "identity"]
    for kind in seen:
        assert final[kind] < min(final["right"], final["pasted"]) - 1e-4, kind
    later = torch.cat([x[:, :5], 255 - x[:, 5:]], 1)
    changed = scores_of(name, later, torch.cat([truth[:5], 255 - truth[5:].flip(1)]))
    assert torch.equal(changed[:, :3], scores[:, :3]) and not torch.equal(changed[:, 3], scores[:, 3])


def test_errors_have_their_units():
    truth = clip(0)["frames"][PAST - 1 :]
    x = torch.cat([truth[:1], truth[1:] + 10])
    for name, error in (("l1", 10 / 255), ("lpips", 10 / 255), ("mse", (10 / 255) ** 2)):
        assert scores_of(name, x[None], truth)[0].tolist() == pytest.approx([-error] * 4)


def test_latents_are_compared_where_a_step_has_ended():
    truth = torch.randn(5, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    x = torch.stack([truth, -truth, truth.roll(1, 0)])
    found = verify.latent_scores(x, truth, [0, 2, 4, 6, 8], [1, 2, 4, 8])
    assert found["cosine"][:, 0].isnan().all() and (found["l2"][0, 1:] == 0).all()
    assert found["cosine"][:2, 1:].tolist() == [pytest.approx([1] * 3), pytest.approx([-1] * 3)]
    assert found["l2"][1, 1].item() == pytest.approx(-2 * truth[:2].norm(dim=-1).mean().item(), rel=1e-5)


def write_planted(folder, items):
    meta = {"name": "discs-planted", "source_kind": "planted", "data": "synthetic", "data_path": str(folder)}
    common.write_items(folder, items, meta | {"past": PAST, "vae": "made-up-vae", "vae_weights": "random"})


def is_test(item):
    return common.split_of(item["source"]) == "test"


def planted_clips(n):
    """The items of a planted folder of n discs, with clips of a video model: a copy, a right, a wrong one."""
    made = []
    for k, c in enumerate(c for c in clips(n) if common.split_of(c["source"]) != "train"):
        kinds = planted(c, (k % 7, k % 4, k % 5))
        kinds = {"real": kinds["right"]} | kinds
        if is_test(c):
            still = kinds["right"][:1].expand_as(kinds["right"])
            kinds |= {"copy": still, "past": kinds["late"], "first": kinds["direction"]}
        c["mask"] = c["mask"][PAST - 1 :].clone()
        for kind, x in kinds.items():
            made.append(c | {"id": f"{c['id']}/{kind}", "conditioning": kind, "frames": x.clone()})
    return made


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Planted clips; latents that hold their correctness, latents of noise; answers that name directions."""
    folder, made = tmp_path_factory.mktemp("world"), planted_clips(60)
    write_planted(folder / "planted", made)
    g, ids = torch.Generator().manual_seed(0), [i["id"] for i in made]
    right = torch.tensor([verify.PLANTED.get(i["conditioning"], i["conditioning"] == "real") for i in made])
    noise = torch.randn(len(made), 9, 2, 2, 4, generator=g)
    knows = torch.stack([right.float(), torch.ones(len(made))], -1)[:, None, None, None]
    points = {"vision.0": knows.expand(-1, 9, 2, 2, 2), "language.0": noise, "latents": noise[:, :1]}
    plant_features(folder / "knows", ids, points, folder / "planted")
    test = [i for i in made if is_test(i)]
    named = [[i["conditioning"] != "direction" and w == i["direction"] for w in DIRECTIONS] for i in test]
    about = {"actions": list(DIRECTIONS), "named": torch.tensor(named)}
    meta = {"model": "planted", "weights": "random"}
    common.save_pt(folder / "named.pt", common.RESULT, [i["id"] for i in test], meta, **about)
    return folder


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "verify.yaml"
    given = f"--rollouts {world}/planted --latents {world}/knows --words {world}/named.pt"
    return verify.main(f"score {given} --out {out}".split()), out


@pytest.mark.slow
def test_verifiers_are_told_apart_by_what_they_know(found):
    result, out = found
    assert common.load_yaml(out, "verify")["pixel_auroc"] == pytest.approx(result["pixel_auroc"], rel=1e-5)
    table, pixel, curve = result["verifiers"], result["pixel_verifier"], result["risk_coverage"]
    assert {kind: x > 0.9 for kind, x in result["planted_correctness"].items()} == verify.PLANTED
    assert result["latent_verifier"].startswith("planted vision.0")
    assert table["planted vision.0 cosine"]["auroc"] == 1
    assert table["planted latents l2"]["auroc"] is None  # of one step
    blind = table["planted language.0 cosine"]
    assert blind["auroc_low"] < 0.5 < blind["auroc_high"]
    holds(table["words"]["kinds"], "direction.flagged == 1, speed.flagged == 0")
    holds(result, "pixel_auroc > 0.9, criteria.pixel_auroc.baselines.other_outcome < 0.8, aurc < base_risk")
    made, verifiers = result["video_model"], result["video_model"]["verifiers"]
    assert made["accuracy_by_kind"] == {"past": 1, "first": 0}
    assert verifiers["mse"]["all"]["auroc"] > 0.9  # without the copies
    assert result["criteria"]["generated_over_latent"]["baseline_name"].startswith("planted vision.0")
    wrong = [row["diverged"] for row in result["horizons"].values()]
    assert list(result["horizons"]) == ["1", "2", "4", "8"] and wrong == sorted(wrong) and wrong[-1] > 0.9
    assert curve["risk"][-1] == pytest.approx(curve["random"])
    holds(result, "conformal_error <= 0.2, conformal_accepted_correct > 0.8, accepted_by_kind.right == 1")
    holds(result, "accepted_by_kind.direction < 0.1, upper_bounds.vae.ssim == 1")
    verdict = gate.main(["evaluate", "4", "--results", str(out.parent)])
    assert verdict["verdict"] == "PIVOT" and verdict["flagged"][pixel]["vanished"] > 0.9


@pytest.mark.slow
def test_plant_writes_every_kind_and_the_generated_clips_and_keeps_the_first_frame(tmp_path, refused):
    source, out, generated = tmp_path / "clips", tmp_path / "planted", tmp_path / "generated"
    data.main(f"moving --n 48 --frames 12 --size 64 --out {source} --seed 3".split())
    line = f"plant --data {source} --past 4 --horizon 8 --out {out} --generated {generated}".split()
    meta = {"name": "g", "source_kind": "generated", "data": "synthetic", "data_path": str(source)}
    made = []  # the video model's: the truth backwards
    for item in common.load_items(source)[0]:
        x = item["frames"][3:].clone()
        for kind, frames in (("real", x), ("past", x.flip(0))):
            made.append(item | {"id": f"{item['id']}/{kind}", "conditioning": kind, "frames": frames})
    common.write_items(generated, made, meta)
    result, (items, index) = verify.main(line), common.load_items(out)
    by, kinds = {i["id"]: i for i in items}, [i["conditioning"] for i in items]
    assert result["generated"] == len(items) and index["left_out"] > 0
    assert kinds.count("real") == kinds.count("speed") == result["clips"]
    assert kinds.count("past") == sum(is_test(i) and i["conditioning"] == "real" for i in items)
    assert {common.split_of(i["source"]) for i in items} == {"val", "test"}
    for name, i in by.items():
        real = by[name.rpartition("/")[0] + "/real"]["frames"]
        assert torch.equal(i["frames"][0], real[0]) == (i["conditioning"] != "past")
        if i["conditioning"] == "right":  # through the autoencoder, and still the same images
            assert 0 < distance(i["frames"][1:], real[1:]).mean() < 0.03
    common.write_items(generated, [i | {"frames": i["frames"].flip(0)} for i in made], meta)
    refused(lambda: verify.main(line), "other frames", "--past")


def test_bad_input_costs_one_sentence(world, tmp_path, refused):
    good, still = clips(20), [c | {"direction": "still"} for c in clips(20)]
    bad = [(good, 8, "16 are needed"), (still, 4, "still camera")]
    for items, past, words in [*bad, (clips(20, COLOURS[:1]), 4, "several colours")]:
        common.write_items(tmp_path / "d", items, {"name": "d", "data": "synthetic"})
        line = f"plant --data {tmp_path}/d --out {tmp_path}/out --past {past} --horizon 8".split()
        refused(lambda line=line: verify.main(line), words)
    refused(lambda: verify.main(["score", "--rollouts", f"{tmp_path}/d"]), "no planted clips", "plant")
    items = common.load_items(world / "planted")[0]
    write_planted(tmp_path / "planted", [i for i in items if not i["id"].endswith("/blurred")])
    refused(lambda: verify.main(["score", "--rollouts", f"{tmp_path}/planted"]), "/blurred")
