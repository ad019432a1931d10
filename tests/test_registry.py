"""The registry says what the published checkpoints are: each one built at full size without its weights, and held against what stands there."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
from conftest import bare_tokenizer
from published import COGVLM2, INTERNVL2, internvl2_config, sizes
from test_extract import folder_of, noise, run, write_set

import common
import extract
import families
import models
from models import MODELS

# ---------------------------------------------------------------- the published config.json of every entry, as far as it decides shapes
#
# A new entry of the registry is a line in models.FACTS and one here: how its class is built, from published
# numbers alone.


def text(width, inner, layers, heads, groups, vocabulary, kind=None, **more):
    more |= {"model_type": kind} if kind else {}
    return sizes(width, inner, layers, heads, groups, vocab_size=vocabulary, **more)


def tower(width, inner, layers, heads, size, patch, **more):
    return sizes(width, inner, layers, heads, image_size=size, patch_size=patch, **more)


QWEN2_VISION = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "patch_size": 14}
QWEN2_5_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
}
QWEN2_5_VISION |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]}
QWEN3_VISION = {
    "depth": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_heads": 16,
    "patch_size": 16,
}
QWEN3_VISION |= {"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]}
CLIP = tower(1024, 4096, 24, 16, 336, 14, model_type="clip_vision_model")
SIGLIP = tower(1152, 4304, 26, 16, 384, 14, model_type="siglip_vision_model", vision_use_head=False)
INTERN = tower(1024, 4096, 24, 16, [448, 448], [14, 14], attention_bias=True)


def hub(kind, vision, words, tied, **more):
    """`kind` is the class's name without Config or ForConditionalGeneration."""

    def build():
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vision_config=vision, text_config=words, tie_word_embeddings=tied, **more
        )
        return getattr(transformers, f"{kind}ForConditionalGeneration")(config)

    return build


def internvl2(name):
    def build():
        from transformers import InternVLForConditionalGeneration

        return InternVLForConditionalGeneration(models._internvl2_config(internvl2_config(*INTERNVL2[name])))

    return build


def encoder(kind, task="Model", **config):
    def build():
        import transformers

        return getattr(transformers, f"{kind}{task}")(getattr(transformers, f"{kind}Config")(**config))

    return build


def cogvlm2():
    from cogvlm2 import CogVLM2

    return CogVLM2(COGVLM2)


def ltx():
    from diffusers import AutoencoderKLLTXVideo

    # the library's defaults are version 0.9.0's, the one in diffusers' layout in the repository's folder
    # `vae`
    return AutoencoderKLLTXVideo()


def llava_next(words):
    return hub(
        "LlavaNext", CLIP, words, False, vision_feature_layer=-2, vision_feature_select_strategy="default"
    )


def siglip_llava(kind, words, tied):
    words |= {"tie_word_embeddings": tied}
    return hub(kind, SIGLIP, words, tied, vision_feature_layer=-1, vision_feature_select_strategy="full")


def florence2(vision, width, layers, positions):
    """microsoft's file has 51289 tokens, the converted one the picture's behind them; not sure: that its embedding is filled up to 51328 rows."""
    groups = [x // 32 for x in vision]
    words = {
        "model_type": "bart",
        "vocab_size": 51328,
        "d_model": width,
        "max_position_embeddings": positions,
    }
    for part in ("encoder_", "decoder_"):
        words |= {part + "layers": layers, part + "attention_heads": width // 64, part + "ffn_dim": 4 * width}
    seen = {"depths": (1, 1, 9, 1), "embed_dim": vision, "num_heads": groups, "num_groups": groups}
    return hub("Florence2", seen | {"projection_dim": width}, words, True)


def dinov2(width, layers, heads, **more):
    config = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return encoder("Dinov2", **config, image_size=518, patch_size=14, **more)


def owl(kind, size, patch):
    seen, words = tower(768, 3072, 12, 12, size, patch), text(512, 2048, 12, 8, None, 49408)
    return encoder(kind, "ForObjectDetection", vision_config=seen, text_config=words, projection_dim=512)


KOSMOS = {"vocab_size": 65037, "embed_dim": 2048, "layers": 24, "ffn_dim": 8192, "attention_heads": 32}
KOSMOS["max_position_embeddings"] = 2048
SIGLIP2 = {
    "vision_config": tower(768, 3072, 12, 12, 224, 16),
    "text_config": text(768, 3072, 12, 12, None, 256000, projection_size=768),
}
SWIN = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}
SWIN |= {"window_size": 7, "out_indices": [2, 3, 4]}
DINO = {"d_model": 256, "num_feature_levels": 4, "num_queries": 900}
DINO |= {f"{part}_{k}": x for part in ("encoder", "decoder") for k, x in (("layers", 6), ("ffn_dim", 2048))}
VJEPA2 = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "mlp_ratio": 4,
    "crop_size": 256,
}
VJEPA2 |= {"patch_size": 16, "tubelet_size": 2, "frames_per_clip": 64, "pred_hidden_size": 384}
VJEPA2 |= {"pred_num_hidden_layers": 12, "pred_num_attention_heads": 12, "pred_num_mask_tokens": 10}


PUBLISHED = {
    "qwen2-vl-2b": hub(
        "Qwen2VL", QWEN2_VISION | {"hidden_size": 1536}, text(1536, 8960, 28, 12, 2, 151936), True
    ),
    "qwen2.5-vl-3b": hub(
        "Qwen2_5_VL", QWEN2_5_VISION | {"out_hidden_size": 2048}, text(2048, 11008, 36, 16, 2, 151936), True
    ),
    "qwen2.5-vl-7b": hub(
        "Qwen2_5_VL", QWEN2_5_VISION | {"out_hidden_size": 3584}, text(3584, 18944, 28, 28, 4, 152064), False
    ),
    "qwen3-vl-2b": hub(
        "Qwen3VL",
        QWEN3_VISION | {"out_hidden_size": 2048},
        text(2048, 6144, 28, 16, 8, 151936, head_dim=128),
        True,
    ),
    "llava-next": llava_next(text(4096, 14336, 32, 32, 8, 32064, "mistral")),
    "llava-next-vicuna-7b": llava_next(text(4096, 11008, 32, 32, 32, 32064, "llama")),
    "llava-next-vicuna-13b": llava_next(text(5120, 13824, 40, 40, 40, 32064, "llama")),
    # not sure: that the head of the smaller one is tied, and the 152000 of both
    "llava-interleave-0.5b": siglip_llava("Llava", text(1024, 2816, 24, 16, 16, 152000, "qwen2"), True),
    "llava-interleave": siglip_llava("Llava", text(4096, 11008, 32, 32, 32, 152000, "qwen2"), False),
    "llava-onevision-0.5b": siglip_llava("LlavaOnevision", text(896, 4864, 24, 14, 2, 152000, "qwen2"), True),
    # not sure: 152064 or 152128
    "llava-onevision": siglip_llava("LlavaOnevision", text(3584, 18944, 28, 28, 4, 152064, "qwen2"), False),
    "internvl3-1b": hub("InternVL", INTERN, text(896, 4864, 24, 14, 2, 151674, "qwen2"), False),
    "internvl3-8b": hub("InternVL", INTERN, text(3584, 18944, 28, 28, 4, 151674, "qwen2"), False),
    "internvl2": internvl2("internvl2"),
    # not sure: the tower's 25 heads and 12800; the language model's are internlm2-20b's
    "internvl2-26b": internvl2("internvl2-26b"),
    "cogvlm2": cogvlm2,
    "kosmos-2": hub("Kosmos2", tower(1024, 4096, 24, 16, 224, 14), KOSMOS, True, latent_query_num=64),
    "florence-2": florence2((128, 256, 512, 1024), 768, 6, 1024),
    "florence-2-large": florence2((256, 512, 1024, 2048), 1024, 12, 4096),
    "dinov2-s": dinov2(384, 12, 6),
    "dinov2-b": dinov2(768, 12, 12),
    "dinov2-l": dinov2(1024, 24, 16),
    "dinov2-g": dinov2(1536, 40, 24, use_swiglu_ffn=True),
    "dinov3": encoder("DINOv3ViT", **tower(384, 1536, 12, 6, 224, 16, num_register_tokens=4)),
    "siglip2": encoder("Siglip", **SIGLIP2),
    "owlvit": owl("OwlViT", 768, 32),
    "owlv2": owl("Owlv2", 960, 16),
    "grounding-dino": encoder(
        "GroundingDino",
        "ForObjectDetection",
        backbone_config=SWIN,
        text_config=text(768, 3072, 12, 12, None, 30522, "bert"),
        **DINO,
    ),
    "vjepa2": encoder("VJEPA2", **VJEPA2),
    "ltx": ltx,
}

LANGUAGE = {  # of words alone
    "tinyllama": ("Llama", text(2048, 5632, 22, 32, 4, 32000), False),
    "qwen2.5-0.5b": ("Qwen2", text(896, 4864, 24, 14, 2, 151936), True),
    "smollm2-360m": ("Llama", text(960, 2560, 32, 15, 5, 49152), True),
}


class Processor:
    """What the families ask of a processor, without a tokenizer from the hub."""

    image_token, bos_token, eos_token = "<image>", "<s>", "</s>"
    start_image_token_id, end_image_token_id = 1, 2
    image_mean, image_std = (0.5,) * 3, (0.5,) * 3

    def __init__(self):
        self.tokenizer = self.image_processor = self

    def apply_chat_template(self, *args, **more):
        return "before <image> behind"

    def __call__(self, given, **more):
        return (
            SimpleNamespace(input_ids=[3, 4])
            if isinstance(given, str)
            else {"pixel_values": torch.stack(given).float()}
        )


def qwen_processor(config):
    """The library's own for Qwen's families: patches in merge-block order and a row for every merged token."""
    from transformers import Qwen2VLImageProcessor

    from tiny import vlm_processor

    made = vlm_processor(["Describe the picture."])
    config.image_token_id = made.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    images = Qwen2VLImageProcessor(patch_size=config.vision_config.patch_size)
    return type(made)(images, made.tokenizer, made.video_processor, chat_template=made.chat_template)


def kosmos_processor():
    """The library's own, which says where the queries stand."""
    from transformers import CLIPImageProcessor, Kosmos2Processor

    return Kosmos2Processor(CLIPImageProcessor(), bare_tokenizer(bos_token="<s>", unk_token="<unk>"), 4)


@cache
def full(name):
    """(model on the meta device, inputs, points, multiple) of an entry of the registry."""
    with torch.device("meta"):
        model = PUBLISHED[name]()
    kind, processor = getattr(model.config, "model_type", ""), Processor()
    if kind.startswith("qwen"):
        processor = qwen_processor(model.config)
    elif kind == "kosmos-2":
        processor = kosmos_processor()
    elif name.startswith("internvl2"):
        processor = None
    return (model, *families.family_of(model)(model, processor)[:3])


def numel(module):
    return sum(p.numel() for p in module.parameters())


# ---------------------------------------------------------------- what stands in the registry is what the full-size classes are


def spelt_out(points):
    """patch_embed vision.0-2 -> [patch_embed, vision.0, vision.1, vision.2]"""
    names = []
    for word in points.split():
        stack, _, last = word.partition(".0-")
        names += [f"{stack}.{i}" for i in range(int(last) + 1)] if last else [word]
    return names


def test_every_entry_that_states_facts_is_built_here_and_every_model_of_the_hub_states_them():
    # test_predict.py builds pipelines
    stated = {
        name
        for name, entry in MODELS.items()
        if not entry["path"].startswith(models.TINY) and entry["kind"] != "video"
    }
    assert {*PUBLISHED, *LANGUAGE} == set(models.FACTS) == stated
    for name in (*PUBLISHED, *LANGUAGE):
        assert models.KIND_OF_TYPE[MODELS[name]["type"]] == MODELS[name]["kind"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_points_of_the_full_size_model_are_the_listed_ones_and_exist(name):
    model, _, points, multiple = full(name)
    assert list(points) == spelt_out(extract.described(MODELS[name])["points"])
    for path, *_ in points.values():
        model.get_submodule(path)
    # over tokens that have no grid
    spread = MODELS[name]["language"] and type(MODELS[name]["language"][1]) is tuple
    assert families.without_grid(points) == (
        {p for p in points if p.startswith(("merger", "language."))} if spread else set()
    )
    assert MODELS[name]["size"] % multiple == 0 and MODELS[name]["clip"] % multiple == 0


TIED = "qwen2.5-vl-3b qwen2-vl-2b qwen3-vl-2b llava-interleave-0.5b llava-onevision-0.5b florence-2 florence-2-large"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_parameters_are_the_stated_ones(name):
    model, _, points, _ = full(name)
    head = numel(model.lm_head) if hasattr(model, "lm_head") and name not in TIED.split() else 0
    layers = [
        numel(model.get_submodule(path))
        for point, (path, *_) in points.items()
        if point.startswith(("vision.", "language."))
    ]
    whole = numel(model)
    found = {
        "params": whole,
        "head": head,
        "layer": max(layers, default=0),
        "outside": whole - head - sum(layers),
    }
    assert found == {k: pytest.approx(1e9 * MODELS[name][k], rel=0.01) for k in found}


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_of_full_size_is_what_is_stated_and_sees_nothing(name, refused):
    import transformers

    kind, config, tied = LANGUAGE[name]
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**config, tie_word_embeddings=tied)
        )
    entry, layers = MODELS[name], model.model.layers
    head, stack = 0 if tied else numel(model.lm_head), sum(map(numel, layers))
    assert (
        entry["language"] == (len(layers), config["hidden_size"])
        and entry["vision"] is None
        and "size" not in entry
    )
    whole = numel(model)
    found = {"params": whole, "head": head, "layer": numel(layers[0]), "outside": whole - head - stack}
    assert found == {k: pytest.approx(1e9 * entry[k], rel=0.01) for k in found}
    refused(lambda: extract.main(["--model", name]), "is a language model, which sees nothing")


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_that_come_out_of_the_full_size_model_are_the_stated_ones(name):
    """The tower and the merger run on the meta device, on the family's own inputs at the registry's size; rows of the language model and of Grounding
    DINO's encoder, which compares its grids' numbers, are empty ones, put into order.

    Qwen's towers compute angles from the grid's numbers, which the meta device has not, so their blocks, too, are taken to return what they are given.
    Where a tower has stages, each block is held against its own stage's grid and width.
    """
    model, inputs, points, _ = full(name)
    entry = MODELS[name]
    layers, patch, width = entry["vision"]
    side = entry["size"] // patch
    stages = layers if type(layers) is tuple else (layers,)
    blocks = [
        (side // 2**stage, width * 2**stage) for stage, depth in enumerate(stages) for _ in range(depth)
    ]
    batch = inputs(torch.zeros(2, 1, entry["size"], entry["size"], 3, dtype=torch.uint8))
    given = {
        k: x.to("meta") if torch.is_tensor(x) and not k.endswith(("_thw", "_sizes")) else x
        for k, x in batch.items()
        if type(x) is not int
    }
    modules = {
        point: path for point, (path, *_) in points.items() if not point.startswith(("language.", "encoder."))
    }
    if name == "ltx":
        seen = dict.fromkeys(points, model.encode(given["sample"]).latent_dist.mode())
    elif name.startswith("qwen"):
        stream = model.model.visual.patch_embed(given["pixel_values"])
        seen = {
            point: model.get_submodule(path)(stream) if point.startswith(("merger", "deepstack")) else stream
            for point, path in modules.items()
        }
    else:
        seen = extract.capture(model, given, modules)
    found = {
        point: tuple(points[point][1](x, batch).shape) for point, x in seen.items() if name != "ltx"
    } or {p: (2, 1, *x.shape[3:], x.shape[1]) for p, x in seen.items()}
    expected = {
        point: (2, 1, side, side, {"class_head": 512, "box_head": 4}.get(point, width)) for point in modules
    }
    expected |= {f"vision.{i}": (2, 1, side, side, width) for i, (side, width) in enumerate(blocks)}
    if name == "grounding-dino":
        expected |= {f"scale.{i}": (2, 1, 96 >> i, 96 >> i, 256) for i in range(4)}
        rows = torch.zeros(2, sum((96 >> i) ** 2 for i in range(4)), 256)
        assert points["encoder.5"][1](rows, batch).shape == (2, 1, 48, 48, 256)
    if entry["language"]:
        layers, merge, width = entry["language"]
        grid = merge if type(merge) is tuple else (blocks[-1][0] // merge,) * 2
        expected |= {
            point: (2, 1, *grid, width)
            for point in modules
            if point == "merger" or point.startswith("deepstack")
        }
        expected |= {"conv": (2, 1, *grid, expected["vision.0"][-1])} if "conv" in modules else {}
        rows = torch.zeros(1).expand(*batch["input_ids"].shape, width)
        assert points[f"language.{layers - 1}"][1](rows, batch).shape == (2, 1, *grid, width)
    assert found == expected


# ---------------------------------------------------------------- the plan's names of points

PLAN = {
    "llava-next": "patch_embed,vision.11,vision.22,merger,language.15",
    "llava-onevision": "patch_embed,vision.12,vision.25,merger,language.13",
    "internvl3-8b": "patch_embed,vision.11,vision.23,merger,language.13",
    "internvl2-26b": "patch_embed,vision.21,vision.44,merger,language.23",
    "cogvlm2": "patch_embed,vision.62,merger,language.15",
}


@pytest.mark.parametrize("name", PLAN)
def test_the_plans_names_of_a_model_of_the_registry_are_known_without_its_files(name):
    letter = {"l": "L", "i": "I", "c": "C"}[name[0]]
    own = PLAN[name].split(",")
    entry = models.find_model(name)
    names = ",".join(f"{letter}{k + 1}" for k in range(len(own)))
    assert families.own_names(names, entry) == families.own_names(names.lower(), entry) == PLAN[name]
    points = full(name)[2]
    assert (
        set(own) <= set(points)
        and own[-1] in families.quarters(points)
        and (letter == "C" or own[1] in families.quarters(points))
    )


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith(("llava", "internvl"))])
def test_the_layer_that_the_projector_reads_is_the_published_one(name):
    (layers, *_), (words, *_) = MODELS[name]["vision"], MODELS[name]["language"]
    assert families.depths(models.find_model(name)) == (
        layers,
        layers + full(name)[0].config.vision_feature_layer,
        words,
    )


SMALL = {
    "llava_next": ("L", 48, "patch_embed vision.1 vision.1 merger language.1"),
    "llava_onevision": ("L", 48, "patch_embed vision.1 vision.2 merger language.1"),
    "small_internvl": ("I", 48, "patch_embed vision.1 vision.2 merger language.1"),
    "small_cogvlm2": ("C", 56, "patch_embed vision.2 merger language.1"),
}


@pytest.mark.parametrize("which", SMALL)
def test_the_plans_names_are_stored_and_recorded_as_the_models_own(request, tmp_path, which):
    letter, size, expected = SMALL[which]
    folder = folder_of(request, which)
    data = write_set(tmp_path / "data", noise(2, size))
    points = expected.replace(" ", ",")
    names = ",".join(f"{letter}{k + 1}" for k in range(len(expected.split())))
    index, own = run(folder, data, tmp_path / "out", "--points", names), list(dict.fromkeys(expected.split()))
    assert list(index["points"]) == ["pixels", *own] and index["run"]["arguments"]["points"] == points
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.pt") if p.parent.name in own}
    # the same settings: nothing is computed again
    assert run(folder, data, tmp_path / "out", "--points", points)["points"] == index["points"]
    assert before and before == {p: p.stat().st_mtime_ns for p in before}


def test_a_plans_name_of_another_family_is_refused_before_anything_is_loaded(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(extract, "LOADERS", None)
    for point, has in (
        ("L3", "llava, llava_next, llava_onevision"),
        ("i2", "internvl, internvl_chat"),
        ("C4", "cogvlm2"),
    ):
        arguments = ["--model", "tiny", "--data", str(tmp_path), "--points", f"patch_embed,{point}"]
        refused(lambda arguments=arguments: extract.main(arguments), point, has)


def test_a_number_that_the_plan_has_not_is_refused(refused):
    refused(lambda: families.own_names("C5", models.find_model("cogvlm2")), "C5", "C1 to C4")
    assert (
        families.own_names("conv,latents,language.3,all", models.find_model("cogvlm2"))
        == "conv,latents,language.3,all"
    )


# ---------------------------------------------------------------- the list

LISTED = {  # Florence-2 has four grids, each half the side and twice the width of the one before
    "qwen2.5-vl-7b": ("vision.0-31 merger language.0-27", "1024/256", "2621/1835", "15.5"),
    "florence-2-large": ("vision.0-11 merger language.0-11", "36864-576/576", "18874-2359/1180", "1.55"),
    "kosmos-2": ("vision.0-23 merger language.0-23", "256/64", "524/262", None),
}


def test_the_list_needs_no_heavy_library_and_says_what_it_derives():
    import os
    import subprocess
    import sys

    code = "import sys, extract; extract.main(['--list']); assert not {'transformers', 'diffusers', 'huggingface_hub'} & set(sys.modules)"
    environment = os.environ | {"PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=common.HERE, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    head, *lines, _ = done.stdout.splitlines()
    columns = {name: head.index(name) for name in head.split()}
    rows = {
        line.split()[0]: {name: line[at:].split("  ")[0].strip() for name, at in columns.items()}
        for line in lines
    }
    assert list(rows) == list(MODELS)
    for name, (points, tokens, size, whole) in LISTED.items():
        row = rows[name]
        assert (row["points"], row["tokens"], row["kB"]) == (f"patch_embed {points}", tokens, size), row
        assert whole in (row["GB_whole"], None)
    row = rows["qwen2.5-vl-7b"]
    assert row["repository"] == "Qwen/Qwen2.5-VL-7B-Instruct" and row["licence"] == "Apache 2.0"
    assert (row["revision"], row["params_B"]) == ("newest", "8.29")
    assert (
        "gated" in rows["dinov3"]["licence"]
        and rows["tiny"]["params_B"] == "-"
        and rows["tiny"]["revision"] == "local"
    )


def test_the_memory_of_cogvlm2_is_its_weights_without_the_head_and_streamed_fits_a_small_card():
    row = extract.described(MODELS["cogvlm2"])
    assert float(row["GB_whole"]) == pytest.approx((39006214656 - 2 * 128256 * 4096) / 1e9, rel=0.01)
    streamed = 2 * (0.739 + 2 * 0.436) + 1 + 32 * 9216 * 1792 / 1e9
    assert float(row["GB_streamed"]) == pytest.approx(streamed, rel=0.02) and streamed < 15
