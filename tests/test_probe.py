"""Probes on planted features whose content is known: null first."""

import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from helpers import generator, plant_features, write_squares
from torch.nn.functional import avg_pool2d, interpolate, one_hot

import align
import gate
import probe
import stats
from common import RESULT, load_pt, load_yaml, save_pt, save_yaml, split_of, write_items
from metrics import MASK, box_iou, box_truth, edges, mask_scores, match_edges, to_cells

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
DIRECTIONS = list(probe.DIRECTIONS)


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
    for name, most in (("bbox_iou", 0), ("spatial_iou", 0), ("map50", 0.02), ("edge_probe_f1", 0)):
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
def test_a_layer_of_1_gb_is_read_in_600_mb_of_memory(planted):
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


def test_strata_are_cut_at_terciles_of_the_training_items_and_need_five_test_items():
    largest = torch.tensor([[0, 0, 4, 4], [0, 0, 20, 20], [0, 0, 30, 30], [20, 20, 30, 30]]) / 32
    groups = probe.strata(largest, torch.tensor([0, 2, 3]))
    found = {k.removeprefix("size "): v.nonzero().flatten().tolist() for k, v in groups.items()}
    assert found == {"small": [0], "medium": [3], "large": [1, 2]}
    test, member = torch.arange(20, 40), {"even": torch.arange(40) % 2 == 0, "some": torch.arange(40) < 24}
    score, baseline = {"iou": (test % 2 == 0).float()}, {"iou": torch.full((20,), 0.25)}
    found = probe.by_stratum(member, score, baseline, test, [str(i) for i in range(20)], 0)
    assert found["even"] == {"n": 10, "iou": 1.0, "iou_low": 1.0, "iou_high": 1.0, "iou_baseline": 0.25}
    assert found["some"] == {"n": 4}


def test_position_alone_shuffled_labels_and_another_items_features_are_no_better_than_the_constant_box():
    position = torch.randn(1, 1, 4, 4, 8, generator=generator()) + 1e-3 * noise(5, 8)
    assert probe.probe_boxes(position, BOXES, SPLIT)[0][TEST].mean() < CONSTANT + 0.03
    found = probe.probe_boxes(ORACLE, BOXES, SPLIT)
    assert found[0][TEST].mean() > 0.95 and found[1][:, TEST].mean() < CONSTANT + 0.05
    record = probe.box_criterion({"oracle": found}, BOXES, SPLIT, SOURCES)
    assert record["baselines"]["shuffled_images"] < CONSTANT + 0.05 < 0.9 < record["score"]
    assert record["baselines"]["constant"] == pytest.approx(CONSTANT)


def test_the_layer_is_chosen_on_val_alone():
    on_val = torch.tensor([split_of(i) == "val" for i in IDS])[:, None, None, None, None]
    cheat, honest = torch.where(on_val, noise(4, 4), ORACLE), ORACLE + 0.3 * noise(6, 4)
    found = {k: probe.probe_boxes(x, BOXES, SPLIT) for k, x in (("cheat", cheat), ("honest", honest))}
    assert probe.box_criterion(found, BOXES, SPLIT, SOURCES)["layer"] == "honest"


def test_shuffled_masks_with_the_true_threshold_are_not_called_a_leak():
    masks, wrong, scores = interpolate(MASKS, (MASK, MASK))[:, 0], torch.arange(N), []
    wrong[SPLIT["train"]] = SPLIT["train"].roll(1)
    for given in (masks, masks[wrong]):
        soft = probe.probe_cells(CELLS[:, 0], {"mask": given[:, None]}, SPLIT)["mask"][:, 0]
        scores.append(mask_scores(soft, masks >= 0.5, SPLIT))
    found = probe.mask_criterion({"x": scores[0]}, scores[1], masks, 4, SPLIT, SOURCES)
    baselines = found["baselines"]
    assert found["leak"] is None and gate.evaluate(found, 0.6)["answer"] == "PASS"
    assert baselines["shuffled"] > max(baselines["position_only"], baselines["all_foreground"]) + 0.1


def test_edges_are_read_where_they_are_thinned_and_never_from_noise():
    outlines = edges(FRAMES[:, 0])
    maps = {"edge": outlines[:, None].float()}
    cells = noise(1)[:, 0], to_cells(maps["edge"], 4, 4).unflatten(1, (4, 4))
    soft = [probe.probe_cells(x, maps, SPLIT)["edge"][:, 0] for x in cells]
    soft.append(maps["edge"][SPLIT["train"]].mean(0).expand(N, -1, -1))
    soft.append(avg_pool2d(maps["edge"], 3, 1, 1)[:, 0])
    scores = torch.stack([probe.edge_scores(x, outlines, SPLIT, ["test"]) for x in soft])
    assert scores[:, SPLIT["train"]].isnan().all()
    null, read, blind = scores[:3, TEST].mean(1).tolist()
    assert null < blind + 0.03 and blind < 0.6 and read > 0.9  # thinning loses corners
    assert scores[3, TEST].mean() > 0.85 and match_edges(soft[3] > 0, outlines).mean() < 0.6


def test_the_class_constant_is_the_median_box_of_the_label():
    named = [("cat", 20), ("cup", 0)] * 10 + [("dog", 0)]  # no dog to train on
    items = [{"boxes": torch.tensor([[x, x, x + 9.0, x + 9]]), "labels": [n]} for n, x in named]
    largest, _, _ = box_truth([i | {"width": 32, "height": 32} for i in items])
    found = probe.class_constant(items, largest, torch.arange(12))
    assert torch.equal(found, torch.cat([largest[:20], largest[:12].median(0).values[None]]))


def test_an_mlp_reads_planted_boxes_that_are_not_linear_and_nothing_from_noise():
    boxes, (train, val, test) = boxes_of(n=240) / 32, torch.arange(240).split([144, 48, 48])
    split = {"train": train, "val": val, "test": test}
    constant = box_iou(boxes[train].median(0).values, boxes[test]).mean().item()
    found, _ = probe.train_mlp(torch.randn(1, 240, 64, generator=generator(3)), boxes, split, seeds=2)
    assert box_iou(found[0][:, test], boxes[test]).mean() < constant + 0.03
    x = torch.randn(240, 2, generator=generator(5))  # the sign of a product: one of two places
    boxes = torch.tensor([[0.6, 0.6, 1, 1], [0.0, 0, 0.4, 0.4]])[(x.prod(1) > 0).long()]
    linear = stats.ridge(x, {"y": boxes}, train)["y"].clamp(0, 1)
    found, parameters = probe.train_mlp(x[None], boxes, split, seeds=2)
    assert box_iou(linear, boxes)[test].mean() < 0.2 < 0.55 < box_iou(found[0], boxes)[:, test].mean()
    assert parameters == 2 * 64 + 64 + 64 * 4 + 4


def test_layers_and_seeds_trained_together_equal_those_trained_alone_and_stop_early():
    x = torch.randn(3, N, 6, generator=generator(7))
    together, _ = probe.train_mlp(x, BOXES, SPLIT, seeds=2, steps=40)
    for k in range(3):
        for seed in range(2):
            alone = probe.train_mlp(x[k : k + 1], BOXES, SPLIT, seeds=2, steps=40, only=seed)[0][0, 0]
            torch.testing.assert_close(together[k, seed], alone, atol=2e-3, rtol=0)
    weights, goal = {"w": torch.zeros(2, 1)}, torch.tensor([1.0, -1.0])  # of train; that of val is the start
    split = {"train": torch.arange(10), "val": torch.arange(10, 20)}

    def loss_of(items):
        return (weights["w"][:, 0] - goal * (items < 10).all()).square()

    probe.fit(weights, loss_of, split, 200, 1e-2, 5, generator())
    assert 0 < weights["w"].abs().max() < 0.3


def test_principal_components_hold_what_a_ridge_reads_and_tokens_have_one_size():
    x = torch.randn(N, 30, generator=generator(1)) @ torch.randn(30, 400, generator=generator(2))
    train, y = SPLIT["train"], x[:, :3].contiguous()
    parts = probe.components(*stats.spectrum(stats.gram(x, train)[None], train), most=40)[0]
    assert parts.shape == (N, 40) and parts.square().mean() == pytest.approx(1, rel=1e-4)
    found = [stats.ridge(z, {"y": y}, train)["y"] for z in (parts, x)]
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)
    x = torch.randn(40, 12, 12, 300, generator=generator(1))
    tokens, grid = probe.token_components(x, torch.arange(30))
    assert tokens.shape == (40, 36, probe.TOKEN) and grid == (6, 6) and tokens.isfinite().all()
    assert probe.token_components(x[:, :2, :3, :8], torch.arange(30))[1] == (2, 3)


def test_direction_is_read_where_it_is_planted_and_frozen_features_are_joined_by_id(tmp_path, refused):
    folder, truth = tmp_path, torch.randint(8, (N,), generator=generator())
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


def scenes(n=400, seed=0):
    """Twin clips without frames: items, split, and velocity, camera, middle, start [n, 2]."""
    g, items = generator(seed), []
    velocity, camera = torch.zeros(2, n, 2)
    middle = torch.rand(n // 2, 2, generator=g).mul(26).sub(13).repeat_interleave(2, 0)  # from the centre
    for i in range(0, n, 2):
        k, speed = int(torch.randint(8, (1,), generator=g)), 0.6 + 0.8 * torch.rand(1, generator=g).item()
        kind = "mirrored" if i % 4 else "reversed"
        flip = torch.tensor(probe.FLIPS[kind])
        velocity[i] = probe.unit_directions()[k] * speed
        camera[i] = torch.randint(-1, 2, (2,), generator=g) if i % 6 == 0 else 0
        velocity[i + 1], camera[i + 1] = velocity[i] * flip, camera[i] * flip
        middle[i + 1] = middle[i] * (flip if kind == "mirrored" else 1)
        for j, name in ((i, "original"), (i + 1, kind)):
            item = {"id": f"clip-{j}", "source": f"scene-{i}", "kind": name, "speed": speed}
            item["direction"] = DIRECTIONS[probe.nearest_direction(velocity[j : j + 1])]
            items.append(item | {"camera": camera[j].int().tolist()})
    return items, parts_of([i["source"] for i in items]), velocity, camera, middle, middle - 8 * velocity


def watch(items, split, x, first=None, middle=None, random=None):
    """probe.motion on features [n, 3, D] of one point, and of the same clips frozen; [n, D]: no change."""
    pooled = []
    for z in (x, random, first, middle):
        z = z[:, None].expand(-1, 3, -1) if z is not None and z.ndim == 2 else z
        pooled.append(z if z is None else {"x": {"mean": z, "max": z}})
    frozen = {k: z for k, z in zip(("first", "middle"), pooled[2:], strict=True) if z}
    return probe.motion(Namespace(seed=0), items, split, *pooled[:2], ["x"], frozen)


def code_of(velocity):
    """[n, 2] -> [n, 8]: the nearest direction for a linear probe."""
    return one_hot(probe.nearest_direction(velocity).clamp(min=0), 8).float()


def test_noise_has_no_direction_no_flip_and_no_leak_and_the_training_mean_an_r2_of_0():
    items, split, *_ = scenes()
    x = torch.randn(4, len(items), 3, 8, generator=generator())
    criteria, layers, *_ = watch(items, split, *x)
    assert len(criteria) == 6  # direction, flips, speed, camera and both frozen frames
    for name, c in criteria.items():
        most = 0.1 if "r2" in name else 0.3
        assert c["gain_low"] <= 0 and c["leak"] is None and c["score"] < most, (name, c)
    assert min(v for k, v in layers["x"].items() if k.endswith("p_holm")) > 0.05
    y = torch.randn(len(items), 2, generator=generator())
    assert probe.r2_shares(y[split["train"]].mean(0).expand_as(y), y, split).abs().max() == 0


def test_an_oracle_of_velocity_passes_flips_and_is_at_chance_on_frozen_clips():
    items, split, velocity, camera, middle, start = scenes()
    motion = torch.cat([code_of(velocity), velocity.norm(dim=1, keepdim=True), camera], 1)[:, None] * RAMP
    nothing = torch.zeros_like(motion)
    views = ((start, motion), (start, nothing), (middle, nothing))
    views = (torch.cat([place[:, None].expand(-1, 3, -1), x], -1) for place, x in views)
    criteria, layers, _ = watch(items, split, *views)
    c = criteria["direction_accuracy"]
    assert c["score"] == 1 and c["leak"] is None and gate.evaluate(c, 0.8)["answer"] == "PASS"
    assert c["baselines"]["first_frame"] > c["baselines"]["majority"] + 0.1  # the start predicts it
    flip = criteria["direction_flip"]
    assert flip["score"] == 1 and flip["baselines"]["permuted"] < 0.3
    assert criteria["speed_r2"]["score"] > 0.99 and criteria["camera_r2"]["score"] > 0.99
    assert criteria["frozen_middle"]["gain_low"] <= 0 <= criteria["frozen_middle"]["gain_high"]
    assert layers["x"]["direction_flip_time"] == 1 and layers["x"]["direction_accuracy_mean"] < 0.5
    for moved, name in ((velocity, "camera"), (velocity - camera, "background")):
        row = watch(items, split, code_of(moved)[:, None] * RAMP)[1]["x"]  # on clips with a moving camera
        found = {k: row[f"{k}_accuracy_time"] for k in ("camera", "background")}
        assert found.pop(name) == 1 and max(found.values()) < 0.8, found


def test_the_start_gains_nothing_over_the_first_frame_and_a_telling_appearance_is_a_leak():
    items, split, velocity, _, middle, start = scenes()
    c = watch(items, split, start, start, middle)[0]["direction_accuracy"]
    assert c["score"] > c["baselines"]["majority"] + 0.1 and c["score"] == c["baselines"]["first_frame"]
    assert c["leak"] is None and gate.evaluate(c, 0.1)["answer"] != "PASS"
    assert gate.evaluate(watch(items, split, start)[0]["direction_accuracy"], 0.1)["answer"] == "PASS"
    colour = code_of(velocity[::2]).repeat_interleave(2, 0)  # the original's direction, in both twins
    c = watch(items, split, colour, colour, colour)[0]
    assert c["direction_accuracy"]["score"] > 0.4 and c["direction_flip"]["score"] == 0
    assert c["direction_flip"]["gain_high"] < 0 < c["frozen_middle"]["gain_low"]
    assert c["direction_accuracy"]["leak"] == "frozen_middle"


def test_a_flip_is_an_answer_that_changes_as_the_clip_did():
    kinds = ["mirrored"] * 4 + ["reversed"] * 3
    items = [{"source": str(i // 2), "kind": ("original", kinds[i // 2])[i % 2]} for i in range(14)]
    names = "left right/up left,up right/up up/down right,down left/up down/left right/down left,up right"
    pairs = [p.split(",") if "," in p else p.split() for p in names.split("/")]
    true = torch.tensor([DIRECTIONS.index(d) for pair in pairs for d in pair])
    pairs = probe.twin_pairs(items, true, torch.arange(14))
    assert pairs["mirrored"].tolist() == [[0, 1], [2, 3], [6, 7]]  # straight up stays up in a mirror
    assert pairs["reversed"].tolist() == [[8, 9], [10, 11], [12, 13]]
    paired, permuted = probe.flips(true, pairs)
    assert paired.tolist() == [1] * 6 and permuted.tolist() == [0] * 6
    assert probe.flips(torch.full((14,), DIRECTIONS.index("up")), pairs)[0].sum() == 0  # unchanged answers
    wrong = true.clone()
    reverse = probe.nearest_direction(-probe.unit_directions())
    wrong[7] = reverse[true[6]]  # down right must not become up left in a mirror
    assert probe.flips(wrong, pairs)[0].tolist() == [1, 1, 0, 1, 1, 1]
    assert probe.twin_pairs(items, true, torch.tensor([0, 1, 2, 5, 8])) == {}


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


@pytest.mark.parametrize("flags", WRONG)
def test_input_that_cannot_be_probed_is_refused(planted, monkeypatch, refused, flags):
    more, words = WRONG[flags]
    monkeypatch.chdir(planted)
    points = {name: noise(k) for k, name in enumerate(("pixels", "grid", "queries"))}
    plant_features("features", **{"ids": IDS, "points": points, "data_path": planted / "data"} | more)
    plant_features("random", IDS[:-1], {name: x[:-1] for name, x in points.items()}, planted / "data")
    refused(lambda: probe.main(["--features", "features", *flags.split()]), *words)
    assert not (planted / "probe.yaml").exists()
