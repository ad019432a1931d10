"""How similar are a model's layers and a video decoder's latents, or the layers of two models?

    python align.py --features results/tiny/shapes/features --target results/tiny-vae/shapes/features
    python align.py --target results/tiny-dinov2/shapes/features --out results/tiny/shapes/align-dinov2.yaml

Reads features of two encoders (extract.py). Writes align.yaml, align.png and a report (--study). By layer:

    cka          debiased linear CKA of flattened token grids (Kornblith et al. 2019; Song et al. 2012)
    linear_r2    held-out R2 of ridge from each token to the target's cell, about position means, not clipped
    spearman     Spearman correlation of pairwise distances (Kriegeskorte et al. 2008)
    recall10     share of 10 nearest neighbours by cosine in common (mutual kNN of Huh et al. 2024; outliers
                 stay); an item's own source holds none of its neighbours; chance: 10 / (n - 1)

Features are read in slices, one layer at a time. Above 2,500 items a random 2,500 are compared (--seed).
The layer is chosen on val. R2 is fitted on train and scored on test, the others on train and test together.
Baselines: chance, raw pixels, and the untrained network (--random) at the layers that --choose writes. Gains
are paired: R2's by items, the others' by jackknife over 20 groups of sources; `gain_p` is their test. `p`
permutes the target's sources whole, among sources of equal size; `p_max` is of the largest of all layers
(Westfall & Young 1993). R2's are of the target's first 4 principal components.

Copy with it: common.py, stats.py.
"""

import collections
import math
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

import common
import stats
from common import fail
from stats import Lazy, chunks, clusters

PAIRED = ("cka", "spearman", "recall10")  # inner products of two matrices
MEASURES = ("cka", "linear_r2", "spearman", "recall10")  # of gate 1
SUBSET = 2500  # most items compared
FOLDS, K = 20, 10  # of the jackknife; neighbours
# target, acceptable, fail: the evaluation plan, E-P4.5
BANDS = {"cka": (0.50, 0.40, 0.30), "linear_r2": (0.50, 0.40, 0.25)}
BANDS |= {"spearman": (0.60, 0.50, 0.40), "recall10": (0.30, 0.20, 0.10)}
REDUCED = 4  # principal components of the target, for R2's permutations


def get_args(argv):
    p = common.parser(__doc__)
    add = p.add_argument
    add("--features", default="results/tiny/shapes/features", help="the model's features")
    add("--target", default="results/tiny-vae/shapes/features", help="features of a VAE or another model")
    add("--target-point", help="point of the target (default: latents, or the last)")
    add("--random", help="features of the untrained network at the chosen layers, a baseline")
    add("--choose", metavar="FILE", help="write the layers that are best on val to this YAML, and stop")
    add("--permutations", type=int, default=200, help="for p-values; R2 uses half (default: %(default)s)")
    add("--study", help="write a report in Markdown to this file")
    add("--out", help="default: align.yaml beside --features")
    return p.parse_args(argv)


# products [n, n] of items about their mean; about the origin they are gram + shift[:, None] + shift
# source: the number of each item's source
Space = collections.namedtuple("Space", "gram shift source")


def part_of(space, keep):
    return Space(space.gram[keep][:, keep], space.shift[keep], clusters(space.source[keep].tolist()))


def space_of(x, sources=None):
    """The space of features x [n, ...], a tensor or `Lazy`, scaled to a mean square norm of one."""
    n = len(x)

    def with_origin(part):
        return F.pad(part.flatten(1).float(), (0, 0, 0, 1))

    # the origin is one more item: products that include a large mean would lose fp32 precision
    slices = Lazy(None, n + 1, lambda: map(with_origin, x.slices() if isinstance(x, Lazy) else [x]))
    products = stats.gram(slices, torch.arange(n))
    products /= products.diagonal()[:n].mean().clamp(min=1e-30)
    origin = products[n].double()
    return Space(products[:n, :n], origin[n] / 2 - origin[:n], clusters(sources or range(n)))


def u_centred(space):
    """U-centred Gram matrix [n, n]: products are unbiased HSIC (Szekely & Rizzo 2014; Song et al. 2012)."""
    n, found = len(space.gram), space.gram.clone().fill_diagonal_(0)
    sums = found.sum(1) / (n - 2)
    found -= sums[:, None]
    found -= sums - sums.sum() / (n - 1)
    return found.fill_diagonal_(0)


def distance_ranks(space):
    """Centred ranks of the distances of all pairs [n, n], 0 on the diagonal; ties share their mean rank."""
    gram, square, found = space.gram, space.gram.diagonal(), torch.zeros(space.gram.shape)
    i, j = torch.triu_indices(*gram.shape, 1)
    distances = (square[i] + square[j] - 2 * gram[i, j]).clamp(min=0).float()
    # the bits of positive floats sort like the floats, and integers are sorted faster
    _, which, counts = distances.view(torch.int32).unique(return_inverse=True, return_counts=True)
    found[i, j] = (counts.cumsum(0) - (counts + len(i)) / 2)[which]
    return found + found.T


def neighbours(space):
    """1.0 where an item is one of the K nearest of other sources to the row's item, by cosine: [n, n]."""
    source, found = space.source, torch.zeros_like(space.gram)
    k = min(K, len(source) - int(source.bincount().max()) - 1)  # of all others every space would agree
    norm = (space.gram.diagonal() + 2 * space.shift).clamp(min=1e-30).sqrt()
    for rows in torch.arange(len(found)).split(256):
        # without the norm of the row's item, which does not change the order
        cosine = (space.gram[rows] + space.shift[rows, None] + space.shift) / norm
        cosine.masked_fill_(source[rows, None] == source, -math.inf)
        found[rows] = found[rows].scatter(1, cosine.topk(max(k, 1), sorted=False).indices, 1.0)
    return found


def matrix(space, measure):
    """The matrix [n, n] of a space for a measure, of norm one: alignment is the inner product of two."""
    found = {"cka": u_centred, "spearman": distance_ranks, "recall10": neighbours}[measure](space)
    return found / found.double().norm().clamp(min=1e-30).float()


def pairs(xs, ys, measure):
    """Alignment [L, M] of L spaces with M spaces of the same items; a generator xs holds one at a time."""
    fixed = torch.stack([matrix(y, measure) for y in ys])
    rows = (torch.einsum("mij,ij->mi", fixed, matrix(x, measure)) for x in xs)  # longer sums lose precision
    return torch.stack([row.double().sum(1) for row in rows])


def jackknife(xs, y, measure):
    """Pseudo-values [L, G] of the alignment of L spaces with y, by deleting G groups of sources."""
    deleted, group = [], y.source % FOLDS  # a bootstrap would repeat items: a copy is the nearest neighbour
    for one in group.unique():
        keep = (group != one).nonzero().flatten()
        deleted.append(pairs((part_of(x, keep) for x in xs), [part_of(y, keep)], measure)[:, 0])
    return stats.pseudo_values(pairs(xs, [y], measure)[:, 0], torch.stack(deleted, 1))


def shuffle(source, g):
    """A permutation of items that swaps whole sources of equal size; source: its number, for each item."""
    order, size = torch.empty_like(source), source.bincount()[source]
    for equal in size.unique().tolist():
        rows = (size == equal).nonzero().flatten()
        rows = rows[source[rows].argsort(stable=True)].view(-1, equal)  # [sources, items]
        order[rows] = rows[torch.randperm(len(rows), generator=g)]
    return order


def resampled(x, side, train, most=2**28):
    """Token grids x [n, T, H, W, d], pooled or repeated to `side` (t, h, w), about the mean of each position
    over the training items: `Lazy` [n, t*h*w, d]. At most `most` bytes are held."""

    def read(rows):
        parts = [F.adaptive_avg_pool3d(x[part].permute(0, 4, 1, 2, 3), side) for part in chunks(rows, x)]
        return torch.cat(parts).flatten(2).transpose(1, 2)

    every = torch.arange(len(x))
    tokens = read(every) if 4 * len(x) * read(every[:1]).numel() <= most else Lazy(read, len(x))
    total = sum(tokens[part].sum(0, dtype=torch.float64) for part in chunks(train, tokens))
    mean = (total / len(train)).float()
    return Lazy(lambda rows: tokens[rows] - mean, len(x))


def token_r2(x, y, split, source, n_perm=0, seed=0):
    """A ridge from each token of grids x [n, t, h, w, d] to its cell of y, tensors or `Lazy`; penalty by val.

    Returns {values: one for each test item, whose mean is the held-out R2; val; channels: R2 on test of each,
    not clipped, None for a constant one; observed: R2 on test of y's first REDUCED principal components;
    null: the same with training items permuted, [n_perm]}.
    """
    n, (train, val, test) = len(x), (split[part] for part in ("train", "val", "test"))
    every, g = torch.arange(n), torch.Generator().manual_seed(seed)
    side = [min(z) for z in zip(x[every[:1]].shape[1:4], y[every[:1]].shape[1:4], strict=True)]
    # about position means, so that a map from the position alone scores 0
    x, y = resampled(x, side, train), resampled(y, side, train)
    directions = torch.linalg.eigh(stats.moments(y, y, train)[1])[1][:, -REDUCED:].float()
    reduced = torch.cat([y[part] @ directions for part in chunks(every, y)])
    permutations = [train[shuffle(source[train], g)] for _ in range(n_perm)]
    orders = [every, *(every.index_copy(0, train, order) for order in permutations)]
    targets = Lazy(lambda rows: torch.cat([y[rows], *(reduced[order[rows]] for order in orders)], -1), n)
    widths = [len(directions), *(reduced.shape[-1] for _ in orders)]
    predict = stats.token_map(x, targets, widths, train, val)

    errors, squares = torch.full((2, n, sum(widths)), math.nan, dtype=torch.float64)
    for rows in chunks(torch.cat([val, test]), x, targets):
        truth = targets[rows]  # of these items nothing is permuted
        errors[rows], squares[rows] = (z.square().sum(1).double() for z in (predict(x[rows]) - truth, truth))

    def r2_of(items, error, square):
        return 1 - stats.ratio(error[items].sum(1), square[items].sum(1))

    own, *of_reduced = zip(errors.split(widths, 1), squares.split(widths, 1), strict=True)
    found = {"values": r2_of(test, *own), "val": r2_of(val, *own).mean().item()}
    sums = zip(*(z[test].sum(0).tolist() for z in own), strict=True)
    found["channels"] = [1 - error / square if square > 0 else None for error, square in sums]
    observed, *null = (r2_of(test, *one).mean().item() for one in of_reduced)
    return found | {"observed": observed, "null": torch.tensor(null)}


def intrinsic_dimension(x, k=20):
    """{two_nn, mle, participation} of features [n, ...] without copies: TwoNN (Facco et al. 2017) by maximum
    likelihood without the largest tenth of ratios, MLE of k neighbours (Levina & Bickel 2004), and the
    participation ratio of the covariance."""
    x = x.flatten(1).double().unique(dim=0)
    x = x - x.mean(0)
    near = torch.cdist(x, x).topk(min(k, len(x) - 1) + 1, largest=False).values[:, 1:].clamp(min=1e-30)
    ratios = (near[:, 1] / near[:, 0]).log().sort().values
    used = ratios[: max(int(0.9 * len(ratios)), 1)]
    products = x @ x.T
    return {
        "two_nn": (len(used) / (used.sum() + (len(ratios) - len(used)) * used[-1])).item(),
        # log(r_k / r_j) has mean 1 / dimension: unbiased by the mean of inverses (MacKay & Ghahramani 2005)
        "mle": (1 / (near[:, -1:] / near[:, :-1]).log().mean()).item(),
        "participation": (products.trace().square() / products.square().sum()).item(),
    }


def measure_layers(layers, y, items, split, n_perm=0, seed=0, gridless=(), desc=None):
    """{measure: {layer: score}} of layers {name: x} with y [n, t, h, w, d]; no linear_r2 of `gridless` ones.

    Tensors or `Lazy`, read in chunks, one layer at a time. A score: `values` of `groups` (folds or sources),
    whose mean it is; val, n, chance; observed and null, of p-values; linear_r2's are of `token_r2`.
    """
    names, val = [i["source"] for i in items], split["val"]
    both, of_test = torch.cat([split["train"], split["test"]]), [names[i] for i in split["test"].tolist()]
    target, scores = space_of(y, names), {m: {} for m in MEASURES}
    on_val, compared = {}, {}
    for layer, x in tqdm(layers.items(), desc=desc, unit="layer", disable=desc is None):
        space = space_of(x, names)
        on_val[layer], compared[layer] = part_of(space, val), part_of(space, both)
        if layer not in gridless:
            fit = token_r2(x, y, split, target.source, n_perm // 2, seed)
            about = {"n": len(of_test), "sources": len(set(of_test)), "groups": of_test, "chance": 0.0}
            scores["linear_r2"][layer] = fit | about
    fixed, g = part_of(target, both), torch.Generator().manual_seed(seed)
    orders = [shuffle(fixed.source, g) for _ in range(n_perm)]
    by_chance = K / (len(both) - fixed.source.bincount()[fixed.source])  # neighbours of unrelated spaces
    for measure in PAIRED:
        vals = pairs(on_val.values(), [part_of(target, val)], measure)[:, 0].tolist()
        values, moved = jackknife(compared.values(), fixed, measure), matrix(fixed, measure)
        about = {"n": len(both), "sources": int(fixed.source.max()) + 1, "groups": range(values.shape[1])}
        about["chance"] = by_chance.clamp(max=1).mean().item() if measure == "recall10" else 0.0
        for k, (layer, x) in enumerate(compared.items()):
            still = matrix(x, measure)
            null = torch.tensor([(moved[order][:, order] * still).sum() for order in orders])
            score = about | {"values": values[k], "val": vals[k]}
            scores[measure][layer] = score | {"observed": values[k].mean().item(), "null": null}
    return {measure: column for measure, column in scores.items() if column}


def candidates(layers):
    return [layer for layer in layers if layer != "pixels"]


def best_on_val(scores):
    return max(candidates(scores), key=lambda layer: scores[layer]["val"])


def p_values(scores, layer):
    """{p: of a layer, p_max: of the largest of all}; equal values, up to rounding, and nan are as large."""
    nulls = {"p": scores[layer]["null"], "p_max": torch.stack([s["null"] for s in scores.values()]).amax(0)}
    over = {name: ~(null < scores[layer]["observed"] - 1e-6) for name, null in nulls.items() if len(null)}
    return {name: (1 + int(x.sum())) / (1 + len(x)) for name, x in over.items()}


def by_layer(scores):
    """{layer: {measure: {score, low, high, val, n, chance, p, p_max}}} of {measure: {layer: score}}."""
    found = {}
    for measure, column in scores.items():
        for layer, score in column.items():
            interval = stats.mean_interval(score["values"], score["groups"])
            row = dict(zip(("score", "low", "high"), interval, strict=True)) | p_values(column, layer)
            found.setdefault(layer, {})[measure] = row | {key: score[key] for key in ("val", "n", "chance")}
    return found


def record(scores, untrained=None, seed=0, bands=None):
    """The record of a measure at the best layer on val, from {layer: score} of both networks."""
    best = best_on_val(scores)
    own, baselines = scores[best], {"chance": torch.full_like(scores[best]["values"], scores[best]["chance"])}
    if "pixels" in scores:
        baselines["pixels"] = scores["pixels"]["values"]
    if untrained:
        baselines["random_init"] = untrained[best]["values"]
    found = stats.criterion(own["values"], baselines, own["groups"], seed=seed, bands=bands, layer=best)
    about = {key: own[key] for key in ("n", "sources")} | {"options_searched": len(candidates(scores))}
    return found | about | {"gain_p": found["p"]} | p_values(scores, best)


def draw_chart(result, path):
    """Write align.png: scores of every layer, trained and untrained."""
    plt, layers = common.pyplot(), result["layers"]
    networks = {"": layers, "untrained": result.get("untrained", {})}
    columns = [(m, network) for m in MEASURES for network in networks]
    values = torch.full((len(layers), len(columns)), math.nan)
    figure, axis = plt.subplots(figsize=(11, 2 + 0.32 * len(layers)), layout="constrained")
    for i, layer in enumerate(layers):
        for j, (m, network) in enumerate(columns):
            v = values[i, j] = networks[network].get(layer, {}).get(m, {}).get("score", math.nan)
            axis.text(j, i, f"{v:.2f}", ha="center", va="center", color="black" if v > 0.6 else "white")
    figure.colorbar(axis.imshow(values.numpy(), aspect="auto", vmin=0, vmax=1))
    axis.set_xticks(range(len(columns)), map("\n".join, columns))
    axis.set_yticks(range(len(layers)), layers)
    about = "Alignment of {model} with {target} {target_point}, {items} items of {data_name}"
    axis.set_title(about.format_map(result))
    figure.savefig(path, dpi=80)
    plt.close(figure)


def study(r):
    """The report in Markdown, from the YAML's numbers."""
    about = "{items} items of {data_name}; {data} data, {weights} weights; recommended layer: {recommended}"
    lines = [f"# Alignment of {r['model']} with {r['target']}", "", about.format_map(r), ""]
    lines += ["| measure | layer | score | best baseline | gain | p (max over layers) |", "|---" * 6 + "|"]
    for m, c in r["criteria"].items():
        row = f"| {m} | {c['layer']} | {c['score']:.3f} [{c['low']:.3f}, {c['high']:.3f}]"
        row += f" | {c['baseline']:.3f} {c['baseline_name']} | {c['gain']:.3f}"
        lines.append(f"{row} [{c['gain_low']:.3f}, {c['gain_high']:.3f}] | {c['p_max']:.3f} |")
    lines += ["", "| dimension of means | TwoNN | MLE | participation ratio |", "|---" * 4 + "|"]
    for space, d in r["dimension"].items():
        lines.append(f"| {space} | {d['two_nn']:.1f} | {d['mle']:.1f} | {d['participation']:.1f} |")
    return "\n".join([*lines, ""])


def load_inputs(args):
    """Features of the model, the target and the untrained network (or None), of the same items or exit 2."""
    folders = args.features, args.target, args.random if not args.choose else None
    read, target, random = (folder and common.Features(folder) for folder in folders)
    for other in filter(None, (target, random)):
        if other.index["ids"] != read.index["ids"]:
            there = set(other.index["ids"])
            what = next((f"{i!r} is missing" for i in read.index["ids"] if i not in there), "other order")
            fail(f"{other.folder} holds other items than --features ({what}); extract both from one folder")
    if read.index.get("shown") != target.index.get("shown"):
        fail(f"{args.target} has other frames than --features; use the same --frames and --count")
    return read, target, random


def read_items(args, index):
    """(items that are compared, their rows in the features, name of the data)."""
    items, data = common.load_items(index["data_path"])
    items, g = common.join(items, index, args.features), torch.Generator().manual_seed(args.seed)
    keep = torch.randperm(len(items), generator=g)[:SUBSET].sort().values
    return [items[i] for i in keep.tolist()], keep, data["name"]


def dimensions(read, items, keep, prefix=""):
    """{point: intrinsic_dimension} of spatial means; exit 2 if they are not finite, or constant."""
    # one item a source: twins would lower the dimension
    single, found = torch.tensor(sorted({i["source"]: k for k, i in enumerate(items)}.values())), {}
    pooled = common.load_pt(read.folder / "pooled.pt", common.POOLED)["pooled"]
    for point in candidates(read.index["points"]):
        mean = pooled[point]["mean"].float()[keep[single]]
        if not mean.isfinite().all() or (mean == mean[0]).all():
            fail(f"{point} in {read.folder} is non-finite, or the same for every item; extract it again")
        found[f"{prefix}{point}"] = intrinsic_dimension(mean)
    return found


def headline(index, target, point, criteria):
    """The scalars of align.yaml, for grep."""
    found = {"stage": "align", "model": index["model"], "target": target["model"], "target_point": point}
    found |= {"weights": index["weights"], "target_weights": target["weights"], "data": index["data"]}
    found["chance_recall10"] = criteria["recall10"]["baselines"]["chance"]
    for name, c in criteria.items():
        keys = ("low", "high", "baseline", "p", "p_max", "layer")
        found |= {name: c["score"]} | {f"{name}_{key}": c[key] for key in keys}
    if "linear_r2" not in criteria:
        found |= {"linear_r2": None, "linear_r2_layer": None, "linear_r2_reason": "no layer has a token grid"}
    return found


def main(argv=None):
    args, started = get_args(argv), time.time()
    common.positive(args, "permutations")
    read, read_target, read_random = load_inputs(args)
    index, target = read.index, read_target.index
    items, keep, data_name = read_items(args, index)
    split = common.split_indices(items, args.features)
    out = Path(args.choose or args.out or Path(args.features).parent / "align.yaml")
    for path in filter(None, (out, args.study)):
        common.check_writable(path)
    dimension = dimensions(read, items, keep) | dimensions(read_target, items, keep, f"{target['model']} ")

    # every layer is compared with one point of the target
    point = args.target_point or ("latents" if "latents" in target["points"] else list(target["points"])[-1])
    common.check_choice(point, target["points"], f"point in {args.target}")
    y = stats.layer_of(read_target, point, keep)
    layers = {p: stats.layer_of(read, p, keep) for p in index["points"]}
    gridless = set(layers) - set(common.with_grid(index) if point in common.with_grid(target) else ())
    n_perm = 0 if args.choose else args.permutations
    scores = measure_layers(layers, y, items, split, n_perm, args.seed, gridless, "layers")

    # the layer of every measure is the best on val
    chosen = {m: best_on_val(column) for m, column in scores.items()}
    chosen["recommended"] = chosen.get("linear_r2", chosen["cka"])
    needed = [p for p in layers if p in chosen.values()]
    if args.choose:
        return save(out, {"stage": "align", "points": ",".join(needed), "layers": chosen})

    # the untrained network at these layers is a baseline
    untrained = {}
    if read_random:
        for p in needed:
            common.check_choice(p, read_random.index["points"], f"point in {args.random}")
        layers = {p: stats.layer_of(read_random, p, keep) for p in needed}
        untrained = measure_layers(layers, y, items, split, 0, args.seed, gridless, "untrained")
    criteria = {m: record(column, untrained.get(m), args.seed, BANDS[m]) for m, column in scores.items()}

    result = headline(index, target, point, criteria) | {"data_name": data_name, "items": len(index["ids"])}
    result |= {"subset": SUBSET} if len(items) < len(index["ids"]) else {}
    result |= {"recommended": chosen.get("linear_r2"), "criteria": criteria, "layers": by_layer(scores)}
    result |= {"untrained": by_layer(untrained)} if untrained else {}
    fits = scores.get("linear_r2", {})
    result |= {"channels": {p: fits[p]["channels"] for p in candidates(fits)}, "dimension": dimension}
    result |= {"run": common.run_info(args, started, script="align.py")}
    save(out, result)
    draw_chart(common.plain(result), out.with_suffix(".png"))
    if args.study:
        common.save_text(args.study, study(common.plain(result)))
    return result


def save(out, result):
    common.save_yaml(out, result)
    common.print_summary(result)
    return result


if __name__ == "__main__":
    main()
