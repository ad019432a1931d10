"""Words, boxes, actions and claims in free text, compared with the truth of planted and generated clips."""

import pytest
import torch

import claims
from claims import WORDS, answer_is_correct, check_claim, object_of_question, omitted, parse_claims
from explain import describe_track, sentence_of_count, tracker_fact


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

# kind: true answer: correct answers - wrong answers
ANSWERS = """
persistence: transient: It is transient. / The red circle is not persistent.
  - transient or persistent / nothing / the clip does not show that
frames: frames 5 to 21: frames 4 to 21 - frames 4 to 12
frames: frames 0 to 9 and 14 to 31: frames 0-9, 14-31 - frames 0 to 9
direction: left: to the left - up left
hidden: frames 10 to 13: It is hidden in frames 10 to 12. - it is never hidden
whatif: frames 0 to 31: frames 0 to 30 - left
count: 2: There are two. / 2 - 3 objects / 2 or 3
absent: there is no red circle: There is no red circle. / It is not in the clip. - up left
unknown: the clip does not show that: That cannot be known. / The clip doesn't show that.
  - a loud one / there is no red circle"""

# of every claim in the text: is it true (T), false (F) or unclear (?)
CHECKED = """
TTTT: The red circle is transient. The blue star is not transient. The red circle moves up left. The star does
  not move.
TTT: The red circle does not move left. The red circle enters in frame 5. The red circle leaves in frame 20.
TT: The red circle is visible in frames 5 to 9 and 14 to 20. The red circle is hidden in frames 9 to 14.
TTT: The blue star is never hidden. The blue star never leaves. The red circle is gone after frame 21.
TTT: There is no green star. There are not 3 objects. The red circle is there in frame 12.
TT: The red disc is moving from the bottom right to the top left. The clip shows 2 moving shapes.
TT: The blue star is always visible; the circle is hidden in frames 10 to 13.
TT: The red circle crosses the blue star and moves up left. The star is never hidden.
TTTT: Red circle: transient, frames 4 to 9 and 14 to 21, moves up left, hidden frames 10 to 13.
TT: The red circle first appears in frame 4 and last appears in frame 21.
TT: While the blue star is still, the red circle moves towards the top-left corner.
TT: Frame 4: the red circle enters. Frame 21: it leaves.
FFF: The red circle is persistent. The red circle moves up. The red circle does not move up left.
FFF: The red circle enters in frame 6. The red circle leaves in frame 19. There is a green star.
FFF: The red circle is visible in frames 4 to 21. It is hidden in frames 7 to 13. It is always visible.
FFF: The red circle is never hidden. There are 3 objects. The red circle is gone in frames 4 to 9.
FFF: There is no red circle. The green star is persistent. The red circle is visible in frame 12.
FFFF: The red circle is there in frames 0 to 31. The green star is still. It enters in frame 4. It is never
  hidden.
?: It moves left.
: The red circle can be seen in all frames except 10 to 13. If nothing hid it, it would appear in frame 9."""


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


def test_a_description_names_the_one_label_whose_words_it_shares():
    labels = [f"Pushing something from {way}" for way in ("left to right", "right to left")]
    labels += ["Pulling something from left to right", "Putting something into something", "Opening a jar"]
    labels.append("Closing a jar")
    texts = "She pushes a cup from left to right.", "The cup is pushed from right to left.", "He pulls it."
    texts += "Somebody puts a pen into a mug.", "He opens the jar.", "There is a jar.", "A dog."
    texts += ("She doesn't push a cup from left to right.",)
    named = [row.nonzero().flatten().tolist() for row in claims.names_labels(texts, labels)]
    assert named == [[0], [1], [2], [3], [4], [], [], []]


def test_text_without_a_claim_is_counted_and_facts_without_a_true_claim_are_omitted():
    assert parse_claims("I like cheese. What a nice clip!", NAMES) == ([], 2)
    assert parse_claims("...", NAMES) == ([], 0) == parse_claims("The clip does not show that.", NAMES)
    facts = [("", "count")] + [(n, k) for n in NAMES for k in ("persistence", "span", "direction", "hidden")]
    assert omitted([], CLIP) == (facts, facts)
    text = "The red circle is transient: it enters in frame 4. It moves left. The blue star does not move."
    left_out = [("red circle", k) for k in ("span", "direction", "hidden")]
    left_out += [("blue star", k) for k in ("persistence", "span", "hidden")]
    assert omitted(claimed(text + " There are 2 objects."), CLIP)[0] == left_out


@pytest.mark.parametrize("line", lines_of(CHECKED))
def test_claims_in_free_words_are_checked(line):
    marks, _, text = line.partition(": ")
    assert [check_claim(c, CLIP) for c in claimed(text)] == [{"T": True, "F": False}.get(m) for m in marks]


def test_the_text_of_a_generated_clip_is_that_of_the_template(trajectories):
    for clip in trajectories:
        text = " ".join([*map(describe_track, clip["tracks"]), sentence_of_count(clip["count"])])
        assert text == clip["text"]


@pytest.mark.parametrize("line", lines_of(ANSWERS))
def test_free_answers_are_compared_with_the_truth(line):
    kind, truth, answers = line.split(": ", 2)
    for expected, texts in zip((True, False), answers.split(" - "), strict=False):
        for text in texts.split(" / "):
            assert answer_is_correct(kind, text, truth, "red circle") is expected, text


def test_case_punctuation_and_a_few_frames_of_an_answer_do_not_matter():
    assert all(claims.is_correct(answer, "right") for answer in ("right", "Right", "right.", " RIGHT! "))
    assert not any(claims.is_correct("up right", answer) for answer in ("right", "up"))
    assert claims.is_correct("Frames 0 to 9.", "frames 0 to 10")
    assert [claims.frame_f1(text, "frames 0 to 9") for text in ("frames 0 to 9", "left")] == [1, 0]
    assert claims.frame_f1("frames 0 to 9", "frames 5 to 14") == pytest.approx(0.5)


def test_an_object_that_a_tracker_calls_persistent_is_present_throughout():
    scores = torch.zeros(32)
    scores[4:10] = scores[14:22] = 0.9
    words = "is there in frames 0 to 31. It is hidden in frames 0 to 3 and 10 to 13 and 22 to 31."
    fact = tracker_fact("red circle", torch.tensor(0.9), scores, 0.5)
    assert describe_track(fact) == f"The red circle is persistent: it {words}"
