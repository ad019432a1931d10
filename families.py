"""Model families: module paths of the layers, order of the tokens, preprocessing of images.

`general` finds the points of any vision-language model or image encoder of transformers by common attributes
and takes tokens in row order. The tables say what is different in which model type.
"""

import contextlib
import inspect
import json
import math
from pathlib import Path

import torch
from torch import nn

from common import fail
from models import OWN_LAYOUT, attempt, chat, qwen_inputs

# follows the image, so in a causal model it cannot change the image's rows
PROMPT = "Describe the picture."
# Florence-2's processor expands <CAPTION> to this; in its encoder the image's rows attend to these words
CAPTION = "What does the image describe?"
# Grounding DINO's text: its encoder mixes text and image, so the text influences the features
OBJECT = "an object."

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
LLAVA = ("llava", "llava_next", "llava_onevision", "llava_next_video")
TILED = ("llava_next", "llava_onevision", "llava_next_video")
# patches in merge-block order: their processors cut an image as Qwen2-VL's does
BLOCKS = (*QWEN, "glm4v", "glm4v_moe", "glm46v")
# any side in whole tokens: positions are rotary or interpolated; other towers have positions for one size
ANY_SIZE = (
    *BLOCKS,
    "pixtral",
    "mistral3",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "florence2",
    "detr",
)
# model types whose order of tokens tests/test_families.py proves; that of others is proved by check.py
PROVED = (*BLOCKS, *LLAVA, "internvl", "cogvlm2", "kosmos-2", "florence2", "grounding-dino", "vjepa2")
PROVED += ("ltx_vae", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "owlvit", "owlv2")


# ---------------------------------------------------------------- what a family is

# A family is a function (model, processor) -> (inputs, points, multiple, first_frame):
#   inputs(frames uint8 [n,T,S,S,3])   arguments of the model's forward, with notes (plain numbers and tuples)
#   points {name: (module path, restore)}, in the order of execution;
#          restore(output, inputs) -> [n, t, h, w, D] in raster order;
#          (module path, restore, NO_GRID) where tokens have no place in the image: [n, t, 1, K, D]
#   multiple                           a token's width in pixels; a side must be a multiple of it
#   first_frame(step)                  the first frame that a time step covers
# Notes: steps, time steps of an item; images, all of them in the batch; grid, an image's (rows, columns) of
# patches; frames, sequences of an item, where the frames of a clip are single images.

NO_GRID = "no grid"


def without_grid(points):
    """The points whose tokens have no place in the image."""
    return {name for name, point in points.items() if NO_GRID in point}


def stack(name, path, layers, *restore):
    """The points <name>.0, <name>.1, ... of a stack of layers."""
    return {f"{name}.{i}": (f"{path}.{i}", *restore) for i in range(layers)}


def type_of(model):
    return getattr(model.config, "model_type", "ltx_vae")


def vision_of(config):
    """The part of a configuration that describes the vision tower."""
    return getattr(config, "vision_config", None) or getattr(config, "backbone_config", None) or config


def one_number(value):
    """n of n, of [n, n] or of a tower's stages (n, ...); None of None."""
    return value[0] if isinstance(value, list | tuple) else value


# ---------------------------------------------------------------- raster order


def fit(tokens, grid):
    """(first, h, w): after `first` class and register tokens, h x w tokens in the proportions of `grid`;
    (0, 1, tokens) where none fit."""
    rows, columns = grid
    if tokens >= rows * columns:
        return tokens - rows * columns, rows, columns
    common = math.gcd(rows, columns)
    rows, columns = rows // common, columns // common
    for first in range(9):
        k = math.isqrt((tokens - first) // (rows * columns)) if tokens > first else 0
        if k and rows * columns * k * k == tokens - first:
            return first, rows * k, columns * k
    return 0, 1, tokens


def raster(x, batch):
    """Tokens of images in row order, or feature maps -> [n, t, h, w, D]."""
    if x.ndim == 4:
        channels_last = x.shape[1] == x.shape[2] != x.shape[3]
        x = x if channels_last else x.permute(0, 2, 3, 1)
        return x.unflatten(0, (-1, batch["steps"]))
    x = x.reshape(batch["images"], -1, x.shape[-1])
    first, h, w = fit(x.shape[1], batch["grid"])
    return x[:, first:].reshape(-1, batch["steps"], h, w, x.shape[-1])


def flat(x, batch):
    """Tokens without a place in the image -> [n, t, 1, K, D]."""
    return x.reshape(batch["images"], -1, x.shape[-1]).unflatten(0, (-1, batch["steps"]))[:, :, None]


def unmerge(x, grid, merge):
    """Merge-block order -> raster: [images*h*w, D] -> [images, h*w, D] for `grid` = (h, w) in patches."""
    h, w = grid
    x = x.reshape(-1, h // merge, w // merge, merge, merge, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)


def window_index(visual, grid_thw):
    """Positions of the merge blocks after Qwen2.5-VL's tower has sorted them into attention windows."""
    from transformers.vision_utils import get_vision_window_index

    sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
    return get_vision_window_index(grid_thw, *sizes)[0]


def blocks_in_order(model):
    """{stack: restore} of towers in merge-block order. Qwen2.5-VL's blocks and merger are in windows besides.
    Without windows, the merger and DeepStack mergers are in row order; language rows always are."""
    visual = model.model.visual
    merge = visual.spatial_merge_size

    def in_order(x, batch):
        if not hasattr(visual, "window_size"):
            return x
        grid_thw = batch["image_grid_thw"] if "image_grid_thw" in batch else batch["video_grid_thw"]
        return x[window_index(visual, grid_thw).to(x.device).argsort()]

    def patches(x, batch):
        return raster(unmerge(x, batch["grid"], merge), batch)

    def block(x, batch):
        return patches(in_order(x.reshape(-1, merge**2, x.shape[-1]), batch), batch)

    def merger(x, batch):
        return raster(in_order(x, batch), batch)

    return {"patch_embed": patches, "vision": block, "merger": merger}


def tiles_in_order(model):
    """{stack: restore} of LLaVA-NeXT and -OneVision: at k times the tower's side, the language model reads the
    small whole image, then the mosaic of k x k tiles with a newline token after every row. The grid is the mosaic."""

    def tower(x, batch):
        k, p = batch["tiles"], batch["grid"][0] // batch["tiles"]
        x = x[:, -p * p :]  # CLIP has a class token, SigLIP none
        if k > 1:
            x = x.unflatten(0, (-1, 1 + k * k))[:, 1:].reshape(-1, k, k, p, p, x.shape[-1])
            x = x.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return raster(x, batch)

    def language(x, batch):
        k, side = batch["tiles"], batch["grid"][0]
        x = x[image_rows(model, batch).to(x.device)].reshape(batch["images"], -1, x.shape[-1])
        if k > 1:
            x = x[:, (side // k) ** 2 :].unflatten(1, (side, side + 1))[:, :, :-1].flatten(1, 2)
        return raster(x[:, : side * side], batch)

    return {"patch_embed": tower, "vision": tower, "merger": tower, "language": language}


def restores(model):
    """{stack: restore} of a model: row order, unless its type says otherwise."""

    def language(x, batch):
        x = x[image_rows(model, batch).to(x.device)].reshape(batch["images"], -1, x.shape[-1])
        if kind == "cogvlm2":  # boi and eoi
            x = x[:, 1:-1]
        return flat(x, batch) if kind == "kosmos-2" else raster(x, batch)

    kind, found = type_of(model), {"language": language}
    if kind in BLOCKS:
        return found | blocks_in_order(model)
    return tiles_in_order(model) if kind in TILED else found


# ---------------------------------------------------------------- points, by common attributes

TOWERS = ("vision_tower", "visual", "vision_model", "image_tower", "vision_encoder", "vision", "backbone")
PROJECTORS = ("multi_modal_projector", "connector", "merger", "aligner", "linear_proj")
PROJECTORS += ("image_to_text_projection", "visual_embeddings_table")
LANGUAGE = ("language_model", "text_model")
# model type -> paths that the common attributes do not tell; new points stand before the projector
PATHS = {
    "internvl": {"patch_embed": "model.vision_tower.embeddings.patch_embeddings"},
    "cogvlm2": {"conv": "model.vision.conv"},
    "florence2": {"language": "model.language_model.encoder"},
    **dict.fromkeys(("owlvit", "owlv2"), {"class_head": "class_head.dense0", "box_head": "box_head"}),
}


def named(model, names):
    """Path of the module nearest to the root that has one of the names, or ""."""
    paths = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in names]
    return min(paths, key=lambda path: path.count("."), default="")


def below(path, root):
    return not root or path == root or path.startswith(f"{root}.")


def weights_in(module):
    return sum(p.numel() for p in module.parameters())


def layers_in(model, root, apart=None, stages=False):
    """Paths of the layers of the longest stack below `root`, and not below `apart`; stages: those in its stages."""
    lists = {}
    for path, module in model.named_modules():
        within = any(below(path, outer) for outer in lists)
        if isinstance(module, nn.ModuleList) and not within and below(path, root):
            if apart is None or not below(path, apart):
                lists[path] = module
    if not lists:
        return []
    path = max(lists, key=lambda path: (len(lists[path]), weights_in(lists[path])))
    found = []
    for i, layer in enumerate(lists[path]):
        inner = [name for name, module in layer.named_modules() if isinstance(module, nn.ModuleList)]
        inner = [n for n in inner if stages and 2 * weights_in(layer.get_submodule(n)) > weights_in(layer)]
        if inner:
            where = f"{path}.{i}.{inner[0]}".rstrip(".")
            found += [f"{where}.{k}" for k in range(len(layer.get_submodule(inner[0])))]
        else:
            found.append(f"{path}.{i}")
    return found


def embedding_in(model, tower, layer):
    """Path of the outermost module of a tower with its first convolution and without its layers, or ""."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and below(path, tower):
            parts = path.split(".")
            for k in range(tower.count(".") + 1 if tower else 0, len(parts) + 1):
                outer = ".".join(parts[:k])
                if (
                    outer
                    and not below(layer, outer)
                    and not isinstance(model.get_submodule(outer), nn.ModuleList)
                ):
                    return outer
    return ""


def paths_of(model):
    """{point: module path} of a model, in the order of execution."""
    known, tower = PATHS.get(type_of(model), {}), named(model, TOWERS)
    vision = layers_in(model, tower, stages=True)
    found = {"patch_embed": known.get("patch_embed") or embedding_in(model, tower, vision[0])}
    found |= {f"vision.{i}": path for i, path in enumerate(vision)}
    mergers = [
        path for path, _ in model.named_modules() if path.rpartition(".")[0].endswith("deepstack_merger_list")
    ]
    found |= {f"deepstack.{i}": path for i, path in enumerate(mergers)}
    found |= {name: path for name, path in known.items() if name not in ("patch_embed", "language")}
    if tower.endswith("backbone"):
        found |= {f"encoder.{i}": path for i, path in enumerate(layers_in(model, named(model, ("encoder",))))}
    if hasattr(model, "generate"):
        found["merger"] = named(model, PROJECTORS)
        text = known.get("language") or named(model, LANGUAGE)
        found |= {f"language.{i}": path for i, path in enumerate(layers_in(model, text, apart=tower))}
    return {name: path for name, path in found.items() if path}


# ---------------------------------------------------------------- inputs


def one_size(frames, side):
    """Exit 2 for frames of another size than the tower's learned positions."""
    if frames.shape[2] != side:
        fail(f"this model takes {side} px only, not {frames.shape[2]} px; give --size {side}")


@contextlib.contextmanager
def taken(model, side):
    """Exit 2 where a model of a type that no test knows does not take single images of `side` pixels."""
    try:
        yield
    except Exception as e:
        if type_of(model) in PROVED:
            raise
        what = (str(e).splitlines() or [""])[0][:200].rstrip(". ") or type(e).__name__
        fail(
            f"a {type_of(model)} model does not take single images of {side} px: {what}; give another --size"
        )


def noted(given, frames, patch, **more):
    """Arguments of forward with notes, for frames [n,T,H,W,3] as single images."""
    grid = frames.shape[2] // patch, frames.shape[3] // patch
    count = frames.shape[1]
    return {**given, "frames": count, "steps": count, "images": len(frames) * count, "grid": grid, **more}


def normalised(frames, mean, std):
    """uint8 [n,T,S,S,3] -> [n*T, 3, S, S], standardised per channel."""
    return ((frames.flatten(0, 1).float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def with_words(pixels, ids, **more):
    """Arguments of forward for images [n*T, ...], each with the same token ids."""
    ids = torch.tensor(ids).expand(len(pixels), -1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels} | more


# an image is one tile of its final size: what an image processor would change, where it knows the word
AS_IT_IS = dict.fromkeys(("do_resize", "do_center_crop", "crop_to_patches", "do_image_splitting"), False)
AS_IT_IS |= {"do_pan_and_scan": False}


def as_it_is(image_processor):
    known = getattr(image_processor, "valid_kwargs", None)
    known = known.__annotations__ if known else AS_IT_IS
    return {name: value for name, value in AS_IT_IS.items() if name in known}


def text_of(model, processor):
    """The prompt of a single image, by the model's chat template if its type has one."""
    if type_of(model) == "kosmos-2":
        return PROMPT
    return processor.image_token + PROMPT if type_of(model) == "paligemma" else chat(processor, PROMPT)


def processed(model, processor, frames):
    """Inputs by the model's own processor; the frames of a clip are single images."""
    from PIL import Image  # the one format that every processor takes

    images = [Image.fromarray(frame.numpy()) for frame in frames.flatten(0, 1)]
    if not hasattr(model, "generate"):
        given = dict(processor(images, return_tensors="pt", **as_it_is(processor)))
        if "input_ids" in inspect.signature(model.forward).parameters:  # a tower of text besides
            given["input_ids"] = torch.zeros(len(images), 2, dtype=torch.long)
        return given
    more = {"num_image_tokens": model.config.latent_query_num} if type_of(model) == "kosmos-2" else {}
    more |= {"images_kwargs": as_it_is(processor.image_processor), "return_tensors": "pt"}
    text = [text_of(model, processor)] * len(images)
    given = dict(processor(images=[[image] for image in images], text=text, **more))
    given.pop("labels", None)
    return given


def for_qwen(model, processor, frames):
    """Images, or clips of which a time step has two frames."""
    given = dict(qwen_inputs(processor, frames, PROMPT))
    grid_thw = given["image_grid_thw"] if "image_grid_thw" in given else given["video_grid_thw"]
    assert (grid_thw == grid_thw[0]).all(), grid_thw
    t, h, w = grid_thw[0].tolist()
    return given | {"steps": t, "images": len(frames) * t, "grid": (h, w)}


def for_internvl(model, processor, frames):
    """The native class. BOS alone comes before the image where InternVL2 has no tokenizer."""
    if processor:
        return processed(model, processor, frames)
    config = model.config
    pixels = normalised(frames, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    patches = math.prod(s // one_number(config.vision_config.patch_size) for s in pixels.shape[2:])
    rows = round(patches * config.downsample_ratio**2)
    return with_words(pixels, [config.text_config.bos_token_id, *[config.image_token_id] * rows])


def around_image(processor, place):
    """Token ids of the chat prompt before and behind the image's placeholder."""
    before, found, behind = chat(processor, PROMPT).partition(place)
    assert found, (place, before)
    behind = processor.tokenizer(behind, add_special_tokens=False)
    return processor.tokenizer(before).input_ids, behind.input_ids


def in_tiles(model, processor, frames):
    """LLaVA-NeXT and -OneVision (AnyRes, Liu et al. 2024): an image of the tower's side S alone; at 2S or 3S,
    after the whole image at S, its tiles."""
    side = model.config.vision_config.image_size
    k, p = frames.shape[2] // side, side // model.config.vision_config.patch_size
    if k > 3:
        fail(f"{frames.shape[2]} px are {k} x {k} tiles, of 3 x 3 at most; give --size {side}")
    images = processor.image_processor
    whole = pixels = normalised(frames, images.image_mean, images.image_std)
    rows = p * p + 1  # one newline
    if k > 1:
        whole = nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
        pixels = (
            pixels.unflatten(3, (k, side)).unflatten(2, (k, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
        )
        rows = p * p + k * p * (k * p + 1)
    pixels = torch.cat([whole[:, None], pixels], 1) if k > 1 else whole[:, None]
    before, behind = around_image(processor, processor.image_token)
    sizes = torch.tensor([frames.shape[2:4]] * len(pixels))
    ids = [*before, *[model.config.image_token_id] * rows, *behind]
    return with_words(pixels, ids, image_sizes=sizes, tiles=k)


def take_tiles(model):
    """Let a model of TILED take the inputs of `in_tiles` too. It computes the number of tiles from the pinpoints
    of its configuration, which are replaced while it runs; inputs of its own processor need them as they are."""
    config, side = model.config, model.config.vision_config.image_size
    pinpoints = config.image_grid_pinpoints

    def before(module, args, given):
        pixels, sizes = given.get("pixel_values"), given.get("image_sizes")
        if pixels is None or pixels.ndim != 5:
            return
        if pixels.shape[1] == 1:  # the whole image alone counts as no tile
            config.image_grid_pinpoints = [[0, 0]]
        elif not (sizes % side).any() and pixels.shape[1] == 1 + (sizes[0] // side).prod():
            config.image_grid_pinpoints = sizes[:1].tolist()

    def after(module, args, output):
        config.image_grid_pinpoints = pinpoints

    model.model.register_forward_pre_hook(before, with_kwargs=True)
    model.model.register_forward_hook(after, always_call=True)


def for_cogvlm2(model, processor, frames):
    """BOS, boi, image tokens, eoi, words."""
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD

    text = processor(f"Question: {PROMPT} Answer:", add_special_tokens=False).input_ids
    return model.inputs(normalised(frames, IMAGE_MEAN, IMAGE_STD), text)


def for_florence2(model, processor, frames):
    """A mean token comes first. Words after the image change its rows in the encoder, unlike in a causal model."""
    config, tokenizer, multiple = model.config, processor.tokenizer, token_width(model)
    side = frames.shape[2] // multiple
    words = tokenizer.bos_token + CAPTION + tokenizer.eos_token
    words = tokenizer(words, add_special_tokens=False).input_ids
    left = config.text_config.max_position_embeddings - 1 - len(words)
    most = min(config.vision_config.max_position_embeddings, math.isqrt(left))
    if side > most:
        size = f"{frames.shape[2]} px are {side} x {side} tokens, of {most} x {most} at most"
        fail(f"{size}; give --size {most * multiple} or less")
    pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
    return with_words(pixels, [config.image_token_id] * (1 + side * side) + words)


def for_owl(model, processor, frames):
    """OWLv2's processor always resizes. Neither head depends on the words. class_head: the class embedding
    before normalisation; box_head: four offsets, before the patch's place and the sigmoid."""
    pixels = normalised(frames, processor.image_mean, processor.image_std)
    return {"pixel_values": pixels, "input_ids": torch.zeros(len(pixels), 2, dtype=torch.long)}


INPUTS = {
    **dict.fromkeys(QWEN, for_qwen),
    **dict.fromkeys(TILED, in_tiles),
    **dict.fromkeys(("owlvit", "owlv2"), for_owl),
    "internvl": for_internvl,
    "cogvlm2": for_cogvlm2,
    "florence2": for_florence2,
}


# ---------------------------------------------------------------- families


def fixed_side(model):
    """The tower's side where it has positions for one size, else None."""
    vision = vision_of(model.config)
    any_size = {type_of(model), getattr(vision, "model_type", None)} & set(ANY_SIZE)
    return None if any_size else one_number(getattr(vision, "image_size", None))


def token_width(model):
    """A token's width in pixels, of which a side must be a multiple; the tower's side where it is fixed."""
    config, vision = model.config, vision_of(model.config)
    strides = getattr(vision, "patch_stride", None)  # of Florence-2's stages
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", 1)
    width = math.prod(strides) if strides else one_number(getattr(vision, "patch_size", 32)) * merge
    return fixed_side(model) or width


def general(model, processor):
    """The family of a vision-language model or an image encoder: points by common attributes, inputs by its own
    processor, tokens in row order, except where the tables above name its type."""
    kind, width, order = type_of(model), token_width(model), restores(model)
    vision = vision_of(model.config)
    patch = one_number(getattr(vision, "patch_stride", None) or getattr(vision, "patch_size", 1))
    frames_a_step = one_number(vision.temporal_patch_size) if kind in QWEN else 1
    if kind in TILED:
        take_tiles(model)

    def inputs(frames):
        if fixed_side(model) and kind not in TILED:
            one_size(frames, width)
        with taken(model, frames.shape[2]):
            given = INPUTS.get(kind, processed)(model, processor, frames)
        return given if "grid" in given else noted(given, frames, patch)

    points = {}
    for point, path in paths_of(model).items():
        name = point.partition(".")[0]
        restore = order.get("merger" if name == "deepstack" else name, raster)
        points[point] = path, restore
        if kind == "kosmos-2" and name in ("merger", "language"):  # 64 learned queries pool the patches
            points[point] = path, flat if name == "merger" else restore, NO_GRID
    return inputs, points, width, lambda step: frames_a_step * step


def grounding_dino(model, processor):
    """vision.<i>: Swin's blocks, each stage on its own grid; scale.<i>: the encoder's input, grids of 8, 16, 32 and 64 px a token.
    encoder.<i> attends to all scales and the text. Its 16 px scale is stored, 48 x 48 tokens at 768 px, as fine as other
    encoders (8 px would be 9216 tokens). Frames of a clip are single images."""
    swin = model.model.backbone.conv_encoder.model
    strides = [swin.config.patch_size * 2 ** (stage - 1) for stage in swin.config.out_indices]
    strides += [strides[-1] * 2 ** (k + 1) for k in range(model.config.num_feature_levels - len(strides))]
    stored = min(1, len(strides) - 1)

    def inputs(frames):
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        ids = torch.tensor(processor.tokenizer(OBJECT).input_ids).expand(len(pixels), -1)
        return noted({"input_ids": ids, "pixel_values": pixels}, frames, swin.config.patch_size)

    def encoder(x, batch):
        tokens = [(batch["pixel_values"].shape[-1] // s) ** 2 for s in strides]
        return raster(x.split(tokens, 1)[stored], batch)

    points = {
        **{p: (path, raster) for p, path in paths_of(model).items() if not p.startswith("encoder")},
        **stack("scale", "model.input_proj_vision", len(strides), raster),
        # a layer returns a tuple of tuples; its deformable part returns the image tokens
        **{
            f"encoder.{i}": (f"model.encoder.layers.{i}.deformable_layer", encoder)
            for i in range(model.config.encoder_layers)
        },
    }
    coarsest = swin.config.patch_size * 2 ** (len(swin.config.depths) - 1)
    return inputs, points, max(strides[-1], coarsest), lambda step: step


def vjepa2(model, processor):
    """Two frames a time step, raster order, time first; a still image is repeated. Every token attends to the whole clip, later frames too."""
    patch, pair = model.config.patch_size, model.config.tubelet_size

    def inputs(frames):
        one_size(frames, model.config.crop_size)
        if frames.shape[1] == 1:
            frames = frames.expand(-1, pair, -1, -1, -1)
        frames = frames[:, : frames.shape[1] // pair * pair]
        pixels = normalised(frames, processor.image_mean, processor.image_std).unflatten(0, frames.shape[:2])
        return {"pixel_values_videos": pixels, "skip_predictor": True}

    def grid(x, batch):
        _, t, _, h, w = batch["pixel_values_videos"].shape
        return x.reshape(len(x), t // pair, h // patch, w // patch, x.shape[-1])

    points = {
        "patch_embed": ("encoder.embeddings", grid),
        **stack("vision", "encoder.layer", len(model.encoder.layer), grid),
    }
    return inputs, points, model.config.crop_size, lambda step: pair * step


def ltx_vae(model, processor):
    """latents: normalised per channel, (mode - latents_mean) / latents_std, as LTX-Video's transformer expects; latents-raw: not normalised."""
    step, side = model.temporal_compression_ratio, model.spatial_compression_ratio

    def inputs(frames):
        t, h, w = frames.shape[1:4]
        if (t - 1) % step or h % side or w % side:  # it would silently drop the rest
            fail(f"{t} frames of {h} px: the autoencoder takes {step}k+1 frames and multiples of {side} px")
        return {"sample": frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1}

    def latents(x, batch):
        return (x.permute(0, 2, 3, 4, 1) - model.latents_mean) / model.latents_std

    points = {
        "latents": ("encoder", latents),
        "latents-raw": ("encoder", lambda x, batch: x.permute(0, 2, 3, 4, 1)),
    }
    return inputs, points, side, lambda k: 0 if k == 0 else 1 + (k - 1) * step


# model type -> family, where it is not the general one
FAMILIES = {"grounding-dino": grounding_dino, "vjepa2": vjepa2, "ltx_vae": ltx_vae}


def family_of(model):
    return FAMILIES.get(type_of(model), general)


# model type -> points that depend on later frames; for LTX-Video's autoencoder, see its config
NON_CAUSAL = {"vjepa2": "vision."}


def sees_later_frames(model, point):
    """Whether a time step of `point` depends on later frames. Such features leak the future into a prediction."""
    kind = type_of(model)
    if kind == "ltx_vae":
        return not model.config.encoder_causal
    return point.startswith(NON_CAUSAL.get(kind, "none"))


# The plan's names of points: letter -> (model types, points 1, 2, ...). `last` is the last tower layer that
# the projector reads.
FIVE = ("patch_embed", "vision.middle", "vision.last", "merger", "language.middle")
ALIASES = {
    "L": (LLAVA, FIVE),
    "I": (("internvl", "internvl_chat"), FIVE),
    "C": (("cogvlm2",), ("patch_embed", "vision.last", "merger", "language.middle")),
}


def depths(entry):
    """(layers of the tower, the last of them that the projector reads, layers of the language model), from the registry or a folder's config.json."""
    if "vision" in entry:
        tower, language, read = entry["vision"][0], entry["language"][0], entry.get("read", -1)
    elif entry["type"] in OWN_LAYOUT:
        config = json.loads(Path(entry["path"], "config.json").read_text())
        tower = config["vision_config"]["num_hidden_layers"]
        language = config.get("llm_config", config)["num_hidden_layers"]
        read = config.get("select_layer", -1)
    else:
        # a folder's config.json may leave out what is the library's default
        from transformers import AutoConfig

        config = attempt(lambda: AutoConfig.from_pretrained(entry["path"]), entry)
        tower = config.vision_config.num_hidden_layers
        language = config.text_config.num_hidden_layers
        read = config.vision_feature_layer
    read = read[-1] if isinstance(read, list) else read
    return tower, read + tower if read < 0 else read - 1, language


def resolve_aliases(names, entry):
    """`--points` with the plan's names (L3, c2, ...) replaced by the model's point names, before it is loaded."""

    def resolve(name):
        letter, number = name[:1].upper(), name[1:]
        if letter not in ALIASES or not number.isdigit():
            return name
        types, meant = ALIASES[letter]
        if entry.get("type") not in types:
            kind = f"{name} is a point of {', '.join(types)}, and {entry['name']} is of another type"
            fail(f"{kind}; give its point names, or --points all")
        if not 1 <= int(number) <= len(meant):
            fail(f"{name} is no point: {', '.join(types)} have {letter}1 to {letter}{len(meant)}")
        stack, _, place = meant[int(number) - 1].partition(".")
        if not place:
            return stack
        tower, last, language = depths(entry)
        if place != "last":
            last = at_depth(tower if stack == "vision" else language, 0.5)
        return f"{stack}.{last}"

    return ",".join(resolve(name) for name in names.split(","))


# ---------------------------------------------------------------- several questions about one image, which is computed once

# causal, with words after the image
ASKABLE = (*QWEN, *LLAVA, "internvl", "cogvlm2")
ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def image_rows(model, batch):
    """Mask of the image's rows in the prompt, bool [sequences, rows], with a mosaic's newlines and CogVLM2's
    boi and eoi."""
    if model.config.model_type == "cogvlm2":
        return batch["token_type_ids"] == 1
    if "image_embeds_position_mask" in batch:  # Kosmos-2
        return batch["image_embeds_position_mask"].bool()
    places = [getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video")]
    places = torch.tensor([p for p in places if p is not None], device=batch["input_ids"].device)
    return torch.isin(batch["input_ids"], places)


def up_to_the_image(model, batch):
    """The inputs cut after the image, with an empty key-value cache; `behind` holds the ids of the words cut off."""
    from transformers import DynamicCache

    end = int(image_rows(model, batch)[0].nonzero()[-1]) + 1
    more = {"behind": tuple(batch["input_ids"][0, end:].tolist())}
    if model.config.model_type == "cogvlm2":
        more["cache"] = [{} for _ in range(model.config.num_hidden_layers)]
    else:
        more |= {"past_key_values": DynamicCache(), "use_cache": True}
    return {k: v[:, :end] if k in ROWS else v for k, v in batch.items()} | more


def words_behind(model, processor, batch, question):
    """Token ids after the image, with `question` in place of PROMPT."""

    def tokens(words):
        if model.config.model_type == "cogvlm2":
            return processor(f"Question: {words} Answer:", add_special_tokens=False).input_ids
        kind = "video" if "video_grid_thw" in batch else "image"
        text = chat(processor, words, kind).rpartition(getattr(processor, f"{kind}_token"))[2]
        return processor.tokenizer(text, add_special_tokens=False).input_ids

    default, behind = tokens(PROMPT), batch["behind"]
    first = behind[: len(behind) - len(default)]  # added by the processor: the end of an image
    assert behind == (*first, *default), (behind, default)
    return [*first, *tokens(question)]


def positions_behind(model, given, words):
    """Position ids of words [n, k] after the image, by the library's rules; under M-RoPE an image takes fewer positions than rows."""
    if model.config.model_type == "cogvlm2":
        from cogvlm2 import image_positions

        first = image_positions(given["token_type_ids"])[:, -1:] + 1
        return first + torch.arange(words.shape[1], device=words.device)
    end = given["input_ids"].shape[1]
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(end, end + words.shape[1], device=words.device).expand(words.shape)
    rows = {"mm_token_type_ids": 0, "attention_mask": 1}
    rows = {name: torch.cat([given[name], torch.full_like(words, fill)], 1) for name, fill in rows.items()}
    accepted = inspect.signature(model.model.get_rope_index).parameters
    more = {name: given[name] for name in accepted if name in given and name not in ROWS}
    return model.model.get_rope_index(torch.cat([given["input_ids"], words], 1), **rows, **more)[0][..., end:]


# ---------------------------------------------------------------- points by name


def at_depth(layers, part):
    """The layer (0-based) at relative depth `part` of a stack."""
    return round(layers * part) - 1


def quarters(points):
    """All points outside the stacks and of stacks of up to 8 layers; four depths of each deeper stack."""
    chosen = []
    for stack in ("vision", "scale", "encoder", "language"):
        names = [p for p in points if p.startswith(f"{stack}.")]
        chosen += names if len(names) <= 8 else [names[at_depth(len(names), q / 4)] for q in (1, 2, 3, 4)]
    return [p for p in points if p in chosen or "." not in p]


def on(batch, device, dtype):
    """The batch on the model's device and in its dtype, without our notes (plain numbers and tuples)."""
    return {
        k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v
        for k, v in batch.items()
        if type(v) not in (int, tuple)
    }


def whole_tokens(size, multiple, model):
    """Exit 2 where `size` is not a whole number of tokens."""
    if size % multiple:
        near = max(size // multiple, 1) * multiple
        fail(f"--size {size} is not a multiple of {multiple}, the token width of {model}; give {near}")
