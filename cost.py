"""What a gate costs before anything runs."""

import math

from models import MODELS, TINY


def shapes_of(entry, points, size, frames, model=None):
    return {}


def check_disk(out, needed, hint):
    return


def print_list():
    print(*aligned([{"name": name} | registry_row(entry) for name, entry in MODELS.items()]), sep="\n")
    print("tokens, kB (fp16): at one point of the tower / after it; GB of GPU memory with 2-byte weights")
    return MODELS


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
