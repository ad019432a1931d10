"""Frames are chosen as documented, and models are told when they are shown."""

import argparse
import functools

import numpy as np
import pytest
import torch
from test_extract import run as extracted
from test_extract import write_set

import common
import media
import models
from media import choose_frames


def test_a_processor_is_told_the_seconds_between_the_frames_that_are_shown():
    def told(**item):
        frames = media.stacked([item, item], 56)
        processor = models.processor_of(models.find_model("tiny"))
        return models.qwen_inputs(processor, frames, "Where?")["second_per_grid_ts"].tolist()

    frames, shown = torch.zeros(31, 56, 56, 3, dtype=torch.uint8), [0, 10, 20, 30]
    assert media.times_of({"frames": frames, "times": torch.arange(31), "shown": shown}).tolist() == shown
    assert told(frames=frames, times=torch.arange(31), shown=shown) == [20, 20]  # a step has two frames
    assert told(frames=frames[:4], times=[0, 0.25, 0.5, 0.75]) == [0.5, 0.5]
    assert told(frames=frames[:4]) == [1, 1] and media.times_of({"frames": frames[:3]}).tolist() == [
        0,
        0.5,
        1,
    ]


def test_a_part_of_a_batch_keeps_its_times():
    frames = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    clips = media.stacked([{"frames": frames, "times": [0, k]} for k in (1, 2, 3)])
    part = media.part_of(clips, 1, 3)
    assert len(part) == 2 and part.times == [[0, 2], [0, 3]]
    assert not hasattr(media.part_of(media.stacked([{"frames": frames}] * 3), 0, 2), "times")


def disc(start, end, length=60, flicker=0, noise=0):
    """uint8 [T, 96, 96, 3]: a disc before a photograph that moves by 3 px a frame from `start` to `end`."""
    from skimage.data import astronaut

    photograph, rng, frames = astronaut().mean(-1)[120:216, 120:216], np.random.default_rng(0), []
    rows, columns = np.mgrid[:96, :96]
    for t in range(length):
        at = 20 + 3 * min(max(t - start, 0), end - start)
        frame = np.where(np.hypot(rows - 48, columns - at) < 9, 220, photograph) * (
            1 + flicker * rng.normal()
        )
        frames.append((frame + noise * rng.normal(size=frame.shape)).clip(0, 255).round())
    return torch.from_numpy(np.stack(frames)).byte()[..., None].expand(-1, -1, -1, 3).contiguous()


def test_motion_takes_the_first_the_last_and_the_frames_that_differ_most():
    clip, black = torch.zeros(20, 8, 8, 3, dtype=torch.uint8), torch.zeros(17, 8, 8, 3, dtype=torch.uint8)
    clip[5], clip[9], clip[14] = 90, 120, 200  # and back at the next frame
    assert choose_frames(clip, 4) == [0, 14, 15, 19] and choose_frames(clip, 6) == [0, 9, 10, 14, 15, 19]
    assert choose_frames(clip, 4, boundary=7) == [0, 7, 9, 19]  # a Gaussian about the boundary
    assert choose_frames(clip, 1) == [14] and choose_frames(clip, 1, boundary=7) == [7]
    assert choose_frames(black, 5) == choose_frames(black, 5, "uniform") == [0, 4, 8, 12, 16]


@pytest.mark.parametrize("how", [{}, {"flicker": 0.05}, {"noise": 6}])
def test_motion_cdf_shares_the_motion_equally_and_ignores_flicker_and_noise(how):
    chosen = choose_frames(disc(30, 45, **how), 12, "motion-cdf")
    assert len(set(chosen)) == 12 and sum(31 <= n <= 45 for n in chosen) >= 10, chosen
    assert np.abs(np.diff(choose_frames(disc(0, 20, 21, **how), 5, "motion-cdf")) - 4).max() <= 1
    ramp = torch.arange(0, 200, 10).clamp(max=100).byte()[:, None, None, None].expand(-1, 8, 8, 3)
    assert choose_frames(ramp, 4, "motion-cdf") == [2, 4, 7, 9]  # no pixel is still


def test_uniform_is_even_random_follows_the_seed_and_scenes_share_by_length():
    x = disc(0, 0)
    assert [choose_frames(x[:17], k, "uniform") for k in (5, 1)] == [[0, 4, 8, 12, 16], [8]]
    drawn = np.array([choose_frames(x, 12, "random", seed) for seed in range(200)])
    assert len(np.unique(drawn, axis=0)) > 190 and abs(drawn.mean() - 29.5) < 1.5
    x[40:] = 255 - x[40:] // 2  # another shot
    assert choose_frames(x, 3, "scene") == [10, 30, 50]
    assert all(choose_frames(x[:6], 6, how) == [0, 1, 2, 3, 4, 5] for how in media.CHOICES)


def test_features_of_chosen_frames_are_those_of_clips_cut_to_them(small_dino, tmp_path):
    def run(out, clips, *more):
        how = "--points", "last", "--size", "48", *more
        return extracted(small_dino, write_set(tmp_path / f"of-{out}", clips), tmp_path / out, *how)

    x = disc(35, 50)
    shown = run("chosen", [x, x.flip(0)], "--frames", "motion", "--count", "6")["shown"]
    assert shown == [choose_frames(x, 6), choose_frames(x.flip(0), 6)]
    run("cut", [x[shown[0]], x.flip(0)[shown[1]]])
    a, b = (common.load_features(tmp_path / out)[1]("vision.2") for out in ("chosen", "cut"))
    assert a.shape[1] == 6 and torch.equal(a, b)


def test_one_frame_of_a_clip_is_encoded_at_the_size_of_clips(tmp_path):
    clips = torch.zeros(2, 3, 64, 64, 3, dtype=torch.uint8)
    for frames in (1, 3):
        data = write_set(tmp_path / f"of-{frames}", clips[:, :frames], cut_from="clips")
        assert extracted("tiny-dinov2", data, tmp_path / f"{frames}", "--points", "last")["size"] == 64


def test_wrong_choices_are_refused(refused):
    clips = [{"id": "a", "frames": torch.zeros(41, 8, 8, 3)}]
    for frames, count, word in (
        ("moton", 8, "motion"),
        ("motion", 99, "41 frames"),
        ("motion", 0, "--count 0"),
    ):
        args = argparse.Namespace(frames=frames, count=count)
        refused(functools.partial(media.frame_methods, args, clips), word)
    for more in ({"k": 42}, {"k": 2, "boundary": 7}, {"k": 3, "how": "scene", "boundary": 7}):
        refused(functools.partial(choose_frames, clips[0]["frames"].byte(), **more), "frame")
