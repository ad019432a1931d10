"""Screening: made-up results whose answer is known, from a clear winner to none at all, and the pages that people read."""
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import common
import verify
from common import HERE

N = 60  # test items, two of a source
IDS = [f"item-{i:02d}" for i in range(N)]
SOURCES = [f"source-{i // 2:02d}" for i in range(N)]


def made(root, name, spatial=0.8, bbox=0.7, lpips=0.2, seconds=0.1, noise=0.05, seed=0, kind="vlm", floor=0.2, lpips_name="lpips", leak=None, centred=True, **index):
    """A folder of stage results of one model: scores per item around the means given, their records computed as the stages do. Items share their difficulty."""
    folder, g = root / name, torch.Generator().manual_seed(seed)
    shared = 0.05 * torch.randn(N, generator=torch.Generator().manual_seed(99))
    scores, criteria = {}, {}
    for key, mean, lower in (("spatial_iou", spatial, False), ("bbox_iou", bbox, False), (lpips_name, lpips, True)):
        x = shared + noise * torch.randn(N, generator=g)
        scores[key] = mean + x - x.mean() * centred
        floors = {"mean_image": torch.full((N,), 0.9), "shuffled": torch.full((N,), 0.95)} if lower else {"constant": torch.full((N,), floor), "shuffled": torch.full((N,), 0.1)}
        criteria[key] = common.criterion(scores[key], floors, SOURCES, ceiling=0.05 if lower else 1.0, better="lower" if lower else "higher", layer="vision.0")
        criteria[key]["leak"] = leak if key == "spatial_iou" else None
    head = {"model": name, "data_name": "noise", "weights": "random", "data": "synthetic"}
    decoder = {lpips_name: f"decoder_{lpips_name}"}
    common.save_yaml(folder / "probe.yaml", {"stage": "probe", **head, "oracle": "vae", "criteria": {decoder.get(k, k): c for k, c in criteria.items()}})
    points = {"vision.0": {}} | ({"language.0": {}} if kind == "vlm" else {})
    common.save_yaml(folder / "features" / "index.yaml", {"stage": "extract", "model": name, "seconds_per_item": seconds, "ids": ["train-0", *IDS], "points": points} | index)
    common.save_pt(folder / "probe.pt", common.RESULT, IDS, {}, sources=SOURCES, scores={decoder.get(k, k): x[None].repeat(3, 1) if k == lpips_name else x for k, x in scores.items()})
    return str(folder)


def screened(folders, out, *more, monkeypatch=None):
    if monkeypatch:  # the picture takes most of the time
        monkeypatch.setattr(verify, "screen_picture", lambda *_: None)
    return verify.main(["--screen", *folders, "--out", str(out), *more])


@pytest.fixture
def ask(tmp_path, monkeypatch):
    return lambda *folders, more=(): screened(folders, tmp_path / "out", *more, monkeypatch=monkeypatch)


# ---------------------------------------------------------------- the null cases

def test_identical_copies_are_a_tie(tmp_path, ask):
    found = ask(*(made(tmp_path, name) for name in ("a", "b", "c")))
    assert found["tie"] and "a tie of a, b, c" in found["headline"] and found["confidence"] == pytest.approx(1 / 3)
    assert all(row["difference"] == row["low"] == row["high"] == 0 and not row["told_apart"] for row in found["comparisons"].values())


def test_timing_noise_alone_makes_no_winner_of_identical_copies(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=0.1), made(tmp_path, "b", seconds=0.13))
    row = found["comparisons"]["b"]
    assert "choose by cost" in (tmp_path / "out" / "final-recommendation.md").read_text()
    assert row["low"] > 0 and found["tie"], "speed has no interval: its difference looks certain and must not decide"


@pytest.mark.slow
def test_the_best_of_six_equally_good_models_is_a_winner_in_no_more_than_1_in_20_worlds(tmp_path, ask):
    told = sum(not ask(*(made(tmp_path / str(k), f"m{j}", noise=0.2, seed=10 * k + j, centred=False) for j in range(6)))["tie"] for k in range(30))
    assert told <= 4  # more than 4 of 30 at 1 in 20: 1.6%


@pytest.mark.parametrize(("floor", "decision", "component"), [(0.9, "INCONCLUSIVE", 0.9), (0.95, "FALLBACK", 0)])
def test_a_floor_of_the_same_height_never_wins(floor, decision, component, tmp_path, ask):
    found = ask(made(tmp_path, "floor", spatial=0.9, bbox=0.99, lpips=0.1, floor=floor), made(tmp_path, "honest", spatial=0.6, bbox=0.5, lpips=0.3))
    assert found["first"] == "honest" and found["models"]["floor"]["rank"] is None and "floor" in found["models"]["floor"]["excluded"]
    assert found["criteria"]["floor"]["spatial_iou"]["component"] == pytest.approx(component, abs=1e-4) and found["models"]["floor"]["decision"] == decision


def test_a_leak_never_wins_and_is_named(tmp_path, ask):
    found = ask(made(tmp_path, "leaky", spatial=0.99, leak="shuffled"), made(tmp_path, "honest", spatial=0.6))
    assert found["first"] == "honest" and "leak in spatial_iou" in found["models"]["leaky"]["excluded"]
    assert found["criteria"]["leaky"]["spatial_iou"]["answer"] == "INCONCLUSIVE"


def test_an_encoder_is_judged_and_never_chosen(tmp_path, ask):
    found = ask(made(tmp_path, "model", spatial=0.6), made(tmp_path, "encoder", spatial=0.95, bbox=0.9, kind="encoder"))
    assert found["first"] == "model" and found["second"] is found["confidence"] is None and found["models"]["encoder"]["rank"] is None and "hybrid" in found["models"]["encoder"]["excluded"]
    assert found["criteria"]["encoder"]["spatial_iou"]["component"] > found["criteria"]["model"]["spatial_iou"]["component"]


# ---------------------------------------------------------------- a winner

def test_a_clear_winner_wins_with_its_confidence(tmp_path, ask):
    found = ask(made(tmp_path, "weak", spatial=0.6, seed=1), made(tmp_path, "strong", spatial=0.9, seed=2), made(tmp_path, "fair", spatial=0.7, seed=3))
    assert (found["outcome"], found["first"], found["second"], found["tie"]) == ("SUCCESS", "strong", "fair", False) and found["confidence"] > 0.999
    assert found["headline"].startswith("SUCCESS (random weights, synthetic data): strong; PROCEED")
    row = found["comparisons"]["fair"]
    assert row["difference"] == pytest.approx(0.4 * (0.9 - 0.7), abs=1e-4) and row["low"] > 0 and row["by_spatial_iou"] == pytest.approx(0.08, abs=1e-4)
    assert row["level"] == pytest.approx(0.975)  # Bonferroni over two


def test_models_are_paired_on_items_whatever_their_order(tmp_path, ask):
    folders = [made(tmp_path, "a", noise=0, spatial=0.70), made(tmp_path, "b", noise=0, spatial=0.69)]
    pt = tmp_path / "b" / "probe.pt"
    content = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in common.load_pt(pt, common.RESULT).items()}
    back = list(range(N))[::-1]
    common.save_pt(pt, common.RESULT, [IDS[i] for i in back], {}, sources=[SOURCES[i] for i in back], scores={k: x[..., back].clone() for k, x in content["scores"].items()})
    found = ask(*folders)
    row = found["comparisons"]["b"]
    assert not found["tie"] and row["high"] - row["low"] < 1e-5, "a constant difference on every item is certain, though items differ by far more"


@pytest.mark.parametrize(("row", "x", "component"), [
    ({"threshold": 0.5, "better": "higher"}, 0.5, 0.5), ({"threshold": 0.4, "better": "higher"}, 0.4, 0.5), ({"threshold": 0.4, "better": "lower"}, 0.4, 0.5),
    ({"threshold": 3.0, "better": "lower"}, 3.0, 0.5), ({"threshold": 3.0, "better": "lower"}, 9.0, 0.0), ({"threshold": 0.4, "better": "higher"}, 0.9, 1.0),
    ({"threshold": None, "better": "higher"}, 0.8, 0.8)])
def test_a_component_is_a_half_at_its_threshold_and_stays_within_0_and_1(row, x, component):
    assert verify.component(x, row | {"earns": True}).item() == pytest.approx(component)
    assert row["threshold"] is None or verify.component(x, row | {"earns": False}).item() == 0


def test_the_weights_are_those_of_the_plan():
    assert {k: (r["weight"], r["threshold"]) for k, r in verify.SCREEN.items()} == {
        "spatial_iou": (40, 0.50), "bbox_iou": (20, 0.40), "lpips": (15, 0.40), "speed": (15, 3.0), "integration": (10, None)}


def test_the_weighted_score_and_the_yaml_of_a_model(tmp_path, ask):
    found = ask(made(tmp_path, "a", spatial=0.8, bbox=0.6, lpips=0.2, seconds=0.1), made(tmp_path, "b", spatial=0.6, seconds=0.2))
    rows = found["criteria"]["a"]
    assert [rows[k]["component"] for k in verify.SCREEN] == pytest.approx([0.8, 0.75, 0.75, 1 - 1 / 6, 1.0], abs=1e-4)  # integration: the one check that is known
    assert found["models"]["a"]["weighted"] == pytest.approx(0.4 * 0.8 + 0.2 * 0.75 + 0.15 * 0.75 + 0.15 * 5 / 6 + 0.1, abs=1e-4)
    text = (tmp_path / "out" / "b-spatial.yaml").read_text()
    assert text.splitlines()[2].startswith("spatial_iou: 0.6") and "\nrank: 2\n" in text and "\nspeed: 2.0\n" in text
    one = common.load_yaml(tmp_path / "out" / "b-spatial.yaml", "screen")
    assert one["spatial_iou_low"] < one["spatial_iou"] < one["spatial_iou_high"] and one["spatial_iou_floor"] == pytest.approx(0.2) and one["spatial_iou_answer"] == "PASS"


def test_the_speed_of_qwen_is_the_reference_wherever_it_stands(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=0.4), made(tmp_path, "qwen2.5-vl-7b", seconds=0.1))
    assert found["speed_reference"] == "qwen2.5-vl-7b" and found["criteria"]["a"]["speed"]["score"] == pytest.approx(4) and found["criteria"]["a"]["speed"]["answer"] == "FAIL"


def test_what_one_model_lacks_is_left_out_for_all_and_said(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=None), made(tmp_path, "b"))
    assert found["left_out"] == {"speed": ["a", "b"]}  # a is the reference
    assert sum(found["weights_percent"].values()) == pytest.approx(100, abs=1e-3) and found["weights_percent"]["spatial_iou"] == pytest.approx(40 / 0.85, abs=1e-3)
    assert "speed is left out" in (tmp_path / "out" / "phase1-summary.md").read_text() and found["models"]["a"]["decision"] == "PARTIAL"


def test_lpips_without_its_backbone_is_skill_and_marked(tmp_path, ask):
    found = ask(*(made(tmp_path, name, lpips=x, lpips_name="lpips_random_backbone") for name, x in (("a", 0.2), ("b", 0.6))))
    row = found["criteria"]["a"]["lpips"]
    assert row["stand_in"] and row["threshold"] == verify.STAND_IN and row["score"] == pytest.approx(0.7 / 0.85, abs=1e-4) == row["component"]
    assert found["criteria"]["b"]["lpips"]["answer"] == "FAIL" and "stand-in" in found["headline"] and "LPIPS*" not in found["headline"]
    assert "lpips*" in (tmp_path / "out" / "phase1-summary.md").read_text()


def test_integration_counts_what_is_known():
    index = {"points": {"language.0": {}, "vision.0": {}}}
    qwen = verify.integration(index, common.MODELS["qwen2.5-vl-7b"])
    assert qwen == {"grid": True, "library": True, "clips": True, "licence": True, "t4": False}
    cog = verify.integration({"points": {"language.0": {"grid": False}}}, common.MODELS["cogvlm2"])
    assert cog == {"grid": False, "library": False, "clips": False, "licence": False, "t4": False}
    tiny = verify.integration(index, common.MODELS["tiny"])
    assert all(tiny.values()), tiny
    assert verify.integration(index, {}) == {"grid": True, "library": None, "clips": None, "licence": None, "t4": None}
    assert verify.integration({"points": {"vision.0": {}}}, common.MODELS["dinov2-l"])["grid"] is None


# ---------------------------------------------------------------- the matrix, and when nothing passes

@pytest.mark.parametrize(("spatial", "bbox", "lpips", "seconds", "decision"), [
    (0.8, 0.7, 0.2, 0.1, "PROCEED"), (0.8, 0.25, 0.2, 0.1, "PROCEED WITH ADAPTER"), (0.8, 0.7, 0.6, 0.1, "PROCEED WITH ADAPTER"), (0.8, 0.7, 0.2, 0.5, "PARTIAL"),
    (0.8, 0.4, 0.2, 0.1, "PARTIAL"), (0.5, 0.7, 0.2, 0.1, "INCONCLUSIVE"), (0.4, 0.7, 0.2, 0.1, "HYBRID"), (0.3, 0.7, 0.2, 0.1, "INCONCLUSIVE"), (0.25, 0.7, 0.2, 0.1, "FALLBACK")])
def test_the_decision_matrix(spatial, bbox, lpips, seconds, decision, tmp_path, ask):
    found = ask(made(tmp_path, "reference"), made(tmp_path, "m", spatial, bbox, lpips, seconds, floor=0.1))
    assert found["models"]["m"]["decision"] == decision, found["models"]["m"]


@pytest.mark.parametrize(("scores", "outcome"), [
    ([(0.8, 0.7, 0.2), (0.2, 0.1, 0.8)], "SUCCESS"), ([(0.8, 0.7, 0.6), (0.4, 0.7, 0.2)], "PARTIAL SUCCESS"), ([(0.8, 0.25, 0.6), (0.4, 0.7, 0.2)], "SPATIAL ONLY"),
    ([(0.5, 0.7, 0.2), (0.4, 0.7, 0.2)], "INCONCLUSIVE"), ([(0.4, 0.7, 0.2), (0.35, 0.7, 0.2)], "FAILURE")])
def test_success_partial_success_and_failure(scores, outcome, tmp_path, ask):
    assert ask(*(made(tmp_path, f"m{k}", *s, floor=0.05) for k, s in enumerate(scores)))["outcome"] == outcome


def test_a_first_that_needs_an_adapter_does_not_hide_one_that_passes_everything(tmp_path, ask):
    found = ask(made(tmp_path, "a", spatial=0.95, bbox=0.3), made(tmp_path, "b", spatial=0.6, bbox=0.5))
    assert found["first"] == "a" and "PROCEED WITH ADAPTER" in found["headline"] and found["headline"].endswith("but b passes every criterion")


def test_weights_do_not_buy_what_the_first_criterion_denies(tmp_path, ask):
    found = ask(made(tmp_path, "boxes", spatial=0.44, bbox=0.8, lpips=0.06), made(tmp_path, "space", spatial=0.56, bbox=0.3, lpips=0.6))
    assert found["models"]["boxes"]["weighted"] > found["models"]["space"]["weighted"] and found["first"] == "space" and found["models"]["boxes"]["rank"] is None


FAILING = {"spatial": 0.4, "bbox": 0.3, "lpips": 0.6, "floor": 0.1}


@pytest.mark.parametrize(("others", "way", "words"), [
    ({}, "hybrid", "not measured"), ({"encoder": 0.8}, "hybrid", "encoder spatial IoU 0.800"), ({"encoder": 0.4}, "grounding", "not measured"),
    ({"encoder": 0.4, "grounding-dino": 0.9}, "grounding", "grounding-dino spatial IoU 0.900"), ({"grounding-dino": 0.9}, "grounding", "0.900"),
    ({"encoder": 0.4, "grounding-dino": 0.3}, "fine-tuned encoder", "not measured")])
def test_when_all_fail_the_fallback_is_named_with_its_evidence(others, way, words, tmp_path, ask):
    found = ask(made(tmp_path, "a", **FAILING), made(tmp_path, "b", **FAILING | {"spatial": 0.35}), *(made(tmp_path, n, x, kind="encoder", floor=0.1) for n, x in others.items()))
    assert found["outcome"] == "FAILURE" and found["fallback"].startswith(way) and words in found["headline"]
    assert [w["way"].split()[0] for w in found["fallbacks"]] == ["hybrid", "grounding-specialised", "fine-tuned", "accept"]
    assert found["fallbacks"][-1]["evidence"] == "a misses spatial_iou by 0.100, bbox_iou by 0.100, lpips by 0.200"
    page = (tmp_path / "out" / "final-recommendation.md").read_text()
    assert "Fallbacks, in the plan's order" in page and "no model alone" in page.splitlines()[0]


def test_a_single_source_ranks_without_a_winner(tmp_path, ask, monkeypatch):
    monkeypatch.setattr("test_screen.SOURCES", ["one"] * N)
    found = ask(made(tmp_path, "a", spatial=0.9), made(tmp_path, "b", spatial=0.6))
    assert found["outcome"] == "INCONCLUSIVE" and "single source" in found["criteria"]["a"]["spatial_iou"]["reason"]


# ---------------------------------------------------------------- pages and the picture

def test_pages_say_first_that_small_weights_are_an_instrument_check_and_keep_the_earlier_figures_apart(tmp_path, ask):
    ask(made(tmp_path, "a"), made(tmp_path, "b", spatial=0.6))
    for name in ("phase1-summary.md", "final-recommendation.md"):
        page = (tmp_path / "out" / name).read_text()
        assert "instrument check" in "\n".join(page.splitlines()[:5]) and "random weights, synthetic data" in page
    page = (tmp_path / "out" / "phase1-summary.md").read_text()
    assert "qwen2.5-vl-7b (earlier study)" in page and "| spatial_iou | 0.559 | 0.837 | 0.800 | 0.600 |" in page and "judge nothing" in page
    assert "0.837" not in (tmp_path / "out" / "screen.yaml").read_text(), "figures of the earlier study are no results"
    assert "Top two" in (tmp_path / "out" / "final-recommendation.md").read_text()


def test_the_picture_is_drawn_and_the_last_lines_are_the_headline_scalars(tmp_path, capsys):
    found = screened([made(tmp_path, "a"), made(tmp_path, "b", spatial=0.45), made(tmp_path, "c", kind="encoder", seconds=None)], tmp_path / "out")
    with Image.open(tmp_path / "out" / "screen.png") as picture:
        low, high = picture.convert("L").getextrema()
        assert low < 50 and high > 200 and min(picture.size) > 200
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == f"sources {N // 2}" and f"headline {found['headline']}" in printed
    verify.main(["--print", str(tmp_path / "out" / "screen.yaml")])
    assert capsys.readouterr().out == printed


def test_a_threshold_that_was_set_is_used_and_recorded(tmp_path, ask, refused):
    folders = made(tmp_path, "a"), made(tmp_path, "b")
    found = ask(*folders, more=["--set", "spatial_iou=0.9"])
    assert found["outcome"] == "FAILURE" and found["overridden"] == {"spatial_iou": 0.9} and found["criteria"]["a"]["spatial_iou"]["source"] == "--set"
    for name in ("map50", "integration"):
        refused(lambda name=name: ask(*folders, more=["--set", f"{name}=0.5"]), name, "spatial_iou")


def test_strict_is_content_with_success_only(tmp_path, ask):
    ask(made(tmp_path, "a"), made(tmp_path, "b"), more=["--strict"])
    with pytest.raises(SystemExit) as stop:
        ask(made(tmp_path, "c", spatial=0.4), made(tmp_path, "d", spatial=0.4), more=["--strict"])
    assert stop.value.code == 3


# ---------------------------------------------------------------- folders that do not belong together

def change(path, **values):
    common.save_yaml(path, common.load_yaml(path) | values)


def test_folders_that_do_not_belong_together_are_refused(tmp_path, ask, refused):
    a = made(tmp_path, "a")
    refused(lambda: ask(a), "two folders")
    refused(lambda: ask(a, a), "'a'", "more than once")
    refused(lambda: ask(a, str(tmp_path / "typo")), "typo", "not a folder")
    refused(lambda: ask(made(tmp_path, "e", kind="encoder"), made(tmp_path, "f", kind="encoder")), "vision and language")
    b = made(tmp_path, "b")
    change(tmp_path / "b" / "probe.yaml", data_name="photos")
    refused(lambda: ask(a, b), "photos", "noise")
    c = made(tmp_path, "c", ids=["train-1", *IDS])
    refused(lambda: ask(a, c), "same items")
    d = made(tmp_path, "d")
    change(tmp_path / "d" / "features" / "index.yaml", model="another")
    refused(lambda: ask(a, d), "another", "'d'")
    g = made(tmp_path, "g")
    change(tmp_path / "g" / "probe.yaml", oracle="ltx")
    refused(lambda: ask(a, g), "ltx", "decoder")
    refused(lambda: ask(a, made(tmp_path, "h", lpips_name="lpips_random_backbone")), "backbone")
    assert not (tmp_path / "out" / "screen.yaml").exists()


def test_another_split_other_runs_and_old_results_are_refused(tmp_path, ask, refused, monkeypatch):
    a, b, c = made(tmp_path, "a"), made(tmp_path, "b"), made(tmp_path, "c")
    shutil.copy(tmp_path / "a" / "probe.pt", tmp_path / "kept.pt")
    common.save_pt(tmp_path / "b" / "probe.pt", common.RESULT, IDS, {})
    refused(lambda: ask(a, b), "scores of single items", "probe.py")
    criteria = common.load_yaml(tmp_path / "c" / "probe.yaml")["criteria"]
    criteria["spatial_iou"]["score"] = 0.5
    change(tmp_path / "c" / "probe.yaml", criteria=criteria)
    refused(lambda: ask(a, c), "different runs", "0.500")
    monkeypatch.setattr("test_screen.SOURCES", [f"source-{i}" for i in range(N)])
    refused(lambda: ask(a, made(tmp_path, "d")), "same split")
    monkeypatch.setattr("test_screen.IDS", [f"other-{i}" for i in range(N)])
    refused(lambda: ask(a, made(tmp_path, "e", ids=["train-0", *(f"item-{i:02d}" for i in range(N))])), "same items")


def make(*arguments, cwd=HERE):
    return subprocess.run(["make", *arguments, f"PY={sys.executable}"], cwd=cwd, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})


def test_make_screen_asks_features_and_probes_once_of_every_model():
    would = make("-n", "-W", "data.py", "screen", "MODELS=qwen2.5-vl-7b llava-next dinov2-l", "DATA=photos").stdout.splitlines()
    count = {stage: sum(f" {stage}.py " in line for line in would) for stage in ("extract", "probe", "align", "adapt", "verify")}
    assert count == {"extract": 7, "probe": 3, "align": 0, "adapt": 0, "verify": 2}, would  # features and untrained ones of three, latents of one decoder
    assert any("--oracle results/ltx/photos/features" in line for line in would)
    compared = next(line for line in would if "--screen" in line)
    assert "--screen results/qwen2.5-vl-7b/photos results/llava-next/photos results/dinov2-l/photos" in compared


@pytest.mark.slow
def test_make_screen_compares_two_models_from_nothing_and_recomputes_nothing(tmp_path):
    import data
    for file in [*HERE.glob("*.py"), HERE / "Makefile"]:
        shutil.copy(file, tmp_path)
    shutil.copytree(HERE / "results" / "tiny" / "checkpoints", tmp_path / "results" / "tiny" / "checkpoints")
    data.main(["shapes", "--n", "80", "--size", "64", "--out", str(tmp_path / "data" / "shapes")])
    first = make("screen", "MODELS=tiny tiny-semantic", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    found = common.load_yaml(tmp_path / "results" / "screen" / "screen.yaml", "screen")
    assert {found["first"], found["second"]} == {"tiny", "tiny-semantic"} and found["instrument_check"], found["headline"]
    assert found["headline"] in first.stdout and all(all(rows["integration"]["checks"].values()) for rows in found["criteria"].values())
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.suffix in (".pt", ".yaml", ".png", ".md")}
    assert make("screen", "MODELS=tiny tiny-semantic", cwd=tmp_path).returncode == 0 and stamps == {p: p.stat().st_mtime_ns for p in stamps}
    assert "verify.py --screen" in make("-n", "screen", "MODELS=tiny-semantic tiny", cwd=tmp_path).stdout, "the first model is the reference: another order is another comparison"


def test_intervals_are_numbers(tmp_path, ask):
    found = ask(made(tmp_path, "a"), made(tmp_path, "b", spatial=0.7))
    assert all(math.isfinite(m[k]) for m in found["models"].values() for k in ("low", "high")) and all(m["low"] < m["weighted"] < m["high"] for m in found["models"].values())
