"""Shared by the scripts: errors, files, YAML, run information, device and dtype, items, splits, features.

Importing this module does no work; heavy libraries are imported inside the functions that need them.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import yaml

HERE = Path(__file__).resolve().parent
ITEMS = "foresight.items.v1"
FEATURES = "foresight.features.v1"
POOLED = "foresight.pooled.v1"
RESULT = "foresight.result.v1"
ANSWERS, TRACKS = "foresight.answers.v1", "foresight.tracks.v1"
LIBRARIES = "torchvision transformers diffusers peft accelerate bitsandbytes lpips numpy scipy scikit-image"
LIBRARIES = [*LIBRARIES.split(), "pillow", "av"]
DRIVER = "/proc/driver/nvidia/version"
SHARD = 64  # items in a shard: small enough to lose little when killed, large enough to read in one go


# ---------------------------------------------------------------- errors of the user


def fail(sentence):
    """Print one sentence that names the file, the value and the remedy, then exit with code 2."""
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def check_choice(name, table, what):
    """The entry `name` of a registry (a dict); exit 2 with the nearest name if it is unknown."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    fail(f"unknown {what} {name!r}.{hint} Known: {', '.join(table)}.")


ENDS = [
    (KeyboardInterrupt, 130, "interrupted; the same command continues where it stopped"),
    (
        torch.OutOfMemoryError,
        2,
        "error: out of GPU memory ({}); give a smaller --batch or --size, or --stream",
    ),
    (MemoryError, 2, "error: out of memory; give fewer items or a smaller --batch"),
]


def end_in_words(kind, error, traceback):
    """The sys.excepthook of the scripts: an interruption or exhausted memory costs one sentence."""
    for known, code, sentence in ENDS:
        if issubclass(kind, known):
            sys.stdout.flush()
            print(sentence.format(str(error).partition(". ")[0]), file=sys.stderr, flush=True)
            return os._exit(code)
    return sys.__excepthook__(kind, error, traceback)


def check_writable(path):
    """Exit 2 if `path` cannot be written; called before the work starts."""
    parent = Path(path).absolute().parent
    if Path(path).is_dir():
        fail(f"{path} is a folder; give the name of a file")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = parent / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        fail(f"cannot write {path}: {e.strerror}; choose another --out or free the folder {parent}")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the docstring unchanged and appends its default to every flag that has one."""

    def _get_help_string(self, action):
        text = action.help or ""
        omitted = str(action.default) in ("None", "False", "", argparse.SUPPRESS) or "default" in text
        return text if omitted else f"{text} (default: %(default)s)".strip()


def parser(doc):
    """An argparse parser with the script's docstring as description, and --seed."""
    sys.excepthook = end_in_words
    p = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return p


def subcommands(doc, jobs):
    """(parser, {job: parser}) of a script with several jobs {name: one line}; `args.mode` is the job."""
    sys.excepthook = end_in_words
    p = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)
    title = "jobs (JOB --help lists the flags of one)"
    choice = p.add_subparsers(dest="mode", required=True, metavar="JOB", title=title)
    parsers = {}
    for name, line in jobs.items():
        parsers[name] = choice.add_parser(name, help=line, description=line, formatter_class=HelpFormatter)
        parsers[name].add_argument("--seed", type=int, default=0, help="seed of all random numbers")
    return p, parsers


# ---------------------------------------------------------------- files


def _atomically(path, write):
    """Write under a temporary name, flush, rename: a reader sees the old file, the new one, or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_pt(path, schema, ids, meta, **content):
    """Write a `.pt` of tensors and plain types. Clone a slice first: torch writes its whole storage."""
    content = {"schema": schema, "ids": list(ids), "meta": plain(meta), **content}
    _atomically(path, lambda f: torch.save(content, f))


def load_pt(path, schema):
    """Read a `.pt` lazily (mmap); exit 2 unless it has `schema`."""
    path = Path(path)
    if not path.is_file():
        fail(f"{path} does not exist; run the stage that writes it")
    try:
        content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises RuntimeError, UnpicklingError, EOFError ... for a broken file
        fail(f"{path} cannot be read ({type(e).__name__}); delete it and run its stage again")
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        fail(f"{path} has schema {found!r} where {schema!r} is needed; write it again with this version")
    return content


def digest(content):
    """The first 16 hexadecimal digits of the SHA-256 of bytes."""
    return hashlib.sha256(content).hexdigest()[:16]


def plain(x):
    """Convert to plain types: yaml.safe_dump rejects numpy scalars, tensors and Paths."""
    if isinstance(x, dict):
        return {str(k): plain(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(v) for v in x]
    if isinstance(x, (np.generic, np.ndarray, torch.Tensor)):
        return plain(x.tolist())
    if isinstance(x, float):
        return float(f"{x:.6g}")
    if x is None or type(x) in (bool, int, str):
        return x
    return str(x)


def save_yaml(path, result):
    """Write YAML for grep: scalars first, one a line, then tables. It is loaded back as a check."""
    result = plain(result)
    text, how = "", {"sort_keys": False, "width": 160, "allow_unicode": True}
    for key, value in result.items():  # every headline on its own line, each row of a table on one line
        flow = None if isinstance(value, (dict, list)) else False
        text += yaml.safe_dump({key: value}, default_flow_style=flow, **how)
    # repr: nan is not equal to itself
    assert repr(yaml.safe_load(text)) == repr(result), f"{path} does not survive YAML"
    _atomically(path, lambda f: f.write(text.encode()))


def save_text(path, text):
    """Write text atomically."""
    save_bytes(path, text.encode())


def save_bytes(path, content):
    """Write bytes atomically."""
    _atomically(path, lambda f: f.write(content))


def load_yaml(path, stage=None, schema=None):
    """Read a YAML result; exit 2 if it is missing, broken, or of another stage or schema."""
    path = Path(path)
    if not path.is_file():
        fail(f"{path} does not exist; run the stage that writes it" + (f" ({stage}.py)" if stage else ""))
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        fail(f"{path} is not a YAML mapping; delete it and run the stage that writes it again")
    if stage and content.get("stage") != stage:
        fail(f"{path} was written by stage {content.get('stage')!r} where {stage!r} is needed")
    if schema and content.get("schema") != schema:
        fail(f"{path} has schema {content.get('schema')!r}, not {schema!r}; run {stage}.py again")
    return content


def pyplot():
    """matplotlib.pyplot with a backend that draws to files only."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def run_info(args, started, script="", **more):
    """Provenance of a result: arguments, seed, commit, hash of `script`, versions, seconds, memory."""
    with contextlib.suppress(OSError):  # a stage pasted into a notebook has no file
        more["script_sha256"] = digest((HERE / script).read_bytes())
    commit = subprocess.run(
        ["git", "-C", HERE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # KiB on Linux
    if torch.cuda.is_available():
        driver = re.search(r"\d{3,}[.\d]+", Path(DRIVER).read_text()) if Path(DRIVER).exists() else None
        versions |= {"cuda": torch.version.cuda, "driver": driver and driver[0]}
        more |= {"gpu": torch.cuda.get_device_name(), "peak_gpu_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {
        "arguments": vars(args),
        "seed": args.seed,
        "git_commit": commit or None,
        "versions": versions,
        "seconds": time.time() - started,
        "peak_memory_gb": peak,
        **more,
    }


def print_summary(result, keys=None):
    """Print the last lines of every stage, `key value`, equal to the scalars of the YAML."""
    for key, value in result.items():
        if not isinstance(value, (dict, list)) and (keys is None or key in keys):
            print(key, plain(value))


# ---------------------------------------------------------------- items: data/<name>/


def write_items(folder, items, meta):
    """Write items as shards, ids.jsonl and index.yaml.

    An item has `id`, `source`, `frames` uint8 [T,H,W,3] or `encoded` uint8 [bytes], and the ground truth.
    """
    folder = Path(folder)
    items = iter(items)
    ids = []
    sources = []
    count = 0
    (folder / "index.yaml").unlink(missing_ok=True)
    while shard := list(itertools.islice(items, SHARD)):
        save_pt(folder / f"{count:05d}.pt", ITEMS, [i["id"] for i in shard], meta, items=shard)
        ids += [i["id"] for i in shard]
        sources += [i["source"] for i in shard]
        count += 1
    for stale in sorted(folder.glob("*.pt"))[count:]:
        stale.unlink()
    lines = [json.dumps(pair) + "\n" for pair in zip(ids, sources, strict=True)]
    save_text(folder / "ids.jsonl", "".join(lines))
    splits = Counter(map(split_of, sources))
    index = {"stage": "data", "schema": ITEMS, "items": len(ids), "sources": len(set(sources))}
    index |= {"shards": count} | {part: splits[part] for part in ("train", "val", "test")}
    save_yaml(folder / "index.yaml", index | meta)


class Items:
    """The items of `data/<name>/` in order, read lazily: len(), [i], .ids, .sources, .index.

    Frames are memory-mapped and few shards are open, so memory does not grow with the set. Ids and sources
    are in ids.jsonl: PyYAML needs 1.5 GB for 100,000 ids. Exit 2 if the folder is incomplete.
    """

    def __init__(self, folder, open_shards=4):
        self.folder, self.index = Path(folder), load_yaml(Path(folder) / "index.yaml", "data", ITEMS)
        if not self.index["items"]:
            fail(f"{folder} holds no items; check the source of the data")
        self.shard, self.ids = functools.lru_cache(open_shards)(self.read), self.index.get("ids")
        if self.ids:
            self.sources = [item["source"] for item in self]
        elif not (self.folder / "ids.jsonl").is_file():
            fail(f"{folder}/ids.jsonl does not exist; run data.py again")
        else:
            with open(self.folder / "ids.jsonl") as f:
                self.ids, self.sources = map(list, zip(*map(json.loads, f), strict=True))
        self.index["ids"] = self.ids

    def read(self, number):
        found = load_pt(self.folder / f"{number:05d}.pt", ITEMS)
        if found["ids"] != self.ids[number * SHARD : (number + 1) * SHARD]:
            fail(f"the shards of {self.folder} do not hold the ids that it lists; run data.py again")
        return found["items"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        number, k = divmod(range(len(self))[i], SHARD)
        return self.shard(number)[k]


def load_items(folder):
    """(all items of `data/<name>/` in order, frames memory-mapped; its index)."""
    items = Items(folder)
    return list(items), items.index


def split_of(source):
    """train (60%), val (20%) or test (20%), by a hash of the source alone, so all stages agree.

    A published split is respected: sources that start with `train:`, `val:` or `test:`.
    """
    prefix, colon, _ = str(source).partition(":")
    if colon and prefix in ("train", "val", "test"):
        return prefix
    bucket = int(hashlib.sha256(str(source).encode()).hexdigest()[:8], 16) % 100
    if bucket < 60:
        return "train"
    return "val" if bucket < 80 else "test"


def clips_of(items, *splits):
    """The items that are clips and belong to one of the splits."""
    return [i for i in items if split_of(i["source"]) in splits and len(i.get("frames", ())) > 1]


# ---------------------------------------------------------------- devices and memory


def check_driver():
    """Exit 2 where there is a GPU that this torch cannot use: the CPU would take its place silently."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not torch.version.cuda
    if hidden or not Path(DRIVER).exists():
        return
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as e:
        reason = str(e).splitlines()[0].rstrip(".")
        fail(f"torch {torch.__version__} cannot use the GPU: {reason}; to do without, CUDA_VISIBLE_DEVICES=")


DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "mixed": torch.float16}


def choose_device(dtype=None):
    """(device, dtype, why): bf16 on capability >= 8.0, fp16 on older cards, fp32 on a CPU.

    On a CPU fp16 products are ~250 times slower. dtype: a name of DTYPES that replaces the choice.
    """
    if not torch.cuda.is_available():
        check_driver()
        return torch.device("cpu"), DTYPES.get(dtype, torch.float32), f"no GPU: {dtype or 'fp32'} on the CPU"
    # each rank of torchrun has one GPU
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    major, minor = torch.cuda.get_device_capability()
    name = f"{torch.cuda.get_device_name()}, capability {major}.{minor}"
    if dtype:
        return device, DTYPES[dtype], f"{name}: {dtype} by --dtype"
    if major >= 8:  # is_bf16_supported() would count emulation
        return device, torch.bfloat16, f"{name}: bf16"
    return device, torch.float16, f"{name} has no bf16 units: fp16"


def memory_size(text):
    """'15GB' -> bytes, in units of 10^9."""
    number, unit = text[:-2], {"GB": 1e9, "MB": 1e6}.get(text[-2:].upper())
    try:
        if unit and float(number) > 0:
            return float(number) * unit
    except ValueError:
        pass
    fail(f"--max-memory {text!r} is not a size; give one as 15GB or 800MB")


def memory_left(device, most):
    """Bytes left for weights and activations: free memory, at most `most` less what the process holds."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        if most:  # of torch's allocator; the driver's context is not counted
            torch.cuda.set_per_process_memory_fraction(min(1.0, most / total), device)
        return min(free, most - torch.cuda.memory_reserved(device)) if most else free
    import psutil

    free = psutil.virtual_memory().available
    return min(free, most - psutil.Process().memory_info().rss) if most else free


def bf16_units():
    """Whether this CPU multiplies in bf16 (AVX512-BF16, AMX); emulation is slower than fp32."""
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    return any(getattr(torch.cpu, name, bool)() for name in names)


# ---------------------------------------------------------------- features on disk


class Features:
    """The tokens of a features folder, in the order of `index["ids"]`, read from mapped files.

    read(point) -> fp32 [n, t, h, w, D]; read(point, rows) the items `rows` alone; read(point, rows, tokens)
    a slice of the flattened t*h*w tokens, [n, K, D]. Exit 2 for an unknown point or non-finite values. Files
    are mapped only while they are read: mapped pages count as memory.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.index = load_yaml(self.folder / "index.yaml", "extract", FEATURES)

    def open(self, point):
        """Mapped tensors of a point, one a shard."""
        row = check_choice(point, self.index["points"], f"point in {self.folder}")
        if "stored" in row:
            fail(f"{self.folder} holds {point} pooled over space alone; extract with --grids {point}")
        parts = [load_pt(self.folder / point / f"{i:05d}.pt", FEATURES) for i in range(self.index["shards"])]
        if [i for part in parts for i in part["ids"]] != self.index["ids"]:
            fail(f"the shards of {self.folder}/{point} hold other ids than index.yaml; extract again")
        return [part["features"] for part in parts]

    def __call__(self, point, rows=None, tokens=None):
        shards = self.open(point)
        starts = np.cumsum([0, *map(len, shards)])
        rows = torch.arange(int(starts[-1])) if rows is None else torch.as_tensor(rows)
        first = shards[0] if tokens is None else shards[0].flatten(1, 3)[:, tokens]
        out = torch.empty(len(rows), *first.shape[1:])
        for shard, start, end in zip(shards, starts, starts[1:], strict=False):
            here = ((rows >= start) & (rows < end)).nonzero().flatten()
            some = shard if tokens is None else shard.flatten(1, 3)[:, tokens]
            out[here] = some[rows[here] - start].float()  # on a CPU fp16 products are ~250 times slower
        # the sum needs no memory; counting needs eight bytes a value
        if not out.sum().isfinite() and (bad := int((~out.isfinite()).sum())):
            fail(f"{self.folder}/{point} holds {bad} non-finite values; extract with --dtype fp32")
        return out

    def token_slices(self, point, rows, most=2**27):
        """Slices [n, k, D] of the tokens of a point, each of at most `most` bytes."""
        *grid, width = self.index["points"][point]["shape"]
        step = max(most // (4 * width * len(rows)), 1)
        for first in range(0, math.prod(grid), step):
            yield self(point, rows, slice(first, first + step))


def load_features(folder):
    """(index, `Features`) of a features folder."""
    read = Features(folder)
    return read.index, read


def with_grid(index):
    """The points of a features index whose token grid is stored.

    The others hold tokens without a place, [n, t, 1, K, D], or are pooled over space (`stored: pooled`).
    """
    return [p for p, row in index["points"].items() if row.get("grid", True) and "stored" not in row]


def join(items, index, folder):
    """The items in the order of a features index; exit 2 naming the first missing id."""
    by_id = {i["id"]: i for i in items}
    if missing := [i for i in index["ids"] if i not in by_id]:
        where = index["data_path"]
        fail(f"{folder} has {len(missing)} items that {where} lacks, {missing[0]!r} first; give its --data")
    return [by_id[i] for i in index["ids"]]


def twins(items):
    """Groups of items (lists of indices) with byte-identical images, except images of a single colour.

    The middle of each image is compared first, so that few images are read completely.
    """

    def groups(numbers, key):
        found = {}
        for k in numbers:
            found.setdefault(key(k), []).append(k)
        return [g for g in found.values() if len(g) > 1]

    def content(k):
        return items[k]["frames" if "frames" in items[k] else "encoded"].flatten()

    def middle(k):
        x = content(k)
        return len(x), x[len(x) // 2 :][:4096].numpy().tobytes()

    suspects = groups([k for k, i in enumerate(items) if "frames" in i or "encoded" in i], middle)
    same = [g for s in suspects for g in groups(s, lambda k: hashlib.sha256(content(k).numpy()).digest())]
    return [g for g in same if content(g[0]).min() != content(g[0]).max()]


def split_indices(items, folder, least=4):
    """{train, val, test: indices}, by source.

    Exit 2 for a part below `least` items, or a split leak: one id or one image in two parts.
    """
    names = [i["id"] for i in items if "id" in i]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        fail(f"split leak: {folder} holds {twice!r} more than once; give every item a unique id")
    for group in twins(items):
        splits = {split_of(items[k]["source"]): k for k in group}
        if len(splits) > 1:
            a, b = (f"{items[k]['id']!r} ({split})" for split, k in list(splits.items())[:2])
            fail(f"split leak: {a}, {b} of {folder} are one image under two sources; give the same source")
    parts = {}
    for name in ("train", "val", "test"):
        part = [k for k, item in enumerate(items) if split_of(item["source"]) == name]
        if len(part) < least:
            fail(f"{folder}: {name} has {len(part)} of {len(items)} items and needs {least}; use more items")
        parts[name] = torch.tensor(part, dtype=torch.long)
    return parts


def same_items(items, data):
    """A digest that identifies the items of a folder, without reading their images."""
    more = [str(data[k]) for k in ("content", "cut_from", "first", "frames", "wait") if k in data]
    return digest("\n".join([*data["ids"], str(items[0]["width"]), str(data.get("seed")), *more]).encode())


def caption(item):
    """The prompt of a generated clip: object and direction, or else the item's text."""
    if item.get("names") and "direction" in item:
        return f"the {item['names'][-1]} moves {item['direction']}"
    return item.get("text")


def positive(args, *flags):
    """Exit 2 for a given count below 1."""
    for flag in flags:
        if getattr(args, flag, None) is not None and getattr(args, flag) < 1:
            fail(f"--{flag} {getattr(args, flag)} is not positive; give 1 or more")


def peak_memory(reset=False):
    """Peak bytes of the GPU or the process since the last reset; None where unknown."""
    if torch.cuda.is_available():
        return torch.cuda.reset_peak_memory_stats() if reset else torch.cuda.max_memory_allocated()
    try:
        if reset:
            return Path("/proc/self/clear_refs").write_text("5") and None
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return None


# colour-blind safe palette (Okabe and Ito, 2008)
OKABE_ITO = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
