"""Stage 2. What space and motion does each layer still hold, for the simplest decoder that could read it?

    python probe.py --features results/tiny/shapes/features --random results/tiny/shapes/features-random --out results/tiny/shapes/probe.yaml
    python probe.py --features results/tiny/moving/features --out results/tiny/moving/probe.yaml

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


def read_pooled(folder, points):
    """{point: {mean, max: [n, t, D]}} of a features folder; a refusal where a value is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    if bad := [p for p in points if not all(x.isfinite().all() for x in (pooled[p]["mean"], pooled[p]["max"]))]:
        refuse(f"{folder}/pooled.pt holds non-finite values at {bad[0]}; extract again in bf16 or fp32, or leave the point out")
    return pooled


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

    if "direction" in items[0]:
        pooled, pooled_random = (read_pooled(f, points) if f else None for f in (args.features, args.random))
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
