"""Images with boxes in every format: what a file states is honoured or refused, and nothing is lost."""

import json

import numpy as np
import pytest
import torch
from helpers_data import INSIDE, RED, facts, labels, picture, put, read, run
from PIL import Image

import boxes
from common import split_of
from media import frames_of

BOXES = ("filename", "class", "xmin", "ymin", "xmax", "ymax")
ROWS = [("a.png", "cat", 2, 3, 20, 30), ("b.png", "dog", 0, 0, 40, 32), ("b.png", "cat", 5, 6, 7, 8)]
ROWS.append(("c.png", "cat", 10, 1, 39, 31))
SEEN = [10, 4, 20, 8]  # INSIDE as xywh
FORMS = {".csv": "csv", ".png": "csv", ".xml": "voc", ".json": "coco", ".txt": "yolo"}
LONE = "<annotation><filename>a.png</filename></annotation>"
BAD = [  # a file, words in it, or none, and new ones, what is printed, what --skip-bad leaves
    ("labels.csv", "", "a.png,cat,5,5,42,20", "a.png: box [5.0, 5.0, 42.0, 20.0]", "bc"),
    ("labels.csv", "", "b.png,cat,9,5,4,20", "b.png: box [9.0, 5.0, 4.0, 20.0]", "ac"),
    ("labels.csv", "", "c.png,cat,1,2,three,4", "c.png: line 6", "ab"),
    ("labels.csv", "", "c.png,cat,1,2,inf,4", "c.png: line 6", "ab"),
    ("labels.csv", "", "a.png,bird,1,2,3,4", "a.png: line 6 has the unknown class 'bird'", "bc"),
    ("labels.csv", "", "a.png,,1,2,3,4", "a.png: line 6 has a class without a name", "bc"),
    ("labels.csv", "", "a.png,cat,1,2,3,4,5", "line 6 has more fields", None),
    ("a.png", "PNG", "GNP", "a.png: cannot be decoded", "bc"),
    ("b.xml", "<annotation>", "&", "b.xml: not a readable VOC annotation", "ac"),
    ("b.xml", "annotation>", "annotations>", "b.xml: not a readable VOC annotation", "ac"),
    ("b.xml", "<name>dog</name>", "<name/>", " has a class without a name", "ac"),
    ("b.xml", "<name>dog</name>", "", " has a class without a name", "ac"),
    ("b.xml", "bndbox", "robndbox", "b.png: object 1 cannot be read", "ac"),
    ("d.xml", "", LONE, "a.png: is annotated twice", "abc"),
    ("annotations.json", '"annotations"', '"x"', "is not a COCO instances file", None),
    ("annotations.json", '3, "image_id": 8', '3, "image_id": 99', "image 99", "abc"),
    ("annotations.json", '"id": 8', '"id": 7', "a.png: shares the id 7", "c"),
    ("annotations.json", '"bbox": [2', '"bbox": [null, 2', "a.png: annotation 1 cannot be read", "bc"),
    ("annotations.json", '"name": "dog"', '"name": " "', " has a class without a name", "ac"),
    ("annotations.json", '"id": 20', '"id": 21', "b.png: annotation 2 has a class without", "ac"),
    ("a.txt", "0 ", "5 ", "a.png: line 1 of a.txt has a class without a name", "bc"),
    ("a.txt", "0 ", "0 0.9 ", "a.png: line 1 of a.txt cannot be read", "bc"),
    ("e.txt", "", "0 0.5 0.5 1 1", "e.txt: holds labels of no image", "abc"),
]


def coco(root, found, file="annotations.json", names=("part",), **stated):
    """A COCO file of {file name: bboxes, or annotations}; `stated` are fields of every image."""
    rows = []
    for k, each in enumerate(found.values(), 7):
        for x in each:
            x = x if isinstance(x, dict) else {"bbox": x}
            rows.append({"id": len(rows), "image_id": k, "category_id": 10, "iscrowd": 0} | x)
    listed = [{"id": k, "file_name": name} | stated for k, name in enumerate(found, 7)]
    categories = [{"id": 10 * k, "name": name} for k, name in enumerate(names, 1)]
    content = {"images": listed, "annotations": rows, "categories": categories}
    return put(root, {file: json.dumps(content)})


def voc(path, name, *found, size="", more=""):
    """A VOC file of (class, xmin, ymin, xmax, ymax)."""
    xml = ""
    for label, *corners in found:
        inner = "".join(f"<{k}>{v}</{k}>" for k, v in zip(BOXES[2:], corners, strict=True))
        xml += f"<object><name>{label}</name>{more}<bndbox>{inner}</bndbox></object>"
    put(path.parent, {path.name: f"<annotation><filename>{name}</filename>{size}{xml}</annotation>"})


def yolo(path, *found, height=16):
    """Lines of (class number, x1, y1, x2, y2)."""
    rows = ""
    for c, *corners in found:
        x1, y1, x2, y2 = np.array(corners) / [40, height, 40, height]
        rows += f"{c} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n"
    put(path.parent, {path.name: rows})


def write(root, box, size, degrees=0):
    """a.png's box in COCO, VOC and CSV, which state the size of the image and the rotation of the box."""
    (w, h), (x1, y1, x2, y2) = size, box
    turned = {"bbox": [x1, y1, x2 - x1, y2 - y1], "attributes": {"rotation": degrees, "occluded": False}}
    coco(root, {"a.png": [turned]}, width=w, height=h)
    stated = f"<size><width>{w}</width><height>{h}</height></size>"
    more = f"<attributes><attribute><name>rotation</name><value>{degrees}</value></attribute></attributes>"
    voc(root / "annotations/a.xml", "a.png", ("part", *box), size=stated, more=more)
    labels(root, ("a.png", "part", *box, w, h, degrees), header=(*BOXES, "width", "height", "rotation"))


def box_of(items, name="a.png", key="boxes"):
    """The only box of an item, after a check that there is one."""
    (found,) = items[name][key].tolist()
    return pytest.approx(found, abs=1e-3)


def image_folder(folder, rows=ROWS, names=("cat", "dog"), height=32, coco_file="annotations.json", **csv):
    """Images and their boxes, `rows` of a CSV, in each format; COCO also has a crowd in the first image."""
    found = {}
    for k, name in enumerate(dict.fromkeys(row[0] for row in rows)):
        picture(folder / name, (40, height), level=100 - height + 5 * k)
        own = [row[1:] for row in rows if row[0] == name]
        voc(folder / f"{name[:-4]}.xml", name, *own)
        yolo(folder / f"{name[:-4]}.txt", *((names.index(c), *xyxy) for c, *xyxy in own), height=height)
        found[name] = [{"bbox": [0, 0, 40, height], "iscrowd": 1}] if k == 0 else []
        for c, x1, y1, x2, y2 in own:
            row = {"bbox": [x1, y1, x2 - x1, y2 - y1], "category_id": 10 * names.index(c) + 10}
            found[name].append(row)
    put(coco(folder, found, coco_file, names), {"classes.txt": "\n".join(names)})
    return labels(folder, *rows, header=BOXES, **csv)


@pytest.mark.parametrize("form", ["voc", "csv", "coco", "yolo"])
def test_every_format_gives_the_same_boxes_labels_and_pixels(tmp_path, form):
    folder = image_folder(tmp_path / "in")
    items, index = read(form, folder, tmp_path / "out", "--preview")
    assert facts(index, "items", "data", "skipped") == [3, "real", 0]
    for name, item in items.items():
        rows = [row for row in ROWS if row[0] == name]
        assert (item["boxes"] - torch.tensor([row[2:] for row in rows])).abs().max() < 1e-3
        assert facts(item, "source", "labels", "width", "height") == [name, [row[1] for row in rows], 40, 32]
        assert (frames_of(item)[0].numpy() == np.array(Image.open(folder / name))).all()
        assert item.get("crowd_labels", []) == (["cat"] if form == "coco" and name == "a.png" else [])
    assert Image.open(tmp_path / "out/preview.png").size == (8 * 160, 5 * 160)


@pytest.mark.parametrize(("name", "old", "new", "line", "left"), BAD)
def test_a_problem_with_boxes_is_listed_and_skip_bad_works(tmp_path, printed, name, old, new, line, left):
    path = image_folder(tmp_path / "in") / name
    content, form = path.read_bytes() if path.exists() else b"", FORMS[path.suffix]
    path.write_bytes(content.replace(old.encode(), new.encode()) if old else content + f"{new}\n".encode())
    given = {"root": tmp_path / "in", "out": tmp_path / "out", "classes": "cat,dog"}
    err = printed(lambda: run(form, **given))
    assert line in err and not list((tmp_path / "out").glob("*"))
    if left is not None:
        assert " images have problems" in err and "--skip-bad" in err
        index = run(form, "--skip-bad", **given)
        assert index["ids"] == [f"{k}.png" for k in left] and sum(index["skipped_kinds"].values()) > 0
        assert run(form, "--skip-bad", n=1, **given)["ids"] == index["ids"][:1]


@pytest.mark.parametrize("size", [(80, 32), (20, 8), (13, 5), (40, 17), (16, 40)])
@pytest.mark.parametrize("form", ["coco", "voc", "csv"])
def test_boxes_of_a_resized_image_are_rescaled_and_another_shape_is_refused(tmp_path, printed, form, size):
    picture(tmp_path / "a.png")
    write(tmp_path, np.array(INSIDE) * (size * 2) / [40, 16, 40, 16], size)
    if size in [(40, 17), (16, 40)]:
        words = "a.png: is 40x16 pixels, its annotation states {}x{}".format(*size)
        assert words in printed(lambda: run(form, root=tmp_path, out=tmp_path / "out"))
    else:
        items, index = read(form, tmp_path, tmp_path / "out")
        assert index["rescaled_images"] == 1 and box_of(items) == INSIDE


@pytest.mark.parametrize("turn", range(1, 9))
def test_boxes_of_upright_and_of_stored_images_are_upright(tmp_path, turn):
    box, seen = (6, 3, 30, 12), [6, 3, 24, 9]
    picture(tmp_path / "x/a.png", box=box)
    upright, exif = Image.open(tmp_path / "x/a.png"), Image.Exif()
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(turn)  # Pillow's Transpose that undoes it
    stored = upright if back is None else upright.transpose(back)
    exif[274] = turn
    stored.save(tmp_path / "a.png", exif=exif)
    x1, y1, x2, y2 = Image.fromarray(np.array(stored)[..., 0] == RED[0]).getbbox()
    size = {"width": stored.width, "height": stored.height}
    stated = {"upright": (seen, {"width": 40, "height": 16}), "plain": (seen, {})}
    stated["stored"] = [x1, y1, x2 - x1, y2 - y1] if turn >= 5 else seen, size
    for name, (bbox, size) in stated.items():
        coco(tmp_path, {"./a.png": [bbox]}, file=f"{name}.json", **size)
        items, _ = read("coco", tmp_path, tmp_path / "out", annotations=tmp_path / f"{name}.json")
        assert facts(items["a.png"], "width", "height") == [40, 16] and box_of(items) == box
        assert (frames_of(items["a.png"])[0, 3:12, 6:30] == torch.tensor(RED)).all()


def test_what_is_tolerated_is_counted_and_images_without_objects_are_items(tmp_path, capsys):
    for k, name in enumerate("abcdef"):
        picture(tmp_path / f"{name}.png", level=100 + k)
    crowd = {"bbox": [0, 0, 8, 8], "iscrowd": 1}
    found = {"a.png": [SEEN, [20, 4, 20.7, 12.2], crowd], "b.png": [], "c.png": [[5, 5, 0, 3], SEEN]}
    found |= {"d.png": [{"bbox": [], "segmentation": []}], "e.png": [[-0.4, -1, 40.4, 17]]}
    coco(tmp_path, found, license=3)
    items, index = read("coco", tmp_path, tmp_path / "out")
    counts = {"images_without_boxes": 2, "boxes_without_area": 2, "clipped_boxes": 2, "crowd_boxes": 1}
    counts |= {"images_not_annotated": 1, "items": 5, "skipped": 0}
    assert index | counts | {"not_read": {"license": 5, "segmentation": 1}} == index
    out = capsys.readouterr().out
    assert "not read: license (5), segmentation (1)" in out and "clipped_boxes 2" in out
    assert items["b.png"]["boxes"].shape == (0, 4) and items["b.png"]["labels"] == []
    assert items["a.png"]["boxes"].tolist() == [list(INSIDE), [20, 4, 40, 16]]
    assert box_of(items, "a.png", "crowd") == [0, 0, 8, 8] and "crowd" not in items["b.png"]
    assert box_of(items, "e.png") == [0, 0, 40, 16]
    items, index = read("coco", tmp_path, tmp_path / "out", "--require-boxes", "--flip")
    assert index["items"] == 3 + sum(name.endswith("~") for name in items)
    assert box_of(items, "a.png~", "crowd") == [32, 0, 40, 8]


def test_the_folder_in_a_file_name_counts_also_of_another_machine(tmp_path, printed):
    for k in (1, 2):
        picture(tmp_path / f"cam{k}/frame_0.png", level=100 + k)

    def ids(*names):
        return run("coco", root=coco(tmp_path, {n: [SEEN] for n in names}), out=tmp_path / "out")["ids"]

    assert ids("cam1/frame_0.png", "cam2\\frame_0.png") == ["cam1/frame_0.png", "cam2/frame_0.png"]
    foreign = ["C:\\data\\cam2\\frame_0.png", "/home/me/cam2/frame_0.png", "../x/cam2/frame_0.png"]
    for name in ("cam2/frame_0", f"{tmp_path.name}/cam2/frame_0.png", "./cam2/frame_0.png", *foreign):
        assert ids(name) == ["cam2/frame_0.png"]
    for name in ("cam3/frame_0.png", "C:\\cam3\\frame_0.png", ""):
        assert "no such image" in printed(lambda name=name: ids(name))
    assert "name the folder" in printed(lambda: ids("frame_0.png"))


@pytest.mark.parametrize("form", ["coco", "voc", "csv", "yolo"])
def test_an_export_in_three_folders_keeps_its_splits_and_copies_are_one_source(tmp_path, printed, form):
    parts = {"train": [f"p{k}_jpg.rf.{c}{k}.jpg" for k in range(4) for c in "abc"]}
    parts |= {"valid": ["v0_jpg.rf.a1.jpg"], "test": ["t0_jpg.rf.a2.jpg"]}

    def write_part(part, *names, height):
        rows = [(name, "part", *INSIDE) for name in names]
        how = {"coco_file": "_annotations.coco.json", "file": "_annotations.csv"}
        image_folder(tmp_path / part, rows, ["part"], height, **how)

    for height, (part, names) in enumerate(parts.items(), 16):
        write_part(part, *names, height=height)
    about = {"nc": 1, "names": ["part"], "train": "../train", "val": "../valid", "test": "../test"}
    put(tmp_path, {"data.yaml": json.dumps(about)})
    given = {"root": tmp_path, "out": tmp_path / "out"}
    items, index = read(form, **given)
    assert facts(index, "train", "val", "test", "items", "sources") == [12, 1, 1, 14, 6]
    for name, item in items.items():
        photograph = name.rsplit("/", 1)[1].split(".rf.")[0]
        assert item["source"].startswith(f"{split_of(item['source'])}:") and photograph in item["source"]
        assert box_of(items, name) == INSIDE
    assert run(form, n=7, **given)["train"] == 7 and run(form, n=13, **given)["test"] <= 1
    assert run(form, "--resplit", **given)["sources"] == 6
    if form == "voc":
        write_part("test", "p1_jpg.rf.x.jpg", height=40)
        assert "--resplit" in printed(lambda: run(form, **given))


def test_units_are_stated_where_they_are_not_clear(tmp_path, refused):
    picture(tmp_path / "a.png")
    given, relative = {"root": tmp_path, "out": tmp_path / "out"}, np.array([0.25, 0.25, 0.75, 0.75])
    for units, corners in {"relative": relative, "thousandths": 1000 * relative}.items():
        labels(tmp_path, ("a.png", "part", *corners), header=BOXES)
        items, index = read("csv", **given, units=units)
        assert index["units"] == units and box_of(items) == INSIDE
    refused(lambda: run("csv", **given), "1 of 1 images have problems")
    labels(tmp_path, ("a.png", "part", *relative), header=BOXES)
    refused(lambda: run("csv", **given), "labels.csv is above 1; state --units")
    assert box_of(read("csv", **given, units="pixels")[0]) == relative.tolist()


def test_vocs_own_layout_counts_pixels_from_1_and_its_lists_are_the_split(tmp_path):
    for k, (name, part) in enumerate(zip("abc", ("train", "val", "test"), strict=True)):
        picture(tmp_path / f"JPEGImages/{name}.jpg", level=100 + k, quality=95)
        more = f"<difficult>{k // 2}</difficult><pose>Left</pose>"
        voc(tmp_path / f"Annotations/{name}.xml", f"{name}.jpg", ("part", 11, 5, 30, 12), more=more)
        put(tmp_path / "ImageSets/Main", {f"{part}.txt": f"{name}\n"})
    items, index = read("voc", tmp_path, tmp_path / "out")
    assert facts(index, "train", "val", "test", "origin", "not_read") == [1, 1, 1, 1, {"pose": 3}]
    assert box_of(items, "JPEGImages/a.jpg") == INSIDE
    assert box_of(items, "JPEGImages/c.jpg", "crowd") == INSIDE  # difficult: ignored in scoring
    items, index = read("voc", tmp_path, tmp_path / "out", origin=0)
    assert index["origin"] == 0 and box_of(items, "JPEGImages/a.jpg") == [11, 5, 30, 12]


@pytest.mark.parametrize("degrees", [90, -90, 180, 45, 450])
@pytest.mark.parametrize("form", ["coco", "voc", "csv"])
def test_a_rotated_box_is_enclosed(tmp_path, form, degrees):
    picture(tmp_path / "a.png", (40, 40))
    write(tmp_path, [10, 16, 30, 24], (40, 40), degrees)
    items, index = read(form, tmp_path, tmp_path / "out")
    half = 28 / 8**0.5  # of the diagonal projections of 20 x 8 px
    expected = {180: [10, 16, 30, 24], 45: [20 - half, 20 - half, 20 + half, 20 + half]}
    assert box_of(items) == expected.get(degrees, [16, 10, 24, 30])
    assert index["rotated_boxes"] == 1 and index["not_read"] == ({"occluded": 1} if form == "coco" else {})


def test_yolo_reads_polygons_lists_and_background_and_refuses_what_it_cannot_know(tmp_path, refused):
    for k, name in enumerate("abcd"):
        picture(tmp_path / f"images/{name}.png", level=100 + k)
    yolo(tmp_path / "labels/a.txt", (1, *INSIDE))
    files = {"labels/b.txt": "0 0.25 0.25 0.75 0.25 0.75 0.75 0.5 0.5\n", "labels/c.txt": ""}
    files["train.txt"] = "".join(f"./images/{k}.png\n" for k in "abc")
    about = {"path": "elsewhere", "train": "train.txt", "names": {0: "x", 1: "y"}}
    given = {"root": tmp_path, "out": tmp_path / "out"}
    put(tmp_path, files | {"data.yaml": json.dumps(about)})
    items, index = read("yolo", **given)
    assert index["ids"] == [f"images/{k}.png" for k in "abc"] and index["train"] == 3
    assert [i["labels"] for i in items.values()] == [["y"], ["x"], []]
    assert box_of(items, "images/a.png") == INSIDE and box_of(items, "images/b.png") == INSIDE
    refusals = {"nc: 3 and 2 names": {"nc": 3}, "images/val does not exist": {"val": "images/val"}}
    for words, wrong in refusals.items():
        put(tmp_path, {"data.yaml": json.dumps(about | wrong)})
        refused(lambda: run("yolo", **given), words)
    (tmp_path / "data.yaml").unlink()
    put(tmp_path, {"labels/classes.txt": "x\ny\n"})
    assert run("yolo", **given)["images_without_boxes"] == 2  # c, and d without a file
    (tmp_path / "labels").rename(tmp_path / "annotations")
    put(tmp_path, {"classes.txt": "x\ny\n"})
    refused(lambda: run("yolo", **given), "holds no labels")


def test_images_are_read_and_written_a_shard_at_a_time(tmp_path, monkeypatch):
    log, names = [], [f"{k:03d}.png" for k in range(200)]
    for k, name in enumerate(names):
        picture(tmp_path / name, level=k)

    def watched(letter, function):
        return lambda *args: log.append(letter) or function(*args)

    monkeypatch.setattr(boxes, "boxed_item", watched("i", boxes.boxed_item))
    monkeypatch.setattr(torch, "save", watched("s", torch.save))
    run("coco", root=coco(tmp_path, dict.fromkeys(names, [SEEN])), out=tmp_path / "out")
    assert [len(part) for part in "".join(log).split("s")] == [64, 64, 64, 8, 0]
