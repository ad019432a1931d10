"""Stage 2. What space and motion does each layer still hold, for the simplest decoder that could read it?

    python probe.py --features results/tiny/shapes/features --random results/tiny/shapes/features-random --out results/tiny/shapes/probe.yaml
    python probe.py --features results/tiny/moving/features --frozen results/tiny/moving-first/features results/tiny/moving-middle/features

Reads features (extract.py) and the truth beside their pictures (data.py). Writes probe.yaml, and probe.pt with what was decoded for the test
items at the chosen layers. Which probes run depends on the truth there is:

    bbox_iou        closed-form ridge from the flattened token grid to the largest box; penalty by leave-one-out
    spatial_iou     ridge from every token to the mask of its own cell (foreground: the masks, or the boxes where there are none)
    map50           DETR-style set prediction, five seeds, mAP@0.5 by pycocotools
    recon_*         ridge from every token to its own pixels: LPIPS, SSIM, edge F1 of that picture
    direction_accuracy   (clips that move) ridge from features pooled over space to the direction of motion in the picture, eight ways
    direction_flip       of a clip and its mirrored or reversed twin: is the second answer the flip of the first?
    speed_r2, camera_r2  the same ridge to the speed and to the camera's own (dx, dy), pixels a frame: held-out R2
    frozen_<frame>       the direction's probe on clips that show one frame throughout (--frozen): without motion it should know nothing

Points whose tokens have no place in the picture (`grid: false` in the index) are asked for the direction only.
The layer is chosen on val, its score comes from test, and beside every score stand the floors from the same split: a constant, shuffled
labels, raw pixels through the same probe, the same architecture with random weights (--random), and for clips the best probe trained on frozen ones
(first_frame: what the starting position gives away). `leak` names a control that scores what it cannot know.
"""
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    MASK,
    POOLED,
    RESULT,
    ap_criterion,
    ap_runs,
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
    known,
    known_too_well,
    load_features,
    load_items,
    load_lpips,
    load_pt,
    load_yaml,
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
WAYS = {"down": (0, 1), "down left": (-1, 1), "down right": (1, 1), "left": (-1, 0), "right": (1, 0), "up": (0, -1), "up left": (-1, -1), "up right": (1, -1)}  # y points down
FLIPS = {"mirrored": (-1, 1), "reversed": (-1, -1)}  # what becomes of a velocity


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


def poolings(pooled):
    """Views of a clip [n, ...] from space-pooled features: mean over time, every time step in order, change from first to last."""
    x = pooled["mean"]
    return {"mean": x.mean(1), "time": x.flatten(1), "change": torch.cat([x[:, -1] - x[:, 0], x.mean(1)], -1), "max": pooled["max"].flatten(1)}


def read_motion(pooled, points, targets, train, also=()):
    """Ridge from every pooling of every point: {(point, pooling): {task: predictions [1 + also, n, c]}}, of these clips and, through the same map, of others in their place.

    pooled, and each of `also`: {point: {mean, max: [n, t, D]}}; targets {task: [n, c]}.
    """
    found = {}
    for point in points:
        views = [poolings(p[point]) for p in (pooled, *also)]
        for view in views[0]:
            z = ridge(torch.cat([v[view] for v in views]), targets, train)
            found[point, view] = {task: x.unflatten(0, (len(views), -1)) for task, x in z.items()}
    return found


def with_shuffled(targets, train, seed):
    """{task: [n, c]} and beside each task SEEDS copies `<task>/<s>` whose training rows are exchanged, equally for all tasks."""
    g, out = torch.Generator().manual_seed(seed), dict(targets)
    for s in range(SEEDS):
        order = train[torch.randperm(len(train), generator=g)]
        out |= {f"{task}/{s}": y.index_copy(0, train, y[order]) for task, y in targets.items()}
    return out


def unit_ways():
    return F.normalize(torch.tensor(list(WAYS.values())).float())  # [8, 2]


def nearest_way(velocity):
    """Which of WAYS lies nearest to (dx, dy): [n, 2] -> [n], -1 where nothing moves."""
    return torch.where(velocity.norm(dim=1) > 1e-6, (velocity @ unit_ways().T).argmax(1), -1)


def twin_pairs(items, way, pick):
    """{kind: [m, 2]}: clips of `pick` and their mirrored or reversed twins, whose true answers differ (straight up stays up in a mirror)."""
    original, pairs = {items[i]["source"]: i for i in pick.tolist() if items[i].get("kind") == "original"}, {}
    for i in pick.tolist():
        kind, first = items[i].get("kind"), original.get(items[i]["source"])
        if kind in FLIPS and first is not None and way[i] != way[first]:
            pairs.setdefault(kind, []).append([first, i])
    return {kind: torch.tensor(p) for kind, p in sorted(pairs.items()) if len(p) > 1}


def flips(answer, pairs):
    """(own, permuted), both [m], from answers [n] among WAYS: is a pair's second answer the flip of its first, and how often is another pair's second answer
    of the same kind. An answer that stays as it is has not flipped."""
    own, permuted = [], []
    for kind, pair in pairs.items():
        table = nearest_way(unit_ways() * torch.tensor(FLIPS[kind]))
        first, second = answer[pair].T
        match = ((table[first][:, None] == second) & (first[:, None] != second)).float()
        own.append(match.diagonal())
        permuted.append((match.sum(1) - match.diagonal()) / (len(pair) - 1))
    return torch.cat(own), torch.cat(permuted)


def r2_shares(z, y, split):
    """[n]: what each clip adds to R2, (its squared distance from the training mean - squared error) / mean of the former in its part of the split. z, y [n, c].

    Their mean over a part is 1 - error / variance, and the training mean itself scores 0 on every clip.
    """
    error, spread = ((y - x).square().sum(1) for x in (z, y[split["train"]].mean(0)))
    out = spread - error
    for part in split.values():
        out[part] /= spread[part].mean()
    return out


def terciles(name, words, x, train):
    """{"<name> <word>": [n] bool}: x [n] cut at the terciles of the training items."""
    low, high = x[train].quantile(torch.tensor([1 / 3, 2 / 3]))
    return {f"{name} {word}": member for word, member in zip(words, (x <= low, (x > low) & (x <= high), x > high), strict=True)}


def strata(items, largest, train):
    """{"size small": [n] bool, ...}: by the share of the picture that the largest box covers (terciles of the training items), the number of objects,
    whether any two of their boxes overlap and, where the items tell, whether something hides more than a twentieth of the object in the largest box."""
    area = (largest[:, 2:] - largest[:, :2]).prod(1)
    number = torch.tensor([len(i["boxes"]) for i in items])
    overlap = torch.tensor([bool((box_iou(i["boxes"][:, None], i["boxes"]) - torch.eye(len(i["boxes"])) > 0).any()) for i in items])
    groups = terciles("size", ("small", "medium", "large"), area, train)
    groups |= {"objects 1": number == 1, "objects 2": number == 2, "objects 3+": number >= 3, "overlap no": (number > 1) & ~overlap, "overlap yes": overlap}
    if all("visible" in i for i in items):
        hidden = torch.tensor([i["visible"][(i["boxes"][:, 2:] - i["boxes"][:, :2]).prod(1).argmax()] <= 0.95 for i in items])
        groups |= {"occlusion none": ~hidden, "occlusion partly": hidden}
    return groups


def motion_strata(items, way, background, train):
    """{"kind original": [n] bool, ...}: by twin, by camera motion (`camera turns it`: relative to the background the way is another one) and by terciles of the speed."""
    groups = {f"kind {k}": torch.tensor([i["kind"] == k for i in items]) for k in ("original", *FLIPS)} if "kind" in items[0] else {}
    if background is not None:
        camera = torch.tensor([any(i["camera"]) for i in items])
        groups |= {"camera no": ~camera, "camera yes": camera, "camera turns it": camera & (background != way)}
    return groups | (terciles("speed", ("slow", "medium", "fast"), torch.tensor([i["speed"] for i in items]), train) if "speed" in items[0] else {})


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


def motion_truth(items, split):
    """(way [n], background [n], targets {task: [n, c]}): the number of the true way in the picture (-1: still); the way relative to the background, which
    itself moves by `camera` (None where that is not told); and what a ridge is asked for, where the clips tell it and it varies in every part of the split."""
    numbers = {"still": -1} | {name: k for k, name in enumerate(WAYS)}
    way, background = torch.tensor([known(i["direction"], numbers, "direction") for i in items]), None
    told = {f"{key}_r2": torch.tensor([i[key] for i in items]).float().reshape(len(items), -1) for key in ("speed", "camera") if all(key in i for i in items)}
    if len(told) == 2:
        background = nearest_way(unit_ways()[way] * told["speed_r2"] - told["camera_r2"])
    varied = {task: y for task, y in told.items() if all((y[part] != y[part[0]]).any() for part in split.values())}
    return way, background, {"direction_accuracy": F.one_hot(way.clamp(min=0), len(WAYS)).float()} | varied


def motion_criterion(task, score, y, readers, split, sources, still=(), seed=0):
    """(record, answers {name: [n, c]}): one task at the point and pooling that are best on val, and what the features (`own`) and their floors answer.

    score(answer [n, c]) -> [n]; y [n, c]; readers {who: what read_motion returned}. The untrained network is asked at the same point and pooling; raw pixels,
    and probes trained on frozen clips, at their own best ones. still: the frozen clips that stand behind the features' own in readers["own"].
    """
    def best(who, pixels=False):
        return max((o for o in readers[who] if (o[0] == "pixels") == pixels), key=lambda o: score(readers[who][o][task][0])[split["val"]].mean())

    test, own, (layer, view) = split["test"], readers["own"], best("own")
    blind = "commonest" if task == "direction_accuracy" else "constant"
    answers = {"own": own[layer, view][task][0], blind: y[split["train"]].mean(0).expand_as(y)}
    answers |= {who: r[(layer, view) if who == "random_init" else best(who)][task][0] for who, r in readers.items() if who != "own"}
    answers |= {f"frozen_{frame}": own[layer, view][task][k] for k, frame in enumerate(still, 1)}
    answers |= {"pixels": own[best("own", pixels=True)][task][0]} if any(p == "pixels" for p, _ in own) else {}
    floors = {name: score(z)[test] for name, z in answers.items() if name != "own"}
    floors["shuffled"] = torch.stack([score(own[layer, view][f"{task}/{s}"][0])[test] for s in range(SEEDS)])
    return criterion(score(answers["own"])[test], floors, sources, blind=blind, layer=layer, pooling=view, seed=seed, options_searched=sum(p != "pixels" for p, _ in own)), answers


def motion(args, items, split, pooled, pooled_random, points, frozen=None):
    """What moves, from space-pooled features of the clips that move. Returns (criteria, layers, decoded).

    frozen {"first" | "middle": pooled features of the same clips, each showing that frame throughout}. They are used twice: the probe trained on moving
    clips answers them, which it should not be able to (frozen_<frame>), and a probe trained on them is a floor (<frame>_frame).
    """
    frozen = frozen or {}
    moving = torch.tensor([i["direction"] != "still" for i in items])
    split = {k: v[moving[v]] for k, v in split.items()}
    test, train = split["test"], split["train"]
    sources = [items[i]["source"] for i in test]
    way, background, targets = motion_truth(items, split)
    readers = {"own": read_motion(pooled, points, with_shuffled(targets, train, args.seed), train, frozen.values())}
    readers |= {f"{frame}_frame": read_motion(x, points, targets, train) for frame, x in frozen.items()}
    readers |= {"random_init": read_motion(pooled_random, points, targets, train)} if pooled_random else {}

    def correct(z, truth=way):
        return (z.argmax(1) == truth).float()

    scores = {task: correct if task == "direction_accuracy" else lambda z, y=y: r2_shares(z, y, split) for task, y in targets.items()}
    found = {task: motion_criterion(task, score, targets[task], readers, split, sources, frozen, args.seed) for task, score in scores.items()}
    criteria, answers = {task: c for task, (c, _) in found.items()}, found["direction_accuracy"][1]
    direction, commonest = criteria["direction_accuracy"], correct(answers["commonest"])[test]
    where = {key: direction[key] for key in ("layer", "pooling", "options_searched")} | {"seed": args.seed}
    for frame in frozen:
        criteria[f"frozen_{frame}"] = criterion(correct(answers[f"frozen_{frame}"])[test], {"commonest": commonest}, sources, **where)
    # The middle frame knows nothing of the direction (the first may). A tenth of the room, for by chance the commonest answer in training is rare in test.
    if "middle" in frozen and known_too_well(criteria["frozen_middle"]["gain_low"], direction["floors"]["commonest"], 1.0):
        direction["leak"] = direction["leak"] or "frozen_middle"
    if pairs := twin_pairs(items, way, test):
        flipped = {name: flips(z.argmax(1), pairs) for name, z in answers.items()}
        criteria["direction_flip"] = criterion(flipped["own"][0], {"permuted": flipped["own"][1]} | {name: f for name, (f, _) in flipped.items() if name != "own"},
                                               [items[i]["source"] for i in torch.cat(list(pairs.values()))[:, 0]], **where)

    layers, camera = {p: {} for p in points}, test[torch.tensor([any(items[i].get("camera", ())) for i in test])]
    p_values = holm({o: paired_test(correct(z["direction_accuracy"][0])[test], commonest, sources, seed=args.seed)["p"] for o, z in readers["own"].items()})
    for (point, view), z in readers["own"].items():
        row = {task: score(z[task][0])[test].mean() for task, score in scores.items()}
        z = z["direction_accuracy"]
        row |= {f"frozen_{frame}": correct(z[k])[test].mean() for k, frame in enumerate(frozen, 1)}
        row |= {f"{frame}_frame": correct(readers[f"{frame}_frame"][point, view]["direction_accuracy"][0])[test].mean() for frame in frozen}
        row |= {"direction_flip": flips(z[0].argmax(1), pairs)[0].mean()} if pairs else {}
        if background is not None and len(camera):
            row |= {"camera_accuracy": correct(z[0])[camera].mean(), "background_accuracy": correct(z[0], background)[camera].mean()}
        layers[point] |= {f"{name}_{view}": x for name, x in row.items()} | {f"direction_accuracy_{view}_p_holm": p_values[point, view]}

    truths = {"direction_accuracy": way} | ({"direction_accuracy_background": background} if background is not None else {})
    own, blind = ({name: correct(answers[who], truth)[test] for name, truth in truths.items()} for who in ("own", "commonest"))
    return criteria, layers, {"correct": own["direction_accuracy"].clone(),
                              "strata": by_stratum(motion_strata(items, way, background, train), own, blind, test, sources, args.seed)}


def read_pooled(folder, points):
    """{point: {mean, max: [n, t, D]}} of a features folder; a refusal where a value is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    if bad := [p for p in points if not all(x.isfinite().all() for x in (pooled[p]["mean"], pooled[p]["max"]))]:
        refuse(f"{folder}/pooled.pt holds non-finite values at {bad[0]}; extract again in bf16 or fp32, or leave the point out")
    return pooled


def read_frozen(folders, features, index, points):
    """{"first" | "middle": pooled features} of frozen clips, in the order of the index of the moving ones; a refusal unless they are the same clips seen by the same network."""
    found = {}
    for folder in folders:
        other, _ = load_features(folder)
        frame = load_yaml(Path(other["data_path"]) / "index.yaml", "data").get("freeze")
        if frame is None:
            refuse(f"{other['data_path']}, of which {folder} has features, holds clips that are not frozen; make them with data.py moving --freeze first or middle")
        if (other["model"], other["weights"]) != (index["model"], index["weights"]) or any(p not in other["points"] for p in points) or set(other["ids"]) != set(index["ids"]):
            refuse(f"{folder} does not hold the same items and points of the same network as {features}; run extract.py with the same --model, --size and --points on clips of the same --n and --seed")
        order = [other["ids"].index(i) for i in index["ids"]]
        found[frame] = {p: {k: x[order] for k, x in row.items()} for p, row in read_pooled(folder, points).items() if p in points}
    return found


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
    p.add_argument("--frozen", nargs="+", default=[], help="clips: features of the same clips frozen (data.py moving --freeze): floors, and a check that motion is what is read")
    p.add_argument("--data", help="the data folder (default: the one the features were made from)")
    p.add_argument("--points", help="points with commas between (default: all in the index)")
    p.add_argument("--out", help="default: probe.yaml beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.smoke:
        smoke_input(args, made_up_folder())
    index, read = load_features(args.features)
    items, data = load_items(args.data or index["data_path"])
    items = join(items, index, args.features)
    split = split_indices(items, args.features)
    out = Path(args.out or Path(args.features).parent / "probe.yaml")
    check_writable(out)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        refuse(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    random_index, read_random = load_features(args.random) if args.random else (None, None)
    if random_index and (random_index["ids"] != index["ids"] or any(p not in random_index["points"] for p in points)):
        refuse(f"{args.random} does not hold the same items and points as {args.features}; run extract.py --random-init with the same --data, --size and --points")

    if args.frozen and "direction" not in items[0]:
        refuse(f"--frozen is about clips, and {index['data_path']} tells of no direction; leave it out, or give --features of clips")
    if "direction" in items[0]:
        pooled, pooled_random = (read_pooled(f, points) if f else None for f in (args.features, args.random))
        criteria, layers, decoded = motion(args, items, split, pooled, pooled_random, points, read_frozen(args.frozen, args.features, index, points))
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
