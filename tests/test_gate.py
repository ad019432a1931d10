"""The verdicts and the screening: hand-made results whose answer is known, and the commands themselves."""

import math

import pytest
import torch
from helpers import gate_inputs, generator

import common
import gate
import stats

OPEN = "INCONCLUSIVE"
N = 60  # test items, two of a source
IDS = [f"item-{i:02d}" for i in range(N)]
SOURCES = [f"source-{i // 2:02d}" for i in range(N)]


def record(score, half=0.02, baseline=0.1, upper_bound=1.0, gain_half=0.02, n=100):
    gain = (score - baseline) * (1 if upper_bound > baseline else -1)
    found = {"score": score, "low": score - half, "high": score + half, "n": n, "upper_bound": upper_bound}
    found |= {"gain": gain, "gain_low": gain - gain_half, "gain_high": gain + gain_half}
    return found | {"baseline": baseline, "baseline_name": "constant"}


def test_the_interval_decides_and_not_the_score_in_either_direction():
    for score, answer in ((0.6, "PASS"), (0.4, "FAIL"), (0.52, OPEN), (0.48, OPEN)):
        low = record(1 - score, 0.05, 0.9, 0.0)
        for found in (gate.evaluate(record(score, 0.05), 0.5), gate.evaluate(low, 0.5, "lower")):
            assert found["answer"] == answer and found["plain_pass"] == (score > 0.5)


def test_a_gain_below_the_margin_fails_and_the_margin_is_a_tenth_of_the_headroom_or_stated():
    # of a baseline of 0.61, whose headroom is 0.39
    table = [(0.61, -0.03, 0.02, "FAIL"), (0.61, 0.012, 0.013, "FAIL"), (0.61, 0.06, 0.010, "PASS")]
    table += [(0.61, 0.05, 0.02, OPEN), (0.61, 0.06, 0.07, OPEN)]
    table += [(0.9999, 8e-5, 1e-5, "FAIL")]  # at the bound: rounding is no gain
    for baseline, gain, half, answer in table:
        found = gate.evaluate(record(baseline + gain, 1e-6, baseline=baseline, gain_half=half), 0.5)
        assert found["answer"] == answer and found["plain_pass"]
        assert answer == "PASS" or "constant" in found["reason"]
    small = record(0.63, 1e-6, baseline=0.61, gain_half=0.01)
    for margin, answer in ((0.0, "PASS"), (0.02, OPEN), (0.04, "FAIL")):
        assert gate.evaluate(small, 0.5, margin=margin)["answer"] == answer


def test_an_interval_that_shrinks_around_its_centre_only_decides_what_was_open():
    g = generator()
    for score, baseline in torch.rand(300, 2, generator=g).tolist():
        before = OPEN
        for half in (0.3, 0.1, 0.07, 0.05, 0.03, 0.01, 0.001):
            answer = gate.evaluate(record(score, half, baseline, 1.0, half), 0.5)["answer"]
            assert before in (OPEN, answer), (score, baseline, half)
            before = answer


def test_inconclusive_states_how_many_items_would_decide():
    wide = gate.evaluate(record(0.52, 0.04, n=50), 0.5)  # the half-width must shrink from 0.04 to 0.02
    assert wide["n_needed"] in (200, 201) and "threshold" in wide["reason"]
    weak = gate.evaluate(record(0.69, baseline=0.6, gain_half=0.1, n=30), 0.5)
    assert weak["n_needed"] in (120, 121)  # the half-width is twice the distance of the gain from the margin
    assert gate.evaluate(record(0.5, 0.04), 0.5)["n_needed"] is None  # exactly on the threshold


def test_a_score_without_an_interval_or_with_a_leak_decides_nothing():
    leak = {"leak": "shuffled", "baselines": {"constant": 0.1, "shuffled": 0.85}}
    for change in ({"low": -math.inf}, {"gain_low": -math.inf}, {"score": math.nan}, leak):
        reason = "'shuffled' scores 0.850" if change is leak else "a single source"
        for score in (0.1, 0.9):
            found = gate.evaluate(record(score) | {"score": score} | change, 0.5)
            assert found["answer"] == OPEN and reason in found["reason"]


def test_the_stand_in_of_lpips_is_0_at_the_mean_image_and_1_at_the_vae():
    for score, answer in ((0.9, "FAIL"), (0.98, "FAIL"), (0.5, OPEN), (0.2, "PASS")):
        skill, found = (0.9 - score) / 0.8, gate.stand_in(record(score, 0.02, 0.9, 0.1, 0.02))
        assert found["score"] == pytest.approx(skill) == found["gain"]
        assert gate.evaluate(found, gate.STAND_IN)["answer"] == answer
    assert gate.stand_in(record(0.2, 0.02, 0.3, 0.4)) is None  # a VAE no better than the mean image


def test_thresholds_are_overridden_by_name_and_others_are_refused(refused):
    changed = gate.overrides("bbox_iou=0.4, lpips=1e-1 map50=.3")
    assert gate.overrides("") == {} and changed == {"bbox_iou": 0.4, "lpips": 0.1, "map50": 0.3}
    for text in ("bbox=0.5", "bbox_iou", "bbox_iou=nan"):
        refused(lambda text=text: gate.overrides(text), text, "bbox_iou")


def test_gate_1_decides_by_its_table():
    both = {"bbox_iou": "FAIL", "map50": "FAIL"}
    # verdict, a word of why, answers of the encoder, answers that are not PASS
    table = [
        ("PROCEED", "every must", {}, {"ssim": "FAIL", "cka": OPEN}),  # should, not must
        ("PIVOT", "untested", {}, {"bbox_iou": "FAIL"}),
        ("PIVOT", "passes bbox_iou", {"bbox_iou": "PASS", "map50": "FAIL"}, both),
        ("STOP", "bbox_iou", {"bbox_iou": "FAIL"}, {"bbox_iou": "FAIL"}),
        (OPEN, "undecided", {"bbox_iou": OPEN}, {"bbox_iou": "FAIL"}),
        ("STOP", "adapter fails lpips", {}, {"lpips": "FAIL"}),
        (OPEN, "doubt about map50", {"map50": "FAIL"}, {"map50": OPEN}),
        *((OPEN, name, {}, {name: OPEN}) for name in ("recon_spatial_iou", "bbox_iou", "map50", "lpips")),
    ]
    for verdict, word, encoder, answers in table:
        judged = {k: {"level": r["level"], "reason": f"doubt about {k}"} for k, r in gate.GATE1.items()}
        for name, row in judged.items():
            row["answer"] = answers.get(name, "PASS")
        found, why = gate.decide(judged, {k: {"answer": v} for k, v in encoder.items()})
        assert found == verdict and word in why, why


def edit(path, change):
    content = common.load_yaml(path)
    change(content)
    common.save_yaml(path, content)


def made(folder, without=(), **changes):
    """Results that pass every gate, changed by {file stem (motion: its probe): function of it}."""
    gate_inputs(folder)
    for stem, change in changes.items():
        name = f"{stem.replace('_', '-')}.yaml" if stem != "motion" else "motion/probe.yaml"
        edit(folder / name if (folder / name).is_file() else folder / "motion" / name, change)
    for stem in without:
        (folder / f"{stem}.yaml").unlink()
    return ["--results", str(folder), "--motion", str(folder / "motion")]


def evaluate(number, *flags):
    return gate.main(["evaluate", str(number), *flags])


@pytest.fixture
def no_chart(monkeypatch):
    monkeypatch.setattr(gate, "draw_chart", lambda *_: None)


def criteria(name, **values):
    return lambda content: content["criteria"][name].update(values)


def other(**values):
    return lambda content: content.update(values)


def untrained_backbone(content):
    content["criteria"]["lpips_random_backbone"] = content["criteria"].pop("lpips")


LOW_BOX = criteria("bbox_iou", score=0.3, low=0.25, high=0.35)
LOW = {"score": 0.5, "low": 0.45, "high": 0.55}
BLURRED = {"adapt_scaling": criteria("lpips", **LOW)}
LARGER = {"adapt_scaling": criteria("parameter_efficiency", **LOW)}
ALIKE = {"adapt_scaling": criteria("parameter_efficiency", score=0.92, low=0.85, high=0.99)}
STILL = {"score": 0.02, "low": 0.0, "high": 0.04, "gain": 0.01, "gain_low": 0.0, "gain_high": 0.02}
BLIND = {"predict_latents": criteria("prediction", gain=-0.3, gain_low=-0.4, gain_high=-0.2)}
UNSURE = {"predict_latents": criteria("prediction", gain=0.1, gain_low=-0.1, gain_high=0.3)}
MUTE = {"explain_describe": criteria("retention", score=0.5, low=0.4, high=0.6)}
FLICKER = {"video_continue": criteria("temporal_ratio", score=2.0, low=1.9, high=2.1)}
WORSE_THAN_COPY = {"video_continue": other(moving_gain_over_copy_low=-0.05, moving_gain_over_copy_high=-0.01)}


def test_gate_1_writes_the_verdict_and_a_chart_and_prints_it_again(tmp_path, capsys):
    result = evaluate(1, *made(tmp_path), "--set", "bbox_iou=0.55", "--strict")
    found = common.load_yaml(tmp_path / "gate1.yaml", "gate")
    assert found["verdict"] == result["verdict"] == "PROCEED" == found["plain_verdict"]
    assert "random weights, synthetic data" in found["headline"] and found["overridden"] == {"bbox_iou": 0.55}
    row, fixed = found["criteria"]["bbox_iou"], found["criteria"]["map50"]
    assert (row["threshold"], row["source"], fixed["source"]) == (0.55, "--set", gate.PLAN)
    assert set(found["criteria"]) == set(gate.GATE1) <= set(found)
    assert (tmp_path / "gate1.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert gate.main(["show", str(tmp_path / "gate1.yaml")])["headline"] == found["headline"]
    assert printed.endswith(capsys.readouterr().out) and f"headline {found['headline']}" in printed


def test_a_criterion_fails_and_the_encoder_decides_between_pivot_and_stop(tmp_path, no_chart):
    args, out = made(tmp_path / "model", probe=LOW_BOX), tmp_path / "model" / "gate1.yaml"
    for command in (["evaluate", "1", *args], ["show", str(out)]):
        with pytest.raises(SystemExit, match="3"):
            gate.main([*command, "--strict"])
        found = common.load_yaml(out, "gate")  # written all the same
        assert (found["verdict"], found["plain_verdict"]) == ("PIVOT", "STOP")
    good, bad = tmp_path / "good", tmp_path / "bad"
    made(good), made(bad, probe=criteria("bbox_iou", score=0.2, low=0.15, high=0.25))
    assert evaluate(1, *args, "--encoder", str(bad))["verdict"] == "STOP"
    for seconds, score, answer, words in ((0.02, 0.2, "PASS", ""), (None, None, OPEN, "streamed")):
        edit(good / "features" / "index.yaml", other(seconds_per_item=seconds))
        found = evaluate(1, *args, "--encoder", str(good))
        assert found["verdict"] == "PIVOT" and found["encoder"]["bbox_iou"]["answer"] == "PASS"
        row = found["criteria"]["latency_overhead"]
        assert row["score"] == pytest.approx(score) and row["answer"] == answer and words in row["reason"]


def test_what_was_not_measured_is_inconclusive_and_the_stand_in_is_marked(tmp_path, no_chart, capsys):
    found = evaluate(1, *made(tmp_path / "a", adapt_latents=untrained_backbone))
    row = found["criteria"]["lpips"]
    assert row["stand_in"] and row["threshold"] == gate.STAND_IN and "stand-in" in found["headline"]
    assert row["score"] == pytest.approx(8 / 9, rel=1e-4) and "lpips*" in capsys.readouterr().out
    args = made(tmp_path / "b", probe=lambda c: c["criteria"].pop("map50"))
    found = evaluate(1, *args)
    assert (found["verdict"], found["plain_verdict"], found["map50"]) == (OPEN, "STOP", None)
    assert found["criteria"]["map50"]["reason"] == "probe has not measured map50"
    assert evaluate(1, *args[:2])["criteria"]["direction_accuracy"]["answer"] == OPEN  # no --motion


def test_the_table_has_a_line_for_every_verdict(tmp_path, no_chart, capsys):
    for name in ("made-up", "other"):
        evaluate(1, *made(tmp_path / name / "noise", adapt_latents=untrained_backbone))
    edit(tmp_path / "other/noise/gate1.yaml", other(model="other"))
    gate.main(["table", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in lines] == ["made-up", "other"]
    assert all("noise  gate 1  PROCEED" in line for line in lines)
    assert all("bbox_iou 0.900 PASS, map50 0.900 PASS, lpips* 0.889 PASS" in line for line in lines)


def test_results_that_are_missing_or_do_not_belong_together_are_refused(tmp_path, no_chart, refused):
    another, words = other(model="another"), ("another", "made-up")
    table = [(1, ("probe.yaml", "does not exist"), {"without": ["probe"]})]
    table += [(1, ("probe.yaml", "'align'"), {"probe": other(stage="align")})]
    table += [(1, words, {stem: another}) for stem in ("align", "adapt_latents", "motion")]
    table += [(2, words, {"adapt_hybrid": another}), (3, ("another",), {"explain_describe": another})]
    table += [(3, ("make gate3",), {"without": ["predict-latents", "video-continue"]})]
    for number, words, changes in table:
        refused(lambda n=number, x=changes: evaluate(n, *made(tmp_path, **x)), *words)
        assert not list(tmp_path.glob("gate*.yaml"))
    args, encoder = made(tmp_path / "model"), tmp_path / "encoder"
    made(encoder, probe=other(data_name="other"))
    refused(lambda: evaluate(1, *args, "--encoder", str(encoder)), "other", "noise")
    refused(lambda: evaluate(1, "--results", str(tmp_path / "typo")), "typo")
    refused(lambda: evaluate(1, *args, "--out", str(encoder / "probe.yaml" / "x.yaml")), "cannot write")


def blurred_present(content):
    BLIND["predict_latents"](content)
    content.update(sanity_cosine=0.5, sanity_cosine_mean=0.25)


def test_gates_2_and_3_decide_by_their_tables(tmp_path):
    table = [
        (2, "PROCEED", "semantic_accuracy fails", {"explain_semantic": criteria("semantic_accuracy", **LOW)}),
        (2, "PIVOT", "larger adapter", LARGER),
        (2, "PIVOT", "to the hybrid", BLURRED),
        (2, "STOP", "also with", BLURRED | {"adapt_hybrid": other(spatial_adds="no")}),
        (2, "STOP", "also with", BLURRED | {"adapt_hybrid": criteria("lpips", **LOW)}),
        (2, OPEN, "is undecided", BLURRED | {"adapt_hybrid": other(spatial_adds="inconclusive")}),
        (2, OPEN, "parameter_efficiency", ALIKE),
        (2, "PIVOT", "do not move", {"video_coherence": criteria("temporal_ratio", **STILL)}),
        (3, "PROCEED", "by prediction: delta", MUTE),
        (3, "PROCEED", "by pivot", BLIND),
        (3, "PROCEED", "by pivot", {"predict_latents": other(predicts="none")}),  # the gain is gone by Holm
        (3, "STOP", "fails retention", BLIND | MUTE),
        (3, "STOP", "fails continuation", BLIND | WORSE_THAN_COPY),
        (3, OPEN, "contains the answers", BLIND | {"video_continue": other(conditioning="past+text")}),
        (3, OPEN, "reconstruct the present", MUTE | {"predict_latents": blurred_present}),
        (3, OPEN, "flicker", BLIND | FLICKER),
        (3, OPEN, "prediction", UNSURE | MUTE),
    ]
    for number, verdict, word, changes in table:
        found = evaluate(number, *made(tmp_path, **changes))
        assert found["verdict"] == verdict and word in found["headline"], found["headline"]
        assert set(found["criteria"]) == set(gate.GATES[number][1])


def test_answers_that_depend_on_other_results(tmp_path):
    skills = {
        k: {"by_skill": {"score": x, "low": x - 0.01, "high": x + 0.01}} for k, x in (("a", 1.0), ("b", 0.8))
    }
    blind = {"explain_semantic": criteria("semantic_accuracy", upper_bound=0.6, **LOW)}
    no_adapter = {"video_coherence": other(conditioning="first+text")}
    table = [
        (
            2,
            "parameter_efficiency",
            "PASS",
            "",
            {"adapt_scaling": criteria("parameter_efficiency", **skills["a"])},
        )
    ]
    table += [
        (
            2,
            "parameter_efficiency",
            OPEN,
            "of skills FAIL",
            {"adapt_scaling": criteria("parameter_efficiency", **skills["b"])},
        )
    ]
    table += [(2, "semantic_accuracy", OPEN, "0.600", blind)]
    table += [(2, "semantic_accuracy", OPEN, "not measured", no_adapter)]
    table += [(3, "prediction", "FAIL", "", BLIND)]  # of a score of 0.9: the gain is compared with zero
    table += [(3, "prediction", OPEN, "Holm", {"predict_latents": other(predicts="none")})]
    another = {"predict_latents": lambda c: c["horizons"]["delta"].update({"8": {}})}  # 16 is the longest
    table += [(3, "longest_horizon", "PASS", "", another)]
    for number, name, answer, reason, changes in table:
        row = evaluate(number, *made(tmp_path, **changes))["criteria"][name]
        assert row["answer"] == answer and reason in row["reason"], row
        assert changes is not BLIND or (row["score"], row["baseline"]) == (-0.3, 0.0)


def test_gate_4_decides_by_its_table():
    table = [("PROCEED", "PASS", "PASS", 0.9), ("PIVOT", "PASS", "FAIL", 0.81), ("PIVOT", "FAIL", OPEN, 0.81)]
    table += [("STOP", "FAIL", "FAIL", 0.79), (OPEN, "PASS", "FAIL", 0.79), (OPEN, OPEN, "PASS", 0.9)]
    for verdict, auroc, over, low in table:
        rows = {"pixel_auroc": auroc, "pixel_over_latent": over}
        judged = {k: {"level": "must", "answer": x, "reason": "r", "threshold": 0.8} for k, x in rows.items()}
        scores = {"latent_auroc": 0.9, "latent_auroc_low": low, "pixel_auroc": 0.85, "pixel_verifier": "l1"}
        found, why = gate.decide4(judged, scores | {"latent_verifier": "cosine"})
        assert found == verdict and (verdict not in ("PROCEED", "PIVOT") or "cosine" in why)


def measured(root, name, spatial=0.8, bbox=0.7, lpips=0.2, seconds=0.1, **more):
    """A folder of one model's results: scores per item around the means. more: noise, kind, ..."""
    folder, sources, scores, found = root / name, more.get("sources", SOURCES), {}, {}
    shared, g = 0.05 * torch.randn(N, generator=generator(99)), generator(more.get("seed", 0))
    high = {"constant": torch.full((N,), more.get("baseline", 0.2)), "shuffled": torch.full((N,), 0.1)}
    low = {"mean_image": torch.full((N,), 0.9), "shuffled": torch.full((N,), 0.95)}
    table = {"spatial_iou": (spatial, high, "higher", 1.0), "bbox_iou": (bbox, high, "higher", 1.0)}
    table[more.get("lpips_name", "decoder_lpips")] = lpips, low, "lower", 0.05
    for key, (mean, baselines, better, bound) in table.items():
        x = shared + more.get("noise", 0.05) * torch.randn(N, generator=g)
        scores[key] = mean + x - x.mean()
        found[key] = stats.criterion(scores[key], baselines, sources, bound, better, layer="vision.0")
        found[key]["leak"] = more.get("leak") if key == "spatial_iou" else None
    scores[key] = scores[key][None].repeat(3, 1)  # LPIPS of three seeds
    head = {"model": name, "data_name": "noise", "weights": "random", "data": "synthetic", "oracle": "vae"}
    common.save_yaml(folder / "probe.yaml", {"stage": "probe", **head, "criteria": found})
    common.save_pt(folder / "probe.pt", common.RESULT, IDS, {}, sources=sources, scores=scores)
    points = {"vision.0": {}} | ({} if more.get("kind") == "encoder" else {"language.0": {}})
    index = {"seconds_per_item": seconds, "ids": ["train-0", *IDS], "points": points}
    common.save_yaml(folder / "features" / "index.yaml", {"stage": "extract", "model": name} | index)
    return str(folder)


@pytest.fixture
def screen(tmp_path):
    return lambda *folders, more=(): gate.main(["screen", *folders, "--out", str(tmp_path / "out"), *more])


def test_identical_models_are_a_tie_and_timing_alone_makes_no_winner(tmp_path, screen):
    found = screen(*(measured(tmp_path, name) for name in ("a", "b", "c")))
    assert found["tie"] and "a tie of a, b, c" in found["headline"]
    assert found["confidence"] == pytest.approx(1 / 3)
    assert all(row["low"] == row["high"] == 0 for row in found["comparisons"].values())
    found = screen(measured(tmp_path, "a"), measured(tmp_path, "b", seconds=0.13))
    assert "choose by cost" in (tmp_path / "out" / "final-recommendation.md").read_text()
    assert found["comparisons"]["b"]["low"] > 0 and found["tie"]


def test_a_model_that_cannot_be_chosen_never_wins(tmp_path, screen):
    table = [
        ({"spatial": 0.9, "bbox": 0.99, "baseline": 0.895}, "baseline", OPEN, 0.9),
        ({"spatial": 0.9, "bbox": 0.99, "baseline": 0.95}, "baseline", "FALLBACK", 0),
        ({"spatial": 0.99, "leak": "shuffled"}, "leak in spatial_iou", OPEN, 0),
        ({"spatial": 0.95, "bbox": 0.9, "kind": "encoder"}, "hybrid", None, 0.95),
        ({"spatial": 0.44, "bbox": 0.8, "lpips": 0.06}, "does not pass spatial IoU", "HYBRID", 0.44),
    ]
    for kind, words, decision, component in table:
        honest = measured(tmp_path, "honest", spatial=0.6, bbox=0.5, lpips=0.3)
        found = screen(measured(tmp_path, "x", **kind), honest)
        row = found["models"]["x"]
        assert found["first"] == "honest" and row["rank"] is None and words in row["excluded"]
        assert row["decision"] == decision and found["second"] is found["confidence"] is None
        assert found["criteria"]["x"]["spatial_iou"]["component"] == pytest.approx(component, abs=1e-4)


def test_a_clear_winner_wins_with_its_confidence(tmp_path, screen):
    means = {"weak": 0.6, "strong": 0.9, "fair": 0.7}
    found = screen(*(measured(tmp_path, m, spatial=x, seed=k) for k, (m, x) in enumerate(means.items())))
    assert (found["first"], found["second"], found["tie"]) == ("strong", "fair", False)
    row = found["comparisons"]["fair"]
    assert row["difference"] == pytest.approx(0.4 * (0.9 - 0.7), abs=1e-4) and row["low"] > 0
    assert row["by_spatial_iou"] == pytest.approx(0.08, abs=1e-4) and found["confidence"] > 0.999
    assert all(m["low"] < m["weighted"] < m["high"] for m in found["models"].values())
    pair = screen(str(tmp_path / "strong"), str(tmp_path / "fair"))["comparisons"]["fair"]
    assert (row["level"], pair["level"]) == pytest.approx((0.975, 0.95))  # Bonferroni over two
    assert row["low"] < pair["low"] < pair["high"] < row["high"]


def test_models_are_paired_on_items_in_any_order(tmp_path, screen):
    folders = [measured(tmp_path, "a", noise=0, spatial=0.70), measured(tmp_path, "b", noise=0, spatial=0.69)]
    path, back = tmp_path / "b" / "probe.pt", list(range(N))[::-1]
    scores = {k: x[..., back].clone() for k, x in common.load_pt(path, common.RESULT)["scores"].items()}
    common.save_pt(path, common.RESULT, IDS[::-1], {}, sources=SOURCES[::-1], scores=scores)
    row = screen(*folders)["comparisons"]["b"]  # a constant difference is certain: items differ by far more
    assert row["significant"] and row["high"] - row["low"] < 1e-5


def test_the_weighted_score_and_the_files_of_a_screening(tmp_path, screen, capsys):
    a = measured(tmp_path, "a", spatial=0.8, bbox=0.6, lpips=0.2, seconds=0.1)
    found = screen(a, measured(tmp_path, "b", spatial=0.6, seconds=0.2))
    components = [found["criteria"]["a"][k]["component"] for k in gate.SCREEN]
    assert components == pytest.approx([0.8, 0.75, 0.75, 1 - 1 / 6, 1.0], abs=1e-4)
    weighted = 0.4 * 0.8 + 0.2 * 0.75 + 0.15 * 0.75 + 0.15 * 5 / 6 + 0.1
    assert found["models"]["a"]["weighted"] == pytest.approx(weighted, abs=1e-4)
    out = tmp_path / "out"
    one = common.load_yaml(out / "b-spatial.yaml", "screen")
    assert (one["rank"], one["speed"], one["spatial_iou"]) == (2, 2.0, pytest.approx(0.6))
    assert "| 0.800 | 0.600 |" in (out / "phase1-summary.md").read_text()
    printed = capsys.readouterr().out
    gate.main(["show", str(out / "screen.yaml")])
    assert capsys.readouterr().out == printed and f"headline {found['headline']}" in printed


def test_speed_is_relative_to_qwen_and_what_one_model_lacks_is_left_out_for_all(tmp_path, screen):
    found = screen(measured(tmp_path, "a", seconds=0.4), measured(tmp_path, "qwen2.5-vl-7b", seconds=0.1))
    row = found["criteria"]["a"]["speed"]
    assert found["speed_reference"] == "qwen2.5-vl-7b" and (row["score"], row["answer"]) == (4, "FAIL")
    found = screen(measured(tmp_path, "a", seconds=None), measured(tmp_path, "b"))
    assert found["left_out"] == {"speed": ["a", "b"]}  # a is the reference
    assert found["weights_percent"]["spatial_iou"] == pytest.approx(40 / 0.85, abs=1e-3)


def test_the_outcome_and_the_decision_matrix(tmp_path, screen):
    # outcome, a word of the headline, (spatial IoU, box IoU, LPIPS) of one and of two, decision about two
    table = [
        ("SUCCESS", "one; PROCEED", (0.8, 0.7, 0.2), (0.2, 0.1, 0.8), "FALLBACK"),
        ("SUCCESS", "one; PROCEED", (0.8, 0.7, 0.2), (0.7, 0.7, 0.2, 0.5), "PARTIAL"),
        ("SUCCESS", "but two passes every criterion", (0.95, 0.3, 0.2), (0.6, 0.5, 0.2), "PROCEED"),
        ("PARTIAL SUCCESS", "one; PROCEED WITH", (0.8, 0.7, 0.6), (0.4, 0.7, 0.2), "HYBRID"),
        ("PARTIAL SUCCESS", "one; PARTIAL", (0.8, 0.4, 0.2), (0.3, 0.7, 0.2), OPEN),
        ("SPATIAL ONLY", "one", (0.8, 0.25, 0.6), (0.7, 0.25, 0.6), "PROCEED WITH ADAPTER"),
        (OPEN, "none yet", (0.4, 0.7, 0.2), (0.5, 0.7, 0.2), OPEN),
        ("FAILURE", "fallback: hybrid (not measured", (0.4, 0.7, 0.2), (0.35, 0.7, 0.2), "HYBRID"),
    ]
    for outcome, word, one, two, decision in table:
        found = screen(*(measured(tmp_path, m, *x, baseline=0.05) for m, x in (("one", one), ("two", two))))
        assert found["outcome"] == outcome and word in found["headline"], found["headline"]
        assert found["models"]["two"]["decision"] == decision, found["models"]["two"]


def test_folders_that_do_not_belong_together_or_are_inconsistent_are_refused(tmp_path, screen, refused):
    table = [
        (("other", "noise"), "probe.yaml", {"data_name": "other"}, {}),
        (("another", "'b'"), "features/index.yaml", {"model": "another"}, {}),
        (("same items",), "features/index.yaml", {"ids": ["train-1", *IDS]}, {}),
        (("backbone",), "probe.yaml", {}, {"lpips_name": "decoder_lpips_random_backbone"}),
        (("same split",), "probe.yaml", {}, {"sources": [f"source-{i}" for i in range(N)]}),
    ]
    a, c = (measured(tmp_path, name) for name in "ac")
    for words, file, values, how in table:
        b = measured(tmp_path, "b", **how)
        edit(tmp_path / "b" / file, other(**values))
        refused(lambda b=b: screen(a, b), *words)
    common.save_pt(tmp_path / "c" / "probe.pt", common.RESULT, IDS, {})
    encoders = [measured(tmp_path, name, kind="encoder") for name in "ef"]
    refused(lambda: screen(a), "two folders")
    refused(lambda: screen(a, a), "'a'", "more than once")
    refused(lambda: screen(*encoders), "vision-language model")
    refused(lambda: screen(a, c), "scores per item")
    assert not (tmp_path / "out" / "screen.yaml").exists()
