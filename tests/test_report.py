"""The page of all results: what is missing says so, nothing in a YAML becomes HTML, and in a browser every image loads and the slider moves the frame."""
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import explain
import predict
import verify
from common import HERE, save_yaml

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (.ci/run installs one): the page is not opened")
KINDS = {"weights": "small", "data": "synthetic"}
RECORD = {"score": 0.6123, "low": 0.5712, "high": 0.6534, "floor": 0.4321, "floor_name": "constant", "ceiling": 1.0, "gain": 0.18, "gain_low": 0.14, "gain_high": 0.22, "layer": "vision.1", "n": 50,
          "floors": {"constant": 0.4321, "shuffled": 0.2}}
FRAMES, FILMS = 17, ("real", "vae", "copy", "flow", "past")


def colour(clip, film, t):
    return 40 + 60 * clip, 40 + 40 * film, 10 * t


def sheet(path, clips=2, size=16):
    """A sheet in which every frame of every film has a colour of its own; returns what the YAML says of it."""
    films = {n: torch.tensor([[colour(c, f, t) for t in range(FRAMES)] for c in range(clips)], dtype=torch.uint8)[:, :, None, None].repeat(1, 1, size, size, 1) for f, n in enumerate(FILMS)}
    return predict.sheet(films, [f"the circle of clip {c} moves up" for c in range(clips)], path)


def world(results, model="tiny"):
    """Gate 1 as verify.py writes it, a probe, an alignment, films with their sheet; gate 2 and 4 lack everything, gate 3 most."""
    here, ahead = results / model / "shapes", results / model / "future"
    for folder in (here, ahead):
        folder.mkdir(parents=True)
    layers = {p: {"bbox_iou": 0.5 + k / 9, "bbox_iou_low": 0.45 + k / 9, "bbox_iou_high": 0.55 + k / 9, "bbox_iou_random": 0.4} for k, p in enumerate(("vision.0", "vision.1"))}
    save_yaml(here / "probe.yaml", {"stage": "probe", "model": model, "data_name": "shapes", **KINDS, "criteria": {"bbox_iou": RECORD}, "layers": layers})
    save_yaml(here / "align.yaml", {"stage": "align", "model": model, "target": "tiny-vae", **KINDS, "recommended": "vision.0", "criteria": {"cka": RECORD},
                                    "layers": {p: {"cka": RECORD} for p in layers}, "untrained": {p: {"cka": RECORD} for p in layers}, "channels": {p: [0.1, None, 0.9] for p in layers}})
    criteria = {"bbox_iou": RECORD | {"level": "must", "threshold": 0.5, "answer": "PASS", "reason": "the interval clears the threshold"},
                "lpips": RECORD | {"level": "must", "threshold": 0.5, "answer": "PASS", "reason": "so it is", "stand_in": True, "source": "no published backbone here"},
                "inference_ratio": {"level": "should", "threshold": 2.0, "score": None, "answer": "INCONCLUSIVE", "reason": "no reference was given"}}
    save_yaml(here / "gate1.yaml", {"stage": "gate", "gate": 1, "verdict": "PIVOT", "headline": "PIVOT (small weights, synthetic data): to the hybrid", "model": model, "data_name": "shapes", **KINDS,
                                    "overridden": {"bbox_iou": 0.5}, "criteria": criteria, "run": {"seconds": 1.5, "git_commit": "0123abcd", "arguments": {"gate": 1}, "versions": {"torch": "2"}}})
    Image.effect_noise((1200, 900), 90).save(here / "gate1.png")
    row = {"l1": 0.02, "l1_low": 0.01, "l1_high": 0.03, "moving_l1": 0.1, "moving_l1_low": 0.09, "moving_l1_high": 0.11, "temporal_ratio": 0.7, "static": False}
    save_yaml(ahead / "predict-continue.yaml", {"stage": "predict", "model": None, "video": "tiny-ltx", "video_weights": "small", **KINDS, "conditioning": "past",
                                                "continuations": dict.fromkeys(FILMS, row), "horizons": {h: dict.fromkeys(FILMS[1:], row) for h in (1, 16)},
                                                "sheet": sheet(ahead / "predict-continue-sheet.png")})
    return results


def report(results, *flags):
    found = explain.main(["--mode", "report", "--results", str(results), *flags])
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
    found, page, summary = report(tmp_path)
    assert found["gates"] == 0 and found["yaml"] == 0
    for gate in range(1, 5):
        assert f"make gate{gate} MODEL=tiny" in page and f"make gate{gate} MODEL=tiny" in summary
    for command in explain.STANDALONE.values():
        assert command in page
    assert {w for a in Page(page).all("span") for w in a.get("class", "").split()} == {"badge", "missing"}
    with pytest.raises(SystemExit, match="2"):
        report(tmp_path / "nowhere")
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_the_page_and_the_summary_say_what_the_yaml_says_and_what_is_missing(tmp_path):
    found, page, summary = report(world(tmp_path))
    for text in (Page(page).text, summary):
        for words in ("PIVOT (small weights, synthetic data): to the hybrid", "0.612 [0.571, 0.653]", "0.432 constant", "no reference was given", "no published backbone here",
                      "small weights of the model", "tiny/future/predict-latents.yaml", "tiny/shapes/adapt-scaling.yaml", "tiny/moving/predict-coherence.yaml", "make gate2",
                      "bbox_iou 0.500"):
            assert words in text, words
    assert 'make gate1 MODEL=tiny SET="bbox_iou=0.5"' in summary
    assert "tiny/shapes/align.yaml" not in summary and "tiny/future/predict-continue.yaml" not in summary  # they are there
    assert found["gates"] == 1 and found["missing"] == summary.count("* missing: `tiny") == 1 + 1 + 7 + 4 + 3  # adapt-latents and motion of gate 1; gates 2, 3, 4
    heads = re.findall(r"^## (.+)", summary, re.MULTILINE)
    assert heads[0] == "Executive summary" and [h[:2] for h in heads[1:]] == [f"{k}." for k in range(1, 10)]


def test_where_all_is_measured_on_published_weights_and_real_data_nothing_is_said_to_be_unmeasured():
    best = {"weights": "pretrained", "data": "real", "stage": "gate", "bbox_iou": 0.6, "criteria": {"bbox_iou": RECORD}}
    assert explain.unmeasured({("m", "d"): {"gate1": best}}, {}) == []
    worse = best | {"lpips": None, "lpips_reason": "no backbone", "video_weights": "random", "data": "synthetic"}
    assert [what for what, _, _ in explain.unmeasured({("m", "d"): {"gate1": worse}}, {})] == ["lpips", "random weights of the video", "synthetic data"]
    rows = {"lpips": RECORD | {"stand_in": True, "source": "no backbone"}, "speed": {"score": None, "reason": "not timed"}}
    screened = explain.unmeasured({}, {"screen/screen": {"stage": "screen", "criteria": {"a": rows, "b": rows}}})
    assert screened == [["a speed", "not timed", "screen/screen"], ["b speed", "not timed", "screen/screen"], ["lpips, judged by a stand-in", "no backbone", "screen/screen"]]


def test_ways_of_choosing_frames_stand_beside_more_even_ones_for_the_same_time(tmp_path):
    row, gain = {"low": 0.7, "high": 0.9, "seconds_choosing": 1.5, "seconds_answering": 2.5}, {"gain_low": 0.1, "gain_high": 0.3, "p": 0.01}
    for count in (4, 8):
        (tmp_path / "tiny/waiting").mkdir(parents=True, exist_ok=True)
        save_yaml(tmp_path / f"tiny/waiting/frames-{count}.yaml", {"stage": "frames", "model": "tiny", **KINDS, "clips": 12, "questions": 13, "sources": 11, "count": count, "first": f"motion{count}",
                  "equal_time": [f"uniform{2 * count}"], "ways": {f"motion{count}": row | {"right": 0.812}, f"uniform{count}": row | {"right": 0.534}, f"uniform{2 * count}": row | {"right": 0.777}},
                  "gains": {f"uniform{count}": gain | {"gain": 0.278}, f"uniform{2 * count}": gain | {"gain": 0.035}}})
    page = report(tmp_path)[1]
    assert all(f"tiny on waiting, {count} frames of a clip" in page and f"uniform{2 * count} (equal time)" in page for count in (4, 8)) and "13 questions about 12 clips of 11 sources" in page
    assert all(words in page for words in ("0.812 [0.700, 0.900]", "0.278 [0.100, 0.300]", "0.035 [0.100, 0.300]"))


def test_what_a_yaml_says_is_never_read_as_html(tmp_path):
    name, attack = "<script>alert(1)", '"><img src=x onerror=alert(2)></style><script>alert(3)</script>'
    world(tmp_path, name)
    for path in (tmp_path / name / "shapes/gate1.yaml", tmp_path / name / "future/predict-continue.yaml"):
        path.write_text(path.read_text().replace("PIVOT (small", f"PIVOT {attack} (small").replace("the circle of clip 0 moves up", json.dumps(attack)).replace("inference_ratio", json.dumps(attack)))
    plain, hostile = Page(report(world(tmp_path / "plain"))[1]), Page(report(tmp_path)[1])
    assert len(hostile.all("script")) == len(plain.all("script")) == 1 and len(hostile.all("style")) == len(plain.all("style"))
    assert all(a["src"].startswith("data:") for a in hostile.all("img")) and not any(k.startswith("on") for _, a in hostile.elements for k in a)
    assert attack in hostile.text and name in hostile.text


def test_the_page_refers_to_nothing_outside_itself_and_every_image_says_what_it_shows(tmp_path):
    found, page, _ = report(world(tmp_path))
    parsed = Page(page)
    refers = re.findall(r"url\(\s*['\"]?([^)]{0,12})", page) + [a[k] for _, a in parsed.elements for k in ("src", "href") if k in a]
    assert len(refers) > 20 and all(r.startswith(("data:", "#")) for r in refers)
    assert not re.search(r"https?://|@import", page) and found["bytes"] < explain.LARGEST
    assert all(len(a["alt"]) > 20 for a in parsed.all("img"))
    targets = {a["id"] for _, a in parsed.elements if "id" in a}
    assert {a["href"][1:] for a in parsed.all("a")} <= targets and {a["for"] for a in parsed.all("label")} <= targets
    levels = [int(t[1]) for t, _ in parsed.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    assert all(a.get("tabindex") == "0" and a.get("aria-label") for a in parsed.all("div") if "scroll" in a.get("class", ""))  # what scrolls can be reached by keyboard


def test_a_sheet_holds_every_frame_pixel_for_pixel(tmp_path):
    about = sheet(tmp_path / "sheet.png", clips=2, size=16)
    picture = Image.open(tmp_path / "sheet.png")
    assert about == {"file": "sheet.png", "clips": ["the circle of clip 0 moves up", "the circle of clip 1 moves up"], "films": list(FILMS), "frames": FRAMES, "size": 16}
    assert picture.size == (FRAMES * 16, 2 * len(FILMS) * 16)
    for c, f, t in ((0, 0, 0), (1, 2, 16), (0, 4, 7), (1, 0, 3)):
        corners = {picture.getpixel((t * 16 + x, (c * len(FILMS) + f) * 16 + y)) for x in (0, 15) for y in (0, 15)}
        assert corners == {colour(c, f, t)}


@pytest.mark.parametrize("harm", ["gone", "broken", "another size"])
def test_a_picture_that_is_gone_broken_or_of_another_size_is_shown_as_missing(tmp_path, harm):
    results = world(tmp_path)
    for path in (results / "tiny/shapes/gate1.png", results / "tiny/future/predict-continue-sheet.png"):
        {"gone": path.unlink, "broken": lambda p=path: p.write_bytes(b"no picture"), "another size": lambda p=path: Image.new("RGB", (40, 30)).save(p)}[harm]()
    page = Page(report(results)[1])
    assert "predict-continue-sheet.png" in page.text and ("gate1.png" in page.text) == (harm != "another size") and page.all("button") == []


def test_pictures_become_narrower_until_the_page_is_small_enough(tmp_path, monkeypatch):
    first, *_ = report(world(tmp_path))
    monkeypatch.setattr(explain, "LARGEST", first["bytes"] - 1)
    second, page, _ = report(tmp_path)
    assert second["bytes"] < first["bytes"] and "gate1.png" not in Page(page).text


def test_a_line_for_every_verdict_and_nothing_is_rebuilt(tmp_path, capsys):
    world(tmp_path)
    world(tmp_path, "other")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    verify.main(["--table", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:5] for line in lines] == [[m, "shapes", "gate", "1", "PIVOT"] for m in ("other", "tiny")]
    assert all("small/synthetic" in line and "bbox_iou 0.612 PASS, lpips* 0.612 PASS" in line and "inference_ratio" not in line and "0123abcd" in line for line in lines)
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="2"):
        verify.main(["--table", str(tmp_path / "empty")])
    assert "holds no verdict" in capsys.readouterr().err
    would = subprocess.run(["make", "-n", "report", "table", "PY=python"], cwd=HERE, capture_output=True, text=True).stdout
    assert [line.split()[:2] for line in would.splitlines()] == [["python", "explain.py"], ["python", "verify.py"]]


def test_the_verifiers_are_shown_as_far_as_they_are_there(tmp_path):
    world(tmp_path)
    path, area = tmp_path / "tiny/future/verify.yaml", {"auroc": 0.9123, "auroc_low": 0.8512, "auroc_high": 0.9534}
    save_yaml(path, {"stage": "verify", "model": "tiny", **KINDS})
    report(tmp_path)
    kinds = {"direction": area | {"auroc": 0.7654, "flagged": 0.5}}
    save_yaml(path, {"stage": "verify", "model": "tiny", **KINDS, "pixel_auroc": 0.9123, "repeat_reason": "no take twice", "verifiers": {"l1": area | {"family": "pixel", "kinds": kinds}},
                     "horizons": {1: {"begun": 0.5, "l1": area}, 16: {"begun": 1.0, "l1": area}},
                     "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.1, 0.3], "random": 0.3}, "ceilings": {"vae": {"l1": 0.123}, "repeat": None},
                     "made": {"films": 288, "verifiers": {"l1": {"all": {"auroc": 0.6543}}}}})
    _, page, summary = report(tmp_path)
    text = Page(page).text
    assert all(words in text for words in ("0.912 [0.851, 0.953]", "0.765", "0.654", "0.123", "288", "no take twice")) and "| l1 | pixel | 0.912 [0.851, 0.953] |" in summary
    assert "tiny/future/verify.yaml" not in summary and all(any(a["alt"].startswith(t) for a in Page(page).all("img")) for t in ("AUROC for wrong", "AUROC by horizon", "Risk of what is kept"))


@pytest.mark.slow
def test_what_the_stages_write_is_what_the_page_reads(tmp_path):
    import align
    import probe
    here = tmp_path / "made-up/noise"
    here.mkdir(parents=True)
    for stage, name in ((probe, "probe"), (align, "align"), (predict, "predict-continue"), (predict, "predict-latents"), (verify, "gate1")):
        stage.main(["--smoke", "--out", str(here / f"{name}.yaml"), *(("--mode", name.split("-")[1]) if stage is predict else ())])
    found, page, _ = report(tmp_path)
    text = Page(page).text
    assert found["gates"] == 1 and "made-up on noise, with" in text and "Every variant and control" in text and "Continuations and baselines" in text
    assert len(re.findall(r'class="film"', page)) >= 12 and "predict-continue-sheet.png" not in text


# ---------------------------------------------------------------- in a browser

def opened(page, folder, *flags, width=1280, height=900):
    """What headless Chromium prints of a page, and what stands in its console. A window is 500 pixels wide at least: a narrower page is shown in a frame of a wider one."""
    if width < 500:
        host = folder / "host.html"
        host.write_text('<body><script>addEventListener("message", e => { document.body.dataset.said = e.data; })</script>'
                        f'<iframe src="{page.name}" width="{width}" height="{height}" style="border: 0"></iframe>')
        page, width = host, 800
    done = subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", "--hide-scrollbars",
                           f"--user-data-dir={folder / 'browser'}", f"--window-size={width},{height}", *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
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
def test_in_a_browser_every_image_loads_the_slider_moves_every_film_of_its_clip_and_the_console_stays_empty(tmp_path, width):
    report(world(tmp_path))
    dom, console = opened(with_script(tmp_path, LOOK), tmp_path, "--dump-dom", width=width)
    found = said(dom)
    assert console == [] and found["outside"] == []
    assert found["images"] > 10 and found["broken"] == 0
    assert found["before"] == [0] * len(FILMS) and found["after"] == [50] * len(FILMS) and found["says"] == "+8 of 16 frames"
    assert float(found["first"].rstrip("%")) == 0  # the other clip's films stay where they are
    assert found["wide"] <= found["width"] == width and found["stills"] == "none"


@in_browser
@pytest.mark.slow
def test_the_console_and_the_images_of_a_page_that_is_broken_are_noticed(tmp_path):
    report(world(tmp_path))
    path = tmp_path / "report.html"
    path.write_text(path.read_text().replace("</h1>", '</h1><img src="data:image/png;base64,AAAA" alt="broken"><img src="http://127.0.0.1:9/x.png" alt="from outside">', 1).replace(
        "</body>", "<script>nothing.there()</script></body>"))
    dom, console = opened(with_script(tmp_path, LOOK), tmp_path, "--dump-dom")
    assert said(dom)["broken"] == 2 and any("nothing is not defined" in line for line in console) and any("Content Security Policy" in line for line in console)


@in_browser
@pytest.mark.slow
@pytest.mark.parametrize("frame", [0, 7, 16])
def test_the_film_shows_the_frame_that_the_slider_names(tmp_path, frame):
    """The films of the second clip as pixels on the screen, each in the colour of its frame."""
    report(world(tmp_path))
    page = with_script(tmp_path, f"""
const clip = document.querySelectorAll(".clip")[1], slider = clip.querySelector("input");
slider.value = {frame}; slider.dispatchEvent(new Event("input"));
document.body.replaceChildren(clip.querySelector(".films"));
document.querySelectorAll(".film").forEach((f, k) => {{ f.style.cssText += `; position: fixed; left: ${{100 * k}}px; top: 0; width: 100px; height: 100px`; }});""")
    opened(page, tmp_path, f"--screenshot={tmp_path / 'shot.png'}", width=800, height=200)
    shot = Image.open(tmp_path / "shot.png").convert("RGB")
    for f in range(len(FILMS)):
        assert {shot.getpixel((100 * f + x, y)) for x in (3, 50, 96) for y in (3, 96)} == {colour(1, f, frame)}


@in_browser
@pytest.mark.slow
def test_without_javascript_the_frames_stand_in_a_row(tmp_path):
    report(world(tmp_path))
    path = tmp_path / "report.html"
    path.write_text(re.sub(r'(?s)document\.documentElement\.classList\.add\("js"\);.*?</script>', "</script>", path.read_text()))
    dom, _ = opened(with_script(tmp_path, 'const shown = s => getComputedStyle(document.querySelector(s)).display; return [shown(".player"), shown(".stills")];'), tmp_path, "--dump-dom")
    assert said(dom) == ["none", "block"]
