"""Stage 3. Can the two spaces be bridged: a model's layers and a video decoder's latents?

    python align.py --features results/tiny/shapes/features --target results/tiny-vae/shapes/features --out results/tiny/shapes/align.yaml

Reads features of the same items from two encoders (extract.py). Writes align.yaml: for every layer,

    cka          debiased linear CKA of the flattened token grids (Kornblith et al. 2019; unbiased HSIC, Song et al. 2012)
    linear_r2    held-out R2 of a ridge from each token to the latents in its cell, variance left after each position's own mean (never clipped)
    spearman     Spearman correlation of the items' pairwise distances (representational similarity analysis)
    recall10     share of an item's 10 nearest neighbours that both spaces have in common; chance is k / (n - 1)

each with a p-value from permuting the items of one side (in the pairing, sources whole), Holm's correction over layers, and an interval. CKA,
Spearman and recall have no parameters: the layer is chosen on val, they are reported on the other items. R2 is fitted on train, reported on test.
A layer whose tokens have no place in the picture (`grid: false` in the index) has no linear_r2: it has no cells to predict latents from.
"""
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import check_writable, clusters, holm, join, load_features, load_items, made_up_folder, parser, refuse, run_info, save_yaml, say, split_indices, token_ridge, widened, with_grid

MEASURES = ("cka", "linear_r2", "spearman", "recall10")


# ---------------------------------------------------------------- measures of two Gram or distance matrices

def u_centre(gram):
    """U-centring with a zero diagonal: the inner product of two such matrices is an unbiased HSIC (Szekely & Rizzo 2014; Song et al. 2012)."""
    n = len(gram)
    k = gram - torch.diag(gram.diagonal())
    rows = k.sum(1, keepdim=True) / (n - 2)
    k = k - rows - rows.T + k.sum() / ((n - 1) * (n - 2))
    return k - torch.diag(k.diagonal())


def cka(k, l):
    """Debiased CKA of U-centred Gram matrices: 0 in expectation for independent features, whatever their width."""
    return (k * l).sum() / (k.square().sum() * l.square().sum()).sqrt()


def ranks(distances):
    """Standardised ranks of the pairwise distances as a symmetric matrix with a zero diagonal; ties (rare in floats) in order of appearance."""
    n = len(distances)
    above = torch.triu_indices(n, n, 1)
    values = distances[above[0], above[1]]
    order = torch.empty_like(values).scatter_(0, values.argsort(), torch.arange(len(values), dtype=values.dtype))
    order = (order - order.mean()) / order.std(correction=0)
    out = torch.zeros_like(distances)
    out[above[0], above[1]] = order
    return out + out.T


def spearman(a, b):
    """Spearman correlation of two rank matrices (each pair counts once)."""
    n = len(a)
    return (a * b).sum() / (n * (n - 1))


def neighbours(distances, k):
    """Boolean [n, n]: the k nearest neighbours of every item, itself excluded."""
    d = distances + torch.diag(torch.full((len(distances),), float("inf"), dtype=distances.dtype))
    return torch.zeros_like(d, dtype=torch.bool).scatter_(1, d.topk(k, largest=False).indices, True)


def recall(a, b):
    """Mean share of neighbours in common (mutual k-nearest-neighbour alignment, Huh et al. 2024)."""
    return (a & b).sum() / a.sum()


def gram_of(x):
    """Gram matrix of flattened features [n, d] about their mean, in fp64, scaled so that its size does not depend on theirs."""
    x = x.double() - x.double().mean(0)
    gram = x @ x.T
    return gram / gram.diagonal().mean().clamp(min=1e-300)


def prepare(gram, names=("cka", "spearman", "recall10"), k=10):
    """{measure: matrix} of a Gram matrix [n, n]: each measure is then one product of two such matrices. A subset's Gram is a part of the whole's."""
    out = {}
    if "cka" in names:
        out["cka"] = u_centre(gram)
    if "spearman" in names or "recall10" in names:
        square = gram.diagonal()
        distances = (square[:, None] + square[None] - 2 * gram).clamp(min=0).sqrt()
        out |= {"spearman": ranks(distances)} if "spearman" in names else {}
        out |= {"recall10": neighbours(distances, min(k, len(gram) - 2))} if "recall10" in names else {}
    return out


COMPARE = {"cka": cka, "spearman": spearman, "recall10": recall}


def permutation_p(a, b, measure, blocks, n_perm, seed):
    """Add-one p-value of `measure` when the items of b are permuted; items of one source move together (equal-sized sources swap)."""
    observed = COMPARE[measure](a, b)
    g = torch.Generator().manual_seed(seed)
    exceed = 0
    for _ in range(n_perm):
        order = shuffle(blocks, g)
        exceed += int(not COMPARE[measure](a, b[order][:, order]) < observed)  # so that nan counts against
    return (1 + exceed) / (1 + n_perm)


def shuffle(blocks, g):
    """A permutation of items that swaps whole sources of equal size; blocks: list of index tensors, one a source."""
    order = torch.empty(sum(len(b) for b in blocks), dtype=torch.long)
    for size in {len(b) for b in blocks}:
        group = [b for b in blocks if len(b) == size]
        for to, source in enumerate(torch.randperm(len(group), generator=g).tolist()):
            order[group[to]] = group[source]
    return order


def jackknife(x, y, measure, blocks, folds=20):
    """(value, low, high) from two Gram matrices: 95% interval by deleting blocks of sources (a bootstrap would repeat items, and a repeated
    item is its own nearest neighbour); Student's t of as many blocks."""
    from scipy.special import stdtrit

    def value(keep):
        return COMPARE[measure](*(prepare(gram[keep][:, keep], (measure,))[measure] for gram in (x, y))).item()

    folds = min(folds, len(blocks))
    v = torch.tensor([value(torch.cat([b for i, b in enumerate(blocks) if i % folds != f])) for f in range(folds)])
    half = float(stdtrit(folds - 1, 0.975)) * ((folds - 1) / folds * (v - v.mean()).square().sum()).sqrt().item()
    whole = value(torch.arange(len(x)))
    return whole, whole - half, whole + half


# ---------------------------------------------------------------- linear prediction of the latents

def match(x, h, w):
    """Token grid [n, H, W, d] resampled to h x w: pooled where it is finer, repeated where it is coarser; [n, h*w, d]."""
    return F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (h, w)).flatten(2).transpose(1, 2)


def token_r2(x, y, split, seed=0, n_perm=0, blocks=()):
    """Held-out R2 of a token-wise ridge: 1 - residual / variance around each position's training mean, per test item and overall.

    x [n, K, d], y [n, K, c]. Returns (residual [n_test], variance [n_test], p): R2 is 1 - sum / sum. p permutes whole training pictures.
    """
    y = y - y[split["train"]].mean(0)  # a decoder that knew the position alone would score 0
    x = x - x[split["train"]].mean(0)
    targets = {"true": y}
    g = torch.Generator().manual_seed(seed)
    for i in range(n_perm):
        wrong = y.clone()
        wrong[split["train"]] = y[split["train"]][shuffle(blocks, g)]
        targets[f"null{i}"] = wrong
    found = token_ridge(x, targets, split["train"], split["val"])
    test, true = split["test"], y[split["test"]].double()
    residual = {k: (z[test].double() - true).square().sum((1, 2)) for k, z in found.items()}
    variance = true.square().sum((1, 2))
    total = {k: 1 - (r.sum() / variance.sum()).item() for k, r in residual.items()}
    p = (1 + sum(total[f"null{i}"] >= total["true"] for i in range(n_perm))) / (1 + n_perm)
    return residual["true"], variance, p, found["true"]


def ratio_bootstrap(residual, variance, sources, n_boot=2000, seed=0):
    """Mean and 95% interval of 1 - sum(residual) / sum(variance), resampling sources."""
    cluster = clusters(sources)
    n = int(cluster.max()) + 1
    sums = [torch.zeros(n, dtype=torch.float64).index_add_(0, cluster, v) for v in (residual, variance)]
    pick = torch.randint(n, (n_boot, n), generator=torch.Generator().manual_seed(seed))
    draws = 1 - sums[0][pick].sum(1) / sums[1][pick].sum(1)
    value = (1 - residual.sum() / variance.sum()).item()
    return value, *widened(value, *draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(), n)


# ---------------------------------------------------------------- the stage

def chance(n, k=10):
    """Share of k nearest neighbours that two unrelated spaces of n items have in common."""
    return min(k, n - 2) / (n - 1)


def sources_in(items, pick):
    """Positions within `pick` of every source, as index tensors."""
    found = {}
    for position, i in enumerate(pick.tolist()):
        found.setdefault(items[i]["source"], []).append(position)
    return [torch.tensor(v) for v in found.values()]


def measure_layer(x, y, items, split, args, grid=True):
    """All measures of one layer: {measure: {score, low, high, p, val}}. x, y: [n, h, w, d]. Without a grid x has no cells: no linear R2."""
    report = torch.cat([split["train"], split["test"]])
    blocks = sources_in(items, report)
    grams = [gram_of(z.flatten(1)[report]) for z in (x, y)]
    a, b = (prepare(gram) for gram in grams)
    va, vb = (prepare(gram_of(z.flatten(1)[split["val"]])) for z in (x, y))
    out = {}
    for m in COMPARE:
        score, low, high = jackknife(*grams, m, blocks)
        out[m] = {"score": score, "low": low, "high": high, "p": permutation_p(a[m], b[m], m, blocks, args.permutations, args.seed),
                  "val": COMPARE[m](va[m], vb[m]).item(), "n": len(report)}
    if not grid:
        return out
    side = min(x.shape[1], y.shape[1]), min(x.shape[2], y.shape[2])
    tokens = match(x, *side), match(y, *side)
    residual, variance, p, found = token_r2(*tokens, split, args.seed, args.permutations // 10, sources_in(items, split["train"]))
    score, low, high = ratio_bootstrap(residual, variance, [items[i]["source"] for i in split["test"]], seed=args.seed)
    centred = (tokens[1] - tokens[1][split["train"]].mean(0))[split["val"]]
    out["linear_r2"] = {"score": score, "low": low, "high": high, "p": p, "n": len(split["test"]),
                        "val": 1 - ((found[split["val"]] - centred).square().sum() / centred.square().sum()).item()}
    return out


def record(layers, random, pixels, measure, n_options):
    """The criterion's record at the layer that is best on val; floors are chance, raw pixels and the untrained network."""
    best = max(layers, key=lambda p: layers[p][measure]["val"])
    own = layers[best][measure]
    floors = {"chance": chance(own["n"]) if measure == "recall10" else 0.0}
    floors |= {"pixels": pixels[measure]["score"]} if pixels else {}
    floors |= {"random_init": random[best][measure]["score"]} if random else {}
    name = max(floors, key=floors.get)
    half = [own["score"] - own["low"], own["high"] - own["score"]]
    rival = {"pixels": pixels, "random_init": (random or {}).get(best)}.get(name)
    other = [rival[measure]["score"] - rival[measure]["low"], rival[measure]["high"] - rival[measure]["score"]] if rival else [0.0, 0.0]
    gain = own["score"] - floors[name]
    return {"score": own["score"], "low": own["low"], "high": own["high"], "better": "higher", "n": own["n"], "floor": floors[name], "floor_name": name, "ceiling": 1.0,
            "skill": gain / (1 - floors[name]), "gain": gain, "gain_low": gain - (half[0] ** 2 + other[1] ** 2) ** 0.5, "gain_high": gain + (half[1] ** 2 + other[0] ** 2) ** 0.5,
            "p": own["p"], "layer": best, "options_searched": n_options, "floors": floors}


def smoke_input(args, folder):
    """Two made-up encoders of the same 60 items: one a rotation of the other plus noise, one independent."""
    from common import plant_features, write_items
    g = torch.Generator().manual_seed(args.seed)
    ids = [f"item-{i}" for i in range(60)]
    write_items(folder / "data", [{"id": i, "source": i, "width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)} for i in ids],
                {"data": "synthetic", "name": "planted"})
    y = torch.randn(60, 1, 2, 2, 4, generator=g)
    spaces = {"features": {"rotated": y @ torch.linalg.qr(torch.randn(4, 4, generator=g))[0] + 0.1 * torch.randn(y.shape, generator=g),
                           "independent": torch.randn(60, 1, 2, 2, 4, generator=g)}, "target": {"latents": y}}
    for name, points in spaces.items():
        plant_features(folder / name, ids, points, folder / "data")
    args.features, args.target, args.out, args.permutations = str(folder / "features"), str(folder / "target"), args.out or str(folder / "align.yaml"), 50


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--features", default="results/tiny/shapes/features", help="the model's features (default: %(default)s)")
    p.add_argument("--target", default="results/tiny-vae/shapes/features", help="the decoder's latents (default: %(default)s)")
    p.add_argument("--random", help="features of the untrained network: a floor")
    p.add_argument("--permutations", type=int, default=200, help="of items, for p-values; R2 takes a tenth (default: %(default)s)")
    p.add_argument("--out", help="default: align.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.smoke:
        smoke_input(args, made_up_folder())
    index, read = load_features(args.features)
    target, read_target = load_features(args.target)
    if index["ids"] != target["ids"]:
        missing = next((i for i in index["ids"] if i not in set(target["ids"])), None)
        refuse(f"{args.target} and {args.features} do not hold the same items ({f'{missing!r} is missing' if missing else 'other order'}); extract both from the same data folder")
    random_index, read_random = load_features(args.random) if args.random else ({"points": {}}, None)
    if args.random and random_index["ids"] != index["ids"]:
        refuse(f"{args.random} does not hold the items of {args.features}; extract both from the same data folder")
    items, data = load_items(index["data_path"])
    items = join(items, index, args.features)
    if len(items) < 10:
        refuse(f"{args.features} holds {len(items)} items; alignment needs at least 10")
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "align.yaml")
    check_writable(out)

    points = list(index["points"])
    if not set(points) - {"pixels"}:
        refuse(f"{args.features} holds no layer but the pixels; extract some")
    if lacking := [p for p in points if args.random and p != "pixels" and p not in random_index["points"]]:
        refuse(f"{args.random} lacks {lacking[0]}; run extract.py --random-init with the same --points as {args.features}")

    def varied(reader, point, where):
        x = reader(point).mean(1)  # a clip's time steps are averaged; pictures have one
        if x.flatten(1).std(0).max() == 0:
            refuse(f"{point} in {where} is the same for every item; its network or its data is broken, extract again")
        return x

    y = varied(read_target, "latents", args.target)
    for point in points:  # before the bar and the work
        varied(read, point, args.features)

    def measured(reader, point):
        return measure_layer(reader(point).mean(1), y, items, split, args, point in with_grid(index))

    layers = {p: measured(read, p) for p in tqdm(points, desc="layers", unit="layer")}
    random = {p: measured(read_random, p) for p in tqdm([p for p in points if args.random and p != "pixels"], desc="untrained", unit="layer")}
    pixels = layers.get("pixels")
    own = {p: v for p, v in layers.items() if p != "pixels"}
    adjusted = holm({f"{p}/{m}": own[p][m]["p"] for p in own for m in own[p]})
    for key, p in adjusted.items():
        own[key.split("/")[0]][key.split("/")[1]]["p_holm"] = p
    having = {m: {p: v for p, v in own.items() if m in v} for m in MEASURES}
    criteria = {m: record(having[m], random, pixels, m, len(having[m])) for m in MEASURES if having[m]}
    result = {"stage": "align", "model": index["model"], "target": target["model"], "weights": index["weights"], "target_weights": target["weights"],
              "data": index["data"], "data_name": data["name"], "items": len(items), "chance_recall10": chance(criteria["recall10"]["n"])}
    for name, c in criteria.items():
        result |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"], f"{name}_floor": c["floor"], f"{name}_p": c["p"], f"{name}_layer": c["layer"]}
    if "linear_r2" not in criteria:
        result |= {"linear_r2": None, "linear_r2_layer": None, "linear_r2_reason": "no layer's tokens have a place in the picture"}
    result |= {"criteria": criteria, "layers": {p: {m: v[m] for m in MEASURES if m in v} for p, v in layers.items()}, "run": run_info(args, started, script="align.py")}
    save_yaml(out, result)
    say(result)
    return result


if __name__ == "__main__":
    main()
