"""Which information about space and motion can a simple decoder read from each layer?

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
on test. --choose writes the chosen layers (`points`) and stops; --random is read there alone. Baselines on
the same items: constants, shuffled labels, another item's features, raw pixels, principal components of them,
the untrained network. `leak`: a control that scores too well.
Copy with it: common.py, media.py, metrics.py, stats.py.
"""

import dataclasses
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
from media import foreground, frames_of
from metrics import (
    MASK,
    ap_runs,
    box_iou,
    box_truth,
    edge_f1,
    edges,
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
    Lazy,
    chunks,
    control_leaks,
    criterion,
    gram,
    holm,
    mean_interval,
    paired_test,
    read_once,
    ridge,
    solve_ridge,
    spectrum,
    token_ridge,
    token_slices,
    with_bounds,
)

# pixels a side of decoded images; tokens a side, at most, of trained probes
IMAGE, SET_GRID = 64, 6
# principal components of the flattened grid and of a token: trained probes have one size for all models
COMPONENTS, TOKEN = 256, 128
SEEDS, STEPS, HIDDEN = 5, 240, 64  # of the MLP
# of the reconstruction decoder; `grid`: tokens a side, at most
DECODER = {"seeds": 3, "steps": 240, "hidden": 128, "grid": 8}
# y points down
DIRECTIONS = {"down": (0, 1), "down left": (-1, 1), "down right": (1, 1), "left": (-1, 0), "right": (1, 0)}
DIRECTIONS |= {"up": (0, -1), "up left": (-1, -1), "up right": (1, -1)}
FLIPS = {"mirrored": (-1, 1), "reversed": (-1, -1)}  # factors of the velocity


# ---------------------------------------------------------------- probes: features in, scores per item out


def box_targets(largest, split, seed=0):
    """{true, shuffled0 ... shuffled4}: the boxes [n,4], and copies with those of training items permuted."""
    g, train, targets = torch.Generator().manual_seed(seed), split["train"], {"true": largest}
    for s in range(SEEDS):
        order = train[torch.randperm(len(train), generator=g)]
        targets[f"shuffled{s}"] = largest.index_copy(0, train, largest[order])
    return targets


def box_scores(found, largest):
    """(IoU with the largest box [n], IoU of shuffled labels [SEEDS, n], boxes [n,4]) of {task: [n,4]}."""
    iou = {k: box_iou(b.clamp(0, 1), largest) for k, b in found.items()}
    return iou["true"], torch.stack([iou[f"shuffled{s}"] for s in range(SEEDS)]), found["true"].clamp(0, 1)


def probe_boxes(x, largest, split, sources, seed=0):
    """`box_scores` of the ridge from flattened features x [n, ...]."""
    return box_scores(
        ridge(x.flatten(1), box_targets(largest, split, seed), split["train"], sources), largest
    )


def rotated(x):
    """x [..., r] under a random rotation. AdamW trains badly on inputs of very different scales, as principal
    components are; whitening them would amplify noise."""
    square = 2 * x.shape[-1:]
    noise = torch.randn(square, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x @ torch.linalg.qr(noise)[0].to(x.dtype)


def components(k, values, vectors, most=COMPONENTS):
    """First principal components of L layers [L, n, most] from `spectrum`, `rotated`, of mean square one."""
    values, vectors = (z[..., -most:].flip(-1) for z in (values, vectors))
    x = rotated(k @ (vectors * (values + 1e-12 * values[..., :1] + 1e-300).rsqrt()[:, None]))
    return (x / x.square().mean((1, 2), keepdim=True).sqrt().clamp(min=1e-150)).float()


def token_components(x, train, most=TOKEN, side=SET_GRID):
    """(components [n, K, most], grid) of tokens [n,h,w,D], a tensor or `Lazy`, pooled to `side` a side and
    standardised."""
    rows = torch.arange(len(x))
    h, w = (min(s, side) for s in x[rows[:1]].shape[1:3])
    x = torch.cat([F.adaptive_avg_pool2d(x[part].permute(0, 3, 1, 2), (h, w)) for part in chunks(rows, x)])
    x = x.permute(0, 2, 3, 1).flatten(1, 2)
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
        pick = torch.randperm(len(split["train"]), generator=generator)[:batch]
        loss_of(split["train"][pick]).sum().backward()
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
    seed_of = slice(None) if only is None else slice(only, only + 1)
    # [L, seeds, ...]: the same start for every layer
    weights = {k: w[seed_of].repeat(len(x), 1, 1, 1) for k, w in start.items()}

    def boxes(items):
        hidden = (torch.einsum("lnr,lgrh->lgnh", x[:, items], weights["in"]) + weights["in_bias"]).relu()
        code = hidden @ weights["out"] + weights["out_bias"]
        centre, size = code[..., :2].sigmoid(), (code[..., 2:] - 1).sigmoid()
        return torch.cat([centre - size / 2, centre + size / 2], -1)

    fit(weights, lambda items: box_loss(boxes(items), largest[items]).mean(-1), split, steps, 1e-2, batch, g)
    return boxes(slice(None)).clamp(0, 1), sum(w[0].numel() for w in start.values())


def cells_of(maps, h, w):
    """The part of maps [n,c,S,S] in each cell of an h x w grid, resized to whole pixels: [n, h*w, c*s*s]."""
    s = -(-maps.shape[-1] // h)
    fine = F.interpolate(maps, (h * s, w * s), mode="bilinear", align_corners=False, antialias=True)
    return to_cells(fine, h, w)


def probe_cells(x, maps, split):
    """Token-wise ridge from x [n,h,w,D], a tensor or `Lazy`, to each token's cell of maps {name: [n,c,S,S]}:
    {name: predicted}."""
    h, w = x[split["train"][:1]].shape[1:3]
    targets = {name: cells_of(m, h, w) for name, m in maps.items()}
    tokens = Lazy(lambda rows: x[rows].flatten(1, 2), len(x))
    found = token_ridge(tokens, targets, split["train"], split["val"])
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
    side, seeds, hidden = math.isqrt(tokens), DECODER["seeds"], DECODER["hidden"]
    g = torch.Generator().manual_seed(seed)
    cells = cells_of(frames.permute(0, 3, 1, 2).float() / 255, side, side)  # [n, K, c]
    mean = cells[split["train"]].mean((0, 1))
    weights = {}
    # the start is close to the mean image
    for name, i, o, scale in (("in", r, hidden, 1), ("out", hidden, cells.shape[-1], 0.05)):
        one = torch.randn(seeds, i, o, generator=g) * (scale * i**-0.5)
        weights[name] = one.repeat(jobs, 1, 1, 1)
    weights["bias"] = torch.zeros(jobs, seeds, 1, hidden)

    def decode(items):
        rows = x[:, items].flatten(1, 2)[:, None]  # [J, 1, n * K, r]
        hidden_units = (rows @ weights["in"] + weights["bias"]).relu()
        return (hidden_units @ weights["out"]).unflatten(2, (-1, tokens)) + mean

    def loss_of(items):
        return (decode(items) - cells[items]).square().mean((2, 3, 4))

    fit(weights, loss_of, split, DECODER["steps"], 4e-3, batch, g)
    out = from_cells(decode(torch.arange(n)).flatten(0, 2), side, side, 3, IMAGE)
    return to_images(out).unflatten(0, (jobs, seeds, n)), sum(w[0, 0].numel() for w in weights.values())


def probe_sets(jobs, grid, truth, classes, split, seed, sources):
    """Set prediction of {name: (tokens [n, K, r], labels, softplus)}: {name: {val, test, last}}.
    mAP@0.5 against `truth`, [SEEDS, sources] of the part; last: of test, without early stopping."""
    x, labels, softplus = zip(*jobs.values(), strict=True)
    x = torch.stack(x)
    parts = split["train"], split["val"], SEEDS
    predict = train_set_probe(x, grid, list(labels), classes, *parts, seed=seed, softplus=softplus)
    runs = {
        "val": ap_runs(predict, x, truth, split["val"]),
        "test": ap_runs(predict, x, truth, split["test"], sources),
        "last": ap_runs(functools.partial(predict, last=True), x, truth, split["test"], sources),
    }
    found = {name: {} for name in jobs}
    for which, run in runs.items():
        for name, ap in zip(jobs, run.split(SEEDS), strict=True):
            found[name][which] = ap
    return found


def poolings(pooled):
    """Features of a clip [n, ...] from space-pooled ones: mean over time, all time steps, change, maximum."""
    x = pooled["mean"]
    return {
        "mean": x.mean(1),
        "time": x.flatten(1),
        "change": torch.cat([x[:, -1] - x[:, 0], x.mean(1)], -1),
        "max": pooled["max"].flatten(1),
    }


def read_motion(pooled, points, targets, train, sources, also=()):
    """Ridge from every pooling of every point: {(point, pooling): {task: predictions [1 + also, n, c]}}.

    pooled {point: {mean, max: [n, t, D]}} trains the map; it is also applied to each of `also`. targets
    {task: [n, c]}."""
    found = {}
    for point in points:
        views = [poolings(p[point]) for p in (pooled, *also)]
        for view in views[0]:
            z = ridge(torch.cat([v[view] for v in views]), targets, train, sources)
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
    medium = (area > low) & (area <= high)
    return {"size small": area <= low, "size medium": medium, "size large": area > high}


def by_stratum(groups, scores, baselines, test, sources, seed):
    """{stratum: {n, <task>, <task>_low, ...}} of scores {task: [n_test]}; only n for fewer than 5 items."""
    out = {}
    for name, member in groups.items():
        pick = member[test]
        out[name] = row = {"n": int(pick.sum())}
        for task in scores if row["n"] >= 5 else ():
            some = [sources[i] for i in pick.nonzero().flatten().tolist()]
            row |= with_bounds(task, mean_interval(scores[task][pick], some))
            row[f"{task}_baseline"] = baselines[task][pick].mean().item()
    return out


# ---------------------------------------------------------------- records of criteria from scores per item


def candidates(found):
    """The points of {point: ...} that a layer is chosen from; `random:<point>` is untrained."""
    return [p for p in found if p != "pixels" and not p.startswith("random:")]


def best_point(found, val):
    """The point with the highest mean score on val; found {point: [n]}."""
    return max(candidates(found), key=lambda p: found[p][val].mean())


def baselines_of(found, layer, test, **more):
    """Baselines on the test items: `more`, raw pixels, and the untrained network, where they were probed."""
    for name, point in (("pixels", "pixels"), ("random_init", f"random:{layer}")):
        if point in found:
            more[name] = found[point][test]
    return more


def box_criterion(boxes, largest, split, sources, seed=0, **baselines):
    """The record of bbox_iou at the best point on val, from boxes {point: result of probe_boxes}."""
    test, iou = split["test"], {p: found[0] for p, found in boxes.items()}
    layer, constant = best_point(iou, split["val"]), largest[split["train"]].median(0).values
    baselines |= {
        "constant": box_iou(constant, largest[test]),
        "shuffled": boxes[layer][1][:, test],
        "shuffled_images": box_iou(boxes[layer][2][test.roll(1)], largest[test]),
    }
    about = {"layer": layer, "seed": seed, "options_searched": len(candidates(iou))}
    baselines = baselines_of(iou, layer, test, **baselines)
    return criterion(iou[layer][test], baselines, sources, blind="constant", **about)


def class_constant(items, largest, train):
    """Median training box of the class of the largest object of each item [n,4]."""
    biggest = [(i["boxes"][:, 2:] - i["boxes"][:, :2]).prod(1).argmax() for i in items]
    names = [i["labels"][k] for i, k in zip(items, biggest, strict=True)]
    of_any, of_class = largest[train].median(0).values, {}
    for name in set(names):
        known = [i for i in train.tolist() if names[i] == name]
        of_class[name] = largest[known].median(0).values if known else of_any
    return torch.stack([of_class[name] for name in names])


def mask_criterion(iou, shuffled, masks, side, split, sources, seed=0, **more):
    """The record of spatial_iou at the best point on val, of {point: IoU [n]}; shuffled: IoU of wrong labels.

    `shuffled` may beat other baselines without a leak: its threshold is chosen on true masks. side: tokens a
    side."""
    test, solid, layer = split["test"], masks >= 0.5, best_point(iou, split["val"])
    position = mask_scores(masks[split["train"]].mean(0).expand_as(masks), solid, split)
    h = side * max(-(-MASK // side), 1)
    coarse = F.interpolate(masks[:, None], (h, h), mode="bilinear")
    through = F.interpolate(coarse, (MASK, MASK), mode="bilinear")[:, 0]
    baselines = {
        "position_only": position[test],
        "all_foreground": mask_iou(torch.ones_like(solid), solid)[test],
        "shuffled": shuffled[test],
    }
    baselines = baselines_of(iou, layer, test, **baselines)
    upper_bound = mask_iou(through >= 0.5, solid)[test].mean().item()
    about = {"layer": layer, "seed": seed, "options_searched": len(candidates(iou))}
    return criterion(iou[layer][test], baselines, sources, upper_bound, **about, **more)


# ---------------------------------------------------------------- images


@dataclasses.dataclass
class Images:
    """Images and their ground truth, in the order of the features."""

    items: list
    split: dict
    seed: int
    largest: torch.Tensor  # [n, 4] xyxy, fractions of the image
    boxes: list  # (boxes [m, 4], class numbers [m]) of each image
    classes: list
    masks: torch.Tensor  # share of the foreground, [n, MASK, MASK]
    frames: torch.Tensor  # uint8 [n, IMAGE, IMAGE, 3]
    outlines: torch.Tensor  # bool [n, IMAGE, IMAGE]
    permuted: torch.Tensor  # [n]: another training image for each training image, for shuffled labels

    @property
    def solid(self):
        return self.masks >= 0.5

    @property
    def pixels(self):
        return self.frames.permute(0, 3, 1, 2).float() / 255

    @property
    def maps(self):
        outlines = self.outlines[:, None].float()
        return {"mask": self.masks[:, None], "image": self.pixels, "edge": outlines}

    @property
    def sources(self):
        return [self.items[i]["source"] for i in self.split["test"]]

    def about(self, layer, n_options):
        return {"layer": layer, "seed": self.seed, "options_searched": n_options}


def images_of(items, split, seed):
    largest, boxes, classes = box_truth(items)
    frames = torch.cat([frames_of(i, IMAGE) for i in items])
    permuted, train = torch.arange(len(items)), split["train"]
    permuted[train] = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))]
    masks = foreground(items, MASK)
    return Images(items, split, seed, largest, boxes, classes, masks, frames, edges(frames), permuted)


def grids_of(read, point, n):
    """The token grids of n images at a point of the features: `Lazy` [n, h, w, D]."""
    rows = torch.arange(n)
    return Lazy(lambda some: read_once(read, point, some)[:, 0], n, lambda: token_slices(read, point, rows))


def read_layer(x, images):
    """What is read from the tokens x [n,h,w,D] of a layer: kernel [n, n], tokens (pooled, with their grid),
    soft mask and image decoded from each token, and scores [n] of mask, edges and image."""
    split = images.split
    decoded = probe_cells(x, images.maps, split)
    soft, image = decoded["mask"][:, 0], to_images(decoded["image"])
    scored = torch.cat([split["val"], split["test"]])
    similarity = torch.zeros(len(image), dtype=torch.float64)
    similarity[scored] = ssim(image[scored], images.frames[scored])
    return {
        "kernel": gram(x, split["train"]),
        "tokens": token_components(x, split["train"]),
        "soft": soft,
        "image": image,
        "spatial_iou": mask_scores(soft, images.solid, split),
        "edge_probe_f1": edge_scores(decoded["edge"][:, 0], images.outlines, split, ("val", "test")),
        "recon_ssim": similarity,
    }


def solve_boxes(kernels, images):
    """`box_scores` of {name: kernel [n, n]}: one solve for all layers, labels and penalties."""
    train = images.split["train"]
    targets = box_targets(images.largest, images.split, images.seed)
    sources = [i["source"] for i in images.items]
    solved = solve_ridge(*spectrum(torch.stack(list(kernels.values())), train), targets, train, sources)
    found = {}
    for k, name in enumerate(kernels):
        found[name] = box_scores({task: boxes[k] for task, (boxes, _) in solved.items()}, images.largest)
    return found


def read_layers(images, read, points, name):
    """{point: result of read_layer, with `boxes`, `bbox_iou`} of features, one layer at a time."""
    layers, n = {}, len(images.items)
    for p in tqdm(points, desc=f"{name} ridges", unit="point"):
        layers[p] = read_layer(grids_of(read, p, n), images)
    for p, boxes in solve_boxes({p: row["kernel"] for p, row in layers.items()}, images).items():
        layers[p] |= {"boxes": boxes, "bbox_iou": boxes[0]}
    return layers


def scores_of(layers, key):
    return {p: row[key] for p, row in layers.items()}


def choose_layers(layers, val):
    """{criterion: layer} of a trained network, the best on val. The probe of mAP is costly: it has the two
    with the best boxes. recon_* has the layer of SSIM, decoder_* that of the boxes."""
    keys = ("bbox_iou", "spatial_iou", "edge_probe_f1", "recon_ssim")
    chosen = {key: best_point(scores_of(layers, key), val) for key in keys}
    ranked = sorted(candidates(layers), key=lambda p: -layers[p]["bbox_iou"][val].mean())
    return chosen | dict(zip(("map50", "map50_second"), ranked, strict=False))


def points_of(chosen, points):
    """The distinct layers of {criterion: layer}, in the order of `points`."""
    return [p for p in points if p in chosen.values()]


def check_untrained(points, there, folder):
    """Exit 2 if the features of the untrained network lack a chosen layer."""
    for p in points:
        if p not in there:
            fail(f"{folder} lacks the chosen layer {p!r}; extract it with the points that --choose writes")


def untrained_layers(images, read, points):
    """{random:<point>: result of read_layers} of the untrained network, at the chosen points alone."""
    check_untrained(points, read.index["points"], read.folder)
    return {f"random:{p}": row for p, row in read_layers(images, read, points, "untrained").items()}


def box_record(layers, images):
    """The record of bbox_iou; beside the baselines of `box_criterion`, principal components of the pixels."""
    split, largest, sources = images.split, images.largest, images.sources
    train, test = split["train"], split["test"]
    parts = components(*spectrum(gram(images.pixels, train)[None], train))[0]
    pixel_pca = solve_boxes({"pixel_pca": gram(parts, train)}, images)["pixel_pca"][0]
    of_class = box_iou(class_constant(images.items, largest, train), largest)
    baselines = {"pixel_pca": pixel_pca[test], "class_constant": of_class[test]}
    return box_criterion(scores_of(layers, "boxes"), largest, split, sources, images.seed, **baselines)


def edge_record(layers, layer, shuffled, images):
    """The record of edge_probe_f1 at a layer; shuffled: soft edges [n,S,S] of shuffled labels."""
    # Shuffled labels may score here without a leak: the threshold is chosen on true edges, and a token far
    # from the mean has a prediction far from the mean under any map.
    split, outlines = images.split, images.outlines
    test = split["test"]
    soft = {
        "position_only": outlines[split["train"]].float().mean(0).expand(len(outlines), -1, -1),
        "shuffled": shuffled,
        "upper_bound": outlines.float(),
    }
    beside = {name: edge_scores(x, outlines, split, ["test"])[test] for name, x in soft.items()}
    upper_bound = beside.pop("upper_bound").mean().item()  # the true edges, thinned
    found = scores_of(layers, "edge_probe_f1")
    baselines = baselines_of(found, layer, test, **beside)
    about = images.about(layer, len(candidates(layers)))
    return criterion(found[layer][test], baselines, images.sources, upper_bound, **about)


def reconstructions(layers, layer, side, shuffled, images):
    """{name: uint8 [n_test, IMAGE, IMAGE, 3]}: test images decoded at a layer, and baselines."""
    train, test = images.split["train"], images.split["test"]
    pixels = images.pixels
    # one colour a token
    colours = F.adaptive_avg_pool2d(pixels[test], side)
    blur = F.interpolate(colours, (IMAGE, IMAGE), mode="bilinear", antialias=True)
    mean_image = pixels[train].mean(0).expand(len(test), -1, -1, -1)
    # raw pixels are no baseline here: they would be a copy
    found = {"trained": layers[layer]["image"][test], "shuffled": to_images(shuffled[test])}
    found |= {"mean_image": to_images(mean_image), "blur": to_images(blur)}
    if f"random:{layer}" in layers:
        found["random_init"] = layers[f"random:{layer}"]["image"][test]
    return found


def reconstruction_records(decoded, layer, lpips, lpips_name, n_options, images):
    """{recon_<measure>: record} of `reconstructions`."""
    frames, records = images.frames[images.split["test"]], {}
    for key, measure, better, upper_bound in (
        (lpips_name, lpips, "lower", 0.0),
        ("ssim", ssim, "higher", 1.0),
        ("edge_f1", edge_f1, "higher", 1.0),
    ):
        scores = {name: measure(image.contiguous(), frames) for name, image in decoded.items()}
        own, about = scores.pop("trained"), images.about(layer, n_options)
        records[f"recon_{key}"] = criterion(own, scores, images.sources, upper_bound, better, **about)
    return records


def decode_images(jobs, images):
    """({name: uint8 [seeds, n_test, IMAGE, IMAGE, 3]}, parameters of one) of decoders of {name: [n,h,w,D]}.
    Those of one grid are trained together."""
    train, test = images.split["train"], images.split["test"]
    tokens = {name: token_components(x, train, side=DECODER["grid"]) for name, x in jobs.items()}
    found = {}
    for grid in dict.fromkeys(grid for _, grid in tokens.values()):
        same = [name for name in tokens if tokens[name][1] == grid]
        x = torch.stack([tokens[name][0] for name in same])
        decoded, parameters = train_decoder(x, images.frames, images.split, images.seed)
        found |= dict(zip(same, decoded[:, :, test], strict=True))
    return found, parameters


def decoder_records(jobs, others, lpips, lpips_name, layer, images):
    """({decoder_<measure>: record}, LPIPS [seeds, n_test]); jobs {trained, random_init, oracle: [n,h,w,D]};
    others: of `reconstructions`. blur and random_init are controls, not baselines."""
    frames = images.frames[images.split["test"]]
    found, parameters = decode_images(jobs, images)
    found |= {name: others[name][None] for name in ("mean_image", "blur")}
    found["shuffled_images"] = found["trained"].roll(1, 1)
    records, of_trained = {}, {}
    for name, measure, better, perfect in ((lpips_name, lpips, "lower", 0.0), ("ssim", ssim, "higher", 1.0)):
        scores = {k: torch.stack([measure(run.contiguous(), frames) for run in p]) for k, p in found.items()}
        own = of_trained[name] = scores["trained"]
        about = images.about(layer, 1) | {"parameters": parameters}
        about["controls"] = {k: scores[k].mean() for k in ("blur", "random_init") if k in scores}
        upper_bound, about["upper_bound_is"] = perfect, "a perfect copy"
        if "oracle" in scores:
            about["upper_bound_is"] = "the same decoder on the oracle's latents"
            upper_bound = scores["oracle"].mean().item()
        baselines = {k: scores[k] for k in ("mean_image", "shuffled_images")}
        sources = images.sources
        records[f"decoder_{name}"] = criterion(own, baselines, sources, upper_bound, better, **about)
    return records, of_trained[lpips_name]


def detection_record(layers, ranked, images):
    """The record of map50 at the better of the layers `ranked` on val; baselines are those of the first."""
    first, truth = ranked[0], images.boxes
    x, grid = layers[first]["tokens"]
    position = x[images.split["train"]].mean(0).expand_as(x)
    jobs = {(p, "sigmoid"): (layers[p]["tokens"], truth, False) for p in ranked}
    jobs[first, "softplus"] = layers[first]["tokens"], truth, True
    jobs["shuffled"] = layers[first]["tokens"], [truth[i] for i in images.permuted], False
    for name, point in (("pixels", "pixels"), ("random_init", f"random:{first}")):
        if point in layers:
            jobs[name] = layers[point]["tokens"], truth, False
    jobs["position_only"] = (position, grid), truth, False
    runs = {}
    for grid in tqdm(dict.fromkeys(t[1] for t, *_ in jobs.values()), desc="set prediction", unit="point"):
        same = {name: (t[0], *job) for name, (t, *job) in jobs.items() if t[1] == grid}
        parts = len(images.classes), images.split, images.seed, images.sources
        runs |= probe_sets(same, grid, truth, *parts)
    at_layers = [name for name in runs if isinstance(name, tuple)]
    best = max(at_layers, key=lambda name: runs[name]["val"].mean())
    names = ("shuffled", "pixels", "random_init", "position_only")
    baselines = {name: runs[name]["test"] for name in names if name in runs}
    about = {"layer": best[0], "size_code": best[1], "options_searched": 1 + len(ranked)}
    about["classes"] = len(images.classes)
    for code in ("sigmoid", "softplus"):
        about[f"{code}_sizes"] = runs[first, code]["test"].mean()
    about["without_early_stopping"] = runs[best]["last"].mean()
    found = runs[best]["test"]
    about["n"] = len(images.sources)
    return criterion(found, baselines, range(found.shape[1]), blind="position_only", **about)


def layer_table(layers, points, baseline, images):
    """{point: scores on test, and p of the gain over baseline {task: [n_test]}, adjusted over points}."""
    test, seed = images.split["test"], images.seed
    table, p = {}, {}
    for point in points:
        row = layers[point]
        table[point] = {"bbox_iou": row["bbox_iou"][test].mean()}
        table[point]["bbox_iou_val"] = row["bbox_iou"][images.split["val"]].mean()
        for task in ("spatial_iou", "edge_probe_f1", "recon_ssim"):
            table[point][task] = row[task][test].mean()
        for task in baseline:
            if f"random:{point}" in layers:
                table[point][f"{task}_random"] = layers[f"random:{point}"][task][test].mean()
            p[point, task] = paired_test(row[task][test], baseline[task], images.sources, seed=seed)["p"]
    for (point, task), adjusted in holm(p).items():
        table[point][f"{task}_p_holm"] = adjusted
    for point in points:
        _, low, high = mean_interval(layers[point]["bbox_iou"][test], images.sources)
        table[point] |= {"bbox_iou_low": low, "bbox_iou_high": high}
    return table


def ladder(layers, points, images):
    """({point: {ridge, mlp1: IoU on test}}, {probe: parameters})."""
    split, largest = images.split, images.largest
    test = split["test"]
    kernels = torch.stack([layers[p]["kernel"] for p in points])
    x = components(*spectrum(kernels, split["train"]))
    found, parameters = train_mlp(x, largest, split, seed=images.seed)
    iou = box_iou(found[..., test, :], largest[test]).mean((-1, -2))  # [L]
    rows = {}
    for p, mlp in zip(points, iou, strict=True):
        rows[p] = {"ridge": layers[p]["bbox_iou"][test].mean(), "mlp1": mlp}
    # ridge: in its dual form, with an intercept
    return rows, {"ridge": 4 * (len(split["train"]) + 1), "mlp1": parameters}


def space(images, layers, read, read_random, read_oracle):
    """All probes of images at the layers of read_layers. Returns (criteria, layers, decoded, tables)."""
    split, n, points = images.split, len(images.items), list(layers)
    train, val, test = split["train"], split["val"], split["test"]
    chosen = choose_layers(layers, val)
    if read_random:
        layers |= untrained_layers(images, read_random, points_of(chosen, points))
    lpips, lpips_name = load_lpips()

    masks, at = images.masks, chosen["spatial_iou"]
    wrong = {name: m[images.permuted] for name, m in images.maps.items()}
    shuffled = probe_cells(grids_of(read, at, n), wrong, split)
    side = {p: read.index["points"][p]["shape"][1] for p in points}
    of_shuffled = mask_scores(shuffled["mask"][:, 0], images.solid, split)
    scores = scores_of(layers, "spatial_iou")
    kind = "masks" if "mask" in images.items[0] else "boxes"
    about, criteria = (images.sources, images.seed), {"bbox_iou": box_record(layers, images)}
    record = mask_criterion(scores, of_shuffled, masks, side[at], split, *about, truth=kind)
    criteria["spatial_iou"] = record
    edge_layer = chosen["edge_probe_f1"]
    criteria["edge_probe_f1"] = edge_record(layers, edge_layer, shuffled["edge"][:, 0], images)
    at = chosen["recon_ssim"]
    decoded = reconstructions(layers, at, side[at], shuffled["image"], images)
    criteria |= reconstruction_records(decoded, at, lpips, lpips_name, len(candidates(points)), images)

    at = chosen["bbox_iou"]
    found = {"bbox_iou": layers[at], "spatial_iou": layers[chosen["spatial_iou"]]}
    scores = {task: row[task][test] for task, row in found.items()}
    outputs = {
        "boxes": layers[at]["boxes"][2][test].clone(),
        "true_boxes": images.largest[test].clone(),
        "masks": found["spatial_iou"]["soft"][test].clone(),
        "images": decoded["trained"].clone(),
        "sources": images.sources,
        "scores": dict(scores),  # gate.py screen pairs models by these
    }
    if side[at] == read.index["points"][at]["shape"][2]:  # square grids
        jobs = {"trained": grids_of(read, at, n)}
        for name, other, point in (("random_init", read_random, at), ("oracle", read_oracle, "latents")):
            jobs |= {name: grids_of(other, point, n)} if other else {}
        records, errors = decoder_records(jobs, decoded, lpips, lpips_name, at, images)
        criteria |= records
        outputs["scores"][f"decoder_{lpips_name}"] = errors

    ranked = [chosen[k] for k in ("map50", "map50_second") if k in chosen]
    criteria["map50"] = detection_record(layers, ranked, images)
    position = mask_scores(masks[train].mean(0).expand_as(masks), images.solid, split)
    constant = box_iou(images.largest[train].median(0).values, images.largest[test])
    baseline = {"bbox_iou": constant, "spatial_iou": position[test]}
    groups = strata(images.largest, train)
    tables = {"strata": by_stratum(groups, scores, baseline, test, *about)}
    tables["ladder"], tables["ladder_parameters"] = ladder(layers, points, images)
    return criteria, layer_table(layers, points, baseline, images), outputs, tables


# ---------------------------------------------------------------- clips


@dataclasses.dataclass
class Clips:
    """Moving clips and their ground truth, in the order of the features."""

    items: list
    split: dict  # of the clips that move
    direction: torch.Tensor  # index of DIRECTIONS [n], -1: still
    background: torch.Tensor | None  # the direction relative to the background, which moves by `camera`
    targets: dict  # {task: [n, c]}

    @property
    def sources(self):
        return [self.items[i]["source"] for i in self.split["test"]]

    @property
    def every_source(self):
        return [i["source"] for i in self.items]

    def correct(self, answer, truth=None):
        """1.0 where the largest of [n, 8] is the direction, else 0.0."""
        return (answer.argmax(1) == (self.direction if truth is None else truth)).float()

    def score(self, task, answer):
        """Score of each clip [n] of answers [n, c]."""
        if task == "direction_accuracy":
            return self.correct(answer)
        return r2_shares(answer, self.targets[task], self.split)


def clips_of(items, split):
    """`Clips`. Targets are the direction, and speed and camera where they vary in every part of the split."""
    moving = torch.tensor([i["direction"] != "still" for i in items])
    split = {k: v[moving[v]] for k, v in split.items()}
    numbers = {"still": -1} | {name: k for k, name in enumerate(DIRECTIONS)}
    true, background = torch.tensor([check_choice(i["direction"], numbers, "direction") for i in items]), None
    known = {}
    for key in ("speed", "camera"):
        if all(key in i for i in items):
            known[f"{key}_r2"] = torch.tensor([i[key] for i in items]).float().reshape(len(items), -1)
    if len(known) == 2:
        background = nearest_direction(unit_directions()[true] * known["speed_r2"] - known["camera_r2"])
    targets = {"direction_accuracy": F.one_hot(true.clamp(min=0), len(DIRECTIONS)).float()}
    for task, y in known.items():
        if all((y[part] != y[part[0]]).any() for part in split.values()):
            targets[task] = y
    return Clips(items, split, true, background, targets)


def best_reading(found, task, clips, pixels=False):
    """The (point, pooling) of read_motion with the highest mean score on val: of a layer, or of pixels."""
    options = [o for o in found if (o[0] == "pixels") == pixels]
    return max(options, key=lambda o: clips.score(task, found[o][task][0])[clips.split["val"]].mean())


def read_trained(pooled, points, clips, seed, frozen):
    """(read_motion of the trained network, for true and permuted targets, also applied to frozen clips;
    {task: the (point, pooling) that is best on val})."""
    train = clips.split["train"]
    targets = with_shuffled(clips.targets, train, seed)
    found = read_motion(pooled, points, targets, train, clips.every_source, frozen.values())
    return found, {task: best_reading(found, task, clips) for task in clips.targets}


def motion_criterion(task, at, readers, clips, still=(), seed=0):
    """(record, answers {name: [n, c]}) of one task at a (point, pooling).

    readers {name: result of read_motion}, among them `trained`. random_init is read at the same point and
    pooling, pixels and <frame>_frame at their best. still: frames of the frozen clips."""
    test, y, trained = clips.split["test"], clips.targets[task], readers["trained"]
    blind = "majority" if task == "direction_accuracy" else "constant"
    answers = {"trained": trained[at][task][0], blind: y[clips.split["train"]].mean(0).expand_as(y)}
    for name, found in readers.items():
        if name != "trained":
            where = at if name == "random_init" else best_reading(found, task, clips)
            answers[name] = found[where][task][0]
    answers |= {f"frozen_{frame}": trained[at][task][k] for k, frame in enumerate(still, 1)}
    if any(p == "pixels" for p, _ in trained):
        answers["pixels"] = trained[best_reading(trained, task, clips, pixels=True)][task][0]
    baselines = {name: clips.score(task, z)[test] for name, z in answers.items() if name != "trained"}
    shuffled = [clips.score(task, trained[at][f"{task}/{s}"][0])[test] for s in range(SEEDS)]
    baselines["shuffled"] = torch.stack(shuffled)
    about = {"layer": at[0], "pooling": at[1], "seed": seed}
    about["options_searched"] = sum(p != "pixels" for p, _ in trained)
    own = clips.score(task, answers["trained"])[test]
    return criterion(own, baselines, clips.sources, blind=blind, **about), answers


def frozen_records(answers, frozen, direction, clips, **where):
    """{frozen_<frame>: record} of the control; sets the direction's `leak` if the middle frame scores."""
    test, records = clips.split["test"], {}
    majority = {"majority": clips.correct(answers["majority"])[test]}
    for frame in frozen:
        score = clips.correct(answers[f"frozen_{frame}"])[test]
        records[f"frozen_{frame}"] = criterion(score, majority, clips.sources, **where)
    # The middle frame holds nothing about the direction; the first may. A tenth of the headroom is allowed:
    # the majority class of training may by chance be rare in test.
    if "middle" in frozen:
        low, baseline = records["frozen_middle"]["gain_low"], direction["baselines"]["majority"]
        if control_leaks(low, baseline, 1.0):
            direction["leak"] = direction["leak"] or "frozen_middle"
    return records


def flip_record(answers, pairs, clips, **where):
    """The record of direction_flip for the pairs of `twin_pairs`."""
    flipped = {name: flips(z.argmax(1), pairs) for name, z in answers.items()}
    score, permuted = flipped.pop("trained")
    baselines = {"permuted": permuted} | {name: f for name, (f, _) in flipped.items()}
    sources = [clips.items[i]["source"] for i in torch.cat(list(pairs.values()))[:, 0]]
    return criterion(score, baselines, sources, **where)


def motion_table(readers, frozen, pairs, clips, seed):
    """{point: {<score>_<pooling>: mean on test}}, with p of the gain over the majority class, adjusted."""
    test, items, task = clips.split["test"], clips.items, "direction_accuracy"
    y = clips.targets[task]
    majority = clips.correct(y[clips.split["train"]].mean(0).expand_as(y))[test]
    camera = test[torch.tensor([any(items[i].get("camera", ())) for i in test])]
    table, p = {point: {} for point, _ in readers["trained"]}, {}
    for (point, view), found in readers["trained"].items():
        z = found[task]
        correct = clips.correct(z[0])
        row = {name: clips.score(name, found[name][0])[test].mean() for name in clips.targets}
        row |= {f"frozen_{frame}": clips.correct(z[k])[test].mean() for k, frame in enumerate(frozen, 1)}
        for frame in frozen:
            trained_on_it = readers[f"{frame}_frame"][point, view][task][0]
            row[f"{frame}_frame"] = clips.correct(trained_on_it)[test].mean()
        if pairs:
            row["direction_flip"] = flips(z[0].argmax(1), pairs)[0].mean()
        if clips.background is not None and len(camera):
            row["camera_accuracy"] = correct[camera].mean()
            row["background_accuracy"] = clips.correct(z[0], clips.background)[camera].mean()
        table[point] |= {f"{name}_{view}": x for name, x in row.items()}
        table[point][f"{task}_{view}_p_holm"] = None  # below: adjusted over all
        p[point, view] = paired_test(correct[test], majority, clips.sources, seed=seed)["p"]
    for (point, view), adjusted in holm(p).items():
        table[point][f"{task}_{view}_p_holm"] = adjusted
    return table


def motion(args, items, split, pooled, pooled_random, points, frozen=None):
    """All probes of moving clips, from space-pooled features. Returns (criteria, layers, decoded).

    frozen {"first" | "middle": pooled features of clips that repeat this frame}. The probe of moving clips is
    applied to them (frozen_<frame>, a control); a probe trained on them is a baseline (<frame>_frame)."""
    frozen, clips = frozen or {}, clips_of(items, split)
    trained, chosen = read_trained(pooled, points, clips, args.seed, frozen)
    readers = {"trained": trained}
    test, targets, train = clips.split["test"], clips.targets, clips.split["train"]
    for frame, x in frozen.items():
        readers[f"{frame}_frame"] = read_motion(x, points, targets, train, clips.every_source)
    if pooled_random:  # only where a criterion is measured
        needed = points_of({task: p for task, (p, _) in chosen.items()}, points)
        check_untrained(needed, pooled_random, getattr(args, "random", None))
        readers["random_init"] = read_motion(pooled_random, needed, targets, train, clips.every_source)

    found = {}
    for task, at in chosen.items():
        found[task] = motion_criterion(task, at, readers, clips, frozen, args.seed)
    criteria = {task: record for task, (record, _) in found.items()}
    direction, answers = found["direction_accuracy"]
    where = {key: direction[key] for key in ("layer", "pooling", "options_searched")} | {"seed": args.seed}
    criteria |= frozen_records(answers, frozen, direction, clips, **where)
    pairs = twin_pairs(items, clips.direction, test)
    if pairs:
        criteria["direction_flip"] = flip_record(answers, pairs, clips, **where)
    decoded = {"correct": clips.correct(answers["trained"])[test], "sources": clips.sources}
    return criteria, motion_table(readers, frozen, pairs, clips, args.seed), decoded


def read_pooled(folder, points):
    """{point: {mean, max: [n, t, D]}} of a features folder; fails if a value is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    for p in points:
        if not all(x.isfinite().all() for x in pooled[p].values()):
            fail(f"{folder}/pooled.pt holds non-finite values at {p}; extract again in bf16 or fp32")
    return pooled


def read_frozen(folders, features, index, points):
    """{"first" | "middle": pooled features} of frozen clips in the order of `index`, of the same network."""
    found = {}
    for folder in folders:
        other, _ = load_features(folder)
        frame = load_yaml(Path(other["data_path"]) / "index.yaml", "data").get("freeze")
        if frame is None:
            fail(f"{folder} holds features of clips that are not frozen; use data.py moving --freeze")
        same = all(other[k] == index[k] for k in ("model", "weights")) and set(points) <= set(other["points"])
        if not same or set(other["ids"]) != set(index["ids"]):
            fail(f"{folder} and {features} do not have the same network, points and items; extract again")
        order = [other["ids"].index(i) for i in index["ids"]]
        pooled, found[frame] = read_pooled(folder, points), {}
        for p in points:
            found[frame][p] = {k: x[order] for k, x in pooled[p].items()}
    return found


# ---------------------------------------------------------------- comparison of results; chart


def read_results(folders):
    """{name: (probe.yaml, probe.pt, index of the features)} of results on the same test items."""
    found = {}
    for folder in map(Path, folders):
        result, scores = load_yaml(folder / "probe.yaml", "probe"), load_pt(folder / "probe.pt", RESULT)
        found[folder.name] = result, scores, load_yaml(folder / "features" / "index.yaml", "extract")
    if len(found) < 2:
        fail(f"--compare {' '.join(folders)}: give two or more folders of different names")
    first = next(iter(found))
    for name, (_, scores, _) in found.items():
        if scores["ids"] != found[first][1]["ids"]:
            fail(f"{name} and {first} have different test items; compare results of one data set")
    return found


def compare(folders, seed=0):
    """Results of folders on the same test items, with paired gains over the first and Holm's correction."""
    found = read_results(folders)
    first = next(iter(found))
    reference, rows, p_values = found[first][1], {}, {}
    # of images; of clips
    tasks = ("bbox_iou", "spatial_iou") if "scores" in reference else ("direction_accuracy",)
    for name, (result, scores, index) in found.items():
        row = rows[name] = {"model": result["model"], "size": index["size"]}
        row |= {k: index[k] for k in ("frames", "count") if k in index}
        for task in tasks:
            c = result["criteria"][task]
            grid = index["points"][c["layer"]]["shape"][1:3]
            row |= {task: c["score"], f"{task}_low": c["low"], f"{task}_high": c["high"]}
            row |= {f"{task}_baseline": c["baseline"], f"{task}_layer": c["layer"]}
            row[f"{task}_grid"] = f"{grid[0]}x{grid[1]}"
            if name != first:
                both = (x["scores"][task] if "scores" in x else x["correct"] for x in (scores, reference))
                test = paired_test(*both, reference["sources"], seed=seed)
                row |= {f"{task}_{k}": test[k] for k in ("gain", "gain_low", "gain_high")}
                p_values[name, task] = test["p"]
    for (name, task), p in holm(p_values).items():
        rows[name][f"{task}_p_holm"] = p
    result = {"stage": "probe-compare", "reference": first}
    for task in tasks:
        result[f"{task}_best"] = max(rows, key=lambda name: rows[name][task])
    for name, row in rows.items():
        result |= {f"{task}_{name}": row[task] for task in tasks}
    return result | {"rows": rows}


def draw_layers(axis, result):
    """Box IoU by layer; of the untrained network where it was measured."""
    layers = [p for p in result["layers"] if p != "pixels"]
    rows, at = [result["layers"][p] for p in layers], range(len(layers))
    axis.plot(at, [row["bbox_iou"] for row in rows], "o-", label="ridge, trained network")
    low, high = ([row[f"bbox_iou_{end}"] for row in rows] for end in ("low", "high"))
    axis.fill_between(at, low, high, alpha=0.2, label="95% interval")
    axis.plot(at, [result["ladder"][p]["mlp1"] for p in layers], "^-", label="MLP, trained network")
    measured = [k for k, row in enumerate(rows) if "bbox_iou_random" in row]
    if measured:
        scores = [rows[k]["bbox_iou_random"] for k in measured]
        axis.plot(measured, scores, "s", label="ridge, untrained network")
    for k, (name, value) in enumerate(result["criteria"]["bbox_iou"]["baselines"].items()):
        if name != "random_init":
            axis.axhline(value, lw=1, ls=":", color=f"C{k + 3}", label=f"baseline: {name.replace('_', ' ')}")
    axis.set(title="Largest box, by layer", ylabel="box IoU on test items")
    axis.set_xticks(list(at), layers, rotation=60, ha="right", fontsize=8)
    axis.legend(fontsize=8)


def draw_sizes(axis, result):
    """IoU of boxes and masks by size of the object."""
    strata_of = {name: row for name, row in result["strata"].items() if "bbox_iou" in row}
    for k, (task, label) in enumerate((("bbox_iou", "box"), ("spatial_iou", "mask"))):
        x = [i + 0.35 * k for i in range(len(strata_of))]
        rows = [[r[task], r[f"{task}_low"], r[f"{task}_high"]] for r in strata_of.values()]
        score = torch.tensor(rows).reshape(-1, 3)  # none with fewer than 5 items
        errors = (score[:, :1] - score[:, 1:]).abs().T.numpy()
        axis.bar(x, score[:, 0], 0.33, color=f"C{k}", label=f"{label}, 95% interval")
        axis.errorbar(x, score[:, 0].numpy(), errors, fmt="none", color="black", capsize=2)
        baseline = [r[f"{task}_baseline"] for r in strata_of.values()]
        label = "baseline: position only" if k else None
        axis.scatter(x, baseline, marker="_", s=200, color="red", zorder=3, label=label)
    names = [f"{name}\nn={row['n']}" for name, row in strata_of.items()]
    axis.set_xticks([i + 0.17 for i in range(len(names))], names, rotation=40, ha="right", fontsize=8)
    axis.set(title="By size of the object", ylabel="IoU on test items", ylim=(0, 1))
    axis.legend(fontsize=8, loc="lower right")


def draw_chart(result, path):
    """Write probe.png: scores by layer, and by size of the object."""
    plt = pyplot()
    figure, (along, by_size) = plt.subplots(1, 2, figsize=(15, 5), layout="constrained")
    draw_layers(along, result)
    draw_sizes(by_size, result)
    about = f"{result['test']} test items, {result['weights']} weights, {result['data']} data"
    figure.suptitle(f"{result['model']} on {result['data_name']}: {about}", fontsize=13)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--features", default="results/tiny/shapes/features", help="features folder of extract.py")
    add("--random", help="features of the untrained network at the chosen layers (--random-init), a baseline")
    add("--choose", metavar="FILE", help="write the layers that are best on val to this YAML, and stop")
    add("--oracle", help="features of the decoder's autoencoder (tiny-vae), upper bound of decoder_*")
    help_frozen = "features of the same clips, frozen (data.py moving --freeze): baselines and a control"
    add("--frozen", nargs="+", default=[], help=help_frozen)
    add("--data", help="data folder (default: that of the features)")
    add("--points", help="layers, separated by commas (default: all in the index)")
    add(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="compare results on the same items with those of the first",
    )
    add("--out", help="default: probe.yaml beside --features; compare.yaml beside the first of --compare")
    return p.parse_args(argv)


def check_points(args, index):
    """The points that --points names, or all."""
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        fail(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    return points


def load_others(args, index):
    """(features of the untrained network, of the oracle), None where not given; of the same items."""
    random = load_features(args.random)[1] if args.random and not args.choose else None
    if random and any(random.index.get(k) != index.get(k) for k in ("ids", "shown")):
        fail(f"{args.random} and {args.features} do not hold the same items; extract both again")
    oracle = load_features(args.oracle)[1] if args.oracle else None
    if oracle and (oracle.index["ids"] != index["ids"] or "latents" not in oracle.index["points"]):
        fail(f"{args.oracle} has no latents of these items; extract an autoencoder on the same --data")
    return random, oracle


def probe_images(args, items, split, read, points, random, oracle):
    """Result of `space` at the points with a token grid; with --choose {criterion: layer}."""
    grids = with_grid(read.index)
    gridless = [p for p in points if p not in grids]
    points = [p for p in points if p in grids]
    if not candidates(points):
        others = ", ".join(candidates(grids)) or "other features"
        fail(f"{', '.join(gridless) or 'pixels'}: no layer with a token grid; give --points of {others}")
    if gridless:
        print(f"left out (no token grid): {', '.join(gridless)}")
    images = images_of(items, split, args.seed)
    layers = read_layers(images, read, points, "trained")
    return choose_layers(layers, split["val"]) if args.choose else space(images, layers, read, random, oracle)


def probe_clips(args, items, split, index, points, random):
    """Result of `motion` and no tables; with --choose {criterion: layer}."""
    pooled, frozen = (
        read_pooled(args.features, points),
        read_frozen(args.frozen, args.features, index, points),
    )
    if args.choose:
        clips = clips_of(items, split)
        _, chosen = read_trained(pooled, points, clips, args.seed, frozen)
        return {task: point for task, (point, _) in chosen.items()}
    there = [p for p in points if random and p in random.index["points"]]
    pooled_random = read_pooled(args.random, there) if random else None
    return *motion(args, items, split, pooled, pooled_random, points, frozen), {}


def headline(criteria, random):
    """The first keys of probe.yaml: each score with its interval, baseline and layer."""
    found = {}
    for name, c in criteria.items():
        found |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"]}
        found |= {f"{name}_baseline": c["baseline"], f"{name}_layer": c["layer"]}
    leaks = [f"{c['leak']} on {name}" for name, c in criteria.items() if c["leak"]]
    found["leak"] = f"a control scores what it cannot know: {', '.join(leaks)}" if leaks else None
    if random is None:
        found |= {"random_init_baseline": None, "random_init_reason": "no --random features were given"}
    return found


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
    out = Path(args.choose or args.out or Path(args.features).parent / "probe.yaml")
    check_writable(out)
    points = check_points(args, index)
    random, oracle = load_others(args, index)
    if args.frozen and "direction" not in items[0]:
        fail(f"--frozen is for clips, but {index['data_path']} has no directions; leave it out")
    if "direction" in items[0]:
        found = probe_clips(args, items, split, index, points, random)
    elif "boxes" in items[0]:
        found = probe_images(args, items, split, read, points, random, oracle)
    else:
        fail(f"{index['data_path']} has neither boxes nor directions; probe.py needs one of them")
    if args.choose:
        result = {"stage": "probe", "points": ",".join(points_of(found, index["points"])), "layers": found}
        save_yaml(out, result)
        print_summary(result)
        return result

    criteria, layers, decoded, tables = found
    result = {"stage": "probe"} | {key: index[key] for key in ("model", "weights", "data")}
    result |= {"data_name": data["name"], "items": len(items), **{k: len(v) for k, v in split.items()}}
    result |= {"oracle": oracle.index["model"]} if oracle else {}
    result |= headline(criteria, args.random) | {"criteria": criteria, "layers": layers, **tables}
    result["run"] = run_info(args, started, script="probe.py")
    ids = [items[i]["id"] for i in split["test"]]
    save_pt(out.with_suffix(".pt"), RESULT, ids, {"stage": "probe"}, **decoded)
    save_yaml(out, result)
    if "ladder" in result:
        draw_chart(plain(result), out.with_suffix(".png"))
    print_summary(result)
    return result


if __name__ == "__main__":
    main()
