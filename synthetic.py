"""Generated images and clips: shapes, moving shapes, trajectories, a packing bench."""

import itertools
import uuid
from datetime import datetime, timedelta, timezone

import numpy as np
import torch
from tqdm import tqdm

from common import save_text, save_yaml, split_of

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


# ---------------------------------------------------------------- drawing


def coverage(shape, size, cx, cy, radius, angle):
    """Fraction of each pixel that a shape covers, float [size,size]. Every shape is star-convex: inside is r <= R(theta)."""
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
    """Low-frequency noise in [-1, 1], float32 [size,size,1]: a coarse random grid, upsampled bicubically."""
    grid = torch.from_numpy(rng.uniform(-1, 1, (1, 1, cells, cells)).astype(np.float32))
    x = torch.nn.functional.interpolate(grid, (size, size), mode="bicubic", align_corners=False)
    return x[0, 0, :, :, None].numpy().clip(-1, 1)


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
    """Paint objects back to front: image uint8 [S,S,3], mask uint8 [S,S], visible boxes float32 [n,4]."""
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
    """One object of radius `low`..`high` (fractions of the side), entirely inside the frame."""
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
    """The cell of a 3 x 3 grid that holds the centre of a box, in words."""
    cx, cy = (box[0] + box[2]) / 2 / size, (box[1] + box[3]) / 2 / size
    words = [("left", "", "right")[min(int(cx * 3), 2)], ("top", "", "bottom")[min(int(cy * 3), 2)]]
    return " ".join(w for w in reversed(words) if w) or "middle"


def words_for(objects, boxes, size):
    """A caption (sorted by colour, so that its order does not reveal the place) and question/answer turns."""
    names = [f"{o['colour']} {o['shape']}" for o in objects]
    text = "a " + " and a ".join(sorted(names))
    turns = [["What is in the picture?", text]]
    for o, name, box in zip(objects, names, boxes, strict=True):
        turns.append([f"What shape is the {o['colour']} object?", o["shape"]])
        turns.append([f"Where is the {name}?", place_word(box, size)])
    return text, turns


def scene(rng, size, canvas):
    """One subject (radius 0.17-0.27 of the side), up to three distractors (0.10-0.15); at least half of each is visible."""
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

    Every scene occurs twice under one source, the second time mirrored or reversed. The position at half time does not depend on the
    direction, so a single frame reveals little about it.
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


# ---------------------------------------------------------------- trajectories: persistent or transient

# cases of motion; an object that `blinks` appears or vanishes inside the image
STEADY = ("stays", "hidden", "hidden", "crosses")
PASSING = ("enters", "leaves", "passes", "blinks")
# pixels per frame at 48 px
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
OPPOSITE = {d: next(o for o, w in DIRECTIONS.items() if w == (-x, -y)) for d, (x, y) in DIRECTIONS.items()}
OPPOSITE["still"] = "still"
QUESTIONS = {  # by kind; `backwards` and `uncovered` are both of the kind `whatif`
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
    """Position at frames t [T], float64 [T,2] in pixels: p0 + v t + a t^2 / 2, or with turn w (radians per frame) an arc at speed |v|."""
    t, v, w = np.asarray(t, float)[:, None], np.asarray(equation["velocity"]), equation["turn"]
    if not w:
        return equation["position"] + v * t + np.asarray(equation["acceleration"]) * t**2 / 2
    return equation["position"] + (v * np.sin(w * t) + v[::-1] * (-1, 1) * (1 - np.cos(w * t))) / w


def reversed_equation(equation, frames):
    """The equation of the reversed motion: its position at t is that of `equation` at frames - 1 - t."""
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
    """[first, last] (inclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(there, int), [0]])))
    return [[int(a), int(b) - 1] for a, b in edges.reshape(-1, 2)]


def spans_words(found):
    """[[0, 9], [14, 31]] -> "frames 0 to 9 and 14 to 31"; [[7, 7]] -> "frame 7"."""
    words = [f"{a} to {b}" if b > a else f"{a}" for a, b in found]
    return ("frame " if len(found) == 1 and found[0][0] == found[0][1] else "frames ") + " and ".join(words)


def nearest_direction(displacement, least):
    """The nearest of DIRECTIONS, or "still" below `least` pixels."""
    if np.hypot(*displacement) < least:
        return "still"
    return max(DIRECTIONS, key=lambda d: np.dot(displacement, DIRECTIONS[d]) / np.hypot(*DIRECTIONS[d]))


def trajectory(rng, case, direction, radius, size, frames, block, other):
    """A random equation for that case and direction. None if the drawn motion does not clearly show them.

    block: (x0, y0, x1, y1), which hides an object of case `hidden`; other: the equation of the object that `crosses` meets.
    """
    end, scale = frames - 1, size / 48
    exists, still = [0, end], direction == "still"
    if case == "blinks" and rng.random() < 0.5:
        exists = [int(rng.integers(3, frames - 5)), end]
    elif case == "blinks":
        exists = [0, int(rng.integers(5, frames - 3))]
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
    # the path from t0 back to frame 0
    back = {"position": [0.0, 0.0], "velocity": (-v).tolist(), "acceleration": a.tolist(), "turn": -w}
    start = reversed_equation(back | {"exists": [0, 0]}, t0 + 1)
    equation = {
        "position": (anchor + position(back, [t0])[0]).tolist(),
        "velocity": start["velocity"],
        "acceleration": a.tolist(),
        "turn": float(w),
        "radius": float(radius),
        "exists": exists,
    }
    at = position(equation, np.arange(frames))
    # distance of the centre from the nearest edge in radii; 0: half of the object is inside
    depth = np.minimum(at, size - at).min(1) / radius
    there = depth >= 0
    there[: exists[0]], there[exists[1] + 1 :] = False, False
    if len(spans(there)) != 1:
        return None
    first, last = spans(there)[0]
    # is it clearly outside at the beginning, at the end?
    outside = {"enters": (True, False), "leaves": (False, True), "passes": (True, True)}.get(
        case, (False, False)
    )
    clear = depth[first : last + 1].max() >= 0.5
    for k, out in zip(exists, outside, strict=True):
        clear &= depth[k] <= -0.4 if out else depth[k] >= 0.5
    clear &= any(outside) or depth[exists[0] : exists[1] + 1].min() >= 0.5
    clear &= (not outside[0] or first >= 3) and (not outside[1] or end - last >= 3) and last - first >= 4
    least = 2 * scale if still else 4 * scale
    if clear and nearest_direction(at[last] - at[first], least) == direction:
        return equation
    return None


def draw_scene(rng, cases, directions, size, frames):
    """A random scene, a dict, with an object of each case and direction. None if one could not be drawn."""
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
                look = {k: thing[k] for k in ("colour", "shape", "angle", "rgb")}
                objects.append(look | {"equation": equation})
                break
        else:
            return None
    order, grey, still = rng.permutation(n), [], {"acceleration": [0.0, 0.0], "turn": 0.0}
    for _ in range(rng.integers(3)):
        thing = random_object(rng, size, "red", 0.05, 0.1)
        velocity = rng.uniform(-1, 1, 2) * size / 48 * rng.integers(2)
        equation = {"position": [thing["cx"], thing["cy"]], "velocity": velocity.tolist()} | still
        equation |= {"radius": float(thing["radius"]), "exists": [0, frames - 1]}
        look = {"shape": thing["shape"], "angle": thing["angle"], "rgb": np.full(3, rng.uniform(40, 220))}
        grey.append(look | {"equation": equation})
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


def render(scene, backwards=False, painted=True):
    """(frames uint8 [T,S,S,3], mask uint8 [T,S,S], fraction of each object inside the image [n,T], visible fraction of that [n,T]).

    Only the window around an object is drawn. If not `painted`, frames is None.
    """
    canvas, frames, objects = scene["canvas"], scene["frames"], scene["objects"]
    t, size = np.arange(frames)[:: -1 if backwards else 1], len(canvas)
    image, mask = np.repeat(canvas[None], frames, 0), np.zeros((frames, size, size), np.uint8)
    alone, inside = np.zeros((len(objects), frames)), np.zeros((len(objects), frames))
    grey = [(0, o) for o in scene["grey"] if painted]
    for number, o in grey + [(k + 1, objects[k]) for k in scene["depth"]]:
        e, at = o["equation"], position(o["equation"], t)
        side = min(size, int(2 * e["radius"]) + 4)
        corner = np.clip(np.floor(at - e["radius"] - 1), 0, size - side).astype(int)
        (x, y), steps = (at - corner).T[:, :, None, None], np.arange(side)
        x, y = x.astype(np.float32), y.astype(np.float32)
        alpha = coverage(o["shape"], side, x, y, e["radius"], o["angle"])
        alpha = alpha * ((t >= e["exists"][0]) & (t <= e["exists"][1]))[:, None, None]
        rows, columns = corner[:, 1, None, None] + steps[:, None], corner[:, 0, None, None] + steps
        window = np.arange(frames)[:, None, None], rows, columns
        if painted:
            image[window] += alpha[..., None] * (np.asarray(o["rgb"], np.float32) - image[window])
        mask[window] = np.where(alpha >= 0.5, number, mask[window])
        if number:
            whole = coverage(o["shape"], side, side / 2, side / 2, e["radius"], o["angle"]).sum()
            alone[number - 1] = (alpha >= 0.5).sum((1, 2))
            inside[number - 1] = alpha.sum((1, 2)) / whole
    if scene["block"]:
        x0, y0, x1, y1 = (round(x) for x in scene["block"])
        image[:, y0:y1, x0:x1], mask[:, y0:y1, x0:x1] = scene["shade"], 0
    image = image + scene["noise"][:: -1 if backwards else 1]
    image = image.round().clip(0, 255).astype(np.uint8) if painted else None
    seen = np.stack([(mask == k + 1).sum((1, 2)) for k in range(len(objects))]) if objects else alone
    return image, mask, inside, seen / np.maximum(alone, 1)


def track_objects(scene, backwards, mask, inside, seen):
    """The truth about each object of a scene, a dict each: case, frames (spans), direction, speed (px per frame), equation."""
    frames, found, size = scene["frames"], [], mask.shape[1]
    names = [f"{o['colour']} {o['shape']}" for o in scene["objects"]]
    equations = [o["equation"] for o in scene["objects"]]
    if backwards:
        equations = [reversed_equation(e, frames) for e in equations]
    paths = [position(e, np.arange(frames)) for e in equations]
    present = inside >= 0.5
    for k, (name, e) in enumerate(zip(names, equations, strict=True)):
        there = spans(present[k]) or [[0, 0]]
        first, last, visible = there[0][0], there[-1][1], present[k] & (seen[k] >= 0.25)
        comes, goes = first > 0, last < frames - 1
        sudden = e["exists"] != [0, frames - 1]
        if sudden:
            why = "appears" if comes else "vanishes"
        elif comes:
            why = "passes" if goes else "enters"
        else:
            why = "leaves" if goes else "stays"
        path = paths[k][first : last + 1]
        speed = float(np.hypot(*np.diff(path, axis=0).T).mean()) if len(path) > 1 else 0.0
        near = [
            np.hypot(*(paths[k] - paths[j]).T)[present[k] & present[j]].min(initial=np.inf)
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
                "direction": nearest_direction(path[-1] - path[0], 2 * size / 48),
                "speed": speed,
                "curvature": float(e["turn"] / np.hypot(*e["velocity"])) if e["turn"] else 0.0,
                "crosses": [names[j] for j in range(len(names)) if j != k and near[j]],
                "equation": e,
            }
        )
    return found


def describe_track(track):
    """The sentences about one object, from a template."""
    first, last = track["present"][0][0], track["present"][-1][1]
    presence = {
        "stays": f"is there in frames {first} to {last}",
        "enters": f"enters in frame {first}",
        "leaves": f"leaves in frame {last}",
        "passes": f"enters in frame {first} and leaves in frame {last}",
        "appears": f"appears in frame {first}",
        "vanishes": f"vanishes in frame {last}",
    }[track["why"]]
    kind = "persistent" if track["persistent"] else "transient"
    moves = "is still" if track["direction"] == "still" else f"moves {track['direction']}"
    hidden = f"hidden in {spans_words(track['hidden'])}" if track["hidden"] else "never hidden"
    return f"The {track['object']} is {kind}: it {presence}. It {moves}. It is {hidden}."


def question_about(rng, kind, name):
    """One of the paraphrases of a question."""
    question = QUESTIONS[kind][0 if rng.random() < 0.5 else rng.integers(1, len(QUESTIONS[kind]))]
    either = str(rng.choice(["persistent or transient", "transient or persistent"]))
    return question.format(*(name, either)[: question.count("{}")])


def questions_of(tracks, numbers, absent, seed):
    """(turns, topics) of a clip. numbers: those of the objects in the unchanged scene, so that changed clips get the same words."""
    turns, topics = [], []
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
        for kind, answer in answers.items():
            turns.append([question_about(rng, kind, track["object"]), answer])
            topics.append(["whatif" if kind in ("backwards", "uncovered") else kind, track["object"]])
    rng = np.random.default_rng([*seed, 2])
    kinds = rng.permutation(["persistence", "frames", "direction", "hidden", "backwards", "uncovered"])
    turns += [[question_about(rng, str(kind), absent), f"there is no {absent}"] for kind in kinds[:2]]
    turns.append([question_about(rng, "count", ""), str(len(tracks))])
    return turns, [*topics, ["absent", absent], ["absent", absent], ["count", ""]]


def absent_name(rng, names):
    """The name of an object that is not there; half of the time with the colour or shape of one that is."""
    others = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in names]
    alike = [o for o in others if set(o.split()) & {w for n in names for w in n.split()}]
    return str(rng.choice(alike if rng.random() < 0.5 else others))


def trajectories(n, size, seed, frames=32, change=None, only=None):
    """Clips of one to three coloured objects, half of them persistent (in every frame, visible or hidden); a source each.

    change: the same scenes reversed, without the first object, or with the first two swapped. only: the split to generate.
    """
    for i in range(n):
        name = f"trajectories-{seed}-{i:05d}"
        if only and split_of(name) != only:
            continue
        rng = np.random.default_rng([seed, i])
        cases = sorted(
            (str(rng.choice(STEADY if rng.random() < 0.5 else PASSING)) for _ in range(rng.integers(1, 4))),
            key=lambda c: c == "crosses",
        )
        cases[0] = "stays" if cases[0] == "crosses" else cases[0]  # there is no object yet to cross
        directions = [
            "still"
            if case in ("stays", "blinks") and rng.random() < 0.15
            else str(rng.choice(list(DIRECTIONS)))
            for case in cases
        ]
        while not (scene := draw_scene(rng, cases, directions, size, frames)) or not shows_plan(scene):
            pass  # cases and directions stay, or those that fail often would become rare
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
            scene["objects"], numbers = scene["objects"][1:], numbers[1:]
            scene["depth"] = [k - 1 for k in scene["depth"] if k]
        image, mask, inside, seen = render(scene, change == "reversed")
        tracks = track_objects(scene, change == "reversed", mask, inside, seen)
        turns, topics = questions_of(tracks, numbers, absent, (seed, i))
        count = len(tracks)
        counted = "There is 1 coloured object." if count == 1 else f"There are {count} coloured objects."
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
            "text": " ".join([*map(describe_track, tracks), counted]),
            "turns": turns,
            "topics": topics,
        }


def shows_plan(scene):
    """Does the clip clearly show each case: hiding, crossing, coming and going, and every object for at least five frames?"""
    _, mask, inside, seen = render(scene, painted=False)
    if ((seen > 0.15) & (seen < 0.4) & (inside >= 0.5)).sum(1).max() > 4:  # long neither visible nor hidden
        return False
    for case, track in zip(scene["cases"], track_objects(scene, False, mask, inside, seen), strict=True):
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
            or track["persistent"] != (case in STEADY)
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
    """Boxes of objects 1 ... n in masks uint8 [T,S,S], float32 [T,n,4]; zeros for an invisible object."""
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


# ---------------------------------------------------------------- operations at a packing bench (OpenPack)

OPERATIONS = {
    100: "Picking",
    200: "Relocate Item Label",
    300: "Assemble Box",
    400: "Insert Items",
    500: "Close Box",
    600: "Attach Box Label",
    700: "Scan Label",
    # OpenPack (Yoshimura et al. 2024); 8100 (Null) is no operation
    800: "Attach Shipping Label",
    900: "Put on Back Table",
    1000: "Fill out Order",
}
NULL, JAPAN = 8100, timezone(timedelta(hours=9))
# seconds at speed 1
LASTS = {100: 9, 200: 7, 300: 9, 400: 10, 500: 6, 600: 5, 700: 4, 800: 6, 900: 6, 1000: 7, NULL: 2}
FRAMES_AT = "kinect/color-masked/frames"


def procedure(rng):
    """Ids of the operations on one box, in a noisy order. Picking, assembling, inserting, closing and putting back are never skipped."""
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


def session_plan(rng, speed, boxes):
    """One session: [{start, end (seconds), id, box, done: ids of earlier operations on this box}]."""
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


def draw_bench(look, segment, t, rng, size):
    """PIL image at t seconds of a session: a person at a bench with shelf, items, box, printer, back table.

    Attaching a label and scanning share a movement, as do assembling and closing; they differ in the object held, the box and the bench.
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
    carried = 17 * min(1, along * 1.4)
    body, left, right, held = {  # x of the body, both hands, and the object in the right one
        100: (15, (12, 38), (5 + 10 * swing, 22 + 15 * swing), "item" if along * 10 % 1 < 0.6 else None),
        200: (19, (14, 38), (15 + 7 * swing, 37 - 4 * swing), "label"),
        300: (33, (27 - 5 * swing, 36 - 3 * swing), (39 + 5 * swing, 36 - 3 * swing), None),
        400: (25, (21, 37), (15 + 17 * swing, 38 - 8 * np.sin(np.pi * swing)), "item"),
        500: (33, (27 - 5 * swing, 34 - 3 * swing), (39 + 5 * swing, 34 - 3 * swing), None),
        600: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "label"),
        700: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "scanner"),
        800: (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing)), "label"),
        900: (36 + carried, (32 + carried, 33), (43 + carried, 33), None),
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

    block(-20, 46, 84, 84, look["ground"])
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
    colours = {"label": (250, 250, 250), "scanner": (30, 30, 35), "pen": (30, 60, 200)}
    colours["item"] = look["items"][int(along * 10) % 3]
    if held:
        block(hx - 2, hy - 1, hx + 1, hy + 2.5, colours[held])
    if held == "scanner" and swing > 0.7:
        block(hx - 6, hy + 2, hx - 2, hy + 2.6, (230, 40, 40))
    image = np.asarray(image.reduce(fine), np.float32) * (1 + 0.03 * rng.normal()) + rng.normal(
        0, 4, (size, size, 1)
    )
    return Image.fromarray(image.round().clip(0, 255).astype(np.uint8))


def draw_operations(out, size, seed, subjects=10, sessions=4, boxes=2, rate=2.0):
    """Write a generated set in the layout of OpenPack: JPEGs at `rate` per second, annotations and, last, made.yaml."""
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
                "ground": (wall - 60,) * 3,
                "bench": tuple((np.array([200, 195, 185]) * rng.uniform(0.7, 1)).astype(int).tolist()),
            }
            work, folder = session_plan(rng, look["speed"], boxes), out / user / FRAMES_AT / session
            operations, by_second, box, second = [], [], None, 0
            for part in work:
                times = [day + timedelta(seconds=round(part[key], 3)) for key in ("start", "end")]
                times = [x.isoformat(timespec="milliseconds") for x in times]
                what = [user, session, part["box"], part["id"]]
                name = OPERATIONS.get(part["id"], "Null")
                operations.append([str(uuid.UUID(bytes=rng.bytes(16))), *what, name, *times, ""])
                while second < part["end"]:
                    by_second.append([1000 * (int(day.timestamp()) + second), *what])
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
                name = f"{when:%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
                path = folder / when.strftime("%Y/%m/%d/%H/%M") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                draw_bench(look, part, t, rng, size).save(path, quality=90)
            for name, head, rows in (
                ("openpack-operations", "uuid,user,session,box,id,operation,start,end,actions", operations),
                ("openpack-operations-1hz", "unixtime,user,session,box,id", by_second),
            ):
                save_text(
                    out / user / "annotation" / name / f"{session}.csv",
                    "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n",
                )
    result = {"stage": "data", "source_kind": "operations", "data": "synthetic", "seed": seed, "size": size}
    result |= {"subjects": subjects, "sessions": subjects * sessions, "rate": rate}
    save_yaml(out / "made.yaml", result)
    return result
