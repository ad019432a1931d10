"""What a text claims of objects and whether it is true: by hand, on generated clips whose truth is known, on facts drawn at random, and with exactly one fact wrong."""
import pytest
import torch

import data
import explain
from explain import Claim, answer_right, answer_with, check_claim, describe_track, frame_f1, heard, omitted, parse_claims, sentence_of_count, true_fact


@pytest.fixture(scope="module")
def clips():
    return list(data.trajectories(60, 48, 11))


def track(name, persistent, present, visible=None, hidden=(), direction="right"):
    return {"object": name, "persistent": persistent, "present": [present], "visible": visible or [present], "hidden": list(hidden), "direction": direction}


CLIP = {"frames": range(32), "absent": "green star", "tracks": [track("red circle", False, [4, 21], [[4, 9], [14, 21]], [[10, 13]], "up left"), track("blue star", True, [0, 31], direction="still")]}
NAMES = ["red circle", "blue star"]


def claims(text, names=NAMES):
    return parse_claims(text, names)[0]


def true(text, names=NAMES):
    return [check_claim(c, CLIP) for c in claims(text, names)]


# ---------------------------------------------------------------- nulls

def test_text_without_a_claim_is_counted_and_says_nothing():
    assert parse_claims("I like cheese. What a nice clip!", NAMES) == ([], 2)
    assert parse_claims("", NAMES) == ([], 0) and parse_claims("...", NAMES) == ([], 0)
    assert parse_claims("The clip does not show that.", NAMES) == ([], 0), "who says that nothing is shown has been understood"
    assert omitted([], CLIP)[0] == omitted([], CLIP)[1] and len(omitted([], CLIP)[1]) == 1 + 2 * 4


def test_facts_drawn_at_random_seldom_pass(clips):
    """Every object is told what is true of an object of another clip."""
    g, tracks = torch.Generator().manual_seed(0), [t for clip in clips for t in clip["tracks"]]
    passed = {kind: [] for kind in explain.CLAIMS if kind != "absence"}
    for clip in clips * 3:
        for name in clip["names"]:
            other = tracks[int(torch.randint(len(tracks), (), generator=g))]
            for c in parse_claims(describe_track(other | {"object": name}), clip["names"])[0]:
                passed[c.kind].append(check_claim(c, clip))
        other = clips[int(torch.randint(len(clips), (), generator=g))]
        passed["count"].append(check_claim(Claim("", "count", other["count"]), clip))
    chance = {kind: sum(these) / len(these) for kind, these in passed.items()}
    assert chance["direction"] < 0.2 and 0.4 < chance["persistence"] < 0.6 and 0.2 < chance["count"] < 0.5 and chance["hidden"] < 0.6 and chance["span"] < 0.5, chance


# ---------------------------------------------------------------- what is said

SAYS = {
    "The red circle is persistent.": [("red circle", "persistence", True)],
    "It is not persistent.": [(None, "persistence", False)],
    "The red circle isn't transient.": [("red circle", "persistence", True)],
    "Is it persistent or transient?": [],
    "The red circle moves down and to the left.": [("red circle", "direction", "down left")],
    "The circle drifts upwards.": [("red circle", "direction", "up")],
    "The red disc is moving from left to right.": [("red circle", "direction", "right")],
    "The red circle does not move.": [("red circle", "direction", "still")],
    "The blue star stays perfectly still.": [("blue star", "direction", "still")],
    "The red circle doesn't move left.": [("red circle", "direction", "left", True)],
    "The red circle moves left and does not move back.": [("red circle", "direction", "left"), ("red circle", "direction", "still")],
    "The red circle enters in frame 4.": [("red circle", "span", {"first": 4})],
    "The red circle comes in at the 4th frame from the left.": [("red circle", "span", {"first": 4})],
    "The red circle leaves the picture after frame 21.": [("red circle", "span", {"last": 21})],
    "The red circle never leaves.": [("red circle", "span", {"last": 31})],
    "The red circle appears in frame 4.": [("red circle", "span", {"first": 4})],
    "The red circle appears in frames 4 to 21.": [("red circle", "span", {"visible": [[4, 21]]})],
    "The red circle is there from frame 4 until frame 21.": [("red circle", "span", {"present": [[4, 21]]})],
    "Between frames 4 and 21 the red circle is visible.": [("red circle", "span", {"visible": [[4, 21]]})],
    "The red circle can be seen in frames 0-9, 14 and 20 to 31.": [("red circle", "span", {"visible": [[0, 9], [14, 14], [20, 31]]})],
    "The red circle is visible until frame 9.": [("red circle", "span", {"visible": [[0, 9]]})],
    "From frame 4 on the red circle is there.": [("red circle", "span", {"present": [[4, 31]]})],
    "The red circle is gone after frame 21.": [("red circle", "span", {"present": [[22, 31]]}, True)],
    "The red circle is in the picture the whole time.": [("red circle", "span", {"present": [[0, 31]]})],
    "The red circle is never seen.": [("red circle", "span", {"visible": []})],
    "It is still there in the last frame.": [(None, "span", {"present at": 31})],
    "The red circle is never hidden.": [("red circle", "hidden", [])],
    "The red circle is always visible; the star is hidden in frame 7.": [("red circle", "span", {"visible": [[0, 31]]}), ("blue star", "hidden", [[7, 7]])],
    "The red circle is occluded by the blue star from frame 10 through frame 13.": [("red circle", "hidden", [[10, 13]])],
    "The red circle disappears behind the blue star in frames 10 to 13.": [("red circle", "hidden", [[10, 13]])],
    "The red circle is hidden for a while.": [("red circle", "hidden", True)],
    "The red circle moves left in frames 4 to 9 and is hidden.": [("red circle", "direction", "left"), ("red circle", "hidden", True)],
    "There are two coloured objects.": [("", "count", 2)],
    "The clip shows 3 moving shapes.": [("", "count", 3)],
    "There is no green star.": [("green star", "absence", True)],
    "There isn't a green star.": [("green star", "absence", True)],
    "The red circle is not there.": [("red circle", "absence", True)],
    "A red circle.": [("red circle", "absence", False)],
    "The red circle and the blue star move left.": [("red circle", "direction", "left"), ("blue star", "direction", "left")],
    "The red circle crosses the blue star and moves left. It is never hidden.": [("red circle", "direction", "left"), ("red circle", "hidden", [])],
    "The green square moves left.": [("green square", "direction", "left")],
    "Red circle: transient, frames 4 to 21, moves up left, hidden frames 10 to 13.": [("red circle", "persistence", False), ("red circle", "span", {"visible": [[4, 21]]}),
                                                                                     ("red circle", "direction", "up left"), ("red circle", "hidden", [[10, 13]])],
    "Red circle: hidden never.": [("red circle", "hidden", [])],
    "In frames 4 to 9 the red circle moves left and is hidden.": [("red circle", "direction", "left"), ("red circle", "hidden", True)],
    "The circle moved left, entered in frame 4 and left the picture in frame 20.": [("red circle", "direction", "left"), ("red circle", "span", {"first": 4}), ("red circle", "span", {"last": 20})],
    "The red circle still moves left.": [("red circle", "direction", "left")],
    "Is there a green star?": [],
    "The red circle can be seen in all frames except 10 to 13.": [],
    "If nothing hid it, the red circle would appear in frames 0 to 31.": [],
    "In the video, a red circle enters the scene at frame #4, moves diagonally up-left, and exits at frame 21.": [("red circle", "span", {"first": 4}), ("red circle", "direction", "up left"),
                                                                                                                 ("red circle", "span", {"last": 21})],
    "The red circle first appears in frame 4 and last appears in frame 21.": [("red circle", "span", {"first": 4}), ("red circle", "span", {"last": 21})],
    "The red circle is not present at the start, but it left in frame 21.": [("red circle", "span", {"present at": 0}, True), ("red circle", "span", {"last": 21})],
    "While the blue star is still, the red circle moves towards the top-left corner.": [("blue star", "direction", "still"), ("red circle", "direction", "up left")],
    "The red circle moves, to the left of the blue star, down.": [("red circle", "direction", "down")],
    "The red circle does not appear until frame 4.": [("red circle", "span", {"visible": [[0, 3]]}, True)],
    "Frame 4: the red circle enters. Frame 21: it leaves.": [("red circle", "span", {"first": 4}), ("red circle", "span", {"last": 21})],
    "There are no other objects.": [],
    "The red circle enters in every frame.": [("red circle", "absence", False)],
    "The red circle moves left" + ", and" * 60 + " x": [("red circle", "direction", "left")],
    "The red circle is visible in frames 0 to 99999999999.": [("red circle", "span", {"visible": [[0, 9999]]})],
    "The red circle is transient: it enters in frame 4 and leaves in frame 21.": [("red circle", "persistence", False), ("red circle", "span", {"first": 4}), ("red circle", "span", {"last": 21})]}


@pytest.mark.parametrize("text", SAYS)
def test_claims_are_read_in_whatever_words(text):
    assert claims(text) == [Claim(*c) for c in SAYS[text]]


def test_it_is_whom_the_last_sentence_named_and_alone_the_only_one_there_is():
    assert [c.object for c in claims("The red circle moves left. It is never hidden. The blue star is still. It enters in frame 3.")] == ["red circle"] * 2 + ["blue star"] * 2
    assert claims("It moves left.", ["cup"])[0].object == "cup" and claims("The cup moves left.", ["cup"])[0].object == "cup" and claims("It moves left.")[0].object is None


# ---------------------------------------------------------------- whether it is true

@pytest.mark.parametrize("text, holds", [
    ("The red circle is transient.", True), ("The red circle is persistent.", False), ("The blue star is not transient.", True), ("The red circle moves up left.", True),
    ("The red circle moves up.", False), ("The red circle moves left.", False), ("The red circle does not move left.", True), ("The red circle does not move up left.", False),
    ("The red circle enters in frame 5.", True), ("The red circle enters in frame 6.", False), ("The red circle leaves in frame 20.", True), ("The red circle leaves in frame 19.", False),
    ("The red circle is there in frames 4 to 21.", True), ("The red circle is there in frames 0 to 31.", False), ("The red circle is there in frames 4 to 9 and 14 to 21.", False),
    ("The red circle is visible in frames 4 to 9 and 14 to 21.", True), ("The red circle is visible in frames 5 to 9 and 14 to 20.", True), ("The red circle is visible in frames 4 to 21.", False),
    ("The red circle is hidden in frames 10 to 13.", True), ("The red circle is hidden in frames 9 to 14.", True), ("The red circle is hidden in frames 7 to 13.", False),
    ("The red circle is never hidden.", False), ("The blue star is never hidden.", True), ("The red circle is not hidden in frames 10 to 13.", False), ("The red circle is hidden for a while.", True),
    ("The red circle is gone after frame 21.", True), ("The red circle is not visible before frame 4.", True), ("The red circle is gone in frames 4 to 9.", False),
    ("The blue star never leaves.", True),
    ("There are 2 objects.", True), ("There are 3 objects.", False), ("There are not 3 objects.", True), ("There is no green star.", True), ("There is no red circle.", False),
    ("There is a green star.", False), ("The green star is persistent.", False), ("The green star is never seen.", True), ("The green star is never hidden.", False), ("It moves left.", None),
    ("The red circle is visible in frame 12.", False), ("The red circle is there in frame 12.", True)])
def test_claims_are_checked(text, holds):
    assert true(text) == [holds]


def test_what_the_truth_does_not_hold_cannot_be_checked():
    clip = CLIP | {"tracks": [{"object": "red circle", "persistent": True}]}
    assert check_claim(Claim("red circle", "direction", "left"), clip) is None and check_claim(Claim("red circle", "persistence", True), clip) is True


def test_what_is_left_out_is_told_apart_from_what_is_wrong():
    left_out = omitted(claims("The red circle is transient: it enters in frame 4. It moves left. The blue star does not move. There are 2 objects."), CLIP)[0]
    assert left_out == [("red circle", "span"), ("red circle", "direction"), ("red circle", "hidden"), ("blue star", "persistence"), ("blue star", "span"), ("blue star", "hidden")]
    assert ("red circle", "span") not in omitted(claims("The red circle enters in frame 4 and leaves in frame 21."), CLIP)[0]


def test_all_that_the_truth_writes_is_true_and_nothing_is_left_out(clips):
    for clip in clips:
        assert " ".join([*map(describe_track, clip["tracks"]), sentence_of_count(clip["count"])]) == clip["text"]
        found, silent = parse_claims(clip["text"], clip["names"])
        assert not silent and found and all(check_claim(c, clip) is True for c in found) and omitted(found, clip)[0] == [], clip["text"]


def planted(clip, kind):
    """(name of the object, text) for each way in which exactly one fact of a true text is made false."""
    def but(k, **false):
        tracks = [t | false if j == k else t for j, t in enumerate(clip["tracks"])]
        return tracks[k]["object"], " ".join([*map(describe_track, tracks), sentence_of_count(clip["count"])])

    if kind == "count":
        return [("", clip["text"].replace(sentence_of_count(clip["count"]), sentence_of_count(n))) for n in (clip["count"] - 1, clip["count"] + 1)]
    texts, around = [], ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
    for k, t in enumerate(clip["tracks"]):
        first, last = t["present"][0]
        if kind == "object":
            texts.append(but(k, object=clip["absent"]))
        elif kind == "persistence":
            texts.append(but(k, persistent=not t["persistent"]))
        elif kind == "direction":
            now = around.index(t["direction"]) if t["direction"] in around else 0
            texts += [but(k, direction=d) for d in {around[now - 1], around[(now + 1) % 8], around[(now + 4) % 8], "still"} - {t["direction"]}]
        elif kind == "hidden":
            texts.append(but(k, hidden=[] if t["hidden"] else [[first + 2, first + 6]]))
            texts += [but(k, hidden=[[a - 9, b - 9] if a >= 9 else [b + 1, b + 9]]) for a, b in t["hidden"][:1]]
        else:
            texts += [but(k, present=[[a, b]]) for a, b in ((first, last - 7 if last > 8 else last + 7), (first + 7, last))
                      if t["why"] not in ("enters", "appears") and b != last or t["why"] not in ("leaves", "vanishes") and a != first]
    return texts


@pytest.mark.parametrize("kind", ["object", "direction", "span", "persistence", "hidden", "count"])
def test_every_planted_falsehood_is_caught_and_nothing_else(clips, kind):
    tried = 0
    for clip in clips:
        for name, text in planted(clip, kind):
            checked = [(c, check_claim(c, clip)) for c in parse_claims(text, [*clip["names"], clip["absent"]])[0]]
            wrong = {(c.object, c.kind) for c, holds in checked if not holds}
            assert wrong == ({(name, k) for k in ("persistence", "span", "direction", "hidden")} if kind == "object" else {(name, kind)}), text
            tried += 1
    assert tried >= 100


# ---------------------------------------------------------------- answers

def test_the_template_answers_every_generated_question_in_the_very_words(clips):
    for clip in clips:
        for (question, answer), (kind, name) in zip(clip["turns"], clip["asked"], strict=True):
            assert answer_with(true_fact(clip, name), question, clip["count"]) == answer and answer_right(kind, answer, answer, name), question


@pytest.mark.parametrize("kind, answer, truth, right", [
    ("persistence", "It is transient.", "transient", True), ("persistence", "transient or persistent", "transient", False), ("persistence", "", "transient", False),
    ("persistence", "The red circle is not persistent.", "transient", True), ("persistence", "the clip does not show that", "transient", False),
    ("frames", "frames 4 to 21", "frames 5 to 21", True), ("frames", "It appears from frame 4 until frame 21.", "frames 4 to 21", True), ("frames", "frames 4 to 12", "frames 4 to 21", False),
    ("frames", "4-21", "frames 4 to 21", True), ("frames", "in every frame", "frames 0 to 31", True), ("frames", "frame 8", "frame 7", True), ("frames", "frame 9", "frame 7", False),
    ("frames", "there is no red circle", "frames 4 to 21", False), ("direction", "It moves to the right.", "right", True), ("direction", "up left", "left", False),
    ("direction", "It stands still.", "still", True), ("hidden", "it is never hidden", "it is never hidden", True), ("hidden", "Never.", "it is never hidden", True),
    ("hidden", "frames 10 to 13", "it is never hidden", False), ("hidden", "It is hidden in frames 10 to 12.", "frames 10 to 13", True), ("hidden", "it is never hidden", "frames 10 to 13", False),
    ("whatif", "It would move down right.", "down right", True), ("whatif", "frames 0 to 30", "frames 0 to 31", True), ("whatif", "left", "frames 0 to 31", False),
    ("count", "There are two.", "2", True), ("count", "2", "2", True), ("count", "3 objects", "2", False), ("count", "2 or 3", "2", False),
    ("absent", "There is no red circle.", "there is no red circle", True), ("absent", "It is not in the clip.", "there is no red circle", True), ("absent", "up left", "there is no red circle", False),
    ("unknown", "That cannot be known.", "the clip does not show that", True), ("unknown", "The clip doesn't show that.", "the clip does not show that", True),
    ("unknown", "a loud one", "the clip does not show that", False), ("unknown", "there is no red circle", "the clip does not show that", False)])
def test_answers_are_right_in_whatever_words(kind, answer, truth, right):
    assert answer_right(kind, answer, truth, "red circle") is right


def test_the_overlap_of_frames_is_scored():
    assert frame_f1("frames 0 to 9", "frames 0 to 9") == 1 and frame_f1("left", "frames 0 to 9") == 0
    assert frame_f1("frames 0 to 9", "frames 5 to 14") == pytest.approx(0.5) and heard("frames 0 to 9 and 14 to 31", "frames") == [[0, 9], [14, 31]]


# ---------------------------------------------------------------- what follows from what a video model notes

def test_what_the_notes_lack_is_not_made_up():
    scores = torch.zeros(32)
    scores[4:10] = scores[14:22] = 0.9
    transient, persistent, nobody = (explain.noted_fact("red circle", torch.tensor(p), s, 0.5) for p, s in ((0.1, scores), (0.9, scores), (0.1, scores * 0)))
    assert describe_track(transient) == "The red circle is transient: it is seen in frames 4 to 9 and 14 to 21."
    assert describe_track(persistent) == "The red circle is persistent: it is there in frames 0 to 31. It is hidden in frames 0 to 3 and 10 to 13 and 22 to 31."
    assert describe_track(nobody) == "There is no red circle." and answer_with(nobody, "Which way does the red circle move?", 2) == "there is no red circle"
    for question in ("Which way does the red circle move?", "In which frames is the red circle hidden?", "If nothing stood in front of it, in which frames would the red circle appear?",
                     "If the clip were played backwards, which way would the red circle move?", "What sound does the red circle make?"):
        assert answer_with(transient, question, 2) == explain.UNSEEN
    assert answer_with(persistent, "If nothing stood in front of it, in which frames would the red circle appear?", 2) == "frames 0 to 31"
