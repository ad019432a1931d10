"""Stage 1. Features of a frozen network for each image or clip, layer by layer.

    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features
    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features-random --random-init
    python extract.py --model cogvlm2 --data data/shapes --stream --max-memory 15GB   # one layer at a time

Reads data/<name>/ and a checkpoint: a registry name or a folder in Hugging Face format. Writes, under --out,
    <point>/00000.pt ...   features [n, t, h, w, D] fp16, raster order on the image's grid, 64 items a shard
    pooled.pt              for every point, mean and max over space: {point: [n, t, D]}
    index.yaml             written last: per point module, shape, dtype, bytes, non-finite values; run info

Points are `pixels` (those of each token, a baseline), `patch_embed`, `vision.<i>`, `merger` (projector) and
`language.<i>`; an autoencoder has `latents` (the mode, normalised as video models expect it); families add
their own (README). Tokens without a place in the image are [n, t, 1, K, D], with `grid: false`. --points also
accepts the plan's names: L1-L5 (LLaVA), I1-I5 (InternVL), C1-C4 (CogVLM2). A pass stops at the last point. A
complete shard is never computed again: the same command continues a killed run.

Modules to copy with it: cogvlm2.py, common.py, families.py, media.py, models.py.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import math
import os
import shutil
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
    fail,
    load_items,
    load_pt,
    load_yaml,
    memory_left,
    memory_size,
    parser,
    print_summary,
    run_info,
    same_items,
    save_pt,
    save_yaml,
    with_grid,
)
from families import (
    ASKABLE,
    TILED,
    family_of,
    on,
    positions_behind,
    quarters,
    resolve_aliases,
    sees_later_frames,
    up_to_the_image,
    whole_tokens,
    without_grid,
    words_behind,
)
from media import CHOICES, frame_methods, frames_of, with_chosen
from models import LOADERS, MODELS, TINY, fill, find_model, fingerprint, resolved_commit, skeleton

# ---------------------------------------------------------------- one forward pass that stops early


class AllCaptured(Exception):
    """Every point is captured: nothing deeper needs to be computed."""


@contextlib.contextmanager
def capturing(model, modules):
    """run(inputs, seen={}, only=modules) -> {point: output} for `modules` {point: module path}; it ends at the last of them. Thread-safe.

    Outputs are cloned, because transformers changes some of them in place later (in get_image_features).
    """
    here = threading.local()

    def hook(point):
        def capture_output(module, args, output):
            if point not in here.only:
                return
            here.seen[point] = (output[0] if isinstance(output, tuple) else output).clone()
            here.left.discard(point)
            if not here.left:
                raise AllCaptured

        return capture_output

    @torch.inference_mode()
    def run(inputs, seen=None, only=modules):
        here.seen, here.only, here.left = {} if seen is None else seen, only, set(only)
        with contextlib.suppress(AllCaptured):
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
    """`capturing` for a single pass."""
    with capturing(model, modules) as run:
        return run(inputs)


@contextlib.contextmanager
def latents_of(vae):
    """`capturing` for an autoencoder: run(inputs) -> {"latents", "latents-raw": the mode}."""

    @torch.inference_mode()
    def run(inputs):
        mode = vae.encode(inputs["sample"]).latent_dist.mode()
        return {"latents": mode, "latents-raw": mode}

    yield run


# ---------------------------------------------------------------- weights, read only when needed

# modules outside the stacks, hardly ever called before the last point is captured
LATER = ("lm_head", "text_model", "predictor", "decoder")


class Network:
    """A network that reads only the weights it needs: outside the layer stacks, up to the deepest point, LATER modules when called.

    layers: modules of the points vision.<i> and language.<i>; needed: those up to the deepest point; outside: names of other weights.
    """

    def __init__(self, model, weights, device, points, deepest):
        self.model, self.weights, self.device = model, weights, device
        stacks = "vision.", "language."
        self.layers = [point[0] for name, point in points.items() if name.startswith(stacks)]
        reached = {points[name][0] for name in list(points)[: list(points).index(deepest) + 1]}
        self.needed = [path for path in self.layers if path in reached]
        later = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in LATER]
        later = [path for path in later if not any(x.startswith(f"{path}.") for x in self.layers)]
        self.names = {}
        for path in [*self.layers, *later]:
            self.names[path] = [name for name in weights.like if name.startswith(f"{path}.")]
        apart = {name for names in self.names.values() for name in names}
        self.outside = [name for name in weights.like if name not in apart]
        for path in later:
            self.when_called(path, functools.partial(self.fill_and_call, path))

    def when_called(self, path, call):
        """Replace a module's forward by call(*args, **kwargs); hooks on the module still run."""
        self.model.get_submodule(path).forward = call

    @torch.inference_mode()
    def layer(self, path, *args, **kwargs):
        module = self.model.get_submodule(path)
        return type(module).forward(module, *args, **kwargs)

    def fill_and_call(self, path, *args, **kwargs):
        fill(self.model, self.weights, self.names[path], self.device)
        del self.model.get_submodule(path).forward
        return self.layer(path, *args, **kwargs)

    def weights_of(self, layers):
        """Names of the weights outside the stacks and of these layers."""
        return [*self.outside, *(name for path in layers for name in self.names[path])]

    def fill(self, layers):
        fill(self.model, self.weights, self.weights_of(layers), self.device)

    def largest(self, n):
        return sorted(self.needed, key=lambda path: self.weights.size(self.names[path]))[-n:]

    def bytes(self, layers):
        return self.weights.size(self.weights_of(layers))


# ---------------------------------------------------------------- layer streaming: all items pass one layer before the next is read


class Pass(threading.Thread):
    """The forward pass of one micro-batch in a separate thread. It waits at every layer until the main thread has computed the output.

    The model's code between the layers (merging, DeepStack, masks, rotary embeddings) runs unchanged.
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
        except BaseException as e:  # raised again in the main thread
            self.error = e
        self.at = None
        self.stands.release()

    def request(self, *at):
        """Request a layer's output from the main thread. The replaced forward of a layer calls this, in this thread."""
        self.at = at
        self.stands.release()
        self.go.acquire()
        if self.given_up:
            raise AllCaptured
        output, self.output = self.output, None
        return output

    def on(self, output):
        """Deliver a layer's output and wait until the pass reaches the next layer or ends."""
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
        """Bytes held while waiting: inputs, residual stream, masks, rotary embeddings."""
        from torch.utils._pytree import tree_leaves

        tensors = {id(x): x for x in tree_leaves((self.inputs, self.at)) if torch.is_tensor(x)}
        return sum(x.nbytes for x in tensors.values())


def stream(network, forward, batches, budget, drain):
    """Stream as many micro-batches (inputs of `forward`) as fit into `budget` bytes, layer by layer. Returns their number.

    A reader thread loads the next layer meanwhile, so two are in memory. drain(k, seen) receives the outputs of micro-batch k so far.
    """
    model, weights, device = network.model, network.weights, network.device
    # on a separate CUDA stream, the copy overlaps the computation
    side = torch.cuda.Stream(device) if device.type != "cpu" else None

    def read(path):
        if not side:
            return dict(weights.read(network.names[path]))
        state = {}
        with torch.cuda.stream(side):
            for name, x in weights.read(network.names[path]):
                state[name] = x.pin_memory().to(device, non_blocking=True)
            side.synchronize()
        return state

    def request(path, *args, **kwargs):
        return threading.current_thread().request(path, args, kwargs)

    for path in network.layers:
        network.when_called(path, functools.partial(request, path))
    passes, held, following = [], 0, dict(zip(network.needed, network.needed[1:], strict=False))
    with ThreadPoolExecutor(1) as reader, tqdm(total=len(network.needed), unit="layer") as bar:
        try:
            ahead = {path: reader.submit(read, path) for path in network.needed[:1]}
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
                    # the same code runs for every micro-batch, so all wait at the same layer
                    assert where == path, (where, path)
                    passes[k].on(network.layer(path, *args, **kwargs))
                    del args, kwargs  # free the input of a layer once its output exists
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


# ---------------------------------------------------------------- several questions about one image, which is computed once


def states_at_questions(model, run, given, questions, points, dtype):
    """Hidden states at the last token of every question, {point: [sequences, questions, D]}, in one pass; the image is in the cache.

    questions: lists of token ids. Each has the positions it would have alone, and attends only to the image and to itself.
    """
    ids = [token for question in questions for token in question]
    ids = torch.tensor(ids, device=given["input_ids"].device)
    lengths = torch.tensor([len(question) for question in questions], device=ids.device)
    n, end = given["input_ids"].shape
    number = torch.arange(len(questions), device=ids.device).repeat_interleave(lengths)
    place = torch.arange(len(ids), device=ids.device) - (lengths.cumsum(0) - lengths)[number]
    longest = torch.zeros(n, int(lengths.max()), dtype=torch.long, device=ids.device)
    attends = (number[:, None] == number) & (place[:, None] >= place)  # [rows, rows]
    attends = torch.cat([attends.new_ones(len(ids), end), attends], 1).expand(n, 1, -1, -1)
    places, rows = positions_behind(model, given, longest)[..., place], ids.expand(n, -1)
    inputs = {"input_ids": rows, "position_ids": places}
    if "cache" in given:
        inputs |= {"token_type_ids": torch.zeros_like(rows), "mask": attends, "cache": given["cache"]}
    else:
        mask = torch.zeros(attends.shape, dtype=dtype, device=ids.device)
        mask = mask.masked_fill(~attends, torch.finfo(dtype).min)
        inputs |= {"attention_mask": mask, "past_key_values": given["past_key_values"], "use_cache": True}
    return {point: x[:, lengths.cumsum(0) - 1] for point, x in run(inputs, only=points).items()}


# ---------------------------------------------------------------- the stage


def pixel_grid(frames, grid, first_frame):
    """Raw pixels on a grid (t, h, w): [n,T,S,S,3] -> [n, t, h, w, p*p*3] in [0, 1], of the first frame of each time step."""
    t, h, w = grid
    x = frames[:, [first_frame(k) for k in range(t)]].float() / 255
    n, p, q = len(x), x.shape[2] // h, x.shape[3] // w
    cells = x[:, :, : h * p, : w * q].reshape(n, t, h, p, w, q, 3)
    return cells.permute(0, 1, 2, 4, 3, 5, 6).reshape(n, t, h, w, -1)


class Writer:
    """Writes files in order in a separate thread, while the next features are computed. At most two files wait."""

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
    """Collects features of up to 64 items by micro-batch, points in any order. A complete point is written at once.
    pooled/<shard>.pt, written last, marks the shard as complete."""

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
        if point not in self.parts:  # repeated after an out-of-memory error
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
        """Mark points as false: grid=names of points without a grid, causal=names of points that depend on later frames."""
        for key, names in what.items():
            for name in names & set(self.pooled):
                self.pooled[name][key] = False

    def add_pixels(self, first_frame):
        """Pixels on the coarsest grid of all points: a baseline."""
        if grids := [row["shape"][:3] for row in self.pooled.values() if row.get("grid", True)]:
            self.parts["pixels"] = {}
            for k in range(len(self.starts)):
                self.add(k, "pixels", pixel_grid(self.frames(k), min(grids, key=math.prod), first_frame))

    def finish(self, names, seconds):
        """Write the file that marks the shard as complete."""
        meta = {"seconds": seconds}
        if "shown" in self.items[0]:
            meta["shown"] = [item["shown"] for item in self.items]
        pooled = {p: self.pooled[p] for p in ("pixels", *names) if p in self.pooled}
        self.write(self.out / "pooled" / self.file, POOLED, self.ids, meta, pooled=pooled)


def one_by_one(run, inputs_of, restore, shards, device, dtype, finish, questions=None):
    """Fill every shard, micro-batch by micro-batch. The recorded seconds are those of preparing and running each.

    questions(batch, given) -> {point: features} at the questions; its time is not counted.
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
    """Fill every shard by streaming, in as few rounds as `budget` (bytes) allows. No seconds are recorded: passes overlap."""
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
        if not done:  # written points stay; the rest is repeated in smaller rounds
            if len(batches) < 2:
                n = len(jobs[0][0].ids[: jobs[0][0].batch])
                fail(f"two layers leave no memory for a micro-batch; give a --batch smaller than {n}")
            budget /= 2
            torch.cuda.empty_cache()
        for shard in dict.fromkeys(shard for shard, _ in jobs[:done]):
            if not shard.parts:
                finish(shard, [])
        jobs = jobs[done:]


def wait_for(device):
    """Wait until the GPU is idle. Kernels run asynchronously, so a clock must be read after this."""
    if device.type != "cpu":
        torch.cuda.synchronize()


def read_questions(path):
    """The lines of a text file."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        fail(f"--questions {path} cannot be read; give a text file with a question a line")
    return lines or fail(f"--questions {path} is empty; give a text file with a question a line")


def share(shard):
    """(i, n): this process computes shards i, i+n, ...; from --shard i/n or torchrun's environment."""
    if not shard:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    i, _, n = shard.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        fail(f"--shard {shard!r} is not i/n with 0 <= i < n; the first of four is 0/4")
    return int(i), int(n)


# Points after the tower that other families lack.
BESIDES = {
    "cogvlm2": "conv",
    "qwen3_vl": "deepstack.0-2",
    "grounding-dino": "scale.0-3 encoder.0-5",
    **dict.fromkeys(("owlvit", "owlv2"), "class_head box_head"),
}


def registry_row(entry):
    """A row of --list, from an entry of the registry alone; "-" where a value is not stated.

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


def check_plan(out, plan, args=None):
    """Exit 2 where `out` was started with other settings; with --overwrite one rank deletes it instead."""
    overwrite = (out, *vars(args).get("fused", ())) if args and args.overwrite and not args.shard else ()
    before = load_yaml(out / "plan.yaml") if (out / "plan.yaml").exists() else plan
    if before["random_seed"] == f"{plan['random_seed']}, by name":  # streamed, which is known only later
        before |= {"random_seed": plan["random_seed"]}
    what = next((k for k in before | plan if before.get(k) != plan.get(k)), None)
    if what and not overwrite:
        differs = f"extracted with {what} {before.get(what)!r}, not {plan.get(what)!r}"
        fail(f"{out} holds features {differs}; give another --out, or --overwrite, which deletes them")
    if overwrite and wait_for_ranks(args) and what:
        for folder in overwrite:
            shutil.rmtree(folder, ignore_errors=True)
    if overwrite:
        wait_for_ranks(args)


def chosen(args, points):
    """{point: module path} of --points, in the order of execution."""
    groups = {"all": list(points), "quarters": quarters(points), "last": list(points)[-1:]}
    names = groups.get(args.points) or args.points.split(",")
    if unknown := [n for n in names if n not in points]:
        fail(f"{args.model} has no point {unknown[0]!r}; its points are {', '.join(points)}")
    return {n: points[n][0] for n in points if n in names}


def compute(args, entry, plan, items, out, todo, device, dtype):
    """Compute and write the shards `todo`. Returns ({point: module path}, bytes of weights read)."""
    most = memory_size(args.max_memory) if args.max_memory else None
    seed = args.seed if args.random_init else None
    network, streamed = None, False
    if entry["kind"] == "vae":
        if args.stream:
            fail(f"{args.model} is an autoencoder, not a stack of layers; leave --stream out")
        model, processor = LOADERS["vae"](entry, device, dtype, seed)
    else:
        model, processor, weights = skeleton(entry, dtype, device, seed)
    make_inputs, points, multiple, first_frame = family_of(model)(model, processor)
    whole_tokens(args.size, multiple, args.model)
    modules = chosen(args, points)
    if entry["kind"] != "vae":
        network = Network(model, weights, device, points, list(modules)[-1])
        weights.ready(network.weights_of(network.needed))
        whole = network.bytes(network.needed)
        least = network.bytes(network.largest(2))
        limit = memory_left(device, most)
        streamed = args.stream or 1.2 * whole > limit  # a fifth for activations
        way = "layer by layer" if streamed else "at once"
        print(f"weights {whole / 1e9:.2f} GB, memory {limit / 1e9:.1f} GB: {way}")
        if streamed and least > limit:
            need = f"{args.model} needs {least / 1e9:.2f} GB even layer by layer, of {limit / 1e9:.2f} GB"
            fail(f"{need}; free some, or raise --max-memory")
        if args.random_init and streamed:  # the library's initialisation needs the whole network at once
            plan["random_seed"] = f"{seed}, by name"
            check_plan(out, plan)
        if args.random_init and not streamed:
            model, processor = LOADERS[entry["kind"]](entry, device, dtype, seed)
            make_inputs, points, *_ = family_of(model)(model, processor)
        else:
            network.fill([] if streamed else network.needed)

    questions, question_points = plan.get("questions", []), {}
    if questions:
        if streamed:
            fail("--questions needs the whole model in memory; leave --stream out")
        if network is None or model.config.model_type not in ASKABLE or not processor:
            fail(f"--questions: {args.model} is not a causal language model with a tokenizer; leave it out")
        question_points = {f"question.{p.partition('.')[2]}": p for p in modules if p.startswith("language.")}
        if not question_points:
            fail(f"--questions needs language layers, and --points {args.points} names none; add one")
    written = modules | {new: modules[old] for new, old in question_points.items()}

    def inputs_of(frames):
        batch = make_inputs(frames)  # exits 2 for wrong frames, before anything is written
        if questions:
            batch = up_to_the_image(model, batch)
        if not (out / "plan.yaml").exists():
            save_yaml(out / "modules.yaml", written)
            save_yaml(out / "plan.yaml", plan)
        return batch

    def restore(point, x, batch):
        return points[point][1](x, batch)

    def question_features(batch, given):
        tokens = [words_behind(model, processor, batch, question) for question in questions]
        found = states_at_questions(model, run, given, tokens, set(question_points.values()), dtype)
        found = {p: x.unflatten(0, (-1, batch.get("frames", 1)))[:, :, None] for p, x in found.items()}
        return {new: found[old] for new, old in question_points.items()}  # [n, t, 1, questions, D]

    def finish(shard, seconds):
        later = {p for p in points if sees_later_frames(model, p)}
        shard.mark(grid=without_grid(points) | set(question_points), causal=later)
        shard.add_pixels(first_frame)
        shard.finish(written, seconds)

    def shard_of(number):
        few = with_chosen(items[number * SHARD : (number + 1) * SHARD], args.frames, args)
        return Shard(out, number, few, args.size, args.batch, written, write)

    with Writer() as write, capturing(model, modules) if network else latents_of(model) as run:
        if streamed:
            # half is left for tensors that are created on the way
            shards, budget = [shard_of(s) for s in todo], (limit - least) / 2
            layer_by_layer(network, run, inputs_of, restore, shards, dtype, finish, budget)
        else:
            shards = map(shard_of, tqdm(todo, desc=f"{entry['name']} {Path(args.data).name}", unit="shard"))
            at_questions = question_features if questions else None
            one_by_one(run, inputs_of, restore, shards, device, dtype, finish, at_questions)
    return written, network.weights.bytes if network else None


def done(out, shard):
    """Is the shard complete?"""
    return (out / "pooled" / f"{shard:05d}.pt").exists()


def wait_for_ranks(args):
    """Wait for every rank of torchrun. Returns True on the rank that continues."""
    if not args.shard and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
            atexit.register(torch.distributed.destroy_process_group)
        torch.distributed.barrier()
        return torch.distributed.get_rank() == 0
    return True


def write_index(args, started, out, data, modules, facts, **run):
    """Write pooled.pt and, last, index.yaml, if every shard exists. Returns the result."""
    shards = -(-len(data["ids"]) // SHARD)
    if missing := sum(not done(out, s) for s in range(shards)):
        print(f"shards_missing {missing} of {shards}: run the other --shard parts, then repeat any of them")
        return {"shards_missing": missing}
    parts = [load_pt(out / "pooled" / f"{s:05d}.pt", POOLED) for s in range(shards)]
    pooled, table = {}, {}
    for p, first in parts[0]["pooled"].items():
        rows = [part["pooled"][p] for part in parts]
        pooled[p] = {k: torch.cat([row[k] for row in rows]) for k in ("mean", "max")}
        table[p] = {
            "module": modules.get(p, "the frames themselves"),
            "shape": first["shape"],
            "dtype": "float16",
            "bytes": sum(f.stat().st_size for f in (out / p).glob("*.pt")),
            "nonfinite": sum(row["nonfinite"] for row in rows),
            **{k: False for k in ("grid", "causal") if not first.get(k, True)},
        }
    save_pt(out / "pooled.pt", POOLED, data["ids"], {"model": facts["model"]}, pooled=pooled)
    # none where layers were streamed: passes overlap
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
    print_summary(result)
    return result


def one_model(args, started):
    """Extract the features of one model. Returns the result, or {} on a rank that does not write it."""
    entry = find_model(args.model) | {"revision": args.revision}
    without = {"language": "language model without an image input", "tracker": "tracker, which track.py runs"}
    if kind := without.get(entry["kind"]):
        fail(f"--model {args.model} is a {kind}; give one of `python extract.py --list` that has points")
    if args.revision and Path(entry["path"]).is_dir():
        fail(f"--revision {args.revision} is for the hub, and {entry['path']} is a folder; leave it out")
    args.points = resolve_aliases(args.points, entry)
    items, data = load_items(args.data)
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/features")
    check_writable(out / "index.yaml")
    if args.batch < 1:
        fail(f"--batch {args.batch} is not positive; give 1 or more")
    clip = "frames" in items[0] and len(items[0]["frames"]) > 1
    if args.tiles and (args.size or entry.get("type") not in TILED):
        fail(f"--tiles is for {' and '.join(TILED)} and replaces --size; give {args.model} a --size")
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
    if frame_methods(args, items):
        plan["frames"] = [args.frames, args.count, args.largest_gap, args.seed]
    if args.questions:
        plan["questions"] = read_questions(args.questions)
    check_plan(out, plan, args)
    rank, ranks = share(args.shard)
    todo = [s for s in range(rank, -(-len(items) // SHARD), ranks) if not done(out, s)]
    modules, read = load_yaml(out / "modules.yaml") if (out / "modules.yaml").exists() else {}, None
    if todo or not modules:
        print(f"device {device.type} ({why})")
        modules, read = compute(args, entry, plan, items, out, todo, device, dtype)
    if not wait_for_ranks(args):
        return {}
    run = {"device": f"{device.type} ({why})", "dtype": str(dtype), "weights_read_gb": read and read / 1e9}
    run["model_revision"] = resolved_commit(entry)
    facts = {"model": entry["name"], "kind": entry["kind"], "weights": plan["weights"]}
    return write_index(args, started, out, data, modules, facts, **run)


# ---------------------------------------------------------------- two encoders side by side


def fuse(a, b):
    """Concatenate features [n, t, h, w, D] of two encoders on the coarser grid: [n, t, h, w, D']. Where one
    grid is a multiple of the other, all tokens of a cell are concatenated, else averaged; time steps are averaged."""
    t, h, w = (min(x, y) for x, y in zip(a.shape[1:4], b.shape[1:4], strict=True))

    def match(x):
        if x.shape[2] % h == 0 and x.shape[3] % w == 0:
            x = x.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)
        return torch.nn.functional.adaptive_avg_pool3d(x.movedim(-1, 1), (t, h, w)).movedim(1, -1)

    return torch.cat([match(a), match(b)], -1)


def side_by_side(args, started):
    """--model a+b: the features of each in its own folder under --out; for each point of b with a grid, `fused.<point>`: that point concatenated with the last one of a."""
    names = args.model.split("+")
    if args.questions:
        fail(f"--model {args.model} with --questions: give a single model")
    if len(names) != 2:
        fail(f"--model {args.model} names {len(names)} models; give two, a+b")
    entries = [find_model(name) for name in names]
    if len({entry["name"] for entry in entries}) == 1:
        fail(f"--model {args.model} names the same model twice; give two different ones")
    items, data = load_items(args.data)
    facts = {"model": "+".join(entry["name"] for entry in entries), "kind": entries[1]["kind"]}
    out = Path(args.out or f"results/{facts['model']}/{Path(args.data).name}/features")
    rank, ranks = share(args.shard)
    for entry, name, points in zip(entries, names, ("last", args.points), strict=True):
        print(f"-- {entry['name']}")
        settings = vars(args) | {"model": name, "points": points, "out": str(out / entry["name"])}
        settings["fused"] = [out / "pooled", *out.glob("fused.*")]
        found = one_model(argparse.Namespace(**settings), started)
        if "shards_missing" in found:
            return found
    wait_for_ranks(args)
    a, b = (load_yaml(out / entry["name"] / "index.yaml", "extract") for entry in entries)
    left, right = ([p for p in with_grid(index) if p != "pixels"] for index in (a, b))
    if not (left and right):
        name = (b if left else a)["model"]
        fail(f"{name} has no token grid at these --points to concatenate; give points with a grid")
    first, modules, later = a["points"][left[0]], {}, set()
    for p in right:
        second = b["points"][p]
        modules[f"fused.{p}"] = f"{a['model']}: {first['module']}, {b['model']}: {second['module']}"
        if not (first.get("causal", True) and second.get("causal", True)):
            later.add(f"fused.{p}")
    coarser = min(a, b, key=lambda index: math.prod(index["points"]["pixels"]["shape"][:3]))
    todo = [s for s in range(rank, a["shards"], ranks) if not done(out, s)]
    with Writer() as write:
        for s in tqdm(todo, desc="fused", unit="shard"):
            few = with_chosen(items[s * SHARD : (s + 1) * SHARD], args.frames, args)
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
    if not wait_for_ranks(args):
        return {}
    args.size = b["size"]
    facts["weights"] = min(
        a["weights"], b["weights"], key=("random", "unstated", "small", "pretrained").index
    )
    return write_index(args, started, out, data, modules, facts, parts={i["model"]: i["run"] for i in (a, b)})


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--model", default="tiny", help="a registry name or a folder in Hugging Face format")
    add("--data", default="data/shapes", help="a folder that data.py wrote")
    add("--out", help="default: results/<model>/<data>/features")
    add("--points", default="quarters", help="comma-separated; all, last, quarters (four depths a stack)")
    add("--size", type=int, help="image side in pixels (default: the registry's, for images or clips)")
    add("--tiles", choices=("base", "all"), help="LLaVA-NeXT, -OneVision: one tile, or 2 x 2 tiles")
    add("--batch", type=int, default=8, help="items in a micro-batch")
    add("--random-init", action="store_true", help="untrained weights: a baseline")
    add("--revision", help="branch, tag or commit of a hub repository")
    add("--stream", action="store_true", help="all items through one layer before the next is read")
    add("--max-memory", help="such as 15GB: limit of GPU (on a CPU: process) memory")
    add("--questions", help="text file, one a line: adds question.<i>, layer i at its last token")
    add("--frames", choices=CHOICES, help="how frames of a clip are chosen (default: all frames)")
    add("--count", type=int, default=8, help="with --frames: number of frames")
    add("--largest-gap", type=int, help="with motion or uniform: largest distance of two frames")
    add("--overwrite", action="store_true", help="delete features in --out that have other settings")
    add("--shard", help="i/n: only every n-th shard, starting with the i-th (0-based)")
    add("--list", action="store_true", help="print the registry and stop")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.list:
        print(*aligned([{"name": name} | registry_row(entry) for name, entry in MODELS.items()]), sep="\n")
        print("tokens, kB (fp16): at one point of the tower / after it; GB of GPU memory with 2-byte weights")
        return MODELS
    if "+" in args.model and not Path(args.model).exists():
        return side_by_side(args, started)
    return one_model(args, started)


if __name__ == "__main__":
    main()
