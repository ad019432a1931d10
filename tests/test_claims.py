"""Words, boxes, actions and claims in free text, compared with the truth of planted and generated clips."""

import pytest
import torch

import claims
import synthetic
from claims import WORDS, answer_is_correct, check_claim, object_of_question, omitted, parse_claims
from explain import answer_with, describe_track, sentence_of_count, tracker_fact, true_fact


def track(name, persistent, present, visible=None, hidden=(), direction="right"):
    spans = {"present": [present], "visible": visible or [present], "hidden": list(hidden)}
    return {"object": name, "persistent": persistent, "direction": direction} | spans


RED = track("red circle", False, [4, 21], [[4, 9], [14, 21]], [[10, 13]], "up left")
BLUE = track("blue star", True, [0, 31], direction="still")
CLIP = {"frames": range(32), "absent": "green star", "tracks": [RED, BLUE]}
NAMES = ["red circle", "blue star"]


def claimed(text, names=NAMES):
    return parse_claims(text, names)[0]


def lines_of(table):
    """The rows of a table; a line that begins with spaces continues the one before."""
    return table.strip("\n").replace("\n  ", " ").splitlines()


# scale, side of the image in pixels: box: texts
BOXES = r"""
thousandths: none:  ~ in row 3 of 4, column 1 of 2 ~ [100, 200, 300] ~ [100, 200, 300, 1200] ~ <loc_1><loc_2>
thousandths: 0.1 0.2 0.3 0.4: [[100,200,300,400;500,600,700,800]] ~ [300,400,100,200] ~ [0.1, 0.2, 0.3, 0.4]
thousandths: 0.1 0.2 0.3 0.4: <|box_start|>(100,200),(300,400)<|box_end|> ~ <box>[[100, 200, 300, 400]]</box>
pixels 96: 0.25 0.5 0.75 1: ```json\n[\n\t{"bbox_2d": [24, 48, 72, 96], "label": "red circle"}\n]\n```
pixels 200 100: 0.1 0.2 0.5 0.5: [20, 20, 100, 50]
fractions: 0 0 1 1: [0, 0, 1, 1]
thousandths: 0.046875 0.046875 0.109375 0.109375: <phrase>a</phrase><patch_index_0033><patch_index_0099>
thousandths: 0.1005 0.2005 0.3005 0.9995: cat<loc_100><loc_200><loc_300><loc_999>
thousandths: 0.125 0.25 0.9990234375 0.5: <loc0256><loc0128><loc0512><loc1023> cat"""

# kind: word: texts
SAID = """
place: none:  ~ on the table ~ I cannot see a circle on the left. ~ It isn't in the middle. ~ left and right
place: none: to the right of the blue star ~ It is on top of the square. ~ on the left side of the green one
place: top left: in the top-left corner ~ Upper left.
place: middle: The circle is in the centre. ~ center of the image ~ right in the middle
place: top right: the upper right-hand corner
direction: none:  ~ a red circle ~ It moves. ~ up and down ~ left or right ~ clockwise
direction: right: to the right ~ rightwards ~ from left to right
direction: up left: It moves up and to the left.
direction: down right: diagonally downward to the right ~ from the top left to the bottom right
direction: still: the circle doesn't move ~ It remains stationary. ~ The star isn't moving left."""

# label: sentences that state it - sentences that do not
ACTIONS = """
Pushing something from left to right: A person pushes a cup from left to right. The cup was shoved rightwards.
  - A hand pushes the cup to the left. A hand pushes the cup. A hand pulls the cup from left to right.
  The person does not push a cup from left to right. He pushes a box and then pulls it from left to right.
  A hand pushes the cup from left to right and then to the left.
Moving something up: A hand moves a pen upward.
  - A hand moves a pen down. A hand moves a pen up and down. A hand moves a pen.
Pretending to open something without actually opening it: A person is pretending to open a jar.
  - A person opens a jar.
Putting something into something: Somebody puts a pen into a mug. - Somebody takes a pen out of a mug.
Pushing something off of something: A box is pushed off the table. - A box is pushed onto the table.
Pouring [something] into [something]: Water is poured into a glass. - Water is poured out of a glass.
Picking something up: A person picks up a cup and puts it down."""

# kind: true answer: correct answers - wrong answers
ANSWERS = """
persistence: transient: It is transient. / The red circle is not persistent.
  - transient or persistent / nothing / the clip does not show that
frames: frames 5 to 21: frames 4 to 21 - frames 4 to 12
direction: left: to the left - up left
hidden: frames 10 to 13: It is hidden in frames 10 to 12. - it is never hidden
whatif: frames 0 to 31: frames 0 to 30 - left
count: 2: There are two. / 2 - 3 objects / 2 or 3
absent: there is no red circle: There is no red circle. / It is not in the clip. - up left
unknown: the clip does not show that: That cannot be known. / The clip doesn't show that.
  - a loud one / there is no red circle"""

CLAIMED = """
The red disc is moving from left to right. | red circle: direction right
The red circle does not move. | red circle: direction still
The red circle never leaves. | red circle: last 31
The red circle is always visible; the star is hidden in frame 7.
   | red circle: visible 0-31, blue star: hidden 7-7
The clip shows 3 moving shapes. | : count 3
The red circle crosses the blue star and moves left. It is never hidden.
   | red circle: direction left, red circle: hidden never
Red circle: transient, frames 4 to 21, moves up left, hidden frames 10 to 13. | red circle: persistence False,
  red circle: visible 4-21, red circle: direction up left, red circle: hidden 10-13
The red circle can be seen in all frames except 10 to 13. |
If nothing hid it, the red circle would appear in frames 0 to 31. |
The red circle first appears in frame 4 and last appears in frame 21.
   | red circle: first 4, red circle: last 21
While the blue star is still, the red circle moves towards the top-left corner.
   | blue star: direction still, red circle: direction up left
Frame 4: the red circle enters. Frame 21: it leaves. | red circle: first 4, red circle: last 21"""
CHECKED = {
    True: """The red circle is transient. The blue star is not transient. The red circle moves up left.
The red circle does not move left. The red circle enters in frame 5. The red circle leaves in frame 20.
The red circle is visible in frames 5 to 9 and 14 to 20. The red circle is hidden in frames 9 to 14.
The blue star is never hidden. The blue star never leaves. The red circle is gone after frame 21.
There is no green star. There are not 3 objects. The red circle is there in frame 12.""",
    False: """The red circle is persistent. The red circle moves up. The red circle does not move up left.
The red circle enters in frame 6. The red circle leaves in frame 19. There is a green star.
The red circle is visible in frames 4 to 21. The red circle is hidden in frames 7 to 13.
The red circle is never hidden. There are 3 objects. The red circle is gone in frames 4 to 9.
There is no red circle. The green star is persistent. The red circle is visible in frame 12.""",
    None: "It moves left.",
}


@pytest.mark.parametrize("line", lines_of(BOXES))
def test_boxes_in_answers(line):
    how, box, texts = line.split(": ", 2)
    scale, *sides = how.split()
    side = tuple(map(int, sides)) if len(sides) == 2 else int(*sides)
    expected = None if box == "none" else pytest.approx([float(x) for x in box.split()])
    for text in texts.replace(r"\n", "\n").split(" ~ "):
        assert claims.parse_box(text, scale, side) == expected, text


@pytest.mark.parametrize("line", lines_of(SAID))
def test_places_and_directions_in_answers(line):
    kind, word, texts = line.split(": ", 2)
    for text in texts.split(" ~ "):
        assert claims.parse_word(text, kind) == (None if word == "none" else word), text
    assert all(claims.parse_word(w, kind) == w for row in WORDS[kind] for w in row)


def test_questions_are_about_the_largest_object_whose_name_is_unique():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 9, 9]])
    assert object_of_question({"boxes": boxes, "labels": ["a", "a"]}) is None
    assert object_of_question({"boxes": boxes, "labels": ["a", "b"]}) == (1, "b")
    assert object_of_question({"boxes": boxes.flip(0), "labels": ["a", "b"]}) == (0, "a")
    assert object_of_question({"boxes": boxes.flip(0), "labels": ["a", "b"], "direction": "up"}) == (1, "b")
    assert object_of_question({"boxes": boxes[:0], "labels": []}) is None


@pytest.mark.parametrize("line", lines_of(ACTIONS))
def test_actions_in_sentences(line):
    action, texts = line.split(":", 1)
    for expected, sentences in zip((True, False), texts.split(" - "), strict=False):
        for text in filter(str.strip, sentences.split(".")):
            assert claims.recalled(claims.parse_action(f"{text.strip()}."), action) is expected, text


def test_text_without_a_claim_is_counted_and_facts_without_a_true_claim_are_omitted():
    assert parse_claims("I like cheese. What a nice clip!", NAMES) == ([], 2)
    assert parse_claims("...", NAMES) == ([], 0) == parse_claims("The clip does not show that.", NAMES)
    facts = [("", "count")] + [(n, k) for n in NAMES for k in ("persistence", "span", "direction", "hidden")]
    assert omitted([], CLIP) == (facts, facts)
    text = "The red circle is transient: it enters in frame 4. It moves left. The blue star does not move."
    left_out = [("red circle", k) for k in ("span", "direction", "hidden")]
    left_out += [("blue star", k) for k in ("persistence", "span", "hidden")]
    assert omitted(claimed(text + " There are 2 objects."), CLIP)[0] == left_out


def brief(name, kind, value, denied):
    """A claim in a few words: "red circle: not visible 0-9 14-21"."""
    if isinstance(value, dict):
        kind, value = next(iter(value.items()))
    if isinstance(value, list):
        value = " ".join(f"{a}-{b}" for a, b in value) or "never"
    return f"{name}: {'not ' * denied}{kind} {value}"


@pytest.mark.parametrize("line", lines_of(CLAIMED))
def test_claims_in_free_words(line):
    text, _, found = line.partition(" |")
    assert ", ".join(brief(*c) for c in claimed(text)) == found.strip()


@pytest.mark.parametrize("truth", CHECKED)
def test_claims_are_checked(truth):
    for text in CHECKED[truth].replace("\n", " ").split(". "):
        assert [check_claim(c, CLIP) for c in claimed(text)] == [truth], text


def test_the_text_of_a_generated_clip_is_true_and_complete(trajectories):
    for clip in trajectories:
        text = " ".join([*map(describe_track, clip["tracks"]), sentence_of_count(clip["count"])])
        found, unparsed = parse_claims(text, clip["names"])
        assert text == clip["text"] and not unparsed and found
        assert all(check_claim(c, clip) is True for c in found) and omitted(found, clip)[0] == [], text


def falsified(t, kind, absent):
    """Changes of a track that make one kind of fact false."""
    first, last = t["present"][0]
    changes = {"object": absent, "persistent": not t["persistent"]}
    changes["hidden"] = [] if t["hidden"] else [[first + 2, first + 6]]
    if kind in changes:
        return [{kind: changes[kind]}]
    if kind == "direction":
        return [{"direction": d} for d in {*synthetic.DIRECTIONS, "still"} - {t["direction"]}]
    start, end = t["why"] not in ("enters", "appears"), t["why"] not in ("leaves", "vanishes")  # not stated
    spans = [(first, last - 7 if last > 8 else last + 7), (first + 7, last)]
    return [{"present": [[a, b]]} for a, b in spans if start and b != last or end and a != first]


@pytest.mark.parametrize("kind", ["object", "direction", "span", "persistent", "hidden"])
def test_every_planted_falsehood_is_found_and_nothing_else(trajectories, kind):
    every = "persistence", "span", "direction", "hidden"
    tried, kinds = 0, {"object": every, "persistent": every[:1]}.get(kind, (kind,))
    for clip in trajectories:
        for k, t in enumerate(clip["tracks"]):
            for change in falsified(t, kind, clip["absent"]):
                tracks = [*clip["tracks"][:k], t | change, *clip["tracks"][k + 1 :]]
                text = " ".join([*map(describe_track, tracks), sentence_of_count(clip["count"])])
                found = claimed(text, [*clip["names"], clip["absent"]])
                wrong = {(c.object, c.kind) for c in found if not check_claim(c, clip)}
                assert wrong == {(tracks[k]["object"], x) for x in kinds}, text
                tried += 1
    assert tried >= 100


def test_the_template_answers_every_generated_question_in_its_own_words(trajectories):
    for clip in trajectories:
        for (question, answer), (kind, name) in zip(clip["turns"], clip["topics"], strict=True):
            assert answer_with(true_fact(clip, name), question, clip["count"]) == answer, question
            assert answer_is_correct(kind, answer, answer, name), question


@pytest.mark.parametrize("line", lines_of(ANSWERS))
def test_free_answers_are_compared_with_the_truth(line):
    kind, truth, answers = line.split(": ", 2)
    for expected, texts in zip((True, False), answers.split(" - "), strict=False):
        for text in texts.split(" / "):
            assert answer_is_correct(kind, text, truth, "red circle") is expected, text


def test_case_and_punctuation_of_an_answer_do_not_matter():
    same = ("right", "Right", "right.", " RIGHT! ")
    assert all(claims.is_correct(answer, "right") for answer in same) and not claims.is_correct(
        "left", "right"
    )
    assert claims.is_correct("Frames 0 to 9.", "frames 0 to 10") and not claims.is_correct(
        "up right", "right"
    )


def test_the_overlap_of_frames_is_scored():
    assert claims.frame_f1("frames 0 to 9", "frames 0 to 9") == 1
    assert claims.frame_f1("left", "frames 0 to 9") == 0
    assert claims.frame_f1("frames 0 to 9", "frames 5 to 14") == pytest.approx(0.5)
    assert claims.parse_answer("frames 0 to 9 and 14 to 31", "frames") == [[0, 9], [14, 31]]


def test_facts_that_a_tracker_does_not_give_are_not_made_up():
    scores = torch.zeros(32)
    scores[4:10] = scores[14:22] = 0.9
    given = ((0.1, scores), (0.9, scores), (0.1, scores * 0))
    transient, persistent, absent = (tracker_fact("red circle", torch.tensor(p), s, 0.5) for p, s in given)
    assert describe_track(transient).endswith("transient: it is seen in frames 4 to 9 and 14 to 21.")
    assert describe_track(persistent).endswith("hidden in frames 0 to 3 and 10 to 13 and 22 to 31.")
    which = "Which way does the red circle move?"
    where = "If nothing stood in front of it, in which frames would the red circle appear?"
    assert {answer_with(transient, q, 2) for q in (which, where)} == {"the clip does not show that"}
    assert answer_with(absent, which, 2) == "there is no red circle"
    assert answer_with(persistent, where, 2) == "frames 0 to 31"
