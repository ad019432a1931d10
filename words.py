"""Language models that read soft tokens: prompts, losses, answers, and what tune.py words writes."""

from pathlib import Path

import torch

from common import fail, save_bytes
from models import greedy

MARK = "\ue000"  # place of the soft tokens in a chat: a private-use character, absent from any text


def word_prompt(tokenizer, question, context=""):
    """Token ids (before, after) the soft tokens in a chat: soft tokens, `context`, then the question.

    Plain lines without a chat template.
    """
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
    """The model's inputs: inputs_embeds [n, L, D], padded on the left, attention_mask, position_ids [n, L].

    With answers (text) also labels [n, L], -100 outside the answers. prompts: n results of `word_prompt`;
    soft [n, k, D] or None.
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
    """Cross-entropy [n] of the answers of a `word_batch`, a mean over each answer's tokens.

    Only the logits needed are computed.
    """
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
    """Greedy answers (text) of at most `most` tokens to `prompts` of word_prompt; soft [n, k, D] or None."""
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
    """Embeddings [n, dim] -> soft tokens [n, k, width]: layer norm and a linear map, or with `inner` an MLP.

    std: of the model's token embeddings.
    """

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
    """(model with LoRA, Soft) that tune.py words wrote into `folder`, for the language model `name`."""
    from peft import PeftModel
    from safetensors import safe_open

    path = Path(folder) / "soft.safetensors"
    if not path.is_file() or not (Path(folder) / "adapter_model.safetensors").is_file():
        fail(f"{folder} lacks {path.name} or adapter_model.safetensors; run tune.py words")
    with safe_open(path, "pt") as file:
        meta = file.metadata()
        weights = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (it is no mapping)
    width = model.get_input_embeddings().embedding_dim
    if (meta["language"], int(meta["width"])) != (name, width):
        other = f"{meta['language']} (width {meta['width']})"
        fail(f"{folder} was trained on {other}, and {name} has width {width}; give that model")
    soft = Soft(*(int(meta[k]) for k in ("dim", "width", "k", "inner")))
    soft.load_state_dict(weights)
    return PeftModel.from_pretrained(model, str(folder)).eval(), soft.to(model.device).eval()
