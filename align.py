"""How similar are a model's layers and a video decoder's latents, or the layers of two models?

    python align.py --features results/tiny/shapes/features --target results/tiny-vae/shapes/features
    python align.py --target results/tiny-dinov2/shapes/features --out results/tiny/shapes/align-dinov2.yaml

Reads features of two encoders (extract.py). Writes align.yaml, align.png and a report (--study). By layer:

    cka          debiased linear CKA of flattened token grids (Kornblith et al. 2019; Song et al. 2012)
    linear_r2    held-out R2 of ridge from each token to the target's cell, about position means, not clipped
    spearman     Spearman correlation of pairwise distances (Kriegeskorte et al. 2008)
    recall10     share of 10 nearest neighbours in common (Huh et al. 2024); chance: 10 / (n - 1)

For all but R2, an encoder becomes a matrix of items x items of norm one; alignment is an inner product.
Features are read in slices, one layer at a time. --choose writes the chosen layers (`points`), at which
--random is read, and stops.

Nulls: sources of the target are permuted whole, among sources of equal size. `p` is of one layer, `p_max` of
the largest of all (Westfall & Young 1993); R2's is of the target's first 4 principal components. The layer is
chosen on val. R2 is fitted on train and scored on test, the others on train and test together. `pooled`
compares spatial means of all layers and points of the target. Above 5,000 items a random 5,000 are compared
(--seed; `subset` in the YAML). A layer without a token grid has no linear_r2.

Copy with it: common.py, stats.py.
"""

import functools
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    POOLED,
    check_choice,
    check_writable,
    fail,
    join,
    load_features,
    load_items,
    load_pt,
    parser,
    plain,
    print_summary,
    pyplot,
    run_info,
    save_text,
    save_yaml,
    split_indices,
    with_grid,
)
from stats import (
    Lazy,
    chunks,
    clusters,
    gram,
    layer_of,
    moments,
    resampled,
    solve_ridge,
    spectrum,
    token_map,
    widened,
)

MEASURES = ("cka", "linear_r2", "spearman", "recall10")  # of gate 1
PAIRED = ("cka", "spearman", "recall10")  # cosines of two matrices
K, RECALLS = 10, (1, 5, 10, 20)  # neighbours
SUBSET, EXACT = 5000, 2500  # most items compared; most items permuted and resampled
# principal components of the target, for R2's permutations and for R2 of spatial means
REDUCED, POOLED_PARTS = 4, 32
# of an earlier study of Qwen2.5-VL-7B: probably biased, or in-sample
EARLIER = {"cka": 0.687, "linear_r2": 0.510, "spearman": 0.684, "recall10": 0.258}


# ---------------------------------------------------------------- one space: a matrix [n, n] per measure


def space_of(x, sources=None):
    """A space of x [n, ...], a tensor or `Lazy`: centred features of mean square norm one."""
    found = gram(x, torch.arange(len(x)))
    return of_gram(found.div_(found.diagonal().mean().clamp(min=1e-30)), sources)


def of_gram(matrix_of_products, sources=None):
    """A space from its Gram matrix [n, n]."""
    return {
        "gram": matrix_of_products,
        "n": len(matrix_of_products),
        "square": matrix_of_products.diagonal().clone(),
        "sums": matrix_of_products.sum(1),
        "owner": sources and clusters(sources),
    }


def part_of(space, keep):
    """The space of the items `keep` alone."""
    owner = space["owner"]
    return of_gram(space["gram"][keep][:, keep]) | {"owner": None if owner is None else owner[keep]}


def distances(space):
    """Squared distances of all items to all, [n, n]."""
    return torch.add(space["square"][:, None] + space["square"], space["gram"], alpha=-2).clamp_(min=0)


def u_centred(space):
    """U-centred Gram matrix [n, n]: products are unbiased HSIC (Szekely & Rizzo 2014; Song et al. 2012)."""
    n = space["n"]
    sums = (space["sums"] - space["square"]) / (n - 2)
    found = space["gram"] - sums[:, None]
    found -= sums - sums.sum() / (n - 1)
    return found.fill_diagonal_(0)


def nearest(space, rows, k=K):
    """The k nearest items of other sources to each of `rows`: [b, k], unordered."""
    # squared distance without the row's own square, which does not change the order
    d, owner = torch.add(space["square"], space["gram"][rows], alpha=-2), space["owner"]
    if owner is None:
        owner = torch.arange(space["n"])
        d[torch.arange(len(rows)), rows] = math.inf
    else:
        d.masked_fill_(owner[rows, None] == owner, math.inf)
    return d.topk(most_neighbours(owner, k), largest=False, sorted=False).indices


def neighbours(space, rows, k=K):
    """1.0 where an item is one of the `nearest`, else 0.0: [b, n]."""
    return torch.zeros(len(rows), space["n"]).scatter_(1, nearest(space, rows, k), 1.0)


def in_common(a, b, k=K, block=128):
    """Share of k nearest neighbours in common of L spaces a with M spaces b of the same n items: [L, M]."""

    def near(space):
        return torch.cat([nearest(space, rows, k) for rows in torch.arange(space["n"]).split(block)])

    # [n, L, k], [n, M, k]
    mine, theirs = (torch.stack([near(s) for s in side], 1) for side in (a, b))
    n, found = len(mine), torch.zeros(mine.shape[1], theirs.shape[1], dtype=torch.float64)
    for rows in torch.arange(n).split(block):
        queries = theirs[rows].flatten(1)
        for i, nearest_items in enumerate(mine[rows].unbind(1)):
            among = torch.zeros(len(rows), n, dtype=torch.bool).scatter_(1, nearest_items, True)
            found[i] += among.gather(1, queries).view(len(rows), len(found[i]), -1).sum((0, 2))
    return found / (n * mine.shape[2])


def most_neighbours(owner, k):
    """k, or one less than the fewest items of other sources: with all of them every space would agree."""
    return max(min(k, len(owner) - int(owner.bincount().max()) - 1), 1)


@functools.lru_cache(2)
def above(n):
    """Indices of the pairs i < j in a flattened n x n matrix."""
    i, j = torch.triu_indices(n, n, 1)
    return i * n + j


def sorted_ranks(space):
    """Centred ranks of the distances of the pairs of `above` [n (n - 1) / 2]; ties share their mean rank."""
    n = space["n"]
    values = distances(space).flatten()[above(n)].float()
    # the bits of positive floats sort like the floats, and integers are sorted faster
    values, order = values.view(torch.int32).sort()
    ranks = torch.arange(len(values), dtype=torch.float32) - (len(values) - 1) / 2
    if (values[1:] == values[:-1]).any():
        _, inverse, counts = values.unique_consecutive(return_inverse=True, return_counts=True)
        ranks = (counts.cumsum(0) - (counts + 1) / 2 - (len(values) - 1) / 2)[inverse].float()
    return torch.empty(len(values)).index_copy_(0, order, ranks)


def exact_ranks(space):
    """`sorted_ranks` as a symmetric matrix [n, n] with zero diagonal."""
    n = space["n"]
    out = torch.zeros(n * n).index_copy_(0, above(n), sorted_ranks(space)).view(n, n)
    return out + out.T


def matrix(space, measure, k=K):
    """The matrix [n, n] of a space for a measure, not normalised."""
    if measure == "cka":
        return u_centred(space)
    return exact_ranks(space) if measure == "spearman" else neighbours(space, torch.arange(space["n"]), k)


# ---------------------------------------------------------------- all pairs of spaces


def pairs(a, b, measure, k=K, block=128):
    """Alignment [L, M] of L spaces a with M spaces b of the same n items, from the upper half of the
    matrices, in blocks of rows that fit a cache."""
    if measure == "recall10":
        return in_common(a, b, k, block)
    a, b = list(a), list(b)
    n = a[0]["n"]

    def values():
        if measure == "spearman":
            ranks = [torch.stack([sorted_ranks(s) for s in side]) for side in (a, b)]
            # longer sums of squared ranks would lose fp32 precision
            yield from zip(*(side.split(2**18, 1) for side in ranks), strict=True)
            return
        # allocated once: repeated allocation would cost as much as the products
        buffers = [torch.empty(len(side) * min(block, n) * n) for side in (a, b)]
        for first in range(0, n, block):
            size, parts = min(block, n - first), []
            for to, side in zip(buffers, (a, b), strict=True):
                part = to[: len(side) * size * (n - first)].view(len(side), size, -1)
                torch.stack([s["gram"][first : first + size, first:] for s in side], out=part)
                part[:, :, :size].triu_(1)
                parts.append(part.flatten(1))
            yield parts

    cross = torch.zeros(len(a), len(b), dtype=torch.float64)
    squares = [torch.zeros(len(side), dtype=torch.float64) for side in (a, b)]
    for both in values():
        cross += (both[0] @ both[1].T).double()
        for square, x in zip(squares, both, strict=True):
            square += x.norm(dim=1).double().square()
    # from products of Gram matrices without their diagonals to unbiased HSIC (Song et al. 2012, equation 5)
    if measure == "cka":
        left, right = (torch.stack([s["sums"] - s["square"] for s in side]).double() for side in (a, b))

        def hsic(upper, s, t):
            return 2 * upper + s.sum(-1) * t.sum(-1) / ((n - 1) * (n - 2)) - 2 * (s * t).sum(-1) / (n - 2)

        cross = hsic(cross, left[:, None], right)
        squares = [hsic(squares[0], left, left), hsic(squares[1], right, right)]
    return cross / (squares[0][:, None] * squares[1]).sqrt()


def compare(xs, ys, measure, sources=None, k=K):
    """`pairs` of features [n, ...]; neighbours need one space at a time."""
    sides = ((space_of(x, sources) for x in side) for side in (xs, ys))
    return pairs(*sides, measure, k)


def held(spaces, measure, k=K):
    """Matrices of all spaces, of norm one: [L, n, n]."""
    found = torch.stack([matrix(s, measure, k) for s in spaces])
    return found / found.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-30)


def shuffle(blocks, g):
    """A permutation of items that swaps whole sources of equal size; blocks: one index tensor per source."""
    order = torch.empty(sum(len(b) for b in blocks), dtype=torch.long)
    for size in {len(b) for b in blocks}:
        group = [b for b in blocks if len(b) == size]
        for to, source in enumerate(torch.randperm(len(group), generator=g).tolist()):
            order[group[to]] = group[source]
    return order


def permuted(a, b, symmetric, blocks, n_perm, seed):
    """Alignment [n_perm, L, M] of matrices [L, n, n] and [M, n, n] with the items of one side permuted."""
    if len(b) > len(a):
        return permuted(b, a, symmetric, blocks, n_perm, seed).mT
    n, g = a.shape[1], torch.Generator().manual_seed(seed)
    at = (
        torch.triu_indices(n, n, 1) if symmetric else torch.cartesian_prod(torch.arange(n), torch.arange(n)).T
    )
    # values of one pair are adjacent in memory
    fixed, moved = a[:, at[0], at[1]] * (2 if symmetric else 1), b.permute(1, 2, 0).reshape(n * n, -1)
    out = []
    for _ in range(n_perm):
        order = shuffle(blocks, g)
        out.append(fixed @ moved[order[at[0]] * n + order[at[1]]])
    return torch.stack(out)


def p_values(observed, null):
    """(p, p_max) of observed [...], against null [P, ...] and its largest entry (Westfall & Young 1993)."""
    # values equal up to rounding, and nan, count as exceedances
    over = [
        ~(x < observed - 1e-6)
        for x in (null, null.reshape(len(null), -1).amax(1).view(-1, *[1] * observed.ndim))
    ]
    return [(1 + x.sum(0)) / (1 + len(null)) for x in over]


def jackknife(a, b, measure, blocks, folds=20, k=K):
    """(value, low, high) [L, M]: 95% interval by deleting groups of sources, with Student's t.
    A bootstrap would repeat items, and a copy is the nearest neighbour."""
    from scipy.special import stdtrit

    folds, values = min(folds, len(blocks)), []
    for fold in range(folds):
        keep = torch.cat([block for i, block in enumerate(blocks) if i % folds != fold])
        values.append(pairs([part_of(s, keep) for s in a], [part_of(s, keep) for s in b], measure, k))
    v = torch.stack(values)
    half = float(stdtrit(folds - 1, 0.975)) * ((folds - 1) / folds * (v - v.mean(0)).square().sum(0)).sqrt()
    whole = pairs(a, b, measure, k)
    return whole, whole - half, whole + half


# ---------------------------------------------------------------- fitted maps


def match(x, t, h, w):
    """Token grid [n, T, H, W, d] resampled to t x h x w by pooling or repetition: [n, t*h*w, d]."""
    return F.adaptive_avg_pool3d(x.permute(0, 4, 1, 2, 3), (t, h, w)).flatten(2).transpose(1, 2)


def matched(x, side, most=2**28):
    """Token grids x [n, T, H, W, d], a tensor or `Lazy`, resampled to `side` (t, h, w): [n, t*h*w, d].

    They are held if they take at most `most` bytes, otherwise `Lazy`."""
    found = Lazy(lambda rows: torch.cat([match(x[part], *side) for part in chunks(rows, x)]), len(x))
    every = torch.arange(len(x))
    return found[every] if 4 * len(x) * found[every[:1]].numel() <= most else found


def centred(x, train):
    """x [n, K, d] about the mean of each position over the training items."""
    total = sum(x[part].sum(0, dtype=torch.float64) for part in chunks(train, x))
    mean = (total / len(train)).float()
    return Lazy(lambda rows: x[rows] - mean, len(x))


def principal(x, train, most):
    """The first principal directions of x [n, K, d] over the training items, [d, most], and the mean [d]."""
    (mean, _), squares, _ = moments(x, x, train)
    return torch.linalg.eigh(squares)[1][:, -most:].flip(1).float(), mean.float()


def token_r2(x, y, split, seed=0, n_perm=0, blocks=()):
    """A token-wise ridge from x [n, K, d] to y [n, K, c] about each position's training mean; penalty by val.

    x and y are tensors or `Lazy`. Returns {residual, variance: [n, c], nan for training items; reduced: R2 on
    test of y's first REDUCED principal components; null: the same with training images permuted, [n_perm]}.
    Held-out R2 is 1 - sum residual / sum variance."""
    # about means, so that a map from the position alone scores 0
    n, train, x, y = len(x), split["train"], centred(x, split["train"]), centred(y, split["train"])
    every, small, orders = torch.arange(n), None, []
    if n_perm:
        directions, _ = principal(y, train, REDUCED)
        small = torch.cat([y[part] @ directions for part in chunks(every, y)])
        g = torch.Generator().manual_seed(seed)
        permuted_train = [train[shuffle(blocks, g)] for _ in range(n_perm)]
        orders = [every, *(every.index_copy(0, train, order) for order in permuted_train)]
    targets = Lazy(lambda rows: torch.cat([y[rows], *(small[order[rows]] for order in orders)], -1), n)
    c = y[every[:1]].shape[-1]
    predict = token_map(x, targets, [c] + len(orders) * [REDUCED], train, split["val"])

    residual, variance = torch.full((2, n, c), math.nan, dtype=torch.float64)
    errors = torch.full((n, len(orders)), math.nan, dtype=torch.float64)
    held_out = every[~torch.isin(every, train)]
    for rows in chunks(held_out, x, targets):
        found, true = predict(rows), y[rows]
        residual[rows] = (found[..., :c] - true).double().square().sum(1)
        variance[rows] = true.double().square().sum(1)
        for k in range(len(orders)):
            part = found[..., c + k * REDUCED :][..., :REDUCED]
            errors[rows, k] = (part - small[rows]).double().square().sum((1, 2))
    out = {"residual": residual, "variance": variance}
    if n_perm:
        r2 = 1 - errors[split["test"]].sum(0) / small[split["test"]].double().square().sum()
        out |= {"reduced": r2[0].item(), "null": r2[1:].float()}
    return out


def r2_of(fit, pick):
    """Held-out R2 of the items `pick`."""
    return 1 - (fit["residual"][pick].sum() / fit["variance"][pick].sum()).item()


def ratio_draws(residual, variance, sources, n_boot=2000, seed=0):
    """(1 - sum(residual) / sum(variance) of resampled sources [n_boot], number of sources)."""
    cluster = clusters(sources)
    n = int(cluster.max()) + 1
    sums = [torch.zeros(n, dtype=torch.float64).index_add_(0, cluster, v) for v in (residual, variance)]
    times = resampled(n, n_boot, torch.Generator().manual_seed(seed))
    return 1 - (times @ sums[0]) / (times @ sums[1]), n


def ratio_bootstrap(residual, variance, sources, n_boot=2000, seed=0):
    """Mean and 95% interval of 1 - sum(residual) / sum(variance), resampling sources."""
    draws, n = ratio_draws(residual, variance, sources, n_boot, seed)
    value = (1 - residual.sum() / variance.sum()).item()
    return value, *widened(
        value, *draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), n
    )


# ---------------------------------------------------------------- intrinsic dimension


def intrinsic_dimension(x, seed=0, k=20):
    """{two_nn, mle, participation, agree} of features [n, d], with <name>_half, <name>_quarter of parts.

    TwoNN (Facco et al. 2017) by maximum likelihood without the largest tenth of ratios; MLE (Levina & Bickel
    2004) with the mean of inverses (MacKay & Ghahramani 2005); participation ratio of the covariance. Copies
    are left out. agree: none is twice another."""
    x = x.flatten(1).double().unique(dim=0)
    g, out = torch.Generator().manual_seed(seed), {}
    for name, share in (("", 1), ("_half", 2), ("_quarter", 4)):
        z = x[torch.randperm(len(x), generator=g)[: max(len(x) // share, 6)]]
        z = z - z.mean(0)
        near = torch.cdist(z, z).topk(min(k, len(z) - 1) + 1, largest=False).values[:, 1:].clamp(min=1e-30)
        ratio = (near[:, 1] / near[:, 0]).log().sort().values
        used = ratio[: max(int(0.9 * len(ratio)), 1)]
        censored = (len(ratio) - len(used)) * used[-1]
        inverse = (near[:, -1:] / near[:, :-1]).log().mean(1)
        spread = torch.linalg.eigvalsh(z @ z.T if len(z) < z.shape[1] else z.T @ z).clamp(min=0)
        found = {
            "two_nn": len(used) / (used.sum() + censored).clamp(min=1e-30),
            "mle": (1 / inverse.mean().clamp(min=1e-30)) * (near.shape[1] - 2) / (near.shape[1] - 1),
            "participation": spread.sum().square() / spread.square().sum().clamp(min=1e-300),
        }
        out |= {f"{key}{name}": value.item() for key, value in found.items()}
    whole = [out[key] for key in ("two_nn", "mle", "participation")]
    return out | {"agree": bool(max(whole) < 2 * min(whole))}


# ---------------------------------------------------------------- the stage


def chance(sources, k=K):
    """Share of k neighbours in common between unrelated spaces: k / (n - 1) with one item a source."""
    owner = clusters(sources)
    return (most_neighbours(owner, k) / (len(owner) - owner.bincount()[owner])).mean().item()


def blocks_of(sources):
    """Positions of the items of every source, as index tensors."""
    found = {}
    for position, s in enumerate(sources):
        found.setdefault(s, []).append(position)
    return [torch.tensor(v) for v in found.values()]


def sources_of(items, rows):
    return [items[i]["source"] for i in rows.tolist()]


def reported(items, split):
    """(report, some): the train and test items; of them whole sources with at most EXACT items.

    Scores without parameters use `report`; intervals and permutations use `some`."""
    report = torch.cat([split["train"], split["test"]])
    chosen, n = [], 0
    for block in blocks_of(sources_of(items, report)):
        if chosen and n + len(block) > EXACT:
            break
        chosen, n = [*chosen, block[:EXACT]], n + len(block)
    return report, report[torch.cat(chosen).sort().values]


def read_layers(layers, y, items, split, seed=0, gridless=(), n_perm=0, desc=None):
    """({layer: {space: of `some`, val, score: by measure}}, {layer: token_r2}, the target's space of `some`).

    layers {name: x}; x and y [n, t, h, w, d], tensors or `Lazy`, are read in chunks, one layer at a time."""
    report, some = reported(items, split)
    val, sources = split["val"], [i["source"] for i in items]
    target = space_of(y, sources)
    blocks = blocks_of(sources_of(items, split["train"]))
    rows, fits = {}, {}
    for p, x in tqdm(layers.items(), desc=desc, unit="layer", disable=desc is None):
        space = space_of(x, sources)
        parts = {"val": val} | ({"score": report} if len(some) < len(report) else {})
        rows[p] = {"space": part_of(space, some), "score": {}}
        for name, pick in parts.items():
            both = [[part_of(s, pick)] for s in (space, target)]
            rows[p][name] = {m: pairs(*both, m).item() for m in PAIRED}
        if p not in gridless:
            grids = (z[val[:1]].shape[1:4] for z in (x, y))
            side = [min(pair) for pair in zip(*grids, strict=True)]
            fits[p] = token_r2(matched(x, side), matched(y, side), split, seed, n_perm // 2, blocks)
    return rows, fits, part_of(target, some)


def score_layers(rows, fits, target, items, split, n_perm=0, seed=0):
    """{layer: {measure: {score, low, high, p, p_max, val, n}}} of the results of `read_layers`."""
    report, some = reported(items, split)
    blocks, of_report = blocks_of(sources_of(items, some)), sources_of(items, report)
    spaces, out = [row["space"] for row in rows.values()], {p: {} for p in rows}
    for m in PAIRED:
        found, low, high = (v[:, 0] for v in jackknife(spaces, [target], m, blocks))
        if n_perm:
            matrices = held(spaces, m), held([target], m)
            null = permuted(*matrices, m != "recall10", blocks, n_perm, seed)[..., 0]
            p, p_max = p_values(found, null)
        for k, (layer, row) in enumerate(rows.items()):
            score = row["score"].get(m, found[k].item())
            bounds = {"low": score - (found - low)[k].item(), "high": score + (high - found)[k].item()}
            out[layer][m] = {"score": score} | bounds | {"val": row["val"][m], "n": len(report)}
            out[layer][m] |= {"chance": chance(of_report)} if m == "recall10" else {}
            out[layer][m] |= {"p": p[k].item(), "p_max": p_max[k].item()} if n_perm else {}
    largest = torch.stack([f["null"] for f in fits.values()]).amax(0) if fits and n_perm else None
    for layer, fit in fits.items():
        out[layer]["linear_r2"] = r2_row(fit, largest, items, split, seed)
    return out


def r2_row(fit, largest, items, split, seed):
    """{score, low, high, val, n} of a result of token_r2, and p of `largest`, the null of the best layer."""
    test = split["test"]
    parts = (fit[k][test].sum(1) for k in ("residual", "variance"))
    score, low, high = ratio_bootstrap(*parts, sources_of(items, test), seed=seed)
    row = {"score": score, "low": low, "high": high, "val": r2_of(fit, split["val"]), "n": len(test)}
    if largest is not None:
        for key, null in (("p", fit["null"]), ("p_max", largest)):
            row[key] = (1 + (null >= fit["reduced"]).sum().item()) / (1 + len(null))
    return row


def record(layers, random, pixels, measure, n_options):
    """The record at the best layer on val; baselines: chance, raw pixels and the untrained network."""
    best = max(layers, key=lambda p: layers[p][measure]["val"])
    at_best = layers[best][measure]
    baselines = {"chance": at_best.get("chance", 0.0)}
    baselines |= {"pixels": pixels[measure]["score"]} if pixels else {}
    baselines |= {"random_init": random[best][measure]["score"]} if random else {}
    name = max(baselines, key=baselines.get)
    rival = {"pixels": pixels, "random_init": (random or {}).get(best)}.get(name)
    other = rival[measure] if rival else dict.fromkeys(("score", "low", "high"), 0.0)
    gain = at_best["score"] - baselines[name]
    lower = math.hypot(at_best["score"] - at_best["low"], other["high"] - other["score"])
    upper = math.hypot(at_best["high"] - at_best["score"], other["score"] - other["low"])
    found = {key: at_best[key] for key in ("score", "low", "high")} | {"better": "higher", "n": at_best["n"]}
    found |= {"baseline": baselines[name], "baseline_name": name, "upper_bound": 1.0}
    found |= {"skill": gain / (1 - baselines[name]), "gain": gain}
    found |= {
        "gain_low": gain - lower,
        "gain_high": gain + upper,
        "p": at_best["p"],
        "p_max": at_best["p_max"],
    }
    return found | {"layer": best, "options_searched": n_options, "baselines": baselines}


def recommendation(fits, items, split, seed):
    """{recommended: layer with the highest R2 on val, recommended_share: of val resamples, runner_up}."""
    val = split["val"]
    draws = []
    for fit in fits.values():
        parts = (fit[k][val].sum(1) for k in ("residual", "variance"))
        draws.append(ratio_draws(*parts, sources_of(items, val), seed=seed)[0])
    order = sorted(fits, key=lambda p: -r2_of(fits[p], val))
    share = (torch.stack(draws).argmax(0) == list(fits).index(order[0])).double().mean().item()
    runner_up = order[1] if len(order) > 1 else None
    return {"recommended": order[0], "recommended_share": share, "runner_up": runner_up}


def pooled_matrix(xs, ys, items, split, args):
    """Of means xs, ys {point: [n, t, d]}: ({measure: {layer: {point: score}}}, {measure: best pair on val}).

    linear_r2: ridge from a layer to the first POOLED_PARTS principal components of a point, penalty by
    leave-one-out."""
    report, some = reported(items, split)
    blocks, sources = blocks_of(sources_of(items, some)), [i["source"] for i in items]
    whole = [[space_of(x, sources) for x in side.values()] for side in (xs, ys)]
    of_report, of_some, on_val = (
        [[part_of(space, pick) for space in side] for side in whole] for pick in (report, some, split["val"])
    )
    tables, best = {}, {}
    for m in PAIRED:
        score, val = pairs(*of_report, m), pairs(*on_val, m)
        null = permuted(*(held(s, m) for s in of_some), m != "recall10", blocks, args.permutations, args.seed)
        p, p_max = p_values(pairs(*of_some, m), null)
        layer, point = divmod(int(val.argmax()), len(ys))
        best[m] = {
            "layer": list(xs)[layer],
            "point": list(ys)[point],
            "score": score[layer, point].item(),
            "p": p[layer, point].item(),
            "p_max": p_max[layer, point].item(),
            "options_searched": score.numel(),
            "permuted_items": len(some),
        }
        tables[m] = score
    tables["linear_r2"] = pooled_r2(xs, ys, split, sources)
    named = {}
    for m, table in tables.items():
        rows = zip(xs, table.tolist(), strict=True)
        named[m] = {p: dict(zip(ys, row, strict=True)) for p, row in rows}
    return named, best


def pooled_r2(xs, ys, split, sources):
    """R2 on test of a ridge from each layer to the first principal components of each point, [L, M]."""
    train, test = split["train"], split["test"]
    targets = {}
    for name, y in ys.items():
        y = y.flatten(1)[:, None]
        directions, mean = principal(y, train, min(POOLED_PARTS, y.shape[-1], len(train) - 1))
        targets[name] = (y[:, 0] - mean) @ directions
    kernels = torch.stack([gram(x, train) for x in xs.values()])
    columns = []
    for name, (found, _) in solve_ridge(*spectrum(kernels, train), targets, train, sources).items():
        true = targets[name][test]
        columns.append(1 - (found[:, test] - true).square().sum((1, 2)) / true.square().sum())
    return torch.stack(columns, 1)


def at_layer(name, rows, target, items, split):
    """Neighbours in common of a layer and the target, for several k; rows and target: of `read_layers`."""
    sources = sources_of(items, reported(items, split)[1])
    recall = {}
    for k in (k for k in RECALLS if k < len(sources) - 2):
        score = pairs([rows[name]["space"]], [target], "recall10", k).item()
        recall[f"{k}"] = {"score": score, "chance": chance(sources, k)}
    return {"layer": name, "recall": recall}


def channels(fits, test):
    """{layer: R2 on test of every channel of the target}, not clipped; None for a constant channel."""
    found = {}
    for p, fit in fits.items():
        residual, variance = (fit[k][test].sum(0).tolist() for k in ("residual", "variance"))
        found[p] = [1 - r / v if v > 0 else None for r, v in zip(residual, variance, strict=True)]
    return found


# ---------------------------------------------------------------- chart and report


def draw_heat(axis, rows, columns, layers, title, text=True):
    """Draw values [layer, column] from 0 to 1; None is missing."""
    values = torch.tensor([[math.nan if v is None else v for v in row] for row in rows])
    shown = axis.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=0.0, vmax=1)
    turned = {"rotation": 45, "ha": "right"} if max(map(len, columns)) > 3 else {}
    axis.set_xticks(range(len(columns)), columns, fontsize=8, **turned)
    axis.set_yticks(range(len(rows)), layers, fontsize=8)
    axis.set_title(title, fontsize=10)
    for i, j in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist() if text else ():
        v = values[i, j].item()
        style = {"ha": "center", "va": "center", "fontsize": 8, "color": "black" if v > 0.6 else "white"}
        axis.text(j, i, "-" if math.isnan(v) else f"{v:.2f}", **style)
    return shown


def draw_chart(result, path):
    """Write align.png: scores by layer; R2 by layer and channel; CKA of spatial means, layers x points."""
    plt = pyplot()
    layers = candidates(result["layers"])
    figure, axes = plt.subplots(1, 3, figsize=(20, 2.8 + 0.32 * len(layers)), layout="constrained")
    names = [m for m in (*PAIRED, "linear_r2") if any(m in result["layers"][p] for p in layers)]
    networks = {"": result["layers"]}
    if "untrained" in result:
        networks["\nuntrained"] = result["untrained"]
    columns, scores = [], []
    for m in names:
        for label, table in networks.items():
            columns.append(f"{m}{label}")
            scores.append([table.get(p, {}).get(m, {}).get("score") for p in layers])
    title = f"Alignment of {result['model']}'s tokens with {result['target']} {result['target_point']}"
    draw_heat(axes[0], list(zip(*scores, strict=True)), columns, layers, title)
    table = result["channels"]
    if table:
        n = len(next(iter(table.values())))
        rows, numbers = [table.get(p, [None] * n) for p in layers], [str(c) for c in range(n)]
        title = f"Held-out linear R2 of each channel of {result['target_point']}\n(below 0 drawn as 0)"
        draw_heat(axes[1], rows, numbers, layers, title, text=n <= 16)
    else:
        axes[1].axis("off")
    table = result["pooled"]["cka"]
    points = list(next(iter(table.values())))
    rows = [[table.get(p, {}).get(t) for t in points] for p in layers]
    title = f"Debiased CKA of spatial means, with {result['target']}"
    shown = draw_heat(axes[2], rows, points, layers, title, text=len(points) <= 16)
    figure.colorbar(shown, ax=axes[2])
    about = f"{result['weights']} weights, {result['data']} data"
    about = f"{result['items']} items; recommended layer {result.get('recommended')}; {about}"
    figure.suptitle(f"{result['data_name']}: {about}")
    figure.savefig(path, dpi=80)
    plt.close(figure)


def study_layer(r):
    """Lines on the recommended layer."""
    if not r.get("recommended"):
        return [f"No layer is recommended: {r['linear_r2_reason']}.", ""]
    best, share = r["layers"][r["recommended"]]["linear_r2"], r["recommended_share"]
    rest = f"; the runner-up is {r['runner_up']}" if r["runner_up"] else ""
    certain = "certain" if share > 0.95 else "uncertain"
    scores = f"**{r['recommended']}**, by linear R2: {best['val']:.3f} on val, {interval(best)} on test."
    of = f"It is the best of {len(r['channels'])} layers in {share:.0%} of resamples of val{rest}."
    return [f"{scores} {of} The choice is {certain}.", ""]


def interval(c):
    return f"{c['score']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"


def table_of(head, rows):
    """Lines of a table in Markdown."""
    lines = [f"| {' | '.join(line)} |" for line in (head, *rows)]
    return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]


def study(r):
    """The report in Markdown, from the YAML's numbers."""
    some = f"{r['subset']} of " if "subset" in r else ""
    weights = f"{r['weights']} weights, {r['target_weights']} weights of the target"
    better = [m for m, c in r["criteria"].items() if c["gain_low"] > 0]
    compared = "No measure is above its best baseline: an untrained network or raw pixels align as well. "
    if better:
        compared = f"Above the best baseline: {', '.join(better)}. "
    criteria = []
    for m, c in r["criteria"].items():
        baseline = f"{c['baseline']:.3f} {c['baseline_name']}"
        criteria.append([m, c["layer"], interval(c), baseline, f"{c['p_max']:.3f}", f"{EARLIER[m]}"])
    head = ["measure", "layer", "score", "best baseline", "p (max over layers)"]
    at = r["at_layer"]
    recall = [f"{v['score']:.3f} of {k} (chance {v['chance']:.3f})" for k, v in at["recall"].items()]
    sizes = []
    for p, d in r["dimension"].items():
        values = [f"{d[k]:.1f}" for k in ("two_nn", "mle", "participation")]
        sizes.append([p, *values, "yes" if d["agree"] else "no"])
    lines = [
        f"# Alignment of {r['model']} with {r['target']}",
        "",
        f"{some}{r['items']} items of {r['data_name']}; {r['data']} data, {weights}.",
        "",
        "## Recommended layer",
        "",
        *study_layer(r),
        *table_of([*head, "earlier study (Qwen2.5-VL-7B)"], criteria),
        "",
        f"{compared}The earlier study used other data. Its CKA was probably biased and its R2 may be "
        "in-sample, so its figures are not the same quantity.",
        "",
        f"## Neighbours in common at {at['layer']}",
        "",
        f"* {', '.join(recall)}.",
        "",
        "## Spatial means, all layers and all points of the target",
        "",
    ]
    for m, b in r["pooled_best"].items():
        about = f"(p, maximum over {b['options_searched']} pairs: {b['p_max']:.3f})"
        lines.append(f"* {m}: best pair on val {b['layer']} - {b['point']}, score {b['score']:.3f} {about}.")
    lines += ["", "## Intrinsic dimension", ""]
    lines += table_of(["space", "TwoNN", "MLE", "participation ratio", "agree"], sizes)
    return "\n".join([*lines, ""])


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--features", default="results/tiny/shapes/features", help="the model's features")
    help_target = "features of the decoder's autoencoder, or of another model"
    add("--target", default="results/tiny-vae/shapes/features", help=help_target)
    help_point = "point of the target (default: latents, or the one with the highest CKA of means on val)"
    add("--target-point", help=help_point)
    add("--random", help="features of the untrained network at the chosen layers, a baseline")
    add("--choose", metavar="FILE", help="write the layers that are best on val to this YAML, and stop")
    help_permutations = "permutations of items for p-values; R2 uses half (default: %(default)s)"
    add("--permutations", type=int, default=200, help=help_permutations)
    add("--study", help="write a report in Markdown to this file")
    add("--out", help="default: align.yaml beside --features")
    return p.parse_args(argv)


def load_inputs(args):
    """Features of the model, the target and the untrained network (or None), of the same items or exit 2."""
    read, read_target = load_features(args.features)[1], load_features(args.target)[1]
    index, target = read.index, read_target.index
    if index["ids"] != target["ids"]:
        there = set(target["ids"])
        missing = next((f"{i!r} is missing" for i in index["ids"] if i not in there), "other order")
        fail(f"{args.target} holds other items than --features ({missing}); extract both from one folder")
    if index.get("shown") != target.get("shown"):
        fail(f"{args.target} has other frames than --features; use the same --frames and --count")
    read_random = load_features(args.random)[1] if args.random and not args.choose else None
    if read_random and read_random.index["ids"] != index["ids"]:
        fail(f"{args.random} and --features hold other items; extract both from one data folder")
    if not candidates(index["points"]):
        fail(f"{args.features} holds no layer but the pixels; extract some")
    if args.target_point:
        check_choice(args.target_point, target["points"], f"point in {args.target}")
    return read, read_target, read_random


def layers_of(read, points, keep):
    """{point: `Lazy`} of the items `keep`; exit 2 for a point that is the same for every item."""
    layers = {p: layer_of(read, p, keep) for p in points}
    rows = torch.arange(len(keep))
    for p, x in layers.items():
        first = x[rows[:1]]
        if all((x[part] == first).all() for part in rows.split(2)):
            fail(f"{p} in {read.folder} is the same for every item; extract it again")
    return layers


def read_items(args, index):
    """(items in the order of the features, those that are compared, index of the data)."""
    items, data = load_items(index["data_path"])
    items = join(items, index, args.features)
    if len(items) < 10:
        fail(f"{args.features} holds {len(items)} items; alignment needs at least 10")
    keep = torch.arange(len(items))
    if len(items) > SUBSET:
        generator = torch.Generator().manual_seed(args.seed)
        keep = torch.randperm(len(items), generator=generator)[:SUBSET].sort().values
    return [items[i] for i in keep.tolist()], keep, data


def read_means(folder, names, keep):
    """{point: [n, t, D]}: means over space; exit 2 if one is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    means = {p: pooled[p]["mean"].float()[keep] for p in names}
    for p, x in means.items():
        if not x.isfinite().all():
            fail(
                f"{folder}/pooled.pt holds non-finite values at {p}; extract in bf16 or fp32, or leave it out"
            )
    return means


def candidates(layers):
    """The layers that one is chosen from."""
    return [p for p in layers if p != "pixels"]


def choose_layers(rows, fits, pooled_best, split):
    """{criterion: the layer that is best on val} of a trained network."""
    chosen = {m: max(candidates(rows), key=lambda p: rows[p]["val"][m]) for m in PAIRED}
    if fits:
        chosen["linear_r2"] = max(fits, key=lambda p: r2_of(fits[p], split["val"]))
    chosen["recommended"] = chosen.get("linear_r2", chosen["cka"])
    return chosen | {f"pooled_{m}": row["layer"] for m, row in pooled_best.items()}


def measure_untrained(args, needed, read, keep, y, items, split, gridless):
    """{layer: {measure: {score, low, high}}} of the untrained network, where given, at the chosen layers."""
    if read is None:
        return {}
    if lacking := [p for p in needed if p not in read.index["points"]]:
        fail(f"{args.random} lacks the chosen layer {lacking[0]!r}; extract it at the points of --choose")
    layers = {p: layer_of(read, p, keep) for p in needed}
    found = read_layers(layers, y, items, split, args.seed, gridless, desc="untrained")
    table = {}
    for p, row in score_layers(*found, items, split, seed=args.seed).items():
        table[p] = {m: {key: x[key] for key in ("score", "low", "high")} for m, x in row.items()}
    return table


def dimensions(xs, ys, name, items, seed):
    """{space: intrinsic_dimension} of the means of layers and of points of the target `name`."""
    # one item a source: twins would lower the dimension
    single = torch.tensor(sorted({i["source"]: k for k, i in enumerate(items)}.values()))
    spaces = xs | {f"{name} {p}": y for p, y in ys.items()}
    return {p: intrinsic_dimension(x[single], seed) for p, x in spaces.items()}


def recorded(scores, random):
    """{measure: record} of the trained layers."""
    criteria = {}
    for m in MEASURES:
        rows = {p: scores[p] for p in candidates(scores) if m in scores[p]}
        if rows:
            criteria[m] = record(rows, random, scores.get("pixels"), m, len(rows))
    return criteria


def headline(point, indices, items, criteria, recommended):
    """The first keys of align.yaml; indices: of the features, the target and the data."""
    index, target, data = indices
    found = {"stage": "align", "model": index["model"], "target": target["model"], "target_point": point}
    found |= {"weights": index["weights"], "target_weights": target["weights"], "data": index["data"]}
    found |= {"data_name": data["name"], "items": len(index["ids"])}
    found |= {"subset": SUBSET} if len(items) < len(index["ids"]) else {}
    found |= {"chance_recall10": criteria["recall10"]["baselines"]["chance"], **recommended}
    for name, c in criteria.items():
        found |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"]}
        found |= {f"{name}_baseline": c["baseline"], f"{name}_p": c["p"], f"{name}_p_max": c["p_max"]}
        found[f"{name}_layer"] = c["layer"]
    if "linear_r2" not in criteria:
        reason = "the layers, or the target, have no token grid"
        found |= {"linear_r2": None, "linear_r2_layer": None, "linear_r2_reason": reason}
    return found | {"criteria": criteria}


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.permutations < 1:
        fail(f"--permutations {args.permutations} is too few for a p-value; the default is 200")
    read, read_target, read_random = load_inputs(args)
    index, target = read.index, read_target.index
    items, keep, data = read_items(args, index)
    split = split_indices(items, args.features)
    out = Path(args.choose or args.out or Path(args.features).parent / "align.yaml")
    for path in filter(None, (out, args.study)):
        check_writable(path)
    targets = layers_of(read_target, candidates(target["points"]), keep)
    layers = layers_of(read, index["points"], keep)

    xs = read_means(args.features, candidates(layers), keep)
    ys = read_means(args.target, targets, keep)
    pooled, best = pooled_matrix(xs, ys, items, split, args)
    point = args.target_point or ("latents" if "latents" in targets else best["cka"]["point"])
    y = layer_of(read_target, point, keep)
    gridless = set(layers) - set(with_grid(index) if point in with_grid(target) else ())
    n_perm = 0 if args.choose else args.permutations
    rows, fits, of_target = read_layers(layers, y, items, split, args.seed, gridless, n_perm, "layers")
    of_layers = {p: fit for p, fit in fits.items() if p != "pixels"}
    chosen = choose_layers(rows, of_layers, best, split)
    needed = [p for p in layers if p in chosen.values()]
    if args.choose:
        result = {"stage": "align", "points": ",".join(needed), "layers": chosen}
        save_yaml(out, result)
        print_summary(result)
        return result

    random = measure_untrained(args, needed, read_random, keep, y, items, split, gridless)
    scores = score_layers(rows, fits, of_target, items, split, n_perm, args.seed)
    criteria = recorded(scores, random)
    recommended = recommendation(of_layers, items, split, args.seed) if of_layers else {"recommended": None}
    result = headline(point, (index, target, data), items, criteria, recommended) | {"layers": scores}
    result |= {"untrained": random} if random else {}
    result |= {
        "at_layer": at_layer(chosen["recommended"], rows, of_target, items, split),
        "channels": channels(of_layers, split["test"]),
        "dimension": dimensions(xs, ys, target["model"], items, args.seed),
        "permuted_items": len(reported(items, split)[1]),
        "pooled_best": best,
        "pooled": pooled,
        "run": run_info(args, started, script="align.py"),
    }
    save_yaml(out, result)
    draw_chart(plain(result), out.with_suffix(".png"))
    if args.study:
        save_text(args.study, study(plain(result)))
    print_summary(result)
    return result


if __name__ == "__main__":
    main()
