"""What a model says happens in films: nulls first, then answers whose recall is known, the parser, what is kept, what is refused."""

import pytest
import torch

import claims
import data
import explain
import models
from common import ANSWERS, load_items, load_pt, load_yaml, split_of, write_items
from models import find_model, load_vlm

ALL = "real", "vae", "copy", "past", "first"
MOVES = "left", "right", "up", "down", "left"  # left is the commonest
TEST = [s for s in (f"clip-{k}" for k in range(1000)) if split_of(s) == "test"][:100]


def films(folder, conditionings=ALL, actions=MOVES, n=100, length=9, **meta):
    """A folder of films of n test clips that say in their first pixel which they are: (number of the clip, of the conditioning, of the frame)."""

    def items():
        for c, name in enumerate(conditionings or [None]):
            for k, source in enumerate(TEST[:n]):
                frames = torch.zeros(length, 8, 8, 3, dtype=torch.uint8)
                frames[:, 0, 0] = torch.stack(
                    [torch.full((length,), k), torch.full((length,), c), torch.arange(length)], 1
                )
                action = actions[k % len(actions)]
                item = {
                    "id": f"{source}/{name}" if name else source,
                    "source": source,
                    "frames": frames,
                    "names": ["star"],
                }
                item["direction" if action in MOVES else "action"] = action
                if name:
                    item["conditioning"] = name
                if action in MOVES:
                    item["turns"] = [["Which way does the star move?", action]]
                yield item

    index = {"data": "synthetic", "name": "planted", "video": "planted", "video_weights": "small"}
    write_items(folder / "films", items(), index | ({"conditioning": "past"} if conditionings else {}) | meta)
    return folder / "films"


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """run(says, *flags, **world): the stage's result where a model says says(clip number, conditioning, question, number of frames); run.calls: what was shown."""

    def run(says, *flags, folder=None, names=ALL, **world):
        if folder is None:
            folder = films(tmp_path, conditionings=names, **world)
            (tmp_path / "out-answers.pt").unlink(missing_ok=True)
        run.calls = []

        def answers_to(model, processor, frames, question, at):
            run.calls.append((question, frames, at))
            return [
                says(int(x[0, 0, 0, 0]), (names or ["real"])[int(x[0, 0, 0, 1])], question, len(x))
                for x in frames
            ]

        monkeypatch.setattr(explain, "load_vlm", lambda entry, device, dtype: (None, None))
        monkeypatch.setattr(explain, "answers_to", answers_to)
        argv = [
            "--films",
            str(folder),
            "--size",
            "8",
            "--frames",
            "4",
            "--out",
            str(tmp_path / "out.yaml"),
            *flags,
        ]
        result = explain.main(["describe", *argv])
        assert load_yaml(tmp_path / "out.yaml", "describe")["kind"] == result["kind"]
        return result

    return run


def true(k):
    return MOVES[k % len(MOVES)]


def wrong(k):
    return {"left": "up", "up": "right", "right": "down", "down": "left"}[true(k)]


# ---------------------------------------------------------------- nulls


def test_a_model_that_always_says_the_same_retains_all_and_gains_nothing(planted):
    result = planted(lambda *what: "left", commonest="left")
    c = result["criteria"]["retention"]
    assert result["action_recall_real"] == result["action_recall_generated"] == 0.4
    assert result["retention"] == pytest.approx(1) == c["floors"]["commonest"]
    assert c["gain"] == pytest.approx(0) and c["p"] == 1 and result["criteria"]["action_recall"]["gain"] == 0


def test_what_is_said_of_other_clips_scores_at_the_floor_for_that(planted):
    other = torch.randperm(100, generator=torch.Generator().manual_seed(3)).tolist()
    result = planted(lambda k, name, *_: true(k if name == "real" else other[k]))
    c = result["criteria"]["retention"]
    assert c["low"] < c["floors"]["other_item"] < c["high"] and c["gain_low"] < 0
    assert c["floors"]["other_item"] == pytest.approx(0.28, abs=0.01)
    assert result["action_recall_real"] == 1 and result["retention"] < 0.45


def test_where_nothing_is_recalled_of_real_clips_there_is_nothing_to_retain(planted):
    result = planted(lambda k, name, *_: wrong(k) if name == "real" else true(k))
    assert result["action_recall_real"] == 0 and result["action_recall_generated"] == 1
    assert result["retention"] is None and "real clip" in result["retention_reason"]
    assert set(result["criteria"]) == {"action_recall"}


def test_films_that_are_answered_as_their_clips_retain_all_without_doubt(planted):
    result = planted(lambda k, *_: true(k) if k % 2 else wrong(k))
    # of recall there is doubt, of the ratio none
    assert result["action_recall_generated_high"] - result["action_recall_generated_low"] > 0.15
    assert [result[f"retention{end}"] for end in ("", "_low", "_high")] == pytest.approx([1, 1, 1])


# ---------------------------------------------------------------- recall that is known

KNOWN = {"real": lambda k: k % 10 < 8, "vae": lambda k: k % 5 < 3, "past": lambda k: k % 5 in (1, 4)}
KNOWN["first"] = lambda k: k % 10 == 3


def test_planted_recall_and_retention_come_back_with_an_interval_that_holds_them(planted):
    def says(k, name, *_):
        return (
            "It does not move."
            if name == "copy"
            else f"The star moves {true(k) if KNOWN[name](k) else wrong(k)}."
        )

    result = planted(says)
    assert [result[f"action_recall_{x}"] for x in ("real", "generated", "copy")] == pytest.approx(
        [0.8, 0.4, 0]
    )
    assert [result[f"retention{x}"] for x in ("", "_vae", "_first", "_copy")] == pytest.approx(
        [0.5, 0.75, 0.125, 0]
    )
    assert result["retention_low"] < 0.5 < result["retention_high"] and result["unparsed"] == 0
    c = result["criteria"]["retention"]
    assert [c[k] for k in ("score", "low", "high")] == [
        result[f"retention{end}"] for end in ("", "_low", "_high")
    ]
    assert c["ceiling"] == pytest.approx(0.75) and set(c["floors"]) == {"other_item", "commonest", "copy"}
    assert c["sources"] == c["n"] == 100
    real, own = (torch.tensor([float(KNOWN[name](k)) for k in range(100)]) for name in ("real", "past"))
    pick = torch.randint(100, (4000, 100), generator=torch.Generator().manual_seed(0))
    ends = (own[pick].mean(1) / real[pick].mean(1)).quantile(torch.tensor([0.025, 0.975])).tolist()
    assert [c["low"], c["high"]] == pytest.approx(ends, abs=0.02)  # of ratios, resampled as they are


def test_the_question_and_the_number_of_frames_are_chosen_by_the_clips_themselves(planted):
    def says(k, name, question, frames):
        best = (question.endswith("move?"), frames) == (True, 3)
        return true(k) if best == (name == "real") and k % 10 else wrong(k)

    result = planted(says, "--frames", "2,3,4")
    # asked with all three numbers, listed and described with the largest
    assert (result["kind"], result["frames"], result["options_searched"]) == ("asked", 3, 5)
    past = result["conditionings"]["past"]
    assert set(past) >= {"asked-2", "asked-3", "asked-4", "options-4", "described-4"}
    assert result["retention"] == 0 and "described-3" not in past
    assert past["described-4"]["recall"] == pytest.approx(0.9)
    result = planted(lambda k, *_: true(k), "--frames", "2,4,3")
    assert (result["kind"], result["frames"]) == ("asked", 4)


def test_actions_in_words_are_asked_of_and_recalled(planted):
    actions = (
        "Pushing something from left to right",
        "Pulling something from left to right",
        "Opening something",
    )
    said = (
        "A hand shoves a cup to the right.",
        "A hand drags a cup from left to right.",
        "Somebody opens a jar.",
    )

    def describes(k, name, question, n):
        return said[(k + (name == "past" and k % 2)) % 3] if question == explain.DESCRIBE else "no idea"

    result = planted(describes, actions=actions, n=60)
    assert result["kind"] == "described" and result["action_recall_real"] == 1
    assert result["action_recall_generated"] == 0.5 == pytest.approx(result["retention"])
    assert result["conditionings"]["real"]["options-4"] == {"recall": 0, "low": 0, "high": 0, "unparsed": 1}
    assert "asked-4" not in result["conditionings"]["real"]

    def chooses(k, name, question, n):
        return actions[k % 3].upper() if "Answer with one of" in question else "no idea"

    result = planted(chooses, actions=actions, n=60)
    assert result["kind"] == "options" and result["action_recall_generated"] == 1


def test_many_actions_are_not_listed_and_clips_alone_have_no_retention(planted):
    actions = [f"opening jar {'abcdefghij'[i % 10]}{'abcdefghij'[i // 10]}" for i in range(31)]
    result = planted(lambda k, *_: "Somebody opens a jar.", names=None, actions=actions, n=60)
    assert (
        result["conditioning"] == "real"
        and result["action_recall_real"] == 1
        and result["options_searched"] == 1
    )
    assert (
        result["retention"] is result["action_recall_generated"] is None
        and "no generated films" in result["retention_reason"]
    )
    assert set(result["criteria"]) == {"action_recall"}


# ---------------------------------------------------------------- the parser

# An action: what tells it; and what does not.
SENTENCES = """
Pushing something from left to right: A person pushes a cup from left to right. The cup was shoved rightwards.
  - A hand pushes the cup to the left. A hand pushes the cup. A hand pulls the cup from left to right.
  - The person does not push the cup from left to right. Someone pushes the box and then pulls it from left to right.
  - A hand pushes the cup from left to right and then to the left.
Pulling something from right to left: The person does not push the cup, but pulls it from right to left.
Moving something from left to right: - A hand puts the cup to the right of the plate.
Moving something up: A hand moves a pen upward. - A hand moves a pen down. A hand moves a pen up and down. A hand moves a pen.
Lifting something up completely without letting it drop down: A woman lifts the box. - A woman lifts the box and drops it.
Lifting something up completely, then letting it drop down: A woman lifts the box and drops it.
Lifting up one end of something, then letting it drop down: A person raises one end of a book and lets it go.
Throwing something: He tosses a ball at the wall. The ball was thrown. - He holds a ball.
Pretending to open something without actually opening it: A person is pretending to open a jar. - A person opens a jar.
Opening something: A person opens a jar. - A person pretends to open a jar. A person closes a jar. A man tries to open a can.
  - A person opens and closes a jar. The book isn't opened.
Failing to bend something: A person tries but fails to bend a rod.
Putting something into something: Somebody puts a pen into a mug. - Somebody takes a pen out of a mug.
Taking something out of something: Somebody takes a pen out of a mug. - Somebody puts a pen into a mug.
Putting something next to something: Somebody places a pen next to a mug. - Somebody places a pen behind a mug.
Putting something on a surface: A hand places a cup on the table.
Dropping something into something: A pen is released into a cup.
Pushing something off of something: A box is pushed off the table. - A box is pushed onto the table.
Turning the camera left while filming something: The camera turns left. - The camera pans to the right.
Turning the camera right while filming something: The camera pans to the right.
Moving something towards the camera: The car moves towards the camera. - The car moves away from the camera.
Moving something and something closer to each other: Two cups are brought closer to each other. - Two cups are moved apart.
Moving something and something away from each other: Two cups are moved apart.
Tearing something into two pieces: A sheet is torn into two pieces. A sheet is torn in half. - A sheet is torn.
Unfolding something: A sheet is unfolded. - A sheet is folded.
Touching (without moving) part of something: She touches the cup without moving it.
Moving part of something: - She touches the cup without moving it.
Turning something upside down: A bottle is turned upside down. - A bottle is turned.
Letting something roll down a slanted surface: The ball rolls down the slope. - The ball rolls up the slope.
Pouring [something] into [something]: Water is poured into a glass. - Water is poured out of a glass.
Spinning something so it continues spinning: A coin is spun on the table.
Picking something up: A person picks up a cup and puts it down.
Covering something with something: A hand covers the phone with a cloth. - A hand uncovers the phone.
Tilting something with something on it until it falls off: A tray is tilted until the pen slides off.
Throwing something in the air and catching it: A child tosses a ball up and catches it.
juggling balls: A man is juggling three balls. - A man is holding three balls.
Attach Box Label: The label is attached to the box."""


@pytest.mark.parametrize("line", SENTENCES.strip().replace("\n  -", " -").splitlines())
def test_actions_in_sentences(line):
    action, texts = line.split(":", 1)
    telling, *others = texts.split(" - ")
    for found, sentences in ((True, telling), (False, " ".join(others))):
        for text in sentences.split("."):
            if text.strip():
                assert claims.recalled(claims.told(f"{text.strip()}."), action) is found, text


def test_one_option_is_named():
    still = "it doesn't or almost doesn't move"
    said = {
        "Up left.": "up left",
        "It goes up": "up",
        "left or up": None,
        "not left": None,
        "The answer is: LEFT": "left",
        "leftovers": None,
        still: still,
    }
    for text, found in said.items():
        assert explain.option(text, ["left", "up", "up left", still]) == found, text


def test_every_verb_of_the_table_is_found_in_its_own_inflections():
    for verb in claims.SYNONYMS:
        assert claims.stem(f"{verb}s") == claims.stem(verb), verb
        assert claims.recalled(claims.told(f"A man {verb}s a cup up and down."), f"{verb} a cup"), verb


# ---------------------------------------------------------------- frames


def test_frames_are_spread_from_the_first_to_the_last():
    for length, k, numbers in (
        (17, 3, [0, 8, 16]),
        (9, 8, [0, 1, 2, 3, 5, 6, 7, 8]),
        (9, 16, list(range(9))),
    ):
        assert models.spread(length, k) == numbers


def test_films_are_shown_in_these_frames_and_it_says_how_many(planted):
    result = planted(lambda k, *_: true(k), "--frames", "3,9,20", n=4)
    assert result["frames_used"] == {3: 3, 9: 9, 20: 9} and "asked-20" not in result["conditionings"]["real"]
    for _, frames, (numbers, length) in planted.calls:
        assert (
            length == 9
            and numbers in ([0, 4, 8], list(range(9)))
            and (frames[:, :, 0, 0, 2] == torch.tensor(numbers)).all()
        )


@pytest.mark.parametrize(
    "name",
    [
        "small_vlm",
        "small_qwen2vl",
        "small_qwen3vl",
        "small_internvl",
        "llava",
        "llava_next",
        "llava_onevision",
    ],
)
def test_every_family_takes_several_frames(name, request, tmp_path, monkeypatch):
    path = str(
        request.getfixturevalue("small_llavas")[name]
        if name.startswith("llava")
        else request.getfixturevalue(name)
    )
    entry = find_model(path)
    model, processor = load_vlm(entry)
    monkeypatch.setattr(explain, "LONGEST", 3)
    given, generate = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **more: given.append(more) or generate(**more))
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 48, 48, 3), generator=g, dtype=torch.uint8)
    for k in (2, 4):
        assert len(models.answers_to(model, processor, frames[:, :k], "Where?", (list(range(k)), k))) == 2
    qwen = entry["type"].startswith("qwen")
    token = model.config.video_token_id if qwen else model.config.image_token_id
    few, many = ((g["input_ids"] == token).sum().item() for g in given)
    assert many == 2 * few > 0
    argv = ["--model", path, "--films", str(films(tmp_path, n=3)), "--frames", "2", "--size", "48"]
    result = explain.main(["describe", *argv, "--out", str(tmp_path / "out.yaml")])
    assert result["frames_as"] == ("video" if qwen else "pictures") and result["clips"] == 3


# ---------------------------------------------------------------- going on, and what is refused


def test_what_was_answered_is_not_asked_again_until_something_changes(planted, tmp_path):
    folder = films(tmp_path, n=8)

    def stop(k, name, question, frames):
        if frames == 3:
            raise KeyboardInterrupt
        return true(k)

    with pytest.raises(KeyboardInterrupt):
        planted(stop, "--frames", "2,3", folder=folder)
    kept = load_pt(tmp_path / "out-answers.pt", ANSWERS)["answers"]
    assert {key.partition("-")[2] for key in kept} == {"2"} and not (tmp_path / "out.yaml").exists()
    one = planted(lambda k, *_: true(k), "--frames", "2,3", folder=folder)
    assert planted.calls and all(frames.shape[1] == 3 for _, frames, _ in planted.calls)
    two = planted(lambda *_: "never asked", "--frames", "2,3", folder=folder)
    assert not planted.calls and two["conditionings"] == one["conditionings"]
    fewer = planted(lambda *_: "never asked", "--frames", "3", folder=folder)
    assert not planted.calls and set(fewer["conditionings"]["real"]) < set(one["conditionings"]["real"])
    items, index = load_items(folder)
    items[3]["frames"] = items[3]["frames"].clone()
    items[3]["frames"][5, 4, 4, 0] = 1  # of a film that is shown without this frame
    write_items(
        folder, items, {k: index[k] for k in ("data", "name", "video", "video_weights", "conditioning")}
    )
    planted(lambda k, *_: true(k), "--frames", "3", folder=folder)
    assert len({question for question, *_ in planted.calls}) == 3


@pytest.mark.parametrize(
    "flags, world, said",
    [
        ("--model internvl2", {}, "internvl3-8b"),
        ("--frames 3,x", {}, "--frames 3,x"),
        ("--frames 1", {}, "2 or more"),
        ("--clips 0", {}, "--clips 0"),
        ("--answers a.pt", {}, "--answers"),
        ("--films nowhere", {}, "nowhere/index.yaml"),
        ("", {"conditioning": "text"}, "lacks films of text"),
        ("", {"conditionings": ("vae", "past")}, "lacks films of real"),
        ("", {"length": 1}, "is no clip"),
        ("", {"actions": [""]}, "neither action nor direction"),
    ],
)
def test_mistakes_cost_one_sentence_before_a_model_is_loaded(
    flags, world, said, tmp_path, monkeypatch, refused
):
    monkeypatch.setattr(explain, "load_vlm", lambda *_: pytest.fail("a model was loaded"))
    argv = [
        "--films",
        str(films(tmp_path, n=3, **world)),
        "--out",
        str(tmp_path / "out.yaml"),
        *flags.split(),
    ]
    refused(lambda: explain.main(["describe", *argv]), said)


def test_films_of_other_clips_are_refused(tmp_path, refused):
    folder = films(tmp_path, n=3)
    items, index = load_items(folder)
    fewer = [i for i in items if i["id"] != f"{TEST[1]}/past"]
    write_items(folder, fewer, {k: index[k] for k in ("data", "name", "conditioning")})
    refused(lambda: explain.main(["describe", "--films", str(folder)]), "lacks films of past")


# ---------------------------------------------------------------- the small model


@pytest.mark.slow
def test_the_small_model_says_which_way_things_move(tmp_path):
    data.main(["moving", "--frames", "17", "--n", "40", "--out", str(tmp_path / "clips")])
    argv = ["--films", str(tmp_path / "clips"), "--frames", "16", "--out", str(tmp_path / "out.yaml")]
    result = explain.main(["describe", *argv])
    assert result["kind"] == "asked" and result["action_recall_real"] >= 0.8
    assert result["criteria"]["action_recall"]["gain_low"] > 0
    assert result["weights"] == "small" and result["data"] == "synthetic"
