"""The calibration of gate 1 on a few planted sets: nulls first; and the parts whose answer is known."""

import calibrate
import numpy as np
import planted
import pytest
from planted import measure_boxes, measure_masks, measure_motion

import common
import synthetic

BOXES, MASKS = (measure_boxes, "bbox_iou"), (measure_masks, "spatial_iou")
MOTION = (measure_motion, "direction_accuracy")


@pytest.fixture(scope="module")
def pools():
    portraits = planted.Pool(list(planted.portraits(400, 48, 0)))
    return {"shapes": planted.Pool(list(synthetic.shapes(500, 48, 0))), "portraits": portraits}


def judged(family, pool, kind, sets=5, **more):
    measure, criterion = family
    found = [measure(pool, kind, 100, planted.generator(5, k), **more)[criterion] for k in range(sets)]
    return [calibrate.judge(criterion, f, kind, 100, "here") for f in found]


@pytest.mark.parametrize("kind", ["constant", "position", "shuffled"])
@pytest.mark.parametrize("scene", ["shapes", "portraits"])
@pytest.mark.parametrize("family", [BOXES, MASKS])
def test_features_without_the_answer_never_pass_even_where_a_constant_box_does(pools, family, scene, kind):
    rows = judged(family, pools[scene], kind)
    assert all(r["answer"] != "PASS" and r["pass_is_false"] and not r["fail_is_false"] for r in rows), rows
    if family == BOXES and scene == "portraits" and kind == "position":
        assert all(r["plain_pass"] for r in rows)  # the bare threshold


@pytest.mark.parametrize("kind", ["constant", "shuffled", "random_network"])
def test_motion_that_is_not_there_never_passes(kind):
    assert all(r["answer"] != "PASS" for r in judged(MOTION, None, kind, 3))


@pytest.mark.parametrize("family", [BOXES, MASKS, MOTION])
def test_the_oracle_passes_and_a_fail_is_false(pools, monkeypatch, family):
    pool = pools["shapes"]
    monkeypatch.setattr(pool, "draw", lambda n, g, rest: type(pool).draw(pool, n, g, min(rest, 100)))
    for r in judged(family, pool, "oracle", 2):
        assert r["answer"] == "PASS" and r["fail_is_false"] and not r["pass_is_false"] and r["above"] > 0.1


NAMED_BY = {"normaliser_targets": "shuffled", "normaliser_features": "random_init"}


@pytest.mark.parametrize("kind", NAMED_BY)
def test_a_normaliser_is_named_by_its_baseline_and_passes_without_it(pools, kind):
    rows = judged(BOXES, pools["shapes"], kind)
    assert [calibrate.caught_by(r) for r in rows] == [NAMED_BY[kind]] * 5
    rows = judged(BOXES, pools["shapes"], "normaliser_features", untrained_baseline=False)
    assert {r["answer"] for r in rows} == {"PASS"}


def test_wilsons_interval_has_its_known_values():
    for k, n, ends in ((0, 10, (0, 0.2775)), (1, 10, (0.0179, 0.4042)), (0, 0, (0, 1))):
        assert calibrate.wilson(k, n) == pytest.approx(ends, abs=1e-4)


@pytest.mark.parametrize("shape", ["iou", "hit", "distance"])
@pytest.mark.parametrize("per_source", [1, 5])
def test_planted_scores_have_their_stated_mean_and_gain(shape, per_source):
    seeds = [np.random.default_rng(k) for k in range(20)]
    found = [planted.planted_scores(shape, 1000, per_source, 0.1, False, rng) for rng in seeds]
    assert sum(r["score"] for r, _ in found) / 20 == pytest.approx(found[0][1], abs=0.012)
    assert sum(r["gain"] for r, _ in found) / 20 == pytest.approx(0.1, abs=0.012)
    assert found[0][0]["sources"] == 1000 // per_source


@pytest.mark.parametrize("better", ["higher", "lower"])
def test_a_rule_is_judged_at_the_stated_distance_from_the_threshold(better):
    baseline, bound = (0.1, 1.0) if better == "higher" else (0.9, 0.0)
    record = {
        "better": better,
        "baseline": baseline,
        "baseline_name": "constant",
        "upper_bound": bound,
        "n": 100,
    }
    record |= {"score": 0.5, "low": 0.45, "high": 0.55, "gain": 0.4, "gain_low": 0.3, "gain_high": 0.5}
    answers = [calibrate.shifted(record, 0.5, above)["answer"] for above in (0.1, 0.0, -0.1)]
    assert answers == ["PASS", "INCONCLUSIVE", "FAIL"]


@pytest.mark.slow
def test_main_on_a_few_planted_sets_writes_what_it_returns_and_a_chart(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "SIZES", (60, 100))
    monkeypatch.setattr(calibrate, "COUNTS", (60, 100))
    monkeypatch.setattr(planted, "REST", 500)
    out = tmp_path / "calibrate.yaml"
    result = calibrate.main(["--share", "0.01", "--families", "boxes", "--out", str(out)])
    found = common.load_yaml(out, "calibrate")
    assert found["false_pass"] == pytest.approx(result["false_pass"]) and out.with_suffix(".png").is_file()
    assert found["planted_sets"] == result["planted_sets"] > 30 and found["rules"] > 10
    for kind in ("constant", "position", "shuffled", "normaliser_targets", "split_leak"):
        rate = found["kinds"][kind]["false_pass"]
        assert rate["rate"] == 0 and rate["of"] > 0
    assert found["oracle_passes"]["bbox_iou"]["rate"] == 1 and found["false_leak"] == 0
    assert found["leak_names"]["split_leak"] == {"split leak": 1} and found["run"]["seed"] == 0
    assert f"false_pass {common.plain(result['false_pass'])}" in capsys.readouterr().out
