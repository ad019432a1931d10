"""Statistics: bootstrap, paired tests, permutation, Holm's correction, the record of a criterion, ridge regression."""

import math

import torch

# ---------------------------------------------------------------- statistics


def clusters(sources):
    """Index of each item's source: [n] in 0 .. C-1."""
    names = {s: i for i, s in enumerate(dict.fromkeys(sources))}
    return torch.tensor([names[s] for s in sources])


def widened(mean, low, high, n, tail=0.025):
    """A percentile interval (95%, or `tail` left out on either side) from resampling n sources, made as wide as Student's t asks: (low, high).

    Percentiles are too narrow by sqrt((n - 1) / n), and are those of a normal distribution where few sources need the t of n - 1 degrees (Hesterberg 2015,
    section 3.2): by 2% at n = 100, by 11% at 18, by half at 5. A single source says nothing of others: no bounds.
    """
    from scipy.special import ndtri, stdtrit

    if n < 2:
        return -math.inf, math.inf
    factor = float(stdtrit(n - 1, 1 - tail) / ndtri(1 - tail)) * (n / (n - 1)) ** 0.5
    return mean - factor * (mean - low), mean + factor * (high - mean)


def resampled(n, n_boot, g):
    """How often each of n sources is drawn in each of n_boot resamples with replacement, [n_boot, n]."""
    return torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(
        1, torch.randint(n, (n_boot, n), generator=g), torch.ones(1, dtype=torch.float64).expand(n_boot, n)
    )


def bootstrap(scores, sources, n_boot=2000, seed=0):
    """Mean and 95% interval of `scores` [n] or [seeds, n], resampling sources (and seeds) with replacement: percentiles, `widened`.

    Items of one source stay together (cluster bootstrap; Field & Welsh 2007).
    """
    scores = torch.as_tensor(scores, dtype=torch.float64)
    scores = scores[None] if scores.ndim == 1 else scores
    cluster = clusters(sources)
    count = torch.bincount(cluster).double()
    total = torch.zeros(len(scores), len(count), dtype=torch.float64).index_add_(1, cluster, scores)
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(count), n_boot, g)
    means = (weights @ total.T) / (weights @ count)[:, None]  # [n_boot, seeds]
    if len(scores) > 1:
        means = means.gather(1, torch.randint(len(scores), means.shape, generator=g))
    mean = scores.mean().item()
    low, high = means.mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return mean, *widened(mean, low, high, len(count))


def with_bounds(name, values):
    """{name, name_low, name_high} of (mean, low, high)."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def paired_test(a, b, sources, n_perm=2000, seed=0):
    """Mean of a - b with a cluster-bootstrap interval and a two-sided p-value from flipping the sign of whole sources.

    a, b: [n] or [seeds, n] scores of the same items. p is (1 + exceedances) / (1 + n_perm) (Phipson & Smyth 2010).
    """

    def per_item(x):
        x = torch.as_tensor(x, dtype=torch.float64)
        return x if x.ndim == 1 else x.mean(0)

    difference = per_item(a) - per_item(b)
    mean, low, high = bootstrap(difference, sources, seed=seed)
    cluster = clusters(sources)
    total = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(0, cluster, difference)
    g = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (n_perm, len(total)), generator=g).double() * 2 - 1
    exceed = ((signs @ total).abs() >= total.sum().abs() - 1e-12).sum().item()
    return {"gain": mean, "gain_low": low, "gain_high": high, "p": (1 + exceed) / (1 + n_perm)}


def ratio(own, real):
    """Values per item whose mean is the ratio of the means of own [n] or [seeds, n] and of real [n], so that resampling items gives its interval (linearised; Cochran 1977, section 6.4).
    The mean of ratios would be ruled by the items whose `real` is smallest. None where all of real is zero."""
    whole = own.mean() / real.mean()
    return whole + (own - whole * real) / real.mean() if real.mean() > 0 else None


def holm(p_values):
    """Holm's step-down adjustment (Holm 1979): {name: p} -> {name: adjusted p}."""
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda kv: kv[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def known_too_well(gain_low, floor, ceiling):
    """Does a control beat the floor that bounds what it can know by more than a tenth of the room above that floor? gain_low: the lower end of the interval of its gain."""
    return gain_low > 0.1 * abs(ceiling - floor)


def criterion(scores, floors, sources, ceiling=1.0, better="higher", seed=0, blind=None, **more):
    """One score as every stage records it: interval, best floor, paired gain over that floor, ceiling and skill.

    scores: [n] or [seeds, n], a value per test item; floors: {name: the same}. `better` says which way is good; the gain is positive when good.
    blind: the floor that sees no features, and so bounds what shuffled labels can score. Where they score higher all the same, the answer leaks in some other way, say by a normaliser that
    was fitted on it, and `leak` is "shuffled".
    """
    sign = 1 if better == "higher" else -1
    mean, low, high = bootstrap(scores, sources, seed=seed)
    floor_means = {name: bootstrap(f, sources, n_boot=1)[0] for name, f in floors.items()}
    best = max(floor_means, key=lambda name: sign * floor_means[name])

    def against(own, name):
        own, floor = (sign * torch.as_tensor(x, dtype=torch.float64) for x in (own, floors[name]))
        return paired_test(own, floor, sources, seed=seed)

    gain = against(scores, best)
    gain["mde"] = detectable(gain["gain_low"], gain["gain_high"])
    shuffled_gain = blind and against(floors["shuffled"], blind)["gain_low"]
    return record(
        (mean, low, high), better, sources, floor_means, best, ceiling, gain, blind, shuffled_gain, more
    )


def record(interval, better, sources, floors, best, ceiling, gain, blind, shuffled_gain, more):
    """What is written of one criterion. interval: (score, low, high); floors: {name: mean}, of which `best` is the highest hurdle; gain: what is known of the gain over it;
    shuffled_gain: the lower bound of what shuffled labels gain over the floor `blind`."""
    score, low, high = interval
    room, sign = ceiling - floors[best], 1 if better == "higher" else -1
    leak = blind and known_too_well(shuffled_gain, floors[blind], ceiling)
    return {
        "score": score,
        "low": low,
        "high": high,
        "better": better,
        "n": len(sources),
        "sources": len(set(sources)),
        "floor": floors[best],
        "floor_name": best,
        "ceiling": ceiling,
        "skill": (score - floors[best]) / room if sign * room > 0 else None,
        **gain,
        "leak": "shuffled" if leak else None,
        **more,
        "floors": floors,
    }


def detectable(low, high):
    """The smallest gain that a two-sided test at 5% finds with a power of 80% at this n: (1.96 + 0.84) standard errors, of which a 95% interval has 2 x 1.96."""
    return (1.96 + 0.84) * (high - low) / (2 * 1.96)


# ---------------------------------------------------------------- linear maps

# times the mean eigenvalue, so that scaling the features changes nothing
PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)


def spectrum(kernels, train):
    """What ridge regression needs to know of L feature matrices: (kernel [L, n, m] centred on the m items `train`, eigenvalues [L, m], eigenvectors [L, m, m]).

    kernels: inner products of all items with all items [L, n, n], or with those of `train` alone [L, n, m < n], of any centring. fp64; one batched `eigh`.
    """
    k = (kernels[..., train] if kernels.shape[1] == kernels.shape[2] else kernels).double()
    rows, columns = k.mean(2, keepdim=True), k[:, train].mean(1, keepdim=True)
    k = k - rows - columns + columns.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(k[:, train])
    return k, values.clamp(min=0), vectors


def solve_ridge(k, values, vectors, targets, train):
    """Dual ridge regression of every layer on every task, the penalty of each by exact leave-one-out: {task: (predictions [L, n, c], its errors [L, c])}.

    targets {task: [n, c]}; the errors are mean squares of the left-out. Leave-one-out: e_i / (1 - H_ii), H = 11'/m + K (K + aI)^-1 (Golub, Heath & Wahba 1979).
    """
    y = torch.cat(list(targets.values()), 1).double()
    mean = y[train].mean(0)
    y = y[train] - mean
    coordinates = vectors.mT @ y  # [L, m, C]
    scale = values.mean(1).clamp(min=1e-300)
    penalties = PENALTIES.to(scale.device) * scale[:, None]  # [L, P]
    shrink = values[..., None] / (values[..., None] + penalties[:, None])  # [L, m, P]
    hat = 1 / len(train) + vectors.square() @ shrink
    # all penalties in one product
    fitted = vectors @ (shrink[..., None] * coordinates[:, :, None]).flatten(2)
    residual = (y[:, None] - fitted.unflatten(2, (len(PENALTIES), -1))) / (1 - hat).clamp(min=1e-9)[..., None]
    errors, out, first = residual.square().mean(1), {}, 0  # [L, P, C]
    for task, t in targets.items():
        part = slice(first, first := first + t.shape[1])
        every, best = torch.arange(len(k)), errors[..., part].mean(2).argmin(1)  # [L]
        found = (
            k @ (vectors @ (coordinates[..., part] / (values + penalties[every, best][:, None])[..., None]))
            + mean[part]
        )
        out[task] = found.float(), errors[every, best, part]
    return out


def ridge(x, targets, train):
    """Dual ridge with an unpenalised intercept, one Gram matrix and one `eigh` for all tasks and penalties. x [n, d] fp32 -> {task: predictions [n, c]}."""
    x = x - x[train].mean(0)
    kernel = x @ (x[train] if len(train) < len(x) else x).T
    solved = solve_ridge(*spectrum(kernel[None], train), targets, train)
    return {task: found[0] for task, (found, _) in solved.items()}


def token_ridge(x, targets, train, val):
    """Primal ridge from every token to its own target; the penalty of every task by the error on the validation items.

    x [n, K, d]; targets {task: [n, K, c]}. Returns {task: predictions [n, K, c]}. Leave-one-token-out would leak: neighbours share a picture.
    """
    x = x - x[train].mean((0, 1))
    rows, y = x[train].flatten(0, 1), torch.cat(list(targets.values()), -1)
    centre = y[train].mean((0, 1))
    values, vectors = torch.linalg.eigh((rows.T @ rows).double())
    values = values.clamp(min=0)
    coordinates = vectors.T @ (rows.T @ (y[train] - centre).flatten(0, 1)).double()
    penalties = PENALTIES.to(values.device) * values.mean().clamp(min=1e-300)
    turned, wanted = x[val].flatten(0, 1) @ vectors.float(), (y[val] - centre).flatten(0, 1)
    maps = [(coordinates / (values + p)[:, None]).float() for p in penalties]
    errors = torch.stack([(turned @ m - wanted).square().mean(0) for m in maps])  # [penalties, C]
    widths = [t.shape[-1] for t in targets.values()]
    best = torch.stack([e.mean(1).argmin() for e in errors.split(widths, 1)])
    best = best.repeat_interleave(torch.tensor(widths))
    weight = (vectors @ (coordinates / (values[:, None] + penalties[best]))).float()
    return dict(zip(targets, (x @ weight + centre).split(widths, -1), strict=True))


# ---------------------------------------------------------------- paired gains


def signed_rank(difference, sources):
    """Wilcoxon's two-sided p (scipy) of differences [n], those of one source averaged first: clips of one source are no independent pairs. 1 where there is no difference at all."""
    from scipy.stats import wilcoxon

    cluster = clusters(sources)
    total = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(
        0, cluster, difference.double()
    )
    means = total / torch.bincount(cluster)
    return float(wilcoxon(means.numpy()).pvalue) if means.abs().max() > 0 else 1.0


def averaged(name, x, sources, seed):
    """{name, name_low, name_high} of scores [seeds, n], without the clips that have nothing to score (nan); None throughout where no clip has."""
    keep = (~x.isnan().any(0)).nonzero().flatten().tolist()
    return mean_and_interval(name, x[:, keep], [sources[k] for k in keep], seed)


def gained(own, base, sources, seed):
    """By how much errors [seeds, n] are less than those of a baseline [1, n]: paired_test, with Wilcoxon's p over sources beside it; None where nothing is scored."""
    less = base.mean(0) - own.mean(0)
    keep = (~less.isnan()).nonzero().flatten().tolist()
    few = [sources[k] for k in keep]
    if not keep:
        return None
    found = paired_test(less[keep], 0 * less[keep], few, seed=seed)
    return found | {"p_wilcoxon": signed_rank(less[keep], few)}


def gain_columns(name, gain, *p_values):
    """{name, name_low, name_high, and name_<p> of each of `p_values`} of what `gained` found; None throughout where it found nothing."""
    keys = {"": "gain", "_low": "gain_low", "_high": "gain_high"} | {f"_{p}": p for p in p_values}
    return {f"{name}{end}": gain and gain[key] for end, key in keys.items()}


def adjusted(gains):
    """{name: gain}, with Holm's adjustment over the names."""
    found = {n: g for n, g in gains.items() if g}
    for key in ("p", "p_wilcoxon"):
        for n, p in holm({n: g[key] for n, g in found.items()}).items():
            found[n][f"{key}_holm"] = p
    return gains


LEAST = 0.05  # of the answers: a change rarer than that is none


def verdict(*tests):
    """yes where every paired gain excludes zero, no where one of them is surely under LEAST, else inconclusive."""
    if min(t["gain_low"] for t in tests) > 0:
        return "yes"
    return "no" if min(t["gain_high"] for t in tests) < LEAST else "inconclusive"


def mean_and_interval(key, scores, sources, seed):
    """{key, key_low, key_high}; scores [n] or [seeds, n]. None of nothing."""
    return with_bounds(key, bootstrap(scores, sources, seed=seed) if len(sources) else (None,) * 3)
