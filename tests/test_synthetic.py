"""Generated images and clips: names, boxes, directions and answers agree with pixels and equations."""

from collections import Counter

import numpy as np
import pytest
import torch

import drawn_trajectories as drawn
import synthetic
from claims import frames_of_spans
from synthetic import DIRECTIONS, OPPOSITE, UNKNOWN, spans_words

COLOURS = {name: torch.tensor(rgb).float() / max(rgb) for name, rgb in synthetic.COLOURS.items()}
FRAMES, SPANS = np.arange(32), ("visible", "present", "hidden")
BACKWARDS = {"enters": "leaves", "leaves": "enters", "appears": "vanishes", "vanishes": "appears"}
WHY = {(1, 1): "stays", (0, 1): "enters", (1, 0): "leaves", (0, 0): "passes"}  # in the first, last frame


@pytest.fixture(scope="module")
def moving():
    return list(synthetic.moving(240, 64, 1))


def extents(mask):
    y, x = torch.nonzero(mask, as_tuple=True)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]


def colour_of(pixels):
    mean = pixels.float().mean(0)
    return min(COLOURS, key=lambda name: (COLOURS[name] - mean / mean.max()).norm())


@pytest.mark.parametrize("source", [synthetic.shapes, synthetic.moving, drawn.trajectories])
def test_an_item_depends_on_its_seed_and_not_on_how_many_are_generated(source):
    few, many, other = (list(source(n, 48, seed)) for n, seed in ((2, 4), (4, 4), (2, 3)))
    for a, b, c in zip(few, many, other, strict=False):
        assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)
        assert not torch.equal(a["frames"], c["frames"])


def test_boxes_masks_colours_captions_and_answers_of_shapes_agree_with_their_names():
    items = list(synthetic.shapes(60, 64, 0))
    assert {len(i["boxes"]) for i in items} == {1, 2, 3, 4}
    for item in items:
        frames, mask, answers = item["frames"], item["mask"], dict(item["turns"])
        assert (
            frames.shape == (1, 64, 64, 3) and mask.max() == len(item["boxes"]) and min(item["visible"]) > 0.5
        )
        assert item["text"] == "a " + " and a ".join(sorted(item["names"])) == item["turns"][0][1]
        for k, (name, label) in enumerate(zip(item["names"], item["labels"], strict=True), 1):
            x1, y1, x2, y2 = box = item["boxes"][k - 1].tolist()
            assert box == extents(mask == k) and name == f"{colour_of(frames[0][mask == k])} {label}"
            row, column = (int((a + b) / 2 / 64 * 3) for a, b in ((y1, y2), (x1, x2)))
            place = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip() or "middle"
            assert answers[f"Where is the {name}?"] == place and label in synthetic.SHAPES
            assert answers[f"What shape is the {name.split()[0]} object?"] == label


def test_the_subject_and_the_background_move_as_an_item_says(moving):
    checked = Counter()
    for item in moving:
        boxes, subject = item["boxes"][:, -1], item["mask"] == len(item["labels"])
        (dx, dy), (a, b) = item["camera"], item["frames"][7:9].float()
        free = (item["mask"][7] == 0) & (item["mask"][8].roll((-dy, -dx), (0, 1)) == 0)
        # what is at (x, y) is at (x + dx, y + dy) a frame later
        difference = (b.roll((-dy, -dx), (0, 1)) - a).abs().sum(-1)
        assert difference[2:-2, 2:-2][free[2:-2, 2:-2]].median() == 0, item["id"]
        inside = ((boxes[:, :2] > 0) & (boxes[:, 2:] < 64)).all(1).nonzero()[:, 0]
        if len(inside) >= 6:
            at = [subject[t].nonzero().float().mean(0).flip(0) for t in (inside[0], inside[-1])]
            step = torch.tensor(DIRECTIONS.get(item["direction"], (0, 0))).float()
            expected = step / step.norm().clamp(min=1) * item["speed"]
            assert ((at[1] - at[0]) / (inside[-1] - inside[0]) - expected).norm() < 0.1, item["id"]
            assert (item["speed"] == 0) == (item["direction"] == "still")
            checked.update([item["action"], "camera"] if any(item["camera"]) else [item["action"]])
    assert {*checked} == {*DIRECTIONS, "still", "camera"} and checked.total() > 160


def test_twins_share_a_source_and_their_answers_are_mirrored_or_reversed(moving):
    clips = [*moving, *synthetic.moving(4, 64, 1, frames=1)]
    for a, b in zip(clips[::2], clips[1::2], strict=True):
        assert a["source"] == b["source"] and a["id"] != b["id"] and a["kind"] == "original"
        x, y = DIRECTIONS.get(a["direction"], (0, 0))
        axis, expected = (2, (-x, y)) if b["kind"] == "mirrored" else (0, (-x, -y))
        assert all(torch.equal(b[k], a[k].flip(axis)) for k in ("frames", "mask"))
        assert DIRECTIONS.get(b["direction"], (0, 0)) == expected and a["speed"] == b["speed"]
        assert b["turns"] == [[f"Which way does the {b['names'][-1]} move?", b["direction"]]]
        for mask, boxes in zip(b["mask"], b["boxes"], strict=True):
            assert boxes.tolist() == [extents(mask == k) for k in range(1, len(boxes) + 1)]
    assert min(sum(i["kind"] == kind for i in moving) for kind in ("mirrored", "reversed")) >= 50


def test_directions_are_balanced_and_the_first_frame_says_little_about_them(moving):
    count = Counter(i["direction"] for i in moving)
    assert max(count[d] for d in DIRECTIONS) <= 3 * min(count[d] for d in DIRECTIONS), count
    boxes = torch.stack([i["boxes"][0, -1] for i in moving])
    x, y = boxes[:, :2] + boxes[:, 2:], np.array([i["direction"] for i in moving])
    names = np.unique(y[:140])  # twins on one side
    centroid = torch.stack([x[:140][y[:140] == name].mean(0) for name in names])
    assert (names[torch.cdist(x[140:], centroid).argmin(1).numpy()] == y[140:]).mean() < 0.4


def test_masks_boxes_spans_and_the_truth_about_objects_follow_from_the_equations(trajectories):
    lengths = []
    for c, k, track in [(i, k, t) for i in trajectories for k, t in enumerate(i["tracks"])]:
        seen, boxes, e = c["mask"] == k + 1, c["boxes"][:, k].numpy(), track["equation"]
        area, at, radius = seen.sum((1, 2)), drawn.position(e, FRAMES), e["radius"]
        visible, present, hidden = (frames_of_spans(track[s]) for s in SPANS)
        assert visible | hidden == present and not visible & hidden and len(track["present"]) == 1
        whole = (synthetic.coverage(c["labels"][k], 48, 24, 24, radius, 0) >= 0.5).sum().item()
        assert all(area[t] > 0 for t in visible) and all(area[t] <= 0.25 * whole + 3 for t in hidden)
        depth = np.minimum(at, 48 - at).min(1) / radius  # of the centre, from the nearest edge
        exists = set(range(e["exists"][0], e["exists"][1] + 1))
        assert exists & {*FRAMES[depth > 0.35]} <= present <= exists & {*FRAMES[depth > -0.35]}
        there = seen.any((1, 2)).numpy()
        assert boxes.tolist() == [extents(x) for x in seen] and set(FRAMES[there]) <= exists
        assert (np.abs(boxes[there].reshape(-1, 2, 2) - at[there][:, None]) <= radius + 1).all()
        assert track["persistent"] == (len(present) == 32) == (track["why"] == "stays")
        why = WHY if e["exists"] == [0, 31] else {(0, 1): "appears", (1, 0): "vanishes"}
        assert track["why"] == why[0 in present, 31 in present]
        path, direction = at[sorted(present)], track["direction"]
        gone = path[-1] - path[0]
        assert track["speed"] == pytest.approx(np.hypot(*np.diff(path, axis=0).T).mean())
        assert track["curvature"] * np.hypot(*e["velocity"]) == pytest.approx(e["turn"])
        assert (np.hypot(*gone) < 2) == (direction == "still")
        if direction != "still":
            cosines = {d: gone @ v / np.hypot(*gone) / np.hypot(*v) for d, v in DIRECTIONS.items()}
            assert cosines[direction] == max(cosines.values()) > np.cos(np.radians(22.6))
        lengths.append([len(visible), track["persistent"]])
    lengths, persistent = np.array(lengths).T  # the first does not decide the second
    accuracies = [((lengths >= least) == persistent).mean() for least in range(34)]
    assert max(*accuracies, 1 - min(accuracies)) < 0.85


def test_an_equation_by_hand():
    line = {"position": [1.0, 2.0], "velocity": [2.0, 0.0], "acceleration": [0.0, 1.0], "turn": 0.0}
    assert drawn.position(line, [0, 2]).tolist() == [[1, 2], [5, 4]]
    arc, r = line | {"acceleration": [0.0, 0.0], "turn": np.pi / 8}, 16 / np.pi  # a quarter circle in 4
    expected = np.array([[1 + r, 2 + r], [1, 2 + 2 * r], [1, 2]])
    assert drawn.position(arc, [4, 8, 16]) == pytest.approx(expected)


def test_answers_are_true_and_topics_say_what_the_questions_are_about(trajectories):
    for c in trajectories:
        tracks = {t["object"]: t for t in c["tracks"]}
        for (question, answer), (kind, name) in zip(c["turns"], c["topics"], strict=True):
            assert name in question and (name in tracks) == (kind not in ("absent", "count"))
            truth = {"absent": f"there is no {c['absent']}", "count": str(len(tracks)), "unknown": UNKNOWN}
            if track := tracks.get(name):
                visible, present, hidden = (spans_words(track[k]) for k in SPANS)
                backwards = "backwards" in question or "reversed" in question
                truth["persistence"] = "persistent" if track["persistent"] else "transient"
                truth |= {"frames": visible, "direction": track["direction"]}
                truth["hidden"] = hidden if track["hidden"] else "it is never hidden"
                truth["whatif"] = OPPOSITE[track["direction"]] if backwards else present
            assert answer == truth[kind]
    kinds = {kind for c in trajectories for kind, _ in c["topics"]}
    assert kinds == {*synthetic.QUESTIONS, "absent", "whatif"} - {"backwards", "uncovered"}


def changed(clips, **how):
    """(clip, the same clip changed) of each of the first 24 that there are; their ids agree."""
    new = {c["id"]: c for c in drawn.trajectories(24, 48, 21, **how)}
    return [(c, new.pop(c["id"])) for c in clips[:24] if c["id"] in new]


def test_changed_clips_are_the_same_but_for_the_change_with_the_truth_about_that(trajectories):
    assert sum(len(changed(trajectories, only=part)) for part in ("train", "val", "test")) == 24
    assert len(reversed_clips := changed(trajectories, change="reversed")) == 24
    for c, r in reversed_clips:
        assert all(torch.equal(r[k], c[k].flip(0)) for k in ("frames", "mask", "boxes"))
        assert all(r[k] == c[k] for k in ("names", "source", "absent", "topics"))
        for a, b in zip(c["tracks"], r["tracks"], strict=True):
            assert (b["persistent"], b["why"]) == (a["persistent"], BACKWARDS.get(a["why"], a["why"]))
            assert all(b[k] == [[31 - t for t in span[::-1]] for span in a[k][::-1]] for k in SPANS)
            there, back = (drawn.position(x["equation"], FRAMES) for x in (a, b))
            assert b["equation"]["exists"] == [31 - t for t in a["equation"]["exists"][::-1]]
            assert back[::-1] == pytest.approx(there, abs=1e-6) and b["direction"] == OPPOSITE[a["direction"]]
    for c, d in changed(trajectories, change="deleted"):  # nothing else changes but what the first object hid
        n, gone = c["count"], c["mask"] == 1
        assert [d["removed"], *d["names"]] == c["names"] and d["count"] == n - 1
        assert all(torch.equal((c["mask"] == k + 1)[~gone], (d["mask"] == k)[~gone]) for k in range(1, n))
        for a, b in zip(c["tracks"][1:], d["tracks"], strict=True):
            assert all(a[k] == b[k] for k in ("persistent", "why", "present", "direction", "equation"))
            assert frames_of_spans(b["visible"]) >= frames_of_spans(a["visible"])
    swapped = changed(trajectories, change="swapped")  # the second object takes the path of the first
    assert [c["id"] for c, _ in swapped] == [c["id"] for c in trajectories[:24] if c["count"] > 1]
    for c, s in swapped:
        assert s["names"] == [c["names"][1], c["names"][0], *c["names"][2:]]
        assert [t["equation"] for t in s["tracks"]] == [t["equation"] for t in c["tracks"]]
        assert all(colour_of(s["frames"][s["mask"] == k + 1]) == s["names"][k].split()[0] for k in (0, 1))
