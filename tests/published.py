"""Published sizes of large models for the meta device, and checkpoints of random weights in their layout."""

import copy
import json
import math
import shutil
import zlib
from pathlib import Path

import torch
import yaml

import cogvlm2
import common
import models

# of every model: config.json, and of some, what else a checkpoint has
ENTRIES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
COGVLM2 = ENTRIES["cogvlm2"]["config"]
INTERNVL2 = {}  # vision tower, language model
for name in ("internvl2", "internvl2-26b"):
    INTERNVL2[name] = tuple(ENTRIES[name]["config"][part] for part in ("vision_config", "llm_config"))


def merged(a, b):
    """A nested dict with the values of another in it."""
    both = {k: merged(a[k], v) if isinstance(v, dict) else v for k, v in b.items()}
    return {**a, **both}


def config_of(name, small=False):
    """config.json of a name of the registry; with `small`, of a smaller network of the same layout."""
    entry = ENTRIES[name]
    return merged(entry["config"], entry["small"]) if small else entry["config"]


def sizes(width, inner, layers, heads=None, groups=None, **more):
    config = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads} if heads else {}
    return config | ({"num_key_value_heads": groups} if groups else {}) | more


def internvl2_config(vision, text):
    """config.json of the original layout."""
    return ENTRIES["internvl2"]["config"] | {"vision_config": vision, "llm_config": text}


def internvl2_layout(vision, text):
    """{name: shape} of the original layout."""
    (d, m), (n, f) = ((x["hidden_size"], x["intermediate_size"]) for x in (vision, text))
    out = {"class_embedding": (1, 1, d), "position_embedding": (1, 1 + (vision["image_size"] // 14) ** 2, d)}
    out |= {"patch_embedding.weight": (d, 3, 14, 14), "patch_embedding.bias": (d,)}
    out = {f"vision_model.embeddings.{k}": shape for k, shape in out.items()}
    out |= {f"mlp1.{i}.{k}": (wide,) for i, wide in ((0, 4 * d), (1, n), (3, n)) for k in ("weight", "bias")}
    out |= {"mlp1.1.weight": (n, 4 * d), "mlp1.3.weight": (n, n), "language_model.model.norm.weight": (n,)}
    out |= {f"language_model.{k}.weight": (text["vocab_size"], n) for k in ("model.tok_embeddings", "output")}

    layer = {"attn.qkv.weight": (3 * d, d), "attn.proj.weight": (d, d)}
    layer |= {"mlp.fc1.weight": (m, d), "mlp.fc1.bias": (m,), "mlp.fc2.weight": (d, m)}
    layer |= {"attn.qkv.bias": (3 * d,)} if vision["qkv_bias"] else {}
    vectors = ["ls1", "ls2", "attn.proj.bias", "norm1.weight", "norm2.weight", "mlp.fc2.bias"]
    with_bias = vision["norm_type"] == "layer_norm"
    vectors += ["norm1.bias", "norm2.bias"] if with_bias else ["attn.q_norm.weight", "attn.k_norm.weight"]
    layer |= dict.fromkeys(vectors, (d,))
    for i in range(vision["num_hidden_layers"]):
        out |= {f"vision_model.encoder.layers.{i}.{k}": shape for k, shape in layer.items()}

    qkv = n + 2 * n // text["num_attention_heads"] * text["num_key_value_heads"]
    layer = {"attention.wqkv": (qkv, n), "attention.wo": (n, n), "attention_norm": (n,), "ffn_norm": (n,)}
    layer |= {f"feed_forward.{k}": (n, f) if k == "w2" else (f, n) for k in ("w1", "w2", "w3")}
    for i in range(text["num_hidden_layers"]):
        out |= {f"language_model.model.layers.{i}.{k}.weight": shape for k, shape in layer.items()}
    return out


# ---------------------------------------------------------------- checkpoints of random weights

BLOCK = 2**25 - 39  # values of the random block: a multiple of no row's length, so that no two rows are alike


def shapes_of(config):
    """{the hub's name: shape} of a network's weights; a tied weight is stored once."""
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if "llm_config" in config:
        return internvl2_layout(config["vision_config"], config["llm_config"])
    with torch.device("meta"):
        model = network(config)
    weights = model.state_dict()
    for tied in getattr(model, "all_tied_weights_keys", ()):
        del weights[tied]
    if isinstance(model, PreTrainedModel):
        weights = revert_weight_conversion(model, weights)
    order = sorted(weights, key=lambda name: (name.startswith("lm_head"), ".vision." in name))  # as published
    return {name: tuple(weights[name].shape) for name in order}


def network(config):
    """The network of a config.json, untrained."""
    config = copy.deepcopy(config)  # transformers changes what is in it
    if "_class_name" in config:
        from diffusers import AutoencoderKLLTXVideo

        return AutoencoderKLLTXVideo.from_config(config)
    if config["architectures"] == ["CogVLMForCausalLM"]:
        return cogvlm2.CogVLM2(config)
    import transformers

    if "llm_config" in config:
        return transformers.InternVLForConditionalGeneration(cogvlm2.internvl2_config(config))
    kind = getattr(transformers, config["architectures"][0])
    return kind(kind.config_class(**config))


def tokenizer(words, tokens, names):
    """A byte-level tokenizer with a token for each of the words, and the published {special token: id}."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    more = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    bpe.train_from_iterator(words, trainers.BpeTrainer(**more))
    stored = json.loads(bpe.to_str())
    stored["model"]["vocab"] |= tokens
    bpe = Tokenizer.from_str(json.dumps(stored))
    bpe.add_special_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **names)


def sentencepiece(words, count):
    """tokenizer.model of SentencePiece (a ModelProto): `count` pieces, with every word and its beginnings."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{k:02X}>" for k in range(256))]
    for word in words:
        pieces += [*word, *(word[:k] for k in range(2, len(word) + 1))]
    pieces = list(dict.fromkeys(pieces))
    pieces += [chr(0xF0000 + k) for k in range(count - len(pieces))]

    def field(content):  # number 1, of bytes
        return bytes([10, len(content)]) + content

    return b"".join(field(field(piece.encode())) for piece in pieces)


def random_weight(name, shape, block):
    """Scales are one and biases zero, so that nothing overflows; matrices are cut from the block."""
    if name.endswith("inv_freq"):
        return cogvlm2.Rotary(2 * shape[0]).inv_freq.to(block.dtype)
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=block.dtype)
    start, n = zlib.crc32(name.encode()) % len(block), math.prod(shape)
    return block.repeat(-(-(start + n) // len(block)))[start : start + n]


def write_safetensors(path, shapes, block):
    """A file of random weights, tensor by tensor: safetensors' own writer holds the whole file twice."""
    kind = {torch.bfloat16: "BF16", torch.float32: "F32"}[block.dtype]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * block.itemsize
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            random_weight(name, shape, block).view(torch.uint8).numpy().tofile(f)


def write_checkpoint(folder, name, small=False):
    """Write random weights of a network of the registry in the hub's layout; skip a complete folder.

    A matrix is a cut, at its own place, of one random block of 64 MB (bf16): writing is as fast as the disk.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    if (folder / "config.json").is_file():  # written last
        return
    folder.mkdir(parents=True, exist_ok=True)
    config, entry = config_of(name, small), ENTRIES[name]
    sides, most = (entry, 20_000_000) if small else (models.MODELS[name], 5_000_000_000)
    shapes, dtype = shapes_of(config), getattr(torch, entry.get("dtype", "bfloat16"))
    empty = {k: torch.empty(shape, dtype=dtype, device="meta") for k, shape in shapes.items()}
    gb, free = sum(x.nbytes for x in empty.values()) / 1e9, shutil.disk_usage(folder).free / 1e9
    if free < 1.02 * gb:
        common.fail(f"{folder} needs {gb:.0f} GB and {free:.0f} are free; give another --folder")
    stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
    pattern = f"{stem}{{suffix}}.safetensors"
    plan = split_torch_state_dict_into_shards(empty, filename_pattern=pattern, max_shard_size=most)
    block = torch.empty(BLOCK).normal_(0, 0.02, generator=torch.Generator().manual_seed(0)).to(dtype)
    for file, names in plan.filename_to_tensors.items():
        write_safetensors(folder / file, {name: shapes[name] for name in names}, block)
    files = dict(entry.get("files", {}))
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        files[f"{stem}.safetensors.index.json"] = index
    if "llm_config" in config:
        vocabulary = sentencepiece(entry["words"], min(entry["tokens"].values()))
        (folder / "tokenizer.model").write_bytes(vocabulary)
        added = {k: {"content": token, "special": True} for token, k in entry["tokens"].items()}
        files["tokenizer_config.json"] = {"added_tokens_decoder": added, "add_bos_token": True}
    elif "words" in entry:
        tokenizer(entry["words"], entry["tokens"], entry["names"]).save_pretrained(folder)
    noted = {"weights": "random", "size": sides["size"], "clip": sides["clip"]}
    common.save_yaml(folder / "weights.yaml", noted)
    for file, content in (files | {"config.json": config}).items():
        (folder / file).write_text(json.dumps(content))
