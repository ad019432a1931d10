"""What a gate costs, from the sizes of its networks: forward passes, FLOP, hours, disk, RAM and GPU memory.

`extract.py --cost` prints it before anything runs. Sizes come from the registry or a folder's empty network.
FLOP are counted as torch's FlopCounterMode counts: for a token 2 x the weights at work on it, for attention
4 x rows x attended rows x width a layer. Embeddings, heads and adapters are left out.
"""

import math
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from common import check_choice, fail, print_summary
from families import (
    BLOCKS,
    QWEN,
    TILED,
    family_of,
    image_rows,
    one_number,
    vision_of,
)
from features import quarters, resolve_aliases
from models import MODELS, TINY, find_model, skeleton

# TFLOP/s of linear layers in half precision, of convolutions, of the CPU (assumed); GB of the GPU and of RAM
CARDS = {"t4": {"half": 24, "conv": 18, "cpu": 0.1, "gpu_gb": 15, "ram_gb": 30}}
CARDS["a100"] = {"half": 150, "conv": 60, "cpu": 0.4, "gpu_gb": 40, "ram_gb": 64}
TARGETS = {"disk_gb": 60, "ram_gb": 24, "gpu_gb": 16, "t4_hours": 12, "a100_hours": 2}
HINTS = {"disk_gb": "REDUCE=256, fewer POINTS or smaller N", "ram_gb": "REDUCE=256 or smaller N"}
HINTS |= {"gpu_gb": "a smaller --batch", "t4_hours": "smaller N or fewer POINTS", "a100_hours": "smaller N"}
DISK = 200e6  # bytes a second
BASE, CUDA = 0.9e9, 0.6e9  # bytes of a process with its libraries; what CUDA adds
SHARD, CHUNK = 2e9, 0.5e9  # bytes in RAM of a shard, of what a reader reads at once
CLIP, SINGLE = 17, 8  # frames of a clip; of one whose frames a model sees one by one
# layers of the untrained network that are stored: as many as val chooses at most (probe.py 3, align.py 4)
CHOSEN = {"images": 7, "clips": 1, "encoder": 3}

# What models.yaml leaves out.
# FLOP a pixel of LTX-Video's autoencoder, first frame and later ones: FlopCounterMode, default configuration
VAE = {"first": 1.5331e6, "later": 8.1163e5}
BEFORE = dict.fromkeys(("dinov2", "internvl", "internvl_chat", "cogvlm2", "llava_next", "kosmos-2"), 1)
BEFORE |= {"owlvit": 1, "owlv2": 1, "dinov3_vit": 5}  # tokens of the tower before the patches
WINDOWS = {"qwen2_5_vl": (64, 4), "florence2": (144, 0), "grounding-dino": (49, 0)}  # tokens, layers without
WORDS = {"kosmos-2": 12, "florence2": 10, "internvl_chat": 70}  # rows beside the image's; 32 elsewhere
SMALLER = {"llava-interleave-0.5b": 0.01285, "llava-onevision-0.5b": 0.01491, "florence-2": 0.00709}
SMALLER |= {"florence-2-large": 0.0126}  # 10^9 weights of a language layer where one of the tower is larger


@dataclass
class Point:
    """pixels: width of a token in the image (0: no grid); params: weights of a layer at work on a token."""

    pixels: int
    width: int
    params: float = 0


# Points that other families lack. Grounding DINO's encoder reads four scales: measured, as if on one
BESIDES = {"owlvit": {"class_head": Point(32, 512), "box_head": Point(32, 4)}}
BESIDES["owlv2"] = {"class_head": Point(16, 512), "box_head": Point(16, 4)}
BESIDES["grounding-dino"] = {f"scale.{i}": Point(8 << i, 256) for i in range(4)}
BESIDES["grounding-dino"] |= {f"encoder.{i}": Point(16, 256, 1.12e7) for i in range(6)}


def measure(entry, opened):
    """The row of FACTS of a folder, and what FACTS leaves out. An autoencoder is taken for LTX-Video's.

    opened: (model, points, inputs, size) where extract.py has opened the folder already.
    """
    if entry["kind"] == "vae":
        return MODELS["ltx"] | entry
    if not opened:
        model, processor, _ = skeleton(entry, torch.float16, random_seed=0)
        inputs, points, *_ = family_of(model)(model, processor)
        opened = model, points, inputs, entry["size"]
    model, points, *more = opened
    inputs, size = more
    layers = {"vision": [], "language": []}  # 10^9 weights of each layer
    for point, (path, *_) in points.items():
        weights = sum(p.numel() for p in model.get_submodule(path).parameters())
        layers.setdefault(point.partition(".")[0], []).append(weights / 1e9)
    tower, text = layers["vision"], layers["language"]
    sizes = {name: p.numel() / 1e9 for name, p in model.named_parameters()}
    row = {"params": sum(sizes.values()), "head": sizes.get("lm_head.weight", 0), "layer": max(tower + text)}
    row["outside"] = row["params"] - row["head"] - sum(tower) - sum(text)
    vision = vision_of(model.config)
    row["vision"] = tower_of(vision, len(tower))
    row["besides"] = {}
    for i, weights in enumerate(layers.get("encoder", [])):
        row["besides"][f"encoder.{i}"] = Point(32, model.config.d_model, 1e9 * weights)
    row["language"] = None
    if text:
        batch = inputs(torch.zeros(1, 1, size, size, 3, dtype=torch.uint8))
        row |= {"text_layer": max(text), "merger": layers.get("merger", [0])[0]}
        row |= {"rows": batch["input_ids"].shape[1], "language": text_of(model, batch, len(text))}
    if hasattr(vision, "fullatt_block_indexes"):
        row["window"] = (vision.window_size // row["vision"][1]) ** 2, len(vision.fullatt_block_indexes)
    return entry | row


def tower_of(vision, layers):
    """(layers of each stage, patch in pixels, width) of a tower; a ResNet's stem has 4 pixels."""
    depths, patch = getattr(vision, "depths", layers), one_number(getattr(vision, "patch_size", 4))
    patch = one_number(getattr(vision, "patch_stride", patch))
    depths = depths if np.sum(depths) == layers else [1] * layers
    names = [name for name in ("embed_dim", "hidden_size", "hidden_sizes") if getattr(vision, name, None)]
    return depths, patch, one_number(getattr(vision, names[0]))


def text_of(model, batch, layers):
    """(layers, merge or (1, K) queries, width) of a language model, from the inputs of an image."""
    config = model.config
    rows = int(image_rows(model, batch)[0].sum())
    stages = len(getattr(vision_of(config), "depths", [1]))
    side = (
        batch["grid"][0] if "tiles" in batch else math.isqrt(rows)
    )  # newlines and a small whole image besides
    merge = max(batch["grid"][0] // side // 2 ** (stages - 1), 1)
    if config.model_type == "kosmos-2" or batch["grid"][0] % side:
        merge = 1, rows
    return layers, merge, getattr(config, "text_config", config).hidden_size


_facts = {}


def facts_of(entry, opened=None):
    """Sizes of an entry of find_model: its row of FACTS in single weights, and what FACTS leaves out;
    points: {name: Point} in the order of execution."""
    key = entry["path"], entry.get("adapter")
    if key not in _facts:
        row = entry if "params" in entry else measure(entry, opened)
        more = {"window": WINDOWS.get(row["type"], (0, 0)), "queries": 0, "words": WORDS.get(row["type"], 32)}
        f = SimpleNamespace(**more | row)
        for name in ("params", "head", "outside", "layer"):
            setattr(f, name, 1e9 * row[name])
        add_points(f, row)
        if "rows" in row:
            f.words += row["rows"] - tokens_at(f, "language.0", opened[3] if opened else f.size, 1)[1]
        _facts[key] = f
    return _facts[key]


def add_points(f, row):
    """The points of `facts_of`. From stage to stage a tower's width doubles; weights grow with its square."""
    depths, patch, width = row["vision"]
    depths = np.ravel(depths).tolist()
    layers, merge, text = row["language"] or (0, 1, 0)
    one = 1e9 * (row.get("text_layer") or SMALLER.get(row["name"], row["layer"]))
    squares = sum(depth * (width << k) ** 2 for k, depth in enumerate(depths))
    share = (f.params - f.head - f.outside - layers * one) / max(squares, 1)
    pair = 1 + (f.type in (*BLOCKS, "vjepa2"))  # frames of a token
    f.points = {"patch_embed": Point(patch, width, 3 * pair * patch**2 * width)}
    for k, depth in enumerate(depths):
        stage = Point(patch << k, width << k, share * (width << k) ** 2)
        f.points |= {f"vision.{len(f.points) - 1 + i}": stage for i in range(depth)}
    if f.type == "AutoencoderKLLTXVideo":
        f.points = dict.fromkeys(("latents", "latents-raw"), Point(patch, width))
    f.points |= row.get("besides", {}) | BESIDES.get(f.type, {})
    if f.type == "cogvlm2":  # one of two experts works on a token
        f.points["conv"], one = Point(2 * patch, width, 4 * width**2), one / 2
    if layers:
        if isinstance(merge, tuple):
            f.queries, merge = math.prod(merge), 0
        pixels = (patch << (len(depths) - 1)) * merge
        # outside the stacks: an embedding as large as the head, and the projector
        merger = Point(pixels, text, 1e9 * row.get("merger", (row["outside"] - row["head"]) * (f.head > 0)))
        f.points |= {f"deepstack.{i}": merger for i in range(3 * f.type.startswith("qwen3_vl"))} | {
            "merger": merger
        }
        f.points |= {f"language.{i}": Point(pixels, text, one) for i in range(layers)}


def points_of(entry, points):
    """The points that --points names, in the order of execution; exit 2 for an unknown one."""
    names = facts_of(entry).points
    groups = {"all": list(names), "last": list(names)[-1:], "quarters": quarters(names)}
    if isinstance(points, str):
        points = groups.get(points) or resolve_aliases(points, entry).split(",")
        for point in points:
            check_choice(point, names, f"point of {entry['name']}")
    return [point for point in names if point in points]


def passes_of(facts, frames):
    """(forward passes of an item, time steps of each): most models see the frames of a clip one by one."""
    if facts.type == "AutoencoderKLLTXVideo":
        return 1, 1 + (frames - 1) // 8
    if facts.type == "vjepa2":
        return 1, max(frames // 2, 1)
    return (1, -(-frames // 2)) if facts.type in QWEN else (frames, 1)


# ---------------------------------------------------------------- what is stored


def shapes(entry, points, size, frames=1, opened=None):
    """{point: (t, h, w, D)} of one item, and of `pixels` on the coarsest grid."""
    facts, found, least = facts_of(entry, opened), {}, size
    steps = math.prod(passes_of(facts, frames))
    for name in points_of(entry, points):
        point = facts.points[name]
        found[name] = steps, 1, facts.queries, point.width
        if point.pixels:
            side = size // point.pixels
            if facts.type in TILED:  # cut into tiles of the tower's side
                side = size // facts.size * (facts.size // point.pixels)
            found[name], least = (steps, side, side, point.width), min(least, side)
    if least < size:
        together = min(frames, 8) if facts.type == "AutoencoderKLLTXVideo" else -(-frames // steps)
        found["pixels"] = steps, least, least, 3 * together * (size // least) ** 2
    return found


def stored(found, reduce=0):
    """{point: numbers} of `shapes`. Tokens wider than `reduce` (0: none) are stored as so many."""
    numbers = {}
    for point, (t, h, w, width) in found.items():
        numbers[point] = t * h * w * min(width, reduce or width)
    return numbers


def bytes_per_item(entry, points, size, frames=1, reduce=0, grids=None):
    """{point: bytes}: the grid in fp16 if `grids` (None: all) names it; twice mean and max of it in fp32."""
    found = shapes(entry, points, size, frames)
    total = {point: 16 * shape[0] * shape[-1] for point, shape in found.items()}
    for point, numbers in stored(found, reduce).items():
        total[point] += 2 * numbers if grids is None or point in grids else 0
    return total


def disk_needed(entry, points, size, frames, n, reduce=0, grids=None):
    """Bytes of a features folder of n items, with the maps of reduce.pt in fp32."""
    widths = [shape[-1] for shape in shapes(entry, points, size, frames).values()]
    maps = sum(4 * width * (reduce + 1) for width in widths if 0 < reduce < width)
    return maps + n * sum(bytes_per_item(entry, points, size, frames, reduce, grids).values())


def check_disk(out, needed, hint):
    """Exit 2 where the disk of `out` has fewer free bytes than `needed`. hint: what would help."""
    out = Path(out).absolute()
    free = shutil.disk_usage(next(p for p in (out, *out.parents) if p.exists())).free
    if needed > free:
        fail(f"{out} needs {needed / 1e9:.3g} GB of disk, and {free / 1e9:.3g} GB are free; {hint}")


# ---------------------------------------------------------------- what is computed


def tokens_at(facts, name, size, steps):
    """(sequences, rows of each) of a layer in one forward pass."""
    point, stack = facts.points[name], name.partition(".")[0]
    tiled, tiles = facts.type in TILED, size // facts.size
    # the whole image at the tower's side, then its tiles if there are several
    images, side = (1 + (tiles > 1) * tiles**2, facts.size) if tiled else (steps, size)
    tokens = facts.queries if not point.pixels else (side // point.pixels) ** 2
    if stack == "vision":
        tokens += BEFORE.get(facts.type, 0)
        return (1, steps * tokens) if facts.type == "vjepa2" else (images, tokens)
    if stack != "language":
        return images, tokens
    newlines = tiled * (tiles * (side // point.pixels) if tiles > 1 else 1)
    times = 10 * steps * (facts.type == "qwen3_vl" and steps > 1)  # its prompt states those of a clip
    return 1, images * tokens + newlines + times + facts.words


def flop_of(entry, size, frames=1, deepest=None):
    """FLOP of one item up to the point `deepest` (None: the last)."""
    facts, total = facts_of(entry), 0
    if facts.type == "AutoencoderKLLTXVideo":
        return size**2 * (VAE["first"] + (frames - 1) * VAE["later"])
    passes, steps = passes_of(facts, frames)
    names, (window, whole) = list(facts.points), facts.window
    layers = sum(name.startswith("vision.") for name in names)
    for name in names[: names.index(deepest or names[-1]) + 1]:
        point, (sequences, rows) = facts.points[name], tokens_at(facts, name, size, steps)
        attended = rows if name.startswith(("vision.", "language.")) else 0
        if window and name.startswith("vision."):
            attended = (whole * rows + (layers - whole) * min(window, rows)) / layers
        total += sequences * rows * (2 * point.params + 4 * attended * point.width)
    return passes * total


@dataclass
class Row:
    """A stage: FLOP by kind; bytes written, of RAM beside a GPU and without one, read, of GPU memory."""

    stage: str
    passes: int
    flop: dict
    written: float
    ram: float
    cpu: float
    read: dict
    whole: float = 0
    streamed: float = 0


def extraction(stage, entry, points, size, n, frames=1, kept=None, reduce=0, grids=None, batch=8):
    """The row of extract.py on n items. kept: the points that are written (default: all `points`).
    batch: items of a micro-batch, or frames where a model sees them one by one."""
    facts, kept = facts_of(entry), kept or points
    passes, steps = passes_of(facts, frames)
    written = disk_needed(entry, kept, size, frames, n, reduce, grids)
    widest = max(p.width * math.prod(tokens_at(facts, k, size, steps)) for k, p in facts.points.items())
    # 16 rows of a layer's width (q, k, v, the gated MLP, residuals); 256 numbers a pixel of an autoencoder
    wide, kind, active = 2, "half", 32 * widest
    if facts.type == "AutoencoderKLLTXVideo":
        wide, kind, active = 4, "conv", 1024 * size**2
    active = batch * (active + 2 * sum(stored(shapes(entry, kept, size, frames)).values()) / passes)
    weights = wide * (facts.params - facts.head)
    two = wide * (facts.outside + 2 * facts.layer) if facts.layer else weights
    ram = BASE + CUDA + min(SHARD, min(64, n) * written / n) + wide * 2 * facts.layer
    waiting, read = n * (passes * 2 * widest + 6 * frames * size**2), {}  # residual streams and pixels
    for name, card in CARDS.items():
        # streamed weights that RAM does not hold are read for every so many items as fit into half the rest
        again = weights + active > 1e9 * card["gpu_gb"] and weights + ram > 1e9 * card["ram_gb"]
        read[name] = weights * (math.ceil(2 * waiting / (1e9 * card["gpu_gb"] - two)) if again else 1)
    flop = {kind: n * flop_of(entry, size, frames, points[-1])}
    cpu = ram - CUDA + 4 / wide * weights + 2 * active
    memory = 1e9 + active + weights, 1e9 + active + two
    return Row(stage, n * passes, flop, written, ram, cpu, read, *memory)


def reading(stage, entry, points, size, n, reduce, grams):
    """The row of stages that read features, on the CPU: of a point `grams` Gram matrices of the items and one
    covariance of the tokens. adapt.py holds a point's tokens in fp32, trained and untrained."""
    found, flop, widest = shapes(entry, points, size), 0, 0
    numbers = stored(found, reduce)
    for point, number in numbers.items():
        width = number // math.prod(found[point][:3])
        flop += 2 * n**2 * number * grams + 2 * n * number * width + 10 * width**3
        widest = max(widest, width)
    ram = max(CHUNK + 8 * n**2 * len(found) + 8 * widest**2, 8 * n * max(numbers.values()) * (grams > 1))
    ram += BASE + 5 * n * 3 * 224**2  # the images, and in fp32
    read = dict.fromkeys(CARDS, (1 + grams) * 2 * n * sum(numbers.values()))
    return Row(stage, 0, {"cpu": flop}, 0, ram, ram, read)


# ---------------------------------------------------------------- the gates


def largest(which, entry, points, size, reduce=0):
    """The points with the most numbers, as many as val chooses at most."""
    return sorted(points, key=stored(shapes(entry, points, size), reduce).get)[-CHOSEN[which] :]


def gate1(
    entry,
    n=500,
    clips=200,
    points="quarters",
    reduce=0,
    size=None,
    vae="ltx",
    encoder="dinov2-l",
    chosen=None,
):
    """The rows of gate 1 on n images and `clips` clips. chosen: {key of CHOSEN: points}, where known."""
    facts, points, chosen = facts_of(entry), points_of(entry, points), chosen or {}
    vae, other = find_model(vae), find_model(encoder)
    size, side = size or entry["size"], entry["clip"]
    last = list(facts.points)[-1].partition(".")[0] if facts.language else "vision"
    layers = [p for p in points if p.startswith(f"{last}.")]
    middle = layers[(len(layers) - 1) // 2 :][:1]
    few = chosen.get("images") or largest("images", entry, points, size, reduce)
    of_clips = chosen.get("clips") or largest("clips", entry, points, side)
    together = passes_of(facts, CLIP)[0] == 1
    moving = side, clips, CLIP if together else SINGLE
    # a frozen clip is one frame to a model that sees frames one by one; all its steps are stored
    still = extraction("frozen", entry, points, *(moving if together else moving[:2]), grids=[])
    still.written = disk_needed(entry, points, side, moving[2], clips, grids=[])
    rows = [
        extraction("images", entry, points, size, n, reduce=reduce),
        extraction("images untrained", entry, points, size, n, kept=few, reduce=reduce),
        extraction("clips", entry, points, *moving, reduce=reduce, grids=middle),
        extraction("clips untrained", entry, points, *moving, kept=of_clips, grids=[]),
        replace(still, stage="frozen first"),
        replace(still, stage="frozen middle"),
        extraction("autoencoder", vae, points_of(vae, "all"), 224, n),
        reading("probe to adapt", entry, points, size, n, reduce, 2),
    ]
    if other["name"] != entry["name"]:
        names, side = points_of(other, "quarters"), other["size"]
        few = chosen.get("encoder") or largest("encoder", other, names, side)
        rows.append(extraction("encoder", other, names, side, n))
        rows.append(extraction("encoder untrained", other, names, side, n, kept=few))
        rows.append(reading("encoder probe", other, names, side, n, 0, 1))
    return rows


GATES = {"1": gate1}


def measured_rate(seconds=0.5):
    """TFLOP/s of matrix products here: in half precision on a GPU, in fp32 on a CPU."""
    device, dtype = ("cuda", torch.half) if torch.cuda.is_available() else ("cpu", torch.float32)
    a = torch.rand(1024, 1024, device=device, dtype=dtype)
    (a @ a)[0, 0].item()  # the first product sets the library up
    products, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        (a @ a)[0, 0].item()
        products += 1
    return 2e-12 * len(a) ** 3 * products / (time.perf_counter() - started)


def columns(row, here):
    """The printed row of a stage. Hours are those of computing and of the disk."""
    found = {"stage": row.stage, "passes": row.passes, "tflop": sum(row.flop.values()) / 1e12}
    disk = {name: (row.written + read) / DISK / 3600 for name, read in row.read.items()}
    for name, card in CARDS.items():
        found[f"{name}_hours"] = disk[name] + sum(n / card[kind] for kind, n in row.flop.items()) / 3.6e15
    found |= {"here_hours": disk["a100"] + found["tflop"] / here / 3600, "disk_hours": disk["t4"]}
    found |= {"disk_gb": row.written / 1e9, "ram_gb": row.ram / 1e9, "gpu_whole_gb": row.whole / 1e9}
    return found | {"gpu_gb": min(row.whole, row.streamed) / 1e9}


def cost_of(entry, gate="1", here=1.0, **settings):
    """(headline values, printed rows) of a gate. settings: those of the function of the gate."""
    if entry["kind"] not in ("vlm", "encoder"):
        fail(f"--model {entry['name']} is a {entry['kind']}; give a VLM or an encoder")
    rows = check_choice(str(gate), GATES, "gate with known costs")(entry, **settings)
    table, total, missed = [columns(row, here) for row in rows], {}, []
    for key in list(table[0])[1:]:
        values = [row[key] for row in table]
        total[key] = max(values) if "ram" in key or "gpu" in key else sum(values)
        if total[key] > TARGETS.get(key, math.inf):
            where = f"{table[values.index(max(values))]['stage']}: {HINTS[key]}"
            missed.append(f"{key} {total[key]:.3g} of {TARGETS[key]} ({where})")
    total["cpu_ram_gb"] = max(row.cpu for row in rows) / 1e9
    return total | {"weights_gb": 2e-9 * facts_of(entry).params, "targets": "; ".join(missed) or "met"}, table


def print_table(rows):
    """Print dicts with the same keys, numbers to the right."""
    lines = [list(rows[0])]
    for row in rows:
        first, *rest = row.values()
        numbers = [f"{x:,.0f}" if x >= 1000 else f"{x:.2f}".removesuffix(".00") for x in rest]
        lines.append([first, *numbers])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *rest in lines:
        print(first.ljust(widths[0]), *(x.rjust(w) for x, w in zip(rest, widths[1:], strict=True)))


def print_cost(entry, gate="1", **settings):
    """Print the table of a gate, then `key value`. Returns the headline values."""
    here = measured_rate()
    total, table = cost_of(entry, gate, here, **settings)
    print_table(table)
    result = {"model": entry["name"], "here_tflops": here}
    result |= {f"gate{gate}_{key}": value for key, value in total.items()}
    print_summary(result)
    return result


def cost_table(gate="1", **settings):
    """What a gate costs for every VLM of the registry, a dict a model."""
    names = [name for name, entry in MODELS.items() if entry["kind"] == "vlm" and "vision" in entry]
    return [{"model": name} | cost_of(find_model(name), gate, **settings)[0] for name in names]


# ---------------------------------------------------------------- the registry, as --list prints it

# points after the tower that other families lack
LISTED = {"cogvlm2": "conv", "qwen3_vl": "deepstack.0-2", "grounding-dino": "scale.0-3 encoder.0-5"}
LISTED |= dict.fromkeys(("owlvit", "owlv2"), "class_head box_head")


def stacks_of(entry):
    """[(tokens, width) of each stage of the tower], [(tokens, width) behind it], of an image."""
    depths, patch, width = entry["vision"]
    sides = [entry["size"] // (patch << stage) for stage in range(len(np.ravel(depths)))]
    tower = [(side**2, width << stage) for stage, side in enumerate(sides)]
    if not entry["language"]:
        return [tower]
    _, merge, wide = entry["language"]
    tokens = math.prod(merge) if isinstance(merge, tuple) else (sides[-1] // merge) ** 2
    return [tower, [(tokens, wide)]]


def first_to_last(stacks, shown):
    """`shown` of the first and last stage of each stack, as text: 9216-576/144."""
    parts = []
    for stack in stacks:
        ends = [f"{shown(*stage):.0f}" for stage in (stack[0], stack[-1])]
        parts.append("-".join(dict.fromkeys(ends)))
    return "/".join(parts)


def listed_points(entry):
    """The names of an entry's points, in short."""
    layers = sum(np.ravel(entry["vision"][0]))
    points = ["patch_embed", f"vision.0-{layers - 1}"] if layers else ["latents", "latents-raw"]
    points += [LISTED[entry["type"]]] if entry["type"] in LISTED else []
    points += ["merger", f"language.0-{entry['language'][0] - 1}"] if entry["language"] else []
    return " ".join(points)


def registry_row(entry):
    """A row of --list, from an entry of the registry alone; "-" where a value is not stated.

    tokens, kB (fp16): of an image of the registry's size at one point of the tower / behind it. GB of GPU
    memory with weights of 2 bytes: whole = 2 (all - head); streamed = 2 (outside the stacks + 2 largest
    layers) + 1 GB + 32 bytes x tokens x width of the larger stack, the activations of one image.
    """
    small = entry["path"].startswith(TINY)
    row = {"repository": entry["path"], "revision": "local" if small else entry.get("revision") or "newest"}
    row |= dict.fromkeys(
        ("params_B", "licence", "points", "px", "tokens", "kB", "GB_whole", "GB_streamed"), "-"
    )
    row["px"] = entry.get("size", "-")
    if "params" in entry:
        row |= {"params_B": f"{entry['params']:.3g}", "licence": entry["licence"]}
        row["GB_whole"] = f"{2 * (entry['params'] - entry['head']):.3g}"
    if not entry.get("vision"):
        return row
    stacks = stacks_of(entry)
    row["points"] = listed_points(entry)
    row["tokens"] = first_to_last(stacks, lambda n, width: n)
    row["kB"] = first_to_last(stacks, lambda n, width: 2 * n * width / 1000)
    if entry["layer"]:
        active = max(n * width for n, width in sum(stacks, []))
        row["GB_streamed"] = f"{2 * (entry['outside'] + 2 * entry['layer']) + 1 + 32e-9 * active:.1f}"
    return row


def aligned(rows):
    """Lines of dicts with the same keys, the columns aligned under the keys."""
    lines = [list(rows[0])]
    for row in rows:
        lines.append([str(x) for x in row.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    found = []
    for line in lines:
        cells = [x.ljust(width) for x, width in zip(line, widths, strict=True)]
        found.append("  ".join(cells).rstrip())
    return found


def print_list():
    """Print the registry, a line a model."""
    print(*aligned([{"name": name} | registry_row(entry) for name, entry in MODELS.items()]), sep="\n")
    print("tokens, kB (fp16): at one point of the tower / after it; GB of GPU memory with 2-byte weights")
    return MODELS
