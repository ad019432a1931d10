"""The page of all results: what is missing says so, nothing in a YAML becomes HTML, and in a browser every image loads and the slider moves the frame."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
import yaml
from helpers import plant_features
from PIL import Image

import gate
import report
import video
from common import HERE, load_items, save_yaml

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine: the page is not opened")
KINDS = {"weights": "small", "data": "synthetic"}
WORLD = """
shapes/probe: {stage: probe, data_name: shapes, criteria: {bbox_iou: &record {
    score: 0.6123, low: 0.5712, high: 0.6534, floor: 0.4321, floor_name: constant, ceiling: 1.0, gain: 0.18,
    gain_low: 0.14, gain_high: 0.22, layer: vision.1, n: 50, floors: {constant: 0.4321, shuffled: 0.2}}},
  layers: {vision.0: {bbox_iou: 0.5, bbox_iou_low: 0.45, bbox_iou_high: 0.55, bbox_iou_random: 0.4},
           vision.1: {bbox_iou: 0.6, bbox_iou_low: 0.55, bbox_iou_high: 0.65, bbox_iou_random: 0.4}}}
shapes/align: {stage: align, target: tiny-vae, recommended: vision.0, criteria: {cka: *record},
  layers: {vision.0: {cka: *record}, vision.1: {cka: *record}}, untrained: {vision.0: {cka: *record}},
  channels: {vision.0: [0.1, null, 0.9], vision.1: [0.1, null, 0.9]}}
shapes/gate1: {stage: gate, gate: 1, verdict: PIVOT, data_name: shapes, overridden: {bbox_iou: 0.5},
  headline: "PIVOT (small weights, synthetic data): to the hybrid",
  run: {seconds: 1.5, git_commit: "0123abcd", arguments: {gate: 1}, versions: {torch: "2"}},
  criteria: {
    bbox_iou: {<<: *record, level: must, threshold: 0.5, answer: PASS, reason: the interval clears it},
    lpips: {<<: *record, level: must, threshold: 0.5, answer: PASS, reason: so it is, stand_in: true,
            source: no published backbone here},
    inference_ratio: {level: should, threshold: 2.0, score: null, answer: INCONCLUSIVE, reason: no reference}}}
"""
MADE = {"l1": 0.02, "l1_low": 0.01, "l1_high": 0.03, "moving_l1": 0.1, "temporal_ratio": 0.7, "static": False}
FRAMES, FILMS = 17, ("real", "vae", "copy", "flow", "past")


def colour(clip, film, t):
    return 40 + 60 * clip, 40 + 40 * film, 10 * t


def sheet(path, clips=2, size=16):
    """A sheet in which every frame of every film has a colour of its own; returns what the YAML says of it."""
    films = {}
    for f, name in enumerate(FILMS):
        x = torch.tensor([[colour(c, f, t) for t in range(FRAMES)] for c in range(clips)], dtype=torch.uint8)
        films[name] = x[:, :, None, None].repeat(1, 1, size, size, 1)
    return video.sheet(films, [f"the circle of clip {c} moves up" for c in range(clips)], path)


def world(results, model="tiny"):
    """Gate 1 as gate.py writes it, a probe, an alignment, films with their sheet; gate 2 and 4 lack everything, gate 3 most."""
    for name, content in yaml.safe_load(WORLD).items():
        save_yaml(results / model / f"{name}.yaml", content | KINDS | {"model": model})
    Image.effect_noise((1200, 900), 90).save(results / model / "shapes/gate1.png")
    ahead = results / model / "future"
    ahead.mkdir(parents=True)
    head = {
        "stage": "video",
        "model": None,
        "video": "tiny-ltx",
        "video_weights": "small",
        **KINDS,
        "conditioning": "past",
    }
    horizons = {h: dict.fromkeys(FILMS[1:], MADE) for h in (1, 16)}
    films = {
        "continuations": dict.fromkeys(FILMS, MADE),
        "sheet": sheet(ahead / "video-continue-sheet.png"),
    }
    save_yaml(ahead / "video-continue.yaml", head | {"horizons": horizons} | films)
    return results


def built(results, *flags):
    found = report.main(["--results", str(results), *flags])
    return found, (results / "report.html").read_text(), (results / "summary.md").read_text()


class Page(HTMLParser):
    """Every element of a page, [(tag, attributes)], and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [a for t, a in self.elements if t == tag]


def test_a_folder_without_results_is_all_missing_and_no_folder_is_refused(tmp_path, capsys):
    found, page, summary = built(tmp_path)
    assert found["gates"] == 0 and found["yaml"] == 0
    for number in range(1, 5):
        assert f"make gate{number} MODEL=tiny" in page and f"make gate{number} MODEL=tiny" in summary
    for command in report.STANDALONE.values():
        assert command in page
    assert {w for a in Page(page).all("span") for w in a.get("class", "").split()} == {"badge", "missing"}
    with pytest.raises(SystemExit, match="2"):
        built(tmp_path / "nowhere")
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_the_page_and_the_summary_say_what_the_yaml_says_and_what_is_missing(tmp_path):
    found, page, summary = built(world(tmp_path))
    for text in (Page(page).text, summary):
        for words in (
            "PIVOT (small weights, synthetic data): to the hybrid",
            "0.612 [0.571, 0.653]",
            "0.432 constant",
            "no reference",
            "no published backbone here",
            "small weights of the model",
            "make gate2",
            "bbox_iou 0.500",
            "tiny/future/predict-latents.yaml",
            "tiny/shapes/adapt-scaling.yaml",
            "tiny/moving/video-coherence.yaml",
        ):
            assert words in text, words
    assert 'make gate1 MODEL=tiny SET="bbox_iou=0.5"' in summary
    assert not any(
        there in summary for there in ("tiny/shapes/align.yaml", "tiny/future/video-continue.yaml")
    )
    # adapt-latents and motion of gate 1; gates 2, 3, 4
    assert found["gates"] == 1 and found["missing"] == summary.count("* missing: `tiny") == 1 + 1 + 7 + 4 + 3
    heads = re.findall(r"^## (.+)", summary, re.MULTILINE)
    assert heads[0] == "Executive summary" and [h[:2] for h in heads[1:]] == [f"{k}." for k in range(1, 10)]


def test_where_all_is_measured_on_published_weights_and_real_data_nothing_is_said_to_be_unmeasured():
    record = yaml.safe_load(WORLD)["shapes/probe"]["criteria"]["bbox_iou"]
    best = {"weights": "pretrained", "data": "real", "stage": "gate", "criteria": {"bbox_iou": record}}
    assert report.unmeasured({("m", "d"): {"gate1": best}}, {}) == []
    worse = best | {
        "lpips": None,
        "lpips_reason": "no backbone",
        "video_weights": "random",
        "data": "synthetic",
    }
    found = report.unmeasured({("m", "d"): {"gate1": worse}}, {})
    assert [what for what, _, _ in found] == ["lpips", "random weights of the video", "synthetic data"]
    rows = {
        "lpips": record | {"stand_in": True, "source": "no backbone"},
        "speed": {"score": None, "reason": "not timed"},
    }
    screened = report.unmeasured({}, {"screen/screen": {"stage": "screen", "criteria": {"a": rows}}})
    assert [what[:2] for what in screened] == [
        ["a speed", "not timed"],
        ["lpips, judged by a stand-in", "no backbone"],
    ]


FRAMES_4 = """
{stage: frames, model: tiny, weights: small, data: synthetic, clips: 12, questions: 13, sources: 11, count: 4, first: motion4,
 equal_time: [uniform8], ways: {motion4: {right: 0.812, low: 0.7, high: 0.9}, uniform4: {right: 0.534}, uniform8: {right: 0.777}},
 gains: {uniform4: {gain: 0.278, gain_low: 0.1, gain_high: 0.3}, uniform8: {gain: 0.035, gain_low: 0.1, gain_high: 0.3}}}
"""


def test_ways_of_choosing_frames_stand_beside_more_even_ones_for_the_same_time(tmp_path):
    save_yaml(tmp_path / "tiny/waiting/frames-4.yaml", yaml.safe_load(FRAMES_4))
    page = built(tmp_path)[1]
    for words in (
        "tiny on waiting, 4 frames of a clip",
        "uniform8 (equal time)",
        "13 questions about 12 clips of 11 sources",
        "0.812 [0.700, 0.900]",
        "0.278 [0.100, 0.300]",
        "0.035 [0.100, 0.300]",
    ):
        assert words in page, words


def test_what_a_yaml_says_is_never_read_as_html(tmp_path):
    name, attack = "<script>alert(1)", '"><img src=x onerror=alert(2)></style><script>alert(3)</script>'
    world(tmp_path, name)
    for path in (tmp_path / name / "shapes/gate1.yaml", tmp_path / name / "future/video-continue.yaml"):
        text = path.read_text().replace("PIVOT (small", f"PIVOT {attack} (small")
        for word in ("the circle of clip 0 moves up", "inference_ratio"):
            text = text.replace(word, json.dumps(attack))
        path.write_text(text)
    plain, hostile = Page(built(world(tmp_path / "plain"))[1]), Page(built(tmp_path)[1])
    assert all(len(hostile.all(tag)) == len(plain.all(tag)) == 1 for tag in ("script", "style"))
    assert all(a["src"].startswith("data:") for a in hostile.all("img"))
    assert not any(k.startswith("on") for _, a in hostile.elements for k in a)
    assert attack in hostile.text and name in hostile.text


def test_the_page_refers_to_nothing_outside_itself_and_every_image_says_what_it_shows(tmp_path):
    page = built(world(tmp_path))[1]
    parsed = Page(page)
    refers = re.findall(r"url\(\s*['\"]?([^)]{0,12})", page)
    refers += [a[k] for _, a in parsed.elements for k in ("src", "href") if k in a]
    assert len(refers) > 20 and all(r.startswith(("data:", "#")) for r in refers)
    assert not re.search(r"https?://|@import", page) and all(len(a["alt"]) > 20 for a in parsed.all("img"))
    targets = {a["id"] for _, a in parsed.elements if "id" in a}
    assert {a["href"][1:] for a in parsed.all("a")} | {a["for"] for a in parsed.all("label")} <= targets
    scroll = [a for a in parsed.all("div") if "scroll" in a.get("class", "")]
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in scroll)  # can be reached by keyboard


def test_a_sheet_holds_every_frame_pixel_for_pixel(tmp_path):
    about = sheet(tmp_path / "sheet.png", clips=2, size=16)
    picture = Image.open(tmp_path / "sheet.png")
    assert about["films"] == list(FILMS) and (about["frames"], about["size"]) == (FRAMES, 16)
    assert picture.size == (FRAMES * 16, 2 * len(FILMS) * 16)
    for c, f, t in ((0, 0, 0), (1, 2, 16), (0, 4, 7), (1, 0, 3)):
        left, top = t * 16, (c * len(FILMS) + f) * 16
        assert {picture.getpixel((left + x, top + y)) for x in (0, 15) for y in (0, 15)} == {colour(c, f, t)}


@pytest.mark.parametrize("harm", ["gone", "broken", "another size"])
def test_a_picture_that_is_gone_broken_or_of_another_size_is_shown_as_missing(tmp_path, harm):
    results = world(tmp_path)
    for path in (results / "tiny/shapes/gate1.png", results / "tiny/future/video-continue-sheet.png"):
        path.unlink()
        if harm == "broken":
            path.write_bytes(b"no picture")
        if harm == "another size":
            Image.new("RGB", (40, 30)).save(path)
    page = Page(built(results)[1])
    assert "video-continue-sheet.png" in page.text and page.all("button") == []
    assert ("gate1.png" in page.text) == (harm != "another size")


def test_a_line_for_every_verdict_and_nothing_is_rebuilt(tmp_path, capsys):
    world(tmp_path)
    world(tmp_path, "other")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    gate.main(["table", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines] == [
        [m, "shapes", "gate", "1", "PIVOT"] for m in ("other", "tiny")
    ]
    for words in ("small/synthetic", "bbox_iou 0.612 PASS, lpips* 0.612 PASS", "0123abcd"):
        assert all(words in line for line in lines), words
    assert not any("inference_ratio" in line for line in lines)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    make = ["make", "-n", "report", "table", "PY=python"]
    would = subprocess.run(make, cwd=HERE, capture_output=True, text=True).stdout
    assert [line.split()[:2] for line in would.splitlines()] == [
        ["python", "report.py"],
        ["python", "gate.py"],
    ]


VERIFY = """
{stage: verify, model: tiny, weights: small, data: synthetic, pixel_auroc: 0.9123, repeat_reason: no take twice,
 verifiers: {l1: {auroc: 0.9123, auroc_low: 0.8512, auroc_high: 0.9534, family: pixel, kinds: {direction: {auroc: 0.7654}}}},
 horizons: {1: {begun: 0.5, l1: &area {auroc: 0.9, auroc_low: 0.85, auroc_high: 0.95}}, 16: {begun: 1.0, l1: *area}},
 risk_coverage: {coverage: [0.5, 1.0], risk: [0.1, 0.3], random: 0.3}, ceilings: {vae: {l1: 0.123}, repeat: null},
 made: {films: 288, verifiers: {l1: {all: {auroc: 0.6543}}}}}
"""


def test_the_verifiers_are_shown_as_far_as_they_are_there(tmp_path):
    path = world(tmp_path) / "tiny/future/verify.yaml"
    save_yaml(path, {"stage": "verify", "model": "tiny", **KINDS})
    built(tmp_path)
    save_yaml(path, yaml.safe_load(VERIFY))
    _, page, summary = built(tmp_path)
    for words in ("0.912 [0.851, 0.953]", "0.765", "0.654", "0.123", "288", "no take twice"):
        assert words in Page(page).text, words
    assert "| l1 | pixel | 0.912 [0.851, 0.953] |" in summary and "tiny/future/verify.yaml" not in summary
    for title in ("AUROC for wrong", "AUROC by horizon", "Risk of what is kept"):
        assert any(a["alt"].startswith(title) for a in Page(page).all("img")), title


@pytest.mark.slow
def test_what_the_stages_write_is_what_the_page_reads(tmp_path):
    import align
    import data
    import probe

    data.main(["shapes", "--n", "40", "--size", "32", "--out", str(tmp_path / "data/shapes")])
    data.main(["moving", "--n", "24", "--out", str(tmp_path / "data/moving")])
    here, g = tmp_path / "results/planted/shapes", torch.Generator().manual_seed(0)
    ids = load_items(tmp_path / "data/shapes")[1]["ids"]
    y = torch.randn(len(ids), 1, 2, 2, 4, generator=g)
    for name, points in (
        ("features", {"near": y + 0.1 * torch.randn(y.shape, generator=g)}),
        ("target", {"latents": y}),
    ):
        plant_features(here / name, ids, points, tmp_path / "data/shapes")
    probe.main(["--features", str(here / "features")])
    align.main(
        ["--features", str(here / "features"), "--target", str(here / "target"), "--permutations", "20"]
    )
    flags = ["--data", str(tmp_path / "data/moving"), "--past", "8", "--horizon", "8", "--clips", "4"]
    out = tmp_path / "results/tiny-ltx/moving/video-continue.yaml"
    video.main(["continue", *flags, "--continuations", "past", "--out", str(out)])
    _, page, _ = built(tmp_path / "results")
    for words in (
        "planted on shapes, with planted",
        "Continuations and baselines",
        "Every probe, with every floor",
    ):
        assert words in page, words
    assert len(re.findall(r'class="film"', page)) >= 8 and "video-continue-sheet.png" not in page


# ---------------------------------------------------------------- in a browser


def opened(page, folder, *more, width=1280, height=900):
    """What headless Chromium prints of a page, and what stands in its console. A window is 500 pixels wide at least: a narrower page is shown in a frame of a wider one."""
    if width < 500:
        host = folder / "host.html"
        host.write_text(
            '<body><script>addEventListener("message", e => { document.body.dataset.said = e.data; })</script>'
            f'<iframe src="{page.name}" width="{width}" height="{height}" style="border: 0"></iframe>'
        )
        page, width = host, 800
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --enable-logging=stderr --v=0 --virtual-time-budget=4000"
    sizes = f"--hide-scrollbars --window-size={width},{height}"
    command = [
        BROWSER,
        *flags.split(),
        *sizes.split(),
        f"--user-data-dir={folder / 'browser'}",
        *more,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(folder, script):
    """A copy of the page in which `script` runs once everything is loaded; what it returns stands in the body's data-said, its own or that of the page around it."""
    page = (folder / "report.html").read_text()
    asked = f'<script>addEventListener("load", () => {{ parent.postMessage(JSON.stringify((() => {{ {script} }})()), "*"); }});'
    asked += 'addEventListener("message", e => { document.body.dataset.said = e.data; });</script></body>'
    (folder / "asked.html").write_text(page.replace("</body>", asked))
    return folder / "asked.html"


def said(dom):
    return json.loads(Page(dom).all("body")[0]["data-said"])


LOOK = """
const clip = document.querySelectorAll(".clip")[1], slider = clip.querySelector("input"), films = [...clip.querySelectorAll(".film")];
const at = () => films.map(f => parseFloat(getComputedStyle(f).backgroundPositionX));
const before = at();
slider.value = 8;
slider.dispatchEvent(new Event("input"));
return {before, after: at(), says: clip.querySelector("output").textContent, first: getComputedStyle(document.querySelector(".film")).backgroundPositionX,
        broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length, images: document.images.length, width: innerWidth, wide: document.documentElement.scrollWidth,
        outside: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")), stills: getComputedStyle(clip.querySelector(".stills")).display};
"""


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser_every_image_loads_the_slider_moves_every_film_of_its_clip_and_the_console_stays_empty(
    tmp_path, width
):
    built(world(tmp_path))
    dom, console = opened(with_script(tmp_path, LOOK), tmp_path, "--dump-dom", width=width)
    found = said(dom)
    assert console == [] and found["outside"] == []
    assert found["images"] > 10 and found["broken"] == 0
    assert (
        found["before"] == [0] * len(FILMS)
        and found["after"] == [50] * len(FILMS)
        and found["says"] == "+8 of 16 frames"
    )
    assert float(found["first"].rstrip("%")) == 0  # the other clip's films stay where they are
    assert found["wide"] <= found["width"] == width and found["stills"] == "none"


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("frame", [7, 16])
def test_the_film_shows_the_frame_that_the_slider_names(tmp_path, frame):
    """The films of the second clip as pixels on the screen, each in the colour of its frame."""
    built(world(tmp_path))
    page = with_script(
        tmp_path,
        f"""
const clip = document.querySelectorAll(".clip")[1], slider = clip.querySelector("input");
slider.value = {frame}; slider.dispatchEvent(new Event("input"));
document.body.replaceChildren(clip.querySelector(".films"));
document.querySelectorAll(".film").forEach((f, k) => {{ f.style.cssText += `; position: fixed; left: ${{100 * k}}px; top: 0; width: 100px; height: 100px`; }});""",
    )
    opened(page, tmp_path, f"--screenshot={tmp_path / 'shot.png'}", width=800, height=200)
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    for f in range(len(FILMS)):
        assert {shot.getpixel((100 * f + x, y)) for x in (3, 50, 96) for y in (3, 96)} == {
            colour(1, f, frame)
        }
