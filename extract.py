"""Stage 1. What does a frozen network hold about each picture, layer by layer?

    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features
    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features-random --random-init

Reads data/<name>/ and a checkpoint: a registry name or a folder in Hugging Face format. Writes, under --out,

    <point>/00000.pt ...   features [n, t, h, w, D] fp16, raster order on the picture's own grid, 64 items a shard (t = 1 for images)
    pooled.pt              for every point, mean and max over space: {point: [n, t, D]}
    index.yaml             written last: per point the module, shape, dtype, bytes, non-finite values, and `causal: false` where a time step of
                           a clip has seen later frames; seconds per item; run info

Points are named `pixels` (the token's own pixels, the floor), `patch_embed`, `vision.<i>`, `merger` (or projector), `language.<i>`, `latents`;
CogVLM2 also has `conv`, Qwen3-VL `deepstack.<i>`. The plan's own names, L1-L5 (LLaVA), I1-I5 (InternVL) and C1-C4 (CogVLM2), are understood
by `--points`; what is stored is named as above.
One forward pass stops as soon as the last point has been seen, so the head and the layers above are never computed. A shard that is
complete is never computed again: kill it at any moment and run the same command to go on.
"""
import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from common import (
    FEATURES,
    LOADERS,
    MODELS,
    OWN_LAYOUT,
    POOLED,
    SHARD,
    TINY,
    _load,
    check_writable,
    choose_device,
    find_model,
    frames_of,
    load_items,
    load_pt,
    load_yaml,
    made_up_folder,
    parser,
    refuse,
    resolved_commit,
    run_info,
    save_pt,
    save_yaml,
    say,
)

PROMPT = "Describe the picture."  # follows the picture, so in a causal model it cannot change the picture's rows
RATE = 2.0  # frames a second that a clip is said to have, the rate at which Qwen2.5-VL samples videos; left unsaid it would be 24, and all time steps share one position


# ---------------------------------------------------------------- one forward pass that stops early

class Seen(Exception):
    """Every point has been captured: nothing deeper needs to be computed."""


@torch.inference_mode()
def capture(model, inputs, modules):
    """Outputs of `modules` {point: module path} in one forward pass that ends with the last of them.

    Outputs are cloned: transformers replaces some of them in place later (get_image_features does).
    """
    seen = {}

    def hook(point):
        def keep(module, args, output):
            seen[point] = (output[0] if isinstance(output, tuple) else output).clone()
            if len(seen) == len(modules):
                raise Seen
        return keep

    handles = [model.get_submodule(path).register_forward_hook(hook(point)) for point, path in modules.items()]
    try:
        with contextlib.suppress(Seen):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == len(modules), f"points never reached: {sorted(set(modules) - set(seen))}"
    return seen


# ---------------------------------------------------------------- families: where the points are, and the way back to raster order
#
# A family is a function (model, processor) -> (inputs, points, multiple, first_frame):
#   inputs(frames uint8 [n,T,S,S,3])   what the model's forward takes
#   points {name: (module path, restore)}, in the order of execution; restore(output, inputs) -> [n, t, h, w, D] in raster order
#   multiple                           the width of one token in pixels, of which a side must be a multiple
#   first_frame(step)                  the first frame that a time step covers

def unmerge(x, grid, merge):
    """Merge-block order -> raster: [n*t*h*w, D] -> [n, t, h, w, D] for `grid` = (t, h, w) in patches."""
    t, h, w = grid
    x = x.reshape(-1, t, h // merge, w // merge, merge, merge, x.shape[-1])
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(-1, t, h, w, x.shape[-1])


def window_index(visual, grid_thw):
    """Where Qwen2.5-VL's tower puts each merge block when it sorts them into attention windows."""
    from transformers.vision_utils import get_vision_window_index
    return get_vision_window_index(grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size)[0]


def qwen2_vl(model, processor):
    """patch_embed is in merge-block order, language rows in raster order. Qwen2.5-VL's blocks and merger are in window order; those of Qwen2-VL and
    Qwen3-VL, which have no windows, in merge-block order and raster order of the merged tokens. Qwen3-VL's DeepStack mergers are like its merger."""
    visual, config = model.model.visual, model.config
    merge = visual.spatial_merge_size

    def inputs(frames):
        text = processor.apply_chat_template([{"role": "user", "content": [
            {"type": "image" if frames.shape[1] == 1 else "video"}, {"type": "text", "text": PROMPT}]}], tokenize=False, add_generation_prompt=True)
        x = frames.permute(0, 1, 4, 2, 3)
        size = {"size": {"shortest_edge": 1, "longest_edge": frames.shape[1:4].numel()}}  # frames are already at the size asked for; Qwen3-VL counts all pixels of a clip
        media = ({"images": [[f[0]] for f in x], "images_kwargs": size} if frames.shape[1] == 1 else
                 {"videos": list(x), "videos_kwargs": {"do_sample_frames": False, "cap_pixels_per_frame": False, **size},
                  "video_metadata": [{"fps": RATE, "total_num_frames": len(f), "frames_indices": list(range(len(f)))} for f in x]})
        return processor(text=[text] * len(x), return_tensors="pt", **media)

    def of(batch):
        grid_thw = batch["image_grid_thw"] if "image_grid_thw" in batch else batch["video_grid_thw"]
        assert (grid_thw == grid_thw[0]).all(), grid_thw
        return grid_thw, grid_thw[0].tolist()

    def patch_embed(x, batch):
        return unmerge(x, of(batch)[1], merge)

    def in_order(x, grid_thw):
        return x[window_index(visual, grid_thw).to(x.device).argsort()] if hasattr(visual, "window_size") else x

    def block(x, batch):
        grid_thw, grid = of(batch)
        return unmerge(in_order(x.reshape(-1, merge**2, x.shape[-1]), grid_thw).flatten(0, 1), grid, merge)

    def merger(x, batch):
        grid_thw, (t, h, w) = of(batch)
        return in_order(x, grid_thw).reshape(-1, t, h // merge, w // merge, x.shape[-1])

    def language(x, batch):
        _, (t, h, w) = of(batch)
        rows = (batch["input_ids"] == config.image_token_id) | (batch["input_ids"] == config.video_token_id)
        return x[rows.to(x.device)].reshape(len(x), t, h // merge, w // merge, x.shape[-1])

    points = {"patch_embed": ("model.visual.patch_embed", patch_embed)}
    points |= {f"vision.{i}": (f"model.visual.blocks.{i}", block) for i in range(len(visual.blocks))}
    points |= {f"deepstack.{i}": (f"model.visual.deepstack_merger_list.{i}", merger) for i in range(len(getattr(visual, "deepstack_merger_list", ())))}
    points |= {"merger": ("model.visual.merger", merger)}
    points |= {f"language.{i}": (f"model.language_model.layers.{i}", language) for i in range(len(model.model.language_model.layers))}
    return inputs, points, visual.config.patch_size * merge, lambda step: step * visual.config.temporal_patch_size


def pictures(x, batch):
    """Tokens of single pictures [n*t, side*side, D] in raster order -> [n, t, side, side, D]."""
    side = round(x.shape[1] ** 0.5)
    assert side * side == x.shape[1], x.shape
    return x.reshape(-1, batch["frames"], side, side, x.shape[-1])


def normalised(frames, mean, std):
    """uint8 [n,T,S,S,3] -> [n*T, 3, S, S], standardised per channel: for checkpoints whose image processor is code on the hub."""
    return ((frames.flatten(0, 1).float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def internvl(model, processor):
    """InternVL, and InternVL2 in the native class. A picture of the tower's own size is one tile; a clip is its frames, one by one. CLS first in the
    tower; the projector's tokens are 2 x 2 patches each, in raster order, and so are the language rows."""
    config = model.config
    side = config.vision_config.image_size[0]
    rows = round((side // config.vision_config.patch_size[0] * config.downsample_ratio) ** 2)
    # Only words before the picture can change its rows; InternVL2's tokenizer is code on the hub, so there BOS is all of them.
    before, behind = around_picture(processor, processor.image_token) if processor else ([config.text_config.bos_token_id], [])
    before += [processor.start_image_token_id] if processor else []

    def inputs(frames):
        one_size(frames, side)
        ids = torch.tensor([*before, *[config.image_token_id] * rows, *behind]).expand(frames.shape[0] * frames.shape[1], -1)
        pixels = normalised(frames, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "frames": frames.shape[1]}

    def without_first(x, batch):
        return pictures(x[:, 1:], batch)

    def language(x, batch):
        return pictures(x[:, len(before):len(before) + rows], batch)

    points = {"patch_embed": ("model.vision_tower.embeddings.patch_embeddings", pictures)}
    points |= {f"vision.{i}": (f"model.vision_tower.encoder.layer.{i}", without_first) for i in range(config.vision_config.num_hidden_layers)}
    points |= {"merger": ("model.multi_modal_projector", pictures)}
    points |= {f"language.{i}": (f"model.language_model.layers.{i}", language) for i in range(config.text_config.num_hidden_layers)}
    return inputs, points, side, lambda step: step


def one_size(frames, side):
    """Refuse frames that are not of the one size for which a tower has learned positions."""
    if frames.shape[2] != side:
        refuse(f"{frames.shape[2]} px: this model has learned positions for {side} px alone; give --size {side}")


def around_picture(processor, place):
    """Token ids of the chat prompt before and behind the picture's placeholder."""
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}], tokenize=False, add_generation_prompt=True)
    before, found, behind = text.partition(place)
    assert found, (place, text)
    return processor.tokenizer(before).input_ids, processor.tokenizer(behind, add_special_tokens=False).input_ids


def llava(model, processor):
    """LLaVA (Interleave), LLaVA-NeXT and LLaVA-OneVision; a clip is its frames, one by one. A picture of the tower's own side S is read in one piece.
    At 2S or 3S, NeXT and OneVision cut it into tiles (AnyRes, Liu et al. 2024) and their grid is the mosaic: in the language model it stands behind
    the small whole picture, a newline token after every row."""
    config = model.config
    side, tiled = config.vision_config.image_size, config.model_type != "llava"
    p = side // config.vision_config.patch_size
    before, behind = around_picture(processor, processor.image_token)

    def inputs(frames):
        k = frames.shape[2] // side
        if k > (3 if tiled else 1):
            refuse(f"{frames.shape[2]} px are {k} x {k} tiles of {side} px, and {config.model_type} takes {'3 x 3' if tiled else 'one'} at most; give --size {side}")
        pixels, rows = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std), p * p
        more = {}
        if tiled:
            config.image_grid_pinpoints = [[k * side, k * side]]  # no padding, and at S no tiles but the picture once more
            whole = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            tiles = pixels.unflatten(3, (k, side)).unflatten(2, (k, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
            pixels, more = torch.cat([whole[:, None], tiles], 1), {"image_sizes": torch.tensor([[k * side, k * side]] * len(pixels))}
            rows += k * p * (k * p + 1)
        ids = torch.tensor([*before, *[config.image_token_id] * rows, *behind]).expand(len(pixels), -1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "frames": frames.shape[1], "tiles": k, **more}

    def patches(x, batch):
        k, x = batch["tiles"], x[:, -p * p:]  # CLIP has a class token, SigLIP none
        if tiled:
            x = x.unflatten(0, (-1, 1 + k * k))[:, -k * k:].flatten(0, 1)  # at S the one tile is the picture itself
        return pictures(x.reshape(-1, k, k, p, p, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).flatten(1, 4), batch)

    def language(x, batch):
        k, x = batch["tiles"], x[:, len(before):]
        if k > 1:
            x = x[:, p * p:p * p + k * p * (k * p + 1)].unflatten(1, (k * p, k * p + 1))[:, :, :-1].flatten(1, 2)
        return pictures(x[:, :k * p * k * p], batch)

    points = {"patch_embed": ("model.vision_tower.embeddings", patches)}
    points |= {f"vision.{i}": (f"model.vision_tower.encoder.layers.{i}", patches) for i in range(config.vision_config.num_hidden_layers)}
    points |= {"merger": ("model.multi_modal_projector", patches)}
    points |= {f"language.{i}": (f"model.language_model.layers.{i}", language) for i in range(config.text_config.num_hidden_layers)}
    return inputs, points, side, lambda step: step


def cogvlm2(model, processor):
    """CLS first in the tower; 2 x 2 patches to a token by the connector's convolution; in the language model BOS, boi, the tokens, eoi, words."""
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD
    vision = model.config.vision_config
    text = processor(f"Question: {PROMPT} Answer:", add_special_tokens=False).input_ids

    def inputs(frames):
        one_size(frames, vision.image_size)
        return model.inputs(normalised(frames, IMAGE_MEAN, IMAGE_STD), text) | {"frames": frames.shape[1]}

    rows = (vision.image_size // vision.patch_size) ** 2 // 4
    points = {"patch_embed": ("model.vision.patch_embedding", lambda x, batch: pictures(x[:, 1:], batch))}
    points |= {f"vision.{i}": (f"model.vision.transformer.layers.{i}", lambda x, batch: pictures(x[:, 1:], batch)) for i in range(vision.num_hidden_layers)}
    points |= {"conv": ("model.vision.conv", lambda x, batch: pictures(x.flatten(2).transpose(1, 2), batch)), "merger": ("model.vision.linear_proj", pictures)}
    points |= {f"language.{i}": (f"model.layers.{i}", lambda x, batch: pictures(x[:, 2:2 + rows], batch)) for i in range(model.config.num_hidden_layers)}
    return inputs, points, vision.image_size, lambda step: step


def tower(prefix, layers, first=0, any_size=False, words=False):
    """The family of an image encoder: `first` tokens (CLS, registers) and then patches in raster order; a clip is its frames, one by one.

    any_size: positions are interpolated or rotary, else learned for one size. words: the model also has a text side that wants input.
    """
    def family(model, processor):
        config = getattr(model.config, "vision_config", model.config)
        patch, skip = config.patch_size, first + getattr(config, "num_register_tokens", 0)

        def inputs(frames):
            if not any_size:
                one_size(frames, config.image_size)
            pixels = processor(list(frames.flatten(0, 1).permute(0, 3, 1, 2)), do_resize=False, do_center_crop=False, return_tensors="pt")
            text = {"input_ids": torch.zeros(len(pixels["pixel_values"]), 2, dtype=torch.long)} if words else {}
            return pixels | text | {"frames": frames.shape[1]}

        def grid(x, batch):
            h, w = (s // patch for s in batch["pixel_values"].shape[-2:])
            return x[:, skip:].reshape(-1, batch["frames"], h, w, x.shape[-1])

        points = {"patch_embed": (f"{prefix}embeddings", grid)}
        points |= {f"vision.{i}": (f"{prefix}{layers}.{i}", grid) for i in range(len(model.get_submodule(f"{prefix}{layers}")))}
        return inputs, points, patch if any_size else config.image_size, lambda step: step
    return family


def vjepa2(model, processor):
    """Pairs of frames to a time step, in raster order, time first; a still picture is shown twice. Every token sees the whole clip, the future too."""
    patch, pair = model.config.patch_size, model.config.tubelet_size

    def inputs(frames):
        one_size(frames, model.config.crop_size)
        frames = frames.expand(-1, pair, -1, -1, -1) if frames.shape[1] == 1 else frames[:, :frames.shape[1] // pair * pair]
        pixels = normalised(frames, processor.image_mean, processor.image_std).unflatten(0, frames.shape[:2])
        return {"pixel_values_videos": pixels, "skip_predictor": True}

    def grid(x, batch):
        _, t, _, h, w = batch["pixel_values_videos"].shape
        return x.reshape(len(x), t // pair, h // patch, w // patch, x.shape[-1])

    points = {"patch_embed": ("encoder.embeddings", grid)}
    points |= {f"vision.{i}": (f"encoder.layer.{i}", grid) for i in range(len(model.encoder.layer))}
    return inputs, points, model.config.crop_size, lambda step: pair * step


def ltx_vae(model, processor):
    """Normalised latents, the space that LTX-Video's transformer works in: (mode - latents_mean) / latents_std, per channel."""
    def inputs(frames):
        step, side = model.temporal_compression_ratio, model.spatial_compression_ratio
        if (frames.shape[1] - 1) % step or frames.shape[2] % side or frames.shape[3] % side:
            refuse(f"{frames.shape[1]} frames of {frames.shape[2]} px: this autoencoder takes {step}k+1 frames and sides that are multiples of {side}; others it drops silently")
        return {"sample": frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1}

    def latents(x, batch):
        return (x.permute(0, 2, 3, 4, 1) - model.latents_mean) / model.latents_std

    return inputs, {"latents": ("encoder", latents)}, model.spatial_compression_ratio, lambda step: 0 if step == 0 else 1 + (step - 1) * model.temporal_compression_ratio


# model type in config.json -> family. A new one is a function above and a line here.
FAMILIES = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_vl, "qwen3_vl": qwen2_vl, "llava": llava, "llava_next": llava, "llava_onevision": llava,
            "internvl": internvl, "cogvlm2": cogvlm2, "vjepa2": vjepa2, "ltx_vae": ltx_vae,
            "dinov2": tower("", "encoder.layer", first=1, any_size=True), "dinov3_vit": tower("", "model.layer", first=1, any_size=True),
            "siglip": tower("vision_model.", "encoder.layers", words=True), "owlvit": tower("vision_model.", "encoder.layers", first=1, words=True),
            "owlv2": tower("vision_model.", "encoder.layers", first=1, words=True)}


NON_CAUSAL = {"vjepa2": "vision."}  # model type -> points whose time steps see later frames too; LTX-Video's autoencoder says by its config


def sees_later_frames(model, point):
    """Whether a time step of `point` depends on frames that come after it: such features may not stand for what was known at that time."""
    kind = getattr(model.config, "model_type", "ltx_vae")
    return not model.config.encoder_causal if kind == "ltx_vae" else point.startswith(NON_CAUSAL.get(kind, "none"))


# The plan's names of points: letter -> (the families that have it, what 1, 2, ... are). `last` is the tower's last layer that the projector reads.
FIVE = ("patch_embed", "vision.middle", "vision.last", "merger", "language.middle")
ALIASES = {"L": (("llava", "llava_next", "llava_onevision"), FIVE), "I": (("internvl", "internvl_chat"), FIVE),
           "C": (("cogvlm2",), ("patch_embed", "vision.last", "merger", "language.middle"))}


def depths(entry):
    """(layers of the tower, the last of them that the projector reads, layers of the language model): of the registry, or of a folder's config.json."""
    if "vision" in entry:
        tower, language, read = entry["vision"][0], entry["language"][0], entry.get("read", -1)
    elif entry["type"] in OWN_LAYOUT:
        config = json.loads(Path(entry["path"], "config.json").read_text())
        tower, language, read = config["vision_config"]["num_hidden_layers"], config.get("llm_config", config)["num_hidden_layers"], config.get("select_layer", -1)
    else:
        from transformers import AutoConfig  # a folder's config.json may leave out what is the library's default
        config = _load(lambda: AutoConfig.from_pretrained(entry["path"]), entry)
        tower, language, read = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers, config.vision_feature_layer
    read = read[-1] if isinstance(read, list) else read
    return tower, read + tower if read < 0 else read - 1, language


def own_names(names, entry):
    """`--points` with the plan's names (L3, c2, ...) replaced by the model's own, before it is loaded; other names stay as they are."""
    def own(name):
        letter, number = name[:1].upper(), name[1:]
        if letter not in ALIASES or not number.isdigit():
            return name
        types, meant = ALIASES[letter]
        if entry.get("type") not in types:
            refuse(f"{name} is a point of {', '.join(types)}, and {entry['name']} is of type {entry.get('type')}; give its own names, or --points all")
        if not 1 <= int(number) <= len(meant):
            refuse(f"{name} is no point: {', '.join(types)} have {letter}1 to {letter}{len(meant)}")
        stack, _, place = meant[int(number) - 1].partition(".")
        if not place:
            return stack
        tower, last, language = depths(entry)
        return f"{stack}.{last if place == 'last' else at_depth(tower if stack == 'vision' else language, 0.5)}"
    return ",".join(own(name) for name in names.split(","))


def family_of(model):
    return FAMILIES[getattr(model.config, "model_type", "ltx_vae")]


# ---------------------------------------------------------------- the stage

def at_depth(layers, part):
    """The layer (0-based) after which `part` of a stack has been computed."""
    return round(layers * part) - 1


def quarters(points):
    """Every point of a small model; of a deep one the embedding, the merger and four depths of each stack."""
    chosen = []
    for stack in ("vision", "language"):
        names = [p for p in points if p.startswith(f"{stack}.")]
        chosen += names if len(names) <= 8 else [names[at_depth(len(names), q / 4)] for q in (1, 2, 3, 4)]
    return [p for p in points if p in chosen or "." not in p]


def pixel_grid(frames, grid, first_frame):
    """Raw pixels on the model's own coarsest grid: [n,T,S,S,3] -> [n, t, h, w, p*p*3] in [0, 1]; the first frame of each time step."""
    t, h, w = grid
    x = frames[:, [first_frame(k) for k in range(t)]].float() / 255
    n, p, q = len(x), x.shape[2] // h, x.shape[3] // w
    return x[:, :, :h * p, :w * q].reshape(n, t, h, p, w, q, 3).permute(0, 1, 2, 4, 3, 5, 6).reshape(n, t, h, w, -1)


def extract(run_model, first_frame, items, size, batch, device):
    """Features of some items, micro-batch by micro-batch: ({point: [n,t,h,w,D] fp32 on the CPU}, seconds of each forward pass)."""
    parts, seconds = [], []
    for i in range(0, len(items), batch):
        frames = torch.stack([frames_of(item, size) for item in items[i:i + batch]])
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        features = run_model(frames)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - started) / len(frames))
        smallest = min(features.values(), key=lambda x: x.shape[1:4].numel())
        parts.append({"pixels": pixel_grid(frames, smallest.shape[1:4], first_frame)} | {p: x.float().cpu() for p, x in features.items()})
    return {p: torch.cat([part[p] for part in parts]) for p in parts[0]}, seconds


def fingerprint(path):
    """What tells one checkpoint from another of the same name: the hub's name, or config and sizes of a local folder's files."""
    if not Path(path).is_dir():
        return path
    files = sorted(f for f in Path(path).iterdir() if f.suffix in (".json", ".safetensors"))
    return hashlib.sha256(b"".join(f.read_bytes() if f.suffix == ".json" else f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}".encode() for f in files)).hexdigest()[:16]


def share(shard):
    """(i, n): this process takes shards i, i+n, ...: from --shard i/n, or from torchrun's environment."""
    if not shard:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    i, _, n = shard.partition("/")
    if not (i.isdigit() and n.isdigit() and int(i) < int(n)):
        refuse(f"--shard {shard!r} is not i/n with 0 <= i < n; the first of four is 0/4")
    return int(i), int(n)


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--model", default="tiny", help="a registry name or a folder in Hugging Face format (default: %(default)s)")
    p.add_argument("--data", default="data/shapes", help="a folder that data.py wrote (default: %(default)s)")
    p.add_argument("--out", help="default: results/<model>/<data>/features")
    p.add_argument("--points", default="quarters", help="points with commas between, all, or quarters: four depths of each stack; "
                   "the plan's L1-L5, I1-I5, C1-C4 are understood (default: %(default)s)")
    p.add_argument("--size", type=int, help="side in pixels that frames are squashed to (default: the registry's for the model, images and clips apart)")
    p.add_argument("--batch", type=int, default=8, help="micro-batch (default: %(default)s)")
    p.add_argument("--random-init", action="store_true", help="the same architecture with untrained weights: a floor")
    p.add_argument("--revision", help="of a hub repository: a branch, tag or commit (default: its newest); the commit found is recorded")
    p.add_argument("--shard", help="i/n: only every n-th shard, starting with the i-th (0-based), for cluster arrays")
    p.add_argument("--list", action="store_true", help="print the registry and stop")
    return p.parse_args(argv)


BESIDES = {"cogvlm2": "conv", "qwen3_vl": "deepstack.0-2"}  # points between tower and merger that a family has and others have not


def described(entry):
    """A row of --list from an entry of the registry alone; what it does not state is "-".

    tokens and bytes of one image (of the registry's size) at one point of the tower / at the merger or one point of the language model, in fp16.
    GB of GPU memory with weights of 2 bytes: whole = 2 (all - head); streamed = 2 (outside the layer stacks + 2 of the largest layer) + a margin for
    activations of one image = 1 + 32 x the tokens x width of the wider stack (16 rows as wide as the stream, of 2 bytes: q, k, v, the gated MLP, residuals).
    """
    row = {"repository": entry["path"], "revision": "local" if entry["path"].startswith(TINY) else entry.get("revision") or "newest", "params_B": "-", "licence": entry.get("licence", "-"),
           "points": "-", "px": entry["size"], "tokens": "-", "kB": "-", "GB_whole": "-", "GB_streamed": "-"}
    if "vision" not in entry:
        return row
    layers, patch, width = entry["vision"]
    stacks = [((entry["size"] // patch) ** 2, width)]
    points = ["patch_embed", f"vision.0-{layers - 1}"] if layers else ["latents"]
    points += [BESIDES[entry["type"]]] if entry["type"] in BESIDES else []
    if entry["language"]:
        layers, merge, width = entry["language"]
        stacks.append(((entry["size"] // patch // merge) ** 2, width))
        points += ["merger", f"language.0-{layers - 1}"]
    streamed = 2 * (entry["outside"] + 2 * entry["layer"]) + 1 + 32e-9 * max(n * width for n, width in stacks)
    return row | {"params_B": f"{entry['params']:.3g}", "points": " ".join(points), "tokens": "/".join(str(n) for n, _ in stacks), "kB": "/".join(f"{2 * n * width / 1000:.0f}" for n, width in stacks),
                  "GB_whole": f"{2 * (entry['params'] - entry['head']):.3g}", "GB_streamed": f"{streamed:.1f}" if entry["layer"] else "-"}


def aligned(rows):
    """Lines of dicts with the same keys, the columns aligned under the keys."""
    rows = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(f"{x!s:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def smoke_input(args, folder):
    """A made-up data folder and a random small Dinov2 checkpoint, for --smoke."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    from common import write_items
    g = torch.Generator().manual_seed(args.seed)
    write_items(folder / "data", [{"id": f"noise-{i}", "source": f"noise-{i}", "width": 28, "height": 28,
                                   "frames": torch.randint(0, 256, (1, 28, 28, 3), generator=g, dtype=torch.uint8)} for i in range(6)], {"data": "synthetic", "name": "noise"})
    Dinov2Model(Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)).save_pretrained(folder / "model")
    BitImageProcessor().save_pretrained(folder / "model")
    args.model, args.data, args.size, args.out = str(folder / "model"), str(folder / "data"), 28, args.out or str(folder / "features")


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.list:
        print(*aligned([{"name": name} | described(entry) for name, entry in MODELS.items()]), sep="\n")
        print("tokens and kB (fp16) of one image at one point: in the tower / at the merger and in the language model; GB of GPU memory with weights of 2 bytes")
        return MODELS
    if args.smoke:
        smoke_input(args, made_up_folder())
    entry = find_model(args.model) | {"revision": args.revision}
    if args.revision and Path(entry["path"]).is_dir():
        refuse(f"--revision {args.revision} goes with a repository on the hub, and {entry['path']} is a folder; leave it out")
    args.points = own_names(args.points, entry)
    items, data = load_items(args.data)
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/features")
    check_writable(out / "index.yaml")
    if args.batch < 1:
        refuse(f"--batch {args.batch} is not positive; give 1 or more")
    clip = "frames" in items[0] and len(items[0]["frames"]) > 1
    size = args.size or entry["clip" if clip else "size"]
    seed = args.seed if args.random_init else None
    device, dtype, why = choose_device()
    plan = {"model": entry["name"], "checkpoint": fingerprint(entry["path"]), "revision": args.revision,
            "weights": "random" if args.random_init else entry["weights"], "size": size, "batch": args.batch,
            "points": args.points, "random_seed": seed, "dtype": str(dtype),
            "items": hashlib.sha256("\n".join([*data["ids"], str(items[0]["width"]), str(data.get("seed"))]).encode()).hexdigest()[:16]}
    if (out / "plan.yaml").exists() and (before := load_yaml(out / "plan.yaml")) != plan:
        what = next(k for k in plan if before.get(k) != plan[k])
        refuse(f"{out} holds features made with {what} {before.get(what)!r}, not {plan[what]!r}; delete the folder or give another --out")
    shards = -(-len(items) // SHARD)
    rank, ranks = share(args.shard)
    todo = [s for s in range(rank, shards, ranks) if not (out / "pooled" / f"{s:05d}.pt").exists()]
    modules = load_yaml(out / "modules.yaml") if (out / "modules.yaml").exists() else {}
    if todo or not modules:
        print(f"device {device.type} ({why})")
        model, processor = LOADERS[entry["kind"]](entry, device, dtype, seed)
        inputs_of, points, multiple, first_frame = family_of(model)(model, processor)
        if size % multiple:
            refuse(f"--size {size} is not a multiple of {multiple}, the width of one token of {args.model}; give {max(size // multiple, 1) * multiple}")
        names = list(points) if args.points == "all" else quarters(points) if args.points == "quarters" else args.points.split(",")
        if unknown := [n for n in names if n not in points]:
            refuse(f"{args.model} has no point {unknown[0]!r}; its points are {', '.join(points)}")
        modules = {n: points[n][0] for n in points if n in names}

        def run_model(frames):
            batch = inputs_of(frames)  # refuses frames that the model cannot take, before anything is written
            if not (out / "plan.yaml").exists():
                save_yaml(out / "modules.yaml", modules)
                save_yaml(out / "plan.yaml", plan)
            given = {k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v for k, v in batch.items() if type(v) is not int}
            if entry["kind"] == "vae":
                with torch.inference_mode():
                    seen = {"latents": model.encode(given["sample"]).latent_dist.mode()}
            else:
                seen = capture(model, given, modules)
            return {n: points[n][1](seen[n], batch) for n in modules}

        for s in tqdm(todo, desc=f"{entry['name']} {Path(args.data).name}", unit="shard"):
            part = items[s * SHARD:(s + 1) * SHARD]
            ids = [i["id"] for i in part]
            features, seconds = extract(run_model, first_frame, part, size, args.batch, device)
            for point, x in features.items():
                save_pt(out / point / f"{s:05d}.pt", FEATURES, ids, {"point": point}, features=x.half())
            pooled = {p: {"mean": x.mean((2, 3)), "max": x.amax((2, 3)), "shape": list(x.shape[1:]), "nonfinite": int((~x.half().isfinite()).sum())} for p, x in features.items()}
            later = [p for p in modules if sees_later_frames(model, p)]
            save_pt(out / "pooled" / f"{s:05d}.pt", POOLED, ids, {"seconds": seconds, "non_causal": later}, pooled=pooled)  # written last: this shard is complete

    if ranks > 1 and not args.shard:
        torch.distributed.init_process_group("gloo")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        if rank:
            return {}
    if missing := [s for s in range(shards) if not (out / "pooled" / f"{s:05d}.pt").exists()]:
        print(f"shards_missing {len(missing)} of {shards}: run the other --shard parts, then any of them again")
        return {"shards_missing": len(missing)}

    parts = [load_pt(out / "pooled" / f"{s:05d}.pt", POOLED) for s in range(shards)]
    names = list(parts[0]["pooled"])
    pooled = {p: {k: torch.cat([part["pooled"][p][k] for part in parts]) for k in ("mean", "max")} for p in names}
    save_pt(out / "pooled.pt", POOLED, data["ids"], {"model": entry["name"]}, pooled=pooled)
    table = {p: {"module": modules.get(p, "the frames themselves"), "shape": parts[0]["pooled"][p]["shape"], "dtype": "float16",
                 "bytes": sum(f.stat().st_size for f in (out / p).glob("*.pt")), "nonfinite": sum(part["pooled"][p]["nonfinite"] for part in parts)} for p in names}
    for p in parts[0]["meta"].get("non_causal", ()):
        table[p]["causal"] = False
    seconds = sorted(s for part in parts for s in part["meta"]["seconds"])
    result = {"stage": "extract", "schema": FEATURES, "model": entry["name"], "kind": entry["kind"], "weights": plan["weights"], "data": data["data"],
              "items": len(items), "size": size, "seconds_per_item": seconds[len(seconds) // 2], "bytes": sum(t["bytes"] for t in table.values()),
              "nonfinite": sum(t["nonfinite"] for t in table.values()), "data_path": str(args.data), "shards": shards, "points": table, "ids": data["ids"],
              "run": run_info(args, started, device=f"{device.type} ({why})", dtype=str(dtype), micro_batch=args.batch,
                              model_revision=resolved_commit(entry), script="extract.py")}
    save_yaml(out / "index.yaml", result)
    say(result)
    return result


if __name__ == "__main__":
    main()
