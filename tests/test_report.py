"""The page of all results: missing results are named, YAML is never HTML, images and the slider work."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import test_align
import torch
import yaml
from helpers import plant_features, write_squares
from PIL import Image
from test_gate import made, untrained_backbone
from test_probe import boxes_of

import align
import gate
import probe
import report
import video
from common import save_yaml

KINDS = {"weights": "small", "data": "synthetic"}
ROW = {"l1": 0.02, "l1_low": 0.01, "l1_high": 0.03, "moving_l1": 0.1, "temporal_ratio": 0.7, "static": False}
FRAMES, CLIPS = 17, ("real", "vae", "copy", "flow", "past")
MORE = """
waiting/frames-4: {stage: frames, clips: 12, questions: 13, sources: 11, count: 4, equal_time: [],
  first: motion4, methods: {motion4: {accuracy: 0.812, low: 0.7, high: 0.9}, uniform4: {accuracy: 0.5}},
  gains: {uniform4: {gain: 0.278, gain_low: 0.1, gain_high: 0.3}}}
future/verify: {stage: verify, pixel_auroc: 0.9123, lpips_reason: no backbone,
  verifiers: {l1: {auroc: 0.9123, auroc_low: 0.8512, auroc_high: 0.9534, family: pixel,
                   kinds: {direction: {auroc: 0.7654}}}},
  horizons: {1: {diverged: 0.5, l1: &area {auroc: 0.9, auroc_low: 0.85, auroc_high: 0.95}}, 16: {l1: *area}},
  risk_coverage: {coverage: [0.5, 1.0], risk: [0.1, 0.3], random: 0.3},
  upper_bounds: {vae: {l1: 0.123}},
  video_model: {clips: 288, verifiers: {l1: {all: {auroc: 0.6543}}}}}
"""


def colour(clip, row, t):
    return 40 + 60 * clip, 40 + 40 * row, 10 * t


def planted(results, model="tiny"):
    """Gate 1, a probe, an alignment, and generated clips with their sheet; other results are missing."""
    folder, inputs = results / model / "shapes", results / model / "shapes/inputs"
    read = made(inputs, adapt_latents=untrained_backbone)[:2]
    gate.main(["evaluate", "1", *read, "--set", "bbox_iou=0.5", "--out", str(folder / "gate1.yaml")])
    for name in ("probe.yaml", "align.yaml"):
        shutil.copy(inputs / name, folder)
    ahead, clips = results / model / "future", {}
    ahead.mkdir(parents=True)
    for f, name in enumerate(CLIPS):  # every frame has its own colour
        x = torch.tensor([[colour(c, f, t) for t in range(FRAMES)] for c in range(2)], dtype=torch.uint8)
        clips[name] = x[:, :, None, None].repeat(1, 1, 16, 16, 1)
    texts = [f"the circle of clip {c} moves up" for c in range(2)]
    found = {"stage": "video", "model": None, "video": "tiny-ltx", "video_weights": "small", **KINDS}
    found |= {"conditioning": "past", "horizons": {h: dict.fromkeys(CLIPS[1:], ROW) for h in (1, 16)}}
    sheet = video.sheet(clips, texts, ahead / "video-continue-sheet.png")
    found |= {"continuations": dict.fromkeys(CLIPS, ROW), "sheet": sheet}
    save_yaml(ahead / "video-continue.yaml", found)
    return results


def built(results):
    found = report.main(["--results", str(results)])
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


def test_a_folder_without_results_is_all_missing_and_no_folder_is_refused(tmp_path, refused):
    found, page, summary = built(tmp_path)
    assert found["gates"] == 0 == found["yaml"]
    assert all(f"make gate{number} MODEL=tiny" in x for number in range(1, 5) for x in (page, summary))
    assert all(command in page for command in report.STANDALONE.values())
    assert {w for a in Page(page).all("span") for w in a.get("class", "").split()} == {"badge", "missing"}
    refused(lambda: built(tmp_path / "nowhere"), "nowhere is not a folder")


def test_page_and_summary_have_the_numbers_of_the_yaml_and_name_what_is_missing(tmp_path):
    found, page, summary = built(planted(tmp_path))
    words = ["PROCEED (random weights, synthetic data; LPIPS by", "0.889 [0.833, 0.944]", "0.100 constant"]
    words += ["no --encoder was given", "backbone is not available", "random weights of the model"]
    words += ["make gate2", "bbox_iou 0.500", "future/predict-latents.yaml", "moving/video-coherence.yaml"]
    for text in (Page(page).text, summary):
        assert [w for w in words if w not in text] == []
    assert 'make gate1 MODEL=tiny SET="bbox_iou=0.5"' in summary
    assert not any(x in summary for x in ("tiny/shapes/align.yaml", "tiny/future/video-continue.yaml"))
    assert found["gates"] == 1 and found["missing"] == summary.count("* missing: `tiny") == 1 + 1 + 7 + 4 + 3
    sheets = re.findall(r"--sheet: url\(data:image/webp;base64,([^)]+)", page)
    clip = Image.open(io.BytesIO(base64.b64decode(sheets[1]))).convert("RGB")
    assert clip.getpixel((7 * 16 + 3, 4 * 16 + 9)) == colour(1, 4, 7) and clip.size == (17 * 16, 5 * 16)
    refers = re.findall(r"url\(\s*['\"]?([^)]{0,12})", page)  # the page is complete in itself, and accessible
    parsed = Page(page)
    refers += [a[k] for _, a in parsed.elements for k in ("src", "href") if k in a]
    assert len(refers) > 20 and all(r.startswith(("data:", "#")) for r in refers)
    assert not re.search(r"https?://|@import", page) and all(len(a["alt"]) > 20 for a in parsed.all("img"))


def test_null_scores_stand_ins_and_unpublished_weights_are_listed_and_nothing_else():
    best = {"weights": "pretrained", "data": "real", "stage": "gate", "criteria": {"cka": {"score": 0.6}}}
    assert report.unmeasured({("m", "d"): {"gate1": best}}, {}) == []
    worse = best | KINDS | {"lpips": None, "lpips_reason": "no backbone", "video_weights": "random"}
    expected = {"lpips", "random weights of the video", "small weights of the model", "synthetic data"}
    assert {what for what, _, _ in report.unmeasured({("m", "d"): {"gate1": worse}}, {})} == expected


def test_text_of_a_yaml_is_never_read_as_html(tmp_path):
    name, attack = "<script>alert(1)", '"><img src=x onerror=alert(2)></style><script>alert(3)</script>'
    planted(tmp_path, name)
    for path in (tmp_path / name / "shapes/gate1.yaml", tmp_path / name / "future/video-continue.yaml"):
        text = path.read_text().replace("PROCEED (random", f"PROCEED {attack} (random")
        for word in ("the circle of clip 0 moves up", "inference_ratio"):
            text = text.replace(word, json.dumps(attack))
        path.write_text(text)
    hostile = Page(built(tmp_path)[1])
    assert all(len(hostile.all(tag)) == 1 for tag in ("script", "style"))
    assert all(a["src"].startswith("data:") for a in hostile.all("img"))
    assert not any(k.startswith("on") for _, a in hostile.elements for k in a)
    assert attack in hostile.text and name in hostile.text


def test_an_image_that_is_broken_is_missing(tmp_path):
    results = planted(tmp_path)
    for name in ("shapes/gate1.png", "future/video-continue-sheet.png"):
        (results / "tiny" / name).write_bytes(b"no image")
    page = Page(built(results)[1])
    assert all(name in page.text for name in ("gate1.png", "sheet.png")) and page.all("button") == []


def test_selections_of_frames_and_verifiers_are_shown_with_their_intervals(tmp_path):
    save_yaml(tmp_path / "tiny/future/verify.yaml", {"stage": "verify", "model": "tiny", **KINDS})
    built(tmp_path)  # of a file that has almost nothing
    for name, content in yaml.safe_load(MORE).items():
        save_yaml(tmp_path / "tiny" / f"{name}.yaml", content | KINDS | {"model": "tiny"})
    _, page, summary = built(tmp_path)
    words = ["tiny on waiting, 4 frames of a clip", "0.812 [0.700, 0.900]", "0.278 [0.100, 0.300]"]
    words += ["0.912 [0.851, 0.953]", "0.765", "0.654", "0.123", "288", "no backbone"]
    assert [w for w in words if w not in Page(page).text] == []
    assert "| l1 | pixel | 0.912 [0.851, 0.953] |" in summary and "tiny/future/verify.yaml" not in summary


@pytest.mark.slow
def test_what_the_stages_write_is_what_the_page_reads(tmp_path):
    folder, boxes = tmp_path / "planted/boxes", boxes_of(n=40)
    ids, _ = write_squares(folder, boxes, 32)
    points = {"oracle": boxes[:, None, None, None].expand(-1, 1, 2, 2, -1) / 32}
    probe.main(["--features", plant_features(folder / "features", ids, points, folder / "data")])
    args = test_align.planted(tmp_path / "planted/spaces", {"near": test_align.near(0.1)})
    for chosen in ([], ["--choose", str(tmp_path / "planted/spaces/align-layers.yaml")]):  # no result
        align.main([*args, *chosen])
    text = Page(built(tmp_path)[1]).text
    assert "planted on spaces, with planted" in text and "boxes1.000 [1.000, 1.000], baseline 0." in text
