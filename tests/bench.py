"""Speed as ratios to named peers. Both are measured in the same run, in alternating rounds after a warm-up.

    make bench                       every row, results/bench.yaml
    python tests/bench.py reading    some rows; the others in the file stay

A row: what is measured, its peer, the median ratio (the peer's seconds / ours), its aim, if numbers agree.
"""

import argparse
import collections
import contextlib
import ctypes
import functools
import gc
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# libgomp must not spin: on a shared machine spinning threads make a pass ten times slower
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import published

import checkpoints
import common
import extract
import families
import models
import probes
import stats
import streaming

CPU = torch.device("cpu")


def seconds(call, device=CPU):
    """Seconds of a call; the device is idle before and after."""
    streaming.wait_for(device)
    started = time.perf_counter()
    call()
    streaming.wait_for(device)
    return time.perf_counter() - started


def in_turn(calls, rounds, device=CPU):
    """{name: seconds of every round} of calls that alternate."""
    took = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            took[name].append(seconds(call, device))
    return took


def row_of(ours, theirs, aim, same, **more):
    """A row from the seconds of every round, ours and the peer's."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    row = {"ratio": ratio, "aim": aim, "met": bool(ratio >= aim and same), "same_numbers": bool(same)}
    return row | {"seconds": statistics.median(ours), "peer_seconds": statistics.median(theirs)} | more


def race(ours, theirs, aim, same, rounds=5, device=CPU, **more):
    """A row from calls that alternate, after a warm-up of each."""
    calls = {"ours": ours, "theirs": theirs}
    in_turn(calls, 1, device)
    return row_of(*in_turn(calls, rounds, device).values(), aim, same, **more)


# ---------------------------------------------------------------- networks and their inputs


def qwen(config, dtype=torch.float32, device="cpu"):
    """A Qwen2.5-VL with untrained weights, made on the device."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    how = {"dtype": dtype, "attn_implementation": "sdpa"}
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration._from_config(Qwen2_5_VLConfig(**config), **how)
    return model.eval().requires_grad_(False)


def small_qwen(width, depth=2, layers=12, vocab_size=32000, **more):
    """config.json of a small Qwen2.5-VL, with token ids from 100."""
    names = ("image", "video", "vision_start", "vision_end")
    more = {f"{name}_token_id": 100 + k for k, name in enumerate(names)} | more
    text = published.sizes(width, 3 * width, layers, 8, 4, vocab_size=vocab_size, bos_token_id=None)
    vision = {"depth": depth, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4}
    vision |= {"out_hidden_size": width, "fullatt_block_indexes": [1, depth - 1]}
    sections = [width // 64, width * 3 // 128, width * 3 // 128]
    more |= {"rope_scaling": {"mrope_section": sections}, "vision_config": vision, "eos_token_id": None}
    return published.merged(published.config_of("qwen2.5-vl-7b"), text | more)


def noise(n, height, width=None):
    """n images uint8 [n, 1, height, width, 3]."""
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 1, height, width or height, 3), generator=g, dtype=torch.uint8)


def qwen_inputs(config, frames, text=range(16)):
    """The model's inputs of images and token ids, made without a processor; patches in any order will do."""
    patch, n = config["vision_config"]["patch_size"], len(frames)
    h, w = frames.shape[2] // patch, frames.shape[3] // patch
    # a still image is shown twice
    patches = (frames.flatten(0, 1).float() / 127.5 - 1).reshape(n * h * w, -1).repeat(1, 2)
    start, end, image = (config[f"{k}_token_id"] for k in ("vision_start", "vision_end", "image"))
    ids = torch.tensor([start, *[image] * (h * w // 4), end, *text]).expand(n, -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": patches}
    given["image_grid_thw"] = torch.tensor([[1, h, w]]).expand(n, -1)
    return given | {"mm_token_type_ids": (ids == image).long()}


@contextlib.contextmanager
def checkpoint(layers=24, width=1024, inner=4096):
    """Folder with a Qwen2.5-VL of 1.5 GB, nearly all language layers; its chat template is the image."""
    from tiny import vlm_processor

    processor = vlm_processor(["Describe the picture."])
    processor.chat_template = "<|vision_start|><|image_pad|><|vision_end|>"
    tokenizer = processor.tokenizer
    names = {"image": "image_pad", "video": "video_pad"} | {k: k for k in ("vision_start", "vision_end")}
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for k, name in names.items()}
    config = small_qwen(width, layers=layers, vocab_size=len(tokenizer), **ids, tie_word_embeddings=True)
    config["vision_config"] |= {"num_heads": 2, "patch_size": 8, "window_size": 32}
    config |= {"intermediate_size": inner, "num_key_value_heads": 2, "pad_token_id": tokenizer.pad_token_id}
    with tempfile.TemporaryDirectory() as folder:
        qwen(config).save_pretrained(folder, max_shard_size="100GB")
        processor.save_pretrained(folder)
        yield Path(folder)


def network_of(folder, deepest, device="cpu", dtype=torch.float32):
    """(Network, inputs(frames), points) of a checkpoint whose weights are not read yet."""
    entry = models.find_model(str(folder))
    model, processor, weights = models.skeleton(entry, dtype, device)
    inputs_of, points, *_ = families.family_of(model)(model, processor)
    network = streaming.Network(model, weights, torch.device(device), points, deepest)
    network.dtype = dtype
    return network, inputs_of, points


# ---------------------------------------------------------------- layer streaming and its peer


def device_map(module, layers, here, prefix=""):
    """accelerate's {path: "disk" for each of the `layers`, `here` for what lies beside them}."""
    found = dict.fromkeys((prefix + name for name, _ in module.named_parameters(recurse=False)), here)
    for name, child in module.named_children():
        path = prefix + name
        if path in layers:
            found[path] = "disk"
        elif any(layer.startswith(f"{path}.") for layer in layers):
            found |= device_map(child, layers, here, f"{path}.")
        else:
            found[path] = here
    return found


class Parts(dict):
    """{name: None} of weights that share a tensor of the file, which accelerate's index cannot read."""

    def __init__(self, weights, names):
        super().__init__(dict.fromkeys(names))
        self.weights = weights

    def __getitem__(self, name):
        return next(x for _, x in self.weights.read([name]))


def offloaded(network):
    """accelerate's offload of a network's layers, read from the checkpoint's file in place."""
    from accelerate import dispatch_model

    model, weights, here = network.model, network.weights, "cpu" if network.device.type == "cpu" else "cuda:0"
    in_layers = [name for path in network.layers for name in network.names[path]]
    buffers = {name for name, _ in model.named_buffers()}
    at_hand = set(network.outside) | (buffers & set(in_layers))
    for path, names in network.names.items():
        model.get_submodule(path).__dict__.pop("forward", None)
        at_hand |= set() if path in network.layers else set(names)
    checkpoints.fill(model, weights, sorted(at_hand), network.device)
    names = [name for name in in_layers if name not in at_hand]
    count = collections.Counter(weights.where[name][:2] for name in names)
    index = {}
    for name in names:
        file, key, _ = weights.where[name]
        if count[file, key] == 1:
            file = str(checkpoints.hub_file(weights.entry, file))
            dtype = str(weights.like[name].dtype).removeprefix("torch.")
            index[name] = {"safetensors_file": file, "weight_name": key, "dtype": dtype}
    given = {"offload_index": index, "state_dict": Parts(weights, set(names) - set(index))}
    with warnings.catch_warnings():
        # single parameters, CogVLM2's boi and eoi
        warnings.filterwarnings("ignore", "The following device_map keys")
        where = device_map(model, set(network.layers), here)
        dispatch_model(model, where, main_device=here, **given)
    return network


def one_after_another(network, points, batches, before=None):
    """[{point: output on the CPU}] of every micro-batch, by the capture that stops at the last point."""
    seen = []
    with streaming.capturing(network.model, points) as run:
        for batch in batches:
            if before:
                before()
            outputs = run(families.on(batch, network.device, network.dtype))
            seen.append({point: x.cpu() for point, x in outputs.items()})
    return seen


def streamed(network, points, batches, budget=float("inf")):
    """The same by layer streaming, in as many rounds as the budget of bytes needs."""
    seen = []
    with streaming.capturing(network.model, points) as run:
        while len(seen) < len(batches):
            found = collections.defaultdict(dict)

            def drain(k, outputs, found=found):
                for point in list(outputs):
                    found[k][point] = outputs.pop(point).cpu()

            left = (families.on(batch, network.device, network.dtype) for batch in batches[len(seen) :])
            seen += [found[k] for k in range(streaming.stream(network, run, left, budget, drain))]
    return seen


def difference(a, b):
    """The largest absolute difference between two lists of features."""
    assert len(a) == len(b) and all(set(x) == set(y) for x, y in zip(a, b, strict=True))
    pairs = [(x[p].float(), y[p].float()) for x, y in zip(a, b, strict=True) for p in x]
    return max((x - y).abs().max().item() for x, y in pairs)


def in_cache(file):
    """Bytes of a file that are in the page cache, or None where the kernel does not say."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    with open(file, "rb") as f, mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=access) as m:
        found = (ctypes.c_ubyte * -(-len(m) // mmap.PAGESIZE))()
        whole = (ctypes.c_char * len(m)).from_buffer(m)
        address, size = ctypes.c_void_p(ctypes.addressof(whole)), ctypes.c_size_t(len(m))
        failed = ctypes.CDLL(None).mincore(address, size, found)
        del whole
        return None if failed else sum(x & 1 for x in found) * mmap.PAGESIZE


def forget(file, *readers):
    """Take a checkpoint's file out of the page cache; the readers (Weights) drop their mapped files first."""
    for weights in readers:
        weights.files.clear()
    gc.collect()
    with open(file, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# ---------------------------------------------------------------- rows


def exit_row(model, inputs, depths, aim, rounds, device=CPU, **more):
    """A forward pass that stops at the last of `depths`, against the library's output_hidden_states=True."""
    points = {f"language.{i}": f"model.language_model.layers.{i}" for i in depths}

    @torch.inference_mode()
    def whole():
        return model(**inputs, output_hidden_states=True).hidden_states

    def ours():
        return streaming.capture(model, inputs, points)

    found, states = ours(), whole()
    same = all(torch.equal(found[f"language.{i}"], states[i + 1]) for i in depths)
    del found, states
    return race(ours, whole, aim, same, rounds, device, peer="transformers output_hidden_states=True", **more)


def early_exit():
    config = small_qwen(256, depth=4)
    inputs = qwen_inputs(config, noise(4, 224), range(40))
    return exit_row(qwen(config), inputs, (0, 2, 5), 2.5, 9, what="exit at language layer 6 of 12")


def questions(count=8, tokens=512, words=24):
    """The last token of several questions about an image that is computed once, against once a question."""
    config = small_qwen(512)
    model, points = qwen(config), {"language.5": "model.language_model.layers.5"}
    ids = torch.randint(0, 30000, (count, words), generator=torch.Generator().manual_seed(0)).tolist()
    inputs = functools.partial(qwen_inputs, config, noise(1, 448, 14 * tokens // 8))
    with streaming.capturing(model, points) as run:

        def ours():
            image = streaming.up_to_the_image(model, inputs(text=()))
            end = list(image.pop("behind"))
            run(image)
            rows = [end + question for question in ids]
            states = streaming.states_at_questions(model, run, image, rows, set(points), torch.float32)
            return states["language.5"][0]

        def peer():
            return torch.cat([run(inputs(text=question))["language.5"][:, -1] for question in ids])

        apart = (ours() - peer()).abs().max().item()
        bound = count * (tokens + 2 + words) / (tokens + 1 + count * (1 + words))
        more = {"token_ratio": bound, "largest_difference": apart}
        more |= {"what": f"{count} questions about {tokens} tokens of an image", "peer": "a pass a question"}
        return race(ours, peer, 0.9 * bound, apart < 1e-4, rounds=9, **more)


def reading():
    """Eight random items of a 1 GB shard, mapped, against reading the whole file."""
    with tempfile.TemporaryDirectory() as folder:
        path, ids = Path(folder) / "features.pt", [str(i) for i in range(64)]
        common.save_pt(path, common.FEATURES, ids, {}, features=torch.randn(64, 1, 45, 45, 4096).half())
        pick = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:8]

        def ours():
            return common.load_pt(path, common.FEATURES)["features"][pick]  # indexing by a tensor copies

        def peer():
            return torch.load(path, weights_only=True)["features"][pick]

        more = {"what": f"8 items of {path.stat().st_size / 1e9:.2f} GB, warm"}
        more["peer"] = "torch.load of the file"
        return race(ours, peer, 10, torch.equal(ours(), peer()), **more)


def start():
    """The --help of a stage that only reads tensors, against `import torch`."""

    def run(*command):
        subprocess.run([sys.executable, *command], cwd=common.HERE, check=True, capture_output=True)

    more = {"peer": "import torch", "what": "probe.py --help"}
    return race(lambda: run("probe.py", "--help"), lambda: run("-c", "import torch"), 1 / 1.15, True, **more)


def layer_streaming(images=32, layers=24, width=1024, inner=4096, rounds=3):
    """All images through a layer before the next is read; accelerate reads all layers for every micro-batch.

    Warm, it computes with mapped pages. Cold, the page cache is empty before each of its passes and ours.
    """
    with checkpoint(layers, width, inner) as folder:
        deepest, file = f"language.{layers - 1}", folder / "model.safetensors"
        network, inputs_of, points = network_of(folder, deepest)
        network.fill([])
        points = {name: points[name][0] for name in (f"language.{layers // 2 - 1}", deepest)}
        peer, held = offloaded(network_of(folder, deepest)[0]), network_of(folder, deepest)[0]
        held.fill(held.needed)
        rows = {}
        for batch, count, aim in ((1, images // 2, 5), (4, images, 2)):
            batches = [inputs_of(f) for f in noise(count, 32).split(batch)]
            left = []

            def drop(left=left):
                forget(file, network.weights, peer.weights, held.weights)
                left.append(in_cache(file))

            def ours(before=list, batches=batches):
                before()
                return streamed(network, points, batches)

            def theirs(which, before=None, batches=batches):
                return one_after_another(which, points, batches, before)

            apart = difference(ours(), theirs(peer))
            calls = {"ours": ours, "warm": functools.partial(theirs, peer)}
            calls |= {"ours_cold": functools.partial(ours, drop), "held": functools.partial(theirs, held)}
            took = in_turn(calls | {"cold": functools.partial(theirs, peer, drop)}, rounds)
            assert not any(left), f"{max(left)} bytes of {file} stayed in the page cache"
            what = f"{count} images, {file.stat().st_size / 1e9:.2f} GB of weights, micro-batches of {batch}"
            more = {"what": what, "all_in_memory_seconds": statistics.median(took["held"])}
            for key, mine in (("warm", "ours"), ("cold", "ours_cold")):
                more |= {"difference": apart, "peer": f"accelerate's disk offload, in place, {key}"}
                rows[f"batch{batch}_{key}"] = row_of(took[mine], took[key], aim, apart == 0, **more)
        return rows


def bytes_read(layers=24, width=1024, inner=4096):
    """Bytes that are read for a point in the middle (in the page cache afterwards), against those needed."""
    from transformers import AutoModelForImageTextToText

    with checkpoint(layers, width, inner) as folder, tempfile.TemporaryDirectory() as data:
        point, file = f"language.{layers // 2 - 1}", folder / "model.safetensors"
        size = {"width": 32, "height": 32}
        items = [{"id": str(i), "source": str(i), "frames": f} | size for i, f in enumerate(noise(2, 32))]
        common.write_items(data, items, {"data": "synthetic", "name": "noise"})
        flags = ["--points", point, "--size", "32", "--data", data, "--model", str(folder)]
        network = network_of(folder, point)[0]

        def read(call, *arguments, **more):
            forget(file, network.weights)
            before = in_cache(file)
            call(*arguments, **more)
            return in_cache(file) - before

        needed = network.bytes(network.needed)
        ours = read(extract.main, [*flags, "--out", str(folder / "features")])
        theirs = read(AutoModelForImageTextToText.from_pretrained, folder, dtype=torch.float32)
        assert needed <= ours, (needed, ours)
        row = {"ratio": ours / needed, "aim": 1.1, "met": bool(ours <= 1.1 * needed), "same_numbers": True}
        row |= {"bytes": ours, "needed": needed, "of": file.stat().st_size, "peer_ratio": theirs / needed}
        row["peer"] = "the bytes of the layers needed; the library's from_pretrained reads peer_ratio of them"
        return row | {"what": f"weights read for language layer {layers // 2} of {layers}"}


def ridge(layers=10, seeds=5, n=500, width=4096, targets=4):
    """Ridge of all layers on labels and four permutations in one solve, against scikit-learn one by one."""
    from sklearn.linear_model import RidgeCV

    g = torch.Generator().manual_seed(0)
    x = torch.randn(layers, n, width, generator=g) * (torch.arange(1, width + 1) ** -0.5)
    train, test = torch.arange(n * 3 // 5), torch.arange(n * 3 // 5, n)
    y = x[0] @ torch.randn(width, targets, generator=g) + torch.randn(n, targets, generator=g)
    tasks = {"0": y}
    for s in range(1, seeds):
        tasks[f"{s}"] = torch.cat([y[train[torch.randperm(len(train), generator=g)]], y[test]])
    centred = [a[train].double() - a[train].double().mean(0) for a in x]
    # the same penalties, as scikit-learn counts them
    alphas = [(stats.PENALTIES * z.square().sum() / len(train)).numpy() for z in centred]

    def ours():
        means = [a - a[train].mean(0) for a in x]
        grams = torch.stack([z @ z[train].T for z in means])
        solved = stats.solve_ridge(*stats.spectrum(grams, train), tasks, train, range(n)).values()
        return torch.stack([v.double() for v, _ in solved], 1)

    def theirs():
        found = []
        for k, a in enumerate(x.double().numpy()):
            for t in tasks.values():
                fit = RidgeCV(alphas[k]).fit(a[train], t[train].double().numpy())
                found.append(torch.from_numpy(fit.predict(a)))
        return torch.stack(found).unflatten(0, (layers, seeds))

    def r2(p):
        t = torch.stack(list(tasks.values())).double()[:, test]
        return 1 - (p[:, :, test] - t).square().sum(2) / (t - t.mean(1, keepdim=True)).square().sum(1)

    apart = (r2(ours()) - r2(theirs())).abs().max().item()
    more = {"r2_difference": apart, "peer": "scikit-learn RidgeCV"}
    return {"cv": race(ours, theirs, 4, apart < 1e-6, rounds=3, **more)}


def gradient_probes(layers=10, n=300):
    """MLP probes of all layers and seeds trained as one, against a loop; same first weights and batches."""

    g = torch.Generator().manual_seed(0)
    x, corner = torch.randn(layers, n, probes.COMPONENTS, generator=g), torch.rand(n, 2, generator=g) * 0.5
    boxes = torch.cat([corner, corner + 0.3], 1)
    split = {"train": torch.arange(n * 3 // 5), "val": torch.arange(n * 3 // 5, n * 4 // 5)}

    def ours(steps=probes.STEPS):
        return probes.train_mlp(x, boxes, split, steps=steps)

    def theirs(steps=probes.STEPS):
        jobs = [(a[None], s) for a in x for s in range(probes.SEEDS)]
        found = [probes.train_mlp(a, boxes, split, only=s, steps=steps)[0, 0] for a, s in jobs]
        return torch.stack(found).unflatten(0, (layers, probes.SEEDS))

    apart = (ours(20) - theirs(20)).abs().median().item()  # later, rounding grows with every step
    peer = f"a loop over {layers} layers x {probes.SEEDS} seeds"
    more = {"median_difference_after_20_steps": apart}
    return race(ours, theirs, 3, apart < 1e-3, rounds=3, peer=peer, **more)


def alignment(layers=12, n=1024, width=1024, timed=4):
    """All layers of two models, each prepared once, against pair by pair; some of the pairs are timed."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    import align

    g, rows = torch.Generator().manual_seed(0), {}
    decay = torch.arange(1, width + 1) ** -0.5
    xs = [torch.randn(n, width, generator=g) * decay for _ in range(layers)]
    ys = [x + torch.randn(n, width, generator=g) * decay for x in xs]

    def hsic(k, l):  # unbiased (Song et al. 2012, equation 5)
        k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
        whole = k.sum() * l.sum() / ((n - 1) * (n - 2))
        return ((k * l).sum() + whole - 2 * (k @ l).sum() / (n - 2)) / (n * (n - 3))

    def cka(x, y):
        k, l = x @ x.T, y @ y.T
        return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()

    def near(z):
        z = z / z.norm(dim=1, keepdim=True)
        return torch.zeros(n, n).scatter_(1, (-z @ z.T).fill_diagonal_(1).argsort(1)[:, :10], 1.0)

    def neighbours(x, y):
        return (near(x) * near(y)).sum() / (10 * n)

    def spearman(x, y):
        return spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic

    for measure, pair, aim, tolerance, library in (
        ("cka", cka, 20, 1e-4, "torch"),
        ("recall10", neighbours, 20, 2e-4, "torch"),
        ("spearman", spearman, 30, 1e-5, "scipy's pdist and spearmanr"),
    ):

        def ours(measure=measure):
            return align.pairs(map(align.space_of, xs), map(align.space_of, ys), measure)

        def theirs(pair=pair):
            return torch.tensor([float(pair(xs[k], ys[-k])) for k in range(timed)])

        apart = (ours()[range(timed), [-k for k in range(timed)]] - theirs()).abs().max().item()
        took = in_turn({"ours": ours, "theirs": theirs}, 3)
        whole = [seconds * layers**2 / timed for seconds in took["theirs"]]
        more = {"difference": apart, "peer": f"{library}: one pair x {layers**2}"}
        rows[pair.__name__] = row_of(took["ours"], whole, aim, apart < tolerance, **more)
    return rows


ROWS = {f.__name__: f for f in (early_exit, questions, reading, start, ridge, gradient_probes)}
ROWS |= {"bytes": bytes_read, "alignment": alignment, "streaming": layer_streaming}


def arguments(argv, doc, table, stage):
    """The rows of a benchmark, --folder, --out and --small; exit 2 for an unknown row."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("rows", nargs="*", help=f"of {', '.join(table)} (default: all)")
    p.add_argument("--folder", help="of checkpoints and results, which stay (default: a temporary folder)")
    p.add_argument("--out", help=f"default: results/{stage}.yaml, with --small none")
    p.add_argument("--small", action="store_true", help="small networks: tests the code")
    args = p.parse_args(argv)
    args.rows = args.rows or list(table)
    for name in args.rows:
        common.check_choice(name, table, "row")
    if not args.out and not args.small:
        args.out = common.HERE / "results" / f"{stage}.yaml"
    if args.out:
        common.check_writable(args.out)
    return args


def measure(table, names, out, stage, about, *given):
    """{row: content} of the named rows, which replace theirs in the YAML `out` once they are measured."""
    rows, found = common.load_yaml(out, stage)["rows"] if out and Path(out).is_file() else {}, {}
    for name in names:
        started, new = time.time(), table[name](*given)
        args = argparse.Namespace(seed=0, row=name, small=bool(given) and given[0].small)
        run = common.run_info(args, started, script=f"tests/{stage.replace('-', '_')}.py", **about)
        for key, row in {name: new}.items() if "ratio" in new else new.items():
            key = key if key == name else f"{name}_{key}".replace("-", "_")
            found[key] = common.plain(row | {"run": run})
            print(key, found[key], flush=True)
        rows |= found
        if out:
            ratios = {f"{key}_ratio": row["ratio"] for key, row in rows.items()}
            common.save_yaml(out, {"stage": stage, **ratios, "rows": rows})
    return found


if __name__ == "__main__":
    args = arguments(None, __doc__, ROWS, "bench")
    measure(ROWS, args.rows, args.out, "bench", {"threads": torch.get_num_threads()})
