"""Fine-tuning on one's own images and clips; does it fit in memory?

    python tune.py train --model tiny --data data/shapes --out results/tiny/shapes/tuned
    python tune.py train --model qwen2.5-vl-7b --data data/mine --preset t4 --keep data/shapes      # in 4 bits on a T4, and what it forgets
    python tune.py plan --models qwen2.5-vl-7b                          # what that needs of memory, part by part, and which card holds it
    python tune.py words --embeddings results/tiny/trajectories/tracks.pt --data data/trajectories --language tiny-words

`train`: items with `turns` (data.py sets, shapes, ...; operations.py read), each put to the model as at inference, by its own processor
and chat template; only the tokens of answers and the ends of their turns carry loss, and logits are computed for these alone. Turns of
a `chat` are one example, any others one each. Boxes in the text ({"bbox_2d": [x1, y1, x2, y2]}, pixels of the original) are written as
the family writes them. Writes <out>/adapter/ (peft's, and a MODEL like any other) or, with --merge, --method full or --vision full,
<out>/model/; and <out>/tune.yaml: `exact`, the share of test's answers that greedy decoding gives to the token, and
`answer_loss`, tuned and of the model as it was; `forgetting`, what --keep lost of `exact`. A training that cannot fit is not begun.

`words`: a frozen language model learns to answer (`turns` of data.py trajectories) from a video model's embedding of the object that is
asked about, 512 numbers that an adapter makes into soft tokens, under LoRA. Reads tracks.pt (track.py), writes <out>/seed<i>/ (peft's
folder and soft.safetensors) and <out>/tune-words.yaml: share of val's answers that are right, in all and by kind, beside the majority
answer; `forgetting`: what LoRA costs on a task that is not about clips.

Modules, to be copied with it: claims.py, cogvlm2.py, common.py, conversations.py, media.py, metrics.py,
models.py, stats.py, training.py.
"""

import contextlib
import functools
import importlib.util
import io
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

from claims import TELL_OF, about, load_tracks, named, naming, right, track_id
from common import (
    Items,
    bf16_units,
    check_writable,
    choose_device,
    load_items,
    load_yaml,
    memory_left,
    memory_size,
    plain,
    refuse,
    run_info,
    save_bytes,
    save_yaml,
    say,
    split_indices,
    subcommands,
)
from conversations import spoken_of
from media import fitted, frames_of
from models import MODELS, RATE, attempt, auto_classes, find_model, load_language, load_vlm, pin, processor_of
from stats import bootstrap, criterion, paired_test
from training import (
    Soft,
    add_training_flags,
    answered,
    digest_of_tensors,
    headline,
    learned,
    mean_answer_loss,
    ranks,
    reset_lora,
    save_soft,
    train,
    training_settings,
    word_prompt,
)

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


@contextlib.contextmanager
def whole_folder(folder):
    """A folder to write into, which takes the place of `folder` when it is complete."""
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    yield part
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)


def save_lora(folder, peft):
    """LoRA as peft reads it."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save

    peft.peft_config["default"].save_pretrained(folder)
    weights = get_peft_model_state_dict(peft, save_embedding_layers=False)
    weights = {k: v.detach().float().cpu().contiguous() for k, v in weights.items()}
    save_bytes(folder / "adapter_model.safetensors", save(weights))


def run_of(w, args, started):
    """The YAML's `run`."""
    args.out, device = str(w.out), f"{w.device.type} ({w.why})"
    more = {"device": device, "dtype": str(w.dtype), "ranks": ranks()[1]}
    return run_info(args, started, script="tune.py", **more, **w.how)


def ends_of(name, test):
    """The gain of a paired test, with its interval, as the YAML calls it."""
    return {f"{name}{end}": test[f"gain{end}"] for end in ("", "_low", "_high")}


def write_seed(folder, reader, record, how):
    """seed<i>/, complete or absent: LoRA, soft.safetensors, and seed.yaml with how both were trained."""
    facts = {k: record[k] for k in ("val", "epoch", "steps", "seconds_per_step", "losses")}
    with whole_folder(folder) as part:
        save_lora(part, reader.model)
        save_soft(part / "soft.safetensors", reader.soft, language=how["language"])
        save_yaml(part / "seed.yaml", {"stage": "tune", "mode": "words"} | facts | {"how": how})


def written_seed(folder, reader, how):
    """The record of a seed that was trained in the same way before, its weights now in `reader`; None where there is none."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    record = load_yaml(folder / "seed.yaml", "tune") if (folder / "seed.yaml").is_file() else {}
    if record.get("how") != plain(how):
        return None
    set_peft_model_state_dict(reader.model, load_file(folder / "adapter_model.safetensors"))
    reader.soft.load_state_dict(load_file(folder / "soft.safetensors"))
    return record


def word_world(args):
    """Everything that is checked before a model is loaded: items, embeddings, and turns (kind, question, answer, row of its embedding, number of its item)."""
    w = SimpleNamespace(args=args, seed=args.seed)
    w.entry = find_model(args.language)
    if w.entry["kind"] != "language":
        refuse(f"--language {args.language} is a {w.entry['kind']}; a language model is needed (tiny-words)")
    w.items, w.data = load_items(args.data)
    if "tracks" not in w.items[0]:
        refuse(f"{args.data} says nothing of tracks; make it with data.py trajectories")
    w.tracks = load_tracks(args.embeddings, w.items)
    parts = split_indices(w.items, args.data)
    rows = {name: k for k, name in enumerate(w.tracks["ids"])}
    w.turns = []
    for k, item in enumerate(w.items):
        asked = []
        for (question, answer), (kind, name) in zip(item["turns"], item["asked"], strict=True):
            asked.append((kind, question, answer, name))
        asked += [("describe", TELL_OF.format(name), about(item, name), name) for name in item["names"]]
        absent = item["absent"]
        asked.append(("absent", TELL_OF.format(absent), f"there is no {absent}", absent))
        for kind, question, answer, name in asked:
            track = track_id(item, name)
            if track not in rows:
                refuse(f"{args.embeddings} lacks {track!r}; run track.py on {args.data}")
            w.turns.append((kind, question, answer, rows[track], k))
    where = {int(k): part for part, numbers in parts.items() for k in numbers}
    w.split = {}
    for part in parts:
        w.split[part] = torch.tensor([i for i, turn in enumerate(w.turns) if where[turn[4]] == part])
    if min(args.rank, args.soft) < 1:
        refuse(f"--rank {args.rank} and --soft {args.soft} leave nothing to train; give 1 or more")
    w.how = training_settings(args, SETTINGS["words"], len(w.split["train"]))
    w.how |= {"rank": args.rank, "soft": args.soft, "inner": args.width or 0}
    w.out = Path(args.out or Path(args.embeddings).parent / "words")
    check_writable(w.out / "tune-words.yaml")
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


def run_words(w, started):
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
        given = answered(model, tokenizer, list_prompts)
        return torch.tensor([float(named(said, x[2])) for said, x in zip(given, lists, strict=True)])

    untouched, tokens = lists_named(), model.get_input_embeddings()
    w.how["language"] = w.entry["name"]
    w.how["of"] = digest_of_tensors(w.tracks["embedding"], tokens.weight[:64].detach().cpu())
    # of a folder of ours no path of this machine
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
        asked = [prompts[i] for i in items[part].tolist()]
        return reader(asked, embeddings[[turn[3] for turn in some]], [turn[2] for turn in some])

    val = w.split["val"].tolist()
    truth = [w.turns[i][2] for i in val]
    records, scores, kept = [], [], []
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
            scores.append([float(right(a, b)) for a, b in zip(given, truth, strict=True)])
            kept.append(lists_named())
    if ranks()[0]:
        return {}
    scores = torch.tensor(scores)
    kept = torch.stack(kept)
    sources = [w.items[w.turns[i][4]]["source"] for i in val]
    table = by_kind(w.turns, val, w.split["train"].tolist(), scores, sources, w.seed)
    # a description is right only if every word of it is
    asked = [j for j, i in enumerate(val) if w.turns[i][0] != "describe"]
    kinds = [w.turns[val[j]][0] for j in asked]
    pairs = [(table[kind]["commonest"], truth[j]) for kind, j in zip(kinds, asked, strict=True)]
    floors = {"commonest": torch.tensor([float(right(*pair)) for pair in pairs])}
    found = criterion(scores[:, asked], floors, [sources[j] for j in asked], seed=w.seed)
    criteria = {"accuracy": found}
    forgotten = paired_test(untouched, kept, range(NAMED), seed=w.seed)
    named_with = bootstrap(kept, range(NAMED), seed=w.seed)
    shortest = min(len(r["losses"]) for r in records)  # --patience
    losses = np.mean([r["losses"][:shortest] for r in records], 0)
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
        "accuracy_seeds": scores[:, asked].mean(1).tolist(),
        **headline(criteria, "lpips"),
        "describe_exact": table["describe"]["accuracy"],
        **ends_of("forgetting", forgotten),
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
        "peak_memory_bytes": peak,
        "kinds": table,
        "criteria": criteria,
        "seeds": [
            {"val_loss": r["val"], **{k: r[k] for k in ("epoch", "steps", "seconds_per_step")}}
            for r in records
        ],
        "loss": {k: losses[k - every : k].mean() for k in range(every, len(losses) + 1, every)},
    }
    result["run"] = run_of(w, args, started)
    save_yaml(w.out / "tune-words.yaml", result)
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
    "t4": {"method": "qlora", "batch": 8, "accumulate": 8, "checkpoint": True, "adam8bit": True},
    "a100": {"method": "lora", "batch": 16, "accumulate": 4, "checkpoint": True},
}
PRESETS["t4"] |= {"max_pixels": 448 * 448, "max_tokens": 1024}
PRESETS["a100"] |= {"max_pixels": 1024 * 1024, "max_tokens": 4096}
# loss, epochs, batch and learning rate of each job
TRAINING = {"seeds": 1, "loss": "answers", "warm": 0, "epochs": 3, "patience": None, "batch": 16, "lr": 2e-4}
SETTINGS = {"train": TRAINING, "words": TRAINING | {"seeds": 3, "batch": 32, "lr": 3e-3}}
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
        if len(numbers) != 4:
            return match[0]
        scaled = [n * (b / a) for n, a, b in zip(numbers, before * 2, after * 2, strict=True)]
        said = [f"{n:.3f}" if after == (1, 1) else str(round(n)) for n in scaled]
        return f"{match[1]}{', '.join(said)}{match[3]}"

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
        n = len(texts) - 1
        if not placed and not k:
            n = len(left)
        if n > len(left):
            raise ValueError(
                f"its questions name more pictures or videos than the {len(media)} that it holds"
            )
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
    if whole[: len(start)] == start:
        return whole[len(start) :]
    return tokenizer(piece, add_special_tokens=False).input_ids


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

        if "frames" in item:
            t, h, w = item["frames"].shape[:3]
            own, said_in = [(t, w, h)], [(item.get("width", w), item.get("height", h))]
        else:
            own = [(1, *Image.open(io.BytesIO(x.numpy().tobytes())).size) for x in encoded_of(item)]
            said_in = [size[1:] for size in own]
        return tuple((t, *self.frame(w, h, t > 1)) for t, w, h in own), said_in  # a clip is squashed

    def said(self, item, first, last):
        """(messages of these turns, boxes as the model says them; the number of media that each brings; sizes of all media)."""
        sizes, own = self.sizes(item)
        turns = item["turns"][first:last]
        if sizes:
            owners = [number or 0 for number in spoken_of(item["turns"], len(sizes))[first:last]]
            scales = [SCALES.get(self.kind, (1000, 1000)) or size[1:] for size in sizes]
            turns = [
                [rescaled(text, own[k], scales[k]) for text in turn]
                for turn, k in zip(turns, owners, strict=True)
            ]
        kinds = [self.places(t) for t, *_ in sizes]
        placed = any(PLACE.search(question) for question, _ in (item["turns"] if item.get("chat") else turns))
        return *conversation(turns, item.get("system"), kinds, placed), sizes

    def places(self, t):
        """What stands in a message for a medium of t frames."""
        return [{"type": "video"}] if self.as_video and t > 1 else [{"type": "image"}] * t

    def processed(self, text, media, fps=RATE, **more):
        """The processor's output for one text with media, uint8 [T,H,W,3] each, whose size it leaves as it is if it leaves any."""
        films = [m for m in media if self.as_video and len(m) > 1]
        pictures = [p for m in media for p in m if not self.as_video or len(m) == 1]
        size = {}
        if self.as_video:
            size["size"] = {"shortest_edge": 1, "longest_edge": max(m.shape[:3].numel() for m in media)}
        if pictures:
            more["images"] = [p.permute(2, 0, 1) for p in pictures]
            more["images_kwargs"] = size | ({"crop_to_patches": False} if self.kind == "internvl" else {})
        if films:
            more["videos"] = [f.permute(0, 3, 1, 2) for f in films]
            more["videos_kwargs"] = {"do_sample_frames": False, "cap_pixels_per_frame": False, **size}
            more["video_metadata"] = [
                {"fps": min(fps, RATE), "total_num_frames": len(f), "frames_indices": list(range(len(f)))}
                for f in films
            ]
        return self.processor(text=[text], return_tensors="pt", **more)

    def extra_of(self, size):
        """Tokens that a medium of this size, (T, width, height), takes beyond its placeholder in the text."""
        t, w, h = size
        messages = [{"role": "user", "content": self.places(t)}]
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        given = self.processed(text, [torch.zeros(t, h, w, 3, dtype=torch.uint8)])
        return given["input_ids"].shape[1] - len(self.tokenizer(text).input_ids)

    def lessons(self, item, number, most=None):
        """The item's lessons, with at most so many tokens: what is too long loses its last turns, whole, and with them what they show; one whose first turn is too long is left out."""
        whole, found = bool(item.get("chat")), []
        for first in [0] if whole else range(len(item["turns"])):
            messages, brings, sizes = self.said(item, first, len(item["turns"]) if whole else first + 1)
            tokens = scored = last = shown = 0
            parts = zip(pieces(self.processor, messages), brings, strict=True)
            for k, ((prompt, answer), n) in enumerate(parts):
                asked = len(self.tokenizer(prompt, add_special_tokens=not k).input_ids)
                said = len(self.tokenizer(answer, add_special_tokens=False).input_ids)
                tokens += asked + said + sum(map(self.extra, sizes[shown : shown + n]))
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
        media = []
        for x in whole:
            media.append(frames_of({"frames": x}, self.token and (self.token, self.pixels[len(x) > 1])))
        ids, labels, turn, kinds = [], [], [], []
        beside, done = {}, ""
        parts = zip(pieces(self.processor, messages), brings, strict=True)
        for k, ((prompt, answer), n) in enumerate(parts, 1):
            given = {}
            if n:
                more = {"add_special_tokens": False} if k > 1 else {}
                given = dict(self.processed(prompt, media[:n], item.get("fps", RATE), **more))
                own = given.pop("input_ids")[0].tolist()
            elif k > 1:
                own = continued(self.tokenizer, done, prompt)
            else:
                own = self.tokenizer(prompt).input_ids
            kind = [0] * len(own)
            if "mm_token_type_ids" in given:
                kind = given.pop("mm_token_type_ids")[0].tolist()
            media = media[n:]
            for name in given.keys() - {"attention_mask"}:
                beside.setdefault(name, []).append(torch.as_tensor(given[name]))
            said = continued(self.tokenizer, done + prompt, answer)
            ids = ids + own + said
            labels = labels + [-100] * len(own) + said
            turn = turn + [0] * len(own) + [k] * len(said)
            kinds = kinds + kind + [0] * len(said)
            done += prompt + answer
        row = {"input_ids": ids, "labels": labels, "turn": turn, "mm_token_type_ids": kinds}
        return row, {name: joined(x) for name, x in beside.items()}


def joined(tensors):
    """One behind the other, those of fewer tiles (LLaVA-NeXT's second axis) filled up with zeros."""
    most = [max(s) for s in zip(*(x.shape[1:] for x in tensors), strict=True)]
    filled = []
    for x in tensors:
        lacking = [m - s for m, s in zip(most, x.shape[1:], strict=True)]
        filled.append(F.pad(x, [n for m in reversed(lacking) for n in (0, m)]) if any(lacking) else x)
    return torch.cat(filled)


def collated(rows, pad, typed):
    """(inputs of the model, labels and turn [n, L]) of what Reading gives, padded behind."""
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
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    return numbers[order[:n].sort().values]


class School:
    """The lessons of a data folder, read when needed. What fits into `room` bytes is kept, so that it is decoded once."""

    def __init__(self, folder, reading, most=None, room=2e9):
        self.items, self.folder = Items(folder), folder
        self.reading, self.room, self.kept = reading, room, {}
        self.lessons, self.dropped = [], {"lessons": 0, "turns": 0}
        # seen: tokens of one item's pictures, at most; clips: (width, height) of all
        self.seen, self.clips = 0, set()
        few = len(self.items) < 2000
        for k, item in enumerate(tqdm(self.items, desc=f"lessons of {folder}", unit="item", disable=few)):
            if not item.get("turns"):
                refuse(f"{folder}: {item['id']!r} has no turns (questions, answers); use a set that has them")
            try:
                found = reading.lessons(item, k, most)
            except ValueError as e:
                refuse(f"{folder}: {item['id']!r} cannot be put to {reading.kind}: {e}")
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
        split = {}
        for part in where:
            own = [k for k, lesson in enumerate(self.lessons) if part_of[lesson.item] == part]
            split[part] = torch.tensor(own)
        return split

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
            exact = [likeliest[own & (turn == t)].all() for t in turn[own].unique()]
            found[1, j] = torch.stack(exact).float().mean()
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
    shares = []
    for k in numbers:
        shares.append(np.mean([usual.get(q, of_all) == a for q, a in school.answers(int(k))]))
    return torch.tensor(shares)


# what sees, and what joins it to the language model, in all families
TOWER = "model.visual.", "model.vision_tower.", "model.multi_modal_projector."
WHOLE = ["lm_head", *(name.rstrip(".") for name in TOWER)]  # not in 4 bits


def under_lora(model, how):
    """peft's model: LoRA on every linear layer of the language model and, with --vision lora, of the tower and what joins the two."""
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
    with whole_folder(folder) as part:
        save_lora(part, peft)
        save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "tune.py train"})


def write_model_folder(folder, model, processor, entry, dtype):
    """<folder>/, complete or absent: a model as transformers reads it, with its processor."""
    with whole_folder(folder) as part:
        model.to(dtype).save_pretrained(part)
        processor.save_pretrained(part)
        save_yaml(part / "weights.yaml", {k: entry[k] for k in NOTED} | {"trained_by": "tune.py train"})


def tune_world(args):
    """Everything that is checked before a model is loaded."""
    w = SimpleNamespace(args=args, seed=args.seed, entry=find_model(args.model))
    if w.entry.get("type") not in TUNABLE:
        kind = w.entry.get("type", w.entry["kind"])
        refuse(f"--model {args.model} is a {kind}, which is not tuned here; give one of {', '.join(TUNABLE)}")
    if "adapter" in w.entry:
        refuse(f"--model {args.model} is an adapter; merge it first (--merge), and tune the merged folder")
    w.device, w.dtype, w.why = choose_device()
    if args.preset == "t4" and w.device.type == "cuda":
        w.dtype, w.why = torch.float16, f"{w.why}; fp16, as --preset t4 says"
    if args.method == "full" and args.vision == "lora":
        refuse("--vision lora goes with --method lora or qlora; with --method full give frozen or full")
    if args.method == "qlora" and args.vision == "full":
        refuse("--vision full does not go with --method qlora (a model in 4 bits); give --vision lora")
    for flag, given in (("--method qlora", args.method == "qlora"), ("--adam8bit", args.adam8bit)):
        if given and w.device.type != "cuda":
            refuse(f"{flag} needs a GPU; leave it out")
        if given and not importlib.util.find_spec("bitsandbytes"):
            refuse(f"{flag} needs bitsandbytes; pip install bitsandbytes, or leave it out")
    if args.rank < 1:
        refuse(f"--rank {args.rank} leaves nothing to train; give 1 or more")
    w.out = Path(args.out or Path("results") / w.entry["name"] / Path(args.data).name / "tuned")
    check_writable(w.out / "tune.yaml")
    w.processor = processor_of(w.entry)
    if not getattr(w.processor, "chat_template", None):
        refuse(f"{w.entry['path']} has no chat template; take an instruct model")
    pixels = [args.max_pixels or w.entry[k] ** 2 for k in ("size", "clip")]
    reading = Reading(w.processor, w.entry["type"], pixels)
    w.school = School(args.data, reading, args.max_tokens)
    w.entry["own_shape"] = [reading.token, pixels[0]] if reading.token else []
    if len(w.school.clips) == 1 and len(set(*w.school.clips)) == 1:  # data.py's are squares of one size
        w.entry["clip"] = next(iter(w.school.clips))[0]
    w.split = w.school.split()
    for part, numbers in w.split.items():
        if not len(numbers):
            refuse(f"{args.data}: no question of the {part} split fits; raise --max-tokens")
    w.keep = School(args.keep, reading, args.max_tokens) if args.keep else None
    if w.keep and not len(w.keep.split()["test"]):
        refuse(f"{args.keep}: no question of the test split fits; raise --max-tokens, or leave --keep out")
    w.how = training_settings(args, SETTINGS["train"], len(w.split["train"]))
    for name in ("method", "vision", "rank", "accumulate", "checkpoint", "adam8bit"):
        w.how[name] = getattr(args, name)
    n = ranks()[1] * args.accumulate
    if w.how["batch"] % n:
        refuse(
            f"--batch {w.how['batch']} does not go into {n} parts (--accumulate, ranks); give a multiple of {n}"
        )
    names = torch.tensor(bytearray("\n".join(w.school.items.ids).encode()))
    w.how |= {
        "lr": args.lr or RATES[args.method],
        "scaler": w.dtype == torch.float16,
        "val_batch": max(w.how["batch"] // n, 1),
        "model": w.entry["name"],
        "max_tokens": args.max_tokens,
        "pixels": pixels,
        "of": digest_of_tensors(w.school.lengths, names),
    }
    w.plan = check_fits(w)
    return w


def load_to_tune(w):
    """The model as it is trained: in 4 bits (qlora), in the device's own precision under LoRA, in fp32 where its own weights change."""
    if w.how["method"] != "qlora":
        own_change = w.how["method"] == "full" or w.how["vision"] == "full"
        return load_vlm(w.entry, w.device, torch.float32 if own_change else w.dtype)[0]
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
    """Score the model as it is, train it, score it again; write the adapter, or the model, and tune.yaml."""
    args, school = w.args, w.school
    print(f"device {w.device.type} ({w.why})")
    model = load_to_tune(w)
    if w.device.type == "cpu":
        model.set_attn_implementation("eager")  # half the time of sdpa's gradient
    half = torch.bfloat16 if bf16_units() else None
    precision = w.device.type, w.dtype if w.device.type == "cuda" else half
    numbers = {"test": drawn(w.split["test"], SHOWN, w.seed)}
    if w.keep:
        numbers["keep"] = drawn(w.keep.split()["test"], SHOWN, w.seed)
    of = {"test": school, "keep": w.keep}
    taught, peft = teachable(model, w.how, precision)
    taught.to(w.device).eval()
    one = w.how["val_batch"]

    def scored(name):
        found = {}
        for part, own in numbers.items():
            found[part] = scores(taught, of[part], own.tolist(), one, w.device, f"{name}, {part}")
        return found

    base = scored("as it is")
    ids = school.items.ids
    names = [f"{ids[lesson.item]}: {school.answers(k)[0][0]}" for k, lesson in enumerate(school.lessons)]

    def loss_of(net, pick, g, part, warm):
        inputs, labels, _ = school.batch(pick[part].tolist(), w.device)
        # of all the batch's tokens, however it is cut up
        return net(inputs, labels)[0].sum() / school.scored[pick].sum() * (part.step or 1)

    train_part = w.split["train"]
    split = {"train": train_part, "val": drawn(w.split["val"], SHOWN // 2, w.seed)}
    state, steps = w.out / "training.pt", w.how["epochs"] * (len(train_part) // w.how["batch"])

    def build():
        return reset_lora(taught) if peft else taught

    def arrange(g):
        return [train_part[b] for b in batches(school.lengths[train_part], w.how["batch"], g)]

    with tqdm(total=steps, desc="tune", unit="step", disable=ranks()[0] > 0) as bar:
        more = state, names, arrange, bar
        taught, record = train(build, loss_of, split, w.seed, w.how, w.device, *more)
    after = scored("tuned")
    if ranks()[0]:
        return {}
    result = {
        "stage": "tune",
        "mode": "train",
        "model": w.entry["name"],
        "weights": w.entry["weights"],
        "data": school.items.index.get("data"),
        "data_name": Path(args.data).name,
        "method": w.how["method"],
        "vision": w.how["vision"],
    }
    sources = [school.sources[school.lessons[k].item] for k in numbers["test"].tolist()]
    exact, loss = after["test"]["exact"], after["test"]["loss"]
    base_exact, base_loss = base["test"]["exact"], base["test"]["loss"]
    commonest = commonest_exact(school, train_part, numbers["test"].tolist())
    against, better = {"base": base_loss}, {"ceiling": 0.0, "better": "lower", "seed": w.seed}
    criteria = {
        "exact": criterion(exact, {"base": base_exact, "commonest": commonest}, sources, seed=w.seed),
        "answer_loss": criterion(loss, against, sources, **better),
    }
    result |= {
        "exact": criteria["exact"]["score"],
        "exact_base": base_exact.mean(),
        "exact_commonest": commonest.mean(),
        **ends_of("exact_gain", paired_test(exact, base_exact, sources, seed=w.seed)),
        "answer_loss": criteria["answer_loss"]["score"],
        "answer_loss_base": base_loss.mean(),
    }
    if w.keep:
        kept_sources = [w.keep.sources[w.keep.lessons[k].item] for k in numbers["keep"].tolist()]
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
        "parameters": sum(p.numel() for p in learned(taught).values()),
        "lessons": len(school.lessons),
        "train": len(train_part),
        "dropped_lessons": school.dropped["lessons"],
        "dropped_turns": school.dropped["turns"],
        "longest": int(school.lengths.max()),
        "val_loss": record["val"],
        **{k: record[k] for k in ("epoch", "steps", "seconds_per_step")},
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
        if "out" in result:
            whole = load_vlm(find_model(result["out"]))[0]
        else:
            whole = peft.merge_and_unload() if peft else model
        write_model_folder(w.out / "model", whole, w.processor, w.entry, dtype)
        result["out"] = str(w.out / "model")
    result["run"] = run_of(w, args, started)
    save_yaml(w.out / "tune.yaml", result)
    state.unlink(missing_ok=True)
    say(result)
    return result


# ---------------------------------------------------------------- plan: what tuning needs of memory, in bytes, part by part

CARDS = {"t4": 15e9, "a100_40": 40e9, "a100_80": 80e9}  # bytes; a T4's 16 GB leave 15
SHOTS = (1, 8, 16)  # frames: a picture, clips
WORDS = 256, 64  # tokens of a question and of an answer in the plan's lessons
# a square picture of the tower's size once whole and in (two, one) tiles
TILES = {"llava_next": (3, 3), "llava_onevision": (2, 2)}


def published_config(entry):
    """The checkpoint's configuration, from its folder, the local cache or the hub; None where it is in none of them."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from transformers import AutoConfig

    path = entry["path"]
    if not Path(path).is_dir():
        revision = entry.get("revision")
        try:
            cached = try_to_load_from_cache(path, "config.json", revision=revision)
            if not isinstance(cached, str):  # once: transformers would ask six times
                get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=10)
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
    ends = {id(m.weight): m.weight for m in (model.model.language_model.embed_tokens, model.lm_head)}
    rest = sum(x.numel() for x in ends.values())  # one matrix, where they are tied
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
    t, linear, rest = shape["tower"], shape["linear"], shape["rest"]
    d, q, kv, inter = (shape[k] for k in ("d", "q", "kv", "inter"))
    w, seen = half / 2, t["weights"]
    layer, glance = w * live(tokens, d, q, kv, inter), w * live(patches, t["d"], t["d"], t["d"], t["inter"])
    own = 4 if method == "full" or vision == "full" else half  # load_to_tune
    weights, embeddings, tower = own * linear, own * rest, own * seen
    trained = rank * shape["layers"] * (2 * (d + q) + 2 * (d + kv) + 3 * (d + inter))
    if method == "qlora":
        weights = 4.127 / 8 * linear
    elif method == "full":
        weights, embeddings, trained = 0, 0, linear + rest
    if vision == "full":
        tower, trained = 0, trained + seen
    elif vision == "lora":
        trained += rank * t["layers"] * (8 * t["d"] + 3 * (t["d"] + t["inter"]))
    if checkpoint:
        kept, glances = shape["layers"] * tokens * d * half, t["layers"] * patches * t["d"] * half
    else:
        kept, glances = (shape["layers"] - 1) * layer * 3 / 4, (t["layers"] - 1) * glance * 3 / 4
    weight = 0  # dequantised, or rounded by autocast
    if method == "qlora":
        weight = half * d * inter
    elif own > half:
        weight = half * (linear / (shape["layers"] if checkpoint else 1))
    parts = {
        "weights": weights,
        "embeddings_tower": embeddings + tower,
        "trained": (10 if adam8bit else 16) * trained,
        "kept": kept,
        "layer": layer,
        "vision": patches * 6 * t["patch"] ** 2 * 4
        + (glance / 2 if vision == "frozen" else glance + glances),
        "logits": scored * shape["vocab"] * 12,
        "weight": weight,
        "context": context,
    }
    if eager:
        parts["attention"] = 3 * 4 * eager * (1 if checkpoint else shape["layers"])
    return parts


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
    sizes = rows * tokens, rows * scored, rows * patches
    flags = {k: how[k] for k in ("rank", "vision", "checkpoint", "adam8bit")}
    if device == "cpu":
        flags |= {"half": 4, "context": 0.3e9, "eager": rows * shape["heads"] * tokens**2}
    return memory(shape, how["method"], *sizes, **flags)


def check_fits(w):
    """Refuse a training that the plan says does not fit; else its plan, {part: GB}."""
    school, args, config = w.school, w.args, published_config(w.entry)
    if config is None:
        refuse(f"{w.entry['path']} has no config.json here or on the hub; copy the whole checkpoint")
    shape = shape_of(w.entry, config)
    free = memory_left(w.device, memory_size(args.max_memory) if args.max_memory else None)
    patches = school.seen * shape["tower"]["merge"] ** 2
    longest, scored = int(school.lengths.max()), int(school.scored.max())
    parts = needed(shape, w.how, w.device.type, longest, scored, patches)
    total = sum(parts.values())
    if total > free:
        largest = [f"{k} {parts[k] / 1e9:.2f}" for k in sorted(parts, key=parts.get, reverse=True)[:3]]
        need = f"needs about {total / 1e9:.2f} GB ({', '.join(largest)}) of {free / 1e9:.2f}"
        refuse(f"this training {need}; --checkpoint, --accumulate, --adam8bit or --max-pixels reduce it")
    return {k: v / 1e9 for k, v in parts.items()}


def run_plan(args, started):
    """A table of what tuning needs for each model whose configuration can be had, method and number of frames, and where it fits; tune-plan.yaml."""
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
            refuse(f"--models {name} is a {kind}, which is not tuned here; give some of {', '.join(tunable)}")
        config = published_config(entry)
        if config is None:
            absent.append(entry["name"])
            continue
        shape = shape_of(entry, config)
        for method in RATES:
            for frames in SHOTS:
                tokens, patches = lesson_of(entry, shape, frames)
                impossible = (method, args.vision) in (("full", "lora"), ("qlora", "full"))
                how = {"method": method, "vision": "frozen" if impossible else args.vision, "rank": args.rank}
                how |= {
                    "checkpoint": True,
                    "adam8bit": bool(args.adam8bit),
                    "batch": args.batch,
                    "accumulate": 1,
                }
                parts = needed(shape, how, "cuda", tokens, WORDS[1], patches)
                total, size = sum(parts.values()), (tokens, WORDS[1], patches)
                row = {"model": entry["name"], "method": method, "frames": frames, "tokens": tokens}
                row |= {"gb": total / 1e9} | {k: v / 1e9 for k, v in parts.items()}
                row |= {card: total <= room for card, room in CARDS.items()}
                own = sum(needed(shape, how, device.type, *size).values())
                row["here"] = own <= here and not (method == "qlora" and device.type == "cpu")
                rows.append(row)
    if not rows:
        refuse(f"config not reachable: {', '.join(absent)}; `hf download REPOSITORY config.json` fetches one")
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
    say(result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "train": "a vision-language model on one's own images and clips",
            "plan": "what that needs of memory, part by part, and which card holds it",
            "words": "a language model that reads a video model's embeddings of objects",
        },
    )
    add = jobs["train"].add_argument
    add("--model", default="tiny", help="the vision-language model")
    add("--data", default="data/operations", help="items with questions and answers")
    add("--method", choices=list(RATES), help="qlora: in 4 bits (a GPU) (default: lora)")
    add("--vision", choices=("frozen", "lora", "full"), help="tower and projector (default: frozen)")
    add("--rank", type=int, default=16, help="of LoRA")
    add("--accumulate", type=int, help="parts of a batch, one after the other (default: 1)")
    add("--checkpoint", action="store_true", default=None, help="recompute activations in the backward pass")
    add("--adam8bit", action="store_true", default=None, help="bitsandbytes' 8-bit optimizer (a GPU)")
    add("--max-pixels", type=int, help="of an image, and of a frame (default: the registry's sizes, squared)")
    add("--max-tokens", type=int, help="of an example; turns beyond it are left out (default: all)")
    add("--max-memory", metavar="SIZE", help="of the GPU, or the CPU, as 15GB (default: what is free)")
    add("--keep", metavar="DATA", help="another task, on whose test items forgetting is measured")
    add("--merge", action="store_true", help="write the model with its LoRA merged as well")
    add("--preset", choices=list(PRESETS), help="what a card asks for, where nothing else is said")
    add_training_flags(jobs["train"], {k: TRAINING[k] for k in ("epochs", "patience", "batch", "lr")})
    add("--out", help="default: results/<model>/<data>/tuned")
    add = jobs["plan"].add_argument
    add("--models", nargs="*", help="(default: all of the registry that can be tuned)")
    add("--max-memory", metavar="SIZE", help="of this machine, as 15GB (default: what is free)")
    add("--batch", type=int, default=1, help="of clips or images")
    add("--adam8bit", action="store_true", help="bitsandbytes' 8-bit optimizer")
    add("--rank", type=int, default=16, help="of LoRA")
    add("--vision", choices=("frozen", "lora", "full"), default="frozen", help="tower and projector")
    add("--out", help="default: results/tune-plan.yaml")
    add = jobs["words"].add_argument
    add("--embeddings", default="results/tiny/trajectories/tracks.pt", help="a video model's embeddings")
    add("--data", default="data/trajectories", help="the clips they are of")
    add("--language", default="tiny-words", help="the language model, by name or a folder")
    add("--soft", type=int, default=8, help="soft tokens that an embedding becomes")
    add("--width", type=int, help="of the adapter's hidden layer (default: none, a linear map)")
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
        return run_words(word_world(args), started)
    return run_train(tune_world(args), started)


if __name__ == "__main__":
    main()
