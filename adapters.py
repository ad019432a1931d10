"""Adapters: small networks from a model's tokens to a decoder's latents; their training, scores and files."""

import dataclasses
import functools
import math
import time
from bisect import bisect_right
from collections.abc import Callable

import torch
from torch.nn import functional as F
from tqdm import tqdm

import ltx
import metrics
import models
import probes
import stats
import training
from common import choose_device, fail, load_pt, pyplot, save_pt, save_yaml, with_grid
from media import foreground, frames_of
from training import attention, learned, resample

ADAPTER = "foresight.adapter.v2"
RATES = 1 / 3, 1, 3  # times the learning rate: val chooses, for each size
# target, acceptable, fail: the evaluation plan, E-P4.6
BANDS = {"lpips": (0.30, 0.35, 0.45), "ssim": (0.80, 0.75, 0.65), "recon_spatial_iou": (0.65, 0.60, 0.55)}
BANDS |= {"recon_map50": (0.30, 0.20, 0.10)}

# ---------------------------------------------------------------- tokens [n, h, w, D] -> latents [n, H, W, C]

# Arguments: grids and widths of the token sets, grid and channels of the latents. `width` and `inner` set the
# number of parameters.


def perceptron(dim, width, inner, out):
    """Layer norm and an MLP with two hidden layers."""
    return torch.nn.Sequential(
        torch.nn.LayerNorm(dim),
        torch.nn.Linear(dim, width),
        torch.nn.GELU(),
        torch.nn.Linear(width, inner),
        torch.nn.GELU(),
        torch.nn.Linear(inner, out),
    )


class Mlp(torch.nn.Module):
    """Tokens resampled to the latent grid, then the same MLP at every place."""

    def __init__(self, grids, dims, out_grid, channels, width=256, inner=None):
        super().__init__()
        self.out_grid, self.net = out_grid, perceptron(dims[0], width, inner or width, channels)

    def forward(self, x):
        return self.net(resample(x, self.out_grid))


class Bottleneck(torch.nn.Module):
    """A residual bottleneck on every token (Houlsby et al. 2019), then one linear map to the latents."""

    def __init__(self, grids, dims, out_grid, channels, width=64, inner=None):
        super().__init__()
        self.out_grid, self.narrow = out_grid, perceptron(dims[0], width, inner or width, dims[0])
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
        """Fused tokens [n, H, W, width] on the decoder's grid, of two sets of tokens [n, h, w, D]."""
        found = []
        for k, x in enumerate((resample(spatial, self.out_grid), semantic)):
            found.append(self.embed[k](F.layer_norm(x.flatten(1, 2), x.shape[-1:])) + self.position[k])
        return self.layer(*found).unflatten(1, self.out_grid)

    def forward(self, spatial, semantic):
        return self.out(self.tokens(spatial, semantic))


class Lora(torch.nn.Module):
    """LoRA in the VLM up to a language layer, then a linear map of its image tokens. Reads images."""

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


SINGLE = {
    "mlp": Mlp,
    "bottleneck": Bottleneck,
    "queries": Queries,
    "perceiver": Perceiver,
}  # of one token set
ADAPTERS = SINGLE | {"fusion": Fusion}


def parameters(module):
    return sum(p.numel() for p in learned(module).values())


def sized(kind, target, *shape):
    """{width, inner} of the adapter with `target` parameters, within 5%; ValueError where there is none."""

    def count(**free):
        with torch.device("meta"):
            return parameters(ADAPTERS[kind](*shape, **free))

    width = 4 * bisect_right(range(1, 4096), target, key=lambda w: count(width=4 * w))
    if not width:
        raise ValueError(f"the smallest {kind} adapter has {count(width=4)} parameters")
    inner = max(bisect_right(range(1, 1 << 16), target, key=lambda i: count(width=width, inner=i)), 1)
    found = count(width=width, inner=inner)
    if abs(found - target) > 0.05 * target:
        raise ValueError(f"the {kind} adapter nearest to {target} parameters has {found}")
    return {"width": width, "inner": inner}


# ---------------------------------------------------------------- files


def write_adapter(path, module, a, outputs=None, **meta):
    """Write the module of an `Arm` and a YAML beside it that describes it.

    outputs: (mean, std) of standardised targets.
    """
    grids, dims, out_grid, channels = a.shape
    meta |= {"adapter": a.kind, "grids": [list(g) for g in grids], "dims": list(dims), "free": a.free}
    meta |= {"out_grid": list(out_grid), "channels": channels}
    weights = {k: p.detach().cpu().clone() for k, p in learned(module).items()}
    outputs = torch.stack(outputs) if outputs else torch.tensor([[0.0], [1.0]])
    tokens = [torch.stack(moments) for moments in a.moments]
    save_pt(path, ADAPTER, [], meta, weights=weights, tokens=tokens, outputs=outputs)
    gives = "latents, normalised by the decoder's own mean and standard deviation"
    about = {"parameters": parameters(module), "file": path.name}
    about["reads"] = "tokens of `point` at `size` pixels: of images [n, h, w, D], of clips [n, t h, w, D]"
    about["gives"] = gives if meta["into"] == "latents" else "prompt embeddings"
    save_yaml(path.with_suffix(".yaml"), {"stage": "adapter"} | meta | about)


def load_adapter(path):
    """(function from stored token sets to the adapter's outputs, its meta). Not for LoRA."""
    saved = load_pt(path, ADAPTER)
    meta = saved["meta"]
    grids = [tuple(g) for g in meta["grids"]]
    make = ADAPTERS[meta["adapter"]]
    module = make(grids, meta["dims"], tuple(meta["out_grid"]), meta["channels"], **meta["free"])
    module.load_state_dict(saved["weights"])
    module.eval()

    @torch.inference_mode()
    def use(*sets):
        standard = [training.in_half(x, *t).float() for x, t in zip(sets, saved["tokens"], strict=True)]
        mean, std = saved["outputs"]
        return module(*standard) * std + mean

    return use, meta


def start_from(module, weights, path):
    """Copy the weights whose name and shape fit; the number of parameters copied. Exit 2 where none fits."""
    new = learned(module)
    same = {k: v for k, v in weights.items() if k in new and new[k].shape == v.shape}
    if not same:
        fail(f"--init {path} has no weight that fits the new adapter; give one of the same kind and width")
    module.load_state_dict(same, strict=False)
    return sum(v.numel() for v in same.values())


# ---------------------------------------------------------------- arms of a comparison

# w below is the namespace of adapt.py: items, ids, split, sources (of the test items), index and read
# (features), y (latents [n, h, w, C]), vae, originals (uint8 [n, H, W, 3]), how (training), out (the YAML).


@dataclasses.dataclass
class Arm:
    """An adapter of a comparison. inputs(items): what its module reads; shape: arguments of the networks."""

    kind: str
    shape: tuple
    inputs: Callable
    build: Callable
    train: torch.Tensor  # numbers of the training items
    moments: list = ()  # (mean, std) of each token set
    free: dict = dataclasses.field(default_factory=dict)  # width and inner of its network
    init: bool = False  # start from --init
    about: dict = dataclasses.field(default_factory=dict)  # columns of its row in the table


def tokens_of(w, read, point):
    """`standardised` tokens of a point of `Features`, on the device."""
    return training.standardised(
        stats.layer_of(read, point, torch.arange(len(w.ids))), w.split["train"], w.device
    )


def arm(w, kind, *sets, target=None, free=None, train=None, init=False, shape=None, **about):
    """An `Arm` from token sets (tokens, moments), with `target` parameters or the sizes `free`."""
    grids = [tuple(x.shape[1:3]) for x, _ in sets]
    shape = grids, [x.shape[3] for x, _ in sets], *(shape or (tuple(w.y.shape[1:3]), w.y.shape[3]))
    free = sized(kind, target, *shape) if target else free or {}

    def inputs(items):
        return [x[items.to(x.device)].float().to(w.device) for x, _ in sets]

    def build():
        module = ADAPTERS[kind](*shape, **free)
        if init:
            about["copied_parameters"] = start_from(module, w.init["weights"], w.args.init)
        return module

    train = w.split["train"] if train is None else train
    return Arm(kind, shape, inputs, build, train, [moments for _, moments in sets], free, init, about)


def middle_layer(index):
    """The middle stored language layer that has a token grid, or None."""
    layers = [p for p in with_grid(index) if p.startswith("language.")]
    return layers[(len(layers) - 1) // 2] if layers else None


def lora_arm(w):
    """The LoRA adapter: images through the VLM up to the middle stored language layer.

    Exit 2 unless the model without LoRA reproduces the stored features, so that all adapters read the same.
    """
    point, entry, size = middle_layer(w.index), models.model_of(w.index), w.index["size"]
    if w.index.get("kind") != "vlm" or not entry.get("type", "").startswith("qwen") or not point:
        fail(f"{w.args.features} holds no language layer of Qwen's family; leave lora out of --adapters")
    # in fp16 the gradient of a mean over pixels underflows
    full = torch.float32 if w.dtype == torch.float16 else w.dtype
    path = w.index["points"][point]["module"]
    vlm, processor = training.load_up_to(entry, path, w.device, full)

    def inputs(items):
        frames = torch.stack([frames_of(w.items[i], size) for i in items])
        batch = models.qwen_inputs(processor, frames, "Describe the picture.")
        for k, v in batch.items():
            batch[k] = v.to(w.device, full if v.is_floating_point() else v.dtype)
        return [dict(batch)]

    some, out = w.split["train"][:2], (tuple(w.y.shape[1:3]), w.y.shape[3])
    stored = w.read(point, some)[:, 0]
    grid = tuple(stored.shape[1:])
    module = Lora(training.Tuned(vlm, path, grid, vlm.config.image_token_id), *out).to(w.device)
    with torch.inference_mode():
        x = module.tuned(*inputs(some)).cpu()
    if x.shape != stored.shape or (x - stored).norm() > 0.02 * stored.norm():
        fail(f"{w.index['model']} does not reproduce the stored {point}; leave lora out of --adapters")
    shape = [grid[:2]], [grid[2]], *out
    return Arm("lora", shape, inputs, module.reset, w.split["train"], about={"point": point})


def decode(vae, latents):
    """Normalised latents [n, h, w, C] -> images uint8 [n, H, W, 3]."""
    return ltx.decode_generated_clips(vae, latents[:, None])[:, 0]


@torch.inference_mode()
def round_trip(vae, frames, latents):
    """Mean difference, of 255, of decoded latents [n,h,w,C] to the reconstruction of frames [n,H,W,3]."""
    z = vae.encode(metrics.to_floats(frames)[:, :, None].to(vae.device, vae.dtype)).latent_dist.mode()
    step = torch.full((len(z),), ltx.DECODE_STEP).to(z) if vae.config.timestep_conditioning else None
    torch.manual_seed(0)  # of decoders that add noise
    expected = vae.decode(z, step).sample[:, :, 0].float().cpu()
    expected = ((expected + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)
    torch.manual_seed(0)
    return (decode(vae, latents).float() - expected).abs().mean().item()


def decoder_for_training(w):
    """The decoder of the training loss: in fp16 on a GPU without bf16, where that changes images by less than
    half a grey level; else the fp32 decoder itself."""
    if w.device.type == "cpu" or w.dtype != torch.float16:
        return w.vae
    half, _ = models.load_video_vae(w.vae_entry, w.device, torch.float16)
    half = ltx.flatten_stills(half).requires_grad_(False)
    some = w.y[w.split["val"][:8]]
    if (decode(half, some).float() - decode(w.vae, some).float()).abs().mean() < 0.5:
        w.how["scaler"] = True
        return half
    print("the decoder differs in fp16: adapters are trained in fp32, which takes longer")
    return w.vae


def load_decoder(w):
    """Add device, latents `y` [n, h, w, C], the frozen VAE and LPIPS, and the loss on pixels."""
    w.device, w.dtype, why = choose_device()
    w.run = {"device": f"{w.device.type} ({why})", "dtype": str(w.dtype), "ranks": training.ranks()[1]}
    print(f"device {w.run['device']}")
    w.y = w.latents("latents")[:, 0]
    w.vae = ltx.flatten_stills(models.load_video_vae(w.vae_entry, w.device)[0]).requires_grad_(False)
    w.originals = torch.cat([frames_of(i, w.latents.index["size"]) for i in w.items])
    if (away := round_trip(w.vae, w.originals[:4], w.y[:4])) > 2:
        off = f"(off by {away:.1f} of 255)"
        fail(f"{w.args.latents} does not hold latents of {w.args.vae} {off}; extract anew")
    w.lpips, w.lpips_name = metrics.load_lpips(w.device)
    if w.how["loss"] == "pixels":
        network = metrics.lpips_model(w.device)[0]
        decoder = functools.partial(ltx.images_of, decoder_for_training(w))
        w.pixel_loss = metrics.pixel_loss(decoder, network, w.originals)


def image_loss(w, z, items, warm=False):
    """Training loss of predicted latents z [k, h, w, C] of these items."""
    if w.how["loss"] == "pixels" and not warm:
        return w.pixel_loss(z, items)
    return (z - w.y[items].to(z.device)).square().mean()


def train_arm(w, name, a, seeds, loss_of=None, **more):
    """[(module, record)] of an arm, one a seed; equally many steps however few items it has."""
    folder, found = w.out.with_suffix(".training"), []
    digest = training.digest_of_tensors(*(x for pair in a.moments for x in pair), w.y[a.train])
    factor = len(w.split["train"]) / len(a.train)
    how = w.how | {k: round(w.how[k] * factor) for k in ("warm", "epochs")}
    how |= {"arm": name, "adapter": a.kind, **a.free, "init": a.init} | more

    def image_loss_of(module, items, g, part, warm):
        return image_loss(w, module(*a.inputs(items[part])), items[part], warm)

    split = {"train": a.train, "val": w.split["val"]}
    for seed in tqdm(seeds, desc=name, unit="seed"):
        state = folder / f"{digest}-{name}-{how['lr']:.1e}-{seed}.pt"
        run = (a.build, loss_of or image_loss_of, split, w.seed + seed, how, w.device, state, w.ids)
        found.append(training.train(*run))
    return found


def train_arms(w, arms):
    return {name: train_arm(w, name, a, range(w.how["seeds"])) for name, a in arms.items()}


def train_at_best_rate(w, name, a):
    """`train_arm` at the learning rate whose first seed is the best on val. Adds `lr` to the arm's row."""
    first = {factor * w.how["lr"]: None for factor in RATES}
    for lr in first:
        first[lr] = train_arm(w, name, a, [0], lr=lr)
    lr = min(first, key=lambda lr: first[lr][0][1]["val"])
    a.about |= {"lr": lr, "val_by_lr": {f"{x:.1e}": runs[0][1]["val"] for x, runs in first.items()}}
    return first[lr] + train_arm(w, name, a, range(1, w.how["seeds"]), lr=lr)


def step_ratio(w, a, b, rounds=15):
    """Median seconds of a step of arm a over those of b; steps alternate, so that other load meets both."""
    seconds, modules = ([], []), [x.build().to(w.device) for x in (a, b)]
    for k in range(rounds):
        items = w.split["train"][torch.arange(k, k + w.how["batch"]) % len(w.split["train"])]
        for took, x, module in zip(seconds, (a, b), modules, strict=True):
            start = time.perf_counter()
            loss = image_loss(w, module(*x.inputs(items)), items)
            torch.autograd.grad(loss, list(module.parameters()))[0].sum().item()  # waits for the device
            took.append(time.perf_counter() - start)
    return sorted(seconds[0])[rounds // 2] / sorted(seconds[1])[rounds // 2]


@torch.inference_mode()
def outputs_of(module, a, items):
    """What a trained module gives for items, on the CPU."""
    return torch.cat([module(*a.inputs(part)).float().cpu() for part in items.split(64)])


def decoded(w, trained, a):
    """Decoded test images uint8 [S * n_test, H, W, 3], seed after seed."""
    out = []
    for module, record in trained:
        module.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        out.append(decode(w.vae, outputs_of(module, a, w.split["test"])))
    return torch.cat(out)


def controls(w):
    """{upper bound and baseline: uint8 [n_test, H, W, 3]}: the VAE's reconstruction, the mean image."""
    test = w.split["test"]
    mean = w.originals[w.split["train"]].float().mean(0).round().byte()
    return {"vae": decode(w.vae, w.y[test]), "mean_image": mean.expand(len(test), -1, -1, -1)}


def of_other_items(images, n):
    """Images [S * n, ...], each given to the next test item."""
    return images.unflatten(0, (-1, n)).roll(1, 1).flatten(0, 1)


# ---------------------------------------------------------------- scores of decoded images


def score(w, rows, edges=True):
    """{measure: {name: [S, n_test]}} of decoded images {name: uint8 [S * n_test, H, W, 3]}."""
    truth, n = w.originals[w.split["test"]], len(w.split["test"])
    measures = {w.lpips_name: w.lpips, "ssim": metrics.ssim} | ({"edge_f1": metrics.edge_f1} if edges else {})
    scores = {measure: {} for measure in measures}
    for measure, function in measures.items():
        for name, images in rows.items():
            parts = [function(part.contiguous(), truth) for part in images.split(n)]
            scores[measure][name] = torch.stack(parts)
    return scores


class Evaluator:
    """A frozen DINO, at 224 px at most: mask IoU by a linear map of its tokens, mAP by a set probe.

    Both are fitted on the originals of train and val; only one seed's tokens are in memory beside theirs.
    """

    def __init__(self, w, steps=600):
        network, processor = models.load_encoder(w.evaluator, w.device, w.dtype)
        side = min(
            w.evaluator["size"], max(w.originals.shape[2], 224)
        )  # more pixels than decoded tell nothing
        self.w, self.test = w, w.split["test"]
        look, patch = (
            functools.partial(metrics.evaluator_tokens, network, processor),
            network.config.patch_size,
        )
        self.look = functools.partial(look, side // patch * patch, device=w.device)
        tokens = self.look(images=w.originals)
        self.grid, self.mask = tokens.shape[1:3], foreground(w.items, metrics.MASK)
        h, wide = self.grid
        scale = max(-(-metrics.MASK // h), 1)
        how = {"mode": "bilinear", "align_corners": False, "antialias": True}
        cells = torch.nn.functional.interpolate(self.mask[:, None], (h * scale, wide * scale), **how)
        cells, train, val = metrics.to_cells(cells, h, wide), w.split["train"], w.split["val"]
        self.map = stats.token_map(tokens.flatten(1, 2), cells, [cells.shape[-1]], train, val)
        self.level = metrics.mask_level(self.soft(tokens[val]), self.mask[val] >= 0.5)
        _, self.truth, classes = metrics.box_truth(w.items)
        jobs, fitted = [(tokens, self.truth, False)], (len(classes), train, val)
        self.predict = probes.train_set_probe(jobs, *fitted, seeds=1, steps=steps, seed=w.seed)
        self.of_originals = self.scores_of(tokens[self.test])

    def soft(self, tokens):
        """Soft masks [n, MASK, MASK] of tokens [n, h, w, D]."""
        return metrics.from_cells(self.map(tokens.flatten(1, 2)), *self.grid, 1, metrics.MASK)[:, 0]

    def scores_of(self, tokens):
        """(spatial IoU [n_test], pseudo-values of mAP [sources]) of the test items' tokens."""
        iou = metrics.mask_iou(self.soft(tokens) > self.level, self.mask[self.test] >= 0.5)
        truth, rows = [self.truth[i] for i in self.test], torch.arange(len(self.test))
        return iou, probes.ap_runs(self.predict, truth, rows, self.w.sources, tokens=tokens)[0]

    def __call__(self, rows):
        """({name: spatial IoU [S, n_test]}, {name: mAP [S, sources]}) of decoded images."""
        iou, ap = {}, {}
        for name, images in tqdm(rows.items(), desc="evaluator", unit="row"):
            found = [self.scores_of(self.look(images=part)) for part in images.split(len(self.test))]
            iou[name], ap[name] = (torch.stack(column) for column in zip(*found, strict=True))
        return iou, ap


def detections(w, trained, arms, names):
    """{name: mAP [5, sources]} of a set probe (five seeds) on the fused tokens of each arm's first seed."""
    _, truth, classes = metrics.box_truth(w.items)
    found = {}
    for name in names:
        tokens = trained[name][0][0].tokens
        with torch.inference_mode():
            parts = [tokens(*arms[name].inputs(p)).cpu() for p in torch.arange(len(w.items)).split(64)]
        jobs = [(torch.cat(parts).clone(), truth, False)]
        fitted = len(classes), w.split["train"], w.split["val"]
        predict = probes.train_set_probe(jobs, *fitted, seed=w.seed)
        found[name] = probes.ap_runs(predict, truth, w.split["test"], w.sources)
    return found


def criteria_of(w, scores, name, baselines, options, beside=()):
    """{measure: criterion} of the row `name`; upper bound: the autoencoder. beside: controls to show."""
    found = {}
    for measure, table in scores.items():
        sources = range(table[name].shape[1]) if measure == "recon_map50" else w.sources
        more = {"layer": w.point, "options_searched": options, "bands": BANDS.get(measure)}
        if beside:
            more["controls"] = {k: table[k].mean() for k in beside}
        better = "lower" if measure.startswith("lpips") else "higher"
        bound, others = table["vae"].mean().item(), {k: table[k] for k in baselines}
        record = stats.criterion(table[name], others, sources, bound, better, w.seed, **more)
        found[measure] = record | {"n": len(w.sources)}
    return found


def worse(w, errors, beside):
    """{name: paired difference of its errors [seeds, n] to those of beside[name]}, with Holm's adjustment."""
    tests = {k: stats.paired_test(errors[k], errors[other], w.sources, w.seed) for k, other in beside.items()}
    adjusted, table = stats.holm({name: t["p"] for name, t in tests.items()}), {}
    for name, t in tests.items():
        table[name] = {f"worse{end}": t[f"gain{end}"] for end in ("", "_low", "_high")}
        table[name] |= {"worse_than": beside[name], "p_holm": adjusted[name]}
    return table


def table_of(w, arms, trained, scores, more=None):
    """{name: row} of the arms: adapter, training, scores {measure: {name: [seeds, n]}} with intervals."""
    table = {}
    for name, a in arms.items():
        records = [record for _, record in trained[name]]
        row = {"adapter": a.kind, "parameters": parameters(trained[name][0][0]), **a.free}
        row |= {"point": w.point, "size": w.index["size"], "items": len(a.train), **a.about}
        row |= {"steps": records[0]["steps"], "best_epoch": [r["epoch"] for r in records]}
        row |= {"val_loss": [r["val"] for r in records]}
        row["seconds_per_step"] = sorted(r["seconds_per_step"] for r in records)[len(records) // 2]
        for measure, columns in scores.items():
            row |= stats.with_bounds(measure, stats.mean_interval(columns[name], w.sources))
            row[f"{measure}_seeds"] = columns[name].mean(1).tolist()
        table[name] = row | (more or {}).get(name, {})
    return table


def draw_strips(path, images, title):
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
