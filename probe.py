"""Stage 2. Which information about space and motion can a simple decoder read from each layer?

    python probe.py --features results/tiny/shapes/features --random results/tiny/shapes/features-random
    python probe.py --features results/tiny/moving/features --frozen results/tiny/moving-middle/features
    python probe.py --compare results/tiny/shapes@64 results/tiny/shapes@96 --out results/compare.yaml

Reads features (extract.py) and ground truth (data.py). Writes probe.yaml, probe.png, and probe.pt with
predictions and scores of test items at the chosen layers; --compare pairs such results item by item.
Which run depends on the ground truth:
    bbox_iou        closed-form ridge from the flattened token grid to the largest box
    ladder          the same box by probes of two sizes: ridge, and an MLP of one hidden layer, five seeds
    spatial_iou     ridge from every token to the foreground mask of its cell (or boxes, without masks)
    edge_probe_f1   the same ridge to the Canny edges of the cell, thinned; F1 of edges within 2 px
    map50           DETR-style set prediction, five seeds, two codes of the box size; mAP@0.5 by pycocotools
    recon_*         ridge from every token to its pixels: LPIPS, SSIM and edge F1 of that image
    decoder_*       the same by a trained decoder; its upper bound is that decoder on --oracle's latents
    direction_accuracy   (clips) ridge from spatially pooled features to one of eight directions of motion
    direction_flip       is the answer for a mirrored or reversed clip the flip of the original's answer?
    speed_r2, camera_r2  the same ridge to the speed and the camera's (dx, dy) in pixels a frame: held-out R2
    frozen_<frame>       the direction probe on clips that repeat one frame (--frozen): it must be at chance

Layers without a token grid (`grid: false`) are probed for motion only. The layer is chosen on val and scored
on test. Baselines on the same items: constants, shuffled labels, another item's features, raw pixels and
their principal components, the untrained network (--random). `leak`: a control that scores too well.
Modules, to be copied with it: common.py, media.py, metrics.py, stats.py.
"""

import functools
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    POOLED,
    RESULT,
    check_choice,
    check_writable,
    fail,
    join,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    parser,
    plain,
    print_summary,
    pyplot,
    run_info,
    save_pt,
    save_yaml,
    split_indices,
    with_grid,
)
from media import frames_of
from metrics import (
    MASK,
    ap_criterion,
    ap_runs,
    box_iou,
    box_truth,
    edge_f1,
    edges,
    foreground,
    from_cells,
    giou_loss,
    load_lpips,
    mask_iou,
    mask_scores,
    match_edges,
    ssim,
    to_cells,
    train_set_probe,
)
from stats import (
    bootstrap,
    control_leaks,
    criterion,
    holm,
    paired_test,
    ridge,
    solve_ridge,
    spectrum,
    token_ridge,
)

# pixels a side of decoded images; tokens a side, at most, of trained probes
IMAGE, SET_GRID = 64, 6
# principal components of the flattened grid and of a token: trained probes have one size for all models
COMPONENTS, TOKEN = 256, 128
SEEDS, STEPS, HIDDEN = 5, 240, 64  # of the MLP
# of the reconstruction decoder; `grid`: tokens a side, at most
DECODER = {"seeds": 3, "steps": 240, "hidden": 128, "grid": 8}
# y points down
DIRECTIONS = {
    "down": (0, 1),
    "down left": (-1, 1),
    "down right": (1, 1),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "up left": (-1, -1),
    "up right": (1, -1),
}
FLIPS = {"mirrored": (-1, 1), "reversed": (-1, -1)}  # factors of the velocity


# ---------------------------------------------------------------- probes: features in, scores per item out


def box_targets(largest, split, seed=0):
    """{true, shuffled0 ... shuffled4}: the boxes [n,4], and copies with those of training items permuted."""
    g, targets = torch.Generator().manual_seed(seed), {"true": largest}
    for s in range(SEEDS):
        wrong = largest.clone()
        wrong[split["train"]] = largest[split["train"]][torch.randperm(len(split["train"]), generator=g)]
        targets[f"shuffled{s}"] = wrong
    return targets


def box_scores(found, largest):
    """(IoU with the largest box [n], IoU of shuffled labels [SEEDS, n], boxes [n,4]) of {task: [n,4]}."""
    iou = {k: box_iou(b.clamp(0, 1), largest) for k, b in found.items()}
    return iou["true"], torch.stack([iou[f"shuffled{s}"] for s in range(SEEDS)]), found["true"].clamp(0, 1)


def probe_boxes(x, largest, split, seed=0):
    """`box_scores` of the ridge from flattened features x [n, ...]."""
    return box_scores(ridge(x.flatten(1), box_targets(largest, split, seed), split["train"]), largest)


def gram(x, train):
    """Inner products of all items [n, n]. Features are centred first: a large mean loses fp32 precision."""
    x = x.flatten(1)
    x = x - x[train].mean(0)
    return x @ x.T


def rotated(x):
    """x [..., r] under a random rotation. AdamW trains badly on inputs of very different scales, as principal
    components are; whitening them would amplify noise."""
    g = torch.Generator().manual_seed(0)
    return x @ torch.linalg.qr(torch.randn(x.shape[-1], x.shape[-1], generator=g, dtype=torch.float64))[0].to(
        x.dtype
    )


def components(k, values, vectors, most=COMPONENTS):
    """First principal components of L layers [L, n, most] from `spectrum`, `rotated`, of mean square one."""
    values, vectors = (z[..., -most:].flip(-1) for z in (values, vectors))
    x = rotated(k @ (vectors * (values + 1e-12 * values[..., :1] + 1e-300).rsqrt()[:, None]))
    return (x / x.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-150)).float()


def token_components(x, train, most=TOKEN, side=SET_GRID):
    """(components [n, K, most], grid) of tokens [n,h,w,D], pooled to `side` a side and standardised."""
    h, w = (min(s, side) for s in x.shape[1:3])
    x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (h, w)).permute(0, 2, 3, 1).flatten(1, 2)
    x = (x - x[train].mean((0, 1))) / x[train].flatten(0, 1).std(0).clamp(min=1e-6)
    if x.shape[-1] > most:
        rows = x[train].flatten(0, 1)
        x = rotated(x @ torch.linalg.eigh((rows.T @ rows).double())[1][:, -most:].float())
    return F.pad(x, (0, most - x.shape[-1])), (h, w)


def box_loss(boxes, truth):
    """5 L1 + 2 GIoU, as in DETR, of rows [..., 4] -> [...]."""
    return 5 * (boxes - truth).abs().sum(-1) + 2 * giou_loss(boxes, truth)


def fit(weights, loss_of, split, steps, lr, batch, generator):
    """Minimise loss_of(items) [*runs] over weights {name: [*runs, ...]} in place by AdamW, one cycle, with
    early stopping per run. Runs share no weight, so each gets its own gradient."""
    for w in weights.values():
        w.requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    best, saved = torch.tensor(math.inf), {k: w.detach().clone() for k, w in weights.items()}
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss_of(
            split["train"][torch.randperm(len(split["train"]), generator=generator)[:batch]]
        ).sum().backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 20 == 0 or step + 1 == steps:
            with torch.no_grad():
                loss = loss_of(split["val"])
                better = loss < best
                best = torch.where(better, loss, best)
                for k, w in weights.items():
                    saved[k][better] = w[better]
    weights |= saved


def train_mlp(x, largest, split, seeds=SEEDS, steps=STEPS, batch=100, seed=0, only=None):
    """(boxes [L, seeds, n, 4], parameters of one) of MLPs of one hidden layer on components x [L, n, r].
    All are trained at once with early stopping. only: train this seed alone."""
    g, r = torch.Generator().manual_seed(seed), x.shape[-1]
    start = {
        "in": torch.randn(seeds, r, HIDDEN, generator=g) * r**-0.5,
        "in_bias": torch.zeros(seeds, 1, HIDDEN),
        "out": torch.randn(seeds, HIDDEN, 4, generator=g) * HIDDEN**-0.5,
        "out_bias": torch.zeros(seeds, 1, 4),
    }
    # [L, seeds, ...]: the same start for every layer
    weights = {
        k: (w if only is None else w[only : only + 1]).repeat(len(x), 1, 1, 1) for k, w in start.items()
    }

    def boxes(items):
        hidden = (torch.einsum("lnr,lgrh->lgnh", x[:, items], weights["in"]) + weights["in_bias"]).relu()
        code = hidden @ weights["out"] + weights["out_bias"]
        centre, size = code[..., :2].sigmoid(), (code[..., 2:] - 1).sigmoid()
        return torch.cat([centre - size / 2, centre + size / 2], -1)

    fit(weights, lambda items: box_loss(boxes(items), largest[items]).mean(-1), split, steps, 1e-2, batch, g)
    return boxes(slice(None)).clamp(0, 1), sum(w[0].numel() for w in start.values())


def probe_cells(x, maps, split):
    """Token-wise ridge to each token's cell. x [n,h,w,D]; maps {name: [n,c,S,S]} -> {name: predicted}."""
    h, w = x.shape[1:3]
    targets = {}
    for name, m in maps.items():
        s = -(-m.shape[-1] // h)
        targets[name] = to_cells(
            F.interpolate(m, (h * s, w * s), mode="bilinear", align_corners=False, antialias=True), h, w
        )
    found = token_ridge(x.flatten(1, 2), targets, split["train"], split["val"])
    return {name: from_cells(found[name], h, w, *m.shape[1:3]) for name, m in maps.items()}


def to_images(maps):
    """[n,3,H,W] in 0..1 -> uint8 [n,H,W,3]."""
    return maps.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)


def edge_scores(soft, truth, split, parts):
    """F1 [n] of soft maps [n,S,S], thresholded, thinned and matched with bool `truth` (Martin et al. 2004).
    The threshold is the best on 32 items of val. Items outside `parts` of the split are nan."""
    from skimage.morphology import skeletonize

    def f1(items, level):
        thin = torch.from_numpy(np.stack([skeletonize(x) for x in (soft[items] > level).numpy()]))
        return match_edges(thin, truth[items])

    few = split["val"][:32]
    level = max((0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5), key=lambda level: f1(few, level).mean())
    out = torch.full((len(soft),), math.nan, dtype=torch.float64)
    for part in parts:
        out[split[part]] = f1(split[part], level)
    return out


def train_decoder(x, frames, split, seed=0, batch=16):
    """(images uint8 [J, seeds, n, IMAGE, IMAGE, 3], parameters of one) of decoders of tokens x [J, n, K, r].
    Each decodes token by token with one hidden layer, squared error and early stopping; grids are square."""
    jobs, n, tokens, r = x.shape
    side = math.isqrt(tokens)
    seeds = DECODER["seeds"]
    hidden = DECODER["hidden"]
    g = torch.Generator().manual_seed(seed)
    fine = side * -(-IMAGE // side)
    # [n, K, c]
    cells = to_cells(
        F.interpolate(
            frames.permute(0, 3, 1, 2).float() / 255,
            (fine, fine),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        ),
        side,
        side,
    )
    mean = cells[split["train"]].mean((0, 1))
    # the start is close to the mean image
    sizes = {"in": (r, hidden, r**-0.5), "out": (hidden, cells.shape[-1], 0.05 * hidden**-0.5)}
    weights = {
        name: (torch.randn(seeds, i, o, generator=g) * scale).repeat(jobs, 1, 1, 1)
        for name, (i, o, scale) in sizes.items()
    } | {"bias": torch.zeros(jobs, seeds, 1, hidden)}

    def decode(items):
        rows = x[:, items].flatten(1, 2)[:, None]  # [J, 1, n * K, r]
        return ((rows @ weights["in"] + weights["bias"]).relu() @ weights["out"]).unflatten(
            2, (-1, tokens)
        ) + mean

    fit(
        weights,
        lambda items: (decode(items) - cells[items]).square().mean((2, 3, 4)),
        split,
        DECODER["steps"],
        4e-3,
        batch,
        g,
    )
    out = from_cells(decode(torch.arange(n)).flatten(0, 2), side, side, 3, IMAGE)
    return to_images(out).unflatten(0, (jobs, seeds, n)), sum(w[0, 0].numel() for w in weights.values())


def probe_sets(jobs, grid, truth, classes, split, seed, sources):
    """Set prediction of {name: (tokens [n, K, r], labels, softplus)}: {name: {val, test, last: {ap, draws}}}.
    mAP@0.5 [SEEDS] against `truth`; the `sources` of test are resampled; last: without early stopping."""
    x, labels, softplus = zip(*jobs.values(), strict=True)
    x = torch.stack(x)
    predict = train_set_probe(
        x, grid, list(labels), classes, split["train"], split["val"], SEEDS, seed=seed, softplus=softplus
    )
    runs = {
        "val": ap_runs(predict, x, truth, split["val"], 0),
        "test": ap_runs(predict, x, truth, split["test"], sources=sources),
        "last": ap_runs(functools.partial(predict, last=True), x, truth, split["test"], 0),
    }
    return {
        name: {
            which: {key: value[k * SEEDS : (k + 1) * SEEDS] for key, value in run.items()}
            for which, run in runs.items()
        }
        for k, name in enumerate(jobs)
    }


def poolings(pooled):
    """Features of a clip [n, ...] from space-pooled ones: mean over time, all time steps, change, maximum."""
    x = pooled["mean"]
    return {
        "mean": x.mean(1),
        "time": x.flatten(1),
        "change": torch.cat([x[:, -1] - x[:, 0], x.mean(1)], -1),
        "max": pooled["max"].flatten(1),
    }


def read_motion(pooled, points, targets, train, also=()):
    """Ridge from every pooling of every point: {(point, pooling): {task: predictions [1 + also, n, c]}}.

    pooled {point: {mean, max: [n, t, D]}} trains the map; it is also applied to each of `also`. targets
    {task: [n, c]}."""
    found = {}
    for point in points:
        views = [poolings(p[point]) for p in (pooled, *also)]
        for view in views[0]:
            z = ridge(torch.cat([v[view] for v in views]), targets, train)
            found[point, view] = {task: x.unflatten(0, (len(views), -1)) for task, x in z.items()}
    return found


def with_shuffled(targets, train, seed):
    """targets {task: [n, c]} and SEEDS copies `<task>/<s>` with training rows permuted alike."""
    g, out = torch.Generator().manual_seed(seed), dict(targets)
    for s in range(SEEDS):
        order = train[torch.randperm(len(train), generator=g)]
        out |= {f"{task}/{s}": y.index_copy(0, train, y[order]) for task, y in targets.items()}
    return out


def unit_directions():
    return F.normalize(torch.tensor(list(DIRECTIONS.values())).float())  # [8, 2]


def nearest_direction(velocity):
    """Index of the nearest of DIRECTIONS to (dx, dy): [n, 2] -> [n], -1 where nothing moves."""
    return torch.where(velocity.norm(dim=1) > 1e-6, (velocity @ unit_directions().T).argmax(1), -1)


def twin_pairs(items, way, pick):
    """{kind: [m, 2]}: clips of `pick` and their mirrored or reversed twins of another true direction."""
    original, pairs = {items[i]["source"]: i for i in pick.tolist() if items[i].get("kind") == "original"}, {}
    for i in pick.tolist():
        kind, first = items[i].get("kind"), original.get(items[i]["source"])
        if kind in FLIPS and first is not None and way[i] != way[first]:
            pairs.setdefault(kind, []).append([first, i])
    return {kind: torch.tensor(p) for kind, p in sorted(pairs.items()) if len(p) > 1}


def flips(answer, pairs):
    """(paired, permuted) [m]: is a twin's answer the flip of the original's answer; mean of that over other
    pairs. answer: [n] indices of DIRECTIONS. An unchanged answer is not a flip."""
    paired, permuted = [], []
    for kind, pair in pairs.items():
        table = nearest_direction(unit_directions() * torch.tensor(FLIPS[kind]))
        first, second = answer[pair].T
        match = ((table[first][:, None] == second) & (first[:, None] != second)).float()
        paired.append(match.diagonal())
        permuted.append((match.sum(1) - match.diagonal()) / (len(pair) - 1))
    return torch.cat(paired), torch.cat(permuted)


def r2_shares(z, y, split):
    """Each clip's share of R2 [n]: (spread - squared error) / mean spread of its part of the split.

    Spread is the squared distance from the training mean. The mean over a part is 1 - error / variance.
    """
    error, spread = ((y - x).square().sum(1) for x in (z, y[split["train"]].mean(0)))
    out = spread - error
    for part in split.values():
        out[part] /= spread[part].mean()
    return out


def strata(largest, train):
    """{"size small": [n] bool, ...}: area of the largest box, cut at the terciles of the training items."""
    area = (largest[:, 2:] - largest[:, :2]).prod(1)
    low, high = area[train].quantile(torch.tensor([1 / 3, 2 / 3]))
    return {
        "size small": area <= low,
        "size medium": (area > low) & (area <= high),
        "size large": area > high,
    }


def by_stratum(groups, scores, baselines, test, sources, seed):
    """{stratum: {n, <task>, <task>_low, ...}} of scores {task: [n_test]}; only n for fewer than 5 items."""
    out = {}
    for name, member in groups.items():
        pick = member[test]
        out[name] = row = {"n": int(pick.sum())}
        for task in scores if row["n"] >= 5 else ():
            mean, low, high = bootstrap(
                scores[task][pick], [s for s, m in zip(sources, pick, strict=True) if m], seed=seed
            )
            row |= {
                task: mean,
                f"{task}_low": low,
                f"{task}_high": high,
                f"{task}_baseline": baselines[task][pick].mean().item(),
            }
    return out


# ---------------------------------------------------------------- records of criteria from scores per item


def best_point(found, val):
    """The point with the highest mean score on val; found {point: [n]}; `random:<point>` is untrained."""
    return max(
        (p for p in found if p != "pixels" and not p.startswith("random:")),
        key=lambda p: found[p][val].mean(),
    )


def baselines_of(found, layer, test, **more):
    """Baselines on the test items: `more`, raw pixels, and the untrained network, where they were probed."""
    return more | {
        name: found[point][test]
        for name, point in (("pixels", "pixels"), ("random_init", f"random:{layer}"))
        if point in found
    }


def box_criterion(boxes, largest, split, sources, seed=0, **baselines):
    """The record of bbox_iou at the best point on val, from boxes {point: result of probe_boxes}."""
    test, iou = split["test"], {p: found[0] for p, found in boxes.items()}
    layer, constant = best_point(iou, split["val"]), largest[split["train"]].median(0).values
    baselines |= {
        "constant": box_iou(constant, largest[test]),
        "shuffled": boxes[layer][1][:, test],
        "shuffled_images": box_iou(boxes[layer][2][test.roll(1)], largest[test]),
    }
    return criterion(
        iou[layer][test],
        baselines_of(iou, layer, test, **baselines),
        sources,
        blind="constant",
        layer=layer,
        seed=seed,
        options_searched=sum(p != "pixels" and not p.startswith("random:") for p in iou),
    )


def class_constant(items, largest, train):
    """Median training box of the class of the largest object of each item [n,4]."""
    biggest = [(i["boxes"][:, 2:] - i["boxes"][:, :2]).prod(1).argmax() for i in items]
    names = [i["labels"][k] for i, k in zip(items, biggest, strict=True)]
    of = {name: largest[[i for i in train.tolist() if names[i] == name]] for name in set(names)}
    return torch.stack(
        [of[name].median(0).values if len(of[name]) else largest[train].median(0).values for name in names]
    )


def mask_criterion(iou, shuffled, masks, side, split, sources, seed=0, **more):
    """The record of spatial_iou at the best point on val, of {point: IoU [n]}; shuffled: IoU of wrong labels.

    `shuffled` may beat other baselines without a leak: its threshold is chosen on true masks. side: tokens a
    side."""
    test, solid, layer = split["test"], masks >= 0.5, best_point(iou, split["val"])
    position = mask_scores(masks[split["train"]].mean(0).expand_as(masks), solid, split)
    h = side * max(-(-MASK // side), 1)
    through = F.interpolate(
        F.interpolate(masks[:, None], (h, h), mode="bilinear"), (MASK, MASK), mode="bilinear"
    )[:, 0]
    return criterion(
        iou[layer][test],
        baselines_of(
            iou,
            layer,
            test,
            position_only=position[test],
            all_foreground=mask_iou(torch.ones_like(solid), solid)[test],
            shuffled=shuffled[test],
        ),
        sources,
        upper_bound=mask_iou(through >= 0.5, solid)[test].mean().item(),
        layer=layer,
        seed=seed,
        options_searched=sum(p != "pixels" and not p.startswith("random:") for p in iou),
        **more,
    )


# ---------------------------------------------------------------- images, and clips


def ladder(kernels, boxes, names, largest, split, seed):
    """({layer: {ridge, mlp1: IoU on test}}, {probe: parameters}) of layers `names`; kernels [L, n, n]."""
    test = split["test"]
    found, parameters = train_mlp(components(*spectrum(kernels, split["train"])), largest, split, seed=seed)
    iou = box_iou(found[..., test, :], largest[test]).mean((-1, -2))  # [L]
    rows = {p: {"ridge": boxes[p][0][test].mean(), "mlp1": x} for p, x in zip(names, iou, strict=True)}
    # ridge: in its dual form, with an intercept
    return rows, {"ridge": 4 * (len(split["train"]) + 1), "mlp1": parameters}


def reconstruction(jobs, frames, others, measures, split, sources, layer, seed):
    """{decoder_<measure>: (record, scores [seeds, n_test])}; jobs {trained, random_init, oracle: [n,h,w,D]};
    others {mean_image, blur: test images}. blur and random_init are controls, not baselines."""
    test, found = split["test"], {}
    tokens = {name: token_components(x, split["train"], side=DECODER["grid"]) for name, x in jobs.items()}
    for grid in dict.fromkeys(grid for _, grid in tokens.values()):
        same = [name for name in tokens if tokens[name][1] == grid]
        images, parameters = train_decoder(
            torch.stack([tokens[name][0] for name in same]), frames, split, seed
        )
        found |= dict(zip(same, images[:, :, test], strict=True))
    found |= {name: p[None] for name, p in others.items()} | {"shuffled_images": found["trained"].roll(1, 1)}
    out = {}
    for name, (measure, better, upper_bound) in measures.items():
        scores = {
            k: torch.stack([measure(run.contiguous(), frames[test]) for run in p]) for k, p in found.items()
        }
        record = criterion(
            scores["trained"],
            {k: scores[k] for k in ("mean_image", "shuffled_images")},
            sources,
            scores["oracle"].mean().item() if "oracle" in scores else upper_bound,
            better,
            layer=layer,
            seed=seed,
            options_searched=1,
            parameters=parameters,
            controls={k: scores[k].mean() for k in ("blur", "random_init") if k in scores},
            upper_bound_is="the same decoder on the oracle's latents"
            if "oracle" in scores
            else "a perfect copy",
        )
        out[f"decoder_{name}"] = record, scores["trained"]
    return out


def space(args, items, split, read, points, read_random, read_oracle, progress):
    """All probes of still images. Returns (criteria, layers, decoded, tables)."""
    largest, truth, names = box_truth(items)
    masks = foreground(items, MASK)
    solid = masks >= 0.5
    frames = torch.cat([frames_of(i, IMAGE) for i in items])
    images, outlines = frames.permute(0, 3, 1, 2).float() / 255, edges(frames)
    maps = {"mask": masks[:, None], "image": images, "edge": outlines[:, None].float()}
    lpips, lpips_name = load_lpips()
    train, val, test = split["train"], split["val"], split["test"]
    scored = torch.cat([val, test])
    sources = [items[i]["source"] for i in test]

    kernels, tokens, cells = {}, {}, {}
    for kind, reader, chosen in (("", read, points), ("random:", read_random, points if read_random else [])):
        for point in progress(chosen, desc=f"{kind or 'trained:'} ridges"):
            x = reader(point)[:, 0]
            kernels[kind + point], tokens[kind + point] = gram(x, train), token_components(x, train)
            found = probe_cells(x, maps, split)
            soft, image = found["mask"][:, 0], to_images(found["image"])
            cells[kind + point] = {
                "spatial_iou": mask_scores(soft, solid, split),
                "ssim": torch.zeros(len(items), dtype=torch.float64),
                "image": image,
                "soft": soft,
                "edge": edge_scores(found["edge"][:, 0], outlines, split, ("val", "test")),
            }
            cells[kind + point]["ssim"][scored] = ssim(image[scored], frames[scored])
    kernels["pixel_pca"] = gram(components(*spectrum(gram(images, train)[None], train))[0], train)
    trained = [p for p in points if p != "pixels"]

    # one solve for all layers, labels and penalties of the box ridge
    every = torch.stack(list(kernels.values()))
    found = solve_ridge(*spectrum(every, train), box_targets(largest, split, args.seed), train)
    boxes = {
        p: box_scores({task: f[k] for task, (f, _) in found.items()}, largest) for k, p in enumerate(kernels)
    }
    pixel_pca = boxes.pop("pixel_pca")[0][test]
    criteria = {
        "bbox_iou": box_criterion(
            boxes,
            largest,
            split,
            sources,
            args.seed,
            pixel_pca=pixel_pca,
            class_constant=box_iou(class_constant(items, largest, train), largest)[test],
        )
    }
    decoded = {
        "boxes": boxes[criteria["bbox_iou"]["layer"]][2][test].clone(),
        "true_boxes": largest[test].clone(),
    }

    g = torch.Generator().manual_seed(args.seed)
    spatial = {p: c["spatial_iou"] for p, c in cells.items()}
    x = read(layer := best_point(spatial, val))[:, 0]
    wrong = torch.arange(len(items))
    wrong[train] = train[torch.randperm(len(train), generator=g)]
    shuffled = probe_cells(x, {name: m[wrong] for name, m in maps.items()}, split)
    criteria["spatial_iou"] = mask_criterion(
        spatial,
        mask_scores(shuffled["mask"][:, 0], solid, split),
        masks,
        x.shape[1],
        split,
        sources,
        args.seed,
        truth="masks" if "mask" in items[0] else "boxes",
    )
    decoded["masks"] = cells[layer]["soft"][test].clone()

    # Shuffled labels may score here without a leak: the threshold is chosen on true edges, and a token far
    # from the mean has a prediction far from the mean under any map.
    outlined = {p: c["edge"] for p, c in cells.items()}
    layer = best_point(outlined, val)
    beside = {
        "position_only": outlines[train].float().mean(0).expand(len(items), -1, -1),
        "shuffled": shuffled["edge"][:, 0],
        "upper_bound": outlines.float(),
    }
    beside = {name: edge_scores(soft, outlines, split, ["test"])[test] for name, soft in beside.items()}
    upper_bound = beside.pop("upper_bound").mean().item()  # the true edges, thinned
    criteria["edge_probe_f1"] = criterion(
        outlined[layer][test],
        baselines_of(outlined, layer, test, **beside),
        sources,
        upper_bound,
        layer=layer,
        seed=args.seed,
        options_searched=len(trained),
    )

    layer = best_point({p: c["ssim"] for p, c in cells.items()}, val)
    side = read(layer).shape[2]
    blur = F.interpolate(
        F.adaptive_avg_pool2d(images[test], side), (IMAGE, IMAGE), mode="bilinear", antialias=True
    )
    mean_image = images[train].mean(0).expand(len(test), -1, -1, -1)
    rows = {"trained": cells[layer]["image"][test], "shuffled": to_images(shuffled["image"][test])}
    # blur: one colour a token
    rows |= {name: to_images(p) for name, p in (("mean_image", mean_image), ("blur", blur))}
    # raw pixels are no baseline here: they would be a copy
    rows |= {"random_init": cells[f"random:{layer}"]["image"][test]} if read_random else {}
    for key, measure, better, upper_bound in (
        ("recon_" + lpips_name, lpips, "lower", 0.0),
        ("recon_ssim", ssim, "higher", 1.0),
        ("recon_edge_f1", edge_f1, "higher", 1.0),
    ):
        scores = {name: measure(image.contiguous(), frames[test]) for name, image in rows.items()}
        criteria[key] = criterion(
            scores.pop("trained"),
            scores,
            sources,
            upper_bound,
            better,
            layer=layer,
            seed=args.seed,
            options_searched=len(trained),
        )
    decoded["images"] = cells[layer]["image"][test].clone()
    layer = criteria["bbox_iou"]["layer"]
    if len(set(read(layer).shape[2:4])) == 1:  # square grids
        jobs = (
            {"trained": read(layer)[:, 0]}
            | ({"random_init": read_random(layer)[:, 0]} if read_random else {})
            | ({"oracle": read_oracle("latents")[:, 0]} if read_oracle else {})
        )
        decoders = reconstruction(
            jobs,
            frames,
            {name: rows[name] for name in ("mean_image", "blur")},
            {lpips_name: (lpips, "lower", 0.0), "ssim": (ssim, "higher", 1.0)},
            split,
            sources,
            layer,
            args.seed,
        )
        criteria |= {name: record for name, (record, _) in decoders.items()}
        decoded["scores"] = {f"decoder_{lpips_name}": decoders[f"decoder_{lpips_name}"][1]}

    # The set probe is costly, so it is trained at the two layers with the best boxes on val; the baselines
    # are those of the first.
    ranked = sorted(trained, key=lambda p: -boxes[p][0][val].mean())[:2]
    x, grid = tokens[ranked[0]]
    jobs = {(p, "sigmoid"): (p, truth, False) for p in ranked} | {
        (ranked[0], "softplus"): (ranked[0], truth, True)
    }
    jobs |= {"shuffled": (ranked[0], [truth[i] for i in wrong], False)} | (
        {"pixels": ("pixels", truth, False)} if "pixels" in tokens else {}
    )
    jobs |= {"random_init": (f"random:{ranked[0]}", truth, False)} if read_random else {}
    jobs = {name: (tokens[p], *job) for name, (p, *job) in jobs.items()} | {
        "position_only": ((x[train].mean(0).expand_as(x), grid), truth, False)
    }
    runs = {}
    for grid in progress(dict.fromkeys(t[1] for t, *_ in jobs.values()), desc="set prediction"):
        runs |= probe_sets(
            {name: (t[0], *job) for name, (t, *job) in jobs.items() if t[1] == grid},
            grid,
            truth,
            len(names),
            split,
            args.seed,
            sources,
        )
    best = max(
        (name for name in runs if isinstance(name, tuple)), key=lambda name: runs[name]["val"]["ap"].mean()
    )
    baselines = ("shuffled", "pixels", "random_init", "position_only")
    criteria["map50"] = ap_criterion(
        runs[best]["test"],
        {k: runs[k]["test"] for k in baselines if k in runs},
        sources,
        blind="position_only",
        layer=best[0],
        size_code=best[1],
        options_searched=1 + len(ranked),
        classes=len(names),
        sigmoid_sizes=runs[ranked[0], "sigmoid"]["test"]["ap"].mean(),
        softplus_sizes=runs[ranked[0], "softplus"]["test"]["ap"].mean(),
        without_early_stopping=runs[best]["last"]["ap"].mean(),
    )

    layers = {
        p: {
            "bbox_iou": boxes[p][0][test].mean(),
            "bbox_iou_val": boxes[p][0][val].mean(),
            "spatial_iou": cells[p]["spatial_iou"][test].mean(),
            "edge_probe_f1": cells[p]["edge"][test].mean(),
            "recon_ssim": cells[p]["ssim"][test].mean(),
        }
        | (
            {
                "bbox_iou_random": boxes[f"random:{p}"][0][test].mean(),
                "spatial_iou_random": cells[f"random:{p}"]["spatial_iou"][test].mean(),
            }
            if read_random
            else {}
        )
        for p in points
    }
    constant = largest[train].median(0).values
    position = mask_scores(masks[train].mean(0).expand_as(masks), solid, split)
    baseline = {"bbox_iou": box_iou(constant, largest[test]), "spatial_iou": position[test]}
    p_values = {
        f"{p}/{task}": paired_test(s[test], baseline[task], sources, seed=args.seed)["p"]
        for p in points
        for task, s in (("bbox_iou", boxes[p][0]), ("spatial_iou", cells[p]["spatial_iou"]))
    }
    for key, p in holm(p_values).items():
        point, task = key.split("/")
        layers[point][f"{task}_p_holm"] = p
    at = {task: criteria[task]["layer"] for task in baseline}
    tables = {
        "strata": by_stratum(
            strata(largest, train),
            {
                "bbox_iou": boxes[at["bbox_iou"]][0][test],
                "spatial_iou": cells[at["spatial_iou"]]["spatial_iou"][test],
            },
            baseline,
            test,
            sources,
            args.seed,
        )
    }
    # gate.py screen pairs models by these
    decoded["scores"] = {
        "bbox_iou": boxes[at["bbox_iou"]][0][test],
        "spatial_iou": cells[at["spatial_iou"]]["spatial_iou"][test],
    } | decoded.get("scores", {})
    decoded["sources"] = sources
    for p in points:
        layers[p]["bbox_iou_low"], layers[p]["bbox_iou_high"] = bootstrap(
            boxes[p][0][test], sources, seed=args.seed
        )[1:]

    at = [list(kernels).index(p) for p in points]
    tables["ladder"], tables["ladder_parameters"] = ladder(
        every[at], boxes, points, largest, split, args.seed
    )
    return criteria, layers, decoded, tables


def motion_truth(items, split):
    """(direction [n], -1: still; direction [n] relative to the background or None; targets {task: [n, c]}).
    The background moves by `camera`. Targets are those that vary in every part of the split."""
    numbers = {"still": -1} | {name: k for k, name in enumerate(DIRECTIONS)}
    true, background = torch.tensor([check_choice(i["direction"], numbers, "direction") for i in items]), None
    known = {
        f"{key}_r2": torch.tensor([i[key] for i in items]).float().reshape(len(items), -1)
        for key in ("speed", "camera")
        if all(key in i for i in items)
    }
    if len(known) == 2:
        background = nearest_direction(unit_directions()[true] * known["speed_r2"] - known["camera_r2"])
    varied = {
        task: y for task, y in known.items() if all((y[part] != y[part[0]]).any() for part in split.values())
    }
    one_hot = F.one_hot(true.clamp(min=0), len(DIRECTIONS)).float()
    return true, background, {"direction_accuracy": one_hot} | varied


def motion_criterion(task, score, y, readers, split, sources, still=(), seed=0):
    """(record, answers {name: [n, c]}) of one task at the point and pooling that are best on val.

    score(answer [n, c]) -> [n]; y [n, c]; readers {name: result of read_motion}, among them `trained`.
    random_init is read at the same point and pooling, pixels and <frame>_frame at their best. still: frames
    of the frozen clips."""

    def best(name, pixels=False):
        return max(
            (o for o in readers[name] if (o[0] == "pixels") == pixels),
            key=lambda o: score(readers[name][o][task][0])[split["val"]].mean(),
        )

    test, trained, (layer, view) = split["test"], readers["trained"], best("trained")
    at_best = trained[layer, view]
    blind = "majority" if task == "direction_accuracy" else "constant"
    answers = {"trained": at_best[task][0], blind: y[split["train"]].mean(0).expand_as(y)}
    answers |= {
        name: r[(layer, view) if name == "random_init" else best(name)][task][0]
        for name, r in readers.items()
        if name != "trained"
    }
    answers |= {f"frozen_{frame}": at_best[task][k] for k, frame in enumerate(still, 1)}
    if any(p == "pixels" for p, _ in trained):
        answers["pixels"] = trained[best("trained", pixels=True)][task][0]
    baselines = {name: score(z)[test] for name, z in answers.items() if name != "trained"}
    baselines["shuffled"] = torch.stack([score(at_best[f"{task}/{s}"][0])[test] for s in range(SEEDS)])
    return criterion(
        score(answers["trained"])[test],
        baselines,
        sources,
        blind=blind,
        layer=layer,
        pooling=view,
        seed=seed,
        options_searched=sum(p != "pixels" for p, _ in trained),
    ), answers


def motion(args, items, split, pooled, pooled_random, points, frozen=None):
    """All probes of moving clips, from space-pooled features. Returns (criteria, layers, decoded).

    frozen {"first" | "middle": pooled features of clips that repeat this frame}. The probe of moving clips is
    applied to them (frozen_<frame>, a control); a probe trained on them is a baseline (<frame>_frame)."""
    frozen = frozen or {}
    moving = torch.tensor([i["direction"] != "still" for i in items])
    split = {k: v[moving[v]] for k, v in split.items()}
    test, train = split["test"], split["train"]
    sources = [items[i]["source"] for i in test]
    true, background, targets = motion_truth(items, split)
    readers = {
        "trained": read_motion(
            pooled, points, with_shuffled(targets, train, args.seed), train, frozen.values()
        )
    }
    readers |= {f"{frame}_frame": read_motion(x, points, targets, train) for frame, x in frozen.items()}
    readers |= {"random_init": read_motion(pooled_random, points, targets, train)} if pooled_random else {}

    def correct(z, truth=true):
        return (z.argmax(1) == truth).float()

    scores = {
        task: correct if task == "direction_accuracy" else lambda z, y=y: r2_shares(z, y, split)
        for task, y in targets.items()
    }
    found = {
        task: motion_criterion(task, score, targets[task], readers, split, sources, frozen, args.seed)
        for task, score in scores.items()
    }
    criteria, answers = {task: c for task, (c, _) in found.items()}, found["direction_accuracy"][1]
    direction, majority = criteria["direction_accuracy"], correct(answers["majority"])[test]
    where = {key: direction[key] for key in ("layer", "pooling", "options_searched")} | {"seed": args.seed}
    for frame in frozen:
        criteria[f"frozen_{frame}"] = criterion(
            correct(answers[f"frozen_{frame}"])[test], {"majority": majority}, sources, **where
        )
    # The middle frame holds nothing about the direction; the first may. A tenth of the headroom is allowed:
    # the majority class of training may by chance be rare in test.
    if "middle" in frozen and control_leaks(
        criteria["frozen_middle"]["gain_low"], direction["baselines"]["majority"], 1.0
    ):
        direction["leak"] = direction["leak"] or "frozen_middle"
    if pairs := twin_pairs(items, true, test):
        flipped = {name: flips(z.argmax(1), pairs) for name, z in answers.items()}
        criteria["direction_flip"] = criterion(
            flipped["trained"][0],
            {"permuted": flipped["trained"][1]}
            | {name: f for name, (f, _) in flipped.items() if name != "trained"},
            [items[i]["source"] for i in torch.cat(list(pairs.values()))[:, 0]],
            **where,
        )

    layers = {p: {} for p in points}
    camera = test[torch.tensor([any(items[i].get("camera", ())) for i in test])]
    p_values = holm(
        {
            o: paired_test(correct(z["direction_accuracy"][0])[test], majority, sources, seed=args.seed)["p"]
            for o, z in readers["trained"].items()
        }
    )
    for (point, view), z in readers["trained"].items():
        row = {task: score(z[task][0])[test].mean() for task, score in scores.items()}
        z = z["direction_accuracy"]
        row |= {f"frozen_{frame}": correct(z[k])[test].mean() for k, frame in enumerate(frozen, 1)}
        row |= {
            f"{frame}_frame": correct(readers[f"{frame}_frame"][point, view]["direction_accuracy"][0])[
                test
            ].mean()
            for frame in frozen
        }
        row |= {"direction_flip": flips(z[0].argmax(1), pairs)[0].mean()} if pairs else {}
        if background is not None and len(camera):
            row |= {
                "camera_accuracy": correct(z[0])[camera].mean(),
                "background_accuracy": correct(z[0], background)[camera].mean(),
            }
        layers[point] |= {f"{name}_{view}": x for name, x in row.items()} | {
            f"direction_accuracy_{view}_p_holm": p_values[point, view]
        }

    return criteria, layers, {"correct": correct(answers["trained"])[test], "sources": sources}


def read_pooled(folder, points):
    """{point: {mean, max: [n, t, D]}} of a features folder; fails if a value is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    if bad := [
        p for p in points if not all(x.isfinite().all() for x in (pooled[p]["mean"], pooled[p]["max"]))
    ]:
        fail(f"{folder}/pooled.pt holds non-finite values at {bad[0]}; extract again in bf16 or fp32")
    return pooled


def read_frozen(folders, features, index, points):
    """{"first" | "middle": pooled features} of frozen clips in the order of `index`, of the same network."""
    found = {}
    for folder in folders:
        other, _ = load_features(folder)
        frame = load_yaml(Path(other["data_path"]) / "index.yaml", "data").get("freeze")
        if frame is None:
            fail(f"{folder} holds features of clips that are not frozen; use data.py moving --freeze")
        if (
            (other["model"], other["weights"]) != (index["model"], index["weights"])
            or any(p not in other["points"] for p in points)
            or set(other["ids"]) != set(index["ids"])
        ):
            fail(f"{folder} and {features} do not have the same network, points and items; extract again")
        order = [other["ids"].index(i) for i in index["ids"]]
        found[frame] = {
            p: {k: x[order] for k, x in row.items()}
            for p, row in read_pooled(folder, points).items()
            if p in points
        }
    return found


# ---------------------------------------------------------------- comparison of results; chart


def compare(folders, seed=0):
    """Results of folders on the same test items, with paired gains over the first and Holm's correction."""
    found = {
        Path(f).name: (
            load_yaml(Path(f) / "probe.yaml", "probe"),
            load_pt(Path(f) / "probe.pt", RESULT),
            load_yaml(Path(f) / "features" / "index.yaml", "extract"),
        )
        for f in folders
    }
    if len(found) < 2:
        fail(f"--compare {' '.join(folders)}: give two or more folders of different names")
    (first, (_, reference, _)), rows, p_values = next(iter(found.items())), {}, {}
    # of images; of clips
    tasks = ("bbox_iou", "spatial_iou") if "scores" in reference else ("direction_accuracy",)
    for name, (result, scores, index) in found.items():
        if scores["ids"] != reference["ids"]:
            fail(f"{name} and {first} have different test items; compare results of one data set")
        rows[name] = {"model": result["model"], "size": index["size"]} | {
            k: index[k] for k in ("frames", "count") if k in index
        }
        for task in tasks:
            c = result["criteria"][task]
            grid = index["points"][c["layer"]]["shape"][1:3]
            rows[name] |= {
                task: c["score"],
                f"{task}_low": c["low"],
                f"{task}_high": c["high"],
                f"{task}_baseline": c["baseline"],
                f"{task}_layer": c["layer"],
                f"{task}_grid": f"{grid[0]}x{grid[1]}",
            }
            if name != first:
                test = paired_test(
                    *(x["scores"][task] if "scores" in x else x["correct"] for x in (scores, reference)),
                    reference["sources"],
                    seed=seed,
                )
                rows[name] |= {f"{task}_{k}": test[k] for k in ("gain", "gain_low", "gain_high")}
                p_values[f"{name}/{task}"] = test["p"]
    for key, p in holm(p_values).items():
        name, task = key.rsplit("/", 1)
        rows[name][f"{task}_p_holm"] = p
    best = {task: max(rows, key=lambda name: rows[name][task]) for task in tasks}
    scores = {f"{task}_{name}": row[task] for name, row in rows.items() for task in best}
    return {
        "stage": "probe-compare",
        "reference": first,
        **{f"{task}_best": name for task, name in best.items()},
        **scores,
        "rows": rows,
    }


def draw_chart(result, path):
    """Write probe.png: scores by layer, and by size of the object."""
    plt, layers = pyplot(), [p for p in result["layers"] if p != "pixels"]
    figure, (along, by_size) = plt.subplots(1, 2, figsize=(15, 5), layout="constrained")
    at = range(len(layers))
    along.plot(at, [result["layers"][p]["bbox_iou"] for p in layers], "o-", label="ridge, trained network")
    along.fill_between(
        at,
        *([result["layers"][p][f"bbox_iou_{end}"] for p in layers] for end in ("low", "high")),
        alpha=0.2,
        label="95% interval",
    )
    along.plot(at, [result["ladder"][p]["mlp1"] for p in layers], "^-", label="MLP, trained network")
    if "bbox_iou_random" in result["layers"][layers[0]]:
        along.plot(
            at,
            [result["layers"][p]["bbox_iou_random"] for p in layers],
            "s--",
            label="ridge, untrained network",
        )
    for k, (name, value) in enumerate(result["criteria"]["bbox_iou"]["baselines"].items()):
        if name != "random_init":
            along.axhline(value, lw=1, ls=":", color=f"C{k + 3}", label=f"baseline: {name.replace('_', ' ')}")
    along.set(title="Largest box, by layer", ylabel="box IoU on test items")
    along.set_xticks(list(at), layers, rotation=60, ha="right", fontsize=8)
    along.legend(fontsize=8)
    strata = {name: row for name, row in result["strata"].items() if "bbox_iou" in row}
    for k, (task, label) in enumerate((("bbox_iou", "box"), ("spatial_iou", "mask"))):
        x = [i + 0.35 * k for i in range(len(strata))]
        rows = [[r[task], r[f"{task}_low"], r[f"{task}_high"]] for r in strata.values()]
        score = torch.tensor(rows).reshape(-1, 3)  # none with fewer than 5 items
        by_size.bar(x, score[:, 0], 0.33, color=f"C{k}", label=f"{label}, 95% interval")
        by_size.errorbar(
            x,
            score[:, 0].numpy(),
            (score[:, :1] - score[:, 1:]).abs().T.numpy(),
            fmt="none",
            color="black",
            capsize=2,
        )
        by_size.scatter(
            x,
            [r[f"{task}_baseline"] for r in strata.values()],
            marker="_",
            s=200,
            color="red",
            zorder=3,
            label="baseline: position only" if k else None,
        )
    by_size.set_xticks(
        [i + 0.17 for i in range(len(strata))],
        [f"{name}\nn={row['n']}" for name, row in strata.items()],
        rotation=40,
        ha="right",
        fontsize=8,
    )
    by_size.set(title="By size of the object", ylabel="IoU on test items", ylim=(0, 1))
    by_size.legend(fontsize=8, loc="lower right")
    figure.suptitle(
        f"{result['model']} on {result['data_name']}: {result['test']} test items, "
        f"{result['weights']} weights, {result['data']} data",
        fontsize=13,
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def get_args(argv):
    p = parser(__doc__)
    p.add_argument(
        "--features",
        default="results/tiny/shapes/features",
        help="features folder of extract.py (default: %(default)s)",
    )
    p.add_argument(
        "--random", help="features of the untrained network (extract.py --random-init), a baseline"
    )
    p.add_argument(
        "--oracle",
        help="features of the decoder's autoencoder (extract.py --model tiny-vae), upper bound of decoder_*",
    )
    p.add_argument(
        "--frozen",
        nargs="+",
        default=[],
        help="features of the same clips, frozen (data.py moving --freeze): baselines and a control",
    )
    p.add_argument("--data", help="data folder (default: that of the features)")
    p.add_argument("--points", help="layers, separated by commas (default: all in the index)")
    p.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="compare results on the same items: two or more folders, of which the first is the reference",
    )
    p.add_argument(
        "--out", help="default: probe.yaml beside --features; compare.yaml beside the first of --compare"
    )
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.compare:
        out = Path(args.out or Path(args.compare[0]).parent / "compare.yaml")
        check_writable(out)
        result = compare(args.compare, args.seed) | {"run": run_info(args, started, script="probe.py")}
        save_yaml(out, result)
        print_summary(result)
        return result
    index, read = load_features(args.features)
    items, data = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "probe.yaml")
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        fail(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    random_index, read_random = load_features(args.random) if args.random else (None, None)
    if random_index and (
        [random_index.get(k) for k in ("ids", "shown")] != [index.get(k) for k in ("ids", "shown")]
        or any(p not in random_index["points"] for p in points)
    ):
        fail(f"{args.random} and {args.features} do not hold the same items and points; extract both again")
    oracle_index, read_oracle = load_features(args.oracle) if args.oracle else (None, None)
    if oracle_index and (oracle_index["ids"] != index["ids"] or "latents" not in oracle_index["points"]):
        fail(f"{args.oracle} has no latents of these items; extract an autoencoder on the same --data")

    if args.frozen and "direction" not in items[0]:
        fail(f"--frozen is for clips, but {index['data_path']} has no directions; leave it out")
    if "direction" in items[0]:
        pooled, pooled_random = (read_pooled(f, points) if f else None for f in (args.features, args.random))
        criteria, layers, decoded = motion(
            args,
            items,
            split,
            pooled,
            pooled_random,
            points,
            read_frozen(args.frozen, args.features, index, points),
        )
        tables = {}
    elif "boxes" in items[0]:
        gridless = [p for p in points if p not in with_grid(index)]
        points = [p for p in points if p not in gridless]
        if not set(points) - {"pixels"}:
            others = ", ".join(p for p in with_grid(index) if p != "pixels") or "other features"
            fail(f"{', '.join(gridless) or 'pixels'}: no layer with a token grid; give --points of {others}")
        if gridless:
            print(f"left out (no token grid): {', '.join(gridless)}")
        criteria, layers, decoded, tables = space(
            args,
            items,
            split,
            read,
            points,
            read_random,
            read_oracle,
            lambda it, desc: tqdm(it, desc=desc, unit="point"),
        )
    else:
        fail(f"{index['data_path']} has neither boxes nor directions; probe.py needs one of them")

    result = {
        "stage": "probe",
        "model": index["model"],
        "weights": index["weights"],
        "data": index["data"],
        "data_name": data["name"],
        "items": len(items),
        **{k: len(v) for k, v in split.items()},
    } | ({"oracle": oracle_index["model"]} if oracle_index else {})
    for name, c in criteria.items():
        result |= {
            name: c["score"],
            f"{name}_low": c["low"],
            f"{name}_high": c["high"],
            f"{name}_baseline": c["baseline"],
            f"{name}_layer": c["layer"],
        }
    leaks = [f"{c['leak']} on {name}" for name, c in criteria.items() if c["leak"]]
    result["leak"] = f"a control scores what it cannot know: {', '.join(leaks)}" if leaks else None
    if args.random is None:
        result["random_init_baseline"] = None
        result["random_init_reason"] = "no --random features were given"
    result |= {
        "criteria": criteria,
        "layers": layers,
        **tables,
        "run": run_info(args, started, script="probe.py"),
    }
    save_pt(
        out.with_suffix(".pt"), RESULT, [items[i]["id"] for i in split["test"]], {"stage": "probe"}, **decoded
    )
    save_yaml(out, result)
    if "ladder" in result:
        draw_chart(plain(result), out.with_suffix(".png"))
    print_summary(result)
    return result


if __name__ == "__main__":
    main()
