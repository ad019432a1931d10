"""Does anything predict better than copying the last frame, in latent space?

    python predict.py --data data/future --features results/tiny/future-past/features \\
        --last results/tiny/future-last/features --random results/tiny/future-past/features-random \\
        --out results/tiny/future/predict-latents.yaml
    python predict.py --data data/future --features ... --choose probe-layers.yaml    # the layer alone

Predicts the autoencoder's latents of the frames 1, 2, 4, 8 and 16 frames ahead from a model's tokens of the
past. The features must be of clips that data.py cut, so that no future frame was encoded. Variants, with
the same training loop and a head of learned queries:

    sanity       the present itself                      single      from the last frame alone
    action       with the action as input                multi       from the whole past
    temporal, causal   a transformer over time           delta       the difference to the present
    contrastive  InfoNCE                                 language    from the middle language layer
    pixels, lora LPIPS + 0.1 L2 through the decoder, after `causal` and `language`; lora trains that layer too

Baselines: copy, linear and flow (extrapolated), mean_future, nearest (of train clips). Upper bound: oracle
(the truth, encoded). Controls read other inputs than the model's tokens: blind (the last frame's latents),
latents (of the whole past), untrained (--random: tokens of the untrained network). Measures: cosine of
latents, l1, LPIPS, l1 where the truth has moved; paired gain over copy (Wilcoxon's p over sources, Holm
over variants), by horizon and by quarter of motion. `predicts` lists the variants with a gain over copy,
mean_future, nearest and the controls. `scaling` trains one variant on five sizes of the training set.
Writes predict-latents.yaml, .png, .pt.

Needs checkpoints.py, cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py, models.yaml, motion.py,
predictors.py, stats.py, training.py.
"""

import math
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from tqdm import tqdm

import common
import ltx
import metrics
import models
import motion
import stats
import training
from common import fail
from media import frames_of
from predictors import latent_cosine, predict, train_variant

# reads: tokens of the past, of its last frame ("last"), or of the past at the middle language layer
# ("language"); time: attention over time; delta: predicts the difference to the present; after: starts from
# the trained heads of another variant; rank: of LoRA. The last three are controls: the last frame's
# latents, the latents of the past, the untrained network.
VARIANTS = {
    "sanity": {"reads": "last", "horizons": (0,)},
    "single": {"reads": "last"},
    "action": {"reads": "last", "action": True},
    "multi": {"reads": "past"},
    "temporal": {"reads": "past", "time": "both"},
    "causal": {"reads": "past", "time": "causal"},
    "delta": {"reads": "past", "time": "causal", "delta": True},
    "contrastive": {"reads": "past", "time": "causal", "loss": "contrastive"},
    "pixels": {"reads": "past", "time": "causal", "loss": "pixels", "after": "causal"},
    "language": {"reads": "language", "time": "causal"},
    "lora": {"reads": "language", "time": "causal", "loss": "pixels", "after": "language", "rank": 64},
    "blind": {"reads": "present", "delta": True},
    "latents": {"reads": "latents", "time": "causal", "delta": True},
    "untrained": {"reads": "random", "time": "causal", "delta": True},
}
CONTROLS = "blind", "latents", "untrained"
# what a variant must beat: none of them reads the trained model
MUST_BEAT = "copy", "mean_future", "nearest", *CONTROLS
NO_CANDIDATE = "sanity", "action", *CONTROLS  # action knows what happens
FRACTIONS = 1 / 16, 1 / 8, 1 / 4, 1 / 2  # of the training clips, beside all of them
TRAINING = {"epochs": 60, "batch": 32, "lr": 1e-3}
NOTES = {
    "cosine": "of whole frames' latents, mean over the horizons",
    "copy": "the last frame's latents; raw_ scores are of its pixels, without the autoencoder",
    "blind": "reads the last frame's latents in place of the model's tokens",
    "latents": "reads the latents of the whole past in place of the model's tokens",
    "action": "has the action as input, so it is no candidate",
    "untrained": "reads the same network with random weights",
    "static": "its change between horizons is at most a tenth of the oracle's",
    "p": "Wilcoxon's signed rank over means of sources",
    "moving_l1": "where the truth differs from the last frame by more than 25 of 255",
}


# ---------------------------------------------------------------- inputs


def check_cut(path, first, frames, name):
    """Exit 2 unless a data folder is these frames of the data `name`: else future frames may leak."""
    index = common.load_yaml(Path(path) / "index.yaml", "data")
    found = index.get("cut_from"), index.get("first"), index.get("frames")
    if found != (name, first, frames):
        last, how = first + frames - 1, f"data.py cut --clips data/{name} --first {first} --frames {frames}"
        fail(f"{path} is not frames {first} to {last}, so future frames may leak; make it by {how}")


def readable(args, w):
    """{what a variant reads: what is missing for it}, and whether LoRA can be trained."""
    missing = {"last": not args.last and "--last", "random": not args.random and "--random"}
    missing["language"] = not w.language and "features of language layers"
    entry = models.model_of(w.index)
    free = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf
    fits = free > 4.8e9 * entry.get("params", 0)  # fp32 weights and a training step
    return missing, entry.get("type", "").startswith("qwen") and args.past > 1 and fits


def variants_of(args, w):
    """{name: facts} of the variants: --variants, else all that the features allow; and the controls."""
    missing, tunes = readable(args, w)
    possible = [n for n, v in VARIANTS.items() if not missing.get(v["reads"]) and (tunes or "rank" not in v)]
    names = args.variants.split(",") if args.variants else possible
    for name in names:
        common.check_choice(name, VARIANTS, "variant")
        if need := missing.get(VARIANTS[name]["reads"]):
            fail(f"{name} needs {need}; give it, or leave {name} out of --variants")
    if not set(names) - set(NO_CANDIDATE):
        fail(f"--variants {args.variants} has no variant that predicts; add multi")
    if "lora" in names and args.past < 2:
        fail("--past 1 is one image, and lora reads clips; leave it out of --variants")
    after = [VARIANTS[name]["after"] for name in names if "after" in VARIANTS[name]]
    wanted = {*names, *after, *(set(CONTROLS) & set(possible))}
    return {name: v for name, v in VARIANTS.items() if name in wanted}


def features_like(args, flag, index):
    """`Features` of --last or --random; exit 2 where they are of other clips or another model."""
    folder = getattr(args, flag)
    read = common.Features(folder) if folder else None
    if read and any(read.index[key] != index[key] for key in ("ids", "model")):
        fail(f"--{flag} has other clips or another model than {args.features}; extract both alike")
    return read


def points_of(args, w):
    """The points with a token grid that all features hold; exit 2 where --point is none of them."""
    points = [p for p in common.with_grid(w.index) if p != "pixels"]
    for other in filter(None, (w.last, None if args.choose else w.random)):
        points = [p for p in points if p in other.index["points"]]
    if args.point:
        common.check_choice(args.point, dict.fromkeys(points), f"point in {args.features}")
    return points


def clips_of(args, w):
    """Add items, split, sources (of test clips), length and horizons; exit 2 where clips are too short."""
    items, w.data = common.load_items(args.data)
    check_cut(w.index["data_path"], 0, args.past, w.data["name"])
    w.items = common.join(items, w.index | {"data_path": args.data}, args.features)
    w.split = common.split_indices(w.items, args.features)
    w.sources = [w.items[k]["source"] for k in w.split["test"]]
    w.length = min(len(i.get("frames", ())) for i in w.items)
    w.horizons = [h for h in motion.HORIZONS if args.past + h <= w.length]
    if not w.horizons:
        fail(f"{args.data} has clips of {w.length} frames, and --past is {args.past}; give longer clips")


def read_inputs(args):
    """The namespace of the stage: features, items, split, horizons, variants. Exit 2 for wrong arguments."""
    common.positive(args, "past", "seeds", "epochs", "batch")
    w = SimpleNamespace(args=args, seed=args.seed, read=common.Features(args.features))
    w.index = w.read.index
    if "shown" in w.index:
        fail(f"{args.features} holds features of chosen frames; extract again without --frames")
    w.language = [p for p in common.with_grid(w.index) if p.startswith("language.")]
    w.variants = variants_of(args, w)
    clips_of(args, w)
    w.last, w.random = features_like(args, "last", w.index), features_like(args, "random", w.index)
    if w.last:
        check_cut(w.last.index["data_path"], args.past - 1, 1, w.data["name"])
    w.vae_entry, w.points = models.find_model(args.vae), points_of(args, w)
    if w.vae_entry["kind"] != "vae":
        fail(f"--vae {args.vae} is a {w.vae_entry['kind']}; a vae is needed")
    w.out = Path(args.choose or args.out or Path(args.features).parent / "predict-latents.yaml")
    common.check_writable(w.out)
    w.how = dict(TRAINING)
    w.how |= {k: getattr(args, k) for k in TRAINING if getattr(args, k) is not None}
    return w


def stills(clips):
    """Every frame of clips [n, T, H, W, 3] as a clip of one frame, [n T, 1, H, W, 3]."""
    return clips.flatten(0, 1)[:, None]


def load_truth(w):
    """Add device, frames uint8 [n, T, H, W, 3], latents z [n, T, h, w, C], present, future, actions."""
    w.device, w.dtype, why = common.choose_device()
    w.run = {"device": f"{w.device.type} ({why})", "dtype": str(w.dtype), "ranks": training.ranks()[1]}
    print(f"device {w.run['device']}")
    w.vae = ltx.flatten_stills(models.load_video_vae(w.vae_entry, w.device)[0]).requires_grad_(False)
    size = w.args.size or w.vae_entry["clip"]
    w.frames = torch.stack([frames_of({"frames": i["frames"][: w.length]}, size) for i in w.items])
    z = ltx.encode_generated_clips(w.vae, stills(w.frames))[:, 0]
    w.z = z.unflatten(0, w.frames.shape[:2])
    w.present = w.z[:, w.args.past - 1]
    w.ahead = [w.args.past - 1 + h for h in w.horizons]  # numbers of the predicted frames
    w.future = w.z[:, w.ahead]
    names = [str(i.get("action", i.get("direction"))) for i in w.items]
    of_train = sorted({names[k] for k in w.split["train"]})
    w.actions = {action: k for k, action in enumerate(of_train)}
    # len(w.actions): an action that train clips lack
    w.action = torch.tensor([w.actions.get(a, len(w.actions)) for a in names])


def best_layer(w):
    """The layer with the lowest val error of ridge regression on the change at the middle horizon."""
    change = (w.future - w.present[:, None])[:, len(w.horizons) // 2].flatten(1)
    sources, error = [i["source"] for i in w.items], {}
    train, val, rows = w.split["train"], w.split["val"], torch.arange(len(w.items))
    for point in tqdm(w.points, desc="layers", unit="point"):
        kernel = stats.gram(stats.layer_of(w.read, point, rows), train)
        solved = stats.solve_ridge(*stats.spectrum(kernel[None], train), {"": change}, train, sources)
        error[point] = (solved[""][0][0] - change)[val].square().mean().item()
    return min(error, key=error.get)


def train_all(w):
    """Add `trained` and `inputs` of every variant; those that others start from come first."""
    w.trained, w.inputs = {}, {}
    for name in w.variants:
        w.trained[name], w.inputs[name] = train_variant(w, name)


def train_sizes(w, name):
    """{clips: (trained, inputs)} of a variant on parts of the training clips."""
    train, g = w.split["train"], torch.Generator().manual_seed(w.seed)
    order, found = train[torch.randperm(len(train), generator=g)], {}
    for fraction in FRACTIONS:
        few = order[: max(round(fraction * len(order)), 2)]
        found[len(few)] = train_variant(w, name, few)
    return found


def baseline_predictions(w):
    """({baseline: latents [1, n_test, horizons, H, W, C]}, {baseline: uint8 [n_test, horizons, H, W, 3]} of
    those
    that predict pixels)."""
    test, train, p = w.split["test"], w.split["train"], w.args.past
    ahead = torch.tensor(w.horizons)
    past, n = w.z[:, :p], len(test)
    # over the whole past: the difference of two frames is mostly noise
    slope = (past[test, -1] - past[test, 0]) / max(p - 1, 1)
    near = torch.cdist(past[test].flatten(1), past[train].flatten(1)).argmin(1)
    flow = motion.extrapolate_flow(w.frames[test, :p], max(w.horizons))[:, ahead - 1]
    last = w.frames[test, p - 1][:, None].expand(-1, len(ahead), -1, -1, -1)
    latent = {
        "copy": w.present[test][:, None].expand_as(w.future[test]),
        "linear": w.present[test][:, None] + slope[:, None] * ahead.view(1, -1, 1, 1, 1),
        "flow": ltx.encode_generated_clips(w.vae, stills(flow))[:, 0].unflatten(0, (n, -1)),
        "mean_future": w.future[train].mean(0).expand_as(w.future[test]),
        "nearest": w.future[train[near]],
        "oracle": w.future[test],
    }
    return {k: x[None] for k, x in latent.items()}, {"copy": last, "flow": flow}


# ---------------------------------------------------------------- scores


def score(w, latent, pixels):
    """({row: {measure: [seeds, n, horizons]}}, {row: decoded uint8 [n, horizons, H, W, 3] of the first
    seed}).

    latent: {row: [seeds, n, horizons, ...]}; pixels: {row: uint8 [n, horizons, H, W, 3]}, scored as
    raw_<measure>.
    """
    test, (lpips, lpips_name) = w.split["test"], metrics.load_lpips(w.device)
    truth, last = w.frames[test][:, w.ahead], w.frames[test, w.args.past - 1]
    found, shown = {}, {}

    def scores_of(x):
        distance = lpips(x.flatten(0, 1), truth.flatten(0, 1)).unflatten(0, x.shape[:2])
        return motion.pixel_errors(x, truth, last) | {lpips_name: distance}

    for name, z in tqdm(latent.items(), desc="scored", unit="row"):
        scores = []
        for seed, x in enumerate(z):
            decoded = ltx.decode_generated_clips(w.vae, x.flatten(0, 1)[:, None])[:, 0]
            decoded = decoded.unflatten(0, x.shape[:2])
            scores.append(scores_of(decoded))
            shown[name] = shown[name] if seed else decoded
        found[name] = {"cosine": latent_cosine(z, w.future[test])}
        for k in scores[0]:
            found[name][k] = torch.stack([s[k] for s in scores])
    for name, x in pixels.items():  # without the autoencoder between
        found[name] |= {f"raw_{k}": y[None] for k, y in scores_of(x).items()}
    return found, shown, lpips_name


def moved(x):
    """Mean absolute change of frames [n, horizons, H, W, 3] from one horizon to the next."""
    return (x[:, 1:].float() - x[:, :-1].float()).abs().mean().item() if x.shape[1] > 1 else 0.0


def gain_columns(w, measure, own, copy):
    """{gain, interval, p} of a score over that of the copy; of all but the cosine with its name."""
    pair = (copy, own) if measure == "cosine" else (own, copy)
    gain = stats.gain_of(*pair, w.sources, w.seed)
    if not gain:
        return {}
    name = "" if measure == "cosine" else f"{measure}_"
    return {f"{name}{k}": gain[k] for k in ("gain", "gain_low", "gain_high")} | {
        f"{name}p": gain["p_wilcoxon"]
    }


def row_of(w, scores, shown, copy, oracle):
    """A table row: scores with intervals, gain and skill over copy, movement between horizons."""
    row = {}
    for measure, x in scores.items():
        x = x.nanmean(2) if "moving" in measure else x.mean(2)
        if not x.isnan().any(0).all():
            row |= stats.averaged(measure, x, w.sources)
    for measure in [m for m in scores if m in copy and not m.startswith(("raw_", "still"))]:
        row |= gain_columns(w, measure, scores[measure].nanmean(2), copy[measure].nanmean(2))
    moves = moved(shown) / moved(oracle) if moved(oracle) > 0 else None
    row["skill"] = 1 - ((1 - scores["cosine"]).mean() / (1 - copy["cosine"]).mean()).item()
    row["l1_skill"] = 1 - (scores["l1"].mean() / copy["l1"].mean()).item()
    return row | {"movement": moves, "static": moves is not None and moves < motion.STATIC}


def by_group(w, scores, baselines, groups):
    """{group: cosine, gains over copy and the best baseline}. groups: {group: (test clips, horizons)}."""

    def of(x, clips, ahead):
        return x["cosine"][:, clips][:, :, ahead].mean(2)

    table = {}
    for name, (clips, ahead) in groups.items():
        own, others = of(scores, clips, ahead), {f: of(x, clips, ahead) for f, x in baselines.items()}
        best = max(others, key=lambda f: others[f].mean())
        row = {"cosine": own.mean(), "cosine_copy": others["copy"].mean()}
        row |= {"baseline": others[best].mean(), "baseline_name": best, "clips": len(clips)}
        for key, f in (("gain", "copy"), ("gain_over_baseline", best)):
            found = stats.paired_test(own, others[f], [w.sources[k] for k in clips], seed=w.seed)
            row |= {f"{key}{end}": found[f"gain{end}"] for end in ("", "_low", "_high")}
        table[name] = row
    return table


def add_gains(w, rows, scores, compared):
    """Add to the rows of variants Holm's p over copy, and paired gains over what they must beat. Returns the
    variants that beat all of it."""
    cosine = {name: s["cosine"].mean(2) for name, s in scores.items()}
    others = [name for name in MUST_BEAT[1:] if name in scores]
    predicts = []
    for name, p in stats.holm({name: rows[name]["p"] for name in compared}).items():
        row = rows[name]
        row["p_holm"] = p
        for other in others:
            found = stats.paired_test(cosine[name], cosine[other], w.sources, seed=w.seed)
            row |= {f"gain_over_{other}{end}": found[f"gain{end}"] for end in ("", "_low", "_high")}
        lowest = min(row["gain_low"], *(row[f"gain_over_{other}_low"] for other in others))
        if name not in NO_CANDIDATE and p < 0.05 and lowest > 0:
            predicts.append(name)
    return predicts


def criteria_of(w, scores, best, options):
    """{prediction, beyond_extrapolation, prediction_l1: criterion} of the variant that val chooses."""
    cosine = {name: s["cosine"].mean(2) for name, s in scores.items()}
    more, about = {"seed": w.seed, "variant": best}, {"layer": w.point, "options_searched": options}
    baselines = {name: cosine[name] for name in MUST_BEAT if name in cosine}
    found = {"prediction": stats.criterion(cosine[best], baselines, w.sources, **more, **about)}
    baselines = {name: cosine[name] for name in ("linear", "flow")}
    found["beyond_extrapolation"] = stats.criterion(cosine[best], baselines, w.sources, **more)
    l1 = {name: s["l1"].mean(2) for name, s in scores.items()}
    baselines = {"copy": l1["copy"], "raw_copy": scores["copy"]["raw_l1"].mean(2), "blind": l1["blind"]}
    bound = l1["oracle"].mean().item()
    found["prediction_l1"] = stats.criterion(l1[best], baselines, w.sources, bound, "lower", **more)
    return found


def sizes_of(w, name, smaller):
    """1 - cosine on test of a variant trained on five sizes of the training set, beside that of the copy."""
    table, test = {}, w.split["test"]
    for n, trained in (smaller | {len(w.split["train"]): (w.trained[name], w.inputs[name])}).items():
        error = 1 - latent_cosine(predict(w, name, *trained, test), w.future[test]).mean(2)
        table[n] = stats.with_bounds("error", stats.mean_interval(error, w.sources))
    copy = 1 - latent_cosine(w.present[test][:, None].expand_as(w.future[test]), w.future[test])
    return {"variant": name, "copy_error": copy.mean(), "sizes": table}


def sanity(w):
    """{sanity_cosine, sanity_cosine_mean}: is the present itself reconstructed, beside the mean of train?"""
    if "sanity" not in w.variants:
        return {"sanity_cosine": None, "sanity_cosine_mean": None}
    test, present = w.split["test"], w.present
    found = predict(w, "sanity", w.trained["sanity"], w.inputs["sanity"], test)
    mean = present[w.split["train"]].mean(0).expand_as(present[test])
    cosine = latent_cosine(found, present[test][:, None]).mean()
    return {"sanity_cosine": cosine, "sanity_cosine_mean": latent_cosine(mean, present[test]).mean()}


# ---------------------------------------------------------------- the result


def headline(w, best, predicts, rows):
    """The scalars of predict-latents.yaml, for grep."""
    found = {"stage": "predict", "mode": "latents", "model": w.index["model"], "decoder": w.vae_entry["name"]}
    found |= {"weights": w.index["weights"], "decoder_weights": w.vae_entry["weights"]}
    found |= {"data": w.data["data"], "data_name": w.data["name"], "layer": w.point}
    found |= {"layers_searched": w.options, "variant": best, "predicts": ", ".join(predicts) or "none"}
    keys = (
        "cosine",
        "cosine_low",
        "cosine_high",
        "gain",
        "gain_low",
        "gain_high",
        "p_holm",
        "skill",
        "static",
    )
    found |= {k: rows[best][k] for k in (*keys, "gain_over_blind", "l1")}
    found |= {"cosine_copy": rows["copy"]["cosine"], "l1_copy": rows["copy"]["l1"]}
    found |= {"l1_raw_copy": rows["copy"]["raw_l1"], "l1_oracle": rows["oracle"]["l1"]}
    found |= {"past": w.args.past, "clips": len(w.sources), "train_clips": len(w.split["train"])}
    return found | {"sources": len(set(w.sources)), "seeds": w.args.seeds}


def trainings(w):
    """{variant: steps, rate, best epochs, seconds a step}; the steps of pixels and lora are all on pixels."""
    found = {}
    for name, runs in w.trained.items():
        records = [record for _, record in runs]
        lr = w.how["lr"] / (10 if "rank" in w.variants[name] else 1)
        row = {"loss": w.variants[name].get("loss", "latents"), "lr": lr, "steps": records[0]["steps"]}
        row["best_epoch"] = [r["epoch"] for r in records]
        found[name] = row | {"seconds_per_step": [r["seconds_per_step"] for r in records]}
    return found


def quarters_of_motion(w):
    """(test clips by growing motion, {quarter_<k>: (clips, horizons)}, mean motion of each quarter)."""
    test, every = w.split["test"], list(range(len(w.horizons)))
    change = w.frames[test][:, w.ahead].float() - w.frames[test, w.args.past - 1][:, None].float()
    amount = change.abs().mean((1, 2, 3, 4)) / 255
    order = amount.argsort()
    parts = order.tensor_split(4)
    groups = {f"quarter_{k + 1}": (part.tolist(), every) for k, part in enumerate(parts)}
    return order, groups, [amount[part].mean() for part in parts]


def draw_strips(result, strips, path):
    """Draw three clips: one row per variant, one column per clip, one frame per horizon."""
    plt = common.pyplot()
    names, horizons = list(strips), list(result["horizons"][result["variant"]])
    size = 17, 0.95 * len(names)
    figure, axes = plt.subplots(len(names), 3, figsize=size, squeeze=False, layout="constrained")
    for r, name in enumerate(names):
        for c, axis in enumerate(axes[r]):
            clip = strips[name][min(c, len(strips[name]) - 1)].numpy()
            clip = np.pad(clip, ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
            axis.imshow(np.concatenate(clip, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        weight = "bold" if name == result["variant"] else None
        axes[r][0].set_ylabel(name, rotation=0, ha="right", va="center", fontweight=weight)
    axes[0][0].set_title("past frames, left to right", fontsize=9)
    axes[1][0].set_title(f"{', '.join(map(str, horizons))} frames ahead", fontsize=9)
    figure.suptitle(f"{result['model']} ({result['layer']}) to {result['decoder']}", fontsize=12)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def write_strips(w, result, order, pixels, shown):
    """Write the frames of three clips, of middle and large motion, as .pt and .png."""
    some = torch.tensor([int(order[k]) for k in (len(order) // 2, -len(order) // 4, -1)])
    clips = w.frames[w.split["test"][some]]
    of_past = torch.linspace(0, w.args.past - 1, len(w.horizons)).round().long()
    strips = {"past": clips[:, of_past], "real": clips[:, w.ahead]}
    strips |= {name: x[some] for name, x in pixels.items()}
    strips |= {name: shown[name][some] for name in ("oracle", *result["variants"])}
    ids = [w.index["ids"][w.split["test"][k]] for k in some]
    meta = {"stage": "predict", "mode": "latents", "horizons": w.horizons}
    kept = {k: x.clone() for k, x in strips.items()}
    common.save_pt(w.out.with_suffix(".pt"), common.RESULT, ids, meta, generated_clips=kept)
    draw_strips(result, strips, w.out.with_suffix(".png"))


def evaluated(w, latent, best, compared):
    """The result of the predicted latents of test {variant: [seeds, n, horizons, ...]}, against baselines and
    controls; writes the frames of three clips."""
    simple, pixels = baseline_predictions(w)
    scores, shown, lpips_name = score(w, simple | latent, pixels)
    rows = {n: row_of(w, scores[n], shown[n], scores["copy"], shown["oracle"]) for n in scores}
    predicts = add_gains(w, rows, scores, compared)
    order, quarters, amounts = quarters_of_motion(w)
    horizons = {h: (list(range(len(w.sources))), [k]) for k, h in enumerate(w.horizons)}
    beside = {name: scores[name] for name in MUST_BEAT if name in scores}
    result = headline(w, best, predicts, rows) | sanity(w)
    result |= {"criteria": criteria_of(w, scores, best, len(compared))}
    result |= {"variants": {n: rows[n] for n in latent}, "baselines": {n: rows[n] for n in simple}}
    result["horizons"] = {n: by_group(w, scores[n], beside, horizons) for n in scores if n != "copy"}
    result["quarters_of_motion"] = {n: by_group(w, scores[n], beside, quarters) for n in latent}
    result["motion"] = amounts
    if lpips_name != "lpips":
        result |= {"lpips": None, "lpips_reason": "the published weights of the backbone are not here"}
    write_strips(w, result, order, pixels, shown)
    return result


def get_args(argv):
    p = common.parser(__doc__)
    add = p.add_argument
    add("--data", default="data/future", help="a folder of clips that data.py wrote")
    add("--features", required=True, help="features of the past, as data.py cut it")
    add("--last", help="features of the last frame of the past")
    add("--random", help="features of the past by the untrained network, for the control `untrained`")
    add("--choose", metavar="FILE", help="write the best layer to this file, for extract.py, and stop")
    add("--vae", default="tiny-vae", help="the autoencoder whose latents are predicted")
    add("--variants", help=f"(default: all that the features allow): {', '.join(VARIANTS)}")
    add("--point", help="the layer to read (default: the best by a ridge on val)")
    add("--size", type=int, help="side in pixels (default: the registry's for --vae)")
    add("--past", type=int, default=8, help="frames of the past")
    add("--seeds", type=int, default=3, help="trainings of each variant")
    add(
        "--epochs", type=int, help=f"(default: {TRAINING['epochs']}; pixels and lora: after those of latents)"
    )
    add("--batch", type=int, help=f"clips of a training step (default: {TRAINING['batch']})")
    add("--lr", type=float, help=f"peak learning rate (default: {TRAINING['lr']})")
    add("--no-scaling", action="store_true", help="leave out the trainings on fewer clips")
    add("--out", help="default: predict-latents.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    w = read_inputs(args)
    load_truth(w)
    w.point, w.options = (args.point, 1) if args.point else (best_layer(w), len(w.points))
    if args.choose:
        return save(w, {"stage": "predict", "points": w.point})

    # every variant is trained on the train split; one of them on parts of it, too
    train_all(w)
    compared = [name for name in w.variants if name not in CONTROLS and name != "sanity"]
    scaled = next(name for name in ("causal", "multi", "single", *compared) if name in compared)
    smaller = {} if args.no_scaling else train_sizes(w, scaled)
    if training.ranks()[0]:
        return {}

    # val chooses the variant
    latent, val, on_val = {}, {}, w.split["val"]
    for name in tqdm((n for n in w.variants if n != "sanity"), desc="predicted", unit="variant"):
        latent[name] = predict(w, name, w.trained[name], w.inputs[name], w.split["test"])
        found = predict(w, name, w.trained[name], w.inputs[name], on_val)
        val[name] = latent_cosine(found, w.future[on_val]).mean().item()
    best = max((name for name in compared if name not in NO_CANDIDATE), key=val.get)

    result = evaluated(w, latent, best, compared)
    if smaller:
        result["scaling"] = sizes_of(w, scaled, smaller)
    result |= {"val_cosine": val, "training": trainings(w), "notes": NOTES}
    result["run"] = common.run_info(args, started, script="predict.py", **w.run, **w.how)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    return save(w, result)


def save(w, result):
    common.save_yaml(w.out, result)
    common.print_summary(result)
    return result


if __name__ == "__main__":
    main()
