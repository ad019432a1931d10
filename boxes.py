"""Images with boxes: COCO, Pascal VOC, YOLO and CSV, also as Roboflow, CVAT and Label Studio write them.

A reader turns annotations into `Photo`s in the units of the file; `boxed_items` decodes each image and places
its boxes in pixels of the upright image. What a file states is honoured or refused: folders in file names,
the size (of a resized image: boxes are rescaled; of the stored image: rotated as EXIF states), a rotation
(the enclosing box), splits (a column, data.yaml, ImageSets/Main, folders called train, valid or test). Copies
`.rf.<hash>` of a photograph are one source. Crowds, and what VOC calls difficult, are not targets.
"""

import csv
import hashlib
import io
import itertools
import json
import os
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
import yaml
from tqdm import tqdm

from augment import augmented
from common import fail
from media import Unusable, is_image, opened_image, orientation, upright_pixels, write_whole

COUNTED = ("images_without_boxes", "boxes_without_area", "clipped_boxes", "crowd_boxes", "rotated_boxes")
COUNTED += ("rescaled_images", "images_not_annotated")
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNITS = {"pixels": None, "relative": 1, "thousandths": 1000}  # what a side of the image measures
CORNERS = ("xmin", "ymin", "xmax", "ymax")
FILES = {  # patterns below --root, the first that matches
    "coco": ("annotations.json", "*/_annotations.coco.json", "*.json", "annotations/*.json"),
    "csv": ("labels.csv", "*/_annotations.csv", "*.csv"),
    "voc": ("[Aa]nnotations/**/*.xml", "**/*.xml"),
    "yolo": ("data.yaml", "*.yaml", "classes.txt", "*/classes.txt", "obj.names"),
}
LISTED = 20  # problems of a kind that are printed


@dataclass
class Box:
    """A box, turned by degrees clockwise about its centre: as its file states it, after `parse` xyxy."""

    where: str
    corners: list
    label: str
    degrees: float | None = None
    crowd: bool = False
    form: str = "xyxy"  # xywh, cxcywh, polygon


@dataclass
class Photo:
    """What annotations state about an image. Of `names`, paths that may be meant, the first is taken."""

    names: list
    size: tuple = (None, None)  # width, height in pixels
    part: str = ""
    boxes: list = field(default_factory=list)
    problem: tuple | None = None  # (kind, reason)


# ---------------------------------------------------------------- files


def read_text(path):
    """The text of a file, without Excel's byte order mark. Exit 2 if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        fail(f"{path} cannot be read as UTF-8 ({e}); save it again")


def read_table(path, columns, others, unread):
    """[(line, {column: text})] of a CSV that has `columns`; those in neither list are counted in `unread`."""
    table = csv.DictReader(io.StringIO(read_text(path)), restval="")
    try:
        rows = list(enumerate(table, 2))
    except csv.Error as e:
        fail(f"{path} is not a CSV file ({e}); save it again")
    if missing := set(columns) - set(table.fieldnames or ()):
        fail(f"{path} lacks the columns {', '.join(sorted(missing))}; correct its header")
    for line, row in rows:
        if row.pop(None, None):
            fail(f"{path}: line {line} has more fields than the header; quote a text with a comma")
        row.update({column: text.strip() for column, text in row.items()})
        unread.update(c for c, text in row.items() if text and c not in (*columns, *others))
    return rows


def annotation_files(form, root, given):
    """The annotation files that --annotations names, or those found below root."""
    if not root.is_dir():
        fail(f"--root {root} is not a folder; give the folder that holds the images")
    if given:
        folder = form == "voc" and Path(given).is_dir()
        found = sorted(Path(given).rglob("*.xml")) if folder else [Path(given)]
        if not found or not found[0].is_file():
            fail(f"{given} holds no {form} annotations; give them with --annotations")
        return found
    for pattern in FILES[form]:
        found = sorted(root.glob(pattern))
        in_parts = {p.parent.name.lower() for p in found} <= PARTS.keys()
        if len(found) > 1 and form != "voc" and not in_parts:
            fail(f"{root} holds {found[0].name} and {found[1].name}; give one of them with --annotations")
        if found:
            return found
    fail(f"{root} holds no {FILES[form][0]}; give the {form} annotations with --annotations")


def images_under(root):
    """{file name, also without its ending: paths relative to root} of all images below root."""
    found = {}
    for path in sorted(root.rglob("*")):
        if is_image(path.name) and path.is_file() and not path.name.startswith("."):
            for name in (path.name, path.stem):
                found.setdefault(name, []).append(path.relative_to(root))
    return found


def rank(image, path, root):
    """How well an image below root has the name and folders of a stated path; None if it has others."""
    folders = [x for x in path.parts[:-1] if x not in ("/", "..")]
    foreign = len(folders) < len(path.parts) - 1 or ":" in path.parts[0]  # a path of another machine
    here, shared = image.parent.parts, 0
    for a, b in zip([*root.resolve().parts, *here][::-1], folders[::-1], strict=False):
        if a != b:
            break
        shared += 1
    if shared == len(folders) or foreign and shared >= len(here):
        return image.name == path.name, list(here) == folders, shared
    return None


def find_image(names, root, known):
    """The image, relative to root, that the first of some paths means. Raises Unusable."""
    for name in names:
        path, best, found = PurePosixPath(name.replace("\\", "/")), None, []
        for image in known.get(path.name, ()):
            fit = rank(image, path, root)
            if fit and (best is None or fit >= best):
                found = [*found, image] if fit == best else [image]
                best = fit
        if len(found) > 1:
            raise Unusable("ambiguous", f"may be {found[0]} or {found[1]} under {root}; name the folder")
        if found:
            return found[0]
    raise Unusable("missing", f"no such image under {root}")


# ---------------------------------------------------------------- readers


def in_folder(file, root, name):
    """A name in an annotation file: beside that file, if it lies in the folder of a part."""
    inside = file.is_relative_to(root) and file.parent.name.lower() in PARTS
    return f"{file.parent.relative_to(root).as_posix()}/{name}" if inside else str(name)


def read_csv(root, files, unread):
    """A row for each box, or with a name alone for an image without objects."""
    photos = {}
    columns, others = ("filename", "class", *CORNERS), ("width", "height", "split", "rotation")
    for file in files:
        for line, row in read_table(file, columns, others, unread):
            name, part = in_folder(file, root, row["filename"] or f"line {line}"), row.get("split", "")
            photo = photos.setdefault(name, Photo([name], part=part))
            photo.size = row.get("width"), row.get("height")
            if any(row[k] for k in columns[1:]):
                corners = [row[k] for k in CORNERS]
                photo.boxes.append(Box(f"line {line}", corners, row["class"], row.get("rotation")))
            if photo.part != part:
                photo.problem = "split", f"is in {photo.part or 'no split'} and in {part or 'no split'}"
    return list(photos.values())


def read_voc(root, files, unread):
    """An XML for each image. Of VOC's own layout, the lists in ImageSets/Main are the split."""
    base, stated, photos = voc_folder(files[0]) or root, {}, []
    for part in ("train", "val", "test"):
        lists = base.parent / "ImageSets" / "Main" / f"{part}.txt"
        stated |= dict.fromkeys(read_text(lists).split() if lists.is_file() else (), part)
    for file in files:
        try:
            photos.append(voc_photo(ET.parse(file).getroot(), file, base, unread))
        except (ET.ParseError, ValueError) as e:
            problem = "broken", f"not a readable VOC annotation ({str(e).replace(': ', ', ')})"
            photos.append(Photo([file.name], problem=problem))
        photos[-1].part = stated.get(file.stem, "")
    return photos


def voc_photo(tree, file, base, unread):
    if tree.tag != "annotation":
        raise ValueError(f"it begins with <{tree.tag}>")
    name = (tree.findtext("filename") or file.stem).strip()
    place = Path(os.path.relpath(file.parent, base)).as_posix()
    folders = [x for x in (place, (tree.findtext("folder") or "").strip()) if x not in ("", ".")]
    size = tree.findtext("size/width"), tree.findtext("size/height")
    photo = Photo([*(f"{folder}/{name}" for folder in folders), name], size)
    unread.update(x.tag for x in tree if x.tag not in ("filename", "folder", "size", "object"))
    for k, thing in enumerate(tree.findall("object"), 1):
        more = {x.findtext("name"): x.findtext("value") for x in thing.iterfind("attributes/attribute")}
        corners = [thing.findtext(f"bndbox/{key}") for key in CORNERS]
        box = Box(f"object {k}", corners, thing.findtext("name"), more.pop("rotation", None))
        box.crowd = (thing.findtext("difficult") or "").strip() == "1"
        photo.boxes.append(box)
        unread.update(more.keys())
        unread.update(x.tag for x in thing if x.tag not in ("name", "bndbox", "difficult", "attributes"))
    return photo


def voc_folder(file):
    """The folder called Annotations that holds an XML, or None."""
    return next((p for p in file.absolute().parents if p.name.lower() == "annotations"), None)


def read_coco(root, files, unread):
    """Instances, xywh; one file, or one in the folder of each part."""
    photos = []
    for file in files:
        try:
            photos += coco_photos(json.loads(read_text(file)), file, root, unread)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            fail(f"{file} is not a COCO instances file ({type(e).__name__}: {e}); give one")
    return photos


def coco_photos(content, file, root, unread):
    classes, photos, stray = {c["id"]: c["name"] for c in content["categories"]}, {}, []
    for image in content["images"]:
        size = image.get("width"), image.get("height")
        photo = Photo([in_folder(file, root, image["file_name"])], size)
        if photos.setdefault(image["id"], photo) is not photo:
            photo.problem = photos[image["id"]].problem = "duplicate", f"shares the id {image['id']}"
            stray.append(photo)
        unread.update(image.keys() - {"id", "file_name", "width", "height"})
    for a in content["annotations"]:
        where, owner, more = f"annotation {a.get('id')}", photos.get(a["image_id"]), a.get("attributes") or {}
        if owner is None:
            reason = f"refers to image {a['image_id']}, which the file does not list"
            stray.append(Photo([where], problem=("missing", reason)))
            continue
        emptied = not a.get("bbox") and not a.get("segmentation")  # by the tool that drew it
        corners, crowd = [0, 0, 0, 0] if emptied else a.get("bbox"), a.get("iscrowd") in (1, "1")
        label = classes.get(a["category_id"])
        owner.boxes.append(Box(where, corners, label, more.get("rotation"), crowd, "xywh"))
        unread.update(a.keys() - {"id", "image_id", "category_id", "bbox", "iscrowd", "attributes"})
        unread.update(more.keys() - {"rotation"})
    return [*photos.values(), *stray]


def read_yolo(root, files, unread):
    """data.yaml or a list of class names; for each image a text file beside it or in labels/ for images/."""
    about, photos, used = yolo_yaml(files[0], unread), [], {}
    listed = yolo_parts(files[0], about)
    for path in listed or sorted(p.resolve() for p in root.rglob("*") if is_image(p.name)):
        inside = path.is_relative_to(root.resolve())
        name = path.relative_to(root.resolve()) if inside else path
        label, photo = yolo_label(path), Photo([name.as_posix()], part=listed.get(path, ""))
        photos.append(photo)
        if label is None:  # without objects
            continue
        if used.setdefault(label, path.name) != path.name:
            photo.problem = "duplicate", f"shares {label} with {used[label]}"
        lines = [line.split() for line in read_text(label).splitlines() if line.strip()]
        photo.boxes = [yolo_box(f"line {k} of {label.name}", about, *x) for k, x in enumerate(lines, 1)]
    if not used:
        fail(f"{root} holds no labels (labels/a.txt for images/a.jpg, or beside it); give another --root")
    return photos + stray_labels(used)


def stray_labels(used):
    """Photos, without an image, of the text files beside those of images."""
    found = []
    for folder in {label.parent for label in used}:
        names = {p for p in folder.glob("*.txt") if p.stem not in ("classes", "notes", *PARTS)}
        for label in sorted(names - used.keys()):
            found.append(Photo([label.name], problem=("missing", "holds labels of no image")))
    return found


def yolo_yaml(file, unread):
    """The content of a data.yaml; of a list of names {names}. Names are {number, as text: name}."""
    try:
        about = yaml.safe_load(read_text(file)) if file.suffix in (".yaml", ".yml") else {}
        names = about["names"] if about else [x for x in read_text(file).splitlines() if x.strip()]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        names = {str(k): str(v) for k, v in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as e:
        fail(f"{file} states no class names ({type(e).__name__}); give data.yaml or classes.txt")
    if about.get("nc", len(names)) != len(names):
        fail(f"{file} states nc: {about['nc']} and {len(names)} names; correct it")
    unread.update(about.keys() - {"names", "nc", "path", "train", "val", "test", "kpt_shape"})
    return about | {"names": names}


def yolo_parts(file, about):
    """{path of an image: part} of a data.yaml, whose entries are folders or lists of paths."""
    found = {}
    for part in ("train", "val", "test"):
        entries = about.get(part) or []
        for entry in [entries] if isinstance(entries, str) else entries:
            for path in yolo_images(file, str(about.get("path", ".")), entry, part):
                if found.setdefault(path, part) != part:
                    fail(f"{file} states {path} in {found[path]} and in {part}; take one out")
    return found


def yolo_images(file, base, entry, part):
    """Paths of an entry. Roboflow writes ../train/images for train/images, and names a test part always."""
    bases = file.parent / base, file.parent
    places = [folder / name for folder in bases for name in (entry, entry.removeprefix("../"))]
    place = next((p for p in places if p.exists()), None)
    if place is None:
        if part != "test":
            fail(f"{file}: {part}: {entry} does not exist; correct it or take it out")
        print(f"{file}: test: {entry} does not exist; there is no test part")
        return []
    paths = place.rglob("*")
    if place.is_file():
        paths = (place.parent / line.strip() for line in read_text(place).splitlines())
    return sorted(p.resolve() for p in paths if is_image(p.name))


def yolo_label(path):
    """The text file of an image, or None."""
    name, folders = f"{path.stem}.txt", list(path.parent.parts)
    places = [path.parent / name, path.parent / "labels" / name]
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        places.insert(0, Path(*folders[:last], "labels", *folders[last + 1 :], name))
    return next((p for p in places if p.is_file()), None)


def yolo_box(where, about, number, *values):
    """The Box of a line: a class and a box, perhaps with key points, or a class and a polygon."""
    label = about["names"].get(number.removesuffix(".0"))
    if len(values) > 4 and "kpt_shape" not in about:
        return Box(where, values, label, form="polygon")
    return Box(where, values[:4], label, form="cxcywh")


READERS = {"coco": read_coco, "voc": read_voc, "csv": read_csv, "yolo": read_yolo}


def finite(text):
    """A finite number. Raises TypeError and ValueError."""
    if not np.isfinite(float(text)):
        raise ValueError(f"{text} is not finite")
    return float(text)


def corners_of(box):
    """xyxy of the numbers that a file states, an array. Raises TypeError and ValueError."""
    values = np.array([finite(x) for x in box.corners])
    if box.form == "polygon":
        points = values.reshape(-1, 2)
        return np.array([*points.min(0), *points.max(0)])
    first, second = values.reshape(2, 2)
    if box.form == "xywh":
        second = first + second
    elif box.form == "cxcywh":
        first, second = first - second / 2, first + second / 2
    return np.concatenate([first, second])


def parse_box(box, classes):
    """Make a box xyxy and its degrees a number, in place. Raises Unusable."""
    try:
        box.corners, box.degrees = corners_of(box), finite(box.degrees or 0)
    except (ValueError, TypeError) as e:
        raise Unusable("box", f"{box.where} cannot be read ({e})") from e
    box.label = str(box.label or "").strip()
    if not box.label:
        raise Unusable("label", f"{box.where} has a class without a name")
    if classes and box.label not in classes:
        raise Unusable("label", f"{box.where} has the unknown class {box.label!r}")


def parse(photo, classes):
    """Read the size and the boxes of a Photo, in place. What cannot be used is the Photo's problem."""
    try:
        size = tuple(round(finite(side or 0)) for side in photo.size)
        photo.size = size if min(size) > 0 else None  # some tools write 0
        for box in photo.boxes:
            parse_box(box, classes)
    except Unusable as e:
        photo.problem = photo.problem or e.args
    except (ValueError, TypeError) as e:
        photo.problem = photo.problem or ("size", f"has a size that cannot be read ({e})")


def read_boxes(args, unread):
    """(Photos of a set, {units, origin}). Exit 2 where the units are not stated and not clear."""
    form, corners = args.mode, [np.zeros(4)]
    files = annotation_files(form, Path(args.root), args.annotations)
    photos = READERS[form](Path(args.root), files, unread)
    for photo in photos:
        parse(photo, args.classes)
        if not photo.problem:
            corners += [box.corners for box in photo.boxes if box.corners[0] < box.corners[2]]
    if 0 < np.max(corners) <= 1 and args.units is None and form != "yolo":
        fail(f"no coordinate in {files[0]} is above 1; state --units relative, or --units pixels")
    units = args.units or ("relative" if form == "yolo" else "pixels")
    own = (voc_folder(files[0]) or files[0]).parent / "JPEGImages"  # VOC's own layout, unless there is a 0
    own = form == "voc" and own.is_dir() and np.min(corners[1:], initial=1) >= 1
    origin = int(own if getattr(args, "origin", None) is None else args.origin)
    return photos, {"units": units, "origin": origin}


# ---------------------------------------------------------------- boxes in the upright image


def alike(a, b):
    """Is one size the other, scaled and rounded to pixels?"""
    return abs(b[0] - a[0] * b[1] / a[1]) < 1 or abs(b[1] - a[1] * b[0] / a[0]) < 1


def in_pixels(box, frame, units, origin, counts):
    """Corners of a box inside a frame (width, height), in its pixels; None without area. Raises Unusable."""
    corners, sides = np.array(box.corners, float), np.array([*frame, *frame], float)
    empty = (corners[2:] == corners[:2]).any()
    corners = corners * sides / UNITS[units] if UNITS[units] else corners - [origin, origin, 0, 0]
    if box.degrees:
        angle, centre = np.deg2rad(box.degrees), (corners[:2] + corners[2:]) / 2
        turn = np.abs([[np.cos(angle), np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        half = turn @ (corners[2:] - corners[:2]) / 2
        corners = np.clip([*(centre - half), *(centre + half)], 0, sides)
        counts["rotated_boxes"] += 1
    inside = np.clip(corners, 0, sides)
    if np.abs(inside - corners).max() > 1 or (corners[2:] < corners[:2]).any():
        reason = f"box {corners.tolist()} (xyxy) does not lie inside the image of {frame[0]}x{frame[1]}"
        raise Unusable("box", f"{reason}; correct it or state its --units")
    if empty or (inside[2:] <= inside[:2]).any():
        counts["boxes_without_area"] += 1
        return None
    counts["clipped_boxes"] += int(np.abs(inside - corners).max() > 1e-3)
    return inside


def rotated(corners, frame, turn):
    """A box of a stored frame (width, height) in the upright image, by an EXIF orientation from 5 to 8."""
    (x1, y1, x2, y2), (width, height) = corners, frame
    across = (height - y2, height - y1) if turn in (6, 7) else (y1, y2)
    down = (width - x2, width - x1) if turn in (7, 8) else (x1, x2)
    return np.array([across[0], down[0], across[1], down[1]])


def place_boxes(photo, size, turn, how, counts):
    """[(xyxy in the upright image of `size`, Box)]. Boxes without area are left out. Raises Unusable."""
    frame, stored = photo.size or size, False
    if not alike(frame, size):
        stored = turn >= 5 and alike(frame, size[::-1])
        if not stored:
            stated = f"its annotation states {frame[0]}x{frame[1]}"
            raise Unusable("size", f"is {size[0]}x{size[1]} pixels, {stated}; correct one of them")
    scale = np.array(size + size) / (frame[::-1] * 2 if stored else frame * 2)
    counts["rescaled_images"] += int((scale != 1).any())
    found = []
    for box in photo.boxes:
        corners = in_pixels(box, frame, how["units"], how["origin"], counts)
        if corners is not None:
            found.append((scale * (rotated(corners, frame, turn) if stored else corners), box))
    return found


# ---------------------------------------------------------------- items


def part_of(photo, name):
    """train, val, test or "": as the annotations state, or else the folders of the image."""
    stated = [photo.part] if photo.part else [x for x in name.lower().split("/")[:-1] if x in PARTS]
    return PARTS.get(stated[-1].lower(), stated[-1]) if stated else ""


def in_proportion(photos):
    """Photos in an order of which any beginning has a proportionate share of every part."""
    parts = [part_of(photo, photo.names[0]) for photo in photos]
    sizes, seen, places = Counter(parts), Counter(), []
    for part in parts:
        seen[part] += 1
        places.append(seen[part] / sizes[part])
    return [photos[k] for k in np.argsort(places, kind="stable")]


def photograph_of(name):
    """The name without the folders of parts if it is a copy `.rf.<hash>` of a photograph, else the name."""
    stem, copy, _ = name.rpartition(".rf.")
    return "/".join(x for x in stem.split("/") if x.lower() not in PARTS) if copy else name


def boxed_item(photo, path, root, how, counts):
    """The item of an image. Raises Unusable."""
    with opened_image(root / path) as image:
        encoded, turn = (root / path).read_bytes(), orientation(image)
        height, width = upright_pixels(image).shape[:2]
    item = {"id": path.as_posix(), "width": width, "height": height}
    item["encoded"] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    found = place_boxes(photo, (width, height), turn, how, counts)
    for key, names, crowd in (("boxes", "labels", False), ("crowd", "crowd_labels", True)):
        chosen = [(corners, box.label) for corners, box in found if box.crowd == crowd]
        if chosen or not crowd:
            corners = np.array([corners for corners, _ in chosen], np.float32).reshape(-1, 4)
            item |= {key: torch.from_numpy(corners), names: [label for _, label in chosen]}
    counts["crowd_boxes"] += len(item.get("crowd", ()))
    return item


def boxed_items(photos, args, how, notes, counts):
    """Items of Photos, made one at a time. Problems are appended to `notes` as (name, kind, reason); after
    one, without --skip-bad, nothing is yielded. A source is in one part."""
    root, taken, first = Path(args.root), set(), {}
    known = images_under(root)
    for photo in photos:
        counts_here = Counter()
        try:
            if photo.problem:
                raise Unusable(*photo.problem)
            path = find_image(photo.names, root, known)
            if path in taken:
                raise Unusable("duplicate", "is annotated twice")
            taken.add(path)
            item = boxed_item(photo, path, root, how, counts_here)
            item["source"] = source_of(item, photo, args, first)
        except Unusable as e:
            notes.append((photo.names[-1], *e.args))
            continue
        counts_here["images_without_boxes"] += not len(item["boxes"])
        counts.update(counts_here)
        if (args.skip_bad or not notes) and (len(item["boxes"]) or not args.require_boxes):
            yield item
    counts["images_not_annotated"] = len(set(itertools.chain(*known.values())) - taken)


def source_of(item, photo, args, first):
    """The source of an item, with its part; of copies, that of the first. Raises Unusable."""
    name, part = item["id"], "" if args.resplit else part_of(photo, item["id"])
    if part not in ("", *PARTS.values()):
        raise Unusable("split", f"has the split {part!r}; give train, val, test or nothing")
    keys = photograph_of(name), hashlib.sha256(item["encoded"].numpy()).digest()
    twin = first.get(keys[0]) or first.get(keys[1]) or (name, part, keys[0])
    first.update(dict.fromkeys(keys, twin))
    if twin[1] != part:
        there = f"{twin[1] or 'no split'} as {twin[0]}"
        raise Unusable("split", f"is in {part or 'no split'}, and in {there}; correct it or give --resplit")
    return f"{part}:{twin[2]}" if part else twin[2]


# ---------------------------------------------------------------- a set, written


def name_unread(unread):
    """Print once which fields are not read and how often they are stated; {field: count}."""
    found = dict(sorted((str(key), n) for key, n in unread.items()))
    if found:
        print("not read:", ", ".join(f"{key} ({n})" for key, n in found.items()))
    return found


def verdict_on(args, notes, n, what, more=dict):
    """The `verdict` of media.write_whole for n items with `notes` (name, kind, reason); more() adds keys."""

    def verdict(index):
        kinds = Counter()
        for name, kind, reason in notes:
            kinds[kind] += 1
            if kinds[kind] <= LISTED:
                print(f"{name}: {reason}", file=sys.stderr)
        found = {"rotated": kinds.pop("rotated", 0)} | more()
        if kinds and not args.skip_bad:
            fail(f"{kinds.total()} of {n} {what} have problems, as above; correct them or give --skip-bad")
        if not index["items"]:
            fail(f"none of {n} {what} in {args.root} is usable; check --root and the other flags")
        return {"skipped": kinds.total(), "skipped_kinds": dict(sorted(kinds.items()))} | found

    return verdict


def write_boxes(args, out, meta):
    """Read a set of images with boxes and write it. Exit 2 on any problem, unless --skip-bad is given."""
    args.classes = args.classes and [name.strip() for name in args.classes.split(",")]
    notes, counts, unread = [], Counter(), Counter()
    photos, how = read_boxes(args, unread)
    photos = in_proportion(photos) if args.n else photos
    items = boxed_items(tqdm(photos, desc="images", unit="image"), args, how, notes, counts)
    items = augmented(itertools.islice(items, args.n), args)
    meta |= how | {"not_read": name_unread(unread)}

    def counted():
        found = {key: counts[key] for key in COUNTED}
        print("boxes:", ", ".join(f"{key} {n}" for key, n in found.items()))
        return found

    write_whole(out, items, meta, verdict_on(args, notes, len(photos), "images", counted))
