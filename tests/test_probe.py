"""Probes on worlds whose answer is known: planted features, null first."""
from argparse import Namespace

import pytest
import torch

import data
import extract
import probe
import verify
from common import HERE, MASK, box_iou, criterion, edges, from_cells, load_pt, load_yaml, mask_scores, match_edges, plant_features, split_of, to_cells, write_items

N = 120
IDS = [f"item-{i:03d}" for i in range(N)]


def boxes_of(seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(N, 2, generator=g) * 16
    return torch.cat([corner, corner + 6 + torch.rand(N, 2, generator=g) * 9], 1).round()


def frames_with(boxes):
    frames = torch.full((N, 1, 32, 32, 3), 40, dtype=torch.uint8)
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 200
    return frames


def plant(folder, points, data=None, ids=None, **index):
    """A features folder that holds `points` {name: [n,t,h,w,D]}."""
    return plant_features(folder, IDS if ids is None else ids, points, data, **index)


@pytest.fixture
def world(tmp_path):
    boxes = boxes_of()
    write_items(tmp_path / "data", [{"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]}
                                    for i, f, b in zip(IDS, frames_with(boxes), boxes, strict=True)], {"data": "synthetic", "name": "boxes"})
    return tmp_path, boxes / 32


def cells(boxes, side=4, fine=4):
    """Every token's own piece of the foreground at 16 x 16: a token grid [n, 1, side, side, fine*fine] that a linear map can read."""
    at = (torch.arange(side * fine) + 0.5) / (side * fine)
    inside = [(at > boxes[:, k, None]) & (at < boxes[:, k + 2, None]) for k in (0, 1)]
    mask = (inside[1][:, :, None] & inside[0][:, None]).float()
    return to_cells(mask[:, None], side, side).unflatten(1, (side, side))[:, None]


def oracle(boxes):
    """The box itself in every token, so that a linear probe can read it exactly."""
    return boxes[:, None, None, None].expand(-1, 1, 4, 4, -1).contiguous()


def noise(seed, dim=6):
    return torch.randn(N, 1, 4, 4, dim, generator=torch.Generator().manual_seed(seed))


def run(world, points, random=None, **more):
    folder, _ = world
    plant(folder / "features", points, folder / "data", **more)
    arguments = ["--features", str(folder / "features"), "--out", str(folder / "probe.yaml")]
    if random:
        arguments += ["--random", plant(folder / "random", random, folder / "data")]
    return probe.main(arguments)


@pytest.mark.slow
def test_noise_is_no_better_than_the_constant_box_and_passes_for_nothing(world):
    found = run(world, {"noise": noise(1)}, {"noise": noise(2)})["criteria"]
    assert found["bbox_iou"]["gain_low"] <= 0 and found["spatial_iou"]["gain_low"] <= 0
    assert found["map50"]["gain_low"] <= 0.02
    assert found["edge_probe_f1"]["gain_low"] <= 0
    assert load_yaml(world[0] / "probe.yaml", "probe")["leak"] is None


@pytest.mark.slow
def test_the_oracle_is_read_and_chosen_and_clears_every_floor(world):
    _, boxes = world
    found = run(world, {"noise": noise(1), "oracle": torch.cat([oracle(boxes), cells(boxes)], -1)}, {"noise": noise(2), "oracle": noise(3)})
    for name, least in (("bbox_iou", 0.75), ("spatial_iou", 0.75), ("map50", 0.4)):
        c = found["criteria"][name]
        assert c["layer"] == "oracle" and c["score"] > least and c["gain_low"] > 0 and c["low"] <= c["score"] <= c["high"], (name, c)
    assert found["layers"]["oracle"]["bbox_iou_p_holm"] < 0.05 < found["layers"]["noise"]["bbox_iou_p_holm"]
    decoded = load_pt(world[0] / "probe.pt", "foresight.result.v1")
    assert decoded["ids"] == [i for i in IDS if split_of(i) == "test"]
    assert box_iou(decoded["boxes"], decoded["true_boxes"]).mean().item() == pytest.approx(found["bbox_iou"], abs=1e-6)
    assert load_yaml(world[0] / "probe.yaml", "probe")["bbox_iou"] == pytest.approx(found["bbox_iou"], abs=1e-5)


@pytest.mark.slow
def test_more_noise_on_the_oracle_scores_less(world):
    _, boxes = world
    found = run(world, {f"oracle.{k}": oracle(boxes) + s * noise(k, 4) for k, s in enumerate((0.0, 0.3, 3.0))})["layers"]
    assert found["oracle.0"]["bbox_iou"] > found["oracle.1"]["bbox_iou"] > found["oracle.2"]["bbox_iou"]


def test_strata_split_the_test_items_and_their_scores():
    box = torch.tensor
    items = [{"boxes": box(b)} for b in ([[0., 0, 4, 4]], [[0., 0, 20, 20]], [[0., 0, 30, 30], [10., 10, 12, 12]], [[0., 0, 8, 8], [9., 9, 12, 12], [20., 20, 30, 30]])]
    largest = torch.tensor([[0, 0, 4, 4], [0, 0, 20, 20], [0, 0, 30, 30], [20, 20, 30, 30]]) / 32
    groups = {k: v.tolist() for k, v in probe.strata(items, largest, torch.arange(4)).items()}
    assert groups["objects 1"] == [True, True, False, False] and groups["objects 2"] == [False, False, True, False] and groups["objects 3+"] == [False, False, False, True]
    assert groups["overlap yes"] == [False, False, True, False] and groups["overlap no"] == [False, False, False, True]
    assert [sum(groups[f"size {k}"][i] for k in ("small", "medium", "large")) for i in range(4)] == [1] * 4 and groups["size small"][0] and groups["size large"][2]
    assert not any(k.startswith("occlusion") for k in groups)
    for item, visible in zip(items, ([1.0], [0.96], [0.95, 1.0], [0.2, 0.3, 1.0]), strict=True):
        item["visible"] = visible
    groups = {k: v.tolist() for k, v in probe.strata(items, largest, torch.arange(4)).items()}
    assert groups["occlusion partly"] == [False, False, True, False] and groups["occlusion none"] == [True, True, False, True]  # of the largest box's object
    member = {"even": torch.arange(40) % 2 == 0, "first": torch.arange(40) < 3}
    test = torch.arange(20, 40)
    found = probe.by_stratum(member | {"some": torch.arange(40) < 24}, {"iou": (test % 2 == 0).float()}, {"iou": torch.full((20,), 0.25)}, test, [str(i) for i in range(20)], 0)
    assert found["even"] == {"n": 10, "iou": 1.0, "iou_low": 1.0, "iou_high": 1.0, "iou_floor": 0.25} and found["first"] == {"n": 0} and found["some"] == {"n": 4}


def test_the_detectable_gain_is_found_four_times_in_five():
    g, n, found = torch.Generator().manual_seed(0), 200, []
    sources = [str(i) for i in range(n)]
    for _ in range(120):
        floor = torch.rand(n, generator=g)
        null = criterion(floor + 0.1 * torch.randn(n, generator=g), {"floor": floor}, sources)
        shifted = criterion(floor + 0.1 * torch.randn(n, generator=g) + null["mde"], {"floor": floor}, sources)
        found.append(shifted["gain_low"] > 0)
    assert 0.68 <= sum(found) / len(found) <= 0.91  # a standard error of 0.037 around 0.80


def test_features_that_hold_the_position_only_gain_nothing():
    boxes = boxes_of() / 32
    split = {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}
    position = torch.randn(1, 1, 4, 4, 8, generator=torch.Generator().manual_seed(0)).expand(N, -1, -1, -1, -1) + 1e-3 * noise(5, 8)
    constant = box_iou(boxes[split["train"]].median(0).values, boxes[split["test"]]).mean()
    assert probe.probe_boxes(position, boxes, split)[0][split["test"]].mean() < constant + 0.03


def test_shuffled_labels_give_the_floor_whatever_the_features_hold():
    boxes = boxes_of() / 32
    split = {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}
    true, shuffled, _ = probe.probe_boxes(oracle(boxes), boxes, split)
    constant = box_iou(boxes[split["train"]].median(0).values, boxes[split["test"]]).mean()
    assert true[split["test"]].mean() > 0.95 and shuffled[:, split["test"]].mean() < constant + 0.05


def test_a_layer_that_only_the_test_items_favour_is_not_chosen(world):
    _, boxes = world
    test = torch.tensor([split_of(i) == "test" for i in IDS])
    cheat = torch.where(test[:, None, None, None, None], oracle(boxes), noise(4, 4))
    split = {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}
    assert probe.probe_boxes(cheat, boxes, split)[0][split["val"]].mean() < probe.probe_boxes(oracle(boxes) + 0.3 * noise(6, 4), boxes, split)[0][split["val"]].mean()


def test_labels_normalised_by_their_own_answers_are_a_leak_that_the_shuffled_control_names():
    boxes = boxes_of() / 32
    split = {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}
    centre, size = (boxes[:, :2] + boxes[:, 2:]).repeat(1, 2) / 2, (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    normalised = (boxes - centre) / size / 2 + 0.5  # IoU does not change when both boxes are moved and scaled back
    sources = [IDS[i] for i in split["test"]]
    assert probe.box_criterion({"noise": probe.probe_boxes(noise(1), boxes, split)}, boxes, split, sources)["leak"] is None
    found = probe.box_criterion({"noise": probe.probe_boxes(noise(1), normalised, split)}, boxes, split, sources)
    assert found["leak"] == "shuffled" and found["score"] > 0.9
    answer = verify.judge(found, verify.GATE1["bbox_iou"]["threshold"])
    assert answer["answer"] == "INCONCLUSIVE" and "leak: the control 'shuffled'" in answer["reason"]


def test_shuffled_masks_that_the_true_threshold_mends_are_not_called_a_leak():
    boxes = boxes_of() / 32
    split = {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}
    x = cells(boxes)[:, 0]
    masks = torch.nn.functional.interpolate(from_cells(x.flatten(1, 2), 4, 4, 1, 16), (MASK, MASK))[:, 0]
    wrong = torch.arange(N)
    wrong[split["train"]] = split["train"].roll(1)
    own, shuffled = (mask_scores(probe.probe_cells(x, {"mask": m[:, None]}, split)["mask"][:, 0], masks >= 0.5, split) for m in (masks, masks[wrong]))
    found = probe.mask_criterion({"own": own}, shuffled, masks, 4, split, [IDS[i] for i in split["test"]])
    assert found["leak"] is None and verify.judge(found, verify.GATE1["spatial_iou"]["threshold"])["answer"] == "PASS"
    assert found["floors"]["shuffled"] > max(found["floors"]["position_only"], found["floors"]["all_foreground"]) + 0.1


def outlines():
    """(tokens [N, 4, 4, 64] that hold the edges of their own cell, the edges [N, 32, 32], a split)."""
    found = edges(torch.cat(list(frames_with(boxes_of()))))
    return to_cells(found[:, None].float(), 4, 4).unflatten(1, (4, 4)), found, {s: torch.tensor([k for k, i in enumerate(IDS) if split_of(i) == s]) for s in ("train", "val", "test")}


def test_edges_read_from_noise_are_no_better_than_the_mean_of_all_edges():
    _, true, split = outlines()
    maps = {"edge": true[:, None].float()}
    blind, found = (probe.edge_scores(soft, true, split, ["test"])[split["test"]] for soft in
                    (maps["edge"][split["train"]].mean(0).expand(N, -1, -1), probe.probe_cells(noise(1)[:, 0], maps, split)["edge"][:, 0]))
    assert found.mean() < blind.mean() + 0.03 and blind.mean() < 0.6


def test_edges_that_the_tokens_hold_are_read_and_a_thick_blur_of_them_is_thinned():
    x, true, split = outlines()
    soft = probe.probe_cells(x, {"edge": true[:, None].float()}, split)["edge"][:, 0]
    found = probe.edge_scores(soft, true, split, ["test"])
    assert found[split["test"]].mean() > 0.9 and found[split["train"]].isnan().all()  # not 1: thinning takes corners away, from the truth as well
    blurred = torch.nn.functional.avg_pool2d(true[:, None].float(), 3, 1, 1)[:, 0]
    assert probe.edge_scores(blurred, true, split, ["test"])[split["test"]].mean() > 0.85
    assert match_edges(blurred > 0, true).mean() < 0.6  # as it is, it earns nothing: edges are matched one to one


# ---------------------------------------------------------------- motion

DIRECTIONS = ["down", "down left", "down right", "left", "right", "up", "up left", "up right"]


@pytest.fixture
def clips(tmp_path):
    g = torch.Generator().manual_seed(0)
    truth = [DIRECTIONS[k] for k in torch.randint(8, (N,), generator=g)]
    write_items(tmp_path / "data", [{"id": i, "source": i, "width": 8, "height": 8, "frames": torch.zeros(3, 8, 8, 3, dtype=torch.uint8), "boxes": torch.zeros(3, 1, 4),
                                     "labels": ["box"], "direction": d} for i, d in zip(IDS, truth, strict=True)], {"data": "synthetic", "name": "clips"})
    code = torch.nn.functional.one_hot(torch.tensor([DIRECTIONS.index(d) for d in truth]), 8).float()
    return tmp_path, code


def test_direction_is_chance_on_noise_and_read_where_it_is_planted(clips):
    folder, code = clips
    dull = torch.randn(N, 3, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    late = dull.clone()
    late[:, 2] += 5 * code[:, None, None]  # only the last time step knows
    found = run(clips, {"dull": dull, "late": late}, {"dull": dull.flip(0), "late": dull.flip(0)})
    c = found["criteria"]["direction_accuracy"]
    assert c["layer"] == "late" and c["score"] > 0.9 and c["gain_low"] > 0
    assert found["layers"]["dull"]["direction_accuracy_mean"] < 0.35 and found["layers"]["late"]["direction_accuracy_time_p_holm"] < 0.05
    assert set(c["floors"]) == {"commonest", "shuffled", "random_init"} and c["floors"]["shuffled"] < 0.3


def test_the_direction_is_read_from_points_without_a_grid_too(clips):
    folder, code = clips
    dull = torch.randn(N, 3, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    found = run(clips, {"dull": dull, "queries": dull + 5 * code[:, None, None, None] * torch.tensor([0.0, 0.5, 1.0])[:, None, None]}, gridless=("dull", "queries"))
    assert found["direction_accuracy_layer"] == "queries" and found["direction_accuracy"] > 0.9


RAMP = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # of a clip's three time steps


def scenes(n=400, seed=0):
    """Clips in twins as data.py's moving tells them, without frames: items, their split, and per clip velocity, camera, middle, start [n, 2]."""
    g = torch.Generator().manual_seed(seed)
    unit, items = probe.unit_ways(), []
    velocity, middle = torch.zeros(n, 2), torch.rand(n // 2, 2, generator=g).mul(26).sub(13).repeat_interleave(2, 0)  # pixels from the centre
    camera = torch.zeros(n, 2)
    for i in range(0, n, 2):
        way, speed, kind = int(torch.randint(8, (1,), generator=g)), 0.6 + 0.8 * torch.rand(1, generator=g).item(), "mirrored" if i % 4 else "reversed"
        flip = torch.tensor(probe.FLIPS[kind])
        velocity[i], velocity[i + 1] = unit[way] * speed, unit[way] * speed * flip
        middle[i + 1] = middle[i] * (flip if kind == "mirrored" else 1)
        if i % 6 == 0:
            camera[i] = torch.randint(-1, 2, (2,), generator=g)
            camera[i + 1] = camera[i] * flip
        for k, name in ((i, "original"), (i + 1, kind)):
            items.append({"id": f"clip-{k}", "source": f"scene-{i}", "kind": name, "direction": list(probe.WAYS)[probe.nearest_way(velocity[k:k + 1])], "speed": speed,
                          "camera": camera[k].int().tolist()})
    split = {s: torch.tensor([k for k, i in enumerate(items) if split_of(i["source"]) == s]) for s in ("train", "val", "test")}
    return items, split, velocity, camera, middle, middle - 8 * velocity


def watch(items, split, own, first=None, middle=None, random=None):
    """probe.motion on features [n, 3, D] of a single point, and of the same clips frozen."""
    pooled = [x if x is None else {"own": {"mean": x, "max": x}} for x in (own, random, first, middle)]
    frozen = {k: x for k, x in zip(("first", "middle"), pooled[2:], strict=True) if x}
    return probe.motion(Namespace(seed=0), items, split, *pooled[:2], ["own"], frozen)


def code_of(velocity):
    """[n, 2] -> [n, 8]: the nearest way as a linear probe can read it exactly."""
    return torch.nn.functional.one_hot(probe.nearest_way(velocity).clamp(min=0), 8).float()


def still(x):
    """[n, D] -> the features [n, 3, D] of clips in which nothing changes."""
    return x[:, None].expand(-1, 3, -1)


@pytest.mark.parametrize("seed", range(3))
def test_noise_neither_tells_nor_flips_nor_leaks(seed):
    items, split, *_ = scenes(seed=seed)
    x = torch.randn(4, len(items), 3, 8, generator=torch.Generator().manual_seed(seed))
    criteria, layers, *_ = watch(items, split, *x)
    assert set(criteria) == {"direction_accuracy", "direction_flip", "speed_r2", "camera_r2", "frozen_first", "frozen_middle"}
    for name, c in criteria.items():
        assert c["gain_low"] <= 0 and c["leak"] is None and (c["score"] < 0.3 if "r2" not in name else c["score"] < 0.1), (name, c)
    assert min(v for k, v in layers["own"].items() if k.endswith("p_holm")) > 0.05


def test_an_oracle_of_velocity_tells_flips_and_knows_nothing_of_frozen_clips():
    items, split, velocity, camera, middle, start = scenes()
    told = torch.cat([code_of(velocity), velocity.norm(dim=1, keepdim=True), camera], 1)[:, None] * RAMP
    own, first, centre = (torch.cat([still(place), x], -1) for place, x in ((start, told), (start, 0 * told), (middle, 0 * told)))
    criteria, layers, _, tables = watch(items, split, own, first, centre)
    c = criteria["direction_accuracy"]
    assert c["score"] == 1 and c["leak"] is None and verify.judge(c, 0.8)["answer"] == "PASS"
    assert c["floors"]["first_frame"] > c["floors"]["commonest"] + 0.1  # where the subject starts says something of where it goes
    assert criteria["direction_flip"]["score"] == 1 and criteria["direction_flip"]["floors"]["permuted"] < 0.3
    assert criteria["speed_r2"]["score"] > 0.99 and criteria["camera_r2"]["score"] > 0.99
    assert criteria["frozen_middle"]["gain_low"] <= 0 <= criteria["frozen_middle"]["gain_high"]
    assert layers["own"]["direction_flip_time"] == 1 and layers["own"]["direction_accuracy_mean"] < 0.5
    for k in ("kind original", "kind mirrored", "kind reversed", "camera no", "camera yes", "speed slow", "speed medium", "speed fast"):
        assert tables["strata"][k]["direction_accuracy"] == 1 and tables["strata"][k]["n"] >= 5, k


def test_features_of_the_starting_position_alone_gain_nothing_over_the_first_frame():
    items, split, _, _, middle, start = scenes()
    c = watch(items, split, still(start), still(start), still(middle))[0]
    assert c["direction_accuracy"]["score"] > c["direction_accuracy"]["floors"]["commonest"] + 0.1
    assert c["direction_accuracy"]["score"] == c["direction_accuracy"]["floors"]["first_frame"] and c["direction_accuracy"]["leak"] is None
    assert verify.judge(c["direction_accuracy"], 0.1)["answer"] != "PASS"  # without this floor it would
    assert verify.judge(watch(items, split, still(start))[0]["direction_accuracy"], 0.1)["answer"] == "PASS"


def test_an_appearance_that_gives_the_direction_away_does_not_flip_and_is_a_leak_by_name():
    items, split, velocity, *_ = scenes()
    colour = code_of(velocity[::2]).repeat_interleave(2, 0)  # the original's way, in both twins
    c = watch(items, split, still(colour), still(colour), still(colour))[0]
    assert c["direction_accuracy"]["score"] > 0.4 and c["direction_flip"]["score"] == 0 and c["direction_flip"]["gain_high"] < 0
    assert c["direction_accuracy"]["leak"] == "frozen_middle" and c["frozen_middle"]["gain_low"] > 0
    answer = verify.judge(c["direction_accuracy"], 0.1)
    assert answer["answer"] == "INCONCLUSIVE" and "leak: the control 'frozen_middle'" in answer["reason"]


def test_motion_relative_to_the_background_is_told_from_motion_in_the_picture():
    items, split, velocity, camera, *_ = scenes()
    for moved, kept, lost in ((velocity, "direction_accuracy", "direction_accuracy_background"), (velocity - camera, "direction_accuracy_background", "direction_accuracy")):
        found = watch(items, split, code_of(moved)[:, None] * RAMP)[3]["strata"]["camera turns it"]
        assert found[kept] > found[lost] + 0.5 and found[f"{kept}_low"] > found[f"{lost}_high"], found


def test_a_flip_is_an_answer_that_changes_as_the_clip_did():
    names = list(probe.WAYS)
    items = [{"source": str(i // 2), "kind": ("original", "mirrored" if i < 8 else "reversed")[i % 2]} for i in range(14)]
    said = ["left", "right", "up left", "up right", "up", "up", "down right", "down left", "up", "down", "left", "right", "down left", "up right"]
    way = torch.tensor([names.index(d) for d in said])
    pairs = probe.twin_pairs(items, way, torch.arange(14))
    assert pairs["mirrored"].tolist() == [[0, 1], [2, 3], [6, 7]] and pairs["reversed"].tolist() == [[8, 9], [10, 11], [12, 13]]  # straight up stays up in a mirror
    own, permuted = probe.flips(way, pairs)
    assert own.tolist() == [1] * 6 and permuted.tolist() == [0] * 6
    assert probe.flips(torch.full((14,), names.index("up")), pairs)[0].sum() == 0  # the same answer twice, even one that a mirror leaves as it is
    reverse = probe.nearest_way(-probe.unit_ways())
    wrong = way.clone()
    wrong[1], wrong[7] = reverse[way[0]], reverse[way[6]]
    assert probe.flips(wrong, pairs)[0].tolist() == [1, 1, 0, 1, 1, 1]  # left to right is both; down right must not become up left in a mirror
    assert probe.twin_pairs(items, way, torch.tensor([0, 1, 2, 5, 8])) == {}


def test_the_training_mean_has_r2_zero_on_every_clip_and_the_truth_one_on_average():
    y, split = torch.randn(30, 2, generator=torch.Generator().manual_seed(0)), {"train": torch.arange(10), "val": torch.arange(10, 20), "test": torch.arange(20, 30)}
    assert probe.r2_shares(y[:10].mean(0).expand_as(y), y, split).abs().max() == 0
    assert probe.r2_shares(y, y, split)[20:].mean().item() == pytest.approx(1) and probe.r2_shares(-y, y, split)[20:].mean() < 0


@pytest.fixture(scope="module")
def frozen_folders(tmp_path_factory):
    """A small `moving`, as it is and frozen: data and features of the committed default, a point before and one after it has seen time."""
    folder = tmp_path_factory.mktemp("frozen")
    for name, more in (("moving", []), ("first", ["--freeze", "first"]), ("middle", ["--freeze", "middle"])):
        data.main(["moving", "--n", "80", "--out", str(folder / "data" / name), *more])
        extract.main(["--model", str(HERE / "results/tiny/checkpoints/vlm"), "--data", str(folder / "data" / name), "--size", "64", "--points", "patch_embed,merger",
                      "--out", str(folder / name)])
    return folder


@pytest.mark.slow
def test_the_small_default_reads_motion_and_not_one_frame(frozen_folders):
    out = frozen_folders / "probe.yaml"
    probe.main(["--features", str(frozen_folders / "moving"), "--frozen", str(frozen_folders / "middle"), str(frozen_folders / "first"), "--out", str(out)])
    found = load_yaml(out, "probe")
    c = found["criteria"]["direction_accuracy"]
    assert c["layer"] == "merger" and c["gain_low"] > 0 and {"first_frame", "middle_frame", "frozen_first", "frozen_middle"} < set(c["floors"])
    assert found["leak"] is None and found["frozen_middle"] < found["direction_accuracy_low"] and found["direction_flip"] > found["direction_flip_floor"]
    assert found["strata"]["kind original"]["n"] + found["strata"]["kind mirrored"]["n"] + found["strata"]["kind reversed"]["n"] == c["n"]
    assert {"first_frame_time", "frozen_middle_time", "speed_r2_time", "camera_r2_time", "direction_flip_time"} < set(found["layers"]["merger"])


@pytest.mark.slow
def test_frozen_features_of_other_clips_or_of_another_network_are_refused(frozen_folders, tmp_path, capsys):
    features = ("--features", frozen_folders / "moving", "--out", tmp_path / "probe.yaml", "--frozen")
    assert "not frozen" in refused(capsys, *features, frozen_folders / "moving")
    ids = load_yaml(frozen_folders / "first" / "index.yaml")["ids"]
    planted = plant(tmp_path / "planted", {p: torch.randn(80, 3, 2, 2, 4) for p in ("pixels", "patch_embed", "merger")}, frozen_folders / "data" / "first", ids=ids)
    assert "same network" in refused(capsys, *features, planted)
    assert not (tmp_path / "probe.yaml").exists()


def test_frozen_clips_beside_stills_are_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data")
    assert "no direction" in refused(capsys, "--features", folder, "--frozen", folder)


def test_pooled_features_with_nan_are_refused(clips, capsys):
    bad = torch.randn(N, 3, 2, 2, 8)
    bad[3, 0, 1, 1] = float("nan")
    assert "non-finite" in refused(capsys, "--features", plant(clips[0] / "features", {"bad": bad}, clips[0] / "data"))


# ---------------------------------------------------------------- tokens without a place in the picture

@pytest.mark.slow
def test_spatial_probes_leave_out_points_without_a_grid_whatever_they_hold(world, capsys):
    _, boxes = world
    queries = boxes[:, None, None, None].expand(-1, 1, 1, 5, -1).contiguous()  # the answer itself, but nowhere
    found = run(world, {"noise": noise(1), "queries": queries}, gridless=("queries",))
    assert list(found["layers"]) == ["noise"] and {c["layer"] for c in found["criteria"].values()} == {"noise"}
    assert "no place in the picture: queries" in capsys.readouterr().out


def test_spatial_probes_of_points_without_a_grid_alone_are_refused_with_those_that_have_one(world, capsys):
    folder = plant(world[0] / "features", {"pixels": noise(2), "placed": noise(1), "queries": torch.randn(N, 1, 1, 5, 8)}, world[0] / "data", gridless=("queries",))
    for points in ("queries", "pixels,queries"):
        err = refused(capsys, "--features", folder, "--points", points)
        assert "queries" in err and "no place" not in err.split("--points")[1] and "of placed" in err


# ---------------------------------------------------------------- bad input: one sentence, exit 2

def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as e:
        probe.main([str(a) for a in arguments])
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("error:") == 1, err
    return err


def test_missing_features_are_refused(tmp_path, capsys):
    assert "extract.py" in refused(capsys, "--features", tmp_path / "nowhere")


def test_features_with_nan_are_refused(world, capsys):
    bad = noise(1)
    bad[3, 0, 1, 1] = float("nan")
    folder = plant(world[0] / "features", {"bad": bad}, world[0] / "data")
    assert "non-finite" in refused(capsys, "--features", folder, "--out", world[0] / "probe.yaml")
    assert not (world[0] / "probe.yaml").exists()


def test_ids_that_the_data_lack_are_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data", ids=[f"other-{i}" for i in range(N)])
    assert "other-0" in refused(capsys, "--features", folder)


def test_a_foreign_schema_is_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data", schema="somebody.else.v3")
    assert "somebody.else.v3" in refused(capsys, "--features", folder)


def test_one_item_is_refused(tmp_path, capsys):
    write_items(tmp_path / "data", [{"id": "one", "source": "one", "width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8), "boxes": torch.ones(1, 4), "labels": ["box"]}],
                {"data": "synthetic", "name": "one"})
    folder = plant(tmp_path / "features", {"a": noise(1)[:1]}, tmp_path / "data", ids=["one"])
    assert "split" in refused(capsys, "--features", folder)


def test_an_empty_set_is_refused(tmp_path, capsys):
    write_items(tmp_path / "data", [], {"data": "synthetic", "name": "none"})
    folder = plant(tmp_path / "features", {"a": noise(1)[:0]}, tmp_path / "data", ids=[])
    assert "no items" in refused(capsys, "--features", folder)


def test_a_picture_that_stands_in_two_splits_is_refused_as_a_split_leak(tmp_path, capsys):
    boxes = boxes_of()
    frames = frames_with(boxes)
    test = next(k for k, i in enumerate(IDS) if split_of(i) == "test")
    train = next(k for k, i in enumerate(IDS) if split_of(i) == "train")
    frames[test], boxes[test] = frames[train], boxes[train]
    write_items(tmp_path / "data", [{"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]} for i, f, b in zip(IDS, frames, boxes, strict=True)],
                {"data": "synthetic", "name": "boxes"})
    err = refused(capsys, "--features", plant(tmp_path / "features", {"a": noise(1)}, tmp_path / "data"))
    assert "split leak" in err and IDS[test] in err and IDS[train] in err and not (tmp_path / "probe.yaml").exists()


def test_an_unknown_point_is_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data")
    assert "'b'" in refused(capsys, "--features", folder, "--points", "b")


def test_an_untrained_network_of_other_items_is_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data")
    other = plant(world[0] / "random", {"a": noise(1)[:-1]}, world[0] / "data", ids=IDS[:-1])
    assert "random" in refused(capsys, "--features", folder, "--random", other)


def test_an_unwritable_place_is_refused(world, capsys):
    folder = plant(world[0] / "features", {"a": noise(1)}, world[0] / "data")
    (world[0] / "file").write_text("")
    assert "cannot write" in refused(capsys, "--features", folder, "--out", world[0] / "file" / "probe.yaml")
