"""Images and clips as people have them are read with the right pixels, frames and times."""

import functools
import struct

import av
import numpy as np
import pytest
import torch
from helpers_data import HELD, RED, animation, encode, film, levels, packed, put
from PIL import Image

import media
import synthetic
from media import Unusable, read_clip, read_image

WHITE, CORNER = (255, 255, 255), np.zeros((64, 96, 3), np.uint8)
CORNER[:32, :48] = 255


@functools.cache
def numbered():
    """40 frames, uint8 [40, 48, 64, 3], without symmetries; the grey level of a corner states the number."""
    frames = next(iter(synthetic.moving(3, 64, 5, frames=40)))["frames"][:, :48].numpy().copy()
    frames[:, :16, :16] = (np.arange(40) * 6)[:, None, None, None]
    return frames


def numbers(frames):
    return (frames[:, 2:8, 2:8].float().mean((1, 2, 3)) / 6).round().int().tolist()


def refused_as(kind, words, read, *given, **more):
    with pytest.raises(Unusable) as e:
        read(*given, **more)
    assert e.value.args[0] == kind and words in e.value.args[1], e.value.args


def square(inside, outside, kind=np.uint8):
    """[64, 64, ...] of one value, and in the middle of another."""
    x = np.full((64, 64, *np.shape(inside)), outside, kind)
    x[16:48, 16:48] = inside
    return x


def bright_quarter(pixels):
    """[row, column] of the only bright quarter."""
    return (pixels[[8, -8]][:, [8, -8], 0] > 127).nonzero().tolist()


PALETTE = Image.fromarray(square(1, 0), "P")
PALETTE.putpalette([0, 0, 0, *RED])
GREY, DEEP = square(200, 0), square(0xC000, 0x4000, np.uint16)
RGBA, LEVELS = square([*RED, 255], [0, 0, 0, 0]), ((64,) * 3, (192,) * 3)
CMYK = Image.fromarray(np.full((64, 64, 4), np.uint8([0, 255, 255, 0])), "CMYK")
PIXELS = {  # the file, the colour at the edge and in the middle
    "rgba": (packed(RGBA), WHITE, RED),
    "webp": (packed(RGBA, "WEBP", lossless=True), WHITE, RED),
    "palette": (packed(PALETTE, transparency=0), WHITE, RED),
    "gif": (packed(PALETTE, "GIF", transparency=0), WHITE, RED),
    "rgb with a transparent colour": (packed(square(RED, 0), transparency=(0, 0, 0)), WHITE, RED),
    "grey with alpha": (packed(Image.fromarray(square([200, 255], [0, 0]), "LA")), WHITE, (200,) * 3),
    "one bit": (packed(Image.fromarray(GREY > 0), transparency=0), WHITE, WHITE),
    "16 bit": (packed(DEEP), *LEVELS),
    "16 bit with a transparent level": (packed(DEEP, transparency=0x4000), WHITE, LEVELS[1]),
    "16 bit PGM": (b"P5 64 64 65535\n" + DEEP.astype(">u2").tobytes(), *LEVELS),
    "cmyk": (packed(CMYK, "JPEG", quality=95), (255, 0, 0), (255, 0, 0)),
    "cmyk TIFF": (packed(CMYK, "TIFF"), (255, 0, 0), (255, 0, 0)),
}


@pytest.mark.parametrize("name", PIXELS)
def test_an_image_is_rgb_on_white_whatever_its_mode_also_in_items_and_clips(name):
    content, edge, middle = PIXELS[name]
    item = {"encoded": torch.frombuffer(bytearray(content), dtype=torch.uint8)}
    clip = media.read_frames(["a"], lambda name: content, 1)
    for x in (read_image(content), media.frames_of(item)[0], clip.frames[0]):
        assert x.dtype == torch.uint8 and (*x[2, 2].tolist(), *x[32, 32].tolist()) == (*edge, *middle)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_states_and_so_is_its_size(form):
    bright = {1: [0, 0], 2: [0, 1], 3: [1, 1], 4: [1, 0], 5: [0, 0], 6: [0, 1], 7: [1, 1], 8: [1, 0]}
    for orientation, corner in bright.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = packed(CORNER, form, exif=exif)
        found = read_image(content)
        assert media.image_size(content) == found.shape[1::-1] == ((64, 96) if orientation > 4 else (96, 64))
        assert bright_quarter(found) == [corner], orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_image_is_refused_and_an_animation_is_its_first_frame(form):
    content = packed(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8), form)
    for share in (0.3, 0.9):
        refused_as("broken", "cannot be decoded", read_image, content[: int(share * len(content))])
    if form in ("PNG", "GIF", "WEBP"):
        assert read_image(animation(form))[0, 0].tolist() == [20] * 3


def test_files_that_cannot_be_used_are_refused_by_kind(tmp_path, refused, monkeypatch):
    encode(tmp_path / "short.mp4", numbered()[:9])
    put(tmp_path, {"a.png": packed(Image.new("1", (13400, 13402))), "empty.mp4": "", "broken.mp4": "hello"})
    for kind in ("empty", "broken", "missing", "short"):
        refused_as(kind, "", read_clip, tmp_path / f"{kind}.mp4", 10)
    refused_as("broken", "no image", read_image, b"hello")
    refused_as("missing", "does not exist", read_image, tmp_path / "b.png")
    for x in (DEEP.astype(np.float32), DEEP.astype(np.int32) * 100):
        refused_as("range", str(x.dtype), read_image, packed(x, "TIFF"))
    path = tmp_path / "a.png"
    for read in (read_image, media.image_size):
        refused_as("large", "13400x13402, 179,586,800 pixels; at most 100,000,000", read, path)
    refused(lambda: media.open_image(path), "a.png cannot be read as an image: it is 13400x13402")
    monkeypatch.setattr(media, "MAX_PIXELS", 3000)
    refused_as("large", "is 64x48, 3,072 pixels; at most 3,000", read_clip, tmp_path / "short.mp4", 9)


RATES = {12: range(15, 25), 6: range(10, 30, 2), 4: range(6, 36, 3), 24: [n // 2 for n in range(35, 45)]}


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv", "a.avi", "a.ts", "rotated.mp4", "folder"])
def test_frames_come_back_in_order_upright_and_in_time_from_every_container(tmp_path, name):
    path, x, cases = tmp_path / name, numbered(), {None: range(15, 25), **RATES}
    if name == "folder":  # 1.jpg ... 40.jpg: alphabetically 10 comes before 2
        put(path, {f"{t}.jpg": packed(frame, "JPEG", quality=95) for t, frame in enumerate(x, 1)})
        cases = {None: range(15, 25)}
    else:
        turned = name == "rotated.mp4"
        encode(path, np.rot90(x, 1, (1, 2)) if turned else x, turn=(270,) if turned else None)
    for fps, expected in cases.items():
        clip = read_clip(path, 10, fps, 48)
        rate = fps or (media.RATE if name == "folder" else 12)
        assert numbers(clip.frames) == list(expected), fps
        assert clip.times.tolist() == pytest.approx([k / rate for k in range(10)], abs=0.001)
        frames = media.frames_of({"frames": torch.from_numpy(x[list(expected)])}, 48)
        assert (clip.frames.float() - frames).abs().mean() < 3
        assert (clip.width, clip.height, clip.rotated) == (64, 48, 90 * (name == "rotated.mp4"))
    if name in ("a.webm", "a.mp4", "a.avi"):
        clip = read_clip(encode(path, x, rate=30), 16, 12, 48)
        assert numbers(clip.frames) == [5 * k // 2 for k in range(16)]


def test_a_clip_of_varying_rate_is_sampled_in_its_own_time(tmp_path):
    film(tmp_path / "a.mp4", HELD)
    clip = read_clip(tmp_path / "a.mp4", 24, 4, 16)
    assert levels(clip) == [10 + 20 * max(x for x in HELD if x < 3 + k / 4 + 1e-6) for k in range(24)]
    assert clip.times.tolist() == [k / 4 for k in range(24)]
    clip = read_clip(tmp_path / "a.mp4", 8, size=16, evenly=True)
    assert levels(clip) == [10, 40, 48, 48, 48, 48, 190, 220]
    assert clip.times.tolist() == pytest.approx([1.5 * k for k in range(8)], abs=0.01)
    refused_as("short", "48 frames at 4 per second", read_clip, tmp_path / "a.mp4", 49, 4)


def test_edit_lists_are_honoured_and_wrong_numbers_in_headers_are_not_believed(tmp_path):
    def changed(name, like, at, number):
        content = bytearray((tmp_path / like).read_bytes())
        start = content.index(at[0]) + at[1]
        content[start : start + len(number)] = number
        (tmp_path / name).write_bytes(content)

    encode(tmp_path / "a.mp4", numbered(), rate=10, bf="0")
    encode(tmp_path / "a.avi", numbered(), rate=10)
    encode(tmp_path / "live.webm", numbered(), rate=10, live=True)  # no length
    changed("long.mp4", "a.mp4", (b"mdhd", 20), struct.pack(">I", 600 * 10240))  # ten minutes
    changed("long.avi", "a.avi", (b"strh", 40), struct.pack("<I", 400))  # frames
    changed("edited.mp4", "a.mp4", (b"elst", 12), struct.pack(">Ii", 2000, 10 * 1024))  # frames 10 to 29
    for name in ("a.mp4", "long.mp4", "long.avi", "live.webm", "edited.mp4"):
        assert numbers(read_clip(tmp_path / name, 3).frames) == [18, 19, 20], name
    assert numbers(read_clip(tmp_path / "edited.mp4", 20).frames) == list(range(10, 30))
    refused_as("short", "has 20 frames", read_clip, tmp_path / "edited.mp4", 21)


def test_display_matrices_turn_and_mirror(tmp_path):
    cases = {(90,): [1, 0], (180,): [1, 1], (270,): [0, 1], (0, True): [0, 1], (0, False, True): [1, 0]}
    for turn, corner in cases.items():
        clip = read_clip(encode(tmp_path / "a.mp4", [CORNER] * 3, turn=turn), 2)
        assert bright_quarter(clip.frames[0]) == [corner], turn
        assert clip.rotated == -turn[0] % 360 and clip.width == (64 if turn[0] % 180 else 96)
    refused_as("rotation", "45 degrees", read_clip, encode(tmp_path / "a.mp4", [CORNER] * 3, turn=(45,)), 2)


ALPHA = ["a.webm libvpx-vp9 yuva420p", "a.mkv ffv1 yuva420p", "a.mov png rgba", "a.mov qtrle argb"]


@pytest.mark.parametrize("how", ALPHA)
def test_a_transparent_video_stands_on_white(tmp_path, how):
    name, codec, pix = how.split()
    path = encode(tmp_path / name, np.stack([RGBA] * 4), form="rgba", codec=codec, pix=pix)
    x = read_clip(path, 2).frames[0].int()
    assert (x[2, 2] > 252).all() and (x[32, 32] - torch.tensor(RED)).abs().max() <= 3


@pytest.mark.parametrize(("height", "width"), [(48, 64), (57, 101)])
def test_colours_follow_the_stated_matrix_range_and_depth_up_to_the_edge(height, width):
    red, bt709, bt601, limited, full = (255, 0, 0), 1, 5, 1, 2
    cases = [("yuv420p", bt709, limited, (63, 102, 240), red), ("yuv444p", bt709, full, (54, 99, 255), red)]
    cases += [("yuv420p", bt601, limited, (81, 90, 240), red)]
    cases += [("yuv420p", bt601, full, (200, 128, 128), (200,) * 3)]
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
    cut, is_gif = tmp_path / f"cut-{name}", name == "a.gif"
    content = animation("GIF", numbered()) if is_gif else encode(tmp_path / name, numbered()).read_bytes()
    for length in (int(0.4 * len(content)), int(0.8 * len(content)), len(content) - 60):
        cut.write_bytes(content[:length])
        for how in ({}, {"fps": 2}, {"evenly": True}):
            refused_as("broken", "", read_clip, cut, 4, **how)
    at = int(0.7 * len(content))
    cut.write_bytes(content[:at] + bytes(x ^ 0x55 for x in content[at : at + 99]) + content[at + 99 :])
    if not is_gif:  # any bytes are an image
        refused_as("broken", "", read_clip, cut, 4)


@pytest.mark.parametrize("form", ["GIF", "WEBP"])
def test_an_animation_is_a_clip_with_the_times_of_its_frames(tmp_path, form):
    path = tmp_path / f"a.{form}"
    path.write_bytes(animation(form, duration=[100] * 5 + [200] * 5))
    clip = read_clip(path, 10)
    assert levels(clip) == [20 + 20 * k for k in range(10)] and clip.times[-1] == pytest.approx(1.3)
    assert levels(read_clip(path, 5, evenly=True)) == [20, 80, 120, 160, 180]


def test_a_folder_is_one_series_of_images(tmp_path):
    def read(*names, frames=2, **how):
        path = tmp_path / f"{names}"
        path.mkdir()
        put(path, {name: packed(np.full((8, 8), 9 * n, np.uint8)) for n, name in enumerate(names)})
        return read_clip(path, frames, **how)

    for names in (["a9.png", "a10.png"], ["12-59-59.png", "13-00-00.png"], ["3_l.png", "20_l.png"]):
        assert levels(read(*names)) == [0, 9]
    for names in (["img_1.png", "flow_1.png"], ["cam1_1.png", "cam2_1.png"], ["1.png", "1.jpg"]):
        refused_as("mixed", "several series", read, *names)
    refused_as("rate", "no times", read, "1.png", "2.png", fps=4)
    refused_as("empty", "0 frames", read)
    refused_as("short", "has 1 frames", read, "4.png")
    shown = {name: packed(np.full((8, 8), 9 * n, np.uint8)) for n, name in enumerate("abcde")}
    clip = media.read_frames(list(shown), shown.get, 3)
    assert levels(clip) == [0, 18, 36] and clip.times.tolist() == [0, 1, 2]
    shown["c"] = b"?"
    refused_as("broken", "c cannot be decoded", media.read_frames, list("abcde"), shown.get, 3)
