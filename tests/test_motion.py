"""Measures of clips: null first, then planted motion."""

import math

import pytest
import torch

import motion


def test_optical_flow_continues_what_moves_and_errors_are_split_by_motion():
    clips = torch.full((2, 14, 48, 48, 3), 90, dtype=torch.uint8)
    for t in range(14):
        clips[0, t, 20:30, 6 + 2 * t : 16 + 2 * t] = torch.tensor([240, 200, 95], dtype=torch.uint8)
    clips[1, :, 20:30, 10:20] = 200
    flow = motion.extrapolate_flow(clips[:, :6], 8)
    errors = motion.pixel_errors(flow, clips[:, 6:], clips[:, 5])
    copied = motion.pixel_errors(clips[:, 5:6].expand_as(flow), clips[:, 6:], clips[:, 5])
    assert (errors["l1"][0] < 0.6 * copied["l1"][0]).all() and torch.equal(flow[1], clips[1, 6:])
    assert errors["moving_l1"][1].isnan().all() and (errors["still_l1"][1] == 0).all()
    assert copied["still_l1"].max() == 0 and copied["moving_l1"][0, 0] == pytest.approx((150 + 110 + 5) / 765)


def test_windows_are_the_middle_frames_with_their_boxes_and_masks(refused):
    frames = torch.arange(7, dtype=torch.uint8).view(7, 1, 1, 1).expand(7, 32, 64, 3)
    item = {"id": "a", "width": 64, "height": 32, "frames": frames, "mask": frames[..., 0]}
    (cut,) = motion.windows([item | {"boxes": torch.tensor([[[8.0, 16, 24, 32]]] * 7)}], 5, 16)
    assert cut["frames"][:, 0, 0, 0].tolist() == cut["mask"][:, 3, 3].tolist() == [1, 2, 3, 4, 5]
    assert cut["width"] == 16 and cut["boxes"][0].tolist() == [[2, 8, 6, 16]]
    refused(lambda: motion.windows([item], 8, 16, "--horizon"), "7 frames", "8 are needed", "--horizon")


def test_motion_flicker_consistency_and_closeness_of_clips_with_a_known_course():
    steady = torch.arange(0, 60, 10, dtype=torch.uint8).view(1, 6, 1, 1, 1).expand(1, 6, 4, 4, 3)
    blinking = (torch.arange(6) % 2 * 10).byte().view(1, 6, 1, 1, 1).expand(1, 6, 4, 4, 3)
    found = [f(x).item() for f in (motion.motion_energy, motion.flicker) for x in (steady, blinking)]
    assert found == pytest.approx([10 / 255, 10 / 255, 0, 20 / 255])
    mixed, tokens = motion.shuffled(steady, 0), torch.eye(3)[[0, 0, 1]].view(1, 3, 1, 3)
    assert not torch.equal(mixed, steady) and torch.equal(mixed.sort(1).values, steady)
    assert motion.consistency(tokens).tolist() == [0.5]
    d, real = torch.tensor([[0.0, 0.0, 0.2, 0.1], [0.0, 0.2, 0.0, 0.2]])
    assert motion.closeness(d, real).tolist() == [1, 0, 0, 0.5]


def test_segments_in_time_are_matched_by_overlap_and_label():
    truth = [0, 1, 1, 1, 1, 0, 0, 2, 2, 0]
    shifted = [0, 0, 1, 1, 1, 1, 0, 2, 2, 0]  # IoU 3 / 5
    assert motion.segments(truth)[1] == (1, 1, 4)
    found = [motion.segmental_f1(truth, x, at) for x, at in ((truth, 0.5), (shifted, 0.5), (shifted, 0.7))]
    assert found == [1, 1, 0.5] and motion.segmental_f1(truth, [2 * x for x in truth], 0.1) == 0
    assert motion.boundary_error([0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]) == 1
    assert motion.boundary_error([0, 0, 1, 1], [1, 1, 0, 0]) == 4  # a change to another label
    assert math.isnan(motion.boundary_error([1, 1], [0, 1]))
