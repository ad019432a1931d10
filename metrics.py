"""Measures of boxes, masks, images and videos: IoU, mAP, edge F1, SSIM, LPIPS, motion, segments in time."""

import contextlib

import numpy as np
import torch

from media import frames_of
from stats import clusters, pseudo_values

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
        for (x1, y1, x2, y2), c, *score in zip(*(column.tolist() for column in image), strict=True):
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

    classes = sorted({int(c) for _, cs in truth for c in cs})
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
    names = sorted({label for i in items for label in i["labels"]})
    numbers = [torch.tensor([names.index(n) for n in i["labels"]]) for i in items]
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


def applied(x, weight):
    """One matrix per run: x [S, n, Q, m], weight [S, m, o] -> [S, n, Q, o]."""
    return torch.einsum("snqm,smo->snqo", x, weight)


class SetProbe(torch.nn.Module):
    """Queries attend to frozen tokens and predict (box, class or nothing). Leading axis: J jobs x S seeds.

    A box is centred where its query attends, plus an offset. softplus [J]: jobs with box sizes by softplus.
    """

    def __init__(self, tokens, grid, dim, classes, seeds, queries=6, width=48, seed=0, softplus=(False,)):
        super().__init__()
        g, jobs = torch.Generator().manual_seed(seed), len(softplus)
        self.register_buffer("softplus", torch.tensor(softplus).repeat_interleave(seeds)[:, None, None, None])

        def weight(*shape, scale=None):
            one = torch.randn(seeds, *shape, generator=g) * (scale or shape[-2] ** -0.5)
            return torch.nn.Parameter(one.repeat(jobs, *[1] * len(shape)))  # the same start for every job

        h, w = grid
        ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        self.register_buffer("centres", torch.stack([xs, ys], -1).reshape(-1, 2))  # [K, 2]
        self.embed = weight(dim, width)
        self.position = weight(tokens, width, scale=0.1)
        self.query = weight(queries, width, scale=1.0)
        self.ask, self.key, self.value = (weight(2, width, width) for _ in range(3))
        self.up, self.down = weight(2, width, 2 * width), weight(2, 2 * width, width)
        self.box, self.name = weight(width, 4, scale=0.01), weight(width, classes + 1)
        self.heads = 4

    def forward(self, x):
        """x [J, n, K, D] -> boxes [J * S, n, Q, 4] xyxy in 0..1, logits [J * S, n, Q, classes + nothing]."""
        t = torch.einsum("jnkd,jsdm->jsnkm", x, self.embed.unflatten(0, (len(x), -1))).flatten(0, 1)
        t = t + self.position[:, None]
        q = self.query[:, None].expand(-1, x.shape[1], -1, -1)
        norm = torch.nn.functional.layer_norm
        for layer in range(2):
            query = applied(norm(q, q.shape[-1:]), self.ask[:, layer])
            parts = query, applied(t, self.key[:, layer]), applied(t, self.value[:, layer])
            parts = [z.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for z in parts]
            # [S, n, heads, Q, K]
            attention = (parts[0] @ parts[1].transpose(-1, -2) * parts[0].shape[-1] ** -0.5).softmax(-1)
            q = q + (attention @ parts[2]).transpose(-2, -3).flatten(-2)
            hidden = applied(norm(q, q.shape[-1:]), self.up[:, layer]).relu()
            q = q + applied(hidden, self.down[:, layer])
        q = norm(q, q.shape[-1:])
        code = applied(q, self.box)
        centre = ((attention.mean(2) @ self.centres).logit(1e-4) + code[..., :2]).sigmoid()
        size = code[..., 2:] - 1
        size = torch.where(self.softplus, torch.nn.functional.softplus(size), size.sigmoid())
        return torch.cat([centre - size / 2, centre + size / 2], -1), applied(q, self.name)


def giou_loss(a, b):
    """1 - generalised IoU of matching rows (Rezatofighi et al. 2019)."""
    first, last = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (last - first).clamp(min=0).prod(-1).clamp(min=1e-9)
    inter, union = box_areas(a, b)
    return 1 - inter / union + (hull - union) / hull


def set_loss(boxes, logits, truth):
    """DETR's loss [S]: Hungarian matching, then 5 L1 + 2 GIoU + cross-entropy with weight 0.1 on `nothing`.

    truth: per item (boxes [m,4], classes [m]), or such a list per job; the S / J runs of a job are adjacent.
    """
    from scipy.optimize import linear_sum_assignment

    seeds, n, queries, classes = logits.shape
    jobs = truth if isinstance(truth[0], list) else [truth]
    with torch.no_grad():
        images, pad = [image for job in jobs for image in job], torch.nn.functional.pad
        width = max(1, *(len(b) for b, _ in images))
        padded = torch.stack([pad(b, (0, 0, 0, width - len(b))) for b, _ in images])
        names = torch.stack([pad(c, (0, width - len(c))) for _, c in images])
        padded, names = (z.unflatten(0, (len(jobs), n)) for z in (padded, names))  # [J, n, m, 4], [J, n, m]
        padded, names = (z.repeat_interleave(seeds // len(jobs), 0).to(boxes.device) for z in (padded, names))
        a, b = boxes[:, :, :, None], padded[:, :, None]
        likely = logits.softmax(-1).gather(-1, names[:, :, None].expand(seeds, n, queries, width))
        cost = (5 * (a - b).abs().sum(-1) + 2 * giou_loss(a, b) - likely).cpu().numpy()
    picked = []  # (run, item, query, matched true box)
    for s in range(seeds):
        for i, (_, c) in enumerate(jobs[s * len(jobs) // seeds]):
            rows, columns = linear_sum_assignment(cost[s, i, :, : len(c)])
            picked += [(s, i, q, j) for q, j in zip(rows, columns, strict=True)]
    s, i, q, j = torch.tensor(picked, device=boxes.device).reshape(-1, 4).T
    target = torch.full((seeds, n, queries), classes - 1, device=boxes.device)
    target = target.index_put((s, i, q), names[s, i, j])
    found, true = boxes[s, i, q], padded[s, i, j]
    per_box = 5 * (found - true).abs().sum(-1) + 2 * giou_loss(found, true)
    matched = torch.bincount(s, minlength=seeds).clamp(min=1)
    regression = torch.zeros(seeds, device=boxes.device).index_add(0, s, per_box) / matched
    weight = torch.where(target == classes - 1, 0.1, 1.0)
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    return regression + (entropy.view_as(weight) * weight).sum((1, 2)) / weight.sum((1, 2))


def train_set_probe(
    x, grid, truth, classes, train, val, seeds=5, epochs=40, batch=50, seed=0, softplus=(False,)
):
    """Train S = J x seeds probes: predict(x, last=False) -> (boxes [S,n,Q,4], classes [S,n,Q], scores).

    x [n, K, D]; truth per item (boxes [m,4] in 0..1, classes [m]). For J jobs: x [J, n, K, D], J lists of
    truth, J entries of `softplus`. Early stopping on val; last: predict with the final weights.
    """
    x, truth = (x, truth) if x.ndim == 4 else (x[None], [truth])
    mean = x[:, train].mean((1, 2), keepdim=True)
    std = x[:, train].flatten(1, 2).std(1).clamp(min=1e-6)[:, None, None]
    x = (x - mean) / std
    model = SetProbe(x.shape[2], grid, x.shape[3], classes, seeds, seed=seed, softplus=softplus)
    steps = epochs * max(len(train) // batch, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    g = torch.Generator().manual_seed(seed)
    best = torch.full((len(x) * seeds,), float("inf"))
    saved = [p.detach().clone() for p in model.parameters()]
    for step in range(steps):
        pick = train[torch.randperm(len(train), generator=g)[:batch]]
        loss = set_loss(*model(x[:, pick]), [[job[i] for i in pick] for job in truth])
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # runs share no parameter, so each gets its own gradient
        optimizer.step()
        schedule.step()
        if (step + 1) % (5 * max(len(train) // batch, 1)) == 0 or step + 1 == steps:
            with torch.no_grad():
                loss = set_loss(*model(x[:, val]), [[job[i] for i in val] for job in truth])
            better = loss < best
            best = torch.where(better, loss, best)
            for old, new in zip(saved, model.parameters(), strict=True):
                old[better] = new.detach()[better]
    best_weights = dict(zip((name for name, _ in model.named_parameters()), saved, strict=True))

    @torch.no_grad()
    def predict(x, last=False):
        x = ((x if x.ndim == 4 else x[None]) - mean) / std
        boxes, logits = torch.func.functional_call(model, {} if last else best_weights, (x,))
        scores, names = logits.softmax(-1)[..., :-1].max(-1)
        return boxes.clamp(0, 1), names, scores

    return predict


def ap_runs(predict, x, truth, pick, sources=None):
    """`coco_ap50` of S runs on items `pick` of x [n, K, D] or [J, n, K, D]: pseudo-values [S, sources]."""
    boxes, names, scores = predict(x[..., pick, :, :])
    true = [(truth[i][0] * 1000, truth[i][1]) for i in pick]
    runs = []
    for columns in zip(boxes * 1000, names, scores, strict=True):
        runs.append(coco_ap50(true, list(zip(*columns, strict=True)), sources)[1])
    return torch.stack(runs)


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
    """F1 of edge maps (predicted, true), bool [n,H,W] -> [n], matched one to one within 2 pixels.

    A thick blur of edges earns nothing (Martin, Fowlkes & Malik 2004). Two empty maps agree (1).
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching
    from scipy.spatial import cKDTree

    out = []
    for x, y in zip(a, b, strict=True):
        p, q = np.argwhere(x.numpy()), np.argwhere(y.numpy())
        if len(p) == 0 or len(q) == 0:
            out.append(float(len(p) == len(q)))
            continue
        near = cKDTree(p).query_ball_point(q, 2.0)
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
