"""Boxes in text in pixels, augmentation of items, a contact sheet."""

import functools
import io
import itertools
import math
import re
import textwrap
from pathlib import Path

import numpy as np
import torch

from common import digest, pyplot, split_of
from media import Unusable, frames_of

BOX_TYPES = {"real": "pixels", "norm1": "relative"}  # ms-swift's names of them
PAIR = r"(\s*-?\d*\.?\d+\s*,\s*-?\d*\.?\d+\s*)"
BOX_OR_POINT = re.compile(r'("(bbox_2d|point_2d)"\s*:\s*\[)([^\[\]]*)(\])')
# in brackets, as of LLaVA, or between the tags of Qwen-VL and InternVL
OTHER_BOX = rf"(?:<\|?box\w*\|?>)?[\[(]+{PAIR}[\])]*,\s*[\[(]*{PAIR}[\])]+(?:<[/|]box\w*\|?>)?"
ANY_BOX = re.compile(f"{BOX_OR_POINT.pattern}|{OTHER_BOX}")
COORDINATES = re.compile(r"[\[(]\s*-?\d*\.?\d+\s*,\s*-?\d*\.?\d|<\W?(box|bbox|loc|point|quad)", re.I)
SIDE_WORDS = re.compile(r"(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)", re.I)
PLACE_WORDS = re.compile(r"\b(top|bottom|upper|lower|middle|cent(er|re)|corner|edge)", re.I)

# ---------------------------------------------------------------- boxes in text


def image_of_turn(turns, count):
    """The number of the image of each turn's boxes: the only one in its question, else before it; or None."""
    shown = 0 if any("<image>" in question for question, _ in turns) else count
    found = []
    for question, _ in turns:
        first = shown if "<image>" in question else 0
        shown += question.count("<image>")
        found.append(first if shown - first == 1 and shown <= count else None)
    return found


def numbers_of(text):
    """The numbers of a list; [] for a template such as [x1, y1]. Raises Unusable if only some are numbers."""
    words = text.split(",")
    numbers = [float(word) for word in words if re.fullmatch(r"\s*[-+.\de]*\d\.?\s*", word)]
    if numbers and len(numbers) < len(words):
        raise Unusable("box", f"has [{text}], in which not all are numbers")
    return numbers


def numbers_in(text):
    """The boxes [x1, y1, x2, y2] and points [x, y] of "bbox_2d" and "point_2d" in a text."""
    return list(filter(None, (numbers_of(match[3]) for match in BOX_OR_POINT.finditer(text))))


def to_pixels(numbers, units, size):
    """A box or point in pixels of an image of `size`, which it may overflow by 1 px. Raises Unusable."""
    if units is None and max(numbers) <= 1:
        raise Unusable("units", f"has {numbers}: pixels, relative or thousandths? Give --units")
    scale = {"relative": size, "thousandths": (size[0] / 1000, size[1] / 1000)}.get(units, (1, 1))
    scaled = [n * scale[k % 2] for k, n in enumerate(numbers)]
    inside = [min(max(n, 0), size[k % 2]) for k, n in enumerate(scaled)]
    overflow = max(abs(a - b) for a, b in zip(scaled, inside, strict=True))
    empty = len(inside) == 4 and not (inside[0] < inside[2] and inside[1] < inside[3])
    if len(numbers) not in (2, 4) or empty or overflow > 1:
        where = f"an image of {size[0]}x{size[1]} pixels"
        raise Unusable("box", f"has {numbers}, no box or point inside {where}; for other units give --units")
    return inside


def json_box(numbers):
    """A box [x1, y1, x2, y2] or a point [x, y] as it stands in JSON."""
    name = "bbox_2d" if len(numbers) == 4 else "point_2d"
    return f'"{name}": [{", ".join(f"{round(n, 2):.9g}" for n in numbers)}]'


def in_pixels(text, units, size):
    """`text` with boxes and points in pixels; those in brackets or tags become JSON if units are given."""

    def replaced(match):
        bare = match[3] is None
        numbers = numbers_of(f"{match[5]},{match[6]}" if bare else match[3])
        if not numbers or (bare and units is None and max(numbers) > 1):
            return match[0]
        inside = to_pixels(numbers, units, size)
        if bare:
            return f"{{{json_box(inside)}}}"
        return match[0] if inside == numbers else json_box(inside)

    return ANY_BOX.sub(replaced, text)


def place_boxes(turns, objects, units, sizes):
    """Turns [[question, answer], ...] with boxes in pixels of their images, `sizes` [(width, height), ...].

    ms-swift's `objects` are written at their placeholders. Raises Unusable.
    """
    values = {"<ref-object>": iter(objects.get("ref", ())), "<bbox>": iter(objects.get("bbox", ()))}
    numbers = iter(objects.get("image_id", ()))
    stated = {None: units, **BOX_TYPES}[objects.get("bbox_type")]

    def written(match, number):
        value = next(values[match[0]], None)
        if value is None:
            raise Unusable("placeholder", f"has more {match[0]} than `objects`")
        if match[0] == "<ref-object>":
            return value
        if sizes[next(numbers, number)] != sizes[number]:
            raise Unusable("box", "has an object of another image; ask about each image in its own turn")
        return f"{{{json_box(to_pixels(value, stated, sizes[number]))}}}"

    found = []
    for turn, owner in zip(turns, image_of_turn(turns, len(sizes)), strict=True):
        fill = functools.partial(written, number=owner or 0)
        texts = [in_pixels(text, units, sizes[owner or 0]) for text in turn]
        found.append([re.sub("<ref-object>|<bbox>", fill, text) for text in texts])
        if owner is None and len(set(sizes)) > 1 and numbers_in(" ".join(found[-1])):
            raise Unusable("box", "has a box of an unknown image; ask about each image in its own turn")
    if [*values["<ref-object>"], *values["<bbox>"]]:
        raise Unusable("placeholder", "has more `objects` than <ref-object> and <bbox>")
    return found


# ---------------------------------------------------------------- augmentation


def window_of(width, height, boxes, crop, rng):
    """[x1, y1, x2, y2] with sides of at least the fraction `crop` of an image; it cuts none of the boxes."""
    window = [0, 0, width, height]
    for axis, side in enumerate((width, height) if crop else ()):
        along = [number for box in boxes for number in box[axis::2]]
        first, last = math.floor(min(along, default=side)), math.ceil(max(along, default=0))
        length = max(last - first, math.ceil(rng.uniform(crop, 1) * side))
        window[axis] = int(rng.integers(max(0, last - length), min(first, side - length) + 1))
        window[axis + 2] = window[axis] + length
    return window


def transformed(x, window, flip, light, size=None):
    """Images uint8 [T,H,W,3] cropped to `window`, resized to `size` [height, width], mirrored, relit."""
    from torchvision.transforms.v2 import functional

    x = x.permute(0, 3, 1, 2)[..., window[1] : window[3], window[0] : window[2]]
    x = functional.resize(x, size) if size else x
    x = functional.horizontal_flip(x) if flip else x
    for name, factor in light.items():
        x = getattr(functional, f"adjust_{name}")(x, factor)
    return x.permute(0, 2, 3, 1).contiguous()


def encoded_again(content, **how):
    """An encoded image `transformed`: a JPEG, or else a PNG; uint8 [bytes]."""
    from PIL import Image

    x, file = frames_of({"encoded": content}), io.BytesIO()
    how["window"] = how["window"] or [0, 0, x.shape[2], x.shape[1]]
    Image.fromarray(transformed(x, **how)[0].numpy()).save(
        file, "JPEG" if content[0] == 0xFF else "PNG", quality=95
    )
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def allowed(item, text, boxes, flip, crop):
    """(flip, crop) without what would make the text of an item wrong, or boxes of several images."""
    several = "images" in item
    if SIDE_WORDS.search(text) or COORDINATES.search(BOX_OR_POINT.sub("", text)) or (several and boxes):
        return False, None
    return flip, None if PLACE_WORDS.search(text) or several else crop


def moved_box(numbers, window, flip):
    """A box or point of an image in its part `window`, mirrored or not."""
    xs = [window[2] - x if flip else x - window[0] for x in numbers[::2]]
    ys = [y - window[1] for y in numbers[1::2]]
    return [*itertools.chain(*zip(sorted(xs), ys, strict=True))]


def moved_boxes(boxes, window, flip):
    return torch.tensor([moved_box(box, window, flip) for box in boxes]).float().reshape(-1, 4)


def moved_text(text, window, flip):
    """`text` with its boxes and points moved."""

    def moved(match):
        numbers = numbers_of(match[3])
        return json_box(moved_box(numbers, window, flip)) if numbers else match[0]

    return BOX_OR_POINT.sub(moved, text)


def augment(item, flip, crop, jitter, rng):
    """A copy of an item: mirrored, cropped (sides at least the fraction `crop`, no box cut), in other light.

    Boxes move with it. Not mirrored: text that says left or right or has other coordinates; several images
    with boxes. Not cropped: these, text that says a place, several images. None if nothing changes.
    """
    turns, width, height = item.get("turns", []), item["width"], item["height"]
    words = [*itertools.chain(*turns), *item.get("labels", ()), item.get("text"), item.get("system")]
    text = " ".join(filter(None, words))
    drawn = {key: item[key].tolist() for key in ("boxes", "crowd") if key in item}
    boxes = [*itertools.chain(*drawn.values()), *numbers_in(text)]
    flip, crop = allowed(item, text, boxes, flip, crop)
    if not (flip or crop or jitter):
        return None
    window = window_of(width, height, boxes, crop, rng)
    factors = rng.uniform(0.7, 1.3, 3 * bool(jitter))
    how = {"flip": flip, "light": dict(zip(("brightness", "contrast", "saturation"), factors, strict=False))}
    new = item | {"id": f"{item['id']}~", "width": window[2] - window[0], "height": window[3] - window[1]}
    if "frames" in item:  # resized, so the window is too
        h, w = item["frames"].shape[1:3]
        part = [round(side * scale) for side, scale in zip(window, (w / width, h / height) * 2, strict=True)]
        new["frames"] = transformed(item["frames"], part, size=[h, w], **how)
    elif "images" in item:
        new["images"] = [encoded_again(content, window=None, **how) for content in item["images"]]
    else:
        new["encoded"] = encoded_again(item["encoded"], window=window, **how)
    new |= {key: moved_boxes(found, window, flip) for key, found in drawn.items()}
    if turns:
        new["turns"] = [[moved_text(q, window, flip), moved_text(a, window, flip)] for q, a in turns]
        new |= {"text": new["turns"][0][1]} if "text" in item else {}
    return new


def augmented(items, args):
    """The same items, each of the train split followed by an augmented copy, drawn by --seed and its id."""
    for item in items:
        yield item
        if split_of(item["source"]) == "train":
            rng = np.random.default_rng([args.seed, int(digest(item["id"].encode()), 16)])
            copy = augment(item, args.flip, args.crop, args.jitter, rng)
            if copy:
                yield copy


# ---------------------------------------------------------------- a contact sheet


def drawn_on(axis, item, t, with_words):
    """Draw frame t of an item on an axis of matplotlib, with its boxes, their names, and its words below."""
    axis.imshow(frames_of(item)[t].numpy(), extent=(0, item["width"], item["height"], 0), aspect="auto")
    boxes, names = item.get("boxes", torch.zeros(0, 4)), item.get("names", item.get("labels", []))
    boxes = (boxes[t] if boxes.ndim == 3 else boxes).tolist()
    below, lines = 0, [item.get("action", "")] if not boxes else []
    if with_words:
        boxes = [numbers for numbers in numbers_in(" ".join(item["turns"][0])) if len(numbers) == 4]
        names = [""] * len(boxes)
        below, lines = 1.02, "\n".join(itertools.chain(*item["turns"])).split("\n")
    words = "\n".join(textwrap.fill(line, 37) for line in lines[:8])
    texts = [(words, 0, below * item["height"])]
    for (x1, y1, x2, y2), name in zip(boxes, names, strict=True):
        texts.append((name, x1, y1))
        for color, linewidth in (("white", 2), ("black", 0.7)):
            axis.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=color, linewidth=linewidth)
    for text, x, y in texts:
        axis.text(x, y, text, fontsize=6, va="top", parse_math=False)


def preview(items, path, columns=8, rows=5, tile=160):
    """Save a contact sheet: the first (of a clip also last) frames with boxes, also of answers; words."""
    with_words = "boxes" not in items[0] and "turns" in items[0]
    cells = []
    for k in range(min(len(items), columns * rows)):
        cells += [(items[k], t) for t in ([0, -1] if len(items[k].get("frames", ())) > 1 else [0])]
    size = columns * tile / 100, rows * (tile + 90 * with_words) / 100
    figure, axes = pyplot().subplots(rows, columns, figsize=size, dpi=100)
    figure.subplots_adjust(0, 0.36 / rows if with_words else 0, 1, 1, 0.02, 0.58 if with_words else 0.02)
    for axis, cell in itertools.zip_longest(axes.flat, cells[: axes.size]):
        axis.set_axis_off()
        if cell:
            drawn_on(axis, *cell, with_words)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot().close(figure)
