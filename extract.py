"""Stage 1. What does a frozen network hold about each picture, layer by layer?

    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features
    python extract.py --model tiny --data data/shapes --out results/tiny/shapes/features-random --random-init
    python extract.py --model cogvlm2 --data data/shapes --stream --max-memory 15GB        # 39 GB of weights, layer by layer
    python extract.py --model dinov2-l+qwen2.5-vl-7b --data data/shapes                     # two encoders side by side
    python extract.py --model tiny --data data/shapes --ask --out results/tiny/shapes/answers.pt      # what the model itself says; see below
    python extract.py --model tiny --data data/moving --frames motion --count 8                       # of every clip the 8 frames between which most moves
    python extract.py --model tiny --data data/waiting --ask --frames motion,uniform,random,scene --count 8   # which choice of frames answers best

Reads data/<name>/ and a checkpoint: a registry name or a folder in Hugging Face format. Writes, under --out,

    <point>/00000.pt ...   features [n, t, h, w, D] fp16, raster order on the picture's own grid, 64 items a shard (t = 1 for images)
    pooled.pt              for every point, mean and max over space: {point: [n, t, D]}
    index.yaml             written last: per point the module, shape, dtype, bytes, non-finite values, and `causal: false` where a time step of
                           a clip has seen later frames; seconds per item; run info

Points are named `pixels` (the token's own pixels, the floor), `patch_embed`, `vision.<i>`, `merger` (or projector), `language.<i>`;
an autoencoder has `latents` (the mode, normalised as the video model wants it) and `latents-raw`;
CogVLM2 also has `conv`, Qwen3-VL `deepstack.<i>`, Grounding DINO `scale.<i>` and `encoder.<i>`, OWL-ViT and OWLv2 `class_head` and `box_head`.
Where K tokens have no place in the picture (Kosmos-2 behind its tower) features are [n, t, 1, K, D] and the point's row in index.yaml says
`grid: false`. The pixels are cut by the coarsest grid there is; where no point has a grid there is no `pixels`.
The plan's own names, L1-L5 (LLaVA), I1-I5 (InternVL) and C1-C4 (CogVLM2), are understood by `--points`; what is stored is named as above.
One forward pass stops as soon as the last point has been seen, so the head and the layers above are never computed. A shard that is
complete is never computed again: kill it at any moment and run the same command to go on.

--ask writes, instead of features, the model's own greedy answers to questions about the test items: where the largest object is (or which way the clip's object moves), openly and with
the possible answers listed; its box, in the words that the model's family was taught; a caption. answers.pt holds ids, kinds, questions [q] and answers {run: [q]}; answers.yaml the same
for grep. The run "own" is the model as it is. A run that is there is not repeated.

--frames HOW --count K shows K frames of every clip, chosen by what moves, evenly, at random or by shots (choose_frames in common.py); index.yaml says how, and for each item which (`shown`).
With --ask several ways are compared on the clips' own questions (`turns`): with equally many frames and, since choosing costs time, with twice, four times ... as many even frames, as long
as the first way's seconds would have paid for them. frames.yaml holds the share of right answers of each, and the paired gain of the first over each other, with intervals over sources.
"""

import argparse
import atexit
import collections
import contextlib
import functools
import inspect
import itertools
import json
import math
import os
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from common import (
    ANSWERS,
    CHOICES,
    FEATURES,
    LOADERS,
    MODELS,
    OWN_LAYOUT,
    POOLED,
    SHARD,
    TINY,
    WORDS,
    asked_object,
    attempt,
    bootstrap,
    chat,
    check_writable,
    choose_device,
    choose_frames,
    digest,
    fill,
    find_model,
    fingerprint,
    frames_of,
    known,
    load_items,
    load_pt,
    load_yaml,
    memory_left,
    memory_size,
    paired_test,
    parser,
    qwen_inputs,
    refuse,
    resolved_commit,
    right,
    run_info,
    save_pt,
    save_yaml,
    say,
    skeleton,
    split_of,
    with_grid,
)

# follows the picture, so in a causal model it cannot change the picture's rows
PROMPT = "Describe the picture."
# what Florence-2's processor makes of <CAPTION>; its encoder lets the picture's rows see these words
CAPTION = "What does the image describe?"
# Grounding DINO's text: its encoder mixes text and picture, so this too is part of what is measured
OBJECT = "an object."


# ---------------------------------------------------------------- one forward pass that stops early


class Seen(Exception):
    """Every point has been captured: nothing deeper needs to be computed."""


@contextlib.contextmanager
def watching(model, modules):
    """run(inputs, seen={}, only=modules) -> {point: output} of `modules` {point: module path}, by a forward pass that ends with the last of them. Several threads may run at once.

    Outputs are cloned, because transformers changes some of them in place later (in get_image_features).
    """
    here = threading.local()

    def hook(point):
        def keep(module, args, output):
            if point not in here.only:
                return
            here.seen[point] = (output[0] if isinstance(output, tuple) else output).clone()
            here.left.discard(point)
            if not here.left:
                raise Seen

        return keep

    @torch.inference_mode()
    def run(inputs, seen=None, only=modules):
        here.seen, here.only, here.left = {} if seen is None else seen, only, set(only)
        with contextlib.suppress(Seen):
            model(**inputs)
        assert not here.left, f"points never reached: {sorted(here.left)}"
        return here.seen

    handles = [
        model.get_submodule(path).register_forward_hook(hook(point)) for point, path in modules.items()
    ]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def capture(model, inputs, modules):
    """`watching` for a single pass."""
    with watching(model, modules) as run:
        return run(inputs)


@contextlib.contextmanager
def latents_of(vae):
    """`watching` for an autoencoder, whose latents are no module's output: run(inputs) -> {"latents", "latents-raw": the mode}."""

    @torch.inference_mode()
    def run(inputs):
        mode = vae.encode(inputs["sample"]).latent_dist.mode()
        return {"latents": mode, "latents-raw": mode}

    yield run


# ---------------------------------------------------------------- weights when they are needed, and not before

# modules outside the stacks that are hardly ever called before the last point has been seen
LATER = ("lm_head", "text_model", "predictor", "decoder")


class Network:
    """A network of which only the weights that are needed are read: all outside the stacks of layers, the layers up to the deepest point asked for, and LATER modules when they are called.

    layers: the modules of the points vision.<i> and language.<i>; wanted: those of them up to the deepest point; outside: names of the weights outside the stacks.
    """

    def __init__(self, model, weights, device, points, deepest):
        self.model, self.weights, self.device = model, weights, device
        self.layers = [
            point[0] for name, point in points.items() if name.startswith(("vision.", "language."))
        ]
        reached = list(points)[: list(points).index(deepest) + 1]
        self.wanted = [path for path in self.layers if path in {points[name][0] for name in reached}]
        later = [
            path
            for path, _ in model.named_modules()
            if path.rpartition(".")[2] in LATER
            and not any(layer.startswith(f"{path}.") for layer in self.layers)
        ]
        self.names = {
            path: [name for name in weights.like if name.startswith(f"{path}.")]
            for path in [*self.layers, *later]
        }
        apart = {name for names in self.names.values() for name in names}
        self.outside = [name for name in weights.like if name not in apart]
        for path in later:
            self.when_called(path, functools.partial(self.fill_and_go_on, path))

    def when_called(self, path, call):
        """Let call(*args, **kwargs) take the place of a module's forward; hooks on the module still work."""
        self.model.get_submodule(path).forward = call

    @torch.inference_mode()
    def layer(self, path, *args, **kwargs):
        module = self.model.get_submodule(path)
        return type(module).forward(module, *args, **kwargs)

    def fill_and_go_on(self, path, *args, **kwargs):
        fill(self.model, self.weights, self.names[path], self.device)
        del self.model.get_submodule(path).forward
        return self.layer(path, *args, **kwargs)

    def weights_of(self, layers):
        """Names of what lies outside the stacks, and of some layers' weights."""
        return [*self.outside, *(name for path in layers for name in self.names[path])]

    def fill(self, layers):
        fill(self.model, self.weights, self.weights_of(layers), self.device)

    def largest(self, n):
        return sorted(self.wanted, key=lambda path: self.weights.size(self.names[path]))[-n:]

    def bytes(self, layers):
        return self.weights.size(self.weights_of(layers))


# ---------------------------------------------------------------- layer streaming: every item through one layer before the next is read


class Pass(threading.Thread):
    """The forward pass of one micro-batch in a thread of its own, which waits at every layer until the main thread has computed the layer's output.

    Thus the model's own code runs between the layers, whatever it does there (merging, DeepStack, masks, rotary embeddings).
    """

    def __init__(self, forward, inputs):
        super().__init__(daemon=True)
        self.forward = forward
        self.inputs = inputs
        self.seen = {}
        self.at = None
        self.error = None
        self.given_up = False
        self.go, self.stands = threading.Semaphore(0), threading.Semaphore(0)

    def run(self):
        try:
            self.forward(self.inputs, self.seen)
        except BaseException as e:  # raised again where it can be seen
            self.error = e
        self.at = None
        self.stands.release()

    def ask(self, *at):
        """A layer's output, from the main thread; what a layer's forward is replaced by calls this, in this thread."""
        self.at = at
        self.stands.release()
        self.go.acquire()
        if self.given_up:
            raise Seen
        output, self.output = self.output, None
        return output

    def on(self, output):
        """Hand over a layer's output and wait until the pass reaches the next layer, or its end."""
        self.output, self.at = output, None
        self.go.release()
        self.wait()

    def wait(self):
        self.stands.acquire()
        if self.error:
            raise self.error

    def give_up(self):
        self.given_up = True
        self.go.release()

    def bytes(self):
        """Bytes that it holds while it waits: its inputs, the residual stream, masks, rotary embeddings."""
        from torch.utils._pytree import tree_leaves

        return sum(
            x.nbytes
            for x in {id(x): x for x in tree_leaves((self.inputs, self.at)) if torch.is_tensor(x)}.values()
        )


def stream(network, forward, batches, budget, drain):
    """Take as many micro-batches (inputs of `forward`) as fit into `budget` bytes through the network, layer by layer. Returns how many.

    While one layer computes, a reader thread brings the next, so two are in memory at once. drain(k, seen) is handed what micro-batch k has seen so far.
    """
    model, weights, device = network.model, network.weights, network.device
    # on a stream of its own a copy runs beside the layer that computes
    side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(path):
        if not side:
            return dict(weights.read(network.names[path]))
        with torch.cuda.stream(side):
            state = {
                name: x.pin_memory().to(device, non_blocking=True)
                for name, x in weights.read(network.names[path])
            }
            side.synchronize()
        return state

    for path in network.layers:
        network.when_called(
            path, lambda *args, path=path, **kwargs: threading.current_thread().ask(path, args, kwargs)
        )
    passes, held, following = [], 0, dict(zip(network.wanted, network.wanted[1:], strict=False))
    with ThreadPoolExecutor(1) as reader, tqdm(total=len(network.wanted), unit="layer") as bar:
        try:
            ahead = {path: reader.submit(read, path) for path in network.wanted[:1]}
            for inputs in batches:
                passes.append(one := Pass(forward, inputs))
                one.start()
                one.wait()
                drain(len(passes) - 1, one.seen)
                held += one.bytes()
                if held + one.bytes() > budget:
                    break
            while live := [k for k, one in enumerate(passes) if one.at]:
                path = passes[live[0]].at[0]
                state = (ahead.pop(path, None) or reader.submit(read, path)).result()
                ahead = {p: reader.submit(read, p) for p in [following.get(path)] if p}
                model.load_state_dict(state, strict=False, assign=True)
                for k in live:
                    where, args, kwargs = passes[k].at
                    # the same code runs for every micro-batch, so all stand in front of the same layer
                    assert where == path, (where, path)
                    passes[k].on(network.layer(path, *args, **kwargs))
                    del args, kwargs  # the input of a layer goes when its output is there
                    drain(k, passes[k].seen)
                for x in state.values():
                    if side:
                        x.record_stream(torch.cuda.current_stream())
                model.load_state_dict({name: weights.like[name] for name in state}, strict=False, assign=True)
                bar.update()
        finally:
            for one in passes:
                one.give_up()
    return len(passes)


# ---------------------------------------------------------------- families: where the points are, and the way back to raster order
#
# A family is a function (model, processor) -> (inputs, points, multiple, first_frame):
#   inputs(frames uint8 [n,T,S,S,3])   what the model's forward takes
#   points {name: (module path, restore)}, in the order of execution; restore(output, inputs) -> [n, t, h, w,
# D] in raster order;
#          (module path, restore, NO_GRID) where tokens have no place in the picture: [n, t, 1, K, D]
#   multiple                           the width of one token in pixels, of which a side must be a multiple
#   first_frame(step)                  the first frame that a time step covers

NO_GRID = "no grid"


def without_grid(points):
    """The points whose tokens have no place in the picture."""
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
    """Where Qwen2.5-VL's tower puts each merge block when it sorts them into attention windows."""
    from transformers.vision_utils import get_vision_window_index

    return get_vision_window_index(
        grid_thw, visual.spatial_merge_size, visual.window_size, visual.patch_size
    )[0]


def qwen2_vl(model, processor):
    """patch_embed is in merge-block order, language rows in raster order. Qwen2.5-VL's blocks and merger are in window order. Qwen2-VL and Qwen3-VL have no windows: their blocks are in
    merge-block order, their merger and Qwen3-VL's DeepStack mergers in raster order of the merged tokens."""
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
        return (
            x[window_index(visual, grid_thw).to(x.device).argsort()] if hasattr(visual, "window_size") else x
        )

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

    points = {
        "patch_embed": ("model.visual.patch_embed", patch_embed),
        **stack("vision", "model.visual.blocks", len(visual.blocks), block),
        **stack(
            "deepstack",
            "model.visual.deepstack_merger_list",
            len(getattr(visual, "deepstack_merger_list", ())),
            merger,
        ),
        "merger": ("model.visual.merger", merger),
        **stack("language", "model.language_model.layers", len(model.model.language_model.layers), language),
    }
    return (
        inputs,
        points,
        visual.config.patch_size * merge,
        lambda step: step * visual.config.temporal_patch_size,
    )


def pictures(x, batch):
    """Tokens of single pictures [n*t, side*side, D] in raster order -> [n, t, side, side, D]."""
    side = round(x.shape[1] ** 0.5)
    assert side * side == x.shape[1], x.shape
    return x.reshape(-1, batch["frames"], side, side, x.shape[-1])


def behind_first(x, batch):
    """`pictures` behind one token that has no place: CLS, or the mean of all places."""
    return pictures(x[:, 1:], batch)


def maps(x, batch):
    """Feature maps of single pictures [n*t, D, h, w] -> [n, t, h, w, D]."""
    return x.permute(0, 2, 3, 1).unflatten(0, (-1, batch["frames"]))


def normalised(frames, mean, std):
    """uint8 [n,T,S,S,3] -> [n*T, 3, S, S], standardised per channel: for checkpoints whose image processor is code on the hub."""
    return ((frames.flatten(0, 1).float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def internvl(model, processor):
    """InternVL, and InternVL2 in the native class. A picture of the tower's own size is one tile; a clip is its frames, one by one. CLS first in the
    tower; the projector's tokens are 2 x 2 patches each, in raster order, and so are the language rows."""
    config = model.config
    side = config.vision_config.image_size[0]
    rows = round((side // config.vision_config.patch_size[0] * config.downsample_ratio) ** 2)
    # Only words before the picture can change its rows; InternVL2's tokenizer is code on the hub, so there
    # BOS is all of them.
    before, behind = (
        around_picture(processor, processor.image_token)
        if processor
        else ([config.text_config.bos_token_id], [])
    )
    if processor:
        before, behind = [*before, processor.start_image_token_id], [processor.end_image_token_id, *behind]
    own = processor and processor.image_processor
    mean, std = (own.image_mean, own.image_std) if own else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def inputs(frames):
        one_size(frames, side)
        ids = torch.tensor([*before, *[config.image_token_id] * rows, *behind]).expand(
            frames.shape[0] * frames.shape[1], -1
        )
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": normalised(frames, mean, std),
            "frames": frames.shape[1],
        }

    def language(x, batch):
        return pictures(x[:, len(before) : len(before) + rows], batch)

    points = {
        "patch_embed": ("model.vision_tower.embeddings.patch_embeddings", pictures),
        **stack(
            "vision", "model.vision_tower.encoder.layer", config.vision_config.num_hidden_layers, behind_first
        ),
        "merger": ("model.multi_modal_projector", pictures),
        **stack("language", "model.language_model.layers", config.text_config.num_hidden_layers, language),
    }
    return inputs, points, side, lambda step: step


def one_size(frames, side):
    """Refuse frames of any other size than that for which a tower has learned positions."""
    if frames.shape[2] != side:
        refuse(
            f"{frames.shape[2]} px: this model has learned positions for {side} px alone; give --size {side}"
        )


def around_picture(processor, place):
    """Token ids of the chat prompt before and behind the picture's placeholder."""
    before, found, behind = chat(processor, PROMPT).partition(place)
    assert found, (place, before)
    return processor.tokenizer(before).input_ids, processor.tokenizer(
        behind, add_special_tokens=False
    ).input_ids


TILED = ("llava_next", "llava_onevision")


def llava(model, processor):
    """LLaVA (Interleave), LLaVA-NeXT and LLaVA-OneVision; a clip is its frames, one by one. A picture of the tower's own side S is read in one piece.
    At 2S or 3S, NeXT and OneVision cut it into tiles (AnyRes, Liu et al. 2024) and their grid is the mosaic: in the language model it stands behind
    the small whole picture, a newline token after every row."""
    config = model.config
    side, tiled = config.vision_config.image_size, config.model_type in TILED
    p = side // config.vision_config.patch_size
    before, behind = around_picture(processor, processor.image_token)

    def inputs(frames):
        k = frames.shape[2] // side
        if k > (3 if tiled else 1):
            refuse(
                f"{frames.shape[2]} px are {k} x {k} tiles of {side} px, and {config.model_type} takes {'3 x 3' if tiled else 'one'} at most; give --size {side}"
            )
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        rows = p * p
        more = {}
        if tiled:
            # no padding, and at S no tiles but the picture once more
            config.image_grid_pinpoints = [[k * side, k * side]]
            whole = torch.nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True)
            tiles = (
                pixels.unflatten(3, (k, side)).unflatten(2, (k, side)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
            )
            pixels, more = (
                torch.cat([whole[:, None], tiles], 1),
                {"image_sizes": torch.tensor([[k * side, k * side]] * len(pixels))},
            )
            rows += k * p * (k * p + 1)
        ids = torch.tensor([*before, *[config.image_token_id] * rows, *behind]).expand(len(pixels), -1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
            "frames": frames.shape[1],
            "tiles": k,
            **more,
        }

    def patches(x, batch):
        k, x = batch["tiles"], x[:, -p * p :]  # CLIP has a class token, SigLIP none
        if tiled:
            # at S the one tile is the picture itself
            x = x.unflatten(0, (-1, 1 + k * k))[:, -k * k :].flatten(0, 1)
        return pictures(x.reshape(-1, k, k, p, p, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).flatten(1, 4), batch)

    def language(x, batch):
        k, x = batch["tiles"], x[:, len(before) :]
        if k > 1:
            x = (
                x[:, p * p : p * p + k * p * (k * p + 1)]
                .unflatten(1, (k * p, k * p + 1))[:, :, :-1]
                .flatten(1, 2)
            )
        return pictures(x[:, : k * p * k * p], batch)

    points = {
        "patch_embed": ("model.vision_tower.embeddings", patches),
        **stack(
            "vision", "model.vision_tower.encoder.layers", config.vision_config.num_hidden_layers, patches
        ),
        "merger": ("model.multi_modal_projector", patches),
        **stack("language", "model.language_model.layers", config.text_config.num_hidden_layers, language),
    }
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
    points = {
        "patch_embed": ("model.vision.patch_embedding", behind_first),
        **stack("vision", "model.vision.transformer.layers", vision.num_hidden_layers, behind_first),
        "conv": ("model.vision.conv", maps),
        "merger": ("model.vision.linear_proj", pictures),
        **stack(
            "language",
            "model.layers",
            model.config.num_hidden_layers,
            lambda x, batch: pictures(x[:, 2 : 2 + rows], batch),
        ),
    }
    return inputs, points, vision.image_size, lambda step: step


def kosmos2(model, processor):
    """CLS first in the tower. Learned queries then gather what the patches hold (64 of them, Peng et al. 2023): they and their rows in the language
    model have no place in the picture. A clip is its frames, one by one."""
    config = model.config

    def inputs(frames):
        one_size(frames, config.vision_config.image_size)
        x = list(frames.flatten(0, 1).permute(0, 3, 1, 2))
        given = processor(
            images=x,
            text=[PROMPT] * len(x),
            num_image_tokens=config.latent_query_num,
            do_resize=False,
            do_center_crop=False,
            return_tensors="pt",
        )
        return {**given, "frames": frames.shape[1]}

    def queries(x, batch):
        return x.reshape(-1, batch["frames"], 1, config.latent_query_num, x.shape[-1])

    def language(x, batch):
        return queries(x[batch["image_embeds_position_mask"].bool().to(x.device)], batch)

    points = {
        "patch_embed": ("vision_model.model.embeddings", behind_first),
        **stack(
            "vision",
            "vision_model.model.encoder.layers",
            config.vision_config.num_hidden_layers,
            behind_first,
        ),
        "merger": ("image_to_text_projection", queries, NO_GRID),
        **stack("language", "text_model.model.layers", config.text_config.layers, language, NO_GRID),
    }
    return inputs, points, config.vision_config.image_size, lambda step: step


def florence2(model, processor):
    """vision.<i> are DaViT's blocks through all four stages (Ding et al. 2022), each stage on a grid of its own, half the one before. The projector puts
    the mean of all places first, which is left out here. language.<i> are the encoder's layers; unlike in a causal model the words behind the picture
    change its rows. The decoder only looks at the encoder's output: it has no rows of the picture. A clip is its frames, one by one."""
    config, blocks = model.config, model.model.vision_tower.blocks
    multiple = math.prod(config.vision_config.patch_stride)

    def inputs(frames):
        words = processor.tokenizer(
            processor.tokenizer.bos_token + CAPTION + processor.tokenizer.eos_token, add_special_tokens=False
        ).input_ids
        side = frames.shape[2] // multiple
        most = min(
            config.vision_config.max_position_embeddings,
            math.isqrt(config.text_config.max_position_embeddings - 1 - len(words)),
        )
        if side > most:
            refuse(
                f"{frames.shape[2]} px are {side} x {side} tokens, and this model has positions for {most} x {most}; give --size {most * multiple} or less"
            )
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        ids = torch.tensor([config.image_token_id] * (1 + side * side) + words).expand(len(pixels), -1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": pixels,
            "frames": frames.shape[1],
        }

    def language(x, batch):
        return pictures(x[:, 1 : (batch["input_ids"][0] == config.image_token_id).sum()], batch)

    below = [f"{s}.{b}" for s, stage in enumerate(blocks) for b in range(len(stage))]
    points = {
        "patch_embed": ("model.vision_tower.convs.0", maps),
        **{f"vision.{i}": (f"model.vision_tower.blocks.{path}", maps) for i, path in enumerate(below)},
        "merger": ("model.multi_modal_projector", behind_first),
        **stack(
            "language", "model.language_model.encoder.layers", config.text_config.encoder_layers, language
        ),
    }
    return inputs, points, multiple, lambda step: step


def grounding_dino(model, processor):
    """vision.<i> are Swin's blocks through all stages, each stage on a grid of its own; scale.<i> what the encoder is given: grids of 8, 16, 32 and 64 px a
    token. encoder.<i> sees all scales at once and the text; stored is its 16 px scale, the finest whose grid is no larger than other encoders' (48 x 48 at
    768 px, where 8 px would be 9216 tokens). A clip is its frames, one by one."""
    swin = model.model.backbone.conv_encoder.model
    strides = [swin.config.patch_size * 2 ** (stage - 1) for stage in swin.config.out_indices]
    strides += [strides[-1] * 2 ** (k + 1) for k in range(model.config.num_feature_levels - len(strides))]
    kept = min(1, len(strides) - 1)

    def inputs(frames):
        pixels = normalised(frames, processor.image_processor.image_mean, processor.image_processor.image_std)
        return {
            "input_ids": torch.tensor(processor.tokenizer(OBJECT).input_ids).expand(len(pixels), -1),
            "pixel_values": pixels,
            "frames": frames.shape[1],
        }

    def encoder(x, batch):
        return pictures(
            x.split([(batch["pixel_values"].shape[-1] // s) ** 2 for s in strides], 1)[kept], batch
        )

    below = "model.backbone.conv_encoder.model.swin"
    blocks = [f"{s}.blocks.{b}" for s, depth in enumerate(swin.config.depths) for b in range(depth)]
    points = {
        "patch_embed": (f"{below}.embeddings", pictures),
        **{f"vision.{i}": (f"{below}.encoder.layers.{path}", pictures) for i, path in enumerate(blocks)},
        **stack("scale", "model.input_proj_vision", len(strides), maps),
        # A layer returns a tuple of tuples; what its deformable part returns is the picture's share of
        # it.
        **{
            f"encoder.{i}": (f"model.encoder.layers.{i}.deformable_layer", encoder)
            for i in range(model.config.encoder_layers)
        },
    }
    return (
        inputs,
        points,
        max(strides[-1], swin.config.patch_size * 2 ** (len(swin.config.depths) - 1)),
        lambda step: step,
    )


def tower(prefix, layers, first=0, any_size=False, words=False):
    """The family of an image encoder: `first` tokens (CLS), registers, then patches in raster order; a clip is its frames, one by one.

    any_size: positions are interpolated or rotary, else learned for one size. words: the model has a text side too, which must be given something.
    """

    def family(model, processor):
        config = getattr(model.config, "vision_config", model.config)
        patch, skip = config.patch_size, first + getattr(config, "num_register_tokens", 0)

        def inputs(frames):
            if not any_size:
                one_size(frames, config.image_size)
            pixels = processor(
                list(frames.flatten(0, 1).permute(0, 3, 1, 2)),
                do_resize=False,
                do_center_crop=False,
                return_tensors="pt",
            )
            text = (
                {"input_ids": torch.zeros(len(pixels["pixel_values"]), 2, dtype=torch.long)} if words else {}
            )
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
    """OWL-ViT and OWLv2: their tower, and for every patch what the heads say: class_head its class embedding before it is normalised and compared with words,
    box_head the box's four numbers as offsets, before the patch's place is added and a sigmoid saturates them at the border. Neither depends on the words."""

    def family(model, processor):
        _, points, multiple, first_frame = tower(f"{name}.vision_model.", "encoder.layers", first=1)(
            model, processor
        )

        def inputs(frames):
            one_size(frames, multiple)
            # OWLv2's own processor cannot leave the size as it is
            pixels = normalised(frames, processor.image_mean, processor.image_std)
            return {
                "input_ids": torch.zeros(len(pixels), 2, dtype=torch.long),
                "pixel_values": pixels,
                "frames": frames.shape[1],
            }

        return (
            inputs,
            points | {"class_head": ("class_head.dense0", pictures), "box_head": ("box_head", pictures)},
            multiple,
            first_frame,
        )

    return family


def vjepa2(model, processor):
    """Pairs of frames to a time step, in raster order, time first; a still picture is shown twice. Every token sees the whole clip, the future too."""
    patch, pair = model.config.patch_size, model.config.tubelet_size

    def inputs(frames):
        one_size(frames, model.config.crop_size)
        frames = (
            frames.expand(-1, pair, -1, -1, -1)
            if frames.shape[1] == 1
            else frames[:, : frames.shape[1] // pair * pair]
        )
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
    """latents: normalised per channel, (mode - latents_mean) / latents_std, as LTX-Video's transformer takes them; latents-raw: not normalised."""

    def inputs(frames):
        step, side = model.temporal_compression_ratio, model.spatial_compression_ratio
        if (frames.shape[1] - 1) % step or frames.shape[2] % side or frames.shape[3] % side:
            refuse(
                f"{frames.shape[1]} frames of {frames.shape[2]} px: this autoencoder takes {step}k+1 frames and sides that are multiples of {side}; others it drops silently"
            )
        return {"sample": frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1}

    def latents(x, batch):
        return (x.permute(0, 2, 3, 4, 1) - model.latents_mean) / model.latents_std

    points = {
        "latents": ("encoder", latents),
        "latents-raw": ("encoder", lambda x, batch: x.permute(0, 2, 3, 4, 1)),
    }
    return (
        inputs,
        points,
        model.spatial_compression_ratio,
        lambda step: 0 if step == 0 else 1 + (step - 1) * model.temporal_compression_ratio,
    )


# model type in config.json -> family. A new one is a function above and a line here.
FAMILIES = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_vl,
    "qwen3_vl": qwen2_vl,
    "llava": llava,
    "llava_next": llava,
    "llava_onevision": llava,
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


# model type -> points whose time steps see later frames too; of LTX-Video's autoencoder its config tells
NON_CAUSAL = {"vjepa2": "vision."}


def sees_later_frames(model, point):
    """Whether a time step of `point` depends on frames that come after it: such features may not stand for what was known at that time."""
    kind = getattr(model.config, "model_type", "ltx_vae")
    return (
        not model.config.encoder_causal
        if kind == "ltx_vae"
        else point.startswith(NON_CAUSAL.get(kind, "none"))
    )


# The plan's names of points: letter -> (the families that have it, what 1, 2, ... are). `last` is the tower's
# last layer that the projector reads.
FIVE = ("patch_embed", "vision.middle", "vision.last", "merger", "language.middle")
ALIASES = {
    "L": (("llava", "llava_next", "llava_onevision"), FIVE),
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


def own_names(names, entry):
    """`--points` with the plan's names (L3, c2, ...) replaced by the model's own, before it is loaded; other names stay as they are."""

    def own(name):
        letter, number = name[:1].upper(), name[1:]
        if letter not in ALIASES or not number.isdigit():
            return name
        types, meant = ALIASES[letter]
        if entry.get("type") not in types:
            refuse(
                f"{name} is a point of {', '.join(types)}, and {entry['name']} is of type {entry.get('type')}; give its own names, or --points all"
            )
        if not 1 <= int(number) <= len(meant):
            refuse(f"{name} is no point: {', '.join(types)} have {letter}1 to {letter}{len(meant)}")
        stack, _, place = meant[int(number) - 1].partition(".")
        if not place:
            return stack
        tower, last, language = depths(entry)
        return (
            f"{stack}.{last if place == 'last' else at_depth(tower if stack == 'vision' else language, 0.5)}"
        )

    return ",".join(own(name) for name in names.split(","))


def family_of(model):
    return FAMILIES[getattr(model.config, "model_type", "ltx_vae")]


# ---------------------------------------------------------------- several questions about a picture, which is computed once

# causal, with words behind the picture
ASKABLE = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "internvl",
    "cogvlm2",
)
ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def picture_rows(model, batch):
    """Which rows of the prompt are the picture's: bool [sequences, rows]. A mosaic's newlines and CogVLM2's boi and eoi are among them."""
    if model.config.model_type == "cogvlm2":
        return batch["token_type_ids"] == 1
    places = [
        token
        for name in ("image_token_id", "video_token_id")
        if (token := getattr(model.config, name, None)) is not None
    ]
    return torch.isin(batch["input_ids"], torch.tensor(places, device=batch["input_ids"].device))


def up_to_the_picture(model, batch):
    """The inputs without the words behind the picture, which are kept as `behind`, and with an empty cache for the picture's keys and values."""
    from transformers import DynamicCache

    end = int(picture_rows(model, batch)[0].nonzero()[-1]) + 1
    cogvlm2 = model.config.model_type == "cogvlm2"
    more = (
        {"cache": [{} for _ in range(model.config.num_hidden_layers)]}
        if cogvlm2
        else {"past_key_values": DynamicCache(), "use_cache": True}
    )
    return (
        {k: v[:, :end] if k in ROWS else v for k, v in batch.items()}
        | more
        | {"behind": tuple(batch["input_ids"][0, end:].tolist())}
    )


def words_behind(model, processor, batch, question):
    """Token ids of what follows the picture when `question` is asked in place of PROMPT."""

    def tokens(words):
        if model.config.model_type == "cogvlm2":
            return processor(f"Question: {words} Answer:", add_special_tokens=False).input_ids
        kind = "video" if "video_grid_thw" in batch else "image"
        return processor.tokenizer(
            chat(processor, words, kind).rpartition(getattr(processor, f"{kind}_token"))[2],
            add_special_tokens=False,
        ).input_ids

    usual, behind = tokens(PROMPT), batch["behind"]
    first = behind[: len(behind) - len(usual)]  # what the processor itself puts there: the end of an image
    assert behind == (*first, *usual), (behind, usual)
    return [*first, *tokens(question)]


def positions_behind(model, given, words):
    """Position ids of words [n, k] behind the picture, by the library's own rules: under M-RoPE a picture takes fewer positions than it has rows."""
    if model.config.model_type == "cogvlm2":
        from cogvlm2 import image_positions

        return (
            image_positions(given["token_type_ids"])[:, -1:]
            + 1
            + torch.arange(words.shape[1], device=words.device)
        )
    end = given["input_ids"].shape[1]
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(end, end + words.shape[1], device=words.device).expand(words.shape)
    rows = {"mm_token_type_ids": 0, "attention_mask": 1}
    rows = {name: torch.cat([given[name], torch.full_like(words, fill)], 1) for name, fill in rows.items()}
    more = {
        name: given[name]
        for name in inspect.signature(model.model.get_rope_index).parameters
        if name in given and name not in ROWS
    }
    return model.model.get_rope_index(torch.cat([given["input_ids"], words], 1), **rows, **more)[0][..., end:]


def ask(model, run, given, questions, points, dtype):
    """Hidden states of the last token of every question, {point: [sequences, questions, D]}, by one pass over the questions alone: the picture is in the cache.

    questions: lists of token ids. They follow one another in one sequence, but each has the positions that it would have alone and attends only to the picture and to itself.
    """
    ids = torch.tensor(
        [token for question in questions for token in question], device=given["input_ids"].device
    )
    lengths = torch.tensor([len(question) for question in questions], device=ids.device)
    n, end = given["input_ids"].shape
    number = torch.arange(len(questions), device=ids.device).repeat_interleave(lengths)
    place = torch.arange(len(ids), device=ids.device) - (lengths.cumsum(0) - lengths)[number]
    longest = torch.zeros(n, int(lengths.max()), dtype=torch.long, device=ids.device)
    sees = (number[:, None] == number) & (place[:, None] >= place)  # [rows, rows]
    sees = torch.cat([sees.new_ones(len(ids), end), sees], 1).expand(n, 1, -1, -1)
    inputs = {
        "input_ids": ids.expand(n, -1),
        "position_ids": positions_behind(model, given, longest)[..., place],
    }
    if "cache" in given:
        inputs |= {
            "token_type_ids": torch.zeros_like(inputs["input_ids"]),
            "mask": sees,
            "cache": given["cache"],
        }
    else:
        mask = torch.zeros(sees.shape, dtype=dtype, device=ids.device).masked_fill(
            ~sees, torch.finfo(dtype).min
        )
        inputs |= {"attention_mask": mask, "past_key_values": given["past_key_values"], "use_cache": True}
    return {point: x[:, lengths.cumsum(0) - 1] for point, x in run(inputs, only=points).items()}


# ---------------------------------------------------------------- the stage


def at_depth(layers, part):
    """The layer (0-based) after which `part` of a stack has been computed."""
    return round(layers * part) - 1


def quarters(points):
    """All points of a small model; of a deep one those outside the stacks, and four depths of each stack."""
    chosen = []
    for stack in ("vision", "scale", "encoder", "language"):
        names = [p for p in points if p.startswith(f"{stack}.")]
        chosen += names if len(names) <= 8 else [names[at_depth(len(names), q / 4)] for q in (1, 2, 3, 4)]
    return [p for p in points if p in chosen or "." not in p]


def pixel_grid(frames, grid, first_frame):
    """Raw pixels on the model's own coarsest grid: [n,T,S,S,3] -> [n, t, h, w, p*p*3] in [0, 1]; the first frame of each time step."""
    t, h, w = grid
    x = frames[:, [first_frame(k) for k in range(t)]].float() / 255
    n, p, q = len(x), x.shape[2] // h, x.shape[3] // w
    return (
        x[:, :, : h * p, : w * q]
        .reshape(n, t, h, p, w, q, 3)
        .permute(0, 1, 2, 4, 3, 5, 6)
        .reshape(n, t, h, w, -1)
    )


class Writer:
    """Writes files in a thread of its own, in the order given, while the next features are computed; at most two wait to be written."""

    def __init__(self):
        self.pool, self.jobs = ThreadPoolExecutor(1), collections.deque()

    def __call__(self, *args, **kwargs):
        self.jobs.append(self.pool.submit(save_pt, *args, **kwargs))
        while len(self.jobs) > 2:
            self.jobs.popleft().result()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pool.shutdown()
        for job in self.jobs:
            job.result()


class Shard:
    """Collects features of up to 64 items, micro-batch by micro-batch, points in any order. A point is written as soon as it is whole; pooled/<shard>.pt, written last, marks the shard as
    complete."""

    def __init__(self, out, number, items, size, batch, points, write):
        self.out = out
        self.file = f"{number:05d}.pt"
        self.items = items
        self.size = size
        self.batch = batch
        self.write = write
        self.ids = [item["id"] for item in items]
        self.parts, self.pooled = {point: {} for point in points}, {}
        self.starts = list(range(0, len(items), batch))

    def frames(self, k):
        """Micro-batch k: uint8 [n, T, size, size, 3]."""
        return torch.stack(
            [frames_of(item, self.size) for item in self.items[self.starts[k] : self.starts[k] + self.batch]]
        )

    def add(self, k, point, x):
        """Features [n, t, h, w, D] of micro-batch k."""
        if point not in self.parts:  # a second attempt, after memory ran out
            return
        half, x = x.half(), x.float()
        self.parts[point][k] = (
            half.cpu(),
            x.mean((2, 3)).cpu(),
            x.amax((2, 3)).cpu(),
            int((~half.isfinite()).sum()),
        )
        if len(self.parts[point]) == len(self.starts):
            halves, means, maxima, nonfinite = zip(
                *(part for _, part in sorted(self.parts.pop(point).items())), strict=True
            )
            whole = torch.cat(halves)
            self.pooled[point] = {
                "mean": torch.cat(means),
                "max": torch.cat(maxima),
                "shape": list(whole.shape[1:]),
                "nonfinite": sum(nonfinite),
            }
            self.write(self.out / point / self.file, FEATURES, self.ids, {"point": point}, features=whole)

    def mark(self, **what):
        """Record what is false of points: grid=names of those without a place in the picture, causal=names of those that have seen later frames."""
        for key, names in what.items():
            for name in names & set(self.pooled):
                self.pooled[name][key] = False

    def add_pixels(self, first_frame):
        """The pictures' own pixels on the coarsest grid there is: the floor."""
        if grids := [row["shape"][:3] for row in self.pooled.values() if row.get("grid", True)]:
            self.parts["pixels"] = {}
            for k in range(len(self.starts)):
                self.add(k, "pixels", pixel_grid(self.frames(k), min(grids, key=math.prod), first_frame))

    def finish(self, names, seconds):
        """Write what marks the shard as complete."""
        shown = {"shown": [item["shown"] for item in self.items]} if "shown" in self.items[0] else {}
        self.write(
            self.out / "pooled" / self.file,
            POOLED,
            self.ids,
            {"seconds": seconds} | shown,
            pooled={p: self.pooled[p] for p in ("pixels", *names) if p in self.pooled},
        )


def on(batch, device, dtype):
    """The part of a batch that the model's forward takes, on its device and in its dtype: without plain numbers and tuples, which are notes of ours."""
    return {
        k: v.to(device, dtype if v.is_floating_point() else None) if torch.is_tensor(v) else v
        for k, v in batch.items()
        if type(v) not in (int, tuple)
    }


def one_by_one(run, inputs_of, restore, shards, device, dtype, finish, questions=None):
    """Fill every shard, micro-batch after micro-batch. The seconds recorded are those of preparing and running each.

    questions(batch, given) -> {point: features} of questions that are asked afterwards; their seconds are not counted.
    """
    for shard in shards:
        seconds = []
        for k in range(len(shard.starts)):
            frames = shard.frames(k)
            wait_for(device)
            started = time.perf_counter()
            batch = inputs_of(frames)
            given = on(batch, device, dtype)
            features = {point: restore(point, x, batch) for point, x in run(given).items()}
            wait_for(device)
            seconds.append((time.perf_counter() - started) / len(frames))
            features |= questions(batch, given) if questions else {}
            for point, x in features.items():
                shard.add(k, point, x)
        finish(shard, seconds)


def layer_by_layer(network, run, inputs_of, restore, shards, dtype, finish, budget):
    """Fill every shard by streaming, in as few rounds as the budget of bytes allows. No seconds are recorded, since no pass runs by itself."""
    jobs = [(shard, k) for shard in shards for k in range(len(shard.starts))]
    while jobs:
        batches = []

        def inputs(jobs=jobs, batches=batches):
            for shard, k in jobs:
                batches.append(inputs_of(shard.frames(k)))
                yield on(batches[-1], network.device, dtype)

        def drain(i, seen, jobs=jobs, batches=batches):
            shard, k = jobs[i]
            for point in list(seen):
                shard.add(k, point, restore(point, seen.pop(point), batches[i]))

        done = 0
        with contextlib.suppress(torch.OutOfMemoryError):
            done = stream(network, run, inputs(), budget, drain)
        if not done:  # what was written stays; the rest is tried again in smaller rounds
            if len(batches) < 2:
                refuse(
                    f"one micro-batch does not fit in the memory beside two layers; give a --batch smaller than {len(jobs[0][0].ids[: jobs[0][0].batch])}"
                )
            budget /= 2
            torch.cuda.empty_cache()
        for shard in dict.fromkeys(shard for shard, _ in jobs[:done]):
            if not shard.parts:
                finish(shard, [])
        jobs = jobs[done:]


def wait_for(device):
    """A GPU computes behind our back: wait until it is done, before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def read_questions(path):
    """The lines of a text file."""
    try:
        lines = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        refuse(f"--questions {path} cannot be read; give a text file with a question a line")
    return lines or refuse(f"--questions {path} is empty; give a text file with a question a line")


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
    p.add_argument(
        "--model",
        default="tiny",
        help="a registry name or a folder in Hugging Face format (default: %(default)s)",
    )
    p.add_argument("--data", default="data/shapes", help="a folder that data.py wrote (default: %(default)s)")
    p.add_argument("--out", help="default: results/<model>/<data>/features, or answers.pt")
    p.add_argument(
        "--points",
        default="quarters",
        help="points with commas between, all, last, or quarters: four depths of each stack; "
        "the plan's L1-L5, I1-I5, C1-C4 are understood (default: %(default)s)",
    )
    p.add_argument(
        "--size",
        type=int,
        help="side in pixels that frames are squashed to (default: the registry's for the model, images and clips apart)",
    )
    p.add_argument(
        "--tiles",
        choices=("base", "all"),
        help="of LLaVA-NeXT and LLaVA-OneVision: the whole picture in one piece, or its mosaic of 2 x 2 tiles (--size takes 3 x 3 too)",
    )
    p.add_argument("--batch", type=int, default=8, help="micro-batch (default: %(default)s)")
    p.add_argument(
        "--random-init", action="store_true", help="the same architecture with untrained weights: a floor"
    )
    p.add_argument(
        "--revision",
        help="of a hub repository: a branch, tag or commit (default: its newest); the commit found is recorded",
    )
    p.add_argument(
        "--stream",
        action="store_true",
        help="take all items through one layer before the next is read; chosen by itself when the weights do not fit",
    )
    p.add_argument("--max-memory", help="15GB: use no more of the GPU's (on a CPU: the process's) memory")
    p.add_argument(
        "--questions",
        help="a text file, a question a line: adds asked.<i>, what language layer i holds at the end of each question; the picture is computed once",
    )
    p.add_argument(
        "--ask",
        action="store_true",
        help="write the model's own answers to questions about the test items, and no features",
    )
    p.add_argument(
        "--frames",
        help=f"which frames of a clip are shown: {', '.join(CHOICES)}; with --ask several with commas between, the first against the others (default: all frames)",
    )
    p.add_argument("--count", type=int, default=8, help="with --frames: how many (default: %(default)s)")
    p.add_argument(
        "--largest-gap", type=int, help="with --frames motion or uniform: between two frames shown, in frames"
    )
    p.add_argument(
        "--shard", help="i/n: only every n-th shard, starting with the i-th (0-based), for cluster arrays"
    )
    p.add_argument("--list", action="store_true", help="print the registry and stop")
    return p.parse_args(argv)


# Points behind the tower that others have not.
BESIDES = {
    "cogvlm2": "conv",
    "qwen3_vl": "deepstack.0-2",
    "grounding-dino": "scale.0-3 encoder.0-5",
    **dict.fromkeys(("owlvit", "owlv2"), "class_head box_head"),
}


def ways_of(args, items):
    """The ways of choosing frames that --frames names, for clips that have so many."""
    ways = args.frames.split(",") if args.frames else []
    for how in ways:
        known(how, dict.fromkeys(CHOICES), "way of choosing frames in --frames")
    if args.largest_gap and not {"motion", "uniform"} & set(ways):
        refuse(
            f"--largest-gap {args.largest_gap} is kept by frames chosen by motion or evenly; give --frames motion or uniform, or leave it out"
        )
    if len(ways) > 1 and not args.ask:
        refuse(
            f"--frames {args.frames} names {len(ways)} ways, and features are made of one; compare ways with --ask, or give one"
        )
    lengths = {len(item["frames"]) if "frames" in item else 1: item["id"] for item in items} if ways else {}
    if ways and (args.count < 1 or min(lengths) < max(args.count, 2)):
        refuse(
            f"--count {args.count}: {lengths[min(lengths)]} of {args.data} has {min(lengths)} frame{'s' * (min(lengths) > 1)}; give 1 or more, and no more than the shortest clip has"
        )
    if ways and args.largest_gap and max(lengths) - 1 > args.largest_gap * (args.count - 1):
        refuse(
            f"--largest-gap {args.largest_gap}: {lengths[max(lengths)]} of {args.data} has {max(lengths)} frames, too many for --count {args.count}; raise one of the two"
        )
    return ways


def picked(items, how, args, count=None):
    """Items cut to the frames that --frames would show."""
    if not how:
        return items
    gap = args.largest_gap if how in ("motion", "uniform") else None
    return [
        item
        | {
            "shown": choose_frames(
                item["frames"],
                count or args.count,
                how,
                (args.seed, zlib.crc32(item["id"].encode())),
                largest_gap=gap,
            )
        }
        for item in tqdm(items, desc=f"frames by {how}", unit="clip", leave=False, delay=5)
    ]


def same_items(items, data):
    """What identifies the items of a folder, without reading their pictures."""
    more = [str(data[k]) for k in ("content", "cut_from", "first", "frames", "wait") if k in data]
    return digest("\n".join([*data["ids"], str(items[0]["width"]), str(data.get("seed")), *more]).encode())


def described(entry):
    """A row of --list, from an entry of the registry alone; "-" for what it does not state.

    tokens, kB: of one image of the registry's size at one point of the tower (of its first-last stage, if it has several) / at the merger or one point of the language model, in fp16.
    GB of GPU memory, with weights of 2 bytes: whole = 2 (all - head); streamed = 2 (outside the stacks + 2 largest layers) + a margin for the activations of one image,
    1 GB + 32 bytes x tokens x width of the larger stack (16 rows of that width, of 2 bytes: q, k, v, the gated MLP, residuals).
    """
    row = {
        "repository": entry["path"],
        "revision": "local" if entry["path"].startswith(TINY) else entry.get("revision") or "newest",
        "params_B": "-",
        "licence": entry.get("licence", "-"),
        "points": "-",
        "px": entry.get("size", "-"),
        "tokens": "-",
        "kB": "-",
        "GB_whole": "-",
        "GB_streamed": "-",
    }
    if "params" in entry:
        row |= {
            "params_B": f"{entry['params']:.3g}",
            "GB_whole": f"{2 * (entry['params'] - entry['head']):.3g}",
        }
    if not entry.get("vision"):
        return row
    layers, patch, width = entry["vision"]
    stages = layers if isinstance(layers, tuple) else (layers,)
    sides = [entry["size"] // (patch << stage) for stage in range(len(stages))]
    stacks = [[(side**2, width << stage) for stage, side in enumerate(sides)]]
    points = ["patch_embed", f"vision.0-{sum(stages) - 1}"] if layers else ["latents", "latents-raw"]
    points += [BESIDES[entry["type"]]] if entry["type"] in BESIDES else []
    if entry["language"]:
        layers, merge, width = entry["language"]
        stacks.append([(math.prod(merge) if isinstance(merge, tuple) else (sides[-1] // merge) ** 2, width)])
        points += ["merger", f"language.0-{layers - 1}"]
    streamed = (
        2 * (entry["outside"] + 2 * entry["layer"])
        + 1
        + 32e-9 * max(n * width for stack in stacks for n, width in stack)
    )

    def both(shown):
        return "/".join(
            "-".join(dict.fromkeys(f"{shown(*stack[k]):.0f}" for k in (0, -1))) for stack in stacks
        )

    return row | {
        "points": " ".join(points),
        "tokens": both(lambda n, width: n),
        "kB": both(lambda n, width: 2 * n * width / 1000),
        "GB_streamed": f"{streamed:.1f}" if entry["layer"] else "-",
    }


def aligned(rows):
    """Lines of dicts with the same keys, the columns aligned under the keys."""
    rows = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    return ["  ".join(f"{x!s:<{w}}" for x, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def agree(out, plan):
    """Refuse to go on in a folder that was begun with other settings."""
    if (out / "plan.yaml").exists() and (before := load_yaml(out / "plan.yaml")) != plan:
        what = next(k for k in before | plan if before.get(k) != plan.get(k))
        refuse(
            f"{out} holds features made with {what} {before.get(what)!r}, not {plan.get(what)!r}; delete the folder or give another --out"
        )


def whole_tokens(size, multiple, model):
    """Refuse a side that cuts a token."""
    if size % multiple:
        refuse(
            f"--size {size} is not a multiple of {multiple}, the width of one token of {model}; give {max(size // multiple, 1) * multiple}"
        )


def chosen(args, points):
    """{point: module path} of the points that --points asks for, in the order of execution."""
    names = {"all": list(points), "quarters": quarters(points), "last": list(points)[-1:]}.get(
        args.points
    ) or args.points.split(",")
    if unknown := [n for n in names if n not in points]:
        refuse(f"{args.model} has no point {unknown[0]!r}; its points are {', '.join(points)}")
    return {n: points[n][0] for n in points if n in names}


def compute(args, entry, plan, items, out, todo, device, dtype):
    """Compute and write the shards `todo`; ({point: module path}, bytes of weights that were read)."""
    most = memory_size(args.max_memory) if args.max_memory else None
    seed = args.seed if args.random_init else None
    network, streamed = None, False
    if entry["kind"] == "vae":
        if args.stream:
            refuse(f"{args.model} is an autoencoder, not a stack of layers, and small: leave --stream out")
        model, processor = LOADERS["vae"](entry, device, dtype, seed)
    else:
        model, processor, weights = skeleton(entry, dtype, device, seed)
    make_inputs, points, multiple, first_frame = family_of(model)(model, processor)
    whole_tokens(args.size, multiple, args.model)
    modules = chosen(args, points)
    if entry["kind"] != "vae":
        network = Network(model, weights, device, points, list(modules)[-1])
        weights.ready(network.weights_of(network.wanted))
        whole = network.bytes(network.wanted)
        least = network.bytes(network.largest(2))
        limit = memory_left(device, most)
        streamed = args.stream or 1.2 * whole > limit  # a fifth for activations
        print(
            f"weights {whole / 1e9:.2f} GB, memory {limit / 1e9:.1f} GB: {'layer by layer' if streamed else 'at once'}"
        )
        if streamed and least > limit:
            refuse(
                f"{args.model} needs {least / 1e9:.2f} GB even layer by layer, and there are {limit / 1e9:.2f}; free some, or raise --max-memory"
            )
        if args.random_init and streamed:  # the library's own initialisation needs the whole network at once
            plan["random_seed"] = f"{seed}, by name"
            agree(out, plan)
        if args.random_init and not streamed:
            model, processor = LOADERS[entry["kind"]](entry, device, dtype, seed)
            make_inputs, points, *_ = family_of(model)(model, processor)
        else:
            network.fill([] if streamed else network.wanted)

    if args.questions and (
        streamed or network is None or model.config.model_type not in ASKABLE or not processor
    ):
        refuse(
            f"--questions needs {'the whole model at once: leave --stream out' if streamed else f'a causal language model with a tokenizer, which {args.model} has not: leave it out'}"
        )
    questions = plan.get("questions", [])
    asked = {
        f"asked.{name.partition('.')[2]}": name
        for name in modules
        if questions and name.startswith("language.")
    }
    if questions and not asked:
        refuse(
            f"--questions is about language layers, and --points {args.points} names none; give some of {', '.join(p for p in points if p.startswith('language.'))}"
        )

    def inputs_of(frames):
        batch = make_inputs(frames)  # refuses frames that the model cannot take, before anything is written
        if questions:
            batch = up_to_the_picture(model, batch)
        if not (out / "plan.yaml").exists():
            save_yaml(out / "modules.yaml", modules | {new: modules[old] for new, old in asked.items()})
            save_yaml(out / "plan.yaml", plan)
        return batch

    def restore(point, x, batch):
        return points[point][1](x, batch)

    def questions_about(batch, given):
        found = ask(
            model,
            run,
            given,
            [words_behind(model, processor, batch, question) for question in questions],
            set(asked.values()),
            dtype,
        )
        # [n, t, 1, questions, D]
        return {
            new: found[old].unflatten(0, (-1, batch.get("frames", 1)))[:, :, None]
            for new, old in asked.items()
        }

    def finish(shard, seconds):
        shard.mark(
            grid=without_grid(points) | set(asked), causal={p for p in points if sees_later_frames(model, p)}
        )
        shard.add_pixels(first_frame)
        shard.finish([*modules, *asked], seconds)

    with Writer() as write, watching(model, modules) if network else latents_of(model) as run:
        shards = (
            Shard(
                out,
                s,
                picked(items[s * SHARD : (s + 1) * SHARD], args.frames, args),
                args.size,
                args.batch,
                [*modules, *asked],
                write,
            )
            for s in todo
        )
        if streamed:
            # half for what comes to be held on the way
            layer_by_layer(network, run, inputs_of, restore, list(shards), dtype, finish, (limit - least) / 2)
        else:
            shards = tqdm(
                shards, desc=f"{entry['name']} {Path(args.data).name}", unit="shard", total=len(todo)
            )
            one_by_one(
                run, inputs_of, restore, shards, device, dtype, finish, questions_about if questions else None
            )
    return modules | {
        new: modules[old] for new, old in asked.items()
    }, network.weights.bytes if network else None


def done(out, shard):
    """Is the shard complete?"""
    return (out / "pooled" / f"{shard:05d}.pt").exists()


def meet(args):
    """Wait until every rank of torchrun is here. Returns whether this is the one that goes on."""
    if not args.shard and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
            atexit.register(torch.distributed.destroy_process_group)
        torch.distributed.barrier()
        return torch.distributed.get_rank() == 0
    return True


def conclude(args, started, out, data, modules, facts, **run):
    """Write pooled.pt and, last, index.yaml, if every shard is there; the result."""
    shards = -(-len(data["ids"]) // SHARD)
    if missing := [s for s in range(shards) if not done(out, s)]:
        print(
            f"shards_missing {len(missing)} of {shards}: run the other --shard parts, then any of them again"
        )
        return {"shards_missing": len(missing)}
    parts = [load_pt(out / "pooled" / f"{s:05d}.pt", POOLED) for s in range(shards)]
    names = list(parts[0]["pooled"])
    pooled = {
        p: {k: torch.cat([part["pooled"][p][k] for part in parts]) for k in ("mean", "max")} for p in names
    }
    save_pt(out / "pooled.pt", POOLED, data["ids"], {"model": facts["model"]}, pooled=pooled)
    table = {
        p: {
            "module": modules.get(p, "the frames themselves"),
            "shape": parts[0]["pooled"][p]["shape"],
            "dtype": "float16",
            "bytes": sum(f.stat().st_size for f in (out / p).glob("*.pt")),
            "nonfinite": sum(part["pooled"][p]["nonfinite"] for part in parts),
        }
        | {k: False for k in ("grid", "causal") if not parts[0]["pooled"][p].get(k, True)}
        for p in names
    }
    # none where layers were streamed: a pass has no seconds of its own
    seconds = sorted(s for part in parts for s in part["meta"]["seconds"])
    result = {
        "stage": "extract",
        "schema": FEATURES,
        **facts,
        "data": data["data"],
        "items": len(data["ids"]),
        "size": args.size,
        "seconds_per_item": seconds[len(seconds) // 2] if seconds else None,
        "bytes": sum(t["bytes"] for t in table.values()),
        "nonfinite": sum(t["nonfinite"] for t in table.values()),
        "data_path": str(args.data),
        "shards": shards,
        "points": table,
        **(
            {
                "frames": args.frames,
                "count": args.count,
                "shown": [shown for part in parts for shown in part["meta"]["shown"]],
            }
            if args.frames
            else {}
        ),
        "ids": data["ids"],
        "run": run_info(
            args, started, micro_batch=args.batch, streamed=not seconds, script="extract.py", **run
        ),
    }
    save_yaml(out / "index.yaml", result)
    say(result)
    return result


def one_model(args, started):
    """Features of one model; the result, or {} on a rank that does not write it."""
    entry = find_model(args.model) | {"revision": args.revision}
    if entry["kind"] == "language":
        refuse(
            f"--model {args.model} is a language model, which sees nothing; give a model of `python extract.py --list` that has points"
        )
    if entry["kind"] == "tracker":
        refuse(
            f"--model {args.model} is a tracker, which explain.py --mode tracks asks about objects; give a model of `python extract.py --list` that has points"
        )
    if args.revision and Path(entry["path"]).is_dir():
        refuse(
            f"--revision {args.revision} goes with a repository on the hub, and {entry['path']} is a folder; leave it out"
        )
    args.points = own_names(args.points, entry)
    items, data = load_items(args.data)
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/features")
    check_writable(out / "index.yaml")
    if args.batch < 1:
        refuse(f"--batch {args.batch} is not positive; give 1 or more")
    clip = "frames" in items[0] and len(items[0]["frames"]) > 1
    if args.tiles and (args.size or entry.get("type") not in TILED):
        refuse(f"--tiles goes with {' and '.join(TILED)}, in the place of --size; give {args.model} a --size")
    args.size = args.size or entry["clip" if clip else "size"] * (2 if args.tiles == "all" else 1)
    device, dtype, why = choose_device()
    plan = {
        "model": entry["name"],
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "weights": "random" if args.random_init else entry["weights"],
        "size": args.size,
        "batch": args.batch,
        "points": args.points,
        "random_seed": args.seed if args.random_init else None,
        "dtype": str(dtype),
        "items": same_items(items, data),
    }
    if ways_of(args, items):
        plan["frames"] = [args.frames, args.count, args.largest_gap, args.seed]
    if args.questions:
        plan["questions"] = read_questions(args.questions)
    agree(out, plan)
    rank, ranks = share(args.shard)
    todo = [s for s in range(rank, -(-len(items) // SHARD), ranks) if not done(out, s)]
    modules, read = load_yaml(out / "modules.yaml") if (out / "modules.yaml").exists() else {}, None
    if todo or not modules:
        print(f"device {device.type} ({why})")
        modules, read = compute(args, entry, plan, items, out, todo, device, dtype)
    if not meet(args):
        return {}
    return conclude(
        args,
        started,
        out,
        data,
        modules,
        {"model": entry["name"], "kind": entry["kind"], "weights": plan["weights"]},
        device=f"{device.type} ({why})",
        dtype=str(dtype),
        weights_read_gb=read and read / 1e9,
        model_revision=resolved_commit(entry),
    )


# ---------------------------------------------------------------- what the model itself says

# model type -> (how its family was taught to be asked for a box, the scale of the coordinates that it answers
# with). Qwen2.5-VL: pixels of the resized
# picture (Bai et al. 2025); Qwen2-VL, Qwen3-VL and InternVL: thousandths of the side; LLaVA: fractions.
# CogVLM2 was not released in a variant that
# prints boxes: it is asked in the words of CogVLM 1.
JSON_BOX = "Locate the {}, output its bbox coordinates using JSON format."
SENTENCE_BOX = "Please provide the bounding box coordinate of the region this sentence describes: {}"
GROUNDING = {
    "qwen2_vl": ("Detect the bounding box of the {}.", "thousandths"),
    "qwen2_5_vl": (JSON_BOX, "pixels"),
    "qwen3_vl": (JSON_BOX, "thousandths"),
    "internvl": (SENTENCE_BOX.format("<ref>the {}</ref>"), "thousandths"),
    "cogvlm2": ("Where is the {}? Answer in [[x0,y0,x1,y1]] format.", "thousandths"),
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision"), (SENTENCE_BOX.format("the {}."), "fractions")
    ),
}
CAPTIONED = "What is in the picture?"
OPENLY = {"place": "Where is the {}?", "direction": "Which way does the {} move?"}
LONGEST = 64  # tokens of an answer


def questions_to(item, locate):
    """{kind: question} about the item's object: place or direction, openly and with the possible answers listed; for pictures also its box, in the words of `locate`, and, where the
    item has a caption, for one: a control, which has nothing to do with place."""
    kind, name = "direction" if "direction" in item else "place", asked_object(item)[1]
    openly = OPENLY[kind].format(name)
    questions = {
        kind: openly,
        f"{kind}_listed": f"{openly} Answer with one of: {', '.join(word for row in WORDS[kind] for word in row)}.",
    }
    if kind == "place":
        questions |= {"box": locate.format(name)} | ({"caption": CAPTIONED} if "text" in item else {})
    return questions


def asking(model, processor, batch, question):
    """Inputs for `generate`: a family's inputs with `question` in place of PROMPT."""
    given = up_to_the_picture(model, batch)
    words = torch.tensor(words_behind(model, processor, given, question)).expand(len(given["input_ids"]), -1)
    behind = {
        "input_ids": words,
        "attention_mask": torch.ones_like(words),
        "token_type_ids": torch.zeros_like(words),
        "mm_token_type_ids": torch.zeros_like(words),
    }
    return {
        k: torch.cat([v, behind[k]], 1) if k in ROWS else v
        for k, v in given.items()
        if k not in ("cache", "past_key_values", "use_cache", "behind")
    }


def alike(members, pictures, batch):
    """(numbers, uint8 [n,T,H,W,3]) of at most `batch` pictures that follow each other and are of one shape."""
    for _, some in itertools.groupby(((k, pictures[k]()) for k in members), lambda one: one[1].shape):
        while part := list(itertools.islice(some, batch)):
            numbers, frames = zip(*part, strict=True)
            yield numbers, torch.stack(frames)


def says(model, processor, inputs_of, pictures, questions, batch, device, dtype):
    """The greedy answer, str, to each question about its picture (a function that returns uint8 [T,S,S,3]). Equal questions are asked together, so that nothing is padded."""
    answers, together = [None] * len(questions), {}
    for k, question in enumerate(questions):
        together.setdefault(question, []).append(k)
    own = (
        {}
        if model.config.model_type == "cogvlm2"
        else {"do_sample": False, "pad_token_id": model.generation_config.pad_token_id or 0}
    )
    for question, members in tqdm(together.items(), unit="question"):
        for numbers, frames in alike(members, pictures, batch):
            given = on(asking(model, processor, inputs_of(frames), question), device, dtype)
            with torch.inference_mode():
                tokens = model.generate(**given, **own, max_new_tokens=LONGEST)
            tokens = (
                tokens if model.config.model_type == "cogvlm2" else tokens[:, given["input_ids"].shape[1] :]
            )
            for k, answer in zip(
                numbers,
                getattr(processor, "tokenizer", processor).batch_decode(tokens, skip_special_tokens=True),
                strict=True,
            ):
                answers[k] = answer.strip()
    return answers


def load_to_ask(args, entry, size, device, dtype):
    """(model, processor, function from frames to its inputs)."""
    model, processor = LOADERS["vlm"](entry, device, dtype, args.seed if args.random_init else None)
    inputs_of, _, multiple, _ = family_of(model)(model, processor)
    if isinstance(size, int):  # not one to be fitted
        whole_tokens(size, multiple, args.model)
    return model, processor, inputs_of


def ask_model(args, started):
    """--ask: the answers to the questions about the test items, in answers.pt and answers.yaml."""
    entry = find_model(args.model) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING:
        refuse(
            f"--ask needs a causal language model with a tokenizer, of type {', '.join(GROUNDING)}; {args.model} is of type {entry.get('type')}"
        )
    if args.stream or args.questions or args.shard or args.tiles:
        refuse(
            "--ask reads the whole model at once and writes no features: leave --stream, --questions, --shard and --tiles out"
        )
    items, data = load_items(args.data)
    if "boxes" not in items[0]:
        refuse(
            f"{args.data} has no boxes, and so nothing of which the place could be asked; give a folder with boxes or clips of data.py"
        )
    clip = "direction" in items[0]
    if clip and not entry["type"].startswith("qwen"):
        refuse(
            f"{args.model} takes a clip frame by frame and cannot be asked which way something moves; give a Qwen model, or pictures"
        )
    test = [i for i in items if split_of(i["source"]) == "test"]
    asked = [i for i in test if asked_object(i)]
    if not asked:
        refuse(f"{args.data} has no test item whose largest object has a name of its own; use more items")
    out = Path(
        args.out
        or f"results/{entry['name']}/{Path(args.data).name}/answers{'-random' if args.random_init else ''}.pt"
    )
    check_writable(out)
    size, (locate, scale) = (
        args.size or (entry["clip"] if clip else entry.get("own_shape") or entry["size"]),
        GROUNDING[entry["type"]],
    )
    rows = [(item, kind, question) for item in asked for kind, question in questions_to(item, locate).items()]
    questions = [q for *_, q in rows]
    kinds = [kind for _, kind, _ in rows]
    ids = [item["id"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = {
        "model": entry["name"],
        "weights": "random" if args.random_init else entry["weights"],
        "data": data["data"],
        "data_path": str(args.data),
        "size": size,
        "scale": scale,
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "seed": args.seed,
        "dtype": str(dtype),
    }
    before = load_pt(out, ANSWERS) if out.is_file() else None
    answers = (
        before["answers"]
        if before and before["meta"] == meta and before["questions"] == questions and before["ids"] == ids
        else {}
    )
    if "own" not in answers:
        print(f"device {device.type} ({why})")
        model, processor, inputs_of = load_to_ask(args, entry, size, device, dtype)
        pictures = [functools.partial(frames_of, item, size) for item, *_ in rows]
        answers["own"] = says(model, processor, inputs_of, pictures, questions, args.batch, device, dtype)
        save_pt(out, ANSWERS, ids, meta, kinds=kinds, questions=questions, answers=answers)
    result = {
        "stage": "ask",
        **{k: meta[k] for k in ("model", "weights", "data")},
        "items": len(asked),
        "left_out": len(test) - len(asked),
        "questions": len(rows),
        "answers": [
            {"id": i, "question": q, "own": answer}
            for i, q, answer in zip(ids, questions, answers["own"], strict=True)
        ],
        "run": run_info(
            args,
            started,
            script="extract.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=resolved_commit(entry),
        ),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    say(result)
    return result


def compare_frames(args, started):
    """--ask --frames: the share of test questions that are answered rightly from the frames that each way chooses, in frames.yaml; answers, seconds and numbers of frames in frames.pt."""
    entry = find_model(args.model) | {"revision": args.revision}
    if entry.get("type") not in GROUNDING or not entry["type"].startswith("qwen"):
        refuse(
            f"--ask --frames needs a model that takes clips, and {args.model} is of type {entry.get('type')}; give a Qwen model"
        )
    if args.stream or args.questions or args.shard or args.tiles:
        refuse(
            "--ask --frames reads the whole model at once and compares frames alone: leave --stream, --questions, --shard and --tiles out"
        )
    items, data = load_items(args.data)
    ways = ways_of(args, items)
    rows = [
        (item, question, answer)
        for item in items
        if split_of(item["source"]) == "test"
        for (question, answer), (kind, _) in zip(
            item.get("turns", ()), item.get("asked") or itertools.repeat(("direction", "")), strict=False
        )
        # what is asked about numbers of frames has another answer where others are shown
        if kind == "direction"
    ]
    if not rows:
        refuse(
            f"{args.data} has no test clip with a question and its answer; give a folder with `turns`, say of data.py moving"
        )
    out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/frames.pt")
    check_writable(out)
    size = args.size or entry["clip"]
    ids = [item["id"] for item, *_ in rows]
    sources = [item["source"] for item, *_ in rows]
    device, dtype, why = choose_device()
    meta = {
        "model": entry["name"],
        "weights": "random" if args.random_init else entry["weights"],
        "data": data["data"],
        "data_path": str(args.data),
        "size": size,
        "checkpoint": fingerprint(entry),
        "revision": args.revision,
        "seed": args.seed,
        "dtype": str(dtype),
        "largest_gap": args.largest_gap,
        "items": same_items(items, data),
    }
    before = load_pt(out, ANSWERS) if out.is_file() else None
    answers, facts = (
        (before["answers"], before["facts"])
        if before and before["meta"] == meta and before["ids"] == ids
        else ({}, {})
    )
    print(f"device {device.type} ({why})")
    model, processor, inputs_of = load_to_ask(args, entry, size, device, dtype)

    # on a CPU other processes are not to count
    clock = time.process_time if device.type == "cpu" else time.perf_counter

    def run(how, count):
        name = f"{how}{count}"
        if name not in answers:
            clips, began = {item["id"]: item for item, *_ in rows}, clock()
            shown = dict(zip(clips, picked(list(clips.values()), how, args, count), strict=True))
            chosen, began = clock() - began, clock()
            answers[name] = says(
                model,
                processor,
                inputs_of,
                [functools.partial(frames_of, shown[i], size) for i in ids],
                [question for _, question, _ in rows],
                args.batch,
                device,
                dtype,
            )
            facts[name] = {
                "seconds_choosing": chosen,
                "seconds_answering": clock() - began,
                "shown": [item["shown"] for item in shown.values()],
            }
            save_pt(
                out,
                ANSWERS,
                ids,
                meta,
                questions=[question for _, question, _ in rows],
                answers=answers,
                facts=facts,
            )
        return name

    # warm up before anything is timed
    says(
        model,
        processor,
        inputs_of,
        [lambda: frames_of(picked([rows[0][0]], ways[0], args)[0], size)],
        [rows[0][1]],
        1,
        device,
        dtype,
    )
    names = [run(how, args.count) for how in ways]
    even = run("uniform", args.count)
    first = f"{ways[0]}{args.count}"
    # as many frames take as long, whichever they are
    answering = min(facts[name]["seconds_answering"] for name in {*names, even})
    most = min(
        int(args.count * (1 + facts[first]["seconds_choosing"] / answering)),
        *(len(item["frames"]) for item, *_ in rows),
    )
    paid = [run("uniform", args.count * 2**k) for k in range(1, (most // args.count).bit_length())]
    names = list(dict.fromkeys([*names, even, *paid]))
    correct = {
        name: torch.tensor(
            [float(right(said, answer)) for said, (*_, answer) in zip(answers[name], rows, strict=True)]
        )
        for name in names
    }
    table = {}
    for name in names:
        mean, low, high = bootstrap(correct[name], sources, seed=args.seed)
        table[name] = {"right": mean, "low": low, "high": high} | {
            k: facts[name][k] for k in ("seconds_choosing", "seconds_answering")
        }
    gains = {
        name: paired_test(correct[first], correct[name], sources, seed=args.seed)
        for name in names
        if name != first
    }
    result = {
        "stage": "frames",
        **{k: meta[k] for k in ("model", "weights", "data", "data_path")},
        "clips": len(set(ids)),
        "questions": len(rows),
        "sources": len(set(sources)),
        "count": args.count,
        **{f"right_{name}": row["right"] for name, row in table.items()},
        **{f"gain_over_{name}": row["gain"] for name, row in gains.items()},
        **{f"gain_over_{name}_low": row["gain_low"] for name, row in gains.items()},
        **{f"gain_over_{name}_high": row["gain_high"] for name, row in gains.items()},
        "first": first,
        "equal_time": paid,
        "ways": table,
        "gains": gains,
        "run": run_info(
            args,
            started,
            script="extract.py",
            device=f"{device.type} ({why})",
            dtype=str(dtype),
            model_revision=resolved_commit(entry),
        ),
    }
    save_yaml(out.with_suffix(".yaml"), result)
    say(result)
    return result


# ---------------------------------------------------------------- two encoders side by side


def fuse(a, b):
    """Features [n, t, h, w, D] of two encoders, concatenated on the coarser grid: [n, t, h, w, D']. Where one grid is a whole multiple of the other all tokens of a cell are kept, else they are
    averaged; time steps are averaged."""
    t, h, w = (min(x, y) for x, y in zip(a.shape[1:4], b.shape[1:4], strict=True))

    def match(x):
        if x.shape[2] % h == 0 and x.shape[3] % w == 0:
            x = x.unflatten(3, (w, -1)).unflatten(2, (h, -1)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)
        return torch.nn.functional.adaptive_avg_pool3d(x.movedim(-1, 1), (t, h, w)).movedim(1, -1)

    return torch.cat([match(a), match(b)], -1)


def side_by_side(args, started):
    """--model a+b: the features of both in folders of their own under --out and, for each point of b with a grid, `fused.<point>`: that point beside a's last one."""
    names = args.model.split("+")
    if len(names) != 2 or args.questions:
        refuse(
            f"--model {args.model} with --questions: ask one model alone"
            if args.questions
            else f"--model {args.model} names {len(names)} models; give two, a+b"
        )
    entries = [find_model(name) for name in names]
    if len({entry["name"] for entry in entries}) == 1:
        refuse(f"--model {args.model} names the same model twice; give two that differ")
    items, data = load_items(args.data)
    facts = {"model": "+".join(entry["name"] for entry in entries), "kind": entries[1]["kind"]}
    out = Path(args.out or f"results/{facts['model']}/{Path(args.data).name}/features")
    rank, ranks = share(args.shard)
    for entry, name, points in zip(entries, names, ("last", args.points), strict=True):
        print(f"-- {entry['name']}")
        found = one_model(
            argparse.Namespace(
                **vars(args) | {"model": name, "points": points, "out": str(out / entry["name"])}
            ),
            started,
        )
        if "shards_missing" in found:
            return found
    meet(args)
    a, b = (load_yaml(out / entry["name"] / "index.yaml", "extract") for entry in entries)
    left, right = ([p for p in with_grid(index) if p != "pixels"] for index in (a, b))
    if not (left and right):
        refuse(
            f"{(b if left else a)['model']} has no tokens with a place in the picture at these --points, and so none to stand beside the other's"
        )
    modules = {
        f"fused.{p}": f"{a['model']}: {a['points'][left[0]]['module']}, {b['model']}: {b['points'][p]['module']}"
        for p in right
    }
    with Writer() as write:
        for s in tqdm(
            [s for s in range(rank, a["shards"], ranks) if not done(out, s)], desc="fused", unit="shard"
        ):
            shard = Shard(
                out,
                s,
                picked(items[s * SHARD : (s + 1) * SHARD], args.frames, args),
                None,
                SHARD,
                ["pixels", *modules],
                write,
            )

            def read(index, point, file=shard.file):
                return load_pt(out / index["model"] / point / file, FEATURES)["features"].float()

            shard.add(
                0,
                "pixels",
                read(
                    min(a, b, key=lambda index: math.prod(index["points"]["pixels"]["shape"][:3])), "pixels"
                ),
            )
            for p in right:
                shard.add(0, f"fused.{p}", fuse(read(a, left[0]), read(b, p)))
            shard.mark(
                causal={
                    f"fused.{p}"
                    for p in right
                    if not (a["points"][left[0]].get("causal", True) and b["points"][p].get("causal", True))
                }
            )
            seconds = [
                load_pt(out / index["model"] / "pooled" / shard.file, POOLED)["meta"]["seconds"]
                for index in (a, b)
            ]
            shard.finish(modules, [x + y for x, y in zip(*seconds, strict=True)])
    if not meet(args):
        return {}
    args.size = b["size"]
    kinds = ("random", "unstated", "small", "pretrained")
    return conclude(
        args,
        started,
        out,
        data,
        modules,
        facts | {"weights": min(a["weights"], b["weights"], key=kinds.index)},
        parts={i["model"]: i["run"] for i in (a, b)},
    )


def main(argv=None):
    args, started = get_args(argv), time.time()
    if args.list:
        print(*aligned([{"name": name} | described(entry) for name, entry in MODELS.items()]), sep="\n")
        print(
            "tokens and kB (fp16) of one image at one point: in the tower (its first-last stage) / at the merger and in the language model; GB of GPU memory with weights of 2 bytes"
        )
        return MODELS
    if args.ask:
        return (compare_frames if args.frames else ask_model)(args, started)
    two = "+" in args.model and not Path(args.model).exists()
    return (side_by_side if two else one_model)(args, started)


if __name__ == "__main__":
    main()
