"""Probes: simple decoders of frozen features. Features in, predictions out; scores are in metrics.py."""

import dataclasses
import math

import torch
from torch.nn import functional as F

import metrics
import stats
from common import check_choice

COMPONENTS, TOKEN = 256, 128  # principal components of the flattened grid and of a token, for trained probes
SEEDS, STEPS, HIDDEN = 5, 240, 64  # of the MLP
DECODER = {"seeds": 3, "steps": 240, "hidden": 128}
DECODER |= {"grid": 16, "components": 128}  # tokens a side, components of their pixels, at most

# ---------------------------------------------------------------- closed form


def shuffled_targets(y, train, seed):
    """{true, shuffled0 ... shuffled4}: targets [n, c], and copies with those of training items permuted."""
    g, targets = torch.Generator().manual_seed(seed), {"true": y}
    for s in range(SEEDS):
        order = train[torch.randperm(len(train), generator=g)]
        targets[f"shuffled{s}"] = y.index_copy(0, train, y[order])
    return targets


def probe_boxes(kernels, largest, split, sources, seed=0):
    """{layer: {boxes [n,4], bbox_iou [n], shuffled: IoU of shuffled labels [SEEDS, n]}} of Gram matrices
    {layer: [n, n]}. One ridge for all layers, labels and penalties; the token grid is flattened."""
    targets = shuffled_targets(largest, split["train"], seed)
    kernel = stats.spectrum(torch.stack(list(kernels.values())), split["train"])
    solved = stats.solve_ridge(*kernel, targets, split["train"], sources)
    found = {}
    for k, layer in enumerate(kernels):
        boxes = {task: z[k].clamp(0, 1) for task, (z, _) in solved.items()}
        iou = {task: metrics.box_iou(b, largest) for task, b in boxes.items()}
        found[layer] = {"boxes": boxes["true"], "bbox_iou": iou.pop("true")}
        found[layer]["shuffled"] = torch.stack(list(iou.values()))
    return found


def cells_of(maps, h, w):
    """The part of maps [n,c,S,S] in each cell of an h x w grid, resized to whole pixels: [n, h*w, c*s*s]."""
    s = -(-maps.shape[-1] // h)
    fine = F.interpolate(maps, (h * s, w * s), mode="bilinear", align_corners=False, antialias=True)
    return metrics.to_cells(fine, h, w)


def probe_cells(x, maps, split):
    """Token-wise ridge from x [n,h,w,D], a tensor or `stats.Lazy`, to each token's cell of maps [n,c,S,S]:
    the predicted maps."""
    h, w = x[split["train"][:1]].shape[1:3]
    tokens, cells = stats.Lazy(lambda rows: x[rows].flatten(1, 2), len(x)), cells_of(maps, h, w)
    found = stats.token_ridge(tokens, {"cells": cells}, split["train"], split["val"])["cells"]
    return metrics.from_cells(found, h, w, *maps.shape[1:3])


# ---------------------------------------------------------------- trained: runs share no weight, all at once


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


def start_of_mlps(jobs, seeds, widths, scale, generator):
    """Weights [jobs, seeds, ...] of MLPs of widths (inputs, hidden, outputs): every job starts alike."""
    inputs, hidden, outputs = widths
    weights = {
        "in": torch.randn(seeds, inputs, hidden, generator=generator) * inputs**-0.5,
        "in_bias": torch.zeros(seeds, 1, hidden),
        "out": torch.randn(seeds, hidden, outputs, generator=generator) * scale * hidden**-0.5,
        "out_bias": torch.zeros(seeds, 1, outputs),
    }
    return {name: w.repeat(jobs, 1, 1, 1) for name, w in weights.items()}


def run_mlps(x, weights):
    """x [jobs, rows, inputs] -> [jobs, seeds, rows, outputs]."""
    hidden = (x[:, None] @ weights["in"] + weights["in_bias"]).relu()
    return hidden @ weights["out"] + weights["out_bias"]


def token_components(x, train, side, most=TOKEN):
    """Principal components [n, K, most] of tokens [n,h,w,D], a tensor or `stats.Lazy`, pooled to at most
    `side` a side and standardised; and their grid (h, w)."""
    rows = torch.arange(len(x))
    h, w = (min(s, side) for s in x[rows[:1]].shape[1:3])
    pooled = []  # one part of the items in memory
    for part in stats.chunks(rows, x):
        pooled.append(F.adaptive_avg_pool2d(x[part].permute(0, 3, 1, 2), (h, w)))
    x = torch.cat(pooled).permute(0, 2, 3, 1).flatten(1, 2)
    x = (x - x[train].mean((0, 1))) / x[train].flatten(0, 1).std(0).clamp(min=1e-6)
    if x.shape[-1] > most:
        rows = x[train].flatten(0, 1)
        x = rotated(x @ torch.linalg.eigh((rows.T @ rows).double())[1][:, -most:].float())
    return F.pad(x, (0, most - x.shape[-1])), (h, w)


def train_mlp(x, largest, split, seeds=SEEDS, steps=STEPS, batch=100, seed=0, only=None):
    """Boxes [L, seeds, n, 4] of MLPs on components x [L, n, r], all trained at once by 5 L1 + 2 GIoU, as in
    DETR. only: train this seed alone."""
    g = torch.Generator().manual_seed(seed)
    weights = start_of_mlps(len(x), seeds, (x.shape[-1], HIDDEN, 4), 1, g)
    if only is not None:
        weights = {name: w[:, only : only + 1].clone() for name, w in weights.items()}

    def boxes(items):
        code = run_mlps(x[:, items], weights)
        centre, size = code[..., :2].sigmoid(), (code[..., 2:] - 1).sigmoid()
        return torch.cat([centre - size / 2, centre + size / 2], -1)

    def loss_of(items):
        found, truth = boxes(items), largest[items]
        return (5 * (found - truth).abs().sum(-1) + 2 * metrics.giou_loss(found, truth)).mean(-1)

    fit(weights, loss_of, split, steps, 1e-2, batch, g)
    return boxes(slice(None)).clamp(0, 1)


def train_decoder(x, frames, split, seed=0, batch=16):
    """Test images uint8 [J, seeds, n_test, S, S, 3] of decoders of tokens x [J, n, K, r], K a square grid.
    Each decodes token by token, by an MLP, principal components of a cell's pixels, by squared error."""
    side, train, g = math.isqrt(x.shape[2]), split["train"], torch.Generator().manual_seed(seed)
    cells = cells_of(frames.permute(0, 3, 1, 2).float() / 255, side, side)  # [n, K, c]
    mean, size = cells[train].mean((0, 1)), cells.shape[-1] ** 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        most = min(DECODER["components"], cells.shape[-1])
        basis = torch.svd_lowrank((cells[train] - mean).flatten(0, 1), most)[2]  # [c, most]
    target = (cells - mean) @ basis / size  # its squared error is that of a pixel
    del cells
    widths = x.shape[3], DECODER["hidden"], most
    # the start is close to the mean image
    weights = start_of_mlps(len(x), DECODER["seeds"], widths, 0.05, g)

    def decode(items):
        return run_mlps(x[:, items].flatten(1, 2), weights).unflatten(2, (-1, side**2))

    def loss_of(items):
        return (decode(items) - target[items]).square().sum(-1).mean((2, 3))

    fit(weights, loss_of, split, DECODER["steps"], 4e-3, batch, g)
    images = (decode(split["test"]) * size @ basis.T + mean).flatten(0, 2)
    images = metrics.from_cells(images, side, side, 3, frames.shape[1]).clamp(0, 1).mul(255).round().byte()
    return images.permute(0, 2, 3, 1).unflatten(0, (len(x), DECODER["seeds"], -1))


def decode_images(jobs, frames, split, seed=0):
    """{name: test images uint8 [seeds, n_test, S, S, 3]} of decoders of {name: tokens [n,h,w,D]}, and of
    controls. blur: one colour a token. Decoders of one grid are trained together."""
    tokens = {name: token_components(x, split["train"], DECODER["grid"]) for name, x in jobs.items()}
    pixels, side = frames.permute(0, 3, 1, 2).float(), jobs["trained"][split["test"][:1]].shape[1]
    colours = F.adaptive_avg_pool2d(pixels[split["test"]], side)
    found = {"blur": F.interpolate(colours, pixels.shape[-1], mode="bilinear")}
    found["mean_image"] = pixels[split["train"]].mean(0).expand_as(found["blur"])
    found = {name: x.round().byte().permute(0, 2, 3, 1)[None] for name, x in found.items()}
    for grid in dict.fromkeys(grid for _, grid in tokens.values()):
        same = [name for name in tokens if tokens[name][1] == grid]
        decoded = train_decoder(torch.stack([tokens[name][0] for name in same]), frames, split, seed)
        found |= dict(zip(same, decoded, strict=True))
    return found | {"shuffled_images": found["trained"].roll(1, 1)}


# ---------------------------------------------------------------- motion of clips, from pooled features

# y points down
DIRECTIONS = {"down": (0, 1), "down left": (-1, 1), "down right": (1, 1), "left": (-1, 0), "right": (1, 0)}
DIRECTIONS |= {"up": (0, -1), "up left": (-1, -1), "up right": (1, -1)}


@dataclasses.dataclass
class Clips:
    """Moving clips, in the order of the features."""

    split: dict  # of the clips that move
    seed: int
    direction: torch.Tensor  # index of DIRECTIONS [n], -1: still
    sources: list

    @property
    def code(self):
        return F.one_hot(self.direction.clamp(min=0), len(DIRECTIONS)).float()

    def correct(self, answer):
        """1.0 where the largest of [n, 8] is the direction, else 0.0."""
        return (answer.argmax(1) == self.direction).float()

    def record(self, scores, baselines, **more):
        sources = [self.sources[i] for i in self.split["test"]]
        return stats.criterion(scores, baselines, sources, seed=self.seed, **more)


def clips_of(items, split, seed):
    numbers = {"still": -1} | {name: k for k, name in enumerate(DIRECTIONS)}
    true = torch.tensor([check_choice(i["direction"], numbers, "direction") for i in items])
    split = {part: rows[true[rows] >= 0] for part, rows in split.items()}
    return Clips(split, seed, true, [item["source"] for item in items])


def poolings(pooled):
    """Features of a clip [n, ...] from space-pooled ones: mean over time, all time steps, change, maximum."""
    x = pooled["mean"]
    change = torch.cat([x[:, -1] - x[:, 0], x.mean(1)], -1)
    return {"mean": x.mean(1), "time": x.flatten(1), "change": change, "max": pooled["max"].flatten(1)}


def read_motion(pooled, points, clips, also=(), shuffled=False):
    """Ridge from every pooling of every point to the direction: {(point, pooling): {target: answers
    [1 + also, n, 8]}}, of the true and (`shuffled`) of permuted directions.

    pooled {point: {mean, max: [n, t, D]}} trains the map; it is also applied to each of `also`."""
    train, n, found = clips.split["train"], len(clips.sources), {}
    targets = shuffled_targets(clips.code, train, clips.seed) if shuffled else {"true": clips.code}
    for point in points:
        views = [poolings(p[point]) for p in (pooled, *also)]
        for view in views[0]:
            x = torch.cat([v[view] for v in views])
            answers = stats.ridge(x, targets, train, clips.sources * len(views))
            found[point, view] = {name: z.unflatten(0, (-1, n)) for name, z in answers.items()}
    return found


def best_reading(found, clips, pixels=False):
    """The (point, pooling) of read_motion with the highest accuracy on val: of a layer, or of pixels."""
    options = [o for o in found if (o[0] == "pixels") == pixels]
    return max(options, key=lambda o: clips.correct(found[o]["true"][0])[clips.split["val"]].mean())
