"""Which information about space and motion can a simple decoder read from each layer?

    python probe.py --features results/tiny/shapes/features --random results/tiny/shapes/features-random
    python probe.py --features results/tiny/moving/features --frozen results/tiny/moving-middle/features
    python probe.py --compare results/tiny/shapes@64 results/tiny/shapes@96 --out results/compare.yaml

Reads features (extract.py) and ground truth (data.py). Writes probe.yaml, probe.png, and probe.pt with
predictions and scores of test items. --compare pairs such results item by item.
Images with boxes:
    bbox_iou            closed-form ridge from the flattened token grid to the largest box
    mlp                 the same box by an MLP of one hidden layer on principal components, five seeds
    spatial_iou         ridge from every token to the foreground mask of its cell (or boxes, without masks)
    map50               DETR-style set prediction on the token grid, five seeds; mAP@0.5 by pycocotools
    decoder_*           LPIPS, SSIM and edge F1 of images (at most 224 px) by a trained decoder of the tokens;
                        upper bound: that decoder on --oracle's latents
Moving clips:
    direction_accuracy  ridge from spatially pooled features to one of eight directions of motion
    frozen_<frame>      the same probe on clips that repeat one frame (--frozen): it must be at chance

Layers without a token grid are probed for motion only. The layer is chosen on val and scored on test.
--choose writes the chosen layers (`points`) and stops; --random is read there alone. Baselines on the same
items: constants, shuffled labels, another item's features, raw pixels, the untrained network. `leak`: a
control that scores too well. `band`: the plan's target, acceptable and fail. `places`: the best layers of the
tower, the projector, the language model. Needs common.py, media.py, metrics.py, probes.py, stats.py.
"""

import dataclasses
import time
from pathlib import Path

import torch
from tqdm import tqdm

import common
import metrics
import probes
import stats
from common import POOLED, RESULT, fail, load_features, load_items, load_pt, load_yaml, save_pt, save_yaml
from media import foreground, frames_of

IMAGE = 224  # most pixels a side of decoded images
# target, acceptable, fail: the evaluation plan, experiments 1 to 3
BANDS = {"bbox_iou": (0.60, 0.50, 0.40), "map50": (0.30, 0.20, 0.10)}
BANDS |= {"decoder_lpips": (0.30, 0.35, 0.45), "decoder_edge_f1": (0.60, 0.50, 0.40)}
PLACES = {"tower": ("patch_embed", "vision."), "projector": ("conv", "deepstack.", "merger")}
PLACES |= {"language_model": ("language.",)}


def get_args(argv):
    p = common.parser(__doc__)
    add = p.add_argument
    add("--features", default="results/tiny/shapes/features", help="features folder of extract.py")
    add("--random", help="features of the untrained network at the chosen layers (--random-init), a baseline")
    add("--choose", metavar="FILE", help="write the layers that are best on val to this YAML, and stop")
    add("--oracle", help="features of the decoder's autoencoder (tiny-vae), upper bound of decoder_*")
    add("--frozen", nargs="+", default=[], help="features of the clips, frozen: baselines and a control")
    add("--data", help="data folder (default: that of the features)")
    add("--points", help="layers, separated by commas (default: all in the index)")
    add("--compare", nargs="+", metavar="DIR", help="pair results on the same items with the first ones")
    add("--out", help="default: probe.yaml beside --features; compare.yaml beside the first of --compare")
    return p.parse_args(argv)


# ---------------------------------------------------------------- images


@dataclasses.dataclass
class Images:
    """Images and their ground truth, in the order of the features."""

    items: list
    split: dict
    seed: int
    largest: torch.Tensor  # [n, 4] xyxy, fractions of the image
    boxes: list  # (boxes [m, 4], class numbers [m]) of each image
    classes: list
    masks: torch.Tensor  # share of the foreground, [n, MASK, MASK]
    frames: torch.Tensor  # uint8 [n, S, S, 3]

    @property
    def sources(self):
        return [item["source"] for item in self.items]

    @property
    def with_box(self):
        return metrics.with_boxes(self.split, self.largest)

    def record(self, name, scores, baselines, layer, n_options, **more):
        """The record of a score of the test items; of boxes, of those that have one."""
        rows = self.with_box["test"] if name == "bbox_iou" else self.split["test"]
        sources = [self.items[i]["source"] for i in rows]
        about = {"layer": layer, "options_searched": n_options, "bands": BANDS.get(name)} | more
        return stats.criterion(scores, baselines, sources, seed=self.seed, **about)


def images_of(items, split, seed):
    largest, boxes, classes = metrics.box_truth(items)
    for part, rows in metrics.with_boxes(split, largest).items():
        if len(rows) < 4:
            fail(f"{part} has {len(rows)} images with boxes and needs 4; use more of them")
    side = min(IMAGE, max(max(item["width"], item["height"]) for item in items))
    frames = torch.cat([frames_of(item, side) for item in items])
    return Images(items, split, seed, largest, boxes, classes, foreground(items, metrics.MASK), frames)


def grids_of(read, point, n):
    """The token grids of n images at a point of the features: `stats.Lazy` [n, h, w, D]."""
    x = stats.layer_of(read, point, torch.arange(n))
    return stats.Lazy(lambda rows: x[rows][:, 0], n, x.slices)


def read_layers(images, read, points, name="trained"):
    """{point: {kernel [n, n], spatial_iou [n], bbox_iou [n], boxes, shuffled}}, one layer in memory."""
    split, n, layers = images.split, len(images.items), {}
    for p in tqdm(points, desc=f"{name} ridges", unit="point"):
        x = grids_of(read, p, n)
        soft = probes.probe_cells(x, images.masks[:, None], split)[:, 0]
        iou = metrics.mask_scores(soft, images.masks >= 0.5, split)
        layers[p] = {"kernel": stats.gram(x, split["train"]), "spatial_iou": iou}
    kernels = {p: row["kernel"] for p, row in layers.items()}
    for p, row in probes.probe_boxes(kernels, images.largest, split, images.sources, images.seed).items():
        layers[p] |= row
    return layers


def candidates(points):
    """The points that a layer is chosen from."""
    return [p for p in points if p != "pixels"]


def choose_layers(layers, val):
    """{criterion: layer} of a trained network, the best on val. The probe of mAP is costly: it has the two
    with the best boxes. The decoder has the layer of the boxes."""
    points = candidates(layers)
    ranked = sorted(points, key=lambda p: -layers[p]["bbox_iou"][val].nanmean())
    chosen = {"bbox_iou": ranked[0]}
    chosen["spatial_iou"] = max(points, key=lambda p: layers[p]["spatial_iou"][val].mean())
    return chosen | dict(zip(("map50", "map50_second"), ranked, strict=False))


def points_of(chosen, points):
    """The distinct layers of {criterion: layer}, in the order of `points`."""
    return [p for p in points if p in chosen.values()]


def controls_of(layers, untrained, layer, task, test):
    """Scores of test items of raw pixels and of the untrained network, where they were probed."""
    rows = {"pixels": layers.get("pixels"), "random_init": untrained.get(layer)}
    return {name: row[task][test] for name, row in rows.items() if row}


def box_record(layers, untrained, layer, images):
    """The record of bbox_iou at a layer."""
    row, largest, test = layers[layer], images.largest, images.with_box["test"]
    constant = largest[images.with_box["train"]].median(0).values
    baselines = {
        "constant": metrics.box_iou(constant, largest[test]),
        "shuffled": row["shuffled"][:, test],
        "shuffled_images": metrics.box_iou(row["boxes"][test.roll(1)], largest[test]),
    }
    baselines |= controls_of(layers, untrained, layer, "bbox_iou", test)
    options = len(candidates(layers))
    return images.record("bbox_iou", row["bbox_iou"][test], baselines, layer, options, blind="constant")


def mask_record(layers, untrained, layer, x, images):
    """The record of spatial_iou at a layer with tokens x.

    Shuffled labels may beat other baselines without a leak: their threshold is chosen on true masks."""
    split, masks, test = images.split, images.masks, images.split["test"]
    order = probes.permuted(split["train"], len(masks), torch.Generator().manual_seed(images.seed))
    soft = {"shuffled": probes.probe_cells(x, masks[order][:, None], split)[:, 0]}
    soft["position_only"] = masks[split["train"]].mean(0).expand_as(masks)
    baselines = {name: metrics.mask_scores(z, masks >= 0.5, split)[test] for name, z in soft.items()}
    baselines["all_foreground"] = metrics.mask_iou(torch.ones_like(masks) > 0, masks >= 0.5)[test]
    baselines |= controls_of(layers, untrained, layer, "spatial_iou", test)
    about = {"truth": "masks" if "mask" in images.items[0] else "boxes"}
    about["upper_bound"] = metrics.mask_bound(masks, x[test[:1]].shape[1])[test].mean().item()
    scores, options = layers[layer]["spatial_iou"][test], len(candidates(layers))
    return images.record("spatial_iou", scores, baselines, layer, options, **about)


def decoder_records(jobs, layer, images):
    """({decoder_<measure>: record}, {name: LPIPS [seeds, n_test]}); jobs {trained, random_init, oracle:
    [n,h,w,D]}. blur and random_init are controls, not baselines."""
    truth = images.frames[images.split["test"]]
    decoded = probes.decode_images(jobs, images.frames, images.split, images.seed)
    distance, lpips = metrics.load_lpips()
    measures = {lpips: (distance, "lower", 0.0), "ssim": (metrics.ssim, "higher", 1.0)}
    measures["edge_f1"] = (metrics.edge_f1, "higher", 1.0)
    records, errors = {}, {}
    for name, (measure, better, perfect) in measures.items():
        scores = {}
        for key, runs in decoded.items():
            scores[key] = torch.stack([measure(run.contiguous(), truth) for run in runs])
        about = {"better": better, "upper_bound": perfect, "upper_bound_is": "a perfect copy"}
        about["controls"] = {k: scores[k].mean() for k in ("blur", "random_init") if k in scores}
        if "oracle" in scores:
            about["upper_bound_is"] = "the same decoder on the oracle's latents"
            about["upper_bound"] = scores["oracle"].mean().item()
        baselines = {k: scores[k] for k in ("mean_image", "shuffled_images")}
        key = f"decoder_{name}"
        records[key] = images.record(key, scores["trained"], baselines, layer, 1, **about)
        errors[key] = scores["trained"]
    return records, {f"decoder_{lpips}": errors[f"decoder_{lpips}"]}


def detection_record(chosen, tokens, images):
    """The record of map50 at the better, on val, of the two layers with the best boxes; baselines are of the
    first. tokens(point, names): token grids."""
    ranked = [chosen[key] for key in ("map50", "map50_second") if key in chosen]
    grids = {p: tokens(p, ("trained",))["trained"] for p in ranked}
    grids |= tokens(ranked[0], ("pixels", "random_init"))
    runs = probes.detect(grids, images.boxes, len(images.classes), images.split, images.sources, images.seed)
    options = [*ranked, "softplus"]
    best = max(options, key=lambda name: runs[name]["val"].mean())
    scores = {name: run["test"] for name, run in runs.items() if name not in options}
    upper_bound, own = scores.pop("upper_bound").mean().item(), runs[best]["test"]
    about = {"layer": ranked[0] if best == "softplus" else best, "softplus": best == "softplus"}
    about |= {"options_searched": len(options), "n": len(images.split["test"]), "bands": BANDS["map50"]}
    about["upper_bound_is"] = "the same probe on true boxes"
    return stats.criterion(own, scores, range(own.shape[1]), upper_bound, blind="position_only", **about)


def places_of(layers, val, test):
    """{place: {task, task_layer}}: test scores of the layers that are best on val in each part of a model."""
    found = {}
    for place, prefixes in PLACES.items():
        points = [p for p in layers if p.startswith(prefixes)]
        for task in ("bbox_iou", "spatial_iou") if points else ():
            on_val = {p: layers[p][task][val].nanmean() for p in points}
            best = max(on_val, key=on_val.get)
            found.setdefault(place, {})[task] = layers[best][task][test].nanmean()
            found[place][f"{task}_layer"] = best
    return found


def layer_table(layers, untrained, images):
    """{point: scores on test; p of the gain over a constant box and a mean mask, adjusted over points}."""
    split, masks, largest = images.split, images.masks, images.largest
    boxed, test, sources = images.with_box, split["test"], images.sources
    of_test, with_box = [sources[i] for i in test], boxed["test"]
    position = masks[split["train"]].mean(0).expand_as(masks)
    constant = {"bbox_iou": metrics.box_iou(largest[boxed["train"]].median(0).values, largest)}
    constant["spatial_iou"] = metrics.mask_scores(position, masks >= 0.5, split)
    kernels = stats.spectrum(torch.stack([row["kernel"] for row in layers.values()]), boxed["train"])
    boxes = probes.train_mlp(probes.components(*kernels), largest, boxed, seed=images.seed)
    table, gains, of_box = {}, {}, [sources[i] for i in with_box]
    for k, (point, row) in enumerate(layers.items()):
        one = table[point] = stats.mean_and_interval("bbox_iou", row["bbox_iou"][with_box], of_box)
        one["bbox_iou_val"] = row["bbox_iou"][boxed["val"]].mean()
        one["mlp"] = metrics.box_iou(boxes[k][:, with_box], largest[with_box]).mean()
        one["spatial_iou"] = row["spatial_iou"][test].mean()
        for task, baseline in constant.items():
            gains[point, task] = (row[task] - baseline)[test].nan_to_num()
            if point in untrained:
                one[f"{task}_random"] = untrained[point][task][test].nanmean()
    for (point, task), p in stats.holm(stats.sign_flips(gains, of_test, images.seed)).items():
        table[point][f"{task}_p_holm"] = p
    return table


def probe_images(images, layers, read, read_random, read_oracle):
    """All probes of images at the layers of read_layers: (criteria, tables, contents of probe.pt)."""
    split, test, n = images.split, images.split["test"], len(images.items)
    chosen, untrained = choose_layers(layers, split["val"]), {}
    if read_random:
        untrained = read_layers(images, read_random, points_of(chosen, layers), "untrained")

    def tokens(point, names=("trained", "random_init", "oracle")):
        readers = {"trained": (read, point), "random_init": (read_random, point), "pixels": (read, "pixels")}
        readers["oracle"] = (read_oracle, "latents")
        there = {name: readers[name] for name in names if readers[name][0]}
        return {name: grids_of(*r, n) for name, r in there.items() if r[1] in r[0].index["points"]}

    at, of_masks = chosen["bbox_iou"], chosen["spatial_iou"]
    criteria = {"bbox_iou": box_record(layers, untrained, at, images)}
    x = grids_of(read, of_masks, n)
    criteria["spatial_iou"] = mask_record(layers, untrained, of_masks, x, images)
    scores = {"bbox_iou": layers[at]["bbox_iou"][test], "spatial_iou": layers[of_masks]["spatial_iou"][test]}
    _, h, w, _ = read.index["points"][at]["shape"]
    if h == w:
        records, errors = decoder_records(tokens(at), at, images)
        criteria, scores = criteria | records, scores | errors
    criteria["map50"] = detection_record(chosen, tokens, images)
    outputs = {"boxes": layers[at]["boxes"][test].clone(), "true_boxes": images.largest[test].clone()}
    outputs |= {"sources": [images.sources[i] for i in test], "scores": scores}
    tables = {
        "places": places_of(layers, split["val"], test),
        "layers": layer_table(layers, untrained, images),
    }
    return criteria, tables, outputs


# ---------------------------------------------------------------- clips


def answers_of(at, readers, frozen, clips):
    """{name: directions [n, 8]} read at a (point, pooling). readers {name: result of read_motion}, among them
    `trained`. random_init is read at the same place, pixels and <frame>_frame at their best."""
    trained, train = readers["trained"], clips.split["train"]
    answers = {"majority": clips.code[train].mean(0).expand_as(clips.code)}
    for name, found in readers.items():
        where = at if name in ("trained", "random_init") else probes.best_reading(found, clips)
        answers[name] = found[where]["true"][0]
    answers |= {f"frozen_{frame}": trained[at]["true"][k] for k, frame in enumerate(frozen, 1)}
    if ("pixels", at[1]) in trained:
        answers["pixels"] = trained[probes.best_reading(trained, clips, pixels=True)]["true"][0]
    return answers


def motion_records(at, readers, frozen, clips):
    """{direction_accuracy, frozen_<frame>: record} at a (point, pooling); see answers_of."""
    test, trained = clips.split["test"], readers["trained"]
    scores = {name: clips.correct(z)[test] for name, z in answers_of(at, readers, frozen, clips).items()}
    majority, accuracy = {"majority": scores["majority"]}, scores.pop("trained")
    wrong = [clips.correct(z[0])[test] for name, z in trained[at].items() if name != "true"]
    options = sum(p != "pixels" for p, _ in trained)
    place = {"layer": at[0], "pooling": at[1], "options_searched": options}
    baselines = scores | {"shuffled": torch.stack(wrong)}
    records = {"direction_accuracy": clips.record(accuracy, baselines, blind="majority", **place)}
    for frame in frozen:
        records[f"frozen_{frame}"] = clips.record(scores[f"frozen_{frame}"], majority, **place)
    # The middle frame holds nothing about the direction; the first may. A tenth of the headroom is allowed:
    # the majority class of training may by chance be rare in test.
    low = records["frozen_middle"]["gain_low"] if "middle" in frozen else 0.0
    if stats.control_leaks(low, scores["majority"].mean(), 1.0):
        records["direction_accuracy"]["leak"] = "frozen_middle"
    return records


def motion_table(readers, frozen, clips):
    """{point: {<score>_<pooling>: mean on test}}, with p of the gain over the majority class, adjusted."""
    test, trained = clips.split["test"], readers["trained"]
    table, gains = {point: {} for point, _ in trained}, {}
    majority = clips.correct(clips.code[clips.split["train"]].mean(0).expand_as(clips.code))[test]
    for (point, view), found in trained.items():
        correct, row = clips.correct(found["true"][0])[test], table[point]
        row[f"direction_accuracy_{view}"] = correct.mean()
        for k, frame in enumerate(frozen, 1):
            row[f"frozen_{frame}_{view}"] = clips.correct(found["true"][k])[test].mean()
            trained_on_it = readers[f"{frame}_frame"][point, view]["true"][0]
            row[f"{frame}_frame_{view}"] = clips.correct(trained_on_it)[test].mean()
        gains[point, view] = correct - majority
    sources = [clips.sources[i] for i in test]
    for (point, view), p in stats.holm(stats.sign_flips(gains, sources, clips.seed)).items():
        table[point][f"direction_accuracy_{view}_p_holm"] = p
    return table


def probe_clips(clips, trained, at, pooled_random, points, frozen):
    """All probes of moving clips from space-pooled features: (criteria, tables, contents of probe.pt).

    frozen {"first" | "middle": pooled features of clips that repeat this frame}. The probe of moving clips is
    applied to them (frozen_<frame>, a control); a probe trained on them is a baseline (<frame>_frame)."""
    readers = {"trained": trained}
    for frame, x in frozen.items():
        readers[f"{frame}_frame"] = probes.read_motion(x, points, clips)
    if pooled_random:
        readers["random_init"] = probes.read_motion(pooled_random, [at[0]], clips)
    test, criteria = clips.split["test"], motion_records(at, readers, frozen, clips)
    correct = clips.correct(trained[at]["true"][0])[test]
    outputs = {"direction_accuracy": correct, "sources": [clips.sources[i] for i in test]}
    return criteria, {"layers": motion_table(readers, frozen, clips)}, outputs


def read_pooled(folder, points):
    """{point: {mean, max: [n, t, D]}} of a features folder; fails if a value is not finite."""
    pooled = load_pt(Path(folder) / "pooled.pt", POOLED)["pooled"]
    for p in points:
        if not all(x.isfinite().all() for x in pooled[p].values()):
            fail(f"{folder}/pooled.pt holds non-finite values at {p}; extract again in bf16 or fp32")
    return pooled


def read_frozen(folders, features, index, points):
    """{"first" | "middle": pooled features} of frozen clips in the order of `index`, of the same network."""
    found = {}
    for folder in folders:
        other, _ = load_features(folder)
        frame = load_yaml(Path(other["data_path"]) / "index.yaml", "data").get("freeze")
        if frame is None:
            fail(f"{folder} holds features of clips that are not frozen; use data.py moving --freeze")
        same = all(other[k] == index[k] for k in ("model", "weights")) and set(points) <= set(other["points"])
        if not same or set(other["ids"]) != set(index["ids"]):
            fail(f"{folder} and {features} do not have the same network, points and items; extract again")
        order = [other["ids"].index(i) for i in index["ids"]]
        pooled, found[frame] = read_pooled(folder, points), {}
        for p in points:
            found[frame][p] = {k: x[order] for k, x in pooled[p].items()}
    return found


# ---------------------------------------------------------------- comparison of results; chart


def read_results(folders):
    """{name: (probe.yaml, probe.pt, index of the features)} of results on the same test items."""
    found = {}
    for folder in map(Path, folders):
        scores = load_pt(folder / "probe.pt", RESULT)
        index = load_yaml(folder / "features" / "index.yaml", "extract")
        found[folder.name] = load_yaml(folder / "probe.yaml", "probe"), scores, index
        first = next(iter(found))
        if scores["ids"] != found[first][1]["ids"]:
            fail(f"{folder} and {first} have different test items; compare results of one data set")
    if len(found) < 2:
        fail(f"--compare {' '.join(folders)}: give two or more folders of different names")
    return found


def compared(task, record, index, own, other, sources, seed):
    """The columns of a task: the score, and its paired gain over scores `other` (None for the first)."""
    _, h, w, _ = index["points"][record["layer"]]["shape"]
    row = {task: record["score"], f"{task}_grid": f"{h}x{w}"}
    row |= {f"{task}_{key}": record[key] for key in ("low", "high", "baseline", "layer")}
    if other is not None:
        scored = torch.nonzero(~own.isnan())[:, -1].unique()  # not the boxes of images without one
        own, other = own[..., scored], other[..., scored]
        test = stats.paired_test(own, other, [sources[i] for i in scored], seed=seed)
        row |= {f"{task}_{key}": test[key] for key in ("gain", "gain_low", "gain_high", "p")}
    return row


def compare(folders, seed=0):
    """Results of folders on the same test items, with paired gains over the first and Holm's correction."""
    found = read_results(folders)
    first, rows, p_values = next(iter(found)), {}, {}
    sources, reference = found[first][1]["sources"], found[first][1].get("scores", found[first][1])
    tasks = [task for task in ("bbox_iou", "spatial_iou", "direction_accuracy") if task in reference]
    for name, (result, outputs, index) in found.items():
        rows[name] = {"model": result["model"], "size": index["size"]}
        rows[name] |= {k: index[k] for k in ("frames", "count") if k in index}
        for task in tasks:
            own, other = outputs.get("scores", outputs)[task], None if name == first else reference[task]
            rows[name] |= compared(task, result["criteria"][task], index, own, other, sources, seed)
            if name != first:
                p_values[name, task] = rows[name].pop(f"{task}_p")
    for (name, task), p in stats.holm(p_values).items():
        rows[name][f"{task}_p_holm"] = p
    result = {"stage": "probe-compare", "reference": first}
    for task in tasks:
        scores = {name: row[task] for name, row in rows.items()}
        result[f"{task}_best"] = max(scores, key=scores.get)
        result |= {f"{task}_{name}": score for name, score in scores.items()}
    return result | {"rows": rows}


def draw_chart(result, path):
    """Write probe.png: scores of boxes and masks by layer, with the untrained network and baselines."""
    plt = common.pyplot()
    layers = candidates(result["layers"])
    rows, at = [result["layers"][p] for p in layers], range(len(layers))
    figure, axes = plt.subplots(1, 2, figsize=(17, 5), layout="constrained")
    low, high = [row["bbox_iou_low"] for row in rows], [row["bbox_iou_high"] for row in rows]
    axes[0].fill_between(at, low, high, alpha=0.2, label="95% interval")
    axes[0].plot(at, [row["mlp"] for row in rows], "^-", color="C2", label="MLP, trained network")
    titles = {"bbox_iou": "Largest box", "spatial_iou": "Foreground"}
    for axis, (task, title) in zip(axes, titles.items(), strict=True):
        axis.plot(at, [row[task] for row in rows], "o-", color="C0", label="ridge, trained network")
        measured = [k for k in at if f"{task}_random" in rows[k]]
        untrained = [rows[k][f"{task}_random"] for k in measured]
        axis.plot(measured, untrained, "s", color="C1", label="ridge, untrained network")
        for k, (name, value) in enumerate(result["criteria"][task]["baselines"].items()):
            if name != "random_init":
                axis.axhline(value, lw=1, ls=":", color=f"C{k + 3}", label=name.replace("_", " "))
        axis.set(title=f"{title}, by layer", ylabel="IoU on test items")
        axis.set_xticks(list(at), layers, rotation=60, ha="right", fontsize=8)
        axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    about = f"{result['model']} on {result['data_name']}: {result['test']} test items"
    figure.suptitle(f"{about}, {result['weights']} weights, {result['data']} data", fontsize=13)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- the stage


def load_others(args, index):
    """(features of the untrained network, of the oracle), None where not given; of the same items."""
    random = load_features(args.random)[1] if args.random and not args.choose else None
    if random and any(random.index.get(k) != index.get(k) for k in ("ids", "shown")):
        fail(f"{args.random} and {args.features} do not hold the same items; extract both again")
    oracle = load_features(args.oracle)[1] if args.oracle else None
    if oracle and (oracle.index["ids"] != index["ids"] or "latents" not in oracle.index["points"]):
        fail(f"{args.oracle} has no latents of these items; extract an autoencoder on the same --data")
    return random, oracle


def check_untrained(chosen, random):
    """Exit 2 if the features of the untrained network lack a chosen layer."""
    for p in chosen.values():
        if random and p not in random.index["points"]:
            fail(f"{random.folder} lacks the chosen layer {p!r}; extract it with the points of --choose")


def points_with_grid(points, index):
    """The points with a token grid; exit 2 if none is a layer."""
    grids = common.with_grid(index)
    gridless = [p for p in points if p not in grids]
    points = [p for p in points if p in grids]
    if not candidates(points):
        others = ", ".join(candidates(grids)) or "other features"
        fail(f"{', '.join(gridless) or 'pixels'}: no layer with a token grid; give --points of {others}")
    if gridless:
        print(f"left out (no token grid): {', '.join(gridless)}")
    return points


def on_images(args, items, split, read, points):
    """({criterion: layer}, call() -> result of `probe_images`)."""
    others = load_others(args, read.index)
    points, images = points_with_grid(points, read.index), images_of(items, split, args.seed)
    layers = read_layers(images, read, points)
    chosen = choose_layers(layers, split["val"])
    check_untrained(chosen, others[0])
    return chosen, lambda: probe_images(images, layers, read, *others)


def on_clips(args, items, split, read, points):
    """({criterion: layer}, call() -> result of `probe_clips`)."""
    random, _ = load_others(args, read.index)
    pooled, clips = read_pooled(args.features, points), probes.clips_of(items, split, args.seed)
    frozen = read_frozen(args.frozen, args.features, read.index, points)
    trained = probes.read_motion(pooled, points, clips, frozen.values(), shuffled=True)
    at = probes.best_reading(trained, clips)
    chosen = {"direction_accuracy": at[0]}
    check_untrained(chosen, random)
    pooled_random = read_pooled(args.random, at[:1]) if random else None
    return chosen, lambda: probe_clips(clips, trained, at, pooled_random, points, frozen)


def headline(criteria, random, oracle):
    """Keys of probe.yaml: the decoder, each score with its interval, baseline and layer."""
    found = {"oracle": load_yaml(Path(oracle) / "index.yaml")["model"]} if oracle else {}
    for name, c in criteria.items():
        found |= {name: c["score"], f"{name}_low": c["low"], f"{name}_high": c["high"]}
        found |= {f"{name}_baseline": c["baseline"], f"{name}_layer": c["layer"]}
    leaks = [f"{c['leak']} on {name}" for name, c in criteria.items() if c["leak"]]
    found["leak"] = f"a control scores what it cannot know: {', '.join(leaks)}" if leaks else None
    if random is None:
        found |= {"random_init_baseline": None, "random_init_reason": "no --random features were given"}
    return found


def load_inputs(args):
    """(features, items in their order, index of the data, split, points that --points names)."""
    index, read = load_features(args.features)
    items, data = load_items(args.data or index["data_path"])
    items = common.join(items, index, args.features)
    points = args.points.split(",") if args.points else list(index["points"])
    if unknown := [p for p in points if p not in index["points"]]:
        fail(f"{args.features} has no point {unknown[0]!r}; its points are {', '.join(index['points'])}")
    if args.frozen and "direction" not in items[0]:
        fail(f"--frozen is for clips, but {index['data_path']} has no directions; leave it out")
    if not {"direction", "boxes"} & set(items[0]) and not args.choose:  # align.py needs no truth
        fail(f"{index['data_path']} has neither boxes nor directions; probe.py needs one of them")
    return read, items, data, common.split_indices(items, args.features), points


def finish(result, out):
    save_yaml(out, result)
    common.print_summary(result)
    return result


def main(argv=None):
    args, started = get_args(argv), time.time()
    default = Path(args.compare[0]).parent / "compare.yaml" if args.compare else None
    out = Path(args.choose or args.out or default or Path(args.features).parent / "probe.yaml")
    common.check_writable(out)
    if args.compare:
        result = compare(args.compare, args.seed)
        return finish(result | {"run": common.run_info(args, started, script="probe.py")}, out)
    read, items, data, split, points = load_inputs(args)
    if "direction" in items[0]:
        chosen, probe = on_clips(args, items, split, read, points)
    elif "boxes" in items[0]:
        chosen, probe = on_images(args, items, split, read, points)
    else:
        chosen, probe = {}, None
    if args.choose:
        found = {"stage": "probe", "points": ",".join(points_of(chosen, points)), "layers": chosen}
        return finish(found, out)

    criteria, tables, outputs = probe()
    result = {"stage": "probe"} | {key: read.index[key] for key in ("model", "weights", "data")}
    result |= {"data_name": data["name"], "items": len(items), **{k: len(v) for k, v in split.items()}}
    result |= headline(criteria, args.random, args.oracle) | {"criteria": criteria, **tables}
    result["run"] = common.run_info(args, started, script="probe.py")
    ids = [items[i]["id"] for i in split["test"]]
    save_pt(out.with_suffix(".pt"), RESULT, ids, {"stage": "probe"}, **outputs)
    if "boxes" in outputs:
        draw_chart(common.plain(result), out.with_suffix(".png"))
    return finish(result, out)


if __name__ == "__main__":
    main()
