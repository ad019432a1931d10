"""How often is gate 1 itself wrong? The stages' functions measure planted data, whose answer is known.

    make calibrate                                            results/calibrate.yaml, results/calibrate.png
    python tests/calibrate.py --share 0.05 --out /tmp/c.yaml  a twentieth of the planted sets

planted.py holds the planted data and the answers they must get. The true score of a noisy set is that of the
same fitted probe on up to 2,000 more images. The rules are also tested alone, on planted scores.
"""

import collections
import contextlib
import functools
import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import planted
from planted import LEAKS, generator, planted_scores

import common
import gate
import metrics
import stats

SIZES = (100, 500)  # test items of a planted set
COUNTS = (50, 100, 200, 500, 1000)  # items of planted scores
AIM = 0.05
MUST = [name for name, rule in gate.GATE1.items() if rule["level"] == "must"]
GAINS = {"no_gain": (0.0, False), "no_gain_ties": (0.0, True), "tenth_of_the_room": (None, False)}
ABOVE = (-0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1)
FINE = np.round(np.arange(-0.1, 0.2501, 0.005), 4).tolist()
POWER = (0.02, 0.05, 0.1, 0.2)
SOURCES = {"items": 1, "clusters": 5}  # items of a source
BELOW = "none needed, below the threshold"
progress = functools.partial(tqdm, mininterval=2)


def wilson(k, n, z=1.959964):
    """95% interval of a rate of k in n (Wilson 1927): never empty, not even at 0 of n."""
    if n == 0:
        return 0.0, 1.0
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * (k * (n - k) / n + z * z / 4) ** 0.5
    return max(centre - half, 0.0), min(centre + half, 1.0)


def rate(hits):
    """{rate, low, high, of} of a list of booleans."""
    low, high = wilson(sum(hits), len(hits))
    return {"rate": sum(hits) / len(hits) if hits else None, "low": low, "high": high, "of": len(hits)}


def pass_rate(rows):
    return rate([r["answer"] == "PASS" for r in rows])


def false_rates(rows):
    fails = [r["answer"] == "FAIL" for r in rows if r["fail_is_false"]]
    return {"false_pass": pass_rate([r for r in rows if r["pass_is_false"]]), "false_fail": rate(fails)}


def table(rows, name, summary=false_rates):
    """{name: summary of its rows}, in order of appearance; `name` is a format string of a row's keys."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[name.format_map(row)].append(row)
    return {k: summary(part) for k, part in groups.items()}


# ---------------------------------------------------------------- features


def judge(name, found, kind, n, scene, offset=None):
    """One criterion of one planted set: the gate's answer, and whether PASS or FAIL is false."""
    record, rest = found
    better = record.get("better", gate.GATE1[name].get("better", "higher"))
    sign = 1 if better == "higher" else -1
    at = gate.STAND_IN if name == "lpips" and better == "higher" else gate.GATE1[name]["threshold"]
    row = {"criterion": name, "kind": kind, "scene": scene, "n": n, "score": record["score"], "threshold": at}
    row |= {"baseline_name": record["baseline_name"], "leak": record.get("leak")}
    row |= gate.evaluate(record, at, better)
    if kind in planted.NULLS:
        return row | {"pass_is_false": True, "fail_is_false": False}
    if rest is None:  # recall depends on the number of items: its truth is the mean over the planted sets
        return row | {"offset": offset}
    gain, headroom = sign * (rest["score"] - rest["baseline"]), abs(record["upper_bound"] - rest["baseline"])
    above = sign * (rest["score"] - at)
    row |= {"above": above, "pass_is_false": above <= 0 or gain <= 0}
    return row | {"fail_is_false": above > 0 and gain >= 0.1 * headroom}


def noise_for(score, targets, low=0.03, high=6.0, steps=9):
    """{offset: noise} that gives the target scores, interpolated; score(noise) falls as noise grows."""
    levels = np.geomspace(low, high, steps)
    scores = np.minimum.accumulate([score(x) for x in levels])
    return {k: float(np.exp(np.interp(-target, -scores, np.log(levels)))) for k, target in targets.items()}


def planted_sets(name, pools, share, seed):
    """(judged criteria of every planted set of a family, number of sets)."""
    family, number, rows = planted.FAMILIES[name], list(planted.FAMILIES).index(name), []

    def score(level):
        found = family.measure(pools["shapes"], "noisy", 100, generator(seed, number), level)
        return found[family.noise_by][1]["score"]

    noise = {o: o for o in family.offsets}
    if family.noise_by:
        at = gate.GATE1[family.noise_by]["threshold"]
        noise = noise_for(score, {o: at + o for o in family.offsets})
    jobs = []
    for scene, kinds in family.scenes.items():
        for kind in kinds:
            offsets = family.offsets if kind == "noisy" else (0,)
            cells = [(scene, kind, n, o) for n in (family.sizes or SIZES) for o in offsets]
            jobs += [(*cell, k) for cell in cells for k in range(max(round(family.count * share), 1))]
    for scene, kind, n, offset, k in progress(jobs, desc=name, unit="set"):
        g = generator(seed, number, k, n, *f"{scene} {kind} {offset}".encode())
        found = family.measure(pools[scene], kind, n, g, noise[offset] if kind == "noisy" else 0.0)
        rows += [judge(c, f, kind, n, scene, offset) | {"family": name} for c, f in found.items()]

    cells = collections.defaultdict(list)
    for r in rows:
        if "offset" in r:
            cells[r["criterion"], r["kind"], r["n"], r.pop("offset")].append(r)
    for cell in cells.values():
        above = float(np.mean([r["score"] for r in cell])) - cell[0]["threshold"]
        for r in cell:
            r |= {"above": above, "pass_is_false": above <= 0, "fail_is_false": above > 0}
    return rows, len(jobs)


def split_leaks(pool, count, seed):
    """Judged sets in which every image has three names."""
    rows = []
    row = {"family": "boxes", "criterion": "bbox_iou", "kind": "split_leak", "scene": "shapes", "n": 60}
    row |= {"leak": None, "pass_is_false": True, "fail_is_false": False, "baseline_name": None}
    for k in range(count):
        pick = torch.randperm(len(pool.items), generator=generator(seed, 99, k))[:100].repeat(3)
        names = [f"copy-{k}-{j}" for j in range(len(pick))]
        items = [pool.items[i] | {"id": s, "source": s} for i, s in zip(pick.tolist(), names, strict=True)]
        caught = io.StringIO()
        with contextlib.redirect_stderr(caught), contextlib.suppress(SystemExit):
            common.split_indices(items, "a planted set")
        sentence = caught.getvalue().strip()
        answer = "REFUSED" if sentence.startswith("error: split leak") else "none"
        rows.append(row | {"answer": answer, "reason": sentence})
    return rows


def caught_by(row):
    """The name under which the gate rejects a leak, None when it does not."""
    if row["answer"] == "REFUSED":
        return "split leak"
    if row["answer"] == "PASS":
        return None
    return row["leak"] or (row["baseline_name"] if row["baseline_name"] in row["reason"] else BELOW)


# ---------------------------------------------------------------- the rules alone, on planted scores


def shifted(record, mean, above):
    """The answer where the true score lies `above` the threshold by so much (below: negative)."""
    at = mean - above if record["better"] == "higher" else mean + above
    return gate.evaluate(record, at, record["better"])


def verdict(records, above):
    """The verdict of gate 1 whose four must criteria lie `above` their thresholds."""
    found = zip(MUST, records, above, strict=True)
    return gate.decide({name: shifted(*r, a) | {"level": "must"} for name, r, a in found}, {})[0]


def rules(share, seed):
    """(answers, verdicts, {(sources, n): {above: share of PASS}}, number of sets) on planted scores."""
    answers, verdicts, curve, sets = [], [], {}, 0
    for label, n in progress([(label, n) for label in SOURCES for n in COUNTS], desc="rules", unit="n"):
        rng = np.random.default_rng([seed, n, SOURCES[label]])
        count = max(round((200 if n <= 500 else 80) * share), 2)
        make = functools.partial(planted_scores, n=n, per_source=SOURCES[label], rng=rng)
        records, row = {}, {"n": n, "sources": label}
        for shape, times in {"iou": 2, "hit": 1, "distance": 1}.items():
            records[shape] = [make(shape, gain=None, ties=False) for _ in range(count * times)]
        for shape, found in records.items():
            for record, a in [(r, a) for r in found for a in ABOVE]:
                answer = {"group": shape, "above": a, "answer": shifted(*record, a)["answer"]}
                answers.append(row | answer | {"pass_is_false": a <= 0, "fail_is_false": a >= 0})
        mean = planted.distributions()["iou"][2]
        for name, (gain, ties) in GAINS.items():
            gain = (1 - mean) / 9 if gain is None else gain  # a tenth of what the baseline leaves
            for _ in range(count):
                answer = shifted(*make("iou", gain=gain, ties=ties), 0.1)["answer"]
                answer = {"group": name, "above": 0.1, "answer": answer}
                answers.append(row | answer | {"pass_is_false": gain == 0, "fail_is_false": gain > 0})
        sets += count * (4 + len(GAINS))
        iou = records["iou"]
        curve[label, n] = {a: np.mean([shifted(*r, a)["answer"] == "PASS" for r in iou]) for a in FINE}
        for group in zip(iou[::2], iou[1::2], records["hit"], records["distance"], strict=True):
            for above in (0.0, *POWER[:3]):
                wrong = verdict(group, [above] * 4) in ("STOP", "PIVOT")
                verdicts.append(row | {"error": f"false_stop_{above}_above", "wrong": wrong})
            for short in range(4):
                above = [0.0 if k == short else 0.1 for k in range(4)]
                wrong = verdict(group, above) == "PROCEED"
                verdicts.append(row | {"error": "false_proceed_at_threshold", "wrong": wrong})
    return answers, verdicts, curve, sets


def map_rules(share, seed):
    """Rows of mAP's record on planted detections, judged at its true value."""
    rows = []
    for label, per_source in SOURCES.items():
        truth, runs = planted.detections(6000, per_source, np.random.default_rng([seed, 7, per_source]))
        one = [0] * len(truth)
        true = float(np.mean([metrics.coco_ap50(truth, run, one)[0] for run in runs]))
        sizes = [(n, k) for n, count in ((100, 60), (500, 20)) for k in range(max(round(count * share), 1))]
        for n, k in progress(sizes, desc=f"detections, {label}", unit="set"):
            rng = np.random.default_rng([seed, 8, per_source, n, k])
            truth, runs = planted.detections(n, per_source, rng)
            sources = [i // per_source for i in range(n)]
            own = torch.stack([metrics.coco_ap50(truth, run, sources)[1] for run in runs])
            record = stats.criterion(own, {"constant": 0 * own}, range(own.shape[1]))
            row = {"n": n, "sources": label, "pass_is_false": True, "fail_is_false": True}
            rows.append(row | {"answer": gate.evaluate(record, true)["answer"]})
    return rows


# ---------------------------------------------------------------- the result


def bar_of(found):
    return found["rate"], [[found["rate"] - found["low"]], [found["high"] - found["rate"]]]


def draw_chart(path, rows, curve, by_kind):
    """calibrate.png: PASS by distance from the threshold; power by n; false answers by kind of data."""
    plt = common.pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(19, 6), layout="constrained", width_ratios=[1, 1, 1.1])
    for k, n in enumerate(COUNTS):
        axes[0].plot(FINE, list(curve["items", n].values()), color=f"C{k}", label=f"rule, n = {n}")
    for n, marker in zip(SIZES, ("o", "s"), strict=True):
        near = [r for r in rows if r["kind"] == "noisy" and r["n"] == n and abs(r["above"]) < 0.1]
        bins = collections.defaultdict(list)
        for r in near:
            bins[round(r["above"] / 0.025)].append(r["answer"] == "PASS")
        style = {"fmt": marker, "color": f"C{COUNTS.index(n)}", "mec": "black"}
        label = f"features, n = {n}"
        for b in sorted(b for b in bins if len(bins[b]) >= 3):
            axes[0].errorbar(b * 0.025, *bar_of(rate(bins[b])), **style, capsize=2, label=label)
            label = None
    axes[0].axvline(0, color="black", lw=1)
    axes[0].axhline(AIM, color="red", lw=1, ls="--", label="5%")
    axes[0].axvspan(-0.1, 0, color="red", alpha=0.05)
    axes[0].set(xlim=(-0.1, 0.15), ylim=(-0.02, 1.02), title="How often gate 1 says PASS")
    axes[0].set(xlabel="true score - threshold (left of 0 a PASS is false)", ylabel="share of PASS")
    for k, above in enumerate(POWER):
        for label, style in (("items", "o-"), ("clusters", "s--")):
            power = [curve[label, n][above] for n in COUNTS]
            more = ", 5 items a source" if label == "clusters" else ""
            axes[1].plot(COUNTS, power, style, color=f"C{k}", label=f"{above:.2f} above the threshold{more}")
    axes[1].axhline(0.8, color="grey", lw=1, ls=":")
    axes[1].set(xscale="log", ylim=(-0.02, 1.02), title="Power by number of items")
    axes[1].set(xlabel="test items", ylabel="power: share of PASS")
    axes[1].set_xticks(COUNTS, [str(n) for n in COUNTS])
    axes[1].minorticks_off()
    for error, colour, shift in (("false_pass", "C3", 0.12), ("false_fail", "C0", -0.12)):
        axes[2].plot([], [], "o", color=colour, label=error.replace("_", " "))
        shown = [(shift - k, found[error]) for k, found in enumerate(by_kind.values()) if found[error]["of"]]
        for y, r in shown:
            at, bar = bar_of(r)
            axes[2].errorbar(at, y, xerr=bar, fmt="o", color=colour, capsize=3)
            note = f"{round(r['rate'] * r['of'])} of {r['of']}"
            axes[2].text(min(r["high"], 0.17) + 0.003, y, note, fontsize=7, va="center", color=colour)
    axes[2].axvline(AIM, color="red", lw=1, ls="--")
    axes[2].set_yticks([-k for k in range(len(by_kind))], list(by_kind))
    axes[2].set(xlim=(-0.004, 0.2), xlabel="rate, with Wilson's 95% interval", title="False answers by kind")
    for axis, where in zip(axes, ("upper left", (0.02, -0.32), "lower right"), strict=True):
        axis.legend(fontsize=7, loc=where, ncols=2 if axis is axes[1] else 1)
        axis.grid(alpha=0.25)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def hardest(answers):
    """false_rates at the threshold, or where the gain is zero (PASS is false) or a tenth of the headroom."""
    return false_rates([a for a in answers if a["group"] in GAINS or a["above"] == 0])


def error_rates(verdicts):
    rates = table(verdicts, "{error}", lambda part: rate([v["wrong"] for v in part]))
    return dict(sorted(rates.items()))


def headline(rows, answers, verdicts):
    """The first keys of the YAML: the false rates at the largest n, with their intervals."""
    rows, answers, verdicts = ([r for r in x if r["n"] == max(SIZES)] for x in (rows, answers, verdicts))
    rates = false_rates(rows) | {f"rule_{k}": v for k, v in hardest(answers).items()}
    errors = error_rates(verdicts)
    rates["false_proceed"] = errors["false_proceed_at_threshold"]
    rates["false_stop"] = errors["false_stop_0.05_above"]
    result = {"stage": "calibrate", "gate": 1, "n": max(SIZES), "aim": AIM}
    for name, found in rates.items():
        result |= {name: found["rate"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
    result["met"] = all(r["rate"] is not None and r["rate"] <= AIM for r in rates.values())
    by_kind = table([r for r in rows if r["pass_is_false"]], "{kind} {criterion} {scene}")
    passes = {k: r["false_pass"]["rate"] for k, r in by_kind.items()}
    worst = max(passes, key=passes.get)
    return result | {"worst_false_pass": passes[worst], "worst_false_pass_in": worst}


def get_args(argv):
    p = common.parser(__doc__)
    p.add_argument("--share", type=float, default=1.0, help="of the planted data (default: %(default)s)")
    p.add_argument("--families", default=",".join(planted.FAMILIES), help="(default: %(default)s)")
    out = str(common.HERE / "results" / "calibrate.yaml")
    p.add_argument("--out", default=out, help="(default: %(default)s)")
    args = p.parse_args(argv)
    for name in args.families.split(","):
        common.check_choice(name, planted.FAMILIES, "family")
    common.check_writable(args.out)
    return args


def main(argv=None):
    args, started, cpu = get_args(argv), time.time(), time.process_time()
    families, given = args.families.split(","), (args.share, args.seed)
    pools = planted.pools(max(SIZES), args.seed, small="adapter" in families)
    rows, sets = [], {}
    for family in families:
        found, sets[family] = planted_sets(family, pools, *given)
        rows += found
    leaks = split_leaks(pools["shapes"], max(round(20 * args.share), 1), args.seed)
    rows, sets["split_leak"] = rows + leaks, len(leaks)
    answers, verdicts, curve, scores = rules(*given)
    ap = map_rules(*given)

    closed = [r for r in rows if r["family"] not in planted.TRAINED]
    trained = table([r for r in rows if r["family"] in planted.TRAINED], "{criterion}")
    leaking = [r | {"name": str(caught_by(r))} for r in rows if r["kind"] in LEAKS]
    needed = [r["name"] for r in leaking if r["name"] != BELOW]
    oracles = table([r for r in rows if r["kind"] == "oracle"], "{criterion}", pass_rate)
    power = {s: {f"n{n}": {f"{a}": curve[s, n][a] for a in POWER} for n in COUNTS} for s in SOURCES}
    result = headline(closed, answers, verdicts) | {
        "false_leak": np.mean([bool(r["leak"]) for r in rows if r["kind"] not in LEAKS]),
        "leaks": len(needed),
        "leaks_named": len(needed) - needed.count("None"),
        "planted_sets": sum(v for k, v in sets.items() if k not in planted.TRAINED),
        "planted_sets_trained": sum(v for k, v in sets.items() if k in planted.TRAINED),
        "answers": len(rows),
        "rules": scores,
        "detection_sets": len(ap),
        "kinds": table(closed, "{kind}"),
        "criteria": table(closed, "{criterion} n{n}"),
        "kinds_at_n": table([r for r in closed if r["n"] == max(SIZES)], "{kind} {criterion} {scene}"),
        "trained": trained,
        "oracle_passes": oracles,
        "rule": table(answers, "{group} {sources} n{n}", hardest),
        "verdicts": table(verdicts, "{sources} n{n}", error_rates),
        "power": power,
        "detections": table(ap, "{sources} n{n}"),
        "leak_names": table(leaking, "{kind}", lambda x: dict(collections.Counter(r["name"] for r in x))),
    }
    cpu = time.process_time() - cpu
    result["run"] = common.run_info(args, started, script="tests/calibrate.py", cpu_seconds=cpu)
    shown = result["kinds"] | {f"{k} (trained)": r for k, r in trained.items()}
    largest = table([a for a in answers if a["n"] == max(SIZES)], "{group}", hardest)
    shown |= {f"rule: {k}, n = {max(SIZES)}": r for k, r in largest.items()}
    out = Path(args.out)
    common.save_yaml(out, result)
    draw_chart(out.with_suffix(".png"), rows, curve, shown)
    common.print_summary(result)
    return result


if __name__ == "__main__":
    main()
