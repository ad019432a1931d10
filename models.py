"""Models by name or folder: the registry, loading (whole, or empty to be filled), and questions to VLMs."""

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
    load_video_vae,
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
from media import RATE, frames_of, pace, part_of

# ---------------------------------------------------------------- models by name

TINY, LTX = "results/tiny/checkpoints", "LTXImageToVideoPipeline"
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"  # owner/name


def tuples(x):
    """Nested lists as tuples."""
    return tuple(map(tuples, x)) if isinstance(x, list) else x


def read_registry():
    """models.yaml: {name: entry}, {wrong name: what to use}, {model type: why it has no features}."""
    found, wrong = load_yaml(HERE / "models.yaml"), {}
    for row in found["models"].values():
        row |= {key: tuples(value) for key, value in row.items()}
    for names, correction in found["misnomers"].items():
        wrong |= dict.fromkeys(names.split(), correction)
    return found["models"], wrong, found["refused"]


MODELS, MISNOMERS, REFUSED = read_registry()
# sides of these are in whole tokens, as in the registry: image_size is none, or the largest
ANY_SIDE = ("qwen", "dino", "glm4v", "glm46v", "mistral3", "pixtral")
# types that transformers lists nowhere, or among models that both see and write
KIND_OF_TYPE = dict.fromkeys(("internvl_chat", "cogvlm2"), "vlm") | {"tracker": "tracker", LTX: "video"}
KIND_OF_TYPE |= dict.fromkeys(("dinov2", "dinov3_vit", "siglip", "grounding-dino", "vjepa2"), "encoder")
KIND_OF_TYPE |= dict.fromkeys(("owlvit", "owlv2"), "encoder") | {"AutoencoderKLLTXVideo": "vae"}


def registry_name(name):
    """The registry's name for `name`: in any case, of a hub repository, or of one without its owner."""
    if name.lower() in MODELS:
        return name.lower()
    for registered, entry in MODELS.items():
        path = entry["path"].lower()
        if not path.startswith(TINY) and name.lower() in (path, Path(path).name):
            return registered
    return name


def folder_name(path):
    """The name in results: a path's last that is no number, adapter or model; all of <model>/<data>/tuned."""
    names = [name for name in Path(os.path.abspath(path)).parts if not name.isdecimal()]
    names = names[:-1] if names[-1] in ("adapter", "model") else names
    return "-".join(names[-3:]) if names[-1] == "tuned" else names[-1]


def find_model(name, base=None):
    """The entry of a name of the registry or the hub, or of a folder: kind, type, path, weights, sides.

    Of a peft folder, that of its base model, with `adapter`; base: a base in place of the one that it names.
    """
    folder = name not in MODELS and Path(name).is_dir()
    if folder and Path(name, ADAPTER_CONFIG).is_file():
        return adapted(name, base)
    if base:
        fail(f"--base {base} goes with an adapter, and {name} has no {ADAPTER_CONFIG}; leave it out")
    if folder:
        config = next((Path(name, file) for file in CONFIGS if Path(name, file).is_file()), None)
        if not config:
            fail(f"{name} has no config.json; give a folder written by save_pretrained")
        entry = described(read_json(config), name)
    else:
        name = registry_name(name)
        entry = dict(MODELS.get(name) or named(name))
    if entry["path"].startswith(TINY):
        entry["path"] = str(HERE / entry["path"])
        if not any(Path(entry["path"], file).is_file() for file in CONFIGS):
            fail(f"{entry['path']} does not exist; run tiny.py, which trains it")
    return {"name": folder_name(name), **entry, **noted(entry["path"])}


def named(name):
    """The entry of a name that is not the registry's, of the hub; exit 2 for a misnomer and for any other."""
    if correction := MISNOMERS.get(name.lower()) or MISNOMERS.get(Path(name).name.lower()):
        fail(f"{name!r} {correction}")
    if re.fullmatch(HUB_NAME, name):
        return described(config_of({"path": name}), name)
    if "/" in name:
        fail(f"there is no folder {name}; give a folder, a name of the hub, or one of `extract.py --list`")
    return check_choice(name, MODELS, "model")


def kind_of(model_type, config, where):
    """The kind of a model type: the table's, or by transformers' lists of classes; exit 2 for any other."""
    if model_type in KIND_OF_TYPE:
        return KIND_OF_TYPE[model_type]
    if model_type in REFUSED:
        fail(f"{where} is of type {model_type}, which {REFUSED[model_type]}")
    from transformers.models.auto import modeling_auto as lists

    if model_type in lists.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "vlm"
    if model_type in lists.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "vision_config" not in config:
        return "language"
    known = model_type in lists.MODEL_MAPPING_NAMES
    if known and {"vision_config", "image_size", "num_channels"} & set(config):
        return "encoder"
    if "auto_map" in config:
        near = difflib.get_close_matches(Path(where).name.lower(), MODELS, 1, 0.6)
        use = near[0] if near else "a model of `python extract.py --list`"
        fail(f"{where} needs code from the hub, which is not executed here; use {use}")
    if known:
        fail(f"{where} is of type {model_type}, which neither sees nor writes; give a model that does")
    what = f"of type {model_type!r}" if model_type else "of no model_type"
    fail(f"{where} is {what}, which transformers {version('transformers')} does not have")


def described(config, path):
    """The entry of a checkpoint that the registry does not have, from its config.json or model_index.json."""
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


def noted(folder):
    """What a checkpoint's weights.yaml states: `weights`, the origin; `size` and `clip`; `own_shape`, where
    tune.py tuned it at the images' aspect ratio: for Qwen (token, most) of `fitted`, else empty."""
    note, found = Path(folder) / "weights.yaml", {"weights": "pretrained"}
    if Path(folder).is_dir():
        found = load_yaml(note) if note.is_file() else {"weights": "unstated"}
    return {k: found[k] for k in ("weights", "size", "clip", "own_shape") if k in found}


def adapted(name, base=None):
    """The entry of a peft folder (of tune.py, LLaMA-Factory, Unsloth): its base model's, with the adapter."""
    file = f"{name}/{ADAPTER_CONFIG}"
    base = base or read_json(file).get("base_model_name_or_path")
    if not base:
        fail(f"the adapter {name} names no base model in {file}; give it with --base FOLDER")
    known = next((n for n, entry in MODELS.items() if entry["path"] == base), registry_name(base))
    if known not in MODELS and not Path(base).is_dir():
        found, why = None, ""
        try:
            found = re.fullmatch(HUB_NAME, base) and hub_file({"path": base}, CONFIGS[0])
        except Exception as e:  # of the hub, or of the network
            why = f" ({trouble(e, {'path': base})})"
        if not found:
            where = f"the base model {base!r} of the adapter {name} is not here{why}"
            fail(f"{where}; give --base FOLDER (extract.py, explain.py), or change it in {file}")
    entry = find_model(known)
    if "adapter" in entry:
        fail(f"the base {base} of {name} is an adapter too; merge that one, and give the folder as --base")
    return entry | {"name": folder_name(name), "adapter": str(name)} | noted(name)


def model_of(index):
    """The entry of the model of a features index, by its name or folder; {} where neither is here."""
    if index["model"] in MODELS:
        return find_model(index["model"])
    arguments = index.get("run", {}).get("arguments", {})
    given = str(arguments.get("model") or "")
    here = any(Path(given, f).is_file() for f in (*CONFIGS, ADAPTER_CONFIG))
    return find_model(given, arguments.get("base")) if here else {}


# ---------------------------------------------------------------- loading

# model type -> (model, processor) where an encoder is not (AutoModel, AutoImageProcessor). Grounding DINO
# needs its detector class: AutoModel would miss an unused layer norm of Swin that older files lack.
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
    """(model, processor); of an encoder its image processor, of a language model its tokenizer.

    random_seed: the same architecture, untrained; quantised: transformers' quantization_config, of 4 bits.
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
    """The model of a checkpoint that a library reads whole, in the CPU's memory: an adapter merged into its
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
    """What to use for a quantised checkpoint: the registry's of the same type and the nearest name."""
    name = Path(entry["path"]).name.lower()
    same = {Path(e["path"]).name.lower(): n for n, e in MODELS.items() if e["type"] == entry["type"]}
    near = difflib.get_close_matches(name, same, 1, 0.7)
    return f"use the original, {MODELS[same[near[0]]]['path']}" if near else ORIGINAL


def without_cache(model):
    """The model, whose plain forward fills no key-value cache; `greedy` states that generation does."""
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", False):
            module.config.use_cache = False
    return model


# files of a processor: of its images and of its words; one of each row is needed
OF_IMAGES = "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"
OF_WORDS = "tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json"


def processor_of(entry):
    """The processor or tokenizer alone; exit 2 naming a file that is missing."""
    entry = reachable(entry)
    where, kind = Path(entry["path"]), entry["kind"]
    for names, without in ((OF_IMAGES, "language"), (OF_WORDS, "encoder")):
        if where.is_dir() and kind != without and not any((where / name).is_file() for name in names):
            fetch = f"`hf download REPOSITORY {names[0]} --local-dir {where}` fetches it"
            fail(f"{where} has no {names[0]}; {fetch} from the model's repository")
    _, processor_class = auto_classes(entry)
    processor = attempt(lambda: processor_class.from_pretrained(entry["path"], **pin(entry)), entry)
    if kind == "vlm" and not hasattr(processor, "image_processor"):
        fail(f"{where} has a {type(processor).__name__} alone; fetch its {OF_IMAGES[0]} too")
    return processor


# ---------------------------------------------------------------- an empty network, and its weights

# A layout is a function (entry, dtype) -> (build, processor, names). build() makes the network with initial
# weights. names(model) -> (new_names, parts) maps a tensor of the checkpoint: new_names(name) are its names
# in the model, parts(name, tensor) its parts.


def skeleton(entry, dtype, device="cpu", random_seed=None):
    """(model, processor, weights): parameters are empty (meta device), buffers are real. `weights` reads them
    from the checkpoint or, with `random_seed`, draws them."""
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

    Its new_names raises Converted for weights that the rules also split or join (experts, a gated MLP).
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


LOADERS = dict.fromkeys(("vlm", "encoder", "language"), load_transformer) | {"vae": load_video_vae}


# ---------------------------------------------------------------- questions to a vision-language model

OPTIONS, LONGEST = 30, 64  # most actions in a list; most tokens of an answer
TOKENS = 32_000  # of the prompts in a batch
# how a model is given a clip: as a video, as one picture of all frames, or else as several images
FRAMES_AS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), "video"),
    **dict.fromkeys(("cogvlm2", "kosmos-2", "florence2"), "sheet"),
}
# arguments with which a processor makes one tile of an image, as of a frame in the models' own videos
ONE_TILE = {
    **dict.fromkeys(("internvl", "aya_vision", "ovis2"), {"crop_to_patches": False}),
    **dict.fromkeys(("idefics3", "smolvlm"), {"do_image_splitting": False}),
}


def control_token(processor, words):
    """The first token in a user's words that the model would read as an image or a turn of the chat."""
    tokenizer, template = getattr(processor, "tokenizer", processor), getattr(processor, "chat_template", "")
    tokens = [getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")]
    for token in tokenizer.added_tokens_decoder.values() if "<" in words or "[" in words else ():
        if token.special and token.content in str(template):
            tokens.append(token.content)
    return next((str(token) for token in tokens if token and str(token) in words), None)


def plain(processor, question):
    """A user's question; exit 2 where it holds a control token."""
    if token := control_token(processor, question):
        fail(f"the question {question!r} holds {token!r}, a sign of the model's own; write it in other words")
    return question


def chat(processor, words, kind="image", count=1):
    """The prompt by the model's chat template: `count` images or a video, then the words."""
    words = plain(processor, words)
    if "PaliGemma" in type(processor).__name__:  # was not tuned to chats
        return f"{processor.image_token * count}{words}"
    if not getattr(processor, "chat_template", None):
        where = getattr(getattr(processor, "tokenizer", None), "name_or_path", None) or "the model"
        files = "chat_template.jinja (or chat_template.json) from its repository"
        fail(f"{where} has no chat template; fetch {files}, or give a model that is tuned to instructions")
    content = [{"type": kind}] * count + [{"type": "text", "text": words}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def qwen_inputs(processor, frames, words, at=None, image_set=False):
    """Inputs of Qwen's families for images (T = 1) or clips, uint8 [n,T,H,W,3], with the same words for each.

    Clips are at their times (`stacked`), or else at RATE; at: (frame numbers, length), if only some frames
    are given. image_set: the T frames are single images of any shapes, not a clip.
    """
    count, x = len(frames[0]), []
    for clip in frames:
        x.append([frame.permute(2, 0, 1) for frame in clip])
    still = image_set or count == 1
    text = chat(processor, words, "image", count) if still else chat(processor, words, "video")
    # no resizing: frames have their final size; Qwen3-VL counts the pixels of the whole clip
    largest = count * max(f[0].numel() for clip in x for f in clip)
    size = {"size": {"shortest_edge": 1, "longest_edge": largest}}
    if still:
        media = {"images": x, "images_kwargs": size}
    else:
        numbers, whole = at or (range(count), count)
        even = {"fps": RATE, "total_num_frames": whole, "frames_indices": list(numbers)}
        metadata = [pace(times) for times in getattr(frames, "times", ())] or [even] * len(x)
        media = {"videos": [torch.stack(clip) for clip in x], "video_metadata": metadata}
        media["videos_kwargs"] = {"do_sample_frames": False, "cap_pixels_per_frame": False, **size}
    return processor(text=[text] * len(x), return_tensors="pt", **media)


def sheet(clip):
    """Frames uint8 [k, H, W, 3] -> one picture, row by row (an image grid, Kim et al. 2024); one as it is."""
    if len(clip) == 1:
        return clip[0]
    columns = math.ceil(len(clip) ** 0.5)
    blank = clip[:1].expand(-len(clip) % columns, *clip.shape[1:]) * 0
    rows = torch.cat([clip, blank]).unflatten(0, (-1, columns))
    return rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


def to_one_image(model, processor, images, question):
    """Inputs of a model that takes one image [H, W, 3] and a question."""
    kind, n, question = model.config.model_type, len(images), plain(processor, question)
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
    """LLaVA-NeXT's inputs with one tile a frame, which its processor does not make: base tile, newline."""
    images = [as_images(clip) for clip in frames]
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
    return {"input_ids": ids, "inputs_embeds": embedded, "attention_mask": torch.ones_like(ids)}


def as_images(clip):
    """The frames of a clip for a processor that takes PIL's images alone."""
    from PIL import Image

    return [Image.fromarray(frame.numpy()) for frame in clip]


def placed(model, given):
    """Inputs on the model's device, those of floats in its dtype."""
    device, dtype = next((p.device, p.dtype) for p in model.parameters() if not p.is_meta)
    for name, x in given.items():
        if torch.is_tensor(x):
            given[name] = x.to(device, dtype if x.is_floating_point() else None)
    return given


def put_to(model, processor, frames, question, at=None):
    """Arguments of `generate` for one question about each clip, uint8 [n, k, H, W, 3]: frames at[0] of at[1].

    Without `at` and times (`stacked`), the k frames are single images that may differ in shape.
    """
    kind, count = model.config.model_type, len(frames[0])
    of_clips = at is not None or hasattr(frames, "times")
    if not processor:
        fail("this checkpoint has no tokenizer.model, so it cannot be asked; fetch it from its repository")
    how = FRAMES_AS.get(kind)
    if how == "video":
        given = qwen_inputs(processor, frames, question, at, image_set=not of_clips)
    elif how == "sheet":
        note = f"The picture shows {count} frames of a clip, row by row. " if count > 1 else ""
        given = to_one_image(model, processor, [sheet(clip) for clip in frames], note + question)
    elif kind == "llava_next" and of_clips and count > 1:
        given = one_tile(model, processor, frames, chat(processor, question, count=count))
    else:
        text = [chat(processor, question, count=count)] * len(frames)
        more = {"return_tensors": "pt", "images_kwargs": ONE_TILE.get(kind, {})}
        given = processor(text=text, images=[as_images(clip) for clip in frames], **more)
    return placed(model, dict(given))


@torch.inference_mode()
def answers_to(model, processor, frames, question, at, most=LONGEST):
    """Greedy answers (list of str) to one question about clips, uint8 [n, k, H, W, 3]: frames at[0] of at[1].

    No padding; so many clips at once as TOKENS hold."""
    first = put_to(model, processor, part_of(frames, 0, 1), question, at)
    batch, answers = max(TOKENS // (first["input_ids"].shape[1] + most), 1), []
    for k in range(0, len(frames), batch):
        some = part_of(frames, k, k + batch)
        given = first if len(frames) == 1 else put_to(model, processor, some, question, at)
        tokens = greedy_tokens(model, given, most)
        answers += processor.batch_decode(tokens, skip_special_tokens=True)
    return [text.strip() for text in answers]


def greedy(model, most, end=None):
    """The GenerationConfig of greedy decoding. Of the checkpoint's own only the ids of special tokens stay.

    `generate` takes what is None from model.generation_config, which is replaced too. end: another eos.
    """
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    ids = {name: getattr(model.generation_config, name) for name in names}
    if end is not None:
        ids |= {"eos_token_id": end, "pad_token_id": end}
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = torch.as_tensor(ids["eos_token_id"] or 0).flatten()[0].item()
    flags = {"do_sample": False, "num_beams": 1, "num_return_sequences": 1, "use_cache": True}
    flags |= {"repetition_penalty": 1.0, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}
    flags |= {"max_new_tokens": most, "renormalize_logits": False, "remove_invalid_values": False}
    model.generation_config = GenerationConfig(**flags, **ids)
    return model.generation_config


def greedy_tokens(model, given, most, streamer=None):
    """Ids of at most `most` new tokens [n, k] after the prompts `given`; exit 2 where memory is lacking."""
    with within_memory("give a smaller --batch or --size, or a smaller model"):
        if model.config.model_type == "cogvlm2":
            return model.generate(**given, max_new_tokens=most, streamer=streamer)
        tokens = model.generate(**given, generation_config=greedy(model, most), streamer=streamer)
    return tokens if model.config.is_encoder_decoder else tokens[:, given["input_ids"].shape[1] :]
