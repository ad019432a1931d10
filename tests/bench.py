"""Speed as ratios against named peers, both measured in this run: medians of alternating rounds after a warm-up.

    make bench                       every row, results/bench.yaml
    python tests/bench.py reading    some rows, the others there stay as they are

A row says what was measured, its peer, the ratio (peer's seconds / ours), the ratio aimed at, and whether the two gave the same numbers.
"""

import argparse
import collections
import contextlib
import ctypes
import gc
import json
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# on a shared machine spinning threads slow a pass tenfold, and the one with most threads of its own least:
# libgomp then stops spinning
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common  # noqa: E402 (after the environment is set)
import extract  # noqa: E402 (after the environment is set)
import families  # noqa: E402 (after the environment is set)
import metrics  # noqa: E402 (after the environment is set)
import models  # noqa: E402 (after the environment is set)
import stats  # noqa: E402 (after the environment is set)


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def in_turn(calls, rounds):
    """{name: seconds of every round} of calls that alternate."""
    found = [{name: seconds(call) for name, call in calls.items()} for _ in range(rounds)]
    return {name: [f[name] for f in found] for name in calls}


def judged(ours, theirs, aim, same, **more):
    """A row from the seconds of every round, ours and the peer's."""
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    return {
        "ratio": ratio,
        "aim": aim,
        "met": bool(ratio >= aim and same),
        "same_numbers": bool(same),
        "seconds": statistics.median(ours),
        "peer_seconds": statistics.median(theirs),
        **more,
    }


def row(ours, theirs, aim, same, rounds=5, **more):
    """In turn, after a warm-up of each."""
    ours(), theirs()
    return judged(*in_turn({"ours": ours, "theirs": theirs}, rounds).values(), aim, same, **more)


# ---------------------------------------------------------------- the peers of layer streaming


def apart(module, layers, here, prefix=""):
    """accelerate's device map: {path: "disk" for each of the `layers`, `here` for all that lies beside them}."""
    found = dict.fromkeys((prefix + name for name, _ in module.named_parameters(recurse=False)), here)
    for name, child in module.named_children():
        path = prefix + name
        inside = any(layer.startswith(f"{path}.") for layer in layers)
        found |= (
            {path: "disk"}
            if path in layers
            else apart(child, layers, here, f"{path}.")
            if inside
            else {path: here}
        )
    return found


class Parts(dict):
    """{name: None} of weights that are one tensor in the checkpoint and several in the model; each is read when asked for, which accelerate's own index cannot say."""

    def __init__(self, weights, names):
        super().__init__(dict.fromkeys(names))
        self.weights = weights

    def __getitem__(self, name):
        return next(x for _, x in self.weights.read([name]))


def offloaded(network, folder=None):
    """accelerate's offload of the layers of a network from skeleton(), which is taken over: all else stays in memory, as when layers are streamed.

    Layers are read in place, from the checkpoint's own safetensors, or, with `folder`, from one file a weight that accelerate.utils writes there as disk_offload() does.
    """
    from accelerate import dispatch_model
    from accelerate.utils import offload_state_dict

    model, weights, here = network.model, network.weights, "cpu" if network.device.type == "cpu" else "cuda:0"
    in_layers = [name for path in network.layers for name in network.names[path]]
    buffers = {name for name, _ in model.named_buffers()}
    at_hand = (
        set(network.outside)
        | (buffers & set(in_layers))
        | {name for path, names in network.names.items() if path not in network.layers for name in names}
    )
    for path in network.names:
        model.get_submodule(path).__dict__.pop("forward", None)
    models.fill(model, weights, sorted(at_hand), network.device)
    names = [name for name in in_layers if name not in at_hand]
    if folder:
        offload_state_dict(folder, dict(weights.read(names)))
        given = {"offload_dir": folder}
    else:
        count = collections.Counter(weights.where[name][:2] for name in names)
        whole = [name for name in names if count[weights.where[name][:2]] == 1]
        given = {
            "offload_index": {
                name: {
                    "safetensors_file": str(models.hub_file(weights.entry, weights.where[name][0])),
                    "weight_name": weights.where[name][1],
                    "dtype": str(weights.like[name].dtype).removeprefix("torch."),
                }
                for name in whole
            },
            "state_dict": Parts(weights, set(names) - set(whole)),
        }
    with warnings.catch_warnings():
        # single parameters, CogVLM2's boi and eoi
        warnings.filterwarnings("ignore", "The following device_map keys")
        dispatch_model(model, apart(model, set(network.layers), here), main_device=here, **given)
    return network


def one_after_another(network, points, batches, before=None):
    """[{point: output on the CPU}] of every micro-batch, by the capture that stops at the last point."""
    seen = []
    with extract.watching(network.model, points) as run:
        for batch in batches:
            if before:
                before()
            seen.append(
                {
                    point: x.cpu()
                    for point, x in run(families.on(batch, network.device, network.dtype)).items()
                }
            )
    return seen


def streamed(network, points, batches, budget=float("inf")):
    """The same by layer streaming, in as many rounds as the budget of bytes needs."""
    seen = []
    with extract.watching(network.model, points) as run:
        while len(seen) < len(batches):
            begun = len(seen)
            found = collections.defaultdict(dict)

            def drain(k, outputs, found=found):
                for point in list(outputs):
                    found[k][point] = outputs.pop(point).cpu()

            done = extract.stream(
                network,
                run,
                (families.on(batch, network.device, network.dtype) for batch in batches[begun:]),
                budget,
                drain,
            )
            seen += [found[k] for k in range(done)]
    return seen


def difference(a, b):
    """The largest absolute difference between two lists of features."""
    assert len(a) == len(b) and all(set(x) == set(y) for x, y in zip(a, b, strict=True))
    return max(
        (x[point].float() - y[point].float()).abs().max().item()
        for x, y in zip(a, b, strict=True)
        for point in x
    )


def in_cache(file):
    """Bytes of a file that are in the page cache, or None where the kernel does not say."""
    with (
        open(file, "rb") as f,
        mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as m,
    ):
        found = (ctypes.c_ubyte * -(-len(m) // mmap.PAGESIZE))()
        whole = (ctypes.c_char * len(m)).from_buffer(m)
        failed = ctypes.CDLL(None).mincore(
            ctypes.c_void_p(ctypes.addressof(whole)), ctypes.c_size_t(len(m)), found
        )
        del whole
        return None if failed else sum(x & 1 for x in found) * mmap.PAGESIZE


def forget(file, *readers):
    """Take a checkpoint's file out of the page cache, as one larger than the memory drives itself out; what the readers (Weights) have mapped must go first."""
    for weights in readers:
        weights.files.clear()
    gc.collect()
    with open(file, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def checkpoint(layers=24, width=1024, inner=4096):
    """Folder with a Qwen2.5-VL of 1.5 GB, nearly all of it language layers, and a chat template of the picture alone: reading outweighs computing on a CPU, as it does on a GPU."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from tiny import vlm_processor

    processor = vlm_processor(["Describe the picture."])
    processor.chat_template = "<|vision_start|><|image_pad|><|vision_end|>"
    tokenizer = processor.tokenizer
    special = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                vision_config={
                    "depth": 2,
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_heads": 2,
                    "patch_size": 8,
                    "window_size": 32,
                    "fullatt_block_indexes": [1],
                    "out_hidden_size": width,
                },
                text_config={
                    "hidden_size": width,
                    "intermediate_size": inner,
                    "num_hidden_layers": layers,
                    "num_attention_heads": 8,
                    "num_key_value_heads": 2,
                    "vocab_size": len(tokenizer),
                    "bos_token_id": None,
                    "eos_token_id": None,
                    "pad_token_id": tokenizer.pad_token_id,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 1e6,
                        "mrope_section": [width // 64, width // 64 * 3 // 2, width // 64 * 3 // 2],
                    },
                },
                **special,
                tie_word_embeddings=True,
            )
        )
        model.save_pretrained(folder, max_shard_size="100GB")
        processor.save_pretrained(folder)
        del model
        yield Path(folder)


def network_of(folder, deepest, device="cpu", dtype=torch.float32):
    """(Network, inputs(frames), points) of a checkpoint whose weights are not read yet."""
    entry = models.find_model(str(folder))
    model, processor, weights = models.skeleton(entry, dtype, device)
    inputs_of, points, *_ = families.family_of(model)(model, processor)
    network = extract.Network(model, weights, torch.device(device), points, deepest)
    network.dtype = dtype
    return network, inputs_of, points


# ---------------------------------------------------------------- rows


def early_exit():
    """One forward pass that stops at the middle language layer, against the library's output_hidden_states=True."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 4,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "out_hidden_size": 256,
                "fullatt_block_indexes": [1, 3],
            },
            text_config={
                "hidden_size": 256,
                "intermediate_size": 768,
                "num_hidden_layers": 12,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
            },
            image_token_id=31000,
            vision_start_token_id=31001,
            tie_word_embeddings=False,
        )
    ).eval()
    grid = torch.tensor([[1, 16, 16]] * 4)
    ids = torch.tensor([[31001, *[31000] * 64, *range(40)]] * 4)
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(4 * 256, 1176),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == 31000).long(),
    }
    points = {f"language.{i}": f"model.language_model.layers.{i}" for i in (0, 2, 5)}

    def whole():
        with torch.inference_mode():
            return model(**given, output_hidden_states=True).hidden_states

    ours, peer = extract.capture(model, given, points), whole()
    same = all(torch.equal(ours[f"language.{i}"], peer[i + 1]) for i in (0, 2, 5))
    return row(
        lambda: extract.capture(model, given, points),
        whole,
        2.5,
        same,
        rounds=9,
        peer="transformers output_hidden_states=True",
        what="exit at language layer 6 of 12",
    )


def questions(count=8, tokens=512, words=24):
    """The last row of several questions about one picture, whose rows are computed once, against a pass over picture and question for each."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_heads": 4,
                "out_hidden_size": 512,
                "fullatt_block_indexes": [1],
            },
            text_config={
                "hidden_size": 512,
                "intermediate_size": 1536,
                "num_hidden_layers": 12,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "vocab_size": 32000,
                "bos_token_id": None,
                "eos_token_id": None,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            },
            image_token_id=31000,
            video_token_id=31003,
            vision_start_token_id=31001,
            tie_word_embeddings=False,
        )
    ).eval()
    asked = torch.randint(0, 30000, (count, words), generator=torch.Generator().manual_seed(0))
    points = {"language.5": "model.language_model.layers.5"}

    def inputs(*ids):
        ids = torch.tensor([[31001, *[31000] * tokens, 31002, *ids]])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
            "image_grid_thw": torch.tensor([[1, 32, tokens // 8]]),
            "mm_token_type_ids": (ids == 31000).long(),
        }

    pixels = torch.randn(4 * tokens, 1176)
    with extract.watching(model, points) as run:

        def ours():
            picture = families.up_to_the_picture(model, inputs())
            picture.pop("behind")
            run(picture)
            return extract.ask(
                model, run, picture, [[31002, *ids] for ids in asked.tolist()], set(points), torch.float32
            )["language.5"][0]

        def peer():
            return torch.cat([run(inputs(*ids))["language.5"][:, -1] for ids in asked.tolist()])

        apart = (ours() - peer()).abs().max().item()
        bound = count * (tokens + 2 + words) / (tokens + 1 + count * (1 + words))
        return row(
            ours,
            peer,
            0.9 * bound,
            apart < 1e-4,
            rounds=9,
            token_ratio=bound,
            largest_difference=apart,
            peer="a pass over picture and question for each",
            what=f"{count} questions about {tokens} tokens of a picture",
        )


def reading():
    """Eight random items of a 1 GB shard, mapped, against reading the whole file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.pt"
        common.save_pt(
            path,
            common.FEATURES,
            [str(i) for i in range(64)],
            {},
            features=torch.randn(64, 1, 45, 45, 4096).half(),
        )
        pick = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:8]

        def ours():
            return common.load_pt(path, common.FEATURES)["features"][pick]  # indexing by a tensor copies

        def peer():
            return torch.load(path, weights_only=True)["features"][pick]

        return row(
            ours,
            peer,
            10,
            torch.equal(ours(), peer()),
            peer="torch.load of the whole file",
            what=f"8 items of {path.stat().st_size / 1e9:.2f} GB, warm",
        )


def start():
    """A stage that only reads tensors, from nothing to its --help, against `import torch`: here the ratio must stay above 1 / 1.15."""

    def run(*command):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)

    return row(
        lambda: run("probe.py", "--help"),
        lambda: run("-c", "import torch"),
        1 / 1.15,
        True,
        peer="import torch",
        what="probe.py --help",
    )


def streaming(pictures=32, layers=24, width=1024, inner=4096, rounds=3):
    """Every picture through one layer before the next is read, against accelerate's offload, which reads every layer again for every micro-batch.

    Warm, safetensors in place cost accelerate nothing on a CPU: it computes with the mapped pages. They are only ever warm where the checkpoint fits into memory
    beside the work; cold, the page cache is emptied before each of the peer's passes and once before ours. all_in_memory_seconds is what computing alone takes: it bounds both.
    """
    with checkpoint(layers, width, inner) as folder, tempfile.TemporaryDirectory() as one_by_one:
        deepest, file = f"language.{layers - 1}", folder / "model.safetensors"
        network, inputs_of, points = network_of(folder, deepest)
        network.fill([])
        points = {name: points[name][0] for name in (f"language.{layers // 2 - 1}", deepest)}
        own = offloaded(network_of(folder, deepest)[0], one_by_one)
        in_place = offloaded(network_of(folder, deepest)[0])
        held = network_of(folder, deepest)[0]
        held.fill(held.wanted)
        frames = torch.randint(
            0, 256, (pictures, 1, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )

        def compare(batch, pictures, aim):
            batches = [inputs_of(f) for f in frames[:pictures].split(batch)]

            def drop():
                forget(file, network.weights, own.weights, in_place.weights, held.weights)
                left.append(in_cache(file))

            def ours(cold=False):
                if cold:
                    drop()
                return streamed(network, points, batches)

            def peer(network, cold=False):
                return one_after_another(network, points, batches, drop if cold else None)

            features, left = ours(), []
            apart = {
                name: difference(features, peer(each))
                for name, each in (("own", own), ("in_place", in_place))
            }
            found = in_turn(
                {
                    "ours": ours,
                    "own": lambda: peer(own),
                    "in_place": lambda: peer(in_place),
                    "ours_cold": lambda: ours(cold=True),
                    "cold": lambda: peer(in_place, cold=True),
                    "held": lambda: peer(held),
                },
                rounds,
            )
            what = f"{pictures} pictures, {file.stat().st_size / 1e9:.2f} GB of weights, micro-batches of {batch}"

            assert not any(left), f"{max(left)} bytes of {file} stayed in the page cache"

            def one(ours, theirs, which, peer):
                return judged(
                    found[ours],
                    found[theirs],
                    aim,
                    apart[which] == 0,
                    peer=f"accelerate's disk offload, {peer}",
                    what=what,
                    difference=apart[which],
                    all_in_memory_seconds=statistics.median(found["held"]),
                )

            return {
                f"batch{batch}": one("ours", "own", "own", "its own folder, warm"),
                f"batch{batch}_in_place": one("ours", "in_place", "in_place", "safetensors in place, warm"),
                f"batch{batch}_cold": one("ours_cold", "cold", "in_place", "safetensors in place, cold"),
            }

        return compare(1, pictures // 2, 5) | compare(4, pictures, 2)


READ = """
import json, sys
sys.argv = ["extract.py"]
from bench import extract, forget, in_cache

def extraction(out):
    extract.main(["--model", {folder!r}, "--data", {data!r}, "--out", {folder!r} + out, "--points", {point!r}, "--size", "32"])

def library(out):
    from transformers import AutoModelForImageTextToText
    AutoModelForImageTextToText.from_pretrained({folder!r}, dtype="float32")

def read_bytes():
    return int(open("/proc/self/io").read().split("read_bytes: ")[1].split()[0])

{which}("/warm-up")  # imports are read from the disk too
forget({file!r})
left, before = in_cache({file!r}), read_bytes()
{which}("/measured")
print(json.dumps({{"left": left, "read_bytes": read_bytes() - before, "in_cache": in_cache({file!r})}}))
"""


def bytes_read(layers=24, width=1024, inner=4096):
    """What a process reads of the checkpoint for a point in the middle of the language model, against the bytes of the weights that the point needs."""
    with checkpoint(layers, width, inner) as folder, tempfile.TemporaryDirectory() as data:
        point, file = f"language.{layers // 2 - 1}", folder / "model.safetensors"
        frames = torch.randint(
            0, 256, (2, 1, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
        )
        common.write_items(
            data,
            [
                {"id": str(i), "source": str(i), "width": 32, "height": 32, "frames": f}
                for i, f in enumerate(frames)
            ],
            {"data": "synthetic", "name": "noise"},
        )
        network = network_of(folder, point)[0]
        needed, counted = network.bytes(network.wanted), {}
        for which in ("extraction", "library"):
            script = READ.format(folder=str(folder), data=data, point=point, file=str(file), which=which)
            done = subprocess.run(
                [sys.executable, "-c", script],
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            )
            counted[which] = json.loads(done.stdout.strip().splitlines()[-1])
        how = "read_bytes" if all(c["read_bytes"] > 0 for c in counted.values()) else "in_cache"
        ours, theirs = (counted[which][how] for which in ("extraction", "library"))
        assert needed <= ours, (needed, counted)
        return {
            "ratio": ours / needed,
            "aim": 1.1,
            "met": bool(ours <= 1.1 * needed),
            "same_numbers": True,
            "bytes": ours,
            "needed": needed,
            "of": file.stat().st_size,
            "peer_ratio": theirs / needed,
            "counted": {
                "read_bytes": "/proc/self/io",
                "in_cache": "pages of the file in the page cache afterwards",
            }[how],
            "peer": "the bytes of the layers needed; the library's from_pretrained reads peer_ratio of them",
            "what": f"weights read for language layer {layers // 2} of {layers}",
            "counts": counted,
        }


def ridge(layers=10, seeds=5, n=500, width=4096, targets=4):
    """Ridge of every layer on the labels and on four shuffles of them, penalty by leave-one-out: one solve, against scikit-learn a layer and a labelling at a time."""
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import GridSearchCV

    g = torch.Generator().manual_seed(0)
    x = torch.randn(layers, n, width, generator=g) * (torch.arange(1, width + 1) ** -0.5)
    train, test = torch.arange(n * 3 // 5), torch.arange(n * 3 // 5, n)
    y = x[0] @ torch.randn(width, targets, generator=g) + torch.randn(n, targets, generator=g)
    tasks = {
        f"{s}": torch.cat([y[train[torch.randperm(len(train), generator=g)]] if s else y[train], y[test]])
        for s in range(seeds)
    }
    found, alphas = {}, {}

    def grams():
        return torch.stack([(z := a - a[train].mean(0)) @ z[train].T for a in x])

    def ours():
        found["ours"] = torch.stack(
            [v for v, _ in stats.solve_ridge(*stats.spectrum(grams(), train), tasks, train).values()], 1
        )

    for k, a in enumerate(x):  # the same penalties, as scikit-learn counts them
        alphas[k] = (
            stats.PENALTIES * (a[train].double() - a[train].double().mean(0)).square().sum() / len(train)
        ).numpy()

    def each(search):
        found["theirs"] = torch.stack(
            [
                torch.stack(
                    [
                        torch.from_numpy(
                            search(alphas[k])
                            .fit(a[train].double().numpy(), t[train].double().numpy())
                            .predict(a.double().numpy())
                        )
                        for t in tasks.values()
                    ]
                )
                for k, a in enumerate(x)
            ]
        )

    def r2(p, t):
        return 1 - (p - t)[test].square().sum(0) / (t[test] - t[test].mean(0)).square().sum(0)

    def apart():
        return max(
            (r2(found["ours"][k, s].double(), t.double()) - r2(found["theirs"][k, s], t.double()))
            .abs()
            .max()
            .item()
            for k in range(layers)
            for s, t in enumerate(tasks.values())
        )

    ours(), each(lambda a: RidgeCV(a))
    difference = apart()
    rows = {
        "cv": row(
            ours,
            lambda: each(lambda a: RidgeCV(a)),
            4,
            difference < 1e-6,
            rounds=3,
            r2_difference=difference,
            peer="scikit-learn RidgeCV",
        )
    }
    # one of layers x seeds: all would take minutes
    once = seconds(
        lambda: GridSearchCV(Ridge(), {"alpha": alphas[0]}, cv=5).fit(
            x[0, train].double().numpy(), y[train].double().numpy()
        )
    )
    mine = rows["cv"]["seconds"]
    return rows | {
        "grid": {
            "ratio": once * layers * seeds / mine,
            "aim": 100,
            "met": once * layers * seeds / mine >= 100,
            "same_numbers": difference < 1e-6,
            "seconds": mine,
            "peer_seconds": once * layers * seeds,
            "peer": f"scikit-learn GridSearchCV of Ridge, 5 folds: one fit x {layers * seeds}",
        }
    }


def gradient_probes(layers=10, n=300):
    """MLP probes of all layers and seeds trained as one, against a loop over them; the same weights at the start, the same batches."""
    import probe

    g = torch.Generator().manual_seed(0)
    x, corner = torch.randn(layers, n, probe.COMPONENTS, generator=g), torch.rand(n, 2, generator=g) * 0.5
    boxes = torch.cat([corner, corner + 0.3], 1)
    split, found = {"train": torch.arange(n * 3 // 5), "val": torch.arange(n * 3 // 5, n * 4 // 5)}, {}

    def ours(steps=probe.STEPS):
        found["ours"] = probe.train_mlp(x, boxes, split, steps=steps)[0]

    def theirs(steps=probe.STEPS):
        found["theirs"] = torch.stack(
            [
                torch.stack(
                    [
                        probe.train_mlp(a[None], boxes, split, only=s, steps=steps)[0][0, 0]
                        for s in range(probe.SEEDS)
                    ]
                )
                for a in x
            ]
        )

    ours(20), theirs(20)  # later, rounding grows along the way
    difference = (found["ours"] - found["theirs"]).abs().median().item()
    return row(
        ours,
        theirs,
        3,
        difference < 1e-3,
        rounds=3,
        median_difference_after_20_steps=difference,
        peer=f"a loop over {layers} layers x {probe.SEEDS} seeds",
    )


def lpips_targets(n=8, side=64):
    """A training step of LPIPS, forward and backward, when the target's features are kept."""
    model, _ = metrics.lpips_model()
    g = torch.Generator().manual_seed(0)
    x, y = (torch.rand(n, 3, side, side, generator=g) * 2 - 1 for _ in range(2))
    kept, found = metrics.lpips_features(model, y), {}

    def step(name, loss):
        z = x.clone().requires_grad_()
        loss(z).sum().backward()
        found[name] = z.grad

    def ours():
        step("ours", lambda z: metrics.lpips_to(model, z, kept))

    def theirs():
        step("theirs", lambda z: model(z, y))

    ours(), theirs()
    return row(
        ours,
        theirs,
        1.4,
        torch.allclose(found["ours"], found["theirs"], atol=1e-8, rtol=1e-4),
        rounds=15,
        peer="lpips, both pictures through the backbone",
    )


def alignment(layers=12, n=1024, width=1024):
    """All layers of one model with all of another, each prepared once, against the usual pairwise way: for every pair both Gram matrices, their HSICs, sorted
    neighbours; scipy's Spearman of the pairwise distances (4 of the pairs timed, the others taken to cost as much)."""
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    import align

    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(n, width, generator=g) * torch.arange(1, width + 1) ** -0.5 for _ in range(layers)]
    ys = [x + torch.randn(n, width, generator=g) * torch.arange(1, width + 1) ** -0.5 for x in xs]
    found = {}

    def hsic(k, l):  # unbiased (Song et al. 2012, equation 5)
        k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)
        return ((k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k @ l).sum() / (n - 2)) / (
            n * (n - 3)
        )

    def pair_cka(x, y):
        k, l = x @ x.T, y @ y.T
        return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()

    def pair_neighbours(x, y):
        near = [
            torch.zeros(n, n).scatter_(1, torch.cdist(z, z).fill_diagonal_(torch.inf).argsort(1)[:, :10], 1.0)
            for z in (x, y)
        ]
        return (near[0] * near[1]).sum() / (10 * n)

    def pair_spearman(x, y):
        return torch.tensor(spearmanr(pdist(x.numpy()), pdist(y.numpy())).statistic)

    def ours(measure):
        found["ours"] = align.compare(xs, ys, measure)

    def theirs(pair):
        found["theirs"] = torch.stack([torch.stack([pair(x, y) for y in ys]) for x in xs]).double()

    rows = {}
    for name, measure, pair, tolerance in (
        ("cka", "cka", pair_cka, 1e-4),
        ("neighbours", "recall10", pair_neighbours, 2e-4),
    ):
        ours(measure), theirs(pair)
        difference = (found["ours"] - found["theirs"]).abs().max().item()
        rows[name] = row(
            lambda m=measure: ours(m),
            lambda p=pair: theirs(p),
            25,
            difference < tolerance,
            rounds=3,
            difference=difference,
            peer="pairwise, torch",
        )
    ours("spearman")
    pairs, mine, difference = [], [], 0
    for k in range(4):
        pairs.append(seconds(lambda k=k: found.update(pair=pair_spearman(xs[k], ys[-k]))) * layers**2)
        difference = max(difference, abs(found["pair"].item() - found["ours"][k, -k].item()))
        mine.append(seconds(lambda: ours("spearman")))
    rows["spearman"] = judged(
        mine,
        pairs,
        30,
        difference < 1e-5,
        difference=difference,
        peer=f"scipy's pdist and spearmanr: one pair x {layers**2}",
    )
    return rows


ROWS = {
    "early_exit": early_exit,
    "questions": questions,
    "streaming": streaming,
    "bytes": bytes_read,
    "reading": reading,
    "start": start,
    "ridge": ridge,
    "gradient_probes": gradient_probes,
    "alignment": alignment,
    "lpips_targets": lpips_targets,
}


def main(names):
    """Rows that were asked for replace their namesakes in results/bench.yaml; each says of which commit it is, and with how many threads."""
    out, rows = ROOT / "results" / "bench.yaml", {}
    for name in names or ROWS:
        started = time.time()
        found = common.known(name, ROWS, "row")()
        found = {name: found} if "ratio" in found else {f"{name}_{k}": r for k, r in found.items()}
        run = common.run_info(
            argparse.Namespace(seed=0, row=name),
            started,
            script="tests/bench.py",
            threads=torch.get_num_threads(),
        )
        for each, r in found.items():
            rows[each] = r | {"run": run}
            print(each, common.plain(r), flush=True)
    rows = (common.load_yaml(out, "bench")["rows"] if names and out.is_file() else {}) | rows
    common.save_yaml(
        out, {"stage": "bench", **{f"{k}_ratio": r["ratio"] for k, r in rows.items()}, "rows": rows}
    )


if __name__ == "__main__":
    main(sys.argv[1:])
