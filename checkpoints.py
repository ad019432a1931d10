"""Checkpoints: files, weights one by one, quantised weights, adapters, untrained weights; why one fails.

A checkpoint is a folder or a repository of the hub. Plain weights (safetensors, pytorch_model.bin) are read
when they are needed, so that a model that does not fit can be streamed. Quantised weights and adapters are
dequantised and merged by their libraries in the CPU's memory first, and served from there. Untrained weights
are drawn: the same by seed and name, in whatever order they are read.
"""

import contextlib
import copy
import functools
import hashlib
import importlib.util
import json
import math
import re
import types
from importlib.metadata import version
from pathlib import Path

import torch

from common import digest, fail, memory_left

ADAPTER_CONFIG = "adapter_config.json"  # of peft
CONFIGS = "config.json", "model_index.json"  # name the class in a folder: of a model, of a pipeline
# what helps where weights do not fit
SMALLER = "free some, give a smaller model, or use extract.py --stream or tune.py train --method qlora"

# ---------------------------------------------------------------- why a checkpoint is not loaded


def causes(error):
    """An exception and all that it was raised from: transformers wraps the hub's exceptions in an OSError."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def unreachable(error):
    """Whether an exception says that no server answered."""
    from huggingface_hub import errors

    network = ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "socket")
    raised_there = type(error).__module__.split(".")[0] in network
    silent = raised_there and getattr(error, "response", None) is None
    return silent or isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError))


def of_the_hub(found, entry):
    """The sentence for exceptions of the hub or the network; None for others."""
    from huggingface_hub import errors

    where, part = entry["path"], entry.get("subfolder")
    page = f"https://huggingface.co/{where}"
    include, folder = (f" --include {part}/*", f"the folder {part} in it") if part else ("", "the folder")
    fetch = f"`hf download {where}{include}` on a machine with a network, then pass {folder} as MODEL"
    sentences = {
        errors.GatedRepoError: f"it is gated; accept its licence at {page}, then `hf auth login`",
        errors.RevisionNotFoundError: f"it has no revision {entry.get('revision')!r}; see {page}/commits",
        errors.RepositoryNotFoundError: "the hub has no such repository or a private one; `hf auth login`",
        errors.OfflineModeIsEnabled: f"HF_HUB_OFFLINE is set; {fetch}",
    }
    for kind, sentence in sentences.items():
        if any(isinstance(e, kind) for e in found):
            return sentence
    status = {getattr(getattr(e, "response", None), "status_code", None) for e in found}
    if status & {401, 403}:
        return sentences[errors.GatedRepoError]
    if any(map(unreachable, found)):
        return f"the hub cannot be reached; {fetch}"


# words of a library's message -> what to do
REMEDIES = {
    r"HeaderTooLarge|MetadataIncompleteBuffer|InvalidHeader|incomplete metadata|PytorchStreamReader|"
    r"deserializing header|JSONDecodeError": "a file is not whole; copy it again",
    r"trust_remote_code": "code from the hub is not executed here; use a model of `python extract.py --list`",
    r"transformers *[><=!~]=? *[\d.]+|does not recognize this architecture": "`pip install -U transformers` "
    f"({version('transformers')} is installed)",
    r"[Uu]nrecognized (image|video) processor|image_processor_type|preprocessor_config": "fetch the present "
    "preprocessor_config.json of the repository into the folder",
    r"[Tt]okenizer|SentencePiece|tiktoken": "fetch the repository's tokenizer.json and "
    "tokenizer_config.json into the folder",
}


def trouble(error, entry):
    """Why a checkpoint could not be loaded, in the library's own words, and the remedy where one is known."""
    found = causes(error)
    if any(isinstance(e, torch.OutOfMemoryError) for e in found):
        return f"the device's memory is full; {SMALLER}"
    if sentence := of_the_hub(found, entry):
        return sentence
    lines = [line.strip() for line in str(found[0]).splitlines() if line.strip()]
    message = " ".join(lines)[:300].rstrip(". ") or type(found[0]).__name__
    text = " ".join(f"{type(e).__name__} {e}" for e in found)
    remedies = (remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text))
    return "; ".join([message, *[remedy for remedy in remedies][:1]])


def attempt(build, entry):
    """Run a loader; exit 2 with one sentence and the remedy where it raises.

    `build` returns a processor, a config, or (model, loading info); missing weights exit 2, since they would
    be random, and so do scales of quantised weights without their method.
    """
    where = entry["path"]
    try:
        found = build()
    except Exception as e:
        # OSError, ValueError, safetensors' error, ...: libraries raise many kinds
        fail(f"cannot load {where}: {trouble(e, entry)}")
    if isinstance(found, tuple):
        model, info = found
        if missing := sorted(info["missing_keys"]):
            fail(f"{where} lacks weights ({len(missing)}, {missing[0]} first); fetch the whole checkpoint")
        if scales := [name for name in sorted(info["unexpected_keys"]) if SCALES.search(name)]:
            fail(f"{where} holds quantised weights ({scales[0]}), but no quantization_config; {ORIGINAL}")
        return model
    return found


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


# ---------------------------------------------------------------- files


def read_json(path):
    """A JSON file of a checkpoint; exit 2 for a broken one."""
    try:
        return json.loads(Path(path).read_text())
    except ValueError as e:
        fail(f"{path} is not readable JSON ({e}); copy it again")


def pin(entry):
    """Arguments of from_pretrained: the revision, if given, and no code from the hub."""
    return {"trust_remote_code": False} | ({"revision": entry["revision"]} if entry.get("revision") else {})


def hub_file(entry, name):
    """Path of one file of a checkpoint, downloaded if needed; None if there is no such file."""
    if Path(entry["path"]).is_dir():
        return Path(entry["path"], name) if Path(entry["path"], name).is_file() else None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    revision = resolved_commit(entry) or entry.get("revision")
    found = try_to_load_from_cache(entry["path"], name, revision=revision)
    if isinstance(found, str):
        return Path(found)
    try:
        return Path(hf_hub_download(entry["path"], name, revision=revision))
    except LocalEntryNotFoundError:  # no network
        raise
    except EntryNotFoundError:
        return None


def config_of(entry, name="config.json"):
    """A JSON file of a checkpoint as a dict; exit 2 where there is none."""
    path = attempt(lambda: hub_file(entry, name), entry)
    return (
        read_json(path)
        if path
        else fail(f"{entry['path']} has no {name}; fetch it (of an adapter, give the folder)")
    )


def cached_folder(entry):
    """The folder of the local cache with the hub's repository at the entry's revision, or None."""
    from huggingface_hub import try_to_load_from_cache

    config = "/".join(filter(None, (entry.get("subfolder"), CONFIGS[entry.get("kind") == "video"])))
    found = try_to_load_from_cache(entry["path"], config, revision=entry.get("revision"))
    return Path(found).parents[config.count("/")] if isinstance(found, str) else None


def reachable(entry):
    """The entry; with the cached snapshot as its path where the hub cannot be reached.

    Without a network, transformers requests each of several files six times, which takes minutes; this
    requests one file once.
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
        snapshot = None if absent else cached_folder(entry)
        if not snapshot:
            fail(f"cannot load {path}: {trouble(e, entry)}")
        return entry | {"path": str(snapshot), "revision": None}
    return entry


def resolved_commit(entry):
    """The commit of the hub's repository in the local cache, or None for a folder."""
    found = None if Path(entry["path"]).is_dir() else cached_folder(entry)
    return found and found.name


def fingerprint(path):
    """Identity of a checkpoint (a path or an entry): the hub's name and commit, or a digest of content."""
    entry = path if isinstance(path, dict) else {"path": path}
    if entry.get("adapter"):
        return f"{fingerprint(entry | {'adapter': None})}+{fingerprint(entry['adapter'])}"
    folder, parts = Path(entry["path"]), []
    if not folder.is_dir():
        return "@".join(filter(None, (entry["path"], resolved_commit(entry))))
    for file in sorted(f for f in folder.rglob("*") if f.suffix in (".json", ".safetensors", ".bin")):
        parts.append(file.relative_to(folder).as_posix().encode())
        parts.append(file.read_bytes() if file.suffix == ".json" else sample_of(file))
    return digest(b"".join(parts))


def header_of(file):
    """The header of a safetensors file: JSON with the shape, dtype and place of each tensor."""
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        return f.read(min(length, file.stat().st_size))


def sample_of(file, blocks=64, block=64 * 1024):
    """A file's size, header (of safetensors) and evenly spread blocks; the whole of a small file."""
    size = file.stat().st_size
    if size <= blocks * block:
        return file.read_bytes()
    parts = [f"{size} ".encode(), header_of(file) if file.suffix == ".safetensors" else b""]
    with file.open("rb") as f:
        for k in range(blocks):
            f.seek(k * (size - block) // (blocks - 1))
            parts.append(f.read(block))
    return b"".join(parts)


def stored_bytes(entry, dtype):
    """Bytes of a checkpoint's weights in `dtype`: by its files, or the registry where they are not here."""
    folder = Path(entry["path"]) if Path(entry["path"]).is_dir() else cached_folder(entry)
    tensors = []
    for file in folder.glob("*.safetensors") if folder else ():
        tensors += [x for name, x in json.loads(header_of(file)).items() if name != "__metadata__"]
    numbers = sum(math.prod(x["shape"]) for x in tensors)
    if folder and not numbers:  # usually of two bytes
        numbers = sum(file.stat().st_size for file in folder.glob("pytorch_model*.bin")) // 2
    return dtype.itemsize * (numbers or 1e9 * entry.get("params", 0))


# ---------------------------------------------------------------- weights, one by one


def opened(path):
    """The tensors of a file by name, mapped: keys() and get_tensor(name)."""
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(path, "pt")
    state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return types.SimpleNamespace(keys=state.keys, get_tensor=state.__getitem__)


class Weights:
    """A checkpoint's weights under the names of `model`'s parameters, read on demand.

    new_names(name): the names in the model of a stored tensor; parts(name, tensor): its parts, one for each.
    Raises FileNotFoundError where there are no weights, KeyError naming the first that the checkpoint lacks.
    """

    def __init__(self, entry, model, new_names, parts=lambda name, tensor: [tensor]):
        self.entry, self.parts = entry, parts
        self.files, self.bytes = {}, 0
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}
        self.where = {}
        for key, file in self.stored().items():
            self.where |= {name: (file, key, k) for k, name in enumerate(new_names(key))}
        tied = getattr(model, "all_tied_weights_keys", {})
        for name in self.like:
            if name not in self.where and tied.get(name) in self.where:
                self.where[name] = self.where[tied[name]]
        if missing := sorted(set(self.like) - set(self.where)):
            raise KeyError(f"weights are missing ({missing[0]} and {len(missing) - 1} more)")

    def stored(self):
        """{name of a stored tensor: its file}."""
        for file in ("model.safetensors", "pytorch_model.bin"):
            if index := hub_file(self.entry, f"{file}.index.json"):
                return json.loads(index.read_text())["weight_map"]
            if hub_file(self.entry, file):
                return dict.fromkeys(self.open(file).keys(), file)
        raise FileNotFoundError("there is neither model.safetensors nor pytorch_model.bin")

    def open(self, file):
        if file not in self.files:
            path = hub_file(self.entry, file)
            if path is None:
                raise FileNotFoundError(f"there is no {file}; copy it too")
            self.files[file] = opened(path)
        return self.files[file]

    def ready(self, names):
        """Open the files of these weights; exit 2 for a missing or truncated one before the work starts."""
        files = {self.where[name][0] for name in names}
        attempt(lambda: [self.open(file) for file in files], self.entry)

    def read(self, names):
        """(name, tensor on the CPU in the model's dtype) of each; copied, as mapped ones are read at use."""
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
                part, like = parts[self.where[name][2]], self.like[name]
                if part.itemsize == 1 and like.is_floating_point():
                    where = f"{self.entry['path']} holds {key} as {part.dtype}"
                    fail(f"{where}, but states no quantization_config; {ORIGINAL}")
                yield name, part.to(like.dtype, copy=True)

    def size(self, names):
        """Bytes in memory."""
        return sum(self.like[name].nbytes for name in names)


class Converted(Exception):
    """A checkpoint stores a weight in a form that the library's loader converts."""


class Loaded:
    """Weights that a library has read into `whole`, in the CPU's memory. The interface is that of Weights."""

    def __init__(self, model, whole):
        self.state, self.bytes = whole.state_dict(), 0
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}

    def ready(self, names):
        """Nothing to open."""

    def read(self, names):
        for name in names:
            yield name, self.state[name].to(self.like[name].dtype)

    size = Weights.size


@torch.inference_mode(False)  # inference tensors cannot become parameters
def fill(model, weights, names, device="cpu"):
    """Put the named weights into the model."""
    model.load_state_dict({name: x.to(device) for name, x in weights.read(names)}, strict=False, assign=True)


# ---------------------------------------------------------------- quantised weights

ORIGINAL = "use the original, unquantised checkpoint"
SCALES = re.compile(r"(weight_scale|weight_scale_inv|SCB|qweight|qzeros|weight_packed|absmax|quant_map)$")
# method -> (transformers' class that dequantises while loading, the package that this needs)
DEQUANTISED = {
    "fp8": ("FineGrainedFP8Config", "accelerate"),
    "mxfp4": ("Mxfp4Config", "accelerate"),
    "compressed-tensors": ("CompressedTensorsConfig", "compressed_tensors"),
    "bitsandbytes": (None, "bitsandbytes"),
}


def quantisation_config(entry):
    """What a checkpoint states of the quantisation of its weights; {} for plain ones."""
    config = config_of(entry)
    for part in (config, config.get("text_config"), config.get("llm_config")):
        if part and part.get("quantization_config"):
            return part["quantization_config"]
    # AutoGPTQ and AutoAWQ once wrote files of their own
    for method, name in (("gptq", "quantize_config.json"), ("awq", "quant_config.json")):
        file = Path(entry["path"], name)
        if file.is_file():
            return {"quant_method": method} | read_json(file)
    return {}


def quantisation(entry):
    """(method, words for it) of a checkpoint's quantised weights; (None, "") for plain ones."""
    found = quantisation_config(entry)
    if not found:
        return None, ""
    method = found.get("quant_method") or "bitsandbytes"
    bits = found.get("bits") or found.get("w_bit")
    if method == "bitsandbytes":
        bits = 4 if found.get("load_in_4bit") else 8
    how = found.get("format") or (f"{bits} bit" if bits else "")
    return method, f"{method} ({how})" if how else method


def readable_method(entry, original=ORIGINAL):
    """The method of a checkpoint's quantised weights, or None; exit 2 where transformers cannot undo it here.

    original: what to use instead.
    """
    method, words = quantisation(entry)
    if not method:
        return None
    if method not in DEQUANTISED:
        fail(f"{entry['path']} is quantised with {words}, which transformers cannot undo; {original}")
    package = DEQUANTISED[method][1]
    if not importlib.util.find_spec(package):
        needs = f"is quantised with {words}, which needs {package.replace('_', '-')}"
        fail(f"{entry['path']} {needs}; pip install it, or {original}")
    return method


def dequantised(entry, method, dtype, build):
    """The model of a quantised checkpoint, dequantised by transformers in the CPU's memory.

    build(more): from_pretrained with further arguments.
    """
    import transformers

    name, _ = DEQUANTISED[method]

    def read():
        if name:
            return build({"quantization_config": getattr(transformers, name)(dequantize=True)})
        model, info = build({})
        return model.dequantize(dtype), info

    return attempt(read, entry)


# ---------------------------------------------------------------- adapters

# how peft draws the first A and B without touching the base model, or taking from it what it can take again
DRAWN = True, False, "gaussian", "eva", "orthogonal", "pissa", "olora"


def merged(model, entry):
    """The model with the entry's adapter merged by peft. Raises ValueError where it cannot be merged."""
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    folder = entry["adapter"]
    if not any(Path(folder, f"adapter_model.{kind}").is_file() for kind in ("safetensors", "bin")):
        raise ValueError("it has no adapter_model.safetensors; copy that too")
    config = PeftConfig.from_pretrained(folder)
    config.inference_mode = True
    if getattr(config, "alora_invocation_tokens", None):
        raise ValueError("it is an aLoRA, which acts behind its invocation tokens only; it cannot be merged")
    if config.is_prompt_learning:
        raise ValueError(f"it is of type {config.peft_type}, which changes no weights; it cannot be merged")
    drawn = getattr(config, "init_lora_weights", True)
    if drawn not in DRAWN:
        convert = "save_pretrained(path_initial_model_for_weight_conversion=...) converts it"
        raise ValueError(f"init_lora_weights={drawn!r} has changed its base at random or by data; {convert}")
    whole = PeftModel(model, config)  # takes from the base weights what PiSSA and OLoRA began with
    fitting = set(get_peft_model_state_dict(whole, save_embedding_layers=False))
    found = {}
    for name, x in load_peft_weights(folder, device="cpu").items():
        found[name if name in fitting else new_name(model, name, fitting)] = x
    unknown = set(found) - fitting - set(whole.state_dict())
    for what, names in (("lacks", fitting - set(found)), ("has no place for", unknown)):
        if names:
            raise ValueError(f"it {what} {min(names)} and {len(names) - 1} more")
    set_peft_model_state_dict(whole, found)
    return whole.merge_and_unload()


def new_name(model, name, known):
    """The present name of an adapter's tensor that an older version of transformers named."""
    if not hasattr(model, "base_model_prefix"):  # not a class of transformers
        return name
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    mark = "base_model.model."
    rules = [rule for rule in get_model_conversion_mapping(model) if isinstance(rule, WeightRenaming)]
    known = {name.removeprefix(mark): None for name in known}
    return mark + rename_source_key(name.removeprefix(mark), rules, [], model.base_model_prefix, known)[0]


# ---------------------------------------------------------------- untrained


def seeded(name):
    """A generator seeded by `name` alone: draws are the same in any order, in any batch and on any device."""
    return torch.Generator().manual_seed(int(hashlib.sha256(name.encode()).hexdigest()[:15], 16))


def first_values(name, like, generator):
    """A parameter that no library initialises: a matrix N(0, 0.02^2), a scale one, a bias zero."""
    if like is None:
        return None
    x = torch.full(like.shape, 0.0 if name.endswith("bias") else 1.0)
    return torch.nn.Parameter(x.normal_(0, 0.02, generator=generator) if x.ndim > 1 else x)


class Untrained:
    """Weights of `model` (on the meta device) as its library initialises them; buffers stay as they are.

    The interface is that of Weights: like, bytes, ready, size, read.
    """

    def __init__(self, model, seed):
        self.seed, self.bytes, self.empty = seed, 0, copy.deepcopy(model)
        self.like = {name: x.to("meta") for name, x in model.state_dict().items()}
        self.buffers = {name: x.cpu() for name, x in model.state_dict().items() if not x.is_meta}
        self.tied = getattr(model, "all_tied_weights_keys", {})
        # the weights of one module's children are drawn together
        self.drawn = functools.lru_cache(1)(self.draw)

    def ready(self, names):
        """Nothing to open."""

    size = Weights.size

    def initialise(self, path, module):
        """Apply `_init_weights` of the nearest model around a module, if there is one."""
        owner, methods = self.empty, []
        for name in ["", *path.split(".")] if path else [""]:
            owner = getattr(owner, name) if name else owner
            methods.append(getattr(owner, "_init_weights", None))
        for method in [method for method in methods if method][-1:]:
            method(module)

    @torch.no_grad()
    def draw(self, path):
        """{child: module} of a module, with the children's own weights in fp32; those below stay empty."""
        whole, generator = copy.copy(self.empty.get_submodule(path)), seeded(f"{self.seed} {path}")
        whole._modules = {name: copy.copy(x) for name, x in whole._modules.items() if x is not None}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            for name, child in whole._modules.items():
                empty = child._parameters.items()
                child._parameters = {key: first_values(key, like, generator) for key, like in empty}
                if hasattr(child, "reset_parameters"):
                    child.reset_parameters()
                self.initialise(f"{path}.{name}".lstrip("."), child)
            self.initialise(path, whole)  # some libraries set the weights of a module's children
        return whole._modules

    def read(self, names):
        """(name, tensor on the CPU in the model's dtype) of each."""
        for name in names:
            path, _, own = self.tied.get(name, name).rpartition(".")
            parent, _, child = path.rpartition(".")
            if name in self.buffers:
                yield name, self.buffers[name]
            elif not path:
                generator = seeded(f"{self.seed} {name}")
                yield name, first_values(own, self.like[name], generator).to(self.like[name].dtype)
            else:
                yield name, self.drawn(parent)[child]._parameters[own].to(self.like[name].dtype)


# ---------------------------------------------------------------- autoencoders of diffusers


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
