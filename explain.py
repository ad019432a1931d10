"""Are the model's answers true, and do they state what a probe decodes from its features?

    python explain.py ask --model tiny --data data/shapes --out results/tiny/shapes/answers.pt
    python explain.py ask --image a.jpg --question "What is in the picture?"              # your own image, or several together
    python explain.py ask --clip a.mp4 --question "Which way does the red circle move?" --frames 16
    python explain.py binding --features results/tiny/shapes/features --answers results/tiny/shapes/answers.pt      # binding.yaml
    python explain.py frames --model tiny --data data/waiting --count 8                   # which choice of frames gives the best answers
    python explain.py semantic --generated results/tiny/moving/generated --answers results/tiny/moving/generated/answers.pt     # explain-semantic.yaml
    python explain.py describe --generated results/tiny/future/generated --frames 3,8,16          # explain-describe.yaml
    python explain.py trajectories --embeddings results/tiny/trajectories/tracks.pt --words results/tiny/trajectories/words

`ask --data`: the model's greedy answers about the test items. The questions: the place of the largest object (or the direction of
the clip's object), open and with the possible answers listed; its box; a caption. `binding`, for each kind: <kind>_answer, the
accuracy of the parsed answers; <kind>_probe, that of a ridge on the tokens; <kind>_gap, the paired difference; <kind>_withheld, yes,
no or inconclusive: does the probe beat both the answers and its own best baseline?

`semantic`: for every conditioning of generated clips, the share of answers that name the prompted direction. `describe`, by number
of frames: action_recall_real and _generated, the share of clips whose action is named (open question, actions listed, or a
description); retention, generated over real, paired. Baselines: clips without the action (copy, frozen), the answers about other
items, the majority action.

`trajectories`: every method answers the same questions and describes the objects; every claim is checked. Methods: truth, metadata
(templates), text, soft (--words), vlm, tuned; baselines majority and blind. Reported: accuracy by kind, frame_f1, claim_precision,
omission, abstains; words_follow_image: are answers worse with another object's embedding? `changed`: do they follow changed clips?

Copy with it: answering.py, checkpoints.py, claims.py, cogvlm2.py, common.py, families.py, media.py,
metrics.py, models.py, models.yaml, stats.py.
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

from answering import (
    answerable,
    answered,
    answers_of,
    cached,
    check_asked,
    load_to_answer,
    load_words,
    precision_of,
    spread,
    word_prompt,
)
from checkpoints import fingerprint, resolved_commit
from claims import (
    CLAIMS,
    DENIED,
    DESCRIBE_NAME,
    QUESTION_KINDS,
    TIMES,
    UNANSWERABLE,
    WORDS,
    answer_is_correct,
    answer_kind,
    check_claim,
    frame_f1,
    is_correct,
    load_tracks,
    metadata_text,
    names_labels,
    object_of_question,
    omitted,
    parse_answer,
    parse_box,
    parse_claims,
    parse_word,
    sentences_of,
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
    fail,
    join,
    load_features,
    load_items,
    load_pt,
    load_yaml,
    plain,
    print_summary,
    run_info,
    same_items,
    save_bytes,
    save_pt,
    save_yaml,
    split_indices,
    split_of,
    subcommands,
    with_grid,
)
from families import family_of, on, whole_tokens
from media import (
    CHOICES,
    Unusable,
    choose_frames,
    evenly_spread,
    fitted,
    frame_methods,
    frames_at,
    frames_of,
    open_image,
    stacked,
    timeline,
    with_chosen,
)
from metrics import box_iou, box_truth
from models import (
    FRAMES_AS,
    LOADERS,
    LONGEST,
    OPTIONS,
    RATE,
    TOKENS,
    answers_to,
    find_model,
    greedy_tokens,
    load_language,
    put_to,
)
from stats import (
    criterion,
    holm,
    mean_and_interval,
    mean_interval,
    paired_test,
    ratio,
    ridge,
    token_ridge,
    verdict,
)

# ---------------------------------------------------------------- ask: questions to the model

# model type -> (the grounding prompt of its family, the scale of the coordinates in its answers). Qwen2.5-VL:
# pixels of the resized image (Bai et al. 2025); Qwen2-VL, Qwen3-VL and InternVL: thousandths of the side;
# LLaVA: fractions. No variant of CogVLM2 that prints boxes was released: it gets CogVLM 1's prompt.
JSON_BOX = "Locate the {}, output its bbox coordinates using JSON format."
SENTENCE_BOX = "Please provide the bounding box coordinate of the region this sentence describes: {}"
GROUNDING = {
    "qwen2_vl": ("Detect the bounding box of the {}.", "thousandths"),
    "qwen2_5_vl": (JSON_BOX, "pixels"),
    "qwen3_vl": (JSON_BOX, "thousandths"),
    **dict.fromkeys(("internvl", "internvl_chat"), (SENTENCE_BOX.format("<ref>the {}</ref>"), "thousandths")),
    "cogvlm2": ("Where is the {}? Answer in [[x0,y0,x1,y1]] format.", "thousandths"),
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision"), (SENTENCE_BOX.format("the {}."), "fractions")
    ),
}
CAPTION_QUESTION = "What is in the picture?"
OPEN_QUESTION = {"place": "Where is the {}?", "direction": "Which way does the {} move?"}
ANSWER_TOKENS = 64  # tokens of an answer


def questions_to(item, locate):
    """{kind: question} about the item's object: its place or direction, open and with the possible answers listed.

    For images also its box (`locate` is the prompt) and, if the item has a caption, the caption: a control without place."""
    kind, name = "direction" if "direction" in item else "place", object_of_question(item)[1]
    question = OPEN_QUESTION[kind].format(name)
    questions = {
        kind: question,
        f"{kind}_listed": f"{question} Answer with one of: {', '.join(word for row in WORDS[kind] for word in row)}.",
    }
    if kind == "place":
        questions |= {"box": locate.format(name)} | ({"caption": CAPTION_QUESTION} if "text" in item else {})
    return questions


def batches_of_one_shape(members, images, batch):
    """(indices, uint8 [n,T,H,W,3]) of at most `batch` consecutive images of one shape."""
    for _, some in itertools.groupby(((k, images[k]()) for k in members), lambda pair: pair[1].shape):
        while part := list(itertools.islice(some, batch)):
            numbers, clips = zip(*part, strict=True)
            frames = torch.cat(clips)
            if all(hasattr(clip, "times") for clip in clips):
                frames.times = [clip.times[0] for clip in clips]
            yield numbers, frames


def generate_answers(model, processor, inputs_of, images, questions, batch, device, dtype):
    """The greedy answer, str, to each question about its image (a function that gives it `stacked`).

    Equal questions are batched together, so that nothing is padded."""
    answers, together = [None] * len(questions), {}
    for k, question in enumerate(questions):
        together.setdefault(question, []).append(k)
    first = inputs_of(images[0](), questions[0])
    batch = max(min(batch, TOKENS // (first["input_ids"].shape[1] + ANSWER_TOKENS)), 1)
    for question, members in tqdm(together.items(), unit="question"):
        for numbers, frames in batches_of_one_shape(members, images, batch):
            given = on(inputs_of(frames, question), device, dtype)
            with torch.inference_mode():
                tokens = greedy_tokens(model, given, ANSWER_TOKENS)
            for k, answer in zip(
                numbers,
                getattr(processor, "tokenizer", processor).batch_decode(tokens, skip_special_tokens=True),
                strict=True,
            ):
                answers[k] = answer.strip()
    return answers


def run_record(args, started, device, why, dtype, entry):
    """The `run` of the YAML, with the device and the commit of the registry's entry (None: no model)."""
    about = {"device": f"{device.type} ({why})", "dtype": str(dtype)}
    revision = resolved_commit(entry) if entry else None
    return run_info(args, started, script="explain.py", **about, model_revision=revision)


def load_to_ask(args, entry, size, device, dtype):
    """(model, processor, function from frames to the model's inputs)."""
    model, processor = LOADERS["vlm"](entry, device, dtype, args.seed if args.random_init else None)
    inputs_of, _, multiple, _ = family_of(model)(model, processor)
    if isinstance(size, int):  # a tuple is a size to fit into
        whole_tokens(size, multiple, args.model)
    return model, processor, inputs_of


def answers_meta(args, entry, data, size, dtype):
    """What answers about a data folder depend on, as saved beside them."""
    about = {"model": entry["name"], "weights": "random" if args.random_init else entry["weights"]}
    about |= {"data": data["data"], "data_path": str(args.data), "size": size, "dtype": str(dtype)}
    return about | {"checkpoint": fingerprint(entry), "revision": args.revision, "seed": args.seed}


def saved_answers(path, **same):
    """The content of a file of answers if it has the same values; else nothing."""
    saved = load_pt(path, ANSWERS) if path.is_file() else {}
    return saved if all(saved.get(k) == v for k, v in same.items()) else {}


def ask_about_data(args, started):
    """Write the model's answers to the questions about the test items: answers.pt and answers.yaml."""
    entry = find_model(args.model, args.base) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING:
        fail(f"{args.model} ({entry.get('type')}) is not a causal VLM that takes questions; give tiny")
    items, data = load_items(args.data)
    if "boxes" not in items[0]:
        fail(f"{args.data} has no boxes, which questions about place need; give a folder with boxes")
    clip = "direction" in items[0]
    if clip and not entry["type"].startswith("qwen"):
        fail(f"{args.model} takes a clip frame by frame, without motion; give a Qwen model")
    test = [i for i in items if split_of(i["source"]) == "test"]
    used = [i for i in test if object_of_question(i)]
    if not used:
        fail(f"{args.data} has no test item whose largest object has a unique name; use more items")
    out = Path(
        args.out
        or f"results/{entry['name']}/{Path(args.data).name}/answers{'-random' if args.random_init else ''}.pt"
    )
    check_writable(out)
    size = args.size or (entry["clip"] if clip else entry.get("own_shape") or entry["size"])
    locate, scale = GROUNDING[entry["type"]]
    rows = [(item, kind, question) for item in used for kind, question in questions_to(item, locate).items()]
    questions = [q for *_, q in rows]
    kinds = [kind for _, kind, _ in rows]
    ids = [item["id"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = answers_meta(args, entry, data, size, dtype) | {"scale": scale}
    answers = saved_answers(out, ids=ids, meta=meta, questions=questions).get("answers", {})
    if "answer" not in answers:
        print(f"device {device.type} ({why})")
        model, processor, inputs_of = load_to_ask(args, entry, size, device, dtype)
        images = [functools.partial(stacked, [item], size) for item, *_ in rows]
        answers["answer"] = generate_answers(
            model, processor, inputs_of, images, questions, args.batch, device, dtype
        )
        save_pt(out, ANSWERS, ids, meta, kinds=kinds, questions=questions, answers=answers)
    result = {
        "stage": "ask",
        **{k: meta[k] for k in ("model", "weights", "data")},
        "items": len(used),
        "left_out": len(test) - len(used),
        "questions": len(rows),
        "answers": [
            {"id": i, "question": q, "answer": answer}
            for i, q, answer in zip(ids, questions, answers["answer"], strict=True)
        ],
        "run": run_record(args, started, device, why, dtype, entry),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    print_summary(result)
    return result


def run_frames(args, started):
    """Write frames.yaml: the accuracy of answers about test clips for each method of choosing frames.

    frames.pt holds the answers, seconds and indices of the frames."""
    entry = find_model(args.model, args.base) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING or not entry["type"].startswith("qwen"):
        fail(f"{args.model} is of type {entry.get('type')}, which takes no clips; give a Qwen model")
    items, data = load_items(args.data)
    methods = frame_methods(args, items)
    rows = [
        (item, question, answer)
        for item in items
        if split_of(item["source"]) == "test"
        for (question, answer), (kind, _) in zip(
            item.get("turns", ()), item.get("topics") or itertools.repeat(("direction", "")), strict=False
        )
        # the answer to a question about frame numbers depends on which frames are shown
        if kind == "direction"
    ]
    if not rows:
        fail(f"{args.data} has no test clip with a question; give clips with `turns`, say data/moving")
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/frames.pt")
    check_writable(out)
    size = args.size or entry["clip"]
    ids = [item["id"] for item, *_ in rows]
    questions = [question for _, question, _ in rows]
    sources = [item["source"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = answers_meta(args, entry, data, size, dtype)
    meta |= {"items": same_items(items, data)}
    saved = saved_answers(out, ids=ids, meta=meta)
    answers, facts = saved.get("answers", {}), saved.get("facts", {})
    print(f"device {device.type} ({why})")
    vlm = load_to_ask(args, entry, size, device, dtype)  # (model, processor, inputs_of)

    # on a CPU the time of other processes must not count
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run(method, count):
        name = f"{method}{count}"
        if name not in answers:
            clips, started_at = {item["id"]: item for item, *_ in rows}, clock()
            shown = dict(zip(clips, with_chosen(list(clips.values()), method, args, count), strict=True))
            chosen, started_at = clock() - started_at, clock()
            images = [functools.partial(stacked, [shown[i]], size) for i in ids]
            answers[name] = generate_answers(*vlm, images, questions, args.batch, device, dtype)
            facts[name] = {
                "seconds_choosing": chosen,
                "seconds_answering": clock() - started_at,
                "shown": [item["shown"] for item in shown.values()],
            }
            save_pt(out, ANSWERS, ids, meta, questions=questions, answers=answers, facts=facts)
        return name

    # warm up before anything is timed
    image = functools.partial(stacked, with_chosen([rows[0][0]], methods[0], args), size)
    generate_answers(*vlm, [image], questions[:1], 1, device, dtype)
    names = [run(method, args.count) for method in methods]
    even = run("uniform", args.count)
    first = f"{methods[0]}{args.count}"
    # the time to answer depends on the number of frames alone
    answering = min(facts[name]["seconds_answering"] for name in {*names, even})
    most = min(
        int(args.count * (1 + facts[first]["seconds_choosing"] / answering)),
        *(len(item["frames"]) for item, *_ in rows),
    )
    equal_time = [run("uniform", args.count * 2**k) for k in range(1, (most // args.count).bit_length())]
    names = list(dict.fromkeys([*names, even, *equal_time]))
    correct = {
        name: torch.tensor(
            [
                float(is_correct(given, answer))
                for given, (*_, answer) in zip(answers[name], rows, strict=True)
            ]
        )
        for name in names
    }
    table = {}
    for name in names:
        mean, low, high = mean_interval(correct[name], sources)
        table[name] = {"accuracy": mean, "low": low, "high": high} | {
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
        **{f"accuracy_{name}": row["accuracy"] for name, row in table.items()},
        **{f"gain_over_{name}": row["gain"] for name, row in gains.items()},
        **{f"gain_over_{name}_low": row["gain_low"] for name, row in gains.items()},
        **{f"gain_over_{name}_high": row["gain_high"] for name, row in gains.items()},
        "first": first,
        "equal_time": equal_time,
        "methods": table,
        "gains": gains,
        "run": run_record(args, started, device, why, dtype, entry),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    print_summary(result)
    return result


# ---------------------------------------------------------------- binding: a probe beside the answers


def cell_of(item, kind):
    """(column, row), each 0 to 2: the cell of a 3 x 3 grid with the object's centre, or its direction."""
    if kind == "direction":
        return next(
            (c, r)
            for r, words in enumerate(WORDS[kind])
            for c, word in enumerate(words)
            if word == item["direction"]
        )
    x1, y1, x2, y2 = item["boxes"][object_of_question(item)[0]].tolist()
    return tuple(
        min(int((a + b) / 2 / side * 3), 2)
        for a, b, side in ((x1, x2, item["width"]), (y1, y2, item["height"]))
    )


def word_of(item, kind):
    column, row = cell_of(item, kind)
    return WORDS[kind][row][column]


def coverage(item, k, grid):
    """The share of every token's cell that object k covers, [t*h*w]: by its mask, or else its box."""
    if "mask" in item:
        mask = (item["mask"] == k + 1).float()
    else:
        mask = torch.zeros(item["height"], item["width"])
        x1, y1, x2, y2 = item["boxes"][k].round().int().tolist()
        mask[y1:y2, x1:x2] = 1
    return F.adaptive_avg_pool3d(mask.view(1, -1, *mask.shape[-2:]), grid).flatten()


def tokens_of(items, grid):
    """(on, holds, target) for the tokens of a grid (t, h, w). on: bool [n, K], the token lies on the object of the question.

    holds: [n, K, C], the share of the cell that each name covers; target: [n], the index of the object's name."""
    every = [item.get("names", item["labels"]) for item in items]
    names = {name: c for c, name in enumerate(sorted({name for labels in every for name in labels}))}
    holds = torch.zeros(len(items), grid[0] * grid[1] * grid[2], len(names))
    on = []
    objects = [object_of_question(item) for item in items]
    for i, (item, labels) in enumerate(zip(items, every, strict=True)):
        shares = [coverage(item, k, grid) for k in range(len(labels))]
        for share, label in zip(shares, labels, strict=True):
            holds[i, :, names[label]] += share
        share = shares[objects[i][0]]
        on.append(
            (share > 0) & (share >= share.max() / 2)
        )  # half of the best: a small object, too, has a token
    return torch.stack(on), holds, torch.tensor([names[name] for _, name in objects])


def probe_words(x, on, holds, target, truth, split):
    """{found, named: (column, row) [n, 2]} decoded from tokens x [n, K, D]; truth [n, 2].

    `named` averages the tokens on the object; `found` finds them by a probe for the object's name."""
    n, k, _ = x.shape
    rows = {
        part: (on & torch.isin(torch.arange(n), split[part])[:, None]).flatten().nonzero()[:, 0]
        for part in ("train", "val")
    }
    thirds = F.one_hot(truth, 3).flatten(1).float().repeat_interleave(k, 0)[:, None]  # [nK, 1, 6]
    logits = token_ridge(x.reshape(n * k, 1, -1), {"word": thirds}, rows["train"], rows["val"])["word"].view(
        n, k, 6
    )
    score = token_ridge(x, {"name": holds}, split["train"], split["val"])["name"][
        torch.arange(n), :, target
    ].clamp(min=1e-9)
    weights = {"found": score * (score >= score.amax(1, keepdim=True) / 2), "named": on.float()}
    return {name: (w[..., None] * logits).sum(1).view(n, 2, 3).argmax(-1) for name, w in weights.items()}


def best_point(scores, val):
    """The point with the highest mean score on val; scores {point: [n]}."""
    return max((p for p in scores if p != "pixels"), key=lambda p: scores[p][val].mean())


def words_by_point(points, items, split, read, kind, index):
    """{point: {found, named: 0/1 [n], whether the word is correct}}; index: rows of the items in the features."""
    truth, out, seen = torch.tensor([cell_of(i, kind) for i in items]), {}, {}
    for point in tqdm(points, desc="words", unit="point"):
        x = read(point)[index]
        grid = tuple(x.shape[1:4])
        seen[grid] = seen.get(grid) or tokens_of(items, grid)
        out[point] = {
            name: (found == truth).all(1).float()
            for name, found in probe_words(x.flatten(1, 3), *seen[grid], truth, split).items()
        }
    return out


def items_with_question(items, split):
    """The items with an object of the question, and their rows: (items, index [m], split)."""
    index = torch.tensor([k for k, i in enumerate(items) if object_of_question(i)], dtype=torch.long)
    number = {int(k): m for m, k in enumerate(index)}
    return (
        [items[k] for k in index],
        index,
        {
            part: torch.tensor([number[int(k)] for k in v if int(k) in number], dtype=torch.long)
            for part, v in split.items()
        },
    )


def majority(truth, train, test):
    """0/1 [n_test]: is the majority word of the train items correct? truth [n, 2]."""
    words = truth[:, 0] * 3 + truth[:, 1]
    return (words[test] == words[train].bincount().argmax()).float()


def score_on_others(score):
    """The score [q] of an item with the answers about all others: the mean of [answers, items] off its diagonal."""
    return (score.sum(0) - score.diagonal()) / max(len(score) - 1, 1)


def parsed_answers(texts, kind, meta, items):
    """Parsed answers about items: boxes [4], words or captions; None where nothing can be parsed."""
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
    """[answers, items]: 1 for the true word, or the IoU with the true box; 0 for None."""
    if torch.is_tensor(truth):
        return torch.stack([torch.zeros(len(truth)) if a is None else box_iou(a, truth) for a in answers])
    return torch.tensor([[float(a == t) for t in truth] for a in answers])


def answer_beside_probe(answer, probe, baselines, sources, seed):
    """Scores of the answers [n] beside those of the probe [n]; baselines: (of the answers, of the probe).

    withheld: does the probe beat both the answers and its own best baseline?"""
    row = {}
    found = {
        "answer": criterion(answer, baselines[0], sources, seed=seed),
        "probe": criterion(probe, baselines[1], sources, seed=seed),
    }
    for name, c in found.items():
        row |= {name: c["score"]} | {
            f"{name}_{k}": c[k]
            for k in ("low", "high", "baseline", "baseline_name", "gain_low", "gain_high", "baselines")
        }
    gap = paired_test(probe, answer, sources, seed=seed)
    return row | {
        "gap": gap["gain"],
        "gap_low": gap["gain_low"],
        "gap_high": gap["gain_high"],
        "gap_p": gap["p"],
        "withheld": verdict(gap, found["probe"]),
    }


def binding(args, items, split, read, points, model):
    """The content of binding.yaml: for every kind of question, the answers beside the probe."""
    saved = load_pt(args.answers, ANSWERS)
    items, index, split = items_with_question(items, split)
    number = {items[k]["id"]: m for m, k in enumerate(split["test"].tolist())}
    if saved["meta"]["model"] != model or set(saved["ids"]) != set(number):
        fail(f"{args.answers} holds answers of {saved['meta']['model']}; run explain.py ask of {model} here")
    kind, test, largest = "direction" if "direction" in items[0] else "place", split["test"], None
    words = words_by_point(points, items, split, read, kind, index)
    truth = torch.tensor([cell_of(i, kind) for i in items])
    layer = {
        name: best_point({p: f[name] for p, f in words.items()}, split["val"]) for name in ("found", "named")
    }
    table = {}
    for question in dict.fromkeys(saved["kinds"]):
        rows = [k for k, other in enumerate(saved["kinds"]) if other == question]
        chosen = test[torch.tensor([number[saved["ids"][k]] for k in rows])]
        here = [items[k] for k in chosen]
        sources = [i["source"] for i in here]
        answers = parsed_answers([saved["answers"]["answer"][k] for k in rows], question, saved["meta"], here)
        if question == "box":
            largest = box_truth(items)[0]
        target = (
            largest[chosen]
            if question == "box"
            else [i["text"].lower() if question == "caption" else word_of(i, kind) for i in here]
        )
        scores = correctness(answers, target)
        answer, shuffled = scores.diagonal(), score_on_others(scores)
        row = table[question] = {"n": len(rows), "unparsed": sum(a is None for a in answers) / len(rows)}
        if question == "caption":
            row |= {"answer": answer.mean(), "answer_baseline": shuffled.mean()}
        else:
            if question == "box":
                every, found = [i["source"] for i in items], {}
                for p in points:
                    boxes = ridge(read(p)[index].flatten(1), {"box": largest}, split["train"], every)["box"]
                    found[p] = box_iou(boxes.clamp(0, 1), largest)
                at = best_point(found, split["val"])
                shared = {"constant": box_iou(largest[split["train"]].median(0).values, target)}
                more = {}
            else:
                found = {p: f["found"] for p, f in words.items()}
                at = layer["found"]
                shared = {"majority": majority(truth, split["train"], chosen)}
                named = words[layer["named"]]["named"][chosen].mean()
                more = {"named": named, "named_layer": layer["named"]}
            pixels = {"pixels": found["pixels"][chosen]} if "pixels" in found else {}
            baselines = shared | {"shuffled": shuffled}, shared | pixels
            row |= answer_beside_probe(answer, found[at][chosen], baselines, sources, args.seed)
            row |= {"probe_layer": at, **more}
    for question, p in holm({name: row["gap_p"] for name, row in table.items() if "gap_p" in row}).items():
        table[question]["gap_p_holm"] = p
    shown = ("answer", "answer_baseline", "unparsed", "probe", "probe_baseline")
    shown += ("gap", "gap_low", "gap_high", "withheld")
    headline = {f"{name}_{k}": row[k] for name, row in table.items() for k in shown if k in row}
    return headline | {"options_searched": len(set(points) - {"pixels"}), "kinds": table}


# ---------------------------------------------------------------- semantic: do answers name the prompted direction?


def run_semantic(args, started):
    """Write explain-semantic.yaml: for every conditioning the share of answers that name the prompted direction.

    Baselines: answers about frozen generated clips, answers about other clips, the majority word."""
    items, index = load_items(args.generated)
    saved, generated_clip = load_pt(args.answers, ANSWERS), {i["id"]: i for i in items}
    if "conditioning" not in index or "direction" not in items[0]:
        fail(f"{args.generated} holds no clips with a direction; give the generated/ of video.py coherence")
    if not set(saved["ids"]) <= set(generated_clip) or "direction" not in saved["kinds"]:
        fail(
            f"{args.answers} holds no answers about {args.generated}; run explain.py ask --data {args.generated}"
        )
    scores, unparsed, clips = {}, {}, {}
    for kind in dict.fromkeys(saved["kinds"]):
        for name in dict.fromkeys(i["conditioning"] for i in items):
            rows = [
                k
                for k, i in enumerate(saved["ids"])
                if saved["kinds"][k] == kind and generated_clip[i]["conditioning"] == name
            ]
            clips[name] = [generated_clip[saved["ids"][k]] for k in rows]
            texts = [saved["answers"]["answer"][k] for k in rows]
            answers = parsed_answers(texts, kind, saved["meta"], clips[name])
            scores[kind, name], unparsed[kind, name] = (
                correctness(answers, [i["direction"] for i in clips[name]]),
                sum(a is None for a in answers) / max(len(rows), 1),
            )
    main, kinds = index["conditioning"], list(dict.fromkeys(saved["kinds"]))
    if incomplete := [
        name
        for name in ("real", "frozen", main)
        if [i["id"].rpartition("/")[0] for i in clips.get(name, [])]
        != [i["id"].rpartition("/")[0] for i in clips[main]]
    ]:
        fail(
            f"{args.answers} lacks answers about {incomplete[0]}; run explain.py ask --data {args.generated}"
        )
    truth, sources = [i["direction"] for i in clips[main]], [i["source"] for i in clips[main]]
    kind = max(kinds, key=lambda k: scores[k, "real"].diagonal().mean())
    majority_action = index.get("majority") or max(sorted(set(truth)), key=truth.count)
    baselines = {
        "majority": torch.tensor([float(t == majority_action) for t in truth]),
        "frozen": scores[kind, "frozen"].diagonal(),
        "other_item": score_on_others(scores[kind, main]),
    }
    c = criterion(
        scores[kind, main].diagonal(),
        baselines,
        sources,
        upper_bound=scores[kind, "real"].diagonal().mean().item(),
        seed=args.seed,
        conditioning=main,
        kind=kind,
        unparsed=unparsed[kind, main],
        options_searched=len(kinds),
    )
    table = {name: {"n": len(here)} for name, here in clips.items()}
    for (question, name), score in scores.items():
        values = mean_interval(score.diagonal(), [i["source"] for i in clips[name]])
        keys = (question, f"{question}_low", f"{question}_high")
        table[name] |= dict(zip(keys, values, strict=True))
        table[name][f"{question}_unparsed"] = unparsed[question, name]
    result = {
        "stage": "explain",
        **{k: saved["meta"][k] for k in ("model", "weights")},
        "data": index["data"],
        "data_name": index["name"],
        **{k: index[k] for k in ("video", "video_weights")},
        "conditioning": main,
        "kind": kind,
        "semantic_accuracy": c["score"],
        **{
            f"semantic_accuracy_{k}": c[k]
            for k in ("low", "high", "baseline", "baseline_name", "upper_bound", "skill")
        },
        "unparsed": unparsed[kind, main],
        "criteria": {"semantic_accuracy": c},
        "conditionings": table,
        "run": run_info(args, started, script="explain.py"),
    }
    save_yaml(args.out, result)
    print_summary(result)
    return result


# ---------------------------------------------------------------- describe: questions about generated clips

DESCRIBE = "Describe what happens in this video in one sentence."
CHOOSE = "Which of these happens in this video?"
# kinds of question; of equal recall the earlier is taken
NAMING = "open", "options", "described"
STILL = "copy", "frozen"  # conditionings without an action: one frame throughout


def action_of(item):
    return item.get("action") or item.get("direction")


def questions_about(generated_clips, options):
    """{kind: a question about each generated clip}; options: the actions to choose from."""
    questions = {"described": [DESCRIBE] * len(generated_clips)}
    open_questions = [CHOOSE] * len(generated_clips)
    if all(i.get("turns") for i in generated_clips):
        questions["open"] = open_questions = [i["turns"][0][0] for i in generated_clips]
    if 1 < len(options) <= OPTIONS:
        questions["options"] = [f"{q} Answer with one of: {', '.join(options)}." for q in open_questions]
    return questions


def clip_of(item):
    return item["id"].rpartition("/")[0] if "conditioning" in item else item["id"]


def ask_generated_clips(generated_clips, questions, counts, entry, where, out, meta, batch, options=()):
    """{(kind, k): an answer for each generated clip}. `out` caches answers for equal clips, questions and model.

    The first available kind of NAMING is used with every number of frames k, the others with the largest.
    where: (device, dtype)."""
    ids = [i["id"] for i in generated_clips]
    answers = saved_answers(out, ids=ids, meta=plain(meta), questions=questions).get("answers", {})
    first = next(kind for kind in NAMING if kind in questions)
    runs_needed = [(kind, k) for k in counts for kind in questions if kind == first or k == max(counts)]
    todo = [(kind, k) for kind, k in runs_needed if f"{kind}-{k}" not in answers]
    model, processor = load_to_answer(entry, *where, bool(options)) if todo else (None, None)
    with tqdm(total=len(todo) * len(generated_clips), desc="answers", unit="clip") as bar:
        for kind, k in todo:
            together, texts = {}, [None] * len(generated_clips)
            for n, (item, question) in enumerate(zip(generated_clips, questions[kind], strict=True)):
                together.setdefault((question, len(item["frames"])), []).append(n)
            for (question, length), members in together.items():
                at = spread(length, k)
                for some in (members[n : n + batch] for n in range(0, len(members), batch)):
                    shown = stacked([generated_clips[n] | {"shown": at} for n in some], meta["size"])
                    among = options if kind == "options" else ()
                    found = answers_of(model, processor, shown, question, (at, length), among)
                    for n, text in zip(some, found, strict=True):
                        texts[n] = text
                    bar.update(len(some))
            answers = answers | {f"{kind}-{k}": texts}
            save_pt(out, ANSWERS, ids, meta, questions=questions, answers=answers)
    return {(kind, k): answers[f"{kind}-{k}"] for kind, k in runs_needed}


# ---------------------------------------------------------------- describe: scores


def option(text, options):
    """The option that an answer names, longest first ("up left" is not "up"). None: none, several or a denied one."""
    text, named = text.lower(), []
    for o in sorted(options, key=len, reverse=True):
        rest = re.sub(rf"(?<!\w){re.escape(o.lower().rstrip('.'))}(?!\w)", " ", text)
        named += [o] if rest != text else []
        text = rest
    return named[0] if len(named) == 1 and not DENIED.search(text.replace("n't", " not")) else None


def names_actions(texts, kind, actions):
    """Which of the actions each answer names, bool [answers, actions]."""
    if kind == "options":
        named = [option(t, actions) for t in texts]
        return torch.tensor([[n == a for a in actions] for n in named])
    if "still" in actions:  # the nine words for a direction
        named = [parse_word(t, "direction") for t in texts]
        return torch.tensor([[n == a for a in actions] for n in named])
    return names_labels(texts, actions)


def describe_scores(answers, names, main, truth, vocabulary, majority_action, sources, seed):
    """The part of explain-describe.yaml that follows from the answers {(kind, k): texts}.

    names: conditionings, in the order of the texts, each with the clips of `truth` [n], their actions."""
    n, score, table = len(truth), {}, {name: {"n": len(truth)} for name in names}
    column = torch.tensor([vocabulary.index(a) for a in truth])
    for (kind, k), texts in answers.items():
        for place, name in enumerate(names):
            named = names_actions(texts[place * n : (place + 1) * n], kind, vocabulary)
            score[name, kind, k] = named[:, column].double()  # [answers, clips]
            mean, low, high = mean_interval(score[name, kind, k].diagonal(), sources)
            row = {"recall": mean, "low": low, "high": high, "unparsed": (~named.any(1)).double().mean()}
            table[name][f"{kind}-{k}"] = row
    searched = [(kind, k) for name, kind, k in score if name == "real"]
    # chosen on the real clips alone
    kind, k = max(searched, key=lambda s: (score["real", *s].diagonal().mean(), s[1], -NAMING.index(s[0])))
    recall = {name: score[name, kind, k].diagonal() for name in names}
    real, generated = recall["real"], main != "real"
    baselines = {
        "other_item": score_on_others(score[main, kind, k]),
        "majority": torch.tensor([float(t == majority_action) for t in truth]).double(),
    } | {x: recall[x] for x in STILL if x in recall and x != main}
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
            recall[main], baselines, sources, upper_bound=real.mean().item() if generated else 1.0, **more
        )
    }
    if generated and real.any():
        retention = {name: ratio(x, real) for name, x in recall.items() if name != "real"}
        criteria["retention"] = criterion(
            retention[main],
            {name: ratio(x, real) for name, x in baselines.items()},
            sources,
            upper_bound=retention["vae"].mean().item() if "vae" in retention else 1.0,
            **more,
        )
        for name, x in retention.items():
            interval = mean_interval(x, sources)
            table[name] |= dict(zip(("retention", "retention_low", "retention_high"), interval, strict=True))
    headline = {"kind": kind, "frames": k}
    rows = {
        "real": table["real"][f"{kind}-{k}"],
        "generated": table[main][f"{kind}-{k}"] if generated else {},
    }
    for word, row in rows.items():
        for end, value in (("", "recall"), ("_low", "low"), ("_high", "high")):
            headline[f"action_recall_{word}{end}"] = row.get(value)
    headline |= {f"retention{end}": table[main].get(f"retention{end}") for end in ("", "_low", "_high")}
    reason = None
    if not generated:
        reason = "there are no generated clips"
    elif "retention" not in criteria:
        reason = "the answers about real clips name no action, so there is none to retain"
    headline["retention_reason"] = reason
    for name in names:
        if name not in ("real", main):
            headline[f"retention_{name}"] = table[name].get("retention")
    for name, value in criteria["action_recall"]["baselines"].items():
        headline[f"action_recall_{name}"] = value
    return headline | {
        "unparsed": more["unparsed"],
        "options_searched": len(searched),
        "criteria": criteria,
        "conditionings": table,
    }


def generated_clips_to_describe(items, index, folder, clips):
    """{conditioning: its clips of the test split, one per source clip, in equal order}; plain folders hold real clips."""
    generated_clips = {}
    for i in items:
        if split_of(i["source"]) == "test":
            if len(i.get("frames", ())) < 2 or not isinstance(action_of(i), str):
                what = "has neither action nor direction" if len(i.get("frames", ())) > 1 else "is not a clip"
                fail(f"{i['id']} of {folder} {what}; give generated clips of video.py, or clips of actions")
            generated_clips.setdefault(i.get("conditioning", "real"), []).append(i)
    if not generated_clips:
        fail(f"{folder} has no item in its test split; give a folder with more clips")
    ids = [clip_of(i) for i in generated_clips.get("real", ())]
    if incomplete := [
        name
        for name in ("real", index.get("conditioning", "real"), *generated_clips)
        if not ids or [clip_of(i) for i in generated_clips.get(name, ())] != ids
    ]:
        fail(f"{folder} lacks generated clips of {incomplete[0]} for some or all clips; run video.py again")
    return {name: these[:clips] for name, these in generated_clips.items()}


def run_describe(args, started):
    """Write explain-describe.yaml: do a model's descriptions of generated clips name their actions?"""
    entry = find_model(args.model, args.base)
    check_asked(entry)
    if small := [
        k for k in ("clips", "size", "batch") if getattr(args, k) is not None and getattr(args, k) < 1
    ]:
        fail(f"--{small[0]} {getattr(args, small[0])} is not positive; give 1 or more")
    counts = (args.frames or "3,8,16").split(",")
    if not all(k.isdecimal() and int(k) > 1 for k in counts):
        fail(f"--frames {args.frames} are not numbers of 2 or more, separated by commas; give, say, 3,8,16")
    items, index = load_items(args.generated)
    generated_clips = generated_clips_to_describe(items, index, args.generated, args.clips)
    main = index.get("conditioning", "real")
    real, every = generated_clips["real"], [i for these in generated_clips.values() for i in these]
    longest = max(len(i["frames"]) for i in every)
    used = {int(k): min(int(k), longest) for k in counts}
    directions = [w for row in WORDS["direction"] for w in row]
    options = sorted({*filter(None, map(action_of, items)), *(str(a) for a in index.get("actions") or ())})
    questions = questions_about(every, options)
    out = Path(args.out or Path(args.generated).parent / "explain-describe.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    questions, precision = answerable(questions, entry, device, dtype)
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
        "dtype": precision,
        "generated": digest.hexdigest()[:16],
    }
    path, shown = out.with_name(f"{out.stem}-answers.pt"), sorted(set(used.values()))
    how = meta, args.batch, options
    answers = ask_generated_clips(every, questions, shown, entry, (device, dtype), path, *how)

    truth = [action_of(i) for i in real]
    train_actions = [
        action_of(i) for i in items if split_of(i["source"]) == "train" and action_of(i)
    ] or truth
    majority_action = index.get("majority") or max(sorted(set(train_actions)), key=train_actions.count)
    vocabulary = directions if set(options) <= set(directions) else options
    sources = [i["source"] for i in real]
    found = describe_scores(
        answers, list(generated_clips), main, truth, vocabulary, majority_action, sources, args.seed
    )
    best = found["kind"], found["frames"]
    save_pt(
        out.with_name(f"{out.stem}-actions.pt"),
        RESULT,
        [i["id"] for i in every],
        meta | {"kind": best[0], "frames": best[1]},
        actions=vocabulary,
        named=names_actions(answers[best], best[0], vocabulary),
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
        "sources": len(set(sources)),
        "frames_as": FRAMES_AS.get(entry["type"], "images"),
        "size": size,
        "frames_used": used,
        **{k: x for k, x in found.items() if isinstance(x, dict)},
        "run": run_record(args, started, device, why, precision, entry),
    }
    save_yaml(out, result)
    print_summary(result)
    return result


# ---------------------------------------------------------------- ask: the user's own image or video

MOST = 256  # tokens of an answer
CANDIDATES = 2048  # frames, spread evenly over a longer video


def watched(path, k, size, how="uniform", seed=0):
    """(k frames of a video, of CANDIDATES chosen by `how`, uint8 [1, k, size, size, 3]; their numbers)."""
    try:
        stamps = timeline(path).stamps
        candidates = evenly_spread(len(stamps), min(len(stamps), CANDIDATES))
        small = torch.zeros(len(candidates), 1, 1, 3, dtype=torch.uint8)
        if how not in ("uniform", "random"):
            small = frames_at(path, candidates, 64)
        numbers = [candidates[n] for n in choose_frames(small, min(k, len(candidates)), how, seed)]
        item = {"frames": frames_at(path, numbers, size), "times": stamps[numbers]}
    except Unusable as e:
        fail(f"{path} {e.args[1]}; give an MP4, WebM or GIF file")
    return stacked([item]), numbers


def ask_about_media(args, started):
    """Print a model's answer about images or a video while it is generated."""
    entry, frames = find_model(args.model, args.base), args.frames or "16"
    check_asked(entry)
    if FRAMES_AS.get(entry["type"]) == "sheet" and len(args.image or ()) > 1:
        fail(f"--model {args.model} takes one image at a time; give one --image, or a Qwen model")
    if bool(args.image) == bool(args.clip) or not (args.question or "").strip():
        fail("ask needs a --question, and either --image or --clip")
    if args.clip and not (frames.isdecimal() and int(frames) > 1):
        fail(f"--frames {frames} is not a number of 2 or more; give, say, 16")
    if args.choose and not args.clip:
        fail(f"--choose {args.choose} applies to the frames of a video; give --clip, or leave it out")
    if args.size is not None and args.size < 1:
        fail(f"--size {args.size} is not positive; give 1 or more")
    if args.out:
        check_writable(args.out)
    size = args.size or (entry["clip"] if args.clip else entry.get("own_shape", entry["size"]))
    if args.clip:
        x, numbers = watched(args.clip, int(frames), size, args.choose or "uniform", args.seed)
    else:
        x = [[frames_of({"frames": open_image(p)[None]}, size)[0] for p in args.image]]

    from transformers import TextStreamer

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    model, processor = load_to_answer(entry, device, dtype)
    given = put_to(model, processor, x, args.question)
    tokenizer = getattr(processor, "tokenizer", processor)
    started_at = time.time()
    show = TextStreamer(tokenizer, skip_prompt=entry["type"] != "cogvlm2", skip_special_tokens=True)
    with torch.inference_mode():
        words = greedy_tokens(model, given, MOST, show)[0]
    result = {
        "stage": "explain",
        "mode": "ask",
        "question": args.question,
        "answer": tokenizer.decode(words, skip_special_tokens=True).strip(),
        "seconds": time.time() - started_at,
        "tokens": len(words),
        "model": entry["name"],
        "weights": entry["weights"],
        "frames": len(x[0]),
        "size": size,
        **({"clip": args.clip, "frames_used": numbers} if args.clip else {"images": args.image}),
        "run": run_record(args, started, device, why, model.precision, entry),
    }
    if args.out:
        save_yaml(args.out, result)
    print_summary(result)
    return result


# ---------------------------------------------------------------- trajectories: templates

UNSEEN = "the clip does not show that"
# Kind of a question: the first pattern that matches; none if the clip does not show the answer.
QUESTION_PATTERNS = {
    "backwards": r"\b(?:backwards|reversed)\b",
    "uncovered": r"\bnothing (?:stood|hid)\b",
    "persistence": r"\bpersistent\b",
    "hidden": r"\bhidden\b",
    "direction": r"\b(?:which way|direction|heading)\b",
    "count": r"\b(?:how many|count)\b",
    "frames": r"\b(?:frames|when)\b",
    "describe": r"^describe\b",
}
DIRECTIONS = [word for row in WORDS["direction"] for word in row]
OPPOSITE = dict(zip(DIRECTIONS, DIRECTIONS[::-1], strict=True))


def frames_text(spans):
    """[[0, 9], [14, 31]] -> "frames 0 to 9 and 14 to 31"; [[7, 7]] -> "frame 7"."""
    return f"frame{'s' * (spans != [[spans[0][0]] * 2])} " + " and ".join(
        f"{a} to {b}" if b > a else f"{a}" for a, b in spans
    )


def describe_track(fact):
    """The sentences about one object, in the words of data.py, without facts that are None. Never visible: not there."""
    if not fact["visible"]:
        return f"There is no {fact['object']}."
    first, last = (fact["present"] or fact["visible"])[0][0], (fact["present"] or fact["visible"])[-1][1]
    span = {
        None: f"is seen in {frames_text(fact['visible'])}",
        "stays": f"is there in frames {first} to {last}",
        "enters": f"enters in frame {first}",
        "leaves": f"leaves in frame {last}",
        "passes": f"enters in frame {first} and leaves in frame {last}",
        "appears": f"appears in frame {first}",
        "vanishes": f"vanishes in frame {last}",
    }[fact["why"]]
    text = f"The {fact['object']} is {'persistent' if fact['persistent'] else 'transient'}: it {span}."
    if fact["direction"]:
        text += " It is still." if fact["direction"] == "still" else f" It moves {fact['direction']}."
    if fact["hidden"] is not None:
        text += f" It is {'hidden in ' + frames_text(fact['hidden']) if fact['hidden'] else 'never hidden'}."
    return text


def sentence_of_count(n):
    return "There is 1 coloured object." if str(n) == "1" else f"There are {n} coloured objects."


def answer_with(fact, question, count):
    """The answer that follows from the facts about an object, in the words of data.py; UNSEEN if they lack it."""
    patterns = QUESTION_PATTERNS.items()
    kind = next((kind for kind, pattern in patterns if re.search(pattern, question.lower())), None)
    if kind == "count":
        return str(count)
    if kind == "describe":
        return describe_track(fact)
    if not fact["visible"]:
        return f"there is no {fact['object']}"
    keys = {
        "persistence": "persistent",
        "frames": "visible",
        "backwards": "direction",
        "uncovered": "present",
    }
    value = fact[keys.get(kind, kind)] if kind else None
    if value is None:
        return UNSEEN
    if kind == "persistence":
        return "persistent" if value else "transient"
    if kind in ("direction", "backwards"):
        return value if kind == "direction" else OPPOSITE[value]
    return frames_text(value) if value else "it is never hidden"


def true_fact(item, name):
    return next((t for t in item["tracks"] if t["object"] == name), {"object": name, "visible": []})


def tracker_fact(name, persistence, scores, threshold):
    """The facts about an object that follow from a tracker's output: visible where its scores [T] exceed the threshold.

    A persistent object is present throughout, and hidden where it is not visible. Unknown (None): the direction, and
    where a transient object is hidden."""
    seen, end = (scores > threshold).tolist(), len(scores) - 1
    persistent = bool(persistence > 0.5)
    found = {"object": name, "persistence": float(persistence), "persistent": persistent}
    found |= {"why": "stays" if persistent else None, "visible": runs(seen), "direction": None}
    hidden = runs([not s for s in seen]) if persistent else None
    return found | {"present": [[0, end]] if persistent else None, "hidden": hidden}


def runs(there):
    """[[first, last], ...] of each run of true values."""
    edges = [t for t in range(len(there) + 1) if (t < len(there) and there[t]) != (t > 0 and there[t - 1])]
    return [[a, b - 1] for a, b in zip(edges[::2], edges[1::2], strict=True)]


# ---------------------------------------------------------------- trajectories: the methods answer

# Templates from the truth (the upper bound) and from the tracker's output; a language model given that output as
# text, or the embedding as soft tokens; a tuned and a plain VLM given frames; baselines: the majority answer of the
# train clips, and the language model without any input about the clip.
METHODS = "truth", "metadata", "text", "soft", "tuned", "vlm", "majority", "blind"
# kinds of question whose answer depends on the object of the question
FOLLOW = "persistence", "frames", "direction", "hidden", "whatif"
# in place of the soft tokens: nothing, another clip's, another object's, noise, the tracker's output as text
ABLATIONS = "on", "off", "shuffled", "swapped", "gaussian", "label"
HINT = (
    "The clip has {} frames, numbered from 0. Answer in a few words: persistent or transient; frames 4 to 21; a direction such as up left, or still; it is never hidden; a number; "
    # for models that were not trained on these words
    "there is no such object; or: the clip does not show that."
)


class Question(NamedTuple):
    item: int  # index of the clip
    kind: str
    name: str  # of the object; "" for all objects
    question: str
    answer: str = ""


def sample_per_kind(every, n, g):
    """n questions of each kind, at random."""
    chosen = []
    for kind in QUESTION_KINDS:
        here = [a for a in every if a.kind == kind]
        chosen += [here[j] for j in torch.randperm(len(here), generator=g)[:n]]
    return chosen


def questions_of_items(items):
    return [
        Question(k, kind, name, *turn)
        for k, item in enumerate(items)
        for (kind, name), turn in zip(item["topics"], item["turns"], strict=True)
    ]


def sample_questions(items, n, seed):
    """(n questions of each kind, questions whose answers form the descriptions of n clips)."""
    g = torch.Generator().manual_seed(seed)
    asks, describing = sample_per_kind(questions_of_items(items), n, g), []
    for k in torch.randperm(len(items), generator=g)[:n].tolist():
        for name in items[k]["names"]:
            describing.append(Question(k, "describe", name, DESCRIBE_NAME.format(name)))
        count = str(items[k]["count"])
        describing.append(Question(k, "count", "", "How many coloured objects are there?", count))
    return asks, describing


def majority_answers(asks, train):
    """For each question the majority answer to its kind in `train`; for a description the majority sentences."""
    seen = [
        (a.kind, a.answer.replace(a.name, "{}") if a.name else a.answer) for a in questions_of_items(train)
    ]
    seen += [("describe", describe_track(t).replace(t["object"], "{}")) for i in train for t in i["tracks"]]
    majority_answer = {}
    for kind in dict.fromkeys(k for k, _ in seen):
        here = [a for k, a in seen if k == kind]
        majority_answer[kind] = max(sorted(set(here)), key=here.count)
    return [majority_answer[a.kind].replace("{}", a.name) for a in asks]


class Notes:
    """The tracker's output about the objects of clips (tracks.pt), by clip and name."""

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
            fail(f"{path} lacks {lacking[0]!r} and {len(lacking) - 1} more; run track.py for this --data")

    def row(self, k, name):
        """The row of an object; for name "" that of the clip's first object."""
        return self.rows[track_id(self.items[k], name)]

    def fact(self, k, name):
        row = self.row(k, name)
        return tracker_fact(name, self.tracks["persistence"][row], self.tracks["scores"][row], self.threshold)

    def count(self, k):
        """The number of visible objects among the clip's own and the absent one."""
        return sum(
            bool(self.fact(k, name)["visible"]) for name in (*self.items[k]["names"], self.items[k]["absent"])
        )

    def text(self, k, name):
        name = name or (*self.items[k]["names"], self.items[k]["absent"])[0]
        fact = self.fact(k, name)
        return metadata_text(name, fact["persistence"], fact["visible"], None, fact["hidden"], self.count(k))

    def embeddings(self, asks, how="on", seed=0):
        """[n, 512]: of the objects of the questions, or of one of ABLATIONS."""
        g, rows = torch.Generator().manual_seed(seed), [self.row(a.item, a.name) for a in asks]
        if how == "shuffled":
            elsewhere = [[k for k in range(len(self.items)) if k != a.item] or [a.item] for a in asks]
            rows = [
                self.row(clips[int(torch.randint(len(clips), (), generator=g))], "") for clips in elsewhere
            ]
        if how == "swapped":
            rows = [self.row(a.item, neighbour(self.items[a.item], a.name)) for a in asks]
        x = self.tracks["embedding"][rows]
        return (
            F.normalize(torch.randn(x.shape, generator=g), dim=1) * x.norm(dim=1, keepdim=True)
            if how == "gaussian"
            else x
        )


def neighbour(item, name):
    """The next object of a clip (cyclic)."""
    names = item["names"]
    return names[(names.index(name) + 1) % len(names)] if name in names else name


def vlm_answers(name, model, processor, items, asks, k, size, batch, hint):
    """The answers of a vision-language model given k frames of each clip; equal questions share a batch.

    hint: prepend the possible answers and the indices of the frames."""
    texts, together = [""] * len(asks), {}
    for n, a in enumerate(asks):
        together.setdefault((a.question, len(items[a.item]["frames"])), []).append(n)
    with tqdm(total=len(asks), desc=name, unit="question") as bar:
        for (question, length), members in together.items():
            at = spread(length, k)
            for some in (members[n : n + batch] for n in range(0, len(members), batch)):
                shown = [items[asks[n].item]["frames"][at] for n in some]
                shown = torch.stack([frames_of({"frames": x}, size) for x in shown])
                prefix = f"{HINT.format(length)} You see frames {', '.join(map(str, at))}. " if hint else ""
                found = answers_to(model, processor, shown, prefix + question, (at, length))
                for n, text in zip(some, found, strict=True):
                    texts[n] = text
                bar.update(len(some))
    return texts


# ---------------------------------------------------------------- trajectories: scores


def descriptions(asks, texts):
    """{index of the clip: its description}: sentences about each of its objects and about their number."""
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


def score_claims(items, described, seed):
    """Precision of claims and rate of omitted facts, in all and by kind. described: for each seed {clip: description}."""
    true = []
    facts = []
    unparsed = 0
    sentences = 0
    unchecked = 0
    for texts in described:
        for k, text in texts.items():
            claims, without_claim = parse_claims(text, items[k]["names"], len(items[k]["frames"]))
            checked = [(c.kind, check_claim(c, items[k])) for c in claims]
            missing, every = omitted(claims, items[k])
            true += [(items[k]["source"], kind, float(t)) for kind, t in checked if t is not None]
            facts += [(items[k]["source"], kind, float((name, kind) in missing)) for name, kind in every]
            unparsed += without_claim
            unchecked += sum(t is None for _, t in checked)
            sentences += len(sentences_of(text))
    row = {
        "claims": len(true),
        "unparsed": unparsed / max(sentences, 1),
        "unchecked": unchecked / max(unchecked + len(true), 1),
    }
    for key, rows in (("claim_precision", true), ("omission", facts)):
        for end, part in [
            ("", rows),
            *(
                (f"_{kind}", [r for r in rows if r[1] == kind])
                for kind in CLAIMS
                if key == "claim_precision" or kind != "absence"
            ),
        ]:
            row |= mean_and_interval(key + end, torch.tensor([r[2] for r in part]), [r[0] for r in part])
    return row


def method_row(items, asks, runs, seed):
    """({columns of the table}, 0/1 [seeds, questions]) of a method; runs: for each seed its answers to `asks`."""
    sources, kinds = [items[a.item]["source"] for a in asks], [a.kind for a in asks]
    correct, abstained, f1 = [], [], []
    for texts in runs:
        pairs = list(zip(asks, texts, strict=True))
        correct.append([float(answer_is_correct(a.kind, text, a.answer, a.name)) for a, text in pairs])
        values = [parse_answer(text, "persistence", a.name) for a, text in pairs]
        abstained.append([float(value in UNANSWERABLE) for value in values])
        f1.append([frame_f1(text, a.answer, a.name) for a, text in pairs if a.kind == "frames"])
    correct, abstained = torch.tensor(correct), torch.tensor(abstained)
    row = {"questions": len(asks)} | mean_and_interval("accuracy", correct, sources)

    def of(*some):
        return [m for m, kind in enumerate(kinds) if kind in some]

    for kind in dict.fromkeys(kinds):
        row |= mean_and_interval(kind, correct[:, of(kind)], [sources[m] for m in of(kind)])
    with_answer = [kind for kind in QUESTION_KINDS if kind not in UNANSWERABLE]
    for key, some in (("abstains", UNANSWERABLE), ("abstains_wrongly", with_answer)):
        row |= mean_and_interval(key, abstained[:, of(*some)], [sources[m] for m in of(*some)])
    row |= mean_and_interval("frame_f1", torch.tensor(f1), [sources[m] for m in of("frames")])
    return row, correct


def changed_questions(items, altered, n, g):
    """n questions of each kind of FOLLOW and of count whose true answer differs in the changed clips.

    Returns [(question about the changed clip, the answer that was true before)]."""
    there, truth = {item["id"]: k for k, item in enumerate(altered)}, {}
    for a in questions_of_items(altered):
        truth[altered[a.item]["id"], a.kind, a.name, answer_kind(a.kind, a.answer)] = a.answer
    pairs = {}
    for a in questions_of_items(items):
        k = there.get(items[a.item]["id"])
        new = truth.get((items[a.item]["id"], a.kind, a.name, answer_kind(a.kind, a.answer)))
        if k is not None and new is None and altered[k].get("removed") == a.name:
            new = f"there is no {a.name}"
        if (
            k is not None
            and new is not None
            and a.kind in (*FOLLOW, "count")
            and not answer_is_correct(a.kind, new, a.answer, a.name)
        ):
            pairs[a._replace(item=k, answer=new)] = a.answer
    return [(a, pairs[a]) for a in sample_per_kind(list(pairs), n, g)]


def score_changes(items, pairs, runs, seed):
    """The share of answers that state what is true of the changed clips (new), and what was true before (old)."""
    sources, row = [items[a.item]["source"] for a, _ in pairs], {"questions": len(pairs)}
    for key, truths in (("new", [a.answer for a, _ in pairs]), ("old", [old for _, old in pairs])):
        correct = [
            [
                float(answer_is_correct(a.kind, text, truth, a.name))
                for (a, _), text, truth in zip(pairs, texts, truths, strict=True)
            ]
            for texts in runs
        ]
        row |= mean_and_interval(key, torch.tensor(correct), sources)
    return row


def score_ablations(items, asks, runs, seed):
    """({ablation: its row}, {ablation: paired test of the embedding against it}), over questions about one object.

    runs: {ablation: for each seed the answers}."""
    two = [n for n, a in enumerate(asks) if len(items[a.item]["names"]) > 1]
    sources = [items[a.item]["source"] for a in asks]
    scores = {
        how: torch.tensor(
            [
                [
                    float(answer_is_correct(a.kind, text, a.answer, a.name))
                    for a, text in zip(asks, texts, strict=True)
                ]
                for texts in answers
            ]
        )
        for how, answers in runs.items()
    }
    table, tests = {}, {}
    for how, correct in scores.items():
        # the only object of a clip has none to be exchanged with
        some = two if how == "swapped" else range(len(asks))
        table[how] = {"questions": len(some)} | mean_and_interval(
            "accuracy", correct[:, some], [sources[m] for m in some]
        )
        if how != "on" and some:
            tests[how] = paired_test(
                scores["on"][:, some], correct[:, some], [sources[m] for m in some], seed=seed
            )
            table[how] |= {key.replace("gain", "loss"): value for key, value in tests[how].items()}
    for how, p in holm({how: test["p"] for how, test in tests.items()}).items():
        table[how]["p_holm"] = p
    if two:  # given another object's embedding, is the answer true of that object?
        truths = {
            n: answer_with(
                true_fact(items[asks[n].item], neighbour(items[asks[n].item], asks[n].name)),
                asks[n].question,
                0,
            )
            for n in two
        }
        apart = [n for n in two if not answer_is_correct(asks[n].kind, truths[n], asks[n].answer)]
        correct = [
            [float(answer_is_correct(asks[n].kind, texts[n], truths[n], asks[n].name)) for n in apart]
            for texts in runs["swapped"]
        ]
        table["swapped"] |= mean_and_interval(
            "true_of_other", torch.tensor(correct), [sources[n] for n in apart]
        )
    return table, tests


def draw_claims(path, items, clips, described, notes, shown=8):
    """explain-trajectories.png: frames of a few clips, the tracker's attention, and the spans of each object (hatched: hidden).

    Spans are those of the truth and of each description; described: {method: {index of the clip: description}}."""
    import matplotlib
    from matplotlib.figure import Figure

    def bars(name, text, names, length):
        """(spans of presence, spans in which it is hidden, other claims as words) of a description."""
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

    count, rows = [len(items[k]["names"]) for k in clips], ["truth", *described]
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
                for y, method in enumerate(rows):
                    text = items[k]["text"] if method == "truth" else described[method][k]
                    there, hidden, words = bars(name, text, names, length)
                    for spans, look in (
                        (there, {"color": colours[method]}),
                        (hidden, {"facecolor": "white", "edgecolor": "0.3", "hatch": "/////", "lw": 0.5}),
                    ):
                        axis.broken_barh(
                            [(a - 0.5, b - a + 1) for a, b in spans], (len(rows) - 1.35 - y, 0.7), **look
                        )
                    labels.append(", ".join([method, *words]))
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


def check_trajectory_inputs(args):
    """Read and check all inputs before a model is loaded."""
    if args.questions < 1 or args.batch < 1:
        fail(f"--questions {args.questions} and --batch {args.batch} are not positive; give 1 or more")
    w = SimpleNamespace(
        shown=(args.frames or "8").split(",")[-1], changed={}, adapted={}, folders=[], notes=None
    )
    w.every, w.index = trajectory_folder(args.data)
    w.items, w.train = ([i for i in w.every if split_of(i["source"]) == part] for part in ("test", "train"))
    if not w.items or not w.train:
        fail(f"{args.data} has {len(w.train)} train and {len(w.items)} test clips; give more")
    if args.words and not args.embeddings:
        fail(f"--words {args.words} needs embeddings; give --embeddings, the tracks.pt of --data")
    if args.embeddings:
        w.notes = Notes(args.embeddings, w.every, w.items)
    if args.words:
        w.adapted = load_yaml(Path(args.words) / "tune-words.yaml", "tune")
        w.folders = sorted(Path(args.words).glob("seed*"))
        if not w.folders:
            fail(f"{args.words} holds no folder seed<i>; run tune.py words, which writes them")
    language = args.language or w.adapted.get("run", {}).get("arguments", {}).get("language")
    w.entry, w.vlm, w.tuned = (
        find_model(name) if name else None for name in (language, args.vlm, args.tuned)
    )
    if w.entry and w.entry["kind"] != "language":
        fail(f"--language {language} is a {w.entry['kind']}; give a language model, say tiny-words")
    for flag, entry in (("--vlm", w.vlm), ("--tuned", w.tuned)):
        if entry:
            check_asked(entry, flag)
    if not w.shown.isdecimal() or int(w.shown) < 2:
        fail(f"--frames {args.frames} is not a number of 2 or more; give, say, 8")
    for given in args.changed or ():
        name, _, where = given.partition("=")
        folder, _, embeddings = where.rpartition(":")
        if not (name and folder and embeddings):
            fail(f"--changed {given} is not NAME=DATA:EMBEDDINGS, say reversed=data/x:results/x/tracks.pt")
        if not w.notes:
            fail(f"--changed {given} needs --embeddings, the tracks.pt of --data")
        altered, _ = trajectory_folder(folder)
        here = [i for i in altered if split_of(i["source"]) == "test"]
        if not {i["id"] for i in here} & {i["id"] for i in w.items}:
            fail(f"{folder} has no test clip of {args.data}; make it with data.py trajectories --change")
        w.changed[name] = here, Notes(embeddings, altered, here, w.notes.threshold)
    w.out = Path(args.out or Path(args.embeddings or args.data).parent / "explain-trajectories.yaml")
    check_writable(w.out)
    return w


def all_answers(args, w, parts, altered, device, dtype):
    """({part: {method or ablation: for each seed {texts, seconds, memory}}}, how the language model is prompted).

    parts: {name: (questions, clips, tracker's output)} for every method; altered: the same of changed clips, for methods
    that read the tracker's output. Answers of an earlier run with equal inputs are reused."""
    hint = HINT.format(TIMES) if w.entry and w.entry["weights"] != "small" else ""
    of_language = [fingerprint(w.entry), hint] if w.entry else []
    path, answers = w.out.with_name(f"{w.out.stem}-answers.pt"), {}
    earlier = load_pt(path, ANSWERS).get("answers", {}) if path.is_file() else {}
    follow = {
        "follow": (
            [a for a in parts["questions"][0] if a.kind in FOLLOW],
            *parts["questions"][1:],
        )
    }
    frames = {
        name: digest(b"".join(digest(i["frames"].numpy().tobytes()).encode() for i in here))
        for name, (_, here, _) in (parts | follow | altered).items()
    }

    def add_answers(method, answer_all, facts, parts):
        """Add answer_all(questions, clips, notes) for each part; facts: what else the answers depend on (None: no cache)."""
        for part, (asks, items, notes) in parts.items():
            stamp = facts and digest(
                repr(
                    (
                        asks,
                        frames[part],
                        notes and (notes.digest, [notes.text(a.item, a.name) for a in asks]),
                        facts,
                        str(dtype),
                    )
                ).encode()
            )
            compute = functools.partial(answer_all, asks, items, notes)
            run = cached(f"{method}/{part}", stamp, compute, earlier, path)
            answers.setdefault(part, {}).setdefault(method.rstrip("0123456789"), []).append(run)

    add_answers(
        "truth",
        lambda asks, items, notes: [
            answer_with(true_fact(items[a.item], a.name), a.question, items[a.item]["count"]) for a in asks
        ],
        None,
        parts,
    )
    add_answers("majority", lambda asks, items, notes: majority_answers(asks, w.train), None, parts)
    if w.notes:
        add_answers(
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
        earlier["language"] = {"prompts": "chat template" if tokenizer.chat_template else "plain lines"}
        if not tokenizer.chat_template:
            print(f"{w.entry['name']} has no chat template; its prompts are plain lines", file=sys.stderr)
        return model, tokenizer

    def from_language(asks, context, model=None, soft=None):
        base, tokenizer = language()
        return answered(
            model or base,
            tokenizer,
            [word_prompt(tokenizer, a.question, context(a)) for a in asks],
            soft,
            LONGEST,
            8 * args.batch,
        )

    if w.entry:
        add_answers(
            "blind", lambda asks, items, notes: from_language(asks, lambda a: hint), of_language, parts
        )
    if w.entry and w.notes:
        add_answers(
            "text",
            lambda asks, items, notes: from_language(
                asks, lambda a: f"{hint} {notes.text(a.item, a.name)}".strip()
            ),
            of_language,
            parts | altered,
        )
    for s, folder in enumerate(w.folders):

        @functools.cache
        def reader(folder=folder):
            return load_words(folder, language()[0], w.entry["name"])

        def from_soft_tokens(asks, items, notes, how="on", reader=reader):
            model, soft = reader()
            with torch.inference_mode():
                tokens = (
                    None
                    if how in ("off", "label")
                    else soft(notes.embeddings(asks, how, args.seed).to(device))
                )
            return from_language(
                asks, lambda a: notes.text(a.item, a.name) if how == "label" else "", model, tokens
            )

        add_answers(f"soft{s}", from_soft_tokens, (of_language, fingerprint(folder)), parts | altered)
        for how in ABLATIONS[1:]:
            add_answers(
                f"{how}{s}",
                functools.partial(from_soft_tokens, how=how),
                (of_language, fingerprint(folder), args.seed),
                follow,
            )
        if reader.cache_info().currsize:
            reader()[0].unload()
    for method, entry in (("vlm", w.vlm), ("tuned", w.tuned)):
        if entry:
            load = functools.cache(functools.partial(load_to_answer, entry, device, dtype))
            size = args.size or entry["clip"]

            def from_frames(
                asks,
                items,
                notes,
                entry=entry,
                load=load,
                size=size,
                hint=method == "vlm" and entry["weights"] != "small",
            ):
                return vlm_answers(entry["name"], *load(), items, asks, int(w.shown), size, args.batch, hint)

            add_answers(method, from_frames, (fingerprint(entry), w.shown, size, args.batch), parts)
    return answers, earlier["language"]["prompts"] if w.entry else None


def run_trajectories(args, started):
    """Write explain-trajectories.yaml: accuracy, claim precision and omissions of every method, ablations and changed clips."""
    w = check_trajectory_inputs(args)
    device, dtype, why = choose_device()
    seeing = {"vlm": w.vlm, "tuned": w.tuned}
    print(f"device {device.type} ({why})")
    asks, describing = sample_questions(w.items, args.questions, args.seed)
    pairs = {
        name: [
            p
            for p in changed_questions(
                w.items, here, args.questions, torch.Generator().manual_seed(args.seed)
            )
            if track_id(here[p[0].item], p[0].name) in notes.rows
        ]
        for name, (here, notes) in w.changed.items()
    }
    parts = {"questions": (asks, w.items, w.notes), "descriptions": (describing, w.items, w.notes)}
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

    table, scores, described = {}, {}, {}
    for name in (n for n in METHODS if n in texts["questions"]):
        described[name] = [descriptions(describing, run) for run in texts["descriptions"][name]]
        costs = answers["descriptions"][name]
        table[name], scores[name] = method_row(w.items, asks, texts["questions"][name], args.seed)
        table[name] |= score_claims(w.items, described[name], args.seed) | {
            "seeds": len(costs),
            "seconds_per_clip": sum(run["seconds"] for run in costs) / len(costs) / len(described[name][0]),
            "memory_gb": max(run["memory"] or 0 for run in costs) / 1e9 or None,
        }
    if w.folders:
        table["soft"] |= {
            f"training_{key}": w.adapted.get(key)
            for key in ("seconds_per_seed", "parameters", "peak_memory_bytes", "forgetting")
        }
    if w.tuned and (record := Path(w.tuned["path"]).parent / "tune.yaml").is_file():
        examples = load_yaml(record, "tune")
        table["tuned"] |= {
            "training_seconds_per_seed": examples["seconds_per_step"] * examples["steps"],
            "training_peak_memory_bytes": examples["run"]["peak_memory_gb"] * 1e9,
            **{f"training_{key}": examples[key] for key in ("parameters", "forgetting")},
        }
    main = next(name for name in ("soft", "text", "metadata", "tuned", "vlm", "majority") if name in table)
    sources = [w.items[a.item]["source"] for a in asks]
    against = {
        name: paired_test(scores[main], scores[name], sources, seed=args.seed)
        for name in table
        if name not in (main, "truth")
    }
    for name, p_value in holm({name: test["p"] for name, test in against.items()}).items():
        against[name]["p_holm"] = p_value

    result = {
        "stage": "trajectories",
        "method": main,
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
        None if table[main]["claims"] else "the descriptions make no claim that can be checked"
    )
    follow = [n for n, a in enumerate(asks) if a.kind in FOLLOW]
    shown = {
        "on": [[run[n] for n in follow] for run in texts["questions"].get("soft", [])],
        **texts.get("follow", {}),
    }
    ablations, tests = (
        score_ablations(w.items, [asks[n] for n in follow], shown, args.seed) if w.folders else ({}, {})
    )
    result |= {
        "words_follow_image": verdict(*(tests[how] for how in ("shuffled", "swapped") if how in tests))
        if tests
        else None,
        "words_follow_image_reason": None if tests else "needs --words: soft tokens to remove or exchange",
        **{f"follow_{how}": row["accuracy"] for how, row in ablations.items()},
    }
    changes = {
        name: {
            method: score_changes(w.changed[name][0], pairs[name], runs_of, args.seed)
            for method, runs_of in texts[name].items()
        }
        for name in pairs
    }
    result |= {
        f"{name}_{key}": rows[main][key]
        for name, rows in changes.items()
        if main in rows
        for key in ("new", "old")
    }

    # the clips with most events
    clips = sorted(
        described[main][0],
        key=lambda k: (
            -len({t["why"] for t in w.items[k]["tracks"]}) - any(t["hidden"] for t in w.items[k]["tracks"]),
            k,
        ),
    )[:3]
    draw_claims(
        w.out.with_suffix(".png"),
        w.items,
        clips,
        {
            name: described[name][0]
            for name in ("metadata", "text", "soft", "tuned", "vlm")
            if name in described
        },
        w.notes,
    )
    result |= {
        "questions_per_kind": args.questions,
        "clips_described": len(described[main][0]),
        "prompts": prompts,
        "methods": table,
        "ablations": ablations,
        "changed": changes,
        "comparisons": {f"{main}_over_{name}": test for name, test in against.items()},
        "examples": {
            "clip": w.items[clips[0]]["id"],
            **{name: texts_of[0][clips[0]] for name, texts_of in described.items()},
        },
        **{f"{name}_precision": precision_of(x, device, dtype) for name, x in seeing.items() if x},
        "run": run_record(args, started, device, why, dtype, w.entry),
    }
    save_yaml(w.out, result)
    print_summary(result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "ask": "the model's answers about a data folder, or about your own image or video",
            "binding": "a probe of place and motion beside the model's answers",
            "frames": "which choice of frames of a clip gives the best answers",
            "semantic": "generated clips: do the answers name the prompted direction?",
            "describe": "generated or real clips: do the answers name the action?",
            "trajectories": "are answers about objects that enter, leave and hide true?",
        },
    )
    add = jobs["ask"].add_argument
    add("--model", default="tiny", help="the vision-language model")
    add("--base", metavar="FOLDER", help="the base model of an adapter, where its own is not here")
    add("--data", help="a data folder: questions about its test items, written to answers.pt")
    add("--random-init", action="store_true", help="with --data: untrained weights")
    add("--revision", help="with --data: branch, tag or commit of a hub repository")
    add("--batch", type=int, default=8, help="with --data: micro-batch")
    add("--image", nargs="+", metavar="FILE", help="an image, or several together")
    add("--clip", metavar="FILE", help="a video")
    add("--question", help="a question about --image or --clip")
    add("--frames", help="with --clip: number of frames (default: 16)")
    add("--choose", choices=CHOICES, help="with --clip: how frames are chosen (default: uniform)")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--out", help="default: results/<model>/<data>/answers.pt; with --question a YAML")
    add = jobs["binding"].add_argument
    add("--features", default="results/tiny/shapes/features", help="a folder that extract.py wrote")
    add("--answers", required=True, help="the answers.pt of `ask` about the same data")
    add("--data", help="the data folder (default: that of the features)")
    add("--points", help="points, separated by commas (default: all in the index)")
    add("--out", help="default: binding.yaml beside --features")
    add = jobs["frames"].add_argument
    add("--model", default="tiny", help="a Qwen model")
    add("--base", metavar="FOLDER", help="the base model of an adapter, where its own is not here")
    add("--data", default="data/waiting", help="a data folder of clips with questions")
    add(
        "--frames",
        default="motion,uniform,random,scene",
        help="methods of choosing; the first is compared with the others",
    )
    add("--count", type=int, default=8, help="number of frames")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=8, help="micro-batch")
    add("--random-init", action="store_true", help="the same architecture with untrained weights")
    add("--revision", help="branch, tag or commit of a hub repository")
    add("--out", help="default: results/<model>/<data>/frames.pt, and a YAML beside it")
    add = jobs["semantic"].add_argument
    add("--generated", required=True, help="the generated clips of video.py coherence")
    add("--answers", required=True, help="the answers.pt of `ask` about them")
    add("--out", help="default: explain-semantic.yaml beside --generated")
    add = jobs["describe"].add_argument
    add("--generated", required=True, help="generated clips, or clips with an action or a direction")
    add("--model", default="tiny", help="the vision-language model")
    add("--base", metavar="FOLDER", help="the base model of an adapter, where its own is not here")
    add("--frames", help="numbers of frames, separated by commas (default: 3,8,16)")
    add("--clips", type=int, help="number of test clips (default: all)")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: explain-describe.yaml beside --generated")
    add = jobs["trajectories"].add_argument
    add("--data", default="data/trajectories", help="clips of data.py trajectories")
    add("--embeddings", metavar="FILE", help="tracks.pt of --data")
    add("--language", metavar="MODEL", help="a causal language model (default: the one of --words)")
    add("--words", metavar="FOLDER", help="the folder that tune.py words wrote")
    add("--vlm", metavar="MODEL", help="a vision-language model, given frames")
    add("--tuned", metavar="MODEL", help="a vision-language model that tune.py trained on these questions")
    add("--frames", help="number of frames for --vlm and --tuned (default: 8)")
    add("--questions", type=int, default=60, help="questions of each kind, and clips to describe")
    add("--changed", nargs="+", metavar="NAME=DATA:EMBEDDINGS", help="clips of data.py trajectories --change")
    add("--size", type=int, help="side in pixels (default: the registry's for the model)")
    add("--batch", type=int, default=16, help="clips at a time")
    add("--out", help="default: explain-trajectories.yaml beside --embeddings")
    return p.parse_args(argv)


def run_binding(args, started):
    """Write binding.yaml: what a probe decodes of the test items' place and motion, beside the model's answers."""
    index, read = load_features(args.features)
    items, _ = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "binding.yaml")
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        fail(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    points = [p for p in points if p in with_grid(index)]
    if "boxes" not in items[0]:
        fail(f"{index['data_path']} has no boxes, which questions about place need")
    result = {"stage": "binding", "model": index["model"], "weights": index["weights"], "data": index["data"]}
    result |= binding(args, items, split, read, points, index["model"])
    result["run"] = run_info(args, started, script="explain.py")
    save_yaml(out, result)
    print_summary(result)
    return result


def run_ask(args, started):
    """Questions about a data folder (`ask_about_data`), or about images or a video (`ask_about_media`)."""
    given = [flag for flag in ("image", "clip", "question", "frames", "choose") if getattr(args, flag)]
    if bool(args.data) == bool(given):
        fail("ask needs either --data, or --question and --image or --clip")
    return ask_about_data(args, started) if args.data else ask_about_media(args, started)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.mode == "semantic":
        args.out = Path(args.out or Path(args.generated).parent / "explain-semantic.yaml")
        check_writable(args.out)
    run = {"ask": run_ask, "binding": run_binding, "frames": run_frames}
    run |= {"semantic": run_semantic, "describe": run_describe, "trajectories": run_trajectories}
    return run[args.mode](args, started)


if __name__ == "__main__":
    main()
