"""Stage 6. Planted right and wrong predictions: was a prediction right, and which verifier can tell?

    python verify.py plant --data data/future --vae tiny-vae --past 8 --films results/tiny/future/films --out results/tiny/future/planted
    python verify.py score --rollouts results/tiny/future/planted --latents results/tiny/future/planted-features/tiny --out results/tiny/future/verify.yaml

`plant` writes predictions whose rightness is known, as a data folder that extract.py and explain.py take: for every val and test clip
one of what really happened, some with planted errors (PLANTED) and, with --films, those that a video model made. Each begins with the
last frame seen.

`score` asks which verifiers tell right predictions from wrong ones. A verifier is given the prediction and the outcome, as pixels, as
latents (--latents) or in words (--words). verify.yaml holds the AUROC of each on test, with intervals over sources, by kind of error
and by horizon (the best of each family is chosen on val); the risk-coverage curve; split-conformal acceptance; the same for the video
model's clips; and with --futures, what can be told without the outcome. verify.png shows the planted films of one clip.

Modules, to be copied with it: claims.py, cogvlm2.py, common.py, media.py, metrics.py, models.py, stats.py.
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

from claims import heading, whereabouts
from common import (
    FEATURES,
    RESULT,
    check_writable,
    choose_device,
    clips_of,
    digest,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    plain,
    pyplot,
    refuse,
    run_info,
    save_yaml,
    say,
    split_of,
    subcommands,
    write_items,
)
from media import grey_of
from metrics import BASELINES, HORIZONS, load_lpips, ssim, windows
from models import decode_films, encode_films, find_model, fingerprint, load_video_vae
from stats import bootstrap, clusters, resampled, widened, with_bounds

# {kind of planted film: is it right?} All have been through the autoencoder, as generated films have, so that
# no verifier can go by the traces of the decoder.
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
ALARMS = 0.05  # detection is counted where this share of val's right predictions is flagged
RESPLITS, RESAMPLES = 100, 2000
MOVED = 10  # of 255, Physics-IQ's threshold
# of the object's way: more is a wrong position. A film a frame late is off by a sixteenth, the planted wrong
# speeds by 0.7 and more, a still picture by 1
OFF = 0.5
NOTES = {
    "flagged": f"where {ALARMS:.0%} of val's right films are; of words, which are asked of test alone, of test's",
    "still_frames": "in which nothing moves by Physics-IQ's masks: two empty masks overlap by 1",
    "made": "films of the video model (no baselines), right where the object goes the right way, ends within half of its way from where it really does, and is there; "
    "rightness_of_planted: what that says of planted films",
    "conformal": "the bound is that of val's wrong films; conformal_error: of test's wrong ones, resampled by source; conformal_error_made: of the video model's, which are not "
    "exchangeable with planted ones: nothing is promised there. resplit: the same over 100 halvings of test's sources, one wrong film of each",
    "ceilings": "scores, higher is better: errors are negative",
}


def sprite(frame, mask):
    """(pixels [h, w, 3], mask [h, w], corner (y, x)): the object that a mask [H, W] marks in a frame [H, W, 3], cut out."""
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


def empty_stage(frames, masks):
    """The background [H, W, 3] without the object of masks [T, H, W]: at each pixel the median of the frames [T, H, W, 3] in which it is free, inpainted where it never is."""
    from scipy.ndimage import binary_dilation
    from skimage.restoration import inpaint_biharmonic

    covered = torch.from_numpy(binary_dilation(masks.numpy(), [[[0] * 3] * 3, [[1] * 3] * 3, [[0] * 3] * 3]))
    behind = torch.where(covered[..., None], math.nan, frames.float()).nanmedian(0).values
    hidden = covered.all(0)
    if hidden.any():
        scene = behind.nan_to_num().numpy() / 255
        behind = 255 * torch.from_numpy(inpaint_biharmonic(scene, hidden.numpy(), channel_axis=-1)).float()
    return behind.round().clamp(0, 255).byte()


def plant(frames, masks, stranger, past, draw):
    """{kind: film uint8 [1 + h, H, W, 3]} that begins with the last frame seen, of a clip frames [T, H, W, 3] whose object masks [T, H, W] mark, before a still camera.

    right: the outcome; pasted: the same cut out and pasted where it was, as the wrong ones are made, so that no seam tells; blurred by 2% of the side; late by a frame. Wrong are direction (turned
    by 45 to 315 degrees), speed (0.2 to 2.2 times its own), identity (`stranger`, the sprite of another clip's object, goes the same way) and vanished (before two thirds are over). draw(n): a number
    below n, the clip's own. Without masks (None) nothing is cut out: direction is the past played backwards, speed the outcome at half its own, and pasted, identity and vanished are not there.
    """
    from scipy.ndimage import gaussian_filter

    film = frames[past - 1 :]
    length = len(film)
    blur = 0.02 * film.shape[1]
    blurred = torch.from_numpy(gaussian_filter(film[1:].float().numpy(), (0, blur, blur, 0))).round().byte()
    found = {"right": film, "blurred": torch.cat([film[:1], blurred]), "late": film[[0, *range(length - 1)]]}
    if masks is None:
        backwards = frames[[max(past - 1 - t, 0) for t in range(length)]]
        return found | {"direction": backwards, "speed": film[[t // 2 for t in range(length)]]}
    stage = empty_stage(frames, masks)
    here = [sprite(f, m) if m.any() else None for f, m in zip(film, masks[past - 1 :], strict=True)]
    start = torch.tensor(here[0][2])
    # (y, x) pixels since the last frame seen
    steps = [None if s is None else (torch.tensor(s[2]) - start).float() for s in here]
    angle = math.pi / 4 * (1 + draw(7))
    pace = (0.2, 0.3, 1.8, 2.2)[draw(4)]
    until = 1 + draw(max(2 * length // 3, 1))
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centred = (torch.tensor(here[0][1].shape) - torch.tensor(stranger[1].shape)) / 2

    def along(change, pixels=here[0][0], mask=here[0][1]):
        frames_of_it = [film[0]]
        for s in steps[1:]:
            gone = s is None
            at = None if gone else (start + change(s).round().int()).tolist()
            frames_of_it.append(stage if gone else paste(stage, pixels, mask, at))
        return torch.stack(frames_of_it)

    return found | {
        "pasted": along(lambda s: s),
        "direction": along(lambda s: turn @ s),
        "speed": along(lambda s: pace * s),
        "identity": along(lambda s: s + centred, *stranger[:2]),
        "vanished": torch.stack([*film[:until], *[stage] * (length - until)]),
    }


def through(vae, films):
    """Films [n, 1 + h, H, W, 3] after the autoencoder; their first frame, which is real, stays as it is. It takes r*j+1 frames: so the first is repeated before them."""
    more = -(films.shape[1] - 1) % vae.temporal_compression_ratio
    longer = torch.cat([films[:, :1].expand(-1, more, -1, -1, -1), films], 1)
    seen = decode_films(vae, encode_films(vae, longer))[:, more:]
    return torch.cat([films[:, :1], seen[:, 1:]], 1)


def to_plant(args, entry):
    """(clips, {clip: {conditioning: film}}, index of the clips, how many were left out), refused as far as possible before a model is loaded. Clips are cut and squashed as in video.py."""
    items, data = load_items(args.data)
    every = clips_of(items, "val", "test")
    if not every:
        refuse(f"{args.data} has no clips in its val and test splits; give one with more clips")
    generated, size = {}, entry.get("clip") or entry["size"]
    if args.films:
        films, index = load_items(args.films)
        if Path(index.get("data_path", "")).name != Path(args.data).name:
            refuse(f"{args.films} holds films of {index.get('data_path')}; give those of {args.data}")
        for film in films:
            generated.setdefault(film["id"].rpartition("/")[0], {})[film["conditioning"]] = film["frames"]
            size = film["frames"].shape[1]
    cut = windows(every, args.past + args.horizon, size, "--past or --horizon")
    masked = any(subject(i) is not None for i in cut)
    clips = []
    for i in cut:
        moves = whole_and_going(i, args.past) if masked else goes_somewhere(i["frames"], args.past)
        if moves and (split_of(i["source"]) == "val" or not args.films or i["id"] in generated):
            clips.append(i)
    if len(clips) < 4 or {split_of(i["source"]) for i in clips} != {"val", "test"}:
        still = " before a still camera and stays in sight" if masked else ""
        there = ", and of which there are films" if args.films else ""
        lacking = f"{len(clips)} clips of val and test in which something moves{still}{there}"
        refuse(f"{args.data} has {lacking}; at least 4, of both splits, are needed")
    for i in clips:
        if i["id"] in generated and not torch.equal(generated[i["id"]]["real"], i["frames"][args.past - 1 :]):
            refuse(f"{args.films} has other frames of {i['id']}; give its --past and --horizon")
    return clips, generated, data, len(every) - len(clips)


def whole_and_going(item, past):
    """Can the item's object be cut out and put elsewhere? It must move before a still camera and, from the last frame seen on, be in sight as a whole and off the border."""
    marked = subject(item)
    if marked is None or item.get("direction") == "still" or any(item.get("camera", (0,))):
        return False
    marked = marked[past - 1 :]
    inside = marked[:, 1:-1, 1:-1].flatten(1).sum(1)
    whole = (inside == marked.flatten(1).sum(1)).all() and (inside > 0.8 * inside[0]).all()
    return bool(whole and inside[0] > 0)


def goes_somewhere(frames, past):
    """Without masks: does playing the clip backwards or at half speed change more than a delay of one frame?"""
    kinds = plant(frames, None, None, past, None)
    apart = {k: (x.float() - kinds["right"].float()).abs().mean() for k, x in kinds.items()}
    return min(apart["direction"], apart["speed"]) > apart["late"] > 0


def subject(item):
    """Mask, bool [T, H, W], of the object that an item is about, the last of its names; None where there is none."""
    return item["mask"] == len(item["names"]) if "mask" in item and "names" in item else None


def run_plant(args):
    """Write a data folder of films whose rightness is known: for every val and test clip what happened (real), the PLANTED ones, and those of --films."""
    entry = find_model(args.vae)
    if entry["kind"] != "vae":
        refuse(f"--vae {args.vae} is a {entry['kind']}; give tiny-vae, ltx, or a video autoencoder's folder")
    clips, generated, data, left_out = to_plant(args, entry)
    out = Path(args.out)
    check_writable(out / "index.yaml")
    marked = [(i, subject(i)) for i in clips]
    objects = [sprite(i["frames"][args.past - 1], m[args.past - 1]) for i, m in marked if m is not None]
    colours = [pixels[mask].float().mean(0) for pixels, mask, _ in objects]
    strangers = {}
    for k, i in enumerate(clips[: len(objects)]):  # the next clip whose object has another colour
        others = (*range(k + 1, len(objects)), *range(k))
        other = next((j for j in others if (colours[j] - colours[k]).norm() > 100), None)
        if other is None:
            refuse(f"all objects of {args.data} have one colour, {i['id']}'s; use clips of more")
        strangers[i["id"]] = objects[other]
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    vae, _ = load_video_vae(entry, device, dtype)

    def films():
        for i in tqdm(clips, desc="planted", unit="clip"):
            draw = random.Random(f"{args.seed} {i['id']}").randrange
            kinds = plant(i["frames"], subject(i), strangers.get(i["id"]), args.past, draw)
            others = generated.get(i["id"], {}) if split_of(i["source"]) == "test" else {}
            others = {k: x for k, x in others.items() if k not in ("real", "vae")}
            decoded = dict(zip(kinds, through(vae, torch.stack(list(kinds.values()))), strict=True))
            truth = {k: i[k][args.past - 1 :].clone() for k in ("mask", "boxes") if k in i}
            for kind, x in ({"real": kinds["right"]} | decoded | others).items():
                about = {"id": f"{i['id']}/{kind}", "frames": x.clone(), "conditioning": kind}
                yield i | about | truth

    # so that features of other films under these ids are not taken for theirs
    content = hashlib.sha256(f"{fingerprint(entry['path'])} {args.seed} {inspect.getsource(plant)}".encode())
    for i in clips:
        for x in (i["frames"], *generated.get(i["id"], {}).values()):
            content.update(x.contiguous().numpy())
    write_items(
        out,
        films(),
        {
            "name": f"{data['name']}-planted",
            "content": content.hexdigest()[:16],
            "source_kind": "planted",
            "data": data["data"],
            "seed": args.seed,
            "data_path": str(args.data),
            "past": args.past,
            "horizon": args.horizon,
            "films_path": args.films,
            "vae": entry["name"],
            "vae_weights": entry["weights"],
            "conditioning": "right",
            "left_out": left_out,
        },
    )
    result = {
        "stage": "plant",
        "clips": len(clips),
        "left_out": left_out,
        "films": load_yaml(out / "index.yaml", "data")["items"],
        "out": str(out),
    }
    say(result)
    return result


# A verifier takes films uint8 [k, 1 + h, H, W, 3] of one clip, which begin with the last frame seen, and what
# happened [1 + h, H, W, 3]. It gives scores [k, horizons], higher if more likely
# right; the score for a horizon uses no later frame. Costly measures look only at the frames at which a
# horizon ends, and take the mean over these.


def upto(x, horizons):
    """The mean of x [k, h] over the frames up to every horizon: [k, horizons]."""
    return torch.stack([x[:, :h].mean(1) for h in horizons], 1).double()


def pixel_l1(films, truth, see):
    return -upto((films[:, 1:].float() - truth[1:].float()).abs().mean((2, 3, 4)), see.horizons) / 255


def pixel_mse(films, truth, see):
    return -upto((films[:, 1:].float() - truth[1:].float()).square().mean((2, 3, 4)), see.horizons) / 255**2


def at_horizons(compare, films, truth, horizons):
    """The mean of compare(frames, frames) -> [n] over the horizons so far: [k, horizons]."""
    pick = list(horizons)
    a, b = films[:, pick].flatten(0, 1), truth[pick].expand(len(films), -1, -1, -1, -1).flatten(0, 1)
    x = compare(a, b).view(len(films), len(pick)).double()
    return x.cumsum(1) / torch.arange(1, len(pick) + 1)


def pixel_ssim(films, truth, see):
    return at_horizons(ssim, films, truth, see.horizons)


def pixel_lpips(films, truth, see):
    return -at_horizons(see.lpips, films, truth, see.horizons)


def moving_regions(films):
    """Where films [k, 1 + h, H, W, 3] move after the last frame seen: bool [k, h, H, W], as in the published code of Physics-IQ (Motamed et al. 2025): grey, blurred, more than MOVED from a
    running mean that takes 0.3 of every new frame, then opened and closed. Its 5 x 5 windows are scaled by the frame's side / 512, and vanish on small frames."""
    from scipy.ndimage import binary_closing, binary_opening, gaussian_filter

    grey = 255 * grey_of(films[:, 1:])
    side = max(round(5 * grey.shape[2] / 512), 1)
    if side > 1:
        grey = torch.from_numpy(gaussian_filter(grey.numpy(), (0, 0, 1.1 * side / 5, 1.1 * side / 5)))
    mean, found = grey[:, 0], [torch.zeros_like(grey[:, 0], dtype=torch.bool)]
    for x in grey.unbind(1)[1:]:
        mean = 0.7 * mean + 0.3 * x
        found.append((x - mean).abs() > MOVED)
    found = torch.stack(found, 1)
    if side > 1:
        window = torch.ones(1, 1, side, side).numpy()
        found = torch.from_numpy(binary_closing(binary_opening(found.numpy(), window), window))
    return found


def overlap(a, b):
    """IoU of weights [..., H, W] in [0, 1]: the sum of the smaller over that of the larger; 1 where both are empty, as in Physics-IQ."""
    most = torch.maximum(a, b).sum((-2, -1))
    return torch.where(most > 0, torch.minimum(a, b).sum((-2, -1)) / most.clamp(min=1e-9), 1.0)


def pixel_spatial_iou(films, truth, see):
    """Where anything has moved at all so far."""
    a, b = moving_regions(films).float(), moving_regions(truth[None]).float()
    return torch.stack([overlap(a[:, :h].amax(1), b[:, :h].amax(1)) for h in see.horizons], 1).double()


def pixel_spatiotemporal_iou(films, truth, see):
    """Where something moves, frame by frame."""
    return upto(overlap(moving_regions(films).float(), moving_regions(truth[None]).float()), see.horizons)


def pixel_weighted_spatial_iou(films, truth, see):
    """Where, and in how many of the frames, something has moved so far."""
    a, b = moving_regions(films).float(), moving_regions(truth[None]).float()
    return torch.stack([overlap(a[:, :h].mean(1), b[:, :h].mean(1)) for h in see.horizons], 1).double()


def pixel_flow_agreement(films, truth, see):
    """Cosine of the flow fields (iterative Lucas-Kanade, scikit-image) of the last step before a horizon; 1 where both films stand still, 0 where one does."""
    import numpy as np
    from skimage.registration import optical_flow_ilk

    def fields(film):
        grey = grey_of(film).numpy()
        flow = [optical_flow_ilk(grey[h - 1], grey[h], radius=5, num_warp=4) for h in see.horizons]
        return torch.from_numpy(np.stack(flow)).flatten(1).double()

    b = fields(truth)
    a = torch.stack([fields(f) for f in films])
    still = [x.square().mean(-1).sqrt() < 0.02 for x in (a, b)]  # pixels a step, on the mean of the picture
    cosine = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-9)
    cosine = torch.where(still[0] & still[1], 1.0, torch.where(still[0] | still[1], 0.0, cosine))
    return cosine.cumsum(1) / torch.arange(1, cosine.shape[1] + 1)


def pixel_position_error(films, truth, see):
    """Distance, in sides of the frame, of the object (followed by its colour) from where it really went; a whole side where it is lost. Needs the clip's mask."""
    # [1 + k, 1 + h, 2]
    here = whereabouts(torch.cat([truth[None], films]), see.mask.expand(len(films) + 1, -1, -1))
    apart = (here[1:] - here[0]).norm(dim=-1) / films.shape[2]
    apart = torch.where(here[1:].isnan().any(-1), 1.0, apart)[:, 1:]
    gone = here[0, 1:].isnan().any(-1)  # it has left the picture: there is no position to be wrong about
    found = []
    for h in see.horizons:
        there = ~gone[:h]
        found.append(apart[:, :h][:, there].mean(1) if there.any() else torch.zeros(len(films)))
    return -torch.stack(found, 1).double()


PIXELS = {
    "l1": pixel_l1,
    "mse": pixel_mse,
    "ssim": pixel_ssim,
    "lpips": pixel_lpips,
    "spatial_iou": pixel_spatial_iou,
    "spatiotemporal_iou": pixel_spatiotemporal_iou,
    "weighted_spatial_iou": pixel_weighted_spatial_iou,
    "flow_agreement": pixel_flow_agreement,
    "position_error": pixel_position_error,
}


def latent_scores(tokens, truth, ends, horizons):
    """{cosine, l2: [k, horizons]} of tokens [k, t, h, w, D] of films and [t, h, w, D] of what happened, token by token, as in V-JEPA's measure of surprise (Garrido et al. 2025).

    ends: the last frame of each time step of the encoder. nan where by the horizon no step has ended that holds more than the last frame seen.
    """
    steps = {
        "cosine": torch.nn.functional.cosine_similarity(tokens, truth[None], dim=-1).mean((2, 3)),
        "l2": -(tokens - truth).norm(dim=-1).mean((2, 3)),
    }
    count = [sum(e <= h for e in ends) for h in horizons]
    nothing, out = torch.full((len(tokens),), math.nan), {}
    for name, x in steps.items():
        seen = [x[:, :c].mean(1) if c > (ends[0] == 0) else nothing for c in count]
        out[name] = torch.stack(seen, 1).double()
    return out


def aurocs(scores, right, weights):
    """AUROC [B] under weights [B, n] of the films: the share of pairs in which the right one scores higher, ties counting a half (Mann & Whitney 1947). nan where a resample lacks right or wrong
    films, or a score is missing."""
    if scores.isnan().any():
        return torch.full((len(weights),), math.nan, dtype=torch.float64)
    pairs = scores[right][:, None] - scores[~right]
    wins = (pairs > 0).double() + 0.5 * (pairs == 0)
    w, v = weights[:, right], weights[:, ~right]
    return ((w @ wins) * v).sum(1) / (w.sum(1) * v.sum(1))


def drawn(sources, seed):
    """Weights [1 + RESAMPLES, n] of items: first all 1, then whole sources resampled with replacement."""
    cluster = clusters(sources)
    times = resampled(int(cluster.max()) + 1, RESAMPLES, torch.Generator().manual_seed(seed))
    return torch.cat([torch.ones(1, len(sources), dtype=torch.float64), times[:, cluster]])


def drawn_films(w, rows):
    """(weights [1 + RESAMPLES, len(rows)] of these films by resampled sources, how many sources they are of)."""
    sources = [w.sources[k] for k in rows]
    return drawn(sources, w.seed), len(set(sources))


def interval(values, n):
    """(value, low, high) of values [1 + B], of which the first is without resampling, over n sources. Where all resamples agree, the bounds are by the rule of three: 3 / n of the sources
    (Hanley & Lippman-Hand 1983)."""
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


def record(own, floors, n, films, ceiling=1.0, **more):
    """A criterion's record from numbers that share their resamples: own [1 + B], floors {name: [1 + B]}. n: sources; films: how many."""
    best = max(floors, key=lambda k: floors[k][0])
    score, low, high = interval(own, n)
    gain, gain_low, gain_high = interval(own - floors[best], n)
    floor = floors[best][0].item()
    return {
        "score": score,
        "low": low,
        "high": None if high is None else min(high, 1.0),
        "better": "higher",
        "n": films,
        "sources": n,
        "floor": floor,
        "floor_name": best,
        "ceiling": ceiling,
        "skill": (score - floor) / (ceiling - floor) if ceiling > floor else None,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        **more,
        "floors": {k: x[0] for k, x in floors.items()},
    }


def risk_coverage(scores, right, weights):
    """(risk [B, n], coverage [B, n]) of accepting 1, 2, ... n films in the order of their scores (El-Yaniv & Wiener 2010). Films of equal score share their mean risk."""
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
    """The score that a prediction must exceed to be accepted. calibration: scores of n wrong ones; of n + 1 exchangeable wrong ones at most floor((n + 1) promised) exceed it (Vovk et al. 2005)."""
    k = math.floor((len(calibration) + 1) * promised)
    return calibration.sort(descending=True).values[k - 1].item() if k else math.inf


def conformal(scores, right, sources, promised, seed):
    """Split-conformal acceptance over RESPLITS random halvings of the sources.

    Each source gives one of its wrong films, drawn anew each time, either to calibrate or to count errors. So the films are exchangeable, and the expected error is resplit_exact for any
    verifier: this checks that the promise is kept. What the verifier is worth is in resplit_accepted_right. The interval is that of the mean over halvings.
    """
    cluster, g = clusters(sources), torch.Generator().manual_seed(seed)
    members = [((cluster == c) & ~right).nonzero().flatten() for c in range(int(cluster.max()) + 1)]
    members = [m for m in members if len(m)]
    errors, accepted = [], []
    for _ in range(RESPLITS):
        one = torch.stack([scores[m[torch.randint(len(m), (1,), generator=g)]].squeeze() for m in members])
        order = torch.randperm(len(one), generator=g)
        half, rest = order[: len(one) // 2], order[len(one) // 2 :]
        bound = conformal_bound(one[half], promised)
        errors.append((one[rest] > bound).double().mean())
        accepted.append((scores[right] > bound).double().mean())
    errors = torch.stack(errors)
    mean, spread = errors.mean().item(), errors.std().item() / RESPLITS**0.5
    n = len(members) // 2
    return {
        "resplit_error": mean,
        "resplit_error_low": mean - 1.96 * spread,
        "resplit_error_high": mean + 1.96 * spread,
        "resplit_error_worst": errors.max(),
        "resplit_accepted_right": torch.stack(accepted).mean(),
        "resplit_exact": math.floor((n + 1) * promised) / (n + 1),
        "resplit_calibrated_on": n,
    }


def rightness(films, truth, mask, word):
    """Are films [k, 1 + h, H, W, 3] right, by following the colour of the object that `mask` marks in the last frame seen? {direction, position, identity: bool [k]}.

    direction: it moves the way that `word` names; position: at the end (or where it really leaves the picture) it is off by at most OFF of its real way; identity: it is still found there.
    None where it cannot be followed in what happened, or does not move there. Another object of the same colour is taken for it.
    """
    here = whereabouts(torch.cat([truth[None], films]), mask.expand(len(films) + 1, -1, -1))
    seen = (~here[0].isnan().any(-1)).nonzero().flatten()
    until = int(seen[-1]) + 1
    if until < 2 or heading(here[:1, :until]) != [word]:
        return None
    end, found = here[:, until - 1], ~here[1:, until - 1].isnan().any(-1)
    near = (end[1:] - end[0]).norm(dim=-1) <= OFF * (end[0] - here[0, 0]).norm()  # of nan False
    return {
        "direction": torch.tensor([w == word for w in heading(here[1:, :until])]),
        "position": near,
        "identity": found,
    }


def agreement(said, happened):
    """IoU of the actions that a model names for a film, bool [k, actions], and for what happened [actions]; a half where it names none for one of them."""
    both, either = (said & happened).sum(1).double(), (said | happened).sum(1).double()
    return torch.where(said.any(1) & happened.any(), both / either.clamp(min=1), 0.5)


def read_rollouts(args):
    """({clip: {kind: item}}, index) of a folder that `plant` wrote; refused where a clip lacks one of its films."""
    items, index = load_items(args.rollouts)
    if index.get("source_kind") != "planted":
        refuse(f"{args.rollouts} holds no planted rollouts; write them with verify.py plant")
    films = {}
    for i in items:
        films.setdefault(i["id"].rpartition("/")[0], {})[i["conditioning"]] = i
    for clip, kinds in films.items():
        if missing := [k for k in ("real", "right", "blurred", "late") if k not in kinds]:
            refuse(f"{args.rollouts} lacks the film {clip}/{missing[0]}; run verify.py plant again")
    if lacking := {"val", "test"} - {split_of(kinds["real"]["source"]) for kinds in films.values()}:
        refuse(f"{args.rollouts} has no clips in its {lacking.pop()} split; plant more of them")
    return films, index


def watched(args, films):
    """What is scored, as a namespace: rows (clip, kind, item) of all films but the real ones, with their kinds, sources and splits; right: as planted; stack(clip): its films
    [k, 1 + h, H, W, 3]; truths: what really happened; masks [H, W] of the object in the last frame seen; the verifiers that read pixels."""
    frames = len(films[next(iter(films))]["real"]["frames"])
    w = types.SimpleNamespace(clips=list(films), films=films, frames=frames)
    w.stack = lambda clip: torch.stack([x["frames"] for kind, x in films[clip].items() if kind != "real"])
    w.horizons = sorted({*(h for h in HORIZONS if h < w.frames), w.frames - 1})
    w.rows = [(clip, kind, item) for clip in w.clips for kind, item in films[clip].items() if kind != "real"]
    w.kinds, w.sources = [kind for _, kind, _ in w.rows], [item["source"] for _, _, item in w.rows]
    w.right = torch.tensor([PLANTED.get(k, False) for k in w.kinds])
    planted, split = torch.tensor([k in PLANTED for k in w.kinds]), [split_of(s) for s in w.sources]
    generated = torch.tensor([k not in (*PLANTED, *BASELINES) for k in w.kinds])
    of_test = torch.tensor([s == "test" for s in split])
    w.val, w.test, w.made = (
        torch.tensor([s == "val" for s in split]) & planted,
        of_test & planted,
        of_test & generated,
    )
    w.truths = {clip: kinds["real"]["frames"] for clip, kinds in films.items()}
    marked = {clip: subject(kinds["real"]) for clip, kinds in films.items()}
    w.masks = {clip: mask[0] for clip, mask in marked.items() if mask is not None}
    w.seed = args.seed
    w.lpips, name = load_lpips(choose_device()[0])
    w.pixels = {name if n == "lpips" else n: verifier for n, verifier in PIXELS.items()}
    if len(w.masks) < len(films):
        del w.pixels["position_error"]
    return w


def where(flags):
    """The numbers at which flags [n] are set."""
    return flags.nonzero().flatten().tolist()


def pixel_scores(w, names, clips, truths):
    """{verifier: scores [films of these clips, horizons]}. truths: {clip: the frames to compare with}."""
    out = {name: [] for name in names}
    for clip in tqdm(clips, desc="verified", unit="clip"):
        see = types.SimpleNamespace(horizons=w.horizons, lpips=w.lpips, mask=w.masks.get(clip))
        films = w.stack(clip)
        for name in names:
            out[name].append(w.pixels[name](films, truths[clip], see))
    return {name: torch.cat(x) for name, x in out.items()}


def latents_of(folder, rollouts, w):
    """(index, read) of a features folder of these rollouts; read(point, ids) -> fp32 [n, t, h, w, D], from mapped files, since all films of a large model would not fit in memory."""
    folder = Path(folder)
    index, _ = load_features(folder)
    if Path(index["data_path"]).resolve() != Path(rollouts).resolve():
        refuse(f"{folder} is of {index['data_path']}, not of {rollouts}; run extract.py --data {rollouts}")
    ids = set(index["ids"])
    for kinds in w.films.values():
        for i in kinds.values():
            if i["id"] not in ids:
                refuse(f"{folder} has no features of {i['id']!r}; run extract.py again")

    @functools.cache
    def shards(point):
        return [load_pt(folder / point / f"{k:05d}.pt", FEATURES) for k in range(index["shards"])]

    @functools.cache
    def places(point):
        return {i: (s, k) for s, shard in enumerate(shards(point)) for k, i in enumerate(shard["ids"])}

    def read(point, ids):
        x = torch.stack([shards(point)[s]["features"][k] for s, k in (places(point)[i] for i in ids)]).float()
        if not x.isfinite().all():
            refuse(f"{folder}/{point} holds values that are not finite; extract again in bf16 or fp32")
        return x

    return index, read


def every_score(args, w):
    """({verifier: scores [films, horizons]}, {verifier: its family: pixel, tracked, latent or words}, {model, weights} of the model that was asked, or else of the first encoder).

    position_error alone is told by the clip's mask which object to follow. So it is a family of its own (tracked), which is shown but is no candidate for the gate.
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
                refuse(f"{args.words} has no answer about {name!r}; run explain.py describe again")
    scores = pixel_scores(w, w.pixels, w.clips, w.truths)
    family = {name: "tracked" if name == "position_error" else "pixel" for name in scores}
    for index, read in encoders:
        for point in (p for p in index["points"] if p != "pixels"):
            found = []
            for clip in w.clips:
                others = [i["id"] for kind, i in w.films[clip].items() if kind != "real"]
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
        # of whole films alone, and of the test clips'
        said = torch.full((len(w.rows), len(w.horizons)), math.nan, dtype=torch.float64)
        for k, (clip, _, item) in enumerate(w.rows):
            if item["id"] in row:
                own, real = (words["said"][row[i]] for i in (item["id"], f"{clip}/real"))
                said[k, -1] = agreement(own[None], real)[0]
        scores["words"], family["words"] = said, "words"
    return scores, family, about


def tabulated(w, scores, family):
    """Of planted films: ({verifier: row of the table}, {family: its best verifier on val}, {verifier: AUROC on test [1 + B]}, weights [1 + B, test films])."""
    test, val = where(w.test), where(w.val)
    draws, n = drawn_films(w, test)
    place = {k: j for j, k in enumerate(test)}
    alike = torch.tensor([k == "right" for k in w.kinds])
    table, areas = {}, {}
    for name, x in scores.items():
        x = x[:, -1]
        areas[name] = aurocs(x[test], w.right[test], draws)
        row = {"family": family[name], **named_interval("auroc", areas[name], n)}
        if x[test].isnan().any():
            reason = "no time step of its own ends with the film's frames, or some were not asked about"
            table[name] = row | {"auroc_val": None, "false_alarms": None, "kinds": {}, "reason": reason}
            continue
        chosen = val if not x[val].isnan().any() else []
        row["auroc_val"] = None
        if chosen:
            once = torch.ones(1, len(val), dtype=torch.float64)
            row["auroc_val"] = aurocs(x[val], w.right[val], once).item()
        # flagged is what lies below it
        limit = x[where(alike & (w.val if chosen else w.test))].quantile(ALARMS)
        row |= {"false_alarms": (x[where(alike & w.test)] < limit).double().mean(), "kinds": {}}
        for kind in dict.fromkeys(k for k in w.kinds if k in PLANTED and k != "right"):
            these = [k for k in test if w.kinds[k] in (kind, "right")]
            values = aurocs(x[these], alike[these], draws[:, [place[k] for k in these]])
            flagged = (x[[k for k in these if w.kinds[k] == kind]] < limit).double().mean()
            row["kinds"][kind] = named_interval("auroc", values, n) | {"flagged": flagged}
        table[name] = row
    # of an encoder without a step so short nothing is known
    able = {k: row for k, row in table.items() if row["auroc"] is not None}
    best = {}
    for f in dict.fromkeys(row["family"] for row in able.values()):
        members = [k for k, row in able.items() if row["family"] == f]
        best[f] = max(members, key=lambda k: able[k]["auroc_val"] or 0)
    return table, best, areas, draws


def without_knowing(w, name):
    """Scores [test films] of a pixel verifier that is given the outcome of another clip: a floor, what it can tell without knowing the outcome."""
    source = {c: w.films[c]["real"]["source"] for c in w.clips}
    clips, next_one = [c for c in w.clips if split_of(source[c]) == "test"], {}
    for k, c in enumerate(clips):
        other = next((d for d in (*clips[k + 1 :], *clips[:k]) if source[d] != source[c]), c)
        next_one[c] = torch.cat([w.truths[c][:1], w.truths[other][1:]])
    scores = pixel_scores(w, [name], clips, next_one)[name][:, -1]
    return scores[[w.kinds[k] in PLANTED for k, row in enumerate(w.rows) if row[0] in next_one]]


def begun(w):
    """Which planted wrong films have gone wrong by each horizon, i.e. differ from the right one by more than the late one does: bool [films, horizons]."""
    found = torch.zeros(len(w.rows), len(w.horizons), dtype=torch.bool)
    for k in where(w.test & ~w.right):
        clip, _, item = w.rows[k]
        right, late = (w.films[clip][kind]["frames"][1:].float() for kind in ("right", "late"))
        own, least = ((x - right).abs().mean((1, 2, 3)) for x in (item["frames"][1:].float(), late))
        found[k] = torch.tensor([bool(own[:h].max() > least[:h].max()) for h in w.horizons])
    return found


def further(w, scores, best):
    """How far ahead verification works: {horizon: {begun: share of wrong test films that have gone wrong by then, verifier: its AUROC for these against right ones, seen up to the horizon}}."""
    wrong, found = begun(w), {}
    for j, h in enumerate(w.horizons):
        rows = where(w.test & (w.right | wrong[:, j]))
        draws, n = drawn_films(w, rows)
        areas = {name: aurocs(scores[name][rows, j], w.right[rows], draws) for name in best.values()}
        found[h] = {"begun": wrong[where(w.test & ~w.right), j].double().mean()} | {
            name: named_interval("auroc", x, n) for name, x in areas.items() if not x[0].isnan()
        }
    return found


def rightness_in(w, clip, films):
    """`rightness` of a clip's films, a list, and `all` of its aspects; None where it is not known."""
    if clip not in w.masks:
        return None
    word = w.films[clip]["real"].get("direction")
    seen = rightness(torch.stack(films), w.truths[clip], w.masks[clip], word)
    return seen and seen | {"all": seen["direction"] & seen["position"] & seen["identity"]}


def rightness_of_planted(w):
    """{kind: share of its planted test films that `rightness` calls right}: checks that measure, which judges the video model's films, where the answer is known."""
    found = {}
    for clip in (c for c in w.masks if split_of(w.films[c]["real"]["source"]) == "test"):
        kinds = [k for k in PLANTED if k in w.films[clip]]
        seen = rightness_in(w, clip, [w.films[clip][k]["frames"] for k in kinds])
        for kind, right in zip(kinds, seen["all"], strict=True) if seen else ():
            found.setdefault(kind, []).append(right.double())
    return {kind: torch.stack(x).mean() for kind, x in found.items()}


def of_the_video_model(w, scores):
    """The video model's films of test clips: which are right (`rightness`), aspect by aspect, and which verifiers can tell. Without position_error, which measures the same as `rightness`."""
    found, kept = {a: [] for a in ("direction", "position", "identity", "all")}, []
    for clip in dict.fromkeys(w.rows[k][0] for k in where(w.made)):
        these = [k for k in where(w.made) if w.rows[k][0] == clip]
        seen = rightness_in(w, clip, [w.rows[k][2]["frames"] for k in these])
        if not seen:
            continue
        kept += these
        for aspect, x in seen.items():
            found[aspect].append(x)
    if not kept:
        return None
    truth = {a: torch.cat(x) for a, x in found.items()}
    draws, n = drawn_films(w, kept)
    verifiers = {}
    for name in (n for n in scores if n != "position_error"):
        areas = {a: aurocs(scores[name][kept, -1], x, draws) for a, x in truth.items()}
        verifiers[name] = {a: named_interval("auroc", area, n) for a, area in areas.items()}
    kinds = [w.kinds[k] for k in kept]
    by_kind = {}
    for kind in dict.fromkeys(kinds):
        by_kind[kind] = truth["all"][[k == kind for k in kinds]].double().mean()
    return {
        "films": len(kept),
        "right": {a: x.double().mean() for a, x in truth.items()},
        "right_by_kind": by_kind,
        "verifiers": verifiers,
        "rows": kept,
        "truth": truth["all"],
    }


def within(scores, truth, draws):
    """(AUROC [B] over pairs within a clip, share [B] of clips whose highest score belongs to a right film). scores, truth: [clips, c]; draws [B, clips]."""
    higher = (scores[:, :, None] > scores[:, None]).double() + 0.5 * (scores[:, :, None] == scores[:, None])
    pairs = (truth[:, :, None] & ~truth[:, None]).double()
    top = truth.gather(1, scores.argmax(1, keepdim=True))[:, 0].double()
    return draws @ (higher * pairs).sum((1, 2)) / (draws @ pairs.sum((1, 2))), draws @ top / draws.sum(1)


def futures_of(args, w):
    """(what video.py futures kept, its films [candidates, clips, h, H, W, 3]); refused unless they begin where the rollouts begin."""
    path = Path(args.futures).with_suffix(".pt")
    kept = load_pt(path, RESULT)
    parts = path.with_name(path.stem + "-parts")
    films = torch.stack([load_pt(parts / f"{part}.pt", RESULT)["films"] for part in kept["candidates"]])
    there = next(iter(w.truths.values())).shape[1:]
    if films.shape[3:] != there or films.shape[2] >= w.frames:
        made, needed = list(films.shape[2:]), [w.frames - 1, *there]
        refuse(f"{args.futures} holds films of {made}, --rollouts of {needed}; make both alike")
    for clip, last in zip(kept["ids"], kept.get("last", [""] * len(kept["ids"])), strict=True):
        if clip in w.truths and digest(w.truths[clip][0].numpy().tobytes()) != last:
            refuse(f"{path} goes on from another frame of {clip}; make both with one --past")
    return kept, films


def candidates(w, kept, films, name):
    """Of several futures of one clip, can the better half be told without the outcome? Beliefs of video.py beside the pixel verifier `name`, which knows the outcome.

    Better is where the object ends nearer to its real place: in so few frames it moves too little to ask for right and wrong. Reported are AUROCs, how much worse they are than the verifier's,
    and how often the future that is picked is of the better half.
    """
    length = films.shape[2]
    truth, rows, scores, sources = [], [], [], []
    for k, clip in enumerate(kept["ids"]):
        if clip not in w.masks:
            continue
        seen = w.truths[clip][: length + 1]
        shown = torch.cat([seen[:1].expand(len(films), 1, -1, -1, -1), films[:, k]], 1)
        here = whereabouts(torch.cat([seen[None], shown]), w.masks[clip].expand(len(shown) + 1, -1, -1))
        here = here[:, -1]
        if not here[0].isnan().any():
            apart = (here[1:] - here[0]).norm(dim=-1).nan_to_num(math.inf)
            truth.append(apart <= apart.median())
            see = types.SimpleNamespace(horizons=[length], lpips=w.lpips, mask=w.masks[clip])
            scores.append(w.pixels[name](shown, seen, see)[:, 0])
            rows.append(k)
            sources.append(w.films[clip]["real"]["source"])
    if not rows:
        return None
    truth, draws, n = torch.stack(truth), drawn(sources, w.seed), len(set(sources))
    told = {"with_outcome": torch.stack(scores)} | {
        b: x[:, rows].T.double() for b, x in kept["beliefs"].items()
    }
    found = {b: within(x, truth, draws) for b, x in told.items()}
    rates = {"random": draws @ truth.double().mean(1) / draws.sum(1)} | {b: x for b, (_, x) in found.items()}
    picked, without = {}, {}
    for b, x in rates.items():
        share = named_interval("share", x, n)
        picked[b] = {"share": share["share"], "low": share["share_low"], "high": share["share_high"]}
    outcome = found.pop("with_outcome")[0]
    for b, (area, _) in found.items():
        worse = named_interval("worse_by", outcome - area, n, least=-1.0)
        without[b] = named_interval("auroc", area, n) | worse
    return {
        "clips": len(rows),
        "verifier": name,
        "with_outcome": named_interval("auroc", outcome, n),
        "without_outcome": without,
        "picked_better": picked,
    }


def repeated(w):
    """A ceiling (Physics-IQ's physical variance): mean pixel scores of one take of a scene as the prediction of another take, where clips name a scene in `repeat`."""
    takes = {}
    for clip in w.clips:
        if scene := w.films[clip]["real"].get("repeat"):
            takes.setdefault(scene, []).append(clip)
    pairs = [(a, b) for group in takes.values() for a, b in zip(group, group[1:], strict=False)]
    if not pairs:
        return None
    found = {}
    for a, b in pairs:
        see = types.SimpleNamespace(horizons=[w.frames - 1], lpips=w.lpips, mask=None)
        for name in w.pixels:
            if name != "position_error":
                found.setdefault(name, []).append(w.pixels[name](w.truths[a][None], w.truths[b], see)[0, 0])
    return {name: torch.stack(x).mean() for name, x in found.items()}


def acting(w, scores, family, best, areas, draws, promised):
    """What the pixel verifier that val chose is good for: (criteria, conformal acceptance, risk-coverage curve, findings of of_the_video_model)."""
    test, pixel = where(w.test), best["pixel"]
    n, right, x = len({w.sources[k] for k in test}), w.right[test], scores[pixel][test, -1]
    floors = {
        "chance": torch.full((len(draws),), 0.5, dtype=torch.float64),
        "other_outcome": aurocs(without_knowing(w, pixel), right, draws),
    }
    more = {"verifier": pixel, "options_searched": sum(f == "pixel" for f in family.values())}
    criteria = {"pixel_auroc": record(areas[pixel], floors, n, len(test), **more)}
    for f in ("tracked", "latent", "words"):
        if f in best:
            rival = {best[f]: areas[best[f]]}
            criteria[f"pixel_over_{f}"] = record(areas[pixel], rival, n, len(test), **more)
    base, least = (draws[:, ~right].sum(1) / draws.sum(1)), mean_risk(right.double(), right, draws)
    area = mean_risk(x, right, draws)
    criteria["selective_risk"] = record(
        base - area, {"random": 0 * base}, n, len(test), ceiling=(base - least)[0].item(), **more
    )
    bound = conformal_bound(scores[pixel][where(w.val & ~w.right), -1], promised)
    accepted = x > bound
    wrong, sources = where(~right), [w.sources[k] for k in test]
    error = bootstrap(accepted[wrong].double(), [sources[k] for k in wrong], seed=w.seed)
    error = error[0], max(error[1], 0.0), min(error[2], 1.0)
    by_kind = {}
    for kind in (kind for kind in PLANTED if kind in w.kinds):
        by_kind[kind] = accepted[[w.kinds[k] == kind for k in test]].double().mean()
    halves = {
        "conformal_promised": promised,
        **with_bounds("conformal_error", error),
        "conformal_accepted_right": accepted[right].double().mean(),
        **conformal(x, right, sources, promised, w.seed),
        "accepted_by_kind": by_kind,
    }
    about = {"better": "lower", "n": len(wrong), "sources": n}
    floor = {"floor": 1.0, "floor_name": "accept_all", "ceiling": 0.0}
    gain = {"gain": 1 - error[0], "gain_low": 1 - error[2], "gain_high": 1 - error[1]}
    own = dict(zip(("score", "low", "high"), error, strict=True))
    criteria["conformal_error"] = own | about | floor | gain | more
    made = of_the_video_model(w, scores)
    if made and made["truth"].any() and not made["truth"].all():
        rows, truth, (own, m) = made["rows"], made["truth"], drawn_films(w, made["rows"])
        chance = torch.full((len(own),), 0.5, dtype=torch.float64)
        area_made = aurocs(scores[pixel][rows, -1], truth, own)
        criteria["made_auroc"] = record(area_made, {"chance": chance}, m, len(rows), **more)
        if "latent" in best:
            rival = {best["latent"]: aurocs(scores[best["latent"]][rows, -1], truth, own)}
            criteria["made_over_latent"] = record(area_made, rival, m, len(rows), **more)
        passed = scores[pixel][rows, -1] > bound
        halves |= {
            "conformal_error_made": passed[~truth].double().mean(),
            "conformal_accepted_made": passed[truth].double().mean(),
        }
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
    return criteria, risks | halves, curve, made


def run_score(args, started):
    """Write verify.yaml: which verifiers tell right predictions from wrong ones, of which kinds, how early, and what accepting by them costs."""
    films, index = read_rollouts(args)
    out = Path(args.out or Path(args.rollouts) / "verify.yaml")
    check_writable(out)
    w = watched(args, films)
    futures = futures_of(args, w) if args.futures else None
    scores, family, about = every_score(args, w)
    table, best, areas, draws = tabulated(w, scores, family)
    criteria, halves, curve, made = acting(w, scores, family, best, areas, draws, args.promised)
    right = [k for k in where(w.test) if w.kinds[k] == "right"]
    ceilings = {"vae": {name: scores[name][right, -1].mean() for name in w.pixels}, "repeat": repeated(w)}
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
    no_lpips = "the published backbone is not on this machine: lpips_random_backbone has an untrained one"
    no_repeat = "no clip names a scene of which there is another take (`repeat`)"
    still = [~moving_regions(t[None]).flatten(2).any(-1) for t in w.truths.values()]
    result |= {
        **halves,
        "films": len(w.rows),
        "planted_test": int(w.test.sum()),
        "clips": len(w.clips),
        "sources_test": len({w.sources[k] for k in where(w.test)}),
        "still_frames": sum(int(x.sum()) for x in still),
        "lpips_reason": None if "lpips" in w.pixels else no_lpips,
        "repeat_reason": None if ceilings["repeat"] else no_repeat,
        "criteria": criteria,
        "verifiers": table,
        "horizons": further(w, scores, best),
        "risk_coverage": curve,
        "made": made and {k: v for k, v in made.items() if k not in ("rows", "truth")},
        "futures": candidates(w, *futures, best["pixel"]) if futures else None,
        "rightness_of_planted": rightness_of_planted(w),
        "ceilings": ceilings,
        "notes": NOTES,
        "run": run_info(args, started, script="verify.py"),
    }
    result = plain(result)
    picture(w, out.with_suffix(".png"))
    save_yaml(out, result)
    show_verifiers(result)
    return result


def show_verifiers(result):
    """The verifiers as a table, best first, then `key value`."""
    kinds = list(next(iter(result["verifiers"].values()))["kinds"])
    print(f"\n{'':60s} share flagged, where {ALARMS:.0%} of val's right ones are")
    names = "".join(f"{k:>10s}" for k in ("right", *kinds))
    print(f"{'verifier':34s} {'':7s} {'AUROC':>6s}  {'95% interval':16s}{names}")
    able = {k: row for k, row in result["verifiers"].items() if row["auroc"] is not None}
    for name in sorted(able, key=lambda k: -able[k]["auroc"]):
        row = able[name]
        flagged = [row["false_alarms"], *(row["kinds"][k]["flagged"] for k in kinds)]
        interval = f"{row['auroc']:6.3f}  [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        print(f"{name:34s} {row['family']:7s} {interval}  {''.join(f'{x:10.2f}' for x in flagged)}")
    print()
    say(result)


def picture(w, path):
    """verify.png: the planted films of one clip."""
    plt = pyplot()
    clip = next(c for c in w.clips if split_of(w.films[c]["real"]["source"]) == "test")
    shown = {k: i["frames"] for k, i in w.films[clip].items() if k in ("real", *PLANTED)}
    at = [0, *w.horizons]
    size = (1.1 * len(at) + 2, 0.9 * len(shown) + 1)
    figure, axes = plt.subplots(len(shown), len(at), figsize=size, layout="constrained")
    for row, (kind, film) in zip(axes, shown.items(), strict=True):
        for axis, t in zip(row, at, strict=True):
            axis.imshow(film[t].numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(kind, rotation=0, ha="right", va="center", fontsize=11)
    steps = ", ".join(f"+{h}" for h in w.horizons)
    words = "real is what happened, all others have been through the autoencoder"
    figure.suptitle(f"What is planted: the last frame seen, then {steps};\n{words}", fontsize=10)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "plant": "write predictions whose rightness is known, as a data folder",
            "score": "which verifiers tell right predictions from wrong ones?",
        },
    )
    add = jobs["plant"].add_argument
    add("--data", required=True, help="the clips they are made of")
    add("--vae", default="tiny-vae", help="the autoencoder that they go through")
    add("--past", type=int, default=8, help="frames that are seen")
    add("--horizon", type=int, default=16, help="frames after these")
    add("--films", help="clips that video.py continue generated, to lie beside them")
    add("--out", required=True, help="a data folder")
    add = jobs["score"].add_argument
    add("--rollouts", metavar="DATA", required=True, help="what `plant` wrote")
    add("--latents", nargs="+", metavar="FOLDER", help="features of them, of one or more encoders")
    add("--words", help="what explain.py describe found a model to say of them (...-said.pt)")
    add("--futures", help="video-futures.yaml, whose candidates are judged")
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
