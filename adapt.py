"""Can a small adapter map a model's tokens to the latents of a frozen video decoder?

    python adapt.py latents --features results/tiny/shapes/features --latents results/tiny-vae/shapes/features \\
        --align results/tiny/shapes/align.yaml --out results/tiny/shapes/adapt-latents.yaml
    python adapt.py scaling --features ... --latents ... --align ...         # is an adapter of 10M parameters as good as one of 100M?
    python adapt.py ablation --features ... --at results/tiny/shapes@64/features ...   # which adapter, layer, size; how many items?
    python adapt.py hybrid --features ... --spatial results/tiny-dinov2/shapes/features ...   # does the model add to a spatial encoder?
    python adapt.py prompt --features results/tiny/moving/features --video tiny-ltx  # for video.py coherence
    python adapt.py apply --adapter results/tiny/moving/adapter-prompt.pt --features results/tiny/other/features
    torchrun --nproc-per-node=8 adapt.py scaling ...                         # the same global batch, shared out

Reads features and latents of the same images (extract.py) and the recommended layer (align.yaml, or --point). Trains adapters on the
train split, for several seeds, and keeps the epoch with the lowest val loss. Decodes the test images with the frozen VAE. Writes
adapt-<job>.yaml, .pt (images of eight test items), .png, adapter-<job>.pt (latents: adapter.pt; --init reads it).
A killed run continues where it stopped. Scores of the decoded test images:

    lpips, ssim, edge_f1    against the original at the decoder's resolution
    recon_spatial_iou       foreground IoU of a linear map on the frozen evaluator's tokens, fitted on the originals
    recon_map50             mAP@0.5 of a set probe on the evaluator's tokens, fitted on the originals

Upper bound: the VAE's reconstruction. Baselines: the mean image, another item's image. Control: features of the untrained network.

Needs cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py, probes.py, stats.py, training.py,
checkpoints.py, models.yaml.
"""

import functools
import math
import shutil
import time
from bisect import bisect_right
from pathlib import Path
from types import SimpleNamespace

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    RESULT,
    check_choice,
    check_writable,
    choose_device,
    fail,
    join,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    print_summary,
    pyplot,
    run_info,
    save_pt,
    save_yaml,
    split_indices,
    subcommands,
    with_grid,
)
from ltx import (
    DECODE_STEP,
    caption,
    check_shape,
    decode_generated_clips,
    encode_generated_clips,
    flatten_stills,
    geometry,
    images_of,
    load_video_pipeline,
)
from media import foreground, frames_of
from metrics import (
    MASK,
    box_truth,
    edge_f1,
    evaluator_tokens,
    from_cells,
    load_lpips,
    lpips_model,
    mask_scores,
    pixel_loss,
    ssim,
    to_cells,
    to_floats,
)
from models import find_model, load_encoder, load_video_vae, load_vlm, model_of, qwen_inputs
from probes import ap_runs, train_set_probe
from stats import clusters, criterion, holm, mean_interval, paired_test, resampled, token_ridge, widened
from training import (
    Tuned,
    add_training_flags,
    attention,
    digest_of_tensors,
    headline,
    learned,
    ranks,
    resample,
    train,
    training_settings,
)

# Of each job: seeds; loss; warm: epochs on the squared error of latents before `loss` (the gradient through
# the decoder is useless at noise); most epochs; patience in epochs (None: equal steps for all); batch; peak
# learning rate. Loss, epochs, batch and rate are the plan's, except gate 1's.
# target, acceptable, fail: the evaluation plan, E-P4.6
BANDS = {"lpips": (0.30, 0.35, 0.45), "ssim": (0.80, 0.75, 0.65), "recon_spatial_iou": (0.65, 0.60, 0.55)}
BANDS |= {"recon_map50": (0.30, 0.20, 0.10)}
PLAN = {"seeds": 3, "loss": "pixels", "warm": 10, "epochs": 50, "patience": 10, "batch": 8, "lr": 1e-4}
GATE1 = {"seeds": 5, "loss": "latents", "warm": 0, "epochs": 30, "patience": None, "batch": 32, "lr": 2e-3}
SETTINGS = {"latents": GATE1, "scaling": PLAN | {"patience": None}, "ablation": PLAN, "hybrid": PLAN}
SETTINGS["prompt"] = PLAN | {"loss": "words", "warm": 0}
LADDER = 5, 10, 20, 50, 100  # millions of parameters, for tokens of Qwen2.5-VL-7B's width
REFERENCE_WIDTH = 3584
FRACTIONS = 0.125, 0.25, 0.5  # of the training items
ADAPTER = "foresight.adapter.v2"


# ---------------------------------------------------------------- adapters: tokens [n, h, w, D] -> latents [n, H, W, C]

# Arguments: grids and widths of the token sets, grid and channels of the latents. `width` and `inner` set the
# number of parameters.


class Mlp(torch.nn.Module):
    """Tokens resampled to the latent grid, then the same MLP at every place."""

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
    """Learned vectors attend to all tokens (Jaegle et al. 2021); queries of latent places attend to these."""

    def __init__(self, grids, dims, out_grid, channels, width=96, inner=None, vectors=16):
        super().__init__()
        self.gather = Queries(grids, dims, (vectors,), width, width, inner)
        self.spread = Queries([(vectors,)], [width], out_grid, channels, width, inner)

    def forward(self, x):
        return self.spread(self.gather(x))


class Fusion(torch.nn.Module):
    """Spatial tokens, on the decoder's grid, attend to semantic tokens; an MLP maps the result to latents."""

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
        """Fused tokens [n, H, W, width] on the decoder's grid; spatial [n, h, w, D], semantic [n, h', w', D']."""
        sets = resample(spatial, self.out_grid), semantic
        spatial, semantic = (
            e(F.layer_norm(x.flatten(1, 2), x.shape[-1:])) + p
            for e, p, x in zip(self.embed, self.position, sets, strict=True)
        )
        return self.layer(spatial, semantic).unflatten(1, self.out_grid)

    def forward(self, spatial, semantic):
        return self.out(self.tokens(spatial, semantic))


class Lora(torch.nn.Module):
    """LoRA in the VLM up to a language layer, then a linear map of its image tokens to latents. Reads images."""

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


ADAPTERS = {
    "mlp": Mlp,
    "bottleneck": Bottleneck,
    "queries": Queries,
    "perceiver": Perceiver,
    "fusion": Fusion,
}


def sized(kind, target, *shape):
    """{width, inner} of the adapter with `target` parameters, within 5%; ValueError where there is none."""

    def count(**free):
        with torch.device("meta"):
            return sum(p.numel() for p in ADAPTERS[kind](*shape, **free).parameters())

    width = 4 * bisect_right(range(1, 4096), target, key=lambda w: count(width=4 * w))
    if not width:
        raise ValueError(f"the smallest {kind} adapter has {count(width=4)} parameters")
    inner = max(bisect_right(range(1, 1 << 16), target, key=lambda i: count(width=width, inner=i)), 1)
    found = count(width=width, inner=inner)
    if abs(found - target) > 0.05 * target:
        raise ValueError(f"the {kind} adapter nearest to {target} parameters has {found}")
    return {"width": width, "inner": inner}


# ---------------------------------------------------------------- the decoder


def decode(vae, latents):
    """Normalised latents [n, h, w, C] -> images uint8 [n, H, W, 3]."""
    return decode_generated_clips(vae, latents[:, None])[:, 0]


@torch.inference_mode()
def round_trip(vae, frames, latents):
    """Mean difference, of 255, between decoded latents [n,h,w,C] and the reconstruction of frames [n,H,W,3]."""
    z = vae.encode(to_floats(frames)[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()
    step = torch.full((len(z),), DECODE_STEP).to(z) if vae.config.timestep_conditioning else None
    torch.manual_seed(0)  # of decoders that add noise
    expected = vae.decode(z, step).sample[:, :, 0].float().cpu()
    expected = ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    torch.manual_seed(0)
    return (decode(vae, latents).float() - expected).abs().mean().item()


# ---------------------------------------------------------------- scores of decoded images


def evaluator_scores(tokens, rows, items, split, steps, seed):
    """({name: spatial IoU [S, n_test]}, {name: mAP [S, sources]}) of decoded images. Evaluator tokens: {name:
    [S*n_test, h, w, D]}, of `originals` all items. Probes are fitted on the originals' train and val items.
    """
    test, n = split["test"], len(items)
    soft_truth = foreground(items, MASK)
    solid = soft_truth >= 0.5
    _, h, w, d = tokens["originals"].shape
    s = max(-(-MASK // h), 1)
    size = h * s, w * s
    cells = F.interpolate(soft_truth[:, None], size, mode="bilinear", align_corners=False, antialias=True)
    cells = to_cells(cells, h, w)
    names = list(rows)
    all_tokens = torch.cat([tokens["originals"]] + [tokens[k] for k in names]).flatten(1, 2)
    unused = torch.zeros(len(all_tokens) - n, *cells.shape[1:])
    masks = torch.cat([cells, unused])
    predicted = token_ridge(all_tokens, {"mask": masks}, split["train"], split["val"])["mask"]
    soft = from_cells(predicted, h, w, 1, MASK)[:, 0]
    iou = {"originals": mask_scores(soft[:n], solid, split)[test]}
    start = n
    for k in names:
        part = soft[start : start + len(tokens[k])].unflatten(0, (-1, len(test)))
        start += len(tokens[k])
        both = [torch.cat([soft[:n], p]) for p in part]
        truth = torch.cat([solid, solid[test]])
        iou[k] = torch.stack([mask_scores(b, truth, split)[n:] for b in both])

    _, truth, classes = box_truth(items)
    sources = [items[i]["source"] for i in test]
    jobs, fitted = [(tokens["originals"], truth, False)], (split["train"], split["val"])
    predict = train_set_probe(jobs, len(classes), *fitted, seeds=1, steps=steps, seed=seed)
    test_truth, all_test = [truth[i] for i in test], torch.arange(len(test))
    runs = {"originals": ap_runs(predict, truth, test, sources)}
    for k in names:
        parts = tokens[k].unflatten(0, (-1, len(test)))
        each = [ap_runs(predict, test_truth, all_test, sources, tokens=part) for part in parts]
        runs[k] = torch.cat(each)
    return iou, runs


def ratio(a, b, sources, n_boot=2000, seed=0):
    """(mean a / mean b, low, high) of scores [seeds, n]: 95% bootstrap, a and b share resampled sources."""
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
    low, high = (draws[0] / draws[1]).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return mean, *widened(mean, low, high, len(count))


# ---------------------------------------------------------------- what all modes need


def moments_of(x, train):
    """Mean and standard deviation [D] of every channel of x [n, ..., D] over the train items."""
    axes = tuple(range(x.ndim - 1))
    return x[train].mean(axes), x[train].std(axes).clamp(min=1e-6)


def checked_features(folder, index):
    """(index, read) of features of the same items as those of `index`."""
    other, read = load_features(folder)
    if other["ids"] != index["ids"]:
        fail(f"{folder} does not hold the same items as the others; extract both from the same data")
    return other, read


def middle_layer(index):
    """The middle stored language layer that has a token grid, or None."""
    layers = [p for p in with_grid(index) if p.startswith("language.")]
    return layers[(len(layers) - 1) // 2] if layers else None


def checked_point(args, index, folder):
    """The layer of --point or --align (prompt: else the middle one). Fails if it has no token grid."""
    point = args.point
    if not point and getattr(args, "align", None):
        point = load_yaml(args.align, "align")["linear_r2_layer"]
    elif not point and args.mode == "prompt":
        point = middle_layer(index)
    if point is None:
        fail("no layer is given; use --point, or --align with an align.yaml that has a linear_r2_layer")
    if point not in index["points"]:
        fail(f"{folder} has no point {point!r}; its points are {', '.join(index['points'])}")
    if point not in with_grid(index):
        places = ", ".join(with_grid(index))
        fail(f"{point} has no token grid; give --point one of {places}")
    return point


def prepare(args):
    """Namespace of the jobs on images. Checks all arguments, then loads the decoder."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.index, w.read = load_features(args.features)
    target, read_target = checked_features(args.latents, w.index)
    items, w.data = load_items(w.index["data_path"])
    w.items, w.ids = join(items, w.index, args.features), w.index["ids"]
    w.split = split_indices(w.items, args.features)
    if "boxes" not in w.items[0]:
        fail(f"{w.index['data_path']} has no boxes, which recon_spatial_iou needs; give data with boxes")
    w.point = checked_point(args, w.index, args.features)
    w.random = checked_features(args.random, w.index)[1] if args.random else None
    spatial = getattr(args, "spatial", None)
    w.spatial = checked_features(spatial, w.index) if spatial else None
    w.others = [checked_features(folder, w.index) for folder in getattr(args, "at", None) or ()]
    for other, _ in w.others:
        if w.point not in other["points"]:
            fail(f"--at: the features at {other['size']} px lack {w.point!r}; extract that layer too")
    kinds = args.adapters.split(",") if "adapters" in args else []  # hybrid takes none
    single = {k: v for k, v in ADAPTERS.items() if k != "fusion"}
    for k, kind in enumerate(kinds):
        check_choice(kind, single | ({"lora": Lora} if args.mode == "ablation" and k else {}), "adapter")
    w.vae_entry, w.evaluator_entry = find_model(args.vae), find_model(args.evaluator)
    if w.vae_entry["kind"] != "vae" or w.evaluator_entry["kind"] != "encoder":
        fail(f"--vae {args.vae} and --evaluator {args.evaluator}: a vae and an encoder are needed")
    w.out = Path(args.out or Path(args.features).parent / f"adapt-{args.mode}.yaml")
    check_writable(w.out)
    w.how = training_settings(args, SETTINGS[args.mode], len(w.split["train"]))
    init = getattr(args, "init", None)
    w.init = load_pt(init, ADAPTER) if init else None
    if w.init and w.init["meta"]["adapter"] not in single:
        fail(f"--init {args.init} reads two token sets; give an adapter that is one of {', '.join(single)}")
    w.y = read_target("latents")[:, 0]
    w.sources = [w.items[i]["source"] for i in w.split["test"]]
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    # in fp16 the gradient of a mean over pixels underflows
    w.full = torch.float32 if w.dtype == torch.float16 else w.dtype
    w.vae = flatten_stills(load_video_vae(w.vae_entry, w.device)[0]).requires_grad_(False)
    w.originals = torch.cat([frames_of(i, target["size"]) for i in w.items])
    if (away := round_trip(w.vae, w.originals[:4], w.y[:4])) > 2:
        fail(f"{args.latents} does not hold latents of {args.vae} (off by {away:.1f} of 255); extract anew")
    w.lpips, w.lpips_name = load_lpips(w.device)
    if w.how["loss"] == "pixels":
        w.pixel_loss = pixel_loss(functools.partial(images_of, w.vae), lpips_model(w.device)[0], w.originals)
    return w


def shape_of(w, *sets):
    """Positional arguments of an adapter from token sets [n, h, w, D] to the latents."""
    return (
        [tuple(x.shape[1:3]) for x in sets],
        [x.shape[3] for x in sets],
        tuple(w.y.shape[1:3]),
        w.y.shape[3],
    )


def arm(w, kind, *sets, train=None, target=None, free=None, **facts):
    """An arm of a comparison: an adapter from token sets [n, h, w, D], with `target` parameters or sizes `free`."""
    moments, shape = [moments_of(x, w.split["train"]) for x in sets], shape_of(w, *sets)
    free = sized(kind, target, *shape) if target else free or {}

    def inputs(items):
        pairs = zip(sets, moments, strict=True)
        return [((x[items] - mean) / std).to(w.device) for x, (mean, std) in pairs]

    return {
        "adapter": kind,
        "shape": shape,
        "free": free,
        "moments": moments,
        "build": lambda: ADAPTERS[kind](*shape, **free),
        "train": w.split["train"] if train is None else train,
        "inputs": inputs,
        **facts,
    }


def parameters(module):
    return sum(p.numel() for p in learned(module).values())


def image_loss(w, z, items, warm=False):
    """Training loss of predicted latents z [k, h, w, C] of these items."""
    if w.how["loss"] == "pixels" and not warm:
        return w.pixel_loss(z, items)
    return (z - w.y[items].to(z.device)).square().mean()


def run_arms(w, arms):
    """Train every arm: {name: [(module, record) of each seed]}. An unfinished training has its state on disk."""
    folder, trained = w.out.with_suffix(".training"), {}
    for name, a in arms.items():
        key = digest_of_tensors(
            *(x for pair in a.get("moments", ()) for x in pair),
            *moments_of(w.y, a["train"]),
            *(w.init["weights"].values() if a.get("init") else ()),
        )

        def loss_of(module, items, g, part, warm, a=a):
            return image_loss(w, module(*a["inputs"](items[part])), items[part], warm)

        def build(a=a):
            module = a["build"]()
            if a.get("init"):
                a["copied"] = start_from(module, w.init["weights"], w.args.init)
            return module

        split = {"train": a["train"], "val": w.split["val"]}
        # fewer items get more epochs: the number of steps is equal
        more = len(w.split["train"]) / len(a["train"])
        how = w.how | {k: w.how[k] and round(w.how[k] * more) for k in ("warm", "epochs", "patience")}
        how |= {"arm": name, "adapter": a["adapter"], **a["free"], "items": len(a["train"])}
        trained[name] = []
        for seed in tqdm(range(w.seed, w.seed + w.how["seeds"]), desc=name, unit="seed"):
            state = folder / f"{key}-{name}-{seed}.pt"
            trained[name].append(train(build, loss_of, split, seed, how, w.device, state, w.ids))
    return trained


@torch.inference_mode()
def decoded(w, models, a):
    """Decoded test images uint8 [S * n_test, H, W, 3], seed after seed."""
    out = []
    for m, record in models:
        m.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        out.append(decode(w.vae, torch.cat([m(*a["inputs"](p)).cpu() for p in w.split["test"].split(64)])))
    return torch.cat(out)


def controls(w):
    """{upper bound and baseline: uint8 [n_test, H, W, 3]}: the VAE's reconstruction, the mean image."""
    test = w.split["test"]
    mean = w.originals[w.split["train"]].float().mean(0).round().byte()
    return {"vae": decode(w.vae, w.y[test]), "mean_image": mean.expand(len(test), -1, -1, -1)}


def scored(w, rows, measures=None):
    """{measure: {name: [S, n_test]}} of decoded images {name: uint8 [S * n_test, H, W, 3]} against the originals."""
    measures = measures or {w.lpips_name: w.lpips, "ssim": ssim, "edge_f1": edge_f1}
    truth, n = w.originals[w.split["test"]], len(w.split["test"])
    scores = {}
    for key, measure in measures.items():
        scores[key] = {}
        for name, images in rows.items():
            found = measure(images.contiguous(), truth.repeat(len(images) // n, 1, 1, 1))
            scores[key][name] = found.unflatten(0, (-1, n))
    return scores


def others(images, n):
    """Images [S * n, ...], each assigned to the next test item."""
    return images.unflatten(0, (-1, n)).roll(1, 1).flatten(0, 1)


def worse(w, errors, beside):
    """{name: paired difference of its errors [seeds, n] to those of beside[name]}, with Holm's adjustment."""
    tests = {k: paired_test(errors[k], errors[other], w.sources, seed=w.seed) for k, other in beside.items()}
    adjusted, table = holm({name: t["p"] for name, t in tests.items()}), {}
    for name, t in tests.items():
        table[name] = {f"worse{end}": t[f"gain{end}"] for end in ("", "_low", "_high")}
        table[name] |= {"worse_than": beside[name], "p_holm": adjusted[name]}
    return table


def row_of(w, a, trained, scores, more=None):
    """Table row of one arm: adapter, training, scores {measure: [seeds, n]} with intervals."""
    row = {
        "adapter": a["adapter"],
        "parameters": parameters(trained[0][0]),
        **a["free"],
        "point": a.get("point", w.point),
        "size": a.get("size", w.index["size"]),
        "items": len(a["train"]),
        "steps": [r["steps"] for _, r in trained],
        "best_epoch": [r["epoch"] for _, r in trained],
        "val_loss": [r["val"] for _, r in trained],
        "seconds_per_step": sorted(r["seconds_per_step"] for _, r in trained)[len(trained) // 2],
    } | ({"copied_parameters": a["copied"][0]} if "copied" in a else {})
    for key, x in scores.items():
        ends = mean_interval(x, w.sources)
        row |= dict(zip((key, f"{key}_low", f"{key}_high"), ends, strict=True))
        row[f"{key}_seeds"] = x.mean(1).tolist()
    return row | (more or {})


def table_of(w, arms, trained, scores, more):
    """{name: row_of its arm}; more: {name: further columns}."""
    table = {}
    for name, a in arms.items():
        own_scores = {key: t[name] for key, t in scores.items()}
        table[name] = row_of(w, a, trained[name], own_scores, more.get(name))
    return table


def criteria_of(w, scores, name, baselines, options, controls=None):
    """{measure: criterion} of the row `name` against the baselines; upper bound: the autoencoder."""
    found = {}
    for key, table in scores.items():
        more = {"layer": w.point, "options_searched": options, "bands": BANDS.get(key)}
        more |= {} if controls is None else {"controls": {k: table[k].mean() for k in controls}}
        found[key] = criterion(
            table[name],
            {k: table[k] for k in baselines},
            w.sources,
            upper_bound=table["vae"].mean().item(),
            better="lower" if key.startswith("lpips") else "higher",
            seed=w.seed,
            **more,
        )
    return found


def facts(w):
    """First lines of the YAML: model, decoder, evaluator, data, layer."""
    return {
        "stage": "adapt",
        "mode": w.args.mode,
        "model": w.index["model"],
        "decoder": w.vae_entry["name"],
        "evaluator": w.evaluator_entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.vae_entry["weights"],
        "data": w.index["data"],
        "data_name": w.data["name"],
        "layer": w.point,
    }


def run_of(w, args, started):
    """The YAML's `run`."""
    args.out, device = str(w.out), f"{w.device.type} ({w.why})"
    more = {"device": device, "dtype": str(w.dtype), "ranks": ranks()[1]}
    return run_info(args, started, script="adapt.py", **more, **w.how)


def conclude(w, result, started, images, adapter):
    """Write images of eight test items, the adapter (arm, module), and the YAML last."""
    some = w.split["test"][:8]
    result["run"] = run_of(w, w.args, started)
    images = {"original": w.originals[some].clone()} | {k: x[:8].clone() for k, x in images.items()}
    save_pt(w.out.with_suffix(".pt"), RESULT, [w.items[i]["id"] for i in some], {"stage": "adapt"}, **images)
    if w.args.mode != "latents":  # gate1.png shows those
        strips(w.out.with_suffix(".png"), images, f"{result['model']} to {result['decoder']}: test images")
    a, module = adapter
    name = "adapter.pt" if w.args.mode == "latents" else f"adapter-{w.args.mode}.pt"
    meta = {"into": "latents", "model": w.index["model"], "point": w.point, "size": w.index["size"]}
    write_adapter(w.out.parent / name, module, a, meta | {"decoder": w.vae_entry["name"]})
    save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    print_summary(result)
    return result


def strips(path, images, title):
    """Draw images {name: uint8 [n, H, W, 3]}, a row for each name."""
    plt, n = pyplot(), len(images["original"])
    size = 1.6 * n + 1, 1.6 * len(images)
    figure, grid = plt.subplots(len(images), n, figsize=size, squeeze=False, layout="constrained")
    for row, (name, stack) in zip(grid, images.items(), strict=True):
        for axis, image in zip(row, stack[:n], strict=True):
            axis.imshow(image.numpy())
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name.replace("_", "\n"), fontsize=9, rotation=0, ha="right", va="center")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=70)
    plt.close(figure)


# ---------------------------------------------------------------- adapters on disk


def write_adapter(path, module, a, meta, outputs=None):
    """Write adapter.pt and a YAML that describes it. outputs: (mean, std) of standardised targets."""
    grids, dims, out_grid, channels = a["shape"]
    meta = meta | {"adapter": a["adapter"], "grids": [list(g) for g in grids], "dims": list(dims)}
    meta |= {"out_grid": list(out_grid), "channels": channels, "free": a["free"]}
    weights = {k: p.detach().cpu().clone() for k, p in learned(module).items()}
    tokens = [torch.stack(m) for m in a.get("moments", ())]
    outputs = torch.stack(outputs) if outputs else torch.tensor([[0.0], [1.0]])
    save_pt(path, ADAPTER, [], meta, weights=weights, tokens=tokens, outputs=outputs)
    gives = {"latents": "latents, normalised by the decoder's own mean and standard deviation"}
    about = {"parameters": parameters(module), "file": path.name}
    about["reads"] = (
        "tokens of `point` at `size` pixels, fp32: of images [n, h, w, D], of clips [n, t h, w, D]"
    )
    about["gives"] = gives.get(meta["into"], "prompt embeddings")
    save_yaml(path.with_suffix(".yaml"), {"stage": "adapter"} | meta | about)


def load_adapter(path):
    """(function from stored token sets to the adapter's outputs, its meta). Not for LoRA."""
    saved = load_pt(path, ADAPTER)
    m = saved["meta"]
    grids = [tuple(g) for g in m["grids"]]
    module = ADAPTERS[m["adapter"]](grids, m["dims"], tuple(m["out_grid"]), m["channels"], **m["free"])
    module.load_state_dict(saved["weights"])
    module.eval()

    @torch.inference_mode()
    def use(*sets):
        mean, std = saved["outputs"]
        return module(*((x - t[0]) / t[1] for x, t in zip(sets, saved["tokens"], strict=True))) * std + mean

    return use, m


def start_from(module, weights, path):
    """Copy the weights whose name and shape fit: (parameters copied, parameters of the module)."""
    new = learned(module)
    same = {k: v for k, v in weights.items() if k in new and new[k].shape == v.shape}
    if not same:
        fail(f"--init {path} has no weight that fits the new adapter; give one of the same kind and width")
    module.load_state_dict(same, strict=False)
    return sum(v.numel() for v in same.values()), parameters(module)


# ---------------------------------------------------------------- gate 1: do the latents suffice?


def run_latents(w, started):
    x = w.read(w.point)[:, 0]
    arms = {kind: arm(w, kind, x) for kind in w.args.adapters.split(",")}
    trained = run_arms(w, arms)
    val_loss = {k: sum(r["val"] for _, r in runs) / len(runs) for k, runs in trained.items()}
    adapter = min(val_loss, key=val_loss.get)
    if w.random:
        arms["random_init"] = arm(w, adapter, w.random(w.point)[:, 0])
        trained |= run_arms(w, {"random_init": arms["random_init"]})
    if ranks()[0]:
        return {}
    n = len(w.split["test"])
    rows = {"adapter": decoded(w, trained[adapter], arms[adapter]), **controls(w)}
    rows["other_item"] = others(rows["adapter"], n)
    if w.random:
        rows["random_init"] = decoded(w, trained["random_init"], arms["random_init"])
    scores = scored(w, rows)
    scores["recon_spatial_iou"], runs = score_decoded(w, rows)

    # The untrained network is a control, not a baseline: its first layers still hold nearly every pixel.
    baselines, beside = ["mean_image", "other_item"], [k for k in rows if k == "random_init"]
    criteria = criteria_of(w, scores, "adapter", baselines, len(val_loss), controls=beside)
    criteria["recon_map50"] = criterion(
        runs["adapter"],
        {k: runs[k] for k in baselines},
        range(runs["adapter"].shape[1]),
        runs["vae"].mean().item(),
        **{"n": len(w.sources), "layer": w.point, "options_searched": len(val_loss)},
        **{"controls": {k: runs[k].mean() for k in beside}, "bands": BANDS["recon_map50"]},
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
        "adapter": adapter,
        "parameters": table[adapter]["parameters"],
        **headline(criteria, w.lpips_name),
        "evaluator_spatial_iou_originals": scores["recon_spatial_iou"]["originals"].mean(),
        "evaluator_map50_originals": runs["originals"].mean(),
        "criteria": criteria,
        "adapters": table,
    }
    images = {k: rows[k] for k in ("vae", "adapter")}
    return conclude(w, result, started, images, (arms[adapter], trained[adapter][0][0]))


def score_decoded(w, rows):
    """`evaluator_scores` of decoded images {name: uint8 [S * n_test, H, W, 3]}."""
    evaluator, processor = load_encoder(w.evaluator_entry, w.device, w.dtype)
    tokens = {}
    for k, images in tqdm((rows | {"originals": w.originals}).items(), desc="evaluator", unit="set"):
        tokens[k] = evaluator_tokens(evaluator, processor, w.evaluator_entry["size"], images, w.device)
    return evaluator_scores(tokens, rows, w.items, w.split, 600, w.seed)


# ---------------------------------------------------------------- is a small adapter as good as a large one?


def step_ratio(w, a, b, rounds=15):
    """Median seconds of a step of arm a over those of b; steps alternate, so that other load meets both."""
    seconds, modules = {0: [], 1: []}, [x["build"]().to(w.device) for x in (a, b)]
    for k in range(rounds):
        for which, (x, module) in enumerate(zip((a, b), modules, strict=True)):
            items = w.split["train"][torch.arange(k, k + w.how["batch"]) % len(w.split["train"])]
            start = time.perf_counter()
            loss = image_loss(w, module(*x["inputs"](items)), items)
            torch.autograd.grad(loss, list(module.parameters()))[0].sum().item()  # waits for the device
            seconds[which].append(time.perf_counter() - start)
    return sorted(seconds[0])[rounds // 2] / sorted(seconds[1])[rounds // 2]


def ladder(w, dim):
    """({name: parameters}, scale): the plan's sizes, scaled as an adapter grows with the tokens' width."""
    scale = 1.0 if w.index["weights"] == "pretrained" or w.args.unscaled else (dim / REFERENCE_WIDTH) ** 2
    return {f"{m}M": round(m * 1e6 * scale) for m in LADDER}, scale


def run_scaling(w, started):
    x = w.read(w.point)[:, 0]
    sizes, scale = ladder(w, x.shape[3])
    kind = w.args.adapters.split(",")[0]
    try:
        arms = {name: arm(w, kind, x, target=size) for name, size in sizes.items()}
    except ValueError as e:
        fail(f"--adapters {kind}: {e}, and the smallest size in the ladder is {min(sizes.values())}")
    trained = run_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: decoded(w, trained[name], a) for name, a in arms.items()} | controls(w)
    rows["other_item"] = others(rows["10M"], len(w.split["test"]))
    scores = scored(w, rows)
    criteria = criteria_of(w, scores, "10M", ("mean_image", "other_item"), 1)
    large, small = scores[w.lpips_name]["100M"], scores[w.lpips_name]["10M"]
    score, low, high = ratio(large, small, w.sources, seed=w.seed)
    plain = {"error_ratio": score, "error_ratio_low": low, "error_ratio_high": high}
    # With an untrained backbone, the ratio of skills (10M / 100M) replaces the ratio of errors.
    if w.lpips_name != "lpips":
        baseline, upper_bound = (scores[w.lpips_name][k].mean() for k in ("mean_image", "vae"))
        skills = [(x - baseline) / (upper_bound - baseline) for x in (small, large)]
        score, low, high = ratio(*skills, w.sources, seed=w.seed)
    # Two adapters that both learned nothing have a ratio of 1: the record's gain is that of 10M over baselines.
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
    against = worse(w, scores[w.lpips_name], {name: "10M" for name in sizes if name != "10M"})
    table = table_of(w, arms, trained, scores, against)
    for name, row in table.items():
        row["target_parameters"] = sizes[name]
    scaled = f"5M to 100M, times ({x.shape[3]} / {REFERENCE_WIDTH})^2: the tokens' width over Qwen2.5-VL-7B's"
    result = facts(w) | {
        "adapter": kind,
        "parameter_efficiency": score,
        "parameter_efficiency_low": low,
        "parameter_efficiency_high": high,
        **plain,
        "training_time_ratio": step_ratio(w, arms["100M"], arms["10M"]),
        "ladder_scale": scale,
        "ladder": "5M to 100M" if scale == 1 else scaled,
        **headline({k: c for k, c in criteria.items() if k != "parameter_efficiency"}, w.lpips_name),
        "criteria": criteria,
        "sizes": table,
    }
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, (arms["10M"], trained["10M"][0][0]))


# ---------------------------------------------------------------- which adapter, layer, resolution; how many samples?


def lora_arm(w):
    """The LoRA adapter: images through the VLM up to the middle stored language layer.

    Fails unless the model without LoRA reproduces the stored features, so that all adapters read the same.
    """
    point, entry, size = middle_layer(w.index), model_of(w.index), w.index["size"]
    if w.index.get("kind") != "vlm" or not entry.get("type", "").startswith("qwen") or not point:
        fail(f"{w.args.features} holds no language layer of Qwen's family; leave lora out of --adapters")
    vlm, processor = load_vlm(entry, w.device, w.full)
    vlm.requires_grad_(False)

    def inputs(items):
        frames = torch.stack([frames_of(w.items[i], size) for i in items])
        batch = qwen_inputs(processor, frames, "Describe the picture.")
        for k, v in batch.items():
            batch[k] = v.to(w.device, w.full if v.is_floating_point() else v.dtype)
        return [dict(batch)]

    stored, out, some = w.read(point)[:, 0], (tuple(w.y.shape[1:3]), w.y.shape[3]), w.split["train"][:2]
    grid = tuple(stored.shape[1:])
    tuned = Tuned(vlm, w.index["points"][point]["module"], grid, vlm.config.image_token_id)
    module = Lora(tuned, *out).to(w.device)
    with torch.inference_mode():
        x = module.tuned(*inputs(some)).cpu()
    if x.shape != stored[some].shape or (x - stored[some]).norm() > 0.02 * stored[some].norm():
        fail(f"{w.index['model']} does not reproduce the stored {point}; leave lora out of --adapters")
    return {
        "adapter": "lora",
        "shape": ([grid[:2]], [grid[2]], *out),
        "free": {},
        "train": w.split["train"],
        "inputs": inputs,
        "point": point,
        "build": module.reset,
    }


def run_ablation(w, started):
    """Each arm differs in one thing from the first. All arms train for equally many steps."""
    kinds, train_items = w.args.adapters.split(","), w.split["train"]
    x = w.read(w.point)[:, 0]
    target = parameters(ADAPTERS[kinds[0]](*shape_of(w, x)))
    arms = {kinds[0]: arm(w, kinds[0], x)}
    groups = {"adapter": [kinds[0]], "point": [kinds[0]], "size": [kinds[0]], "samples": [kinds[0]]}

    def add(group, name, a):
        arms[name] = a
        groups[group].append(name)

    for kind in kinds[1:]:
        if kind == "lora":
            add("adapter", "lora", lora_arm(w))
        else:
            try:
                add("adapter", kind, arm(w, kind, x, target=target))
            except ValueError:  # no adapter of that size: take the smallest
                add("adapter", kind, arm(w, kind, x, free={"width": 4}))
    if w.args.align:
        layers = load_yaml(w.args.align, "align")["layers"]
        possible = [p for p in layers if p in with_grid(w.index) and p not in ("pixels", w.point)]
        for p in sorted(possible, key=lambda p: layers[p]["linear_r2"]["val"], reverse=True)[:2]:
            add("point", p, arm(w, kinds[0], w.read(p)[:, 0], point=p))
    for other, read in w.others:
        if other["size"] != w.index["size"]:
            add("size", f"{other['size']} px", arm(w, kinds[0], read(w.point)[:, 0], size=other["size"]))
    for f in FRACTIONS:
        few = train_items[: max(int(f * len(train_items)), w.how["batch"])]
        add("samples", f"{len(few)} items", arm(w, kinds[0], x, train=few))
    if w.init:
        a = arm(w, w.init["meta"]["adapter"], x, free=w.init["meta"]["free"])
        groups["init"] = ["from scratch", "from --init"]
        arms |= {"from scratch": a, "from --init": a | {"init": True}}
    trained = run_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: decoded(w, trained[name], a) for name, a in arms.items()} | controls(w)
    scores = scored(w, rows, {w.lpips_name: w.lpips, "ssim": ssim})
    base = scores[w.lpips_name]
    beside = {name: kinds[0] for name in arms if name != kinds[0]}
    if w.init:
        beside["from --init"] = "from scratch"
    table = table_of(w, arms, trained, scores, worse(w, base, beside))
    groups = {group: names for group, names in groups.items() if len(names) > 1}
    # name of the first arm in each group
    first = {"point": w.point, "size": f"{w.index['size']} px", "samples": f"{len(train_items)} items"}
    best = {}
    for group, names in groups.items():
        chosen = min(names, key=lambda name: sum(table[name]["val_loss"]))  # on val
        best[group] = first.get(group, chosen) if chosen == kinds[0] else chosen
    result = facts(w) | {
        "adapter": kinds[0],
        **{f"best_{group}": name for group, name in best.items()},
        **{f"{w.lpips_name}_{k}": base[k].mean() for k in ("vae", "mean_image")},
        "groups": groups,
        "arms": table,
    }
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, (arms[kinds[0]], trained[kinds[0]][0][0]))


# ---------------------------------------------------------------- does the model add to a spatial encoder?


def run_hybrid(w, started):
    """Fusion of a spatial encoder's tokens with the model's, against controls in place of the model's tokens."""
    index, read = w.spatial
    last = [p for p in with_grid(index) if p != "pixels"][-1]
    n = len(w.items)
    s, v = read(last)[:, 0], w.read(w.point)[:, 0]
    g = torch.Generator().manual_seed(w.seed)
    shuffled = torch.arange(n)
    for part in w.split.values():
        shuffled[part] = part[torch.randperm(len(part), generator=g)]
    second = {"fused": v, "zero": torch.zeros_like(v), "noise": torch.randn(v.shape, generator=g)}
    second |= {"shuffled": v[shuffled], "twice": s}
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
    scores["recon_spatial_iou"], runs = score_decoded(w, rows)
    # arms without this item's tokens of the trained model
    rivals = [name for name in arms if name not in ("fused", "oracle", "model", "model_twice")]
    shown = "model", "model_twice", "oracle"
    criteria = criteria_of(w, scores, "fused", (*rivals, "mean_image"), len(rivals), shown)
    maps = detections(w, trained, arms, ("fused", "zero", "noise", "twice", "shuffled"))
    criteria["fused_map50"] = criterion(
        maps["fused"],
        {k: m for k, m in maps.items() if k != "fused"},
        range(maps["fused"].shape[1]),
        **{"n": len(w.sources), "layer": w.point, "options_searched": len(maps) - 1},
    )
    errors = scores[w.lpips_name]
    # the better of an MLP and of an adapter with attention, as fusion has
    alone = min(("model", "model_twice"), key=lambda k: errors[k].mean())
    adds = criteria[w.lpips_name]
    repairs = paired_test(errors[alone], errors["fused"], w.sources, seed=w.seed)
    answer = {
        "model_adds": answer_of(adds, adds["upper_bound"] - adds["baseline"]),
        "spatial_adds": answer_of(repairs, errors["vae"].mean() - errors[alone].mean()),
    }
    table = table_of(w, arms, trained, scores, {})
    for name, row in table.items():
        row["recon_map50"] = runs[name].mean()
    for name, runs_of in maps.items():
        table[name]["fused_map50"] = runs_of.mean()
    result = facts(w) | {"spatial": index["model"], "spatial_layer": last, **answer}
    for name, test in (("model_adds", adds), ("spatial_adds", repairs)):
        result |= {f"{name}_{k}": test[k] for k in ("gain", "gain_low", "gain_high", "p")}
    result |= {
        "rival": adds["baseline_name"],
        "model_alone": alone,
        **overhead(w),
        **headline(criteria, w.lpips_name),
        "criteria": criteria,
        "arms": table,
    }
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, (arms["fused"], trained["fused"][0][0]))


def detections(w, trained, arms, names):
    """{name: mAP [5, sources]} of a set probe (five seeds) on the fused tokens of each arm's first seed."""
    _, truth, classes = box_truth(w.items)
    out = {}
    for name in names:
        inputs, tokens = arms[name]["inputs"], trained[name][0][0].tokens
        with torch.inference_mode():
            parts = torch.arange(len(w.items)).split(64)
            x = torch.cat([tokens(*inputs(part)).cpu() for part in parts])
        fitted = w.split["train"], w.split["val"]
        predict = train_set_probe([(x.clone(), truth, False)], len(classes), *fitted, seed=w.seed)
        out[name] = ap_runs(predict, truth, w.split["test"], w.sources)
    return out


def answer_of(test, headroom):
    """yes: the gain's interval is above zero; no: it is below a tenth of the headroom; else inconclusive."""
    if test["gain_low"] > 0:
        return "yes"
    return "no" if test["gain_high"] < 0.1 * abs(headroom) else "inconclusive"


def overhead(w):
    """The second encoder's seconds per item over the model's; timed in one run by extract.py --model a+b."""
    a, b = w.spatial[0].get("seconds_per_item"), w.index.get("seconds_per_item")
    if not (a and b):
        why = "layers were streamed, so no single pass was timed"
        return {"latency_overhead": None, "latency_reason": why}
    one_run = Path(w.args.spatial).parent == Path(w.args.features).parent
    return {"latency_overhead": a / b, "latency_in_one_run": one_run}


# ---------------------------------------------------------------- an adapter for the video transformer


def prepare_prompt(args):
    """Namespace of `prompt`. Checks all arguments, then loads the clips and the frozen video model."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.index, w.read = load_features(args.features)
    items, w.data = load_items(w.index["data_path"])
    w.items, w.ids = join(items, w.index, args.features), w.index["ids"]
    w.split = split_indices(w.items, args.features)
    w.point = checked_point(args, w.index, args.features)
    entry = find_model(args.video)
    if entry["kind"] != "video":
        fail(f"--video {args.video} is a {entry['kind']}; give a video pipeline, such as ltx-video")
    args.frames = frames = args.frames or entry.get("frames", 9)
    size = args.size or entry["clip"]
    check_shape(frames, size, geometry(entry), entry["name"])
    if short := [i for i in w.items if len(i.get("frames", ())) < frames]:
        few = f"{short[0]['id']!r} has {len(short[0].get('frames', ()))} frames"
        fail(f"{w.index['data_path']}: {few} where {frames} are needed; lower --frames, or give longer clips")
    if not all(caption(i) for i in w.items) and (args.loss or SETTINGS["prompt"]["loss"]) == "words":
        fail(f"{w.index['data_path']} has clips without text, which --loss words learns; use --loss flow")
    w.how = training_settings(args, SETTINGS["prompt"], len(w.split["train"]))
    w.init = load_pt(args.init, ADAPTER) if args.init else None
    w.kind = args.adapters.split(",")[0]
    if w.kind not in ("queries", "perceiver"):
        fail(f"--adapters {w.kind} gives an image grid, no prompt; give queries or perceiver")
    w.out = Path(args.out or Path(args.features).parent / "adapt-prompt.yaml")
    check_writable(w.out)
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    # in fp16 the gradient through the transformer underflows
    w.dtype = torch.float32 if w.dtype == torch.float16 and w.how["loss"] == "flow" else w.dtype
    w.entry, w.pipeline = entry, load_video_pipeline(entry, w.device, w.dtype)[0]
    for part in (w.pipeline.transformer, w.pipeline.text_encoder, w.pipeline.vae):
        part.requires_grad_(False)
    w.clips = torch.stack([frames_of(i, size)[(len(i["frames"]) - frames) // 2 :][:frames] for i in w.items])
    return w


@torch.inference_mode()
def encode_prompts(w, prompts, length):
    """(embeddings [n, length, C], mask [n, length]) of prompts by the text encoder, cut to `length` positions."""
    out, masks = [], []
    for k in range(0, len(prompts), 64):
        some = prompts[k : k + 64]
        x, mask, *_ = w.pipeline.encode_prompt(some, do_classifier_free_guidance=False, device=w.device)
        out.append(x[:, :length].float().cpu())
        masks.append(mask[:, :length].cpu())
    return torch.cat(out), torch.cat(masks)


def velocity(w, x, sigma, embeds, mask):
    """The transformer's velocity [n, t, h, w, C] at noised latents x of the same shape. sigma [n, t]: 0 for given
    frames; embeds [n, L, C'] and mask [n, L] of the prompt. Positions are those of LTXConditionPipeline."""
    n, t, h, wide, _ = x.shape
    vae = w.pipeline.vae
    r, side = vae.temporal_compression_ratio, vae.spatial_compression_ratio
    axes = (
        (torch.arange(t, device=x.device) * r + 1 - r).clamp(min=0) / 25,
        torch.arange(h, device=x.device) * float(side),
        torch.arange(wide, device=x.device) * float(side),
    )
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).expand(n, -1, -1)
    out = w.pipeline.transformer(
        x.flatten(1, 3).to(w.dtype),
        embeds.to(w.dtype),
        1000 * sigma.repeat_interleave(h * wide, 1),
        mask.to(x.device, w.dtype),
        video_coords=coordinates,
        return_dict=False,
    )[0]
    return out.float().unflatten(1, (t, h, wide))


def flow_error(w, clean, embeds, mask, g, part=slice(None)):
    """Squared error [k] of the velocity (rectified flow, Liu et al. 2022) of the clips `part` of clean
    [n, t, h, w, C], without the first latent frame, which is given. High noise levels are drawn more often."""
    noise = torch.randn(clean.shape, generator=g)[part]
    level = (1 - 0.95 * torch.rand(len(clean), generator=g) ** 2)[part]
    clean = clean[part]
    sigma = level[:, None] * (torch.arange(clean.shape[1]) > 0)
    s = sigma[:, :, None, None, None]
    out = velocity(w, ((1 - s) * clean + s * noise).to(w.device), sigma.to(w.device), embeds, mask)
    return (out[:, 1:] - (noise - clean)[:, 1:].to(w.device)).square().mean((1, 2, 3, 4))


@torch.inference_mode()
def flow_errors(w, clean, embeds, mask, items):
    """Mean `flow_error` [n] of these items over four draws of noise, the same for all embeds."""
    found = []
    for k in range(4):
        parts = []
        for p in items.split(16):
            g = torch.Generator().manual_seed(1000 * k + int(p[0]))
            parts.append(flow_error(w, clean[p], embeds[p].to(w.device), mask[p], g).cpu())
        found.append(torch.cat(parts))
    return torch.stack(found).mean(0)


def prompt_criteria(w, clean, embeds, text_mask, targets):
    """{measure: criterion} of predicted embeddings [S, n, L, C] of all clips: embedding_error, the squared error
    of standardised embeddings; flow_error of the video model with these embeddings."""
    test, sources = w.split["test"], [w.items[i]["source"] for i in w.split["test"]]
    mean, std = targets
    truth = (w.y[test] - mean) / std
    predicted = [(m[test] - mean) / std for m in embeds]
    error = torch.stack([(x - truth).square().mean((1, 2)) for x in predicted])
    other = torch.stack([(x.roll(1, 0) - truth).square().mean((1, 2)) for x in predicted])
    baselines = {"mean": truth.square().mean((1, 2))[None], "other_clip": other}
    more = {"better": "lower", "seed": w.seed, "layer": w.point, "options_searched": 1}
    criteria = {"embedding_error": criterion(error, baselines, sources, upper_bound=0.0, **more)}

    (empty, empty_mask), n = encode_prompts(w, [""], w.y.shape[1]), len(w.y)
    unmasked = torch.ones(embeds.shape[1:3])
    prompts = {
        "adapter": (embeds, unmasked),
        "text": (w.y[None], text_mask),
        "empty": (empty.expand(1, n, -1, -1), empty_mask.expand(n, -1)),
        "other_clip": (embeds[:, torch.arange(n).roll(1)], unmasked),
    }
    errors = {}
    for name, (x, mask) in prompts.items():
        errors[name] = torch.stack([flow_errors(w, clean, e, mask, test) for e in x])
    baselines, upper_bound = {k: errors[k] for k in ("empty", "other_clip")}, errors["text"].mean().item()
    return criteria | {
        "flow_error": criterion(errors["adapter"], baselines, sources, upper_bound=upper_bound, **more)
    }


def run_prompt(args, started):
    """Train an adapter from a clip's tokens to prompt embeddings of the video transformer."""
    w = prepare_prompt(args)
    x = w.read(w.point).flatten(1, 2)  # [n, t h, w, D]: time steps stacked along the height
    moments = moments_of(x, w.split["train"])
    x = (x - moments[0]) / moments[1]
    clean, prompts = encode_generated_clips(w.pipeline.vae, w.clips), [caption(i) for i in w.items]
    length = int(w.pipeline.tokenizer(prompts, padding=True, return_tensors="pt").attention_mask.sum(1).max())
    w.y, text_mask = encode_prompts(w, prompts, length)
    # a short prompt is repeated up to `length`: the adapter's outputs have no mask
    repeated = torch.arange(length) % text_mask.sum(1, keepdim=True).long()
    w.y = w.y.gather(1, repeated[:, :, None].expand_as(w.y))
    a = {
        "adapter": w.kind,
        "shape": ([tuple(x.shape[1:3])], [x.shape[3]], tuple(w.y.shape[1:2]), w.y.shape[2]),
        "free": {"width": args.width} if args.width else {},
        "moments": [moments],
    }
    # Targets are standardised: the channels of an embedding differ in scale by orders of magnitude.
    mean, std = moments_of(w.y, w.split["train"])

    def outputs(module, items):
        return module(x[items].to(w.device)) * std.to(w.device) + mean.to(w.device)

    def loss_of(module, items, g, part, warm):
        if w.how["loss"] == "flow" and not warm:
            embeds = outputs(module, items[part])
            return flow_error(w, clean[items], embeds, embeds.new_ones(embeds.shape[:2]), g, part).mean()
        target = (w.y[items[part]] - mean) / std
        return (module(x[items[part]].to(w.device)) - target.to(w.device)).square().mean()

    def build():
        module = ADAPTERS[w.kind](*a["shape"], **a["free"])
        if w.init:
            a["copied"] = start_from(module, w.init["weights"], args.init)
        return module

    folder, key = w.out.with_suffix(".training"), digest_of_tensors(*moments, mean, std)
    how, trained = w.how | {"point": w.point, "of": w.index["model"]}, []
    for seed in tqdm(range(w.seed, w.seed + w.how["seeds"]), desc="adapter", unit="seed"):
        state = folder / f"{key}-{seed}.pt"
        trained.append(train(build, loss_of, w.split, seed, how, w.device, state, w.ids))
    if ranks()[0]:
        return {}
    parts = torch.arange(len(x)).split(64)
    with torch.inference_mode():  # [S, n, L, C]
        embeds = torch.stack([torch.cat([outputs(m, p).float().cpu() for p in parts]) for m, _ in trained])
    criteria = prompt_criteria(w, clean, embeds, text_mask, (mean, std))
    result = {
        "stage": "adapt",
        "mode": "prompt",
        "model": w.index["model"],
        "decoder": w.entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.entry["weights"],
        "data": w.index["data"],
        "data_name": w.data["name"],
        "layer": w.point,
        "adapter": w.kind,
        "loss": w.how["loss"],
        "parameters": parameters(trained[0][0]),
        "input": "the whole clip: the result is an upper bound, not a prediction",
        **headline(criteria, "lpips"),
        "criteria": criteria,
        "seeds": [
            {"val_loss": r["val"], "epoch": r["epoch"], "seconds_per_step": r["seconds_per_step"]}
            for _, r in trained
        ],
    }
    result |= {"init": args.init, "copied_parameters": a["copied"][0]} if w.init else {}
    result["run"] = run_of(w, args, started)
    meta = {
        "into": "prompt",
        "model": w.index["model"],
        "point": w.point,
        "decoder": w.entry["name"],
        "weights": w.index["weights"],
        "frames": args.frames,
        "data_path": w.index["data_path"],
    }
    save_pt(w.out.parent / "conditioning-prompt.pt", RESULT, w.ids, meta, embeds=embeds[0].half())
    meta |= {"size": w.index["size"]}
    write_adapter(w.out.parent / "adapter-prompt.pt", trained[0][0], a, meta, (mean, std))
    save_yaml(w.out, result)
    shutil.rmtree(folder, ignore_errors=True)
    print_summary(result)
    return result


def run_apply(args, started):
    """Write a trained adapter's outputs for other clips: conditioning-prompt.pt, for video.py --adapter."""
    use, meta = load_adapter(args.adapter)
    if meta["into"] != "prompt":
        fail(f"{args.adapter} gives {meta['into']}, no prompt; give an adapter of adapt.py prompt")
    index, read = load_features(args.features)
    if meta["point"] not in index["points"]:
        fail(f"{args.adapter} reads {meta['point']}, which {args.features} does not hold; extract it")
    if index["model"] != meta["model"]:
        trained_on = f"{args.adapter} was trained on {meta['model']}"
        fail(f"{trained_on}, and {args.features} is of {index['model']}; train another one with --init")
    x = read(meta["point"]).flatten(1, 2)
    needed = [*meta["grids"][0], meta["dims"][0]]
    if list(x.shape[1:]) != needed:
        shapes = f"reads tokens {needed}, and {args.features} holds {list(x.shape[1:])}"
        fail(f"{args.adapter} {shapes}; extract with the same size and frames")
    out = Path(args.out or Path(args.features).parent / "conditioning-prompt.pt")
    check_writable(out)
    embeds = torch.cat([use(part) for part in x.split(64)]).half()
    meta = meta | {"model": index["model"], "weights": index["weights"], "data_path": index["data_path"]}
    save_pt(out, RESULT, index["ids"], meta, embeds=embeds)
    result = {
        "stage": "adapt",
        "mode": "apply",
        "adapter": args.adapter,
        **{k: meta[k] for k in ("model", "decoder", "point")},
        "items": len(embeds),
        "out": str(out),
    }
    print_summary(result)
    return result


def image_flags(p, defaults):
    """Flags of the jobs that train on images."""
    add = p.add_argument
    add("--features", default="results/tiny/shapes/features", help="the model's features")
    add(
        "--latents",
        default="results/tiny-vae/shapes/features",
        help="the decoder's latents of the same images",
    )
    add("--random", help="features of the untrained network: a control")
    add("--align", help="align.yaml: read its recommended layer (ablation: and the next two)")
    add("--point", help="read this layer instead")
    add("--vae", default="tiny-vae", help="the decoder")
    add("--evaluator", default="tiny-dinov2", help="the frozen encoder that scores decoded images")
    add_training_flags(p, defaults, ("latents", "pixels"))
    add("--out", help="default: adapt-<job>.yaml beside --features")


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "latents": "gate 1: map the model's tokens to the decoder's latents, with the better of two adapters",
            "scaling": "gate 2: is an adapter of 10M parameters as good as one of 100M?",
            "ablation": "gate 2: which adapter, layer and resolution; how many training items?",
            "hybrid": "gate 2: does the model add to a spatial encoder?",
            "prompt": "map a clip's tokens to the prompt of a video model, for video.py --adapter",
            "apply": "write a trained adapter's outputs for other items",
        },
    )
    for name in ("latents", "scaling", "ablation", "hybrid"):
        image_flags(jobs[name], SETTINGS[name])
    some = "comma-separated"
    jobs["latents"].add_argument("--adapters", default="mlp,queries", help=f"{some}; the best on val is used")
    jobs["scaling"].add_argument("--adapters", default="mlp", help="the adapter that is scaled")
    jobs["scaling"].add_argument(
        "--unscaled", action="store_true", help="5M to 100M parameters for a small model too"
    )
    jobs["ablation"].add_argument(
        "--adapters", default="mlp,queries,perceiver,bottleneck", help=f"{some}; also lora"
    )
    jobs["ablation"].add_argument("--at", nargs="*", help="features of the same images at other sizes")
    jobs["ablation"].add_argument(
        "--init", help="another model's adapter.pt, compared with training from scratch"
    )
    jobs["hybrid"].add_argument("--spatial", required=True, help="features of a spatial encoder")
    add = jobs["prompt"].add_argument
    add("--features", default="results/tiny/moving/features", help="the model's features of clips")
    add("--point", help="the layer to read (default: the middle one of the language layers)")
    add("--video", default="tiny-ltx", help="the video pipeline")
    add("--frames", type=int, help="the middle frames of a clip, 8k+1 (default: the registry's, else 9)")
    add("--size", type=int, help="side in pixels, a multiple of 32 (default: the registry's)")
    add("--width", type=int, help="width of the adapter")
    add("--adapters", default="queries", help="the adapter")
    add("--init", help="an adapter.pt to start from, of this or another model")
    add_training_flags(jobs["prompt"], SETTINGS["prompt"], ("words", "flow"))
    add("--out", help="default: adapt-prompt.yaml beside --features")
    jobs["apply"].add_argument("--adapter", required=True, help="an adapter.pt")
    jobs["apply"].add_argument("--features", required=True, help="features of the items")
    jobs["apply"].add_argument("--out", help="default: conditioning-prompt.pt beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "apply":
        return run_apply(args, started)
    if args.mode == "prompt":
        return run_prompt(args, started)
    run = {"latents": run_latents, "scaling": run_scaling, "ablation": run_ablation, "hybrid": run_hybrid}
    return run[args.mode](prepare(args), started)


if __name__ == "__main__":
    main()
