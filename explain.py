"""Stage 7. Is what the model says true, and does it say what can be read from it?

    python explain.py --features results/tiny/shapes/features --answers results/tiny/shapes/answers.pt    # writes binding.yaml
    python explain.py --films results/tiny/moving/films --answers results/tiny/moving/films-answers.pt    # writes explain-films.yaml

Reads features and the model's own answers (extract.py --ask), and the truth beside their pictures (data.py). binding.yaml asks of the test items:

    <kind>_own       what it answers, parsed: one of the nine words for a place (for motion: eight and still), IoU for a box; unparsed answers score 0
    <kind>_probe     place, direction: a ridge from every token to what it holds finds the tokens of the object asked about, another from a token to the column
                     and the row (or the two signs) of its object says where; layer chosen on val. box: the ridge of bbox_iou
    <kind>_gap       probe less own, paired;  <kind>_withheld: yes, no or inconclusive: does the probe beat both the model and its own best floor?

In the tables `told` is the same probe where truth tells it the tokens. The caption stands there as an answer that has nothing to do with place.

With --films, of predict.py: does a model that watches generated films say the way that was asked for? explain-films.yaml holds for every conditioning the share of answers
that do, asked openly and with the words listed, and semantic_accuracy: of the main conditioning, asked in the way in which the clips themselves are answered better.

    python explain.py --mode describe --model tiny --films results/tiny/future/films --frames 3,8,16 --out results/tiny/future/explain-describe.yaml

asks the model itself what happens in films, or in a folder of clips that have an action or a direction, by a number of frames. Of the test clips:

    action_recall_real, _generated   the share of clips, and of films of the main conditioning, whose action is said; asked openly (the item's own question), with the actions
                                     listed, or for a sentence: in the way, and with the number of frames, in which more real clips' actions are said
    retention                        generated over real, paired by clip; of the other conditionings too (vae: the clip through the autoencoder, copy: its last frame seen)
    yes_bias, yes_gap                how often "does it do this?" is answered yes when it does not; how much more often when it does

Floors are films that show no action (copy, frozen), what is said of other clips (other_item) and the commonest action. Answers are kept in <out>-answers.pt; a run that was killed goes on.
<out>-said.pt holds which of the actions each film's answer names, bool `said` [films, actions], as scored: for verify.py --words.

    python explain.py --mode trajectories --data data/trajectories --embeddings results/tiny/trajectories/tracks.pt --words results/tiny/trajectories/words \\
        --changed reversed=data/trajectories-reversed:results/tiny/trajectories-reversed/tracks.pt

asks writers the same questions about the objects of clips (data.py trajectories), and for descriptions, and checks every claim against the truth. A row of explain-trajectories.yaml for each:

    truth, metadata    templates: of the truth (the ceiling), and of what a video model notes of an object: persistent or not, and in which frames it is seen
    text, soft         a causal language model (--language) that is given these notes as text, or the embedding as soft tokens under LoRA (--words, of adapt.py --mode words)
    vlm                a vision-language model (--vlm) that is shown frames, and was taught nothing
    tuned              one that adapt.py --mode tune has taught such questions (--tuned)
    commonest, blind   floors: the commonest answer of the train clips to such a question, and the language model that is given nothing

    accuracy, <kind>   share of answers that are right, in whatever words; frame_f1: of the frames that it says an object is seen in
    claim_precision    share of the claims of its descriptions that are true; omission: share of the facts that no true claim states; both by kind, too; unparsed: sentences without a claim
    abstains           of questions that the clip does not answer the share that it says so of; abstains_wrongly: of the others
    order_<kind>       share of answers that stay when the options are listed in another order

words_follow_picture: yes, no or inconclusive: are answers worse with the embedding of another clip's or of another object in place of the right one? `ablations` has every such test,
`changed` the share of answers that say what has become true of changed clips beside the share that repeats what was. explain-trajectories.png shows a few clips, and when who is said to be there.

    python explain.py --image a.jpg --ask "What is in the picture?"                          # one's own picture; several are asked about together
    python explain.py --clip a.mp4 --ask "Which way does the red circle move?" --frames 16   # a video: so many of its frames, evenly spread, or --choose motion

print what --model says, word by word as it comes, and write nothing but --out, a YAML, if it is given. Every VLM of the registry that has a processor here takes one picture; several pictures
and videos those whose processor takes a chat about them.

    python explain.py --mode tracks --model tiny-tracker --data data/trajectories --out results/tiny/trajectories/tracks.pt

asks a tracker about every object of clips (data.py trajectories): in which frames is it seen, is it persistent? tracks.pt holds for ids "<clip>/<object>", of the absent object too,
fp16 embedding [N,512], scores [N,32] (probability that it is seen in a frame), attention [N,32] (sums to 1) and persistence [N] (probability), and in meta the threshold of the scores,
chosen on val. Any video model may write it: --embeddings FILE scores such a file. explain-tracks.yaml beside it says of the test clips' objects:

    persistence_accuracy   beside how long it is seen (duration, threshold chosen on val), whether in both the first and the last frame (ends), how much the clip moves (energy), the commonest answer
    frame_f1, _macro       of the frames in which it is seen, all tracks together and the mean of tracks, beside always and clock (the commonest answer of each frame in train);
                           copy, the truth of one second earlier, shows how little a frame's label needs seeing: no model has it
    segmental_f1_10 ... boundary_error   of the spans; boundary_error in frames
    absent_seen            how often what is absent is said to be seen in some frame; apart, where another object of its colour is there and where none is
    attention_<how>_<what> how much more what is said changes without the four frames of highest attention than without four others (showing the clip's mean, or their neighbours)

    python explain.py --mode operations --data data/operations --models tiny results/tiny/operations/tuned/model

asks vision-language models (the base first, what adapt.py --mode tune made of it last) what is done at the end of each test clip of data.py openpack, since when, until when, and what is next.
An answer that is no JSON is wrong, and who gives no time says "now". explain-operations.yaml has of the last model, and in `answers` of each:

    macro_f1, accuracy     of the operation now, beside majority, clock (train's commonest of those ten seconds of a session) and bigram (what follows the true operation before most often);
                           copy says what was true a second earlier, which is nearly always right and good for nothing, so it is no floor; _fixed: of the first 30 clips of U0108
    next_accuracy          beside commonest and bigram (what follows the true operation most often)
    start_error, end_error seconds off, on the mean, beside median: train's
    segmental_f1_10 ... boundary_error   of a session's clips in a row, the session being the unit; boundary_error in seconds
    answer                 PASS: macro_f1 is above that of the base and of every floor by an interval of the paired difference, sessions resampled; FAIL: surely not; or INCONCLUSIVE
    pair                   the operations confused most, and how many of these clips end at a change

explain-operations.png shows what was said of each operation, and frames of clips of that pair.

    python explain.py --mode report --results results --out results/report.html

makes one page for a person of the YAML and PNG of all stages, which needs no network and computes nothing again, and summary.md beside it: the verdicts, the evidence
for them, what could not be measured, and what is missing with the command that would make it.
"""

import base64
import functools
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path
from string import Template
from types import SimpleNamespace
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    ANSWERS,
    CHOICES,
    RATE,
    RESULT,
    TELL_OF,
    TIMES,
    TRACKS,
    WORDS,
    Items,
    answered,
    asked_object,
    attempt,
    bootstrap,
    box_iou,
    box_truth,
    chat,
    check_writable,
    choose_device,
    choose_frames,
    clusters,
    criterion,
    digest,
    find_model,
    fingerprint,
    fitted,
    frames_at,
    frames_of,
    holm,
    join,
    load_features,
    load_items,
    load_language,
    load_pt,
    load_tracks,
    load_vlm,
    load_words,
    load_yaml,
    metadata_text,
    motion_energy,
    opened,
    paired_test,
    parser,
    plain,
    presented,
    qwen_inputs,
    ratio,
    read_picture,
    refuse,
    resampled,
    resolved_commit,
    ridge,
    run_info,
    save_bytes,
    save_pt,
    save_text,
    save_yaml,
    say,
    split_indices,
    split_of,
    token_ridge,
    track_id,
    widened,
    with_grid,
    word_prompt,
)

EARLIER = int(RATE)  # frames: a second
DELETED = 4  # of 32 frames, to see whether what is said depends on them
LEAST = 0.05  # of the answers: a change rarer than that is none


# ---------------------------------------------------------------- what a model says: words and boxes in text

NUMBER = r"(-?\d+(?:\.\d+)?)"
# [a, b, c, d], the first of [[a,b,c,d;...]], (a,b),(c,d)
FOUR = re.compile(rf"[\[(]\s*{NUMBER}\s*,\s*{NUMBER}\s*(?:,|\)\s*,?\s*\()\s*{NUMBER}\s*,\s*{NUMBER}\s*[\]);]")


def parse_box(text, scale="thousandths", side=None):
    """The first box in an answer, xyxy in 0..1, or None: what stands there is no box, or lies outside the picture.

    scale of bare numbers: thousandths, fractions, or pixels of a picture of `side` px, or of (width, height); fractions are recognised under any scale. Kosmos-2's cells of a
    32 x 32 grid (corner cells, by their centres), Florence-2's thousand bins (centres) and PaliGemma's 1024ths (y first) say their own.
    """
    if len(cells := re.findall(r"<patch_index_(\d{4})>", text)[:2]) == 2:
        (x1, y1), (x2, y2) = ((int(c) % 32, int(c) // 32) for c in cells)
        # one row or column of cells is taken whole, as the library's processor does
        grow = 0.5 if x1 == x2 or y1 == y2 else 0.0
        box = [(x1 + 0.5 - grow) / 32, (y1 + 0.5 - grow) / 32, (x2 + 0.5 + grow) / 32, (y2 + 0.5 + grow) / 32]
    elif len(bins := re.findall(r"<loc_(\d{1,3})>", text)[:4]) == 4:
        box = [(int(b) + 0.5) / 1000 for b in bins]
    elif len(bins := re.findall(r"<loc(\d{4})>", text)[:4]) == 4:
        box = [int(bins[k]) / 1024 for k in (1, 0, 3, 2)]
    elif found := FOUR.search(text):
        box = [float(n) for n in found.groups()]
        if not ("." in found.group() and max(box) <= 1):
            whole = {"thousandths": 1000, "fractions": 1, "pixels": side}[scale]
            box = [
                n / s
                for n, s in zip(box, 2 * whole if isinstance(whole, tuple) else [whole] * 4, strict=True)
            ]
    else:
        return None
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    return [x1, y1, x2, y2] if min(x1, y1) >= 0 and max(x2, y2) <= 1 else None


SIDES = {
    "left": (-1, None),
    "right": (1, None),
    **dict.fromkeys(("top", "upper", "up"), (None, -1)),
    **dict.fromkeys(("bottom", "lower", "down"), (None, 1)),
}
MIDDLE = {"place": r"middle|cent(?:er|re)", "direction": r"still|stationary|static|motionless|stands?"}
DENIED = re.compile(r"\b(?:no|not|cannot|neither|unclear)\b")
RELATIVE = re.compile(
    r"\b(?:left|right|top|bottom)(?:[- ]hand)?(?: side| edge| corner)? of (?!(?:the |this |an? )?(?:\w+ )?(?:image|picture|photo|photograph|frame|scene|canvas|screen)\b)"
)


def parse_word(text, kind):
    """One of WORDS[kind] that an answer says in whatever words ("in the upper left corner"), or None: it says none, several that exclude each other, denies
    something, or names a place relative to something else in the picture."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not")
    if kind == "direction":
        if re.search(r"\bnot\b.*\bmov|\bno (?:motion|movement)", text):
            return "still"
        text = re.sub(r"\bfrom\b.*?\bto(?:wards?)?\b", "", text)  # where it came from is not where it goes
    if DENIED.search(text) or kind == "place" and RELATIVE.search(text):
        return None
    said = re.findall(
        r"\b(left|right|top|upper|up|bottom|lower|down)(?:[- ]?(?:wards?|most|hand))?\b",
        re.sub(r"\bright (?=in |at |there)", "", text),
    )
    column, row = ({SIDES[w][axis] for w in said} - {None} for axis in (0, 1))
    if len(column) > 1 or len(row) > 1 or not (said or re.search(rf"\b(?:{MIDDLE[kind]})\b", text)):
        return None
    return WORDS[kind][1 + (row.pop() if row else 0)][1 + (column.pop() if column else 0)]


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


def right(answers, truth):
    """[answers, items]: 1 where a word is the true one, IoU of a box with the true one; 0 for None."""
    if torch.is_tensor(truth):
        return torch.stack([torch.zeros(len(truth)) if a is None else box_iou(a, truth) for a in answers])
    return torch.tensor([[float(a == t) for t in truth] for a in answers])


def verdict(*tests):
    """yes where every paired gain excludes zero, no where one of them is surely under LEAST, else inconclusive."""
    return (
        "yes"
        if min(t["gain_low"] for t in tests) > 0
        else "no"
        if min(t["gain_high"] for t in tests) < LEAST
        else "inconclusive"
    )


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
        refuse(
            f"{args.answers} holds answers of {said['meta']['model']} that are not to the test items of {args.features} ({model}); run extract.py --ask with the same --model and --data"
        )
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
        scores = right(answers, target)
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


def about_films(args, started):
    """explain-films.yaml: of every conditioning the share of answers that name the direction asked for; floors are those to frozen films, to other clips, and the commonest word."""
    items, index = load_items(args.films)
    said, film = load_pt(args.answers, ANSWERS), {i["id"]: i for i in items}
    if "conditioning" not in index or "direction" not in items[0]:
        refuse(
            f"{args.films} holds no films of clips with a direction; give the folder films that predict.py writes"
        )
    if not set(said["ids"]) <= set(film) or "direction" not in said["kinds"]:
        refuse(
            f"{args.answers} holds no answers to questions of direction about {args.films}; run extract.py --ask --data {args.films}"
        )
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
                right(answers, [i["direction"] for i in clips[name]]),
                sum(a is None for a in answers) / max(len(rows), 1),
            )
    main, kinds = index["conditioning"], list(dict.fromkeys(said["kinds"]))
    if incomplete := [
        name
        for name in ("real", "frozen", main)
        if [i["id"].rpartition("/")[0] for i in clips.get(name, [])]
        != [i["id"].rpartition("/")[0] for i in clips[main]]
    ]:
        refuse(
            f"{args.answers} lacks answers about films of {incomplete[0]}; run extract.py --ask --data {args.films} again"
        )
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


# ---------------------------------------------------------------- describe: what a model says happens in clips, real and generated, and whether that is what happens

# Verbs and the words that count for them: those of Something-Something's 174 templates (Goyal et al. 2017),
# and of work with the hands. Written before any film was looked at,
# and frozen: a synonym added because a model happened to say it would be fitted to the answers that it
# judges. Irregular forms stand here; `stem` does the others.
SYNONYMS = {
    words.split()[0]: words.split()
    for words in re.split(
        r";\s*",
        """
    push shove nudge; pull drag tug yank; move shift slide glide travel bring brought carry relocate transfer; slide slid glide slip push move; lift raise hoist elevate; pick grab take took
    taken lift collect; drop fall fell fallen release; fall fell fallen drop tumble descend; throw threw thrown toss fling hurl; catch caught; put place set lay laid insert position deposit; lay
    laid place put set; place put set lay laid position; take took taken remove grab pick retrieve; remove take took taken pull lift withdraw detach; turn rotate flip pan; rotate turn spin spun;
    flip turn; roll; spin spun rotate twirl whirl; open unlock; close shut; fold crease; unfold unroll spread; tear tore torn rip; cover hide hid hidden wrap; uncover reveal expose unwrap;
    reveal uncover expose; pour tip empty fill; fill pour; spill spilt pour overflow; sprinkle scatter dust; spread smear; scoop spoon ladle; hold held grip grasp; show shown display present
    hold held; touch tap feel felt; tap touch knock; poke prod jab tap; hit strike struck knock bang smack slap; collide crash bump hit; squeeze squash press compress crush; press push squeeze;
    bend bent flex; break broke broken snap; twist wring wrung turn; wring wrung twist squeeze; tilt tip lean slant incline; tip tilt knock topple; lean leant prop rest; stack pile; pile stack
    heap; plug insert connect; attach fasten stick stuck fix connect join clip; detach remove disconnect unclip; connect attach plug join; stick stuck attach glue insert; insert put push place
    plug; stuff cram push put; bury cover; dig dug; wipe clean rub; clean wipe wash; scrape scratch; stretch pull extend; approach near; bounce; deflect bounce; float; burn burnt; hang hung;
    pass hand give gave; cut slice chop; pack box wrap; unpack; scan read; write wrote written fill; assemble build built construct; stand stood
""".strip(),
    )
}
# not put and take: who puts a thing has taken it
OPPOSITES = (
    ("push", "pull"),
    ("open", "close"),
    ("cover", "uncover"),
    ("fold", "unfold"),
    ("lift", "drop"),
    ("attach", "detach"),
    ("pack", "unpack"),
)
# Where it goes: of those in one group another one contradicts. (Prepositions of place contradict nothing:
# much happens "on the table".)
ACROSS = (
    r"(?:from )?(?:the )?{0} (?:side |edge )?(?:\w+ )?to(?:wards?)? (?:the )?{1}\b|to(?:wards?)? the {1} ?(?:side)?\b(?! to| of)|\b{1}wards?\b|"
    r"(?:camera|moves?|moving|slides?|sliding|pans?|turns?|turning) (?:to the )?{1}\b(?! to)"
)
WAYS = (
    {"right": ACROSS.format("left", "right"), "left": ACROSS.format("right", "left")},
    {"up": r"\bup(?:wards?)?\b(?! ?(?:side|right))", "down": r"(?<!upside[ -])\bdown(?:wards?)?\b"},
    {
        "towards": r"\bcloser\b|\btowards?\b(?! the (?:left|right))",
        "away": r"\baway\b|\bf[au]rther\b|\bapart\b",
    },
    {
        "into": r"\binto\b(?! (?:two|half|halves|pieces))|\binside\b|\bin (?:the|a|an|it|something|some)\b",
        "out of": r"\bout\b|\bfrom (?:inside|within)\b",
    },
    {"onto": r"\bonto\b|\bon top\b|\bon\b", "off": r"\boff\b"},
    {"behind": r"\bbehind\b"},
    {"in front of": r"\bin front of\b"},
    {"next to": r"\bnext to\b|\bbeside\b|\balongside\b"},
    {"under": r"\bunder(?:neath)?\b|\bbeneath\b|\bbelow\b"},
    {"over": r"\bover\b|\babove\b"},
    {"upright": r"\bupright\b"},
    {"upside down": r"\bupside[- ]down\b"},
    {"in two": r"\btwo (?:pieces|halves|parts)\b|\bhalf\b"},
)
IMPLIED = {"lift": "up", "fall": "down", "approach": "towards"}  # said by the verb itself
FEIGNED = {
    "pretend": r"\b(?:pretend|feign|mim(?:e|ing)|fake)\w*",
    "fail": r"\b(?:fail|unable|unsuccessful|attempt)\w*|\btr(?:y|ies|ied|ying)\b",
}
# no way is meant
PHRASES = (
    re.compile(
        r"\b((?:pick|open|fold|cover|tear|pil|stack|set|stand)\w*(?: (?:it|them|something|the \w+))?) up\b"
    ),
    re.compile(r"\b((?:put|set|plac|lay|sit)\w*(?: (?:it|them|something|the \w+))?) down\b"),
)
CLAUSE = re.compile(
    r",|\(|\b(?:but|so that|so it|so|until|then|without|while|because|that|like|with something (?:on|in) it)\b"
)
NEVER = re.compile(r"\b(?:not|never|without|instead of|rather than|no longer)\b.*?(?=[,.;]|\bbut\b|$)")
ASIDE = re.compile(
    r"\bin (?:the|this|a) (?:short )?(?:video|clip|scene|footage|film|image|picture|background|foreground|air)\b|\bin (?:his|her|their|one|the|a) hands?\b"
)


def stem(word):
    """A verb without its ending: moves, moved, moving -> mov."""
    word = next(
        (
            word[: -len(end)]
            for end in ("ing", "ed", "es", "s")
            if word.endswith(end) and len(word) - len(end) >= 3
        ),
        word,
    )
    word = word[:-1] if len(word) > 3 and word[-1] == word[-2] else word
    return word[:-1] + "y" if word.endswith("i") else word.removesuffix("e")


STEMS = {verb: {stem(w) for w in words} for verb, words in SYNONYMS.items()}
LEADING = {stem(verb): verb for verb in SYNONYMS}


def told(text, label=False):
    """What a sentence says, {stems, ways, feigned}, but for what it denies; of a label, without the ways that go without saying for its verb."""
    text = text.lower().replace("\u2019", "'").replace("n't", " not")
    feigned = {name for name, pattern in FEIGNED.items() if re.search(pattern, text)}
    text = ASIDE.sub("", NEVER.sub("", text))
    for phrase in PHRASES:
        text = phrase.sub(r"\1", text)
    stems = {stem(w) for w in re.findall("[a-z]+", text)}
    ways = {way for group in WAYS for way, pattern in group.items() if re.search(pattern, text)}
    return {
        "stems": stems,
        "ways": ways | {way for verb, way in IMPLIED.items() if not label and stems & STEMS[verb]},
        "feigned": feigned,
    }


@functools.cache
def wanted(action):
    """What has to be said of an action, a label or template: (its verb in the table or None, stems of all its words, ways of its first clause, all ways, what is feigned)."""
    label = re.sub(r"[\[\]]", "", action.lower())
    words, whole = [stem(w) for w in re.findall("[a-z]+", label)], told(label, True)
    return (
        next((LEADING[w] for w in words if w in LEADING), None),
        set(words),
        told(CLAUSE.split(label)[0], True)["ways"],
        whole["ways"],
        whole["feigned"],
    )


def recalled(said, action):
    """Does what was `told` tell the action? Its verb, or a synonym, has to be said, and every way it goes, and nothing that excludes one of these; and that somebody pretends,
    tries or fails, of such an action and of no other. Of a label whose verb is not in the table: all its words."""
    verb, words, ways, all_ways, feigned = wanted(action)
    if verb is None:
        return bool(words) and words <= said["stems"]
    opposite = {stem(b) for pair in OPPOSITES for a, b in (pair, pair[::-1]) if a == verb} - words
    if (
        not said["stems"] & STEMS[verb]
        or said["stems"] & opposite
        or said["feigned"] - feigned
        or bool(said["feigned"]) != bool(feigned)
    ):
        return False
    return ways <= said["ways"] and not any(
        ways & set(group) and (said["ways"] - all_ways) & set(group) for group in WAYS
    )


# ---------------------------------------------------------------- describe: films are asked about

FRAMES_AS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "video"),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "internvl"), "pictures"),
}
DESCRIBE = "Describe what happens in this video in one sentence."
CHOOSE = "Which of these happens in this video?"
# of equal recall the earlier of NAMING is taken
NAMING, YES = ("asked", "options", "described"), ("yes_true", "yes_false")
STILL = "copy", "frozen"  # conditionings whose films show no action: one frame throughout
OPTIONS, LONGEST = 30, 64  # actions in a list, at most; tokens of an answer


def spread(length, k):
    """The numbers of k of a clip's frames, evenly from the first to the last; of a shorter clip all."""
    return list(range(length)) if k >= length else [round(i * (length - 1) / (k - 1)) for i in range(k)]


def action_of(item):
    return item.get("action") or item.get("direction")


def another(clip, action, actions, seed):
    """The action of a clip drawn from those [n] with another action: the same for all films of this clip."""
    different = [a for a in actions if a != action]
    return different[int(hashlib.sha256(f"{seed} {clip}".encode()).hexdigest()[:15], 16) % len(different)]


def questions_about(films, actions, options, seed, main="real"):
    """{kind: a question for each film, or None: yes and no are asked of the clips themselves and of `main` alone}. actions: {clip: action}; options: the actions to choose from."""
    words = {w for row in WORDS["direction"] for w in row}
    openly = [i["turns"][0][0] for i in films] if all(i.get("turns") for i in films) else None

    def happens(item, action):
        if action in words and item.get("names"):
            return f"Does the {item['names'][-1]} {'stand' if action == 'still' else 'move'} {action}? Answer yes or no."
        return f"Does this happen in the video: {action}? Answer yes or no."

    questions = {"described": [DESCRIBE] * len(films)} | ({"asked": openly} if openly else {})
    if 1 < len(options) <= OPTIONS:
        questions["options"] = [
            f"{q} Answer with one of: {', '.join(options)}." for q in openly or [CHOOSE] * len(films)
        ]
    if len(set(actions.values())) > 1:
        here = [i.get("conditioning", "real") in ("real", main) for i in films]
        questions["yes_true"] = [
            happens(i, action_of(i)) if h else None for i, h in zip(films, here, strict=True)
        ]
        questions["yes_false"] = [
            happens(i, another(clip_of(i), action_of(i), list(actions.values()), seed)) if h else None
            for i, h in zip(films, here, strict=True)
        ]
    return questions


def clip_of(item):
    return item["id"].rpartition("/")[0] if "conditioning" in item else item["id"]


def put_to(model, processor, frames, question, at=None):
    """What `generate` takes for one question about each of some films, uint8 [n, k, H, W, 3], that show the frames numbered at[0] of at[1]; without `at` about k pictures that are no film,
    and may differ in shape."""
    kind = model.config.model_type
    if FRAMES_AS.get(kind) == "video":
        given = qwen_inputs(processor, frames, question, at, album=at is None)
    elif kind in FRAMES_AS:
        # a frame is one tile, as in the model's videos
        whole = {"images_kwargs": {"crop_to_patches": False}} if kind == "internvl" else {}
        given = processor(
            text=[chat(processor, question, count=len(frames[0]))] * len(frames),
            images=[[f.permute(2, 0, 1) for f in film] for film in frames],
            return_tensors="pt",
            **whole,
        )
    else:
        given = ALONE[kind](model, processor, torch.stack([film[0] for film in frames]), question)
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    return {
        k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v
        for k, v in given.items()
    }


@torch.inference_mode()
def answers_to(model, processor, frames, question, at, most=LONGEST):
    """The greedy answers to one question about films, uint8 [n, k, H, W, 3], that show the frames numbered at[0] of at[1]: list of str. Nothing is padded."""
    given = put_to(model, processor, frames, question, at)
    tokens = model.generate(
        **given, do_sample=False, max_new_tokens=most, pad_token_id=model.generation_config.pad_token_id or 0
    )
    return [
        text.strip()
        for text in processor.batch_decode(tokens[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
    ]


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
    with tqdm(
        total=sum(q is not None for kind, _ in todo for q in questions[kind]), desc="asked", unit="film"
    ) as bar:
        for kind, k in todo:
            together, texts = {}, [None] * len(films)
            for n, (item, question) in enumerate(zip(films, questions[kind], strict=True)):
                if question is not None:
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


def yes_share(texts, sources, seed):
    """{share, low, high, unparsed}: how many of the answers that begin with yes or no say yes."""
    said = [
        m and m.group(1).lower() == "yes"
        for m in (re.match(r"\W*(yes|no)\b", t, re.IGNORECASE) for t in texts)
    ]
    heard = [k for k, s in enumerate(said) if s is not None]
    values = (
        bootstrap(torch.tensor([float(said[k]) for k in heard]), [sources[k] for k in heard], seed=seed)
        if heard
        else (None,) * 3
    )
    return dict(zip(("share", "low", "high"), values, strict=True)) | {
        "unparsed": 1 - len(heard) / len(texts)
    }


def survived(answers, names, main, truth, vocabulary, usual, sources, seed):
    """What of explain-describe.yaml follows from the answers: {(kind, k): texts}, the films of the first of `names` first, in each the clips of `truth` [n], their actions."""
    n, score, table = len(truth), {}, {name: {"n": len(truth)} for name in names}
    column = torch.tensor([vocabulary.index(a) for a in truth])
    for (kind, k), texts in answers.items():
        for place, name in enumerate(names):
            own = texts[place * n : (place + 1) * n]
            if kind in YES and own[0] is None:
                continue
            if kind in YES:
                table[name][f"{kind}-{k}"] = yes_share(own, sources, seed)
            else:
                said = names_actions(own, kind, vocabulary)
                score[name, kind, k] = said[:, column].double()  # [answers, clips]
                recall = bootstrap(score[name, kind, k].diagonal(), sources, seed=seed)
                table[name][f"{kind}-{k}"] = dict(zip(("recall", "low", "high"), recall, strict=True)) | {
                    "unparsed": (~said.any(1)).double().mean()
                }
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
            table[name] |= dict(
                zip(
                    ("retention", "retention_low", "retention_high"),
                    bootstrap(x, sources, seed=seed),
                    strict=True,
                )
            )
    headline = {"kind": kind, "frames": k}
    for word, row in (
        ("real", table["real"][f"{kind}-{k}"]),
        ("generated", table[main][f"{kind}-{k}"] if generated else {}),
    ):
        headline |= {
            f"action_recall_{word}{end}": row.get(value)
            for end, value in (("", "recall"), ("_low", "low"), ("_high", "high"))
        }
    headline |= {f"retention{end}": table[main].get(f"retention{end}") for end in ("", "_low", "_high")}
    headline["retention_reason"] = (
        None
        if "retention" in criteria
        else "no action of a real clip is recalled, so there is none to retain"
        if generated
        else "there are no generated films"
    )
    headline |= {
        f"retention_{name}": table[name].get("retention") for name in names if name not in ("real", main)
    }
    headline |= {
        f"action_recall_{name}": value for name, value in criteria["action_recall"]["floors"].items()
    }
    most = max(k for _, _, k in score)
    for end, name in (("", main), ("_real", "real")):
        true, false = (table[name].get(f"{question}-{most}", {}) for question in YES)
        headline |= {
            f"yes_bias{end}{part}": false.get(value)
            for part, value in (("", "share"), ("_low", "low"), ("_high", "high"))
        }
        headline[f"yes_bias{end}_reason"] = (
            None
            if false.get("share") is not None
            else "no answer begins with yes or no"
            if false
            else "not asked: there is one action only"
        )
        headline |= {
            f"yes_unparsed{end}": false.get("unparsed"),
            f"yes_gap{end}": None
            if None in (true.get("share"), false.get("share"))
            else true["share"] - false["share"],
        }
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
                refuse(f"{i['id']} of {folder} {what}; give films that predict.py wrote, or clips of actions")
            films.setdefault(i.get("conditioning", "real"), []).append(i)
    if not films:
        refuse(f"{folder} has no item in its test split; give a folder with more clips")
    ids = [clip_of(i) for i in films.get("real", ())]
    if lacking := [
        name
        for name in ("real", index.get("conditioning", "real"), *films)
        if not ids or [clip_of(i) for i in films.get(name, ())] != ids
    ]:
        refuse(
            f"{folder} lacks films of {lacking[0]}, or has them of other clips than the real ones; run predict.py again"
        )
    return {name: these[:clips] for name, these in films.items()}


def describe(args, started):
    """explain-describe.yaml: what a model says happens in films, beside what does."""
    entry = find_model(args.model)
    if entry.get("type") not in FRAMES_AS:
        refuse(
            f"--model {args.model} is of type {entry.get('type')}, which has no processor that takes a chat about several frames; use a Qwen model, llava-onevision or internvl3-8b"
        )
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
    actions = {clip_of(i): action_of(i) for i in real}
    directions = [w for row in WORDS["direction"] for w in row]
    options = sorted({*filter(None, map(action_of, items)), *(str(a) for a in index.get("actions") or ())})
    questions = questions_about(every, actions, options, args.seed, main)
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
        "run": run_info(
            args,
            started,
            script="explain.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=resolved_commit(entry),
        ),
    }
    save_yaml(out, result)
    say(result)
    return result


# ---------------------------------------------------------------- --ask: one's own pictures or video, answered word by word


def to_cogvlm2(model, processor, pictures, question):
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD

    x = frames_of({"frames": pictures}, model.config.vision_config.image_size).float() / 255
    return model.inputs(
        ((x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)).permute(0, 3, 1, 2),
        processor(f"Question: {question} Answer:", add_special_tokens=False).input_ids,
    )


def to_kosmos2(model, processor, pictures, question):
    return processor(
        text=[f"Question: {question} Answer:"] * len(pictures),
        images=list(pictures.permute(0, 3, 1, 2)),
        num_image_tokens=model.config.latent_query_num,
        return_tensors="pt",
    )


def to_florence2(model, processor, pictures, question):
    return processor(
        text=[question] * len(pictures), images=list(pictures.permute(0, 3, 1, 2)), return_tensors="pt"
    )


ALONE = {"cogvlm2": to_cogvlm2, "kosmos-2": to_kosmos2, "florence2": to_florence2}  # these take one picture
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


def live(args, started):
    """What a model says of pictures or of a video, printed as it comes."""
    entry, frames = find_model(args.model), args.frames or "16"
    if entry.get("type") not in FRAMES_AS:
        if entry.get("type") not in ALONE:
            refuse(
                f"--model {args.model} is of type {entry.get('type')}, for which no processor here puts a question beside a picture; use tiny, a Qwen model, llava-next or internvl3-8b"
            )
        if args.clip or len(args.image or ()) > 1:
            refuse(
                f"--model {args.model} is of type {entry['type']}, which takes one picture at a time; give one --image, or a Qwen model, llava-onevision or internvl3-8b"
            )
    if bool(args.image) == bool(args.clip) or not args.ask.strip():
        refuse(
            "--ask needs a question, and either --image, the files of pictures, or --clip, that of a video"
        )
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
    given = put_to(model, processor, [x], args.ask, at)
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
        "question": args.ask,
        "answer": tokenizer.decode(words, skip_special_tokens=True).strip(),
        "seconds": time.time() - began,
        "tokens": len(words),
        "model": entry["name"],
        "weights": entry["weights"],
        "frames": len(x),
        "size": size,
        **({"clip": args.clip, "frames_used": at[0]} if args.clip else {"images": args.image}),
        "run": run_info(
            args,
            started,
            script="explain.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=resolved_commit(entry),
        ),
    }
    if args.out:
        save_yaml(args.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- trajectories: what a vision model sees of them


class Residual(torch.nn.Module):
    """Two 3 x 3 convolutions, added to what they are given [n,width,h,w]."""

    def __init__(self, width):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.GroupNorm(1, width),
            torch.nn.Conv2d(width, width, 3, 1, 1),
            torch.nn.GELU(),
            torch.nn.Conv2d(width, width, 3, 1, 1),
        )

    def forward(self, x):
        return x + self.layers(x)


class Tracker(torch.nn.Module):
    """A small video transformer that is asked about an object by its name, and says in which frames it sees it and whether it is persistent.

    A stem of convolutions, most of them at a quarter of the resolution, where a shape of ten pixels still has its corners, makes a token of every patch of 8 x 8 pixels. In every frame the query
    (its colour's and its shape's embedding) attends to these; then the query's tokens of all frames attend among each other, and a
    summary token with them, which knows what colours the clip shows at all: each has been asked for by itself. That token's attention over the frames pools what they hold; of each frame a brief
    goes into the embedding as well.
    config: what config.json holds; `layers`: of a query in a frame, and of the frames.
    """

    def __init__(self, config):
        super().__init__()
        self.config, (small, width), (hops, layers), side = (
            config,
            config["widths"],
            config["layers"],
            config["image_size"] // 8,
        )
        more = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, small // 2, 3, 2, 1),
            torch.nn.GELU(),
            torch.nn.Conv2d(small // 2, small, 3, 2, 1),
            Residual(small),
            Residual(small),
            torch.nn.Conv2d(small, small, 3, 2, 1),
        )
        self.colour, self.shape = (torch.nn.Embedding(len(config[k]), small) for k in ("colours", "shapes"))
        self.place, self.time, self.summary = (
            torch.nn.Parameter(torch.randn(*shape) * 0.5)
            for shape in ((side * side, small), (config["frames"], width), (1, width))
        )
        self.query = torch.nn.ModuleList(
            torch.nn.TransformerDecoderLayer(small, 4, 2 * small, **more) for _ in range(hops)
        )
        self.course = torch.nn.ModuleList(
            torch.nn.TransformerEncoderLayer(width, 4, 2 * width, **more) for _ in range(layers)
        )
        self.patch_norm = torch.nn.LayerNorm(small)
        self.query_norm = torch.nn.LayerNorm(small)
        self.norm = torch.nn.LayerNorm(width)
        self.widen = torch.nn.Linear(small, width)
        self.shown, self.company = torch.nn.Linear(small, 1), torch.nn.Linear(len(config["colours"]), width)
        self.key = torch.nn.Linear(width, width)
        self.score = torch.nn.Linear(width, 1)
        self.embed = torch.nn.Linear(2 * width + 8 * config["frames"], config["embedding"])
        self.brief, self.persistent = torch.nn.Linear(width, 8), torch.nn.Linear(config["embedding"], 1)

    def look(self, frames, colours, shapes):
        """What a query finds in each frame by itself, is a colour shown there, whatever the shape, and the patches' own tokens: frames uint8 [n,T,S,S,3], numbers of colours and
        shapes [n,q] -> [n,q,T,D], logits [n,C,T], [n*T,P,D]."""
        (n, t), q = frames.shape[:2], colours.shape[1] + len(self.colour.weight)
        tokens = self.patch_norm(
            self.stem(frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2).flatten(2).transpose(1, 2)
        )
        asked = torch.cat(
            [self.colour(colours) + self.shape(shapes), self.colour.weight.expand(n, -1, -1)], 1
        )
        patches, x = tokens + self.place, asked.repeat_interleave(t, 0)
        others = ~torch.eye(q, dtype=torch.bool, device=x.device)  # what is asked besides changes nothing
        for layer in self.query:
            x = layer(x, patches, tgt_mask=others)
        x = self.query_norm(x).unflatten(0, (n, t)).transpose(1, 2)
        return x[:, : colours.shape[1]], self.shown(x[:, colours.shape[1] :])[..., 0], tokens

    def forward(self, frames, colours, shapes):
        """As of `look` -> {scores [n,q,T] and persistence [n,q], logits; attention [n,q,T], sums to 1; embedding [n,q,E]; looked, seen: the tokens of the
        frames before and after; shown [n,C,T], logits}."""
        looked, shown, _ = self.look(frames, colours, shapes)
        x = (self.widen(looked) + self.time).flatten(0, 1)
        summary = self.summary + self.company(shown.amax(-1).sigmoid())[:, None]
        x = torch.cat([x, summary.repeat_interleave(looked.shape[1], 0)], 1)
        for layer in self.course:
            x = layer(x)
        x = self.norm(x)
        seen, summary = x[:, :-1], x[:, -1]
        attention = (
            (self.key(seen) @ summary[:, :, None])[..., 0].float() / summary.shape[1] ** 0.5
        ).softmax(-1)
        embedding = self.embed(
            torch.cat(
                [summary, (attention[:, None].to(seen.dtype) @ seen)[:, 0], self.brief(seen).flatten(1)], 1
            )
        )
        found = {
            "scores": self.score(seen)[..., 0],
            "attention": attention,
            "embedding": embedding,
            "persistence": self.persistent(embedding)[:, 0],
        }
        return {"shown": shown, "looked": looked, "seen": seen.unflatten(0, looked.shape[:2])} | {
            k: v.unflatten(0, looked.shape[:2]) for k, v in found.items()
        }

    def save_pretrained(self, folder):
        """config.json and model.safetensors, in the dtype of the weights."""
        from safetensors.torch import save

        save_text(
            Path(folder) / "config.json", json.dumps({"model_type": "tracker", **self.config}, indent=1)
        )
        save_bytes(
            Path(folder) / "model.safetensors",
            save({k: v.contiguous() for k, v in self.state_dict().items()}),
        )

    @classmethod
    def from_pretrained(cls, folder):
        from safetensors.torch import load_file

        model = cls(
            {
                k: v
                for k, v in json.loads((Path(folder) / "config.json").read_text()).items()
                if k != "model_type"
            }
        )
        model.load_state_dict(
            {k: v.float() for k, v in load_file(Path(folder) / "model.safetensors").items()}
        )
        return model.eval()


def load_tracker(entry, device):
    """The tracker of a folder, or a refusal that says what is wrong with it."""
    if entry["kind"] != "tracker":
        refuse(
            f"--model {entry['name']} is of kind {entry['kind']}, and --mode tracks follows objects with a tracker; give --model tiny-tracker, or --embeddings, what another model wrote"
        )
    return attempt(lambda: Tracker.from_pretrained(entry["path"]), entry).to(device)


@torch.inference_mode()
def follow(model, frames, names, device):
    """What a tracker says of n clips uint8 [n,T,S,S,3] and q names of each: {scores, attention [n,q,T], persistence [n,q]: probabilities, embedding [n,q,E]}, fp32."""
    words = [[name.split() for name in row] for row in names]
    asked = [
        torch.tensor([[model.config[kind].index(w[k]) for w in row] for row in words], device=device)
        for k, kind in enumerate(("colours", "shapes"))
    ]
    found = model(frames.to(device), *asked)
    return {
        k: (found[k].sigmoid() if k in ("scores", "persistence") else found[k]).float().cpu()
        for k in ("scores", "attention", "persistence", "embedding")
    }


def follow_all(model, items, device, batch=32):
    """(ids, {as of `follow`, [N,...]}) of every object of the clips, of the one that is not there, and of one that was taken out."""
    ids, found = [], []
    for start in tqdm(range(0, len(items), batch), desc="tracks", unit="batch"):
        part = items[start : start + batch]
        names = [[*i["names"], i["absent"], *filter(None, [i.get("removed")])] for i in part]
        longest = max(map(len, names))
        own = follow(
            model,
            torch.stack([frames_of(i, model.config["image_size"]) for i in part]),
            [n + n[-1:] * (longest - len(n)) for n in names],
            device,
        )
        kept = torch.tensor([[k < len(n) for k in range(longest)] for n in names])
        ids += [f"{i['id']}/{n}" for i, row in zip(part, names, strict=True) for n in row]
        found.append({k: x[kept] for k, x in own.items()})
    return ids, {k: torch.cat([f[k] for f in found]) for k in found[0]}


# ---------------------------------------------------------------- trajectories: are the frames right?


def segments(labels):
    """[(label, first, last)] of the runs of equal labels, both ends included."""
    edges = [0, *(t for t in range(1, len(labels)) if labels[t] != labels[t - 1]), len(labels)]
    return [(labels[a], a, b - 1) for a, b in zip(edges, edges[1:], strict=False)]


def segmental_f1(truth, said, at):
    """F1 of the segments whose label is not 0: a said one is right where it covers, by intersection over union of at least `at`, a true one of its label that none before it did
    (Lea et al. 2017, Temporal Convolutional Networks for Action Segmentation and Detection, section 4.1)."""
    true, own = ([s for s in segments(labels) if s[0]] for labels in (truth, said))
    taken = set()
    for label, a, b in own:
        overlap = [
            (min(b, d) - max(a, c) + 1) / (max(b, d) - min(a, c) + 1) if label == other else 0
            for other, c, d in true
        ]
        best = max(range(len(true)), key=overlap.__getitem__, default=None)
        if best is not None and overlap[best] >= at and best not in taken:
            taken.add(best)
    return 2 * len(taken) / max(len(true) + len(own), 1)


def boundary_error(truth, said):
    """Frames from each true change of label to the nearest said one to the same label, their mean; all the frames where nothing so changes. nan where nothing changes in truth."""
    true, own = ([(s[0], s[1]) for s in segments(labels)[1:]] for labels in (truth, said))
    apart = [min([abs(t - u) for other, u in own if other == label], default=len(truth)) for label, t in true]
    return sum(apart) / len(apart) if apart else float("nan")


def frames_scored(truth, said, sources, seed):
    """(one row of the table, frame_f1 per track) of bool [n,T]: F1 of the frames in which an object is seen, of all tracks' together (micro) and the mean over the tracks (macro); segments;
    boundaries in frames."""
    hits, either = 2 * (truth & said).sum(1).double(), (truth.sum(1) + said.sum(1)).double()
    micro, pairs = ratio(hits, either), list(zip(truth.int().tolist(), said.int().tolist(), strict=True))
    scores = {"frame_f1": micro, "frame_f1_macro": hits / either.clamp(min=1)}
    scores |= {
        f"segmental_f1_{at}": torch.tensor([segmental_f1(a, b, at / 100) for a, b in pairs])
        for at in (10, 25, 50)
    }
    row = {
        key: value
        for name, x in scores.items()
        for key, value in mean_and_interval(name, x, sources, seed).items()
    }
    apart = torch.tensor([boundary_error(a, b) for a, b in pairs])
    at = (~apart.isnan()).nonzero().flatten().tolist()
    return row | mean_and_interval("boundary_error", apart[at], [sources[k] for k in at], seed), micro


def best_cut(x, truth):
    """(cut, +1 or -1): x * sign >= cut * sign says `truth` most often; x [n], truth bool [n]."""
    found = [
        ((sign * x >= sign * cut) == truth).double().mean().item() for cut in x.unique() for sign in (1, -1)
    ]
    best = max(range(len(found)), key=found.__getitem__)
    return x.unique()[best // 2].item(), 1 - 2 * (best % 2)


def frames_of_track(track):
    """bool [T]: is it seen?"""
    seen = torch.zeros(TIMES, dtype=torch.bool)
    for a, b in track["visible"]:
        seen[a : b + 1] = True
    return seen


def frames_asked(items, ids):
    """(rows, bool [n,T]) of all that clips are asked about: in which frames it is seen; what is absent in none."""
    truth = {f"{i['id']}/{t['object']}": frames_of_track(t) for i in items for t in i["tracks"]} | {
        f"{i['id']}/{i['absent']}": torch.zeros(TIMES, dtype=torch.bool) for i in items
    }
    rows = [k for k, name in enumerate(ids) if name in truth]
    return rows, torch.stack([truth[ids[k]] for k in rows]) if rows else None


def best_threshold_of(scores, truth):
    """Of the scores in 0..1 [n,T], the one above which they say best which frames are seen, bool [n,T]: by F1 of all together."""
    cuts = torch.arange(1, 20) / 20
    f1 = torch.stack([2 * (truth & (scores > c)).sum() / (truth.sum() + (scores > c).sum()) for c in cuts])
    return round(cuts[f1.argmax()].item(), 2)


def persistence_floors(seen, said, energy, persistent):
    """{name: is it right of each test object}, of what knows no more than how long an object is seen, whether it is seen at both ends, or how much its clip moves. Each of seen, said
    (bool [n,T]), energy, persistent: {split: [n]}. Cuts are chosen on val, the commonest answer on train.

    `duration_of_the_truth` counts the frames in which the object really is seen, not those in which it is said to be.
    """
    measures = {
        "duration": {s: x.sum(1).double() for s, x in said.items()},
        "duration_of_the_truth": {s: x.sum(1).double() for s, x in seen.items()},
        "energy": energy,
    }
    right = {
        "commonest": persistent["test"] == (persistent["train"].double().mean() >= 0.5),
        "ends": (said["test"][:, 0] & said["test"][:, -1]) == persistent["test"],
    }
    for name, x in measures.items():
        cut, sign = best_cut(x["val"], persistent["val"])
        right[name] = (sign * x["test"] >= sign * cut) == persistent["test"]
    return {name: x.double() for name, x in right.items()}


def case_of(track):
    return (
        track["why"]
        if track["why"] != "stays"
        else "stays, hidden for a while"
        if track["hidden"]
        else "stays, seen throughout"
    )


def tracks_scored(items, tracks, folder, seed):
    """(headline scalars, tables) of explain-tracks.yaml but for what needs the vision model. tracks: as of load_tracks, with all of the items' objects."""
    split, row_of = split_indices(items, folder), {name: k for k, name in enumerate(tracks["ids"])}
    objects = {
        s: [(items[k], t) for k in numbers.tolist() for t in items[k]["tracks"]]
        for s, numbers in split.items()
    }
    rows = {
        s: torch.tensor([row_of[f"{i['id']}/{t['object']}"] for i, t in these])
        for s, these in objects.items()
    }
    seen = {s: torch.stack([frames_of_track(t) for _, t in these]) for s, these in objects.items()}
    persistent = {s: torch.tensor([t["persistent"] for _, t in these]) for s, these in objects.items()}
    asked, frames = frames_asked([items[k] for k in split["val"].tolist()], tracks["ids"])
    threshold = best_threshold_of(tracks["scores"][asked], frames)
    said = {s: tracks["scores"][r] > threshold for s, r in rows.items()}
    moves = dict(
        zip((i["id"] for i in items), motion_energy([i["frames"] for i in items]).tolist(), strict=True)
    )
    energy = {
        s: torch.tensor([moves[i["id"]] for i, _ in these], dtype=torch.float64)
        for s, these in objects.items()
    }
    sources = [i["source"] for i, _ in objects["test"]]
    truth = seen["test"]
    right = (tracks["persistence"][rows["test"]] > 0.5) == persistent["test"]

    floors = persistence_floors(seen, said, energy, persistent)
    shown = {
        "own": said["test"],
        "always": torch.ones_like(truth),
        "clock": (seen["train"].double().mean(0) >= 0.5).expand_as(truth),
        "copy": torch.cat([truth[:, :1].expand(-1, EARLIER), truth[:, :-EARLIER]], 1),
    }
    table, f1 = (
        {
            name: x[k]
            for name, x in {n: frames_scored(truth, x, sources, seed) for n, x in shown.items()}.items()
        }
        for k in (0, 1)
    )
    criteria = {
        "persistence_accuracy": criterion(
            right.double(),
            {n: x for n, x in floors.items() if n != "duration_of_the_truth"},
            sources,
            seed=seed,
        ),
        "frame_f1": criterion(f1["own"], {n: f1[n] for n in ("always", "clock")}, sources, seed=seed),
    }
    head = {}
    for (name, c), p in zip(
        criteria.items(), holm({n: c["p"] for n, c in criteria.items()}).values(), strict=True
    ):
        c["p_holm"] = p
        head |= {
            name: c["score"],
            f"{name}_low": c["low"],
            f"{name}_high": c["high"],
            **{
                f"{name}_{k}": c[k]
                for k in ("floor", "floor_name", "gain", "gain_low", "gain_high", "p_holm")
            },
        }
    for name, x in floors.items():
        head |= mean_and_interval(f"persistence_{name}", x, sources, seed)
    head |= {k: v for k, v in table["own"].items() if k not in head} | {
        f"frame_f1_{n}": table[n]["frame_f1"] for n in ("always", "clock", "copy")
    }
    over_copy = paired_test(f1["own"], f1["copy"], sources, seed=seed)
    absent = {True: [], False: []}  # is another object of its colour there?
    for item in (items[k] for k in split["test"].tolist()):
        if (row := row_of.get(f"{item['id']}/{item['absent']}")) is not None:
            absent[any(name.split()[0] == item["absent"].split()[0] for name in item["names"])].append(
                (tracks["scores"][row] > threshold).any().item()
            )
    alarms = {
        "absent_seen": sum(absent.values(), []),
        "absent_seen_colour_there": absent[True],
        "absent_seen_colour_not_there": absent[False],
    }
    head |= {
        "over_copy": over_copy["gain"],
        "over_copy_low": over_copy["gain_low"],
        "over_copy_high": over_copy["gain_high"],
        "copy_frames": EARLIER,
        "rate": RATE,
        "threshold": threshold,
        **{name: sum(x) / len(x) if x else None for name, x in alarms.items()},
        "objects": len(right),
        "clips": len(split["test"]),
        "sources": len(set(sources)),
    }
    cases = {}
    for case in sorted({case_of(t) for _, t in objects["test"]}):
        these = torch.tensor([case_of(t) == case for _, t in objects["test"]])
        cases[case] = {
            "n": int(these.sum()),
            "persistence_accuracy": right[these].double().mean().item(),
            "duration": floors["duration"][these].mean().item(),
            "frame_f1": (
                2 * (truth & said["test"])[these].sum() / (truth[these].sum() + said["test"][these].sum())
            ).item(),
        }
    return head, {"criteria": criteria, "frames": table, "cases": cases}


# ---------------------------------------------------------------- trajectories: does the tracker look where it says it looks?


def without_frames(clip, at, how):
    """A clip uint8 [T,...] in which the frames `at` show its mean picture, or the nearest frame that stays."""
    stay = [t for t in range(len(clip)) if t not in at]
    new = clip.clone()
    for t in at:
        new[t] = (
            clip.float().mean(0).round().byte()
            if how == "mean"
            else clip[min(stay, key=lambda s: abs(s - t))]
        )
    return new


def faithfulness(model, items, device, seed, most=150, draws=5):
    """{way: paired tests}: does what the tracker says change more without the DELETED frames of highest attention than without as many drawn at random? Of persistence the change of its
    probability, of the scores the mean change in the frames that stay (deletion: Samek et al. 2017; attention need not explain: Jain & Wallace 2019)."""
    g, found, sources = torch.Generator().manual_seed(seed), {}, []
    objects = [(i, name) for i in items for name in i["names"]][:most]
    for item, name in tqdm(objects, desc="frames left out", unit="object"):
        clip = frames_of(item, model.config["image_size"])
        base = {k: x[0, 0] for k, x in follow(model, clip[None], [[name]], device).items()}
        sets = [
            base["attention"].topk(DELETED).indices.tolist(),
            *(torch.randperm(len(clip), generator=g)[:DELETED].tolist() for _ in range(draws)),
        ]
        sources.append(item["source"])
        for how in ("mean", "neighbours"):
            new = follow(
                model,
                torch.stack([without_frames(clip, at, how) for at in sets]),
                [[name]] * len(sets),
                device,
            )
            stay = torch.stack([torch.tensor([t not in at for t in range(len(clip))]) for at in sets])
            change = {
                "persistence": (new["persistence"][:, 0] - base["persistence"]).abs(),
                "scores": ((new["scores"][:, 0] - base["scores"]).abs() * stay).sum(1) / stay.sum(1),
            }
            for key, x in change.items():
                found.setdefault((how, key), []).append((x[0].item(), x[1:].mean().item()))
    table = {}
    for (how, key), pairs in found.items():
        top, random = torch.tensor(pairs).T
        table.setdefault(how, {})[key] = {
            "highest": top.mean().item(),
            "random": random.mean().item(),
            **paired_test(top, random, sources, seed=seed),
        }
    for (how, key), p in holm({names: table[names[0]][names[1]]["p"] for names in found}).items():
        table[how][key]["p_holm"] = p
    return table | {"objects": len(objects), "frames_left_out": DELETED, "draws": draws}


def track_objects(args, started):
    """--mode tracks: tracks.pt of a folder of clips by a tracker, or --embeddings, what any video model wrote; and explain-tracks.yaml, how true it is."""
    folder = args.data
    entry = None if args.embeddings else find_model(args.model)
    if entry and entry["kind"] != "tracker":
        load_tracker(entry, None)  # refuses
    items, index = trajectory_folder(folder)
    path = Path(args.embeddings or args.out or f"results/{entry['name']}/{Path(folder).name}/tracks.pt")
    out = Path(args.out) if args.embeddings and args.out else path.with_name("explain-tracks.yaml")
    for written in (out, *([] if args.embeddings else [path])):
        check_writable(written)
    scored = all(any(split_of(i["source"]) == s for i in items) for s in ("train", "val", "test"))
    info = {}
    faithful = {}
    if entry:
        device, dtype, why = choose_device()
        model = load_tracker(entry, device)
        config = model.config
        if unknown := [
            n
            for i in items
            for n in (*i["names"], i["absent"])
            if n.split()[0] not in config["colours"] or n.split()[-1] not in config["shapes"]
        ]:
            refuse(
                f"{folder} has a {unknown[0]!r}, and {entry['path']} knows {', '.join(config['colours'])} and {', '.join(config['shapes'])}; give clips of these"
            )
        began = time.time()
        ids, found = follow_all(model, items, device)
        seconds = (time.time() - began) / len(items)
        rows, truth = frames_asked([i for i in items if split_of(i["source"]) == "val"], ids)
        threshold = best_threshold_of(found["scores"][rows].half().float(), truth) if rows else 0.5
        save_pt(
            path,
            TRACKS,
            ids,
            {
                "model": entry["name"],
                "weights": entry["weights"],
                "data": index["data"],
                "data_path": str(folder),
                "threshold": threshold,
                "threshold_from": "val" if rows else "nothing: the data has no val clips",
            },
            **{k: x.half() for k, x in found.items()},
        )
        info = {"seconds_per_clip": seconds, "parameters": sum(p.numel() for p in model.parameters())}
        if scored:
            faithful = faithfulness(
                model, [i for i in items if split_of(i["source"]) == "test"], device, args.seed
            )
            info |= {
                f"attention_{how}_{key}{end}": faithful[how][key][f"gain{end}"]
                for how in ("mean", "neighbours")
                for key in ("persistence", "scores")
                for end in ("", "_low", "_high")
            }
    tracks = load_tracks(path, items)
    lacking = [
        n for i in items for name in i["names"] if (n := f"{i['id']}/{name}") not in set(tracks["ids"])
    ]
    if lacking:
        refuse(f"{path} lacks {lacking[0]!r} and {len(lacking) - 1} more; write it again for this --data")
    head, tables = (
        tracks_scored(items, tracks, folder, args.seed)
        if scored
        else ({"clips": len(items), "unscored": f"{folder} has not all of train, val and test"}, {})
    )
    meta = tracks["meta"]
    result = {
        "stage": "tracks",
        "model": meta.get("model"),
        "weights": meta.get("weights", "unstated"),
        "data": index["data"],
        "data_name": index["name"],
        "tracks": str(path),
        **head,
        **info,
        **tables,
        **({"attention": faithful} if faithful else {}),
        "run": run_info(args, started, script="explain.py"),
    }
    result = (
        {k: v for k, v in result.items() if not isinstance(v, dict)}
        | {"peak_memory_gb": result["run"]["peak_memory_gb"]}
        | {k: v for k, v in result.items() if isinstance(v, dict)}
    )
    save_yaml(out, result)
    say(result)
    return result


# ---------------------------------------------------------------- trajectories: what is said of them

# What counts as true: spans of frames that have this IoU with the true ones, or whose every end is as near
# (in frames); a number that is equal, a direction that is the same and no neighbour.
OVERLAP = 0.8
ENDS = 1
# kinds of question
ASKED = "persistence", "frames", "direction", "hidden", "whatif", "count", "absent", "unknown"
# right is who says that there is no such object, or that the clip does not show it
UNANSWERABLE = "absent", "unknown"
CLAIMS = "persistence", "span", "direction", "hidden", "count", "absence"
BEYOND = re.compile(
    r"\b(?:not|never) (?:show|say|tell|state|reveal)\b|\b(?:not|impossible to|no way to|hard to|never) (?:be )?"
    r"(?:know|tell|told|say|said|determine|infer|known|clear|possible|specified)|\bun(?:known|clear|certain)\b|\bno (?:information|idea)\b"
)
COLOURED = "red|green|blue|yellow|purple|cyan|orange|pink|white|black|brown|grey"
SHAPED = "circle|triangle|square|star|rectangle|diamond|cross|ring|hexagon|pentagon"
PAINTED = rf"(?:{COLOURED})[- ](?:{SHAPED})"
ALIKE = {
    "disc": "circle",
    "disk": "circle",
    "ball": "circle",
    "violet": "purple",
    "turquoise": "cyan",
    "gray": "grey",
    "colored": "coloured",
    "cannot": "can not",
    "thru": "to",
}
NUMBERS = {
    w: n
    for n, w in enumerate(
        ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"zero": 0}
SIDE = r"(?:(?:up|down|left|upper|lower|top|bottom|right(?! (?:in|at|there|behind|away|after|before|now)\b))(?:[- ]?(?:wards?|hand))?)\b"
# What sentences about objects are made of; where several begin at a letter, the first is meant. NAME stands
# for any object's.
SAID = {
    # not whom the sentence is about
    "aside": r"\b(?:behind|by|of|past|beside|near|across|cross(?:es|ing)|meet(?:s|ing)|overtak(?:es|ing)|than|follow(?:s|ing)) (?:the |an? )?(?:NAME)",
    "choice": r"\b(?:persistent or transient|transient or persistent)\b",
    "count": rf"\b(?:\d+|{'|'.join(NUMBERS)})(?: (?:different|distinct|separate|coloured|moving|visible))* (?:objects?|shapes?|things?|figures?)\b(?! of)",
    "none": r"\bno (?:NAME)\b",
    "name": r"\b(?:NAME)\b",
    "since": r"\b(?:from|since|after|(?:starting|beginning) (?:in|at|from|with)) frame \d+(?: on(?:wards?)?)?(?! to \d)",
    "until": r"\b(?:until|till|up to|before) frame \d+",
    "frames": r"\bframes? \d+(?: to \d+)?(?:(?:,| and|, and) (?:frames? )?\d+(?: to \d+)?(?!\d| (?:coloured|objects?|shapes?)\b))*",
    "always": r"\b(?:throughout|always|the (?:whole|entire|full) (?:time|clip|video)|all (?:the time|along|the while)|(?:every|each|all)(?: single)?(?: the| of the)? frames?)\b",
    "not": r"\b(?:not|never|no longer|nothing|nor|neither)\b",
    "persistent": r"\b(?:persist(?:ent|s)|permanent)\b",
    "transient": r"\b(?:transient|temporary|impermanent|short-lived)\b",
    "hidden": r"\b(?:hidden|occluded|obscured|covered|concealed|blocked|hides|out of (?:sight|view)|(?:goes|going|passes|passing|moves|moving|disappears|slips|is)(?= behind\b))\b",
    "lost": r"\b(?:unseen|invisible)\b",
    "gone": r"\b(?:gone|absent|missing|nowhere)\b",
    "last": r"\b(?:leav(?:es?|ing)|(?<=\bit )left|(?<=\bhas )left|left(?= the (?:picture|clip|scene|frame|image|video)\b)|exit(?:s|ed)?|vanish(?:es|ed)?|disappear(?:s|ed)?|(?:goes|went) (?:away|out)|"
    r"last (?:seen|visible|appears?)|last(?:s|ed))\b",
    "first": r"\b(?:enter(?:s|ed)?|arrive[sd]?|emerge[sd]?|(?:comes?|came|move[sd]?) in(?: (?:in|at)\b|to\b)|(?:shows|turns|pops) up|first (?:seen|appear(?:s|ed)?|visible)|"
    r"(?:seen|appears?) (?:first|for the first time))\b",
    "seen": r"\b(?:visible|seen|appear(?:s|ed|ing)?(?! to\b)|shown|shows|in (?:view|sight)|observed)\b",
    "still": r"\b(?:(?:is|was|stay(?:s|ed)?|stands?|stood|remain(?:s|ed)?|keeps?|kept|sits?) (?:\w+ly )?still\b(?! (?:there|visible|in|seen|present|hidden|moving))|stationary|static|motionless)\b",
    "exists": r"\bthere (?:is|are|was|were)\b",
    "there": r"\b(?:there|present|in the (?:picture|clip|scene|frame|image|video)|on (?:the )?screen|exists?|stay(?:s|ed)?|remain(?:s|ed)?)\b",
    "moves": r"\b(?:mov(?:es?|ed|ing|ement)|motion|travel(?:s|led|ling|ed|ing)?|go(?:es|ing)?|went|head(?:s|ed|ing)?|drift(?:s|ed|ing)?|slid(?:es?|ing)?|glid(?:es?|ed|ing)|fl(?:y|ies|ew|ying)|"
    r"direction|way)\b",
    "way": rf"\b(?:from )?(?:to(?:wards?)? )?(?:the )?{SIDE}(?:(?:,| and| then| side)*(?: to(?:wards?)?)?[- ](?:the )?{SIDE})*(?! of\b)",
    "clause": r"[,;()]|\b(?:and|but|while|then|whereas|although)\b",
}


EXCEPT, IF = r"\b(?:except|apart from|other than)\b", r"\bif\b|\?$"  # of such sentences nothing is understood


class Claim(NamedTuple):
    """What a text says of an object (None: it is unclear of which; "" of all together); denied: that it is not so.

    value: persistence bool; span {"first" or "last": frame}, {"visible" or "present": spans} or {"visible at" or "present at": frame}; direction a word; hidden spans, or True: at some time;
    count a number; absence bool.
    """

    object: str | None
    kind: str
    value: object
    denied: bool = False


@functools.cache
def said_of(names=()):
    """SAID as one pattern that knows names of a colour and a shape, and these."""
    name = "|".join([*map(re.escape, names), PAINTED])
    return re.compile(
        "|".join(f"(?P<{kind}>{pattern.replace('NAME', name)})" for kind, pattern in SAID.items())
    )


def spelt(text, names, frames):
    """A text as SAID spells it: lower case, "frames 4 to 21" however that is said, the first and the last frame by number, whole names where half of one is enough to know whom it means."""
    text = re.sub(r"\d{5,}", "9999", text)  # as false, and sooner counted to
    text = " ".join(text.lower().replace("\u2019", "'").replace("n't", " not").replace("\u2013", "-").split())
    text = re.sub(rf"\b(?:{'|'.join(ALIKE)})\b", lambda m: ALIKE[m[0]], text)
    for name in names:
        for half in name.split():
            if sum(half in other.split() for other in names) == 1:
                text = re.sub(
                    rf"\b(the|an?|this|that) {half}(?: one| object| shape| thing)?\b(?! (?:{SHAPED})\b)",
                    rf"\1 {name}",
                    text,
                )
    for number, words in (
        (0, "the (?:beginning|start)|(?:the )?first frame"),
        (frames - 1, "the end|(?:the )?(?:last|final) frame"),
    ):
        text = re.sub(rf"\b(?:{words})\b(?! (?:of|edge)\b)", f"frame {number}", text)
    text = re.sub(r"\b(?:the )?(\d+)(?:st|nd|rd|th) frame\b", r"frame \1", text)
    text = re.sub(r"\bframe(s?) (?:numbers? |no\.? )?#?(\d)", r"frame\1 \2", text)
    text = re.sub(r"\bbetween (?:frames? )?(\d+) and (?:frame )?(\d+)", r"frames \1 to \2", text)
    return re.sub(
        r"\b(?:from )?(?:frames? )?(\d+) ?(?:to|through|until|till|up to|-) ?(?:frame )?(\d+)\b",
        r"frames \1 to \2",
        text,
    )


def sentences_of(text):
    return [s for s in re.split(r"(?<=[.!?])\s+|;\s", text) if re.search(r"\w", s)]


def spans_in(kind, words, frames, denied=False):
    """The spans of frames that a piece of SAID means: [[4, 9], [14, 14]] of "frames 4 to 9 and 14". What is not so until frame 4 may be so in it."""
    found = [sorted((int(a), int(b or a))) for a, b in re.findall(r"(\d+)(?: to (\d+))?", words)]
    if kind == "since":
        return [[found[0][0] + words.startswith("after"), frames - 1]]
    if kind == "until":
        return [[0, found[0][0] - (denied or words.startswith("before"))]]
    return found or [[0, frames - 1]]


def predicated(kind, words, denied, when, frames):
    """(kind of claim, value, denied) that a predicate makes with the piece of SAID that says when, or None; None where it claims nothing."""
    if kind in ("lost", "gone"):
        kind, denied = {"lost": "seen", "gone": "there"}[kind], not denied
    spans = when and spans_in(*when, frames, denied)
    numbers = [int(n) for n in re.findall(r"\d+", when[1])] if when else []
    if kind == "hidden":
        return "hidden", spans or not denied or [], bool(spans and denied)
    if kind in ("first", "last"):
        # who never enters is not there, who never leaves stays to the end
        ends = ("absence", True, False) if kind == "first" else ("span", {"last": frames - 1}, False)
        return (
            ("span", {kind: numbers[0 if kind == "first" else -1]}, denied)
            if numbers
            else ends
            if denied
            else None
        )
    key = "visible" if kind == "seen" else "present"
    if len(numbers) == 1 and when[0] == "frames":
        return "span", {"first" if words.startswith("appear") else f"{key} at": numbers[0]}, denied
    if spans:
        return "span", {key: spans}, denied
    return (
        (("span", {"visible": []}, False) if kind == "seen" else ("absence", True, False)) if denied else None
    )


def parse_claims(text, names=(), frames=TIMES):
    """(claims, how many sentences make none): what a text says of objects. "It" is whom the last one named; where nobody was, the only one of `names`."""
    claims, silent, about = [], 0, list(names) if len(names) == 1 else [None]
    pattern = said_of(
        tuple(sorted((name for name in names if not re.fullmatch(PAINTED, name)), key=len, reverse=True))
    )

    def claim(kind=None, value=None, denied=False):
        claims.extend(Claim(name, kind, value, denied) for name in about if kind)

    for sentence in sentences_of(spelt(text, names, frames)):
        before = len(claims)
        named = []
        last_name = 0
        fresh = True
        denied = False
        moving = None
        predicate = None
        when = None
        for m in (
            [*pattern.finditer(sentence), re.compile("$").search(sentence)]
            if not re.search(f"{EXCEPT}|{IF}", sentence)
            else ()
        ):
            kind, words = m.lastgroup or "end", m[0]
            timed = kind in ("frames", "always", "since", "until")
            if when and (kind == "end" or kind == "clause" and (named or len(claims) > before)):
                predicate = "seen", "", False  # "the red circle: frames 4 to 21"
            if predicate and (when or kind not in ("clause", "aside", "way", "exists", "choice", "not")):
                claim(*predicated(*predicate, when or (kind, words) if when or timed else None, frames) or ())
                predicate, when, timed, kind = None, None, False, "when" if timed else kind
            if timed and fresh:
                when = kind, words
            fresh = (
                kind == "clause"
                or fresh
                and kind in ("name", "none", "it", "not", "exists", "aside", "always")
            )
            if kind in ("clause", "end"):
                if moving == "not":
                    claim("direction", "still")
                denied, moving = False, moving and "so"
            elif kind in ("name", "none"):
                joined = (
                    named
                    and len(claims) == before
                    and re.fullmatch(r"(?:,|and|the|an?|\s)+", sentence[last_name : m.start()])
                )
                about = (about if joined else []) + [words.removeprefix("no ").replace("-", " ")]
                moving = None
                last_name = m.end()
                named.append(about[-1])
                if kind == "none" or denied:
                    claims.append(Claim(about[-1], "absence", True))
                denied = False
            elif kind == "count":
                number = words.split()[0]
                claims.append(
                    Claim("", "count", int(number) if number.isdecimal() else NUMBERS[number], denied)
                )
            elif kind == "not" and predicate and not sentence[m.end() :].strip(" ."):  # "hidden: never"
                predicate = *predicate[:2], True
            elif kind == "not":
                denied = True
            elif kind in ("hidden", "lost", "gone", "last", "first", "seen", "there"):
                predicate, denied = (kind, words, denied), False
                if when:
                    claim(*predicated(*predicate, when, frames) or ())
                    predicate = when = None
            elif kind in ("persistent", "transient"):
                claim("persistence", (kind == "persistent") != denied)
                denied = False
            elif kind == "still":
                claim("direction", "still", denied)
                denied = False
            elif kind == "moves":
                moving, denied = "not" if denied else "so", False
            elif (
                kind == "way"
                and moving
                and not (words.startswith("from") and " to" not in words)
                and (word := parse_word(words, "direction"))
            ):
                claim("direction", word, moving == "not")
                moving = "so"
            when = None if kind in ("persistent", "transient", "still", "moves") else when
        if len(claims) == before:
            claims += [Claim(name, "absence", False) for name in named]
        silent += len(claims) == before and not BEYOND.search(sentence)
    return claims, silent


def frames_of_spans(spans):
    return {t for a, b in spans for t in range(a, b + 1)}


def same_spans(a, b):
    """Are two lists of spans the same within OVERLAP, or ENDS?"""
    x, y = frames_of_spans(a), frames_of_spans(b)
    return (
        len(x & y) >= OVERLAP * len(x | y)
        or len(a) == len(b)
        and all(abs(p - q) <= ENDS for s, t in zip(a, b, strict=True) for p, q in zip(s, t, strict=True))
    )


def check_claim(claim, item):
    """Is a claim true of a clip? None where it cannot be checked: it is unclear of which object it is, or the truth does not hold it."""
    tracks = {t["object"]: t for t in item["tracks"]}
    name, kind, value, denied = claim
    if kind == "count":
        return (value == len(tracks)) != denied
    if name is None:
        return None
    if kind == "absence" or name not in tracks:
        return (name not in tracks) == (
            value if kind == "absence" else kind == "span" and value == {"visible": []}
        )
    track, (key, spans) = tracks[name], next(iter(value.items())) if kind == "span" else ("hidden", value)
    there = track.get(
        {"persistence": "persistent", "direction": "direction", "hidden": "hidden"}.get(kind)
        or ("visible" if key.startswith("visible") else "present")
    )
    if there is None:
        return None
    if key in ("first", "last"):
        return (
            bool(there) and (abs(spans - there[0 if key == "first" else -1][key == "last"]) <= ENDS) != denied
        )
    if kind in ("persistence", "direction"):
        return (value == there) != denied
    if key.endswith(" at"):
        return (spans in frames_of_spans(there)) != denied
    if spans is True:
        return bool(there)
    if denied:  # of none of these frames, but for a few at their ends
        return len(frames_of_spans(spans) & frames_of_spans(there)) <= (1 - OVERLAP) * len(
            frames_of_spans(spans)
        )
    return same_spans(spans, there)


def omitted(claims, item):
    """(facts that no true claim states, all facts): (object, kind) of a clip's truth; a span is stated by its frames, or by those of its ends that are not the clip's."""
    true, last = [c for c in claims if not c.denied and check_claim(c, item)], len(item["frames"]) - 1
    facts, stated = [("", "count")], {(c.object, c.kind) for c in true if c.kind != "span"}
    for t in item["tracks"]:
        facts += [(t["object"], kind) for kind in ("persistence", "span", "direction", "hidden")]
        said = {key for c in true if c.object == t["object"] and c.kind == "span" for key in c.value}
        ends = (
            {
                end
                for end, inner in (("first", t["present"][0][0] > 0), ("last", t["present"][-1][1] < last))
                if inner
            }
            if t["present"]
            else set()
        )
        if said & {"visible", "present"} or ends and ends <= said:
            stated.add((t["object"], "span"))
    return [fact for fact in facts if fact not in stated], facts


@functools.cache
def heard(text, kind, name="", frames=TIMES):
    """What an answer to a question of this kind about an object says: whether it is persistent, spans, a direction, a number; "absent": there is no such object, "unknown": that is not shown;
    None: nothing of the kind."""
    claims, whole = parse_claims(text, [name] if name else [], frames)[0], spelt(text, [], frames)
    if any(c.kind == "absence" and c.value is True or c.value == {"visible": []} for c in claims):
        return "absent"
    if BEYOND.search(whole):
        return "unknown"
    if re.search(EXCEPT, whole):
        return None
    if kind == "direction":
        return parse_word(text, kind)
    if kind in ("persistence", "count"):
        said = {c.value for c in claims if c.kind == kind and not c.denied} or (
            {int(n) for n in re.findall(r"\d+", whole)}
            | {NUMBERS[w] for w in re.findall("[a-z]+", whole) if w in NUMBERS}
            if kind == "count"
            else set()
        )
        return said.pop() if len(said) == 1 else None
    if kind == "hidden" and (
        [] in [c.value for c in claims if c.kind == kind] or re.fullmatch(r"(?:never|no|in none)\W*", whole)
    ):
        return []
    return (
        sorted(
            span
            for m in said_of().finditer(whole)
            if m.lastgroup in ("frames", "always", "since", "until")
            for span in spans_in(m.lastgroup, m[0], frames)
        )
        or None
    )


def sort_of(kind, truth):
    """As what an answer is to be heard: of "what if" some are frames and some directions."""
    return {
        "whatif": "frames" if "frame" in truth else "direction",
        **dict.fromkeys(UNANSWERABLE, "frames"),
    }.get(kind, kind)


def answer_right(kind, answer, truth, name="", frames=TIMES):
    """Does an answer say what the true one says, in whatever words, within OVERLAP and ENDS?"""
    sort = sort_of(kind, truth)
    own, true = (heard(text, sort, name, frames) for text in (answer, truth))
    return (
        same_spans(own, true)
        if isinstance(own, list) and isinstance(true, list)
        else own is not None and own == true
    )


def frame_f1(answer, truth, name="", frames=TIMES):
    """F1 of the frames that an answer says an object is seen in; 0 where it says none."""
    own, true = (
        frames_of_spans(s) if isinstance(s := heard(text, "frames", name, frames), list) else set()
        for text in (answer, truth)
    )
    return 2 * len(own & true) / max(len(own) + len(true), 1)


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
            refuse(
                f"{path} lacks {lacking[0]!r} and {len(lacking) - 1} more; write it again for this --data with explain.py --mode tracks"
            )

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


def peak_memory(reset=False):
    """Bytes that the process, or the GPU, has held at most since the last reset; None where the system does not say."""
    if torch.cuda.is_available():
        return torch.cuda.reset_peak_memory_stats() if reset else torch.cuda.max_memory_allocated()
    try:
        if reset:
            return Path("/proc/self/clear_refs").write_text("5") and None
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    except (OSError, TypeError):
        return None


def spoken(key, stamp, say_all, kept, out, mode="trajectories"):
    """{texts, seconds, memory} of a writer: what `kept` holds of it with the same stamp (None: of no other run), else what say_all() gives, kept from now on."""
    if stamp is None or kept.get(key, {}).get("stamp") != stamp:
        peak_memory(reset=True)
        began, texts = time.time(), say_all()
        kept[key] = {"stamp": stamp, "texts": texts, "seconds": time.time() - began, "memory": peak_memory()}
        save_pt(out, ANSWERS, [], {"mode": mode}, answers=kept)
    return kept[key]


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


def mean_and_interval(key, scores, sources, seed):
    """{key, key_low, key_high}; scores [n] or [seeds, n]. None of nothing."""
    values = bootstrap(scores, sources, seed=seed) if len(sources) else (None,) * 3
    return dict(zip((key, f"{key}_low", f"{key}_high"), values, strict=True))


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


def trajectory_folder(folder):
    items, index = load_items(folder)
    if lacking := [
        i["id"]
        for i in items
        if not {"tracks", "asked", "turns", "absent"} <= set(i) or len(i["frames"]) != TIMES
    ]:
        refuse(
            f"{folder} has no tracks over {TIMES} frames of {lacking[0]}; give --data a folder that data.py trajectories wrote"
        )
    return items, index


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
        refuse(
            f"{args.data} has {len(w.train)} train and {len(w.items)} test clips; give a folder with more clips"
        )
    if args.words and not args.embeddings:
        refuse(
            f"--words {args.words} reads embeddings: give --embeddings, the tracks.pt that explain.py --mode tracks wrote of --data"
        )
    if args.embeddings:
        w.notes = Notes(args.embeddings, w.every, w.items)
    if args.words:
        w.adapted = load_yaml(Path(args.words) / "adapt-words.yaml", "adapt")
        w.folders = sorted(Path(args.words).glob("seed*"))
        if not w.folders:
            refuse(f"{args.words} holds no folder seed<i>; run adapt.py --mode words, which writes them")
    language = args.language or w.adapted.get("run", {}).get("arguments", {}).get("language")
    w.entry, w.vlm, w.tuned = (
        find_model(name) if name else None for name in (language, args.vlm, args.tuned)
    )
    if w.entry and w.entry["kind"] != "language":
        refuse(
            f"--language {language} is a {w.entry['kind']}; give a language model, such as tiny-words or tinyllama"
        )
    for flag, name, entry in (("--vlm", args.vlm, w.vlm), ("--tuned", args.tuned, w.tuned)):
        if entry and entry.get("type") not in FRAMES_AS:
            refuse(
                f"{flag} {name} is of type {entry.get('type')}, which has no processor that takes a chat about several frames; use a Qwen model, llava-onevision or internvl3-8b"
            )
    if not w.shown.isdecimal() or int(w.shown) < 2:
        refuse(f"--frames {args.frames} is no number of 2 or more; give, say, 8")
    for given in args.changed or ():
        name, _, where = given.partition("=")
        folder, _, embeddings = where.rpartition(":")
        if not (name and folder and embeddings):
            refuse(
                f"--changed {given} does not say NAME=DATA:EMBEDDINGS; give, say, reversed=data/trajectories-reversed:results/tiny/trajectories-reversed/tracks.pt"
            )
        if not w.notes:
            refuse(
                f"--changed {given} asks whether words follow embeddings; give --embeddings, those of --data"
            )
        altered, _ = trajectory_folder(folder)
        here = [i for i in altered if split_of(i["source"]) == "test"]
        if not {i["id"] for i in here} & {i["id"] for i in w.items}:
            refuse(
                f"{folder} has no test clip of {args.data}; make it with data.py trajectories --change, of the same --seed"
            )
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


def trajectories(args, started):
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
    if w.tuned and (record := Path(w.tuned["path"]).parent / "adapt-tune.yaml").is_file():
        lessons = load_yaml(record, "adapt")
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
        "run": run_info(
            args,
            started,
            script="explain.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=w.entry and resolved_commit(w.entry),
        ),
    }
    save_yaml(w.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- operations: what is done at a bench, since when, until when, and what next?

TOLD_MORE = (
    'Answer with nothing but JSON of four keys: "operation", what is done at the end of the clip, one of {}; "start" and "end", in seconds from the end of the clip on, when it began'
    # to a model that has not been taught the answer's form
    ' (below 0) and when it will end; "next", the operation that will follow.'
)
CHEATS = ("copy",)  # sees the truth of a second ago, which hardly ever changes: what looks good for nothing


def parse_operation(text, operations):
    """{operation, next: numbers in `operations` or None; start, end: seconds or None; json} of an answer; the first object of JSON in it counts, names in any case."""
    for found in re.finditer(r"\{[^{}]*\}", text):
        try:
            said = json.loads(found[0])
        except ValueError:
            continue
        name = {o.lower(): k for k, o in enumerate(operations)}
        one = {key: name.get(str(said.get(key)).strip().lower()) for key in ("operation", "next")}
        return (
            one
            | {"json": True}
            | {
                key: float(said[key])
                if isinstance(said.get(key), (int, float)) and abs(said[key]) < 1e6
                else None
                for key in ("start", "end")
            }
        )
    return {"operation": None, "next": None, "start": None, "end": None, "json": False}


def confusions(truth, said, sources, n):
    """How often each operation was said for each in truth, by source: float64 [sources, n, n + 1], the last column for none. truth, said: numbers, None."""
    cluster, counts = clusters(sources), torch.zeros(len(set(sources)), n, n + 1, dtype=torch.float64)
    for s, a, b in zip(cluster.tolist(), truth, said, strict=True):
        counts[s, a, n if b is None else b] += 1
    return counts


def macro_f1(counts):
    """Mean over the operations that occur in truth of the F1 of each, [...] of counts [..., n, n + 1]."""
    hits, true = counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1)
    f1 = 2 * hits / (true + counts.sum(-2)[..., :-1]).clamp(min=1e-9)
    return (f1 * (true > 0)).sum(-1) / (true > 0).sum(-1)


def macro_tested(own, other, seed, n=2000):
    """Macro-F1 of `own`, and how much more than that of `other`, counts [sources, n, n + 1] both: intervals from resampling sources, p from exchanging the two within sources drawn at random."""
    g = torch.Generator().manual_seed(seed)
    weights = resampled(len(own), n, g)
    a, b = (macro_f1(torch.einsum("ks,sij->kij", weights, x)) for x in (own, other))
    at = torch.tensor([0.025, 0.975], dtype=torch.float64)
    score, gain = macro_f1(own.sum(0)).item(), (macro_f1(own.sum(0)) - macro_f1(other.sum(0))).item()
    low, high = widened(score, *a.quantile(at).tolist(), len(own))
    gain_low, gain_high = widened(gain, *(a - b).quantile(at).tolist(), len(own))
    swap = torch.randint(2, (n, len(own)), generator=g).double()
    mixed = [
        torch.einsum("ks,sij->kij", s, own) + torch.einsum("ks,sij->kij", 1 - s, other)
        for s in (swap, 1 - swap)
    ]
    exceed = ((macro_f1(mixed[0]) - macro_f1(mixed[1])).abs() >= abs(gain) - 1e-12).sum().item()
    return {
        "score": score,
        "low": low,
        "high": high,
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "p": (1 + exceed) / (1 + n),
    }


def without_pictures(items, grammar, operations):
    """What is answered to clips by who sees none: {name: {operation, next, start, end: a list each}}, where that is anything to answer."""
    number = {o: k for k, o in enumerate(operations)}

    def most(counts):
        return max(sorted(counts), key=counts.get)

    after = {o: most(counts) for o, counts in grammar["bigram"].items()}
    usual, clock, every = most(grammar["seconds"]), grammar["clock"], {}
    for counts in grammar["bigram"].values():
        every = {o: every.get(o, 0) + counts.get(o, 0) for o in {*every, *counts}}
    n = len(items)
    return {
        "majority": {"operation": [number[usual]] * n},
        "clock": {"operation": [number[clock[min(int(i["seconds"] // 10), len(clock) - 1)]] for i in items]},
        "copy": {"operation": [number.get(i["earlier"]) for i in items]},
        "bigram": {
            "operation": [number[after.get(i["previous"] or "(start)", usual)] for i in items],
            "next": [number[after.get(i["operation"], usual)] for i in items],
        },
        "commonest": {"next": [number[most(every)]] * n},
        "median": {"start": [grammar["start"]] * n, "end": [grammar["end"]] * n},
    }


def timelines(items, truth, said, seed, every):
    """Scores of the clips of each session in their order as one row of segments: segmental F1, boundary error in seconds; the session is the unit."""
    found, sessions = {}, list(dict.fromkeys(i["source"] for i in items))
    for session in sessions:
        at = sorted(
            (k for k, i in enumerate(items) if i["source"] == session), key=lambda k: items[k]["seconds"]
        )
        a, b = [truth[k] + 1 for k in at], [0 if said[k] is None else said[k] + 1 for k in at]
        for key, value in (
            *((f"segmental_f1_{p}", segmental_f1(a, b, p / 100)) for p in (10, 25, 50)),
            ("boundary_error", every * boundary_error(a, b)),
        ):
            found.setdefault(key, []).append((session, value))
    row = {}
    for key, values in found.items():
        values = [(s, v) for s, v in values if v == v]
        row |= mean_and_interval(key, torch.tensor([v for _, v in values]), [s for s, _ in values], seed)
    return row


def operation_row(items, truth, said, seed, every, counts):
    """The columns of the table of who says `said` ({operation, next, start, end: a list each}, or some of them) of clips; truth: {operation, next: numbers}."""
    sources, row = [i["source"] for i in items], {}
    fixed = [k for k, i in enumerate(items) if i.get("fixed")]
    if "operation" in said:
        own = confusions(truth["operation"], said["operation"], sources, counts)
        right_now = [float(a == b) for a, b in zip(truth["operation"], said["operation"], strict=True)]
        row |= {
            f"macro_f1{end}": value
            for end, value in zip(
                ("", "_low", "_high"),
                (macro_tested(own, own, seed)[k] for k in ("score", "low", "high")),
                strict=True,
            )
        }
        row |= mean_and_interval("accuracy", torch.tensor(right_now), sources, seed)
        if fixed:
            row |= {
                "accuracy_fixed": sum(right_now[k] for k in fixed) / len(fixed),
                "macro_f1_fixed": macro_f1(
                    confusions(
                        [truth["operation"][k] for k in fixed],
                        [said["operation"][k] for k in fixed],
                        [0] * len(fixed),
                        counts,
                    )[0]
                ),
            }
        row |= timelines(items, truth["operation"], said["operation"], seed, every)
    if "next" in said:
        at = [k for k, t in enumerate(truth["next"]) if t is not None]
        row |= mean_and_interval(
            "next_accuracy",
            torch.tensor([float(said["next"][k] == truth["next"][k]) for k in at]),
            [sources[k] for k in at],
            seed,
        )
        row["next_macro_f1"] = macro_f1(
            confusions([truth["next"][k] for k in at], [said["next"][k] for k in at], [0] * len(at), counts)[
                0
            ]
        )
    for key in ("start", "end"):
        if key in said:  # who gives no number says: now
            row |= mean_and_interval(
                f"{key}_error",
                torch.tensor([abs((s or 0.0) - i[key]) for s, i in zip(said[key], items, strict=True)]),
                sources,
                seed,
            )
    return row


def taught_to(entry):
    """Has adapt.py --mode tune taught this model how to answer?"""
    note = Path(entry["path"]) / "weights.yaml"
    return (
        "adapter" in entry or note.is_file() and load_yaml(note).get("trained_by") == "adapt.py --mode tune"
    )


def operation_answers(entry, model, processor, items, operations, size, batch, most):
    """What a model answers to the question of each clip."""
    texts, together = [""] * len(items), {}
    hint = (
        ""
        if taught_to(entry) or entry["weights"] == "small"
        else f" {TOLD_MORE.format(', '.join(operations))}"
    )
    for k, i in enumerate(items):
        together.setdefault((i["turns"][0][0], len(i["frames"]), min(i.get("fps", RATE), RATE)), []).append(k)
    with tqdm(total=len(items), desc=entry["name"], unit="clip") as bar:
        for (question, length, rate), members in together.items():
            for some in (members[k : k + batch] for k in range(0, len(members), batch)):
                shown = torch.stack([frames_of(items[k], size) for k in some])
                for k, text in zip(
                    some,
                    answers_to(
                        model, processor, shown, question + hint, (list(range(length)), length, rate), most
                    ),
                    strict=True,
                ):
                    texts[k] = text
                bar.update(len(some))
    return texts


def confused_most(items, truth, said, operations):
    """The pair of operations taken for each other most often, and what is to be said of these clips; None where none is."""
    pairs = {}
    for k, (a, b) in enumerate(zip(truth, said, strict=True)):
        if b is not None and a != b:
            pairs.setdefault(tuple(sorted((a, b))), []).append(k)
    if not pairs:
        return None, []
    pair = max(sorted(pairs), key=lambda p: len(pairs[p]))
    at, names = pairs[pair], [operations[k] for k in pair]
    either = [k for k, a in enumerate(truth) if a in pair]
    return {
        "pair": names,
        "clips": len(at),
        "of": len(either),
        "share_of_errors": len(at) / sum(map(len, pairs.values())),
        "at_a_change": sum(items[k]["boundary"] for k in at) / len(at),
        "at_a_change_usually": sum(items[k]["boundary"] for k in either) / len(either),
        "said_what_was_before": sum(items[k]["previous"] == operations[said[k]] for k in at) / len(at),
        "said_what_comes_next": sum(items[k]["next"] == operations[said[k]] for k in at) / len(at),
        "ids": [items[k]["id"] for k in at[:8]],
    }, at


def draw_confusions(path, tables, operations, items, at, said):
    """explain-operations.png: what was said (columns) of each operation (rows) by each of some models, and the frames of a few of the clips `at` of the pair confused most."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = at[:: -(-len(at) // 4)][:4] if at else []
    short = [o if len(o) < 15 else f"{o[:13]}." for o in operations]
    with matplotlib.rc_context({"font.size": 8}):
        figure = Figure((5.6 * len(tables), 5.4 + 1.15 * len(shown)), layout="constrained")
        top, *below = figure.subfigures(
            1 + len(shown), 1, height_ratios=[5.4, *[1.15] * len(shown)], squeeze=False
        )[:, 0]
        for axis, (name, counts) in zip(
            top.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True
        ):
            share = counts / counts.sum(1, keepdim=True).clamp(min=1)
            axis.imshow(share.numpy(), cmap="cividis", vmin=0, vmax=1)
            for a, row in enumerate(share.tolist()):
                for b, x in enumerate(row):
                    if x >= 0.005:
                        axis.text(
                            b,
                            a,
                            f"{100 * x:.0f}",
                            ha="center",
                            va="center",
                            color="black" if x > 0.5 else "white",
                            fontsize=7,
                        )
            axis.set_xticks(range(len(operations) + 1), [*short, "none"], rotation=90)
            axis.set_yticks(range(len(operations)), short)
            axis.set_title(f"{name}: % of the true operation's clips", fontsize=9)
        for part, k in zip(below, shown, strict=True):
            axis = part.subplots()
            axis.imshow(torch.cat(list(items[k]["frames"]), 1).numpy(), interpolation="nearest")
            axis.set_axis_off()
            axis.set_title(
                f"{items[k]['id']}: {items[k]['operation']}, since {-items[k]['start']:.1f} s; said: {operations[said[k]]}",
                fontsize=8,
                loc="left",
            )
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100)
    save_bytes(path, content.getvalue())


def operations_world(args):
    """Everything that is checked before a model is loaded."""
    w = SimpleNamespace(entries={}, every=Items(args.data))
    w.index = w.every.index
    if not {"operations", "grammar", "every"} <= set(w.index):
        refuse(f"{args.data} holds no operations; give --data a folder that data.py openpack wrote")
    w.items = [w.every[k] for k, s in enumerate(w.every.sources) if split_of(s) == "test"]
    if min(x for x in (args.clips, args.batch, args.size) if x is not None) < 1:
        refuse(
            f"--clips {args.clips}, --batch {args.batch} and --size {args.size} are not all positive; give 1 or more"
        )
    w.items = w.items[: args.clips]
    if not w.items:
        refuse(f"{args.data} has no test clips; give a folder with more clips")
    for name in args.models:
        entry = find_model(name)
        if entry.get("type") not in FRAMES_AS:
            refuse(
                f"--models {name} is of type {entry.get('type')}, which has no processor that takes a chat about several frames; use a Qwen model, llava-onevision or internvl3-8b"
            )
        if entry["name"] in w.entries:
            refuse(f"--models gives {entry['name']} twice; give each model once, the base first")
        w.entries[entry["name"]] = entry
    w.out = Path(
        args.out or f"results/{next(iter(w.entries))}/{Path(args.data).name}/explain-operations.yaml"
    )
    check_writable(w.out)
    return w


def operations(args, started):
    """explain-operations.yaml: what each model says is done at a bench, beside who has seen no picture. The first model is the base, the last the one in question."""
    w = operations_world(args)
    names, every, n = w.index["operations"], w.index["every"], len(w.index["operations"])
    number = {o: k for k, o in enumerate(names)}
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    kept_at = w.out.with_name(f"{w.out.stem}-answers.pt")
    kept = load_pt(kept_at, ANSWERS).get("answers", {}) if kept_at.is_file() else {}
    films = digest(b"".join(digest(i["frames"].numpy().tobytes()).encode() for i in w.items))
    longest = max(len(i["turns"][0][1]) for i in w.items)
    texts, costs = {}, {}
    for label, entry in w.entries.items():
        size = args.size or entry["clip"]

        def say_all(entry=entry, size=size):
            model, processor = load_vlm(entry, device, dtype)
            most = max(len(processor.tokenizer(i["turns"][0][1]).input_ids) for i in w.items) + 32
            return operation_answers(entry, model, processor, w.items, names, size, args.batch, most)

        stamp = digest(
            repr(
                (
                    films,
                    [i["turns"] for i in w.items],
                    longest,
                    fingerprint(entry),
                    size,
                    args.batch,
                    str(dtype),
                )
            ).encode()
        )
        costs[label] = spoken(label, stamp, say_all, kept, kept_at, "operations")
        texts[label] = costs[label]["texts"]

    truth = {key: [number.get(i[key]) for i in w.items] for key in ("operation", "next")}
    sources, base, main = [i["source"] for i in w.items], next(iter(w.entries)), list(w.entries)[-1]
    parsed = {label: [parse_operation(t, names) for t in own] for label, own in texts.items()}
    said = {
        label: {key: [p[key] for p in own] for key in ("operation", "next", "start", "end")}
        for label, own in parsed.items()
    }
    floors = without_pictures(w.items, w.index["grammar"], names)
    table = {
        label: operation_row(w.items, truth, own, args.seed, every, n)
        for label, own in (said | floors).items()
    }
    for label, own in parsed.items():
        table[label] |= {
            "no_json": sum(not p["json"] for p in own) / len(w.items),
            "seconds_per_clip": costs[label]["seconds"] / len(w.items),
        }

    rivals = {**({base: said[base]} if base != main else {}), **floors}
    counts = {
        label: confusions(truth["operation"], own["operation"], sources, n)
        for label, own in (said | floors).items()
        if "operation" in own
    }
    followed = [k for k, t in enumerate(truth["next"]) if t is not None]

    def hits(own, key, at):
        return torch.tensor([float(own[key][k] == truth[key][k]) for k in at])

    everyone = range(len(w.items))
    criteria = {
        "accuracy": criterion(
            hits(said[main], "operation", everyone),
            {
                name: hits(own, "operation", everyone)
                for name, own in rivals.items()
                if "operation" in own and name not in CHEATS
            },
            sources,
            seed=args.seed,
        ),
        "next_accuracy": criterion(
            hits(said[main], "next", followed),
            {name: hits(own, "next", followed) for name, own in rivals.items() if "next" in own},
            [sources[k] for k in followed],
            seed=args.seed,
        ),
    }
    for key in ("start", "end"):
        off = {
            name: torch.tensor([abs((s or 0.0) - i[key]) for s, i in zip(own[key], w.items, strict=True)])
            for name, own in ({main: said[main]} | rivals).items()
            if key in own
        }
        criteria[f"{key}_error"] = criterion(
            off.pop(main), off, sources, ceiling=0.0, better="lower", seed=args.seed
        )
    tests = {
        f"macro_f1_over_{name}": macro_tested(counts[main], counts[name], args.seed)
        for name in counts
        if name != main
    }
    tests |= {
        f"next_accuracy_over_{name}": paired_test(
            hits(said[main], "next", followed),
            hits(own, "next", followed),
            [sources[k] for k in followed],
            seed=args.seed,
        )
        for name, own in rivals.items()
        if "next" in own
    }
    for name, p_value in holm({name: test["p"] for name, test in tests.items()}).items():
        tests[name]["p_holm"] = p_value
    above = verdict(*(tests[f"macro_f1_over_{name}"] for name in counts if name not in (main, *CHEATS)))
    pair, at = confused_most(w.items, truth["operation"], said[main]["operation"], names)
    draw_confusions(
        w.out.with_suffix(".png"),
        {name: counts[name].sum(0) for name in dict.fromkeys((base, main))},
        names,
        w.items,
        at,
        said[main]["operation"],
    )

    result = {
        "stage": "operations",
        "model": base,
        "tuned": main if main != base else None,
        "weights": w.entries[main]["weights"],
        "data": w.index["data"],
        "data_name": w.index["name"],
        "answer": {"yes": "PASS", "no": "FAIL"}.get(above, "INCONCLUSIVE"),
        "above_every_floor": above,
    }
    for key in (
        "macro_f1",
        "accuracy",
        "next_accuracy",
        "start_error",
        "end_error",
        "segmental_f1_10",
        "segmental_f1_25",
        "segmental_f1_50",
        "boundary_error",
    ):
        result |= {f"{key}{end}": table[main][f"{key}{end}"] for end in ("", "_low", "_high")} | {
            f"{key}_{name}": row[key] for name, row in table.items() if name != main and key in row
        }
    result |= {
        f"{key}{end}": row.get(key)
        for key in ("no_json", "accuracy_fixed", "macro_f1_fixed")
        for end, row in (("", table[main]), *([(f"_{base}", table[base])] if base != main else []))
    }
    result |= {
        "confused_most": " / ".join(pair["pair"]) if pair else None,
        "clips": len(w.items),
        "sessions": len(set(sources)),
        "every": every,
        "fixed": sum(bool(i.get("fixed")) for i in w.items),
        "answers": table,
        "criteria": criteria,
        "comparisons": tests,
        "pair": pair,
        "confusion": {
            o: {b: int(x) for b, x in zip([*names, "none"], row, strict=True) if x}
            for o, row in zip(names, counts[main].sum(0).tolist(), strict=True)
        },
        "examples": {
            i["id"]: {"truth": i["turns"][0][1], **{name: own[k] for name, own in texts.items()}}
            for k, i in list(enumerate(w.items))[:3]
        },
        "run": run_info(
            args,
            started,
            script="explain.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=resolved_commit(w.entries[main]),
        ),
    }
    save_yaml(w.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- report: a page for a person, of the YAML and PNG of all stages

# gate: (what it asks, its stages in the data's folder, those on moving shapes)
PROGRAMME = {
    1: ("Do the latents suffice?", ("probe", "align", "adapt-latents"), ("probe",)),
    2: (
        "Can a small adapter bridge?",
        ("adapt-scaling", "adapt-ablation", "adapt-hybrid"),
        ("adapt-video", "predict-coherence", "explain-films"),
    ),
    3: (
        "Does anything predict?",
        ("predict-latents", "predict-continue", "predict-futures", "explain-describe"),
        (),
    ),
    4: ("Can pixels verify?", ("explain-planted", "verify"), ()),
}
QUESTION = "Can a vision-language model carry enough spatial and temporal information to drive a video decoder, predict what happens next, and have the prediction checked in pixels?"
STANDALONE = {
    "screen/screen": "make screen",
    "calibrate": "make calibrate",
    "bench": "make bench",
    "bench-gpu": "make bench-gpu",
    "cka-null": "python tests/cka_null.py",
}
CURVES = {
    "bbox_iou": "Box IoU",
    "spatial_iou": "Mask IoU",
    "edge_probe_f1": "Edge F1",
    "direction_accuracy": "Direction of motion",
    "speed_r2": "Speed, R2",
}
PICTURES = {
    "gate1": "originals, what the autoencoder and what the bridge makes of them, and boxes, true (white) and decoded (red)",
    "adapt-scaling": "test pictures through bridges of every size, beside the originals and the autoencoder's own",
    "adapt-hybrid": "test pictures through the bridge from two encoders and through every control of it",
    "adapt-ablation": "test pictures through other bridges, layers, sizes and numbers of items",
}
# the share of a picture above which it repeats charts that the page draws itself
CHARTS_OF = {"gate1": 1 / 3.15}
FILMS = {
    "real": "what happened",
    "vae": "what happened, through the autoencoder: no film can be closer",
    "copy": "the last frame seen, standing still",
    "flow": "the last frame seen, moved on by optical flow",
    "past, first, text": "what the video model made of the frames before, of the last of them, of a caption",
}
OF_FILMS = {
    "decoded_closeness": "closeness",
    "temporal_ratio": "motion over the clips' own",
    "direction_right": "right way",
}
MARKS = {
    "PROCEED": "▲",
    "PASS": "▲",
    "SUCCESS": "▲",
    "STOP": "■",
    "FAIL": "■",
    "FAILURE": "■",
    "PIVOT": "◆",
    "INCONCLUSIVE": "●",
    "missing": "○",
}
# colours that every kind of eye tells apart (Okabe and Ito, 2008)
OKABE_ITO = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"
WIDEST = 1280  # pixels of the stages' own pictures in the page
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Foresight: report</title>
<style>
*, ::before { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 0 1rem 4rem; background: #fff; color: #1a1a1a; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word }
h1, h2, h3 { line-height: 1.2; margin: 1.6em 0 .5em } h2 { border-bottom: 2px solid #1a1a1a; padding-bottom: .2em } h3 { font-size: 1.05rem }
a { color: #00508c } :focus-visible { outline: 3px solid #0072B2; outline-offset: 2px }
.skip { position: absolute; left: -99rem } .skip:focus { left: 1rem; background: #fff; padding: .5rem }
nav ul { columns: 14rem; padding-left: 1.2rem } code { font-size: .9em; background: #f2f2f2; padding: 0 .2em }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr)); gap: 1rem }
.card { border: 1px solid #767676; border-radius: .3rem; padding: .8rem 1rem } .card h3 { margin: 0 0 .5em } .card p { margin: .5em 0 0 }
.badge { display: inline-block; white-space: nowrap; padding: 0 .5em; border-radius: .2rem; font-weight: 600; color: #fff; background: #595959 }
.PROCEED, .PASS, .SUCCESS { background: #00694d } .STOP, .FAIL, .FAILURE { background: #a33f00 } .PIVOT { background: #005a8e }
.badge.missing { color: #1a1a1a; background: #fff; outline: 2px dashed #595959; outline-offset: -2px }
.note { border-left: .4rem solid #E69F00; padding: .1rem .8rem; background: #fff8e8 } .absent { border-left: .4rem dashed #595959; padding: .1rem .8rem }
.charts { display: flex; flex-wrap: wrap; gap: 1rem } .charts figure { width: 24rem; max-width: 100% } .charts img, .wide img { max-width: 100%; height: auto }
.brief { white-space: nowrap } .text { min-width: 18em }
.scroll { overflow-x: auto; max-width: 100%; margin: 1rem 0 } .wide img { min-width: 44rem }
table { border-collapse: collapse; font-size: .85rem } caption { text-align: left; font-weight: 600; padding: .3rem 0 }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem) } thead { border-bottom: 2px solid #595959 }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #ccc; min-width: 4.5em; max-width: 26em; font-variant-numeric: tabular-nums }
th { font-weight: 600 } [scope=row] { position: sticky; left: 0; background: #fff } @media (max-width: 40rem) { [scope=row] { max-width: 11em } }
figure { margin: 0 } figcaption { font-size: .85rem } summary { cursor: pointer; padding: .3rem 0 } dt { font-weight: 600; float: left; margin-right: .5em }
.films { display: flex; flex-wrap: wrap; gap: .6rem } .films figure { width: 9.5rem; max-width: 46% }
.film { aspect-ratio: 1; image-rendering: pixelated; background: var(--sheet) no-repeat 0 0 / var(--size) }
.controls { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; margin: .6rem 0 } .controls input { flex: 1 1 12rem; max-width: 30rem; height: 2rem }
button { font: inherit; padding: .3rem 1rem }
.player, .js .stills { display: none } .js .player { display: block } .stills img { image-rendering: pixelated; max-width: 100% }
@media print {
  @page { size: A4; margin: 12mm } body { font-size: 9pt; max-width: none; padding: 0 } nav, .skip, .js .player { display: none } .js .stills { display: block } a { color: inherit }
  .scroll { overflow: visible } table { font-size: 6.5pt; width: 100% } th, td { min-width: 0; padding-right: .5em } .brief { white-space: normal }
  .text { min-width: 0; overflow-wrap: anywhere } .wide img { min-width: 0; max-height: 240mm }
  .badge { color: #000; background: none; border: 1px solid #000 } .charts figure { width: 48% } figure, .card, tr, .clip { break-inside: avoid } h2, h3 { break-after: avoid }
  details::details-content { content-visibility: visible; block-size: auto }
}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
$body
<script>
document.documentElement.classList.add("js");
for (const clip of document.querySelectorAll(".clip")) {
  const slider = clip.querySelector("input"), says = clip.querySelector("output"), play = clip.querySelector("button"), last = Number(slider.max);
  const show = () => {
    for (const film of clip.querySelectorAll(".film")) film.style.backgroundPositionX = 100 * slider.value / Math.max(last, 1) + "%";
    says.textContent = slider.value === "0" ? "the last frame seen" : "+" + slider.value + " of " + last + " frames";
    slider.setAttribute("aria-valuetext", says.textContent);
  };
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; play.textContent = "Play"; };
  slider.addEventListener("input", () => { stop(); show(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    timer = setInterval(() => { slider.value = (Number(slider.value) + 1) % (last + 1); show(); }, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1500 : 200);
  });
  show();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
</script>
</body>
</html>
""")


def read_results(folder):
    """({(model, data): {stem: content}}, {stem: content of STANDALONE}): the YAML of the stages below `folder`."""
    found = {}
    for path in sorted(folder.glob("*/*/*.yaml")):
        content = load_yaml(path)
        if "stage" in content:
            found.setdefault((path.parts[-3], path.parts[-2]), {})[path.stem] = content
    return found, {
        stem: load_yaml(folder / f"{stem}.yaml") for stem in STANDALONE if (folder / f"{stem}.yaml").is_file()
    }


def programme(found):
    """[{gate, model, data, result, command, missing}] for every gate of every model of which more is there than probes; missing: the paths that are not there."""
    stages = {gate: {*steps, f"gate{gate}"} - {"probe"} for gate, (_, steps, _) in PROGRAMME.items()}
    rows = []
    for model in sorted(
        {m for (m, _), stems in found.items() if any(s & set(stems) for s in stages.values())}
    ) or ["tiny"]:
        for gate, (_, steps, moving) in PROGRAMME.items():
            usual = "shapes" if gate < 3 else "future"
            for data in sorted(
                (d for (m, d), stems in found.items() if m == model and stages[gate] & set(stems)),
                key=lambda d: (d != usual, d),
            ) or [usual]:
                wanted = [(data, s) for s in (*steps, f"gate{gate}")] + [("moving", s) for s in moving]
                result = found.get((model, data), {}).get(f"gate{gate}")
                changed = " ".join(f"{k}={v}" for k, v in (result or {}).get("overridden", {}).items())
                rows.append(
                    {
                        "gate": gate,
                        "model": model,
                        "data": data,
                        "result": result,
                        "missing": [
                            f"{model}/{d}/{s}.yaml" for d, s in wanted if s not in found.get((model, d), {})
                        ],
                        "command": f"make gate{gate} MODEL={model}"
                        + f" DATA={data}" * (data != usual)
                        + f' SET="{changed}"' * bool(changed),
                    }
                )
    return rows


def said(x):
    """A value as a person reads it."""
    if isinstance(x, dict):
        return ", ".join(f"{k} {said(v)}" for k, v in x.items())
    if isinstance(x, list):
        return ", ".join(map(said, x))
    if isinstance(x, float):
        return f"{x:.3f}" if 0.01 <= abs(x) < 1e3 or x == 0 else f"{x:.0f}" if abs(x) > 1 else f"{x:.3g}"
    return {None: "-", True: "yes", False: "no"}[x] if x is None or isinstance(x, bool) else str(x)


def cell(row, key="score"):
    """row[key] with its interval, where it has one: 0.611 [0.573, 0.646]."""
    low, high = (
        row.get(end if key in ("score", "rate", "recall") else f"{key}_{end}") for end in ("low", "high")
    )
    return said(row.get(key)) + (
        f" [{said(low)}, {said(high)}]" if low is not None and row.get(key) is not None else ""
    )


def best_floor(row):
    return (
        f"{said(row['floor'])} {row.get('floor_name', '')}".strip() if row.get("floor") is not None else "-"
    )


def kinds_of(content):
    return f"{content.get('weights') or 'unstated'} weights, {content.get('data') or 'unstated'} data"


def command_of(content):
    """The arguments that a stage was run with, as flags."""
    given = {
        k: v
        for k, v in content.get("run", {}).get("arguments", {}).items()
        if v not in (None, False, [], {}, "")
    }
    return " ".join(
        f"--{k.replace('_', '-')}"
        + (f" {' '.join(map(str, v)) if isinstance(v, list) else said(v)}" if v is not True else "")
        for k, v in given.items()
    )


def unmeasured(found, alone):
    """[[what, why, where]]: every score that is null, every stand-in, and every kind of weights and data on which no verdict about a published model rests."""
    gaps = {}
    for (model, data), stems in (found | {("", ""): alone}).items():
        for stem, content in stems.items():
            here = "/".join(filter(None, (model, data, stem)))
            judged = (
                content.get("criteria", {}) if stem == "screen/screen" else {"": content.get("criteria", {})}
            )
            for outer, name, row in [
                (outer, name, row)
                for outer, rows in judged.items()
                for name, row in rows.items()
                if isinstance(row, dict)
            ]:
                if row.get("score", 0) is None:
                    gaps.setdefault(
                        (f"{outer} {name}".strip(), row.get("reason") or "no reason is stated"), []
                    ).append(here)
                if row.get("stand_in"):
                    why = (
                        judged[outer].get("lpips", row).get("source")
                        or content.get("lpips_reason")
                        or "no reason is stated"
                    )
                    gaps.setdefault((f"{name}, judged by a stand-in", why), []).append(here)
            for key, value in content.items():
                if value is None and f"{key}_low" in content and f"{key}_reason" not in content:
                    gaps.setdefault((key, "no reason is stated"), []).append(here)
                if key.endswith("_reason") and value and content.get(key.removesuffix("_reason")) is None:
                    gaps.setdefault((key.removesuffix("_reason"), value), []).append(here)
                if key.endswith("weights") and value and value != "pretrained":
                    why = (
                        "this project's own: an instrument check, not a finding about published models"
                        if value == "small"
                        else "not published ones"
                    )
                    gaps.setdefault(
                        (f"{value} weights of the {key.removesuffix('weights').rstrip('_') or 'model'}", why),
                        [],
                    ).append(here)
                if key == "data" and value == "synthetic":
                    gaps.setdefault(
                        (
                            "synthetic data",
                            "made up by data.py, so that the truth is known; real pictures and clips may behave otherwise",
                        ),
                        [],
                    ).append(here)
    places = {gap: list(dict.fromkeys(where)) for gap, where in sorted(gaps.items())}
    return [
        [what, why, ", ".join(where[:5]) + f" and {len(where) - 5} more" * (len(where) > 5)]
        for (what, why), where in places.items()
    ]


# ---------------------------------------------------------------- report: charts and pictures


def el(tag, *inside, **attributes):
    """An HTML element. Text stays text until ElementTree writes it, and is escaped there: nothing that a YAML says is read as HTML."""
    element = ElementTree.Element(
        tag, {k.rstrip("_").replace("_", "-"): str(v) for k, v in attributes.items()}
    )
    for x in inside:
        if isinstance(x, ElementTree.Element):
            element.append(x)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + str(x)
        else:
            element.text = (element.text or "") + str(x)
    return element


def image(content, kind, alt):
    return el("img", src=f"data:image/{kind};base64,{base64.b64encode(content).decode()}", alt=alt)


def badge(word):
    return el("span", f"{MARKS.get(word, '')} {word}".strip(), class_=f"badge {word}")


def table(caption, head, rows):
    """A table in a box of its own that scrolls, by keyboard too, where the page is narrow. A cell is text or an element."""
    body = [
        el(
            "tr",
            el("th", row[0], scope="row"),
            *(
                el("td", x, class_="" if not isinstance(x, str) else "brief" if len(x) < 27 else "text")
                for x in row[1:]
            ),
        )
        for row in rows
    ]
    return el(
        "div",
        el(
            "table",
            el("caption", el("span", caption)),
            el("thead", el("tr", *(el("th", h, scope="col") for h in head))),
            el("tbody", *body),
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label=caption,
    )


def grid(caption, rows, columns, first=""):
    """The table of {name: row} with a column for each {key: heading} that any row has, intervals in the cells."""
    columns = {k: h for k, h in columns.items() if any(row.get(k) is not None for row in rows.values())}
    return table(
        caption,
        [first, *columns.values()],
        [[name, *(cell(row, k) for k in columns)] for name, row in rows.items()],
    )


def chart(title, alt, draw, high=3.0):
    """An SVG that draw(axis) fills."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "report",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.cycler(color=OKABE_ITO),
    }
    with matplotlib.rc_context(style):
        figure, content = Figure((4, high), layout="constrained"), io.BytesIO()
        figure.get_layout_engine().set(w_pad=0.12)
        draw(axis := figure.subplots())
        if axis.get_legend_handles_labels()[1]:
            figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        figure.savefig(content, format="svg", metadata={"Date": None})
    return el("figure", el("figcaption", title), image(content.getvalue(), "svg+xml", f"{title}. {alt}"))


def errors(values, lows, highs):
    """The two lengths of every error bar; none where there is no interval."""
    return [
        [max(v - (v if x is None else x), 0) for v, x in zip(values, lows, strict=True)],
        [max((v if x is None else x) - v, 0) for v, x in zip(values, highs, strict=True)],
    ]


def curve_chart(probe, key, threshold):
    """A score by layer, trained and untrained, with the chosen layer's interval (or every layer's), every floor and the threshold."""
    best, layers = probe["criteria"][key], {p: row for p, row in probe["layers"].items() if p != "pixels"}
    name = key if any(key in row for row in layers.values()) else f"{key}_{best.get('pooling')}"
    shown = [p for p in layers if layers[p].get(name) is not None]
    if not shown:
        return el("p", f"{CURVES[key]}: no layer has a score")
    score = [layers[p][name] for p in shown]

    def draw(axis):
        at = list(range(len(shown)))
        axis.plot(at, score, "o-", ms=4, label="trained network")
        if all(layers[p].get(f"{name}_low") is not None for p in shown):
            axis.fill_between(
                at,
                [layers[p][f"{name}_low"] for p in shown],
                [layers[p][f"{name}_high"] for p in shown],
                alpha=0.25,
                color=OKABE_ITO[0],
                lw=0,
                label="95% interval",
            )
        elif best["layer"] in shown and best.get("low") is not None:
            axis.errorbar(
                shown.index(best["layer"]),
                best["score"],
                yerr=errors([best["score"]], [best["low"]], [best["high"]]),
                color=OKABE_ITO[0],
                capsize=4,
                lw=2,
                label="95% interval, layer chosen",
            )
        if all(layers[p].get(f"{name}_random") is not None for p in shown):
            axis.plot(
                at,
                [layers[p][f"{name}_random"] for p in shown],
                "s--",
                ms=4,
                color=OKABE_ITO[1],
                label="untrained network",
            )
        for n, (floor, value) in enumerate(
            sorted(best["floors"].items(), key=lambda item: item[0] != best["floor_name"])
        ):
            axis.axhline(
                value,
                color="0.6" if n else OKABE_ITO[2],
                ls=":" if n else "-.",
                lw=1 if n else 1.5,
                label=f"best floor: {floor}" if not n else "other floors" if n == 1 else None,
            )
        if threshold is not None:
            axis.axhline(threshold, color="black", lw=1.2, label=f"threshold {threshold:g}")
        every = max(1, len(shown) // 12)
        axis.set_xticks(at[::every], shown[::every], rotation=60, ha="right", rotation_mode="anchor")
        axis.set_ylim(min(0, *score), max(1, *score))

    return chart(
        CURVES[key],
        f"{probe['model']} on {probe['data_name']}: {cell(best)} at {best['layer']}, the layer chosen; over the layers from {said(min(score))} to {said(max(score))}; "
        f"best floor {best_floor(best)}" + (f"; threshold {threshold:g}" if threshold is not None else ""),
        draw,
        3.7,
    )


def dots_chart(title, rows, key, lines=None, grey=()):
    """A dot and its interval for each {name: row}, one below another; lines: {word: value} across."""
    rows = {n: row for n, row in rows.items() if row.get(key) is not None}
    low, high = ("low", "high") if key in ("score", "rate") else (f"{key}_low", f"{key}_high")

    def draw(axis):
        for y, (name, row) in enumerate(rows.items()):
            axis.errorbar(
                row[key],
                y,
                xerr=errors([row[key]], [row.get(low)], [row.get(high)]),
                fmt="s" if name in grey else "o",
                ms=5,
                capsize=3,
                color="0.45" if name in grey else OKABE_ITO[0],
            )
        for n, (word, value) in enumerate((lines or {}).items()):
            axis.axvline(value, color="black", lw=1.2, ls=("-", "--", ":", "-.")[n % 4], label=word)
        axis.set_yticks(range(len(rows)), list(rows))
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.grid(axis="x", color="0.9")
        axis.set_axisbelow(True)

    words = [f"{n} {cell(row, key)}" for n, row in rows.items()] + [
        f"line: {word} {said(v)}" for word, v in (lines or {}).items()
    ]
    return (
        chart(title, "; ".join(words), draw, 1.3 + 0.24 * len(rows))
        if rows
        else el("p", f"{title}: nothing measured")
    )


def lines_chart(title, series, key, beneath, flat=None, log=False, logx=False):
    """Values with intervals over numbers, {name: {x: row}}, each series with a line and a mark of its own; flat: {word: value} across."""
    series = {
        n: {float(x): row for x, row in points.items() if row.get(key) is not None}
        for n, points in series.items()
    }

    def draw(axis):
        for n, (name, points) in enumerate((n, p) for n, p in series.items() if p):
            values = [row[key] for row in points.values()]
            axis.errorbar(
                list(points),
                values,
                yerr=errors(
                    values, *([row.get(f"{key}_{end}") for row in points.values()] for end in ("low", "high"))
                ),
                marker="osD^vP*"[n % 7],
                ms=4,
                capsize=2,
                ls=("-", "--", "-.", ":")[n % 4],
                color=OKABE_ITO[n % 7],
                label=name,
            )
        for n, (word, value) in enumerate((flat or {}).items()):
            axis.axhline(value, color="0.35", lw=1.2, ls=(":", "--", "-.", "-")[n % 4], label=word)
        if logx:
            at = sorted({x for points in series.values() for x in points})
            axis.set_xscale("log")
            axis.set_xticks(at, [f"{x:g}" for x in at], rotation=30)
            axis.minorticks_off()
        if log:
            axis.set_yscale("log")
        axis.set_xlabel(beneath)

    words = [
        f"{n}: " + ", ".join(f"{x:g}: {cell(row, key)}" for x, row in points.items())
        for n, points in series.items()
    ]
    return chart(
        title, "; ".join(words + [f"{word} {said(v)}" for word, v in (flat or {}).items()]), draw, 3.2
    )


def heat_chart(title, rows, columns, numbers):
    """A map of {row: [a value or None for each column]} between 0 and 1, with the numbers in it where there is room."""

    def draw(axis):
        values = [[float("nan") if v is None else v for v in row] for row in rows.values()]
        axis.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        if numbers:
            for y, row in enumerate(values):
                for x, v in enumerate(row):
                    if v == v:
                        axis.text(
                            x,
                            y,
                            f"{v:.2f}".removeprefix("0"),
                            ha="center",
                            va="center",
                            fontsize=7,
                            color="white" if v < 0.55 else "black",
                        )
        axis.set_yticks(range(len(rows)), list(rows))
        every = 1 if numbers else max(1, len(columns) // 4)
        axis.set_xticks(
            range(0, len(columns), every),
            columns[::every],
            rotation=45 if numbers else 0,
            ha="right" if numbers else "center",
            rotation_mode="anchor",
        )
        axis.figure.colorbar(axis.images[0], ax=axis, shrink=0.7)

    return chart(
        title,
        "; ".join(
            f"{n}: " + ", ".join(f"{c} {said(v)}" for c, v in zip(columns, row, strict=True))
            for n, row in rows.items()
        ),
        draw,
        1.6 + 0.24 * len(rows),
    )


def small(picture, width, exact=False):
    """A picture as WebP, no wider than `width`; exact: one that is narrow enough loses nothing."""
    from PIL import Image

    exact = exact and picture.width <= width
    if picture.width > width:
        picture = picture.resize(
            (width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS
        )
    content = io.BytesIO()
    picture.convert("RGB").save(content, "webp", quality=85, lossless=exact)
    return content.getvalue()


def wide_picture(path, alt, above=0.0):
    """A stage's own picture without the share `above`; a narrow screen scrolls it in its box."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture = picture.crop((0, round(above * picture.height), *picture.size))
            return el(
                "figure",
                el(
                    "div",
                    image(small(picture, WIDEST), "webp", alt),
                    class_="scroll wide",
                    tabindex=0,
                    role="region",
                    aria_label=alt,
                ),
                el("figcaption", alt),
            )
    except OSError as error:
        return absent(
            path,
            "the stage that writes it, again" if path.exists() else None,
            "cannot be read as a picture" * (not isinstance(error, FileNotFoundError)),
        )


def absent(what, command=None, why=""):
    return el(
        "p",
        badge("missing"),
        " ",
        el("code", what),
        f" {why}" * bool(why),
        *((": ", el("code", command)) if command else ()),
        class_="absent",
    )


def players(content, folder, number):
    """A slider over the frames of every clip's films side by side; without JavaScript, and on paper, the frames of the horizons in a row."""
    from PIL import Image

    about = content.get("sheet")
    if not about:
        return [absent("a sheet of films", "make gate3", "(predict.py --mode continue writes it)")]
    path = folder / Path(about["file"]).name
    names = about["films"]
    frames = about["frames"]
    side = about["size"]
    try:
        Image.MAX_IMAGE_PIXELS = None  # a sheet of large films is our own, and no attack
        with Image.open(path) as opened:
            sheet = opened.convert("RGB")
    except OSError:
        return [absent(path, "make gate3", "cannot be read")]
    if sheet.size != (frames * side, len(about["clips"]) * len(names) * side):
        return [
            absent(
                path, "make gate3", f"is {sheet.width} x {sheet.height} pixels, not what the YAML says of it"
            )
        ]
    parts = []
    for c, words in enumerate(about["clips"]):
        clip = sheet.crop((0, c * len(names) * side, sheet.width, (c + 1) * len(names) * side))
        label = f"frame-{number}-{c}"
        uri = image(small(clip, 160 * frames, exact=True), "webp", "").get("src")
        films, stills = [], []
        for f, film in enumerate(names):
            alt = f"{film}: {FILMS.get(film, 'what the video model made')}; clip: {words}"
            films.append(
                el(
                    "figure",
                    el(
                        "div",
                        class_="film",
                        role="img",
                        aria_label=alt,
                        style=f"background-position-y: {100 * f / max(len(names) - 1, 1):.4f}%",
                    ),
                    el("figcaption", film),
                )
            )
            at = [t for t in (0, 1, 2, 4, 8, 16) if t < frames]
            row = Image.new("RGB", (len(at) * (side + 2), side), "white")
            for k, t in enumerate(at):
                row.paste(
                    clip.crop((t * side, f * side, (t + 1) * side, (f + 1) * side)), (k * (side + 2), 0)
                )
            stills.append(
                el(
                    "figure",
                    image(
                        small(row, 6 * 162, exact=True),
                        "webp",
                        f"{alt}; frames {said(at)} after the last one seen",
                    ),
                    el("figcaption", f"{film}: frames {said(at)}"),
                )
            )
        controls = el(
            "div",
            el("label", "Frame", for_=label),
            el("input", type="range", id=label, min=0, max=frames - 1, value=0, step=1),
            el("output", for_=label, aria_live="off"),
            el("button", "Play", type="button", aria_label=f"Play or pause the films of the clip: {words}"),
            class_="controls",
        )
        films = el(
            "div",
            *films,
            class_="films",
            style=f"--sheet: url({uri}); --size: {100 * frames}% {100 * len(names)}%",
        )
        parts.append(
            el(
                "section",
                el("h4", f"Clip: {words}"),
                el("div", controls, films, class_="player"),
                el("div", *stills, class_="stills"),
                class_="clip",
            )
        )
    return parts


# ---------------------------------------------------------------- report: the page


def charts(*figures):
    return el("div", *figures, class_="charts")


def folded(summary, *parts):
    return el("details", el("summary", summary), *parts)


def with_stage(found, stem):
    """(model, data, content) of every YAML of this stage."""
    return [(m, d, stems[stem]) for (m, d), stems in found.items() if stem in stems]


def pick(rows, names):
    return {n: rows[n] for n in names if n in rows}


def verdicts(rows):
    cards, tables = [], []
    for r in rows:
        about = el(
            "h3",
            f"Gate {r['gate']}: {PROGRAMME[r['gate']][0]}",
            el("br"),
            el("small", f"{r['model']} on {r['data']}"),
        )
        if not (x := r["result"]):
            cards.append(
                el(
                    "article",
                    about,
                    badge("missing"),
                    el("p", "Not judged yet: ", el("code", r["command"])),
                    class_="card",
                )
            )
            continue
        changed = [el("p", f"Thresholds overridden: {said(x['overridden'])}.")] if x.get("overridden") else []
        cards.append(
            el("article", about, badge(x["verdict"]), el("p", x["headline"]), *changed, class_="card")
        )
        lines = [
            [
                name + "*" * bool(c.get("stand_in")),
                badge(c["answer"]),
                cell(c),
                said(c["threshold"]),
                best_floor(c),
                said(c.get("ceiling")),
                c.get("level", ""),
                c["reason"] + (f"; {c['n_needed']} items would decide" if c.get("n_needed") else ""),
            ]
            for name, c in x["criteria"].items()
        ]
        tables.append(
            table(
                f"Gate {r['gate']}, {r['model']} on {r['data']}: every criterion (* by a stand-in)",
                [
                    "criterion",
                    "answer",
                    "score [95% interval]",
                    "threshold",
                    "best floor",
                    "ceiling",
                    "level",
                    "reason",
                ],
                lines,
            )
        )
    return [el("div", *cards, class_="cards"), *tables]


def probes(found, rows):
    judged, parts, others = {(r["model"], r["data"]): r["result"] for r in rows if r["gate"] == 1}, [], []
    for m, d, x in with_stage(found, "probe"):
        # gate 1 judges motion on a folder of its own
        moving = [result for (model, _), result in judged.items() if model == m and d == "moving"]
        if (m, d) not in judged and not moving:
            others.append(
                [
                    m,
                    d,
                    *(
                        f"{cell(c)}, floor {best_floor(c)}" if (c := x["criteria"].get(k)) else "-"
                        for k in CURVES
                    ),
                ]
            )
            continue
        thresholds = {
            k: c["threshold"]
            for k, c in ((judged.get((m, d)) or next(iter(moving), None) or {}).get("criteria", {})).items()
        }
        every = [
            [k, cell(c), c.get("layer", "-"), cell(c, "gain"), said(c["floors"])]
            for k, c in x["criteria"].items()
        ]
        parts += [
            el("h3", f"{m} on {d}"),
            charts(*(curve_chart(x, k, thresholds.get(k)) for k in CURVES if k in x["criteria"])),
            folded(
                "Every probe, with every floor",
                table(
                    f"{m} on {d}: probes",
                    ["probe", "score [95% interval]", "layer", "gain over the best floor", "floors"],
                    every,
                ),
            ),
        ]
    return parts + (
        [
            folded(
                f"Other models, sizes and data: {len(others)} probed",
                table("Scores at the layer chosen", ["model", "data", *CURVES.values()], others),
            )
        ]
        if others
        else []
    )


def alignments(found):
    parts = []
    for m, d, x in [
        (m, d, x) for (m, d), stems in found.items() for x in stems.values() if x["stage"] == "align"
    ]:
        names, untrained = list(next(iter(x["layers"].values()))), x.get("untrained", {})
        alike = {
            p: [of.get(n, {}).get("score") for n in names for of in (row, untrained.get(p, {}))]
            for p, row in x["layers"].items()
        }
        maps = [
            heat_chart(
                f"{x['target']} and every layer, trained and untrained",
                alike,
                [c for n in names for c in (n, f"{n} untrained")],
                True,
            )
        ]
        if channels := x.get("channels"):
            maps.append(
                heat_chart(
                    f"R2 of every channel of {x['target']} (below 0 as 0)",
                    channels,
                    list(range(len(next(iter(channels.values()))))),
                    False,
                )
            )
        best = {k: c | {"best_floor": best_floor(c)} for k, c in x["criteria"].items()}
        parts += [
            el("h3", f"{m} on {d}, with {x['target']}"),
            el("p", f"Dark is unlike, bright alike. Recommended layer: {said(x.get('recommended'))}."),
            charts(*maps),
            grid(
                "At the best layer",
                best,
                {"score": "score [95% interval]", "layer": "layer", "best_floor": "best floor", "p": "p"},
                "measure",
            ),
        ]
    return parts


def reconstructions(found, results):
    parts = []
    for (m, d), stems in found.items():
        for stem, words in PICTURES.items():
            if stem in stems:
                picture = wide_picture(
                    results / m / d / f"{stem}.png", f"{m} on {d}: {words}", CHARTS_OF.get(stem, 0)
                )
                parts.append(picture if stem == "gate1" else folded(f"{m} on {d}: {words}", picture))
    return parts


def scalings(found):
    parts, lpips = [], {"lpips": "LPIPS", "lpips_random_backbone": "LPIPS, untrained backbone"}
    columns = {
        "parameters": "parameters",
        **lpips,
        "ssim": "SSIM",
        "edge_f1": "edge F1",
        "worse": "worse than the reference by",
        "p_holm": "p (Holm)",
    }

    def key_of(row):
        return "lpips" if row.get("lpips") is not None else "lpips_random_backbone"

    for m, d, x in with_stage(found, "adapt-scaling"):
        sizes, key = x.get("sizes", {}), key_of(x)
        flat = {
            word: x[f"{key}_{end}"]
            for word, end in (("autoencoder's own", "ceiling"), ("best floor", "floor"))
            if x.get(f"{key}_{end}") is not None
        }
        parts += [
            el("h3", f"Size of the bridge: {m} on {d}"),
            el(
                "p",
                f"Parameter efficiency {cell(x, 'parameter_efficiency')}; training time, larger over smaller: {said(x.get('training_time_ratio'))}.",
            ),
            charts(
                lines_chart(
                    f"{lpips[key]} (lower is better)",
                    {"bridge": {row["parameters"]: row for row in sizes.values()}},
                    key,
                    "trained parameters",
                    flat,
                    log=True,
                    logx=True,
                )
            ),
            grid("Rungs of the ladder", sizes, columns, "size"),
        ]
    for stem, title in (
        ("adapt-ablation", "Other bridges, layers, sizes and numbers of items"),
        ("adapt-hybrid", "A second encoder, and its controls"),
    ):
        for m, d, x in with_stage(found, stem):
            arms = x.get("arms", {})
            key = key_of(next(iter(arms.values()), {}))
            adds = (
                [
                    el(
                        "p",
                        f"Does the model add to {x['spatial']}? {x['model_adds']}. Does {x['spatial']} add to the model? {x['spatial_adds']}.",
                    )
                ]
                if "model_adds" in x
                else []
            )
            parts += [
                el("h3", f"{title}: {m} on {d}"),
                *adds,
                charts(dots_chart(f"{lpips[key]} (lower is better)", arms, key)),
                grid("Arms", arms, columns, "arm"),
            ]
    for m, d, x in with_stage(found, "predict-coherence"):
        moving = {"temporal_consistency": "temporal consistency"} | OF_FILMS
        parts += [
            el("h3", f"Films from the bridge: {m} on {d}"),
            grid(f"Conditionings of {x.get('video')}", x.get("conditionings", {}), moving, "conditioning"),
        ]
    for m, d, x in with_stage(found, "predict-latents"):
        if s := x.get("scaling"):
            parts += [
                el("h3", f"Clips to learn prediction from: {m} on {d}"),
                charts(
                    lines_chart(
                        "1 - cosine, by training clips",
                        {s["variant"]: s["sizes"]},
                        "error",
                        "training clips",
                        {"copying the last frame": s["copy_error"]},
                        logx=True,
                    )
                ),
                el(
                    "p",
                    f"By a power law it would take {said(s.get('clips_to_reach_copy'))} clips to reach the copy: a guess, beyond the data.",
                ),
            ]
    return parts


def predictions(found):
    parts, errors_of = [], {"l1": "L1", "moving_l1": "L1 where it moves"}
    remarks = {"static": "stands still", "best_shift": "frames early (+) or late (-)"}
    for m, d, x in with_stage(found, "predict-latents"):
        every = dict(sorted((x["variants"] | x["baselines"]).items(), key=lambda item: -item[1]["cosine"]))
        ahead = pick(x["horizons"], (x["variant"], "blind", "latents", "flow", "linear"))
        parts += [
            el("h3", f"In latent space: {m} on {d}"),
            el(
                "p",
                f"Chosen on val: {x['variant']}, read at {x['layer']}. Better than the copy and every control: {x['predicts']}.",
            ),
            charts(
                dots_chart(
                    "Gain in cosine over copying the last frame (grey squares: controls)",
                    every,
                    "gain",
                    {"copy": 0.0},
                    [*x["baselines"], "blind", "latents", "untrained"],
                ),
                lines_chart(
                    "Gain over the copy by horizon", ahead, "gain", "frames ahead", {"copy": 0.0}, logx=True
                ),
            ),
            grid(
                "Every variant and control",
                every,
                {"cosine": "cosine", "gain": "gain over copy", "p_holm": "p (Holm)", "skill": "skill"}
                | errors_of
                | remarks,
                "variant",
            ),
        ]
    for m, d, x in with_stage(found, "predict-continue"):
        shown = [
            n
            for n in (x["conditioning"], "copy", "flow", "vae", "mean", "nearest")
            if n in x["continuations"]
        ]
        ahead = {n: {h: row[n] for h, row in x["horizons"].items() if n in row} for n in shown}
        parts += [
            el("h3", f"By a video model: {x.get('video')} on {d} ({m})"),
            charts(
                *(
                    lines_chart(f"{title} by horizon", ahead, k, "frames ahead", logx=True)
                    for k, title in errors_of.items()
                )
            ),
            grid("Continuations and baselines", x["continuations"], errors_of | OF_FILMS | remarks, "film"),
        ]
    for m, d, x in with_stage(found, "predict-futures"):
        columns = errors_of | {
            "direction_right": "right way",
            "moving_l1_oracle_share": "share of what the oracle saves",
        }
        parts += [
            el("h3", f"Several futures, one believed: {x.get('video')} on {d} ({m})"),
            grid("Pickers", x["pickers"], columns, "picker"),
        ]
    for m, d, x in with_stage(found, "explain-describe"):
        rows = {n: row | row.get(f"{x['kind']}-{x['frames']}", {}) for n, row in x["conditionings"].items()}
        parts += [
            el("h3", f"What the model says of the films: {m} on {d}"),
            grid(
                f"Asked as real clips are recognised best ({x['kind']}, {x['frames']} frames)",
                rows,
                {"recall": "action recalled", "retention": "over that of real clips", "unparsed": "unparsed"},
                "film",
            ),
        ]
    return parts


def frames_chosen(found):
    columns = {
        "score": "right",
        "gain": "the first gains over it",
        "p": "p",
        "seconds_choosing": "seconds to choose",
        "seconds_answering": "seconds to answer",
    }
    parts = []
    # one for each number of frames
    for m, d, x in (
        (m, d, x) for (m, d), stems in found.items() for x in stems.values() if x["stage"] == "frames"
    ):
        ways = {
            n + " (equal time)" * (n in x["equal_time"]): row
            | {"score": row["right"]}
            | x["gains"].get(n, {})
            for n, row in x["ways"].items()
        }
        parts += [
            el("h3", f"{m} on {d}, {x['count']} frames of a clip"),
            charts(
                dots_chart(
                    "Answers that are right (grey squares: more even frames, in the time that choosing takes)",
                    ways,
                    "score",
                    grey=[n for n in ways if n.endswith("time)")],
                )
            ),
            grid(
                f"{x['questions']} questions about {x['clips']} clips of {x['sources']} sources",
                ways,
                columns,
                "way",
            ),
        ]
    return parts


def words_of_trajectories(found, results):
    columns = {
        "accuracy": "accuracy",
        **{kind: kind for kind in ASKED},
        "frame_f1": "frame F1",
        "claim_precision": "claims true",
        "omission": "facts omitted",
        "abstains_wrongly": "abstains wrongly",
        "order_persistence": "stays in another order",
        "seconds_per_clip": "seconds a clip",
        "memory_gb": "GB",
        "training_seconds_per_seed": "seconds to train",
    }
    parts = []
    for m, d, x in with_stage(found, "explain-trajectories"):
        parts += [
            el("h3", f"{m} on {d}"),
            el(
                "p",
                f"Words of the writer {x['writer']} follow what it was shown: {said(x['words_follow_picture'])}.",
            ),
            charts(
                dots_chart(
                    "Answers that are right (grey squares: ceiling and floors)",
                    x["writers"],
                    "accuracy",
                    grey=("truth", "commonest", "blind"),
                ),
                *(
                    [
                        dots_chart(
                            "The same with something else in place of the embedding",
                            x["ablations"],
                            "accuracy",
                        )
                    ]
                    if x["ablations"]
                    else []
                ),
            ),
            folded("By kind of question", grid(f"{m} on {d}: writers", x["writers"], columns, "writer")),
            *(
                grid(
                    f"Clips {change}: what answers say",
                    rows,
                    {"new": "what has become true", "old": "what was", "questions": "questions"},
                    "writer",
                )
                for change, rows in x["changed"].items()
            ),
            wide_picture(
                results / m / d / "explain-trajectories.png",
                f"{m} on {d}: when objects are there (hatched: hidden), as it was and as writers have it",
            ),
        ]
    return parts


def told_operations(found, results):
    columns = {
        "macro_f1": "macro-F1",
        "accuracy": "accuracy",
        "accuracy_fixed": "accuracy, fixed clips",
        "next_accuracy": "next, accuracy",
        "start_error": "start, s off",
        "end_error": "end, s off",
        "segmental_f1_50": "segmental F1@50",
        "boundary_error": "boundaries, s off",
        "no_json": "no JSON",
        "seconds_per_clip": "seconds a clip",
    }
    parts = []
    for m, d, x in with_stage(found, "explain-operations"):
        main, pair = x["tuned"] or x["model"], x["pair"]
        words = f" Confused most: {' and '.join(pair['pair'])}, {pair['clips']} of {pair['of']} clips, of which a share of {said(pair['at_a_change'])} end within a second of a change."
        parts += [
            el("h3", f"{m} on {d}"),
            el(
                "p",
                badge(x["answer"]),
                f" Is {main} above every floor by a paired interval? {said(x['above_every_floor'])}.",
                words if pair else "",
            ),
            charts(
                dots_chart(
                    "What is done now, macro-F1 (grey squares: who sees no picture; copy sees the truth of a second ago)",
                    x["answers"],
                    "macro_f1",
                    grey=("majority", "clock", "bigram", "copy"),
                )
            ),
            folded(
                "Every score", grid(f"{m} on {d}: what is said of operations", x["answers"], columns, "who")
            ),
            wide_picture(
                results / m / d / "explain-operations.png",
                f"{m} on {d}: what is said of each operation, and clips of the pair confused most",
            ),
        ]
    return parts


def verifiers(found):
    """Of verify.yaml whatever is there."""
    parts = []
    for m, d, x in with_stage(found, "verify"):
        rows = {
            n: row | {f"kind {k}": v.get("auroc") for k, v in row.get("kinds", {}).items()}
            for n, row in x.get("verifiers", {}).items()
        }
        kinds = {k: k.removeprefix("kind ") for row in rows.values() for k in row if k.startswith("kind ")}
        facts = [
            k
            for k, v in x.items()
            if not isinstance(v, (dict, list))
            and not k.endswith(("_low", "_high"))
            and k not in ("stage", "model", "weights", "data", "data_name")
        ]
        lines = []
        if ahead := x.get("horizons"):
            # beside them: how many have begun to be wrong
            names = dict.fromkeys(n for row in ahead.values() for n, v in row.items() if isinstance(v, dict))
            lines.append(
                lines_chart(
                    "AUROC by horizon",
                    {n: {h: row[n] for h, row in ahead.items() if n in row} for n in names},
                    "auroc",
                    "frames ahead",
                    {"chance": 0.5},
                    logx=True,
                )
            )
        if risk := x.get("risk_coverage"):
            kept = {
                n: {c: {"risk": r} for c, r in zip(risk["coverage"], risk[k], strict=True)}
                for n, k in (("by the verifier", "risk"), ("by one who knows", "perfect"))
                if risk.get(k)
            }
            lines.append(
                lines_chart(
                    "Risk of what is kept, by the share kept",
                    kept,
                    "risk",
                    "coverage",
                    pick({"at random": risk.get("random")}, ["at random"] * (risk.get("random") is not None)),
                )
            )
        parts += [
            el("h3", f"{m} on {d}"),
            charts(
                *(
                    [dots_chart("AUROC for wrong predictions", rows, "auroc", {"chance": 0.5})]
                    if rows
                    else []
                ),
                *lines,
            ),
            grid(
                "Verifiers; AUROC by kind of error",
                rows,
                {"family": "family", "auroc": "AUROC", **kinds},
                "verifier",
            ),
            folded(
                "Every headline figure",
                table("Headline", ["figure", "value [95% interval]"], [[k, cell(x, k)] for k in facts]),
            ),
        ]
        for key, some in (
            (k, v)
            for k, v in x.items()
            if isinstance(v, dict)
            and k not in ("verifiers", "horizons", "risk_coverage", "criteria", "notes", "run")
        ):
            title = {
                "made": "Of films that the video model made",
                "futures": "Of several futures of one clip, the better half",
            }.get(key, key.replace("_", " ").capitalize())
            # of the films that were made: each verifier's row for all that can be wrong
            if "verifiers" in some:
                nested = {n: row.get("all", row) for n, row in some["verifiers"].items()}
            else:
                deep = {n: row for n, row in some.items() if isinstance(row, dict)}
                nested = {
                    label: row
                    for n, rows_ in deep.items()
                    for label, row in (
                        {f"{n.replace('_', ' ')}: {k}": r for k, r in rows_.items()}
                        if rows_ and all(isinstance(r, dict) for r in rows_.values())
                        else {n: rows_}
                    ).items()
                }
            plainly = [
                [n, cell(some, n)]
                for n, row in some.items()
                if not isinstance(row, dict) and not n.endswith(("_low", "_high"))
            ]
            columns = {
                k: k.replace("_", " ")
                for row in nested.values()
                for k, v in row.items()
                if not k.endswith(("_low", "_high")) and not isinstance(v, dict)
            }
            parts += [grid(title, nested, columns, "name")] * bool(columns) + [
                table(title, ["name", "value"], plainly)
            ] * bool(plainly)
    return parts


def screening(alone):
    if not (x := alone.get("screen/screen")):
        return [absent("screen/screen.yaml", STANDALONE["screen/screen"])]
    criteria, names, lines = x["criteria"], list(next(iter(x["criteria"].values()))), []
    for k in ("spatial_iou", "bbox_iou"):
        rows = {n: c[k] for n, c in criteria.items() if c.get(k, {}).get("score") is not None}
        floors = [row["floor"] for row in rows.values() if row.get("floor") is not None]
        lines += (
            [
                dots_chart(
                    CURVES[k],
                    rows,
                    "score",
                    {"threshold": next(iter(rows.values()))["threshold"]}
                    | ({"highest of the floors": max(floors)} if floors else {}),
                )
            ]
            if rows
            else []
        )
    whole = [
        [
            n,
            r["kind"],
            cell(r | {"score": r["weighted"]}),
            said(r["rank"]),
            said(r["decision"]),
            r["why"] or r["excluded"] or "-",
        ]
        for n, r in x["models"].items()
    ]
    each = [
        [
            n,
            *(
                el("span", cell(c[k]), " ", badge(c[k]["answer"])) if c[k].get("answer") else cell(c[k])
                for k in names
            ),
        ]
        for n, c in criteria.items()
    ]
    return [
        el("p", badge(x["outcome"]), " ", x["headline"]),
        charts(*lines),
        table(
            f"{x['items']} test items of {x['data_name']}",
            ["model", "kind", "weighted score", "rank", "decision", "why"],
            whole,
        ),
        table("Criteria", ["model", *names], each),
    ]


def own_errors(alone):
    parts = []
    if x := alone.get("calibrate"):
        words = {
            "false_pass": "a criterion passes that should not",
            "false_fail": "a criterion fails that should not",
            "false_proceed": "PROCEED where it should not be",
            "false_stop": "STOP where it should not be",
        }
        rates = {
            k: {n: row[k] for n, row in x["criteria"].items() if row[k]["rate"] is not None}
            for k in ("false_pass", "false_fail")
        }
        parts += [
            el(
                "p",
                f"On {x['worlds']} planted worlds whose answer is known; the aim, {said(x['aim'])} at most, is {'met' if x['met'] else 'not met'}. "
                f"Most often wrong: of {x['worst_false_pass_in']}, {said(x['worst_false_pass'])} pass that should not.",
            ),
            table(
                "How often the gate is wrong",
                ["error", "rate [95% interval]"],
                [[w, cell(x, k)] for k, w in words.items()],
            ),
            charts(
                *(
                    dots_chart(f"{words[k].capitalize()}, by number of items", of, "rate", {"aim": x["aim"]})
                    for k, of in rates.items()
                )
            ),
        ]
    if x := alone.get("cka-null"):
        parts.append(
            grid(
                "CKA of independent noise, which should be 0",
                x["rows"],
                {"debiased": "debiased, as used here", "biased": "biased"},
                "items",
            )
        )
    return parts + [absent(f"{s}.yaml", STANDALONE[s]) for s in ("calibrate", "cka-null") if s not in alone]


def not_measured(found, alone, rows):
    gone = [[p, el("code", r["command"])] for r in rows for p in r["missing"]] + [
        [f"{s}.yaml", el("code", command)] for s, command in STANDALONE.items() if s not in alone
    ]
    return [
        table(*t)
        for t in (
            ("Not measured, or not as one would wish", ["what", "why", "where"], unmeasured(found, alone)),
            ("Not run", ["file", "made by"], gone),
        )
        if t[2]
    ]


def speed(alone):
    columns = {
        "ratio": "times as fast",
        "aim": "aim",
        "met": "met",
        "same_numbers": "same numbers",
        "what": "what",
        "peer": "beside",
    }
    return [
        grid(f"Beside named peers, in one run ({s}.yaml)", alone[s].get("rows", {}), columns, "measure")
        if s in alone
        else absent(f"{s}.yaml", STANDALONE[s])
        for s in ("bench", "bench-gpu")
    ]


def run_parts(found, alone):
    runs = {
        f"{'/'.join((*place, s))}.yaml": (x["run"], x)
        for place, stems in (found | {(): alone}).items()
        for s, x in stems.items()
        if "run" in x
    }
    versions = [said(run.get("versions")) for run, _ in runs.values()]
    lines = [
        [
            name,
            *(said(run.get(k)) for k in ("seconds", "peak_memory_gb", "git_commit", "device")),
            command_of(x),
        ]
        for name, (run, x) in runs.items()
    ]
    return [
        *(el("p", f"{v} ({versions.count(v)} files)") for v in dict.fromkeys(versions)),
        folded(
            "Seconds, memory, commit, device and arguments of every file",
            table("Runs", ["file", "seconds", "peak GB", "commit", "device", "arguments"], lines),
        ),
    ]


def page_of(results, found, alone, rows):
    """The page as text."""
    films = [
        x
        for n, (m, d, content) in enumerate(with_stage(found, "predict-continue"))
        for x in (el("h3", f"{content.get('video')} on {d} ({m})"), *players(content, results / m / d, n))
    ]
    meaning = el("dl", *(x for n, words in FILMS.items() for x in (el("dt", n), el("dd", words))))
    told_parts = words_of_trajectories(found, results)
    bench = told_operations(found, results)
    chosen = frames_chosen(found)
    sections = {  # title: (what it shows, its parts, the stages it is made of)
        "Verdicts": (
            "A verdict follows from criteria, each held against its threshold and against the best floor that costs nothing.",
            verdicts(rows),
            (),
        ),
        "Probes by layer": (
            "What of space and motion can still be read from each layer, by a linear map, beside what needs no trained network.",
            probes(found, rows),
            ("probe",),
        ),
        "Alignment": (
            "How alike the model's tokens and the decoder's latents are.",
            alignments(found),
            ("align",),
        ),
        "Reconstructions": (
            "What a frozen decoder makes of the model's tokens.",
            reconstructions(found, results),
            ("adapt-latents",),
        ),
        "Scaling and the bridge": (
            "Whether a larger bridge, another one, a second encoder, or more clips help.",
            scalings(found),
            (*PROGRAMME[2][1], *PROGRAMME[2][2]),
        ),
        "Prediction": (
            "Whether anything predicts better than what costs nothing.",
            predictions(found),
            PROGRAMME[3][1],
        ),
        "Films: real, generated, copied": (
            "Drag the slider, or use the arrow keys, to go through the frames.",
            [meaning, *films] if films else [],
            ("predict-continue",),
        ),
        **(
            {
                "Which frames are shown": (
                    "Whether it matters which frames of a clip a model sees, at equal frames and at equal time.",
                    chosen,
                    (),
                )
            }
            if chosen
            else {}
        ),
        **(
            {
                "Words about moving objects": (
                    "Whether what is said of objects that come, go and hide is true.",
                    told_parts,
                    (),
                )
            }
            if told_parts
            else {}
        ),
        **(
            {
                "Operations": (
                    "What is done at a bench, before and after fine-tuning, beside what costs nothing.",
                    bench,
                    (),
                )
            }
            if bench
            else {}
        ),
        "Verifiers": (
            "Whether a wrong prediction can be told by its pixels.",
            verifiers(found),
            PROGRAMME[4][1],
        ),
        "Screening": ("Which model.", screening(alone), ()),
        "The gate's own error rates": (
            "How often the verdict itself is wrong, where the truth is known.",
            own_errors(alone),
            (),
        ),
        "What could not be measured": (
            "Every score that is null, every stand-in, and all that was not measured with published weights on real data.",
            not_measured(found, alone, rows),
            (),
        ),
        "Speed": ("Ratios above 1 are faster than the peer.", speed(alone), ()),
        "Runs": ("What every number was computed with.", run_parts(found, alone), ()),
    }
    lacking, body, links = dict.fromkeys((path, r["command"]) for r in rows for path in r["missing"]), [], []
    for n, (title, (words, parts, stems)) in enumerate(sections.items()):
        body.append(
            el(
                "section",
                el("h2", title),
                el("p", words),
                *parts,
                *(absent(path, command) for path, command in lacking if Path(path).stem in stems),
                id=f"part-{n}",
            )
        )
        links.append(el("li", el("a", title, href=f"#part-{n}")))
    kinds = sorted({kinds_of(r["result"]) for r in rows if r["result"]})
    nav = el("nav", el("ul", *links), aria_label="Sections")
    caution = [
        el(
            "p",
            f"The verdicts rest on {'; '.join(kinds)}. Small weights are this project's own: they check the instrument and say nothing of large models.",
            class_="note",
        )
    ]
    main = el(
        "main",
        el("h1", "Foresight: report"),
        el(
            "p",
            f"{QUESTION} Four gates answer, each with PROCEED, PIVOT, STOP or INCONCLUSIVE. "
            f"This page is made of the YAML and PNG below {results.name}/, of nothing else.",
        ),
        *(caution if kinds not in ([], ["pretrained weights, real data"]) else []),
        nav,
        *body,
        id="main",
    )
    return PAGE.substitute(body=ElementTree.tostring(main, encoding="unicode", method="html"))


def summary_of(found, alone, rows):
    """The same in words, in the order of the programme's final report: summary.md."""

    def markdown(head, lines):
        return (
            "".join(
                f"| {' | '.join(str(x).replace('|', '/') for x in line)} |\n"
                for line in [head, ["---"] * len(head), *lines]
            )
            + "\n"
        )

    def about(r):
        return f"{r['model']} on {r['data']}"

    def judged(r):
        if not (x := r["result"]):
            return f"### {about(r)}\n\nMissing: not judged yet.\n\n"
        lines = [
            [
                n + "*" * bool(c.get("stand_in")),
                c.get("level", ""),
                cell(c),
                said(c["threshold"]),
                best_floor(c),
                c["answer"],
            ]
            for n, c in x["criteria"].items()
        ]
        changed = f"Thresholds overridden: {said(x['overridden'])}.\n\n" if x.get("overridden") else ""
        return f"### {about(r)}\n\n{x['headline']}.\n\n{changed}" + markdown(
            ["criterion", "level", "score [95% interval]", "threshold", "best floor", "answer"], lines
        )

    advice = {
        "PROCEED": "go on",
        "PIVOT": "change course, as the verdict says",
        "STOP": "stop here",
        "INCONCLUSIVE": "measure more before deciding",
    }
    text = "# Foresight: final report\n\n## Executive summary\n\n"
    for r in rows:
        text += f"* **Gate {r['gate']}: {PROGRAMME[r['gate']][0]} {about(r)}:** {r['result']['headline'] if r['result'] else 'missing, not judged yet'}.\n"
    text += f"\n## 1. Question and method\n\n{QUESTION}\n\nSplits are by source; layers and settings are chosen on val and scored on test; every score stands "
    text += "beside floors and a ceiling, with a 95% interval of resampled sources. A criterion passes when its interval clears "
    text += "the threshold and its paired gain over the best floor excludes zero. * marks a stand-in.\n\n"
    for gate, (asks, *_) in PROGRAMME.items():
        here = [r for r in rows if r["gate"] == gate]
        text += f"## {gate + 1}. Gate {gate}: {asks[0].lower()}{asks[1:]}\n\n" + "".join(map(judged, here))
        text += "".join(
            f"* missing: `{p}`; `{r['command']}` makes it\n" for r in here for p in r["missing"]
        ) + "\n" * any(r["missing"] for r in here)
    for m, d, x in with_stage(found, "verify"):
        text += f"Verifiers, {m} on {d}:\n\n" + markdown(
            ["verifier", "family", "AUROC"],
            [[n, said(v.get("family")), cell(v, "auroc")] for n, v in x.get("verifiers", {}).items()],
        )
    text += "## 6. Which model\n\n"
    if x := alone.get("screen/screen"):
        lines = [
            [n, r["kind"], cell(r | {"score": r["weighted"]}), said(r["rank"]), said(r["decision"])]
            for n, r in x["models"].items()
        ]
        text += f"{x['headline']}.\n\n" + markdown(
            ["model", "kind", "weighted score", "rank", "decision"], lines
        )
    else:
        text += "* missing: `screen/screen.yaml`; `make screen` makes it\n\n"
    text += "## 7. What could not be measured\n\n" + markdown(
        ["what", "why", "where"], unmeasured(found, alone)
    )
    if x := alone.get("calibrate"):
        text += f"The gate's own errors, on planted worlds: false PROCEED {cell(x, 'false_proceed')}, false STOP {cell(x, 'false_stop')}.\n\n"
    text += "## 8. Recommendation\n\n"
    for r in rows:
        verdict = (r["result"] or {}).get("verdict")
        text += f"* Gate {r['gate']}, {about(r)}: " + (
            f"{advice.get(verdict, verdict)}. {r['result']['headline']}.\n"
            if verdict
            else f"run `{r['command']}` first.\n"
        )
    if any(r["result"] and r["result"].get("weights") != "pretrained" for r in rows):
        text += "\nThese weights are not published ones: before deciding about a large model, run the gates with `MODEL=` its name.\n"
    runs = [(r, r["result"]["run"]) for r in rows if r["result"] and "run" in r["result"]]
    lines = [
        [
            f"gate {r['gate']}, {about(r)}",
            f"`{r['command']}`",
            said(run.get("git_commit")),
            said(run.get("versions")),
        ]
        for r, run in runs
    ]
    return (
        text
        + "\n## 9. Reproduction\n\n"
        + markdown(["verdict", "command", "commit", "versions"], lines)
        + "`make report` builds this page again.\n"
    )


def report(args, started):
    """report.html, and summary.md beside it: whatever of the programme lies in --results; nothing is computed again."""
    results = Path(args.results)
    if not results.is_dir():
        refuse(f"{results} is not a folder; give --results, below which the stages wrote their YAML")
    out = Path(args.out or results / "report.html")
    check_writable(out)
    found, alone = read_results(results)
    rows = programme(found)
    page = page_of(results, found, alone, rows)
    save_text(out, page)
    save_text(out.with_name("summary.md"), summary_of(found, alone, rows))
    result = {
        "stage": "report",
        "out": str(out),
        "bytes": len(page.encode()),
        "yaml": sum(map(len, found.values())) + len(alone),
        "gates": sum(r["result"] is not None for r in rows),
        "missing": sum(len(r["missing"]) for r in rows),
        "seconds": time.time() - started,
    }
    say(result)
    return result


# ---------------------------------------------------------------- the stage


def get_args(argv):
    p = parser(__doc__)
    p.add_argument(
        "--mode",
        default="answers",
        choices=["answers", "describe", "tracks", "trajectories", "operations", "report"],
        help="score answers, ask what happens in films, check what is said of trajectories or of operations, or make a page of all results (default: %(default)s)",
    )
    p.add_argument(
        "--results",
        default="results",
        help="report: the folder of all models' results (default: %(default)s)",
    )
    p.add_argument(
        "--features",
        default="results/tiny/shapes/features",
        help="a folder that extract.py wrote (default: %(default)s)",
    )
    p.add_argument(
        "--data",
        help="the data folder (default: the one the features were made from; trajectories, operations: data/ and the mode)",
    )
    p.add_argument("--points", help="points with commas between (default: all in the index)")
    p.add_argument(
        "--answers", help="what extract.py --ask wrote: score it beside what can be read from the features"
    )
    p.add_argument(
        "--films",
        help="films that predict.py wrote: score the --answers to questions about them, and nothing else; describe: these, or a folder of clips",
    )
    p.add_argument(
        "--model",
        default="tiny",
        help="describe: the vision-language model; tracks: the tracker, tiny-tracker (default: %(default)s)",
    )
    p.add_argument(
        "--models",
        nargs="+",
        default=["tiny"],
        help="operations: vision-language models, the base first and the one in question last (default: tiny)",
    )
    p.add_argument(
        "--frames",
        help="describe: numbers of frames to show of a film, with commas between (default: 3,8,16); --clip: one number (default: 16)",
    )
    p.add_argument("--clips", type=int, help="describe, operations: only so many of the test clips")
    p.add_argument(
        "--size",
        type=int,
        help="describe, operations: side in pixels that frames are squashed to (default: the registry's for the model)",
    )
    p.add_argument(
        "--batch",
        type=int,
        default=16,
        help="describe: films at a time; trajectories: --vlm's clips, of a language model eight times as many questions (default: %(default)s)",
    )
    p.add_argument(
        "--embeddings",
        metavar="FILE",
        help="trajectories: tracks.pt, what a video model noted of every object of --data; tracks: score it",
    )
    p.add_argument(
        "--language",
        metavar="MODEL",
        help="trajectories: a causal language model, by name or a folder (default: the one that --words was trained on)",
    )
    p.add_argument("--words", metavar="FOLDER", help="trajectories: what adapt.py --mode words wrote")
    p.add_argument(
        "--vlm",
        metavar="MODEL",
        help="trajectories: a vision-language model that is shown --frames frames (default: 8) of each clip and was taught nothing",
    )
    p.add_argument(
        "--tuned",
        metavar="MODEL",
        help="trajectories: one that adapt.py --mode tune has taught these questions, on as many frames (data.py cut --evenly)",
    )
    p.add_argument(
        "--questions",
        type=int,
        default=60,
        help="trajectories: of each kind, and clips to describe (default: %(default)s)",
    )
    p.add_argument(
        "--changed",
        nargs="+",
        metavar="NAME=DATA:EMBEDDINGS",
        help="trajectories: the same clips changed (data.py trajectories --change): do the words change with them?",
    )
    p.add_argument(
        "--ask", metavar="QUESTION", help="put to --model about --image or --clip, and nothing else"
    )
    p.add_argument(
        "--image",
        nargs="+",
        metavar="FILE",
        help="--ask: a picture, or several that are asked about together",
    )
    p.add_argument("--clip", metavar="FILE", help="--ask: a video")
    p.add_argument(
        "--choose",
        choices=CHOICES,
        help="--clip: which frames of it are shown, by what moves, evenly, at random or by shots (default: uniform)",
    )
    p.add_argument(
        "--out",
        help="default: binding.yaml beside --features, explain-films.yaml beside --films (--mode describe: explain-describe.yaml)",
    )
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.ask is not None:
        if args.mode != "answers" or args.films or args.answers:
            refuse(
                "--ask is a question about --image or --clip, and goes without --mode, --films and --answers"
            )
        return live(args, started)
    if alone := next((flag for flag in ("image", "clip", "choose") if getattr(args, flag)), None):
        refuse(f"--{alone} needs --ask, a question about it")
    if args.mode == "report":
        return report(args, started)
    if args.mode in ("tracks", "trajectories", "operations"):
        if args.films or args.answers:
            refuse(
                f"--mode {args.mode} needs --data, of data.py {'openpack' if args.mode == 'operations' else 'trajectories'}, and goes without --films and --answers"
            )
        args.data = args.data or f"data/{'operations' if args.mode == 'operations' else 'trajectories'}"
        return {"tracks": track_objects, "trajectories": trajectories, "operations": operations}[args.mode](
            args, started
        )
    if args.mode == "describe":
        if not args.films or args.answers:
            refuse("--mode describe needs --films, a folder of films or of clips, and goes without --answers")
        return describe(args, started)
    if not args.answers:
        refuse("explain.py needs --answers, what extract.py --ask wrote")
    if args.films:
        args.out = Path(args.out or Path(args.films).parent / "explain-films.yaml")
        check_writable(args.out)
        return about_films(args, started)
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
    result = {
        "stage": "binding",
        "model": index["model"],
        "weights": index["weights"],
        "data": index["data"],
        **binding(args, items, split, read, points, index["model"]),
        "run": run_info(args, started, script="explain.py"),
    }
    save_yaml(out, result)
    say(result)
    return result


if __name__ == "__main__":
    main()
