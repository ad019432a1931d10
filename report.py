"""One page of all results: results/report.html, which opens from disk, and summary.md beside it. Nothing is computed again.

    python report.py --results results --out results/report.html

Modules, to be copied with it: claims.py, common.py.
"""

import base64
import io
import time
from pathlib import Path
from string import Template
from xml.etree import ElementTree

from claims import ASKED
from common import OKABE_ITO, check_writable, load_yaml, parser, refuse, save_text, say

# ---------------------------------------------------------------- report: a page for a person, of the YAML and PNG of all stages

# gate: (what it asks, its stages in the data's folder, those on moving shapes)
PROGRAMME = {
    1: ("Do the latents suffice?", ("probe", "align", "adapt-latents"), ("probe",)),
    2: (
        "Can a small adapter bridge?",
        ("adapt-scaling", "adapt-ablation", "adapt-hybrid"),
        ("adapt-prompt", "video-coherence", "explain-semantic"),
    ),
    3: (
        "Does anything predict?",
        ("predict-latents", "video-continue", "video-futures", "explain-describe"),
        (),
    ),
    4: ("Can pixels verify?", ("explain-planted", "verify"), ()),
}
QUESTION = "Can a vision-language model carry enough spatial and temporal information to drive a video decoder, predict what happens next, and have the prediction checked in pixels?"
STANDALONE = {
    "screen/screen": "make screen",
    "calibrate": "make calibrate",
    "bench": "make bench",
    "bench-gpu": "make bench-gpu",
}
CURVES = {
    "bbox_iou": "Box IoU",
    "spatial_iou": "Mask IoU",
    "edge_probe_f1": "Edge F1",
    "direction_accuracy": "Direction of motion",
    "speed_r2": "Speed, R2",
}
PICTURES = {
    "gate1": "originals, what the autoencoder and what the bridge makes of them, and boxes, true (white) and decoded (red)",
    "adapt-scaling": "test pictures through bridges of every size, beside the originals and the autoencoder's own",
    "adapt-hybrid": "test pictures through the bridge from two encoders and through every control of it",
    "adapt-ablation": "test pictures through other bridges, layers, sizes and numbers of items",
}
FILMS = {
    "real": "what happened",
    "vae": "what happened, through the autoencoder: no film can be closer",
    "copy": "the last frame seen, standing still",
    "flow": "the last frame seen, moved on by optical flow",
    "past, first, text": "what the video model made of the frames before, of the last of them, of a caption",
}
OF_FILMS = {
    "decoded_closeness": "closeness",
    "temporal_ratio": "motion over the clips' own",
    "direction_right": "right way",
}
MARKS = {
    "PROCEED": "▲",
    "PASS": "▲",
    "SUCCESS": "▲",
    "STOP": "■",
    "FAIL": "■",
    "FAILURE": "■",
    "PIVOT": "◆",
    "INCONCLUSIVE": "●",
    "missing": "○",
}
OF_WEIGHTS = {"small": "this project's own: an instrument check, not a finding about published models"}
SYNTHETIC = "made up by data.py, so that the truth is known; real pictures and clips may behave otherwise"
WIDEST = 1280  # pixels of the stages' own pictures in the page
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Foresight: report</title>
<style>
*, ::before { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 0 1rem 4rem; background: #fff; color: #1a1a1a; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } h2 { border-bottom: 2px solid #1a1a1a; padding-bottom: .2em } h3 { font-size: 1.05rem }
a { color: #00508c } :focus-visible { outline: 3px solid #0072B2; outline-offset: 2px }
.skip { position: absolute; left: -99rem } .skip:focus { left: 1rem; background: #fff; padding: .5rem }
nav ul { columns: 14rem; padding-left: 1.2rem } code { font-size: .9em; background: #f2f2f2; padding: 0 .2em }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem }
.card { border: 1px solid #767676; border-radius: .3rem; padding: .8rem 1rem } .card h3 { margin: 0 0 .5em } .card p { margin: .5em 0 0 }
.badge { display: inline-block; white-space: nowrap; padding: 0 .5em; border-radius: .2rem; font-weight: 600; color: #fff; background: #595959 }
.PROCEED, .PASS, .SUCCESS { background: #00694d } .STOP, .FAIL, .FAILURE { background: #a33f00 } .PIVOT { background: #005a8e }
.badge.missing { color: #1a1a1a; background: #fff; outline: 2px dashed #595959; outline-offset: -2px }
.note { border-left: .4rem solid #E69F00; padding: .1rem .8rem; background: #fff8e8 } .absent { border-left: .4rem dashed #595959; padding: .1rem .8rem }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts figure { width: 24rem; max-width: 100% } .charts img, .wide img { max-width: 100%; height: auto }
.brief { white-space: nowrap } .text { min-width: 18em }
.scroll { overflow-x: auto; max-width: 100%; margin: 1rem 0 } .wide img { min-width: 44rem }
table { border-collapse: collapse; font-size: .85rem } caption { text-align: left; font-weight: 600; padding: .3rem 0 }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem) } thead { border-bottom: 2px solid #595959 }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ccc; min-width: 4.5em; max-width: 26em; font-variant-numeric: tabular-nums }
th { font-weight: 600 } [scope=row] { position: sticky; left: 0; background: #fff } @media (max-width: 40rem) { [scope=row] { max-width: 11em } }
figure { margin: 0 } figcaption { font-size: .85rem } summary { cursor: pointer; padding: .3rem 0 } dt { font-weight: 600; float: left; margin-right: .5em }
.films { display: flex; flex-wrap: wrap; gap: .6rem } .films figure { width: 9.5rem; max-width: 46% }
.film { aspect-ratio: 1; image-rendering: pixelated; background: var(--sheet) no-repeat 0 0 / var(--size) }
.controls { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; margin: .6rem 0 } .controls input { flex: 1 1 12rem; max-width: 30rem; height: 2rem }
button { font: inherit; padding: .3rem 1rem }
.player, .js .stills { display: none } .js .player { display: block } .stills img { image-rendering: pixelated; max-width: 100% }
@media print {
  @page { size: A4; margin: 12mm } body { font-size: 9pt; max-width: none; padding: 0 } nav, .skip, .js .player { display: none } .js .stills { display: block } a { color: inherit }
  .scroll { overflow: visible } table { font-size: 6.5pt; width: 100% } th, td { min-width: 0; padding-right: .5em } .brief { white-space: normal }
  .text { min-width: 0; overflow-wrap: anywhere } .wide img { min-width: 0; max-height: 240mm }
  .badge { color: #000; background: none; border: 1px solid #000 } .charts figure { width: 48% } figure, .card, tr, .clip { break-inside: avoid } h2, h3 { break-after: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
$body
<script>
document.documentElement.classList.add("js");
for (const clip of document.querySelectorAll(".clip")) {
  const slider = clip.querySelector("input"), says = clip.querySelector("output"), play = clip.querySelector("button"), last = Number(slider.max);
  const show = () => {
    for (const film of clip.querySelectorAll(".film")) film.style.backgroundPositionX = 100 * slider.value / Math.max(last, 1) + "%";
    says.textContent = slider.value === "0" ? "the last frame seen" : "+" + slider.value + " of " + last + " frames";
    slider.setAttribute("aria-valuetext", says.textContent);
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % (last + 1); show(); }, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1500 : 200);
  });
  show();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
</script>
</body>
</html>
""")


def read_results(folder):
    """({(model, data): {stem: content}}, {stem: content of STANDALONE}): the YAML of the stages below `folder`."""
    found = {}
    for path in sorted(folder.glob("*/*/*.yaml")):
        content = load_yaml(path)
        if "stage" in content:
            found.setdefault((path.parts[-3], path.parts[-2]), {})[path.stem] = content
    return found, {
        stem: load_yaml(folder / f"{stem}.yaml") for stem in STANDALONE if (folder / f"{stem}.yaml").is_file()
    }


def programme(found):
    """[{gate, model, data, result, command, missing}] for every gate of every model of which more is there than probes; missing: the paths that are not there."""
    stages = {gate: {*steps, f"gate{gate}"} - {"probe"} for gate, (_, steps, _) in PROGRAMME.items()}
    rows = []
    for model in sorted(
        {m for (m, _), stems in found.items() if any(s & set(stems) for s in stages.values())}
    ) or ["tiny"]:
        for gate, (_, steps, moving) in PROGRAMME.items():
            usual = "shapes" if gate < 3 else "future"
            for data in sorted(
                (d for (m, d), stems in found.items() if m == model and stages[gate] & set(stems)),
                key=lambda d: (d != usual, d),
            ) or [usual]:
                wanted = [(data, s) for s in (*steps, f"gate{gate}")] + [("moving", s) for s in moving]
                result = found.get((model, data), {}).get(f"gate{gate}")
                changed = " ".join(f"{k}={v}" for k, v in (result or {}).get("overridden", {}).items())
                rows.append(
                    {
                        "gate": gate,
                        "model": model,
                        "data": data,
                        "result": result,
                        "missing": [
                            f"{model}/{d}/{s}.yaml" for d, s in wanted if s not in found.get((model, d), {})
                        ],
                        "command": f"make gate{gate} MODEL={model}"
                        + f" DATA={data}" * (data != usual)
                        + f' SET="{changed}"' * bool(changed),
                    }
                )
    return rows


def said(x):
    """A value as a person reads it."""
    if isinstance(x, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in x.items())
    if isinstance(x, list):
        return ", ".join(map(said, x))
    if isinstance(x, float):
        if 0.01 <= abs(x) < 1e3 or x == 0:
            return f"{x:.3f}"
        return f"{x:.0f}" if abs(x) > 1 else f"{x:.3g}"
    if isinstance(x, bool):
        return "yes" if x else "no"
    return "-" if x is None else str(x)


def cell(row, key="score"):
    """row[key] with its interval, where it has one: 0.611 [0.573, 0.646]."""
    prefix = "" if key in ("score", "rate", "recall") else f"{key}_"
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    interval = f" [{said(low)}, {said(high)}]" if low is not None and row.get(key) is not None else ""
    return said(row.get(key)) + interval


def best_floor(row):
    if row.get("floor") is None:
        return "-"
    return f"{said(row['floor'])} {row.get('floor_name', '')}".strip()


def kinds_of(content):
    return f"{content.get('weights') or 'unstated'} weights, {content.get('data') or 'unstated'} data"


def command_of(content):
    """The arguments that a stage was run with, as flags."""
    arguments = dict(content.get("run", {}).get("arguments", {}))
    words = [arguments.pop("mode", "")]  # the job, of a script with several
    for name, value in arguments.items():
        if value in (None, False, [], {}, ""):
            continue
        words.append(f"--{name.replace('_', '-')}")
        if isinstance(value, list):
            words += map(str, value)
        elif value is not True:
            words.append(said(value))
    return " ".join(words).strip()


def unmeasured(found, alone):
    """[[what, why, where]]: every score that is null, every stand-in, and every kind of weights and data on which no verdict about a published model rests."""
    gaps = {}

    def gap(what, why, here):
        gaps.setdefault((what, why or "no reason is stated"), []).append(here)

    for (model, data), stems in (found | {("", ""): alone}).items():
        for stem, content in stems.items():
            here = "/".join(filter(None, (model, data, stem)))
            criteria = content.get("criteria", {})
            for outer, rows in (criteria if stem == "screen/screen" else {"": criteria}).items():
                for name, row in rows.items():
                    if not isinstance(row, dict):
                        continue
                    if row.get("score", 0) is None:
                        gap(f"{outer} {name}".strip(), row.get("reason"), here)
                    if row.get("stand_in"):
                        why = rows.get("lpips", row).get("source") or content.get("lpips_reason")
                        gap(f"{name}, judged by a stand-in", why, here)
            for key, value in content.items():
                what = key.removesuffix("_reason")
                if value is None and f"{key}_low" in content and f"{key}_reason" not in content:
                    gap(key, None, here)
                if key != what and value and content.get(what) is None:
                    gap(what, value, here)
                if key.endswith("weights") and value and value != "pretrained":
                    whose = key.removesuffix("weights").rstrip("_") or "model"
                    gap(f"{value} weights of the {whose}", OF_WEIGHTS.get(value, "not published ones"), here)
                if key == "data" and value == "synthetic":
                    gap("synthetic data", SYNTHETIC, here)
    places = {gap: list(dict.fromkeys(where)) for gap, where in sorted(gaps.items())}
    return [
        [what, why, ", ".join(where[:5]) + f" and {len(where) - 5} more" * (len(where) > 5)]
        for (what, why), where in places.items()
    ]


# ---------------------------------------------------------------- report: charts and pictures


def el(tag, *inside, **attributes):
    """An HTML element. Text stays text until ElementTree writes it, and is escaped there: nothing that a YAML says is read as HTML."""
    element = ElementTree.Element(
        tag, {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items()}
    )
    for x in inside:
        if isinstance(x, ElementTree.Element):
            element.append(x)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + str(x)
        else:
            element.text = (element.text or "") + str(x)
    return element


def image(content, kind, alt):
    return el("img", src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}", alt=alt)


def badge(word):
    return el("span", f"{MARKS.get(word, '')} {word}".strip(), class_=f"badge {word}")


def table(caption, head, rows):
    """A table in a box of its own that scrolls, by keyboard too, where the page is narrow. A cell is text or an element."""
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(
                el("td", x, class_="" if not isinstance(x, str) else "brief" if len(x) < 27 else "text")
                for x in row[1:]
            ),
        )
        for row in rows
    ]
    return el(
        "div",
        el(
            "table",
            el("caption", el("span", caption)),
            el("thead", el("tr", *(el("th", h, scope="col") for h in head))),
            el("tbody", *body),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def grid(caption, rows, columns, first=""):
    """The table of {name: row} with a column for each {key: heading} that any row has, intervals in the cells."""
    columns = {k: h for k, h in columns.items() if any(row.get(k) is not None for row in rows.values())}
    return table(
        caption,
        [first, *columns.values()],
        [[name, *(cell(row, k) for k in columns)] for name, row in rows.items()],
    )


def chart(title, alt, draw, high=3.0):
    """An SVG that draw(axis) fills."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "report",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=OKABE_ITO),
    }
    with matplotlib.rc_context(style):
        figure, content = Figure((4, high), layout="constrained"), io.BytesIO()
        figure.get_layout_engine().set(w_pad=0.12)
        draw(axis := figure.subplots())
        if axis.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        figure.savefig(content, format="svg", metadata={"Date": None})
    return el("figure", el("figcaption", title), image(content.getvalue(), "svg+xml", f"{title}. {alt}"))


def errors(values, lows, highs):
    """The two lengths of every error bar; none where there is no interval."""
    return [
        [max(v - (v if x is None else x), 0) for v, x in zip(values, lows, strict=True)],
        [max((v if x is None else x) - v, 0) for v, x in zip(values, highs, strict=True)],
    ]


def curve_chart(probe, key, threshold):
    """A score by layer, trained and untrained, with the chosen layer's interval (or every layer's), every floor and the threshold."""
    best, layers = probe["criteria"][key], {p: row for p, row in probe["layers"].items() if p != "pixels"}
    name = key if any(key in row for row in layers.values()) else f"{key}_{best.get('pooling')}"
    shown = [p for p in layers if layers[p].get(name) is not None]
    if not shown:
        return el("p", f"{CURVES[key]}: no layer has a score")
    score = [layers[p][name] for p in shown]

    def draw(axis):
        at = list(range(len(shown)))
        axis.plot(at, score, "o-", ms=4, label="trained network")
        if all(layers[p].get(f"{name}_low") is not None for p in shown):
            axis.fill_between(
                at,
                [layers[p][f"{name}_low"] for p in shown],
                [layers[p][f"{name}_high"] for p in shown],
                alpha=0.25,
                color=OKABE_ITO[0],
                lw=0,
                label="95% interval",
            )
        elif best["layer"] in shown and best.get("low") is not None:
            axis.errorbar(
                shown.index(best["layer"]),
                best["score"],
                yerr=errors([best["score"]], [best["low"]], [best["high"]]),
                color=OKABE_ITO[0],
                capsize=4,
                lw=2,
                label="95% interval, layer chosen",
            )
        if all(layers[p].get(f"{name}_random") is not None for p in shown):
            axis.plot(
                at,
                [layers[p][f"{name}_random"] for p in shown],
                "s--",
                ms=4,
                color=OKABE_ITO[1],
                label="untrained network",
            )
        for n, (floor, value) in enumerate(
            sorted(best["floors"].items(), key=lambda item: item[0] != best["floor_name"])
        ):
            axis.axhline(
                value,
                color="0.6" if n else OKABE_ITO[2],
                ls=":" if n else "-.",
                lw=1 if n else 1.5,
                label=f"best floor: {floor}" if not n else "other floors" if n == 1 else None,
            )
        if threshold is not None:
            axis.axhline(threshold, color="black", lw=1.2, label=f"threshold {threshold:g}")
        every = max(1, len(shown) // 12)
        axis.set_xticks(at[::every], shown[::every], rotation=60, ha="right", rotation_mode="anchor")
        axis.set_ylim(min(0, *score), max(1, *score))

    return chart(
        CURVES[key],
        f"{probe['model']} on {probe['data_name']}: {cell(best)} at {best['layer']}, the layer chosen; over the layers from {said(min(score))} to {said(max(score))}; "
        f"best floor {best_floor(best)}" + (f"; threshold {threshold:g}" if threshold is not None else ""),
        draw,
        3.7,
    )


def dots_chart(title, rows, key, lines=None, grey=()):
    """A dot and its interval for each {name: row}, one below another; lines: {word: value} across."""
    rows = {n: row for n, row in rows.items() if row.get(key) is not None}
    low, high = ("low", "high") if key in ("score", "rate") else (f"{key}_low", f"{key}_high")

    def draw(axis):
        for y, (name, row) in enumerate(rows.items()):
            axis.errorbar(
                row[key],
                y,
                xerr=errors([row[key]], [row.get(low)], [row.get(high)]),
                fmt="s" if name in grey else "o",
                ms=5,
                capsize=3,
                color="0.45" if name in grey else OKABE_ITO[0],
            )
        for n, (word, value) in enumerate((lines or {}).items()):
            axis.axvline(value, color="black", lw=1.2, ls=("-", "--", ":", "-.")[n % 4], label=word)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)

    words = [f"{n} {cell(row, key)}" for n, row in rows.items()] + [
        f"line: {word} {said(v)}" for word, v in (lines or {}).items()
    ]
    return (
        chart(title, "; ".join(words), draw, 1.3 + 0.24 * len(rows))
        if rows
        else el("p", f"{title}: nothing measured")
    )


def lines_chart(title, series, key, beneath, flat=None, log=False, logx=False):
    """Values with intervals over numbers, {name: {x: row}}, each series with a line and a mark of its own; flat: {word: value} across."""
    series = {
        n: {float(x): row for x, row in points.items() if row.get(key) is not None}
        for n, points in series.items()
    }

    def draw(axis):
        for n, (name, points) in enumerate((n, p) for n, p in series.items() if p):
            values = [row[key] for row in points.values()]
            axis.errorbar(
                list(points),
                values,
                yerr=errors(
                    values, *([row.get(f"{key}_{end}") for row in points.values()] for end in ("low", "high"))
                ),
                marker="osD^vP*"[n % 7],
                ms=4,
                capsize=2,
                ls=("-", "--", "-.", ":")[n % 4],
                color=OKABE_ITO[n % 7],
                label=name,
            )
        for n, (word, value) in enumerate((flat or {}).items()):
            axis.axhline(value, color="0.35", lw=1.2, ls=(":", "--", "-.", "-")[n % 4], label=word)
        if logx:
            at = sorted({x for points in series.values() for x in points})
            axis.set_xscale("log")
            axis.set_xticks(at, [f"{x:g}" for x in at], rotation=30)
            axis.minorticks_off()
        if log:
            axis.set_yscale("log")
        axis.set_xlabel(beneath)

    words = [
        f"{n}: " + ", ".join(f"{x:g}: {cell(row, key)}" for x, row in points.items())
        for n, points in series.items()
    ]
    return chart(
        title, "; ".join(words + [f"{word} {said(v)}" for word, v in (flat or {}).items()]), draw, 3.2
    )


def heat_chart(title, rows, columns, numbers):
    """A map of {row: [a value or None for each column]} between 0 and 1, with the numbers in it where there is room."""

    def draw(axis):
        values = [[float("nan") if v is None else v for v in row] for row in rows.values()]
        axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        if numbers:
            for y, row in enumerate(values):
                for x, v in enumerate(row):
                    if v == v:
                        axis.text(
                            x,
                            y,
                            f"{v:.2f}".removeprefix("0"),
                            ha="center",
                            va="center",
                            fontsize=7,
                            color="white" if v < 0.55 else "black",
                        )
        axis.set_yticks(range(len(rows)), list(rows))
        every = 1 if numbers else max(1, len(columns) // 4)
        axis.set_xticks(
            range(0, len(columns), every),
            columns[::every],
            rotation=45 if numbers else 0,
            ha="right" if numbers else "center",
            rotation_mode="anchor",
        )
        axis.figure.colorbar(axis.images[0], ax=axis, shrink=0.7)

    return chart(
        title,
        "; ".join(
            f"{n}: " + ", ".join(f"{c} {said(v)}" for c, v in zip(columns, row, strict=True))
            for n, row in rows.items()
        ),
        draw,
        1.6 + 0.24 * len(rows),
    )


def small(picture, width, exact=False):
    """A picture as WebP, no wider than `width`; exact: one that is narrow enough loses nothing."""
    from PIL import Image

    exact = exact and picture.width <= width
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    content = io.BytesIO()
    picture.convert("RGB").save(content, "webp", quality=85, lossless=exact)
    return content.getvalue()


def wide_picture(path, alt):
    """A stage's own picture; a narrow screen scrolls it in its box."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            shown = image(small(picture, WIDEST), "webp", alt)
        box = el("div", shown, class_="scroll wide", tabindex=0, role="region", aria_label=alt)
        return el("figure", box, el("figcaption", alt))
    except OSError as error:
        return absent(
            path,
            "the stage that writes it, again" if path.exists() else None,
            "cannot be read as a picture" * (not isinstance(error, FileNotFoundError)),
        )


def absent(what, command=None, why=""):
    return el(
        "p",
        badge("missing"),
        " ",
        el("code", what),
        f" {why}" * bool(why),
        *((": ", el("code", command)) if command else ()),
        class_="absent",
    )


def players(content, folder, number):
    """A slider over the frames of every clip's films side by side; without JavaScript, and on paper, the frames of the horizons in a row."""
    from PIL import Image

    about = content.get("sheet")
    if not about:
        return [absent("a sheet of films", "make gate3", "(video.py continue writes it)")]
    path = folder / Path(about["file"]).name
    names = about["films"]
    frames = about["frames"]
    side = about["size"]
    try:
        Image.MAX_IMAGE_PIXELS = None  # a sheet of large films is our own, and no attack
        with Image.open(path) as opened:
            sheet = opened.convert("RGB")
    except OSError:
        return [absent(path, "make gate3", "cannot be read")]
    if sheet.size != (frames * side, len(about["clips"]) * len(names) * side):
        return [
            absent(
                path, "make gate3", f"is {sheet.width} x {sheet.height} pixels, not what the YAML says of it"
            )
        ]
    parts = []
    for c, words in enumerate(about["clips"]):
        clip = sheet.crop((0, c * len(names) * side, sheet.width, (c + 1) * len(names) * side))
        label = f"frame-{number}-{c}"
        uri = image(small(clip, 160 * frames, exact=True), "webp", "").get("src")
        films, stills = [], []
        for f, film in enumerate(names):
            alt = f"{film}: {FILMS.get(film, 'what the video model made')}; clip: {words}"
            films.append(
                el(
                    "figure",
                    el(
                        "div",
                        class_="film",
                        role="img",
                        aria_label=alt,
                        style=f"background-position-y: {100 * f / max(len(names) - 1, 1):.4f}%",
                    ),
                    el("figcaption", film),
                )
            )
            at = [t for t in (0, 1, 2, 4, 8, 16) if t < frames]
            row = Image.new("RGB", (len(at) * (side + 2), side), "white")
            for k, t in enumerate(at):
                row.paste(
                    clip.crop((t * side, f * side, (t + 1) * side, (f + 1) * side)), (k * (side + 2), 0)
                )
            stills.append(
                el(
                    "figure",
                    image(
                        small(row, 6 * 162, exact=True),
                        "webp",
                        f"{alt}; frames {said(at)} after the last one seen",
                    ),
                    el("figcaption", f"{film}: frames {said(at)}"),
                )
            )
        controls = el(
            "div",
            el("label", "Frame", for_=label),
            el("input", type="range", id=label, min=0, max=frames - 1, value=0, step=1),
            el("output", for_=label, aria_live="off"),
            el("button", "Play", type="button", aria_label=f"Play or pause the films of the clip: {words}"),
            class_="controls",
        )
        films = el(
            "div",
            *films,
            class_="films",
            style=f"--sheet: url({uri}); --size: {100 * frames}% {100 * len(names)}%",
        )
        parts.append(
            el(
                "section",
                el("h4", f"Clip: {words}"),
                el("div", controls, films, class_="player"),
                el("div", *stills, class_="stills"),
                class_="clip",
            )
        )
    return parts


# ---------------------------------------------------------------- report: the page


def charts(*figures):
    return el("div", *figures, class_="charts")


def folded(summary, *parts):
    return el("details", el("summary", summary), *parts)


def with_stage(found, stem):
    """(model, data, content) of every YAML of this stage."""
    return [(m, d, stems[stem]) for (m, d), stems in found.items() if stem in stems]


def pick(rows, names):
    return {n: rows[n] for n in names if n in rows}


def verdicts(rows):
    cards, tables = [], []
    for r in rows:
        about = el(
            "h3",
            f"Gate {r['gate']}: {PROGRAMME[r['gate']][0]}",
            el("br"),
            el("small", f"{r['model']} on {r['data']}"),
        )
        if not (x := r["result"]):
            cards.append(
                el(
                    "article",
                    about,
                    badge("missing"),
                    el("p", "Not judged yet: ", el("code", r["command"])),
                    class_="card",
                )
            )
            continue
        changed = [el("p", f"Thresholds overridden: {said(x['overridden'])}.")] if x.get("overridden") else []
        cards.append(
            el("article", about, badge(x["verdict"]), el("p", x["headline"]), *changed, class_="card")
        )
        lines = [
            [
                name + "*" * bool(c.get("stand_in")),
                badge(c["answer"]),
                cell(c),
                said(c["threshold"]),
                best_floor(c),
                said(c.get("ceiling")),
                c.get("level", ""),
                c["reason"] + (f"; {c['n_needed']} items would decide" if c.get("n_needed") else ""),
            ]
            for name, c in x["criteria"].items()
        ]
        tables.append(
            table(
                f"Gate {r['gate']}, {r['model']} on {r['data']}: every criterion (* by a stand-in)",
                [
                    "criterion",
                    "answer",
                    "score [95% interval]",
                    "threshold",
                    "best floor",
                    "ceiling",
                    "level",
                    "reason",
                ],
                lines,
            )
        )
    return [el("div", *cards, class_="cards"), *tables]


def probes(found, rows):
    judged, parts, others = {(r["model"], r["data"]): r["result"] for r in rows if r["gate"] == 1}, [], []
    for m, d, x in with_stage(found, "probe"):
        # gate 1 judges motion on a folder of its own
        moving = [result for (model, _), result in judged.items() if model == m and d == "moving"]
        if (m, d) not in judged and not moving:
            others.append(
                [
                    m,
                    d,
                    *(
                        f"{cell(c)}, floor {best_floor(c)}" if (c := x["criteria"].get(k)) else "-"
                        for k in CURVES
                    ),
                ]
            )
            continue
        thresholds = {
            k: c["threshold"]
            for k, c in ((judged.get((m, d)) or next(iter(moving), None) or {}).get("criteria", {})).items()
        }
        every = [
            [k, cell(c), c.get("layer", "-"), cell(c, "gain"), said(c["floors"])]
            for k, c in x["criteria"].items()
        ]
        parts += [
            el("h3", f"{m} on {d}"),
            charts(*(curve_chart(x, k, thresholds.get(k)) for k in CURVES if k in x["criteria"])),
            folded(
                "Every probe, with every floor",
                table(
                    f"{m} on {d}: probes",
                    ["probe", "score [95% interval]", "layer", "gain over the best floor", "floors"],
                    every,
                ),
            ),
        ]
    return parts + (
        [
            folded(
                f"Other models, sizes and data: {len(others)} probed",
                table("Scores at the layer chosen", ["model", "data", *CURVES.values()], others),
            )
        ]
        if others
        else []
    )


def alignments(found):
    parts = []
    for m, d, x in [
        (m, d, x) for (m, d), stems in found.items() for x in stems.values() if x["stage"] == "align"
    ]:
        names, untrained = list(next(iter(x["layers"].values()))), x.get("untrained", {})
        alike = {
            p: [of.get(n, {}).get("score") for n in names for of in (row, untrained.get(p, {}))]
            for p, row in x["layers"].items()
        }
        maps = [
            heat_chart(
                f"{x['target']} and every layer, trained and untrained",
                alike,
                [c for n in names for c in (n, f"{n} untrained")],
                True,
            )
        ]
        if channels := x.get("channels"):
            maps.append(
                heat_chart(
                    f"R2 of every channel of {x['target']} (below 0 as 0)",
                    channels,
                    list(range(len(next(iter(channels.values()))))),
                    False,
                )
            )
        best = {k: c | {"best_floor": best_floor(c)} for k, c in x["criteria"].items()}
        parts += [
            el("h3", f"{m} on {d}, with {x['target']}"),
            el("p", f"Dark is unlike, bright alike. Recommended layer: {said(x.get('recommended'))}."),
            charts(*maps),
            grid(
                "At the best layer",
                best,
                {"score": "score [95% interval]", "layer": "layer", "best_floor": "best floor", "p": "p"},
                "measure",
            ),
        ]
    return parts


def reconstructions(found, results):
    parts = []
    for (m, d), stems in found.items():
        for stem, words in PICTURES.items():
            if stem in stems:
                picture = wide_picture(results / m / d / f"{stem}.png", f"{m} on {d}: {words}")
                parts.append(picture if stem == "gate1" else folded(f"{m} on {d}: {words}", picture))
    return parts


def scalings(found):
    parts, lpips = [], {"lpips": "LPIPS", "lpips_random_backbone": "LPIPS, untrained backbone"}
    columns = {
        "parameters": "parameters",
        **lpips,
        "ssim": "SSIM",
        "edge_f1": "edge F1",
        "worse": "worse than the reference by",
        "p_holm": "p (Holm)",
    }

    def key_of(row):
        return "lpips" if row.get("lpips") is not None else "lpips_random_backbone"

    for m, d, x in with_stage(found, "adapt-scaling"):
        sizes, key = x.get("sizes", {}), key_of(x)
        flat = {
            word: x[f"{key}_{end}"]
            for word, end in (("autoencoder's own", "ceiling"), ("best floor", "floor"))
            if x.get(f"{key}_{end}") is not None
        }
        parts += [
            el("h3", f"Size of the bridge: {m} on {d}"),
            el(
                "p",
                f"Parameter efficiency {cell(x, 'parameter_efficiency')}; training time, larger over smaller: {said(x.get('training_time_ratio'))}.",
            ),
            charts(
                lines_chart(
                    f"{lpips[key]} (lower is better)",
                    {"bridge": {row["parameters"]: row for row in sizes.values()}},
                    key,
                    "trained parameters",
                    flat,
                    log=True,
                    logx=True,
                )
            ),
            grid("Rungs of the ladder", sizes, columns, "size"),
        ]
    for stem, title in (
        ("adapt-ablation", "Other bridges, layers, sizes and numbers of items"),
        ("adapt-hybrid", "A second encoder, and its controls"),
    ):
        for m, d, x in with_stage(found, stem):
            arms = x.get("arms", {})
            key = key_of(next(iter(arms.values()), {}))
            adds = (
                [
                    el(
                        "p",
                        f"Does the model add to {x['spatial']}? {x['model_adds']}. Does {x['spatial']} add to the model? {x['spatial_adds']}.",
                    )
                ]
                if "model_adds" in x
                else []
            )
            parts += [
                el("h3", f"{title}: {m} on {d}"),
                *adds,
                charts(dots_chart(f"{lpips[key]} (lower is better)", arms, key)),
                grid("Arms", arms, columns, "arm"),
            ]
    for m, d, x in with_stage(found, "video-coherence"):
        moving = {"temporal_consistency": "temporal consistency"} | OF_FILMS
        parts += [
            el("h3", f"Films from the bridge: {m} on {d}"),
            grid(f"Conditionings of {x.get('video')}", x.get("conditionings", {}), moving, "conditioning"),
        ]
    for m, d, x in with_stage(found, "predict-latents"):
        if s := x.get("scaling"):
            parts += [
                el("h3", f"Clips to learn prediction from: {m} on {d}"),
                charts(
                    lines_chart(
                        "1 - cosine, by training clips",
                        {s["variant"]: s["sizes"]},
                        "error",
                        "training clips",
                        {"copying the last frame": s["copy_error"]},
                        logx=True,
                    )
                ),
                el(
                    "p",
                    f"By a power law it would take {said(s.get('clips_to_reach_copy'))} clips to reach the copy: a guess, beyond the data.",
                ),
            ]
    return parts


def predictions(found):
    parts, errors_of = [], {"l1": "L1", "moving_l1": "L1 where it moves"}
    remarks = {"static": "stands still", "best_shift": "frames early (+) or late (-)"}
    for m, d, x in with_stage(found, "predict-latents"):
        every = dict(sorted((x["variants"] | x["baselines"]).items(), key=lambda item: -item[1]["cosine"]))
        ahead = pick(x["horizons"], (x["variant"], "blind", "latents", "flow", "linear"))
        parts += [
            el("h3", f"In latent space: {m} on {d}"),
            el(
                "p",
                f"Chosen on val: {x['variant']}, read at {x['layer']}. Better than the copy and every control: {x['predicts']}.",
            ),
            charts(
                dots_chart(
                    "Gain in cosine over copying the last frame (grey squares: controls)",
                    every,
                    "gain",
                    {"copy": 0.0},
                    [*x["baselines"], "blind", "latents", "untrained"],
                ),
                lines_chart(
                    "Gain over the copy by horizon", ahead, "gain", "frames ahead", {"copy": 0.0}, logx=True
                ),
            ),
            grid(
                "Every variant and control",
                every,
                {"cosine": "cosine", "gain": "gain over copy", "p_holm": "p (Holm)", "skill": "skill"}
                | errors_of
                | remarks,
                "variant",
            ),
        ]
    for m, d, x in with_stage(found, "video-continue"):
        shown = [
            n
            for n in (x["conditioning"], "copy", "flow", "vae", "mean", "nearest")
            if n in x["continuations"]
        ]
        ahead = {n: {h: row[n] for h, row in x["horizons"].items() if n in row} for n in shown}
        parts += [
            el("h3", f"By a video model: {x.get('video')} on {d} ({m})"),
            charts(
                *(
                    lines_chart(f"{title} by horizon", ahead, k, "frames ahead", logx=True)
                    for k, title in errors_of.items()
                )
            ),
            grid("Continuations and baselines", x["continuations"], errors_of | OF_FILMS | remarks, "film"),
        ]
    for m, d, x in with_stage(found, "video-futures"):
        columns = errors_of | {
            "direction_right": "right way",
            "moving_l1_oracle_share": "share of what the oracle saves",
        }
        parts += [
            el("h3", f"Several futures, one believed: {x.get('video')} on {d} ({m})"),
            grid("Pickers", x["pickers"], columns, "picker"),
        ]
    for m, d, x in with_stage(found, "explain-describe"):
        rows = {n: row | row.get(f"{x['kind']}-{x['frames']}", {}) for n, row in x["conditionings"].items()}
        parts += [
            el("h3", f"What the model says of the films: {m} on {d}"),
            grid(
                f"Asked as real clips are recognised best ({x['kind']}, {x['frames']} frames)",
                rows,
                {"recall": "action recalled", "retention": "over that of real clips", "unparsed": "unparsed"},
                "film",
            ),
        ]
    return parts


def frames_chosen(found):
    columns = {
        "score": "right",
        "gain": "the first gains over it",
        "p": "p",
        "seconds_choosing": "seconds to choose",
        "seconds_answering": "seconds to answer",
    }
    parts = []
    # one for each number of frames
    for m, d, x in (
        (m, d, x) for (m, d), stems in found.items() for x in stems.values() if x["stage"] == "frames"
    ):
        ways = {
            n + " (equal time)" * (n in x["equal_time"]): row
            | {"score": row["right"]}
            | x["gains"].get(n, {})
            for n, row in x["ways"].items()
        }
        parts += [
            el("h3", f"{m} on {d}, {x['count']} frames of a clip"),
            charts(
                dots_chart(
                    "Answers that are right (grey squares: more even frames, in the time that choosing takes)",
                    ways,
                    "score",
                    grey=[n for n in ways if n.endswith("time)")],
                )
            ),
            grid(
                f"{x['questions']} questions about {x['clips']} clips of {x['sources']} sources",
                ways,
                columns,
                "way",
            ),
        ]
    return parts


def words_of_trajectories(found, results):
    columns = {
        "accuracy": "accuracy",
        **{kind: kind for kind in ASKED},
        "frame_f1": "frame F1",
        "claim_precision": "claims true",
        "omission": "facts omitted",
        "abstains_wrongly": "abstains wrongly",
        "order_persistence": "stays in another order",
        "seconds_per_clip": "seconds a clip",
        "memory_gb": "GB",
        "training_seconds_per_seed": "seconds to train",
    }
    parts = []
    for m, d, x in with_stage(found, "explain-trajectories"):
        parts += [
            el("h3", f"{m} on {d}"),
            el(
                "p",
                f"Words of the writer {x['writer']} follow what it was shown: {said(x['words_follow_picture'])}.",
            ),
            charts(
                dots_chart(
                    "Answers that are right (grey squares: ceiling and floors)",
                    x["writers"],
                    "accuracy",
                    grey=("truth", "commonest", "blind"),
                ),
                *(
                    [
                        dots_chart(
                            "The same with something else in place of the embedding",
                            x["ablations"],
                            "accuracy",
                        )
                    ]
                    if x["ablations"]
                    else []
                ),
            ),
            folded("By kind of question", grid(f"{m} on {d}: writers", x["writers"], columns, "writer")),
            *(
                grid(
                    f"Clips {change}: what answers say",
                    rows,
                    {"new": "what has become true", "old": "what was", "questions": "questions"},
                    "writer",
                )
                for change, rows in x["changed"].items()
            ),
            wide_picture(
                results / m / d / "explain-trajectories.png",
                f"{m} on {d}: when objects are there (hatched: hidden), as it was and as writers have it",
            ),
        ]
    return parts


def told_operations(found, results):
    columns = {
        "macro_f1": "macro-F1",
        "accuracy": "accuracy",
        "accuracy_fixed": "accuracy, fixed clips",
        "next_accuracy": "next, accuracy",
        "start_error": "start, s off",
        "end_error": "end, s off",
        "segmental_f1_50": "segmental F1@50",
        "boundary_error": "boundaries, s off",
        "no_json": "no JSON",
        "seconds_per_clip": "seconds a clip",
    }
    parts = []
    for m, d, x in with_stage(found, "operations"):
        main, pair = x["tuned"] or x["model"], x["pair"]
        words = f" Confused most: {' and '.join(pair['pair'])}, {pair['clips']} of {pair['of']} clips, of which a share of {said(pair['at_a_change'])} end within a second of a change."
        parts += [
            el("h3", f"{m} on {d}"),
            el(
                "p",
                badge(x["answer"]),
                f" Is {main} above every floor by a paired interval? {said(x['above_every_floor'])}.",
                words if pair else "",
            ),
            charts(
                dots_chart(
                    "What is done now, macro-F1 (grey squares: who sees no picture; copy sees the truth of a second ago)",
                    x["answers"],
                    "macro_f1",
                    grey=("majority", "clock", "bigram", "copy"),
                )
            ),
            folded(
                "Every score", grid(f"{m} on {d}: what is said of operations", x["answers"], columns, "who")
            ),
            wide_picture(
                results / m / d / "operations.png",
                f"{m} on {d}: what is said of each operation, and clips of the pair confused most",
            ),
        ]
    return parts


def verifiers(found):
    """Of verify.yaml whatever is there."""
    parts = []
    for m, d, x in with_stage(found, "verify"):
        rows = {
            n: row | {f"kind {k}": v.get("auroc") for k, v in row.get("kinds", {}).items()}
            for n, row in x.get("verifiers", {}).items()
        }
        kinds = {k: k.removeprefix("kind ") for row in rows.values() for k in row if k.startswith("kind ")}
        facts = [
            k
            for k, v in x.items()
            if not isinstance(v, (dict, list))
            and not k.endswith(("_low", "_high"))
            and k not in ("stage", "model", "weights", "data", "data_name")
        ]
        lines = []
        if ahead := x.get("horizons"):
            # beside them: how many have begun to be wrong
            names = dict.fromkeys(n for row in ahead.values() for n, v in row.items() if isinstance(v, dict))
            lines.append(
                lines_chart(
                    "AUROC by horizon",
                    {n: {h: row[n] for h, row in ahead.items() if n in row} for n in names},
                    "auroc",
                    "frames ahead",
                    {"chance": 0.5},
                    logx=True,
                )
            )
        if risk := x.get("risk_coverage"):
            kept = {
                n: {c: {"risk": r} for c, r in zip(risk["coverage"], risk[k], strict=True)}
                for n, k in (("by the verifier", "risk"), ("by one who knows", "perfect"))
                if risk.get(k)
            }
            lines.append(
                lines_chart(
                    "Risk of what is kept, by the share kept",
                    kept,
                    "risk",
                    "coverage",
                    pick({"at random": risk.get("random")}, ["at random"] * (risk.get("random") is not None)),
                )
            )
        parts += [
            el("h3", f"{m} on {d}"),
            charts(
                *(
                    [dots_chart("AUROC for wrong predictions", rows, "auroc", {"chance": 0.5})]
                    if rows
                    else []
                ),
                *lines,
            ),
            grid(
                "Verifiers; AUROC by kind of error",
                rows,
                {"family": "family", "auroc": "AUROC", **kinds},
                "verifier",
            ),
            folded(
                "Every headline figure",
                table("Headline", ["figure", "value [95% interval]"], [[k, cell(x, k)] for k in facts]),
            ),
        ]
        for key, some in (
            (k, v)
            for k, v in x.items()
            if isinstance(v, dict)
            and k not in ("verifiers", "horizons", "risk_coverage", "criteria", "notes", "run")
        ):
            title = {
                "made": "Of films that the video model made",
                "futures": "Of several futures of one clip, the better half",
            }.get(key, key.replace("_", " ").capitalize())
            # of the films that were made: each verifier's row for all that can be wrong
            if "verifiers" in some:
                nested = {n: row.get("all", row) for n, row in some["verifiers"].items()}
            else:
                deep = {n: row for n, row in some.items() if isinstance(row, dict)}
                nested = {
                    label: row
                    for n, rows_ in deep.items()
                    for label, row in (
                        {f"{n.replace('_', ' ')}: {k}": r for k, r in rows_.items()}
                        if rows_ and all(isinstance(r, dict) for r in rows_.values())
                        else {n: rows_}
                    ).items()
                }
            plainly = [
                [n, cell(some, n)]
                for n, row in some.items()
                if not isinstance(row, dict) and not n.endswith(("_low", "_high"))
            ]
            columns = {
                k: k.replace("_", " ")
                for row in nested.values()
                for k, v in row.items()
                if not k.endswith(("_low", "_high")) and not isinstance(v, dict)
            }
            parts += [grid(title, nested, columns, "name")] * bool(columns) + [
                table(title, ["name", "value"], plainly)
            ] * bool(plainly)
    return parts


def screening(alone):
    if not (x := alone.get("screen/screen")):
        return [absent("screen/screen.yaml", STANDALONE["screen/screen"])]
    criteria, names, lines = x["criteria"], list(next(iter(x["criteria"].values()))), []
    for k in ("spatial_iou", "bbox_iou"):
        rows = {n: c[k] for n, c in criteria.items() if c.get(k, {}).get("score") is not None}
        floors = [row["floor"] for row in rows.values() if row.get("floor") is not None]
        lines += (
            [
                dots_chart(
                    CURVES[k],
                    rows,
                    "score",
                    {"threshold": next(iter(rows.values()))["threshold"]}
                    | ({"highest of the floors": max(floors)} if floors else {}),
                )
            ]
            if rows
            else []
        )
    whole = [
        [
            n,
            r["kind"],
            cell(r | {"score": r["weighted"]}),
            said(r["rank"]),
            said(r["decision"]),
            r["why"] or r["excluded"] or "-",
        ]
        for n, r in x["models"].items()
    ]
    each = [
        [
            n,
            *(
                el("span", cell(c[k]), " ", badge(c[k]["answer"])) if c[k].get("answer") else cell(c[k])
                for k in names
            ),
        ]
        for n, c in criteria.items()
    ]
    return [
        el("p", badge(x["outcome"]), " ", x["headline"]),
        charts(*lines),
        table(
            f"{x['items']} test items of {x['data_name']}",
            ["model", "kind", "weighted score", "rank", "decision", "why"],
            whole,
        ),
        table("Criteria", ["model", *names], each),
    ]


def own_errors(alone):
    parts = []
    if x := alone.get("calibrate"):
        words = {
            "false_pass": "a criterion passes that should not",
            "false_fail": "a criterion fails that should not",
            "false_proceed": "PROCEED where it should not be",
            "false_stop": "STOP where it should not be",
        }
        rates = {
            k: {n: row[k] for n, row in x["criteria"].items() if row[k]["rate"] is not None}
            for k in ("false_pass", "false_fail")
        }
        parts += [
            el(
                "p",
                f"On {x['worlds']} planted worlds whose answer is known; the aim, {said(x['aim'])} at most, is {'met' if x['met'] else 'not met'}. "
                f"Most often wrong: of {x['worst_false_pass_in']}, {said(x['worst_false_pass'])} pass that should not.",
            ),
            table(
                "How often the gate is wrong",
                ["error", "rate [95% interval]"],
                [[w, cell(x, k)] for k, w in words.items()],
            ),
            charts(
                *(
                    dots_chart(f"{words[k].capitalize()}, by number of items", of, "rate", {"aim": x["aim"]})
                    for k, of in rates.items()
                )
            ),
        ]
    else:
        parts.append(absent("calibrate.yaml", STANDALONE["calibrate"]))
    return parts


def not_measured(found, alone, rows):
    gone = [[p, el("code", r["command"])] for r in rows for p in r["missing"]] + [
        [f"{s}.yaml", el("code", command)] for s, command in STANDALONE.items() if s not in alone
    ]
    return [
        table(*t)
        for t in (
            ("Not measured, or not as one would wish", ["what", "why", "where"], unmeasured(found, alone)),
            ("Not run", ["file", "made by"], gone),
        )
        if t[2]
    ]


def speed(alone):
    columns = {
        "ratio": "times as fast",
        "aim": "aim",
        "met": "met",
        "same_numbers": "same numbers",
        "what": "what",
        "peer": "beside",
    }
    return [
        grid(f"Beside named peers, in one run ({s}.yaml)", alone[s].get("rows", {}), columns, "measure")
        if s in alone
        else absent(f"{s}.yaml", STANDALONE[s])
        for s in ("bench", "bench-gpu")
    ]


def run_parts(found, alone):
    runs = {
        f"{'/'.join((*place, s))}.yaml": (x["run"], x)
        for place, stems in (found | {(): alone}).items()
        for s, x in stems.items()
        if "run" in x
    }
    versions = [said(run.get("versions")) for run, _ in runs.values()]
    lines = [
        [
            name,
            *(said(run.get(k)) for k in ("seconds", "peak_memory_gb", "git_commit", "device")),
            command_of(x),
        ]
        for name, (run, x) in runs.items()
    ]
    return [
        *(el("p", f"{v} ({versions.count(v)} files)") for v in dict.fromkeys(versions)),
        folded(
            "Seconds, memory, commit, device and arguments of every file",
            table("Runs", ["file", "seconds", "peak GB", "commit", "device", "arguments"], lines),
        ),
    ]


def page_of(results, found, alone, rows):
    """The page as text."""
    films = [
        x
        for n, (m, d, content) in enumerate(with_stage(found, "video-continue"))
        for x in (el("h3", f"{content.get('video')} on {d} ({m})"), *players(content, results / m / d, n))
    ]
    meaning = el("dl", *(x for n, words in FILMS.items() for x in (el("dt", n), el("dd", words))))
    told_parts = words_of_trajectories(found, results)
    bench = told_operations(found, results)
    chosen = frames_chosen(found)
    sections = {  # title: (what it shows, its parts, the stages it is made of)
        "Verdicts": (
            "A verdict follows from criteria, each held against its threshold and against the best floor that costs nothing.",
            verdicts(rows),
            (),
        ),
        "Probes by layer": (
            "What of space and motion can still be read from each layer, by a linear map, beside what needs no trained network.",
            probes(found, rows),
            ("probe",),
        ),
        "Alignment": (
            "How alike the model's tokens and the decoder's latents are.",
            alignments(found),
            ("align",),
        ),
        "Reconstructions": (
            "What a frozen decoder makes of the model's tokens.",
            reconstructions(found, results),
            ("adapt-latents",),
        ),
        "Scaling and the bridge": (
            "Whether a larger bridge, another one, a second encoder, or more clips help.",
            scalings(found),
            (*PROGRAMME[2][1], *PROGRAMME[2][2]),
        ),
        "Prediction": (
            "Whether anything predicts better than what costs nothing.",
            predictions(found),
            PROGRAMME[3][1],
        ),
        "Films: real, generated, copied": (
            "Drag the slider, or use the arrow keys, to go through the frames.",
            [meaning, *films] if films else [],
            ("video-continue",),
        ),
        **(
            {
                "Which frames are shown": (
                    "Whether it matters which frames of a clip a model sees, at equal frames and at equal time.",
                    chosen,
                    (),
                )
            }
            if chosen
            else {}
        ),
        **(
            {
                "Words about moving objects": (
                    "Whether what is said of objects that come, go and hide is true.",
                    told_parts,
                    (),
                )
            }
            if told_parts
            else {}
        ),
        **(
            {
                "Operations": (
                    "What is done at a bench, before and after fine-tuning, beside what costs nothing.",
                    bench,
                    (),
                )
            }
            if bench
            else {}
        ),
        "Verifiers": (
            "Whether a wrong prediction can be told by its pixels.",
            verifiers(found),
            PROGRAMME[4][1],
        ),
        "Screening": ("Which model.", screening(alone), ()),
        "The gate's own error rates": (
            "How often the verdict itself is wrong, where the truth is known.",
            own_errors(alone),
            (),
        ),
        "What could not be measured": (
            "Every score that is null, every stand-in, and all that was not measured with published weights on real data.",
            not_measured(found, alone, rows),
            (),
        ),
        "Speed": ("Ratios above 1 are faster than the peer.", speed(alone), ()),
        "Runs": ("What every number was computed with.", run_parts(found, alone), ()),
    }
    lacking, body, links = dict.fromkeys((path, r["command"]) for r in rows for path in r["missing"]), [], []
    for n, (title, (words, parts, stems)) in enumerate(sections.items()):
        body.append(
            el(
                "section",
                el("h2", title),
                el("p", words),
                *parts,
                *(absent(path, command) for path, command in lacking if Path(path).stem in stems),
                id=f"part-{n}",
            )
        )
        links.append(el("li", el("a", title, href=f"#part-{n}")))
    kinds = sorted({kinds_of(r["result"]) for r in rows if r["result"]})
    nav = el("nav", el("ul", *links), aria_label="Sections")
    caution = [
        el(
            "p",
            f"The verdicts rest on {'; '.join(kinds)}. Small weights are this project's own: they check the instrument and say nothing of large models.",
            class_="note",
        )
    ]
    main = el(
        "main",
        el("h1", "Foresight: report"),
        el(
            "p",
            f"{QUESTION} Four gates answer, each with PROCEED, PIVOT, STOP or INCONCLUSIVE. "
            f"This page is made of the YAML and PNG below {results.name}/, of nothing else.",
        ),
        *(caution if kinds not in ([], ["pretrained weights, real data"]) else []),
        nav,
        *body,
        id="main",
    )
    return PAGE.substitute(body=ElementTree.tostring(main, encoding="unicode", method="html"))


def summary_of(found, alone, rows):
    """The same in words, in the order of the programme's final report: summary.md."""

    def markdown(head, lines):
        return (
            "".join(
                f"| {' | '.join(str(x).replace('|', '/') for x in line)} |\n"
                for line in [head, ["---"] * len(head), *lines]
            )
            + "\n"
        )

    def about(r):
        return f"{r['model']} on {r['data']}"

    def judged(r):
        if not (x := r["result"]):
            return f"### {about(r)}\n\nMissing: not judged yet.\n\n"
        lines = [
            [
                n + "*" * bool(c.get("stand_in")),
                c.get("level", ""),
                cell(c),
                said(c["threshold"]),
                best_floor(c),
                c["answer"],
            ]
            for n, c in x["criteria"].items()
        ]
        changed = f"Thresholds overridden: {said(x['overridden'])}.\n\n" if x.get("overridden") else ""
        return f"### {about(r)}\n\n{x['headline']}.\n\n{changed}" + markdown(
            ["criterion", "level", "score [95% interval]", "threshold", "best floor", "answer"], lines
        )

    advice = {
        "PROCEED": "go on",
        "PIVOT": "change course, as the verdict says",
        "STOP": "stop here",
        "INCONCLUSIVE": "measure more before deciding",
    }
    text = "# Foresight: final report\n\n## Executive summary\n\n"
    for r in rows:
        text += f"* **Gate {r['gate']}: {PROGRAMME[r['gate']][0]} {about(r)}:** {r['result']['headline'] if r['result'] else 'missing, not judged yet'}.\n"
    text += f"\n## 1. Question and method\n\n{QUESTION}\n\nSplits are by source; layers and settings are chosen on val and scored on test; every score stands "
    text += "beside floors and a ceiling, with a 95% interval of resampled sources. A criterion passes when its interval clears "
    text += "the threshold and its paired gain over the best floor excludes zero. * marks a stand-in.\n\n"
    for gate, (asks, *_) in PROGRAMME.items():
        here = [r for r in rows if r["gate"] == gate]
        text += f"## {gate + 1}. Gate {gate}: {asks[0].lower()}{asks[1:]}\n\n" + "".join(map(judged, here))
        text += "".join(
            f"* missing: `{p}`; `{r['command']}` makes it\n" for r in here for p in r["missing"]
        ) + "\n" * any(r["missing"] for r in here)
    for m, d, x in with_stage(found, "verify"):
        text += f"Verifiers, {m} on {d}:\n\n" + markdown(
            ["verifier", "family", "AUROC"],
            [[n, said(v.get("family")), cell(v, "auroc")] for n, v in x.get("verifiers", {}).items()],
        )
    text += "## 6. Which model\n\n"
    if x := alone.get("screen/screen"):
        lines = [
            [n, r["kind"], cell(r | {"score": r["weighted"]}), said(r["rank"]), said(r["decision"])]
            for n, r in x["models"].items()
        ]
        text += f"{x['headline']}.\n\n" + markdown(
            ["model", "kind", "weighted score", "rank", "decision"], lines
        )
    else:
        text += "* missing: `screen/screen.yaml`; `make screen` makes it\n\n"
    text += "## 7. What could not be measured\n\n" + markdown(
        ["what", "why", "where"], unmeasured(found, alone)
    )
    if x := alone.get("calibrate"):
        text += f"The gate's own errors, on planted worlds: false PROCEED {cell(x, 'false_proceed')}, false STOP {cell(x, 'false_stop')}.\n\n"
    text += "## 8. Recommendation\n\n"
    for r in rows:
        verdict = (r["result"] or {}).get("verdict")
        text += f"* Gate {r['gate']}, {about(r)}: " + (
            f"{advice.get(verdict, verdict)}. {r['result']['headline']}.\n"
            if verdict
            else f"run `{r['command']}` first.\n"
        )
    if any(r["result"] and r["result"].get("weights") != "pretrained" for r in rows):
        text += "\nThese weights are not published ones: before deciding about a large model, run the gates with `MODEL=` its name.\n"
    runs = [(r, r["result"]["run"]) for r in rows if r["result"] and "run" in r["result"]]
    lines = [
        [
            f"gate {r['gate']}, {about(r)}",
            f"`{r['command']}`",
            said(run.get("git_commit")),
            said(run.get("versions")),
        ]
        for r, run in runs
    ]
    return (
        text
        + "\n## 9. Reproduction\n\n"
        + markdown(["verdict", "command", "commit", "versions"], lines)
        + "`make report` builds this page again.\n"
    )


def write_report(args, started):
    """report.html, and summary.md beside it: whatever of the programme lies in --results; nothing is computed again."""
    results = Path(args.results)
    if not results.is_dir():
        refuse(f"{results} is not a folder; give --results, below which the stages wrote their YAML")
    out = Path(args.out or results / "report.html")
    check_writable(out)
    found, alone = read_results(results)
    rows = programme(found)
    page = page_of(results, found, alone, rows)
    save_text(out, page)
    save_text(out.with_name("summary.md"), summary_of(found, alone, rows))
    result = {
        "stage": "report",
        "out": str(out),
        "bytes": len(page.encode()),
        "yaml": sum(map(len, found.values())) + len(alone),
        "gates": sum(r["result"] is not None for r in rows),
        "missing": sum(len(r["missing"]) for r in rows),
        "seconds": time.time() - started,
    }
    say(result)
    return result


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--results", default="results", help="the folder of all models' results")
    add("--out", help="default: report.html in --results")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    return write_report(args, started)


if __name__ == "__main__":
    main()
