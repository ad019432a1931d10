"""What is encoded comes back; the choice of frames follows motion and not flicker, noise and shake."""

import argparse
import functools
import struct

import av
import numpy as np
import pytest
import torch
from PIL import Image
from test_extract import run as extracted
from test_extract import write_set

import common
import media
import synthetic
from media import choose_frames, frames_at, motion_of

T, K = 60, 12
CODECS = {".webm": "libvpx-vp9", ".ts": "mpeg2video", ".gif": "gif"}
DISTURBED = {"nothing": {}, "noise": {"noise": 10}, "flicker": {"flicker": 0.05}, "shake": {"shake": 2}}
DISTURBED["all three"] = {"noise": 6, "flicker": 0.04, "shake": 1.5}
ENCODED = {"a.mp4": {}, "a.gif": {}, "a.avi": {}, "a.ts": {"bf": "2"}}
ENCODED["a.mkv"] = {"x264-params": "open-gop=1:bframes=4:keyint=20"}
ENCODED["a.webm"] = {"auto-alt-ref": "1", "lag-in-frames": "16"}


def encode(path, frames, rate=12, rotated=False, live=False, **options):
    """A video of frames [T, H, W, 3]; its header may ask for 90 degrees clockwise, or state no length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"live": "1"} if live else {}) as file:
        stream = file.add_stream(CODECS.get(path.suffix, "libx264"), rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.gop_size = "rgb8" if path.suffix == ".gif" else "yuv420p", 20
        key = "b" if path.suffix == ".webm" else "sc_threshold"
        stream.options = {"crf": "8", key: "0"} | options
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for frame in np.asarray(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        file.mux(stream.encode())
    if rotated:  # QuickTime's tkhd: a stored pixel (x, y) is displayed at (height - y, x)
        content, matrix = bytearray(path.read_bytes()), (0, 1, 0, -1, 0, 0, frames.shape[1], 0, 1 << 14)
        at = content.index(b"tkhd") + 44
        content[at : at + 36] = struct.pack(">9i", *(x << 16 for x in matrix))
        path.write_bytes(content)
    return path


@functools.cache
def numbered():
    """40 frames, uint8 [40, 48, 64, 3], without symmetries; the grey level of a corner states the number."""
    frames = next(iter(synthetic.moving(3, 64, 5, frames=40)))["frames"][:, :48].numpy().copy()
    frames[:, :16, :16] = (np.arange(40) * 6)[:, None, None, None]
    return frames


def numbers(frames):
    return (frames[:, 2:8, 2:8].float().mean((1, 2, 3)) / 6).round().int().tolist()


@pytest.mark.parametrize("name", ["a.webm", "a.mp4", "a.mkv", "a.mov", "a.avi", "rotated.mp4", "folder"])
def test_the_middle_frames_come_back_in_order_and_upright_from_every_container(tmp_path, name):
    path, rotated = tmp_path / name, name == "rotated.mp4"
    if name == "folder":
        path.mkdir()
        for t, frame in enumerate(numbered(), 1):  # 1.jpg ... 40.jpg: alphabetically 10 comes before 2
            Image.fromarray(frame).save(path / f"{t}.jpg", quality=95)
        found = media.middle_images(path, 10, 48)
    else:
        encode(path, np.rot90(numbered(), 1, (1, 2)) if rotated else numbered(), rotated=rotated)
        found, degrees = media.middle_frames(path, 10, None, 48)
        assert degrees == 90 * rotated
    expected = media.frames_of({"frames": torch.from_numpy(numbered()[15:25])}, 48)
    assert numbers(found) == list(range(15, 25)) and (found.float() - expected.float()).abs().mean() < 2


@pytest.mark.parametrize("suffix", [".webm", ".mp4", ".avi"])
def test_frames_at_a_lower_rate_are_those_nearest_to_its_times(tmp_path, suffix):
    path = encode(tmp_path / f"a{suffix}", numbered())
    for fps, expected in ((12, range(15, 25)), (6, range(10, 30, 2)), (4, range(6, 36, 3))):
        assert numbers(media.middle_frames(path, 10, fps, 48)[0]) == list(expected)
    path = encode(tmp_path / f"b{suffix}", numbered(), rate=30)
    for fps, frames, first in ((12, 16, 0), (12, 4, 6), (24, 4, 14)):
        found = numbers(media.middle_frames(path, frames, fps, 48)[0])
        assert all(abs(n - 30 / fps * k) <= 0.5 for k, n in enumerate(found, first))


def test_a_truncated_tail_or_a_header_without_a_length_does_not_change_the_frames(tmp_path):
    content = encode(tmp_path / "a.webm", numbered()).read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: int(0.9 * len(content))])
    live = encode(tmp_path / "live.webm", numbered(), live=True)
    assert media.header(live, None)[0] == 0
    for path in (tmp_path / "a.webm", live):
        assert numbers(media.middle_frames(path, 10, None, 48)[0]) == list(range(15, 25))
    rotated = encode(tmp_path / "a.mp4", np.rot90(numbered(), 1, (1, 2)), rotated=True)
    for path, degrees in ((live, 0), (rotated, 90)):
        found, size, turn = media.whole_video(path, 5, 48, 100)
        assert (size, turn) == ((64, 48), degrees)
        assert np.abs(np.array(numbers(found)) - [0, 8, 16, 24, 32]).max() <= 1


def disc(moving=None, noise=0, flicker=0, shake=0, when=slice(None), side=128):
    """uint8 [T, side, side, 3]: a disc, 4 px a frame while `moving`; `when`: noise (levels), shake (px)."""
    from skimage.data import astronaut

    photograph, rng, x, frames = astronaut().mean(-1), np.random.default_rng(0), 20.0, []
    (y, columns), here = np.mgrid[:side, :side], np.zeros(T)
    here[when] = 1
    for t in range(T):
        x += 4 * bool(moving and moving[0] < t <= moving[1])
        down, right = (rng.normal(size=2).clip(-3, 3) * shake * here[t]).round().astype(int)
        frame = photograph[120 + down : 120 + down + side, 120 + right : 120 + right + side].copy()
        frame[np.hypot(y + down - 64, columns + right - x) < 9] = 220
        frame = frame * (1 + here[t] * flicker * rng.normal())
        frame += here[t] * (60 * flicker * rng.normal() + noise * rng.normal(size=frame.shape))
        frames.append(frame.clip(0, 255).round())
    return torch.from_numpy(np.stack(frames)).byte()[..., None].expand(-1, -1, -1, 3).contiguous()


def inside(chosen):
    """How many frames are of 35 to 50, a quarter of the clip: 3 of 12 by chance."""
    return sum(35 <= n <= 50 for n in chosen)


@pytest.mark.parametrize("how", DISTURBED)
def test_flicker_noise_and_shake_are_not_motion_and_do_not_hide_it(how):
    for when in (slice(None), slice(20, 40)):
        chosen = choose_frames(disc(when=when, **DISTURBED[how]), K)
        assert (chosen[0], chosen[-1], len(set(chosen))) == (0, T - 1, K)
        gaps = np.diff(chosen) / ((T - 1) / (K - 1))
        assert gaps.min() >= 0.5 and gaps.max() <= 1.8, chosen
    chosen = choose_frames(disc(moving=(35, 50), **DISTURBED[how]), K)
    assert (chosen[0], chosen[-1]) == (0, T - 1) and inside(chosen) >= 8, chosen
    assert inside(choose_frames(disc(moving=(5, 20), **DISTURBED[how]), K)) <= 3


def test_motion_is_measured_where_an_object_moves_and_not_where_the_light_changes(tmp_path):
    path = encode(tmp_path / "a.mp4", disc(moving=(35, 50), side=192), crf="12")
    assert inside(choose_frames(path, K)) >= 8  # of a file too
    moving, still = motion_of(disc(moving=(0, T))), motion_of(disc(flicker=0.05))
    assert len(moving) == T and moving[0] == 0 and moving[1:15].min() > 10 * still.max()
    for item in list(synthetic.moving(12, 64, 7))[::2]:  # steady motion
        assert choose_frames(item["frames"], 8) == choose_frames(item["frames"], 8, "uniform")


def test_first_last_and_boundary_are_chosen_and_no_gap_is_larger_than_allowed():
    x = disc(moving=(35, 50))
    assert np.diff(choose_frames(x, 8)).max() > 12 and inside(choose_frames(x, 1)) == 1
    chosen = choose_frames(x, 8, boundary=7, largest_gap=12)
    assert {0, 7, T - 1} <= set(chosen) and np.diff(chosen).max() <= 12
    assert len(set(chosen)) == 8 and inside(chosen) >= 2
    for how in ("motion", "uniform"):
        assert choose_frames(x, 3, how, boundary=22) == [0, 22, T - 1]
        assert max(np.diff(choose_frames(x, 11, how, largest_gap=6))) <= 6


def test_uniform_is_even_random_follows_the_seed_and_scenes_share_by_length():
    black, x = torch.zeros(17, 8, 8, 3).byte(), disc()
    assert [choose_frames(black, k, "uniform") for k in (5, 1)] == [[0, 4, 8, 12, 16], [8]]
    drawn = np.array([choose_frames(x, K, "random", seed) for seed in range(200)])
    assert len(np.unique(drawn, axis=0)) > 190 and abs(drawn.mean() - (T - 1) / 2) < 1.5
    x[40:] = 255 - x[40:] // 2  # another shot
    assert media.shots_of(x) == ([0, 40], T) and choose_frames(x, 3, "scene") == [10, 30, 50]


@pytest.mark.parametrize("name", ENCODED)
def test_a_frame_by_number_is_that_frame_and_decoding_begins_at_its_key_frame(tmp_path, name):
    bits = torch.arange(T)[:, None] >> torch.arange(6) & 1  # six stripes, black or white
    stripes = (255 * bits).repeat_interleave(16, 1)[:, None, :, None].expand(T, 32, 96, 3).byte()
    path, wanted = encode(tmp_path / name, stripes, **ENCODED[name]), [59, 0, 33, 34, 20, 19]
    found, _ = frames_at(path, wanted)
    assert len(media.presented(path)) == T
    white = found[:, 8:24, :, 0].float().mean(1).unflatten(1, (6, 16)).mean(2) > 127
    assert (white << torch.arange(6)).sum(1).tolist() == wanted
    if name in ("a.mp4", "a.webm"):  # key frames are 0, 20 and 40
        assert frames_at(path, [2, 21, 24, 59])[1] == 3 + 5 + 20 and frames_at(path, [40])[1] == 1


def test_features_of_chosen_frames_are_those_of_clips_cut_to_them(small_dino, tmp_path):
    def run(out, clips, *more):
        how = "--points", "last", "--size", "48", *more
        return extracted(small_dino, write_set(tmp_path / f"of-{out}", clips), tmp_path / out, *how)

    x = disc(moving=(35, 50), side=96)
    shown = run("chosen", [x, x.flip(0)], "--frames", "motion", "--count", "6")["shown"]
    assert shown == [choose_frames(x, 6), choose_frames(x.flip(0), 6)]
    run("cut", [x[shown[0]], x.flip(0)[shown[1]]])
    a, b = (common.load_features(tmp_path / out)[1]("vision.2") for out in ("chosen", "cut"))
    assert a.shape[1] == 6 and torch.equal(a, b)


def test_wrong_flags_about_frames_are_refused(refused):
    clips = [{"id": "a", "frames": torch.zeros(41, 8, 8, 3)}]
    wrong = [("moton", 8, None, "motion"), ("motion", 99, None, "41 frames"), ("motion", 5, 9, "41 frames")]
    for frames, count, gap, word in [*wrong, ("random", 8, 9, "motion"), (None, 8, 9, "--frames")]:
        args = argparse.Namespace(frames=frames, count=count, largest_gap=gap)
        refused(functools.partial(media.frame_methods, args, clips), word)
