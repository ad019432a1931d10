"""The verdicts: hand-made records whose answer is known, and the command that people run."""
import math

import pytest
from PIL import Image

import common
import verify


def record(score, half=0.02, floor=0.1, ceiling=1.0, gain_half=0.02, n=100, better="higher"):
    gain = (score - floor) * (1 if better == "higher" else -1)
    return {"score": score, "low": score - half, "high": score + half, "floor": floor, "floor_name": "constant", "ceiling": ceiling,
            "gain": gain, "gain_low": gain - gain_half, "gain_high": gain + gain_half, "n": n, "better": better}


# ---------------------------------------------------------------- three answers

@pytest.mark.parametrize(("score", "half", "answer", "plain"), [
    (0.6, 0.05, "PASS", True), (0.4, 0.05, "FAIL", False), (0.52, 0.05, "INCONCLUSIVE", True), (0.48, 0.05, "INCONCLUSIVE", False), (0.5, 0.01, "INCONCLUSIVE", False)])
def test_the_interval_decides_and_not_the_score(score, half, answer, plain):
    found = verify.judge(record(score, half), 0.5)
    assert (found["answer"], found["plain_pass"]) == (answer, plain)


@pytest.mark.parametrize(("score", "answer", "plain"), [(0.25, "PASS", True), (0.45, "FAIL", False), (0.34, "INCONCLUSIVE", True), (0.36, "INCONCLUSIVE", False)])
def test_where_lower_is_better_the_sides_are_swapped(score, answer, plain):
    found = verify.judge(record(score, 0.03, floor=0.9, ceiling=0.1, better="lower"), 0.35, "lower")
    assert (found["answer"], found["plain_pass"]) == (answer, plain)


def test_a_score_over_the_threshold_that_a_constant_box_beats_fails():
    found = verify.judge(record(0.58, floor=0.61), 0.5)
    assert found["answer"] == "FAIL" and found["plain_pass"] and "constant" in found["reason"]


@pytest.mark.parametrize("score", [0.58, 0.61, 0.68])
@pytest.mark.parametrize("gain_half", [0.01, 0.2])
def test_no_score_passes_whose_gain_over_the_floor_may_be_zero(score, gain_half):
    r = record(score, floor=0.61, gain_half=gain_half)
    assert (verify.judge(r, 0.5)["answer"] == "PASS") == (r["gain_low"] > 0)


def test_a_gain_that_a_weak_test_cannot_tell_from_zero_is_inconclusive_and_not_a_failure():
    found = verify.judge(record(0.65, floor=0.6, gain_half=0.1, n=30), 0.5)
    assert found["answer"] == "INCONCLUSIVE" and "constant" in found["reason"]
    assert found["n_needed"] in (120, 121)  # the gain is half of its half-width: four times as many items


def test_a_single_source_decides_nothing():
    found = verify.judge(record(0.9) | {"low": -math.inf, "high": math.inf, "gain_low": -math.inf, "gain_high": math.inf}, 0.5)
    assert found["answer"] == "INCONCLUSIVE" and "single source" in found["reason"]


@pytest.mark.parametrize(("floor", "gain", "half", "answer"), [
    (0.61, 0.012, 0.010, "FAIL"), (0.61, 0.012, 0.013, "FAIL"),  # at most 0.025, of 0.39 that the floor leaves: what more items show of it changes nothing
    (0.61, 0.06, 0.010, "PASS"), (0.61, 0.06, 0.07, "INCONCLUSIVE"),
    (0.9999, 8e-5, 1e-5, "FAIL")])  # a floor at the ceiling: rounding is no gain
def test_a_gain_that_can_only_be_negligible_fails_though_it_excludes_zero(floor, gain, half, answer):
    found = verify.judge(record(floor + gain, 1e-6, floor=floor, gain_half=half), 0.5)
    assert found["answer"] == answer and (answer != "FAIL" or "constant" in found["reason"])


def test_inconclusive_says_how_many_items_would_decide():
    found = verify.judge(record(0.52, 0.04, n=50), 0.5)
    assert found["n_needed"] in (200, 201) and "threshold" in found["reason"]  # half-width 0.04 must shrink to 0.02
    both = verify.judge(record(0.52, 0.04, floor=0.51, gain_half=0.1, ceiling=0.6, n=50), 0.5)
    assert both["n_needed"] in (5000, 5001) and "threshold" in both["reason"] and "constant" in both["reason"]
    assert verify.judge(record(0.5, 0.04), 0.5)["n_needed"] is None  # exactly on the threshold no number decides
    assert "n_needed" not in verify.judge(record(0.9), 0.5) | verify.judge(record(0.1), 0.5)


def test_a_score_that_is_not_a_number_never_passes():
    broken = {**record(0.9), "score": math.nan, "low": math.nan, "high": math.nan}
    assert verify.judge(broken, 0.5)["answer"] == "INCONCLUSIVE"


@pytest.mark.parametrize("score", [0.1, 0.9])
def test_a_leak_is_neither_passed_nor_held_against_the_model_and_the_control_is_named(score):
    found = verify.judge(record(score) | {"leak": "shuffled", "floors": {"constant": 0.1, "shuffled": 0.85}}, 0.5)
    assert found["answer"] == "INCONCLUSIVE" and "leak" in found["reason"] and "shuffled" in found["reason"] and "0.850" in found["reason"]


# ---------------------------------------------------------------- the stand-in for LPIPS

def lpips(score, floor=0.9, ceiling=0.1, half=0.02):
    return record(score, half, floor, ceiling, half, better="lower")


@pytest.mark.parametrize(("score", "skill"), [(0.9, 0), (0.5, 0.5), (0.1, 1), (0.98, -0.1)])
def test_stand_in_is_0_at_the_mean_image_and_1_at_the_vae(score, skill):
    found = verify.stand_in(lpips(score))
    assert found["score"] == pytest.approx(skill) == found["gain"] and found["better"] == "higher"
    assert (found["floor"], found["ceiling"]) == (0, 1)
    assert (found["low"], found["high"]) == pytest.approx((skill - 0.025, skill + 0.025))
    assert (found["gain_low"], found["gain_high"]) == pytest.approx((skill - 0.025, skill + 0.025))


@pytest.mark.parametrize(("score", "answer"), [(0.2, "PASS"), (0.7, "FAIL"), (0.49, "INCONCLUSIVE"), (0.9, "FAIL"), (1.0, "FAIL")])
def test_stand_in_is_judged_at_half_of_the_way(score, answer):
    assert verify.judge(verify.stand_in(lpips(score)), verify.STAND_IN)["answer"] == answer


@pytest.mark.parametrize("ceiling", [0.3, 0.4])
def test_a_picture_worse_than_the_mean_image_never_passes_though_the_vae_is_no_better(ceiling):
    assert verify.stand_in(lpips(0.5, floor=0.3, ceiling=ceiling)) is None  # judged as nothing measured: INCONCLUSIVE


# ---------------------------------------------------------------- the decision table

MUST = [k for k, r in verify.GATE1.items() if r["level"] == "must"]


def decided(encoder=None, **answers):
    judged = {k: {"level": r["level"], "answer": answers.get(k, "PASS"), "reason": f"doubt about {k}"} for k, r in verify.GATE1.items()}
    return verify.decide(judged, {k: {"answer": v} for k, v in (encoder or {}).items()})


@pytest.mark.parametrize(("verdict", "encoder", "answers", "word"), [
    ("PROCEED", None, {}, "every criterion"),
    ("PROCEED", None, {"ssim": "FAIL", "cka": "INCONCLUSIVE"}, "every criterion"),  # should, not must
    ("PIVOT", None, {"bbox_iou": "FAIL"}, "untested"),
    ("PIVOT", {"bbox_iou": "PASS"}, {"bbox_iou": "FAIL"}, "holds bbox_iou"),
    ("PIVOT", {"bbox_iou": "PASS", "map50": "FAIL"}, {"bbox_iou": "FAIL", "map50": "FAIL"}, "holds bbox_iou"),
    ("STOP", {"bbox_iou": "FAIL"}, {"bbox_iou": "FAIL"}, "bbox_iou"),
    ("STOP", None, {"lpips": "FAIL"}, "bridge fails lpips"),
    ("INCONCLUSIVE", None, {"map50": "INCONCLUSIVE"}, "doubt about map50"),
    ("INCONCLUSIVE", {"map50": "FAIL"}, {"map50": "INCONCLUSIVE"}, "doubt about map50")])
def test_the_decision_table(verdict, encoder, answers, word):
    found, why = decided(encoder, **answers)
    assert found == verdict and word in why, why


@pytest.mark.parametrize("name", MUST)
def test_no_single_must_can_be_short_and_the_verdict_proceed(name):
    assert decided(**{name: "FAIL"})[0] in ("PIVOT", "STOP")
    assert decided(**{name: "INCONCLUSIVE"})[0] == "INCONCLUSIVE"


def test_an_encoder_that_is_undecided_is_not_called_a_failure():
    found, why = decided({"bbox_iou": "INCONCLUSIVE"}, bbox_iou="FAIL")
    assert found != "STOP", why


# ---------------------------------------------------------------- thresholds

def test_thresholds_are_overridden_by_name():
    assert verify.overrides("") == {}
    assert verify.overrides("bbox_iou=0.4, lpips=1e-1 map50=.3") == {"bbox_iou": 0.4, "lpips": 0.1, "map50": 0.3}


@pytest.mark.parametrize("text", ["bbox=0.5", "=0.5", "0.5"])
def test_an_unknown_criterion_is_refused(text, refused):
    refused(lambda: verify.overrides(text), text, "bbox_iou")


@pytest.mark.parametrize("text", ["bbox_iou", "bbox_iou=", "bbox_iou=high", "bbox_iou=0.5=0.6", "bbox_iou=nan"])
def test_a_threshold_that_is_no_number_is_refused(text, refused):
    refused(lambda: verify.overrides(text), text, "bbox_iou=0.5")


# ---------------------------------------------------------------- the command

def made(folder, monkeypatch=None, **changes):
    """The smoke run's input in `folder`, its YAML changed: changes {file stem: function of the loaded mapping}. -> arguments for main.

    With `monkeypatch` the figure, which takes most of the time, is left out.
    """
    args = verify.get_args([])
    verify.smoke_input(args, folder)
    for stem, change in changes.items():
        path = folder / f"{stem.replace('_', '-')}.yaml" if stem != "motion" else folder / "motion" / "probe.yaml"
        content = common.load_yaml(path)
        change(content)
        common.save_yaml(path, content)
    if monkeypatch:
        monkeypatch.setattr(verify, "picture", lambda *_: None)
    return ["--results", args.results, "--motion", args.motion]


def criteria(name, **values):
    return lambda content: content["criteria"][name].update(values)


def test_the_smoke_run_writes_the_verdict_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", lambda *_, **__: str(tmp_path))
    result = verify.main(["--smoke", "--set", "bbox_iou=0.55"])
    found = common.load_yaml(tmp_path / "gate1.yaml", "gate")
    assert found["verdict"] == result["verdict"] == "PROCEED" and found["plain_verdict"] == "PROCEED"
    assert "random weights, synthetic data" in found["headline"]
    assert found["overridden"] == {"bbox_iou": 0.55}
    assert (found["criteria"]["bbox_iou"]["threshold"], found["criteria"]["bbox_iou"]["source"]) == (0.55, "--set")
    assert found["criteria"]["map50"]["source"] == verify.PLAN
    assert set(found["criteria"]) == set(verify.GATE1) <= set(found)
    with Image.open(tmp_path / "gate1.png") as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 200
        low, high = picture.convert("L").getextrema()
        assert low < 50 and high > 200, "the figure is blank"
    printed = capsys.readouterr().out
    assert verify.main(["--print", str(tmp_path / "gate1.yaml")])["headline"] == found["headline"]
    assert printed.endswith(capsys.readouterr().out) and "Screening on noise" in printed and f"headline {found['headline']}" in printed


def test_a_criterion_that_fails_is_not_proceed_and_strict_exits_with_3(tmp_path, monkeypatch, capsys):
    args = made(tmp_path, monkeypatch, probe=criteria("bbox_iou", score=0.3, low=0.25, high=0.35))
    with pytest.raises(SystemExit) as stop:
        verify.main([*args, "--strict"])
    assert stop.value.code == 3
    found = common.load_yaml(tmp_path / "gate1.yaml", "gate")  # written all the same
    assert (found["verdict"], found["plain_verdict"], found["criteria"]["bbox_iou"]["answer"]) == ("PIVOT", "STOP", "FAIL")
    assert "verdict PIVOT" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        verify.main(["--print", str(tmp_path / "gate1.yaml"), "--strict"])
    assert stop.value.code == 3


def test_strict_ends_well_when_the_verdict_is_proceed(tmp_path, monkeypatch):
    assert verify.main([*made(tmp_path, monkeypatch), "--strict"])["verdict"] == "PROCEED"


def test_a_model_below_a_constant_box_does_not_proceed_though_the_plain_comparison_would(tmp_path, monkeypatch):
    change = criteria("bbox_iou", score=0.58, low=0.56, high=0.6, floor=0.61, gain=-0.03, gain_low=-0.05, gain_high=-0.01)
    found = verify.main(made(tmp_path, monkeypatch, probe=change))
    assert (found["verdict"], found["plain_verdict"]) == ("PIVOT", "PROCEED")


def test_a_threshold_that_was_set_changes_the_verdict(tmp_path, monkeypatch):
    args = made(tmp_path, monkeypatch)
    assert verify.main([*args, "--set", "lpips=0.01"])["verdict"] == "STOP"
    assert verify.main([*args, "--set", "map50=0.9"])["verdict"] == "INCONCLUSIVE"


def test_the_answer_of_the_encoder_decides_between_pivot_and_stop(tmp_path, monkeypatch):
    args = made(tmp_path / "model", monkeypatch, probe=criteria("bbox_iou", score=0.3, low=0.25, high=0.35))
    made(tmp_path / "good")
    found = verify.main([*args, "--encoder", str(tmp_path / "good")])
    assert found["verdict"] == "PIVOT" and "holds bbox_iou" in found["headline"] and found["encoder"]["bbox_iou"]["answer"] == "PASS"
    made(tmp_path / "bad", probe=criteria("bbox_iou", score=0.2, low=0.15, high=0.25))
    assert verify.main([*args, "--encoder", str(tmp_path / "bad")])["verdict"] == "STOP"


def test_the_latency_of_the_encoder_is_a_share_of_the_models(tmp_path, monkeypatch):
    args = made(tmp_path / "model", monkeypatch)
    made(tmp_path / "encoder")
    index = tmp_path / "encoder" / "features" / "index.yaml"
    common.save_yaml(index, common.load_yaml(index) | {"seconds_per_item": 0.02})
    found = verify.main([*args, "--encoder", str(tmp_path / "encoder")])["criteria"]["latency_overhead"]
    assert (found["score"], found["answer"]) == (pytest.approx(0.2), "PASS")
    nothing = verify.main(args)["criteria"]["latency_overhead"]
    assert (nothing["score"], nothing["answer"]) == (None, "INCONCLUSIVE") and "--encoder" in nothing["reason"]
    common.save_yaml(index, common.load_yaml(index) | {"seconds_per_item": None})
    streamed = verify.main([*args, "--encoder", str(tmp_path / "encoder")])["criteria"]["latency_overhead"]
    assert (streamed["score"], streamed["answer"]) == (None, "INCONCLUSIVE") and "streamed" in streamed["reason"]


def unpublished(content):
    content["criteria"]["lpips_random_backbone"] = content["criteria"].pop("lpips")


def test_lpips_without_the_published_backbone_is_marked_and_named_in_the_headline(tmp_path, monkeypatch, capsys):
    found = verify.main(made(tmp_path, monkeypatch, adapt_latents=unpublished))
    row = found["criteria"]["lpips"]
    assert row["stand_in"] and row["threshold"] == verify.STAND_IN and row["score"] == pytest.approx(8 / 9, rel=1e-4)
    assert "stand-in" in found["headline"] and "lpips*" in capsys.readouterr().out


def test_what_was_not_measured_is_inconclusive_and_says_so(tmp_path, monkeypatch):
    found = verify.main(made(tmp_path, monkeypatch, probe=lambda c: c["criteria"].pop("map50")))
    assert found["verdict"] == "INCONCLUSIVE" and found["map50"] is None and "probe measured no map50" in found["criteria"]["map50"]["reason"]
    assert found["plain_verdict"] == "STOP"


def test_the_motion_score_is_read_from_the_motion_folder(tmp_path, monkeypatch):
    args = made(tmp_path, monkeypatch, motion=criteria("direction_accuracy", score=0.95, low=0.94, high=0.96))
    assert verify.main(args)["direction_accuracy"] == 0.95
    assert verify.main(args[:2])["criteria"]["direction_accuracy"]["answer"] == "INCONCLUSIVE"


@pytest.mark.parametrize("name", ["probe", "align", "adapt-latents"])
def test_a_missing_result_is_refused(name, tmp_path, monkeypatch, refused):
    args = made(tmp_path, monkeypatch)
    (tmp_path / f"{name}.yaml").unlink()
    refused(lambda: verify.main(args), f"{name}.yaml", "does not exist")
    assert not (tmp_path / "gate1.yaml").exists()


def test_the_result_of_another_stage_is_refused(tmp_path, monkeypatch, refused):
    args = made(tmp_path, monkeypatch, probe=lambda c: c.update(stage="align"))
    refused(lambda: verify.main(args), "probe.yaml", "'align'")
    refused(lambda: verify.main(["--print", str(tmp_path / "align.yaml")]), "align.yaml", "'gate'")


@pytest.mark.parametrize("stem", ["align", "adapt_latents", "motion"])
def test_results_of_two_models_are_not_mixed(stem, tmp_path, monkeypatch, refused):
    args = made(tmp_path, monkeypatch, **{stem: lambda c: c.update(model="another")})
    refused(lambda: verify.main(args), "another", "made-up")


def test_an_encoder_measured_on_other_data_is_no_evidence(tmp_path, monkeypatch, refused):
    args = made(tmp_path / "model", monkeypatch)
    made(tmp_path / "encoder", probe=lambda c: c.update(data_name="other"))
    refused(lambda: verify.main([*args, "--encoder", str(tmp_path / "encoder")]), "other", "noise")


def test_a_results_folder_that_does_not_exist_is_refused_and_not_made(tmp_path, refused):
    refused(lambda: verify.main(["--results", str(tmp_path / "typo")]), "typo")
    assert not (tmp_path / "typo").exists()


def test_an_unwritable_place_is_refused_before_the_work(tmp_path, monkeypatch, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: verify.main([*made(tmp_path, monkeypatch), "--out", str(tmp_path / "file" / "gate1.yaml")]), "cannot write", "--out")


# ---------------------------------------------------------------- gate 2

def gate2(folder, *more, **changes):
    args = verify.get_args(["--gate", "2"])
    verify.smoke_input(args, folder)
    for stem, change in changes.items():
        path = next(p for p in (folder / f"{stem.replace('_', '-')}.yaml", folder / "motion" / f"{stem.replace('_', '-')}.yaml") if p.is_file())
        content = common.load_yaml(path)
        change(content)
        common.save_yaml(path, content)
    return verify.main(["--gate", "2", "--results", str(folder), "--motion", str(folder / "motion"), *more])


WRONG_SIDE = {"score": 0.5, "low": 0.45, "high": 0.55}


@pytest.mark.parametrize(("verdict", "word", "changes"), [
    ("PROCEED", "small bridge is enough", {}),
    ("PROCEED", "semantic_accuracy fails", {"explain_films": criteria("semantic_accuracy", **WRONG_SIDE)}),
    ("PIVOT", "larger bridge", {"adapt_scaling": criteria("parameter_efficiency", **WRONG_SIDE)}),
    ("PIVOT", "to the hybrid", {"adapt_scaling": criteria("lpips", **WRONG_SIDE)}),
    ("STOP", "does not repair", {"adapt_scaling": criteria("lpips", **WRONG_SIDE), "adapt_hybrid": lambda c: c.update(spatial_adds="no")}),
    ("STOP", "does not repair", {"adapt_scaling": criteria("lpips", **WRONG_SIDE), "adapt_hybrid": criteria("lpips", **WRONG_SIDE)}),
    ("INCONCLUSIVE", "is undecided", {"adapt_scaling": criteria("lpips", **WRONG_SIDE), "adapt_hybrid": lambda c: c.update(spatial_adds="inconclusive")}),
    ("INCONCLUSIVE", "parameter_efficiency", {"adapt_scaling": criteria("parameter_efficiency", score=0.92, low=0.85, high=0.99)}),
    ("INCONCLUSIVE", "may be zero", {"adapt_scaling": criteria("parameter_efficiency", gain=0.3, gain_low=-0.1, gain_high=0.7)})])  # equal because both learned nothing
def test_gate_2_decides_by_its_table(tmp_path, verdict, word, changes):
    found = gate2(tmp_path, **changes)
    assert found["verdict"] == verdict and word in found["headline"], found["headline"]
    assert set(found["criteria"]) == set(verify.GATE2) and common.load_yaml(tmp_path / "gate2.yaml", "gate")["verdict"] == verdict


def test_a_frozen_film_does_not_pass_for_its_temporal_consistency(tmp_path):
    frozen = {"score": 0.02, "low": 0.0, "high": 0.04, "gain": 0.01, "gain_low": 0.0, "gain_high": 0.02}
    found = gate2(tmp_path, predict_coherence=criteria("decoded_closeness", **frozen))
    row = found["criteria"]["temporal_consistency"]
    assert (row["answer"], row["plain_pass"], row["reason"]) == ("FAIL", True, verify.FROZEN)


def test_a_model_that_does_not_see_the_clips_themselves_cannot_judge_films(tmp_path):
    for ceiling in (0.6, 0.0):
        row = gate2(tmp_path, explain_films=criteria("semantic_accuracy", ceiling=ceiling, **WRONG_SIDE))["criteria"]["semantic_accuracy"]
        assert row["answer"] == "INCONCLUSIVE" and f"{ceiling:.3f}" in row["reason"]


def test_films_that_were_not_made_with_the_models_adapter_say_nothing_of_the_model(tmp_path):
    found = gate2(tmp_path, predict_coherence=lambda c: c.update(conditioning="first+text"))
    assert {found["criteria"][k]["score"] for k in ("temporal_consistency", "decoded_closeness", "semantic_accuracy")} == {None}


def test_without_the_hybrid_a_failing_bridge_is_a_pivot_that_was_not_tested(tmp_path):
    args = verify.get_args(["--gate", "2"])
    verify.smoke_input(args, tmp_path)
    content = common.load_yaml(tmp_path / "adapt-scaling.yaml")
    criteria("lpips", **WRONG_SIDE)(content)
    common.save_yaml(tmp_path / "adapt-scaling.yaml", content)
    (tmp_path / "adapt-hybrid.yaml").unlink()
    found = verify.main(["--gate", "2", "--results", str(tmp_path)])
    assert found["verdict"] == "PIVOT" and "untested" in found["headline"]


def test_gate_2_without_films_says_what_was_not_measured(tmp_path, capsys):
    args = verify.get_args(["--gate", "2"])
    verify.smoke_input(args, tmp_path)
    found = verify.main(["--gate", "2", "--results", str(tmp_path)])  # no --motion
    assert found["criteria"]["semantic_accuracy"]["score"] is None and "films measured no semantic_accuracy" in found["criteria"]["semantic_accuracy"]["reason"]
    assert "does made-up add to made-up-encoder? no" in capsys.readouterr().out


def test_gate_2_refuses_results_of_another_model(tmp_path, refused):
    refused(lambda: gate2(tmp_path, adapt_hybrid=lambda c: c.update(model="another")), "another", "belong together")
    refused(lambda: gate2(tmp_path, "--set", "bbox_iou=0.5"), "parameter_efficiency")


# ---------------------------------------------------------------- gate 3

def gate3(folder, *more, without=(), **changes):
    args = verify.get_args(["--gate", "3"])
    verify.smoke_input(args, folder)
    for stem, change in changes.items():
        path = folder / f"{stem.replace('_', '-')}.yaml"
        content = common.load_yaml(path)
        change(content)
        common.save_yaml(path, content)
    for stem in without:
        (folder / f"{stem}.yaml").unlink()
    return verify.main(["--gate", "3", "--results", str(folder), *more])


NO_GAIN, SOME_GAIN = {"gain": -0.3, "gain_low": -0.4, "gain_high": -0.2}, {"gain": 0.1, "gain_low": -0.1, "gain_high": 0.3}
FEW_WORDS, MANY_WORDS = {"score": 0.5, "low": 0.4, "high": 0.6}, {"score": 0.93, "low": 0.85, "high": 1.0}


@pytest.mark.parametrize(("verdict", "word", "changes"), [
    ("PROCEED", "by prediction: delta", {}),
    ("PROCEED", "by prediction: delta", {"explain_describe": criteria("retention", **FEW_WORDS)}),
    ("PROCEED", "by pivot", {"predict_latents": criteria("prediction", **NO_GAIN)}),
    ("PROCEED", "by pivot", {"predict_latents": criteria("prediction", **SOME_GAIN)}),
    ("STOP", "fails retention", {"predict_latents": criteria("prediction", **NO_GAIN), "explain_describe": criteria("retention", **FEW_WORDS)}),
    ("STOP", "fails temporal_ratio", {"predict_latents": criteria("prediction", **NO_GAIN), "predict_continue": criteria("temporal_ratio", **FEW_WORDS)}),
    ("INCONCLUSIVE", "spans the threshold", {"predict_latents": criteria("prediction", **NO_GAIN), "explain_describe": criteria("retention", **MANY_WORDS)}),
    ("STOP", "fails continuation", {"predict_latents": criteria("prediction", **NO_GAIN), "predict_continue": lambda c: c.update(moving_gain_over_copy_low=-0.05, moving_gain_over_copy_high=-0.01)}),
    ("INCONCLUSIVE", "told in words", {"predict_latents": criteria("prediction", **NO_GAIN), "predict_continue": lambda c: c.update(conditioning="past+text")}),
    ("INCONCLUSIVE", "reconstruct the present", {"predict_latents": lambda c: (criteria("prediction", **NO_GAIN)(c), c.update(sanity_cosine=0.5, sanity_cosine_mean=0.25)),
                                                 "explain_describe": criteria("retention", **FEW_WORDS)}),
    ("INCONCLUSIVE", "flicker", {"predict_latents": criteria("prediction", **NO_GAIN), "predict_continue": criteria("temporal_ratio", score=2.0, low=1.8, high=2.2)}),
    ("INCONCLUSIVE", "prediction", {"predict_latents": criteria("prediction", **SOME_GAIN), "explain_describe": criteria("retention", **FEW_WORDS)})])
def test_gate_3_decides_by_its_table(tmp_path, verdict, word, changes):
    found = gate3(tmp_path, **changes)
    assert found["verdict"] == verdict and word in found["headline"], found["headline"]
    assert set(found["criteria"]) == set(verify.GATE3) and common.load_yaml(tmp_path / "gate3.yaml", "gate")["verdict"] == verdict


def test_a_gain_that_holm_takes_away_is_no_prediction(tmp_path):
    found = gate3(tmp_path, predict_latents=lambda c: c.update(predicts="none"))
    assert found["criteria"]["prediction"]["answer"] == "INCONCLUSIVE" and "Holm" in found["criteria"]["prediction"]["reason"] and "by pivot" in found["headline"]


def test_a_gain_is_what_gate_3_holds_against_zero_not_the_score(tmp_path):
    row = gate3(tmp_path, predict_latents=criteria("prediction", score=0.99, low=0.98, high=1.0, **NO_GAIN))["criteria"]["prediction"]
    assert (row["answer"], row["score"], row["floor"]) == ("FAIL", -0.3, 0.0)


def test_gate_3_says_what_was_not_measured_and_refuses_where_nothing_was(tmp_path, refused):
    found = gate3(tmp_path / "a", without=["predict-continue", "explain-describe"])
    assert found["verdict"] == "PROCEED" and found["criteria"]["retention"]["score"] is None and "describe measured no retention" in found["criteria"]["retention"]["reason"]
    found = gate3(tmp_path / "b", without=["predict-latents"])
    assert "by pivot" in found["headline"] and found["criteria"]["prediction"]["score"] is None and "table" not in found
    refused(lambda: gate3(tmp_path / "c", without=["predict-latents", "predict-continue"]), "make gate3")
    refused(lambda: gate3(tmp_path / "d", explain_describe=lambda c: c.update(model="another")), "another", "belong together")


def test_the_longest_horizon_is_the_largest_number_not_the_last_word(tmp_path):
    found = gate3(tmp_path, predict_latents=lambda c: c["horizons"]["delta"].update({"8": c["horizons"]["delta"]["1"] | {"gain_over_floor": 0.123}}))
    assert found["criteria"]["longest_horizon"]["score"] == 0.4


def test_gate_3_prints_every_variant_and_baseline_best_first_and_names_what_stands_still(tmp_path, capsys):
    row = {"cosine": 0.5, "static": True, "best_shift": -2}
    gate3(tmp_path, predict_latents=lambda c: c["baselines"].update(copy=c["baselines"]["copy"] | row))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("delta ", "copy "))]
    assert lines[0].startswith("delta") and "static, 2 or more frames late" in lines[1]
