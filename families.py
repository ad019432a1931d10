"""Model families: module paths of the layers, order of the tokens, preprocessing of images."""

import inspect
import json
import math
from pathlib import Path

import torch

from common import fail
from models import OWN_LAYOUT, attempt, chat, qwen_inputs

# follows the image, so in a causal model it cannot change the image's rows
PROMPT = "Describe the picture."
# Florence-2's processor expands <CAPTION> to this; in its encoder the image's rows attend to these words
CAPTION = "What does the image describe?"
# Grounding DINO's text: its encoder mixes text and image, so the text influences the features
OBJECT = "an object."


# ---------------------------------------------------------------- families: points, and raster order restored

# A family is a function (model, processor) -> (inputs, points, multiple, first_frame):
#   inputs(frames uint8 [n,T,S,S,3])   arguments of the model's forward
#   points {name: (module path, restore)}, in the order of execution;
#          restore(output, inputs) -> [n, t, h, w, D] in raster order;
#          (module path, restore, NO_GRID) where tokens have no place in the image: [n, t, 1, K, D]
#   multiple                           a token's width in pixels; a side must be a multiple of it
#   first_frame(step)                  the first frame that a time step covers

NO_GRID = "no grid"


def without_grid(points):
    """The points whose tokens have no place in the image."""
    return {name for name, point in points.items() if NO_GRID in point}


def stack(name, path, layers, *restore):
    """The points <name>.0, <name>.1, ... of a stack of layers."""
    return {f"{name}.{i}": (f"{path}.{i}", *restore) for i in range(layers)}


def unmerge(x, grid, merge):
    """Merge-block order -> raster: [n*t*h*w, D] -> [n, t, h, w, D] for `grid` = (t, h, w) in patches."""
    t, h, w = grid
    x = x.reshape(-1, t, h // merge, w // merge, merge, merge, x.shape[-1])
    return x.permute(0, 1, 2, 4, 3, 5, 6).reshape(-1, t, h, w, x.shape[-1])


def window_index(visual, grid_thw):
    """Positions of the merge blocks after Qwen2.5-VL's tower has sorted them into attention windows."""
    from transformers.vision_utils import get_vision_window_index

    sizes = visual.spatial_merge_size, visual.window_size, visual.patch_size
    return get_vision_window_index(grid_thw, *sizes)[0]


def qwen2_vl(model, processor):
    """Token order: patch_embed in merge blocks; language rows in raster order; Qwen2.5-VL's blocks and merger in windows.
    Without windows (Qwen2-VL, Qwen3-VL), blocks are in merge-block order, the merger and DeepStack mergers in raster order."""
    visual, config = model.model.visual, model.config
    merge = visual.spatial_merge_size

    def inputs(frames):
        return qwen_inputs(processor, frames, PROMPT)

    def of(batch):
        grid_thw = batch["image_grid_thw"] if "image_grid_thw" in batch else batch["video_grid_thw"]
        assert (grid_thw == grid_thw[0]).all(), grid_thw
        return grid_thw, grid_thw[0].tolist()

    def patch_embed(x, batch):
        return unmerge(x, of(batch)[1], merge)

    def in_order(x, grid_thw):
        if not hasattr(visual, "window_size"):
            return x
        return x[window_index(visual, grid_thw).to(x.device).argsort()]

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

    added = len(getattr(visual, "deepstack_merger_list", ()))
    points = {
        "patch_embed": ("model.visual.patch_embed", patch_embed),
        **stack("vision", "model.visual.blocks", len(visual.blocks), block),
        **stack("deepstack", "model.visual.deepstack_merger_list", added, merger),
        "merger": ("model.visual.merger", merger),
        **stack("language", "model.language_model.layers", len(model.model.language_model.layers), language),
    }
    frames = visual.config.temporal_patch_size
    return inputs, points, visual.config.patch_size * merge, lambda step: step * frames


def images(x, batch):
    """Tokens of single images [n*t, side*side, D] in raster order -> [n, t, side, side, D]."""
    side = round(x.shape[1] ** 0.5)
    assert side * side == x.shape[1], x.shape
    return x.reshape(-1, batch["frames"], side, side, x.shape[-1])


def behind_first(x, batch):
    """`images` after one token without a place: CLS, or the mean of all places."""
    return images(x[:, 1:], batch)


def maps(x, batch):
    """Feature maps of single images [n*t, D, h, w] -> [n, t, h, w, D]."""
    return x.permute(0, 2, 3, 1).unflatten(0, (-1, batch["frames"]))


def normalised(frames, mean, std):
    """uint8 [n,T,S,S,3] -> [n*T, 3, S, S], standardised per channel."""
    return ((frames.flatten(0, 1).float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def with_words(frames, pixels, ids, **more):
    """Arguments of forward for single images [n*T, ...], each with the same token ids."""
    ids = torch.tensor(ids).expand(len(pixels), -1)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    return given | {"frames": frames.shape[1]} | more


def internvl(model, processor):
    """InternVL, and InternVL2 in the native class; an image is one tile, frames of a clip are single images. Tower: CLS first. The projector's tokens, 2 x 2 patches each, and the language rows are in raster order."""
    config = model.config
    side = config.vision_config.image_size[0]
    rows = round((side // config.vision_config.patch_size[0] * config.downsample_ratio) ** 2)
    # Only words before the image change its rows. BOS alone comes before it where InternVL2 has no tokenizer.
    before, behind = [config.text_config.bos_token_id], []
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    if processor:
        before, behind = around_image(processor, processor.image_token)
        before, behind = [*before, processor.start_image_token_id], [processor.end_image_token_id, *behind]
        mean, std = processor.image_processor.image_mean, processor.image_processor.image_std

    def inputs(frames):
        one_size(frames, side)
        ids = [*before, *[config.image_token_id] * rows, *behind]
        return with_words(frames, normalised(frames, mean, std), ids)

    def language(x, batch):
        return images(x[:, len(before) : len(before) + rows], batch)

    layers = config.vision_config.num_hidden_layers
    points = {
        "patch_embed": ("model.vision_tower.embeddings.patch_embeddings", images),
        **stack("vision", "model.vision_tower.encoder.layer", layers, behind_first),
        "merger": ("model.multi_modal_projector", images),
        **stack("language", "model.language_model.layers", config.text_config.num_hidden_layers, language),
    }
    return inputs, points, side, lambda step: step


def one_size(frames, side):
    """Exit 2 for frames of another size than the tower's learned positions."""
    if frames.shape[2] != side:
        fail(f"this model takes {side} px only, not {frames.shape[2]} px; give --size {side}")


def around_image(processor, place):
    """Token ids of the chat prompt before and behind the image's placeholder."""
    before, found, behind = chat(processor, PROMPT).partition(place)
    assert found, (place, before)
    behind = processor.tokenizer(behind, add_special_tokens=False)
    return processor.tokenizer(before).input_ids, behind.input_ids


QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
LLAVA = ("llava", "llava_next", "llava_onevision")
TILED = ("llava_next", "llava_onevision")


def llava(model, processor):
    """LLaVA (Interleave), LLaVA-NeXT and LLaVA-OneVision; frames of a clip are single images. An image of the tower's side S is one tile.
    At 2S or 3S, NeXT and OneVision cut it into tiles (AnyRes, Liu et al. 2024). The language model reads the small
    whole image, then the mosaic with a newline token after every row; the grid is the mosaic."""
    config = model.config
    side, tiled = config.vision_config.image_size, config.model_type in TILED
    p = side // config.vision_config.patch_size
    before, behind = around_image(processor, processor.image_token)

    def inputs(frames):
        k, most = frames.shape[2] // side, 3 if tiled else 1
        if k > most:
            fail(f"{frames.shape[2]} px are {k} x {k} tiles, of {most} x {most} at most; give --size {side}")
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        rows = p * p
        more = {}
        if tiled:
            # no padding; at S the one tile is the image again
            config.image_grid_pinpoints = [[k * side, k * side]]
            whole = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            tiles = pixels.unflatten(3, (k, side)).unflatten(2, (k, side)).permute(0, 2, 4, 1, 3, 5)
            pixels = torch.cat([whole[:, None], tiles.flatten(1, 2)], 1)
            more = {"image_sizes": torch.tensor([[k * side, k * side]] * len(pixels))}
            rows += k * p * (k * p + 1)
        ids = [*before, *[config.image_token_id] * rows, *behind]
        return with_words(frames, pixels, ids, tiles=k, **more)

    def patches(x, batch):
        k, x = batch["tiles"], x[:, -p * p :]  # CLIP has a class token, SigLIP none
        if tiled:
            # at S the one tile is the image itself
            x = x.unflatten(0, (-1, 1 + k * k))[:, -k * k :].flatten(0, 1)
        return images(x.reshape(-1, k, k, p, p, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).flatten(1, 4), batch)

    def language(x, batch):
        k, x = batch["tiles"], x[:, len(before) :]
        if k > 1:
            mosaic = x[:, p * p : p * p + k * p * (k * p + 1)].unflatten(1, (k * p, k * p + 1))
            x = mosaic[:, :, :-1].flatten(1, 2)
        return images(x[:, : k * p * k * p], batch)

    layers = config.vision_config.num_hidden_layers
    points = {
        "patch_embed": ("model.vision_tower.embeddings", patches),
        **stack("vision", "model.vision_tower.encoder.layers", layers, patches),
        "merger": ("model.multi_modal_projector", patches),
        **stack("language", "model.language_model.layers", config.text_config.num_hidden_layers, language),
    }
    return inputs, points, side, lambda step: step


def cogvlm2(model, processor):
    """Tower: CLS first. Connector: a convolution merges 2 x 2 patches. Language rows: BOS, boi, image tokens, eoi, words."""
    from cogvlm2 import IMAGE_MEAN, IMAGE_STD

    vision = model.config.vision_config
    text = processor(f"Question: {PROMPT} Answer:", add_special_tokens=False).input_ids

    def inputs(frames):
        one_size(frames, vision.image_size)
        return model.inputs(normalised(frames, IMAGE_MEAN, IMAGE_STD), text) | {"frames": frames.shape[1]}

    def language(x, batch):
        return images(x[:, 2 : 2 + (vision.image_size // vision.patch_size) ** 2 // 4], batch)

    points = {
        "patch_embed": ("model.vision.patch_embedding", behind_first),
        **stack("vision", "model.vision.transformer.layers", vision.num_hidden_layers, behind_first),
        "conv": ("model.vision.conv", maps),
        "merger": ("model.vision.linear_proj", images),
        **stack("language", "model.layers", model.config.num_hidden_layers, language),
    }
    return inputs, points, vision.image_size, lambda step: step


def kosmos2(model, processor):
    """CLS first in the tower; 64 learned queries then pool the patches (Peng et al. 2023). Queries and their language rows have
    no place in the image. Frames of a clip are single images."""
    config = model.config

    def inputs(frames):
        one_size(frames, config.vision_config.image_size)
        x = list(frames.flatten(0, 1).permute(0, 3, 1, 2))
        as_it_is = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        number = config.latent_query_num
        given = processor(images=x, text=[PROMPT] * len(x), num_image_tokens=number, **as_it_is)
        return {**given, "frames": frames.shape[1]}

    def queries(x, batch):
        return x.reshape(-1, batch["frames"], 1, config.latent_query_num, x.shape[-1])

    def language(x, batch):
        return queries(x[batch["image_embeds_position_mask"].bool().to(x.device)], batch)

    layers = config.vision_config.num_hidden_layers
    points = {
        "patch_embed": ("vision_model.model.embeddings", behind_first),
        **stack("vision", "vision_model.model.encoder.layers", layers, behind_first),
        "merger": ("image_to_text_projection", queries, NO_GRID),
        **stack("language", "text_model.model.layers", config.text_config.layers, language, NO_GRID),
    }
    return inputs, points, config.vision_config.image_size, lambda step: step


def florence2(model, processor):
    """vision.<i>: DaViT's blocks (Ding et al. 2022); each of the four stages halves the grid. Frames of a clip are single images.
    The projector's first token, a mean over places, is left out. language.<i>: the encoder's layers, where words after
    the image change its rows, unlike in a causal model. The decoder has no image rows."""
    config, blocks = model.config, model.model.vision_tower.blocks
    multiple = math.prod(config.vision_config.patch_stride)

    def inputs(frames):
        tokenizer, side = processor.tokenizer, frames.shape[2] // multiple
        words = tokenizer.bos_token + CAPTION + tokenizer.eos_token
        words = tokenizer(words, add_special_tokens=False).input_ids
        left = config.text_config.max_position_embeddings - 1 - len(words)
        most = min(config.vision_config.max_position_embeddings, math.isqrt(left))
        if side > most:
            size = f"{frames.shape[2]} px are {side} x {side} tokens, of {most} x {most} at most"
            fail(f"{size}; give --size {most * multiple} or less")
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        return with_words(frames, pixels, [config.image_token_id] * (1 + side * side) + words)

    def language(x, batch):
        return images(x[:, 1 : (batch["input_ids"][0] == config.image_token_id).sum()], batch)

    below = [f"{s}.{b}" for s, stage in enumerate(blocks) for b in range(len(stage))]
    layers = config.text_config.encoder_layers
    points = {
        "patch_embed": ("model.vision_tower.convs.0", maps),
        **{f"vision.{i}": (f"model.vision_tower.blocks.{path}", maps) for i, path in enumerate(below)},
        "merger": ("model.multi_modal_projector", behind_first),
        **stack("language", "model.language_model.encoder.layers", layers, language),
    }
    return inputs, points, multiple, lambda step: step


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
        return {"input_ids": ids, "pixel_values": pixels, "frames": frames.shape[1]}

    def encoder(x, batch):
        tokens = [(batch["pixel_values"].shape[-1] // s) ** 2 for s in strides]
        return images(x.split(tokens, 1)[stored], batch)

    below = "model.backbone.conv_encoder.model.swin"
    blocks = [f"{s}.blocks.{b}" for s, depth in enumerate(swin.config.depths) for b in range(depth)]
    points = {
        "patch_embed": (f"{below}.embeddings", images),
        **{f"vision.{i}": (f"{below}.encoder.layers.{path}", images) for i, path in enumerate(blocks)},
        **stack("scale", "model.input_proj_vision", len(strides), maps),
        # a layer returns a tuple of tuples; its deformable part returns the image tokens
        **{
            f"encoder.{i}": (f"model.encoder.layers.{i}.deformable_layer", encoder)
            for i in range(model.config.encoder_layers)
        },
    }
    coarsest = swin.config.patch_size * 2 ** (len(swin.config.depths) - 1)
    return inputs, points, max(strides[-1], coarsest), lambda step: step


def tower(prefix, layers, first=0, any_size=False, words=False):
    """The family of an image encoder: `first` tokens (CLS), registers, then patches in raster order; frames of a clip are single images.

    any_size: positions are interpolated or rotary, else learned for one size. words: the forward also needs text.
    """

    def family(model, processor):
        config = getattr(model.config, "vision_config", model.config)
        patch, skip = config.patch_size, first + getattr(config, "num_register_tokens", 0)

        def inputs(frames):
            if not any_size:
                one_size(frames, config.image_size)
            x = list(frames.flatten(0, 1).permute(0, 3, 1, 2))
            pixels = processor(x, do_resize=False, do_center_crop=False, return_tensors="pt")
            text = {"input_ids": torch.zeros(len(x), 2, dtype=torch.long)} if words else {}
            return pixels | text | {"frames": frames.shape[1]}

        def grid(x, batch):
            h, w = (s // patch for s in batch["pixel_values"].shape[-2:])
            return x[:, skip:].reshape(-1, batch["frames"], h, w, x.shape[-1])

        points = {
            "patch_embed": (f"{prefix}embeddings", grid),
            **stack("vision", f"{prefix}{layers}", len(model.get_submodule(f"{prefix}{layers}")), grid),
        }
        return inputs, points, patch if any_size else config.image_size, lambda step: step

    return family


def owl(name):
    """OWL-ViT and OWLv2: the tower, and the heads' output for every patch; neither head depends on the words.
    class_head: the class embedding before normalisation. box_head: four offsets, before the patch's place and the sigmoid."""

    def family(model, processor):
        own_tower = tower(f"{name}.vision_model.", "encoder.layers", first=1)
        _, points, multiple, first_frame = own_tower(model, processor)
        points |= {"class_head": ("class_head.dense0", images), "box_head": ("box_head", images)}

        def inputs(frames):
            one_size(frames, multiple)
            # OWLv2's processor always resizes
            pixels = normalised(frames, processor.image_mean, processor.image_std)
            ids = torch.zeros(len(pixels), 2, dtype=torch.long)
            return {"input_ids": ids, "pixel_values": pixels, "frames": frames.shape[1]}

        return inputs, points, multiple, first_frame

    return family


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


# model type in config.json -> family. A new family is a function above and a line here.
FAMILIES = {
    **dict.fromkeys(QWEN, qwen2_vl),
    **dict.fromkeys(LLAVA, llava),
    "internvl": internvl,
    "cogvlm2": cogvlm2,
    "kosmos-2": kosmos2,
    "florence2": florence2,
    "grounding-dino": grounding_dino,
    "vjepa2": vjepa2,
    "ltx_vae": ltx_vae,
    "dinov2": tower("", "encoder.layer", first=1, any_size=True),
    "dinov3_vit": tower("", "model.layer", first=1, any_size=True),
    "siglip": tower("vision_model.", "encoder.layers", words=True),
    "owlvit": owl("owlvit"),
    "owlv2": owl("owlv2"),
}


# model type -> points that depend on later frames; for LTX-Video's autoencoder, see its config
NON_CAUSAL = {"vjepa2": "vision."}


def sees_later_frames(model, point):
    """Whether a time step of `point` depends on later frames. Such features leak the future into a prediction."""
    kind = getattr(model.config, "model_type", "ltx_vae")
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


def family_of(model):
    return FAMILIES[getattr(model.config, "model_type", "ltx_vae")]


# ---------------------------------------------------------------- several questions about one image, which is computed once

# causal, with words after the image
ASKABLE = (*QWEN, *LLAVA, "internvl", "cogvlm2")
ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def image_rows(model, batch):
    """Mask of the image's rows in the prompt, bool [sequences, rows]; includes a mosaic's newlines and CogVLM2's boi and eoi."""
    if model.config.model_type == "cogvlm2":
        return batch["token_type_ids"] == 1
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
