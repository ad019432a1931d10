"""One training loop for adapters and fine-tuning, LoRA helpers, and language models with soft tokens."""

import atexit
import contextlib
import datetime
import hashlib
import os
import pickle
import time
from pathlib import Path

import numpy as np
import torch

from common import _atomically, choose_device, fail, save_bytes
from metrics import lpips_features, lpips_to
from models import from_latents, greedy

# ---------------------------------------------------------------- training

SAVE_SECONDS = 20  # between two saved training states; writing one may take a second


def ranks():
    """(rank, number of ranks) of torchrun; the first call with several ranks starts the process group."""
    n = int(os.environ.get("WORLD_SIZE", 1))
    if n > 1 and not torch.distributed.is_initialized():
        # the others wait while one rank works alone, so the default of ten minutes is too short
        where = {"timeout": datetime.timedelta(hours=24)}
        if torch.cuda.is_available():
            where["device_id"] = choose_device()[0]
        torch.distributed.init_process_group("nccl" if "device_id" in where else "gloo", **where)
        atexit.register(torch.distributed.destroy_process_group)
    return int(os.environ.get("RANK", 0)), n


def learned(model):
    """{name: parameter} of the trained parameters: with LoRA, only the adapter."""
    return {k: p for k, p in model.named_parameters() if p.requires_grad}


def train(build, loss_of, split, seed, how, device="cpu", state=None, ids=None, arrange=None, bar=None):
    """Train build()'s module; keep the epoch that is best on val. Returns (module, {val, epoch, weights, losses (one a step), steps, seconds_per_step}).

    loss_of(module, items, g, part, warm): mean loss of the slice `part` of a batch of items; warm in the first how["warm"] epochs.
        It must draw from g for the whole batch, so that ranks, each with a part, together give the gradient of the batch.
    how: lr, batch, warm, epochs, patience (or None); optional: accumulate (parts of a batch in a step), adam8bit, scaler (fp16), val_batch.
    state: a file, written every SAVE_SECONDS, from which a killed training resumes exactly. ids: names of the items, for messages.
    arrange(g): the batches of an epoch (default: random). bar: a tqdm bar that counts steps.
    Raises FloatingPointError, naming the step and the items, where the loss is not finite.
    """
    rank, n = ranks()
    torch.manual_seed(seed)
    model = build().to(device)
    net = torch.nn.parallel.DistributedDataParallel(model) if n > 1 else model
    batch, parts = min(how["batch"], len(split["train"])), n * how.get("accumulate", 1)
    per_epoch = len(split["train"]) // batch
    optimizer = _adamw(how.get("adam8bit"))(learned(model).values(), lr=how["lr"], weight_decay=0.01)
    last = how["warm"] + how["epochs"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how["lr"], total_steps=last * per_epoch)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=how.get("scaler", False))
    g = torch.Generator().manual_seed(seed)

    def at_random(g):
        order = torch.randperm(len(split["train"]), generator=g)
        return list(split["train"][order].split(batch)[:per_epoch])

    arrange = arrange or at_random
    best = {"val": float("inf"), "epoch": how["warm"]}
    epoch, seconds, best_weights, losses = 0, 0.0, {}, []
    written, todo = time.time(), None
    try:
        saved = torch.load(state, map_location="cpu", weights_only=True) if state and state.is_file() else {}
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError):
        fail(f"{state} is not readable; delete it to restart its training")
    shapes = {k: v.shape for k, v in learned(model).items()}
    if saved.get("how") == how and {k: v.shape for k, v in saved["model"].items()} == shapes:
        model.load_state_dict(saved["model"], strict=False)
        for part, name in ((optimizer, "optimizer"), (schedule, "schedule"), (scaler, "scaler")):
            part.load_state_dict(saved[name])
        g.set_state(saved["g"])
        best, best_weights, losses, todo = (saved[k] for k in ("best", "best_weights", "losses", "todo"))
        epoch, seconds = saved["epoch"], saved["seconds"]

    def save(todo):
        """`todo`: the remaining batches of the epoch, or None at its end."""
        nonlocal written
        if state and rank == 0 and time.time() - written > SAVE_SECONDS:
            written = time.time()
            saved = {
                "how": how,
                "model": learned(model),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "scaler": scaler.state_dict(),
                "g": g.get_state(),
                "best": best,
                "epoch": epoch,
                "seconds": seconds,
                "best_weights": best_weights,
                "losses": losses,
                "todo": todo,
            }
            _atomically(state, lambda f: torch.save(saved, f))

    while epoch < last and (how["patience"] is None or epoch - best["epoch"] < how["patience"]):
        started, warm = time.time(), epoch < how["warm"]
        model.train()
        todo = todo or arrange(g)
        while todo:
            pick, todo = todo[0], todo[1:]
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for k in range(rank, parts, n):
                with net.no_sync() if n > 1 and k + n < parts else contextlib.nullcontext():
                    loss = loss_of(net, pick, g, slice(k, None, parts), warm)
                    value = loss.item()  # the one wait for the device in a part
                    if not np.isfinite(value):
                        at = ", ".join(str(ids[i] if ids else i) for i in pick.tolist())
                        at = f"step {len(losses)}, epoch {epoch}, items {at}"
                        raise FloatingPointError(f"the loss is {value} at {at}; lower --lr")
                    scaler.scale(loss * n / parts).backward()
                total += value * n / parts
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(learned(model).values(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(total)
            if bar is not None:
                bar.update(len(losses) - bar.n)
                bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}")
            if not warm:
                seconds, started = seconds + time.time() - started, time.time()
            if todo:
                save(todo)
        epoch += 1
        model.eval()
        if not warm:
            with torch.no_grad():
                # the same noise in every epoch
                fixed, val = torch.Generator().manual_seed(seed), 0.0
                for part in split["val"].split(how.get("val_batch", 64)):
                    val += loss_of(model, part, fixed, slice(None), False).item() * len(part)
                val /= len(split["val"])
            if n > 1:  # rounding differs by rank; all must stop at the same epoch
                shared = torch.tensor(val, device=device, dtype=torch.float64)
                torch.distributed.broadcast(shared, 0)
                val = shared.item()
            if val < best["val"]:
                best = {"val": val, "epoch": epoch}
                best_weights = {k: v.detach().cpu().clone() for k, v in learned(model).items()}
        save(None)
    model.load_state_dict(best_weights, strict=False)
    return model.eval(), best | {
        "weights": best_weights,
        "losses": losses,
        "steps": epoch * per_epoch,
        "seconds_per_step": seconds / ((epoch - how["warm"]) * per_epoch),
    }


def _adamw(eight_bit):
    if eight_bit:
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit
    return torch.optim.AdamW


def reset_lora(model):
    """Reinitialise LoRA as peft does: B is zero, so the model is unchanged at first."""
    for name, p in learned(model).items():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(p, a=5**0.5)
        elif "lora_B" in name:
            torch.nn.init.zeros_(p)
    return model


class _Reached(Exception):
    pass


class Tuned(torch.nn.Module):
    """Tokens [n, *grid] after a language layer of a VLM, with LoRA (Hu et al. 2022; peft) on queries and values up to that layer.

    The forward pass takes the processor's inputs and ends there. Seeds share one model: `reset` reinitialises LoRA.
    path: the layer's module; rows: the token id of the image's rows; grid: their shape (..., D).
    """

    def __init__(self, vlm, path, grid, rows, rank=8):
        from peft import LoraConfig, get_peft_model

        super().__init__()
        self.grid, self.rows = tuple(grid), rows
        layers = "|".join(map(str, range(int(path.rpartition(".")[2]) + 1)))
        wrapped = rf".*language_model\.layers\.({layers})\.self_attn\.[qv]_proj"
        self.vlm = get_peft_model(vlm, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=wrapped))
        self.module = self.vlm.get_base_model().get_submodule(path)

    def reset(self):
        return reset_lora(self)

    def forward(self, inputs):
        caught = []

        def stop(module, args, output):
            caught.append(output[0] if isinstance(output, tuple) else output)
            raise _Reached

        handle = self.module.register_forward_hook(stop)
        try:
            with contextlib.suppress(_Reached):
                self.vlm(**inputs)
        finally:
            handle.remove()
        return caught[0][inputs["input_ids"] == self.rows].reshape(-1, *self.grid).float()


def resample(x, grid):
    """Tokens [n, h, w, D] at another grid, bilinear."""
    x = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


def attention(width, inner=None):
    """A layer of learned queries: self-attention, attention to a memory, an MLP."""
    more = {"dropout": 0.0, "batch_first": True, "norm_first": True}
    return torch.nn.TransformerDecoderLayer(width, 4, inner or 2 * width, **more)


def images_of(vae, z):
    """Normalised latents [n, h, w, C] -> images [n, 3, H, W] in -1..1 (not clipped); differentiable."""
    return from_latents(vae, z[:, None])[:, :, 0]


def to_floats(frames):
    """uint8 [n, H, W, 3] -> [n, 3, H, W] in -1..1."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1


def pixel_loss(vae, lpips, images):
    """loss(latents [k, h, w, C], items): LPIPS + 0.1 L2 of the decoded latents against images uint8 [n, H, W, 3]."""
    parts = []
    with torch.inference_mode():
        for p in images.split(64):
            parts.append([x.cpu() for x in lpips_features(lpips, to_floats(p).to(vae.device))])
    cached = [torch.cat(level).clone() for level in zip(*parts, strict=True)]

    def loss(z, items):
        x = images_of(vae, z)
        target = to_floats(images[items]).to(x.device)
        apart = lpips_to(lpips, x, [level[items].to(x.device) for level in cached])
        return apart.mean() + 0.1 * (x - target).square().mean()

    return loss


# ---------------------------------------------------------------- language models with soft tokens

MARK = "\ue000"  # place of the soft tokens in a chat: a private-use character, absent from any text


def word_prompt(tokenizer, question, context=""):
    """Token ids (before, after) the soft tokens in a chat: soft tokens, `context`, then the question; plain lines without a chat template."""
    text = f"{MARK}{context}\n{question}"
    if tokenizer.chat_template:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    else:
        text += "\nAnswer: "
    before, after = text.split(MARK)
    has_bos = bool(tokenizer.bos_token) and before.startswith(tokenizer.bos_token)
    before = tokenizer(before, add_special_tokens=not has_bos)
    return before.input_ids, tokenizer(after, add_special_tokens=False).input_ids


def word_batch(model, tokenizer, prompts, soft=None, answers=None):
    """The model's inputs: inputs_embeds [n, L, D], padded on the left, attention_mask and position_ids [n, L].

    With answers (text) also labels [n, L], -100 outside the answers. prompts: n results of `word_prompt`; soft [n, k, D] or None.
    """
    k = 0 if soft is None else soft.shape[1]
    targets, end = [[]] * len(prompts), tokenizer.eos_token_id
    if answers:
        targets = [[*tokenizer(a, add_special_tokens=False).input_ids, end] for a in answers]
    rows = [[*b, *[-1] * k, *after, *target] for (b, after), target in zip(prompts, targets, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([[-2] * (longest - len(row)) + row for row in rows], device=model.device)
    x = model.get_input_embeddings()(ids.clamp(min=0))
    if k:
        x = x.masked_scatter((ids == -1)[:, :, None], soft.to(x))
    mask = (ids != -2).long()
    batch = {"inputs_embeds": x, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    if answers:
        labels = [[-100] * (longest - len(target)) + target for target in targets]
        batch["labels"] = torch.tensor(labels, device=model.device)
    return batch


def answer_loss(model, batch):
    """Cross-entropy [n] of the answers of a `word_batch`, averaged over each answer's tokens. Only the logits needed are computed."""
    longest = int((batch["labels"] != -100).sum(1).max())
    given = {k: v for k, v in batch.items() if k != "labels"}
    logits = model(**given, logits_to_keep=longest + 1, use_cache=False).logits[:, :-1].float()
    labels = batch["labels"][:, -longest:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return losses.sum(1) / (labels != -100).sum(1)


def mean_answer_loss(model, tokenizer, prompts, answers, soft=None, parts=2):
    """The mean of `answer_loss`, computed in parts of similar length to reduce padding."""
    long = [len(after) + len(answer) for (_, after), answer in zip(prompts, answers, strict=True)]
    order, total = sorted(range(len(prompts)), key=long.__getitem__), 0
    for k in range(parts):
        if pick := order[k * len(order) // parts : (k + 1) * len(order) // parts]:
            few, targets = [prompts[i] for i in pick], [answers[i] for i in pick]
            batch = word_batch(model, tokenizer, few, None if soft is None else soft[pick], targets)
            total = total + answer_loss(model, batch).sum()
    return total / len(prompts)


@torch.inference_mode()
def answered(model, tokenizer, prompts, soft=None, most=64, batch=128):
    """Greedy answers (text) of at most `most` tokens to `prompts` of word_prompt, with soft [n, k, D] or without."""
    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i][0]) + len(prompts[i][1]))
    for start in range(0, len(order), batch):
        pick = order[start : start + batch]
        few = [prompts[i] for i in pick]
        inputs = word_batch(model, tokenizer, few, None if soft is None else soft[pick])
        del inputs["position_ids"]  # generate derives them from the mask
        ids = model.generate(**inputs, generation_config=greedy(model, most, tokenizer.eos_token_id))
        for i, words in zip(pick, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            out[i] = words.strip()
    return out


class Soft(torch.nn.Module):
    """Embeddings [n, dim] -> soft tokens [n, k, width]: layer norm and a linear map, or with `inner` an MLP. std: of the model's token embeddings."""

    def __init__(self, dim, width, k=8, inner=0, std=1.0):
        super().__init__()
        self.sizes = {"dim": dim, "width": width, "k": k, "inner": inner}
        last = torch.nn.Linear(inner or dim, k * width)
        torch.nn.init.normal_(last.weight, std=std * last.in_features**-0.5)
        hidden = [torch.nn.Linear(dim, inner), torch.nn.GELU()] if inner else []
        self.net = torch.nn.Sequential(torch.nn.LayerNorm(dim), *hidden, last)

    def forward(self, x):
        return self.net(x.float()).unflatten(-1, (self.sizes["k"], self.sizes["width"]))


def save_soft(path, soft, **more):
    """Write soft.safetensors: weights, with the sizes and `more` (text) as metadata."""
    from safetensors.torch import save

    weights = {k: v.detach().cpu().contiguous() for k, v in soft.state_dict().items()}
    save_bytes(path, save(weights, {k: str(v) for k, v in {**soft.sizes, **more}.items()}))


def load_words(folder, model, name):
    """(model with LoRA, Soft) that tune.py words wrote into `folder`, for the language model `model` called `name`."""
    from peft import PeftModel
    from safetensors import safe_open

    path = Path(folder) / "soft.safetensors"
    if not path.is_file() or not (Path(folder) / "adapter_model.safetensors").is_file():
        fail(f"{folder} lacks {path.name} or adapter_model.safetensors; run tune.py words")
    with safe_open(path, "pt") as file:
        meta, weights = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
    width = model.get_input_embeddings().embedding_dim
    if (meta["language"], int(meta["width"])) != (name, width):
        other = f"{meta['language']} (width {meta['width']})"
        fail(f"{folder} was trained on {other}, and {name} has width {width}; give that model")
    soft = Soft(*(int(meta[k]) for k in ("dim", "width", "k", "inner")))
    soft.load_state_dict(weights)
    return PeftModel.from_pretrained(model, str(folder)).eval(), soft.to(model.device).eval()


# ---------------------------------------------------------------- settings


def digest_of_tensors(*tensors):
    """Twelve hexadecimal digits that identify features, latents or weights, for the name of a training state."""
    return hashlib.sha256(b"".join(x.float().numpy().tobytes() for x in tensors)).hexdigest()[:12]


def headline(criteria, lpips_name):
    out = {}
    for name, c in criteria.items():
        out[name] = c["score"]
        out |= {f"{name}_{k}": c[k] for k in ("low", "high", "baseline", "upper_bound", "skill")}
    if lpips_name != "lpips":
        reason = (
            "the published weights of the backbone are not in torch's cache, and the network is unreachable"
        )
        out |= {"lpips": None, "lpips_reason": reason}
    return out


def add_training_flags(p, defaults, losses=()):
    """--seeds, --warm, --epochs, --patience, --batch, --lr and, where there is a choice, --loss, each with its default from `defaults`."""
    if len(losses) > 1:
        p.add_argument("--loss", choices=losses, help=f"(default: {defaults['loss']})")
    for name, kind, words in (
        ("seeds", int, "number of trainings each"),
        ("warm", int, "first epochs, with the squared error of latents (prompt: of embeddings) as loss"),
        ("epochs", int, "most epochs after those of --warm; the best on val is used"),
        ("patience", int, "epochs without improvement on val before training stops"),
        ("batch", int, "batch size of all ranks together"),
        ("lr", float, "peak learning rate of AdamW (one cycle)"),
    ):
        if name in defaults:
            p.add_argument(f"--{name}", type=kind, help=f"{words} (default: {defaults[name]})")


def training_settings(args, defaults, items):
    """`defaults`, overridden by the command line; `items`: number of training items. Exit 2 where nothing could be trained."""
    given = {k: getattr(args, k, None) for k in defaults}
    how = defaults | {k: v for k, v in given.items() if v is not None}
    for name, least in (("seeds", 1), ("warm", 0), ("epochs", 1), ("patience", 1), ("batch", 1)):
        if how[name] is not None and how[name] < least:
            fail(f"--{name} {how[name]} trains nothing; give {least} or more")
    if not 0 < how["lr"] < 1:
        fail(f"--lr {how['lr']} is not a learning rate; give one between 0 and 1, such as 1e-4")
    how["batch"], n = min(how["batch"], items), ranks()[1]
    if how["batch"] % n:
        fail(f"--batch {how['batch']} of {items} items is not a multiple of the {n} ranks; give one that is")
    return how
