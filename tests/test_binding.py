"""What a probe reads beside what the model says: parsed answers, every family's, nulls, and worlds whose answer is known."""

import pytest
import torch
from helpers import plant_features

import claims
import data
import explain
import extract
import families
import models
from claims import WORDS, asked_object
from common import ANSWERS, load_items, load_pt, load_yaml, save_pt, split_of, write_items
from models import LOADERS, find_model

FAMILIES = {
    "small_vlm": 80,
    "small_qwen2vl": 64,
    "small_qwen3vl": 64,
    "small_internvl": 48,
    "small_cogvlm2": 56,
    "llava": 48,
    "llava_next": 48,
    "llava_onevision": 96,
}


# ---------------------------------------------------------------- parsing

NO_BOX = (
    "",
    "in row 3 of 4, column 1 of 2",
    "[100, 200, 300]",
    "[100, 200, 300, 1200]",
    "[-1, 200, 300, 400]",
    "[[x0,y0,x1,y1]]",
    "<loc_1><loc_2><loc_3>",
)
SAME_BOX = (  # as CogVLM, Qwen2-VL, InternVL and LLaVA write it
    "[[100,200,300,400]]",
    "[[100,200,300,400;500,600,700,800]]",
    "<|box_start|>(100,200),(300,400)<|box_end|>",
    "the circle(100,200),(300,400)",
    "<ref>cat</ref><box>[[100, 200, 300, 400]]</box>",
    "[0.1, 0.2, 0.3, 0.4]",
    "[300, 400, 100, 200]",
    "[100, 200, 300, 400] and [0, 0, 1, 1]",
)


@pytest.mark.parametrize(
    "text, scale, side, box",
    [
        *((text, "thousandths", None, None) for text in NO_BOX),
        *((text, "thousandths", None, [0.1, 0.2, 0.3, 0.4]) for text in SAME_BOX),
        ("[10, 20, 30, 97]", "pixels", 96, None),
        ("[0.1, 0.2, 1.3, 0.4]", "fractions", None, None),
        ("[0, 0, 1, 1]", "fractions", None, [0, 0, 1, 1]),
        # Qwen2.5-VL
        (
            '```json\n[\n\t{"bbox_2d": [24, 48, 72, 96], "label": "red circle"}\n]\n```',
            "pixels",
            96,
            [0.25, 0.5, 0.75, 1],
        ),
        ('{"bbox_2d": [240, 480, 720, 960]}', "thousandths", None, [0.24, 0.48, 0.72, 0.96]),  # Qwen3-VL
        # Kosmos-2
        (
            "<phrase>a</phrase><object><patch_index_0033><patch_index_0099></object>",
            "thousandths",
            None,
            [1.5 / 32, 1.5 / 32, 3.5 / 32, 3.5 / 32],
        ),
        ("<patch_index_0033><patch_index_0033>", "thousandths", None, [1 / 32, 1 / 32, 2 / 32, 2 / 32]),
        # Florence-2
        ("cat<loc_100><loc_200><loc_300><loc_999>", "thousandths", None, [0.1005, 0.2005, 0.3005, 0.9995]),
        # PaliGemma
        (
            "<loc0256><loc0128><loc0512><loc1023> cat",
            "thousandths",
            None,
            [128 / 1024, 0.25, 1023 / 1024, 0.5],
        ),
    ],
)
def test_boxes_in_answers(text, scale, side, box):
    assert claims.parse_box(text, scale, side) == (box and pytest.approx(box))


NO_PLACE = (
    "",
    "on the table",
    "I cannot see a circle on the left.",
    "It isn't in the middle.",
    "left and right",
    "to the right of the blue star",
    "It is on top of the square.",
    "on the left side of the green one",
    "Bright lefties",
)
PLACES = {
    "top left": ["in the top-left corner", "Upper left."],
    "middle": ["The circle is in the centre.", "center of the image", "right in the middle"],
    "left": ["on the left side of the picture", "middle left"],
    "bottom right": ["lower right of the image"],
    "top": ["top center"],
    "top right": ["the upper right-hand corner"],
}
NO_WAY = (
    "",
    "a red circle",
    "It moves.",
    "up and down",
    "left or right",
    "clockwise",
    "It cannot be said whether it moves left.",
)
WAYS = {
    "right": ["to the right", "rightwards", "from left to right"],
    "up left": ["It moves up and to the left."],
    "up": ["Upwards", "towards the top of the image"],
    "down right": ["diagonally downward to the right", "from the top left to the bottom right"],
    "still": ["the circle doesn't move", "It remains stationary.", "The star isn't moving left."],
}


@pytest.mark.parametrize("kind, none, some", [("place", NO_PLACE, PLACES), ("direction", NO_WAY, WAYS)])
def test_places_and_directions_in_answers(kind, none, some):
    for text, word in [
        *((t, None) for t in none),
        *((w, w) for row in WORDS[kind] for w in row),
        *((t, w) for w, texts in some.items() for t in texts),
    ]:
        assert claims.parse_word(text, kind) == word, text


def test_the_words_are_those_of_the_data(shapes_folder, moving_folder):
    for folder, kind in ((shapes_folder, "place"), (moving_folder, "direction")):
        for item in load_items(folder)[0]:
            k, name = asked_object(item)
            column, row = explain.where(item, kind)
            assert [explain.OPENLY[kind].format(name), WORDS[kind][row][column]] in item["turns"]
            assert explain.questions_to(item, "{}").get("caption") in (None, item["turns"][0][0])


def test_a_name_that_two_objects_have_is_not_asked_about():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 9, 9]])
    assert asked_object({"boxes": boxes, "labels": ["a", "a"]}) is None
    assert asked_object({"boxes": boxes, "labels": ["a", "b"]}) == (1, "b")
    assert asked_object({"boxes": boxes[:0], "labels": []}) is None


# ---------------------------------------------------------------- every family


@pytest.fixture
def folder_of(request):
    return lambda which: (
        request.getfixturevalue("small_llavas")[which]
        if which.startswith("llava")
        else request.getfixturevalue(which)
    )


@pytest.mark.parametrize("which", FAMILIES)
def test_a_question_takes_the_place_of_the_prompt(folder_of, monkeypatch, which):
    model, processor = LOADERS["vlm"](find_model(str(folder_of(which))))
    frames = torch.randint(
        0,
        256,
        (2, 1, FAMILIES[which], FAMILIES[which], 3),
        generator=torch.Generator().manual_seed(0),
        dtype=torch.uint8,
    )
    given = explain.asking(
        model, processor, families.family_of(model)(model, processor)[0](frames), "Where is the cup?"
    )
    monkeypatch.setattr(families, "PROMPT", "Where is the cup?")
    whole = families.family_of(model)(model, processor)[0](frames)
    for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
        assert (name in given) == (name in whole) and (
            name not in given or torch.equal(given[name], whole[name])
        ), name


@pytest.fixture
def few(shapes_folder, tmp_path, monkeypatch):
    """Two test items and one of val; short answers."""
    monkeypatch.setattr(explain, "ANSWER_TOKENS", 6)
    items = sorted(load_items(shapes_folder)[0], key=lambda i: split_of(i["source"]))
    write_items(tmp_path / "few", [*items[:2], items[-1]], {"data": "synthetic", "name": "few"})
    return tmp_path / "few"


@pytest.mark.parametrize("which", FAMILIES)
def test_every_family_answers_and_is_not_asked_again(folder_of, few, tmp_path, monkeypatch, which):
    arguments = [
        "ask",
        "--model",
        str(folder_of(which)),
        "--data",
        str(few),
        "--size",
        str(FAMILIES[which]),
        "--out",
        str(tmp_path / "answers.pt"),
    ]
    first = explain.main(arguments)
    said, items = load_pt(tmp_path / "answers.pt", ANSWERS), load_items(few)[0]
    assert set(said["ids"]) == {i["id"] for i in items if split_of(i["source"]) == "test"} and said["kinds"][
        :4
    ] == ["place", "place_listed", "box", "caption"]
    assert (
        list(said["answers"]) == ["own"]
        and all(type(a) is str for a in said["answers"]["own"])
        and any(said["answers"]["own"])
    )
    assert load_yaml(tmp_path / "answers.yaml", "ask")["questions"] == len(said["ids"])
    monkeypatch.setitem(models.LOADERS, "vlm", None)
    assert explain.main(arguments)["answers"] == first["answers"]
    with pytest.raises(TypeError):
        explain.main([*arguments, "--seed", "1"])


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    small_dino, small_vlm, small_llavas, shapes_folder, moving_folder, tmp_path, refused, monkeypatch
):
    monkeypatch.setitem(models.LOADERS, "vlm", None)

    def ask(model, data, *more):
        return lambda: explain.main(
            ["ask", "--model", str(model), "--data", str(data), "--out", str(tmp_path / "a.pt"), *more]
        )

    write_items(
        tmp_path / "bare",
        [
            {
                "id": str(k),
                "source": str(k),
                "width": 8,
                "height": 8,
                "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8),
            }
            for k in range(20)
        ],
        {"data": "synthetic"},
    )
    refused(ask(small_dino, shapes_folder), "dinov2", "causal")
    refused(ask(small_llavas["llava"], moving_folder), "frame by frame")
    refused(ask(small_vlm, tmp_path / "bare"), "no boxes")


# ---------------------------------------------------------------- worlds whose answer is known


@pytest.fixture
def world(tmp_path):
    """240 pictures of one box each: (folder, items, truth [n, 2], tokens [n, 1, 6, 6, 8] that hold nothing)."""
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(240, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 8 + torch.rand(240, 2, generator=g) * 4], 1).round()
    frames = torch.randint(0, 256, (240, 1, 32, 32, 3), generator=g, dtype=torch.uint8)
    items = [
        {
            "id": f"i{k:03d}",
            "source": f"i{k:03d}",
            "width": 32,
            "height": 32,
            "frames": f,
            "boxes": b[None],
            "labels": ["box"],
        }
        for k, (f, b) in enumerate(zip(frames, boxes, strict=True))
    ]
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "boxes"})
    return (
        tmp_path,
        items,
        torch.tensor([explain.where(i, "place") for i in items]),
        torch.randn(240, 1, 6, 6, 8, generator=g),
    )


def knows(world):
    """Tokens on the box say that they are, and its column and row; the others say nothing."""
    _, items, truth, x = world
    on = explain.tokens_of(items, (1, 6, 6))[0].view(-1, 1, 6, 6, 1).float()
    thirds = torch.nn.functional.one_hot(truth, 3).flatten(1)[:, None, None, None]
    return torch.cat([0.1 * x, on, on * thirds], -1)


def score(world, points, own, kind="place"):
    """binding.yaml for planted features and the answers to every test item."""
    folder, items, _, _ = world
    ids = [i["id"] for i in items if split_of(i["source"]) == "test"]
    plant_features(folder / "features", [i["id"] for i in items], points, folder / "data")
    save_pt(
        folder / "answers.pt",
        ANSWERS,
        ids,
        {"model": "planted", "scale": "thousandths", "size": 32},
        kinds=[kind] * len(ids),
        questions=[""] * len(ids),
        answers={"own": own},
    )
    return explain.main(
        ["binding", "--features", str(folder / "features"), "--answers", str(folder / "answers.pt")]
    )


def said_in(world, change=lambda word, k: word):
    _, items, truth, _ = world
    test = [k for k, i in enumerate(items) if split_of(i["source"]) == "test"]
    return [change(WORDS["place"][truth[k, 1]][truth[k, 0]], n) for n, k in enumerate(test)]


def test_a_constant_answer_scores_the_constant_floor_and_noise_says_no_more_than_the_commonest_word(world):
    train = [
        WORDS["place"][r][c]
        for (c, r), i in zip(world[2].tolist(), world[1], strict=True)
        if split_of(i["source"]) == "train"
    ]
    found = score(
        world,
        {"language.0": world[3], "language.1": world[3]},
        said_in(world, lambda word, k: max(set(train), key=train.count)),
    )
    row = found["kinds"]["place"]
    assert (
        found["place_own"] == row["own_floors"]["commonest"] == pytest.approx(row["own_floors"]["shuffled"])
        and found["place_withheld"] != "yes"
    )
    assert (
        row["probe_gain_low"] <= 0
        and row["told"] < row["probe_floor"] + 0.15
        and load_yaml(world[0] / "binding.yaml", "binding")["place_unparsed"] == 0
    )


def test_what_can_be_read_and_is_not_said_is_withheld(world):
    found = score(world, {"language.0": knows(world)}, said_in(world, lambda word, k: "a box"))
    assert (
        found["place_own"] == 0
        and found["place_unparsed"] == 1
        and found["place_probe"] > 0.95
        and found["place_withheld"] == "yes"
    )


def test_a_model_that_says_what_can_be_read_withholds_nothing(world):
    found = score(world, {"language.0": knows(world), "language.1": world[3]}, said_in(world))
    assert (
        found["place_own"] == 1
        and found["place_withheld"] == "no"
        and found["kinds"]["place"]["probe_layer"] == "language.0"
    )


def test_boxes_are_scored_by_their_overlap(world):
    test = [i for i in world[1] if split_of(i["source"]) == "test"]
    found = score(
        world,
        {"language.0": world[3]},
        [f"[[{','.join(f'{round(float(v) / 32 * 1000):03d}' for v in i['boxes'][0])}]]" for i in test],
        "box",
    )
    assert found["box_own"] > 0.97 and found["box_withheld"] == "no" and found["box_gap"] < -0.2


def test_answers_of_another_model_are_refused(world, refused):
    score(world, {"language.0": world[3]}, said_in(world))
    answers = load_pt(world[0] / "answers.pt", ANSWERS)
    save_pt(
        world[0] / "answers.pt",
        ANSWERS,
        answers["ids"],
        answers["meta"] | {"model": "other"},
        kinds=answers["kinds"],
        answers=answers["answers"],
    )
    refused(
        lambda: explain.main(
            ["binding", "--features", str(world[0] / "features"), "--answers", str(world[0] / "answers.pt")]
        ),
        "answers of other",
        "explain.py ask",
    )
    refused(lambda: explain.main(["binding", "--features", str(world[0] / "features")]), "--answers")


# ---------------------------------------------------------------- the small models


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny-semantic"])
def test_a_model_that_was_taught_places_says_them_and_one_that_was_not_says_none(tmp_path, model):
    data.main(["shapes", "--n", "200", "--size", "96", "--seed", "7", "--out", str(tmp_path / "shapes")])
    extract.main(["--model", model, "--data", str(tmp_path / "shapes"), "--out", str(tmp_path / "features")])
    explain.main(
        ["ask", "--model", model, "--data", str(tmp_path / "shapes"), "--out", str(tmp_path / "answers.pt")]
    )
    found = explain.main(
        ["binding", "--features", str(tmp_path / "features"), "--answers", str(tmp_path / "answers.pt")]
    )
    assert found["caption_own"] > 0.8
    if model == "tiny":
        assert (
            found["place_own"] > found["place_own_floor"] + 0.1
            and found["place_unparsed"] == 0
            and found["kinds"]["place"]["own_gain_low"] > 0
        )
    else:
        assert found["place_unparsed"] == 1 and found["place_own"] == 0
