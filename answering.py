"""Answers of models that may not fit, likelihoods of given answers, language models with soft tokens.

A vision-language model that the device cannot hold in its precision is loaded in 4 bits (NF4, Dettmers et
al. 2023) where bitsandbytes can, and else streamed: its layers are read one after another in each forward
pass. Streamed, it writes nothing, which would be a pass for every token: it chooses among given answers by
their likelihood. `python -m answering` tells make what a target cannot do with a model.
"""

import importlib.util
import inspect
import sys
import time
from pathlib import Path

import torch

from checkpoints import fill, reachable, readable_method, stored_bytes
from common import ANSWERS, fail, memory_left, peak_memory, save_bytes, save_pt
from media import part_of
from models import (
    MODELS,
    OWN_LAYOUT,
    answers_to,
    control_token,
    find_model,
    greedy,
    load_transformer,
    original_of,
    plain,
    put_to,
    registry_name,
    skeleton,
)

# ---------------------------------------------------------------- what can be asked

# can be trained by tune.py: transformers' own layout, and a processor with a chat template
TUNABLE = "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl"
# can be asked for places: with a grounding prompt in explain.py
GROUNDED = *TUNABLE, "internvl_chat", "cogvlm2"


def spread(length, k):
    """k frame numbers of a clip, evenly from the first to the last; all frames of a shorter clip."""
    return list(range(length)) if k >= length else [round(i * (length - 1) / (k - 1)) for i in range(k)]


def check_asked(entry, flag="--model"):
    """Exit 2 for a model that answers no questions about images."""
    if entry["kind"] != "vlm":
        what = f"{flag} {entry['name']} is of kind {entry['kind']} and answers no questions"
        fail(f"{what}; give a vision-language model, say tiny")


def check_turns(processor, turns, place):
    """Raise ValueError for a control token in turns to train on; place: a pattern of placeholders."""
    for turn in turns:
        for text in turn:
            if token := control_token(processor, place.sub("", text)):
                what = f"{text[:60]!r} holds {token!r}, a sign of the model's own"
                raise ValueError(f"{what}; write it in other words")


# ---------------------------------------------------------------- a model that may not fit

ROOM = 1.2  # the memory that answering takes, of that of the weights
FIT = "give a smaller model, or a GPU and `pip install bitsandbytes` for 4 bits"


def nf4(dtype):
    """transformers' configuration of 4-bit weights, computed in `dtype`."""
    from transformers import BitsAndBytesConfig

    how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    return BitsAndBytesConfig(**how, bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=NOT_IN_4_BITS)


# the head, towers and projectors
NOT_IN_4_BITS = ["lm_head", "model.visual", "model.vision_tower", "model.multi_modal_projector"]


def precision_of(entry, device, dtype):
    """How a model answers on a device: in `dtype`, in "nf4" or "streamed".

    Streamed where neither its weights in `dtype` fit nor bitsandbytes can read them in 4 bits on a GPU.
    """
    needed, left = ROOM * stored_bytes(reachable(entry), dtype), memory_left(torch.device(device), None)
    if needed <= left:
        return str(dtype)
    own = entry.get("adapter") or entry.get("type") in OWN_LAYOUT
    quantisable = torch.device(device).type == "cuda" and importlib.util.find_spec("bitsandbytes") and not own
    # 4.127 bits a weight, and what stays as it is
    return "nf4" if quantisable and needed * 0.6 / dtype.itemsize <= left else "streamed"


def answerable(questions, entry, device, dtype):
    """(those of the questions {kind: ...} that a model can answer on a device, its precision)."""
    precision = precision_of(entry, device, dtype)
    if precision == "streamed":
        questions = {kind: questions[kind] for kind in ("options",) if kind in questions}
        if not questions:
            fail(
                f"{entry['name']} does not fit this device, and no question has options to choose from; {FIT}"
            )
    return questions, precision


def load_to_answer(entry, device, dtype, choices=False):
    """(model with its `precision`, processor) to be asked; exit 2 where it would be streamed to write words.

    choices: the answers are given, to choose from.
    """
    precision = precision_of(entry, device, dtype)
    if precision == "streamed" and not choices:
        fail(f"{entry['name']} does not fit this device; streamed, it could only choose among answers; {FIT}")
    if precision == "streamed":
        model, processor, weights = skeleton(entry, dtype, device)
        by_layer(model, weights, device)
    else:
        how = {"quantised": nf4(dtype)} if precision == "nf4" else {}
        model, processor = load_transformer(entry, device, dtype, **how)
    if precision != str(dtype):
        print(f"{entry['name']} does not fit in {dtype}: {precision}")
    model.precision = precision
    return model, processor


def by_layer(model, weights, device):
    """Let the modules of every stack of layers read their weights before they run, and drop them then."""
    stacks = [x for x in model.modules() if isinstance(x, torch.nn.ModuleList)]
    layers = {id(layer): layer for stack in stacks for layer in stack}
    names = {path: [] for path, module in model.named_modules() if id(module) in layers}
    outside = []
    for name in weights.like:
        # of nested stacks, the outermost layer
        owners = [path for path in names if name.startswith(f"{path}.")]
        (names[min(owners, key=len)] if owners else outside).append(name)
    fill(model, weights, outside, device)

    def read(owned):
        return lambda module, given: fill(model, weights, owned, device)

    def drop(owned):
        empty = {name: weights.like[name] for name in owned}
        return lambda module, given, output: model.load_state_dict(empty, strict=False, assign=True) and None

    for path, owned in names.items():
        if owned:
            layer = model.get_submodule(path)
            layer.register_forward_pre_hook(read(owned))
            layer.register_forward_hook(drop(owned))


# ---------------------------------------------------------------- what a target of make needs of a model

# target: what it does with MODEL besides reading its features
TARGETS = {"gate2": ["ask"], "binding": ["ask"], "gate3": ["describe"], "gate4": ["describe"]}
TARGETS |= {"all": ["ask", "describe"], "explain": ["describe"], "tune": ["tune", "describe"]}
FEATURES_OF = "gate1", "gate2", "gate3", "gate4", "all", "align", "resolution", "binding", "screen"


def check_targets(targets, names, sees=""):
    """Exit 2 for what a target of make cannot do with a model, before anything costly is made.

    targets, names: separated by blanks; sees: the model of `make explain`, if another. A model that is not
    here passes: its results may be.
    """
    for target in targets.split():
        for name in [sees] if sees and target == "explain" else names.split():
            if registry_name(name) in MODELS or Path(name).is_dir():
                check_target(target, find_model(name))


def check_target(target, entry):
    """Exit 2 where a target of make needs something else of an entry's model than it can do."""
    name, kind, model_type = entry["name"], entry["kind"], entry.get("type")
    if target in FEATURES_OF and kind not in ("vlm", "encoder"):
        fail(f"make {target} reads features, and MODEL={name} is of kind {kind}; give a VLM or an encoder")
    does = TARGETS.get(target, [])
    if "tune" in does and model_type not in TUNABLE:
        fail(f"make tune cannot train MODEL={name} ({model_type}); give a model of type {', '.join(TUNABLE)}")
    if "ask" in does and model_type not in GROUNDED:
        what = f"make {target} asks where objects are, and MODEL={name} ({model_type}) has no prompt for that"
        fail(f"{what}; give a model of type {', '.join(GROUNDED)}")
    if "describe" in does and kind != "vlm":
        fail(f"make {target} asks about clips, and MODEL={name} is of kind {kind}; give a VLM, say tiny")
    if (target in FEATURES_OF or does) and Path(entry["path"], "config.json").is_file():
        readable_method(entry, original_of(entry))


# ---------------------------------------------------------------- likelihoods of given answers


def with_choices(model, given, choices):
    """Arguments of a forward pass with all choices behind the prompt in one sequence.

    Each choice, a list of token ids, has the positions it would have alone, and attends to the prompt and to
    itself.
    """
    name = "inputs_embeds" if "inputs_embeds" in given else "input_ids"
    device, (n, end) = given[name].device, given[name].shape[:2]
    rows = [(token, k, j) for k, choice in enumerate(choices) for j, token in enumerate(choice)]
    ids, number, place = torch.tensor(rows, device=device).T
    sees = torch.ones(end + len(ids), end + len(ids), dtype=torch.bool, device=device).tril()
    sees[end:, end:] &= number[:, None] == number
    sees = sees.expand(n, 1, -1, -1)
    words = ids.expand(n, -1)
    behind = {
        name: words,
        "token_type_ids": torch.zeros_like(words),
        "mm_token_type_ids": torch.zeros_like(words),
    }
    if name == "inputs_embeds":
        behind[name] = model.get_input_embeddings()(words)
    inputs = given | {key: torch.cat([given[key], x], 1) for key, x in behind.items() if key in given}
    if name == "inputs_embeds":
        del inputs["input_ids"]
    before = positions(model, given)
    last = before.amax((0, 2) if before.ndim == 3 else 1, keepdim=True)
    after = (last + 1 + place).expand(*before.shape[:-1], -1)
    inputs["position_ids"] = torch.cat([before, after], -1)
    if model.config.model_type == "cogvlm2":
        return inputs | {"mask": sees}
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    mask = torch.zeros(sees.shape, dtype=dtype, device=device)
    return inputs | {"attention_mask": mask.masked_fill(~sees, torch.finfo(dtype).min)}


def positions(model, given):
    """Position ids of an unpadded prompt by the library's rules: [n, rows], or [3, n, rows] under M-RoPE."""
    if model.config.model_type == "cogvlm2":
        from cogvlm2 import image_positions

        return image_positions(given["token_type_ids"])
    if hasattr(model.model, "get_rope_index"):
        accepted = inspect.signature(model.model.get_rope_index).parameters
        return model.model.get_rope_index(**{name: given[name] for name in accepted if name in given})[0]
    n, rows = given["attention_mask"].shape
    return torch.arange(rows, device=given["attention_mask"].device).expand(n, -1)


@torch.inference_mode()
def likelihoods(model, processor, frames, question, choices, at):
    """log p(choice | clip, question), [n, choices], of clips uint8 [n, k, H, W, 3]: a forward pass a clip."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = [tokenizer(choice, add_special_tokens=False).input_ids for choice in choices]
    found = []
    for k in range(len(frames)):
        given = with_choices(model, put_to(model, processor, part_of(frames, k, k + 1), question, at), ids)
        out = model(**given, logits_to_keep=sum(map(len, ids)) + 1)
        logits = (out if torch.is_tensor(out) else out.logits)[0].float().log_softmax(-1)
        row, scores = 1, []
        for choice in ids:
            # the first token follows the prompt's last row, each later one the token before it
            rows = [0, *range(row, row + len(choice) - 1)]
            scores.append(logits[rows, choice].sum())
            row += len(choice)
        found.append(torch.stack(scores))
    return torch.stack(found).cpu()


def answers_of(model, processor, frames, question, at, choices=()):
    """Answers of load_to_answer's model, as `answers_to`; of a streamed one the likeliest of the choices."""
    if getattr(model, "precision", None) != "streamed":
        return answers_to(model, processor, frames, question, at)
    found = likelihoods(model, processor, frames, question, choices, at)
    return [choices[k] for k in found.argmax(1).tolist()]


# ---------------------------------------------------------------- language models with soft tokens

MARK = "\ue000"  # place of the soft tokens in a chat: a private-use character, absent from any text


def word_prompt(tokenizer, question, context=""):
    """Token ids (before, after) the soft tokens in a chat: soft tokens, `context`, then the question.

    Plain lines without a chat template.
    """
    text = f"{MARK}{context}\n{plain(tokenizer, question)}"
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


# ---------------------------------------------------------------- cached answers


def cached(key, stamp, answer_all, cache, out, mode="trajectories"):
    """{texts, seconds, memory} of a method: of `cache` if its stamp is equal (None: never), or answer_all().

    What is new is saved to `out`.
    """
    if stamp is None or cache.get(key, {}).get("stamp") != stamp:
        peak_memory(reset=True)
        started, texts = time.time(), answer_all()
        seconds = time.time() - started
        cache[key] = {"stamp": stamp, "texts": texts, "seconds": seconds, "memory": peak_memory()}
        save_pt(out, ANSWERS, [], {"mode": mode}, answers=cache)
    return cache[key]


if __name__ == "__main__":  # by make, before anything else
    check_targets(*sys.argv[1:])
