"""Measures of boxes, masks, images and videos: IoU, mAP, edge F1, SSIM, LPIPS, motion, segments in time."""

import contextlib
import functools
import math

import numpy as np
import torch
import torch.utils.checkpoint

from media import frames_of
from stats import chunks, clusters, pseudo_values

# ---------------------------------------------------------------- boxes, masks, detection


def box_areas(a, b):
    """Intersection and union areas of matching rows: a, b [..., 4] xyxy -> [...], [...]; 0 if reversed."""
    first, last = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (last - first).clamp(min=0).prod(-1)
    area_a, area_b = (x[..., 2:].sub(x[..., :2]).clamp(min=0).prod(-1) for x in (a, b))
    return inter, (area_a + area_b - inter).clamp(min=1e-9)


def box_iou(a, b):
    """IoU of matching rows: a, b [..., 4] xyxy -> [...]. Empty or reversed boxes have IoU 0."""
    inter, union = box_areas(a, b)
    return inter / union


def mask_iou(a, b):
    """IoU of boolean masks [n, H, W] -> [n]; two empty masks agree (1)."""
    inter, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(union > 0, inter / union.clamp(min=1), 1.0)


def coco_of(images, classes):
    """A pycocotools set of per-image columns: boxes [m, 4] xyxy, classes [m] and, of predictions, scores."""
    from pycocotools.coco import COCO

    coco, rows = COCO(), []
    for i, image in enumerate(images):
        columns = [column.tolist() for column in image]
        for (x1, y1, x2, y2), c, *score in zip(*columns, strict=True):
            w, h = max(x2 - x1, 0), max(y2 - y1, 0)
            row = {"id": len(rows) + 1, "image_id": i, "category_id": int(c), "iscrowd": 0}
            row |= {"bbox": [x1, y1, w, h], "area": w * h}
            rows.append(row | ({"score": score[0]} if score else {}))
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": c} for c in classes],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def coco_ap50(truth, predictions, sources=None):
    """(mAP at IoU 0.5 by pycocotools, its pseudo-values [C] by the sources of the images, fp64).

    truth: per image (boxes [m,4] xyxy, classes [m]); predictions: (boxes [q,4], classes [q], scores [q]).
    Images are matched once; without one of C sources (default: the images) they only accumulate again.
    """
    from pycocotools.cocoeval import COCOeval

    classes = torch.cat([names for _, names in truth]).unique().tolist()
    with contextlib.redirect_stdout(None):
        run = COCOeval(coco_of(truth, classes), coco_of(predictions, classes), "bbox")
        run.params.iouThrs, run.params.maxDets = np.array([0.5]), [1, 10, 100]
        run.params.areaRng, run.params.areaRngLbl = run.params.areaRng[:1], ["all"]
        run.evaluate()
        matched = np.array(run.evalImgs, dtype=object).reshape(len(classes), len(truth))

        def ap(pick):
            run.evalImgs = matched[:, pick].reshape(-1).tolist()
            run.params.imgIds = run._paramsEval.imgIds = list(range(len(pick)))
            run.accumulate()
            precision = run.eval["precision"][0, :, :, 0, -1]
            return float(precision[precision > -1].mean()) if (precision > -1).any() else 0.0

        whole, cluster = ap(np.arange(len(truth))), clusters(sources or range(len(truth))).numpy()
        deleted = [ap(np.flatnonzero(cluster != c)) for c in range(cluster.max() + 1)]
    return whole, pseudo_values(torch.tensor(whole), torch.tensor(deleted, dtype=torch.float64))


# ---------------------------------------------------------------- ground truth

MASK = 48  # pixels a side of a decoded mask


def box_truth(items):
    """(largest box [n,4], [(boxes, class numbers) per item], class names); xyxy, fractions of the image."""
    size = [torch.tensor([i["width"], i["height"]] * 2) for i in items]
    every = [i["boxes"] / s for i, s in zip(items, size, strict=True)]
    largest = torch.stack([b[(b[:, 2:] - b[:, :2]).prod(1).argmax()] for b in every])
    names, numbers = set(), []
    for item in items:
        names.update(item["labels"])
    names = sorted(names)
    for item in items:
        numbers.append(torch.tensor([names.index(label) for label in item["labels"]]))
    return largest, list(zip(every, numbers, strict=True)), names


# ---------------------------------------------------------------- cells: one per token


def to_cells(maps, h, w):
    """[n, c, h*s, w*s] -> [n, h*w, c*s*s]: the target of every token of an h x w grid."""
    n, c, height, width = maps.shape
    return maps.reshape(n, c, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, -1)


def from_cells(cells, h, w, channels, side):
    """The inverse of `to_cells`, then resized to side x side (bilinear)."""
    n, s = len(cells), round((cells.shape[-1] / channels) ** 0.5)
    maps = cells.reshape(n, h, w, channels, s, s).permute(0, 3, 1, 4, 2, 5)
    maps = maps.reshape(n, channels, h * s, w * s)
    return torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", antialias=True)


def mask_bound(masks, side):
    """IoU [n] of masks [n,S,S] that pass through a grid of `side` tokens a side."""
    h = side * max(-(-masks.shape[-1] // side), 1)
    coarse = torch.nn.functional.interpolate(masks[:, None], (h, h), mode="bilinear")
    through = torch.nn.functional.interpolate(coarse, masks.shape[-2:], mode="bilinear")[:, 0]
    return mask_iou(through >= 0.5, masks >= 0.5)


def mask_scores(soft, truth, split):
    """IoU per item of the soft mask above the threshold with the highest mean IoU on val."""
    val, levels = split["val"], torch.linspace(0.1, 0.9, 17)
    best = torch.stack([mask_iou(soft[val] > level, truth[val]).mean() for level in levels]).argmax()
    return mask_iou(soft > levels[best], truth)


# ---------------------------------------------------------------- set prediction (DETR, Carion et al. 2020)

TOKEN = 64  # components of a token
LEAST_QUERIES = 25
ATTENTION = 2**25  # numbers in one attention map; more are computed in parts and again for the gradient


def applied(x, weight):
    """One matrix per run: x [R, n, Q, m], weight [R, m, o] -> [R, n, Q, o]."""
    return torch.einsum("rnqm,rmo->rnqo", x, weight)


def token_centres(h, w):
    """Centres (x, y) of the cells of an h x w grid, fractions of the image: [h * w, 2]."""
    ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([xs, ys], -1).reshape(-1, 2)


def queries_per_side(truth):
    """Side g of the grid of g * g queries: enough for the fullest image, and four for each mean object."""
    counts = [len(boxes) for boxes, _ in truth]
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

    def attend(self, x, runs):
        """Means of tokens x [n, h, w, D], of places and of squared places, weighted by the attention of some
        runs: [runs, n, Q, D + 4]."""
        centres, x = token_centres(*x.shape[1:3]), x.flatten(1, 2)
        centre = self.reference + self.offset[runs] / self.side
        far = (centre[:, :, None] - centres).square().sum(-1)  # [runs, Q, K]
        gaussian = -far * (self.side * (-self.log_width[runs]).exp()).square() / 2
        score = torch.einsum("nkd,rdo->nrok", x, self.score[runs])
        attention = (score + gaussian).softmax(-1)  # [n, runs, Q, K]
        places = torch.cat([centres, centres.square()], -1).expand(len(x), -1, -1)
        attended = attention.flatten(1, 2) @ torch.cat([x, places], -1)
        return attended.unflatten(1, attention.shape[1:3]).transpose(0, 1)

    def attend_in_parts(self, x, runs):
        """`attend` with bounded memory."""
        parts = -(-x[..., 0].numel() * len(runs) * len(self.reference) // ATTENTION)
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
        hidden = applied(torch.nn.functional.layer_norm(q, q.shape[-1:]), self.up).relu()
        q = q + applied(hidden, self.down)
        code = applied(q, self.box)
        centre, size = place + code[..., :2] / self.side, code[..., 2:] - 2
        size = torch.where(self.softplus, torch.nn.functional.softplus(size), size.sigmoid())
        return torch.cat([centre - size / 2, centre + size / 2], -1), applied(q, self.name)


def giou_loss(a, b):
    """1 - generalised IoU of matching rows (Rezatofighi et al. 2019)."""
    first, last = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (last - first).clamp(min=0).prod(-1).clamp(min=1e-9)
    inter, union = box_areas(a, b)
    return 1 - inter / union + (hull - union) / hull


def padded_truth(truths, nothing):
    """J lists of n (boxes [m, 4], classes [m]) -> boxes [J, n, most, 4], classes [J, n, most]; the rest is
    `nothing`."""
    images, pad = [image for truth in truths for image in truth], torch.nn.functional.pad
    most = max(1, *(len(boxes) for boxes, _ in images))
    boxes = torch.stack([pad(boxes, (0, 0, 0, most - len(boxes))) for boxes, _ in images])
    names = torch.stack([pad(names, (0, most - len(names)), value=nothing) for _, names in images])
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
        cost = 5 * torch.cdist(boxes, true_boxes, p=1) + 2 * giou_loss(a, b) - likely
        run, image, query, true = match(cost, (true_names != nothing).sum(-1)).to(boxes.device)
    target = torch.full(logits.shape[:-1], nothing, device=logits.device)
    target[run, image, query] = true_names[run, image, true]
    found, wanted = boxes[run, image, query], true_boxes[run, image, true]
    per_box = 5 * (found - wanted).abs().sum(-1) + 2 * giou_loss(found, wanted)
    matched = torch.bincount(run, minlength=len(logits)).clamp(min=1)
    regression = torch.zeros(len(logits), device=boxes.device).index_add(0, run, per_box) / matched
    weight = torch.where(target == nothing, 0.1, 1.0)
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    return regression + (entropy.view_as(weight) * weight).sum((1, 2)) / weight.sum((1, 2))


def principal_tokens(x, train, most=TOKEN):
    """Principal components [n, h, w, r <= most] fp16 of tokens [n, h, w, D], a tensor or `stats.Lazy`.

    Tokens are standardised; the components are fitted on the first training items. They are rotated to
    similar scales: AdamW trains badly on others, and whitening would amplify noise.
    """
    count = x[train[:1]][..., 0].numel()
    some, squares = train[: max(64, 2**16 // count)], 0
    mean, std = token_moments(x, some)
    for rows in chunks(some, x):
        part = ((x[rows] - mean) / std).flatten(0, 2)
        squares = squares + (part.T @ part).double()
    vectors = torch.linalg.eigh(squares)[1][:, -most:].float()
    noise = torch.randn(2 * vectors.shape[1:], generator=torch.Generator().manual_seed(0))
    vectors = vectors @ torch.linalg.qr(noise)[0]
    found = torch.empty(len(x), *x[train[:1]].shape[1:3], vectors.shape[1], dtype=torch.float16)
    for rows in chunks(torch.arange(len(x)), x):
        found[rows] = (((x[rows] - mean) / std) @ vectors).half()
    return found


def token_moments(x, rows):
    """(mean, standard deviation) [D] of the tokens [n, h, w, D] of some items, read in chunks."""
    parts, count = chunks(rows, x), x[rows[:1]][..., 0].numel() * len(rows)
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
    same = (box_iou(boxes[:, :, :, None], boxes[:, :, None]) > 0.5) & (names[..., None] == names[:, :, None])
    surer = scores[:, :, None] > scores[..., None]
    return torch.where((same & surer).any(-1), 0.0, scores)


def distinct_tokens(jobs):
    """(The distinct tensors of tokens of some jobs, the number of each job's tensor)."""
    ids = [id(tokens) for tokens, *_ in jobs]
    first = list(dict.fromkeys(ids))
    return [jobs[ids.index(i)][0] for i in first], [first.index(i) for i in ids]


def train_set_probe(jobs, classes, train, val, seeds=5, steps=800, batch=16, rate=2e-2, seed=0):
    """Train R = J jobs x S seeds probes at once. Returns predict(rows, last=False, tokens=None) -> (boxes
    [R, n, Q, 4], classes [R, n, Q], scores): with early stopping on val, or the `last` weights.

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
            found.append(torch.nn.functional.pad(x, (0, dim - x.shape[-1])))
        return found

    def loss_of(rows):
        return set_loss(*model(inputs(rows)), true_boxes[:, rows], true_names[:, rows])

    best_weights = fit_set_probe(model, loss_of, train, val, steps, batch, rate, seed)

    @torch.no_grad()
    def predict(rows, last=False, tokens=None):
        weights, found = {} if last else best_weights, []
        for part in rows.split(batch):
            boxes, logits = torch.func.functional_call(model, weights, (inputs(part, tokens),))
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


def ap_runs(predict, truth, rows, sources=None, last=False, tokens=None):
    """`coco_ap50` of the R runs of `train_set_probe` on items `rows`: pseudo-values [R, sources]."""
    boxes, names, scores = predict(rows, last, tokens)
    true, runs = [(truth[i][0] * 1000, truth[i][1]) for i in rows], []
    for columns in zip(boxes * 1000, names, scores, strict=True):
        runs.append(coco_ap50(true, list(zip(*columns, strict=True)), sources)[1])
    return torch.stack(runs)


def oracle_tokens(truth, classes, grid):
    """Tokens [n, h, w, classes + 4]: class and box of the smallest object over each token's centre, or zeros.

    The upper bound of a set probe is its mAP on these.
    """
    centres = token_centres(*grid)
    found = torch.zeros(len(truth), len(centres), classes + 4)
    for tokens, (boxes, names) in zip(found, truth, strict=True):
        order = (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(descending=True)
        code = torch.cat([torch.nn.functional.one_hot(names, classes), boxes], 1)
        for k in order:
            inside = ((centres > boxes[k, :2]) & (centres < boxes[k, 2:])).all(1)
            tokens[inside] = code[k]
    return found.unflatten(1, grid)


# ---------------------------------------------------------------- images


def ssim(a, b):
    """Structural similarity (Wang et al. 2004) by scikit-image: uint8 [n,H,W,3] pairs -> float64 [n]."""
    from skimage.metrics import structural_similarity

    pairs = zip(a.numpy(), b.numpy(), strict=True)
    found = [structural_similarity(x, y, channel_axis=-1) for x, y in pairs]
    return torch.tensor(found, dtype=torch.float64)


def edges(images):
    """Canny edges (scikit-image) of uint8 [n,H,W,3]: bool [n,H,W]."""
    from skimage.color import rgb2gray
    from skimage.feature import canny

    return torch.from_numpy(np.stack([canny(rgb2gray(x.numpy()), sigma=1.5) for x in images]))


def match_edges(a, b):
    """F1 of edge maps (predicted, true), bool [n,H,W] -> [n], matched one to one.

    The tolerance is 2 px at a width of 224 px, in proportion at others, but at least 1 px: edges of two
    decoders differ by a pixel. A thick blur of edges earns nothing (Martin, Fowlkes & Malik 2004). Two empty
    maps agree (1).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import cKDTree

    out, tolerance = [], max(2 * a.shape[-1] / 224, 1)
    for x, y in zip(a, b, strict=True):
        p, q = np.argwhere(x.numpy()), np.argwhere(y.numpy())
        if len(p) == 0 or len(q) == 0:
            out.append(float(len(p) == len(q)))
            continue
        near = cKDTree(p).query_ball_point(q, tolerance)
        columns = np.concatenate([np.asarray(n, int) for n in near])
        rows = np.repeat(np.arange(len(q)), [len(n) for n in near])
        graph = csr_matrix((np.ones(len(rows)), (rows, columns)), (len(q), len(p)))
        hits = (maximum_bipartite_matching(graph) >= 0).sum()
        out.append(2 * hits / (len(p) + len(q)))
    return torch.tensor(out, dtype=torch.float64)


def edge_f1(a, b):
    """`match_edges` of the Canny edges of images: uint8 [n,H,W,3] (predicted, true) -> [n]."""
    return match_edges(edges(a), edges(b))


def lpips_model(device="cpu"):
    """(module, name): LPIPS with AlexNet (Zhang et al. 2018), of images [n,3,H,W] in -1..1.

    The backbone comes from torch's cache or the network. Without either it is random (seeded) and the name is
    `lpips_random_backbone`; that value is never compared with a published threshold.
    """
    import socket
    import warnings

    import lpips

    name, before = "lpips", socket.getdefaulttimeout()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        socket.setdefaulttimeout(10)
        try:
            model = lpips.LPIPS(net="alex", verbose=False)
        except OSError:  # urllib's URLError is one
            name, model = "lpips_random_backbone", lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        finally:
            socket.setdefaulttimeout(before)
    return model.to(device).eval().requires_grad_(False), name


def lpips_features(model, images):
    """Unit-norm backbone features at five depths of images [n,3,H,W]; a fixed target's can be cached."""
    levels = model.net(model.scaling_layer(images))
    return [x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10) for x in levels]


def lpips_to(model, images, features):
    """LPIPS [n] between images [n,3,H,W] and the images of the given `lpips_features`; differentiable."""
    return sum(
        head((x - y).square()).mean((1, 2, 3))
        for head, x, y in zip(model.lins, lpips_features(model, images), features, strict=True)
    )


@torch.inference_mode()
def evaluator_tokens(model, processor, size, images, device, batch=32):
    """Patch tokens [n, h, w, D] fp32 of a frozen DINO, of images uint8 [n, H, W, 3] resized to `size`."""
    out = []
    for x in images.split(batch):
        frames = frames_of({"frames": x}, size).permute(0, 3, 1, 2)
        given = processor(list(frames), do_resize=False, do_center_crop=False, return_tensors="pt")
        found = model(given["pixel_values"].to(device, model.dtype)).last_hidden_state
        tokens = found[:, 1 + getattr(model.config, "num_register_tokens", 0) :]
        out.append(tokens.float().cpu().unflatten(1, (size // model.config.patch_size,) * 2))
    return torch.cat(out)


def load_lpips(device="cpu"):
    """(distance, name): LPIPS of uint8 [n,H,W,3] pairs -> [n]; see lpips_model."""
    model, name = lpips_model(device)

    @torch.inference_mode()
    def distance(a, b, batch=64):
        x, y = ((i.permute(0, 3, 1, 2).float() / 127.5 - 1).split(batch) for i in (a, b))
        found = [model(p.to(device), q.to(device)).flatten().cpu() for p, q in zip(x, y, strict=True)]
        return torch.cat(found).double()

    return distance, name
