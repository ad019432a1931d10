"""Screening: made-up results whose answer is known, from a clear winner to none at all, and the pages that people read."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

import common
import gate
import models
import stats
from common import HERE

N = 60  # test items, two of a source
IDS = [f"item-{i:02d}" for i in range(N)]
SOURCES = [f"source-{i // 2:02d}" for i in range(N)]


def made(root, name, spatial=0.8, bbox=0.7, lpips=0.2, seconds=0.1, **more):
    """A folder of stage results of one model: scores per item around the means given, their records computed as the stages do. Items share their difficulty.

    more: `noise`, `seed`, `centred`: of the scores per item; `floor` of the IoUs; `leak` in spatial IoU; `kind`, `lpips_name`, `ids`.
    """
    noise = more.get("noise", 0.05)
    floor = more.get("floor", 0.2)
    lpips_name = more.get("lpips_name", "lpips")
    folder, g = root / name, torch.Generator().manual_seed(more.get("seed", 0))
    shared = 0.05 * torch.randn(N, generator=torch.Generator().manual_seed(99))
    high = (
        {"constant": torch.full((N,), floor), "shuffled": torch.full((N,), 0.1)},
        {"ceiling": 1.0, "better": "higher"},
    )
    low = (
        {"mean_image": torch.full((N,), 0.9), "shuffled": torch.full((N,), 0.95)},
        {"ceiling": 0.05, "better": "lower"},
    )
    scores, criteria = {}, {}
    for key, mean, (floors, how) in (
        ("spatial_iou", spatial, high),
        ("bbox_iou", bbox, high),
        (f"decoder_{lpips_name}", lpips, low),
    ):
        x = shared + noise * torch.randn(N, generator=g)
        scores[key] = mean + x - x.mean() * more.get("centred", True)
        criteria[key] = stats.criterion(scores[key], floors, SOURCES, layer="vision.0", **how)
        criteria[key]["leak"] = more.get("leak") if key == "spatial_iou" else None
    scores[key] = scores[key][None].repeat(3, 1)  # LPIPS of three seeds
    head = {"model": name, "data_name": "noise", "weights": "random", "data": "synthetic"}
    common.save_yaml(folder / "probe.yaml", {"stage": "probe", **head, "oracle": "vae", "criteria": criteria})
    common.save_pt(folder / "probe.pt", common.RESULT, IDS, {}, sources=SOURCES, scores=scores)
    points = {"vision.0": {}} | ({} if more.get("kind") == "encoder" else {"language.0": {}})
    index = {"seconds_per_item": seconds, "ids": more.get("ids", ["train-0", *IDS]), "points": points}
    common.save_yaml(folder / "features" / "index.yaml", {"stage": "extract", "model": name} | index)
    return str(folder)


@pytest.fixture
def ask(tmp_path):
    return lambda *folders, more=(): gate.main(["screen", *folders, "--out", str(tmp_path / "out"), *more])


# ---------------------------------------------------------------- the null cases


def test_identical_copies_are_a_tie(tmp_path, ask):
    found = ask(*(made(tmp_path, name) for name in ("a", "b", "c")))
    assert found["tie"] and "a tie of a, b, c" in found["headline"]
    assert found["confidence"] == pytest.approx(1 / 3)
    for row in found["comparisons"].values():
        assert row["difference"] == row["low"] == row["high"] == 0 and not row["told_apart"]


def test_timing_noise_alone_makes_no_winner_of_identical_copies(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=0.1), made(tmp_path, "b", seconds=0.13))
    row = found["comparisons"]["b"]
    assert "choose by cost" in (tmp_path / "out" / "final-recommendation.md").read_text()
    assert row["low"] > 0 and found["tie"], (
        "speed has no interval: its difference looks certain and must not decide"
    )


@pytest.mark.slow
def test_the_best_of_six_equally_good_models_wins_in_no_more_than_1_in_20_worlds(tmp_path, ask):
    def world(k):
        return [made(tmp_path / str(k), f"m{j}", noise=0.2, seed=10 * k + j, centred=False) for j in range(6)]

    assert sum(not ask(*world(k))["tie"] for k in range(30)) <= 4  # more than 4 of 30 at 1 in 20: 1.6%


@pytest.mark.parametrize("floor, decision, component", [(0.9, "INCONCLUSIVE", 0.9), (0.95, "FALLBACK", 0)])
def test_a_floor_of_the_same_height_never_wins(floor, decision, component, tmp_path, ask):
    high = made(tmp_path, "floor", spatial=0.9, bbox=0.99, lpips=0.1, floor=floor)
    found = ask(high, made(tmp_path, "honest", spatial=0.6, bbox=0.5, lpips=0.3))
    row = found["models"]["floor"]
    assert found["first"] == "honest" and row["rank"] is None and "floor" in row["excluded"]
    assert row["decision"] == decision
    assert found["criteria"]["floor"]["spatial_iou"]["component"] == pytest.approx(component, abs=1e-4)


def test_a_leak_never_wins_and_is_named(tmp_path, ask):
    found = ask(made(tmp_path, "leaky", spatial=0.99, leak="shuffled"), made(tmp_path, "honest", spatial=0.6))
    assert found["first"] == "honest" and "leak in spatial_iou" in found["models"]["leaky"]["excluded"]
    assert found["criteria"]["leaky"]["spatial_iou"]["answer"] == "INCONCLUSIVE"


def test_an_encoder_is_judged_and_never_chosen(tmp_path, ask):
    found = ask(
        made(tmp_path, "model", spatial=0.6),
        made(tmp_path, "encoder", spatial=0.95, bbox=0.9, kind="encoder"),
    )
    assert found["first"] == "model" and found["second"] is found["confidence"] is None
    assert found["models"]["encoder"]["rank"] is None and "hybrid" in found["models"]["encoder"]["excluded"]
    own, other = (found["criteria"][name]["spatial_iou"]["component"] for name in ("model", "encoder"))
    assert other > own


# ---------------------------------------------------------------- a winner


def test_a_clear_winner_wins_with_its_confidence(tmp_path, ask):
    means = {"weak": 0.6, "strong": 0.9, "fair": 0.7}
    found = ask(*(made(tmp_path, name, spatial=x, seed=k) for k, (name, x) in enumerate(means.items())))
    assert found["headline"].startswith("SUCCESS (random weights, synthetic data): strong; PROCEED")
    assert (found["first"], found["second"], found["tie"]) == ("strong", "fair", False)
    row = found["comparisons"]["fair"]
    assert row["difference"] == pytest.approx(0.4 * (0.9 - 0.7), abs=1e-4) and row["low"] > 0
    assert row["by_spatial_iou"] == pytest.approx(0.08, abs=1e-4) and found["confidence"] > 0.999
    assert row["level"] == pytest.approx(0.975)  # Bonferroni over two
    assert all(m["low"] < m["weighted"] < m["high"] for m in found["models"].values())


def test_models_are_paired_on_items_whatever_their_order(tmp_path, ask):
    folders = [made(tmp_path, "a", noise=0, spatial=0.70), made(tmp_path, "b", noise=0, spatial=0.69)]
    pt, back = tmp_path / "b" / "probe.pt", list(range(N))[::-1]
    scores = {k: x[..., back].clone() for k, x in common.load_pt(pt, common.RESULT)["scores"].items()}
    sources = [SOURCES[i] for i in back]
    common.save_pt(pt, common.RESULT, [IDS[i] for i in back], {}, sources=sources, scores=scores)
    found = ask(*folders)
    # a constant difference on every item is certain, though items differ by far more
    row = found["comparisons"]["b"]
    assert not found["tie"] and row["high"] - row["low"] < 1e-5


@pytest.mark.parametrize(
    "threshold, better, x, component",
    [
        (0.5, "higher", 0.5, 0.5),
        (0.4, "lower", 0.4, 0.5),
        (3.0, "lower", 3.0, 0.5),
        (3.0, "lower", 9.0, 0),
        (0.4, "higher", 0.9, 1),
    ],
)
def test_a_component_is_a_half_at_its_threshold_and_stays_within_0_and_1(threshold, better, x, component):
    row = {"threshold": threshold, "better": better}
    assert gate.component(x, row | {"earns": True}).item() == pytest.approx(component)
    assert gate.component(x, row | {"earns": False}).item() == 0


def test_the_weighted_score_and_the_yaml_of_a_model(tmp_path, ask):
    found = ask(
        made(tmp_path, "a", spatial=0.8, bbox=0.6, lpips=0.2, seconds=0.1),
        made(tmp_path, "b", spatial=0.6, seconds=0.2),
    )
    components = [found["criteria"]["a"][k]["component"] for k in gate.SCREEN]
    # spatial IoU, bbox IoU, LPIPS, speed, integration (the one check that is known), and the plan's weights
    assert components == pytest.approx([0.8, 0.75, 0.75, 1 - 1 / 6, 1.0], abs=1e-4)
    weighted = 0.4 * 0.8 + 0.2 * 0.75 + 0.15 * 0.75 + 0.15 * 5 / 6 + 0.1
    assert found["models"]["a"]["weighted"] == pytest.approx(weighted, abs=1e-4)
    one = common.load_yaml(tmp_path / "out" / "b-spatial.yaml", "screen")
    assert one["rank"] == 2 and one["speed"] == 2.0 and one["spatial_iou_answer"] == "PASS"
    assert one["spatial_iou_low"] < one["spatial_iou"] < one["spatial_iou_high"]
    assert one["spatial_iou"] == pytest.approx(0.6) and one["spatial_iou_floor"] == pytest.approx(0.2)


def test_the_speed_of_qwen_is_the_reference_wherever_it_stands(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=0.4), made(tmp_path, "qwen2.5-vl-7b", seconds=0.1))
    row = found["criteria"]["a"]["speed"]
    assert found["speed_reference"] == "qwen2.5-vl-7b" and row["score"] == pytest.approx(4)
    assert row["answer"] == "FAIL"


def test_what_one_model_lacks_is_left_out_for_all_and_said(tmp_path, ask):
    found = ask(made(tmp_path, "a", seconds=None), made(tmp_path, "b"))
    assert found["left_out"] == {"speed": ["a", "b"]}  # a is the reference
    assert sum(found["weights_percent"].values()) == pytest.approx(100, abs=1e-3)
    assert found["weights_percent"]["spatial_iou"] == pytest.approx(40 / 0.85, abs=1e-3)
    assert "speed is left out" in (tmp_path / "out" / "phase1-summary.md").read_text()
    assert found["models"]["a"]["decision"] == "PARTIAL"


def test_lpips_without_its_backbone_is_skill_and_marked(tmp_path, ask):
    random = {"lpips_name": "lpips_random_backbone"}
    found = ask(made(tmp_path, "a", lpips=0.2, **random), made(tmp_path, "b", lpips=0.6, **random))
    row = found["criteria"]["a"]["lpips"]
    assert row["stand_in"] and row["score"] == pytest.approx(0.7 / 0.85, abs=1e-4) == row["component"]
    assert found["criteria"]["b"]["lpips"]["answer"] == "FAIL" and "stand-in" in found["headline"]
    assert "lpips*" in (tmp_path / "out" / "phase1-summary.md").read_text()


def test_integration_counts_what_is_known():
    def checks(name, *points):
        return list(gate.integration({"points": dict(points)}, models.MODELS.get(name, {})).values())

    both = ("language.0", {}), ("vision.0", {})
    assert list(gate.CHECKS) == ["grid", "library", "clips", "licence", "t4"]
    assert checks("qwen2.5-vl-7b", *both) == [True, True, True, True, False]
    assert checks("cogvlm2", ("language.0", {"grid": False})) == [False] * 5
    assert checks("tiny", *both) == [True] * 5
    assert checks("unknown", *both) == [True, None, None, None, None]
    assert checks("dinov2-l", ("vision.0", {}))[0] is None


# ---------------------------------------------------------------- the matrix, and when nothing passes


@pytest.mark.parametrize(
    "decision, spatial, bbox, lpips, seconds",
    [
        ("PROCEED", 0.8, 0.7, 0.2, 0.1),
        ("PROCEED WITH ADAPTER", 0.8, 0.25, 0.2, 0.1),
        ("PROCEED WITH ADAPTER", 0.8, 0.7, 0.6, 0.1),
        ("PARTIAL", 0.8, 0.7, 0.2, 0.5),
        ("PARTIAL", 0.8, 0.4, 0.2, 0.1),
        ("INCONCLUSIVE", 0.5, 0.7, 0.2, 0.1),
        ("HYBRID", 0.4, 0.7, 0.2, 0.1),
        ("INCONCLUSIVE", 0.3, 0.7, 0.2, 0.1),
        ("FALLBACK", 0.25, 0.7, 0.2, 0.1),
    ],
)
def test_the_decision_matrix(decision, spatial, bbox, lpips, seconds, tmp_path, ask):
    found = ask(made(tmp_path, "reference"), made(tmp_path, "m", spatial, bbox, lpips, seconds, floor=0.1))
    assert found["models"]["m"]["decision"] == decision, found["models"]["m"]


@pytest.mark.parametrize(
    "outcome, one, two",
    [
        ("SUCCESS", (0.8, 0.7, 0.2), (0.2, 0.1, 0.8)),
        ("PARTIAL SUCCESS", (0.8, 0.7, 0.6), (0.4, 0.7, 0.2)),
        ("SPATIAL ONLY", (0.8, 0.25, 0.6), (0.4, 0.7, 0.2)),
        ("INCONCLUSIVE", (0.5, 0.7, 0.2), (0.4, 0.7, 0.2)),
        ("FAILURE", (0.4, 0.7, 0.2), (0.35, 0.7, 0.2)),
    ],
)
def test_success_partial_success_and_failure(outcome, one, two, tmp_path, ask):
    assert (
        ask(made(tmp_path, "one", *one, floor=0.05), made(tmp_path, "two", *two, floor=0.05))["outcome"]
        == outcome
    )


def test_a_first_that_needs_an_adapter_does_not_hide_one_that_passes_everything(tmp_path, ask):
    found = ask(made(tmp_path, "a", spatial=0.95, bbox=0.3), made(tmp_path, "b", spatial=0.6, bbox=0.5))
    assert found["first"] == "a" and "PROCEED WITH ADAPTER" in found["headline"]
    assert found["headline"].endswith("but b passes every criterion")


def test_weights_do_not_buy_what_the_first_criterion_denies(tmp_path, ask):
    boxes = made(tmp_path, "boxes", spatial=0.44, bbox=0.8, lpips=0.06)
    found = ask(boxes, made(tmp_path, "space", spatial=0.56, bbox=0.3, lpips=0.6))
    assert found["models"]["boxes"]["weighted"] > found["models"]["space"]["weighted"]
    assert found["first"] == "space" and found["models"]["boxes"]["rank"] is None


@pytest.mark.parametrize(
    "others, way, words",
    [
        ({}, "hybrid", "not measured"),
        ({"encoder": 0.8}, "hybrid", "encoder spatial IoU 0.800"),
        ({"grounding-dino": 0.9}, "grounding", "0.900"),
        ({"encoder": 0.4}, "grounding", "not measured"),
        ({"encoder": 0.4, "grounding-dino": 0.3}, "fine-tuned encoder", "not measured"),
    ],
)
def test_when_all_fail_the_fallback_is_named_with_its_evidence(others, way, words, tmp_path, ask):
    models = [made(tmp_path, name, x, 0.3, 0.6, floor=0.1) for name, x in (("a", 0.4), ("b", 0.35))]
    found = ask(*models, *(made(tmp_path, n, x, kind="encoder", floor=0.1) for n, x in others.items()))
    assert found["outcome"] == "FAILURE" and found["fallback"].startswith(way) and words in found["headline"]
    ways = [w["way"].split()[0] for w in found["fallbacks"]]
    assert ways == ["hybrid", "grounding-specialised", "fine-tuned", "accept"]
    evidence = "a misses spatial_iou by 0.100, bbox_iou by 0.100, lpips by 0.200"
    assert found["fallbacks"][-1]["evidence"] == evidence
    page = (tmp_path / "out" / "final-recommendation.md").read_text()
    assert "Fallbacks, in the plan's order" in page and "no model alone" in page.splitlines()[0]


def test_a_single_source_ranks_without_a_winner(tmp_path, ask, monkeypatch):
    monkeypatch.setattr("test_screen.SOURCES", ["one"] * N)
    found = ask(made(tmp_path, "a", spatial=0.9), made(tmp_path, "b", spatial=0.6))
    assert found["outcome"] == "INCONCLUSIVE"
    assert "single source" in found["criteria"]["a"]["spatial_iou"]["reason"]


# ---------------------------------------------------------------- pages


def test_pages_say_first_that_small_weights_are_an_instrument_check(tmp_path, ask):
    ask(made(tmp_path, "a"), made(tmp_path, "b", spatial=0.6))
    out = tmp_path / "out"
    pages = [(out / name).read_text() for name in ("phase1-summary.md", "final-recommendation.md")]
    for page in pages:
        assert "instrument check" in "\n".join(page.splitlines()[:5])
        assert "random weights, synthetic data" in page
    assert "| spatial_iou | 0.559 | 0.837 | 0.800 | 0.600 |" in pages[0] and "judge nothing" in pages[0]
    assert "0.837" not in (out / "screen.yaml").read_text(), "figures of the earlier study are no results"


def test_the_last_lines_are_the_headline_scalars(tmp_path, capsys):
    encoder = made(tmp_path, "c", kind="encoder", seconds=None)
    folders = made(tmp_path, "a"), made(tmp_path, "b", spatial=0.45), encoder
    found = gate.main(["screen", *folders, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.strip().splitlines()[-1] == f"sources {N // 2}"
    assert f"headline {found['headline']}" in printed
    gate.main(["show", str(tmp_path / "out" / "screen.yaml")])
    assert capsys.readouterr().out == printed


def test_a_threshold_that_was_set_is_used_and_recorded(tmp_path, ask, refused):
    folders = made(tmp_path, "a"), made(tmp_path, "b")
    with pytest.raises(SystemExit, match="3"):
        ask(*folders, more=["--set", "spatial_iou=0.9", "--strict"])
    found = common.load_yaml(tmp_path / "out" / "screen.yaml")
    assert found["outcome"] == "FAILURE" and found["overridden"] == {"spatial_iou": 0.9}
    assert found["criteria"]["a"]["spatial_iou"]["source"] == "--set"
    assert ask(*folders, more=["--strict"])["outcome"] == "SUCCESS"
    refused(lambda: ask(*folders, more=["--set", "integration=0.5"]), "integration", "spatial_iou")


# ---------------------------------------------------------------- folders that do not belong together


def change(path, **values):
    common.save_yaml(path, common.load_yaml(path) | values)


def test_folders_that_do_not_belong_together_are_refused(tmp_path, ask, refused):
    a = made(tmp_path, "a")
    refused(lambda: ask(a), "two folders")
    refused(lambda: ask(a, a), "'a'", "more than once")
    refused(lambda: ask(a, str(tmp_path / "typo")), "typo", "not a folder")
    encoders = [made(tmp_path, name, kind="encoder") for name in "ef"]
    refused(lambda: ask(*encoders), "vision and language")
    for words, file, values in (
        (("other", "noise"), "probe.yaml", {"data_name": "other"}),
        (("ltx", "decoder"), "probe.yaml", {"oracle": "ltx"}),
        (("another", "'b'"), "features/index.yaml", {"model": "another"}),
        (("same items",), "features/index.yaml", {"ids": ["train-1", *IDS]}),
    ):
        b = made(tmp_path, "b")
        change(tmp_path / "b" / file, **values)
        refused(lambda b=b: ask(a, b), *words)
    refused(lambda: ask(a, made(tmp_path, "h", lpips_name="lpips_random_backbone")), "backbone")
    assert not (tmp_path / "out" / "screen.yaml").exists()


def test_another_split_other_runs_and_old_results_are_refused(tmp_path, ask, refused, monkeypatch):
    a, b, c = (made(tmp_path, name) for name in "abc")
    common.save_pt(tmp_path / "b" / "probe.pt", common.RESULT, IDS, {})
    refused(lambda: ask(a, b), "scores of single items", "probe.py")
    criteria = common.load_yaml(tmp_path / "c" / "probe.yaml")["criteria"]
    criteria["spatial_iou"]["score"] = 0.5
    change(tmp_path / "c" / "probe.yaml", criteria=criteria)
    refused(lambda: ask(a, c), "different runs", "0.500")
    items = ["train-0", *IDS]
    monkeypatch.setattr("test_screen.SOURCES", [f"source-{i}" for i in range(N)])
    refused(lambda: ask(a, made(tmp_path, "d")), "same split")
    monkeypatch.setattr("test_screen.IDS", [f"other-{i}" for i in range(N)])
    refused(lambda: ask(a, made(tmp_path, "e", ids=items)), "same items")


def make(*arguments, cwd=HERE):
    command, environment = ["make", *arguments, f"PY={sys.executable}"], os.environ | {"HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def test_make_screen_asks_features_and_probes_once_of_every_model():
    names = ["qwen2.5-vl-7b", "llava-next", "dinov2-l"]
    would = make(
        "-n", "-W", "data.py", "screen", f"MODELS={' '.join(names)}", "DATA=shapes"
    ).stdout.splitlines()
    count = {
        stage: sum(f" {stage}.py " in line for line in would)
        for stage in ("extract", "probe", "align", "adapt")
    }
    # features and untrained ones of three, latents of one decoder
    assert count == {"extract": 7, "probe": 3, "align": 0, "adapt": 0}, would
    assert any("--oracle results/ltx/shapes/features" in line for line in would)
    folders = " ".join(f"results/{name}/shapes" for name in names)
    assert any(f"gate.py screen {folders}" in line for line in would)


@pytest.mark.slow
def test_make_screen_compares_two_models_from_nothing_and_recomputes_nothing(tmp_path):
    import data

    for file in [*HERE.glob("*.py"), HERE / "Makefile"]:
        shutil.copy(file, tmp_path)
    small = "results/tiny/checkpoints"
    shutil.copytree(HERE / small, tmp_path / small)
    data.main(["shapes", "--n", "80", "--size", "64", "--out", str(tmp_path / "data" / "shapes")])
    first = make("screen", "MODELS=tiny tiny-semantic", cwd=tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    found = common.load_yaml(tmp_path / "results" / "screen" / "screen.yaml", "screen")
    assert {found["first"], found["second"]} == {"tiny", "tiny-semantic"} and found["instrument_check"]
    assert found["headline"] in first.stdout
    stamps = {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.suffix in (".pt", ".yaml", ".png", ".md")
    }
    assert make("screen", "MODELS=tiny tiny-semantic", cwd=tmp_path).returncode == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    again = make("-n", "screen", "MODELS=tiny-semantic tiny", cwd=tmp_path).stdout
    assert "gate.py screen" in again, "the first model is the reference: another order is another comparison"
