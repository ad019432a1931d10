"""What a vision model sees of moving objects: its file is checked, its scores are those of worlds whose answer is known, and the tracker that is committed does its job."""

import math

import pytest
import torch

import common
import data
import extract
import metrics
import models
import synthetic
import tiny
import track

CONFIG = {
    "colours": list(synthetic.COLOURS),
    "shapes": list(synthetic.SHAPES),
    "frames": 32,
    "image_size": 48,
}
CONFIG |= {"widths": [16, 32], "layers": [1, 1], "embedding": 512}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "trajectories"
    data.main(["trajectories", "--n", "70", "--seed", "21", "--out", str(folder)])
    return folder, common.load_items(folder)[0]


def planted(path, items, sees=None, believes=None, **changed):
    """A file of the contract: what is not given is the truth. sees, believes: functions of (item, name, truth) that return its scores and its persistence."""
    ids, scores, persistence = [], [], []
    for item in items:
        tracks = {t["object"]: t for t in item["tracks"]}
        for name in [*item["names"], item["absent"]]:
            own = tracks.get(name)
            seen = track.frames_of_track(own).float() if own else torch.zeros(32)
            ids.append(f"{item['id']}/{name}")
            scores.append(sees(item, name, seen) if sees else seen)
            persistence.append(
                believes(item, name, own) if believes else float(bool(own and own["persistent"]))
            )
    n = len(ids)
    content = {"embedding": torch.zeros(n, 512).half(), "scores": torch.stack(scores).half()}
    content |= {
        "attention": torch.full((n, 32), 1 / 32).half(),
        "persistence": torch.tensor(persistence).half(),
    }
    meta = {"model": "planted", "weights": "random", "data": "synthetic", "data_path": "x", "threshold": 0.5}
    common.save_pt(
        path, changed.pop("schema", common.TRACKS), changed.pop("ids", ids), meta, **content | changed
    )
    return path


def scored(path, folder):
    flags = ["--embeddings", str(path), "--data", str(folder), "--out", str(path.with_suffix(".yaml"))]
    result = track.main(flags)
    assert common.load_yaml(path.with_suffix(".yaml"), "track")["frame_f1"] == common.plain(
        result["frame_f1"]
    )
    return result


# ---------------------------------------------------------------- scores by hand


def test_segmental_f1_counts_a_true_segment_once_and_forgives_small_shifts():
    truth = [0, 1, 1, 1, 1, 0, 0, 1, 1, 0]
    assert metrics.segmental_f1(truth, truth, 0.5) == 1
    shifted = [0, 0, 1, 1, 1, 1, 0, 1, 1, 0]  # 3 of 5 frames of the first, both of the second
    assert metrics.segmental_f1(truth, shifted, 0.5) == 1 and metrics.segmental_f1(truth, shifted, 0.7) == 0.5
    # the second half of the first is one too many
    assert metrics.segmental_f1(truth, [0, 1, 1, 0, 1, 0, 0, 1, 1, 0], 0.25) == 2 * 2 / (2 + 3)
    assert metrics.segmental_f1(truth, [0] * 10, 0.1) == 0
    assert metrics.segmental_f1(truth, [2 * x for x in truth], 0.1) == 0  # other labels
    assert (
        metrics.segmental_f1(truth, [1] * 10, 0.25) == 2 / 3
        and metrics.segmental_f1(truth, [1] * 10, 0.5) == 0
    )


def test_boundary_error_is_in_frames_and_of_changes_to_the_same_label():
    assert metrics.boundary_error([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]) == 1
    assert metrics.boundary_error([0, 0, 1, 1], [0, 0, 0, 0]) == 4
    assert metrics.boundary_error([0, 0, 1, 1], [1, 1, 0, 0]) == 4  # a change the other way is none
    assert math.isnan(metrics.boundary_error([1, 1], [0, 1]))


def test_cuts_and_thresholds_are_those_that_are_right_most_often():
    x, late = torch.tensor([1.0, 2, 3, 4]), torch.tensor([False, False, True, True])
    assert track.best_cut(x, late) == (3, 1) and track.best_cut(x, ~late) == (2, -1)
    assert 0.3 <= track.best_threshold_of(torch.tensor([[0.9, 0.42, 0.3, 0.1]]), ~late[None]) < 0.42


def test_frames_are_left_out_for_the_mean_or_for_the_nearest_that_stays():
    clip = torch.tensor([0, 10, 20, 30, 240], dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 2, 3)
    for at, how, expected in (
        ([3, 4], "mean", [0, 10, 20, 60, 60]),
        ([0, 3, 4], "neighbours", [10, 10, 20, 20, 20]),
    ):
        assert track.without_frames(clip, at, how)[:, 0, 0, 0].tolist() == expected
    assert clip[3, 0, 0, 0] == 30


# ---------------------------------------------------------------- files of the contract, whose answer is known


def test_what_says_the_truth_scores_one_and_beats_what_counts_frames(clips, tmp_path):
    folder, items = clips
    found = scored(planted(tmp_path / "tracks.pt", items), folder)
    for key in (
        "persistence_accuracy",
        "frame_f1",
        "frame_f1_macro",
        "segmental_f1_10",
        "segmental_f1_25",
        "segmental_f1_50",
    ):
        assert found[key] == 1, key
    for key in ("persistence_accuracy_gain_low", "frame_f1_gain_low", "over_copy_low"):
        assert found[key] > 0, key
    assert found["boundary_error"] == 0 == found["absent_seen"] and "edit" not in found
    assert found["persistence_duration"] == found["persistence_duration_of_the_truth"] < 0.9
    assert found["frame_f1_copy"] > 0.85  # looks good, and has seen nothing of its frame
    test = [i for i in items if common.split_of(i["source"]) == "test"]
    assert found["clips"] == len(test) and found["objects"] == sum(i["count"] for i in test)
    assert {c["persistence_accuracy"] for c in found["cases"].values()} == {1}


def test_what_knows_nothing_is_at_the_floor(clips, tmp_path):
    folder, items = clips
    found = scored(
        planted(tmp_path / "tracks.pt", items, lambda *_: torch.full((32,), 0.7), lambda *_: 0.7), folder
    )
    assert found["frame_f1"] == found["frame_f1_always"] and found["frame_f1_gain"] == 0
    assert found["persistence_accuracy_gain_low"] <= 0 and found["absent_seen"] == 1
    assert found["boundary_error"] == 32 and found["segmental_f1_50"] < 0.8


def test_noise_beats_no_floor_and_another_clips_truth_neither(clips, tmp_path):
    folder, items = clips
    g = torch.Generator().manual_seed(0)
    sees, believes = (lambda *_: torch.rand(32, generator=g)), (lambda *_: torch.rand((), generator=g).item())
    noise = scored(planted(tmp_path / "noise.pt", items, sees, believes), folder)
    others = [t for i in items for t in i["tracks"]]
    pick = iter(torch.randint(len(others), (1000,), generator=g).tolist())

    def sees(*_):
        return track.frames_of_track(others[next(pick)]).float()

    def believes(*_):
        return float(others[next(pick)]["persistent"])

    other = scored(planted(tmp_path / "other.pt", items, sees, believes), folder)
    for found in (noise, other):
        assert (
            found["persistence_accuracy_gain_low"] <= 0
            and found["frame_f1_gain_low"] <= 0
            and found["over_copy_high"] < 0
        )


def test_scores_of_another_scale_are_read_at_the_threshold_that_val_chooses(clips, tmp_path):
    folder, items = clips
    found = scored(planted(tmp_path / "tracks.pt", items, lambda item, name, seen: 0.1 + 0.15 * seen), folder)
    assert found["frame_f1"] == 1 and 0.1 <= found["threshold"] < 0.25


def test_who_looks_for_colours_alone_sees_what_is_absent_where_its_colour_is_there(clips, tmp_path):
    folder, items = clips

    def sees(item, name, seen):
        there = any(n.split()[0] == name.split()[0] for n in item["names"])
        return torch.full((32,), float(there)) if name == item["absent"] else seen

    found = scored(planted(tmp_path / "tracks.pt", items, sees), folder)
    assert (
        found["absent_seen_colour_there"] == 1
        and found["absent_seen_colour_not_there"] == 0 < found["absent_seen"] < 1
    )


BROKEN = {
    "embedding is [{n}, 64] where [{n}, 512]": lambda n: {"embedding": torch.zeros(n, 64)},
    "scores is NoneType": lambda n: {"scores": None},
    "persistence holds 1 non-finite": lambda n: {"persistence": torch.tensor([0.5] * (n - 1) + [math.nan])},
    "persistence reaches from 0.5 to 3": lambda n: {"persistence": torch.tensor([0.5] * (n - 1) + [3.0])},
    "sums to 16": lambda n: {"attention": torch.full((n, 32), 0.5)},
    "has schema 'foresight.answers.v1'": lambda n: {"schema": common.ANSWERS},
    "holds 'nobody/red circle'": lambda n: {"ids": ["nobody/red circle"] * n},
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_file_that_breaks_the_contract_is_refused_in_a_sentence(says, clips, tmp_path, refused):
    folder, items = clips
    n = sum(i["count"] + 1 for i in items)
    path = planted(tmp_path / "tracks.pt", items, **BROKEN[says](n))
    refused(lambda: scored(path, folder), says.format(n=n))
    assert not path.with_suffix(".yaml").exists()


def test_a_file_that_lacks_an_object_or_holds_one_twice_is_refused(clips, tmp_path, refused):
    folder, items = clips
    first, last = (f"'{i['id']}/{i['names'][0]}'" for i in (items[0], items[-1]))
    refused(lambda: scored(planted(tmp_path / "fewer.pt", items[:-1]), folder), f"lacks {last}")
    refused(
        lambda: scored(planted(tmp_path / "twice.pt", [items[0], *items]), folder),
        f"holds {first} more than once",
    )


# ---------------------------------------------------------------- the tracker


def untrained(seed=0):
    torch.manual_seed(seed)
    return models.Tracker(CONFIG).eval()


def test_what_is_asked_besides_changes_nothing_and_attention_sums_to_one(clips):
    items = clips[1][:3]
    frames, model = torch.stack([i["frames"] for i in items]), untrained()
    both = models.follow(model, frames, [["red circle", "blue star"]] * 3, "cpu")
    alone = models.follow(model, frames, [["blue star"]] * 3, "cpu")
    for key, x in alone.items():
        assert both[key].shape[:2] == (3, 2) and torch.allclose(both[key][:, 1:], x, atol=1e-5)
    assert torch.allclose(both["attention"].sum(-1), torch.ones(3, 2))
    assert not torch.allclose(both["embedding"][:, 0], both["embedding"][:, 1])


@pytest.mark.slow
def test_an_untrained_tracker_writes_the_contract_the_same_bytes_every_time_and_is_at_the_floor(
    clips, tmp_path
):
    folder, items = clips
    untrained().half().save_pretrained(tmp_path / "tracker")
    argv = ["--model", str(tmp_path / "tracker"), "--data", str(folder)]
    found, a, b = {}, tmp_path / "a/tracks.pt", tmp_path / "b/tracks.pt"
    for path in (a, b):
        found = track.main([*argv, "--out", str(path)])
    assert a.read_bytes() == b.read_bytes()
    content = common.load_pt(a, common.TRACKS)
    assert content["ids"] == [f"{i['id']}/{n}" for i in items for n in [*i["names"], i["absent"]]]
    for key, shape in {"embedding": (512,), "scores": (32,), "attention": (32,), "persistence": ()}.items():
        assert content[key].shape == (len(content["ids"]), *shape) and content[key].dtype == torch.float16
    assert content["meta"]["threshold"] == found["threshold"] and content["meta"]["threshold_from"] == "val"
    assert found["persistence_accuracy_gain_low"] <= 0 and found["frame_f1_gain_low"] <= 0
    again = scored(a, folder)
    assert all(
        again[k] == found[k] for k in ("persistence_accuracy", "frame_f1", "boundary_error", "threshold")
    )


def test_clips_of_the_test_split_alone_are_followed_and_whoever_was_taken_out_is_asked_for(tmp_path):
    folder, out = tmp_path / "deleted", tmp_path / "tracks.pt"
    data.main(
        [
            "trajectories",
            "--n",
            "12",
            "--seed",
            "21",
            "--change",
            "deleted",
            "--only",
            "test",
            "--out",
            str(folder),
        ]
    )
    untrained().half().save_pretrained(tmp_path / "tracker")
    argv = ["--model", str(tmp_path / "tracker"), "--data", str(folder)]
    assert "unscored" in track.main([*argv, "--out", str(out)])
    taken_out = {f"{i['id']}/{i['removed']}" for i in common.load_items(folder)[0]}
    assert taken_out <= set(common.load_pt(out, common.TRACKS)["ids"])


def test_another_kind_of_model_or_of_data_is_refused(clips, tmp_path, refused):
    data.main(["moving", "--n", "4", "--size", "32", "--out", str(tmp_path / "moving")])
    untrained().half().save_pretrained(tmp_path / "tracker")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text((tmp_path / "tracker" / "config.json").read_text())

    def call(*argv):
        flags = ["--data", clips[0], "--out", tmp_path / "x.pt", *argv]
        return lambda: track.main([str(f) for f in flags])

    refused(call("--model", "tiny"), "give tiny-tracker")
    refused(
        call("--model", tmp_path / "tracker", "--data", tmp_path / "moving"), "data.py trajectories wrote"
    )
    refused(call("--model", tmp_path / "broken"), "cannot load")
    refused(call("--embeddings", tmp_path / "none.pt"), "none.pt does not exist")
    refused(
        lambda: extract.main(["--model", str(tmp_path / "tracker")]),
        "is a tracker, which track.py asks",
    )


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
        return {
            "scores": torch.zeros(n, q, 32),
            "attention": attention,
            "persistence": bright,
            "embedding": torch.zeros(n, q, 512),
        }


def test_attention_is_called_faithful_only_where_what_is_said_depends_on_it():
    g = torch.Generator().manual_seed(0)
    items = [{"source": f"s{k}", "names": ["red circle"]} for k in range(40)]
    for item in items:
        item["frames"] = torch.randint(0, 40, (32, 1, 1, 1), generator=g).expand(-1, 48, 48, 3).byte()
    honest, not_so = (track.faithfulness(Planted(h), items, "cpu", 0) for h in (True, False))
    for how in ("mean", "neighbours"):
        assert honest[how]["persistence"]["gain_low"] > 0 and not_so[how]["persistence"]["gain_high"] < 0
        assert honest[how]["scores"]["gain"] == 0  # they never change
    assert honest["objects"] == 40


# ---------------------------------------------------------------- its training


def test_the_truth_it_learns_from_is_that_of_the_clips(clips):
    items, colours, shapes = clips[1][:8], list(synthetic.COLOURS), list(synthetic.SHAPES)
    truth = tiny.tracks_truth(items, 0)
    for k, item in enumerate(items):
        n, of = item["count"], {key: x[k] for key, x in truth.items()}
        assert of["there"].tolist() == [j < n for j in range(4)] and not of["spans"][n:].any()
        assert of["persistent"].tolist() == [t["persistent"] for t in item["tracks"]] + [False] * (4 - n)
        names = [f"{colours[c]} {shapes[s]}" for c, s in zip(of["colours"], of["shapes"], strict=True)]
        there = {x.split()[0] for x in item["names"]}
        assert names[:n] == item["names"] and not set(names[n:]) & set(item["names"])
        # the hardest to see that it is not there
        assert names[n + 1 : n + 2] == [item["absent"]][: 3 - n] and names[n].split()[0] in there
        assert {c for c, shown in zip(colours, of["shown"], strict=True) if shown.any()} == there
        for j, own in enumerate(item["tracks"]):
            assert torch.equal(of["spans"][j, 0] > 0, track.frames_of_track(own))
            assert tiny.COMPASS[of["direction"][j]] == own["direction"]
            first = own["visible"][0][0]
            box = item["boxes"][first, j]
            assert torch.allclose(of["centres"][j, first], (box[:2] + box[2:]) / 48 - 1)


def test_directions_turn_with_the_clip():
    def image(word, *flips):
        return tiny.COMPASS[tiny.mirrored_ways(*flips)[tiny.COMPASS.index(word)]]

    assert (
        image("up right", False, False, True) == "up left"
        and image("up right", False, True, False) == "down right"
    )
    assert image("up right", True, False, False) == "down left" and image("left", True, False, True) == "left"
    assert (
        image("still", True, True, True) == "still"
        and [image(w, False, False, False) for w in tiny.COMPASS] == tiny.COMPASS
    )


@pytest.mark.slow
def test_a_short_training_learns_to_find_goes_on_where_it_stopped_and_writes_what_can_be_read(
    clips, tmp_path
):
    folder, items = clips
    frames, truth = torch.stack([i["frames"] for i in items]), tiny.tracks_truth(items, 0)
    torch.manual_seed(0)
    model = tiny.Watching(models.Tracker(CONFIG | {"widths": [64, 64]}))
    loss = tiny.glance_loss(frames, truth, "cpu", 128)
    losses = tiny.train("glance", model, loss, 200, 2e-3, 0, tmp_path)
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    out, written = tmp_path / "out/checkpoints/tracker", []
    for _ in range(2):  # the second time there is nothing left to train
        tiny.main(
            [
                "--only",
                "tracker",
                "--trajectories",
                str(folder),
                "--steps",
                "3",
                "--out",
                str(tmp_path / "out"),
            ]
        )
        yaml = (tmp_path / "out/tiny-tracker.yaml").read_text().split("run:")[0]
        written.append((yaml, (out / "model.safetensors").read_bytes()))
    assert written[0] == written[1] and models.find_model(str(out))["weights"] == "small"


def test_the_committed_tracker_is_small_and_good_at_what_it_was_held_out_on():
    found = common.load_yaml(common.HERE / "results" / "tiny" / "tiny-tracker.yaml", "tiny")
    assert found["persistence_accuracy"] > 0.9 > 0.6 > found["persistence_floor"]
    assert found["frame_f1"] > 0.93 > 0.8 > found["frame_f1_floor"]
    folder = common.HERE / "results" / "tiny" / "checkpoints" / "tracker"
    assert sum(f.stat().st_size for f in folder.iterdir()) < 3.5e6


@pytest.mark.slow
def test_the_committed_tracker_follows_fresh_clips_as_its_yaml_says():
    items = list(synthetic.trajectories(60, 48, 77))
    ids, found = track.follow_all(models.load_tracker(models.find_model("tiny-tracker"), "cpu"), items, "cpu")
    tracks = [(ids.index(f"{i['id']}/{t['object']}"), t) for i in items for t in i["tracks"]]
    right = [bool(found["persistence"][k] > 0.5) == t["persistent"] for k, t in tracks]
    seen = torch.stack([track.frames_of_track(t) for _, t in tracks])
    said = found["scores"][[k for k, _ in tracks]] > 0.5
    assert sum(right) / len(right) > 0.88 and 2 * (seen & said).sum() / (seen.sum() + said.sum()) > 0.93
