"""A rehearsal of real layouts and sizes with random weights: what cost.py predicts against what is measured.

    python tests/rehearse.py                                      every run, results/rehearsal.yaml
    python tests/rehearse.py cogvlm2 --folder /disk               one run; the others in the file stay
    python tests/rehearse.py internvl2 --small --out small.yaml   a small network: tests the code

gate1      `make gate1` with N=16: Qwen2.5-VL-3B, DINOv2-L as the second encoder, LTX-Video's autoencoder
cogvlm2    features of two images, within 6 GB: 39 GB of weights are streamed
internvl2  the same of InternVL2-8B in its original layout

Rows of a run: disk (bytes of features; within 5%), ram (peak bytes of the largest process; 20%), flops (of an
image up to the last point, of each network; 10%), seconds (of all stages). Needs no network.
"""

import functools
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bench  # makes the scripts above importable too
import psutil
import published
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import common
import cost
import families
import models
import streaming
from features import quarters

# run: its checkpoints by variable of the Makefile, other variables, and the file that make makes
FEATURES = "results/{MODEL}/shapes-n{N}/features/index.yaml"
GATE1 = {"N": 16, "SEED": 172}  # with this seed, train, val and test have at least four images and clips
TWO = {"N": 2, "MEMORY": "6GB"}
RUNS = {
    "gate1": ({"MODEL": "qwen2.5-vl-3b", "ENCODER": "dinov2-l", "VAE": "ltx"}, GATE1, "gate1"),
    "cogvlm2": ({"MODEL": "cogvlm2"}, TWO | {"EXTRACT": "--dtype bf16 --batch 1"}, FEATURES),
    "internvl2": ({"MODEL": "internvl2"}, TWO, FEATURES),
}
BOUNDS = {"disk": 0.05, "ram": 0.2, "flops": 0.1, "seconds": None}


class NothingComputed(TorchDispatchMode):
    """Products, convolutions and attention return zeros of the right shape; FlopCounterMode counts them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._overloadpacket not in flop_registry:
            return func(*args, **(kwargs or {}))
        args, kwargs = tree_map_only(torch.Tensor, lambda x: x.to("meta"), (args, kwargs or {}))
        return tree_map_only(torch.Tensor, lambda x: torch.zeros_like(x, device="cpu"), func(*args, **kwargs))


def flops(folder, frames):
    """FLOPs of the forward pass of frames [n, T, S, S, 3] up to the last default point."""
    entry = models.find_model(str(folder))
    if entry["kind"] == "vae":
        model, processor = models.LOADERS["vae"](entry)
    else:  # weights without memory: one zero, expanded
        model, processor, weights = models.skeleton(entry, torch.float32)
        zeros = {name: torch.zeros(1).expand(x.shape) for name, x in weights.like.items()}
        model.load_state_dict(zeros, strict=False, assign=True)
    inputs_of, points, *_ = families.family_of(model)(model, processor)
    modules = {point: points[point][0] for point in quarters(points)}
    runner = streaming.latents_of(model) if entry["kind"] == "vae" else streaming.capturing(model, modules)
    batch = families.on(inputs_of(frames), torch.device("cpu"), torch.float32)
    with runner as run, NothingComputed(), FlopCounterMode(display=False) as counter:
        run(batch)
    return counter.get_total_flops()


def make_run(at, name, work):
    """Write the checkpoints of a run, and run `make` in `work`. Returns {variable of the Makefile: entry}."""
    roles, variables, target = RUNS[name]
    for path in [*common.HERE.glob("*.py"), common.HERE / "Makefile"]:
        if not (work / path.name).is_symlink():
            work.mkdir(parents=True, exist_ok=True)
            (work / path.name).symlink_to(path)
    entries = {}
    for role, model in roles.items():
        folder = work / "checkpoints" / model
        published.write_checkpoint(folder, model, at.small)
        entries[role] = models.find_model(str(folder))
    settings = variables | {role: entry["path"] for role, entry in entries.items()} | {"PY": sys.executable}
    target = target.format(**variables, **roles)
    subprocess.run(["make", "-C", work, target, *(f"{k}={v}" for k, v in settings.items())], check=True)
    return entries


def chosen_points(entries, work):
    """{images, clips, encoder: the points that val chose} of a run."""
    found, model = {}, entries["MODEL"]["name"]
    folders = {"images": f"{model}/shapes", "clips": f"{model}/moving", "encoder": entries["ENCODER"]["name"]}
    for key, folder in folders.items():
        files = work.glob(f"results/{folder}*/**/*-layers.yaml")
        found[key] = sorted({p for file in files for p in common.load_yaml(file)["points"].split(",")})
    return found


def predicted(entries, variables, streamed, work):
    """What cost.py says of a run on N images and clips: bytes of disk and memory, seconds here."""
    entry, here, n = entries["MODEL"], cost.measured_rate(), variables["N"]
    points, side = cost.points_of(entry, "quarters"), entry["size"]
    batch = 1 if "--batch 1" in variables.get("EXTRACT", "") else min(n, 8)
    rows = [cost.extraction("images", entry, points, side, n, batch=batch)]
    if "VAE" in entries:
        paths = {"vae": entries["VAE"]["path"], "encoder": entries["ENCODER"]["path"]}
        rows = cost.gate1(entry, n, n, chosen=chosen_points(entries, work), **paths)
    found = {"disk": sum(row.written for row in rows), "ram": max(row.cpu for row in rows)}
    if streamed:  # two layers of 2 or 4 bytes a weight, not all
        wide = 1 if "bf16" in variables.get("EXTRACT", "") else 2
        found["ram"] = max(row.ram - cost.CUDA + wide * (row.streamed - 1e9) for row in rows)
    return found | {"seconds": 3600 * sum(cost.columns(row, here)["here_hours"] for row in rows)}


def stages_of(work):
    """{result: seconds, peak resident bytes, whether layers were streamed} of the stages of a run."""
    stages = {}
    for path in sorted(work.glob("results/**/*.yaml")):
        run = common.load_yaml(path).get("run")
        if run:
            found = {"seconds": run["seconds"], "ram": run["peak_memory_gb"] * 1e9}
            stages[str(path.relative_to(work))] = found | {"streamed": run.get("streamed", False)}
    return stages


def rehearsed(at, name):
    """The rows of a run: predicted, measured, and their ratio."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(at.folder or temporary) / f"rehearsal-{name}"
        entries, stages = make_run(at, name, work), stages_of(work)
        found = {"disk": sum(x.stat().st_size for x in work.glob("results/**/features*/**/*.pt"))}
        found["ram"] = max(stage["ram"] for stage in stages.values())
        found["seconds"] = sum(stage["seconds"] for stage in stages.values())
        streamed = any(stage["streamed"] for stage in stages.values())
        expected = predicted(entries, RUNS[name][1], streamed, work)
        for entry in entries.values():
            key, side = f"flops_{entry['name']}", entry["size"]
            found[key] = flops(entry["path"], bench.noise(1, side))
            expected[key] = cost.flop_of(entry, side)
        shutil.rmtree(work)
    rows = {}
    for key, value in found.items():
        bound, ratio = BOUNDS[key.partition("_")[0]], value / expected[key]
        rows[key] = {"ratio": ratio, "measured": value, "predicted": expected[key], "bound": bound}
        rows[key]["met"] = None if bound is None else abs(ratio - 1) <= bound
    rows["seconds"]["stages"] = stages
    return rows


def main(argv=None):
    args = bench.arguments(argv, __doc__, RUNS, "rehearsal")
    ram = psutil.virtual_memory().total / 1e9
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {ram:.0f} GB of RAM"
    runs = {name: functools.partial(rehearsed, name=name) for name in RUNS}
    return bench.measure(runs, args.rows, args.out, "rehearsal", {"machine": machine}, args)


if __name__ == "__main__":
    main()
