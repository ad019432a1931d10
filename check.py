"""`python extract.py --check --model NAME`: is a checkpoint read as its library reads it?

Two photographs of scikit-image (coffee, an astronaut) go through the model as in extract.py. One line each:
PASS or FAIL of features against the library's own hidden states, of non-finite values, of the order of tokens
(a bright patch changes its own token most), and of what a model that can be asked says; seconds and memory.
extract.py runs the patch test by itself for model types whose order no test proves.
"""

import time
from types import SimpleNamespace

import numpy as np
import torch

from common import choose_device, fail, memory_left, memory_size, peak_memory
from families import NO_GRID, PROVED, TOWERS, family_of, named, on, taken, type_of, whole_tokens, without_grid
from models import answers_to, find_model, skeleton
from streaming import Network, capturing, half_linears, stream, wait_for

QUESTION = "What is in the picture?"
SEEN = {
    "coffee": ("coffee", "cup", "mug", "espresso", "spoon", "saucer", "drink"),
    "astronaut": ("astronaut", "woman", "person", "lady", "space", "suit", "portrait"),
}
# a rounding of the residual stream, relative to its norm
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def photographs(size):
    """The photographs of SEEN, squashed to size x size: uint8 [2, 1, size, size, 3]."""
    from PIL import Image
    from skimage import data

    images = [Image.fromarray(getattr(data, name)()).resize((size, size), Image.BICUBIC) for name in SEEN]
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])[:, None]


# ---------------------------------------------------------------- the order of tokens: a bright patch

PATCHES, ENOUGH = 16, 0.75  # images of an order; share of them that proves it


def first_points(points):
    """{stack: its first point with a grid}: where the image enters the stack."""
    first = {}
    for name in points:
        if name not in without_grid(points):
            first.setdefault(name.partition(".")[0], name)
    return first


def cells_of(grid):
    """At most PATCHES cells (row, column) of a grid, no two of them near each other."""
    h, w = grid
    if h * w <= PATCHES:
        return [divmod(k, w) for k in range(h * w)]
    return [(int(h * (0.618 * k % 1)), int(w * (0.755 * k % 1))) for k in range(1, PATCHES + 1)]


def patch_images(background, grid):
    """Copies of a darkened photograph, one for each of `cells_of`, which is white: uint8 [n, 1, S, S, 3]."""
    h, w = background.shape[0] // grid[0], background.shape[1] // grid[1]
    cells = cells_of(grid)
    images = (background // 2).repeat(len(cells), 1, 1, 1)
    for image, (row, column) in zip(images, cells, strict=True):
        image[row * h : (row + 1) * h, column * w : (column + 1) * w] = 255
    return images[:, None]


def share_at_own_token(x, near=0):
    """Share of `patch_images` whose features [n, t, h, w, D] stand out most at the patch's token, or at most
    `near` tokens away.

    A patch also changes all other tokens, by attention. They change alike wherever it is, so the features are
    compared with the mean over the images.
    """
    x = x.float().cpu().mean(1)
    mean = x.mean(0, keepdim=True)
    sizes = mean.norm(dim=-1)  # a few tokens of trained towers are a hundred times larger than others
    difference = (x - mean).norm(dim=-1) / (x.norm(dim=-1) + sizes + sizes.median() + 1e-6)
    highest = difference.flatten(1).argmax(1)
    places = torch.stack([highest // x.shape[2], highest % x.shape[2]], 1)
    away = (places - torch.tensor(cells_of(x.shape[1:3]))).abs().amax(1)
    return (away <= near).float().mean().item()


def overlapping(model):
    """1 for a tower of overlapping convolutions, whose tokens are half a token beside their cells, else 0."""
    tower = model.get_submodule(named(model, TOWERS))
    return int(any(isinstance(m, torch.nn.Conv2d) and m.kernel_size > m.stride for m in tower.modules()))


def patch_test(model, points, size, features_of):
    """{stack: share of bright patches that change their own token most, at the stack's first point}.

    features_of(frames uint8 [n,1,S,S,3], names of points) -> {point: [n, t, h, w, D]}
    """
    first, found, near = first_points(points), {}, overlapping(model)
    background = photographs(size)[0, 0]
    plain = features_of(background[None, None], list(first.values()))
    for grid in dict.fromkeys(tuple(x.shape[2:4]) for x in plain.values()):
        alike = {stack: name for stack, name in first.items() if plain[name].shape[2:4] == grid}
        if grid[0] == 1 < grid[1]:  # tokens that fit no grid
            found |= dict.fromkeys(alike, 0.0)
            continue
        features = features_of(patch_images(background, grid), list(alike.values()))
        found |= {stack: share_at_own_token(features[name], near) for stack, name in alike.items()}
    return {stack: found[stack] for stack in first}


def features_by(network, points, make_inputs, dtype, budget, batch):
    """The features_of of `patch_test`: frames through a network, `batch` at once; budget: bytes that streamed
    batches may hold together, None for a network that is in memory."""

    def features_of(frames, names):
        batches, done = [make_inputs(part) for part in frames.split(batch)], 0
        parts = [{} for _ in batches]

        def drain(k, seen):
            for point in list(seen):
                parts[done + k][point] = points[point][1](seen.pop(point), batches[done + k])

        given = [on(one, network.device, dtype) for one in batches]
        with (
            taken(network.model, frames.shape[2]),
            capturing(network.model, {name: points[name][0] for name in names}) as run,
        ):
            while done < len(given):
                if budget is None:
                    drain(0, run(given[done]))
                done += 1 if budget is None else stream(network, run, given[done:], budget, drain)
        features = {}
        for name in names:
            features[name] = torch.cat([part[name] for part in parts])
        return features

    return features_of


def without_place(point):
    """A point whose tokens are taken without a place: [n, t, 1, K, D]."""
    path, restore = point[:2]
    return path, lambda x, batch: restore(x, batch).flatten(2, 3)[:, :, None], NO_GRID


def unproved(shares):
    """The stacks of `patch_test` that are not proved."""
    return [stack for stack, share in shares.items() if share < ENOUGH]


def prove_order(job, budget):
    """Take the tokens of a stack without a place where a bright patch is not seen at its own token.

    Nothing is to be done for model types whose order the tests prove. budget: as in `features_by`.
    """
    if type_of(job.model) in PROVED:
        return
    stacks = {name.partition(".")[0] for name in job.modules}
    points = {name: point for name, point in job.points.items() if name.partition(".")[0] in stacks}
    run = features_by(job.network, points, job.make_inputs, job.dtype, budget, job.args.batch)
    shares = patch_test(job.model, points, job.args.size, run)
    for stack in unproved(shares):
        print(f"{stack}: {shares[stack]:.2f} of bright patches are seen at their own token: grid: false")
        names = {name for name in job.with_grid if name.partition(".")[0] == stack}
        job.points |= {name: without_place(job.points[name]) for name in names}
        job.with_grid -= names


# ---------------------------------------------------------------- a checkpoint and its library


class Report(dict):
    """Prints a line for each result and keeps it."""

    def line(self, name, passed, text):
        self[name] = "PASS" if passed else "FAIL"
        print(f"{self[name]}  {name}: {text}", flush=True)


def states(out, stack, points):
    """{point: hidden state} of a library's output; {} where it returns one of a stage, not of a layer."""
    found = out.get("encoder_hidden_states") or out.get("hidden_states") or ()
    if len(found) != 1 + sum(name.startswith(f"{stack}.") for name in points):
        return {}
    # the last may be after the final norm
    return {f"{stack}.{i}": x for i, x in enumerate(found[1:-1])}


@torch.inference_mode()
def library_states(model, given, points):
    """{point: hidden state} of the layers whose output the library returns itself."""
    if model.config.model_type == "cogvlm2":
        return {}
    from transformers import PreTrainedModel

    calls, tower = [], model.get_submodule(named(model, TOWERS))
    hook = tower.register_forward_pre_hook(lambda _, args, more: calls.append((args, more)), with_kwargs=True)
    try:
        found = model(**given, output_hidden_states=True)
    finally:
        hook.remove()
    args, more = calls[0]
    seen = {}
    if isinstance(tower, PreTrainedModel):
        seen = states(
            tower(*args, **more | {"output_hidden_states": True, "return_dict": True}), "vision", points
        )
    return seen | states(found, "language" if hasattr(model, "generate") else "encoder", points)


def compare(report, found):
    """Features against the library's hidden states, wherever it returns them."""
    expected = library_states(found.model, found.given, found.points)
    found_apart = []
    for point, x in expected.items():
        if point in found.features:
            x = found.points[point][1](x, found.batch).float()
            found_apart.append(((found.features[point].float() - x).norm() / x.norm()).item())
    if not found_apart:
        print("-     hidden_states: the library returns none of these layers")
        return
    limit = TOLERANCE[next(iter(expected.values())).dtype]
    close = all(difference <= limit for difference in found_apart)  # nan is not
    worst = f"relative difference {max(found_apart):.1e}"
    report.line("hidden_states", close, f"{len(found_apart)} layers, {worst}")


def check_patches(report, found, size):
    """The patch test; a model type that no test proves is stored with `grid: false` where it fails."""
    shares = patch_test(found.model, found.points, size, found.features_of)
    text = ", ".join(f"{stack} {share:.2f}" for stack, share in shares.items())
    missed = unproved(shares)
    if missed and found.model.config.model_type not in PROVED:
        print(f"-     patches: {text}; {', '.join(missed)} will be stored with grid: false")
    else:
        report.line("patches", not missed, f"share of bright patches seen at their own token: {text}")


def ask(report, found, pretrained):
    """What the model says of each photograph; small models, which have never seen one, are not judged."""
    for name, image in zip(SEEN, found.frames, strict=True):
        text = answers_to(found.model, found.processor, image[None], QUESTION, (range(1), 1))[0]
        if pretrained:
            recognised = any(word in text.lower() for word in SEEN[name])
            report.line(f"answer_{name}", recognised, repr(text[:80]))
        else:
            print(f"-     answer_{name}: {text[:80]!r}")


def run_once(args, entry, device, dtype, report):
    """The photographs through the model: (what was loaded and found, whether it was streamed)."""
    size, started = args.size or entry["size"], time.time()
    model, processor, weights = skeleton(entry, dtype, device)
    if args.dtype == "mixed":
        half_linears(model, weights)
        dtype = torch.float32
    make_inputs, points, *rest = family_of(model)(model, processor)
    whole_tokens(size, rest[0], args.model)
    network = Network(model, weights, device, points, list(points)[-1])
    limit = memory_left(device, memory_size(args.max_memory) if args.max_memory else None)
    streamed = args.stream or 1.3 * network.bytes(network.needed) > limit
    network.fill([] if streamed else network.needed)
    report.line("load", True, f"{weights.bytes / 1e9:.1f} GB read in {time.time() - started:.0f} s")
    frames, started = photographs(size), time.time()
    features_of = features_by(
        network, points, make_inputs, dtype, float("inf") if streamed else None, len(SEEN)
    )
    features = features_of(frames, list(points))
    wait_for(device)
    seconds = (time.time() - started) / len(SEEN)
    report.line("features", True, f"{len(features)} points, {seconds:.2f} s an image")
    batch = make_inputs(frames)
    found = {"model": model, "processor": processor, "points": points, "frames": frames, "batch": batch}
    found |= {"given": on(batch, device, dtype), "features": features, "features_of": features_of}
    return SimpleNamespace(**found), streamed


def check_model(args):
    """Run all checks of --model. Returns {check: PASS or FAIL}; exit code 1 if one fails."""
    entry = find_model(args.model, args.base) | {"revision": args.revision}
    if entry["kind"] not in ("vlm", "encoder"):
        fail(f"--check is for vision-language models and encoders, and {args.model} is a {entry['kind']}")
    device, dtype, why = choose_device(args.dtype)
    print(f"device {device.type} ({why})")
    report = Report()
    peak_memory(reset=True)
    found, streamed = run_once(args, entry, device, dtype, report)
    bad = sum(int((~x.isfinite()).sum()) for x in found.features.values())
    report.line("finite", not bad, f"{bad} values are not" + bool(bad) * "; extract with --dtype mixed")
    check_patches(report, found, args.size or entry["size"])
    if streamed:
        print("-     hidden states and answers are not checked of a streamed model")
    else:
        compare(report, found)
        if found.processor and entry["kind"] == "vlm":
            ask(report, found, entry["weights"] == "pretrained")
    print(f"peak_memory_gb {(peak_memory() or 0) / 1e9:.1f}")
    if "FAIL" in report.values():
        raise SystemExit(1)
    return report
