"""Measures of boxes, masks and images: IoU, mAP, edge F1, SSIM, LPIPS."""

import contextlib

import numpy as np
import torch
import torch.utils.checkpoint

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


def giou_loss(a, b):
    """1 - generalised IoU of matching rows (Rezatofighi et al. 2019)."""
    first, last = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    hull = (last - first).clamp(min=0).prod(-1).clamp(min=1e-9)
    inter, union = box_areas(a, b)
    return 1 - inter / union + (hull - union) / hull


def mask_iou(a, b):
    """IoU of boolean masks [n, H, W] -> [n]; two empty masks agree (1)."""
    inter, union = (a & b).flatten(1).sum(1), (a | b).flatten(1).sum(1)
    return torch.where(union > 0, inter / union.clamp(min=1), 1.0)


def coco_of(images, classes, third):
    """A pycocotools set of per-image columns: boxes [m, 4] xyxy, classes [m], and score or iscrowd [m]."""
    from pycocotools.coco import COCO

    coco, rows = COCO(), []
    for i, image in enumerate(images):
        columns = [column.tolist() for column in image]
        for (x1, y1, x2, y2), c, value in zip(*columns, strict=True):
            w, h = max(x2 - x1, 0), max(y2 - y1, 0)
            row = {"id": len(rows) + 1, "image_id": i, "category_id": int(c), "iscrowd": 0}
            rows.append(row | {"bbox": [x1, y1, w, h], "area": w * h, third: value})
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": c} for c in classes],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def with_crowd(boxes, names, crowd=None):
    """Columns of the truth of an image: boxes, classes, iscrowd. crowd: (boxes [k, 4], classes [k])."""
    crowd = crowd or (boxes[:0], names[:0])
    iscrowd = torch.arange(len(boxes) + len(crowd[0])) >= len(boxes)
    return torch.cat([boxes, crowd[0]]), torch.cat([names, crowd[1]]), iscrowd.long()


def coco_ap50(truth, predictions, sources=None):
    """(mAP at IoU 0.5 by pycocotools, its pseudo-values [C] by the sources of the images, fp64).

    truth: per image (boxes [m,4] xyxy, classes [m]) and, if there are any, its crowds (boxes, classes), with
    which a match does not count; predictions: (boxes [q,4], classes [q], scores [q]). Images are matched
    once; without one of C sources (default: the images) they only accumulate again.
    """
    from pycocotools.cocoeval import COCOeval

    classes = torch.cat([names for _, names, *_ in truth]).unique().tolist()
    truth = [with_crowd(*image) for image in truth]
    with contextlib.redirect_stdout(None):
        run = COCOeval(coco_of(truth, classes, "iscrowd"), coco_of(predictions, classes, "score"), "bbox")
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
    """(largest box [n,4], truth of each item for `coco_ap50`, class names); xyxy, fractions of the image.

    The largest box of an item without boxes is [0, 0, 0, 0].
    """
    names = sorted(set().union(*(item["labels"] for item in items)))
    number = {name: k for k, name in enumerate(names)}
    largest, truth = torch.zeros(len(items), 4), []
    for k, item in enumerate(items):
        size = torch.tensor([item["width"], item["height"]] * 2)
        boxes = item["boxes"] / size
        truth.append((boxes, torch.tensor([number[label] for label in item["labels"]], dtype=torch.long)))
        if len(boxes):
            largest[k] = boxes[(boxes[:, 2:] - boxes[:, :2]).prod(1).argmax()]
        known = [j for j, label in enumerate(item.get("crowd_labels", ())) if label in number]
        if known:  # of a class without a target nothing is scored
            classes = torch.tensor([number[item["crowd_labels"][j]] for j in known])
            truth[k] += ((item["crowd"][known] / size, classes),)
    return largest, truth, names


def with_boxes(split, largest):
    """The split of the items that have a box: where `largest` [n, 4] of `box_truth` has an area."""
    there = (largest[:, 2:] > largest[:, :2]).all(1)
    return {part: rows[there[rows]] for part, rows in split.items()}


# ---------------------------------------------------------------- cells: one per token


def to_cells(maps, h, w):
    """[n, c, h*s, w*s] -> [n, h*w, c*s*s]: the target of every token of an h x w grid."""
    n, c, height, width = maps.shape
    return maps.reshape(n, c, h, height // h, w, width // w).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w, -1)


def from_cells(cells, h, w, channels, side):
    """The inverse of `to_cells`, then resized to side x side (bilinear)."""
    n, s = len(cells), round((cells.shape[-1] / channels) ** 0.5)
    maps = cells.reshape(n, h, w, channels, s, s).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
    return torch.nn.functional.interpolate(maps, (side, side), mode="bilinear", antialias=True)


def mask_bound(masks, side):
    """IoU [n] of masks [n,S,S] that pass through a grid of `side` tokens a side."""
    h = side * max(-(-masks.shape[-1] // side), 1)
    coarse = torch.nn.functional.interpolate(masks[:, None], (h, h), mode="bilinear")
    through = torch.nn.functional.interpolate(coarse, masks.shape[-2:], mode="bilinear")[:, 0]
    return mask_iou(through >= 0.5, masks >= 0.5)


def mask_level(soft, truth):
    """The threshold of soft masks with the highest mean IoU."""
    levels = torch.linspace(0.1, 0.9, 17)
    return levels[torch.stack([mask_iou(soft > level, truth).mean() for level in levels]).argmax()]


def mask_scores(soft, truth, split):
    """IoU per item of the soft mask above the best threshold on val."""
    return mask_iou(soft > mask_level(soft[split["val"]], truth[split["val"]]), truth)


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


def to_floats(frames):
    """uint8 [n, H, W, 3] -> [n, 3, H, W] in -1..1."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def pixel_loss(decode, lpips, images):
    """loss(latents [k, h, w, C], items): LPIPS + 0.1 L2 of decoded latents to images uint8 [n, H, W, 3].

    decode(latents): images [k, 3, H, W] in -1..1, differentiable. The images' features are computed once.
    """
    device, parts = next(lpips.parameters()).device, []
    with torch.inference_mode():
        for part in images.split(64):
            parts.append([x.cpu() for x in lpips_features(lpips, to_floats(part).to(device))])
    stored = [torch.cat(level).clone() for level in zip(*parts, strict=True)]

    def loss(z, items):
        x = decode(z)
        target = to_floats(images[items]).to(x.device)
        apart = lpips_to(lpips, x, [level[items].to(x.device) for level in stored])
        return apart.mean() + 0.1 * (x - target).square().mean()

    return loss
