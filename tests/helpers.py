"""Shared by several tests: features of known content, small random models, results that the gates read."""

import operator
from pathlib import Path

import diffusers as d
import pytest
import torch
import transformers as t
from published import sizes
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from common import FEATURES, POOLED, RESULT, TRACKS, plain, save_pt, save_yaml, write_items
from gate import GATE1, GATE2
from track import frames_of_track

OPERATORS = {"==": operator.eq, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plant_features(folder, ids, points, data_path, gridless=(), **more):
    """Write known features {point: [n, t, h, w, D]} in the layout of extract.py."""
    folder = Path(folder)
    for name, x in points.items():
        save_pt(folder / name / "00000.pt", FEATURES, ids, {}, features=x.half().contiguous())
    pooled = {k: {"mean": x.mean((2, 3)), "max": x.amax((2, 3))} for k, x in points.items()}
    save_pt(folder / "pooled.pt", POOLED, ids, {}, pooled=pooled)
    index = {"stage": "extract", "schema": FEATURES, "model": "planted", "weights": "random", "shards": 1}
    index |= {"data": "synthetic", "data_path": str(data_path), "ids": ids}
    index["points"] = {k: {"shape": list(x.shape[1:]), "grid": k not in gridless} for k, x in points.items()}
    save_yaml(folder / "index.yaml", index | more)
    return str(folder)


def planted_tracks(path, items, scores_of=None, persistence_of=None, **changed):
    """A tracks.pt of the truth, or of functions of (item, name, truth: frames, or track)."""
    ids, scores, persistence = [], [], []
    for item in items:
        tracks = {t["object"]: t for t in item["tracks"]}
        for name in [*item["names"], item["absent"], *filter(None, [item.get("removed")])]:
            true = tracks.get(name)
            visible = frames_of_track(true).float() if true else torch.zeros(32)
            likely = float(bool(true and true["persistent"]))
            ids.append(f"{item['id']}/{name}")
            scores.append(scores_of(item, name, visible) if scores_of else visible)
            persistence.append(persistence_of(item, name, true) if persistence_of else likely)
    content = {"embedding": torch.zeros(len(ids), 512), "scores": torch.stack(scores)}
    content |= {"attention": torch.full((len(ids), 32), 1 / 32), "persistence": torch.tensor(persistence)}
    meta = {"model": "planted", "weights": "random", "data": "synthetic", "data_path": "x", "threshold": 0.5}
    schema, ids = changed.pop("schema", TRACKS), changed.pop("ids", ids)
    save_pt(path, schema, ids, meta, **{k: x.half() for k, x in content.items()} | changed)
    return path


def write_squares(folder, boxes, side, labels=("box",)):
    """Write items box-<i>, images of one white box; returns (ids, images uint8 [n, 1, side, side, 3])."""
    # no two images alike, whatever the boxes
    frames = torch.arange(len(boxes), dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, side, side, 3)
    ids, items = [f"box-{i}" for i in range(len(boxes))], []
    for i, f, b in zip(ids, frames, boxes, strict=True):
        x1, y1, x2, y2 = b.int().tolist()
        f[0, y1:y2, x1:x2] = 255
        size = {"id": i, "source": i, "width": side, "height": side}
        items.append(size | {"frames": f, "boxes": b[None], "labels": [labels[len(items) % len(labels)]]})
    write_items(folder / "data", items, {"data": "synthetic", "name": "boxes"})
    return ids, frames


def gate_inputs(folder):
    """Write what gates 1 to 3 read: results of a model that passes everything, those on clips in motion/."""
    good = {"score": 0.9, "low": 0.85, "high": 0.95, "gain": 0.8, "gain_low": 0.7, "gain_high": 0.9}
    good |= {"p": 0.001, "n": 20, "skill": 0.9, "layer": "vision.0", "upper_bound": 1.0}
    good |= {"baseline": 0.1, "baseline_name": "constant", "baselines": {"constant": 0.1}}
    near = good | {"score": 0.1, "low": 0.05, "high": 0.15, "baseline": 0.9, "upper_bound": 0.0}  # a distance
    head = {"model": "made-up", "data_name": "noise", "weights": "random", "data": "synthetic"}

    def write(name, stage, **content):
        save_yaml(folder / f"{name}.yaml", {"stage": stage} | head | content)

    def criteria(rules, stage):
        return {n: near if n == "lpips" else good for n, r in rules.items() if r["from"] == stage}

    row = {"bbox_iou": 0.9, "bbox_iou_low": 0.85, "bbox_iou_high": 0.95, "bbox_iou_random": 0.4}
    layers = {f"vision.{k}": row | {"spatial_iou": 0.9} for k in (0, 1)}
    vae = {"decoder": "vae", "decoder_weights": "random"}
    found = criteria(GATE1, "probe") | {"decoder_lpips": near}
    write("probe", "probe", bbox_iou_layer="vision.0", oracle="vae", criteria=found, layers=layers)
    found = criteria(GATE1, "align")
    maps = dict.fromkeys(("layers", "untrained"), {"vision.0": found, "vision.1": found})
    maps["channels"] = dict.fromkeys(layers, [0.1, None, 0.9])
    write("align", "align", target="vae", criteria=found, **maps)
    write("adapt-latents", "adapt", **vae, criteria=criteria(GATE1, "adapt"))
    write("motion/probe", "probe", criteria=criteria(GATE1, "motion"))
    efficiency = {"parameter_efficiency": good | {"score": 1.1, "low": 1.05, "high": 1.15}}
    found = criteria(GATE2, "scaling") | efficiency
    write("adapt-scaling", "adapt", **vae, ladder_scale=1.0, training_time_ratio=2.0, criteria=found)
    hybrid = {"spatial": "made-up-encoder", "model_adds": "no", "spatial_adds": "yes"}
    write("adapt-hybrid", "adapt", **hybrid, criteria={"lpips": near})
    video = {"video": "made-up-video", "conditioning": "adapter"}
    write("motion/video-coherence", "video", **video, criteria=criteria(GATE2, "coherence"))
    write("motion/explain-semantic", "explain", criteria=criteria(GATE2, "semantic"))
    row = {"baseline": 0.5, "baseline_name": "copy", "skill": 0.8, "l1": 0.01, "clips": 20, "static": False}
    row |= {"gain_over_baseline": 0.4, "gain_over_baseline_low": 0.3, "gain_over_baseline_high": 0.5}
    row |= {"cosine": 0.9, "cosine_low": 0.85, "cosine_high": 0.95, "cosine_copy": 0.5, "best_shift": 0}
    row |= {"gain": 0.4, "gain_low": 0.3, "gain_high": 0.5, "p_holm": 0.01}
    delta = {"variants": row, "horizons": {1: row, 16: row}, "quarters_of_motion": {"quarter_4": row}}
    about = {k: {"delta": x} for k, x in delta.items()} | {"baselines": {"copy": row | {"cosine": 0.5}}}
    about |= {"decoder": "vae", "variant": "delta", "predicts": "delta", "layer": "vision.0"}
    about["criteria"] = {k: good for k in ("prediction", "beyond_extrapolation")}
    write("predict-latents", "predict", **about)
    about = {"model": None, "video": "made-up-video", "video_weights": "random", "conditioning": "past"}
    about |= {f"moving_gain_over_copy{k}": x for k, x in (("", 0.1), ("_low", 0.05), ("_high", 0.15))}
    about |= {"moving_clips": 20, "moving_l1_copy": 0.3, "moving_l1_vae": 0.1}
    write("video-continue", "video", **about, criteria={"temporal_ratio": good})
    retention = good | {"score": 0.96, "low": 0.92, "high": 1.0}
    write("explain-describe", "describe", data_name="noise-generated", criteria={"retention": retention})
    shown_by_gate1(folder)


def shown_by_gate1(folder):
    """Write what gate1.png shows: images, boxes and reconstructions."""
    ids, _ = write_squares(folder, torch.tensor([[2, 2, 10, 10]]).repeat(8, 1), 16)
    index = {"stage": "extract", "model": "made-up", "data_path": str(folder / "data"), "ids": ids}
    index |= {"seconds_per_item": 0.1, "points": {"vision.0": {}, "language.0": {}}}
    save_yaml(folder / "features" / "index.yaml", index)
    box, score = torch.tensor([[0.1, 0.1, 0.6, 0.6]]).repeat(8, 1), torch.linspace(0.85, 0.95, 8)
    scores = {"bbox_iou": score, "spatial_iou": score, "decoder_lpips": 1 - score}
    save_pt(folder / "probe.pt", RESULT, ids, {}, boxes=box, true_boxes=box, sources=ids, scores=scores)
    blank = {k: torch.zeros(8, 16, 16, 3, dtype=torch.uint8) for k in ("original", "vae", "adapter")}
    save_pt(folder / "adapt-latents.pt", RESULT, ids, {}, **blank)


def random_language_model(folder, seed, *more):
    """(config, tokenizer) of a language model on bytes and `more` tokens; with a folder, a Llama there."""
    tokens = {c: k for k, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", *more])}
    bytewise = Tokenizer(models.BPE(tokens, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    names = {"eos_token": "<end>", "pad_token": "<end>"}
    names["extra_special_tokens"] = {x.strip("<|>").replace("pad", "token"): x for x in more}
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=bytewise, **names)
    config = sizes(16, 32, 1, 2, 1, vocab_size=len(tokens), bos_token_id=None, eos_token_id=tokens["<end>"])
    torch.manual_seed(seed)
    if folder:
        tokenizer.save_pretrained(folder)
        t.LlamaForCausalLM(t.LlamaConfig(**config)).save_pretrained(folder)
    return config, tokenizer


def random_autoencoder(patch_size, scaling, channels=4, **more):
    """LTX-Video's autoencoder with a stage for each of `scaling`: whether it halves the grid."""
    n = len(scaling)
    how = {"latent_channels": channels, "patch_size": patch_size, "upsample_residual": (False,) * n}
    how |= {"block_out_channels": (16,) * n, "decoder_block_out_channels": (16,) * n}
    how |= {"down_block_types": ("LTXVideoDownBlock3D",) * n, "upsample_factor": (1,) * n}
    how |= {"layers_per_block": (1,) * (n + 1), "decoder_layers_per_block": (1,) * (n + 1)}
    how |= {"spatio_temporal_scaling": scaling, "decoder_spatio_temporal_scaling": scaling}
    vae = d.AutoencoderKLLTXVideo(**how, **more, decoder_inject_noise=(False,) * (n + 1))
    vae.latents_mean.uniform_(-1, 1)  # so that a missing normalisation is found
    vae.latents_std.uniform_(0.5, 2)
    return vae


def random_evaluator(folder, image_size, patch_size):
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": patch_size}
    t.Dinov2Model(t.Dinov2Config(**size, image_size=image_size)).save_pretrained(folder)
    t.BitImageProcessor().save_pretrained(folder)


def adapter_world(folder, seed=0):
    """Planted data of adapt.py, on squares: `features` are the latents, rotated, `spatial` half of them."""
    torch.manual_seed(seed)
    vae = random_autoencoder(patch_size=8, scaling=(False,)).eval()
    vae.save_pretrained(folder / "vae")
    random_evaluator(folder / "evaluator", image_size=224, patch_size=28)
    corner = torch.rand(40, 2) * 40
    boxes = torch.cat([corner, corner + 12 + torch.rand(40, 2) * 10], 1).round()
    ids, frames = write_squares(folder, boxes, 64)
    with torch.no_grad():
        z = vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist.mode()
    z = (z.permute(0, 2, 3, 4, 1) - vae.latents_mean) / vae.latents_std
    rotated = z @ torch.linalg.qr(torch.randn(4, 4))[0]
    points = {"features": {"rotated": rotated}, "latents": {"latents": z}}
    points |= {"spatial": {"half": rotated[..., :2]}, "random": {"rotated": torch.randn(z.shape)}}
    for name, x in points.items():
        plant_features(folder / name, ids, x, folder / "data", size=64)


def video_world(folder, seed=0):
    """Planted data of video.py: clips of squares that move right, a random ltx, random conditioning."""
    torch.manual_seed(seed)
    names = {w: k for k, w in enumerate(("<pad>", "</s>", "<unk>", "the", "square", "moves", "right"))}
    words = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    vae = random_autoencoder(patch_size=4, scaling=(True, False))
    text = t.T5EncoderModel(t.T5Config(vocab_size=7, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 1}
    transformer = d.LTXVideoTransformer3DModel(in_channels=4, out_channels=4, caption_channels=16, **heads)
    parts = d.FlowMatchEulerDiscreteScheduler(), vae, text, tokenizer, transformer
    d.LTXImageToVideoPipeline(*parts).save_pretrained(folder / "ltx")
    random_evaluator(folder / "evaluator", image_size=32, patch_size=8)
    items = []
    for k in range(32):
        boxes = torch.tensor([[4 + 2 * x, 4 + k % 16, 12 + 2 * x, 12 + k % 16] for x in range(7)])
        mask = torch.zeros(7, 32, 32, dtype=torch.uint8)
        for frame, (x1, y1, x2, y2) in zip(mask, boxes.tolist(), strict=True):
            frame[y1:y2, x1:x2] = 1
        colours = torch.tensor([200, 30, 30]), torch.full((3,), 60 + 5 * k)
        item = {"id": f"clip-{k}", "source": f"clip-{k}", "width": 32, "height": 32, "mask": mask}
        item |= {"frames": torch.where(mask[..., None] > 0, *colours).byte(), "boxes": boxes[:, None].float()}
        item |= {"labels": ["square"], "names": ["square"], "direction": "right", "camera": [0, 0]}
        items.append(item | {"text": "a square"})
    write_items(folder / "data", items, {"data": "synthetic", "name": "squares"})
    meta, embeds = {"into": "prompt", "model": "planted", "weights": "random"}, torch.randn(32, 3, 16).half()
    save_pt(folder / "conditioning.pt", RESULT, [i["id"] for i in items], meta, embeds=embeds)


def changed(arguments, job=None, **new):
    """A command line [job, flag, value, ...], with or without a job, with other values; None drops a flag."""
    first = [] if arguments[0].startswith("--") else arguments[:1]
    pairs = arguments[len(first) :]
    flags = dict(zip(pairs[::2], pairs[1::2], strict=True))
    flags |= {f"--{k.replace('_', '-')}": v for k, v in new.items()}
    return [*([job] if job else first), *(str(x) for k, v in flags.items() if v is not None for x in (k, v))]


def holds(result, facts):
    """Check facts such as "score > 0.9, place.low <= place.baseline, answer == no" about a nested result."""

    def value(word):
        found = plain(result)
        for key in word.split("."):
            if not isinstance(found, dict) or key not in found:
                found = {"None": None, "True": True, "False": False}.get(word, word)
                return float(word) if word.lstrip("-").replace(".", "").isdecimal() else found
            found = found[key]
        return found

    for fact in facts.split(","):
        left, how, right = fact.split()
        a, b = value(left), value(right)
        b = pytest.approx(b, abs=1e-9) if how == "==" and isinstance(b, float) else b
        assert OPERATORS[how](a, b), f"{fact}: {a}, {b}"
