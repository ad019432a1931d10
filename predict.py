"""Does anything predict better than copying the last frame, in latent space?

    python predict.py --data data/future --features results/tiny/future-past/features --last results/tiny/future-last/features \\
        --random results/tiny/future-past/features-random --out results/tiny/future/predict-latents.yaml

Predicts the autoencoder's latents of the frames 1, 2, 4, 8 and 16 frames ahead from a model's tokens of the past. The features must be
of clips that data.py cut, so that no future frame was encoded. Variants, with the same training loop and a head of learned queries:

    sanity (the present itself), single (from the last frame alone), action (with the action as input), multi (from the whole past),
    temporal and causal (a transformer over time), delta (the difference to the present), contrastive (InfoNCE), pixels (LPIPS + 0.1 L2
    through the decoder), language (from the middle language layer), lora (that layer with LoRA, trained on pixels)

Baselines: copy, linear and flow (extrapolated), mean_future, nearest (of train clips). Upper bound: oracle (the truth, encoded).
Controls read other inputs than the model's tokens: blind (the last frame's latents), latents (of the whole past), untrained (--random:
tokens of the untrained network). Measures: cosine of latents, l1, LPIPS, l1 where the truth has moved; paired gain over copy
(Wilcoxon's p over sources, Holm over variants) by horizon and by quarter of motion. `predicts` lists the variants with a gain over copy,
mean_future, nearest and the controls. `scaling` trains one variant on five sizes of the training set.
Writes predict-latents.yaml, .png, .pt.

Copy with it: cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py, motion.py, stats.py,
training.py, checkpoints.py, models.yaml.
"""

import functools
import math
import shutil
import time
import types
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    RESULT,
    check_choice,
    check_writable,
    choose_device,
    digest,
    fail,
    join,
    load_features,
    load_items,
    load_yaml,
    parser,
    positive,
    print_summary,
    pyplot,
    run_info,
    save_pt,
    save_yaml,
    split_indices,
    with_grid,
)
from ltx import decode_generated_clips, encode_generated_clips, flatten_stills, images_of
from media import frames_of
from metrics import load_lpips, lpips_model, pixel_loss
from models import find_model, load_video_vae, load_vlm, model_of, qwen_inputs
from motion import HORIZONS, SHIFTS, STATIC, extrapolate_flow, pixel_errors
from stats import averaged, criterion, gain_of, holm, mean_interval, paired_test, ridge, with_bounds
from training import Tuned, attention, ranks, resample, train

# reads: tokens of the past, of its last frame ("last"), or of the past at the middle language layer
# ("language"); time: attention over time; delta: predicts the difference to the present; rank: of LoRA.
# The last three are controls: the last frame's latents, the latents of the past, the untrained network.
VARIANTS = {
    "sanity": {"reads": "last", "horizons": (0,)},
    "single": {"reads": "last"},
    "action": {"reads": "last", "action": True},
    "multi": {"reads": "past"},
    "temporal": {"reads": "past", "time": "both"},
    "causal": {"reads": "past", "time": "causal"},
    "delta": {"reads": "past", "time": "causal", "delta": True},
    "contrastive": {"reads": "past", "time": "causal", "loss": "contrastive"},
    "pixels": {"reads": "past", "time": "causal", "loss": "pixels"},
    "language": {"reads": "language", "time": "causal"},
    "lora": {"reads": "language", "time": "causal", "loss": "pixels", "rank": 64},
    "blind": {"reads": "present", "delta": True},
    "latents": {"reads": "latents", "time": "causal", "delta": True},
    "untrained": {"reads": "random", "time": "causal", "delta": True},
}
CONTROLS = "blind", "latents", "untrained"
# what a variant must beat: none of them reads the trained model
MUST_BEAT = "copy", "mean_future", "nearest", *CONTROLS
FRACTIONS = 1 / 16, 1 / 8, 1 / 4, 1 / 2  # of the training clips, beside all of them
TEMPERATURE = 0.07
TRAINING = {"epochs": 60, "patience": 20, "batch": 32, "lr": 1e-3}


def merged(x):
    """Tokens [n, t, h, w, D] on a grid of at most 6 x 6: f x f neighbours are concatenated, as in Qwen's merger;
    averaged where no f divides the grid."""
    (h, w), most = x.shape[2:4], 6
    f = next((f for f in range(1, max(h, w) + 1) if h % f == w % f == 0 and max(h, w) // f <= most), None)
    if f is None or f * f > 16:
        return (
            F.adaptive_avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), (min(h, most), min(w, most)))
            .permute(0, 2, 3, 1)
            .unflatten(0, x.shape[:2])
        )
    return x.unflatten(3, (-1, f)).unflatten(2, (-1, f)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


class Predictor(torch.nn.Module):
    """Tokens of the past [n, t, h, w, D] -> latents [n, H, W, C] of a future frame; horizon: an index.

    A query for each latent place and horizon, plus a linear map of the tokens there, attends to all tokens. time:
    "both": tokens of one place first attend to each other over time; "causal": to earlier ones, and queries read
    the last step. actions: number of actions (0: no such input). delta: the output, zero at the start, is added
    to the present's latents. moments: (mean, std) [D] of the tokens."""

    def __init__(
        self, grid, out_grid, channels, horizons, time=None, actions=0, delta=False, moments=None, width=64
    ):
        super().__init__()
        mean, std = moments or (torch.zeros(grid[3]), torch.ones(grid[3]))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.here = torch.nn.Linear(grid[0] * grid[3], width)
        t, h, w, d = merged(torch.empty(1, *grid, device="meta")).shape[1:]
        self.out_grid, self.time, self.delta = out_grid, time, delta
        self.embed = torch.nn.Linear(d, width)
        self.place = torch.nn.Parameter(torch.randn(h * w, width) * 0.1)
        self.moment = torch.nn.Parameter(torch.randn(t, 1, width) * 0.1)
        if time:
            self.over_time = torch.nn.TransformerEncoder(
                torch.nn.TransformerEncoderLayer(
                    width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
                ),
                2,
                enable_nested_tensor=False,
            )
        self.query = torch.nn.Parameter(torch.randn(math.prod(out_grid), width) * 0.1)
        self.horizon = torch.nn.Parameter(torch.randn(len(horizons), 1, width) * 0.1)
        self.action = torch.nn.Embedding(actions, width) if actions else None
        self.layers = torch.nn.ModuleList(attention(width) for _ in range(2))
        self.out = torch.nn.Linear(width, channels)
        # zero output at the start (with delta: a copy), so that an untrained head adds no noise
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, x, horizon, present, action):
        """x [n, t, h, w, D], horizon [n], present [n, H, W, C], action [n]."""
        x = (x - self.mean) / self.std
        n, t = x.shape[:2]
        here = resample(x.flatten(0, 1), self.out_grid).unflatten(0, (n, t))
        here = here.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # [n, HW, t D]
        memory = self.embed(merged(x).flatten(2, 3)) + self.place + self.moment  # [n, t, hw, width]
        if self.time:
            mask = None
            if self.time == "causal":
                mask = torch.nn.Transformer.generate_square_subsequent_mask(t, device=x.device)
            memory = self.over_time(memory.transpose(1, 2).flatten(0, 1), mask, is_causal=mask is not None)
            memory = memory.unflatten(0, (n, -1)).transpose(1, 2)
            memory = memory[:, -1:] if self.time == "causal" else memory
        query = self.query + self.horizon[horizon] + self.here(here)
        memory = memory.flatten(1, 2)
        if self.action is not None:
            memory = torch.cat([memory, self.action(action)[:, None]], 1)
        for layer in self.layers:
            query = layer(query, memory)
        z = self.out(query).unflatten(1, self.out_grid)
        return present + z if self.delta else z


class LoraPredictor(torch.nn.Module):
    """A Predictor on the tokens of a VLM with LoRA (training.Tuned)."""

    def __init__(self, tuned, head):
        super().__init__()
        self.tuned, self.head = tuned, head

    def forward(self, x, *more):
        return self.head(self.tuned(x), *more)


def info_nce(predicted, truth, hard):
    """InfoNCE of cosines (van den Oord et al. 2018): predicted [n, ...] against truth [n, ...]. Negatives: the
    truths of other items, and `hard` [n, k, ...]."""
    predicted = F.normalize(predicted.flatten(1), dim=1)
    truth = F.normalize(truth.flatten(1), dim=1)
    hard = F.normalize(hard.flatten(2), dim=2)
    others, own_hard = truth @ truth.T, torch.einsum("nd,nkd->nk", truth, hard)
    # where nothing moves, the present equals the truth and is no negative
    same = torch.cat([others.fill_diagonal_(0), own_hard], 1) > 1 - 1e-6
    scores = (
        torch.cat([predicted @ truth.T, torch.einsum("nd,nkd->nk", predicted, hard)], 1).masked_fill(same, -1)
        / TEMPERATURE
    )
    return F.cross_entropy(scores, torch.arange(len(predicted), device=predicted.device))


def latent_cosine(a, b):
    """Cosine of latents [..., H, W, C], each frame as one vector."""
    return F.cosine_similarity(a.flatten(-3).double(), b.flatten(-3).double(), dim=-1)


def check_cut(path, first, frames, name):
    """Fail unless a data folder is frames first .. first + frames - 1 of `name`: else future frames may leak."""
    index = load_yaml(Path(path) / "index.yaml", "data")
    found = index.get("cut_from"), index.get("first"), index.get("frames")
    if found != (name, first, frames):
        last, how = first + frames - 1, f"data.py cut --clips data/{name} --first {first} --frames {frames}"
        fail(f"{path} is not frames {first} to {last}, so future frames may leak; make it by {how}")


def prepare(args):
    """Namespace: clips, tokens of the past, latents of every frame. Checks all arguments, then loads models."""
    w = types.SimpleNamespace(args=args, seed=args.seed)
    positive(args, "past", "seeds", "epochs", "batch")
    w.index, w.read = load_features(args.features)
    if "shown" in w.index:
        fail(f"{args.features} holds features of chosen frames; extract again without --frames")
    w.language = [p for p in with_grid(w.index) if p.startswith("language.")]
    # variants that are left out by default
    cannot = {"last": not args.last, "language": not w.language, "random": not args.random}
    entry = model_of(w.index)
    fits = memory_free() > 4.8e9 * entry.get("params", 0)  # fp32 weights and a training step
    can = {"rank": entry.get("type", "").startswith("qwen") and args.past > 1 and fits}
    names = (
        args.variants.split(",")
        if args.variants
        else [
            n
            for n, v in VARIANTS.items()
            if not cannot.get(v["reads"]) and can.get("rank" if "rank" in v else None, True)
        ]
    )
    for name in names:
        check_choice(name, VARIANTS, "variant")
    w.variants = {
        name: v
        for name, v in VARIANTS.items()
        if name in names or name in CONTROLS and not cannot.get(v["reads"])
    }
    if not set(w.variants) - {"sanity", "action", *CONTROLS}:
        fail(f"--variants {args.variants} has no variant that predicts; add multi")
    if "lora" in w.variants and args.past < 2:
        fail("--past 1 is one image, and lora reads clips; leave it out of --variants")
    items, w.data = load_items(args.data)
    check_cut(w.index["data_path"], 0, args.past, w.data["name"])
    w.items = join(items, w.index | {"data_path": args.data}, args.features)
    w.split = split_indices(w.items, args.features)
    w.test_sources = [w.items[k]["source"] for k in w.split["test"]]
    w.length = min(len(i.get("frames", ())) for i in w.items)
    w.horizons = [h for h in HORIZONS if args.past + h <= w.length]
    if not w.horizons:
        fail(f"{args.data} has clips of {w.length} frames, and --past is {args.past}; give longer clips")
    w.last = None
    if any(v["reads"] == "last" for v in w.variants.values()):
        if not args.last:
            fail("single, action, sanity read the last frame; give --last its features or leave them out")
        last, w.read_last = load_features(args.last)
        check_cut(last["data_path"], args.past - 1, 1, w.data["name"])
        w.last = last
    random, w.read_random = load_features(args.random) if args.random else (w.index, None)
    for flag, other in (("--last", w.last or w.index), ("--random", random)):
        if other["ids"] != w.index["ids"] or other["model"] != w.index["model"]:
            fail(f"{flag} has other clips or another model than {args.features}; extract both alike")
    vae = find_model(args.vae)
    if vae["kind"] != "vae":
        fail(f"--vae {args.vae} is a {vae['kind']}; a vae is needed")
    w.out = Path(args.out or Path(args.features).parent / "predict-latents.yaml")
    check_writable(w.out)
    points = [
        p
        for p in with_grid(w.index)
        if p != "pixels" and (w.last is None or p in w.last["points"]) and p in random["points"]
    ]
    if args.point and args.point not in points:
        fail(f"--point {args.point} is not in {args.features}; give one of {', '.join(points)}")
    if not w.language and any(v["reads"] == "language" for v in w.variants.values()):
        fail(f"{args.features} holds no language layer; leave language and lora out of --variants")
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    w.vae_entry, w.vae = vae, flatten_stills(load_video_vae(vae, w.device)[0]).requires_grad_(False)
    size = args.size or vae["clip"]
    # uint8 [n, T, H, W, 3]
    w.frames = torch.stack([frames_of({"frames": i["frames"][: w.length]}, size) for i in w.items])
    w.z = encode_generated_clips(w.vae, stills(w.frames))[:, 0].unflatten(
        0, w.frames.shape[:2]
    )  # [n, T, h, w, C]
    w.present = w.z[:, args.past - 1]
    w.future = w.z[:, [args.past - 1 + h for h in w.horizons]]
    names = [str(i.get("action", i.get("direction"))) for i in w.items]
    w.actions = {a: k for k, a in enumerate(sorted({names[k] for k in w.split["train"]}))}
    # len(w.actions): an action that train clips lack
    w.action = torch.tensor([w.actions.get(a, len(w.actions)) for a in names])
    w.lpips, w.lpips_name = load_lpips(w.device)
    w.how = TRAINING | {
        k: getattr(args, k) for k in ("epochs", "batch", "lr") if getattr(args, k) is not None
    }
    w.point, w.options = (args.point, 1) if args.point else (best_layer(w, points), len(points))
    # one copy of the chosen layer
    w.read, w.read_last, w.read_random = (
        read and functools.cache(read) for read in (w.read, getattr(w, "read_last", None), w.read_random)
    )
    w.tuned = tuned_model(w, w.variants["lora"]["rank"]) if "lora" in w.variants else None
    return w


def memory_free():
    """Free bytes of the GPU's memory; on a CPU, infinity."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf


def stills(clips):
    """Every frame of clips [n, T, H, W, 3] as a clip of one frame, [n T, 1, H, W, 3]."""
    return clips.flatten(0, 1)[:, None]


def best_layer(w, points):
    """The layer with the lowest val error of ridge regression on the change of latents at the middle horizon."""
    change = (w.future - w.present[:, None])[:, len(w.horizons) // 2].flatten(1)
    sources, val, error = [i["source"] for i in w.items], w.split["val"], {}
    for point in tqdm(points, desc="layers", unit="point"):
        x = w.read(point).flatten(1)
        found = ridge(x, {"change": change}, w.split["train"], sources)["change"]
        error[point] = (found - change)[val].square().mean().item()
    return min(error, key=error.get)


def input_of(w, name):
    """(function from items to a variant's tokens, their grid, (mean, std) of their channels over train clips)."""
    v = w.variants[name]
    x = {
        "present": lambda: w.present[:, None],
        "latents": lambda: w.z[:, : w.args.past],
        "last": lambda: w.read_last(w.point),
        "past": lambda: w.read(w.point),
        "random": lambda: w.read_random(w.point),
        "language": lambda: w.read(middle(w.language)),
    }[v["reads"]]()
    rows = x[w.split["train"]].flatten(0, -2)
    return (
        lambda items: x[items].to(w.device),
        tuple(x.shape[1:]),
        (rows.mean(0), rows.std(0).clamp(min=1e-6)),
    )


def middle(points):
    """The middle one of a stack's layers."""
    return points[(len(points) - 1) // 2]


def tuned_model(w, rank):
    """(VLM with LoRA, function from items to its inputs). Fails if it does not reproduce the stored features."""
    entry, size = model_of(w.index), w.index["size"]
    if not entry.get("type", "").startswith("qwen"):
        fail(f"{w.index['model']} is not of Qwen's family, as lora needs; leave it out of --variants")
    vlm, processor = load_vlm(entry, w.device, torch.float32 if w.dtype == torch.float16 else w.dtype)
    vlm.requires_grad_(False)

    def inputs(items):
        batch = qwen_inputs(
            processor,
            torch.stack([frames_of({"frames": w.items[k]["frames"][: w.args.past]}, size) for k in items]),
            "Describe the clip.",
        )
        return {
            k: v.to(w.device, vlm.dtype) if v.is_floating_point() else v.to(w.device)
            for k, v in batch.items()
        }

    point, some = middle(w.language), w.split["train"][:2]
    stored = w.read(point)
    tuned = Tuned(
        vlm, w.index["points"][point]["module"], stored.shape[1:], vlm.config.video_token_id, rank
    ).to(w.device)
    with torch.inference_mode():
        x = tuned(inputs(some)).cpu()
    if (x - stored[some]).norm() > 0.02 * stored[some].norm():
        fail(f"{w.index['model']} does not reproduce the stored features of {point}; extract them again")
    return tuned, inputs


def train_variant(w, name, train_items=None):
    """([(module, record) of each seed], function from items to the input)."""
    v, items = w.variants[name], w.split["train"] if train_items is None else train_items
    read, grid, moments = input_of(w, name)
    horizons = v.get("horizons", w.horizons)
    shape = grid, tuple(w.present.shape[1:3]), w.present.shape[3], horizons
    free = {
        "time": v.get("time"),
        "delta": v.get("delta", False),
        "actions": len(w.actions) + 1 if v.get("action") else 0,
        "moments": moments,
    }
    loss = v.get("loss", "latents")
    how = w.how | {"warm": 0, "variant": name, "point": w.point, "items": len(items)}
    # an epoch has equally many steps for any number of clips
    over = items.repeat(-(-len(w.split["train"]) // len(items)))[: len(w.split["train"])]
    if loss == "pixels":
        few = max(how["epochs"] // 10, 1)
        how |= {
            "warm": 0 if w.trained.get("language") and "rank" in v else how["epochs"] - few,
            "epochs": few,
            "patience": None,
        }
    trained, tuned = [], None
    if "rank" in v:
        how["lr"] /= 10  # LoRA starts from the trained head, which large steps would undo
        tuned, read = w.tuned

    def loss_of(module, picked, g, part, warm):
        k = torch.randint(len(horizons), (len(picked),), generator=g)[part]
        i = picked[part]
        truth = w.present[i] if horizons == (0,) else w.future[i, k]
        z = module(read(i), k.to(w.device), w.present[i].to(w.device), w.action[i].to(w.device))
        error = (z - truth.to(z.device)).square().mean()
        if loss == "pixels" and not warm:
            return w.pixel_loss(z, w.place[i] * len(horizons) + k)
        # hard negatives: the present, and another moment of the same clip
        if loss == "contrastive":
            others = torch.stack(
                [w.present[i], *([w.future[i, (k + 1) % len(horizons)]] if len(horizons) > 1 else [])], 1
            )
            return info_nce(z, truth.to(z.device), others.to(z.device)) + error
        return error

    if loss == "pixels" and not hasattr(w, "pixel_loss"):
        seen = torch.cat([w.split["train"], w.split["val"]])
        w.place = torch.zeros(len(w.items), dtype=torch.long).index_put((seen,), torch.arange(len(seen)))
        w.pixel_loss = pixel_loss(
            functools.partial(images_of, w.vae),
            lpips_model(w.device)[0],
            w.frames[seen][:, [w.args.past - 1 + h for h in w.horizons]].flatten(0, 1),
        )
    for s in tqdm(range(w.args.seeds), desc=name, unit="seed"):

        def build(s=s):
            head = Predictor(*shape, **free)
            if tuned is None:
                return head
            if start := w.trained.get("language"):  # start from the frozen model's trained head
                head.load_state_dict(start[s][1]["weights"], strict=False)
            return LoraPredictor(tuned.reset(), head)

        key = digest(
            w.z[items].numpy().tobytes()
            + torch.cat(moments).numpy().tobytes()
            + str(sorted(how.items())).encode()
        )
        trained.append(
            train(
                build,
                loss_of,
                {"train": over, "val": w.split["val"]},
                w.seed + s,
                how,
                w.device,
                w.out.with_suffix(".training") / f"{key}-{name}-{w.seed + s}.pt",
                w.index["ids"],
            )
        )
    return trained, read


@torch.inference_mode()
def predict(w, name, trained, read, items):
    """Latents [seeds, n, horizons, H, W, C] that a variant's modules predict for `items`."""
    horizons, out = w.variants[name].get("horizons", w.horizons), []
    for module, record in trained:
        module.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        head, rows = getattr(module, "head", module), []
        for p in items.split(64):
            x = module.tuned(read(p)) if head is not module else read(p)  # once for all horizons
            rows.append(
                torch.stack(
                    [
                        head(
                            x,
                            torch.full((len(p),), k, device=w.device),
                            w.present[p].to(w.device),
                            w.action[p].to(w.device),
                        )
                        .float()
                        .cpu()
                        for k in range(len(horizons))
                    ],
                    1,
                )
            )
        out.append(torch.cat(rows))
    return torch.stack(out)


def baseline_predictions(w):
    """({baseline: latents [1, n_test, horizons, H, W, C]}, {baseline: uint8 [n_test, horizons, H, W, 3]} of those that predict pixels)."""
    test = w.split["test"]
    train_items = w.split["train"]
    p = w.args.past
    ahead = torch.tensor(w.horizons)
    past, n = w.z[:, :p], len(test)
    # over the whole past: the difference of two frames is mostly noise
    slope = (past[test, -1] - past[test, 0]) / max(p - 1, 1)
    near = torch.cdist(past[test].flatten(1), past[train_items].flatten(1)).argmin(1)
    flow = extrapolate_flow(w.frames[test, :p], max(w.horizons))[:, ahead - 1]
    last = w.frames[test, p - 1][:, None].expand(-1, len(ahead), -1, -1, -1)
    latent = {
        "copy": w.present[test][:, None].expand_as(w.future[test]),
        "linear": w.present[test][:, None] + slope[:, None] * ahead.view(1, -1, 1, 1, 1),
        "flow": encode_generated_clips(w.vae, stills(flow))[:, 0].unflatten(0, (n, -1)),
        "mean_future": w.future[train_items].mean(0).expand_as(w.future[test]),
        "nearest": w.future[train_items[near]],
        "oracle": w.future[test],
    }
    return {k: x[None] for k, x in latent.items()}, {"copy": last, "flow": flow}


def scored_rows(w, latent, pixels):
    """({row: {measure: [seeds, n, horizons]}}, {row: decoded uint8 [n, horizons, H, W, 3] of the first seed}).

    latent: {row: [seeds, n, horizons, ...]}; pixels: {row: uint8 [n, horizons, H, W, 3]}, scored as raw_<measure>.
    """
    test = w.split["test"]
    truth = w.frames[test][:, [w.args.past - 1 + h for h in w.horizons]]
    last = w.frames[test, w.args.past - 1]
    found, shown = {}, {}

    def scores_of(x):
        return pixel_errors(x, truth, last) | {
            w.lpips_name: w.lpips(x.flatten(0, 1), truth.flatten(0, 1)).unflatten(0, x.shape[:2])
        }

    for name, z in tqdm(latent.items(), desc="scored", unit="row"):
        decoded = [
            decode_generated_clips(w.vae, x.flatten(0, 1)[:, None])[:, 0].unflatten(0, x.shape[:2]) for x in z
        ]
        scores = [scores_of(x) for x in decoded]
        found[name] = {"cosine": latent_cosine(z, w.future[test])} | {
            k: torch.stack([s[k] for s in scores]) for k in scores[0]
        }
        shown[name] = decoded[0]
    for name, x in pixels.items():  # without the autoencoder between
        found[name] |= {f"raw_{k}": y[None] for k, y in scores_of(x).items()}
    return found, shown


def best_shift(w, z):
    """The shift of the truth, in frames, that is most similar to latents [seeds, n, horizons, ...]; None where no
    horizon allows shifts."""
    inside = [
        (k, h)
        for k, h in enumerate(w.horizons)
        if h + min(SHIFTS) >= 0 and w.args.past - 1 + h + max(SHIFTS) < w.length
    ]
    if not inside:
        return None
    at = {
        s: torch.stack(
            [
                latent_cosine(z[:, :, k], w.z[w.split["test"], w.args.past - 1 + h + s]).mean()
                for k, h in inside
            ]
        )
        .mean()
        .item()
        for s in SHIFTS
    }
    return max(at, key=lambda s: (round(at[s], 9), -abs(s)))


def row_of(w, scores, z, shown, copy, oracle):
    """A table row: scores with intervals, gain and skill over copy, best shift, movement between horizons."""
    row = {}
    for key, x in scores.items():
        x = x.nanmean(2) if "moving" in key else x.mean(2)
        if not x.isnan().any(0).all():
            row |= averaged(key, x, w.test_sources)
    for key in ("cosine", "l1", "moving_l1", w.lpips_name):
        score, base = scores[key].nanmean(2), copy[key].nanmean(2)
        pair = (base, score) if key == "cosine" else (score, base)
        gain = gain_of(*pair, w.test_sources, w.seed)
        if gain:
            name = "" if key == "cosine" else f"{key}_"
            row |= {f"{name}{k}": gain[k] for k in ("gain", "gain_low", "gain_high")} | {
                f"{name}p": gain["p_wilcoxon"]
            }
    # from one horizon to the next
    steps = (
        [(x[:, 1:].float() - x[:, :-1].float()).abs().mean().item() for x in (shown, oracle)]
        if len(w.horizons) > 1
        else (0, 0)
    )
    moves = steps[0] / steps[1] if steps[1] > 0 else None
    return row | {
        "skill": 1 - ((1 - scores["cosine"]).mean() / (1 - copy["cosine"]).mean()).item(),
        "l1_skill": 1 - (scores["l1"].mean() / copy["l1"].mean()).item(),
        "movement": moves,
        "static": moves is not None and moves < STATIC,
        "best_shift": best_shift(w, z),
    }


def by_group(w, scores, baselines, groups):
    """{group: mean cosine, gains over copy and the best baseline}. groups: {group: (test clips, horizons)}."""

    def of(x, clips, ahead):
        return x["cosine"][:, clips][:, :, ahead].mean(2)

    table = {}
    for name, (clips, ahead) in groups.items():
        score = of(scores, clips, ahead)
        others = {f: of(x, clips, ahead) for f, x in baselines.items()}
        few = [w.test_sources[k] for k in clips]
        best = max(others, key=lambda f: others[f].mean())
        table[name] = {
            "cosine": score.mean(),
            "cosine_copy": others["copy"].mean(),
            "baseline": others[best].mean(),
            "baseline_name": best,
            "clips": len(clips),
        }
        for key, f in (("gain", "copy"), ("gain_over_baseline", best)):
            t = paired_test(score, others[f], few, seed=w.seed)
            table[name] |= {key: t["gain"], f"{key}_low": t["gain_low"], f"{key}_high": t["gain_high"]}
    return table


def power_law(sizes, errors):
    """Least-squares fit of error = a + b n^-c, a >= 0; None with fewer than four sizes, zero error or no fit."""
    from scipy.optimize import curve_fit

    n, y = np.array(sizes, float), np.array(errors, float)
    if len(n) < 4 or y.min() <= 0:
        return None
    try:
        found, _ = curve_fit(
            lambda n, a, b, c: a + b * (n / n.max()) ** -c,
            n,
            y,
            p0=(0.5 * y.min(), 0.5 * y.min(), 0.5),
            bounds=([0, 0, 0], [y.min(), np.inf, 4]),
            maxfev=5000,
        )
    except RuntimeError:
        return None
    return {
        "baseline": found[0],
        "scale": found[1],
        "exponent": found[2],
        "formula": f"baseline + scale * (n / {int(n.max())}) ** -exponent",
    }


def scaling(w, name, smaller, copy_error):
    """Test error (1 - cosine) of one variant on five sizes of the training set. smaller: {clips: (trained, read)}."""
    table = {}
    for n, (trained, read) in (smaller | {len(w.split["train"]): (w.trained[name], w.reads[name])}).items():
        error = 1 - latent_cosine(
            predict(w, name, trained, read, w.split["test"]), w.future[w.split["test"]]
        ).mean(2)
        table[n] = with_bounds("error", mean_interval(error, w.test_sources))
    fit = power_law(list(table), [r["error"] for r in table.values()])
    needed = None
    if fit and fit["baseline"] < copy_error < fit["baseline"] + fit["scale"] and fit["exponent"] > 0.01:
        needed = max(table) * (fit["scale"] / (copy_error - fit["baseline"])) ** (1 / fit["exponent"])
    return {
        "variant": name,
        "copy_error": copy_error,
        "fit": fit,
        "clips_to_reach_copy": needed,
        "sizes": table,
    }


def predict_latents(args, started):
    """The content of predict-latents.yaml: every variant against every baseline on the same clips."""
    w = prepare(args)
    w.trained, w.reads = {}, {}
    for name in w.variants:
        w.trained[name], w.reads[name] = train_variant(w, name)
    compared = [n for n in w.variants if n not in CONTROLS and n != "sanity"]
    # not delta, which is a copy before training
    scaled = (
        None
        if args.no_scaling
        else next((n for n in ("causal", "multi", "single", *compared) if n in compared), None)
    )
    train_items = w.split["train"][
        torch.randperm(len(w.split["train"]), generator=torch.Generator().manual_seed(w.seed))
    ]
    smaller = (
        {
            len(few): train_variant(w, scaled, few)
            for few in (train_items[: max(round(f * len(train_items)), 2)] for f in FRACTIONS)
        }
        if scaled
        else {}
    )
    if ranks()[0]:
        return {}
    latent = {
        n: predict(w, n, w.trained[n], w.reads[n], w.split["test"])
        for n in tqdm(w.variants, desc="predicted", unit="variant")
    }
    val = {
        n: latent_cosine(predict(w, n, w.trained[n], w.reads[n], w.split["val"]), w.future[w.split["val"]])
        .mean()
        .item()
        for n in w.variants
        if n != "sanity"
    }
    # action knows what happens, so it is no candidate
    best = max((n for n in compared if n != "action"), key=val.get)
    sanity = latent.pop("sanity", None)
    simple, pixels = baseline_predictions(w)
    scores, shown = scored_rows(w, simple | latent, pixels)
    copy = scores["copy"]
    mean_cosine = {name: s["cosine"].mean(2) for name, s in scores.items()}
    baselines = [n for n in MUST_BEAT if n in scores]
    rows = {
        name: row_of(w, scores[name], z, shown[name], copy, shown["oracle"])
        for name, z in (simple | latent).items()
    }
    for name, p in holm({name: rows[name]["p"] for name in compared}).items():
        rows[name]["p_holm"] = p
        for baseline in baselines[1:]:
            t = paired_test(mean_cosine[name], mean_cosine[baseline], w.test_sources, seed=w.seed)
            rows[name] |= {f"gain_over_{baseline}{end}": t[f"gain{end}"] for end in ("", "_low", "_high")}
    predicts = [
        n
        for n in compared
        if n != "action"
        and rows[n]["p_holm"] < 0.05
        and all(rows[n][f"gain{over}_low"] > 0 for over in ("", *(f"_over_{f}" for f in baselines[1:])))
    ]
    test = w.split["test"]
    motion = (
        w.frames[test][:, [args.past - 1 + h for h in w.horizons]].float()
        - w.frames[test, args.past - 1][:, None].float()
    ).abs().mean((1, 2, 3, 4)) / 255
    order, every = motion.argsort(), list(range(len(w.horizons)))
    quarters = {f"quarter_{k + 1}": (part.tolist(), every) for k, part in enumerate(order.tensor_split(4))}
    cosine = criterion(
        mean_cosine[best],
        {k: mean_cosine[k] for k in baselines},
        w.test_sources,
        seed=w.seed,
        variant=best,
        layer=w.point,
        options_searched=len(compared),
    )
    beyond = criterion(
        mean_cosine[best],
        {k: mean_cosine[k] for k in ("linear", "flow")},
        w.test_sources,
        seed=w.seed,
        variant=best,
    )
    l1 = criterion(
        scores[best]["l1"].mean(2),
        {
            "copy": copy["l1"].mean(2)[0],
            "raw_copy": copy["raw_l1"].mean(2)[0],
            "blind": scores["blind"]["l1"].mean(2),
        },
        w.test_sources,
        upper_bound=scores["oracle"]["l1"].mean().item(),
        better="lower",
        seed=w.seed,
        variant=best,
    )
    learned_rows, beside = (
        [*compared, *(n for n in CONTROLS if n in w.variants)],
        {k: scores[k] for k in baselines},
    )
    result = {
        "stage": "predict",
        "mode": "latents",
        "model": w.index["model"],
        "decoder": w.vae_entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.vae_entry["weights"],
        "data": w.data["data"],
        "data_name": w.data["name"],
        "layer": w.point,
        "layers_searched": w.options,
        "variant": best,
        "predicts": ", ".join(predicts) or "none",
        "cosine": rows[best]["cosine"],
        "cosine_low": rows[best]["cosine_low"],
        "cosine_high": rows[best]["cosine_high"],
        "cosine_copy": rows["copy"]["cosine"],
        **{
            k: rows[best][k]
            for k in ("gain", "gain_low", "gain_high", "p_holm", "skill", "static", "best_shift")
        },
        "gain_over_blind": rows[best]["gain_over_blind"],
        "l1": rows[best]["l1"],
        "l1_copy": rows["copy"]["l1"],
        "l1_raw_copy": rows["copy"]["raw_l1"],
        "l1_oracle": rows["oracle"]["l1"],
        "past": args.past,
        "clips": len(test),
        "train_clips": len(w.split["train"]),
        "sources": len(set(w.test_sources)),
        "seeds": args.seeds,
        "sanity_cosine": None if sanity is None else latent_cosine(sanity, w.present[test][:, None]).mean(),
        "sanity_cosine_mean": None
        if sanity is None
        else latent_cosine(
            w.present[w.split["train"]].mean(0).expand_as(w.present[test]), w.present[test]
        ).mean(),
        "criteria": {"prediction": cosine, "beyond_extrapolation": beyond, "prediction_l1": l1},
        "variants": {n: rows[n] for n in learned_rows},
        "baselines": {n: rows[n] for n in simple},
        "horizons": {
            n: by_group(
                w, scores[n], beside, {h: (list(range(len(test))), [k]) for k, h in enumerate(w.horizons)}
            )
            for n in (*learned_rows, *simple)
            if n != "copy"
        },
        "quarters_of_motion": {n: by_group(w, scores[n], beside, quarters) for n in learned_rows},
        "motion": [motion[part].mean() for part in order.tensor_split(4)],
        "val_cosine": val,
        "scaling": scaling(w, scaled, smaller, (1 - copy["cosine"]).mean().item()) if scaled else None,
        "notes": {
            "cosine": "of whole frames' latents, mean over the horizons",
            "copy": "the last frame's latents; raw_ scores are of its pixels, without the autoencoder",
            "blind": "reads the last frame's latents in place of the model's tokens",
            "latents": "reads the latents of the whole past in place of the model's tokens",
            "action": "has the action as input, so it is no candidate",
            "untrained": "reads the same network with random weights",
            "static": "its change between horizons is at most a tenth of the oracle's",
            "p": "Wilcoxon's signed rank over means of sources",
            "predicts": f"gain over copy by Holm's p below 0.05, and over {', '.join(baselines[1:])} by intervals above zero",
            "moving_l1": "where the truth differs from the last frame by more than 25 of 255",
        },
        "training": {
            n: {
                "steps": [r["steps"] for _, r in t],
                "best_epoch": [r["epoch"] for _, r in t],
                "seconds_per_step": [r["seconds_per_step"] for _, r in t],
            }
            for n, t in w.trained.items()
        },
    }
    if w.lpips_name != "lpips":
        result |= {
            "lpips": None,
            "lpips_reason": "the published weights of the backbone are not in torch's cache and cannot be downloaded",
        }
    result["run"] = run_info(
        args,
        started,
        script="predict.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    some = torch.tensor([int(order[k]) for k in (len(order) // 2, -len(order) // 4, -1)])
    strips = {
        "past": w.frames[test[some]][:, torch.linspace(0, args.past - 1, len(w.horizons)).round().long()],
        "real": w.frames[test[some]][:, [args.past - 1 + h for h in w.horizons]],
        "copy": pixels["copy"][some],
        "flow": pixels["flow"][some],
        **{n: shown[n][some] for n in ("oracle", *learned_rows)},
    }
    save_pt(
        w.out.with_suffix(".pt"),
        RESULT,
        [w.index["ids"][test[k]] for k in some],
        {"stage": "predict", "mode": "latents", "horizons": w.horizons},
        generated_clips={k: x.clone() for k, x in strips.items()},
    )
    draw_strips(result, strips, w.out.with_suffix(".png"))
    save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    return result


def draw_strips(result, strips, path):
    """Draw three clips: one row per variant, one column per clip, one frame per horizon."""
    plt = pyplot()
    names, horizons = list(strips), list(result["horizons"][result["variant"]])
    figure, axes = plt.subplots(len(names), 3, figsize=(17, 0.95 * len(names)), squeeze=False)
    figure.set_layout_engine("constrained")
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


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--data", default="data/future", help="a folder of clips that data.py wrote")
    add("--features", required=True, help="features of the past, as data.py cut it")
    add("--last", help="features of the last frame of the past")
    add("--random", help="features of the past by the untrained network, for the control `untrained`")
    add("--vae", default="tiny-vae", help="the autoencoder whose latents are predicted")
    add("--variants", help=f"(default: all that the features allow): {', '.join(VARIANTS)}")
    add("--point", help="the layer to read (default: the best by a ridge on val)")
    add("--size", type=int, help="side in pixels (default: the registry's for --vae)")
    add("--past", type=int, default=8, help="frames of the past")
    add("--seeds", type=int, default=3, help="trainings of each variant")
    add("--epochs", type=int, help=f"at most (default: {TRAINING['epochs']})")
    add("--batch", type=int, help=f"clips of a training step (default: {TRAINING['batch']})")
    add("--lr", type=float, help=f"peak learning rate (default: {TRAINING['lr']})")
    add("--no-scaling", action="store_true", help="leave out the trainings on fewer clips")
    add("--out", help="default: predict-latents.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    result = predict_latents(args, started)
    print_summary(result)
    return result


if __name__ == "__main__":
    main()
