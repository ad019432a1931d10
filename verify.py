"""Stage 6. The verdicts: every criterion held against its threshold, and what follows.

    python verify.py --gate 1 --results results/tiny/shapes --motion results/tiny/moving --encoder results/tiny-dinov2/shapes
    python verify.py --gate 2 --results results/tiny/shapes --motion results/tiny/moving
    python verify.py --gate 3 --results results/tiny/future
    python verify.py --gate 4 --results results/tiny/future
    python verify.py --plant data/future --vae tiny-vae --past 8 --films results/tiny/future/films --out results/tiny/future/planted
    python verify.py --rollouts results/tiny/future/planted --latents results/tiny/future/planted-features/tiny --out results/tiny/future/verify.yaml
    python verify.py --print results/tiny/shapes/gate1.yaml
    python verify.py --table results
    python verify.py --screen results/tiny/shapes results/tiny-semantic/shapes results/tiny-dinov2/shapes --out results/screen

Reads the YAML that the stages before it wrote. Writes gate<N>.yaml, and gate1.png: scores per layer with their intervals and floors;
originals, VAE and bridge reconstructions; true and decoded boxes. A criterion is

    PASS           when its interval clears the threshold and its paired gain over the best floor excludes zero
    FAIL           when its interval lies on the wrong side, or the gain over the floor can be no more than a tenth of the room above it
    INCONCLUSIVE   otherwise, with the number of items that would decide; or, whatever the score, where a control that cannot know knows: a leak

`plain_pass` is the bare comparison of an earlier plan, recorded beside it. `--set bbox_iou=0.5` overrides a threshold and is recorded.

--plant writes predictions whose rightness is known, as a data folder that extract.py and explain.py take: for every val and test clip a film of what really happened, films with planted errors
(PLANTED) and, with --films, those that a video model made. Each begins with the last frame seen.
--rollouts asks which verifiers tell right predictions from wrong ones. A verifier is given the prediction and the outcome, as pixels, as latents (--latents) or in words (--words). verify.yaml
holds the AUROC of each on test films, with intervals over sources, by kind of error and by horizon (the best of each family is chosen on val); the risk-coverage curve; split-conformal
acceptance; the same for the video model's films; and with --futures, what can be told without the outcome. verify.png shows it.

--screen asks which of several models: the same answers on every model's test items, and a weighted score (SCREEN, MATRIX) whose resamples all models share.
Writes in --out <model>-spatial.yaml, phase1-summary.md, final-recommendation.md, screen.png and screen.yaml; `told_apart` says whether the first is more than tied.
"""

import functools
import hashlib
import inspect
import json
import math
import random
import time
import types
from pathlib import Path

import torch
from tqdm import tqdm

from common import (
    BASELINES,
    FEATURES,
    HERE,
    HORIZONS,
    OWN_LAYOUT,
    RESULT,
    TINY,
    bootstrap,
    check_writable,
    choose_device,
    clips_of,
    clusters,
    decode_films,
    digest,
    encode_films,
    find_model,
    fingerprint,
    frames_of,
    grey_of,
    heading,
    load_features,
    load_items,
    load_lpips,
    load_pt,
    load_video_vae,
    load_yaml,
    model_of,
    parser,
    plain,
    pyplot,
    refuse,
    resampled,
    run_info,
    save_text,
    save_yaml,
    say,
    split_of,
    ssim,
    whereabouts,
    widened,
    windows,
    with_bounds,
    write_items,
)

# What each gate asks: must or should, the side that is good, the threshold, where the score is read.
# Thresholds are those of the evaluation plan
# that this project grew from; figures of its earlier study stand beside ours for comparison and judge
# nothing.
PLAN = "evaluation plan, phase 1"
FROZEN = "a picture that stands still would score as well: decoded_closeness does not tell the film from that"
GATE1 = {
    "spatial_iou": {
        "level": "must",
        "threshold": 0.60,
        "from": "probe",
        "earlier": {"qwen2.5-vl-7b": 0.559, "dinov2-l hybrid": 0.837},
    },
    "bbox_iou": {"level": "must", "threshold": 0.50, "from": "probe", "earlier": {"qwen2.5-vl-7b": 0.104}},
    "map50": {
        "level": "must",
        "threshold": 0.20,
        "from": "probe",
        "earlier": {"qwen2.5-vl-7b": 0.001, "dinov2-l hybrid": 0.182},
    },
    "lpips": {
        "level": "must",
        "threshold": 0.35,
        "from": "adapt",
        "better": "lower",
        "earlier": {"qwen2.5-vl-7b": 0.264, "dinov2-l hybrid": 0.162},
    },
    "ssim": {"level": "should", "threshold": 0.75, "from": "adapt", "earlier": {"qwen2.5-vl-7b": 0.943}},
    "edge_f1": {"level": "should", "threshold": 0.60, "from": "adapt", "earlier": {"qwen2.5-vl-7b": 0.351}},
    "cka": {"level": "should", "threshold": 0.40, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.687}},
    "linear_r2": {"level": "should", "threshold": 0.50, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.510}},
    "spearman": {
        "level": "should",
        "threshold": 0.60,
        "from": "align",
        "accepted": 0.50,
        "earlier": {"qwen2.5-vl-7b": 0.684},
    },
    "recall10": {"level": "should", "threshold": 0.20, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.258}},
    "direction_accuracy": {"level": "should", "threshold": 0.80, "from": "motion"},
    "latency_overhead": {
        "level": "should",
        "threshold": 0.25,
        "from": "time",
        "better": "lower",
        "earlier": {"dinov2-l hybrid": 0.319},
    },
    "inference_ratio": {"level": "should", "threshold": 2.0, "from": "time", "better": "lower"},
}
GATE2 = {
    "parameter_efficiency": {
        "level": "must",
        "threshold": 0.90,
        "from": "scaling",
        "earlier": {"LPIPS of 100M / of 10M": 0.346 / 0.289},
    },
    "lpips": {
        "level": "must",
        "threshold": 0.35,
        "from": "scaling",
        "better": "lower",
        "earlier": {"10M": 0.289, "100M": 0.346, "query adapter": 0.212},
    },
    "temporal_consistency": {
        "level": "should",
        "threshold": 0.70,
        "from": "coherence",
        "accepted": 0.69,
        "earlier": {"first frame only": 0.690, "all frames": 0.681, "conditioned": 0.588, "baseline": 0.686},
    },
    # ours: a picture that stands still scores 0
    "decoded_closeness": {"level": "should", "threshold": 0.50, "from": "coherence"},
    "semantic_accuracy": {"level": "should", "threshold": 0.65, "from": "films"},
}
# Gate 3 passes by either: what predicts in latent space, or the pair of the pivot. `gain`: what is held
# against the threshold is the paired gain over the best floor.
GATE3 = {
    "prediction": {
        "level": "either",
        "threshold": 0.0,
        "from": "latents",
        "gain": True,
        "earlier": {"cosine of predictions": "0.930-0.941", "of the copy": "0.975-0.979"},
    },
    "retention": {
        "level": "or",
        "threshold": 0.90,
        "from": "describe",
        "earlier": {"action recall on generated / on real clips": 0.70 / 0.75},
    },
    "temporal_ratio": {"level": "or", "threshold": 0.80, "from": "continue", "earlier": {"LTX-Video": 0.89}},
    # ours: the film is nearer than the copy where something moves; motion alone could be any
    "continuation": {"level": "or", "threshold": 0.0, "from": "continue"},
    "beyond_extrapolation": {"level": "should", "threshold": 0.0, "from": "latents", "gain": True},
    "longest_horizon": {"level": "should", "threshold": 0.0, "from": "latents", "gain": True},
    "most_motion": {"level": "should", "threshold": 0.0, "from": "latents", "gain": True},
}
# Gate 4's second must is a paired gain over the best verifier that reads latents.
GATE4 = {
    "pixel_auroc": {"level": "must", "threshold": 0.80, "from": "verify"},
    "pixel_over_latent": {"level": "must", "threshold": 0.0, "from": "verify", "gain": True},
    # what accepting in the verifier's order saves beside a random order, on the mean of all coverages
    "selective_risk": {"level": "should", "threshold": 0.0, "from": "verify"},
    # ours, as are the next two: the error that was promised, of a bound from val, on test
    "conformal_error": {"level": "should", "threshold": 0.10, "from": "verify", "better": "lower"},
    # of films that the video model made, instead of planted ones
    "made_auroc": {"level": "should", "threshold": 0.80, "from": "verify"},
    "made_over_latent": {"level": "should", "threshold": 0.0, "from": "verify", "gain": True},
}
SPATIAL = ("spatial_iou", "bbox_iou", "map50")
# skill between the mean image and the VAE that stands in for an LPIPS threshold when the backbone is not the
# published one
STAND_IN = 0.5
NO_INTERVAL = "a ratio of two medians, no interval"
STREAMED = "features were streamed layer by layer, which times no single pass"
ROUNDING = 1e-3  # a gain that the printed table rounds away; it matters where a floor reaches the ceiling


def negligible(record):
    """Can the gain over the best floor be no more than a tenth of the room above it?"""
    return record["gain_high"] < max(0.1 * abs(record["ceiling"] - record["floor"]), ROUNDING)


def judge(record, threshold, better="higher"):
    """Three answers. record: score, low, high, gain, gain_low, gain_high, floor, ceiling, n. -> {answer, plain_pass, reason, n_needed}."""
    sign = 1 if better == "higher" else -1
    if not all(
        math.isfinite(record[k])
        for k in ("score", "low", "high", "gain_low", "gain_high", "floor", "ceiling")
    ):
        return {
            "answer": "INCONCLUSIVE",
            "plain_pass": False,
            "reason": "the score is not a number, or its interval has no bounds (a single source has none)",
        }
    near, far = sorted((sign * (record["low"] - threshold), sign * (record["high"] - threshold)))
    above_floor = record["gain_low"] > 0
    answer = {"answer": "INCONCLUSIVE", "plain_pass": sign * (record["score"] - threshold) > 0}
    if record.get("leak"):
        return answer | {
            "reason": f"leak: the control {record['leak']!r} scores {record['floors'][record['leak']]:.3f}, which it cannot without the answer; mend that first"
        }
    if far < 0:
        return answer | {"answer": "FAIL", "reason": "the interval lies on the wrong side of the threshold"}
    # asked first, or enough items would turn the same small gain from a failure into a pass
    if negligible(record):
        return answer | {
            "answer": "FAIL",
            "reason": f"no more than a tenth of the room above the floor ({record['floor_name']}) can be there",
        }
    if near > 0 and above_floor:
        return answer | {
            "answer": "PASS",
            "reason": "the interval clears the threshold and the gain over the best floor excludes zero",
        }
    # Half-widths shrink with the square root of n: how many items until both questions are settled, if the
    # scores stay as they are.
    needs = []
    if near <= 0:
        distance = abs(record["score"] - threshold)
        needs.append(((record["high"] - record["low"]) / 2 / distance) ** 2 if distance else float("inf"))
    if not above_floor:
        needs.append(
            ((record["gain_high"] - record["gain_low"]) / 2 / abs(record["gain"])) ** 2
            if record["gain"]
            else float("inf")
        )
    factor = max(needs)
    doubt = " and ".join(
        ["the interval spans the threshold"] * (near <= 0)
        + [f"the gain over {record['floor_name']} may be zero"] * (not above_floor)
    )
    return answer | {"reason": doubt, "n_needed": int(record["n"] * factor) + 1 if factor < 1e4 else None}


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
        row = {
            "threshold": STAND_IN,
            "source": "skill between the mean image and the VAE: LPIPS has no published backbone here",
            "stand_in": True,
        }
    if record is None:
        return row | {"score": None, "answer": "INCONCLUSIVE", "plain_pass": None, "reason": missing}, None
    keep = (
        "score",
        "low",
        "high",
        "floor",
        "floor_name",
        "ceiling",
        "gain",
        "gain_low",
        "gain_high",
        "p",
        "skill",
        "layer",
        "n",
        "options_searched",
    )
    row |= {k: record[k] for k in keep if k in record} | judge(record, row["threshold"], better)
    if rule.get("accepted") and row["answer"] != "PASS":
        row |= {
            "accepted": judge(record, rule["accepted"], better)["answer"],
            "accepted_threshold": rule["accepted"],
        }
    return row, record


def timed(score, why, threshold, source):
    """The row of a ratio of two medians, which has no interval; score None: not measured."""
    row = {"threshold": threshold, "source": source, "score": score}
    if score is None:
        return row | {"answer": "INCONCLUSIVE", "plain_pass": None, "reason": why}
    return row | {
        "answer": "PASS" if score < threshold else "FAIL",
        "plain_pass": score < threshold,
        "reason": why,
    }


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
    row = (
        timed(*criteria[name], threshold, source)
        if rule["from"] == "time"
        else held(criteria, name, rule, threshold, source)[0]
    )
    return {"level": rule["level"]} | row | ({"earlier_study": rule["earlier"]} if "earlier" in rule else {})


def undecided(judged, names):
    """The verdict while the criteria `names` are open: (verdict, why)."""
    return "INCONCLUSIVE", f"investigate {', '.join(names)}: {'; '.join(judged[k]['reason'] for k in names)}"


def gate_head(gate, verdict, why, about, judged, beside=""):
    """The first lines of gate<N>.yaml. The headline says of what kind the weights and the data are; beside: what it says of other weights."""
    kinds = f"{about['weights']} weights{beside}, {about['data']} data" + (
        "; LPIPS by a stand-in" if judged.get("lpips", {}).get("stand_in") else ""
    )
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
        if repaired:
            return (
                "PIVOT",
                f"to the hybrid: the model fails {', '.join(lost)}, of which a spatial encoder beside it holds {', '.join(repaired)}",
            )
        if not any(k in encoder for k in lost):
            return (
                "PIVOT",
                f"to the hybrid, as the plan's table says, untested: the model fails {', '.join(lost)}; run again with --encoder",
            )
        if all(encoder.get(k, {}).get("answer") == "FAIL" for k in lost):
            return "STOP", f"the model fails {', '.join(lost)}, and so does the spatial encoder"
        return (
            "INCONCLUSIVE",
            f"investigate the hybrid: the model fails {', '.join(lost)}, and what the spatial encoder holds is undecided",
        )
    if failed:
        return "STOP", f"space is there but the bridge fails {', '.join(failed)}"
    return undecided(judged, [k for k, j in must.items() if j["answer"] != "PASS"])


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
        if other and (key := next((k for k in keys if other[k] != probe[k]), None)):
            refuse(
                f"{where} is about {key} {other[key]!r}, {folder}/probe.yaml about {probe[key]!r}; give results that belong together"
            )
    seconds = {}  # {which: seconds per item, or None where layers were streamed}
    for name, where in (("model", folder), ("encoder", args.encoder), ("reference", args.reference)):
        index = Path(where) / "features" / "index.yaml" if where else None
        if index and (name != "reference" or index.is_file()):
            seconds[name] = load_yaml(index, "extract")["seconds_per_item"]

    def ratio(a, b, missing):
        if seconds.get(a) and seconds.get(b):
            return seconds[a] / seconds[b], NO_INTERVAL
        return None, STREAMED if None in (seconds.get(a, 0), seconds.get(b, 0)) else missing

    times = {
        "latency_overhead": ratio("encoder", "model", "no --encoder was given"),
        "inference_ratio": (1.0, "the reference itself")
        if probe["model"] == "qwen2.5-vl-7b"
        else ratio("model", "reference", "no Qwen2.5-VL features of the same data were given (--reference)"),
    }
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
    encoder = (
        {k: judge(encoder_probe["criteria"][k], thresholds[k]) for k in SPATIAL} if encoder_probe else {}
    )
    result = gate_head(1, *decide(judged, encoder), probe, judged) | {
        "decoder": adapt["decoder"],
        "decoder_weights": adapt["decoder_weights"],
    }
    result |= {name: row["score"] for name, row in judged.items()}
    result |= {
        "plain_verdict": "PROCEED"
        if all(j["plain_pass"] for j in judged.values() if j["level"] == "must")
        else "STOP",
        "overridden": args.changed,
        "criteria": judged,
    }
    if encoder:
        result["encoder"] = {
            "model": encoder_probe["model"],
            **{k: {"score": encoder_probe["criteria"][k]["score"], **v} for k, v in encoder.items()},
        }
    return result


def decide2(judged, hybrid):
    """The decision of gate 2: (verdict, why). hybrid: {answer: of its fused bridge's LPIPS, spatial_adds, spatial}, where it was measured."""
    must = {k: j for k, j in judged.items() if j["level"] == "must"}
    if all(j["answer"] == "PASS" for j in must.values()):
        weak = [k for k, j in judged.items() if j["answer"] == "FAIL"]
        return "PROCEED", "a small bridge is enough" + (
            f"; but {', '.join(weak)} {'fails' if len(weak) == 1 else 'fail'}" if weak else ""
        )
    if must["lpips"]["answer"] == "FAIL":
        if not hybrid:
            return "PIVOT", "to the hybrid, as the plan's table says, untested: a small bridge fails lpips"
        if hybrid["answer"] == "PASS" and hybrid["spatial_adds"] == "yes":
            return (
                "PIVOT",
                f"to the hybrid: a small bridge from the model alone fails lpips, which with {hybrid['spatial']} beside it passes",
            )
        if hybrid["answer"] == "FAIL" or hybrid["spatial_adds"] == "no":
            return (
                "STOP",
                f"a small bridge fails lpips, and {hybrid['spatial']} beside the model does not repair it",
            )
        return (
            "INCONCLUSIVE",
            "investigate the hybrid: a small bridge fails lpips, and whether a second encoder repairs it is undecided",
        )
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
            "coherence": Path(args.motion) / "predict-coherence.yaml",
            "films": Path(args.motion) / "explain-films.yaml",
        }
    stages = {"scaling": scaling} | {name: load_yaml(path) for name, path in beside.items() if path.is_file()}
    for name, other in stages.items():
        if other.get("model") not in (scaling["model"], None):
            refuse(
                f"{beside[name]} is about model {other['model']!r}, {folder}/adapt-scaling.yaml about {scaling['model']!r}; give results that belong together"
            )
    judged, hybrid, coherence = {}, stages.get("hybrid"), stages.get("coherence", {})
    about_model = coherence.get("conditioning") == "adapter"  # other films say nothing of the model
    for name, rule in GATE2.items():
        criteria = (
            stages.get(rule["from"], {}).get("criteria", {})
            if rule["from"] == "scaling" or about_model
            else {}
        )
        judged[name] = judged_row(criteria, name, rule, thresholds[name], args.changed)
    # LPIPS of the small bridge, by which only its gain is judged
    for key in ("floor", "floor_name", "ceiling", "skill"):
        judged["parameter_efficiency"].pop(key, None)
    judged["parameter_efficiency"] |= {"stand_in": True} if "lpips_random_backbone" in scaling else {}
    if judged["temporal_consistency"]["answer"] == "PASS" and judged["decoded_closeness"]["answer"] != "PASS":
        judged["temporal_consistency"] |= {"answer": judged["decoded_closeness"]["answer"], "reason": FROZEN}
    if (ceiling := judged["semantic_accuracy"].get("ceiling")) is not None and ceiling < judged[
        "semantic_accuracy"
    ]["threshold"]:
        judged["semantic_accuracy"] |= {
            "answer": "INCONCLUSIVE",
            "reason": f"of the clips themselves the model says no more than {ceiling:.3f}",
            "n_needed": None,
        }
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
        "plain_verdict": "PROCEED"
        if all(j["plain_pass"] for j in judged.values() if j["level"] == "must")
        else "STOP",
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
        return (
            "PROCEED",
            f"by prediction: {variant} is better than copying the last frame and than every control",
        )
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
    """Judge gate 3 from the YAML of predict.py (latents, continue, futures) and explain.py (describe) in --results. Returns the result to be saved."""
    folder = Path(args.results)
    paths = {
        "latents": "predict-latents.yaml",
        "continue": "predict-continue.yaml",
        "describe": "explain-describe.yaml",
        "futures": "predict-futures.yaml",
    }
    stages = {name: load_yaml(folder / path) for name, path in paths.items() if (folder / path).is_file()}
    if "latents" not in stages and not {"continue", "describe"} <= set(stages):
        refuse(
            f"{folder} holds neither predict-latents.yaml nor predict-continue.yaml with explain-describe.yaml; run make gate3, or predict.py by hand"
        )
    first = stages.get("latents") or stages["describe"]
    for name, other in stages.items():
        if other.get("model") not in (first["model"], None) or other["data_name"].removesuffix(
            "-films"
        ) != first["data_name"].removesuffix("-films"):
            refuse(
                f"{folder / paths[name]} is about {other.get('model')} on {other['data_name']}, the others about {first['model']} on {first['data_name']}; give results that belong together"
            )
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
    if (
        latents
        and judged["prediction"]["answer"] == "PASS"
        and latents["variant"] not in latents["predicts"].split(", ")
    ):
        judged["prediction"] |= {
            "answer": "INCONCLUSIVE",
            "reason": "among as many variants as were tried, a gain like this may be chance (Holm)",
        }
    if (
        judged["temporal_ratio"]["answer"] == "PASS"
        and judged["temporal_ratio"]["low"] > 1 / judged["temporal_ratio"]["threshold"]
    ):
        judged["temporal_ratio"] |= {
            "answer": "INCONCLUSIVE",
            "reason": "more changes from frame to frame than in the clips, as where films flicker",
        }
    if film.get("conditioning", "").endswith("text") and judged["retention"]["answer"] == "PASS":
        judged["retention"] |= {
            "answer": "INCONCLUSIVE",
            "reason": f"the films ({film['conditioning']}) were told in words what the model then says of them",
        }
    sane, room = latents.get("sanity_cosine"), 1 - (latents.get("sanity_cosine_mean") or 0)
    if judged["prediction"]["answer"] == "FAIL" and sane is not None and sane < 1 - room / 2:
        judged["prediction"] |= {
            "answer": "INCONCLUSIVE",
            "reason": f"the head does not even reconstruct the present (cosine {sane:.3f}): train longer, or read another layer",
        }
    about = first | {"data_name": first["data_name"].removesuffix("-films")}
    video = (
        f", video model {film['video_weights']}" if film and film["video_weights"] != first["weights"] else ""
    )
    result = gate_head(3, *decide3(judged, latents.get("variant")), about, judged, video)
    result |= {
        "decoder": latents.get("decoder"),
        "video": film.get("video"),
        "video_weights": film.get("video_weights"),
    }
    result |= {name: row["score"] for name, row in judged.items()}
    several = (
        {
            f"best_of_n_{k}": stages["futures"][f"moving_{k}"]
            for k in ("gain_over_one", "gain_over_one_low", "gain_over_one_high", "oracle_share")
        }
        if "futures" in stages
        else {}
    )
    plain_pass = {k: judged[k]["plain_pass"] for k in ("prediction", "retention", "temporal_ratio")}
    passed = plain_pass["prediction"] or plain_pass["retention"] and plain_pass["temporal_ratio"]
    result |= {
        "plain_verdict": "PROCEED" if passed else None if None in plain_pass.values() else "STOP",
        **several,
        "overridden": args.changed,
        "criteria": judged,
    }
    if latents:
        keep = (
            "cosine",
            "cosine_low",
            "cosine_high",
            "gain",
            "gain_low",
            "gain_high",
            "p",
            "p_holm",
            "gain_over_blind",
            "skill",
            "l1",
            "moving_l1",
            "raw_l1",
            "static",
            "best_shift",
        )
        result |= {k: latents[k] for k in ("variant", "predicts", "layer")}
        result["table"] = {
            n: {k: row[k] for k in keep if k in row}
            for n, row in (latents["variants"] | latents["baselines"]).items()
        }
    return result


def decide4(judged, result):
    """The decision of gate 4: (verdict, why)."""
    must = {k: row for k, row in judged.items() if row["level"] == "must"}
    if all(row["answer"] == "PASS" for row in must.values()):
        return (
            "PROCEED",
            f"pixels can verify: {result['pixel_verifier']} tells right predictions from wrong ones, better than {result['latent_verifier']}, the best that reads latents",
        )
    latents_tell = (result.get("latent_auroc_low") or 0) > must["pixel_auroc"]["threshold"]
    if "FAIL" in (must["pixel_auroc"]["answer"], must["pixel_over_latent"]["answer"]) and latents_tell:
        return (
            "PIVOT",
            f"to latents: {result['latent_verifier']} tells right predictions from wrong ones (AUROC {result['latent_auroc']:.3f}) as well as pixels do ({result['pixel_auroc']:.3f})",
        )
    if must["pixel_auroc"]["answer"] == "FAIL":
        return (
            "STOP",
            f"no verifier that reads pixels tells right predictions from wrong ones well enough; the best is {result['pixel_verifier']}",
        )
    return undecided(judged, [k for k, row in must.items() if row["answer"] != "PASS"])


def gate4(args, thresholds):
    """Judge gate 4 from verify.yaml in --results. Returns the result to be saved."""
    path = Path(args.results) / "verify.yaml"
    found = load_yaml(path, "verify")
    thresholds = thresholds | {
        "conformal_error": args.changed.get("conformal_error", found["conformal_promised"])
    }
    judged = {
        name: judged_row(found["criteria"], name, rule, thresholds[name], args.changed)
        for name, rule in GATE4.items()
    }
    kept = (
        "pixel_verifier",
        "latent_verifier",
        "latent_auroc",
        "words_auroc",
        "base_risk",
        "aurc",
        "conformal_promised",
        "conformal_accepted_right",
    )
    result = gate_head(4, *decide4(judged, found), found, judged) | {"decoder": found["decoder"]}
    result |= {name: row["score"] for name, row in judged.items()} | {k: found[k] for k in kept if k in found}
    plain_pass = [j["plain_pass"] for j in judged.values() if j["level"] == "must"]
    result |= {
        "plain_verdict": None if None in plain_pass else "PROCEED" if all(plain_pass) else "STOP",
        "overridden": args.changed,
        "criteria": judged,
    }
    chosen = [found[k] for k in ("pixel_verifier", "latent_verifier", "words_verifier") if k in found]
    result["flagged"] = {
        name: {kind: row["flagged"] for kind, row in found["verifiers"][name]["kinds"].items()}
        for name in chosen
    }
    return result


def show_predictions(table):
    """Print every variant and baseline of gate 3, best first. "Late" is what resembles the truth of an earlier frame."""
    print(
        f"\n{'':14s} {'cosine':>7s}  {'95% interval':17s} {'gain over copy':>14s}  {'95% interval':19s} {'p (Holm)':>8s} {'skill':>7s} {'L1':>7s}  remarks"
    )
    for name, row in sorted(table.items(), key=lambda item: -item[1]["cosine"]):
        shift = row.get("best_shift") or 0
        said = ["static"] * bool(row["static"]) + [
            ("2 or more frames " if abs(shift) == 2 else "a frame ") + ("late" if shift < 0 else "early")
        ] * bool(shift)
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
        more = (
            f" (n = {row['n_needed']} would decide)"
            if row.get("n_needed")
            else f" (accepted at {row['accepted_threshold']})"
            if row.get("accepted") == "PASS"
            else ""
        )
        print(
            f"{name + ('*' if row.get('stand_in') else ''):20s} {row['level']:6s} {number(row['score']):>7s}  {interval:17s} {number(float(row['threshold'])):>9s}  {floor:27s} "
            f"{number(row.get('ceiling')):>7s}  {row['answer']}{more}"
        )
    if "table" in result:
        show_predictions(result["table"])
    if result["criteria"].get("lpips", {}).get("stand_in"):
        ratio = (
            "; parameter_efficiency is the ratio of such skills, 10M over 100M"
            if "parameter_efficiency" in result["criteria"]
            else ""
        )
        print(
            f"* skill between the mean image and the VAE: the published LPIPS backbone is not on this machine{ratio}"
        )
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
    for path in sorted(Path(folder).rglob("gate*.yaml")):
        x = load_yaml(path, "gate")
        scores = ", ".join(
            f"{k}{'*' * bool(row.get('stand_in'))} {number(row['score'])} {row['answer']}"
            for k, row in x["criteria"].items()
            if row["level"] != "should"
        )
        lines.append(
            [
                x["model"],
                x["data_name"],
                f"gate {x['gate']}",
                x["verdict"],
                f"{x['weights']}/{x['data']}",
                scores,
                x.get("run", {}).get("git_commit") or "-",
            ]
        )
    for path in sorted(Path(folder).rglob("screen.yaml")):
        x = load_yaml(path, "screen")
        scores = ", ".join(
            f"{k} {number(m['weighted'])} {m['decision'] or m['kind']}" for k, m in x["models"].items()
        )
        lines.append(
            [
                x["first"] or "none",
                x["data_name"],
                "screen",
                x["outcome"],
                f"{x['weights']}/{x['data']}",
                scores,
                x.get("run", {}).get("git_commit") or "-",
            ]
        )
    if not lines:
        refuse(
            f"{folder} holds no verdict (gate*.yaml, screen.yaml); run make gate1 first, or give the folder that holds all results"
        )
    return lines


def picture(folder, path):
    """gate1.png: scores per layer; originals, VAE, bridge; true and decoded boxes."""
    plt = pyplot()
    decoded, bridged = load_pt(folder / "probe.pt", RESULT), load_pt(folder / "adapt-latents.pt", RESULT)
    probe = load_yaml(folder / "probe.yaml", "probe")
    align = load_yaml(folder / "align.yaml", "align")
    index = load_yaml(folder / "features" / "index.yaml", "extract")
    items = {i["id"]: i for i in load_items(index["data_path"])[0]}
    figure = plt.figure(figsize=(16, 17), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.0, 1.15, 1.0])
    axes = top.subplots(1, 3)
    layers = [p for p in probe["layers"] if p != "pixels"]
    at = range(len(layers))
    for axis, (key, title) in zip(
        axes[:2],
        (
            ("bbox_iou", "Box IoU (ridge, flattened tokens)"),
            ("spatial_iou", "Mask IoU (ridge, token by token)"),
        ),
        strict=True,
    ):
        axis.plot(at, [probe["layers"][p][key] for p in layers], "o-", color="C0", label="trained network")
        if f"{key}_low" in probe["layers"][layers[0]]:
            axis.fill_between(
                at,
                [probe["layers"][p][f"{key}_low"] for p in layers],
                [probe["layers"][p][f"{key}_high"] for p in layers],
                color="C0",
                alpha=0.2,
                label="95% interval",
            )
        if f"{key}_random" in probe["layers"][layers[0]]:
            axis.plot(
                at,
                [probe["layers"][p][f"{key}_random"] for p in layers],
                "s--",
                color="C1",
                label="untrained network",
            )
        for k, (name, value) in enumerate(probe["criteria"][key]["floors"].items()):
            if name != "random_init":
                axis.axhline(value, color=f"C{k + 2}", lw=1, ls=":", label=f"floor: {name}")
        axis.axhline(GATE1[key]["threshold"], color="black", lw=1.2, label="threshold")
        axis.set(title=title, ylim=(0, 1))
    for m in ("cka", "linear_r2", "spearman", "recall10"):
        rows = [align["layers"][p][m] for p in layers]
        (line,) = axes[2].plot(at, [r["score"] for r in rows], "o-", label=m)
        axes[2].fill_between(
            at, [r["low"] for r in rows], [r["high"] for r in rows], color=line.get_color(), alpha=0.2
        )
    axes[2].axhline(0, color="grey", lw=0.8)
    axes[2].set(title=f"Alignment with the latents of {align['target']}")
    for axis in axes:
        axis.set_xticks(list(at), layers, rotation=60, ha="right", fontsize=8)
        axis.legend(fontsize=7, loc="best")
    grid = middle.subplots(3, len(bridged["ids"]))
    for row, (key, label) in enumerate(
        (("original", "original"), ("vae", "VAE (ceiling)"), ("bridge", "bridge"))
    ):
        for column in range(len(bridged["ids"])):
            grid[row, column].imshow(bridged[key][column].numpy())
            grid[row, column].set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(label, fontsize=11)
    middle.suptitle("Test pictures through the frozen decoder", fontsize=11)
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
    bottom.suptitle(f"Largest box: true (white), decoded from {probe['bbox_iou_layer']} (red)", fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- rollouts: was the prediction right, and who can tell

# {kind of planted film: is it right?} All have been through the autoencoder, as generated films have, so that
# no verifier can go by the traces of the decoder.
PLANTED = {
    "right": True,
    "pasted": True,
    "blurred": True,
    "late": True,
    "direction": False,
    "speed": False,
    "vanished": False,
    "identity": False,
}
ALARMS = 0.05  # detection is counted where this share of val's right predictions is flagged
RESPLITS, RESAMPLES = 100, 2000
MOVED = 10  # of 255, Physics-IQ's threshold
# of the object's way: more is a wrong position. A film a frame late is off by a sixteenth, the planted wrong
# speeds by 0.7 and more, a still picture by 1
OFF = 0.5
NOTES = {
    "flagged": f"where {ALARMS:.0%} of val's right films are; of words, which are asked of test alone, of test's",
    "still_frames": "in which nothing moves by Physics-IQ's masks: two empty masks overlap by 1",
    "made": "films of the video model (no baselines), right where the object goes the right way, ends within half of its way from where it really does, and is there; "
    "rightness_of_planted: what that says of planted films",
    "conformal": "the bound is that of val's wrong films; conformal_error: of test's wrong ones, resampled by source; conformal_error_made: of the video model's, which are not "
    "exchangeable with planted ones: nothing is promised there. resplit: the same over 100 halvings of test's sources, one wrong film of each",
    "ceilings": "scores, higher is better: errors are negative",
}


def sprite(frame, mask):
    """(pixels [h, w, 3], mask [h, w], corner (y, x)): the object that a mask [H, W] marks in a frame [H, W, 3], cut out."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return frame[box], mask[box], (int(rows[0]), int(columns[0]))


def paste(background, pixels, mask, corner):
    """A background [H, W, 3] with a sprite at corner (y, x); parts outside the frame are cut off."""
    out, (height, width) = background.clone(), mask.shape
    y, x = corner
    top = max(y, 0)
    left = max(x, 0)
    bottom = min(y + height, out.shape[0])
    right = min(x + width, out.shape[1])
    if top < bottom and left < right:
        part, hole = slice(top - y, bottom - y), slice(left - x, right - x)
        out[top:bottom, left:right] = torch.where(
            mask[part, hole][..., None], pixels[part, hole], out[top:bottom, left:right]
        )
    return out


def empty_stage(frames, masks):
    """The background [H, W, 3] without the object of masks [T, H, W]: at each pixel the median of the frames [T, H, W, 3] in which it is free, inpainted where it never is."""
    from scipy.ndimage import binary_dilation
    from skimage.restoration import inpaint_biharmonic

    covered = torch.from_numpy(binary_dilation(masks.numpy(), [[[0] * 3] * 3, [[1] * 3] * 3, [[0] * 3] * 3]))
    behind = torch.where(covered[..., None], math.nan, frames.float()).nanmedian(0).values
    hidden = covered.all(0)
    if hidden.any():
        behind = (
            torch.from_numpy(
                inpaint_biharmonic(behind.nan_to_num().numpy() / 255, hidden.numpy(), channel_axis=-1)
            ).float()
            * 255
        )
    return behind.round().clamp(0, 255).byte()


def plant(frames, masks, stranger, past, draw):
    """{kind: film uint8 [1 + h, H, W, 3]} that begins with the last frame seen, of a clip frames [T, H, W, 3] whose object masks [T, H, W] mark, before a still camera.

    right: the outcome; pasted: the same cut out and pasted where it was, as the wrong ones are made, so that no seam tells; blurred by 2% of the side; late by a frame. Wrong are direction (turned
    by 45 to 315 degrees), speed (0.2 to 2.2 times its own), identity (`stranger`, the sprite of another clip's object, goes the same way) and vanished (before two thirds are over). draw(n): a number
    below n, the clip's own. Without masks (None) nothing is cut out: direction is the past played backwards, speed the outcome at half its own, and pasted, identity and vanished are not there.
    """
    from scipy.ndimage import gaussian_filter

    film = frames[past - 1 :]
    length = len(film)
    blurred = (
        torch.from_numpy(
            gaussian_filter(film[1:].float().numpy(), (0, 0.02 * film.shape[1], 0.02 * film.shape[1], 0))
        )
        .round()
        .byte()
    )
    found = {"right": film, "blurred": torch.cat([film[:1], blurred]), "late": film[[0, *range(length - 1)]]}
    if masks is None:
        return found | {
            "direction": frames[[max(past - 1 - t, 0) for t in range(length)]],
            "speed": film[[t // 2 for t in range(length)]],
        }
    stage = empty_stage(frames, masks)
    here = [sprite(f, m) if m.any() else None for f, m in zip(film, masks[past - 1 :], strict=True)]
    start = torch.tensor(here[0][2])
    # (y, x) pixels since the last frame seen
    steps = [None if s is None else (torch.tensor(s[2]) - start).float() for s in here]
    angle = math.pi / 4 * (1 + draw(7))
    pace = (0.2, 0.3, 1.8, 2.2)[draw(4)]
    until = 1 + draw(max(2 * length // 3, 1))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centred = (torch.tensor(here[0][1].shape) - torch.tensor(stranger[1].shape)) / 2

    def along(change, pixels=here[0][0], mask=here[0][1]):
        return torch.stack(
            [
                film[0],
                *(
                    stage
                    if s is None
                    else paste(stage, pixels, mask, (start + change(s).round().int()).tolist())
                    for s in steps[1:]
                ),
            ]
        )

    return found | {
        "pasted": along(lambda s: s),
        "direction": along(lambda s: turn @ s),
        "speed": along(lambda s: pace * s),
        "identity": along(lambda s: s + centred, *stranger[:2]),
        "vanished": torch.stack([*film[:until], *[stage] * (length - until)]),
    }


def through(vae, films):
    """Films [n, 1 + h, H, W, 3] after the autoencoder; their first frame, which is real, stays as it is. It takes r*j+1 frames: so the first is repeated before them."""
    more = -(films.shape[1] - 1) % vae.temporal_compression_ratio
    seen = decode_films(
        vae, encode_films(vae, torch.cat([films[:, :1].expand(-1, more, -1, -1, -1), films], 1))
    )[:, more:]
    return torch.cat([films[:, :1], seen[:, 1:]], 1)


def to_plant(args, entry):
    """(clips, {clip: {conditioning: film}}, index of the clips, how many were left out), refused as far as possible before a model is loaded. Clips are cut and squashed as in predict.py."""
    items, data = load_items(args.plant)
    every = clips_of(items, "val", "test")
    if not every:
        refuse(
            f"{args.plant} has no clips in its val and test splits; give a folder with clips, and more of them (data.py moving)"
        )
    generated, size = {}, entry.get("clip") or entry["size"]
    if args.films:
        films, index = load_items(args.films)
        if Path(index.get("data_path", "")).name != Path(args.plant).name:
            refuse(
                f"{args.films} holds films of {index.get('data_path')}, not of {args.plant}; run predict.py --mode continue on that"
            )
        for film in films:
            generated.setdefault(film["id"].rpartition("/")[0], {})[film["conditioning"]] = film["frames"]
            size = film["frames"].shape[1]
    cut = windows(every, args.past + args.horizon, size, "--past or --horizon")
    masked = any(subject(i) is not None for i in cut)
    clips = [
        i
        for i in cut
        if (whole_and_going(i, args.past) if masked else goes_somewhere(i["frames"], args.past))
        and (split_of(i["source"]) == "val" or not args.films or i["id"] in generated)
    ]
    if len(clips) < 4 or {split_of(i["source"]) for i in clips} != {"val", "test"}:
        refuse(
            f"{args.plant} has {len(clips)} clips of val and test in which something moves{' before a still camera and stays in sight' if masked else ''}"
            f"{', and of which there are films' if args.films else ''}; at least 4, of both splits, are needed"
        )
    for i in clips:
        if i["id"] in generated and not torch.equal(generated[i["id"]]["real"], i["frames"][args.past - 1 :]):
            refuse(
                f"{args.films} shows of {i['id']} other frames than {args.plant} does from frame {args.past} on; give the --past and --horizon of these films, or make them again"
            )
    return clips, generated, data, len(every) - len(clips)


def whole_and_going(item, past):
    """Can the item's object be cut out and put elsewhere? It must move before a still camera and, from the last frame seen on, be in sight as a whole and off the border."""
    marked = subject(item)
    if marked is None or item.get("direction") == "still" or any(item.get("camera", (0,))):
        return False
    marked = marked[past - 1 :]
    inside = marked[:, 1:-1, 1:-1].flatten(1).sum(1)
    return bool(
        (inside == marked.flatten(1).sum(1)).all() and (inside > 0.8 * inside[0]).all() and inside[0] > 0
    )


def goes_somewhere(frames, past):
    """Without masks: does playing the clip backwards or at half speed change more than a delay of one frame?"""
    kinds = plant(frames, None, None, past, None)
    apart = {k: (x.float() - kinds["right"].float()).abs().mean() for k, x in kinds.items()}
    return min(apart["direction"], apart["speed"]) > apart["late"] > 0


def subject(item):
    """Mask, bool [T, H, W], of the object that an item is about, the last of its names; None where there is none."""
    return item["mask"] == len(item["names"]) if "mask" in item and "names" in item else None


def plant_all(args):
    """--plant: write a data folder of films whose rightness is known: for every val and test clip what happened (real), the PLANTED ones, and those of --films."""
    entry = find_model(args.vae)
    if entry["kind"] != "vae":
        refuse(
            f"--vae {args.vae} is a {entry['kind']}; give tiny-vae, ltx, or the folder of a video autoencoder"
        )
    clips, generated, data, left_out = to_plant(args, entry)
    out = Path(args.out or f"{args.plant}-planted")
    check_writable(out / "index.yaml")
    strangers = {}
    objects = [
        sprite(i["frames"][args.past - 1], subject(i)[args.past - 1]) for i in clips if subject(i) is not None
    ]
    colours = [pixels[mask].float().mean(0) for pixels, mask, _ in objects]
    for k, i in enumerate(clips[: len(objects)]):  # the next clip whose object has another colour
        other = next(
            (j for j in (*range(k + 1, len(objects)), *range(k)) if (colours[j] - colours[k]).norm() > 100),
            None,
        )
        if other is None:
            refuse(
                f"all objects of {args.plant} have the colour of the {i['names'][-1]} of {i['id']}, and there is none to swap it for; use more clips"
            )
        strangers[i["id"]] = objects[other]
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    vae, _ = load_video_vae(entry, device, dtype)

    def films():
        for i in tqdm(clips, desc="planted", unit="clip"):
            kinds = plant(
                i["frames"],
                subject(i),
                strangers.get(i["id"]),
                args.past,
                random.Random(f"{args.seed} {i['id']}").randrange,
            )
            others = (
                {k: x for k, x in generated.get(i["id"], {}).items() if k not in ("real", "vae")}
                if split_of(i["source"]) == "test"
                else {}
            )
            decoded = through(vae, torch.stack(list(kinds.values())))
            for kind, x in {
                "real": kinds["right"],
                **dict(zip(kinds, decoded, strict=True)),
                **others,
            }.items():
                yield i | {
                    "id": f"{i['id']}/{kind}",
                    "frames": x.clone(),
                    "conditioning": kind,
                    **{k: i[k][args.past - 1 :].clone() for k in ("mask", "boxes") if k in i},
                }

    # so that features of other films under these ids are not taken for theirs
    content = hashlib.sha256(f"{fingerprint(entry['path'])} {args.seed} {inspect.getsource(plant)}".encode())
    for x in (x for i in clips for x in (i["frames"], *generated.get(i["id"], {}).values())):
        content.update(x.contiguous().numpy())
    write_items(
        out,
        films(),
        {
            "name": f"{data['name']}-planted",
            "content": content.hexdigest()[:16],
            "source_kind": "planted",
            "data": data["data"],
            "seed": args.seed,
            "data_path": str(args.plant),
            "past": args.past,
            "horizon": args.horizon,
            "films_path": args.films,
            "vae": entry["name"],
            "vae_weights": entry["weights"],
            "conditioning": "right",
            "left_out": left_out,
        },
    )
    result = {
        "stage": "plant",
        "clips": len(clips),
        "left_out": left_out,
        "films": load_yaml(out / "index.yaml", "data")["items"],
        "out": str(out),
    }
    say(result)
    return result


# A verifier takes films uint8 [k, 1 + h, H, W, 3] of one clip, which begin with the last frame seen, and what
# happened [1 + h, H, W, 3]. It gives scores [k, horizons], higher if more likely
# right; the score for a horizon uses no later frame. Costly measures look only at the frames at which a
# horizon ends, and take the mean over these.


def upto(x, horizons):
    """The mean of x [k, h] over the frames up to every horizon: [k, horizons]."""
    return torch.stack([x[:, :h].mean(1) for h in horizons], 1).double()


def pixel_l1(films, truth, see):
    return -upto((films[:, 1:].float() - truth[1:].float()).abs().mean((2, 3, 4)), see.horizons) / 255


def pixel_mse(films, truth, see):
    return -upto((films[:, 1:].float() - truth[1:].float()).square().mean((2, 3, 4)), see.horizons) / 255**2


def at_horizons(compare, films, truth, horizons):
    """The mean of compare(frames, frames) -> [n] over the horizons so far: [k, horizons]."""
    pick = list(horizons)
    a, b = films[:, pick].flatten(0, 1), truth[pick].expand(len(films), -1, -1, -1, -1).flatten(0, 1)
    x = compare(a, b).view(len(films), len(pick)).double()
    return x.cumsum(1) / torch.arange(1, len(pick) + 1)


def pixel_ssim(films, truth, see):
    return at_horizons(ssim, films, truth, see.horizons)


def pixel_lpips(films, truth, see):
    return -at_horizons(see.lpips, films, truth, see.horizons)


def moving_regions(films):
    """Where films [k, 1 + h, H, W, 3] move after the last frame seen: bool [k, h, H, W], as in the published code of Physics-IQ (Motamed et al. 2025): grey, blurred, more than MOVED from a
    running mean that takes 0.3 of every new frame, then opened and closed. Its 5 x 5 windows are scaled by the frame's side / 512, and vanish on small frames."""
    from scipy.ndimage import binary_closing, binary_opening, gaussian_filter

    grey = 255 * grey_of(films[:, 1:])
    side = max(round(5 * grey.shape[2] / 512), 1)
    grey = (
        torch.from_numpy(gaussian_filter(grey.numpy(), (0, 0, 1.1 * side / 5, 1.1 * side / 5)))
        if side > 1
        else grey
    )
    mean, found = grey[:, 0], [torch.zeros_like(grey[:, 0], dtype=torch.bool)]
    for x in grey.unbind(1)[1:]:
        mean = 0.7 * mean + 0.3 * x
        found.append((x - mean).abs() > MOVED)
    found = torch.stack(found, 1)
    if side > 1:
        window = torch.ones(1, 1, side, side).numpy()
        found = torch.from_numpy(binary_closing(binary_opening(found.numpy(), window), window))
    return found


def overlap(a, b):
    """IoU of weights [..., H, W] in [0, 1]: the sum of the smaller over that of the larger; 1 where both are empty, as in Physics-IQ."""
    most = torch.maximum(a, b).sum((-2, -1))
    return torch.where(most > 0, torch.minimum(a, b).sum((-2, -1)) / most.clamp(min=1e-9), 1.0)


def pixel_spatial_iou(films, truth, see):
    """Where anything has moved at all so far."""
    a, b = moving_regions(films).float(), moving_regions(truth[None]).float()
    return torch.stack([overlap(a[:, :h].amax(1), b[:, :h].amax(1)) for h in see.horizons], 1).double()


def pixel_spatiotemporal_iou(films, truth, see):
    """Where something moves, frame by frame."""
    return upto(overlap(moving_regions(films).float(), moving_regions(truth[None]).float()), see.horizons)


def pixel_weighted_spatial_iou(films, truth, see):
    """Where, and in how many of the frames, something has moved so far."""
    a, b = moving_regions(films).float(), moving_regions(truth[None]).float()
    return torch.stack([overlap(a[:, :h].mean(1), b[:, :h].mean(1)) for h in see.horizons], 1).double()


def pixel_flow_agreement(films, truth, see):
    """Cosine of the flow fields (iterative Lucas-Kanade, scikit-image) of the last step before a horizon; 1 where both films stand still, 0 where one does."""
    import numpy as np
    from skimage.registration import optical_flow_ilk

    def fields(film):
        grey = grey_of(film).numpy()
        return (
            torch.from_numpy(
                np.stack([optical_flow_ilk(grey[h - 1], grey[h], radius=5, num_warp=4) for h in see.horizons])
            )
            .flatten(1)
            .double()
        )

    b = fields(truth)
    a = torch.stack([fields(f) for f in films])
    still = [x.square().mean(-1).sqrt() < 0.02 for x in (a, b)]  # pixels a step, on the mean of the picture
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)
    cosine = torch.where(still[0] & still[1], 1.0, torch.where(still[0] | still[1], 0.0, cosine))
    return cosine.cumsum(1) / torch.arange(1, cosine.shape[1] + 1)


def pixel_position_error(films, truth, see):
    """Distance, in sides of the frame, of the object (followed by its colour) from where it really went; a whole side where it is lost. Needs the clip's mask."""
    # [1 + k, 1 + h, 2]
    here = whereabouts(torch.cat([truth[None], films]), see.mask.expand(len(films) + 1, -1, -1))
    apart = (here[1:] - here[0]).norm(dim=-1) / films.shape[2]
    apart = torch.where(here[1:].isnan().any(-1), 1.0, apart)[:, 1:]
    gone = here[0, 1:].isnan().any(-1)  # it has left the picture: there is no position to be wrong about
    return -torch.stack(
        [
            apart[:, :h][:, ~gone[:h]].mean(1) if (~gone[:h]).any() else torch.zeros(len(films))
            for h in see.horizons
        ],
        1,
    ).double()


PIXELS = {
    "l1": pixel_l1,
    "mse": pixel_mse,
    "ssim": pixel_ssim,
    "lpips": pixel_lpips,
    "spatial_iou": pixel_spatial_iou,
    "spatiotemporal_iou": pixel_spatiotemporal_iou,
    "weighted_spatial_iou": pixel_weighted_spatial_iou,
    "flow_agreement": pixel_flow_agreement,
    "position_error": pixel_position_error,
}


def latent_scores(tokens, truth, ends, horizons):
    """{cosine, l2: [k, horizons]} of tokens [k, t, h, w, D] of films and [t, h, w, D] of what happened, token by token, as in V-JEPA's measure of surprise (Garrido et al. 2025).

    ends: the last frame of each time step of the encoder. nan where by the horizon no step has ended that holds more than the last frame seen.
    """
    steps = {
        "cosine": torch.nn.functional.cosine_similarity(tokens, truth[None], dim=-1).mean((2, 3)),
        "l2": -(tokens - truth).norm(dim=-1).mean((2, 3)),
    }
    count = [sum(e <= h for e in ends) for h in horizons]
    return {
        name: torch.stack(
            [x[:, :c].mean(1) if c > (ends[0] == 0) else torch.full((len(x),), math.nan) for c in count], 1
        ).double()
        for name, x in steps.items()
    }


def aurocs(scores, right, weights):
    """AUROC [B] under weights [B, n] of the films: the share of pairs in which the right one scores higher, ties counting a half (Mann & Whitney 1947). nan where a resample lacks right or wrong
    films, or a score is missing."""
    if scores.isnan().any():
        return torch.full((len(weights),), math.nan, dtype=torch.float64)
    pairs = scores[right][:, None] - scores[~right]
    wins = (pairs > 0).double() + 0.5 * (pairs == 0)
    w, v = weights[:, right], weights[:, ~right]
    return ((w @ wins) * v).sum(1) / (w.sum(1) * v.sum(1))


def drawn(sources, seed):
    """Weights [1 + RESAMPLES, n] of items: first all 1, then whole sources resampled with replacement."""
    cluster = clusters(sources)
    return torch.cat(
        [
            torch.ones(1, len(sources), dtype=torch.float64),
            resampled(int(cluster.max()) + 1, RESAMPLES, torch.Generator().manual_seed(seed))[:, cluster],
        ]
    )


def drawn_films(w, rows):
    """(weights [1 + RESAMPLES, len(rows)] of these films by resampled sources, how many sources they are of)."""
    sources = [w.sources[k] for k in rows]
    return drawn(sources, w.seed), len(set(sources))


def interval(values, n):
    """(value, low, high) of values [1 + B], of which the first is without resampling, over n sources. Where all resamples agree, the bounds are by the rule of three: 3 / n of the sources
    (Hanley & Lippman-Hand 1983)."""
    value, rest = values[0].item(), values[1:]
    rest = rest[~rest.isnan()]
    if math.isnan(value) or not len(rest):
        return None, None, None
    low, high = widened(value, *rest.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), n)
    return (value, low, high) if high > low else (value, value - 3 / n, value + 3 / n)


def named_interval(name, values, n, least=0.0):
    """{name, _low, _high} of `interval`, its bounds within least .. 1."""
    value, low, high = interval(values, n)
    return with_bounds(
        name, (value, None if low is None else max(low, least), None if high is None else min(high, 1.0))
    )


def record(own, floors, n, films, ceiling=1.0, **more):
    """A criterion's record from numbers that share their resamples: own [1 + B], floors {name: [1 + B]}. n: sources; films: how many."""
    best = max(floors, key=lambda k: floors[k][0])
    (score, low, high), (gain, gain_low, gain_high), floor = (
        interval(own, n),
        interval(own - floors[best], n),
        floors[best][0].item(),
    )
    return {
        "score": score,
        "low": low,
        "high": None if high is None else min(high, 1.0),
        "better": "higher",
        "n": films,
        "sources": n,
        "floor": floor,
        "floor_name": best,
        "ceiling": ceiling,
        "skill": (score - floor) / (ceiling - floor) if ceiling > floor else None,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        **more,
        "floors": {k: x[0] for k, x in floors.items()},
    }


def risk_coverage(scores, right, weights):
    """(risk [B, n], coverage [B, n]) of accepting 1, 2, ... n films in the order of their scores (El-Yaniv & Wiener 2010). Films of equal score share their mean risk."""
    _, rank = scores.unique(return_inverse=True)

    def by_rank(x):
        return torch.zeros(len(x), int(rank.max()) + 1, dtype=torch.float64).index_add_(1, rank, x)

    share = (by_rank(weights * ~right) / by_rank(weights).clamp(min=1e-9))[:, rank]
    order = scores.argsort(descending=True, stable=True)
    w = weights[:, order]
    covered = w.cumsum(1)
    return (w * share[:, order]).cumsum(1) / covered.clamp(min=1e-9), covered / covered[:, -1:]


def mean_risk(scores, right, weights):
    """Area under the risk-coverage curve, [B]."""
    w = weights[:, scores.argsort(descending=True, stable=True)]
    return (risk_coverage(scores, right, weights)[0] * w).sum(1) / w.sum(1)


def conformal_bound(calibration, promised):
    """The score that a prediction must exceed to be accepted. calibration: scores of n wrong ones; of n + 1 exchangeable wrong ones at most floor((n + 1) promised) exceed it (Vovk et al. 2005)."""
    k = math.floor((len(calibration) + 1) * promised)
    return calibration.sort(descending=True).values[k - 1].item() if k else math.inf


def conformal(scores, right, sources, promised, seed):
    """Split-conformal acceptance over RESPLITS random halvings of the sources.

    Each source gives one of its wrong films, drawn anew each time, either to calibrate or to count errors. So the films are exchangeable, and the expected error is resplit_exact for any
    verifier: this checks that the promise is kept. What the verifier is worth is in resplit_accepted_right. The interval is that of the mean over halvings.
    """
    cluster, g = clusters(sources), torch.Generator().manual_seed(seed)
    members = [((cluster == c) & ~right).nonzero().flatten() for c in range(int(cluster.max()) + 1)]
    members = [m for m in members if len(m)]
    errors, accepted = [], []
    for _ in range(RESPLITS):
        one = torch.stack([scores[m[torch.randint(len(m), (1,), generator=g)]].squeeze() for m in members])
        order = torch.randperm(len(one), generator=g)
        half, rest = order[: len(one) // 2], order[len(one) // 2 :]
        bound = conformal_bound(one[half], promised)
        errors.append((one[rest] > bound).double().mean())
        accepted.append((scores[right] > bound).double().mean())
    errors = torch.stack(errors)
    mean, spread = errors.mean().item(), errors.std().item() / RESPLITS**0.5
    n = len(members) // 2
    return {
        "resplit_error": mean,
        "resplit_error_low": mean - 1.96 * spread,
        "resplit_error_high": mean + 1.96 * spread,
        "resplit_error_worst": errors.max(),
        "resplit_accepted_right": torch.stack(accepted).mean(),
        "resplit_exact": math.floor((n + 1) * promised) / (n + 1),
        "resplit_calibrated_on": n,
    }


def rightness(films, truth, mask, word):
    """Are films [k, 1 + h, H, W, 3] right, by following the colour of the object that `mask` marks in the last frame seen? {direction, position, identity: bool [k]}.

    direction: it moves the way that `word` names; position: at the end (or where it really leaves the picture) it is off by at most OFF of its real way; identity: it is still found there.
    None where it cannot be followed in what happened, or does not move there. Another object of the same colour is taken for it.
    """
    here = whereabouts(torch.cat([truth[None], films]), mask.expand(len(films) + 1, -1, -1))
    seen = (~here[0].isnan().any(-1)).nonzero().flatten()
    until = int(seen[-1]) + 1
    if until < 2 or heading(here[:1, :until]) != [word]:
        return None
    end, found = here[:, until - 1], ~here[1:, until - 1].isnan().any(-1)
    near = (end[1:] - end[0]).norm(dim=-1) <= OFF * (end[0] - here[0, 0]).norm()  # of nan False
    return {
        "direction": torch.tensor([w == word for w in heading(here[1:, :until])]),
        "position": near,
        "identity": found,
    }


def agreement(said, happened):
    """IoU of the actions that a model names for a film, bool [k, actions], and for what happened [actions]; a half where it names none for one of them."""
    both, either = (said & happened).sum(1).double(), (said | happened).sum(1).double()
    return torch.where(said.any(1) & happened.any(), both / either.clamp(min=1), 0.5)


def read_rollouts(args):
    """({clip: {kind: item}}, index) of a folder that --plant wrote; refused where a clip lacks one of its films."""
    items, index = load_items(args.rollouts)
    if index.get("source_kind") != "planted":
        refuse(
            f"{args.rollouts} holds no planted rollouts; write them with verify.py --plant {index.get('data_path', 'data/NAME')}"
        )
    films = {}
    for i in items:
        films.setdefault(i["id"].rpartition("/")[0], {})[i["conditioning"]] = i
    for clip, kinds in films.items():
        if missing := [k for k in ("real", "right", "blurred", "late") if k not in kinds]:
            refuse(f"{args.rollouts} lacks the film {clip}/{missing[0]}; run verify.py --plant again")
    if lacking := {"val", "test"} - {split_of(kinds["real"]["source"]) for kinds in films.values()}:
        refuse(f"{args.rollouts} has no clips in its {lacking.pop()} split; plant more of them")
    return films, index


def watched(args, films):
    """What is scored, as a namespace: rows (clip, kind, item) of all films but the real ones, with their kinds, sources and splits; right: as planted; stack(clip): its films
    [k, 1 + h, H, W, 3]; truths: what really happened; masks [H, W] of the object in the last frame seen; the verifiers that read pixels."""
    w = types.SimpleNamespace(
        clips=list(films), films=films, frames=len(films[next(iter(films))]["real"]["frames"])
    )
    w.stack = lambda clip: torch.stack(
        [item["frames"] for kind, item in films[clip].items() if kind != "real"]
    )
    w.horizons = sorted({*(h for h in HORIZONS if h < w.frames), w.frames - 1})
    w.rows = [(clip, kind, item) for clip in w.clips for kind, item in films[clip].items() if kind != "real"]
    w.kinds, w.sources = [kind for _, kind, _ in w.rows], [item["source"] for _, _, item in w.rows]
    w.right = torch.tensor([PLANTED.get(k, False) for k in w.kinds])
    planted, split = torch.tensor([k in PLANTED for k in w.kinds]), [split_of(s) for s in w.sources]
    generated = torch.tensor([k not in (*PLANTED, *BASELINES) for k in w.kinds])
    w.val, w.test, w.made = (
        torch.tensor([s == name for s in split]) & here
        for name, here in (("val", planted), ("test", planted), ("test", generated))
    )
    w.truths = {clip: kinds["real"]["frames"] for clip, kinds in films.items()}
    w.masks = {
        clip: marked[0] for clip, kinds in films.items() if (marked := subject(kinds["real"])) is not None
    }
    w.seed = args.seed
    w.lpips, name = load_lpips(choose_device()[0])
    w.pixels = {
        name if n == "lpips" else n: verifier
        for n, verifier in PIXELS.items()
        if n != "position_error" or len(w.masks) == len(films)
    }
    return w


def where(flags):
    """The numbers at which flags [n] are set."""
    return flags.nonzero().flatten().tolist()


def pixel_scores(w, names, clips, truths):
    """{verifier: scores [films of these clips, horizons]}. truths: {clip: the frames to compare with}."""
    out = {name: [] for name in names}
    for clip in tqdm(clips, desc="verified", unit="clip"):
        see = types.SimpleNamespace(horizons=w.horizons, lpips=w.lpips, mask=w.masks.get(clip))
        films = w.stack(clip)
        for name in names:
            out[name].append(w.pixels[name](films, truths[clip], see))
    return {name: torch.cat(x) for name, x in out.items()}


def latents_of(folder, rollouts, w):
    """(index, read) of a features folder of these rollouts; read(point, ids) -> fp32 [n, t, h, w, D], from mapped files, since all films of a large model would not fit in memory."""
    folder = Path(folder)
    index, _ = load_features(folder)
    if Path(index["data_path"]).resolve() != Path(rollouts).resolve():
        refuse(
            f"{folder} holds features of {index['data_path']}, not of {rollouts}; run extract.py --data {rollouts}"
        )
    ids = set(index["ids"])
    if missing := next(
        (i["id"] for kinds in w.films.values() for i in kinds.values() if i["id"] not in ids), None
    ):
        refuse(f"{folder} has no features of {missing!r}; run extract.py on the planted rollouts again")
    shards = functools.cache(
        lambda point: [load_pt(folder / point / f"{k:05d}.pt", FEATURES) for k in range(index["shards"])]
    )
    places = functools.cache(
        lambda point: {i: (s, k) for s, shard in enumerate(shards(point)) for k, i in enumerate(shard["ids"])}
    )

    def read(point, ids):
        x = torch.stack([shards(point)[s]["features"][k] for s, k in (places(point)[i] for i in ids)]).float()
        if not x.isfinite().all():
            refuse(
                f"{folder}/{point} holds values that are not finite; extract again in bf16 or fp32, or leave the point out"
            )
        return x

    return index, read


def every_score(args, w):
    """({verifier: scores [films, horizons]}, {verifier: its family: pixel, tracked, latent or words}, {model, weights} of the model that was asked, or else of the first encoder).

    position_error alone is told by the clip's mask which object to follow. So it is a family of its own (tracked), which is shown but is no candidate for the gate.
    """
    encoders, words, about = [latents_of(folder, args.rollouts, w) for folder in args.latents or ()], None, {}
    if encoders:
        about = {k: encoders[0][0][k] for k in ("model", "weights")}
    if args.words:
        words = load_pt(args.words, RESULT)
        about = {k: words["meta"][k] for k in ("model", "weights")}
        row = {i: k for k, i in enumerate(words["ids"])}
        if missing := next(
            (i["id"] for k, (_, _, i) in enumerate(w.rows) if w.test[k] and i["id"] not in row), None
        ):
            refuse(
                f"{args.words} has no answer about {missing!r}; run explain.py --mode describe on the planted rollouts again"
            )
    scores = pixel_scores(w, w.pixels, w.clips, w.truths)
    family = {name: "tracked" if name == "position_error" else "pixel" for name in scores}
    for index, read in encoders:
        for point in (p for p in index["points"] if p != "pixels"):
            found = []
            for clip in w.clips:
                tokens = read(
                    point, [f"{clip}/real", *(i["id"] for kind, i in w.films[clip].items() if kind != "real")]
                )
                t = tokens.shape[1]  # an autoencoder's first step is the first frame alone
                ends = [
                    s * (w.frames - 1) // max(t - 1, 1)
                    if point.startswith("latents")
                    else -(-(s + 1) * w.frames // t) - 1
                    for s in range(t)
                ]
                found.append(latent_scores(tokens[1:], tokens[0], ends, w.horizons))
            for name in found[0]:
                scores[f"{index['model']} {point} {name}"], family[f"{index['model']} {point} {name}"] = (
                    torch.cat([f[name] for f in found]),
                    "latent",
                )
    if words:
        # of whole films alone, and of the test clips'
        said = torch.full((len(w.rows), len(w.horizons)), math.nan, dtype=torch.float64)
        for k, (clip, _, item) in enumerate(w.rows):
            if item["id"] in row:
                said[k, -1] = agreement(
                    words["said"][row[item["id"]]][None], words["said"][row[f"{clip}/real"]]
                )[0]
        scores["words"], family["words"] = said, "words"
    return scores, family, about


def tabulated(w, scores, family):
    """Of planted films: ({verifier: row of the table}, {family: its best verifier on val}, {verifier: AUROC on test [1 + B]}, weights [1 + B, test films])."""
    test, val = where(w.test), where(w.val)
    draws, n = drawn_films(w, test)
    place = {k: j for j, k in enumerate(test)}
    alike = torch.tensor([k == "right" for k in w.kinds])
    table, areas = {}, {}
    for name, x in scores.items():
        x = x[:, -1]
        areas[name] = aurocs(x[test], w.right[test], draws)
        row = {"family": family[name], **named_interval("auroc", areas[name], n)}
        if x[test].isnan().any():
            table[name] = row | {
                "auroc_val": None,
                "false_alarms": None,
                "kinds": {},
                "reason": "no time step of its own ends with the film's frames, or some were not asked about",
            }
            continue
        chosen = val if not x[val].isnan().any() else []
        row["auroc_val"] = (
            aurocs(x[val], w.right[val], torch.ones(1, len(val), dtype=torch.float64)).item()
            if chosen
            else None
        )
        # flagged is what lies below it
        limit = x[where(alike & (w.val if chosen else w.test))].quantile(ALARMS)
        row |= {"false_alarms": (x[where(alike & w.test)] < limit).double().mean(), "kinds": {}}
        for kind in dict.fromkeys(k for k in w.kinds if k in PLANTED and k != "right"):
            these = [k for k in test if w.kinds[k] in (kind, "right")]
            values = aurocs(x[these], alike[these], draws[:, [place[k] for k in these]])
            row["kinds"][kind] = {
                **named_interval("auroc", values, n),
                "flagged": (x[[k for k in these if w.kinds[k] == kind]] < limit).double().mean(),
            }
        table[name] = row
    # of an encoder without a step so short nothing is known
    able = {k: row for k, row in table.items() if row["auroc"] is not None}
    best = {
        f: max((k for k in able if able[k]["family"] == f), key=lambda k: able[k]["auroc_val"] or 0)
        for f in dict.fromkeys(row["family"] for row in able.values())
    }
    return table, best, areas, draws


def without_knowing(w, name):
    """Scores [test films] of a pixel verifier that is given the outcome of another clip: a floor, what it can tell without knowing the outcome."""
    clips, next_one = [c for c in w.clips if split_of(w.films[c]["real"]["source"]) == "test"], {}
    for k, c in enumerate(clips):
        other = next(
            (
                d
                for d in (*clips[k + 1 :], *clips[:k])
                if w.films[d]["real"]["source"] != w.films[c]["real"]["source"]
            ),
            c,
        )
        next_one[c] = torch.cat([w.truths[c][:1], w.truths[other][1:]])
    scores = pixel_scores(w, [name], clips, next_one)[name][:, -1]
    return scores[[w.kinds[k] in PLANTED for k, row in enumerate(w.rows) if row[0] in next_one]]


def begun(w):
    """Which planted wrong films have gone wrong by each horizon, i.e. differ from the right one by more than the late one does: bool [films, horizons]."""
    found = torch.zeros(len(w.rows), len(w.horizons), dtype=torch.bool)
    for k in where(w.test & ~w.right):
        clip, _, item = w.rows[k]
        right, late = (w.films[clip][kind]["frames"][1:].float() for kind in ("right", "late"))
        own, least = ((x - right).abs().mean((1, 2, 3)) for x in (item["frames"][1:].float(), late))
        found[k] = torch.tensor([bool(own[:h].max() > least[:h].max()) for h in w.horizons])
    return found


def further(w, scores, best):
    """How far ahead verification works: {horizon: {begun: share of wrong test films that have gone wrong by then, verifier: its AUROC for these against right ones, seen up to the horizon}}."""
    wrong, found = begun(w), {}
    for j, h in enumerate(w.horizons):
        rows = where(w.test & (w.right | wrong[:, j]))
        draws, n = drawn_films(w, rows)
        areas = {name: aurocs(scores[name][rows, j], w.right[rows], draws) for name in best.values()}
        found[h] = {"begun": wrong[where(w.test & ~w.right), j].double().mean()} | {
            name: named_interval("auroc", x, n) for name, x in areas.items() if not x[0].isnan()
        }
    return found


def rightness_of_planted(w):
    """{kind: share of its planted test films that `rightness` calls right}: checks that measure, which judges the video model's films, where the answer is known."""
    found = {}
    for clip in (c for c in w.masks if split_of(w.films[c]["real"]["source"]) == "test"):
        kinds = [k for k in PLANTED if k in w.films[clip]]
        seen = rightness(
            torch.stack([w.films[clip][k]["frames"] for k in kinds]),
            w.truths[clip],
            w.masks[clip],
            w.films[clip]["real"].get("direction"),
        )
        for kind, right in zip(
            kinds, seen["direction"] & seen["position"] & seen["identity"] if seen else (), strict=False
        ):
            found.setdefault(kind, []).append(right.double())
    return {kind: torch.stack(x).mean() for kind, x in found.items()}


def of_the_video_model(w, scores):
    """The video model's films of test clips: which are right (`rightness`), aspect by aspect, and which verifiers can tell. Without position_error, which measures the same as `rightness`."""
    found, kept = {a: [] for a in ("direction", "position", "identity", "all")}, []
    for clip in dict.fromkeys(w.rows[k][0] for k in where(w.made)):
        these = [k for k in where(w.made) if w.rows[k][0] == clip]
        seen = clip in w.masks and rightness(
            torch.stack([w.rows[k][2]["frames"] for k in these]),
            w.truths[clip],
            w.masks[clip],
            w.films[clip]["real"].get("direction"),
        )
        if not seen:
            continue
        kept += these
        for aspect, x in {**seen, "all": seen["direction"] & seen["position"] & seen["identity"]}.items():
            found[aspect].append(x)
    if not kept:
        return None
    truth = {a: torch.cat(x) for a, x in found.items()}
    draws, n = drawn_films(w, kept)
    verifiers = {
        name: {
            a: named_interval("auroc", aurocs(scores[name][kept, -1], x, draws), n) for a, x in truth.items()
        }
        for name in scores
        if name != "position_error"
    }
    return {
        "films": len(kept),
        "right": {a: x.double().mean() for a, x in truth.items()},
        "right_by_kind": {
            kind: truth["all"][[w.kinds[k] == kind for k in kept]].double().mean()
            for kind in dict.fromkeys(w.kinds[k] for k in kept)
        },
        "verifiers": verifiers,
        "rows": kept,
        "truth": truth["all"],
    }


def within(scores, truth, draws):
    """(AUROC [B] over pairs within a clip, share [B] of clips whose highest score belongs to a right film). scores, truth: [clips, c]; draws [B, clips]."""
    higher = (scores[:, :, None] > scores[:, None]).double() + 0.5 * (scores[:, :, None] == scores[:, None])
    pairs = (truth[:, :, None] & ~truth[:, None]).double()
    top = truth.gather(1, scores.argmax(1, keepdim=True))[:, 0].double()
    return draws @ (higher * pairs).sum((1, 2)) / (draws @ pairs.sum((1, 2))), draws @ top / draws.sum(1)


def futures_of(args, w):
    """(what predict.py --mode futures kept, its films [candidates, clips, h, H, W, 3]); refused unless they begin where the rollouts begin."""
    path = Path(args.futures).with_suffix(".pt")
    kept = load_pt(path, RESULT)
    films = torch.stack(
        [
            load_pt(path.with_name(path.stem + "-parts") / f"{part}.pt", RESULT)["films"]
            for part in kept["candidates"]
        ]
    )
    there = next(iter(w.truths.values())).shape[1:]
    if films.shape[3:] != there or films.shape[2] >= w.frames:
        refuse(
            f"{args.futures} holds films of {list(films.shape[2:])}, the rollouts are of {[w.frames - 1, *there]}; make both with the same settings"
        )
    for clip, last in zip(kept["ids"], kept.get("last", [""] * len(kept["ids"])), strict=True):
        if clip in w.truths and digest(w.truths[clip][0].numpy().tobytes()) != last:
            refuse(
                f"{path} goes on from another frame of {clip} than {args.rollouts}; make both again, with the same --past and --horizon"
            )
    return kept, films


def candidates(w, kept, films, name):
    """Of several futures of one clip, can the better half be told without the outcome? Beliefs of predict.py beside the pixel verifier `name`, which knows the outcome.

    Better is where the object ends nearer to its real place: in so few frames it moves too little to ask for right and wrong. Reported are AUROCs, how much worse they are than the verifier's,
    and how often the future that is picked is of the better half.
    """
    length = films.shape[2]
    truth = []
    rows = []
    scores = []
    sources = []
    for k, clip in enumerate(kept["ids"]):
        if clip not in w.masks:
            continue
        seen = w.truths[clip][: length + 1]
        shown = torch.cat([seen[:1].expand(len(films), 1, -1, -1, -1), films[:, k]], 1)
        here = whereabouts(torch.cat([seen[None], shown]), w.masks[clip].expand(len(shown) + 1, -1, -1))[
            :, -1
        ]
        if not here[0].isnan().any():
            apart = (here[1:] - here[0]).norm(dim=-1).nan_to_num(math.inf)
            truth.append(apart <= apart.median())
            scores.append(
                w.pixels[name](
                    shown, seen, types.SimpleNamespace(horizons=[length], lpips=w.lpips, mask=w.masks[clip])
                )[:, 0]
            )
            rows.append(k)
            sources.append(w.films[clip]["real"]["source"])
    if not rows:
        return None
    truth, draws, n = torch.stack(truth), drawn(sources, w.seed), len(set(sources))
    told = {"with_outcome": torch.stack(scores)} | {
        b: x[:, rows].T.double() for b, x in kept["beliefs"].items()
    }
    found = {b: within(x, truth, draws) for b, x in told.items()}
    rates = {"random": draws @ truth.double().mean(1) / draws.sum(1)} | {
        b: top for b, (_, top) in found.items()
    }
    table = {
        b: {
            **named_interval("auroc", area, n),
            **named_interval("worse_by", found["with_outcome"][0] - area, n, least=-1.0),
        }
        for b, (area, _) in found.items()
    }
    return {
        "clips": len(rows),
        "verifier": name,
        "with_outcome": {k: x for k, x in table.pop("with_outcome").items() if "worse" not in k},
        "without_outcome": table,
        "picked_better": {
            b: dict(zip(("share", "low", "high"), named_interval("share", x, n).values(), strict=True))
            for b, x in rates.items()
        },
    }


def repeated(w):
    """A ceiling (Physics-IQ's physical variance): mean pixel scores of one take of a scene as the prediction of another take, where clips name a scene in `repeat`."""
    takes = {}
    for clip in w.clips:
        if scene := w.films[clip]["real"].get("repeat"):
            takes.setdefault(scene, []).append(clip)
    pairs = [(a, b) for group in takes.values() for a, b in zip(group, group[1:], strict=False)]
    if not pairs:
        return None
    found = {}
    for a, b in pairs:
        see = types.SimpleNamespace(horizons=[w.frames - 1], lpips=w.lpips, mask=None)
        for name in w.pixels:
            if name != "position_error":
                found.setdefault(name, []).append(w.pixels[name](w.truths[a][None], w.truths[b], see)[0, 0])
    return {name: torch.stack(x).mean() for name, x in found.items()}


def acting(w, scores, family, best, areas, draws, promised):
    """What the pixel verifier that val chose is good for: (criteria, conformal acceptance, risk-coverage curve, findings of of_the_video_model)."""
    test, pixel = where(w.test), best["pixel"]
    n, right, x = len({w.sources[k] for k in test}), w.right[test], scores[pixel][test, -1]
    floors = {
        "chance": torch.full((len(draws),), 0.5, dtype=torch.float64),
        "other_outcome": aurocs(without_knowing(w, pixel), right, draws),
    }
    more = {"verifier": pixel, "options_searched": sum(f == "pixel" for f in family.values())}
    criteria = {"pixel_auroc": record(areas[pixel], floors, n, len(test), **more)}
    for f in ("tracked", "latent", "words"):
        if f in best:
            criteria[f"pixel_over_{f}"] = record(
                areas[pixel], {best[f]: areas[best[f]]}, n, len(test), **more
            )
    base, least = (draws[:, ~right].sum(1) / draws.sum(1)), mean_risk(right.double(), right, draws)
    area = mean_risk(x, right, draws)
    criteria["selective_risk"] = record(
        base - area, {"random": 0 * base}, n, len(test), ceiling=(base - least)[0].item(), **more
    )
    bound = conformal_bound(scores[pixel][where(w.val & ~w.right), -1], promised)
    accepted = x > bound
    wrong, sources = where(~right), [w.sources[k] for k in test]
    error = bootstrap(accepted[wrong].double(), [sources[k] for k in wrong], seed=w.seed)
    error = error[0], max(error[1], 0.0), min(error[2], 1.0)
    halves = conformal(x, right, sources, promised, w.seed)
    halves = {
        "conformal_promised": promised,
        **with_bounds("conformal_error", error),
        "conformal_accepted_right": accepted[right].double().mean(),
        **halves,
        "accepted_by_kind": {
            kind: accepted[[w.kinds[k] == kind for k in test]].double().mean()
            for kind in PLANTED
            if kind in w.kinds
        },
    }
    criteria["conformal_error"] = {
        "score": error[0],
        "low": error[1],
        "high": error[2],
        "better": "lower",
        "n": len(wrong),
        "sources": n,
        "floor": 1.0,
        "floor_name": "accept_all",
        "ceiling": 0.0,
        "gain": 1 - error[0],
        "gain_low": 1 - error[2],
        "gain_high": 1 - error[1],
        **more,
    }
    made = of_the_video_model(w, scores)
    if made and made["truth"].any() and not made["truth"].all():
        rows, truth, (own, m) = made["rows"], made["truth"], drawn_films(w, made["rows"])
        chance = torch.full((len(own),), 0.5, dtype=torch.float64)
        area_made = aurocs(scores[pixel][rows, -1], truth, own)
        criteria["made_auroc"] = record(area_made, {"chance": chance}, m, len(rows), **more)
        if "latent" in best:
            criteria["made_over_latent"] = record(
                area_made,
                {best["latent"]: aurocs(scores[best["latent"]][rows, -1], truth, own)},
                m,
                len(rows),
                **more,
            )
        passed = scores[pixel][rows, -1] > bound
        halves |= {
            "conformal_error_made": passed[~truth].double().mean(),
            "conformal_accepted_made": passed[truth].double().mean(),
        }
    risk, coverage = (c[0] for c in risk_coverage(x, right, draws[:1]))
    points = [
        max(int(len(risk) * q), 1) - 1 for q in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    ]
    curve = {
        "coverage": [coverage[k] for k in points],
        "risk": [risk[k] for k in points],
        "random": base[0],
        "perfect": [max(0.0, 1 - right.double().mean() / coverage[k]) for k in points],
    }
    return (
        criteria,
        {"base_risk": base[0], **named_interval("aurc", area, n), "aurc_perfect": least[0], **halves},
        curve,
        made,
    )


def rollouts(args, started):
    """--rollouts: write verify.yaml: which verifiers tell right predictions from wrong ones, of which kinds, how early, and what accepting by them costs."""
    films, index = read_rollouts(args)
    out = Path(args.out or Path(args.rollouts) / "verify.yaml")
    check_writable(out)
    w = watched(args, films)
    futures = futures_of(args, w) if args.futures else None
    scores, family, about = every_score(args, w)
    table, best, areas, draws = tabulated(w, scores, family)
    criteria, halves, curve, made = acting(w, scores, family, best, areas, draws, args.promised)
    right = [k for k in where(w.test) if w.kinds[k] == "right"]
    ceilings = {"vae": {name: scores[name][right, -1].mean() for name in w.pixels}, "repeat": repeated(w)}
    result = {
        "stage": "verify",
        "model": None,
        "weights": index["vae_weights"],
        **about,
        "data_name": index["name"].removesuffix("-planted"),
        "data": index["data"],
        "decoder": index["vae"],
    }
    for f, name in best.items():
        result |= {
            f"{f}_verifier": name,
            **{f"{f}_{k}": table[name][k] for k in ("auroc", "auroc_low", "auroc_high")},
        }
    result |= {
        **halves,
        "films": len(w.rows),
        "planted_test": int(w.test.sum()),
        "clips": len(w.clips),
        "sources_test": len({w.sources[k] for k in where(w.test)}),
        "still_frames": sum(
            int((~moving_regions(t[None]).flatten(2).any(-1)).sum()) for t in w.truths.values()
        ),
        "lpips_reason": None
        if "lpips" in w.pixels
        else "the published backbone is not on this machine: lpips_random_backbone has an untrained one",
        "repeat_reason": None
        if ceilings["repeat"]
        else "no clip names a scene of which there is another take (`repeat`)",
        "criteria": criteria,
        "verifiers": table,
        "horizons": further(w, scores, best),
        "risk_coverage": curve,
        "made": made and {k: v for k, v in made.items() if k not in ("rows", "truth")},
        "futures": candidates(w, *futures, best["pixel"]) if futures else None,
        "rightness_of_planted": rightness_of_planted(w),
        "ceilings": ceilings,
        "notes": NOTES,
        "run": run_info(args, started, script="verify.py"),
    }
    result = plain(result)
    verified_picture(w, result, out.with_suffix(".png"))
    save_yaml(out, result)
    show_verifiers(result)
    return result


def show_verifiers(result):
    """The verifiers as a table, best first, then `key value`."""
    kinds = list(next(iter(result["verifiers"].values()))["kinds"])
    print(f"\n{'':60s} share flagged, where {ALARMS:.0%} of val's right ones are")
    print(
        f"{'verifier':34s} {'':7s} {'AUROC':>6s}  {'95% interval':16s}"
        + "".join(f"{k:>10s}" for k in ("right", *kinds))
    )
    for name, row in sorted(
        ((k, r) for k, r in result["verifiers"].items() if r["auroc"] is not None),
        key=lambda item: -item[1]["auroc"],
    ):
        flagged = [row["false_alarms"], *(row["kinds"][k]["flagged"] for k in kinds)]
        print(
            f"{name:34s} {row['family']:7s} {row['auroc']:6.3f}  [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]  "
            + "".join(f"{x:10.2f}" for x in flagged)
        )
    print()
    say(result)


def verified_picture(w, result, path):
    """verify.png: planted films of one clip; who can tell, and of which kinds; how far ahead; risk against coverage."""
    plt = pyplot()
    colour = {"pixel": "#0072B2", "latent": "#D55E00", "words": "#009E73", "tracked": "#CC79A7"}
    mark = {"pixel": "o", "latent": "s", "words": "D", "tracked": "^"}
    clip = next(c for c in w.clips if split_of(w.films[c]["real"]["source"]) == "test")
    shown = {k: i["frames"] for k, i in w.films[clip].items() if k in ("real", *PLANTED)}
    names = sorted(
        (n for n, row in result["verifiers"].items() if row["auroc"] is not None),
        key=lambda n: result["verifiers"][n]["auroc"],
    )
    figure = plt.figure(figsize=(16, 0.9 * len(shown) + 0.3 * len(names) + 8), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[0.9 * len(shown), 0.3 * len(names) + 2, 5])
    at = [0, *w.horizons]
    grid = top.subplots(len(shown), len(at))
    for r, (kind, film) in enumerate(shown.items()):
        for c, t in enumerate(at):
            grid[r, c].imshow(film[t].numpy())
            grid[r, c].set(xticks=[], yticks=[])
        grid[r, 0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=11)
    top.suptitle(
        f"What is planted: the last frame seen, then {', '.join(f'+{h}' for h in w.horizons)}; real is what happened, all others have been through the autoencoder",
        fontsize=11,
    )
    left, heat = middle.subplots(1, 2, width_ratios=[1, 1.1])
    for y, n in enumerate(names):
        row = result["verifiers"][n]
        left.plot([row["auroc_low"], row["auroc_high"]], [y, y], color=colour[row["family"]], lw=2)
        left.plot(row["auroc"], y, mark[row["family"]], color=colour[row["family"]])
    left.axvline(0.5, color="grey", ls=":")
    left.axvline(GATE4["pixel_auroc"]["threshold"], color="black", lw=1)
    left.set(
        yticks=range(len(names)),
        yticklabels=names,
        title="AUROC of right against wrong predictions (circle: pixels, square: latents,\n"
        "triangle: told which object to follow, diamond: words; dotted: chance, line: threshold)",
    )
    kinds = list(result["verifiers"][names[0]]["kinds"])
    values = [
        [
            result["verifiers"][n]["false_alarms"],
            *(result["verifiers"][n]["kinds"][k]["flagged"] for k in kinds),
        ]
        for n in names
    ]
    kinds = ["right", *kinds]
    heat.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto", origin="lower")
    for y, line in enumerate(values):
        for x, v in enumerate(line):
            heat.text(
                x, y, f"{v:.2f}", ha="center", va="center", color="white" if v < 0.6 else "black", fontsize=9
            )
    heat.set(
        xticks=range(len(kinds)),
        xticklabels=[f"{k}\n({'right' if PLANTED[k] else 'wrong'})" for k in kinds],
        yticks=[],
    )
    heat.set_title(f"Share flagged, where {ALARMS:.0%} of val's right predictions are")
    one, two = bottom.subplots(1, 2)
    for name in (result[f"{f}_verifier"] for f in colour if f"{f}_verifier" in result):
        row = [(h, r[name]) for h, r in result["horizons"].items() if name in r]
        f = result["verifiers"][name]["family"]
        one.plot(
            [int(h) for h, _ in row],
            [r["auroc"] for _, r in row],
            marker=mark[f],
            color=colour[f],
            label=name,
        )
        one.fill_between(
            [int(h) for h, _ in row],
            [r["auroc_low"] for _, r in row],
            [r["auroc_high"] for _, r in row],
            color=colour[f],
            alpha=0.2,
        )
    one.axhline(0.5, color="grey", ls=":")
    one.set(
        title="How far ahead: AUROC of verifiers that see so many frames",
        xlabel="frames after the last one seen",
        xscale="log",
        xticks=w.horizons,
        xticklabels=w.horizons,
        ylim=(0.3, 1.02),
    )
    one.minorticks_off()
    one.legend(frameon=False)
    curve = result["risk_coverage"]
    two.plot(curve["coverage"], curve["risk"], "o-", color=colour["pixel"], label=result["pixel_verifier"])
    two.plot(curve["coverage"], curve["perfect"], ls="--", color="black", label="perfect")
    two.axhline(curve["random"], color="grey", ls=":", label="random")
    two.set(
        title="Share of wrong predictions among those accepted",
        xlabel="share accepted",
        ylim=(-0.02, 1),
        xlim=(0, 1),
    )
    two.legend(frameon=False)
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
    language = [
        row.get("grid", True) for point, row in index["points"].items() if point.startswith("language.")
    ]
    billions, kind, path = entry.get("params"), entry.get("type"), entry.get("path", "")
    if billions is None and (files := list((HERE / path).glob("*.safetensors")) if path else []):
        billions = (
            sum(
                math.prod(tensor["shape"])
                for file in files
                for name, tensor in safetensors_header(file).items()
                if name != "__metadata__"
            )
            / 1e9
        )
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
        refuse(f"{folder} is not a folder; give --screen the folders of the stages' YAML")
    probe = load_yaml(folder / "probe.yaml", "probe")
    index = load_yaml(folder / "features" / "index.yaml", "extract")
    name, entry = probe["model"], model_of(index)
    kind = (
        "hybrid"
        if "+" in name
        else entry.get("kind")
        or ("vlm" if any(p.startswith("language.") for p in index["points"]) else "encoder")
    )
    if index["model"] != name:
        refuse(
            f"{folder}/features/index.yaml is about model {index['model']!r}, probe.yaml about {name!r}; give results that belong together"
        )
    found, scores, criteria = load_pt(folder / "probe.pt", RESULT), {}, {}
    if "scores" not in found:
        refuse(
            f"{folder}/probe.pt has no scores of single items, by which models are compared; run probe.py again, on pictures with boxes"
        )
    for key, x in found["scores"].items():
        short = key.removeprefix("decoder_")
        # mean over seeds
        scores[short], criteria[short] = (
            x.double().reshape(-1, len(found["ids"])).mean(0),
            probe["criteria"][key],
        )
        if abs(scores[short].mean().item() - criteria[short]["score"]) > 1e-3:
            refuse(
                f"{folder}: {key} is {scores[short].mean():.3f} in probe.pt and {criteria[short]['score']:.3f} in probe.yaml, which are of different runs; run probe.py again"
            )
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


def together(models):
    """Refuse models that cannot be compared item by item, and put everybody's test items into the order of the first VLM, which is returned."""
    first, names = next((m for m in models if m["kind"] == "vlm"), models[0]), [m["name"] for m in models]
    if len(models) < 2:
        refuse(f"--screen compares models, and {first['folder']} is one; give two folders or more")
    if first["kind"] != "vlm":
        refuse(f"--screen is given no model of vision and language among {', '.join(names)}; add one")
    for m in models:
        what = next((k for k in ("data_name", "data", "decoder") if m[k] != first[k]), None)
        if names.count(m["name"]) > 1:
            refuse(f"--screen is given {m['name']!r} more than once; give every model once")
        if what:
            refuse(
                f"{m['folder']} has {what.replace('_', ' ')} {m[what]!r}, {first['folder']} {first[what]!r}; compare models on the same data and decoder"
            )
        if (
            set(m["ids"]) != set(first["ids"])
            or set(m["test"]) != set(first["test"])
            or dict(zip(m["test"], m["sources"], strict=True))
            != dict(zip(first["test"], first["sources"], strict=True))
        ):
            refuse(
                f"{m['folder']} and {first['folder']} do not hold the same items in the same split; run the stages of both on the same data folder"
            )
        if set(m["scores"]) - set(first["scores"]):
            refuse(
                f"{m['folder']} has {', '.join(m['scores'])}, {first['folder']} {', '.join(first['scores'])}; run probe.py of both with, or both without, the published LPIPS backbone"
            )
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
            known = m["seconds"] and reference["seconds"]
            row = timed(
                m["seconds"] / reference["seconds"] if known else None,
                f"{NO_INTERVAL}; {reference['name']} is 1" if known else STREAMED,
                thresholds[name],
                source,
            )
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
            draws[name] = component(
                (weights @ (record["skill_of"](x) if row.get("stand_in") else x)) / weights.sum(1), row
            )
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
        return {
            "evidence": "; ".join(said(m) for m in which) or "not measured: none is among the models",
            "holds": True if "PASS" in answers else False if set(answers) == {"FAIL"} else None,
        }

    grounded = [m for m in models if m["name"] in GROUNDED]
    marginal = max(judged, key=lambda m: m["rows"]["spatial_iou"]["score"], default=None)
    misses = (
        [
            f"{name} by {abs(row['score'] - row['threshold']):.3f}"
            for name, row in marginal["rows"].items()
            if row["score"] is not None and row["answer"] == "FAIL"
        ]
        if marginal
        else []
    )
    return [
        {"way": "hybrid", **evidence([m for m in models if m["kind"] != "vlm" and m not in grounded])},
        {"way": "grounding-specialised models (Kosmos-2, Florence-2, Grounding DINO)", **evidence(grounded)},
        {"way": "fine-tuned encoder", "evidence": "not measured", "holds": None},
        {
            "way": "accept marginal",
            "evidence": f"{marginal['name']} misses {', '.join(misses) or 'nothing for certain'}"
            if marginal
            else "no model is above its floor",
            "holds": None if marginal else False,
        },
    ]


def screen(args, thresholds):
    """Compare models on the same items. Returns the result to be saved: `models` with their ranks, `criteria` model by model, `comparisons` of the first with every other."""
    models = [measured(folder) for folder in args.screen]
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
        return (
            sum(SCREEN[k]["weight"] * parts[k] for k in names) / sum(SCREEN[k]["weight"] for k in names)
            if all(parts.get(k) is not None for k in names)
            else None
        )

    def bounds(value, draws, tail=0.025):
        return widened(
            value, *draws.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist(), n, tail
        )

    names = [k for k in SCREEN if k not in left_out]
    for m in models:
        parts = {k: row["component"] for k, row in m["rows"].items()}
        m["weighted"], m["weighted_draws"] = weighted(parts, names), weighted(m["draws"], names)
        m["low"], m["high"] = (
            bounds(m["weighted"], m["weighted_draws"]) if m["weighted"] is not None else (None, None)
        )
        m["rank"] = m["first_probability"] = None

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
            for key, using in (("", names), ("_without_speed", [k for k in names if k != "speed"])):
                value = weighted(
                    {k: first["rows"][k]["component"] - other["rows"][k]["component"] for k in using}, using
                )
                low, high = bounds(
                    value, weighted({k: first["draws"][k] - other["draws"][k] for k in using}, using), tail
                )
                row |= {f"difference{key}": value, f"low{key}": low, f"high{key}": high}
            by = {
                k: SCREEN[k]["weight"]
                / sum(SCREEN[j]["weight"] for j in names)
                * (first["rows"][k]["component"] - other["rows"][k]["component"])
                for k in names
            }
            comparisons[other["name"]] = row | {
                "level": 1 - 2 * tail,
                "told_apart": min(row["low"], row["low_without_speed"]) > 0,
                **{f"by_{k}": v for k, v in by.items()},
            }
    ties = [name for name, row in comparisons.items() if not row["told_apart"]]

    decisions = [m["decision"] for m in able]
    if "PROCEED" in decisions:
        outcome = "SUCCESS"
    elif passing:  # speed does not count: the reference has it by definition
        outcome = (
            "PARTIAL SUCCESS"
            if any("PASS" in (m["rows"]["bbox_iou"]["answer"], m["rows"]["lpips"]["answer"]) for m in passing)
            else "SPATIAL ONLY"
        )
    else:
        outcome = (
            "FAILURE" if all(m["rows"]["spatial_iou"]["answer"] == "FAIL" for m in vlms) else "INCONCLUSIVE"
        )
    ways = fallbacks(models, able)
    fallback = next((w for holds in (True, None) for w in ways if w["holds"] is holds), ways[-1])
    first = pool[0] if pool else None
    if passing:
        advice = f"{'a tie of ' + ', '.join([first['name'], *ties]) + ': none can be told from the first' if ties else first['name']}; {first['decision']}, {first['why']}"
        if first["decision"] != "PROCEED" and outcome == "SUCCESS":
            advice += f"; but {', '.join(m['name'] for m in passing if m['decision'] == 'PROCEED')} passes every criterion"
    elif outcome == "FAILURE":
        advice = f"no model alone; fallback: {fallback['way']} ({fallback['evidence']})"
    else:
        advice = "none yet: no model that can be chosen passes spatial IoU, and not all fail"
    stood_in = any(row.get("stand_in") for m in models for row in m["rows"].values())
    kinds = f"{' and '.join(sorted({m['weights'] for m in models}))} weights, {lead['data']} data" + (
        "; LPIPS by a stand-in" if stood_in else ""
    )
    result = {
        "stage": "screen",
        "outcome": outcome,
        "headline": f"{outcome} ({kinds}): {advice}",
        "first": first and first["name"],
        "second": pool[1]["name"] if len(pool) > 1 else None,
        "tie": bool(ties),
        "confidence": first and first["first_probability"],
        "fallback": fallback["way"] if outcome == "FAILURE" else None,
        "instrument_check": any(m["weights"] != "pretrained" for m in models),
        "weights": " and ".join(sorted({m["weights"] for m in models})),
        "data": lead["data"],
        "data_name": lead["data_name"],
        "decoder": lead["decoder"],
        "speed_reference": reference["name"],
        "items": len(sources),
        "sources": n,
        "overridden": args.changed,
        "weights_percent": {
            k: SCREEN[k]["weight"] / sum(SCREEN[j]["weight"] for j in names) * 100 for k in names
        },
        "left_out": left_out,
        "models": {
            m["name"]: {
                k: m[k]
                for k in (
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
            }
            for m in models
        },
        "comparisons": comparisons,
        "fallbacks": ways,
        "criteria": {
            m["name"]: {k: {x: y for x, y in row.items() if x != "earns"} for k, row in m["rows"].items()}
            for m in models
        },
        "figures": {
            m["name"]: {
                k: m["all"][k]["score"] for k, rule in GATE1.items() if "earlier" in rule and k in m["all"]
            }
            for m in models
        },
    }
    return result


def number(x):
    return f"{x:.3f}" if isinstance(x, float) else "-" if x is None else str(x)


def spoken(row):
    """A criterion's row in a cell: score [interval] floor, answer."""
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
    floor = f", floor {row['floor']:.3f} {row['floor_name']}" if "floor" in row else ""
    return number(row["score"]) + interval + floor + (f": {row['answer']}" if row["answer"] else "")


def table(head, rows):
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in [head, ["---"] * len(head), *rows])


def standing(m):
    """A model's weighted score, rank and chance in words."""
    return f"{number(m['weighted'])}" + (
        f" [{m['low']:.3f}, {m['high']:.3f}]" if m["weighted"] is not None else ""
    )


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
    print(
        f"{'model':24s} {'spatial IoU':28s} {'box IoU':28s} {'LPIPS' + ('*' if 'stand-in' in result['headline'] else ''):28s} {'speed':12s} {'integr.':7s} {'weighted':24s} {'rank':4s} decision"
    )
    for name, m in result["models"].items():
        rows = result["criteria"][name]
        cells = [
            number(row["score"])
            + (f" [{row['low']:.2f}, {row['high']:.2f}]" if "low" in row else "")
            + f" {row['answer']}"
            for row in (rows[k] for k in ("spatial_iou", "bbox_iou", "lpips"))
        ]
        print(
            f"{name:24s} {cells[0]:28s} {cells[1]:28s} {cells[2]:28s} {number(rows['speed']['score']) + ' ' + rows['speed']['answer']:12s} {number(rows['integration']['score']):7s} "
            f"{standing(m):24s} {m['rank'] or '-':<4} {m['decision'] or m['kind']}"
        )
    print()
    say(result)


def screen_picture(result, path):
    """screen.png: a dot with its interval per criterion and model, thresholds and floors; the weighted scores, stacked."""
    from matplotlib.lines import Line2D

    plt = pyplot()
    models, criteria = result["models"], result["criteria"]
    names = sorted(models, key=lambda n: (models[n]["rank"] or 99, models[n]["kind"] != "vlm"))
    colour = {"PASS": "#1a7f37", "FAIL": "#c0392b", "INCONCLUSIVE": "#b7791f"}
    title = {
        "spatial_iou": "Mask IoU",
        "bbox_iou": "Box IoU",
        "lpips": "LPIPS (lower is better)",
        "speed": f"Time per item, times {result['speed_reference']}'s\n(lower is better, no interval)",
    }
    figure, axes = plt.subplots(
        1,
        5,
        figsize=(18, 2.4 + 0.55 * len(names)),
        width_ratios=[1, 1, 1, 1, 1.5],
        sharey=True,
        layout="constrained",
    )
    for axis, (key, words) in zip(axes, title.items(), strict=False):
        stood_in = any(criteria[n][key].get("stand_in") for n in names)
        for y, name in enumerate(names):
            row = criteria[name][key]
            if row["score"] is None:
                axis.text(
                    0.5,
                    y,
                    "not measured",
                    transform=axis.get_yaxis_transform(),
                    ha="center",
                    va="center",
                    color="grey",
                    fontsize=9,
                )
                continue
            if "low" in row:
                axis.plot(
                    [row["low"], row["high"]],
                    [y, y],
                    color=colour[row["answer"]],
                    lw=3,
                    solid_capstyle="butt",
                )
                axis.plot([row["floor"]] * 2, [y - 0.3, y + 0.3], color="black", lw=1.2, ls=":")
            axis.plot(row["score"], y, "o", ms=8, color=colour[row["answer"]])
        axis.axvline(criteria[names[0]][key]["threshold"], color="black", lw=1.2)
        axis.set(title="LPIPS by a stand-in: skill\n0 mean image, 1 VAE latents" if stood_in else words)
        axis.set_xlim(*((0, 1.05) if key != "speed" else (0, None)))
        axis.grid(axis="x", color="0.9")
    axis = axes[-1]
    for y, name in enumerate(names):
        left, ranked = 0.0, models[name]["rank"] is not None
        for k, key in enumerate(result["weights_percent"]):
            part = (criteria[name][key]["component"] or 0) * result["weights_percent"][key] / 100
            axis.barh(
                y,
                part,
                left=left,
                color=f"C{k}",
                alpha=1 if ranked else 0.35,
                height=0.6,
                label=f"{key.replace('_', ' ')} ({result['weights_percent'][key]:.0f}%)" if y == 0 else None,
            )
            left += part
        if models[name]["weighted"] is not None and math.isfinite(models[name]["low"]):
            axis.plot([models[name]["low"], models[name]["high"]], [y, y], color="black", lw=2)
        m = models[name]
        chance = "" if m["first_probability"] is None else f", first in {100 * m['first_probability']:.0f}%"
        said = f"{number(m['weighted'])}  " + (
            f"rank {m['rank']}{chance}"
            if ranked
            else f"no rank ({m['kind'] if m['kind'] != 'vlm' else 'excluded'})"
        )
        axis.text(max(left, models[name]["high"] or 0) + 0.02, y, said, va="center", fontsize=9)
    axis.axvline(0.5, color="black", lw=1.2)
    axis.set(
        title="Weighted score (0.5: just at every threshold)", xlim=(0, 1.55), xticks=[0, 0.25, 0.5, 0.75, 1]
    )
    axes[0].set_yticks(range(len(names)), names, fontsize=11)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    marks = [
        Line2D([], [], marker="o", lw=3, color=c, label=f"{a.lower()}, 95% interval")
        for a, c in colour.items()
    ]
    marks += [
        Line2D([], [], color="black", lw=1.2, label="threshold"),
        Line2D([], [], color="black", lw=1.2, ls=":", label="best floor"),
    ]
    figure.legend(
        handles=[*marks, *axis.get_legend_handles_labels()[0]],
        loc="outside lower center",
        ncols=5,
        fontsize=9,
        frameon=False,
    )
    words = result["headline"]
    figure.suptitle(words if len(words) < 190 else words[:187] + "...", fontsize=11)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def save_screen(result, folder):
    """{model}-spatial.yaml, phase1-summary.md, final-recommendation.md, screen.png and, last, screen.yaml."""
    for name, m in result["models"].items():
        rows = result["criteria"][name]
        head = {
            f"{k}{'_' + part if part != 'score' else ''}": rows[k][part]
            for k in SCREEN
            for part in ("score", "low", "high", "floor", "answer", "stand_in")
            if part in rows[k]
        }
        save_yaml(
            folder / f"{name}-spatial.yaml",
            {
                "stage": "screen",
                "model": name,
                **head,
                "weighted": m["weighted"],
                "weighted_low": m["low"],
                "weighted_high": m["high"],
                "rank": m["rank"],
                "first_probability": m["first_probability"],
                "decision": m["decision"],
                "why": m["why"],
                "excluded": m["excluded"],
                "kind": m["kind"],
                "weights": m["weights"],
                **{k: result[k] for k in ("data", "data_name", "decoder")},
                "criteria": rows,
                "run": result["run"],
            },
        )
    save_text(folder / "phase1-summary.md", summary(result))
    save_text(folder / "final-recommendation.md", recommendation(result))
    screen_picture(result, folder / "screen.png")
    save_yaml(folder / "screen.yaml", result)


# ---------------------------------------------------------------- the command line

GATES = {1: (gate1, GATE1), 2: (gate2, GATE2), 3: (gate3, GATE3), 4: (gate4, GATE4)}


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--gate", type=int, default=1, choices=GATES, help="(default: %(default)s)")
    p.add_argument(
        "--results",
        default="results/tiny/shapes",
        help="the folder of the stages' YAML (default: %(default)s)",
    )
    p.add_argument("--motion", help="the folder of the same model's results on clips")
    p.add_argument(
        "--encoder",
        help="a spatial encoder's results on the same data: evidence for the hybrid, and its latency",
    )
    p.add_argument("--reference", help="Qwen2.5-VL's results on the same data, for the inference ratio")
    p.add_argument(
        "--screen",
        nargs="+",
        metavar="FOLDER",
        help="compare models instead: the folders of their stages' YAML, on the same data",
    )
    p.add_argument(
        "--plant",
        metavar="DATA",
        help="write rollouts whose rightness is known, of this folder's clips: a data folder, --out",
    )
    p.add_argument(
        "--vae", default="tiny-vae", help="plant: the autoencoder that they go through (default: %(default)s)"
    )
    p.add_argument("--past", type=int, default=8, help="plant: frames that are seen (default: %(default)s)")
    p.add_argument("--horizon", type=int, default=16, help="plant: frames after these (default: %(default)s)")
    p.add_argument("--films", help="plant: films that predict.py --mode continue wrote, to lie beside them")
    p.add_argument(
        "--rollouts", metavar="DATA", help="verify these planted rollouts: who can tell right from wrong"
    )
    p.add_argument(
        "--latents",
        nargs="+",
        metavar="FOLDER",
        help="rollouts: features that extract.py wrote of them, of as many encoders as are to verify",
    )
    p.add_argument(
        "--promised",
        type=float,
        default=GATE4["conformal_error"]["threshold"],
        help="rollouts: share of wrong predictions to be accepted at most (default: %(default)s)",
    )
    p.add_argument(
        "--words", help="rollouts: what explain.py --mode describe found a model to say of them (...-said.pt)"
    )
    p.add_argument(
        "--futures",
        help="rollouts: predict-futures.yaml, whose candidates are judged with and without the outcome",
    )
    p.add_argument(
        "--set", default="", help="thresholds to override, name=value with spaces or commas between"
    )
    p.add_argument("--out", help="default: gate<N>.yaml in --results; with --screen a folder, results/screen")
    p.add_argument("--print", dest="show", metavar="YAML", help="print a verdict that is there and stop")
    p.add_argument(
        "--strict",
        action="store_true",
        help="exit with 3 unless the verdict is PROCEED or the screening's outcome SUCCESS",
    )
    p.add_argument("--table", metavar="FOLDER", help="print a line for every verdict below a folder and stop")
    return p.parse_args(argv)


def overrides(text, rules=GATE1):
    """{criterion: threshold} from `name=value ...`; a refusal for an unknown name or a value that is no number."""
    changed = {}
    for pair in text.replace(",", " ").split():
        name, _, value = pair.partition("=")
        if rules.get(name, {}).get("threshold") is None:
            refuse(
                f"--set {pair!r} names no criterion; known: {', '.join(k for k, r in rules.items() if r['threshold'] is not None)}"
            )
        try:
            changed[name] = float(value)
            if not math.isfinite(changed[name]):
                raise ValueError
        except ValueError:
            refuse(f"--set {pair!r} has no number after the equals sign; write {name}=0.5")
    return changed


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.table:
        lines = overview(args.table)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            print("  ".join(x.ljust(w) for x, w in zip(line, widths, strict=True)))
        return lines
    if args.show:
        result = load_yaml(args.show, "screen" if Path(args.show).name == "screen.yaml" else "gate")
    elif args.plant:
        return plant_all(args)
    elif args.rollouts:
        return rollouts(args, started)
    elif args.screen:
        args.changed, out = overrides(args.set, SCREEN), Path(args.out or "results/screen")
        check_writable(out / "screen.yaml")
        result = plain(
            screen(args, {n: args.changed.get(n, r["threshold"]) for n, r in SCREEN.items()})
            | {"run": run_info(args, started, script="verify.py")}
        )
        save_screen(result, out)
    else:
        judged, rules = GATES[args.gate]
        args.changed = overrides(args.set, rules)
        if not Path(args.results).is_dir():
            refuse(f"{args.results} is not a folder; give --results, where the stages wrote their YAML")
        out = Path(args.out or Path(args.results) / f"gate{args.gate}.yaml")
        check_writable(out)
        result = plain(judged(args, {n: args.changed.get(n, r["threshold"]) for n, r in rules.items()}))
        result["run"] = run_info(args, started, script="verify.py")
        save_yaml(out, result)
        if args.gate == 1:  # of the others every stage draws its own
            picture(Path(args.results), out.with_suffix(".png"))
    (show if result["stage"] == "gate" else show_screen)(result)
    if args.strict and result.get("verdict", result.get("outcome")) not in ("PROCEED", "SUCCESS"):
        raise SystemExit(3)
    return result


if __name__ == "__main__":
    main()
