"""Model families: module paths of the layers, order of the tokens, preprocessing of images.

`general` finds the points of any vision-language model or image encoder of transformers by common attributes
and takes tokens in row order. The tables say what is different in which model type.
"""

import contextlib
import inspect
import math

import torch
from torch import nn

from common import fail
from models import chat, qwen_inputs

# follows the image, so in a causal model it cannot change the image's rows
PROMPT = "Describe the picture."
# Florence-2's processor expands <CAPTION> to this; in its encoder the image's rows attend to these words
CAPTION = "What does the image describe?"
# Grounding DINO's text: its encoder mixes text and image, so the text influences the features
OBJECT = "an object."
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of the channels

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
TILED = ("llava_next", "llava_onevision", "llava_next_video")
LLAVA = ("llava", *TILED)
# patches in merge-block order: their processors cut an image as Qwen2-VL's does
BLOCKS = (*QWEN, "glm4v", "glm4v_moe", "glm46v")
# any side in whole tokens: positions are rotary or interpolated; others have positions for one size
ANY_SIZE = {*BLOCKS, "pixtral", "mistral3", "florence2", "dinov2", "dinov2_with_registers", "dinov3_vit"}
# model types whose order of tokens tests/test_families.py proves; check.py proves that of others
PROVED = {*QWEN[:5], *LLAVA, "glm4v", "internvl", "cogvlm2", "kosmos-2", "florence2", "grounding-dino"}
PROVED |= {"vjepa2", "ltx_vae", "dinov2", "dinov2_with_registers", "dinov3_vit", "siglip", "owlvit", "owlv2"}
PROVED |= {"idefics3", "smolvlm", "gemma3", "paligemma", "mistral3", "aya_vision", "ovis2", "video_llava"}
PROVED |= {"clip", "vit", "ijepa", "pixtral", "detr"}


# ---------------------------------------------------------------- what a family is

# A family is a function (model, processor) -> (inputs, points, multiple, first_frame):
#   inputs(frames uint8 [n,T,S,S,3], words=PROMPT)
#                                      arguments of the model's forward, with notes (plain numbers and tuples)
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
    for first in range(min(tokens, 9)):
        k = math.isqrt((tokens - first) * common**2 // (rows * columns))
        h, w = rows * k // common, columns * k // common
        if h * w == tokens - first:
            return first, h, w
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


def blocks_in_order(model):
    """{stack: restore} of towers in merge-block order, where mergers and language rows are in row order.
    Qwen2.5-VL's blocks and merger are besides sorted into attention windows."""
    visual = model.model.visual
    merge = visual.spatial_merge_size

    def in_order(x, batch):
        if not hasattr(visual, "window_size"):
            return x
        from transformers.vision_utils import get_vision_window_index

        grid_thw = batch["image_grid_thw"] if "image_grid_thw" in batch else batch["video_grid_thw"]
        index, _ = get_vision_window_index(grid_thw, merge, visual.window_size, visual.patch_size)
        return x[index.to(x.device).argsort()]

    def patches(x, batch):
        return raster(unmerge(x, batch["grid"], merge), batch)

    def block(x, batch):
        return patches(in_order(x.reshape(-1, merge**2, x.shape[-1]), batch), batch)

    def merger(x, batch):
        return raster(in_order(x, batch), batch)

    return {"patch_embed": patches, "vision": block, "merger": merger}


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


def in_rows(model, x, batch):
    """The image's rows of a language layer's output: [images, K, D]."""
    return x[image_rows(model, batch).to(x.device)].reshape(batch["images"], -1, x.shape[-1])


def tiles_in_order(model):
    """{stack: restore} of LLaVA-NeXT and -OneVision: at k times the tower's side, first the small whole
    image, then the mosaic of k x k tiles, in the language model with a newline after every row."""

    def tower(x, batch):
        k, p = batch["tiles"], batch["grid"][0] // batch["tiles"]
        x = x[:, -p * p :]  # CLIP has a class token, SigLIP none
        if k > 1:
            x = x.unflatten(0, (-1, 1 + k * k))[:, 1:].reshape(-1, k, k, p, p, x.shape[-1])
            x = x.permute(0, 1, 3, 2, 4, 5).flatten(1, 4)
        return raster(x, batch)

    def language(x, batch):
        k, side = batch["tiles"], batch["grid"][0]
        x = in_rows(model, x, batch)
        if k > 1:
            x = x[:, (side // k) ** 2 :].unflatten(1, (side, side + 1))[:, :, :-1].flatten(1, 2)
        return raster(x[:, : side * side], batch)

    return {"patch_embed": tower, "vision": tower, "merger": tower, "language": language}


def restores(model):
    """{stack: restore} of a model: row order, unless its type says otherwise."""
    scales = len(scales_of(model))

    def encoder(x, batch):
        """The second scale: 16 px a token, as fine as other encoders; at 8 px, 768 px are 9216 tokens."""
        finest = round((x.shape[1] / sum(4.0**-k for k in range(scales))) ** 0.5)
        return raster(x[:, finest**2 : finest**2 + (finest // 2) ** 2], batch)

    def language(x, batch):
        x = in_rows(model, x, batch)
        return raster(x[:, 1:-1] if kind == "cogvlm2" else x, batch)  # without boi and eoi

    kind = type_of(model)
    if kind == "kosmos-2":  # 64 learned queries pool the patches
        return {"merger": flat, "language": lambda x, batch: flat(in_rows(model, x, batch), batch)}
    if kind in TILED:
        return tiles_in_order(model)
    found = {"language": language} | ({"encoder": encoder} if scales > 1 else {})
    return found | (blocks_in_order(model) if kind in BLOCKS else {})


# ---------------------------------------------------------------- points, by common attributes

TOWERS = ("vision_tower", "visual", "vision_model", "image_tower", "vision_encoder", "vision", "backbone")
PROJECTORS = ("multi_modal_projector", "connector", "merger", "projector", "aligner", "linear_proj")
PROJECTORS += ("image_to_text_projection", "visual_embeddings_table")
LANGUAGE = ("language_model", "text_model")
CONVOLUTIONS = nn.Conv2d, nn.Conv3d
# model type -> paths that the common attributes do not tell; new points stand before the projector
PATHS = {
    "internvl": {"patch_embed": "model.vision_tower.embeddings.patch_embeddings"},
    "cogvlm2": {"conv": "model.vision.conv"},
    "florence2": {"language": "model.language_model.encoder"},
    # the class embedding before normalisation; four offsets, before the patch's place and the sigmoid
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


def layers_in(model, root, apart="", stages=False):
    """Paths of the layers of the longest stack below `root` and not below `apart`; stages: of its stages."""
    lists, found = {}, []
    for path, module in model.named_modules():
        outermost = not any(below(path, other) for other in lists)
        wanted = below(path, root) and not (apart and below(path, apart))
        if isinstance(module, nn.ModuleList) and outermost and wanted:
            lists[path] = module
    longest = max(lists, key=lambda path: (len(lists[path]), weights_in(lists[path])), default="")
    for layer in children_of(model, longest):
        inner = longest_in_stage(model.get_submodule(layer)) if stages else None
        found += [layer] if inner is None else children_of(model, f"{layer}.{inner}".rstrip("."))
    return found


def longest_in_stage(stage):
    """Path below a stage of the list with more than half of its weights; None for a layer."""
    for path, module in stage.named_modules():
        if isinstance(module, nn.ModuleList) and 2 * weights_in(module) > weights_in(stage):
            return path
    return None


def embedding_in(model, tower, layer):
    """Path of the outermost module of a tower with its first convolution and without its layers, or ""."""
    convolutions = (path for path, module in model.named_modules() if isinstance(module, CONVOLUTIONS))
    parts = next((path for path in convolutions if below(path, tower)), "").split(".")
    for k in range(len(parts)):
        path = ".".join(parts[: k + 1])
        inside = below(path, tower) and path != tower and not below(layer, path)
        if inside and not isinstance(model.get_submodule(path), nn.ModuleList):
            return path
    return ""


def numbered(name, paths):
    return {f"{name}.{i}": path for i, path in enumerate(paths)}


def children_of(model, path):
    """Paths of the modules in a list; none where there is no such list."""
    module = model.get_submodule(path)
    return [f"{path}.{i}" for i in range(len(module))] if path and isinstance(module, nn.ModuleList) else []


def scales_of(model):
    """Paths of the projections of the scales, each half as fine as the one before, that a detector reads."""
    return children_of(model, named(model, ("input_proj_vision", "input_proj")))


def tower_paths(model, tower, known):
    """{point: module path} of the tower and of what follows it, up to the projector."""
    layers = layers_in(model, tower, stages=True)
    found = {"patch_embed": known.get("patch_embed") or embedding_in(model, tower, layers[0])}
    found |= numbered("vision", layers)
    found |= numbered("deepstack", children_of(model, named(model, ("deepstack_merger_list",))))
    found |= {name: path for name, path in known.items() if name not in ("patch_embed", "language")}
    if tower.endswith("backbone"):
        layers = layers_in(model, named(model, ("encoder",)))
        # a layer of Grounding DINO returns a tuple of tuples; its deformable part returns the image tokens
        deeper = ".deformable_layer" if type_of(model) == "grounding-dino" else ""
        found |= numbered("scale", scales_of(model)) | numbered("encoder", [path + deeper for path in layers])
    return found


def paths_of(model):
    """{point: module path} of a model, in the order of execution."""
    known, tower = PATHS.get(type_of(model), {}), named(model, TOWERS)
    writes = hasattr(model, "generate")
    found = tower_paths(model, tower, known) if tower or not writes else {}
    if writes:
        text = known.get("language") or named(model, LANGUAGE)
        found |= {"merger": named(model, PROJECTORS)} | numbered(
            "language", layers_in(model, text, apart=tower)
        )
    return {name: path for name, path in found.items() if path}


# ---------------------------------------------------------------- inputs


@contextlib.contextmanager
def taken(model, side):
    """Exit 2 where a model of a type that no test knows does not take single images of `side` pixels."""
    try:
        yield
    except Exception as e:
        if type_of(model) in PROVED or isinstance(e, torch.OutOfMemoryError):
            raise
        what = (str(e).splitlines() or [""])[0][:200].rstrip(". ") or type(e).__name__
        what = f"does not take single images of {side} px: {what}"
        fail(f"a model of type {type_of(model)} {what}; give another --size")


def pixels_for(processor, frames):
    """uint8 [n,T,S,S,3] -> [n*T, 3, S, S], standardised by a processor's numbers or else ImageNet's."""
    images = getattr(processor, "image_processor", processor)
    mean, std = (images.image_mean, images.image_std) if processor else IMAGENET
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


def processed(model, processor, frames, words):
    """Inputs by the model's own processor; the frames of a clip are single images."""
    from PIL import Image  # the one format that every processor takes

    images = [Image.fromarray(frame.numpy()) for frame in frames.flatten(0, 1)]
    if not hasattr(model, "generate"):
        given = dict(processor(images, return_tensors="pt", **as_it_is(processor)))
        if "input_ids" in inspect.signature(model.forward).parameters:  # a tower of text besides
            given["input_ids"] = torch.zeros(len(images), 2, dtype=torch.long)
        return given
    more = {"num_image_tokens": model.config.latent_query_num} if type_of(model) == "kosmos-2" else {}
    text = words if type_of(model) == "kosmos-2" else chat(processor, words)
    more |= {"text": [text] * len(images), "return_tensors": "pt"}
    nested, how, errors = [[image] for image in images], as_it_is(processor.image_processor), []
    # some take no nested lists (GOT-OCR2), or always resize (Llama 4)
    for pictures, kwargs in ((nested, how), (images, how), (nested, {})):
        try:
            given = processor(images=pictures, images_kwargs=kwargs, **more)
            return {name: x for name, x in given.items() if name != "labels"}
        except ValueError as e:
            errors.append(e)
    raise errors[0]


def for_qwen(model, processor, frames, words):
    """Images, or clips of which a time step has two frames."""
    given = dict(qwen_inputs(processor, frames, words))
    grid_thw = given["image_grid_thw"] if "image_grid_thw" in given else given["video_grid_thw"]
    assert (grid_thw == grid_thw[0]).all(), grid_thw
    t, h, w = grid_thw[0].tolist()
    return given | {"steps": t, "images": len(frames) * t, "grid": (h, w)}


def for_internvl(model, processor, frames, words):
    """The native class. BOS alone comes before the image where InternVL2 has no tokenizer."""
    if processor:
        return processed(model, processor, frames, words)
    config = model.config
    pixels = pixels_for(None, frames)
    patches = math.prod(s // one_number(config.vision_config.patch_size) for s in pixels.shape[2:])
    rows = round(patches * config.downsample_ratio**2)
    return with_words(pixels, [config.text_config.bos_token_id, *[config.image_token_id] * rows])


def in_tiles(model, processor, frames, words):
    """LLaVA-NeXT and -OneVision (AnyRes, Liu et al. 2024): an image of the tower's side S alone; at 2S or 3S,
    after the whole image at S, its tiles."""
    vision = model.config.vision_config
    side, p = vision.image_size, vision.image_size // vision.patch_size
    k = frames.shape[2] // side
    if k > 3:
        fail(f"{frames.shape[2]} px are {k} x {k} tiles, of 3 x 3 at most; give --size {side}")
    pixels, rows = pixels_for(processor, frames), p * p + 1  # one newline
    sizes = torch.tensor([pixels.shape[2:]] * len(pixels))
    if k > 1:
        rows += k * p * (k * p + 1) - 1
        whole = nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
        tiles = pixels.unflatten(3, (k, side)).unflatten(2, (k, side)).permute(0, 2, 4, 1, 3, 5)
        pixels = torch.cat([whole[:, None], tiles.flatten(1, 2)], 1)
    before, _, behind = chat(processor, words).partition(processor.image_token)
    ids = [*processor.tokenizer(before).input_ids, *[model.config.image_token_id] * rows]
    ids += processor.tokenizer(behind, add_special_tokens=False).input_ids
    return with_words(pixels.reshape(len(sizes), -1, 3, side, side), ids, image_sizes=sizes, tiles=k)


def take_tiles(model):
    """Let a model of TILED take the inputs of `in_tiles` too. It counts tiles by the pinpoints in its
    configuration, which are replaced while it runs; inputs of its own processor need them as they are."""
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


def for_cogvlm2(model, processor, frames, words):
    """BOS, boi, image tokens, eoi, words."""
    from cogvlm2 import normalised

    text = processor(f"Question: {words} Answer:", add_special_tokens=False).input_ids
    return model.inputs(normalised(frames.flatten(0, 1)), text)


def for_florence2(model, processor, frames, words):
    """A mean token comes first. Words after the image change its rows, unlike in a causal model."""
    config, tokenizer, multiple = model.config, processor.tokenizer, token_width(model)
    side = frames.shape[2] // multiple
    text = tokenizer.bos_token + CAPTION + tokenizer.eos_token
    ids = tokenizer(text, add_special_tokens=False).input_ids
    left = config.text_config.max_position_embeddings - 1 - len(ids)
    most = min(config.vision_config.max_position_embeddings, math.isqrt(left))
    if side > most:
        size = f"{frames.shape[2]} px are {side} x {side} tokens, of {most} x {most} at most"
        fail(f"{size}; give --size {most * multiple} or less")
    return with_words(pixels_for(processor, frames), [config.image_token_id] * (1 + side * side) + ids)


def for_owl(model, processor, frames, words):
    """OWLv2's processor always resizes. Neither head depends on the words."""
    pixels = pixels_for(processor, frames)
    return {"pixel_values": pixels, "input_ids": torch.zeros(len(pixels), 2, dtype=torch.long)}


def for_grounding_dino(model, processor, frames, words):
    return with_words(pixels_for(processor, frames), processor.tokenizer(OBJECT).input_ids)


def for_vjepa2(model, processor, frames, words):
    """Two frames a time step; a still image is repeated. Every token attends to the whole clip."""
    patch, pair = model.config.patch_size, model.config.tubelet_size
    if frames.shape[1] == 1:
        frames = frames.expand(-1, pair, -1, -1, -1)
    steps, grid = frames.shape[1] // pair, (frames.shape[2] // patch, frames.shape[3] // patch)
    pixels = pixels_for(processor, frames[:, : steps * pair]).unflatten(0, (len(frames), -1))
    notes = {"steps": steps, "images": len(frames) * steps, "grid": grid}
    return {"pixel_values_videos": pixels, "skip_predictor": True} | notes


INPUTS = {
    **dict.fromkeys(QWEN, for_qwen),
    **dict.fromkeys(TILED, in_tiles),
    **dict.fromkeys(("owlvit", "owlv2"), for_owl),
    "internvl": for_internvl,
    "grounding-dino": for_grounding_dino,
    "vjepa2": for_vjepa2,
    "cogvlm2": for_cogvlm2,
    "florence2": for_florence2,
}


# ---------------------------------------------------------------- families


def fixed_side(model):
    """The tower's side where it has positions for one size, else None."""
    vision = vision_of(model.config)
    any_size = {type_of(model), getattr(vision, "model_type", None)} & ANY_SIZE
    if any_size or type_of(model) in TILED or getattr(model.config, "backbone_config", None):
        return None
    return one_number(getattr(vision, "image_size", None) or getattr(vision, "crop_size", None))


def token_width(model):
    """A token's width in pixels, of which a side must be a multiple; the tower's side where it is fixed."""
    config, vision = model.config, vision_of(model.config)
    if fixed_side(model) or type_of(model) in TILED:
        return fixed_side(model) or vision.image_size
    if getattr(config, "backbone_config", None):
        return 32 * 2 ** max(len(scales_of(model)) - 3, 0)
    if hasattr(vision, "patch_stride"):  # of Florence-2's stages
        return math.prod(vision.patch_stride)
    merge = getattr(vision, "spatial_merge_size", None) or getattr(config, "spatial_merge_size", 1)
    return one_number(getattr(vision, "patch_size", 32)) * merge


def general(model, processor):
    """The family of a VLM or an image encoder: points by common attributes, inputs by its own processor, and
    tokens in row order, except where the tables above name its type."""
    kind, order, vision = type_of(model), restores(model), vision_of(model.config)
    width, fixed = token_width(model), fixed_side(model)
    together = [one_number(getattr(vision, name, 1)) for name in ("temporal_patch_size", "tubelet_size")]
    together = max(together) if kind in (*QWEN, "vjepa2") else 1  # frames of a time step
    patch = one_number(getattr(vision, "patch_stride", None) or getattr(vision, "patch_size", 1))
    if kind in TILED:
        take_tiles(model)

    def inputs(frames, words=None):
        steps, h, w = frames.shape[1:4]
        if fixed not in (None, h):
            fail(f"this model takes {width} px only, not {h} px; give --size {width}")
        with taken(model, h):
            given = INPUTS.get(kind, processed)(model, processor, frames, words or PROMPT)
        notes = {
            "frames": steps,
            "steps": steps,
            "images": len(frames) * steps,
            "grid": (h // patch, w // patch),
        }
        return given if "grid" in given else given | notes

    points = {}
    for point, path in paths_of(model).items():
        name = point.partition(".")[0].replace("deepstack", "merger")
        points[point] = path, order.get(name, raster)
        if kind == "kosmos-2" and name in order:
            points[point] += (NO_GRID,)
    return inputs, points, width, lambda step: together * step


def ltx_vae(model, processor):
    """latents: normalised per channel, as LTX-Video's transformer expects; latents-raw: not normalised."""
    step, side = model.temporal_compression_ratio, model.spatial_compression_ratio

    def inputs(frames):
        t, h, w = frames.shape[1:4]
        if (t - 1) % step or h % side or w % side:  # it would silently drop the rest
            fail(f"{t} frames of {h} px: the autoencoder takes {step}k+1 frames and multiples of {side} px")
        return {"sample": frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1}

    def latents(x, batch):
        return (x.permute(0, 2, 3, 4, 1) - model.latents_mean) / model.latents_std

    points = {"latents": ("encoder", latents)}
    points["latents-raw"] = "encoder", lambda x, batch: x.permute(0, 2, 3, 4, 1)
    return inputs, points, side, lambda k: 0 if k == 0 else 1 + (k - 1) * step


def family_of(model):
    return ltx_vae if type_of(model) == "ltx_vae" else general


def sees_later_frames(model, point):
    """Whether a time step of `point` depends on later frames, which would leak into a prediction."""
    if type_of(model) == "ltx_vae":
        return not model.config.encoder_causal
    return type_of(model) == "vjepa2" and point.startswith("vision.")


# ---------------------------------------------------------------- for every user of a family


def on(batch, device, dtype):
    """The batch on the model's device and in its dtype, without our notes (plain numbers and tuples)."""
    given = {}
    for name, x in batch.items():
        if torch.is_tensor(x):
            given[name] = x.to(device, dtype if x.is_floating_point() else None)
        elif type(x) not in (int, tuple):
            given[name] = x
    return given


def whole_tokens(size, multiple, model):
    """Exit 2 where `size` is not a whole number of tokens."""
    if size % multiple:
        near = max(size // multiple, 1) * multiple
        fail(f"--size {size} is not a multiple of {multiple}, the token width of {model}; give {near}")
