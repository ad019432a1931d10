"""Tracks of objects: scores of planted tracks, checks of the file, the tracker, its training, its weights."""

import functools
import math
from types import SimpleNamespace

import pytest
import torch
from helpers import generator, holds, planted_tracks

import data
import extract
import models
import synthetic
import tiny
import track
from common import ANSWERS, TRACKS, load_items, load_pt, load_yaml, plain, split_of
from tracker import follow, load_tracker


@pytest.fixture
def scored(trajectories, trajectories_folder, tmp_path):
    """call(functions or changes of `planted_tracks`): what track.py finds about these tracks."""
    path, out = tmp_path / "tracks.pt", tmp_path / "tracks.yaml"

    def call(*functions, items=trajectories, **changed):
        planted_tracks(path, items, *functions, **changed)
        result = track.main(f"--embeddings {path} --data {trajectories_folder} --out {out}".split())
        assert load_yaml(out, "track")["frame_f1"] == plain(result["frame_f1"])
        return result

    return call


def test_cuts_thresholds_and_replaced_frames():
    x, late = torch.tensor([1.0, 2, 3, 4]), torch.tensor([False, False, True, True])
    assert track.best_cut(x, late) == (3, 1) and track.best_cut(x, ~late) == (2, -1)
    assert 0.3 <= track.best_threshold_of(torch.tensor([[0.9, 0.42, 0.3, 0.1]]), ~late[None]) < 0.42
    clip = torch.tensor([0, 10, 20, 30, 240], dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    assert track.without_frames(clip, [3, 4], "mean")[:, 0, 0, 0].tolist() == [0, 10, 20, 60, 60]
    assert track.without_frames(clip, [0, 3, 4], "neighbours")[:, 0, 0, 0].tolist() == [10, 10, 20, 20, 20]


def test_baselines_of_persistence_are_fitted_on_train_and_val():
    durations = torch.tensor([1.0, 2, 3, 4])
    persistent = {"train": [1, 1, 1, 0], "val": [0, 0, 1, 1], "test": [1, 0, 0, 0]}
    persistent = {s: torch.tensor(x).bool() for s, x in persistent.items()}
    visible = dict.fromkeys(persistent, torch.arange(32) < durations[:, None])
    found = track.persistence_baselines(visible, visible, dict.fromkeys(persistent, durations), persistent)
    assert found["majority"].tolist() == [1, 0, 0, 0] and found["ends"].tolist() == [0, 1, 1, 1]
    for name in ("duration", "true_duration", "energy"):
        assert found[name].tolist() == [0, 1, 0, 0], name


def test_the_truth_scores_one_and_beats_every_baseline(scored, trajectories):
    found = scored()
    holds(found, "persistence_accuracy == 1, frame_f1 == 1, frame_f1_macro == 1, boundary_error == 0")
    holds(found, "segmental_f1_50 == 1, absent_seen == 0, over_copy_low > 0, copy_frames == 2")
    holds(found, "persistence_accuracy_gain_low > 0, frame_f1_gain_low > 0, frame_f1_copy < 1")
    holds(found, "persistence_duration == persistence_true_duration, persistence_duration < 0.9")
    test = [i for i in trajectories if split_of(i["source"]) == "test"]
    assert found["clips"] == len(test) and found["objects"] == sum(i["count"] for i in test)


def test_planted_scores_are_found_and_the_truth_of_other_clips_beats_no_baseline(scored, trajectories):
    tracks = [t for i in trajectories for t in i["tracks"]]
    other = iter(tracks[k] for k in torch.randint(len(tracks), (999,), generator=generator()))
    constant = scored(lambda *_: torch.full((32,), 0.7), lambda *_: 0.7)
    holds(constant, "frame_f1 == frame_f1_always, frame_f1_gain == 0, persistence_accuracy_gain_low <= 0")
    holds(constant, "absent_seen == 1, boundary_error == 32, segmental_f1_50 < 0.8")
    scaled = scored(lambda item, name, visible: 0.1 + 0.15 * visible)
    holds(scaled, "frame_f1 == 1, threshold >= 0.1, threshold < 0.25")  # chosen on val
    late = scored(lambda item, name, visible: torch.cat([visible[:1].expand(2), visible[:-2]]))
    holds(late, "frame_f1 == frame_f1_copy, over_copy == 0, frame_f1_copy > 0.85, frame_f1 < 1")
    null = scored(lambda *_: track.frames_of_track(next(other)).float(), lambda *_: next(other)["persistent"])
    holds(null, "persistence_accuracy_gain_low <= 0, frame_f1_gain_low <= 0, over_copy_high < 0")

    def by_colour(item, name, visible):
        there = any(n.split()[0] == name.split()[0] for n in item["names"])
        return torch.full((32,), float(there)) if name == item["absent"] else visible

    colour = scored(by_colour)
    holds(colour, "absent_seen_colour_there == 1, absent_seen_colour_not_there == 0, absent_seen < 1")


def test_a_file_that_breaks_the_contract_is_refused(scored, trajectories, tmp_path, refused):
    n = sum(i["count"] + 1 for i in trajectories)
    broken = {f"embedding is [{n}, 64] where [{n}, 512]": {"embedding": torch.zeros(n, 64)}}
    broken["persistence holds 1 non-finite"] = {"persistence": torch.tensor([math.nan] + [0.5] * (n - 1))}
    broken["sums to 16"] = {"attention": torch.full((n, 32), 0.5)}
    broken["has schema 'foresight.answers.v1'"] = {"schema": ANSWERS}
    broken["holds 'nobody/red circle'"] = {"ids": ["nobody/red circle"] * n}
    broken["lacks"], broken["more than once"] = {"items": trajectories[:-1]}, {"items": trajectories[:1] * 2}
    for message, change in broken.items():
        refused(functools.partial(scored, **change), message)
    assert not (tmp_path / "tracks.yaml").exists()


def test_objects_are_followed_independently_and_attention_sums_to_one(trajectories):
    tracker = load_tracker(models.find_model("tiny-tracker"), "cpu")
    frames = torch.stack([i["frames"] for i in trajectories[:3]])
    both = follow(tracker, frames, [["red circle", "blue star"]] * 3, "cpu")
    alone = follow(tracker, frames, [["blue star"]] * 3, "cpu")
    for key, x in alone.items():
        assert both[key].shape[:2] == (3, 2) and torch.allclose(both[key][:, 1:], x, atol=1e-4)
    assert torch.allclose(both["attention"].sum(-1), torch.ones(3, 2))
    assert not torch.allclose(both["embedding"][:, 0], both["embedding"][:, 1])


def test_the_committed_tracker_tracks_fresh_clips_and_writes_the_same_file_twice(tmp_path, monkeypatch):
    gain = dict.fromkeys(("persistence", "scores"), {"gain": 2, "gain_low": 1, "gain_high": 3})
    monkeypatch.setattr(track, "faithfulness", lambda *_: {"mean": gain, "neighbours": gain})
    data.main(f"trajectories --n 40 --seed 77 --out {tmp_path}/data".split())
    a, b = tmp_path / "a/tracks.pt", tmp_path / "b/tracks.pt"
    for path in (a, b):
        found = track.main(f"--model tiny-tracker --data {tmp_path}/data --out {path}".split())
    content = load_pt(a, TRACKS)
    assert a.read_bytes() == b.read_bytes() and content["scores"].dtype == torch.float16
    assert content["meta"]["threshold"] == found["threshold"]
    holds(found, "persistence_accuracy > 0.88, frame_f1 > 0.93, attention_mean_scores_low == 1")


def test_clips_of_the_test_split_alone_are_tracked_with_the_removed_object(tmp_path):
    folder, out = tmp_path / "deleted", tmp_path / "tracks.pt"
    data.main(f"trajectories --n 12 --seed 21 --change deleted --only test --out {folder}".split())
    assert "unscored" in track.main(f"--model tiny-tracker --data {folder} --out {out}".split())
    removed = {f"{i['id']}/{i['removed']}" for i in load_items(folder)[0]}
    assert removed <= set(load_pt(out, TRACKS)["ids"])


def test_other_kinds_of_model_or_data_are_refused(moving_folder, tmp_path, refused):
    argv = ["--data", str(moving_folder), "--out", str(tmp_path / "x.pt")]
    refused(lambda: track.main([*argv, "--model", "tiny"]), "give tiny-tracker")
    refused(lambda: track.main([*argv, "--model", "tiny-tracker"]), "data.py trajectories wrote")
    refused(lambda: extract.main(["--model", "tiny-tracker"]), "is a tracker, which track.py runs")


def follow_brightness(at, model, frames, names, device):
    """Scores are the brightness of each frame, persistence that of frame 5; attention is on frame `at`."""
    bright = frames.float().mean((2, 3, 4))[:, None] / 25
    attention = torch.full_like(bright, 0.001)
    attention[:, :, at] = 1 - 0.031
    return {"scores": bright, "attention": attention, "persistence": bright[:, :, 5]}


@pytest.mark.parametrize("at, persistence", [(5, "gain_low > 0"), (20, "gain_high < 0")])
def test_attention_is_faithful_only_where_the_output_depends_on_its_frames(monkeypatch, at, persistence):
    frames = torch.randint(0, 40, (40, 32, 1, 1, 1), generator=generator()).expand(-1, -1, 48, 48, 3).byte()
    items = [{"source": f"s{k}", "names": ["red circle"], "frames": x} for k, x in enumerate(frames)]
    monkeypatch.setattr(track, "follow", functools.partial(follow_brightness, at))
    found = track.faithfulness(SimpleNamespace(config={"image_size": 48}), items, "cpu", 0)
    for how in ("mean", "neighbours"):
        holds(found[how]["persistence"], persistence)
        holds(found[how]["scores"], "gain == 0")


def test_the_training_truth_is_that_of_the_clips(trajectories):
    items, colours, shapes = trajectories[:8], list(synthetic.COLOURS), list(synthetic.SHAPES)
    truth = tiny.tracks_truth(items, 0)
    for k, item in enumerate(items):
        n, of = item["count"], {key: x[k] for key, x in truth.items()}
        assert of["there"].tolist() == [j < n for j in range(4)] and not of["spans"][n:].any()
        assert of["persistent"].tolist() == [t["persistent"] for t in item["tracks"]] + [False] * (4 - n)
        names = [f"{colours[c]} {shapes[s]}" for c, s in zip(of["colours"], of["shapes"], strict=True)]
        assert names[:n] == item["names"] and not set(names[n:]) & set(item["names"])
        for j, true in enumerate(item["tracks"]):
            assert torch.equal(of["spans"][j, 0] > 0, track.frames_of_track(true))
            assert tiny.COMPASS[of["direction"][j]] == true["direction"]
            box, first = item["boxes"][true["visible"][0][0], j], true["visible"][0][0]
            assert torch.allclose(of["centres"][j, first], (box[:2] + box[2:]) / 48 - 1)


def test_directions_turn_with_a_mirrored_or_reversed_clip():
    cases = [(0, 0, 1, "up right", "up left"), (0, 1, 0, "up right", "down right"), (1, 0, 1, "left", "left")]
    for *flips, word, expected in [*cases, (1, 0, 0, "up right", "down left"), (1, 1, 1, "still", "still")]:
        index = tiny.mirrored_directions(*map(bool, flips))[tiny.COMPASS.index(word)]
        assert tiny.COMPASS[index] == expected, (flips, word)
