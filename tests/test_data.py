"""Stage 0: what data.py writes is what it says, and every bad input is named."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import synthetic
from common import load_items, load_yaml, split_of
from media import frames_of

RACCOON = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "raccoon"
SHARED = [
    ("a.png", [(2, 3, 20, 30, "cat")]),
    ("b.png", [(0, 0, 40, 32, "dog"), (5, 6, 7, 8, "cat")]),
    ("c.png", [(10, 1, 39, 31, "cat")]),
]


def refused(capsys, *argv):
    """Run data.py, which must exit with code 2; what it wrote to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        data.main([str(a) for a in argv])
    assert e.value.code == 2
    return capsys.readouterr().err


def write_images(folder, truth=SHARED):
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, _) in enumerate(truth):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(
            folder / name
        )
    return folder


def write_voc(folder, truth=SHARED):
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for name, boxes in truth:
        objects = "".join(
            f"<object><name>{c}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{x}</xmax><ymax>{y}</ymax></bndbox></object>"
            for a, b, x, y, c in boxes
        )
        (folder / "annotations" / f"{Path(name).stem}.xml").write_text(
            f"<annotation><filename>{name}</filename>{objects}</annotation>"
        )


def write_csv(folder, truth=SHARED):
    with open(folder / "labels.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [
                ("filename", "class", "xmin", "ymin", "xmax", "ymax"),
                *((n, c, a, b, x, y) for n, boxes in truth for a, b, x, y, c in boxes),
            ]
        )


def write_coco(folder, truth=SHARED):
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}],
    }
    for i, (name, boxes) in enumerate(truth):
        content["images"].append({"id": 7 + i, "file_name": name, "width": 40, "height": 32})
        for j, (a, b, x, y, c) in enumerate(boxes):
            row = {"id": 100 * i + j, "image_id": 7 + i, "iscrowd": 0, "bbox": [a, b, x - a, y - b]}
            content["annotations"].append(row | {"category_id": {"cat": 10, "dog": 20}[c]})
    (folder / "annotations.json").write_text(json.dumps(content))
    return content


WRITERS = {"voc": write_voc, "csv": write_csv, "coco": write_coco}


def image_folder(tmp_path, form="csv", truth=SHARED):
    folder = write_images(tmp_path / "in", truth)
    WRITERS[form](folder, truth)
    return folder


# ---------------------------------------------------------------- generated sets


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b) and a.dtype == b.dtype
    return all(same(a[k], b[k]) for k in a) and a.keys() == b.keys() if isinstance(a, dict) else a == b


@pytest.mark.parametrize("source", ["shapes", "moving"])
def test_same_seed_same_bytes_and_another_seed_other_pictures(tmp_path, source):
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        data.main(
            [source, "--n", "5", "--size", "32", "--seed", str(seed), "--out", str(tmp_path / out / "set")]
        )
    for name in ("00000.pt", "index.yaml"):
        assert (tmp_path / "a/set" / name).read_bytes() == (tmp_path / "b/set" / name).read_bytes()
    a, c = (load_items(tmp_path / out / "set")[0] for out in "ac")
    assert not any(torch.equal(x["frames"], y["frames"]) for x, y in zip(a, c, strict=True))


def test_an_item_does_not_depend_on_how_many_are_made():
    few, many = list(synthetic.shapes(3, 32, 0)), list(synthetic.shapes(6, 32, 0))
    assert all(same(x, y) for x, y in zip(few, many, strict=False))


def test_shapes_have_one_to_four_objects_with_boxes_that_are_the_extents_of_the_mask(shapes_folder):
    items, index = load_items(shapes_folder)
    assert len(items) == index["items"] == 60
    assert {len(i["boxes"]) for i in items} == {1, 2, 3, 4}
    for item in items:
        assert (
            item["frames"].shape == (1, 64, 64, 3)
            and item["frames"].dtype == torch.uint8
            and item["mask"].shape == (64, 64)
        )
        assert item["mask"].max() == len(item["boxes"])
        for k, box in enumerate(item["boxes"].tolist(), 1):
            y, x = torch.nonzero(item["mask"] == k, as_tuple=True)
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_shapes_labels_names_and_turns_agree_with_each_other_and_with_the_boxes(shapes_folder):
    for item in load_items(shapes_folder)[0]:
        assert len(item["labels"]) == len(item["names"]) == len(item["boxes"])
        answers = dict(item["turns"])
        for label, name, (x0, y0, x1, y1) in zip(
            item["labels"], item["names"], item["boxes"].tolist(), strict=True
        ):
            colour, shape = name.split()
            assert shape == label and label in synthetic.SHAPES and colour in synthetic.COLOURS
            assert answers[f"What shape is the {colour} object?"] == label
            row, column = (int((a + b) / 2 / 64 * 3) for a, b in ((y0, y1), (x0, x1)))
            assert answers[f"Where is the {name}?"] == (
                " ".join(w for w in (("top", "", "bottom")[row], ("left", "", "right")[column]) if w)
                or "middle"
            )


def test_shapes_are_painted_in_the_colour_that_their_name_says(shapes_folder):
    for item in load_items(shapes_folder)[0]:
        for k, name in enumerate(item["names"], 1):
            mean = item["frames"][0][item["mask"] == k].float().mean(0)
            nearest = min(
                synthetic.COLOURS,
                key=lambda c: (
                    torch.tensor(synthetic.COLOURS[c]).float() / max(synthetic.COLOURS[c]) - mean / mean.max()
                ).norm(),
            )
            assert nearest == name.split()[0]


def test_captions_name_the_objects_in_sorted_order(shapes_folder):
    items = load_items(shapes_folder)[0]
    assert any(i["names"] != sorted(i["names"]) for i in items)
    for item in items:
        assert item["text"] == "a " + " and a ".join(sorted(item["names"]))


# ---------------------------------------------------------------- clips


def centres(item):
    """Centre of the subject's pixels (x, y) in every frame where it touches no edge of the frame; NaN elsewhere."""
    found = []
    for mask, box in zip(item["mask"], item["boxes"][:, -1], strict=True):
        inside = box[0] > 0 and box[1] > 0 and box[2] < item["width"] and box[3] < item["height"]
        y, x = torch.nonzero(mask == len(item["labels"]), as_tuple=True)
        found.append([x.float().mean(), y.float().mean()] if inside else [float("nan")] * 2)
    return torch.tensor(found)


@pytest.fixture(scope="module")
def clips():
    return list(synthetic.moving(240, 64, 1))


def test_the_subject_moves_in_the_stated_direction_at_the_stated_speed(clips):
    checked = Counter()
    for item in clips:
        at = centres(item)
        seen = torch.nonzero(~at[:, 0].isnan())[:, 0]
        if len(seen) < 6:
            continue
        first, last = seen[0], seen[-1]
        velocity = (at[last] - at[first]) / (last - first)
        step = torch.tensor(synthetic.DIRECTIONS.get(item["direction"], (0, 0))).float()
        expected = step / step.norm().clamp(min=1) * item["speed"]
        assert (velocity - expected).norm() < 0.1, (item["id"], item["direction"], velocity, expected)
        assert (item["speed"] == 0) == (item["direction"] == "still")
        checked[item["direction"]] += 1
    assert set(checked) == {*synthetic.DIRECTIONS, "still"} and sum(checked.values()) > 120


def test_twins_share_a_source_and_their_answers_are_mirrored_or_reversed(clips):
    kinds = Counter()
    for a, b in zip(clips[::2], clips[1::2], strict=True):
        assert a["source"] == b["source"] and a["id"] != b["id"] and a["kind"] == "original"
        x, y = synthetic.DIRECTIONS.get(a["direction"], (0, 0))
        flip, wanted = (2, (-x, y)) if b["kind"] == "mirrored" else (0, (-x, -y))
        assert torch.equal(b["frames"], a["frames"].flip(flip)) and torch.equal(
            b["mask"], a["mask"].flip(flip)
        )
        assert synthetic.DIRECTIONS.get(b["direction"], (0, 0)) == wanted
        assert (
            b["turns"] == [[f"Which way does the {b['names'][-1]} move?", b["direction"]]]
            and a["speed"] == b["speed"]
        )
        kinds[b["kind"]] += 1
    assert set(kinds) == {"mirrored", "reversed"} and min(kinds.values()) >= 50


def test_boxes_of_clips_are_the_extents_of_the_mask_in_every_frame_mirrored_ones_too(clips):
    for item in clips[:24]:
        for mask, boxes in zip(item["mask"], item["boxes"], strict=True):
            for k, box in enumerate(boxes.tolist(), 1):
                y, x = torch.nonzero(mask == k, as_tuple=True)
                assert box == ([x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0])


def test_camera_motion_moves_the_background_by_the_stated_pixels_a_frame(clips):
    with_camera = [i for i in clips if any(i["camera"])]
    assert len(with_camera) > 40
    for item in with_camera:
        (dx, dy), (a, b) = item["camera"], item["frames"][7:9].float()
        free = ((item["mask"][7] == 0) & (item["mask"][8].roll((-dy, -dx), (0, 1)) == 0))[2:-2, 2:-2]
        # what was at (x, y) is at (x + dx, y + dy) a frame later
        difference = (b.roll((-dy, -dx), (0, 1)) - a).abs().sum(-1)[2:-2, 2:-2]
        assert difference[free].median() == 0, item["id"]


def test_directions_are_about_equally_frequent(clips):
    count = Counter(i["direction"] for i in clips)
    assert set(count) == {*synthetic.DIRECTIONS, "still"}
    moving = [count[d] for d in synthetic.DIRECTIONS]
    assert max(moving) <= 3 * min(moving), count


def test_the_first_frame_alone_says_little_about_the_direction(clips):
    def cue(items):
        return torch.stack([(i["boxes"][0, -1, :2] + i["boxes"][0, -1, 2:]) / 2 for i in items]), [
            i["direction"] for i in items
        ]

    x, y = cue(clips)
    names = sorted(set(y))
    centroid = torch.stack([x[[d == n for d in y]].mean(0) for n in names])
    test_x, test_y = cue(list(synthetic.moving(160, 64, 6)))
    guess = [names[k] for k in torch.cdist(test_x, centroid).argmin(1)]
    accuracy = sum(a == b for a, b in zip(guess, test_y, strict=True)) / len(test_y)
    assert accuracy < 0.4, accuracy


@pytest.mark.parametrize(("frame", "t", "given"), [("first", 0, True), ("middle", 8, False)])
def test_frozen_clips_show_one_frame_and_keep_everything_else(tmp_path, moving_folder, frame, t, given):
    which = ["--clips", str(moving_folder)] if given else ["--n", "24"]
    data.main(["moving", *which, "--freeze", frame, "--out", str(tmp_path / "set")])
    items, index = load_items(tmp_path / "set")
    assert index["freeze"] == frame
    for item, clip in zip(items, load_items(moving_folder)[0], strict=True):
        for k in ("frames", "mask", "boxes"):
            assert item[k].shape == clip[k].shape and (item[k] == clip[k][t]).all()
        assert item.keys() == clip.keys()
        assert all(item[k] == clip[k] for k in item if k not in ("frames", "mask", "boxes"))


def test_what_cannot_be_frozen_is_refused(refused, shapes_folder, moving_folder, tmp_path):
    refused(lambda: data.main(["shapes", "--freeze", "first"]), "unrecognized arguments: --freeze first")
    refused(
        lambda: data.main(["moving", "--clips", str(moving_folder), "--out", str(tmp_path / "a")]),
        "--clips",
        "--freeze",
    )
    stills = ["moving", "--freeze", "first", "--clips", str(shapes_folder), "--out", str(tmp_path / "a")]
    refused(lambda: data.main(stills), str(shapes_folder), "no clips")


# ---------------------------------------------------------------- pictures with boxes


def test_cut_clips_hold_those_frames_and_nothing_of_the_others(tmp_path):
    long, short = str(tmp_path / "long"), str(tmp_path / "short")
    data.main(["moving", "--n", "4", "--frames", "12", "--out", long])
    index = data.main(["cut", "--clips", long, "--first", "2", "--frames", "3", "--out", short])
    for a, b in zip(load_items(long)[0], load_items(short)[0], strict=True):
        assert (a["id"], a["source"], a["direction"]) == (b["id"], b["source"], b["direction"]) and len(
            a["frames"]
        ) == 12
        for k in ("frames", "mask", "boxes"):
            assert torch.equal(b[k], a[k][2:5]), k
            assert b[k].untyped_storage().nbytes() < a[k].untyped_storage().nbytes(), k
    assert (index["cut_from"], index["first"], index["frames"]) == ("long", 2, 3)


def test_a_cut_that_cannot_be_made_is_refused(refused, moving_folder, tmp_path):
    for given, said in (
        ([], "required: --frames"),
        (["--frames", "0"], "is not positive"),
        (["--frames", "3", "--first", "15"], "frames 15 to 17"),
    ):
        refused(
            lambda given=given: data.main(
                ["cut", "--clips", str(moving_folder), "--out", str(tmp_path / "x"), *given]
            ),
            said,
        )


def test_voc_csv_and_coco_give_the_same_items(tmp_path):
    folder = write_images(tmp_path / "in")
    read = {}
    for form, write in WRITERS.items():
        write(folder)
        data.main([form, "--root", str(folder), "--out", str(tmp_path / form)])
        read[form] = {i["id"]: i for i in load_items(tmp_path / form)[0]}
    for name, boxes in SHARED:
        for items in read.values():
            assert items[name]["boxes"].tolist() == [list(b[:4]) for b in boxes] and items[name][
                "labels"
            ] == [b[4] for b in boxes]
            assert (items[name]["width"], items[name]["height"]) == (40, 32)
            assert torch.equal(
                frames_of(items[name])[0], torch.from_numpy(np.array(Image.open(folder / name)))
            )


def test_coco_crowds_are_left_out(tmp_path):
    folder = write_images(tmp_path / "in")
    content = write_coco(folder)
    content["annotations"].append(
        {"id": 9999, "image_id": 7, "iscrowd": 1, "bbox": [0, 0, 40, 32], "category_id": 10}
    )
    (folder / "annotations.json").write_text(json.dumps(content))
    data.main(["coco", "--root", str(folder), "--out", str(tmp_path / "out")])
    assert [len(i["boxes"]) for i in load_items(tmp_path / "out")[0]] == [1, 2, 1]


def break_image(folder):
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:200])


def add_row(*row):
    def mend(folder):
        with open(folder / "labels.csv", "a", newline="") as f:
            csv.writer(f).writerow(row)

    return mend


BAD = {
    "box outside the image": (add_row("a.png", "cat", 5, 5, 41, 20), "a.png: box [5.0, 5.0, 41.0, 20.0]", ()),
    "box inside out": (add_row("b.png", "cat", 9, 5, 4, 20), "b.png: box [9.0, 5.0, 4.0, 20.0]", ()),
    "coordinate that is no number": (add_row("c.png", "cat", 1, 2, "three", 4), "c.png: line 6", ()),
    "unknown class": (
        add_row("a.png", "bird", 1, 2, 3, 4),
        "a.png: unknown class 'bird'",
        ("--classes", "cat,dog"),
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_problem_is_listed_with_file_and_reason_and_nothing_is_written(tmp_path, capsys, case):
    spoil, line, more = BAD[case]
    folder = image_folder(tmp_path)
    spoil(folder)
    err = refused(capsys, "csv", "--root", folder, "--out", tmp_path / "out", *more)
    assert line in err and "1 problems" in err and "--skip-bad" in err
    assert not (tmp_path / "out/index.yaml").exists() and not list((tmp_path / "out").glob("*.pt"))


def test_an_image_annotated_twice_is_refused(tmp_path, capsys):
    folder = image_folder(tmp_path, "voc")
    (folder / "annotations/again.xml").write_text((folder / "annotations/a.xml").read_text())
    err = refused(capsys, "voc", "--root", folder, "--out", tmp_path / "out")
    assert "a.png" in err and "twice" in err


def test_a_photograph_under_two_names_is_one_source(tmp_path):
    folder = image_folder(tmp_path, truth=[*SHARED, ("z.png", SHARED[0][1])])
    (folder / "z.png").write_bytes((folder / SHARED[0][0]).read_bytes())
    data.main(["csv", "--root", str(folder), "--out", str(tmp_path / "out")])
    assert {i["id"]: i["source"] for i in load_items(tmp_path / "out")[0]} == {
        name: name for name, _ in SHARED
    } | {"z.png": SHARED[0][0]}


def test_a_json_that_is_not_coco_instances_is_refused(tmp_path, capsys):
    folder = image_folder(tmp_path, "coco")
    content = write_coco(folder)
    del content["annotations"]
    (folder / "annotations.json").write_text(json.dumps(content))
    err = refused(capsys, "coco", "--root", folder, "--out", tmp_path / "out")
    assert "annotations.json is not a COCO instances file" in err and "annotations" in err


def test_skip_bad_goes_on_with_the_good_items_and_records_how_many_it_left_out(tmp_path, capsys):
    folder = image_folder(tmp_path)
    break_image(folder)
    add_row("gone.png", "cat", 1, 2, 3, 4)(folder)
    arguments = ["csv", "--root", str(folder), "--out", str(tmp_path / "out")]
    err = refused(capsys, *arguments)
    assert all(s in err for s in ("a.png: broken", "gone.png: no such", "2 problems"))
    index = data.main([*arguments, "--skip-bad"])
    assert index["skipped"] == 2 and load_yaml(tmp_path / "out/index.yaml")["skipped"] == 2
    assert [i["id"] for i in load_items(tmp_path / "out")[0]] == ["b.png", "c.png"]
    assert data.main([*arguments, "--skip-bad", "--n", "1"])["ids"] == ["b.png"]


def test_an_item_with_one_bad_row_is_left_out_whole(tmp_path):
    folder = image_folder(tmp_path)
    add_row("c.png", "cat", 1, 2, "three", 4)(folder)
    index = data.main(["csv", "--root", str(folder), "--out", str(tmp_path / "out"), "--skip-bad"])
    assert index["ids"] == ["a.png", "b.png"] and index["skipped"] == 1


def test_missing_root_and_missing_annotations_are_refused(tmp_path, capsys):
    folder = write_images(tmp_path / "in")
    assert "required: --root" in refused(capsys, "voc", "--out", tmp_path / "out")
    assert "is not a folder" in refused(
        capsys, "voc", "--root", tmp_path / "nowhere", "--out", tmp_path / "out"
    )
    arguments = ["csv", "--root", folder, "--out", tmp_path / "out"]
    assert "labels.csv does not exist" in refused(capsys, *arguments)
    (folder / "labels.csv").write_text("filename,class,xmin,ymin\na.png,cat,1,2\n")
    assert "lacks the columns xmax, ymax" in refused(capsys, *arguments)


# ---------------------------------------------------------------- the folder


def test_writing_fewer_items_leaves_no_stale_shards(tmp_path):
    for n, shards in ((130, 3), (5, 1)):
        data.main(["shapes", "--n", str(n), "--size", "16", "--out", str(tmp_path / "out")])
        assert (
            len(list((tmp_path / "out").glob("*.pt"))) == shards and len(load_items(tmp_path / "out")[0]) == n
        )


def test_the_index_counts_splits_by_source(moving_folder):
    items, index = load_items(moving_folder)
    splits = Counter(split_of(i["source"]) for i in items)
    assert {s: index[s] for s in ("train", "val", "test")} == {s: splits[s] for s in ("train", "val", "test")}
    assert index["items"] == 24 and index["sources"] == 12 and index["data"] == "synthetic"


# ---------------------------------------------------------------- real photographs


@pytest.mark.skipif(not RACCOON.is_dir(), reason=f"no real photographs at {RACCOON}")
def test_the_raccoon_photographs_give_200_items_with_217_boxes_the_same_from_voc_and_csv(tmp_path):
    read = {}
    for form in ("voc", "csv"):
        out = str(tmp_path / form)
        index = data.main([form, "--root", str(RACCOON), "--classes", "raccoon", "--out", out])
        assert (index["items"], index["data"], index["skipped"]) == (200, "real", 0)
        read[form] = {i["id"]: sorted(i["boxes"].tolist()) for i in load_items(out)[0]}
    assert read["voc"] == read["csv"] and sum(map(len, read["csv"].values())) == 217
