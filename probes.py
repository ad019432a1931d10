"""Probes: simple decoders of frozen features. Features in, predictions out; scores are in metrics.py."""

import dataclasses
import functools
import math

import numpy as np
import torch
import torch.utils.checkpoint
from torch.nn import functional as F

import metrics
import stats
from common import check_choice

COMPONENTS, TOKEN = 256, 128  # principal components of the flattened grid and of a token, for trained probes
SEEDS, STEPS, HIDDEN = 5, 240, 64  # of the MLP
DECODER = {"seeds": 3, "steps": 240, "hidden": 128}
DECODER |= {"grid": 16, "components": 128}  # tokens a side, components of their pixels, at most

# ---------------------------------------------------------------- closed form


def permuted(train, n, generator):
    """Rows 0 ... n - 1, of which those of `train` are permuted."""
    order = torch.arange(n)
    order[train] = train[torch.randperm(len(train), generator=generator)]
    return order


def shuffled_targets(y, train, seed):
    """{true, shuffled0 ... shuffled4}: targets [n, c], and copies with those of training items permuted."""
    g, targets = torch.Generator().manual_seed(seed), {"true": y}
    for s in range(SEEDS):
        targets[f"shuffled{s}"] = y[permuted(train, len(y), g)]
    return targets


def probe_boxes(kernels, largest, split, sources, seed=0):
    """{layer: {boxes [n,4], bbox_iou [n], shuffled: IoU of shuffled labels [SEEDS, n]}} of Gram matrices
    {layer: [n, n]}. One ridge for all layers, labels and penalties; the token grid is flattened. Items
    without a box are left out, and their IoU is nan."""
    split, there = metrics.with_boxes(split, largest), metrics.box_iou(largest, largest) > 0
    targets = shuffled_targets(largest, split["train"], seed)
    kernel = stats.spectrum(torch.stack(list(kernels.values())), split["train"])
    solved = stats.solve_ridge(*kernel, targets, split["train"], sources)
    found = {}
    for k, layer in enumerate(kernels):
        boxes = {task: z[k].clamp(0, 1) for task, (z, _) in solved.items()}
        iou = {task: metrics.box_iou(b, largest).where(there, torch.nan) for task, b in boxes.items()}
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
        rows = (cells[train] - mean).flatten(0, 1)
        basis = torch.svd_lowrank(rows, min(DECODER["components"], *rows.shape))[2]  # [c, components]
    target = (cells - mean) @ basis / size  # its squared error is that of a pixel
    del cells, rows
    widths = x.shape[3], DECODER["hidden"], basis.shape[1]
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


# ---------------------------------------------------------------- set prediction (DETR, Carion et al. 2020)

SET_TOKEN = 64  # components of a token
LEAST_QUERIES = 25
ATTENTION = 2**24  # weights of tokens at a time; more are computed in parts and again for the gradient


def applied(x, weight):
    """One matrix per run: x [R, n, Q, m], weight [R, m, o] -> [R, n, Q, o]."""
    return torch.einsum("rnqm,rmo->rnqo", x, weight)


def token_axis(tokens):
    """Centres of a row of tokens, fractions of the image."""
    return (torch.arange(tokens) + 0.5) / tokens


def token_centres(h, w):
    """Centres (x, y) of the cells of an h x w grid, fractions of the image: [h * w, 2]."""
    ys, xs = torch.meshgrid(token_axis(h), token_axis(w), indexing="ij")
    return torch.stack([xs, ys], -1).reshape(-1, 2)


def queries_per_side(truth):
    """Side g of the grid of g * g queries: enough for the fullest image, and four for each mean object."""
    counts = [len(boxes) for boxes, *_ in truth]
    return math.ceil(max(LEAST_QUERIES, max(counts), 4 * sum(counts) / len(counts)) ** 0.5)


class SetProbe(torch.nn.Module):
    """Queries attend to frozen tokens and predict (box, class or nothing). First axis: R = J jobs x S seeds.

    The queries' reference points are a grid. A query attends by the softmax of a linear score of the tokens
    plus the logarithm of a Gaussian around its point (SMCA, Gao et al. 2021). A box is centred where its
    query attends, plus an offset. tables [J]: the number of each job's tokens. softplus [J]: jobs with box
    sizes by softplus.
    """

    def __init__(self, dim, classes, side, seeds, tables=(0,), softplus=(False,), width=32, seed=0):
        super().__init__()
        g, jobs = torch.Generator().manual_seed(seed), len(tables)

        def weight(*shape, scale=None):
            one = torch.randn(seeds, *shape, generator=g) * (scale or shape[-2] ** -0.5)
            return torch.nn.Parameter(one.repeat(jobs, *[1] * len(shape)))  # the same start for every job

        self.side = side
        self.register_buffer("axis", token_axis(side))
        self.register_buffer("reference", token_centres(side, side))  # [Q, 2]
        self.register_buffer("table", torch.tensor(tables).repeat_interleave(seeds))
        self.register_buffer("softplus", torch.tensor(softplus).repeat_interleave(seeds)[:, None, None, None])
        self.score = weight(dim, 1, scale=0.01)
        self.offset = weight(1, 2, scale=0.1)  # of the Gaussian, in steps of the grid of queries
        self.log_width = torch.nn.Parameter(torch.full((jobs * seeds, 1, 1), math.log(0.3)))
        self.query = weight(side**2, width, scale=0.02)
        self.value = weight(dim + 6, width)
        self.up, self.down = weight(width, 2 * width), weight(2 * width, width, scale=0.3 * width**-0.5)
        self.box, self.name = weight(width, 4, scale=0.01), weight(width, classes + 1)

    def gaussians(self, tokens, axis, runs):
        """Weights [runs, side, tokens] of the tokens along an axis (0: x, 1: y) for the queries along it."""
        points, at = (self.axis + self.offset[runs, :, axis] / self.side)[..., None], token_axis(tokens)
        return (-((points - at) * self.side / self.log_width[runs].exp()).square() / 2).softmax(-1)

    def attend(self, x, runs):
        """Means of tokens x [n, h, w, D], of places and of squared places, weighted by the attention of some
        runs: [runs, n, Q, D + 4]. Gaussians are separable: rows are summed first, then columns."""
        n, h, w, _ = x.shape
        score = torch.einsum("nhwd,rdo->nhrow", x, self.score[runs])
        score = (score - score.amax((1, 4), keepdim=True)).clamp(min=-30).exp()  # [n, h, runs, 1, w]
        places = token_centres(h, w).unflatten(0, (h, w))
        more = torch.cat([places, places.square(), torch.ones(h, w, 1)], -1).expand(n, -1, -1, -1)
        rows = (score * self.gaussians(w, 0, runs)).flatten(2, 3) @ torch.cat([x, more], -1)
        rows = rows.unflatten(2, (len(runs), self.side))  # [n, h, runs, side, D + 5]
        sums = torch.einsum("nhrxd,ryh->rnyxd", rows, self.gaussians(h, 1, runs)).flatten(2, 3)
        return sums[..., :-1] / sums[..., -1:]

    def attend_in_parts(self, x, runs):
        """`attend` with bounded memory."""
        parts = -(-x[..., 0].numel() * len(runs) * self.side // ATTENTION)
        if parts == 1:
            return self.attend(x, runs)
        again = functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False)
        return torch.cat([again(self.attend, part, runs) for part in x.chunk(parts)], 1)

    def forward(self, tokens):
        """Tokens [n, h, w, D] per table -> boxes [R, n, Q, 4] xyxy in 0..1, logits [R, n, Q, classes + 1].

        The last class is `nothing`."""
        runs = [(self.table == k).nonzero().flatten() for k in range(len(tokens))]
        attended = [self.attend_in_parts(x, some) for x, some in zip(tokens, runs, strict=True)]
        attended = torch.cat(attended)[torch.cat(runs).argsort()]  # in the order of the runs
        content, place, square = attended.split((attended.shape[-1] - 4, 2, 2), -1)
        spread = (square - place.square()).clamp(min=1e-6).sqrt()
        local = [(place - self.reference) * self.side, spread * self.side, 2 * place - 1]
        q = self.query[:, None] + applied(torch.cat([content, *local], -1), self.value)
        hidden = applied(F.layer_norm(q, q.shape[-1:]), self.up).relu()
        q = q + applied(hidden, self.down)
        code = applied(q, self.box)
        centre, size = place + code[..., :2] / self.side, code[..., 2:] - 2
        size = torch.where(self.softplus, F.softplus(size), size.sigmoid())
        return torch.cat([centre - size / 2, centre + size / 2], -1), applied(q, self.name)


def padded_truth(truths, nothing):
    """J lists of n (boxes [m, 4], classes [m]) -> boxes [J, n, most, 4], classes [J, n, most]; the rest is
    `nothing`."""
    images, pad = [image for truth in truths for image in truth], F.pad
    most = max(1, *(len(boxes) for boxes, *_ in images))
    boxes = torch.stack([pad(boxes, (0, 0, 0, most - len(boxes))) for boxes, *_ in images])
    names = torch.stack([pad(names, (0, most - len(names)), value=nothing) for _, names, *_ in images])
    return boxes.unflatten(0, (len(truths), -1)), names.unflatten(0, (len(truths), -1))


def match(cost, counts):
    """Hungarian matching of cost [R, n, Q, m], with counts [R, n] of objects: (run, image, query, object)."""
    from scipy.optimize import linear_sum_assignment

    found, cost = [], cost.cpu().numpy()
    for run, of_images in enumerate(counts.tolist()):
        for image, count in enumerate(of_images):
            queries, objects = linear_sum_assignment(cost[run, image, :, :count])
            place = np.full((2, len(queries)), [[run], [image]])
            found.append(np.concatenate([place, [queries, objects]]))
    return torch.from_numpy(np.concatenate(found, 1).astype(np.int64))


def set_loss(boxes, logits, true_boxes, true_names):
    """DETR's loss [R]: Hungarian matching, then 5 L1 + 2 GIoU + cross-entropy with weight 0.1 on `nothing`.

    Predictions [R, n, Q, ...] of `SetProbe`; truth [J, n, m, ...] of `padded_truth`, R / J runs a job.
    """
    nothing, repeats = logits.shape[-1] - 1, len(logits) // len(true_names)
    true_boxes, true_names = (z.repeat_interleave(repeats, 0) for z in (true_boxes, true_names))
    with torch.no_grad():
        a, b = boxes[:, :, :, None], true_boxes[:, :, None]
        names = true_names[:, :, None].expand(-1, -1, logits.shape[2], -1)
        likely = logits.softmax(-1).gather(-1, names)
        cost = 5 * torch.cdist(boxes, true_boxes, p=1) + 2 * metrics.giou_loss(a, b) - likely
        matches = match(cost, (true_names != nothing).sum(-1)).to(boxes.device)
    run, image, query, true = matches  # of shape [pairs]
    target = torch.full(logits.shape[:-1], nothing, device=logits.device)
    target[run, image, query] = true_names[run, image, true]
    found, wanted = boxes[run, image, query], true_boxes[run, image, true]
    per_box = 5 * (found - wanted).abs().sum(-1) + 2 * metrics.giou_loss(found, wanted)
    matched = torch.bincount(run, minlength=len(logits)).clamp(min=1)
    regression = torch.zeros(len(logits), device=boxes.device).index_add(0, run, per_box) / matched
    weight = torch.where(target == nothing, 0.1, 1.0)
    entropy = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    return regression + (entropy.view_as(weight) * weight).sum((1, 2)) / weight.sum((1, 2))


def principal_tokens(x, train, most=SET_TOKEN):
    """Principal components [n, h, w, r <= most] fp16 of tokens [n, h, w, D], a tensor or `stats.Lazy`.

    Tokens are standardised; the components are fitted on the first training items. They are rotated to
    similar scales: AdamW trains badly on others, and whitening would amplify noise.
    """
    count = x[train[:1]][..., 0].numel()
    some, squares = train[: max(64, 2**16 // count)], 0
    mean, std = token_moments(x, some)
    for rows in stats.chunks(some, x):
        part = ((x[rows] - mean) / std).flatten(0, 2)
        squares = squares + (part.T @ part).double()
    vectors = torch.linalg.eigh(squares)[1][:, -most:].float()
    noise = torch.randn(2 * vectors.shape[1:], generator=torch.Generator().manual_seed(0))
    vectors = vectors @ torch.linalg.qr(noise)[0]
    found = torch.empty(len(x), *x[train[:1]].shape[1:3], vectors.shape[1], dtype=torch.float16)
    for rows in stats.chunks(torch.arange(len(x)), x):
        found[rows] = (((x[rows] - mean) / std) @ vectors).half()
    return found


def token_moments(x, rows):
    """(mean, standard deviation) [D] of the tokens [n, h, w, D] of some items, read in chunks."""
    parts, count = stats.chunks(rows, x), x[rows[:1]][..., 0].numel() * len(rows)
    total, squares = 0, 0
    for part in parts:
        total = total + x[part].sum((0, 1, 2), dtype=torch.float64)
    mean = (total / count).float()
    for part in parts:
        squares = squares + (x[part] - mean).square().sum((0, 1, 2), dtype=torch.float64)
    return mean, (squares / count).sqrt().float().clamp(min=1e-6)


def clip_gradients(parameters):
    """Scale the gradient of every run (first axis) to a norm of at most 1."""
    norm = sum(p.grad.flatten(1).square().sum(1) for p in parameters).sqrt()
    for p in parameters:
        p.grad /= norm.clamp(min=1).view(-1, *[1] * (p.ndim - 1))


def without_duplicates(boxes, names, scores):
    """Scores [R, n, Q] that are 0 where a surer box of the same class overlaps by more than 0.5 of the union.

    One-to-one matching alone would need attention among queries, and more training images, to unlearn them.
    """
    overlap = metrics.box_iou(boxes[:, :, :, None], boxes[:, :, None])
    same = (overlap > 0.5) & (names[..., None] == names[:, :, None])
    surer = scores[:, :, None] > scores[..., None]
    return torch.where((same & surer).any(-1), 0.0, scores)


def distinct_tokens(jobs):
    """(The distinct tensors of tokens of some jobs, the number of each job's tensor)."""
    ids = [id(tokens) for tokens, *_ in jobs]
    first = list(dict.fromkeys(ids))
    return [jobs[ids.index(i)][0] for i in first], [first.index(i) for i in ids]


def train_set_probe(jobs, classes, train, val, seeds=5, steps=800, batch=16, rate=2e-2, seed=0):
    """Train R = J jobs x S seeds probes at once, with early stopping on val. Returns predict(rows,
    tokens=None) -> (boxes [R, n, Q, 4], classes [R, n, Q], scores).

    jobs: (tokens [n, h, w, D], truth, softplus); truth per item (boxes [m, 4] in 0..1, classes [m]). Jobs of
    the same tensor share it. tokens: other tokens than those of the jobs.
    """
    tables, numbers = distinct_tokens(jobs)
    moments, dim = [token_moments(x, train) for x in tables], max(x.shape[-1] for x in tables)
    true_boxes, true_names = padded_truth([truth for _, truth, _ in jobs], classes)
    side, softplus = queries_per_side(jobs[0][1]), [softplus for *_, softplus in jobs]
    model = SetProbe(dim, classes, side, seeds, numbers, softplus, seed=seed)

    def inputs(rows, tokens=None):
        found = []
        for x, (mean, std) in zip(tables, moments, strict=True):
            x = ((x if tokens is None else tokens)[rows] - mean) / std
            found.append(F.pad(x, (0, dim - x.shape[-1])))
        return found

    def loss_of(rows):
        return set_loss(*model(inputs(rows)), true_boxes[:, rows], true_names[:, rows])

    best_weights = fit_set_probe(model, loss_of, train, val, steps, batch, rate, seed)

    @torch.no_grad()
    def predict(rows, tokens=None):
        found = []
        for part in rows.split(batch):
            boxes, logits = torch.func.functional_call(model, best_weights, (inputs(part, tokens),))
            boxes, (scores, names) = boxes.clamp(0, 1), logits.softmax(-1)[..., :-1].max(-1)
            found.append((boxes, names, without_duplicates(boxes, names, scores)))
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]

    return predict


def fit_set_probe(model, loss_of, train, val, steps, batch, rate, seed):
    """Minimise loss_of(rows) [R] in place; returns the weights of every run that are best on val."""
    parameters, g, order = list(model.parameters()), torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    best = torch.tensor(float("inf"))
    saved = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        if not order:
            order = list(train[torch.randperm(len(train), generator=g)].tensor_split(-(-len(train) // batch)))
        optimizer.zero_grad(set_to_none=True)
        loss_of(order.pop()).sum().backward()  # runs share no parameter, so each gets its own gradient
        clip_gradients(parameters)
        optimizer.step()
        schedule.step()
        if step % 100 and step < steps:
            continue
        with torch.no_grad():
            loss = torch.stack([loss_of(rows) for rows in val.split(batch)]).mean(0)
        better = loss < best
        best = torch.where(better, loss, best)
        for name, p in model.named_parameters():
            saved[name][better] = p.detach()[better]
    return saved


def in_thousandths(boxes, names, *crowd):
    return (boxes * 1000, names, *((around * 1000, classes) for around, classes in crowd))


def ap_runs(predict, truth, rows, sources=None, tokens=None):
    """`coco_ap50` of the R runs of `train_set_probe` on items `rows`: pseudo-values [R, sources]."""
    boxes, names, scores = predict(rows, tokens)
    true, runs = [in_thousandths(*truth[i]) for i in rows], []
    for columns in zip(boxes * 1000, names, scores, strict=True):
        runs.append(metrics.coco_ap50(true, list(zip(*columns, strict=True)), sources)[1])
    return torch.stack(runs)


def oracle_tokens(truth, classes, grid):
    """Tokens [n, h, w, classes + 4]: class and box of the smallest object over each token's centre, or zeros.

    The upper bound of a set probe is its mAP on these.
    """
    centres = token_centres(*grid)
    found = torch.zeros(len(truth), len(centres), classes + 4, dtype=torch.float16)
    for tokens, (boxes, names, *_) in zip(found, truth, strict=True):
        order = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(descending=True)
        code = torch.cat([F.one_hot(names, classes), boxes], 1)
        for k in order:
            inside = ((centres > boxes[k, :2]) & (centres < boxes[k, 2:])).all(1)
            tokens[inside] = code[k].half()
    return found.unflatten(1, grid)


def detect(grids, truth, classes, split, sources, seed=0):
    """{name: {val, test: mAP@0.5 pseudo-values [seeds, sources of the part]}} of set probes on token grids
    {name: [n, h, w, D]}, the first of which is also probed with softplus, with shuffled labels, and against
    its mean (position_only) and the truth (upper_bound). All are trained at once."""
    train, found = split["train"], {name: principal_tokens(x, split["train"]) for name, x in grids.items()}
    x = next(iter(found.values()))
    found["position_only"] = x[train].float().mean(0).half().expand_as(x)
    found["upper_bound"] = oracle_tokens(truth, classes, x.shape[1:3])
    jobs = {name: (tokens, truth, False) for name, tokens in found.items()}
    order = permuted(train, len(truth), torch.Generator().manual_seed(seed))
    jobs |= {"softplus": (x, truth, True), "shuffled": (x, [truth[i] for i in order], False)}
    predict = train_set_probe(list(jobs.values()), classes, train, split["val"], seed=seed)
    runs = {name: {} for name in jobs}
    for part in ("val", "test"):
        # of val the mean alone is needed
        groups = [sources[i] if part == "test" else 0 for i in split[part]]
        every = ap_runs(predict, truth, split[part], groups).unflatten(0, (len(jobs), -1))
        for name, values in zip(jobs, every, strict=True):
            runs[name][part] = values
    return runs


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
