"""Checkpoints and adapters as they come: each loads with its library's weights, or says what to do."""

import importlib.util
import json
import shutil

import pytest
import torch
import transformers as t
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

import checkpoints
import models
from models import MODELS, find_model


def changed(folder, file="config.json", **more):
    """Put other values into a JSON file of a folder; None takes one out."""
    path = folder / file
    config = (json.loads(path.read_text()) if path.is_file() else {}) | more
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def weights_of(entry):
    """{name: weight} of an entry, loaded whole; the same is read one by one."""
    whole = models.load_transformer(entry)[0].state_dict()
    model, _, weights = models.skeleton(entry, torch.float32)
    checkpoints.fill(model, weights, weights.like)
    assert all(torch.equal(x, whole[name]) for name, x in model.state_dict().items())
    return whole


# ---------------------------------------------------------------- quantised weights


def fp8(x):
    """Blocks of 128 x 128 in fp8: (stored tensors, what they mean)."""
    scale = x.abs().max() / 448
    stored = (x / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale_inv": scale.view(1, 1)}, stored.float() * scale


def bitsandbytes(x):
    scale = x.abs().amax(1)
    stored = (x / scale[:, None] * 127).round().to(torch.int8)
    return {"weight": stored, "SCB": scale}, stored.float() * scale[:, None] / 127


def int8(x):
    scale = x.abs().amax(1, keepdim=True) / 127
    stored = (x / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def four_bits(x):
    """w4a16: eight numbers in an int32."""
    scale = x.abs().amax(1, keepdim=True) / 7
    levels = (x / scale).round().clamp(-8, 7)
    shifted = (levels + 8).long().view(len(x), -1, 8) << torch.arange(0, 32, 4)
    packed = shifted.sum(-1).to(torch.int64)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    stored = {"weight_packed": packed, "weight_scale": scale, "weight_shape": torch.tensor(x.shape)}
    return stored, levels * scale


def scheme(form, bits):
    """compressed-tensors' quantization_config: a scale for each row of every linear layer but the head."""
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    config = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    return config | {"ignore": ["lm_head"], "config_groups": {"group_0": group}}


FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
EIGHT_BIT = {
    "quant_method": "bitsandbytes",
    "load_in_8bit": True,
    "llm_int8_skip_modules": ["lm_head", "visual"],
}
QUANTISED = {
    "fp8": (FP8, fp8, "accelerate"),
    "int8 of bitsandbytes": (EIGHT_BIT, bitsandbytes, "bitsandbytes"),
    "int8 of compressed-tensors": (scheme("int-quantized", 8), int8, "compressed_tensors"),
    "w4a16": (scheme("pack-quantized", 4), four_bits, "compressed_tensors"),
}


def quantised(folder, out, config, store):
    """(a copy of a checkpoint with its language model's projections quantised, {name: what they mean})."""
    out, stored, meaning = shutil.copytree(folder, out), {}, {}
    for name, x in load_file(out / "model.safetensors").items():
        if name.endswith("_proj.weight") and "visual" not in name:
            parts, meaning[name] = store(x.float())
            stored |= {name.removesuffix("weight") + part: y.contiguous() for part, y in parts.items()}
        else:
            stored[name] = x
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    return changed(out, quantization_config=config), meaning


@pytest.mark.parametrize("how", QUANTISED)
def test_quantised_weights_are_dequantised_by_transformers_or_refused(small_vlm, tmp_path, refused, how):
    config, store, package = QUANTISED[how]
    folder, meaning = quantised(small_vlm, tmp_path / "model", config, store)
    if not importlib.util.find_spec(package):
        name = package.replace("_", "-")
        refused(
            lambda: models.load_vlm(find_model(str(folder))), "is quantised with", f"needs {name}", "original"
        )
        return
    found = weights_of(find_model(str(folder)))
    for name, x in meaning.items():
        same = found.get(name, found.get(name.replace("model.", "model.language_model.", 1)))
        torch.testing.assert_close(same, x, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq (4 bit)"),
        ({"quant_method": "gptq", "bits": 4}, "gptq (4 bit)"),
        ({"load_in_4bit": True}, "bitsandbytes (4 bit)"),
    ],
)
def test_what_cannot_be_dequantised_here_names_the_method_and_the_original(
    small_vlm, tmp_path, refused, method, words, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    folder = changed(
        shutil.copytree(small_vlm, tmp_path / "Qwen2.5-VL-3B-Instruct-AWQ"), quantization_config=method
    )
    for load in (models.load_vlm, lambda entry: models.skeleton(entry, torch.float32)):
        said = f"is quantised with {words}", "use the original, Qwen/Qwen2.5-VL-3B-Instruct"
        refused(lambda load=load: load(find_model(str(folder))), *said)


def test_quantised_weights_whose_config_is_lost_are_refused(small_vlm, tmp_path, refused):
    for how, (config, store, _) in QUANTISED.items():
        folder, _ = quantised(small_vlm, tmp_path / how, config, store)
        entry = find_model(str(changed(folder, quantization_config=None)))
        refused(lambda entry=entry: models.load_vlm(entry), "weight")

        def read(entry=entry):
            model, _, weights = models.skeleton(entry, torch.float32)
            checkpoints.fill(model, weights, weights.like)

        refused(read, "weight")
    changed(folder, "quantize_config.json", bits=4)  # AutoGPTQ's own file
    refused(lambda: models.load_vlm(entry), "gptq (4 bit)")


# ---------------------------------------------------------------- adapters


def adapted(folder, out, config):
    """(folder of an adapter, its base's weights with it): random, on the weights that peft begins with."""
    base = models.load_vlm(find_model(str(folder)))[0]
    tuned = get_peft_model(base, config)
    g = torch.Generator().manual_seed(0)
    for x in tuned.parameters():
        if x.requires_grad:
            x.data = x.data + 0.1 * torch.randn(x.shape, generator=g)
    tuned.peft_config["default"].base_model_name_or_path = str(folder)
    tuned.save_pretrained(out)
    return out, tuned.merge_and_unload().state_dict()


PROJECTIONS = {"target_modules": r".*language_model.*\.([qv]_proj|down_proj)"}
RANKS = {"rank_pattern": {r"layers\.0.*q_proj": 2}, "alpha_pattern": {"v_proj": 3}}
ADAPTERS = {
    "plain": LoraConfig(r=4, lora_alpha=6, **PROJECTIONS),
    "rslora": LoraConfig(r=4, lora_alpha=6, use_rslora=True, **PROJECTIONS),
    "ranks of their own": LoraConfig(r=4, **RANKS, **PROJECTIONS),
    "dora": LoraConfig(r=4, use_dora=True, **PROJECTIONS),
    "bias": LoraConfig(r=4, bias="lora_only", **PROJECTIONS),
    "pissa": LoraConfig(r=4, init_lora_weights="pissa", **PROJECTIONS),
    "olora": LoraConfig(r=4, init_lora_weights="olora", **PROJECTIONS),
    "tokens": LoraConfig(r=4, trainable_token_indices=[3, 5], **PROJECTIONS),
    "head": LoraConfig(r=4, modules_to_save=["lm_head"], **PROJECTIONS),
    "embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"]),
    "ia3": IA3Config(feedforward_modules=[], **PROJECTIONS),
}


@pytest.mark.parametrize("how", ADAPTERS)
def test_an_adapter_is_merged_as_peft_merges_it(small_vlm, tmp_path, how):
    folder, expected = adapted(small_vlm, tmp_path / "tuned" / "adapter", ADAPTERS[how])
    entry = find_model(str(folder))
    assert (entry["path"], entry["adapter"]) == (str(small_vlm), str(folder))
    assert checkpoints.fingerprint(entry) != checkpoints.fingerprint(find_model(str(small_vlm)))
    found = weights_of(entry)
    plain = models.load_vlm(find_model(str(small_vlm)))[0].state_dict()
    assert set(found) == set(expected) and any(not torch.equal(found[name], plain[name]) for name in found)
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, atol=1e-5, rtol=1e-4)


def test_an_adapter_that_peft_cannot_merge_or_that_does_not_fit_is_refused(small_vlm, tmp_path, refused):
    folder, _ = adapted(small_vlm, tmp_path / "adapter", ADAPTERS["plain"])

    def refuse(*words, **more):
        entry = find_model(str(changed(folder, "adapter_config.json", **more)))
        for load in (models.load_vlm, lambda entry: models.skeleton(entry, torch.float32)):
            refused(lambda load=load: load(entry), folder, *words)

    refuse("aLoRA", "cannot be merged", alora_invocation_tokens=[1, 2])
    refuse("loftq", alora_invocation_tokens=None, init_lora_weights="loftq")
    refuse("pissa_niter_4", init_lora_weights="pissa_niter_4")
    weights = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in weights.items() if "layers.1" not in k}, folder / "adapter_model.safetensors")
    refuse("lacks", "layers.1", init_lora_weights=True)
    save_file({}, folder / "adapter_model.safetensors")
    refuse("lacks")
    twice = weights | {
        k.replace("layers.1", "layers.7"): v.clone() for k, v in weights.items() if "layers.1" in k
    }
    save_file(twice, folder / "adapter_model.safetensors")
    refuse("no place", "layers.7")
    (folder / "adapter_model.safetensors").unlink()
    refuse("adapter_model")
    save_file(weights, folder / "adapter_model.safetensors")
    refuse("lacks", base_model_name_or_path=MODELS["tiny"]["path"])


def test_the_base_of_an_adapter_may_be_given(small_vlm, tmp_path, refused):
    folder, expected = adapted(small_vlm, tmp_path / "adapter", ADAPTERS["plain"])
    for base in ("/home/somebody/base", None, "C:\\models\\base"):
        changed(folder, "adapter_config.json", base_model_name_or_path=base)
        words = [folder, "adapter_config.json", "--base FOLDER"] + ([base] if base else [])
        refused(lambda: find_model(str(folder)), *(str(w).replace("\\", "\\\\") for w in words))
    changed(folder, "adapter_config.json", base_model_name_or_path="somebody/unknown")
    refused(lambda: find_model(str(folder)), folder, "somebody/unknown", "--base FOLDER")
    found = models.load_vlm(find_model(str(folder), str(small_vlm)))[0].state_dict()
    assert all(torch.allclose(found[name], x, atol=1e-5) for name, x in expected.items())
    refused(lambda: find_model(str(small_vlm), "tiny"), "--base tiny", "adapter")
    changed(folder, "adapter_config.json", base_model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")
    assert find_model(str(folder))["path"] == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_an_adapter_with_names_of_older_versions_fits(small_vlm, tmp_path):
    folder, expected = adapted(small_vlm, tmp_path / "adapter", ADAPTERS["plain"])
    file = folder / "adapter_model.safetensors"
    old = {k.replace("model.language_model.", "model."): v for k, v in load_file(file).items()}
    save_file(old, file)
    changed(
        folder,
        "adapter_config.json",
        target_modules=["q_proj", "v_proj", "down_proj"],
        exclude_modules=".*visual.*",
    )
    found = models.load_vlm(find_model(str(folder)))[0].state_dict()
    assert all(torch.allclose(found[name], x, atol=1e-5) for name, x in expected.items())


# ---------------------------------------------------------------- files


def as_bin(folder, out, shards=1):
    """A copy of a checkpoint with pytorch_model.bin alone, or with shards of it."""
    out = shutil.copytree(folder, out)
    weights = load_file(out / "model.safetensors")
    (out / "model.safetensors").unlink()
    names = [f"pytorch_model-{k}.bin" for k in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    where = {key: names[k % shards] for k, key in enumerate(weights)}
    for name in names:
        torch.save({key: x for key, x in weights.items() if where[key] == name}, out / name)
    if shards > 1:
        changed(out, "pytorch_model.bin.index.json", weight_map=where, metadata={})
    return out


@pytest.mark.parametrize(("which", "shards"), [("small_vlm", 1), ("small_dino", 2), ("small_cogvlm2", 2)])
def test_a_checkpoint_of_pytorch_model_bin_alone_loads_everywhere(request, tmp_path, which, shards):
    folder = request.getfixturevalue(which)
    copied = as_bin(folder, tmp_path / "copied", shards)
    found, expected = weights_of(find_model(str(copied))), weights_of(find_model(str(folder)))
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    before = checkpoints.fingerprint(str(copied))
    first = next(copied.glob("*.bin"))
    state = torch.load(first)
    torch.save({key: x + 1 for key, x in state.items()}, first)
    assert checkpoints.fingerprint(str(copied)) != before


@pytest.mark.parametrize(
    ("which", "gone", "words"),
    [
        ("small_vlm", ["preprocessor_config.json", "processor_config.json"], "preprocessor_config.json"),
        ("small_vlm", ["tokenizer.json", "tokenizer_config.json"], "tokenizer.json"),
        ("small_dino", ["preprocessor_config.json"], "preprocessor_config.json"),
    ],
)
def test_a_missing_file_of_the_processor_is_named(request, tmp_path, refused, which, gone, words):
    folder = shutil.copytree(request.getfixturevalue(which), tmp_path / "model")
    for name in gone:
        (folder / name).unlink(missing_ok=True)
    entry = find_model(str(folder))
    for load in (models.load_transformer, lambda entry: models.skeleton(entry, torch.float32)):
        refused(lambda load=load: load(entry), folder, words, "hf download")


@pytest.mark.parametrize("old", ["Qwen2_5_VLImageProcessor", "CLIPFeatureExtractor"])
def test_an_image_processor_of_another_version_is_refused_with_the_file_to_fetch(
    small_vlm, tmp_path, refused, old
):
    folder = shutil.copytree(small_vlm, tmp_path / "model")
    name = next(name for name in models.OF_IMAGES if (folder / name).is_file())
    config = json.loads((folder / name).read_text())
    config.get("image_processor", config)["image_processor_type"] = old
    (folder / name).write_text(json.dumps(config))
    refused(
        lambda: models.load_vlm(find_model(str(folder))), folder, "fetch the present preprocessor_config.json"
    )


def test_a_fault_is_told_in_the_librarys_words_with_the_remedy_where_it_is_known(
    small_dino, tmp_path, refused
):
    folder = shutil.copytree(small_dino, tmp_path / "model")
    weights, entry = folder / "model.safetensors", find_model(str(folder))
    loaders = models.load_encoder, lambda entry: models.skeleton(entry, torch.float32)

    def refuse(*words):
        for load in loaders:
            refused(lambda load=load: load(entry), folder, *words)

    whole = weights.read_bytes()
    weights.write_bytes(whole[:150])
    refuse("copy it again")
    weights.write_bytes(whole)
    changed(folder, patch_size=16)
    refused(lambda: models.load_encoder(entry), folder, "size")
    changed(folder, hidden_size="wide")
    refused(lambda: models.load_encoder(entry), folder, "hidden_size")
    (folder / "config.json").write_text("{")
    refused(lambda: find_model(str(folder)), "config.json", "not readable JSON", "line 1")


def test_a_model_without_a_chat_template_is_refused_when_it_is_asked(small_vlm, tmp_path, refused):
    folder = shutil.copytree(small_vlm, tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    model, processor = models.load_vlm(find_model(str(folder)))
    frames = torch.zeros(1, 1, 48, 48, 3, dtype=torch.uint8)
    refused(lambda: models.put_to(model, processor, frames, "Where?"), folder, "chat_template.jinja")


def test_the_types_of_transformers_have_their_kinds(tmp_path, refused):
    def kind(model_type, **more):
        return models.kind_of(model_type, more, "somewhere")

    for model_type in ("idefics3", "smolvlm", "paligemma", "mistral3", "video_llava", "glm4v"):
        assert kind(model_type, vision_config={}) == "vlm"
    assert (kind("gemma3", vision_config={}), kind("gpt2"), kind("mistral")) == (
        "vlm",
        "language",
        "language",
    )
    for model_type in ("clip", "vit", "detr", "ijepa", "dinov2_with_registers"):
        assert kind(model_type, image_size=224) == "encoder"
    refused(lambda: kind("bert9"), "'bert9'", t.__version__)
    refused(lambda: kind("wav2vec2"), "wav2vec2", "neither sees nor writes")
    refused(lambda: kind("none", auto_map={"AutoModel": "x.py"}), "code from the hub", "extract.py --list")
    refused(lambda: find_model(str(tmp_path / "no" / "folder")), "no folder", tmp_path)
