"""Planted data for calibrate.py: features, scores and detections whose answer is known.

    oracle                the answer itself, coded in the tokens                        must not FAIL
    noisy                 the same with noise; the true score is near the threshold
    constant, position    the same tokens for every item; a code of the place           must not PASS
    shuffled              the answer of another item                                    must not PASS
    random_network        an untrained map of the pixels; another one is its baseline   must not PASS
    normaliser_features   features scaled by the answers, also those of the baseline    must not PASS
    normaliser_targets    labels normalised by their own answers                        must not PASS

The scenes are shapes, and portraits, whose constant box clears the threshold.
"""

import argparse
import collections
import contextlib
import functools
import io
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import adapt
import adapters
import align
import gate
import media
import metrics
import models
import probe
import probes
import stats
import synthetic
import training

SIDE = 4  # tokens a side
TRAIN, VAL, REST, SET_TRAIN = 150, 75, 2000, 225
LEAKS = ("split_leak", "normaliser_features", "normaliser_targets")
EMPTY = ("constant", "position", "shuffled", "random_network")
NULLS = (*EMPTY, *LEAKS)  # features without the answer: PASS is false whatever the score
ARGUMENTS = argparse.Namespace(seed=0, permutations=10)  # of the stages


def generator(*seed):
    return torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))


def portraits(n, size, seed):
    """One large subject near the middle of every image: a constant box clears the threshold."""
    for i in range(n):
        rng = np.random.default_rng([seed, i, 1])
        subject = synthetic.random_object(rng, size, str(rng.choice(list(synthetic.COLOURS))), 0.26, 0.36)
        subject["shape"] = str(rng.choice(["circle", "square"]))
        subject["cx"] = size * rng.normal(0.5, 0.04)
        subject["cy"] = size * rng.normal(0.5, 0.04)
        image, mask, boxes = map(torch.from_numpy, synthetic.draw([subject], synthetic.background(rng, size)))
        name, labels = f"portraits-{seed}-{i:05d}", [subject["shape"]]
        item = {"id": name, "source": name, "width": size, "height": size, "frames": image[None]}
        yield item | {"mask": mask, "boxes": boxes, "labels": labels}


def to_grid(x, side):
    """[n, c, H, W] averaged to side x side pixels, as SIDE x SIDE tokens: [n, SIDE, SIDE, D]."""
    return metrics.to_cells(F.adaptive_avg_pool2d(x, side), SIDE, SIDE).unflatten(1, (SIDE, SIDE))


class Pool:
    """Images with their truth; a planted set takes a part of them."""

    def __init__(self, items):
        self.items = items
        self.largest, self.truth, self.names = metrics.box_truth(items)
        self.masks = media.foreground(items, metrics.MASK)
        self.images = torch.cat([i["frames"] for i in items]).permute(0, 3, 1, 2).float() / 255
        of_class = torch.zeros(len(items), len(self.names), 4 * SIDE, 4 * SIDE)
        for canvas, (boxes, names) in zip(of_class, self.truth, strict=True):
            cells = (boxes * 4 * SIDE).round().int().tolist()
            for (x1, y1, x2, y2), c in zip(cells, names.tolist(), strict=True):
                canvas[c, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)] = 1
        self.codes = {
            "boxes": self.largest[:, None, None].expand(-1, SIDE, SIDE, -1),
            "masks": to_grid(self.masks[:, None], 4 * SIDE),
            "latents": to_grid(self.images, 2 * SIDE),
            "map50": to_grid(of_class, 4 * SIDE),
        }

    def draw(self, n, g, rest=REST, train=TRAIN):
        """(numbers of the items of a planted set, split of the positions among them)."""
        sizes = {"train": train, "val": VAL, "test": n, "rest": rest}
        assert sum(sizes.values()) <= len(self.items), (sizes, len(self.items))
        pick = torch.randperm(len(self.items), generator=g)[: sum(sizes.values())]
        return pick, dict(zip(sizes, torch.arange(len(pick)).split(list(sizes.values())), strict=True))

    def untrained(self, pick, g, width=24):
        """Tokens of a network with random weights: a linear map of the pixels of every token, then ReLU."""
        tokens = metrics.to_cells(self.images[pick], SIDE, SIDE)
        weight = torch.randn(tokens.shape[-1], width, generator=g) / tokens.shape[-1] ** 0.5
        x = (tokens - 0.5) @ weight + 0.1 * torch.randn(width, generator=g)
        return x.relu().unflatten(1, (SIDE, SIDE))


def features(kind, code, pool, pick, g, noise=0.0):
    """(tokens [n, h, w, D] of a planted set of this kind, tokens of its untrained baseline)."""
    n = len(pick)
    shape = (n, SIDE, SIDE, 8)
    baseline = pool.untrained(pick, g)
    if kind in ("oracle", "noisy"):
        return code[pick] + noise * torch.randn(n, *code.shape[1:], generator=g), baseline
    if kind == "constant":
        return torch.ones(shape), baseline
    if kind == "shuffled":
        return code[pick[torch.randperm(n, generator=g)]], baseline
    if kind == "random_network":
        return pool.untrained(pick, g), baseline
    place = [torch.randn(1, *shape[1:], generator=g).expand(shape) for _ in range(2)]
    if kind == "normaliser_features":  # the place alone, times a scale fitted on the item's own answer
        scale = code[pick] @ torch.randn(code.shape[-1], 8, generator=g)
        return tuple(p * scale for p in place)
    return place[0] + 1e-3 * torch.randn(shape, generator=g), baseline


# ------------------------- one planted set: {criterion: (record, record on `rest`; None where PASS is false)}


def on_parts(split, measure, kind):
    """measure(split, sources) on the test items, and on the rest where the true score must be measured."""
    parts = [split] if kind in NULLS else [split, split | {"test": split["rest"]}]
    found = [measure(s, [str(i) for i in s["test"].tolist()]) for s in parts]
    return found[0], found[1] if found[1:] else None


def normalised(boxes):
    """Every box in units of itself; mapping back by the answer does not change IoU."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]).repeat(1, 2) / 2, (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return (boxes - centre) / size.clamp(min=1e-6) / 2 + 0.5


def measure_boxes(pool, kind, n, g, noise=0.0, untrained_baseline=True):
    pick, split = pool.draw(n, g, 0 if kind in NULLS else REST)
    x, baseline = features(kind, pool.codes["boxes"], pool, pick, g, noise)
    largest = pool.largest[pick]
    target = normalised(largest) if kind == "normaliser_targets" else largest
    sources, found = [str(i) for i in range(len(pick))], []
    for z in (x, baseline) if untrained_baseline else (x,):
        kernel = {"own": stats.gram(z, split["train"])}
        found.append(probes.probe_boxes(kernel, target, split, sources))
    layers, untrained = found if untrained_baseline else (found[0], {})

    def measure(s, _):
        return probe.box_record(layers, untrained, "own", images_of(s, sources, largest=largest))

    return {"bbox_iou": on_parts(split, measure, kind)}


def images_of(split, sources, largest=None, masks=None):
    """The ground truth of probe.py, of items that are all a mask or a box."""
    items = [{"source": source, "mask": None} for source in sources]
    return probe.Images(items, split, 0, largest, None, None, masks, None)


def measure_masks(pool, kind, n, g, noise=0.0):
    pick, split = pool.draw(n, g, 0 if kind in NULLS else 1000)
    x, baseline = features(kind, pool.codes["masks"], pool, pick, g, noise)
    masks = pool.masks[pick]
    sources, found = [str(i) for i in range(len(pick))], []
    for tokens in (x, baseline):
        soft = probes.probe_cells(tokens, masks[:, None], split)[:, 0]
        found.append({"own": {"spatial_iou": metrics.mask_scores(soft, masks >= 0.5, split)}})

    def measure(s, _):
        return probe.mask_record(*found, "own", x, images_of(s, sources, masks=masks))

    return {"spatial_iou": on_parts(split, measure, kind)}


def measure_alignment(pool, kind, n, g, noise=0.0):
    """CKA, Spearman and recall use n items, linear R2 a third; the true scores are those of `rest`."""
    part = n // 3
    pick, split = pool.draw(part, g, 0 if kind in NULLS else REST - 500, n - part)
    x, baseline = features(kind, pool.codes["latents"], pool, pick, g, noise)
    target, items = pool.codes["latents"][pick][:, None], [{"source": str(i)} for i in range(len(pick))]

    def layers(tokens, n_perm=ARGUMENTS.permutations):
        return align.measure_layers({"own": tokens[:, None]}, target, items, split, n_perm)

    found, random = layers(x), layers(baseline) if kind == "random_network" else {}
    records = {m: align.record(column, random.get(m)) for m, column in found.items()}
    truth = {}
    if kind not in NULLS:
        rest, source = split["rest"], torch.arange(len(pick))
        fit = align.token_r2(x[:, None], target, split | {"test": rest}, source)
        truth = {"linear_r2": fit["values"].mean().item()}
        spaces = [[align.space_of(z[rest])] for z in (x, target)]
        truth |= {m: align.pairs(*spaces, m).item() for m in ("cka", "spearman")}
    return {m: (r, {"score": truth[m], "baseline": 0.0} if m in truth else None) for m, r in records.items()}


def measure_motion(pool, kind, n, g, noise=0.0):
    """Clips of eight directions, in pairs of one source, whose last time step holds the direction."""
    sizes = {"train": TRAIN, "val": VAL + 1, "test": n, "rest": 1000}
    total = sum(sizes.values())
    split = dict(zip(sizes, torch.arange(total).split(list(sizes.values())), strict=True))
    label, sources = torch.randint(8, (total,), generator=g), [str(i // 2) for i in range(total)]
    code = F.pad(F.one_hot(label, 8).float(), (0, 8))[:, None]
    code = code * torch.tensor([0.0, 0.5, 1.0])[:, None]
    shape = (total, 3, 16)
    baseline = torch.randn(shape, generator=g)
    x = {
        "oracle": code,
        "noisy": code + noise * torch.randn(shape, generator=g),
        "constant": torch.ones(shape),
        "position": torch.randn(1, 3, 16, generator=g) + 1e-3 * baseline,
        "shuffled": code[torch.randperm(total, generator=g)],
        "random_network": torch.randn(shape, generator=g),
    }[kind]
    pooled = [{"own": {"mean": z, "max": z}} for z in (x, baseline)]

    def measure(s, _):
        clips = probes.Clips(s, 0, label, sources)
        trained = probes.read_motion(pooled[0], ["own"], clips, shuffled=True)
        at = probes.best_reading(trained, clips)
        return probe.probe_clips(clips, trained, at, pooled[1], ["own"], {})[0]["direction_accuracy"]

    return {"direction_accuracy": on_parts(split, measure, kind)}


def measure_detection(pool, kind, n, g, noise=0.0):
    """The set probe and its baselines, with two seeds of 400 steps; probe.py trains five of 800."""
    pick, split = pool.draw(n, g, 0 if kind in NULLS else 500, SET_TRAIN)
    x, baseline = features(kind, pool.codes["map50"], pool, pick, g, noise)
    truth = [pool.truth[i] for i in pick]
    permuted = torch.randperm(SET_TRAIN, generator=g).tolist() + list(range(SET_TRAIN, len(pick)))
    jobs = {
        "own": (x, truth, False),
        "position_only": (x[split["train"]].mean(0).expand_as(x), truth, False),
        "shuffled": (x, [truth[i] for i in permuted], False),
        "random_init": (baseline, truth, False),
    }
    seed = int(torch.randint(2**31, (1,), generator=g))
    parts = len(pool.names), split["train"], split["val"]
    predict = probes.train_set_probe(list(jobs.values()), *parts, seeds=2, steps=400, seed=seed)

    def measure(s, sources):
        groups = sources if s is split else [0] * len(s["test"])  # of the rest the mean alone
        runs = probes.ap_runs(predict, truth, s["test"], groups).unflatten(0, (len(jobs), 2))
        runs = dict(zip(jobs, runs, strict=True))
        own = runs.pop("own")
        if s is split:
            return stats.criterion(own, runs, range(own.shape[1]), blind="position_only")
        return {"score": own.mean().item(), "baseline": max(r.mean().item() for r in runs.values())}

    return {"map50": on_parts(split, measure, kind)}


def measure_adapter(pool, kind, n, g, noise=0.0):
    """The decoder's latents, rotated; the MLP adapter, 2 seeds of 15 epochs (adapt.py: 5 of 30)."""
    decoder = pool.decoder
    pick, split = pool.draw(n, g, 0 if kind in NULLS else 100)
    y = decoder["latents"][pick]
    rotated = y @ torch.linalg.qr(torch.randn(y.shape[-1], y.shape[-1], generator=g))[0]
    noisy = rotated + noise * torch.randn(y.shape, generator=g)
    position = torch.randn(y[:1].shape, generator=g).expand_as(y) + 1e-3 * torch.randn(y.shape, generator=g)
    shuffled = rotated[torch.randperm(len(y), generator=g)]
    x = {"oracle": rotated, "noisy": noisy, "constant": torch.ones_like(y)}
    x = (x | {"position": position, "shuffled": shuffled})[kind]
    shape = ([x.shape[1:3]], [x.shape[3]], tuple(y.shape[1:3]), y.shape[3])
    how = adapt.SETTINGS["latents"] | {"epochs": 15}

    def loss(model, items, *_):
        return (model(x[items]) - y[items]).square().mean()

    adapters = [training.train(lambda: adapters.Mlp(*shape), loss, split, seed, how)[0] for seed in range(2)]
    originals = torch.cat([pool.items[i]["frames"] for i in pick.tolist()])
    mean_image = originals[split["train"]].float().mean(0).round().byte()

    def measure(s, sources, name):
        distance, better = {"lpips": (decoder["lpips"], "lower"), "ssim": (metrics.ssim, "higher")}[name]
        test = s["test"]

        def scores(images):
            target = originals[test].repeat(len(images) // len(test), 1, 1, 1)
            return distance(images.contiguous(), target).unflatten(0, (-1, len(test)))

        with torch.inference_mode():
            decoded = torch.cat([adapters.decode(decoder["vae"], m(x[test])) for m in adapters])
        other = decoded.unflatten(0, (2, -1)).roll(1, 1).flatten(0, 1)
        baselines = {"mean_image": scores(mean_image.expand_as(decoded[: len(test)]))}
        baselines["other_item"] = scores(other)
        bound = scores(decoder["images"][pick[test]]).mean().item()
        record = stats.criterion(scores(decoded), baselines, sources, upper_bound=bound, better=better)
        return gate.stand_in(record) if name == "lpips" and decoder["stand_in"] else record

    return {k: on_parts(split, functools.partial(measure, name=k), kind) for k in ("lpips", "ssim")}


def with_decoder(pool):
    """The pool with the committed autoencoder, its latents of the images, and LPIPS."""
    vae, _ = models.load_video_vae(models.find_model("tiny-vae"))
    with torch.no_grad():
        parts = [vae.encode(x).latent_dist.mode() for x in (pool.images[:, :, None] * 2 - 1).split(16)]
    with contextlib.redirect_stderr(io.StringIO()):
        distance, name = metrics.load_lpips()
    latents = ((torch.cat(parts).permute(0, 2, 3, 4, 1) - vae.latents_mean) / vae.latents_std)[:, 0]
    pool.decoder = {"vae": vae, "latents": latents, "images": adapters.decode(vae, latents)}
    pool.decoder |= {"lpips": distance, "stand_in": name != "lpips"}
    return pool


# scenes: {scene: kinds}; count: sets of each kind and n; sizes: test items, by default calibrate.py's
# offsets: of the true score from the threshold; levels of noise where no criterion (noise_by) sets the noise
Family = collections.namedtuple("Family", "measure noise_by scenes count offsets sizes", defaults=[None])

NEAR = (-0.05, -0.025, 0, 0.025, 0.05)
BOTH = ("oracle", "noisy", *EMPTY)
ONE_FEATURE_LEAK = (*EMPTY, "normaliser_features")
LEAKING = (*EMPTY, *LEAKS[1:])
BOX_SCENES = {"shapes": ("oracle", "noisy", *LEAKING), "portraits": LEAKING}
MASK_SCENES = {"shapes": ("oracle", "noisy", *ONE_FEATURE_LEAK), "portraits": ONE_FEATURE_LEAK}
SPACES = ("oracle", "noisy", "position", "shuffled", "random_network")
SETS = ("oracle", "noisy", "constant", "shuffled", "random_network")
SMALL = ("oracle", "noisy", "constant", "position", "shuffled")
FAMILIES = {
    "boxes": Family(measure_boxes, "bbox_iou", BOX_SCENES, 15, NEAR),
    "masks": Family(measure_masks, "spatial_iou", MASK_SCENES, 6, NEAR),
    "alignment": Family(measure_alignment, None, {"shapes": SPACES}, 4, (0.1, 0.2, 0.3, 0.45, 0.7)),
    "motion": Family(measure_motion, "direction_accuracy", {"shapes": BOTH}, 10, (-0.05, 0, 0.05)),
    "map50": Family(measure_detection, None, {"shapes": SETS}, 3, (0.15, 0.35), (100,)),
    "adapter": Family(measure_adapter, None, {"small": SMALL}, 3, (0.5, 0.8), (100,)),
}
TRAINED = ("map50", "adapter")


def pools(largest, seed, small):
    """{scene: Pool}, for sets of at most `largest` test items; `small` with the autoencoder's latents."""
    n = TRAIN + VAL + largest
    found = {"shapes": Pool(list(synthetic.shapes(n + TRAIN + REST, 48, seed)))}
    found["portraits"] = Pool(list(portraits(n, 48, seed)))
    if small:
        found["small"] = with_decoder(Pool(list(synthetic.shapes(TRAIN + VAL + 200, 64, seed))))
    return found


# ---------------------------------------------------------------- scores and detections, without features


def distributions():
    """{shape: (better, quantile function, mean)}."""
    from scipy import stats as scipy_stats

    def iou(u):
        found = scipy_stats.beta.ppf(np.clip((u - 0.1) / 0.9, 0, 1), 2.2, 1.6)
        return np.where(u < 0.1, 0.0, found)

    return {
        "iou": ("higher", iou, 0.9 * 2.2 / 3.8),
        "hit": ("higher", lambda u: (u > 0.2).astype(float), 0.8),
        "distance": ("lower", lambda u: scipy_stats.gamma.ppf(u, 4, scale=0.075), 0.3),
    }


def planted_scores(shape, n, per_source, gain, ties, rng, together=0.5):
    """(record, true mean) of n scores of a known distribution; items of a source correlate by `together`.

    gain: over the best baseline, None for a distant one. ties: all three baselines are equally good.
    """
    from scipy.special import ndtr

    better, quantile, mean = distributions()[shape]
    sign = 1 if better == "higher" else -1
    source = np.arange(n) // per_source
    shared = rng.standard_normal(n)

    def draw(correlation):
        z = correlation**0.5 * shared + (1 - correlation) ** 0.5 * rng.standard_normal(n)
        if per_source > 1:
            z = together**0.5 * rng.standard_normal(source.max() + 1)[source] + (1 - together) ** 0.5 * z
        return quantile(ndtr(z))

    baselines = {}
    for name, more in (("constant", 0.0), ("shuffled", 0.02), ("random_init", 0.05)):
        below = (0.35 if gain is None else gain) + (0 if ties else more)
        baselines[name] = torch.from_numpy(draw(0.6) - sign * below)
    upper_bound = 1.0 if better == "higher" else 0.0
    return stats.criterion(draw(0.6), baselines, [str(s) for s in source], upper_bound, better), mean


def detections(n, per_source, rng, quality=0.45):
    """Truth of n images, and the detections of two runs: a box of an easy source is found more often."""
    from scipy.special import ndtr

    truth, runs = [], [[], []]
    ease = ndtr(rng.standard_normal(n // per_source + 1))[np.arange(n) // per_source] * 0.8 + quality - 0.4
    for i in range(n):
        m = int(rng.integers(1, 4))
        corner = rng.uniform(0, 0.2, (m, 2)) + np.array([[0, 0], [0.35, 0.35], [0.7, 0.7]])[:m]
        boxes = torch.from_numpy(np.concatenate([corner, corner + 0.1], 1)).float() * 1000
        names = torch.from_numpy(rng.integers(0, 4, m))
        truth.append((boxes, names))
        for run in runs:
            hit = rng.uniform(size=m) < ease[i]
            score = np.where(hit, rng.uniform(0.3, 1, m), rng.uniform(0, 0.7, m))
            moved = torch.where(torch.from_numpy(hit)[:, None], boxes + 5, boxes + 90)
            run.append((moved, names, torch.from_numpy(score)))
    return truth, runs
