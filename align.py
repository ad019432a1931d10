"""Stage 3. How similar are a model's layers and a video decoder's latents, or the layers of two models?

    python align.py --features results/tiny/shapes/features --target results/tiny-vae/shapes/features
    python align.py --target results/tiny-dinov2/shapes/features --out results/tiny/shapes/align-dinov2.yaml

Reads features of two encoders (extract.py). Writes align.yaml, align.png and a report (--study). By layer:

    cka          debiased linear CKA of flattened token grids (Kornblith et al. 2019; Song et al. 2012)
    linear_r2    held-out R2 of ridge from each token to the target's cell, about position means, not clipped
    spearman     Spearman correlation of pairwise distances (Kriegeskorte et al. 2008)
    recall10     share of 10 nearest neighbours in common (Huh et al. 2024), of other sources; chance: 10 / (n - 1)

For all but R2, an encoder becomes a matrix of items x items of norm one; alignment is an inner product.

Nulls: sources of the target are permuted whole, among sources of equal size. `p` is of one layer, `p_max` of
the largest of all (Westfall & Young 1993); R2's is of the target's first 4 principal components. The layer is
chosen on val. R2 is fitted on train and scored on test, the others on train and test together. `pooled`
compares spatial means of all layers and points of the target. Above 5,000 items a random 5,000 are compared
(--seed; `subset` in the YAML). A layer without a token grid has no linear_r2.

Modules, to be copied with it: common.py, stats.py.
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
from stats import clusters, resampled, solve_ridge, spectrum, token_ridge, widened

MEASURES = ("cka", "linear_r2", "spearman", "recall10")  # of gate 1
PAIRED = ("cka", "spearman", "recall10")  # cosines of two matrices
K, RECALLS = 10, (1, 5, 10, 20)  # neighbours
SUBSET, EXACT = 5000, 2500  # most items compared; most items with matrices in memory
# principal components of the target, for R2's permutations and for R2 of spatial means
REDUCED, POOLED_PARTS = 4, 32
# of an earlier study of Qwen2.5-VL-7B: probably biased, or in-sample
EARLIER = {"cka": 0.687, "linear_r2": 0.510, "spearman": 0.684, "recall10": 0.258}


# ---------------------------------------------------------------- one space: a matrix [n, n] per measure


def space_of(x, sources=None, hold=True):
    """A space of features [n, ...], centred, of mean square norm one; its Gram matrix up to EXACT items."""
    x = x.flatten(1).float()
    x = x - x.mean(0)
    x /= (x.norm() / len(x) ** 0.5).clamp(min=1e-30)
    if len(x) > EXACT or not hold:
        return {
            "x": x,
            "n": len(x),
            "square": x.norm(dim=1).square(),
            "sums": x @ x.sum(0),
            "owner": sources and clusters(sources),
        }
    gram = torch.empty(len(x), len(x))
    for a in range(0, len(x), 256):  # the upper half, copied to the lower
        b = a + 256
        torch.mm(x[a:b], x[a:].T, out=gram[a:b, a:])
        gram[b:, a:b] = gram[a:b, b:].T
    return of_gram(gram, sources)


def of_gram(gram, sources=None):
    """A space from its Gram matrix [n, n]."""
    return {
        "gram": gram,
        "n": len(gram),
        "square": gram.diagonal().clone(),
        "sums": gram.sum(1),
        "owner": sources and clusters(sources),
    }


def part_of(space, keep):
    gram = space["gram"][keep][:, keep]
    return of_gram(gram) | {"owner": space["owner"] if space["owner"] is None else space["owner"][keep]}


def gram_rows(space, rows, first=0):
    if "x" in space:
        return space["x"][rows] @ space["x"][first:].T
    gram = space["gram"][:, first:]
    return gram if len(rows) == space["n"] else gram.index_select(0, rows)


def distances(space):
    """Squared distances of all items to all, [n, n]."""
    return torch.add(
        space["square"][:, None] + space["square"], gram_rows(space, torch.arange(space["n"])), alpha=-2
    ).clamp_(min=0)


def u_centred(space):
    """U-centred Gram matrix [n, n]: products are unbiased HSIC (Szekely & Rizzo 2014; Song et al. 2012)."""
    n = space["n"]
    sums = (space["sums"] - space["square"]) / (n - 2)
    found = gram_rows(space, torch.arange(n)) - sums[:, None]
    found -= sums - sums.sum() / (n - 1)
    return found.fill_diagonal_(0)


def nearest(space, rows, k=K):
    """The k nearest items of other sources to each of `rows`: [b, k], unordered."""
    # squared distance without the row's own square, which does not change the order
    d, owner = torch.add(space["square"], gram_rows(space, rows), alpha=-2), space["owner"]
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
    # [n, L, k], [n, M, k]
    mine, theirs = (
        torch.stack(
            [torch.cat([nearest(s, rows, k) for rows in torch.arange(s["n"]).split(block)]) for s in side], 1
        )
        for side in (a, b)
    )
    n, found = len(mine), torch.zeros(mine.shape[1], theirs.shape[1], dtype=torch.float64)
    for rows in torch.arange(n).split(block):
        queries = theirs[rows].flatten(1)
        for i, near in enumerate(mine[rows].unbind(1)):
            among = torch.zeros(len(rows), n, dtype=torch.bool).scatter_(1, near, True)
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
    matrices. Gram matrices come in blocks of rows that fit a cache; above EXACT items none is held whole."""
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
        for rows in torch.arange(n).split(block):
            first = int(rows[0])
            parts = [
                to[: len(side) * len(rows) * (n - first)].view(len(side), len(rows), -1)
                for to, side in zip(buffers, (a, b), strict=True)
            ]
            for part, side in zip(parts, (a, b), strict=True):
                torch.stack([gram_rows(s, rows, first) for s in side], out=part)
                part[:, :, : len(rows)].triu_(1)
            yield [part.flatten(1) for part in parts]

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
    """`pairs` of features [n, ...]."""

    def spaces(side):  # one at a time: neighbours need no more
        return (space_of(x, sources, measure != "cka") for x in side)

    return pairs(spaces(xs), spaces(ys), measure, k)


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

    folds = min(folds, len(blocks))
    parts = [torch.cat([b for i, b in enumerate(blocks) if i % folds != f]) for f in range(folds)]
    v = torch.stack(
        [pairs([part_of(s, keep) for s in a], [part_of(s, keep) for s in b], measure, k) for keep in parts]
    )
    half = float(stdtrit(folds - 1, 0.975)) * ((folds - 1) / folds * (v - v.mean(0)).square().sum(0)).sqrt()
    whole = pairs(a, b, measure, k)
    return whole, whole - half, whole + half


# ---------------------------------------------------------------- fitted maps


def match(x, t, h, w):
    """Token grid [n, T, H, W, d] resampled to t x h x w by pooling or repetition: [n, t*h*w, d]."""
    return F.adaptive_avg_pool3d(x.permute(0, 4, 1, 2, 3), (t, h, w)).flatten(2).transpose(1, 2)


def principal(rows, most):
    """The first principal directions of rows [m, d] about their mean, [d, most], and the mean."""
    mean = rows.mean(0)
    centred = (rows - mean).double()
    return torch.linalg.eigh(centred.T @ centred)[1][:, -most:].flip(1).float(), mean


def token_r2(x, y, split, seed=0, n_perm=0, blocks=()):
    """A token-wise ridge from x [n, K, d] to y [n, K, c] about each position's training mean; penalty by val.

    Returns {residual, variance: [n, c]; reduced: R2 on test of y's first REDUCED principal components; null:
    the same with training images permuted, [n_perm]}. Held-out R2 is 1 - sum residual / sum variance."""
    train, test = split["train"], split["test"]
    y = y - y[train].mean(0)  # so that a map from the position alone scores 0
    x = x - x[train].mean(0)
    targets, g = {"true": y}, torch.Generator().manual_seed(seed)
    if n_perm:
        small = targets["reduced"] = y @ principal(y[train].flatten(0, 1), REDUCED)[0]
    for i in range(n_perm):
        targets[f"null{i}"] = small.index_copy(0, train, small[train][shuffle(blocks, g)])
    found = token_ridge(x, targets, train, split["val"])

    def r2(z, true):
        return 1 - ((z - true)[test].square().sum() / true[test].square().sum()).item()

    out = {"residual": (found["true"] - y).double().square().sum(1), "variance": y.double().square().sum(1)}
    return out | (
        {
            "reduced": r2(found["reduced"], small),
            "null": torch.tensor([r2(found[f"null{i}"], small) for i in range(n_perm)]),
        }
        if n_perm
        else {}
    )


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


def reported(items, split):
    """(report, some, their sources): the train and test items; of them whole sources with at most EXACT
    items. Scores without parameters use `report`; intervals and permutations use `some`."""
    report = torch.cat([split["train"], split["test"]])
    chosen, n = [], 0
    for block in blocks_of([items[i]["source"] for i in report.tolist()]):
        if chosen and n + len(block) > EXACT:
            break
        chosen, n = [*chosen, block[:EXACT]], n + len(block)
    some = report[torch.cat(chosen).sort().values]
    return report, some, *([items[i]["source"] for i in pick.tolist()] for pick in (report, some))


def measure_layers(layers, y, items, split, args, gridless=(), n_perm=None, desc=None):
    """({layer: {measure: {score, low, high, p, p_max, val, n}}}, {layer: token_r2}); y [n, t, h, w, d]."""
    n_perm, (report, some, sources, of_some) = (
        args.permutations if n_perm is None else n_perm,
        reported(items, split),
    )
    of_val, of_test, of_train = (
        [items[i]["source"] for i in split[part].tolist()] for part in ("val", "test", "train")
    )
    target, target_val = ([space_of(y[pick], s)] for pick, s in ((some, of_some), (split["val"], of_val)))
    spaces = []
    spaces_val = []
    scores = {m: [] for m in PAIRED}
    fits = {}
    out = {p: {} for p in layers}
    for p, read in tqdm(layers.items(), desc=desc, unit="layer", disable=desc is None):
        x = read()
        spaces.append(space_of(x[some], of_some))
        spaces_val.append(space_of(x[split["val"]], of_val))
        for m in PAIRED if len(some) < len(report) else ():
            scores[m].append(compare([x[report]], [y[report]], m, sources)[0, 0])
        if p not in gridless:
            side = [min(a, b) for a, b in zip(x.shape[1:4], y.shape[1:4], strict=True)]
            fits[p] = token_r2(
                match(x, *side), match(y, *side), split, args.seed, n_perm // 2, blocks_of(of_train)
            )
    for m in PAIRED:
        found, low, high = (v[:, 0] for v in jackknife(spaces, target, m, blocks_of(of_some)))
        score, val = torch.stack(scores[m]) if scores[m] else found, pairs(spaces_val, target_val, m)[:, 0]
        p, p_max = (
            p_values(
                found,
                permuted(
                    held(spaces, m),
                    held(target, m),
                    m in ("cka", "spearman"),
                    blocks_of(of_some),
                    n_perm,
                    args.seed,
                )[..., 0],
            )
            if n_perm
            else (None, None)
        )
        for k, layer in enumerate(layers):
            row = out[layer][m] = {
                "score": score[k].item(),
                "low": (score + low - found)[k].item(),
                "high": (score + high - found)[k].item(),
                "val": val[k].item(),
                "n": len(report),
            }
            row |= {"chance": chance(sources)} if m == "recall10" else {}
            row |= {"p": p[k].item(), "p_max": p_max[k].item()} if n_perm else {}
    largest = torch.stack([f["null"] for f in fits.values()]).amax(0) if fits and n_perm else None
    for layer, fit in fits.items():
        score, low, high = ratio_bootstrap(
            *(fit[k][split["test"]].sum(1) for k in ("residual", "variance")), of_test, seed=args.seed
        )
        out[layer]["linear_r2"] = {
            "score": score,
            "low": low,
            "high": high,
            "val": r2_of(fit, split["val"]),
            "n": len(split["test"]),
        }
        if n_perm:
            out[layer]["linear_r2"] |= {
                key: (1 + (null >= fit["reduced"]).sum().item()) / (1 + len(null))
                for key, null in (("p", fit["null"]), ("p_max", largest))
            }
    return out, fits


def record(layers, random, pixels, measure, n_options):
    """The record at the best layer on val; baselines: chance, raw pixels and the untrained network."""
    best = max(layers, key=lambda p: layers[p][measure]["val"])
    at_best = layers[best][measure]
    baselines = {"chance": at_best.get("chance", 0.0)}
    baselines |= {"pixels": pixels[measure]["score"]} if pixels else {}
    baselines |= {"random_init": random[best][measure]["score"]} if random else {}
    name = max(baselines, key=baselines.get)
    half = [at_best["score"] - at_best["low"], at_best["high"] - at_best["score"]]
    rival = {"pixels": pixels, "random_init": (random or {}).get(best)}.get(name)
    other = (
        [rival[measure]["score"] - rival[measure]["low"], rival[measure]["high"] - rival[measure]["score"]]
        if rival
        else [0.0, 0.0]
    )
    gain = at_best["score"] - baselines[name]
    return {
        "score": at_best["score"],
        "low": at_best["low"],
        "high": at_best["high"],
        "better": "higher",
        "n": at_best["n"],
        "baseline": baselines[name],
        "baseline_name": name,
        "upper_bound": 1.0,
        "skill": gain / (1 - baselines[name]),
        "gain": gain,
        "gain_low": gain - (half[0] ** 2 + other[1] ** 2) ** 0.5,
        "gain_high": gain + (half[1] ** 2 + other[0] ** 2) ** 0.5,
        "p": at_best["p"],
        "p_max": at_best["p_max"],
        "layer": best,
        "options_searched": n_options,
        "baselines": baselines,
    }


def recommendation(fits, items, split, seed):
    """{recommended: layer with the highest R2 on val, recommended_share: of val resamples, runner_up}."""
    val = split["val"]
    sources = [items[i]["source"] for i in val.tolist()]
    draws = torch.stack(
        [
            ratio_draws(f["residual"][val].sum(1), f["variance"][val].sum(1), sources, seed=seed)[0]
            for f in fits.values()
        ]
    )
    order = sorted(fits, key=lambda p: -r2_of(fits[p], val))
    return {
        "recommended": order[0],
        "recommended_share": (draws.argmax(0) == list(fits).index(order[0])).double().mean().item(),
        "runner_up": order[1] if len(order) > 1 else None,
    }


def pooled_matrix(xs, ys, items, split, args):
    """Of means xs, ys {point: [n, t, d]}: ({measure: {layer: {point: score}}}, {measure: best pair on val}).

    linear_r2: ridge from a layer to the first POOLED_PARTS principal components of a point, penalty by
    leave-one-out."""
    (report, some, sources, of_some), val, tables, best = reported(items, split), split["val"], {}, {}
    of_val, blocks = [items[i]["source"] for i in val.tolist()], blocks_of(of_some)
    spaces = [[space_of(x[some], of_some) for x in side.values()] for side in (xs, ys)]
    for m in PAIRED:
        score = compare([x[report] for x in xs.values()], [y[report] for y in ys.values()], m, sources)
        on_val = compare([x[val] for x in xs.values()], [y[val] for y in ys.values()], m, of_val)
        null = permuted(*(held(s, m) for s in spaces), m != "recall10", blocks, args.permutations, args.seed)
        p, p_max = p_values(pairs(*spaces, m), null)
        layer, point = divmod(int(on_val.argmax()), len(ys))
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
    train, test = split["train"], split["test"]
    targets = {}
    for name, y in ys.items():
        y = y.flatten(1)
        directions, mean = principal(y[train], min(POOLED_PARTS, y.shape[1], len(train) - 1))
        targets[name] = (y - mean) @ directions
    kernels = torch.stack([(z := (x := v.flatten(1)) - x[train].mean(0)) @ z[train].T for v in xs.values()])
    found = solve_ridge(*spectrum(kernels, train), targets, train)
    tables["linear_r2"] = torch.stack(
        [
            1 - (f[:, test] - targets[name][test]).square().sum((1, 2)) / targets[name][test].square().sum()
            for name, (f, _) in found.items()
        ],
        1,
    )
    return {
        m: {p: dict(zip(ys, row.tolist(), strict=True)) for p, row in zip(xs, table, strict=True)}
        for m, table in tables.items()
    }, best


def at_layer(name, x, y, items, split):
    """Neighbours in common at the recommended layer, for several k. x, y: [n, t, h, w, d]."""
    _, some, _, sources = reported(items, split)
    spaces = [space_of(z[some], sources) for z in (x, y)]
    recall = {}
    for k in (k for k in RECALLS if k < len(some) - 2):
        score = pairs(spaces[:1], spaces[1:], "recall10", k).item()
        recall[f"{k}"] = {"score": score, "chance": chance(sources, k)}
    return {"layer": name, "recall": recall}


def channels(fits, test):
    """{layer: R2 on test of every channel of the target}, not clipped; None for a constant channel."""
    return {
        p: [
            1 - r / v if v > 0 else None
            for r, v in zip(*(f[k][test].sum(0).tolist() for k in ("residual", "variance")), strict=True)
        ]
        for p, f in fits.items()
    }


# ---------------------------------------------------------------- chart and report


def draw_chart(result, path):
    """Write align.png: scores by layer; R2 by layer and channel; CKA of spatial means, layers x points."""
    plt = pyplot()
    layers = [p for p in result["layers"] if p != "pixels"]
    figure, axes = plt.subplots(1, 3, figsize=(20, 2.8 + 0.32 * len(layers)), layout="constrained")

    def heat(axis, rows, columns, title, text=True, low=0.0):
        values = torch.tensor([[math.nan if v is None else v for v in row] for row in rows])
        shown = axis.imshow(values.numpy(), aspect="auto", cmap="viridis", vmin=low, vmax=1)
        axis.set_xticks(
            range(len(columns)),
            columns,
            rotation=45 if max(map(len, map(str, columns))) > 3 else 0,
            ha="right" if max(map(len, map(str, columns))) > 3 else "center",
            fontsize=8,
        )
        axis.set_yticks(range(len(rows)), layers, fontsize=8)
        axis.set_title(title, fontsize=10)
        for i, row in enumerate(values.tolist() if text else ()):
            for j, v in enumerate(row):
                axis.text(
                    j,
                    i,
                    "-" if math.isnan(v) else f"{v:.2f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if v > 0.6 else "white",
                )
        return shown

    names = [m for m in (*PAIRED, "linear_r2") if any(m in result["layers"][p] for p in layers)]
    columns = [
        f"{m}{side}" for m in names for side in ("", "\nuntrained") if not side or "untrained" in result
    ]
    rows = [
        [
            row.get(p, {}).get(m, {}).get("score")
            for m in names
            for row in (
                [result["layers"], result["untrained"]] if "untrained" in result else [result["layers"]]
            )
        ]
        for p in layers
    ]
    heat(
        axes[0],
        rows,
        columns,
        f"Alignment of {result['model']}'s tokens with {result['target']} {result['target_point']}",
    )
    if result.get("channels"):
        table = result["channels"]
        heat(
            axes[1],
            [table.get(p, [None] * len(next(iter(table.values())))) for p in layers],
            [str(c) for c in range(len(next(iter(table.values()))))],
            f"Held-out linear R2 of each channel of {result['target_point']}\n(below 0 drawn as 0)",
            text=len(next(iter(table.values()))) <= 16,
        )
    else:
        axes[1].axis("off")
    table = result["pooled"]["cka"]
    points = list(next(iter(table.values())))
    shown = heat(
        axes[2],
        [[table.get(p, {}).get(t) for t in points] for p in layers],
        points,
        f"Debiased CKA of spatial means, with {result['target']}",
        text=len(points) <= 16,
    )
    figure.colorbar(shown, ax=axes[2])
    figure.suptitle(
        f"{result['data_name']}: {result['items']} items; recommended layer {result.get('recommended')}; "
        f"{result['weights']} weights, {result['data']} data"
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def study(r):
    """The report in Markdown, from the YAML's numbers."""

    def interval(c):
        return f"{c['score']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"

    some = f"{r['subset']} of " if "subset" in r else ""
    lines = [
        f"# Alignment of {r['model']} with {r['target']}",
        "",
        f"{some}{r['items']} items of {r['data_name']}; {r['data']} data, {r['weights']} weights, "
        f"{r['target_weights']} weights of the target.",
        "",
        "## Recommended layer",
        "",
    ]
    if r.get("recommended"):
        best = r["layers"][r["recommended"]]["linear_r2"]
        share, rest = r["recommended_share"], f"; the runner-up is {r['runner_up']}" if r["runner_up"] else ""
        lines += [
            f"**{r['recommended']}**, by linear R2: {best['val']:.3f} on val, {interval(best)} on test. "
            f"It is the best of {len(r['channels'])} layers in {share:.0%} of resamples of val{rest}. "
            + ("The choice is certain." if share > 0.95 else "The choice is uncertain."),
            "",
        ]
    else:
        lines += [f"No layer is recommended: {r['linear_r2_reason']}.", ""]
    lines += [
        "| measure | layer | score | best baseline | p (max over layers) | earlier study (Qwen2.5-VL-7B) |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {m} | {c['layer']} | {interval(c)} | {c['baseline']:.3f} {c['baseline_name']} | {c['p_max']:.3f} | {EARLIER[m]} |"
        for m, c in r["criteria"].items()
    ]
    above = [m for m, c in r["criteria"].items() if c["gain_low"] > 0]
    lines += [
        "",
        (
            f"Above the best baseline: {', '.join(above)}. "
            if above
            else "No measure is above its best baseline: an untrained network or raw pixels align as well. "
        )
        + "The earlier study used other data. Its CKA was probably biased and its R2 may be in-sample, "
        "so its figures are not the same quantity.",
        "",
    ]
    at = r["at_layer"]
    lines += [f"## Neighbours in common at {at['layer']}", ""]
    lines += [
        "* "
        + ", ".join(f"{v['score']:.3f} of {k} (chance {v['chance']:.3f})" for k, v in at["recall"].items())
        + "."
    ]
    lines += ["", "## Spatial means, all layers and all points of the target", ""]
    lines += [
        f"* {m}: best pair on val {b['layer']} - {b['point']}, score {b['score']:.3f} "
        f"(p, maximum over {b['options_searched']} pairs: {b['p_max']:.3f})."
        for m, b in r["pooled_best"].items()
    ]
    lines += [
        "",
        "## Intrinsic dimension",
        "",
        "| space | TwoNN | MLE | participation ratio | agree |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p} | {d['two_nn']:.1f} | {d['mle']:.1f} | {d['participation']:.1f} | {'yes' if d['agree'] else 'no'} |"
        for p, d in r["dimension"].items()
    ]
    return "\n".join([*lines, ""])


def get_args(argv):
    p = parser(__doc__)
    p.add_argument(
        "--features",
        default="results/tiny/shapes/features",
        help="the model's features (default: %(default)s)",
    )
    p.add_argument(
        "--target",
        default="results/tiny-vae/shapes/features",
        help="features of the decoder's autoencoder, or of another model (default: %(default)s)",
    )
    p.add_argument(
        "--target-point",
        help="point of the target (default: latents, or the one with the highest CKA of means on val)",
    )
    p.add_argument("--random", help="features of the untrained network, a baseline")
    p.add_argument(
        "--permutations",
        type=int,
        default=200,
        help="permutations of items for p-values; R2 uses half (default: %(default)s)",
    )
    p.add_argument("--study", help="write a report in Markdown to this file")
    p.add_argument("--out", help="default: align.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.permutations < 1:
        fail(f"--permutations {args.permutations} is too few for a p-value; the default is 200")
    index, read = load_features(args.features)
    target, read_target = load_features(args.target)
    if index["ids"] != target["ids"]:
        there = set(target["ids"])
        missing = next((f"{i!r} is missing" for i in index["ids"] if i not in there), "other order")
        fail(f"{args.target} holds other items than --features ({missing}); extract both from one folder")
    if index.get("shown") != target.get("shown"):
        fail(f"{args.target} has other frames than --features; use the same --frames and --count")
    random_index, read_random = load_features(args.random) if args.random else ({"points": {}}, None)
    if args.random and random_index["ids"] != index["ids"]:
        fail(f"{args.random} and --features hold other items; extract both from one data folder")
    items, data = load_items(index["data_path"])
    items = join(items, index, args.features)
    if len(items) < 10:
        fail(f"{args.features} holds {len(items)} items; alignment needs at least 10")
    total, keep = len(items), slice(None)
    if total > SUBSET:
        generator = torch.Generator().manual_seed(args.seed)
        keep = torch.randperm(total, generator=generator)[:SUBSET].sort().values
        items = [items[i] for i in keep.tolist()]
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "align.yaml")
    check_writable(out)
    if args.study:
        check_writable(args.study)

    points = list(index["points"])
    if not set(points) - {"pixels"}:
        fail(f"{args.features} holds no layer but the pixels; extract some")
    if lacking := [p for p in points if args.random and p != "pixels" and p not in random_index["points"]]:
        fail(f"{args.random} lacks {lacking[0]}; extract it with the --points of --features")
    targets = [p for p in target["points"] if p != "pixels"]
    if args.target_point:
        check_choice(args.target_point, target["points"], f"point in {args.target}")

    # checked before the costly work
    for reader, names, where in ((read_target, targets, args.target), (read, points, args.features)):
        for point in names:
            if reader(point).flatten(1).std(0).max() == 0:
                fail(f"{point} in {where} is the same for every item; extract it again")

    def means(folder, names):
        pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
        return {p: pooled[p]["mean"].float()[keep] for p in names}

    xs, ys = means(args.features, [p for p in points if p != "pixels"]), means(args.target, targets)
    pooled, best = pooled_matrix(xs, ys, items, split, args)
    point = args.target_point or ("latents" if "latents" in targets else best["cka"]["point"])
    y = read_target(point)[keep]

    gridless = set(points) - set(with_grid(index)) if point in with_grid(target) else set(points)
    readers = {p: lambda p=p: read(p)[keep] for p in points}
    layers, fits = measure_layers(readers, y, items, split, args, gridless, desc="layers")
    random = {}
    if args.random:
        readers = {p: lambda p=p: read_random(p)[keep] for p in points if p != "pixels"}
        random, _ = measure_layers(readers, y, items, split, args, gridless, n_perm=0, desc="untrained")
    pixels, trained = layers.get("pixels"), {p: v for p, v in layers.items() if p != "pixels"}
    fits.pop("pixels", None)
    measured = {m: {p: v for p, v in trained.items() if m in v} for m in MEASURES}
    criteria = {m: record(rows, random, pixels, m, len(rows)) for m, rows in measured.items() if rows}
    chosen = recommendation(fits, items, split, args.seed) if fits else {"recommended": None}
    layer = chosen["recommended"] or criteria["cka"]["layer"]
    # one item a source: twins would lower the dimension
    x = read(layer)[keep]
    single = torch.tensor(sorted({i["source"]: k for k, i in enumerate(items)}.values()))
    result = {
        "stage": "align",
        "model": index["model"],
        "target": target["model"],
        "target_point": point,
        "weights": index["weights"],
        "target_weights": target["weights"],
        "data": index["data"],
        "data_name": data["name"],
        "items": total,
    }
    if total > SUBSET:
        result["subset"] = SUBSET
    result |= {"chance_recall10": criteria["recall10"]["baselines"]["chance"], **chosen}
    for name, c in criteria.items():
        result |= {
            name: c["score"],
            f"{name}_low": c["low"],
            f"{name}_high": c["high"],
            f"{name}_baseline": c["baseline"],
            f"{name}_p": c["p"],
            f"{name}_p_max": c["p_max"],
            f"{name}_layer": c["layer"],
        }
    if "linear_r2" not in criteria:
        reason = "the layers, or the target, have no token grid"
        result |= {"linear_r2": None, "linear_r2_layer": None, "linear_r2_reason": reason}
    result["criteria"] = criteria
    result["layers"] = {p: {m: v[m] for m in (*PAIRED, "linear_r2") if m in v} for p, v in layers.items()}
    if random:
        result["untrained"] = untrained = {}
        for p, row in random.items():
            untrained[p] = {m: {k: x[k] for k in ("score", "low", "high")} for m, x in row.items()}
    spaces = xs | {f"{target['model']} {p}": v for p, v in ys.items()}
    result |= {
        "at_layer": at_layer(layer, x, y, items, split),
        "channels": channels(fits, split["test"]),
        "dimension": {p: intrinsic_dimension(v[single], args.seed) for p, v in spaces.items()},
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
