"""Images with boxes in every format: what a file states is honoured or refused, and nothing is lost."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import content_of, labels, run

import boxes
from common import load_items, split_of
from media import frames_of

BOXES = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
ROWS = [("a.png", "cat", 2, 3, 20, 30), ("b.png", "dog", 0, 0, 40, 32), ("b.png", "cat", 5, 6, 7, 8)]
ROWS.append(("c.png", "cat", 10, 1, 39, 31))
RED, INSIDE = (220, 20, 20), (10, 4, 30, 12)  # a box, and where it is in most images below
BAD = [  # a format, a file, words in it, or none, and new ones, what is printed, what --skip-bad leaves
    ("csv", "labels.csv", "", "a.png,cat,5,5,42,20", "a.png: box [5.0, 5.0, 42.0, 20.0]", "bc"),
    ("csv", "labels.csv", "", "b.png,cat,9,5,4,20", "b.png: box [9.0, 5.0, 4.0, 20.0]", "ac"),
    ("csv", "labels.csv", "", "c.png,cat,1,2,three,4", "c.png: line 6", "ab"),
    ("csv", "labels.csv", "", "c.png,cat,1,2,inf,4", "c.png: line 6", "ab"),
    ("csv", "labels.csv", "", "a.png,bird,1,2,3,4", "a.png: line 6 has the unknown class 'bird'", "bc"),
    ("csv", "labels.csv", "", "a.png,,1,2,3,4", "a.png: line 6 has a class without a name", "bc"),
    ("csv", "labels.csv", "", "a.png,cat,1,2,3,4,5", "line 6 has more fields", None),
    ("csv", "a.png", "PNG", "GNP", "a.png: cannot be decoded", "bc"),
    ("voc", "annotations/b.xml", "<annotation>", "&", "b.xml: not a readable VOC annotation", "ac"),
    ("voc", "annotations/b.xml", "annotation>", "annotations>", "b.xml: not a readable VOC annotation", "ac"),
    ("voc", "annotations/b.xml", "<name>dog</name>", "<name/>", " has a class without a name", "ac"),
    ("voc", "annotations/b.xml", "bndbox", "robndbox", "b.png: object 1 cannot be read", "ac"),
    (
        "voc",
        "annotations/d.xml",
        "",
        "<annotation><filename>a.png</filename></annotation>",
        "a.png: is annot",
        "abc",
    ),
    ("coco", "annotations.json", '"annotations"', '"x"', "is not a COCO instances file", None),
    ("coco", "annotations.json", '3, "image_id": 8', '3, "image_id": 99', "image 99", "abc"),
    ("coco", "annotations.json", '"id": 8', '"id": 7', "a.png: shares the id 7", "c"),
    (
        "coco",
        "annotations.json",
        '"bbox": [2',
        '"bbox": [null, 2',
        "a.png: annotation 1 cannot be read",
        "bc",
    ),
    (
        "coco",
        "annotations.json",
        '"name": "dog"',
        '"name": " "',
        " has a class without a name",
        "ac",
    ),
    ("coco", "annotations.json", '"id": 20', '"id": 21', "b.png: annotation 2 has a class without", "ac"),
    ("yolo", "a.txt", "0 ", "5 ", "a.png: line 1 of a.txt has a class without a name", "bc"),
    ("yolo", "a.txt", "0 ", "0 0.9 ", "a.png: line 1 of a.txt cannot be read", "bc"),
    ("yolo", "e.txt", "", "0 0.5 0.5 1 1", "e.txt: holds labels of no image", "abc"),
]


def picture(path, size=(40, 16), box=INSIDE, level=128, **how):
    """Save a grey image with a red box."""
    pixels = np.full((size[1], size[0], 3), level, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = RED
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return path


def coco(root, found, file="annotations.json", images=None, **stated):
    """A COCO file of {file name: bboxes, or annotations}; `stated` are fields of every image."""
    rows = []
    for k, each in enumerate(found.values()):
        for x in each:
            x = x if isinstance(x, dict) else {"bbox": x}
            rows.append({"id": len(rows), "image_id": k, "category_id": 1, "iscrowd": 0} | x)
    listed = [{"id": k, "file_name": name} | stated for k, name in enumerate(found)]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    content = {"images": listed, "annotations": rows, "categories": [{"id": 1, "name": "part"}]}
    (root / file).write_text(json.dumps(content))
    return root


def voc(path, name, *found, size="", more=""):
    """A VOC file of (class, xmin, ymin, xmax, ymax)."""
    xml = ""
    for label, *corners in found:
        inner = "".join(f"<{k}>{v}</{k}>" for k, v in zip(BOXES[2:], corners, strict=True))
        xml += f"<object><name>{label}</name>{more}<bndbox>{inner}</bndbox></object>"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<annotation><filename>{name}</filename>{size}{xml}</annotation>")


def yolo(path, *found, width=40, height=16):
    """Lines of (class number, x1, y1, x2, y2)."""
    rows = []
    for c, *corners in found:
        x1, y1, x2, y2 = np.array(corners) / [width, height, width, height]
        rows.append(f"{c} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")


def items_of(out):
    return {i["id"]: i for i in load_items(out)[0]}


def inside(item, box):
    """Mean colour inside a box."""
    x1, y1, x2, y2 = (round(v) for v in box.tolist())
    return frames_of(item)[0, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean((0, 1)).round().tolist()


def image_folder(folder):
    """Images of 40x32 px with the boxes ROWS in each format; COCO also has a crowd."""
    found, names = {}, {"cat": 0, "dog": 1}
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        picture(folder / name, (40, 32), level=100 + k)
        rows = [row[1:] for row in ROWS if row[0] == name]
        voc(folder / f"annotations/{name[0]}.xml", name, *rows)
        yolo(folder / f"{name[0]}.txt", *((names[c], *xyxy) for c, *xyxy in rows), height=32)
        found[name] = [{"bbox": [0, 0, 40, 32], "iscrowd": 1}] if k == 0 else []
        for label, x1, y1, x2, y2 in rows:
            found[name].append({"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 10 * names[label] + 10})
    content = json.loads((coco(folder, found) / "annotations.json").read_text())
    content["categories"] = [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
    for image in content["images"] + content["annotations"]:
        key = "image_id" if "image_id" in image else "id"
        image[key] += 7
    content["annotations"][0]["category_id"] = 10
    (folder / "annotations.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("cat\ndog\n")
    return labels(folder, *ROWS, header=BOXES)


@pytest.mark.parametrize("form", ["voc", "csv", "coco", "yolo"])
def test_every_format_gives_the_same_boxes_labels_and_pixels(tmp_path, form):
    folder = image_folder(tmp_path / "in")
    index = run(form, "--preview", root=folder, out=tmp_path / "out")
    assert (index["items"], index["data"], index["skipped"]) == (3, "real", 0)
    for name, item in items_of(tmp_path / "out").items():
        rows = [row for row in ROWS if row[0] == name]
        assert (item["boxes"] - torch.tensor([row[2:] for row in rows])).abs().max() < 1e-3
        assert item["source"] == name and item["labels"] == [row[1] for row in rows]
        assert (item["width"], item["height"]) == (40, 32)
        assert (frames_of(item)[0].numpy() == np.array(Image.open(folder / name))).all()
        assert item.get("crowd_labels", []) == (["cat"] if form == "coco" and name == "a.png" else [])
    assert Image.open(tmp_path / "out/preview.png").size == (8 * 160, 5 * 160)


@pytest.mark.parametrize(("form", "name", "old", "new", "line", "left"), BAD)
def test_a_problem_with_boxes_is_listed_and_skip_bad_works(
    tmp_path, printed, form, name, old, new, line, left
):
    path = image_folder(tmp_path / "in") / name
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content.replace(old.encode(), new.encode()) if old else content + f"{new}\n".encode())
    given = {"root": tmp_path / "in", "out": tmp_path / "out"}
    if form != "coco":
        given["classes"] = "cat,dog"
    err = printed(lambda: run(form, **given))
    assert line in err and not content_of(tmp_path / "out")
    if left is not None:
        assert " images have problems" in err and "--skip-bad" in err
        index = run(form, "--skip-bad", **given)
        assert index["ids"] == [f"{k}.png" for k in left] and sum(index["skipped_kinds"].values()) > 0
        assert run(form, "--skip-bad", n=1, **given)["ids"] == index["ids"][:1]


@pytest.mark.parametrize("size", [(80, 32), (20, 8), (13, 5), (40, 17), (16, 40)])
@pytest.mark.parametrize("form", ["coco", "voc", "csv"])
def test_boxes_of_a_resized_image_are_rescaled_and_another_shape_is_refused(tmp_path, printed, form, size):
    (w, h), (x1, y1, x2, y2) = size, INSIDE
    x1, x2, y1, y2 = x1 * w / 40, x2 * w / 40, y1 * h / 16, y2 * h / 16
    picture(tmp_path / "a.png")
    coco(tmp_path, {"a.png": [[x1, y1, x2 - x1, y2 - y1]]}, width=w, height=h)
    stated = f"<size><width>{w}</width><height>{h}</height></size>"
    voc(tmp_path / "annotations/a.xml", "a.png", ("part", x1, y1, x2, y2), size=stated)
    labels(tmp_path, ("a.png", "part", x1, y1, x2, y2, w, h), header=(*BOXES, "width", "height"))
    if size in [(40, 17), (16, 40)]:
        words = f"a.png: is 40x16 pixels, its annotation states {w}x{h}"
        assert words in printed(lambda: run(form, root=tmp_path, out=tmp_path / "out"))
        return
    index = run(form, root=tmp_path, out=tmp_path / "out")
    assert index["rescaled_images"] == 1
    assert items_of(tmp_path / "out")["a.png"]["boxes"][0].tolist() == pytest.approx(INSIDE, abs=1e-3)


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_upright_and_of_stored_images_are_upright(tmp_path, turn):
    picture(tmp_path / "x.png")
    upright = Image.open(tmp_path / "x.png")
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(turn)  # Pillow's Transpose that undoes it
    stored, exif = upright if back is None else upright.transpose(back), Image.Exif()
    exif[274] = turn
    stored.save(tmp_path / "a.png", exif=exif)
    rows, columns = np.nonzero(np.array(stored)[..., 0] == RED[0])
    x, y = columns.min(), rows.min()
    drawn = [int(v) for v in (x, y, columns.max() + 1 - x, rows.max() + 1 - y)]
    w, h = stored.size
    seen = [10, 4, 20, 8]
    coco(tmp_path, {"a.png": [seen]}, file="upright.json", width=40, height=16)
    coco(tmp_path, {"a.png": [seen]}, file="plain.json")
    coco(tmp_path, {"a.png": [drawn if turn >= 5 else seen]}, file="stored.json", width=w, height=h)
    for name in ("upright", "plain", "stored"):
        run("coco", root=tmp_path, annotations=tmp_path / f"{name}.json", out=tmp_path / "out")
        item = items_of(tmp_path / "out")["a.png"]
        assert (item["width"], item["height"]) == (40, 16)
        assert item["boxes"].tolist() == [list(INSIDE)] and inside(item, item["boxes"][0]) == list(RED)


def test_what_is_tolerated_is_counted_and_images_without_objects_are_items(tmp_path, capsys):
    for k, name in enumerate("abcde"):
        picture(tmp_path / f"{name}.png", level=100 + k)
    crowd = {"bbox": [0, 0, 8, 8], "iscrowd": 1}
    found = {"a.png": [[10, 4, 20, 8], [20, 4, 20.7, 12.2], crowd], "b.png": []}
    found |= {"c.png": [[5, 5, 0, 3], [10, 4, 20, 8]], "d.png": [{"bbox": [], "segmentation": []}]}
    coco(tmp_path, found | {"e.png": [[-0.4, -1, 40.4, 17]]}, license=3)
    picture(tmp_path / "f.png")
    index = run("coco", root=tmp_path, out=tmp_path / "out")
    counts = {"images_without_boxes": 2, "boxes_without_area": 2, "clipped_boxes": 2, "crowd_boxes": 1}
    counts["images_not_annotated"] = 1
    assert {k: index[k] for k in counts} == counts and (index["items"], index["skipped"]) == (5, 0)
    assert index["not_read"] == {"license": 5, "segmentation": 1}
    out = capsys.readouterr().out
    assert "not read: license (5), segmentation (1)" in out and "clipped_boxes 2" in out
    items = items_of(tmp_path / "out")
    assert items["b.png"]["boxes"].shape == (0, 4) and items["b.png"]["labels"] == []
    assert items["a.png"]["boxes"].tolist() == [list(INSIDE), [20, 4, 40, 16]]
    assert items["a.png"]["crowd"].tolist() == [[0, 0, 8, 8]] and "crowd" not in items["b.png"]
    assert items["e.png"]["boxes"].tolist() == [[0, 0, 40, 16]]
    assert run("coco", "--require-boxes", root=tmp_path, out=tmp_path / "out")["items"] == 3
    run("coco", "--flip", root=tmp_path, out=tmp_path / "out")
    assert items_of(tmp_path / "out")["a.png~"]["crowd"].tolist() == [[32, 0, 40, 8]]


def test_the_folder_in_a_file_name_counts_also_of_another_machine(tmp_path, printed):
    for k in (1, 2):
        picture(tmp_path / f"cam{k}/frame_0.png", level=100 + k)
    names = ["cam1/frame_0.png", "cam2\\frame_0.png"]
    index = run("coco", root=coco(tmp_path, {n: [[10, 4, 20, 8]] for n in names}), out=tmp_path / "out")
    assert index["ids"] == ["cam1/frame_0.png", "cam2/frame_0.png"] and index["sources"] == 2
    foreign = ["C:\\data\\cam2\\frame_0.png", "/home/me/cam2/frame_0.png", "../x/cam2/frame_0.png"]
    for name in ("cam2/frame_0", f"{tmp_path.name}/cam2/frame_0.png", "./cam2/frame_0.png", *foreign):
        coco(tmp_path, {name: [[10, 4, 20, 8]]})
        assert run("coco", root=tmp_path, out=tmp_path / "out")["ids"] == ["cam2/frame_0.png"]
    refusals = {"cam3/frame_0.png": "no such image", "frame_0.png": "name the folder"}
    refusals |= {"C:\\cam3\\frame_0.png": "no such image", "": "no such image"}
    for name, words in refusals.items():
        coco(tmp_path, {name: [[10, 4, 20, 8]]})
        assert words in printed(lambda: run("coco", root=tmp_path, out=tmp_path / "out"))


@pytest.mark.parametrize("form", ["coco", "voc", "csv", "yolo"])
def test_an_export_in_three_folders_keeps_its_splits_and_copies_of_a_photograph_are_one_source(
    tmp_path, printed, form
):
    parts = {"train": [f"p{k}_jpg.rf.{c}{k}.jpg" for k in range(4) for c in "abc"]}
    parts |= {"valid": ["v0_jpg.rf.a1.jpg"], "test": ["t0_jpg.rf.a2.jpg"]}
    for part, names in parts.items():
        folder = tmp_path / part
        for k, name in enumerate(names):
            place = folder / "images" / name if form == "yolo" else folder / name
            picture(place, level=50 + 10 * k + len(part) + ("v" in part))
            if form == "voc":
                voc(folder / f"{name[:-4]}.xml", name, ("part", *INSIDE))
            elif form == "yolo":
                yolo(folder / "labels" / f"{name[:-4]}.txt", (0, *INSIDE))
        coco(folder, {n: [[10, 4, 20, 8]] for n in names}, file="_annotations.coco.json")
        rows = [(n, "part", *INSIDE) for n in names]
        labels(folder, *rows, header=BOXES).joinpath("labels.csv").rename(folder / "_annotations.csv")
    names = {part: f"../{part}/images" for part in parts}
    names = {"val" if part == "valid" else part: path for part, path in names.items()}
    (tmp_path / "data.yaml").write_text(json.dumps({"nc": 1, "names": ["part"], **names}))
    given = {"root": tmp_path, "out": tmp_path / "out"}
    index = run(form, **given)
    assert [index[k] for k in ("train", "val", "test", "items", "sources")] == [12, 1, 1, 14, 6]
    for name, item in items_of(tmp_path / "out").items():
        photograph = name.rsplit("/", 1)[1].split(".rf.")[0]
        assert item["source"].startswith(f"{split_of(item['source'])}:") and photograph in item["source"]
        assert item["boxes"][0].tolist() == pytest.approx(INSIDE, abs=1e-3)
    assert run(form, n=7, **given)["train"] == 7 and run(form, n=13, **given)["test"] <= 1
    assert run(form, "--resplit", **given)["sources"] == 6
    if form == "voc":
        picture(tmp_path / "test/p1_jpg.rf.x.jpg", level=9)
        voc(tmp_path / "test/p1_jpg.rf.x.xml", "p1_jpg.rf.x.jpg", ("part", *INSIDE))
        assert "--resplit" in printed(lambda: run(form, **given))


def test_units_are_stated_where_they_are_not_clear(tmp_path, printed):
    picture(tmp_path / "a.png")
    given = {"root": tmp_path, "out": tmp_path / "out"}
    relative = [0.25, 0.25, 0.75, 0.75]
    for units, corners in (("relative", relative), ("thousandths", [1000 * x for x in relative])):
        labels(tmp_path, ("a.png", "part", *corners), header=BOXES)
        assert run("csv", units=units, **given)["units"] == units
        assert items_of(tmp_path / "out")["a.png"]["boxes"].tolist() == [list(INSIDE)]
    words = printed(lambda: run("csv", **given))
    assert "does not lie inside the image of 40x16" in words and "--units" in words
    labels(tmp_path, ("a.png", "part", *relative), header=BOXES)
    assert "labels.csv is above 1; state --units" in printed(lambda: run("csv", **given))
    labels(tmp_path, ("a.png", "part", 0, 0, 1, 1), header=BOXES)
    run("csv", units="pixels", **given)
    assert items_of(tmp_path / "out")["a.png"]["boxes"].tolist() == [[0, 0, 1, 1]]


def test_vocs_own_layout_counts_pixels_from_1_and_its_lists_are_the_split(tmp_path):
    for k, name in enumerate("abc"):
        picture(tmp_path / f"JPEGImages/{name}.jpg", level=100 + k, quality=95)
        more = f"<difficult>{k // 2}</difficult><pose>Left</pose>"
        voc(tmp_path / f"Annotations/{name}.xml", f"{name}.jpg", ("part", 11, 5, 30, 12), more=more)
    lists = tmp_path / "ImageSets/Main"
    lists.mkdir(parents=True)
    for part, names in (("train", "a"), ("val", "b"), ("test", "c")):
        (lists / f"{part}.txt").write_text(f"{names}\n")
    index = run("voc", root=tmp_path, out=tmp_path / "out")
    assert [index[k] for k in ("train", "val", "test", "origin", "not_read")] == [1, 1, 1, 1, {"pose": 3}]
    items = items_of(tmp_path / "out")
    assert items["JPEGImages/a.jpg"]["boxes"].tolist() == [list(INSIDE)]
    assert items["JPEGImages/c.jpg"]["crowd"].tolist() == [list(INSIDE)]  # difficult: ignored in scoring
    assert run("voc", root=tmp_path, origin=0, out=tmp_path / "out")["origin"] == 0
    assert items_of(tmp_path / "out")["JPEGImages/a.jpg"]["boxes"].tolist() == [[11, 5, 30, 12]]


@pytest.mark.parametrize("degrees", [90, -90, 180, 45, 450])
@pytest.mark.parametrize("form", ["coco", "voc", "csv"])
def test_a_rotated_box_is_enclosed(tmp_path, form, degrees):
    picture(tmp_path / "a.png", (40, 40), (10, 16, 30, 24))
    coco(
        tmp_path,
        {"a.png": [{"bbox": [10, 16, 20, 8], "attributes": {"rotation": degrees, "occluded": False}}]},
    )
    more = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    voc(tmp_path / "annotations/a.xml", "a.png", ("part", 10, 16, 30, 24), more=more)
    labels(tmp_path, ("a.png", "part", 10, 16, 30, 24, degrees), header=(*BOXES, "rotation"))
    index = run(form, root=tmp_path, out=tmp_path / "out")
    half = 28 / 8**0.5  # of the diagonal projections of 20 x 8 px
    expected = {180: [10, 16, 30, 24], 45: [20 - half, 20 - half, 20 + half, 20 + half]}
    found = items_of(tmp_path / "out")["a.png"]["boxes"][0].tolist()
    assert found == pytest.approx(expected.get(degrees, [16, 10, 24, 30]), abs=1e-3)
    assert index["rotated_boxes"] == 1 and index["not_read"] == ({"occluded": 1} if form == "coco" else {})


def test_yolo_reads_polygons_lists_and_background_and_refuses_what_it_cannot_know(tmp_path, refused):
    for k, name in enumerate("abcd"):
        picture(tmp_path / f"images/{name}.png", level=100 + k)
    yolo(tmp_path / "labels/a.txt", (1, *INSIDE))
    (tmp_path / "labels/b.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.5 0.5\n")
    (tmp_path / "labels/c.txt").write_text("")
    (tmp_path / "train.txt").write_text("./images/a.png\n./images/b.png\n./images/c.png\n")
    about = {"path": "elsewhere", "train": "train.txt", "names": {0: "x", 1: "y"}}
    given = {"root": tmp_path, "out": tmp_path / "out"}
    (tmp_path / "data.yaml").write_text(json.dumps(about))
    index = run("yolo", **given)
    assert index["ids"] == [f"images/{k}.png" for k in "abc"] and index["train"] == 3
    items = list(items_of(tmp_path / "out").values())
    assert [i["labels"] for i in items] == [["y"], ["x"], []]
    assert all(i["boxes"].tolist() == [list(INSIDE)] for i in items[:2])
    (tmp_path / "data.yaml").write_text(json.dumps(about | {"nc": 3}))
    refused(lambda: run("yolo", **given), "nc: 3 and 2 names")
    (tmp_path / "data.yaml").write_text(json.dumps(about | {"val": "images/val"}))
    refused(lambda: run("yolo", **given), "images/val does not exist")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "labels/classes.txt").write_text("x\ny\n")
    assert run("yolo", **given)["images_without_boxes"] == 2  # c, and d without a file
    (tmp_path / "labels").rename(tmp_path / "annotations")
    (tmp_path / "classes.txt").write_text("x\ny\n")
    refused(lambda: run("yolo", **given), "holds no labels")


def test_images_are_read_one_at_a_time_in_the_shape_of_coco_val2017(tmp_path, monkeypatch):
    found = {}
    for k in range(200):
        picture(tmp_path / f"{k:03d}.png", level=k)
        found[f"{k:03d}.png"] = [[10, 4, 20, 8], {"bbox": [0, 0, 40.5, 16], "iscrowd": int(k % 20 == 0)}]
    coco(tmp_path, found | {f"{k:03d}.png": [] for k in (7, 8)}, width=40, height=16)
    alive, most = [], []
    boxed_item, write = boxes.boxed_item, torch.save

    def counted(*args):
        alive.append(1)
        return boxed_item(*args)

    def saved(*args):
        most.append(len(alive))
        alive.clear()
        return write(*args)

    monkeypatch.setattr(boxes, "boxed_item", counted)
    monkeypatch.setattr(torch, "save", saved)
    index = run("coco", root=tmp_path, out=tmp_path / "out")
    assert most == [64, 64, 64, 8] and index["items"] == 200
    assert (index["images_without_boxes"], index["crowd_boxes"], index["clipped_boxes"]) == (2, 10, 198)
