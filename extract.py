"""Stage 1. What does a frozen network hold about each image, layer by layer?

    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features
    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features-random --random-init
    python extract.py --model cogvlm2 --data data/shapes --stream --max-memory 15GB        # 39 GB of weights, layer by layer
    python extract.py --model dinov2-l+qwen2.5-vl-7b --data data/shapes                    # two encoders side by side
    python extract.py --model tiny --data data/moving --frames motion --count 8            # the 8 frames between which most moves
    python extract.py --list                                                               # the models

Reads data/<name>/ and a checkpoint: a registry name or a folder in Hugging Face format. Writes, under --out,

    <point>/00000.pt ...   features [n, t, h, w, D] fp16, raster order on the image's own grid, 64 items a shard (t = 1 for images)
    pooled.pt              for every point, mean and max over space: {point: [n, t, D]}
    index.yaml             written last: per point the module, shape, dtype, bytes, non-finite values, and `causal: false` where a time
                           step of a clip has seen later frames; seconds per item; run info; which frames were shown (`shown`)

Points are named `pixels` (the token's own pixels, a baseline), `patch_embed`, `vision.<i>`, `merger` (or projector), `language.<i>`;
an autoencoder has `latents` (the mode, normalised as the video model wants it), `latents-raw` and `latents-sample`;
CogVLM2 also has `conv`, Qwen3-VL `deepstack.<i>`, Grounding DINO `scale.<i>` and `encoder.<i>`, OWL-ViT and OWLv2 `class_head` and
`box_head`. Where K tokens have no place in the image (Kosmos-2 behind its tower) features are [n, t, 1, K, D] and the point's row
says `grid: false`. The plan's names, L1-L5 (LLaVA), I1-I5 (InternVL) and C1-C4 (CogVLM2), are understood by --points.

One forward pass stops as soon as the last point has been seen, so the head and the layers above are never computed. A shard that is
complete is never computed again: kill it at any moment and run the same command to go on.

Modules, to be copied with it: cogvlm2.py, common.py, families.py, media.py, models.py.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from common import (
    FEATURES,
    POOLED,
    SHARD,
    check_writable,
    choose_device,
    load_items,
    load_pt,
    load_yaml,
    memory_left,
    memory_size,
    parser,
    refuse,
    run_info,
    same_items,
    save_pt,
    save_yaml,
    say,
    with_grid,
)
from families import (
    ASKABLE,
    TILED,
    family_of,
    on,
    own_names,
    positions_behind,
    quarters,
    sees_later_frames,
    up_to_the_picture,
    whole_tokens,
    without_grid,
    words_behind,
)
from media import CHOICES, frames_of, picked, ways_of
from models import LOADERS, MODELS, TINY, fill, find_model, fingerprint, resolved_commit, skeleton

# ---------------------------------------------------------------- one forward pass that stops early


class Seen(Exception):
    """Every point has been captured: nothing deeper needs to be computed."""


@contextlib.contextmanager
def watching(model, modules):
    """run(inputs, seen={}, only=modules) -> {point: output} of `modules` {point: module path}, by a forward pass that ends with the last of them. Several threads may run at once.

    Outputs are cloned, because transformers changes some of them in place later (in get_image_features).
    """
    here = threading.local()

    def hook(point):
        def keep(module, args, output):
            if point not in here.only:
                return
            here.seen[point] = (output[0] if isinstance(output, tuple) else output).clone()
            here.left.discard(point)
            if not here.left:
                raise Seen

        return keep

    @torch.inference_mode()
    def run(inputs, seen=None, only=modules):
        here.seen, here.only, here.left = {} if seen is None else seen, only, set(only)
        with contextlib.suppress(Seen):
            model(**inputs)
        assert not here.left, f"points never reached: {sorted(here.left)}"
        return here.seen

    handles = []
    for point, path in modules.items():
        handles.append(model.get_submodule(path).register_forward_hook(hook(point)))
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def capture(model, inputs, modules):
    """`watching` for a single pass."""
    with watching(model, modules) as run:
        return run(inputs)


@contextlib.contextmanager
def latents_of(vae):
    """`watching` for an autoencoder, whose latents are no module's output: run(inputs) -> {"latents", "latents-raw": the mode}."""

    @torch.inference_mode()
    def run(inputs):
        mode = vae.encode(inputs["sample"]).latent_dist.mode()
        return {"latents": mode, "latents-raw": mode}

    yield run


# ---------------------------------------------------------------- weights when they are needed, and not before

# modules outside the stacks that are hardly ever called before the last point has been seen
LATER = ("lm_head", "text_model", "predictor", "decoder")


class Network:
    """A network of which only the weights that are needed are read: all outside the stacks of layers, the layers up to the deepest point asked for, and LATER modules when they are called.

    layers: the modules of the points vision.<i> and language.<i>; wanted: those of them up to the deepest point; outside: names of the weights outside the stacks.
    """

    def __init__(self, model, weights, device, points, deepest):
        self.model, self.weights, self.device = model, weights, device
        stacks = "vision.", "language."
        self.layers = [point[0] for name, point in points.items() if name.startswith(stacks)]
        reached = {points[name][0] for name in list(points)[: list(points).index(deepest) + 1]}
        self.wanted = [path for path in self.layers if path in reached]
        later = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in LATER]
        later = [path for path in later if not any(x.startswith(f"{path}.") for x in self.layers)]
        self.names = {}
        for path in [*self.layers, *later]:
            self.names[path] = [name for name in weights.like if name.startswith(f"{path}.")]
        apart = {name for names in self.names.values() for name in names}
        self.outside = [name for name in weights.like if name not in apart]
        for path in later:
            self.when_called(path, functools.partial(self.fill_and_go_on, path))

    def when_called(self, path, call):
        """Let call(*args, **kwargs) take the place of a module's forward; hooks on the module still work."""
        self.model.get_submodule(path).forward = call

    @torch.inference_mode()
    def layer(self, path, *args, **kwargs):
        module = self.model.get_submodule(path)
        return type(module).forward(module, *args, **kwargs)

    def fill_and_go_on(self, path, *args, **kwargs):
        fill(self.model, self.weights, self.names[path], self.device)
        del self.model.get_submodule(path).forward
        return self.layer(path, *args, **kwargs)

    def weights_of(self, layers):
        """Names of what lies outside the stacks, and of some layers' weights."""
        return [*self.outside, *(name for path in layers for name in self.names[path])]

    def fill(self, layers):
        fill(self.model, self.weights, self.weights_of(layers), self.device)

    def largest(self, n):
        return sorted(self.wanted, key=lambda path: self.weights.size(self.names[path]))[-n:]

    def bytes(self, layers):
        return self.weights.size(self.weights_of(layers))


# ---------------------------------------------------------------- layer streaming: every item through one layer before the next is read


class Pass(threading.Thread):
    """The forward pass of one micro-batch in a thread of its own, which waits at every layer until the main thread has computed the layer's output.

    Thus the model's own code runs between the layers, whatever it does there (merging, DeepStack, masks, rotary embeddings).
    """

    def __init__(self, forward, inputs):
        super().__init__(daemon=True)
        self.forward = forward
        self.inputs = inputs
        self.seen = {}
        self.at = None
        self.error = None
        self.given_up = False
        self.go, self.stands = threading.Semaphore(0), threading.Semaphore(0)

    def run(self):
        try:
            self.forward(self.inputs, self.seen)
        except BaseException as e:  # raised again where it can be seen
            self.error = e
        self.at = None
        self.stands.release()

    def ask(self, *at):
        """A layer's output, from the main thread; what a layer's forward is replaced by calls this, in this thread."""
        self.at = at
        self.stands.release()
        self.go.acquire()
        if self.given_up:
            raise Seen
        output, self.output = self.output, None
        return output

    def on(self, output):
        """Hand over a layer's output and wait until the pass reaches the next layer, or its end."""
        self.output, self.at = output, None
        self.go.release()
        self.wait()

    def wait(self):
        self.stands.acquire()
        if self.error:
            raise self.error

    def give_up(self):
        self.given_up = True
        self.go.release()

    def bytes(self):
        """Bytes that it holds while it waits: its inputs, the residual stream, masks, rotary embeddings."""
        from torch.utils._pytree import tree_leaves

        tensors = {id(x): x for x in tree_leaves((self.inputs, self.at)) if torch.is_tensor(x)}
        return sum(x.nbytes for x in tensors.values())


def stream(network, forward, batches, budget, drain):
    """Take as many micro-batches (inputs of `forward`) as fit into `budget` bytes through the network, layer by layer. Returns how many.

    While one layer computes, a reader thread brings the next, so two are in memory at once. drain(k, seen) is handed what micro-batch k has seen so far.
    """
    model, weights, device = network.model, network.weights, network.device
    # on a stream of its own a copy runs beside the layer that computes
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(path):
        if not side:
            return dict(weights.read(network.names[path]))
        state = {}
        with torch.cuda.stream(side):
            for name, x in weights.read(network.names[path]):
                state[name] = x.pin_memory().to(device, non_blocking=True)
            side.synchronize()
        return state

    def ask_for(path, *args, **kwargs):
        return threading.current_thread().ask(path, args, kwargs)

    for path in network.layers:
        network.when_called(path, functools.partial(ask_for, path))
    passes, held, following = [], 0, dict(zip(network.wanted, network.wanted[1:], strict=False))
    with ThreadPoolExecutor(1) as reader, tqdm(total=len(network.wanted), unit="layer") as bar:
        try:
            ahead = {path: reader.submit(read, path) for path in network.wanted[:1]}
            for inputs in batches:
                passes.append(one := Pass(forward, inputs))
                one.start()
                one.wait()
                drain(len(passes) - 1, one.seen)
                held += one.bytes()
                if held + one.bytes() > budget:
                    break
            while live := [k for k, one in enumerate(passes) if one.at]:
                path = passes[live[0]].at[0]
                state = (ahead.pop(path, None) or reader.submit(read, path)).result()
                ahead = {p: reader.submit(read, p) for p in [following.get(path)] if p}
                model.load_state_dict(state, strict=False, assign=True)
                for k in live:
                    where, args, kwargs = passes[k].at
                    # the same code runs for every micro-batch, so all stand in front of the same layer
                    assert where == path, (where, path)
                    passes[k].on(network.layer(path, *args, **kwargs))
                    del args, kwargs  # the input of a layer goes when its output is there
                    drain(k, passes[k].seen)
                for x in state.values():
                    if side:
                        x.record_stream(torch.cuda.current_stream())
                model.load_state_dict({name: weights.like[name] for name in state}, strict=False, assign=True)
                bar.update()
        finally:
            for one in passes:
                one.give_up()
    return len(passes)


# ---------------------------------------------------------------- several questions about a picture, which is computed once


def ask(model, run, given, questions, points, dtype):
    """Hidden states of the last token of every question, {point: [sequences, questions, D]}, by one pass over the questions alone: the picture is in the cache.

    questions: lists of token ids. They follow one another in one sequence, but each has the positions that it would have alone and attends only to the picture and to itself.
    """
    ids = [token for question in questions for token in question]
    ids = torch.tensor(ids, device=given["input_ids"].device)
    lengths = torch.tensor([len(question) for question in questions], device=ids.device)
    n, end = given["input_ids"].shape
    number = torch.arange(len(questions), device=ids.device).repeat_interleave(lengths)
    place = torch.arange(len(ids), device=ids.device) - (lengths.cumsum(0) - lengths)[number]
    longest = torch.zeros(n, int(lengths.max()), dtype=torch.long, device=ids.device)
    sees = (number[:, None] == number) & (place[:, None] >= place)  # [rows, rows]
    sees = torch.cat([sees.new_ones(len(ids), end), sees], 1).expand(n, 1, -1, -1)
    places, rows = positions_behind(model, given, longest)[..., place], ids.expand(n, -1)
    inputs = {"input_ids": rows, "position_ids": places}
    if "cache" in given:
        inputs |= {"token_type_ids": torch.zeros_like(rows), "mask": sees, "cache": given["cache"]}
    else:
        mask = torch.zeros(sees.shape, dtype=dtype, device=ids.device)
        mask = mask.masked_fill(~sees, torch.finfo(dtype).min)
        inputs |= {"attention_mask": mask, "past_key_values": given["past_key_values"], "use_cache": True}
    return {point: x[:, lengths.cumsum(0) - 1] for point, x in run(inputs, only=points).items()}


# ---------------------------------------------------------------- the stage


def pixel_grid(frames, grid, first_frame):
    """Raw pixels on the model's own coarsest grid: [n,T,S,S,3] -> [n, t, h, w, p*p*3] in [0, 1]; the first frame of each time step."""
    t, h, w = grid
    x = frames[:, [first_frame(k) for k in range(t)]].float() / 255
    n, p, q = len(x), x.shape[2] // h, x.shape[3] // w
    cells = x[:, :, : h * p, : w * q].reshape(n, t, h, p, w, q, 3)
    return cells.permute(0, 1, 2, 4, 3, 5, 6).reshape(n, t, h, w, -1)


class Writer:
    """Writes files in a thread of its own, in the order given, while the next features are computed; at most two wait to be written."""

    def __init__(self):
        self.pool, self.jobs = ThreadPoolExecutor(1), collections.deque()

    def __call__(self, *args, **kwargs):
        self.jobs.append(self.pool.submit(save_pt, *args, **kwargs))
        while len(self.jobs) > 2:
            self.jobs.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pool.shutdown()
        for job in self.jobs:
            job.result()


class Shard:
    """Collects features of up to 64 items, micro-batch by micro-batch, points in any order. A point is written as soon as it is whole; pooled/<shard>.pt, written last, marks the shard as
    complete."""

    def __init__(self, out, number, items, size, batch, points, write):
        self.out = out
        self.file = f"{number:05d}.pt"
        self.items = items
        self.size = size
        self.batch = batch
        self.write = write
        self.ids = [item["id"] for item in items]
        self.parts, self.pooled = {point: {} for point in points}, {}
        self.starts = list(range(0, len(items), batch))

    def frames(self, k):
        """Micro-batch k: uint8 [n, T, size, size, 3]."""
        few = self.items[self.starts[k] : self.starts[k] + self.batch]
        return torch.stack([frames_of(item, self.size) for item in few])

    def add(self, k, point, x):
        """Features [n, t, h, w, D] of micro-batch k."""
        if point not in self.parts:  # a second attempt, after memory ran out
            return
        half, x = x.half(), x.float()
        bad = int((~half.isfinite()).sum())
        self.parts[point][k] = half.cpu(), x.mean((2, 3)).cpu(), x.amax((2, 3)).cpu(), bad
        if len(self.parts[point]) == len(self.starts):
            parts = [part for _, part in sorted(self.parts.pop(point).items())]
            halves, means, maxima, nonfinite = zip(*parts, strict=True)
            whole = torch.cat(halves)
            self.pooled[point] = {
                "mean": torch.cat(means),
                "max": torch.cat(maxima),
                "shape": list(whole.shape[1:]),
                "nonfinite": sum(nonfinite),
            }
            self.write(self.out / point / self.file, FEATURES, self.ids, {"point": point}, features=whole)

    def mark(self, **what):
        """Record what is false of points: grid=names of those without a place in the picture, causal=names of those that have seen later frames."""
        for key, names in what.items():
            for name in names & set(self.pooled):
                self.pooled[name][key] = False

    def add_pixels(self, first_frame):
        """The pictures' own pixels on the coarsest grid there is: the floor."""
        if grids := [row["shape"][:3] for row in self.pooled.values() if row.get("grid", True)]:
            self.parts["pixels"] = {}
            for k in range(len(self.starts)):
                self.add(k, "pixels", pixel_grid(self.frames(k), min(grids, key=math.prod), first_frame))

    def finish(self, names, seconds):
        """Write what marks the shard as complete."""
        meta = {"seconds": seconds}
        if "shown" in self.items[0]:
            meta["shown"] = [item["shown"] for item in self.items]
        pooled = {p: self.pooled[p] for p in ("pixels", *names) if p in self.pooled}
        self.write(self.out / "pooled" / self.file, POOLED, self.ids, meta, pooled=pooled)


def one_by_one(run, inputs_of, restore, shards, device, dtype, finish, questions=None):
    """Fill every shard, micro-batch after micro-batch. The seconds recorded are those of preparing and running each.

    questions(batch, given) -> {point: features} of questions that are asked afterwards; their seconds are not counted.
    """
    for shard in shards:
        seconds = []
        for k in range(len(shard.starts)):
            frames = shard.frames(k)
            wait_for(device)
            started = time.perf_counter()
            batch = inputs_of(frames)
            given = on(batch, device, dtype)
            features = {point: restore(point, x, batch) for point, x in run(given).items()}
            wait_for(device)
            seconds.append((time.perf_counter() - started) / len(frames))
            features |= questions(batch, given) if questions else {}
            for point, x in features.items():
                shard.add(k, point, x)
        finish(shard, seconds)


def layer_by_layer(network, run, inputs_of, restore, shards, dtype, finish, budget):
    """Fill every shard by streaming, in as few rounds as the budget of bytes allows. No seconds are recorded, since no pass runs by itself."""
    jobs = [(shard, k) for shard in shards for k in range(len(shard.starts))]
    while jobs:
        batches = []

        def inputs(jobs=jobs, batches=batches):
            for shard, k in jobs:
                batches.append(inputs_of(shard.frames(k)))
                yield on(batches[-1], network.device, dtype)

        def drain(i, seen, jobs=jobs, batches=batches):
            shard, k = jobs[i]
            for point in list(seen):
                shard.add(k, point, restore(point, seen.pop(point), batches[i]))

        done = 0
        with contextlib.suppress(torch.OutOfMemoryError):
            done = stream(network, run, inputs(), budget, drain)
        if not done:  # what was written stays; the rest is tried again in smaller rounds
            if len(batches) < 2:
                n = len(jobs[0][0].ids[: jobs[0][0].batch])
                refuse(f"two layers leave no memory for a micro-batch; give a --batch smaller than {n}")
            budget /= 2
            torch.cuda.empty_cache()
        for shard in dict.fromkeys(shard for shard, _ in jobs[:done]):
            if not shard.parts:
                finish(shard, [])
        jobs = jobs[done:]


def wait_for(device):
    """A GPU computes behind our back: wait until it is done, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def read_questions(path):
    """The lines of a text file."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        refuse(f"--questions {path} cannot be read; give a text file with a question a line")
    return lines or refuse(f"--questions {path} is empty; give a text file with a question a line")


def share(shard):
    """(i, n): this process takes shards i, i+n, ...: from --shard i/n, or from torchrun's environment."""
    if not shard:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    i, _, n = shard.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        refuse(f"--shard {shard!r} is not i/n with 0 <= i < n; the first of four is 0/4")
    return int(i), int(n)


# Points behind the tower that others have not.
BESIDES = {
    "cogvlm2": "conv",
    "qwen3_vl": "deepstack.0-2",
    "grounding-dino": "scale.0-3 encoder.0-5",
    **dict.fromkeys(("owlvit", "owlv2"), "class_head box_head"),
}


def described(entry):
    """A row of --list, from an entry of the registry alone; "-" for what it does not state.

    tokens, kB: of one image of the registry's size at one point of the tower (of its first-last stage, if it has several) / at the merger or one point of the language model, in fp16.
    GB of GPU memory, with weights of 2 bytes: whole = 2 (all - head); streamed = 2 (outside the stacks + 2 largest layers) + a margin for the activations of one image,
    1 GB + 32 bytes x tokens x width of the larger stack (16 rows of that width, of 2 bytes: q, k, v, the gated MLP, residuals).
    """
    row = {
        "repository": entry["path"],
        "revision": "local" if entry["path"].startswith(TINY) else entry.get("revision") or "newest",
        "params_B": f"{entry['params']:.3g}" if "params" in entry else "-",
        "licence": entry.get("licence", "-"),
        "points": "-",
        "px": entry.get("size", "-"),
        "tokens": "-",
        "kB": "-",
        "GB_whole": f"{2 * (entry['params'] - entry['head']):.3g}" if "params" in entry else "-",
        "GB_streamed": "-",
    }
    if not entry.get("vision"):
        return row
    layers, patch, width = entry["vision"]
    stages = layers if isinstance(layers, tuple) else (layers,)
    sides = [entry["size"] // (patch << stage) for stage in range(len(stages))]
    stacks = [[(side**2, width << stage) for stage, side in enumerate(sides)]]
    points = ["patch_embed", f"vision.0-{sum(stages) - 1}"] if layers else ["latents", "latents-raw"]
    points += [BESIDES[entry["type"]]] if entry["type"] in BESIDES else []
    if entry["language"]:
        layers, merge, width = entry["language"]
        stacks.append([(math.prod(merge) if isinstance(merge, tuple) else (sides[-1] // merge) ** 2, width)])
        points += ["merger", f"language.0-{layers - 1}"]
    active = 32e-9 * max(n * width for stack in stacks for n, width in stack)
    streamed = 2 * (entry["outside"] + 2 * entry["layer"]) + 1 + active

    def both(shown):
        ends = [[f"{shown(*stack[k]):.0f}" for k in (0, -1)] for stack in stacks]
        return "/".join("-".join(dict.fromkeys(pair)) for pair in ends)

    return row | {
        "points": " ".join(points),
        "tokens": both(lambda n, width: n),
        "kB": both(lambda n, width: 2 * n * width / 1000),
        "GB_streamed": f"{streamed:.1f}" if entry["layer"] else "-",
    }


def aligned(rows):
    """Lines of dicts with the same keys, the columns aligned under the keys."""
    rows = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(f"{x!s:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def agree(out, plan):
    """Refuse to go on in a folder that was begun with other settings."""
    if (out / "plan.yaml").exists() and (before := load_yaml(out / "plan.yaml")) != plan:
        what = next(k for k in before | plan if before.get(k) != plan.get(k))
        differs = f"made with {what} {before.get(what)!r}, not {plan.get(what)!r}"
        refuse(f"{out} holds features {differs}; delete the folder or give another --out")


def chosen(args, points):
    """{point: module path} of the points that --points asks for, in the order of execution."""
    groups = {"all": list(points), "quarters": quarters(points), "last": list(points)[-1:]}
    names = groups.get(args.points) or args.points.split(",")
    if unknown := [n for n in names if n not in points]:
        refuse(f"{args.model} has no point {unknown[0]!r}; its points are {', '.join(points)}")
    return {n: points[n][0] for n in points if n in names}


def compute(args, entry, plan, items, out, todo, device, dtype):
    """Compute and write the shards `todo`; ({point: module path}, bytes of weights that were read)."""
    most = memory_size(args.max_memory) if args.max_memory else None
    seed = args.seed if args.random_init else None
    network, streamed = None, False
    if entry["kind"] == "vae":
        if args.stream:
            refuse(f"{args.model} is an autoencoder, not a stack of layers, and small: leave --stream out")
        model, processor = LOADERS["vae"](entry, device, dtype, seed)
    else:
        model, processor, weights = skeleton(entry, dtype, device, seed)
    make_inputs, points, multiple, first_frame = family_of(model)(model, processor)
    whole_tokens(args.size, multiple, args.model)
    modules = chosen(args, points)
    if entry["kind"] != "vae":
        network = Network(model, weights, device, points, list(modules)[-1])
        weights.ready(network.weights_of(network.wanted))
        whole = network.bytes(network.wanted)
        least = network.bytes(network.largest(2))
        limit = memory_left(device, most)
        streamed = args.stream or 1.2 * whole > limit  # a fifth for activations
        way = "layer by layer" if streamed else "at once"
        print(f"weights {whole / 1e9:.2f} GB, memory {limit / 1e9:.1f} GB: {way}")
        if streamed and least > limit:
            need = f"{args.model} needs {least / 1e9:.2f} GB even layer by layer, of {limit / 1e9:.2f} GB"
            refuse(f"{need}; free some, or raise --max-memory")
        if args.random_init and streamed:  # the library's own initialisation needs the whole network at once
            plan["random_seed"] = f"{seed}, by name"
            agree(out, plan)
        if args.random_init and not streamed:
            model, processor = LOADERS[entry["kind"]](entry, device, dtype, seed)
            make_inputs, points, *_ = family_of(model)(model, processor)
        else:
            network.fill([] if streamed else network.wanted)

    questions, asked = plan.get("questions", []), {}
    if questions:
        if streamed:
            refuse("--questions needs the whole model at once: leave --stream out")
        if network is None or model.config.model_type not in ASKABLE or not processor:
            refuse(f"--questions: {args.model} is no causal language model with a tokenizer; leave them out")
        asked = {f"asked.{p.partition('.')[2]}": p for p in modules if p.startswith("language.")}
        if not asked:
            refuse(f"--questions is about language layers, and --points {args.points} names none; give some")
    written = modules | {new: modules[old] for new, old in asked.items()}

    def inputs_of(frames):
        batch = make_inputs(frames)  # refuses frames that the model cannot take, before anything is written
        if questions:
            batch = up_to_the_picture(model, batch)
        if not (out / "plan.yaml").exists():
            save_yaml(out / "modules.yaml", written)
            save_yaml(out / "plan.yaml", plan)
        return batch

    def restore(point, x, batch):
        return points[point][1](x, batch)

    def questions_about(batch, given):
        tokens = [words_behind(model, processor, batch, question) for question in questions]
        found = ask(model, run, given, tokens, set(asked.values()), dtype)
        found = {p: x.unflatten(0, (-1, batch.get("frames", 1)))[:, :, None] for p, x in found.items()}
        return {new: found[old] for new, old in asked.items()}  # [n, t, 1, questions, D]

    def finish(shard, seconds):
        later = {p for p in points if sees_later_frames(model, p)}
        shard.mark(grid=without_grid(points) | set(asked), causal=later)
        shard.add_pixels(first_frame)
        shard.finish(written, seconds)

    def shard_of(number):
        few = picked(items[number * SHARD : (number + 1) * SHARD], args.frames, args)
        return Shard(out, number, few, args.size, args.batch, written, write)

    with Writer() as write, watching(model, modules) if network else latents_of(model) as run:
        if streamed:
            # half for what comes to be held on the way
            shards, budget = [shard_of(s) for s in todo], (limit - least) / 2
            layer_by_layer(network, run, inputs_of, restore, shards, dtype, finish, budget)
        else:
            shards = map(shard_of, tqdm(todo, desc=f"{entry['name']} {Path(args.data).name}", unit="shard"))
            about = questions_about if questions else None
            one_by_one(run, inputs_of, restore, shards, device, dtype, finish, about)
    return written, network.weights.bytes if network else None


def done(out, shard):
    """Is the shard complete?"""
    return (out / "pooled" / f"{shard:05d}.pt").exists()


def meet(args):
    """Wait until every rank of torchrun is here. Returns whether this is the one that goes on."""
    if not args.shard and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
            atexit.register(torch.distributed.destroy_process_group)
        torch.distributed.barrier()
        return torch.distributed.get_rank() == 0
    return True


def conclude(args, started, out, data, modules, facts, **run):
    """Write pooled.pt and, last, index.yaml, if every shard is there; the result."""
    shards = -(-len(data["ids"]) // SHARD)
    if missing := sum(not done(out, s) for s in range(shards)):
        print(f"shards_missing {missing} of {shards}: run the other --shard parts, then any of them again")
        return {"shards_missing": missing}
    parts = [load_pt(out / "pooled" / f"{s:05d}.pt", POOLED) for s in range(shards)]
    pooled, table = {}, {}
    for p, first in parts[0]["pooled"].items():
        own = [part["pooled"][p] for part in parts]
        pooled[p] = {k: torch.cat([part[k] for part in own]) for k in ("mean", "max")}
        table[p] = {
            "module": modules.get(p, "the frames themselves"),
            "shape": first["shape"],
            "dtype": "float16",
            "bytes": sum(f.stat().st_size for f in (out / p).glob("*.pt")),
            "nonfinite": sum(part["nonfinite"] for part in own),
            **{k: False for k in ("grid", "causal") if not first.get(k, True)},
        }
    save_pt(out / "pooled.pt", POOLED, data["ids"], {"model": facts["model"]}, pooled=pooled)
    # none where layers were streamed: a pass has no seconds of its own
    seconds = sorted(s for part in parts for s in part["meta"]["seconds"])
    more = {"micro_batch": args.batch, "streamed": not seconds, "script": "extract.py"}
    shown = {}
    if args.frames:
        shown = {"frames": args.frames, "count": args.count}
        shown["shown"] = [x for part in parts for x in part["meta"]["shown"]]
    result = {
        "stage": "extract",
        "schema": FEATURES,
        **facts,
        "data": data["data"],
        "items": len(data["ids"]),
        "size": args.size,
        "seconds_per_item": seconds[len(seconds) // 2] if seconds else None,
        "bytes": sum(t["bytes"] for t in table.values()),
        "nonfinite": sum(t["nonfinite"] for t in table.values()),
        "data_path": str(args.data),
        "shards": shards,
        "points": table,
        **shown,
        "ids": data["ids"],
        "run": run_info(args, started, **more, **run),
    }
    save_yaml(out / "index.yaml", result)
    say(result)
    return result


def one_model(args, started):
    """Features of one model; the result, or {} on a rank that does not write it."""
    entry = find_model(args.model) | {"revision": args.revision}
    without = {"language": "language model, which sees nothing", "tracker": "tracker, which track.py asks"}
    if kind := without.get(entry["kind"]):
        refuse(f"--model {args.model} is a {kind}; give one of `python extract.py --list` that has points")
    if args.revision and Path(entry["path"]).is_dir():
        refuse(f"--revision {args.revision} goes with the hub, and {entry['path']} is a folder; leave it out")
    args.points = own_names(args.points, entry)
    items, data = load_items(args.data)
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/features")
    check_writable(out / "index.yaml")
    if args.batch < 1:
        refuse(f"--batch {args.batch} is not positive; give 1 or more")
    clip = "frames" in items[0] and len(items[0]["frames"]) > 1
    if args.tiles and (args.size or entry.get("type") not in TILED):
        refuse(f"--tiles goes with {' and '.join(TILED)}, in the place of --size; give {args.model} a --size")
    args.size = args.size or entry["clip" if clip else "size"] * (2 if args.tiles == "all" else 1)
    device, dtype, why = choose_device()
    plan = {
        "model": entry["name"],
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "weights": "random" if args.random_init else entry["weights"],
        "size": args.size,
        "batch": args.batch,
        "points": args.points,
        "random_seed": args.seed if args.random_init else None,
        "dtype": str(dtype),
        "items": same_items(items, data),
    }
    if ways_of(args, items):
        plan["frames"] = [args.frames, args.count, args.largest_gap, args.seed]
    if args.questions:
        plan["questions"] = read_questions(args.questions)
    agree(out, plan)
    rank, ranks = share(args.shard)
    todo = [s for s in range(rank, -(-len(items) // SHARD), ranks) if not done(out, s)]
    modules, read = load_yaml(out / "modules.yaml") if (out / "modules.yaml").exists() else {}, None
    if todo or not modules:
        print(f"device {device.type} ({why})")
        modules, read = compute(args, entry, plan, items, out, todo, device, dtype)
    if not meet(args):
        return {}
    run = {"device": f"{device.type} ({why})", "dtype": str(dtype), "weights_read_gb": read and read / 1e9}
    run["model_revision"] = resolved_commit(entry)
    facts = {"model": entry["name"], "kind": entry["kind"], "weights": plan["weights"]}
    return conclude(args, started, out, data, modules, facts, **run)


# ---------------------------------------------------------------- two encoders side by side


def fuse(a, b):
    """Features [n, t, h, w, D] of two encoders, concatenated on the coarser grid: [n, t, h, w, D']. Where one grid is a whole multiple of the other all tokens of a cell are kept, else they are
    averaged; time steps are averaged."""
    t, h, w = (min(x, y) for x, y in zip(a.shape[1:4], b.shape[1:4], strict=True))

    def match(x):
        if x.shape[2] % h == 0 and x.shape[3] % w == 0:
            x = x.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)
        return torch.nn.functional.adaptive_avg_pool3d(x.movedim(-1, 1), (t, h, w)).movedim(1, -1)

    return torch.cat([match(a), match(b)], -1)


def side_by_side(args, started):
    """--model a+b: the features of both in folders of their own under --out and, for each point of b with a grid, `fused.<point>`: that point beside a's last one."""
    names = args.model.split("+")
    if args.questions:
        refuse(f"--model {args.model} with --questions: ask one model alone")
    if len(names) != 2:
        refuse(f"--model {args.model} names {len(names)} models; give two, a+b")
    entries = [find_model(name) for name in names]
    if len({entry["name"] for entry in entries}) == 1:
        refuse(f"--model {args.model} names the same model twice; give two that differ")
    items, data = load_items(args.data)
    facts = {"model": "+".join(entry["name"] for entry in entries), "kind": entries[1]["kind"]}
    out = Path(args.out or f"results/{facts['model']}/{Path(args.data).name}/features")
    rank, ranks = share(args.shard)
    for entry, name, points in zip(entries, names, ("last", args.points), strict=True):
        print(f"-- {entry['name']}")
        own = vars(args) | {"model": name, "points": points, "out": str(out / entry["name"])}
        found = one_model(argparse.Namespace(**own), started)
        if "shards_missing" in found:
            return found
    meet(args)
    a, b = (load_yaml(out / entry["name"] / "index.yaml", "extract") for entry in entries)
    left, right = ([p for p in with_grid(index) if p != "pixels"] for index in (a, b))
    if not (left and right):
        name = (b if left else a)["model"]
        refuse(
            f"{name} has no tokens with a place at these --points, and so none to stand beside the other's"
        )
    beside, modules, later = a["points"][left[0]], {}, set()
    for p in right:
        own = b["points"][p]
        modules[f"fused.{p}"] = f"{a['model']}: {beside['module']}, {b['model']}: {own['module']}"
        if not (beside.get("causal", True) and own.get("causal", True)):
            later.add(f"fused.{p}")
    coarser = min(a, b, key=lambda index: math.prod(index["points"]["pixels"]["shape"][:3]))
    todo = [s for s in range(rank, a["shards"], ranks) if not done(out, s)]
    with Writer() as write:
        for s in tqdm(todo, desc="fused", unit="shard"):
            few = picked(items[s * SHARD : (s + 1) * SHARD], args.frames, args)
            shard = Shard(out, s, few, None, SHARD, ["pixels", *modules], write)

            def read(index, point, file=shard.file):
                return load_pt(out / index["model"] / point / file, FEATURES)["features"].float()

            shard.add(0, "pixels", read(coarser, "pixels"))
            for p in right:
                shard.add(0, f"fused.{p}", fuse(read(a, left[0]), read(b, p)))
            shard.mark(causal=later)
            files = [out / index["model"] / "pooled" / shard.file for index in (a, b)]
            seconds = [load_pt(file, POOLED)["meta"]["seconds"] for file in files]
            shard.finish(modules, [x + y for x, y in zip(*seconds, strict=True)])
    if not meet(args):
        return {}
    args.size = b["size"]
    facts["weights"] = min(
        a["weights"], b["weights"], key=("random", "unstated", "small", "pretrained").index
    )
    return conclude(args, started, out, data, modules, facts, parts={i["model"]: i["run"] for i in (a, b)})


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--model", default="tiny", help="a registry name or a folder in Hugging Face format")
    add("--data", default="data/shapes", help="a folder that data.py wrote")
    add("--out", help="default: results/<model>/<data>/features")
    add("--points", default="quarters", help="with commas between; all, last, quarters (four depths a stack)")
    add("--size", type=int, help="side in pixels (default: the registry's, images and clips apart)")
    add("--tiles", choices=("base", "all"), help="LLaVA-NeXT, -OneVision: one piece, or 2 x 2 tiles")
    add("--batch", type=int, default=8, help="micro-batch")
    add("--random-init", action="store_true", help="untrained weights: a baseline")
    add("--revision", help="branch, tag or commit of a hub repository; recorded")
    add("--stream", action="store_true", help="all items through one layer before the next is read")
    add("--max-memory", help="15GB: use no more of the GPU's (on a CPU: the process's) memory")
    add("--questions", help="text file, one a line: adds asked.<i>, layer i at the end of each")
    add("--frames", choices=CHOICES, help="which frames of a clip are shown (default: all)")
    add("--count", type=int, default=8, help="with --frames: how many")
    add("--largest-gap", type=int, help="with motion or uniform: between two frames")
    add("--shard", help="i/n: only every n-th shard, from the i-th (0-based) on")
    add("--list", action="store_true", help="print the registry and stop")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.list:
        print(*aligned([{"name": name} | described(entry) for name, entry in MODELS.items()]), sep="\n")
        print(
            "tokens, kB (fp16): at one point of the tower / behind it; GB of GPU memory: weights of 2 bytes"
        )
        return MODELS
    if "+" in args.model and not Path(args.model).exists():
        return side_by_side(args, started)
    return one_model(args, started)


if __name__ == "__main__":
    main()
