"""Stage 7. Is what the model answers true, and does it answer what can be read from it?

    python explain.py ask --model tiny --data data/shapes --out results/tiny/shapes/answers.pt
    python explain.py ask --image a.jpg --question "What is in the picture?"              # one's own image, or several together
    python explain.py ask --clip a.mp4 --question "Which way does the red circle move?" --frames 16
    python explain.py binding --features results/tiny/shapes/features --answers results/tiny/shapes/answers.pt      # binding.yaml
    python explain.py frames --model tiny --data data/waiting --count 8                   # which choice of frames answers best
    python explain.py semantic --films results/tiny/moving/films --answers results/tiny/moving/films/answers.pt     # explain-semantic.yaml
    python explain.py describe --films results/tiny/future/films --frames 3,8,16          # explain-describe.yaml
    python explain.py trajectories --embeddings results/tiny/trajectories/tracks.pt --words results/tiny/trajectories/words

`ask --data`: the model's greedy answers about the test items: where the largest object is (or which way the clip's object moves),
openly and with the possible answers listed; its box; a caption. `binding`, for each kind: <kind>_own, what it answers, parsed;
<kind>_probe, what a ridge reads from its tokens; <kind>_gap, the paired difference; <kind>_withheld, yes, no or inconclusive: does the
probe beat both the model and its own best baseline?

`semantic`: of every conditioning of generated clips, the share of answers that name the direction asked for. `describe`, by number of
frames: action_recall_real and _generated, the share of clips whose action is named (asked openly, with the actions listed, or for a
sentence); retention, generated over real, paired. Baselines are clips without the action (copy, frozen), another item's
answers and the majority action.

`trajectories`: methods are asked the same questions about objects, and for descriptions, and every claim is checked: truth, metadata
(templates), text, soft (--words), vlm, tuned; commonest, blind (baselines). accuracy by kind, frame_f1, claim_precision, omission,
abstains; words_follow_picture: are answers worse with the embedding of another object? `changed`: do they follow changed clips?

Modules, to be copied with it: claims.py, cogvlm2.py, common.py, families.py, media.py, metrics.py, models.py,
stats.py, training.py.
"""

import functools
import hashlib
import io
import itertools
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from claims import (
    ASKED,
    CLAIMS,
    DENIED,
    TELL_OF,
    TIMES,
    UNANSWERABLE,
    WORDS,
    answer_right,
    asked_object,
    check_claim,
    frame_f1,
    heard,
    load_tracks,
    metadata_text,
    omitted,
    parse_box,
    parse_claims,
    parse_word,
    recalled,
    right,
    sentences_of,
    sort_of,
    told,
    track_id,
    trajectory_folder,
)
from common import (
    ANSWERS,
    OKABE_ITO,
    RESULT,
    check_writable,
    choose_device,
    digest,
    join,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    plain,
    refuse,
    run_info,
    same_items,
    save_bytes,
    save_pt,
    save_yaml,
    say,
    split_indices,
    split_of,
    subcommands,
    with_grid,
)
from families import ROWS, family_of, on, up_to_the_picture, whole_tokens, words_behind
from media import (
    CHOICES,
    choose_frames,
    fitted,
    frames_at,
    frames_of,
    opened,
    picked,
    presented,
    read_picture,
    ways_of,
)
from metrics import box_iou, box_truth
from models import (
    ALONE,
    FRAMES_AS,
    LOADERS,
    LONGEST,
    OPTIONS,
    RATE,
    answers_to,
    find_model,
    fingerprint,
    load_language,
    load_vlm,
    put_to,
    resolved_commit,
    spoken,
    spread,
)
from stats import (
    bootstrap,
    criterion,
    holm,
    mean_and_interval,
    paired_test,
    ratio,
    ridge,
    token_ridge,
    verdict,
)
from training import answered, load_words, word_prompt

# ---------------------------------------------------------------- what the model itself says

# model type -> (how its family was taught to be asked for a box, the scale of the coordinates that it answers
# with). Qwen2.5-VL: pixels of the resized
# picture (Bai et al. 2025); Qwen2-VL, Qwen3-VL and InternVL: thousandths of the side; LLaVA: fractions.
# CogVLM2 was not released in a variant that
# prints boxes: it is asked in the words of CogVLM 1.
JSON_BOX = "Locate the {}, output its bbox coordinates using JSON format."
SENTENCE_BOX = "Please provide the bounding box coordinate of the region this sentence describes: {}"
GROUNDING = {
    "qwen2_vl": ("Detect the bounding box of the {}.", "thousandths"),
    "qwen2_5_vl": (JSON_BOX, "pixels"),
    "qwen3_vl": (JSON_BOX, "thousandths"),
    "internvl": (SENTENCE_BOX.format("<ref>the {}</ref>"), "thousandths"),
    "cogvlm2": ("Where is the {}? Answer in [[x0,y0,x1,y1]] format.", "thousandths"),
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision"), (SENTENCE_BOX.format("the {}."), "fractions")
    ),
}
CAPTIONED = "What is in the picture?"
OPENLY = {"place": "Where is the {}?", "direction": "Which way does the {} move?"}
ANSWER_TOKENS = 64  # tokens of an answer


def questions_to(item, locate):
    """{kind: question} about the item's object: place or direction, openly and with the possible answers listed; for pictures also its box, in the words of `locate`, and, where the
    item has a caption, for one: a control, which has nothing to do with place."""
    kind, name = "direction" if "direction" in item else "place", asked_object(item)[1]
    openly = OPENLY[kind].format(name)
    questions = {
        kind: openly,
        f"{kind}_listed": f"{openly} Answer with one of: {', '.join(word for row in WORDS[kind] for word in row)}.",
    }
    if kind == "place":
        questions |= {"box": locate.format(name)} | ({"caption": CAPTIONED} if "text" in item else {})
    return questions


def asking(model, processor, batch, question):
    """Inputs for `generate`: a family's inputs with `question` in place of PROMPT."""
    given = up_to_the_picture(model, batch)
    words = torch.tensor(words_behind(model, processor, given, question)).expand(len(given["input_ids"]), -1)
    behind = {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "token_type_ids": torch.zeros_like(words),
        "mm_token_type_ids": torch.zeros_like(words),
    }
    return {
        k: torch.cat([v, behind[k]], 1) if k in ROWS else v
        for k, v in given.items()
        if k not in ("cache", "past_key_values", "use_cache", "behind")
    }


def alike(members, pictures, batch):
    """(numbers, uint8 [n,T,H,W,3]) of at most `batch` pictures that follow each other and are of one shape."""
    for _, some in itertools.groupby(((k, pictures[k]()) for k in members), lambda one: one[1].shape):
        while part := list(itertools.islice(some, batch)):
            numbers, frames = zip(*part, strict=True)
            yield numbers, torch.stack(frames)


def says(model, processor, inputs_of, pictures, questions, batch, device, dtype):
    """The greedy answer, str, to each question about its picture (a function that returns uint8 [T,S,S,3]). Equal questions are asked together, so that nothing is padded."""
    answers, together = [None] * len(questions), {}
    for k, question in enumerate(questions):
        together.setdefault(question, []).append(k)
    own = (
        {}
        if model.config.model_type == "cogvlm2"
        else {"do_sample": False, "pad_token_id": model.generation_config.pad_token_id or 0}
    )
    for question, members in tqdm(together.items(), unit="question"):
        for numbers, frames in alike(members, pictures, batch):
            given = on(asking(model, processor, inputs_of(frames), question), device, dtype)
            with torch.inference_mode():
                tokens = model.generate(**given, **own, max_new_tokens=ANSWER_TOKENS)
            tokens = (
                tokens if model.config.model_type == "cogvlm2" else tokens[:, given["input_ids"].shape[1] :]
            )
            for k, answer in zip(
                numbers,
                getattr(processor, "tokenizer", processor).batch_decode(tokens, skip_special_tokens=True),
                strict=True,
            ):
                answers[k] = answer.strip()
    return answers


def run_record(args, started, device, why, dtype, entry):
    """The YAML's `run` of a job that loads the model of a registry's entry, or none."""
    about = {"device": f"{device.type} ({why})", "dtype": str(dtype)}
    revision = resolved_commit(entry) if entry else None
    return run_info(args, started, script="explain.py", **about, model_revision=revision)


def load_to_ask(args, entry, size, device, dtype):
    """(model, processor, function from frames to its inputs)."""
    model, processor = LOADERS["vlm"](entry, device, dtype, args.seed if args.random_init else None)
    inputs_of, _, multiple, _ = family_of(model)(model, processor)
    if isinstance(size, int):  # not one to be fitted
        whole_tokens(size, multiple, args.model)
    return model, processor, inputs_of


def ask_about_data(args, started):
    """The answers to the questions about the test items, in answers.pt and answers.yaml."""
    entry = find_model(args.model) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING:
        refuse(f"{args.model} ({entry.get('type')}) is no causal language model that is asked; give tiny")
    items, data = load_items(args.data)
    if "boxes" not in items[0]:
        refuse(f"{args.data} has no boxes, so that no place can be asked for; give a folder with boxes")
    clip = "direction" in items[0]
    if clip and not entry["type"].startswith("qwen"):
        refuse(f"{args.model} takes a clip frame by frame and sees no motion; give a Qwen model")
    test = [i for i in items if split_of(i["source"]) == "test"]
    asked = [i for i in test if asked_object(i)]
    if not asked:
        refuse(f"{args.data} has no test item whose largest object has a name of its own; use more items")
    out = Path(
        args.out
        or f"results/{entry['name']}/{Path(args.data).name}/answers{'-random' if args.random_init else ''}.pt"
    )
    check_writable(out)
    size, (locate, scale) = (
        args.size or (entry["clip"] if clip else entry.get("own_shape") or entry["size"]),
        GROUNDING[entry["type"]],
    )
    rows = [(item, kind, question) for item in asked for kind, question in questions_to(item, locate).items()]
    questions = [q for *_, q in rows]
    kinds = [kind for _, kind, _ in rows]
    ids = [item["id"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = {
        "model": entry["name"],
        "weights": "random" if args.random_init else entry["weights"],
        "data": data["data"],
        "data_path": str(args.data),
        "size": size,
        "scale": scale,
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "seed": args.seed,
        "dtype": str(dtype),
    }
    before = load_pt(out, ANSWERS) if out.is_file() else None
    answers = (
        before["answers"]
        if before and before["meta"] == meta and before["questions"] == questions and before["ids"] == ids
        else {}
    )
    if "own" not in answers:
        print(f"device {device.type} ({why})")
        model, processor, inputs_of = load_to_ask(args, entry, size, device, dtype)
        pictures = [functools.partial(frames_of, item, size) for item, *_ in rows]
        answers["own"] = says(model, processor, inputs_of, pictures, questions, args.batch, device, dtype)
        save_pt(out, ANSWERS, ids, meta, kinds=kinds, questions=questions, answers=answers)
    result = {
        "stage": "ask",
        **{k: meta[k] for k in ("model", "weights", "data")},
        "items": len(asked),
        "left_out": len(test) - len(asked),
        "questions": len(rows),
        "answers": [
            {"id": i, "question": q, "own": answer}
            for i, q, answer in zip(ids, questions, answers["own"], strict=True)
        ],
        "run": run_record(args, started, device, why, dtype, entry),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    say(result)
    return result


def run_frames(args, started):
    """The share of test questions that are answered rightly from the frames that each way chooses, in frames.yaml; answers, seconds and numbers of frames in frames.pt."""
    entry = find_model(args.model) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING or not entry["type"].startswith("qwen"):
        refuse(f"{args.model} is of type {entry.get('type')}, which takes no clips; give a Qwen model")
    items, data = load_items(args.data)
    ways = ways_of(args, items)
    rows = [
        (item, question, answer)
        for item in items
        if split_of(item["source"]) == "test"
        for (question, answer), (kind, _) in zip(
            item.get("turns", ()), item.get("asked") or itertools.repeat(("direction", "")), strict=False
        )
        # what is asked about numbers of frames has another answer where others are shown
        if kind == "direction"
    ]
    if not rows:
        refuse(f"{args.data} has no test clip with a question; give one with `turns`, say data/moving")
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/frames.pt")
    check_writable(out)
    size = args.size or entry["clip"]
    ids = [item["id"] for item, *_ in rows]
    sources = [item["source"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = {
        "model": entry["name"],
        "weights": "random" if args.random_init else entry["weights"],
        "data": data["data"],
        "data_path": str(args.data),
        "size": size,
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "seed": args.seed,
        "dtype": str(dtype),
        "largest_gap": args.largest_gap,
        "items": same_items(items, data),
    }
    before = load_pt(out, ANSWERS) if out.is_file() else None
    answers, facts = (
        (before["answers"], before["facts"])
        if before and before["meta"] == meta and before["ids"] == ids
        else ({}, {})
    )
    print(f"device {device.type} ({why})")
    model, processor, inputs_of = load_to_ask(args, entry, size, device, dtype)

    # on a CPU other processes are not to count
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run(how, count):
        name = f"{how}{count}"
        if name not in answers:
            clips, began = {item["id"]: item for item, *_ in rows}, clock()
            shown = dict(zip(clips, picked(list(clips.values()), how, args, count), strict=True))
            chosen, began = clock() - began, clock()
            answers[name] = says(
                model,
                processor,
                inputs_of,
                [functools.partial(frames_of, shown[i], size) for i in ids],
                [question for _, question, _ in rows],
                args.batch,
                device,
                dtype,
            )
            facts[name] = {
                "seconds_choosing": chosen,
                "seconds_answering": clock() - began,
                "shown": [item["shown"] for item in shown.values()],
            }
            save_pt(
                out,
                ANSWERS,
                ids,
                meta,
                questions=[question for _, question, _ in rows],
                answers=answers,
                facts=facts,
            )
        return name

    # warm up before anything is timed
    says(
        model,
        processor,
        inputs_of,
        [lambda: frames_of(picked([rows[0][0]], ways[0], args)[0], size)],
        [rows[0][1]],
        1,
        device,
        dtype,
    )
    names = [run(how, args.count) for how in ways]
    even = run("uniform", args.count)
    first = f"{ways[0]}{args.count}"
    # as many frames take as long, whichever they are
    answering = min(facts[name]["seconds_answering"] for name in {*names, even})
    most = min(
        int(args.count * (1 + facts[first]["seconds_choosing"] / answering)),
        *(len(item["frames"]) for item, *_ in rows),
    )
    paid = [run("uniform", args.count * 2**k) for k in range(1, (most // args.count).bit_length())]
    names = list(dict.fromkeys([*names, even, *paid]))
    correct = {
        name: torch.tensor(
            [float(right(said, answer)) for said, (*_, answer) in zip(answers[name], rows, strict=True)]
        )
        for name in names
    }
    table = {}
    for name in names:
        mean, low, high = bootstrap(correct[name], sources, seed=args.seed)
        table[name] = {"right": mean, "low": low, "high": high} | {
            k: facts[name][k] for k in ("seconds_choosing", "seconds_answering")
        }
    gains = {
        name: paired_test(correct[first], correct[name], sources, seed=args.seed)
        for name in names
        if name != first
    }
    result = {
        "stage": "frames",
        **{k: meta[k] for k in ("model", "weights", "data", "data_path")},
        "clips": len(set(ids)),
        "questions": len(rows),
        "sources": len(set(sources)),
        "count": args.count,
        **{f"right_{name}": row["right"] for name, row in table.items()},
        **{f"gain_over_{name}": row["gain"] for name, row in gains.items()},
        **{f"gain_over_{name}_low": row["gain_low"] for name, row in gains.items()},
        **{f"gain_over_{name}_high": row["gain_high"] for name, row in gains.items()},
        "first": first,
        "equal_time": paid,
        "ways": table,
        "gains": gains,
        "run": run_record(args, started, device, why, dtype, entry),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    say(result)
    return result


# ---------------------------------------------------------------- binding: what a probe reads, and what the model says


def where(item, kind):
    """(column, row) of 0, 1, 2: the ninth in which the centre of the object asked about lies, or which way it moves."""
    if kind == "direction":
        return next(
            (c, r)
            for r, words in enumerate(WORDS[kind])
            for c, word in enumerate(words)
            if word == item["direction"]
        )
    x1, y1, x2, y2 = item["boxes"][asked_object(item)[0]].tolist()
    return tuple(
        min(int((a + b) / 2 / side * 3), 2)
        for a, b, side in ((x1, x2, item["width"]), (y1, y2, item["height"]))
    )


def word_of(item, kind):
    column, row = where(item, kind)
    return WORDS[kind][row][column]


def covered(item, k, grid):
    """The share of every token's cell that object k covers, [t*h*w]: by its mask, or its box where there is none."""
    if "mask" in item:
        mask = (item["mask"] == k + 1).float()
    else:
        mask = torch.zeros(item["height"], item["width"])
        x1, y1, x2, y2 = item["boxes"][k].round().int().tolist()
        mask[y1:y2, x1:x2] = 1
    return F.adaptive_avg_pool3d(mask.view(1, -1, *mask.shape[-2:]), grid).flatten()


def tokens_of(items, grid):
    """What tokens of a grid (t, h, w) lie on: `on` [n, K] bool, the object asked about; `holds` [n, K, C], the share of each name; `asked` [n], its name's number."""
    every = [item.get("names", item["labels"]) for item in items]
    names = {name: c for c, name in enumerate(sorted({name for labels in every for name in labels}))}
    holds = torch.zeros(len(items), grid[0] * grid[1] * grid[2], len(names))
    on = []
    objects = [asked_object(item) for item in items]
    for i, (item, labels) in enumerate(zip(items, every, strict=True)):
        shares = [covered(item, k, grid) for k in range(len(labels))]
        for share, label in zip(shares, labels, strict=True):
            holds[i, :, names[label]] += share
        own = shares[objects[i][0]]
        on.append((own > 0) & (own >= own.max() / 2))  # half of the best: a small object, too, has a token
    return torch.stack(on), holds, torch.tensor([names[name] for _, name in objects])


def read_words(x, on, holds, asked, truth, split):
    """{found, told: (column, row) [n, 2]} read from tokens x [n, K, D]; truth [n, 2]. `told` is given the tokens on the object, `found` looks for them by its name."""
    n, k, _ = x.shape
    rows = {
        part: (on & torch.isin(torch.arange(n), split[part])[:, None]).flatten().nonzero()[:, 0]
        for part in ("train", "val")
    }
    thirds = F.one_hot(truth, 3).flatten(1).float().repeat_interleave(k, 0)[:, None]  # [nK, 1, 6]
    says = token_ridge(x.reshape(n * k, 1, -1), {"word": thirds}, rows["train"], rows["val"])["word"].view(
        n, k, 6
    )
    score = token_ridge(x, {"name": holds}, split["train"], split["val"])["name"][
        torch.arange(n), :, asked
    ].clamp(min=1e-9)
    weights = {"found": score * (score >= score.amax(1, keepdim=True) / 2), "told": on.float()}
    return {name: (w[..., None] * says).sum(1).view(n, 2, 3).argmax(-1) for name, w in weights.items()}


def best_point(found, val):
    """The point with the highest mean score on val; found {point: [n]}."""
    return max((p for p in found if p != "pixels"), key=lambda p: found[p][val].mean())


def readable(points, items, split, read, kind, index):
    """{point: {found, told: whether the word is right, [n] 0/1}}; index: where the items stand in the features."""
    truth, out, seen = torch.tensor([where(i, kind) for i in items]), {}, {}
    for point in tqdm(points, desc="words", unit="point"):
        x = read(point)[index]
        grid = tuple(x.shape[1:4])
        seen[grid] = seen.get(grid) or tokens_of(items, grid)
        out[point] = {
            name: (found == truth).all(1).float()
            for name, found in read_words(x.flatten(1, 3), *seen[grid], truth, split).items()
        }
    return out


def asked_items(items, split):
    """The items that something can be asked about, and where they stand: (items, index [m], split)."""
    index = torch.tensor([k for k, i in enumerate(items) if asked_object(i)], dtype=torch.long)
    number = {int(k): m for m, k in enumerate(index)}
    return (
        [items[k] for k in index],
        index,
        {
            part: torch.tensor([number[int(k)] for k in v if int(k) in number], dtype=torch.long)
            for part, v in split.items()
        },
    )


def commonest(truth, train, test):
    """Right or wrong [n_test] when the answer is always the commonest of the train items. truth [n, 2]."""
    words = truth[:, 0] * 3 + truth[:, 1]
    return (words[test] == words[train].bincount().argmax()).float()


def others(score):
    """What the answers score [q] when each is given to another item: the mean of a score matrix [answers, items] off its diagonal."""
    return (score.sum(0) - score.diagonal()) / max(len(score) - 1, 1)


def understood(texts, kind, meta, items):
    """Parsed answers about items: boxes [4], words, captions; None where there is nothing to parse."""
    if kind == "box":
        size = meta["size"]
        frames = [
            size
            if isinstance(size, int)
            else fitted(
                *(reversed(i["frames"].shape[1:3]) if "frames" in i else (i["width"], i["height"])), *size
            )
            for i in items
        ]
        return [
            b and torch.tensor(b)
            for b in (parse_box(t, meta["scale"], frame) for t, frame in zip(texts, frames, strict=True))
        ]
    return [t.lower() or None if kind == "caption" else parse_word(t, kind.partition("_")[0]) for t in texts]


def correctness(answers, truth):
    """[answers, items]: 1 where a word is the true one, IoU of a box with the true one; 0 for None."""
    if torch.is_tensor(truth):
        return torch.stack([torch.zeros(len(truth)) if a is None else box_iou(a, truth) for a in answers])
    return torch.tensor([[float(a == t) for t in truth] for a in answers])


def beside(own, probe, floors, sources, seed):
    """What the model says [n] beside what is read [n], each with floors of its own; withheld: does the probe beat both the model and its own best floor?"""
    row = {}
    found = {
        "own": criterion(own, floors[0], sources, seed=seed),
        "probe": criterion(probe, floors[1], sources, seed=seed),
    }
    for name, c in found.items():
        row |= {name: c["score"]} | {
            f"{name}_{k}": c[k]
            for k in ("low", "high", "floor", "floor_name", "gain_low", "gain_high", "floors")
        }
    gap = paired_test(probe, own, sources, seed=seed)
    return row | {
        "gap": gap["gain"],
        "gap_low": gap["gain_low"],
        "gap_high": gap["gain_high"],
        "gap_p": gap["p"],
        "withheld": verdict(gap, found["probe"]),
    }


def binding(args, items, split, read, points, model):
    """binding.yaml's content: for every kind of question what the model says beside what is read."""
    said = load_pt(args.answers, ANSWERS)
    items, index, split = asked_items(items, split)
    number = {items[k]["id"]: m for m, k in enumerate(split["test"].tolist())}
    if said["meta"]["model"] != model or set(said["ids"]) != set(number):
        refuse(f"{args.answers} holds answers of {said['meta']['model']}; run explain.py ask of {model} here")
    kind, test, largest = "direction" if "direction" in items[0] else "place", split["test"], None
    words = readable(points, items, split, read, kind, index)
    truth = torch.tensor([where(i, kind) for i in items])
    layer = {
        name: best_point({p: f[name] for p, f in words.items()}, split["val"]) for name in ("found", "told")
    }
    table = {}
    for asked in dict.fromkeys(said["kinds"]):
        rows = [k for k, other in enumerate(said["kinds"]) if other == asked]
        picked = test[torch.tensor([number[said["ids"][k]] for k in rows])]
        here = [items[k] for k in picked]
        sources = [i["source"] for i in here]
        answers = understood([said["answers"]["own"][k] for k in rows], asked, said["meta"], here)
        if asked == "box":
            largest = box_truth(items)[0]
        target = (
            largest[picked]
            if asked == "box"
            else [i["text"].lower() if asked == "caption" else word_of(i, kind) for i in here]
        )
        scores = correctness(answers, target)
        own, shuffled = scores.diagonal(), others(scores)
        row = table[asked] = {"n": len(rows), "unparsed": sum(a is None for a in answers) / len(rows)}
        if asked == "caption":
            row |= {"own": own.mean(), "own_floor": shuffled.mean()}
        else:
            if asked == "box":
                found = {
                    p: box_iou(
                        ridge(read(p)[index].flatten(1), {"box": largest}, split["train"])["box"].clamp(0, 1),
                        largest,
                    )
                    for p in points
                }
                at = best_point(found, split["val"])
                blind = {"constant": box_iou(largest[split["train"]].median(0).values, target)}
                more = {}
            else:
                found = {p: f["found"] for p, f in words.items()}
                at = layer["found"]
                blind = {"commonest": commonest(truth, split["train"], picked)}
                more = {"told": words[layer["told"]]["told"][picked].mean(), "told_layer": layer["told"]}
            pixels = {"pixels": found["pixels"][picked]} if "pixels" in found else {}
            row |= beside(
                own, found[at][picked], (blind | {"shuffled": shuffled}, blind | pixels), sources, args.seed
            ) | {"probe_layer": at, **more}
    for asked, p in holm({asked: row["gap_p"] for asked, row in table.items() if "gap_p" in row}).items():
        table[asked]["gap_p_holm"] = p
    shown = ("own", "own_floor", "unparsed", "probe", "probe_floor", "gap", "gap_low", "gap_high", "withheld")
    headline = {f"{asked}_{k}": row[k] for asked, row in table.items() for k in shown if k in row}
    return headline | {"options_searched": len(set(points) - {"pixels"}), "kinds": table}


# ---------------------------------------------------------------- films: what a model says that watches what was generated


def run_semantic(args, started):
    """explain-semantic.yaml: of every conditioning the share of answers that name the direction asked for; floors are those to frozen films, to other clips, and the commonest word."""
    items, index = load_items(args.films)
    said, film = load_pt(args.answers, ANSWERS), {i["id"]: i for i in items}
    if "conditioning" not in index or "direction" not in items[0]:
        refuse(f"{args.films} holds no clips with a direction; give films/ that video.py coherence wrote")
    if not set(said["ids"]) <= set(film) or "direction" not in said["kinds"]:
        refuse(f"{args.answers} holds no answers about {args.films}; run explain.py ask --data {args.films}")
    scores, silent, clips = {}, {}, {}
    for kind in dict.fromkeys(said["kinds"]):
        for name in dict.fromkeys(i["conditioning"] for i in items):
            rows = [
                k
                for k, i in enumerate(said["ids"])
                if said["kinds"][k] == kind and film[i]["conditioning"] == name
            ]
            clips[name] = [film[said["ids"][k]] for k in rows]
            answers = understood([said["answers"]["own"][k] for k in rows], kind, said["meta"], clips[name])
            scores[kind, name], silent[kind, name] = (
                correctness(answers, [i["direction"] for i in clips[name]]),
                sum(a is None for a in answers) / max(len(rows), 1),
            )
    main, kinds = index["conditioning"], list(dict.fromkeys(said["kinds"]))
    if incomplete := [
        name
        for name in ("real", "frozen", main)
        if [i["id"].rpartition("/")[0] for i in clips.get(name, [])]
        != [i["id"].rpartition("/")[0] for i in clips[main]]
    ]:
        refuse(f"{args.answers} lacks answers about {incomplete[0]}; run explain.py ask --data {args.films}")
    truth, sources = [i["direction"] for i in clips[main]], [i["source"] for i in clips[main]]
    kind = max(kinds, key=lambda k: scores[k, "real"].diagonal().mean())
    usual = index.get("commonest") or max(sorted(set(truth)), key=truth.count)
    floors = {
        "commonest": torch.tensor([float(t == usual) for t in truth]),
        "frozen": scores[kind, "frozen"].diagonal(),
        "other_item": others(scores[kind, main]),
    }
    c = criterion(
        scores[kind, main].diagonal(),
        floors,
        sources,
        ceiling=scores[kind, "real"].diagonal().mean().item(),
        seed=args.seed,
        conditioning=main,
        kind=kind,
        unparsed=silent[kind, main],
        options_searched=len(kinds),
    )
    table = {name: {"n": len(here)} for name, here in clips.items()}
    for (asked, name), score in scores.items():
        values = bootstrap(score.diagonal(), [i["source"] for i in clips[name]], seed=args.seed)
        table[name] |= dict(zip((asked, f"{asked}_low", f"{asked}_high"), values, strict=True)) | {
            f"{asked}_unparsed": silent[asked, name]
        }
    result = {
        "stage": "films",
        **{k: said["meta"][k] for k in ("model", "weights")},
        "data": index["data"],
        "data_name": index["name"],
        **{k: index[k] for k in ("video", "video_weights")},
        "conditioning": main,
        "kind": kind,
        "semantic_accuracy": c["score"],
        **{
            f"semantic_accuracy_{k}": c[k] for k in ("low", "high", "floor", "floor_name", "ceiling", "skill")
        },
        "unparsed": silent[kind, main],
        "criteria": {"semantic_accuracy": c},
        "conditionings": table,
        "run": run_info(args, started, script="explain.py"),
    }
    save_yaml(args.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- describe: films are asked about

DESCRIBE = "Describe what happens in this video in one sentence."
CHOOSE = "Which of these happens in this video?"
# of equal recall the earlier of NAMING is taken
NAMING = "asked", "options", "described"
STILL = "copy", "frozen"  # conditionings whose films show no action: one frame throughout


def action_of(item):
    return item.get("action") or item.get("direction")


def questions_about(films, options):
    """{kind: a question for each film}; options: the actions to choose from."""
    questions = {"described": [DESCRIBE] * len(films)}
    openly = [CHOOSE] * len(films)
    if all(i.get("turns") for i in films):
        questions["asked"] = openly = [i["turns"][0][0] for i in films]
    if 1 < len(options) <= OPTIONS:
        questions["options"] = [f"{q} Answer with one of: {', '.join(options)}." for q in openly]
    return questions


def clip_of(item):
    return item["id"].rpartition("/")[0] if "conditioning" in item else item["id"]


def ask_films(films, questions, counts, entry, where, out, meta, batch):
    """{(kind, k): an answer for each film}; what `out` holds of the same films, questions and model is not asked again. where: (device, dtype).

    The first of NAMING that there is is asked with every number of frames, the other kinds with the largest.
    """
    ids, before = [i["id"] for i in films], load_pt(out, ANSWERS) if out.is_file() else None
    answers = (
        before["answers"]
        if before
        and (before["ids"], before["meta"], before.get("questions")) == (ids, plain(meta), questions)
        else {}
    )
    first = next(kind for kind in NAMING if kind in questions)
    wanted = [(kind, k) for k in counts for kind in questions if kind == first or k == max(counts)]
    todo = [(kind, k) for kind, k in wanted if f"{kind}-{k}" not in answers]
    model, processor = load_vlm(entry, *where) if todo else (None, None)
    with tqdm(total=len(todo) * len(films), desc="asked", unit="film") as bar:
        for kind, k in todo:
            together, texts = {}, [None] * len(films)
            for n, (item, question) in enumerate(zip(films, questions[kind], strict=True)):
                together.setdefault((question, len(item["frames"])), []).append(n)
            for (question, length), members in together.items():
                at = spread(length, k)
                for some in (members[n : n + batch] for n in range(0, len(members), batch)):
                    shown = torch.stack(
                        [frames_of({"frames": films[n]["frames"][at]}, meta["size"]) for n in some]
                    )
                    for n, text in zip(
                        some, answers_to(model, processor, shown, question, (at, length)), strict=True
                    ):
                        texts[n] = text
                    bar.update(len(some))
            answers = answers | {f"{kind}-{k}": texts}
            save_pt(out, ANSWERS, ids, meta, questions=questions, answers=answers)
    return {(kind, k): answers[f"{kind}-{k}"] for kind, k in wanted}


# ---------------------------------------------------------------- describe: what is said is scored


def option(text, options):
    """The one option that an answer names, longest first: "up left" is not "up" as well. None: it names none or several, or denies it."""
    text, named = text.lower(), []
    for o in sorted(options, key=len, reverse=True):
        rest = re.sub(rf"(?<!\w){re.escape(o.lower().rstrip('.'))}(?!\w)", " ", text)
        named += [o] if rest != text else []
        text = rest
    return named[0] if len(named) == 1 and not DENIED.search(text.replace("n't", " not")) else None


def names_actions(texts, kind, actions):
    """Which of the actions each answer names, bool [answers, actions]."""
    if kind == "options":
        said = [option(t, actions) for t in texts]
        return torch.tensor([[s == a for a in actions] for s in said])
    if "still" in actions:  # the nine words for a direction
        said = [parse_word(t, "direction") for t in texts]
        return torch.tensor([[s == a for a in actions] for s in said])
    return torch.tensor([[recalled(s, a) for a in actions] for s in map(told, texts)])


def survived(answers, names, main, truth, vocabulary, usual, sources, seed):
    """What of explain-describe.yaml follows from the answers: {(kind, k): texts}, the films of the first of `names` first, in each the clips of `truth` [n], their actions."""
    n, score, table = len(truth), {}, {name: {"n": len(truth)} for name in names}
    column = torch.tensor([vocabulary.index(a) for a in truth])
    for (kind, k), texts in answers.items():
        for place, name in enumerate(names):
            own = texts[place * n : (place + 1) * n]
            said = names_actions(own, kind, vocabulary)
            score[name, kind, k] = said[:, column].double()  # [answers, clips]
            recall, low, high = bootstrap(score[name, kind, k].diagonal(), sources, seed=seed)
            row = {"recall": recall, "low": low, "high": high, "unparsed": (~said.any(1)).double().mean()}
            table[name][f"{kind}-{k}"] = row
    searched = [(kind, k) for name, kind, k in score if name == "real"]
    # by the clips themselves alone
    kind, k = max(searched, key=lambda s: (score["real", *s].diagonal().mean(), s[1], -NAMING.index(s[0])))
    right = {name: score[name, kind, k].diagonal() for name in names}
    real, generated = right["real"], main != "real"
    floors = {
        "other_item": others(score[main, kind, k]),
        "commonest": torch.tensor([float(t == usual) for t in truth]).double(),
    } | {x: right[x] for x in STILL if x in right and x != main}
    more = {
        "seed": seed,
        "conditioning": main,
        "kind": kind,
        "frames": k,
        "options_searched": len(searched),
        "unparsed": table[main][f"{kind}-{k}"]["unparsed"],
    }
    criteria = {
        "action_recall": criterion(
            right[main], floors, sources, ceiling=real.mean().item() if generated else 1.0, **more
        )
    }
    if generated and real.any():
        kept = {name: ratio(x, real) for name, x in right.items() if name != "real"}
        criteria["retention"] = criterion(
            kept[main],
            {name: ratio(x, real) for name, x in floors.items()},
            sources,
            ceiling=kept["vae"].mean().item() if "vae" in kept else 1.0,
            **more,
        )
        for name, x in kept.items():
            kept_of = bootstrap(x, sources, seed=seed)
            table[name] |= dict(zip(("retention", "retention_low", "retention_high"), kept_of, strict=True))
    headline = {"kind": kind, "frames": k}
    asked = {
        "real": table["real"][f"{kind}-{k}"],
        "generated": table[main][f"{kind}-{k}"] if generated else {},
    }
    for word, row in asked.items():
        for end, value in (("", "recall"), ("_low", "low"), ("_high", "high")):
            headline[f"action_recall_{word}{end}"] = row.get(value)
    headline |= {f"retention{end}": table[main].get(f"retention{end}") for end in ("", "_low", "_high")}
    reason = None
    if not generated:
        reason = "there are no generated films"
    elif "retention" not in criteria:
        reason = "no action of a real clip is recalled, so there is none to retain"
    headline["retention_reason"] = reason
    for name in names:
        if name not in ("real", main):
            headline[f"retention_{name}"] = table[name].get("retention")
    for name, value in criteria["action_recall"]["floors"].items():
        headline[f"action_recall_{name}"] = value
    return headline | {
        "unparsed": more["unparsed"],
        "options_searched": len(searched),
        "criteria": criteria,
        "conditionings": table,
    }


def films_to_describe(items, index, folder, clips):
    """{conditioning: films of the test clips, one of each clip, in the same order}; a plain folder of clips holds real ones."""
    films = {}
    for i in items:
        if split_of(i["source"]) == "test":
            if len(i.get("frames", ())) < 2 or not isinstance(action_of(i), str):
                what = "has neither action nor direction" if len(i.get("frames", ())) > 1 else "is no clip"
                refuse(f"{i['id']} of {folder} {what}; give films that video.py wrote, or clips of actions")
            films.setdefault(i.get("conditioning", "real"), []).append(i)
    if not films:
        refuse(f"{folder} has no item in its test split; give a folder with more clips")
    ids = [clip_of(i) for i in films.get("real", ())]
    if lacking := [
        name
        for name in ("real", index.get("conditioning", "real"), *films)
        if not ids or [clip_of(i) for i in films.get(name, ())] != ids
    ]:
        refuse(f"{folder} lacks films of {lacking[0]}, or of some clips; run video.py again")
    return {name: these[:clips] for name, these in films.items()}


def run_describe(args, started):
    """explain-describe.yaml: what a model says happens in films, beside what does."""
    entry = find_model(args.model)
    if entry.get("type") not in FRAMES_AS:
        refuse(f"--model {args.model} takes no chat about several frames; give a Qwen model or internvl3-8b")
    if small := [
        k for k in ("clips", "size", "batch") if getattr(args, k) is not None and getattr(args, k) < 1
    ]:
        refuse(f"--{small[0]} {getattr(args, small[0])} is not positive; give 1 or more")
    counts = (args.frames or "3,8,16").split(",")
    if not all(k.isdecimal() and int(k) > 1 for k in counts):
        refuse(f"--frames {args.frames} are not numbers of 2 or more with commas between; give, say, 3,8,16")
    items, index = load_items(args.films)
    films, main = films_to_describe(items, index, args.films, args.clips), index.get("conditioning", "real")
    real, every = films["real"], [i for these in films.values() for i in these]
    longest = max(len(i["frames"]) for i in every)
    used = {int(k): min(int(k), longest) for k in counts}
    directions = [w for row in WORDS["direction"] for w in row]
    options = sorted({*filter(None, map(action_of, items)), *(str(a) for a in index.get("actions") or ())})
    questions = questions_about(every, options)
    out = Path(args.out or Path(args.films).parent / "explain-describe.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    digest = hashlib.sha256()
    for i in every:
        digest.update(i["frames"].numpy().tobytes())
    size = args.size or entry["clip"]
    meta = {
        "mode": "describe",
        "model": entry["name"],
        "weights": entry["weights"],
        "checkpoint": fingerprint(entry),
        "data": index["data"],
        "size": size,
        "rate": RATE,
        "dtype": str(dtype),
        "films": digest.hexdigest()[:16],
    }
    answers = ask_films(
        every,
        questions,
        sorted(set(used.values())),
        entry,
        (device, dtype),
        out.with_name(f"{out.stem}-answers.pt"),
        meta,
        args.batch,
    )

    truth = [action_of(i) for i in real]
    taught = [action_of(i) for i in items if split_of(i["source"]) == "train" and action_of(i)] or truth
    usual = index.get("commonest") or max(sorted(set(taught)), key=taught.count)
    vocabulary = directions if set(options) <= set(directions) else options
    found = survived(
        answers, list(films), main, truth, vocabulary, usual, [i["source"] for i in real], args.seed
    )
    asked = found["kind"], found["frames"]
    save_pt(
        out.with_name(f"{out.stem}-said.pt"),
        RESULT,
        [i["id"] for i in every],
        meta | {"kind": asked[0], "frames": asked[1]},
        actions=vocabulary,
        said=names_actions(answers[asked], asked[0], vocabulary),
    )
    result = {
        "stage": "describe",
        "model": entry["name"],
        "weights": entry["weights"],
        "data": index["data"],
        "data_name": index["name"],
        "video": index.get("video"),
        "video_weights": index.get("video_weights"),
        "conditioning": main,
        **{k: x for k, x in found.items() if not isinstance(x, dict)},
        "clips": len(real),
        "sources": len({i["source"] for i in real}),
        "frames_as": FRAMES_AS[entry["type"]],
        "size": size,
        "frames_used": used,
        **{k: x for k, x in found.items() if isinstance(x, dict)},
        "run": run_record(args, started, device, why, dtype, entry),
    }
    save_yaml(out, result)
    say(result)
    return result


# ---------------------------------------------------------------- one's own image or video

MOST = 256  # tokens of an answer


def watched(path, k, size, how="uniform", seed=0):
    """(k frames of a video, chosen by `how` (choose_frames), uint8 [k, size, size, 3]; their numbers, of how many, frames a second).

    What is shown more densely than RATE is said to be slower: nearer steps would share one position in time.
    """
    length = len(presented(path))
    if not length:
        refuse(f"{path} holds no frame; give another video")
    with opened(path) as file:
        rate = float(file.streams.video[0].average_rate or RATE)
    numbers = choose_frames(path, min(k, length), how, seed)
    return frames_at(path, numbers, size)[0], (numbers, length, min(rate, RATE * length / len(numbers)))


def ask_about_media(args, started):
    """What a model says of pictures or of a video, printed as it comes."""
    entry, frames = find_model(args.model), args.frames or "16"
    if entry.get("type") not in FRAMES_AS:
        if entry.get("type") not in ALONE:
            refuse(f"--model {args.model} ({entry.get('type')}) cannot be asked; give tiny or a Qwen model")
        if args.clip or len(args.image or ()) > 1:
            refuse(f"--model {args.model} takes one picture at a time; give one --image, or a Qwen model")
    if bool(args.image) == bool(args.clip) or not (args.question or "").strip():
        refuse("ask needs a --question, and either --image or --clip")
    if args.clip and not (frames.isdecimal() and int(frames) > 1):
        refuse(f"--frames {frames} is not a number of 2 or more; give, say, 16")
    if args.choose and not args.clip:
        refuse(f"--choose {args.choose} is about the frames of a video; give --clip, or leave it out")
    if args.size is not None and args.size < 1:
        refuse(f"--size {args.size} is not positive; give 1 or more")
    if args.out:
        check_writable(args.out)
    size = args.size or (entry["clip"] if args.clip else entry.get("own_shape", entry["size"]))
    x, at = (
        watched(args.clip, int(frames), size, args.choose or "uniform", args.seed)
        if args.clip
        else ([frames_of({"frames": read_picture(p)}, size)[0] for p in args.image], None)
    )

    from transformers import TextStreamer

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    model, processor = load_vlm(entry, device, dtype)
    given = put_to(model, processor, [x], args.question, at)
    own = entry["type"] == "cogvlm2"
    tokenizer = getattr(processor, "tokenizer", processor)
    began = time.time()
    more = {} if own else {"do_sample": False, "pad_token_id": model.generation_config.pad_token_id or 0}
    with torch.inference_mode():
        tokens = model.generate(
            **given,
            **more,
            max_new_tokens=MOST,
            streamer=TextStreamer(tokenizer, skip_prompt=not own, skip_special_tokens=True),
        )[0]
    # all there is of a decoder of its own
    words = tokens if own or entry["type"] == "florence2" else tokens[given["input_ids"].shape[1] :]
    result = {
        "stage": "explain",
        "mode": "ask",
        "question": args.question,
        "answer": tokenizer.decode(words, skip_special_tokens=True).strip(),
        "seconds": time.time() - began,
        "tokens": len(words),
        "model": entry["name"],
        "weights": entry["weights"],
        "frames": len(x),
        "size": size,
        **({"clip": args.clip, "frames_used": at[0]} if args.clip else {"images": args.image}),
        "run": run_record(args, started, device, why, dtype, entry),
    }
    if args.out:
        save_yaml(args.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- trajectories: templates

UNSEEN = "the clip does not show that"
# As what a question asks, the first that fits; none does where a clip does not show the answer.
SORTS = {
    "backwards": r"\b(?:backwards|reversed)\b",
    "uncovered": r"\bnothing (?:stood|hid)\b",
    "persistence": r"\bpersistent\b",
    "hidden": r"\bhidden\b",
    "direction": r"\b(?:which way|direction|heading)\b",
    "count": r"\b(?:how many|count)\b",
    "frames": r"\b(?:frames|when)\b",
    "describe": r"^describe\b",
}
HEADINGS = [word for row in WORDS["direction"] for word in row]
OPPOSITE = dict(zip(HEADINGS, HEADINGS[::-1], strict=True))


def said_frames(spans):
    """[[0, 9], [14, 31]] -> "frames 0 to 9 and 14 to 31"; [[7, 7]] -> "frame 7"."""
    return f"frame{'s' * (spans != [[spans[0][0]] * 2])} " + " and ".join(
        f"{a} to {b}" if b > a else f"{a}" for a, b in spans
    )


def describe_track(fact):
    """The sentences about one object, in the words of data.py; what is not known (None) is left out, and an object that is never seen is not there."""
    if not fact["visible"]:
        return f"There is no {fact['object']}."
    first, last = (fact["present"] or fact["visible"])[0][0], (fact["present"] or fact["visible"])[-1][1]
    way = {
        None: f"is seen in {said_frames(fact['visible'])}",
        "stays": f"is there in frames {first} to {last}",
        "enters": f"enters in frame {first}",
        "leaves": f"leaves in frame {last}",
        "passes": f"enters in frame {first} and leaves in frame {last}",
        "appears": f"appears in frame {first}",
        "vanishes": f"vanishes in frame {last}",
    }[fact["why"]]
    text = f"The {fact['object']} is {'persistent' if fact['persistent'] else 'transient'}: it {way}."
    if fact["direction"]:
        text += " It is still." if fact["direction"] == "still" else f" It moves {fact['direction']}."
    if fact["hidden"] is not None:
        text += f" It is {'hidden in ' + said_frames(fact['hidden']) if fact['hidden'] else 'never hidden'}."
    return text


def sentence_of_count(n):
    return "There is 1 coloured object." if str(n) == "1" else f"There are {n} coloured objects."


def answer_with(fact, question, count):
    """The answer to a question that follows from the facts about its object, in the words of data.py; UNSEEN where they lack it."""
    sort = next((sort for sort, pattern in SORTS.items() if re.search(pattern, question.lower())), None)
    if sort == "count":
        return str(count)
    if sort == "describe":
        return describe_track(fact)
    if not fact["visible"]:
        return f"there is no {fact['object']}"
    known = (
        fact[
            {
                "persistence": "persistent",
                "frames": "visible",
                "backwards": "direction",
                "uncovered": "present",
            }.get(sort, sort)
        ]
        if sort
        else None
    )
    if known is None:
        return UNSEEN
    if sort == "persistence":
        return "persistent" if known else "transient"
    if sort in ("direction", "backwards"):
        return known if sort == "direction" else OPPOSITE[known]
    return said_frames(known) if known else "it is never hidden"


def true_fact(item, name):
    return next((t for t in item["tracks"] if t["object"] == name), {"object": name, "visible": []})


def noted_fact(name, persistence, scores, threshold):
    """What follows from what a video model says of an object: seen where its scores [T] are over the threshold; who is persistent is there all the time, and hidden where not seen.

    The way it moves, and where a transient one that is not seen is hidden, does not follow."""
    seen, end = (scores > threshold).tolist(), len(scores) - 1
    persistent = bool(persistence > 0.5)
    return {
        "object": name,
        "persistence": float(persistence),
        "persistent": persistent,
        "why": "stays" if persistent else None,
        "visible": runs(seen),
        "direction": None,
        "present": [[0, end]] if persistent else None,
        "hidden": runs([not s for s in seen]) if persistent else None,
    }


def runs(there):
    """[first, last] of each run of true values."""
    edges = [t for t in range(len(there) + 1) if (t < len(there) and there[t]) != (t > 0 and there[t - 1])]
    return [[a, b - 1] for a, b in zip(edges[::2], edges[1::2], strict=True)]


# ---------------------------------------------------------------- trajectories: writers are asked

# Who writes: templates from the truth (no writer can be better) and from what a video model notes, a language
# model given these notes as text, one given the embedding as soft tokens, one that sees
# frames, and what costs nothing: the commonest answer of the train clips, and the language model that is
# given nothing.
WRITERS = "truth", "metadata", "text", "soft", "tuned", "vlm", "commonest", "blind"
# kinds whose answer lies in the picture of the object asked about
FOLLOW = "persistence", "frames", "direction", "hidden", "whatif"
# what stands where soft tokens stood: nothing, another clip's, another object's, noise, what is noted of the
# object as words
ABLATIONS = "on", "off", "shuffled", "swapped", "gaussian", "label"
HINT = (
    "The clip has {} frames, numbered from 0. Answer in a few words: persistent or transient; frames 4 to 21; a direction such as up left, or still; it is never hidden; a number; "
    # for models that were not trained to answer in these words
    "there is no such object; or: the clip does not show that."
)


class Ask(NamedTuple):
    item: int  # number of the clip
    kind: str
    name: str  # of the object; "" where it is about all
    question: str
    answer: str = ""
    # permuted: the same with the two words exchanged; listed, relisted: with the directions in one order and
    # another; described
    role: str = "asked"


def drawn(every, n, g):
    """n of each kind."""
    return [
        here[j]
        for kind in ASKED
        for here in [[a for a in every if a.kind == kind]]
        for j in torch.randperm(len(here), generator=g)[:n]
    ]


def asks_about(items):
    return [
        Ask(k, kind, name, *turn)
        for k, item in enumerate(items)
        for (kind, name), turn in zip(item["asked"], item["turns"], strict=True)
    ]


def questions_drawn(items, n, seed):
    """(questions: n of each kind, and those of persistence and of direction with their options in another order; questions whose answers make the description of n clips)."""
    g = torch.Generator().manual_seed(seed)
    asks = drawn(asks_about(items), n, g)
    for a in list(asks):
        if a.kind == "persistence":
            asks.append(
                a._replace(
                    role="permuted",
                    question=re.sub(
                        r"\b(persistent|transient) or (persistent|transient)\b", r"\2 or \1", a.question
                    ),
                )
            )
        if a.kind == "direction":
            for role in ("listed", "relisted"):
                listed = ", ".join(HEADINGS[j] for j in torch.randperm(len(HEADINGS), generator=g))
                asks.append(a._replace(role=role, question=f"{a.question} Answer with one of: {listed}."))
    clips = torch.randperm(len(items), generator=g)[:n].tolist()
    return asks, [
        Ask(k, *rest, "described")
        for k in clips
        for rest in [
            *(("describe", name, TELL_OF.format(name), "") for name in items[k]["names"]),
            ("count", "", "How many coloured objects are there?", str(items[k]["count"])),
        ]
    ]


def commonest_answers(asks, train):
    """To each question the commonest answer to its kind in `train`, about whatever object; a description is made of the commonest sentences about one."""
    known = [(a.kind, a.answer.replace(a.name, "{}") if a.name else a.answer) for a in asks_about(train)]
    known += [("describe", describe_track(t).replace(t["object"], "{}")) for i in train for t in i["tracks"]]
    usual = {
        kind: max(sorted(set(here)), key=here.count)
        for kind in dict.fromkeys(k for k, _ in known)
        for here in [[a for k, a in known if k == kind]]
    }
    return [usual[a.kind].replace("{}", a.name) for a in asks]


class Notes:
    """What a video model wrote of the objects of clips (tracks.pt), by clip and name."""

    def __init__(self, path, every, items, threshold=None):
        self.tracks = load_tracks(path, every)
        self.items = items
        self.digest = digest(Path(path).read_bytes())
        self.rows = {name: k for k, name in enumerate(self.tracks["ids"])}
        self.threshold = self.tracks["meta"].get("threshold", 0.5) if threshold is None else threshold
        if lacking := [
            i
            for item in items
            for name in (*item["names"], item["absent"])
            if (i := track_id(item, name)) not in self.rows
        ]:
            refuse(f"{path} lacks {lacking[0]!r} and {len(lacking) - 1} more; run track.py for this --data")

    def row(self, k, name):
        """Where an object stands; of a question about none, the first object of the clip."""
        return self.rows[track_id(self.items[k], name)]

    def fact(self, k, name):
        row = self.row(k, name)
        return noted_fact(name, self.tracks["persistence"][row], self.tracks["scores"][row], self.threshold)

    def count(self, k):
        """How many objects are seen, of those that were looked for: the clip's, and one that is not there."""
        return sum(
            bool(self.fact(k, name)["visible"]) for name in (*self.items[k]["names"], self.items[k]["absent"])
        )

    def text(self, k, name):
        name = name or (*self.items[k]["names"], self.items[k]["absent"])[0]
        fact = self.fact(k, name)
        return metadata_text(name, fact["persistence"], fact["visible"], None, fact["hidden"], self.count(k))

    def embeddings(self, asks, how="on", seed=0):
        """[n, 512]: of the object asked about, or as one of ABLATIONS says."""
        g, rows = torch.Generator().manual_seed(seed), [self.row(a.item, a.name) for a in asks]
        if how == "shuffled":
            others = [[k for k in range(len(self.items)) if k != a.item] or [a.item] for a in asks]
            rows = [self.row(clips[int(torch.randint(len(clips), (), generator=g))], "") for clips in others]
        if how == "swapped":
            rows = [self.row(a.item, neighbour(self.items[a.item], a.name)) for a in asks]
        x = self.tracks["embedding"][rows]
        return (
            F.normalize(torch.randn(x.shape, generator=g), dim=1) * x.norm(dim=1, keepdim=True)
            if how == "gaussian"
            else x
        )


def neighbour(item, name):
    """The next object of a clip; of the only one, itself."""
    names = item["names"]
    return names[(names.index(name) + 1) % len(names)] if name in names else name


def vlm_answers(name, model, processor, items, asks, k, size, batch, hint):
    """What a vision-language model that sees k frames of each clip answers; questions in the same words go together. hint: tell it what to answer, and which frames it sees."""
    texts, together = [""] * len(asks), {}
    for n, a in enumerate(asks):
        together.setdefault((a.question, len(items[a.item]["frames"])), []).append(n)
    with tqdm(total=len(asks), desc=name, unit="question") as bar:
        for (question, length), members in together.items():
            at = spread(length, k)
            for some in (members[n : n + batch] for n in range(0, len(members), batch)):
                shown = torch.stack(
                    [frames_of({"frames": items[asks[n].item]["frames"][at]}, size) for n in some]
                )
                told = f"{HINT.format(length)} You see frames {', '.join(map(str, at))}. " if hint else ""
                for n, text in zip(
                    some, answers_to(model, processor, shown, told + question, (at, length)), strict=True
                ):
                    texts[n] = text
                bar.update(len(some))
    return texts


# ---------------------------------------------------------------- trajectories: what they say is scored


def descriptions(asks, texts):
    """{number of the clip: its description}: of the sentences about each of its objects, and of how many there are."""
    out = {}
    for a, text in zip(asks, texts, strict=True):
        out.setdefault(a.item, []).append(
            sentence_of_count(text)
            if a.kind == "count" and text.isdecimal()
            else text
            if text.endswith((".", "!", "?"))
            else f"{text}."
        )
    return {k: " ".join(parts) for k, parts in out.items()}


def claims_scored(items, spoken_of, seed):
    """What a table's row says of descriptions, a list of {number of the clip: text}, one for each seed: precision of claims and facts omitted, in all and by kind."""
    true = []
    facts = []
    silent = 0
    sentences = 0
    unchecked = 0
    for texts in spoken_of:
        for k, text in texts.items():
            claims, mute = parse_claims(text, items[k]["names"], len(items[k]["frames"]))
            checked = [(c.kind, check_claim(c, items[k])) for c in claims]
            left_out, every = omitted(claims, items[k])
            true += [(items[k]["source"], kind, float(t)) for kind, t in checked if t is not None]
            facts += [(items[k]["source"], kind, float((name, kind) in left_out)) for name, kind in every]
            silent = silent + mute
            unchecked = unchecked + sum(t is None for _, t in checked)
            sentences = sentences + len(sentences_of(text))
    row = {
        "claims": len(true),
        "unparsed": silent / max(sentences, 1),
        "unchecked": unchecked / max(unchecked + len(true), 1),
    }
    for key, rows in (("claim_precision", true), ("omission", facts)):
        for end, own in [
            ("", rows),
            *(
                (f"_{kind}", [r for r in rows if r[1] == kind])
                for kind in CLAIMS
                if key == "claim_precision" or kind != "absence"
            ),
        ]:
            row |= mean_and_interval(key + end, torch.tensor([r[2] for r in own]), [r[0] for r in own], seed)
    return row


def writer_row(items, asks, runs, seed):
    """({columns of the table}, right or wrong [seeds, questions asked]) of a writer; runs: for each seed its answers to `asks`."""
    place = [n for n, a in enumerate(asks) if a.role == "asked"]
    sources = [items[asks[n].item]["source"] for n in place]
    right_or_wrong = torch.tensor(
        [
            [float(answer_right(asks[n].kind, texts[n], asks[n].answer, asks[n].name)) for n in place]
            for texts in runs
        ]
    )
    row = {"questions": len(place)} | mean_and_interval("accuracy", right_or_wrong, sources, seed)
    kinds = [asks[n].kind for n in place]

    def of(*some):
        return [m for m, kind in enumerate(kinds) if kind in some]

    for kind in dict.fromkeys(kinds):
        row |= mean_and_interval(kind, right_or_wrong[:, of(kind)], [sources[m] for m in of(kind)], seed)
    abstained = torch.tensor(
        [
            [float(heard(texts[n], "persistence", asks[n].name) in UNANSWERABLE) for n in place]
            for texts in runs
        ]
    )
    for key, some in (
        ("abstains", UNANSWERABLE),
        *((f"abstains_{kind}", (kind,)) for kind in UNANSWERABLE),
        ("abstains_wrongly", [k for k in ASKED if k not in UNANSWERABLE]),
    ):
        row |= mean_and_interval(key, abstained[:, of(*some)], [sources[m] for m in of(*some)], seed)
    f1 = torch.tensor(
        [
            [frame_f1(texts[place[m]], asks[place[m]].answer, asks[place[m]].name) for m in of("frames")]
            for texts in runs
        ]
    )
    row |= mean_and_interval("frame_f1", f1, [sources[m] for m in of("frames")], seed)
    twins = {(a.role, a.item, a.kind, a.name): n for n, a in enumerate(asks) if a.role != "asked"}
    for key, first, second in (
        ("order_persistence", "asked", "permuted"),
        ("order_direction", "listed", "relisted"),
    ):
        pairs = [
            (
                m if first == "asked" else twins[first, a.item, a.kind, a.name],
                twins[second, a.item, a.kind, a.name],
            )
            for m, a in enumerate(asks)
            if a.role == "asked" and (second, a.item, a.kind, a.name) in twins
        ]
        same = torch.tensor(
            [
                [
                    float(
                        heard(texts[m], asks[m].kind, asks[m].name)
                        == heard(texts[n], asks[n].kind, asks[n].name)
                        is not None
                    )
                    for m, n in pairs
                ]
                for texts in runs
            ]
        )
        row |= mean_and_interval(key, same, [items[asks[m].item]["source"] for m, _ in pairs], seed)
    return row, right_or_wrong


def changed_asks(items, altered, n, g):
    """n questions of each kind of FOLLOW, and of how many there are, whose true answer is another one where the clips were changed: [(question about the changed clip, what was true before)]."""
    there, truth = {item["id"]: k for k, item in enumerate(altered)}, {}
    for a in asks_about(altered):
        truth[altered[a.item]["id"], a.kind, a.name, sort_of(a.kind, a.answer)] = a.answer
    pairs = {}
    for a in asks_about(items):
        k = there.get(items[a.item]["id"])
        new = truth.get((items[a.item]["id"], a.kind, a.name, sort_of(a.kind, a.answer)))
        if k is not None and new is None and altered[k].get("removed") == a.name:
            new = f"there is no {a.name}"
        if (
            k is not None
            and new is not None
            and a.kind in (*FOLLOW, "count")
            and not answer_right(a.kind, new, a.answer, a.name)
        ):
            pairs[a._replace(item=k, answer=new)] = a.answer
    return [(a, pairs[a]) for a in drawn(list(pairs), n, g)]


def followed_change(items, pairs, runs, seed):
    """How many answers [seeds, n] say what has become true of changed clips, and how many what was true before."""
    sources, row = [items[a.item]["source"] for a, _ in pairs], {"questions": len(pairs)}
    for key, truths in (("new", [a.answer for a, _ in pairs]), ("old", [old for _, old in pairs])):
        says = [
            [
                float(answer_right(a.kind, text, truth, a.name))
                for (a, _), text, truth in zip(pairs, texts, truths, strict=True)
            ]
            for texts in runs
        ]
        row |= mean_and_interval(key, torch.tensor(says), sources, seed)
    return row


def ablated(items, asks, runs, seed):
    """{what stood in place of the embedding: its row} and the paired tests of the embedding against it, over questions whose answer lies in it; runs: {of ABLATIONS: for each seed the answers}."""
    two = [n for n, a in enumerate(asks) if len(items[a.item]["names"]) > 1]
    sources = [items[a.item]["source"] for a in asks]
    scores = {
        how: torch.tensor(
            [
                [
                    float(answer_right(a.kind, text, a.answer, a.name))
                    for a, text in zip(asks, texts, strict=True)
                ]
                for texts in own
            ]
        )
        for how, own in runs.items()
    }
    table, tests = {}, {}
    for how, own in scores.items():
        # the only object of a clip has no other to be exchanged with
        some = two if how == "swapped" else range(len(asks))
        table[how] = {"questions": len(some)} | mean_and_interval(
            "accuracy", own[:, some], [sources[m] for m in some], seed
        )
        if how != "on" and some:
            tests[how] = paired_test(
                scores["on"][:, some], own[:, some], [sources[m] for m in some], seed=seed
            )
            table[how] |= {key.replace("gain", "lost"): value for key, value in tests[how].items()}
    for how, p in holm({how: test["p"] for how, test in tests.items()}).items():
        table[how]["p_holm"] = p
    if two:  # does who is given another object's embedding say what is true of that one?
        others = {
            n: answer_with(
                true_fact(items[asks[n].item], neighbour(items[asks[n].item], asks[n].name)),
                asks[n].question,
                0,
            )
            for n in two
        }
        apart = [n for n in two if not answer_right(asks[n].kind, others[n], asks[n].answer)]
        says_it = [
            [float(answer_right(asks[n].kind, texts[n], others[n], asks[n].name)) for n in apart]
            for texts in runs["swapped"]
        ]
        table["swapped"] |= mean_and_interval(
            "says_the_other", torch.tensor(says_it), [sources[n] for n in apart], seed
        )
    return table, tests


def draw_said(path, items, clips, writers, notes, shown=8):
    """explain-trajectories.png: of a few clips some frames, in which of them the video model looked, and when each object is there (hatched: hidden), as it was and as each writer has it.

    writers: {name: {number of the clip: description}}."""
    import matplotlib
    from matplotlib.figure import Figure

    def bars(name, text, names, length):
        """(spans in which it is there, in which it is hidden, what else is said in a word each) of a description."""
        claims = [c for c in parse_claims(text, names, length)[0] if c.object == name and not c.denied]
        value = {key: x for c in claims if c.kind == "span" for key, x in c.value.items()}
        inside = [[value.get("first", 0), value.get("last", length - 1)]] * bool(value)
        words = [
            ("persistent" if c.value else "transient") if c.kind == "persistence" else c.value
            for c in claims
            if c.kind in ("persistence", "direction")
        ]
        return (
            value.get("present", value.get("visible", inside)),
            [s for c in claims if c.kind == "hidden" and isinstance(c.value, list) for s in c.value],
            words,
        )

    count, rows = [len(items[k]["names"]) for k in clips], ["truth", *writers]
    colours = dict(zip(rows, ["black", *OKABE_ITO], strict=False))
    heights = [h for n in count for h in (1.6, *[0.55 + 0.24 * (len(rows) + bool(notes))] * n)]
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure((11, sum(heights)))
        axes = iter(figure.subplots(len(heights), height_ratios=heights, squeeze=False)[:, 0])
        for k in clips:
            names, length = items[k]["names"], len(items[k]["frames"])
            strip, at = next(axes), [round((j + 0.5) * length / shown - 0.5) for j in range(shown)]
            strip.imshow(
                torch.cat(list(items[k]["frames"][at]), 1).numpy(),
                extent=(-0.5, length - 0.5, 0, 1),
                aspect="auto",
                interpolation="nearest",
            )
            strip.set_xticks(
                [(j + 0.5) * length / shown - 0.5 for j in range(shown)], [f"frame {t}" for t in at]
            )
            strip.set_yticks([])
            strip.spines[:].set_visible(False)
            for name in names:
                axis, labels = next(axes), []
                if notes:
                    attention = notes.tracks["attention"][notes.row(k, name)]
                    axis.fill_between(
                        range(length),
                        len(rows) - 0.4,
                        len(rows) - 0.4 + 0.8 * attention / attention.max(),
                        step="mid",
                        color="0.6",
                        lw=0,
                    )
                for y, writer in enumerate(rows):
                    there, hidden, words = bars(
                        name, items[k]["text"] if writer == "truth" else writers[writer][k], names, length
                    )
                    for spans, look in (
                        (there, {"color": colours[writer]}),
                        (hidden, {"facecolor": "white", "edgecolor": "0.3", "hatch": "/////", "lw": 0.5}),
                    ):
                        axis.broken_barh(
                            [(a - 0.5, b - a + 1) for a, b in spans], (len(rows) - 1.35 - y, 0.7), **look
                        )
                    labels.append(", ".join([writer, *words]))
                axis.set_yticks(
                    [len(rows) - 1 - y for y in range(len(rows))] + [len(rows)] * bool(notes),
                    [*labels, *["attention"] * bool(notes)],
                )
                axis.set_xlim(-0.5, length - 0.5)
                axis.set_ylim(-0.5, len(rows) + 0.6 * bool(notes))
                axis.set_title(name, loc="left", fontsize=8, fontweight="bold")
        figure.subplots_adjust(
            left=0.16, right=0.99, bottom=0.3 / sum(heights), top=1 - 0.1 / sum(heights), hspace=0.45
        )
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    save_bytes(path, content.getvalue())


def trajectory_world(args):
    """Everything that is checked before a model is loaded."""
    if args.questions < 1 or args.batch < 1:
        refuse(f"--questions {args.questions} and --batch {args.batch} leave nothing to ask; give 1 or more")
    w = SimpleNamespace(
        shown=(args.frames or "8").split(",")[-1], changed={}, adapted={}, folders=[], notes=None
    )
    w.every, w.index = trajectory_folder(args.data)
    w.items, w.train = ([i for i in w.every if split_of(i["source"]) == part] for part in ("test", "train"))
    if not w.items or not w.train:
        refuse(f"{args.data} has {len(w.train)} train and {len(w.items)} test clips; give more")
    if args.words and not args.embeddings:
        refuse(f"--words {args.words} reads embeddings; give --embeddings, the tracks.pt of --data")
    if args.embeddings:
        w.notes = Notes(args.embeddings, w.every, w.items)
    if args.words:
        w.adapted = load_yaml(Path(args.words) / "tune-words.yaml", "tune")
        w.folders = sorted(Path(args.words).glob("seed*"))
        if not w.folders:
            refuse(f"{args.words} holds no folder seed<i>; run tune.py words, which writes them")
    language = args.language or w.adapted.get("run", {}).get("arguments", {}).get("language")
    w.entry, w.vlm, w.tuned = (
        find_model(name) if name else None for name in (language, args.vlm, args.tuned)
    )
    if w.entry and w.entry["kind"] != "language":
        refuse(f"--language {language} is a {w.entry['kind']}; give a language model, say tiny-words")
    for flag, name, entry in (("--vlm", args.vlm, w.vlm), ("--tuned", args.tuned, w.tuned)):
        if entry and entry.get("type") not in FRAMES_AS:
            refuse(f"{flag} {name} takes no chat about several frames; give a Qwen model or internvl3-8b")
    if not w.shown.isdecimal() or int(w.shown) < 2:
        refuse(f"--frames {args.frames} is no number of 2 or more; give, say, 8")
    for given in args.changed or ():
        name, _, where = given.partition("=")
        folder, _, embeddings = where.rpartition(":")
        if not (name and folder and embeddings):
            refuse(f"--changed {given} is not NAME=DATA:EMBEDDINGS, say reversed=data/x:results/x/tracks.pt")
        if not w.notes:
            refuse(f"--changed {given} needs --embeddings, those of --data")
        altered, _ = trajectory_folder(folder)
        here = [i for i in altered if split_of(i["source"]) == "test"]
        if not {i["id"] for i in here} & {i["id"] for i in w.items}:
            refuse(f"{folder} has no test clip of {args.data}; make it by data.py trajectories --change")
        w.changed[name] = here, Notes(embeddings, altered, here, w.notes.threshold)
    w.out = Path(args.out or Path(args.embeddings or args.data).parent / "explain-trajectories.yaml")
    check_writable(w.out)
    return w


def all_answers(args, w, parts, altered, device, dtype):
    """({part: {writer or ablation: for each seed {texts, seconds, memory}}}, how the language model was prompted). parts: {name: (questions, clips, what is noted of them)} for every writer;
    altered: the same of changed clips, for who reads what is noted. What is kept of an earlier run that asked the same is not asked again."""
    hint = HINT.format(TIMES) if w.entry and w.entry["weights"] != "small" else ""
    of_language = [fingerprint(w.entry), hint] if w.entry else []
    kept_at = w.out.with_name(f"{w.out.stem}-answers.pt")
    kept, answers = load_pt(kept_at, ANSWERS).get("answers", {}) if kept_at.is_file() else {}, {}
    follow = {
        "follow": (
            [a for a in parts["asked"][0] if a.role == "asked" and a.kind in FOLLOW],
            *parts["asked"][1:],
        )
    }
    films = {
        name: digest(b"".join(digest(i["frames"].numpy().tobytes()).encode() for i in here))
        for name, (_, here, _) in (parts | follow | altered).items()
    }

    def write(writer, say_all, facts, about):
        """say_all(questions, clips, notes) of each part `about`; facts: what the answers depend on besides, None of templates, which cost nothing."""
        for part, (asks, items, notes) in about.items():
            stamp = facts and digest(
                repr(
                    (
                        asks,
                        films[part],
                        notes and (notes.digest, [notes.text(a.item, a.name) for a in asks]),
                        facts,
                        str(dtype),
                    )
                ).encode()
            )
            said = spoken(
                f"{writer}/{part}", stamp, functools.partial(say_all, asks, items, notes), kept, kept_at
            )
            answers.setdefault(part, {}).setdefault(writer.rstrip("0123456789"), []).append(said)

    write(
        "truth",
        lambda asks, items, notes: [
            answer_with(true_fact(items[a.item], a.name), a.question, items[a.item]["count"]) for a in asks
        ],
        None,
        parts,
    )
    write("commonest", lambda asks, items, notes: commonest_answers(asks, w.train), None, parts)
    if w.notes:
        write(
            "metadata",
            lambda asks, items, notes: [
                answer_with(notes.fact(a.item, a.name), a.question, notes.count(a.item)) for a in asks
            ],
            None,
            parts | altered,
        )

    @functools.cache
    def language():
        model, tokenizer = load_language(w.entry, device, dtype)
        kept["language"] = {"prompts": "chat template" if tokenizer.chat_template else "plain lines"}
        if not tokenizer.chat_template:
            print(f"{w.entry['name']} has no chat template: it is asked in plain lines", file=sys.stderr)
        return model, tokenizer

    def in_words(asks, context, model=None, soft=None):
        own, tokenizer = language()
        return answered(
            model or own,
            tokenizer,
            [word_prompt(tokenizer, a.question, context(a)) for a in asks],
            soft,
            LONGEST,
            8 * args.batch,
        )

    if w.entry:
        write("blind", lambda asks, items, notes: in_words(asks, lambda a: hint), of_language, parts)
    if w.entry and w.notes:
        write(
            "text",
            lambda asks, items, notes: in_words(
                asks, lambda a: f"{hint} {notes.text(a.item, a.name)}".strip()
            ),
            of_language,
            parts | altered,
        )
    for s, folder in enumerate(w.folders):

        @functools.cache
        def reader(folder=folder):
            return load_words(folder, language()[0], w.entry["name"])

        def in_soft_words(asks, items, notes, how="on", reader=reader):
            model, soft = reader()
            with torch.inference_mode():
                tokens = (
                    None
                    if how in ("off", "label")
                    else soft(notes.embeddings(asks, how, args.seed).to(device))
                )
            return in_words(
                asks, lambda a: notes.text(a.item, a.name) if how == "label" else "", model, tokens
            )

        write(f"soft{s}", in_soft_words, (of_language, fingerprint(folder)), parts | altered)
        for how in ABLATIONS[1:]:
            write(
                f"{how}{s}",
                functools.partial(in_soft_words, how=how),
                (of_language, fingerprint(folder), args.seed),
                follow,
            )
        if reader.cache_info().currsize:
            reader()[0].unload()
    for writer, entry in (("vlm", w.vlm), ("tuned", w.tuned)):
        if entry:
            seeing = functools.cache(functools.partial(load_vlm, entry, device, dtype))
            size = args.size or entry["clip"]

            def seen(
                asks,
                items,
                notes,
                entry=entry,
                seeing=seeing,
                size=size,
                hint=writer == "vlm" and entry["weights"] != "small",
            ):
                return vlm_answers(
                    entry["name"], *seeing(), items, asks, int(w.shown), size, args.batch, hint
                )

            write(writer, seen, (fingerprint(entry), w.shown, size, args.batch), parts)
    return answers, kept["language"]["prompts"] if w.entry else None


def run_trajectories(args, started):
    """explain-trajectories.yaml: of every writer how much of what it says of trajectories is true, how much it leaves out, and whether its words follow what it was shown."""
    w = trajectory_world(args)
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    asks, describing = questions_drawn(w.items, args.questions, args.seed)
    pairs = {
        name: [
            p
            for p in changed_asks(w.items, here, args.questions, torch.Generator().manual_seed(args.seed))
            if track_id(here[p[0].item], p[0].name) in notes.rows
        ]
        for name, (here, notes) in w.changed.items()
    }
    parts = {"asked": (asks, w.items, w.notes), "described": (describing, w.items, w.notes)}
    answers, prompts = all_answers(
        args,
        w,
        parts,
        {name: ([a for a, _ in pairs[name]], *w.changed[name]) for name in pairs},
        device,
        dtype,
    )
    texts = {
        part: {name: [run["texts"] for run in runs_of] for name, runs_of in answers[part].items()}
        for part in answers
    }

    table, scores, said_of = {}, {}, {}
    for name in (n for n in WRITERS if n in texts["asked"]):
        said_of[name], costs = (
            [descriptions(describing, own) for own in texts["described"][name]],
            answers["described"][name],
        )
        table[name], scores[name] = writer_row(w.items, asks, texts["asked"][name], args.seed)
        table[name] |= claims_scored(w.items, said_of[name], args.seed) | {
            "seeds": len(costs),
            "seconds_per_clip": sum(run["seconds"] for run in costs) / len(costs) / len(said_of[name][0]),
            "memory_gb": max(run["memory"] or 0 for run in costs) / 1e9 or None,
        }
    if w.folders:
        table["soft"] |= {
            f"training_{key}": w.adapted.get(key)
            for key in ("seconds_per_seed", "parameters", "peak_memory_bytes", "forgetting")
        }
    if w.tuned and (record := Path(w.tuned["path"]).parent / "tune.yaml").is_file():
        lessons = load_yaml(record, "tune")
        table["tuned"] |= {
            "training_seconds_per_seed": lessons["seconds_per_step"] * lessons["steps"],
            "training_peak_memory_bytes": lessons["run"]["peak_memory_gb"] * 1e9,
            **{f"training_{key}": lessons[key] for key in ("parameters", "forgetting")},
        }
    main = next(name for name in ("soft", "text", "metadata", "tuned", "vlm", "commonest") if name in table)
    sources = [w.items[a.item]["source"] for a in asks if a.role == "asked"]
    against = {
        name: paired_test(scores[main], scores[name], sources, seed=args.seed)
        for name in table
        if name not in (main, "truth")
    }
    for name, p_value in holm({name: test["p"] for name, test in against.items()}).items():
        against[name]["p_holm"] = p_value

    result = {
        "stage": "trajectories",
        "writer": main,
        "language": w.entry and w.entry["name"],
        "weights": w.entry["weights"] if w.entry else None,
        "vlm": w.vlm and w.vlm["name"],
        "tuned": w.tuned and w.tuned["name"],
        "video": w.notes and w.notes.tracks["meta"].get("model"),
        "video_weights": w.notes and w.notes.tracks["meta"].get("weights"),
        "data": w.index["data"],
        "data_name": w.index["name"],
    }
    for key in ("accuracy", "claim_precision", "omission"):
        result |= {f"{key}{end}": table[main][f"{key}{end}"] for end in ("", "_low", "_high")} | {
            f"{key}_{name}": row[key] for name, row in table.items() if name != main
        }
    result["claim_precision_reason"] = (
        None if table[main]["claims"] else "no claim is made that could be checked"
    )
    follow = [n for n, a in enumerate(asks) if a.role == "asked" and a.kind in FOLLOW]
    shown = {
        "on": [[own[n] for n in follow] for own in texts["asked"].get("soft", [])],
        **texts.get("follow", {}),
    }
    ablations, tests = (
        ablated(w.items, [asks[n] for n in follow], shown, args.seed) if w.folders else ({}, {})
    )
    result |= {
        "words_follow_picture": verdict(*(tests[how] for how in ("shuffled", "swapped") if how in tests))
        if tests
        else None,
        "words_follow_picture_reason": None
        if tests
        else "needs --words: soft tokens that can be taken away or exchanged",
        **{f"follow_{how}": row["accuracy"] for how, row in ablations.items()},
    }
    changes = {
        name: {
            writer: followed_change(w.changed[name][0], pairs[name], own, args.seed)
            for writer, own in texts[name].items()
        }
        for name in pairs
    }
    result |= {
        f"{name}_{key}": rows[main][key]
        for name, rows in changes.items()
        if main in rows
        for key in ("new", "old")
    }

    # in which most happens
    clips = sorted(
        said_of[main][0],
        key=lambda k: (
            -len({t["why"] for t in w.items[k]["tracks"]}) - any(t["hidden"] for t in w.items[k]["tracks"]),
            k,
        ),
    )[:3]
    draw_said(
        w.out.with_suffix(".png"),
        w.items,
        clips,
        {name: said_of[name][0] for name in ("metadata", "text", "soft", "tuned", "vlm") if name in said_of},
        w.notes,
    )
    result |= {
        "questions_per_kind": args.questions,
        "clips_described": len(said_of[main][0]),
        "prompts": prompts,
        "writers": table,
        "ablations": ablations,
        "changed": changes,
        "comparisons": {f"{main}_over_{name}": test for name, test in against.items()},
        "examples": {
            "clip": w.items[clips[0]]["id"],
            **{name: said[0][clips[0]] for name, said in said_of.items()},
        },
        "run": run_record(args, started, device, why, dtype, w.entry),
    }
    save_yaml(w.out, result)
    say(result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "ask": "the model's answers about a data folder, or about one's own image or video",
            "binding": "what can be read of place and motion beside what the model answers",
            "frames": "which choice of frames of a clip answers best",
            "semantic": "of generated clips: does the model name the direction that was asked for?",
            "describe": "of generated or real clips: does the model say what happens in them?",
            "trajectories": "is what models say about objects that come, go and hide true?",
        },
    )
    add = jobs["ask"].add_argument
    add("--model", default="tiny", help="the vision-language model")
    add("--data", help="a data folder, about whose test items questions are asked: answers.pt")
    add("--random-init", action="store_true", help="with --data: untrained weights")
    add("--revision", help="with --data: branch, tag or commit of a hub repository")
    add("--batch", type=int, default=8, help="with --data: micro-batch")
    add("--image", nargs="+", metavar="FILE", help="an image, or several together")
    add("--clip", metavar="FILE", help="a video")
    add("--question", help="put to the model about --image or --clip")
    add("--frames", help="with --clip: how many of its frames are shown (default: 16)")
    add("--choose", choices=CHOICES, help="with --clip: which frames are shown (default: uniform)")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--out", help="default: results/<model>/<data>/answers.pt; with --question a YAML")
    add = jobs["binding"].add_argument
    add("--features", default="results/tiny/shapes/features", help="a folder that extract.py wrote")
    add("--answers", required=True, help="what `ask` wrote about the same data")
    add("--data", help="the data folder (default: the one the features were made from)")
    add("--points", help="points with commas between (default: all in the index)")
    add("--out", help="default: binding.yaml beside --features")
    add = jobs["frames"].add_argument
    add("--model", default="tiny", help="a Qwen model")
    add("--data", default="data/waiting", help="a data folder of clips with questions")
    add(
        "--frames",
        default="motion,uniform,random,scene",
        help="ways of choosing, the first against the others",
    )
    add("--count", type=int, default=8, help="frames that are shown")
    add("--largest-gap", type=int, help="with motion or uniform: between two frames")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=8, help="micro-batch")
    add("--random-init", action="store_true", help="the same architecture with untrained weights")
    add("--revision", help="branch, tag or commit of a hub repository")
    add("--out", help="default: results/<model>/<data>/frames.pt, and a YAML beside it")
    add = jobs["semantic"].add_argument
    add("--films", required=True, help="the generated clips that video.py coherence wrote")
    add("--answers", required=True, help="what `ask` wrote about them")
    add("--out", help="default: explain-semantic.yaml beside --films")
    add = jobs["describe"].add_argument
    add("--films", required=True, help="generated clips, or clips with an action or a direction")
    add("--model", default="tiny", help="the vision-language model")
    add("--frames", help="numbers of frames to show, with commas (default: 3,8,16)")
    add("--clips", type=int, help="only so many of the test clips")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: explain-describe.yaml beside --films")
    add = jobs["trajectories"].add_argument
    add("--data", default="data/trajectories", help="clips that data.py trajectories wrote")
    add("--embeddings", metavar="FILE", help="tracks.pt of --data")
    add("--language", metavar="MODEL", help="a causal language model (default: the one of --words)")
    add("--words", metavar="FOLDER", help="what tune.py words wrote")
    add("--vlm", metavar="MODEL", help="a vision-language model that is shown frames")
    add("--tuned", metavar="MODEL", help="one that tune.py has taught these questions")
    add("--frames", help="shown to --vlm and --tuned (default: 8)")
    add("--questions", type=int, default=60, help="of each kind, and clips to describe")
    add("--changed", nargs="+", metavar="NAME=DATA:EMBEDDINGS", help="clips of data.py trajectories --change")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: explain-trajectories.yaml beside --embeddings")
    return p.parse_args(argv)


def run_binding(args, started):
    """binding.yaml: what can be read of the test items' place and motion, beside what the model answers."""
    index, read = load_features(args.features)
    items, _ = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "binding.yaml")
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        refuse(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    points = [p for p in points if p in with_grid(index)]
    if "boxes" not in items[0]:
        refuse(f"{index['data_path']} has no boxes, and so nothing of which the place could be asked")
    result = {"stage": "binding", "model": index["model"], "weights": index["weights"], "data": index["data"]}
    result |= binding(args, items, split, read, points, index["model"])
    result["run"] = run_info(args, started, script="explain.py")
    save_yaml(out, result)
    say(result)
    return result


def run_ask(args, started):
    """About a data folder (`ask_about_data`), or about one's own image or video (`ask_about_media`)."""
    given = [flag for flag in ("image", "clip", "question", "frames", "choose") if getattr(args, flag)]
    if bool(args.data) == bool(given):
        refuse("ask needs either --data, or --question and --image or --clip")
    return ask_about_data(args, started) if args.data else ask_about_media(args, started)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "semantic":
        args.out = Path(args.out or Path(args.films).parent / "explain-semantic.yaml")
        check_writable(args.out)
    run = {"ask": run_ask, "binding": run_binding, "frames": run_frames}
    run |= {"semantic": run_semantic, "describe": run_describe, "trajectories": run_trajectories}
    return run[args.mode](args, started)


if __name__ == "__main__":
    main()
