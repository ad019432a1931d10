"""`python extract.py --check --model NAME`: is a checkpoint read as its library reads it?

Two photographs of scikit-image (coffee, an astronaut) go through the model as in extract.py. One line each:
PASS or FAIL of features against the library's own hidden states, of non-finite values, and of what a model
that can be asked says; seconds and memory.
"""

import time
from types import SimpleNamespace

import numpy as np
import torch

from common import choose_device, fail, memory_left, memory_size, peak_memory
from families import family_of, on, whole_tokens
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


class Report(dict):
    """Prints a line for each result and keeps it."""

    def line(self, name, passed, text):
        self[name] = "PASS" if passed else "FAIL"
        print(f"{self[name]}  {name}: {text}", flush=True)


def library_states(model, given):
    """{point: hidden state} of the layers whose output the library returns itself."""
    if model.config.model_type == "cogvlm2":
        return {}
    with torch.inference_mode():
        out = model(**given, output_hidden_states=True)
    states = out.get("encoder_hidden_states") or out.get("hidden_states") or ()
    stack = "language" if "input_ids" in given else "vision"
    # the last may be after the final norm
    return {f"{stack}.{i}": x for i, x in enumerate(states[1:-1])}


def compare(report, found):
    """Features against the library's hidden states, wherever it returns them."""
    states = library_states(found.model, found.given)
    states = {point: x for point, x in states.items() if point in found.features}
    if not states:
        print("-     hidden_states: there is no library of this model; tests compare with recorded outputs")
        return
    found_apart = []
    for point, x in states.items():
        expected = found.points[point][1](x, found.batch).float()
        difference = (found.features[point].float() - expected).norm() / expected.norm()
        found_apart.append(difference.item())
    limit = TOLERANCE[next(iter(states.values())).dtype]
    close = all(difference <= limit for difference in found_apart)  # nan is not
    worst = f"relative difference {max(found_apart):.1e}"
    report.line("hidden_states", close, f"{len(states)} layers, {worst}")


def ask(report, found, pretrained):
    """What the model says of each photograph; small models, which have never seen one, are not judged."""
    for name, image in zip(SEEN, found.frames, strict=True):
        text = answers_to(found.model, found.processor, image[None], QUESTION, (range(1), 1))[0]
        if pretrained:
            named = any(word in text.lower() for word in SEEN[name])
            report.line(f"answer_{name}", named, repr(text[:80]))
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
    frames = photographs(size)
    batch = make_inputs(frames)
    given = on(batch, device, dtype)
    features, started = {}, time.time()

    def drain(k, seen):
        for point in list(seen):
            features[point] = points[point][1](seen.pop(point), batch)

    with capturing(model, {name: point[0] for name, point in points.items()}) as run:
        if streamed:
            stream(network, run, [given], float("inf"), drain)
        else:
            drain(0, run(given))
    wait_for(device)
    seconds = (time.time() - started) / len(SEEN)
    report.line("features", True, f"{len(features)} points, {seconds:.2f} s an image")
    found = {"model": model, "processor": processor, "points": points, "frames": frames, "batch": batch}
    return SimpleNamespace(**found, given=given, features=features), streamed


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
