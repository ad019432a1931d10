"""Speed on a GPU as ratios to named peers. Networks have full size and random weights, fast as trained ones.

    python tests/bench_gpu.py                                   every row, results/bench-gpu.yaml
    python tests/bench_gpu.py exit                              some rows; the others in the file stay
    python tests/bench_gpu.py --folder /disk stream-cogvlm2     keep its checkpoint (39 GB) for the next run
    python tests/bench_gpu.py --small --out small.yaml          small networks on any device: tests the code

exit              Qwen2.5-VL-7B up to the middle layer; peers: output_hidden_states=True, a matrix product
stream-cogvlm2    CogVLM2-19B streamed within 15 GB; peers: accelerate image by image, all layers resident
stream-internvl2  the same with InternVL2-26B in its original layout (51 GB)

Needs no network. Exit code 1: two computations that must agree do not. A missed aim is only recorded.
"""

import contextlib
import functools
import gc
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench  # makes the scripts above importable too
import published

import common
import families
import streaming

CAP = 15e9  # bytes of the GPU that a streamed run may take: those of a T4
PIXELS = 448


def free_memory():
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def early_exit(at):
    from torch.utils.flop_counter import FlopCounterMode

    name, batch, rounds, side = "Qwen2.5-VL-7B", 8, 7, 8192
    if at.small:
        name, batch, rounds, side = "a small Qwen2.5-VL", 2, 3, 256
    config = published.config_of("qwen2.5-vl-7b", at.small)
    model = bench.qwen(config, at.dtype, at.device)
    layers = len(model.model.language_model.layers)
    given = families.on(bench.qwen_inputs(config, bench.noise(batch, PIXELS)), at.device, at.dtype)
    what = f"{name}, {batch} images of {PIXELS} px, exit at language layer {layers // 2} of {layers}"
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
            return None
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


ROWS = {"exit": early_exit}
ROWS |= {f"stream-{name}": functools.partial(layer_streaming, name=name) for name in STREAMED}


def main(argv=None):
    args = bench.arguments(argv, __doc__, ROWS, "bench-gpu")
    args.device, args.dtype, args.why = common.choose_device()
    if args.device.type != "cuda" and not args.small:
        common.fail("there is no CUDA device; --small runs the same code with small networks on any device")
    rows = bench.measure(ROWS, args.rows, args.out, "bench-gpu", {"device": args.why}, args)
    if wrong := [key for key, row in rows.items() if not row["same_numbers"]]:
        print(f"error: {', '.join(wrong)}: two computations that must agree do not", file=sys.stderr)
        raise SystemExit(1)
    return rows


if __name__ == "__main__":
    main()
