"""Models by name or folder: the registry, loading of VLMs, encoders, language models and autoencoders, and asking."""

import difflib
import math
import os
import re
from importlib.metadata import version
from pathlib import Path

import torch

from checkpoints import (
    ADAPTER_CONFIG,
    CONFIGS,
    ORIGINAL,
    Converted,
    Loaded,
    Untrained,
    Weights,
    attempt,
    check_memory,
    config_of,
    dequantised,
    fill,
    hub_file,
    merged,
    pin,
    quantisation,
    reachable,
    read_json,
    readable_method,
    stored_bytes,
    trouble,
    within_memory,
)
from common import HERE, check_choice, fail, load_yaml
from media import frames_of

# ---------------------------------------------------------------- models by name

TINY, LTX = "results/tiny/checkpoints", "LTXImageToVideoPipeline"
REGISTRY = HERE / "models.yaml"  # the models known by name, and common wrong names


def tuples(x):
    """Nested lists as tuples."""
    return tuple(map(tuples, x)) if isinstance(x, list) else x


def read_registry():
    """({name: entry}, {wrong name: what it is and what to use}, {model type: why it has no features}) of models.yaml."""
    found = load_yaml(REGISTRY)
    entries = {
        name: {key: tuples(value) for key, value in row.items()} for name, row in found["models"].items()
    }
    wrong = {}
    for names, correction in found["misnomers"].items():
        wrong |= dict.fromkeys(names.split(), correction)
    return entries, wrong, found["refused"]


MODELS, MISNOMERS, REFUSED = read_registry()
# sides of these are in whole tokens, as in the registry: image_size is none, or the largest
ANY_SIDE = ("qwen", "dino", "glm4v", "glm46v", "mistral3", "pixtral")
# types that transformers lists nowhere, or among models that both see and write
KIND_OF_TYPE = {
    **dict.fromkeys(("internvl_chat", "cogvlm2"), "vlm"),
    **dict.fromkeys(("dinov2", "dinov3_vit", "siglip", "grounding-dino", "vjepa2"), "encoder"),
    **dict.fromkeys(("owlvit", "owlv2"), "encoder"),
    "tracker": "tracker",
    "AutoencoderKLLTXVideo": "vae",
    LTX: "video",
}

HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"  # owner/name


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
    if known not in MODELS and not Path(base).is_dir():
        found = None
        try:
            found = re.fullmatch(HUB_NAME, base) and hub_file({"path": base}, CONFIGS[0])
        except Exception as e:  # of the hub, or of the network
            print(f"{base}: {trouble(e, {'path': base})}")
        if not found:
            where = f"the base model {base!r} of the adapter {name} is not here"
            fail(f"{where}; give --base FOLDER (extract.py, explain.py), or change it in {file}")
    entry = find_model(known)
    if "adapter" in entry:
        fail(f"the base {base} of {name} is an adapter too; merge that one, and give the folder as --base")
    return entry | {"name": folder_name(name), "adapter": str(name)} | _noted(name)


def model_of(index):
    """The entry of the model of a features index, by its name or the folder given to extract.py; {} where neither exists."""
    if index["model"] in MODELS:
        return find_model(index["model"])
    arguments = index.get("run", {}).get("arguments", {})
    given = str(arguments.get("model") or "")
    here = any(Path(given, f).is_file() for f in (*CONFIGS, ADAPTER_CONFIG))
    return find_model(given, arguments.get("base")) if here else {}


# ---------------------------------------------------------------- loading

# model type -> (model, processor) where an encoder is not (AutoModel, AutoImageProcessor). Grounding DINO needs
# its detector class: AutoModel would miss an unused layer norm of Swin that files of older versions lack.
DETECTOR = "AutoModelForZeroShotObjectDetection"
ENCODER_CLASSES = dict.fromkeys(("owlvit", "owlv2"), (DETECTOR, "AutoImageProcessor"))
ENCODER_CLASSES |= {
    "grounding-dino": (DETECTOR, "AutoProcessor"),
    "vjepa2": ("AutoModel", "AutoVideoProcessor"),
}


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


def load_transformer(entry, device="cpu", dtype=torch.float32, random_seed=None, quantised=None):
    """(model, processor) of a VLM, (model, image processor) of an encoder, (model, tokenizer) of a language model.

    random_seed: the same architecture, untrained; quantised: transformers' quantization_config, to load it in 4 bits.
    """
    entry = reachable(entry)
    if random_seed is None and not entry.get("adapter") and entry.get("type") not in OWN_LAYOUT:
        processor, method = processor_of(entry), quantisation(entry)[0]
        if not method or (quantised and method == "bitsandbytes"):
            more = {"quantization_config": quantised} if quantised and not method else {}
            if not quantised:
                check_memory(entry, attempt(lambda: stored_bytes(entry, dtype), entry), device)
            model = attempt(lambda: from_library(entry, device, dtype, **more), entry)
            return without_cache(model).eval(), processor
    model, processor, weights = skeleton(entry, dtype, device, random_seed)
    check_memory(entry, weights.size(weights.like), device)
    attempt(lambda: fill(model, weights, weights.like, device), entry)
    return model, processor


load_vlm = load_encoder = load_language = load_transformer


def from_library(entry, device="cpu", dtype=torch.float32, **more):
    """(model, loading info) by transformers' from_pretrained."""
    more |= {"dtype": dtype, "output_loading_info": True, **pin(entry)}
    if "quantization_config" in more or torch.device(device).type != "cpu":
        more["device_map"] = {"": device}  # nothing is staged whole in CPU memory
    return next(auto_classes(entry)).from_pretrained(entry["path"], **more)


def loaded_whole(entry, dtype):
    """The model of a checkpoint that a library must read whole, in the CPU's memory: an adapter merged into its
    base, or quantised weights dequantised. None for plain weights."""
    base = {key: value for key, value in entry.items() if key != "adapter"}
    method = readable_method(base, original_of(base))
    if not method and "adapter" not in entry:
        return None
    if method:
        model = dequantised(base, method, dtype, lambda more: from_library(base, "cpu", dtype, **more))
    else:
        model, _ = load_transformer(base, "cpu", dtype)
    if "adapter" not in entry:
        return model
    return attempt(lambda: merged(model, entry), entry | {"path": entry["adapter"]})


def original_of(entry):
    """ "use ..." the checkpoint that a quantised one was made from: the registry's of the nearest name."""
    name = Path(entry["path"]).name.lower()
    same = {Path(e["path"]).name.lower(): n for n, e in MODELS.items() if e.get("type") == entry["type"]}
    near = difflib.get_close_matches(name, same, 1, 0.7)
    return f"use the original, {MODELS[same[near[0]]]['path']}" if near else ORIGINAL


def without_cache(model):
    """The model, whose plain forward fills no key-value cache; `greedy` states that generation does."""
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False
    return model


# files of a processor, one of each row is needed: of its images, of its words
PROCESSOR_FILES = (
    ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"),
)


def processor_of(entry):
    """The processor or tokenizer alone; exit 2 naming the file that lacks."""
    entry = reachable(entry)
    needed = {"encoder": PROCESSOR_FILES[:1], "language": PROCESSOR_FILES[1:]}.get(
        entry["kind"], PROCESSOR_FILES
    )
    for names in needed if Path(entry["path"]).is_dir() else ():
        if not any(Path(entry["path"], name).is_file() for name in names):
            fetch = f"fetch it from the model's repository with `hf download REPOSITORY {names[0]}`"
            fail(f"{entry['path']} has no {names[0]}; {fetch}")
    processor = attempt(
        lambda: list(auto_classes(entry))[1].from_pretrained(entry["path"], **pin(entry)), entry
    )
    if entry["kind"] == "vlm" and not hasattr(processor, "image_processor"):
        fail(
            f"{entry['path']} has a {type(processor).__name__} alone; fetch its preprocessor_config.json too"
        )
    return processor


def load_video_vae(entry, device="cpu", dtype=None, random_seed=None):
    """(model, None) of a video autoencoder. LTX-Video's takes 8k+1 frames and silently drops others.

    Always in fp32: in bf16 a round trip is off by 0.1 grey levels, in fp32 by 0.004.
    """
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo as Vae

    entry = reachable(entry)
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


# ---------------------------------------------------------------- a network without weights, and where to read them

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
    entry = reachable(entry)
    build, processor, names = layout_of(entry)(entry, dtype)
    with init_empty_weights(include_buffers=False):
        model = without_cache(build()).eval().requires_grad_(False)
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    if random_seed is not None:
        return model, processor, Untrained(model, random_seed)
    whole = loaded_whole(entry, dtype)
    try:
        weights = Loaded(model, whole) if whole else Weights(entry, model, *names(model))
    except Converted:
        weights = Loaded(model, load_transformer(entry, "cpu", dtype)[0])
    except Exception as e:
        fail(f"cannot load {entry['path']}: {trouble(e, entry)}")
    return model, processor, weights


def native_layout(entry, dtype):
    """The layout of transformers' classes, whose rules rename the weights of older checkpoints.

    Raises Converted for weights that its rules also split or join (experts, a gated MLP stored as one matrix).
    """
    from transformers import AutoConfig

    config = attempt(lambda: AutoConfig.from_pretrained(entry["path"], **pin(entry)), entry)
    model_class, processor = next(auto_classes(entry)), processor_of(entry)

    def names(model):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        rules, known = get_model_conversion_mapping(model), model.state_dict()
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        others = [rule for rule in rules if rule not in renamings]

        def new_names(name):
            new, other = rename_source_key(name, renamings, others, model.base_model_prefix, known)
            if new not in known and name in known:  # written after the renaming
                return [name]
            if other:
                raise Converted(name)
            return [new]

        return (new_names,)

    return lambda: model_class.from_config(config, dtype=dtype), processor, names


OWN_LAYOUT = {"cogvlm2": "cogvlm2_layout", "internvl_chat": "internvl2_layout"}  # functions of cogvlm2.py


def layout_of(entry):
    """The layout of an entry's checkpoint."""
    import cogvlm2

    name = OWN_LAYOUT.get(entry.get("type"))
    return getattr(cogvlm2, name) if name else native_layout


LOADERS = {
    "vlm": load_vlm,
    "encoder": load_encoder,
    "language": load_language,
    "vae": load_video_vae,
}


# ---------------------------------------------------------------- questions to a vision-language model

# Frames a second of a clip that states none: the rate at which Qwen2.5-VL samples videos. The library's
# default is 24, at which all time steps would share one position.
RATE = 2.0
OPTIONS, LONGEST = 30, 64  # most actions in a list; most tokens of an answer
TOKENS = 32_000  # of the prompts in a batch
# how a model is given a clip: as a video, as one picture of all frames, or else as several images
FRAMES_AS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "video"),
    **dict.fromkeys(("cogvlm2", "kosmos-2", "florence2"), "sheet"),
}
# can be trained by tune.py: transformers' own layout, and a processor with a chat template
TUNABLE = "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl"
# can be asked for places: with a grounding prompt in explain.py
GROUNDED = *TUNABLE, "internvl_chat", "cogvlm2"
# arguments with which a processor makes one tile of an image, as of a frame in the models' own videos
ONE_TILE = {
    **dict.fromkeys(("internvl", "aya_vision", "ovis2"), {"crop_to_patches": False}),
    **dict.fromkeys(("idefics3", "smolvlm"), {"do_image_splitting": False}),
}


def spread(length, k):
    """k frame numbers of a clip, evenly from the first to the last; all frames of a shorter clip."""
    return list(range(length)) if k >= length else [round(i * (length - 1) / (k - 1)) for i in range(k)]


def check_asked(entry, flag="--model"):
    """Exit 2 for a model that answers no questions about images."""
    if entry["kind"] != "vlm":
        what = f"{flag} {entry['name']} is of kind {entry['kind']} and answers no questions"
        fail(f"{what}; give a vision-language model, say tiny")


def control_token(processor, words):
    """The first token in a user's words that the model would read as an image or as a turn of the chat, or None."""
    tokenizer, template = getattr(processor, "tokenizer", processor), getattr(processor, "chat_template", "")
    tokens = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
    for token in tokenizer.added_tokens_decoder.values() if "<" in words or "[" in words else ():
        if token.special and token.content in str(template):
            tokens.append(token.content)
    return next((token for token in tokens if token and token in words), None)


def check_turns(processor, texts):
    """Raise ValueError for a control token in questions or answers to train on."""
    for text in texts:
        if token := control_token(processor, text):
            raise ValueError(
                f"{text[:60]!r} holds {token!r}, a sign of the model's own; write it in other words"
            )


def chat(processor, words, kind="image", count=1):
    """The prompt by the model's chat template: placeholders of `count` images, or of a video, then the words."""
    if token := control_token(processor, words):
        fail(f"the question {words!r} holds {token!r}, a sign of the model's own; write it in other words")
    if not getattr(processor, "chat_template", None):
        if "PaliGemma" in type(processor).__name__:
            return f"{processor.image_token * count}{words}"
        where = getattr(getattr(processor, "tokenizer", None), "name_or_path", None) or "the model"
        files = "chat_template.jinja (or chat_template.json) from its repository"
        fail(f"{where} has no chat template; fetch {files}, or give a model that is tuned to instructions")
    content = [{"type": kind}] * count + [{"type": "text", "text": words}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def qwen_inputs(processor, frames, words, at=None, image_set=False):
    """Inputs of Qwen's families for images (T = 1) or clips, uint8 [n,T,H,W,3], with the same words for each.

    image_set: the T frames are single images of any shapes, not a clip. at: (frame numbers, length of the clips,
    frames a second if not RATE), where only some frames of a clip are given; positions in time follow them.
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


def sheet(clip):
    """Frames uint8 [k, H, W, 3] -> one picture of them, row by row (an image grid, Kim et al. 2024); one as it is."""
    columns = math.ceil(len(clip) ** 0.5)
    blank = clip[:1].expand(-len(clip) % columns, *clip.shape[1:]) * 0
    rows = torch.cat([clip, blank]).unflatten(0, (-1, columns))
    return rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


def to_one_image(model, processor, images, question):
    """Inputs of a model that takes one image [H, W, 3] and a question."""
    if token := control_token(processor, question):
        fail(f"the question {question!r} holds {token!r}, a sign of the model's own; write it in other words")
    kind, n = model.config.model_type, len(images)
    pixels = [image.permute(2, 0, 1) for image in images]
    if kind == "florence2":
        return processor(text=[question] * n, images=pixels, return_tensors="pt")
    words = f"Question: {question} Answer:"
    if kind == "kosmos-2":
        rows = {"num_image_tokens": model.config.latent_query_num}
        return processor(text=[words] * n, images=pixels, return_tensors="pt", **rows)
    from cogvlm2 import normalised

    x = torch.cat(
        [frames_of({"frames": image[None]}, model.config.vision_config.image_size) for image in images]
    )
    return model.inputs(normalised(x), processor(words, add_special_tokens=False).input_ids)


def one_tile(model, processor, frames, text):
    """LLaVA-NeXT's inputs with one tile a frame, which its processor cannot make: the base tile and a newline."""
    images = [[f.permute(2, 0, 1) for f in clip] for clip in frames]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"][:, 0]
    config, net = model.config, model.model
    states = net.vision_tower(pixels.to(net.image_newline), output_hidden_states=True).hidden_states
    first = config.vision_feature_select_strategy == "default"  # without the class token
    x = net.multi_modal_projector(states[config.vision_feature_layer][:, first:])
    x = torch.cat([x, net.image_newline.expand(len(x), 1, -1)], 1)
    text = text.replace(processor.image_token, processor.image_token * x.shape[1])
    ids = processor.tokenizer([text] * len(frames), return_tensors="pt").input_ids.to(x.device)
    embedded = model.get_input_embeddings()(ids)
    embedded = embedded.masked_scatter((ids == config.image_token_id)[..., None], x.to(embedded.dtype))
    return {"inputs_embeds": embedded, "attention_mask": torch.ones_like(ids)}


def put_to(model, processor, frames, question, at=None):
    """Arguments of `generate` for one question about each clip, uint8 [n, k, H, W, 3]: frames at[0] of at[1] frames.

    Without `at`, the k frames are single images that may differ in shape."""
    kind, count = model.config.model_type, len(frames[0])
    if not processor:
        fail("this checkpoint has no tokenizer.model, so it cannot be asked; fetch it from its repository")
    if FRAMES_AS.get(kind) == "video":
        given = qwen_inputs(processor, frames, question, at, image_set=at is None)
    elif FRAMES_AS.get(kind) == "sheet":
        note = f"The picture shows {count} frames of a clip, row by row. " if count > 1 else ""
        given = to_one_image(model, processor, [sheet(clip) for clip in frames], note + question)
    elif kind == "llava_next" and at and count > 1:
        given = one_tile(model, processor, frames, chat(processor, question, count=count))
    else:
        from PIL import Image

        given = processor(
            text=[chat(processor, question, count=count)] * len(frames),
            images=[[Image.fromarray(f.numpy()) for f in clip] for clip in frames],
            return_tensors="pt",
            images_kwargs=ONE_TILE.get(kind, {}),
        )
    device, dtype = next((p.device, p.dtype) for p in model.parameters() if not p.is_meta)
    return {
        k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v
        for k, v in given.items()
    }


@torch.inference_mode()
def answers_to(model, processor, frames, question, at, most=LONGEST):
    """Greedy answers (list of str) to one question about clips, uint8 [n, k, H, W, 3]: frames at[0] of at[1].

    No padding; so many clips at once as TOKENS hold."""
    first = put_to(model, processor, frames[:1], question, at)
    rows = next(first[name].shape[1] for name in ("input_ids", "inputs_embeds") if name in first)
    batch, answers = max(TOKENS // (rows + most), 1), []
    for some in [frames[k : k + batch] for k in range(0, len(frames), batch)]:
        given = first if len(frames) == 1 else put_to(model, processor, some, question, at)
        tokens = greedy_tokens(model, given, most)
        answers += processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in answers]


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
    plain = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
    plain |= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0, "length_penalty": 1.0}
    plain |= {"no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "max_new_tokens": most}
    model.generation_config = GenerationConfig(**plain, **ids)
    return model.generation_config


def greedy_tokens(model, given, most, streamer=None):
    """Ids of at most `most` new tokens [n, k] after the prompts `given`; exit 2 where memory is lacking."""
    with within_memory("give a smaller --batch or --size, or a smaller model"):
        if model.config.model_type == "cogvlm2":
            return model.generate(**given, max_new_tokens=most, streamer=streamer)
        tokens = model.generate(**given, generation_config=greedy(model, most), streamer=streamer)
    if model.config.is_encoder_decoder or "input_ids" not in given:
        return tokens
    return tokens[:, given["input_ids"].shape[1] :]
