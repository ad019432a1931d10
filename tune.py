"""Fine-tune a model on one's own images and clips; does it fit in memory?

    python tune.py train --model tiny --data data/shapes --out results/tiny/shapes/tuned
    python tune.py train --model qwen2.5-vl-7b --data data/mine --preset t4 --keep data/shapes      # 4 bits on a T4
    python tune.py plan --models qwen2.5-vl-7b                          # memory by part, and the cards that hold it
    python tune.py words --embeddings results/tiny/trajectories/tracks.pt --data data/trajectories --language tiny-words

`train` reads items with `turns` (data.py sets, shapes, ...; operations.py read). Each is encoded as at inference, by the model's processor
and chat template. Only the tokens of answers and the ends of their turns carry loss; logits are computed for these alone. The turns of a
`chat` are one example, any others one each. Boxes in the text ({"bbox_2d": [x1, y1, x2, y2]}, pixels of the original) are rescaled to the
family's units. Writes <out>/adapter/ (peft's format, and a MODEL like any other), with --merge <out>/model/ too, with --method full or
--vision full <out>/model/ alone; and <out>/tune.yaml: `exact`, the share of test answers that greedy decoding reproduces token by token, and `answer_loss`,
after and before training; `forgetting`, the loss of `exact` on --keep. A training that does not fit in memory does not start.

`words`: a frozen language model learns to answer (`turns` of data.py trajectories) from a video model's embedding of the object in
question. An adapter maps its 512 numbers to soft tokens; LoRA adapts the model. Reads tracks.pt (track.py), writes <out>/seed<i>/ (peft's
folder and soft.safetensors) and <out>/tune-words.yaml: the share of correct val answers, in all and by kind, beside the majority answer;
`forgetting`: the cost of LoRA on questions about lists, without clips.

Copy with it: answering.py, augment.py, checkpoints.py, claims.py, cogvlm2.py, common.py, media.py, models.py,
models.yaml, stats.py, training.py.
"""

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import resource
import shutil
import time
from collections import Counter, namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from answering import TUNABLE, Soft, answered, check_turns, mean_answer_loss, save_soft, word_prompt
from augment import BOX_OR_POINT, image_of_turn, numbers_of
from checkpoints import attempt, pin
from claims import DESCRIBE_NAME, about, is_correct, load_tracks, named, naming, track_id
from common import (
    Items,
    bf16_units,
    check_writable,
    choose_device,
    fail,
    load_items,
    load_yaml,
    memory_left,
    memory_size,
    plain,
    print_summary,
    run_info,
    save_bytes,
    save_yaml,
    split_indices,
    subcommands,
)
from media import fitted, frames_of, image_size, pace, times_of
from models import MODELS, auto_classes, find_model, load_language, load_vlm, processor_of
from stats import criterion, mean_interval, paired_test
from training import (
    add_training_flags,
    digest_of_tensors,
    headline,
    learned,
    ranks,
    reset_lora,
    train,
    training_settings,
)

# ---------------------------------------------------------------- words: a language model reads a video model's embeddings

# the linear layers of every Llama and Qwen
LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LISTS = 500  # questions about lists, which measure forgetting


class Reader(torch.nn.Module):
    """A frozen language model under LoRA, and the adapter of its soft tokens. All seeds share one copy of the model."""

    def __init__(self, model, tokenizer, soft):
        super().__init__()
        self.model, self.tokenizer, self.soft = model, tokenizer, soft

    def forward(self, prompts, embeddings, answers):
        """Mean loss of the answers (text) to prompts beside embeddings [n, 512]."""
        return mean_answer_loss(self.model, self.tokenizer, prompts, answers, self.soft(embeddings))


@contextlib.contextmanager
def whole_folder(folder):
    """A temporary folder, which replaces `folder` when it is complete."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def save_lora(folder, peft):
    """Write LoRA in peft's format."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    peft.peft_config["default"].save_pretrained(folder)
    weights = get_peft_model_state_dict(peft, save_embedding_layers=False)
    weights = {k: v.detach().float().cpu().contiguous() for k, v in weights.items()}
    save_bytes(folder / "adapter_model.safetensors", save(weights))


def run_of(w, args, started):
    """The entry `run` of the YAML."""
    args.out, device = str(w.out), f"{w.device.type} ({w.why})"
    more = {"device": device, "dtype": str(w.dtype), "ranks": ranks()[1]}
    return run_info(args, started, script="tune.py", **more, **w.how)


def ends_of(name, test):
    """{name, name_low, name_high}: the gain of a paired test and its interval."""
    return {f"{name}{end}": test[f"gain{end}"] for end in ("", "_low", "_high")}


def write_seed(folder, reader, record, how):
    """Write seed<i>/ atomically: LoRA, soft.safetensors, and seed.yaml with the settings of the training."""
    facts = {k: record[k] for k in ("val", "epoch", "steps", "seconds_per_step", "losses")}
    with whole_folder(folder) as part:
        save_lora(part, reader.model)
        save_soft(part / "soft.safetensors", reader.soft, language=how["language"])
        save_yaml(part / "seed.yaml", {"stage": "tune", "mode": "words"} | facts | {"how": how})


def written_seed(folder, reader, how):
    """Load the weights of an earlier training with the same settings into `reader`; its record, or None."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    record = load_yaml(folder / "seed.yaml", "tune") if (folder / "seed.yaml").is_file() else {}
    if record.get("how") != plain(how):
        return None
    set_peft_model_state_dict(reader.model, load_file(folder / "adapter_model.safetensors"))
    reader.soft.load_state_dict(load_file(folder / "soft.safetensors"))
    return record


def check_words(args):
    """Check everything before a model is loaded; turns: (kind, question, answer, row of embedding, item number)."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.entry = find_model(args.language)
    if w.entry["kind"] != "language":
        fail(f"--language {args.language} is a {w.entry['kind']}; a language model is needed (tiny-words)")
    w.items, w.data = load_items(args.data)
    if "tracks" not in w.items[0]:
        fail(f"{args.data} holds no tracks; create it with data.py trajectories")
    w.tracks = load_tracks(args.embeddings, w.items)
    parts = split_indices(w.items, args.data)
    rows = {name: k for k, name in enumerate(w.tracks["ids"])}
    w.turns = []
    for k, item in enumerate(w.items):
        questions = []
        for (question, answer), (kind, name) in zip(item["turns"], item["topics"], strict=True):
            questions.append((kind, question, answer, name))
        questions += [
            ("describe", DESCRIBE_NAME.format(name), about(item, name), name) for name in item["names"]
        ]
        absent = item["absent"]
        questions.append(("absent", DESCRIBE_NAME.format(absent), f"there is no {absent}", absent))
        for kind, question, answer, name in questions:
            track = track_id(item, name)
            if track not in rows:
                fail(f"{args.embeddings} lacks {track!r}; run track.py on {args.data}")
            w.turns.append((kind, question, answer, rows[track], k))
    where = {int(k): part for part, numbers in parts.items() for k in numbers}
    w.split = {}
    for part in parts:
        w.split[part] = torch.tensor([i for i, turn in enumerate(w.turns) if where[turn[4]] == part])
    if min(args.rank, args.soft) < 1:
        fail(f"--rank {args.rank} and --soft {args.soft} leave nothing to train; give 1 or more")
    w.how = training_settings(args, SETTINGS["words"], len(w.split["train"]))
    w.how |= {"rank": args.rank, "soft": args.soft, "inner": args.width or 0}
    w.out = Path(args.out or Path(args.embeddings).parent / "words")
    check_writable(w.out / "tune-words.yaml")
    return w


def by_kind(turns, pick, train, scores, sources, seed):
    """{kind: accuracy, interval, n, and the share of train's majority answer} of the turns `pick`; scores [seeds, n]."""
    table = {}
    for kind in dict.fromkeys(turns[i][0] for i in pick):
        columns = [j for j, i in enumerate(pick) if turns[i][0] == kind]
        train_answers = [turns[i][2] for i in train if turns[i][0] == kind]
        majority = max(sorted(set(train_answers)), key=train_answers.count)
        accuracy, low, high = mean_interval(scores[:, columns], [sources[j] for j in columns])
        table[kind] = {
            "accuracy": accuracy,
            "low": low,
            "high": high,
            "baseline": sum(is_correct(majority, turns[pick[j]][2]) for j in columns) / len(columns),
            "majority": majority,
            "n": len(columns),
        }
    return table


def run_words(w, started):
    """Train adapter and LoRA for each seed; score val's answers, and questions about lists before and after."""
    from peft import LoraConfig, get_peft_model

    args = w.args
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    w.dtype = torch.float32 if w.dtype == torch.float16 else w.dtype  # in fp16 small gradients are lost
    model, tokenizer = load_language(w.entry, w.device, w.dtype)
    if w.device.type == "cpu":
        model.set_attn_implementation("eager")  # half the time of sdpa's gradient
    lists = [naming(np.random.default_rng([w.seed, k])) for k in range(LISTS)]
    list_prompts = [word_prompt(tokenizer, question, context) for context, question, _ in lists]

    def list_scores():
        given = answered(model, tokenizer, list_prompts)
        return torch.tensor([float(named(text, x[2])) for text, x in zip(given, lists, strict=True)])

    base_lists, tokens = list_scores(), model.get_input_embeddings()
    w.how["language"] = w.entry["name"]
    w.how["data_digest"] = digest_of_tensors(w.tracks["embedding"], tokens.weight[:64].detach().cpu())
    # a committed checkpoint is named by its relative path
    model.name_or_path = MODELS.get(w.entry["name"], w.entry)["path"]
    sizes = {"r": args.rank, "lora_alpha": 2 * args.rank, "target_modules": LORA}
    model = get_peft_model(model.requires_grad_(False), LoraConfig(task_type="CAUSAL_LM", **sizes))
    prompts = [word_prompt(tokenizer, question) for _, question, *_ in w.turns]
    embeddings = w.tracks["embedding"].to(w.device)

    def build():
        std = tokens.weight.std().item()
        soft = Soft(embeddings.shape[1], tokens.embedding_dim, args.soft, args.width or 0, std)
        return reset_lora(Reader(model, tokenizer, soft))

    def loss_of(reader, items, g, part, warm):
        some = [w.turns[i] for i in items[part].tolist()]
        questions = [prompts[i] for i in items[part].tolist()]
        return reader(questions, embeddings[[turn[3] for turn in some]], [turn[2] for turn in some])

    val = w.split["val"].tolist()
    truth = [w.turns[i][2] for i in val]
    records, scores, lists_after = [], [], []
    names = [f"{w.items[turn[4]]['id']}: {turn[1]}" for turn in w.turns]
    for s in tqdm(range(w.how["seeds"]), desc="words", unit="seed"):
        how, folder, state = w.how | {"seed": w.seed + s}, w.out / f"seed{s}", w.out / "training" / f"{s}.pt"
        reader = build().to(w.device).eval()
        record = written_seed(folder, reader, how)
        if not record:
            reader, record = train(build, loss_of, w.split, w.seed + s, how, w.device, state, names)
            if ranks()[0] == 0:
                write_seed(folder, reader, record, how)
        records.append(record)
        if ranks()[0] == 0:
            with torch.inference_mode():
                soft = reader.soft(embeddings[[w.turns[i][3] for i in val]])
            given = answered(model, tokenizer, [prompts[i] for i in val], soft)
            scores.append([float(is_correct(a, b)) for a, b in zip(given, truth, strict=True)])
            lists_after.append(list_scores())
    if ranks()[0]:
        return {}
    scores = torch.tensor(scores)
    lists_after = torch.stack(lists_after)
    sources = [w.items[w.turns[i][4]]["source"] for i in val]
    table = by_kind(w.turns, val, w.split["train"].tolist(), scores, sources, w.seed)
    # descriptions are left out: one is correct only if every word of it is
    short = [j for j, i in enumerate(val) if w.turns[i][0] != "describe"]
    kinds = [w.turns[val[j]][0] for j in short]
    pairs = [(table[kind]["majority"], truth[j]) for kind, j in zip(kinds, short, strict=True)]
    baselines = {"majority": torch.tensor([float(is_correct(*pair)) for pair in pairs])}
    found = criterion(scores[:, short], baselines, [sources[j] for j in short], seed=w.seed)
    criteria = {"accuracy": found}
    forgotten = paired_test(base_lists, lists_after, range(LISTS), seed=w.seed)
    naming_after = mean_interval(lists_after, range(LISTS))
    shortest = min(len(r["losses"]) for r in records)  # --patience
    losses = np.mean([r["losses"][:shortest] for r in records], 0)
    facts = ("epoch", "steps", "seconds_per_step")
    every = max(len(losses) // 40, 1)
    lora, soft = (sum(p.numel() for p in learned(part).values()) for part in (model, reader.soft))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if w.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    result = {
        "stage": "tune",
        "mode": "words",
        "language": w.entry["name"],
        "model": w.tracks["meta"].get("model"),
        "weights": w.entry["weights"],
        "model_weights": w.tracks["meta"].get("weights"),
        "threshold": w.tracks["meta"].get("threshold", 0.5),
        "data": w.data["data"],
        "data_name": w.data["name"],
        "split": "val",
        "accuracy_seeds": scores[:, short].mean(1).tolist(),
        **headline(criteria, "lpips"),
        "describe_exact": table["describe"]["accuracy"],
        **ends_of("forgetting", forgotten),
        "forgetting_p": forgotten["p"],
        "naming_base": base_lists.mean(),
        "naming": naming_after[0],
        "naming_low": naming_after[1],
        "naming_high": naming_after[2],
        "parameters": lora + soft,
        "lora_parameters": lora,
        "soft_parameters": soft,
        "model_parameters": sum(p.numel() for p in model.parameters()) - lora,
        "seconds_per_seed": sum(r["seconds_per_step"] * r["steps"] for r in records) / len(records),
        "peak_memory_bytes": peak,
        "kinds": table,
        "criteria": criteria,
        "seeds": [{"val_loss": r["val"]} | {k: r[k] for k in facts} for r in records],
        "loss": {k: losses[k - every : k].mean() for k in range(every, len(losses) + 1, every)},
    }
    result["run"] = run_of(w, args, started)
    save_yaml(w.out / "tune-words.yaml", result)
    shutil.rmtree(w.out / "training", ignore_errors=True)
    print_summary(result)
    return result


# ---------------------------------------------------------------- train: a vision-language model on one's own images and clips

PLACE = re.compile(r"<(image|video)>")
# at most so many examples of test, and of --keep, are scored, drawn once; half as many of val after every epoch
SCORED = 300
# Defaults for a card. A T4 computes in fp16 (choose_device), because it has no bf16 units; its attention is
# sdpa's, because flash attention needs a newer card.
PRESETS = {
    "t4": {"method": "qlora", "batch": 8, "accumulate": 8, "checkpoint": True, "adam8bit": True},
    "a100": {"method": "lora", "batch": 16, "accumulate": 4, "checkpoint": True},
}
PRESETS["t4"] |= {"max_pixels": 448 * 448, "max_tokens": 1024}
PRESETS["a100"] |= {"max_pixels": 1024 * 1024, "max_tokens": 4096}
# loss, epochs, batch and learning rate of each job
TRAINING = {"seeds": 1, "loss": "answers", "warm": 0, "epochs": 3, "batch": 16, "lr": 2e-4}
SETTINGS = {"train": TRAINING, "words": TRAINING | {"seeds": 3, "batch": 32, "lr": 3e-3}}
# learning rates (Dettmers et al. 2023, table 9, for the first two)
RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 1e-5}
# units of a box: pixels of the frame, fractions of it, or else thousandths
SCALES = {"qwen2_5_vl": None, **dict.fromkeys(("llava", "llava_next", "llava_onevision"), (1, 1))}
# the turns first ... last - 1 of an item, in one conversation; its number of tokens, and of tokens of answers
Example = namedtuple("Example", "item first last tokens scored")


def rescaled(text, before, after):
    """`text` with boxes and points scaled from (width, height) `before` to `after`; digits if that is (1, 1)."""

    def moved(match):
        scaled = [n * (after[k % 2] / before[k % 2]) for k, n in enumerate(numbers_of(match[3]))]
        numbers = [f"{n:.3f}" if after == (1, 1) else str(round(n)) for n in scaled]
        return f"{match[1]}{', '.join(numbers)}{match[4]}" if numbers else match[0]

    return BOX_OR_POINT.sub(moved, text)


def conversation(turns, system, media, placed):
    """(messages for a chat template, number of media of each question); media: the content parts of each.
    placed: they stand at the questions' placeholders, else all before the first. Raises ValueError at too few."""
    left = list(media)
    counts = []
    messages = [{"role": "system", "content": [{"type": "text", "text": system}]}] if system else []
    for k, (question, answer) in enumerate(turns):
        texts = PLACE.split(question)[::2] if placed else [question]
        n = len(texts) - 1
        if not placed and not k:
            n = len(left)
        if n > len(left):
            raise ValueError(f"the questions name more images or videos than the {len(media)} of the item")
        here, left = left[:n], left[n:]
        content = [] if placed else [part for medium in here for part in medium]
        for j, text in enumerate(texts):
            if text.strip():
                content.append({"type": "text", "text": text.strip()})
            if placed and j < n:
                content += here[j]
        messages += [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]},
        ]
        counts.append(n)
    return messages, counts


def prompt_answer_pairs(processor, messages):
    """[(prompt, answer with the end of its turn)] in the template's text; what follows belongs to the next prompt."""
    done, found, tokenizer = "", [], processor.tokenizer
    for k, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = processor.apply_chat_template(messages[:k], tokenize=False, add_generation_prompt=True)
        after = processor.apply_chat_template(messages[: k + 1], tokenize=False)
        answer = message["content"][0]["text"]
        start = after.find(answer, len(before))
        if not (after.startswith(before) and before.startswith(done) and start >= 0):
            raise ValueError("the chat template does not begin an answer as its generation prompt does")
        end = after[start + len(answer) :].rstrip()
        turn = after[len(before) : start] + answer + (end or tokenizer.eos_token)
        found.append((before[len(done) :], turn))
        done = after[: start + len(answer)] + end
    return found


def continued(tokenizer, before, piece):
    """Token ids of `piece` after `before`. SentencePiece encodes the first word of a text in another way."""
    start, whole = (tokenizer(text, add_special_tokens=False).input_ids for text in (before, before + piece))
    if whole[: len(start)] == start:
        return whole[len(start) :]
    return tokenizer(piece, add_special_tokens=False).input_ids


def encoded_of(item):
    """The encoded images of an item, in order; empty where it has text alone."""
    return item.get("images") or ([item["encoded"]] if "encoded" in item else [])


def trained_of(item):
    """Per turn of an item: does its answer carry loss?"""
    return item.get("trained") or [True] * len(item["turns"])


class ExampleEncoder:
    """Encodes the turns of an item with the model's processor: prompts as at inference, each followed by its answer."""

    def __init__(self, processor, kind, pixels):
        self.processor, self.tokenizer, self.kind = processor, processor.tokenizer, kind
        self.as_video, self.pixels = kind.startswith("qwen"), pixels  # at most (an image, a frame of a clip)
        tower = processor.image_processor
        self.token = tower.patch_size * tower.merge_size if self.as_video else None
        self.extra = functools.lru_cache(4096)(self.extra_of)

    def frame(self, width, height, clip):
        """(width, height) after the processor's resizing; unchanged where the library resizes on its own."""
        return fitted(width, height, self.token, self.pixels[clip]) if self.token else (width, height)

    def sizes(self, item):
        """(T, width, height) of each image or clip after resizing, and (width, height) of the frame of its boxes."""
        if "frames" in item:
            t, h, w = item["frames"].shape[:3]
            sizes, box_frames = [(t, w, h)], [(item.get("width", w), item.get("height", h))]
        else:
            sizes = [(1, *image_size(x.numpy().tobytes())) for x in encoded_of(item)]
            box_frames = [size[1:] for size in sizes]
        return tuple((t, *self.frame(w, h, t > 1)) for t, w, h in sizes), box_frames  # a clip is squashed

    def chat(self, item, first, last):
        """(messages of these turns, boxes in the family's units; number of media of each question; sizes of all media)."""
        sizes, box_frames = self.sizes(item)
        turns = item["turns"][first:last]
        check_turns(self.processor, turns, PLACE)
        if sizes:
            owners = [number or 0 for number in image_of_turn(item["turns"], len(sizes))[first:last]]
            scales = [SCALES.get(self.kind, (1000, 1000)) or size[1:] for size in sizes]
            owned = zip(turns, owners, strict=True)
            turns = [[rescaled(text, box_frames[k], scales[k]) for text in turn] for turn, k in owned]
        kinds = [self.placeholders(t) for t, *_ in sizes]
        placed = any(PLACE.search(question) for question, _ in (item["turns"] if item.get("chat") else turns))
        return *conversation(turns, item.get("system"), kinds, placed), sizes

    def placeholders(self, t):
        """The content parts of a medium of t frames in a message."""
        return [{"type": "video"}] if self.as_video and t > 1 else [{"type": "image"}] * t

    def processed(self, text, media, times=None, **more):
        """The processor's output for one text with media, uint8 [T,H,W,3] each; Qwen's keep their size."""
        clips = [m for m in media if self.as_video and len(m) > 1]
        images = [p for m in media for p in m if not self.as_video or len(m) == 1]
        size = {}
        if self.as_video:
            size["size"] = {"shortest_edge": 1, "longest_edge": max(m.shape[:3].numel() for m in media)}
        if images:
            more["images"] = [p.permute(2, 0, 1) for p in images]
            more["images_kwargs"] = size | ({"crop_to_patches": False} if self.kind == "internvl" else {})
        if clips:
            more["videos"] = [f.permute(0, 3, 1, 2) for f in clips]
            more["videos_kwargs"] = {"do_sample_frames": False, "cap_pixels_per_frame": False, **size}
            times = times or times_of({"frames": clips[0]}).tolist()
            more["video_metadata"] = [pace(times)] * len(clips)
        return self.processor(text=[text], return_tensors="pt", **more)

    def extra_of(self, size):
        """Tokens of a medium of size (T, width, height), beyond those of its placeholder in the text."""
        t, w, h = size
        messages = [{"role": "user", "content": self.placeholders(t)}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = self.processed(text, [torch.zeros(t, h, w, 3, dtype=torch.uint8)])
        return given["input_ids"].shape[1] - len(self.tokenizer(text).input_ids)

    def examples(self, item, number, most=None):
        """The item's examples of at most `most` tokens; a longer one loses its last turns and their media."""
        whole, found = bool(item.get("chat")), []
        for first in [0] if whole else range(len(item["turns"])):
            messages, counts, sizes = self.chat(item, first, len(item["turns"]) if whole else first + 1)
            tokens = scored = last = shown = 0
            parts = zip(prompt_answer_pairs(self.processor, messages), counts, strict=True)
            for k, ((prompt, answer), n) in enumerate(parts):
                prompt_tokens = len(self.tokenizer(prompt, add_special_tokens=not k).input_ids)
                answer_tokens = len(self.tokenizer(answer, add_special_tokens=False).input_ids)
                tokens += prompt_tokens + answer_tokens + sum(map(self.extra, sizes[shown : shown + n]))
                if most and tokens > most:
                    break
                last, shown = first + k + 1, shown + n
                scored += answer_tokens * trained_of(item)[first + k]
                length = tokens
            if scored:
                found.append(Example(number, first, last, length, scored))
        return found

    def __call__(self, item, first, last):
        """(lists {input_ids, labels, turn, mm_token_type_ids}, the processor's tensors of the media).
        labels: -100 outside answers that carry loss; turn: the number of the answer from 1, 0 outside."""
        messages, counts, sizes = self.chat(item, first, last)
        files, media = encoded_of(item), []
        for x in [item["frames"]] if "frames" in item else [frames_of({"encoded": f}) for f in files]:
            media.append(frames_of({"frames": x}, self.token and (self.token, self.pixels[len(x) > 1])))
        ids, labels, turn, kinds = [], [], [], []
        beside, done = {}, ""
        parts = zip(prompt_answer_pairs(self.processor, messages), counts, strict=True)
        for k, ((prompt, answer), n) in enumerate(parts, 1):
            given = {}
            if n:
                more = {"add_special_tokens": False} if k > 1 else {}
                given = dict(self.processed(prompt, media[:n], times_of(item).tolist(), **more))
                prompt_ids = given.pop("input_ids")[0].tolist()
            elif k > 1:
                prompt_ids = continued(self.tokenizer, done, prompt)
            else:
                prompt_ids = self.tokenizer(prompt).input_ids
            kind = [0] * len(prompt_ids)
            if "mm_token_type_ids" in given:
                kind = given.pop("mm_token_type_ids")[0].tolist()
            media = media[n:]
            for name in given.keys() - {"attention_mask"}:
                beside.setdefault(name, []).append(torch.as_tensor(given[name]))
            answer_ids = continued(self.tokenizer, done + prompt, answer)
            ids = ids + prompt_ids + answer_ids
            trained = trained_of(item)[first + k - 1]
            scored = {True: answer_ids, False: [-100] * len(answer_ids)}[trained]
            labels = labels + [-100] * len(prompt_ids) + scored
            turn = turn + [0] * len(prompt_ids) + [k * trained] * len(answer_ids)
            kinds = kinds + kind + [0] * len(answer_ids)
            done += prompt + answer
        row = {"input_ids": ids, "labels": labels, "turn": turn, "mm_token_type_ids": kinds}
        return row, {name: joined(x) for name, x in beside.items()}


def joined(tensors):
    """The concatenation, padded with zeros to the most tiles (LLaVA-NeXT's second axis)."""
    most = [max(s) for s in zip(*(x.shape[1:] for x in tensors), strict=True)]
    filled = []
    for x in tensors:
        lacking = [m - s for m, s in zip(most, x.shape[1:], strict=True)]
        filled.append(F.pad(x, [n for m in reversed(lacking) for n in (0, m)]) if any(lacking) else x)
    return torch.cat(filled)


def collate(rows, pad, typed):
    """(inputs of the model, labels and turn [n, L]) of a batch of encoded examples, padded on the right."""
    lengths = [len(row["input_ids"]) for row, _ in rows]
    text = {}
    for name, fill in (("input_ids", pad), ("labels", -100), ("turn", 0), ("mm_token_type_ids", 0)):
        text[name] = torch.tensor([row[name] + [fill] * (max(lengths) - len(row[name])) for row, _ in rows])
    mask = torch.tensor([[1] * n + [0] * (max(lengths) - n) for n in lengths])
    inputs = {"input_ids": text["input_ids"], "attention_mask": mask}
    if typed:
        inputs["mm_token_type_ids"] = text["mm_token_type_ids"]
    for name in dict.fromkeys(name for _, beside in rows for name in beside):
        inputs[name] = joined([beside[name] for _, beside in rows if name in beside])
    return inputs, text["labels"], text["turn"]


class AnswerLoss(torch.nn.Module):
    """The loss of a VLM on the tokens of answers; only their logits are computed, for all would fill the memory."""

    def __init__(self, model, vlm, precision):
        super().__init__()
        self.model, self.precision = model, precision  # (device type, dtype or None)
        # in lambdas, so that they are not registered twice
        self.inner, self.head = (lambda: vlm.model), (lambda: vlm.lm_head)

    def forward(self, inputs, labels):
        """(cross-entropy [m], is the likeliest token correct [m]) of the m labels other than -100, in order."""
        kind, dtype = self.precision
        with torch.autocast(kind, dtype, enabled=dtype is not None):
            hidden = self.inner()(**inputs, use_cache=False).last_hidden_state
            scored = labels[:, 1:] != -100
            logits, truth = self.head()(hidden[:, :-1][scored]).float(), labels[:, 1:][scored]
        return F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth


def batches(lengths, batch, g):
    """The batches of an epoch in random order; fifty at a time are sorted by length, so that padding is small."""
    order = torch.randperm(len(lengths), generator=g)[: len(lengths) // batch * batch]
    order = torch.cat([part[lengths[part].argsort(stable=True)] for part in order.split(50 * batch)])
    found = order.split(batch)
    return [found[k] for k in torch.randperm(len(found), generator=g)]


def sample(numbers, n, seed):
    """At most n of `numbers`, drawn with `seed`."""
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return numbers[order[:n].sort().values]


class ExampleSet:
    """The examples of a data folder, encoded when needed; a cache of `room` bytes avoids decoding twice."""

    def __init__(self, folder, encoder, most=None, room=2e9):
        self.items, self.folder = Items(folder), folder
        self.encoder, self.room, self.cache = encoder, room, {}
        self.examples, self.dropped = [], {"examples": 0, "turns": 0}
        # media_tokens: the most of one item; clips: (width, height) of all
        self.media_tokens, self.clips = 0, set()
        few = len(self.items) < 2000
        for k, item in enumerate(tqdm(self.items, desc=f"examples of {folder}", unit="item", disable=few)):
            if not item.get("turns"):
                fail(f"{folder}: {item['id']!r} has no turns (questions, answers); give a set that has them")
            try:
                found = encoder.examples(item, k, most)
            except ValueError as e:
                fail(f"{folder}: {item['id']!r} cannot be encoded for {encoder.kind}: {e}")
            turns, fit = len(item["turns"]), sum(example.last - example.first for example in found)
            self.dropped["examples"] += (not found) if item.get("chat") else turns - fit
            self.dropped["turns"] += turns - fit
            self.examples += found
            sizes = encoder.sizes(item)[0]
            self.media_tokens = max(self.media_tokens, sum(map(encoder.extra, sizes)))
            self.clips |= {(w, h) for t, w, h in sizes if t > 1}
        self.sources = self.items.sources
        self.lengths = torch.tensor([example.tokens for example in self.examples])
        self.scored = torch.tensor([example.scored for example in self.examples])

    def split(self):
        parts = split_indices(self.items, self.folder, least=1)
        part_of = {int(k): part for part, indices in parts.items() for k in indices}
        split = {}
        for part in parts:
            numbers = [k for k, example in enumerate(self.examples) if part_of[example.item] == part]
            split[part] = torch.tensor(numbers)
        return split

    def row(self, k):
        if k in self.cache:
            return self.cache[k]
        example = self.examples[k]
        row = self.encoder(self.items[example.item], example.first, example.last)
        nbytes = sum(x.nbytes for x in row[1].values())
        if nbytes < self.room:
            self.cache[k], self.room = row, self.room - nbytes
        return row

    def batch(self, numbers, device):
        tokenizer = self.encoder.tokenizer
        pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        inputs, labels, turn = collate([self.row(k) for k in numbers], pad, self.encoder.as_video)
        return {name: x.to(device) for name, x in inputs.items()}, labels.to(device), turn

    def answers(self, k):
        """[(question, answer)] of example k whose answers carry loss."""
        example = self.examples[k]
        item = self.items[example.item]
        pairs = zip(item["turns"], trained_of(item), strict=True)
        return [turn for turn, trained in itertools.islice(pairs, example.first, example.last) if trained]


@torch.no_grad()
def answer_scores(scorer, dataset, numbers, batch, device, desc):
    """{loss, exact}, [n] each, of the examples `numbers`. loss: mean over the tokens of answers.
    exact: share of answers that greedy decoding reproduces: every token is the likeliest after the true ones."""
    (rank, n), found = ranks(), torch.zeros(2, len(numbers), device=device)
    order = sorted(range(len(numbers)), key=lambda j: int(dataset.lengths[numbers[j]]))[rank::n]
    for some in tqdm([order[k : k + batch] for k in range(0, len(order), batch)], desc=desc, unit="batch"):
        inputs, labels, turn = dataset.batch([int(numbers[j]) for j in some], device)
        cost, likeliest = (x.cpu() for x in scorer(inputs, labels))
        rows, turn = (labels[:, 1:] != -100).nonzero()[:, 0].cpu(), turn[:, 1:][(labels[:, 1:] != -100).cpu()]
        for r, j in enumerate(some):
            row = rows == r
            found[0, j] = cost[row].mean()
            exact = [likeliest[row & (turn == t)].all() for t in turn[row].unique()]
            found[1, j] = torch.stack(exact).float().mean()
    if n > 1:  # each rank scores its share
        torch.distributed.all_reduce(found)
    return dict(zip(("loss", "exact"), found.cpu(), strict=True))


def majority_exact(dataset, train, numbers):
    """[n]: accuracy of train's majority answer to each question; to a question that train lacks, of all answers."""
    by_question, every = {}, Counter()
    for k in train.tolist():
        for question, answer in dataset.answers(k):
            by_question.setdefault(question, Counter())[answer] += 1
            every[answer] += 1
    majority = {q: c.most_common(1)[0][0] for q, c in by_question.items()}
    overall = every.most_common(1)[0][0]
    shares = []
    for k in numbers:
        shares.append(np.mean([majority.get(q, overall) == a for q, a in dataset.answers(int(k))]))
    return torch.tensor(shares)


# vision tower and projector, in all families
TOWER = "model.visual.", "model.vision_tower.", "model.multi_modal_projector."
WHOLE = ["lm_head", *(name.rstrip(".") for name in TOWER)]  # not in 4 bits


def under_lora(model, how):
    """peft's model: LoRA on all linear layers of the language model and, with --vision lora, of tower and projector."""
    from peft import LoraConfig, get_peft_model

    parts = "model.language_model.", *(TOWER if how["vision"] == "lora" else ())
    leaves = set()
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.startswith(parts):
            leaves.add(re.search(r"[^.]+(\.\d+)*$", name)[0])
    targets = rf"({'|'.join(map(re.escape, parts))})(.*\.)?({'|'.join(map(re.escape, sorted(leaves)))})"
    sizes = {"r": how["rank"], "lora_alpha": 2 * how["rank"], "exclude_modules": r".*\.patch_embed.*"}
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **sizes)
    return get_peft_model(model.requires_grad_(False), config)


def trainable(model, how, precision):
    """(AnswerLoss, peft's model or None); only what `how` trains requires a gradient."""
    peft = None if how["method"] == "full" else under_lora(model, how)
    for name, p in model.named_parameters():
        name = name.removeprefix("base_model.model.")
        if how["method"] == "full":
            p.requires_grad_(how["vision"] == "full" or not name.startswith(TOWER))
        elif how["vision"] == "full" and name.startswith(TOWER):
            p.requires_grad_(True)
    if how["checkpoint"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return AnswerLoss(peft or model, model, precision), peft


NOTED = "weights", "size", "clip", "own_shape"


def write_adapter_folder(folder, peft, entry):
    """Write <folder>/ atomically: LoRA in peft's format (find_model reads it too), and weights.yaml."""
    with whole_folder(folder) as part:
        save_lora(part, peft)
        save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "tune.py train"})


def write_model_folder(folder, model, processor, entry, dtype):
    """Write <folder>/ atomically: a model in transformers' format, with its processor."""
    with whole_folder(folder) as part:
        model.to(dtype).save_pretrained(part)
        processor.save_pretrained(part)
        save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "tune.py train"})


def check_train(args):
    """Check everything before a model is loaded."""
    w = SimpleNamespace(args=args, seed=args.seed, entry=find_model(args.model))
    if w.entry.get("type") not in TUNABLE:
        kind = w.entry.get("type", w.entry["kind"])
        fail(f"--model {args.model} is a {kind}, which cannot be trained; give {' or '.join(TUNABLE)}")
    if "adapter" in w.entry:
        fail(f"--model {args.model} is an adapter; merge it first (--merge), and train the merged folder")
    w.device, w.dtype, w.why = choose_device()
    if args.preset == "t4" and w.device.type == "cuda":
        w.dtype, w.why = torch.float16, f"{w.why}; fp16 for --preset t4"
    if args.method == "full" and args.vision == "lora":
        fail("--vision lora goes with --method lora or qlora; with --method full give frozen or full")
    if args.method == "qlora" and args.vision == "full":
        fail("--vision full does not go with --method qlora (a model in 4 bits); give --vision lora")
    for flag, given in (("--method qlora", args.method == "qlora"), ("--adam8bit", args.adam8bit)):
        if given and w.device.type != "cuda":
            fail(f"{flag} needs a GPU; leave it out")
        if given and not importlib.util.find_spec("bitsandbytes"):
            fail(f"{flag} needs bitsandbytes; pip install bitsandbytes, or leave it out")
    if args.rank < 1:
        fail(f"--rank {args.rank} leaves nothing to train; give 1 or more")
    w.out = Path(args.out or Path("results") / w.entry["name"] / Path(args.data).name / "tuned")
    check_writable(w.out / "tune.yaml")
    w.processor = processor_of(w.entry)
    if not getattr(w.processor, "chat_template", None):
        fail(f"{w.entry['path']} has no chat template; fetch chat_template.jinja from its repository")
    pixels = [args.max_pixels or w.entry[k] ** 2 for k in ("size", "clip")]
    encoder = ExampleEncoder(w.processor, w.entry["type"], pixels)
    w.dataset = ExampleSet(args.data, encoder, args.max_tokens)
    w.entry["own_shape"] = [encoder.token, pixels[0]] if encoder.token else []
    if len(w.dataset.clips) == 1 and len(set(*w.dataset.clips)) == 1:  # data.py writes squares of one size
        w.entry["clip"] = next(iter(w.dataset.clips))[0]
    w.split = w.dataset.split()
    for part, numbers in w.split.items():
        if not len(numbers):
            fail(f"{args.data}: no question of the {part} split fits; raise --max-tokens")
    w.keep = ExampleSet(args.keep, encoder, args.max_tokens) if args.keep else None
    if w.keep and not len(w.keep.split()["test"]):
        fail(f"{args.keep}: no question of the test split fits; raise --max-tokens, or leave --keep out")
    w.how = training_settings(args, SETTINGS["train"], len(w.split["train"]))
    for name in ("method", "vision", "rank", "accumulate", "checkpoint", "adam8bit"):
        w.how[name] = getattr(args, name)
    n = ranks()[1] * args.accumulate
    if w.how["batch"] % n:
        fail(f"--batch {w.how['batch']}, in {n} parts (--accumulate, ranks); give a multiple of {n}")
    names = torch.tensor(bytearray("\n".join(w.dataset.items.ids).encode()))
    w.how |= {
        "lr": args.lr or RATES[args.method],
        "scaler": w.dtype == torch.float16,
        "val_batch": max(w.how["batch"] // n, 1),
        "model": w.entry["name"],
        "max_tokens": args.max_tokens,
        "pixels": pixels,
        "data_digest": digest_of_tensors(w.dataset.lengths, names),
    }
    w.plan = check_fits(w)
    return w


def load_to_tune(w):
    """The model to train: in 4 bits (qlora), in the device's precision under LoRA, in fp32 where base weights change."""
    if w.how["method"] != "qlora":
        full = w.how["method"] == "full" or w.how["vision"] == "full"
        return load_vlm(w.entry, w.device, torch.float32 if full else w.dtype)[0]
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=w.dtype,
        llm_int8_skip_modules=WHOLE,
    )
    return load_vlm(w.entry, w.device, w.dtype, quantised=nf4)[0]


def run_train(w, started):
    """Score the base model, train it, score it again; write the adapter, or the model, and tune.yaml."""
    args, dataset = w.args, w.dataset
    print(f"device {w.device.type} ({w.why})")
    model = load_to_tune(w)
    if w.device.type == "cpu":
        model.set_attn_implementation("eager")  # half the time of sdpa's gradient
    half = torch.bfloat16 if bf16_units() else None
    precision = w.device.type, w.dtype if w.device.type == "cuda" else half
    numbers = {"test": sample(w.split["test"], SCORED, w.seed)}
    if w.keep:
        numbers["keep"] = sample(w.keep.split()["test"], SCORED, w.seed)
    of = {"test": dataset, "keep": w.keep}
    scorer, peft = trainable(model, w.how, precision)
    scorer.to(w.device).eval()
    one = w.how["val_batch"]

    def scored(name):
        found = {}
        for part, pick in numbers.items():
            found[part] = answer_scores(scorer, of[part], pick.tolist(), one, w.device, f"{name}, {part}")
        return found

    base = scored("base")
    ids = dataset.items.ids
    names = [f"{ids[example.item]}: {dataset.answers(k)[0][0]}" for k, example in enumerate(dataset.examples)]

    def loss_of(net, pick, g, part, warm):
        inputs, labels, _ = dataset.batch(pick[part].tolist(), w.device)
        # divided by the tokens of the whole batch, into however many parts it is cut
        return net(inputs, labels)[0].sum() / dataset.scored[pick].sum() * (part.step or 1)

    train_part = w.split["train"]
    split = {"train": train_part, "val": sample(w.split["val"], SCORED // 2, w.seed)}
    state, steps = w.out / "training.pt", w.how["epochs"] * (len(train_part) // w.how["batch"])

    def build():
        return reset_lora(scorer) if peft else scorer

    def arrange(g):
        return [train_part[b] for b in batches(dataset.lengths[train_part], w.how["batch"], g)]

    with tqdm(total=steps, desc="tune", unit="step", disable=ranks()[0] > 0) as bar:
        more = state, names, arrange, bar
        scorer, record = train(build, loss_of, split, w.seed, w.how, w.device, *more)
    after = scored("tuned")
    if ranks()[0]:
        return {}
    result = {
        "stage": "tune",
        "mode": "train",
        "model": w.entry["name"],
        "weights": w.entry["weights"],
        "data": dataset.items.index.get("data"),
        "data_name": Path(args.data).name,
        "method": w.how["method"],
        "vision": w.how["vision"],
    }
    sources = [dataset.sources[dataset.examples[k].item] for k in numbers["test"].tolist()]
    exact, loss = after["test"]["exact"], after["test"]["loss"]
    base_exact, base_loss = base["test"]["exact"], base["test"]["loss"]
    majority = majority_exact(dataset, train_part, numbers["test"].tolist())
    against, better = {"base": base_loss}, {"upper_bound": 0.0, "better": "lower", "seed": w.seed}
    criteria = {
        "exact": criterion(exact, {"base": base_exact, "majority": majority}, sources, seed=w.seed),
        "answer_loss": criterion(loss, against, sources, **better),
    }
    result |= {
        "exact": criteria["exact"]["score"],
        "exact_base": base_exact.mean(),
        "exact_majority": majority.mean(),
        **ends_of("exact_gain", paired_test(exact, base_exact, sources, seed=w.seed)),
        "answer_loss": criteria["answer_loss"]["score"],
        "answer_loss_base": base_loss.mean(),
    }
    if w.keep:
        kept_sources = [w.keep.sources[w.keep.examples[k].item] for k in numbers["keep"].tolist()]
        lost = paired_test(base["keep"]["exact"], after["keep"]["exact"], kept_sources, seed=w.seed)
        result |= {
            **ends_of("forgetting", lost),
            "keep_exact": after["keep"]["exact"].mean(),
            "keep_exact_base": base["keep"]["exact"].mean(),
            "keep_name": Path(args.keep).name,
        }
    else:
        result |= {"forgetting": None, "forgetting_reason": "no --keep, a data folder of another task"}
    result |= {
        "parameters": sum(p.numel() for p in learned(scorer).values()),
        "examples": len(dataset.examples),
        "train": len(train_part),
        "dropped_examples": dataset.dropped["examples"],
        "dropped_turns": dataset.dropped["turns"],
        "longest": int(dataset.lengths.max()),
        "val_loss": record["val"],
        **{k: record[k] for k in ("epoch", "steps", "seconds_per_step")},
        "planned_gb": sum(w.plan.values()),
        "criteria": criteria,
        "plan": w.plan,
        "losses": record["losses"][:: max(len(record["losses"]) // 100, 1)],
    }
    if peft and w.how["vision"] != "full":
        # a committed checkpoint is named by its relative path
        peft.peft_config["default"].base_model_name_or_path = MODELS.get(w.entry["name"], w.entry)["path"]
        write_adapter_folder(w.out / "adapter", peft, w.entry)
        result["out"] = str(w.out / "adapter")
    if args.merge or not peft or w.how["vision"] == "full":
        dtype = getattr(model.config, "dtype", None) or torch.float32
        if "out" in result:
            whole = load_vlm(find_model(result["out"]))[0]
        else:
            whole = peft.merge_and_unload() if peft else model
        write_model_folder(w.out / "model", whole, w.processor, w.entry, dtype)
        result["out"] = str(w.out / "model")
    result["run"] = run_of(w, args, started)
    save_yaml(w.out / "tune.yaml", result)
    state.unlink(missing_ok=True)
    print_summary(result)
    return result


# ---------------------------------------------------------------- plan: the memory that training needs, in bytes, by part

CARDS = {"t4": 15e9, "a100_40": 40e9, "a100_80": 80e9}  # bytes; of a T4's 16 GB about 15 are free
PLAN_FRAMES = (1, 8, 16)  # an image, clips
PLAN_TOKENS = 256, 64  # of a question and of an answer
# tiles of (a square image of the tower's size, a frame of a clip)
TILES = {"llava_next": (3, 3), "llava_onevision": (2, 2)}


def published_config(entry):
    """The configuration of a checkpoint from its folder, the local cache or the hub; None where none has it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from transformers import AutoConfig

    path = entry["path"]
    if not Path(path).is_dir():
        revision = entry.get("revision")
        try:
            cached = try_to_load_from_cache(path, "config.json", revision=revision)
            if not isinstance(cached, str):  # one request: transformers would send six
                get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=10)
        except Exception:  # no network, no access, no such repository
            return None
        path = Path(cached).parent if isinstance(cached, str) else path
    return attempt(lambda: AutoConfig.from_pretrained(path, **pin(entry)), entry)


def shape_of(entry, config):
    """The sizes that memory depends on: layers, d, q, kv, inter, vocab and heads of the language model; parameters
    of its matrices (`linear`), of embedding and head (`rest`); tower: sizes, and parameters of all else."""
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
    ends = {id(m.weight): m.weight for m in (model.model.language_model.embed_tokens, model.lm_head)}
    rest = sum(x.numel() for x in ends.values())  # one matrix, where they are tied
    total = sum(p.numel() for p in model.parameters())
    linear = found["layers"] * (2 * found["d"] * (found["q"] + found["kv"]) + 3 * found["d"] * found["inter"])
    return found | {"linear": linear, "rest": rest, "tower": tower | {"weights": total - linear - rest}}


def live(tokens, d, q, kv, inter):
    """Bytes of a layer's activations and their gradients in half precision, without the attention matrix (sdpa).
    Twice the 34 d a token of Korthikanti et al. 2022, section 4.1, where inter is 2.7 d. Three quarters of it are
    stored for the backward pass under LoRA (counted on a small Llama)."""
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
    """{part: bytes} of training a model of `shape`, at the peak. tokens: of a micro-batch, `scored` of them in
    answers. patches: of the tower. half: bytes of a number in the device's precision (4 on a CPU). eager: elements
    of the attention matrices, where they are stored (a CPU).

    Linear layers in NF4 with double quantisation take 4.127 bits a weight (Dettmers et al. 2023, section 3). Trained
    weights are in fp32, with gradient and Adam's two moments (one byte each in 8 bits). Checkpoints are the residual
    stream at each layer. Logits are in half precision, in fp32, and as gradient. A weight is dequantised before use.
    """
    t, linear, rest = shape["tower"], shape["linear"], shape["rest"]
    d, q, kv, inter = (shape[k] for k in ("d", "q", "kv", "inter"))
    w, tower_weights = half / 2, t["weights"]
    layer = w * live(tokens, d, q, kv, inter)
    tower_layer = w * live(patches, t["d"], t["d"], t["d"], t["inter"])
    nbytes = 4 if method == "full" or vision == "full" else half  # of a weight, as load_to_tune has it
    weights, embeddings, tower = nbytes * linear, nbytes * rest, nbytes * tower_weights
    trained = rank * shape["layers"] * (2 * (d + q) + 2 * (d + kv) + 3 * (d + inter))
    if method == "qlora":
        weights = 4.127 / 8 * linear
    elif method == "full":
        weights, embeddings, trained = 0, 0, linear + rest
    if vision == "full":
        tower, trained = 0, trained + tower_weights
    elif vision == "lora":
        trained += rank * t["layers"] * (8 * t["d"] + 3 * (t["d"] + t["inter"]))
    if checkpoint:
        stored = shape["layers"] * tokens * d * half
        tower_stored = t["layers"] * patches * t["d"] * half
    else:
        stored = (shape["layers"] - 1) * layer * 3 / 4
        tower_stored = (t["layers"] - 1) * tower_layer * 3 / 4
    weight = 0  # a copy, dequantised or rounded by autocast
    if method == "qlora":
        weight = half * d * inter
    elif nbytes > half:
        weight = half * (linear / (shape["layers"] if checkpoint else 1))
    pixels = patches * 6 * t["patch"] ** 2 * 4
    parts = {
        "weights": weights,
        "embeddings_tower": embeddings + tower,
        "trained": (10 if adam8bit else 16) * trained,
        "stored": stored,
        "layer": layer,
        "vision": pixels + (tower_layer / 2 if vision == "frozen" else tower_layer + tower_stored),
        "logits": scored * shape["vocab"] * 12,
        "weight_copy": weight,
        "context": context,
    }
    if eager:
        parts["attention"] = 3 * 4 * eager * (1 if checkpoint else shape["layers"])
    return parts


def example_of(entry, shape, frames):
    """(tokens, patches) of an image or clip at the registry's size, with the text of PLAN_TOKENS."""
    side, t = entry["size" if frames == 1 else "clip"], shape["tower"]
    tiles = TILES.get(entry["type"], (1, 1))[0 if frames == 1 else 1]
    frames_per_patch = 2 if entry["type"].startswith("qwen") else 1
    patches = max(frames // frames_per_patch, 1) * (tiles if frames == 1 else 1) * (side // t["patch"]) ** 2
    return patches // t["merge"] ** 2 + sum(PLAN_TOKENS), patches


def needed(shape, how, device, tokens, scored, patches):
    """`memory` of a training with settings `how` on examples of `tokens`, `scored` and `patches`, for a device type."""
    rows = max(how["batch"] // (how["accumulate"] * ranks()[1]), 1)
    sizes = rows * tokens, rows * scored, rows * patches
    flags = {k: how[k] for k in ("rank", "vision", "checkpoint", "adam8bit")}
    if device == "cpu":
        flags |= {"half": 4, "context": 0.3e9, "eager": rows * shape["heads"] * tokens**2}
    return memory(shape, how["method"], *sizes, **flags)


def check_fits(w):
    """The plan {part: GB} of a training; exit 2 where it does not fit."""
    dataset, args, config = w.dataset, w.args, published_config(w.entry)
    if config is None:
        fail(f"{w.entry['path']} has no config.json here or on the hub; download the whole checkpoint")
    shape = shape_of(w.entry, config)
    free = memory_left(w.device, memory_size(args.max_memory) if args.max_memory else None)
    patches = dataset.media_tokens * shape["tower"]["merge"] ** 2
    longest, scored = int(dataset.lengths.max()), int(dataset.scored.max())
    parts = needed(shape, w.how, w.device.type, longest, scored, patches)
    total = sum(parts.values())
    if total > free:
        largest = [f"{k} {parts[k] / 1e9:.2f}" for k in sorted(parts, key=parts.get, reverse=True)[:3]]
        need = f"needs about {total / 1e9:.2f} GB ({', '.join(largest)}) of {free / 1e9:.2f}"
        fail(f"this training {need}; --checkpoint, --accumulate, --adam8bit or --max-pixels reduce it")
    return {k: v / 1e9 for k, v in parts.items()}


def run_plan(args, started):
    """Print and write (tune-plan.yaml) the memory of each model, method and number of frames, and where it fits."""
    tunable, device = [name for name, entry in MODELS.items() if entry["type"] in TUNABLE], choose_device()[0]
    names, absent = args.models or tunable, []
    here = memory_left(device, memory_size(args.max_memory) if args.max_memory else None)
    cards, rows = CARDS | {"here": here}, []
    out = Path(args.out or "results/tune-plan.yaml")
    check_writable(out)
    for name in tqdm(names, desc="plan", unit="model", leave=False):
        entry = find_model(name)
        if entry.get("type") not in TUNABLE:
            kind = entry.get("type", entry["kind"])
            fail(f"--models {name} is a {kind}, which cannot be trained; give some of {', '.join(tunable)}")
        config = published_config(entry)
        if config is None:
            absent.append(entry["name"])
            continue
        shape = shape_of(entry, config)
        for method in RATES:
            for frames in PLAN_FRAMES:
                tokens, patches = example_of(entry, shape, frames)
                impossible = (method, args.vision) in (("full", "lora"), ("qlora", "full"))
                how = {"method": method, "vision": "frozen" if impossible else args.vision, "rank": args.rank}
                how |= {"checkpoint": True, "adam8bit": bool(args.adam8bit)}
                how |= {"batch": args.batch, "accumulate": 1}
                parts = needed(shape, how, "cuda", tokens, PLAN_TOKENS[1], patches)
                total, size = sum(parts.values()), (tokens, PLAN_TOKENS[1], patches)
                row = {"model": entry["name"], "method": method, "frames": frames, "tokens": tokens}
                row |= {"gb": total / 1e9} | {k: v / 1e9 for k, v in parts.items()}
                row |= {card: total <= room for card, room in CARDS.items()}
                local = sum(needed(shape, how, device.type, *size).values())
                row["here"] = local <= here and not (method == "qlora" and device.type == "cpu")
                rows.append(row)
    if not rows:
        fail(f"config not reachable: {', '.join(absent)}; `hf download REPOSITORY config.json` fetches one")
    keys = [k for k in rows[0] if k not in ("model", "method", *cards)]
    print(f"{'model':22} method {' '.join(f'{k[:10]:>10}' for k in keys)}  fits")
    for row in rows:
        cells = [f"{row[k]:>10}" if isinstance(row[k], int) else f"{row[k]:10.2f}" for k in keys]
        fits = ", ".join(card for card in cards if row[card]) or "none"
        print(f"{row['model'][:22]:22} {row['method']:6} {' '.join(cells)}  {fits}")
    for name in absent:
        print(f"{name[:22]:22} config not reachable")
    result = {
        "stage": "tune",
        "mode": "plan",
        "models": len(names) - len(absent),
        **{f"{card}_fit": sum(row[card] for row in rows) for card in cards},
        "rows": len(rows),
        "here_gb": here / 1e9,
        "device": device.type,
        "batch": args.batch,
        "rank": args.rank,
        "vision": args.vision,
        "config_not_reachable": absent,
        "plan": rows,
    }
    args.out = str(out)
    save_yaml(out, result | {"run": run_info(args, started, script="tune.py")})
    print_summary(result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "train": "a vision-language model on one's own images and clips",
            "plan": "the memory that this needs, by part, and the cards that hold it",
            "words": "a language model on a video model's embeddings of objects",
        },
    )
    add = jobs["train"].add_argument
    add("--model", default="tiny", help="the vision-language model")
    add("--data", default="data/operations", help="items with questions and answers")
    add("--method", choices=list(RATES), help="qlora: in 4 bits (a GPU) (default: lora)")
    add("--vision", choices=("frozen", "lora", "full"), help="tower and projector (default: frozen)")
    add("--rank", type=int, default=16, help="of LoRA")
    add("--accumulate", type=int, help="parts into which a batch is cut (default: 1)")
    add("--checkpoint", action="store_true", default=None, help="recompute activations in the backward pass")
    add("--adam8bit", action="store_true", default=None, help="bitsandbytes' 8-bit optimizer (a GPU)")
    add("--max-pixels", type=int, help="of an image or frame (default: the registry's sizes, squared)")
    add("--max-tokens", type=int, help="of an example; later turns are left out (default: no limit)")
    add("--max-memory", metavar="SIZE", help="of the GPU or CPU, such as 15GB (default: what is free)")
    add("--keep", metavar="DATA", help="a data folder of another task, whose test items measure forgetting")
    add("--merge", action="store_true", help="also write the model with LoRA merged")
    add("--preset", choices=list(PRESETS), help="defaults for a card")
    add_training_flags(jobs["train"], {k: TRAINING[k] for k in ("epochs", "batch", "lr")})
    add("--out", help="default: results/<model>/<data>/tuned")
    add = jobs["plan"].add_argument
    add("--models", nargs="*", help="(default: all trainable models of the registry)")
    add("--max-memory", metavar="SIZE", help="of this machine, such as 15GB (default: what is free)")
    add("--batch", type=int, default=1, help="clips or images")
    add("--adam8bit", action="store_true", help="bitsandbytes' 8-bit optimizer")
    add("--rank", type=int, default=16, help="of LoRA")
    add("--vision", choices=("frozen", "lora", "full"), default="frozen", help="tower and projector")
    add("--out", help="default: results/tune-plan.yaml")
    add = jobs["words"].add_argument
    add("--embeddings", default="results/tiny/trajectories/tracks.pt", help="a video model's embeddings")
    add("--data", default="data/trajectories", help="the clips of the embeddings")
    add("--language", default="tiny-words", help="the language model, a name or a folder")
    add("--soft", type=int, default=8, help="soft tokens of an embedding")
    add("--width", type=int, help="of the adapter's hidden layer (default: no hidden layer)")
    add("--rank", type=int, default=16, help="of LoRA")
    add_training_flags(jobs["words"], SETTINGS["words"])
    add("--out", help="default: the folder words beside --embeddings")
    args = p.parse_args(argv)
    if args.mode == "train":
        defaults = {
            "method": "lora",
            "vision": "frozen",
            "accumulate": 1,
            "checkpoint": False,
            "adam8bit": False,
        }
        for name, value in (defaults | PRESETS.get(args.preset, {})).items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    return args


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "plan":
        return run_plan(args, started)
    if args.mode == "words":
        return run_words(check_words(args), started)
    return run_train(check_train(args), started)


if __name__ == "__main__":
    main()
