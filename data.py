"""Stage 0. Turn any source into one contract on disk: data/<name>/.

    python data.py shapes --out data/shapes                    500 images of coloured shapes, 224 px
    python data.py moving --out data/moving                    200 clips of 17 frames, 64 px: which way does it move?
    python data.py moving --freeze first --clips data/moving --out data/moving-first   the same clips showing their first (or middle) frame throughout
    python data.py moving --wait 47 --out data/waiting         the same, standing still for 47 frames in all before they move and after it
    python data.py moving --frames 24 --out data/future        the same, longer: eight frames of past and sixteen to be predicted
    python data.py cut --clips data/future --first 0 --frames 8 --out data/future-past     frames 0 ... 7 of every clip, and nothing of the others (--evenly: 8 spread over all of it)
    python data.py trajectories --out data/trajectories        2000 clips of 32 frames, 48 px: who stays, who comes and goes, and when is who hidden?
    python data.py trajectories --change reversed --only test  the same scenes, those of the test split, played backwards (or with an object deleted, or two swapped)
    python data.py boxes --root DIR --format voc --out data/mine   a folder of images with VOC XML, CSV or COCO JSON boxes
    python data.py clips --root DIR --fps 12 --out data/mine   videos, or folders of frames, and labels.csv: filename,label and, if wanted, split,source,repeat
    python data.py ssv2 --root ROOT --n 1000 --out data/ssv2   Something-Something v2 as published: ROOT/20bn-something-something-v2/*.webm and its JSON files
    python data.py openpack --root ROOT --out data/operations  clips of OpenPack as published: what is done at the end of each, since when, until when, and what next?
    python data.py operations --out data/operations-raw        a made-up set in OpenPack's own layout, for --root: somebody at a bench does ten operations in a noisy order
    python data.py sets --root set.json --out data/mine        pictures or videos with words: LLaVA, Qwen messages, CLIP csv or tsv, webdataset, metadata.jsonl; a file, folder, .tar, .tar.gz or .zip
    python data.py --check set.json --stats                    write nothing; list every problem of such a set by file, item and reason

Of a video the middle --frames frames are kept, squashed to --size. What cannot be used is named, file by file, and nothing is written (--skip-bad: it is
counted and left out); videos that phones store on their side are turned upright, and counted. A set is in the splits that its folders, files or
entries (`split`) say: of two, the one that is not train is the test, and a quarter of train is val.

Writes shards `00000.pt` ... of at most 64 items, `ids.jsonl` ([id, source] a line) and `index.yaml` last. An item is a dict:

    id, source     str; a split never tears one source apart (60/20/20 by a hash of it, or as it says: `train:...`, `val:...`, `test:...`)
    frames         uint8 [T,H,W,3], or `encoded`: the file's own bytes, uint8 [bytes]
    width, height  pixels
    boxes          float32 [n,4], or [T,n,4] in a clip: xyxy of the visible part, pixels of the original frame
    labels, names  n class names (the shape, say), and what one would call each object ("red circle")
    mask           uint8 [H,W] or [T,H,W]: 0 background, i the i-th object
    text, turns    a caption; [question, answer] pairs
    chat, system   (sets) True where the turns are one conversation, each after those before it (else each is a question of its own); what the system says first
    album          (sets) several pictures, as `encoded`; `width` and `height` are of the first. Questions hold `<image>` or `<video>` at their places only where these do not simply stand first;
                   boxes in words ({"bbox_2d": [x1, y1, x2, y2]}, pixels) are of the only picture that their question shows, or if it shows none the only one shown before (spoken_of)
    repeat         (clips) the scene, of which there is another take: how unlike two of them are is what nothing can be better than
    action, template           (clips) what is done, one of a set: a label, a template of Something-Something, or of `moving` the direction
    direction, speed, camera   (moving) one of 8 directions or "still"; pixels a frame; background pixels a frame (dx, dy)
    count, absent              (trajectories) how many coloured objects; the name of one that is not there, though its colour or its shape may be
    tracks                     (trajectories) a dict for each of names: object; persistent (in the picture, seen or hidden, in every frame); why (stays, enters, leaves, passes, appears,
                               vanishes); present, visible, hidden: spans [first, last] of frames from 0 on, both included: half of its area inside the picture, at least a quarter of that seen,
                               present and not visible; direction (while present; "still" below 2 px at 48); speed, px a frame; curvature, 1/px; crosses: names; equation (see `position`)
    asked                      (trajectories) [kind, object or ""] of each of turns: persistence, frames, direction, hidden, whatif, unknown, absent, count
    removed                    (trajectories, --change deleted) whose track is gone
    operation, next, previous  (openpack) what is done at the clip's last frame, and after and before that (None: nothing); earlier: a second before it (None: nothing)
    start, end, seconds        (openpack) when it begins (below 0) and ends, seconds from the last frame on; how long the session has lasted then
    boundary, fixed, subject   (openpack) does the clip end within a second of a change? is it one of the first 30 of U0108, the fixed test? who works
    fps                        (openpack) frames a second, on average, of those shown

The split of openpack is by subject, the source a session ("test:U0108-S0100"); its index.yaml holds in `grammar` what the labels of train say without a picture.
Real clips have no boxes, labels or mask. Generated sets depend on --seed alone: the same bytes every time.
"""

import base64
import bz2
import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import lzma
import math
import os
import re
import shutil
import stat
import sys
import tarfile
import tempfile
import textwrap
import uuid
import xml.etree.ElementTree as ET
import zipfile
import zlib
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from tqdm import tqdm

from common import (
    CHOICES,
    RATE,
    Items,
    check_writable,
    choose_frames,
    digest,
    frames_of,
    known,
    load_items,
    load_yaml,
    parser,
    refuse,
    save_text,
    save_yaml,
    say,
    split_of,
    spoken_of,
    upright,
    write_items,
)

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 210),
    "yellow": (235, 205, 50),
    "purple": (140, 50, 170),
    "cyan": (60, 200, 210),
}
# points, inner / outer radius
SHAPES = {"circle": None, "triangle": (3, 0.5), "square": (4, 0.5**0.5), "star": (5, 0.45)}
DIRECTIONS = {
    "right": (1, 0),
    "down right": (1, 1),
    "down": (0, 1),
    "down left": (-1, 1),
    "left": (-1, 0),
    "up left": (-1, -1),
    "up": (0, -1),
    "up right": (1, -1),
}
# who speaks, as LLaVA and as Qwen say it
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PARTS = ("text", "image", "image_url", "video", "video_url")  # of what is said, where that is a list
# fields of an entry
PICTURES = ("image", "images", "file_name", "file_names", "filepath", "filename", "image_path")
VIDEOS, CAPTIONS = ("video", "videos"), ("text", "caption", "title")
ENDINGS = dict.fromkeys(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "images"
) | dict.fromkeys((".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg"), "videos")
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
MARK = "(?:<image>|<video>)"
SIDED = re.compile(r"(?<![a-z])(left|right|clockwise|counterclockwise|anticlockwise)", re.I)
SITED = re.compile(r"\b(top|bottom|upper|lower|middle|cent(er|re)|corner|edge)", re.I)
# places in any other form
LOOSE = re.compile(r"[\[(]\s*-?\d*\.?\d+\s*,\s*-?\d*\.?\d|<\W?(box|bbox|loc|point|quad)", re.I)
PLACED = re.compile(r'("(bbox_2d|point_2d)"\s*:\s*\[)([^\[\]]*)(\])')


# ---------------------------------------------------------------- drawing


def coverage(shape, size, cx, cy, radius, angle):
    """How much of each pixel a shape covers, float [size,size]. Every shape is star-convex: inside is r <= R(theta)."""
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    dx, dy = x - cx, y - cy
    r = np.hypot(dx, dy)
    if SHAPES[shape] is None:
        edge = radius
    else:
        points, inner = SHAPES[shape]
        half = np.pi / points
        # 0 at a point, `half` at a notch
        theta = np.abs((np.arctan2(dx, -dy) - angle + half) % (2 * half) - half)
        edge = radius * inner * np.sin(half) / (np.sin(theta) + inner * np.sin(half - theta))
    return np.clip(edge - r + 0.5, 0, 1)


def smooth_noise(rng, size, cells):
    """Low-frequency noise in [-1, 1], float32 [size,size,1]: a coarse random grid, bicubically enlarged."""
    grid = torch.from_numpy(rng.uniform(-1, 1, (1, 1, cells, cells)).astype(np.float32))
    return (
        torch.nn.functional.interpolate(grid, (size, size), mode="bicubic", align_corners=False)[
            0, 0, :, :, None
        ]
        .numpy()
        .clip(-1, 1)
    )


def background(rng, size):
    """A muted gradient with low-frequency texture, float32 [size,size,3] in 0..255."""
    a, b = (rng.uniform(60, 200) + rng.uniform(-25, 25, 3) for _ in range(2))
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / size - 0.5
    ramp = ((x * np.cos(direction) + y * np.sin(direction)) + 0.5)[..., None]
    return (
        a + (b - a) * ramp + rng.uniform(0, 22) * smooth_noise(rng, size, int(rng.integers(3, 8)))
    ).astype(np.float32)


def draw(objects, canvas):
    """Paint objects back to front. Returns the image uint8 [S,S,3], the mask uint8 [S,S] and visible boxes float32 [n,4]."""
    size, image = canvas.shape[0], canvas.copy()
    mask = np.zeros((size, size), np.uint8)
    for i, o in enumerate(objects, 1):
        alpha = coverage(o["shape"], size, o["cx"], o["cy"], o["radius"], o["angle"])
        y, x = np.mgrid[:size, :size]
        wave = np.sin(
            (x * np.cos(o["angle"] + 1) + y * np.sin(o["angle"] + 1)) * 2 * np.pi / (o["radius"] * 0.7)
        )
        fill = np.asarray(o["rgb"], np.float32) * (1 - o["texture"] * (wave[..., None] > 0))
        image += alpha[..., None] * (fill - image)
        mask[alpha >= 0.5] = i
    boxes = np.zeros((len(objects), 4), np.float32)
    for i in range(len(objects)):
        ys, xs = np.nonzero(mask == i + 1)
        if len(ys):
            boxes[i] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
    return image.round().clip(0, 255).astype(np.uint8), mask, boxes


def random_object(rng, size, colour, low, high):
    """One object of radius `low`..`high` (fractions of the side), wholly inside the frame."""
    radius = size * rng.uniform(low, high)
    return {
        "colour": colour,
        "shape": str(rng.choice(list(SHAPES))),
        "radius": radius,
        "cx": rng.uniform(radius, size - radius),
        "cy": rng.uniform(radius, size - radius),
        "angle": rng.uniform(-0.5, 0.5),
        "texture": rng.choice([0, 0, 0.15, 0.3]),
        "rgb": np.clip(
            np.asarray(COLOURS[colour]) * rng.uniform(0.85, 1.1) + rng.uniform(-12, 12, 3), 0, 255
        ),
    }


def place_word(box, size):
    """Where the centre of a box lies on a 3 x 3 grid, in words."""
    cx, cy = (box[0] + box[2]) / 2 / size, (box[1] + box[3]) / 2 / size
    words = [("left", "", "right")[min(int(cx * 3), 2)], ("top", "", "bottom")[min(int(cy * 3), 2)]]
    return " ".join(w for w in reversed(words) if w) or "middle"


def words_for(objects, boxes, size):
    """A caption that names (sorted by colour, so its order says nothing of place) and question/answer turns."""
    names = [f"{o['colour']} {o['shape']}" for o in objects]
    text = "a " + " and a ".join(sorted(names))
    turns = [["What is in the picture?", text]]
    for o, name, box in zip(objects, names, boxes, strict=True):
        turns += [
            [f"What shape is the {o['colour']} object?", o["shape"]],
            [f"Where is the {name}?", place_word(box, size)],
        ]
    return text, turns


def scene(rng, size, canvas):
    """One subject (radius 0.17-0.27 of the side) and up to three distractors (0.10-0.15); each keeps half of itself visible."""
    while True:
        colours = rng.permutation(list(COLOURS))[: rng.integers(1, 5)]
        objects = [
            random_object(rng, size, str(c), *((0.10, 0.15) if i else (0.17, 0.27)))
            for i, c in enumerate(colours)
        ]
        image, mask, boxes = draw(objects, canvas)
        alone = [draw([o], canvas)[1].sum() for o in objects] if len(objects) > 1 else [mask.sum()]
        visible = [(mask == i + 1).sum() / alone[i] for i in range(len(objects))]
        if min(visible) > 0.5:
            return objects, image, mask, boxes, visible


def still_item(rng, name, source, size, canvas):
    objects, image, mask, boxes, visible = scene(rng, size, canvas)
    text, turns = words_for(objects, boxes, size)
    return {
        "id": name,
        "source": source,
        "width": size,
        "height": size,
        "frames": torch.from_numpy(image)[None],
        "boxes": torch.from_numpy(boxes),
        "labels": [o["shape"] for o in objects],
        "names": [f"{o['colour']} {o['shape']}" for o in objects],
        "mask": torch.from_numpy(mask),
        "visible": [float(v) for v in visible],
        "text": text,
        "turns": turns,
    }


# ---------------------------------------------------------------- sources


def shapes(n, size, seed):
    """Images of 1-4 coloured shapes with overlaps on varied backgrounds; every image is its own source."""
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        yield still_item(rng, f"shapes-{seed}-{i:05d}", f"shapes-{seed}-{i:05d}", size, background(rng, size))


def moving(n, size, seed, frames=17):
    """Clips of one moving shape: 8 directions, speeds, every tenth pair still, a third under camera motion.

    Every scene comes twice, with its mirror image or its reverse, under one source. The position halfway is drawn
    without regard to the direction, so that a single frame says little about it.
    """
    for i in range(n):
        scene_number, twin = divmod(i, 2)
        rng = np.random.default_rng([seed, scene_number])
        colours = rng.permutation(list(COLOURS))
        subject = random_object(rng, size, str(colours[0]), 0.12, 0.18)
        others = [random_object(rng, size, str(c), 0.06, 0.09) for c in colours[1 : rng.integers(1, 3)]]
        direction = str(rng.choice(list(DIRECTIONS))) if scene_number % 10 else "still"
        step = np.array(DIRECTIONS.get(direction, (0, 0)), float)
        speed = rng.uniform(0.6, 1.4) * size / 64 if direction != "still" else 0.0
        velocity = step / max(np.linalg.norm(step), 1) * speed
        middle = rng.uniform(0.3, 0.7, 2) * size
        camera = rng.integers(-1, 2, 2) if scene_number % 3 == 0 else np.zeros(2, int)
        wide = background(rng, size + 2 * frames)
        clip, masks, boxes = [], [], []
        for t in range(frames):
            at = middle + velocity * (t - (frames - 1) / 2)
            top, left = (frames - c * (t - frames // 2) for c in (camera[1], camera[0]))
            drawn = draw(
                [*others, subject | {"cx": at[0], "cy": at[1]}], wide[top : top + size, left : left + size]
            )
            for store, x in zip((clip, masks, boxes), drawn, strict=True):
                store.append(x)
        clip, masks, boxes = np.stack(clip), np.stack(masks), np.stack(boxes)
        kind = "original"
        if twin and scene_number % 2:  # mirrored
            clip = clip[:, :, ::-1]
            masks = masks[:, :, ::-1]
            kind = "mirrored"
            step = step * (-1, 1)
            camera = camera * (-1, 1)
            boxes = np.stack(
                [size - boxes[..., 2], boxes[..., 1], size - boxes[..., 0], boxes[..., 3]], -1
            ) * (boxes.any(-1, keepdims=True))
        elif twin:
            clip = clip[::-1]
            masks = masks[::-1]
            boxes = boxes[::-1]
            kind = "reversed"
            step = -step
            camera = -camera
        direction = next((d for d, v in DIRECTIONS.items() if tuple(step) == v), "still")
        names = [f"{o['colour']} {o['shape']}" for o in [*others, subject]]
        yield {
            "id": f"moving-{seed}-{i:05d}",
            "source": f"moving-{seed}-{scene_number:05d}",
            "width": size,
            "height": size,
            "frames": torch.from_numpy(clip.copy()),
            "mask": torch.from_numpy(masks.copy()),
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": [o["shape"] for o in [*others, subject]],
            "names": names,
            "kind": kind,
            "direction": direction,
            "action": direction,
            "speed": float(speed),
            "camera": [int(c) for c in camera],
            "text": f"a {names[-1]}",
            "turns": [[f"Which way does the {names[-1]} move?", direction]],
        }


def freeze(clips, frame):
    """The same clips, answers and all, showing their `first` or `middle` frame throughout: what is still read from them is not motion."""
    for clip in clips:
        length = len(clip["frames"])
        yield clip | {
            k: clip[k][[0 if frame == "first" else length // 2] * length]
            for k in ("frames", "mask", "boxes")
            if k in clip
        }


def waiting(clips, still, seed):
    """The same clips, standing still for `still` frames in all, before they move and after it as `seed` has it: which frames are shown matters.

    Noise of two grey levels (standard deviation), as of a camera: no two frames are the same, whether something moves or not.
    """
    for clip in clips:
        rng, length = np.random.default_rng([seed, zlib.crc32(clip["id"].encode())]), len(clip["frames"])
        before = int(rng.integers(still + 1))
        longer = {
            k: clip[k][[0] * before + list(range(length)) + [length - 1] * (still - before)]
            for k in ("frames", "mask", "boxes")
            if k in clip
        }
        noisy = longer["frames"] + 2 * torch.from_numpy(
            rng.standard_normal(longer["frames"].shape, np.float32)
        )
        yield clip | longer | {"frames": noisy.round().clamp(0, 255).byte()}


def cut(clips, first, frames, evenly=False):
    """`frames` frames of every clip from number `first` on, or evenly spread over all of it, with the truth about them: whoever is given these has not seen the others."""
    if evenly:
        shown = [choose_frames(c["frames"], frames, "uniform") for c in clips]
        return (
            c
            | {
                k: c[k][at].clone()
                for k in ("frames", "mask", "boxes")
                if k in c and len(c[k]) == len(c["frames"])
            }
            | {"fps": c.get("fps", RATE) * frames / len(c["frames"])}
            for c, at in zip(clips, shown, strict=True)
        )
    if short := [c for c in clips if len(c.get("frames", ())) < first + frames]:
        refuse(
            f"{short[0]['id']} has {len(short[0].get('frames', ()))} frames, and frames {first} to {first + frames - 1} are wanted; give smaller --first or --frames"
        )
    return (
        c
        | {
            k: c[k][first : first + frames].clone()
            for k in ("frames", "mask", "boxes")
            if k in c and len(c[k]) == len(c["frames"])
        }
        for c in clips
    )


# ---------------------------------------------------------------- trajectories: who stays and who comes and goes

# what is drawn for an object; who blinks appears or vanishes in mid-picture
STAYS = ("stays", "hidden", "hidden", "crosses")
GOES = ("enters", "leaves", "passes", "blinks")
# pixels a frame at 48 px
SPEEDS = {
    "stays": (0.25, 1.2),
    "hidden": (0.4, 1.5),
    "crosses": (0.3, 1.2),
    "enters": (0.8, 2),
    "leaves": (0.8, 2),
    "passes": (1.6, 4),
    "blinks": (0.3, 1.5),
}
CHANGES = ("reversed", "deleted", "swapped")
OPPOSITE = {
    d: next(o for o, w in DIRECTIONS.items() if w == (-v[0], -v[1])) for d, v in DIRECTIONS.items()
} | {"still": "still"}
QUESTIONS = {  # by kind; of `whatif` there are two, with an answer each
    "persistence": ("Is the {} {}?", "Would you call the {} {}?", "What is the {}, {}?"),
    "frames": (
        "In which frames does the {} appear?",
        "In which frames can the {} be seen?",
        "When is the {} to be seen?",
    ),
    "direction": (
        "Which way does the {} move?",
        "Where is the {} heading?",
        "In which direction does the {} go?",
    ),
    "hidden": ("In which frames is the {} hidden?", "When is the {} hidden behind something?"),
    "backwards": (
        "If the clip were played backwards, which way would the {} move?",
        "Which way would the {} move in the reversed clip?",
    ),
    "uncovered": (
        "If nothing stood in front of it, in which frames would the {} appear?",
        "In which frames would the {} be seen if nothing hid it?",
    ),
    "count": (
        "How many coloured objects are there?",
        "How many coloured objects does the clip show?",
        "Count the coloured objects.",
    ),
    "unknown": ("What sound does the {} make?", "Who moves the {}?", "How heavy is the {}?"),
}
UNKNOWN = "the clip does not show that"


def position(equation, t):
    """Where an object is at frames t [T], float64 [T,2] in pixels: p0 + v t + a t^2 / 2, or with a turn of w radians a frame an arc run through at the speed |v|."""
    t, v, w = np.asarray(t, float)[:, None], np.asarray(equation["velocity"]), equation["turn"]
    if not w:
        return equation["position"] + v * t + np.asarray(equation["acceleration"]) * t**2 / 2
    return equation["position"] + (v * np.sin(w * t) + v[::-1] * (-1, 1) * (1 - np.cos(w * t))) / w


def played_backwards(equation, frames):
    """The equation of the same way back: position(played_backwards(e), t) = position(e, frames - 1 - t)."""
    end, w = frames - 1, equation["turn"]
    v, a = np.asarray(equation["velocity"]), np.asarray(equation["acceleration"])
    last = v * np.cos(w * end) + v[::-1] * (-1, 1) * np.sin(w * end) if w else v + a * end
    return equation | {
        "position": position(equation, [end])[0].tolist(),
        "velocity": (-last).tolist(),
        "turn": -w,
        "exists": [end - x for x in equation["exists"][::-1]],
    }


def spans(there):
    """[first, last] of each run of true values, both ends included."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(there, int), [0]])))
    return [[int(a), int(b) - 1] for a, b in edges.reshape(-1, 2)]


def spans_words(found):
    """[[0, 9], [14, 31]] -> "frames 0 to 9 and 14 to 31"; [[7, 7]] -> "frame 7"."""
    words = [f"{a} to {b}" if b > a else f"{a}" for a, b in found]
    return ("frame " if len(found) == 1 and found[0][0] == found[0][1] else "frames ") + " and ".join(words)


def nearest_direction(displacement, least):
    """Which of DIRECTIONS is nearest, or "still" below `least` pixels."""
    if np.hypot(*displacement) < least:
        return "still"
    return max(DIRECTIONS, key=lambda d: np.dot(displacement, DIRECTIONS[d]) / np.hypot(*DIRECTIONS[d]))


def trajectory(rng, case, direction, radius, size, frames, block, other):
    """An equation for an object of that case that moves that way: None where what was drawn does something else, or does it unclearly.

    block: (x0, y0, x1, y1), behind which who is `hidden` goes; other: the equation of whom who `crosses` meets.
    """
    end, scale = frames - 1, size / 48
    exists, still = [0, end], direction == "still"
    if case == "blinks":
        exists = (
            [int(rng.integers(3, frames - 5)), end]
            if rng.random() < 0.5
            else [0, int(rng.integers(5, frames - 3))]
        )
    speed = 0.0 if still else scale * rng.uniform(*SPEEDS[case])
    heading = 0.0 if still else np.arctan2(*DIRECTIONS[direction][::-1]) + np.radians(rng.uniform(-20, 20))
    v, bend = speed * np.array([np.cos(heading), np.sin(heading)]), rng.random()
    a = v * (rng.uniform(-1.5, 1.5) / frames if bend < 0.25 else 0)
    w = rng.uniform(0.5, 2.5) * rng.choice([-1, 1]) / frames if bend > 0.75 and not still else 0.0
    t0 = {"enters": rng.integers(3, frames - 5), "leaves": rng.integers(5, frames - 3)}.get(
        case, rng.uniform(*exists)
    )
    anchor = rng.uniform(0, size, 2)
    if case == "hidden":
        anchor = rng.uniform(block[:2], block[2:])
    elif case == "crosses":
        anchor = position(other, [t0])[0] + rng.uniform(-2, 2, 2) * scale
    elif case in ("enters", "leaves"):  # on an edge
        anchor[rng.integers(2)] = size * rng.integers(2)
    # seen from t0, the way to frame 0
    back = {
        "position": [0.0, 0.0],
        "velocity": (-v).tolist(),
        "acceleration": a.tolist(),
        "turn": -w,
        "exists": exists,
    }
    start = played_backwards(back | {"exists": [0, 0]}, t0 + 1)
    equation = {
        "position": (anchor + position(back, [t0])[0]).tolist(),
        "velocity": start["velocity"],
        "acceleration": a.tolist(),
        "turn": float(w),
        "radius": float(radius),
        "exists": exists,
    }
    at = position(equation, np.arange(frames))
    # of the centre, behind the nearest edge; 0: half of it is inside
    depth = np.minimum(at, size - at).min(1) / radius
    there = depth >= 0
    there[: exists[0]], there[exists[1] + 1 :] = False, False
    if len(spans(there)) != 1:
        return None
    first, last = spans(there)[0]
    # is it clearly outside at the beginning, at the end?
    wanted = {"enters": (True, False), "leaves": (False, True), "passes": (True, True)}.get(
        case, (False, False)
    )
    clear = (
        all(
            depth[k] <= -0.4 if out else depth[k] >= 0.5
            for k, out in zip((exists[0], exists[1]), wanted, strict=True)
        )
        and depth[first : last + 1].max() >= 0.5
    )
    clear &= any(wanted) or depth[exists[0] : exists[1] + 1].min() >= 0.5
    clear &= (not wanted[0] or first >= 3) and (not wanted[1] or end - last >= 3) and last - first >= 4
    gone = at[last] - at[first]
    return (
        equation
        if clear and nearest_direction(gone, 4 * scale if not still else 2 * scale) == direction
        else None
    )


def planned(rng, cases, directions, size, frames):
    """A scene in which an object of each case moves in its direction: what stands and moves in it, and how. None where it was drawn in vain."""
    colours, n, block = rng.permutation(list(COLOURS)), len(cases), None
    if "hidden" in cases or rng.random() < 0.4:
        width, height = size * rng.uniform(0.24, 0.42), size * rng.uniform(0.45, 0.95)
        x, y = rng.uniform(0.05 * size, 0.95 * size - width), rng.uniform(0, size - height)
        block = (x, y, x + width, y + height)
    objects = []
    for case, direction, colour in zip(cases, directions, colours, strict=False):
        thing = random_object(rng, size, str(colour), 0.085, 0.13)
        for _ in range(300):
            other = objects[rng.integers(len(objects))]["equation"] if objects else None
            if equation := trajectory(rng, case, direction, thing["radius"], size, frames, block, other):
                objects.append(
                    {k: thing[k] for k in ("colour", "shape", "angle", "rgb")} | {"equation": equation}
                )
                break
        else:
            return None
    order = rng.permutation(n)
    grey = []
    for _ in range(rng.integers(3)):
        thing = random_object(rng, size, "red", 0.05, 0.1)
        velocity = rng.uniform(-1, 1, 2) * size / 48 * rng.integers(2)
        grey.append(
            {
                "shape": thing["shape"],
                "angle": thing["angle"],
                "rgb": np.full(3, rng.uniform(40, 220)),
                "equation": {
                    "position": [thing["cx"], thing["cy"]],
                    "velocity": velocity.tolist(),
                    "acceleration": [0.0, 0.0],
                    "turn": 0.0,
                    "radius": float(thing["radius"]),
                    "exists": [0, frames - 1],
                },
            }
        )
    canvas = background(rng, size)
    shade = rng.choice([-1, 1]) * rng.uniform(35, 60) + canvas.mean()
    return {
        "objects": [objects[k] for k in order],
        "cases": [cases[k] for k in order],
        "depth": rng.permutation(n).tolist(),
        "grey": grey,
        "block": block,
        "shade": shade,
        "canvas": canvas,
        "noise": rng.normal(0, rng.uniform(1, 6), (frames, size, size, 1)).astype(np.float32),
        "frames": frames,
    }


def filmed(scene, backwards=False, painted=True):
    """What is seen of a scene, uint8 [T,S,S,3], the mask uint8 [T,S,S], and for each object two float arrays [n,T]: how much of its area is inside the picture, how much of that is seen.

    Only the window that an object covers is drawn; not painted, the picture is left out.
    """
    canvas, frames, objects = scene["canvas"], scene["frames"], scene["objects"]
    t, size = np.arange(frames)[:: -1 if backwards else 1], len(canvas)
    image, mask = np.repeat(canvas[None], frames, 0), np.zeros((frames, size, size), np.uint8)
    alone, inside = np.zeros((len(objects), frames)), np.zeros((len(objects), frames))
    for number, o in [
        *((0, o) for o in scene["grey"] if painted),
        *((k + 1, objects[k]) for k in scene["depth"]),
    ]:
        e, at = o["equation"], position(o["equation"], t)
        side = min(size, int(2 * e["radius"]) + 4)
        corner = np.clip(np.floor(at - e["radius"] - 1), 0, size - side).astype(int)
        (x, y), steps = (at - corner).T[:, :, None, None], np.arange(side)
        alpha = (
            coverage(o["shape"], side, x.astype(np.float32), y.astype(np.float32), e["radius"], o["angle"])
            * ((t >= e["exists"][0]) & (t <= e["exists"][1]))[:, None, None]
        )
        window = (
            np.arange(frames)[:, None, None],
            corner[:, 1, None, None] + steps[:, None],
            corner[:, 0, None, None] + steps,
        )
        if painted:
            image[window] += alpha[..., None] * (np.asarray(o["rgb"], np.float32) - image[window])
        mask[window] = np.where(alpha >= 0.5, number, mask[window])
        if number:
            middle = side / 2
            alone[number - 1], inside[number - 1] = (
                (alpha >= 0.5).sum((1, 2)),
                alpha.sum((1, 2)) / coverage(o["shape"], side, middle, middle, e["radius"], o["angle"]).sum(),
            )
    if scene["block"]:
        x0, y0, x1, y1 = (round(x) for x in scene["block"])
        image[:, y0:y1, x0:x1], mask[:, y0:y1, x0:x1] = scene["shade"], 0
    image = (
        (image + scene["noise"][:: -1 if backwards else 1]).round().clip(0, 255).astype(np.uint8)
        if painted
        else None
    )
    seen = np.stack([(mask == k + 1).sum((1, 2)) for k in range(len(objects))]) if objects else alone
    return image, mask, inside, seen / np.maximum(alone, 1)


def tracked(scene, backwards, mask, inside, seen):
    """The truth about each object of a scene, a dict each (see the top of this file under `tracks`)."""
    frames, found, size = scene["frames"], [], mask.shape[1]
    names = [f"{o['colour']} {o['shape']}" for o in scene["objects"]]
    equations = [
        played_backwards(o["equation"], frames) if backwards else o["equation"] for o in scene["objects"]
    ]
    ways = (
        np.stack([position(e, np.arange(frames)) for e in equations])
        if equations
        else np.zeros((0, frames, 2))
    )
    present = inside >= 0.5
    for k, (name, e) in enumerate(zip(names, equations, strict=True)):
        there = spans(present[k]) or [[0, 0]]
        first, last, visible = there[0][0], there[-1][1], present[k] & (seen[k] >= 0.25)
        comes, goes = first > 0, last < frames - 1
        sudden = e["exists"] != [0, frames - 1]
        why = (
            ("appears" if comes else "vanishes")
            if sudden
            else "passes"
            if comes and goes
            else "enters"
            if comes
            else "leaves"
            if goes
            else "stays"
        )
        way = ways[k, first : last + 1]
        speed = float(np.hypot(*np.diff(way, axis=0).T).mean()) if len(way) > 1 else 0.0
        near = [
            np.hypot(*(ways[k] - ways[j]).T)[present[k] & present[j]].min(initial=np.inf)
            < max(e["radius"], equations[j]["radius"])
            for j in range(len(names))
        ]
        found.append(
            {
                "object": name,
                "persistent": bool(present[k].all()),
                "why": why,
                "present": spans(present[k]),
                "visible": spans(visible),
                "hidden": spans(present[k] & ~visible),
                "direction": nearest_direction(way[-1] - way[0], 2 * size / 48),
                "speed": speed,
                "curvature": float(e["turn"] / np.hypot(*e["velocity"])) if e["turn"] else 0.0,
                "crosses": [names[j] for j in range(len(names)) if j != k and near[j]],
                "equation": e,
            }
        )
    return found


def told(track):
    """The templated sentences about one object."""
    first, last = track["present"][0][0], track["present"][-1][1]
    way = {
        "stays": f"is there in frames {first} to {last}",
        "enters": f"enters in frame {first}",
        "leaves": f"leaves in frame {last}",
        "passes": f"enters in frame {first} and leaves in frame {last}",
        "appears": f"appears in frame {first}",
        "vanishes": f"vanishes in frame {last}",
    }[track["why"]]
    return (
        f"The {track['object']} is {'persistent' if track['persistent'] else 'transient'}: it {way}. It {'is still' if track['direction'] == 'still' else 'moves ' + track['direction']}. "
        f"It is {'hidden in ' + spans_words(track['hidden']) if track['hidden'] else 'never hidden'}."
    )


def asked_of(rng, kind, name):
    """One of the paraphrases of a question."""
    question = QUESTIONS[kind][0 if rng.random() < 0.5 else rng.integers(1, len(QUESTIONS[kind]))]
    return question.format(
        *(name, str(rng.choice(["persistent or transient", "transient or persistent"])))[
            : question.count("{}")
        ]
    )


def questions_of(tracks, numbers, absent, seed):
    """(turns, asked) about a clip. numbers: of the objects in the scene as it was drawn, by which the same words are found for them in its changed clips."""
    turns, asked = [], []
    for track, number in zip(tracks, numbers, strict=True):
        rng = np.random.default_rng([*seed, 3 + number])
        answers = {
            "persistence": "persistent" if track["persistent"] else "transient",
            "frames": spans_words(track["visible"]),
            "direction": track["direction"],
            "hidden": spans_words(track["hidden"]) if track["hidden"] else "it is never hidden",
            "backwards": OPPOSITE[track["direction"]],
            "uncovered": spans_words(track["present"]),
            "unknown": UNKNOWN,
        }
        turns += [[asked_of(rng, kind, track["object"]), answer] for kind, answer in answers.items()]
        asked += [
            [{"backwards": "whatif", "uncovered": "whatif"}.get(kind, kind), track["object"]]
            for kind in answers
        ]
    rng = np.random.default_rng([*seed, 2])
    turns += [
        [asked_of(rng, str(kind), absent), f"there is no {absent}"]
        for kind in rng.permutation(
            ["persistence", "frames", "direction", "hidden", "backwards", "uncovered"]
        )[:2]
    ]
    turns.append([asked_of(rng, "count", ""), str(len(tracks))])
    return turns, [*asked, ["absent", absent], ["absent", absent], ["count", ""]]


def absent_name(rng, names):
    """The name of an object that is not there; half of the time its colour or its shape is."""
    others = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
    alike = [o for o in others if set(o.split()) & {w for n in names for w in n.split()}]
    return str(rng.choice(alike if rng.random() < 0.5 else others))


def trajectories(n, size, seed, frames=32, change=None, only=None):
    """Clips of one to three coloured objects, half of them persistent (in the picture, seen or hidden, in every frame), half transient; every scene is its own source.

    change: the same scenes played backwards, without their first object, or with the first two objects' colours and shapes exchanged. only: the split to keep.
    """
    for i in range(n):
        name = f"trajectories-{seed}-{i:05d}"
        if only and split_of(name) != only:
            continue
        rng = np.random.default_rng([seed, i])
        cases = sorted(
            (str(rng.choice(STAYS if rng.random() < 0.5 else GOES)) for _ in range(rng.integers(1, 4))),
            key=lambda c: c == "crosses",
        )
        cases[0] = "stays" if cases[0] == "crosses" else cases[0]  # there is nobody yet to cross
        directions = [
            "still"
            if case in ("stays", "blinks") and rng.random() < 0.15
            else str(rng.choice(list(DIRECTIONS)))
            for case in cases
        ]
        while not (scene := planned(rng, cases, directions, size, frames)) or not as_planned(scene):
            pass  # cases and directions stay: those that are harder to draw would become rare
        names = [f"{o['colour']} {o['shape']}" for o in scene["objects"]]
        absent = absent_name(np.random.default_rng([seed, i, 1]), names)
        numbers = list(range(len(names)))
        more = {}
        if change == "swapped":
            if len(names) < 2:
                continue
            a, b = scene["objects"][:2]
            scene["objects"][:2] = b | {"equation": a["equation"]}, a | {"equation": b["equation"]}
        elif change == "deleted":
            more["removed"] = names[0]
            scene["objects"], scene["depth"], numbers = (
                scene["objects"][1:],
                [k - 1 for k in scene["depth"] if k],
                numbers[1:],
            )
        image, mask, inside, seen = filmed(scene, change == "reversed")
        tracks = tracked(scene, change == "reversed", mask, inside, seen)
        turns, asked = questions_of(tracks, numbers, absent, (seed, i))
        count = len(tracks)
        yield {
            "id": name,
            "source": name,
            "width": size,
            "height": size,
            "frames": torch.from_numpy(image),
            "mask": torch.from_numpy(mask),
            "boxes": boxes_of(mask, count),
            "labels": [o["shape"] for o in scene["objects"]],
            "names": [t["object"] for t in tracks],
            "count": count,
            "absent": absent,
            "tracks": tracks,
            **more,
            "text": " ".join(
                [
                    *map(told, tracks),
                    "There is 1 coloured object." if count == 1 else f"There are {count} coloured objects.",
                ]
            ),
            "turns": turns,
            "asked": asked,
        }


def as_planned(scene):
    """Does the film show what was drawn: who hides or crosses does so, all are seen for a while, and whoever comes or goes is seen doing it, clearly?"""
    _, mask, inside, seen = filmed(scene, painted=False)
    if ((seen > 0.15) & (seen < 0.4) & (inside >= 0.5)).sum(1).max() > 4:  # neither seen nor hidden for long
        return False
    for case, track in zip(scene["cases"], tracked(scene, False, mask, inside, seen), strict=True):
        visible = {t for a, b in track["visible"] for t in range(a, b + 1)}
        ends = (
            {t for t in (track["present"][0][0], track["present"][-1][1]) if 0 < t < len(mask) - 1}
            if track["present"]
            else set()
        )
        if (
            len(track["present"]) != 1
            or len(track["visible"]) > 3
            or len(visible) < 5
            or not ends <= visible
            or track["persistent"] != (case in STAYS)
            or case == "hidden"
            and sum(b - a + 1 for a, b in track["hidden"]) < 3
            or case == "crosses"
            and not track["crosses"]
            or case not in ("hidden", "crosses", "blinks")
            and track["why"] != case
        ):
            return False
    return True


def boxes_of(mask, n):
    """Extents of the numbers 1 ... n in masks uint8 [T,S,S], float32 [T,n,4]; zeros where there are none."""
    found = torch.zeros(len(mask), n, 4)
    for k in range(n):
        here = mask == k + 1
        for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):  # columns give x, rows y
            line = here.any(axis)
            found[:, k, low] = torch.from_numpy(line.argmax(1).astype(np.float32))
            found[:, k, high] = torch.from_numpy(
                np.where(line.any(1), mask.shape[1] - line[:, ::-1].argmax(1), 0).astype(np.float32)
            )
    return found


# ---------------------------------------------------------------- pictures with boxes


def read_voc(root, annotations):
    """Pascal VOC: one XML per image. Yields (file name, boxes, labels) or (file, problem)."""
    for path in sorted(annotations.glob("*.xml")):
        try:
            tree = ET.parse(path).getroot()
            found = [
                (
                    o.findtext("name"),
                    [float(o.find("bndbox").findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax")],
                )
                for o in tree.iter("object")
            ]
            yield tree.findtext("filename") or path.stem, [b for _, b in found], [n for n, _ in found]
        except (ET.ParseError, AttributeError, TypeError, ValueError) as e:
            yield path.name, f"not a readable VOC annotation ({e})"


def read_csv(root, annotations):
    """CSV with the columns filename, class, xmin, ymin, xmax, ymax; one row a box."""
    if annotations.is_dir():
        refuse(f"{annotations} is a folder; give the CSV file with --annotations")
    with open(annotations, newline="") as f:
        rows = csv.DictReader(f)
        missing = {"filename", "class", "xmin", "ymin", "xmax", "ymax"} - set(rows.fieldnames or ())
        if missing:
            refuse(
                f"{annotations} lacks the columns {', '.join(sorted(missing))}; its header says {rows.fieldnames}"
            )
        files, broken = {}, {}
        for line, row in enumerate(rows, 2):
            boxes, labels = files.setdefault(row["filename"], ([], []))
            try:
                boxes.append([float(row[k]) for k in ("xmin", "ymin", "xmax", "ymax")])
                labels.append(row["class"])
            except (TypeError, ValueError):
                broken[row["filename"]] = (
                    f"line {line} of {annotations.name} has a coordinate that is no number"
                )
    for name, truth in files.items():
        yield (name, broken[name]) if name in broken else (name, *truth)


def read_coco(root, annotations):
    """COCO instances: xywh boxes; crowds are left out, as in the usual training recipes."""
    try:
        content = json.loads(annotations.read_text())
        classes = {c["id"]: c["name"] for c in content["categories"]}
        images = {i["id"]: (i["file_name"], [], []) for i in content["images"]}
        found = [
            (a.get("id"), a["image_id"], a["category_id"], [float(v) for v in a["bbox"]])
            for a in content["annotations"]
            if not a.get("iscrowd")
        ]
    except (OSError, ValueError, KeyError, TypeError) as e:
        refuse(
            f"{annotations} is not a COCO instances file ({type(e).__name__}: {e}); it needs images, categories and annotations with bbox"
        )
    for name, image, category, (x, y, w, h) in found:
        if image not in images:
            yield f"annotation {name}", f"names image {image}, which the file does not list"
        else:
            images[image][1].append([x, y, x + w, y + h])
            images[image][2].append(classes.get(category, f"category {category}"))
    yield from images.values()


SET_FORMATS = ("llava", "qwen", "clip", "webdataset", "imagefolder")
FORMATS = {
    "voc": (read_voc, "annotations"),
    "csv": (read_csv, "labels.csv"),
    "coco": (read_coco, "annotations.json"),
}


def boxes(root, form, annotations, classes, max_items, skip_bad):
    """A folder of images with boxes. Every problem is listed; with `skip_bad` the good items go on and the count is kept."""
    from PIL import Image

    read, default = FORMATS[form]
    root, annotations = Path(root), Path(annotations or Path(root) / default)
    if not root.is_dir():
        refuse(f"--root {root} is not a folder; give the folder that holds the images")
    if not annotations.exists():
        refuse(f"{annotations} does not exist; give the {form} annotations with --annotations")
    if form == "voc" and not annotations.is_dir():
        refuse(
            f"{annotations} is not a folder; VOC annotations are one XML file a picture, give their folder with --annotations"
        )
    files = {}
    items = []
    problems = []
    seen = set()
    first = {}
    for path in sorted(
        p for p in root.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    ):
        if path.name in files:
            problems.append(
                (
                    path.name,
                    f"is in {files[path.name].parent} and again in {path.parent}: annotations go by the file's name",
                )
            )
        files.setdefault(path.name, path)
    for name, *truth in tqdm(list(read(root, annotations)), desc="reading", unit="file"):
        key, problem = Path(str(name)).name, None
        if len(truth) == 1:
            problems.append((name, truth[0]))
            continue
        found, labels = truth
        path = files.get(key) or files.get(f"{key}.jpg") or files.get(f"{key}.png")
        if path is None:
            problem = f"no such image under {root}"
        elif key in seen:
            problem = "annotated twice (duplicate id)"
        elif not found:
            problem = "has no box"
        elif classes and set(labels) - set(classes):
            problem = f"unknown class {sorted(set(labels) - set(classes))[0]!r}; known: {', '.join(classes)}"
        elif not classes and any(label.startswith("category ") for label in labels):
            problem = f"unknown class {next(x for x in labels if x.startswith('category '))!r}; the file's categories do not list it"
        else:
            try:
                encoded = path.read_bytes()
                with Image.open(io.BytesIO(encoded)) as picture:
                    picture.load()
                    width, height = picture.size
            except OSError as e:
                problem = f"broken image ({e})"
        seen.add(key)
        if problem is None:
            bad = [b for b in found if not (0 <= b[0] < b[2] <= width and 0 <= b[1] < b[3] <= height)]
            if bad:
                problem = f"box {bad[0]} (xyxy) does not lie inside the image of {width}x{height}"
        if problem:
            problems.append((name, problem))
            continue
        # a photograph under two names is one source, or a split would tear it apart
        source = first.setdefault(hashlib.sha256(encoded).digest(), key)
        items.append(
            {
                "id": key,
                "source": source,
                "width": width,
                "height": height,
                "encoded": torch.frombuffer(bytearray(encoded), dtype=torch.uint8),
                "boxes": torch.tensor(found, dtype=torch.float32),
                "labels": list(labels),
            }
        )
        if max_items and len(items) == max_items:
            break
    for name, problem in problems:
        print(f"{name}: {problem}", file=sys.stderr)
    if problems and not skip_bad:
        refuse(
            f"{len(problems)} problems in {annotations}, listed above; mend them or go on without these items with --skip-bad"
        )
    if not items:
        refuse(f"{annotations} leaves no usable item; check --root and --format")
    return items, len(problems)


# ---------------------------------------------------------------- real clips


class Unusable(Exception):
    """Why a clip cannot be used: (kind, reason)."""


def header(path, fps):
    """What a video says of itself: (frames, or frames of `fps` a second; seconds; frames a second), 0 for the first two where it does not say."""
    import av

    with av.open(path) as file:
        if not file.streams.video:
            raise Unusable("empty", "holds no video")
        stream = file.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise Unusable("broken", "states no frame rate")
        if fps and fps > 1.01 * rate:
            raise Unusable(
                "slow", f"has {float(rate):g} frames a second, and {fps:g} are wanted: some would stand twice"
            )
        seconds = float(
            stream.duration * stream.time_base if stream.duration else (file.duration or 0) / av.time_base
        )
        return (
            (not fps and stream.frames)
            or (int((fps or rate) * (seconds - 0.5 / rate)) + 1 if seconds else 0),
            seconds,
            rate,
        )


def shown(path, fps, rate):
    """The frames of a video one after the other as (seconds since the first, PyAV frame): all, or of each 1 / fps of a second the nearest."""
    import av

    with av.open(path) as file:
        tick, start = 0, None
        for number, frame in enumerate(file.decode(video=0)):
            if frame.is_corrupt:
                raise Unusable("broken", f"frame {number} is damaged")
            # AVI holds no times: what is made up for H.264 is out of order
            seconds = number / rate if frame.time is None or file.format.name == "avi" else frame.time
            start = seconds if start is None else start
            if not fps or seconds - start >= tick / fps - 0.5 / rate:
                tick += 1
                yield seconds - start, frame


def middle_frames(path, frames, fps, size):
    """The middle `frames` frames of a video, uint8 [T,size,size,3], and by how many degrees they were turned to the right to stand upright.

    Decoding stops after the last of them and no other is kept. Where the middle is, the header says; where it does not, or says too much, the video is decoded twice.
    """
    import av

    def middle(length):
        first, kept, turned = (length - frames) // 2, [], 0
        for _, frame in itertools.islice(shown(path, fps, rate), first, first + frames):
            turned = round(-frame.rotation / 90) % 4  # FFmpeg counts to the left
            picture = np.rot90(frame.to_ndarray(format="rgb24"), -turned).copy()
            kept.append(frames_of({"frames": torch.from_numpy(picture)[None]}, size))
        return kept, 90 * turned

    if not path.stat().st_size:
        raise Unusable("empty", "has no bytes")
    try:
        length, seconds, rate = header(path, fps)
        kept, turned = middle(length) if length >= frames else ([], 0)
        if len(kept) < frames:
            length, end = 0, 0.0
            for time, _ in shown(path, fps, rate):
                length, end = length + 1, time + 1 / (fps or rate)
            if end < 0.9 * seconds:
                raise Unusable("broken", f"ends after {end:.2f} of {seconds:.2f} seconds")
            if length < frames:
                raise Unusable(
                    *(
                        "short",
                        f"has {length} frames{f' at {fps:g} a second' if fps else ''}, and {frames} are wanted",
                    )
                    if length
                    else ("empty", "holds no frame")
                )
            kept, turned = middle(length)
    except (av.FFmpegError, OSError, ValueError) as e:
        raise Unusable("broken", f"cannot be decoded ({getattr(e, 'strerror', None) or e})") from e
    return torch.cat(kept), turned


def pictures_in(folder):
    """The JPEG and PNG files of a folder by name, numbers as numbers: frame_10 comes after frame_9."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")),
        key=lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)],
    )


def middle_pictures(folder, frames, size):
    """The middle `frames` pictures of a folder, uint8 [T,size,size,3]; no other is opened."""
    files = pictures_in(folder)
    if len(files) < frames:
        raise Unusable(
            *("short", f"has {len(files)} frames, and {frames} are wanted")
            if files
            else ("empty", "holds no JPEG or PNG")
        )
    first = (len(files) - frames) // 2
    return pictures(files[first : first + frames], size)


def pictures(paths, size):
    """Pictures as a clip, uint8 [T,size,size,3]."""
    from PIL import Image

    kept = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                kept.append(
                    frames_of({"frames": torch.from_numpy(np.array(picture.convert("RGB")))[None]}, size)
                )
        except (OSError, SyntaxError, ValueError) as e:  # Pillow's word for a broken PNG is SyntaxError
            raise Unusable("broken", f"{path.name} cannot be decoded ({e})") from e
    return torch.cat(kept)


def content_hash(path):
    """SHA-256 of a file, or of the pictures of a folder in their order."""
    found = hashlib.sha256()
    for part in pictures_in(path) if path.is_dir() else [path]:
        with open(part, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.digest()


def read_labels(root, annotations):
    """Rows of a CSV with the columns filename, label and, if wanted, split (train, val, test or nothing), source, and repeat (the scene, where there is another take of it): one row a clip."""
    if not annotations.is_file():
        refuse(f"{annotations} is not a file; give the CSV of labels with --annotations")
    try:
        # Excel begins a file with a byte order mark
        table = csv.DictReader(io.StringIO(annotations.read_text(encoding="utf-8-sig")))
    except UnicodeDecodeError as e:
        refuse(f"{annotations} is not UTF-8 ({e.reason} at byte {e.start}); save it as such")
    if missing := {"filename", "label"} - set(table.fieldnames or ()):
        refuse(
            f"{annotations} lacks the columns {', '.join(sorted(missing))}; its header says {table.fieldnames}"
        )
    table = [
        {k: (row.get(k) or "").strip() for k in ("filename", "label", "split", "source", "repeat")}
        for row in table
    ]
    rows, said = [], {}
    for line, row in enumerate(table, 2):
        name = row["filename"] or f"line {line}"
        label = row["label"]
        part = row["split"]
        source = row["source"] or row["repeat"] or row["filename"]
        other = said.setdefault(source, part)
        problem = (
            ("missing", "names no file")
            if not row["filename"]
            else ("label", "has no label")
            if not label
            else ("split", f"says split {part!r}; known: train, val, test")
            if part not in ("", "train", "val", "test")
            else (
                "split",
                f"source {source!r} is in {part or 'no split'} here and in {other or 'no split'} elsewhere; a split must not tear it apart",
            )
            if part != other
            else None
        )
        rows.append(
            {
                "id": name,
                "path": root / name,
                "source": f"{part}:{source}" if part else source,
                "part": part,
                "problem": problem,
                "truth": {"action": label, "text": label.replace("_", " ")}
                | ({"repeat": row["repeat"]} if row["repeat"] else {}),
            }
        )
    return rows


def read_ssv2(root):
    """Rows of Something-Something v2 (Goyal et al. 2017) as published: its train list gives train and val (75/25 by a hash of the id), its validation list test.

    The answers of the published test list are withheld, so it is not read.
    """

    def published(name):
        found = [p for p in (root / name, root / "labels" / name) if p.is_file()]
        if not found:
            refuse(
                f"{name} is neither in {root} nor in {root}/labels; give the folder that holds the published files with --root"
            )
        try:
            return json.loads(found[0].read_text())
        except ValueError as e:
            refuse(f"{found[0]} is not JSON ({e}); fetch it again")

    videos, rows = root / "20bn-something-something-v2", []
    if not videos.is_dir():
        refuse(f"{videos} is not a folder; give the folder above the published videos with --root")
    classes = published("something-something-v2-labels.json")
    for part in ("train", "validation"):
        try:
            for entry in published(f"something-something-v2-{part}.json"):
                name, template = str(entry["id"]), entry["template"]
                action = template.replace("[", "").replace("]", "")
                split = (
                    "test"
                    if part == "validation"
                    else "train"
                    if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100 < 75
                    else "val"
                )
                rows.append(
                    {
                        "id": name,
                        "path": videos / f"{name}.webm",
                        "source": f"{split}:{name}",
                        "part": part,
                        "problem": None
                        if action in classes
                        else ("label", f"template {action!r} is not in something-something-v2-labels.json"),
                        "truth": {"action": action, "text": entry["label"], "template": template},
                    }
                )
        except (KeyError, TypeError, AttributeError) as e:
            refuse(
                f"something-something-v2-{part}.json is not a list of {{id, label, template}} ({type(e).__name__}: {e}); fetch it again"
            )
    return rows


def choose(rows, n, seed):
    """n rows in their order: as many of each part as its share of all, within a part as many of each action (one after the other, while it has any), by `seed`."""
    rng, taken, before = np.random.default_rng(seed), [], 0
    for part in sorted({r["part"] for r in rows}):
        members = [k for k in rng.permutation(len(rows)).tolist() if rows[k]["part"] == part]
        of_action = Counter()
        turn = {}
        for k in members:
            turn[k] = of_action[rows[k]["truth"]["action"]]
            of_action[rows[k]["truth"]["action"]] += 1
        share = round(n * (before + len(members)) / len(rows)) - round(n * before / len(rows))
        taken += sorted(members, key=turn.get)[:share]
        before += len(members)
    return [rows[k] for k in sorted(taken)]


def clips(rows, frames, fps, size, skip_bad, notes):
    """Items of rows, one decoded at a time. `notes` gets what there is to say, (id, kind, reason); once a clip is bad the rest is only checked, unless skip_bad."""
    seen, first, bad = set(), {}, False
    for row in tqdm(rows, desc="clips", unit="clip"):
        path = row["path"]
        try:
            if row["problem"] or row["id"] in seen:
                raise Unusable(*row["problem"] or ("duplicate", "is listed twice"))
            seen.add(row["id"])
            if not path.exists():
                raise Unusable("missing", f"no such clip ({path})")
            shot, turned = (
                (middle_pictures(path, frames, size), 0)
                if path.is_dir()
                else middle_frames(path, frames, fps, size)
            )
            # a clip under two names is one source, or a split would tear it apart
            twin = first.setdefault(content_hash(path), row)
            if twin["part"] != row["part"]:
                raise Unusable(
                    "split",
                    f"is the same clip as {twin['id']}, which is listed in {twin['part'] or 'no split'}, and this in {row['part'] or 'no split'}",
                )
        except Unusable as e:
            notes.append((row["id"], *e.args))
            bad = True
            continue
        if turned:
            notes.append(
                (row["id"], "rotated", f"is not stored upright, turned by {turned} degrees to the right")
            )
        if skip_bad or not bad:
            yield {
                "id": row["id"],
                "source": twin["source"],
                "width": size,
                "height": size,
                "frames": shot,
                **row["truth"],
            }


def write_whole(out, items, meta, verdict):
    """Write items one shard at a time, beside what `out` holds; that goes only when all is well. verdict(index) refuses, or gives what else index.yaml is to say."""
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_items(part, items, meta)
        index = load_yaml(part / "index.yaml")
        index |= verdict(index)
        for stale in (out / "index.yaml", *out.glob("*.pt")):
            stale.unlink(missing_ok=True)
        for file in (*part.glob("*.pt"), part / "ids.jsonl"):
            os.replace(file, out / file.name)
        save_yaml(out / "index.yaml", index)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def verdict_on(notes, n, skip_bad):
    """What write_whole asks about n clips, with `notes` on them, (id, kind, reason), once they are decoded."""

    def verdict(index):
        for name, _, reason in notes:
            print(f"{name}: {reason}", file=sys.stderr)
        kinds = Counter(kind for _, kind, _ in notes)
        rotated, skipped = kinds.pop("rotated", 0), kinds.total()
        if skipped and not skip_bad:
            refuse(
                f"{skipped} of {n} clips have problems, listed above; mend them or go on without these clips with --skip-bad"
            )
        if not index["items"]:
            refuse(f"none of {n} clips is usable; check --root, --frames and --fps")
        return {"skipped": skipped, "skipped_kinds": dict(sorted(kinds.items())), "rotated": rotated}

    return verdict


def write_clips(out, rows, frames, fps, size, skip_bad, meta):
    """Clips that labels name; what cannot be used is listed."""
    if folder := fps and next((r["id"] for r in rows if not r["problem"] and r["path"].is_dir()), None):
        refuse(f"{folder} is a folder of frames, which states no rate; leave --fps {fps:g} out")
    notes = []
    write_whole(
        out, clips(rows, frames, fps, size, skip_bad, notes), meta, verdict_on(notes, len(rows), skip_bad)
    )


# ---------------------------------------------------------------- sets with words: LLaVA, Qwen, CLIP, webdataset, imagefolder


def hidden(name):
    """Is a file one of those that file managers, notebooks and downloads leave?"""
    # pathlib would intern each part
    return any(part[:1] == "." != part or part == "__MACOSX" for part in name.split("/"))


# What tarfile, zipfile and the decompressors raise; ValueError for a sparse file's map, RuntimeError for
# header on header and for what is not implemented
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
)


class Modest(tarfile.TarInfo):
    """A header of a tar. tarfile reads those that extend it (long names, pax) into memory whole: a large one is refused."""

    def _proc_member(self, archive):
        if not self.isreg() and self.size > 2**20:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def unpacked(path, max_bytes):
    """(names, read) of a .tar (also compressed) or .zip: the names of its files, and their bytes by name. Nothing is ever written under a name that the archive chose.

    First all of it is looked at: what climbs out, is no plain file or is there twice is listed, and such an archive, or one that expands beyond max_bytes or what any honest one would, refused.
    """
    # pictures hardly shrink, and words to a tenth
    names = {}
    problems = []
    total = 0
    honest = max(2**30, 200 * path.stat().st_size)

    def admit(name, size, odd, where):
        nonlocal total
        total, parts = total + size, re.split(r"[\\/]", name)
        reason = (
            f"is {odd}, not a file"
            if odd
            else "has an absolute path"
            if not parts[0] or parts[0][1:2] == ":"
            else "climbs out of the archive"
            if ".." in parts
            else "is there twice"
            if where and os.path.normpath(name) in names
            else None
        )
        if total > max_bytes:
            refuse(
                f"{path} expands beyond --max-bytes {max_bytes} ({name!r} makes it {total}); if it can be trusted, allow more"
            )
        if total > honest:
            refuse(
                f"{path} expands to more than 200 times its size ({name!r} makes it {total}); if it can be trusted, unpack it and give the folder"
            )
        if reason:
            problems.append((f"{path}: {name}", "archive", reason))
        elif where and not hidden(name):
            names[os.path.normpath(name)] = where

    try:
        if zipfile.is_zipfile(path):
            file = zipfile.ZipFile(path)
            for m in file.infolist():
                kind = stat.S_IFMT(m.external_attr >> 16)
                odd = (
                    "a link"
                    if kind == stat.S_IFLNK
                    else "a device"
                    if kind not in (0, stat.S_IFREG, stat.S_IFDIR)
                    else "encrypted"
                    if m.flag_bits & 1
                    else None
                )
                admit(m.filename, m.file_size, odd, None if m.is_dir() else m)
        else:
            with tarfile.open(path, "r|*", tarinfo=Modest) as tar:
                end = 0
                while m := tar.next():
                    tar.members.clear()  # or every header stays in memory
                    end = m.offset_data + -(-m.size // 512) * 512
                    odd = (
                        "a link"
                        if m.issym() or m.islnk()
                        else "sparse"
                        if m.issparse()
                        else None
                        if m.isreg() or m.isdir()
                        else "a device"
                    )
                    admit(m.name, m.size, odd, None if m.isdir() else (m.offset_data, m.size))
            with open(path, "rb") as f:
                magic = f.read(2)
            expand = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}.get(magic)
            file = tempfile.TemporaryFile() if expand else open(path, "rb")  # noqa: SIM115
            if expand and not problems:  # what is compressed can only be read from its beginning
                with expand(path) as compressed:
                    while chunk := compressed.read(2**20):  # up to its end, where the checksum is
                        if file.tell() > end + 2**20:
                            raise EOFError("it goes on after its end")
                        file.write(chunk)
                    file.flush()
            if not problems and os.pread(file.fileno(), 512, end) != bytes(512):
                raise EOFError("it ends before its end")
    except BROKEN as e:
        refuse(
            f"{path} cannot be read as an archive ({' '.join(str(e).split())}); fetch it again, or if it is one compressed file, unpack it"
        )
    if problems:
        listed(problems)
        refuse(
            f"{path} holds {len(problems)} members that no honest archive holds, listed above; nothing of it was read or written"
        )

    def read(name):
        try:
            return (
                file.read(names[name])
                if isinstance(file, zipfile.ZipFile)
                else os.pread(file.fileno(), names[name][1], names[name][0])
            )
        except KeyError:
            raise Unusable("missing", f"is not in {path.name}") from None
        except BROKEN as e:
            raise Unusable("broken", f"cannot be unpacked ({e})") from e

    return list(names), read


def read_from(folder, max_bytes):
    """A function from the name of a file, relative to a folder or absolute, to its bytes."""

    def read(name):
        path = folder / name
        if re.match(r"https?:", name):
            raise Unusable("missing", "is on the network; fetch it first")
        try:
            if not path.is_file():
                raise Unusable("missing", f"is {'a folder' if path.is_dir() else 'not there'} ({path})")
            if path.stat().st_size > max_bytes:
                raise Unusable("large", f"has {path.stat().st_size} bytes, and --max-bytes is {max_bytes}")
            return path.read_bytes()
        except OSError as e:
            raise Unusable("missing", f"cannot be read ({e.strerror})") from e

    return read


def read_json(file):
    """The entries of a JSON array, or of JSON one a line or over several lines each, as (where, entry); the file, open as text, is never in memory whole."""
    text = file.read(2**20).lstrip("\ufeff \t\r\n")
    array = text.startswith("[")
    if not array and not text.partition("\n")[0].rstrip().endswith(("{", "[", ",")):
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line := line.strip("\ufeff \t\r\n"):
                try:
                    yield f"line {number}", json.loads(line)
                except (ValueError, RecursionError) as e:
                    yield f"line {number}", Unusable("syntax", f"is not JSON ({e})")
        return
    decoder = json.JSONDecoder()
    at = int(array)
    number = 0
    more = 2**20
    while True:
        at = re.compile(r"[\s,]*").match(text, at).end()
        if text[at : at + 1] == "]":
            return
        try:
            entry, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            if len(text) - at < 2**26 and (chunk := file.read(more)):  # it goes on
                text, at, more = text[at:] + chunk, 0, 2 * more
                continue
            if not array and at == len(text):
                return
            yield (
                f"entry {number}",
                Unusable(
                    "syntax",
                    f"is not JSON, or cut short: all that follows is lost ({e.msg if isinstance(e, ValueError) else e})",
                ),
            )
            return
        yield f"entry {number}", entry
        number, more = number + 1, 2**20


def read_table(file):
    """The rows of a CSV, or of one with tabs, as (where, {column: value})."""
    head = file.readline()
    table = csv.DictReader(
        itertools.chain([head.lstrip("\ufeff")], file), delimiter="\t" if "\t" in head else ","
    )
    while True:
        try:
            if (row := next(table, None)) is None:
                return
        except csv.Error as e:
            row = Unusable("syntax", f"is no row ({e})")
        yield (
            f"line {table.line_num}",
            Unusable("syntax", f"has {len(row[None])} fields more than the header")
            if None in row
            else {k: v for k, v in row.items() if v},
        )


def key_of(name):
    """A path up to the first dot of its last part: what the files of one item of a webdataset share."""
    return str(PurePosixPath(name).parent / PurePosixPath(name).name.partition(".")[0])


def read_groups(names, read):
    """Files that share a name up to its first dot, as (name, entry): pictures or a video, and words in .txt, .caption or .json."""
    for key, members in itertools.groupby(sorted(names, key=key_of), key=key_of):
        entry, media = {}, {"images": [], "videos": []}
        try:
            for name in members:
                ending = PurePosixPath(name).suffix.lower()
                if ending in (".txt", ".caption"):
                    if "text" in entry:
                        raise Unusable(
                            "syntax",
                            f"has its words twice, at last in {name}; what is alike up to the first dot is one item: no name may hold another",
                        )
                    entry["text"] = read(name).decode("utf-8-sig").strip()
                elif ending == ".json":
                    said = json.loads(read(name))
                    entry = (
                        {"messages": said}
                        if isinstance(said, list)
                        else {k: v for k, v in said.items() if not kind_of(k)} | entry
                    )
                elif ending in ENDINGS:
                    media[ENDINGS[ending]].append(name)
            yield key, {"id": key} | entry | media
        except Unusable as e:
            yield key, e
        except (ValueError, AttributeError) as e:
            yield key, Unusable("syntax", f"has words that cannot be read ({e})")


def form_of(entry, name):
    """The format that an entry is in, or None."""
    if not isinstance(entry, dict):
        return "qwen" if isinstance(entry, list) else "llava"
    if "conversations" in entry or "messages" in entry:
        return "llava" if "conversations" in entry else "qwen"
    if any(map(kind_of, entry)) and {*CAPTIONS, "question"} & set(entry):
        return (
            "clip"
            if name.lower().endswith((".csv", ".tsv")) and not name.startswith("metadata.")
            else "imagefolder"
        )


def part_in(name):
    """train, val or test, where a path says it."""
    return next((SPLITS[w] for w in reversed(re.split(r"[^a-z]+", name.lower())) if w in SPLITS), None)


def find_set(root, form, media, max_bytes):
    """(format, entries) of a file, a folder or an archive, found by looking: entries yields (file, where, entry or Unusable, the split that is said, read: from a reference to its bytes)."""
    root = Path(root)
    if not root.exists():
        refuse(f"--root {root} does not exist; give a JSON, CSV, .tar or .zip file, or a folder")
    place = root if root.is_dir() else root.parent
    if packed := root.is_file() and root.name.lower().endswith(
        (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")
    ):
        names, fetch = unpacked(root, max_bytes)
    else:
        found = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())
        names = [n for n in found if not hidden(n)] if root.is_dir() else [root.name]
        fetch = read_from(place, max_bytes)
    given = media and (
        unpacked(Path(media), max_bytes)[1] if Path(media).is_file() else read_from(Path(media), max_bytes)
    )

    def opened(name):
        try:
            return io.TextIOWrapper(
                io.BytesIO(fetch(name)) if packed else open(place / name, "rb"), "utf-8", newline=""
            )
        except (Unusable, OSError) as e:
            refuse(f"{name} of {root} {e.args[1]}; fetch it again")

    def reader(name):
        with opened(name) as file:
            return (
                read_table
                if form == "clip"
                or not form
                and file.read(2**10).lstrip("\ufeff \t\r\n")[:1] not in ("[", "{")
                else read_json
            )

    pictured = {key_of(n) for n in names if PurePosixPath(n).suffix.lower() in ENDINGS}
    # img2dataset counts its shards
    tables = (
        [
            n
            for n in names
            if n.lower().endswith((".json", ".jsonl", ".csv", ".tsv"))
            and not n.endswith("_stats.json")
            and key_of(n) not in pictured
        ]
        if packed or root.is_dir()
        else names
    )
    metadata = [n for n in tables if PurePosixPath(n).name in ("metadata.jsonl", "metadata.csv")]
    tars = [n for n in names if n.lower().endswith((".tar", ".tar.gz", ".tgz"))]
    chosen = (
        []
        if form == "webdataset"
        else metadata or (tables if len(tables) == 1 else [n for n in tables if part_in(n)])
    )
    tars = [] if chosen or form not in (None, "webdataset") or packed or not root.is_dir() else tars
    grouped = (
        not chosen
        and not tars
        and form in (None, "webdataset")
        and pictured & {key_of(n) for n in names if n.lower().endswith((".txt", ".caption", ".json"))}
    )
    if chosen:
        with opened(chosen[0]) as file:
            try:
                where, first = next(reader(chosen[0])(file), ("", None))
            except UnicodeDecodeError as e:
                refuse(f"{root} is not UTF-8 ({e.reason} at byte {e.start}); save it as such")
        found = form or form_of(first, chosen[0].rpartition("/")[2])
        if first is None or not found:
            fields = (
                f"{where} of {chosen[0]} has the fields {', '.join(map(str, first))}"
                if first
                else f"{chosen[0]} is empty"
            )
            refuse(
                f"{root} is in no known format: {fields}; known are LLaVA (conversations), Qwen (messages), CLIP (filepath and title) and metadata (file_name and text)"
            )
    elif len(tables) > 1 and form != "webdataset":
        refuse(
            f"{root} holds {len(tables)} tables ({', '.join(tables[:4])}{', ...' if len(tables) > 4 else ''}); give one of them, or name them train, val and test"
        )
    elif not tars and not grouped:
        endings = ", ".join(
            f"{n} {e}" for e, n in Counter(PurePosixPath(n).suffix or n for n in names).most_common(5)
        )
        refuse(
            f"{root} holds no set{f' of format {form}' if form else ''} but {endings or 'nothing'}; known are a JSON, CSV or TSV file, "
            "metadata.jsonl beside pictures, and pictures with a .txt or .json of the same name, as a folder or an archive"
        )
    said = {part_in(n) for n in chosen or tars} - {None}
    # of two, one is the test
    meant = (
        {s: s for s in said}
        if len(said) == 3 or "train" not in said
        else {"train": "train and val"} | {s: "test" for s in said - {"train"}}
    )

    def entries():
        for name in chosen or tars or [root.name]:
            part = meant.get(part_in(name)) if len(said) > 1 else None
            if chosen:
                read = given or (
                    lambda reference, name=name: fetch(
                        os.path.normpath(PurePosixPath(name).parent / reference)
                    )
                )
                try:
                    with opened(name) as file:
                        for where, entry in reader(name)(file):
                            # as Qwen packs its entries
                            rows = isinstance(entry, list) and any(
                                isinstance(x, dict) and {"conversations", "messages"} & set(x) for x in entry
                            )
                            for one in entry if rows else [entry]:
                                yield name, where, one, part, read
                except UnicodeDecodeError as e:
                    yield (
                        name,
                        "the file",
                        Unusable("syntax", f"is not UTF-8 ({e.reason} at byte {e.start})"),
                        part,
                        read,
                    )
            else:
                members, read = unpacked(root / name, max_bytes) if tars else (names, fetch)
                for where, entry in read_groups(members, read):
                    yield name, where, entry, part, read

    return found if chosen else "webdataset", entries()


def kind_of(field):
    """What a field of an entry names, by its name: image, video or None."""
    return (
        "video"
        if field in VIDEOS
        else "image"
        if field in PICTURES or field.endswith(("_file_name", "_file_names"))
        else None
    )


def path_of(x):
    """A reference to a medium, also out of a mapping: {"path": ...}, as datasets writes it, or {"url": ...}."""
    return next((x[k] for k in ("url", "path") if x.get(k)), x) if isinstance(x, dict) else x


def named(entry):
    """(kind, reference) of the media that an entry's fields name. A video among its files is one by its ending, and a list of pictures as its video is one clip."""

    def ending(x):
        return ENDINGS.get(PurePosixPath(x).suffix.lower()) if isinstance(x, str) else None

    found = []
    for kind, x in ((kind_of(field), x) for field, x in entry.items() if x):
        clip = kind == "video" and isinstance(x, list) and {ending(v) for v in x} == {"images"}
        found += (
            [
                (kind if ending(v) != "videos" else "video", path_of(v))
                for v in (x if isinstance(x, list) and not clip else [x])
            ]
            if kind
            else []
        )
    return found


def spoken(messages, media, problems):
    """(said, system) of a conversation in LLaVA's or Qwen's words, said being (number, user or assistant, words); `media` gets what its parts show, `problems` what is wrong."""
    said, system = [], None
    for number, message in enumerate(messages if isinstance(messages, list) else [messages], 1):
        message = message if isinstance(message, dict) else {}
        role, words = message.get("from", message.get("role")), message.get("value", message.get("content"))
        if isinstance(words, list):
            parts, words = words, ""
            for part in parts:
                # a table's rows have all keys in every part, null where it is of another type
                part = part if isinstance(part, dict) else {}
                kind = next((k for k in PARTS if part.get("type") == k), None) or next(
                    (k for k in PARTS if part.get(k) is not None), None
                )
                given = kind and next(
                    (part[k] for k in (kind, "value", "url", "path") if part.get(k) is not None), None
                )
                if not kind or kind == "text" and not isinstance(given, (str, int, float)):
                    problems.append(("syntax", f"turn {number} has a part that is no text, image or video"))
                elif kind == "text":
                    words += str(given)
                else:
                    kind = kind.removesuffix("_url")
                    words += f"<{kind}>"
                    media += [(kind, path_of(given))] if given else []
        if str(role) not in ROLES:
            problems.append(
                ("role", f"turn {number} is said by {role!r}; known: human or user, gpt or assistant, system")
            )
        elif not isinstance(words, str):
            problems.append(("syntax", f"turn {number} has no text"))
        elif ROLES[role] == "system" and number == 1:
            system = words
        else:
            said.append((number, ROLES[role], words))
    wrong = next(
        (
            f"turn {n} is the {role}'s, where the {due}'s is due"
            for (n, role, _), due in zip(said, itertools.cycle(("user", "assistant")), strict=False)
            if role != due
        ),
        None,
    )
    if not problems and (wrong or len(said) % 2 or not said):
        problems.append(("order", wrong or ("the last question has no answer" if said else "has no turns")))
    return said, system


def normal(entry, question):
    """An entry of any format as (media, turns, system, caption, problems).

    media: (kind, reference), kind `image` or `video`; turns: [question, answer], with `<image>` and `<video>` where the media do not simply stand first; problems: (kind, reason).
    """
    entry = {"messages": entry} if isinstance(entry, list) else entry
    problems = []
    said = []
    caption = None
    if not isinstance(entry, dict):
        return [], [], None, None, [("syntax", f"is {entry!r:.40}, not a mapping of fields")]
    media, messages, system = named(entry), entry.get("conversations", entry.get("messages")), None
    if messages is None:
        answer = next((entry[k] for k in ("answer", *CAPTIONS) if entry.get(k)), "")
        problems += (
            [("syntax", f"has words that are no text but {answer!r:.40}")]
            if not isinstance(answer, (str, int, float))
            else []
        )
        caption = None if "question" in entry else str(answer)
        turns = [[str(entry.get("question", question)), str(answer)]]
    else:
        said, system = spoken(messages, media, problems)
        # LLaVA-Video says <image> for its video
        if [k for k, _ in media] == ["video"] and not any("<video>" in w for _, _, w in said):
            said = [(n, role, w.replace("<image>", "<video>")) for n, role, w in said]
        turns = [[said[k][2], said[k + 1][2]] for k in range(0, len(said) - 1, 2)]
    for number, (_, answer) in enumerate(turns, 1):
        if not answer.strip():
            problems.append(
                ("empty", f"answer {number} is empty" if messages is not None else "has no words")
            )
    for number, turn in enumerate(turns):
        if turn in turns[:number]:
            problems.append(
                ("repeated", f"turn {number + 1} repeats turn {turns.index(turn) + 1}: {turn[0]!r:.60}")
            )
    every = " ".join([w for _, _, w in said] or sum(turns, []))
    for kind, plural in (
        (("image", "pictures"), ("video", "videos")) if said or re.search(MARK, every) else ()
    ):
        marks, there = every.count(f"<{kind}>"), sum(k == kind for k, _ in media)
        if marks != there:
            problems.append(
                ("placeholder", f"has {marks} <{kind}> for {there} {plural if there != 1 else plural[:-1]}")
            )
        elif number := next((n for n, (_, answer) in enumerate(turns, 1) if f"<{kind}>" in answer), None):
            problems.append(("placeholder", f"has <{kind}> in answer {number}; models here answer in words"))
    if other := re.search("<(audio|bbox|ref-object)>", every):
        problems.append(
            (
                "placeholder",
                f"has {other[0]}, and what belongs there is not read; write it out in words or leave the item out",
            )
        )
    kinds = [k for k, _ in media]
    if kinds.count("video") > 1 or len(set(kinds)) > 1 or not kinds:
        problems.append(
            (
                "media",
                f"has {kinds.count('image')} pictures and {kinds.count('video')} videos; an item shows pictures or one video",
            )
        )
    if turns:
        bare = re.sub(rf"^(\s*{MARK})+\s*", "", turns[0][0])
        turns[0][0] = (
            turns[0][0] if re.search(MARK, " ".join([bare, turns[0][1], *sum(turns[1:], [])])) else bare
        )
    return media, turns, system or entry.get("system") and str(entry["system"]), caption, problems


def picture(content, max_side):
    """A picture's bytes as (encoded uint8 [bytes], size in pixels, its hash, degrees it was turned). What is not upright, transparent or of 16 bits is encoded anew."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) > max_side:
                raise Unusable("large", f"is {image.width}x{image.height}, and --max-side is {max_side}")
            image.load()
            turned = {3: 180, 6: 90, 8: 270}.get(image.getexif().get(274, 1), 0)
            if image.getexif().get(274, 1) != 1 or image.mode.startswith("I") or image.has_transparency_data:
                image, packed = upright(image), io.BytesIO()
                image.save(packed, "PNG")
                content = packed.getvalue()
            return (
                torch.frombuffer(bytearray(content), dtype=torch.uint8),
                image.size,
                difference_hash(image),
                turned,
            )
    except Unusable:
        raise
    except Image.DecompressionBombError:
        raise Unusable("large", f"has more than {2 * Image.MAX_IMAGE_PIXELS:.0f} pixels") from None
    except UnidentifiedImageError:
        raise Unusable("broken", "is no picture" if content else "has no bytes") from None
    except Exception as e:  # Pillow's plugins raise what they like for a broken file
        raise Unusable("broken", f"cannot be decoded ({e})") from e


def difference_hash(image):
    """128 bits: of a grey 9 x 9 picture, is a point darker than the next on its right, than the next below? (dHash, N. Krawetz 2013, with columns too.) 0 for a picture of one value."""
    from PIL import Image

    grey = np.asarray(image.convert("L").resize((9, 9), Image.Resampling.BOX), np.int16)
    return int.from_bytes(
        np.packbits([grey[:-1, 1:] > grey[:-1, :-1], grey[1:, :-1] > grey[:-1, :-1]]).tobytes(), "big"
    )


def near_duplicates(hashes, most=7):
    """Pairs of (split, name), of two splits, whose pictures' hashes differ in at most `most` bits. hashes: {split: {hash: name}}.

    Two that differ in at most seven of 128 bits agree in one of eight bands of 16: only those are compared. (Of 19900 pairs of 200 photographs from the web eight are found, all eight the same
    photograph; of copies at half the size or saved at quality 50, 99%; of copies that lost 5% at each side, 3%; of those mirrored, none.)
    """
    rows, pairs = [(split, name, h) for split, names in hashes.items() for h, name in names.items()], set()
    codes = np.array([[h >> 64, h & 2**64 - 1] for _, _, h in rows], np.uint64).reshape(-1, 2)
    splits, bands = np.array([list(hashes).index(split) for split, _, _ in rows]), codes.view(np.uint16).T
    for k, band in enumerate(bands):
        # by this band, then by the others
        order, at = np.lexsort(np.roll(bands, -k - 1, 0)), np.arange(len(band))
        # a band that more share (a white edge) says little, and to compare all of them would take n^2
        for step in range(1, 200):
            at = at[at + step < len(band)]
            at = at[band[order[at]] == band[order[at + step]]]
            a, b = order[at], order[at + step]
            near = (splits[a] != splits[b]) & (np.bitwise_count(codes[a] ^ codes[b]).sum(1) <= most)
            pairs |= set(zip(np.minimum(a, b)[near].tolist(), np.maximum(a, b)[near].tolist(), strict=True))
            if not len(at):
                break
    return [(rows[k][:2], rows[j][:2]) for k, j in sorted(pairs)]


def numbers_of(match):
    """What PLACED found as floats; what is no number is nan. Where none is one ([x1, y1, x2, y2], or nothing) it is no box but a form to fill in: []."""

    def number(x):
        try:
            return float(x)
        except ValueError:
            return math.nan

    found = [number(x) for x in match[3].split(",")]
    return [] if all(map(math.isnan, found)) else found


def numbers_in(words):
    """The boxes and points that words name: {"bbox_2d": [x1, y1, x2, y2]} and {"point_2d": [x, y]}."""
    return [(m[2], numbers) for m in PLACED.finditer(words) if (numbers := numbers_of(m))]


def whole_video(path, frames, size, max_side):
    """`frames` frames at equal steps through a video, uint8 [T,size,size,3], its size in pixels, and by how many degrees they were turned to stand upright."""
    import av

    try:
        _, seconds, rate = header(path, None)
        # what a browser records does not say how long it is
        seconds = seconds or max((t for t, _ in shown(path, None, rate)), default=0) + 1 / rate
        with av.open(path) as file:
            size_of = file.streams.video[0].width, file.streams.video[0].height
    except (av.FFmpegError, OSError, ValueError) as e:
        raise Unusable("broken", f"cannot be decoded ({getattr(e, 'strerror', None) or e})") from e
    if max(size_of) > max_side:
        raise Unusable("large", f"is {size_of[0]}x{size_of[1]}, and --max-side is {max_side}")
    if frames > 1.01 * seconds * rate:
        raise Unusable("short", f"has {round(seconds * rate)} frames, and {frames} are wanted")
    kept, turned = middle_frames(path, frames, frames / float(seconds), size)
    return kept, size_of[::-1] if turned % 180 else size_of, turned


def medium(read, kind, reference, how):
    """What an item keeps of a medium: (encoded or frames, size in pixels, its hash, degrees it was turned, digest). reference: a path, or for a clip a tuple of paths."""
    from PIL import Image

    def content(path):
        if not path.startswith("data:"):
            return read(path.removeprefix("file://"))
        try:
            return base64.b64decode(path.partition(",")[2])
        except ValueError:
            raise Unusable("broken", "is no base64") from None

    if kind == "image":
        found = content(reference)
        return *picture(found, how.max_side), digest(found)
    if isinstance(reference, tuple):  # a clip of pictures
        if len(reference) < how.frames:
            raise Unusable("short", f"has {len(reference)} frames, and {how.frames} are wanted")
        found = [
            content(reference[k]) for k in np.linspace(0, len(reference) - 1, how.frames).round().astype(int)
        ]
        shots = [picture(x, how.max_side) for x in found]
        clip = torch.cat([frames_of({"encoded": shot[0]}, how.size) for shot in shots])
        size = shots[0][1]
        turned = shots[0][3]
        found = b"".join(found)
    else:
        found = content(reference)
        with tempfile.NamedTemporaryFile() as file:
            file.write(found)
            file.flush()
            clip, size, turned = whole_video(Path(file.name), how.frames, how.size, how.max_side)
    return clip, size, difference_hash(Image.fromarray(clip[len(clip) // 2].numpy())), turned, digest(found)


def set_items(entries, how, notes):
    """Items of a set's entries, one at a time. notes gets what there is to say, (item, kind, reason); after the first problem the rest is only checked, unless skip_bad or check is set in `how`."""
    ids = Counter()
    said = set()
    first = {}
    hashes = {}
    bad = False
    # many an entry shows what the one before it shows
    load = functools.lru_cache(8)(functools.partial(medium, how=how))
    for file, where, entry, part, read in entries:
        try:
            if isinstance(entry, Unusable):
                raise entry
            json.dumps(entry, ensure_ascii=False).encode()
        except (Unusable, UnicodeEncodeError) as e:
            notes.append(
                (
                    f"{file}: {where}",
                    *(
                        e.args
                        if isinstance(e, Unusable)
                        else ("syntax", "holds half a character (a lone surrogate)")
                    ),
                )
            )
            bad = True
            continue
        media, turns, system, caption, problems = normal(entry, how.question)
        fields, shows, soft = entry if isinstance(entry, dict) else {}, [], []
        for kind, reference in media:
            try:
                if not (
                    isinstance(reference, str)
                    or kind == "video"
                    and isinstance(reference, list)
                    and all(isinstance(x, str) for x in reference)
                ):
                    raise Unusable("missing", "is no path")
                shows.append(load(read, kind, tuple(reference) if isinstance(reference, list) else reference))
            except Unusable as e:
                problems.append((e.args[0], f"{reference!s:.80} {e.args[1]}"))
        given = fields.get("id") not in (None, "")
        name = str(fields["id"]) if given else f"{media[0][1]!s:.200}" if media else where
        label = f"{file}: {name:.99}" + (f" ({where})" if where != name else "")
        if name in ids and given:
            soft.append(("same id", f"has the id of an item before it, and is called {name}#{ids[name] + 1}"))
        ids[name] += 1
        if (content := digest(json.dumps([turns, media]).encode())) in said:
            problems.append(("duplicate", "is an earlier item again, word for word"))
        said.add(content)
        if part_said := fields.get("split"):
            part = SPLITS.get(str(part_said).lower())
            problems += [] if part else [("split", f"says split {part_said!r}; known: train, val, test")]
        # one of each split, of all that show one of these pictures
        twins = {split_of(t[2]): t for t in (first[x[4]] for x in shows if x[4] in first)}
        problems += [
            (
                "split",
                f"shows what {t[0]} shows, which is in {t[1] or 'no split'}, and this in {part or 'no split'}",
            )
            for t in twins.values()
            if t[1] != part
        ]
        if len(twins) > 1 and all(t[1] == part for t in twins.values()):
            problems.append(
                (
                    "split",
                    "shows what "
                    + " and what ".join(f"{t[0]} shows, which fell to {s}" for s, t in twins.items())
                    + ": say a split for them",
                )
            )
        sizes = [x[1] for x in shows]
        for turn, number in (
            zip(turns, spoken_of(turns, len(sizes)), strict=True) if len(sizes) == len(media) > 0 else ()
        ):
            width, height = sizes[number or 0]
            for kind, numbers in numbers_in(" ".join(turn)):
                if number is None and len(set(sizes)) > 1:
                    problems.append(
                        (
                            "box",
                            f"says {kind} {numbers}, and of which of its pictures cannot be known; ask of each in a turn of its own, or give them one size",
                        )
                    )
                elif not inside(numbers, width, height):
                    problems.append(
                        ("box", f"says {kind} {numbers}, which does not lie inside {width}x{height} pixels")
                    )
        soft += [
            ("turned", f"{reference} is not stored upright, turned by {x[3]} degrees to the right")
            for (_, reference), x in zip(media, shows, strict=False)
            if x[3]
        ]
        notes += [(label, *x) for x in soft + problems]
        bad = bad or bool(problems)
        if problems or bad and not (how.skip_bad or how.check):
            continue
        source = next(iter(twins.values()))[2] if twins else None
        if source is None:
            fell = (
                ("val" if int(digest(name.encode()), 16) % 100 < 25 else "train")
                if part == "train and val"
                else part
            )
            source = f"{fell}:{name}" if fell else name
        for k, x in enumerate(shows, 1):
            first.setdefault(x[4], (name, part, source))
            if x[2]:  # a picture of one value is like any other
                hashes.setdefault(split_of(source), {}).setdefault(
                    x[2], label if len(shows) == 1 else f"{label}, picture {k}"
                )
        shown_as = (
            {"frames": shows[0][0]}
            if media[0][0] == "video"
            else {"encoded": shows[0][0]}
            if len(shows) == 1
            else {"album": [x[0] for x in shows]}
        )
        more = {k: v for k, v in (("chat", len(turns) > 1), ("system", system), ("text", caption)) if v}
        yield {
            "id": name if ids[name] == 1 else f"{name}#{ids[name]}",
            "source": source,
            "width": shows[0][1][0],
            "height": shows[0][1][1],
            **shown_as,
            "turns": turns,
            **more,
        }
    notes += [
        (b, "near", f"is in {t}, and nearly the same picture in {s}: {a}")
        for (s, a), (t, b) in near_duplicates(hashes)
    ]


def inside(numbers, width, height):
    """Do a box [x1, y1, x2, y2] or a point [x, y] lie in a picture?"""
    x, y = numbers[::2], numbers[1::2]
    return (
        len(numbers) in (2, 4)
        and all(0 <= v <= width for v in x)
        and all(0 <= v <= height for v in y)
        and (len(x) == 1 or x[0] < x[1] and y[0] < y[1])
    )


def tallied(items, table):
    """The same items; `table` is, once they are through, what they are per split: how many of each, and [least, median, most] words of an answer and pixels of the longer side."""
    counts, words, sides = {}, {}, {}
    for item in items:
        part = split_of(item["source"])
        counts.setdefault(part, Counter()).update(
            items=1,
            pictures=len(item.get("album", "1")) * ("frames" not in item),
            videos=int("frames" in item),
            turns=len(item["turns"]),
        )
        words.setdefault(part, Counter()).update(len(answer.split()) for _, answer in item["turns"])
        sides.setdefault(part, Counter())[max(item["width"], item["height"])] += 1
        yield item

    def spread(counter):
        ordered, total = sorted(counter.items()), 0
        for value, n in ordered:
            total += n
            if 2 * total >= counter.total():
                return [ordered[0][0], value, ordered[-1][0]]

    table.update(
        {
            s: dict(counts[s]) | {"words_per_answer": spread(words[s]), "side": spread(sides[s])}
            for s in ("train", "val", "test")
            if s in counts
        }
    )


def write_set(args, out, meta):
    """Read a set and write it, or with args.check only say what is wrong with it: exit code 2 where there is anything. What is made good (turned, called otherwise) is said too."""
    form, entries = find_set(args.root, args.format, args.media, args.max_bytes)
    notes, table = [], {}
    items = set_items(tqdm(itertools.islice(entries, args.n), desc="sets", unit="item"), args, notes)
    items = tallied(items if args.check else augmented(items, args), table)
    mended = {"turned"} if args.check else {"turned", "same id", "near"}

    def verdict(index):
        kinds = listed(notes)
        for split, row in table.items() if args.stats else ():
            print(split, *(f"{k} {v}" for k, v in row.items()))
        problems = {k: n for k, n in sorted(kinds.items()) if k not in mended}
        if problems and (args.check or not args.skip_bad):
            refuse(
                f"{sum(problems.values())} problems in {args.root} ({', '.join(f'{n} {k}' for k, n in problems.items())}), listed above; mend them"
                + (
                    ", or give --media the folder or archive in which their paths begin"
                    if "missing" in problems and not args.media
                    else ""
                )
                + ("" if args.check else ", or go on without these items with --skip-bad")
            )
        if not index["items"]:
            refuse(f"{args.root} leaves no usable item; check --media and --format")
        return {
            "skipped": len({name for name, kind, _ in notes if kind in problems}),
            "skipped_kinds": problems,
            **{k.replace(" ", "_"): kinds[k] for k in sorted(mended)},
            "splits": table,
        }

    if args.check:
        index = {"format": form, "items": sum(1 for _ in items), "problems": 0}
        return index | {k: v for k, v in verdict(index).items() if not k.startswith("skipped")}
    check_writable(out / "index.yaml")
    write_whole(out, items, meta | {"format": form, "question": args.question}, verdict)
    return load_yaml(out / "index.yaml")


def listed(notes, most=20):
    """Say what there is to say, at most so many of a kind."""
    kinds = Counter()
    for name, kind, reason in notes:
        kinds[kind] += 1
        if kinds[kind] <= most:
            print("".join(c if c.isprintable() else " " for c in f"{name}: {reason}"), file=sys.stderr)
    for kind, n in kinds.items():
        if n > most:
            print(f"... and {n - most} more of this kind ({kind})", file=sys.stderr)
    return kinds


# ---------------------------------------------------------------- augmentation


def changed(item, flip, crop, jitter, rng):
    """A copy of an item, mirrored, cropped to a window that holds every box (each side at least the fraction `crop`) and in other light; its boxes, also those in its words, move with it.

    Not mirrored is what says left or right, boxes in another form than ours or of who knows which picture of an album; not cropped is what says any place, nor an album with boxes, and of
    one without only the first picture is. None if nothing is changed.
    """
    from PIL import Image, ImageEnhance

    width, height, words = item["width"], item["height"], [w for turn in item.get("turns", ()) for w in turn]
    said = " ".join(filter(None, [*words, *item.get("labels", ()), item.get("text"), item.get("system")]))
    owners = spoken_of(item.get("turns", ()), len(item.get("album", "1")))
    sided = (
        SIDED.search(said)
        or LOOSE.search(PLACED.sub("", said))
        or "album" in item
        and any(
            number is None and numbers_in(" ".join(turn))
            for turn, number in zip(item["turns"], owners, strict=True)
        )
    )
    flip = flip and not sided
    crop = crop if not (sided or SITED.search(said) or "album" in item and PLACED.search(said)) else None
    if not (flip or crop or jitter):
        return None
    boxes = [
        *item.get("boxes", torch.zeros(0, 4)).tolist(),
        *(numbers for _, numbers in numbers_in(" ".join(words))),
    ]
    window = [0, 0, width, height]
    for axis, side in enumerate((width, height) if crop else ()):
        first = min((math.floor(v) for b in boxes for v in b[axis::2]), default=side)
        last = max((math.ceil(v) for b in boxes for v in b[axis::2]), default=0)
        length = max(last - first, math.ceil(rng.uniform(crop, 1) * side))
        start = int(rng.integers(max(0, last - length), min(first, side - length) + 1))
        window[axis], window[axis + 2] = start, start + length
    light = rng.uniform(0.7, 1.3, 3)

    def seen(image, window):
        image = image.crop(window) if window else image
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image
        for factor, enhancer in (
            zip(light, (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), strict=True)
            if jitter
            else ()
        ):
            image = enhancer(image).enhance(factor)
        return image

    def encoded(x, window):
        image, file = Image.open(io.BytesIO(x.numpy().tobytes())), io.BytesIO()
        seen(image.convert("RGB"), window).save(
            file, **({"format": "JPEG", "quality": 95} if image.format == "JPEG" else {"format": "PNG"})
        )
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    def moved(numbers, right=window[2]):
        x = [right - v if flip else v - window[0] for v in numbers[::2]]
        y = [v - window[1] for v in numbers[1::2]]
        return [v for point in zip(sorted(x), y, strict=True) for v in point]

    def told(words, number):
        right = Image.open(io.BytesIO(item["album"][number].numpy().tobytes())).width if number else window[2]
        return PLACED.sub(
            lambda m: (
                m[1] + ", ".join(f"{round(v, 2):.9g}" for v in moved(x, right)) + m[4]
                if (x := numbers_of(m))
                else m[0]
            ),
            words,
        )

    new = item | {"id": f"{item['id']}~", "width": window[2] - window[0], "height": window[3] - window[1]}
    if "frames" in item:
        h, w = item["frames"].shape[1:3]  # squashed, as the window is then
        part = [window[0] * w / width, window[1] * h / height, window[2] * w / width, window[3] * h / height]
        new["frames"] = torch.stack(
            [
                torch.from_numpy(
                    np.array(seen(Image.fromarray(f.numpy()), part).resize((w, h), Image.Resampling.BICUBIC))
                )
                for f in item["frames"]
            ]
        )
    elif "album" in item:
        new["album"] = [encoded(x, None if k else window) for k, x in enumerate(item["album"])]
    else:
        new["encoded"] = encoded(item["encoded"], window)
    if "boxes" in item:
        new["boxes"] = torch.tensor([moved(b) for b in item["boxes"].tolist()], dtype=torch.float32).reshape(
            -1, 4
        )
    if words:
        new["turns"] = [
            [told(w, number) for w in turn] for turn, number in zip(item["turns"], owners, strict=True)
        ]
        new |= {"text": new["turns"][0][1]} if "text" in item else {}
    return new


def augmented(items, args):
    """The same items, and after each of the train split a changed copy of the same source, drawn by --seed and the item's id."""
    for item in items:
        yield item
        if split_of(item["source"]) == "train":
            rng = np.random.default_rng([args.seed, int(digest(item["id"].encode()), 16)])
            if copy := changed(item, args.flip, args.crop, args.jitter, rng):
                yield copy


# ---------------------------------------------------------------- operations at a packing bench (OpenPack)

OPERATIONS = {
    100: "Picking",
    200: "Relocate Item Label",
    300: "Assemble Box",
    400: "Insert Items",
    500: "Close Box",
    600: "Attach Box Label",
    700: "Scan Label",
    # OpenPack (Yoshimura et al. 2024); what has another id (8100, Null) is none of them
    800: "Attach Shipping Label",
    900: "Put on Back Table",
    1000: "Fill out Order",
}
NULL, JAPAN = 8100, timezone(timedelta(hours=9))
# seconds, of somebody of speed 1
LASTS = {100: 9, 200: 7, 300: 9, 400: 10, 500: 6, 600: 5, 700: 4, 800: 6, 900: 6, 1000: 7, NULL: 2}
FIXED = "U0108", 30  # the first so many clips of this subject are the fixed test
CHANGE = 1  # seconds: a clip that ends no further from a change of operation is a boundary clip
FRAMES_AT = "kinect/color-masked/frames"
# short: the smallest models write nearly letter by letter
ASK_OPERATION = "What is done now, since when, until when, and what is next?"


def procedure(rng):
    """The operations on one box, in a noisy order: ids. Without picking, assembling, inserting and closing there is nothing to go on with, so these are never skipped."""
    order = [o for o in OPERATIONS if o in (100, 300, 400, 500, 900) or rng.random() > 0.1]
    for a, b in ((200, 300), (600, 700), (700, 800), (900, 1000)):
        if a in order and order[order.index(a) + 1 :][:1] == [b] and rng.random() < 0.25:
            k = order.index(a)
            order[k : k + 2] = b, a
    for after, again in ((200, [100]), (400, [100, 400]), (800, [700])):
        if after in order and rng.random() < 0.2:
            k = order.index(after) + 1
            order[k:k] = again
    return order


def shift(rng, speed, boxes):
    """A session of somebody: [{start, end (seconds), id, box, done: the ids done on this box before}]."""
    found, t = [], 0.0
    for box in range(1, boxes + 1):
        done = []
        for o in procedure(rng):
            for k in [NULL, o] if rng.random() < 0.1 else [o]:
                end = t + LASTS[k] / speed * rng.lognormal(0, 0.25)
                found.append({"start": t, "end": end, "id": k, "box": box, "done": tuple(done)})
                t = end
            done.append(o)
    return found


def at_bench(look, segment, t, rng, size):
    """The picture at t seconds of a session: somebody at a bench with shelf, items, box, printer and back table, PIL image.

    Attaching either label and scanning are one movement, as are assembling and closing: what is in the hand, how high the box is and what lies on the bench tells them apart.
    """
    from PIL import Image, ImageDraw

    o, done, fine = segment["id"], segment["done"], 4
    along = (t - segment["start"]) / (segment["end"] - segment["start"])
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * (t - segment["start"]) * look["speed"] / 2.6)  # there and back
    picked, packed = done.count(100), done.count(400)
    items = max(
        0.0,
        3 * (min(1, picked) - min(1, packed) + max(0, picked - 1) - max(0, packed - 1))
        + (3 * along if o == 100 else -3 * along if o == 400 else 0),
    )
    height = 9 * (1 if 300 in done else along if o == 300 else 0)
    away = 900 in done or o == 900 and along > 0.7
    body, left, right, held = {  # x of the body, both hands, and what is in the right one
        100: (15, (12, 38), (5 + 10 * swing, 22 + 15 * swing), "item" if along * 10 % 1 < 0.6 else None),
        200: (19, (14, 38), (15 + 7 * swing, 37 - 4 * swing), "label"),
        300: (33, (27 - 5 * swing, 36 - 3 * swing), (39 + 5 * swing, 36 - 3 * swing), None),
        400: (25, (21, 37), (15 + 17 * swing, 38 - 8 * np.sin(np.pi * swing)), "item"),
        500: (33, (27 - 5 * swing, 34 - 3 * swing), (39 + 5 * swing, 34 - 3 * swing), None),
        600: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "label"),
        700: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "scanner"),
        800: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "label"),
        900: (
            36 + 17 * min(1, along * 1.4),
            (32 + 17 * min(1, along * 1.4), 33),
            (43 + 17 * min(1, along * 1.4), 33),
            None,
        ),
        1000: (45, (43, 38), (48 + 1.5 * np.sin(9 * t), 37 + swing), "pen"),
    }.get(o, (look["idle"], (look["idle"] - 6, 34), (look["idle"] + 6, 34), None))

    image = Image.new("RGB", (size * fine,) * 2, look["wall"])
    pen, zoom = ImageDraw.Draw(image), size * fine / 64 * look["zoom"]

    def at(*xy):
        return [
            float((v - 32) * zoom + size * fine / 2 + d * size * fine / 64)
            for v, d in zip(xy, itertools.cycle(look["at"]), strict=False)
        ]

    def block(x0, y0, x1, y1, fill):
        if x1 > x0 and y1 > y0:
            pen.rectangle(at(x0, y0, x1, y1), fill=fill)

    block(-20, 46, 84, 84, look["floor"])
    block(0, 12, 8, 46, (90, 80, 70))  # the shelf
    for k in range(4):
        block(1, 15 + 8 * k, 6, 19 + 8 * k, look["items"][k % 3])
    block(54, 40, 70, 42, (120, 115, 110))  # the back table
    pen.line(at(body - 4, 24, *left), fill=look["clothes"], width=int(3 * zoom))
    pen.rounded_rectangle(at(body - 6, 21, body + 6, 46), radius=3 * zoom, fill=look["clothes"])
    pen.ellipse(at(body - 4.5, 11, body + 4.5, 20.5), fill=look["skin"])
    block(9, 41, 52, 48, look["bench"])
    block(46, 37, 51, 41, (50, 50, 60))  # the printer
    block(47, 39, 50, 41, (250, 250, 250))
    for k in range(int(np.ceil(min(items, 6)))):
        block(11 + 2.6 * k, 38, 13 + 2.6 * k, 41, look["items"][k % 3])
    x, y = (57, 40) if away else (body + 1, 37) if o == 900 else (28 + look["box"], 41)
    if height or away:
        block(x, y - height, x + 11, y, (176, 130, 80))
        if 500 in done:
            block(x, y - height, x + 11, y - height + 1.2, (140, 98, 55))
        else:
            flap = 4 * (1 - along if o == 500 else 1)
            pen.line(at(x, y - height, x - 2, y - height - flap), fill=(150, 105, 60), width=int(zoom))
            pen.line(at(x + 11, y - height, x + 13, y - height - flap), fill=(150, 105, 60), width=int(zoom))
        if 600 in done:
            block(x + 1.5, y - 6, x + 4.5, y - 3.5, (245, 245, 245))
        if 800 in done:
            block(x + 6, y - 6, x + 9.5, y - 2.5, (245, 245, 245))
    pen.line(at(body + 4, 24, *right), fill=look["clothes"], width=int(3 * zoom))
    for hand in (left, right):
        pen.ellipse(at(hand[0] - 1.8, hand[1] - 1.8, hand[0] + 1.8, hand[1] + 1.8), fill=look["skin"])
    hx, hy = right
    if held:
        block(
            hx - 2,
            hy - 1,
            hx + 1,
            hy + 2.5,
            {
                "item": look["items"][int(along * 10) % 3],
                "label": (250, 250, 250),
                "scanner": (30, 30, 35),
                "pen": (30, 60, 200),
            }[held],
        )
    if held == "scanner" and swing > 0.7:
        block(hx - 6, hy + 2, hx - 2, hy + 2.6, (230, 40, 40))
    image = np.asarray(image.reduce(fine), np.float32) * (1 + 0.03 * rng.normal()) + rng.normal(
        0, 4, (size, size, 1)
    )
    return Image.fromarray(image.round().clip(0, 255).astype(np.uint8))


def operations(out, size, seed, subjects=10, sessions=4, boxes=2, rate=2.0):
    """A made-up set in OpenPack's own layout under `out`: subjects U0101 ..., sessions S0100 ..., JPEGs at `rate` a second; made.yaml says so, last. Each subject has their own speed, clothes
    and camera."""
    for s in tqdm(range(subjects), desc="operations", unit="subject"):
        rng = np.random.default_rng([seed, s])
        user = f"U{101 + s:04d}"
        look = {
            "speed": float(rng.uniform(0.75, 1.35)),
            "clothes": tuple(rng.integers(30, 220, 3).tolist()),
            "skin": tuple((np.array([225, 180, 150]) * rng.uniform(0.45, 1)).astype(int).tolist()),
            "at": rng.uniform(-2.5, 2.5, 2).tolist(),
            "zoom": float(rng.uniform(0.92, 1.06)),
        }
        for k in range(sessions):
            session = f"S{100 * (k + 1):04d}"
            day = datetime(2021, 10, 1 + s, 9 + k, int(rng.integers(60)), int(rng.integers(60)), tzinfo=JAPAN)
            wall = int(rng.integers(110, 190))
            look |= {
                "wall": (wall, wall, wall - 10),
                "floor": (wall - 60,) * 3,
                "bench": tuple((np.array([200, 195, 185]) * rng.uniform(0.7, 1)).astype(int).tolist()),
            }
            work, folder = shift(rng, look["speed"], boxes), out / user / FRAMES_AT / session
            told = []
            by_second = []
            box = None
            second = 0
            for part in work:
                begins, ends = (day + timedelta(seconds=round(part[key], 3)) for key in ("start", "end"))
                told.append(
                    [
                        str(uuid.UUID(bytes=rng.bytes(16))),
                        user,
                        session,
                        part["box"],
                        part["id"],
                        OPERATIONS.get(part["id"], "Null"),
                        begins.isoformat(timespec="milliseconds"),
                        ends.isoformat(timespec="milliseconds"),
                        "",
                    ]
                )
                while second < part["end"]:
                    by_second.append(
                        [1000 * (int(day.timestamp()) + second), user, session, part["box"], part["id"]]
                    )
                    second += 1
            for tick in range(int(work[-1]["end"] * rate) + 1):
                t = tick / rate
                part = next(p for p in work if t < p["end"])
                if part["box"] != box:
                    box = part["box"]
                    look |= {
                        "items": [tuple(c) for c in rng.integers(40, 230, (3, 3)).tolist()],
                        "box": float(rng.uniform(-1.5, 1.5)),
                        "idle": float(rng.uniform(15, 50)),
                    }
                when = day + timedelta(seconds=t)
                path = (
                    folder
                    / when.strftime("%Y/%m/%d/%H/%M")
                    / f"{when:%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                at_bench(look, part, t, rng, size).save(path, quality=90)
            for name, head, rows in (
                ("openpack-operations", "uuid,user,session,box,id,operation,start,end,actions", told),
                ("openpack-operations-1hz", "unixtime,user,session,box,id", by_second),
            ):
                save_text(
                    out / user / "annotation" / name / f"{session}.csv",
                    "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n",
                )
    result = {
        "stage": "data",
        "source_kind": "operations",
        "data": "synthetic",
        "seed": seed,
        "size": size,
        "subjects": subjects,
        "sessions": subjects * sessions,
        "rate": rate,
    }
    save_yaml(out / "made.yaml", result)
    return result


def table_of(path, columns):
    """Rows of a CSV file as dicts. Raises ValueError where it cannot be read, or lacks one of the columns."""
    try:
        table = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig")))
    except OSError as e:
        raise ValueError(e) from e
    if missing := [c for c in columns if c not in (table.fieldnames or ())]:
        raise ValueError(f"lacks the columns {', '.join(missing)}; its header says {table.fieldnames}")
    return list(table)


def read_openpack(root):
    """Sessions as published, and what is wrong with any: [{user, session, work: [(start, end, id)], folder, names and times of its frames, ends: when a clip may end}], [(name, reason)]. Unix time."""
    found, problems = [], []
    files = sorted(root.glob("*/annotation/openpack-operations/*.csv"))
    if not files:
        refuse(
            f"{root} holds no U####/annotation/openpack-operations/S####.csv; give --root the folder above the subjects', or make one with `data.py operations`"
        )
    for path in tqdm(files, desc="sessions", unit="session"):
        user = path.parents[2].name
        session = path.stem
        work = []
        by_second = path.parents[1] / "openpack-operations-1hz" / path.name
        name = f"{user}/{session}"
        try:
            table = table_of(path, ("id", "start", "end"))
        except ValueError as e:
            problems.append((name, f"openpack-operations/{path.name} {e}"))
            continue
        for line, row in enumerate(table, 2):
            try:
                start, end = (datetime.fromisoformat(row[k]) for k in ("start", "end"))
                start, end = ((x if x.tzinfo else x.replace(tzinfo=JAPAN)).timestamp() for x in (start, end))
                work.append((start, end, int(row["id"])))
            except (TypeError, ValueError) as e:
                problems.append((name, f"line {line} of {path.name} is no operation ({e})"))
                continue
            if end <= start or work[-1][2] not in (*OPERATIONS, NULL):
                reason = (
                    "ends before it begins"
                    if end <= start
                    else f"has id {row['id']}, which is no operation; known: {', '.join(map(str, OPERATIONS))} and {NULL}"
                )
                problems.append((name, f"line {line} of {path.name} {reason}"))
                work.pop()
        work.sort()
        problems += [
            (
                name,
                f"two operations overlap by {a[1] - b[0]:.1f} seconds, the second from {datetime.fromtimestamp(b[0], JAPAN)}",
            )
            for a, b in itertools.pairwise(work)
            if a[1] - b[0] > 1
        ]
        folder, times, names = root / user / FRAMES_AT / session, [], []
        for picture in sorted(folder.rglob("*.jpg"), key=lambda p: p.name):
            try:
                times.append(
                    datetime.strptime(picture.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=JAPAN).timestamp()
                )
                names.append(str(picture.relative_to(folder)))
            except ValueError:
                problems.append(
                    (name, f"{picture.name} does not say when it was taken: YYYYMMDD_hhmmss_mmm.jpg")
                )
        if not names or not work:
            problems.append((name, "has no frames" if work else "has no operations"))
            continue
        ends = np.arange(np.ceil(work[0][0]), work[-1][1])  # whole seconds, where there are no labels of each
        if by_second.is_file():
            try:
                labels = [
                    (int(row["unixtime"]) / 1000, int(row["id"]))
                    for row in table_of(by_second, ("unixtime", "id"))
                ]
            except (TypeError, ValueError) as e:
                problems.append((name, f"openpack-operations-1hz/{path.name} {e}"))
                continue
            known_at = [
                {o for start, end, o in work if start - 1 <= t <= end + 1} or {NULL} for t, _ in labels
            ]
            if other := [t for (t, o), near in zip(labels, known_at, strict=True) if o not in near]:
                problems.append(
                    (
                        name,
                        f"{len(other)} of {len(labels)} seconds have another operation in openpack-operations-1hz, first at {datetime.fromtimestamp(other[0], JAPAN)}",
                    )
                )
            ends = np.unique([t for t, _ in labels])
        found.append(
            {
                "user": user,
                "session": session,
                "work": work,
                "folder": folder,
                "names": names,
                "times": np.array(times),
                "ends": ends,
            }
        )
    return found, problems


def subjects_of(users, test, val):
    """{user: split}. test, val: names with commas between; unsaid: of the ring of subjects that begins at U0108 (where there is one) the first 30% are test, the last tenth val, at least one each."""
    named = {u: part for part, said in (("test", test), ("val", val)) for u in (said or "").split(",") if u}
    if unknown := sorted(set(named) - set(users)):
        refuse(f"there is no subject {unknown[0]}; known: {', '.join(users)}")
    first = users.index(FIXED[0]) if FIXED[0] in users else 0
    ring = [u for u in users[first:] + users[:first] if u not in named]
    if not test:
        k = max(1, round(0.3 * len(users)))
        named, ring = named | dict.fromkeys(ring[:k], "test"), ring[k:]
    if not val:
        named |= dict.fromkeys(ring[-max(1, len(users) // 10) :], "val")
    return {u: named.get(u, "train") for u in users}


def grammar(sessions):
    """What train's labels say without a picture: {bigram: {operation before, or "(start)": {operation: times}}, seconds: {operation: how long in all},
    clock: the commonest operation in every ten seconds of a session, start, end: medians, of all seconds, of how long ago the operation began and of when it ends}."""
    pairs = {}
    seconds = Counter()
    clock = {}
    spans_ = []
    for s in sessions:
        work = [w for w in s["work"] if w[2] in OPERATIONS]
        for before, (_, _, o) in zip(["(start)", *(OPERATIONS[w[2]] for w in work)], work, strict=False):
            pairs.setdefault(before, Counter())[OPERATIONS[o]] += 1
        for start, end, o in work:
            for t in np.arange(np.ceil(start), end):
                seconds[OPERATIONS[o]] += 1
                clock.setdefault(int((t - s["work"][0][0]) // 10), Counter())[OPERATIONS[o]] += 1
                spans_.append((start - t, end - t))
    usual = max(sorted(seconds), key=seconds.get)
    return {
        "bigram": {k: dict(sorted(v.items())) for k, v in sorted(pairs.items())},
        "seconds": dict(sorted(seconds.items())),
        "clock": [
            max(sorted(clock.get(k, {usual: 1})), key=clock.get(k, {usual: 1}).get)
            for k in range(max(clock) + 1)
        ],
        **dict(zip(("start", "end"), np.median(spans_, 0).tolist(), strict=True)),
    }


def operation_at(s, t):
    """(start, end, id) of what is done at a time of a session; id NULL where nothing is."""
    k = int(np.searchsorted([w[0] for w in s["work"]], t, "right")) - 1
    return s["work"][k] if k >= 0 and t < s["work"][k][1] else (0, 0, NULL)


def clip_ends(s, window, count):
    """The clips that a session could give: (second, numbers of the window's first and last frame, does it end at a change?), for each second at whose last frame somebody does an operation
    and before which there are frames of `window` seconds, or of three quarters of them."""
    times, changes = s["times"], np.unique([x for w in s["work"] for x in w[:2]])
    for t in s["ends"]:
        last = int(np.searchsorted(times, t, "right")) - 1
        first = int(np.searchsorted(times, times[last] - window, "right"))
        if (
            last >= 0
            and t - times[last] <= 1
            and last - first + 1 >= count
            and times[last] - times[first] >= 0.75 * window
            and operation_at(s, times[last])[2] != NULL
        ):
            yield (
                int(t - s["work"][0][0] + 1e-6),
                first,
                last,
                bool(np.abs(changes - times[last]).min() <= CHANGE),
            )


def clip_row(s, part, count, second, first, last, boundary):
    """The truth about a clip, and the `paths` of its window."""
    now, work = s["times"][last], [w for w in s["work"] if w[2] in OPERATIONS]
    start, end, o = operation_at(s, now)
    k, name = work.index((start, end, o)), OPERATIONS[o]
    after, before = (OPERATIONS[work[j][2]] if 0 <= j < len(work) else None for j in (k + 1, k - 1))
    answer = {"operation": name, "start": round(start - now), "end": round(end - now), "next": after}
    return {
        "id": f"{s['user']}-{s['session']}-{second:05d}",
        "source": f"{part}:{s['user']}-{s['session']}",
        "subject": s["user"],
        "action": name,
        "text": name,
        **answer,
        "start": float(start - now),
        "end": float(end - now),
        "previous": before,
        "earlier": OPERATIONS.get(operation_at(s, now - 1)[2]),
        "seconds": float(now - s["work"][0][0]),
        "boundary": boundary,
        "turns": [[ASK_OPERATION, json.dumps(answer)]],
        "paths": [s["folder"] / x for x in s["names"][first : last + 1]],
        "fps": max(round(float((count - 1) / (now - s["times"][first])), 1), 0.1),
    }


def chosen_rows(sessions, split, window, count, n, asked, every, boundary, seed):
    """Rows of the clips to keep. Of train n, drawn, a share `boundary` of them (where there are so many) within CHANGE seconds of a change; of test about `asked`, of val a quarter of that:
    one every `every` seconds from the beginning of each session on, equally many of each. The first of FIXED are marked `fixed`."""
    of = {
        part: [(s, list(clip_ends(s, window, count))) for s in sessions if split[s["user"]] == part]
        for part in ("train", "val", "test")
    }
    every_train = [(s, *end) for s, ends in of["train"] for end in ends]
    order = [every_train[k] for k in np.random.default_rng(seed).permutation(len(every_train))]
    near = [end for end in order if end[-1]][: round(n * boundary)]
    rest = [end for end in order if not end[-1]] if boundary else order
    rows = sorted(
        (clip_row(end[0], "train", count, *end[1:]) for end in near + rest[: n - len(near)]),
        key=lambda r: r["id"],
    )
    for part, most in (("val", asked // 4), ("test", asked)):
        for s, ends in of[part]:
            rows += [
                clip_row(s, part, count, *end)
                for end in [end for end in ends if end[0] % every == 0][: max(1, -(-most // len(of[part])))]
            ]
    for r in [r for r in rows if r["subject"] == FIXED[0] and r["source"].startswith("test:")][: FIXED[1]]:
        r["fixed"] = True
    return rows


def operation_clips(rows, count, how, size, skip_bad, notes, seed):
    """Items of rows: of each window `count` frames, chosen `how`. `notes` gets what cannot be read, (id, kind, reason); once one is bad the rest is only checked, unless skip_bad."""
    for n, row in enumerate(tqdm(rows, desc="clips", unit="clip")):
        paths = row.pop("paths")
        try:
            seen = (
                pictures(paths, 64)
                if how in ("motion", "scene")
                else torch.zeros(len(paths), 1, 1, 3, dtype=torch.uint8)
            )
            frames = pictures([paths[k] for k in choose_frames(seen, count, how, (seed, n))], size)
        except Unusable as e:
            notes.append((row["id"], *e.args))
            continue
        if skip_bad or not notes:
            yield row | {"frames": frames, "height": frames.shape[1], "width": frames.shape[2]}


def write_openpack(out, args, meta):
    """data/<out> of a set in OpenPack's layout. A made-up one says so itself, in made.yaml."""
    if args.count < 2 or args.window <= 0 or args.asked < 1 or args.every < 1 or not 0 <= args.boundary <= 1:
        refuse(
            f"--count {args.count} --window {args.window:g} --asked {args.asked} --every {args.every} --boundary {args.boundary:g} give no clips; give at least 2, above 0, 1, 1, and 0 to 1"
        )
    root, made = Path(args.root), Path(args.root) / "made.yaml"
    sessions, problems = read_openpack(root)
    for name, reason in problems:
        print(f"{name}: {reason}", file=sys.stderr)
    if problems and not args.skip_bad:
        refuse(
            f"{len(problems)} problems in {root}, listed above; mend them or go on without what has problems with --skip-bad"
        )
    split = subjects_of(sorted({s["user"] for s in sessions}), args.test, args.val)
    rows = chosen_rows(
        sessions,
        split,
        args.window,
        args.count,
        args.n or 2000,
        args.asked,
        args.every,
        args.boundary,
        args.seed,
    )
    if lacking := {"train", "val", "test"} - {split_of(r["source"]) for r in rows}:
        refuse(
            f"{root} has no clip of {args.window:g} seconds for {sorted(lacking)[0]}; give more subjects, or another --test, --val or --window"
        )
    from PIL import Image

    with Image.open(rows[0]["paths"][0]) as picture:
        size = args.size or min(224, *picture.size)
    meta |= {
        "data": load_yaml(made)["data"] if made.is_file() else "real",
        "size": size,
        "frames": args.count,
        "window": args.window,
        "chosen": args.frames,
        "every": args.every,
        "boundary": args.boundary,
        "subjects": split,
        "operations": list(OPERATIONS.values()),
        "grammar": grammar([s for s in sessions if split[s["user"]] == "train"]),
        "problems": len(problems),
    }
    notes = []
    write_whole(
        out,
        operation_clips(rows, args.count, args.frames, size, args.skip_bad, notes, args.seed),
        meta,
        verdict_on(notes, len(rows), args.skip_bad),
    )


# ---------------------------------------------------------------- the folder


def preview(items, path, columns=8, rows=5, tile=160):
    """A contact sheet PNG: first (and for a clip last) frames with their boxes drawn, also those that answers name, or else with what is done, and below them questions and answers."""
    from PIL import Image, ImageDraw

    worded, cells = "boxes" not in items[0] and "turns" in items[0], []
    height = tile + 90 * worded
    for item in items:
        cells += [(item, t) for t in ([0, -1] if len(item.get("frames", ())) > 1 else [0])]
        if len(cells) >= columns * rows:
            break
    sheet = Image.new("RGB", (columns * tile, rows * height), "white")
    for k, (item, t) in enumerate(cells[: columns * rows]):
        picture = Image.fromarray(frames_of(item, tile)[t].numpy())
        pen, at = ImageDraw.Draw(picture), (k % columns * tile, k // columns * height)
        scale = torch.tensor([tile / item["width"], tile / item["height"]] * 2)
        if worded:
            words = "\n".join(
                textwrap.fill(words, tile // 6)
                for turn in item["turns"]
                for words in (f"Q: {turn[0]}", f"A: {turn[1]}")
            )
            ImageDraw.Draw(sheet).text(
                (at[0] + 3, at[1] + tile + 2), "\n".join(words.split("\n")[:6]), fill="black"
            )
            firsts = [
                answer
                for (_, answer), number in zip(
                    item["turns"], spoken_of(item["turns"], len(item.get("album", "1"))), strict=True
                )
                if not number
            ]
            said = [numbers for kind, numbers in numbers_in(" ".join(firsts)) if kind == "bbox_2d"]
            found, names = torch.tensor(said).reshape(-1, 4), [""] * len(said)
        else:
            found, names = item.get("boxes", torch.zeros(0, 4)), item.get("names", item.get("labels", []))
            if "boxes" not in item:
                pen.text(
                    (3, 2),
                    textwrap.fill(item["action"], tile // 7),
                    fill="white",
                    stroke_width=1,
                    stroke_fill="black",
                )
        for box, label in zip((found if found.ndim == 2 else found[t]) * scale, names, strict=True):
            if box[2] > box[0]:
                pen.rectangle(box.tolist(), outline="white", width=3)
                pen.rectangle(box.tolist(), outline="black")
                pen.text(
                    (box[0].item() + 3, box[1].item() + 2),
                    label,
                    fill="white",
                    stroke_width=1,
                    stroke_fill="black",
                )
        sheet.paste(picture, at)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


SOURCES = (
    "shapes",
    "moving",
    "trajectories",
    "cut",
    "boxes",
    "clips",
    "ssv2",
    "openpack",
    "operations",
    "sets",
)


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("source", nargs="?", choices=SOURCES, help="(default: shapes)")
    p.add_argument("--source", dest="also", choices=SOURCES, help="the same, as a flag")
    p.add_argument("--out", help="the folder to write (default: data/<source>)")
    p.add_argument(
        "--n",
        type=int,
        help="items to generate, or the most to read (default: shapes 500, trajectories 2000, moving 200, else all);"
        " openpack: clips of train (default: 2000); operations: sessions of a subject (default: 4); of clips as many of each action, by --seed",
    )
    p.add_argument(
        "--size",
        type=int,
        help="side in pixels of generated frames and of clips (default: 224; moving 64, trajectories 48)",
    )
    p.add_argument(
        "--freeze",
        choices=["first", "middle"],
        help="moving: show this frame throughout; ids, sources and answers stay (default --out: data/moving-<frame>)",
    )
    p.add_argument(
        "--wait",
        type=int,
        help="moving: so many frames in all, before and after, in which nothing moves (default --out: data/waiting)",
    )
    p.add_argument(
        "--clips",
        help="with --freeze or cut: a data folder whose clips to freeze or to cut (default, of --freeze: those that --n, --size and --seed generate)",
    )
    p.add_argument(
        "--frames",
        help="of a clip (default: moving 17, trajectories 32, clips and ssv2 24, sets 8); cut: how many; openpack: which --count of --window seconds, uniform (default), motion,"
        " random or scene",
    )
    p.add_argument(
        "--change",
        choices=CHANGES,
        help="trajectories: the same scenes played backwards, without their first object, or with the colours and shapes of the first two exchanged;"
        " ids and sources stay (default --out: data/trajectories-<change>)",
    )
    p.add_argument(
        "--only", choices=["train", "val", "test"], help="trajectories: leave out what is not of this split"
    )
    p.add_argument("--fps", type=float, help="clips, ssv2: frames a second (default: every frame)")
    p.add_argument(
        "--evenly",
        action="store_true",
        help="cut: so many frames spread over the whole clip, the first and the last among them",
    )
    p.add_argument(
        "--first", type=int, default=0, help="cut: the number of the first frame (default: %(default)s)"
    )
    p.add_argument(
        "--root",
        help="boxes, clips: the folder that holds them; ssv2, openpack: the folder of the published files; sets: a JSON, CSV or TSV file, a folder, a .tar or a .zip",
    )
    p.add_argument("--count", type=int, default=8, help="openpack: frames of a clip (default: %(default)s)")
    p.add_argument(
        "--window",
        type=float,
        default=8,
        help="openpack: seconds that they are chosen from (default: %(default)g)",
    )
    p.add_argument(
        "--test",
        help="openpack: the subjects held out, with commas between (default: U0108 and those after it, 30%% of all)",
    )
    p.add_argument(
        "--val", help="openpack: the subjects to choose by (default: those before U0108, a tenth of all)"
    )
    p.add_argument(
        "--asked",
        type=int,
        default=600,
        help="openpack: how many test clips, the first of every session; a quarter as many of val (default: %(default)s)",
    )
    p.add_argument(
        "--every",
        type=int,
        default=2,
        help="openpack: seconds from one of these to the next (default: %(default)s)",
    )
    p.add_argument(
        "--boundary",
        type=float,
        default=0.5,
        help="openpack: the share of train clips drawn from those that end within a second of a change; 0: as they come (default: %(default)s)",
    )
    p.add_argument(
        "--annotations",
        help="default ROOT/annotations (voc), ROOT/labels.csv (csv, clips), ROOT/annotations.json (coco)",
    )
    p.add_argument(
        "--format",
        choices=[*FORMATS, *SET_FORMATS],
        help=f"boxes: {', '.join(FORMATS)} (default: voc); sets: {', '.join(SET_FORMATS)} (default: found by looking)",
    )
    p.add_argument(
        "--media",
        help="sets: the folder or archive in which the paths of pictures and videos begin (default: beside the file that names them)",
    )
    p.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="ROOT",
        help="sets: write nothing, but list every problem with file, item and reason; exit code 2 where there is one",
    )
    p.add_argument(
        "--stats",
        action="store_true",
        help="sets: also print, for each split, items, pictures, videos, turns and [least, median, most] words of an answer and pixels of the longer side",
    )
    p.add_argument(
        "--question",
        default="Describe the picture.",
        help="sets: what a caption answers (default: %(default)s)",
    )
    p.add_argument(
        "--max-side",
        type=int,
        default=8192,
        help="sets: the longest side of a picture, in pixels (default: %(default)s)",
    )
    p.add_argument(
        "--max-bytes",
        type=float,
        default=2e10,
        help="sets: the largest file, and the most that an archive may expand to (default: %(default)g)",
    )
    p.add_argument("--classes", help="boxes: the class names allowed, with commas between (default: any)")
    p.add_argument(
        "--skip-bad",
        action="store_true",
        help="boxes, clips, ssv2, sets: go on without the items that have problems",
    )
    p.add_argument(
        "--flip",
        action="store_true",
        help="boxes, sets: for every train item also a copy that is mirrored, boxes and all; not where words say left or right (not for writing)",
    )
    p.add_argument(
        "--crop",
        type=float,
        metavar="F",
        help="boxes, sets: such copies are cropped, each side to a fraction between F and 1, with every box inside; not where words say a place",
    )
    p.add_argument(
        "--jitter",
        action="store_true",
        help="boxes, sets: such copies have brightness, contrast and saturation changed by up to 30%%",
    )
    p.add_argument(
        "--preview",
        action="store_true",
        help="also write preview.png, a contact sheet with boxes, actions, or questions and answers",
    )
    args = p.parse_args(argv)
    args.max_bytes = int(args.max_bytes)
    args.source = args.source or args.also or ("shapes" if args.check is None else "sets")
    args.root, args.check = args.check or args.root, args.check is not None
    return args


def main(argv=None):
    args = get_args(argv)
    out = Path(
        args.out
        or (
            "data/waiting"
            if args.wait
            else f"data/{args.source}"
            + (f"-{args.freeze or args.change}" if args.freeze or args.change else "")
        )
    )
    if args.source == "openpack":
        args.frames = args.frames or "uniform"
        known(args.frames, dict.fromkeys(CHOICES), "way of choosing frames")
    elif args.frames is not None:
        try:
            args.frames = int(args.frames)
        except ValueError:
            refuse(f"--frames {args.frames} is no number of frames; give, say, 24")
    if args.n is not None and args.n < 1:
        refuse(f"--n {args.n} leaves nothing to write; give 1 or more")
    if args.size is not None and args.size < 16:
        refuse(f"--size {args.size} is too small to draw in; give 16 or more")
    if args.freeze and args.source != "moving":
        refuse(f"--freeze {args.freeze} is about clips, and {args.source} are stills; use it with moving")
    if args.wait is not None and (args.source != "moving" or args.wait < 1 or args.freeze):
        refuse(
            f"--wait {args.wait} is how many frames of clips that move stand still; give 1 or more with moving, without --freeze"
        )
    if (args.change or args.only) and args.source != "trajectories":
        refuse(
            f"--{'change' if args.change else 'only'} {args.change or args.only} is about trajectories, and {args.source} has none; leave it out"
        )
    if args.source == "trajectories" and ((args.size or 48) < 32 or (args.frames or 32) < 16):
        refuse(
            f"--size {args.size or 48} and --frames {args.frames or 32} leave no room to come and go; give at least 32 and 16"
        )
    if args.clips and not args.freeze and args.source != "cut":
        refuse(f"--clips {args.clips} goes with --freeze first or middle, or with cut; leave it out")
    if args.source == "cut" and not (args.clips and args.frames is not None and args.out):
        refuse(
            "cut takes some frames of clips that are there; give --clips their folder, --frames how many, and --out where to"
        )
    if isinstance(args.frames, int) and args.frames < 1 or args.first < 0:
        refuse(
            f"--frames {args.frames} from --first {args.first} on are no frames; give 1 or more, from 0 or more on"
        )
    real = args.source in ("boxes", "clips", "ssv2", "openpack", "sets")
    if args.source == "operations":
        check_writable(out / "made.yaml")
        result = operations(out, args.size or 64, args.seed, sessions=args.n or 4)
        say(result)
        return result
    if real and not args.root:
        refuse(
            f"--root is missing; give the {dict(boxes='folder that holds the images', sets='file, folder or archive of the set').get(args.source, 'folder that holds the clips')}"
        )
    if (
        args.format
        and args.source in ("boxes", "sets")
        and args.format not in (FORMATS if args.source == "boxes" else SET_FORMATS)
    ):
        refuse(
            f"--format {args.format} is none of {args.source}; known: {', '.join(FORMATS if args.source == 'boxes' else SET_FORMATS)}"
        )
    if args.source != "sets" and (args.check or args.media or args.stats):
        refuse(
            f"--{'check' if args.check else 'media' if args.media else 'stats'} is about sets, and not about {args.source}; leave it out"
        )
    if (args.flip or args.crop is not None or args.jitter) and (
        args.source not in ("boxes", "sets") or args.check
    ):
        refuse(
            f"--flip, --crop and --jitter add changed copies to boxes and sets that are written, and not to {'--check' if args.check else args.source}; leave them out"
        )
    if args.crop is not None and not 0 < args.crop <= 1:
        refuse(f"--crop {args.crop:g} is no fraction of a side; give more than 0 and at most 1")
    if args.max_side < 1 or args.max_bytes < 1:
        refuse(
            f"--max-side {args.max_side} and --max-bytes {args.max_bytes} leave nothing to read; give 1 or more"
        )
    if args.fps is not None and (args.source not in ("clips", "ssv2") or not args.fps > 0):
        refuse(
            f"--fps {args.fps:g} with {args.source} is no rate to read clips at; give more than 0 with clips or ssv2, or leave it out"
        )
    if args.source != "sets":  # an archive is looked at before anything is written
        check_writable(out / "index.yaml")
    meta = {
        "name": out.name,
        "source_kind": args.source,
        "data": "real" if real else "synthetic",
        "seed": args.seed,
    }
    meta |= {
        k: v
        for k, v in (
            ("freeze", args.freeze),
            ("wait", args.wait),
            ("change", args.change),
            ("only", args.only),
            ("flip", args.flip),
            ("crop", args.crop),
            ("jitter", args.jitter),
        )
        if v
    }
    if args.source in ("clips", "ssv2"):
        root, frames, size = Path(args.root), args.frames or 24, args.size or 224
        rows = (
            read_ssv2(root)
            if args.source == "ssv2"
            else read_labels(root, Path(args.annotations or root / "labels.csv"))
        )
        rows = choose(rows, args.n, args.seed) if args.n and args.n < len(rows) else rows
        write_clips(
            out,
            rows,
            frames,
            args.fps,
            size,
            args.skip_bad,
            meta | {"frames": frames, "fps": args.fps, "size": size},
        )
    elif args.source == "openpack":
        write_openpack(out, args, meta)
    elif args.source == "sets":
        args.frames, args.size = args.frames or 8, args.size or 224
        result = write_set(args, out, meta | {"frames": args.frames, "size": args.size})
        if args.check:
            say(result)
            return result
    elif args.source == "boxes":
        items, meta["skipped"] = boxes(
            args.root,
            args.format or "voc",
            args.annotations,
            args.classes and [c.strip() for c in args.classes.split(",")],
            args.n,
            args.skip_bad,
        )
        write_items(out, augmented(items, args), meta)
    else:
        n = args.n or {"shapes": 500, "trajectories": 2000}.get(args.source, 200)
        generate = {
            "shapes": shapes,
            "moving": functools.partial(moving, frames=args.frames or 17),
            "trajectories": functools.partial(
                trajectories, frames=args.frames or 32, change=args.change, only=args.only
            ),
        }.get(args.source)
        if args.clips:
            items, index = load_items(args.clips)
            taken = {"cut_from": index["name"], "frames": args.frames} | (
                {"evenly": True} if args.evenly else {"first": args.first}
            )
            meta |= {"data": index["data"], "seed": index.get("seed")} | (
                taken if args.source == "cut" else {}
            )
            n = len(items)
            if len(items[0].get("frames", ())) < 2:
                refuse(f"{args.clips} holds no clips; give --clips a data folder of clips")
        else:
            items = generate(
                n, args.size or {"moving": 64, "trajectories": 48}.get(args.source, 224), args.seed
            )
        if args.source == "cut":
            items = cut(items, args.first, args.frames, args.evenly)
        elif args.freeze or args.wait:
            items = freeze(items, args.freeze) if args.freeze else waiting(items, args.wait, args.seed)
        write_items(out, tqdm(items, total=n, desc=args.source, unit="item"), meta | {"skipped": 0})
    items = Items(out)
    if args.preview:
        preview(items, out / "preview.png")
    say(
        items.index,
        (
            "format",
            "items",
            "sources",
            "train",
            "val",
            "test",
            "skipped",
            "rotated",
            "turned",
            "same_id",
            "near",
        ),
    )
    return items.index


if __name__ == "__main__":
    main()
