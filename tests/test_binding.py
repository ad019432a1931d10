"""What a probe reads and the model does not say, and what it says without what the probe reads: nulls first, then worlds whose answer is known."""
import pytest
import torch

import explain
import extract
from common import ANSWERS, DIRECTIONS, LOADERS, WORDS, asked_object, find_model, load_items, load_pt, load_yaml, plant_features, save_pt, split_of, write_items

FAMILIES = {"small_vlm": 80, "small_qwen2vl": 64, "small_qwen3vl": 64, "small_internvl": 48, "small_cogvlm2": 56, "llava": 48, "llava_next": 48, "llava_onevision": 96}
CPU = torch.device("cpu")


# ---------------------------------------------------------------- parsing

@pytest.mark.parametrize("text, scale, side, box", [
    ("", "thousandths", None, None), ("left", "thousandths", None, None), ("in row 3 of 4, column 1 of 2", "thousandths", None, None),
    ("[100, 200, 300]", "thousandths", None, None), ("[100, 200, 300, 1200]", "thousandths", None, None), ("[-1, 200, 300, 400]", "thousandths", None, None),
    ("[10, 20, 30, 97]", "pixels", 96, None), ("[[x0,y0,x1,y1]]", "thousandths", None, None), ("<loc_1><loc_2><loc_3>", "thousandths", None, None),
    ("[[100,200,300,400]]", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),  # CogVLM
    ("[[100,200,300,400;500,600,700,800]]", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),
    ("It is at [[000,000,999,1000]].", "thousandths", None, [0, 0, 0.999, 1]),
    ('```json\n[\n\t{"bbox_2d": [24, 48, 72, 96], "label": "red circle"}\n]\n```', "pixels", 96, [0.25, 0.5, 0.75, 1]),  # Qwen2.5-VL
    ('{"bbox_2d": [240, 480, 720, 960]}', "thousandths", None, [0.24, 0.48, 0.72, 0.96]),  # Qwen3-VL
    ("<|box_start|>(100,200),(300,400)<|box_end|>", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),  # Qwen2-VL
    ("the circle(100,200),(300,400)", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),
    ("<ref>cat</ref><box>[[100, 200, 300, 400]]</box>", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),  # InternVL
    ("[0.1, 0.2, 0.3, 0.4]", "fractions", None, [0.1, 0.2, 0.3, 0.4]), ("[0.1, 0.2, 0.3, 0.4]", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),  # LLaVA
    ("[0, 0, 1, 1]", "fractions", None, [0, 0, 1, 1]), ("[0.1, 0.2, 1.3, 0.4]", "fractions", None, None),
    ("[300, 400, 100, 200]", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),
    ("[100, 200, 300, 400] and [0, 0, 1, 1]", "thousandths", None, [0.1, 0.2, 0.3, 0.4]),
    ("<phrase>a</phrase><object><patch_index_0033><patch_index_0099></object>", "thousandths", None, [1.5 / 32, 1.5 / 32, 3.5 / 32, 3.5 / 32]),  # Kosmos-2
    ("<patch_index_0033><patch_index_0033>", "thousandths", None, [1 / 32, 1 / 32, 2 / 32, 2 / 32]),
    ("cat<loc_100><loc_200><loc_300><loc_999>", "thousandths", None, [0.1005, 0.2005, 0.3005, 0.9995]),  # Florence-2
    ("<loc0256><loc0128><loc0512><loc1023> cat", "thousandths", None, [128 / 1024, 0.25, 1023 / 1024, 0.5]),  # PaliGemma
])
def test_boxes_in_answers(text, scale, side, box):
    assert explain.parse_box(text, scale, side) == (box and pytest.approx(box))


@pytest.mark.parametrize("text, word", [
    ("", None), ("a red circle", None), ("on the table", None), ("I cannot see a circle on the left.", None), ("It isn't in the middle.", None), ("left and right", None),
    ("top bottom", None), ("to the right of the blue star", None), ("It is on top of the square.", None), ("on the left side of the green one", None), ("Bright lefties", None),
    *((word, word) for row in WORDS["place"] for word in row),
    ("in the top-left corner", "top left"), ("Upper left.", "top left"), ("The circle is in the centre.", "middle"), ("center of the image", "middle"),
    ("lower right of the image", "bottom right"), ("on the left side of the picture", "left"), ("right in the middle", "middle"), ("top center", "top"), ("middle left", "left"),
    ("the upper right-hand corner", "top right"), ("at the bottom of the frame", "bottom"), ("It is located in the lower left-hand corner of the photo.", "bottom left"),
    ("the leftmost part", "left"),
])
def test_places_in_answers(text, word):
    assert explain.parse_word(text, "place") == word


@pytest.mark.parametrize("text, word", [
    ("", None), ("a red circle", None), ("It moves.", None), ("up and down", None), ("left or right", None), ("clockwise", None),
    *((word, word) for row in WORDS["direction"] for word in row),
    ("to the right", "right"), ("rightwards", "right"), ("It moves up and to the left.", "up left"), ("diagonally downward to the right", "down right"), ("Upwards", "up"),
    ("It is not moving.", "still"), ("the circle doesn't move", "still"), ("It remains stationary.", "still"), ("from left to right", "right"),
    ("from the top left to the bottom right", "down right"), ("towards the top of the image", "up"), ("There is no motion.", "still"),
])
def test_directions_in_answers(text, word):
    assert explain.parse_word(text, "direction") == word


def test_the_words_are_those_of_the_data(shapes_folder, moving_folder):
    for folder, kind in ((shapes_folder, "place"), (moving_folder, "direction")):
        for item in load_items(folder)[0]:
            k, name = asked_object(item)
            column, row = explain.where(item, kind)
            assert [extract.OPENLY[kind].format(name), WORDS[kind][row][column]] in item["turns"]
            assert extract.questions_to(item, "{}").get("caption") in (None, item["turns"][0][0])


def test_a_name_that_two_objects_have_is_not_asked_about():
    boxes = torch.tensor([[0., 0, 4, 4], [0, 0, 9, 9]])
    assert asked_object({"boxes": boxes, "labels": ["a", "a"]}) is None
    assert asked_object({"boxes": boxes, "labels": ["a", "b"]}) == (1, "b")
    assert asked_object({"boxes": boxes[:0], "labels": []}) is None


# ---------------------------------------------------------------- removal

def basis(k, d, seed=0):
    return torch.linalg.qr(torch.randn(d, k, generator=torch.Generator().manual_seed(seed))).Q.T


def test_removing_what_is_not_there_changes_nothing_to_the_bit():
    x = torch.randn(50, 8)
    x[:, :2] = 0.5
    mean = torch.zeros(8)
    mean[:2] = 0.5
    assert torch.equal(extract.less_along(x, torch.eye(8)[:2], mean), x) and torch.equal(extract.less_along(x, torch.eye(8)[:2], mean, basis(2, 8)), x)


def test_a_random_subspace_loses_as_much_of_every_row_and_keeps_the_direction():
    x, mean, directions, random = torch.randn(50, 32), torch.randn(32), basis(4, 32), basis(4, 32, 1)
    removed, other = x - extract.less_along(x, directions, mean), x - extract.less_along(x, directions, mean, random)
    torch.testing.assert_close(removed.norm(dim=1), other.norm(dim=1))
    assert ((x - removed - mean) @ directions.T).abs().max() < 1e-5 < ((x - other - mean) @ directions.T).abs().min(1).values.max()
    torch.testing.assert_close(other @ random.T @ random, other, atol=1e-5, rtol=1e-5)


def test_without_the_concept_no_linear_map_reads_it_and_the_rest_stays():
    g = torch.Generator().manual_seed(0)
    truth, on = torch.randint(0, 3, (200, 2), generator=g), torch.rand(200, 9, generator=g) < 0.5
    x = torch.randn(200, 9, 16, generator=g)
    x[..., :2] += truth[:, None]
    directions, mean = explain.concept(x, on, truth, torch.arange(200))
    assert len(directions) == 4 and torch.allclose(directions @ directions.T, torch.eye(4), atol=1e-5)
    rows = (x - (x - mean) @ directions.T @ directions)[on]
    z = torch.nn.functional.one_hot(truth, 3).flatten(1).float().repeat_interleave(on.sum(1), 0)
    assert ((rows - rows.mean(0)).T @ (z - z.mean(0)) / len(z)).abs().max() < 1e-5
    assert len(explain.concept(x, on, truth.new_zeros(200, 2), torch.arange(200))[0]) <= 4


# ---------------------------------------------------------------- every family

@pytest.fixture
def folder_of(request):
    return lambda which: request.getfixturevalue("small_llavas")[which] if which.startswith("llava") else request.getfixturevalue(which)


@pytest.mark.parametrize("which", FAMILIES)
def test_a_question_takes_the_place_of_the_prompt_and_removal_reaches_the_pictures_rows_alone(folder_of, monkeypatch, which):
    entry = find_model(str(folder_of(which)))
    model, processor = LOADERS["vlm"](entry)
    inputs_of, points, *_ = extract.family_of(model)(model, processor)
    frames = torch.randint(0, 256, (2, 1, FAMILIES[which], FAMILIES[which], 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    batch = inputs_of(frames)
    given = extract.on(extract.asking(model, processor, batch, "Where is the cup?"), CPU, torch.float32)
    monkeypatch.setattr(extract, "PROMPT", "Where is the cup?")
    whole = extract.family_of(model)(model, processor)[0](frames)
    for name in extract.ROWS:
        assert (name in given) == (name in whole) and (name not in given or torch.equal(given[name], whole[name])), name

    rows, modules = extract.picture_rows(model, given), {n: points[n][0] for n in ("merger", "language.1", "language.2")}
    plain = extract.capture(model, given, modules)
    for point in ("merger", "language.1"):
        width = plain[point].shape[-1]
        directions, mean = basis(4, width), torch.zeros(width)
        change = {"none": lambda x: extract.less_along(x, torch.zeros(1, width), mean), "four": lambda x: extract.less_along(x, directions, mean)}  # noqa: B023
        with extract.changed(model, modules[point], change["none"], rows if point == "language.1" else None):
            assert all(torch.equal(x, plain[n]) for n, x in extract.capture(model, given, modules).items())
        with extract.changed(model, modules[point], change["four"], rows if point == "language.1" else None):
            seen = extract.capture(model, given, modules)
        restored = points[point][1](seen[point], whole)
        assert (restored @ directions.T).abs().max() < 1e-4 < (points[point][1](plain[point], whole) @ directions.T).abs().max()
        assert (seen["language.2"][:, -1] - plain["language.2"][:, -1]).abs().max() > 1e-5  # the words behind the picture notice
        if point == "language.1":
            assert torch.equal(seen[point][~rows], plain[point][~rows])


@pytest.fixture
def few(shapes_folder, tmp_path, monkeypatch):
    """Two test items and one of val; short answers, two random subspaces."""
    monkeypatch.setattr(extract, "DRAWS", 2)
    monkeypatch.setattr(extract, "LONGEST", 6)
    items = sorted(load_items(shapes_folder)[0], key=lambda i: split_of(i["source"]))
    write_items(tmp_path / "few", [*items[:2], items[-1]], {"data": "synthetic", "name": "few"})
    return tmp_path / "few"


@pytest.mark.parametrize("which", FAMILIES)
def test_every_family_answers_and_removing_nothing_changes_no_answer(folder_of, few, tmp_path, which):
    folder, width = folder_of(which), 32
    save_pt(tmp_path / "none.pt", DIRECTIONS, [], {"model": folder.name, "point": "language.1", "kind": "place"}, directions=torch.zeros(2, width), mean=torch.zeros(width))
    arguments = ["--model", str(folder), "--data", str(few), "--size", str(FAMILIES[which]), "--ask", "--out", str(tmp_path / "answers.pt"), "--remove", str(tmp_path / "none.pt")]
    extract.main(arguments)
    said, items = load_pt(tmp_path / "answers.pt", ANSWERS), load_items(few)[0]
    assert set(said["ids"]) == {i["id"] for i in items[:2]} and [split_of(i["source"]) for i in items] == ["test", "test", "val"] and said["kinds"][:4] == ["place", "place_listed", "box", "caption"]
    assert list(said["answers"]) == ["own", "removed", "random0", "random1"] and all(a == said["answers"]["own"] for a in said["answers"].values())
    assert all(type(a) is str for a in said["answers"]["own"]) and any(said["answers"]["own"])
    assert load_yaml(tmp_path / "answers.yaml", "ask")["questions"] == len(said["ids"])


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(small_dino, small_vlm, small_llavas, shapes_folder, moving_folder, tmp_path, refused, monkeypatch):
    monkeypatch.setitem(extract.LOADERS, "vlm", None)

    def ask(model, data, *more):
        return lambda: extract.main(["--model", str(model), "--data", str(data), "--out", str(tmp_path / "a.pt"), "--ask", *more])

    write_items(tmp_path / "bare", [{"id": str(k), "source": str(k), "width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)} for k in range(20)], {"data": "synthetic"})
    refused(ask(small_dino, shapes_folder), "dinov2", "causal")
    refused(ask(small_llavas["llava"], moving_folder), "frame by frame")
    refused(ask(small_vlm, tmp_path / "bare"), "no boxes")
    refused(ask(small_vlm, shapes_folder, "--stream"), "leave --stream")
    save_pt(tmp_path / "d.pt", DIRECTIONS, [], {"model": "other", "point": "language.0"}, directions=torch.zeros(1, 32), mean=torch.zeros(32))
    refused(ask(small_vlm, shapes_folder, "--remove", str(tmp_path / "d.pt")), "of other, not of small-vlm")
    refused(lambda: extract.main(["--remove", str(tmp_path / "d.pt")]), "--ask")


def test_the_last_layer_whose_picture_rows_nobody_reads_is_refused(small_vlm, shapes_folder, tmp_path, refused):
    save_pt(tmp_path / "d.pt", DIRECTIONS, [], {"model": "small-vlm", "point": "language.2"}, directions=torch.zeros(1, 32), mean=torch.zeros(32))
    refused(lambda: extract.main(["--model", str(small_vlm), "--data", str(shapes_folder), "--size", "80", "--out", str(tmp_path / "a.pt"), "--ask", "--remove", str(tmp_path / "d.pt")]), "last layer")


def test_runs_that_are_there_are_not_repeated(small_vlm, few, tmp_path, monkeypatch):
    arguments = ["--model", str(small_vlm), "--data", str(few), "--size", "80", "--out", str(tmp_path / "a.pt"), "--ask"]
    first = extract.main(arguments)
    monkeypatch.setitem(extract.LOADERS, "vlm", None)
    again = extract.main(arguments)
    assert again["answers"] == first["answers"]
    with pytest.raises(TypeError):
        extract.main([*arguments, "--seed", "1"])


# ---------------------------------------------------------------- worlds whose answer is known

@pytest.fixture
def world(tmp_path):
    """240 pictures of one box each: (folder, items, truth [n, 2], tokens [n, 1, 6, 6, 8] that hold nothing)."""
    g = torch.Generator().manual_seed(0)
    corner = torch.rand(240, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 8 + torch.rand(240, 2, generator=g) * 4], 1).round()
    frames = torch.randint(0, 256, (240, 1, 32, 32, 3), generator=g, dtype=torch.uint8)
    items = [{"id": f"i{k:03d}", "source": f"i{k:03d}", "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]} for k, (f, b) in enumerate(zip(frames, boxes, strict=True))]
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "boxes"})
    return tmp_path, items, torch.tensor([explain.where(i, "place") for i in items]), torch.randn(240, 1, 6, 6, 8, generator=g)


def knows(world):
    """Tokens on the box say that they are, and its column and row; the others say nothing."""
    _, items, truth, x = world
    on = explain.tokens_of(items, (1, 6, 6))[0].view(-1, 1, 6, 6, 1).float()
    thirds = torch.nn.functional.one_hot(truth, 3).flatten(1)[:, None, None, None]
    return torch.cat([0.1 * x, on, on * thirds], -1)


def score(world, points, runs, kind="place"):
    """binding.yaml for planted features and answers {run: [answer of every test item]}."""
    folder, items, _, _ = world
    ids = [i["id"] for i in items if split_of(i["source"]) == "test"]
    plant_features(folder / "features", [i["id"] for i in items], points, folder / "data")
    save_pt(folder / "answers.pt", ANSWERS, ids, {"model": "planted", "scale": "thousandths", "size": 32, "point": "language.0"}, kinds=[kind] * len(ids), questions=[""] * len(ids), answers=runs)
    return explain.main(["--features", str(folder / "features"), "--answers", str(folder / "answers.pt")])


def said_in(world, change=lambda word, k: word):
    _, items, truth, _ = world
    test = [k for k, i in enumerate(items) if split_of(i["source"]) == "test"]
    return [change(WORDS["place"][truth[k, 1]][truth[k, 0]], n) for n, k in enumerate(test)]


def test_a_constant_answer_scores_the_constant_floor_and_shows_no_effect(world):
    train = [WORDS["place"][r][c] for (c, r), i in zip(world[2].tolist(), world[1], strict=True) if split_of(i["source"]) == "train"]
    runs = dict.fromkeys(("own", "removed", "random0", "random1", "random2"), said_in(world, lambda word, k: max(set(train), key=train.count)))
    found = score(world, {"language.0": world[3], "language.1": world[3]}, runs)
    assert found["place_own"] == found["kinds"]["place"]["own_floors"]["commonest"] == pytest.approx(found["kinds"]["place"]["own_floors"]["shuffled"])
    assert found["place_causal"] == "no" and found["place_changed"] == 0 and found["place_withheld"] != "yes"
    assert load_yaml(world[0] / "binding.yaml", "binding")["place_unparsed"] == 0


def test_answers_that_say_nothing_score_nothing_and_have_no_effect_to_speak_of(world):
    found = score(world, {"language.0": knows(world)}, dict.fromkeys(("own", "removed", "random0"), said_in(world, lambda word, k: "a box")))
    assert found["place_own"] == 0 and found["place_unparsed"] == 1 and found["place_causal"] is None and "place_changed" not in found
    assert found["place_probe"] > 0.95 and found["place_withheld"] == "yes"


def test_a_model_that_says_what_can_be_read_withholds_nothing_and_is_moved_by_its_direction_alone(world):
    turned = {w: WORDS["place"][2 - r][2 - c] for r, row in enumerate(WORDS["place"]) for c, w in enumerate(row)}
    runs = {"own": said_in(world), "removed": said_in(world, lambda word, k: turned[word] if k % 2 else word)} | {f"random{k}": said_in(world) for k in range(3)}
    found = score(world, {"language.0": knows(world), "language.1": world[3]}, runs)
    assert found["place_own"] == 1 and found["place_withheld"] == "no" and found["place_causal"] == "yes"
    assert found["kinds"]["place"]["probe_layer"] == "language.0" and found["kinds"]["place"]["lost_gain_low"] > 0


def test_what_random_directions_do_as_well_is_no_effect(world):
    wrong = said_in(world, lambda word, k: "top" if k % 2 else word)
    found = score(world, {"language.0": knows(world)}, {"own": said_in(world), "removed": wrong, "random0": wrong, "random1": wrong, "random2": wrong})
    assert found["place_changed"] == found["place_changed_random"] > 0.3 and found["place_causal"] == "no"


def test_boxes_are_scored_by_their_overlap(world):
    test = [i for i in world[1] if split_of(i["source"]) == "test"]
    texts = [f"[[{','.join(f'{round(float(v) / 32 * 1000):03d}' for v in i['boxes'][0])}]]" for i in test]
    found = score(world, {"language.0": world[3]}, {"own": texts, "removed": ["?"] * len(texts), "random0": texts}, "box")
    assert found["box_own"] > 0.97 and found["box_withheld"] == "no" and found["box_causal"] == "yes" and found["box_gap"] < -0.2


def test_the_directions_are_found_where_place_is_and_take_it_away(world, refused):
    folder = world[0]
    plant_features(folder / "features", [i["id"] for i in world[1]], {"language.0": world[3], "language.1": knows(world), "language.2": knows(world)}, folder / "data")
    found = explain.main(["--features", str(folder / "features"), "--directions", str(folder / "d.pt")])
    assert found["point"] == "language.1" and found["told_accuracy"] > 0.95 and found["told_accuracy_after"] <= found["commonest"] + 0.1
    saved = load_pt(folder / "d.pt", DIRECTIONS)
    assert saved["directions"].shape == (4, 15) and saved["meta"]["point"] == "language.1"
    plant_features(folder / "features", [i["id"] for i in world[1]], {"language.0": world[3]}, folder / "data")
    refused(lambda: explain.main(["--features", str(folder / "features"), "--directions", str(folder / "d.pt")]), "no two language layers")


def test_answers_of_another_model_are_refused(world, refused):
    score(world, {"language.0": world[3]}, {"own": said_in(world)})
    answers = load_pt(world[0] / "answers.pt", ANSWERS)
    save_pt(world[0] / "answers.pt", ANSWERS, answers["ids"], answers["meta"] | {"model": "other"}, kinds=answers["kinds"], answers=answers["answers"])
    refused(lambda: explain.main(["--features", str(world[0] / "features"), "--answers", str(world[0] / "answers.pt")]), "answers of other", "--ask")


def test_noise_says_no_more_than_the_commonest_word(world):
    row = score(world, {"language.0": world[3]}, {"own": said_in(world, lambda word, k: "?")})["kinds"]["place"]
    assert row["probe_gain_low"] <= 0 and row["withheld"] != "yes" and row["told"] < row["probe_floor"] + 0.15


# ---------------------------------------------------------------- the small models

@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    import data
    folder = tmp_path_factory.mktemp("data") / "shapes"
    data.main(["shapes", "--n", "200", "--size", "96", "--seed", "7", "--out", str(folder)])
    return folder


def chain(model, data, out):
    """`make binding`, without Make."""
    extract.main(["--model", model, "--data", str(data), "--out", str(out / "features")])
    explain.main(["--features", str(out / "features"), "--directions", str(out / "d.pt")])
    extract.main(["--model", model, "--data", str(data), "--ask", "--remove", str(out / "d.pt"), "--out", str(out / "answers.pt")])
    return explain.main(["--features", str(out / "features"), "--answers", str(out / "answers.pt"), "--out", str(out / "binding.yaml")])


@pytest.mark.slow
def test_tiny_says_places_by_the_direction_that_the_probe_reads_and_captions_without_it(pictures, tmp_path):
    found = chain("tiny", pictures, tmp_path)
    assert found["place_own"] > found["place_own_floor"] + 0.1 and found["place_unparsed"] == 0 and found["kinds"]["place"]["own_gain_low"] > 0
    assert found["place_causal"] == "yes" and found["kinds"]["place"]["lost_gain_low"] > 0
    assert found["caption_own"] > 0.8 and found["caption_changed"] < 0.1 and found["caption_causal"] != "yes"


@pytest.mark.slow
def test_the_model_that_was_never_asked_for_places_says_none(pictures, tmp_path):
    found = chain("tiny-semantic", pictures, tmp_path)
    assert found["place_unparsed"] == 1 and found["place_own"] == 0 and found["place_causal"] is None and found["caption_own"] > 0.8
