"""Predictors of latents for predict.py: the network, its losses, the training of a variant."""

import functools
import math

import torch
from torch.nn import functional as F
from tqdm import tqdm

import ltx
import media
import metrics
import models
import stats
import training
from common import fail

TEMPERATURE = 0.07

# w below is the namespace of predict.py: items, split, read, last, random (features), index, point, language
# (layers), z [n, T, h, w, C] (latents), present, future, frames, horizons, ahead (numbers of the predicted
# frames), action [n], variants, trained.


# ---------------------------------------------------------------- the network


def merged(x):
    """Tokens [n, t, h, w, D] on a grid of at most 6 x 6: f x f neighbours are concatenated, as in Qwen's
    merger;
    averaged where no f divides the grid."""
    (h, w), most = x.shape[2:4], 6
    f = next((f for f in range(1, max(h, w) + 1) if h % f == w % f == 0 and max(h, w) // f <= most), None)
    if f is None or f * f > 16:
        x, steps = x.flatten(0, 1).permute(0, 3, 1, 2), x.shape[:2]
        x = F.adaptive_avg_pool2d(x, (min(h, most), min(w, most)))
        return x.permute(0, 2, 3, 1).unflatten(0, steps)
    return x.unflatten(3, (-1, f)).unflatten(2, (-1, f)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


class Predictor(torch.nn.Module):
    """Tokens of the past [n, t, h, w, D] -> latents [n, H, W, C] of a future frame; horizon: an index.

    A query for each latent place and horizon, plus a linear map of the tokens there, attends to all tokens.
    time: "both": tokens of one place first attend to each other over time; "causal": to earlier ones, and
    queries read the last step. actions: number of actions (0: no such input). delta: the output, zero at
    the start, is added to the present's latents.
    """

    def __init__(self, grid, out_grid, channels, horizons, time=None, actions=0, delta=False, width=64):
        super().__init__()
        self.here = torch.nn.Linear(grid[0] * grid[3], width)
        t, h, w, d = merged(torch.empty(1, *grid, device="meta")).shape[1:]
        self.out_grid, self.time, self.delta = out_grid, time, delta
        self.embed = torch.nn.Linear(d, width)
        self.place = torch.nn.Parameter(torch.randn(h * w, width) * 0.1)
        self.moment = torch.nn.Parameter(torch.randn(t, 1, width) * 0.1)
        if time:
            how = {"dropout": 0.0, "batch_first": True, "norm_first": True}
            layer = torch.nn.TransformerEncoderLayer(width, 4, 2 * width, **how)
            self.over_time = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.query = torch.nn.Parameter(torch.randn(math.prod(out_grid), width) * 0.1)
        self.horizon = torch.nn.Parameter(torch.randn(horizons, 1, width) * 0.1)
        self.action = torch.nn.Embedding(actions, width) if actions else None
        self.layers = torch.nn.ModuleList(training.attention(width) for _ in range(2))
        self.out = torch.nn.Linear(width, channels)
        # zero output at the start (with delta: a copy), so that an untrained head adds no noise
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def attended(self, memory):
        """Tokens [n, t, hw, width] after attention over time."""
        n, t = memory.shape[:2]
        mask = None
        if self.time == "causal":
            mask = torch.nn.Transformer.generate_square_subsequent_mask(t, device=memory.device)
        memory = self.over_time(memory.transpose(1, 2).flatten(0, 1), mask, is_causal=mask is not None)
        memory = memory.unflatten(0, (n, -1)).transpose(1, 2)
        return memory[:, -1:] if self.time == "causal" else memory

    def forward(self, x, horizon, present, action):
        """x [n, t, h, w, D], standardised; horizon [n], present [n, H, W, C], action [n]."""
        here = training.resample(x.flatten(0, 1), self.out_grid).unflatten(0, x.shape[:2])
        here = here.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # [n, HW, t D]
        memory = self.embed(merged(x).flatten(2, 3)) + self.place + self.moment  # [n, t, hw, width]
        memory = (self.attended(memory) if self.time else memory).flatten(1, 2)
        if self.action is not None:
            memory = torch.cat([memory, self.action(action)[:, None]], 1)
        query = self.query + self.horizon[horizon] + self.here(here)
        for layer in self.layers:
            query = layer(query, memory)
        z = self.out(query).unflatten(1, self.out_grid)
        return present + z if self.delta else z


class LoraPredictor(torch.nn.Module):
    """A Predictor on the tokens of a VLM with LoRA (training.Tuned), standardised by (mean, std) [D]."""

    def __init__(self, tuned, head, moments):
        super().__init__()
        self.tuned, self.head, self.moments = tuned, head, moments

    def tokens(self, x):
        mean, std = (z.to(next(self.head.parameters()).device) for z in self.moments)
        return (self.tuned(x) - mean) / std

    def forward(self, x, *more):
        return self.head(self.tokens(x), *more)


def info_nce(predicted, truth, hard):
    """InfoNCE of cosines (van den Oord et al. 2018): predicted [n, ...] against truth [n, ...]. Negatives:
    the
    truths of other items, and `hard` [n, k, ...]."""
    predicted = F.normalize(predicted.flatten(1), dim=1)
    truth = F.normalize(truth.flatten(1), dim=1)
    hard = F.normalize(hard.flatten(2), dim=2)
    others, own_hard = truth @ truth.T, torch.einsum("nd,nkd->nk", truth, hard)
    # where nothing moves, the present equals the truth and is no negative
    same = torch.cat([others.fill_diagonal_(0), own_hard], 1) > 1 - 1e-6
    scores = torch.cat([predicted @ truth.T, torch.einsum("nd,nkd->nk", predicted, hard)], 1)
    target = torch.arange(len(predicted), device=predicted.device)
    return F.cross_entropy(scores.masked_fill(same, -1) / TEMPERATURE, target)


def latent_cosine(a, b):
    """Cosine of latents [..., H, W, C], each frame as one vector."""
    return F.cosine_similarity(a.flatten(-3).double(), b.flatten(-3).double(), dim=-1)


# ---------------------------------------------------------------- what a variant reads


def middle(points):
    """The middle one of a stack's layers."""
    return points[(len(points) - 1) // 2]


def input_of(w, name):
    """(tokens [n, t, h, w, D] of a variant, standardised in fp16 on the device; (mean, std) [D])."""
    reads = w.variants[name]["reads"]
    if reads in ("present", "latents"):
        x = w.present[:, None] if reads == "present" else w.z[:, : w.args.past]
    else:
        read = {"last": w.last, "random": w.random}.get(reads, w.read)
        point = middle(w.language) if reads == "language" else w.point
        x = stats.layer_of(read, point, torch.arange(len(w.items)))
    steps = len(x[torch.zeros(1, dtype=torch.long)][0])
    found, moments = training.standardised(x, w.split["train"], w.device)
    return found.unflatten(1, (steps, -1)), moments


def tuned_model(w, rank):
    """(VLM with LoRA, function from items to its inputs). Exit 2 unless it reproduces the features."""
    entry, size = models.model_of(w.index), w.index["size"]
    if not entry.get("type", "").startswith("qwen"):
        fail(f"{w.index['model']} is not of Qwen's family, as lora needs; leave it out of --variants")
    point, dtype = middle(w.language), torch.float32 if w.dtype == torch.float16 else w.dtype
    path, some = w.index["points"][point]["module"], w.split["train"][:2]
    vlm, processor = training.load_up_to(entry, path, w.device, dtype)

    def inputs(items):
        past = [w.items[k] | {"shown": list(range(w.args.past))} for k in items]
        batch = models.qwen_inputs(processor, media.stacked(past, size), "Describe the clip.")
        for k, v in batch.items():
            batch[k] = v.to(w.device, dtype if v.is_floating_point() else v.dtype)
        return dict(batch)

    stored = w.read(point, some)
    tuned = training.Tuned(vlm, path, stored.shape[1:], vlm.config.video_token_id, rank).to(w.device)
    with torch.inference_mode():
        x = tuned(inputs(some)).cpu()
    if (x - stored).norm() > 0.02 * stored.norm():
        fail(f"{w.index['model']} does not reproduce the stored features of {point}; extract them again")
    return tuned, inputs


# ---------------------------------------------------------------- training and prediction


def pixel_loss_of(w):
    """(the loss on decoded pixels of train and val clips, the number of each clip among them)."""
    seen = torch.cat([w.split["train"], w.split["val"]])
    place = torch.zeros(len(w.items), dtype=torch.long).index_put((seen,), torch.arange(len(seen)))
    images = w.frames[seen][:, w.ahead].flatten(0, 1)

    decoder = functools.partial(ltx.images_of, w.vae)
    return metrics.pixel_loss(decoder, metrics.lpips_model(w.device)[0], images), place


def loss_function(w, variant, inputs):
    """The training loss of a variant, at a random horizon for each clip."""
    horizons, kind = variant.get("horizons", w.horizons), variant.get("loss")
    if kind == "pixels":
        w.pixel_loss = getattr(w, "pixel_loss", None) or pixel_loss_of(w)

    def loss_of(module, picked, g, part, warm):
        k = torch.randint(len(horizons), (len(picked),), generator=g)[part]
        i = picked[part]
        truth = w.present[i] if horizons == (0,) else w.future[i, k]
        z = module(inputs(i), k.to(w.device), w.present[i].to(w.device), w.action[i].to(w.device))
        if kind == "pixels":
            loss, place = w.pixel_loss
            return loss(z, place[i] * len(horizons) + k)
        error = (z - truth.to(z.device)).square().mean()
        if kind == "contrastive":  # hard negatives: the present, and another moment of the same clip
            others = [w.present[i], *([w.future[i, (k + 1) % len(horizons)]] if len(horizons) > 1 else [])]
            return info_nce(z, truth.to(z.device), torch.stack(others, 1).to(z.device)) + error
        return error

    return loss_of


def train_variant(w, name, train_items=None):
    """([(module, record) of each seed], function from items to the module's input) of a variant."""
    v, items = w.variants[name], w.split["train"] if train_items is None else train_items
    x, moments = input_of(w, name)
    horizons = v.get("horizons", w.horizons)
    shape = tuple(x.shape[1:]), tuple(w.present.shape[1:3]), w.present.shape[3], len(horizons)
    free = {"time": v.get("time"), "delta": v.get("delta", False)}
    free["actions"] = len(w.actions) + 1 if v.get("action") else 0
    how = w.how | {"warm": 0, "variant": name, "point": w.point, "items": len(items)}
    # an epoch has equally many steps for any number of clips
    over = items.repeat(-(-len(w.split["train"]) // len(items)))[: len(w.split["train"])]
    if "rank" in v:
        how["lr"] /= 10  # LoRA starts from the trained head, which large steps would undo
        tuned, inputs = tuned_model(w, v["rank"])
    else:

        def inputs(rows):
            return x[rows.to(x.device)].float()

    def build(seed):
        head = Predictor(*shape, **free)
        if "after" in v:  # a warm start on latents
            head.load_state_dict(w.trained[v["after"]][seed][1]["weights"])
        return LoraPredictor(tuned.reset(), head, moments) if "rank" in v else head

    found, loss_of = [], loss_function(w, v, inputs)
    key = training.digest_of_tensors(w.z[items], *moments)
    split = {"train": over, "val": w.split["val"]}
    for s in tqdm(range(w.args.seeds), desc=name, unit="seed"):
        state = w.out.with_suffix(".training") / f"{key}-{name}-{w.seed + s}.pt"
        make = functools.partial(build, s)
        found.append(training.train(make, loss_of, split, w.seed + s, how, w.device, state, w.index["ids"]))
    return found, inputs


@torch.inference_mode()
def predict(w, name, trained, inputs, items):
    """Latents [seeds, n, horizons, H, W, C] that a variant's modules predict for `items`."""
    horizons, out = w.variants[name].get("horizons", w.horizons), []
    for module, record in trained:
        module.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        head, rows = getattr(module, "head", module), []
        for part in items.split(64):
            x = inputs(part) if head is module else module.tokens(inputs(part))  # once for all horizons
            more, ahead = (w.present[part].to(w.device), w.action[part].to(w.device)), []
            for k in range(len(horizons)):
                ahead.append(head(x, torch.full((len(part),), k, device=w.device), *more).float().cpu())
            rows.append(torch.stack(ahead, 1))
        out.append(torch.cat(rows))
    return torch.stack(out)
