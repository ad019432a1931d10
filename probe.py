"""Stage 2. What space and motion does each layer still hold, for the simplest decoder that could read it?

    python probe.py --features results/tiny/shapes/features --random results/tiny/shapes/features-random --out results/tiny/shapes/probe.yaml
    python probe.py --features results/tiny/moving/features --out results/tiny/moving/probe.yaml
    python probe.py --features results/tiny/shapes/features --directions results/tiny/shapes/directions.pt    # for extract.py --ask --remove
    python probe.py --features results/tiny/shapes/features --answers results/tiny/shapes/answers.pt          # writes binding.yaml

Reads features (extract.py) and the truth beside their pictures (data.py). Writes probe.yaml, and probe.pt with what was decoded for the test
items at the chosen layers. Which probes run depends on the truth there is:

    bbox_iou        closed-form ridge from the flattened token grid to the largest box; penalty by leave-one-out
    spatial_iou     ridge from every token to the mask of its own cell (foreground: the masks, or the boxes where there are none)
    map50           DETR-style set prediction, five seeds, mAP@0.5 by pycocotools
    recon_*         ridge from every token to its own pixels: LPIPS, SSIM, edge F1 of that picture
    direction_accuracy   (clips) ridge from pooled features to the direction of motion

Points whose tokens have no place in the picture (`grid: false` in the index) are asked for the direction only.
The layer is chosen on val, its score comes from test, and beside every score stand the floors from the same split: a constant, shuffled
labels, raw pixels through the same probe, the same architecture with random weights (--random). `leak` names a control that scores what it cannot know.

binding.yaml asks whether the model says what can be read (extract.py --ask), on the same items, those of the test split:

    <kind>_own       what it answers, parsed: one of the nine words for a place (for motion: eight and still), IoU for a box; unparsed answers score 0
    <kind>_probe     place, direction: a ridge from every token to what it holds finds the tokens of the object asked about, another from a token to the column
                     and the row (or the two signs) of its object says where; layer chosen on val. box: the ridge of bbox_iou
    <kind>_gap       probe less own, paired;  <kind>_withheld: yes, no or inconclusive: does the probe beat both the model and its own best floor?
    <kind>_causal    yes, no or inconclusive: does the answer change more often without the directions of --directions than without as much along random ones?

In the tables `told` is the same probe where truth tells it the tokens, `lost` what the answer loses by the removal beside the random ones.
The caption stands there as an answer that has nothing to do with place.
"""
import re
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    ANSWERS,
    DIRECTIONS,
    MASK,
    RESULT,
    WORDS,
    ap_criterion,
    ap_runs,
    asked_object,
    bootstrap,
    box_iou,
    box_truth,
    check_writable,
    criterion,
    edge_f1,
    foreground,
    frames_of,
    from_cells,
    holm,
    join,
    load_features,
    load_items,
    load_lpips,
    load_pt,
    made_up_folder,
    mask_iou,
    mask_scores,
    paired_test,
    parser,
    refuse,
    ridge,
    run_info,
    save_pt,
    save_yaml,
    say,
    split_indices,
    ssim,
    to_cells,
    token_ridge,
    train_set_probe,
    with_grid,
)

PICTURE, SET_GRID = 64, 6  # pixels a side of decoded pictures; the most tokens a side that the set probe reads
SEEDS = 5
LEAST = 0.05  # of the answers: a change rarer than that is none


# ---------------------------------------------------------------- probes: features in, scores per item out

def probe_boxes(x, largest, split, seed=0):
    """{true, shuffled}: IoU of the ridge box with the largest true box, per item [n] (shuffled: [SEEDS, n]); and the boxes."""
    g = torch.Generator().manual_seed(seed)
    targets = {"true": largest}
    for s in range(SEEDS):
        wrong = largest.clone()
        wrong[split["train"]] = largest[split["train"]][torch.randperm(len(split["train"]), generator=g)]
        targets[f"shuffled{s}"] = wrong
    boxes = ridge(x.flatten(1), targets, split["train"])
    iou = {k: box_iou(b.clamp(0, 1), largest) for k, b in boxes.items()}
    return iou["true"], torch.stack([iou[f"shuffled{s}"] for s in range(SEEDS)]), boxes["true"].clamp(0, 1)


def probe_cells(x, masks, pictures, split):
    """Token-wise ridge to masks and pixels. x [n,h,w,D] -> soft masks [n,MASK,MASK], pictures uint8 [n,PICTURE,PICTURE,3] (None where `pictures` is)."""
    n, h, w, _ = x.shape
    targets = {}
    for name, maps, side in (("mask", masks[:, None], MASK), ("picture", pictures, PICTURE)):
        if maps is None:
            continue
        s = max(-(-side // h), 1)
        targets[name] = to_cells(F.interpolate(maps, (h * s, w * s), mode="bilinear", align_corners=False, antialias=True), h, w)
    found = token_ridge(x.flatten(1, 2), targets, split["train"], split["val"])
    soft = from_cells(found["mask"], h, w, 1, MASK)[:, 0]
    if pictures is None:
        return soft, None
    picture = from_cells(found["picture"], h, w, 3, PICTURE).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1)
    return soft, picture


def probe_set(x, truth, classes, split, seed, sources):
    """Set prediction from tokens [n,h,w,D], read at no more than SET_GRID a side: mAP@0.5 of each seed on val and on test, whose `sources` are resampled."""
    h, w = (min(s, SET_GRID) for s in x.shape[1:3])
    x = F.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), (h, w)).permute(0, 2, 3, 1).flatten(1, 2)
    predict = train_set_probe(x, (h, w), truth, classes, split["train"], split["val"], SEEDS, seed=seed)
    return {"val": ap_runs(predict, x, truth, split["val"], 0), "test": ap_runs(predict, x, truth, split["test"], sources=sources)}


def one_hot(labels, names):
    return F.one_hot(torch.tensor([names.index(n) for n in labels]), len(names)).float()


def poolings(pooled):
    """Views of a clip [n, ...] from space-pooled features: mean over time, every time step in order, change from first to last."""
    x = pooled["mean"]
    return {"mean": x.mean(1), "time": x.flatten(1), "change": torch.cat([x[:, -1] - x[:, 0], x.mean(1)], -1), "max": pooled["max"].flatten(1)}


def strata(items, largest, train):
    """{"size small": [n] bool, ...}: by the share of the picture that the largest box covers (terciles of the training items), the number of objects,
    and whether any two of their boxes overlap."""
    area = (largest[:, 2:] - largest[:, :2]).prod(1)
    low, high = area[train].quantile(torch.tensor([1 / 3, 2 / 3]))
    number = torch.tensor([len(i["boxes"]) for i in items])
    overlap = torch.tensor([bool((box_iou(i["boxes"][:, None], i["boxes"]) - torch.eye(len(i["boxes"])) > 0).any()) for i in items])
    return {"size small": area <= low, "size medium": (area > low) & (area <= high), "size large": area > high, "objects 1": number == 1, "objects 2": number == 2,
            "objects 3+": number >= 3, "overlap no": (number > 1) & ~overlap, "overlap yes": overlap}


def by_stratum(groups, scores, floors, test, sources, seed):
    """{stratum: {n, <task>, <task>_low, <task>_high, <task>_floor}} on the test items; scores, floors: {task: [n_test]}. Strata of under 5 items say only their n."""
    out = {}
    for name, member in groups.items():
        pick = member[test]
        out[name] = row = {"n": int(pick.sum())}
        for task in scores if row["n"] >= 5 else ():
            mean, low, high = bootstrap(scores[task][pick], [s for s, m in zip(sources, pick, strict=True) if m], seed=seed)
            row |= {task: mean, f"{task}_low": low, f"{task}_high": high, f"{task}_floor": floors[task][pick].mean().item()}
    return out


# ---------------------------------------------------------------- scores per item in, the criterion's record out

def best_point(found, val):
    """The point with the highest mean score on val; found {point: [n]}, in which `random:<point>` is the untrained network's."""
    return max((p for p in found if p != "pixels" and not p.startswith("random:")), key=lambda p: found[p][val].mean())


def floors_of(found, layer, test, **more):
    """Floors on the test items: those of `more`, then raw pixels and the untrained network where they were probed."""
    return more | {name: found[point][test] for name, point in (("pixels", "pixels"), ("random_init", f"random:{layer}")) if point in found}


def box_criterion(boxes, largest, split, sources, seed=0):
    """bbox_iou from {point: what probe_boxes returned}, at the point that is best on val."""
    test, iou = split["test"], {p: found[0] for p, found in boxes.items()}
    layer, constant = best_point(iou, split["val"]), largest[split["train"]].median(0).values
    return criterion(iou[layer][test], floors_of(iou, layer, test, constant=box_iou(constant, largest[test]), shuffled=boxes[layer][1][:, test]), sources,
                     blind="constant", layer=layer, seed=seed, options_searched=sum(p != "pixels" and not p.startswith("random:") for p in iou))


def mask_criterion(iou, shuffled, masks, side, split, sources, seed=0, **more):
    """spatial_iou from {point: IoU [n]} at the point that is best on val; `shuffled`: IoU [n] of a probe on that point's tokens, side x side, and wrong labels.

    That control may honestly beat the others: another picture's mask still says that the middle is foreground, and the threshold is chosen on true masks.
    """
    test, solid, layer = split["test"], masks >= 0.5, best_point(iou, split["val"])
    position = mask_scores(masks[split["train"]].mean(0).expand_as(masks), solid, split)
    h = side * max(-(-MASK // side), 1)
    through = F.interpolate(F.interpolate(masks[:, None], (h, h), mode="bilinear"), (MASK, MASK), mode="bilinear")[:, 0]
    return criterion(iou[layer][test], floors_of(iou, layer, test, position_only=position[test], all_foreground=mask_iou(torch.ones_like(solid), solid)[test], shuffled=shuffled[test]),
                     sources, ceiling=mask_iou(through >= 0.5, solid)[test].mean().item(), layer=layer, seed=seed,
                     options_searched=sum(p != "pixels" and not p.startswith("random:") for p in iou), **more)


# ---------------------------------------------------------------- the two kinds of truth

def space(args, items, split, read, points, read_random, progress):
    """All probes of still pictures. Returns (criteria, layers, decoded)."""
    largest, truth, names = box_truth(items)
    masks = foreground(items, MASK)
    solid = masks >= 0.5
    frames = torch.cat([frames_of(i, PICTURE) for i in items])
    pictures = frames.permute(0, 3, 1, 2).float() / 255
    lpips, lpips_name = load_lpips()
    test, val = split["test"], split["val"]
    sources = [items[i]["source"] for i in test]

    boxes, cells = {}, {}
    for kind, reader, chosen in (("", read, points), ("random:", read_random, points if read_random else [])):
        for point in progress(chosen, desc=f"{kind or 'trained:'} ridges"):
            x = reader(point)[:, 0]
            boxes[kind + point] = probe_boxes(x, largest, split, args.seed)
            soft, picture = probe_cells(x, masks, pictures, split)
            cells[kind + point] = {"spatial_iou": mask_scores(soft, solid, split), "ssim": ssim(picture, frames), "picture": picture, "soft": soft}
    chosen_points = [p for p in points if p != "pixels"]

    criteria = {"bbox_iou": box_criterion(boxes, largest, split, sources, args.seed)}
    decoded = {"boxes": boxes[criteria["bbox_iou"]["layer"]][2][test].clone(), "true_boxes": largest[test].clone()}

    g = torch.Generator().manual_seed(args.seed)
    spatial = {p: c["spatial_iou"] for p, c in cells.items()}
    x = read(layer := best_point(spatial, val))[:, 0]
    wrong = torch.arange(len(items))
    wrong[split["train"]] = split["train"][torch.randperm(len(split["train"]), generator=g)]
    shuffled_soft, shuffled_picture = probe_cells(x, masks[wrong], pictures[wrong], split)
    criteria["spatial_iou"] = mask_criterion(spatial, mask_scores(shuffled_soft, solid, split), masks, x.shape[1], split, sources, args.seed, truth="masks" if "mask" in items[0] else "boxes")
    decoded["masks"] = cells[layer]["soft"][test].clone()

    layer = best_point({p: c["ssim"] for p, c in cells.items()}, val)
    mean_picture = pictures[split["train"]].mean(0).mul(255).round().byte().permute(1, 2, 0).expand(len(test), -1, -1, -1)
    rows = {"own": cells[layer]["picture"][test], "mean_image": mean_picture, "shuffled": shuffled_picture[test]}
    rows |= {"random_init": cells[f"random:{layer}"]["picture"][test]} if read_random else {}  # raw pixels would be a copy, hence no floor here
    for key, measure, better, ceiling in (("recon_" + lpips_name, lpips, "lower", 0.0), ("recon_ssim", ssim, "higher", 1.0), ("recon_edge_f1", edge_f1, "higher", 1.0)):
        scores = {name: measure(picture.contiguous(), frames[test]) for name, picture in rows.items()}
        criteria[key] = criterion(scores.pop("own"), scores, sources, ceiling, better, layer=layer, seed=args.seed, options_searched=len(chosen_points))
    decoded["pictures"] = cells[layer]["picture"][test].clone()

    # The set probe is trained by gradient, so it runs at the two most promising layers only, and on every floor.
    ranked = sorted(chosen_points, key=lambda p: -boxes[p][0][val].mean())[:2]
    label_free = [truth[i] for i in wrong]
    jobs = {p: (read(p), truth) for p in ranked} | {"position_only": (None, truth), "shuffled": (read(ranked[0]), label_free)}
    jobs |= {"pixels": (read("pixels"), truth)} if "pixels" in boxes else {}
    jobs |= {"random_init": (read_random(ranked[0]), truth)} if read_random else {}
    runs = {}
    for name in progress(jobs, desc="set prediction"):
        x, labels = jobs[name]
        x = (read(ranked[0])[split["train"]].mean(0).expand(len(items), -1, -1, -1, -1) if x is None else x)[:, 0]
        labels = [labels[i] if i in set(split["train"].tolist()) else truth[i] for i in range(len(items))]
        runs[name] = probe_set(x, labels, len(names), split, args.seed, sources)
    layer = max(ranked, key=lambda p: runs[p]["val"]["ap"].mean())
    criteria["map50"] = ap_criterion(runs[layer]["test"], {k: r["test"] for k, r in runs.items() if k not in ranked}, sources,
                                     blind="position_only", layer=layer, options_searched=len(ranked), classes=len(names))

    layers = {p: {"bbox_iou": boxes[p][0][test].mean(), "bbox_iou_val": boxes[p][0][val].mean(), "spatial_iou": cells[p]["spatial_iou"][test].mean(),
                  "recon_ssim": cells[p]["ssim"][test].mean()} | ({"bbox_iou_random": boxes[f"random:{p}"][0][test].mean(),
                  "spatial_iou_random": cells[f"random:{p}"]["spatial_iou"][test].mean()} if read_random else {}) for p in points}
    constant, position = largest[split["train"]].median(0).values, mask_scores(masks[split["train"]].mean(0).expand_as(masks), solid, split)
    floor = {"bbox_iou": box_iou(constant, largest[test]), "spatial_iou": position[test]}
    p_values = {f"{p}/{task}": paired_test(s[test], floor[task], sources, seed=args.seed)["p"] for p in points
                for task, s in (("bbox_iou", boxes[p][0]), ("spatial_iou", cells[p]["spatial_iou"]))}
    for key, p in holm(p_values).items():
        point, task = key.split("/")
        layers[point][f"{task}_p_holm"] = p
    at = {task: criteria[task]["layer"] for task in floor}
    decoded["strata"] = by_stratum(strata(items, largest, split["train"]), {"bbox_iou": boxes[at["bbox_iou"]][0][test], "spatial_iou": cells[at["spatial_iou"]]["spatial_iou"][test]},
                                   floor, test, sources, args.seed)
    for p in points:
        layers[p]["bbox_iou_low"], layers[p]["bbox_iou_high"] = bootstrap(boxes[p][0][test], sources, seed=args.seed)[1:]
    return criteria, layers, decoded


def motion(args, items, split, pooled, pooled_random, points):
    """Direction of motion from space-pooled clip features, 8 ways, on the clips that move. Returns (criteria, layers, decoded)."""
    moving = torch.tensor([i["direction"] != "still" for i in items])
    split = {k: v[moving[v]] for k, v in split.items()}
    names = sorted({i["direction"] for i in items} - {"still"})
    truth = torch.tensor([names.index(i["direction"]) if i["direction"] != "still" else -1 for i in items])
    y = one_hot([i["direction"] if i["direction"] != "still" else names[0] for i in items], names)
    test, val, train = split["test"], split["val"], split["train"]
    g = torch.Generator().manual_seed(args.seed)
    targets = {"true": y}
    for s in range(SEEDS):
        wrong = y.clone()
        wrong[train] = y[train][torch.randperm(len(train), generator=g)]
        targets[f"shuffled{s}"] = wrong
    correct = {}
    for kind, source in (("", pooled), ("random:", pooled_random or {})):
        for point in points if source else []:
            for view, x in poolings(source[point]).items():
                found = ridge(x, targets, train)
                correct[kind + point, view] = {k: (z.argmax(1) == truth).float() for k, z in found.items()}
    options = [(p, v) for p in points if p != "pixels" for v in ("mean", "time", "change", "max")]
    layer, view = max(options, key=lambda o: correct[o]["true"][val].mean())
    commonest = truth[train].bincount(minlength=len(names)).argmax()
    floors = {"commonest": (truth[test] == commonest).float(), "shuffled": torch.stack([correct[layer, view][f"shuffled{s}"][test] for s in range(SEEDS)])}
    if "pixels" in points:
        floors["pixels"] = max((correct["pixels", v]["true"] for v in ("mean", "time", "change", "max")), key=lambda c: c[val].mean())[test]
    if pooled_random:
        floors["random_init"] = correct[f"random:{layer}", view]["true"][test]
    sources = [items[i]["source"] for i in test]
    criteria = {"direction_accuracy": criterion(correct[layer, view]["true"][test], floors, sources, blind="commonest", layer=layer, pooling=view, seed=args.seed,
                                                options_searched=len(options))}
    layers = {p: {f"direction_accuracy_{v}": correct[p, v]["true"][test].mean() for v in ("mean", "time", "change", "max")} for p in points}
    p_values = {f"{p}/{v}": paired_test(correct[p, v]["true"][test], floors["commonest"], sources, seed=args.seed)["p"] for p in points for v in ("mean", "time", "change", "max")}
    for key, p in holm(p_values).items():
        layers[key.split("/")[0]][f"direction_accuracy_{key.split('/')[1]}_p_holm"] = p
    return criteria, layers, {"correct": correct[layer, view]["true"][test].clone()}


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
                found = {p: probe_boxes(read(p)[index][:, 0], largest, split, args.seed)[0] for p in points}
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


def said_and_read(args, started, items, split, index, read, points, out):
    """--directions or --answers, in the place of the probes."""
    if "boxes" not in items[0]:
        refuse(f"{index['data_path']} has no boxes, and so nothing of which the place could be asked")
    if args.directions:
        return write_directions(args, items, split, read, points, index["model"])
    result = {"stage": "binding", "model": index["model"], "weights": index["weights"], "data": index["data"], **binding(args, items, split, read, points, index["model"]),
              "run": run_info(args, started, script="probe.py")}
    save_yaml(out, result)
    say(result)
    return result


def smoke_input(args, folder):
    """Planted features: an oracle point that holds the box, and a noise point."""
    from common import plant_features, write_items
    g = torch.Generator().manual_seed(args.seed)
    corner = torch.rand(40, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 6 + torch.rand(40, 2, generator=g) * 6], 1).round()
    frames = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, 32, 32, 3)  # no two pictures alike, whatever the boxes
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 255
    ids = [f"box-{i}" for i in range(40)]
    write_items(folder / "data", [{"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]}
                                  for i, f, b in zip(ids, frames, boxes, strict=True)], {"data": "synthetic", "name": "boxes"})
    points = {"oracle": boxes[:, None, None, None].expand(-1, 1, 2, 2, -1) / 32, "noise": torch.randn(40, 1, 2, 2, 8, generator=g)}
    plant_features(folder / "features", ids, points, folder / "data")
    args.features, args.out = str(folder / "features"), args.out or str(folder / "probe.yaml")


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--features", default="results/tiny/shapes/features", help="a folder that extract.py wrote (default: %(default)s)")
    p.add_argument("--random", help="features of the same architecture with random weights (extract.py --random-init): a floor")
    p.add_argument("--data", help="the data folder (default: the one the features were made from)")
    p.add_argument("--points", help="points with commas between (default: all in the index)")
    p.add_argument("--directions", help="write what extract.py --ask --remove takes out of a language layer (--points: at another place), and nothing else")
    p.add_argument("--answers", help="what extract.py --ask wrote: score it beside what can be read from the features")
    p.add_argument("--out", help="default: probe.yaml (with --answers: binding.yaml) beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.smoke:
        smoke_input(args, made_up_folder())
    index, read = load_features(args.features)
    items, data = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.directions or args.out or Path(args.features).parent / ("binding.yaml" if args.answers else "probe.yaml"))
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        refuse(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    random_index, read_random = load_features(args.random) if args.random else (None, None)
    if random_index and (random_index["ids"] != index["ids"] or any(p not in random_index["points"] for p in points)):
        refuse(f"{args.random} does not hold the same items and points as {args.features}; run extract.py --random-init with the same --data, --size and --points")

    if args.directions or args.answers:
        return said_and_read(args, started, items, split, index, read, [p for p in points if p in with_grid(index)], out)
    if "direction" in items[0]:
        from common import POOLED
        pooled, pooled_random = (load_pt(Path(f) / "pooled.pt", POOLED)["pooled"] if f else None for f in (args.features, args.random))
        criteria, layers, decoded = motion(args, items, split, pooled, pooled_random, points)
    elif "boxes" in items[0]:
        gridless = [p for p in points if p not in with_grid(index)]
        points = [p for p in points if p not in gridless]
        if not set(points) - {"pixels"}:
            refuse(f"{', '.join(gridless) or 'pixels'} in {args.features}: boxes and masks are read from tokens that have a place in the picture; "
                   f"give --points with one that has, of {', '.join(p for p in with_grid(index) if p != 'pixels') or 'a folder extracted with such points'}")
        if gridless:
            print(f"left out, for their tokens have no place in the picture: {', '.join(gridless)}")
        criteria, layers, decoded = space(args, items, split, read, points, read_random, lambda it, desc: tqdm(it, desc=desc, unit="point"))
    else:
        refuse(f"{index['data_path']} has neither boxes nor directions; probe.py needs one of them")

    result = {"stage": "probe", "model": index["model"], "weights": index["weights"], "data": index["data"], "data_name": data["name"], "items": len(items),
              **{k: len(v) for k, v in split.items()}}
    for name, c in criteria.items():
        result |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"], f"{name}_floor": c["floor"], f"{name}_layer": c["layer"]}
    leaks = [f"{c['leak']} on {name}" for name, c in criteria.items() if c["leak"]]
    result["leak"] = f"a control that cannot know the answer does: {', '.join(leaks)}" if leaks else None
    if args.random is None:
        result["random_init_floor"] = None
        result["random_init_reason"] = "no --random features were given"
    if "strata" in decoded:
        result["strata"] = decoded.pop("strata")
    result |= {"criteria": criteria, "layers": layers, "run": run_info(args, started, script="probe.py")}
    save_pt(out.with_suffix(".pt"), RESULT, [items[i]["id"] for i in split["test"]], {"stage": "probe"}, **decoded)
    save_yaml(out, result)
    say(result)
    return result


if __name__ == "__main__":
    main()
