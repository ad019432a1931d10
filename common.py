"""What two or more stages share: files on disk, models by name, statistics, image metrics.

Copy this file beside any one stage and that stage runs. Nothing here starts work on import; heavy libraries
are imported inside the functions that need them, so a stage that only reads tensors starts as fast as torch.
"""

import argparse
import atexit
import contextlib
import difflib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import pickle
import platform
import re
import resource
import subprocess
import sys
import time
import types
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


def parser(doc):
    """argparse with the stage's docstring as its manual, and --seed."""
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--seed", type=int, default=0, help="of everything random (default: %(default)s)")
    return p


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
    _atomically(
        path, lambda f: torch.save({"schema": schema, "ids": list(ids), "meta": plain(meta), **content}, f)
    )


def load_pt(path, schema):
    """Read a `.pt` lazily (mmap) and refuse it unless it holds `schema`."""
    path = Path(path)
    if not path.is_file():
        refuse(f"{path} does not exist; run the stage that writes it")
    try:
        content = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as e:  # torch raises RuntimeError, UnpicklingError, EOFError ... for a broken file
        refuse(
            f"{path} cannot be read ({type(e).__name__}); delete it and run the stage that writes it again"
        )
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


def load_yaml(path, stage=None):
    """Read one of our YAML files; refuse a missing or broken one, or one that another stage wrote."""
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
        self.folder, self.index = Path(folder), load_yaml(Path(folder) / "index.yaml", "data")
        if self.index.get("schema") != ITEMS:
            refuse(
                f"{folder}/index.yaml has schema {self.index.get('schema')!r} where {ITEMS!r} is wanted; run data.py again"
            )
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


def fitted(width, height, token, most):
    """(width, height) of the frame that Qwen's processors make of one: multiples of `token` px, at most `most` pixels, nearly the same shape."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, token, token**2, max(most, token**2))[::-1]


def frames_of(item, size=None):
    """Frames of an item, uint8 [T,H,W,3]: those whose numbers are in `shown` where it has that, squashed to `size` x `size` (antialiased bicubic) when given, or `fitted` where size is
    its (token, most).

    Squashing keeps one token grid for all items; boxes and masks scale with it, and IoU does not change under a scaling of the axes.
    """
    if "album" in item:
        return torch.cat([frames_of({"encoded": picture}, size) for picture in item["album"]])
    if "frames" in item:
        frames = item["frames"][item["shown"]] if "shown" in item else item["frames"]
    else:
        import io

        from PIL import Image

        frames = torch.from_numpy(
            np.array(Image.open(io.BytesIO(item["encoded"].numpy().tobytes())).convert("RGB"))
        )[None]
    height, width = frames.shape[1:3]
    to = (
        (size, size)
        if isinstance(size, int)
        else fitted(width, height, *size)[::-1]
        if size
        else (height, width)
    )
    if (height, width) != to:
        x = frames.permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, to, mode="bicubic", antialias=True, align_corners=False)
        frames = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return frames


def upright(image):
    """A Pillow image in RGB: turned as its EXIF says, white where it is transparent, 16 bits a channel cut to 8."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def read_picture(path):
    """The (first) picture of a file, made `upright`: uint8 [1,H,W,3]. A file that cannot be read is refused."""
    from PIL import Image

    if not Path(path).is_file():
        refuse(f"{path} does not exist; give the file of a picture")
    try:
        with Image.open(path) as file:
            image = upright(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        refuse(
            f"{path} cannot be read as a picture ({' '.join(str(e).split()) or type(e).__name__}); give a JPEG or PNG file"
        )
    return torch.from_numpy(np.array(image))[None]


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


def spoken_of(turns, count):
    """For each turn the number, below `count`, of the picture that its boxes are of: the only one that its question shows, or if it shows none the only one shown before. None: who knows."""
    shown, found = 0 if any("<image>" in question for question, _ in turns) else count, []
    for question, _ in turns:
        first = shown if "<image>" in question else 0
        shown += question.count("<image>")
        found.append(first if shown - first == 1 and shown <= count else None)
    return found


# ---------------------------------------------------------------- which frames of a clip are shown

CHOICES = "motion", "uniform", "random", "scene"
GREY = 64  # px of the longer side at which motion is looked for
# grey level (white is 1) that is added to every frame's motion, so that the choice is uniform where nothing
# moves
STILL = 1e-4
CUT = 0.5  # correlation of adjacent frames' luma histograms below which a new shot begins
CANDIDATES = 2048  # of a longer clip only so many frames, evenly spread, are considered


def greys(clip):
    """Grey [h, w] in [0, 1], area averages with GREY px on the longer side, of each frame of uint8 [T,H,W,3] or of a video file, one after the other."""
    if torch.is_tensor(clip):
        scale = min(1, GREY / max(clip.shape[1:3]))
        for frame in clip:
            yield torch.nn.functional.interpolate(
                grey_of(frame)[None, None],
                [max(1, round(side * scale)) for side in frame.shape[:2]],
                mode="area",
            )[0, 0].numpy()
        return
    import av

    with opened(clip) as file:
        file.streams.video[0].thread_type = "AUTO"
        for frame in file.decode(video=0):
            scale = min(1, GREY / max(frame.width, frame.height))
            grey = frame.reformat(
                max(1, round(frame.width * scale)),
                max(1, round(frame.height * scale)),
                "gray",
                interpolation=av.video.reformatter.Interpolation.AREA,
            )
            yield grey.to_ndarray().astype(np.float32) / 255


def moved(before, after):
    """How much moves between two frames, grey [h, w] in [0, 1]: the mean over the picture of the change that camera shake, brightness and noise do not explain.

    Shake is a shift by whole pixels (phase_cross_correlation of scikit-image; Guizar-Sicairos et al. 2008) and, to first order, by parts of one along the picture's gradient. The latter is
    fitted together with gain and offset of the brightness by a robust regression (Cauchy weights, scale by the median absolute deviation), of which moving objects are outliers. A shift is
    accepted only where it halves the median error: shake moves most of the picture. Noise is three standard deviations, estimated by the median of the finest diagonal Haar coefficients
    (Donoho & Johnstone 1994), which moving objects hardly change.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.registration import phase_cross_correlation

    def unexplained(a, b, *more):
        x, difference, weights = np.stack([c.ravel() for c in (np.ones_like(a), a, *more)], 1), b - a, 1
        some, y = x[::3], difference.ravel()[::3]  # every third pixel is enough for two or four numbers
        for _ in range(5):
            weighted = some * np.expand_dims(weights, -1)
            found = np.linalg.lstsq(weighted.T @ some, weighted.T @ y, rcond=1e-6)[0]
            r = y - some @ found
            weights = 1 / (1 + np.square(r / (3 * np.median(np.abs(r)) + 1e-4)))
        fit = (x @ found).reshape(a.shape)
        r = difference - fit
        # behind over-exposure there may be anything
        r = np.minimum(np.abs(b - np.clip(b - r, 0, 1)), np.abs(np.clip(a + r, 0, 1) - a))
        return r, 0.1 * np.abs(fit)  # nor is anything corrected better than to a tenth

    if min(before.shape) < 8:
        return float(np.abs(after - before).mean())
    d = after - before
    if not d.any():
        return 0.0
    # of the difference, after a Gaussian of 1 px
    noise = (
        np.median(np.abs(d[1:, 1:] - d[1:, :-1] - d[:-1, 1:] + d[:-1, :-1]))
        / 2
        / 0.6745
        / (2 * np.sqrt(np.pi))
    )
    a, b = (gaussian_filter(x.astype(float), 1) for x in (before, after))
    rest, slack = unexplained(a, b)
    floor = max(0.6745 * noise, 1e-3)  # the median of noise; less than a quarter of a grey level is nothing
    if np.median(rest) > 1.1 * floor:
        window = np.outer(*(np.hanning(side + 2)[1:-1] for side in a.shape))
        shift = phase_cross_correlation((a - a.mean()) * window, (b - b.mean()) * window, normalization=None)[
            0
        ].astype(int)
        if (margin := np.abs(shift).max()) < min(a.shape) // 4:
            inside = np.s_[margin : a.shape[0] - margin, margin : a.shape[1] - margin]
            a, b = a[inside], np.roll(b, shift, (0, 1))[inside]
            slopes = np.gradient((a + b) / 2)
            steady, allowed = unexplained(a, b, *slopes)
            if np.median(steady) - floor < (np.median(rest) - floor) / 2:
                rest, slack = steady, allowed + 0.1 * np.hypot(*slopes)  # or of a pixel
    return float(np.clip(rest - 3 * noise - slack, 0, None).mean())


def motion_of(clip):
    """How much moves from frame t - 1 to frame t (`moved`; 0 for the first): float64 [T]. clip: uint8 [T,H,W,3] or a video file, of which only two frames are in memory at a time."""
    found, before = [], None
    for grey in greys(clip):
        found.append(0.0 if before is None else moved(before, grey))
        before = grey
    return np.array(found)


def shots_of(clip):
    """(numbers of the frames at which shots begin, length of the clip): a shot begins where luma histograms of adjacent frames correlate by less than CUT (PySceneDetect's HistogramDetector)."""
    histograms = np.array([np.histogram(grey, 32, (0, 1))[0] for grey in greys(clip)]) * 1.0
    x = histograms - histograms.mean(1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    return [0, *(1 + np.flatnonzero((x[1:] * x[:-1]).sum(1) < CUT)).tolist()], len(x)


def placed(steps, k, must=(), largest_gap=None):
    """Numbers of k of T frames between which equally much happens: the least sum of squares of what happens between neighbours, exactly (dynamic programming). None where none can be chosen.

    steps [T] > 0: what happens from frame t - 1 to t. The first frame, the last and those of `must` are always chosen, and neighbours are at most `largest_gap` frames apart. Without these
    conditions the choice is that of MGSampler (Zhi et al., ICCV 2021), equal shares of cumulative motion, but never a frame twice.
    """
    number = np.unique(
        [*np.linspace(0, len(steps) - 1, min(len(steps), max(CANDIDATES, k))).round().astype(int), *must]
    )
    at = np.cumsum([0, *steps[1:]])[number]
    # [from, to]
    cost, gap, last = np.square((at - at[:, None]) / at[-1]), number - number[:, None], number[-1]
    cost[(gap <= 0) | (gap > (largest_gap or last))] = np.inf
    for m in must:
        cost[np.ix_(number < m, number > m)] = np.inf
    total, came = np.where(number == 0, 0, np.inf), []
    for j in range(1, k):
        through = total[:, None] + cost
        came.append(through.argmin(0))
        total = through.min(0) + 1e-9 * np.square(number / last - j / (k - 1))  # among equals the evenest
    if total[-1] == np.inf:
        return None
    chosen = [len(number) - 1]
    for best in reversed(came):
        chosen.append(best[chosen[-1]])
    return number[chosen[::-1]].tolist()


def choose_frames(clip, k, how="motion", seed=0, boundary=None, largest_gap=None):
    """Numbers of k frames of a clip, uint8 [T,H,W,3] or a video file, in rising order, none twice.

    motion    equal shares of what moves (`motion_of`, `placed`), with the first and the last frame; uniform frames where they share it nearly as well
    uniform   equal spans of time, with the first and the last frame
    random    drawn by `seed` (an int or several, say of a run and of a clip)
    scene     every shot gets frames in proportion to its length: the middles of equal parts of it

    boundary: a frame at which something is known to begin or to end. It is always chosen, and with motion what moves near it counts up to four times (a Gaussian of width T / 8).
    largest_gap: the most frames between two that are chosen. Both are for motion and uniform. If k is 1, the frame is the boundary, or else the one by which half of all has happened.
    """
    known(how, dict.fromkeys(CHOICES), "way of choosing frames")
    if how in ("random", "scene") and (boundary is not None or largest_gap):
        refuse(
            f"frames chosen by {how} keep no boundary and no largest gap; choose by motion or uniform, or leave these out"
        )
    clip = torch.as_tensor(clip) if not isinstance(clip, (str, Path)) else clip
    starts, steps = None, motion_of(clip) + STILL if how == "motion" else None
    if how == "scene":
        starts, length = shots_of(clip)
    else:
        length = (
            len(steps) if how == "motion" else len(clip) if torch.is_tensor(clip) else len(presented(clip))
        )
    if not 1 <= k <= length:
        refuse(f"{k} of {length} frames cannot be chosen; give a number of frames from 1 to {length}")
    if boundary is not None and not 0 <= boundary < length:
        refuse(f"the boundary {boundary} is none of {length} frames; give one from 0 to {length - 1}")
    if how == "random":
        return sorted(np.random.default_rng(seed).choice(length, k, replace=False).tolist())
    if how == "scene":
        ends, share = [*starts[1:], length], [0] * len(starts)
        for _ in range(k):
            share[
                max(
                    range(len(starts)),
                    key=lambda i: (
                        (ends[i] - starts[i]) / (share[i] + 1) if share[i] < ends[i] - starts[i] else 0
                    ),
                )
            ] += 1
        return [
            a + (2 * i + 1) * (b - a) // (2 * n)
            for a, b, n in zip(starts, ends, share, strict=True)
            for i in range(n)
        ]
    steps = (
        np.ones(length)
        if how == "uniform"
        else steps
        if boundary is None
        else steps * (1 + 3 * np.exp(-np.square((np.arange(length) - boundary) / (length / 8)) / 2))
    )
    if k == 1:
        return [
            int(np.searchsorted(np.cumsum([0, *steps[1:]]), steps[1:].sum() / 2 - 1e-9))
            if boundary is None
            else boundary
        ]
    chosen, even = (
        placed(x, k, () if boundary is None else (boundary,), largest_gap) for x in (steps, np.ones(length))
    )
    if chosen is None:
        refuse(
            f"{k} of {length} frames"
            + (f", {boundary} among them," if boundary is not None else "")
            + (f" leave gaps of more than {largest_gap}" if largest_gap else " are too few")
            + "; choose more"
            + (", or raise the largest gap" if largest_gap else "")
        )
    unequal = [np.square(np.diff(np.cumsum(steps)[at])).sum() for at in (chosen, even)]
    # motion is measured no more exactly than that, and models were trained on even frames
    return even if unequal[1] < 1.1 * unequal[0] else chosen


@contextlib.contextmanager
def opened(path):
    """A video file, opened by PyAV; anything else is refused."""
    import av

    if not Path(path).is_file():
        refuse(f"{path} does not exist; give the file of a video")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                refuse(f"{path} holds no video; give an MP4, WebM or GIF file")
            yield file
    except (av.FFmpegError, OSError, ValueError) as e:
        refuse(
            f"{path} cannot be read as a video ({getattr(e, 'strerror', None) or e}); give an MP4, WebM or GIF file"
        )


def presented(path):
    """(time stamp, is it a key frame) of every frame of a video, in the order in which they are shown. No frame is decoded."""
    with opened(path) as file:
        stamps = [(p.pts, p.is_keyframe) for p in file.demux(video=0) if p.size]
    return sorted(stamps) if all(pts is not None for pts, _ in stamps) else stamps


def frames_at(path, numbers, size=None):
    """(the frames of a video with these numbers, upright, uint8 [k,H,W,3], squashed to `size` when given; how many had to be decoded).

    Decoding begins at the last key frame before each wanted frame, unless it is there already. A file without time stamps, or whose key frames are not where it says, is decoded from its
    beginning.
    """
    stamps = presented(path)
    if not numbers or not 0 <= min(numbers) <= max(numbers) < len(stamps):
        refuse(
            f"{path} has {len(stamps)} frames, and {numbers} are asked for; give numbers from 0 to {len(stamps) - 1}"
        )
    number_of, kept, decoded = {pts: n for n, (pts, _) in enumerate(stamps)}, {}, 0
    for seeking in [True, False] if len(number_of) == len(stamps) else [False]:
        with opened(path) as file:
            stream, now, frames = file.streams.video[0], -1, file.decode(video=0)
            for wanted in sorted(set(numbers) - set(kept)):
                key = max((n for n in range(wanted + 1) if stamps[n][1]), default=0)
                if seeking and key > max(now, 0):
                    file.seek(stamps[key][0], stream=stream)
                    frames = file.decode(video=0)
                for frame in frames:
                    decoded, now = decoded + 1, number_of.get(frame.pts, now) if seeking else now + 1
                    if now == wanted:  # telephones' films may lie on their side
                        kept[wanted] = frames_of(
                            {
                                "frames": torch.from_numpy(
                                    np.rot90(
                                        frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)
                                    ).copy()
                                )[None]
                            },
                            size,
                        )
                        break
    if missing := sorted(set(numbers) - set(kept)):
        refuse(f"{path} breaks off: frame {missing[0]} of {len(stamps)} cannot be decoded; give a whole file")
    return torch.cat([kept[n] for n in numbers]), decoded


# ---------------------------------------------------------------- models by name

# kind: vlm | encoder | vae | video (a pipeline of diffusers: a folder with model_index.json) | language (of
# words alone, without sizes) | tracker (explain.py --mode tracks has it).
# size: side in pixels an image is squashed to (a multiple of patch x merge); clip: the same for video;
# frames, steps, guidance, fps: of a film.
# read: the tower's hidden state that the projector reads, where it is not the last. What a published
# checkpoint is stands in FACTS.
TINY = "results/tiny/checkpoints"
MODELS = {
    "tiny": {
        "kind": "vlm",
        "type": "qwen2_5_vl",
        "path": f"{TINY}/vlm",
        "size": 96,
        "clip": 64,
        "vae": "tiny-vae",
        "encoder": "tiny-dinov2",
    },
    "tiny-semantic": {
        "kind": "vlm",
        "type": "qwen2_5_vl",
        "path": f"{TINY}/semantic",
        "size": 96,
        "clip": 64,
        "vae": "tiny-vae",
        "encoder": "tiny-dinov2",
    },
    "tiny-dinov2": {
        "kind": "encoder",
        "type": "dinov2",
        "path": f"{TINY}/dinov2",
        "size": 96,
        "clip": 64,
        "vae": "tiny-vae",
    },
    "tiny-llava-next": {
        "kind": "vlm",
        "type": "llava_next",
        "path": f"{TINY}/llava-next",
        "size": 96,
        "clip": 96,
        "vae": "tiny-vae",
        "encoder": "tiny-dinov2",
    },
    "tiny-internvl2": {
        "kind": "vlm",
        "type": "internvl",
        "path": f"{TINY}/internvl2",
        "size": 96,
        "clip": 96,
        "vae": "tiny-vae",
        "encoder": "tiny-dinov2",
    },
    "tiny-cogvlm2": {
        "kind": "vlm",
        "type": "cogvlm2",
        "path": f"{TINY}/cogvlm2",
        "size": 96,
        "clip": 96,
        "vae": "tiny-vae",
        "encoder": "tiny-dinov2",
    },
    "tiny-vae": {
        "kind": "vae",
        "type": "AutoencoderKLLTXVideo",
        "path": f"{TINY}/vae",
        "size": 64,
        "clip": 64,
    },
    "tiny-tracker": {"kind": "tracker", "type": "tracker", "path": f"{TINY}/tracker", "size": 48, "clip": 48},
    "tiny-words": {"kind": "language", "type": "llama", "path": f"{TINY}/words"},
    "tiny-ltx": {
        "kind": "video",
        "type": "LTXImageToVideoPipeline",
        "path": f"{TINY}/ltx",
        "size": 64,
        "clip": 64,
        "frames": 9,
        "steps": 4,
        "fps": 2,
        "vae": "tiny-vae",
    },
    "qwen2.5-vl-3b": {"kind": "vlm", "path": "Qwen/Qwen2.5-VL-3B-Instruct", "size": 448, "clip": 224},
    "qwen2.5-vl-7b": {"kind": "vlm", "path": "Qwen/Qwen2.5-VL-7B-Instruct", "size": 448, "clip": 224},
    "qwen2-vl-2b": {"kind": "vlm", "path": "Qwen/Qwen2-VL-2B-Instruct", "size": 448, "clip": 224},
    "qwen3-vl-2b": {"kind": "vlm", "path": "Qwen/Qwen3-VL-2B-Instruct", "size": 448, "clip": 224},
    "llava-next": {
        "kind": "vlm",
        "path": "llava-hf/llava-v1.6-mistral-7b-hf",
        "size": 336,
        "clip": 336,
        "read": -2,
    },
    "llava-next-vicuna-7b": {
        "kind": "vlm",
        "path": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "size": 336,
        "clip": 336,
        "read": -2,
    },
    "llava-next-vicuna-13b": {
        "kind": "vlm",
        "path": "llava-hf/llava-v1.6-vicuna-13b-hf",
        "size": 336,
        "clip": 336,
        "read": -2,
    },
    "llava-interleave-0.5b": {
        "kind": "vlm",
        "path": "llava-hf/llava-interleave-qwen-0.5b-hf",
        "size": 384,
        "clip": 384,
    },
    "llava-interleave": {
        "kind": "vlm",
        "path": "llava-hf/llava-interleave-qwen-7b-hf",
        "size": 384,
        "clip": 384,
    },
    "llava-onevision-0.5b": {
        "kind": "vlm",
        "path": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
        "size": 384,
        "clip": 384,
    },
    "llava-onevision": {
        "kind": "vlm",
        "path": "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "size": 384,
        "clip": 384,
    },
    "internvl3-1b": {"kind": "vlm", "path": "OpenGVLab/InternVL3-1B-hf", "size": 448, "clip": 448},
    "internvl3-8b": {"kind": "vlm", "path": "OpenGVLab/InternVL3-8B-hf", "size": 448, "clip": 448},
    "internvl2": {"kind": "vlm", "path": "OpenGVLab/InternVL2-8B", "size": 448, "clip": 448},
    "internvl2-26b": {"kind": "vlm", "path": "OpenGVLab/InternVL2-26B", "size": 448, "clip": 448},
    "cogvlm2": {"kind": "vlm", "path": "zai-org/cogvlm2-llama3-chat-19B", "size": 1344, "clip": 1344},
    "kosmos-2": {"kind": "vlm", "path": "microsoft/kosmos-2-patch14-224", "size": 224, "clip": 224},
    "florence-2": {"kind": "vlm", "path": "florence-community/Florence-2-base", "size": 768, "clip": 768},
    "florence-2-large": {
        "kind": "vlm",
        "path": "florence-community/Florence-2-large",
        "size": 768,
        "clip": 768,
    },
    "dinov2-s": {"kind": "encoder", "path": "facebook/dinov2-small", "size": 448, "clip": 224},
    "dinov2-b": {"kind": "encoder", "path": "facebook/dinov2-base", "size": 448, "clip": 224},
    "dinov2-l": {"kind": "encoder", "path": "facebook/dinov2-large", "size": 448, "clip": 224},
    "dinov2-g": {"kind": "encoder", "path": "facebook/dinov2-giant", "size": 448, "clip": 224},
    "dinov3": {
        "kind": "encoder",
        "path": "facebook/dinov3-vits16-pretrain-lvd1689m",
        "size": 448,
        "clip": 224,
    },
    "siglip2": {"kind": "encoder", "path": "google/siglip2-base-patch16-224", "size": 224, "clip": 224},
    "owlvit": {"kind": "encoder", "path": "google/owlvit-base-patch32", "size": 768, "clip": 768},
    "owlv2": {"kind": "encoder", "path": "google/owlv2-base-patch16-ensemble", "size": 960, "clip": 960},
    "grounding-dino": {
        "kind": "encoder",
        "path": "IDEA-Research/grounding-dino-tiny",
        "size": 768,
        "clip": 768,
    },
    "vjepa2": {"kind": "encoder", "path": "facebook/vjepa2-vitl-fpc64-256", "size": 256, "clip": 256},
    "tinyllama": {"kind": "language", "path": "TinyLlama/TinyLlama-1.1B-Chat-v1.0"},
    "qwen2.5-0.5b": {"kind": "language", "path": "Qwen/Qwen2.5-0.5B-Instruct"},
    "smollm2-360m": {"kind": "language", "path": "HuggingFaceTB/SmolLM2-360M-Instruct"},
    "ltx": {"kind": "vae", "path": "Lightricks/LTX-Video", "subfolder": "vae", "size": 224, "clip": 224},
    "ltx-video": {
        "kind": "video",
        "type": "LTXImageToVideoPipeline",
        "path": "Lightricks/LTX-Video",
        "size": 512,
        "clip": 512,
        "frames": 17,
        "steps": 40,
        "guidance": 3.0,
        "vae": "ltx",
    },
}
# name: (model type, licence, billions of parameters: all, the head (0: shared with the embedding), outside
# the layer stacks (without the head), the largest layer;
# tower: (layers, patch in pixels, width), with layers (a, b, ...) of stages, each of which halves the side of
# the grid and doubles the width of the one before;
# language model: (layers, merge, width), merge x merge patches to one token, or (1, K): K tokens without a
# grid; of a language model alone
# no tower and (layers, width)). tests/test_registry.py builds each at full size.
FACTS = {
    "qwen2.5-vl-3b": ("qwen2_5_vl", "Qwen research", 3.755, 0, 0.3494, 0.0771, (32, 14, 1280), (36, 2, 2048)),
    "qwen2.5-vl-7b": (
        "qwen2_5_vl",
        "Apache 2.0",
        8.292,
        0.545,
        0.5911,
        0.2331,
        (32, 14, 1280),
        (28, 2, 3584),
    ),
    "qwen2-vl-2b": ("qwen2_vl", "Apache 2.0", 2.209, 0, 0.269, 0.0468, (32, 14, 1280), (28, 2, 1536)),
    "qwen3-vl-2b": ("qwen3_vl", "Apache 2.0", 2.128, 0, 0.4158, 0.0503, (24, 16, 1024), (28, 2, 2048)),
    "llava-next": ("llava_next", "Apache 2.0", 7.567, 0.1313, 0.1535, 0.2181, (24, 14, 1024), (32, 1, 4096)),
    "llava-next-vicuna-7b": (
        "llava_next",
        "Llama 2",
        7.063,
        0.1313,
        0.1535,
        0.2024,
        (24, 14, 1024),
        (32, 1, 4096),
    ),
    "llava-next-vicuna-13b": (
        "llava_next",
        "Llama 2",
        13.351,
        0.1642,
        0.1968,
        0.3172,
        (24, 14, 1024),
        (40, 1, 5120),
    ),
    "llava-interleave-0.5b": (
        "llava",
        "Qwen research",
        0.864,
        0,
        0.1594,
        0.01524,
        (26, 14, 1152),
        (24, 1, 1024),
    ),
    "llava-interleave": (
        "llava",
        "Qwen research",
        8.141,
        0.6226,
        0.6456,
        0.2024,
        (26, 14, 1152),
        (32, 1, 4096),
    ),
    "llava-onevision-0.5b": (
        "llava_onevision",
        "Apache 2.0",
        0.8937,
        0,
        0.1396,
        0.01524,
        (26, 14, 1152),
        (24, 1, 896),
    ),
    "llava-onevision": (
        "llava_onevision",
        "Apache 2.0",
        8.03,
        0.545,
        0.5635,
        0.2331,
        (26, 14, 1152),
        (28, 1, 3584),
    ),
    "internvl3-1b": ("internvl", "Qwen", 0.9382, 0.1359, 0.142, 0.01491, (24, 14, 1024), (24, 2, 896)),
    "internvl3-8b": ("internvl", "Qwen", 7.944, 0.5436, 0.5728, 0.2331, (24, 14, 1024), (28, 2, 3584)),
    "internvl2": ("internvl_chat", "MIT", 8.075, 0.3791, 0.4143, 0.2181, (24, 14, 1024), (32, 2, 4096)),
    "internvl2-26b": ("internvl_chat", "MIT", 25.514, 0.5686, 0.6902, 0.3901, (45, 14, 3200), (48, 2, 6144)),
    "cogvlm2": ("cogvlm2", "CogVLM2, Llama 3", 19.503, 0.5253, 0.7393, 0.4362, (63, 14, 1792), (32, 2, 4096)),
    "kosmos-2": ("kosmos-2", "MIT", 1.6645, 0, 0.1531, 0.05038, (24, 14, 1024), (24, (1, 64), 2048)),
    "florence-2": ("florence2", "MIT", 0.2314, 0, 0.1048, 0.02523, ((1, 1, 9, 1), 4, 128), (6, 1, 768)),
    "florence-2-large": (
        "florence2",
        "MIT",
        0.7765,
        0,
        0.2895,
        0.1008,
        ((1, 1, 9, 1), 4, 256),
        (12, 1, 1024),
    ),
    "dinov2-s": ("dinov2", "Apache 2.0", 0.02206, 0, 0.000754, 0.001775, (12, 14, 384), None),
    "dinov2-b": ("dinov2", "Apache 2.0", 0.08658, 0, 0.001508, 0.007089, (12, 14, 768), None),
    "dinov2-l": ("dinov2", "Apache 2.0", 0.3044, 0, 0.00201, 0.0126, (24, 14, 1024), None),
    "dinov2-g": ("dinov2", "Apache 2.0", 1.1365, 0, 0.003015, 0.02834, (40, 14, 1536), None),
    "dinov3": ("dinov3_vit", "DINOv3, gated", 0.0216, 0, 0.000298, 0.001775, (12, 16, 384), None),
    "siglip2": ("siglip", "Apache 2.0", 0.3752, 0, 0.2901, 0.007088, (12, 16, 768), None),
    "owlvit": ("owlvit", "Apache 2.0", 0.1532, 0, 0.06818, 0.007088, (12, 32, 768), None),
    "owlv2": ("owlv2", "Apache 2.0", 0.155, 0, 0.06991, 0.007088, (12, 16, 768), None),
    "grounding-dino": (
        "grounding-dino",
        "Apache 2.0",
        0.1723,
        0,
        0.1463,
        0.007092,
        ((2, 2, 6, 2), 4, 96),
        None,
    ),
    "vjepa2": ("vjepa2", "MIT", 0.326, 0, 0.02366, 0.0126, (24, 16, 1024), None),
    "tinyllama": ("llama", "Apache 2.0", 1.1, 0.06554, 0.06554, 0.04404, None, (22, 2048)),
    "qwen2.5-0.5b": ("qwen2", "Apache 2.0", 0.494, 0, 0.1361, 0.01491, None, (24, 896)),
    "smollm2-360m": ("llama", "Apache 2.0", 0.3618, 0, 0.04719, 0.00983, None, (32, 960)),
    "ltx": ("AutoencoderKLLTXVideo", "LTX open weights", 0.4192, 0, 0.4192, 0, (0, 32, 128), None),
}
for _name, _row in FACTS.items():
    MODELS[_name] |= dict(
        zip(
            ("type", "licence", "params", "head", "outside", "layer", "vision", "language"), _row, strict=True
        )
    )
# Names that people write for what does not exist or is something else (in lower case, with or without the
# owner): what it is, and what to use.
MISNOMERS = {
    **dict.fromkeys(
        ("qwen2.5-vl-2b", "qwen2.5-vl-2b-instruct"),
        "does not exist: Qwen2.5-VL comes in 3B, 7B, 32B and 72B, and 2B exists for Qwen2-VL and Qwen3-VL; use qwen2-vl-2b or qwen2.5-vl-3b",
    ),
    "qwen2.5-vl": "comes in several sizes; use qwen2.5-vl-3b or qwen2.5-vl-7b",
    "qwen2-vl": "comes in several sizes; use qwen2-vl-2b",
    "qwen3-vl": "comes in several sizes; use qwen3-vl-2b",
    **dict.fromkeys(
        ("qwen-vl", "qwen-vl-chat"), "is the model of 2023, which needs code from the hub; use qwen2-vl-2b"
    ),
    **dict.fromkeys(
        ("cogvlm2-grounding", "cogvlm2-grounding-generalist", "cogvlm2-grounding-generalist-hf"),
        "does not exist: no variant of CogVLM2 that prints boxes was released, only one of CogVLM 1, which is another architecture; use cogvlm2 and ask it all the same",
    ),
    **dict.fromkeys(
        ("cogvlm", "cogvlm-chat-hf", "cogvlm-grounding-generalist-hf"),
        "is CogVLM 1, another architecture; use cogvlm2",
    ),
    "thudm/cogvlm2-llama3-chat-19b": "has moved to zai-org/cogvlm2-llama3-chat-19B; use cogvlm2",
    "cogvlm2-llama3-chat-19b-int4": "is quantised by its own code; use cogvlm2",
    **dict.fromkeys(
        ("cogvlm2-video", "cogvlm2-video-llama3-chat"),
        "is another architecture; use cogvlm2, which takes a clip frame by frame",
    ),
    "llava": "is a family of models; use llava-next, llava-interleave or llava-onevision",
    **dict.fromkeys(
        ("llava-1.6", "llava-v1.6", "llava-v1.6-7b"),
        "comes with three language models; use llava-next, llava-next-vicuna-7b or llava-next-vicuna-13b",
    ),
    "llava-v1.6-mistral-7b": "is in LLaVA's own layout, which no library loads; use llava-next, the same weights",
    "llava-v1.6-vicuna-7b": "is in LLaVA's own layout, which no library loads; use llava-next-vicuna-7b, the same weights",
    "llava-v1.6-vicuna-13b": "is in LLaVA's own layout, which no library loads; use llava-next-vicuna-13b, the same weights",
    **dict.fromkeys(
        ("llava-next-interleave", "llava-next-interleave-qwen-7b", "llava-next-interleave-qwen-7b-hf"),
        "is in LLaVA's own layout, and its tower is SigLIP's (27 x 27), not CLIP's; use llava-interleave, the same weights",
    ),
    "llava-next-interleave-qwen-0.5b": "is in LLaVA's own layout, which no library loads; use llava-interleave-0.5b, the same weights",
    "llava-onevision-qwen2-7b-ov": "is in LLaVA's own layout, which no library loads; use llava-onevision, the same weights",
    "llava-onevision-qwen2-0.5b-ov": "is in LLaVA's own layout, which no library loads; use llava-onevision-0.5b, the same weights",
    "internvl3": "comes in several sizes; use internvl3-1b or internvl3-8b",
    "opengvlab/internvl3-1b": "is in a layout that needs code from the hub; use internvl3-1b, the same weights in OpenGVLab/InternVL3-1B-hf",
    "opengvlab/internvl3-8b": "is in a layout that needs code from the hub; use internvl3-8b, the same weights in OpenGVLab/InternVL3-8B-hf",
    "microsoft/florence-2-base": "needs code from the hub; use florence-community/Florence-2-base, the same weights",
    "microsoft/florence-2-large": "needs code from the hub; use florence-community/Florence-2-large, the same weights",
    "dinov2": "comes in several sizes; use dinov2-s, dinov2-b, dinov2-l or dinov2-g",
    "siglip": "is the older model; use siglip2",
    **dict.fromkeys(("vjepa", "v-jepa"), "is the older model, which no library loads; use vjepa2"),
    **dict.fromkeys(("ltx-2", "ltx2"), "has another autoencoder; use ltx"),
}
KIND_OF_TYPE = {
    **dict.fromkeys(
        (
            "qwen2_vl",
            "qwen2_5_vl",
            "qwen3_vl",
            "internvl",
            "internvl_chat",
            "cogvlm2",
            "llava",
            "llava_next",
            "llava_onevision",
            "kosmos-2",
            "florence2",
        ),
        "vlm",
    ),
    **dict.fromkeys(
        ("dinov2", "dinov3_vit", "siglip", "owlvit", "owlv2", "grounding-dino", "vjepa2"), "encoder"
    ),
    **dict.fromkeys(("llama", "qwen2"), "language"),
    "tracker": "tracker",
    "AutoencoderKLLTXVideo": "vae",
    "LTXImageToVideoPipeline": "video",
}

ADAPTER_CONFIG = "adapter_config.json"  # of peft
# what says which class a folder holds: of one model, of a pipeline
CONFIGS = "config.json", "model_index.json"


def registry_name(name):
    """The registry's own name for `name`: itself in any case, its repository on the hub, or the repository without its owner."""
    if name.lower() in MODELS:
        return name.lower()
    for own, entry in MODELS.items():
        if name.lower() in (
            own,
            *(
                ()
                if entry["path"].startswith(TINY)
                else (entry["path"].lower(), Path(entry["path"]).name.lower())
            ),
        ):
            return own
    return name


def folder_name(path):
    """What results are called after: a name, or the last folder of a path, of adapter and model the one above; of <model>/<data>/tuned, as adapt.py calls it, all three, for every training has one."""
    path = Path(os.path.abspath(path))
    path = path.parent if path.name in ("adapter", "model") else path
    return "-".join(path.parts[-3:]) if path.name == "tuned" else path.name


def read_json(path, whole="checkpoint"):
    """A JSON file of a `whole` that was copied here; a broken one is refused."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError:
        refuse(f"{path} is not readable JSON; copy the {whole} again")


def find_model(name):
    """The registry's entry for a name or a local folder in Hugging Face format: kind, path, size, clip, weights. A folder of peft's is its base model with `adapter`."""
    if name not in MODELS and (Path(name) / ADAPTER_CONFIG).is_file():
        return _adapted(name)
    if name not in MODELS and Path(name).is_dir():
        config = next((Path(name) / f for f in CONFIGS if Path(name, f).is_file()), None)
        if not config:
            refuse(f"{name} has no config.json; give a folder written by save_pretrained")
        found = read_json(config)
        kind_of = (
            "cogvlm2"
            if found.get("architectures") == ["CogVLMForCausalLM"]
            else found.get("model_type") or found.get("_class_name") or "none"
        )
        kind = known(kind_of, KIND_OF_TYPE, f"model type in {config}")
        entry = {"kind": kind, "type": kind_of, "path": name}
        vision = found.get("vision_config") or found
        # Florence-2 and Grounding DINO state none, for they take others too
        side = vision.get("crop_size") or vision.get("image_size") or 768
        if not kind_of.startswith(("qwen", "dino", "Auto", "LTX")):  # positions for one size
            size = side if isinstance(side, int) else side[0]
        else:
            token = vision.get("patch_size", 14) * vision.get("spatial_merge_size", 1)
            size = 64 if kind in ("vae", "video") else 224 // token * token
        entry |= {} if kind == "language" else {"size": size, "clip": size}
    else:
        if said := MISNOMERS.get(name.lower()) or MISNOMERS.get(Path(name).name.lower()):
            refuse(f"{name!r} {said}")
        name = registry_name(name)
        entry = dict(known(name, MODELS, "model"))
        if entry["path"].startswith(TINY):
            entry["path"] = str(HERE / entry["path"])
            if not any(Path(entry["path"], f).is_file() for f in CONFIGS):
                refuse(f"{entry['path']} is missing; run `make tiny`, which trains it")
    return {"name": folder_name(name), **entry, **_noted(entry["path"])}


def _noted(folder):
    """What weights.yaml says of a checkpoint: where its weights are from, and what it has been shown: `size` and `clip`, as in MODELS; `own_shape`, where adapt.py has tuned it on pictures in
    their own shape, for Qwen `fitted`'s (token, most), else nothing."""
    said = (
        load_yaml(note)
        if (note := Path(folder) / "weights.yaml").is_file()
        else {"weights": "unstated" if Path(folder).is_dir() else "pretrained"}
    )
    return {k: said[k] for k in ("weights", "size", "clip", "own_shape") if k in said}


def _adapted(name):
    """The entry of a folder in which peft (adapt.py --mode tune, LLaMA-Factory, Unsloth) left LoRA: the base model's, by name, by its repository or its folder."""
    found = read_json(f"{name}/{ADAPTER_CONFIG}", "folder")
    base = found.get("base_model_name_or_path") or "none"
    entry = find_model(next((own for own, e in MODELS.items() if e["path"] == base), base))
    if (
        found.get("peft_type") != "LORA"
        or found.get("use_dora")
        or found.get("modules_to_save")
        or found.get("bias", "none") != "none"
        or found.get("alpha_pattern")
        or "adapter" in entry
    ):
        refuse(
            f"{name} is not plain LoRA of a model ({found.get('peft_type')}, perhaps with DoRA, biases or whole modules); merge it with the tool that trained it, and pass the merged folder"
        )
    rank = found["r"] ** 0.5 if found.get("use_rslora") else found["r"]
    return entry | {
        "name": folder_name(name),
        "adapter": str(name),
        "scaling": found["lora_alpha"] / rank,
        **_noted(name),
    }


def model_of(index):
    """The entry of the model that a features index is of, by its name or by the folder that it was extracted from; {} where neither is to be found."""
    name, given = index["model"], str(index.get("run", {}).get("arguments", {}).get("model") or "")
    found = (
        name
        if name in MODELS
        else given
        if any(Path(given, f).is_file() for f in (*CONFIGS, ADAPTER_CONFIG))
        else None
    )
    return find_model(found) if found else {}


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
    return any(
        getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    )


def _trouble(error, entry):
    """Why a checkpoint could not be loaded, and the remedy, in one clause. transformers hides the hub's own exceptions behind an OSError: so all causes of `error` are looked at."""
    from importlib.metadata import version

    from huggingface_hub import errors

    where, seen = entry["path"], []
    part = entry.get("subfolder")
    fetch = f"fetch it with `hf download {where}{f' --include {part}/*' if part else ''}` where there is a network, then pass the folder{f' {part} in it' if part else ''} as MODEL"
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    text = " ".join(str(e) for e in seen)
    status = {getattr(getattr(e, "response", None), "status_code", None) for e in seen}

    def has(*kinds):
        return any(isinstance(e, kinds) for e in seen)

    if has(errors.GatedRepoError) or (status & {401, 403} and not has(errors.RepositoryNotFoundError)):
        return f"it is gated; accept its licence at https://huggingface.co/{where}, then `hf auth login`"
    if has(errors.RevisionNotFoundError):
        return f"it has no revision {entry.get('revision')!r}; see https://huggingface.co/{where}/commits/main, or leave --revision out"
    if has(errors.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private; check the name, or `hf auth login`"
    if "trust_remote_code" in text:
        names = {
            n.lower(): own
            for own, e in MODELS.items()
            if e["path"] != where and not e["path"].startswith(TINY)
            for n in (own, Path(e["path"]).name)
        }
        near = difflib.get_close_matches(Path(where).name.lower(), names, 1, 0.8)
        return f"it needs code from the hub, which is not run here; use {names[near[0]] if near else 'a model of `python extract.py --list`'}"
    wanted = re.search(r"transformers *[><=!~]=? *[\d.]+", text)
    if wanted or "does not recognize this architecture" in text:
        return f"it needs {wanted[0] if wanted else 'a newer transformers'}, and {version('transformers')} is installed; `pip install -U transformers`"
    if has(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) or any(
        type(e).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "socket")
        and getattr(e, "response", None) is None
        for e in seen
    ):
        return f"{'HF_HUB_OFFLINE is set' if has(errors.OfflineModeIsEnabled) else 'the hub cannot be reached'}; {fetch}"
    said = (str(seen[0]).splitlines() or [""])[0][:200].rstrip(". ") or type(seen[0]).__name__
    return f"{said}; {'copy the folder again' if Path(where).is_dir() else fetch}"


def attempt(build, entry):
    """Run a loader; what the hub or the folder lacks becomes one sentence with the remedy.

    `build` returns a processor, a config, or (model, loading info) whose missing weights are refused: they would be random.
    """
    where = entry["path"]
    try:
        found = build()
    except Exception as e:
        # OSError, ValueError, safetensors' own error, ...: whatever a library says of a broken or absent
        # checkpoint
        refuse(f"cannot load {where}: {_trouble(e, entry)}")
    if isinstance(found, tuple):
        model, info = found
        if info["missing_keys"]:
            refuse(
                f"{where} lacks weights ({sorted(info['missing_keys'])[0]} and {len(info['missing_keys']) - 1} more), which would be random; copy the checkpoint again"
            )
        return model
    return found


def _reach(entry):
    """The entry; where the hub cannot be reached, with the cached snapshot as its path.

    Without a network transformers asks for each of several files six times, which takes minutes. Here the hub is asked for one file, once.
    """
    path = entry["path"]
    if Path(path).is_dir():
        return entry
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(
            hf_hub_url(
                path,
                CONFIGS[entry.get("kind") == "video"],
                subfolder=entry.get("subfolder"),
                revision=entry.get("revision"),
            ),
            timeout=10,
        )
    except Exception as e:
        cached = (
            None
            if isinstance(e, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError))
            else _cached(entry)
        )
        if not cached:
            refuse(f"cannot load {path}: {_trouble(e, entry)}")
        return entry | {"path": str(cached), "revision": None}
    return entry


# model type -> (model, processor) where an encoder is not (AutoModel, AutoImageProcessor). Grounding DINO has
# no heads of interest, but AutoModel
# would miss a layer norm that Swin's backbone never uses, and that files of older versions of transformers do
# not hold.
DETECTOR = "AutoModelForZeroShotObjectDetection"
ENCODER_CLASSES = {
    "owlvit": (DETECTOR, "AutoImageProcessor"),
    "owlv2": (DETECTOR, "AutoImageProcessor"),
    "grounding-dino": (DETECTOR, "AutoProcessor"),
    "vjepa2": ("AutoModel", "AutoVideoProcessor"),
}


def load_transformer(entry, device="cpu", dtype=torch.float32, random_seed=None, quantised=None):
    """(model, processor) of a vision-language model, (model, image processor) of an encoder, (model, tokenizer) of a language model: by the entry's kind.

    random_seed: the same architecture, untrained; quantised: transformers' quantization_config.
    """
    entry = _reach(entry)
    if random_seed is not None:
        build, processor, _ = OWN_LAYOUT.get(entry.get("type"), native_layout)(entry, dtype)
        torch.manual_seed(random_seed)
        return build().to(device).eval(), processor
    if entry.get("type") in OWN_LAYOUT:
        model, processor, weights = skeleton(entry, dtype, device)
        attempt(lambda: fill(model, weights, weights.like, device), entry)
        return model, processor
    model_class, processor_class = auto_classes(entry)
    more = {"quantization_config": quantised, "device_map": {"": device}} if quantised else {}
    processor = attempt(lambda: processor_class.from_pretrained(entry["path"], **pin(entry)), entry)
    model = attempt(
        lambda: model_class.from_pretrained(
            entry["path"], dtype=dtype, output_loading_info=True, **pin(entry), **more
        ),
        entry,
    )
    if entry.get("adapter"):
        attempt(lambda: merge_lora(model, entry, native_layout(entry, dtype)[2](model)[0]), entry)
    return (model if quantised else model.to(device)).eval(), processor


load_vlm = load_encoder = load_language = load_transformer


def processor_of(entry):
    """The processor or tokenizer alone."""
    entry = _reach(entry)
    return attempt(lambda: list(auto_classes(entry))[1].from_pretrained(entry["path"], **pin(entry)), entry)


def pin(entry):
    """Arguments of from_pretrained: the revision, where one is asked for, and no code from the hub (transformers would ask on the terminal)."""
    return {"trust_remote_code": False} | ({"revision": entry["revision"]} if entry.get("revision") else {})


def auto_classes(entry):
    """transformers' (model, processor or tokenizer) classes for a kind of model."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    names = {
        "vlm": ("AutoModelForImageTextToText", "AutoProcessor"),
        "language": ("AutoModelForCausalLM", "AutoTokenizer"),
        "encoder": ENCODER_CLASSES.get(entry.get("type"), ("AutoModel", "AutoImageProcessor")),
    }
    return (getattr(transformers, name) for name in names[entry["kind"]])


def load_video_vae(entry, device="cpu", dtype=torch.float32, random_seed=None):
    """(model, None) of a video autoencoder. LTX-Video's own takes 8k+1 frames and silently drops any others."""
    from diffusers import AutoencoderKLLTXVideo as Vae

    entry = _reach(entry)
    more = {k: entry[k] for k in ("subfolder", "revision") if entry.get(k)}
    if random_seed is None:
        model = attempt(
            lambda: Vae.from_pretrained(entry["path"], torch_dtype=dtype, output_loading_info=True, **more),
            entry,
        )
    else:
        torch.manual_seed(random_seed)
        model = Vae.from_config(attempt(lambda: Vae.load_config(entry["path"], **more), entry)).to(dtype)
    return model.to(device).eval(), None


def flatten_stills(model):
    """Make an autoencoder three times as fast on single pictures, with the same arithmetic: it pads a clip in time with copies of the first and last frame, so on one frame a convolution in
    time and space is a convolution in space by the kernel's sum over time.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d

    def convolve(self, x):
        if x.shape[2] > 1:
            return LTXVideoCausalConv3d.forward(self, x)
        return torch.nn.functional.conv2d(
            x[:, :, 0], self.conv.weight.sum(2), self.conv.bias, self.conv.stride[1:], self.conv.padding[1:]
        )[:, :, None]

    for module in model.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            module.forward = types.MethodType(convolve, module)
    return model


# the time step that LTX-Video's own pipelines decode at, for autoencoders that are conditioned on one
DECODE_STEP = 0.05


def from_latents(vae, z):
    """Normalised latents [n, t, h, w, C] -> films [n, 3, T, H, W] in -1..1, not clipped; differentiable."""
    z = (
        z.to(vae.device, vae.dtype) * vae.latents_std.to(vae.device, vae.dtype)
        + vae.latents_mean.to(vae.device, vae.dtype)
    ).permute(0, 4, 1, 2, 3)
    return vae.decode(
        z,
        torch.full((len(z),), DECODE_STEP, device=z.device, dtype=z.dtype)
        if vae.config.timestep_conditioning
        else None,
    ).sample.float()


@torch.inference_mode()
def decode_films(vae, latents, batch=16):
    """Normalised latents [n, t, h, w, C] -> films uint8 [n, T, H, W, 3]."""
    return torch.cat(
        [
            ((from_latents(vae, z).cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 4, 1)
            for z in latents.split(batch)
        ]
    )


@torch.inference_mode()
def encode_films(vae, films, batch=16):
    """Films uint8 [n, T, H, W, 3] -> normalised latents [n, t, h, w, C] (the mode), fp32 on the CPU."""
    out = []
    for x in films.split(batch):
        z = (
            vae.encode(x.permute(0, 4, 1, 2, 3).to(vae.device, vae.dtype) / 127.5 - 1)
            .latent_dist.mode()
            .permute(0, 2, 3, 4, 1)
        )
        out.append(((z - vae.latents_mean.to(z)) / vae.latents_std.to(z)).float().cpu())
    return torch.cat(out)


def autoencoder_of(entry):
    """The entry of a pipeline's autoencoder, for load_video_vae. Where the pipeline's folder holds none it is the registry's `vae`, or the folder vae beside it."""
    where = Path(entry["path"])
    if where.is_dir() and not (where / "vae").is_dir():
        return find_model(entry.get("vae") or str(where.with_name("vae")))
    return entry | {"kind": "vae", "subfolder": "vae"}


def load_video_pipeline(entry, device="cpu", dtype=torch.float32):
    """(diffusers' LTXImageToVideoPipeline, None), its autoencoder by autoencoder_of; `LTXConditionPipeline(**pipeline.components)` has the same parts and takes several frames."""
    import diffusers
    import transformers

    entry = _reach(entry | {"kind": "video", "subfolder": None})
    where, more = Path(entry["path"]), {"revision": entry["revision"]} if entry.get("revision") else {}
    stored = attempt(lambda: diffusers.LTXImageToVideoPipeline.load_config(entry["path"], **more), entry)
    parts = {}
    # one by one, for the pipeline would draw weights that are missing without a word
    for part, library in (("transformer", diffusers), ("text_encoder", transformers)):
        name = (stored.get(part) or [None, None])[1]
        if name:
            load = functools.partial(
                getattr(library, name).from_pretrained,
                entry["path"],
                subfolder=part,
                output_loading_info=True,
                **more,
            )
            named = entry | {"path": str(where / part)} if where.is_dir() else entry
            parts[part] = attempt(
                lambda load=load, library=library: load(
                    **{"torch_dtype" if library is diffusers else "dtype": dtype}
                ),
                named,
            )
    parts["vae"] = load_video_vae(autoencoder_of(entry), device, dtype)[0]
    return attempt(
        lambda: diffusers.LTXImageToVideoPipeline.from_pretrained(
            entry["path"], torch_dtype=dtype, **parts, **more
        ),
        entry,
    ).to(device), None


def geometry(entry):
    """What the pipeline's configurations say: frames (time) and pixels (space) to a latent, its channels (latents), the width of a prompt's tokens before (prompt) and after caption_projection."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo

    def config(entry, name):
        path = hub_file(entry, name)
        if path is None:
            refuse(f"{entry['path']} has no {name}; copy the checkpoint again")
        return read_json(path)

    t, vae = config(entry, "transformer/config.json"), autoencoder_of(entry)
    vae = config(vae, "/".join(filter(None, (vae.get("subfolder"), "config.json"))))
    with init_empty_weights():
        vae = AutoencoderKLLTXVideo.from_config(vae)
    return {
        "time": vae.temporal_compression_ratio,
        "space": vae.spatial_compression_ratio,
        "latents": vae.config.latent_channels,
        "prompt": t["caption_channels"],
        "caption": t["num_attention_heads"] * t["attention_head_dim"],
    }


def check_shape(frames, size, shape, name):
    """Refuse sizes that the pipeline cannot take: its autoencoder would drop frames silently."""
    r, side = shape["time"], math.lcm(32, shape["space"])
    if frames < r + 1 or frames % r != 1:
        below = max((frames - 1) // r, 1) * r + 1
        refuse(
            f"--frames {frames} is not {r}k+1, and the autoencoder of {name} would drop what is over; give {below} or {below + r}"
        )
    if size < side or size % side:
        refuse(
            f"--size {size} is not a multiple of {side}, which {name} needs; give {max(size // side, 1) * side} or {(max(size // side, 1) + 1) * side}"
        )


# ---------------------------------------------------------------- weights, one by one
#
# A layout is a function (entry, dtype) -> (build, processor, names): build() makes the network with weights
# of its own, and
# names(model) -> (own, parts) says what a tensor of the checkpoint becomes: own(name) the model's names of
# it, parts(name, tensor) its parts.


def skeleton(entry, dtype, device="cpu", random_seed=None):
    """(model, processor, weights): a network whose parameters hold nothing yet (meta device) and whose buffers are real; `weights` brings what is asked
    for, from the checkpoint or, with `random_seed`, untrained."""
    from accelerate import init_empty_weights

    if entry.get("kind") == "video":
        refuse(
            f"{entry['path']} is a video pipeline, of which no features are read; give its autoencoder, {entry.get('vae', 'the folder vae')}"
        )
    entry = _reach(entry)
    build, processor, names = OWN_LAYOUT.get(entry.get("type"), native_layout)(entry, dtype)
    with init_empty_weights(include_buffers=False):
        model = build().eval().requires_grad_(False)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    return (
        model,
        processor,
        Untrained(model, random_seed)
        if random_seed is not None
        else attempt(lambda: Weights(entry, model, *names(model)), entry),
    )


class Weights:
    """The tensors of a checkpoint's safetensors under the names of `model`'s parameters, each read from its file when asked for.

    Raises FileNotFoundError where there are no safetensors, KeyError naming the first weight that the checkpoint lacks.
    """

    def __init__(self, entry, model, own, parts=lambda name, tensor: [tensor]):
        self.entry = entry
        self.parts = parts
        self.files = {}
        self.bytes = 0
        index = hub_file(entry, "model.safetensors.index.json")
        stored = (
            json.loads(index.read_text())["weight_map"]
            if index
            else dict.fromkeys(self.open("model.safetensors").keys(), "model.safetensors")
        )
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}
        self.where = {name: (file, key, k) for key, file in stored.items() for k, name in enumerate(own(key))}
        tied = getattr(model, "all_tied_weights_keys", {})
        self.where |= {
            name: self.where[tied[name]]
            for name in self.like
            if name not in self.where and tied.get(name) in self.where
        }
        if missing := sorted(set(self.like) - set(self.where)):
            raise KeyError(
                f"weights are missing ({missing[0]} and {len(missing) - 1} more), which would be random"
            )
        self.lora = lora_of(entry, own, self.like) if entry.get("adapter") else {}

    def open(self, file):
        from safetensors import safe_open

        if file not in self.files:
            path = hub_file(self.entry, file)
            if path is None:
                raise FileNotFoundError(f"there is no {file}")
            self.files[file] = safe_open(path, "pt")
        return self.files[file]

    def ready(self, names):
        """Open the files of these weights, so that one that is missing or cut short is refused before the work begins."""
        attempt(lambda: [self.open(file) for file in {self.where[name][0] for name in names}], self.entry)

    def read(self, names):
        """(name, tensor on the CPU in the model's dtype) of each. Copied: a memory-mapped tensor would be read from disk only when it is first used."""
        wanted = {}
        for name in names:
            wanted.setdefault(self.where[name][:2], []).append(name)
        for (file, key), group in wanted.items():
            tensor = self.open(file).get_tensor(key)
            self.bytes += tensor.nbytes
            parts = self.parts(key, tensor)
            for name in group:
                part = parts[self.where[name][2]].to(self.like[name].dtype, copy=True)
                yield (
                    name,
                    lora_added(part, self.lora[name], self.entry["scaling"]) if name in self.lora else part,
                )

    def size(self, names):
        """Bytes in memory."""
        return sum(self.like[name].nbytes for name in names)


def lora_of(entry, own, like):
    """{the model's name of a weight: (A [r, in], B [out, r])} of the entry's adapter. Raises KeyError naming what in it is for another model, or is not LoRA."""
    from safetensors.torch import load_file

    stored, found = load_file(Path(entry["adapter"]) / "adapter_model.safetensors"), {}
    for key in stored:
        before, mark, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
        if mark:
            names = own(f"{before}.weight")
            pair = stored[key], stored[key.replace(".lora_A.", ".lora_B.")]
            if (
                len(names) > 1
                or names[0] not in like
                or like[names[0]].numel() != pair[0][0].numel() * pair[1][:, 0].numel()
            ):
                raise KeyError(f"the adapter {entry['adapter']} is for {before} of another model")
            found[names[0]] = pair
    if 2 * len(found) != len(stored):
        raise KeyError(f"the adapter {entry['adapter']} holds more than LoRA")
    return found


def lora_added(weight, pair, scaling):
    """W + s B A (Hu et al. 2022, equation 3), computed in fp32."""
    a, b = (x.to(weight.device, torch.float32) for x in pair)
    return (weight.float() + scaling * (b @ a).view_as(weight)).to(weight.dtype)


@torch.no_grad()
def merge_lora(model, entry, own):
    """Put the entry's adapter into the model's weights; (model, nothing missing), as `attempt` wants it."""
    for name, pair in lora_of(entry, own, model.state_dict()).items():
        weight = model.get_parameter(name)
        weight.copy_(lora_added(weight, pair, entry["scaling"]))
    return model, {"missing_keys": []}


def seeded(name):
    """A generator that depends on `name` alone: what it draws is the same in any order, in any batch and on any device."""
    return torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))


class Untrained:
    """Weights that depend on the seed and their name alone, not on the order of reading: matrices N(0, 0.02^2), these families' initializer_range, scales one, biases zero. Buffers stay as
    they are."""

    size = Weights.size

    def ready(self, names):
        """Nothing to open."""

    def __init__(self, model, seed):
        self.seed = seed
        self.bytes = 0
        self.like = {name: x.to("meta") for name, x in model.named_parameters()}

    def read(self, names):
        for name in names:
            x = torch.empty_like(self.like[name], device="cpu")
            if x.ndim > 1:
                yield name, x.normal_(0, 0.02, generator=seeded(f"{self.seed} {name}"))
            else:
                yield name, x.fill_(0.0 if name.endswith("bias") else 1.0)


@torch.inference_mode(False)  # what inference mode makes cannot become a parameter
def fill(model, weights, names, device="cpu"):
    """Put the named weights into the model."""
    model.load_state_dict({name: x.to(device) for name, x in weights.read(names)}, strict=False, assign=True)


def hub_file(entry, name):
    """Path of one file of a checkpoint, downloaded if need be; None if there is no such file."""
    if Path(entry["path"]).is_dir():
        return Path(entry["path"], name) if Path(entry["path"], name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    revision = resolved_commit(entry) or entry.get("revision")
    found = try_to_load_from_cache(entry["path"], name, revision=revision)
    with contextlib.suppress(EntryNotFoundError):
        return Path(
            found if isinstance(found, str) else hf_hub_download(entry["path"], name, revision=revision)
        )


def _cached(entry):
    """The folder in the local cache that holds the hub's repository at the revision asked for, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = "/".join(filter(None, (entry.get("subfolder"), CONFIGS[entry.get("kind") == "video"])))
    found = try_to_load_from_cache(entry["path"], config, revision=entry.get("revision"))
    return Path(found).parents[config.count("/")] if isinstance(found, str) else None


def fingerprint(path):
    """What identifies a checkpoint: the hub's name, or a digest of a local folder's JSON files and of the names, sizes and times of its weights. Of an entry, with its adapter."""
    if isinstance(path, dict):
        return "+".join(fingerprint(path[k]) for k in ("path", "adapter") if path.get(k))
    if not Path(path).is_dir():
        return path
    files = sorted(f for f in Path(path).rglob("*") if f.suffix in (".json", ".safetensors"))
    return digest(
        b"".join(
            f.read_bytes()
            if f.suffix == ".json"
            else f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}".encode()
            for f in files
        )
    )


def resolved_commit(entry):
    """The commit of the hub's repository that was loaded (from the local cache), or None for a folder."""
    found = None if Path(entry["path"]).is_dir() else _cached(entry)
    return found and found.name


def native_layout(entry, dtype):
    """The layout of transformers' own classes, whose rules say how weights of older checkpoints are called and split today."""
    from transformers import AutoConfig

    model_class, processor_class = auto_classes(entry)
    config = attempt(lambda: AutoConfig.from_pretrained(entry["path"], **pin(entry)), entry)
    processor = attempt(lambda: processor_class.from_pretrained(entry["path"], **pin(entry)), entry)

    def names(model):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import Chunk, WeightRenaming, rename_source_key

        rules, known_names = get_model_conversion_mapping(model), model.state_dict()
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        splits = [rule for rule in rules if rule not in renamings]  # DINOv2's gated MLP, once one matrix
        assert all(
            len(rule.source_patterns) == len(rule.operations) == 1 and isinstance(rule.operations[0], Chunk)
            for rule in splits
        ), rules

        def rename(name):
            new, split = rename_source_key(name, renamings, splits, model.base_model_prefix, known_names)
            if new not in known_names and name in known_names:  # written after the renaming
                return name, None
            return new, next((rule for rule in splits if split in rule.source_patterns), None)

        def own(name):
            new, split = rename(name)
            return (
                [new.replace(split.target_patterns[0], target) for target in split.target_patterns]
                if split
                else [new]
            )

        def parts(name, tensor):
            _, split = rename(name)
            return tensor.chunk(len(split.target_patterns), split.operations[0].dim) if split else [tensor]

        return own, parts

    return lambda: model_class.from_config(config, dtype=dtype), processor, names


def config_of(entry):
    """config.json as a dict."""

    def read():
        path = hub_file(entry, "config.json")
        if path is None:
            raise FileNotFoundError("there is no config.json")
        return json.loads(path.read_text())

    return attempt(read, entry)


def cogvlm2_layout(entry, dtype):
    """Our own port, for the code on the hub needs xformers and triton; it has the names of the checkpoint. The processor is the tokenizer."""
    from transformers import AutoTokenizer

    try:
        from cogvlm2 import CogVLM2
    except ImportError:
        refuse(f"cogvlm2.py is not beside {__file__}; copy it there, {entry['name']} needs it")
    config = config_of(entry)
    tokenizer = attempt(lambda: AutoTokenizer.from_pretrained(entry["path"], **pin(entry)), entry)

    def build():
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # of parameters alone: the rotary frequencies stay fp32
        try:
            return CogVLM2(config)
        finally:
            torch.set_default_dtype(before)

    return build, tokenizer, lambda model: (lambda name: [name],)


def _internvl2_config(old):
    """InternVL2's own config.json (InternViT and InternLM2, Chen et al. 2024) as the native class's."""
    from transformers import InternVLConfig, LlamaConfig

    v, t = old["vision_config"], old["llm_config"]
    vision = {
        k: v[k]
        for k in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "norm_type",
            "layer_norm_eps",
            "hidden_act",
        )
    }
    vision |= {
        "image_size": [v["image_size"]] * 2,
        "patch_size": [v["patch_size"]] * 2,
        "attention_bias": v["qkv_bias"],
        "use_qk_norm": v["qk_normalization"],
        "use_mean_pooling": True,
    }
    text = {
        k: t[k]
        for k in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "rms_norm_eps",
            "hidden_act",
            "max_position_embeddings",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
        )
    }
    scaling = t.get("rope_scaling") or {}
    rope = {
        "rope_type": scaling.get("type", "default"),
        "rope_theta": float(t["rope_theta"]),
        **({"factor": scaling["factor"]} if scaling else {}),
    }
    return InternVLConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text, rope_parameters=rope, tie_word_embeddings=False).to_dict(),
        downsample_ratio=old["downsample_ratio"],
        vision_feature_layer=old["select_layer"],
        image_token_id=old.get("img_context_token_id", t["vocab_size"] - 1),
        tie_word_embeddings=False,
    )


INTERNVL2_KEYS = [  # (original, native): applied in order as regular expressions
    (r"^vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (
        r"^vision_model\.embeddings\.patch_embedding",
        "model.vision_tower.embeddings.patch_embeddings.projection",
    ),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.([qk])_norm\.", r".attention.\1_norm."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.output\.", "lm_head."),
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
]


def _internvl2_names(name):
    """The native names of a weight of the original layout: renamed, and those of fused projections three."""
    for old, new in INTERNVL2_KEYS:
        name = re.sub(old, new, name)
    if ".attn.qkv." in name:
        return [name.replace("attn.qkv", f"attention.{x}_proj") for x in "qkv"]
    if ".attention.wqkv." in name:
        return [name.replace("attention.wqkv", f"self_attn.{x}_proj") for x in "qkv"]
    return [name]


def _internvl2_parts(name, tensor, config):
    """The weights that a weight of the original layout becomes, one for each name."""
    if ".attn.qkv." in name:
        return tensor.chunk(3)
    if ".attention.wqkv." in name:  # for every key-value head: its query heads, the key, the value
        groups = config.text_config.num_key_value_heads
        per = config.text_config.num_attention_heads // groups
        return [
            part.flatten(0, 2) for part in tensor.unflatten(0, (groups, per + 2, -1)).split([per, 1, 1], 1)
        ]
    return [tensor]


def internvl2_layout(entry, dtype):
    """InternVL2 in its original layout, through a key map onto the native class. No processor: its tokenizer needs code from the hub, which we do
    not run, and the picture's rows need none of its words."""
    from transformers import InternVLForConditionalGeneration

    old = config_of(entry)
    if old["llm_config"].get("model_type", "internlm2") != "internlm2":
        refuse(
            f"{entry['path']} has a language model of type {old['llm_config']['model_type']!r}; InternVL2's 8B and 26B have internlm2, for others take an InternVL3 in the native layout"
        )
    config = _internvl2_config(old)
    return (
        lambda: InternVLForConditionalGeneration._from_config(config, dtype=dtype),
        None,
        lambda model: (_internvl2_names, lambda name, tensor: _internvl2_parts(name, tensor, config)),
    )


OWN_LAYOUT = {"cogvlm2": cogvlm2_layout, "internvl_chat": internvl2_layout}
LOADERS = {
    "vlm": load_vlm,
    "encoder": load_encoder,
    "language": load_language,
    "vae": load_video_vae,
    "video": load_video_pipeline,
}


# ---------------------------------------------------------------- what is put to a vision-language model

# Frames a second of a clip that states none: the rate at which Qwen2.5-VL samples videos. The library's
# default is 24, at which all time steps would share one position.
RATE = 2.0


def chat(processor, words, kind="image", count=1):
    """The prompt as text, by the model's chat template: placeholders of `count` pictures, or of a video, then the words."""
    return processor.apply_chat_template(
        [{"role": "user", "content": [{"type": kind}] * count + [{"type": "text", "text": words}]}],
        tokenize=False,
        add_generation_prompt=True,
    )


def qwen_inputs(processor, frames, words, at=None, album=False):
    """The inputs of a model of Qwen's families for pictures (T = 1) or clips, uint8 [n,T,H,W,3], with the same words for each. album: the T frames are single pictures of any shapes, not a clip.

    at: (numbers of these frames in their clips, length of the clips, and frames a second if not RATE), where only some frames of a clip are shown: the positions in time then say how far
    apart they are.
    """
    count, x = len(frames[0]), [[f.permute(2, 0, 1) for f in film] for film in frames]
    still = album or count == 1
    text = chat(processor, words, "image", count) if still else chat(processor, words, "video")
    # no resizing: frames have the right size already; Qwen3-VL counts all of a clip
    size = {
        "size": {"shortest_edge": 1, "longest_edge": count * max(f[0].numel() for film in x for f in film)}
    }
    numbers, whole, rate = (*(at or (range(count), count)), RATE)[:3]
    media = (
        {"images": x, "images_kwargs": size}
        if still
        else {
            "videos": [torch.stack(film) for film in x],
            "videos_kwargs": {"do_sample_frames": False, "cap_pixels_per_frame": False, **size},
            "video_metadata": [{"fps": rate, "total_num_frames": whole, "frames_indices": list(numbers)}]
            * len(x),
        }
    )
    return processor(text=[text] * len(x), return_tensors="pt", **media)


# ---------------------------------------------------------------- features on disk


def load_features(folder):
    """(index, read): the index of a features folder, and read(point) -> fp32 [n, t, h, w, D] in the index's order of ids."""
    folder = Path(folder)
    index = load_yaml(folder / "index.yaml", "extract")
    if index.get("schema") != FEATURES:
        refuse(
            f"{folder}/index.yaml has schema {index.get('schema')!r} where {FEATURES!r} is wanted; run extract.py again"
        )

    def read(point):
        known(point, index["points"], f"point in {folder}")
        parts = [load_pt(folder / point / f"{i:05d}.pt", FEATURES) for i in range(index["shards"])]
        if [i for p in parts for i in p["ids"]] != index["ids"]:
            refuse(
                f"the shards of {folder}/{point} do not hold the ids of its index.yaml; delete the folder and run extract.py again"
            )
        x = torch.cat([p["features"] for p in parts]).float()  # on a CPU fp16 products are ~250 times slower
        if not x.isfinite().all():
            refuse(
                f"{folder}/{point} holds {int((~x.isfinite()).sum())} non-finite values; extract again in bf16 or fp32, or leave the point out"
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
        refuse(
            f"{folder} has features of {missing[0]!r} (and {len(missing) - 1} more) that {index['data_path']} lacks; extract again or give the right --data"
        )
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

    suspects = [
        g for g in groups([k for k, i in enumerate(items) if "frames" in i or "encoded" in i], middle)
    ]
    same = [g for s in suspects for g in groups(s, lambda k: hashlib.sha256(content(k).numpy()).digest())]
    return [g for g in same if content(g[0]).min() != content(g[0]).max()]


def split_indices(items, folder, least=4):
    """{train, val, test: indices}, by source. Refused are a part that is too small to say anything and a split leak: one item, or one picture, in two parts."""
    names = [i["id"] for i in items if "id" in i]
    if len(set(names)) < len(names):
        refuse(
            f"split leak: {folder} holds {next(n for n in names if names.count(n) > 1)!r} more than once; give every item an id of its own, or leave one out"
        )
    for group in twins(items):
        splits = {split_of(items[k]["source"]): k for k in group}
        if len(splits) > 1:
            (one, a), (other, b) = list(splits.items())[:2]
            refuse(
                f"split leak: {items[a]['id']!r} ({one}) and {items[b]['id']!r} ({other}) of {folder} are one picture under two sources "
                f"({len(group)} items hold it); give them the same source, or leave all but one out"
            )
    parts = {
        s: torch.tensor([k for k, i in enumerate(items) if split_of(i["source"]) == s], dtype=torch.long)
        for s in ("train", "val", "test")
    }
    for name, part in parts.items():
        if len(part) < least:
            refuse(
                f"{folder}: only {len(part)} of {len(items)} items fall in the {name} split, at least {least} are needed; use more items"
            )
    return parts


# ---------------------------------------------------------------- statistics


def clusters(sources):
    """Index of each item's source: [n] in 0 .. C-1."""
    names = {s: i for i, s in enumerate(dict.fromkeys(sources))}
    return torch.tensor([names[s] for s in sources])


def widened(mean, low, high, n, tail=0.025):
    """A percentile interval (95%, or `tail` left out on either side) from resampling n sources, made as wide as Student's t asks: (low, high).

    Percentiles are too narrow by sqrt((n - 1) / n), and are those of a normal distribution where few sources need the t of n - 1 degrees (Hesterberg 2015,
    section 3.2): by 2% at n = 100, by 11% at 18, by half at 5. A single source says nothing of others: no bounds.
    """
    from scipy.special import ndtri, stdtrit

    if n < 2:
        return -math.inf, math.inf
    factor = float(stdtrit(n - 1, 1 - tail) / ndtri(1 - tail)) * (n / (n - 1)) ** 0.5
    return mean - factor * (mean - low), mean + factor * (high - mean)


def resampled(n, n_boot, g):
    """How often each of n sources is drawn in each of n_boot resamples with replacement, [n_boot, n]."""
    return torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(
        1, torch.randint(n, (n_boot, n), generator=g), torch.ones(1, dtype=torch.float64).expand(n_boot, n)
    )


def bootstrap(scores, sources, n_boot=2000, seed=0):
    """Mean and 95% interval of `scores` [n] or [seeds, n], resampling sources (and seeds) with replacement: percentiles, `widened`.

    Items of one source stay together (cluster bootstrap; Field & Welsh 2007).
    """
    scores = torch.as_tensor(scores, dtype=torch.float64)
    scores = scores[None] if scores.ndim == 1 else scores
    cluster = clusters(sources)
    count = torch.bincount(cluster).double()
    total = torch.zeros(len(scores), len(count), dtype=torch.float64).index_add_(1, cluster, scores)
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(count), n_boot, g)
    means = (weights @ total.T) / (weights @ count)[:, None]  # [n_boot, seeds]
    picked = (
        torch.randint(len(scores), means.shape, generator=g)
        if len(scores) > 1
        else torch.zeros_like(means, dtype=torch.long)
    )
    means = means.gather(1, picked).mean(1)
    mean = scores.mean().item()
    return mean, *widened(
        mean, *means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), len(count)
    )


def with_bounds(name, values):
    """{name, name_low, name_high} of (mean, low, high)."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def paired_test(a, b, sources, n_perm=2000, seed=0):
    """Mean of a - b with a cluster-bootstrap interval and a two-sided p-value from flipping the sign of whole sources.

    a, b: [n] or [seeds, n] scores of the same items. p is (1 + exceedances) / (1 + n_perm) (Phipson & Smyth 2010).
    """

    def per_item(x):
        x = torch.as_tensor(x, dtype=torch.float64)
        return x if x.ndim == 1 else x.mean(0)

    difference = per_item(a) - per_item(b)
    mean, low, high = bootstrap(difference, sources, seed=seed)
    cluster = clusters(sources)
    total = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(0, cluster, difference)
    signs = (
        torch.randint(2, (n_perm, len(total)), generator=torch.Generator().manual_seed(seed)).double() * 2 - 1
    )
    exceed = ((signs @ total).abs() >= total.sum().abs() - 1e-12).sum().item()
    return {"gain": mean, "gain_low": low, "gain_high": high, "p": (1 + exceed) / (1 + n_perm)}


def ratio(own, real):
    """Values per item whose mean is the ratio of the means of own [n] or [seeds, n] and of real [n], so that resampling items gives its interval (linearised; Cochran 1977, section 6.4).
    The mean of ratios would be ruled by the items whose `real` is smallest. None where all of real is zero."""
    whole = own.mean() / real.mean()
    return whole + (own - whole * real) / real.mean() if real.mean() > 0 else None


def holm(p_values):
    """Holm's step-down adjustment (Holm 1979): {name: p} -> {name: adjusted p}."""
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda kv: kv[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def known_too_well(gain_low, floor, ceiling):
    """Does a control beat the floor that bounds what it can know by more than a tenth of the room above that floor? gain_low: the lower end of the interval of its gain."""
    return gain_low > 0.1 * abs(ceiling - floor)


def criterion(scores, floors, sources, ceiling=1.0, better="higher", seed=0, blind=None, **more):
    """One score as every stage records it: interval, best floor, paired gain over that floor, ceiling and skill.

    scores: [n] or [seeds, n], a value per test item; floors: {name: the same}. `better` says which way is good; the gain is positive when good.
    blind: the floor that sees no features, and so bounds what shuffled labels can score. Where they score higher all the same, the answer leaks in some other way, say by a normaliser that
    was fitted on it, and `leak` is "shuffled".
    """
    sign = 1 if better == "higher" else -1
    mean, low, high = bootstrap(scores, sources, seed=seed)
    floor_means = {name: bootstrap(f, sources, n_boot=1)[0] for name, f in floors.items()}
    best = max(floor_means, key=lambda name: sign * floor_means[name])

    def against(own, name):
        return paired_test(
            sign * torch.as_tensor(own, dtype=torch.float64),
            sign * torch.as_tensor(floors[name], dtype=torch.float64),
            sources,
            seed=seed,
        )

    gain = against(scores, best)
    room = ceiling - floor_means[best]
    leak = blind and known_too_well(
        against(floors["shuffled"], blind)["gain_low"], floor_means[blind], ceiling
    )
    return {
        "score": mean,
        "low": low,
        "high": high,
        "better": better,
        "n": len(sources),
        "sources": len(set(sources)),
        "floor": floor_means[best],
        "floor_name": best,
        "ceiling": ceiling,
        "skill": (mean - floor_means[best]) / room if sign * room > 0 else None,
        **gain,
        "mde": detectable(gain["gain_low"], gain["gain_high"]),
        "leak": "shuffled" if leak else None,
        **more,
        "floors": floor_means,
    }


def detectable(low, high):
    """The smallest gain that a two-sided test at 5% finds with a power of 80% at this n: (1.96 + 0.84) standard errors, of which a 95% interval has 2 x 1.96."""
    return (1.96 + 0.84) * (high - low) / (2 * 1.96)


# ---------------------------------------------------------------- linear maps

# times the mean eigenvalue, so that scaling the features changes nothing
PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)


def spectrum(kernels, train):
    """What ridge regression needs to know of L feature matrices: (kernel [L, n, m] centred on the m items `train`, eigenvalues [L, m], eigenvectors [L, m, m]).

    kernels: inner products of all items with all items [L, n, n], or with those of `train` alone [L, n, m < n], of any centring. fp64; one batched `eigh`.
    """
    k = (kernels[..., train] if kernels.shape[1] == kernels.shape[2] else kernels).double()
    rows, columns = k.mean(2, keepdim=True), k[:, train].mean(1, keepdim=True)
    k = k - rows - columns + columns.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(k[:, train])
    return k, values.clamp(min=0), vectors


def solve_ridge(k, values, vectors, targets, train):
    """Dual ridge regression of every layer on every task, the penalty of each by exact leave-one-out: {task: (predictions [L, n, c], its errors [L, c])}.

    targets {task: [n, c]}; the errors are mean squares of the left-out. Leave-one-out: e_i / (1 - H_ii), H = 11'/m + K (K + aI)^-1 (Golub, Heath & Wahba 1979).
    """
    y = torch.cat(list(targets.values()), 1).double()
    mean = y[train].mean(0)
    y = y[train] - mean
    coordinates = vectors.mT @ y  # [L, m, C]
    scale = values.mean(1).clamp(min=1e-300)
    penalties = PENALTIES.to(scale.device) * scale[:, None]  # [L, P]
    shrink = values[..., None] / (values[..., None] + penalties[:, None])  # [L, m, P]
    hat = 1 / len(train) + vectors.square() @ shrink
    # all penalties in one product
    fitted = vectors @ (shrink[..., None] * coordinates[:, :, None]).flatten(2)
    residual = (y[:, None] - fitted.unflatten(2, (len(PENALTIES), -1))) / (1 - hat).clamp(min=1e-9)[..., None]
    errors, out, first = residual.square().mean(1), {}, 0  # [L, P, C]
    for task, t in targets.items():
        part = slice(first, first := first + t.shape[1])
        every, best = torch.arange(len(k)), errors[..., part].mean(2).argmin(1)  # [L]
        found = (
            k @ (vectors @ (coordinates[..., part] / (values + penalties[every, best][:, None])[..., None]))
            + mean[part]
        )
        out[task] = found.float(), errors[every, best, part]
    return out


def ridge(x, targets, train):
    """Dual ridge with an unpenalised intercept, one Gram matrix and one `eigh` for all tasks and penalties. x [n, d] fp32 -> {task: predictions [n, c]}."""
    x = x - x[train].mean(0)
    kernel = x @ (x[train] if len(train) < len(x) else x).T
    return {
        task: found[0]
        for task, (found, _) in solve_ridge(*spectrum(kernel[None], train), targets, train).items()
    }


def token_ridge(x, targets, train, val):
    """Primal ridge from every token to its own target; the penalty of every task by the error on the validation items.

    x [n, K, d]; targets {task: [n, K, c]}. Returns {task: predictions [n, K, c]}. Leave-one-token-out would leak: neighbours share a picture.
    """
    x = x - x[train].mean((0, 1))
    rows, y = x[train].flatten(0, 1), torch.cat(list(targets.values()), -1)
    centre = y[train].mean((0, 1))
    values, vectors = torch.linalg.eigh((rows.T @ rows).double())
    values = values.clamp(min=0)
    coordinates = vectors.T @ (rows.T @ (y[train] - centre).flatten(0, 1)).double()
    penalties = PENALTIES.to(values.device) * values.mean().clamp(min=1e-300)
    turned, wanted = x[val].flatten(0, 1) @ vectors.float(), (y[val] - centre).flatten(0, 1)
    # [penalties, C]
    errors = torch.stack(
        [
            (turned @ (coordinates / (values + p)[:, None]).float() - wanted).square().mean(0)
            for p in penalties
        ]
    )
    widths = [t.shape[-1] for t in targets.values()]
    best = torch.stack([e.mean(1).argmin() for e in errors.split(widths, 1)]).repeat_interleave(
        torch.tensor(widths)
    )
    weight = (vectors @ (coordinates / (values[:, None] + penalties[best]))).float()
    return dict(zip(targets, (x @ weight + centre).split(widths, -1), strict=True))


# ---------------------------------------------------------------- boxes, masks, detection


def box_areas(a, b):
    """Areas of intersection and union of matching rows: a, b [..., 4] xyxy -> [...], [...]. Empty or reversed boxes have none."""
    inter = (
        (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    )
    area_a, area_b = (x[..., 2:].sub(x[..., :2]).clamp(min=0).prod(-1) for x in (a, b))
    return inter, (area_a + area_b - inter).clamp(min=1e-9)


def box_iou(a, b):
    """IoU of matching rows: a, b [..., 4] xyxy -> [...]. Empty or reversed boxes have IoU 0."""
    inter, union = box_areas(a, b)
    return inter / union


def mask_iou(a, b):
    """IoU of boolean masks [n, H, W] -> [n]; two empty masks agree (1)."""
    inter, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(union > 0, inter / union.clamp(min=1), 1.0)


def coco_ap50(truth, predictions, n_boot=200, seed=0, sources=None):
    """mAP at IoU 0.5 by pycocotools, with a 95% interval (percentiles) from resampling images, those of one source together.

    truth: per image (boxes [m,4] xyxy, classes [m]); predictions: per image (boxes [q,4], classes [q], scores [q]).
    Returns (ap, low, high, the resampled values, in the same order of resamples for every call). Images are matched once; a resample only accumulates again.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    classes = sorted({int(c) for _, cs in truth for c in cs})

    def coco_of(images):
        coco, rows = COCO(), []
        for i, (boxes, cs, *scores) in enumerate(images):
            for (x1, y1, x2, y2), c, *score in zip(
                boxes.tolist(), cs.tolist(), *(s.tolist() for s in scores), strict=True
            ):
                w, h = max(x2 - x1, 0), max(y2 - y1, 0)
                rows.append(
                    {
                        "id": len(rows) + 1,
                        "image_id": i,
                        "category_id": int(c),
                        "bbox": [x1, y1, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                    | dict(zip(["score"], score, strict=False))
                )
        coco.dataset = {
            "images": [{"id": i} for i in range(len(images))],
            "categories": [{"id": c} for c in classes],
            "annotations": rows,
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(None):
        run = COCOeval(coco_of(truth), coco_of(predictions), "bbox")
        run.params.iouThrs, run.params.maxDets = np.array([0.5]), [1, 10, 100]
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
        run.evaluate()
        matched = np.array(run.evalImgs, dtype=object).reshape(len(classes), len(truth))
        rng = np.random.default_rng(seed)

        def ap(pick):
            run.evalImgs = matched[:, pick].reshape(-1).tolist()
            run.params.imgIds = run._paramsEval.imgIds = list(range(len(pick)))
            run.accumulate()
            precision = run.eval["precision"][0, :, :, 0, -1]
            return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0

        value = ap(np.arange(len(truth)))
        cluster = clusters(range(len(truth)) if sources is None else sources).numpy()
        members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))[:-1])
        draws = [
            ap(np.concatenate([members[c] for c in rng.integers(0, len(members), len(members))]))
            for _ in range(n_boot)
        ]
    return value, *(np.quantile(draws, [0.025, 0.975]).tolist() if draws else (value, value)), draws


# ---------------------------------------------------------------- truth beside the pictures

MASK = 48  # pixels a side of a decoded mask


def box_truth(items):
    """Boxes in 0..1 of the picture: the largest one [n,4]; per item all of them with class numbers; the class names."""
    size = [torch.tensor([i["width"], i["height"]] * 2) for i in items]
    every = [i["boxes"] / s for i, s in zip(items, size, strict=True)]
    largest = torch.stack([b[(b[:, 2:] - b[:, :2]).prod(1).argmax()] for b in every])
    names = sorted({label for i in items for label in i["labels"]})
    return (
        largest,
        [(b, torch.tensor([names.index(n) for n in i["labels"]])) for b, i in zip(every, items, strict=True)],
        names,
    )


# What the ninths of a picture are called (as data.py's place_word does), and the ways something moves: rows
# from top to bottom, columns from left to right.
WORDS = {
    "place": (
        ("top left", "top", "top right"),
        ("left", "middle", "right"),
        ("bottom left", "bottom", "bottom right"),
    ),
    "direction": (
        ("up left", "up", "up right"),
        ("left", "still", "right"),
        ("down left", "down", "down right"),
    ),
}


def asked_object(item):
    """(number, name) of the object that questions are about: of a picture the largest, of a clip the one that moves, the last. None where there is no object,
    or where its name stands for another one too."""
    names = item.get("names", item["labels"])
    if not names:
        return None
    k = (
        len(names) - 1
        if "direction" in item
        else int((item["boxes"][:, 2:] - item["boxes"][:, :2]).prod(1).argmax())
    )
    return (k, names[k]) if names.count(names[k]) == 1 else None


def foreground(items, side):
    """Foreground of every item, [n, side, side] in 0..1 by area: masks where they exist, else the union of the boxes."""
    out = []
    for item in items:
        if "mask" in item:
            mask = (item["mask"] > 0).float()
        else:
            mask = torch.zeros(item["height"], item["width"])
            for x1, y1, x2, y2 in item["boxes"].round().int().tolist():
                mask[y1:y2, x1:x2] = 1
        out.append(torch.nn.functional.adaptive_avg_pool2d(mask[None], side)[0])
    return torch.stack(out)


def caption(item):
    """The prompt for a film of this clip: where object and direction are known, in the words that the small pipeline was taught, else the item's own text."""
    return (
        f"the {item['names'][-1]} moves {item['direction']}"
        if item.get("names") and "direction" in item
        else item.get("text")
    )


# ---------------------------------------------------------------- which way something goes in a film


def whereabouts(frames, masks):
    """Follow an object by its colour through frames uint8 [n,T,H,W,3]: its centre [n,T,2] (x, y; pixels), nan where too little of that colour is left. masks [n,H,W]: where it is in the first
    frame."""
    first, masks = frames[:, 0].float(), masks.float()[..., None]
    colour = (first * masks).sum((1, 2)) / masks.sum((1, 2))
    near = (-((frames.float() - colour[:, None, None, None]).square().sum(-1) / 60**2)).exp()
    near = torch.where(near > 0.3, near, 0)
    near = near * (near.sum((2, 3), keepdim=True) > 0.4 * masks.sum((1, 2))[:, None, None])
    y, x = torch.meshgrid(*(torch.arange(s) + 0.5 for s in frames.shape[2:4]), indexing="ij")
    return torch.stack([(near * c).sum((2, 3)) / near.sum((2, 3)) for c in (x, y)], -1)


def heading(centres):
    """The word for the way from the first to the last of centres [n,T,2]: the nearest of eight directions, "still" below 0.7 pixels, "" where a centre is nan."""
    ways = {
        word: (column - 1, row - 1)
        for row, words in enumerate(WORDS["direction"])
        for column, word in enumerate(words)
        if word != "still"
    }
    vectors = torch.nn.functional.normalize(torch.tensor(list(ways.values())).float(), dim=1)
    way = centres[:, -1] - centres[:, 0]
    return [
        "" if v.isnan().any() else "still" if v.norm() < 0.7 else list(ways)[int((vectors @ v).argmax())]
        for v in way
    ]


# ---------------------------------------------------------------- cells: what belongs to one token


def to_cells(maps, h, w):
    """[n, c, h*s, w*s] -> [n, h*w, c*s*s]: what every token of an h x w grid has to predict."""
    n, c, height, width = maps.shape
    return maps.reshape(n, c, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, -1)


def from_cells(cells, h, w, channels, side):
    """The inverse of `to_cells`, then resized to side x side (bilinear)."""
    s = round((cells.shape[-1] / channels) ** 0.5)
    maps = (
        cells.reshape(len(cells), h, w, channels, s, s)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(len(cells), channels, h * s, w * s)
    )
    return torch.nn.functional.interpolate(
        maps, (side, side), mode="bilinear", align_corners=False, antialias=True
    )


def mask_scores(soft, truth, split):
    """IoU per item of the soft mask above a threshold: that with the highest mean IoU on val."""
    val, levels = split["val"], torch.linspace(0.1, 0.9, 17)
    best = torch.stack([mask_iou(soft[val] > level, truth[val]).mean() for level in levels]).argmax()
    return mask_iou(soft > levels[best], truth)


# ---------------------------------------------------------------- set prediction (DETR, Carion et al. 2020), all seeds in one batched network


class SetProbe(torch.nn.Module):
    """Queries attend to frozen tokens and say (box, class or nothing). Every parameter carries a leading axis of runs: of J jobs (their tokens), S seeds each.

    A query's box is centred where its attention lies, plus a learned offset: positions need not be memorised. `softplus` [J]: the jobs whose sizes are
    coded by a softplus instead of a sigmoid.
    """

    def __init__(self, tokens, grid, dim, classes, seeds, queries=6, width=48, seed=0, softplus=(False,)):
        super().__init__()
        g, jobs = torch.Generator().manual_seed(seed), len(softplus)
        self.register_buffer("softplus", torch.tensor(softplus).repeat_interleave(seeds)[:, None, None, None])

        def weight(*shape, scale=None):
            one = torch.randn(seeds, *shape, generator=g) * (scale or shape[-2] ** -0.5)
            return torch.nn.Parameter(one.repeat(jobs, *[1] * len(shape)))  # the same start for every job

        h, w = grid
        ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        self.register_buffer("centres", torch.stack([xs, ys], -1).reshape(-1, 2))  # [K, 2]
        self.embed = weight(dim, width)
        self.position = weight(tokens, width, scale=0.1)
        self.query = weight(queries, width, scale=1.0)
        self.ask, self.key, self.value = (weight(2, width, width) for _ in range(3))
        self.up, self.down = weight(2, width, 2 * width), weight(2, 2 * width, width)
        self.box, self.name = weight(width, 4, scale=0.01), weight(width, classes + 1)
        self.heads = 4

    def forward(self, x):
        """x [J, n, K, D] -> boxes [J * S, n, Q, 4] xyxy in 0..1 of the picture, logits [J * S, n, Q, classes + 1] (last: nothing)."""
        t = (
            torch.einsum("jnkd,jsdm->jsnkm", x, self.embed.unflatten(0, (len(x), -1))).flatten(0, 1)
            + self.position[:, None]
        )
        q = self.query[:, None].expand(-1, x.shape[1], -1, -1)
        norm = torch.nn.functional.layer_norm
        for layer in range(2):
            parts = [
                z.unflatten(-1, (self.heads, -1)).transpose(-2, -3)
                for z in (
                    torch.einsum("snqm,smo->snqo", norm(q, q.shape[-1:]), self.ask[:, layer]),
                    torch.einsum("snkm,smo->snko", t, self.key[:, layer]),
                    torch.einsum("snkm,smo->snko", t, self.value[:, layer]),
                )
            ]
            # [S, n, heads, Q, K]
            attention = (parts[0] @ parts[1].transpose(-1, -2) * parts[0].shape[-1] ** -0.5).softmax(-1)
            q = q + (attention @ parts[2]).transpose(-2, -3).flatten(-2)
            hidden = torch.einsum("snqm,smo->snqo", norm(q, q.shape[-1:]), self.up[:, layer]).relu()
            q = q + torch.einsum("snqm,smo->snqo", hidden, self.down[:, layer])
        q = norm(q, q.shape[-1:])
        code = torch.einsum("snqm,smo->snqo", q, self.box)
        centre = (attention.mean(2) @ self.centres).logit(1e-4) + code[..., :2]
        size = torch.where(
            self.softplus, torch.nn.functional.softplus(code[..., 2:] - 1), (code[..., 2:] - 1).sigmoid()
        )
        centre = centre.sigmoid()
        return torch.cat([centre - size / 2, centre + size / 2], -1), torch.einsum(
            "snqm,smo->snqo", q, self.name
        )


def giou_loss(a, b):
    """1 - generalised IoU of matching rows (Rezatofighi et al. 2019)."""
    hull = (
        (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2]))
        .clamp(min=0)
        .prod(-1)
        .clamp(min=1e-9)
    )
    inter, union = box_areas(a, b)
    return 1 - inter / union + (hull - union) / hull


def set_loss(boxes, logits, truth):
    """DETR's loss: Hungarian matching (scipy), then 5 L1 + 2 GIoU + cross-entropy with weight 0.1 on `nothing`. -> [S] losses, one a run.

    truth: per item (boxes [m,4], classes [m]), or one such list for each of J jobs, whose S / J runs stand together.
    """
    from scipy.optimize import linear_sum_assignment

    seeds, n, queries, classes = logits.shape
    jobs = truth if isinstance(truth[0], list) else [truth]
    with torch.no_grad():
        width = max(1, *(len(b) for job in jobs for b, _ in job))
        # [J, n, m, 4]
        padded = torch.stack(
            [
                torch.stack([torch.nn.functional.pad(b, (0, 0, 0, width - len(b))) for b, _ in job])
                for job in jobs
            ]
        )
        names = torch.stack(
            [torch.stack([torch.nn.functional.pad(c, (0, width - len(c))) for _, c in job]) for job in jobs]
        )
        padded, names = (z.repeat_interleave(seeds // len(jobs), 0).to(boxes.device) for z in (padded, names))
        a, b = boxes[:, :, :, None], padded[:, :, None]
        cost = (
            5 * (a - b).abs().sum(-1)
            + 2 * giou_loss(a, b)
            - logits.softmax(-1).gather(-1, names[:, :, None].expand(seeds, n, queries, width))
        )
        cost, count = cost.cpu().numpy(), [[len(c) for _, c in job] for job in jobs]
    # rows (run, item, query) and the true box each stands for
    picked = [
        (s, i, q, j)
        for s in range(seeds)
        for i in range(n)
        for q, j in zip(
            *linear_sum_assignment(cost[s, i, :, : count[s * len(jobs) // seeds][i]]), strict=True
        )
    ]
    s, i, q, j = torch.tensor(picked, device=boxes.device).reshape(-1, 4).T
    target = torch.full((seeds, n, queries), classes - 1, device=boxes.device).index_put(
        (s, i, q), names[s, i, j]
    )
    found, wanted = boxes[s, i, q], padded[s, i, j]
    per_box = 5 * (found - wanted).abs().sum(-1) + 2 * giou_loss(found, wanted)
    matched = torch.bincount(s, minlength=seeds).clamp(min=1)
    regression = torch.zeros(seeds, device=boxes.device).index_add(0, s, per_box) / matched
    weight = torch.where(target == classes - 1, 0.1, 1.0)
    entropy = torch.nn.functional.cross_entropy(
        logits.flatten(0, 2), target.flatten(), reduction="none"
    ).view_as(weight)
    return regression + (entropy * weight).sum((1, 2)) / weight.sum((1, 2))


def train_set_probe(
    x, grid, truth, classes, train, val, seeds=5, epochs=40, batch=50, seed=0, softplus=(False,)
):
    """Train the probe with early stopping on the validation loss, run by run. x [n, K, D]; truth per item (boxes [m,4] in 0..1, classes [m]).

    Several jobs at once, S = J x seeds: x [J, n, K, D], a list of truths, `softplus` of J entries. Returns predict(x, last=False) -> (boxes [S,n,Q,4],
    classes [S,n,Q], scores [S,n,Q]), with `last` of the weights after the last step; the same standardisation is applied to any x.
    """
    x, truth = (x, truth) if x.ndim == 4 else (x[None], [truth])
    mean = x[:, train].mean((1, 2), keepdim=True)
    std = x[:, train].flatten(1, 2).std(1).clamp(min=1e-6)[:, None, None]
    x = (x - mean) / std
    model = SetProbe(x.shape[2], grid, x.shape[3], classes, seeds, seed=seed, softplus=softplus)
    steps = epochs * max(len(train) // batch, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    g = torch.Generator().manual_seed(seed)
    best, kept = torch.full((len(x) * seeds,), float("inf")), [p.detach().clone() for p in model.parameters()]
    for step in range(steps):
        pick = train[torch.randperm(len(train), generator=g)[:batch]]
        loss = set_loss(*model(x[:, pick]), [[job[i] for i in pick] for job in truth])
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # runs share no parameter, so each gets its own gradient
        optimizer.step()
        schedule.step()
        if (step + 1) % (5 * max(len(train) // batch, 1)) == 0 or step + 1 == steps:
            with torch.no_grad():
                loss = set_loss(*model(x[:, val]), [[job[i] for i in val] for job in truth])
            better = loss < best
            best = torch.where(better, loss, best)
            for old, new in zip(kept, model.parameters(), strict=True):
                old[better] = new.detach()[better]
    weights = {
        last: dict(zip((name for name, _ in model.named_parameters()), w, strict=True))
        for last, w in ((False, kept), (True, list(model.parameters())))
    }

    @torch.no_grad()
    def predict(x, last=False):
        boxes, logits = torch.func.functional_call(
            model, weights[last], (((x if x.ndim == 4 else x[None]) - mean) / std,)
        )
        scores, names = logits.softmax(-1)[..., :-1].max(-1)
        return boxes.clamp(0, 1), names, scores

    return predict


def ap_runs(predict, x, truth, pick, n_boot=100, sources=None):
    """mAP@0.5 of every run on items `pick` of tokens x [n, K, D] (or of J jobs): {ap [S], draws [S, n_boot]}, equal resamples (of the items' sources) for every run."""
    boxes, names, scores = predict(x[..., pick, :, :])
    true = [(truth[i][0] * 1000, truth[i][1]) for i in pick]
    runs = [
        coco_ap50(true, list(zip(boxes[s] * 1000, names[s], scores[s], strict=True)), n_boot, sources=sources)
        for s in range(len(boxes))
    ]
    return {"ap": torch.tensor([r[0] for r in runs]), "draws": torch.tensor([r[3] for r in runs])}


def ap_criterion(own, floors, sources, ceiling=1.0, blind=None, **more):
    """mAP's record, like `criterion`: the interval from resampled sources pooled over seeds, the paired gain from equal resamples. sources: of every test item."""
    means = {k: f["ap"].mean().item() for k, f in floors.items()}
    best = max(means, key=means.get)
    gain = own["draws"].mean(0) - floors[best]["draws"].mean(0)
    q = torch.tensor([0.025, 0.975])
    score, (low, high), (gain_low, gain_high) = (
        own["ap"].mean().item(),
        own["draws"].flatten().quantile(q).tolist(),
        gain.quantile(q).tolist(),
    )
    n, count = len(sources), len(set(sources))
    low, high = widened(score, low, high, count)
    gain_low, gain_high = widened(score - means[best], gain_low, gain_high, count)
    tail = min((gain <= 0).sum().item(), (gain >= 0).sum().item())
    room = ceiling - means[best]
    leak = blind and known_too_well(
        (floors["shuffled"]["draws"] - floors[blind]["draws"]).mean(0).quantile(0.025).item(),
        means[blind],
        ceiling,
    )
    return {
        "score": score,
        "low": low,
        "high": high,
        "better": "higher",
        "n": n,
        "sources": count,
        "floor": means[best],
        "floor_name": best,
        "ceiling": ceiling,
        "skill": (score - means[best]) / room if room > 0 else None,
        "gain": score - means[best],
        "gain_low": gain_low,
        "gain_high": gain_high,
        "mde": detectable(gain_low, gain_high),
        "p": min(1.0, 2 * (1 + tail) / (1 + len(gain))),
        "seeds": len(own["ap"]),
        "seed_std": own["ap"].std().item(),
        "leak": "shuffled" if leak else None,
        **more,
        "floors": means,
    }


# ---------------------------------------------------------------- images


def ssim(a, b):
    """Structural similarity (Wang et al. 2004) by scikit-image: uint8 [n,H,W,3] pairs -> float64 [n]."""
    from skimage.metrics import structural_similarity

    return torch.tensor(
        [structural_similarity(x.numpy(), y.numpy(), channel_axis=-1) for x, y in zip(a, b, strict=True)],
        dtype=torch.float64,
    )


def edges(pictures):
    """Canny edges (scikit-image) of uint8 [n,H,W,3]: bool [n,H,W]."""
    from skimage.color import rgb2gray
    from skimage.feature import canny

    return torch.from_numpy(np.stack([canny(rgb2gray(x.numpy()), sigma=1.5) for x in pictures]))


def match_edges(a, b):
    """F1 of edge maps (predicted, true), bool [n,H,W] -> [n], matched one to one within 2 pixels.

    One-to-one, so that a thick blur of edges earns nothing (Martin, Fowlkes & Malik 2004). Two maps without edges agree (1).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import cKDTree

    out = []
    for x, y in zip(a, b, strict=True):
        p, q = np.argwhere(x.numpy()), np.argwhere(y.numpy())
        if len(p) == 0 or len(q) == 0:
            out.append(float(len(p) == len(q)))
            continue
        near = cKDTree(p).query_ball_point(q, 2.0)
        columns = np.concatenate([np.asarray(n, int) for n in near])
        rows = np.repeat(np.arange(len(q)), [len(n) for n in near])
        hits = (
            maximum_bipartite_matching(csr_matrix((np.ones(len(rows)), (rows, columns)), (len(q), len(p))))
            >= 0
        ).sum()
        out.append(2 * hits / (len(p) + len(q)))
    return torch.tensor(out, dtype=torch.float64)


def edge_f1(a, b):
    """`match_edges` of the Canny edges of pictures: uint8 [n,H,W,3] (predicted, true) -> [n]."""
    return match_edges(edges(a), edges(b))


def lpips_model(device="cpu"):
    """(module, name): LPIPS with AlexNet (Zhang et al. 2018), of pictures [n,3,H,W] in -1..1.

    The package ships the linear heads; the backbone comes from torch's cache or the network. Without either the backbone is random
    (seeded) and the name is `lpips_random_backbone`: that number never stands against a published threshold.
    """
    import socket
    import warnings

    import lpips

    name, before = "lpips", socket.getdefaulttimeout()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        socket.setdefaulttimeout(10)
        try:
            model = lpips.LPIPS(net="alex", verbose=False)
        except OSError:  # urllib's URLError is one
            name, model = "lpips_random_backbone", lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        finally:
            socket.setdefaulttimeout(before)
    return model.to(device).eval().requires_grad_(False), name


def lpips_features(model, pictures):
    """What LPIPS compares of pictures [n,3,H,W]: the backbone's features at five depths, of norm one at every place. In training those of a fixed target can be kept, which saves passes through
    the backbone."""
    return [
        x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in model.net(model.scaling_layer(pictures))
    ]


def lpips_to(model, pictures, features):
    """LPIPS [n] of pictures [n,3,H,W] to those whose `lpips_features` are given; differentiable."""
    return sum(
        head((x - y).square()).mean((1, 2, 3))
        for head, x, y in zip(model.lins, lpips_features(model, pictures), features, strict=True)
    )


@torch.inference_mode()
def judge_tokens(model, processor, size, pictures, device, batch=32):
    """Patch tokens of a frozen encoder of DINO's kind, [n, h, w, D] fp32, of uint8 pictures [n, H, W, 3] squashed to `size`."""
    out = []
    for x in pictures.split(batch):
        frames = frames_of({"frames": x}, size).permute(0, 3, 1, 2)
        pixels = processor(list(frames), do_resize=False, do_center_crop=False, return_tensors="pt")[
            "pixel_values"
        ].to(device, model.dtype)
        tokens = model(pixels).last_hidden_state[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
        out.append(tokens.float().cpu().unflatten(1, (size // model.config.patch_size,) * 2))
    return torch.cat(out)


def load_lpips(device="cpu"):
    """(distance, name): LPIPS of uint8 [n,H,W,3] pairs -> [n]; see lpips_model."""
    model, name = lpips_model(device)

    @torch.inference_mode()
    def distance(a, b, batch=64):
        x, y = (i.permute(0, 3, 1, 2).float() / 127.5 - 1 for i in (a, b))
        return torch.cat(
            [
                model(p.to(device), q.to(device)).flatten().cpu()
                for p, q in zip(x.split(batch), y.split(batch), strict=True)
            ]
        ).double()

    return distance, name


# ---------------------------------------------------------------- training

SAVE_SECONDS = 20  # between two saved states of a training: a disk may take a second to write one


def ranks():
    """(rank, number) of torchrun's processes; the first call with more than one joins them."""
    n = int(os.environ.get("WORLD_SIZE", 1))
    if n > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        atexit.register(torch.distributed.destroy_process_group)
    return int(os.environ.get("RANK", 0)), n


def learned(model):
    """{name: parameter} of what is trained: with LoRA, not the model's own weights."""
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def train(build, loss_of, split, seed, how, device="cpu", state=None, ids=None, arrange=None, bar=None):
    """Train the module that build() gives and keep the epoch that is best on val. Returns (module, {val, epoch, weights, losses: one a step, steps, seconds_per_step}).

    loss_of(module, items, g, part, warm): the mean loss of the slice `part` of a batch of items; warm during the first how["warm"] epochs. It must draw from g for the whole batch, whatever its
    part, so that under torchrun, where each rank takes a part, the gradient is that of the whole batch.
    how: lr, batch, warm, epochs, patience (None: none) and, if wanted, accumulate (parts of a batch, one after the other, to a step), adam8bit, scaler (of the loss, in fp16), val_batch.
    state: a file, written every SAVE_SECONDS, from which a killed training of the same settings goes on as if it had never stopped. ids: the items' names, for messages.
    arrange(g): the batches of an epoch, instead of random ones. bar: a tqdm bar that counts steps.
    Raises FloatingPointError, naming the step and the items, where the loss is not finite.
    """
    rank, n = ranks()
    torch.manual_seed(seed)
    model = build().to(device)
    net = torch.nn.parallel.DistributedDataParallel(model) if n > 1 else model
    batch, parts = min(how["batch"], len(split["train"])), n * how.get("accumulate", 1)
    per_epoch = len(split["train"]) // batch
    optimizer = _adamw(how.get("adam8bit"))(learned(model).values(), lr=how["lr"], weight_decay=0.01)
    last = how["warm"] + how["epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how["lr"], total_steps=last * per_epoch)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=how.get("scaler", False))
    g = torch.Generator().manual_seed(seed)
    arrange = arrange or (
        lambda g: list(
            split["train"][torch.randperm(len(split["train"]), generator=g)].split(batch)[:per_epoch]
        )
    )
    best = {"val": float("inf"), "epoch": how["warm"]}
    epoch = 0
    seconds = 0.0
    kept = {}
    losses = []
    written = time.time()
    todo = None
    try:
        saved = torch.load(state, map_location="cpu", weights_only=True) if state and state.is_file() else {}
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        refuse(f"{state} is not readable; delete it, and its training starts again")
    if saved.get("how") == how and {k: v.shape for k, v in saved["model"].items()} == {
        k: v.shape for k, v in learned(model).items()
    }:
        model.load_state_dict(saved["model"], strict=False)
        for part, name in ((optimizer, "optimizer"), (schedule, "schedule"), (scaler, "scaler")):
            part.load_state_dict(saved[name])
        g.set_state(saved["g"])
        best, epoch, seconds, kept, losses, todo = (
            saved[k] for k in ("best", "epoch", "seconds", "kept", "losses", "todo")
        )

    def save(todo):
        """`todo`: the batches that are left of the epoch, none where it is over."""
        nonlocal written
        if state and rank == 0 and time.time() - written > SAVE_SECONDS:
            written = time.time()
            saved = {
                "how": how,
                "model": learned(model),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "g": g.get_state(),
                "best": best,
                "epoch": epoch,
                "seconds": seconds,
                "kept": kept,
                "losses": losses,
                "todo": todo,
            }
            _atomically(state, lambda f: torch.save(saved, f))

    while epoch < last and (how["patience"] is None or epoch - best["epoch"] < how["patience"]):
        began, warm = time.time(), epoch < how["warm"]
        model.train()
        todo = todo or arrange(g)
        while todo:
            pick, todo = todo[0], todo[1:]
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for k in range(rank, parts, n):
                with net.no_sync() if n > 1 and k + n < parts else contextlib.nullcontext():
                    loss = loss_of(net, pick, g, slice(k, None, parts), warm)
                    if not torch.isfinite(loss):
                        raise FloatingPointError(
                            f"the loss is {loss.item()} at step {len(losses)}, epoch {epoch}, items {', '.join(str(ids[i] if ids else i) for i in pick.tolist())}; lower --lr"
                        )
                    scaler.scale(loss * n / parts).backward()
                total += loss.item() * n / parts
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(learned(model).values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(total)
            if bar is not None:
                bar.update(len(losses) - bar.n)
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}")
            if not warm:
                seconds, began = seconds + time.time() - began, time.time()
            if todo:
                save(todo)
        epoch += 1
        model.eval()
        if not warm:
            with torch.no_grad():
                # the same noise in every epoch, where there is any
                fixed = torch.Generator().manual_seed(seed)
                val = sum(
                    loss_of(model, p, fixed, slice(None), False).item() * len(p)
                    for p in split["val"].split(how.get("val_batch", 64))
                ) / len(split["val"])
            if n > 1:  # all end at the same epoch, whatever the rounding of each
                shared = torch.tensor(val, device=device, dtype=torch.float64)
                torch.distributed.broadcast(shared, 0)
                val = shared.item()
            if val < best["val"]:
                best = {"val": val, "epoch": epoch}
                kept = {k: v.detach().cpu().clone() for k, v in learned(model).items()}
        save(None)
    model.load_state_dict(kept, strict=False)
    return model.eval(), best | {
        "weights": kept,
        "losses": losses,
        "steps": epoch * per_epoch,
        "seconds_per_step": seconds / ((epoch - how["warm"]) * per_epoch),
    }


def _adamw(eight_bit):
    if eight_bit:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit
    return torch.optim.AdamW


def reset_lora(model):
    """Draw LoRA's weights anew, as peft does: B is zero, so that at first nothing is changed."""
    for name, p in learned(model).items():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(p, a=5**0.5)
        elif "lora_B" in name:
            torch.nn.init.zeros_(p)
    return model


class _Reached(Exception):
    pass


class Tuned(torch.nn.Module):
    """Tokens [n, *grid] after a language layer of a VLM, with LoRA (Hu et al. 2022; peft) on queries and values of all layers up to it; the forward pass ends there.

    forward takes the processor's inputs of a batch. All seeds share one copy of the model: `reset` draws LoRA's weights anew. path: the layer's module; rows: the token id of the picture's rows;
    grid: their shape (..., D).
    """

    def __init__(self, vlm, path, grid, rows, rank=8):
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.grid, self.rows, last = tuple(grid), rows, int(path.rpartition(".")[2])
        self.vlm = get_peft_model(
            vlm,
            LoraConfig(
                r=rank,
                lora_alpha=2 * rank,
                target_modules=rf".*language_model\.layers\.({'|'.join(map(str, range(last + 1)))})\.self_attn\.[qv]_proj",
            ),
        )
        self.module = self.vlm.get_base_model().get_submodule(path)

    def reset(self):
        return reset_lora(self)

    def forward(self, inputs):
        caught = []

        def stop(module, args, output):
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self.module.register_forward_hook(stop)
        try:
            self.vlm(**inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0][inputs["input_ids"] == self.rows].reshape(-1, *self.grid).float()


def resample(x, grid):
    """Tokens [n, h, w, D] at another grid, bilinear."""
    return torch.nn.functional.interpolate(
        x.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False
    ).permute(0, 2, 3, 1)


def attention(width, inner=None):
    """A layer of learned queries: self-attention, attention to a memory, an MLP."""
    return torch.nn.TransformerDecoderLayer(
        width, 4, inner or 2 * width, dropout=0.0, batch_first=True, norm_first=True
    )


def pictures_of(vae, z):
    """Normalised latents [n, h, w, C] -> pictures [n, 3, H, W] in -1..1 (not clipped); differentiable."""
    return from_latents(vae, z[:, None])[:, :, 0]


def to_floats(frames):
    """uint8 [n, H, W, 3] -> [n, 3, H, W] in -1..1."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def pixel_loss(vae, lpips, pictures):
    """loss(latents [k, h, w, C], items): LPIPS + 0.1 L2 of what they decode to against pictures uint8 [n, H, W, 3], whose features are kept."""
    with torch.inference_mode():
        parts = [
            [level.cpu() for level in lpips_features(lpips, to_floats(p).to(vae.device))]
            for p in pictures.split(64)
        ]
    kept = [torch.cat(level).clone() for level in zip(*parts, strict=True)]

    def loss(z, items):
        x = pictures_of(vae, z)
        target = to_floats(pictures[items]).to(x.device)
        return (
            lpips_to(lpips, x, [level[items].to(x.device) for level in kept]).mean()
            + 0.1 * (x - target).square().mean()
        )

    return loss


# ---------------------------------------------------------------- films uint8 [n, T, H, W, 3]: what comes next, and what is measured of it

HORIZONS = 1, 2, 4, 8, 16
SHIFTS = -2, -1, 0, 1, 2
BASELINES = "copy", "flow", "vae", "mean", "nearest"
STATIC = 0.1  # of the motion that the autoencoder shows
NOTHING = 1e-9  # cosines are no more exact than this


def windows(items, frames, size, flag="--frames"):
    """Items cut to their middle frames and squashed to size x size: boxes and masks with them."""
    out = []
    for item in items:
        if len(item["frames"]) < frames:
            refuse(
                f"{item['id']} has {len(item['frames'])} frames, {frames} are needed; give a smaller {flag}, or longer clips"
            )
        first = (len(item["frames"]) - frames) // 2
        cut = {
            k: item[k][first : first + frames].clone()
            for k, axes in (("frames", 4), ("mask", 3), ("boxes", 3))
            if k in item and item[k].ndim == axes
        }
        cut["frames"] = frames_of(cut, size)
        if "mask" in cut:
            cut["mask"] = torch.nn.functional.interpolate(
                cut["mask"][:, None].float(), (size, size), mode="nearest"
            )[:, 0].byte()
        if "boxes" in cut:
            cut["boxes"] = cut["boxes"] * torch.tensor([size / item["width"], size / item["height"]] * 2)
        out.append(
            {k: v for k, v in item.items() if k not in ("mask", "boxes")}
            | cut
            | {"width": size, "height": size}
        )
    return out


def grey_of(x):
    """Luma (BT.601) in [0, 1], fp32, of uint8 [..., 3]."""
    return x.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255


def carried_on(seen, horizon):
    """The frames seen, uint8 [n, P, H, W, 3], extrapolated by optical flow (iterative Lucas-Kanade, scikit-image): uint8 [n, horizon, H, W, 3].

    The flow between the last two frames is moved along with the picture, frame by frame, so that what moves goes on moving from where it has come to. A single frame is repeated.
    """
    from skimage.registration import optical_flow_ilk

    grey, (height, width) = grey_of(seen[:, [-min(seen.shape[1], 2), -1]]).numpy(), seen.shape[2:4]
    # [n, 2 (rows, columns), H, W]: where each pixel was
    flow = torch.from_numpy(np.stack([optical_flow_ilk(b, a, radius=5, num_warp=4) for a, b in grey])).float()
    x = torch.cat([seen[:, -1].permute(0, 3, 1, 2).float(), flow], 1)
    grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).float()
    out = []
    for _ in range(horizon):
        at = (grid + x[:, 3:]).flip(1).permute(0, 2, 3, 1)  # [n, H, W, 2 (x, y)]
        x = torch.nn.functional.grid_sample(
            x,
            2 * at / torch.tensor([width - 1, height - 1]) - 1,
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        out.append(x[:, :3].round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.stack(out, 1)


def remembered(train, seen, frames, size):
    """(mean, nearest) uint8 [n, h, H, W, 3] of train clips cut to `frames`: their mean future, and the future of the one whose past is nearest to `seen` [n, P, H, W, 3] (squared error)."""
    flat = seen.flatten(1).float() / 255
    past = seen.shape[1]
    total = 0
    best = torch.full((len(seen),), -math.inf)
    nearest = torch.zeros(len(seen), frames - past, *seen.shape[2:], dtype=torch.uint8)
    for item in train:
        x = windows([item], frames, size, "--past or --horizon")[0]["frames"]
        own = x[:past].flatten().float() / 255
        near = flat @ own - own @ own / 2
        nearest[near > best], best, total = x[past:], torch.maximum(near, best), total + x[past:].double()
    return (total / len(train)).round().byte().expand_as(nearest), nearest


def pixel_errors(own, truth, last, least=25):
    """{l1, moving_l1, still_l1: [n, h]} of films uint8 [n, h, H, W, 3] against the truth: mean absolute difference, colours in [0, 1], of the whole frame; of the places where the truth differs
    from the last frame seen [n, H, W, 3] by more than `least` of 255 in some colour; and of the others. nan where there is no such place."""
    error = (own.float() - truth.float()).abs().mean(-1) / 255
    moving = (truth.int() - last[:, None].int()).abs().amax(-1) > least
    return {
        "l1": error.mean((2, 3)).double(),
        "moving_l1": ((error * moving).sum((2, 3)) / moving.sum((2, 3))).double(),
        "still_l1": ((error * ~moving).sum((2, 3)) / (~moving).sum((2, 3))).double(),
    }


def erred(x, truth, last):
    """pixel_errors of films [draws, n, h, H, W, 3]: {measure: [draws, n, h]}, clip by clip to save memory."""
    found = [[pixel_errors(*(z[i : i + 1] for z in (y, truth, last))) for i in range(len(y))] for y in x]
    return {m: torch.stack([torch.cat([f[m] for f in row]) for row in found]) for m in found[0][0]}


def motion_energy(x):
    """Mean absolute difference of adjacent frames, colours in [0, 1]."""
    return torch.stack([clip.float().diff(dim=0).abs().mean() for clip in x]).double() / 255


def flicker(x):
    """Mean absolute second difference in time, colours in [0, 1]: an object that moves on steadily adds little, one that comes and goes much."""
    return torch.stack([clip.float().diff(n=2, dim=0).abs().mean() for clip in x]).double() / 255


def shuffled(real, seed):
    """Every clip's frames in an order of its own."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([x[torch.randperm(len(x), generator=g)] for x in real])


def consistency(tokens):
    """Mean cosine of adjacent frames' tokens [n, T, ...] -> [n], all tokens of a frame as one vector: pooled over the picture they would hardly change when a small object moves."""
    x = tokens.flatten(2).double()
    return torch.nn.functional.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1).mean(1)


def closeness(d, d_real):
    """The smaller over the larger of two mean distances of adjacent frames; 1 where neither film moves, 0 where one does."""
    d, d_real = (torch.where(x < NOTHING, 0.0, x) for x in torch.broadcast_tensors(d, d_real))
    large = torch.maximum(d, d_real)
    return torch.where(large == 0, 1.0, torch.minimum(d, d_real) / large.clamp(min=NOTHING))


def goers(items, first):
    """(numbers of the clips in which an object moves before a still camera and is seen in frame `first`, masks of it there, the words for where it goes)."""
    going = [
        i
        for i, item in enumerate(items)
        if {"mask", "direction", "names", "camera"} <= set(item)
        and item["direction"] != "still"
        and not any(item["camera"])
        and (item["mask"][first] == len(item["names"])).any()
    ]
    return (
        going,
        torch.stack([items[i]["mask"][first] == len(items[i]["names"]) for i in going]) if going else None,
        [items[i]["direction"] for i in going],
    )


def followed(x, last, going, horizons):
    """{h: [m]}: has the object gone the right way by frame h of films [n, T, H, W, 3], and can it still be found? last: real frames [n, H, W, 3], of which it has its colour; going: as of goers."""
    numbers, masks, words = going
    centres = whereabouts(torch.cat([last[numbers, None], x[numbers]], 1), masks)[:, 1:] if numbers else None
    return {
        h: torch.tensor(
            [a == b for a, b in zip(heading(centres[:, : h + 1]), words, strict=True)] if numbers else [],
            dtype=torch.float64,
        )
        for h in horizons
    }


def measured(x, first, look, going):
    """{measure: [n]} of films. look: frames [T, H, W, 3] -> tokens [T, h, w, D]; first: real frames [n, H, W, 3], in which what goes somewhere has its colour; going: as of goers, and
    `direction_right` is theirs, [m]."""
    found = {
        "temporal_consistency": torch.cat([consistency(look(clip)[None]) for clip in x]),
        "motion_energy": motion_energy(x),
        "flicker": flicker(x),
    }
    end = x.shape[1] - 1
    return found | ({"direction_right": followed(x, first, going, [end])[end]} if going[0] else {})


def compared(own, real, vae, sources, going_sources, seed):
    """Every measure of one conditioning's {measure: [seeds, n]} beside the clips' own and their reconstruction's, with an interval: one row of the table."""
    d, d_real, d_vae = (1 - x["temporal_consistency"] for x in (own, real, vae))
    columns = {
        "temporal_consistency": 1 - d,
        "temporal_closeness": closeness(d, d_real),
        "decoded_closeness": closeness(d, d_vae),
        "temporal_ratio": ratio(own["motion_energy"], real["motion_energy"]),
        "flicker_ratio": ratio(own["flicker"], real["flicker"]),
        **{
            k: own.get(k)
            for k in ("warp_error", "jump", "motion_energy", "flicker", "direction_right")
            if k in own or k == "direction_right"
        },
    }
    row = {}
    for name, x in columns.items():
        values = (
            (None,) * 3
            if x is None
            else bootstrap(x, going_sources if name == "direction_right" else sources, seed=seed)
        )
        row |= with_bounds(name, values)
    return row


def running_ahead(own, clips, past):
    """The shift of the truth (SHIFTS; of equals the least) at which films [n, h, H, W, 3] of what follows the first `past` frames of clips have the lowest l1, over the same frames for all;
    None where too few."""
    first, end = max(-min(SHIFTS) - past, 0), own.shape[1] - max(SHIFTS)
    if first >= end:
        return None
    errors = [
        np.mean(
            [
                (x[first:end].float() - c[past + first + s : past + end + s].float()).abs().mean().item()
                for x, c in zip(own, clips, strict=True)
            ]
        )
        for s in sorted(SHIFTS, key=abs)
    ]
    return sorted(SHIFTS, key=abs)[int(np.argmin(errors))]


def signed_rank(difference, sources):
    """Wilcoxon's two-sided p (scipy) of differences [n], those of one source averaged first: clips of one source are no independent pairs. 1 where there is no difference at all."""
    from scipy.stats import wilcoxon

    cluster = clusters(sources)
    means = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(
        0, cluster, difference.double()
    ) / torch.bincount(cluster)
    return float(wilcoxon(means.numpy()).pvalue) if means.abs().max() > 0 else 1.0


def averaged(name, x, sources, seed):
    """{name, name_low, name_high} of scores [seeds, n], without the clips that have nothing to score (nan); None throughout where no clip has."""
    keep = (~x.isnan().any(0)).nonzero().flatten().tolist()
    values = bootstrap(x[:, keep], [sources[k] for k in keep], seed=seed) if keep else (None,) * 3
    return with_bounds(name, values)


def gained(own, base, sources, seed):
    """By how much errors [seeds, n] are less than those of a baseline [1, n]: paired_test, with Wilcoxon's p over sources beside it; None where nothing is scored."""
    less = base.mean(0) - own.mean(0)
    keep = (~less.isnan()).nonzero().flatten().tolist()
    few = [sources[k] for k in keep]
    return (
        paired_test(less[keep], 0 * less[keep], few, seed=seed) | {"p_wilcoxon": signed_rank(less[keep], few)}
        if keep
        else None
    )


def gain_columns(name, gain, *p_values):
    """{name, name_low, name_high, and name_<p> of each of `p_values`} of what `gained` found; None throughout where it found nothing."""
    keys = {"": "gain", "_low": "gain_low", "_high": "gain_high"} | {f"_{p}": p for p in p_values}
    return {f"{name}{end}": gain and gain[key] for end, key in keys.items()}


def adjusted(gains):
    """{name: gain}, with Holm's adjustment over the names."""
    found = {n: g for n, g in gains.items() if g}
    for key in ("p", "p_wilcoxon"):
        for n, p in holm({n: g[key] for n, g in found.items()}).items():
            found[n][f"{key}_holm"] = p
    return gains


def scored(errors, own, right, sources, going_sources, seed):
    """{criteria, gains, continuations, horizons} of pixel_errors {row: {measure: [draws, n, horizon]}}, measured {row: {measure: [draws, n]}} and followed {row: {h: [draws, m]}}."""
    rows = [n for n in errors if n != "real"]
    names = [n for n in rows if n not in BASELINES]
    overall = {n: {m: x.nanmean(2) for m, x in e.items()} for n, e in errors.items()}
    table = {}
    for n in errors:
        table[n] = {
            k: v for m, x in overall[n].items() for k, v in averaged(m, x, sources, seed).items()
        } | compared(own[n], own["real"], own["vae"], sources, going_sources, seed)
    gains = {
        m: {
            base: adjusted({n: gained(overall[n][m], overall[base][m], sources, seed) for n in names})
            for base in ("copy", "flow")
        }
        for m in ("l1", "moving_l1")
    }
    at = {}
    for h in right["real"]:
        e = {n: {m: x[:, :, h - 1] for m, x in errors[n].items()} for n in rows}
        at[h] = {
            n: {k: v for m in ("l1", "moving_l1") for k, v in averaged(m, e[n][m], sources, seed).items()}
            | averaged("direction_right", right[n][h], going_sources, seed)
            for n in rows
        }
        for m in ("l1", "moving_l1"):
            for base in ("copy", "flow"):
                for n, g in adjusted({n: gained(e[n][m], e[base][m], sources, seed) for n in names}).items():
                    at[h][n] |= gain_columns(f"{m.removesuffix('l1')}gain_over_{base}", g, "p_holm")
    main, criteria = names[0], {}
    energy = {n: ratio(x["motion_energy"], own["real"]["motion_energy"]) for n, x in own.items()}
    if energy["real"] is not None:
        criteria["temporal_ratio"] = criterion(
            energy[main],
            {n: energy[n] for n in ("copy", "mean")},
            sources,
            ceiling=energy["vae"].mean().item(),
            seed=seed,
            conditioning=main,
            draws=len(energy[main]),
            controls={
                n: energy[n].mean() for n in ("real", "shuffled", "flow", "nearest", *names) if n != main
            },
        )
    for m in ("l1", "moving_l1"):
        keep = (~overall["real"][m][0].isnan()).nonzero().flatten().tolist()
        if keep:
            score = {n: overall[n][m][:, keep] for n in rows}
            criteria[m] = criterion(
                score[main],
                {n: score[n] for n in BASELINES if n != "vae"},
                [sources[i] for i in keep],
                ceiling=score["vae"].mean().item(),
                better="lower",
                seed=seed,
                conditioning=main,
                draws=len(score[main]),
                controls={n: score[n].mean() for n in names if n != main},
            )
    return {"criteria": criteria, "gains": gains, "continuations": table, "horizons": at}


def headlines(told, main):
    """Scores of the main continuation with those of the baselines beside them, and its gains over these."""
    table, found = told["continuations"], {}
    for name, beside in (
        ("temporal_ratio", ("vae",)),
        ("l1", ("copy", "flow", "vae")),
        ("moving_l1", ("copy", "flow", "vae")),
        ("decoded_closeness", ("copy", "flow")),
        ("temporal_consistency", ("real", "vae", "copy")),
        ("direction_right", ("real", "vae", "flow")),
    ):
        found |= {f"{name}{end}": table[main][f"{name}{end}"] for end in ("", "_low", "_high")} | {
            f"{name}_{b}": table[b][name] for b in beside
        }
    for m in ("l1", "moving_l1"):
        for base, gains in told["gains"][m].items():
            found |= gain_columns(
                f"{m.removesuffix('l1')}gain_over_{base}", gains[main], "p", "p_holm", "p_wilcoxon"
            )
    return found


def alongside(clips, past, train, vae):
    """{real, and the baselines: uint8 [1, n, h, H, W, 3]} of what follows the first `past` frames of clips [n, T, H, W, 3]. train: items of the train split; vae: what follows, by the autoencoder."""
    seen, truth = clips[:, :past], clips[:, past:]
    mean, nearest = remembered(train, seen, clips.shape[1], clips.shape[2])
    found = {
        "real": truth,
        "copy": seen[:, -1:].expand_as(truth),
        "flow": carried_on(seen, truth.shape[1]),
        "vae": vae,
        "mean": mean,
        "nearest": nearest,
    }
    return {n: x[None] for n, x in found.items()}


def film_table(films, items, clips, past, look, seed):
    """(headline scalars, {criteria, gains, continuations, horizons}): all that predict-continue.yaml says of pixels, from films {row: uint8 [draws, n, h, H, W, 3]} of what follows the first
    `past` frames of clips [n, T, H, W, 3]. Rows: those of `alongside`, then the continuations, the main one first; items: the clips', with what is known of them; look: as of `measured`."""
    from tqdm import tqdm

    last, truth, sources = clips[:, past - 1], clips[:, past:], [i["source"] for i in items]
    way, horizons = goers(items, past - 1), [h for h in HORIZONS if h <= truth.shape[1]]
    going_sources = [sources[i] for i in way[0]]
    own = {}
    errors = {}
    right = {}
    for n, x in tqdm(films.items(), desc="measured", unit="row"):
        whole = [torch.cat([last[:, None], y], 1) for y in x]
        found = [
            measured(y, last, look, way)
            | {
                "motion_energy": motion_energy(y[:, 1:]),
                "flicker": flicker(y[:, 1:]),
                "jump": motion_energy(y[:, :2]),
            }
            for y in whole
        ]
        own[n] = {m: torch.stack([f[m] for f in found]) for m in found[0]}
        found = [followed(y, last, way, horizons) for y in whole]
        right[n] = {h: torch.stack([f[h] for f in found]) for h in horizons}
        errors[n] = erred(x, truth, last)
    own["shuffled"] = {"motion_energy": motion_energy(shuffled(truth, seed))[None]}
    told = scored(errors, own, right, sources, going_sources, seed)
    for n, row in told["continuations"].items():
        row |= {
            "static": bool(own[n]["motion_energy"].mean() < STATIC * own["vae"]["motion_energy"].mean()),
            "best_shift": running_ahead(films[n][0], clips, past),
        }
    main = next(n for n in films if n not in ("real", *BASELINES))
    return {
        "conditioning": main,
        **headlines(told, main),
        **{k: told["continuations"][main][k] for k in ("static", "best_shift")},
        "clips": len(items),
        "sources": len(set(sources)),
        "moving_clips": int((~errors["real"]["moving_l1"].isnan()).any(2).sum()),
        "direction_clips": len(way[0]),
        "seeds": len(films[main]),
    }, told


# ---------------------------------------------------------------- words: what a language model is told of an object, as text or as soft tokens, and what it says

TELL_OF = "Describe the {}."  # answered by the sentences of `text` that are about it
COLOURED = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPED = ("circle", "triangle", "square", "star")
WIDTH, TIMES = 512, 32  # of a track's embedding; its frames
MARK = "\ue000"  # where soft tokens go in a chat: of private use, so in nobody's text


def load_tracks(path, items):
    """What a video model wrote of the objects of `items`: {ids "<clip>/<object>", embedding fp32 [N, 512], scores, attention fp32 [N, 32], persistence fp32 [N], meta}, or a refusal.

    An object is one of the clip's names, the one that is not there and asked for all the same (`absent`), or the one that was taken out (`removed`).
    """
    tracks = load_pt(path, TRACKS)
    n = len(tracks["ids"])
    known_ids = {
        f"{i['id']}/{name}"
        for i in items
        for name in (*i["names"], i["absent"], *filter(None, [i.get("removed")]))
    }
    if unknown := [i for i in tracks["ids"] if i not in known_ids]:
        refuse(
            f"{path} holds {unknown[0]!r} (and {len(unknown) - 1} more), which is no clip/object of the data; give the --data that it was made from"
        )
    for name, shape in {
        "embedding": (n, WIDTH),
        "scores": (n, TIMES),
        "attention": (n, TIMES),
        "persistence": (n,),
    }.items():
        x = tracks.get(name)
        if not torch.is_tensor(x) or x.shape != shape:
            refuse(
                f"{path}: {name} is {list(x.shape) if torch.is_tensor(x) else type(x).__name__} where {list(shape)} is wanted; write it as explain.py --mode tracks does"
            )
        if not x.isfinite().all():
            first = tracks["ids"][int((~x.isfinite()).reshape(n, -1).any(1).nonzero()[0])]
            refuse(
                f"{path}: {name} holds {int((~x.isfinite()).sum())} non-finite values, the first of {first!r}; write it again in fp32"
            )
        tracks[name] = x.float()
        if name != "embedding" and not ((tracks[name] >= 0) & (tracks[name] <= 1)).all():
            refuse(
                f"{path}: {name} reaches from {tracks[name].min():.3g} to {tracks[name].max():.3g}, and probabilities lie in 0 to 1; write them, not logits"
            )
    if len(set(tracks["ids"])) < n:
        refuse(
            f"{path} holds {next(i for i in tracks['ids'] if tracks['ids'].count(i) > 1)!r} more than once; write each object once"
        )
    if ((off := (tracks["attention"].sum(1) - 1).abs()) > 0.02).any():  # fp16 loses a thousandth
        refuse(
            f"{path}: the attention of {tracks['ids'][int(off.argmax())]!r} sums to {tracks['attention'][int(off.argmax())].sum():.3g}; let each row sum to 1"
        )
    return tracks


def spans_text(spans):
    """[[0, 9], [14, 14]] -> "0 to 9, 14"."""
    return ", ".join(f"{a} to {b}" if a < b else f"{a}" for a, b in spans)


def metadata_text(name, persistence=None, visible=None, direction=None, hidden=None, count=None):
    """What is known of an object as text, without the facts that are None: "red circle: persistence 0.97; frames 0 to 9, 14 to 31; direction right; hidden 10 to 13; count 2".

    persistence: a probability, written as at most 0.99, since a language model that never read 1.00 in training makes anything of it; visible, hidden: spans [first, last] of frames, both
    included, perhaps none ("frames none", "hidden never"); count: coloured objects in the clip.
    """
    facts = {
        "persistence": persistence is not None and f"{min(max(persistence, 0.01), 0.99):.2f}",
        "frames": visible is not None and (spans_text(visible) or "none"),
        "direction": direction,
        "hidden": hidden is not None and (spans_text(hidden) or "never"),
        "count": count is not None and str(count),
    }
    return f"{name}: " + "; ".join(f"{key} {said}" for key, said in facts.items() if said)


def naming(rng):
    """(context, question, answer) of a task without clips: a list of objects as text, and a question about the colour, shape or place of one. rng: numpy's."""
    n = rng.integers(2, 5)
    things = list(
        zip(
            rng.permutation(COLOURED)[:n],
            rng.permutation(SHAPED)[:n],
            rng.integers(5, 96, (n, 2)).tolist(),
            strict=True,
        )
    )
    which = rng.integers(3)
    (colour, shape, (x, y)), place = things[(0, 1, -1)[which]], ("first", "second", "last")[which]
    question, answer = (
        (f"What shape is the {place} object?", shape),
        (f"What colour is the {place} object?", colour),
        (f"Where is the {place} object?", f"at {x} {y}"),
    )[rng.integers(3)]
    return (
        "Objects: " + "; ".join(f"{c} {s} at {x} {y}" for c, s, (x, y) in things) + ".",
        question,
        str(answer),
    )


def named(said, answer):
    """Is an answer to a question of `naming` right, in whatever words? It must name that colour or shape and no other, or exactly these numbers."""
    words = [re.findall(r"[a-z]+|\d+", x.lower()) for x in (said, answer)]
    own, true = (
        [
            w
            for w in x
            if w.isdecimal() or w in SHAPED and answer in SHAPED or w in COLOURED and answer in COLOURED
        ]
        for x in words
    )
    return list(dict.fromkeys(own)) == true if answer in SHAPED + COLOURED else own == true


def track_id(item, name):
    """The id of the track whose embedding goes with a question about `name`; a question about no object gets that of the first one."""
    return f"{item['id']}/{name or [*item['names'], item['absent']][0]}"


def about(item, name):
    """The sentences of an item's text that are about one of its objects."""
    return re.split(r" (?=The |There )", item["text"][item["text"].index(f"The {name} is ") :])[0]


def frames_said(words):
    """The set of frames that "frames 0 to 9 and 14" or "frame 7" names; None for other words."""
    if not re.fullmatch(r"frames? \d+( to \d+)?( and \d+( to \d+)?)*", words):
        return None
    return {t for a, b in re.findall(r"(\d+)(?: to (\d+))?", words) for t in range(int(a), int(b or a) + 1)}


def right(said, answer):
    """Is an answer right: the same words, or frames of which at least 0.8 are the same (intersection over union)?"""
    own, true = frames_said(said), frames_said(answer)
    return said == answer or bool(own and true) and len(own & true) >= 0.8 * len(own | true)


def word_prompt(tokenizer, question, context=""):
    """Token ids (before, after) the place of soft tokens in a chat in which the user shows these, or the text `context`, or nothing, and asks. Without a chat template: plain lines."""
    said = f"{MARK}{context}\n{question}"
    text = (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
        )
        if tokenizer.chat_template
        else f"{said}\nAnswer: "
    )
    before, after = text.split(MARK)
    begun = bool(tokenizer.bos_token) and before.startswith(tokenizer.bos_token)
    return tokenizer(before, add_special_tokens=not begun).input_ids, tokenizer(
        after, add_special_tokens=False
    ).input_ids


def word_batch(model, tokenizer, prompts, soft=None, answers=None):
    """The model's inputs: inputs_embeds [n, L, D], padded on the left, attention_mask and position_ids [n, L]; with answers (text) also labels [n, L], -100 outside the answers.

    prompts: n results of `word_prompt`; soft [n, k, D]: the soft tokens at their place, or None. Differentiable with respect to soft.
    """
    k = 0 if soft is None else soft.shape[1]
    told = (
        [[*tokenizer(a, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for a in answers]
        if answers
        else [[]] * len(prompts)
    )
    rows = [[*before, *[-1] * k, *after, *end] for (before, after), end in zip(prompts, told, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[-2] * (longest - len(row)) + row for row in rows], device=model.device)
    x = model.get_input_embeddings()(ids.clamp(min=0))
    if k:
        x = x.masked_scatter((ids == -1)[:, :, None], soft.to(x))
    mask = (ids != -2).long()
    batch = {"inputs_embeds": x, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    if answers:
        batch["labels"] = torch.tensor(
            [[-100] * (longest - len(end)) + end for end in told], device=model.device
        )
    return batch


def answer_loss(model, batch):
    """Cross-entropy [n] of the answers of a `word_batch`, the mean over the tokens of each. Logits before the longest answer are not computed."""
    longest = int((batch["labels"] != -100).sum(1).max())
    logits = (
        model(
            **{k: v for k, v in batch.items() if k != "labels"}, logits_to_keep=longest + 1, use_cache=False
        )
        .logits[:, :-1]
        .float()
    )
    labels = batch["labels"][:, -longest:]
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1) / (
        labels != -100
    ).sum(1)


def mean_answer_loss(model, tokenizer, prompts, answers, soft=None, parts=2):
    """The mean of `answer_loss`, computed in parts of like length, so that little is padded."""
    long = [len(after) + len(answer) for (_, after), answer in zip(prompts, answers, strict=True)]
    order, total = sorted(range(len(prompts)), key=long.__getitem__), 0
    for k in range(parts):
        if pick := order[k * len(order) // parts : (k + 1) * len(order) // parts]:
            batch = word_batch(
                model,
                tokenizer,
                [prompts[i] for i in pick],
                None if soft is None else soft[pick],
                [answers[i] for i in pick],
            )
            total = total + answer_loss(model, batch).sum()
    return total / len(prompts)


@torch.inference_mode()
def answered(model, tokenizer, prompts, soft=None, most=64, batch=128):
    """Greedy answers (text) of at most `most` tokens to `prompts` of word_prompt, with soft [n, k, D] or without. Prompts of similar length share a batch."""
    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]) + len(prompts[i][1]))
    for start in range(0, len(order), batch):
        pick = order[start : start + batch]
        inputs = word_batch(
            model, tokenizer, [prompts[i] for i in pick], None if soft is None else soft[pick]
        )
        del inputs["position_ids"]  # generate counts them itself, from the mask
        ids = model.generate(
            **inputs,
            max_new_tokens=most,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        for i, words in zip(pick, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            out[i] = words.strip()
    return out


class Soft(torch.nn.Module):
    """Embeddings [n, dim] -> soft tokens [n, k, width] of a language model: layer norm and a linear map, or with `inner` an MLP. std: of the model's own token embeddings."""

    def __init__(self, dim, width, k=8, inner=0, std=1.0):
        super().__init__()
        self.sizes = {"dim": dim, "width": width, "k": k, "inner": inner}
        last = torch.nn.Linear(inner or dim, k * width)
        torch.nn.init.normal_(last.weight, std=std * last.in_features**-0.5)
        self.net = torch.nn.Sequential(
            torch.nn.LayerNorm(dim), *([torch.nn.Linear(dim, inner), torch.nn.GELU()] if inner else []), last
        )

    def forward(self, x):
        return self.net(x.float()).unflatten(-1, (self.sizes["k"], self.sizes["width"]))


def save_soft(path, soft, **more):
    """soft.safetensors: the weights, and in its metadata the sizes and `more` (text)."""
    from safetensors.torch import save

    weights = {k: v.detach().cpu().contiguous() for k, v in soft.state_dict().items()}
    save_bytes(path, save(weights, {k: str(v) for k, v in {**soft.sizes, **more}.items()}))


def load_words(folder, model, name):
    """(model under LoRA, Soft) as adapt.py --mode words wrote them into `folder`, for the language model `model`, called `name`; within `model.disable_adapter()` it is what it was."""
    from peft import PeftModel
    from safetensors import safe_open

    path = Path(folder) / "soft.safetensors"
    if not path.is_file() or not (Path(folder) / "adapter_model.safetensors").is_file():
        refuse(
            f"{folder} lacks {path.name} or adapter_model.safetensors; run adapt.py --mode words, which writes them"
        )
    with safe_open(path, "pt") as file:
        meta, weights = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    width = model.get_input_embeddings().embedding_dim
    if (meta["language"], int(meta["width"])) != (name, width):
        refuse(
            f"{folder} was trained on {meta['language']} (width {meta['width']}), and {name} has width {width}; give the language model it was trained on"
        )
    soft = Soft(*(int(meta[k]) for k in ("dim", "width", "k", "inner")))
    soft.load_state_dict(weights)
    return PeftModel.from_pretrained(model, str(folder)).eval(), soft.to(model.device).eval()
