"""The verdicts: hand-made records whose answer is known, and the command that people run."""

import math

import pytest
from helpers import gate_inputs

import common
import gate


def record(score, half=0.02, floor=0.1, ceiling=1.0, gain_half=0.02, n=100):
    gain = (score - floor) * (1 if ceiling > floor else -1)
    bounds = {
        "low": score - half,
        "high": score + half,
        "gain_low": gain - gain_half,
        "gain_high": gain + gain_half,
    }
    return {
        "score": score,
        "gain": gain,
        "floor": floor,
        "floor_name": "constant",
        "ceiling": ceiling,
        "n": n,
    } | bounds


# ---------------------------------------------------------------- three answers


@pytest.mark.parametrize(
    "answer, plain, high, low",
    [
        ("PASS", True, 0.6, 0.25),
        ("FAIL", False, 0.4, 0.45),
        ("INCONCLUSIVE", True, 0.52, 0.34),
        ("INCONCLUSIVE", False, 0.48, 0.36),
    ],
)
def test_the_interval_decides_and_not_the_score_on_the_side_that_is_good(answer, plain, high, low):
    for found in (
        gate.judge(record(high, 0.05), 0.5),
        gate.judge(record(low, 0.03, 0.9, 0.1), 0.35, "lower"),
    ):
        assert (found["answer"], found["plain_pass"]) == (answer, plain)


@pytest.mark.parametrize(
    ("floor", "gain", "half", "answer"),
    [
        # at most 0.025, of 0.39 that the floor leaves: what more items show of it changes nothing
        # at most 0.025, of 0.39 that the floor leaves: what more items show of it changes nothing; a floor at the
        # ceiling: rounding is no gain
        (0.61, -0.03, 0.02, "FAIL"),
        (0.61, 0.012, 0.010, "FAIL"),
        (0.61, 0.012, 0.013, "FAIL"),
        (0.9999, 8e-5, 1e-5, "FAIL"),
        (0.61, 0.06, 0.010, "PASS"),
        (0.61, 0.06, 0.07, "INCONCLUSIVE"),
    ],
)
def test_a_gain_that_can_only_be_negligible_fails(floor, gain, half, answer):
    found = gate.judge(record(floor + gain, 1e-6, floor=floor, gain_half=half), 0.5)
    assert found["answer"] == answer and found["plain_pass"]
    assert answer == "PASS" or "constant" in found["reason"]


def test_inconclusive_says_how_many_items_would_decide():
    found = gate.judge(record(0.52, 0.04, n=50), 0.5)
    # half-width 0.04 must shrink to 0.02
    # half-width 0.04 must shrink to 0.02
    assert found["n_needed"] in (200, 201) and "threshold" in found["reason"]
    weak = gate.judge(record(0.65, floor=0.6, gain_half=0.1, n=30), 0.5)
    assert weak["n_needed"] in (120, 121)  # the gain is half of its half-width
    both = gate.judge(record(0.52, 0.04, floor=0.51, gain_half=0.1, ceiling=0.6, n=50), 0.5)
    assert both["n_needed"] in (5000, 5001) and "threshold" in both["reason"] and "constant" in both["reason"]
    # exactly on the threshold no number decides
    assert gate.judge(record(0.5, 0.04), 0.5)["n_needed"] is None


@pytest.mark.parametrize("broken", [{"low": -math.inf, "gain_low": -math.inf}, {"score": math.nan}])
def test_a_score_that_is_no_number_or_of_a_single_source_decides_nothing(broken):
    found = gate.judge(record(0.9) | broken, 0.5)
    assert found["answer"] == "INCONCLUSIVE" and "single source" in found["reason"]


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_a_leak_is_neither_passed_nor_held_against_the_model_and_the_control_is_named(score):
    leaky = {"leak": "shuffled", "floors": {"constant": 0.1, "shuffled": 0.85}}
    found = gate.judge(record(score) | leaky, 0.5)
    assert found["answer"] == "INCONCLUSIVE" and "leak" in found["reason"]
    assert "'shuffled' scores 0.850" in found["reason"]


@pytest.mark.parametrize(
    ("score", "skill", "answer"),
    [
        (0.9, 0, "FAIL"),
        (0.98, -0.1, "FAIL"),
        (0.7, 0.25, "FAIL"),
        (0.5, 0.5, "INCONCLUSIVE"),
        (0.49, 0.5125, "INCONCLUSIVE"),
        (0.2, 0.875, "PASS"),
        (0.1, 1, "PASS"),
    ],
)
def test_the_stand_in_of_lpips_is_0_at_the_mean_image_and_1_at_the_vae(score, skill, answer):
    found = gate.stand_in(record(score, 0.02, 0.9, 0.1, 0.02))
    assert found["score"] == pytest.approx(skill) == found["gain"]
    assert (found["low"], found["high"]) == pytest.approx((skill - 0.025, skill + 0.025))
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((skill - 0.025, skill + 0.025))
    assert (found["floor"], found["ceiling"], found["better"]) == (0, 1, "higher")
    assert gate.judge(found, gate.STAND_IN)["answer"] == answer


def test_a_picture_worse_than_the_mean_image_never_passes_though_the_vae_is_no_better():
    # judged as nothing measured: INCONCLUSIVE
    assert gate.stand_in(record(0.5, 0.02, 0.3, 0.4)) is None


# ---------------------------------------------------------------- the decision table, and its thresholds


def decided(encoder, **answers):
    judged = {
        k: {"level": r["level"], "answer": "PASS", "reason": f"doubt about {k}"}
        for k, r in gate.GATE1.items()
    }
    for name, answer in answers.items():
        judged[name]["answer"] = answer
    return gate.decide(judged, {k: {"answer": v} for k, v in encoder.items()})


@pytest.mark.parametrize(
    "verdict, word, encoder, answers",
    [
        ("PROCEED", "every criterion", {}, {"ssim": "FAIL", "cka": "INCONCLUSIVE"}),  # should, not must
        ("PIVOT", "untested", {}, {"bbox_iou": "FAIL"}),
        (
            "PIVOT",
            "holds bbox_iou",
            {"bbox_iou": "PASS", "map50": "FAIL"},
            dict.fromkeys(["bbox_iou", "map50"], "FAIL"),
        ),
        ("STOP", "bbox_iou", {"bbox_iou": "FAIL"}, {"bbox_iou": "FAIL"}),
        ("INCONCLUSIVE", "undecided", {"bbox_iou": "INCONCLUSIVE"}, {"bbox_iou": "FAIL"}),
        ("STOP", "bridge fails lpips", {}, {"lpips": "FAIL"}),
        ("INCONCLUSIVE", "doubt about map50", {"map50": "FAIL"}, {"map50": "INCONCLUSIVE"}),
    ],
)
def test_the_decision_table(verdict, word, encoder, answers):
    found, why = decided(encoder, **answers)
    assert found == verdict and word in why, why


@pytest.mark.parametrize("name", [k for k, r in gate.GATE1.items() if r["level"] == "must"])
def test_no_single_must_can_be_short_and_the_verdict_proceed(name):
    assert decided({}, **{name: "FAIL"})[0] in ("PIVOT", "STOP")
    assert decided({}, **{name: "INCONCLUSIVE"})[0] == "INCONCLUSIVE"


def test_thresholds_are_overridden_by_name_and_what_is_none_is_refused(refused):
    changed = gate.overrides("bbox_iou=0.4, lpips=1e-1 map50=.3")
    assert gate.overrides("") == {} and changed == {"bbox_iou": 0.4, "lpips": 0.1, "map50": 0.3}
    for text in ("bbox=0.5", "0.5", "bbox_iou", "bbox_iou=high", "bbox_iou=nan"):
        refused(lambda text=text: gate.overrides(text), text, "bbox_iou")


# ---------------------------------------------------------------- the command


def made(folder, without=(), **changes):
    """Results that pass every gate, changed: {file stem (motion: its probe.yaml): function of the loaded mapping}. -> flags of gate.py judge."""
    gate_inputs(folder)
    for stem, change in changes.items():
        name = f"{stem.replace('_', '-')}.yaml" if stem != "motion" else "motion/probe.yaml"
        path = folder / name if (folder / name).is_file() else folder / "motion" / name
        content = common.load_yaml(path)
        change(content)
        common.save_yaml(path, content)
    for stem in without:
        (folder / f"{stem}.yaml").unlink()
    return ["--results", str(folder), "--motion", str(folder / "motion")]


def judge(number, *flags):
    return gate.main(["judge", str(number), *flags])


def gate2(folder, **changes):
    return judge(2, *made(folder, **changes))


def gate3(folder, **changes):
    return judge(3, *made(folder, **changes))


@pytest.fixture
def no_picture(monkeypatch):
    """The figure takes most of the time."""
    monkeypatch.setattr(gate, "picture", lambda *_: None)


def criteria(name, **values):
    return lambda content: content["criteria"][name].update(values)


def test_gate_1_writes_the_verdict_and_a_picture_and_prints_it_again(tmp_path, capsys):
    result = judge(1, *made(tmp_path), "--set", "bbox_iou=0.55", "--strict")
    found = common.load_yaml(tmp_path / "gate1.yaml", "gate")
    assert found["verdict"] == result["verdict"] == "PROCEED" and found["plain_verdict"] == "PROCEED"
    assert "random weights, synthetic data" in found["headline"]
    assert found["overridden"] == {"bbox_iou": 0.55}
    assert found["criteria"]["bbox_iou"]["threshold"] == 0.55
    assert found["criteria"]["bbox_iou"]["source"] == "--set"
    assert found["criteria"]["map50"]["source"] == gate.PLAN
    assert set(found["criteria"]) == set(gate.GATE1) <= set(found)
    assert (tmp_path / "gate1.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert gate.main(["show", str(tmp_path / "gate1.yaml")])["headline"] == found["headline"]
    assert printed.endswith(capsys.readouterr().out) and f"headline {found['headline']}" in printed


def test_a_criterion_that_fails_is_not_proceed_and_strict_exits_with_3(tmp_path, no_picture):
    args = made(tmp_path, probe=criteria("bbox_iou", score=0.3, low=0.25, high=0.35))
    with pytest.raises(SystemExit, match="3"):
        judge(1, *args, "--strict")
    found = common.load_yaml(tmp_path / "gate1.yaml", "gate")  # written all the same
    assert found["verdict"] == "PIVOT" and found["plain_verdict"] == "STOP"
    assert found["criteria"]["bbox_iou"]["answer"] == "FAIL"
    with pytest.raises(SystemExit, match="3"):
        gate.main(["show", str(tmp_path / "gate1.yaml"), "--strict"])


def test_a_model_below_a_constant_box_does_not_proceed_though_a_plain_comparison_would(tmp_path, no_picture):
    found = judge(
        1, *made(tmp_path, probe=lambda c: c["criteria"]["bbox_iou"].update(record(0.58, floor=0.61)))
    )
    assert (found["verdict"], found["plain_verdict"]) == ("PIVOT", "PROCEED")


def test_a_threshold_that_was_set_changes_the_verdict(tmp_path, no_picture):
    args = made(tmp_path)
    assert judge(1, *args, "--set", "lpips=0.01")["verdict"] == "STOP"
    assert judge(1, *args, "--set", "map50=0.9")["verdict"] == "INCONCLUSIVE"


def test_the_encoder_decides_between_pivot_and_stop_and_its_latency_is_a_share(tmp_path, no_picture):
    args = made(tmp_path / "model", probe=criteria("bbox_iou", score=0.3, low=0.25, high=0.35))
    made(tmp_path / "good")
    index = tmp_path / "good" / "features" / "index.yaml"
    common.save_yaml(index, common.load_yaml(index) | {"seconds_per_item": 0.02})
    found = judge(1, *args, "--encoder", str(tmp_path / "good"))
    assert found["verdict"] == "PIVOT" and "holds bbox_iou" in found["headline"]
    assert found["encoder"]["bbox_iou"]["answer"] == "PASS"
    row = found["criteria"]["latency_overhead"]
    assert (row["score"], row["answer"]) == (pytest.approx(0.2), "PASS")
    nothing = judge(1, *args)["criteria"]["latency_overhead"]
    assert nothing["score"] is None and nothing["answer"] == "INCONCLUSIVE"
    assert "--encoder" in nothing["reason"]
    common.save_yaml(index, common.load_yaml(index) | {"seconds_per_item": None})
    streamed = judge(1, *args, "--encoder", str(tmp_path / "good"))["criteria"]["latency_overhead"]
    assert streamed["score"] is None and streamed["answer"] == "INCONCLUSIVE"
    assert "streamed" in streamed["reason"]
    made(tmp_path / "bad", probe=criteria("bbox_iou", score=0.2, low=0.15, high=0.25))
    assert judge(1, *args, "--encoder", str(tmp_path / "bad"))["verdict"] == "STOP"


def test_lpips_without_the_published_backbone_is_marked(tmp_path, no_picture, capsys):
    def change(content):
        content["criteria"]["lpips_random_backbone"] = content["criteria"].pop("lpips")

    found = judge(1, *made(tmp_path, adapt_latents=change))
    row = found["criteria"]["lpips"]
    assert row["stand_in"] and row["threshold"] == gate.STAND_IN
    assert row["score"] == pytest.approx(8 / 9, rel=1e-4)
    assert "stand-in" in found["headline"] and "lpips*" in capsys.readouterr().out


def test_what_was_not_measured_is_inconclusive_and_says_so(tmp_path, no_picture):
    faster = criteria("direction_accuracy", score=0.95, low=0.94, high=0.96)
    args = made(tmp_path, probe=lambda c: c["criteria"].pop("map50"), motion=faster)
    found = judge(1, *args)
    assert found["verdict"] == "INCONCLUSIVE" and found["map50"] is None
    assert "probe measured no map50" in found["criteria"]["map50"]["reason"]
    assert found["plain_verdict"] == "STOP" and found["direction_accuracy"] == 0.95
    assert judge(1, *args[:2])["criteria"]["direction_accuracy"]["answer"] == "INCONCLUSIVE"  # no --motion


def other(**values):
    return lambda content: content.update(values)


ANOTHER = other(model="another")


@pytest.mark.parametrize(
    "number, words, changes",
    [
        (1, ("probe.yaml", "does not exist"), {"without": ["probe"]}),
        (1, ("adapt-latents.yaml",), {"without": ["adapt-latents"]}),
        (1, ("probe.yaml", "'align'"), {"probe": other(stage="align")}),
        (1, ("another", "made-up"), {"align": ANOTHER}),
        (1, ("another", "made-up"), {"adapt_latents": ANOTHER}),
        (1, ("another", "made-up"), {"motion": ANOTHER}),
        (2, ("another", "belong together"), {"adapt_hybrid": ANOTHER}),
        (3, ("another", "belong together"), {"explain_describe": ANOTHER}),
        (3, ("make gate3",), {"without": ["predict-latents", "video-continue"]}),
    ],
)
def test_results_that_are_missing_or_of_another_are_refused(tmp_path, refused, number, words, changes):
    refused(lambda: judge(number, *made(tmp_path, **changes)), *words)
    assert not list(tmp_path.glob("gate*.yaml"))


def test_other_data_no_folder_and_an_unwritable_place_are_refused(tmp_path, no_picture, refused):
    args = made(tmp_path / "model")
    made(tmp_path / "encoder", probe=other(data_name="other"))
    refused(lambda: judge(1, *args, "--encoder", str(tmp_path / "encoder")), "other", "noise")
    refused(lambda: judge(1, "--results", str(tmp_path / "typo")), "typo")
    refused(lambda: gate.main(["show", str(tmp_path / "model" / "align.yaml")]), "align.yaml", "'gate'")
    (tmp_path / "file").write_text("")
    refused(lambda: judge(1, *args, "--out", str(tmp_path / "file" / "x.yaml")), "cannot write", "--out")
    assert not (tmp_path / "typo").exists()


# ---------------------------------------------------------------- gate 2

WRONG_SIDE = {"score": 0.5, "low": 0.45, "high": 0.55}
WIDE = {"adapt_scaling": criteria("parameter_efficiency", score=0.92, low=0.85, high=0.99)}
# equal because both learned nothing
NOTHING_LEARNED = {"adapt_scaling": criteria("parameter_efficiency", gain=0.3, gain_low=-0.1, gain_high=0.7)}
INEFFICIENT = {"adapt_scaling": criteria("parameter_efficiency", **WRONG_SIDE)}
WORDLESS = {"explain_semantic": criteria("semantic_accuracy", **WRONG_SIDE)}
BLURRED = {"adapt_scaling": criteria("lpips", **WRONG_SIDE)}


@pytest.mark.parametrize(
    "verdict, word, changes",
    [
        ("PROCEED", "small bridge is enough", {}),
        ("PROCEED", "semantic_accuracy fails", WORDLESS),
        ("PIVOT", "larger bridge", INEFFICIENT),
        ("PIVOT", "to the hybrid", BLURRED),
        ("PIVOT", "untested", BLURRED | {"without": ["adapt-hybrid"]}),
        ("STOP", "does not repair", BLURRED | {"adapt_hybrid": other(spatial_adds="no")}),
        ("STOP", "does not repair", BLURRED | {"adapt_hybrid": criteria("lpips", **WRONG_SIDE)}),
        ("INCONCLUSIVE", "is undecided", BLURRED | {"adapt_hybrid": other(spatial_adds="inconclusive")}),
        ("INCONCLUSIVE", "parameter_efficiency", WIDE),
        ("INCONCLUSIVE", "may be zero", NOTHING_LEARNED),
    ],
)
def test_gate_2_decides_by_its_table(tmp_path, verdict, word, changes):
    found = gate2(tmp_path, **changes)
    assert found["verdict"] == verdict and word in found["headline"], found["headline"]
    assert set(found["criteria"]) == set(gate.GATE2)
    assert common.load_yaml(tmp_path / "gate2.yaml", "gate")["verdict"] == verdict


def test_a_frozen_film_does_not_pass_for_its_temporal_consistency(tmp_path):
    frozen = {"score": 0.02, "low": 0.0, "high": 0.04, "gain": 0.01, "gain_low": 0.0, "gain_high": 0.02}
    found = gate2(tmp_path, video_coherence=criteria("decoded_closeness", **frozen))
    row = found["criteria"]["temporal_consistency"]
    assert (row["answer"], row["plain_pass"], row["reason"]) == ("FAIL", True, gate.FROZEN)


@pytest.mark.parametrize("ceiling", [0.6, 0.0])
def test_a_model_that_does_not_see_the_clips_themselves_cannot_judge_films(tmp_path, ceiling):
    found = gate2(tmp_path, explain_semantic=criteria("semantic_accuracy", ceiling=ceiling, **WRONG_SIDE))
    row = found["criteria"]["semantic_accuracy"]
    assert row["answer"] == "INCONCLUSIVE" and f"{ceiling:.3f}" in row["reason"]


def test_films_of_another_conditioning_and_films_that_are_not_there_say_nothing_of_the_model(tmp_path):
    found = gate2(tmp_path, video_coherence=other(conditioning="first+text"))
    silent = ("temporal_consistency", "decoded_closeness", "semantic_accuracy")
    assert [found["criteria"][k]["score"] for k in silent] == [None] * 3
    # no --motion
    row = judge(2, "--results", str(tmp_path))["criteria"]["semantic_accuracy"]
    assert row["score"] is None and "films measured no semantic_accuracy" in row["reason"]


# ---------------------------------------------------------------- gate 3

NO_GAIN = {"gain": -0.3, "gain_low": -0.4, "gain_high": -0.2}
BLIND = {"predict_latents": criteria("prediction", **NO_GAIN)}
UNSURE = {"predict_latents": criteria("prediction", gain=0.1, gain_low=-0.1, gain_high=0.3)}
MUTE = {"explain_describe": criteria("retention", score=0.5, low=0.4, high=0.6)}
TERSE = {"explain_describe": criteria("retention", score=0.93, low=0.85, high=1.0)}


def ratio(score):
    return {"video_continue": criteria("temporal_ratio", score=score, low=score - 0.1, high=score + 0.1)}


def blurs_the_present(content):
    BLIND["predict_latents"](content)
    content.update(sanity_cosine=0.5, sanity_cosine_mean=0.25)


def moves_wrongly(content):
    content.update(moving_gain_over_copy_low=-0.05, moving_gain_over_copy_high=-0.01)


@pytest.mark.parametrize(
    "verdict, word, changes",
    [
        ("PROCEED", "by prediction: delta", {}),
        ("PROCEED", "by prediction: delta", MUTE),
        ("PROCEED", "by pivot", BLIND),
        ("PROCEED", "by pivot", UNSURE),
        ("STOP", "fails retention", BLIND | MUTE),
        ("STOP", "fails temporal_ratio", BLIND | ratio(0.5)),
        ("STOP", "fails continuation", BLIND | {"video_continue": moves_wrongly}),
        ("INCONCLUSIVE", "spans the threshold", BLIND | TERSE),
        ("INCONCLUSIVE", "told in words", BLIND | {"video_continue": other(conditioning="past+text")}),
        ("INCONCLUSIVE", "reconstruct the present", MUTE | {"predict_latents": blurs_the_present}),
        ("INCONCLUSIVE", "flicker", BLIND | ratio(2.0)),
        ("INCONCLUSIVE", "prediction", UNSURE | MUTE),
    ],
)
def test_gate_3_decides_by_its_table(tmp_path, verdict, word, changes):
    found = gate3(tmp_path, **changes)
    assert found["verdict"] == verdict and word in found["headline"], found["headline"]
    assert set(found["criteria"]) == set(gate.GATE3)
    assert common.load_yaml(tmp_path / "gate3.yaml", "gate")["verdict"] == verdict


def test_a_gain_that_holm_takes_away_is_no_prediction(tmp_path):
    found = gate3(tmp_path, predict_latents=other(predicts="none"))
    assert found["criteria"]["prediction"]["answer"] == "INCONCLUSIVE"
    assert "Holm" in found["criteria"]["prediction"]["reason"] and "by pivot" in found["headline"]


def test_a_gain_is_what_gate_3_holds_against_zero_not_the_score(tmp_path):
    found = gate3(tmp_path, predict_latents=criteria("prediction", score=0.99, low=0.98, high=1.0, **NO_GAIN))
    row = found["criteria"]["prediction"]
    assert (row["answer"], row["score"], row["floor"]) == ("FAIL", -0.3, 0.0)


def test_gate_3_says_what_was_not_measured(tmp_path):
    found = gate3(tmp_path / "a", without=["video-continue", "explain-describe"])
    assert found["verdict"] == "PROCEED" and found["criteria"]["retention"]["score"] is None
    assert "describe measured no retention" in found["criteria"]["retention"]["reason"]
    found = gate3(tmp_path / "b", without=["predict-latents"])
    assert "by pivot" in found["headline"] and found["criteria"]["prediction"]["score"] is None
    assert "table" not in found


def test_the_longest_horizon_is_the_largest_number_and_what_stands_still_is_named(tmp_path, capsys):
    def change(content):
        content["horizons"]["delta"]["8"] = content["horizons"]["delta"]["1"] | {"gain_over_floor": 0.123}
        content["baselines"]["copy"] |= {"cosine": 0.5, "static": True, "best_shift": -2}

    assert gate3(tmp_path, predict_latents=change)["criteria"]["longest_horizon"]["score"] == 0.4
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("delta ", "copy "))]
    assert lines[0].startswith("delta") and "static, 2 or more frames late" in lines[1]  # best first
