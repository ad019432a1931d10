"""The calibration of gate 1, at a few worlds: nulls first; and the pieces whose answer is known."""

import calibrate
import pytest
import torch

import common
import synthetic


@pytest.fixture(scope="module")
def pools():
    return {
        "shapes": calibrate.Pool(list(synthetic.shapes(500, 48, 0))),
        "portraits": calibrate.Pool(list(calibrate.portraits(400, 48, 0))),
    }


def answers(make, pool, kind, criterion, worlds=5, **more):
    found = [make(pool, kind, 100, calibrate.generator(5, k), **more)[criterion] for k in range(worlds)]
    return [calibrate.answered(criterion, f, kind, 100, "here") for f in found]


# ---------------------------------------------------------------- nulls


@pytest.mark.parametrize("scene", ["shapes", "portraits"])
@pytest.mark.parametrize("kind", ["constant", "position", "shuffled"])
@pytest.mark.parametrize(
    ("make", "criterion"), [(calibrate.box_world, "bbox_iou"), (calibrate.mask_world, "spatial_iou")]
)
def test_features_that_hold_nothing_never_pass_not_even_where_a_constant_box_clears_the_threshold(
    pools, make, criterion, kind, scene
):
    found = answers(make, pools[scene], kind, criterion)
    assert all(r["answer"] != "PASS" and r["pass_is_false"] and not r["fail_is_false"] for r in found), found


def test_portraits_are_scenes_where_the_bare_threshold_would_have_passed(pools):
    assert all(
        r["plain_pass"] for r in answers(calibrate.box_world, pools["portraits"], "position", "bbox_iou")
    )


@pytest.mark.parametrize("kind", ["constant", "shuffled", "random_network"])
def test_motion_that_is_not_there_never_passes(kind):
    assert all(
        r["answer"] != "PASS" for r in answers(calibrate.motion_world, None, kind, "direction_accuracy", 3)
    )


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize(
    ("make", "criterion"),
    [
        (calibrate.box_world, "bbox_iou"),
        (calibrate.mask_world, "spatial_iou"),
        (calibrate.motion_world, "direction_accuracy"),
    ],
)
def test_the_oracle_passes_and_a_fail_would_have_been_false(pools, monkeypatch, make, criterion):
    pool = pools["shapes"]
    monkeypatch.setattr(pool, "world", lambda n, g, rest: type(pool).world(pool, n, g, min(rest, 100)))
    for r in answers(make, pool, "oracle", criterion, 2):
        assert r["answer"] == "PASS" and r["fail_is_false"] and not r["pass_is_false"] and r["above"] > 0.1


def test_noise_is_found_that_gives_the_wanted_score():
    wanted = calibrate.noise_for(lambda x: 1 / (1 + x), {"low": 0.3, "high": 0.7}, steps=60)
    assert [1 / (1 + wanted[k]) for k in ("low", "high")] == pytest.approx([0.3, 0.7], abs=0.01)


# ---------------------------------------------------------------- leaks


def test_a_split_leak_is_refused_by_name(pools):
    rows, _ = calibrate.split_leaks(pools["shapes"], 2, 0)
    assert [calibrate.caught_by(r) for r in rows] == ["split leak"] * 2
    assert all("one picture under two sources" in r["reason"] for r in rows)


@pytest.mark.parametrize(
    ("kind", "name"), [("normaliser_targets", "shuffled"), ("normaliser_features", "random_init")]
)
def test_a_normaliser_is_named_by_its_control(pools, kind, name):
    found = answers(calibrate.box_world, pools["shapes"], kind, "bbox_iou")
    assert [calibrate.caught_by(r) for r in found] == [name] * 5


def test_a_normaliser_before_every_network_passes_without_the_untrained_one(pools):
    found = answers(calibrate.box_world, pools["shapes"], "normaliser_features", "bbox_iou", controlled=False)
    assert {r["answer"] for r in found} == {"PASS"}


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    ("k", "n", "low", "high"), [(0, 10, 0, 0.2775), (1, 10, 0.0179, 0.4042), (0, 0, 0, 1)]
)
def test_wilsons_interval_has_its_known_values(k, n, low, high):
    assert calibrate.wilson(k, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("shape", ["iou", "hit", "distance"])
@pytest.mark.parametrize("per_source", [1, 5])
def test_planted_scores_have_the_mean_that_is_said_of_them(shape, per_source):
    import numpy as np

    found = [
        calibrate.planted(shape, 1000, per_source, 0.1, False, np.random.default_rng(k)) for k in range(20)
    ]
    assert sum(r["score"] for r, _ in found) / 20 == pytest.approx(found[0][1], abs=0.012)
    assert sum(r["gain"] for r, _ in found) / 20 == pytest.approx(0.1, abs=0.012)
    assert found[0][0]["sources"] == 1000 // per_source


def test_a_rule_is_judged_at_the_stated_distance_from_the_threshold():
    record = dict(
        score=0.5,
        low=0.45,
        high=0.55,
        floor=0.1,
        floor_name="constant",
        ceiling=1.0,
        gain=0.4,
        gain_low=0.3,
        gain_high=0.5,
        n=100,
    )
    for more in ({"better": "higher"}, {"better": "lower", "floor": 0.9, "ceiling": 0.0}):
        said = [calibrate.shifted(record | more, 0.5, above)["answer"] for above in (0.1, 0.0, -0.1)]
        assert said == ["PASS", "INCONCLUSIVE", "FAIL"]


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_main_at_a_few_worlds_writes_what_it_returns_and_a_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "SIZES", (60, 100))
    monkeypatch.setattr(calibrate, "COUNTS", (60, 100))
    monkeypatch.setattr(calibrate, "REST", 700)
    out = tmp_path / "calibrate.yaml"
    result = calibrate.main(["--share", "0.01", "--families", "boxes,motion", "--out", str(out)])
    found = common.load_yaml(out, "calibrate")
    assert found["false_pass"] == pytest.approx(result["false_pass"])
    assert found["worlds"] == result["worlds"] > 40 and found["rules"] > 10
    for kind in ("constant", "position", "shuffled", "normaliser_targets", "split_leak"):
        assert found["kinds"][kind]["false_pass"]["rate"] == 0
        assert found["kinds"][kind]["false_pass"]["of"] > 0
    assert found["oracle_passes"]["bbox_iou"]["rate"] == 1 and found["false_leak"] == 0
    assert found["leak_names"]["split_leak"] == {"split leak": 1} and found["run"]["seed"] == 0
    assert f"false_pass {common.plain(result['false_pass'])}" in capsys.readouterr().out


def test_an_untrained_network_differs_from_its_control(pools):
    own, control = calibrate.features(
        "random_network",
        pools["shapes"].codes["boxes"],
        pools["shapes"],
        torch.arange(5),
        calibrate.generator(0),
    )
    assert own.shape == control.shape and not torch.allclose(own, control)
