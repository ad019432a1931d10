"""Statistics: intervals over sources and seeds, paired tests, the record of a criterion, ridge regression."""

import math

import torch

# ---------------------------------------------------------------- statistics


def clusters(sources):
    """Index of each item's source: [n] in 0 .. C-1."""
    names = {s: i for i, s in enumerate(dict.fromkeys(sources))}
    return torch.tensor([names[s] for s in sources])


def widened(mean, low, high, n, tail=0.025):
    """Widen a percentile interval of n sources, with `tail` outside each end, to Student's t: (low, high).

    Percentiles are too narrow by sqrt((n - 1) / n) and by t over z (Hesterberg 2015, section 3.2): by 2% at
    n = 100, by 11% at 18, by half at 5. A single source has no bounds: (-inf, inf).
    """
    from scipy.special import ndtri, stdtrit

    if n < 2:
        return -math.inf, math.inf
    factor = float(stdtrit(n - 1, 1 - tail) / ndtri(1 - tail)) * (n / (n - 1)) ** 0.5
    return mean - factor * (mean - low), mean + factor * (high - mean)


def resampled(n, n_boot, g):
    """How often each of n sources occurs in each of n_boot resamples with replacement, [n_boot, n]."""
    return torch.zeros(n_boot, n, dtype=torch.float64).scatter_add_(
        1, torch.randint(n, (n_boot, n), generator=g), torch.ones(1, dtype=torch.float64).expand(n_boot, n)
    )


def rows_of(scores):
    """Scores [n] or [seeds, n] as fp64 [seeds, n]."""
    scores = torch.as_tensor(scores, dtype=torch.float64)
    return scores[None] if scores.ndim == 1 else scores


def by_source(scores, sources):
    """Scores [seeds, n] as a table [seeds, C] of C sources, with the same mean of every row.

    A source counts by its items: the mean of items is a ratio of sums over sources, here linearised.
    """
    cluster = clusters(sources)
    count = torch.bincount(cluster).double()
    total = torch.zeros(len(scores), len(count), dtype=torch.float64).index_add_(1, cluster, scores)
    mean = scores.mean()
    return mean + (total - mean * count) / count.mean()


def variance_of_mean(table):
    """(variance of the mean of a table [seeds, sources], degrees of freedom), both ways random.

    Mean squares of a crossed design without replication: sources + seeds - rest, with the degrees of freedom
    of Satterthwaite (1946). A single row has the variance of a mean over sources.
    """
    rows, columns = table.shape
    of_columns = (table.mean(0).var() / columns).item()
    if rows == 1:
        return of_columns, columns - 1
    of_rows = (table.mean(1).var() / rows).item()
    rest = table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()
    free = (rows - 1) * (columns - 1)
    of_rest = (rest.square().sum() / (free * rows * columns)).item()
    both = of_columns + of_rows - of_rest
    if both <= max(of_columns, of_rows):  # one way varies no more than chance
        return max((of_columns, columns - 1), (of_rows, rows - 1))
    squares = of_columns**2 / (columns - 1) + of_rows**2 / (rows - 1) + of_rest**2 / free
    return both, both**2 / squares


def mean_interval(scores, sources):
    """(mean, low, high) of scores [n] or [seeds, n]: the 95% interval of the mean over sources and seeds.

    Student's t with `variance_of_mean`. A single source has no bounds: (-inf, inf).
    """
    from scipy.special import stdtrit

    table = by_source(rows_of(scores), sources)
    mean = table.mean().item()
    if table.shape[1] < 2:
        return mean, -math.inf, math.inf
    variance, free = variance_of_mean(table)
    half = float(stdtrit(free, 0.975)) * variance**0.5
    return mean, mean - half, mean + half


def pseudo_values(whole, deleted):
    """Jackknife pseudo-values [..., G] of a statistic, whole [...], and deleted [..., G] without each of G
    groups of sources. Their mean is `whole`, their spread that of the statistic (Efron & Tibshirani 1993)."""
    return whole[..., None] + (deleted.shape[-1] - 1) * (deleted.mean(-1, keepdim=True) - deleted)


def with_bounds(name, values):
    """{name, name_low, name_high} of (mean, low, high)."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


def sign_flips(differences, sources, seed=0):
    """{name: two-sided p} of {name: differences [n]}, by flipping the signs of whole sources.

    p = (1 + exceedances) / (1 + permutations) (Phipson & Smyth 2010). 400 permutations for every difference,
    at least 2,000, so that Holm's correction over all of them can reject.
    """
    totals = [by_source(rows_of(d), sources)[0] for d in differences.values()]
    totals = torch.stack(totals, 1)  # [C, differences]
    permutations = max(2000, 400 * len(differences))
    g, exceed = torch.Generator().manual_seed(seed), torch.zeros(totals.shape[1])
    for size in torch.ones(permutations).split(2000):
        signs = torch.randint(2, (len(size), len(totals)), generator=g).double() * 2 - 1
        exceed += ((signs @ totals).abs() >= totals.sum(0).abs() - 1e-9 * totals.abs().sum(0)).sum(0)
    return dict(zip(differences, ((1 + exceed) / (1 + permutations)).tolist(), strict=True))


def paired_test(a, b, sources, seed=0):
    """{gain, gain_low, gain_high, p} of a - b, scores [n] or [seeds, n] of the same items.

    The interval is `mean_interval` of the differences. p is that of `sign_flips`, of several seeds that of
    the interval's t: flips of sources would take the seeds for the only ones.
    """
    from scipy.special import stdtr

    a, b = rows_of(a), rows_of(b)
    if len(a) != len(b):
        a, b = (x.mean(0, keepdim=True) if len(x) < max(len(a), len(b)) else x for x in (a, b))
    difference = a - b
    mean, low, high = mean_interval(difference, sources)
    found = {"gain": mean, "gain_low": low, "gain_high": high}
    if len(difference) == 1:
        return found | {"p": sign_flips({"p": difference[0]}, sources, seed)["p"]}
    table = by_source(difference, sources)
    if table.shape[1] < 2:
        return found | {"p": 1.0}
    variance, free = variance_of_mean(table)
    return found | {"p": 2 * float(stdtr(free, -abs(mean) / variance**0.5)) if variance else float(mean == 0)}


def ratio_interval(a, b, sources):
    """(mean a / mean b, low, high) of scores [seeds, n]; the interval of a - ratio * b over mean b."""
    a, b = rows_of(a), rows_of(b)
    found = (a.double().mean() / b.double().mean()).item()
    _, low, high = mean_interval((a - found * b) / b.double().mean(), sources)
    return found, *sorted((found + low, found + high))


def ratio(values, reference):
    """Linearised ratio of two means, one value per item, to resample items (Cochran 1977, section 6.4).
    values: [n] or [seeds, n]; reference: [n]. None if the reference is zero."""
    whole = values.mean() / reference.mean()
    return whole + (values - whole * reference) / reference.mean() if reference.mean() > 0 else None


def holm(p_values):
    """Holm's step-down adjustment (Holm 1979): {name: p} -> {name: adjusted p}."""
    found, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda kv: kv[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        found[name] = running
    return {name: found[name] for name in p_values}


def control_leaks(gain_low, baseline, upper_bound):
    """Whether a control gains over the baseline that bounds it by more than a tenth of the headroom."""
    return gain_low > 0.1 * abs(upper_bound - baseline)


def band(score, bands, better="higher"):
    """Where a score stands among the plan's (target, acceptable, fail) values."""
    sign = 1 if better == "higher" else -1
    target, acceptable, fails = (sign * (score - x) for x in bands)
    if target > 0:
        return "target"
    if acceptable > 0:
        return "acceptable"
    return "fail" if fails < 0 else "between acceptable and fail"


def criterion(
    scores, baselines, sources, upper_bound=1.0, better="higher", seed=0, blind=None, bands=None, **more
):
    """The record of one score: interval, best baseline, paired gain over it, upper bound and skill.

    scores: [n] or [seeds, n], one per test item; baselines: {name: the same}; better: "higher" or "lower".
    blind: the baseline without features. If shuffled labels score higher, `leak` is "shuffled". bands: of
    `band`.
    """
    sign = 1 if better == "higher" else -1
    score, low, high = mean_interval(scores, sources)
    means = {name: rows_of(x).mean().item() for name, x in baselines.items()}
    best = max(means, key=lambda name: sign * means[name])
    headroom, leak = upper_bound - means[best], None

    def against(values, name):
        return paired_test(sign * rows_of(values), sign * rows_of(baselines[name]), sources, seed)

    if blind and control_leaks(against(baselines["shuffled"], blind)["gain_low"], means[blind], upper_bound):
        leak = "shuffled"
    gain = against(scores, best)
    return {
        "score": score,
        "low": low,
        "high": high,
        "better": better,
        "n": len(sources),
        "sources": len(set(sources)),
        "baseline": means[best],
        "baseline_name": best,
        "upper_bound": upper_bound,
        "skill": (score - means[best]) / headroom if sign * headroom > 0 else None,
        **gain,
        "mde": detectable(gain["gain_low"], gain["gain_high"]),
        "leak": leak,
        **({"band": band(score, bands, better)} if bands else {}),
        **more,
        "baselines": means,
    }


def detectable(low, high):
    """The smallest gain that a two-sided test at 5% finds with 80% power, from a 95% interval."""
    return (1.96 + 0.84) * (high - low) / (2 * 1.96)


# ---------------------------------------------------------------- linear maps

# times the mean eigenvalue, so that scaling the features changes nothing
PENALTIES = torch.logspace(-6, 3, 19, dtype=torch.float64)


def spectrum(kernels, train):
    """(kernel [L, n, m] centred on the m items `train`, eigenvalues [L, m], eigenvectors [L, m, m]).

    kernels: inner products with all items [L, n, n] or with `train` [L, n, m < n], of any centring. fp64.
    """
    k = (kernels[..., train] if kernels.shape[1] == kernels.shape[2] else kernels).double()
    rows, columns = k.mean(2, keepdim=True), k[:, train].mean(1, keepdim=True)
    k = k - rows - columns + columns.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(k[:, train])
    return k, values.clamp(min=0), vectors


def left_out(residual, shrink, vectors, groups):
    """Residuals [L, m, P, C] of m items as if the map were fitted without the item's group, [m] numbers.

    (I - H_gg)^-1 e_g, H = 11'/m + V shrink V': leave-one-out where every group is one item.
    """
    m, out = len(groups), torch.empty_like(residual)
    for size in groups.bincount()[groups].unique().tolist():
        rows = (groups.bincount()[groups] == size).nonzero().flatten()
        rows = rows[groups[rows].argsort(stable=True)].view(-1, size)  # [groups, size]
        if size == 1:
            alone = rows[:, 0] if len(rows) < m else slice(None)  # a slice copies nothing
            hat = 1 / m + vectors[:, alone].square() @ shrink  # [L, groups, P]
            out[:, alone] = residual[:, alone] / (1 - hat).clamp(min=1e-9)[..., None]
            continue
        same = torch.eye(size, dtype=residual.dtype, device=residual.device)
        for layer, v in enumerate(vectors[:, rows]):  # [groups, size, m]
            hat = 1 / m + torch.einsum("gsk,kp,gtk->gpst", v, shrink[layer], v)
            solved = torch.linalg.solve((1 + 1e-9) * same - hat, residual[layer][rows].transpose(1, 2))
            out[layer][rows.flatten()] = solved.transpose(1, 2).flatten(0, 1)
    return out


def solve_ridge(k, values, vectors, targets, train, sources):
    """Dual ridge of every layer on every task: {task: (predictions [L, n, c], errors left out [L, c])}.

    targets {task: [n, c]}; sources: of the n items. The penalty has the least mean square of `left_out`:
    cross-validation that leaves out each source in turn (Golub, Heath & Wahba 1979).
    """
    y = torch.cat(list(targets.values()), 1).double()
    mean = y[train].mean(0)
    y = y[train] - mean
    coordinates = vectors.mT @ y  # [L, m, C]
    scale = values.mean(1).clamp(min=1e-300)
    penalties = PENALTIES.to(scale.device) * scale[:, None]  # [L, P]
    shrink = values[..., None] / (values[..., None] + penalties[:, None])  # [L, m, P]
    # all penalties in one product
    fitted = vectors @ (shrink[..., None] * coordinates[:, :, None]).flatten(2)
    residual = y[:, None] - fitted.unflatten(2, (len(PENALTIES), -1))
    groups = clusters([sources[i] for i in train.tolist()])
    errors = left_out(residual, shrink, vectors, groups).square().mean(1)  # [L, P, C]
    out, first, every = {}, 0, torch.arange(len(k))
    for task, t in targets.items():
        part = slice(first, first + t.shape[1])
        first += t.shape[1]
        best = errors[..., part].mean(2).argmin(1)  # [L]
        weights = coordinates[..., part] / (values + penalties[every, best][:, None])[..., None]
        found = k @ (vectors @ weights) + mean[part]
        out[task] = found.float(), errors[every, best, part]
    return out


def ridge(x, targets, train, sources):
    """Dual ridge with an unpenalised intercept for all tasks. x [n, d] fp32 -> {task: predictions [n, c]}."""
    x = x - x[train].mean(0)
    kernel = x @ (x[train] if len(train) < len(x) else x).T
    solved = solve_ridge(*spectrum(kernel[None], train), targets, train, sources)
    return {task: found[0] for task, (found, _) in solved.items()}


class Lazy:
    """Features [n, ...] that are read when they are indexed: x[rows], len(x).

    slices(): new tensors [n, k, D], the same features with some tokens of all items at a time.
    """

    def __init__(self, read, n, slices=None):
        self.read, self.n, self.slices = read, n, slices

    def __len__(self):
        return self.n

    def __getitem__(self, rows):
        return self.read(rows)


def layer_of(read, point, rows):
    """The items `rows` of a point of common.Features: `Lazy` [n, t, h, w, D]."""
    return Lazy(lambda some: read(point, rows[some]), len(rows), lambda: read.token_slices(point, rows))


def chunks(rows, *tables, most=2**26):
    """The items `rows` in parts of which no table, a tensor or `Lazy`, takes more than `most` bytes."""
    size = max(4 * table[rows[:1]].numel() for table in tables)
    return rows.split(max(most // max(size, 1), 1))


def gram(x, centre):
    """Inner products [n, n] of x [n, ...], a tensor or `Lazy`, about the mean of the items `centre`.

    Each slice is centred before the product: a large mean would lose fp32 precision.
    """
    total = torch.zeros(len(x), len(x))
    for part in x.slices() if isinstance(x, Lazy) else [x.to(torch.float32, copy=True)]:
        part = part.flatten(1)
        part -= part[centre].mean(0)
        for first in range(0, len(part), 256):  # the upper half
            total[first : first + 256, first:].addmm_(part[first : first + 256], part[first:].T)
        del part  # before the next slice is read
    return total.triu_().add_(total.triu(1).T)


def moments(x, y, rows):
    """((mean of x [D], of y [C]), X'X [D, D], X'Y [D, C]) over the tokens of the items `rows`, fp64.

    x [n, K, D] and y [n, K, C], tensors or `Lazy`, are read in chunks. Products are about the means; they are
    summed about the means of the first chunk, so that fp32 loses nothing.
    """
    shift = None
    for part in chunks(rows, x, y):
        both = x[part].flatten(0, 1), y[part].flatten(0, 1)
        if shift is None:
            shift = [z.mean(0) for z in both]
            sums = [torch.zeros_like(s, dtype=torch.float64) for s in shift]
            squares = products = count = 0
        a, b = (z - s for z, s in zip(both, shift, strict=True))
        squares = squares + (a.T @ a).double()
        products = products + (a.T @ b).double()
        sums = [s + z.sum(0).double() for s, z in zip(sums, (a, b), strict=True)]
        count += len(a)
    means = [s + z / count for s, z in zip(shift, sums, strict=True)]
    squares = squares - sums[0].outer(sums[0]) / count
    return means, squares, products - sums[0].outer(sums[1]) / count


def token_map(x, y, widths, train, val):
    """Primal ridge from every token to its target: a function of tokens [b, K, D] -> [b, K, C].

    x [n, K, D] and y [n, K, C], tensors or `Lazy`, are read in chunks. widths: of the tasks in C. Each task's
    penalty is the best on the items `val`: leave-one-token-out would leak inside images.
    """
    means, squares, products = moments(x, y, train)
    values, vectors = torch.linalg.eigh(squares)
    values, coordinates = values.clamp(min=0), vectors.T @ products
    penalties = PENALTIES.to(values.device) * values.mean().clamp(min=1e-300)
    maps = torch.stack([(vectors @ (coordinates / (values + p)[:, None])).float() for p in penalties])
    mean, centre = (z.float() for z in means)
    errors = torch.zeros(maps.shape[0], maps.shape[2], dtype=torch.float64, device=maps.device)
    for part in chunks(val, x, y):
        tokens, target = (x[part] - mean).flatten(0, 1), (y[part] - centre).flatten(0, 1)
        errors += torch.stack([(tokens @ m - target).square().sum(0) for m in maps])
    best = torch.stack([e.mean(1).argmin() for e in errors.split(widths, 1)])
    best = best.repeat_interleave(torch.tensor(widths))
    weight = maps[best, :, torch.arange(len(best))].T
    return lambda tokens: (tokens - mean) @ weight + centre


def token_ridge(x, targets, train, val):
    """`token_map` of x [n, K, D], a tensor or `Lazy`, for targets {task: [n, K, c]} -> {task: [n, K, c]}."""
    n, widths = len(x), [t.shape[-1] for t in targets.values()]
    y = Lazy(lambda rows: torch.cat([t[rows] for t in targets.values()], -1), n)
    predict = token_map(x, y, widths, train, val)
    found = {task: torch.empty(t.shape, device=t.device) for task, t in targets.items()}
    for rows in chunks(torch.arange(n), x, y):
        for task, part in zip(targets, predict(x[rows]).split(widths, -1), strict=True):
            found[task][rows] = part
    return found


# ---------------------------------------------------------------- paired gains


def signed_rank(difference, sources):
    """Two-sided p of Wilcoxon's test (scipy) on differences [n], averaged per source. 1 if all are 0."""
    from scipy.stats import wilcoxon

    cluster = clusters(sources)
    total = torch.zeros(int(cluster.max()) + 1, dtype=torch.float64).index_add_(
        0, cluster, difference.double()
    )
    means = total / torch.bincount(cluster)
    return float(wilcoxon(means.numpy()).pvalue) if means.abs().max() > 0 else 1.0


def averaged(name, x, sources):
    """{name, name_low, name_high} of scores [seeds, n] without nan; all None if no clip has a score."""
    keep = (~x.isnan().any(0)).nonzero().flatten().tolist()
    return mean_and_interval(name, x[:, keep], [sources[k] for k in keep])


def gain_of(errors, baseline, sources, seed):
    """`paired_test` of a baseline's errors [1, n] less errors [seeds, n], with Wilcoxon's p; or None."""
    less = baseline.mean(0) - errors.mean(0)
    keep = (~less.isnan()).nonzero().flatten().tolist()
    few = [sources[k] for k in keep]
    if not keep:
        return None
    found = paired_test(less[keep], 0 * less[keep], few, seed=seed)
    return found | {"p_wilcoxon": signed_rank(less[keep], few)}


def gain_columns(name, gain, *p_values):
    """{name, name_low, name_high, name_<p> for p in p_values} of a result of `gain_of`; all None of None."""
    keys = {"": "gain", "_low": "gain_low", "_high": "gain_high"} | {f"_{p}": p for p in p_values}
    return {f"{name}{end}": gain and gain[key] for end, key in keys.items()}


def adjusted(gains):
    """{name: gain}, with Holm's adjustment over the names."""
    found = {n: g for n, g in gains.items() if g}
    for key in ("p", "p_wilcoxon"):
        for n, p in holm({n: g[key] for n, g in found.items()}).items():
            found[n][f"{key}_holm"] = p
    return gains


LEAST = 0.05  # share of answers: a rarer change counts as none


def verdict(*tests):
    """`yes` if every paired gain excludes zero, `no` if one is surely below LEAST, else `inconclusive`."""
    if min(t["gain_low"] for t in tests) > 0:
        return "yes"
    return "no" if min(t["gain_high"] for t in tests) < LEAST else "inconclusive"


def mean_and_interval(key, scores, sources):
    """{key, key_low, key_high} of scores [n] or [seeds, n]; all None without scores."""
    return with_bounds(key, mean_interval(scores, sources) if len(sources) else (None,) * 3)
