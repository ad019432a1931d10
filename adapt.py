"""Can a small adapter map a model's tokens to the latents of a frozen video decoder?

    python adapt.py latents --features results/tiny/shapes/features --align results/tiny/shapes/align.yaml \\
        --latents results/tiny-vae/shapes/features --out results/tiny/shapes/adapt-latents.yaml
    python adapt.py scaling --features ... --latents ... --align ...  # is a small adapter as good as a large?
    python adapt.py ablation --features ... --at results/tiny/shapes@64/features ...  # which layer or size
    python adapt.py hybrid --features ... --spatial results/tiny-dinov2/shapes/features ...  # second encoder
    python adapt.py prompt --features results/tiny/moving/features --video tiny-ltx  # for video.py coherence
    python adapt.py apply --adapter results/tiny/moving/adapter-prompt.pt --features results/.../features
    torchrun --nproc-per-node=8 adapt.py scaling ...                  # the same global batch, shared out

Reads features and latents of the same images (extract.py) and the recommended layer (align.yaml, or --point).
Trains adapters on the train split, for several seeds, and keeps the epoch with the lowest val loss. Decodes
the test images with the frozen VAE. Writes adapt-<job>.yaml, .pt (images of eight test items), .png and
adapter-<job>.pt (latents: adapter.pt; --init reads it). A killed run continues after its last epoch.

    lpips, ssim, edge_f1   decoded test images against the originals at the decoder's resolution
    recon_spatial_iou      foreground IoU of a linear map of the frozen evaluator's tokens of the originals
    recon_map50            mAP@0.5 of a set probe of the evaluator's tokens of the originals

Upper bound: the VAE's reconstruction. Baselines: the mean image, another item's image. Control: features of
the untrained network.

Needs adapters.py, checkpoints.py, cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py,
models.yaml, probes.py, stats.py, training.py.
"""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import adapters
import common
import ltx
import models
import stats
import training
from adapters import ADAPTER, SINGLE, Lora, arm, load_adapter, parameters, write_adapter
from common import RESULT, fail
from training import ranks

# Of each job: seeds; loss; warm: epochs on the squared error of latents before `loss` (the gradient through
# the decoder is useless at noise); epochs; batch; peak learning rate. The plan's, except gate 1's.
PLAN = {"seeds": 3, "loss": "pixels", "warm": 10, "epochs": 50, "batch": 8, "lr": 1e-4}
GATE1 = {"seeds": 5, "loss": "latents", "warm": 0, "epochs": 30, "batch": 32, "lr": 2e-3}
SETTINGS = {"latents": GATE1, "scaling": PLAN, "ablation": PLAN, "hybrid": PLAN}
SETTINGS["prompt"] = PLAN | {"loss": "words", "warm": 0}
LADDER = 5, 10, 20, 50, 100  # millions of parameters, for tokens of Qwen2.5-VL-7B's width
SMALL, LARGE = 1, 4  # of the ladder: the adapters whose LPIPS is compared
REFERENCE_WIDTH = 3584
FRACTIONS = 0.125, 0.25, 0.5  # of the training items
BASELINES = "mean_image", "other_item"


# ---------------------------------------------------------------- what the jobs on images share


def features_of(folder, ids=None):
    """`Features` of a folder; exit 2 where its items are not those of `ids`."""
    read = common.Features(folder)
    if ids is not None and read.index["ids"] != ids:
        fail(f"{folder} does not hold the same items as the others; extract both from the same data")
    return read


def check_point(read, point):
    """Exit 2 where features have no token grid at a point."""
    if point is None:
        fail("no layer is given; use --point, or --align with an align.yaml that has a linear_r2_layer")
    common.check_choice(point, read.index["points"], f"point in {read.folder}")
    if point not in common.with_grid(read.index):
        fail(f"{point} has no token grid; give --point one of {', '.join(common.with_grid(read.index))}")
    return point


def decoder_and_evaluator(args):
    """Registry entries of --vae and --evaluator; exit 2 for other kinds of models."""
    found = models.find_model(args.vae), models.find_model(args.evaluator)
    if [entry["kind"] for entry in found] != ["vae", "encoder"]:
        fail(f"--vae {args.vae} and --evaluator {args.evaluator}: a vae and an encoder are needed")
    return found


def read_inputs(args):
    """The namespace of a job on images: features, latents, items, split. Exit 2 for wrong arguments."""
    w = SimpleNamespace(args=args, seed=args.seed, read=features_of(args.features))
    w.index, w.ids = w.read.index, w.read.index["ids"]
    w.latents = features_of(args.latents, w.ids)
    items, w.data = common.load_items(w.index["data_path"])
    w.items = common.join(items, w.index, args.features)
    w.split = common.split_indices(w.items, args.features)
    if "boxes" not in w.items[0]:
        fail(f"{w.index['data_path']} has no boxes, which recon_spatial_iou needs; give data with boxes")
    w.sources = [w.items[i]["source"] for i in w.split["test"]]
    align = args.align and common.load_yaml(args.align, "align")
    w.point = check_point(w.read, args.point or (align["linear_r2_layer"] if align else None))
    w.random = features_of(args.random, w.ids) if args.random else None
    w.kinds = args.adapters.split(",") if "adapters" in args else []  # hybrid takes none
    for k, kind in enumerate(w.kinds):
        possible = SINGLE | ({"lora": Lora} if args.mode == "ablation" and k else {})
        common.check_choice(kind, possible, "adapter")
    w.vae_entry, w.evaluator = decoder_and_evaluator(args)
    w.out = Path(args.out or Path(args.features).parent / f"adapt-{args.mode}.yaml")
    common.check_writable(w.out)
    w.how = training.training_settings(args, SETTINGS[args.mode], len(w.split["train"]))
    return w


def facts(w):
    """First lines of the YAML: model, decoder, evaluator, data, layer."""
    found = {"stage": "adapt", "mode": w.args.mode, "model": w.index["model"]}
    found |= {"decoder": w.vae_entry["name"], "evaluator": w.evaluator["name"]}
    found |= {"weights": w.index["weights"], "decoder_weights": w.vae_entry["weights"]}
    return found | {"data": w.index["data"], "data_name": w.data["name"], "layer": w.point}


def conclude(w, result, started, images, a, module):
    """Write images of eight test items, the adapter, and the YAML last. Returns its content."""
    some = w.split["test"][:8]
    images = {"original": w.originals[some].clone()} | {k: x[:8].clone() for k, x in images.items()}
    common.save_pt(w.out.with_suffix(".pt"), RESULT, [w.ids[i] for i in some], {"stage": "adapt"}, **images)
    if w.args.mode != "latents":  # gate1.png shows those
        title = f"{result['model']} to {result['decoder']}: test images"
        adapters.draw_strips(w.out.with_suffix(".png"), images, title)
    name = "adapter.pt" if w.args.mode == "latents" else f"adapter-{w.args.mode}.pt"
    meta = {"into": "latents", "model": w.index["model"], "point": w.point, "size": w.index["size"]}
    meta["decoder"] = w.vae_entry["name"]
    write_adapter(w.out.parent / name, module, a, **meta)
    return save(w, result, started)


def save(w, result, started):
    w.args.out = str(w.out)
    result["run"] = common.run_info(w.args, started, script="adapt.py", **w.run, **w.how)
    common.save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    common.print_summary(result)
    return result


# ---------------------------------------------------------------- gate 1: do the latents suffice?


def run_latents(args, started):
    w = read_inputs(args)
    adapters.load_decoder(w)
    x = adapters.tokens_of(w, w.read, w.point)

    # of two adapters val chooses one; it is trained on the untrained network's tokens too
    arms = {kind: arm(w, kind, x) for kind in w.kinds}
    trained = adapters.train_arms(w, arms)
    val_loss = {}
    for kind, runs in trained.items():
        val_loss[kind] = sum(record["val"] for _, record in runs) / len(runs)
    best = min(val_loss, key=val_loss.get)
    if w.random:
        arms["random_init"] = arm(w, best, adapters.tokens_of(w, w.random, w.point))
        trained |= adapters.train_arms(w, {"random_init": arms["random_init"]})
    if ranks()[0]:
        return {}

    # its test images are compared with the originals
    rows = {"adapter": adapters.decoded(w, trained[best], arms[best]), **adapters.controls(w)}
    rows["other_item"] = adapters.of_other_items(rows["adapter"], len(w.sources))
    if w.random:
        rows["random_init"] = adapters.decoded(w, trained["random_init"], arms["random_init"])
    scores, evaluate = adapters.score(w, rows), adapters.Evaluator(w)
    scores["recon_spatial_iou"], scores["recon_map50"] = evaluate(rows)
    # the untrained network is a control, not a baseline: its first layers still hold nearly every pixel
    beside = [name for name in rows if name == "random_init"]
    criteria = adapters.criteria_of(w, scores, "adapter", BASELINES, len(val_loss), beside)

    table = {}
    for kind, runs in trained.items():
        seconds = sum(record["seconds_per_step"] * record["steps"] for _, record in runs)
        table[kind] = {"val_mse": val_loss.get(kind), "seconds": seconds}
        table[kind]["parameters"] = parameters(runs[0][0])
    result = facts(w) | {"adapter": best, "parameters": table[best]["parameters"]}
    result |= training.headline(criteria, w.lpips_name)
    iou, ap = evaluate.of_originals
    result |= {"evaluator_spatial_iou_originals": iou.mean(), "evaluator_map50_originals": ap.mean()}
    result |= {"criteria": criteria, "adapters": {kind: table[kind] for kind in val_loss}}
    images = {k: rows[k] for k in ("vae", "adapter")}
    return conclude(w, result, started, images, arms[best], trained[best][0][0])


# ---------------------------------------------------------------- is a small adapter as good as a large one?


def size_name(n):
    return f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n / 1e3:.3g}k"


def ladder(w, dim):
    """(numbers of parameters, scale): the plan's sizes, scaled as an adapter grows with the tokens' width."""
    scale = 1.0 if w.index["weights"] == "pretrained" or w.args.unscaled else (dim / REFERENCE_WIDTH) ** 2
    return [round(m * 1e6 * scale) for m in LADDER], scale


def efficiency(w, errors, small, large):
    """2 - LPIPS(small) / LPIPS(large) with its interval, as the findings compute it (1.165)."""
    ratio, low, high = stats.ratio_interval(errors[small], errors[large], w.sources)
    return {"score": 2 - ratio, "low": 2 - high, "high": 2 - low}


def efficiency_by_skill(w, errors, small, large):
    """The small adapter's share of the large one's skill between mean image and VAE."""
    baseline, bound = errors["mean_image"].mean(), errors["vae"].mean()
    skills = [(errors[name] - baseline) / (bound - baseline) for name in (small, large)]
    return dict(zip(("score", "low", "high"), stats.ratio_interval(*skills, w.sources), strict=True))


def run_scaling(args, started):
    w = read_inputs(args)
    adapters.load_decoder(w)
    kind, x = w.kinds[0], adapters.tokens_of(w, w.read, w.point)
    sizes, scale = ladder(w, x[0].shape[3])
    try:
        arms = {size_name(n): arm(w, kind, x, target=n, target_parameters=n) for n in sizes}
    except ValueError as e:
        fail(f"--adapters {kind}: {e}, and the smallest size in the ladder is {min(sizes)}")

    # every size is trained at the learning rate that val chooses for it
    trained = {name: adapters.train_at_best_rate(w, name, a) for name, a in arms.items()}
    if ranks()[0]:
        return {}
    small, large = (list(arms)[min(k, len(arms) - 1)] for k in (SMALL, LARGE))
    rows = {name: adapters.decoded(w, trained[name], a) for name, a in arms.items()} | adapters.controls(w)
    rows["other_item"] = adapters.of_other_items(rows[small], len(w.sources))
    scores = adapters.score(w, rows)
    errors = scores[w.lpips_name]
    criteria = adapters.criteria_of(w, scores, small, BASELINES, len(adapters.RATES))

    # two adapters that learned nothing are equally good: the gain is that of the small one over baselines
    ratio = efficiency(w, errors, small, large)
    record = criteria[w.lpips_name] | ratio | {"better": "higher", "bands": None}
    record |= {"lpips_small": errors[small].mean(), "lpips_large": errors[large].mean()}
    if w.lpips_name != "lpips":  # distances of an untrained backbone: both must agree
        record["by_skill"] = efficiency_by_skill(w, errors, small, large)
    against = adapters.worse(w, errors, {name: small for name in arms if name != small})
    result = facts(w) | {"adapter": kind, "small": small, "large": large}
    result |= {"parameter_efficiency" + ("" if k == "score" else f"_{k}"): v for k, v in ratio.items()}
    result |= {"parameter_efficiency_by_skill": record.get("by_skill", {}).get("score")}
    result |= {"training_time_ratio": adapters.step_ratio(w, arms[large], arms[small]), "ladder_scale": scale}
    result |= training.headline(criteria, w.lpips_name)
    result["criteria"] = criteria | {"parameter_efficiency": record}
    result["sizes"] = adapters.table_of(w, arms, trained, scores, against)
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, arms[small], trained[small][0][0])


# ---------------------------------------------------------------- which adapter, layer, size; how many items?


def same_size(w, kind, x, target):
    """An arm of `kind` with `target` parameters, or the smallest of its kind."""
    try:
        return arm(w, kind, x, target=target)
    except ValueError:
        return arm(w, kind, x, free={"width": 4})


def ablation_arms(w, x, first):
    """{group: {name: Arm}}: each arm differs in one thing from `first`."""
    kind, size = w.kinds[0], parameters(first.build())
    groups = {"adapter": {}, "point": {}, "size": {}, "samples": {}}
    for other in w.kinds[1:]:
        groups["adapter"][other] = adapters.lora_arm(w) if other == "lora" else same_size(w, other, x, size)
    layers = common.load_yaml(w.args.align, "align")["layers"] if w.args.align else {}
    others = [p for p in layers if p in common.with_grid(w.index) and p not in ("pixels", w.point)]
    for p in sorted(others, key=lambda p: layers[p]["linear_r2"]["val"], reverse=True)[:2]:
        groups["point"][p] = arm(w, kind, adapters.tokens_of(w, w.read, p), point=p)
    for read in w.others:
        if (px := read.index["size"]) != w.index["size"]:
            groups["size"][f"{px} px"] = arm(w, kind, adapters.tokens_of(w, read, w.point), size=px)
    for fraction in FRACTIONS:
        few = w.split["train"][: max(int(fraction * len(w.split["train"])), w.how["batch"])]
        groups["samples"][f"{len(few)} items"] = arm(w, kind, x, train=few)
    if w.init:
        its, free = w.init["meta"]["adapter"], w.init["meta"]["free"]
        groups["init"] = {"from scratch": arm(w, its, x, free=free)}
        groups["init"]["from --init"] = arm(w, its, x, free=free, init=True)
    return groups


def best_of_groups(w, kind, groups, table):
    """({best_<group>: what val chooses}, {group: names}); the first arm belongs to all groups but `init`."""
    named = {"point": w.point, "size": f"{w.index['size']} px", "samples": f"{len(w.split['train'])} items"}
    best, shown = {}, {}
    for group, members in groups.items():
        names = [*([kind] if group != "init" else []), *members]
        if len(names) > 1:
            chosen = min(names, key=lambda name: sum(table[name]["val_loss"]))
            best[f"best_{group}"] = named.get(group, kind) if chosen == kind else chosen
            shown[group] = names
    return best, shown


def at_other_sizes(w):
    """The features of --at; exit 2 where they lack the layer."""
    found = [features_of(folder, w.ids) for folder in w.args.at or ()]
    for read in found:
        if w.point not in read.index["points"]:
            fail(f"--at: the features at {read.index['size']} px lack {w.point!r}; extract that layer too")
    return found


def adapter_to_start_from(path):
    """The content of --init, or None; exit 2 for an adapter of two token sets."""
    found = common.load_pt(path, ADAPTER) if path else None
    if found:
        common.check_choice(found["meta"]["adapter"], SINGLE, f"adapter of one token set in --init {path}")
    return found


def run_ablation(args, started):
    w = read_inputs(args)
    w.others, w.init = at_other_sizes(w), adapter_to_start_from(args.init)
    adapters.load_decoder(w)
    kind, x = w.kinds[0], adapters.tokens_of(w, w.read, w.point)
    first = arm(w, kind, x)
    groups = ablation_arms(w, x, first)

    # all arms are trained for equally many steps
    arms = {kind: first}
    for members in groups.values():
        arms |= members
    trained = adapters.train_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: adapters.decoded(w, trained[name], a) for name, a in arms.items()} | adapters.controls(w)
    scores = adapters.score(w, rows, edges=False)
    errors = scores[w.lpips_name]
    beside = {name: "from scratch" if name == "from --init" else kind for name in arms if name != kind}
    table = adapters.table_of(w, arms, trained, scores, adapters.worse(w, errors, beside))

    best, shown = best_of_groups(w, kind, groups, table)
    result = facts(w) | {"adapter": kind, **best}
    result |= {f"{w.lpips_name}_{k}": errors[k].mean() for k in ("vae", "mean_image")}
    result |= {"groups": shown, "arms": table}
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, first, trained[kind][0][0])


# ---------------------------------------------------------------- does the model add to a spatial encoder?

# arms that see this item's tokens of the trained model, or the true latents
INFORMED = "fused", "model", "model_twice", "oracle"


def hybrid_arms(w, s, v):
    """Fusion of spatial tokens s with the model's v, and with controls in their place."""
    g, (x, moments) = torch.Generator().manual_seed(w.seed), v
    shuffled = torch.arange(len(x))
    for part in w.split.values():
        shuffled[part] = part[torch.randperm(len(part), generator=g)]
    noise = torch.randn(x.shape, generator=g).half().to(x.device)
    second = {"fused": v, "zero": (torch.zeros_like(x[:1]).expand_as(x), moments), "noise": (noise, moments)}
    second |= {"shuffled": (x[shuffled.to(x.device)], moments), "twice": s}
    if w.random:
        second["random"] = adapters.tokens_of(w, w.random, w.point)
    second["oracle"] = training.standardised(w.y[:, None], w.split["train"], w.device)
    arms = {name: arm(w, "fusion", s, other) for name, other in second.items()}
    size = parameters(arms["fused"].build())
    arms |= {"spatial": arm(w, "mlp", s), "spatial_wide": arm(w, "mlp", s, target=size)}
    return arms | {"model": arm(w, "mlp", v, target=size), "model_twice": arm(w, "fusion", v, v)}


def answer_of(test, headroom):
    """yes: the gain's interval is above zero; no: it is below a tenth of the headroom; else inconclusive."""
    if test["gain_low"] > 0:
        return "yes"
    return "no" if test["gain_high"] < 0.1 * abs(headroom) else "inconclusive"


def overhead(w):
    """The second encoder's seconds an item over the model's, as extract.py measured them."""
    a, b = (read.index.get("seconds_per_item") for read in (w.spatial, w.read))
    why = {"latency_reason": "layers were streamed, which times no single pass"}
    return {"latency_overhead": a / b} if a and b else {"latency_overhead": None} | why


def run_hybrid(args, started):
    w = read_inputs(args)
    w.spatial = features_of(args.spatial, w.ids)
    adapters.load_decoder(w)
    last = [p for p in common.with_grid(w.spatial.index) if p != "pixels"][-1]
    arms = hybrid_arms(w, adapters.tokens_of(w, w.spatial, last), adapters.tokens_of(w, w.read, w.point))
    trained = adapters.train_arms(w, arms)
    if ranks()[0]:
        return {}
    rows = {name: adapters.decoded(w, trained[name], a) for name, a in arms.items()} | adapters.controls(w)
    scores = adapters.score(w, rows, edges=False)
    scores["recon_spatial_iou"], ap = adapters.Evaluator(w)(rows)

    # fusion must beat every arm without this item's tokens of the model
    rivals = [name for name in arms if name not in INFORMED]
    criteria = adapters.criteria_of(w, scores, "fused", (*rivals, "mean_image"), len(rivals), INFORMED[1:])
    maps = adapters.detections(w, trained, arms, ("fused", "zero", "noise", "twice", "shuffled"))
    own, sources = maps.pop("fused"), range(len(set(w.sources)))
    more = {"layer": w.point, "options_searched": len(maps)}
    criteria["fused_map50"] = stats.criterion(own, maps, sources, **more) | {"n": len(w.sources)}

    # does each of the two repair the other? alone: the better of an MLP and of one with attention
    errors, adds = scores[w.lpips_name], criteria[w.lpips_name]
    alone = min(("model", "model_twice"), key=lambda name: errors[name].mean())
    repairs = stats.paired_test(errors[alone], errors["fused"], w.sources, w.seed)
    result = facts(w) | {"spatial": w.spatial.index["model"], "spatial_layer": last}
    result["model_adds"] = answer_of(adds, adds["upper_bound"] - adds["baseline"])
    result["spatial_adds"] = answer_of(repairs, errors["vae"].mean() - errors[alone].mean())
    for name, test in (("model_adds", adds), ("spatial_adds", repairs)):
        result |= {f"{name}_{k}": test[k] for k in ("gain", "gain_low", "gain_high", "p")}
    result |= {"rival": adds["baseline_name"], "model_alone": alone, **overhead(w)}
    table = adapters.table_of(w, arms, trained, scores)
    for name, row in table.items():
        row["recon_map50"] = ap[name].mean()
    for name, values in (maps | {"fused": own}).items():
        table[name]["fused_map50"] = values.mean()
    result |= training.headline(criteria, w.lpips_name) | {"criteria": criteria, "arms": table}
    images = {k: rows[k] for k in ("vae", *arms)}
    return conclude(w, result, started, images, arms["fused"], trained["fused"][0][0])


# ---------------------------------------------------------------- an adapter for the video transformer


@torch.inference_mode()
def encode_prompts(pipeline, prompts, device):
    """Embeddings [n, L, C] of prompts, L the longest; a shorter prompt is repeated up to L: the adapter's
    outputs have no mask."""
    length = int(pipeline.tokenizer(prompts, padding=True, return_tensors="pt").attention_mask.sum(1).max())
    embeds, masks = [], []
    for k in range(0, len(prompts), 64):
        some = prompts[k : k + 64]
        x, mask, *_ = pipeline.encode_prompt(some, do_classifier_free_guidance=False, device=device)
        embeds.append(x[:, :length].float().cpu())
        masks.append(mask[:, :length].cpu())
    embeds, mask = torch.cat(embeds), torch.cat(masks)
    repeated = torch.arange(length) % mask.sum(1, keepdim=True).long()
    return embeds.gather(1, repeated[:, :, None].expand_as(embeds))


def read_clips(args):
    """The namespace of `prompt`. Exit 2 for wrong arguments, before a model is loaded."""
    w = SimpleNamespace(args=args, seed=args.seed, read=features_of(args.features))
    w.index, w.ids = w.read.index, w.read.index["ids"]
    items, w.data = common.load_items(w.index["data_path"])
    w.items = common.join(items, w.index, args.features)
    w.split = common.split_indices(w.items, args.features)
    w.point = check_point(w.read, args.point or adapters.middle_layer(w.index))
    w.entry = models.find_model(args.video)
    if w.entry["kind"] != "video":
        fail(f"--video {args.video} is a {w.entry['kind']}; give a video pipeline, such as ltx-video")
    w.texts = [common.caption(i) for i in w.items]
    if not all(w.texts):
        fail(f"{w.index['data_path']} has clips without text, which the adapter learns; give clips with text")
    w.how = training.training_settings(args, SETTINGS["prompt"], len(w.split["train"]))
    w.init = common.load_pt(args.init, ADAPTER) if args.init else None
    common.check_choice(args.adapters, dict.fromkeys(("queries", "perceiver")), "adapter that gives a prompt")
    w.out = Path(args.out or Path(args.features).parent / "adapt-prompt.yaml")
    common.check_writable(w.out)
    return w


def run_prompt(args, started):
    w = read_clips(args)
    w.device, dtype, why = common.choose_device()
    w.run = {"device": f"{w.device.type} ({why})", "dtype": str(dtype), "ranks": ranks()[1]}
    print(f"device {w.run['device']}")
    pipeline = ltx.load_video_pipeline(w.entry, w.device, dtype)[0]
    w.y = encode_prompts(pipeline, w.texts, w.device)
    del pipeline

    # targets are standardised: the channels of an embedding differ in scale by orders of magnitude
    x = adapters.tokens_of(w, w.read, w.point)
    target, outputs = training.standardised(w.y[:, None, None], w.split["train"])
    target = target[:, 0].float()
    shape, free = (tuple(w.y.shape[1:2]), w.y.shape[2]), {"width": args.width} if args.width else {}
    a = arm(w, args.adapters, x, free=free, init=w.init is not None, shape=shape)

    def loss_of(module, items, g, part, warm):
        return (module(*a.inputs(items[part])) - target[items[part]].to(w.device)).square().mean()

    trained = adapters.train_arm(w, "prompt", a, range(w.how["seeds"]), loss_of)
    if ranks()[0]:
        return {}
    z = torch.stack([adapters.outputs_of(module, a, torch.arange(len(w.ids))) for module, _ in trained])

    # the squared error on test, beside that of the mean prompt and of another clip's
    test, sources = w.split["test"], [w.items[i]["source"] for i in w.split["test"]]
    found, truth = z[:, test], target[test]
    baselines = {"mean": truth.square().mean((1, 2))[None]}
    baselines["other_clip"] = (found.roll(1, 1) - truth).square().mean((2, 3))
    record = stats.criterion(
        (found - truth).square().mean((2, 3)), baselines, sources, 0.0, "lower", w.seed, layer=w.point
    )
    criteria = {"embedding_error": record | {"options_searched": 1}}
    result = {"stage": "adapt", "mode": "prompt", "model": w.index["model"], "decoder": w.entry["name"]}
    result |= {"weights": w.index["weights"], "decoder_weights": w.entry["weights"]}
    result |= {"data": w.index["data"], "data_name": w.data["name"], "layer": w.point}
    result |= {"adapter": a.kind, "parameters": parameters(trained[0][0]), **a.about}
    result["input"] = "the whole clip: the result is an upper bound, not a prediction"
    result |= training.headline(criteria, "lpips") | {"criteria": criteria}
    result["val_loss"], result["best_epoch"] = zip(*((r["val"], r["epoch"]) for _, r in trained), strict=True)
    meta = {"into": "prompt", "model": w.index["model"], "point": w.point, "decoder": w.entry["name"]}
    meta |= {"weights": w.index["weights"], "data_path": w.index["data_path"]}
    embeds = z[0] * outputs[1] + outputs[0]
    common.save_pt(w.out.parent / "conditioning-prompt.pt", RESULT, w.ids, meta, embeds=embeds.half())
    meta |= {"size": w.index["size"], "outputs": outputs}
    write_adapter(w.out.parent / "adapter-prompt.pt", trained[0][0], a, **meta)
    return save(w, result, started)


def run_apply(args, started):
    """Write a trained adapter's outputs for other clips: conditioning-prompt.pt, for video.py --adapter."""
    use, meta = load_adapter(args.adapter)
    if meta["into"] != "prompt":
        fail(f"{args.adapter} gives {meta['into']}, no prompt; give an adapter of adapt.py prompt")
    read = features_of(args.features)
    index = read.index
    if meta["point"] not in index["points"]:
        fail(f"{args.adapter} reads {meta['point']}, which {args.features} does not hold; extract it")
    if index["model"] != meta["model"]:
        trained_on = f"{args.adapter} was trained on {meta['model']}"
        fail(f"{trained_on}, and {args.features} is of {index['model']}; train another one with --init")
    x, needed = read(meta["point"]).flatten(1, 2), [*meta["grids"][0], meta["dims"][0]]
    if (has := list(x.shape[1:])) != needed:
        reads = f"{args.adapter} reads tokens {needed}, and {args.features} holds {has}"
        fail(f"{reads}; extract with the same size and frames")
    out = Path(args.out or Path(args.features).parent / "conditioning-prompt.pt")
    common.check_writable(out)
    embeds = torch.cat([use(part) for part in x.split(64)]).half()
    meta |= {"weights": index["weights"], "data_path": index["data_path"]}
    common.save_pt(out, RESULT, index["ids"], meta, embeds=embeds)
    result = {"stage": "adapt", "mode": "apply", "adapter": args.adapter}
    result |= {k: meta[k] for k in ("model", "decoder", "point")} | {"items": len(embeds), "out": str(out)}
    common.print_summary(result)
    return result


# ---------------------------------------------------------------- command line

JOBS = {
    "latents": (run_latents, "gate 1: map the model's tokens to the decoder's latents"),
    "scaling": (run_scaling, "gate 2: is an adapter of 10M parameters as good as one of 100M?"),
    "ablation": (run_ablation, "gate 2: which adapter, layer and resolution; how many training items?"),
    "hybrid": (run_hybrid, "gate 2: does the model add to a spatial encoder?"),
    "prompt": (run_prompt, "map a clip's tokens to the prompt of a video model, for video.py --adapter"),
    "apply": (run_apply, "write a trained adapter's outputs for other items"),
}


def get_args(argv):
    p, jobs = common.subcommands(__doc__, {name: about for name, (_, about) in JOBS.items()})
    for name in ("latents", "scaling", "ablation", "hybrid"):
        add = jobs[name].add_argument
        add("--features", default="results/tiny/shapes/features", help="the model's features")
        add("--latents", default="results/tiny-vae/shapes/features", help="the decoder's latents of the same")
        add("--random", help="features of the untrained network: a control")
        add("--align", help="align.yaml: read its recommended layer (ablation: and the next two)")
        add("--point", help="read this layer instead")
        add("--vae", default="tiny-vae", help="the decoder")
        add("--evaluator", default="tiny-dinov2", help="the frozen encoder that scores decoded images")
        training.add_training_flags(jobs[name], SETTINGS[name], ("latents", "pixels"))
    add = jobs["latents"].add_argument
    add("--adapters", default="mlp,queries", help="comma-separated; the best on val is used")
    add = jobs["scaling"].add_argument
    add("--adapters", default="mlp", help="the adapter that is scaled")
    add("--unscaled", action="store_true", help="5M to 100M parameters for a small model too")
    add = jobs["ablation"].add_argument
    add("--adapters", default="mlp,queries,perceiver,bottleneck", help="comma-separated; also lora")
    add("--at", nargs="*", help="features of the same images at other sizes")
    add("--init", help="another model's adapter.pt, compared with training from scratch")
    jobs["hybrid"].add_argument("--spatial", required=True, help="features of a spatial encoder")
    add = jobs["prompt"].add_argument
    add("--features", default="results/tiny/moving/features", help="the model's features of clips")
    add("--point", help="the layer to read (default: the middle one of the language layers)")
    add("--video", default="tiny-ltx", help="the video pipeline")
    add("--width", type=int, help="width of the adapter")
    add("--adapters", default="queries", help="the adapter: queries or perceiver")
    add("--init", help="an adapter.pt to start from, of this or another model")
    training.add_training_flags(jobs["prompt"], SETTINGS["prompt"])
    jobs["apply"].add_argument("--adapter", required=True, help="an adapter.pt")
    jobs["apply"].add_argument("--features", required=True, help="features of the items")
    for name, q in jobs.items():
        default = "conditioning-prompt.pt" if name == "apply" else f"adapt-{name}.yaml"
        q.add_argument("--out", help=f"default: {default} beside --features")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    return JOBS[args.mode][0](args, started)


if __name__ == "__main__":
    main()
