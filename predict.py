"""Stage 5. Does anything predict better than copying the last frame, in latent space?

    python predict.py --data data/future --features results/tiny/future-past/features --last results/tiny/future-last/features \\
        --random results/tiny/future-past/features-random --out results/tiny/future/predict-latents.yaml

Predicts, from a model's tokens of the past (of clips that data.py cut there, so that nothing of the future was seen), the
autoencoder's latents of the frame 1, 2, 4, 8 and 16 frames ahead. Variants, with the same training loop and head of learned queries:

    sanity (the present itself), single (from the last frame alone), action (and the action given), multi (from the whole past),
    temporal and causal (a transformer over time), delta (the difference to the present), contrastive (InfoNCE), pixels (LPIPS + 0.1 L2
    through the decoder), language (from the middle language layer), lora (that layer under LoRA, trained by pixels)

Baselines: copy, linear and flow (extrapolated), mean_future, nearest (of train clips); upper bound: oracle (the truth, encoded).
Controls, which read something else in place of the model's tokens: blind (the last frame's latents), latents (those of the whole
past), untrained (--random: tokens of the untrained network). Measures: cosine of latents, l1, LPIPS, l1 where the truth has moved;
gain over copy (paired; Wilcoxon's p over sources, Holm over variants) by horizon and by quarter of motion. `predicts` names the
variants that gain over copy, mean_future, nearest and the controls; `scaling` is one variant on five sizes of the training set.
Writes predict-latents.yaml, .png, .pt.

Modules, to be copied with it: cogvlm2.py, common.py, media.py, metrics.py, models.py, stats.py, training.py.
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
    check_writable,
    choose_device,
    digest,
    join,
    known,
    load_features,
    load_items,
    load_yaml,
    parser,
    positive,
    pyplot,
    refuse,
    run_info,
    save_pt,
    save_yaml,
    say,
    split_indices,
    with_grid,
)
from media import frames_of
from metrics import HORIZONS, SHIFTS, STATIC, carried_on, load_lpips, lpips_model, pixel_errors
from models import (
    decode_films,
    encode_films,
    find_model,
    flatten_stills,
    load_video_vae,
    load_vlm,
    model_of,
    qwen_inputs,
)
from stats import averaged, bootstrap, criterion, gained, holm, paired_test, ridge, with_bounds
from training import Tuned, attention, pixel_loss, ranks, resample, train

# reads: the tokens of the past, of its last frame alone ("last"), or of the past at the middle language layer
# ("language"); time: how they are joined over time; delta: predicts the
# difference to the present; rank: of LoRA. The last three are controls, which in place of the model's tokens
# read the last frame's latents, those of the whole past, and tokens of the
# untrained network.
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
# what has to be beaten: none of them reads a trained model
KNOW_NOTHING = "copy", "mean_future", "nearest", *CONTROLS
FRACTIONS = 1 / 16, 1 / 8, 1 / 4, 1 / 2  # of the training clips, beside all of them
TEMPERATURE = 0.07
TRAINING = {"epochs": 60, "patience": 20, "batch": 32, "lr": 1e-3}


def merged(x):
    """Tokens [n, t, h, w, D] on a grid of at most 6 x 6: f x f neighbours are concatenated (as by Qwen's merger, without its layers), so that nothing is lost; averaged where no f divides the
    grid."""
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
    """Tokens of the past [n, t, h, w, D] -> latents [n, H, W, C] of a frame to come. `horizon` is an index into the list of horizons.

    One learned query for each latent place and horizon, plus a linear map of the tokens at that place at all time steps, attends to all tokens.
    time: None: tokens as they are; "both": tokens of one place first attend to each other over time; "causal": only to earlier ones, and the queries read the last step alone.
    actions: how many actions there are to be told one of (0: is not told). delta: the output is added to the present's latents; it begins at zero. moments: (mean, std) [D] to standardise tokens.
    """

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
        # the output begins at zero, with delta at a copy: where nothing can be learned there is no noise
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, x, horizon, present, action):
        """x [n, t, h, w, D], horizon [n], present [n, H, W, C], action [n]."""
        x = (x - self.mean) / self.std
        n, t = x.shape[:2]
        # [n, HW, t D]
        here = (
            resample(x.flatten(0, 1), self.out_grid)
            .unflatten(0, (n, t))
            .permute(0, 2, 3, 1, 4)
            .flatten(3)
            .flatten(1, 2)
        )
        memory = self.embed(merged(x).flatten(2, 3)) + self.place + self.moment  # [n, t, hw, width]
        if self.time:
            mask = (
                torch.nn.Transformer.generate_square_subsequent_mask(t, device=x.device)
                if self.time == "causal"
                else None
            )
            memory = (
                self.over_time(memory.transpose(1, 2).flatten(0, 1), mask)
                .unflatten(0, (n, -1))
                .transpose(1, 2)
            )
            memory = memory[:, -1:] if self.time == "causal" else memory
        query = self.query + self.horizon[horizon] + self.here(here)
        memory = memory.flatten(1, 2)
        if self.action is not None:
            memory = torch.cat([memory, self.action(action)[:, None]], 1)
        for layer in self.layers:
            query = layer(query, memory)
        z = self.out(query).unflatten(1, self.out_grid)
        return present + z if self.delta else z


class Through(torch.nn.Module):
    """A Predictor behind a VLM under LoRA (training.Tuned), whose tokens it reads."""

    def __init__(self, tuned, head):
        super().__init__()
        self.tuned, self.head = tuned, head

    def forward(self, x, *more):
        return self.head(self.tuned(x), *more)


def info_nce(own, truth, hard):
    """InfoNCE (van den Oord et al. 2018) of cosines: own [n, ...] shall be nearer to its truth [n, ...] than to the truths of other items and to its own `hard` negatives [n, k, ...]."""
    own = F.normalize(own.flatten(1), dim=1)
    truth = F.normalize(truth.flatten(1), dim=1)
    hard = F.normalize(hard.flatten(2), dim=2)
    others, own_others = truth @ truth.T, torch.einsum("nd,nkd->nk", truth, hard)
    # where nothing moves the present is the truth, and no negative
    same = torch.cat([others.fill_diagonal_(0), own_others], 1) > 1 - 1e-6
    scores = (
        torch.cat([own @ truth.T, torch.einsum("nd,nkd->nk", own, hard)], 1).masked_fill(same, -1)
        / TEMPERATURE
    )
    return F.cross_entropy(scores, torch.arange(len(own), device=own.device))


def latent_cosine(a, b):
    """Cosine of latents [..., H, W, C], those of a frame as one vector."""
    return F.cosine_similarity(a.flatten(-3).double(), b.flatten(-3).double(), dim=-1)


def whole_past(path, first, frames, name):
    """Refuse a data folder that is not frames first .. first + frames - 1 of the clips of `name`: only of such a cut is it certain that an encoder that mixes frames has not seen the future."""
    index = load_yaml(Path(path) / "index.yaml", "data")
    found = index.get("cut_from"), index.get("first"), index.get("frames")
    if found != (name, first, frames):
        last, how = first + frames - 1, f"data.py cut --clips data/{name} --first {first} --frames {frames}"
        refuse(f"{path} is not frames {first} to {last} and may have seen the future; make it by {how}")


def latent_world(args):
    """A namespace of all that mode latents works on: clips, tokens of the past, latents of every frame. What can be refused is refused before a model is loaded."""
    w = types.SimpleNamespace(args=args, seed=args.seed)
    positive(args, "past", "seeds", "epochs", "batch")
    w.index, w.read = load_features(args.features)
    if "shown" in w.index:
        refuse(f"{args.features} holds features of chosen frames; extract again without --frames")
    w.language = [p for p in with_grid(w.index) if p.startswith("language.")]
    # what by default is left out
    cannot = {"last": not args.last, "language": not w.language, "random": not args.random}
    entry = model_of(w.index)
    room = memory_free() > 4.8e9 * entry.get("params", 0)  # fp32, and what a step needs
    can = {"rank": entry.get("type", "").startswith("qwen") and args.past > 1 and room}
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
        known(name, VARIANTS, "variant")
    w.variants = {
        name: v
        for name, v in VARIANTS.items()
        if name in names or name in CONTROLS and not cannot.get(v["reads"])
    }
    if not set(w.variants) - {"sanity", "action", *CONTROLS}:
        refuse(f"--variants {args.variants} leave nothing that predicts; add multi, say")
    if "lora" in w.variants and args.past < 2:
        refuse("--past 1 is one picture, and lora reads clips; leave it out of --variants")
    items, w.data = load_items(args.data)
    whole_past(w.index["data_path"], 0, args.past, w.data["name"])
    w.items = join(items, w.index | {"data_path": args.data}, args.features)
    w.split = split_indices(w.items, args.features)
    w.test_sources = [w.items[k]["source"] for k in w.split["test"]]
    w.length = min(len(i.get("frames", ())) for i in w.items)
    w.horizons = [h for h in HORIZONS if args.past + h <= w.length]
    if not w.horizons:
        refuse(f"{args.data} has clips of {w.length} frames, within --past {args.past}; give longer clips")
    w.last = None
    if any(v["reads"] == "last" for v in w.variants.values()):
        if not args.last:
            refuse("single, action, sanity read the last frame; give --last its features or leave them out")
        last, w.read_last = load_features(args.last)
        whole_past(last["data_path"], args.past - 1, 1, w.data["name"])
        w.last = last
    random, w.read_random = load_features(args.random) if args.random else (w.index, None)
    for flag, other in (("--last", w.last or w.index), ("--random", random)):
        if other["ids"] != w.index["ids"] or other["model"] != w.index["model"]:
            refuse(f"{flag} is not about the clips and the model of {args.features}; extract both alike")
    vae = find_model(args.vae)
    if vae["kind"] != "vae":
        refuse(f"--vae {args.vae} is a {vae['kind']}; a vae is needed")
    w.out = Path(args.out or Path(args.features).parent / "predict-latents.yaml")
    check_writable(w.out)
    points = [
        p
        for p in with_grid(w.index)
        if p != "pixels" and (w.last is None or p in w.last["points"]) and p in random["points"]
    ]
    if args.point and args.point not in points:
        refuse(f"--point {args.point} is not in {args.features}; give one of {', '.join(points)}")
    if not w.language and any(v["reads"] == "language" for v in w.variants.values()):
        refuse(f"{args.features} holds no language layer; leave language and lora out of --variants")
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    full = torch.float32 if w.dtype == torch.float16 else w.dtype
    w.vae_entry, w.vae = vae, flatten_stills(load_video_vae(vae, w.device, full)[0]).requires_grad_(False)
    size = args.size or vae["clip"]
    # uint8 [n, T, H, W, 3]
    w.frames = torch.stack([frames_of({"frames": i["frames"][: w.length]}, size) for i in w.items])
    w.z = encode_films(w.vae, stills(w.frames), 64)[:, 0].unflatten(0, w.frames.shape[:2])  # [n, T, h, w, C]
    w.present = w.z[:, args.past - 1]
    w.future = w.z[:, [args.past - 1 + h for h in w.horizons]]
    names = [str(i.get("action", i.get("direction"))) for i in w.items]
    w.actions = {a: k for k, a in enumerate(sorted({names[k] for k in w.split["train"]}))}
    # the last number: never taught
    w.action = torch.tensor([w.actions.get(a, len(w.actions)) for a in names])
    w.lpips, w.lpips_name = load_lpips(w.device)
    w.how = TRAINING | {
        k: getattr(args, k) for k in ("epochs", "batch", "lr") if getattr(args, k) is not None
    }
    w.point, w.options = (args.point, 1) if args.point else (tells_most(w, points), len(points))
    # of the layer chosen there is one copy
    w.read, w.read_last, w.read_random = (
        read and functools.cache(read) for read in (w.read, getattr(w, "read_last", None), w.read_random)
    )
    w.tuned = tuned_model(w, w.variants["lora"]["rank"]) if "lora" in w.variants else None
    return w


def memory_free():
    """Free bytes of the GPU's memory; on a CPU, infinity."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf


def stills(films):
    """Every frame of films [n, T, H, W, 3] as a film of its own, [n T, 1, H, W, 3]."""
    return films.flatten(0, 1)[:, None]


def tells_most(w, points):
    """The layer from which ridge regression predicts, on val clips, the change of the latents up to the middle horizon best."""
    change = (w.future - w.present[:, None])[:, len(w.horizons) // 2].flatten(1)
    val, error = w.split["val"], {}
    for point in tqdm(points, desc="layers", unit="point"):
        error[point] = (
            (ridge(w.read(point).flatten(1), {"change": change}, w.split["train"])["change"] - change)[val]
            .square()
            .mean()
            .item()
        )
    return min(error, key=error.get)


def reading(w, name):
    """(function from items to the tokens that a variant reads, their grid, (mean, std) of their channels over train clips)."""
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
    """(VLM under LoRA, function from items to its inputs: clips of the past, as in extract.py). Refused unless the model, before training, gives the stored features."""
    entry, size = model_of(w.index), w.index["size"]
    if not entry.get("type", "").startswith("qwen"):
        refuse(f"{w.index['model']} is not of Qwen's family, as lora needs; leave it out of --variants")
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
        own = tuned(inputs(some)).cpu()
    if (own - stored[some]).norm() > 0.02 * stored[some].norm():
        refuse(f"{w.index['model']} does not give the stored features of {point}; extract them again")
    return tuned, inputs


def train_variant(w, name, train_items=None):
    """([(module, record) of each seed], function from items to what they read)."""
    v, items = w.variants[name], w.split["train"] if train_items is None else train_items
    read, grid, moments = reading(w, name)
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
    # an epoch has as many steps, whatever the number of clips
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
        how["lr"] /= 10  # LoRA begins at the trained head: large steps would undo that
        tuned, read = w.tuned

    def loss_of(module, picked, g, part, warm):
        k = torch.randint(len(horizons), (len(picked),), generator=g)[part]
        i = picked[part]
        truth = w.present[i] if horizons == (0,) else w.future[i, k]
        z = module(read(i), k.to(w.device), w.present[i].to(w.device), w.action[i].to(w.device))
        error = (z - truth.to(z.device)).square().mean()
        if loss == "pixels" and not warm:
            return w.pixel_loss(z, w.place[i] * len(horizons) + k)
        # hard negatives, which a copy would resemble: the present, and another moment of the same clip
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
            w.vae,
            lpips_model(w.device)[0],
            w.frames[seen][:, [w.args.past - 1 + h for h in w.horizons]].flatten(0, 1),
        )
    for s in tqdm(range(w.args.seeds), desc=name, unit="seed"):

        def build(s=s):
            head = Predictor(*shape, **free)
            if tuned is None:
                return head
            if start := w.trained.get("language"):  # begin where the frozen model's head ended
                head.load_state_dict(start[s][1]["weights"], strict=False)
            return Through(tuned.reset(), head)

        known_by = digest(
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
                w.out.with_suffix(".training") / f"{known_by}-{name}-{w.seed + s}.pt",
                w.index["ids"],
            )
        )
    return trained, read


@torch.inference_mode()
def foretold(w, name, trained, read, items):
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


def guesses(w):
    """({baseline: latents [1, n_test, horizons, H, W, C]}, {baseline: uint8 [n_test, horizons, H, W, 3]} of those that are made of pixels)."""
    test = w.split["test"]
    train_items = w.split["train"]
    p = w.args.past
    ahead = torch.tensor(w.horizons)
    past, n = w.z[:, :p], len(test)
    # of the whole past: of two frames it would be mostly noise
    slope = (past[test, -1] - past[test, 0]) / max(p - 1, 1)
    near = torch.cdist(past[test].flatten(1), past[train_items].flatten(1)).argmin(1)
    flow = carried_on(w.frames[test, :p], max(w.horizons))[:, ahead - 1]
    last = w.frames[test, p - 1][:, None].expand(-1, len(ahead), -1, -1, -1)
    latent = {
        "copy": w.present[test][:, None].expand_as(w.future[test]),
        "linear": w.present[test][:, None] + slope[:, None] * ahead.view(1, -1, 1, 1, 1),
        "flow": encode_films(w.vae, stills(flow), 64)[:, 0].unflatten(0, (n, -1)),
        "mean_future": w.future[train_items].mean(0).expand_as(w.future[test]),
        "nearest": w.future[train_items[near]],
        "oracle": w.future[test],
    }
    return {k: x[None] for k, x in latent.items()}, {"copy": last, "flow": flow}


def scored_rows(w, latent, pixels):
    """({row: {cosine, l1, moving_l1, still_l1, lpips: [seeds, n, horizons]}}, {row: uint8 [n, horizons, H, W, 3], decoded, of the first seed}).

    latent: {row: [seeds, n, horizons, ...]}, decoded by the autoencoder; pixels: {row: uint8 [n, horizons, H, W, 3]}, whose scores are added to the row as raw_<measure>.
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
        films = [decode_films(w.vae, x.flatten(0, 1)[:, None], 64)[:, 0].unflatten(0, x.shape[:2]) for x in z]
        scores = [scores_of(x) for x in films]
        found[name] = {"cosine": latent_cosine(z, w.future[test])} | {
            k: torch.stack([s[k] for s in scores]) for k in scores[0]
        }
        shown[name] = films[0]
    for name, x in pixels.items():  # without the autoencoder between
        found[name] |= {f"raw_{k}": y[None] for k, y in scores_of(x).items()}
    return found, shown


def best_shift(w, z):
    """By how many frames the truth must be shifted to be most like latents [seeds, n, horizons, ...] of test clips: 0 if the time is right. None where no horizon allows such shifts."""
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
    """A row of the table: every score with its interval, gain and skill over copy, timing, and whether it moves at all."""
    row = {}
    for key, x in scores.items():
        x = x.nanmean(2) if "moving" in key else x.mean(2)
        if not x.isnan().any(0).all():
            row |= averaged(key, x, w.test_sources, w.seed)
    for key in ("cosine", "l1", "moving_l1", w.lpips_name):
        own, base = scores[key].nanmean(2), copy[key].nanmean(2)
        gain = (
            gained(base, own, w.test_sources, w.seed)
            if key == "cosine"
            else gained(own, base, w.test_sources, w.seed)
        )
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


def by_group(w, scores, floors, groups):
    """{group: mean cosine, and gains over copy and over the best of `floors` with intervals}. groups: {group: (numbers of test clips, numbers of horizons)}."""

    def of(x, clips, ahead):
        return x["cosine"][:, clips][:, :, ahead].mean(2)

    table = {}
    for name, (clips, ahead) in groups.items():
        own = of(scores, clips, ahead)
        others = {f: of(x, clips, ahead) for f, x in floors.items()}
        few = [w.test_sources[k] for k in clips]
        best = max(others, key=lambda f: others[f].mean())
        table[name] = {
            "cosine": own.mean(),
            "cosine_copy": others["copy"].mean(),
            "floor": others[best].mean(),
            "floor_name": best,
            "clips": len(clips),
        }
        for key, f in (("gain", "copy"), ("gain_over_floor", best)):
            t = paired_test(own, others[f], few, seed=w.seed)
            table[name] |= {key: t["gain"], f"{key}_low": t["gain_low"], f"{key}_high": t["gain_high"]}
    return table


def power_law(sizes, errors):
    """(a, b, c) of error = a + b n^-c, a >= 0, by least squares (scipy); None where there are fewer than four sizes, no error or no fit."""
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
        "floor": found[0],
        "scale": found[1],
        "exponent": found[2],
        "formula": f"floor + scale * (n / {int(n.max())}) ** -exponent",
    }


def scaling(w, name, smaller, copy_error):
    """Test error (1 - cosine) of one variant trained on five sizes of the training set, in equally many steps, and the curve through them. smaller: {clips: (trained, read)}."""
    table = {}
    for n, (trained, read) in (smaller | {len(w.split["train"]): (w.trained[name], w.reads[name])}).items():
        error = 1 - latent_cosine(
            foretold(w, name, trained, read, w.split["test"]), w.future[w.split["test"]]
        ).mean(2)
        table[n] = with_bounds("error", bootstrap(error, w.test_sources, seed=w.seed))
    fit = power_law(list(table), [r["error"] for r in table.values()])
    need = None
    if fit and fit["floor"] < copy_error < fit["floor"] + fit["scale"] and fit["exponent"] > 0.01:
        need = max(table) * (fit["scale"] / (copy_error - fit["floor"])) ** (1 / fit["exponent"])
    return {
        "variant": name,
        "copy_error": copy_error,
        "fit": fit,
        "clips_to_reach_copy": need,
        "sizes": table,
    }


def predict_latents(args, started):
    """predict-latents.yaml's content: every variant against every baseline, on the same clips."""
    w = latent_world(args)
    w.trained, w.reads = {}, {}
    for name in w.variants:
        w.trained[name], w.reads[name] = train_variant(w, name)
    asked = [n for n in w.variants if n not in CONTROLS and n != "sanity"]
    # not delta, which is a copy where it learns nothing
    scaled = (
        None
        if args.no_scaling
        else next((n for n in ("causal", "multi", "single", *asked) if n in asked), None)
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
        n: foretold(w, n, w.trained[n], w.reads[n], w.split["test"])
        for n in tqdm(w.variants, desc="foretold", unit="variant")
    }
    val = {
        n: latent_cosine(foretold(w, n, w.trained[n], w.reads[n], w.split["val"]), w.future[w.split["val"]])
        .mean()
        .item()
        for n in w.variants
        if n != "sanity"
    }
    # action is told what happens, so it is no candidate
    best = max((n for n in asked if n != "action"), key=val.get)
    sanity = latent.pop("sanity", None)
    guess, pixels = guesses(w)
    scores, shown = scored_rows(w, guess | latent, pixels)
    copy = scores["copy"]
    own = {name: s["cosine"].mean(2) for name, s in scores.items()}
    floors = [n for n in KNOW_NOTHING if n in scores]
    rows = {
        name: row_of(w, scores[name], z, shown[name], copy, shown["oracle"])
        for name, z in (guess | latent).items()
    }
    for name, p in holm({name: rows[name]["p"] for name in asked}).items():
        rows[name]["p_holm"] = p
        for floor in floors[1:]:
            t = paired_test(own[name], own[floor], w.test_sources, seed=w.seed)
            rows[name] |= {f"gain_over_{floor}{end}": t[f"gain{end}"] for end in ("", "_low", "_high")}
    predicts = [
        n
        for n in asked
        if n != "action"
        and rows[n]["p_holm"] < 0.05
        and all(rows[n][f"gain{over}_low"] > 0 for over in ("", *(f"_over_{f}" for f in floors[1:])))
    ]
    test = w.split["test"]
    motion = (
        w.frames[test][:, [args.past - 1 + h for h in w.horizons]].float()
        - w.frames[test, args.past - 1][:, None].float()
    ).abs().mean((1, 2, 3, 4)) / 255
    order, every = motion.argsort(), list(range(len(w.horizons)))
    quarters = {f"quarter_{k + 1}": (part.tolist(), every) for k, part in enumerate(order.tensor_split(4))}
    cosine = criterion(
        own[best],
        {k: own[k] for k in floors},
        w.test_sources,
        seed=w.seed,
        variant=best,
        layer=w.point,
        options_searched=len(asked),
    )
    beyond = criterion(
        own[best], {k: own[k] for k in ("linear", "flow")}, w.test_sources, seed=w.seed, variant=best
    )
    l1 = criterion(
        scores[best]["l1"].mean(2),
        {
            "copy": copy["l1"].mean(2)[0],
            "raw_copy": copy["raw_l1"].mean(2)[0],
            "blind": scores["blind"]["l1"].mean(2),
        },
        w.test_sources,
        ceiling=scores["oracle"]["l1"].mean().item(),
        better="lower",
        seed=w.seed,
        variant=best,
    )
    learned_rows, beside = [*asked, *(n for n in CONTROLS if n in w.variants)], {k: scores[k] for k in floors}
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
        "baselines": {n: rows[n] for n in guess},
        "horizons": {
            n: by_group(
                w, scores[n], beside, {h: (list(range(len(test))), [k]) for k, h in enumerate(w.horizons)}
            )
            for n in (*learned_rows, *guess)
            if n != "copy"
        },
        "quarters_of_motion": {n: by_group(w, scores[n], beside, quarters) for n in learned_rows},
        "motion": [motion[part].mean() for part in order.tensor_split(4)],
        "val_cosine": val,
        "scaling": scaling(w, scaled, smaller, (1 - copy["cosine"]).mean().item()) if scaled else None,
        "notes": {
            "cosine": "of whole frames' latents, on the mean of the horizons",
            "copy": "the last frame's own latents; raw_ scores are of its pixels, without the autoencoder between",
            "blind": "a variant that reads the last frame's latents and no model",
            "latents": "the latents of the whole past in the model's place",
            "action": "is told what happens, and so is no candidate",
            "untrained": "reads the same network before it learned anything",
            "static": "from one horizon to the next a tenth of what the oracle changes, or less",
            "p": "Wilcoxon's signed rank over means of sources",
            "predicts": f"gain over copy by Holm's p below 0.05, and over {', '.join(floors[1:])} by intervals above zero",
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
            "lpips_reason": "the backbone's published weights are neither in torch's cache nor within reach of the network",
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
        films={k: x.clone() for k, x in strips.items()},
    )
    latent_picture(result, strips, w.out.with_suffix(".png"))
    save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    return result


def latent_picture(result, strips, path):
    """Three clips by every variant: a column a clip, in it a frame a horizon."""
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
    axes[0][0].set_title("the past, from left to right", fontsize=9)
    axes[1][0].set_title(f"ahead by {', '.join(map(str, horizons))} frames", fontsize=9)
    figure.suptitle(f"{result['model']} ({result['layer']}) to {result['decoder']}", fontsize=12)
    figure.savefig(path, dpi=70)
    plt.close(figure)


def get_args(argv):
    p = parser(__doc__)
    add = p.add_argument
    add("--data", default="data/future", help="a folder of clips that data.py wrote")
    add("--features", required=True, help="what extract.py wrote of data.py's cut of the past")
    add("--last", help="the same of the past's last frame alone")
    add("--random", help="features of the past by the untrained network, for the control untrained")
    add("--vae", default="tiny-vae", help="the autoencoder whose latents are predicted")
    add("--variants", help=f"(default: all that the features allow): {', '.join(VARIANTS)}")
    add("--point", help="the layer to read (default: the best by a ridge on val)")
    add("--size", type=int, help="side in pixels (default: the registry's for --vae)")
    add("--past", type=int, default=8, help="frames that are seen")
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
    say(result)
    return result


if __name__ == "__main__":
    main()
