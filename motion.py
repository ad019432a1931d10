"""Measures of generated clips: errors in pixels, motion, baselines that predict, segments in time."""

import math

import numpy as np
import torch

from common import fail
from media import frames_of, grey_of
from stats import mean_interval, ratio, with_bounds

# ---------------------------------------------------------------- clips uint8 [n, T, H, W, 3]

HORIZONS = 1, 2, 4, 8, 16
BASELINES = "copy", "flow", "vae", "mean", "nearest"
STATIC = 0.1  # share of the motion in the autoencoder's reconstruction
NOTHING = 1e-9  # the precision of cosines


def windows(items, frames, size, flag="--frames"):
    """Items cut to their middle `frames` frames and resized to size x size, with their boxes and masks."""
    out = []
    for item in items:
        if len(item["frames"]) < frames:
            have = len(item["frames"])
            fail(f"{item['id']} has {have} frames, but {frames} are needed; give a smaller {flag}")
        first = (len(item["frames"]) - frames) // 2
        cut, rest = {}, {k: v for k, v in item.items() if k not in ("mask", "boxes")}
        for key, axes in (("frames", 4), ("mask", 3), ("boxes", 3)):
            if key in item and item[key].ndim == axes:
                cut[key] = item[key][first : first + frames].clone()
        cut["frames"] = frames_of(cut, size)
        if "mask" in cut:
            mask = torch.nn.functional.interpolate(cut["mask"][:, None].float(), (size, size), mode="nearest")
            cut["mask"] = mask[:, 0].byte()
        if "boxes" in cut:
            cut["boxes"] = cut["boxes"] * torch.tensor([size / item["width"], size / item["height"]] * 2)
        out.append(rest | cut | {"width": size, "height": size})
    return out


def extrapolate_flow(seen, horizon):
    """Past frames uint8 [n, P, H, W, 3] extrapolated by optical flow: uint8 [n, horizon, H, W, 3].

    Iterative Lucas-Kanade of the last two frames, warped with the image. A single frame is repeated.
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
        at = 2 * at / torch.tensor([width - 1, height - 1]) - 1
        x = torch.nn.functional.grid_sample(x, at, padding_mode="border", align_corners=True)
        out.append(x[:, :3].round().clamp(0, 255).byte().permute(0, 2, 3, 1))
    return torch.stack(out, 1)


def train_futures(train, seen, frames, size):
    """(mean future of the train clips, future of the clip with the nearest past), uint8 [n, h, H, W, 3].
    Clips are cut to `frames`; the distance to `seen` [n, P, H, W, 3] is the squared error."""
    flat = seen.flatten(1).float() / 255
    past, total = seen.shape[1], 0
    best = torch.full((len(seen),), -math.inf)
    nearest = torch.zeros(len(seen), frames - past, *seen.shape[2:], dtype=torch.uint8)
    for item in train:
        x = windows([item], frames, size, "--past or --horizon")[0]["frames"]
        other = x[:past].flatten().float() / 255
        near = flat @ other - other @ other / 2
        nearest[near > best], best, total = x[past:], torch.maximum(near, best), total + x[past:].double()
    return (total / len(train)).round().byte().expand_as(nearest), nearest


def pixel_errors(generated, truth, last, least=25):
    """{l1, moving_l1, still_l1: [n, h]}: mean absolute error of clips uint8 [n, h, H, W, 3], colours in 0..1.
    A pixel moves if the truth is over `least` of 255 from the `last` past frame [n, H, W, 3]. nan if none."""
    error = (generated.float() - truth.float()).abs().mean(-1) / 255
    moving = (truth.int() - last[:, None].int()).abs().amax(-1) > least
    return {
        "l1": error.mean((2, 3)).double(),
        "moving_l1": ((error * moving).sum((2, 3)) / moving.sum((2, 3))).double(),
        "still_l1": ((error * ~moving).sum((2, 3)) / (~moving).sum((2, 3))).double(),
    }


def errors_by_draw(x, truth, last):
    """`pixel_errors` of clips [draws, n, h, H, W, 3]: {measure: [draws, n, h]}, clip by clip for memory."""
    found = {}
    for draw in x:
        clips = [pixel_errors(y[None], t[None], z[None]) for y, t, z in zip(draw, truth, last, strict=True)]
        for measure in clips[0]:
            found.setdefault(measure, []).append(torch.cat([clip[measure] for clip in clips]))
    return {measure: torch.stack(rows) for measure, rows in found.items()}


def motion_energy(x):
    """Mean absolute difference of adjacent frames, colours in [0, 1]."""
    return torch.stack([clip.float().diff(dim=0).abs().mean() for clip in x]).double() / 255


def flicker(x):
    """Mean absolute second difference in time, colours in [0, 1]: low for steady motion."""
    return torch.stack([clip.float().diff(n=2, dim=0).abs().mean() for clip in x]).double() / 255


def shuffled(real, seed):
    """The clips with their frames permuted, each in a random order."""
    g = torch.Generator().manual_seed(seed)
    return torch.stack([x[torch.randperm(len(x), generator=g)] for x in real])


def consistency(tokens):
    """Mean cosine of adjacent frames' tokens [n, T, ...] -> [n]. Pooling would hide small objects."""
    x = tokens.flatten(2).double()
    return torch.nn.functional.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1).mean(1)


def closeness(d, d_real):
    """The smaller over the larger of two mean frame distances; 1 if neither clip moves, 0 if one does."""
    d, d_real = (torch.where(x < NOTHING, 0.0, x) for x in torch.broadcast_tensors(d, d_real))
    large = torch.maximum(d, d_real)
    return torch.where(large == 0, 1.0, torch.minimum(d, d_real) / large.clamp(min=NOTHING))


def motion_row(generated, real, vae, sources, moving_sources):
    """One row of the table: measures with intervals. generated, real, vae: {measure: [seeds, n]}."""
    d, d_real, d_vae = (1 - x["temporal_consistency"] for x in (generated, real, vae))
    columns = {
        "temporal_consistency": 1 - d,
        "temporal_closeness": closeness(d, d_real),
        "decoded_closeness": closeness(d, d_vae),
        "temporal_ratio": ratio(generated["motion_energy"], real["motion_energy"]),
        "flicker_ratio": ratio(generated["flicker"], real["flicker"]),
        **{k: generated[k] for k in ("jump", "motion_energy", "flicker") if k in generated},
        "direction_accuracy": generated.get("direction_accuracy"),
    }
    row = {}
    for name, x in columns.items():
        row_sources = moving_sources if name == "direction_accuracy" else sources
        row |= with_bounds(name, (None,) * 3 if x is None else mean_interval(x, row_sources))
    return row


# ---------------------------------------------------------------- segments in time


def segments(labels):
    """[(label, first, last)] of the runs of equal labels; `last` is included."""
    edges = [0, *(t for t in range(1, len(labels)) if labels[t] != labels[t - 1]), len(labels)]
    return [(labels[a], a, b - 1) for a, b in zip(edges, edges[1:], strict=False)]


def segmental_f1(truth, answers, at):
    """F1 of segments of other labels than 0, matched to true ones of their label by IoU of at least `at`
    (Lea et al. 2017, Temporal Convolutional Networks for Action Segmentation and Detection, section 4.1)."""
    true = [segment for segment in segments(truth) if segment[0]]
    predicted = [segment for segment in segments(answers) if segment[0]]
    taken = set()
    for label, a, b in predicted:
        overlap = []
        for other, c, d in true:
            iou = (min(b, d) - max(a, c) + 1) / (max(b, d) - min(a, c) + 1)
            overlap.append(iou if label == other else 0)
        best = max(range(len(true)), key=overlap.__getitem__, default=None)
        if best is not None and overlap[best] >= at and best not in taken:
            taken.add(best)
    return 2 * len(taken) / max(len(true) + len(predicted), 1)


def boundary_error(truth, answers):
    """Mean frames from a true change of label to the nearest predicted one to that label, else all frames."""
    changes, apart = segments(answers)[1:], []
    for label, start, _ in segments(truth)[1:]:
        near = [abs(start - at) for other, at, _ in changes if other == label]
        apart.append(min(near, default=len(truth)))
    return sum(apart) / len(apart) if apart else float("nan")
