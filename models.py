"""Models by name or folder: the registry, and loading of VLMs, encoders, autoencoders, video pipelines and adapters."""

import contextlib
import difflib
import functools
import json
import math
import os
import re
import time
import types
from importlib.metadata import version
from pathlib import Path

import torch

from common import (
    ANSWERS,
    HERE,
    check_choice,
    digest,
    fail,
    load_yaml,
    memory_left,
    peak_memory,
    save_bytes,
    save_pt,
    save_text,
)
from media import frames_of
from untrained import Untrained

# ---------------------------------------------------------------- models by name

# kind: vlm | encoder | vae | video (a diffusers pipeline: a folder with model_index.json) | language (text only, without sizes) |
# tracker. size: side in pixels to which an image is resized (a multiple of patch x merge); clip: the same for video; frames, steps,
# guidance, fps: of a generated clip. read: the tower's hidden state that the projector reads, where it is not the last.
# FACTS describes the published checkpoints.
TINY, LTX = "results/tiny/checkpoints", "LTXImageToVideoPipeline"


def hub(kind, model_type, path, size=None, clip=None, **more):
    """An entry of the registry: sides in pixels for images and for clips (by default the same)."""
    sides = {"size": size, "clip": clip or size} if size else {}
    return {"kind": kind, "type": model_type, "path": path} | sides | more


def small(kind, model_type, folder, size=None, clip=None, **more):
    """An entry of one of this project's small models; vision models name a decoder and a spatial encoder."""
    beside = {"vlm": {"vae": "tiny-vae", "encoder": "tiny-dinov2"}, "encoder": {"vae": "tiny-vae"}}
    beside = beside.get(kind, {})
    return hub(kind, model_type, f"{TINY}/{folder}", size, clip, **beside, **more)


MODELS = {
    "tiny": small("vlm", "qwen2_5_vl", "vlm", 96, 64),
    "tiny-semantic": small("vlm", "qwen2_5_vl", "semantic", 96, 64),
    "tiny-dinov2": small("encoder", "dinov2", "dinov2", 96, 64),
    "tiny-llava-next": small("vlm", "llava_next", "llava-next", 96),
    "tiny-internvl2": small("vlm", "internvl", "internvl2", 96),
    "tiny-cogvlm2": small("vlm", "cogvlm2", "cogvlm2", 96),
    "tiny-vae": small("vae", "AutoencoderKLLTXVideo", "vae", 64),
    "tiny-tracker": small("tracker", "tracker", "tracker", 48),
    "tiny-words": small("language", "llama", "words"),
    "tiny-ltx": small("video", LTX, "ltx", 64, frames=9, steps=4, fps=2, vae="tiny-vae"),
    "qwen2.5-vl-3b": hub("vlm", "qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", 448, 224),
    "qwen2.5-vl-7b": hub("vlm", "qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", 448, 224),
    "qwen2-vl-2b": hub("vlm", "qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct", 448, 224),
    "qwen3-vl-2b": hub("vlm", "qwen3_vl", "Qwen/Qwen3-VL-2B-Instruct", 448, 224),
    "llava-next": hub("vlm", "llava_next", "llava-hf/llava-v1.6-mistral-7b-hf", 336, read=-2),
    "llava-next-vicuna-7b": hub("vlm", "llava_next", "llava-hf/llava-v1.6-vicuna-7b-hf", 336, read=-2),
    "llava-next-vicuna-13b": hub("vlm", "llava_next", "llava-hf/llava-v1.6-vicuna-13b-hf", 336, read=-2),
    "llava-interleave-0.5b": hub("vlm", "llava", "llava-hf/llava-interleave-qwen-0.5b-hf", 384),
    "llava-interleave": hub("vlm", "llava", "llava-hf/llava-interleave-qwen-7b-hf", 384),
    "llava-onevision-0.5b": hub("vlm", "llava_onevision", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", 384),
    "llava-onevision": hub("vlm", "llava_onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", 384),
    "internvl3-1b": hub("vlm", "internvl", "OpenGVLab/InternVL3-1B-hf", 448),
    "internvl3-8b": hub("vlm", "internvl", "OpenGVLab/InternVL3-8B-hf", 448),
    "internvl2": hub("vlm", "internvl_chat", "OpenGVLab/InternVL2-8B", 448),
    "internvl2-26b": hub("vlm", "internvl_chat", "OpenGVLab/InternVL2-26B", 448),
    "cogvlm2": hub("vlm", "cogvlm2", "zai-org/cogvlm2-llama3-chat-19B", 1344),
    "kosmos-2": hub("vlm", "kosmos-2", "microsoft/kosmos-2-patch14-224", 224),
    "florence-2": hub("vlm", "florence2", "florence-community/Florence-2-base", 768),
    "florence-2-large": hub("vlm", "florence2", "florence-community/Florence-2-large", 768),
    "dinov2-s": hub("encoder", "dinov2", "facebook/dinov2-small", 448, 224),
    "dinov2-b": hub("encoder", "dinov2", "facebook/dinov2-base", 448, 224),
    "dinov2-l": hub("encoder", "dinov2", "facebook/dinov2-large", 448, 224),
    "dinov2-g": hub("encoder", "dinov2", "facebook/dinov2-giant", 448, 224),
    "dinov3": hub("encoder", "dinov3_vit", "facebook/dinov3-vits16-pretrain-lvd1689m", 448, 224),
    "siglip2": hub("encoder", "siglip", "google/siglip2-base-patch16-224", 224),
    "owlvit": hub("encoder", "owlvit", "google/owlvit-base-patch32", 768),
    "owlv2": hub("encoder", "owlv2", "google/owlv2-base-patch16-ensemble", 960),
    "grounding-dino": hub("encoder", "grounding-dino", "IDEA-Research/grounding-dino-tiny", 768),
    "vjepa2": hub("encoder", "vjepa2", "facebook/vjepa2-vitl-fpc64-256", 256),
    "tinyllama": hub("language", "llama", "TinyLlama/TinyLlama-1.1B-Chat-v1.0"),
    "qwen2.5-0.5b": hub("language", "qwen2", "Qwen/Qwen2.5-0.5B-Instruct"),
    "smollm2-360m": hub("language", "llama", "HuggingFaceTB/SmolLM2-360M-Instruct"),
    "ltx": hub("vae", "AutoencoderKLLTXVideo", "Lightricks/LTX-Video", 224, subfolder="vae"),
    "ltx-video": hub("video", LTX, "Lightricks/LTX-Video", 512, frames=17, steps=40, guidance=3.0, vae="ltx"),
}
# name: (licence, billions of parameters: all, the head (0: shared with the embedding), outside the layer stacks (without the
# head), the largest layer; tower: (layers, patch in pixels, width), with layers (a, b, ...) of stages, each of which halves the
# side of the grid and doubles the width of the one before; language model: (layers, merge, width), merge x merge patches to one
# token, or (1, K): K tokens without a grid; a language model alone has no tower and (layers, width)).
# tests/test_models.py builds each at full size.
FACTS = {
    "qwen2.5-vl-3b": ("Qwen research", 3.755, 0, 0.3494, 0.0771, (32, 14, 1280), (36, 2, 2048)),
    "qwen2.5-vl-7b": ("Apache 2.0", 8.292, 0.545, 0.5911, 0.2331, (32, 14, 1280), (28, 2, 3584)),
    "qwen2-vl-2b": ("Apache 2.0", 2.209, 0, 0.269, 0.0468, (32, 14, 1280), (28, 2, 1536)),
    "qwen3-vl-2b": ("Apache 2.0", 2.128, 0, 0.4158, 0.0503, (24, 16, 1024), (28, 2, 2048)),
    "llava-next": ("Apache 2.0", 7.567, 0.1313, 0.1535, 0.2181, (24, 14, 1024), (32, 1, 4096)),
    "llava-next-vicuna-7b": ("Llama 2", 7.063, 0.1313, 0.1535, 0.2024, (24, 14, 1024), (32, 1, 4096)),
    "llava-next-vicuna-13b": ("Llama 2", 13.351, 0.1642, 0.1968, 0.3172, (24, 14, 1024), (40, 1, 5120)),
    "llava-interleave-0.5b": ("Qwen research", 0.864, 0, 0.1594, 0.01524, (26, 14, 1152), (24, 1, 1024)),
    "llava-interleave": ("Qwen research", 8.141, 0.6226, 0.6456, 0.2024, (26, 14, 1152), (32, 1, 4096)),
    "llava-onevision-0.5b": ("Apache 2.0", 0.8937, 0, 0.1396, 0.01524, (26, 14, 1152), (24, 1, 896)),
    "llava-onevision": ("Apache 2.0", 8.03, 0.545, 0.5635, 0.2331, (26, 14, 1152), (28, 1, 3584)),
    "internvl3-1b": ("Qwen", 0.9382, 0.1359, 0.142, 0.01491, (24, 14, 1024), (24, 2, 896)),
    "internvl3-8b": ("Qwen", 7.944, 0.5436, 0.5728, 0.2331, (24, 14, 1024), (28, 2, 3584)),
    "internvl2": ("MIT", 8.075, 0.3791, 0.4143, 0.2181, (24, 14, 1024), (32, 2, 4096)),
    "internvl2-26b": ("MIT", 25.514, 0.5686, 0.6902, 0.3901, (45, 14, 3200), (48, 2, 6144)),
    "cogvlm2": ("CogVLM2, Llama 3", 19.503, 0.5253, 0.7393, 0.4362, (63, 14, 1792), (32, 2, 4096)),
    "kosmos-2": ("MIT", 1.6645, 0, 0.1531, 0.05038, (24, 14, 1024), (24, (1, 64), 2048)),
    "florence-2": ("MIT", 0.2314, 0, 0.1048, 0.02523, ((1, 1, 9, 1), 4, 128), (6, 1, 768)),
    "florence-2-large": ("MIT", 0.7765, 0, 0.2895, 0.1008, ((1, 1, 9, 1), 4, 256), (12, 1, 1024)),
    "dinov2-s": ("Apache 2.0", 0.02206, 0, 0.000754, 0.001775, (12, 14, 384), None),
    "dinov2-b": ("Apache 2.0", 0.08658, 0, 0.001508, 0.007089, (12, 14, 768), None),
    "dinov2-l": ("Apache 2.0", 0.3044, 0, 0.00201, 0.0126, (24, 14, 1024), None),
    "dinov2-g": ("Apache 2.0", 1.1365, 0, 0.003015, 0.02834, (40, 14, 1536), None),
    "dinov3": ("DINOv3, gated", 0.0216, 0, 0.000298, 0.001775, (12, 16, 384), None),
    "siglip2": ("Apache 2.0", 0.3752, 0, 0.2901, 0.007088, (12, 16, 768), None),
    "owlvit": ("Apache 2.0", 0.1532, 0, 0.06818, 0.007088, (12, 32, 768), None),
    "owlv2": ("Apache 2.0", 0.155, 0, 0.06991, 0.007088, (12, 16, 768), None),
    "grounding-dino": ("Apache 2.0", 0.1723, 0, 0.1463, 0.007092, ((2, 2, 6, 2), 4, 96), None),
    "vjepa2": ("MIT", 0.326, 0, 0.02366, 0.0126, (24, 16, 1024), None),
    "tinyllama": ("Apache 2.0", 1.1, 0.06554, 0.06554, 0.04404, None, (22, 2048)),
    "qwen2.5-0.5b": ("Apache 2.0", 0.494, 0, 0.1361, 0.01491, None, (24, 896)),
    "smollm2-360m": ("Apache 2.0", 0.3618, 0, 0.04719, 0.00983, None, (32, 960)),
    "ltx": ("LTX open weights", 0.4192, 0, 0.4192, 0, (0, 32, 128), None),
}
for _name, _row in FACTS.items():
    _keys = ("licence", "params", "head", "outside", "layer", "vision", "language")
    MODELS[_name] |= dict(zip(_keys, _row, strict=True))

# Common wrong names (in lower case, with or without the owner): what the name is, and what to use.
MISNOMERS = {
    "qwen2.5-vl-2b qwen2.5-vl-2b-instruct": "does not exist: Qwen2.5-VL comes in 3B, 7B, 32B and 72B, and 2B exists for "
    "Qwen2-VL and Qwen3-VL; use qwen2-vl-2b or qwen2.5-vl-3b",
    "qwen2.5-vl": "comes in several sizes; use qwen2.5-vl-3b or qwen2.5-vl-7b",
    "qwen2-vl": "comes in several sizes; use qwen2-vl-2b",
    "qwen3-vl": "comes in several sizes; use qwen3-vl-2b",
    "qwen-vl qwen-vl-chat": "is the model of 2023, which needs code from the hub; use qwen2-vl-2b",
    "cogvlm2-grounding cogvlm2-grounding-generalist cogvlm2-grounding-generalist-hf": "does not exist: no "
    "variant of CogVLM2 that prints boxes was released, only one of CogVLM 1, which is another architecture; "
    "use cogvlm2 and ask it all the same",
    "cogvlm cogvlm-chat-hf cogvlm-grounding-generalist-hf": "is CogVLM 1, another architecture; use cogvlm2",
    "thudm/cogvlm2-llama3-chat-19b": "has moved to zai-org/cogvlm2-llama3-chat-19B; use cogvlm2",
    "cogvlm2-llama3-chat-19b-int4": "is quantised by its own code; use cogvlm2",
    "cogvlm2-video cogvlm2-video-llama3-chat": "is another architecture; "
    "use cogvlm2, which takes a clip frame by frame",
    "llava": "is a family of models; use llava-next, llava-interleave or llava-onevision",
    "llava-1.6 llava-v1.6 llava-v1.6-7b": "comes with three language models; "
    "use llava-next, llava-next-vicuna-7b or llava-next-vicuna-13b",
    "llava-next-interleave llava-next-interleave-qwen-7b llava-next-interleave-qwen-7b-hf": "is in LLaVA's own "
    "layout, and its tower is SigLIP's (27 x 27), not CLIP's; use llava-interleave, the same weights",
    "internvl3": "comes in several sizes; use internvl3-1b or internvl3-8b",
    "dinov2": "comes in several sizes; use dinov2-s, dinov2-b, dinov2-l or dinov2-g",
    "siglip": "is the older model; use siglip2",
    "vjepa v-jepa": "is the older model, which no library loads; use vjepa2",
    "ltx-2 ltx2": "has another autoencoder; use ltx",
}
MISNOMERS = {name: correction for names, correction in MISNOMERS.items() for name in names.split()}
for _name, _use in {
    "llava-v1.6-mistral-7b": "llava-next",
    "llava-v1.6-vicuna-7b": "llava-next-vicuna-7b",
    "llava-v1.6-vicuna-13b": "llava-next-vicuna-13b",
    "llava-next-interleave-qwen-0.5b": "llava-interleave-0.5b",
    "llava-onevision-qwen2-7b-ov": "llava-onevision",
    "llava-onevision-qwen2-0.5b-ov": "llava-onevision-0.5b",
    "opengvlab/internvl3-1b": "internvl3-1b",
    "opengvlab/internvl3-8b": "internvl3-8b",
    "microsoft/florence-2-base": "florence-2",
    "microsoft/florence-2-large": "florence-2-large",
}.items():
    _where = f"use {_use}, the same weights in {MODELS[_use]['path']}"
    MISNOMERS[_name] = f"is in a layout that only its own code loads; {_where}"
KIND_OF_TYPE = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "internvl_chat", "cogvlm2"), "vlm"),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "kosmos-2", "florence2"), "vlm"),
    **dict.fromkeys(("dinov2", "dinov3_vit", "siglip", "grounding-dino", "vjepa2"), "encoder"),
    **dict.fromkeys(("owlvit", "owlv2"), "encoder"),
    **dict.fromkeys(("llama", "qwen2"), "language"),
    "tracker": "tracker",
    "AutoencoderKLLTXVideo": "vae",
    LTX: "video",
}

# model types of transformers that have no features of an image's places: why, and what to use
REFUSED = {
    "vit_mae": "masks most patches at random, so its features differ from run to run; use dinov2-b",
    "siglip2": "is NaFlex, which pads its patches and masks them; use a SigLIP 2 of a fixed size, such as siglip2",
    "siglip2_vision_model": "is NaFlex, which pads its patches and masks them; use siglip2",
    "phi4_multimodal": "is no image-to-text class of transformers, and its adapters are for vision or speech; "
    "use qwen2.5-vl-3b",
}
# sides of these are in whole tokens, as in the registry: image_size is none, or the largest
ANY_SIDE = ("qwen", "dino", "glm4v", "glm46v", "mistral3", "pixtral")

ADAPTER_CONFIG = "adapter_config.json"  # of peft
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"  # owner/name
CONFIGS = "config.json", "model_index.json"  # name the class in a folder: of a model, of a pipeline


def registry_name(name):
    """The registry's name for `name`: the same in any case, a hub repository, or a repository without its owner."""
    if name.lower() in MODELS:
        return name.lower()
    for registered, entry in MODELS.items():
        path = entry["path"].lower()
        if not path.startswith(TINY) and name.lower() in (path, Path(path).name):
            return registered
    return name


def folder_name(path):
    """The name in results: of a path, the last name that is no number, adapter or model; of <model>/<data>/tuned, all three."""
    names = [name for name in Path(os.path.abspath(path)).parts if not name.isdecimal()]
    names = names[:-1] if names[-1] in ("adapter", "model") else names
    return "-".join(names[-3:]) if names[-1] == "tuned" else names[-1]


def read_json(path, whole="checkpoint"):
    """A JSON file of a `whole` that was copied here; exit 2 for a broken one."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError:
        fail(f"{path} is not readable JSON; copy the {whole} again")


def find_model(name, base=None):
    """The entry of a name of the registry or the hub, or of a folder: kind, type, path, weights, sides in pixels.

    Of a peft folder it is the entry of the base model, with `adapter`; base: use this base model instead of the
    one that the folder names.
    """
    if name not in MODELS and (Path(name) / ADAPTER_CONFIG).is_file():
        return _adapted(name, base)
    if base:
        fail(f"--base {base} goes with an adapter, and {name} has no {ADAPTER_CONFIG}; leave it out")
    if name not in MODELS and Path(name).is_dir():
        config = next((Path(name) / f for f in CONFIGS if Path(name, f).is_file()), None)
        if not config:
            fail(f"{name} has no config.json; give a folder written by save_pretrained")
        entry = described(read_json(config), name)
    else:
        if correction := MISNOMERS.get(name.lower()) or MISNOMERS.get(Path(name).name.lower()):
            fail(f"{name!r} {correction}")
        entry = MODELS.get(registry_name(name))
        if not entry and re.fullmatch(HUB_NAME, name):
            entry = described(config_of({"path": name}), name)
        if not entry and "/" in name:
            fail(
                f"there is no folder {name}; give a folder, a name of the hub, or one of `extract.py --list`"
            )
        name = registry_name(name)
        entry = dict(entry or check_choice(name, MODELS, "model"))
        if entry["path"].startswith(TINY):
            entry["path"] = str(HERE / entry["path"])
            if not any(Path(entry["path"], f).is_file() for f in CONFIGS):
                fail(f"{entry['path']} does not exist; run tiny.py, which trains it")
    return {"name": folder_name(name), **entry, **_noted(entry["path"])}


def kind_of(model_type, config, where):
    """The kind of a model type: the registry's, else by transformers' lists of classes; exit 2 for any other."""
    if model_type in KIND_OF_TYPE:
        return KIND_OF_TYPE[model_type]
    if model_type in REFUSED:
        fail(f"{where} is of type {model_type}, which {REFUSED[model_type]}")
    from transformers.models.auto import modeling_auto

    if model_type in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vlm"
    if model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "vision_config" not in config:
        return "language"
    if model_type in modeling_auto.MODEL_MAPPING_NAMES and {"vision_config", "image_size", "num_channels"} & {
        *config
    }:
        return "encoder"
    if "auto_map" in config:
        near = difflib.get_close_matches(Path(where).name.lower(), MODELS, 1, 0.6)
        use = near[0] if near else "a model of `python extract.py --list`"
        fail(f"{where} needs code from the hub, which is not executed here; use {use}")
    if model_type in modeling_auto.MODEL_MAPPING_NAMES:
        fail(
            f"{where} is of type {model_type}, which neither sees nor writes; give a VLM, an encoder or an LM"
        )
    if not model_type:
        fail(f"{where}/config.json states no model_type; give a folder written by save_pretrained")
    fail(f"{where} is of type {model_type!r}, which transformers {version('transformers')} does not have")


def described(config, path):
    """The entry of a checkpoint that the registry does not have, from its config.json (or model_index.json)."""
    model_type = config.get("model_type") or config.get("_class_name") or ""
    if config.get("architectures") == ["CogVLMForCausalLM"]:
        model_type = "cogvlm2"
    kind = kind_of(model_type, config, path)
    entry = {"kind": kind, "type": model_type, "path": path}
    if kind == "language":
        return entry
    vision = config.get("vision_config") or config
    # Florence-2 and Grounding DINO state none and accept several
    side = vision.get("crop_size") or vision.get("image_size") or 768
    if kind in ("vae", "video"):
        size = clip = 64
    elif not any(name.startswith(ANY_SIDE) for name in (model_type, vision.get("model_type", ""))):
        size = clip = side if isinstance(side, int) else side[0]  # positions for one size
    else:
        merge = vision.get("spatial_merge_size") or config.get("spatial_merge_size", 1)
        token = vision.get("patch_size", 14) * merge
        size, clip = (side // token * token for side in (448, 224))
    return entry | {"size": size, "clip": clip}


def _noted(folder):
    """Contents of a checkpoint's weights.yaml: `weights`, the origin; `size` and `clip`, as in MODELS; `own_shape`, where tune.py
    tuned it at the images' aspect ratio: for Qwen (token, most) of `fitted`, else empty."""
    note, noted = Path(folder) / "weights.yaml", {"weights": "pretrained"}
    if Path(folder).is_dir():
        noted = load_yaml(note) if note.is_file() else {"weights": "unstated"}
    return {k: noted[k] for k in ("weights", "size", "clip", "own_shape") if k in noted}


def _adapted(name, base=None):
    """The entry of a peft folder (tune.py train, LLaMA-Factory, Unsloth): that of its base model, with the adapter."""
    file = f"{name}/{ADAPTER_CONFIG}"
    found = read_json(file)
    base = base or found.get("base_model_name_or_path")
    if not base:
        fail(f"the adapter {name} names no base model in {file}; give it with --base FOLDER")
    known = next((n for n, entry in MODELS.items() if entry["path"] == base), registry_name(base))
    if known not in MODELS and not Path(base).is_dir() and not re.fullmatch(HUB_NAME, base):
        fail(f"the adapter {name} is for {base!r} ({file}), which is not here; give --base FOLDER")
    entry = find_model(known)
    if "adapter" in entry:
        fail(f"the base {base} of {name} is an adapter too; merge that one, and give the folder as --base")
    more = any(found.get(k) for k in ("use_dora", "modules_to_save", "alpha_pattern"))
    if more or found.get("peft_type") != "LORA" or found.get("bias", "none") != "none":
        fail(f"{name} is not a plain LoRA; merge it where it was trained and pass the merged folder")
    rank = found["r"] ** 0.5 if found.get("use_rslora") else found["r"]
    lora = {"name": folder_name(name), "adapter": str(name), "scaling": found["lora_alpha"] / rank}
    return entry | lora | _noted(name)


def model_of(index):
    """The entry of the model of a features index, by its name or the folder given to extract.py; {} where neither exists."""
    if index["model"] in MODELS:
        return find_model(index["model"])
    given = str(index.get("run", {}).get("arguments", {}).get("model") or "")
    here = any(Path(given, f).is_file() for f in (*CONFIGS, ADAPTER_CONFIG))
    return find_model(given) if here else {}


def _trouble(error, entry):
    """Why a checkpoint could not be loaded, and the remedy. transformers wraps the hub's exceptions in an OSError, so all causes are examined."""
    from huggingface_hub import errors

    where, seen = entry["path"], []
    part = entry.get("subfolder")
    fetch = f"fetch it with `hf download {where}{f' --include {part}/*' if part else ''}` on a machine with a network, then pass the folder{f' {part} in it' if part else ''} as MODEL"
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or error.__context__
    text = " ".join(str(e) for e in seen)
    status = {getattr(getattr(e, "response", None), "status_code", None) for e in seen}

    def has(*kinds):
        return any(isinstance(e, kinds) for e in seen)

    if has(torch.OutOfMemoryError):
        return f"the device's memory is full; {SMALLER}"
    if has(errors.GatedRepoError) or (status & {401, 403} and not has(errors.RepositoryNotFoundError)):
        return f"it is gated; accept its licence at https://huggingface.co/{where}, then `hf auth login`"
    if has(errors.RevisionNotFoundError):
        return f"it has no revision {entry.get('revision')!r}; see https://huggingface.co/{where}/commits/main, or leave --revision out"
    if has(errors.RepositoryNotFoundError):
        return "the hub has no such repository, or it is private; check the name, or `hf auth login`"
    if "trust_remote_code" in text:
        near = difflib.get_close_matches(Path(where).name.lower(), set(MODELS) - {entry.get("name")}, 1, 0.8)
        use = near[0] if near else "a model of `python extract.py --list`"
        return f"it needs code from the hub, which is not executed here; use {use}"
    version_needed = re.search(r"transformers *[><=!~]=? *[\d.]+", text)
    if version_needed or "does not recognize this architecture" in text:
        return f"it needs {version_needed[0] if version_needed else 'a newer transformers'}, and {version('transformers')} is installed; `pip install -U transformers`"
    if has(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) or any(
        type(e).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "socket")
        and getattr(e, "response", None) is None
        for e in seen
    ):
        return f"{'HF_HUB_OFFLINE is set' if has(errors.OfflineModeIsEnabled) else 'the hub cannot be reached'}; {fetch}"
    message = (str(seen[0]).splitlines() or [""])[0][:200].rstrip(". ") or type(seen[0]).__name__
    return f"{message}; {'copy the folder again' if Path(where).is_dir() else fetch}"


# what helps where weights do not fit
SMALLER = "free some, give a smaller model, or use extract.py --stream or tune.py train --method qlora"


@contextlib.contextmanager
def within_memory(remedy):
    """Exit 2 with the remedy where the work inside takes more than the device's memory."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        fail(f"the device's memory is full ({str(e).partition('. ')[0]}); {remedy}")


def check_memory(entry, needed, device):
    """Exit 2 where weights of `needed` bytes are more than the free memory."""
    left = memory_left(torch.device(device), None)
    if needed > left:
        sizes = f"{needed / 1e9:.2f} GB of weights, of {left / 1e9:.2f} GB of free {device} memory"
        fail(f"{entry['path']} needs {sizes}; {SMALLER}")


def stored_bytes(entry, dtype):
    """Bytes of a checkpoint's weights in `dtype`: by its files' headers or, where they are not here, the registry."""
    folder = Path(entry["path"]) if Path(entry["path"]).is_dir() else _cached(entry)
    tensors = []
    for file in folder.glob("*.safetensors") if folder else ():
        tensors += [x for name, x in json.loads(header_of(file)).items() if name != "__metadata__"]
    return dtype.itemsize * (sum(math.prod(x["shape"]) for x in tensors) or 1e9 * entry.get("params", 0))


def attempt(build, entry):
    """Run a loader; exit 2 with one sentence and the remedy where it raises.

    `build` returns a processor, a config, or (model, loading info); missing weights exit 2, since they would be random.
    """
    where = entry["path"]
    try:
        found = build()
    except Exception as e:
        # OSError, ValueError, safetensors' error, ...: libraries raise many kinds
        fail(f"cannot load {where}: {_trouble(e, entry)}")
    if isinstance(found, tuple):
        model, info = found
        if missing := sorted(info["missing_keys"]):
            fail(f"{where} lacks weights ({len(missing)}, {missing[0]} first); copy the checkpoint again")
        return model
    return found


def _reach(entry):
    """The entry; with the cached snapshot as its path where the hub cannot be reached.

    Without a network, transformers requests each of several files six times, which takes minutes; this requests one file once.
    """
    path = entry["path"]
    if Path(path).is_dir():
        return entry
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    where = {k: entry.get(k) for k in ("subfolder", "revision")}
    try:
        get_hf_file_metadata(hf_hub_url(path, CONFIGS[entry.get("kind") == "video"], **where), timeout=10)
    except Exception as e:
        absent = isinstance(e, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError))
        snapshot = None if absent else _cached(entry)
        if not snapshot:
            fail(f"cannot load {path}: {_trouble(e, entry)}")
        return entry | {"path": str(snapshot), "revision": None}
    return entry


# model type -> (model, processor) where an encoder is not (AutoModel, AutoImageProcessor). Grounding DINO needs
# its detector class: AutoModel would miss an unused layer norm of Swin that files of older versions lack.
DETECTOR = "AutoModelForZeroShotObjectDetection"
ENCODER_CLASSES = dict.fromkeys(("owlvit", "owlv2"), (DETECTOR, "AutoImageProcessor"))
ENCODER_CLASSES |= {
    "grounding-dino": (DETECTOR, "AutoProcessor"),
    "vjepa2": ("AutoModel", "AutoVideoProcessor"),
}


def load_transformer(entry, device="cpu", dtype=torch.float32, random_seed=None, quantised=None):
    """(model, processor) of a vision-language model, (model, image processor) of an encoder, (model, tokenizer) of a language model.

    random_seed: the same architecture, untrained; quantised: transformers' quantization_config.
    """
    entry = _reach(entry)
    if random_seed is not None or entry.get("type") in OWN_LAYOUT:
        model, processor, weights = skeleton(entry, dtype, device, random_seed)
        check_memory(entry, weights.size(weights.like), device)
        attempt(lambda: fill(model, weights, weights.like, device), entry)
        return model, processor
    model_class, processor_class = auto_classes(entry)
    more = {"dtype": dtype, "output_loading_info": True, **pin(entry)}
    if quantised:
        more["quantization_config"] = quantised
    else:
        check_memory(entry, attempt(lambda: stored_bytes(entry, dtype), entry), device)
    if quantised or torch.device(device).type != "cpu":  # nothing is staged whole in CPU memory
        more["device_map"] = {"": device}
    processor = attempt(lambda: processor_class.from_pretrained(entry["path"], **pin(entry)), entry)
    model = attempt(lambda: model_class.from_pretrained(entry["path"], **more), entry)
    if entry.get("adapter"):
        attempt(lambda: merge_lora(model, entry, native_layout(entry, dtype)[2](model)[0]), entry)
    return without_cache(model).eval(), processor


load_vlm = load_encoder = load_language = load_transformer


def without_cache(model):
    """The model, whose plain forward fills no key-value cache; `greedy` states that generation does."""
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False
    return model


def processor_of(entry):
    """The processor or tokenizer alone."""
    entry = _reach(entry)
    return attempt(lambda: list(auto_classes(entry))[1].from_pretrained(entry["path"], **pin(entry)), entry)


def pin(entry):
    """Arguments of from_pretrained: the revision, if given, and no code from the hub (transformers would prompt on the terminal)."""
    return {"trust_remote_code": False} | ({"revision": entry["revision"]} if entry.get("revision") else {})


def auto_classes(entry):
    """transformers' (model, processor or tokenizer) classes for a kind of model."""
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    names = {
        "vlm": ("AutoModelForImageTextToText", "AutoProcessor"),
        "language": ("AutoModelForCausalLM", "AutoTokenizer"),
        "encoder": ENCODER_CLASSES.get(entry.get("type"), ("AutoModel", "AutoImageProcessor")),
    }
    return (getattr(transformers, name) for name in names[entry["kind"]])


def load_video_vae(entry, device="cpu", dtype=None, random_seed=None):
    """(model, None) of a video autoencoder. LTX-Video's takes 8k+1 frames and silently drops others.

    Always in fp32: in bf16 a round trip is off by 0.1 grey levels, in fp32 by 0.004.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo as Vae

    entry = _reach(entry)
    more = {k: entry[k] for k in ("subfolder", "revision") if entry.get(k)}
    if random_seed is None:
        more |= {"torch_dtype": torch.float32, "output_loading_info": True}
        model = attempt(lambda: Vae.from_pretrained(entry["path"], **more), entry)
    else:
        stored = attempt(lambda: Vae.load_config(entry["path"], **more), entry)
        with init_empty_weights(include_buffers=False):
            model = Vae.from_config(stored)
        weights = Untrained(model, random_seed)
        fill(model, weights, weights.like, device)
    return model.to(device).eval(), None


def flatten_stills(model):
    """Make an autoencoder three times as fast on single images, with the same arithmetic.

    It pads a clip in time with copies of the end frames, so on one frame a 3D convolution is a 2D one by the kernel's sum over time.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoCausalConv3d

    def convolve(self, x):
        if x.shape[2] > 1:
            return LTXVideoCausalConv3d.forward(self, x)
        more = self.conv.bias, self.conv.stride[1:], self.conv.padding[1:]
        return torch.nn.functional.conv2d(x[:, :, 0], self.conv.weight.sum(2), *more)[:, :, None]

    for module in model.modules():
        if isinstance(module, LTXVideoCausalConv3d):
            module.forward = types.MethodType(convolve, module)
    return model


# of LTX-Video's pipelines, for autoencoders that are conditioned on a time step
DECODE_STEP, DECODE_NOISE = 0.05, 0.025


def from_latents(vae, z, noise=None):
    """Normalised latents [n, t, h, w, C] -> clips [n, 3, T, H, W] in -1..1, not clipped; differentiable."""
    z = z.to(vae.device, vae.dtype)
    z = z * vae.latents_std.to(z) + vae.latents_mean.to(z)
    if noise is not None:
        z = (1 - DECODE_NOISE) * z + DECODE_NOISE * noise.to(z)
    step = z.new_full((len(z),), DECODE_STEP) if vae.config.timestep_conditioning else None
    return vae.decode(z.permute(0, 4, 1, 2, 3), step).sample.float()


def clips_at_once(pixels):
    """How many clips of so many pixels take 2 GB, at 64 fp32 activations a pixel; at least 1."""
    return max(1, int(2e9 // (64 * 4 * pixels)))


@torch.inference_mode()
def decode_generated_clips(vae, latents, generators=None):
    """Normalised latents [n, t, h, w, C] -> clips uint8 [n, T, H, W, 3].

    generators: one a clip, of the noise that a pipeline adds for an autoencoder conditioned on a time step.
    """
    t, h, w, channels = latents.shape[1:]
    frames = (t - 1) * vae.temporal_compression_ratio + 1
    batch, clips = clips_at_once(frames * h * w * vae.spatial_compression_ratio**2), []
    for k in range(0, len(latents), batch):
        noise = None
        if generators and vae.config.timestep_conditioning:
            drawn = [torch.randn(channels, t, h, w, generator=g) for g in generators[k : k + batch]]
            noise = torch.stack(drawn).movedim(1, -1)
        x = (from_latents(vae, latents[k : k + batch], noise).cpu() + 1) * 127.5
        x = x.round().clamp(0, 255).byte()
        clips.append(x.permute(0, 2, 3, 4, 1))
    return torch.cat(clips)


@torch.inference_mode()
def encode_generated_clips(vae, clips):
    """Clips uint8 [n, T, H, W, 3] -> normalised latents [n, t, h, w, C] (the mode), fp32 on the CPU."""
    out = []
    for x in clips.split(clips_at_once(math.prod(clips.shape[1:4]))):
        x = x.permute(0, 4, 1, 2, 3).to(vae.device, vae.dtype) / 127.5 - 1
        z = vae.encode(x).latent_dist.mode().permute(0, 2, 3, 4, 1)
        out.append(((z - vae.latents_mean.to(z)) / vae.latents_std.to(z)).float().cpu())
    return torch.cat(out)


def autoencoder_of(entry):
    """The entry of a pipeline's autoencoder: in its folder, else the registry's `vae`, else the folder vae beside it."""
    where = Path(entry["path"])
    if where.is_dir() and not (where / "vae").is_dir():
        return find_model(entry.get("vae") or str(where.with_name("vae")))
    return entry | {"kind": "vae", "subfolder": "vae"}


def load_video_pipeline(entry, device="cpu", dtype=torch.float32):
    """(diffusers' LTXImageToVideoPipeline, None). For several frames: `LTXConditionPipeline(**pipeline.components)`.

    Its autoencoder is in fp32: generate with output_type="latent", then call decode_generated_clips.
    """
    import diffusers
    import transformers

    entry = _reach(entry | {"kind": "video", "subfolder": None})
    where, more = Path(entry["path"]), {"revision": entry["revision"]} if entry.get("revision") else {}
    stored = attempt(lambda: diffusers.LTXImageToVideoPipeline.load_config(entry["path"], **more), entry)
    parts = {}
    # one by one, since the pipeline would silently draw missing weights
    for part, library in (("transformer", diffusers), ("text_encoder", transformers)):
        name = (stored.get(part) or [None, None])[1]
        if name:
            load = getattr(library, name).from_pretrained
            arguments = more | {"subfolder": part, "output_loading_info": True}
            arguments |= {"torch_dtype" if library is diffusers else "dtype": dtype}
            named = entry | {"path": str(where / part)} if where.is_dir() else entry
            parts[part] = attempt(functools.partial(load, entry["path"], **arguments), named)
    parts["vae"] = load_video_vae(autoencoder_of(entry), device)[0]
    whole = diffusers.LTXImageToVideoPipeline.from_pretrained
    pipeline = attempt(lambda: whole(entry["path"], torch_dtype=dtype, **parts, **more), entry)
    return pipeline.to(device), None


def geometry(entry):
    """From the pipeline's configurations: frames (time) and pixels (space) per latent, channels (latents), prompt width before (prompt) and after (caption) projection."""
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo

    t, vae = config_of(entry, "transformer/config.json"), autoencoder_of(entry)
    vae = config_of(vae, "/".join(filter(None, (vae.get("subfolder"), "config.json"))))
    with init_empty_weights():
        vae = AutoencoderKLLTXVideo.from_config(vae)
    return {
        "time": vae.temporal_compression_ratio,
        "space": vae.spatial_compression_ratio,
        "latents": vae.config.latent_channels,
        "prompt": t["caption_channels"],
        "caption": t["num_attention_heads"] * t["attention_head_dim"],
    }


def check_shape(frames, size, shape, name):
    """Exit 2 for sizes that the pipeline cannot take: its autoencoder would silently drop frames."""
    r, side = shape["time"], math.lcm(32, shape["space"])
    if frames < r + 1 or frames % r != 1:
        below = max((frames - 1) // r, 1) * r + 1
        fail(f"--frames {frames} is not {r}k+1, as {name} needs; give {below} or {below + r}")
    if size < side or size % side:
        below = max(size // side, 1) * side
        fail(f"--size {size} is not a multiple of {side}, as {name} needs; give {below} or {below + side}")


# ---------------------------------------------------------------- weights, one by one

# A layout is a function (entry, dtype) -> (build, processor, names). build() makes the network with initial
# weights. names(model) -> (new_names, parts) maps a tensor of the checkpoint: new_names(name) are its names in
# the model, parts(name, tensor) its parts.


def skeleton(entry, dtype, device="cpu", random_seed=None):
    """(model, processor, weights): parameters are empty (meta device), buffers are real. `weights` reads parameters from the checkpoint or,
    with `random_seed`, draws them."""
    from accelerate import init_empty_weights

    if entry.get("kind") == "video":
        vae = entry.get("vae", "the folder vae")
        fail(f"{entry['path']} is a video pipeline, without features; give its autoencoder, {vae}")
    entry = _reach(entry)
    build, processor, names = OWN_LAYOUT.get(entry.get("type"), native_layout)(entry, dtype)
    with init_empty_weights(include_buffers=False):
        model = without_cache(build()).eval().requires_grad_(False)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    if random_seed is not None:
        return model, processor, Untrained(model, random_seed)
    return model, processor, attempt(lambda: Weights(entry, model, *names(model)), entry)


class Weights:
    """A checkpoint's safetensors under the names of `model`'s parameters, read on demand.

    Raises FileNotFoundError where there are no safetensors, KeyError naming the first weight that the checkpoint lacks.
    """

    def __init__(self, entry, model, new_names, parts=lambda name, tensor: [tensor]):
        self.entry = entry
        self.parts = parts
        self.files = {}
        self.bytes = 0
        index = hub_file(entry, "model.safetensors.index.json")
        if index:
            stored = json.loads(index.read_text())["weight_map"]
        else:
            stored = dict.fromkeys(self.open("model.safetensors").keys(), "model.safetensors")
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}
        self.where = {}
        for key, file in stored.items():
            self.where |= {name: (file, key, k) for k, name in enumerate(new_names(key))}
        tied = getattr(model, "all_tied_weights_keys", {})
        for name in self.like:
            if name not in self.where and tied.get(name) in self.where:
                self.where[name] = self.where[tied[name]]
        if missing := sorted(set(self.like) - set(self.where)):
            raise KeyError(f"weights are missing ({missing[0]} and {len(missing) - 1} more)")
        self.lora = lora_of(entry, new_names, self.like) if entry.get("adapter") else {}

    def open(self, file):
        from safetensors import safe_open

        if file not in self.files:
            path = hub_file(self.entry, file)
            if path is None:
                raise FileNotFoundError(f"there is no {file}")
            self.files[file] = safe_open(path, "pt")
        return self.files[file]

    def ready(self, names):
        """Open the files of these weights; exit 2 for a missing or truncated one before the work starts."""
        attempt(lambda: [self.open(file) for file in {self.where[name][0] for name in names}], self.entry)

    def read(self, names):
        """(name, tensor on the CPU in the model's dtype) of each; a copy, since a mapped one is read at first use."""
        groups = {}
        for name in names:
            groups.setdefault(self.where[name][:2], []).append(name)
        for k, ((file, key), group) in enumerate(groups.items()):
            if k % 16 == 0:  # mapped pages count as the process's own until the file is closed
                self.files.clear()
            tensor = self.open(file).get_tensor(key)
            self.bytes += tensor.nbytes
            parts = self.parts(key, tensor)
            for name in group:
                part = parts[self.where[name][2]].to(self.like[name].dtype, copy=True)
                if name in self.lora:
                    part = lora_added(part, self.lora[name], self.entry["scaling"])
                yield name, part

    def size(self, names):
        """Bytes in memory."""
        return sum(self.like[name].nbytes for name in names)


def lora_of(entry, new_names, like):
    """{weight of the model: (A [r, in], B [out, r])} of the entry's adapter. Raises KeyError where it fits another model or is not LoRA."""
    from safetensors.torch import load_file

    stored, found = load_file(Path(entry["adapter"]) / "adapter_model.safetensors"), {}
    for key in stored:
        before, mark, _ = key.removeprefix("base_model.model.").partition(".lora_A.")
        if mark:
            names = new_names(f"{before}.weight")
            a, b = pair = stored[key], stored[key.replace(".lora_A.", ".lora_B.")]
            known_one = len(names) == 1 and names[0] in like
            if not known_one or like[names[0]].numel() != a[0].numel() * b[:, 0].numel():
                raise KeyError(f"the adapter {entry['adapter']} is for {before} of another model")
            found[names[0]] = pair
    if 2 * len(found) != len(stored):
        raise KeyError(f"the adapter {entry['adapter']} holds more than LoRA")
    return found


def lora_added(weight, pair, scaling):
    """W + s B A (Hu et al. 2022, equation 3), computed in fp32."""
    a, b = (x.to(weight.device, torch.float32) for x in pair)
    return (weight.float() + scaling * (b @ a).view_as(weight)).to(weight.dtype)


@torch.no_grad()
def merge_lora(model, entry, new_names):
    """Merge the entry's adapter into the model's weights; returns (model, nothing missing) for `attempt`."""
    for name, pair in lora_of(entry, new_names, model.state_dict()).items():
        weight = model.get_parameter(name)
        weight.copy_(lora_added(weight, pair, entry["scaling"]))
    return model, {"missing_keys": []}


@torch.inference_mode(False)  # inference tensors cannot become parameters
def fill(model, weights, names, device="cpu"):
    """Put the named weights into the model."""
    model.load_state_dict({name: x.to(device) for name, x in weights.read(names)}, strict=False, assign=True)


def hub_file(entry, name):
    """Path of one file of a checkpoint, downloaded if needed; None if there is no such file."""
    if Path(entry["path"]).is_dir():
        return Path(entry["path"], name) if Path(entry["path"], name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    revision = resolved_commit(entry) or entry.get("revision")
    found = try_to_load_from_cache(entry["path"], name, revision=revision)
    if isinstance(found, str):
        return Path(found)
    with contextlib.suppress(EntryNotFoundError):
        return Path(hf_hub_download(entry["path"], name, revision=revision))


def _cached(entry):
    """The folder of the local cache with the hub's repository at the entry's revision, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = "/".join(filter(None, (entry.get("subfolder"), CONFIGS[entry.get("kind") == "video"])))
    found = try_to_load_from_cache(entry["path"], config, revision=entry.get("revision"))
    return Path(found).parents[config.count("/")] if isinstance(found, str) else None


def fingerprint(path):
    """Identity of a checkpoint (a path or an entry): the hub's name and commit, or a digest of the content."""
    entry = path if isinstance(path, dict) else {"path": path}
    if entry.get("adapter"):
        return f"{fingerprint(entry | {'adapter': None})}+{fingerprint(entry['adapter'])}"
    folder, parts = Path(entry["path"]), []
    if not folder.is_dir():
        return "@".join(filter(None, (entry["path"], resolved_commit(entry))))
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors")):
        parts.append(file.relative_to(folder).as_posix().encode())
        parts.append(file.read_bytes() if file.suffix == ".json" else sample_of(file))
    return digest(b"".join(parts))


def header_of(file):
    """The header of a safetensors file: JSON with the shape, dtype and place of each tensor."""
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        return f.read(min(length, file.stat().st_size))


def sample_of(file, blocks=64, block=64 * 1024):
    """A safetensors file's size, header and evenly spread blocks; the whole of a small file."""
    size = file.stat().st_size
    if size <= blocks * block:
        return file.read_bytes()
    parts = [f"{size} ".encode(), header_of(file)]
    with file.open("rb") as f:
        for k in range(blocks):
            f.seek(k * (size - block) // (blocks - 1))
            parts.append(f.read(block))
    return b"".join(parts)


def resolved_commit(entry):
    """The commit of the hub's repository in the local cache, or None for a folder."""
    found = None if Path(entry["path"]).is_dir() else _cached(entry)
    return found and found.name


def native_layout(entry, dtype):
    """The layout of transformers' classes; its conversion rules rename and split weights of older checkpoints."""
    from transformers import AutoConfig

    model_class, processor_class = auto_classes(entry)
    config = attempt(lambda: AutoConfig.from_pretrained(entry["path"], **pin(entry)), entry)
    processor = attempt(lambda: processor_class.from_pretrained(entry["path"], **pin(entry)), entry)

    def names(model):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import Chunk, Transpose, WeightRenaming, rename_source_key

        rules, known_names = get_model_conversion_mapping(model), model.state_dict()
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        splits = [rule for rule in rules if rule not in renamings]
        # DINOv2's gated MLP, once one matrix; Qwen3-VL's experts, stored transposed
        assert all(
            len(rule.source_patterns) == len(rule.operations) == 1
            and isinstance(rule.operations[0], Chunk | Transpose)
            for rule in splits
        ), rules

        def rename(name):
            new, split = rename_source_key(name, renamings, splits, model.base_model_prefix, known_names)
            if new not in known_names and name in known_names:  # written after the renaming
                return name, None
            return new, next((rule for rule in splits if split in rule.source_patterns), None)

        def new_names(name):
            new, split = rename(name)
            if not split:
                return [new]
            return [new.replace(split.target_patterns[0], target) for target in split.target_patterns]

        def parts(name, tensor):
            new, split = rename(name)
            if not split:
                return [tensor]
            operation, patterns = split.operations[0], (split.source_patterns, split.target_patterns)
            if isinstance(operation, Chunk):
                return tensor.chunk(len(split.target_patterns), operation.dim)
            return [*operation.convert({name: tensor}, *patterns, model=model, full_layer_name=new).values()]

        return new_names, parts

    return lambda: model_class.from_config(config, dtype=dtype), processor, names


def config_of(entry, name="config.json"):
    """A JSON file of a checkpoint as a dict; exit 2 where there is none."""
    path = attempt(lambda: hub_file(entry, name), entry)
    return read_json(path) if path else fail(f"{entry['path']} has no {name}; copy the checkpoint again")


def cogvlm2_layout(entry, dtype):
    """The port in cogvlm2.py, with the names of the checkpoint; the hub's code needs xformers and triton. The processor is the tokenizer."""
    from transformers import AutoTokenizer

    from cogvlm2 import CogVLM2

    config = config_of(entry)
    tokenizer = attempt(lambda: AutoTokenizer.from_pretrained(entry["path"], **pin(entry)), entry)
    return lambda: CogVLM2.in_dtype(config, dtype), tokenizer, lambda model: (lambda name: [name],)


def internvl2_layout(entry, dtype):
    """InternVL2's original layout, mapped onto the native class; the processor is None without tokenizer.model."""
    from transformers import InternVLForConditionalGeneration

    from cogvlm2 import internvl2_config, internvl2_names, internvl2_parts, internvl2_processor

    old = config_of(entry)
    kind = old["llm_config"].get("model_type", "internlm2")
    if kind != "internlm2":
        fail(f"{entry['path']} has a {kind} language model, not internlm2; use an InternVL3 model instead")
    config, processor = internvl2_config(old), None
    if vocabulary := hub_file(entry, "tokenizer.model"):
        stored = config_of(entry, "tokenizer_config.json")
        processor = attempt(lambda: internvl2_processor(config, vocabulary.read_bytes(), stored), entry)
    else:
        print(f"{entry['path']} has no tokenizer.model: only BOS comes before the image, no chat prompt")
    return (
        lambda: InternVLForConditionalGeneration._from_config(config, dtype=dtype),
        processor,
        lambda model: (internvl2_names, lambda name, tensor: internvl2_parts(name, tensor, config)),
    )


OWN_LAYOUT = {"cogvlm2": cogvlm2_layout, "internvl_chat": internvl2_layout}
LOADERS = {
    "vlm": load_vlm,
    "encoder": load_encoder,
    "language": load_language,
    "vae": load_video_vae,
    "video": load_video_pipeline,
}


# ---------------------------------------------------------------- inputs of a vision-language model

# Frames a second of a clip that states none: the rate at which Qwen2.5-VL samples videos. The library's
# default is 24, at which all time steps would share one position.
RATE = 2.0


def chat(processor, words, kind="image", count=1):
    """The prompt text by the model's chat template: placeholders of `count` images, or of a video, then the words."""
    content = [{"type": kind}] * count + [{"type": "text", "text": words}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def qwen_inputs(processor, frames, words, at=None, image_set=False):
    """Inputs of Qwen's families for images (T = 1) or clips, uint8 [n,T,H,W,3], with the same words for each.

    image_set: the T frames are single images of any shapes, not a clip. at: (frame numbers, length of the clips, frames a second if
    not RATE), where only some frames of a clip are given; positions in time follow the frame numbers.
    """
    count, x = len(frames[0]), [[f.permute(2, 0, 1) for f in clip] for clip in frames]
    still = image_set or count == 1
    text = chat(processor, words, "image", count) if still else chat(processor, words, "video")
    # no resizing: frames have their final size; Qwen3-VL counts the pixels of the whole clip
    largest = count * max(f[0].numel() for clip in x for f in clip)
    size = {"size": {"shortest_edge": 1, "longest_edge": largest}}
    if still:
        media = {"images": x, "images_kwargs": size}
    else:
        numbers, whole, rate = (*(at or (range(count), count)), RATE)[:3]
        times = {"fps": rate, "total_num_frames": whole, "frames_indices": list(numbers)}
        media = {"videos": [torch.stack(clip) for clip in x], "video_metadata": [times] * len(x)}
        media["videos_kwargs"] = {"do_sample_frames": False, "cap_pixels_per_frame": False, **size}
    return processor(text=[text] * len(x), return_tensors="pt", **media)


# ---------------------------------------------------------------- questions about clips

FRAMES_AS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "video"),
    **dict.fromkeys(("llava", "llava_next", "llava_onevision", "internvl"), "images"),
}
OPTIONS, LONGEST = 30, 64  # most actions in a list; most tokens of an answer


def spread(length, k):
    """k frame numbers of a clip, evenly from the first to the last; all frames of a shorter clip."""
    return list(range(length)) if k >= length else [round(i * (length - 1) / (k - 1)) for i in range(k)]


def put_to(model, processor, frames, question, at=None):
    """Arguments of `generate` for one question about each clip, uint8 [n, k, H, W, 3]: frames at[0] of at[1] frames.

    Without `at`, the k frames are single images that may differ in shape."""
    kind = model.config.model_type
    if FRAMES_AS.get(kind) == "video":
        given = qwen_inputs(processor, frames, question, at, image_set=at is None)
    elif kind in FRAMES_AS:
        # a frame is one tile, as in the model's videos
        whole = {"images_kwargs": {"crop_to_patches": False}} if kind == "internvl" else {}
        given = processor(
            text=[chat(processor, question, count=len(frames[0]))] * len(frames),
            images=[[f.permute(2, 0, 1) for f in clip] for clip in frames],
            return_tensors="pt",
            **whole,
        )
    else:
        given = ALONE[kind](model, processor, torch.stack([clip[0] for clip in frames]), question)
    device, dtype = next((p.device, p.dtype) for p in model.parameters())
    return {
        k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v
        for k, v in given.items()
    }


@torch.inference_mode()
def answers_to(model, processor, frames, question, at, most=LONGEST):
    """Greedy answers (list of str) to one question about clips, uint8 [n, k, H, W, 3]: frames at[0] of at[1] frames. No padding."""
    tokens = greedy_tokens(model, put_to(model, processor, frames, question, at), most)
    return [text.strip() for text in processor.batch_decode(tokens, skip_special_tokens=True)]


def greedy(model, most, end=None):
    """The GenerationConfig of greedy decoding. Of the checkpoint's own, only the ids of special tokens remain.

    `generate` takes what is None from model.generation_config, which is replaced too. end: another eos.
    """
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {name: getattr(model.generation_config, name) for name in names}
    if end is not None:
        ids |= {"eos_token_id": end, "pad_token_id": end}
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = torch.as_tensor(ids["eos_token_id"] or 0).flatten()[0].item()
    plain = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    plain |= {"length_penalty": 1.0, "min_length": 0, "use_cache": True, "max_new_tokens": most}
    model.generation_config = GenerationConfig(**plain, **ids)
    return model.generation_config


def greedy_tokens(model, given, most, streamer=None):
    """Ids of at most `most` new tokens [n, k] after the prompts `given`; exit 2 where memory is lacking."""
    with within_memory("give a smaller --batch or --size, or a smaller model"):
        if model.config.model_type == "cogvlm2":
            return model.generate(**given, max_new_tokens=most, streamer=streamer)
        tokens = model.generate(**given, generation_config=greedy(model, most), streamer=streamer)
    return tokens if model.config.is_encoder_decoder else tokens[:, given["input_ids"].shape[1] :]


# ---------------------------------------------------------------- questions about an image


def to_cogvlm2(model, processor, images, question):
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD

    x = frames_of({"frames": images}, model.config.vision_config.image_size).float() / 255
    x = ((x - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)).permute(0, 3, 1, 2)
    return model.inputs(x, processor(f"Question: {question} Answer:", add_special_tokens=False).input_ids)


def to_kosmos2(model, processor, images, question):
    images, text = list(images.permute(0, 3, 1, 2)), [f"Question: {question} Answer:"] * len(images)
    number = model.config.latent_query_num
    return processor(text=text, images=images, num_image_tokens=number, return_tensors="pt")


def to_florence2(model, processor, images, question):
    images = list(images.permute(0, 3, 1, 2))
    return processor(text=[question] * len(images), images=images, return_tensors="pt")


ALONE = {"cogvlm2": to_cogvlm2, "kosmos-2": to_kosmos2, "florence2": to_florence2}  # these accept one image


# ---------------------------------------------------------------- the tracker


class Residual(torch.nn.Module):
    """A residual block of two 3 x 3 convolutions [n,width,h,w]."""

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
    """A small video transformer: for an object given by name, in which frames it is visible and whether it is persistent.

    A convolutional stem, mostly at a quarter of the resolution (so that shapes of ten pixels keep their corners), makes a token of each
    8 x 8 patch. In each frame, a query (embeddings of colour and shape) attends to the patches. The query's tokens of all frames and a
    summary token then attend to each other; the summary also encodes which colours the clip shows, from one query per colour. Its
    attention over the frames pools their tokens. The embedding also holds a short projection of each frame.
    config: content of config.json; `layers`: (of the query in a frame, over the frames).
    """

    def __init__(self, config):
        super().__init__()
        self.config, side = config, config["image_size"] // 8
        (small, width), (hops, layers) = config["widths"], config["layers"]
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
        decoder, encoder = torch.nn.TransformerDecoderLayer, torch.nn.TransformerEncoderLayer
        self.query = torch.nn.ModuleList(decoder(small, 4, 2 * small, **more) for _ in range(hops))
        self.course = torch.nn.ModuleList(encoder(width, 4, 2 * width, **more) for _ in range(layers))
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
        """Frames uint8 [n,T,S,S,3], indices of colours and shapes [n,q] -> tokens of each query in each frame [n,q,T,D],
        logits of each colour being shown, of any shape [n,C,T], and patch tokens [n*T,P,D]."""
        (n, t), q = frames.shape[:2], colours.shape[1] + len(self.colour.weight)
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 64 - 2
        tokens = self.patch_norm(self.stem(pixels).flatten(2).transpose(1, 2))
        queries = self.colour(colours) + self.shape(shapes)
        queries = torch.cat([queries, self.colour.weight.expand(n, -1, -1)], 1)
        patches, x = tokens + self.place, queries.repeat_interleave(t, 0)
        others = ~torch.eye(q, dtype=torch.bool, device=x.device)  # queries do not attend to each other
        for layer in self.query:
            x = layer(x, patches, tgt_mask=others)
        x = self.query_norm(x).unflatten(0, (n, t)).transpose(1, 2)
        return x[:, : colours.shape[1]], self.shown(x[:, colours.shape[1] :])[..., 0], tokens

    def forward(self, frames, colours, shapes):
        """Inputs as of `look` -> {scores [n,q,T], persistence [n,q], shown [n,C,T]: logits; attention [n,q,T], sums to 1; embedding [n,q,E];
        looked, seen: tokens of the frames before and after attending to each other}."""
        looked, shown, _ = self.look(frames, colours, shapes)
        x = (self.widen(looked) + self.time).flatten(0, 1)
        summary = self.summary + self.company(shown.amax(-1).sigmoid())[:, None]
        x = torch.cat([x, summary.repeat_interleave(looked.shape[1], 0)], 1)
        for layer in self.course:
            x = layer(x)
        x = self.norm(x)
        seen, summary = x[:, :-1], x[:, -1]
        attention = (self.key(seen) @ summary[:, :, None])[..., 0].float() / summary.shape[1] ** 0.5
        attention = attention.softmax(-1)
        pooled = (attention[:, None].to(seen.dtype) @ seen)[:, 0]
        embedding = self.embed(torch.cat([summary, pooled, self.brief(seen).flatten(1)], 1))
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

        config = json.dumps({"model_type": "tracker", **self.config}, indent=1)
        save_text(Path(folder) / "config.json", config)
        weights = {k: v.contiguous() for k, v in self.state_dict().items()}
        save_bytes(Path(folder) / "model.safetensors", save(weights))

    @classmethod
    def from_pretrained(cls, folder):
        from safetensors.torch import load_file

        config = json.loads((Path(folder) / "config.json").read_text())
        model = cls({k: v for k, v in config.items() if k != "model_type"})
        weights = load_file(Path(folder) / "model.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
        return model.eval()


def load_tracker(entry, device):
    """The tracker of a folder; exit 2 for another model or a broken folder."""
    if entry["kind"] != "tracker":
        fail(
            f"--model {entry['name']} is a {entry['kind']}, not a tracker; give tiny-tracker, or --embeddings"
        )
    return attempt(lambda: Tracker.from_pretrained(entry["path"]), entry).to(device)


@torch.inference_mode()
def follow(model, frames, names, device):
    """Run a tracker on n clips uint8 [n,T,S,S,3] and q names of each: {scores, attention [n,q,T], persistence [n,q]: probabilities, embedding [n,q,E]}, fp32."""
    queries = []
    for k, kind in enumerate(("colours", "shapes")):
        numbers = [[model.config[kind].index(name.split()[k]) for name in row] for row in names]
        queries.append(torch.tensor(numbers, device=device))
    found = model(frames.to(device), *queries)
    found |= {k: found[k].sigmoid() for k in ("scores", "persistence")}
    return {k: found[k].float().cpu() for k in ("scores", "attention", "persistence", "embedding")}


# ---------------------------------------------------------------- cached answers


def cached(key, stamp, answer_all, cache, out, mode="trajectories"):
    """{texts, seconds, memory} of a method: from `cache` if its stamp is equal (None: never), else from answer_all(), saved to `out`."""
    if stamp is None or cache.get(key, {}).get("stamp") != stamp:
        peak_memory(reset=True)
        started, texts = time.time(), answer_all()
        seconds = time.time() - started
        cache[key] = {"stamp": stamp, "texts": texts, "seconds": seconds, "memory": peak_memory()}
        save_pt(out, ANSWERS, [], {"mode": mode}, answers=cache)
    return cache[key]
