"""Features of a frozen network for each image or clip, layer by layer.

    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features
    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features-random --random-init
    python extract.py --model cogvlm2 --cost      # what gate 1 needs: hours, disk, memory
    python extract.py --model cogvlm2 --check     # is this checkpoint read as its library reads it?

Reads data/<name>/ and a checkpoint: a registry name or a folder in Hugging Face format. Writes, under --out,
    <point>/00000.pt ...   features [n, t, h, w, D] in raster order on the image's grid, at most 64 items
    pooled.pt              for every point, mean and max over space: {point: [n, t, D]}
    reduce.pt              where tokens are stored as K numbers: per point mean [D] and directions [D, K]
    index.yaml             written last: per point module, shape, dtype, bytes, non-finite values; run info

Points are `pixels` (those of each token, a baseline), `patch_embed`, `vision.<i>`, `merger` (projector) and
`language.<i>`; an autoencoder has `latents` (the mode, normalised as video models expect it); families add
their own (README). Tokens without a place in the image, or for which the patch test of check.py finds none,
are [n, t, 1, K, D], with `grid: false`. --points also accepts the short names L1-L5 (LLaVA), I1-I5
(InternVL), C1-C4 (CogVLM2). A pass stops at the last point.

Values are stored in fp16, and in fp32 where they overflow. Of clips only pooled.pt is written, and tokens at
the points of --grids. A complete shard is never computed again: the same command continues a killed run.

Copy with it: check.py, cogvlm2.py, common.py, cost.py, families.py, features.py, media.py, models.py,
streaming.py, checkpoints.py, models.yaml.
"""

import atexit
import datetime
import gc
import math
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

from checkpoints import fingerprint, resolved_commit
from common import (
    DTYPES,
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
    split_of,
)
from families import (
    QWEN,
    TILED,
    family_of,
    sees_later_frames,
    whole_tokens,
    without_grid,
)
from features import (
    FIT_ITEMS,
    REDUCE,
    Fit,
    Shard,
    Writer,
    layer_by_layer,
    one_by_one,
    quarters,
    resolve_aliases,
)
from media import CHOICES, frame_methods, frames_of, with_chosen
from models import LOADERS, find_model, skeleton
from streaming import ASKABLE, Network, capturing, half_linears, latents_of

IN_MEMORY = 1e9  # bytes of a shard; a second one may wait to be written
# all other models see the frames of a clip one by one
TAKES_CLIPS = (*QWEN, "vjepa2", "AutoencoderKLLTXVideo")

# ---------------------------------------------------------------- the stage


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


def wait_for_ranks(args):
    """Wait for every rank of torchrun. Returns True on the rank that continues."""
    if args.shard or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    if not torch.distributed.is_initialized():
        # a rank may work alone for hours
        torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(hours=24))
        atexit.register(torch.distributed.destroy_process_group)
    torch.distributed.barrier()
    return torch.distributed.get_rank() == 0


def check_plan(out, plan, args):
    """Exit 2 where `out` was started with other settings; with --overwrite one rank deletes it instead."""
    overwrite = (out,) if args.overwrite and not args.shard else ()
    before = load_yaml(out / "plan.yaml") if (out / "plan.yaml").exists() else plan
    what = next((k for k in plan if before.get(k) != plan[k]), None)
    if what and not overwrite:
        differs = f"extracted with {what} {before.get(what)!r}, not {plan[what]!r}"
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


def stored_points(job, clip):
    """The points whose tokens are written, by --grids: of images all, of clips none by default."""
    every = {*job.written, "pixels"}
    asked = job.args.grids or ("none" if clip else "all")
    if asked in ("all", "none"):
        return every if asked == "all" else set(job.question_points)
    if asked == "middle":
        layers = [p for p in job.written if p.startswith("language.") and p in job.with_grid]
        layers = [] if job.args.random_init else layers  # no later stage reads those
        return {*layers[(len(layers) - 1) // 2 :][:1], *job.question_points}
    if unknown := set(asked.split(",")) - every:
        fail(f"--grids {asked}: {min(unknown)} is not one of the points {', '.join(job.written)}")
    return {*asked.split(","), *job.question_points}


def open_model(job):
    """The model without its weights, its points and how inputs are made and outputs put in raster order."""
    args, entry = job.args, job.entry
    seed = args.seed if args.random_init else None
    if entry["kind"] == "vae":
        if args.stream:
            fail(f"{args.model} is an autoencoder, not a stack of layers; leave --stream out")
        job.dtype, job.precision = torch.float32, "float32"  # 16 bits would be seen in the pixels
        job.model, job.processor = LOADERS["vae"](entry, job.device, job.dtype, seed)
    else:
        job.model, job.processor, job.weights = skeleton(entry, job.dtype, job.device, seed)
        if job.precision == "mixed":
            half_linears(job.model, job.weights)
            job.dtype = torch.float32
    if args.expert:
        job.model.expert = args.expert
    job.make_inputs, points, *more = family_of(job.model)(job.model, job.processor)
    multiple, job.first_frame = more
    whole_tokens(args.size, multiple, args.model)
    job.points, job.modules = points, chosen(args, points)
    job.with_grid = {*points, "pixels"} - without_grid(points)
    job.sees_later = {p for p in points if sees_later_frames(job.model, p)}
    job.question_points = points_of_questions(job)
    job.written = job.modules | {new: job.modules[old] for new, old in job.question_points.items()}


def points_of_questions(job):
    """{question.<i>: language.<i>} of --questions, whose lines become job.questions; {} without them."""
    args = job.args
    job.questions = read_questions(args.questions) if args.questions else []
    if not job.questions:
        return {}
    if job.entry["kind"] == "vae" or job.model.config.model_type not in ASKABLE or not job.processor:
        known = f"is not a causal language model of {', '.join(ASKABLE)} with a tokenizer"
        fail(f"--questions: {args.model} {known}; leave it out")
    layers = [point for point in job.modules if point.startswith("language.")]
    if not layers:
        fail(f"--questions needs language layers, and --points {args.points} names none; add one")
    return {point.replace("language", "question"): point for point in layers}


def place_weights(job):
    """Load the weights, or decide to stream them. Returns the bytes for streamed micro-batches, or None."""
    args, job.capturing = job.args, capturing
    if job.entry["kind"] == "vae":
        job.capturing = latents_of
        return None
    most = memory_size(args.max_memory) if args.max_memory else None
    job.network = network = Network(job.model, job.weights, job.device, job.points, list(job.modules)[-1])
    job.weights.ready(network.weights_of(network.needed))
    whole, least = network.bytes(network.needed), network.bytes(network.largest(2))
    limit = memory_left(job.device, most) - 2 * job.shard_bytes * (job.device.type == "cpu")
    active = activations(job)
    streamed = args.stream or whole + active > 0.9 * limit
    way = "layer by layer" if streamed else "at once"
    print(f"weights {whole / 1e9:.2f} GB, activations {active / 1e9:.2f}, memory {limit / 1e9:.1f} GB: {way}")
    if not streamed:
        network.fill(network.needed)
        return None
    if least + active > limit:
        need = (
            f"{args.model} needs {(least + active) / 1e9:.2f} GB even layer by layer, of {limit / 1e9:.2f} GB"
        )
        fail(f"{need}; free some, give a smaller --batch, or raise --max-memory")
    if job.questions:
        fail("--questions needs the whole model in memory; leave --stream out")
    network.fill([])
    return limit - least - active


def activations(job):
    """Bytes that one micro-batch takes while it passes a layer: sixteen rows of its width for every token."""
    size = torch.finfo(job.dtype).bits / 8
    tokens = [math.prod(shape) for shape in job.shapes.values()]
    return 16 * size * min(job.args.batch, len(job.items)) * max(tokens, default=0)


def compute(job, todo):
    """Fit the map of --reduce where it is missing, then compute and write the shards `todo`."""
    budget = place_weights(job)
    if job.entry["kind"] != "vae":
        from check import prove_order

        prove_order(job, budget)
    save_yaml(job.out / "modules.yaml", job.written)
    save_yaml(job.out / "plan.yaml", job.plan)
    name = f"{job.entry['name']} {Path(job.args.data).name}"

    def pass_over(batches, capture):
        if budget is None:
            one_by_one(job, capture, tqdm(batches, desc=name, unit="shard"))
        else:
            layer_by_layer(job, capture, batches, budget)

    with Writer() as job.write, job.capturing(job.model, job.modules) as capture:
        if job.reduce:
            file, first = job.out / "reduce.pt", int(os.environ.get("RANK", 0)) == 0
            if not file.exists() and (first or job.args.shard):
                train = [item for item in job.items if split_of(item["source"]) == "train"] or job.items
                pass_over([Fit(job, with_chosen(train[:FIT_ITEMS], job.args.frames, job.args))], capture)
            while not file.exists():  # the first rank fits it
                time.sleep(1)
            job.maps = load_pt(file, REDUCE)["maps"]
        pass_over([shard_of(job, number) for number in todo], capture)


def shard_of(job, number):
    few = job.items[number * job.shard_items : (number + 1) * job.shard_items]
    return Shard(job, number, with_chosen(few, job.args.frames, job.args))


def done(out, shard):
    """Is the shard complete?"""
    return (out / "pooled" / f"{shard:05d}.pt").exists()


def point_row(job, point, rows, module):
    """The row of index.yaml of a point, from those of its shards."""
    kinds = {row.get("dtype", "float16") for row in rows}
    found = {"module": module, "shape": rows[0]["shape"]}
    found["dtype"] = "float32" if "float32" in kinds else "float16"
    found["bytes"] = sum(f.stat().st_size for f in (job.out / point).glob("*.pt"))
    found["nonfinite"] = sum(row["nonfinite"] for row in rows)
    return found | {key: rows[0][key] for key in ("grid", "causal", "stored") if key in rows[0]}


def write_pooled(job, parts, modules):
    """Write pooled.pt from that of every shard. Returns the points of index.yaml."""
    pooled, table = {}, {}
    for point in parts[0]["pooled"]:
        rows = [part["pooled"][point] for part in parts]
        means, maxima = [row["mean"] for row in rows], [row["max"] for row in rows]
        pooled[point] = {"mean": torch.cat(means), "max": torch.cat(maxima)}
        table[point] = point_row(job, point, rows, modules.get(point, "the frames themselves"))
    save_pt(job.out / "pooled.pt", POOLED, job.data["ids"], {"model": job.facts["model"]}, pooled=pooled)
    return table


def write_index(job, started, modules, **more):
    """Write pooled.pt and, last, index.yaml, if every shard exists. Returns the result."""
    args, out, shards = job.args, job.out, -(-len(job.data["ids"]) // job.shard_items)
    missing = sum(not done(out, s) for s in range(shards))
    if missing:
        print(f"shards_missing {missing} of {shards}: run the other --shard parts, then repeat any of them")
        return {"shards_missing": missing}
    parts = [load_pt(out / "pooled" / f"{s:05d}.pt", POOLED) for s in range(shards)]
    table = write_pooled(job, parts, modules)
    seconds, shown = [], []
    for part in parts:
        seconds += part["meta"]["seconds"]  # none where layers were streamed: passes overlap
        shown += part["meta"].get("shown", [])
    result = {"stage": "extract", "schema": FEATURES, **job.facts, "data": job.data["data"]}
    result |= {"items": len(job.data["ids"]), "size": args.size}
    result["seconds_per_item"] = sorted(seconds)[len(seconds) // 2] if seconds else None
    for key in ("bytes", "nonfinite"):
        result[key] = sum(row[key] for row in table.values())
    result |= {"data_path": str(args.data), "shards": shards, "reduced": job.reduce, "points": table}
    if args.frames:
        result |= {"frames": args.frames, "count": args.count, "shown": shown}
    more["dtype"] = ", ".join(dict.fromkeys(part["meta"]["dtype"] for part in parts))
    more |= {"micro_batch": args.batch, "streamed": not seconds, "script": "extract.py"}
    result |= {"ids": job.data["ids"], "run": run_info(args, started, **more)}
    save_yaml(out / "index.yaml", result)
    print_summary(result)
    return result


def checked_entry(args):
    """The registry's entry of --model; exit 2 where it has no features."""
    entry = find_model(args.model, args.base) | {"revision": args.revision}
    without = {"language": "language model without an image input", "tracker": "tracker, which track.py runs"}
    if kind := without.get(entry["kind"]):
        fail(f"--model {args.model} is a {kind}; give one of `python extract.py --list` that has points")
    if args.revision and Path(entry["path"]).is_dir():
        fail(f"--revision {args.revision} is for the hub, and {entry['path']} is a folder; leave it out")
    if args.batch < 1:
        fail(f"--batch {args.batch} is not positive; give 1 or more")
    if args.tiles and (args.size or entry.get("type") not in TILED):
        fail(f"--tiles is for {' and '.join(TILED)} and replaces --size; give {args.model} a --size")
    if args.expert and entry["type"] != "cogvlm2":
        fail(f"--expert is for CogVLM2, and {args.model} has no experts; leave it out")
    named = ",".join(load_yaml(file)["points"] for file in args.points_of).strip(",")
    args.points = resolve_aliases(named or args.points, entry)
    return entry


def plan_of(args, entry, items, data, dtype):
    """What decides the features: a folder that was begun with another plan is not continued."""
    plan = {"model": entry["name"], "checkpoint": fingerprint(entry), "revision": args.revision}
    plan["weights"] = "random" if args.random_init else entry["weights"]
    plan["random_seed"] = args.seed if args.random_init else None
    plan["dtype"] = "mixed" if args.dtype == "mixed" else str(dtype).removeprefix("torch.")
    plan["items"] = same_items(items, data)
    plan |= {
        key: getattr(args, key) for key in ("size", "batch", "points", "grids", "reduce", "store", "expert")
    }
    if frame_methods(args, items):
        plan["frames"] = [args.frames, args.count, args.seed]
    if args.questions:
        plan["questions"] = read_questions(args.questions)
    return plan


def new_job(args):
    """What one run extracts, with its settings; exit 2 where --out holds features of other settings."""
    entry = checked_entry(args)
    items, data = load_items(args.data)
    length = len(items[0].get("frames", ()))
    alone = entry["type"] not in TAKES_CLIPS
    if args.single_frames and alone and not args.frames and length > args.single_frames:
        args.frames, args.count = "uniform", args.single_frames
    of_clips = length > 1 or "cut_from" in data  # a frame that was cut from a clip is seen as the clip is
    args.size = args.size or entry["clip" if of_clips else "size"] * (2 if args.tiles == "all" else 1)
    job = SimpleNamespace(args=args, entry=entry, items=items, data=data)
    job.out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/features")
    check_writable(job.out / "index.yaml")
    job.device, job.dtype, job.why = choose_device(args.dtype)
    job.plan = plan_of(args, entry, items, data, job.dtype)
    check_plan(job.out, job.plan, args)
    job.precision = job.plan["dtype"]
    job.steps = args.count if args.frames else length
    # a clip that repeats one frame is one frame to a model that sees frames one by one
    job.still = alone and length > 1 and "freeze" in data
    job.facts = {"model": entry["name"], "kind": entry["kind"], "weights": job.plan["weights"]}
    job.facts |= {"expert": args.expert} if args.expert else {}
    job.reduce, job.maps, job.overflowed = args.reduce, {}, None
    return job


def settle(job):
    """Open the model, and settle what depends on the size of its features: reduction, items a shard, disk."""
    from cost import check_disk, shapes

    clip = len(job.items[0].get("frames", ())) > 1
    open_model(job)
    first = with_chosen(job.items[:1], job.args.frames, job.args)[0]
    job.make_inputs(frames_of(first, job.args.size)[None])  # exits 2 for frames that do not fit
    job.stored = stored_points(job, clip)
    if job.reduce not in (0, *range(8, 10**5)):
        fail(f"--reduce {job.reduce} is too few numbers a token; give 8 or more, or 0 for all")
    frames = 1 if job.still else max(job.steps, 1)
    opened = job.model, job.points, job.make_inputs, job.args.size
    known = job.entry["kind"] != "vae" or "params" in job.entry  # sizes of small autoencoders are not priced
    job.shapes = shapes(job.entry, list(job.modules), job.args.size, frames, opened) if known else {}
    stored = [shape for point, shape in job.shapes.items() if point in job.stored]
    each = sum(2 * math.prod(grid) * min(width, job.reduce or width) for *grid, width in stored)
    job.shard_items = int(min(SHARD, max(IN_MEMORY // max(each, 1), 1)))
    job.shard_bytes = each * min(job.shard_items, len(job.items))
    check_disk(job.out, each * len(job.items), "give --reduce 256, fewer --points, or fewer items")
    job.plan["shard_items"] = job.shard_items


def one_model(args, started):
    """Extract the features of one model. Returns the result, or {} on a rank that does not write it."""
    job = new_job(args)
    rank, ranks = share(args.shard)

    def remaining():
        return [s for s in range(rank, -(-len(job.items) // job.shard_items), ranks) if not done(job.out, s)]

    modules = None
    if (job.out / "plan.yaml").exists() and (job.out / "modules.yaml").exists():
        before = load_yaml(job.out / "plan.yaml")
        job.shard_items = before["shard_items"]
        modules = None if remaining() else load_yaml(job.out / "modules.yaml")
    if modules is None:
        print(f"device {job.device.type} ({job.why})")
        settle(job)
        modules = job.written
        job.overflowed = (
            [] if job.precision == "float16" and not args.dtype and not args.random_init else None
        )
        compute(job, remaining())
        if job.overflowed:
            print(f"non-finite values in fp16: {len(job.overflowed)} shards again, residual stream in fp32")
            todo, job.overflowed, job.precision = job.overflowed, None, "mixed"
            job.model = job.network = job.weights = None
            gc.collect()  # replaced forwards refer to their model in circles
            torch.cuda.empty_cache()
            open_model(job)
            compute(job, todo)
    if not wait_for_ranks(args):
        return {}
    network = vars(job).get("network")
    more = {"device": f"{job.device.type} ({job.why})", "model_revision": resolved_commit(job.entry)}
    more["weights_read_gb"] = network and network.weights.bytes / 1e9
    return write_index(job, started, modules, **more)


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--model", default="tiny", help="a registry name, a folder in Hugging Face format, or an adapter's")
    add("--base", metavar="FOLDER", help="the base model of an adapter, where its own is not here")
    add("--data", default="data/shapes", help="a folder that data.py wrote")
    add("--out", help="default: results/<model>/<data>/features")
    add("--points", default="quarters", help="comma-separated; all, last, quarters (four depths a stack)")
    add("--points-of", nargs="+", default=[], metavar="FILE", help="the points in files of --choose instead")
    add("--grids", help="points whose tokens are stored: all (images), none (clips), middle, or names")
    add("--reduce", type=int, default=0, metavar="K", help="store wider tokens as K numbers (0: as they are)")
    add("--store", choices=("fp16", "fp32"), default="fp16", help="fp16 becomes fp32 where values overflow")
    add("--dtype", choices=DTYPES, help="mixed: fp16 matrices, fp32 stream (default: by device)")
    add("--size", type=int, help="image side in pixels (default: the registry's, for images or clips)")
    add("--tiles", choices=("base", "all"), help="LLaVA-NeXT, -OneVision: one tile, or 2 x 2 tiles")
    add("--batch", type=int, default=8, help="items in a micro-batch")
    add("--expert", choices=("vision", "language"), help="CogVLM2: the expert of the image's rows (vision)")
    add("--random-init", action="store_true", help="untrained weights: a baseline")
    add("--revision", help="branch, tag or commit of a hub repository")
    add("--stream", action="store_true", help="all items through one layer before the next is read")
    add("--max-memory", help="such as 15GB: limit of GPU (on a CPU: process) memory")
    add("--questions", help="text file, one a line: adds question.<i>, layer i at its last token")
    add("--frames", choices=CHOICES, help="how frames of a clip are chosen (default: all frames)")
    add("--count", type=int, default=8, help="with --frames: number of frames")
    add("--single-frames", type=int, default=0, metavar="N", help="most frames for models of single images")
    add("--overwrite", action="store_true", help="delete features in --out that have other settings")
    add("--shard", help="i/n: only every n-th shard, starting with the i-th (0-based)")
    add("--list", action="store_true", help="print the registry and stop")
    add("--cost", action="store_true", help="print a gate's cost (--n, --points, --reduce, --size), and stop")
    add("--gate", default="1", help="with --cost: the gate")
    add("--n", type=int, default=500, help="with --cost: images")
    add("--check", action="store_true", help="compare --model with its library on two photographs, and stop")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.list or args.cost:
        import cost

        how = {key: getattr(args, key) for key in ("n", "points", "reduce", "size")}
        return (
            cost.print_list()
            if args.list
            else cost.print_cost(find_model(args.model, args.base), args.gate, **how)
        )
    if args.check:
        from check import check_model

        return check_model(args)
    return one_model(args, started)


if __name__ == "__main__":
    main()
