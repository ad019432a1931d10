"""What several tests share: small random language models, and features whose content is known."""

from pathlib import Path

import torch

from common import FEATURES, POOLED, RESULT, save_pt, save_yaml, write_items

BYTE_CHAT = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}"
    "<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<end>\n{% endfor %}"
)

# why an object of a trajectory is seen, in the clip played backwards
BACKWARDS = {
    "stays": "stays",
    "enters": "leaves",
    "leaves": "enters",
    "passes": "passes",
    "appears": "vanishes",
    "vanishes": "appears",
}


def random_language_model(folder, seed, *more):
    """(config, tokenizer) of a language model whose tokens are bytes, and some of `more`; with a folder a random Llama of that kind is written there."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = {c: k for k, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>", *more])}
    bytewise = Tokenizer(models.BPE(tokens, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    extra = {t.strip("<|>").replace("pad", "token"): t for t in more}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token="<end>", pad_token="<end>", extra_special_tokens=extra
    )
    config = {
        "vocab_size": len(tokens),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": None,
        "eos_token_id": tokens["<end>"],
    }
    torch.manual_seed(seed)
    if folder:
        tokenizer.save_pretrained(folder)
        LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(folder)
    return config, tokenizer


def random_vlm(folder, seed):
    """A random Qwen2.5-VL of one layer each, patches of 8 px and tokens that are bytes."""
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    names = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
    text, tokenizer = random_language_model(None, seed, *names)
    ids = dict(
        zip(
            ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id"),
            tokenizer.convert_tokens_to_ids(names),
            strict=True,
        )
    )
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "window_size": 32,
        "fullatt_block_indexes": [0],
        "out_hidden_size": 16,
    }
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
    Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(vision_config=vision, text_config=text | rope, tie_word_embeddings=True, **ids)
    ).save_pretrained(folder)
    Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=8),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=8),
        chat_template=BYTE_CHAT,
    ).save_pretrained(folder)


def plant_features(folder, ids, points, data_path, gridless=(), **more):
    """Write known features {point: [n, t, h, w, D]} in the layout of extract.py."""
    folder = Path(folder)
    for name, x in points.items():
        save_pt(folder / name / "00000.pt", FEATURES, ids, {}, features=x.half().contiguous())
    save_pt(
        folder / "pooled.pt",
        POOLED,
        ids,
        {},
        pooled={k: {"mean": x.mean((2, 3)), "max": x.amax((2, 3))} for k, x in points.items()},
    )
    save_yaml(
        folder / "index.yaml",
        {
            "stage": "extract",
            "schema": FEATURES,
            "model": "planted",
            "weights": "random",
            "data": "synthetic",
            "data_path": str(data_path),
            "shards": 1,
            "points": {
                k: {"shape": list(x.shape[1:])} | ({"grid": False} if k in gridless else {})
                for k, x in points.items()
            },
            "ids": ids,
        }
        | more,
    )
    return str(folder)


def planted_boxes(folder, n=40, seed=0):
    """Arguments of probe.py: features of n pictures of one box each, a point that holds the box and one of noise."""
    from common import write_items

    folder, g = Path(folder), torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 6 + torch.rand(n, 2, generator=g) * 6], 1).round()
    # no two pictures alike, whatever the boxes
    frames = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, 32, 32, 3)
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 255
    ids = [f"box-{i}" for i in range(n)]
    items = [
        {"id": i, "source": i, "width": 32, "height": 32, "frames": f, "boxes": b[None], "labels": ["box"]}
        for i, f, b in zip(ids, frames, boxes, strict=True)
    ]
    write_items(folder / "data", items, {"data": "synthetic", "name": "boxes"})
    points = {
        "oracle": boxes[:, None, None, None].expand(-1, 1, 2, 2, -1) / 32,
        "noise": torch.randn(n, 1, 2, 2, 8, generator=g),
    }
    return ["--features", plant_features(folder / "features", ids, points, folder / "data")]


def planted_spaces(folder, n=60, seed=0):
    """Arguments of align.py: two encoders of the same n items, one layer a rotation of the other encoder's latents plus noise, one independent."""
    from common import write_items

    folder, g, ids = Path(folder), torch.Generator().manual_seed(seed), [f"item-{i}" for i in range(n)]
    items = [
        {"id": i, "source": i, "width": 8, "height": 8, "frames": torch.zeros(1, 8, 8, 3, dtype=torch.uint8)}
        for i in ids
    ]
    write_items(folder / "data", items, {"data": "synthetic", "name": "planted"})
    y = torch.randn(n, 1, 2, 2, 4, generator=g)
    rotated = y @ torch.linalg.qr(torch.randn(4, 4, generator=g))[0] + 0.1 * torch.randn(y.shape, generator=g)
    own = plant_features(
        folder / "features",
        ids,
        {"rotated": rotated, "independent": torch.randn(n, 1, 2, 2, 4, generator=g)},
        folder / "data",
    )
    return [
        "--features",
        own,
        "--target",
        plant_features(folder / "target", ids, {"latents": y}, folder / "data"),
        "--permutations",
        "50",
    ]


def gate_inputs(folder):
    """Write what gates 1 to 3 read: results of a model that passes everything, those on clips in motion/, and what gate1.png shows."""
    from gate import GATE1, GATE2

    ends = {
        "low": 0.85,
        "high": 0.95,
        "gain": 0.8,
        "gain_low": 0.7,
        "gain_high": 0.9,
        "p": 0.001,
        "n": 20,
        "skill": 0.9,
    }
    floor = {
        "floor": 0.1,
        "floor_name": "constant",
        "floors": {"constant": 0.1},
        "ceiling": 1.0,
        "layer": "vision.0",
    }
    good = {"score": 0.9} | ends | floor
    # a distance: less is better
    near = good | {"score": 0.1, "low": 0.05, "high": 0.15, "floor": 0.9, "ceiling": 0.0}

    def write(name, stage, **content):
        head = {
            "stage": stage,
            "model": "made-up",
            "data_name": "noise",
            "weights": "random",
            "data": "synthetic",
        }
        save_yaml(folder / f"{name}.yaml", head | content)

    def asked(rules, stage):
        return {n: near if n == "lpips" else good for n, r in rules.items() if r["from"] == stage}

    layers = {"vision.0": {"bbox_iou": 0.9, "spatial_iou": 0.9}}
    vae = {"decoder": "vae", "decoder_weights": "random"}
    found = asked(GATE1, "probe") | {"decoder_lpips": near}
    write("probe", "probe", bbox_iou_layer="vision.0", oracle="vae", criteria=found, layers=layers)
    found = asked(GATE1, "align")
    write("align", "align", target="vae", criteria=found, layers={"vision.0": found})
    write("adapt-latents", "adapt", **vae, criteria=asked(GATE1, "adapt"))
    write("motion/probe", "probe", criteria=asked(GATE1, "motion"))

    found = asked(GATE2, "scaling") | {
        "parameter_efficiency": good | {"score": 1.1, "low": 1.05, "high": 1.15}
    }
    write("adapt-scaling", "adapt", **vae, ladder_scale=1.0, training_time_ratio=2.0, criteria=found)
    hybrid = {"spatial": "made-up-encoder", "model_adds": "no", "spatial_adds": "yes"}
    write("adapt-hybrid", "adapt", **hybrid, criteria={"lpips": near})
    found = asked(GATE2, "coherence")
    write("motion/video-coherence", "video", video="made-up-video", conditioning="adapter", criteria=found)
    write("motion/explain-semantic", "films", criteria=asked(GATE2, "films"))

    row = {
        "floor": 0.5,
        "floor_name": "copy",
        "skill": 0.8,
        "l1": 0.01,
        "clips": 20,
        "static": False,
        "best_shift": 0,
    }
    row |= {
        "gain_over_floor": 0.4,
        "gain_over_floor_low": 0.3,
        "gain_over_floor_high": 0.5,
        "cosine_copy": 0.5,
    }
    row |= {"cosine": 0.9, "cosine_low": 0.85, "cosine_high": 0.95}
    row |= {"gain": 0.4, "gain_low": 0.3, "gain_high": 0.5, "p_holm": 0.01}
    delta = {"variants": row, "horizons": {1: row, 16: row}, "quarters_of_motion": {"quarter_4": row}}
    about = {k: {"delta": x} for k, x in delta.items()} | {"baselines": {"copy": row | {"cosine": 0.5}}}
    about |= {"decoder": "vae", "variant": "delta", "predicts": "delta", "layer": "vision.0"}
    write(
        "predict-latents",
        "predict",
        **about,
        criteria={k: good for k in ("prediction", "beyond_extrapolation")},
    )
    about = {"model": None, "video": "made-up-video", "video_weights": "random", "conditioning": "past"}
    gains = {
        "moving_gain_over_copy": 0.1,
        "moving_gain_over_copy_low": 0.05,
        "moving_gain_over_copy_high": 0.15,
    }
    gains |= {"moving_clips": 20, "moving_l1_copy": 0.3, "moving_l1_vae": 0.1}
    write("video-continue", "video", **about, **gains, criteria={"temporal_ratio": good})
    found = {"retention": good | {"score": 0.96, "low": 0.92, "high": 1.0}}
    write("explain-describe", "describe", data_name="noise-films", criteria=found)

    ids, frames = [f"noise-{i}" for i in range(8)], torch.randint(0, 256, (8, 1, 16, 16, 3)).byte()
    items = [
        {"id": i, "source": i, "width": 16, "height": 16, "frames": x}
        for i, x in zip(ids, frames, strict=True)
    ]
    write_items(folder / "data", items, {"data": "synthetic", "name": "noise"})
    points = {"vision.0": {}, "language.0": {}}
    index = {
        "stage": "extract",
        "model": "made-up",
        "data_path": str(folder / "data"),
        "seconds_per_item": 0.1,
    }
    save_yaml(folder / "features" / "index.yaml", index | {"ids": ids, "points": points})
    box, score = torch.tensor([[0.1, 0.1, 0.6, 0.6]]).repeat(8, 1), torch.linspace(0.85, 0.95, 8)
    scores = {"bbox_iou": score, "spatial_iou": score, "decoder_lpips": 1 - score}
    save_pt(folder / "probe.pt", RESULT, ids, {}, boxes=box, true_boxes=box, sources=ids, scores=scores)
    blank = {k: torch.zeros(8, 16, 16, 3, dtype=torch.uint8) for k in ("original", "vae", "bridge")}
    save_pt(folder / "adapt-latents.pt", RESULT, ids, {}, **blank)


def random_autoencoder(patch_size, scaling):
    """LTX-Video's autoencoder of as many stages as `scaling` has: which of them halve the grid. Four channels, whose mean is not 0 nor their spread 1."""
    from diffusers import AutoencoderKLLTXVideo

    n = len(scaling)
    widths = {
        "block_out_channels": (16,) * n,
        "decoder_block_out_channels": (16,) * n,
        "down_block_types": ("LTXVideoDownBlock3D",) * n,
    }
    layers = {
        "layers_per_block": (1,) * (n + 1),
        "decoder_layers_per_block": (1,) * (n + 1),
        "decoder_inject_noise": (False,) * (n + 1),
    }
    more = {
        "upsample_residual": (False,) * n,
        "upsample_factor": (1,) * n,
        "spatio_temporal_scaling": scaling,
    }
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        patch_size=patch_size,
        decoder_spatio_temporal_scaling=scaling,
        **widths,
        **layers,
        **more,
    )
    vae.latents_mean.uniform_(-1, 1)  # so that normalising one way only is found out
    vae.latents_std.uniform_(0.5, 2)
    return vae


def random_judge(folder, image_size, patch_size):
    """A random Dinov2 of one layer."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, image_size=image_size, patch_size=patch_size)).save_pretrained(folder)
    BitImageProcessor().save_pretrained(folder)


def adapter_world(folder, seed=0):
    """For adapt.py: a small random autoencoder and Dinov2 judge, squares as pictures, and features that are the latents themselves, rotated (at point `rotated`), half of them, and noise.

    vae, judge, data, features, latents, spatial and random in `folder`.
    """
    from common import write_items
    from models import find_model, load_video_vae

    torch.manual_seed(seed)
    random_autoencoder(patch_size=8, scaling=(False,)).save_pretrained(folder / "vae")
    random_judge(folder / "judge", image_size=224, patch_size=28)
    corner = torch.rand(40, 2) * 40
    boxes = torch.cat([corner, corner + 12 + torch.rand(40, 2) * 10], 1).round()
    # no two pictures alike, whatever the boxes
    frames = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1, 1).repeat(1, 1, 64, 64, 3)
    for f, (x1, y1, x2, y2) in zip(frames, boxes.int().tolist(), strict=True):
        f[0, y1:y2, x1:x2] = 255
    ids = [f"box-{i}" for i in range(40)]
    items = [{"id": i, "source": i, "width": 64, "height": 64, "labels": ["box"]} for i in ids]
    for item, f, b in zip(items, frames, boxes, strict=True):
        item |= {"frames": f, "boxes": b[None]}
    write_items(folder / "data", items, {"data": "synthetic", "name": "boxes"})
    vae, _ = load_video_vae(find_model(str(folder / "vae")))
    with torch.no_grad():
        z = (
            vae.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1)
            .latent_dist.mode()
            .permute(0, 2, 3, 4, 1)
        )
    z = (z - vae.latents_mean) / vae.latents_std
    turned = z @ torch.linalg.qr(torch.randn(4, 4))[0]
    points = {
        "features": {"rotated": turned},
        "latents": {"latents": z},
        "spatial": {"half": turned[..., :2]},
        "random": {"rotated": torch.randn(z.shape)},
    }
    for name, x in points.items():
        plant_features(folder / name, ids, x, folder / "data", size=64)


def video_world(folder, seed=0):
    """For video.py: a small random pipeline of diffusers' real classes and a Dinov2 judge, squares that move right (7 frames of 32 px, 32 clips), and an adapter's file of noise.

    ltx, judge, data and conditioning.pt in `folder`; films of ltx have 2k+1 frames.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXImageToVideoPipeline, LTXVideoTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    from common import RESULT, write_items

    torch.manual_seed(seed)
    words = Tokenizer(
        models.WordLevel(
            {w: k for k, w in enumerate(("<pad>", "</s>", "<unk>", "the", "square", "moves", "right"))},
            unk_token="<unk>",
        )
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>")
    vae = random_autoencoder(patch_size=4, scaling=(True, False))
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=7, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    )
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "num_layers": 1}
    transformer = LTXVideoTransformer3DModel(in_channels=4, out_channels=4, caption_channels=16, **heads)
    pipeline = LTXImageToVideoPipeline(
        FlowMatchEulerDiscreteScheduler(), vae, text_encoder, tokenizer, transformer
    )
    pipeline.save_pretrained(folder / "ltx")
    random_judge(folder / "judge", image_size=32, patch_size=8)
    items = []
    for k in range(32):
        mask = torch.zeros(7, 32, 32, dtype=torch.uint8)
        for t in range(7):
            mask[t, 4 + k % 16 : 12 + k % 16, 4 + 2 * t : 12 + 2 * t] = 1
        frames = torch.where(
            mask[..., None] > 0, torch.tensor([200, 30, 30]), torch.full((3,), 60 + 5 * k)
        ).byte()
        boxes = torch.tensor([[[4 + 2 * t, 4 + k % 16, 12 + 2 * t, 12 + k % 16]] for t in range(7)]).float()
        item = {
            "id": f"clip-{k}",
            "source": f"clip-{k}",
            "width": 32,
            "height": 32,
            "frames": frames,
            "mask": mask,
            "boxes": boxes,
        }
        item |= {
            "labels": ["square"],
            "names": ["square"],
            "direction": "right",
            "camera": [0, 0],
            "text": "a square",
        }
        items.append(item)
    write_items(folder / "data", items, {"data": "synthetic", "name": "squares"})
    meta = {"into": "prompt", "model": "planted", "weights": "random"}
    save_pt(
        folder / "conditioning.pt",
        RESULT,
        [i["id"] for i in items],
        meta,
        embeds=torch.randn(32, 3, 16).half(),
    )


def changed(arguments, job=None, **new):
    """A command line [job, flag, value, flag, value, ...], or one without a job, with another job or other values; None leaves a flag out."""
    first = [] if arguments[0].startswith("--") else arguments[:1]
    pairs = arguments[len(first) :]
    flags = dict(zip(pairs[::2], pairs[1::2], strict=True))
    flags |= {f"--{k.replace('_', '-')}": v for k, v in new.items()}
    return [*([job] if job else first), *(str(x) for k, v in flags.items() if v is not None for x in (k, v))]
