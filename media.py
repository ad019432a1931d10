"""Images and videos as arrays: decoding, time stamps, choice of frames."""

import contextlib
import hashlib
import io
import itertools
import os
import re
import shutil
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import check_choice, fail, load_yaml, save_yaml, write_items

# ---------------------------------------------------------------- images


def fitted(width, height, token, most):
    """(width, height) after Qwen's resizing: multiples of `token` px, at most `most` pixels, nearly the same aspect ratio."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, token, token**2, max(most, token**2))[::-1]


def frames_of(item, size=None):
    """Frames of an item, uint8 [T,H,W,3]; only those numbered in its `shown`, if it has that.

    size: an int resizes to `size` x `size` (antialiased bicubic), (token, most) to `fitted`. Resizing to a square gives all items one
    token grid; boxes and masks scale with it, and IoU does not change.
    """
    if "images" in item:
        return torch.cat([frames_of({"encoded": image}, size) for image in item["images"]])
    if "frames" in item:
        frames = item["frames"][item["shown"]] if "shown" in item else item["frames"]
    else:
        from PIL import Image

        image = Image.open(io.BytesIO(item["encoded"].numpy().tobytes()))
        frames = torch.from_numpy(np.array(image.convert("RGB")))[None]
    height, width = frames.shape[1:3]
    to = height, width
    if isinstance(size, int):
        to = size, size
    elif size:
        to = fitted(width, height, *size)[::-1]
    if (height, width) != to:
        x = frames.permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, to, mode="bicubic", antialias=True, align_corners=False)
        frames = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return frames


def upright(image):
    """A Pillow image in RGB: rotated as its EXIF states, white where it is transparent, 16 bits per channel reduced to 8."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow would clip at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def read_image(path):
    """The (first) image of a file, made `upright`: uint8 [1,H,W,3]. Exits with code 2 if it cannot be read."""
    from PIL import Image

    if not Path(path).is_file():
        fail(f"{path} does not exist; give the file of an image")
    try:
        with Image.open(path) as file:
            image = upright(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        why = " ".join(str(e).split()) or type(e).__name__
        fail(f"{path} cannot be read as an image ({why}); give a JPEG or PNG file")
    return torch.from_numpy(np.array(image))[None]


# ---------------------------------------------------------------- choice of frames

CHOICES = "motion", "uniform", "random", "scene"
GREY = 64  # px of the longer side at which motion is measured
# grey level (white is 1) added to the motion of every frame, so that the choice is uniform without motion
STILL = 1e-4
CUT = 0.5  # correlation of adjacent frames' luma histograms below which a new shot begins
CANDIDATES = 2048  # of a longer clip only this many frames, evenly spread, are considered


def greys(clip):
    """Yield grey [h, w] in [0, 1], at most GREY px on the longer side, of each frame of uint8 [T,H,W,3] or of a video file."""
    if torch.is_tensor(clip):
        scale = min(1, GREY / max(clip.shape[1:3]))
        to = [max(1, round(side * scale)) for side in clip.shape[1:3]]
        for frame in clip:
            grey = grey_of(frame)[None, None]
            yield torch.nn.functional.interpolate(grey, to, mode="area")[0, 0].numpy()
        return
    import av

    with opened(clip) as file:
        file.streams.video[0].thread_type = "AUTO"
        for frame in file.decode(video=0):
            scale = min(1, GREY / max(frame.width, frame.height))
            width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
            area = av.video.reformatter.Interpolation.AREA
            grey = frame.reformat(width, height, "gray", interpolation=area)
            yield grey.to_ndarray().astype(np.float32) / 255


def motion_between(before, after):
    """Motion between two frames, grey [h, w] in [0, 1]: mean change that camera shake, brightness and noise do not explain.

    Shake is a shift by whole pixels (phase_cross_correlation of scikit-image; Guizar-Sicairos et al. 2008) plus a subpixel shift along
    the gradient. The latter is fitted with gain and offset of the brightness by a robust regression (Cauchy weights, scale by the median
    absolute deviation), in which moving objects are outliers. A shift is accepted only if it halves the median error. Noise is three
    standard deviations, from the median of the finest diagonal Haar coefficients (Donoho & Johnstone 1994).
    """
    from scipy.ndimage import gaussian_filter
    from skimage.registration import phase_cross_correlation

    def unexplained(a, b, *more):
        x, difference, weights = np.stack([c.ravel() for c in (np.ones_like(a), a, *more)], 1), b - a, 1
        some, y = x[::3], difference.ravel()[::3]  # every third pixel suffices for two or four parameters
        for _ in range(5):
            weighted = some * np.expand_dims(weights, -1)
            found = np.linalg.lstsq(weighted.T @ some, weighted.T @ y, rcond=1e-6)[0]
            r = y - some @ found
            weights = 1 / (1 + np.square(r / (3 * np.median(np.abs(r)) + 1e-4)))
        fit = (x @ found).reshape(a.shape)
        r = difference - fit
        # an over-exposed pixel explains any change
        r = np.minimum(np.abs(b - np.clip(b - r, 0, 1)), np.abs(np.clip(a + r, 0, 1) - a))
        return r, 0.1 * np.abs(fit)  # the correction is exact to a tenth

    if min(before.shape) < 8:
        return float(np.abs(after - before).mean())
    d = after - before
    if not d.any():
        return 0.0
    # of the difference, after a Gaussian of 1 px
    diagonal = np.abs(d[1:, 1:] - d[1:, :-1] - d[:-1, 1:] + d[:-1, :-1])
    noise = np.median(diagonal) / 2 / 0.6745 / (2 * np.sqrt(np.pi))
    a, b = (gaussian_filter(x.astype(float), 1) for x in (before, after))
    rest, slack = unexplained(a, b)
    expected = max(0.6745 * noise, 1e-3)  # median of the noise, at least a quarter of a grey level
    if np.median(rest) > 1.1 * expected:
        window = np.outer(*(np.hanning(side + 2)[1:-1] for side in a.shape))
        x, y = ((c - c.mean()) * window for c in (a, b))
        shift = phase_cross_correlation(x, y, normalization=None)[0].astype(int)
        if (margin := np.abs(shift).max()) < min(a.shape) // 4:
            inside = np.s_[margin : a.shape[0] - margin, margin : a.shape[1] - margin]
            a, b = a[inside], np.roll(b, shift, (0, 1))[inside]
            slopes = np.gradient((a + b) / 2)
            steady, allowed = unexplained(a, b, *slopes)
            if np.median(steady) - expected < (np.median(rest) - expected) / 2:
                rest, slack = steady, allowed + 0.1 * np.hypot(*slopes)  # a tenth of a pixel
    return float(np.clip(rest - 3 * noise - slack, 0, None).mean())


def motion_of(clip):
    """Motion from frame t - 1 to frame t (0 for the first), float64 [T]. clip: uint8 [T,H,W,3] or a video file."""
    found, before = [], None
    for grey in greys(clip):
        found.append(0.0 if before is None else motion_between(before, grey))
        before = grey
    return np.array(found)


def shots_of(clip):
    """(first frames of the shots, length of the clip). Shots are cut as by PySceneDetect's HistogramDetector, at CUT."""
    histograms = np.array([np.histogram(grey, 32, (0, 1))[0] for grey in greys(clip)]) * 1.0
    x = histograms - histograms.mean(1, keepdims=True)
    x /= np.linalg.norm(x, axis=1, keepdims=True) + 1e-9
    return [0, *(1 + np.flatnonzero((x[1:] * x[:-1]).sum(1) < CUT)).tolist()], len(x)


def equal_shares(steps, k, must=(), largest_gap=None):
    """Numbers of k of T frames with equal motion between neighbours: the least sum of squares, by dynamic programming.

    steps [T] > 0: motion from frame t - 1 to t. The first frame, the last and those in `must` are always chosen; neighbours are at most
    `largest_gap` frames apart. None if that is impossible. Unconstrained it is MGSampler (Zhi et al., ICCV 2021) without repeated frames.
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
        total = through.min(0) + 1e-9 * np.square(number / last - j / (k - 1))  # the most even among equals
    if total[-1] == np.inf:
        return None
    chosen = [len(number) - 1]
    for best in reversed(came):
        chosen.append(best[chosen[-1]])
    return number[chosen[::-1]].tolist()


def choose_frames(clip, k, how="motion", seed=0, boundary=None, largest_gap=None):
    """Numbers of k different frames of a clip, uint8 [T,H,W,3] or a video file, in ascending order.

    motion    equal shares of motion (`motion_of`, `equal_shares`), with the first and last frame; uniform if that is nearly as equal
    uniform   equal spans of time, with the first and the last frame
    random    drawn by `seed` (an int or several)
    scene     frames for every shot in proportion to its length: the middles of equal parts of it

    boundary: a frame that is always chosen; motion near it is weighted up to four times (Gaussian of width T / 8). largest_gap: maximum
    distance of neighbours. Both are for motion and uniform. With k = 1 the frame is the boundary, or else the one at half of the motion.
    """
    check_choice(how, dict.fromkeys(CHOICES), "method of choosing frames")
    if how in ("random", "scene") and (boundary is not None or largest_gap):
        fail(f"{how} frames have no boundary and no largest gap; choose motion or uniform")
    clip = torch.as_tensor(clip) if not isinstance(clip, (str, Path)) else clip
    if how == "motion":
        steps = motion_of(clip) + STILL
        length = len(steps)
    elif how == "scene":
        starts, length = shots_of(clip)
    else:
        length = len(clip) if torch.is_tensor(clip) else len(presented(clip))
    if not 1 <= k <= length:
        fail(f"{k} of {length} frames cannot be chosen; give a number of frames from 1 to {length}")
    if boundary is not None and not 0 <= boundary < length:
        fail(f"boundary {boundary} is not one of {length} frames; give 0 to {length - 1}")
    if how == "random":
        return sorted(np.random.default_rng(seed).choice(length, k, replace=False).tolist())
    if how == "scene":
        lengths, share, chosen = np.diff([*starts, length]), np.zeros(len(starts), int), []
        for _ in range(k):
            share[np.where(share < lengths, lengths / (share + 1), 0).argmax()] += 1
        for first, frames, n in zip(starts, lengths.tolist(), share.tolist(), strict=True):
            chosen += [first + (2 * i + 1) * frames // (2 * n) for i in range(n)]
        return chosen
    if how == "uniform":
        steps = np.ones(length)
    elif boundary is not None:
        steps = steps * (1 + 3 * np.exp(-np.square((np.arange(length) - boundary) / (length / 8)) / 2))
    if k == 1 and boundary is not None:
        return [boundary]
    if k == 1:
        return [int(np.searchsorted(np.cumsum([0, *steps[1:]]), steps[1:].sum() / 2 - 1e-9))]
    must = () if boundary is None else (boundary,)
    chosen, even = (equal_shares(x, k, must, largest_gap) for x in (steps, np.ones(length)))
    if chosen is None:
        gaps = f"leave gaps of more than {largest_gap}" if largest_gap else "are too few"
        fail(f"{k} of {length} frames {gaps}; choose more, or allow larger gaps")
    unequal = [np.square(np.diff(np.cumsum(steps)[at])).sum() for at in (chosen, even)]
    # motion is measured no more exactly than that, and models are trained on even frames
    return even if unequal[1] < 1.1 * unequal[0] else chosen


@contextlib.contextmanager
def opened(path):
    """A video file, opened by PyAV. Exits with code 2 on any other file."""
    import av

    if not Path(path).is_file():
        fail(f"{path} does not exist; give the file of a video")
    try:
        with av.open(str(path)) as file:
            if not file.streams.video:
                fail(f"{path} holds no video; give an MP4, WebM or GIF file")
            yield file
    except (av.FFmpegError, OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or e
        fail(f"{path} cannot be read as a video ({why}); give an MP4, WebM or GIF file")


def presented(path):
    """(time stamp, is it a key frame) of every frame of a video in display order. No frame is decoded."""
    with opened(path) as file:
        stamps = [(p.pts, p.is_keyframe) for p in file.demux(video=0) if p.size]
    return sorted(stamps) if all(pts is not None for pts, _ in stamps) else stamps


def frames_at(path, numbers, size=None):
    """(frames of a video by number, upright, uint8 [k,H,W,3], resized to `size` if given; how many were decoded).

    Decoding begins at the last key frame before each target frame. A file without time stamps, or with wrong key frames, is decoded
    from its beginning.
    """
    stamps = presented(path)
    if not numbers or not 0 <= min(numbers) <= max(numbers) < len(stamps):
        fail(f"{path} has {len(stamps)} frames, not {numbers}; give numbers from 0 to {len(stamps) - 1}")
    number_of, found, decoded = {pts: n for n, (pts, _) in enumerate(stamps)}, {}, 0
    for seeking in [True, False] if len(number_of) == len(stamps) else [False]:
        with opened(path) as file:
            stream, now, frames = file.streams.video[0], -1, file.decode(video=0)
            for target in sorted(set(numbers) - set(found)):
                key = max((n for n in range(target + 1) if stamps[n][1]), default=0)
                if seeking and key > max(now, 0):
                    file.seek(stamps[key][0], stream=stream)
                    frames = file.decode(video=0)
                for frame in frames:
                    decoded, now = decoded + 1, number_of.get(frame.pts, now) if seeking else now + 1
                    if now == target:
                        found[target] = upright_frame(frame, size)
                        break
    if missing := sorted(set(numbers) - set(found)):
        fail(f"{path}: frame {missing[0]} of {len(stamps)} cannot be decoded; give a complete file")
    return torch.cat([found[n] for n in numbers]), decoded


def upright_frame(frame, size=None):
    """A frame of PyAV as uint8 [1,H,W,3], rotated as its header states (videos of phones often need it)."""
    x = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return frames_of({"frames": torch.from_numpy(x.copy())[None]}, size)


def grey_of(x):
    """Luma (BT.601) in [0, 1], fp32, of uint8 [..., 3]."""
    return x.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255


# ---------------------------------------------------------------- videos


class Unusable(Exception):
    """A file or clip that cannot be used; args: (kind, reason)."""


def header(path, fps):
    """(frames at `fps` or its own rate, seconds, frames per second) by the header of a video; the first two are 0 if not stated."""
    import av

    with av.open(path) as file:
        if not file.streams.video:
            raise Unusable("empty", "holds no video")
        stream = file.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise Unusable("broken", "states no frame rate")
        if fps and fps > 1.01 * rate:
            raise Unusable("slow", f"has {float(rate):g} frames per second, fewer than {fps:g}")
        seconds = float((file.duration or 0) / av.time_base)
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        if not fps and stream.frames:
            return stream.frames, seconds, rate
        return int((fps or rate) * (seconds - 0.5 / rate)) + 1 if seconds else 0, seconds, rate


def timed_frames(path, fps, rate):
    """Yield (seconds since the first, PyAV frame) of a video: all frames, or the nearest to each multiple of 1 / fps."""
    import av

    with av.open(path) as file:
        tick, start = 0, None
        for number, frame in enumerate(file.decode(video=0)):
            if frame.is_corrupt:
                raise Unusable("broken", f"frame {number} is damaged")
            # AVI stores no times; those that FFmpeg infers for H.264 are out of order
            seconds = number / rate if frame.time is None or file.format.name == "avi" else frame.time
            start = seconds if start is None else start
            if not fps or seconds - start >= tick / fps - 0.5 / rate:
                tick += 1
                yield seconds - start, frame


def middle_frames(path, frames, fps, size):
    """The middle `frames` frames of a video, upright, uint8 [T,size,size,3], and the degrees they were rotated clockwise.

    Decoding stops after the last of them. If the header states no length, or one that is too long, the video is decoded twice.
    """
    import av

    def middle(length):
        first, found, quarters = (length - frames) // 2, [], 0
        for _, frame in itertools.islice(timed_frames(path, fps, rate), first, first + frames):
            quarters = round(-frame.rotation / 90) % 4  # FFmpeg counts anticlockwise
            found.append(upright_frame(frame, size))
        return found, 90 * quarters

    if not path.stat().st_size:
        raise Unusable("empty", "has no bytes")
    try:
        length, seconds, rate = header(path, fps)
        found, degrees = middle(length) if length >= frames else ([], 0)
        if len(found) < frames:
            length, end = 0, 0.0
            for time, _ in timed_frames(path, fps, rate):
                length, end = length + 1, time + 1 / (fps or rate)
            if end < 0.9 * seconds:
                raise Unusable("broken", f"ends after {end:.2f} of {seconds:.2f} seconds")
            if not length:
                raise Unusable("empty", "holds no frame")
            if length < frames:
                at_rate = f" at {fps:g} per second" if fps else ""
                raise Unusable("short", f"has {length} frames{at_rate}, fewer than {frames}")
            found, degrees = middle(length)
    except (av.FFmpegError, OSError, ValueError) as e:
        raise Unusable("broken", f"cannot be decoded ({getattr(e, 'strerror', None) or e})") from e
    return torch.cat(found), degrees


def images_in(folder):
    """The JPEG and PNG files of a folder in natural order: frame_10 comes after frame_9."""
    return sorted(
        (p for p in folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png")),
        key=lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)],
    )


def middle_images(folder, frames, size):
    """The middle `frames` images of a folder, uint8 [T,size,size,3]. No other is opened."""
    files = images_in(folder)
    if not files:
        raise Unusable("empty", "holds no JPEG or PNG")
    if len(files) < frames:
        raise Unusable("short", f"has {len(files)} frames, fewer than {frames}")
    first = (len(files) - frames) // 2
    return images(files[first : first + frames], size)


def images(paths, size):
    """Images as a clip, uint8 [T,size,size,3]."""
    from PIL import Image

    frames = []
    for path in paths:
        try:
            with Image.open(path) as image:
                x = torch.from_numpy(np.array(image.convert("RGB")))
            frames.append(frames_of({"frames": x[None]}, size))
        except (OSError, SyntaxError, ValueError) as e:  # Pillow raises SyntaxError for a broken PNG
            raise Unusable("broken", f"{path.name} cannot be decoded ({e})") from e
    return torch.cat(frames)


def content_hash(path):
    """SHA-256 of a file, or of the images of a folder in order."""
    found = hashlib.sha256()
    for part in images_in(path) if path.is_dir() else [path]:
        with open(part, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.digest()


def whole_video(path, frames, size, max_side):
    """(`frames` evenly spaced frames of a video, upright, uint8 [T,size,size,3]; its size in pixels; degrees rotated clockwise)."""
    import av

    try:
        _, seconds, rate = header(path, None)
        # recordings of browsers state no length
        seconds = seconds or max((t for t, _ in timed_frames(path, None, rate)), default=0) + 1 / rate
        with av.open(path) as file:
            size_of = file.streams.video[0].width, file.streams.video[0].height
    except (av.FFmpegError, OSError, ValueError) as e:
        raise Unusable("broken", f"cannot be decoded ({getattr(e, 'strerror', None) or e})") from e
    if max(size_of) > max_side:
        raise Unusable("large", f"is {size_of[0]}x{size_of[1]} pixels, more than --max-side {max_side}")
    if frames > 1.01 * seconds * rate:
        raise Unusable("short", f"has {round(seconds * rate)} frames, fewer than {frames}")
    found, degrees = middle_frames(path, frames, frames / float(seconds), size)
    return found, size_of[::-1] if degrees % 180 else size_of, degrees


# ---------------------------------------------------------------- frames chosen by flags


def frame_methods(args, items):
    """The methods of choosing frames in --frames. Exits with code 2 where the clips are too short for --count."""
    methods = args.frames.split(",") if args.frames else []
    for how in methods:
        check_choice(how, dict.fromkeys(CHOICES), "method of choosing frames in --frames")
    if args.largest_gap and not {"motion", "uniform"} & set(methods):
        fail(f"--largest-gap {args.largest_gap} needs --frames motion or uniform; leave it out")
    if not methods:
        return methods
    lengths = {len(item["frames"]) if "frames" in item else 1: item["id"] for item in items}
    least, most = min(lengths), max(lengths)
    if args.count < 1 or least < max(args.count, 2):
        fail(f"--count {args.count}: {lengths[least]} has {least} frames; give 1 or more, and longer clips")
    if args.largest_gap and most - 1 > args.largest_gap * (args.count - 1):
        gap = f"--largest-gap {args.largest_gap} and --count {args.count}"
        fail(f"{gap} do not span the {most} frames of {lengths[most]}; raise one of the two")
    return methods


def with_chosen(items, how, args, count=None):
    """Items with the numbers of the frames that `how` chooses as `shown`."""
    if not how:
        return items
    gap = args.largest_gap if how in ("motion", "uniform") else None
    found = []
    for item in tqdm(items, desc=f"frames by {how}", unit="clip", leave=False, delay=5):
        seed = args.seed, zlib.crc32(item["id"].encode())
        shown = choose_frames(item["frames"], count or args.count, how, seed, largest_gap=gap)
        found.append(item | {"shown": shown})
    return found


# ---------------------------------------------------------------- masks


def foreground(items, side):
    """Foreground share of every cell [n, side, side], of the masks or else of the union of the boxes."""
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


# ---------------------------------------------------------------- a folder of clips or images, written whole


def write_whole(out, items, meta, verdict):
    """Write items, and replace the content of `out` at the end.

    verdict(index) exits 2 for items that are not usable, or returns more entries of index.yaml.
    """
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
    """The `verdict` of write_whole for n decoded clips with `notes` (id, kind, reason) on problems."""

    def verdict(index):
        for name, _, reason in notes:
            print(f"{name}: {reason}", file=sys.stderr)
        kinds = Counter(kind for _, kind, _ in notes)
        rotated, skipped = kinds.pop("rotated", 0), kinds.total()
        if skipped and not skip_bad:
            fail(f"{skipped} of {n} clips have problems, listed above; repair them or add --skip-bad")
        if not index["items"]:
            fail(f"none of {n} clips is usable; check --root, --frames and --fps")
        return {"skipped": skipped, "skipped_kinds": dict(sorted(kinds.items())), "rotated": rotated}

    return verdict
