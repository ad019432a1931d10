"""What a vision model sees of moving objects: its file is checked, its scores are those of worlds whose answer is known, and the tracker that is committed does its job."""
import math

import pytest
import torch

import common
import data
import explain
import extract
import tiny

CONFIG = {"colours": list(data.COLOURS), "shapes": list(data.SHAPES), "frames": 32, "image_size": 48, "widths": [16, 32], "layers": [1, 1], "embedding": 512}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "trajectories"
    data.main(["trajectories", "--n", "70", "--seed", "21", "--out", str(folder)])
    return folder, common.load_items(folder)[0]


def planted(path, items, sees=None, believes=None, **changed):
    """A file of the contract: what is not given is the truth. sees, believes: functions of (item, name, truth) that return its scores and its persistence."""
    ids, rows = [], []
    for item in items:
        for k, name in enumerate([*item["names"], item["absent"]]):
            track = item["tracks"][k] if k < len(item["names"]) else None
            seen = explain.frames_of_track(track).float() if track else torch.zeros(32)
            ids.append(f"{item['id']}/{name}")
            rows.append((sees(item, name, seen) if sees else seen, believes(item, name, track) if believes else float(bool(track and track["persistent"]))))
    content = {"embedding": torch.zeros(len(ids), 512).half(), "scores": torch.stack([s for s, _ in rows]).half(), "attention": torch.full((len(ids), 32), 1 / 32).half(),
               "persistence": torch.tensor([p for _, p in rows]).half()}
    common.save_pt(path, changed.pop("schema", common.TRACKS), changed.pop("ids", ids), {"model": "planted", "weights": "random", "data": "synthetic", "data_path": "x", "threshold": 0.5},
                   **content | changed)
    return path


def scored(path, folder):
    result = explain.main(["--mode", "tracks", "--embeddings", str(path), "--data", str(folder), "--out", str(path.with_suffix(".yaml"))])
    assert common.load_yaml(path.with_suffix(".yaml"), "tracks")["frame_f1"] == common.plain(result["frame_f1"])
    return result


# ---------------------------------------------------------------- scores by hand

def test_segments_by_hand():
    assert explain.segments([0, 0, 1, 1, 1, 0]) == [(0, 0, 1), (1, 2, 4), (0, 5, 5)] and explain.segments([2]) == [(2, 0, 0)]


def test_segmental_f1_counts_a_true_segment_once_and_forgives_small_shifts():
    truth = [0, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert explain.segmental_f1(truth, truth, 0.5) == 1
    shifted = [0, 0, 1, 1, 1, 1, 0, 1, 1, 0]  # 3 of 5 frames of the first, both of the second
    assert explain.segmental_f1(truth, shifted, 0.5) == 1 and explain.segmental_f1(truth, shifted, 0.7) == 0.5
    assert explain.segmental_f1(truth, [0, 1, 1, 0, 1, 0, 0, 1, 1, 0], 0.25) == 2 * 2 / (2 + 3)  # the second half of the first is one too many
    assert explain.segmental_f1(truth, [0] * 10, 0.1) == 0 and explain.segmental_f1(truth, [2 * x for x in truth], 0.1) == 0  # other labels
    assert explain.segmental_f1(truth, [1] * 10, 0.25) == 2 / 3 and explain.segmental_f1(truth, [1] * 10, 0.5) == 0


def test_edit_score_sees_the_order_and_not_the_length():
    assert explain.edit_score([0, 1, 1, 0], [0, 0, 0, 1, 0]) == 1
    assert explain.edit_score([0, 1, 0, 1], [0, 1]) == 0.5 and explain.edit_score([1, 1], [0, 0]) == 0 and explain.edit_score([0, 1, 2], [0, 2]) == pytest.approx(2 / 3)


def test_boundary_error_is_in_frames_and_of_changes_to_the_same_label():
    assert explain.boundary_error([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]) == 1
    assert explain.boundary_error([0, 0, 1, 1], [0, 0, 0, 0]) == 4 and explain.boundary_error([0, 0, 1, 1], [1, 1, 0, 0]) == 4  # a change the other way is none
    assert math.isnan(explain.boundary_error([1, 1], [0, 1]))


def test_cuts_and_thresholds_are_those_that_are_right_most_often():
    assert explain.best_cut(torch.tensor([1.0, 2, 3, 4]), torch.tensor([False, False, True, True])) == (3, 1)
    assert explain.best_cut(torch.tensor([1.0, 2, 3, 4]), torch.tensor([True, True, False, False])) == (2, -1)
    truth = torch.tensor([[True, True, False, False]])
    assert 0.3 <= explain.best_threshold_of(torch.tensor([[0.9, 0.42, 0.3, 0.1]]), truth) < 0.42


def test_frames_are_left_out_for_the_mean_or_for_the_nearest_that_stays():
    clip = torch.tensor([0, 10, 20, 30, 240], dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    assert explain.without_frames(clip, [3, 4], "mean")[:, 0, 0, 0].tolist() == [0, 10, 20, 60, 60]
    assert explain.without_frames(clip, [0, 3, 4], "neighbours")[:, 0, 0, 0].tolist() == [10, 10, 20, 20, 20] and clip[3, 0, 0, 0] == 30


# ---------------------------------------------------------------- files of the contract, whose answer is known

def test_what_says_the_truth_scores_one_and_beats_what_counts_frames(clips, tmp_path):
    folder, items = clips
    found = scored(planted(tmp_path / "tracks.pt", items), folder)
    assert all(found[k] == 1 for k in ("persistence_accuracy", "frame_f1", "frame_f1_macro", "edit", "segmental_f1_10", "segmental_f1_25", "segmental_f1_50"))
    assert found["boundary_error"] == 0 == found["absent_seen"] and found["persistence_accuracy_gain_low"] > 0 and found["frame_f1_gain_low"] > 0 and found["over_copy_low"] > 0
    assert found["persistence_duration"] == found["persistence_duration_of_the_truth"] < 0.9 and found["frame_f1_copy"] > 0.85  # looks good, and has seen nothing of its frame
    test = [i for i in items if common.split_of(i["source"]) == "test"]
    assert found["clips"] == len(test) and found["objects"] == sum(i["count"] for i in test) and {c["persistence_accuracy"] for c in found["cases"].values()} == {1}


def test_what_knows_nothing_is_at_the_floor(clips, tmp_path):
    folder, items = clips
    found = scored(planted(tmp_path / "tracks.pt", items, lambda *_: torch.full((32,), 0.7), lambda *_: 0.7), folder)
    assert found["frame_f1"] == found["frame_f1_always"] and found["frame_f1_gain"] == 0 and found["persistence_accuracy_gain_low"] <= 0 and found["absent_seen"] == 1
    assert found["boundary_error"] == 32 and found["segmental_f1_50"] < 0.8


def test_noise_beats_no_floor_and_another_clips_truth_neither(clips, tmp_path):
    folder, items = clips
    g = torch.Generator().manual_seed(0)
    noise = scored(planted(tmp_path / "noise.pt", items, lambda *_: torch.rand(32, generator=g), lambda *_: torch.rand((), generator=g).item()), folder)
    others = [t for i in items for t in i["tracks"]]
    pick = iter(torch.randint(len(others), (1000,), generator=g).tolist())
    other = scored(planted(tmp_path / "other.pt", items, lambda *_: explain.frames_of_track(others[next(pick)]).float(), lambda *_: float(others[next(pick)]["persistent"])), folder)
    for found in (noise, other):
        assert found["persistence_accuracy_gain_low"] <= 0 and found["frame_f1_gain_low"] <= 0 and found["over_copy_high"] < 0


def test_scores_of_another_scale_are_read_at_the_threshold_that_val_chooses(clips, tmp_path):
    folder, items = clips
    found = scored(planted(tmp_path / "tracks.pt", items, lambda item, name, seen: 0.1 + 0.15 * seen), folder)
    assert found["frame_f1"] == 1 and 0.1 <= found["threshold"] < 0.25


def test_who_looks_for_colours_alone_sees_what_is_absent_where_its_colour_is_there(clips, tmp_path):
    folder, items = clips
    path = planted(tmp_path / "tracks.pt", items, lambda item, name, seen: seen if name != item["absent"] else torch.full((32,), float(any(n.split()[0] == name.split()[0] for n in item["names"]))))
    found = scored(path, folder)
    assert found["absent_seen_colour_there"] == 1 and found["absent_seen_colour_not_there"] == 0 < found["absent_seen"] < 1


@pytest.mark.parametrize("changed,says", [
    (lambda n: {"embedding": torch.zeros(n, 64)}, "embedding is [{n}, 64] where [{n}, 512]"), (lambda n: {"scores": torch.zeros(n, 16)}, "scores is [{n}, 16] where [{n}, 32]"),
    (lambda n: {"scores": None}, "scores is NoneType"), (lambda n: {"persistence": torch.tensor([0.5] * (n - 1) + [math.nan])}, "persistence holds 1 non-finite"),
    (lambda n: {"persistence": torch.tensor([0.5] * (n - 1) + [3.0])}, "persistence reaches from 0.5 to 3"), (lambda n: {"attention": torch.full((n, 32), 0.5)}, "sums to 16"),
    (lambda n: {"schema": common.ANSWERS}, "has schema 'foresight.answers.v1'"), (lambda n: {"ids": ["nobody/red circle"] * n}, "holds 'nobody/red circle'")])
def test_a_file_that_breaks_the_contract_is_refused_in_a_sentence(changed, says, clips, tmp_path, capsys):
    folder, items = clips
    n = sum(i["count"] + 1 for i in items)
    path = planted(tmp_path / "tracks.pt", items, **changed(n))
    with pytest.raises(SystemExit) as e:
        explain.main(["--mode", "tracks", "--embeddings", str(path), "--data", str(folder)])
    said = capsys.readouterr().err
    assert e.value.code == 2 and says.format(n=n) in said and said.count("\n") == 1 and not path.with_name("explain-tracks.yaml").exists()


def test_a_file_that_lacks_an_object_or_holds_one_twice_is_refused(clips, tmp_path, capsys):
    folder, items = clips
    fewer = planted(tmp_path / "fewer.pt", items[:-1])
    twice = planted(tmp_path / "twice.pt", [items[0], *items])
    for path, says in ((fewer, f"lacks '{items[-1]['id']}/{items[-1]['names'][0]}'"), (twice, f"holds '{items[0]['id']}/{items[0]['names'][0]}' more than once")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            explain.main(["--mode", "tracks", "--embeddings", str(path), "--data", str(folder)])
        assert e.value.code == 2 and says in capsys.readouterr().err


# ---------------------------------------------------------------- the tracker

def untrained(seed=0):
    torch.manual_seed(seed)
    return explain.Tracker(CONFIG).eval()


def test_what_is_asked_besides_changes_nothing_and_attention_sums_to_one(clips):
    items = clips[1][:3]
    frames, model = torch.stack([i["frames"] for i in items]), untrained()
    both = explain.follow(model, frames, [["red circle", "blue star"]] * 3, "cpu")
    alone = explain.follow(model, frames, [["blue star"]] * 3, "cpu")
    for key, x in alone.items():
        assert both[key].shape[:2] == (3, 2) and torch.allclose(both[key][:, 1:], x, atol=1e-5)
    assert torch.allclose(both["attention"].sum(-1), torch.ones(3, 2)) and both["embedding"].shape == (3, 2, 512) and both["scores"].shape == (3, 2, 32)
    assert not torch.allclose(both["embedding"][:, 0], both["embedding"][:, 1])


def test_a_tracker_is_saved_in_fp16_and_read_back(tmp_path):
    model = untrained()
    frames = torch.randint(0, 256, (1, 32, 48, 48, 3), dtype=torch.uint8)
    before = explain.follow(model, frames, [["red circle"]], "cpu")
    model.half().save_pretrained(tmp_path)
    entry = common.find_model(str(tmp_path))
    assert entry["kind"] == "tracker"
    after = explain.follow(explain.load_tracker(entry, "cpu"), frames, [["red circle"]], "cpu")
    assert all(torch.allclose(before[k], after[k], atol=2e-2) for k in before) and next(explain.load_tracker(entry, "cpu").parameters()).dtype == torch.float32


@pytest.mark.slow
def test_tracks_writes_the_contract_the_same_bytes_every_time_and_says_that_an_untrained_tracker_is_at_the_floor(clips, tmp_path):
    folder, items = clips
    untrained().half().save_pretrained(tmp_path / "tracker")
    argv = ["--mode", "tracks", "--model", str(tmp_path / "tracker"), "--data", str(folder)]
    found = explain.main([*argv, "--out", str(tmp_path / "a" / "tracks.pt")])
    explain.main([*argv, "--out", str(tmp_path / "b" / "tracks.pt")])
    assert (tmp_path / "a" / "tracks.pt").read_bytes() == (tmp_path / "b" / "tracks.pt").read_bytes()
    content = common.load_pt(tmp_path / "a" / "tracks.pt", common.TRACKS)
    assert content["ids"] == [f"{i['id']}/{n}" for i in items for n in [*i["names"], i["absent"]]]
    n = len(content["ids"])
    assert {k: (content[k].shape, content[k].dtype) for k in ("embedding", "scores", "attention", "persistence")} == {
        "embedding": ((n, 512), torch.float16), "scores": ((n, 32), torch.float16), "attention": ((n, 32), torch.float16), "persistence": ((n,), torch.float16)}
    assert content["meta"]["threshold"] == found["threshold"] and content["meta"]["threshold_from"] == "val" and {"model", "weights", "data", "data_path"} <= set(content["meta"])
    assert found["persistence_accuracy_gain_low"] <= 0 and found["frame_f1_gain_low"] <= 0 and found["parameters"] > 0 and found["seconds_per_clip"] > 0
    again = explain.main(["--mode", "tracks", "--embeddings", str(tmp_path / "a" / "tracks.pt"), "--data", str(folder), "--out", str(tmp_path / "again.yaml")])
    assert all(again[k] == found[k] for k in ("persistence_accuracy", "frame_f1", "edit", "boundary_error", "threshold"))


def test_clips_of_the_test_split_alone_are_followed_and_whoever_was_taken_out_is_asked_for(tmp_path):
    data.main(["trajectories", "--n", "12", "--seed", "21", "--change", "deleted", "--only", "test", "--out", str(tmp_path / "deleted")])
    untrained().half().save_pretrained(tmp_path / "tracker")
    found = explain.main(["--mode", "tracks", "--model", str(tmp_path / "tracker"), "--data", str(tmp_path / "deleted"), "--out", str(tmp_path / "tracks.pt")])
    items, _ = common.load_items(tmp_path / "deleted")
    assert "unscored" in found and {f"{i['id']}/{i['removed']}" for i in items} <= set(common.load_pt(tmp_path / "tracks.pt", common.TRACKS)["ids"])


def test_another_kind_of_model_or_of_data_is_refused(clips, tmp_path, capsys):
    data.main(["moving", "--n", "4", "--size", "32", "--out", str(tmp_path / "moving")])
    untrained().half().save_pretrained(tmp_path / "tracker")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text((tmp_path / "tracker" / "config.json").read_text())
    for argv, says in ((["--model", "tiny"], "give --model tiny-tracker"), (["--model", str(tmp_path / "tracker"), "--data", str(tmp_path / "moving")], "data.py trajectories wrote"),
                       (["--model", str(tmp_path / "broken")], "cannot load"), (["--embeddings", str(tmp_path / "none.pt")], "none.pt does not exist")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            explain.main(["--mode", "tracks", "--data", str(clips[0]), "--out", str(tmp_path / "x.pt"), *argv])
        assert e.value.code == 2 and says in capsys.readouterr().err
    with pytest.raises(SystemExit):
        extract.main(["--model", str(tmp_path / "tracker")])
    assert "is a tracker, which explain.py --mode tracks asks" in capsys.readouterr().err


class Planted(torch.nn.Module):
    """Says persistent by the brightness of frame 5 alone; attends to it, or (honest=False) to frame 20."""
    config = CONFIG

    def __init__(self, honest):
        super().__init__()
        self.at = 5 if honest else 20

    def forward(self, frames, colours, shapes):
        n, q = colours.shape
        attention = torch.full((n, q, 32), 0.001)
        attention[:, :, self.at] = 1 - 0.031
        bright = frames[:, 5].float().mean((1, 2, 3))[:, None].expand(n, q) / 25
        return {"scores": torch.zeros(n, q, 32), "attention": attention, "persistence": bright, "embedding": torch.zeros(n, q, 512)}


def test_attention_is_called_faithful_only_where_what_is_said_depends_on_it():
    g = torch.Generator().manual_seed(0)
    items = [{"source": f"s{k}", "names": ["red circle"], "frames": torch.randint(0, 40, (32, 1, 1, 1), generator=g).expand(-1, 48, 48, 3).byte()} for k in range(40)]
    honest, not_so = (explain.faithfulness(Planted(h), items, "cpu", 0) for h in (True, False))
    for how in ("mean", "neighbours"):
        assert honest[how]["persistence"]["gain_low"] > 0 and not_so[how]["persistence"]["gain_high"] < 0
        assert honest[how]["scores"]["gain"] == 0  # they never change
    assert honest["objects"] == 40


# ---------------------------------------------------------------- its training

def test_the_truth_it_learns_from_is_that_of_the_clips(clips):
    items = clips[1][:8]
    truth = tiny.tracks_truth(items, 0)
    for k, item in enumerate(items):
        n = item["count"]
        assert truth["there"][k].tolist() == [j < n for j in range(4)]
        assert truth["persistent"][k, :n].tolist() == [t["persistent"] for t in item["tracks"]] and not truth["persistent"][k, n:].any() and not truth["spans"][k, n:].any()
        names = [f"{list(data.COLOURS)[c]} {list(data.SHAPES)[s]}" for c, s in zip(truth["colours"][k], truth["shapes"][k], strict=True)]
        assert names[:n] == item["names"] and names[n + 1:n + 2] == [item["absent"]][:3 - n] and not set(names[n:]) & set(item["names"])
        assert names[n].split()[0] in {x.split()[0] for x in item["names"]}  # the hardest to see that it is not there
        assert {c for c, shown in zip(data.COLOURS, truth["shown"][k], strict=True) if shown.any()} == {x.split()[0] for x in item["names"]}
        for j, track in enumerate(item["tracks"]):
            assert torch.equal(truth["spans"][k, j, 0] > 0, explain.frames_of_track(track)) and tiny.COMPASS[truth["direction"][k, j]] == track["direction"]
            box = item["boxes"][track["visible"][0][0], j]
            assert torch.allclose(truth["centres"][k, j, track["visible"][0][0]], (box[:2] + box[2:]) / 48 - 1)


def test_directions_turn_with_the_clip():
    def image(word, *flips):
        return tiny.COMPASS[tiny.mirrored_ways(*flips)[tiny.COMPASS.index(word)]]
    assert image("up right", False, False, True) == "up left" and image("up right", False, True, False) == "down right" and image("up right", True, False, False) == "down left"
    assert image("left", True, False, True) == "left" and image("still", True, True, True) == "still" and [image(w, False, False, False) for w in tiny.COMPASS] == tiny.COMPASS


@pytest.mark.slow
def test_a_short_training_learns_to_find_goes_on_where_it_stopped_and_writes_what_can_be_read(clips, tmp_path, monkeypatch):
    folder, items = clips
    frames, truth = torch.stack([i["frames"] for i in items]), tiny.tracks_truth(items, 0)
    torch.manual_seed(0)
    losses = tiny.train("glance", tiny.Watching(explain.Tracker(CONFIG | {"widths": [64, 64]})), tiny.glance_loss(frames, truth, "cpu", 128), 200, 2e-3, 0, tmp_path)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    argv = ["--only", "tracker", "--trajectories", str(folder), "--steps", "3", "--out", str(tmp_path / "out")]
    tiny.main(argv)
    before = (tmp_path / "out" / "tiny-tracker.yaml").read_text().split("run:")[0]
    weights = (tmp_path / "out" / "checkpoints" / "tracker" / "model.safetensors").read_bytes()
    tiny.main(argv)  # there is nothing left to train
    assert (tmp_path / "out" / "tiny-tracker.yaml").read_text().split("run:")[0] == before and (tmp_path / "out" / "checkpoints" / "tracker" / "model.safetensors").read_bytes() == weights
    assert common.find_model(str(tmp_path / "out" / "checkpoints" / "tracker"))["weights"] == "small"


def test_the_committed_tracker_is_small_and_good_at_what_it_was_held_out_on():
    found = common.load_yaml(common.HERE / "results" / "tiny" / "tiny-tracker.yaml", "tiny")
    assert found["persistence_accuracy"] > 0.9 > 0.6 > found["persistence_floor"] and found["frame_f1"] > 0.93 > 0.8 > found["frame_f1_floor"]
    assert sum(f.stat().st_size for f in (common.HERE / "results" / "tiny" / "checkpoints" / "tracker").iterdir()) < 3.5e6


@pytest.mark.slow
def test_the_committed_tracker_follows_fresh_clips_as_its_yaml_says(tmp_path):
    items = list(data.trajectories(60, 48, 77))
    ids, found = explain.follow_all(explain.load_tracker(common.find_model("tiny-tracker"), "cpu"), items, "cpu")
    row = {name: k for k, name in enumerate(ids)}
    tracks = [(row[f"{i['id']}/{t['object']}"], t) for i in items for t in i["tracks"]]
    right = [bool(found["persistence"][k] > 0.5) == t["persistent"] for k, t in tracks]
    seen, said = (torch.stack(x) for x in zip(*((explain.frames_of_track(t), found["scores"][k] > 0.5) for k, t in tracks), strict=True))
    assert sum(right) / len(right) > 0.88 and 2 * (seen & said).sum() / (seen.sum() + said.sum()) > 0.93
