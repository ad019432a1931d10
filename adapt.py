"""Stage 4. Can a small adapter turn a model's tokens into what a frozen video decoder takes?

    python adapt.py --features results/tiny/shapes/features --latents results/tiny-vae/shapes/features --align results/tiny/shapes/align.yaml \\
        --vae tiny-vae --judge tiny-dinov2 --out results/tiny/shapes/adapt-latents.yaml
    python adapt.py --mode scaling --features ... --latents ... --align ... --vae ltx          # is a bridge of 10M parameters as good as one of 100M?
    python adapt.py --mode ablation --features ... --at results/tiny/shapes@64/features ...    # which bridge, layer, resolution; how many samples?
    python adapt.py --mode hybrid --features ... --spatial results/tiny-dinov2/shapes/features ...   # does the model add to a spatial encoder?
    python adapt.py --mode video --features results/tiny/moving/features --video tiny-ltx                  # an adapter for predict.py
    python adapt.py --mode words --embeddings results/tiny/trajectories/tracks.pt --data data/trajectories --language tiny-words    # a language model that reads embeddings
    python adapt.py --mode tune --model tiny --data data/shapes --method lora --out results/tiny/shapes/tuned      # a vision-language model on one's own pictures and clips
    python adapt.py --mode tune --model qwen2.5-vl-7b --data data/mine --preset t4 --keep data/shapes           # in 4 bits on a T4, and what it forgets
    python adapt.py --mode plan --models qwen2.5-vl-7b                                         # what that needs of memory, part by part, and which card holds it
    python adapt.py --apply results/tiny/moving/adapter-prompt.pt --features results/tiny/other/features    # what it says of other clips
    torchrun --nproc-per-node=8 adapt.py --mode scaling ...                                    # the same global batch, shared out

Reads features and latents of the same pictures (extract.py), the recommended layer (align.py; or --point). Every mode trains bridges on the train split,
seed by seed, keeps the epoch that is best on val, decodes the test pictures by the frozen VAE and writes adapt-<mode>.yaml, .pt (pictures of eight test
items), .png, and adapter.pt with adapter.yaml: the first seed's weights and all that is needed to load them alone (`--init` starts from them). A run that
was killed goes on where it stopped. Scores of the decoded test pictures:

    lpips, ssim, edge_f1    against the original at the decoder's resolution
    recon_spatial_iou       foreground that the frozen judge's tokens show through a linear map fitted on the originals
    recon_map50             mAP@0.5 of a set probe on the judge's tokens, fitted on the originals

beside the VAE's own reconstruction (ceiling), the mean image and another item's picture (floors), and the same bridge from an untrained network.

Words: a frozen language model learns to answer (`turns` of data.py trajectories) from a video model's embedding of the object that is asked about, 512 numbers that an adapter
makes into soft tokens, under LoRA. Reads tracks.pt (explain.py --mode tracks), writes <out>/seed<i>/ (peft's folder and soft.safetensors; explain.py uses them) and <out>/adapt-words.yaml: share
of val's answers that are right, in all and by kind, beside the commonest answer; `forgetting`: what LoRA costs on a task that is not about clips.

Tune: items with `turns` (data.py sets, openpack, shapes, ...), each put to the model as at inference, by its own processor and chat template; only the tokens of answers and the ends
of their turns carry loss, and logits are computed for these alone. Turns of a `chat` are one lesson, any others one each. Boxes in the text ({"bbox_2d": [x1, y1, x2, y2]}, pixels of the
original) are said as the family says them. Writes <out>/adapter/ (peft's, and a MODEL like any other) or, with --merge, --method full or --vision full, <out>/model/; and
<out>/adapt-tune.yaml: `exact`, the share of test's answers that greedy decoding gives to the token, and `answer_loss`, tuned and of the model as it was; `forgetting`, what --keep lost
of `exact`. A training that the plan says cannot fit is not begun.
"""

import functools
import hashlib
import importlib.util
import io
import math
import os
import re
import resource
import shutil
import time
from bisect import bisect_right
from collections import Counter, namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    DECODE_STEP,
    MASK,
    MODELS,
    RATE,
    RESULT,
    TELL_OF,
    Items,
    Soft,
    Tuned,
    about,
    answered,
    ap_criterion,
    ap_runs,
    attempt,
    attention,
    auto_classes,
    bf16_units,
    bootstrap,
    box_truth,
    caption,
    check_shape,
    check_writable,
    choose_device,
    clusters,
    criterion,
    decode_films,
    edge_f1,
    encode_films,
    find_model,
    fitted,
    flatten_stills,
    foreground,
    frames_of,
    from_cells,
    geometry,
    holm,
    join,
    judge_tokens,
    known,
    learned,
    load_encoder,
    load_features,
    load_items,
    load_language,
    load_lpips,
    load_pt,
    load_tracks,
    load_video_pipeline,
    load_video_vae,
    load_vlm,
    load_yaml,
    lpips_model,
    mask_scores,
    mean_answer_loss,
    memory_left,
    memory_size,
    model_of,
    named,
    naming,
    paired_test,
    parser,
    pin,
    pixel_loss,
    plain,
    processor_of,
    qwen_inputs,
    ranks,
    refuse,
    resample,
    resampled,
    reset_lora,
    right,
    run_info,
    save_bytes,
    save_pt,
    save_soft,
    save_yaml,
    say,
    split_indices,
    spoken_of,
    ssim,
    to_cells,
    to_floats,
    token_ridge,
    track_id,
    train,
    train_set_probe,
    widened,
    with_grid,
    word_prompt,
)

# Of each mode: seeds; the loss; epochs by the squared error of latents before it (the decoder's gradient
# leads nowhere from noise), epochs by it at most, epochs without a better
# val after which a training ends (None: equal steps for all), batch, peak learning rate. Loss, epochs, batch
# and rate are the plan's but for gate 1's.
PLAN = {"seeds": 3, "loss": "pixels", "warm": 10, "epochs": 50, "patience": 10, "batch": 8, "lr": 1e-4}
SETTINGS = {
    "latents": {
        "seeds": 5,
        "loss": "latents",
        "warm": 0,
        "epochs": 30,
        "patience": None,
        "batch": 32,
        "lr": 2e-3,
    },
    "scaling": PLAN | {"patience": None},
    "ablation": PLAN,
    "hybrid": PLAN,
    "video": PLAN | {"loss": "words", "warm": 0},
    "words": {
        "seeds": 3,
        "loss": "answers",
        "warm": 0,
        "epochs": 3,
        "patience": None,
        "batch": 32,
        "lr": 3e-3,
    },
    "tune": {
        "seeds": 1,
        "loss": "answers",
        "warm": 0,
        "epochs": 3,
        "patience": None,
        "batch": 16,
        "lr": 2e-4,
    },
}
LADDER = 5, 10, 20, 50, 100  # millions of parameters, for tokens of Qwen2.5-VL-7B's width
REFERENCE_WIDTH = 3584
FRACTIONS = 0.125, 0.25, 0.5  # of the training items
ADAPTER = "foresight.adapter.v2"


# ---------------------------------------------------------------- bridges: tokens [n, h, w, D] -> latents [n, H, W, C]
#
# Each is built from the token sets' grids and widths, the latents' grid and channels; `width` and `inner` are
# free, and by them a bridge gets the size it is asked for.


class Mlp(torch.nn.Module):
    """Tokens resampled to the latent grid, then the same two-layer MLP at every place."""

    def __init__(self, grids, dims, out_grid, channels, width=256, inner=None):
        super().__init__()
        self.out_grid, inner = out_grid, inner or width
        self.net = torch.nn.Sequential(
            torch.nn.LayerNorm(dims[0]),
            torch.nn.Linear(dims[0], width),
            torch.nn.GELU(),
            torch.nn.Linear(width, inner),
            torch.nn.GELU(),
            torch.nn.Linear(inner, channels),
        )

    def forward(self, x):
        return self.net(resample(x, self.out_grid))


class Bottleneck(torch.nn.Module):
    """A residual bottleneck on every token (Houlsby et al. 2019), then one linear map to the latents."""

    def __init__(self, grids, dims, out_grid, channels, width=64, inner=None):
        super().__init__()
        self.out_grid, inner = out_grid, inner or width
        self.narrow = torch.nn.Sequential(
            torch.nn.LayerNorm(dims[0]),
            torch.nn.Linear(dims[0], width),
            torch.nn.GELU(),
            torch.nn.Linear(width, inner),
            torch.nn.GELU(),
            torch.nn.Linear(inner, dims[0]),
        )
        self.out = torch.nn.Linear(dims[0], channels)

    def forward(self, x):
        return self.out(resample(x + self.narrow(x), self.out_grid))


class Queries(torch.nn.Module):
    """One learned query for every latent place attends to all tokens (the plan's query adapter)."""

    def __init__(self, grids, dims, out_grid, channels, width=96, inner=None, layers=1):
        super().__init__()
        self.out_grid = out_grid
        self.embed = torch.nn.Linear(dims[0], width)
        self.position = torch.nn.Parameter(torch.randn(math.prod(grids[0]), width) * 0.1)
        self.query = torch.nn.Parameter(torch.randn(math.prod(out_grid), width) * 0.1)
        self.layers = torch.nn.ModuleList(attention(width, inner) for _ in range(layers))
        self.out = torch.nn.Linear(width, channels)

    def forward(self, x):
        memory = self.embed(F.layer_norm(x.flatten(1, -2), x.shape[-1:])) + self.position
        q = self.query.expand(len(x), -1, -1)
        for layer in self.layers:  # queries see the tokens, then one another
            q = layer(q, memory)
        return self.out(q).unflatten(1, self.out_grid)


class Perceiver(torch.nn.Module):
    """A few learned vectors gather what the tokens hold (Perceiver's resampler: Jaegle et al. 2021, Alayrac et al. 2022); the queries of all latent places see only these."""

    def __init__(self, grids, dims, out_grid, channels, width=96, inner=None, vectors=16):
        super().__init__()
        self.gather = Queries(grids, dims, (vectors,), width, width, inner)
        self.spread = Queries([(vectors,)], [width], out_grid, channels, width, inner)

    def forward(self, x):
        return self.spread(self.gather(x))


class Fusion(torch.nn.Module):
    """Spatial tokens, at the decoder's grid, attend to semantic ones (cross-attention); what they hold then is mapped at every latent place."""

    def __init__(self, grids, dims, out_grid, channels, width=96, inner=None):
        super().__init__()
        self.out_grid = out_grid
        self.embed = torch.nn.ModuleList(torch.nn.Linear(d, width) for d in dims)
        self.position = torch.nn.ParameterList(
            torch.nn.Parameter(torch.randn(math.prod(g), width) * 0.1) for g in (out_grid, grids[1])
        )
        self.layer = attention(width, inner)
        self.out = torch.nn.Sequential(
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 2 * width),
            torch.nn.GELU(),
            torch.nn.Linear(2 * width, channels),
        )

    def tokens(self, spatial, semantic):
        """The fused tokens [n, H, W, width] at the decoder's grid; spatial [n, h, w, D], semantic [n, h', w', D']. A set of zeros stays one: nothing is read from it."""
        sets = resample(spatial, self.out_grid), semantic
        spatial, semantic = (
            e(F.layer_norm(x.flatten(1, 2), x.shape[-1:])) + p
            for e, p, x in zip(self.embed, self.position, sets, strict=True)
        )
        return self.layer(spatial, semantic).unflatten(1, self.out_grid)

    def forward(self, spatial, semantic):
        return self.out(self.tokens(spatial, semantic))


class Lora(torch.nn.Module):
    """LoRA inside the VLM up to a language layer, and a linear map from its rows of the picture to the latents. It reads pictures, not stored tokens."""

    def __init__(self, tuned, out_grid, channels):
        super().__init__()
        self.tuned, self.out_grid, self.out = tuned, out_grid, torch.nn.Linear(tuned.grid[-1], channels)

    def reset(self):
        self.tuned.reset()
        self.out.reset_parameters()
        return self

    def forward(self, inputs):
        x = self.tuned(inputs)
        return self.out(resample(F.layer_norm(x, x.shape[-1:]), self.out_grid))


BRIDGES = {"mlp": Mlp, "bottleneck": Bottleneck, "queries": Queries, "perceiver": Perceiver, "fusion": Fusion}


def sized(kind, target, *shape):
    """{width, inner} of the bridge of `target` parameters within 5%, the width as large as it goes. Raises ValueError where there is none: fewer than the smallest has."""

    def count(**free):
        with torch.device("meta"):
            return sum(p.numel() for p in BRIDGES[kind](*shape, **free).parameters())

    width = 4 * bisect_right(range(1, 4096), target, key=lambda w: count(width=4 * w))
    if not width:
        raise ValueError(f"the smallest {kind} bridge has {count(width=4)} parameters")
    inner = max(bisect_right(range(1, 1 << 16), target, key=lambda i: count(width=width, inner=i)), 1)
    found = count(width=width, inner=inner)
    if abs(found - target) > 0.05 * target:
        raise ValueError(f"the {kind} bridge nearest to {target} parameters has {found}")
    return {"width": width, "inner": inner}


# ---------------------------------------------------------------- the decoder


def decode(vae, latents, batch=16):
    """Normalised latents [n, h, w, C] -> pictures uint8 [n, H, W, 3]."""
    return decode_films(vae, latents[:, None], batch)[:, 0]


@torch.inference_mode()
def round_trip(vae, frames, latents):
    """How far, on the mean and of 255, what stored latents [n,h,w,C] decode to lies from the autoencoder's own reconstruction of uint8 frames [n,H,W,3]:
    nothing but rounding, unless they are another autoencoder's, or normalised one way only."""
    z = vae.encode(to_floats(frames)[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()
    torch.manual_seed(0)  # of decoders that add noise
    own = (
        vae.decode(z, torch.full((len(z),), DECODE_STEP).to(z) if vae.config.timestep_conditioning else None)
        .sample[:, :, 0]
        .float()
        .cpu()
    )
    torch.manual_seed(0)
    return (
        (decode(vae, latents).float() - ((own + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1))
        .abs()
        .mean()
        .item()
    )


# ---------------------------------------------------------------- scores of decoded pictures


def shrink(x, side=6):
    """Tokens [n, h, w, D] of at most 6 x 6 places, in a row, as a set probe takes them."""
    return (
        F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (min(x.shape[1], side), min(x.shape[2], side)))
        .permute(0, 2, 3, 1)
        .flatten(1, 2)
    )


def judged(tokens, rows, items, split, epochs, seed):
    """Spatial IoU and mAP of decoded pictures as the judge sees them. tokens: {name: [n or S*n_test, h, w, D]}; `originals` holds all items.

    Returns {name: IoU [S, n_test]}, {name: ap runs}. The linear map, its threshold and the set probe are fitted on the originals' train and val.
    """
    test, n = split["test"], len(items)
    soft_truth = foreground(items, MASK)
    solid = soft_truth >= 0.5
    _, h, w, d = tokens["originals"].shape
    s = max(-(-MASK // h), 1)
    cells = to_cells(
        F.interpolate(
            soft_truth[:, None], (h * s, w * s), mode="bilinear", align_corners=False, antialias=True
        ),
        h,
        w,
    )
    names = list(rows)
    every = torch.cat([tokens["originals"]] + [tokens[k] for k in names]).flatten(1, 2)
    nothing = torch.zeros(len(every) - n, *cells.shape[1:])
    soft = from_cells(
        token_ridge(every, {"mask": torch.cat([cells, nothing])}, split["train"], split["val"])["mask"],
        h,
        w,
        1,
        MASK,
    )[:, 0]
    of_test = {"originals": mask_scores(soft[:n], solid, split)[test]}
    start = n
    for k in names:
        part = soft[start : start + len(tokens[k])].unflatten(0, (-1, len(test)))
        start += len(tokens[k])
        both = [torch.cat([soft[:n], p]) for p in part]
        truth = torch.cat([solid, solid[test]])
        of_test[k] = torch.stack([mask_scores(b, truth, split)[n:] for b in both])

    _, truth, classes = box_truth(items)
    sources = [items[i]["source"] for i in test]
    predict = train_set_probe(
        shrink(tokens["originals"]),
        (min(h, 6), min(w, 6)),
        truth,
        len(classes),
        split["train"],
        split["val"],
        1,
        epochs=epochs,
        seed=seed,
    )
    test_truth, everything = [truth[i] for i in test], torch.arange(len(test))
    runs = {"originals": ap_runs(predict, shrink(tokens["originals"]), truth, test, sources=sources)}
    for k in names:
        each = [
            ap_runs(predict, x, test_truth, everything, sources=sources)
            for x in shrink(tokens[k]).unflatten(0, (-1, len(test)))
        ]
        runs[k] = {key: torch.cat([e[key] for e in each]) for key in ("ap", "draws")}
    return of_test, runs


def ratio(a, b, sources, n_boot=2000, seed=0):
    """Mean of a / mean of b, scores [seeds, n] of the same items, with a 95% interval: equal resamples of sources for both, seeds drawn for each."""
    cluster = clusters(sources)
    count = torch.bincount(cluster).double()
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(count), n_boot, g)
    draws = []
    for x in (a, b):
        totals = torch.zeros(len(x), len(count), dtype=torch.float64).index_add_(1, cluster, x.double())
        means = weights @ totals.T / (weights @ count)[:, None]
        draws.append(means.gather(1, torch.randint(len(x), means.shape, generator=g)).mean(1))
    mean = (a.double().mean() / b.double().mean()).item()
    return mean, *widened(
        mean,
        *(draws[0] / draws[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist(),
        len(count),
    )


# ---------------------------------------------------------------- what all modes need


def moments_of(x, train):
    """Mean and standard deviation [D] of every channel of x [n, ..., D] over the train items."""
    axes = tuple(range(x.ndim - 1))
    return x[train].mean(axes), x[train].std(axes).clamp(min=1e-6)


def checked_features(folder, index):
    """(index, read) of features of the same items as those of `index`."""
    other, read = load_features(folder)
    if other["ids"] != index["ids"]:
        refuse(
            f"{folder} and the other features do not hold the same items; extract both from the same data folder"
        )
    return other, read


def checked_point(args, index, folder):
    """The layer asked for or recommended, of clips the middle one of the language model's, if its tokens have a place in the picture."""
    layers = [p for p in with_grid(index) if p.startswith("language.")]
    point = args.point or (
        load_yaml(args.align, "align")["linear_r2_layer"]
        if args.align
        else layers[(len(layers) - 1) // 2]
        if args.mode == "video" and layers
        else None
    )
    if point is None:
        refuse(
            "no layer is named; give --point, or --align with an align.yaml that recommends one (linear_r2_layer)"
        )
    if point not in index["points"]:
        refuse(f"{folder} has no point {point!r}; its points are {', '.join(index['points'])}")
    if point not in with_grid(index):
        refuse(
            f"the tokens of {point} have no place in the picture, and a bridge goes from places to places; give --point one of {', '.join(with_grid(index))}"
        )
    return point


def settings(args, items):
    """SETTINGS of the mode, with what the command line says; `items` there are to train on."""
    how = SETTINGS[args.mode] | {
        k: getattr(args, k) for k in SETTINGS[args.mode] if getattr(args, k) is not None
    }
    for name, least in (("seeds", 1), ("warm", 0), ("epochs", 1), ("patience", 1), ("batch", 1)):
        if how[name] is not None and how[name] < least:
            refuse(f"--{name} {how[name]} leaves nothing to train; give {least} or more")
    if not 0 < how["lr"] < 1:
        refuse(f"--lr {how['lr']} is no learning rate; give one between 0 and 1, such as 1e-4")
    losses = {"video": ("words", "flow"), "words": ("answers",), "tune": ("answers",)}.get(
        args.mode, ("latents", "pixels")
    )
    if how["loss"] not in losses:
        refuse(f"--loss {how['loss']} is not for --mode {args.mode}; it knows {' and '.join(losses)}")
    if args.width and args.width % 4:
        refuse(f"--width {args.width} cannot be shared out among four heads; give {args.width // 4 * 4 + 4}")
    how["batch"], n = min(how["batch"], items), ranks()[1]
    if how["batch"] % n:
        refuse(
            f"a batch of {how['batch']} (--batch, at most the {items} items there are) cannot be shared out evenly among {n} ranks; give a multiple of {n}"
        )
    if args.init and args.mode not in ("ablation", "video"):
        refuse(
            f"--init goes with --mode ablation, which compares it with a start from scratch, and with video; leave it out of {args.mode}"
        )
    return how


def prepare(args):
    """Everything that is checked before a model is loaded, and then what every mode of pictures works on."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.index, w.read = load_features(args.features)
    target, read_target = checked_features(args.latents, w.index)
    items, w.data = load_items(w.index["data_path"])
    w.items, w.ids = join(items, w.index, args.features), w.index["ids"]
    w.split = split_indices(w.items, args.features)
    if "boxes" not in w.items[0]:
        refuse(
            f"{w.index['data_path']} has no boxes, by which decoded pictures are judged; use a set that has them"
        )
    w.point = checked_point(args, w.index, args.features)
    w.random = checked_features(args.random, w.index)[1] if args.random else None
    w.spatial = checked_features(args.spatial, w.index) if args.spatial else None
    w.others = [checked_features(folder, w.index) for folder in args.at or ()]
    for other, _ in w.others:
        if w.point not in other["points"]:
            refuse(
                f"--at: the features at {other['size']} px have no point {w.point!r}; extract them with the same --points"
            )
    kinds, single = args.bridges.split(","), {k: v for k, v in BRIDGES.items() if k != "fusion"}
    for k, kind in enumerate(kinds):
        known(kind, single | ({"lora": Lora} if args.mode == "ablation" and k else {}), "bridge")
    w.vae_entry, w.judge_entry = find_model(args.vae), find_model(args.judge)
    if w.vae_entry["kind"] != "vae" or w.judge_entry["kind"] != "encoder":
        refuse(
            f"--vae {args.vae} is a {w.vae_entry['kind']} and --judge {args.judge} a {w.judge_entry['kind']}; a vae and an encoder are needed"
        )
    w.out = Path(args.out or Path(args.features).parent / f"adapt-{args.mode}.yaml")
    check_writable(w.out)
    w.how = settings(args, len(w.split["train"]))
    w.init = load_pt(args.init, ADAPTER) if args.init else None
    if w.init and w.init["meta"]["bridge"] not in single:
        refuse(
            f"--init {args.init} holds a bridge of kind {w.init['meta']['bridge']}, which reads two token sets; give one of {', '.join(single)}"
        )
    w.y = read_target("latents")[:, 0]
    w.sources = [w.items[i]["source"] for i in w.split["test"]]
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    # in fp16 the gradients of a mean over pixels are zero
    w.full = torch.float32 if w.dtype == torch.float16 else w.dtype
    w.vae = flatten_stills(load_video_vae(w.vae_entry, w.device, w.full)[0]).requires_grad_(False)
    w.originals = torch.cat([frames_of(i, target["size"]) for i in w.items])
    if (away := round_trip(w.vae, w.originals[:4], w.y[:4])) > 2:
        refuse(
            f"{args.latents} does not hold latents of {args.vae}: decoded, they lie {away:.1f} of 255 from its own reconstruction; extract them with --model {args.vae}"
        )
    w.lpips, w.lpips_name = load_lpips(w.device)
    if w.how["loss"] == "pixels":
        w.pixel_loss = pixel_loss(w.vae, lpips_model(w.device)[0], w.originals)
    return w


def arm(w, kind, *sets, train=None, target=None, free=None, **facts):
    """One thing to be trained: a bridge of `kind` from token sets [n, h, w, D] that all items have, on `train` items, of `target` parameters or with its `free` settings."""
    moments = [moments_of(x, w.split["train"]) for x in sets]
    shape = (
        [tuple(x.shape[1:3]) for x in sets],
        [x.shape[3] for x in sets],
        tuple(w.y.shape[1:3]),
        w.y.shape[3],
    )
    free = sized(kind, target, *shape) if target else free or {}
    return {
        "bridge": kind,
        "shape": shape,
        "free": free,
        "moments": moments,
        "build": lambda: BRIDGES[kind](*shape, **free),
        "train": w.split["train"] if train is None else train,
        "inputs": lambda items: [
            ((x[items] - mean) / std).to(w.device) for x, (mean, std) in zip(sets, moments, strict=True)
        ],
        **facts,
    }


def parameters(module):
    return sum(p.numel() for p in learned(module).values())


def digest(*tensors):
    """Twelve letters for the name of a training's state: of other features, latents or weights it is another training."""
    return hashlib.sha256(b"".join(x.float().numpy().tobytes() for x in tensors)).hexdigest()[:12]


def run_arms(w, arms):
    """Train every arm, seed by seed: {name: [(module, record)]}. States of unfinished ones lie in a folder beside the result, under the name of all they depend on."""
    folder, trained = w.out.with_suffix(".training"), {}
    for name, a in arms.items():
        known_by = digest(
            *(x for pair in a.get("moments", ()) for x in pair),
            *moments_of(w.y, a["train"]),
            *(w.init["weights"].values() if a.get("init") else ()),
        )

        def loss_of(module, items, g, part, warm, a=a):
            z = module(*a["inputs"](items[part]))
            return (
                w.pixel_loss(z, items[part])
                if w.how["loss"] == "pixels" and not warm
                else (z - w.y[items[part]].to(z.device)).square().mean()
            )

        def build(a=a):
            module = a["build"]()
            if a.get("init"):
                a["kept"] = start_from(module, w.init["weights"], w.args.init)
            return module

        split = {"train": a["train"], "val": w.split["val"]}
        # where there are fewer items there are more epochs: as many steps
        more = len(w.split["train"]) / len(a["train"])
        how = (
            w.how
            | {k: w.how[k] and round(w.how[k] * more) for k in ("warm", "epochs", "patience")}
            | {"arm": name, "bridge": a["bridge"], **a["free"], "items": len(a["train"])}
        )
        trained[name] = [
            train(
                build,
                loss_of,
                split,
                w.seed + s,
                how,
                w.device,
                folder / f"{known_by}-{name}-{w.seed + s}.pt",
                w.ids,
            )
            for s in tqdm(range(w.how["seeds"]), desc=name, unit="seed")
        ]
    return trained


@torch.inference_mode()
def decoded(w, models, a):
    """Test pictures uint8 [S * n_test, H, W, 3] of every seed's module, seeds one after another."""
    out = []
    for m, record in models:
        m.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        out.append(decode(w.vae, torch.cat([m(*a["inputs"](p)).cpu() for p in w.split["test"].split(64)])))
    return torch.cat(out)


def controls(w):
    """The pictures that any bridge stands between: the autoencoder's own, and the mean image."""
    test = w.split["test"]
    return {
        "vae": decode(w.vae, w.y[test]),
        "mean_image": w.originals[w.split["train"]]
        .float()
        .mean(0)
        .round()
        .byte()
        .expand(len(test), -1, -1, -1),
    }


def scored(w, rows, measures=None):
    """{measure: {name: [S, n_test]}} of decoded pictures {name: uint8 [S * n_test, H, W, 3]} against the originals."""
    measures = measures or {w.lpips_name: w.lpips, "ssim": ssim, "edge_f1": edge_f1}
    truth = w.originals[w.split["test"]]
    n = len(w.split["test"])
    return {
        key: {
            k: measure(p.contiguous(), truth.repeat(len(p) // n, 1, 1, 1)).unflatten(0, (-1, n))
            for k, p in rows.items()
        }
        for key, measure in measures.items()
    }


def others(pictures, n):
    """Each test item's pictures [S * n, ...] given to the next item."""
    return pictures.unflatten(0, (-1, n)).roll(1, 1).flatten(0, 1)


def worse(w, errors, beside):
    """{name: by how much its errors [seeds, n] are larger than those of beside[name], paired, with Holm's adjustment over all}."""
    found = {
        name: paired_test(errors[name], errors[other], w.sources, seed=w.seed)
        for name, other in beside.items()
    }
    adjusted = holm({name: t["p"] for name, t in found.items()})
    return {
        name: {
            "worse": t["gain"],
            "worse_low": t["gain_low"],
            "worse_high": t["gain_high"],
            "worse_than": beside[name],
            "p_holm": adjusted[name],
        }
        for name, t in found.items()
    }


def row_of(w, a, trained, scores, more=None):
    """What a table says of one arm: what it is, how it was trained, its scores {measure: [seeds, n]} with their intervals."""
    row = {
        "bridge": a["bridge"],
        "parameters": parameters(trained[0][0]),
        **a["free"],
        "point": a.get("point", w.point),
        "size": a.get("size", w.index["size"]),
        "items": len(a["train"]),
        "steps": [r["steps"] for _, r in trained],
        "best_epoch": [r["epoch"] for _, r in trained],
        "val_loss": [r["val"] for _, r in trained],
        "seconds_per_step": sorted(r["seconds_per_step"] for _, r in trained)[len(trained) // 2],
    } | ({"kept_parameters": a["kept"][0]} if "kept" in a else {})
    for key, x in scores.items():
        row |= dict(
            zip((key, f"{key}_low", f"{key}_high"), bootstrap(x, w.sources, seed=w.seed), strict=True)
        ) | {f"{key}_seeds": x.mean(1).tolist()}
    return row | (more or {})


def facts(w):
    """The headline's first lines: what was measured with what."""
    return {
        "stage": "adapt",
        "mode": w.args.mode,
        "model": w.index["model"],
        "decoder": w.vae_entry["name"],
        "judge": w.judge_entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.vae_entry["weights"],
        "data": w.index["data"],
        "data_name": w.data["name"],
        "layer": w.point,
    }


def headline(criteria, lpips_name):
    out = {}
    for name, c in criteria.items():
        out |= {
            name: c["score"],
            **{f"{name}_{k}": c[k] for k in ("low", "high", "floor", "ceiling", "skill")},
        }
    if lpips_name != "lpips":
        out |= {
            "lpips": None,
            "lpips_reason": "the backbone's published weights are neither in torch's cache nor within reach of the network",
        }
    return out


def conclude(w, result, started, pictures, adapter):
    """Write everything: pictures of eight test items, the first seed's bridge of `adapter` = (arm, module), the YAML last."""
    test = w.split["test"]
    w.args.out = str(w.out)
    result["run"] = run_info(
        w.args,
        started,
        script="adapt.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    save_pt(
        w.out.with_suffix(".pt"),
        RESULT,
        [w.items[i]["id"] for i in test[:8]],
        {"stage": "adapt"},
        original=w.originals[test[:8]].clone(),
        **{k: p[:8].clone() for k, p in pictures.items()},
    )
    a, module = adapter
    write_adapter(
        w.out.parent / ("adapter.pt" if w.args.mode == "latents" else f"adapter-{w.args.mode}.pt"),
        module,
        a,
        {
            "into": "latents",
            "model": w.index["model"],
            "point": w.point,
            "size": w.index["size"],
            "decoder": w.vae_entry["name"],
        },
    )
    save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    say(result)
    return result


# ---------------------------------------------------------------- adapters on disk


def write_adapter(path, module, a, meta, outputs=None):
    """adapter.pt, with all that is needed to use it alone (`load_adapter`), and a YAML beside it that says what it is. outputs: mean and std of what it was
    trained to give, if that was standardised."""
    grids, dims, out_grid, channels = a["shape"]
    meta = meta | {
        "bridge": a["bridge"],
        "grids": [list(g) for g in grids],
        "dims": list(dims),
        "out_grid": list(out_grid),
        "channels": channels,
        "free": a["free"],
    }
    save_pt(
        path,
        ADAPTER,
        [],
        meta,
        weights={k: p.detach().cpu().clone() for k, p in learned(module).items()},
        tokens=[torch.stack(m) for m in a.get("moments", ())],
        outputs=torch.stack(outputs) if outputs else torch.tensor([[0.0], [1.0]]),
    )
    save_yaml(
        path.with_suffix(".yaml"),
        {
            "stage": "adapter",
            **meta,
            "parameters": parameters(module),
            "file": path.name,
            "reads": "tokens of `point` at `size` pixels, fp32: of pictures [n, h, w, D], of clips [n, t h, w, D]",
            "gives": "latents, normalised by the decoder's own mean and standard deviation"
            if meta["into"] == "latents"
            else "prompt embeddings",
        },
    )


def load_adapter(path):
    """(function from token sets, as extract.py stores them, to what the adapter gives; its meta). LoRA's lies inside its model: build Lora and load its weights there."""
    saved = load_pt(path, ADAPTER)
    m = saved["meta"]
    module = BRIDGES[m["bridge"]](
        [tuple(g) for g in m["grids"]], m["dims"], tuple(m["out_grid"]), m["channels"], **m["free"]
    )
    module.load_state_dict(saved["weights"])
    module.eval()

    @torch.inference_mode()
    def use(*sets):
        mean, std = saved["outputs"]
        return module(*((x - t[0]) / t[1] for x, t in zip(sets, saved["tokens"], strict=True))) * std + mean

    return use, m


def start_from(module, weights, path):
    """Copy those of `weights`, of an adapter at `path`, whose name and shape the module has: (numbers kept, numbers of the module). What meets another model's tokens stays as drawn."""
    own = learned(module)
    same = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    if not same:
        refuse(
            f"--init {path} has nothing in common with the bridge that is to be trained; give one of the same kind and width"
        )
    module.load_state_dict(same, strict=False)
    return sum(v.numel() for v in same.values()), parameters(module)


# ---------------------------------------------------------------- gate 1: do the latents suffice?


def latents(w, started):
    x = w.read(w.point)[:, 0]
    arms = {kind: arm(w, kind, x) for kind in w.args.bridges.split(",")}
    trained = run_arms(w, arms)
    val_loss = {k: sum(r["val"] for _, r in runs) / len(runs) for k, runs in trained.items()}
    bridge = min(val_loss, key=val_loss.get)
    if w.random:
        arms["random_init"] = arm(w, bridge, w.random(w.point)[:, 0])
        trained |= run_arms(w, {"random_init": arms["random_init"]})
    if ranks()[0]:
        return {}
    n = len(w.split["test"])
    rows = {"bridge": decoded(w, trained[bridge], arms[bridge]), **controls(w)}
    rows["other_item"] = others(rows["bridge"], n)
    if w.random:
        rows["random_init"] = decoded(w, trained["random_init"], arms["random_init"])
    scores = scored(w, rows)
    scores["recon_spatial_iou"], runs = looked_at(w, rows)

    # The untrained network is a control here, not a floor: its first layers still hold nearly every pixel,
    # and a faithful copy is what is asked for.
    criteria, floors, beside = {}, ["mean_image", "other_item"], [k for k in rows if k == "random_init"]
    for key, table in scores.items():
        criteria[key] = criterion(
            table["bridge"],
            {k: table[k] for k in floors},
            w.sources,
            ceiling=table["vae"].mean().item(),
            better=better(key),
            seed=w.seed,
            layer=w.point,
            options_searched=len(val_loss),
            controls={k: table[k].mean() for k in beside},
        )
    criteria["recon_map50"] = ap_criterion(
        runs["bridge"],
        {k: runs[k] for k in floors},
        w.sources,
        ceiling=runs["vae"]["ap"].mean().item(),
        layer=w.point,
        options_searched=len(val_loss),
        controls={k: runs[k]["ap"].mean() for k in beside},
    )
    table = {
        k: {
            "val_mse": val_loss[k],
            "seconds": sum(r["seconds_per_step"] * r["steps"] for _, r in trained[k]),
            "parameters": parameters(trained[k][0][0]),
        }
        for k in val_loss
    }
    result = facts(w) | {
        "bridge": bridge,
        "parameters": table[bridge]["parameters"],
        **headline(criteria, w.lpips_name),
        "judge_spatial_iou_originals": scores["recon_spatial_iou"]["originals"].mean(),
        "judge_map50_originals": runs["originals"]["ap"].mean(),
        "criteria": criteria,
        "bridges": table,
    }
    return conclude(
        w,
        result,
        started,
        {"vae": rows["vae"], "bridge": rows["bridge"]},
        (arms[bridge], trained[bridge][0][0]),
    )


def better(key):
    return "lower" if key.startswith("lpips") else "higher"


def looked_at(w, rows):
    """`judged` of decoded pictures {name: uint8}."""
    judge, processor = load_encoder(w.judge_entry, w.device, w.dtype)
    tokens = {
        k: judge_tokens(judge, processor, w.judge_entry["size"], p, w.device)
        for k, p in tqdm((rows | {"originals": w.originals}).items(), desc="judge", unit="set")
    }
    return judged(tokens, rows, w.items, w.split, 30, w.seed)


# ---------------------------------------------------------------- is a small bridge as good as a large one?


def step_ratio(w, a, b, rounds=15):
    """Median seconds of a training step of arm a over those of b, the two taking turns, so that what else the machine does meets both."""
    seconds, modules = {0: [], 1: []}, [x["build"]().to(w.device) for x in (a, b)]
    for k in range(rounds):
        for which, (x, module) in enumerate(zip((a, b), modules, strict=True)):
            items = w.split["train"][torch.arange(k, k + w.how["batch"]) % len(w.split["train"])]
            began = time.perf_counter()
            z = module(*x["inputs"](items))
            loss = (
                w.pixel_loss(z, items)
                if w.how["loss"] == "pixels"
                else (z - w.y[items].to(z.device)).square().mean()
            )
            torch.autograd.grad(loss, list(module.parameters()))[0].sum().item()  # waits for the device
            seconds[which].append(time.perf_counter() - began)
    return sorted(seconds[0])[rounds // 2] / sorted(seconds[1])[rounds // 2]


def ladder(w, dim):
    """{name: parameters} of the plan's ladder, and by what it was scaled: a bridge's parameters grow with the square of the width of the tokens that it reads."""
    scale = 1.0 if w.index["weights"] == "pretrained" or w.args.unscaled else (dim / REFERENCE_WIDTH) ** 2
    return {f"{m}M": round(m * 1e6 * scale) for m in LADDER}, scale


def scaling(w, started):
    x = w.read(w.point)[:, 0]
    rungs, scale = ladder(w, x.shape[3])
    kind = w.args.bridges.split(",")[0]
    try:
        arms = {name: arm(w, kind, x, target=size) for name, size in rungs.items()}
    except ValueError as e:
        refuse(
            f"--bridges {kind}: {e}, and the ladder asks for {', '.join(map(str, rungs.values()))}; take another bridge"
        )
    trained = run_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: decoded(w, trained[name], a) for name, a in arms.items()} | controls(w)
    rows["other_item"] = others(rows["10M"], len(w.split["test"]))
    scores = scored(w, rows)
    criteria = {
        key: criterion(
            table["10M"],
            {k: table[k] for k in ("mean_image", "other_item")},
            w.sources,
            ceiling=table["vae"].mean().item(),
            better=better(key),
            seed=w.seed,
            layer=w.point,
            options_searched=1,
        )
        for key, table in scores.items()
    }
    large, small = scores[w.lpips_name]["100M"], scores[w.lpips_name]["10M"]
    score, low, high = ratio(large, small, w.sources, seed=w.seed)
    plain = {"error_ratio": score, "error_ratio_low": low, "error_ratio_high": high}
    # an untrained backbone's errors are not held against a threshold for LPIPS: skill between the mean image
    # and the VAE stands in, of 10M over that of 100M
    if w.lpips_name != "lpips":
        floor, ceiling = (scores[w.lpips_name][k].mean() for k in ("mean_image", "vae"))
        score, low, high = ratio(
            (small - floor) / (ceiling - floor), (large - floor) / (ceiling - floor), w.sources, seed=w.seed
        )
    # two bridges that both learned nothing are equally good: the gain that must exclude zero is that of the
    # small one over the floors
    criteria["parameter_efficiency"] = criteria[w.lpips_name] | {
        "score": score,
        "low": low,
        "high": high,
        "better": "higher",
        "lpips_100M": large.mean(),
        "lpips_10M": small.mean(),
        **plain,
        "stand_in": w.lpips_name != "lpips",
    }
    against = worse(w, scores[w.lpips_name], {name: "10M" for name in rungs if name != "10M"})
    table = {
        name: row_of(w, a, trained[name], {key: t[name] for key, t in scores.items()}, against.get(name))
        | {"wanted": rungs[name]}
        for name, a in arms.items()
    }
    result = facts(w) | {
        "bridge": kind,
        "parameter_efficiency": score,
        "parameter_efficiency_low": low,
        "parameter_efficiency_high": high,
        **plain,
        "training_time_ratio": step_ratio(w, arms["100M"], arms["10M"]),
        "ladder_scale": scale,
        "ladder": "millions of parameters as they stand"
        if scale == 1
        else f"5 to 100 million parameters times ({x.shape[3]} / {REFERENCE_WIDTH})^2, the tokens' width against Qwen2.5-VL-7B's",
        **headline({k: c for k, c in criteria.items() if k != "parameter_efficiency"}, w.lpips_name),
        "criteria": criteria,
        "sizes": table,
    }
    result = conclude(
        w,
        result,
        started,
        {"vae": rows["vae"], **{k: rows[k] for k in arms}},
        (arms["10M"], trained["10M"][0][0]),
    )
    scaling_picture(
        w.out.with_suffix(".png"),
        result,
        w.lpips_name,
        {k: t.mean() for k, t in scores[w.lpips_name].items()},
    )
    return result


def strips(figure, saved, names, title):
    """Rows of test pictures: the original and each of `names`."""
    grid = figure.subplots(len(names) + 1, len(saved["ids"]), squeeze=False)
    for row, name in enumerate(["original", *names]):
        for k, axis in enumerate(grid[row]):
            axis.imshow(saved[name][k].numpy())
            axis.set(xticks=[], yticks=[])
        grid[row, 0].set_ylabel(name.replace("_", "\n"), fontsize=9, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)


def scaling_picture(path, result, measure, means):
    """The error against the number of parameters, and the same test pictures by every size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = result["sizes"]
    figure = plt.figure(figsize=(13, 13), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 1.35])
    axis = top.subplots()
    at = [s["parameters"] for s in sizes.values()]
    axis.plot(
        at, [s[measure] for s in sizes.values()], "o-", color="C0", label="mean of the seeds, 95% interval"
    )
    axis.fill_between(
        at,
        [s[f"{measure}_low"] for s in sizes.values()],
        [s[f"{measure}_high"] for s in sizes.values()],
        color="C0",
        alpha=0.2,
    )
    for x, s in zip(at, sizes.values(), strict=True):
        axis.plot(
            [x] * len(s[f"{measure}_seeds"]),
            s[f"{measure}_seeds"],
            ".",
            color="C3",
            ms=5,
            label="a seed" if x == at[0] else None,
        )
    for k, (name, words) in enumerate(
        (
            ("mean_image", "the mean image"),
            ("other_item", "another item's picture"),
            ("vae", "the autoencoder's own"),
        )
    ):
        axis.axhline(means[name], color=f"C{k + 4}", ls=":", label=words)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(at, [f"{name}\n{x:,}" for name, x in zip(sizes, at, strict=True)])
    axis.minorticks_off()
    axis.set(
        xlabel="rung of the ladder, trained parameters of the bridge",
        ylabel=f"{measure} (lower is better)",
        title=f"{result['model']} {result['layer']} to {result['decoder']}, bridge {result['bridge']}: error of 100M / 10M = {result['error_ratio']:.3f} "
        f"[{result['error_ratio_low']:.3f}, {result['error_ratio_high']:.3f}]",
    )
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    strips(
        bottom,
        load_pt(path.with_suffix(".pt"), RESULT),
        ["vae", *sizes],
        "Test pictures through the frozen decoder",
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- which bridge, layer, resolution; how many samples?


def lora_arm(w):
    """The LoRA bridge: pictures through the VLM itself up to the middle one of the stored language layers.

    Refused unless what the untouched model says there equals the stored features: then rows, order and size are those that all other bridges read.
    """
    layers = [p for p in with_grid(w.index) if p.startswith("language.")]
    entry = model_of(w.index)
    if w.index.get("kind") != "vlm" or not entry.get("type", "").startswith("qwen") or not layers:
        refuse(
            f"a LoRA bridge lies inside a language model of Qwen's family, and {w.args.features} holds no language layer of one; leave lora out of --bridges"
        )
    point, size = layers[(len(layers) - 1) // 2], w.index["size"]
    vlm, processor = load_vlm(entry, w.device, w.full)
    vlm.requires_grad_(False)

    def inputs(items):
        batch = qwen_inputs(
            processor, torch.stack([frames_of(w.items[i], size) for i in items]), "Describe the picture."
        )
        return [
            {k: v.to(w.device, w.full) if v.is_floating_point() else v.to(w.device) for k, v in batch.items()}
        ]

    stored, out, some = w.read(point)[:, 0], (tuple(w.y.shape[1:3]), w.y.shape[3]), w.split["train"][:2]
    grid = tuple(stored.shape[1:])
    module = Lora(Tuned(vlm, w.index["points"][point]["module"], grid, vlm.config.image_token_id), *out).to(
        w.device
    )
    with torch.inference_mode():
        own = module.tuned(*inputs(some)).cpu()
    if own.shape != stored[some].shape or (own - stored[some]).norm() > 0.02 * stored[some].norm():
        refuse(
            f"{w.index['model']} does not give back the stored features of {point}, so its rows are not those of the picture's grid; leave lora out of --bridges"
        )
    return {
        "bridge": "lora",
        "shape": ([grid[:2]], [grid[2]], *out),
        "free": {},
        "train": w.split["train"],
        "inputs": inputs,
        "point": point,
        "build": module.reset,
    }


def ablation(w, started):
    """Each arm differs in one thing from the first: the first of --bridges, at the recommended layer, on all train items. Fewer items are gone over more often, for equal steps."""
    kinds, train_items = w.args.bridges.split(","), w.split["train"]
    x = w.read(w.point)[:, 0]
    target = parameters(
        BRIDGES[kinds[0]]([tuple(x.shape[1:3])], [x.shape[3]], tuple(w.y.shape[1:3]), w.y.shape[3])
    )
    arms = {kinds[0]: arm(w, kinds[0], x)}
    groups = {"bridge": [kinds[0]], "point": [kinds[0]], "size": [kinds[0]], "samples": [kinds[0]]}

    def add(group, name, a):
        arms[name] = a
        groups[group].append(name)

    for kind in kinds[1:]:
        if kind == "lora":
            add("bridge", "lora", lora_arm(w))
        else:
            try:
                add("bridge", kind, arm(w, kind, x, target=target))
            except ValueError:  # a wide bridge cannot be as small; it is taken at its smallest
                add("bridge", kind, arm(w, kind, x, free={"width": 4}))
    if w.args.align:
        val = {
            p: r["linear_r2"]["val"]
            for p, r in load_yaml(w.args.align, "align")["layers"].items()
            if p in w.index["points"] and p not in ("pixels", w.point)
        }
        for p in sorted((p for p in val if p in with_grid(w.index)), key=val.get, reverse=True)[:2]:
            add("point", p, arm(w, kinds[0], w.read(p)[:, 0], point=p))
    for other, read in w.others:
        if other["size"] != w.index["size"]:
            add("size", f"{other['size']} px", arm(w, kinds[0], read(w.point)[:, 0], size=other["size"]))
    for f in FRACTIONS:
        few = train_items[: max(int(f * len(train_items)), w.how["batch"])]
        add("samples", f"{len(few)} items", arm(w, kinds[0], x, train=few))
    if w.init:
        a = arm(w, w.init["meta"]["bridge"], x, free=w.init["meta"]["free"])
        groups["init"] = ["from scratch", "from --init"]
        arms |= {"from scratch": a, "from --init": a | {"init": True}}
    trained = run_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: decoded(w, trained[name], a) for name, a in arms.items()} | controls(w)
    scores = scored(w, rows, {w.lpips_name: w.lpips, "ssim": ssim})
    base = scores[w.lpips_name]
    against = worse(
        w,
        base,
        {name: "from scratch" if name == "from --init" else kinds[0] for name in arms if name != kinds[0]},
    )
    table = {
        name: row_of(w, a, trained[name], {key: t[name] for key, t in scores.items()}, against.get(name))
        for name, a in arms.items()
    }
    groups = {group: names for group, names in groups.items() if len(names) > 1}
    # what the first arm is called in each
    first = {
        "bridge": kinds[0],
        "point": w.point,
        "size": f"{w.index['size']} px",
        "samples": f"{len(train_items)} items",
    }
    called = {
        group: {name: first.get(group, name) if name == kinds[0] else name for name in names}
        for group, names in groups.items()
    }
    # chosen on val
    best = {
        group: called[group][min(names, key=lambda name: sum(table[name]["val_loss"]))]
        for group, names in groups.items()
    }
    result = facts(w) | {
        "bridge": kinds[0],
        **{f"best_{group}": name for group, name in best.items()},
        **{f"{w.lpips_name}_{k}": base[k].mean() for k in ("vae", "mean_image")},
        "groups": groups,
        "arms": table,
    }
    result = conclude(
        w,
        result,
        started,
        {"vae": rows["vae"], **{k: rows[k] for k in arms}},
        (arms[kinds[0]], trained[kinds[0]][0][0]),
    )
    bars(
        w.out.with_suffix(".png"),
        {group: {words: table[name] for name, words in names.items()} for group, names in called.items()},
        w.lpips_name,
        {k: base[k].mean() for k in ("vae", "mean_image")},
        f"{result['model']} to {result['decoder']}: one thing changed at a time, {w.how['seeds']} seeds",
        ["vae", *arms],
    )
    return result


def bars(path, groups, measure, lines, title, names):
    """Points with their intervals, a panel for each group, and the same test pictures by every arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(14, 4 + 1.15 * (len(names) + 1)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[4, 1.15 * (len(names) + 1)])
    for axis, (group, arms) in zip(
        top.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups.items(), strict=True
    ):
        for k, row in enumerate(arms.values()):
            axis.errorbar(
                k,
                row[measure],
                [[row[measure] - row[f"{measure}_low"]], [row[f"{measure}_high"] - row[measure]]],
                fmt="o",
                color="C0" if k == 0 else "C1",
                capsize=4,
            )
        for k, (name, value) in enumerate(lines.items()):
            axis.axhline(
                value,
                color=f"C{k + 4}",
                ls=":",
                label={"vae": "the autoencoder's own", "mean_image": "the mean image"}.get(name, name),
            )
        axis.set_xticks(range(len(arms)), list(arms), rotation=40, ha="right", fontsize=8)
        axis.set(title=group, xlim=(-0.5, len(arms) - 0.5))
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
    axis.legend(fontsize=8)
    top.supylabel(f"{measure} (lower is better)", fontsize=9)
    top.suptitle(title, fontsize=11)
    strips(
        bottom,
        load_pt(path.with_suffix(".pt"), RESULT),
        names,
        "Test pictures through the frozen decoder, first seed",
    )
    figure.savefig(path, dpi=70)
    plt.close(figure)


# ---------------------------------------------------------------- does the model add to a spatial encoder?


def hybrid(w, started):
    """Fusion of a spatial encoder's tokens with the model's, against everything that could help in their place. It must beat the best of them."""
    if not w.spatial:
        refuse("--mode hybrid needs --spatial, features of a spatial encoder of the same pictures")
    index, read = w.spatial
    last = [p for p in with_grid(index) if p != "pixels"][-1]
    n = len(w.items)
    s, v = read(last)[:, 0], w.read(w.point)[:, 0]
    g = torch.Generator().manual_seed(w.seed)
    shuffled = torch.arange(n)
    for part in w.split.values():
        shuffled[part] = part[torch.randperm(len(part), generator=g)]
    second = {
        "fused": v,
        "zero": torch.zeros_like(v),
        "noise": torch.randn(v.shape, generator=g),
        "shuffled": v[shuffled],
        "twice": s,
    }
    if w.random:
        second["random"] = w.random(w.point)[:, 0]
    second["oracle"] = w.y
    arms = {name: arm(w, "fusion", s, x) for name, x in second.items()}
    size = parameters(arms["fused"]["build"]())
    arms |= {
        "spatial": arm(w, "mlp", s),
        "spatial_wide": arm(w, "mlp", s, target=size),
        "model": arm(w, "mlp", v, target=size),
        "model_twice": arm(w, "fusion", v, v),
    }
    trained = run_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: decoded(w, trained[name], a) for name, a in arms.items()} | controls(w)
    scores = scored(w, rows, {w.lpips_name: w.lpips, "ssim": ssim})
    scores["recon_spatial_iou"], runs = looked_at(w, rows)
    # what has not seen this item's tokens of the trained model
    rivals = [name for name in arms if name not in ("fused", "oracle", "model", "model_twice")]
    criteria = {}
    for key, table in scores.items():
        criteria[key] = criterion(
            table["fused"],
            {k: table[k] for k in (*rivals, "mean_image")},
            w.sources,
            ceiling=table["vae"].mean().item(),
            better=better(key),
            seed=w.seed,
            layer=w.point,
            options_searched=len(rivals),
            controls={k: table[k].mean() for k in ("model", "model_twice", "oracle")},
        )
    maps = detections(
        w, trained, arms, [name for name in ("fused", "zero", "noise", "twice", "shuffled") if name in arms]
    )
    criteria["fused_map50"] = ap_criterion(
        maps["fused"],
        {k: m for k, m in maps.items() if k != "fused"},
        w.sources,
        layer=w.point,
        options_searched=len(maps) - 1,
    )
    errors = scores[w.lpips_name]
    # the better of a bridge at every place and of one with attention, which the fused tokens have too
    alone = min(("model", "model_twice"), key=lambda k: errors[k].mean())
    adds = criteria[w.lpips_name]
    repairs = paired_test(errors[alone], errors["fused"], w.sources, seed=w.seed)
    answer = {
        "model_adds": says(adds, adds["ceiling"] - adds["floor"]),
        "spatial_adds": says(repairs, errors["vae"].mean() - errors[alone].mean()),
    }
    table = {
        name: row_of(w, a, trained[name], {key: t[name] for key, t in scores.items()})
        | {"recon_map50": runs[name]["ap"].mean()}
        for name, a in arms.items()
    }
    for name, runs_of in maps.items():
        table[name]["fused_map50"] = runs_of["ap"].mean()
    result = facts(w) | {"spatial": index["model"], "spatial_layer": last, **answer}
    for name, test in (("model_adds", adds), ("spatial_adds", repairs)):
        result |= {f"{name}_{k}": test[k] for k in ("gain", "gain_low", "gain_high", "p")}
    result |= {
        "rival": adds["floor_name"],
        "model_alone": alone,
        **overhead(w),
        **headline(criteria, w.lpips_name),
        "criteria": criteria,
        "arms": table,
    }
    names = {
        "mean_image": "the mean image",
        "fused": "spatial + model",
        "spatial": "spatial alone",
        "spatial_wide": "spatial alone, wider",
        "twice": "spatial + itself",
        "zero": "spatial + zeros",
        "noise": "spatial + noise",
        "shuffled": "spatial + another item's",
        "random": "spatial + untrained model",
        "model": "model alone",
        "model_twice": "model + itself",
        "oracle": "spatial + true latents",
    }
    result = conclude(
        w,
        result,
        started,
        {"vae": rows["vae"], **{k: rows[k] for k in arms}},
        (arms["fused"], trained["fused"][0][0]),
    )
    bars(
        w.out.with_suffix(".png"),
        {
            f"{index['model']} {last} + {w.index['model']} {w.point}": {
                words: table[k] for k, words in names.items() if k in table
            }
        },
        w.lpips_name,
        {k: scores[w.lpips_name][k].mean() for k in ("vae", "mean_image")},
        f"Does {w.index['model']} add to {index['model']}? {answer['model_adds']}: {adds['gain']:+.4f} "
        f"[{adds['gain_low']:+.4f}, {adds['gain_high']:+.4f}] over the best control ({names[adds['floor_name']]})",
        ["vae", *arms],
    )
    return result


def detections(w, trained, arms, names):
    """{name: ap runs} of a set probe (five seeds) on the fused tokens of each arm's first seed."""
    _, truth, classes = box_truth(w.items)
    out = {}
    for name in names:
        with torch.inference_mode():
            x = torch.cat(
                [
                    trained[name][0][0].tokens(*arms[name]["inputs"](p)).cpu()
                    for p in torch.arange(len(w.items)).split(64)
                ]
            )
        predict = train_set_probe(
            shrink(x).clone(),
            (min(x.shape[1], 6), min(x.shape[2], 6)),
            truth,
            len(classes),
            w.split["train"],
            w.split["val"],
            seed=w.seed,
        )
        out[name] = ap_runs(predict, shrink(x), truth, w.split["test"], sources=w.sources)
    return out


def says(test, room):
    """yes where the gain excludes zero, no where it can be no more than a tenth of what is left to gain, else inconclusive."""
    return "yes" if test["gain_low"] > 0 else "no" if test["gain_high"] < 0.1 * abs(room) else "inconclusive"


def overhead(w):
    """The second encoder's seconds an item over the model's; in one run, if both folders were written by extract.py --model a+b."""
    a, b = w.spatial[0].get("seconds_per_item"), w.index.get("seconds_per_item")
    if not (a and b):
        return {
            "latency_overhead": None,
            "latency_reason": "layers were streamed, which times no single pass",
        }
    return {
        "latency_overhead": a / b,
        "latency_in_one_run": Path(w.args.spatial).parent == Path(w.args.features).parent,
    }


# ---------------------------------------------------------------- an adapter for the video transformer


def film_world(args):
    """Everything that is checked before a model is loaded, then clips, tokens and the frozen video model."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.index, w.read = load_features(args.features)
    items, w.data = load_items(w.index["data_path"])
    w.items, w.ids = join(items, w.index, args.features), w.index["ids"]
    w.split = split_indices(w.items, args.features)
    w.point = checked_point(args, w.index, args.features)
    entry = find_model(args.video)
    if entry["kind"] != "video":
        refuse(
            f"--video {args.video} is a {entry['kind']}; a video pipeline is needed, such as tiny-ltx or ltx-video"
        )
    args.frames = frames = args.frames or entry.get("frames", 9)
    size = args.size or entry["clip"]
    check_shape(frames, size, geometry(entry), entry["name"])
    if short := [i for i in w.items if len(i.get("frames", ())) < frames]:
        refuse(
            f"{w.index['data_path']}: {short[0]['id']!r} has {len(short[0].get('frames', ()))} frames where {frames} are wanted; give --frames fewer, or a folder of clips"
        )
    if not all(caption(i) for i in w.items) and (args.loss or SETTINGS["video"]["loss"]) == "words":
        refuse(f"{w.index['data_path']} has clips without text, which --loss words learns; use --loss flow")
    w.how, w.init = settings(args, len(w.split["train"])), load_pt(args.init, ADAPTER) if args.init else None
    w.kind = args.bridges.split(",")[0]
    if w.kind not in ("queries", "perceiver"):
        refuse(
            f"--bridges {w.kind} keeps a picture's places, and a prompt has none; --mode video takes queries or perceiver"
        )
    w.out = Path(args.out or Path(args.features).parent / "adapt-video.yaml")
    check_writable(w.out)
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    # in fp16 the gradient through the transformer is lost
    w.dtype = torch.float32 if w.dtype == torch.float16 and w.how["loss"] == "flow" else w.dtype
    w.entry, w.pipeline = entry, load_video_pipeline(entry, w.device, w.dtype)[0]
    for part in (w.pipeline.transformer, w.pipeline.text_encoder, w.pipeline.vae):
        part.requires_grad_(False)
    w.films = torch.stack([frames_of(i, size)[(len(i["frames"]) - frames) // 2 :][:frames] for i in w.items])
    return w


@torch.inference_mode()
def spoken(w, prompts, length):
    """(embeddings [n, length, C], mask [n, length]) of prompts by the text encoder, cut to `length` positions."""
    out, masks = [], []
    for k in range(0, len(prompts), 64):
        x, mask, *_ = w.pipeline.encode_prompt(
            prompts[k : k + 64], do_classifier_free_guidance=False, device=w.device
        )
        out.append(x[:, :length].float().cpu())
        masks.append(mask[:, :length].cpu())
    return torch.cat(out), torch.cat(masks)


def velocity(w, x, sigma, embeds, mask):
    """The transformer's velocity [n, t, h, w, C] at noised latents x of the same shape; sigma [n, t], 0 for frames that are given; embeds [n, L, C'] in the place of a
    prompt's, and their mask [n, L]. Positions are those of LTXConditionPipeline."""
    n, t, h, wide, _ = x.shape
    transformer = w.pipeline.transformer
    r = w.pipeline.vae.temporal_compression_ratio
    side = w.pipeline.vae.spatial_compression_ratio
    axes = (
        (torch.arange(t, device=x.device) * r + 1 - r).clamp(min=0) / 25,
        torch.arange(h, device=x.device) * float(side),
        torch.arange(wide, device=x.device) * float(side),
    )
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).expand(n, -1, -1)
    out = transformer(
        x.flatten(1, 3).to(w.dtype),
        embeds.to(w.dtype),
        1000 * sigma.repeat_interleave(h * wide, 1),
        mask.to(x.device, w.dtype),
        video_coords=coordinates,
        return_dict=False,
    )[0]
    return out.float().unflatten(1, (t, h, wide))


def flow_error(w, clean, embeds, mask, g, part=slice(None)):
    """Squared error [k] of the velocity on all but the first latent frame, which is given (rectified flow, Liu et al. 2022), of those clips of clean [n, t, h, w, C] that `part` names.
    High noise, where the film is decided, is drawn more often."""
    noise = torch.randn(clean.shape, generator=g)[part]
    level = (1 - 0.95 * torch.rand(len(clean), generator=g) ** 2)[part]
    clean = clean[part]
    sigma = level[:, None] * (torch.arange(clean.shape[1]) > 0)
    s = sigma[:, :, None, None, None]
    out = velocity(w, ((1 - s) * clean + s * noise).to(w.device), sigma.to(w.device), embeds, mask)
    return (out[:, 1:] - (noise - clean)[:, 1:].to(w.device)).square().mean((1, 2, 3, 4))


def video(args, started):
    """An adapter from a clip's tokens to what the video transformer takes as a prompt."""
    w = film_world(args)
    x = w.read(w.point).flatten(1, 2)  # [n, t h, w, D]: a clip's time steps one under another
    moments = moments_of(x, w.split["train"])
    x = (x - moments[0]) / moments[1]
    kind = w.kind
    clean, prompts = encode_films(w.pipeline.vae, w.films, 8), [caption(i) for i in w.items]
    length = int(w.pipeline.tokenizer(prompts, padding=True, return_tensors="pt").attention_mask.sum(1).max())
    w.y, said = spoken(w, prompts, length)
    # behind its end a prompt begins anew: what stands there has no mask to hide it
    again = torch.arange(length) % said.sum(1, keepdim=True).long()
    w.y = w.y.gather(1, again[:, :, None].expand_as(w.y))
    grid = tuple(w.y.shape[1:2])
    a = {
        "bridge": kind,
        "shape": ([tuple(x.shape[1:3])], [x.shape[3]], grid, w.y.shape[2]),
        "free": {"width": args.width} if args.width else {},
        "train": w.split["train"],
        "moments": [moments],
        "inputs": lambda items: [x[items].to(w.device)],
    }
    # Standardised targets: an embedding's channels differ in spread by orders of magnitude, and the small
    # ones tell words apart as well as the large.
    mean, std = moments_of(w.y, w.split["train"])

    def outputs(module, items):
        return module(*a["inputs"](items)) * std.to(w.device) + mean.to(w.device)

    def loss_of(module, items, g, part, warm):
        if w.how["loss"] == "flow" and not warm:
            given = outputs(module, items[part])
            return flow_error(w, clean[items], given, given.new_ones(given.shape[:2]), g, part).mean()
        return (
            (module(*a["inputs"](items[part])) - ((w.y[items[part]] - mean) / std).to(w.device))
            .square()
            .mean()
        )

    def build():
        module = BRIDGES[kind](*a["shape"], **a["free"])
        if w.init:
            a["kept"] = start_from(module, w.init["weights"], args.init)
        return module

    folder = w.out.with_suffix(".training")
    state = str(folder / digest(*moments, mean, std))
    trained = [
        train(
            build,
            loss_of,
            w.split,
            w.seed + s,
            w.how | {"point": w.point, "of": w.index["model"]},
            w.device,
            Path(f"{state}-{w.seed + s}.pt"),
            w.ids,
        )
        for s in tqdm(range(w.how["seeds"]), desc="adapter", unit="seed")
    ]
    if ranks()[0]:
        return {}
    with torch.inference_mode():
        # [S, n, L, C]
        made = torch.stack(
            [
                torch.cat([outputs(m, p).float().cpu() for p in torch.arange(len(x)).split(64)])
                for m, _ in trained
            ]
        )
    test, sources = w.split["test"], [w.items[i]["source"] for i in w.split["test"]]
    result = {
        "stage": "adapt",
        "mode": "video",
        "model": w.index["model"],
        "decoder": w.entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.entry["weights"],
        "data": w.index["data"],
        "data_name": w.data["name"],
        "layer": w.point,
        "bridge": kind,
        "loss": w.how["loss"],
        "parameters": parameters(trained[0][0]),
        "seen": "the whole clip: what the adapter says is an upper bound, no prediction",
    }
    spread = (w.y[test] - mean) / std
    error = torch.stack([(((m[test] - mean) / std - spread).square().mean((1, 2))) for m in made])
    floors = {
        "mean": spread.square().mean((1, 2))[None],
        "other_clip": torch.stack(
            [(((m[test.roll(1)] - mean) / std - spread).square().mean((1, 2))) for m in made]
        ),
    }
    criteria = {
        "embedding_error": criterion(
            error,
            floors,
            sources,
            ceiling=0.0,
            better="lower",
            seed=w.seed,
            layer=w.point,
            options_searched=1,
        )
    }
    (nothing, empty), all_of = spoken(w, [""], w.y.shape[1]), torch.ones(made.shape[1:3])
    told = {
        "adapter": (made, all_of),
        "text": (w.y[None], said),
        "empty": (nothing.expand(1, len(x), -1, -1), empty.expand(len(x), -1)),
        "other_clip": (made[:, torch.arange(len(x)).roll(1)], all_of),
    }
    errors = {}
    for name, (embeds, mask) in told.items():  # the same noise for all of them, drawn four times
        with torch.inference_mode():
            errors[name] = (
                torch.stack(
                    [
                        torch.cat(
                            [
                                flow_error(
                                    w,
                                    clean[p],
                                    e[p].to(w.device),
                                    mask[p],
                                    torch.Generator().manual_seed(1000 * k + int(p[0])),
                                ).cpu()
                                for p in test.split(16)
                            ]
                        )
                        for e in embeds
                        for k in range(4)
                    ]
                )
                .unflatten(0, (len(embeds), 4))
                .mean(1)
            )
    criteria["flow_error"] = criterion(
        errors["adapter"],
        {k: errors[k] for k in ("empty", "other_clip")},
        sources,
        ceiling=errors["text"].mean().item(),
        better="lower",
        seed=w.seed,
        layer=w.point,
        options_searched=1,
    )
    result |= headline(criteria, "lpips") | {
        "criteria": criteria,
        "seeds": [
            {"val_loss": r["val"], "epoch": r["epoch"], "seconds_per_step": r["seconds_per_step"]}
            for _, r in trained
        ],
    }
    result |= {"init": args.init, "kept_parameters": a["kept"][0]} if w.init else {}
    args.out = str(w.out)
    result["run"] = run_info(
        args,
        started,
        script="adapt.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    meta = {
        "into": "prompt",
        "model": w.index["model"],
        "point": w.point,
        "decoder": w.entry["name"],
        "weights": w.index["weights"],
        "frames": args.frames,
        "data_path": w.index["data_path"],
    }
    save_pt(
        w.out.parent / "conditioning-prompt.pt",
        RESULT,
        [i["id"] for i in w.items],
        meta,
        embeds=made[0].half(),
    )
    write_adapter(
        w.out.parent / "adapter-prompt.pt", trained[0][0], a, meta | {"size": w.index["size"]}, (mean, std)
    )
    save_yaml(w.out, result)
    shutil.rmtree(folder, ignore_errors=True)
    say(result)
    return result


def apply(args, started):
    """What a trained adapter says of other clips: conditioning-prompt.pt, which predict.py --adapter takes."""
    use, meta = load_adapter(args.apply)
    if meta["into"] != "prompt":
        refuse(
            f"{args.apply} gives {meta['into']}, and no decoder is given these in the place of a prompt; take an adapter of --mode video"
        )
    index, read = load_features(args.features)
    if meta["point"] not in index["points"]:
        refuse(
            f"{args.apply} reads {meta['point']}, which {args.features} does not hold; its points are {', '.join(index['points'])}"
        )
    if index["model"] != meta["model"]:
        refuse(
            f"{args.apply} was trained on {meta['model']}, and {args.features} is of {index['model']}, whose tokens mean other things; start from it with --init instead"
        )
    x = read(meta["point"])
    x = x.flatten(1, 2)
    if list(x.shape[1:]) != [*meta["grids"][0], meta["dims"][0]]:
        refuse(
            f"{args.apply} reads tokens of {meta['grids'][0]} places and width {meta['dims'][0]}, and {args.features} holds {list(x.shape[1:])} at {meta['point']}; "
            "extract with the same model, size and frames, or train on these with --init"
        )
    out = Path(args.out or Path(args.features).parent / "conditioning-prompt.pt")
    check_writable(out)
    given = torch.cat([use(part) for part in x.split(64)]).half()
    meta = meta | {"model": index["model"], "weights": index["weights"], "data_path": index["data_path"]}
    save_pt(out, RESULT, index["ids"], meta, embeds=given)
    result = {
        "stage": "adapt",
        "mode": "apply",
        "adapter": args.apply,
        **{k: meta[k] for k in ("model", "decoder", "point")},
        "items": len(given),
        "out": str(out),
    }
    say(result)
    return result


# ---------------------------------------------------------------- words: a language model that reads a video model's embeddings

# what every Llama and Qwen calls them
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NAMED = 500  # questions about lists, by which forgetting is measured


class Reader(torch.nn.Module):
    """A frozen language model under LoRA, and the adapter that makes its soft tokens. There is one copy of the model, whatever the number of seeds."""

    def __init__(self, model, tokenizer, soft):
        super().__init__()
        self.model, self.tokenizer, self.soft = model, tokenizer, soft

    def forward(self, prompts, embeddings, answers):
        """Mean loss of the answers (text) to prompts beside embeddings [n, 512]."""
        return mean_answer_loss(self.model, self.tokenizer, prompts, answers, self.soft(embeddings))


def write_seed(folder, reader, record, how):
    """seed<i>/, complete or absent: LoRA as peft reads it, soft.safetensors, and seed.yaml with how both were trained."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    reader.model.peft_config["default"].save_pretrained(part)
    weights = get_peft_model_state_dict(reader.model, save_embedding_layers=False)
    save_bytes(
        part / "adapter_model.safetensors",
        save({k: v.detach().cpu().contiguous() for k, v in weights.items()}),
    )
    save_soft(part / "soft.safetensors", reader.soft, language=how["language"])
    save_yaml(
        part / "seed.yaml",
        {
            "stage": "adapt",
            "mode": "words",
            **{k: record[k] for k in ("val", "epoch", "steps", "seconds_per_step", "losses")},
            "how": how,
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def written_seed(folder, reader, how):
    """The record of a seed that was trained in the same way before, its weights now in `reader`; None where there is none."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / "seed.yaml").is_file() or (record := load_yaml(folder / "seed.yaml", "adapt"))[
        "how"
    ] != plain(how):
        return None
    set_peft_model_state_dict(reader.model, load_file(folder / "adapter_model.safetensors"))
    reader.soft.load_state_dict(load_file(folder / "soft.safetensors"))
    return record


def word_world(args):
    """Everything that is checked before a model is loaded: items, embeddings, and turns (kind, question, answer, row of its embedding, number of its item)."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.entry = find_model(args.language)
    if w.entry["kind"] != "language":
        refuse(
            f"--language {args.language} is a {w.entry['kind']}; a language model is needed, such as tiny-words or tinyllama"
        )
    w.items, w.data = load_items(args.data)
    if "tracks" not in w.items[0]:
        refuse(f"{args.data} says nothing of tracks; make it with data.py trajectories")
    w.tracks = load_tracks(args.embeddings, w.items)
    parts = split_indices(w.items, args.data)
    rows = {name: k for k, name in enumerate(w.tracks["ids"])}
    w.turns = []
    for k, item in enumerate(w.items):
        asked = [
            (kind, question, answer, name)
            for (question, answer), (kind, name) in zip(item["turns"], item["asked"], strict=True)
        ]
        asked += [("describe", TELL_OF.format(name), about(item, name), name) for name in item["names"]]
        for kind, question, answer, name in [
            *asked,
            ("absent", TELL_OF.format(item["absent"]), f"there is no {item['absent']}", item["absent"]),
        ]:
            if track_id(item, name) not in rows:
                refuse(
                    f"{args.embeddings} lacks {track_id(item, name)!r}, of which {args.data} asks; write it again from these data"
                )
            w.turns.append((kind, question, answer, rows[track_id(item, name)], k))
    where = {int(k): part for part, numbers in parts.items() for k in numbers}
    w.split = {
        part: torch.tensor([i for i, turn in enumerate(w.turns) if where[turn[4]] == part]) for part in parts
    }
    if min(args.rank, args.soft) < 1:
        refuse(f"--rank {args.rank} and --soft {args.soft} leave nothing to train; give 1 or more")
    w.how = settings(args, len(w.split["train"])) | {
        "rank": args.rank,
        "soft": args.soft,
        "inner": args.width or 0,
    }
    w.out = Path(args.out or Path(args.embeddings).parent / "words")
    check_writable(w.out / "adapt-words.yaml")
    return w


def by_kind(turns, pick, train, scores, sources, seed):
    """{kind: accuracy, its interval, the share of the commonest answer of the kind in train, n} of the turns `pick`; scores [seeds, n]."""
    table = {}
    for kind in dict.fromkeys(turns[i][0] for i in pick):
        own = [j for j, i in enumerate(pick) if turns[i][0] == kind]
        known_answers = [turns[i][2] for i in train if turns[i][0] == kind]
        commonest = max(sorted(set(known_answers)), key=known_answers.count)
        accuracy, low, high = bootstrap(scores[:, own], [sources[j] for j in own], seed=seed)
        table[kind] = {
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "floor": sum(right(commonest, turns[pick[j]][2]) for j in own) / len(own),
            "commonest": commonest,
            "n": len(own),
        }
    return table


def words(w, started):
    """Train adapter and LoRA, seed by seed, answer the val questions with each, and the questions about lists with and without."""
    from peft import LoraConfig, get_peft_model

    args = w.args
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    w.dtype = torch.float32 if w.dtype == torch.float16 else w.dtype  # in fp16 small gradients are lost
    model, tokenizer = load_language(w.entry, w.device, w.dtype)
    if w.device.type == "cpu":
        model.set_attn_implementation("eager")  # half the time of sdpa's gradient
    lists = [naming(np.random.default_rng([w.seed, k])) for k in range(NAMED)]
    list_prompts = [word_prompt(tokenizer, question, context) for context, question, _ in lists]

    def lists_named():
        return torch.tensor(
            [
                float(named(said, x[2]))
                for said, x in zip(answered(model, tokenizer, list_prompts), lists, strict=True)
            ]
        )

    untouched, tokens = lists_named(), model.get_input_embeddings()
    w.how |= {
        "language": w.entry["name"],
        "of": digest(w.tracks["embedding"], tokens.weight[:64].detach().cpu()),
    }
    # of a folder of ours no path of this machine
    model.name_or_path = MODELS.get(w.entry["name"], w.entry)["path"]
    model = get_peft_model(
        model.requires_grad_(False),
        LoraConfig(task_type="CAUSAL_LM", r=args.rank, lora_alpha=2 * args.rank, target_modules=LORA),
    )
    prompts = [word_prompt(tokenizer, question) for _, question, *_ in w.turns]
    embeddings = w.tracks["embedding"].to(w.device)

    def build():
        return reset_lora(
            Reader(
                model,
                tokenizer,
                Soft(
                    embeddings.shape[1],
                    tokens.embedding_dim,
                    args.soft,
                    args.width or 0,
                    tokens.weight.std().item(),
                ),
            )
        )

    def loss_of(reader, items, g, part, warm):
        items = items[part].tolist()
        return reader(
            [prompts[i] for i in items],
            embeddings[[w.turns[i][3] for i in items]],
            [w.turns[i][2] for i in items],
        )

    val = w.split["val"].tolist()
    records = []
    scores = []
    kept = []
    names = [f"{w.items[turn[4]]['id']}: {turn[1]}" for turn in w.turns]
    for s in tqdm(range(w.how["seeds"]), desc="words", unit="seed"):
        how, folder = w.how | {"seed": w.seed + s}, w.out / f"seed{s}"
        reader = build().to(w.device).eval()
        if not (record := written_seed(folder, reader, how)):
            reader, record = train(
                build, loss_of, w.split, w.seed + s, how, w.device, w.out / "training" / f"{s}.pt", names
            )
            if ranks()[0] == 0:
                write_seed(folder, reader, record, how)
        records.append(record)
        if ranks()[0] == 0:
            with torch.inference_mode():
                soft = reader.soft(embeddings[[w.turns[i][3] for i in val]])
            scores.append(
                [
                    float(right(a, w.turns[i][2]))
                    for a, i in zip(
                        answered(model, tokenizer, [prompts[i] for i in val], soft), val, strict=True
                    )
                ]
            )
            kept.append(lists_named())
    if ranks()[0]:
        return {}
    scores = torch.tensor(scores)
    kept = torch.stack(kept)
    sources = [w.items[w.turns[i][4]]["source"] for i in val]
    table = by_kind(w.turns, val, w.split["train"].tolist(), scores, sources, w.seed)
    # a description is right only if every word of it is
    asked = [j for j, i in enumerate(val) if w.turns[i][0] != "describe"]
    floor = torch.tensor(
        [float(right(table[w.turns[val[j]][0]]["commonest"], w.turns[val[j]][2])) for j in asked]
    )
    criteria = {
        "accuracy": criterion(
            scores[:, asked], {"commonest": floor}, [sources[j] for j in asked], seed=w.seed
        )
    }
    forgotten = paired_test(untouched, kept, range(NAMED), seed=w.seed)
    named_with = bootstrap(kept, range(NAMED), seed=w.seed)
    every = max(len(records[0]["losses"]) // 40, 1)
    lora, soft = (sum(p.numel() for p in learned(part).values()) for part in (model, reader.soft))
    result = {
        "stage": "adapt",
        "mode": "words",
        "language": w.entry["name"],
        "model": w.tracks["meta"].get("model"),
        "weights": w.entry["weights"],
        "model_weights": w.tracks["meta"].get("weights"),
        "threshold": w.tracks["meta"].get("threshold", 0.5),
        "data": w.data["data"],
        "data_name": w.data["name"],
        "split": "val",
        "accuracy_seeds": scores[:, asked].mean(1).tolist(),
        **headline(criteria, "lpips"),
        "describe_exact": table["describe"]["accuracy"],
        "forgetting": forgotten["gain"],
        "forgetting_low": forgotten["gain_low"],
        "forgetting_high": forgotten["gain_high"],
        "forgetting_p": forgotten["p"],
        "naming_without": untouched.mean(),
        "naming_with": named_with[0],
        "naming_with_low": named_with[1],
        "naming_with_high": named_with[2],
        "parameters": lora + soft,
        "lora_parameters": lora,
        "soft_parameters": soft,
        "parameters_of_the_model": sum(p.numel() for p in model.parameters()) - lora,
        "seconds_per_seed": sum(r["seconds_per_step"] * r["steps"] for r in records) / len(records),
        "peak_memory_bytes": torch.cuda.max_memory_allocated()
        if w.device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kinds": table,
        "criteria": criteria,
        "seeds": [
            {
                "val_loss": r["val"],
                "epoch": r["epoch"],
                "steps": r["steps"],
                "seconds_per_step": r["seconds_per_step"],
            }
            for r in records
        ],
        "loss": {
            k: sum(r["losses"][k - every : k][j] for r in records for j in range(every))
            / every
            / len(records)
            for k in range(every, len(records[0]["losses"]) + 1, every)
        },
    }
    args.out = str(w.out)
    result["run"] = run_info(
        args,
        started,
        script="adapt.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    save_yaml(w.out / "adapt-words.yaml", result)
    shutil.rmtree(w.out / "training", ignore_errors=True)
    say(result)
    return result


# ---------------------------------------------------------------- tune: a vision-language model on one's own pictures and clips

# those whose processor brings a chat template
TUNABLE = "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl"
PLACE = re.compile(r"<(image|video)>")
# lessons of test, and of --keep, that are scored at most, drawn once; of val, after every epoch, half as many
SHOWN = 300
# What a card asks for, where the command line does not say: a T4 computes in fp16 (choose_device), for it has
# no bf16 units, and its attention is sdpa's, for flash needs a newer one.
PRESETS = {
    "t4": {
        "method": "qlora",
        "batch": 8,
        "accumulate": 8,
        "checkpoint": True,
        "adam8bit": True,
        "max_pixels": 448 * 448,
        "max_tokens": 1024,
    },
    "a100": {
        "method": "lora",
        "batch": 16,
        "accumulate": 4,
        "checkpoint": True,
        "max_pixels": 1024 * 1024,
        "max_tokens": 4096,
    },
}
# of learning (Dettmers et al. 2023, table 9, for the first two)
RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 1e-5}
BOX = re.compile(r'("bbox_2d"\s*:\s*\[)([^\[\]]*)(\])')
# what a box is said in: pixels of the frame, fractions of it, or else thousandths
SCALES = {"qwen2_5_vl": None, **dict.fromkeys(("llava", "llava_next", "llava_onevision"), (1, 1))}
# turns first ... last - 1 of an item, asked in one conversation; its tokens, and how many of them are
# answers'
Lesson = namedtuple("Lesson", "item first last tokens scored")


def rescaled(text, before, after):
    """Boxes of `text` ("bbox_2d": [x1, y1, x2, y2]) in a frame of before = (width, height), as they lie in one of `after`; fractions, where that is (1, 1), with three digits."""

    def moved(match):
        try:
            numbers = [float(n) for n in match[2].split(",")]
        except ValueError:
            return match[0]
        scale = [a / b for a, b in zip(after, before, strict=True)] * 2
        said = [
            f"{n * s:.3f}" if after == (1, 1) else str(round(n * s))
            for n, s in zip(numbers, scale, strict=False)
        ]
        return f"{match[1]}{', '.join(said)}{match[3]}" if len(numbers) == 4 else match[0]

    return BOX.sub(moved, text)


def conversation(turns, system, media, placed):
    """(messages of a chat template, how many of the media each question brings): they stand where the questions' placeholders say, if `placed`, else before the first.

    media: of each what stands in a message for it, such as [{"type": "image"}]. Raises ValueError where there are more placeholders than media.
    """
    left = list(media)
    brings = []
    messages = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    for k, (question, answer) in enumerate(turns):
        texts = PLACE.split(question)[::2] if placed else [question]
        n = len(texts) - 1 if placed else 0 if k else len(left)
        if n > len(left):
            raise ValueError(
                f"its questions name more pictures or videos than the {len(media)} that it holds"
            )
        here, left = left[:n], left[n:]
        between = (
            zip(texts, [*here, []], strict=True) if placed else [("", x) for x in here] + [(question, [])]
        )
        content = [
            part
            for text, medium in between
            for part in ([{"type": "text", "text": text.strip()}] if text.strip() else []) + medium
        ]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]},
        ]
        brings.append(n)
    return messages, brings


def pieces(processor, messages):
    """[(what is put to the model, what it is to answer with the end of its turn)] as the chat template writes it; what it writes behind an answer's end belongs to the next question."""
    done, found, tokenizer = "", [], processor.tokenizer
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = processor.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=True)
        after = processor.apply_chat_template(messages[: k + 1], tokenize=False)
        said = message["content"][0]["text"]
        start = after.find(said, len(before))
        if not (after.startswith(before) and before.startswith(done) and start >= 0):
            raise ValueError("its chat template does not begin an answer as it asks for one")
        end = after[start + len(said) :].rstrip()
        found.append((before[len(done) :], after[len(before) : start] + said + (end or tokenizer.eos_token)))
        done = after[: start + len(said)] + end
    return found


def continued(tokenizer, before, piece):
    """Token ids of `piece` as it continues `before`: by themselves words may begin otherwise (SentencePiece)."""
    start, whole = (tokenizer(text, add_special_tokens=False).input_ids for text in (before, before + piece))
    return (
        whole[len(start) :]
        if whole[: len(start)] == start
        else tokenizer(piece, add_special_tokens=False).input_ids
    )


def encoded_of(item):
    """The files of an item's pictures, in their order; none where it is words alone."""
    return item.get("album") or ([item["encoded"]] if "encoded" in item else [])


class Reading:
    """What a model reads of an item, by its own processor: every question as at inference, and behind it the tokens of the answer, which alone carry loss."""

    def __init__(self, processor, kind, pixels):
        self.processor, self.tokenizer, self.kind = processor, processor.tokenizer, kind
        self.as_video, self.pixels = kind.startswith("qwen"), pixels  # (of a picture, of a frame of a clip)
        tower = processor.image_processor
        self.token = tower.patch_size * tower.merge_size if self.as_video else None
        self.extra = functools.lru_cache(4096)(self.extra_of)

    def frame(self, width, height, clip):
        """The processor's frame of a picture: its size, where that is the library's affair."""
        return fitted(width, height, self.token, self.pixels[clip]) if self.token else (width, height)

    def sizes(self, item):
        """(T, width, height) of each picture or clip, in the processor's frame, and the (width, height) that boxes in it are said in."""
        from PIL import Image

        own = (
            [(len(item["frames"]), *reversed(item["frames"].shape[1:3]))]
            if "frames" in item
            else [(1, *Image.open(io.BytesIO(x.numpy().tobytes())).size) for x in encoded_of(item)]
        )
        # a clip is squashed
        return tuple((t, *self.frame(w, h, t > 1)) for t, w, h in own), [
            (item.get("width", w), item.get("height", h)) if "frames" in item else (w, h) for _, w, h in own
        ]

    def said(self, item, first, last):
        """(messages of these turns, boxes as the model says them; the number of media that each brings; sizes of all media)."""
        sizes, own = self.sizes(item)
        turns = item["turns"][first:last]
        if sizes:
            owners = [number or 0 for number in spoken_of(item["turns"], len(sizes))[first:last]]
            turns = [
                [rescaled(text, own[k], SCALES.get(self.kind, (1000, 1000)) or sizes[k][1:]) for text in turn]
                for turn, k in zip(turns, owners, strict=True)
            ]
        kinds = [
            [{"type": "video"}] if self.as_video and t > 1 else [{"type": "image"}] * t for t, *_ in sizes
        ]
        placed = any(PLACE.search(question) for question, _ in (item["turns"] if item.get("chat") else turns))
        return *conversation(turns, item.get("system"), kinds, placed), sizes

    def processed(self, text, media, fps=RATE, **more):
        """The processor's output for one text with media, uint8 [T,H,W,3] each, whose size it leaves as it is if it leaves any."""
        films = [m for m in media if self.as_video and len(m) > 1]
        pictures = [p for m in media for p in m if not self.as_video or len(m) == 1]
        size = (
            {"size": {"shortest_edge": 1, "longest_edge": max(m.shape[:3].numel() for m in media)}}
            if self.as_video
            else {}
        )
        if pictures:
            more |= {
                "images": [p.permute(2, 0, 1) for p in pictures],
                "images_kwargs": size | ({"crop_to_patches": False} if self.kind == "internvl" else {}),
            }
        if films:
            more |= {
                "videos": [f.permute(0, 3, 1, 2) for f in films],
                "videos_kwargs": {"do_sample_frames": False, "cap_pixels_per_frame": False, **size},
                "video_metadata": [
                    {"fps": min(fps, RATE), "total_num_frames": len(f), "frames_indices": list(range(len(f)))}
                    for f in films
                ],
            }
        return self.processor(text=[text], return_tensors="pt", **more)

    def extra_of(self, size):
        """Tokens that a medium of this size, (T, width, height), takes beyond its placeholder in the text."""
        t, w, h = size
        content = [{"type": "video"}] if self.as_video and t > 1 else [{"type": "image"}] * t
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self.processed(text, [torch.zeros(t, h, w, 3, dtype=torch.uint8)])["input_ids"].shape[1] - len(
            self.tokenizer(text).input_ids
        )

    def lessons(self, item, number, most=None):
        """The item's lessons, with at most so many tokens: what is too long loses its last turns, whole, and with them what they show; one whose first turn is too long is left out."""
        whole, found = bool(item.get("chat")), []
        for first in [0] if whole else range(len(item["turns"])):
            messages, brings, sizes = self.said(item, first, len(item["turns"]) if whole else first + 1)
            tokens = scored = last = shown = 0
            for k, ((prompt, answer), n) in enumerate(
                zip(pieces(self.processor, messages), brings, strict=True)
            ):
                said = len(self.tokenizer(answer, add_special_tokens=False).input_ids)
                tokens += (
                    len(self.tokenizer(prompt, add_special_tokens=not k).input_ids)
                    + said
                    + sum(map(self.extra, sizes[shown : shown + n]))
                )
                if most and tokens > most:
                    break
                last, scored, shown = first + k + 1, scored + said, shown + n
                kept = tokens
            if last:
                found.append(Lesson(number, first, last, kept, scored))
        return found

    def __call__(self, item, first, last):
        """{input_ids, labels (-100 but for answers), turn (of which answer, from 1), mm_token_type_ids} as lists, and the processor's tensors beside them."""
        messages, brings, sizes = self.said(item, first, last)
        whole = (
            [item["frames"]] if "frames" in item else [frames_of({"encoded": x}) for x in encoded_of(item)]
        )
        media = [
            frames_of({"frames": x}, self.token and (self.token, self.pixels[len(x) > 1])) for x in whole
        ]
        ids = []
        labels = []
        turn = []
        kinds = []
        beside = {}
        done = ""
        for k, ((prompt, answer), n) in enumerate(
            zip(pieces(self.processor, messages), brings, strict=True), 1
        ):
            given = (
                dict(
                    self.processed(
                        prompt,
                        media[:n],
                        item.get("fps", RATE),
                        **({"add_special_tokens": False} if k > 1 else {}),
                    )
                )
                if n
                else {}
            )
            own = (
                given.pop("input_ids")[0].tolist()
                if n
                else continued(self.tokenizer, done, prompt)
                if k > 1
                else self.tokenizer(prompt).input_ids
            )
            kind = (
                given.pop("mm_token_type_ids")[0].tolist() if "mm_token_type_ids" in given else [0] * len(own)
            )
            media = media[n:]
            for name in given.keys() - {"attention_mask"}:
                beside.setdefault(name, []).append(torch.as_tensor(given[name]))
            said = continued(self.tokenizer, done + prompt, answer)
            ids = ids + own + said
            labels = labels + [-100] * len(own) + said
            turn = turn + [0] * len(own) + [k] * len(said)
            kinds = kinds + kind + [0] * len(said)
            done += prompt + answer
        return {"input_ids": ids, "labels": labels, "turn": turn, "mm_token_type_ids": kinds}, {
            name: joined(x) for name, x in beside.items()
        }


def joined(tensors):
    """One behind the other, those of fewer tiles (LLaVA-NeXT's second axis) filled up with zeros."""
    most = [max(s) for s in zip(*(x.shape[1:] for x in tensors), strict=True)]
    return torch.cat(
        [
            F.pad(
                x, [n for s, m in zip(reversed(x.shape[1:]), reversed(most), strict=True) for n in (0, m - s)]
            )
            if list(x.shape[1:]) != most
            else x
            for x in tensors
        ]
    )


def collated(rows, pad, typed):
    """(inputs of the model, labels and turn [n, L]) of what Reading gives, padded behind."""
    longest = max(len(row["input_ids"]) for row, _ in rows)
    text = {
        name: torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row, _ in rows])
        for name, fill in (("input_ids", pad), ("labels", -100), ("turn", 0), ("mm_token_type_ids", 0))
    }
    mask = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row, _ in rows]
    )
    inputs = {"input_ids": text["input_ids"], "attention_mask": mask} | (
        {"mm_token_type_ids": text["mm_token_type_ids"]} if typed else {}
    )
    names = dict.fromkeys(name for _, beside in rows for name in beside)
    return (
        inputs | {name: joined([beside[name] for _, beside in rows if name in beside]) for name in names},
        text["labels"],
        text["turn"],
    )


class Taught(torch.nn.Module):
    """A vision-language model and what its answers' tokens cost it. Logits are computed for these tokens only: of all positions they would be the largest tensor there is."""

    def __init__(self, model, vlm, precision):
        super().__init__()
        self.model, self.precision = model, precision  # (device type, dtype or None)
        # hidden, so that they are not registered twice
        self.inner, self.head = (lambda: vlm.model), (lambda: vlm.lm_head)

    def forward(self, inputs, labels):
        """(cross-entropy, is the likeliest token the answer's) [m] of the m labels that are not -100, in their order."""
        kind, dtype = self.precision
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            hidden = self.inner()(**inputs, use_cache=False).last_hidden_state
            scored = labels[:, 1:] != -100
            logits, truth = self.head()(hidden[:, :-1][scored]).float(), labels[:, 1:][scored]
        return F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth


def batches(lengths, batch, g):
    """An epoch's batches (tensors of numbers): lessons drawn at random, fifty batches of them at a time sorted by length, so that little is padded; then the batches in random order."""
    order = torch.randperm(len(lengths), generator=g)[: len(lengths) // batch * batch]
    order = torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(50 * batch)])
    found = order.split(batch)
    return [found[k] for k in torch.randperm(len(found), generator=g)]


def drawn(numbers, n, seed):
    """At most n of some numbers, always the same."""
    return numbers[
        torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    ]


class School:
    """The lessons of a data folder, read when needed. What fits into `room` bytes is kept, so that it is decoded once."""

    def __init__(self, folder, reading, most=None, room=2e9):
        self.items = Items(folder)
        self.reading = reading
        self.room = room
        self.kept = {}
        self.folder = folder
        # seen: tokens of one item's pictures, at most; clips: (width, height) of all
        self.lessons = []
        self.dropped = {"lessons": 0, "turns": 0}
        self.seen = 0
        self.clips = set()
        for k, item in enumerate(
            tqdm(self.items, desc=f"lessons of {folder}", unit="item", disable=len(self.items) < 2000)
        ):
            if not item.get("turns"):
                refuse(
                    f"{folder}: {item['id']!r} has no turns (questions and answers) to learn; use a set that has them"
                )
            try:
                found = reading.lessons(item, k, most)
            except ValueError as e:
                refuse(
                    f"{folder}: {item['id']!r} cannot be put to {reading.kind}: {e}; python data.py --check says more"
                )
            turns, kept = len(item["turns"]), sum(lesson.last - lesson.first for lesson in found)
            self.dropped["lessons"] += (not found) if item.get("chat") else turns - kept
            self.dropped["turns"] += turns - kept
            self.lessons += found
            sizes = reading.sizes(item)[0]
            self.seen = max(self.seen, sum(map(reading.extra, sizes)))
            self.clips |= {(w, h) for t, w, h in sizes if t > 1}
        self.sources = self.items.sources
        self.lengths = torch.tensor([lesson.tokens for lesson in self.lessons])
        self.scored = torch.tensor([lesson.scored for lesson in self.lessons])

    def split(self):
        where = split_indices(self.items, self.folder, least=1)
        part_of = {int(k): part for part, numbers in where.items() for k in numbers}
        return {
            part: torch.tensor([k for k, lesson in enumerate(self.lessons) if part_of[lesson.item] == part])
            for part in where
        }

    def row(self, k):
        if k in self.kept:
            return self.kept[k]
        lesson = self.lessons[k]
        row = self.reading(self.items[lesson.item], lesson.first, lesson.last)
        nbytes = sum(x.nbytes for x in row[1].values())
        if nbytes < self.room:
            self.kept[k], self.room = row, self.room - nbytes
        return row

    def batch(self, numbers, device):
        tokenizer = self.reading.tokenizer
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        inputs, labels, turn = collated([self.row(k) for k in numbers], pad, self.reading.as_video)
        return {name: x.to(device) for name, x in inputs.items()}, labels.to(device), turn

    def answers(self, k):
        """[(question, answer)] of a lesson."""
        lesson = self.lessons[k]
        return self.items[lesson.item]["turns"][lesson.first : lesson.last]


@torch.no_grad()
def scores(taught, school, numbers, batch, device, desc):
    """Of each of the lessons `numbers`: the mean loss of its answers' tokens, and the share of its answers that greedy decoding gives to the token, that is, of those of which
    every token is the likeliest one behind the true ones before it."""
    (rank, n), found = ranks(), torch.zeros(2, len(numbers), device=device)
    order = sorted(range(len(numbers)), key=lambda j: int(school.lengths[numbers[j]]))[rank::n]
    for some in tqdm([order[k : k + batch] for k in range(0, len(order), batch)], desc=desc, unit="batch"):
        inputs, labels, turn = school.batch([int(numbers[j]) for j in some], device)
        cost, likeliest = (x.cpu() for x in taught(inputs, labels))
        rows, turn = (labels[:, 1:] != -100).nonzero()[:, 0].cpu(), turn[:, 1:][(labels[:, 1:] != -100).cpu()]
        for r, j in enumerate(some):
            own = rows == r
            found[0, j] = cost[own].mean()
            found[1, j] = (
                torch.stack([likeliest[own & (turn == t)].all() for t in turn[own].unique()]).float().mean()
            )
    if n > 1:  # every rank its share
        torch.distributed.all_reduce(found)
    return dict(zip(("loss", "exact"), found.cpu(), strict=True))


def commonest_exact(school, train, numbers):
    """Share of each lesson's answers that are the commonest one to the same question in train (or, where it is not asked there, the commonest of all)."""
    by_question, every = {}, Counter()
    for k in train.tolist():
        for question, answer in school.answers(k):
            by_question.setdefault(question, Counter())[answer] += 1
            every[answer] += 1
    usual, of_all = {q: c.most_common(1)[0][0] for q, c in by_question.items()}, every.most_common(1)[0][0]
    return torch.tensor(
        [np.mean([usual.get(q, of_all) == a for q, a in school.answers(int(k))]) for k in numbers]
    )


# what sees, and what joins it to the language model, in all families
TOWER = "model.visual.", "model.vision_tower.", "model.multi_modal_projector."
WHOLE = ["lm_head", *(name.rstrip(".") for name in TOWER)]  # not in 4 bits


def under_lora(model, how):
    """peft's model: LoRA on every linear layer of the language model and, with --vision lora, of the tower and what joins the two."""
    from peft import LoraConfig, get_peft_model

    parts = "model.language_model.", *(TOWER if how["vision"] == "lora" else ())
    leaves = sorted(
        {
            re.search(r"[^.]+(\.\d+)*$", name)[0]
            for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) and name.startswith(parts)
        }
    )
    targets = rf"({'|'.join(map(re.escape, parts))})(.*\.)?({'|'.join(map(re.escape, leaves))})"
    return get_peft_model(
        model.requires_grad_(False),
        LoraConfig(
            task_type="CAUSAL_LM",
            r=how["rank"],
            lora_alpha=2 * how["rank"],
            target_modules=targets,
            exclude_modules=r".*\.patch_embed.*",
        ),
    )


def teachable(model, how, precision):
    """(Taught, peft's model or None): what is to change wants a gradient, and nothing else does."""
    peft = None if how["method"] == "full" else under_lora(model, how)
    for name, p in model.named_parameters():
        name = name.removeprefix("base_model.model.")
        if how["method"] == "full":
            p.requires_grad_(how["vision"] == "full" or not name.startswith(TOWER))
        elif how["vision"] == "full" and name.startswith(TOWER):
            p.requires_grad_(True)
    if how["checkpoint"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return Taught(peft or model, model, precision), peft


NOTED = "weights", "size", "clip", "own_shape"


def write_adapter_folder(folder, peft, entry):
    """<folder>/, complete or absent: LoRA as peft reads it (find_model too), and weights.yaml."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    peft.peft_config["default"].save_pretrained(part)
    weights = get_peft_model_state_dict(peft, save_embedding_layers=False)
    save_bytes(
        part / "adapter_model.safetensors",
        save({k: v.detach().float().cpu().contiguous() for k, v in weights.items()}),
    )
    save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "adapt.py --mode tune"})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def write_model_folder(folder, model, processor, entry, dtype):
    """<folder>/, complete or absent: a model as transformers reads it, with its processor."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    model.to(dtype).save_pretrained(part)
    processor.save_pretrained(part)
    save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "adapt.py --mode tune"})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def tune_world(args):
    """Everything that is checked before a model is loaded."""
    w = SimpleNamespace(args=args, seed=args.seed, entry=find_model(args.model))
    if w.entry.get("type") not in TUNABLE:
        refuse(
            f"--model {args.model} is a {w.entry.get('type', w.entry['kind'])}, which is not put to use by a chat template of transformers' own; tune one of {', '.join(TUNABLE)}"
        )
    if "adapter" in w.entry:
        refuse(f"--model {args.model} is an adapter; merge it first (--merge), and tune the merged folder")
    w.device, w.dtype, w.why = choose_device()
    if args.preset == "t4" and w.device.type == "cuda":
        w.dtype, w.why = torch.float16, f"{w.why}; fp16, as --preset t4 says"
    if args.method == "full" and args.vision == "lora":
        refuse("--vision lora goes with --method lora or qlora; with --method full give frozen or full")
    if args.method == "qlora":
        if w.device.type != "cuda":
            refuse(
                "--method qlora needs a GPU, for bitsandbytes' 4-bit products run on none else; give --method lora"
            )
        if args.vision == "full":
            refuse(
                "--vision full changes the tower's own weights, and --method qlora keeps the model in 4 bits; give --vision lora or --method lora"
            )
    if (args.method == "qlora" or args.adam8bit) and (
        w.device.type != "cuda" or not importlib.util.find_spec("bitsandbytes")
    ):
        refuse(
            f"{'--method qlora' if args.method == 'qlora' else '--adam8bit'} needs bitsandbytes and a GPU; pip install bitsandbytes, or leave it out"
        )
    if args.rank < 1:
        refuse(f"--rank {args.rank} leaves nothing to train; give 1 or more")
    if args.seeds not in (None, 1):
        refuse(
            f"--seeds {args.seeds}: tuning makes one model; leave it out, and give --seed another number for another one"
        )
    w.out = Path(args.out or Path("results") / w.entry["name"] / Path(args.data).name / "tuned")
    check_writable(w.out / "adapt-tune.yaml")
    w.processor = processor_of(w.entry)
    if not getattr(w.processor, "chat_template", None):
        refuse(
            f"{w.entry['path']} has no chat template, by which questions are put to it; take an instruct model"
        )
    pixels = [args.max_pixels or w.entry[k] ** 2 for k in ("size", "clip")]
    reading = Reading(w.processor, w.entry["type"], pixels)
    w.school = School(args.data, reading, args.max_tokens)
    w.entry["own_shape"] = [reading.token, pixels[0]] if reading.token else []
    if len(w.school.clips) == 1 and len(set(*w.school.clips)) == 1:  # data.py's are squares of one size
        w.entry["clip"] = next(iter(w.school.clips))[0]
    w.split = w.school.split()
    if least := [part for part, numbers in w.split.items() if not len(numbers)]:
        refuse(
            f"{args.data}: no question of the {least[0]} split fits with its answer into --max-tokens {args.max_tokens}; raise it, or lower --max-pixels"
        )
    w.keep = School(args.keep, reading, args.max_tokens) if args.keep else None
    if w.keep and not len(w.keep.split()["test"]):
        refuse(
            f"--keep {args.keep}: no question of the test split fits with its answer into --max-tokens {args.max_tokens}; raise it, or leave --keep out"
        )
    w.how = settings(args, len(w.split["train"])) | {
        k: getattr(args, k) for k in ("method", "vision", "rank", "accumulate", "checkpoint", "adam8bit")
    }
    n = ranks()[1] * args.accumulate
    if w.how["batch"] % n:
        refuse(
            f"a batch of {w.how['batch']} cannot be shared out among {args.accumulate} parts (--accumulate){f' and {ranks()[1]} ranks' if ranks()[1] > 1 else ''}; give a multiple of {n}"
        )
    w.how |= {
        "lr": args.lr or RATES[args.method],
        "scaler": w.dtype == torch.float16,
        "val_batch": max(w.how["batch"] // n, 1),
        "model": w.entry["name"],
        "max_tokens": args.max_tokens,
        "pixels": pixels,
        "of": digest(w.school.lengths, torch.tensor(bytearray("\n".join(w.school.items.ids).encode()))),
    }
    w.plan = check_fits(w)
    return w


def load_to_tune(w):
    """The model as it is trained: in 4 bits (qlora), in the device's own precision under LoRA, in fp32 where its own weights change."""
    if w.how["method"] != "qlora":
        return load_vlm(
            w.entry,
            w.device,
            torch.float32 if w.how["method"] == "full" or w.how["vision"] == "full" else w.dtype,
        )[0]
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=w.dtype,
        llm_int8_skip_modules=WHOLE,
    )
    return load_vlm(w.entry, w.device, w.dtype, quantised=nf4)[0]


def tune(w, started):
    """Score the model as it is, train it, score it again; write the adapter, or the model, and adapt-tune.yaml."""
    args, school = w.args, w.school
    print(f"device {w.device.type} ({w.why})")
    model = load_to_tune(w)
    if w.device.type == "cpu":
        model.set_attn_implementation("eager")  # half the time of sdpa's gradient
    precision = (
        w.device.type,
        w.dtype if w.device.type == "cuda" else torch.bfloat16 if bf16_units() else None,
    )
    numbers = {"test": drawn(w.split["test"], SHOWN, w.seed)} | (
        {"keep": drawn(w.keep.split()["test"], SHOWN, w.seed)} if w.keep else {}
    )
    of = {"test": school, "keep": w.keep}
    taught, peft = teachable(model, w.how, precision)
    taught.to(w.device).eval()
    one = w.how["val_batch"]

    def scored(name):
        return {
            part: scores(taught, of[part], own.tolist(), one, w.device, f"{name}, {part}")
            for part, own in numbers.items()
        }

    base = scored("as it is")
    names = [
        f"{school.items.ids[lesson.item]}: {school.answers(k)[0][0]}"
        for k, lesson in enumerate(school.lessons)
    ]

    def loss_of(net, pick, g, part, warm):
        inputs, labels, _ = school.batch(pick[part].tolist(), w.device)
        # of all the batch's tokens, however it is cut up
        return net(inputs, labels)[0].sum() / school.scored[pick].sum() * (part.step or 1)

    train_part = w.split["train"]
    split = {"train": train_part, "val": drawn(w.split["val"], SHOWN // 2, w.seed)}
    state = w.out / "training.pt"
    with tqdm(
        total=w.how["epochs"] * (len(train_part) // w.how["batch"]),
        desc="tune",
        unit="step",
        disable=ranks()[0] > 0,
    ) as bar:
        taught, record = train(
            lambda: reset_lora(taught) if peft else taught,
            loss_of,
            split,
            w.seed,
            w.how,
            w.device,
            state,
            names,
            lambda g: [train_part[b] for b in batches(school.lengths[train_part], w.how["batch"], g)],
            bar,
        )
    after = scored("tuned")
    if ranks()[0]:
        return {}
    result = {
        "stage": "adapt",
        "mode": "tune",
        "model": w.entry["name"],
        "weights": w.entry["weights"],
        "data": school.items.index.get("data"),
        "data_name": Path(args.data).name,
        "method": w.how["method"],
        "vision": w.how["vision"],
    }
    sources = [school.sources[school.lessons[k].item] for k in numbers["test"].tolist()]
    floors = {
        "base": base["test"]["exact"],
        "commonest": commonest_exact(school, train_part, numbers["test"].tolist()),
    }
    criteria = {
        "exact": criterion(after["test"]["exact"], floors, sources, seed=w.seed),
        "answer_loss": criterion(
            after["test"]["loss"],
            {"base": base["test"]["loss"]},
            sources,
            ceiling=0.0,
            better="lower",
            seed=w.seed,
        ),
    }
    against = paired_test(after["test"]["exact"], base["test"]["exact"], sources, seed=w.seed)
    result |= {
        "exact": criteria["exact"]["score"],
        "exact_base": base["test"]["exact"].mean(),
        "exact_commonest": floors["commonest"].mean(),
        "exact_gain": against["gain"],
        "exact_gain_low": against["gain_low"],
        "exact_gain_high": against["gain_high"],
        "answer_loss": criteria["answer_loss"]["score"],
        "answer_loss_base": base["test"]["loss"].mean(),
    }
    if w.keep:
        kept_sources = [w.keep.sources[w.keep.lessons[k].item] for k in numbers["keep"].tolist()]
        lost = paired_test(base["keep"]["exact"], after["keep"]["exact"], kept_sources, seed=w.seed)
        result |= {
            "forgetting": lost["gain"],
            "forgetting_low": lost["gain_low"],
            "forgetting_high": lost["gain_high"],
            "keep_exact": after["keep"]["exact"].mean(),
            "keep_exact_base": base["keep"]["exact"].mean(),
            "keep_name": Path(args.keep).name,
        }
    else:
        result |= {"forgetting": None, "forgetting_reason": "no --keep, a data folder of another task"}
    result |= {
        "parameters": sum(p.numel() for p in learned(taught).values()),
        "lessons": len(school.lessons),
        "train": len(train_part),
        "dropped_lessons": school.dropped["lessons"],
        "dropped_turns": school.dropped["turns"],
        "longest": int(school.lengths.max()),
        "val_loss": record["val"],
        "epoch": record["epoch"],
        "steps": record["steps"],
        "seconds_per_step": record["seconds_per_step"],
        "planned_gb": sum(w.plan.values()),
        "criteria": criteria,
        "plan": w.plan,
        "losses": record["losses"][:: max(len(record["losses"]) // 100, 1)],
    }
    if peft and w.how["vision"] != "full":
        # of a folder of ours no path of this machine
        peft.peft_config["default"].base_model_name_or_path = MODELS.get(w.entry["name"], w.entry)["path"]
        write_adapter_folder(w.out / "adapter", peft, w.entry)
        result["out"] = str(w.out / "adapter")
    if args.merge or not peft or w.how["vision"] == "full":
        dtype = getattr(model.config, "dtype", None) or torch.float32
        whole = (
            load_vlm(find_model(str(w.out / "adapter")))[0]
            if peft and w.how["vision"] != "full"
            else peft.merge_and_unload()
            if peft
            else model
        )
        write_model_folder(w.out / "model", whole, w.processor, w.entry, dtype)
        result["out"] = str(w.out / "model")
    args.out = str(w.out)
    result["run"] = run_info(
        args,
        started,
        script="adapt.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    save_yaml(w.out / "adapt-tune.yaml", result)
    state.unlink(missing_ok=True)
    say(result)
    return result


# ---------------------------------------------------------------- plan: what tuning needs of memory, in bytes, part by part

CARDS = {"t4": 15e9, "a100_40": 40e9, "a100_80": 80e9}  # bytes; a T4's 16 GB leave 15
SHOTS = (1, 8, 16)  # frames: a picture, clips
WORDS = 256, 64  # tokens of a question and of an answer in the plan's lessons
# a square picture of the tower's size once whole and in (two, one) tiles
TILES = {"llava_next": (3, 3), "llava_onevision": (2, 2)}


def config_of(entry):
    """The checkpoint's configuration, from its folder, the local cache or the hub; None where it is in none of them."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from transformers import AutoConfig

    path = entry["path"]
    if not Path(path).is_dir():
        try:
            cached = try_to_load_from_cache(path, "config.json", revision=entry.get("revision"))
            if not isinstance(cached, str):
                # once: transformers would ask six times
                get_hf_file_metadata(
                    hf_hub_url(path, "config.json", revision=entry.get("revision")), timeout=10
                )
        except Exception:  # no network, no access, no such repository
            return None
        path = Path(cached).parent if isinstance(cached, str) else path
    return attempt(lambda: AutoConfig.from_pretrained(path, **pin(entry)), entry)


def shape_of(entry, config):
    """What memory depends on: the language model's layers, d, q, kv, inter, vocab and heads; `linear`, parameters of its matrices; `rest`, of its embedding and head; tower: layers, d, inter,
    patch, merge, and the parameters of all else."""
    with torch.device("meta"):
        model = next(auto_classes(entry)).from_config(config)
    t, v, heads = config.text_config, config.vision_config.to_dict(), config.text_config.num_attention_heads
    side = getattr(t, "head_dim", None) or t.hidden_size // heads
    patch = v["patch_size"]
    width = v.get("embed_dim") or v["hidden_size"]
    found = {
        "layers": t.num_hidden_layers,
        "d": t.hidden_size,
        "q": heads * side,
        "kv": t.num_key_value_heads * side,
        "inter": t.intermediate_size,
        "vocab": t.vocab_size,
        "heads": heads,
    }
    tower = {
        "layers": v.get("depth") or v["num_hidden_layers"],
        "d": width,
        "inter": v.get("intermediate_size") or 4 * width,
        "patch": patch if isinstance(patch, int) else patch[0],
        "merge": v.get("spatial_merge_size", 2 if config.model_type == "internvl" else 1),
    }
    rest = sum(
        x.numel()
        for x in {
            id(m.weight): m.weight for m in (model.model.language_model.embed_tokens, model.lm_head)
        }.values()
    )
    total = sum(p.numel() for p in model.parameters())
    linear = found["layers"] * (2 * found["d"] * (found["q"] + found["kv"]) + 3 * found["d"] * found["inter"])
    return found | {"linear": linear, "rest": rest, "tower": tower | {"weights": total - linear - rest}}


def live(tokens, d, q, kv, inter):
    """Bytes of a layer's activations and their gradients while it is trained, in half precision, without the matrix of attention, which sdpa does not write (twice the 34 d a token of
    Korthikanti et al. 2022, section 4.1, where inter is 2.7 d). Three quarters are what transformers' layers keep for the backward pass under LoRA: counted by tests/test_plan.py."""
    return 2 * tokens * (12 * d + 2 * (q + 2 * kv) + 6 * inter)


def memory(
    shape,
    method,
    tokens,
    scored,
    patches=0,
    rank=16,
    vision="frozen",
    checkpoint=True,
    adam8bit=False,
    half=2,
    context=0.5e9,
    eager=0,
):
    """{part: bytes} that tuning a model of `shape` takes at its peak. tokens: of a micro-batch, `scored` of them answers'; patches: that its tower sees; half: bytes of a number in the device's
    precision (4 on a CPU); eager: rows times columns of the attention matrices, where they are written (a CPU).

    Weights of the linear layers in NF4 with double quantisation 4.127 bits (Dettmers et al. 2023, section 3). What is trained is kept in fp32 with its gradient and two moments of Adam's (one
    byte each in 8 bits). Checkpoints are the residual stream at each layer. Logits in half precision, in fp32 and their gradient. A weight is dequantised before it is used.
    """
    t = shape["tower"]
    d = shape["d"]
    q = shape["q"]
    kv = shape["kv"]
    inter = shape["inter"]
    w = half / 2
    seen, trained = t["weights"], 10 if adam8bit else 16
    lora = rank * shape["layers"] * (2 * (d + q) + 2 * (d + kv) + 3 * (d + inter))
    lora_seen = rank * t["layers"] * (8 * t["d"] + 3 * (t["d"] + t["inter"]))
    layer, glance = w * live(tokens, d, q, kv, inter), w * live(patches, t["d"], t["d"], t["d"], t["inter"])
    own = 4 if method == "full" or vision == "full" else half  # load_to_tune
    parts = {
        "weights": 4.127 / 8 * shape["linear"]
        if method == "qlora"
        else 0
        if method == "full"
        else own * shape["linear"],
        "embeddings_tower": (0 if method == "full" else own * shape["rest"])
        + (0 if vision == "full" else own * seen),
        "trained": trained
        * (
            (shape["linear"] + shape["rest"] if method == "full" else lora)
            + (seen if vision == "full" else lora_seen if vision == "lora" else 0)
        ),
        "kept": shape["layers"] * tokens * d * half if checkpoint else (shape["layers"] - 1) * layer * 3 / 4,
        "layer": layer,
        "vision": patches * 6 * t["patch"] ** 2 * 4
        + (
            glance / 2
            if vision == "frozen"
            else glance
            + (t["layers"] * patches * t["d"] * half if checkpoint else (t["layers"] - 1) * glance * 3 / 4)
        ),
        "logits": scored * shape["vocab"] * 12,
        # dequantised, or rounded by autocast
        "weight": half * d * inter
        if method == "qlora"
        else half * (shape["linear"] / (shape["layers"] if checkpoint else 1))
        if own > half
        else 0,
        "context": context,
    }
    return parts | ({"attention": 3 * 4 * eager * (1 if checkpoint else shape["layers"])} if eager else {})


def lesson_of(entry, shape, frames):
    """(tokens, patches) of a picture, or of a clip, at the registry's size, and of WORDS."""
    side, t = entry["size" if frames == 1 else "clip"], shape["tower"]
    tiles = TILES.get(entry["type"], (1, 1))[0 if frames == 1 else 1]
    thick = 2 if entry["type"].startswith("qwen") else 1
    patches = max(frames // thick, 1) * (tiles if frames == 1 else 1) * (side // t["patch"]) ** 2
    return patches // t["merge"] ** 2 + sum(WORDS), patches


def needed(shape, how, device, tokens, scored, patches):
    """`memory` of a training as `how` says (method, vision, rank, checkpoint, adam8bit, batch, accumulate) by lessons of so many tokens, for a device type."""
    rows = max(how["batch"] // (how["accumulate"] * ranks()[1]), 1)
    more = (
        {"half": 4, "context": 0.3e9, "eager": rows * shape["heads"] * tokens**2} if device == "cpu" else {}
    )
    return memory(
        shape,
        how["method"],
        rows * tokens,
        rows * scored,
        rows * patches,
        how["rank"],
        how["vision"],
        how["checkpoint"],
        how["adam8bit"],
        **more,
    )


def check_fits(w):
    """Refuse a training that the plan says does not fit; else its plan, {part: GB}."""
    school, args, config = w.school, w.args, config_of(w.entry)
    if config is None:
        refuse(
            f"{w.entry['path']} has no config.json that is here or can be had from the hub; copy the whole checkpoint, and give its folder"
        )
    shape = shape_of(w.entry, config)
    free = memory_left(w.device, memory_size(args.max_memory) if args.max_memory else None)
    parts = needed(
        shape,
        w.how,
        w.device.type,
        int(school.lengths.max()),
        int(school.scored.max()),
        school.seen * shape["tower"]["merge"] ** 2,
    )
    if sum(parts.values()) > free:
        largest = sorted(parts, key=parts.get, reverse=True)[:3]
        refuse(
            f"this training needs about {sum(parts.values()) / 1e9:.2f} GB ({', '.join(f'{k} {parts[k] / 1e9:.2f}' for k in largest)}) and there are {free / 1e9:.2f}; --checkpoint, --accumulate, "
            "--method lora or qlora, --adam8bit, a smaller --max-pixels or --max-tokens reduce it, and so does a smaller model (make plan)"
        )
    return {k: v / 1e9 for k, v in parts.items()}


def plan(args, started):
    """A table of what tuning needs for each model whose configuration can be had, method and number of frames, and where it fits; adapt-plan.yaml."""
    tunable, device = [name for name, entry in MODELS.items() if entry["type"] in TUNABLE], choose_device()[0]
    names, absent = args.models or tunable, []
    here = memory_left(device, memory_size(args.max_memory) if args.max_memory else None)
    cards, rows = CARDS | {"here": here}, []
    out = Path(args.out or "results/adapt-plan.yaml")
    check_writable(out)
    for name in tqdm(names, desc="plan", unit="model", leave=False):
        entry = find_model(name)
        if entry.get("type") not in TUNABLE:
            refuse(
                f"--models {name} is a {entry.get('type', entry['kind'])}, which is not tuned here; give some of {', '.join(tunable)}"
            )
        config = config_of(entry)
        if config is None:
            absent.append(entry["name"])
            continue
        shape = shape_of(entry, config)
        for method in RATES:
            for frames in SHOTS:
                tokens, patches = lesson_of(entry, shape, frames)
                how = {
                    "method": method,
                    "vision": args.vision
                    if (method, args.vision) not in (("full", "lora"), ("qlora", "full"))
                    else "frozen",
                    "rank": args.rank,
                    "checkpoint": True,
                    "adam8bit": bool(args.adam8bit),
                    "batch": args.batch or 1,
                    "accumulate": 1,
                }
                parts = {"cuda": needed(shape, how, "cuda", tokens, WORDS[1], patches)}
                parts["here"] = needed(shape, how, device.type, tokens, WORDS[1], patches)
                total = {where: sum(x.values()) for where, x in parts.items()}
                rows.append(
                    {
                        "model": entry["name"],
                        "method": method,
                        "frames": frames,
                        "tokens": tokens,
                        "gb": total["cuda"] / 1e9,
                        **{k: v / 1e9 for k, v in parts["cuda"].items()},
                        **{
                            card: (total["here" if card == "here" else "cuda"] <= size)
                            and not (card == "here" and method == "qlora" and device.type == "cpu")
                            for card, size in cards.items()
                        },
                    }
                )
    if not rows:
        refuse(
            f"config not reachable: {', '.join(absent)}; where there is a network, `hf download REPOSITORY config.json` fetches one"
        )
    keys = [k for k in rows[0] if k not in ("model", "method", *cards)]
    print(f"{'model':22} method {' '.join(f'{k[:10]:>10}' for k in keys)}  fits")
    for row in rows:
        print(
            f"{row['model'][:22]:22} {row['method']:6} {' '.join(f'{row[k]:>10}' if isinstance(row[k], int) else f'{row[k]:10.2f}' for k in keys)}  "
            + (", ".join(card for card in cards if row[card]) or "none")
        )
    for name in absent:
        print(f"{name[:22]:22} config not reachable")
    result = {
        "stage": "adapt",
        "mode": "plan",
        "models": len(names) - len(absent),
        **{f"{card}_fit": sum(row[card] for row in rows) for card in cards},
        "rows": len(rows),
        "here_gb": here / 1e9,
        "device": device.type,
        "batch": args.batch or 1,
        "rank": args.rank,
        "vision": args.vision,
        "config_not_reachable": absent,
        "plan": rows,
    }
    args.out = str(out)
    save_yaml(out, result | {"run": run_info(args, started, script="adapt.py")})
    say(result)
    return result


# ---------------------------------------------------------------- the stage

MODES = {"latents": latents, "scaling": scaling, "ablation": ablation, "hybrid": hybrid}


def get_args(argv):
    p = parser(__doc__)
    p.add_argument(
        "--mode",
        default="latents",
        choices=[*MODES, "video", "words", "tune", "plan"],
        help="gate 1's latents; gate 2's scaling, ablation and hybrid; video: an adapter for the video transformer; words: one for a language model (default: %(default)s)",
    )
    p.add_argument(
        "--features",
        default="results/tiny/shapes/features",
        help="the model's features (default: %(default)s)",
    )
    p.add_argument(
        "--latents",
        default="results/tiny-vae/shapes/features",
        help="the decoder's latents of the same pictures (default: %(default)s)",
    )
    p.add_argument("--random", help="features of the untrained network: a control")
    p.add_argument("--spatial", help="hybrid: features of a spatial encoder of the same pictures")
    p.add_argument("--at", nargs="*", help="ablation: features of the same pictures at other sizes")
    p.add_argument(
        "--align",
        help="align.yaml whose recommended layer (linear R2, chosen on val) is taken; ablation takes the next two as well",
    )
    p.add_argument(
        "--point",
        help="take this point instead (default of video: the middle one of the stored language layers)",
    )
    p.add_argument("--vae", default="tiny-vae", help="the decoder (default: %(default)s)")
    p.add_argument(
        "--judge",
        default="tiny-dinov2",
        help="the frozen encoder that looks at decoded pictures (default: %(default)s)",
    )
    p.add_argument("--video", default="tiny-ltx", help="video: the video pipeline (default: %(default)s)")
    p.add_argument(
        "--frames",
        type=int,
        help="video: the middle frames of a clip that are taken, 8k+1 (default: the registry's for the pipeline, else 9)",
    )
    p.add_argument(
        "--size",
        type=int,
        help="video: side in pixels, a multiple of 32 (default: the registry's for the pipeline)",
    )
    p.add_argument(
        "--width",
        type=int,
        help="video: the bridge's width; words: of the adapter's hidden layer (default: none, a linear map)",
    )
    p.add_argument(
        "--embeddings",
        default="results/tiny/trajectories/tracks.pt",
        help="words: what a video model says of every object (default: %(default)s)",
    )
    p.add_argument(
        "--data", default="data/trajectories", help="words: the clips they are of (default: %(default)s)"
    )
    p.add_argument(
        "--language",
        default="tiny-words",
        help="words: the language model, by name or a folder (default: %(default)s)",
    )
    p.add_argument(
        "--soft",
        type=int,
        default=8,
        help="words: soft tokens that an embedding becomes (default: %(default)s)",
    )
    p.add_argument("--rank", type=int, default=16, help="words: of LoRA (default: %(default)s)")
    p.add_argument(
        "--bridges",
        help="of latents the better one on val is taken; scaling and video take the first; ablation compares (default: mlp,queries; scaling mlp, video queries; "
        "ablation mlp,queries,perceiver,bottleneck; lora, which goes through the model itself at every step, is asked for by name)",
    )
    p.add_argument(
        "--init",
        help="an adapter.pt to start from, another model's perhaps: what has the same shape is kept; ablation compares it with a start from scratch",
    )
    p.add_argument("--apply", help="an adapter.pt: write what it says of --features, and train nothing")
    p.add_argument(
        "--loss",
        choices=("latents", "pixels", "words", "flow"),
        help="squared error of latents; LPIPS + 0.1 L2 of the decoded picture; video: squared error of the "
        "text encoder's embeddings of the clip's words, or of the transformer's velocity",
    )
    p.add_argument(
        "--unscaled",
        action="store_true",
        help="scaling: the ladder of 5 to 100 million parameters as it stands, for a small model too",
    )
    for name, kind, words in (
        ("seeds", int, "trainings of each bridge"),
        (
            "warm",
            int,
            "epochs by the squared error of latents (video: of the words' embeddings) before those by --loss",
        ),
        ("epochs", int, "at most; the best on val is kept"),
        ("patience", int, "epochs without a better val after which a training ends"),
        ("batch", int, "of all ranks together"),
        ("lr", float, "peak learning rate of AdamW's one cycle"),
    ):
        p.add_argument(
            f"--{name}",
            type=kind,
            help=f"{words} (default: {', '.join(f'{m} {s[name]}' for m, s in SETTINGS.items())})",
        )
    p.add_argument("--model", default="tiny", help="tune: the vision-language model (default: %(default)s)")
    p.add_argument(
        "--models", nargs="*", help="plan: the models (default: all of the registry that can be tuned)"
    )
    p.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="tune, plan: of the GPU, or of the CPU, as 15GB (default: what is free)",
    )
    p.add_argument(
        "--method",
        choices=list(RATES),
        help="tune: lora; qlora, its model in 4 bits (NF4, a GPU); full, all weights of the language model (default: lora)",
    )
    p.add_argument(
        "--vision",
        choices=("frozen", "lora", "full"),
        help="tune: what becomes of the tower and of what joins it to the language model (default: frozen)",
    )
    p.add_argument(
        "--accumulate",
        type=int,
        help="tune: parts of a batch, one after the other, whose gradients make one step (default: 1)",
    )
    p.add_argument(
        "--checkpoint",
        action="store_true",
        default=None,
        help="tune: recompute activations in the backward pass instead of keeping them",
    )
    p.add_argument(
        "--adam8bit", action="store_true", default=None, help="tune: bitsandbytes' 8-bit optimizer (a GPU)"
    )
    p.add_argument(
        "--max-pixels",
        type=int,
        help="tune: of a picture, and of a frame (default: the model's size and clip in the registry, squared)",
    )
    p.add_argument(
        "--max-tokens",
        type=int,
        help="tune: of a lesson, whose last turns are left out, whole, until it fits (default: all)",
    )
    p.add_argument(
        "--keep",
        metavar="DATA",
        help="tune: a data folder of another task, on whose test items forgetting is measured",
    )
    p.add_argument(
        "--merge",
        action="store_true",
        help="tune: write the model with its LoRA merged as well, in Hugging Face format",
    )
    p.add_argument(
        "--preset", choices=list(PRESETS), help="tune: what a card asks for, where nothing else is said"
    )
    p.add_argument(
        "--out",
        help="default: adapt-<mode>.yaml beside --features; words: the folder words beside --embeddings; tune: results/<model>/<data>/tuned",
    )
    args = p.parse_args(argv)
    for name, value in (
        {"method": "lora", "vision": "frozen", "accumulate": 1, "checkpoint": False, "adam8bit": False}
        | PRESETS.get(args.preset, {})
    ).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.bridges = args.bridges or {
        "latents": "mlp,queries",
        "ablation": "mlp,queries,perceiver,bottleneck",
        "video": "queries",
    }.get(args.mode, "mlp")
    return args


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.apply:
        return apply(args, started)
    if args.mode == "video":
        return video(args, started)
    if args.mode == "words":
        return words(word_world(args), started)
    if args.mode == "plan":
        return plan(args, started)
    if args.mode == "tune":
        return tune(tune_world(args), started)
    return MODES[args.mode](prepare(args), started)


if __name__ == "__main__":
    main()
