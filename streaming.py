"""The fast path through a model: a pass that stops early, weights read when needed, layers streamed.

`capturing` ends a forward pass at the last module that is asked for. `Network` reads the weights up to that
module. `stream` sends many micro-batches through one layer before the next is read, for models that do not
fit. `half_linears` keeps a model whose residual stream overflows fp16 in fp32, with fp16 matrices.
"""

import contextlib
import functools
import inspect
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.nn import functional as F
from tqdm import tqdm

from checkpoints import fill
from families import LLAVA, PROMPT, QWEN, image_rows
from models import chat

# ---------------------------------------------------------------- one forward pass that stops early


class AllCaptured(Exception):
    """Every point is captured: nothing deeper needs to be computed."""


@contextlib.contextmanager
def capturing(model, modules):
    """run(inputs, seen=None, only=modules) -> {point: output} of `modules` {point: module path}; thread-safe.

    The pass ends at the last of them. Outputs are cloned, because transformers changes some of them in place
    later (in get_image_features).
    """
    here = threading.local()

    def hook(point):
        def capture_output(module, args, output):
            if point not in here.remaining:  # the first output of a module that runs twice
                return
            here.seen[point] = (output if torch.is_tensor(output) else output[0]).clone()
            here.remaining.discard(point)
            if not here.remaining:
                raise AllCaptured

        return capture_output

    @torch.inference_mode()
    def run(inputs, seen=None, only=modules):
        seen = {} if seen is None else seen
        here.seen, here.remaining = seen, set(only)
        try:
            with contextlib.suppress(AllCaptured):
                model(**inputs)
            assert not here.remaining, f"points never reached: {sorted(here.remaining)}"
        finally:
            here.seen = None
        return seen

    handles = []
    for point, path in modules.items():
        handles.append(model.get_submodule(path).register_forward_hook(hook(point)))
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


def capture(model, inputs, modules):
    """`capturing` for a single pass."""
    with capturing(model, modules) as run:
        return run(inputs)


@contextlib.contextmanager
def latents_of(vae, modules=None):
    """`capturing` for an autoencoder: run(inputs) -> {"latents", "latents-raw": the mode}."""

    @torch.inference_mode()
    def run(inputs):
        mode = vae.encode(inputs["sample"]).latent_dist.mode()
        return {"latents": mode, "latents-raw": mode}

    yield run


def wait_for(device):
    """Wait until the GPU is idle. Kernels run asynchronously, so a clock must be read after this."""
    if device.type != "cpu":
        torch.cuda.synchronize()


# ---------------------------------------------------------------- weights, read only when needed

# modules outside the stacks, hardly ever called before the last point is captured
ON_DEMAND = ("lm_head", "text_model", "predictor", "decoder")


def parents(path):
    """The module paths above one: a.b.c -> a.b, a."""
    parts = path.split(".")
    return [".".join(parts[:k]) for k in range(len(parts) - 1, 0, -1)]


class Network:
    """A network that reads only the weights it needs: those outside the layer stacks, and of layers up to the
    deepest point. ON_DEMAND modules are read when they are called.

    layers: module paths of the points vision.<i> and language.<i>; needed: those up to the deepest point;
    outside: names of the weights in no layer.
    """

    def __init__(self, model, weights, device, points, deepest):
        self.model, self.weights, self.device = model, weights, device
        self.layers = [
            point[0] for name, point in points.items() if name.startswith(("vision.", "language."))
        ]
        reached = {points[name][0] for name in list(points)[: list(points).index(deepest) + 1]}
        self.needed = [path for path in self.layers if path in reached]
        on_demand = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in ON_DEMAND]
        within = {parent for path in self.layers for parent in parents(path)}
        on_demand = [path for path in on_demand if path not in within]
        self.names = {}
        for path in [*self.layers, *on_demand]:
            self.names[path] = [name for name in weights.like if name.startswith(f"{path}.")]
        apart = set().union(*self.names.values())
        self.outside = [name for name in weights.like if name not in apart]
        for path in on_demand:
            self.when_called(path, functools.partial(self.fill_and_call, path))

    def when_called(self, path, call):
        """Replace a module's forward by call(*args, **kwargs); hooks on the module still run."""
        self.model.get_submodule(path).forward = call

    @torch.inference_mode()
    def layer(self, path, *args, **kwargs):
        """Call the forward of the module's class."""
        module = self.model.get_submodule(path)
        return type(module).forward(module, *args, **kwargs)

    def fill_and_call(self, path, *args, **kwargs):
        fill(self.model, self.weights, self.names[path], self.device)
        del self.model.get_submodule(path).forward
        return self.layer(path, *args, **kwargs)

    def weights_of(self, layers):
        """Names of the weights outside the stacks and of these layers."""
        names = list(self.outside)
        for path in layers:
            names += self.names[path]
        return names

    def fill(self, layers):
        fill(self.model, self.weights, self.weights_of(layers), self.device)

    def largest(self, n):
        """The n largest layers that are needed."""
        return sorted(self.needed, key=lambda path: self.weights.size(self.names[path]))[-n:]

    def bytes(self, layers):
        """Bytes of the weights outside the stacks and of these layers."""
        return self.weights.size(self.weights_of(layers))


# ---------------------------------------------------------------- fp32 residual stream, fp16 matrices

MATRICES = torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd


def half_linear(self, x):
    """x W^T + b in fp32, by an fp16 product of x scaled to at most 64: large values do not overflow."""
    x = x.float()
    # a power of two keeps the digits of all but the smallest values, and needs no synchronisation
    scale = torch.exp2((x.abs().amax().clamp(min=1e-30).log2() - 6).ceil().clamp(min=0))
    y = F.linear((x / scale).to(self.weight.dtype), self.weight).float() * scale
    return y if self.bias is None else y + self.bias.float()


def half_other(self, x):
    """The output of an embedding or a convolution in fp32."""
    kind = type(self)
    return kind.forward(self, x.to(self.weight.dtype) if x.is_floating_point() else x).float()


def half_linears(model, weights):
    """Keep matrices in fp16 and all else in fp32: Qwen2 and InternLM overflow fp16 in the residual stream."""
    matrices = {path for path, module in model.named_modules() if isinstance(module, MATRICES)}
    for path in matrices:
        module = model.get_submodule(path)
        call = half_linear if isinstance(module, torch.nn.Linear) else half_other
        module.forward = types.MethodType(call, module)
    for name, x in weights.like.items():
        if name.rpartition(".")[0] not in matrices and x.is_floating_point():
            weights.like[name] = x.float()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.float()


# ---------------------------------------------------------------- one layer after another, for all items


class Pass(threading.Thread):
    """The forward pass of one micro-batch in a thread of its own. It waits at every layer for the main thread
    to compute the output. The model's code between the layers (merging, DeepStack, masks, rotary embeddings)
    runs unchanged.
    """

    def __init__(self, forward, inputs):
        super().__init__(daemon=True)
        self.forward, self.inputs, self.seen = forward, inputs, {}
        self.at = self.output = self.error = None
        self.given_up = False
        self.go, self.stands = threading.Semaphore(0), threading.Semaphore(0)

    def run(self):
        try:
            self.forward(self.inputs, self.seen)
        except BaseException as e:  # raised again in the main thread
            self.error = e
        self.at = None
        self.stands.release()

    def request(self, *at):
        """Request a layer's output from the main thread; called by the layer's replaced forward."""
        self.at = at
        self.stands.release()
        self.go.acquire()
        if self.given_up:
            raise AllCaptured
        output, self.output = self.output, None
        return output

    def deliver(self, output):
        """Deliver a layer's output and wait until the pass reaches the next layer or ends."""
        self.output, self.at = output, None
        self.go.release()
        self.wait()

    def wait(self):
        self.stands.acquire()
        # an error that stayed here would hold, by its traceback, this pass and its tensors
        error, self.error = self.error, None
        if error:
            raise error

    def close(self):
        """End the thread and let go of all tensors."""
        self.given_up = True
        self.go.release()
        self.join()
        self.forward = self.inputs = self.seen = self.at = self.output = self.error = None

    def bytes(self):
        """Bytes held while waiting: inputs, residual stream, masks, rotary embeddings."""
        from torch.utils._pytree import tree_leaves

        tensors = {id(x): x for x in tree_leaves((self.inputs, self.at)) if torch.is_tensor(x)}
        return sum(x.nbytes for x in tensors.values())


class LayerReader:
    """Loads a layer's weights while the one before computes, so two layers are in memory."""

    def __init__(self, network):
        self.network, self.device = network, network.device
        self.following = dict(zip(network.needed, network.needed[1:], strict=False))
        self.pool, self.ahead = ThreadPoolExecutor(1), {}
        # on a separate CUDA stream, the copy overlaps the computation
        self.side = torch.cuda.Stream(self.device) if self.device.type != "cpu" else None
        if network.needed:
            self.start(network.needed[0])

    def start(self, path):
        self.ahead[path] = self.pool.submit(self.read, path)

    def read(self, path):
        weights, names = self.network.weights, self.network.names[path]
        if not self.side:
            return dict(weights.read(names))
        state = {}
        with torch.cuda.stream(self.side):
            for name, x in weights.read(names):
                state[name] = x.pin_memory().to(self.device, non_blocking=True)
            self.side.synchronize()
        return state

    @contextlib.contextmanager
    def loaded(self, path):
        """The layer's weights are in the model within this context."""
        network = self.network
        if path not in self.ahead:
            self.start(path)
        state = self.ahead.pop(path).result()
        if path in self.following:
            self.start(self.following[path])
        network.model.load_state_dict(state, strict=False, assign=True)
        try:
            yield
        finally:
            if self.side:
                for x in state.values():
                    x.record_stream(torch.cuda.current_stream())
            empty = {name: network.weights.like[name] for name in state}
            network.model.load_state_dict(empty, strict=False, assign=True)

    def close(self):
        self.pool.shutdown(cancel_futures=True)
        self.ahead.clear()


def begin(network, forward, batches, budget, drain):
    """Start the passes of as many micro-batches as `budget` bytes hold; each waits at the first layer."""

    def request(path, *args, **kwargs):
        return threading.current_thread().request(path, args, kwargs)

    for path in network.layers:
        network.when_called(path, functools.partial(request, path))
    held = 0
    for k, inputs in enumerate(batches):
        one = Pass(forward, inputs)
        yield one
        one.start()
        one.wait()
        drain(k, one.seen)
        held += one.bytes()
        if held + one.bytes() > budget:
            return


def advance(network, one, path):
    """Compute the layer at which a pass waits, and let the pass go on."""
    where, args, kwargs = one.at
    # the same code runs for every micro-batch, so all wait at the same layer
    assert where == path, (where, path)
    one.at = None  # the input of a layer is free once its output exists
    one.deliver(network.layer(path, *args, **kwargs))


def stream(network, forward, batches, budget, drain):
    """Stream as many micro-batches (inputs of `forward`) as `budget` bytes hold. Returns their number.

    drain(k, seen) receives the outputs of micro-batch k so far, and takes them out of `seen`. After an error
    (out of memory) no input, output or layer stays in memory.
    """
    passes, reader = [], LayerReader(network)
    try:
        for one in begin(network, forward, batches, budget, drain):
            passes.append(one)
        with tqdm(total=len(network.needed), unit="layer") as bar:
            while any(one.at for one in passes):
                path = next(one.at[0] for one in passes if one.at)
                with reader.loaded(path):
                    for k, one in enumerate(passes):
                        if one.at:
                            advance(network, one, path)
                            drain(k, one.seen)
                bar.update()
        return len(passes)
    finally:
        reader.close()
        for one in passes:
            one.close()


# ---------------------------------------------------------------- several questions about one image

# causal, with words after the image, and without recurrent layers (Qwen3.5)
ASKABLE = (*QWEN[:4], *LLAVA, "internvl", "cogvlm2")
ROWS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


def up_to_the_image(model, batch):
    """The inputs up to the image, with an empty key-value cache; `behind`: the ids of the words cut off."""
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
    """Position ids of words [n, k] after the image, by the library's rules; under M-RoPE an image takes fewer
    positions than rows."""
    if model.config.model_type == "cogvlm2":
        from cogvlm2 import image_positions

        first = image_positions(given["token_type_ids"])[:, -1:] + 1
        return first + torch.arange(words.shape[1], device=words.device)
    end = given["input_ids"].shape[1]
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(end, end + words.shape[1], device=words.device).expand(words.shape)
    rows = {"mm_token_type_ids": 0, "attention_mask": 1}
    rows = {name: torch.cat([given[name], torch.full_like(words, value)], 1) for name, value in rows.items()}
    accepted = inspect.signature(model.model.get_rope_index).parameters
    more = {name: given[name] for name in accepted if name in given and name not in ROWS}
    return model.model.get_rope_index(torch.cat([given["input_ids"], words], 1), **rows, **more)[0][..., end:]


def states_at_questions(model, run, given, questions, points, dtype):
    """Hidden states at the last token of every question, {point: [sequences, questions, D]}, in one pass.

    given: inputs up to the image, whose keys and values are in the cache; questions: lists of token ids. Each
    has the positions it would have alone, and attends only to the image and to itself.
    """
    ids = torch.tensor([token for question in questions for token in question])
    ids = ids.to(given["input_ids"].device)
    lengths = torch.tensor([len(question) for question in questions], device=ids.device)
    n, end = given["input_ids"].shape
    number = torch.arange(len(questions), device=ids.device).repeat_interleave(lengths)
    place = torch.arange(len(ids), device=ids.device) - (lengths.cumsum(0) - lengths)[number]
    longest = torch.zeros(n, int(lengths.max()), dtype=torch.long, device=ids.device)
    attends = (number[:, None] == number) & (place[:, None] >= place)  # [rows, rows]
    attends = torch.cat([attends.new_ones(len(ids), end), attends], 1).expand(n, 1, -1, -1)
    places, rows = positions_behind(model, given, longest)[..., place], ids.expand(n, -1)
    inputs = {"input_ids": rows, "position_ids": places}
    if "cache" in given:
        inputs |= {"token_type_ids": torch.zeros_like(rows), "mask": attends, "cache": given["cache"]}
    else:
        mask = torch.zeros(attends.shape, dtype=dtype, device=ids.device)
        mask = mask.masked_fill(~attends, torch.finfo(dtype).min)
        inputs |= {"attention_mask": mask, "past_key_values": given["past_key_values"], "use_cache": True}
    return {point: x[:, lengths.cumsum(0) - 1] for point, x in run(inputs, only=points).items()}
