"""Generated clips of objects on trajectories: equations of motion, scenes, and the truth about each object.

An object is persistent if it is in every frame, visible or hidden. Positions are in pixels.
"""

import numpy as np

import synthetic
from common import split_of
from synthetic import COLOURS, DIRECTIONS, coverage, nearest_direction, spans, spans_words

CHANGES = ("reversed", "deleted", "swapped")
# cases of motion; an object that `blinks` appears or vanishes inside the image
STEADY = ("stays", "hidden", "hidden", "crosses")
PASSING = ("enters", "leaves", "passes", "blinks")
# pixels per frame at 48 px
SPEEDS = {"stays": (0.25, 1.2), "hidden": (0.4, 1.5), "crosses": (0.3, 1.2), "blinks": (0.3, 1.5)}
SPEEDS |= {"enters": (0.8, 2), "leaves": (0.8, 2), "passes": (1.6, 4)}


# ---------------------------------------------------------------- equations of motion


def position(equation, t):
    """Position at frames t [T], float64 [T, 2]: p + v t + a t^2 / 2, or an arc of w radians per frame."""
    t = np.asarray(t, float)[:, None]
    v, w = np.asarray(equation["velocity"]), equation["turn"]
    if not w:
        return equation["position"] + v * t + np.asarray(equation["acceleration"]) * t**2 / 2
    return equation["position"] + (v * np.sin(w * t) + v[::-1] * (-1, 1) * (1 - np.cos(w * t))) / w


def reversed_equation(equation, frames):
    """The equation of the reversed motion: its position at t is that of `equation` at frames - 1 - t."""
    end = frames - 1
    v, w = np.asarray(equation["velocity"]), equation["turn"]
    last = v + np.asarray(equation["acceleration"]) * end
    if w:
        last = v * np.cos(w * end) + v[::-1] * (-1, 1) * np.sin(w * end)
    start = position(equation, [end])[0].tolist()
    exists = [end - t for t in equation["exists"][::-1]]
    return equation | {"position": start, "velocity": (-last).tolist(), "turn": -w, "exists": exists}


def random_motion(rng, case, direction, size, frames):
    """(velocity, acceleration, turn) of a line, an accelerated line or an arc in about a direction."""
    speed, angle = 0.0, 0.0
    if direction != "still":
        speed = size / 48 * rng.uniform(*SPEEDS[case])
        angle = np.arctan2(*DIRECTIONS[direction][::-1]) + np.radians(rng.uniform(-20, 20))
    velocity = speed * np.array([np.cos(angle), np.sin(angle)])
    kind = rng.random()
    acceleration = velocity * (rng.uniform(-1.5, 1.5) / frames if kind < 0.25 else 0)
    turn = 0.0
    if kind > 0.75 and direction != "still":
        turn = float(rng.uniform(0.5, 2.5) * rng.choice([-1, 1]) / frames)
    return velocity, acceleration, turn


def random_equation(rng, case, direction, radius, size, frames, block, other):
    """A random motion of a case in about a direction; it may still fail to show them.

    block: x0, y0, x1, y1 of what hides the case `hidden`; other: the equation that the case `crosses` meets.
    """
    exists = [0, frames - 1]
    if case == "blinks" and rng.random() < 0.5:
        exists[0] = int(rng.integers(3, frames - 5))
    elif case == "blinks":
        exists[1] = int(rng.integers(5, frames - 3))
    velocity, acceleration, turn = random_motion(rng, case, direction, size, frames)
    # at time t, the object is at `place`
    times = {"enters": rng.integers(3, frames - 5), "leaves": rng.integers(5, frames - 3)}
    t = times.get(case, rng.uniform(*exists))
    place = rng.uniform(0, size, 2)
    if case == "hidden":
        place = rng.uniform(block[:2], block[2:])
    elif case == "crosses":
        place = position(other, [t])[0] + rng.uniform(-2, 2, 2) * (size / 48)
    elif case in times:
        place[rng.integers(2)] = size * rng.integers(2)  # on an edge
    # the motion from there back to frame 0
    back = {"position": [0.0, 0.0], "velocity": -velocity, "acceleration": acceleration.tolist()}
    back |= {"turn": -turn, "radius": float(radius), "exists": exists}
    start = (place + position(back, [t])[0]).tolist()
    return reversed_equation(back, t + 1) | {"position": start, "exists": exists}


def shows_motion(equation, case, direction, size, frames):
    """Does a path show its case and direction, clearly inside and outside the image where it should be?"""
    at = position(equation, np.arange(frames))
    # distance of the centre from the nearest edge in radii; 0: half of the object is inside
    depth = np.minimum(at, size - at).min(1) / equation["radius"]
    begin, end = equation["exists"]
    inside = spans(depth[begin : end + 1] >= 0)
    if len(inside) != 1:
        return False
    first, last = (begin + t for t in inside[0])
    comes, goes = case in ("enters", "passes"), case in ("leaves", "passes")
    clear = last - first >= 4 and depth[first : last + 1].max() >= 0.5
    clear &= depth[0] <= -0.4 and first >= 3 if comes else depth[begin] >= 0.5
    clear &= depth[-1] <= -0.4 and last < frames - 3 if goes else depth[end] >= 0.5
    clear &= comes or goes or depth[begin : end + 1].min() >= 0.5
    least = (2 if direction == "still" else 4) * size / 48
    return clear and nearest_direction(at[last] - at[first], least) == direction


# ---------------------------------------------------------------- scenes


def moving_object(rng, case, direction, colour, size, frames, block, others):
    """A random object whose motion shows its case and direction. None if 300 motions do not."""
    thing = synthetic.random_object(rng, size, colour, 0.085, 0.13)
    for _ in range(300):
        other = others[rng.integers(len(others))]["equation"] if others else None
        equation = random_equation(rng, case, direction, thing["radius"], size, frames, block, other)
        if shows_motion(equation, case, direction, size, frames):
            return thing | {"equation": equation, "case": case}
    return None


def grey_object(rng, size, frames):
    """A small grey object behind the others; every second one moves."""
    thing = synthetic.random_object(rng, size, "red", 0.05, 0.1)
    velocity = rng.uniform(-1, 1, 2) * size / 48 * rng.integers(2)
    equation = {"position": [thing["cx"], thing["cy"]], "velocity": velocity, "acceleration": 0.0}
    equation |= {"turn": 0.0, "radius": thing["radius"], "exists": [0, frames - 1]}
    return thing | {"rgb": np.full(3, rng.uniform(40, 220)), "equation": equation}


def random_scene(rng, cases, directions, size, frames):
    """A random scene with an object of each case and direction, a dict. None if one could not be drawn.

    depth: numbers of the objects, back to front. block: None, or the index in [S, S] of what is before them.
    """
    colours = rng.permutation(list(COLOURS))
    block = None
    if "hidden" in cases or rng.random() < 0.4:
        width, height = size * rng.uniform(0.24, 0.42), size * rng.uniform(0.45, 0.95)
        x, y = rng.uniform(0.05 * size, 0.95 * size - width), rng.uniform(0, size - height)
        block = x, y, x + width, y + height
    objects = []
    for case, direction, colour in zip(cases, directions, colours, strict=False):
        thing = moving_object(rng, case, direction, str(colour), size, frames, block, objects)
        if thing is None:
            return None
        objects.append(thing)
    scene = {"objects": [objects[k] for k in rng.permutation(len(cases))]}
    scene["grey"] = [grey_object(rng, size, frames) for _ in range(rng.integers(3))]
    scene["canvas"] = synthetic.background(rng, size)
    scene["shade"] = rng.choice([-1, 1]) * rng.uniform(35, 60) + scene["canvas"].mean()
    scene["block"] = block and tuple(slice(round(block[k]), round(block[k + 2])) for k in (1, 0))
    scene["depth"] = rng.permutation(len(cases)).tolist()
    scene["noise"] = rng.normal(0, rng.uniform(1, 6), (frames, size, size, 1)).astype(np.float32)
    return scene


def windowed(thing, frames, size):
    """Coverage of an object, [T, s, s], in a window around it, and the index of that window in [T, S, S]."""
    equation, t = thing["equation"], np.arange(frames)
    radius, (begin, end) = equation["radius"], equation["exists"]
    at = position(equation, t)
    side = min(size, int(2 * radius) + 4)
    corner = np.clip(np.floor(at - radius - 1), 0, size - side).astype(int)
    x, y = (at - corner).astype(np.float32).T[:, :, None, None]
    alpha = coverage(thing["shape"], side, x, y, radius, thing["angle"])
    alpha = alpha * ((t >= begin) & (t <= end))[:, None, None]
    columns, rows = corner.T[:, :, None] + np.arange(side)
    return alpha, (t[:, None, None], rows[:, :, None], columns[:, None])


def paint(scene):
    """The frames of a scene, uint8 [T, S, S, 3]."""
    image = np.repeat(scene["canvas"][None], len(scene["noise"]), 0)
    for thing in scene["grey"] + [scene["objects"][k] for k in scene["depth"]]:
        alpha, window = windowed(thing, *image.shape[:2])
        image[window] += alpha[..., None] * (np.asarray(thing["rgb"], np.float32) - image[window])
    if scene["block"]:
        image[:, *scene["block"]] = scene["shade"]
    return (image + scene["noise"]).round().clip(0, 255).astype(np.uint8)


def visibility(scene):
    """(mask uint8 [T, S, S], fraction of each object inside the image, visible fraction of that).

    The fractions are float64 [n, T].
    """
    mask = np.zeros(scene["noise"].shape[:3], np.uint8)
    inside, area, seen = np.zeros((3, len(scene["objects"]), len(mask)))
    for k in scene["depth"]:
        thing = scene["objects"][k]
        alpha, window = windowed(thing, *mask.shape[:2])
        mask[window] = np.where(alpha >= 0.5, k + 1, mask[window])
        side, radius = alpha.shape[1], thing["equation"]["radius"]
        whole = coverage(thing["shape"], side, side / 2, side / 2, radius, thing["angle"])
        inside[k] = alpha.sum((1, 2)) / whole.sum()
        area[k] = (alpha >= 0.5).sum((1, 2))
    if scene["block"]:
        mask[:, *scene["block"]] = 0
    for k in scene["depth"]:
        seen[k] = (mask == k + 1).sum((1, 2)) / np.maximum(area[k], 1)
    return mask, inside, seen


def planned_scene(rng, size, frames):
    """A random scene of one to three objects, half of them persistent, that clearly shows their cases."""
    cases, directions = [], []
    for _ in range(rng.integers(1, 4)):
        cases.append(str(rng.choice(STEADY if rng.random() < 0.5 else PASSING)))
    cases.sort(key=lambda case: case == "crosses")
    if cases[0] == "crosses":  # there is no object yet to cross
        cases[0] = "stays"
    for case in cases:
        still = case in ("stays", "blinks") and rng.random() < 0.15
        directions.append("still" if still else str(rng.choice(list(DIRECTIONS))))
    scene = None
    # cases and directions stay, or those that fail often would become rare
    while scene is None or not shows_cases(scene):
        scene = random_scene(rng, cases, directions, size, frames)
    return scene


# ---------------------------------------------------------------- the truth about a scene


def tracks_of(objects, inside, seen, size):
    """The truth about each object, a dict each, from what `visibility` returns.

    why: how an object comes or goes; present, visible, hidden: spans of frames; speed: pixels per frame;
    curvature: radians per pixel; crosses: names of the objects that it meets.
    """
    t = np.arange(inside.shape[1])
    present = inside >= 0.5
    visible = present & (seen >= 0.25)
    paths = [position(o["equation"], t) for o in objects]
    tracks = []
    for k, thing in enumerate(objects):
        equation, here = thing["equation"], present[k]
        first, last = t[here][[0, -1]] if here.any() else (0, 0)
        comes, goes = first > 0, last < t[-1]
        why = (("stays", "leaves"), ("enters", "passes"))[int(comes)][int(goes)]
        if equation["exists"] != [0, t[-1]]:
            why = "appears" if comes else "vanishes"
        crosses = []
        for j, other in enumerate(objects):
            distance = np.hypot(*(paths[k] - paths[j]).T)[here & present[j]].min(initial=np.inf)
            if j != k and distance < max(equation["radius"], other["equation"]["radius"]):
                crosses.append(other["name"])
        path = paths[k][first : last + 1]
        turn = equation["turn"]
        track = {"object": thing["name"], "persistent": bool(here.all()), "why": why}
        track |= {"present": spans(here), "visible": spans(visible[k]), "hidden": spans(here & ~visible[k])}
        track["direction"] = nearest_direction(path[-1] - path[0], 2 * size / 48)
        track["speed"] = float(np.hypot(*np.diff(path, axis=0).T).mean()) if len(path) > 1 else 0.0
        track["curvature"] = float(turn / np.hypot(*equation["velocity"])) if turn else 0.0
        tracks.append(track | {"crosses": crosses, "equation": equation})
    return tracks


def shows_case(track, case, frames):
    """Does a track clearly show its case, and the object for at least five frames?"""
    visible = {t for first, last in track["visible"] for t in range(first, last + 1)}
    if len(track["present"]) != 1 or len(track["visible"]) > 3 or len(visible) < 5:
        return False
    first, last = track["present"][0]
    comes_and_goes_visibly = {first, last} - {0, frames - 1} <= visible
    if not comes_and_goes_visibly or track["persistent"] != (case in STEADY):
        return False
    if case == "hidden":
        return last - first + 1 - len(visible) >= 3
    if case == "crosses":
        return bool(track["crosses"])
    return case == "blinks" or track["why"] == case


def shows_cases(scene):
    """Does a clip clearly show the case of each object, which is rarely neither visible nor hidden?"""
    mask, inside, seen = visibility(scene)
    unclear = (seen > 0.15) & (seen < 0.4) & (inside >= 0.5)
    tracks = tracks_of(scene["objects"], inside, seen, mask.shape[1])
    cases = [o["case"] for o in scene["objects"]]
    shown = [shows_case(track, case, len(mask)) for track, case in zip(tracks, cases, strict=True)]
    return unclear.sum(1).max() <= 4 and all(shown)


# ---------------------------------------------------------------- items


def absent_name(rng, names):
    """The name of an object that is not there; half of the time with the colour or shape of one that is."""
    words = set(" ".join(names).split())
    others = [f"{colour} {shape}" for colour in COLOURS for shape in synthetic.SHAPES]
    others = [name for name in others if name not in names]
    alike = [name for name in others if words & set(name.split())]
    return str(rng.choice(alike if rng.random() < 0.5 else others))


def questions_of(tracks, first, absent, seed):
    """(turns, topics) of a clip. first: the number of its first object in the unchanged scene.

    That number seeds the wording, so that a changed clip is asked the same questions.
    """
    turns, topics = [], []
    for number, track in enumerate(tracks, first):
        rng = np.random.default_rng([*seed, 3 + number])
        answers = {"persistence": "persistent" if track["persistent"] else "transient"}
        answers |= {"frames": spans_words(track["visible"]), "direction": track["direction"]}
        answers["hidden"] = spans_words(track["hidden"]) if track["hidden"] else "it is never hidden"
        answers["backwards"] = synthetic.OPPOSITE[track["direction"]]
        answers |= {"uncovered": spans_words(track["present"]), "unknown": synthetic.UNKNOWN}
        for kind, answer in answers.items():
            turns.append([synthetic.question_about(rng, kind, track["object"]), answer])
            topics.append(["whatif" if kind in ("backwards", "uncovered") else kind, track["object"]])
    rng = np.random.default_rng([*seed, 2])
    about_an_object = list(synthetic.QUESTIONS)[:6]
    for kind in rng.permutation(about_an_object)[:2]:
        turns.append([synthetic.question_about(rng, str(kind), absent), f"there is no {absent}"])
        topics.append(["absent", absent])
    turns.append([synthetic.question_about(rng, "count", ""), str(len(tracks))])
    return turns, [*topics, ["count", ""]]


def changed(scene, change):
    """The scene without its first object, or with its first two objects on each other's paths."""
    objects = scene["objects"]
    if change == "deleted":
        return scene | {"objects": objects[1:], "depth": [k - 1 for k in scene["depth"] if k]}
    if change == "swapped":
        a, b = (objects[k] | {"equation": objects[1 - k]["equation"]} for k in (0, 1))
        return scene | {"objects": [b, a, *objects[2:]]}
    return scene


def clip_item(name, scene, change, absent, seed):
    """The item of a scene.

    count: number of objects; absent: the name of one that is not there; tracks: the truth about each object,
    see `tracks_of`; topics: [kind, object] of each turn.
    """
    scene, names = changed(scene, change), [o["name"] for o in scene["objects"]]
    objects, frames = scene["objects"], paint(scene)
    mask, inside, seen = visibility(scene)
    if change == "reversed":
        frames, mask = frames[::-1], mask[::-1]
        inside, seen = inside[:, ::-1], seen[:, ::-1]
        objects = [o | {"equation": reversed_equation(o["equation"], len(mask))} for o in objects]
    tracks = tracks_of(objects, inside, seen, mask.shape[1])
    count = len(tracks)
    item = synthetic.item_of(name, name, objects, frames, mask, synthetic.boxes_of(mask, count))
    item |= {"count": count, "absent": absent, "tracks": tracks}
    if change == "deleted":
        item["removed"] = names[0]
    counted = "There is 1 coloured object." if count == 1 else f"There are {count} coloured objects."
    item["text"] = " ".join([*map(synthetic.describe_track, tracks), counted])
    item["turns"], item["topics"] = questions_of(tracks, len(names) - count, absent, seed)
    return item


def trajectories(n, size, seed, frames=32, change=None, only=None):
    """Clips of one to three coloured objects, half of them persistent; every clip is its own source.

    change: the same scenes reversed, without the first object, or with the first two swapped (where there are
    two). only: the split to generate.
    """
    for i in range(n):
        name = f"trajectories-{seed}-{i:05d}"
        if only and split_of(name) != only:
            continue
        scene = planned_scene(np.random.default_rng([seed, i]), size, frames)
        names = [o["name"] for o in scene["objects"]]
        if change == "swapped" and len(names) < 2:
            continue
        absent = absent_name(np.random.default_rng([seed, i, 1]), names)
        yield clip_item(name, scene, change, absent, (seed, i))
