"""Shared by the tests of data: small images, videos, tables and archives, and the command line of data.py."""

import io
import json
import tarfile
import zipfile
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import data
from common import load_items
from media import frames_of

CODECS = {".webm": "libvpx-vp9", ".ts": "mpeg2video"}
RED, INSIDE = (220, 20, 20), (10, 4, 30, 12)  # a box, and where it is in most images
HELD = [k / 10 for k in range(20)] + [8 + k / 10 for k in range(40)]  # s; nothing new is shown from 2 to 8 s


def run(job, *argv, **flags):
    given = [x for k, v in flags.items() for x in (f"--{k.replace('_', '-')}", v)]
    return data.main([job, *map(str, [*argv, *given])])


def read(job, root, out, *argv, **flags):
    """({id: item}, index) of what a job writes."""
    index = run(job, *argv, root=root, out=out, **flags)
    return {item["id"]: item for item in load_items(out)[0]}, index


def facts(index, *names):
    return [index[name] for name in names]


def levels(item):
    """The mean grey level of each frame of an item or a Clip."""
    frames = frames_of(item) if isinstance(item, dict) else item.frames
    return pytest.approx(frames.float().mean((1, 2, 3)).tolist(), abs=2.5)


def packed(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def animation(form, frames=None, **options):
    """Frames, or ten of the levels 20, 40, ..., in a file of this format."""
    levels = np.arange(20, 220, 20, np.uint8)[:, None, None, None]
    first, *rest = map(
        Image.fromarray, levels.repeat(48, 1).repeat(64, 2).repeat(3, 3) if frames is None else frames
    )
    return packed(first, form, save_all=True, append_images=rest, lossless=True, **options)


def picture(path, size=(40, 16), box=INSIDE, level=128, **how):
    """Save a grey image with a red box."""
    pixels = np.full((size[1], size[0], 3), level, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = RED
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


def encode(path, frames, rate=12, turn=None, live=False, times=None, form="rgb24", **options):
    """A video of frames [T, H, W, C], shown at times in seconds; its header may ask for a turn or state no
    length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pix = (options.pop(key, None) for key in ("codec", "pix"))
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as file:
        stream = file.add_stream(codec or CODECS.get(path.suffix, "libx264"), rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix or "yuv420p", 20
        if turn:
            stream.set_display_rotation(*turn)
        stream.options = {"crf": "8", "b" if path.suffix == ".webm" else "sc_threshold": "0"} | options
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        if times:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, x in enumerate(np.asarray(frames)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format=form)
            if times:
                frame.pts, frame.time_base = round(1000 * times[k]), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def film(path, times):
    """A video of 64x48 pixels whose frames, grey 10 + 20 t, are shown at these seconds."""
    frames = [np.full((48, 64, 3), round(10 + 20 * t), np.uint8) for t in times]
    return encode(path, frames, 10, times=times).read_bytes()


def content_of(name, x):
    """The bytes of a file: of bytes, text, or a list of entries in the format that its name states."""
    if isinstance(x, list) and name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(x), file := io.BytesIO())
        return file.getvalue()
    if isinstance(x, list):
        x = json.dumps(x) if name.endswith(".json") else "".join(json.dumps(e) + "\n" for e in x)
    return x.encode("utf-8", "surrogateescape") if isinstance(x, str) else x


def put(path, files):
    """A folder or, by its name, an archive of {name or header: bytes, text or entries}."""
    found = {name: content_of(str(name), x) for name, x in files.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, x in found.items():
                file.writestr(name, x, zipfile.ZIP_DEFLATED)
    elif ".tar" in path.suffixes:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as file:
            for name, x in found.items():
                member = tarfile.TarInfo(name) if isinstance(name, str) else name
                member.size = len(x)
                file.addfile(member, io.BytesIO(x))
    else:
        for name, x in found.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(x)
    return path


def labels(root, *rows, header=("filename", "label"), file="labels.csv"):
    """A CSV of these rows, without quotes."""
    return put(root, {file: "".join(",".join(map(str, row)) + "\n" for row in (header, *rows))})
