"""Stage 7. Is what the model says true, and does it say what can be read from it?

    python explain.py --features results/tiny/shapes/features --directions results/tiny/shapes/directions.pt    # for extract.py --ask --remove
    python explain.py --features results/tiny/shapes/features --answers results/tiny/shapes/answers.pt          # writes binding.yaml
    python explain.py --films results/tiny/moving/films --answers results/tiny/moving/films-answers.pt          # writes explain-films.yaml

Reads features and the model's own answers (extract.py --ask), and the truth beside their pictures (data.py). binding.yaml asks of the test items:

    <kind>_own       what it answers, parsed: one of the nine words for a place (for motion: eight and still), IoU for a box; unparsed answers score 0
    <kind>_probe     place, direction: a ridge from every token to what it holds finds the tokens of the object asked about, another from a token to the column
                     and the row (or the two signs) of its object says where; layer chosen on val. box: the ridge of bbox_iou
    <kind>_gap       probe less own, paired;  <kind>_withheld: yes, no or inconclusive: does the probe beat both the model and its own best floor?
    <kind>_causal    yes, no or inconclusive: does the answer change more often without the directions of --directions than without as much along random ones?

In the tables `told` is the same probe where truth tells it the tokens, `lost` what the answer loses by the removal beside the random ones.
The caption stands there as an answer that has nothing to do with place.

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

    python explain.py --image a.jpg --ask "What is in the picture?"                          # one's own picture; several are asked about together
    python explain.py --clip a.mp4 --ask "Which way does the red circle move?" --frames 16   # a video: so many of its frames, evenly spread

print what --model says, word by word as it comes, and write nothing but --out, a YAML, if it is given. Every VLM of the registry that has a processor here takes one picture; several pictures
and videos those whose processor takes a chat about them.
"""
import functools
import hashlib
import re
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    ANSWERS,
    DIRECTIONS,
    RATE,
    RESULT,
    WORDS,
    asked_object,
    bootstrap,
    box_iou,
    box_truth,
    chat,
    check_writable,
    choose_device,
    criterion,
    find_model,
    fingerprint,
    frames_of,
    holm,
    join,
    load_features,
    load_items,
    load_pt,
    load_vlm,
    made_up_folder,
    paired_test,
    parser,
    plain,
    plant_features,
    qwen_inputs,
    ratio,
    read_picture,
    refuse,
    resolved_commit,
    ridge,
    run_info,
    save_pt,
    save_yaml,
    say,
    split_indices,
    split_of,
    token_ridge,
    with_grid,
    write_items,
)

LEAST = 0.05  # of the answers: a change rarer than that is none


# ---------------------------------------------------------------- what a model says: words and boxes in text

NUMBER = r"(-?\d+(?:\.\d+)?)"
FOUR = re.compile(rf"[\[(]\s*{NUMBER}\s*,\s*{NUMBER}\s*(?:,|\)\s*,?\s*\()\s*{NUMBER}\s*,\s*{NUMBER}\s*[\]);]")  # [a, b, c, d], the first of [[a,b,c,d;...]], (a,b),(c,d)


def parse_box(text, scale="thousandths", side=None):
    """The first box in an answer, xyxy in 0..1, or None: what stands there is no box, or lies outside the picture.

    scale of bare numbers: thousandths, fractions, or pixels of a picture of `side` px; fractions are recognised under any scale. Kosmos-2's cells of a
    32 x 32 grid (corner cells, by their centres), Florence-2's thousand bins (centres) and PaliGemma's 1024ths (y first) say their own.
    """
    if len(cells := re.findall(r"<patch_index_(\d{4})>", text)[:2]) == 2:
        (x1, y1), (x2, y2) = ((int(c) % 32, int(c) // 32) for c in cells)
        grow = 0.5 if x1 == x2 or y1 == y2 else 0.0  # one row or column of cells is taken whole, as the library's processor does
        box = [(x1 + 0.5 - grow) / 32, (y1 + 0.5 - grow) / 32, (x2 + 0.5 + grow) / 32, (y2 + 0.5 + grow) / 32]
    elif len(bins := re.findall(r"<loc_(\d{1,3})>", text)[:4]) == 4:
        box = [(int(b) + 0.5) / 1000 for b in bins]
    elif len(bins := re.findall(r"<loc(\d{4})>", text)[:4]) == 4:
        box = [int(bins[k]) / 1024 for k in (1, 0, 3, 2)]
    elif found := FOUR.search(text):
        box = [float(n) for n in found.groups()]
        if not ("." in found.group() and max(box) <= 1):
            box = [n / {"thousandths": 1000, "fractions": 1, "pixels": side}[scale] for n in box]
    else:
        return None
    (x1, x2), (y1, y2) = sorted(box[::2]), sorted(box[1::2])
    return [x1, y1, x2, y2] if min(x1, y1) >= 0 and max(x2, y2) <= 1 else None


SIDES = {"left": (-1, None), "right": (1, None), **dict.fromkeys(("top", "upper", "up"), (None, -1)), **dict.fromkeys(("bottom", "lower", "down"), (None, 1))}
MIDDLE = {"place": r"middle|cent(?:er|re)", "direction": r"still|stationary|static|motionless|stands?"}
DENIED = re.compile(r"\b(?:no|not|cannot|neither|unclear)\b")
RELATIVE = re.compile(r"\b(?:left|right|top|bottom)(?:[- ]hand)?(?: side| edge| corner)? of (?!(?:the |this |an? )?(?:\w+ )?(?:image|picture|photo|photograph|frame|scene|canvas|screen)\b)")


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
    said = re.findall(r"\b(left|right|top|upper|up|bottom|lower|down)(?:[- ]?(?:wards?|most|hand))?\b", re.sub(r"\bright (?=in |at |there)", "", text))
    column, row = ({SIDES[w][axis] for w in said} - {None} for axis in (0, 1))
    if len(column) > 1 or len(row) > 1 or not (said or re.search(rf"\b(?:{MIDDLE[kind]})\b", text)):
        return None
    return WORDS[kind][1 + (row.pop() if row else 0)][1 + (column.pop() if column else 0)]


# ---------------------------------------------------------------- binding: what a probe reads, what the model says, what it says without what the probe reads

def where(item, kind):
    """(column, row) of 0, 1, 2: the ninth in which the centre of the object asked about lies, or which way it moves."""
    if kind == "direction":
        return next((c, r) for r, words in enumerate(WORDS[kind]) for c, word in enumerate(words) if word == item["direction"])
    x1, y1, x2, y2 = item["boxes"][asked_object(item)[0]].tolist()
    return tuple(min(int((a + b) / 2 / side * 3), 2) for a, b, side in ((x1, x2, item["width"]), (y1, y2, item["height"])))


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
    holds, on, objects = torch.zeros(len(items), grid[0] * grid[1] * grid[2], len(names)), [], [asked_object(item) for item in items]
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
    rows = {part: (on & torch.isin(torch.arange(n), split[part])[:, None]).flatten().nonzero()[:, 0] for part in ("train", "val")}
    thirds = F.one_hot(truth, 3).flatten(1).float().repeat_interleave(k, 0)[:, None]  # [nK, 1, 6]
    says = token_ridge(x.reshape(n * k, 1, -1), {"word": thirds}, rows["train"], rows["val"])["word"].view(n, k, 6)
    score = token_ridge(x, {"name": holds}, split["train"], split["val"])["name"][torch.arange(n), :, asked].clamp(min=1e-9)
    weights = {"found": score * (score >= score.amax(1, keepdim=True) / 2), "told": on.float()}
    return {name: (w[..., None] * says).sum(1).view(n, 2, 3).argmax(-1) for name, w in weights.items()}


def concept(x, on, truth, train):
    """(directions [k, D] orthonormal, mean [D]): what tokens on the object, of train items, have to do with its column and row. Without their component along the
    directions the cross-covariance is zero, and no linear map reads column or row from those tokens better than a constant does (Belrose et al. 2023, LEACE; the
    orthogonal projection is Haghighatkhah et al. 2022's). Removing the weights of one probe would leave what another can read."""
    rows = x[train][on[train]].double()
    z = F.one_hot(truth[train], 3).flatten(1).double().repeat_interleave(on[train].sum(1), 0)
    mean = rows.mean(0)
    _, size, directions = torch.linalg.svd((z - z.mean(0)).T @ (rows - mean), full_matrices=False)
    return directions[size > 1e-6 * size[0]].float(), mean.float()


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
        out[point] = {name: (found == truth).all(1).float() for name, found in read_words(x.flatten(1, 3), *seen[grid], truth, split).items()}
    return out


def asked_items(items, split):
    """The items that something can be asked about, and where they stand: (items, index [m], split)."""
    index = torch.tensor([k for k, i in enumerate(items) if asked_object(i)], dtype=torch.long)
    number = {int(k): m for m, k in enumerate(index)}
    return [items[k] for k in index], index, {part: torch.tensor([number[int(k)] for k in v if int(k) in number], dtype=torch.long) for part, v in split.items()}


def write_directions(args, items, split, read, points, model):
    """--directions: at the language layer whose tokens say best on val where their object is; not the last one, from which nothing is read any more."""
    kind = "direction" if "direction" in items[0] else "place"
    items, index, split = asked_items(items, split)
    points = [p for p in points if p != "pixels"] if args.points else [p for p in points if p.startswith("language.")][:-1]
    if not points:
        refuse(f"{args.features} has no two language layers; give --points the one at which to remove")
    found = readable(points, items, split, read, kind, index)
    point = max(found, key=lambda p: found[p]["told"][split["val"]].mean())
    x, truth = read(point)[index], torch.tensor([where(i, kind) for i in items])
    on, holds, asked = tokens_of(items, tuple(x.shape[1:4]))
    x = x.flatten(1, 3)
    directions, mean = concept(x, on, truth, split["train"])
    after = read_words(x - (x - mean) @ directions.T @ directions, on, holds, asked, truth, split)["told"]
    test = split["test"]
    save_pt(args.directions, DIRECTIONS, [], {"model": model, "point": point, "kind": kind}, directions=directions, mean=mean)
    result = {"stage": "directions", "point": point, "kind": kind, "directions": len(directions), "told_accuracy": found[point]["told"][test].mean(),
              "told_accuracy_after": (after == truth).all(1).float()[test].mean(), "commonest": commonest(truth, split["train"], test).mean(),
              "energy": ((x - mean)[on] @ directions.T).square().sum() / (x - mean)[on].square().sum()}
    say(result)
    return result


def commonest(truth, train, test):
    """Right or wrong [n_test] when the answer is always the commonest of the train items. truth [n, 2]."""
    words = truth[:, 0] * 3 + truth[:, 1]
    return (words[test] == words[train].bincount().argmax()).float()


def others(score):
    """What the answers score [q] when each is given to another item: the mean of a score matrix [answers, items] off its diagonal."""
    return (score.sum(0) - score.diagonal()) / max(len(score) - 1, 1)


def understood(texts, kind, meta):
    """Parsed answers: boxes [4], words, captions; None where there is nothing to parse."""
    if kind == "box":
        return [b and torch.tensor(b) for b in (parse_box(t, meta["scale"], meta["size"]) for t in texts)]
    return [t.lower() or None if kind == "caption" else parse_word(t, kind.partition("_")[0]) for t in texts]


def right(answers, truth):
    """[answers, items]: 1 where a word is the true one, IoU of a box with the true one; 0 for None."""
    if torch.is_tensor(truth):
        return torch.stack([torch.zeros(len(truth)) if a is None else box_iou(a, truth) for a in answers])
    return torch.tensor([[float(a == t) for t in truth] for a in answers])


def differ(a, b):
    """0/1 per item: the parsed answer is another one; a box, if it overlaps the first by less than half."""
    return torch.tensor([float((x is None) != (y is None) if x is None or y is None else bool(box_iou(x, y) < 0.5) if torch.is_tensor(x) else x != y) for x, y in zip(a, b, strict=True)])


def verdict(*tests):
    """yes where every paired gain excludes zero, no where one of them is surely under LEAST, else inconclusive."""
    return "yes" if min(t["gain_low"] for t in tests) > 0 else "no" if min(t["gain_high"] for t in tests) < LEAST else "inconclusive"


def effect(runs, truth, sources, seed):
    """What removing does beside removing as much at random. runs: {run: parsed answers}. causal is None where the model says nothing that could change."""
    own, drawn = runs["own"], [a for name, a in runs.items() if name.startswith("random")]
    if all(a is None for a in own):
        return {"causal": None}
    changed, by_chance = differ(own, runs["removed"]), torch.stack([differ(own, a) for a in drawn])
    score, random = right(runs["removed"], truth).diagonal(), torch.stack([right(a, truth).diagonal() for a in drawn])
    tests = {"changed": paired_test(changed, by_chance, sources, seed=seed), "lost": paired_test(random, score, sources, seed=seed)}
    return {"changed": changed.mean(), "changed_random": by_chance.mean(), "removed": score.mean(), "random": random.mean(),
            **{f"{name}_{k}": v for name, test in tests.items() for k, v in test.items()}, "causal": verdict(tests["changed"])}


def beside(own, probe, floors, sources, seed):
    """What the model says [n] beside what is read [n], each with floors of its own; withheld: does the probe beat both the model and its own best floor?"""
    row, found = {}, {"own": criterion(own, floors[0], sources, seed=seed), "probe": criterion(probe, floors[1], sources, seed=seed)}
    for name, c in found.items():
        row |= {name: c["score"]} | {f"{name}_{k}": c[k] for k in ("low", "high", "floor", "floor_name", "gain_low", "gain_high", "floors")}
    gap = paired_test(probe, own, sources, seed=seed)
    return row | {"gap": gap["gain"], "gap_low": gap["gain_low"], "gap_high": gap["gain_high"], "gap_p": gap["p"], "withheld": verdict(gap, found["probe"])}


def binding(args, items, split, read, points, model):
    """binding.yaml's content: for every kind of question what the model says beside what is read, and what it says without what is read."""
    said = load_pt(args.answers, ANSWERS)
    items, index, split = asked_items(items, split)
    number = {items[k]["id"]: m for m, k in enumerate(split["test"].tolist())}
    if said["meta"]["model"] != model or set(said["ids"]) != set(number):
        refuse(f"{args.answers} holds answers of {said['meta']['model']} that are not to the test items of {args.features} ({model}); run extract.py --ask with the same --model and --data")
    kind, test, largest = "direction" if "direction" in items[0] else "place", split["test"], None
    words, truth = readable(points, items, split, read, kind, index), torch.tensor([where(i, kind) for i in items])
    layer = {name: best_point({p: f[name] for p, f in words.items()}, split["val"]) for name in ("found", "told")}
    table = {}
    for asked in dict.fromkeys(said["kinds"]):
        rows = [k for k, other in enumerate(said["kinds"]) if other == asked]
        picked = test[torch.tensor([number[said["ids"][k]] for k in rows])]
        here = [items[k] for k in picked]
        sources = [i["source"] for i in here]
        runs = {run: understood([texts[k] for k in rows], asked, said["meta"]) for run, texts in said["answers"].items()}
        if asked == "box":
            largest = box_truth(items)[0]
        target = largest[picked] if asked == "box" else [i["text"].lower() if asked == "caption" else word_of(i, kind) for i in here]
        scores = right(runs["own"], target)
        own, shuffled = scores.diagonal(), others(scores)
        row = table[asked] = {"n": len(rows), "unparsed": sum(a is None for a in runs["own"]) / len(rows)}
        if asked == "caption":
            row |= {"own": own.mean(), "own_floor": shuffled.mean()}
        else:
            if asked == "box":
                found = {p: box_iou(ridge(read(p)[index].flatten(1), {"box": largest}, split["train"])["box"].clamp(0, 1), largest) for p in points}
                at, blind, more = best_point(found, split["val"]), {"constant": box_iou(largest[split["train"]].median(0).values, target)}, {}
            else:
                found, at, blind = {p: f["found"] for p, f in words.items()}, layer["found"], {"commonest": commonest(truth, split["train"], picked)}
                more = {"told": words[layer["told"]]["told"][picked].mean(), "told_layer": layer["told"]}
            pixels = {"pixels": found["pixels"][picked]} if "pixels" in found else {}
            row |= beside(own, found[at][picked], (blind | {"shuffled": shuffled}, blind | pixels), sources, args.seed) | {"probe_layer": at, **more}
        row |= effect(runs, target, sources, args.seed) if "removed" in runs else {}
    for p_value in ("gap_p", "changed_p", "lost_p"):
        for asked, p in holm({asked: row[p_value] for asked, row in table.items() if p_value in row}).items():
            table[asked][f"{p_value}_holm"] = p
    shown = ("own", "own_floor", "unparsed", "probe", "probe_floor", "gap", "gap_low", "gap_high", "withheld", "changed", "changed_random", "causal")
    headline = {f"{asked}_{k}": row[k] for asked, row in table.items() for k in shown if k in row}
    return headline | {"removed_at": said["meta"]["point"], "options_searched": len(set(points) - {"pixels"}), "kinds": table}


# ---------------------------------------------------------------- films: what a model says that watches what was generated

def about_films(args, started):
    """explain-films.yaml: of every conditioning the share of answers that name the direction asked for; floors are those to frozen films, to other clips, and the commonest word."""
    items, index = load_items(args.films)
    said, film = load_pt(args.answers, ANSWERS), {i["id"]: i for i in items}
    if "conditioning" not in index or "direction" not in items[0]:
        refuse(f"{args.films} holds no films of clips with a direction; give the folder films that predict.py writes")
    if not set(said["ids"]) <= set(film) or "direction" not in said["kinds"]:
        refuse(f"{args.answers} holds no answers to questions of direction about {args.films}; run extract.py --ask --data {args.films}")
    scores, silent, clips = {}, {}, {}
    for kind in dict.fromkeys(said["kinds"]):
        for name in dict.fromkeys(i["conditioning"] for i in items):
            rows = [k for k, i in enumerate(said["ids"]) if said["kinds"][k] == kind and film[i]["conditioning"] == name]
            answers = understood([said["answers"]["own"][k] for k in rows], kind, said["meta"])
            clips[name] = [film[said["ids"][k]] for k in rows]
            scores[kind, name], silent[kind, name] = right(answers, [i["direction"] for i in clips[name]]), sum(a is None for a in answers) / max(len(rows), 1)
    main, kinds = index["conditioning"], list(dict.fromkeys(said["kinds"]))
    if incomplete := [name for name in ("real", "frozen", main) if [i["id"].rpartition("/")[0] for i in clips.get(name, [])] != [i["id"].rpartition("/")[0] for i in clips[main]]]:
        refuse(f"{args.answers} lacks answers about films of {incomplete[0]}; run extract.py --ask --data {args.films} again")
    truth, sources = [i["direction"] for i in clips[main]], [i["source"] for i in clips[main]]
    kind = max(kinds, key=lambda k: scores[k, "real"].diagonal().mean())
    usual = index.get("commonest") or max(sorted(set(truth)), key=truth.count)
    floors = {"commonest": torch.tensor([float(t == usual) for t in truth]), "frozen": scores[kind, "frozen"].diagonal(), "other_item": others(scores[kind, main])}
    c = criterion(scores[kind, main].diagonal(), floors, sources, ceiling=scores[kind, "real"].diagonal().mean().item(), seed=args.seed, conditioning=main, kind=kind,
                  unparsed=silent[kind, main], options_searched=len(kinds))
    table = {name: {"n": len(here)} for name, here in clips.items()}
    for (asked, name), score in scores.items():
        values = bootstrap(score.diagonal(), [i["source"] for i in clips[name]], seed=args.seed)
        table[name] |= dict(zip((asked, f"{asked}_low", f"{asked}_high"), values, strict=True)) | {f"{asked}_unparsed": silent[asked, name]}
    result = {"stage": "films", **{k: said["meta"][k] for k in ("model", "weights")}, "data": index["data"], "data_name": index["name"], **{k: index[k] for k in ("video", "video_weights")},
              "conditioning": main, "kind": kind, "semantic_accuracy": c["score"], **{f"semantic_accuracy_{k}": c[k] for k in ("low", "high", "floor", "floor_name", "ceiling", "skill")},
              "unparsed": silent[kind, main], "criteria": {"semantic_accuracy": c}, "conditionings": table, "run": run_info(args, started, script="explain.py")}
    save_yaml(args.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- describe: what a model says happens in clips, real and generated, and whether that is what happens

# Verbs and the words that count for them: those of Something-Something's 174 templates (Goyal et al. 2017), and of work with the hands. Written before any film was looked at,
# and frozen: a synonym added because a model happened to say it would be fitted to the answers that it judges. Irregular forms stand here; `stem` does the others.
SYNONYMS = {words.split()[0]: words.split() for words in re.split(r";\s*", """
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
""".strip())}
OPPOSITES = ("push", "pull"), ("open", "close"), ("cover", "uncover"), ("fold", "unfold"), ("lift", "drop"), ("attach", "detach"), ("pack", "unpack")  # not put and take: who puts a thing has taken it
# Where it goes: of those in one group another one contradicts. (Prepositions of place contradict nothing: much happens "on the table".)
ACROSS = (r"(?:from )?(?:the )?{0} (?:side |edge )?(?:\w+ )?to(?:wards?)? (?:the )?{1}\b|to(?:wards?)? the {1} ?(?:side)?\b(?! to| of)|\b{1}wards?\b|"
          r"(?:camera|moves?|moving|slides?|sliding|pans?|turns?|turning) (?:to the )?{1}\b(?! to)")
WAYS = ({"right": ACROSS.format("left", "right"), "left": ACROSS.format("right", "left")},
        {"up": r"\bup(?:wards?)?\b(?! ?(?:side|right))", "down": r"(?<!upside[ -])\bdown(?:wards?)?\b"},
        {"towards": r"\bcloser\b|\btowards?\b(?! the (?:left|right))", "away": r"\baway\b|\bf[au]rther\b|\bapart\b"},
        {"into": r"\binto\b(?! (?:two|half|halves|pieces))|\binside\b|\bin (?:the|a|an|it|something|some)\b", "out of": r"\bout\b|\bfrom (?:inside|within)\b"},
        {"onto": r"\bonto\b|\bon top\b|\bon\b", "off": r"\boff\b"},
        {"behind": r"\bbehind\b"}, {"in front of": r"\bin front of\b"}, {"next to": r"\bnext to\b|\bbeside\b|\balongside\b"}, {"under": r"\bunder(?:neath)?\b|\bbeneath\b|\bbelow\b"},
        {"over": r"\bover\b|\babove\b"}, {"upright": r"\bupright\b"}, {"upside down": r"\bupside[- ]down\b"}, {"in two": r"\btwo (?:pieces|halves|parts)\b|\bhalf\b"})
IMPLIED = {"lift": "up", "fall": "down", "approach": "towards"}  # said by the verb itself
FEIGNED = {"pretend": r"\b(?:pretend|feign|mim(?:e|ing)|fake)\w*", "fail": r"\b(?:fail|unable|unsuccessful|attempt)\w*|\btr(?:y|ies|ied|ying)\b"}
PHRASES = (re.compile(r"\b((?:pick|open|fold|cover|tear|pil|stack|set|stand)\w*(?: (?:it|them|something|the \w+))?) up\b"),  # no way is meant
           re.compile(r"\b((?:put|set|plac|lay|sit)\w*(?: (?:it|them|something|the \w+))?) down\b"))
CLAUSE = re.compile(r",|\(|\b(?:but|so that|so it|so|until|then|without|while|because|that|like|with something (?:on|in) it)\b")
NEVER = re.compile(r"\b(?:not|never|without|instead of|rather than|no longer)\b.*?(?=[,.;]|\bbut\b|$)")
ASIDE = re.compile(r"\bin (?:the|this|a) (?:short )?(?:video|clip|scene|footage|film|image|picture|background|foreground|air)\b|\bin (?:his|her|their|one|the|a) hands?\b")


def stem(word):
    """A verb without its ending: moves, moved, moving -> mov."""
    word = next((word[:-len(end)] for end in ("ing", "ed", "es", "s") if word.endswith(end) and len(word) - len(end) >= 3), word)
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
    return {"stems": stems, "ways": ways | {way for verb, way in IMPLIED.items() if not label and stems & STEMS[verb]}, "feigned": feigned}


@functools.cache
def wanted(action):
    """What has to be said of an action, a label or template: (its verb in the table or None, stems of all its words, ways of its first clause, all ways, what is feigned)."""
    label = re.sub(r"[\[\]]", "", action.lower())
    words, whole = [stem(w) for w in re.findall("[a-z]+", label)], told(label, True)
    return next((LEADING[w] for w in words if w in LEADING), None), set(words), told(CLAUSE.split(label)[0], True)["ways"], whole["ways"], whole["feigned"]


def recalled(said, action):
    """Does what was `told` tell the action? Its verb, or a synonym, has to be said, and every way it goes, and nothing that excludes one of these; and that somebody pretends,
    tries or fails, of such an action and of no other. Of a label whose verb is not in the table: all its words."""
    verb, words, ways, all_ways, feigned = wanted(action)
    if verb is None:
        return bool(words) and words <= said["stems"]
    opposite = {stem(b) for pair in OPPOSITES for a, b in (pair, pair[::-1]) if a == verb} - words
    if not said["stems"] & STEMS[verb] or said["stems"] & opposite or said["feigned"] - feigned or bool(said["feigned"]) != bool(feigned):
        return False
    return ways <= said["ways"] and not any(ways & set(group) and (said["ways"] - all_ways) & set(group) for group in WAYS)


# ---------------------------------------------------------------- describe: films are asked about

FRAMES_AS = {**dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "video"), **dict.fromkeys(("llava", "llava_next", "llava_onevision", "internvl"), "pictures")}
DESCRIBE, CHOOSE = "Describe what happens in this video in one sentence.", "Which of these happens in this video?"
NAMING, YES = ("asked", "options", "described"), ("yes_true", "yes_false")  # of equal recall the earlier of NAMING is taken
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
        questions["options"] = [f"{q} Answer with one of: {', '.join(options)}." for q in openly or [CHOOSE] * len(films)]
    if len(set(actions.values())) > 1:
        here = [i.get("conditioning", "real") in ("real", main) for i in films]
        questions["yes_true"] = [happens(i, action_of(i)) if h else None for i, h in zip(films, here, strict=True)]
        questions["yes_false"] = [happens(i, another(clip_of(i), action_of(i), list(actions.values()), seed)) if h else None for i, h in zip(films, here, strict=True)]
    return questions


def clip_of(item):
    return item["id"].rpartition("/")[0] if "conditioning" in item else item["id"]


def put_to(model, processor, frames, question, at=None):
    """What `generate` takes for one question about each of some films, uint8 [n, k, H, W, 3], that show the frames numbered at[0] of at[1]; without `at` about k pictures that are no film."""
    kind = model.config.model_type
    if FRAMES_AS.get(kind) == "video":
        given = qwen_inputs(processor, frames, question, at, album=at is None)
    elif kind in FRAMES_AS:
        whole = {"images_kwargs": {"crop_to_patches": False}} if kind == "internvl" else {}  # a frame is one tile, as in the model's videos
        given = processor(text=[chat(processor, question, count=frames.shape[1])] * len(frames), images=[list(film.permute(0, 3, 1, 2)) for film in frames], return_tensors="pt", **whole)
    else:
        given = ALONE[kind](model, processor, frames[:, 0], question)
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    return {k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v for k, v in given.items()}


@torch.inference_mode()
def answers_to(model, processor, frames, question, at):
    """The greedy answers to one question about films, uint8 [n, k, H, W, 3], that show the frames numbered at[0] of at[1]: list of str. Nothing is padded."""
    given = put_to(model, processor, frames, question, at)
    tokens = model.generate(**given, do_sample=False, max_new_tokens=LONGEST, pad_token_id=model.generation_config.pad_token_id or 0)
    return [text.strip() for text in processor.batch_decode(tokens[:, given["input_ids"].shape[1]:], skip_special_tokens=True)]


def ask_films(films, questions, counts, entry, where, out, meta, batch):
    """{(kind, k): an answer for each film}; what `out` holds of the same films, questions and model is not asked again. where: (device, dtype).

    The first of NAMING that there is is asked with every number of frames, the other kinds with the largest.
    """
    ids, before = [i["id"] for i in films], load_pt(out, ANSWERS) if out.is_file() else None
    answers = before["answers"] if before and (before["ids"], before["meta"], before.get("questions")) == (ids, plain(meta), questions) else {}
    first = next(kind for kind in NAMING if kind in questions)
    wanted = [(kind, k) for k in counts for kind in questions if kind == first or k == max(counts)]
    todo = [(kind, k) for kind, k in wanted if f"{kind}-{k}" not in answers]
    model, processor = load_vlm(entry, *where) if todo else (None, None)
    with tqdm(total=sum(q is not None for kind, _ in todo for q in questions[kind]), desc="asked", unit="film") as bar:
        for kind, k in todo:
            together, texts = {}, [None] * len(films)
            for n, (item, question) in enumerate(zip(films, questions[kind], strict=True)):
                if question is not None:
                    together.setdefault((question, len(item["frames"])), []).append(n)
            for (question, length), members in together.items():
                at = spread(length, k)
                for some in (members[n:n + batch] for n in range(0, len(members), batch)):
                    shown = torch.stack([frames_of({"frames": films[n]["frames"][at]}, meta["size"]) for n in some])
                    for n, text in zip(some, answers_to(model, processor, shown, question, (at, length)), strict=True):
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
    said = [m and m.group(1).lower() == "yes" for m in (re.match(r"\W*(yes|no)\b", t, re.IGNORECASE) for t in texts)]
    heard = [k for k, s in enumerate(said) if s is not None]
    values = bootstrap(torch.tensor([float(said[k]) for k in heard]), [sources[k] for k in heard], seed=seed) if heard else (None,) * 3
    return dict(zip(("share", "low", "high"), values, strict=True)) | {"unparsed": 1 - len(heard) / len(texts)}


def survived(answers, names, main, truth, vocabulary, usual, sources, seed):
    """What of explain-describe.yaml follows from the answers: {(kind, k): texts}, the films of the first of `names` first, in each the clips of `truth` [n], their actions."""
    n, score, table = len(truth), {}, {name: {"n": len(truth)} for name in names}
    column = torch.tensor([vocabulary.index(a) for a in truth])
    for (kind, k), texts in answers.items():
        for place, name in enumerate(names):
            own = texts[place * n:(place + 1) * n]
            if kind in YES and own[0] is None:
                continue
            if kind in YES:
                table[name][f"{kind}-{k}"] = yes_share(own, sources, seed)
            else:
                said = names_actions(own, kind, vocabulary)
                score[name, kind, k] = said[:, column].double()  # [answers, clips]
                recall = bootstrap(score[name, kind, k].diagonal(), sources, seed=seed)
                table[name][f"{kind}-{k}"] = dict(zip(("recall", "low", "high"), recall, strict=True)) | {"unparsed": (~said.any(1)).double().mean()}
    searched = [(kind, k) for name, kind, k in score if name == "real"]
    kind, k = max(searched, key=lambda s: (score["real", *s].diagonal().mean(), s[1], -NAMING.index(s[0])))  # by the clips themselves alone
    right = {name: score[name, kind, k].diagonal() for name in names}
    real, generated = right["real"], main != "real"
    floors = {"other_item": others(score[main, kind, k]), "commonest": torch.tensor([float(t == usual) for t in truth]).double()} | {x: right[x] for x in STILL if x in right and x != main}
    more = {"seed": seed, "conditioning": main, "kind": kind, "frames": k, "options_searched": len(searched), "unparsed": table[main][f"{kind}-{k}"]["unparsed"]}
    criteria = {"action_recall": criterion(right[main], floors, sources, ceiling=real.mean().item() if generated else 1.0, **more)}
    if generated and real.any():
        kept = {name: ratio(x, real) for name, x in right.items() if name != "real"}
        criteria["retention"] = criterion(kept[main], {name: ratio(x, real) for name, x in floors.items()}, sources, ceiling=kept["vae"].mean().item() if "vae" in kept else 1.0, **more)
        for name, x in kept.items():
            table[name] |= dict(zip(("retention", "retention_low", "retention_high"), bootstrap(x, sources, seed=seed), strict=True))
    headline = {"kind": kind, "frames": k}
    for word, row in (("real", table["real"][f"{kind}-{k}"]), ("generated", table[main][f"{kind}-{k}"] if generated else {})):
        headline |= {f"action_recall_{word}{end}": row.get(value) for end, value in (("", "recall"), ("_low", "low"), ("_high", "high"))}
    headline |= {f"retention{end}": table[main].get(f"retention{end}") for end in ("", "_low", "_high")}
    headline["retention_reason"] = None if "retention" in criteria else "no action of a real clip is recalled, so there is none to retain" if generated else "there are no generated films"
    headline |= {f"retention_{name}": table[name].get("retention") for name in names if name not in ("real", main)}
    headline |= {f"action_recall_{name}": value for name, value in criteria["action_recall"]["floors"].items()}
    most = max(k for _, _, k in score)
    for end, name in (("", main), ("_real", "real")):
        true, false = (table[name].get(f"{question}-{most}", {}) for question in YES)
        headline |= {f"yes_bias{end}{part}": false.get(value) for part, value in (("", "share"), ("_low", "low"), ("_high", "high"))}
        headline |= {f"yes_unparsed{end}": false.get("unparsed"), f"yes_gap{end}": None if None in (true.get("share"), false.get("share")) else true["share"] - false["share"]}
    return headline | {"unparsed": more["unparsed"], "options_searched": len(searched), "criteria": criteria, "conditionings": table}


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
    if lacking := [name for name in ("real", index.get("conditioning", "real"), *films) if not ids or [clip_of(i) for i in films.get(name, ())] != ids]:
        refuse(f"{folder} lacks films of {lacking[0]}, or has them of other clips than the real ones; run predict.py again")
    return {name: these[:clips] for name, these in films.items()}


def describe(args, started):
    """explain-describe.yaml: what a model says happens in films, beside what does."""
    entry = find_model(args.model)
    if entry.get("type") not in FRAMES_AS:
        refuse(f"--model {args.model} is of type {entry.get('type')}, which has no processor that takes a chat about several frames; use a Qwen model, llava-onevision or internvl3-8b")
    if small := [k for k in ("clips", "size", "batch") if getattr(args, k) is not None and getattr(args, k) < 1]:
        refuse(f"--{small[0]} {getattr(args, small[0])} is not positive; give 1 or more")
    counts = (args.frames or "3,8,16").split(",")
    if not all(k.isdecimal() and int(k) > 1 for k in counts):
        refuse(f"--frames {args.frames} are not numbers of 2 or more with commas between; give, say, 3,8,16")
    items, index = load_items(args.films)
    films, main = films_to_describe(items, index, args.films, args.clips), index.get("conditioning", "real")
    real, every = films["real"], [i for these in films.values() for i in these]
    longest = max(len(i["frames"]) for i in every)
    used = {int(k): min(int(k), longest) for k in counts}
    actions, directions = {clip_of(i): action_of(i) for i in real}, [w for row in WORDS["direction"] for w in row]
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
    meta = {"mode": "describe", "model": entry["name"], "weights": entry["weights"], "checkpoint": fingerprint(entry["path"]), "data": index["data"], "size": size, "rate": RATE, "dtype": str(dtype),
            "films": digest.hexdigest()[:16]}
    answers = ask_films(every, questions, sorted(set(used.values())), entry, (device, dtype), out.with_name(f"{out.stem}-answers.pt"), meta, args.batch)

    truth = [action_of(i) for i in real]
    taught = [action_of(i) for i in items if split_of(i["source"]) == "train" and action_of(i)] or truth
    usual = index.get("commonest") or max(sorted(set(taught)), key=taught.count)
    vocabulary = directions if set(options) <= set(directions) else options
    found = survived(answers, list(films), main, truth, vocabulary, usual, [i["source"] for i in real], args.seed)
    asked = found["kind"], found["frames"]
    save_pt(out.with_name(f"{out.stem}-said.pt"), RESULT, [i["id"] for i in every], meta | {"kind": asked[0], "frames": asked[1]}, actions=vocabulary,
            said=names_actions(answers[asked], asked[0], vocabulary))
    result = {"stage": "describe", "model": entry["name"], "weights": entry["weights"], "data": index["data"], "data_name": index["name"], "video": index.get("video"),
              "video_weights": index.get("video_weights"), "conditioning": main, **{k: x for k, x in found.items() if not isinstance(x, dict)}, "clips": len(real),
              "sources": len({i["source"] for i in real}), "frames_as": FRAMES_AS[entry["type"]], "size": size, "frames_used": used, **{k: x for k, x in found.items() if isinstance(x, dict)},
              "run": run_info(args, started, script="explain.py", device=f"{device.type} ({why})", dtype=str(dtype), model_revision=resolved_commit(entry))}
    save_yaml(out, result)
    say(result)
    return result


# ---------------------------------------------------------------- --ask: one's own pictures or video, answered word by word

def to_cogvlm2(model, processor, pictures, question):
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD
    x = frames_of({"frames": pictures}, model.config.vision_config.image_size).float() / 255
    return model.inputs(((x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)).permute(0, 3, 1, 2), processor(f"Question: {question} Answer:", add_special_tokens=False).input_ids)


def to_kosmos2(model, processor, pictures, question):
    return processor(text=[f"Question: {question} Answer:"] * len(pictures), images=list(pictures.permute(0, 3, 1, 2)), num_image_tokens=model.config.latent_query_num, return_tensors="pt")


def to_florence2(model, processor, pictures, question):
    return processor(text=[question] * len(pictures), images=list(pictures.permute(0, 3, 1, 2)), return_tensors="pt")


ALONE = {"cogvlm2": to_cogvlm2, "kosmos-2": to_kosmos2, "florence2": to_florence2}  # these take one picture
MOST = 256  # tokens of an answer


def watched(path, k, size):
    """(k frames of a video, evenly spread, uint8 [k, size, size, 3]; their numbers, of how many, frames a second). The packets are counted first, so no other frame is kept.

    What is shown more densely than RATE is said to be slower: nearer steps would share one position in time.
    """
    import av
    import numpy as np
    if not Path(path).is_file():
        refuse(f"{path} does not exist; give --clip the file of a video")
    kept = {}
    try:
        with av.open(str(path)) as file:
            rate, length = float(file.streams.video[0].average_rate or RATE), sum(p.size > 0 for p in file.demux(video=0))
        wanted = spread(length, k)
        with av.open(str(path)) as file:
            for number, frame in enumerate(file.decode(video=0)):
                if number in wanted:  # a telephone's films may lie on their side
                    kept[number] = frames_of({"frames": torch.from_numpy(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)).copy())[None]}, size)
    except (av.FFmpegError, OSError, ValueError, IndexError) as e:
        refuse(f"{path} cannot be read as a video ({getattr(e, 'strerror', None) or e}); give an MP4, WebM or GIF file")
    if not kept:
        refuse(f"{path} holds no frame; give another video")
    return torch.cat(list(kept.values())), (list(kept), length, min(rate, RATE * length / len(kept)))


def live(args, started):
    """What a model says of pictures or of a video, printed as it comes."""
    entry, frames = find_model(args.model), args.frames or "16"
    if entry.get("type") not in FRAMES_AS:
        if entry.get("type") not in ALONE:
            refuse(f"--model {args.model} is of type {entry.get('type')}, for which no processor here puts a question beside a picture; use tiny, a Qwen model, llava-next or internvl3-8b")
        if args.clip or len(args.image or ()) > 1:
            refuse(f"--model {args.model} is of type {entry['type']}, which takes one picture at a time; give one --image, or a Qwen model, llava-onevision or internvl3-8b")
    if bool(args.image) == bool(args.clip) or not args.ask.strip():
        refuse("--ask needs a question, and either --image, the files of pictures, or --clip, that of a video")
    if args.clip and not (frames.isdecimal() and int(frames) > 1):
        refuse(f"--frames {frames} is not a number of 2 or more; give, say, 16")
    if args.size is not None and args.size < 1:
        refuse(f"--size {args.size} is not positive; give 1 or more")
    if args.out:
        check_writable(args.out)
    size = args.size or entry["clip" if args.clip else "size"]
    x, at = watched(args.clip, int(frames), size) if args.clip else (torch.cat([frames_of({"frames": read_picture(p)}, size) for p in args.image]), None)

    from transformers import TextStreamer
    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    model, processor = load_vlm(entry, device, dtype)
    given, own, tokenizer, began = put_to(model, processor, x[None], args.ask, at), entry["type"] == "cogvlm2", getattr(processor, "tokenizer", processor), time.time()
    more = {} if own else {"do_sample": False, "pad_token_id": model.generation_config.pad_token_id or 0}
    with torch.inference_mode():
        tokens = model.generate(**given, **more, max_new_tokens=MOST, streamer=TextStreamer(tokenizer, skip_prompt=not own, skip_special_tokens=True))[0]
    words = tokens if own or entry["type"] == "florence2" else tokens[given["input_ids"].shape[1]:]  # all there is of a decoder of its own
    result = {"stage": "explain", "mode": "ask", "question": args.ask, "answer": tokenizer.decode(words, skip_special_tokens=True).strip(), "seconds": time.time() - began, "tokens": len(words),
              "model": entry["name"], "weights": entry["weights"], "frames": len(x), "size": size, **({"clip": args.clip, "frames_used": at[0]} if args.clip else {"images": args.image}),
              "run": run_info(args, started, script="explain.py", device=f"{device.type} ({why})", dtype=str(dtype), model_revision=resolved_commit(entry))}
    if args.out:
        save_yaml(args.out, result)
    say(result)
    return result


# ---------------------------------------------------------------- the stage

def smoke_input(args, folder):
    """Tokens that know where their object is, and a model that says so, and no longer does without what they know."""
    g = torch.Generator().manual_seed(args.seed)
    corner = torch.rand(60, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 8], 1).round()
    ids, frames = [f"box-{i}" for i in range(60)], torch.randint(0, 256, (60, 1, 32, 32, 3), generator=g, dtype=torch.uint8)
    items = [{"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]} for i, f, b in zip(ids, frames, boxes, strict=True)]
    write_items(folder / "data", items, {"data": "synthetic", "name": "boxes"})
    on = tokens_of(items, (1, 6, 6))[0].view(-1, 1, 6, 6, 1).float()
    thirds = F.one_hot(torch.tensor([where(i, "place") for i in items]), 3).flatten(1)[:, None, None, None]
    plant_features(folder / "features", ids, {"language.0": torch.cat([torch.randn(60, 1, 6, 6, 4, generator=g) * 0.1, on, on * thirds], -1)}, folder / "data")
    test = [i for i in items if split_of(i["source"]) == "test"]
    says = [f"in the {word_of(i, 'place')}" for i in test]
    save_pt(folder / "answers.pt", ANSWERS, [i["id"] for i in test], {"model": "planted", "scale": "thousandths", "size": 32, "point": "language.0"},
            kinds=["place"] * len(test), questions=["Where is the box?"] * len(test), answers={"own": says, "removed": ["in the middle"] * len(test), "random0": says})
    args.features, args.answers, args.out = str(folder / "features"), str(folder / "answers.pt"), args.out or str(folder / "binding.yaml")


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--mode", default="answers", choices=["answers", "describe"], help="score answers, or ask what happens in films (default: %(default)s)")
    p.add_argument("--features", default="results/tiny/shapes/features", help="a folder that extract.py wrote (default: %(default)s)")
    p.add_argument("--data", help="the data folder (default: the one the features were made from)")
    p.add_argument("--points", help="points with commas between (default: all in the index)")
    p.add_argument("--directions", help="write what extract.py --ask --remove takes out of a language layer (--points: at another place), and nothing else")
    p.add_argument("--answers", help="what extract.py --ask wrote: score it beside what can be read from the features")
    p.add_argument("--films", help="films that predict.py wrote: score the --answers to questions about them, and nothing else; describe: these, or a folder of clips")
    p.add_argument("--model", default="tiny", help="describe: the vision-language model (default: %(default)s)")
    p.add_argument("--frames", help="describe: numbers of frames to show of a film, with commas between (default: 3,8,16); --clip: one number (default: 16)")
    p.add_argument("--clips", type=int, help="describe: only so many of the test clips")
    p.add_argument("--size", type=int, help="describe: side in pixels that frames are squashed to (default: the registry's for the model)")
    p.add_argument("--batch", type=int, default=16, help="describe: films at a time (default: %(default)s)")
    p.add_argument("--ask", metavar="QUESTION", help="put to --model about --image or --clip, and nothing else")
    p.add_argument("--image", nargs="+", metavar="FILE", help="--ask: a picture, or several that are asked about together")
    p.add_argument("--clip", metavar="FILE", help="--ask: a video")
    p.add_argument("--out", help="default: binding.yaml beside --features, explain-films.yaml beside --films (--mode describe: explain-describe.yaml)")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.ask is not None:
        if args.mode != "answers" or args.smoke or args.films or args.answers or args.directions:
            refuse("--ask is a question about --image or --clip, and goes without --mode, --smoke, --films, --answers and --directions")
        return live(args, started)
    if args.image or args.clip:
        refuse(f"--{'image' if args.image else 'clip'} needs --ask, a question about it")
    if args.mode == "describe":
        if not args.films or args.smoke or args.answers or args.directions:
            refuse("--mode describe needs --films, a folder of films or of clips, and goes without --smoke, --answers and --directions")
        return describe(args, started)
    if args.smoke:
        smoke_input(args, made_up_folder())
    if not (args.directions or args.answers):
        refuse("explain.py needs --answers, what extract.py --ask wrote, or --directions, where to write what --ask --remove takes out")
    if args.films:
        if not args.answers or args.directions:
            refuse("--films goes with --answers, what extract.py --ask wrote about them, and not with --directions")
        args.out = Path(args.out or Path(args.films).parent / "explain-films.yaml")
        check_writable(args.out)
        return about_films(args, started)
    index, read = load_features(args.features)
    items, _ = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.directions or args.out or Path(args.features).parent / "binding.yaml")
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        refuse(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    points = [p for p in points if p in with_grid(index)]
    if "boxes" not in items[0]:
        refuse(f"{index['data_path']} has no boxes, and so nothing of which the place could be asked")
    if args.directions:
        return write_directions(args, items, split, read, points, index["model"])
    result = {"stage": "binding", "model": index["model"], "weights": index["weights"], "data": index["data"], **binding(args, items, split, read, points, index["model"]),
              "run": run_info(args, started, script="explain.py")}
    save_yaml(out, result)
    say(result)
    return result


if __name__ == "__main__":
    main()
