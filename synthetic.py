"""Generated images of shapes, clips of one moving shape, a packing bench, and the words about what is drawn.

An item depends on the seed and on its number alone. Positions are in pixels from the top left corner.
"""

import uuid
from datetime import datetime, timedelta, timezone

import numpy as np
import torch
from tqdm import tqdm

from common import save_text, save_yaml

COLOURS = {"red": (214, 40, 40), "green": (40, 160, 60), "blue": (45, 80, 210)}
COLOURS |= {"yellow": (235, 205, 50), "purple": (140, 50, 170), "cyan": (60, 200, 210)}
# number of points, inner / outer radius
SHAPES = {"circle": None, "triangle": (3, 0.5), "square": (4, 0.5**0.5), "star": (5, 0.45)}
DIRECTIONS = {"right": (1, 0), "down right": (1, 1), "down": (0, 1), "down left": (-1, 1)}
DIRECTIONS |= {"left": (-1, 0), "up left": (-1, -1), "up": (0, -1), "up right": (1, -1)}


# ---------------------------------------------------------------- drawing


def coverage(shape, size, cx, cy, radius, angle):
    """Fraction of each pixel that a shape covers, float [size, size]; of several, with cx and cy [T, 1, 1].

    angle: radians, clockwise.
    """
    y, x = np.mgrid[:size, :size].astype(np.float32) + 0.5
    dx, dy = x - cx, y - cy
    edge = radius  # of a star-convex shape: inside is r <= edge(theta)
    if SHAPES[shape]:
        points, inner = SHAPES[shape]
        half = np.pi / points
        # 0 at a point, `half` at a notch
        theta = np.abs((np.arctan2(dx, -dy) - angle + half) % (2 * half) - half)
        edge = radius * inner * np.sin(half) / (np.sin(theta) + inner * np.sin(half - theta))
    return np.clip(edge - np.hypot(dx, dy) + 0.5, 0, 1)


def background(rng, size):
    """A muted gradient with low-frequency texture, float32 [size, size, 3] in 0..255."""
    a, b = (rng.uniform(60, 200) + rng.uniform(-25, 25, 3) for _ in range(2))
    angle, contrast = rng.uniform(0, 2 * np.pi), rng.uniform(0, 22)
    y, x = np.mgrid[:size, :size] / size - 0.5
    ramp = x * np.cos(angle) + y * np.sin(angle) + 0.5
    cells = int(rng.integers(3, 8))
    grid = torch.from_numpy(rng.uniform(-1, 1, (1, 1, cells, cells)).astype(np.float32))
    noise = torch.nn.functional.interpolate(grid, (size, size), mode="bicubic", align_corners=False)
    texture = contrast * noise[0, 0, :, :, None].numpy().clip(-1, 1)
    return (a + (b - a) * ramp[..., None] + texture).astype(np.float32)


def random_object(rng, size, colour, low, high):
    """An object of radius `low`..`high` (fractions of the side), entirely inside the image."""
    radius, shape = size * rng.uniform(low, high), str(rng.choice(list(SHAPES)))
    thing = {"name": f"{colour} {shape}", "colour": colour, "shape": shape, "radius": radius}
    thing |= {axis: rng.uniform(radius, size - radius) for axis in ("cx", "cy")}
    thing |= {"angle": rng.uniform(-0.5, 0.5), "texture": rng.choice([0, 0, 0.15, 0.3])}
    rgb = np.asarray(COLOURS[colour]) * rng.uniform(0.85, 1.1) + rng.uniform(-12, 12, 3)
    return thing | {"rgb": np.clip(rgb, 0, 255)}


def draw(objects, canvas):
    """Paint objects on a canvas, float32 [S, S, 3], back to front.

    Returns the image, uint8 [S, S, 3], the mask, uint8 [S, S], with the number of the visible object from 1,
    and the boxes xyxy of what is visible, float32 [n, 4].
    """
    size = len(canvas)
    image = canvas.copy()
    mask = np.zeros((size, size), np.uint8)
    y, x = np.mgrid[:size, :size]
    for number, thing in enumerate(objects, 1):
        radius, angle = thing["radius"], thing["angle"]
        alpha = coverage(thing["shape"], size, thing["cx"], thing["cy"], radius, angle)
        wave = np.sin((x * np.cos(angle + 1) + y * np.sin(angle + 1)) * 2 * np.pi / (radius * 0.7))
        fill = np.asarray(thing["rgb"], np.float32) * (1 - thing["texture"] * (wave[..., None] > 0))
        image += alpha[..., None] * (fill - image)
        mask[alpha >= 0.5] = number
    image = image.round().clip(0, 255).astype(np.uint8)
    return image, mask, boxes_of(mask[None], len(objects))[0]


def boxes_of(masks, n):
    """Boxes xyxy of objects 1 ... n in masks [T, S, S], float32 [T, n, 4]; zeros for an invisible object."""
    boxes = np.zeros((len(masks), n, 4), np.float32)
    for t, mask in enumerate(masks):
        for k in range(n):
            y, x = np.nonzero(mask == k + 1)
            if len(y):
                boxes[t, k] = x.min(), y.min(), x.max() + 1, y.max() + 1
    return boxes


def item_of(name, source, objects, frames, mask, boxes):
    """An item of a data set: frames uint8 [T, S, S, 3], mask uint8 [(T,) S, S], boxes float32 [(T,) n, 4]."""
    size = mask.shape[-1]
    item = {"id": name, "source": source, "width": size, "height": size}
    arrays = {"frames": frames, "mask": mask, "boxes": boxes}
    item |= {k: torch.from_numpy(x.copy()) for k, x in arrays.items()}  # a flipped view is not accepted
    return item | {"labels": [o["shape"] for o in objects], "names": [o["name"] for o in objects]}


# ---------------------------------------------------------------- images, and clips of one moving shape


def place_word(box, size):
    """The cell of a 3 x 3 grid that holds the centre of a box, in words."""
    column, row = (min(int((box[k] + box[k + 2]) / 2 / size * 3), 2) for k in (0, 1))
    words = ("top", "", "bottom")[row], ("left", "", "right")[column]
    return " ".join(filter(None, words)) or "middle"


def still_scene(rng, size, canvas):
    """A subject and up to three smaller objects, more than half of each visible.

    Returns the objects, what `draw` makes of them, and the visible fraction of each.
    """
    radii = (0.17, 0.27), (0.10, 0.15), (0.10, 0.15), (0.10, 0.15)
    while True:
        colours = rng.permutation(list(COLOURS))[: rng.integers(1, 5)]
        objects = [random_object(rng, size, str(c), *r) for c, r in zip(colours, radii, strict=False)]
        drawn = draw(objects, canvas)
        alone = [draw([thing], canvas)[1].sum() for thing in objects]
        visible = [float((drawn[1] == k).sum() / area) for k, area in enumerate(alone, 1)]
        if min(visible) > 0.5:
            return objects, drawn, visible


def shapes(n, size, seed):
    """Images of 1-4 coloured shapes with overlaps on varied backgrounds; every image is its own source."""
    for i in range(n):
        name = f"shapes-{seed}-{i:05d}"
        rng = np.random.default_rng([seed, i])
        objects, drawn, visible = still_scene(rng, size, background(rng, size))
        image, mask, boxes = drawn
        item = item_of(name, name, objects, image[None], mask, boxes)
        text = "a " + " and a ".join(sorted(item["names"]))  # sorted: the order does not reveal the place
        turns = [["What is in the picture?", text]]
        for thing, box in zip(objects, boxes, strict=True):
            turns.append([f"What shape is the {thing['colour']} object?", thing["shape"]])
            turns.append([f"Where is the {thing['name']}?", place_word(box, size)])
        yield item | {"visible": visible, "text": text, "turns": turns}


def nearest_direction(displacement, least):
    """The nearest of DIRECTIONS, or "still" below `least` pixels."""
    if np.hypot(*displacement) < least:
        return "still"
    return max(DIRECTIONS, key=lambda d: np.dot(displacement, DIRECTIONS[d]) / np.hypot(*DIRECTIONS[d]))


def moving_scene(rng, size, frames, still, with_camera):
    """A random scene in which the last object moves.

    Its position at half time does not depend on the direction, so a single frame reveals little about it.
    Returns the objects, what `draw` makes of each frame, and a dict: step, a vector of DIRECTIONS; speed and
    camera, in pixels a frame.
    """
    colours = rng.permutation(list(COLOURS))
    subject = random_object(rng, size, str(colours[0]), 0.12, 0.18)
    others = [random_object(rng, size, str(c), 0.06, 0.09) for c in colours[1 : rng.integers(1, 3)]]
    step, speed = np.zeros(2), 0.0
    if not still:
        step = np.array(DIRECTIONS[str(rng.choice(list(DIRECTIONS)))], float)
        speed = rng.uniform(0.6, 1.4) * size / 64
    velocity = step / max(np.linalg.norm(step), 1) * speed
    middle = rng.uniform(0.3, 0.7, 2) * size
    camera = rng.integers(-1, 2, 2) if with_camera else np.zeros(2, int)
    wide = background(rng, size + 2 * frames)
    drawn = []
    for t in range(frames):
        subject["cx"], subject["cy"] = middle + velocity * (t - (frames - 1) / 2)
        left, top = frames - camera * (t - frames // 2)
        drawn.append(draw([*others, subject], wide[top : top + size, left : left + size]))
    return [*others, subject], drawn, {"step": step, "speed": speed, "camera": camera}


def moving(n, size, seed, frames=17):
    """Clips of one moving shape: 8 directions, speeds, every tenth pair still, a third under camera motion.

    Every scene occurs twice under one source, the second time mirrored or reversed.
    """
    # axes of [T, S, S] to flip, signs of a vector then
    flips = {"original": ((), (1, 1)), "mirrored": (2, (-1, 1)), "reversed": (0, (-1, -1))}
    for i in range(n):
        number, twin = divmod(i, 2)
        rng = np.random.default_rng([seed, number])
        objects, drawn, motion = moving_scene(rng, size, frames, number % 10 == 0, number % 3 == 0)
        kind = "original"
        if twin:
            kind = "mirrored" if number % 2 else "reversed"
        axis, sign = flips[kind]
        image = np.flip(np.stack([frame for frame, _, _ in drawn]), axis)
        mask = np.flip(np.stack([numbers for _, numbers, _ in drawn]), axis)
        name, source = f"moving-{seed}-{i:05d}", f"moving-{seed}-{number:05d}"
        item = item_of(name, source, objects, image, mask, boxes_of(mask, len(objects)))
        direction = nearest_direction(motion["step"] * sign, 0.5)
        subject = item["names"][-1]
        item |= {"kind": kind, "direction": direction, "action": direction, "speed": float(motion["speed"])}
        item |= {"camera": (motion["camera"] * sign).tolist(), "text": f"a {subject}"}
        yield item | {"turns": [[f"Which way does the {subject} move?", direction]]}


# ---------------------------------------------------------------- words about trajectories

UNKNOWN = "the clip does not show that"
OPPOSITE = {"right": "left", "down right": "up left", "down": "up", "down left": "up right"}
OPPOSITE |= {b: a for a, b in OPPOSITE.items()} | {"still": "still"}
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


def spans(there):
    """[first, last] (inclusive) of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(there, int), [0]])))
    return [[int(a), int(b) - 1] for a, b in edges.reshape(-1, 2)]


def spans_words(found):
    """[[0, 9], [14, 31]] -> "frames 0 to 9 and 14 to 31"; [[7, 7]] -> "frame 7"."""
    words = [f"{a} to {b}" if b > a else f"{a}" for a, b in found]
    one = len(found) == 1 and found[0][0] == found[0][1]
    return ("frame " if one else "frames ") + " and ".join(words)


def describe_track(track):
    """The sentences about one object, from a template."""
    why, first, last = track["why"], track["present"][0][0], track["present"][-1][1]
    presence = f"{why} in frame {first if why in ('enters', 'appears') else last}"
    if why == "stays":
        presence = f"is there in frames {first} to {last}"
    elif why == "passes":
        presence = f"enters in frame {first} and leaves in frame {last}"
    kind = "persistent" if track["persistent"] else "transient"
    moves = "is still" if track["direction"] == "still" else f"moves {track['direction']}"
    hidden = f"hidden in {spans_words(track['hidden'])}" if track["hidden"] else "never hidden"
    return f"The {track['object']} is {kind}: it {presence}. It {moves}. It is {hidden}."


def question_about(rng, kind, name):
    """One of the paraphrases of a question."""
    question = QUESTIONS[kind][0 if rng.random() < 0.5 else rng.integers(1, len(QUESTIONS[kind]))]
    either = str(rng.choice(["persistent or transient", "transient or persistent"]))
    return question.format(*(name, either)[: question.count("{}")])


# ---------------------------------------------------------------- operations at a packing bench

# ids and names as in OpenPack (Yoshimura et al. 2024)
OPERATIONS = {100: "Picking", 200: "Relocate Item Label", 300: "Assemble Box", 400: "Insert Items"}
OPERATIONS |= {500: "Close Box", 600: "Attach Box Label", 700: "Scan Label", 800: "Attach Shipping Label"}
OPERATIONS |= {900: "Put on Back Table", 1000: "Fill out Order"}
NULL = 8100  # no operation
SECONDS = {100: 9, 200: 7, 300: 9, 400: 10, 500: 6, 600: 5, 700: 4, 800: 6, 900: 6, 1000: 7, NULL: 2}
HELD = {200: "label", 400: "item", 600: "label", 700: "scanner", 800: "label", 1000: "pen"}
HELD_COLOURS = {"label": (250, 250, 250), "scanner": (30, 30, 35), "pen": (30, 60, 200)}
JAPAN = timezone(timedelta(hours=9))
FRAMES_AT = "kinect/color-masked/frames"
TABLES = {"openpack-operations": "uuid,user,session,box,id,operation,start,end,actions"}
TABLES |= {"openpack-operations-1hz": "unixtime,user,session,box,id"}


def procedure(rng):
    """Ids of the operations on one box, in a noisy order. The five main operations are never skipped."""
    order = [o for o in OPERATIONS if o in (100, 300, 400, 500, 900) or rng.random() > 0.1]
    for a, b in ((200, 300), (600, 700), (700, 800), (900, 1000)):
        k = order.index(a) if a in order else len(order)
        if order[k + 1 : k + 2] == [b] and rng.random() < 0.25:
            order[k : k + 2] = b, a
    for after, again in ((200, [100]), (400, [100, 400]), (800, [700])):
        if after in order and rng.random() < 0.2:
            k = order.index(after) + 1
            order[k:k] = again
    return order


def session_plan(rng, speed, boxes):
    """One session: [{start, end (seconds), id, box, done: ids of earlier operations on this box}]."""
    plan, t = [], 0.0
    for box in range(1, boxes + 1):
        done = []
        for o in procedure(rng):
            for k in [NULL, o] if rng.random() < 0.1 else [o]:
                end = t + SECONDS[k] / speed * rng.lognormal(0, 0.25)
                plan.append({"start": t, "end": end, "id": k, "box": box, "done": tuple(done)})
                t = end
            done.append(o)
    return plan


def part_at(plan, t):
    """The part of a session at t seconds."""
    return next(part for part in plan if t < part["end"])


def pose(o, look, along, swing, t):
    """x of the body, and (x, y) of both hands. Attaching a label and scanning share a movement."""
    x, idle = 17 * min(1, along * 1.4), look["idle"]
    y = (36 if o == 300 else 34) - 3 * swing
    poses = {100: (15, (12, 38), (5 + 10 * swing, 22 + 15 * swing))}
    poses[200] = 19, (14, 38), (15 + 7 * swing, 37 - 4 * swing)
    poses[300] = poses[500] = 33, (27 - 5 * swing, y), (39 + 5 * swing, y)
    poses[400] = 25, (21, 37), (15 + 17 * swing, 38 - 8 * np.sin(np.pi * swing))
    poses[900] = 36 + x, (32 + x, 33), (43 + x, 33)
    poses[1000] = 45, (43, 38), (48 + 1.5 * np.sin(9 * t), 37 + swing)
    poses[NULL] = idle, (idle - 6, 34), (idle + 6, 34)
    return poses.get(o, (37, (30, 35), (46 - 11 * swing, 36 - 4 * np.sin(np.pi * swing))))


def person_pieces(look, body, left):
    """The room and a person behind a bench with a printer; shelf on the left, back table on the right."""
    pieces = [("block", (-20, 46, 84, 84), look["ground"]), ("block", (0, 12, 8, 46), (90, 80, 70))]
    pieces += [("block", (1, 15 + 8 * k, 6, 19 + 8 * k), look["items"][k % 3]) for k in range(4)]
    pieces.append(("block", (54, 40, 70, 42), (120, 115, 110)))
    pieces.append(("arm", (body - 4, 24, *left), look["clothes"]))
    pieces.append(("body", (body - 6, 21, body + 6, 46), look["clothes"]))
    pieces.append(("disc", (body - 4.5, 11, body + 4.5, 20.5), look["skin"]))
    pieces.append(("block", (9, 41, 52, 48), look["bench"]))
    return [*pieces, ("block", (46, 37, 51, 41), (50, 50, 60)), ("block", (47, 39, 50, 41), (250, 250, 250))]


def box_pieces(o, done, along, x, y):
    """The box with its flaps and labels; (x, y) is its lower left corner."""
    top = y - 9 * (1 if 300 in done else along)
    flap = top - 4 * (1 - along if o == 500 else 1)
    pieces = [("block", (x, top, x + 11, y), (176, 130, 80))]
    if 500 in done:
        pieces.append(("block", (x, top, x + 11, top + 1.2), (140, 98, 55)))
    else:
        pieces += [("flap", (x + a, top, x + b, flap), (150, 105, 60)) for a, b in ((0, -2), (11, 13))]
    if 600 in done:
        pieces.append(("block", (x + 1.5, y - 6, x + 4.5, y - 3.5), (245, 245, 245)))
    if 800 in done:
        pieces.append(("block", (x + 6, y - 6, x + 9.5, y - 2.5), (245, 245, 245)))
    return pieces


def held_pieces(look, o, along, swing, x, y):
    """What the hand at (x, y) holds, and the beam of the scanner."""
    held = "item" if o == 100 and along * 10 % 1 < 0.6 else HELD.get(o)
    if held is None:
        return []
    colours = HELD_COLOURS | {"item": look["items"][int(along * 10) % 3]}
    pieces = [("block", (x - 2, y - 1, x + 1, y + 2.5), colours[held])]
    if held == "scanner" and swing > 0.7:
        pieces.append(("block", (x - 6, y + 2, x - 2, y + 2.6), (230, 40, 40)))
    return pieces


def bench_pieces(look, part, t):
    """What is seen at t seconds of a session, back to front: [(kind, corners in 1/64 of a side, colour)]."""
    o, done = part["id"], part["done"]
    along = (t - part["start"]) / (part["end"] - part["start"])
    swing = 0.5 - 0.5 * np.cos(2 * np.pi * (t - part["start"]) * look["speed"] / 2.6)  # there and back
    body, left, right = pose(o, look, along, swing, t)
    pieces = person_pieces(look, body, left)
    items = 3 * (done.count(100) - done.count(400)) + 3 * along * ((o == 100) - (o == 400))
    for k in range(int(np.ceil(np.clip(items, 0, 6)))):
        pieces.append(("block", (11 + 2.6 * k, 38, 13 + 2.6 * k, 41), look["items"][k % 3]))
    corner = (body + 1, 37) if o == 900 else (28 + look["box"], 41)
    if 900 in done or o == 900 and along > 0.7:
        corner = 57, 40
    if 300 in done or o == 300 and along > 0:
        pieces += box_pieces(o, done, along, *corner)
    pieces.append(("arm", (body + 4, 24, *right), look["clothes"]))
    pieces += [("disc", (x - 1.8, y - 1.8, x + 1.8, y + 1.8), look["skin"]) for x, y in (left, right)]
    return pieces + held_pieces(look, o, along, swing, *right)


def draw_bench(look, part, t, rng, size):
    """PIL image at t seconds of a session, drawn four times as large and reduced, with noise."""
    from PIL import Image, ImageDraw

    side = 4 * size
    zoom = side / 64 * look["zoom"]
    image = Image.new("RGB", (side, side), look["wall"])
    pen = ImageDraw.Draw(image)
    shifts = [shift * side / 64 for shift in look["at"] * 2]
    for kind, corners, colour in bench_pieces(look, part, t):
        at = [float((v - 32) * zoom + side / 2 + d) for v, d in zip(corners, shifts, strict=True)]
        if kind in ("arm", "flap"):
            pen.line(at, fill=colour, width=int((3 if kind == "arm" else 1) * zoom))
        elif kind == "disc":
            pen.ellipse(at, fill=colour)
        elif kind == "body":
            pen.rounded_rectangle(at, radius=3 * zoom, fill=colour)
        elif corners[0] < corners[2] and corners[1] < corners[3]:
            pen.rectangle(at, fill=colour)
    image = np.asarray(image.reduce(4), np.float32) * (1 + 0.03 * rng.normal())
    image = image + rng.normal(0, 4, (size, size, 1))
    return Image.fromarray(image.round().clip(0, 255).astype(np.uint8))


def write_tables(rng, out, user, session, plan, begin):
    """The annotation of a session: its operations, and its operation at each second."""
    operations, by_second = [], []
    for part in plan:
        what = [user, session, part["box"], part["id"], OPERATIONS.get(part["id"], "Null")]
        times = [begin + timedelta(seconds=round(part[key], 3)) for key in ("start", "end")]
        times = [time.isoformat(timespec="milliseconds") for time in times]
        operations.append([str(uuid.UUID(bytes=rng.bytes(16))), *what, *times, ""])
    for second in range(int(np.ceil(plan[-1]["end"]))):
        part = part_at(plan, second)
        time = 1000 * (int(begin.timestamp()) + second)
        by_second.append([time, user, session, part["box"], part["id"]])
    for (name, head), rows in zip(TABLES.items(), (operations, by_second), strict=True):
        lines = [head, *(",".join(map(str, row)) for row in rows), ""]
        save_text(out / user / "annotation" / name / f"{session}.csv", "\n".join(lines))


def write_frames(rng, folder, plan, begin, look, size, rate):
    """The frames of a session, `rate` a second, as JPEGs named after their time. Items vary by box."""
    box = None
    for tick in range(int(plan[-1]["end"] * rate) + 1):
        part = part_at(plan, tick / rate)
        if part["box"] != box:
            box = part["box"]
            look["items"] = [tuple(colour) for colour in rng.integers(40, 230, (3, 3)).tolist()]
            look |= {"box": float(rng.uniform(-1.5, 1.5)), "idle": float(rng.uniform(15, 50))}
        when = begin + timedelta(seconds=tick / rate)
        path = folder / f"{when:%Y/%m/%d/%H/%M/%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_bench(look, part, tick / rate, rng, size).save(path, quality=90)


def draw_operations(out, size, seed, subjects=10, sessions=4, boxes=2, rate=2.0):
    """Write a set in the layout of OpenPack: JPEGs at `rate` per second, annotations and, last, made.yaml."""
    for s in tqdm(range(subjects), desc="operations", unit="subject"):
        rng = np.random.default_rng([seed, s])
        user, look = f"U{101 + s:04d}", {"speed": float(rng.uniform(0.75, 1.35))}
        look["clothes"] = tuple(rng.integers(30, 220, 3).tolist())
        look["skin"] = tuple((np.array([225, 180, 150]) * rng.uniform(0.45, 1)).astype(int).tolist())
        look |= {"at": rng.uniform(-2.5, 2.5, 2).tolist(), "zoom": float(rng.uniform(0.92, 1.06))}
        for k in range(sessions):
            session = f"S{100 * (k + 1):04d}"
            minute, second = int(rng.integers(60)), int(rng.integers(60))
            begin = datetime(2021, 10, 1 + s, 9 + k, minute, second, tzinfo=JAPAN)
            wall = int(rng.integers(110, 190))
            look |= {"wall": (wall, wall, wall - 10), "ground": (wall - 60,) * 3}
            look["bench"] = tuple((np.array([200, 195, 185]) * rng.uniform(0.7, 1)).astype(int).tolist())
            plan = session_plan(rng, look["speed"], boxes)
            write_tables(rng, out, user, session, plan, begin)
            write_frames(rng, out / user / FRAMES_AT / session, plan, begin, look, size, rate)
    result = {"stage": "data", "source_kind": "operations", "data": "synthetic", "seed": seed, "size": size}
    result |= {"subjects": subjects, "sessions": subjects * sessions, "rate": rate}
    save_yaml(out / "made.yaml", result)
    return result
