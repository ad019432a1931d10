"""What a text claims of objects and whether it is true: by hand, on generated clips whose truth is known, on facts drawn at random, and with exactly one fact wrong."""

import pytest
import torch

import claims
import explain
import synthetic
from claims import Claim, answer_right, check_claim, frame_f1, heard, omitted, parse_claims
from explain import answer_with, describe_track, sentence_of_count, true_fact


@pytest.fixture(scope="module")
def clips():
    return list(synthetic.trajectories(60, 48, 11))


def track(name, persistent, present, visible=None, hidden=(), direction="right"):
    spans = {"present": [present], "visible": visible or [present], "hidden": list(hidden)}
    return {"object": name, "persistent": persistent, "direction": direction} | spans


CLIP = {
    "frames": range(32),
    "absent": "green star",
    "tracks": [
        track("red circle", False, [4, 21], [[4, 9], [14, 21]], [[10, 13]], "up left"),
        track("blue star", True, [0, 31], direction="still"),
    ],
}
NAMES = ["red circle", "blue star"]


def claimed(text, names=NAMES):
    return parse_claims(text, names)[0]


# ---------------------------------------------------------------- nulls


def test_text_without_a_claim_is_counted_and_says_nothing():
    assert parse_claims("I like cheese. What a nice clip!", NAMES) == ([], 2)
    assert parse_claims("", NAMES) == ([], 0) and parse_claims("...", NAMES) == ([], 0)
    assert parse_claims("The clip does not show that.", NAMES) == ([], 0), (
        "who says that nothing is shown has been understood"
    )
    assert omitted([], CLIP)[0] == omitted([], CLIP)[1] and len(omitted([], CLIP)[1]) == 1 + 2 * 4


def test_facts_drawn_at_random_seldom_pass(clips):
    """Every object is told what is true of an object of another clip."""
    g, tracks = torch.Generator().manual_seed(0), [t for clip in clips for t in clip["tracks"]]
    passed = {kind: [] for kind in claims.CLAIMS if kind != "absence"}
    for clip in clips * 3:
        for name in clip["names"]:
            other = tracks[int(torch.randint(len(tracks), (), generator=g))]
            for c in parse_claims(describe_track(other | {"object": name}), clip["names"])[0]:
                passed[c.kind].append(check_claim(c, clip))
        other = clips[int(torch.randint(len(clips), (), generator=g))]
        passed["count"].append(check_claim(Claim("", "count", other["count"]), clip))
    chance = {kind: sum(these) / len(these) for kind, these in passed.items()}
    assert 0.4 < chance["persistence"] < 0.6 and 0.2 < chance["count"] < 0.5, chance
    assert chance["direction"] < 0.2 and chance["hidden"] < 0.6 and chance["span"] < 0.5, chance


# ---------------------------------------------------------------- what is said

SAYS = """
The red circle is persistent. | red circle: persistence True
The red circle isn't transient. | red circle: persistence True
Is it persistent or transient? |
The red circle moves down and to the left. | red circle: direction down left
The red disc is moving from left to right. | red circle: direction right
The red circle does not move. | red circle: direction still
The red circle doesn't move left. | red circle: not direction left
The red circle moves left and does not move back. | red circle: direction left, red circle: direction still
The red circle comes in at the 4th frame from the left. | red circle: first 4
The red circle leaves the picture after frame 21. | red circle: last 21
The red circle never leaves. | red circle: last 31
The red circle appears in frames 4 to 21. | red circle: visible 4-21
The red circle is there from frame 4 until frame 21. | red circle: present 4-21
Between frames 4 and 21 the red circle is visible. | red circle: visible 4-21
The red circle can be seen in frames 0-9, 14 and 20 to 31. | red circle: visible 0-9 14-14 20-31
From frame 4 on the red circle is there. | red circle: present 4-31
The red circle is gone after frame 21. | red circle: not present 22-31
The red circle is in the picture the whole time. | red circle: present 0-31
The red circle is never seen. | red circle: visible never
It is still there in the last frame. | None: present at 31
The red circle is never hidden. | red circle: hidden never
The red circle is always visible; the star is hidden in frame 7. | red circle: visible 0-31, blue star: hidden 7-7
The red circle disappears behind the blue star in frames 10 to 13. | red circle: hidden 10-13
The red circle moves left in frames 4 to 9 and is hidden. | red circle: direction left, red circle: hidden True
The clip shows 3 moving shapes. | : count 3
There isn't a green star. | green star: absence True
The red circle is not there. | red circle: absence True
A red circle. | red circle: absence False
The red circle and the blue star move left. | red circle: direction left, blue star: direction left
The red circle crosses the blue star and moves left. It is never hidden. | red circle: direction left, red circle: hidden never
Red circle: transient, frames 4 to 21, moves up left, hidden frames 10 to 13. | red circle: persistence False, red circle: visible 4-21, red circle: direction up left, red circle: hidden 10-13
The circle moved left, entered in frame 4 and left the picture in frame 20. | red circle: direction left, red circle: first 4, red circle: last 20
The red circle still moves left. | red circle: direction left
The red circle can be seen in all frames except 10 to 13. |
If nothing hid it, the red circle would appear in frames 0 to 31. |
In the video, a red circle enters the scene at frame #4, moves diagonally up-left, and exits at frame 21. | red circle: first 4, red circle: direction up left, red circle: last 21
The red circle first appears in frame 4 and last appears in frame 21. | red circle: first 4, red circle: last 21
The red circle is not present at the start, but it left in frame 21. | red circle: not present at 0, red circle: last 21
While the blue star is still, the red circle moves towards the top-left corner. | blue star: direction still, red circle: direction up left
The red circle moves, to the left of the blue star, down. | red circle: direction down
The red circle does not appear until frame 4. | red circle: not visible 0-3
Frame 4: the red circle enters. Frame 21: it leaves. | red circle: first 4, red circle: last 21
There are no other objects. |
The red circle enters in every frame. | red circle: absence False
The red circle is visible in frames 0 to 99999999999. | red circle: visible 0-9999
The red circle is transient: it enters in frame 4 and leaves in frame 21. | red circle: persistence False, red circle: first 4, red circle: last 21"""


def brief(name, kind, value, denied):
    """A claim in a few words: "red circle: not visible 0-9 14-21"."""
    if isinstance(value, dict):
        kind, value = next(iter(value.items()))
    if isinstance(value, list):
        value = " ".join(f"{a}-{b}" for a, b in value) or "never"
    return f"{name}: {'not ' * denied}{kind} {value}"


@pytest.mark.parametrize("line", SAYS.strip().splitlines())
def test_claims_are_read_in_whatever_words(line):
    text, _, found = line.partition(" |")
    assert ", ".join(brief(*c) for c in claimed(text)) == found.strip()


def test_it_is_whom_the_last_sentence_named_and_alone_the_only_one_there_is():
    found = claimed(
        "The red circle moves left. It is never hidden. The blue star is still. It enters in frame 3."
    )
    assert [c.object for c in found] == ["red circle"] * 2 + ["blue star"] * 2
    assert [claimed(text, ["cup"])[0].object for text in ("It moves left.", "The cup moves left.")] == [
        "cup",
        "cup",
    ]
    assert claimed("It moves left.")[0].object is None
    assert len(claimed("The red circle moves left" + ", and" * 60 + " x")) == 1, (
        "what is said at length is read in time"
    )


# ---------------------------------------------------------------- whether it is true

TRUE = """
The red circle is transient.
The blue star is not transient.
The red circle moves up left.
The red circle does not move left.
The red circle enters in frame 5.
The red circle leaves in frame 20.
The red circle is there in frames 4 to 21.
The red circle is visible in frames 5 to 9 and 14 to 20.
The red circle is hidden in frames 9 to 14.
The blue star is never hidden.
The red circle is hidden for a while.
The red circle is gone after frame 21.
The red circle is not visible before frame 4.
The blue star never leaves.
There are 2 objects.
There are not 3 objects.
There is no green star.
The green star is never seen.
The red circle is there in frame 12."""
FALSE = """
The red circle is persistent.
The red circle moves up.
The red circle does not move up left.
The red circle enters in frame 6.
The red circle leaves in frame 19.
The red circle is there in frames 0 to 31.
The red circle is there in frames 4 to 9 and 14 to 21.
The red circle is visible in frames 4 to 21.
The red circle is hidden in frames 7 to 13.
The red circle is never hidden.
The red circle is not hidden in frames 10 to 13.
The red circle is gone in frames 4 to 9.
There are 3 objects.
There is no red circle.
There is a green star.
The green star is persistent.
The green star is never hidden.
The red circle is visible in frame 12."""


def test_claims_are_checked():
    for texts, holds in ((TRUE, True), (FALSE, False), ("\nIt moves left.", None)):
        for text in texts.strip().splitlines():
            assert [check_claim(c, CLIP) for c in claimed(text)] == [holds], text


def test_what_the_truth_does_not_hold_cannot_be_checked():
    clip = CLIP | {"tracks": [{"object": "red circle", "persistent": True}]}
    assert check_claim(Claim("red circle", "direction", "left"), clip) is None
    assert check_claim(Claim("red circle", "persistence", True), clip) is True


def test_what_is_left_out_is_told_apart_from_what_is_wrong():
    text = "The red circle is transient: it enters in frame 4. It moves left. The blue star does not move. There are 2 objects."
    red, blue = (["span", "direction", "hidden"], ["persistence", "span", "hidden"])
    assert omitted(claimed(text), CLIP)[0] == [("red circle", k) for k in red] + [
        ("blue star", k) for k in blue
    ]
    both_ends = claimed("The red circle enters in frame 4 and leaves in frame 21.")
    assert ("red circle", "span") not in omitted(both_ends, CLIP)[0]


def test_all_that_the_truth_writes_is_true_and_nothing_is_left_out(clips):
    for clip in clips:
        assert (
            " ".join([*map(describe_track, clip["tracks"]), sentence_of_count(clip["count"])]) == clip["text"]
        )
        found, silent = parse_claims(clip["text"], clip["names"])
        assert (
            not silent
            and found
            and all(check_claim(c, clip) is True for c in found)
            and omitted(found, clip)[0] == []
        ), clip["text"]


def planted(clip, kind):
    """(name of the object, text) for each way in which exactly one fact of a true text is made false."""

    def but(k, **false):
        tracks = [t | false if j == k else t for j, t in enumerate(clip["tracks"])]
        return tracks[k]["object"], " ".join([*map(describe_track, tracks), sentence_of_count(clip["count"])])

    if kind == "count":
        sentence = sentence_of_count(clip["count"])
        return [("", clip["text"].replace(sentence, sentence_of_count(clip["count"] + n))) for n in (-1, 1)]
    texts, around = [], ("right", "down right", "down", "down left", "left", "up left", "up", "up right")
    for k, t in enumerate(clip["tracks"]):
        first, last = t["present"][0]
        if kind == "object":
            texts.append(but(k, object=clip["absent"]))
        elif kind == "persistence":
            texts.append(but(k, persistent=not t["persistent"]))
        elif kind == "direction":
            now = around.index(t["direction"]) if t["direction"] in around else 0
            texts += [
                but(k, direction=d)
                for d in {around[now - 1], around[(now + 1) % 8], around[(now + 4) % 8], "still"}
                - {t["direction"]}
            ]
        elif kind == "hidden":
            texts.append(but(k, hidden=[] if t["hidden"] else [[first + 2, first + 6]]))
            texts += [
                but(k, hidden=[[a - 9, b - 9] if a >= 9 else [b + 1, b + 9]]) for a, b in t["hidden"][:1]
            ]
        else:
            # which end is not said
            start, end = t["why"] not in ("enters", "appears"), t["why"] not in ("leaves", "vanishes")
            for a, b in ((first, last - 7 if last > 8 else last + 7), (first + 7, last)):
                if start and b != last or end and a != first:
                    texts.append(but(k, present=[[a, b]]))
    return texts


@pytest.mark.parametrize("kind", ["object", "direction", "span", "persistence", "hidden", "count"])
def test_every_planted_falsehood_is_caught_and_nothing_else(clips, kind):
    tried, kinds = 0, ("persistence", "span", "direction", "hidden") if kind == "object" else (kind,)
    for clip in clips:
        for name, text in planted(clip, kind):
            found = parse_claims(text, [*clip["names"], clip["absent"]])[0]
            wrong = {(c.object, c.kind) for c in found if not check_claim(c, clip)}
            assert wrong == {(name, k) for k in kinds}, text
            tried += 1
    assert tried >= 100


# ---------------------------------------------------------------- answers


def test_the_template_answers_every_generated_question_in_the_very_words(clips):
    for clip in clips:
        for (question, answer), (kind, name) in zip(clip["turns"], clip["asked"], strict=True):
            assert answer_with(true_fact(clip, name), question, clip["count"]) == answer, question
            assert answer_right(kind, answer, answer, name), question


# kind: the true answer: answers that are right / and such that are not
ANSWERS = """
persistence: transient: It is transient. / The red circle is not persistent. - transient or persistent / nothing / the clip does not show that
frames: frames 5 to 21: frames 4 to 21 - frames 4 to 12
frames: frames 4 to 21: It appears from frame 4 until frame 21. / 4-21 - there is no red circle
frames: frames 0 to 31: in every frame
frames: frame 7: frame 8 - frame 9
direction: right: It moves to the right.
direction: left: to the left - up left
direction: still: It stands still.
hidden: it is never hidden: Never. - frames 10 to 13
hidden: frames 10 to 13: It is hidden in frames 10 to 12. - it is never hidden
whatif: down right: It would move down right.
whatif: frames 0 to 31: frames 0 to 30 - left
count: 2: There are two. / 2 - 3 objects / 2 or 3
absent: there is no red circle: There is no red circle. / It is not in the clip. - up left
unknown: the clip does not show that: That cannot be known. / The clip doesn't show that. - a loud one / there is no red circle"""


@pytest.mark.parametrize("line", ANSWERS.strip().splitlines())
def test_answers_are_right_in_whatever_words(line):
    kind, truth, answers = line.split(": ", 2)
    right, _, wrong = answers.partition(" - ")
    for texts, expected in ((right, True), (wrong, False)):
        for text in texts.split(" / "):
            assert answer_right(kind, text, truth, "red circle") is expected, text


def test_the_overlap_of_frames_is_scored():
    assert frame_f1("frames 0 to 9", "frames 0 to 9") == 1 and frame_f1("left", "frames 0 to 9") == 0
    assert frame_f1("frames 0 to 9", "frames 5 to 14") == pytest.approx(0.5)
    assert heard("frames 0 to 9 and 14 to 31", "frames") == [[0, 9], [14, 31]]


# ---------------------------------------------------------------- what follows from what a video model notes

WAY = "Which way does the red circle move?"
UNCOVERED = "If nothing stood in front of it, in which frames would the red circle appear?"


def test_what_the_notes_lack_is_not_made_up():
    scores = torch.zeros(32)
    scores[4:10] = scores[14:22] = 0.9
    transient, persistent, nobody = (
        explain.noted_fact("red circle", torch.tensor(p), s, 0.5)
        for p, s in ((0.1, scores), (0.9, scores), (0.1, scores * 0))
    )
    assert (
        describe_track(transient) == "The red circle is transient: it is seen in frames 4 to 9 and 14 to 21."
    )
    assert describe_track(persistent).endswith(
        "frames 0 to 31. It is hidden in frames 0 to 3 and 10 to 13 and 22 to 31."
    )
    assert (
        describe_track(nobody) == "There is no red circle."
        and answer_with(nobody, WAY, 2) == "there is no red circle"
    )
    for question in (
        WAY,
        UNCOVERED,
        "In which frames is the red circle hidden?",
        "What sound does the red circle make?",
        "If the clip were played backwards, which way would the red circle move?",
    ):
        assert answer_with(transient, question, 2) == explain.UNSEEN
    assert answer_with(persistent, UNCOVERED, 2) == "frames 0 to 31"
