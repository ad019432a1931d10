"""Boxes in text are in pixels and move with the image; what a mirror or crop would make wrong is left."""

import json

import numpy as np
import pytest
import torch
from helpers_data import picture, put, run
from PIL import Image
from test_conversations import IMAGES, build, sets, talk

import augment
from common import load_items, split_of
from media import frames_of

FLAGS = {"flip": ["--flip"], "crop": ["--crop", "0.4"], "jitter": ["--jitter"]}
FLAGS["all"] = [flag for flags in FLAGS.values() for flag in flags]
# neither mirrored nor cropped (also boxes in an unknown form), only mirrored, and both
SIDES = ["to the LEFT", "right-hand side", "turns clockwise", "[3, 4, 20, 19]", "{'bbox_2d': [1, 2]}"]
SIDES.append("<|box_start|>(221,423),(569,886)<|box_end|>")
PLACE, FREE = ["at the top"], ["it is bright", "upright", "two [sic], 1, 2"]


@pytest.mark.parametrize("units", [None, "pixels", "relative", "thousandths"])
def test_boxes_in_answers_are_in_pixels_of_the_upright_image(units):
    scale = {"relative": (400, 300), "thousandths": (0.4, 0.3)}.get(units, (1, 1))
    box = [round(v / scale[k % 2], 4) for k, v in enumerate((40, 60, 200, 150))]
    forms = f'{{"bbox_2d": {box}, "label": "x"}}', f"at {box}", "<box>({},{}),({},{})</box>".format(*box)
    for text in forms:
        found = augment.in_pixels(text, units, (400, 300))
        if units is None and "bbox_2d" not in text:
            assert found == text  # may be a box or not
        else:
            assert np.abs(np.array(augment.numbers_in(found)) - (40, 60, 200, 150)).max() < 0.1


def test_a_box_that_overflows_by_rounding_is_clipped():
    assert augment.in_pixels('"bbox_2d": [-0.4, 0, 40.6, 30]', None, (40, 30)) == '"bbox_2d": [0, 0, 40, 30]'


def where_red(item):
    image = frames_of(item)[0].int()
    y, x = torch.nonzero(image[..., 0] - image[..., 1] > 40, as_tuple=True)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("name", FLAGS)
def test_boxes_in_answers_and_in_tables_move_with_the_image(tmp_path, name):
    rng, folder, entries = np.random.default_rng(0), tmp_path / "in", []
    rows = "filename,class,xmin,ymin,xmax,ymax\n"
    for k in range(30):
        x, y, w, h = (int(rng.integers(low, high)) for low, high in ((0, 40), (0, 30), (4, 24), (4, 18)))
        picture(folder / f"{k}.png", (64, 48), xyxy := [x, y, x + w, y + h])
        answer = json.dumps([{"bbox_2d": xyxy, "label": "red"}, {"point_2d": xyxy[:2]}])
        more = {"id": str(k), "image": f"{k}.png", "split": ("train", "test")[k % 2]}
        entries.append(talk("<image>\nWhere?", answer, **more))
        rows += f"{k}.png,cat,{x},{y},{x + w},{y + h}\n"
    root = put(folder, {"set.jsonl": entries, "labels.csv": rows}) / "set.jsonl"
    index = sets(root, tmp_path / "out", *FLAGS[name], units="pixels")
    items = {i["id"]: i for i in load_items(tmp_path / "out")[0]}
    copies, moved = [i for i in items.values() if i["id"].endswith("~")], 0
    assert (index["train"], index["test"], len(copies)) == (30, 15, 15)
    for item in copies:
        before, (found, point) = items[item["id"][:-1]], json.loads(item["turns"][0][1])
        new, old, size = found["bbox_2d"], where_red(before), (item["height"], item["width"])
        assert where_red(item) == new and found["label"] == "red" and frames_of(item).shape[1:3] == size
        assert point["point_2d"] == [new[2] if "flip" in index else new[0], new[1]]
        assert before["source"] == item["source"] and split_of(item["source"]) == "train"
        assert name != "crop" or (item["width"] >= 0.4 * 64 and item["height"] >= 0.4 * 48)
        assert name != "jitter" or not torch.equal(frames_of(item), frames_of(before))
        moved += new != old
    assert moved == 0 if name == "jitter" else moved > 10
    index = run("csv", *FLAGS[name], root=folder, out=tmp_path / "csv")
    items = load_items(tmp_path / "csv")[0]
    assert len(items) == 30 + index["train"] // 2
    assert all(where_red(i) == i["boxes"][0].tolist() for i in items)


def test_what_says_left_or_right_is_not_mirrored_and_what_says_a_place_is_not_cropped(tmp_path):
    ask = 'Where? Say {"bbox_2d": [x1, y1, x2, y2]}.'
    files = {"set.jsonl": [talk(f"<image>\n{ask}", x, split="train") for x in SIDES + PLACE + FREE]}
    for expected, flags in ((PLACE + FREE, ["--flip"]), (FREE, ["--crop", "0.5"])):
        copies = [i for i in build(tmp_path, IMAGES | files, *flags)[0] if i["id"].endswith("~")]
        assert [i["turns"] for i in copies] == [[[ask, x]] for x in expected]


def test_a_clip_is_mirrored_and_cropped_as_one(tmp_path):
    entry = talk("<video>\nHow?", "b", image=None, split="train", video=list(IMAGES)[:4])
    (item, copy), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]}, "--flip", frames=4, size=24)
    assert torch.equal(copy["frames"], item["frames"].flip(2)) and copy["turns"] == item["turns"]
    (item, copy), _ = build(tmp_path, IMAGES | {"set.jsonl": [entry]}, "--crop", "0.5", frames=4, size=24)
    assert copy["frames"].shape == item["frames"].shape and not torch.equal(copy["frames"], item["frames"])


def test_a_contact_sheet_is_drawn_of_clips_boxes_and_words(tmp_path):
    box = '{"bbox_2d": [1, 2, 30, 20]}'
    entries = [talk("<image>\nWhere? $x_", box, image=f"images/{k}.jpg") for k in range(3)]
    build(tmp_path, IMAGES | {"set.jsonl": entries}, "--preview")
    assert Image.open(tmp_path / "out/preview.png").size == (8 * 160, 5 * 250)
