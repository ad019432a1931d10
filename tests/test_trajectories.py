"""Stage 0, trajectories: what is said of who stays and who comes and goes is what the masks, the boxes and the equations say."""

from collections import Counter

import numpy as np
import pytest
import torch
from helpers import BACKWARDS

import data
import synthetic
from common import load_items, split_of

SEED, N = 5, 80


@pytest.fixture(scope="module")
def clips():
    return list(synthetic.trajectories(N, 48, SEED))


@pytest.fixture(scope="module")
def changed(clips):
    """{change: {id: clip}} of the first 24 scenes."""
    return {
        change: {c["id"]: c for c in synthetic.trajectories(24, 48, SEED, change=change)}
        for change in synthetic.CHANGES
    }


def marked(spans, frames=32):
    """Spans as a set of frames."""
    return {t for a, b in spans for t in range(a, b + 1)} & set(range(frames))


def every(clips):
    """(clip, number, track) of each object."""
    return [(c, k, t) for c in clips for k, t in enumerate(c["tracks"])]


def test_a_clip_holds_what_the_contract_says(clips):
    assert {c["count"] for c in clips} == {1, 2, 3}
    for c in clips:
        n, names = c["count"], c["names"]
        assert (
            c["frames"].shape == (32, 48, 48, 3)
            and c["mask"].shape == (32, 48, 48)
            and c["boxes"].shape == (32, n, 4)
        )
        assert names == [t["object"] for t in c["tracks"]] and len({name.split()[0] for name in names}) == n
        assert (
            c["absent"] not in names
            and c["absent"].split()[0] in synthetic.COLOURS
            and c["absent"].split()[1] in synthetic.SHAPES
        )
        assert len(c["turns"]) == len(c["asked"]) and c["source"] == c["id"]
        counted = "There is 1 coloured object." if n == 1 else f"There are {n} coloured objects."
        assert c["text"] == " ".join([*map(synthetic.told, c["tracks"]), counted])
    alike = [bool(set(c["absent"].split()) & {w for name in c["names"] for w in name.split()}) for c in clips]
    assert 0.4 < np.mean(alike) < 1
    (other,) = synthetic.trajectories(1, 64, 0, frames=20)
    assert other["frames"].shape == (20, 64, 64, 3) and all(
        b < 20 for t in other["tracks"] for s in t["present"] for b in s
    )


def test_spans_of_frames_and_their_words():
    assert synthetic.spans([1, 1, 0, 0, 1]) == [[0, 1], [4, 4]] and synthetic.spans([0, 0]) == []
    assert (
        synthetic.spans_words([[0, 9], [14, 31]]) == "frames 0 to 9 and 14 to 31"
        and synthetic.spans_words([[7, 7]]) == "frame 7"
    )


def test_visible_frames_are_those_in_which_a_quarter_of_the_object_is_seen_and_hidden_ones_the_others_in_which_it_is_there(
    clips,
):
    for c, k, track in every(clips):
        area = (c["mask"] == k + 1).sum((1, 2))
        visible, present, hidden = (marked(track[s]) for s in ("visible", "present", "hidden"))
        assert visible | hidden == present and not visible & hidden and len(track["present"]) == 1
        assert all(area[t] > 0 for t in visible)
        e = track["equation"]
        # of which at most a quarter can be seen where it is hidden; some pixels for the rounding
        whole = (synthetic.coverage(c["labels"][k], 48, 24, 24, e["radius"], 0) >= 0.5).sum().item()
        assert all(area[t] <= 0.25 * whole + 3 for t in hidden)
        assert all(
            synthetic.spans([t in marked(s) for t in range(32)]) == s
            for s in (track["visible"], track["present"], track["hidden"])
        )


def test_boxes_are_the_extents_of_the_masks_and_lie_where_the_equation_says(clips):
    off = []
    for c, k, track in every(clips):
        at, e, seen = (
            synthetic.position(track["equation"], np.arange(32)),
            track["equation"],
            c["mask"] == k + 1,
        )
        for t in range(32):
            y, x = torch.nonzero(seen[t], as_tuple=True)
            box = c["boxes"][t, k].tolist()
            assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])
            if len(x):
                assert e["exists"][0] <= t <= e["exists"][1]
                assert all(
                    at[t][a] - e["radius"] - 1 <= box[a] and box[a + 2] <= at[t][a] + e["radius"] + 1
                    for a in (0, 1)
                )
        area = seen.sum((1, 2))
        full = [t for t in range(32) if area[t] >= 0.95 * area.max()]
        centre = (c["boxes"][full, k, :2] + c["boxes"][full, k, 2:]).numpy() / 2
        off.append(np.abs(centre - at[full]).mean())
    assert np.median(off) < 0.7  # pixels: shapes are not quite symmetric about their centre


def test_half_of_it_is_inside_the_picture_when_it_is_present(clips):
    for _, _, track in every(clips):
        e, at = track["equation"], synthetic.position(track["equation"], np.arange(32))
        # of the centre, behind the nearest edge, in radii
        depth = np.minimum(at, 48 - at).min(1) / e["radius"]
        exists = {t for t in range(32) if e["exists"][0] <= t <= e["exists"][1]}
        present = marked(track["present"])
        assert {t for t in exists if depth[t] > 0.35} <= present <= {t for t in exists if depth[t] > -0.35}


def test_persistent_is_who_is_there_in_every_frame_seen_or_not(clips):
    for _, _, track in every(clips):
        present = marked(track["present"])
        assert track["persistent"] == (len(present) == 32) == (track["why"] == "stays")
        comes, goes, sudden = 0 not in present, 31 not in present, track["equation"]["exists"] != [0, 31]
        why = {
            (False, False): "stays",
            (True, False): "enters",
            (False, True): "leaves",
            (True, True): "passes",
        }[comes, goes]
        assert track["why"] == ({"enters": "appears", "leaves": "vanishes"}.get(why, why) if sudden else why)


def test_how_long_something_is_seen_does_not_decide_whether_it_is_persistent(clips):
    tracks = [t for _, _, t in every(clips)]
    persistent = np.array([t["persistent"] for t in tracks])
    seen = np.array([len(marked(t["visible"])) for t in tracks])
    right = [((seen >= least) == persistent).mean() for least in range(34)]
    assert max(*right, *(1 - r for r in right)) < 0.85
    assert any(len(marked(t["hidden"])) >= 12 for t in tracks if t["persistent"])
    assert any(len(marked(t["present"])) >= 27 for t in tracks if not t["persistent"])


@pytest.mark.slow
def test_cases_and_directions_are_balanced():
    tracks = [t for _, _, t in every(synthetic.trajectories(400, 48, 11))]
    n, why, way = len(tracks), Counter(t["why"] for t in tracks), Counter(t["direction"] for t in tracks)
    assert 0.44 < sum(t["persistent"] for t in tracks) / n < 0.56
    assert all(0.03 < why[w] / n < 0.2 for w in ("enters", "leaves", "passes", "appears", "vanishes"))
    assert all(0.07 < way[d] / n < 0.17 for d in synthetic.DIRECTIONS) and way["still"] > 0
    assert (
        0.2 < sum(bool(t["hidden"]) for t in tracks) / n < 0.6
        and sum(bool(t["crosses"]) for t in tracks) / n > 0.1
    )


def test_direction_speed_and_curvature_follow_from_the_equation(clips):
    for _, _, track in every(clips):
        first, last = track["present"][0]
        at = synthetic.position(track["equation"], np.arange(first, last + 1))
        gone = at[-1] - at[0]
        if track["direction"] == "still":
            assert np.hypot(*gone) < 2
        else:
            angle = {
                d: np.degrees(np.arccos(np.dot(gone, v) / np.hypot(*gone) / np.hypot(*v)))
                for d, v in synthetic.DIRECTIONS.items()
            }
            assert np.hypot(*gone) >= 2 and angle[track["direction"]] == min(angle.values()) <= 22.6
        assert track["speed"] == pytest.approx(np.hypot(*np.diff(at, axis=0).T).mean())
        assert bool(track["curvature"]) == bool(track["equation"]["turn"])


def test_an_equation_by_hand_and_played_backwards():
    line = {"position": [1.0, 2.0], "velocity": [2.0, 0.0], "acceleration": [0.0, 1.0], "turn": 0.0}
    line |= {"radius": 3.0, "exists": [4, 31]}
    assert synthetic.position(line, [0, 2]).tolist() == [[1, 2], [5, 4]]
    # a circle of radius speed / turn, a quarter of it in four frames
    arc = line | {"acceleration": [0.0, 0.0], "turn": np.pi / 8}
    r, frames = 2 / (np.pi / 8), np.arange(32)
    assert synthetic.position(arc, [4, 8, 16]) == pytest.approx(
        np.array([[1 + r, 2 + r], [1, 2 + 2 * r], [1, 2]])
    )
    for e in (line, arc):
        back = synthetic.played_backwards(e, 32)
        assert synthetic.position(back, frames) == pytest.approx(
            synthetic.position(e, frames)[::-1]
        ) and back["exists"] == [0, 27]


def test_who_crosses_comes_near(clips):
    crossing = [
        (c, k, j) for c, k, t in every(clips) for j, name in enumerate(c["names"]) if name in t["crosses"]
    ]
    assert crossing
    for c, k, j in crossing:
        a, b = (c["tracks"][i] for i in (k, j))
        both = sorted(marked(a["present"]) & marked(b["present"]))
        distance = np.hypot(
            *(synthetic.position(a["equation"], both) - synthetic.position(b["equation"], both)).T
        )
        assert (
            distance.min() < max(a["equation"]["radius"], b["equation"]["radius"])
            and a["object"] in b["crosses"]
        )


def test_text_says_what_the_tracks_say_in_the_words_agreed_on():
    track = {"object": "red circle", "persistent": False, "why": "passes", "direction": "right"}
    track |= {"present": [[4, 21]], "hidden": [[10, 13]]}
    passes = "The red circle is transient: it enters in frame 4 and leaves in frame 21. It moves right. It is hidden in frames 10 to 13."
    assert synthetic.told(track) == passes
    track |= {"persistent": True, "why": "stays", "present": [[0, 31]], "hidden": [], "direction": "still"}
    assert (
        synthetic.told(track)
        == "The red circle is persistent: it is there in frames 0 to 31. It is still. It is never hidden."
    )
    track |= {"persistent": False, "why": "vanishes", "present": [[0, 8]]}
    assert (
        synthetic.told(track)
        == "The red circle is transient: it vanishes in frame 8. It is still. It is never hidden."
    )


def test_turns_are_true_and_asked_says_what_they_ask(clips):
    kinds, firsts = Counter(), set()
    for c in clips:
        track_of = {t["object"]: t for t in c["tracks"]}
        for (question, answer), (kind, name) in zip(c["turns"], c["asked"], strict=True):
            kinds[kind] += 1
            track = track_of.get(name)
            assert not name or name in question
            assert (track is None) == (kind in ("absent", "count") or not name) and (
                kind != "absent" or name == c["absent"]
            )
            truth = {
                "absent": f"there is no {name}",
                "count": str(len(c["names"])),
                "unknown": "the clip does not show that",
            }
            if track:
                backwards = "backwards" in question or "reversed" in question
                truth |= {
                    "persistence": "persistent" if track["persistent"] else "transient",
                    "direction": track["direction"],
                }
                truth["frames"] = synthetic.spans_words(track["visible"])
                truth["hidden"] = (
                    synthetic.spans_words(track["hidden"]) if track["hidden"] else "it is never hidden"
                )
                truth["whatif"] = (
                    synthetic.OPPOSITE[track["direction"]]
                    if backwards
                    else synthetic.spans_words(track["present"])
                )
            assert answer == truth[kind]
            if kind == "persistence":
                firsts.add(question.index("persistent") < question.index("transient"))
    assert " ".join(
        sorted(kinds)
    ) == "absent count direction frames hidden persistence unknown whatif" and firsts == {True, False}
    assert synthetic.OPPOSITE["up left"] == "down right" and synthetic.OPPOSITE["still"] == "still"


def test_reversed_clips_run_backwards_with_the_truth_about_that(clips, changed):
    frames = np.arange(32)
    for c in clips[:24]:
        r = changed["reversed"][c["id"]]
        assert all(torch.equal(r[k], c[k].flip(0)) for k in ("frames", "mask", "boxes"))
        assert all(r[k] == c[k] for k in ("names", "source", "absent"))
        for a, b in zip(c["tracks"], r["tracks"], strict=True):
            assert b["persistent"] == a["persistent"] and b["why"] == BACKWARDS[a["why"]]
            assert b["direction"] == synthetic.OPPOSITE[a["direction"]]
            assert all(
                b[k] == [[31 - y, 31 - x] for x, y in a[k][::-1]] for k in ("present", "visible", "hidden")
            )
            back = synthetic.position(a["equation"], frames)[::-1]
            assert synthetic.position(b["equation"], frames) == pytest.approx(back, abs=1e-6)
        asked = dict(zip(map(tuple, r["asked"]), r["turns"], strict=True))
        assert [q for q, _ in r["turns"]] == [q for q, _ in c["turns"]]
        assert all(asked["direction", t["object"]][1] == t["direction"] for t in r["tracks"])


def test_the_first_object_is_gone_from_deleted_clips_and_nothing_else_changes_but_what_it_hid(clips, changed):
    def persistence(c):
        return {
            tuple(k): q for k, (q, _) in zip(c["asked"], c["turns"], strict=True) if k[0] == "persistence"
        }

    for c in clips[:24]:
        d, n, gone = changed["deleted"][c["id"]], c["count"], c["mask"] == 1
        assert d["removed"] == c["names"][0] and d["names"] == c["names"][1:]
        assert d["count"] == n - 1 and d["boxes"].shape == (32, n - 1, 4)
        assert all(torch.equal((c["mask"] == k + 1)[~gone], (d["mask"] == k)[~gone]) for k in range(1, n))
        for a, b in zip(c["tracks"][1:], d["tracks"], strict=True):
            assert all(a[k] == b[k] for k in ("persistent", "why", "present", "direction", "equation"))
            assert marked(b["visible"]) >= marked(a["visible"])
        assert persistence(d).items() <= persistence(c).items()
    assert any(d["text"] == "There are 0 coloured objects." for d in changed["deleted"].values())


def test_swapped_clips_give_the_first_objects_way_to_the_second_ones_colour_and_shape(clips, changed):
    several = [c for c in clips[:24] if c["count"] > 1]
    colours = {name: torch.tensor(rgb).float() / max(rgb) for name, rgb in synthetic.COLOURS.items()}
    assert set(changed["swapped"]) == {c["id"] for c in several}
    for c in several:
        s = changed["swapped"][c["id"]]
        assert s["names"] == [c["names"][1], c["names"][0], *c["names"][2:]]
        assert all(
            a[k] == b[k]
            for a, b in zip(s["tracks"], c["tracks"], strict=True)
            for k in ("equation", "direction")
        )
        for k in (0, 1):
            colour = s["frames"][s["mask"] == k + 1].float().mean(0)
            nearest = min(colours, key=lambda n: (colours[n] - colour / colour.max()).norm())
            assert nearest == s["names"][k].split()[0]


def test_same_seed_same_bytes_only_the_split_asked_for_and_where_changes_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in ("a", "b"):
        data.main(["trajectories", "--n", "12", "--seed", "4", "--out", f"{out}/set"])
    for name in ("00000.pt", "index.yaml"):
        assert (tmp_path / "a/set" / name).read_bytes() == (tmp_path / "b/set" / name).read_bytes()
    whole = {i["id"]: i for i in load_items("a/set")[0]}
    data.main(["trajectories", "--n", "12", "--seed", "4", "--change", "reversed", "--only", "test"])
    part, index = load_items("data/trajectories-reversed")
    assert (index["change"], index["only"], index["data"]) == ("reversed", "test", "synthetic")
    assert [i["id"] for i in part] == [
        k for k, i in whole.items() if split_of(i["source"]) == "test"
    ] and part
    assert all(torch.equal(p["frames"].flip(0), whole[p["id"]]["frames"]) for p in part)
    assert [i["id"] for i in synthetic.trajectories(4, 48, 4)] == list(whole)[:4]
    assert not torch.equal(
        next(iter(synthetic.trajectories(1, 48, 3)))["frames"], next(iter(whole.values()))["frames"]
    )


def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path, refused):
    for given, said in (
        ("moving --change reversed", "unrecognized arguments: --change reversed"),
        ("trajectories --frames 8", "--frames 8"),
        ("trajectories --freeze first", "unrecognized arguments: --freeze first"),
    ):
        refused(lambda given=given: data.main([*given.split(), "--out", str(tmp_path / "x")]), said)
    assert not (tmp_path / "x").exists()
