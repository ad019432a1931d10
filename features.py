"""From items to shards of features, with tokens as they are or stored as K numbers.

`one_by_one` and `layer_by_layer` send micro-batches of items through a model. `Shard` collects their features
and writes each point when it is complete. `Fit` collects the moments from which `directions` makes the linear
map of --reduce.
"""

import contextlib
import json
import math
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional as F

from checkpoints import attempt
from common import FEATURES, POOLED, fail, save_pt
from families import LLAVA, on
from media import foreground, stacked
from models import OWN_LAYOUT
from streaming import states_at_questions, stream, up_to_the_image, wait_for, words_behind

REDUCE = "foresight.reduce.v1"

# ---------------------------------------------------------------- points by name


def at_depth(layers, part):
    """The layer (0-based) at relative depth `part` of a stack."""
    return round(layers * part) - 1


def quarters(points):
    """All points outside the stacks and of stacks of up to 8 layers; four depths of each deeper stack."""
    chosen = []
    for stack in ("vision", "scale", "encoder", "language"):
        names = [p for p in points if p.startswith(f"{stack}.")]
        chosen += names if len(names) <= 8 else [names[at_depth(len(names), q / 4)] for q in (1, 2, 3, 4)]
    return [p for p in points if p in chosen or "." not in p]


# The plan's names of points: letter -> (model types, points 1, 2, ...). `last` is the last tower layer that
# the projector reads.
FIVE = ("patch_embed", "vision.middle", "vision.last", "merger", "language.middle")
ALIASES = {
    "L": (LLAVA, FIVE),
    "I": (("internvl", "internvl_chat"), FIVE),
    "C": (("cogvlm2",), ("patch_embed", "vision.last", "merger", "language.middle")),
}


def depths(entry):
    """(layers of the tower, the last of them that the projector reads, layers of the language model), by the
    registry or a folder's config.json."""
    if "vision" in entry:
        tower, language, read = entry["vision"][0], entry["language"][0], entry.get("read", -1)
    elif entry["type"] in OWN_LAYOUT:
        config = json.loads(Path(entry["path"], "config.json").read_text())
        tower = config["vision_config"]["num_hidden_layers"]
        language = config.get("llm_config", config)["num_hidden_layers"]
        read = config.get("select_layer", -1)
    else:
        # a folder's config.json may leave out what is the library's default
        from transformers import AutoConfig

        config = attempt(lambda: AutoConfig.from_pretrained(entry["path"]), entry)
        tower = config.vision_config.num_hidden_layers
        language = config.text_config.num_hidden_layers
        read = config.vision_feature_layer
    read = read[-1] if isinstance(read, list) else read
    return tower, read + tower if read < 0 else read - 1, language


def resolve_aliases(names, entry):
    """`--points` with the plan's names (L3, c2, ...) replaced by the model's, before it is loaded."""

    def resolve(name):
        letter, number = name[:1].upper(), name[1:]
        if letter not in ALIASES or not number.isdigit():
            return name
        types, meant = ALIASES[letter]
        if entry.get("type") not in types:
            kind = f"{name} is a point of {', '.join(types)}, and {entry['name']} is of another type"
            fail(f"{kind}; give its point names, or --points all")
        if not 1 <= int(number) <= len(meant):
            fail(f"{name} is no point: {', '.join(types)} have {letter}1 to {letter}{len(meant)}")
        stack, _, place = meant[int(number) - 1].partition(".")
        if not place:
            return stack
        tower, last, language = depths(entry)
        if place != "last":
            last = at_depth(tower if stack == "vision" else language, 0.5)
        return f"{stack}.{last}"

    return ",".join(resolve(name) for name in names.split(","))


# ---------------------------------------------------------------- tokens stored as K numbers

FIT_ITEMS, FIT_TOKENS = 64, 1024  # train items, and tokens of each, to which a map is fitted
# shares of the K directions: those that predict a cell's pixels or foreground; principal ones; random rest
SHARES = {"pixels": 7 / 16, "foreground": 1 / 8}
PRINCIPAL = 1 / 4


def around(maps, h, w, side):
    """What is seen at each cell and its eight neighbours: maps [n,c,H,W] -> [n, h*w, c * (3 side)^2]."""
    maps = F.interpolate(maps, (h * side, w * side), mode="bilinear", antialias=True, align_corners=False)
    padded = F.pad(maps, [side] * 4, mode="replicate")
    return F.unfold(padded, 3 * side, stride=side).transpose(1, 2)


class Moments:
    """Sums over tokens x [D] and targets {name: y [c]}, about the first batch's means: fp32 loses nothing."""

    def __init__(self):
        self.n, self.products = 0, {}

    def add(self, x, targets):
        x = x.float()
        if not self.n:
            self.shift = {"x": x.mean(0)} | {name: y.mean(0) for name, y in targets.items()}
            self.sums = {name: torch.zeros(len(m), dtype=torch.float64) for name, m in self.shift.items()}
        self.n += len(x)
        x = x - self.shift["x"]
        for name, y in {"x": x, **targets}.items():
            y = y if name == "x" else y - self.shift[name]
            self.sums[name] += y.sum(0).double()
            self.products[name] = self.products.get(name, 0) + (x.T @ y).double()

    def covariance(self, name):
        """Covariance times n of x with x or a target: [D, D] or [D, c]."""
        return self.products[name] - torch.outer(self.sums["x"], self.sums[name]) / self.n

    def mean(self):
        return self.shift["x"] + (self.sums["x"] / self.n).float()


def directions(moments, k):
    """{mean [D], directions [D, k]} of a linear map that keeps inner products and what probes read of a cell.

    Directions are those of ridge regression onto each target by explained variance (reduced-rank regression),
    the first principal components, and random ones of the rest, scaled so that inner products are unbiased.
    """
    cov = moments.covariance("x")
    width = len(cov)
    penalised = cov + 1e-2 * cov.trace() / width * torch.eye(width, dtype=cov.dtype)
    parts = []
    for name in [name for name in SHARES if name in moments.products]:
        slopes = torch.linalg.solve(penalised, moments.covariance(name))
        explained = torch.linalg.eigh(slopes.T @ cov @ slopes)[1].flip(1)
        parts.append(F.normalize(slopes @ explained[:, : max(int(k * SHARES[name]), 1)], dim=0))
    parts.append(torch.linalg.eigh(cov)[1].flip(1)[:, : int(k * PRINCIPAL)])
    basis = torch.linalg.qr(torch.cat(parts, 1))[0]
    rest_width = k - basis.shape[1]
    generator = torch.Generator().manual_seed(0)
    rest = torch.randn(width, rest_width, generator=generator, dtype=cov.dtype)
    rest = torch.linalg.qr(rest - basis @ (basis.T @ rest))[0]
    scale = ((width - basis.shape[1]) / rest_width) ** 0.5
    return {"mean": moments.mean(), "directions": torch.cat([basis, scale * rest], 1).float()}


# ---------------------------------------------------------------- items in, shards out


def pixel_grid(frames, grid, first_frame):
    """Raw pixels on a grid (t, h, w): [n,T,S,S,3] -> [n, t, h, w, m*p*p*3] in [0, 1].

    A step has all its frames, m; shorter steps (an autoencoder's first) repeat their last frame.
    """
    t, h, w = grid
    starts = [first_frame(k) for k in range(t)]
    ends = [*starts[1:], max(frames.shape[1], starts[-1] + 1)]
    longest, rows = max(end - start for start, end in zip(starts, ends, strict=True)), []
    for start, end in zip(starts, ends, strict=True):
        rows += [min(start + i, end - 1) for i in range(longest)]
    x = frames[:, rows].float() / 255
    n, p, q = len(x), x.shape[2] // h, x.shape[3] // w
    cells = x[:, :, : h * p, : w * q].reshape(n, t, longest, h, p, w, q, 3)
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(n, t, h, w, -1)


class Writer:
    """Writes files in order in a separate thread, while the next features are computed. At most two wait.

    After an error nothing more is written: a shard that lacks a file must not be marked as complete.
    """

    def __init__(self):
        self.pool, self.jobs, self.failed = ThreadPoolExecutor(1), deque(), False

    def save(self, *args, **kwargs):
        if self.failed:
            return
        try:
            save_pt(*args, **kwargs)
        except BaseException:
            self.failed = True
            raise

    def __call__(self, *args, **kwargs):
        self.jobs.append(self.pool.submit(self.save, *args, **kwargs))
        while len(self.jobs) > 2:
            self.jobs.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pool.shutdown()
        for job in self.jobs:
            job.result()


class Batches:
    """Micro-batches of some items."""

    def __init__(self, job, items):
        self.job, self.items = job, items
        self.starts = list(range(0, len(items), job.args.batch))

    def some(self, k):
        return self.items[self.starts[k] : self.starts[k] + self.job.args.batch]

    def frames(self, k):
        """Micro-batch k: uint8 [n, T, size, size, 3]."""
        return stacked(self.some(k), self.job.args.size)

    def given(self, k):
        """`frames`, but one frame of a still clip where the model sees frames one by one."""
        frames = self.frames(k)
        return frames[:, :1] if self.job.still else frames

    def add_pixels(self, grids):
        """Pixels on the coarsest grid (t, h, w) of all points: a baseline."""
        for k in range(len(self.starts) if grids else 0):
            t, h, w = min(grids, key=math.prod)
            grid = (1, h, w) if self.job.still else (t, h, w)
            self.add(k, "pixels", pixel_grid(self.given(k), grid, self.job.first_frame))


class Fit(Batches):
    """Collects the moments of every point's tokens, to fit the maps of --reduce."""

    def __init__(self, job, items):
        super().__init__(job, items)
        self.moments, self.shape, self.added = {}, {}, set()

    def targets(self, k, grid, step):
        """{name: [n, h*w, c]} of what the cells of a grid show at a time step."""
        first = self.job.first_frame(step)
        frames = torch.stack([x[min(first, len(x) - 1)] for x in self.frames(k)])
        found = {"pixels": around(frames.permute(0, 3, 1, 2).float() / 255, *grid, 4)}
        if "boxes" in self.items[0] and "frames" not in self.items[0]:
            found["foreground"] = around(foreground(self.some(k), 64)[:, None], *grid, 1)
        return found

    def add(self, k, point, x):
        """Features [n, t, h, w, D] of micro-batch k."""
        if (k, point) in self.added:  # repeated after an out-of-memory error
            return
        self.added.add((k, point))
        self.shape[point] = x.shape[1:]
        h, w = x.shape[2:4]
        pick = torch.arange(0, h * w, max(h * w // FIT_TOKENS, 1))
        moments = self.moments.setdefault(point, Moments())
        for step in range(x.shape[1]):
            targets = self.targets(k, (h, w), step) if point in self.job.with_grid else {}
            rows = x[:, step].flatten(1, 2)[:, pick].flatten(0, 1).float().cpu()
            moments.add(rows, {name: y[:, pick].flatten(0, 1) for name, y in targets.items()})

    def finish(self, seconds):
        self.add_pixels([shape[:3] for p, shape in self.shape.items() if p in self.job.with_grid])
        maps = {}
        for point, moments in self.moments.items():
            if self.shape[point][-1] > self.job.reduce:
                maps[point] = directions(moments, self.job.reduce)
        own = self.job.out / f"reduce-{os.getpid()}.pt"
        save_pt(own, REDUCE, [i["id"] for i in self.items], {}, maps=maps)
        with contextlib.suppress(FileExistsError):  # another process was first: all read the same map
            os.link(own, self.job.out / "reduce.pt")
        own.unlink()


class Shard(Batches):
    """Collects features of some items by micro-batch, points in any order; writes a point when complete.

    pooled/<shard>.pt, written last, marks the shard as complete.
    """

    def __init__(self, job, number, items):
        super().__init__(job, items)
        self.file = f"{number:05d}.pt"
        self.number = number
        self.ids = [item["id"] for item in items]
        self.tokens, self.means, self.pooled = {}, {}, {}
        self.remaining = {point: set(range(len(self.starts))) for point in job.written}

    def add(self, k, point, x):
        """Features [n, t, h, w, D] of micro-batch k."""
        if k not in self.remaining.get(point, ()):  # repeated after an out-of-memory error
            return
        if self.job.still:
            x = x.expand(-1, self.job.steps, -1, -1, -1)
        x = x.float()
        self.means.setdefault(point, {})[k] = x.mean((2, 3)).cpu(), x.amax((2, 3)).cpu()
        row = self.pooled.setdefault(point, {"shape": list(x.shape[1:]), "nonfinite": 0})
        row["nonfinite"] += int((~x.isfinite()).sum())
        if point in self.job.stored:
            self.keep(k, point, x)
        self.remaining[point].discard(k)
        if not self.remaining[point]:
            self.complete(point)

    def keep(self, k, point, x):
        """Put tokens in their place, as K numbers where they are reduced; fp32 where fp16 overflows."""
        if point in self.job.maps:
            one = {name: value.to(x.device) for name, value in self.job.maps[point].items()}
            x = (x - one["mean"]) @ one["directions"]
            self.pooled[point]["shape"] = list(x.shape[1:])
        x = x.cpu()
        if point not in self.tokens:
            kind = torch.float32 if self.job.args.store == "fp32" else torch.float16
            self.tokens[point] = torch.empty(len(self.ids), *x.shape[1:], dtype=kind)
        whole = self.tokens[point]
        if whole.dtype == torch.float16 and (x.abs().nan_to_num(posinf=0) > 65504).any():
            whole = self.tokens[point] = whole.float()
        whole[self.starts[k] : self.starts[k] + len(x)] = x

    def complete(self, point):
        means, maxima = zip(*(part for _, part in sorted(self.means.pop(point).items())), strict=True)
        self.pooled[point] |= {"mean": torch.cat(means), "max": torch.cat(maxima)}
        if point in self.tokens:
            whole = self.tokens.pop(point)
            self.pooled[point]["dtype"] = str(whole.dtype).removeprefix("torch.")
            file = self.job.out / point / self.file
            self.job.write(file, FEATURES, self.ids, {"point": point}, features=whole)

    def mark(self):
        """Mark points: grid or causal false, `stored: pooled`."""
        marks = {"grid": (self.job.with_grid, False), "stored": (self.job.stored, "pooled")}
        for key, (names, value) in marks.items():
            for point in set(self.pooled) - names:
                self.pooled[point][key] = value
        for point in self.job.sees_later & set(self.pooled):
            self.pooled[point]["causal"] = False

    def finish(self, seconds):
        """Add the pixels and mark the shard as complete, unless it is to be computed again."""
        self.remaining["pixels"] = set(range(len(self.starts)))
        self.add_pixels([row["shape"][:3] for p, row in self.pooled.items() if p in self.job.with_grid])
        if self.job.overflowed is not None and any(row["nonfinite"] for row in self.pooled.values()):
            self.job.overflowed.append(self.number)
        else:
            self.write_marker(seconds)

    def write_marker(self, seconds):
        """Write the file that marks the shard as complete."""
        self.mark()
        meta = {"seconds": seconds, "dtype": self.job.precision}
        if "shown" in self.items[0]:
            meta["shown"] = [item["shown"] for item in self.items]
        pooled = {p: self.pooled[p] for p in ("pixels", *self.job.written) if p in self.pooled}
        self.job.write(self.job.out / "pooled" / self.file, POOLED, self.ids, meta, pooled=pooled)
        self.pooled = {}


# ---------------------------------------------------------------- all items through the model


def prepared(make, count, device):
    """make(0), make(1), ...; on a GPU the next is made in a thread while the present one computes."""
    if device.type == "cpu":
        yield from map(make, range(count))
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, 0)
        for k in range(1, count + 1):
            made = ahead.result()
            ahead = pool.submit(make, k) if k < count else None
            yield made


def inputs_of(job, frames):
    """The model's inputs of frames uint8 [n,T,S,S,3]; with questions, up to the image."""
    batch = job.make_inputs(frames)
    return up_to_the_image(job.model, batch) if job.questions else batch


def restored(job, point, x, batch):
    """A module's output in raster order, [n, t, h, w, D]."""
    return job.points[point][1](x, batch)


def one_by_one(job, capture, batches):
    """Fill every shard, micro-batch by micro-batch, recording the seconds of each item."""
    for one in batches:

        def prepare(k, one=one):
            frames = one.given(k)
            started = time.perf_counter()
            return inputs_of(job, frames), time.perf_counter() - started

        seconds = []
        for k, (batch, spent) in enumerate(prepared(prepare, len(one.starts), job.device)):
            wait_for(job.device)
            started = time.perf_counter()
            given = on(batch, job.device, job.dtype)
            features = {point: restored(job, point, x, batch) for point, x in capture(given).items()}
            wait_for(job.device)
            seconds.append((time.perf_counter() - started + spent) / len(one.some(k)))
            features |= question_features(job, capture, batch, given)
            for point, x in features.items():
                one.add(k, point, x)
        one.finish(seconds)


def without_pixels(batch):
    """A batch of which only shapes and ids are kept, which is what restoring the raster order needs."""
    return {k: v.to("meta") if torch.is_tensor(v) and v.is_floating_point() else v for k, v in batch.items()}


def smaller(budget, made, job):
    """Half the budget after an exhausted memory; exit 2 where a single micro-batch was too much."""
    if len(made) < 2:
        fail(f"two layers leave no memory for a micro-batch; give a --batch smaller than {job.args.batch}")
    torch.cuda.empty_cache()
    return budget / 2


def layer_by_layer(job, capture, batches, budget):
    """Fill every shard by streaming, in as few rounds as `budget` bytes allow; passes overlap: no seconds."""
    todo = [(one, k) for one in batches for k in range(len(one.starts))]
    while todo:
        made = []

        def inputs(todo=todo, made=made):
            for one, k in todo:
                batch = inputs_of(job, one.given(k))
                made.append(without_pixels(batch))
                yield on(batch, job.device, job.dtype)

        def drain(i, seen, todo=todo, made=made):
            one, k = todo[i]
            for point in list(seen):
                one.add(k, point, restored(job, point, seen.pop(point), made[i]))

        done = 0
        with contextlib.suppress(torch.OutOfMemoryError):
            done = stream(job.network, capture, inputs(), budget, drain)
        if not done:  # written points stay; the rest is repeated in smaller rounds
            budget = smaller(budget, made, job)
        ended, todo = todo[:done], todo[done:]
        remaining = {id(one) for one, _ in todo}
        for one in dict.fromkeys(one for one, _ in ended):
            if id(one) not in remaining:
                one.finish([])


def question_features(job, capture, batch, given):
    """{question.<i>: [n, t, 1, questions, D]}, of the layers at the last token of every question."""
    if not job.questions:
        return {}
    tokens = [words_behind(job.model, job.processor, batch, question) for question in job.questions]
    points = set(job.question_points.values())
    found = states_at_questions(job.model, capture, given, tokens, points, job.dtype)
    steps = batch.get("frames", 1)
    found = {p: x.unflatten(0, (-1, steps))[:, :, None] for p, x in found.items()}
    return {new: found[old] for new, old in job.question_points.items()}
