"""One training loop for adapters and fine-tuning, LoRA helpers, and language models with soft tokens."""

import atexit
import contextlib
import datetime
import hashlib
import os
import pickle
import time

import numpy as np
import torch

from common import _atomically, choose_device, fail

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
