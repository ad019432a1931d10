"""Probes on planted features whose content is known: null first."""

import functools
import threading
from pathlib import Path

import pytest
import torch
from helpers import generator, plant_features, write_squares
from torch.nn.functional import interpolate, one_hot

import align
import gate
import probe
import probes
import stats
from common import RESULT, load_pt, load_yaml, save_pt, save_yaml, split_of, write_items
from metrics import MASK, box_iou, mask_scores, to_cells

N = 120
IDS = [f"box-{i}" for i in range(N)]
WRONG = {
    "": ({"ids": [f"other-{i}" for i in range(N)]}, ("other-0",)),
    "--points b": ({}, ("'b'",)),
    "--points pixels,queries": ({"gridless": ("queries",)}, ("queries", "of grid")),
    "--frozen features": ({}, ("no direction",)),
    "--random random": ({}, ("random",)),
    "--oracle random": ({}, ("no latents",)),
}
RAMP = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # of a clip's three time steps
DIRECTIONS = list(probes.DIRECTIONS)


def parts_of(sources):
    parts = [split_of(s) for s in sources]
    return {p: torch.tensor([k for k, x in enumerate(parts) if x == p]) for p in ("train", "val", "test")}


def boxes_of(seed=0, n=N):
    g = generator(seed)
    corner = torch.rand(n, 2, generator=g) * 16
    return torch.cat([corner, corner + 6 + torch.rand(n, 2, generator=g) * 9], 1).round()


SPLIT = parts_of(IDS)
TEST = SPLIT["test"]
SOURCES = [IDS[i] for i in TEST]
BOXES = boxes_of() / 32
CONSTANT = box_iou(BOXES[SPLIT["train"]].median(0).values, BOXES[TEST]).mean().item()
FRAMES = torch.full((N, 1, 32, 32, 3), 40, dtype=torch.uint8)
for frame, (x1, y1, x2, y2) in zip(FRAMES, boxes_of().int().tolist(), strict=True):
    frame[0, y1:y2, x1:x2] = 200
MASKS = (FRAMES[:, :, ::2, ::2, 0] > 99).float()
ORACLE = BOXES[:, None, None, None].expand(-1, 1, 4, 4, -1).contiguous()  # the box in every token
CELLS = to_cells(MASKS, 4, 4).unflatten(1, (4, 4))[:, None]  # the foreground of every token's cell


@pytest.fixture
def planted(tmp_path):
    write_squares(tmp_path, boxes_of(), 32)
    return tmp_path


def noise(seed, dim=6):
    return torch.randn(N, 1, 4, 4, dim, generator=generator(seed))


def run(folder, points, random=None, flags=(), **more):
    plant_features(folder / "features", IDS, points, folder / "data", **more)
    arguments = ["--features", str(folder / "features"), "--out", str(folder / "probe.yaml"), *flags]
    if random:
        arguments += ["--random", plant_features(folder / "random", IDS, random, folder / "data")]
    return probe.main(arguments)


@pytest.mark.slow
def test_noise_gains_nothing_the_oracle_beats_every_baseline_and_a_layer_has_a_grid(planted, capsys, refused):
    queries = ORACLE[:, :, :1]  # the answer, without a place
    oracle = torch.cat([ORACLE, CELLS], -1)
    points = {"noise": noise(1), "oracle": oracle, "queries": queries, "more": noise(7)}
    random = {"noise": noise(2), "oracle": noise(3)}
    decoded = ("--oracle", plant_features(planted / "latents", IDS, {"latents": CELLS}, planted / "data"))
    found = run(planted, points, random, ("--points", "noise,queries"), gridless=("queries",))
    for name, most in (("bbox_iou", 0), ("spatial_iou", 0), ("map50", 0.02)):
        assert found["criteria"][name]["gain_low"] <= most, name
    assert list(found["layers"]) == ["noise"] and found["leak"] is None
    assert "no token grid): queries" in capsys.readouterr().out
    choice = run(planted, points, flags=("--choose", str(planted / "choice.yaml")), gridless=("queries",))
    chosen = choice["points"].split(",")
    assert load_yaml(planted / "choice.yaml", "probe") == choice and len(chosen) == 2
    found = run(planted, points, dict.fromkeys(chosen, noise(3)), decoded, gridless=("queries",))
    assert {found[f"{name}_layer"] for name in choice["layers"] if name in found} == {"oracle"}
    assert [p for p, row in found["layers"].items() if "bbox_iou_random" in row] == chosen
    refused(lambda: run(planted, points, {"noise": noise(3)}, gridless=("queries",)), "random", "'oracle'")
    for name, least in (("bbox_iou", 0.75), ("spatial_iou", 0.75), ("map50", 0.4)):
        c = found["criteria"][name]
        assert c["layer"] == "oracle" and c["score"] > least and c["gain_low"] > 0, (name, c)
    rows = found["layers"]
    assert rows["oracle"]["bbox_iou_p_holm"] < 0.05 < rows["noise"]["bbox_iou_p_holm"]
    c = found["criteria"]["decoder_ssim"]
    assert set(c["baselines"]) == {"mean_image", "shuffled_images"} and c["gain_low"] > 0
    assert c["controls"]["random_init"] < min(c["score"], c["upper_bound"])
    assert (planted / "probe.png").stat().st_size > 5000
    decoded = load_pt(planted / "probe.pt", RESULT)
    iou = box_iou(decoded["boxes"], decoded["true_boxes"]).mean().item()
    assert decoded["ids"] == SOURCES and found["bbox_iou"] == pytest.approx(iou, abs=1e-6)
    assert load_yaml(planted / "probe.yaml", "probe")["bbox_iou"] == pytest.approx(iou, abs=1e-5)


@pytest.mark.slow
def test_a_layer_of_1_gb_is_read_in_600_mb_of_memory(planted, monkeypatch):
    few = functools.partial(probes.train_set_probe, steps=5)  # every step takes the same memory
    monkeypatch.setattr(probes, "train_set_probe", few)
    large, used, done = torch.randn(N, 1, 16, 16, 256, generator=generator()).half(), [], threading.Event()
    points, data = {"large": large.repeat(1, 1, 6, 6, 1)}, planted / "data"
    features = ["--features", plant_features(planted / "features", IDS, points, data)]
    target = ["--target", plant_features(planted / "target", IDS, {"latents": ORACLE}, data)]
    del points

    def sample():  # kB, without pages of mapped files: the kernel drops them when it needs memory
        while not done.wait(0.005):
            used.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]))

    threading.Thread(target=sample, daemon=True).start()
    align.main(features + target)
    probe.main(features)
    done.set()
    assert max(used) - used[0] < 600e3


def rows_of(**features):
    """`probes.probe_boxes` of planted features {layer: [N, 1, h, w, D]}."""
    kernels = {name: stats.gram(x, SPLIT["train"]) for name, x in features.items()}
    return probes.probe_boxes(kernels, BOXES, SPLIT, IDS)


def images(split=SPLIT):
    """The planted images as `probe.Images`."""
    items = [{"source": i, "boxes": b[None] * 32, "labels": ["box"]} for i, b in zip(IDS, BOXES, strict=True)]
    masks = interpolate(MASKS, (MASK, MASK))[:, 0]
    return probe.Images(items, split, 0, BOXES, None, ["box"], masks, FRAMES[:, 0])


def test_position_alone_shuffled_labels_and_another_items_features_are_no_better_than_the_constant_box():
    position = torch.randn(1, 1, 4, 4, 8, generator=generator()) + 1e-3 * noise(5, 8)
    assert rows_of(x=position)["x"]["bbox_iou"][TEST].mean() < CONSTANT + 0.03
    found = rows_of(oracle=ORACLE)
    row = found["oracle"]
    assert row["bbox_iou"][TEST].mean() > 0.95 and row["shuffled"][:, TEST].mean() < CONSTANT + 0.05
    record = probe.box_record(found, {}, "oracle", images())
    assert record["baselines"]["shuffled_images"] < CONSTANT + 0.05 < 0.9 < record["score"]
    assert record["baselines"]["constant"] == pytest.approx(CONSTANT)
    assert record["band"] == "target" and record["n"] == len(TEST)


def test_images_without_boxes_take_no_part_in_the_iou_of_the_largest_box():
    few, code = images(), BOXES.clone()
    few.largest = BOXES.clone()
    few.largest[::3] = 0
    code[::3] = torch.rand(len(code[::3]), 4, generator=generator())  # which would mislead the map
    kernel = stats.gram(code, SPLIT["train"])
    layers = {"x": probes.probe_boxes({"x": kernel}, few.largest, SPLIT, IDS)["x"]}
    assert layers["x"]["bbox_iou"].isnan().tolist() == [i % 3 == 0 for i in range(N)]
    record = probe.box_record(layers, {}, "x", few)
    assert record["n"] == sum(i % 3 > 0 for i in TEST.tolist()) and record["score"] > 0.95


def test_layers_and_places_are_chosen_on_val_alone():
    on_val = torch.tensor([split_of(i) == "val" for i in IDS])[:, None, None, None, None]
    cheat, honest = torch.where(on_val, noise(4, 4), ORACLE), ORACLE + 0.3 * noise(6, 4)
    names = {"vision.0": cheat, "vision.1": honest, "merger": noise(1, 4)}
    layers = rows_of(**names)
    for row in layers.values():
        row["spatial_iou"] = row["bbox_iou"]
    chosen = probe.choose_layers(layers, SPLIT["val"])
    assert chosen["bbox_iou"] == chosen["spatial_iou"] == "vision.1"
    places = probe.places_of(layers, SPLIT["val"], TEST)
    assert list(places) == ["tower", "projector"] and places["tower"]["bbox_iou_layer"] == "vision.1"
    assert places["projector"]["bbox_iou"] == layers["merger"]["bbox_iou"][TEST].mean()


def test_shuffled_masks_with_the_true_threshold_are_not_called_a_leak():
    planted_images = images()
    soft = probes.probe_cells(CELLS[:, 0], planted_images.masks[:, None], SPLIT)[:, 0]
    rows = {"x": {"spatial_iou": mask_scores(soft, planted_images.masks >= 0.5, SPLIT)}}
    found = probe.mask_record(rows, {}, "x", CELLS[:, 0], planted_images)
    baselines = found["baselines"]
    assert found["leak"] is None and gate.evaluate(found, 0.6)["answer"] == "PASS"
    assert baselines["shuffled"] > max(baselines["position_only"], baselines["all_foreground"]) + 0.1


def test_direction_is_read_where_it_is_planted_and_frozen_features_are_joined_by_id(tmp_path, refused):
    folder = tmp_path
    truth = torch.randint(8, (N,), generator=generator())
    item = {"width": 8, "height": 8, "frames": torch.zeros(3, 8, 8, 3, dtype=torch.uint8)}
    item |= {"boxes": torch.zeros(3, 1, 4), "labels": ["box"]}
    rows = zip(IDS, truth, strict=True)
    items = [item | {"id": i, "source": i, "direction": DIRECTIONS[k]} for i, k in rows]
    for name, frozen in (("data", {}), ("first", {"freeze": "first"}), ("middle", {"freeze": "middle"})):
        write_items(folder / name, items, {"data": "synthetic", "name": "clips"} | frozen)
    code = one_hot(truth, 8).float()
    dull = torch.randn(N, 3, 2, 2, 8, generator=generator(1))
    late, random = dull.clone(), {"late": dull.flip(0)}  # the chosen layer
    late[:, 2] += 5 * code[:, None, None]  # in the last time step only
    points = {"dull": dull, "late": late.flatten(2, 3)[:, :, None]}
    found = run(folder, points, random, gridless=("late",))
    c = found["criteria"]["direction_accuracy"]
    assert c["layer"] == "late" and c["score"] > 0.9 and c["gain_low"] > 0
    assert found["layers"]["dull"]["direction_accuracy_mean"] < 0.35
    assert found["layers"]["late"]["direction_accuracy_time_p_holm"] < 0.05
    assert set(c["baselines"]) == {"majority", "shuffled", "random_init"} and c["baselines"]["shuffled"] < 0.3
    still = {"first": dull + 5 * code[:, None, None, None], "middle": dull}  # the first gives it away
    for name, x in still.items():
        plant_features(folder / f"at-{name}", IDS[::-1], {"late": x.flip(0)}, folder / name)
    first, middle, itself = (str(folder / name) for name in ("at-first", "at-middle", "features"))
    found = run(folder, {"late": late}, flags=("--frozen", middle, first))
    c = found["criteria"]["direction_accuracy"]
    assert c["baselines"]["first_frame"] > 0.9 > 0.35 > c["baselines"]["middle_frame"]
    assert found["frozen_first"] > 0.9 > 0.35 > found["frozen_middle"] and found["leak"] is None
    plant_features(folder / "at-first", IDS, {"late": dull}, folder / "first", model="other")
    refused(lambda: run(folder, {"late": late}, flags=("--frozen", first)), "same network")
    refused(lambda: run(folder, {"late": late}, flags=("--frozen", itself)), "not frozen")
    late[3, 0, 1, 1] = float("nan")
    refused(lambda: run(folder, {"late": late}), "non-finite")


def watch(x, first=None, middle=None, n=400):
    """probe.probe_clips on features [n, 3, D] of one point, and of the same clips frozen."""
    truth = torch.randint(8, (n,), generator=generator())
    sources = [f"scene-{i // 2}" for i in range(n)]
    clips = probes.Clips(parts_of(sources), 0, truth, sources)
    pooled = [{"x": {"mean": z, "max": z}} for z in (x, first, middle) if z is not None]
    frozen = dict(zip(("first", "middle"), pooled[1:], strict=False))
    trained = probes.read_motion(pooled[0], ["x"], clips, frozen.values(), shuffled=True)
    at = probes.best_reading(trained, clips)
    return probe.probe_clips(clips, trained, at, None, ["x"], frozen)[:2]


def code_of(n=400):
    """[n, 3, 8]: the direction of `watch`, which grows over time."""
    truth = torch.randint(8, (n,), generator=generator())
    return one_hot(truth, 8).float()[:, None] * RAMP


def test_noise_has_no_direction_and_no_leak():
    criteria, tables = watch(*torch.randn(3, 400, 3, 8, generator=generator(2)))
    assert list(criteria) == ["direction_accuracy", "frozen_first", "frozen_middle"]
    for name, c in criteria.items():
        assert c["gain_low"] <= 0 and c["leak"] is None and c["score"] < 0.3, (name, c)
    row = tables["layers"]["x"]
    assert min(v for k, v in row.items() if k.endswith("p_holm")) > 0.05


def test_an_oracle_of_motion_passes_and_is_at_chance_on_frozen_clips():
    nothing = torch.zeros(400, 3, 8)
    criteria, tables = watch(code_of(), nothing, nothing)
    c = criteria["direction_accuracy"]
    assert c["score"] == 1 and c["leak"] is None and gate.evaluate(c, 0.8)["answer"] == "PASS"
    middle = criteria["frozen_middle"]
    assert middle["gain_low"] <= 0 <= middle["gain_high"]
    row = tables["layers"]["x"]
    assert row["direction_accuracy_time"] == 1 and row["direction_accuracy_mean"] < 0.5


def test_an_appearance_that_gives_the_direction_away_gains_nothing_or_is_a_leak():
    colour = code_of().abs().amax(1, keepdim=True).expand(-1, 3, -1)
    c = watch(colour, colour, torch.zeros(400, 3, 8))[0]["direction_accuracy"]
    assert c["score"] == 1 == c["baselines"]["first_frame"] and c["leak"] is None
    assert gate.evaluate(c, 0.1)["answer"] != "PASS"
    c = watch(colour, colour, colour)[0]["direction_accuracy"]
    assert c["leak"] == "frozen_middle" and gate.evaluate(c, 0.1)["answer"] == "INCONCLUSIVE"


def test_results_are_compared_item_by_item(tmp_path, refused):
    ids, base = [f"i{k}" for k in range(40)], torch.rand(40, generator=generator()) / 2
    tasks = ("bbox_iou", "spatial_iou")

    def write(name, scores, ids=ids):
        folder, scores = tmp_path / name, dict.fromkeys(tasks, scores)
        record = {"score": scores["bbox_iou"].mean(), "low": 0.0, "high": 1.0, "baseline": 0.1, "layer": "x"}
        content = {"stage": "probe", "model": "made-up", "criteria": dict.fromkeys(tasks, record)}
        save_yaml(folder / "probe.yaml", content)
        save_pt(folder / "probe.pt", RESULT, ids, {}, sources=ids, scores=scores)
        index = {"stage": "extract", "size": 64, "points": {"x": {"shape": [1, 6, 6, 8]}}}
        save_yaml(folder / "features" / "index.yaml", index)
        return str(folder)

    low, same, high = write("low", base), write("same", base), write("high", base + 0.2)
    out = tmp_path / "compare.yaml"
    assert probe.main(["--compare", low, same, high, "--out", str(out)])["bbox_iou_best"] == "high"
    rows = load_yaml(out, "probe-compare")["rows"]
    assert rows["high"]["bbox_iou_p_holm"] < 0.01
    assert rows["high"]["bbox_iou_gain"] == pytest.approx(0.2, abs=1e-5)
    assert rows["same"]["bbox_iou_gain"] == 0 and rows["same"]["bbox_iou_p_holm"] == 1
    refused(lambda: probe.main(["--compare", low]), "--compare", "two or more")
    write("same", base, ids[::-1])
    refused(lambda: probe.main(["--compare", low, same]), "test items")


def test_images_without_truth_have_no_layer_to_choose_and_nothing_to_probe(tmp_path, refused):
    item = {"width": 32, "height": 32}
    rows = zip(IDS, FRAMES, strict=True)
    items = [item | {"id": i, "source": i, "frames": f} for i, f in rows]
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "scenes"})
    refused(lambda: run(tmp_path, {"noise": noise(1)}), "neither boxes nor directions")
    choice = run(tmp_path, {"noise": noise(1)}, flags=("--choose", str(tmp_path / "choice.yaml")))
    assert choice == {"stage": "probe", "points": "", "layers": {}}


@pytest.mark.parametrize("flags", WRONG)
def test_input_that_cannot_be_probed_is_refused(planted, monkeypatch, refused, flags):
    more, words = WRONG[flags]
    monkeypatch.chdir(planted)
    points = {name: noise(k) for k, name in enumerate(("pixels", "grid", "queries"))}
    plant_features("features", **{"ids": IDS, "points": points, "data_path": planted / "data"} | more)
    plant_features("random", IDS[:-1], {name: x[:-1] for name, x in points.items()}, planted / "data")
    refused(lambda: probe.main(["--features", "features", *flags.split()]), *words)
    assert not (planted / "probe.yaml").exists()
