"""Images and clips as people have them are read with the right pixels, frames and times."""

import functools
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

import media
import synthetic
from media import Unusable, read_clip, read_image

CODECS = {".webm": "libvpx-vp9", ".ts": "mpeg2video"}
RED, WHITE = [220, 20, 20], [255, 255, 255]


def encode(path, frames, rate=12, rotated=False, live=False, times=None, form="rgb24", **options):
    """A video of frames [T, H, W, C], shown at times in seconds; its header may ask for 90 degrees clockwise
    (or for `turn`), or state no length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec, pix = (options.pop(key, None) for key in ("codec", "pix"))
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as file:
        stream = file.add_stream(codec or CODECS.get(path.suffix, "libx264"), rate=rate)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.gop_size = pix or "yuv420p", 20
        if "turn" in options or rotated:
            stream.set_display_rotation(*options.pop("turn", (270,)))
        key = "b" if path.suffix == ".webm" else "sc_threshold"
        stream.options = {"crf": "8", key: "0"} | options
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


@functools.cache
def numbered():
    """40 frames, uint8 [40, 48, 64, 3], without symmetries; the grey level of a corner states the number."""
    frames = next(iter(synthetic.moving(3, 64, 5, frames=40)))["frames"][:, :48].numpy().copy()
    frames[:, :16, :16] = (np.arange(40) * 6)[:, None, None, None]
    return frames


def numbers(frames):
    return (frames[:, 2:8, 2:8].float().mean((1, 2, 3)) / 6).round().int().tolist()


def levels(clip):
    return clip.frames.float().mean((1, 2, 3)).round().int().tolist()


def greys(n):
    return np.full((n, 48, 64, 3), 10 + 5 * np.arange(n)[:, None, None, None], np.uint8)


def refused_as(kind, words, read, *given, **more):
    with pytest.raises(Unusable) as e:
        read(*given, **more)
    assert e.value.args[0] == kind and words in e.value.args[1], e.value.args


def packed(image, form="PNG", **options):
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def square(inside, outside, kind=np.uint8):
    """[64, 64, ...] of one value, and in the middle of another."""
    x = np.full((64, 64, *np.shape(inside)), outside, kind)
    x[16:48, 16:48] = inside
    return x


# ---------------------------------------------------------------- images

PALETTE = Image.fromarray(square(1, 0), "P")
PALETTE.putpalette([0, 0, 0, *RED])
GREY, DEEP = square(200, 0), square(0xC000, 0x4000, np.uint16)
RGBA = square([*RED, 255], [0, 0, 0, 0])
CMYK = Image.fromarray(np.full((64, 64, 4), np.uint8([0, 255, 255, 0])), "CMYK")
PIXELS = {  # the file, the colour at the edge and in the middle
    "rgba": (packed(RGBA), WHITE, RED),
    "webp": (packed(RGBA, "WEBP", lossless=True), WHITE, RED),
    "palette": (packed(PALETTE, transparency=0), WHITE, RED),
    "gif": (packed(PALETTE, "GIF", transparency=0), WHITE, RED),
    "rgb with a transparent colour": (packed(square(RED, 0), transparency=(0, 0, 0)), WHITE, RED),
    "grey with alpha": (packed(Image.fromarray(square([200, 255], [0, 0]), "LA")), WHITE, [200] * 3),
    "one bit": (packed(Image.fromarray(GREY > 0), transparency=0), WHITE, WHITE),
    "16 bit": (packed(DEEP), [64] * 3, [192] * 3),
    "16 bit with a transparent level": (packed(DEEP, transparency=0x4000), WHITE, [192] * 3),
    "16 bit PGM": (b"P5 64 64 65535\n" + DEEP.astype(">u2").tobytes(), [64] * 3, [192] * 3),
    "cmyk": (packed(CMYK, "JPEG", quality=95), [255, 0, 0], [255, 0, 0]),
    "cmyk TIFF": (packed(CMYK, "TIFF"), [255, 0, 0], [255, 0, 0]),
}


@pytest.mark.parametrize("name", PIXELS)
def test_an_image_is_rgb_on_white_whatever_its_mode(name):
    content, edge, middle = PIXELS[name]
    item = {"encoded": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    for x in (read_image(content), media.frames_of(item)[0]):
        assert x.dtype == torch.uint8 and (x[2, 2].tolist(), x[32, 32].tolist()) == (edge, middle)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_states_and_so_is_its_size(form):
    x = np.zeros((64, 96, 3), np.uint8)
    x[:32, :48] = 255
    bright = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for orientation, corner in bright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = packed(x, form, exif=exif)
        found = read_image(content)
        assert media.image_size(content) == found.shape[1::-1] == ((64, 96) if orientation > 4 else (96, 64))
        quarters = found[[8, -8]][:, [8, -8], 0] > 127
        assert quarters.nonzero().tolist() == [list(corner)], orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_and_an_animation_is_its_first_frame(form):
    content = packed(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), form)
    for share in (0.3, 0.9):
        refused_as("broken", "cannot be decoded", read_image, content[: int(share * len(content))])
    if form in ("PNG", "GIF", "WEBP"):
        first, second = (Image.new("RGB", (8, 8), (level,) * 3) for level in (20, 40))
        animation = packed(first, form, save_all=True, append_images=[second], lossless=True)
        assert read_image(animation)[0, 0].tolist() == [20] * 3


def test_what_is_no_image_or_too_large_is_refused_by_name(tmp_path, refused):
    refused_as("broken", "no image", read_image, b"hello")
    refused_as("missing", "does not exist", read_image, tmp_path / "a.png")
    refused_as("range", "float32", read_image, packed(DEEP.astype(np.float32), "TIFF"))
    refused_as("range", "int32", read_image, packed(DEEP.astype(np.int32) * 100, "TIFF"))
    (tmp_path / "a.png").write_bytes(packed(Image.new("1", (13400, 13402))))
    for read in (read_image, media.image_size):
        refused_as("large", "13400x13402, 179,586,800 pixels; at most 100,000,000", read, tmp_path / "a.png")
    refused(
        lambda: media.open_image(tmp_path / "a.png"), "a.png cannot be read as an image: it is 13400x13402"
    )


# ---------------------------------------------------------------- clips


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv", "a.avi", "a.ts", "rotated.mp4", "folder"])
def test_the_middle_frames_come_back_in_order_and_upright_from_every_container(tmp_path, name):
    path, rotated = tmp_path / name, name == "rotated.mp4"
    if name == "folder":
        path.mkdir()
        for t, frame in enumerate(numbered(), 1):  # 1.jpg ... 40.jpg: alphabetically 10 comes before 2
            Image.fromarray(frame).save(path / f"{t}.jpg", quality=95)
    else:
        encode(path, np.rot90(numbered(), 1, (1, 2)) if rotated else numbered(), rotated=rotated)
    clip = read_clip(path, 10, size=48)
    expected = media.frames_of({"frames": torch.from_numpy(numbered()[15:25])}, 48)
    assert numbers(clip.frames) == list(range(15, 25)) and (clip.frames.float() - expected).abs().mean() < 3
    assert (clip.width, clip.height, clip.rotated) == (64, 48, 90 * rotated)
    rate = media.RATE if name == "folder" else 12
    assert clip.times.tolist() == pytest.approx([k / rate for k in range(10)], abs=0.001)


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".avi"])
def test_at_a_rate_the_frame_shown_at_each_instant_is_taken(tmp_path, suffix):
    path = encode(tmp_path / f"a{suffix}", numbered())
    cases = {12: range(15, 25), 6: range(10, 30, 2), 4: range(6, 36, 3), 24: (n // 2 for n in range(35, 45))}
    for fps, expected in cases.items():
        clip = read_clip(path, 10, fps, 48)
        assert numbers(clip.frames) == list(expected)
        assert clip.times.tolist() == pytest.approx([k / fps for k in range(10)])
    clip = read_clip(encode(tmp_path / f"b{suffix}", numbered(), rate=30), 16, 12, 48)
    assert numbers(clip.frames) == [5 * k // 2 for k in range(16)]


def test_a_clip_of_varying_rate_is_sampled_in_its_own_time(tmp_path):
    times = [k / 10 for k in range(20)] + [8 + k / 10 for k in range(40)]  # nothing new from 2 to 8 s
    frames = np.stack([np.full((48, 64, 3), round(10 + 20 * t), np.uint8) for t in times])
    clip = read_clip(encode(tmp_path / "a.mp4", frames, 10, times=times), 24, 4, 16)
    shown = [max(x for x in times if x < 3 + k / 4 + 1e-6) for k in range(24)]
    assert np.abs(np.array(levels(clip)) - [10 + 20 * t for t in shown]).max() <= 2
    assert clip.times.tolist() == [k / 4 for k in range(24)]
    clip = read_clip(tmp_path / "a.mp4", 8, size=16, evenly=True)
    assert np.abs(np.array(levels(clip)) - [10, 40, 48, 48, 48, 48, 190, 220]).max() <= 2
    assert clip.times.tolist() == pytest.approx([1.5 * k for k in range(8)], abs=0.01)
    refused_as("short", "48 frames at 4 per second", read_clip, tmp_path / "a.mp4", 49, 4)


def test_edit_lists_are_honoured_and_wrong_numbers_in_headers_are_not_believed(tmp_path):
    def changed(name, like, at, number):
        content = bytearray((tmp_path / like).read_bytes())
        start = content.index(at[0]) + at[1]
        content[start : start + len(number)] = number
        (tmp_path / name).write_bytes(content)

    encode(tmp_path / "a.mp4", greys(40), rate=10, bf="0")
    encode(tmp_path / "a.avi", greys(40), rate=10)
    encode(tmp_path / "live.webm", greys(40), rate=10, live=True)  # no length
    changed("long.mp4", "a.mp4", (b"mdhd", 20), struct.pack(">I", 600 * 10240))  # ten minutes
    changed("long.avi", "a.avi", (b"strh", 40), struct.pack("<I", 400))  # frames
    changed("edited.mp4", "a.mp4", (b"elst", 12), struct.pack(">Ii", 2000, 10 * 1024))  # frames 10 to 29
    for name in ("a.mp4", "long.mp4", "long.avi", "live.webm", "edited.mp4"):
        assert levels(read_clip(tmp_path / name, 3))[0] == pytest.approx(10 + 5 * 18, abs=2), name
    assert levels(read_clip(tmp_path / "edited.mp4", 20))[0] == pytest.approx(60, abs=2)
    refused_as("short", "has 20 frames", read_clip, tmp_path / "edited.mp4", 21)


def test_display_matrices_turn_and_mirror(tmp_path):
    x = np.zeros((3, 48, 64, 3), np.uint8)
    x[:, :24, :32] = 255
    cases = {(90,): (1, 0), (180,): (1, 1), (270,): (0, 1), (0, True): (0, 1), (0, False, True): (1, 0)}
    for turn, corner in cases.items():
        clip = read_clip(encode(tmp_path / "a.mp4", x, turn=turn), 2)
        quarters = clip.frames[0, [5, -5]][:, [5, -5], 0] > 127
        assert quarters.nonzero().tolist() == [list(corner)], turn
        assert clip.rotated == -turn[0] % 360 and clip.width == (48 if turn[0] % 180 else 64)
    refused_as("rotation", "45 degrees", read_clip, encode(tmp_path / "a.mp4", x, turn=(45,)), 2)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "ffv1", "png", "qtrle"])
def test_a_transparent_video_stands_on_white(tmp_path, codec):
    name = {"png": "a.mov", "qtrle": "a.mov", "ffv1": "a.mkv"}.get(codec, "a.webm")
    pix = {"png": "rgba", "qtrle": "argb"}.get(codec, "yuva420p")
    path = encode(tmp_path / name, np.stack([RGBA] * 4), form="rgba", codec=codec, pix=pix)
    x = read_clip(path, 2).frames[0].int()
    assert (x[2, 2] > 252).all() and (x[32, 32] - torch.tensor(RED)).abs().max() <= 3


@pytest.mark.parametrize(("height", "width"), [(48, 64), (57, 101)])
def test_colours_follow_the_stated_matrix_range_and_depth_up_to_the_edge(height, width):
    red, grey, bt709, bt601, limited, full = (255, 0, 0), (200, 200, 200), 1, 5, 1, 2
    cases = [
        ("yuv420p", bt709, limited, (63, 102, 240), red),
        ("yuv420p", bt601, limited, (81, 90, 240), red),
    ]
    cases += [("yuv420p", bt601, full, (200, 128, 128), grey), ("yuv444p", bt709, full, (54, 99, 255), red)]
    cases += [("yuv420p10le", bt709, limited, (250, 409, 960), red)]
    for pix, matrix, scale, values, expected in cases:
        frame, kind = av.VideoFrame(width, height, pix), np.dtype("u2" if "10" in pix else "u1")
        for plane, value in zip(frame.planes, values, strict=True):
            plane.update(np.full(plane.buffer_size // kind.itemsize, value, kind).tobytes())
        frame.colorspace, frame.color_range = matrix, scale
        off = np.abs(media.upright_pixels(frame).astype(int) - expected)
        assert off.shape == (height, width, 3) and off.max() <= 3, (pix, matrix, scale)


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.webm", "a.mkv", "a.avi", "a.gif"])
def test_a_damaged_or_truncated_video_is_refused_however_it_is_sampled(tmp_path, name):
    path, cut = tmp_path / name, tmp_path / f"cut-{name}"
    if name == "a.gif":
        images = [*map(Image.fromarray, numbered())]
        images[0].save(path, save_all=True, append_images=images[1:], duration=100)
    content = path.read_bytes() if name == "a.gif" else encode(path, numbered()).read_bytes()
    for share in (0.4, 0.8, 0.95):
        cut.write_bytes(content[: int(share * len(content))])
        for how in ({}, {"fps": 2}, {"evenly": True}):
            refused_as("broken", "", read_clip, cut, 4, **how)
    at = int(0.7 * len(content))
    cut.write_bytes(content[:at] + bytes(x ^ 0x55 for x in content[at : at + 99]) + content[at + 99 :])
    if name != "a.gif":  # any bytes are an image
        refused_as("broken", "", read_clip, cut, 4)


def test_an_animation_is_a_clip_with_the_times_of_its_frames(tmp_path):
    first, *rest = (Image.new("RGB", (64, 48), (20 + 20 * k,) * 3) for k in range(10))
    for name in ("a.gif", "a.webp"):
        options = {"duration": [100] * 5 + [200] * 5, "lossless": True}
        first.save(tmp_path / name, save_all=True, append_images=rest, **options)
        clip = read_clip(tmp_path / name, 10)
        assert levels(clip) == [20 + 20 * k for k in range(10)] and clip.times[-1] == pytest.approx(1.3)
        assert levels(read_clip(tmp_path / name, 5, evenly=True)) == [20, 80, 120, 160, 180]


def test_other_clips_that_cannot_be_used_are_refused_by_kind(tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    path = encode(tmp_path / "a.mp4", greys(9))
    for kind, name in (
        ("empty", "empty.mp4"),
        ("broken", "text.mp4"),
        ("missing", "gone.mp4"),
        ("short", "a.mp4"),
    ):
        refused_as(kind, "", read_clip, tmp_path / name, 10)
    refused_as("large", "is 64x48, 3,072 pixels; at most 3,000", read_clip, path, 9, max_pixels=3000)


def test_a_folder_is_one_series_of_images(tmp_path):
    def read(*names, frames=2, **how):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        for n, name in enumerate(names):
            Image.new("L", (8, 8), n).save(path / name)
        return read_clip(path, frames, **how)

    for names in (["a9.png", "a10.png"], ["12-59-59.png", "13-00-00.png"], ["3_l.png", "20_l.png"]):
        assert levels(read(*names)) == [0, 1]
    for names in (["img_1.png", "flow_1.png"], ["cam1_1.png", "cam2_1.png"], ["1.png", "1.jpg"]):
        refused_as("mixed", "several series", read, *names)
    refused_as("rate", "no times", read, "1.png", "2.png", fps=4)
    refused_as("empty", "0 frames", read)
    shown = {name: packed(np.full((8, 8), n, np.uint8)) for n, name in enumerate("abcde")}
    clip = media.read_frames(list(shown), shown.get, 3)
    assert levels(clip) == [0, 2, 4] and clip.times.tolist() == [0, 1, 2]
    refused_as(
        "broken", "c cannot be decoded", media.read_frames, list("abcde"), (shown | {"c": b"?"}).get, 3
    )
