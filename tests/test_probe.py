"""Probes on worlds whose answer is known: planted features, null first."""

from argparse import Namespace

import pytest
import torch
from helpers import plant_features

import data
import extract
import gate
import probe
from common import HERE, load_pt, load_yaml, split_of, write_items
from metrics import MASK, box_iou, edges, from_cells, mask_scores, match_edges, to_cells
from stats import criterion

N = 120
IDS = [f"item-{i:03d}" for i in range(N)]


def parts_of(sources):
    return {
        part: torch.tensor([k for k, s in enumerate(sources) if split_of(s) == part])
        for part in ("train", "val", "test")
    }


SPLIT = parts_of(IDS)
TEST = SPLIT["test"]
SOURCES = [IDS[i] for i in TEST]


def boxes_of(seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = torch.rand(N, 2, generator=g) * 16
    return torch.cat([corner, corner + 6 + torch.rand(N, 2, generator=g) * 9], 1).round()


def frames_with(boxes):
    frames = torch.full((N, 1, 32, 32, 3), 40, dtype=torch.uint8)
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 200
    return frames


def write_boxes(folder, frames, boxes):
    items = [
        {"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]}
        for i, f, b in zip(IDS, frames, boxes, strict=True)
    ]
    write_items(folder / "data", items, {"data": "synthetic", "name": "boxes"})
    return folder, boxes / 32


def plant(folder, points, data=None, ids=IDS, **index):
    """A features folder that holds `points` {name: [n,t,h,w,D]}."""
    return plant_features(folder, ids, points, data, **index)


@pytest.fixture
def world(tmp_path):
    boxes = boxes_of()
    return write_boxes(tmp_path, frames_with(boxes), boxes)


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
def test_noise_is_no_better_than_the_constant_box_and_tokens_without_a_place_are_left_out_whatever_they_hold(
    world, capsys
):
    # the answer itself, but nowhere
    queries = world[1][:, None, None, None].expand(-1, 1, 1, 5, -1).contiguous()
    found = run(
        world,
        {"noise": noise(1), "queries": queries},
        {"noise": noise(2), "queries": queries},
        gridless=("queries",),
    )
    for name, most in (("bbox_iou", 0), ("spatial_iou", 0), ("map50", 0.02), ("edge_probe_f1", 0)):
        assert found["criteria"][name]["gain_low"] <= most, name
    assert list(found["layers"]) == ["noise"] and found["leak"] is None
    assert "no place in the picture: queries" in capsys.readouterr().out


@pytest.mark.slow
def test_the_oracle_is_read_and_chosen_and_clears_every_floor(world):
    _, boxes = world
    found = run(
        world,
        {"noise": noise(1), "oracle": torch.cat([oracle(boxes), cells(boxes)], -1)},
        {"noise": noise(2), "oracle": noise(3)},
    )
    for name, least in (("bbox_iou", 0.75), ("spatial_iou", 0.75), ("map50", 0.4)):
        c = found["criteria"][name]
        assert c["layer"] == "oracle" and c["score"] > least and c["gain_low"] > 0, (name, c)
    assert found["layers"]["oracle"]["bbox_iou_p_holm"] < 0.05 < found["layers"]["noise"]["bbox_iou_p_holm"]
    decoded = load_pt(world[0] / "probe.pt", "foresight.result.v1")
    assert decoded["ids"] == [i for i in IDS if split_of(i) == "test"]
    iou = box_iou(decoded["boxes"], decoded["true_boxes"]).mean().item()
    assert iou == pytest.approx(found["bbox_iou"], abs=1e-6)
    assert load_yaml(world[0] / "probe.yaml", "probe")["bbox_iou"] == pytest.approx(iou, abs=1e-5)


def test_strata_split_the_test_items_by_size_at_the_terciles_of_the_training_items():
    largest = torch.tensor([[0, 0, 4, 4], [0, 0, 20, 20], [0, 0, 30, 30], [20, 20, 30, 30]]) / 32
    groups = {k: v.tolist() for k, v in probe.strata(largest, torch.tensor([0, 2, 3])).items()}
    assert groups == {
        "size small": [True, False, False, False],
        "size medium": [False, False, False, True],
        "size large": [False, True, True, False],
    }
    member = {"even": torch.arange(40) % 2 == 0, "first": torch.arange(40) < 3}
    test = torch.arange(20, 40)
    member["some"] = torch.arange(40) < 24
    score, floor = {"iou": (test % 2 == 0).float()}, {"iou": torch.full((20,), 0.25)}
    found = probe.by_stratum(member, score, floor, test, [str(i) for i in range(20)], 0)
    assert found["even"] == {"n": 10, "iou": 1.0, "iou_low": 1.0, "iou_high": 1.0, "iou_floor": 0.25}
    assert found["first"] == {"n": 0} and found["some"] == {"n": 4}


@pytest.mark.slow
def test_the_detectable_gain_is_found_four_times_in_five():
    g, n, found = torch.Generator().manual_seed(0), 200, []
    sources = [str(i) for i in range(n)]
    for _ in range(120):
        floor = torch.rand(n, generator=g)
        null = criterion(floor + 0.1 * torch.randn(n, generator=g), {"floor": floor}, sources)
        shifted = criterion(
            floor + 0.1 * torch.randn(n, generator=g) + null["mde"], {"floor": floor}, sources
        )
        found.append(shifted["gain_low"] > 0)
    assert 0.68 <= sum(found) / len(found) <= 0.91  # a standard error of 0.037 around 0.80


def test_position_alone_and_shuffled_labels_are_no_better_than_the_constant_box():
    boxes = boxes_of() / 32
    constant = box_iou(boxes[SPLIT["train"]].median(0).values, boxes[TEST]).mean()
    position = torch.randn(1, 1, 4, 4, 8, generator=torch.Generator().manual_seed(0)).expand(
        N, -1, -1, -1, -1
    ) + 1e-3 * noise(5, 8)
    assert probe.probe_boxes(position, boxes, SPLIT)[0][TEST].mean() < constant + 0.03
    true, shuffled, _ = probe.probe_boxes(oracle(boxes), boxes, SPLIT)
    assert true[TEST].mean() > 0.95 and shuffled[:, TEST].mean() < constant + 0.05


def test_a_layer_that_only_the_test_items_favour_is_not_chosen():
    boxes = boxes_of() / 32
    at_test = torch.tensor([split_of(i) == "test" for i in IDS])[:, None, None, None, None]
    found = {
        "cheat": torch.where(at_test, oracle(boxes), noise(4, 4)),
        "honest": oracle(boxes) + 0.3 * noise(6, 4),
    }
    found = {name: probe.probe_boxes(x, boxes, SPLIT) for name, x in found.items()}
    assert probe.box_criterion(found, boxes, SPLIT, SOURCES)["layer"] == "honest"


def test_labels_normalised_by_their_own_answers_are_a_leak_that_the_shuffled_control_names():
    boxes = boxes_of() / 32
    centre, size = (boxes[:, :2] + boxes[:, 2:]).repeat(1, 2) / 2, (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    # IoU does not change when both boxes are moved and scaled back
    normalised = (boxes - centre) / size / 2 + 0.5
    assert (
        probe.box_criterion({"noise": probe.probe_boxes(noise(1), boxes, SPLIT)}, boxes, SPLIT, SOURCES)[
            "leak"
        ]
        is None
    )
    found = probe.box_criterion(
        {"noise": probe.probe_boxes(noise(1), normalised, SPLIT)}, boxes, SPLIT, SOURCES
    )
    assert found["leak"] == "shuffled" and found["score"] > 0.9
    answer = gate.judge(found, gate.GATE1["bbox_iou"]["threshold"])
    assert answer["answer"] == "INCONCLUSIVE" and "leak: the control 'shuffled'" in answer["reason"]


def test_shuffled_masks_that_the_true_threshold_mends_are_not_called_a_leak():
    boxes = boxes_of() / 32
    x = cells(boxes)[:, 0]
    masks = torch.nn.functional.interpolate(from_cells(x.flatten(1, 2), 4, 4, 1, 16), (MASK, MASK))[:, 0]
    wrong = torch.arange(N)
    wrong[SPLIT["train"]] = SPLIT["train"].roll(1)
    own, shuffled = (
        mask_scores(probe.probe_cells(x, {"mask": m[:, None]}, SPLIT)["mask"][:, 0], masks >= 0.5, SPLIT)
        for m in (masks, masks[wrong])
    )
    found = probe.mask_criterion({"own": own}, shuffled, masks, 4, SPLIT, SOURCES)
    assert found["leak"] is None
    assert gate.judge(found, gate.GATE1["spatial_iou"]["threshold"])["answer"] == "PASS"
    assert (
        found["floors"]["shuffled"]
        > max(found["floors"]["position_only"], found["floors"]["all_foreground"]) + 0.1
    )


@pytest.fixture(scope="module")
def outlines():
    return edges(torch.cat(list(frames_with(boxes_of()))))  # [N, 32, 32]


def test_edges_read_from_noise_are_no_better_than_the_mean_of_all_edges(outlines):
    maps = {"edge": outlines[:, None].float()}
    blind, found = (
        probe.edge_scores(soft, outlines, SPLIT, ["test"])[TEST]
        for soft in (
            maps["edge"][SPLIT["train"]].mean(0).expand(N, -1, -1),
            probe.probe_cells(noise(1)[:, 0], maps, SPLIT)["edge"][:, 0],
        )
    )
    assert found.mean() < blind.mean() + 0.03 and blind.mean() < 0.6


def test_edges_that_the_tokens_hold_are_read_and_a_thick_blur_of_them_is_thinned(outlines):
    maps = {"edge": outlines[:, None].float()}
    x = to_cells(maps["edge"], 4, 4).unflatten(1, (4, 4))
    found = probe.edge_scores(probe.probe_cells(x, maps, SPLIT)["edge"][:, 0], outlines, SPLIT, ["test"])
    # not 1: thinning takes corners away, from the truth as well
    assert found[TEST].mean() > 0.9 and found[SPLIT["train"]].isnan().all()
    blurred = torch.nn.functional.avg_pool2d(maps["edge"], 3, 1, 1)[:, 0]
    assert probe.edge_scores(blurred, outlines, SPLIT, ["test"])[TEST].mean() > 0.85
    # as it is, it earns nothing: edges are matched one to one
    assert match_edges(blurred > 0, outlines).mean() < 0.6


# ---------------------------------------------------------------- motion

DIRECTIONS = list(probe.WAYS)


@pytest.fixture
def clips(tmp_path):
    g = torch.Generator().manual_seed(0)
    truth = [DIRECTIONS[k] for k in torch.randint(8, (N,), generator=g)]
    same = {
        "width": 8,
        "height": 8,
        "frames": torch.zeros(3, 8, 8, 3, dtype=torch.uint8),
        "boxes": torch.zeros(3, 1, 4),
        "labels": ["box"],
    }
    write_items(
        tmp_path / "data",
        [same | {"id": i, "source": i, "direction": d} for i, d in zip(IDS, truth, strict=True)],
        {"data": "synthetic", "name": "clips"},
    )
    code = torch.nn.functional.one_hot(torch.tensor([DIRECTIONS.index(d) for d in truth]), 8).float()
    return tmp_path, code


@pytest.mark.parametrize("gridless", [(), ("dull", "late")])
def test_direction_is_chance_on_noise_and_read_where_it_is_planted_with_a_grid_or_without(clips, gridless):
    code = clips[1]
    dull = torch.randn(N, 3, 2, 2, 8, generator=torch.Generator().manual_seed(1))
    late = dull.clone()
    late[:, 2] += 5 * code[:, None, None]  # only the last time step knows
    dull, late = (x.flatten(2, 3)[:, :, None] if gridless else x for x in (dull, late))
    found = run(
        clips, {"dull": dull, "late": late}, {"dull": dull.flip(0), "late": dull.flip(0)}, gridless=gridless
    )
    c = found["criteria"]["direction_accuracy"]
    assert c["layer"] == "late" and c["score"] > 0.9 and c["gain_low"] > 0
    assert found["layers"]["dull"]["direction_accuracy_mean"] < 0.35
    assert found["layers"]["late"]["direction_accuracy_time_p_holm"] < 0.05
    assert set(c["floors"]) == {"commonest", "shuffled", "random_init"} and c["floors"]["shuffled"] < 0.3


RAMP = torch.tensor([-1.0, 0.0, 1.0])[:, None]  # of a clip's three time steps


def scenes(n=400, seed=0):
    """Clips in twins as data.py's moving tells them, without frames: items, their split, and per clip velocity, camera, middle, start [n, 2]."""
    g = torch.Generator().manual_seed(seed)
    unit, items = probe.unit_ways(), []
    velocity, camera = torch.zeros(n, 2), torch.zeros(n, 2)
    # pixels from the centre
    middle = torch.rand(n // 2, 2, generator=g).mul(26).sub(13).repeat_interleave(2, 0)
    for i in range(0, n, 2):
        way, speed = int(torch.randint(8, (1,), generator=g)), 0.6 + 0.8 * torch.rand(1, generator=g).item()
        kind = "mirrored" if i % 4 else "reversed"
        flip = torch.tensor(probe.FLIPS[kind])
        velocity[i], velocity[i + 1] = unit[way] * speed, unit[way] * speed * flip
        middle[i + 1] = middle[i] * (flip if kind == "mirrored" else 1)
        if i % 6 == 0:
            camera[i] = torch.randint(-1, 2, (2,), generator=g)
            camera[i + 1] = camera[i] * flip
        for k, name in ((i, "original"), (i + 1, kind)):
            item = {
                "id": f"clip-{k}",
                "source": f"scene-{i}",
                "kind": name,
                "speed": speed,
                "camera": camera[k].int().tolist(),
            }
            items.append(item | {"direction": DIRECTIONS[probe.nearest_way(velocity[k : k + 1])]})
    split = parts_of([i["source"] for i in items])
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
    assert len(criteria) == 6  # direction, flips, speed, camera and both frozen frames
    for name, c in criteria.items():
        most = 0.1 if "r2" in name else 0.3
        assert c["gain_low"] <= 0 and c["leak"] is None and c["score"] < most, (name, c)
    assert min(v for k, v in layers["own"].items() if k.endswith("p_holm")) > 0.05


def test_an_oracle_of_velocity_tells_flips_and_knows_nothing_of_frozen_clips():
    items, split, velocity, camera, middle, start = scenes()
    told = torch.cat([code_of(velocity), velocity.norm(dim=1, keepdim=True), camera], 1)[:, None] * RAMP
    nothing = torch.zeros_like(told)
    own, first, centre = (
        torch.cat([still(place), x], -1) for place, x in ((start, told), (start, nothing), (middle, nothing))
    )
    criteria, layers, _ = watch(items, split, own, first, centre)
    c = criteria["direction_accuracy"]
    assert c["score"] == 1 and c["leak"] is None and gate.judge(c, 0.8)["answer"] == "PASS"
    # where the subject starts says something of where it goes
    assert c["floors"]["first_frame"] > c["floors"]["commonest"] + 0.1
    assert criteria["direction_flip"]["score"] == 1
    assert criteria["direction_flip"]["floors"]["permuted"] < 0.3
    assert criteria["speed_r2"]["score"] > 0.99 and criteria["camera_r2"]["score"] > 0.99
    assert criteria["frozen_middle"]["gain_low"] <= 0 <= criteria["frozen_middle"]["gain_high"]
    assert layers["own"]["direction_flip_time"] == 1 and layers["own"]["direction_accuracy_mean"] < 0.5


def test_features_of_the_starting_position_alone_gain_nothing_over_the_first_frame():
    items, split, _, _, middle, start = scenes()
    c = watch(items, split, still(start), still(start), still(middle))[0]
    assert c["direction_accuracy"]["score"] > c["direction_accuracy"]["floors"]["commonest"] + 0.1
    assert c["direction_accuracy"]["score"] == c["direction_accuracy"]["floors"]["first_frame"]
    assert c["direction_accuracy"]["leak"] is None
    assert gate.judge(c["direction_accuracy"], 0.1)["answer"] != "PASS"  # without this floor it would
    assert gate.judge(watch(items, split, still(start))[0]["direction_accuracy"], 0.1)["answer"] == "PASS"


def test_an_appearance_that_gives_the_direction_away_does_not_flip_and_is_a_leak_by_name():
    items, split, velocity, *_ = scenes()
    colour = code_of(velocity[::2]).repeat_interleave(2, 0)  # the original's way, in both twins
    c = watch(items, split, still(colour), still(colour), still(colour))[0]
    assert c["direction_accuracy"]["score"] > 0.4 and c["direction_flip"]["score"] == 0
    assert c["direction_flip"]["gain_high"] < 0
    assert c["direction_accuracy"]["leak"] == "frozen_middle" and c["frozen_middle"]["gain_low"] > 0
    answer = gate.judge(c["direction_accuracy"], 0.1)
    assert answer["answer"] == "INCONCLUSIVE" and "leak: the control 'frozen_middle'" in answer["reason"]


def test_motion_relative_to_the_background_is_told_from_motion_in_the_picture():
    items, split, velocity, camera, *_ = scenes()
    # on clips whose camera moves
    moves = (velocity, "camera", "background"), (velocity - camera, "background", "camera")
    for moved, own, other in moves:
        found = watch(items, split, code_of(moved)[:, None] * RAMP)[1]["own"]
        assert found[f"{own}_accuracy_time"] == 1 > 0.8 > found[f"{other}_accuracy_time"], found


def test_a_flip_is_an_answer_that_changes_as_the_clip_did():
    items = [
        {"source": str(i // 2), "kind": ("original", "mirrored" if i < 8 else "reversed")[i % 2]}
        for i in range(14)
    ]
    answers = (
        "left right, up-left up-right, up up, down-right down-left, up down, left right, down-left up-right"
    )
    way = torch.tensor(
        [DIRECTIONS.index(d.replace("-", " ")) for pair in answers.split(", ") for d in pair.split(" ")]
    )
    pairs = probe.twin_pairs(items, way, torch.arange(14))
    assert pairs["mirrored"].tolist() == [[0, 1], [2, 3], [6, 7]]  # straight up stays up in a mirror
    assert pairs["reversed"].tolist() == [[8, 9], [10, 11], [12, 13]]
    own, permuted = probe.flips(way, pairs)
    assert own.tolist() == [1] * 6 and permuted.tolist() == [0] * 6
    # the same answer twice, even one that a mirror leaves as it is
    same = torch.full((14,), DIRECTIONS.index("up"))
    assert probe.flips(same, pairs)[0].sum() == 0
    reverse = probe.nearest_way(-probe.unit_ways())
    wrong = way.clone()
    wrong[1], wrong[7] = reverse[way[0]], reverse[way[6]]
    # left to right is both; down right must not become up left in a mirror
    own, _ = probe.flips(wrong, pairs)
    assert "".join(str(int(x)) for x in own) == "110111"
    assert probe.twin_pairs(items, way, torch.tensor([0, 1, 2, 5, 8])) == {}


def test_the_training_mean_has_r2_zero_on_every_clip_and_the_truth_one_on_average():
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    split = dict(zip(("train", "val", "test"), torch.arange(30).split(10), strict=True))
    assert probe.r2_shares(y[:10].mean(0).expand_as(y), y, split).abs().max() == 0
    assert probe.r2_shares(y, y, split)[20:].mean().item() == pytest.approx(1)
    assert probe.r2_shares(-y, y, split)[20:].mean() < 0


@pytest.fixture(scope="module")
def frozen_folders(tmp_path_factory):
    """A small `moving`, as it is and frozen: data and features of the committed default, a point before and one after it has seen time."""
    folder = tmp_path_factory.mktemp("frozen")
    for name, more in (("moving", []), ("first", ["--freeze", "first"]), ("middle", ["--freeze", "middle"])):
        data.main(["moving", "--n", "80", "--out", str(folder / "data" / name), *more])
        model = HERE / "results/tiny/checkpoints/vlm"
        extract.main(
            f"--model {model} --data {folder / 'data' / name} --size 64 --points patch_embed,merger --out {folder / name}".split()
        )
    return folder


@pytest.mark.slow
def test_the_small_default_reads_motion_and_not_one_frame(frozen_folders):
    out = frozen_folders / "probe.yaml"
    moving, middle, first = (frozen_folders / name for name in ("moving", "middle", "first"))
    probe.main(f"--features {moving} --frozen {middle} {first} --out {out}".split())
    found = load_yaml(out, "probe")
    c = found["criteria"]["direction_accuracy"]
    assert c["layer"] == "merger" and c["gain_low"] > 0
    assert {"first_frame", "middle_frame", "frozen_first", "frozen_middle"} < set(c["floors"])
    assert found["leak"] is None and found["frozen_middle"] < found["direction_accuracy_low"]
    assert found["direction_flip"] > found["direction_flip_floor"]
    row = found["layers"]["merger"]
    assert all(
        f"{k}_time" in row
        for k in ("first_frame", "frozen_middle", "speed_r2", "camera_r2", "direction_flip")
    )


@pytest.mark.slow
def test_frozen_features_of_other_clips_or_of_another_network_are_refused(frozen_folders, tmp_path, refused):
    features = f"--features {frozen_folders / 'moving'} --out {tmp_path / 'probe.yaml'} --frozen".split()
    refused(lambda: probe.main([*features, str(frozen_folders / "moving")]), "not frozen")
    ids = load_yaml(frozen_folders / "first" / "index.yaml")["ids"]
    points = {p: torch.randn(80, 3, 2, 2, 4) for p in ("pixels", "patch_embed", "merger")}
    planted = plant(tmp_path / "planted", points, frozen_folders / "data" / "first", ids)
    refused(lambda: probe.main([*features, planted]), "same network")
    assert not (tmp_path / "probe.yaml").exists()


# ---------------------------------------------------------------- bad input: one sentence, exit 2


@pytest.mark.parametrize(
    ("arguments", "points", "index", "words"),
    [
        ((), {"a": noise(1)}, {"ids": [f"other-{i}" for i in range(N)]}, ("other-0",)),
        (("--points", "b"), {"a": noise(1)}, {}, ("'b'",)),
        (("--frozen", "features"), {"a": noise(1)}, {}, ("no direction",)),
        (("--random", "random"), {"a": noise(1)}, {}, ("random",)),
        (("--out", "features/index.yaml/probe.yaml"), {"a": noise(1)}, {}, ("cannot write",)),
        (
            ("--points", "pixels,queries"),
            {"pixels": noise(2), "placed": noise(1), "queries": noise(3)},
            {"gridless": ("queries",)},
            ("queries", "of placed"),
        ),
    ],
)
def test_input_that_cannot_be_probed_is_refused(world, monkeypatch, refused, arguments, points, index, words):
    monkeypatch.chdir(world[0])
    plant(world[0] / "features", points, world[0] / "data", **index)
    # an untrained network of other items
    plant(world[0] / "random", {"a": noise(1)[:-1]}, world[0] / "data", ids=IDS[:-1])
    refused(lambda: probe.main(["--features", "features", *arguments]), *words)
    assert not (world[0] / "probe.yaml").exists()


def test_pooled_features_with_nan_are_refused(clips, refused):
    bad = torch.randn(N, 3, 2, 2, 8)
    bad[3, 0, 1, 1] = float("nan")
    folder = plant(clips[0] / "features", {"bad": bad}, clips[0] / "data")
    refused(lambda: probe.main(["--features", folder]), "non-finite")


def test_a_picture_that_stands_in_two_splits_is_refused_as_a_split_leak(tmp_path, refused):
    boxes = boxes_of()
    frames, train, test = frames_with(boxes), SPLIT["train"][0], TEST[0]
    frames[test], boxes[test] = frames[train], boxes[train]
    write_boxes(tmp_path, frames, boxes)
    folder = plant(tmp_path / "features", {"a": noise(1)}, tmp_path / "data")
    refused(lambda: probe.main(["--features", folder]), "split leak", IDS[test], IDS[train])
