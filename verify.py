"""Was a prediction right, and which verifier can tell? Tested on planted right and wrong predictions.

    python verify.py plant --data data/future --vae tiny-vae --past 8 --generated results/tiny/future/generated --out results/tiny/future/planted
    python verify.py score --rollouts results/tiny/future/planted --latents results/tiny/future/planted-features/tiny --out results/tiny/future/verify.yaml

`plant` writes predictions of known correctness as a data folder: of every val and test clip the real outcome, right and wrong versions
(PLANTED) and, with --generated, the clips of a video model. Each starts with the last past frame.
`score` measures how well verifiers separate right from wrong predictions. A verifier reads the prediction and the outcome as pixels, as
latents (--latents) or as answers of a model (--words). verify.yaml holds the AUROC of each on test, with intervals over sources, by kind
of error and by horizon; the best verifier of each family is chosen on val. It also holds the risk-coverage curve, split-conformal
acceptance, and the same for the video model's clips. verify.png shows planted clips.

Needs claims.py, cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py, motion.py, stats.py,
checkpoints.py, models.yaml.
"""

import functools
import hashlib
import inspect
import math
import random
import time
import types
from pathlib import Path

import torch
from tqdm import tqdm

from checkpoints import fingerprint
from claims import directions_of, whereabouts
from common import (
    FEATURES,
    RESULT,
    check_writable,
    choose_device,
    clips_of,
    fail,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    plain,
    print_summary,
    pyplot,
    run_info,
    save_yaml,
    split_of,
    subcommands,
    write_items,
)
from ltx import decode_generated_clips, encode_generated_clips
from media import grey_of
from metrics import load_lpips, ssim
from models import find_model, load_video_vae
from motion import BASELINES, HORIZONS, windows
from stats import clusters, mean_interval, resampled, widened, with_bounds

# {kind of planted clip: is it right?} All pass through the autoencoder, as generated clips do, so that decoder
# artefacts tell a verifier nothing.
PLANTED = {
    "right": True,
    "pasted": True,
    "blurred": True,
    "late": True,
    "direction": False,
    "speed": False,
    "vanished": False,
    "identity": False,
}
MOVED = 10  # of 255, Physics-IQ's threshold
REGIONS = "spatial_iou", "spatiotemporal_iou", "weighted_spatial_iou"
ALARMS = 0.05  # the share of val's right predictions that the threshold flags
RESAMPLES = 2000
# share of the object's path: a larger final error is a wrong position. One frame of delay is 1/16, the planted
# wrong speeds 0.7 and more, a still image 1
OFF = 0.5
NOTES = {
    "flagged": f"at the threshold that flags {ALARMS:.0%} of val's right clips; for words, which answer test clips only, of test's",
    "video_model": "clips of the video model (no baselines), right if the object moves in the true direction, ends within half of its path from its true position, and is visible there; "
    "planted_correctness: the same rule on planted clips",
    "conformal": "the bound is from val's wrong clips; conformal_error: of test's wrong clips, resampled by source; conformal_error_generated: of the video model's clips, which are not "
    "exchangeable with planted ones, so nothing is guaranteed",
    "upper_bounds": "scores, higher is better: errors are negative",
}


def sprite(frame, mask):
    """(pixels [h, w, 3], mask [h, w], corner (y, x)) of the object of a mask [H, W], cut out of a frame [H, W, 3]."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return frame[box], mask[box], (int(rows[0]), int(columns[0]))


def paste(background, pixels, mask, corner):
    """A background [H, W, 3] with a sprite at corner (y, x); parts outside the frame are cut off."""
    out, (height, width) = background.clone(), mask.shape
    y, x = corner
    top = max(y, 0)
    left = max(x, 0)
    bottom = min(y + height, out.shape[0])
    right = min(x + width, out.shape[1])
    if top < bottom and left < right:
        part, hole = slice(top - y, bottom - y), slice(left - x, right - x)
        out[top:bottom, left:right] = torch.where(
            mask[part, hole][..., None], pixels[part, hole], out[top:bottom, left:right]
        )
    return out


def background_of(frames, masks):
    """The background [H, W, 3] behind the object of masks [T, H, W]: the median of uncovered frames, else inpainted."""
    from scipy.ndimage import binary_dilation
    from skimage.restoration import inpaint_biharmonic

    covered = torch.from_numpy(binary_dilation(masks.numpy(), [[[0] * 3] * 3, [[1] * 3] * 3, [[0] * 3] * 3]))
    behind = torch.where(covered[..., None], math.nan, frames.float()).nanmedian(0).values
    hidden = covered.all(0)
    if hidden.any():
        scene = behind.nan_to_num().numpy() / 255
        behind = 255 * torch.from_numpy(inpaint_biharmonic(scene, hidden.numpy(), channel_axis=-1)).float()
    return behind.round().clamp(0, 255).byte()


def plant(frames, masks, other, past, draw):
    """{kind: uint8 [1 + h, H, W, 3]} from the last past frame on, of a clip [T, H, W, 3] with object masks [T, H, W].

    Right: right (the outcome), pasted (the object cut out and pasted in place), blurred (2% of the side), late (one
    frame). Wrong: direction (turned by 45 to 315 degrees), speed (0.2 to 2.2 times), identity (`other`, the sprite of
    another clip's object), vanished (before two thirds). draw(n): a random number below n. Without masks (None):
    direction is the past in reverse, speed the outcome at half speed; pasted, identity and vanished are left out.
    """
    from scipy.ndimage import gaussian_filter

    outcome = frames[past - 1 :]
    length = len(outcome)
    blur = 0.02 * outcome.shape[1]
    blurred = torch.from_numpy(gaussian_filter(outcome[1:].float().numpy(), (0, blur, blur, 0)))
    found = {
        "right": outcome,
        "blurred": torch.cat([outcome[:1], blurred.round().byte()]),
        "late": outcome[[0, *range(length - 1)]],
    }
    if masks is None:
        backwards = frames[[max(past - 1 - t, 0) for t in range(length)]]
        return found | {"direction": backwards, "speed": outcome[[t // 2 for t in range(length)]]}
    background = background_of(frames, masks)
    here = [sprite(f, m) if m.any() else None for f, m in zip(outcome, masks[past - 1 :], strict=True)]
    start = torch.tensor(here[0][2])
    # (y, x) pixels since the last frame seen
    steps = [None if s is None else (torch.tensor(s[2]) - start).float() for s in here]
    angle = math.pi / 4 * (1 + draw(7))
    pace = (0.2, 0.3, 1.8, 2.2)[draw(4)]
    until = 1 + draw(max(2 * length // 3, 1))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centred = (torch.tensor(here[0][1].shape) - torch.tensor(other[1].shape)) / 2

    def along(change, pixels=here[0][0], mask=here[0][1]):
        frames_of_it = [outcome[0]]
        for s in steps[1:]:
            gone = s is None
            at = None if gone else (start + change(s).round().int()).tolist()
            frames_of_it.append(background if gone else paste(background, pixels, mask, at))
        return torch.stack(frames_of_it)

    return found | {
        "pasted": along(lambda s: s),
        "direction": along(lambda s: turn @ s),
        "speed": along(lambda s: pace * s),
        "identity": along(lambda s: s + centred, *other[:2]),
        "vanished": torch.stack([*outcome[:until], *[background] * (length - until)]),
    }


def reconstruct(vae, clips):
    """Clips [n, 1 + h, H, W, 3] through the autoencoder; the first frame, which is real, is kept. Pads to r*j+1 frames."""
    more = -(clips.shape[1] - 1) % vae.temporal_compression_ratio
    longer = torch.cat([clips[:, :1].expand(-1, more, -1, -1, -1), clips], 1)
    seen = decode_generated_clips(vae, encode_generated_clips(vae, longer))[:, more:]
    return torch.cat([clips[:, :1], seen[:, 1:]], 1)


def load_clips(args, entry):
    """(clips, {clip: {conditioning: generated clip}}, index of the clips, number left out), cut as in video.py."""
    items, data = load_items(args.data)
    every = clips_of(items, "val", "test")
    if not every:
        fail(f"{args.data} has no clips in its val and test splits; give one with more clips")
    generated, size = {}, entry.get("clip") or entry["size"]
    if args.generated:
        clips, index = load_items(args.generated)
        if Path(index.get("data_path", "")).name != Path(args.data).name:
            fail(f"{args.generated} holds clips of {index.get('data_path')}; give those of {args.data}")
        for i in clips:
            generated.setdefault(i["id"].rpartition("/")[0], {})[i["conditioning"]] = i["frames"]
            size = i["frames"].shape[1]
    cut = windows(every, args.past + args.horizon, size, "--past or --horizon")
    masked = any(object_mask(i) is not None for i in cut)
    clips = []
    for i in cut:
        moves = can_be_planted(i, args.past) if masked else has_motion(i["frames"], args.past)
        if moves and (split_of(i["source"]) == "val" or not args.generated or i["id"] in generated):
            clips.append(i)
    if len(clips) < 4 or {split_of(i["source"]) for i in clips} != {"val", "test"}:
        still = " before a still camera and stays in sight" if masked else ""
        there = ", and that has generated clips" if args.generated else ""
        few = f"{len(clips)} clips of val and test in which something moves{still}{there}"
        fail(f"{args.data} has {few}; give data with at least 4, of both splits")
    for i in clips:
        if i["id"] in generated and not torch.equal(generated[i["id"]]["real"], i["frames"][args.past - 1 :]):
            fail(f"{args.generated} has other frames of {i['id']}; use the same --past and --horizon")
    return clips, generated, data, len(every) - len(clips)


def can_be_planted(item, past):
    """Whether the item's object moves before a still camera and is visible as a whole from the last past frame on."""
    marked = object_mask(item)
    if marked is None or item.get("direction") == "still" or any(item.get("camera", (0,))):
        return False
    marked = marked[past - 1 :]
    inside = marked[:, 1:-1, 1:-1].flatten(1).sum(1)
    whole = (inside == marked.flatten(1).sum(1)).all() and (inside > 0.8 * inside[0]).all()
    return bool(whole and inside[0] > 0)


def has_motion(frames, past):
    """Whether reversing or halving the speed changes a clip without masks more than a delay of one frame does."""
    kinds = plant(frames, None, None, past, None)
    apart = {k: (x.float() - kinds["right"].float()).abs().mean() for k, x in kinds.items()}
    return min(apart["direction"], apart["speed"]) > apart["late"] > 0


def object_mask(item):
    """Mask, bool [T, H, W], of the item's main object, the last of its names; None without masks."""
    return item["mask"] == len(item["names"]) if "mask" in item and "names" in item else None


def run_plant(args):
    """Write a data folder: of every val and test clip the outcome (real), the PLANTED clips, those of --generated."""
    entry = find_model(args.vae)
    if entry["kind"] != "vae":
        fail(f"--vae {args.vae} is a {entry['kind']}; give tiny-vae, ltx, or a video autoencoder's folder")
    clips, generated, data, left_out = load_clips(args, entry)
    out = Path(args.out)
    check_writable(out / "index.yaml")
    marked = [(i, object_mask(i)) for i in clips]
    objects = [sprite(i["frames"][args.past - 1], m[args.past - 1]) for i, m in marked if m is not None]
    colours = [pixels[mask].float().mean(0) for pixels, mask, _ in objects]
    others_of = {}
    for k, i in enumerate(clips[: len(objects)]):  # the next clip whose object has another colour
        others = (*range(k + 1, len(objects)), *range(k))
        other = next((j for j in others if (colours[j] - colours[k]).norm() > 100), None)
        if other is None:
            fail(f"all objects of {args.data} have the colour of {i['id']}; give clips of several colours")
        others_of[i["id"]] = objects[other]
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    vae, _ = load_video_vae(entry, device)

    def planted_items():
        for i in tqdm(clips, desc="planted", unit="clip"):
            draw = random.Random(f"{args.seed} {i['id']}").randrange
            kinds = plant(i["frames"], object_mask(i), others_of.get(i["id"]), args.past, draw)
            others = generated.get(i["id"], {}) if split_of(i["source"]) == "test" else {}
            others = {k: x for k, x in others.items() if k not in ("real", "vae")}
            decoded = dict(zip(kinds, reconstruct(vae, torch.stack(list(kinds.values()))), strict=True))
            truth = {k: i[k][args.past - 1 :].clone() for k in ("mask", "boxes") if k in i}
            for kind, x in ({"real": kinds["right"]} | decoded | others).items():
                about = {"id": f"{i['id']}/{kind}", "frames": x.clone(), "conditioning": kind}
                yield i | about | truth

    # tells features of these clips from features of other clips with the same ids
    content = hashlib.sha256(f"{fingerprint(entry)} {args.seed} {inspect.getsource(plant)}".encode())
    for i in clips:
        for x in (i["frames"], *generated.get(i["id"], {}).values()):
            content.update(x.contiguous().numpy())
    index = {
        "name": f"{data['name']}-planted",
        "content": content.hexdigest()[:16],
        "source_kind": "planted",
        "data": data["data"],
        "seed": args.seed,
        "data_path": str(args.data),
        "past": args.past,
        "horizon": args.horizon,
        "generated_clips_path": args.generated,
        "vae": entry["name"],
        "vae_weights": entry["weights"],
        "conditioning": "right",
        "left_out": left_out,
    }
    write_items(out, planted_items(), index)
    result = {
        "stage": "plant",
        "clips": len(clips),
        "left_out": left_out,
        "generated": load_yaml(out / "index.yaml", "data")["items"],
        "out": str(out),
    }
    print_summary(result)
    return result


# A verifier takes predictions uint8 [k, 1 + h, H, W, 3] of one clip, from the last past frame on, and the outcome
# [1 + h, H, W, 3]. It returns scores [k, horizons], higher if more likely right. The score of a horizon uses no
# later frame. Costly measures read only the last frames of the horizons.


def upto(x, horizons):
    """The mean of x [k, h] over the frames up to every horizon: [k, horizons]."""
    return torch.stack([x[:, :h].mean(1) for h in horizons], 1).double()


def pixel_l1(clips, truth, context):
    error = (clips[:, 1:].float() - truth[1:].float()).abs()
    return -upto(error.mean((2, 3, 4)), context.horizons) / 255


def pixel_mse(clips, truth, context):
    error = (clips[:, 1:].float() - truth[1:].float()).square()
    return -upto(error.mean((2, 3, 4)), context.horizons) / 255**2


def at_horizons(compare, clips, truth, horizons):
    """The mean of compare(frames, frames) -> [n] over the horizons so far: [k, horizons]."""
    pick = list(horizons)
    expected = truth[pick].expand(len(clips), -1, -1, -1, -1)
    x = compare(clips[:, pick].flatten(0, 1), expected.flatten(0, 1)).view(len(clips), len(pick)).double()
    return x.cumsum(1) / torch.arange(1, len(pick) + 1)


def pixel_ssim(clips, truth, context):
    return at_horizons(ssim, clips, truth, context.horizons)


def pixel_lpips(clips, truth, context):
    return -at_horizons(context.lpips, clips, truth, context.horizons)


def opened_and_closed(found, side):
    """Masks [k, h, H, W] without specks and holes of less than side x side; outside the image is no edge, as in
    OpenCV: an object at the border keeps its width."""
    from scipy.ndimage import binary_dilation, binary_erosion

    window = torch.ones(1, 1, side, side).numpy()
    opened = binary_dilation(binary_erosion(found.numpy(), window, border_value=1), window)
    return torch.from_numpy(binary_erosion(binary_dilation(opened, window), window, border_value=1))


def moving_regions(clips):
    """Motion masks, bool [k, h, H, W], of clips [k, 1 + h, H, W, 3], as in Physics-IQ's code (Motamed et al.
    2025): grey, blurred, MOVED off a running mean, opened and closed. Windows scale with side / 512."""
    from scipy.ndimage import gaussian_filter

    grey = 255 * grey_of(clips[:, 1:])
    side = max(round(5 * grey.shape[2] / 512), 1)
    if side > 1:
        grey = torch.from_numpy(gaussian_filter(grey.numpy(), (0, 0, 1.1 * side / 5, 1.1 * side / 5)))
    mean, found = grey[:, 0], [torch.zeros_like(grey[:, 0], dtype=torch.bool)]
    for x in grey.unbind(1)[1:]:
        mean = 0.7 * mean + 0.3 * x
        found.append((x - mean).abs() > MOVED)
    found = torch.stack(found, 1)
    return opened_and_closed(found, side) if side > 1 else found


def overlap(a, b):
    """IoU of weights [..., H, W] in [0, 1]: sum of minima over sum of maxima; 1 where both are empty."""
    most = torch.maximum(a, b).sum((-2, -1))
    return torch.where(most > 0, torch.minimum(a, b).sum((-2, -1)) / most.clamp(min=1e-9), 1.0)


def regions_overlap(a, b, horizons):
    """{spatial_iou, spatiotemporal_iou, weighted_spatial_iou: [k, horizons]} of motion masks [k or 1, h, H, W]:
    where anything has moved so far, frame by frame, and weighted by the share of frames."""
    a, b, found = a.float(), b.float(), {"spatiotemporal_iou": upto(overlap(a.float(), b.float()), horizons)}
    found["spatial_iou"] = torch.stack([overlap(a[:, :h].amax(1), b[:, :h].amax(1)) for h in horizons], 1)
    weighted = [overlap(a[:, :h].mean(1), b[:, :h].mean(1)) for h in horizons]
    return {k: x.double() for k, x in (found | {"weighted_spatial_iou": torch.stack(weighted, 1)}).items()}


def pixel_regions(name, clips, truth, context):
    return regions_overlap(moving_regions(clips), moving_regions(truth[None]), context.horizons)[name]


def pixel_flow_agreement(clips, truth, context):
    """Cosine of optical flow (iterative Lucas-Kanade) at the horizons; 1 where both stand still, 0 where one does."""
    import numpy as np
    from skimage.registration import optical_flow_ilk

    def fields(clip):
        grey = grey_of(clip).numpy()
        flow = [optical_flow_ilk(grey[h - 1], grey[h], radius=5, num_warp=4) for h in context.horizons]
        return torch.from_numpy(np.stack(flow)).flatten(1).double()

    b = fields(truth)
    a = torch.stack([fields(f) for f in clips])
    still = [x.square().mean(-1).sqrt() < 0.02 for x in (a, b)]  # pixels a step, on the mean of the image
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)
    cosine = torch.where(still[0] & still[1], 1.0, torch.where(still[0] | still[1], 0.0, cosine))
    return cosine.cumsum(1) / torch.arange(1, cosine.shape[1] + 1)


PIXELS = {
    "l1": pixel_l1,
    "mse": pixel_mse,
    "ssim": pixel_ssim,
    "lpips": pixel_lpips,
    **{name: functools.partial(pixel_regions, name) for name in REGIONS},
    "flow_agreement": pixel_flow_agreement,
}


def latent_scores(tokens, truth, ends, horizons):
    """{cosine, l2: [k, horizons]} of predicted tokens [k, t, h, w, D] and true ones, as in Garrido et al. 2025.

    ends: the last frame of each time step. nan where no step with a predicted frame ends by the horizon.
    """
    steps = {
        "cosine": torch.nn.functional.cosine_similarity(tokens, truth[None], dim=-1).mean((2, 3)),
        "l2": -(tokens - truth).norm(dim=-1).mean((2, 3)),
    }
    count = [sum(e <= h for e in ends) for h in horizons]
    missing, out = torch.full((len(tokens),), math.nan), {}
    for name, x in steps.items():
        seen = [x[:, :c].mean(1) if c > (ends[0] == 0) else missing for c in count]
        out[name] = torch.stack(seen, 1).double()
    return out


def aurocs(scores, right, weights):
    """AUROC [B] under weights [B, n]: share of pairs in which the right clip scores higher; ties count a half
    (Mann & Whitney 1947). nan where a resample lacks right or wrong clips, or a score is missing."""
    if scores.isnan().any():
        return torch.full((len(weights),), math.nan, dtype=torch.float64)
    pairs = scores[right][:, None] - scores[~right]
    wins = (pairs > 0).double() + 0.5 * (pairs == 0)
    w, v = weights[:, right], weights[:, ~right]
    return ((w @ wins) * v).sum(1) / (w.sum(1) * v.sum(1))


def source_weights(sources, seed):
    """Weights [1 + RESAMPLES, n] of items: first all 1, then whole sources resampled with replacement."""
    cluster = clusters(sources)
    times = resampled(int(cluster.max()) + 1, RESAMPLES, torch.Generator().manual_seed(seed))
    return torch.cat([torch.ones(1, len(sources), dtype=torch.float64), times[:, cluster]])


def row_weights(w, rows):
    """(`source_weights` of these rows, number of their sources)."""
    sources = [w.sources[k] for k in rows]
    return source_weights(sources, w.seed), len(set(sources))


def interval(values, n):
    """(value, low, high) of values [1 + B], the first without resampling, over n sources. Where all resamples
    agree, the bounds are 3 / n away (rule of three, Hanley & Lippman-Hand 1983)."""
    value, rest = values[0].item(), values[1:]
    rest = rest[~rest.isnan()]
    if math.isnan(value) or not len(rest):
        return None, None, None
    low, high = widened(value, *rest.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), n)
    return (value, low, high) if high > low else (value, value - 3 / n, value + 3 / n)


def named_interval(name, values, n, least=0.0):
    """{name, _low, _high} of `interval`, its bounds within least .. 1."""
    value, low, high = interval(values, n)
    if low is not None:
        low, high = max(low, least), min(high, 1.0)
    return with_bounds(name, (value, low, high))


def record(values, baselines, n, clips, upper_bound=1.0, **more):
    """A criterion's record of values [1 + B] and baselines {name: [1 + B]} with common resamples. n: sources."""
    best = max(baselines, key=lambda k: baselines[k][0])
    score, low, high = interval(values, n)
    gain, gain_low, gain_high = interval(values - baselines[best], n)
    baseline = baselines[best][0].item()
    return {
        "score": score,
        "low": low,
        "high": None if high is None else min(high, 1.0),
        "better": "higher",
        "n": clips,
        "sources": n,
        "baseline": baseline,
        "baseline_name": best,
        "upper_bound": upper_bound,
        "skill": (score - baseline) / (upper_bound - baseline) if upper_bound > baseline else None,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        **more,
        "baselines": {k: x[0] for k, x in baselines.items()},
    }


def risk_coverage(scores, right, weights):
    """(risk [B, n], coverage [B, n]) of accepting the 1 .. n best clips (El-Yaniv & Wiener 2010); ties share risk."""
    _, rank = scores.unique(return_inverse=True)

    def by_rank(x):
        return torch.zeros(len(x), int(rank.max()) + 1, dtype=torch.float64).index_add_(1, rank, x)

    share = (by_rank(weights * ~right) / by_rank(weights).clamp(min=1e-9))[:, rank]
    order = scores.argsort(descending=True, stable=True)
    w = weights[:, order]
    covered = w.cumsum(1)
    return (w * share[:, order]).cumsum(1) / covered.clamp(min=1e-9), covered / covered[:, -1:]


def mean_risk(scores, right, weights):
    """Area under the risk-coverage curve, [B]."""
    w = weights[:, scores.argsort(descending=True, stable=True)]
    return (risk_coverage(scores, right, weights)[0] * w).sum(1) / w.sum(1)


def conformal_bound(calibration, promised):
    """Acceptance threshold: of n + 1 exchangeable wrong clips at most floor((n + 1) promised) exceed it (Vovk 2005)."""
    k = math.floor((len(calibration) + 1) * promised)
    return calibration.sort(descending=True).values[k - 1].item() if k else math.inf


def correctness(clips, truth, mask, word):
    """{direction, position, identity: bool [k]}: correctness of clips [k, 1 + h, H, W, 3], by the object's colour.

    The object is that of `mask` in the last past frame. direction: it moves in direction `word`; position: it ends at
    most OFF of its true path away; identity: it is visible there. None where it cannot be followed in the outcome.
    """
    here = whereabouts(torch.cat([truth[None], clips]), mask.expand(len(clips) + 1, -1, -1))
    seen = (~here[0].isnan().any(-1)).nonzero().flatten()
    until = int(seen[-1]) + 1
    if until < 2 or directions_of(here[:1, :until]) != [word]:
        return None
    end, found = here[:, until - 1], ~here[1:, until - 1].isnan().any(-1)
    near = (end[1:] - end[0]).norm(dim=-1) <= OFF * (end[0] - here[0, 0]).norm()  # of nan False
    return {
        "direction": torch.tensor([w == word for w in directions_of(here[1:, :until])]),
        "position": near,
        "identity": found,
    }


def agreement(predicted, real):
    """IoU of a model's answers (actions) on predictions, bool [k, actions], and on the outcome; 0.5 without any."""
    both, either = (predicted & real).sum(1).double(), (predicted | real).sum(1).double()
    return torch.where(predicted.any(1) & real.any(), both / either.clamp(min=1), 0.5)


def read_rollouts(args):
    """({clip: {kind: item}}, index) of a folder that `plant` wrote; fails where a kind is missing."""
    items, index = load_items(args.rollouts)
    if index.get("source_kind") != "planted":
        fail(f"{args.rollouts} holds no planted clips; write them with verify.py plant")
    planted = {}
    for i in items:
        planted.setdefault(i["id"].rpartition("/")[0], {})[i["conditioning"]] = i
    for clip, kinds in planted.items():
        if missing := [k for k in ("real", "right", "blurred", "late") if k not in kinds]:
            fail(f"{args.rollouts} lacks {clip}/{missing[0]}; run verify.py plant again")
    if lacking := {"val", "test"} - {split_of(kinds["real"]["source"]) for kinds in planted.values()}:
        fail(f"{args.rollouts} has no clips in its {lacking.pop()} split; plant more of them")
    return planted, index


def prepare(args, rollouts):
    """Namespace: rows (clip, kind, item) but the real ones; flags right, val, test, generated [rows]; stack(clip):
    [k, 1 + h, H, W, 3]; truths: outcomes; masks [H, W] of the last past frame; pixels: verifiers."""
    frames = len(rollouts[next(iter(rollouts))]["real"]["frames"])
    w = types.SimpleNamespace(clips=list(rollouts), items=rollouts, frames=frames)
    w.stack = lambda clip: torch.stack([x["frames"] for kind, x in rollouts[clip].items() if kind != "real"])
    w.horizons = sorted({*(h for h in HORIZONS if h < w.frames), w.frames - 1})
    rows = [(clip, kind, item) for clip in w.clips for kind, item in rollouts[clip].items()]
    w.rows = [row for row in rows if row[1] != "real"]
    w.kinds, w.sources = [kind for _, kind, _ in w.rows], [item["source"] for _, _, item in w.rows]
    w.right = torch.tensor([PLANTED.get(k, False) for k in w.kinds])
    planted, split = torch.tensor([k in PLANTED for k in w.kinds]), [split_of(s) for s in w.sources]
    generated = torch.tensor([k not in (*PLANTED, *BASELINES) for k in w.kinds])
    of_val, of_test = (torch.tensor([s == name for s in split]) for name in ("val", "test"))
    w.val, w.test, w.generated = of_val & planted, of_test & planted, of_test & generated
    w.truths = {clip: kinds["real"]["frames"] for clip, kinds in rollouts.items()}
    marked = {clip: object_mask(kinds["real"]) for clip, kinds in rollouts.items()}
    w.masks = {clip: mask[0] for clip, mask in marked.items() if mask is not None}
    w.seed = args.seed
    w.lpips, name = load_lpips(choose_device()[0])
    w.pixels = {name if n == "lpips" else n: verifier for n, verifier in PIXELS.items()}
    return w


def where(flags):
    """The numbers at which flags [n] are set."""
    return flags.nonzero().flatten().tolist()


def pixel_scores(w, names, clips, truths):
    """{verifier: scores [rows of these clips, horizons]}. truths: {clip: the frames to compare with}."""
    out = {name: [] for name in names}
    for clip in tqdm(clips, desc="verified", unit="clip"):
        context = types.SimpleNamespace(horizons=w.horizons, lpips=w.lpips)
        predictions = w.stack(clip)
        for name in names:
            out[name].append(w.pixels[name](predictions, truths[clip], context))
    return {name: torch.cat(x) for name, x in out.items()}


def latents_of(folder, rollouts, w):
    """(index, read(point, ids) -> fp32 [n, t, h, w, D]) of features of these rollouts, read from mapped files."""
    folder = Path(folder)
    index, _ = load_features(folder)
    if Path(index["data_path"]).resolve() != Path(rollouts).resolve():
        fail(f"{folder} has features of {index['data_path']}; run extract.py --data {rollouts}")
    ids = set(index["ids"])
    for kinds in w.items.values():
        for i in kinds.values():
            if i["id"] not in ids:
                fail(f"{folder} has no features of {i['id']!r}; run extract.py again")

    @functools.cache
    def shards(point):
        return [load_pt(folder / point / f"{k:05d}.pt", FEATURES) for k in range(index["shards"])]

    @functools.cache
    def places(point):
        return {i: (s, k) for s, shard in enumerate(shards(point)) for k, i in enumerate(shard["ids"])}

    def read(point, ids):
        x = torch.stack([shards(point)[s]["features"][k] for s, k in (places(point)[i] for i in ids)]).float()
        if not x.isfinite().all():
            fail(f"{folder}/{point} holds values that are not finite; extract again in bf16 or fp32")
        return x

    return index, read


def all_scores(args, w):
    """({verifier: scores [rows, horizons]}, {verifier: family}, {model, weights} of --words or the first encoder).

    Families: pixel, latent, words.
    """
    encoders, words, about = [latents_of(folder, args.rollouts, w) for folder in args.latents or ()], None, {}
    if encoders:
        about = {k: encoders[0][0][k] for k in ("model", "weights")}
    if args.words:
        words = load_pt(args.words, RESULT)
        about = {k: words["meta"][k] for k in ("model", "weights")}
        row = {i: k for k, i in enumerate(words["ids"])}
        for k in where(w.test):
            if (name := w.rows[k][2]["id"]) not in row:
                fail(f"{args.words} has no answer about {name!r}; run explain.py describe again")
    scores = pixel_scores(w, w.pixels, w.clips, w.truths)
    family = dict.fromkeys(scores, "pixel")
    for index, read in encoders:
        for point in (p for p in index["points"] if p != "pixels"):
            found = []
            for clip in w.clips:
                others = [i["id"] for kind, i in w.items[clip].items() if kind != "real"]
                tokens = read(point, [f"{clip}/real", *others])
                t = tokens.shape[1]
                if point.startswith("latents"):  # an autoencoder's first step is the first frame alone
                    ends = [s * (w.frames - 1) // max(t - 1, 1) for s in range(t)]
                else:
                    ends = [-(-(s + 1) * w.frames // t) - 1 for s in range(t)]
                found.append(latent_scores(tokens[1:], tokens[0], ends, w.horizons))
            for name in found[0]:
                full = f"{index['model']} {point} {name}"
                scores[full], family[full] = torch.cat([f[name] for f in found]), "latent"
    if words:
        # only for whole test clips
        found = torch.full((len(w.rows), len(w.horizons)), math.nan, dtype=torch.float64)
        for k, (clip, _, item) in enumerate(w.rows):
            if item["id"] in row:
                own, real = (words["named"][row[i]] for i in (item["id"], f"{clip}/real"))
                found[k, -1] = agreement(own[None], real)[0]
        scores["words"], family["words"] = found, "words"
    return scores, family, about


def verifier_table(w, scores, family):
    """({verifier: row}, {family: best on val}, {verifier: AUROC on test [1 + B]}, weights [1 + B, planted test rows])."""
    test, val = where(w.test), where(w.val)
    draws, n = row_weights(w, test)
    place = {k: j for j, k in enumerate(test)}
    alike = torch.tensor([k == "right" for k in w.kinds])
    table, areas = {}, {}
    for name, x in scores.items():
        x = x[:, -1]
        areas[name] = aurocs(x[test], w.right[test], draws)
        row = {"family": family[name], **named_interval("auroc", areas[name], n)}
        if x[test].isnan().any():
            reason = "no time step ends with the clip's last frame, or some clips have no answer"
            table[name] = row | {"auroc_val": None, "false_alarms": None, "kinds": {}, "reason": reason}
            continue
        chosen = val if not x[val].isnan().any() else []
        row["auroc_val"] = None
        if chosen:
            once = torch.ones(1, len(val), dtype=torch.float64)
            row["auroc_val"] = aurocs(x[val], w.right[val], once).item()
        # scores below it are flagged
        limit = x[where(alike & (w.val if chosen else w.test))].quantile(ALARMS)
        row |= {"false_alarms": (x[where(alike & w.test)] < limit).double().mean(), "kinds": {}}
        for kind in dict.fromkeys(k for k in w.kinds if k in PLANTED and k != "right"):
            these = [k for k in test if w.kinds[k] in (kind, "right")]
            values = aurocs(x[these], alike[these], draws[:, [place[k] for k in these]])
            flagged = (x[[k for k in these if w.kinds[k] == kind]] < limit).double().mean()
            row["kinds"][kind] = named_interval("auroc", values, n) | {"flagged": flagged}
        table[name] = row
    # without an encoder whose time steps are too long
    able = {k: row for k, row in table.items() if row["auroc"] is not None}
    best = {}
    for f in dict.fromkeys(row["family"] for row in able.values()):
        members = [k for k, row in able.items() if row["family"] == f]
        best[f] = max(members, key=lambda k: able[k]["auroc_val"] or 0)
    return table, best, areas, draws


def other_outcome_scores(w, name):
    """Scores [planted test rows] of a pixel verifier with the outcome of another clip: a baseline."""
    source = {c: w.items[c]["real"]["source"] for c in w.clips}
    clips, next_one = [c for c in w.clips if split_of(source[c]) == "test"], {}
    for k, c in enumerate(clips):
        other = next((d for d in (*clips[k + 1 :], *clips[:k]) if source[d] != source[c]), c)
        next_one[c] = torch.cat([w.truths[c][:1], w.truths[other][1:]])
    scores = pixel_scores(w, [name], clips, next_one)[name][:, -1]
    return scores[[w.kinds[k] in PLANTED for k, row in enumerate(w.rows) if row[0] in next_one]]


def diverged(w):
    """Wrong planted test clips that differ from the right one more than the late one does: bool [rows, horizons]."""
    found = torch.zeros(len(w.rows), len(w.horizons), dtype=torch.bool)
    for k in where(w.test & ~w.right):
        clip, _, item = w.rows[k]
        right, late = (w.items[clip][kind]["frames"][1:].float() for kind in ("right", "late"))
        error, least = ((x - right).abs().mean((1, 2, 3)) for x in (item["frames"][1:].float(), late))
        found[k] = torch.tensor([bool(error[:h].max() > least[:h].max()) for h in w.horizons])
    return found


def by_horizon(w, scores, best):
    """{horizon: {diverged: share of wrong test clips that differ by then, verifier: AUROC of these against right ones}}."""
    wrong, found = diverged(w), {}
    for j, h in enumerate(w.horizons):
        rows = where(w.test & (w.right | wrong[:, j]))
        draws, n = row_weights(w, rows)
        areas = {name: aurocs(scores[name][rows, j], w.right[rows], draws) for name in best.values()}
        found[h] = {"diverged": wrong[where(w.test & ~w.right), j].double().mean()} | {
            name: named_interval("auroc", x, n) for name, x in areas.items() if not x[0].isnan()
        }
    return found


def correctness_in(w, clip, predictions):
    """`correctness` of a list of predictions of a clip, with `all` of its aspects; None where unknown."""
    if clip not in w.masks:
        return None
    word = w.items[clip]["real"].get("direction")
    found = correctness(torch.stack(predictions), w.truths[clip], w.masks[clip], word)
    return found and found | {"all": found["direction"] & found["position"] & found["identity"]}


def planted_correctness(w):
    """{kind: share of planted test clips that `correctness` calls right}: checks the measure on known answers."""
    found = {}
    for clip in (c for c in w.masks if split_of(w.items[c]["real"]["source"]) == "test"):
        kinds = [k for k in PLANTED if k in w.items[clip]]
        seen = correctness_in(w, clip, [w.items[clip][k]["frames"] for k in kinds])
        for kind, right in zip(kinds, seen["all"], strict=True) if seen else ():
            found.setdefault(kind, []).append(right.double())
    return {kind: torch.stack(x).mean() for kind, x in found.items()}


def video_model_results(w, scores):
    """Correctness of the video model's test clips, and AUROC of the verifiers."""
    found, rows = {a: [] for a in ("direction", "position", "identity", "all")}, []
    for clip in dict.fromkeys(w.rows[k][0] for k in where(w.generated)):
        these = [k for k in where(w.generated) if w.rows[k][0] == clip]
        seen = correctness_in(w, clip, [w.rows[k][2]["frames"] for k in these])
        if not seen:
            continue
        rows += these
        for aspect, x in seen.items():
            found[aspect].append(x)
    if not rows:
        return None
    truth = {a: torch.cat(x) for a, x in found.items()}
    draws, n = row_weights(w, rows)
    verifiers = {}
    for name in scores:
        areas = {a: aurocs(scores[name][rows, -1], x, draws) for a, x in truth.items()}
        verifiers[name] = {a: named_interval("auroc", area, n) for a, area in areas.items()}
    kinds = [w.kinds[k] for k in rows]
    by_kind = {}
    for kind in dict.fromkeys(kinds):
        by_kind[kind] = truth["all"][[k == kind for k in kinds]].double().mean()
    return {
        "generated": len(rows),
        "accuracy": {a: x.double().mean() for a, x in truth.items()},
        "accuracy_by_kind": by_kind,
        "verifiers": verifiers,
        "rows": rows,
        "truth": truth["all"],
    }


def evaluate_best(w, scores, family, best, areas, draws, promised):
    """Of the pixel verifier chosen on val: (criteria, acceptance, risk-coverage curve, video_model_results)."""
    test, pixel = where(w.test), best["pixel"]
    n, right, x = len({w.sources[k] for k in test}), w.right[test], scores[pixel][test, -1]
    baselines = {
        "chance": torch.full((len(draws),), 0.5, dtype=torch.float64),
        "other_outcome": aurocs(other_outcome_scores(w, pixel), right, draws),
    }
    more = {"verifier": pixel, "options_searched": sum(f == "pixel" for f in family.values())}
    criteria = {"pixel_auroc": record(areas[pixel], baselines, n, len(test), **more)}
    for f in ("latent", "words"):
        if f in best:
            rival = {best[f]: areas[best[f]]}
            criteria[f"pixel_over_{f}"] = record(areas[pixel], rival, n, len(test), **more)
    base, least = (draws[:, ~right].sum(1) / draws.sum(1)), mean_risk(right.double(), right, draws)
    area = mean_risk(x, right, draws)
    most, risk_baseline = (base - least)[0].item(), {"random": 0 * base}
    criteria["selective_risk"] = record(base - area, risk_baseline, n, len(test), upper_bound=most, **more)
    bound = conformal_bound(scores[pixel][where(w.val & ~w.right), -1], promised)
    accepted = x > bound
    wrong, sources = where(~right), [w.sources[k] for k in test]
    error = mean_interval(accepted[wrong].double(), [sources[k] for k in wrong])
    error = error[0], max(error[1], 0.0), min(error[2], 1.0)
    by_kind = {}
    for kind in (kind for kind in PLANTED if kind in w.kinds):
        by_kind[kind] = accepted[[w.kinds[k] == kind for k in test]].double().mean()
    acceptance = {
        "conformal_promised": promised,
        **with_bounds("conformal_error", error),
        "conformal_accepted_correct": accepted[right].double().mean(),
        "accepted_by_kind": by_kind,
    }
    about = {"better": "lower", "n": len(wrong), "sources": n}
    baseline = {"baseline": 1.0, "baseline_name": "accept_all", "upper_bound": 0.0}
    gain = {"gain": 1 - error[0], "gain_low": 1 - error[2], "gain_high": 1 - error[1]}
    score = dict(zip(("score", "low", "high"), error, strict=True))
    criteria["conformal_error"] = score | about | baseline | gain | more
    generated = video_model_results(w, scores)
    if generated and generated["truth"].any() and not generated["truth"].all():
        rows, truth, (weights, m) = generated["rows"], generated["truth"], row_weights(w, generated["rows"])
        chance = torch.full((len(weights),), 0.5, dtype=torch.float64)
        generated_area = aurocs(scores[pixel][rows, -1], truth, weights)
        criteria["generated_auroc"] = record(generated_area, {"chance": chance}, m, len(rows), **more)
        if "latent" in best:
            rival = {best["latent"]: aurocs(scores[best["latent"]][rows, -1], truth, weights)}
            criteria["generated_over_latent"] = record(generated_area, rival, m, len(rows), **more)
        passed = scores[pixel][rows, -1] > bound
        acceptance["conformal_error_generated"] = passed[~truth].double().mean()
        acceptance["conformal_accepted_generated"] = passed[truth].double().mean()
    risk, coverage = (c[0] for c in risk_coverage(x, right, draws[:1]))
    shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    points = [max(int(len(risk) * q), 1) - 1 for q in shares]
    curve = {
        "coverage": [coverage[k] for k in points],
        "risk": [risk[k] for k in points],
        "random": base[0],
        "perfect": [max(0.0, 1 - right.double().mean() / coverage[k]) for k in points],
    }
    risks = {"base_risk": base[0], **named_interval("aurc", area, n), "aurc_perfect": least[0]}
    return criteria, risks | acceptance, curve, generated


def run_score(args, started):
    """Write verify.yaml: AUROC of every verifier, by kind and horizon, and acceptance by the best one."""
    rollouts, index = read_rollouts(args)
    out = Path(args.out or Path(args.rollouts) / "verify.yaml")
    check_writable(out)
    w = prepare(args, rollouts)
    scores, family, about = all_scores(args, w)
    table, best, areas, draws = verifier_table(w, scores, family)
    found = evaluate_best(w, scores, family, best, areas, draws, args.promised)
    criteria, acceptance, curve, generated = found
    right = [k for k in where(w.test) if w.kinds[k] == "right"]
    upper_bounds = {"vae": {name: scores[name][right, -1].mean() for name in w.pixels}}
    result = {
        "stage": "verify",
        "model": None,
        "weights": index["vae_weights"],
        **about,
        "data_name": index["name"].removesuffix("-planted"),
        "data": index["data"],
        "decoder": index["vae"],
    }
    for f, name in best.items():
        result[f"{f}_verifier"] = name
        result |= {f"{f}_{k}": table[name][k] for k in ("auroc", "auroc_low", "auroc_high")}
    no_lpips = "the published weights are not on this machine; lpips_random_backbone has random weights"
    result |= {
        **acceptance,
        "generated": len(w.rows),
        "planted_test": int(w.test.sum()),
        "clips": len(w.clips),
        "sources_test": len({w.sources[k] for k in where(w.test)}),
        "lpips_reason": None if "lpips" in w.pixels else no_lpips,
        "criteria": criteria,
        "verifiers": table,
        "horizons": by_horizon(w, scores, best),
        "risk_coverage": curve,
        "video_model": generated and {k: v for k, v in generated.items() if k not in ("rows", "truth")},
        "planted_correctness": planted_correctness(w),
        "upper_bounds": upper_bounds,
        "notes": NOTES,
        "run": run_info(args, started, script="verify.py"),
    }
    result = plain(result)
    draw_chart(w, out.with_suffix(".png"))
    save_yaml(out, result)
    print_verifiers(result)
    return result


def print_verifiers(result):
    """The verifiers as a table, best first, then `key value`."""
    kinds = list(next(iter(result["verifiers"].values()))["kinds"])
    print(f"\n{'':60s} share flagged, at {ALARMS:.0%} of val's right clips")
    names = "".join(f"{k:>10s}" for k in ("right", *kinds))
    print(f"{'verifier':34s} {'':7s} {'AUROC':>6s}  {'95% interval':16s}{names}")
    able = {k: row for k, row in result["verifiers"].items() if row["auroc"] is not None}
    for name in sorted(able, key=lambda k: -able[k]["auroc"]):
        row = able[name]
        flagged = [row["false_alarms"], *(row["kinds"][k]["flagged"] for k in kinds)]
        interval = f"{row['auroc']:6.3f}  [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        print(f"{name:34s} {row['family']:7s} {interval}  {''.join(f'{x:10.2f}' for x in flagged)}")
    print()
    print_summary(result)


def draw_chart(w, path):
    """Write verify.png: the planted versions of one clip."""
    plt = pyplot()
    clip = next(c for c in w.clips if split_of(w.items[c]["real"]["source"]) == "test")
    shown = {k: i["frames"] for k, i in w.items[clip].items() if k in ("real", *PLANTED)}
    at = [0, *w.horizons]
    size = (1.1 * len(at) + 2, 0.9 * len(shown) + 1)
    figure, axes = plt.subplots(len(shown), len(at), figsize=size, layout="constrained")
    for row, (kind, frames) in zip(axes, shown.items(), strict=True):
        for axis, t in zip(row, at, strict=True):
            axis.imshow(frames[t].numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=11)
    steps = ", ".join(f"+{h}" for h in w.horizons)
    words = "real: the outcome; all others through the autoencoder"
    figure.suptitle(f"Planted clips: the last past frame, then {steps}\n{words}", fontsize=10)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def get_args(argv):
    about = {
        "plant": "write predictions of known correctness, as a data folder",
        "score": "how well do verifiers separate right from wrong predictions?",
    }
    p, jobs = subcommands(__doc__, about)
    add = jobs["plant"].add_argument
    add("--data", required=True, help="the clips")
    add("--vae", default="tiny-vae", help="the autoencoder of all planted clips")
    add("--past", type=int, default=8, help="frames of the past")
    add("--horizon", type=int, default=16, help="frames of the future")
    add("--generated", help="generated clips of video.py continue, to score too")
    add("--out", required=True, help="a data folder")
    add = jobs["score"].add_argument
    add("--rollouts", metavar="DATA", required=True, help="what `plant` wrote")
    add("--latents", nargs="+", metavar="FOLDER", help="features of them, of one or more encoders")
    add("--words", help="what explain.py describe found a model to say of them (...-actions.pt)")
    add("--promised", type=float, default=0.1, help="share of wrong predictions accepted at most")
    add("--out", help="default: verify.yaml in --rollouts")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "plant":
        return run_plant(args)
    return run_score(args, started)


if __name__ == "__main__":
    main()
