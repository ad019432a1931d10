"""Images and videos as arrays: decoding, time stamps, choice of frames."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
import shutil
import zlib
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import check_choice, fail, load_yaml, save_yaml, write_items

# Frames a second of a clip that states none: the rate at which Qwen2.5-VL samples videos. The library's
# default is 24, at which all time steps would share one position.
RATE = 2.0
MAX_PIXELS = 100_000_000  # of an image or a frame: 300 MB once decoded
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".gif", ".webp"}
# of Pillow; others start programs
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA", "JPEG2000", "AVIF")
# of each EXIF orientation: Pillow's Image.Transpose that brings it upright, and degrees clockwise
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
DEGREES = {3: 180, 5: 90, 6: 90, 7: 270, 8: 270}
# the orientations as display matrices of videos: a stored pixel (x, y) is shown at (a x + c y, b x + d y)
DISPLAYED = {(1, 0, 0, 1): 1, (-1, 0, 0, 1): 2, (-1, 0, 0, -1): 3, (1, 0, 0, -1): 4}
DISPLAYED |= {(0, 1, 1, 0): 5, (0, 1, -1, 0): 6, (0, -1, -1, 0): 7, (0, -1, 1, 0): 8}
TRANSPARENT = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders leave out the transparency


class Unusable(Exception):
    """A file or clip that cannot be used; args: (kind, reason)."""


# ---------------------------------------------------------------- images


def is_image(name):
    return Path(name).suffix.lower() in IMAGES


def is_video(name):
    return Path(name).suffix.lower() in VIDEOS


def check_pixels(width, height):
    if width * height > MAX_PIXELS:
        size = f"is {width}x{height}, {width * height:,} pixels"
        raise Unusable("large", f"{size}; at most {MAX_PIXELS:,} are read")


@contextlib.contextmanager
def opened_image(source):
    """The Pillow image of bytes or of a file. Raises Unusable, also for errors while it is used."""
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_pixels(*image.size)
            yield image
    except Unusable:
        raise
    except FileNotFoundError as e:
        raise Unusable("missing", "does not exist") from e
    except Exception as e:  # the decoders raise errors of almost any kind on damaged files
        why = "no image of a known format" if isinstance(e, UnidentifiedImageError) else e
        raise Unusable("broken", f"cannot be decoded ({' '.join(str(why).split())})") from e


def orientation(picture):
    """The EXIF orientation, 1 to 8, of Pillow's image; of PyAV's frame, that of its display matrix."""
    if hasattr(picture, "side_data"):
        matrix = np.frombuffer(bytes(picture.side_data.get("DISPLAYMATRIX") or 36), "<i4")[[0, 1, 3, 4]]
        signs = tuple(np.round(matrix / max(1, np.abs(matrix).max())).astype(int))
        if any(signs) and signs not in DISPLAYED:
            raise Unusable("rotation", f"is turned by {abs(picture.rotation):g} degrees; export it upright")
        return DISPLAYED.get(signs, 1)
    try:
        return picture.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF
        return 1


def eight_bits(image):
    """A grey Pillow image of 16 bits with the high 8. Raises Unusable for values of another range."""
    from PIL import Image

    x = np.asarray(image)
    if x.dtype.kind == "f" or x.min() < 0 or x.max() > 65535:
        raise Unusable("range", f"has values of an unknown range ({x.dtype}); save 8 or 16 bits a channel")
    grey = Image.fromarray((x.astype(np.int32) >> 8).astype(np.uint8))
    if "transparency" in image.info:
        grey.putalpha(Image.fromarray(255 * (x != image.info["transparency"]).astype(np.uint8)))
    return grey


def upright_pixels(picture):
    """RGB uint8 [H,W,3] of Pillow's image or PyAV's frame, upright, on white."""
    from PIL import Image

    image = frame_image(picture) if hasattr(picture, "reformat") else picture
    image.load()
    turn = TURNS.get(orientation(picture))
    if image.mode[0] in "FI":
        image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return np.array(image if turn is None else image.transpose(turn))


def read_image(source):
    """The (first) image of bytes or a path as uint8 [H,W,3], upright, RGB on white. Raises Unusable."""
    with opened_image(source) as image:
        return torch.from_numpy(upright_pixels(image))


def image_size(source):
    """(width, height) of an upright image, bytes or a path, without decoding it. Raises Unusable."""
    with opened_image(source) as image:
        # Pillow gives the upright size of a TIFF; for the EXIF of a PNG, it decodes it
        plain = image.format == "PNG" and not re.search(b"(?i)exif|xmp", image.fp.getvalue())
        sideways = not plain and image.format != "TIFF" and orientation(image) > 4
        return image.size[::-1] if sideways else image.size


def open_image(path):
    """`read_image` of a path given by hand: exits with code 2 if it cannot be read."""
    try:
        return read_image(path)
    except Unusable as e:
        fail(f"{path} cannot be read as an image: it {e.args[1]}; give a JPEG or PNG file")


# ---------------------------------------------------------------- frames of items


def fitted(width, height, token, most):
    """(width, height) after Qwen's resizing: multiples of `token` px, at most `most` pixels."""
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    return smart_resize(height, width, token, token**2, max(most, token**2))[::-1]


def frames_of(item, size=None):
    """Frames of an item, uint8 [T,H,W,3]; only those numbered in its `shown`, if it has that.

    size: an int resizes to `size` x `size` (antialiased bicubic), (token, most) to `fitted`. Resizing to a
    square gives all items one token grid; boxes and masks scale with it, and IoU does not change.
    """
    if "images" in item:
        return torch.cat([frames_of({"encoded": image}, size) for image in item["images"]])
    if "frames" not in item:
        frames = read_image(item["encoded"].numpy().tobytes())[None]
    else:
        frames = item["frames"][item["shown"]] if "shown" in item else item["frames"]
    to = height, width = tuple(frames.shape[1:3])
    if size:
        to = (size, size) if isinstance(size, int) else fitted(width, height, *size)[::-1]
    if (height, width) != to:
        x = frames.permute(0, 3, 1, 2).float()
        x = torch.nn.functional.interpolate(x, to, mode="bicubic", antialias=True, align_corners=False)
        frames = x.round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return frames


def times_of(item):
    """Seconds of the frames that `frames_of` gives, float64 [T]: of the item's `times`, or else at RATE."""
    count = len(item["frames"] if "frames" in item else item.get("images", "1"))
    times = torch.as_tensor(item.get("times", torch.arange(count) / RATE)).double()
    return times[item["shown"]] if "shown" in item else times


def stacked(items, size=None):
    """Frames of items, uint8 [n,T,H,W,3]; their seconds go with them as `times`, if the items state them."""
    frames = torch.stack([frames_of(item, size) for item in items])
    if all("times" in item for item in items):
        frames.times = [times_of(item).tolist() for item in items]
    return frames


def part_of(frames, start, end):
    """Clips start ... end - 1 of `frames`, with their `times`, which a slice alone would lose."""
    part = frames[start:end]
    if hasattr(frames, "times"):
        part.times = frames.times[start:end]
    return part


def pace(times):
    """The library's metadata of a clip with frames at `times` in seconds: the step is their mean distance."""
    # closer than that, Qwen2.5-VL's steps of two frames would share one temporal position
    step = max((times[-1] - times[0]) / (len(times) - 1), 0.25)
    return {"fps": 1.0, "total_num_frames": len(times) * step, "frames_indices": list(times)}


def grey_of(x):
    """Luma (BT.601) in [0, 1], fp32, of uint8 [..., 3]."""
    return x.float() @ torch.tensor([0.299, 0.587, 0.114]) / 255


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


# ---------------------------------------------------------------- videos

# a frame of a file: when and how long it is shown (0 if unknown), unit of the time stamps (all in seconds);
# `picture` of Pillow or PyAV
Shown = namedtuple("Shown", "stamp seconds tick picture")


@dataclasses.dataclass
class Clip:
    frames: torch.Tensor  # uint8 [T, size, size, 3]
    times: torch.Tensor  # float64 [T]: seconds from the first of these frames
    width: int  # of the file, upright, in pixels
    height: int
    rotated: int = 0  # degrees clockwise by which it was turned


@dataclasses.dataclass
class Timeline:
    stamps: np.ndarray  # float64 [n] ascending: seconds from the first frame
    end: float  # seconds
    tick: float  # seconds: the unit of the stamps
    width: int  # as of a Clip
    height: int
    rotated: int


def check_complete(path):
    """Raises Unusable for a file that ends before a part which its container announces."""
    size, end = path.stat().st_size, 0
    with open(path, "rb") as file:
        head = file.read(4096)
        segment = head.find(b"\x18\x53\x80\x67") + 4
        if head[:4] == b"RIFF":  # AVI, WebP
            end = 8 + int.from_bytes(head[4:8], "little")
        elif head[:4] == b"\x1a\x45\xdf\xa3" and 3 < segment < len(head):  # Matroska, WebM
            length = 9 - head[segment].bit_length()  # of the number that follows, 7 bits a byte
            stated = int.from_bytes(head[segment : segment + length]) % (1 << 7 * length)
            end = segment + length + stated if stated != (1 << 7 * length) - 1 else 0  # all ones: unknown
        while head[4:8] in (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"wide", b"skip"):  # MP4, QuickTime
            length = int.from_bytes(head[:4])
            length = int.from_bytes(head[8:16]) if length == 1 else length
            end += max(8, length or size - end)
            file.seek(end)
            head = file.read(16)
    if end > size:
        raise Unusable("broken", f"is cut off: it has {size:,} of {end:,} bytes")


def animation_frames(path):
    """Yield every frame of a GIF or WebP as `Shown`, valid until the next."""
    with opened_image(path) as image:
        stamp = 0.0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            check_pixels(*image.size)
            image.load()
            milliseconds = image.info.get("duration") or 0
            seconds = milliseconds / 1000 if milliseconds > 10 else 0.1  # as browsers show them
            yield Shown(stamp, seconds, 0.01, image)
            stamp += seconds


def frame_image(frame):
    """The Pillow image of PyAV's frame, with the matrix and range of colours that the frame states."""
    from av.video.reformatter import Interpolation
    from PIL import Image

    exact = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    alpha = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    form = "rgba" if alpha else "rgb24"
    return Image.fromarray(frame.reformat(format=form, interpolation=exact).to_ndarray())


def decoded(file, stream):
    import av

    codec = TRANSPARENT.get(stream.codec_context.name)
    if codec and stream.metadata.get("alpha_mode") == "1":
        decoder = av.CodecContext.create(codec, "r")
        return itertools.chain.from_iterable(map(decoder.decode, file.demux(stream)))
    return file.decode(stream)


def video_frames(path):
    """Yield every frame of a video as `Shown`; its time is counted if it has no stamps, as H.264 in AVI."""
    import av

    try:
        with av.open(str(path)) as file:
            stream = file.streams.best("video")
            if not stream:
                raise Unusable("empty", "holds no video")
            tick, rate = float(stream.time_base), float(stream.average_rate or stream.guessed_rate or RATE)
            for number, frame in enumerate(decoded(file, stream)):
                if frame.is_corrupt:
                    raise Unusable("broken", f"is damaged at frame {number}")
                check_pixels(frame.width, frame.height)
                stated = file.format.name != "avi" and frame.pts is not None
                stamp = frame.pts * tick if stated else number / rate
                yield Shown(stamp, (frame.duration or 0) * tick, tick, frame)
    except (av.FFmpegError, OSError, ValueError) as e:
        raise Unusable("broken", f"cannot be decoded ({getattr(e, 'strerror', None) or e})") from e


def shown_frames(path):
    """Iterate over every frame of a video, GIF or WebP file as `Shown`. Raises Unusable, also for damage."""
    path = Path(path)
    if not path.is_file():
        raise Unusable("missing", "does not exist")
    if not path.stat().st_size:
        raise Unusable("empty", "has no bytes")
    check_complete(path)
    with open(path, "rb") as file:
        animation = re.match(b"GIF8|RIFF....WEBP", file.read(12), re.DOTALL)
    return animation_frames(path) if animation else video_frames(path)


def timeline(path):
    """The `Timeline` of a video, GIF or WebP file, decoded to its end as headers may lie. Raises Unusable."""
    times = []
    for shown in shown_frames(path):
        if not times:
            oriented = orientation(shown.picture)
            size = (shown.picture.width, shown.picture.height)[:: -1 if oriented > 4 else 1]
        times.append(shown.stamp)
        last, tick = shown.seconds, shown.tick
    if not times:
        raise Unusable("empty", "holds no frame")
    times = np.array(times) - times[0]
    if (np.diff(times) < 0).any():
        raise Unusable("broken", "has frames whose times go back; export it again")
    gap = times[-1] / (len(times) - 1) if len(times) > 1 else 1 / RATE
    tick = min(tick, gap / 5)  # times in units as long as a frame are not rounded
    return Timeline(times, float(times[-1] + (last or gap)), tick, *size, DEGREES.get(oriented, 0))


def frames_at(path, numbers, size=None):
    """The frames of a video by number, uint8 [k,H,W,3]. Raises Unusable."""
    found = {}
    for number, shown in enumerate(shown_frames(path)):
        if number in numbers:
            found[number] = frames_of({"frames": torch.from_numpy(upright_pixels(shown.picture))[None]}, size)
        if len(found) == len(set(numbers)):
            break
    return torch.cat([found[number] for number in numbers])


def instants(line, frames, fps=None, evenly=False):
    """(numbers of `frames` frames of a Timeline, their times in seconds), as `read_clip` takes them."""
    count, at_rate = len(line.stamps), ""
    if fps and not evenly:
        count, at_rate = int(np.ceil((line.end - line.tick / 2) * fps)), f" at {fps:g} per second"
    if count < frames:
        raise Unusable("short", f"has {count} frames{at_rate}, fewer than {frames}")
    numbers = (count - frames) // 2 + np.arange(frames)
    if not (evenly or fps):
        return numbers, line.stamps[numbers]
    times = np.arange(frames) * line.end / frames if evenly else numbers / fps
    return np.searchsorted(line.stamps, times + line.tick / 2, "right") - 1, times


def read_clip(path, frames, fps=None, size=None, evenly=False):
    """A `Clip` of a video, GIF or WebP file, or of a folder of images (RATE a second). Raises Unusable.

    It holds the middle `frames` frames; with fps, of those shown at instants 1 / fps seconds apart in the
    clip's own time, so that a held frame repeats; evenly: those shown at instants spread over the whole clip.
    """
    path = Path(path)
    if path.is_dir():
        if fps:
            raise Unusable("rate", "is a folder of images, which have no times; leave out the rate")
        files = images_in(path)
        if not evenly:
            files = files[max(0, len(files) - frames) // 2 :][:frames]
        return read_frames(files, Path, frames, size)
    line = timeline(path)
    numbers, times = instants(line, frames, fps, evenly)
    found = frames_at(path, numbers.tolist(), size)
    return Clip(found, torch.from_numpy(times - times[0]), line.width, line.height, line.rotated)


def read_frames(names, read, frames, size=None):
    """A `Clip` of `frames` images spread evenly over a list; read(name): bytes or a path. Raises Unusable."""
    if len(names) < frames:
        raise Unusable("short" if names else "empty", f"has {len(names)} frames, fewer than {frames}")
    found, full = [], None
    numbers = evenly_spread(len(names), frames)
    for number in numbers:
        try:
            x = read_image(read(names[number]))
        except Unusable as e:
            raise Unusable(e.args[0], f"{Path(names[number]).name} {e.args[1]}") from e
        full = full or x.shape[1::-1]
        found.append(frames_of({"frames": x[None]}, size))
    return Clip(torch.cat(found), (torch.tensor(numbers) - numbers[0]).double() / RATE, *full)


def images_in(folder):
    """The images of a folder in natural order, frame_10 after frame_9. Raises Unusable for several series."""
    files = [p for p in folder.iterdir() if is_image(p) and not p.name.startswith(".")]
    # img_1 and flow_1 are two series, and so are cam1_1 and cam2_1, but not 12-59-01 and 13-00-01
    numbers = re.compile(r"(?<![A-Za-z\d])\d+|\d+(?=\D*$)|^\D+$")
    series = sorted({numbers.sub("*", p.stem) + p.suffix.lower() for p in files})
    if len(series) > 1:
        raise Unusable("mixed", f"has images of several series ({', '.join(series[:3])}); keep one there")
    return sorted(files, key=lambda p: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", p.name)])


def content_hash(path):
    """SHA-256 of a file, or of the images of a folder in order."""
    found = hashlib.sha256()
    for part in images_in(path) if path.is_dir() else [path]:
        with open(part, "rb") as f:
            found.update(hashlib.file_digest(f, "sha256").digest())
    return found.digest()


# ---------------------------------------------------------------- choice of frames

CHOICES = "motion", "motion-cdf", "uniform", "random", "scene"
GREY = 64  # px of a side at which motion is measured, at most
CUT = 0.5  # correlation of adjacent frames' luma histograms below which a new shot begins


def greys(clip):
    """Grey [T,h,w] in [0, 1], at most GREY px on a side, of uint8 [T,H,W,3]."""
    to = [min(side, GREY) for side in clip.shape[1:3]]
    small = [torch.nn.functional.interpolate(grey_of(x)[None, None], to, mode="area") for x in clip]
    return torch.cat(small)[:, 0].numpy()


def evenly_spread(length, k):
    """Numbers of k of `length` frames at even distances, first and last included; the middle for k = 1."""
    return np.linspace(0, length - 1, k).round().astype(int).tolist() if k > 1 else [(length - 1) // 2]


def by_motion(x, k, boundary):
    must, motion = {0, len(x) - 1}, np.abs(np.diff(x, axis=0, prepend=x[:1])).mean((1, 2))
    if boundary is not None:
        must.add(boundary)
        motion = motion * np.exp(-np.square((np.arange(len(x)) - boundary) / (len(x) / 8)) / 2)
    if k == 1:
        return [int(motion.argmax()) if boundary is None else boundary]
    if k < len(must):
        fail(f"{k} frames cannot be first, last and boundary; choose {len(must)} or more")
    motion[evenly_spread(len(x), k)] += 1e-9  # they are first among equals
    motion[list(must)] = np.inf
    return sorted(np.argsort(-motion, kind="stable")[:k].tolist())


def by_shares(x, k):
    change = np.abs(np.diff(x, axis=0, prepend=x[:1]))
    noise = 6 * np.median(change, (1, 2), keepdims=True)  # four standard deviations
    motion = np.where(change > noise, change, 0).mean((1, 2))
    motion = (motion if motion.any() else change.mean((1, 2))) + 1e-5
    numbers = np.searchsorted(np.cumsum(motion) / motion.sum(), (np.arange(k) + 0.5) / k)
    numbers = np.maximum.accumulate(numbers - np.arange(k)) + np.arange(k)  # all different
    return np.minimum(numbers, len(x) - k + np.arange(k)).tolist()


def by_shot(x, k):
    # shots are cut as by PySceneDetect's HistogramDetector
    histograms = np.array([np.histogram(grey, 32, (0, 1))[0] for grey in x])
    alike = np.array([np.corrcoef(*pair)[0, 1] for pair in zip(histograms, histograms[1:], strict=False)])
    starts = [0, *(1 + np.flatnonzero(alike < CUT)).tolist()]
    lengths = np.diff([*starts, len(x)])
    share = np.zeros(len(starts), int)
    for _ in range(k):
        share[np.where(share < lengths, lengths / (share + 1), 0).argmax()] += 1
    middles = [(np.arange(n) + 0.5) / n for n in share]
    parts = zip(starts, lengths, middles, strict=True)
    return np.concatenate([first + (length * m).astype(int) for first, length, m in parts]).tolist()


def choose_frames(clip, k, how="motion", seed=0, boundary=None):
    """Numbers of k different frames of a clip, uint8 [T,H,W,3], in ascending order.

    motion      the first, the last and the boundary frame, if two actions are known to meet there, and those
                with the greatest mean absolute difference from the frame before, times a Gaussian about it
    motion-cdf  the middles of equal shares of the cumulative motion (MGSampler; Zhi et al., ICCV 2021), of
                pixels that differ more than noise
    uniform     at even distances, with the first and the last
    random      drawn by `seed`, an int or several
    scene       the middles of equal parts of the shots, in proportion to their lengths
    """
    check_choice(how, dict.fromkeys(CHOICES), "method of choosing frames")
    length = len(clip)
    if not 1 <= k <= length:
        fail(f"{k} of {length} frames cannot be chosen; give a number of frames from 1 to {length}")
    if boundary is not None and not (how == "motion" and 0 <= boundary < length):
        fail(f"boundary {boundary} needs the choice motion and a frame from 0 to {length - 1}")
    if how == "random":
        return sorted(np.random.default_rng(seed).choice(length, k, replace=False).tolist())
    if how == "uniform":
        return evenly_spread(length, k)
    if how == "motion":
        return by_motion(greys(clip), k, boundary)
    return by_shares(greys(clip), k) if how == "motion-cdf" else by_shot(greys(clip), k)


def frame_methods(args, items):
    """The methods of choosing frames in --frames. Exits with code 2 where clips are too short for --count."""
    methods = args.frames.split(",") if args.frames else []
    for how in methods:
        check_choice(how, dict.fromkeys(CHOICES), "method of choosing frames in --frames")
    shortest = min(items, key=lambda item: len(item.get("frames", "1")))
    length = len(shortest.get("frames", "1"))
    if methods and not 1 <= args.count <= length > 1:
        fail(f"--count {args.count}: {shortest['id']} has {length} frames; give 1 or more, and longer clips")
    return methods


def with_chosen(items, how, args, count=None):
    """Items with the numbers of the frames that `how` chooses as `shown`."""
    if not how:
        return items
    found = []
    for item in tqdm(items, desc=f"frames by {how}", unit="clip", leave=False, delay=5):
        seed = args.seed, zlib.crc32(item["id"].encode())
        found.append(item | {"shown": choose_frames(item["frames"], count or args.count, how, seed)})
    return found


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
