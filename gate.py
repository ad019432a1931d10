"""The verdicts: every criterion held against its threshold, and what follows; the screening of several models.

    python gate.py judge 1 --results results/tiny/shapes --motion results/tiny/moving --encoder results/tiny-dinov2/shapes
    python gate.py judge 2 --results results/tiny/shapes --motion results/tiny/moving
    python gate.py judge 3 --results results/tiny/future
    python gate.py judge 4 --results results/tiny/future
    python gate.py screen results/tiny/shapes results/tiny-semantic/shapes results/tiny-dinov2/shapes --out results/screen
    python gate.py show results/tiny/shapes/gate1.yaml
    python gate.py table results

Reads the YAML of the stages. Writes gate<N>.yaml, and gate1.png: originals, VAE and adapter reconstructions; true and decoded boxes.
A criterion is

    PASS           when its interval clears the threshold and its paired gain over the best baseline excludes zero
    FAIL           when its interval lies on the wrong side, or the gain can be no more than a tenth of the headroom above the baseline
    INCONCLUSIVE   otherwise, with the number of items that would decide; or, whatever the score, where a control that cannot know knows

`plain_pass` is the bare comparison of an earlier plan, recorded beside it. `--set bbox_iou=0.5` overrides a threshold and is recorded.

`screen` asks which of several models: the same answers on every model's test items, and a weighted score (SCREEN, MATRIX) whose
resamples all models share. Writes in --out <model>-spatial.yaml, phase1-summary.md, final-recommendation.md and screen.yaml;
`told_apart` says whether the first is more than tied.

Modules, to be copied with it: cogvlm2.py, common.py, media.py, models.py, stats.py.
"""

import json
import math
import time
from pathlib import Path

import torch

from common import (
    HERE,
    RESULT,
    check_writable,
    load_items,
    load_pt,
    load_yaml,
    plain,
    pyplot,
    refuse,
    run_info,
    save_text,
    save_yaml,
    say,
    subcommands,
)
from media import frames_of
from models import OWN_LAYOUT, TINY, model_of
from stats import clusters, resampled, widened

# What each gate asks. Thresholds are those of the evaluation plan that this project grew from; `earlier` are
# figures of its earlier study, which stand beside ours for comparison and judge nothing.
PLAN = "evaluation plan, phase 1"
FROZEN = "a picture that stands still would score as well: decoded_closeness does not tell the film from that"


def criterion(level, threshold, stage, **more):
    """must or should; the threshold; whose YAML holds the score; better="lower" where less is good."""
    return {"level": level, "threshold": threshold, "from": stage, **more}


def study(qwen=None, hybrid=None):
    """Figures of the earlier study, where it has them."""
    figures = {"qwen2.5-vl-7b": qwen, "dinov2-l hybrid": hybrid}
    return {name: x for name, x in figures.items() if x is not None}


GATE1 = {
    "spatial_iou": criterion("must", 0.60, "probe", earlier=study(0.559, 0.837)),
    "bbox_iou": criterion("must", 0.50, "probe", earlier=study(0.104)),
    "map50": criterion("must", 0.20, "probe", earlier=study(0.001, 0.182)),
    "lpips": criterion("must", 0.35, "adapt", earlier=study(0.264, 0.162), better="lower"),
    "ssim": criterion("should", 0.75, "adapt", earlier=study(0.943)),
    "edge_f1": criterion("should", 0.60, "adapt", earlier=study(0.351)),
    "cka": criterion("should", 0.40, "align", earlier=study(0.687)),
    "linear_r2": criterion("should", 0.50, "align", earlier=study(0.510)),
    "spearman": criterion("should", 0.60, "align", earlier=study(0.684), accepted=0.50),
    "recall10": criterion("should", 0.20, "align", earlier=study(0.258)),
    "direction_accuracy": criterion("should", 0.80, "motion"),
    "latency_overhead": criterion("should", 0.25, "time", earlier=study(hybrid=0.319), better="lower"),
    "inference_ratio": criterion("should", 2.0, "time", better="lower"),
}
GATE2 = {
    "parameter_efficiency": criterion(
        "must", 0.90, "scaling", earlier={"LPIPS of 100M / of 10M": 0.346 / 0.289}
    ),
    "lpips": criterion(
        "must", 0.35, "scaling", earlier={"10M": 0.289, "100M": 0.346, "query adapter": 0.212}, better="lower"
    ),
    "temporal_consistency": criterion(
        "should",
        0.70,
        "coherence",
        earlier={"first frame only": 0.690, "all frames": 0.681, "conditioned": 0.588, "baseline": 0.686},
        accepted=0.69,
    ),
    # ours: a picture that stands still scores 0
    "decoded_closeness": criterion("should", 0.50, "coherence"),
    "semantic_accuracy": criterion("should", 0.65, "films"),
}
# Gate 3 passes by either: what predicts in latent space, or the pair of the pivot. `gain`: what is held
# against the threshold is the paired gain over the best floor.
COSINES = {"cosine of predictions": "0.930-0.941", "of the copy": "0.975-0.979"}
GATE3 = {
    "prediction": criterion("either", 0.0, "latents", earlier=COSINES, gain=True),
    "retention": criterion(
        "or", 0.90, "describe", earlier={"action recall on generated / on real clips": 0.70 / 0.75}
    ),
    "temporal_ratio": criterion("or", 0.80, "continue", earlier={"LTX-Video": 0.89}),
    # ours: the film is nearer than the copy where something moves; motion alone could be any
    "continuation": criterion("or", 0.0, "continue"),
    "beyond_extrapolation": criterion("should", 0.0, "latents", gain=True),
    "longest_horizon": criterion("should", 0.0, "latents", gain=True),
    "most_motion": criterion("should", 0.0, "latents", gain=True),
}
# Gate 4's second must is a paired gain over the best verifier that reads latents.
GATE4 = {
    "pixel_auroc": criterion("must", 0.80, "verify"),
    "pixel_over_latent": criterion("must", 0.0, "verify", gain=True),
    # what accepting in the verifier's order saves beside a random order, on the mean of all coverages
    "selective_risk": criterion("should", 0.0, "verify"),
    # ours, as are the next two: the error that was promised, of a bound from val, on test
    "conformal_error": criterion("should", 0.10, "verify", better="lower"),
    # of films that the video model made, instead of planted ones
    "made_auroc": criterion("should", 0.80, "verify"),
    "made_over_latent": criterion("should", 0.0, "verify", gain=True),
}
SPATIAL = ("spatial_iou", "bbox_iou", "map50")
# skill between the mean image and the VAE that stands in for an LPIPS threshold when the backbone is not the
# published one
STAND_IN = 0.5
# what a row of the table keeps of a criterion's record
KEPT = ("score", "low", "high", "floor", "floor_name", "ceiling", "gain", "gain_low", "gain_high")
KEPT += ("p", "skill", "layer", "n", "options_searched")
MUST_MATCH = "must belong together"
NO_INTERVAL = "a ratio of two medians, no interval"
STREAMED = "features were streamed layer by layer, which times no single pass"
ROUNDING = 1e-3  # a gain that the printed table rounds away; it matters where a floor reaches the ceiling


def negligible(record):
    """Can the gain over the best floor be no more than a tenth of the room above it?"""
    return record["gain_high"] < max(0.1 * abs(record["ceiling"] - record["floor"]), ROUNDING)


def judge(record, threshold, better="higher"):
    """Three answers. record: score, low, high, gain, gain_low, gain_high, floor, ceiling, n. -> {answer, plain_pass, reason, n_needed}."""
    sign = 1 if better == "higher" else -1
    numbers = ("score", "low", "high", "gain_low", "gain_high", "floor", "ceiling")
    if not all(math.isfinite(record[k]) for k in numbers):
        reason = "the score is not a number, or its interval has no bounds (a single source has none)"
        return {"answer": "INCONCLUSIVE", "plain_pass": False, "reason": reason}
    near, far = sorted((sign * (record["low"] - threshold), sign * (record["high"] - threshold)))
    above_floor = record["gain_low"] > 0
    answer = {"answer": "INCONCLUSIVE", "plain_pass": sign * (record["score"] - threshold) > 0}
    if leak := record.get("leak"):
        score = f"the control {leak!r} scores {record['floors'][leak]:.3f}"
        return answer | {"reason": f"leak: {score}, which it cannot without the answer; mend that first"}
    if far < 0:
        return answer | {"answer": "FAIL", "reason": "the interval lies on the wrong side of the threshold"}
    # asked first, or enough items would turn the same small gain from a failure into a pass
    if negligible(record):
        reason = f"no more than a tenth of the room above the floor ({record['floor_name']}) can be there"
        return answer | {"answer": "FAIL", "reason": reason}
    if near > 0 and above_floor:
        reason = "the interval clears the threshold and the gain over the best floor excludes zero"
        return answer | {"answer": "PASS", "reason": reason}
    # Half-widths shrink with the square root of n: how many items until both questions are settled, if the
    # scores stay as they are.
    needs, doubts = [], []
    if near <= 0:
        doubts.append("the interval spans the threshold")
        needs.append((record["high"] - record["low"], abs(record["score"] - threshold)))
    if not above_floor:
        doubts.append(f"the gain over {record['floor_name']} may be zero")
        needs.append((record["gain_high"] - record["gain_low"], abs(record["gain"])))
    factor = max((width / 2 / distance) ** 2 if distance else math.inf for width, distance in needs)
    n_needed = int(record["n"] * factor) + 1 if factor < 1e4 else None
    return answer | {"reason": " and ".join(doubts), "n_needed": n_needed}


def stand_in(record):
    """The record of an LPIPS with an untrained backbone, rewritten as skill: 0 for the mean image, 1 for the VAE. None where the VAE is no better than the mean image."""
    floor = record.get("floors", {}).get("mean_image", record["floor"])
    room = record["ceiling"] - floor
    if room >= 0:
        return None

    def skill(x):
        return (x - floor) / room

    low, high = sorted((skill(record["low"]), skill(record["high"])))
    return {
        **record,
        "score": skill(record["score"]),
        "low": low,
        "high": high,
        "floor": 0.0,
        "floor_name": "mean_image",
        "ceiling": 1.0,
        "better": "higher",
        "skill_of": skill,
        "gain": record["gain"] / -room,
        "gain_low": record["gain_low"] / -room,
        "gain_high": record["gain_high"] / -room,
    }


def held(criteria, name, rule, threshold, source):
    """(row, record): a criterion's record held against the threshold; LPIPS without its published backbone by its stand-in. The record is None where nothing was measured."""
    record = criteria.get(name)
    better = rule.get("better", "higher")
    row = {"threshold": threshold, "source": source}
    missing = f"{rule['from']} measured no {name}"
    if name == "lpips" and record is None and "lpips_random_backbone" in criteria:
        record = stand_in(criteria["lpips_random_backbone"])
        better = "higher"
        missing = "the VAE's own reconstruction is no better than the mean image"
        source = "skill between the mean image and the VAE: LPIPS has no published backbone here"
        row = {"threshold": STAND_IN, "source": source, "stand_in": True}
    if record is None:
        return row | {"score": None, "answer": "INCONCLUSIVE", "plain_pass": None, "reason": missing}, None
    row |= {k: record[k] for k in KEPT if k in record} | judge(record, row["threshold"], better)
    if rule.get("accepted") and row["answer"] != "PASS":
        row["accepted"] = judge(record, rule["accepted"], better)["answer"]
        row["accepted_threshold"] = rule["accepted"]
    return row, record


def timed(score, why, threshold, source):
    """The row of a ratio of two medians, which has no interval; score None: not measured."""
    row = {"threshold": threshold, "source": source, "score": score}
    if score is None:
        return row | {"answer": "INCONCLUSIVE", "plain_pass": None, "reason": why}
    passed = score < threshold
    return row | {"answer": "PASS" if passed else "FAIL", "plain_pass": passed, "reason": why}


def as_gain(record):
    """The record with the gain over the floor as its score: its floor is then zero, its ceiling the room above the old floor."""
    room = record["ceiling"] - record["floor"]
    return record | {
        "score": record["gain"],
        "low": record["gain_low"],
        "high": record["gain_high"],
        "floor": 0.0,
        "ceiling": room if record.get("better") != "lower" else -room,
    }


def judged_row(criteria, name, rule, threshold, changed):
    """A criterion's row in the table of a gate. criteria: {name: record}, or of ratios of times {name: (score, why)}; changed: the thresholds of --set."""
    source = PLAN
    if name in changed:
        # a threshold that was set has no second one below it
        source, rule = "--set", rule | {"accepted": None}
    if rule.get("gain") and name in criteria:
        criteria = {name: as_gain(criteria[name])}
    if rule["from"] == "time":
        row = timed(*criteria[name], threshold, source)
    else:
        row = held(criteria, name, rule, threshold, source)[0]
    return {"level": rule["level"]} | row | ({"earlier_study": rule["earlier"]} if "earlier" in rule else {})


def undecided(judged, names):
    """The verdict while the criteria `names` are open: (verdict, why)."""
    return "INCONCLUSIVE", f"investigate {', '.join(names)}: {'; '.join(judged[k]['reason'] for k in names)}"


def gate_head(gate, verdict, why, about, judged, beside=""):
    """The first lines of gate<N>.yaml. The headline says of what kind the weights and the data are; beside: what it says of other weights."""
    kinds = f"{about['weights']} weights{beside}, {about['data']} data"
    if judged.get("lpips", {}).get("stand_in"):
        kinds += "; LPIPS by a stand-in"
    return {
        "stage": "gate",
        "gate": gate,
        "verdict": verdict,
        "headline": f"{verdict} ({kinds}): {why}",
        **{k: about[k] for k in ("model", "data_name", "weights", "data")},
    }


def decide(judged, encoder):
    """The decision table: (verdict, why). `encoder` holds the spatial encoder's own judged spatial criteria, where it was measured."""
    must = {k: j for k, j in judged.items() if j["level"] == "must"}
    failed = [k for k, j in must.items() if j["answer"] == "FAIL"]
    if all(j["answer"] == "PASS" for j in must.values()):
        return "PROCEED", "every criterion that must pass does"
    lost = [k for k in failed if k in SPATIAL]
    if lost:
        repaired = [k for k in lost if encoder.get(k, {}).get("answer") == "PASS"]
        fails = f"the model fails {', '.join(lost)}"
        if repaired:
            return (
                "PIVOT",
                f"to the hybrid: {fails}, of which a spatial encoder beside it holds {', '.join(repaired)}",
            )
        if not any(k in encoder for k in lost):
            return (
                "PIVOT",
                f"to the hybrid, as the plan's table says, untested: {fails}; run again with --encoder",
            )
        if all(encoder.get(k, {}).get("answer") == "FAIL" for k in lost):
            return "STOP", f"{fails}, and so does the spatial encoder"
        return (
            "INCONCLUSIVE",
            f"investigate the hybrid: {fails}, and what the spatial encoder holds is undecided",
        )
    if failed:
        return "STOP", f"space is there but the bridge fails {', '.join(failed)}"
    return undecided(judged, [k for k, j in must.items() if j["answer"] != "PASS"])


def plain_verdict(judged):
    """What the plain comparisons of an earlier plan say."""
    return "PROCEED" if all(j["plain_pass"] for j in judged.values() if j["level"] == "must") else "STOP"


def gate1(args, thresholds):
    """Judge gate 1 from the stages' YAML. Returns the result to be saved."""
    folder = Path(args.results)
    probe, align, adapt = (
        load_yaml(folder / f"{name}.yaml", stage)
        for name, stage in (("probe", "probe"), ("align", "align"), ("adapt-latents", "adapt"))
    )
    motion = load_yaml(Path(args.motion) / "probe.yaml", "probe") if args.motion else None
    encoder_probe = load_yaml(Path(args.encoder) / "probe.yaml", "probe") if args.encoder else None
    for other, where, keys in (
        (align, folder / "align.yaml", ("model", "data_name")),
        (adapt, folder / "adapt-latents.yaml", ("model", "data_name")),
        (motion, args.motion, ("model",)),
        (encoder_probe, args.encoder, ("data_name",)),
    ):
        for key in keys:
            if other and other[key] != probe[key]:
                refuse(f"{where} is about {other[key]!r}, not {probe[key]!r} as {folder}; they {MUST_MATCH}")
    seconds = {}  # {which: seconds per item, or None where layers were streamed}
    for name, where in (("model", folder), ("encoder", args.encoder), ("reference", args.reference)):
        index = Path(where) / "features" / "index.yaml" if where else None
        if index and (name != "reference" or index.is_file()):
            seconds[name] = load_yaml(index, "extract")["seconds_per_item"]

    def ratio(a, b, missing):
        if seconds.get(a) and seconds.get(b):
            return seconds[a] / seconds[b], NO_INTERVAL
        return None, STREAMED if None in (seconds.get(a, 0), seconds.get(b, 0)) else missing

    no_reference = "no Qwen2.5-VL features of the same data were given (--reference)"
    times = {
        "latency_overhead": ratio("encoder", "model", "no --encoder was given"),
        "inference_ratio": ratio("model", "reference", no_reference),
    }
    if probe["model"] == REFERENCE:
        times["inference_ratio"] = (1.0, "the reference itself")
    criteria = {
        "probe": probe["criteria"],
        "align": align["criteria"],
        "adapt": adapt["criteria"],
        "motion": motion["criteria"] if motion else {},
        "time": times,
    }
    judged = {
        name: judged_row(criteria[rule["from"]], name, rule, thresholds[name], args.changed)
        for name, rule in GATE1.items()
    }
    encoder = {}
    if encoder_probe:
        encoder = {k: judge(encoder_probe["criteria"][k], thresholds[k]) for k in SPATIAL}
    result = gate_head(1, *decide(judged, encoder), probe, judged) | {
        "decoder": adapt["decoder"],
        "decoder_weights": adapt["decoder_weights"],
    }
    result |= {name: row["score"] for name, row in judged.items()}
    result |= {"plain_verdict": plain_verdict(judged), "overridden": args.changed, "criteria": judged}
    if encoder:
        result["encoder"] = {"model": encoder_probe["model"]}
        for k, answer in encoder.items():
            result["encoder"][k] = {"score": encoder_probe["criteria"][k]["score"], **answer}
    return result


def decide2(judged, hybrid):
    """The decision of gate 2: (verdict, why). hybrid: {answer: of its fused bridge's LPIPS, spatial_adds, spatial}, where it was measured."""
    must = {k: j for k, j in judged.items() if j["level"] == "must"}
    if all(j["answer"] == "PASS" for j in must.values()):
        weak = [k for k, j in judged.items() if j["answer"] == "FAIL"]
        but = f"; but {', '.join(weak)} {'fails' if len(weak) == 1 else 'fail'}" if weak else ""
        return "PROCEED", f"a small bridge is enough{but}"
    if must["lpips"]["answer"] == "FAIL":
        if not hybrid:
            return "PIVOT", "to the hybrid, as the plan's table says, untested: a small bridge fails lpips"
        second = hybrid["spatial"]
        if hybrid["answer"] == "PASS" and hybrid["spatial_adds"] == "yes":
            why = f"a small bridge from the model alone fails lpips, which with {second} beside it passes"
            return "PIVOT", f"to the hybrid: {why}"
        if hybrid["answer"] == "FAIL" or hybrid["spatial_adds"] == "no":
            return "STOP", f"a small bridge fails lpips, and {second} beside the model does not repair it"
        why = "a small bridge fails lpips, and whether a second encoder repairs it is undecided"
        return "INCONCLUSIVE", f"investigate the hybrid: {why}"
    if must["parameter_efficiency"]["answer"] == "FAIL":
        return "PIVOT", "to a larger bridge: 10M parameters are worse than 100M"
    return undecided(judged, [k for k, j in must.items() if j["answer"] != "PASS"])


def gate2(args, thresholds):
    """Judge gate 2 from the stages' YAML: of pictures in --results, of clips in --motion. Returns the result to be saved."""
    folder = Path(args.results)
    scaling = load_yaml(folder / "adapt-scaling.yaml", "adapt")
    beside = {"ablation": folder / "adapt-ablation.yaml", "hybrid": folder / "adapt-hybrid.yaml"}
    if args.motion:
        beside |= {
            "coherence": Path(args.motion) / "video-coherence.yaml",
            "films": Path(args.motion) / "explain-semantic.yaml",
        }
    stages = {"scaling": scaling} | {name: load_yaml(path) for name, path in beside.items() if path.is_file()}
    for name, other in stages.items():
        if other.get("model") not in (scaling["model"], None):
            refuse(f"{beside[name]} is about {other['model']!r}, not {scaling['model']!r}; they {MUST_MATCH}")
    judged, hybrid, coherence = {}, stages.get("hybrid"), stages.get("coherence", {})
    about_model = coherence.get("conditioning") == "adapter"  # other films say nothing of the model
    for name, rule in GATE2.items():
        known = rule["from"] == "scaling" or about_model
        criteria = stages.get(rule["from"], {}).get("criteria", {}) if known else {}
        judged[name] = judged_row(criteria, name, rule, thresholds[name], args.changed)
    # LPIPS of the small bridge, by which only its gain is judged
    for key in ("floor", "floor_name", "ceiling", "skill"):
        judged["parameter_efficiency"].pop(key, None)
    judged["parameter_efficiency"] |= {"stand_in": True} if "lpips_random_backbone" in scaling else {}
    if judged["temporal_consistency"]["answer"] == "PASS" and judged["decoded_closeness"]["answer"] != "PASS":
        judged["temporal_consistency"] |= {"answer": judged["decoded_closeness"]["answer"], "reason": FROZEN}
    semantic = judged["semantic_accuracy"]
    if semantic.get("ceiling") is not None and semantic["ceiling"] < semantic["threshold"]:
        reason = f"of the clips themselves the model says no more than {semantic['ceiling']:.3f}"
        semantic |= {"answer": "INCONCLUSIVE", "reason": reason, "n_needed": None}
    fused = hybrid and {
        "answer": held(hybrid["criteria"], "lpips", GATE2["lpips"], thresholds["lpips"], PLAN)[0]["answer"],
        **{k: hybrid[k] for k in ("spatial", "spatial_adds")},
    }
    result = gate_head(2, *decide2(judged, fused), scaling, judged) | {
        "decoder": scaling["decoder"],
        "decoder_weights": scaling["decoder_weights"],
        "video": coherence.get("video"),
    }
    result |= {name: row["score"] for name, row in judged.items()}
    result |= {
        "plain_verdict": plain_verdict(judged),
        "overridden": args.changed,
        **{k: hybrid[k] for k in ("spatial", "model_adds", "spatial_adds") if hybrid},
        **{k: v for k, v in stages.get("ablation", {}).items() if k.startswith("best_")},
        "ladder_scale": scaling["ladder_scale"],
        "training_time_ratio": scaling["training_time_ratio"],
        "criteria": judged,
    }
    return result


def decide3(judged, variant):
    """The decision of gate 3: (verdict, why)."""
    prediction, pivot = judged["prediction"], {k: row for k, row in judged.items() if row["level"] == "or"}
    if prediction["answer"] == "PASS":
        why = f"{variant} is better than copying the last frame and than every control"
        return "PROCEED", f"by prediction: {why}"
    if all(row["answer"] == "PASS" for row in pivot.values()):
        return "PROCEED", "by pivot: the video model predicts, and the model describes what it sees there"
    failed = [k for k, row in pivot.items() if row["answer"] == "FAIL"]
    if prediction["answer"] == "FAIL" and failed:
        return (
            "STOP",
            f"nothing predicts better than what costs nothing, and the pivot fails {', '.join(failed)}",
        )
    return undecided(judged, [k for k in ("prediction", *pivot) if judged[k]["answer"] == "INCONCLUSIVE"])


def gate3(args, thresholds):
    """Judge gate 3 from the YAML of predict.py, video.py (continue, futures) and explain.py (describe) in --results. Returns the result to be saved."""
    folder = Path(args.results)
    paths = {
        "latents": "predict-latents.yaml",
        "continue": "video-continue.yaml",
        "describe": "explain-describe.yaml",
        "futures": "video-futures.yaml",
    }
    stages = {name: load_yaml(folder / path) for name, path in paths.items() if (folder / path).is_file()}
    if "latents" not in stages and not {"continue", "describe"} <= set(stages):
        refuse(f"{folder} holds neither predict-latents.yaml nor video-continue.yaml; run make gate3")
    first = stages.get("latents") or stages["describe"]
    data_name = first["data_name"].removesuffix("-films")
    expected = f"{first['model']} on {data_name}"
    for name, other in stages.items():
        about = f"{other.get('model') or first['model']} on {other['data_name'].removesuffix('-films')}"
        if about != expected:
            refuse(f"{folder / paths[name]} is about {about}, not {expected}; they {MUST_MATCH}")
    latents, criteria = stages.get("latents", {}), {name: s.get("criteria", {}) for name, s in stages.items()}
    if latents:
        own = latents["horizons"][latents["variant"]]
        last, most = own[max(own, key=int)], latents["quarters_of_motion"][latents["variant"]]["quarter_4"]
        for name, row in (("longest_horizon", last), ("most_motion", most)):
            criteria["latents"][name] = row | {
                "score": row["cosine"],
                "ceiling": 1.0,
                "n": row["clips"],
                **{f"gain{end}": row[f"gain_over_floor{end}"] for end in ("", "_low", "_high")},
            }
    film = stages.get("continue", {})
    if film.get("moving_gain_over_copy") is not None:
        gain = {f"gain{end}": film[f"moving_gain_over_copy{end}"] for end in ("", "_low", "_high")}
        criteria["continue"]["continuation"] = gain | {
            "score": gain["gain"],
            "low": gain["gain_low"],
            "high": gain["gain_high"],
            "floor": 0.0,
            "floor_name": "copy",
            "n": film["moving_clips"],
            "ceiling": film["moving_l1_copy"] - film["moving_l1_vae"],
        }
    judged = {
        name: judged_row(criteria.get(rule["from"], {}), name, rule, thresholds[name], args.changed)
        for name, rule in GATE3.items()
    }
    prediction, retention, ratio = (judged[k] for k in ("prediction", "retention", "temporal_ratio"))

    def doubt(row, reason):
        row |= {"answer": "INCONCLUSIVE", "reason": reason}

    by_chance = latents and latents["variant"] not in latents["predicts"].split(", ")
    if prediction["answer"] == "PASS" and by_chance:
        doubt(prediction, "among as many variants as were tried, a gain like this may be chance (Holm)")
    if ratio["answer"] == "PASS" and ratio["low"] > 1 / ratio["threshold"]:
        doubt(ratio, "more changes from frame to frame than in the clips, as where films flicker")
    if film.get("conditioning", "").endswith("text") and retention["answer"] == "PASS":
        doubt(
            retention,
            f"the films ({film['conditioning']}) were told in words what the model then says of them",
        )
    sane, room = latents.get("sanity_cosine"), 1 - (latents.get("sanity_cosine_mean") or 0)
    if prediction["answer"] == "FAIL" and sane is not None and sane < 1 - room / 2:
        poor = f"the head does not even reconstruct the present (cosine {sane:.3f})"
        doubt(prediction, f"{poor}: train longer, or read another layer")
    about = first | {"data_name": data_name}
    other_weights = film and film["video_weights"] != first["weights"]
    video = f", video model {film['video_weights']}" if other_weights else ""
    result = gate_head(3, *decide3(judged, latents.get("variant")), about, judged, video)
    result |= {
        "decoder": latents.get("decoder"),
        "video": film.get("video"),
        "video_weights": film.get("video_weights"),
    }
    result |= {name: row["score"] for name, row in judged.items()}
    several = {}
    if "futures" in stages:
        for k in ("gain_over_one", "gain_over_one_low", "gain_over_one_high", "oracle_share"):
            several[f"best_of_n_{k}"] = stages["futures"][f"moving_{k}"]
    if prediction["plain_pass"] or retention["plain_pass"] and ratio["plain_pass"]:
        plainly = "PROCEED"
    elif None in (prediction["plain_pass"], retention["plain_pass"], ratio["plain_pass"]):
        plainly = None  # a criterion was not measured
    else:
        plainly = "STOP"
    result |= {"plain_verdict": plainly, **several, "overridden": args.changed, "criteria": judged}
    if latents:
        keep = ("cosine", "cosine_low", "cosine_high", "gain", "gain_low", "gain_high", "p", "p_holm")
        keep += ("gain_over_blind", "skill", "l1", "moving_l1", "raw_l1", "static", "best_shift")
        result |= {k: latents[k] for k in ("variant", "predicts", "layer")}
        every = latents["variants"] | latents["baselines"]
        result["table"] = {n: {k: row[k] for k in keep if k in row} for n, row in every.items()}
    return result


def decide4(judged, result):
    """The decision of gate 4: (verdict, why)."""
    must = {k: row for k, row in judged.items() if row["level"] == "must"}
    pixels, latents = result["pixel_verifier"], result.get("latent_verifier")
    if all(row["answer"] == "PASS" for row in must.values()):
        why = f"{pixels} tells right predictions from wrong ones, better than {latents}, the best that reads latents"
        return "PROCEED", f"pixels can verify: {why}"
    latents_tell = (result.get("latent_auroc_low") or 0) > must["pixel_auroc"]["threshold"]
    if "FAIL" in (must["pixel_auroc"]["answer"], must["pixel_over_latent"]["answer"]) and latents_tell:
        why = f"{latents} tells right predictions from wrong ones (AUROC {result['latent_auroc']:.3f})"
        return "PIVOT", f"to latents: {why} as well as pixels do ({result['pixel_auroc']:.3f})"
    if must["pixel_auroc"]["answer"] == "FAIL":
        why = "no verifier that reads pixels tells right predictions from wrong ones well enough"
        return "STOP", f"{why}; the best is {pixels}"
    return undecided(judged, [k for k, row in must.items() if row["answer"] != "PASS"])


def gate4(args, thresholds):
    """Judge gate 4 from verify.yaml in --results. Returns the result to be saved."""
    path = Path(args.results) / "verify.yaml"
    found = load_yaml(path, "verify")
    promised = args.changed.get("conformal_error", found["conformal_promised"])
    thresholds = thresholds | {"conformal_error": promised}
    judged = {
        name: judged_row(found["criteria"], name, rule, thresholds[name], args.changed)
        for name, rule in GATE4.items()
    }
    kept = ("pixel_verifier", "latent_verifier", "latent_auroc", "words_auroc", "base_risk", "aurc")
    kept += ("conformal_promised", "conformal_accepted_right")
    result = gate_head(4, *decide4(judged, found), found, judged) | {"decoder": found["decoder"]}
    result |= {name: row["score"] for name, row in judged.items()} | {k: found[k] for k in kept if k in found}
    result |= {
        "plain_verdict": plain_verdict(judged),
        "overridden": args.changed,
        "criteria": judged,
    }
    if None in (j["plain_pass"] for j in judged.values() if j["level"] == "must"):
        result["plain_verdict"] = None
    chosen = [found[k] for k in ("pixel_verifier", "latent_verifier", "words_verifier") if k in found]
    result["flagged"] = {}
    for name in chosen:
        kinds = found["verifiers"][name]["kinds"]
        result["flagged"][name] = {kind: row["flagged"] for kind, row in kinds.items()}
    return result


def show_predictions(table):
    """Print every variant and baseline of gate 3, best first. "Late" is what resembles the truth of an earlier frame."""
    print(
        f"\n{'':14s} {'cosine':>7s}  {'95% interval':17s} {'gain over copy':>14s}  {'95% interval':19s} {'p (Holm)':>8s} {'skill':>7s} {'L1':>7s}  remarks"
    )
    for name, row in sorted(table.items(), key=lambda item: -item[1]["cosine"]):
        shift = row.get("best_shift") or 0
        said = ["static"] if row["static"] else []
        if shift:
            frames = "2 or more frames" if abs(shift) == 2 else "a frame"
            said.append(f"{frames} {'late' if shift < 0 else 'early'}")
        print(
            f"{name:14s} {row['cosine']:7.4f}  [{row['cosine_low']:.4f}, {row['cosine_high']:.4f}]  {row['gain']:+14.4f}  [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]  "
            f"{number(row.get('p_holm')):>7s} {row['skill']:+7.3f} {row['l1']:7.4f}  {', '.join(said)}"
        )


def show(result):
    """The verdict as a table that a person reads."""
    print(
        f"\nGate {result['gate']}: {result['model']} on {result['data_name']}, decoder {result['decoder'] or result.get('video')}\n"
    )
    print(
        f"{'criterion':20s} {'':6s} {'score':>7s}  {'95% interval':17s} {'threshold':>9s}  {'best floor':27s} {'ceiling':>7s}  answer"
    )
    for name, row in result["criteria"].items():
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else "-"
        floor = f"{number(row['floor'])} {row['floor_name']}" if "floor" in row else "-"
        more = ""
        if row.get("n_needed"):
            more = f" (n = {row['n_needed']} would decide)"
        elif row.get("accepted") == "PASS":
            more = f" (accepted at {row['accepted_threshold']})"
        print(
            f"{name + ('*' if row.get('stand_in') else ''):20s} {row['level']:6s} {number(row['score']):>7s}  {interval:17s} {number(float(row['threshold'])):>9s}  {floor:27s} "
            f"{number(row.get('ceiling')):>7s}  {row['answer']}{more}"
        )
    if "table" in result:
        show_predictions(result["table"])
    if result["criteria"].get("lpips", {}).get("stand_in"):
        print(
            "* skill between the mean image and the VAE: the published LPIPS backbone is not on this machine"
        )
        if "parameter_efficiency" in result["criteria"]:
            print("  parameter_efficiency is the ratio of such skills, 10M over 100M")
    for name, words in (
        ("model_adds", f"does {result['model']} add to {result.get('spatial')}?"),
        ("spatial_adds", f"does {result.get('spatial')} add to {result['model']}?"),
    ):
        if name in result:
            print(f"{words} {result[name]}")
    print(f"\nverdict {result['verdict']}\nheadline {result['headline']}")


def overview(folder):
    """A row for every verdict below `folder`: model, data, gate, verdict, kinds of weights and data, the deciding scores (* by a stand-in), commit."""
    lines = []

    def add(x, model, name, verdict, scores):
        commit = x.get("run", {}).get("git_commit") or "-"
        kinds = f"{x['weights']}/{x['data']}"
        lines.append([model, x["data_name"], name, verdict, kinds, ", ".join(scores), commit])

    for path in sorted(Path(folder).rglob("gate*.yaml")):
        x = load_yaml(path, "gate")
        scores = []
        for k, row in x["criteria"].items():
            if row["level"] != "should":
                mark = "*" if row.get("stand_in") else ""
                scores.append(f"{k}{mark} {number(row['score'])} {row['answer']}")
        add(x, x["model"], f"gate {x['gate']}", x["verdict"], scores)
    for path in sorted(Path(folder).rglob("screen.yaml")):
        x = load_yaml(path, "screen")
        scores = [f"{k} {number(m['weighted'])} {m['decision'] or m['kind']}" for k, m in x["models"].items()]
        add(x, x["first"] or "none", "screen", x["outcome"], scores)
    if not lines:
        refuse(f"{folder} holds no verdict (gate*.yaml, screen.yaml); run make gate1, or give another folder")
    return lines


def picture(folder, path):
    """gate1.png: originals, VAE, bridge; true and decoded boxes."""
    plt = pyplot()
    decoded, bridged = load_pt(folder / "probe.pt", RESULT), load_pt(folder / "adapt-latents.pt", RESULT)
    layer = load_yaml(folder / "probe.yaml", "probe")["bbox_iou_layer"]
    index = load_yaml(folder / "features" / "index.yaml", "extract")
    items = {i["id"]: i for i in load_items(index["data_path"])[0]}
    figure = plt.figure(figsize=(16, 10.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15, 1.0])
    grid = top.subplots(3, len(bridged["ids"]))
    shown = {"original": "original", "vae": "VAE (ceiling)", "bridge": "bridge"}
    for row, (key, label) in enumerate(shown.items()):
        for column in range(len(bridged["ids"])):
            grid[row, column].imshow(bridged[key][column].numpy())
            grid[row, column].set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(label, fontsize=11)
    top.suptitle("Test pictures through the frozen decoder", fontsize=11)
    columns = 8
    grid = bottom.subplots(2, columns)
    for k in range(min(2 * columns, len(decoded["ids"]))):
        axis, item = grid.flat[k], items[decoded["ids"][k]]
        axis.imshow(frames_of(item)[0].numpy())
        for box, colour in ((decoded["true_boxes"][k], "white"), (decoded["boxes"][k], "red")):
            x1, y1, x2, y2 = (box * box.new_tensor([item["width"], item["height"]] * 2)).tolist()
            axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="black", lw=3))
            axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.6))
    for axis in grid.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_axis_on() if axis.images else axis.set_axis_off()
    bottom.suptitle(f"Largest box: true (white), decoded from {layer} (red)", fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- screening: which of several models

# Weights (in percent) and thresholds are SELECTION's; the scale is ours. A component is 0.5 at its threshold
# and linear within 0..1: score / (2 threshold), or
# 1 - score / (2 threshold) where lower is better. So a weighted score of 0.5 is a model that just meets every
# threshold. The stand-in for LPIPS has a threshold of its
# own, STAND_IN. A score that is no better than its floor, or has a leak, earns nothing. A component that one
# vision-language model lacks is left out for all, and the
# other weights are scaled to sum to 1.
SELECTION = "evaluation plan, E-P4.7"
SCREEN = {
    "spatial_iou": {"weight": 40, "threshold": 0.50, "from": "probe"},
    "bbox_iou": {"weight": 20, "threshold": 0.40, "from": "probe"},
    # of the decoder that has one size for all models
    "lpips": {"weight": 15, "threshold": 0.40, "from": "probe", "better": "lower"},
    # seconds per item, over those of REFERENCE or else of the first VLM given
    "speed": {"weight": 15, "threshold": 3.0, "from": "time", "better": "lower"},
    "integration": {"weight": 10, "threshold": None, "from": "facts"},  # the share of CHECKS that hold
}
REFERENCE = "qwen2.5-vl-7b"
CHECKS = {
    "grid": "its tokens keep their place in the picture inside the language model",
    "library": "a maintained library's class reads it, no layout of ours",
    "clips": "it reads the frames of a clip together, not one by one",
    "licence": "its licence permits any use",
    "t4": "its weights fit the 15 GB of a T4 in half precision",
}
PERMISSIVE, TOGETHER = ("Apache 2.0", "MIT"), ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "vjepa2")
GROUNDED = ("kosmos-2", "florence-2", "florence-2-large", "grounding-dino")
# The decision matrix for one model, reconstructed from the thresholds: its rows, their names and 0.30, below
# which a hybrid is not worth it, are ours, not
# quoted from the plan. The first row that holds decides. a: the answers; near: spatial IoU's at MARGINAL.
MARGINAL = 0.30
MATRIX = (
    ("PROCEED", "every criterion passes: this model alone", lambda a, near: set(a.values()) == {"PASS"}),
    (
        "PROCEED WITH ADAPTER",
        "spatial IoU passes; boxes or LPIPS fail",
        lambda a, near: a["spatial_iou"] == "PASS" and "FAIL" in (a["bbox_iou"], a["lpips"]),
    ),
    (
        "PARTIAL",
        "spatial IoU passes; what does not pass is undecided, or too slow",
        lambda a, near: a["spatial_iou"] == "PASS",
    ),
    ("INCONCLUSIVE", "spatial IoU is undecided", lambda a, near: a["spatial_iou"] == "INCONCLUSIVE"),
    (
        "HYBRID",
        f"spatial IoU is below its threshold and above {MARGINAL}: a spatial encoder beside it",
        lambda a, near: near == "PASS",
    ),
    (
        "INCONCLUSIVE",
        f"spatial IoU fails; whether {MARGINAL} is reached is undecided",
        lambda a, near: near == "INCONCLUSIVE",
    ),
    ("FALLBACK", f"spatial IoU is below {MARGINAL}, or its floor is as good", lambda a, near: True),
)
DRAWS = 4000


def safetensors_header(path):
    """{tensor: dtype, shape, offsets} of a safetensors file: eight bytes of length, then JSON."""
    with open(path, "rb") as f:
        return json.loads(f.read(int.from_bytes(f.read(8), "little")))


def integration(index, entry):
    """{check: True, False or None (unknown)} of CHECKS, from a features index and what the registry, or a folder of weights, says of the model."""
    language = [row.get("grid", True) for p, row in index["points"].items() if p.startswith("language.")]
    billions, kind, path = entry.get("params"), entry.get("type"), entry.get("path", "")
    files = list((HERE / path).glob("*.safetensors")) if path else []
    if billions is None and files:
        headers = [safetensors_header(file) for file in files]
        tensors = [x for header in headers for name, x in header.items() if name != "__metadata__"]
        billions = sum(math.prod(x["shape"]) for x in tensors) / 1e9
    own = TINY in path  # trained here, under this repository's licence
    return {
        "grid": all(language) if language else None,
        "library": kind not in OWN_LAYOUT if kind else None,
        "clips": kind in TOGETHER if kind else None,
        "licence": own or (entry["licence"] in PERMISSIVE if "licence" in entry else None),
        "t4": None if billions is None else 2 * billions <= 15,
    }


def measured(folder):
    """What the stages wrote of one model in `folder`, for comparison with others; refused where the files are of different models."""
    folder = Path(folder)
    if not folder.is_dir():
        refuse(f"{folder} is not a folder; give gate.py screen the folders of the stages' YAML")
    probe = load_yaml(folder / "probe.yaml", "probe")
    index = load_yaml(folder / "features" / "index.yaml", "extract")
    name, entry = probe["model"], model_of(index)
    if "+" in name:
        kind = "hybrid"
    else:
        language = any(p.startswith("language.") for p in index["points"])
        kind = entry.get("kind") or ("vlm" if language else "encoder")
    if index["model"] != name:
        refuse(f"{folder}/features is of model {index['model']!r}, probe.yaml of {name!r}; they {MUST_MATCH}")
    found, scores, criteria = load_pt(folder / "probe.pt", RESULT), {}, {}
    if "scores" not in found:
        refuse(f"{folder}/probe.pt has no scores of single items; run probe.py again, on pictures with boxes")
    for key, x in found["scores"].items():
        short = key.removeprefix("decoder_")
        scores[short] = x.double().reshape(-1, len(found["ids"])).mean(0)  # mean over seeds
        criteria[short] = probe["criteria"][key]
        mean, there = scores[short].mean().item(), criteria[short]["score"]
        if abs(mean - there) > 1e-3:
            refuse(f"{folder}: {key} is {mean:.3f} in probe.pt, {there:.3f} in the YAML: different runs")
    return {
        "name": name,
        "folder": str(folder),
        "kind": kind,
        "weights": probe["weights"],
        "data": probe["data"],
        "data_name": probe["data_name"],
        "ids": index["ids"],
        "test": found["ids"],
        "sources": found["sources"],
        "scores": scores,
        "criteria": criteria,
        "all": probe["criteria"],
        "decoder": probe.get("oracle"),
        "seconds": index["seconds_per_item"],
        "checks": integration(index, entry),
    }


def sources_of(m):
    return dict(zip(m["test"], m["sources"], strict=True))


def together(models):
    """Refuse models that cannot be compared item by item, and put everybody's test items into the order of the first VLM, which is returned."""
    first, names = next((m for m in models if m["kind"] == "vlm"), models[0]), [m["name"] for m in models]
    if len(models) < 2:
        refuse(f"gate.py screen compares models, and {first['folder']} is one; give two folders or more")
    if first["kind"] != "vlm":
        refuse(f"gate.py screen is given no model of vision and language among {', '.join(names)}; add one")
    for m in models:
        what = next((k for k in ("data_name", "data", "decoder") if m[k] != first[k]), None)
        if names.count(m["name"]) > 1:
            refuse(f"gate.py screen is given {m['name']!r} more than once; give every model once")
        if what:
            refuse(f"{m['folder']}: {what} {m[what]!r} is not {first[what]!r}, as of {first['folder']}")
        if set(m["ids"]) != set(first["ids"]) or sources_of(m) != sources_of(first):
            refuse(f"{m['folder']} and {first['folder']} do not hold the same items in the same split")
        if set(m["scores"]) - set(first["scores"]):
            refuse(f"{m['folder']} and {first['folder']} have other LPIPS backbones; probe both again")
        order = [m["test"].index(i) for i in first["test"]]
        m["scores"] = {name: x[order] for name, x in m["scores"].items()}
    return first


def component(x, row):
    """A score, or draws of it, on the scale of SCREEN: 0.5 at the row's threshold, 0 where nothing is earned."""
    x = torch.as_tensor(x, dtype=torch.float64)
    if row["threshold"] is None:
        return x
    x = x / (2 * row["threshold"])
    return (1 - x if row["better"] == "lower" else x).clamp(0, 1) * row["earns"]


def rows_of(m, reference, thresholds, changed, weights):
    """{rows: {criterion: row with its component of the weighted score}, draws: {criterion: the component under each of weights [DRAWS, n test items]}, decision, why} of a model."""
    rows, draws = {}, {}
    for name, rule in SCREEN.items():
        source = SELECTION if name not in changed else "--set"
        record = None
        better = rule.get("better", "higher")
        if name == "speed":
            ratio, why = None, STREAMED
            if m["seconds"] and reference["seconds"]:
                ratio = m["seconds"] / reference["seconds"]
                why = f"{NO_INTERVAL}; {reference['name']} is 1"
            row = timed(ratio, why, thresholds[name], source)
        elif name == "integration":
            known = [v for v in m["checks"].values() if v is not None]
            row = {
                "threshold": None,
                "source": source,
                "score": sum(known) / len(known) if known else None,
                "answer": None,
                "reason": "the share of what holds",
                "checks": m["checks"],
            }
        else:
            row, record = held(m["criteria"], name, rule, thresholds[name], source)
            better = "higher" if row.get("stand_in") else better
        row |= {
            "better": better,
            "earns": not (record and (record.get("leak") or negligible(record))),
            "leak": (record or {}).get("leak"),
        }
        row["component"] = None if row["score"] is None else component(row["score"], row).item()
        if record:
            x = m["scores"]["lpips_random_backbone" if row.get("stand_in") else name]
            x = record["skill_of"](x) if row.get("stand_in") else x
            draws[name] = component((weights @ x) / weights.sum(1), row)
        elif row["score"] is not None:
            draws[name] = torch.full((len(weights),), row["component"], dtype=torch.float64)
        rows[name] = row
    near = judge(m["criteria"]["spatial_iou"], MARGINAL)["answer"]
    answers = {name: rows[name]["answer"] for name in ("spatial_iou", "bbox_iou", "lpips", "speed")}
    decision, reason = next((verdict, why) for verdict, why, holds in MATRIX if holds(answers, near))
    return {"rows": rows, "draws": draws, "decision": decision, "why": reason}


def excluded(m):
    """Why a model cannot be the VLM of choice, whatever its weighted score; None where it can."""
    spatial = m["rows"]["spatial_iou"]
    if m["kind"] != "vlm":
        return f"of kind {m['kind']}: judged as what stands in a hybrid, not as the VLM of choice"
    if leaks := [name for name, row in m["rows"].items() if row["leak"]]:
        return f"a leak in {', '.join(leaks)}: mend that first"
    if not spatial["gain_low"] > 0:
        return f"its spatial IoU may be no better than its floor ({spatial['floor_name']} {spatial['floor']:.3f})"
    return None


def fallbacks(models, judged):
    """The plan's ways out when no model passes, in its order: [{way, evidence, holds: True, False or None (not measured or undecided)}]."""

    def said(m):
        row = m["rows"]["spatial_iou"]
        return f"{m['name']} spatial IoU {row['score']:.3f} [{row['low']:.3f}, {row['high']:.3f}] {row['answer']}"

    def evidence(which):
        answers = [m["rows"]["spatial_iou"]["answer"] for m in which]
        holds = None
        if "PASS" in answers:
            holds = True
        elif set(answers) == {"FAIL"}:
            holds = False
        words = "; ".join(said(m) for m in which) or "not measured: none is among the models"
        return {"evidence": words, "holds": holds}

    grounded = [m for m in models if m["name"] in GROUNDED]
    marginal = max(judged, key=lambda m: m["rows"]["spatial_iou"]["score"], default=None)
    marginal_evidence = "no model is above its floor"
    if marginal:
        misses = []
        for name, row in marginal["rows"].items():
            if row["score"] is not None and row["answer"] == "FAIL":
                misses.append(f"{name} by {abs(row['score'] - row['threshold']):.3f}")
        marginal_evidence = f"{marginal['name']} misses {', '.join(misses) or 'nothing for certain'}"
    return [
        {"way": "hybrid", **evidence([m for m in models if m["kind"] != "vlm" and m not in grounded])},
        {"way": "grounding-specialised models (Kosmos-2, Florence-2, Grounding DINO)", **evidence(grounded)},
        {"way": "fine-tuned encoder", "evidence": "not measured", "holds": None},
        {"way": "accept marginal", "evidence": marginal_evidence, "holds": None if marginal else False},
    ]


def screen(args, thresholds):
    """Compare models on the same items. Returns the result to be saved: `models` with their ranks, `criteria` model by model, `comparisons` of the first with every other."""
    models = [measured(folder) for folder in args.results]
    lead = together(models)
    sources, generator = lead["sources"], torch.Generator().manual_seed(args.seed)
    n = len(set(sources))
    # one set of resamples for all models: they are paired
    weights = resampled(n, DRAWS, generator)[:, clusters(sources)]
    reference = next((m for m in models if m["name"] == REFERENCE), lead)
    for m in models:
        m |= rows_of(m, reference, thresholds, args.changed, weights)
        m["excluded"] = excluded(m)
        if m["kind"] != "vlm":
            m["decision"] = m["why"] = None  # the matrix is about a model alone
    vlms = [m for m in models if m["kind"] == "vlm"]
    left_out = {name: [m["name"] for m in vlms if m["rows"][name]["score"] is None] for name in SCREEN}
    left_out = {name: who for name, who in left_out.items() if who}

    def weighted(parts, names):
        if any(parts.get(k) is None for k in names):
            return None
        return sum(SCREEN[k]["weight"] * parts[k] for k in names) / sum(SCREEN[k]["weight"] for k in names)

    def bounds(value, draws, tail=0.025):
        ends = draws.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return widened(value, *ends, n, tail)

    names = [k for k in SCREEN if k not in left_out]
    shares = {k: SCREEN[k]["weight"] / sum(SCREEN[j]["weight"] for j in names) for k in names}
    for m in models:
        parts = {k: row["component"] for k, row in m["rows"].items()}
        m["weighted"], m["weighted_draws"] = weighted(parts, names), weighted(m["draws"], names)
        m["low"] = m["high"] = m["rank"] = m["first_probability"] = None
        if m["weighted"] is not None:
            m["low"], m["high"] = bounds(m["weighted"], m["weighted_draws"])

    # Of those that can be chosen, where any passes spatial IoU, the others are out: weights do not buy what
    # the first criterion denies.
    able = [m for m in vlms if not m["excluded"]]
    passing = [m for m in able if m["rows"]["spatial_iou"]["answer"] == "PASS"]
    for m in able if passing else []:
        m["excluded"] = None if m in passing else "it does not pass spatial IoU, and others do"
    pool = sorted(passing or able, key=lambda m: -m["weighted"])
    comparisons = {}
    if pool:
        every = torch.stack([m["weighted_draws"] for m in pool])
        best = (every >= every.max(0).values - 1e-9).double()
        for rank, (m, share) in enumerate(zip(pool, (best / best.sum(0)).mean(1).tolist(), strict=True), 1):
            # alone, it is first without having beaten any
            m |= {"rank": rank, "first_probability": share if len(pool) > 1 else None}
        # The first was chosen by these very scores, so its difference from each of the others is held at 1 -
        # 0.05 / (others) (Bonferroni). Speed has
        # no interval and must not decide alone: the difference has to exclude zero without it too.
        first, tail = pool[0], 0.025 / max(len(pool) - 1, 1)
        for other in pool[1:]:
            row = {}
            gains = {k: first["rows"][k]["component"] - other["rows"][k]["component"] for k in names}
            drawn = {k: first["draws"][k] - other["draws"][k] for k in names}
            for key, using in (("", names), ("_without_speed", [k for k in names if k != "speed"])):
                value = weighted(gains, using)
                low, high = bounds(value, weighted(drawn, using), tail)
                row |= {f"difference{key}": value, f"low{key}": low, f"high{key}": high}
            row["level"] = 1 - 2 * tail
            row["told_apart"] = min(row["low"], row["low_without_speed"]) > 0
            for k in names:
                row[f"by_{k}"] = shares[k] * gains[k]
            comparisons[other["name"]] = row
    ties = [name for name, row in comparisons.items() if not row["told_apart"]]

    decisions = [m["decision"] for m in able]
    if "PROCEED" in decisions:
        outcome = "SUCCESS"
    elif passing:  # speed does not count: the reference has it by definition
        partial = any(
            "PASS" in (m["rows"]["bbox_iou"]["answer"], m["rows"]["lpips"]["answer"]) for m in passing
        )
        outcome = "PARTIAL SUCCESS" if partial else "SPATIAL ONLY"
    elif all(m["rows"]["spatial_iou"]["answer"] == "FAIL" for m in vlms):
        outcome = "FAILURE"
    else:
        outcome = "INCONCLUSIVE"
    ways = fallbacks(models, able)
    fallback = next((w for holds in (True, None) for w in ways if w["holds"] is holds), ways[-1])
    first = pool[0] if pool else None
    if passing:
        tie = f"a tie of {', '.join([first['name'], *ties])}: none can be told from the first"
        advice = f"{tie if ties else first['name']}; {first['decision']}, {first['why']}"
        if first["decision"] != "PROCEED" and outcome == "SUCCESS":
            better = ", ".join(m["name"] for m in passing if m["decision"] == "PROCEED")
            advice += f"; but {better} passes every criterion"
    elif outcome == "FAILURE":
        advice = f"no model alone; fallback: {fallback['way']} ({fallback['evidence']})"
    else:
        advice = "none yet: no model that can be chosen passes spatial IoU, and not all fail"
    stood_in = any(row.get("stand_in") for m in models for row in m["rows"].values())
    kinds_of_weights = " and ".join(sorted({m["weights"] for m in models}))
    kinds = f"{kinds_of_weights} weights, {lead['data']} data{'; LPIPS by a stand-in' if stood_in else ''}"
    keep = (
        "kind",
        "weights",
        "weighted",
        "low",
        "high",
        "rank",
        "first_probability",
        "decision",
        "why",
        "excluded",
    )
    criteria, figures = {}, {}
    for m in models:
        criteria[m["name"]] = {k: {x: y for x, y in r.items() if x != "earns"} for k, r in m["rows"].items()}
        earlier = [k for k, rule in GATE1.items() if "earlier" in rule and k in m["all"]]
        figures[m["name"]] = {k: m["all"][k]["score"] for k in earlier}
    return {
        "stage": "screen",
        "outcome": outcome,
        "headline": f"{outcome} ({kinds}): {advice}",
        "first": first and first["name"],
        "second": pool[1]["name"] if len(pool) > 1 else None,
        "tie": bool(ties),
        "confidence": first and first["first_probability"],
        "fallback": fallback["way"] if outcome == "FAILURE" else None,
        "instrument_check": any(m["weights"] != "pretrained" for m in models),
        "weights": kinds_of_weights,
        "data": lead["data"],
        "data_name": lead["data_name"],
        "decoder": lead["decoder"],
        "speed_reference": reference["name"],
        "items": len(sources),
        "sources": n,
        "overridden": args.changed,
        "weights_percent": {k: share * 100 for k, share in shares.items()},
        "left_out": left_out,
        "models": {m["name"]: {k: m[k] for k in keep} for m in models},
        "comparisons": comparisons,
        "fallbacks": ways,
        "criteria": criteria,
        "figures": figures,
    }


def number(x):
    if x is None:
        return "-"
    return f"{x:.3f}" if isinstance(x, float) else str(x)


def spoken(row):
    """A criterion's row in a cell: score [interval] floor, answer."""
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
    floor = f", floor {row['floor']:.3f} {row['floor_name']}" if "floor" in row else ""
    return number(row["score"]) + interval + floor + (f": {row['answer']}" if row["answer"] else "")


def table(head, rows):
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in [head, ["---"] * len(head), *rows])


def standing(m):
    """A model's weighted score, rank and chance in words."""
    return "-" if m["weighted"] is None else f"{m['weighted']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"


def caution(result):
    """The first lines of both pages where the weights are not published ones."""
    return (
        f"**An instrument check, not a finding about large models**: the weights are {result['weights']}, and show only that the instrument runs and what it says.\n\n"
        * result["instrument_check"]
    )


def summary(result):
    """phase1-summary.md: every model and criterion, the earlier study's figures beside ours."""
    models = result["models"]
    criteria = result["criteria"]
    stood_in = any(row["lpips"].get("stand_in") for row in result["criteria"].values())
    any_row = next(rows for name, rows in criteria.items() if models[name]["kind"] == "vlm")
    mark = {True: "yes", False: "no", None: "unknown"}
    share = {
        k: f"{result['weights_percent'][k]:.0f}%" if k in result["weights_percent"] else "left out"
        for k in SCREEN
    }
    limit = {
        k: ""
        if row["threshold"] is None
        else f", {'<' if row['better'] == 'lower' else '>'} {row['threshold']:g}"
        for k, row in any_row.items()
    }
    heads = [f"{k}{'*' if any_row[k].get('stand_in') else ''} ({share[k]}{limit[k]})" for k in SCREEN]
    rows = [
        [
            name,
            m["kind"],
            *(spoken(criteria[name][k]) for k in SCREEN),
            standing(m),
            m["rank"] or "-",
            number(m["first_probability"]),
            m["decision"] or "-",
        ]
        for name, m in models.items()
    ]
    text = f"# Phase 1 screening: {result['outcome']}\n\n{result['headline']}\n\n" + caution(result)
    text += f"{result['items']} test items of {result['sources']} sources of {result['data_name']}, decoder {result['decoder']}; intervals 95%, of resampled sources.\n\n"
    text += (
        table(["model", "kind", *heads, "weighted score", "rank", "chance of being first", "decision"], rows)
        + "\n"
    )
    text += (
        "* LPIPS has no published backbone here: skill between the mean image (0) and what the same decoder makes of the autoencoder's own latents (1).\n"
        * stood_in
    )
    text += f"* Speed is seconds per item over those of {result['speed_reference']}: two medians of one run each, without an interval.\n"
    text += "".join(
        f"* {k} is left out of the weighted score of all, for it is unknown of {', '.join(who)}; the other weights make up 100%.\n"
        for k, who in result["left_out"].items()
    )
    text += "".join(
        f"* {name} has no rank: {m['excluded']}.\n" for name, m in models.items() if m["excluded"]
    )
    text += f"* A component is 0.5 at its threshold and linear, within 0 and 1; what a floor scores as well earns nothing. Weights and thresholds: {SELECTION}; the scale is ours.\n"
    text += "\n## Integration\n\n" + table(
        ["check", *models],
        [
            [f"{CHECKS[c]} ({c})", *(mark[criteria[m]["integration"]["checks"][c]] for m in models)]
            for c in CHECKS
        ],
    )
    earlier = sorted({who for rule in GATE1.values() for who in rule.get("earlier", {})}, reverse=True)
    text += "\n## Beside the earlier study\n\nIts figures are of other data and instruments; they stand here for comparison and judge nothing.\n\n"
    shown = [k for k, rule in GATE1.items() if rule["from"] in ("probe", "adapt")]
    text += table(
        ["", *(f"{who} (earlier study)" for who in earlier), *models],
        [
            [
                k,
                *(number(GATE1[k]["earlier"].get(who)) for who in earlier),
                *(number(result["figures"][m].get(k)) for m in models),
            ]
            for k in shown
        ],
    )
    text += "\n## The decision matrix\n\n" + table(
        ["decision", "when (the first row that holds)", "models"],
        [
            [verdict, why, ", ".join(n for n, m in models.items() if m["why"] == why) or "-"]
            for verdict, why, _ in MATRIX
        ],
    )
    return text


def recommendation(result):
    """final-recommendation.md: the top two, what to do, how sure, why, what would change it, what nobody measured."""
    models, first, second = result["models"], result["first"], result["second"]
    text = f"# Recommendation: {result['headline'].partition(': ')[2]}\n\n" + caution(result)
    text += f"Outcome {result['outcome']}: {result['weights']} weights, {result['data']} data.\n\n"
    if not first:
        text += "No model can be ranked.\n\n" + "".join(
            f"* {name}: {m['excluded']}\n" for name, m in models.items()
        )
    else:
        top = [n for n in (first, second) if n]
        text += "## Top two\n\n" + table(
            ["rank", "model", "weighted score", "chance of being first", "decision"],
            [
                [
                    models[n]["rank"],
                    n,
                    standing(models[n]),
                    number(models[n]["first_probability"]),
                    f"{models[n]['decision']}: {models[n]['why']}",
                ]
                for n in top
            ],
        )
        text += "\n## Confidence\n\n"
        for name, row in result["comparisons"].items():
            text += (
                f"* {first} over {name}: {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}], without speed {row['difference_without_speed']:+.4f} "
                f"[{row['low_without_speed']:+.4f}, {row['high_without_speed']:+.4f}]: {'told apart' if row['told_apart'] else '**a tie**'}. "
                f"By criterion: {', '.join(f'{k[3:]} {v:+.4f}' for k, v in row.items() if k.startswith('by_'))}.\n"
            )
        text += (
            ""
            if result["comparisons"]
            else f"* {first} is the only one that can be chosen: nothing to compare.\n"
        )
        if result["comparisons"]:
            text += (
                f"\nDifferences are paired on the same items; since the first was chosen by these scores, each interval is at {next(iter(result['comparisons'].values()))['level']:.4g} "
                "(Bonferroni over the others). A winner's excludes zero with and without speed, which has no interval of its own.\n"
            )
    text += "\n## What would change it\n\n"
    for name, row in result["comparisons"].items():
        if not row["told_apart"]:
            half = (row["high_without_speed"] - row["low_without_speed"]) / 2
            gap = row["difference_without_speed"]
            words = (
                f"about {int(result['items'] * (half / gap) ** 2) + 1} test items would tell it from {first}, if the scores stay"
                if gap > half / 100
                else f"without speed it is no worse than {first}, which no number of items turns into a winner; choose by cost"
            )
            text += f"* {name}: {words}.\n"
    open_ones = [
        (name, k, row)
        for name, rows in result["criteria"].items()
        if models[name]["kind"] == "vlm"
        for k, row in rows.items()
        if row["answer"] not in ("PASS", None)
    ]
    text += "".join(
        f"* {name}, {k} {row['answer']}: {row['reason']}"
        + (f" (n = {row['n_needed']} would decide)" if row.get("n_needed") else "")
        + "\n"
        for name, k, row in open_ones
    )
    text += (
        ""
        if result["tie"] or open_ones
        else "* other data, or another threshold (`--set`); nothing is undecided here.\n"
    )
    if result["outcome"] == "FAILURE":
        text += "\n## Fallbacks, in the plan's order\n\n" + table(
            ["way", "holds", "evidence"],
            [
                [w["way"], {True: "yes", False: "no", None: "open"}[w["holds"]], w["evidence"]]
                for w in result["fallbacks"]
            ],
        )
    unknown = [
        f"{name}: {c}"
        for name, rows in result["criteria"].items()
        for c, v in rows["integration"]["checks"].items()
        if v is None and models[name]["kind"] == "vlm"
    ]
    text += "\n## Not measured\n\n* An interval for speed: seconds are medians of one run each, on whatever else the machine did.\n* What the choice of layer, made on val, adds to the uncertainty.\n"
    text += "".join(
        f"* {k} of {', '.join(who)}; left out for all.\n" for k, who in result["left_out"].items()
    ) + (f"* Integration, unknown: {', '.join(unknown)}.\n" if unknown else "")
    return text + (
        "* Published weights: none of these is a model that one would deploy.\n"
        if result["instrument_check"]
        else ""
    )


def show_screen(result):
    """The comparison as a table that a person reads, then `key value`."""
    print(
        f"\nScreening on {result['data_name']}, decoder {result['decoder']}, {result['items']} test items\n"
    )
    lpips = "LPIPS*" if "stand-in" in result["headline"] else "LPIPS"
    head = ("spatial IoU", "box IoU", lpips)
    print(
        f"{'model':24s} {' '.join(f'{x:28s}' for x in head)} {'speed':12s} {'integr.':7s} {'weighted':24s} rank decision"
    )
    for name, m in result["models"].items():
        rows = result["criteria"][name]
        cells = []
        for k in ("spatial_iou", "bbox_iou", "lpips"):
            interval = f" [{rows[k]['low']:.2f}, {rows[k]['high']:.2f}]" if "low" in rows[k] else ""
            cells.append(f"{number(rows[k]['score'])}{interval} {rows[k]['answer']}")
        speed = f"{number(rows['speed']['score'])} {rows['speed']['answer']}"
        print(
            f"{name:24s} {' '.join(f'{x:28s}' for x in cells)} {speed:12s} {number(rows['integration']['score']):7s} "
            f"{standing(m):24s} {m['rank'] or '-':<4} {m['decision'] or m['kind']}"
        )
    print()
    say(result)


def save_screen(result, folder):
    """{model}-spatial.yaml, phase1-summary.md, final-recommendation.md and, last, screen.yaml."""
    for name, m in result["models"].items():
        rows = result["criteria"][name]
        head = {}
        for k in SCREEN:
            for part in ("score", "low", "high", "floor", "answer", "stand_in"):
                if part in rows[k]:
                    head[k if part == "score" else f"{k}_{part}"] = rows[k][part]
        save_yaml(
            folder / f"{name}-spatial.yaml",
            {
                "stage": "screen",
                "model": name,
                **head,
                "weighted": m["weighted"],
                "weighted_low": m["low"],
                "weighted_high": m["high"],
                **{
                    k: m[k]
                    for k in ("rank", "first_probability", "decision", "why", "excluded", "kind", "weights")
                },
                **{k: result[k] for k in ("data", "data_name", "decoder")},
                "criteria": rows,
                "run": result["run"],
            },
        )
    save_text(folder / "phase1-summary.md", summary(result))
    save_text(folder / "final-recommendation.md", recommendation(result))
    save_yaml(folder / "screen.yaml", result)


GATES = {1: (gate1, GATE1), 2: (gate2, GATE2), 3: (gate3, GATE3), 4: (gate4, GATE4)}


def overrides(text, rules=GATE1):
    """{criterion: threshold} from `name=value ...`; a refusal for an unknown name or a value that is no number."""
    changed = {}
    for pair in text.replace(",", " ").split():
        name, _, value = pair.partition("=")
        if rules.get(name, {}).get("threshold") is None:
            names = ", ".join(k for k, r in rules.items() if r["threshold"] is not None)
            refuse(f"--set {pair!r} names no criterion; known: {names}")
        try:
            changed[name] = float(value)
            if not math.isfinite(changed[name]):
                raise ValueError
        except ValueError:
            refuse(f"--set {pair!r} has no number after the equals sign; write {name}=0.5")
    return changed


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "judge": "hold a gate's criteria against their thresholds",
            "screen": "compare several models on the same data",
            "show": "print a verdict that is there",
            "table": "a line for every verdict below a folder",
        },
    )
    for name in ("judge", "screen"):
        jobs[name].add_argument("--set", default="", help="thresholds to override: name=value,name=value")
    add = jobs["judge"].add_argument
    add("gate", type=int, choices=GATES)
    add("--results", default="results/tiny/shapes", help="the folder of the stages' YAML")
    add("--motion", help="the folder of the same model's results on clips")
    add("--encoder", help="a spatial encoder's results on the same data")
    add("--reference", help="Qwen2.5-VL's results on the same data, for the inference ratio")
    add("--out", help="default: gate<N>.yaml in --results")
    add = jobs["screen"].add_argument
    add("results", nargs="+", metavar="FOLDER", help="the models' results on the same data")
    add("--out", default="results/screen", help="a folder")
    jobs["show"].add_argument("verdict", metavar="YAML", help="gate<N>.yaml or screen.yaml")
    jobs["table"].add_argument("folder", metavar="FOLDER")
    for name in ("judge", "screen", "show"):
        jobs[name].add_argument("--strict", action="store_true", help="exit with 3 unless PROCEED or SUCCESS")
    return p.parse_args(argv)


def run_judge(args, started):
    judged, rules = GATES[args.gate]
    args.changed = overrides(args.set, rules)
    if not Path(args.results).is_dir():
        refuse(f"{args.results} is not a folder; give --results, where the stages wrote their YAML")
    out = Path(args.out or Path(args.results) / f"gate{args.gate}.yaml")
    check_writable(out)
    result = plain(judged(args, {n: args.changed.get(n, r["threshold"]) for n, r in rules.items()}))
    result["run"] = run_info(args, started, script="gate.py")
    save_yaml(out, result)
    if args.gate == 1:  # of the others every stage draws its own
        picture(Path(args.results), out.with_suffix(".png"))
    return result


def run_screen(args, started):
    args.changed, out = overrides(args.set, SCREEN), Path(args.out)
    check_writable(out / "screen.yaml")
    thresholds = {n: args.changed.get(n, r["threshold"]) for n, r in SCREEN.items()}
    result = plain(screen(args, thresholds) | {"run": run_info(args, started, script="gate.py")})
    save_screen(result, out)
    return result


def run_table(args):
    lines = overview(args.folder)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)))
    return lines


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "table":
        return run_table(args)
    if args.mode == "judge":
        result = run_judge(args, started)
    elif args.mode == "screen":
        result = run_screen(args, started)
    else:
        result = load_yaml(args.verdict, "screen" if Path(args.verdict).name == "screen.yaml" else "gate")
    if result["stage"] == "gate":
        show(result)
    else:
        show_screen(result)
    if args.strict and result.get("verdict", result.get("outcome")) not in ("PROCEED", "SUCCESS"):
        raise SystemExit(3)
    return result


if __name__ == "__main__":
    main()
