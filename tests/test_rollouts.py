"""Who can tell a right prediction from a wrong one: on films whose rightness is known because it was planted."""

import math
import types

import pytest
import torch
from helpers import plant_features

import claims
import common
import gate
import verify

SIDE, PAST, AHEAD = 48, 4, 8


def clip(k, way=(0, 2), colour=(220, 40, 40), word="right"):
    """A disc of 4 px that goes `way` (rows, columns) a frame over a slope of grey: 12 frames."""
    y, x = torch.meshgrid(*(torch.arange(SIDE),) * 2, indexing="ij")
    frames, masks = [], []
    for t in range(PAST + AHEAD):
        cy, cx = 24 + way[0] * (t - 5) + k % 3, 24 + way[1] * (t - 5) - k % 2
        masks.append((y - cy) ** 2 + (x - cx) ** 2 <= 16)
        background = (90 + x + k % 20)[..., None].expand(-1, -1, 3)
        frames.append(torch.where(masks[-1][..., None], torch.tensor(colour), background).byte())
    frames, masks, size = torch.stack(frames), torch.stack(masks).byte(), {"width": SIDE, "height": SIDE}
    return {
        "id": f"clip-{k}",
        "source": f"clip-{k}",
        "frames": frames,
        "mask": masks,
        "names": ["disc"],
        "direction": word,
        "camera": [0, 0],
    } | size


WAYS = {"right": (0, 2), "left": (0, -2), "down": (2, 0), "up": (-2, 0)}
COLOURS = (220, 40, 40), (40, 60, 220), (240, 230, 60)


def clips(n):
    return [clip(k, list(WAYS.values())[k % 4], COLOURS[k % 3], list(WAYS)[k % 4]) for k in range(n)]


def planted(item, draws=(3, 0, 2)):
    """plant's films of a clip; draws: what its three dice show."""
    dice = iter(draws)
    green = clip(1, colour=(60, 200, 60))
    other = verify.sprite(green["frames"][5], green["mask"][5] > 0)
    return verify.plant(item["frames"], item["mask"] > 0, other, PAST, lambda n: next(dice))


def distance(a, b):
    return (a.float() - b.float()).abs().mean((1, 2, 3)) / 255


def see(item):
    return types.SimpleNamespace(horizons=[1, 2, 4, 8], lpips=distance, mask=item["mask"][PAST - 1] > 0)


def rightness(films, item, word="right"):
    return verify.rightness(films, item["frames"][PAST - 1 :], item["mask"][PAST - 1] > 0, word)


# ---------------------------------------------------------------- nulls first


def test_scores_that_know_nothing_have_an_auroc_of_a_half_and_intervals_that_hold_it():
    g, inside, areas = torch.Generator().manual_seed(0), 0, []
    for k in range(100):
        sources = [f"{k}-{i // 4}" for i in range(120)]
        scores, right = torch.randn(120, generator=g).double(), torch.rand(120, generator=g) < 0.5
        values = verify.aurocs(scores, right, verify.drawn(sources, k))
        area, low, high = verify.interval(values, 30)
        inside, areas = inside + (low <= 0.5 <= high), [*areas, area]
    assert abs(sum(areas) / 100 - 0.5) < 0.02 and 89 <= inside <= 100


def test_what_is_missing_scores_nothing_and_what_cannot_vary_is_not_certain():
    right = torch.arange(40) % 2 == 0
    draws = verify.drawn([f"s{i // 4}" for i in range(40)], 0)
    nothing = verify.aurocs(torch.full((40,), math.nan).double(), right, draws)
    assert verify.interval(nothing, 10) == (None, None, None)
    # ten sources without an error: three in ten might have one
    certain = verify.aurocs(right.double(), right, draws)
    assert verify.interval(certain, 10) == (1, pytest.approx(0.7), pytest.approx(1.3))
    assert verify.named_interval("x", certain, 10) == {"x": 1, "x_low": pytest.approx(0.7), "x_high": 1}


def test_auroc_is_the_librarys_with_ties_and_weights():
    from sklearn.metrics import roc_auc_score

    g = torch.Generator().manual_seed(1)
    x, right = torch.randint(5, (60,), generator=g).double(), torch.rand(60, generator=g) < 0.4
    w = torch.randint(4, (7, 60), generator=g).double()
    found = verify.aurocs(x, right, w)
    assert found.tolist() == pytest.approx([roc_auc_score(right, x, sample_weight=row) for row in w])
    assert verify.aurocs(right.double(), right, w[:1]).item() == 1
    assert verify.aurocs(0 * x, right, w[:1]).item() == 0.5


def test_accepting_at_random_keeps_the_risk_and_accepting_by_the_truth_removes_what_can_be():
    right = torch.arange(100) % 4 > 0  # a quarter is wrong
    one, g = torch.ones(1, 100).double(), torch.Generator().manual_seed(0)
    noise = [verify.mean_risk(torch.randn(100, generator=g).double(), right, one).item() for _ in range(100)]
    assert sum(noise) / 100 == pytest.approx(0.25, abs=0.02)
    # of equal scores none comes first
    assert verify.mean_risk(torch.zeros(100).double(), right, one).item() == pytest.approx(0.25)
    draws = verify.drawn([f"s{i // 4}" for i in range(100)], 0)
    saved = verify.mean_risk(torch.zeros(100).double(), right, draws) - draws[:, ~right].sum(1) / draws.sum(1)
    assert saved.abs().max() < 1e-9  # nor in any resample
    risk, coverage = verify.risk_coverage(right.double(), right, one)
    assert risk[0, 74] == 0 and risk[0, -1] == pytest.approx(0.25) and coverage[0, -1] == 1
    assert (risk[0].diff() >= 0).all()


@pytest.mark.parametrize("n", [8, 25, 60])
def test_conformal_acceptance_keeps_its_promise_over_a_hundred_resplits(n):
    g = torch.Generator().manual_seed(n)
    sources = [f"s{i // 3}" for i in range(6 * n)]
    right = torch.arange(6 * n) % 3 == 0
    scores = torch.randn(6 * n, generator=g).double() + right
    found = verify.conformal(scores, right, sources, 0.1, 0)
    exact = math.floor((n + 1) * 0.1) / (n + 1)  # of n calibrating and one more, exchangeable
    assert found["resplit_exact"] == exact
    assert found["resplit_error_low"] - 0.01 <= exact <= found["resplit_error_high"] + 0.01
    # eight cannot promise a tenth: nothing is accepted
    assert found["resplit_calibrated_on"] == n and (n > 8) == (found["resplit_accepted_right"] > 0)


def test_wrong_ones_that_all_score_alike_are_none_of_them_accepted():
    assert verify.conformal_bound(torch.ones(50).double(), 0.1) == 1
    assert verify.conformal_bound(torch.ones(5).double(), 0.1) == math.inf


def test_regions_of_two_films_that_stand_still_overlap_wholly_and_of_one_not_at_all():
    still, moving = torch.zeros(2, 5, 8, 8), torch.zeros(2, 5, 8, 8)
    moving[:, 2, :4] = 1
    assert (verify.overlap(still, still) == 1).all() and (verify.overlap(still, moving)[:, 2] == 0).all()
    assert (verify.overlap(moving, moving) == 1).all()
    half = moving.clone()
    half[:, 2, 2:] = 0
    assert verify.overlap(moving, half)[0, 2] == pytest.approx(0.5)
    assert not verify.moving_regions(torch.full((1, 6, 16, 16, 3), 90, dtype=torch.uint8)).any()


def test_a_region_moves_where_it_is_further_than_ten_from_its_running_mean():
    film = torch.full((1, 5, 16, 16, 3), 100, dtype=torch.uint8)
    # running means 106, 110.2, 113.1: the difference falls from 14 to 9.8 and 6.9
    film[:, 2:, 4:8, 4:8] = 120
    found = verify.moving_regions(film)
    assert found.sum((2, 3)).tolist() == [[0, 16, 0, 0]] and found[0, 1, 4:8, 4:8].all()


# ---------------------------------------------------------------- what is planted


def test_what_is_planted_is_what_it_says():
    item = clip(0)
    film = planted(item)
    truth = item["frames"][PAST - 1 :]
    assert set(film) == set(verify.PLANTED)
    assert all(torch.equal(x[0], truth[0]) and x.shape == truth.shape for x in film.values())
    assert torch.equal(film["right"], truth) and torch.equal(film["late"][1:], truth[:-1])
    assert (film["pasted"].int() - truth.int()).abs().max() <= 3  # only what is behind it had to be guessed
    seen = (item["mask"][PAST - 1 : PAST] > 0).expand(len(film), -1, -1)
    here = dict(zip(film, claims.whereabouts(torch.stack(list(film.values())), seen), strict=True))
    step = {k: x[4] - x[0] for k, x in here.items()}  # (x, y) after four frames of two pixels to the right
    assert step["right"].tolist() == pytest.approx([8, 0], abs=0.2)
    assert step["direction"].tolist() == pytest.approx([-8, 0], abs=0.5)  # draw 3 of 7: by 180 degrees
    assert step["speed"].tolist() == pytest.approx([2, 0], abs=0.5) and step["identity"].isnan().all()
    gone = here["vanished"].isnan()
    assert not gone[2].any() and gone[3:].all()  # draw 2: gone after the third frame


@pytest.mark.parametrize("angle", range(7))
def test_a_wrong_direction_is_never_the_right_one(angle):
    item = clip(0)
    film = planted(item, (angle, 0, 2))["direction"]
    found = rightness(torch.stack([film, item["frames"][PAST - 1 :]]), item)
    assert found["direction"].tolist() == [False, True]


def test_a_clip_is_left_out_whose_object_leaves_the_picture_or_that_stands_still():
    item = clip(0)
    assert verify.whole_and_going(item, PAST) and verify.goes_somewhere(item["frames"], PAST)
    for wrong in (clip(0, (0, 5)), item | {"camera": [1, 0]}, item | {"direction": "still"}):
        assert not verify.whole_and_going(wrong, PAST)
    assert not verify.goes_somewhere(clip(0, (0, 0))["frames"], PAST)


def test_candidates_are_compared_with_those_of_the_same_clip():
    truth = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0]]).bool()
    # a clip's own order is right, between clips there is none
    scores = torch.tensor([[0.2, 0.1, 0.0], [5.2, 5.1, 5.0], [9.0, 9.0, 9.0]]).double()
    one = torch.ones(1, 3).double()
    area, top = verify.within(scores, truth, one)
    assert area.item() == 1 and top.item() == pytest.approx(2 / 3)
    assert verify.within(-scores, truth, one)[0].item() == 0
    assert verify.within(0 * scores, truth, one)[0].item() == 0.5


def test_of_a_clip_without_masks_only_its_time_is_changed():
    item = clip(0)
    film = verify.plant(item["frames"], None, None, PAST, None)
    truth = item["frames"][PAST - 1 :]
    assert set(film) == {"right", "blurred", "late", "direction", "speed"}
    assert torch.equal(film["direction"][:PAST], item["frames"][:PAST].flip(0))
    assert torch.equal(film["speed"][::2], truth[:5])


def test_rightness_follows_the_object():
    item = clip(0)
    film = planted(item)
    found = rightness(torch.stack(list(film.values())), item)
    of = {a: dict(zip(film, x.tolist(), strict=True)) for a, x in found.items()}
    assert not of["direction"]["direction"] and of["direction"]["right"]
    # a frame late is an eighth of the way off, a fifth of the speed four fifths
    assert {k for k in film if of["position"][k]} == {"right", "pasted", "blurred", "late"}
    assert not of["identity"]["vanished"] and not of["identity"]["identity"] and of["identity"]["speed"]
    # the clip itself does not go where it is said to
    assert rightness(film["right"][None], item, "up") is None


# ---------------------------------------------------------------- verifiers


@pytest.mark.parametrize("name", verify.PIXELS)
def test_nothing_is_better_than_what_happened_and_no_verifier_looks_beyond_its_horizon(name):
    item = clip(0)
    film = planted(item)
    films, truth = torch.stack(list(film.values())), film["right"]
    scores = verify.PIXELS[name](films, truth, see(item))
    assert scores.shape == (len(film), 4) and scores.dtype == torch.float64 and scores.isfinite().all()
    assert (scores <= scores[0] + 1e-6).all()
    later = films.clone()
    later[:, 5:] = 255 - later[:, 5:]
    changed = verify.PIXELS[name](later, torch.cat([truth[:5], 255 - truth[5:].flip(1)]), see(item))
    assert torch.equal(changed[:, :3], scores[:, :3]) and not torch.equal(changed[:, 3], scores[:, 3])


BLIND_TO = {
    "l1": [],
    "mse": [],
    "ssim": [],
    "position_error": [],
    "weighted_spatial_iou": ["identity"],
    "spatiotemporal_iou": ["identity"],
    "flow_agreement": ["identity", "speed", "vanished"],
}


@pytest.mark.parametrize("name", BLIND_TO)
def test_what_each_verifier_sees_of_planted_errors(name):
    film = planted(clip(0))
    score = verify.PIXELS[name](torch.stack(list(film.values())), film["right"], see(clip(0)))[:, -1]
    score = dict(zip(film, score.tolist(), strict=True))
    for kind in {k for k, right in verify.PLANTED.items() if not right} - set(BLIND_TO[name]):
        assert score[kind] < min(score["right"], score["pasted"]) - 1e-4, kind


def test_latents_are_compared_step_by_step_and_only_where_a_step_has_ended():
    truth = torch.randn(5, 2, 2, 8, generator=torch.Generator().manual_seed(0))
    films = torch.stack([truth, -truth, truth.roll(1, 0)])
    found = verify.latent_scores(films, truth, [0, 2, 4, 6, 8], [1, 2, 4, 8])
    assert found["cosine"][:, 0].isnan().all()
    assert found["cosine"][:2, 1:].tolist() == [pytest.approx([1] * 3), pytest.approx([-1] * 3)]
    assert (found["l2"][0, 1:] == 0).all() and (found["l2"][1:, 1:] < 0).all()
    later = films.clone()
    later[:, 3:] = 0
    assert torch.equal(verify.latent_scores(later, truth, [0, 2, 4, 6, 8], [2, 4])["l2"], found["l2"][:, 1:3])


def test_words_agree_where_they_name_the_same_and_say_nothing_where_they_name_nothing():
    said = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]]).bool()
    assert verify.agreement(said, torch.tensor([True, False, False])).tolist() == [1, 0, 0.5, 0.5]
    assert verify.agreement(said, torch.zeros(3).bool()).tolist() == [0.5] * 4


# ---------------------------------------------------------------- the whole command, on films that were planted without an autoencoder


def of_kinds(item, films):
    """The items of a planted folder: films {kind: uint8 [1 + AHEAD, H, W, 3]} of one clip."""
    rest = item | {"mask": item["mask"][PAST - 1 :].clone()}
    return [
        rest | {"id": f"{item['id']}/{kind}", "frames": x.clone(), "conditioning": kind}
        for kind, x in films.items()
    ]


def write_planted(folder, items):
    meta = {
        "name": "discs-planted",
        "source_kind": "planted",
        "data": "synthetic",
        "data_path": str(folder),
        "past": PAST,
    }
    common.write_items(folder, items, meta | {"vae": "made-up-vae", "vae_weights": "random"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Planted rollouts; latents that know which films are right and latents that know nothing; words that know directions."""
    folder, made = tmp_path_factory.mktemp("world"), []
    for k, c in enumerate(c for c in clips(60) if common.split_of(c["source"]) != "train"):
        kinds = planted(c, (k % 7, k % 4, k % 5))
        made += of_kinds(c, {"real": kinds["right"]} | kinds)
        # films of a video model that holds the last frame still, or carries it on
        if common.split_of(c["source"]) == "test":
            still = kinds["right"][:1].expand_as(kinds["right"])
            made += of_kinds(c, {"copy": still, "past": kinds["late"], "first": kinds["direction"]})
    write_planted(folder / "planted", made)
    g, ids = torch.Generator().manual_seed(0), [i["id"] for i in made]
    right = torch.tensor(
        [verify.PLANTED.get(i["conditioning"], i["conditioning"] == "real") for i in made]
    ).float()
    noise = torch.randn(len(made), 9, 2, 2, 4, generator=g)
    knows = torch.stack([right, torch.ones(len(made))], -1)[:, None, None, None].expand(-1, 9, 2, 2, 2)
    plant_features(folder / "knows", ids, {"vision.0": knows, "language.0": noise}, folder / "planted")
    test = [i for i in made if common.split_of(i["source"]) == "test"]
    said = torch.tensor(
        [[i["conditioning"] != "direction" and w == i["direction"] for w in WAYS] for i in test]
    )
    told = {"actions": list(WAYS), "said": said}
    common.save_pt(
        folder / "said.pt",
        common.RESULT,
        [i["id"] for i in test],
        {"model": "planted", "weights": "random"},
        **told,
    )
    return folder


def verified(world, out, *more):
    return verify.main(["score", "--rollouts", str(world / "planted"), "--out", str(out), *map(str, more)])


@pytest.fixture(scope="module")
def found(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "verify.yaml"
    return verified(world, out, "--latents", world / "knows", "--words", world / "said.pt"), out


@pytest.mark.slow
def test_verifiers_are_told_apart_by_what_they_know(found):
    result, out = found
    assert common.load_yaml(out, "verify")["pixel_auroc"] == pytest.approx(result["pixel_auroc"], rel=1e-5)
    assert out.with_suffix(".png").stat().st_size > 10000
    table = result["verifiers"]
    assert result["pixel_verifier"] != "position_error" and table["position_error"]["family"] == "tracked"
    rightness = {kind: share > 0.9 for kind, share in result["rightness_of_planted"].items()}
    assert rightness == verify.PLANTED
    assert table["planted vision.0 cosine"]["auroc"] == 1
    assert result["latent_verifier"].startswith("planted vision.0")
    blind = table["planted language.0 cosine"]
    assert blind["auroc_low"] < 0.5 < blind["auroc_high"]
    assert result["pixel_auroc"] > 0.9 and table["words"]["kinds"]["direction"]["flagged"] == 1
    assert table["words"]["kinds"]["speed"]["flagged"] == 0
    assert result["criteria"]["pixel_auroc"]["floors"]["other_outcome"] < 0.8
    assert {k for k in table["l1"]["kinds"]} == set(verify.PLANTED) - {"right"} and "lpips" not in table
    assert result["lpips_reason"]
    assert table["position_error"]["kinds"]["vanished"]["flagged"] == 1
    assert table["position_error"]["kinds"]["identity"]["flagged"] == 1


@pytest.mark.slow
def test_films_of_a_video_model_are_judged_by_where_their_object_goes(found):
    made = found[0]["made"]
    assert made["right_by_kind"] == {"past": 1, "first": 0} and "position_error" not in made["verifiers"]
    assert made["verifiers"]["mse"]["all"]["auroc"] > 0.9  # a copy is nobody's film
    assert found[0]["conformal_accepted_made"] > found[0]["conformal_error_made"]
    assert found[0]["criteria"]["made_over_latent"]["floor_name"].startswith("planted vision.0")


@pytest.mark.slow
def test_what_is_seen_grows_with_the_horizon_and_accepting_by_it_lowers_the_risk(found):
    result = found[0]
    rows = list(result["horizons"].values())
    wrong = [row["begun"] for row in rows]
    assert (
        list(result["horizons"]) == ["1", "2", "4", "8"] and rows[-1][result["pixel_verifier"]]["auroc"] > 0.9
    )
    assert "words" not in rows[2] and wrong == sorted(wrong) and wrong[-1] > 0.9
    curve = result["risk_coverage"]
    assert result["aurc"] < result["base_risk"] and curve["risk"][-1] == pytest.approx(curve["random"])
    assert all(r >= p - 0.05 for r, p in zip(curve["risk"], curve["perfect"], strict=True))
    assert result["conformal_error"] <= 0.2 and result["conformal_accepted_right"] > 0.8
    assert result["accepted_by_kind"]["right"] == 1 and result["accepted_by_kind"]["direction"] < 0.1


@pytest.mark.slow
def test_an_encoder_of_one_step_wins_nothing_and_two_takes_of_a_scene_are_a_ceiling(world, found, tmp_path):
    """Films of seven frames, which end before the encoder's step does."""
    assert found[0]["ceilings"]["repeat"] is None and "repeat" in found[0]["repeat_reason"]
    items = [
        i
        for i in common.load_items(world / "planted")[0]
        if i["conditioning"] not in ("copy", "past", "first")
    ]
    short = [
        i | {"frames": i["frames"][:8].clone(), "mask": i["mask"][:8].clone(), "repeat": i["direction"]}
        for i in items
    ]
    write_planted(tmp_path / "planted", short)
    one = {"latents": torch.randn(len(items), 1, 2, 2, 4)}
    plant_features(tmp_path / "one", [i["id"] for i in items], one, tmp_path / "planted")
    result = verified(tmp_path, tmp_path / "verify.yaml", "--latents", tmp_path / "one")
    assert list(result["horizons"]) == ["1", "2", "4", "7"] and "latent_verifier" not in result
    assert result["verifiers"]["planted latents l2"]["auroc"] is None and result["made"] is None
    repeat = result["ceilings"]["repeat"]
    assert (
        repeat["l1"] < 0 < repeat["ssim"] < result["ceilings"]["vae"]["ssim"] == 1
        and "position_error" not in repeat
    )
    verdict_4 = gate.main(["judge", "4", "--results", str(tmp_path)])
    assert verdict_4["verdict"] == "INCONCLUSIVE" and "pixel_over_latent" in verdict_4["headline"]
    assert verdict_4["plain_verdict"] is None


@pytest.mark.slow
def test_gate_4_says_where_to_when_latents_know_it_all(found, tmp_path):
    results, out = str(found[1].parent), str(tmp_path / "gate4.yaml")
    verdict_4 = gate.main(["judge", "4", "--results", results, "--out", out])
    assert verdict_4["verdict"] == "PIVOT" and "to latents" in verdict_4["headline"]
    assert verdict_4["criteria"]["pixel_over_latent"]["answer"] == "FAIL"
    assert verdict_4["criteria"]["pixel_auroc"]["answer"] == "PASS"
    assert "random weights, synthetic data" in verdict_4["headline"]
    assert verdict_4["flagged"][verdict_4["pixel_verifier"]]["vanished"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "pixel, gain, verdict, words",
    [
        (0.95, 0.30, "PROCEED", "pixels can verify"),
        (0.60, 0.1, "STOP", "no verifier"),
        (0.60, -0.3, "PIVOT", "to latents"),
        (0.95, -0.04, "PIVOT", "to latents"),
        (0.80, 0.3, "INCONCLUSIVE", "pixel_auroc"),
    ],
)
def test_the_decision_of_gate_4(found, tmp_path, pixel, gain, verdict, words):
    def record(score, floor, gain):
        own = {
            "score": score,
            "low": score - 0.03,
            "high": score + 0.03,
            "floor": floor,
            "floor_name": "other",
        }
        return own | {
            "gain": gain,
            "gain_low": gain - 0.03,
            "gain_high": gain + 0.03,
            "ceiling": 1.0,
            "n": 100,
        }

    content = common.load_yaml(found[1], "verify")
    content["criteria"]["pixel_auroc"] = record(pixel, 0.5, pixel - 0.5)
    content["criteria"]["pixel_over_latent"] = record(pixel, pixel - gain, gain)
    common.save_yaml(tmp_path / "verify.yaml", content | {"latent_auroc_low": pixel - gain - 0.03})
    verdict_4 = gate.main(["judge", "4", "--results", str(tmp_path)])
    assert verdict_4["verdict"] == verdict and words in verdict_4["headline"]


@pytest.mark.slow
def test_of_several_futures_the_better_half_is_told_from_where_they_begin(world, tmp_path, refused):
    shifts, path = (0, 1, 3, 4), tmp_path / "futures.yaml"  # candidates run ahead by so many frames
    items = [i for i in common.load_items(world / "planted")[0] if i["conditioning"] == "real"]
    test = [i for i in items if common.split_of(i["source"]) == "test"]
    ids, names = [i["id"].rpartition("/")[0] for i in test], [f"candidate-{k}" for k in shifts]
    knows = -torch.tensor(shifts)[:, None].expand(-1, len(test)).double()
    about = {"sources": [i["source"] for i in test], "candidates": names}
    about["beliefs"] = {"knows": knows, "errs": -knows, "nothing": 0 * knows}
    for name, k in zip(names, shifts, strict=True):
        films = torch.stack([i["frames"][1 + k : 5 + k] for i in test])
        common.save_pt(tmp_path / "futures-parts" / f"{name}.pt", common.RESULT, ids, {}, films=films)
    common.save_yaml(path, {"stage": "video", "mode": "futures"})

    def ask(first):
        last = [common.digest(i["frames"][first].numpy().tobytes()) for i in test]
        common.save_pt(path.with_suffix(".pt"), common.RESULT, ids, {}, last=last, **about)
        return verified(world, tmp_path / "verify.yaml", "--futures", path)["futures"]

    found = ask(0)
    assert found["clips"] == len(test) and found["with_outcome"]["auroc"] == 1
    assert [found["without_outcome"][b]["auroc"] for b in ("knows", "errs", "nothing")] == [1, 0, 0.5]
    assert found["without_outcome"]["errs"]["worse_by"] == 1
    picked = {
        name: found["picked_better"][name]["share"] for name in ("random", "with_outcome", "knows", "errs")
    }
    assert picked == {"random": 0.5, "with_outcome": 1, "knows": 1, "errs": 0}
    refused(lambda: ask(1), "another frame", "--past")


# ---------------------------------------------------------------- planting through an autoencoder, and bad input


@pytest.mark.slow
def test_planted_films_begin_as_the_clip_does_and_lie_beside_the_generated_ones(tmp_path, refused):
    import data

    source, out, generated = tmp_path / "clips", tmp_path / "planted", tmp_path / "films"
    data.main(["moving", "--n", "60", "--frames", "12", "--size", "64", "--out", str(source), "--seed", "3"])
    ask = [
        "plant",
        "--data",
        str(source),
        "--past",
        "4",
        "--horizon",
        "8",
        "--out",
        str(out),
        "--films",
        str(generated),
    ]
    films = []  # the video model's: the truth backwards
    for item in common.load_items(source)[0]:
        truth = item["frames"][3:].clone()
        for kind, x in (("real", truth), ("past", truth.flip(0))):
            films.append(item | {"id": f"{item['id']}/{kind}", "frames": x, "conditioning": kind})
    meta = {"name": "clips-films", "source_kind": "films", "data": "synthetic", "data_path": str(source)}
    common.write_items(generated, films, meta)
    result = verify.main(ask)
    items, index = common.load_items(out)
    by, test = {i["id"]: i for i in items}, [i for i in items if common.split_of(i["source"]) == "test"]
    kinds = [i["conditioning"] for i in items]
    assert result["films"] == len(items) and kinds.count("real") == kinds.count("speed") == result["clips"]
    assert kinds.count("past") == sum(i["conditioning"] == "real" for i in test) and index["left_out"] > 0
    assert {common.split_of(i["source"]) for i in items} == {"val", "test"}
    for name, i in by.items():
        real = by[name.rpartition("/")[0] + "/real"]["frames"]
        assert i["frames"].shape == (9, 64, 64, 3) and torch.equal(i["frames"][0], real[0]) == (
            i["conditioning"] != "past"
        )
        if i["conditioning"] == "right":  # through the autoencoder, and still the same picture
            assert 0 < (i["frames"][1:].float() - real[1:].float()).abs().mean() / 255 < 0.03
    common.write_items(generated, [i | {"frames": i["frames"].flip(0)} for i in films], meta)
    refused(lambda: verify.main(ask), "other frames", "--past")


def test_bad_input_is_refused_in_one_sentence(world, tmp_path, refused):
    def plant(name, items, *more):
        common.write_items(tmp_path / name, items, {"name": name, "data": "synthetic"})
        return lambda: verify.main(
            ["plant", "--data", str(tmp_path / name), "--out", str(tmp_path / "out"), *more]
        )

    still = [c | {"direction": "still"} for c in clips(20)]
    refused(plant("pictures", [c | {"frames": c["frames"][:1]} for c in clips(20)]), "no clips")
    refused(plant("discs", clips(20), "--past", "8"), "24 are needed", "--horizon")
    refused(plant("still", still, "--past", "4", "--horizon", "8"), "0 clips", "still camera")
    refused(plant("discs", clips(20), "--vae", "tiny"), "--vae tiny is a vlm")
    refused(
        lambda: verify.main(["score", "--rollouts", str(tmp_path / "discs")]),
        "no planted rollouts",
        "verify.py plant",
    )
    items = common.load_items(world / "planted")[0]
    write_planted(tmp_path / "planted", [i for i in items if not i["id"].endswith("/blurred")])
    refused(lambda: verified(tmp_path, tmp_path / "v.yaml"), "/blurred")
    plant_features(
        tmp_path / "few", [items[0]["id"]], {"vision.0": torch.randn(1, 9, 2, 2, 4)}, world / "planted"
    )
    refused(
        lambda: verified(world, tmp_path / "v.yaml", "--latents", tmp_path / "few"),
        "no features of",
        "extract.py",
    )
