"""Speed on a GPU as ratios to named peers. Networks have full size and random weights, fast as trained ones.

    python tests/bench_gpu.py                                   every row, results/bench-gpu.yaml
    python tests/bench_gpu.py exit memory                       some rows; the others in the file stay
    python tests/bench_gpu.py --folder /disk stream-cogvlm2     keep its checkpoint (39 GB) for the next run
    python tests/bench_gpu.py --small --out small.yaml          small networks on any device: tests the code

exit              Qwen2.5-VL-7B up to the middle layer; peers: output_hidden_states=True, a matrix product
stream-cogvlm2    CogVLM2-19B streamed within 15 GB; peers: accelerate image by image, all layers resident
stream-internvl2  the same with InternVL2-26B in its original layout (51 GB)
memory            peak of a LoRA step of Qwen2.5-VL-7B with checkpoints; peer: the estimate of tune.py plan
writing           Qwen2.5-VL-7B's features written by a thread; peers: not written, written in between

Needs no network. Exit code 1: two computations that must agree do not. A missed aim is only recorded.
"""

import argparse
import collections
import contextlib
import functools
import gc
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench  # makes the scripts above importable too
import published

import common
import extract
import families
import models
import streaming
import training
import tune

STARTED = time.time()
CAP = 15e9  # bytes of the GPU that a streamed run may take: those of a T4
PIXELS = 448


def note(*words):
    print(f"{time.time() - STARTED:7.1f} s", *words, flush=True)


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# ---------------------------------------------------------------- networks


def qwen_name(at):
    return "a small Qwen2.5-VL" if at.small else "Qwen2.5-VL-7B"


# ---------------------------------------------------------------- rows


def early_exit(at):
    from torch.utils.flop_counter import FlopCounterMode

    config, batch, rounds = (
        published.config_of("qwen2.5-vl-7b", at.small),
        2 if at.small else 8,
        3 if at.small else 7,
    )
    model, side = bench.qwen(config, at.dtype, at.device), 256 if at.small else 8192
    layers = len(model.model.language_model.layers)
    given = families.on(bench.qwen_inputs(config, bench.noise(batch, PIXELS)), at.device, at.dtype)
    what = f"{qwen_name(at)}, {batch} images of {PIXELS} px, exit at language layer {layers // 2} of {layers}"
    depths = (0, layers // 4 - 1, layers // 2 - 1)
    row = bench.exit_row(model, given, depths, 1.7, rounds, at.device, what=what)
    with FlopCounterMode(display=False) as counter:
        streaming.capture(model, given, {"last": f"model.language_model.layers.{depths[-1]}"})
    flop = counter.get_total_flops()
    a, b = (torch.randn(side, side, device=at.device).to(at.dtype) for _ in range(2))
    took = [bench.seconds(lambda: a @ b, at.device) for _ in range(rounds + 3)][3:]
    rate, reached = 2 * side**3 / statistics.median(took), flop / row["seconds"]
    share = {"ratio": reached / rate, "aim": 0.5, "met": reached >= 0.5 * rate, "same_numbers": True}
    share |= {"tflops": reached / 1e12, "peer_tflops": rate / 1e12, "tflop": flop / 1e12, "what": what}
    share["peer"] = f"a matrix product of {side} x {side} x {side} in the same dtype"
    return {"forward": row, "gemm": share}


def streaming_round(at, folder, layers, how, frames, size):
    """A pass through a new network in micro-batches of `size`; None where its layers cannot be resident."""
    free_memory()
    cuda, deepest = at.device.type == "cuda", f"language.{layers // 2 - 1}"
    if cuda:
        torch.cuda.set_per_process_memory_fraction(1.0, at.device)
    network, inputs_of, points = bench.network_of(folder, deepest, at.device, at.dtype)
    points, weights = {p: points[p][0] for p in ("merger", deepest)}, network.bytes(network.needed)
    limit = common.memory_left(at.device, CAP if cuda and how != "resident" else None)
    if how == "resident":
        if 1.2 * weights > limit:
            return note(f"{weights / 1e9:.1f} GB do not fit into {limit / 1e9:.1f}; there is no row for them")
        network.fill(network.needed)
    elif how == "accelerate":
        bench.offloaded(network)
    else:
        network.fill([])
    found = []

    def call():
        batches = [inputs_of(f) for f in frames.split(size)]
        if how == "streamed":
            budget = (limit - network.bytes(network.largest(2))) / 2
            found.extend(bench.streamed(network, points, batches, budget))
        else:
            found.extend(bench.one_after_another(network, points, batches))

    seconds = bench.seconds(call, at.device) / len(frames)
    peak = torch.cuda.max_memory_reserved(at.device) / 1e9 if cuda else None
    note(f"{folder.name}, {how}, micro-batches of {size}: {seconds:.3f} s an image, peak {peak} GB")
    return {"seconds": seconds, "features": found, "peak": peak, "weights": weights / 1e9}


# model: name in published.yaml, images, their side, micro-batches
STREAMED = {"cogvlm2": ("cogvlm2", 64, 1344, 2), "internvl2": ("internvl2-26b", 384, PIXELS, 8)}


def layer_streaming(at, name):
    """Layers streamed within CAP, against accelerate's offload of the same files and against resident layers.

    accelerate's seconds an image do not depend on their number, so it computes two. The first round is the
    warm-up. Features of equal micro-batches must be the same to the bit.
    """
    model, images, side, batch = STREAMED[name]
    if at.small:
        name, images, side, batch = f"{name}-small", 6, 56, 2
    frames, config = bench.noise(images, side), published.config_of(model, at.small)
    layers = config.get("llm_config", config)["num_hidden_layers"]
    jobs = {"streamed_1": ("streamed", frames, 1), "accelerate": ("accelerate", frames[:2], 1)}
    jobs |= {"streamed": ("streamed", frames, batch), "resident": ("resident", frames, batch)}
    rounds = []
    with contextlib.ExitStack() as stack:
        folder = Path(at.folder or stack.enter_context(tempfile.TemporaryDirectory())) / name
        published.write_checkpoint(folder, model, at.small)
        for _ in range(2 if at.small else 3):
            rounds.append({job: streaming_round(at, folder, layers, *how) for job, how in jobs.items()})
        free_memory()
    if at.device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(1.0, at.device)

    def row(mine, theirs, aim, size, peer):
        ours, other = rounds[0][mine], rounds[0][theirs]
        apart = bench.difference(ours["features"][: len(other["features"])], other["features"])
        what = f"{name} of {layers} language layers up to layer {layers // 2}, {images} images of {side} px"
        what = f"{what}, micro-batches of {size}, seconds an image"
        more = {"what": what, "peer": peer, "cap_gb": CAP / 1e9}
        more |= {"difference": apart, "weights_gb": ours["weights"]}
        more |= {"peak_gpu_gb": ours["peak"], "peer_peak_gpu_gb": other["peak"]}
        took = [[r[job]["seconds"] for r in rounds[1:]] for job in (mine, theirs)]
        return bench.row_of(*took, aim, apart == 0, **more)

    peer = "accelerate's offload of the same safetensors, warm, 2 images one by one"
    rows = {"accelerate": row("streamed_1", "accelerate", 5, 1, peer)}
    if rounds[0]["resident"]:
        rows["resident"] = row("streamed", "resident", 0.8, batch, "all layers in the GPU's memory")
    return rows


def memory(at):
    """Two steps on an image with 64 answer tokens. The ratio is measured / planned; it is 1 on a CPU."""
    config, cuda = published.config_of("qwen2.5-vl-7b", at.small), at.device.type == "cuda"
    model = bench.qwen(config, at.dtype, at.device)
    shape = tune.shape_of(models.MODELS["qwen2.5-vl-7b"], model.config)
    how = {"method": "lora", "vision": "frozen", "rank": 16, "checkpoint": True, "adam8bit": False}
    how |= {"batch": 1, "accumulate": 1}
    learner, _ = tune.trainable(model, how, (at.device.type, at.dtype if cuda else None))
    answer = range(16, 80)
    frames = bench.noise(1, 112 if at.small else PIXELS)
    inputs = bench.qwen_inputs(config, frames, [*range(16), *answer])
    inputs = {k: v.to(at.device) for k, v in inputs.items()}
    labels = inputs["input_ids"].clone()
    labels[:, : -len(answer)] = -100
    optimizer = torch.optim.AdamW(training.learned(learner).values())
    learner.to(at.device).train()
    free_memory()
    for _ in range(2):
        loss = learner(inputs, labels)[0].mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    patches, tokens = len(inputs["pixel_values"]), labels.shape[1]
    planned = sum(tune.memory(shape, "lora", tokens, len(answer), patches, context=0).values())
    measured = torch.cuda.max_memory_allocated(at.device) if cuda else None
    ratio = measured / planned if measured else 1.0
    row = {"ratio": ratio, "aim": 1.15, "met": 1 / 1.15 <= ratio <= 1.15, "same_numbers": True}
    row |= {"planned_gb": planned / 1e9, "measured_gb": measured and measured / 1e9, "peer": "tune.py plan"}
    return {"lora": row | {"what": f"peak of a LoRA step of {qwen_name(at)}, {tokens} tokens"}}


def writing(at):
    """Features of every default point, 64 images a shard, by the functions of extract.py."""
    config = published.config_of("qwen2.5-vl-7b", at.small)
    model = bench.qwen(config, at.dtype, at.device)
    points = families.family_of(model)(model, None)[1]
    modules = {p: points[p][0] for p in families.quarters(points)}
    n, side, batch = (130, 56, 32) if at.small else (256, PIXELS, 8)
    items = [{"id": str(i), "source": str(i), "frames": f} for i, f in enumerate(bench.noise(n, side))]
    starts = range(0, n, common.SHARD)

    def restore(point, x, given):
        return points[point][1](x, given)

    def inputs_of(frames):
        return bench.qwen_inputs(config, frames)

    def finish(shard, seconds):
        shard.add_pixels(lambda step: 2 * step)
        shard.finish(modules, seconds)

    def extraction(out, write):
        parts = [items[s : s + common.SHARD] for s in starts]
        shards = [extract.Shard(out, k, x, side, batch, modules, write) for k, x in enumerate(parts)]
        with streaming.capturing(model, modules) as run:
            extract.one_by_one(run, inputs_of, restore, shards, at.device, at.dtype, finish)

    def in_thread(out):
        with extract.Writer() as write:
            extraction(out, write)

    calls = {"thread": in_thread, "none": lambda out: extraction(out, lambda *args, **kwargs: None)}
    calls["between"] = lambda out: extraction(out, common.save_pt)
    took = collections.defaultdict(list)
    with tempfile.TemporaryDirectory(dir=at.folder) as parent:
        folders = {name: Path(parent) / name for name in calls}
        for k in range(2 if at.small else 4):
            for name, call in calls.items():
                shutil.rmtree(folders[name], ignore_errors=True)
                seconds = bench.seconds(lambda call=call, name=name: call(folders[name]), at.device)
                note(f"writing {name}, round {k}: {seconds:.2f} s")
                if k:
                    took[name].append(seconds)
        pair = folders["thread"], folders["between"]
        files, others = (sorted(f.relative_to(x) for f in x.rglob("*.pt")) for x in pair)
        stored = [f for f in files if f.parts[0] != "pooled"]
        same = files == others and len(files) == (len(modules) + 2) * len(starts)
        for f in stored:
            a, b = (common.load_pt(x / f, common.FEATURES)["features"] for x in pair)
            same = same and torch.equal(a, b)
        gb = sum((folders["thread"] / f).stat().st_size for f in files) / 1e9
    more = {"what": f"{qwen_name(at)}, {n} images of {side} px, {len(modules)} points", "written_gb": gb}
    more["gb_per_second"] = gb / statistics.median(took["thread"])
    peers = {"free": ("none", 1 / 1.05, "nothing is written")}
    peers["thread"] = ("between", 1.2, "written in between by the same thread")
    rows = {}
    for name, (theirs, aim, peer) in peers.items():
        rows[name] = bench.row_of(took["thread"], took[theirs], aim, same, peer=peer, **more)
    return rows


ROWS = {"exit": early_exit, "memory": memory, "writing": writing}
ROWS |= {f"stream-{name}": functools.partial(layer_streaming, name=name) for name in STREAMED}


def get_args(argv):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", help=f"of {', '.join(ROWS)} (default: all)")
    p.add_argument("--folder", help="of checkpoints, which stay, and features (default: a temporary folder)")
    p.add_argument("--out", help="default: results/bench-gpu.yaml, with --small none")
    p.add_argument("--small", action="store_true", help="small networks, any device")
    args = p.parse_args(argv)
    args.device, args.dtype, args.why = common.choose_device()
    if args.device.type != "cuda" and not args.small:
        common.fail("there is no CUDA device; --small runs the same code with small networks on any device")
    for name in args.rows:
        common.check_choice(name, ROWS, "row")
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    if not args.out and not args.small:
        args.out = common.HERE / "results" / "bench-gpu.yaml"
    if args.out:
        common.check_writable(args.out)
    return args


def main(argv=None):
    args = get_args(argv)
    import transformers

    libraries = {"torch": str(torch.__version__), "transformers": transformers.__version__}

    def about(name, started):
        free_memory()
        seconds = time.time() - started
        return libraries | {"small": args.small, "device": args.why, "row_seconds": seconds}

    rows = bench.measure(ROWS, args.rows or ROWS, args.out, "bench-gpu", about, args)
    for key, row in rows.items():
        met = "met" if row["met"] else "missed"
        same = f"same numbers {row['same_numbers']}  {row['what']} | {row['peer']}"
        print(f"{key:28s}  {row['ratio']:8.3f}  aim {row['aim']:5.2f}  {met:6s}  {same}")
    if wrong := [key for key, row in rows.items() if not row["same_numbers"]]:
        print(f"error: {', '.join(wrong)}: two computations that must agree do not", file=sys.stderr)
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    main()
