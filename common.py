"""What the scripts share: errors, atomic files, YAML, run information, device and dtype, items and splits, features on disk.

Nothing here starts work on import; heavy libraries are imported inside the functions that need them.
"""

import argparse
import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import re
import resource
import shutil
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
LIBRARIES = (
    "torchvision",
    "transformers",
    "diffusers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "lpips",
    "numpy",
    "scipy",
    "scikit-image",
    "pillow",
    "av",
)
DRIVER = "/proc/driver/nvidia/version"
SHARD = 64  # items in a shard: small enough to lose little when killed, large enough to read in one go


# ---------------------------------------------------------------- the user's mistakes


def refuse(sentence):
    """A user's mistake: one sentence naming the file, the value and the remedy, then exit code 2."""
    sys.stdout.flush()
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def known(name, table, what):
    """The entry `name` of a registry (a dict), or a refusal that lists the known names and the nearest one."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    refuse(f"unknown {what} {name!r}.{hint} Known: {', '.join(table)}.")


def check_writable(path):
    """Refuse before the work starts, not after it, when `path` cannot be written."""
    parent = Path(path).absolute().parent
    if Path(path).is_dir():
        refuse(f"{path} is a folder; give the name of a file")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        probe = parent / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        refuse(f"cannot write {path}: {e.strerror}; choose another --out or free the folder {parent}")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The docstring as it is; behind every flag that has a default, what it is."""

    def _get_help_string(self, action):
        text = action.help or ""
        unsaid = str(action.default) in ("None", "False", "", argparse.SUPPRESS) or "default" in text
        return text if unsaid else f"{text} (default: %(default)s)".strip()


def parser(doc):
    """argparse with the script's docstring as its manual, and --seed."""
    p = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="of everything random")
    return p


def subcommands(doc, jobs):
    """(parser, {job: its own parser}) of a script with several jobs {name: one line}; `args.mode` names the one asked for. Each has --seed."""
    p = argparse.ArgumentParser(description=doc, formatter_class=HelpFormatter)
    choice = p.add_subparsers(
        dest="mode", required=True, metavar="JOB", title="jobs (JOB --help lists the flags of one)"
    )
    parsers = {}
    for name, line in jobs.items():
        parsers[name] = choice.add_parser(name, help=line, description=line, formatter_class=HelpFormatter)
        parsers[name].add_argument("--seed", type=int, default=0, help="of everything random")
    return p, parsers


# ---------------------------------------------------------------- files


def _atomically(path, write):
    """Write under a temporary name, flush to the disk, rename: a reader sees the old file, the new one, or none."""
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
    """A `.pt` of tensors and plain Python types; whoever passes a slice must clone it, or its whole storage is written."""
    content = {"schema": schema, "ids": list(ids), "meta": plain(meta), **content}
    _atomically(path, lambda f: torch.save(content, f))


def load_pt(path, schema):
    """Read a `.pt` lazily (mmap) and refuse it unless it holds `schema`."""
    path = Path(path)
    if not path.is_file():
        refuse(f"{path} does not exist; run the stage that writes it")
    try:
        content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises RuntimeError, UnpicklingError, EOFError ... for a broken file
        refuse(f"{path} cannot be read ({type(e).__name__}); delete it and run its stage again")
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        refuse(f"{path} has schema {found!r} where {schema!r} is wanted; write it again with this version")
    return content


def digest(content):
    """A name for bytes: the first 16 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def plain(x):
    """Nested Python types only: yaml.safe_dump refuses numpy scalars, tensors, Paths and torch's version string."""
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
    """One small file made for grep: scalars first, one a line, then tables. Checked by loading it back."""
    result = plain(result)
    text = "".join(
        yaml.safe_dump(
            {k: v},
            sort_keys=False,
            default_flow_style=None if isinstance(v, (dict, list)) else False,
            width=160,
            allow_unicode=True,
        )
        # key by key: every headline on a line of its own, rows of a table on one line each
        for k, v in result.items()
    )
    # repr: nan is not equal to itself
    assert repr(yaml.safe_load(text)) == repr(result), f"{path} does not survive YAML"
    _atomically(path, lambda f: f.write(text.encode()))


def save_text(path, text):
    """A page for people."""
    save_bytes(path, text.encode())


def save_bytes(path, content):
    """A file that was made in memory: a page, a film."""
    _atomically(path, lambda f: f.write(content))


def load_yaml(path, stage=None, schema=None):
    """Read one of our YAML files; refuse a missing or broken one, or one of another stage or schema."""
    path = Path(path)
    if not path.is_file():
        refuse(f"{path} does not exist; run the stage that writes it" + (f" ({stage}.py)" if stage else ""))
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        content = None
    if not isinstance(content, dict):
        refuse(f"{path} is not a YAML mapping; delete it and run the stage that writes it again")
    if stage and content.get("stage") != stage:
        refuse(f"{path} was written by stage {content.get('stage')!r} where {stage!r} is wanted")
    if schema and content.get("schema") != schema:
        refuse(f"{path} has schema {content.get('schema')!r}, not {schema!r}; run {stage}.py again")
    return content


def pyplot():
    """matplotlib.pyplot, which draws into files alone."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def run_info(args, started, script="", **more):
    """What produced a result: arguments, seed, commit, hash of `script`, versions (of libraries, CUDA and its driver), seconds, peak memory, and what else the caller knows."""
    with contextlib.suppress(OSError):  # a stage pasted into a notebook has no file
        more["script_sha256"] = digest((HERE / script).read_bytes())
    commit = subprocess.run(
        ["git", "-C", HERE, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for library in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[library] = importlib.metadata.version(library)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
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


def say(result, keys=None):
    """The last lines of every stage on stdout: `key value`, the same as the YAML's headline."""
    for key, value in result.items():
        if not isinstance(value, (dict, list)) and (keys is None or key in keys):
            print(key, plain(value))


# ---------------------------------------------------------------- items: data/<name>/


def write_items(folder, items, meta):
    """Write items (dicts with `id`, `source`, `frames` uint8 [T,H,W,3] or `encoded` uint8 [bytes], truth) as shards, ids.jsonl ([id, source] a line) and, last, index.yaml."""
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
    save_text(
        folder / "ids.jsonl", "".join(f"{json.dumps(pair)}\n" for pair in zip(ids, sources, strict=True))
    )
    splits = Counter(map(split_of, sources))
    save_yaml(
        folder / "index.yaml",
        {
            "stage": "data",
            "schema": ITEMS,
            "items": len(ids),
            "sources": len(set(sources)),
            "shards": count,
            **{s: splits[s] for s in ("train", "val", "test")},
            **meta,
        },
    )


class Items:
    """The items of `data/<name>/` in order, read when asked for: len(), [i], and .ids, .sources, .index. Frames are memory-mapped and few shards open, so that memory does not grow with the set.

    A folder that is not complete is refused. Ids and sources stand in ids.jsonl, since PyYAML would need 1.5 GB for the ids of 100,000 items; older folders have the ids in index.yaml, and
    the sources in the items alone.
    """

    def __init__(self, folder, open_shards=4):
        self.folder, self.index = Path(folder), load_yaml(Path(folder) / "index.yaml", "data", ITEMS)
        if not self.index["items"]:
            refuse(f"{folder} holds no items; check the source it was made from")
        self.shard, self.ids = functools.lru_cache(open_shards)(self.read), self.index.get("ids")
        if self.ids:
            self.sources = [item["source"] for item in self]
        elif not (self.folder / "ids.jsonl").is_file():
            refuse(f"{folder}/ids.jsonl does not exist; run data.py again")
        else:
            with open(self.folder / "ids.jsonl") as f:
                self.ids, self.sources = map(list, zip(*map(json.loads, f), strict=True))
        self.index["ids"] = self.ids

    def read(self, number):
        found = load_pt(self.folder / f"{number:05d}.pt", ITEMS)
        if found["ids"] != self.ids[number * SHARD : (number + 1) * SHARD]:
            refuse(f"the shards of {self.folder} do not hold the ids that it lists; run data.py again")
        return found["items"]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        number, k = divmod(range(len(self))[i], SHARD)
        return self.shard(number)[k]


def load_items(folder):
    """All items of `data/<name>/` in order, frames memory-mapped, and its index; a refusal if the folder is not complete."""
    items = Items(folder)
    return list(items), items.index


def split_of(source):
    """train (60%), val (20%) or test (20%): a function of the source alone, so every stage agrees, today and next year.

    A source that says its own split is obeyed: `train:...`, `val:...` or `test:...`, for data with a published split. Any other is hashed.
    """
    said, colon, _ = str(source).partition(":")
    if colon and said in ("train", "val", "test"):
        return said
    bucket = int(hashlib.sha256(str(source).encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 60 else "val" if bucket < 80 else "test"


def clips_of(items, *splits):
    """The items that are clips and belong to one of the splits."""
    return [i for i in items if split_of(i["source"]) in splits and len(i.get("frames", ())) > 1]


# ---------------------------------------------------------------- devices and memory


def choose_device():
    """(device, dtype, why): bf16 on capability >= 8.0, fp16 on older cards, fp32 on a CPU (fp16 is ~250 times slower there)."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), torch.float32, "no GPU: fp32 on the CPU"
    # every rank of torchrun has a GPU of its own
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    if major >= 8:  # is_bf16_supported() would count emulation
        return device, torch.bfloat16, f"{name}, capability {major}.{minor}: bf16"
    return device, torch.float16, f"{name}, capability {major}.{minor} has no bf16 units: fp16"


def memory_size(text):
    """'15GB' -> bytes, in units of 10^9."""
    number, unit = text[:-2], {"GB": 1e9, "MB": 1e6}.get(text[-2:].upper())
    try:
        if unit and float(number) > 0:
            return float(number) * unit
    except ValueError:
        pass
    refuse(f"--max-memory {text!r} is not a size; give one as 15GB or 800MB")


def memory_left(device, most):
    """Bytes that weights and activations may still take: what is free, but where `most` is given no more than that less what this process already holds."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        # of torch's own; the driver's context comes on top
        torch.cuda.set_per_process_memory_fraction(min(1.0, most / total) if most else 1.0, device)
        return min(free, most - torch.cuda.memory_reserved(device)) if most else free
    import psutil

    free = psutil.virtual_memory().available
    return min(free, most - psutil.Process().memory_info().rss) if most else free


def bf16_units():
    """Can this CPU multiply in bf16 (AVX512-BF16, AMX)? If not, it is emulated, and slower than fp32."""
    names = "_is_avx512_bf16_supported", "_is_amx_tile_supported"
    return any(getattr(torch.cpu, name, bool)() for name in names)


# ---------------------------------------------------------------- features on disk


def load_features(folder):
    """(index, read): the index of a features folder, and read(point) -> fp32 [n, t, h, w, D] in the index's order of ids."""
    folder = Path(folder)
    index = load_yaml(folder / "index.yaml", "extract", FEATURES)

    def read(point):
        known(point, index["points"], f"point in {folder}")
        parts = [load_pt(folder / point / f"{i:05d}.pt", FEATURES) for i in range(index["shards"])]
        if [i for p in parts for i in p["ids"]] != index["ids"]:
            refuse(f"the shards of {folder}/{point} hold other ids than index.yaml; extract again")
        x = torch.cat([p["features"] for p in parts]).float()  # on a CPU fp16 products are ~250 times slower
        if bad := int((~x.isfinite()).sum()):
            refuse(
                f"{folder}/{point} holds {bad} non-finite values; extract in bf16 or fp32, or leave it out"
            )
        return x

    return index, read


def with_grid(index):
    """The points of a features index whose tokens have a place in the picture; the others store [n, t, 1, K, D]."""
    return [p for p, row in index["points"].items() if row.get("grid", True)]


def join(items, index, folder):
    """The items in the order of a features index; a refusal naming the first id that one side lacks."""
    by_id = {i["id"]: i for i in items}
    if missing := [i for i in index["ids"] if i not in by_id]:
        where = index["data_path"]
        refuse(f"{folder} has {len(missing)} items that {where} lacks, {missing[0]!r} first; give its --data")
    return [by_id[i] for i in index["ids"]]


def twins(items):
    """Groups of items (lists of their numbers) whose pictures are the same to the byte.

    The middle of each picture is compared first, so that few are read whole. Pictures of a single colour are left out: nothing in them can be recognised.
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
    """{train, val, test: indices}, by source. Refused are a part that is too small to say anything and a split leak: one item, or one picture, in two parts."""
    names = [i["id"] for i in items if "id" in i]
    if len(set(names)) < len(names):
        twice = next(n for n in names if names.count(n) > 1)
        refuse(f"split leak: {folder} holds {twice!r} more than once; give every item its own id")
    for group in twins(items):
        splits = {split_of(items[k]["source"]): k for k in group}
        if len(splits) > 1:
            a, b = (f"{items[k]['id']!r} ({split})" for split, k in list(splits.items())[:2])
            refuse(
                f"split leak: {a}, {b} of {folder} are one picture under two sources; give the same source"
            )
    parts = {
        s: torch.tensor([k for k, i in enumerate(items) if split_of(i["source"]) == s], dtype=torch.long)
        for s in ("train", "val", "test")
    }
    for name, part in parts.items():
        if len(part) < least:
            refuse(
                f"{folder}: {name} has {len(part)} of {len(items)} items, of {least} needed; use more items"
            )
    return parts


# ---------------------------------------------------------------- items: data/<name>/


def write_whole(out, items, meta, verdict):
    """Write items one shard at a time, beside what `out` holds; that goes only when all is well. verdict(index) refuses, or gives what else index.yaml is to say."""
    part = out / ".part"
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_items(part, items, meta)
        index = load_yaml(part / "index.yaml")
        index |= verdict(index)
        for stale in (out / "index.yaml", *out.glob("*.pt")):
            stale.unlink(missing_ok=True)
        for file in (*part.glob("*.pt"), part / "ids.jsonl"):
            os.replace(file, out / file.name)
        save_yaml(out / "index.yaml", index)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def verdict_on(notes, n, skip_bad):
    """What write_whole asks about n clips, with `notes` on them, (id, kind, reason), once they are decoded."""

    def verdict(index):
        for name, _, reason in notes:
            print(f"{name}: {reason}", file=sys.stderr)
        kinds = Counter(kind for _, kind, _ in notes)
        rotated, skipped = kinds.pop("rotated", 0), kinds.total()
        if skipped and not skip_bad:
            refuse(f"{skipped} of {n} clips have problems, listed above; mend them, or --skip-bad")
        if not index["items"]:
            refuse(f"none of {n} clips is usable; check --root, --frames and --fps")
        return {"skipped": skipped, "skipped_kinds": dict(sorted(kinds.items())), "rotated": rotated}

    return verdict


def same_items(items, data):
    """What identifies the items of a folder, without reading their pictures."""
    more = [str(data[k]) for k in ("content", "cut_from", "first", "frames", "wait") if k in data]
    return digest("\n".join([*data["ids"], str(items[0]["width"]), str(data.get("seed")), *more]).encode())


def positive(args, *flags):
    """Refuse a count that is given and below 1."""
    for flag in flags:
        if getattr(args, flag, None) is not None and getattr(args, flag) < 1:
            refuse(f"--{flag} {getattr(args, flag)} is not positive; give 1 or more")


def peak_memory(reset=False):
    """Bytes that the process, or the GPU, has held at most since the last reset; None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.reset_peak_memory_stats() if reset else torch.cuda.max_memory_allocated()
    try:
        if reset:
            return Path("/proc/self/clear_refs").write_text("5") and None
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return None


# colours that every kind of eye tells apart (Okabe and Ito, 2008)
OKABE_ITO = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
