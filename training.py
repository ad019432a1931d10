"""One training loop for adapters and fine-tuning, LoRA helpers, settings."""

import atexit
import contextlib
import datetime
import functools
import hashlib
import math
import os
import pickle
import time

import torch

from common import _atomically, choose_device, fail, memory_left
from models import load_vlm
from stats import chunks

# ---------------------------------------------------------------- training

WARM_UP = 0.05  # of all steps
SAVE_SECONDS = 20  # least time between two saved states of a training


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


def rate_at(step, steps):
    """Fraction of the peak learning rate: a linear warm-up, then half a cosine to zero."""
    first = max(round(WARM_UP * steps), 1)
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(steps - first, 1)))


def adamw(parameters, lr, eight_bit):
    optimizer = torch.optim.AdamW
    if eight_bit:
        from bitsandbytes.optim import AdamW8bit as optimizer
    return optimizer(parameters, lr=lr, weight_decay=0.01)


class Training:
    """The state of a training, which is saved after an epoch and continued exactly."""

    def __init__(self, model, split, seed, how, device, ids):
        self.model, self.net = model, model
        self.seed, self.how = seed, how
        self.rank, self.ranks = ranks()
        if self.ranks > 1:  # not every batch needs every parameter
            self.net = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        self.train, self.val = split["train"], split["val"]
        self.names = ids or range(1 + int(max(self.train.max(), self.val.max())))
        self.batch = min(how["batch"], len(self.train))
        self.steps, self.epochs = len(self.train) // self.batch, how["warm"] + how["epochs"]
        self.optimizer = adamw(learned(model).values(), how["lr"], how.get("adam8bit"))
        rate = functools.partial(rate_at, steps=self.epochs * self.steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.scaler = torch.amp.GradScaler(torch.device(device).type, enabled=how.get("scaler", False))
        self.g = torch.Generator().manual_seed(seed)
        self.epoch, self.seconds, self.losses = 0, 0.0, []
        self.saved = time.time()
        self.best, self.best_weights = {"val": math.inf, "epoch": 0}, {}

    def check(self, value, items, what):
        """Raise FloatingPointError, naming step and items, where a loss is not finite."""
        if not math.isfinite(value):
            some = ", ".join(str(self.names[i]) for i in items.tolist())
            at = f"step {len(self.losses)}, epoch {self.epoch}, items {some}"
            raise FloatingPointError(f"the {what} is {value} at {at}; lower --lr")

    def step(self, loss_of, items, warm):
        """One step on a batch, in as many parts as ranks and accumulation need. Returns this rank's loss."""
        parts, total = self.ranks * self.how.get("accumulate", 1), 0.0
        self.optimizer.zero_grad(set_to_none=True)
        for k in range(self.rank, parts, self.ranks):
            last = k + self.ranks >= parts
            with contextlib.nullcontext() if last or self.ranks == 1 else self.net.no_sync():
                loss = loss_of(self.net, items, self.g, slice(k, None, parts), warm)
                value = loss.item()  # the one wait for the device in a part
                self.check(value, items, "loss")
                self.scaler.scale(loss * self.ranks / parts).backward()
            total += value * self.ranks / parts
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(learned(self.model).values(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return total

    def run_epoch(self, loss_of, arrange, bar):
        started, warm = time.time(), self.epoch < self.how["warm"]
        self.model.train()
        for items in arrange(self.g) if arrange else self.random_batches():
            self.losses.append(self.step(loss_of, items, warm))
            if bar is not None:
                bar.update(len(self.losses) - bar.n)
                bar.set_postfix(loss=f"{sum(self.losses[-20:]) / len(self.losses[-20:]):.4f}")
        self.epoch += 1
        self.seconds += 0 if warm else time.time() - started

    def random_batches(self):
        order = torch.randperm(len(self.train), generator=self.g)
        return self.train[order].split(self.batch)[: self.steps]

    @torch.no_grad()
    def validate(self, loss_of):
        """Keep the weights if val is better. Ranks share the items; the noise is the same in every epoch."""
        self.model.eval()
        fixed, share = torch.Generator().manual_seed(self.seed), slice(self.rank, None, self.ranks)
        total = torch.zeros((), dtype=torch.float64, device=next(self.model.parameters()).device)
        for items in self.val.split(self.how.get("val_batch", 64)):
            if n := len(items[share]):
                value = loss_of(self.model, items, fixed, share, False).item()
                self.check(value, items, "loss on val")
                total += value * n
        if self.ranks > 1:
            torch.distributed.all_reduce(total)
        val = total.item() / len(self.val)
        if val < self.best["val"]:
            self.best = {"val": val, "epoch": self.epoch}
            self.best_weights = {k: p.detach().cpu().clone() for k, p in learned(self.model).items()}

    def identity(self):
        """What a saved state must share with the training that continues it."""
        items = [str(self.names[i]) for i in [*self.train.tolist(), *self.val.tolist()]]
        data = hashlib.sha256("\n".join(items).encode()).hexdigest()[:12]
        return self.how | {"seed": self.seed, "ranks": self.ranks, "data": data}

    def save(self, path):
        """Write the state, so seldom that it takes at most a tenth of the time; always the last one."""
        started = time.time()
        if self.rank or started < self.saved and self.epoch < self.epochs:
            return
        content = {"identity": self.identity(), "model": learned(self.model), "g": self.g.get_state()}
        content |= {k: getattr(self, k).state_dict() for k in ("optimizer", "schedule", "scaler")}
        content |= {k: getattr(self, k) for k in ("epoch", "seconds", "losses", "best", "best_weights")}
        _atomically(path, lambda f: torch.save(content, f))
        self.saved = time.time() + max(SAVE_SECONDS, 9 * (time.time() - started))

    def resume(self, path):
        """Continue from the state in a file. Exits with code 2 if it is of another training."""
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            theirs = content.pop("identity")
        except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError):
            fail(f"{path} is not readable; delete it to start its training again")
        for key, value in self.identity().items():
            if theirs.get(key) != value:
                was = f"is of a training with {key} {theirs.get(key)}, and now it is {value}"
                fail(f"{path} {was}; give the same again, or delete the file to start anew")
        self.model.load_state_dict(content.pop("model"), strict=False)
        self.g.set_state(content.pop("g"))
        for key in ("optimizer", "schedule", "scaler"):
            getattr(self, key).load_state_dict(content.pop(key))
        vars(self).update(content)


def train(build, loss_of, split, seed, how, device="cpu", state=None, ids=None, arrange=None, bar=None):
    """Train build()'s module; keep the epoch that is best on val.

    Returns (module, {val, epoch, weights, losses (one a step), steps, seconds_per_step}).

    loss_of(module, items, g, part, warm): mean loss of the slice `part` of a batch of items; warm in the
        first how["warm"] epochs, which val does not judge. It must draw from g for the whole batch, so that
        ranks, each with a part, together give the gradient of the batch.
    how: lr (AdamW with constant betas, warm-up and cosine), batch, warm, epochs; optional: accumulate (parts
        of a batch in a step), adam8bit, scaler (fp16), val_batch.
    state: a file from which a killed training continues exactly; exit 2 where it is of another training.
    ids: names of the items, for messages. arrange(g): the batches of an epoch (default: random).
    bar: a tqdm bar that counts steps. Raises FloatingPointError, naming step and items, where a loss is not
    finite.
    """
    torch.manual_seed(seed)
    run = Training(build().to(device), split, seed, how, device, ids)
    if state and state.is_file():
        run.resume(state)
    while run.epoch < run.epochs:
        run.run_epoch(loss_of, arrange, bar)
        if run.epoch > how["warm"]:
            run.validate(loss_of)
        if state:
            run.save(state)
    run.model.load_state_dict(run.best_weights, strict=False)
    steps = run.epoch * run.steps
    record = run.best | {"weights": run.best_weights, "losses": run.losses, "steps": steps}
    return run.model.eval(), record | {"seconds_per_step": run.seconds / (how["epochs"] * run.steps)}


def reset_lora(model):
    """Reinitialise LoRA as peft does: B is zero, so the model is unchanged at first."""
    for name, p in learned(model).items():
        if "lora_A" in name:
            torch.nn.init.kaiming_uniform_(p, a=5**0.5)
        elif "lora_B" in name:
            torch.nn.init.zeros_(p)
    return model


def load_up_to(entry, path, device, dtype):
    """(VLM without the language layers behind the module `path`, processor) on the device, frozen."""
    vlm, processor = load_vlm(entry, "cpu", dtype)
    parent, _, number = path.rpartition(".")
    del vlm.get_submodule(parent)[int(number) + 1 :]
    vlm.lm_head = torch.nn.Identity()
    needed, left = sum(p.nbytes for p in vlm.parameters()), memory_left(torch.device(device), None)
    if needed > left:
        fail(
            f"LoRA up to {path} needs {needed / 1e9:.1f} GB of {left / 1e9:.1f}; leave lora out of --adapters"
        )
    return vlm.to(device).requires_grad_(False), processor


class _Reached(Exception):
    pass


class Tuned(torch.nn.Module):
    """Tokens [n, *grid] after a language layer of a VLM, with LoRA (Hu et al. 2022; peft) on the queries and
    values up to that layer.

    The forward pass takes the processor's inputs and ends there. Seeds share one model: `reset` reinitialises
    LoRA. path: the layer's module; rows: the token id of the image's rows; grid: their shape (..., D).
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


def in_half(x, mean, std):
    return ((x - mean) / std).clamp(-6e4, 6e4).half()


def standardised(x, fitted_on, device="cpu"):
    """(tokens [n, t h, w, D] in fp16 on the device, (mean, std) [D] of the items `fitted_on`).

    Channels have mean 0 and standard deviation 1 on these. x [n, t, h, w, D]: a tensor or `stats.Lazy`.
    """
    count, total, square = 0, 0.0, 0.0
    for rows in chunks(fitted_on, x):
        part = x[rows].flatten(0, 3).double()
        count, total, square = count + len(part), total + part.sum(0), square + part.square().sum(0)
    mean = total / count
    std = ((square - count * mean.square()) / (count - 1)).clamp(min=1e-12).sqrt().float()
    mean, first = mean.float(), x[fitted_on[:1]].flatten(1, 2)
    out = torch.empty(len(x), *first.shape[1:], dtype=torch.half, device=device)
    for rows in chunks(torch.arange(len(x)), x):
        out[rows] = in_half(x[rows].flatten(1, 2), mean, std).to(device)
    return out, (mean, std)


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
    """Twelve hexadecimal digits that identify features, latents or weights: of a training's file name."""
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
    """--seeds, --warm, --epochs, --batch, --lr and, of several, --loss, with the defaults of `defaults`."""
    if len(losses) > 1:
        p.add_argument("--loss", choices=losses, help=f"(default: {defaults['loss']})")
    for name, kind, words in (
        ("seeds", int, "number of trainings each"),
        ("warm", int, "first epochs, with the squared error of latents (prompt: of embeddings) as loss"),
        ("epochs", int, "epochs after those of --warm; the best on val is used"),
        ("batch", int, "batch size of all ranks together"),
        ("lr", float, "peak learning rate of AdamW (warm-up and cosine)"),
    ):
        if name in defaults:
            p.add_argument(f"--{name}", type=kind, help=f"{words} (default: {defaults[name]})")


def training_settings(args, defaults, items):
    """`defaults`, overridden by the command line. items: those of training. Exit 2 if nothing is trained."""
    given = {k: getattr(args, k, None) for k in defaults}
    how = defaults | {k: v for k, v in given.items() if v is not None}
    for name, least in (("seeds", 1), ("warm", 0), ("epochs", 1), ("batch", 1)):
        if how[name] < least:
            fail(f"--{name} {how[name]} trains nothing; give {least} or more")
    if not 0 < how["lr"] < 1:
        fail(f"--lr {how['lr']} is not a learning rate; give one between 0 and 1, such as 1e-4")
    how["batch"], n = min(how["batch"], items), ranks()[1]
    if how["batch"] % n:
        fail(f"--batch {how['batch']} of {items} items is not a multiple of the {n} ranks; give one that is")
    return how
