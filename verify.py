"""Stage 6. The verdicts: every criterion held against its threshold, and what follows.

    python verify.py --gate 1 --results results/tiny/shapes --motion results/tiny/moving --encoder results/tiny-dino/shapes
    python verify.py --print results/tiny/shapes/gate1.yaml

Reads the YAML that probe.py, align.py and adapt.py wrote. Writes gate1.yaml, and gate1.png: scores per layer with their intervals and floors;
originals, VAE and bridge reconstructions; true and decoded boxes. A criterion is

    PASS           when its interval clears the threshold and its paired gain over the best floor excludes zero
    FAIL           when its interval lies on the wrong side, or the gain over the floor can be no more than a tenth of the room above it
    INCONCLUSIVE   otherwise, with the number of items that would decide; or, whatever the score, where a control that cannot know knows: a leak

`plain_pass` is the bare comparison of an earlier plan, recorded beside it. `--set bbox_iou=0.5` overrides a threshold and is recorded.
"""
import math
import time
from pathlib import Path

from common import RESULT, check_writable, frames_of, load_items, load_pt, load_yaml, made_up_folder, parser, plain, refuse, run_info, save_yaml

# What each gate asks: must or should, the side that is good, the threshold, where the score is read. Thresholds are those of the evaluation plan
# that this project grew from; figures of its earlier study stand beside ours for comparison and judge nothing.
PLAN = "evaluation plan, phase 1"
GATE1 = {
    "spatial_iou": {"level": "must", "threshold": 0.60, "from": "probe", "earlier": {"qwen2.5-vl-7b": 0.559, "dinov2-l hybrid": 0.837}},
    "bbox_iou": {"level": "must", "threshold": 0.50, "from": "probe", "earlier": {"qwen2.5-vl-7b": 0.104}},
    "map50": {"level": "must", "threshold": 0.20, "from": "probe", "earlier": {"qwen2.5-vl-7b": 0.001, "dinov2-l hybrid": 0.182}},
    "lpips": {"level": "must", "threshold": 0.35, "from": "adapt", "better": "lower", "earlier": {"qwen2.5-vl-7b": 0.264, "dinov2-l hybrid": 0.162}},
    "ssim": {"level": "should", "threshold": 0.75, "from": "adapt", "earlier": {"qwen2.5-vl-7b": 0.943}},
    "edge_f1": {"level": "should", "threshold": 0.60, "from": "adapt", "earlier": {"qwen2.5-vl-7b": 0.351}},
    "cka": {"level": "should", "threshold": 0.40, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.687}},
    "linear_r2": {"level": "should", "threshold": 0.50, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.510}},
    "spearman": {"level": "should", "threshold": 0.60, "from": "align", "accepted": 0.50, "earlier": {"qwen2.5-vl-7b": 0.684}},
    "recall10": {"level": "should", "threshold": 0.20, "from": "align", "earlier": {"qwen2.5-vl-7b": 0.258}},
    "direction_accuracy": {"level": "should", "threshold": 0.80, "from": "motion"},
    "latency_overhead": {"level": "should", "threshold": 0.25, "from": "time", "better": "lower", "earlier": {"dinov2-l hybrid": 0.319}},
    "inference_ratio": {"level": "should", "threshold": 2.0, "from": "time", "better": "lower"},
}
SPATIAL = ("spatial_iou", "bbox_iou", "map50")
STAND_IN = 0.5  # skill between the mean image and the VAE that stands in for an LPIPS threshold when the backbone is not the published one
NO_INTERVAL, STREAMED = "a ratio of two medians, no interval", "features were streamed layer by layer, which times no single pass"
ROUNDING = 1e-3  # a gain that the printed table rounds away; it matters where a floor reaches the ceiling


def negligible(record):
    """Can the gain over the best floor be no more than a tenth of the room above it?"""
    return record["gain_high"] < max(0.1 * abs(record["ceiling"] - record["floor"]), ROUNDING)


def judge(record, threshold, better="higher"):
    """Three answers. record: score, low, high, gain, gain_low, gain_high, floor, ceiling, n. -> {answer, plain_pass, reason, n_needed}."""
    sign = 1 if better == "higher" else -1
    if not all(math.isfinite(record[k]) for k in ("score", "low", "high", "gain_low", "gain_high", "floor", "ceiling")):
        return {"answer": "INCONCLUSIVE", "plain_pass": False, "reason": "the score is not a number, or its interval has no bounds (a single source has none)"}
    near, far = sorted((sign * (record["low"] - threshold), sign * (record["high"] - threshold)))
    above_floor = record["gain_low"] > 0
    answer = {"answer": "INCONCLUSIVE", "plain_pass": sign * (record["score"] - threshold) > 0}
    if record.get("leak"):
        return answer | {"reason": f"leak: the control {record['leak']!r} scores {record['floors'][record['leak']]:.3f}, which it cannot without the answer; mend that first"}
    if far < 0:
        return answer | {"answer": "FAIL", "reason": "the interval lies on the wrong side of the threshold"}
    if negligible(record):  # asked first, or enough items would turn the same small gain from a failure into a pass
        return answer | {"answer": "FAIL", "reason": f"no more than a tenth of the room above the floor ({record['floor_name']}) can be there"}
    if near > 0 and above_floor:
        return answer | {"answer": "PASS", "reason": "the interval clears the threshold and the gain over the best floor excludes zero"}
    # Half-widths shrink with the square root of n: how many items until both questions are settled, if the scores stay as they are.
    needs = []
    if near <= 0:
        distance = abs(record["score"] - threshold)
        needs.append(((record["high"] - record["low"]) / 2 / distance) ** 2 if distance else float("inf"))
    if not above_floor:
        needs.append(((record["gain_high"] - record["gain_low"]) / 2 / abs(record["gain"])) ** 2 if record["gain"] else float("inf"))
    factor = max(needs)
    doubt = " and ".join(["the interval spans the threshold"] * (near <= 0) + [f"the gain over {record['floor_name']} may be zero"] * (not above_floor))
    return answer | {"reason": doubt, "n_needed": int(record["n"] * factor) + 1 if factor < 1e4 else None}


def stand_in(record):
    """An LPIPS record with an unpublished backbone, rewritten as skill between the mean image and the VAE; None when the VAE is no better than that."""
    floor = record.get("floors", {}).get("mean_image", record["floor"])
    room = record["ceiling"] - floor
    if room >= 0:
        return None

    def skill(x):
        return (x - floor) / room
    low, high = sorted((skill(record["low"]), skill(record["high"])))
    return {**record, "score": skill(record["score"]), "low": low, "high": high, "floor": 0.0, "floor_name": "mean_image", "ceiling": 1.0, "better": "higher", "skill_of": skill,
            "gain": record["gain"] / -room, "gain_low": record["gain_low"] / -room, "gain_high": record["gain_high"] / -room}


def held(criteria, name, rule, threshold, source):
    """(row, record): a criterion's record held against the threshold, LPIPS without its published backbone by the stand-in. What was not measured says so; its record is None."""
    record, better, row = criteria.get(name), rule.get("better", "higher"), {"threshold": threshold, "source": source}
    missing = f"{rule['from']} measured no {name}"
    if name == "lpips" and record is None and "lpips_random_backbone" in criteria:
        record, better, missing = stand_in(criteria["lpips_random_backbone"]), "higher", "the VAE's own reconstruction is no better than the mean image"
        row = {"threshold": STAND_IN, "source": "skill between the mean image and the VAE: LPIPS has no published backbone here", "stand_in": True}
    if record is None:
        return row | {"score": None, "answer": "INCONCLUSIVE", "plain_pass": None, "reason": missing}, None
    keep = ("score", "low", "high", "floor", "floor_name", "ceiling", "gain", "gain_low", "gain_high", "p", "skill", "layer", "n", "options_searched")
    row |= {k: record[k] for k in keep if k in record} | judge(record, row["threshold"], better)
    if rule.get("accepted") and row["answer"] != "PASS":
        row |= {"accepted": judge(record, rule["accepted"], better)["answer"], "accepted_threshold": rule["accepted"]}
    return row, record


def timed(score, why, threshold, source):
    """The row of a ratio of two medians, which has no interval; score None: not measured."""
    row = {"threshold": threshold, "source": source, "score": score}
    if score is None:
        return row | {"answer": "INCONCLUSIVE", "plain_pass": None, "reason": why}
    return row | {"answer": "PASS" if score < threshold else "FAIL", "plain_pass": score < threshold, "reason": why}


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
            return "PIVOT", f"to the hybrid: the model fails {', '.join(lost)}, of which a spatial encoder beside it holds {', '.join(repaired)}"
        if not any(k in encoder for k in lost):
            return "PIVOT", f"to the hybrid, as the plan's table says, untested: the model fails {', '.join(lost)}; run again with --encoder"
        if all(encoder.get(k, {}).get("answer") == "FAIL" for k in lost):
            return "STOP", f"the model fails {', '.join(lost)}, and so does the spatial encoder"
        return "INCONCLUSIVE", f"investigate the hybrid: the model fails {', '.join(lost)}, and what the spatial encoder holds is undecided"
    if failed:
        return "STOP", f"space is there but the bridge fails {', '.join(failed)}"
    open_ones = [k for k, j in must.items() if j["answer"] != "PASS"]
    return "INCONCLUSIVE", f"investigate {', '.join(open_ones)}: {'; '.join(must[k]['reason'] for k in open_ones)}"


def gate1(args, thresholds):
    """Judge gate 1 from the stages' YAML. Returns the result to be saved."""
    folder = Path(args.results)
    probe, align, adapt = (load_yaml(folder / f"{name}.yaml", stage) for name, stage in (("probe", "probe"), ("align", "align"), ("adapt-latents", "adapt")))
    motion = load_yaml(Path(args.motion) / "probe.yaml", "probe") if args.motion else None
    encoder_probe = load_yaml(Path(args.encoder) / "probe.yaml", "probe") if args.encoder else None
    for other, where, keys in ((align, folder / "align.yaml", ("model", "data_name")), (adapt, folder / "adapt-latents.yaml", ("model", "data_name")),
                               (motion, args.motion, ("model",)), (encoder_probe, args.encoder, ("data_name",))):
        if other and (key := next((k for k in keys if other[k] != probe[k]), None)):
            refuse(f"{where} is about {key} {other[key]!r}, {folder}/probe.yaml about {probe[key]!r}; give results that belong together")
    seconds = {}  # {which: seconds per item, or None where layers were streamed}
    for name, where in (("model", folder), ("encoder", args.encoder), ("reference", args.reference)):
        index = Path(where) / "features" / "index.yaml" if where else None
        if index and (name != "reference" or index.is_file()):
            seconds[name] = load_yaml(index, "extract")["seconds_per_item"]

    records = {"probe": probe["criteria"], "align": align["criteria"], "adapt": adapt["criteria"], "motion": motion["criteria"] if motion else {}}
    def ratio(a, b, missing):
        if seconds.get(a) and seconds.get(b):
            return seconds[a] / seconds[b], NO_INTERVAL
        return None, STREAMED if None in (seconds.get(a, 0), seconds.get(b, 0)) else missing

    times = {"latency_overhead": ratio("encoder", "model", "no --encoder was given"),
             "inference_ratio": (1.0, "the reference itself") if probe["model"] == "qwen2.5-vl-7b" else ratio("model", "reference", "no Qwen2.5-VL features of the same data were given (--reference)")}
    judged = {}
    for name, rule in GATE1.items():
        source = PLAN if name not in args.changed else "--set"
        if rule["from"] == "time":
            row = timed(*times[name], thresholds[name], source)
        else:  # a threshold that was set has no second one below it
            row, _ = held(records[rule["from"]], name, rule if name not in args.changed else rule | {"accepted": None}, thresholds[name], source)
        row = {"level": rule["level"]} | row
        judged[name] = row | ({"earlier_study": rule["earlier"]} if "earlier" in rule else {})
    encoder = {k: judge(encoder_probe["criteria"][k], thresholds[k]) for k in SPATIAL} if encoder_probe else {}
    verdict, why = decide(judged, encoder)
    kinds = f"{probe['weights']} weights, {probe['data']} data" + ("; LPIPS by a stand-in" if judged["lpips"].get("stand_in") else "")
    result = {"stage": "gate", "gate": 1, "verdict": verdict, "headline": f"{verdict} ({kinds}): {why}", "model": probe["model"], "data_name": probe["data_name"],
              "weights": probe["weights"], "data": probe["data"], "decoder": adapt["decoder"], "decoder_weights": adapt["decoder_weights"]}
    result |= {name: row["score"] for name, row in judged.items()}
    result |= {"plain_verdict": "PROCEED" if all(j["plain_pass"] for j in judged.values() if j["level"] == "must") else "STOP", "overridden": args.changed, "criteria": judged}
    if encoder:
        result["encoder"] = {"model": encoder_probe["model"], **{k: {"score": encoder_probe["criteria"][k]["score"], **v} for k, v in encoder.items()}}
    return result


def show(result):
    """The verdict as a table that a person reads."""
    def number(x):
        return f"{x:.3f}" if isinstance(x, float) else "-" if x is None else str(x)
    print(f"\nGate {result['gate']}: {result['model']} on {result['data_name']}, decoder {result['decoder']}\n")
    print(f"{'criterion':20s} {'':6s} {'score':>7s}  {'95% interval':17s} {'threshold':>9s}  {'best floor':27s} {'ceiling':>7s}  answer")
    for name, row in result["criteria"].items():
        interval = f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else "-"
        floor = f"{number(row['floor'])} {row['floor_name']}" if "floor" in row else "-"
        more = f" (n = {row['n_needed']} would decide)" if row.get("n_needed") else f" (accepted at {row['accepted_threshold']})" if row.get("accepted") == "PASS" else ""
        print(f"{name + ('*' if row.get('stand_in') else ''):20s} {row['level']:6s} {number(row['score']):>7s}  {interval:17s} {number(float(row['threshold'])):>9s}  {floor:27s} "
              f"{number(row.get('ceiling')):>7s}  {row['answer']}{more}")
    if result["criteria"]["lpips"].get("stand_in"):
        print("* skill between the mean image and the VAE: the published LPIPS backbone is not on this machine")
    print(f"\nverdict {result['verdict']}\nheadline {result['headline']}")


def picture(folder, path):
    """gate1.png: scores per layer; originals, VAE, bridge; true and decoded boxes."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    decoded, bridged = load_pt(folder / "probe.pt", RESULT), load_pt(folder / "adapt-latents.pt", RESULT)
    probe, align, index = load_yaml(folder / "probe.yaml", "probe"), load_yaml(folder / "align.yaml", "align"), load_yaml(folder / "features" / "index.yaml", "extract")
    items = {i["id"]: i for i in load_items(index["data_path"])[0]}
    figure = plt.figure(figsize=(16, 17), layout="constrained")
    top, middle, bottom = figure.subfigures(3, 1, height_ratios=[1.0, 1.15, 1.0])
    axes = top.subplots(1, 3)
    layers = [p for p in probe["layers"] if p != "pixels"]
    at = range(len(layers))
    for axis, (key, title) in zip(axes[:2], (("bbox_iou", "Box IoU (ridge, flattened tokens)"), ("spatial_iou", "Mask IoU (ridge, token by token)")), strict=True):
        axis.plot(at, [probe["layers"][p][key] for p in layers], "o-", color="C0", label="trained network")
        if f"{key}_low" in probe["layers"][layers[0]]:
            axis.fill_between(at, [probe["layers"][p][f"{key}_low"] for p in layers], [probe["layers"][p][f"{key}_high"] for p in layers], color="C0", alpha=0.2, label="95% interval")
        if f"{key}_random" in probe["layers"][layers[0]]:
            axis.plot(at, [probe["layers"][p][f"{key}_random"] for p in layers], "s--", color="C1", label="untrained network")
        for k, (name, value) in enumerate(probe["criteria"][key]["floors"].items()):
            if name != "random_init":
                axis.axhline(value, color=f"C{k + 2}", lw=1, ls=":", label=f"floor: {name}")
        axis.axhline(GATE1[key]["threshold"], color="black", lw=1.2, label="threshold")
        axis.set(title=title, ylim=(0, 1))
    for m in ("cka", "linear_r2", "spearman", "recall10"):
        rows = [align["layers"][p][m] for p in layers]
        line, = axes[2].plot(at, [r["score"] for r in rows], "o-", label=m)
        axes[2].fill_between(at, [r["low"] for r in rows], [r["high"] for r in rows], color=line.get_color(), alpha=0.2)
    axes[2].axhline(0, color="grey", lw=0.8)
    axes[2].set(title=f"Alignment with the latents of {align['target']}")
    for axis in axes:
        axis.set_xticks(list(at), layers, rotation=60, ha="right", fontsize=8)
        axis.legend(fontsize=7, loc="best")
    grid = middle.subplots(3, len(bridged["ids"]))
    for row, (key, label) in enumerate((("original", "original"), ("vae", "VAE (ceiling)"), ("bridge", "bridge"))):
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


def smoke_input(args, folder):
    """Made-up stage results of a model that passes everything, with the pictures that the figure needs."""
    import torch

    from common import save_pt, write_items
    head = {"model": "made-up", "data_name": "noise", "weights": "random", "data": "synthetic"}
    record = {"score": 0.9, "low": 0.85, "high": 0.95, "floor": 0.1, "floor_name": "constant", "ceiling": 1.0, "gain": 0.8, "gain_low": 0.7, "gain_high": 0.9, "p": 0.001, "n": 20,
              "skill": 0.9, "layer": "vision.0", "floors": {"constant": 0.1}}
    low = record | {"score": 0.1, "low": 0.05, "high": 0.15, "floor": 0.9, "ceiling": 0.0}
    of = {stage: {n: low if n == "lpips" else record for n, r in GATE1.items() if r["from"] == stage} for stage in ("probe", "adapt", "align", "motion")}
    save_yaml(folder / "probe.yaml", {"stage": "probe", **head, "bbox_iou_layer": "vision.0", "criteria": of["probe"], "layers": {"vision.0": {"bbox_iou": 0.9, "spatial_iou": 0.9}}})
    save_yaml(folder / "align.yaml", {"stage": "align", **head, "target": "vae", "criteria": of["align"], "layers": {"vision.0": {n: record for n in of["align"]}}})
    save_yaml(folder / "adapt-latents.yaml", {"stage": "adapt", **head, "decoder": "vae", "decoder_weights": "random", "criteria": of["adapt"]})
    save_yaml(folder / "motion" / "probe.yaml", {"stage": "probe", **head, "criteria": of["motion"]})
    ids = [f"noise-{i}" for i in range(8)]
    write_items(folder / "data", [{"id": i, "source": i, "width": 16, "height": 16, "frames": torch.randint(0, 256, (1, 16, 16, 3)).byte()} for i in ids], {"data": "synthetic", "name": "noise"})
    save_yaml(folder / "features" / "index.yaml", {"stage": "extract", "data_path": str(folder / "data"), "seconds_per_item": 0.1})
    box = torch.tensor([[0.1, 0.1, 0.6, 0.6]]).repeat(8, 1)
    save_pt(folder / "probe.pt", RESULT, ids, {}, boxes=box, true_boxes=box)
    save_pt(folder / "adapt-latents.pt", RESULT, ids, {}, **{k: torch.zeros(8, 16, 16, 3, dtype=torch.uint8) for k in ("original", "vae", "bridge")})
    args.results, args.motion, args.encoder, args.out = str(folder), str(folder / "motion"), None, args.out or str(folder / "gate1.yaml")


GATES = {1: gate1}


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--gate", type=int, default=1, choices=GATES, help="(default: %(default)s)")
    p.add_argument("--results", default="results/tiny/shapes", help="the folder of the stages' YAML (default: %(default)s)")
    p.add_argument("--motion", help="the folder of the same model's results on clips")
    p.add_argument("--encoder", help="a spatial encoder's results on the same data: evidence for the hybrid, and its latency")
    p.add_argument("--reference", help="Qwen2.5-VL's results on the same data, for the inference ratio")
    p.add_argument("--set", default="", help="thresholds to override, name=value with spaces or commas between")
    p.add_argument("--out", help="default: gate<N>.yaml in --results")
    p.add_argument("--print", dest="show", metavar="YAML", help="print a verdict that is there and stop")
    p.add_argument("--strict", action="store_true", help="exit with 3 unless the verdict is PROCEED")
    return p.parse_args(argv)


def overrides(text):
    """{criterion: threshold} from `name=value ...`; a refusal for an unknown name or a value that is no number."""
    changed = {}
    for pair in text.replace(",", " ").split():
        name, _, value = pair.partition("=")
        if name not in GATE1:
            refuse(f"--set {pair!r} names no criterion; known: {', '.join(GATE1)}")
        try:
            changed[name] = float(value)
            if not math.isfinite(changed[name]):
                raise ValueError
        except ValueError:
            refuse(f"--set {pair!r} has no number after the equals sign; write {name}=0.5")
    return changed


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.show:
        result = load_yaml(args.show, "gate")
    else:
        if args.smoke:
            smoke_input(args, made_up_folder())
        args.changed = overrides(args.set)
        if not Path(args.results).is_dir():
            refuse(f"{args.results} is not a folder; give --results, where the stages wrote their YAML")
        out = Path(args.out or Path(args.results) / f"gate{args.gate}.yaml")
        check_writable(out)
        result = plain(GATES[args.gate](args, {n: args.changed.get(n, r["threshold"]) for n, r in GATE1.items()}))
        result["run"] = run_info(args, started, script="verify.py")
        save_yaml(out, result)
        picture(Path(args.results), out.with_suffix(".png"))
    show(result)
    if args.strict and result["verdict"] != "PROCEED":
        raise SystemExit(3)
    return result


if __name__ == "__main__":
    main()
