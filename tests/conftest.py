"""Small random checkpoints of the real library classes, and small data folders: made once a session, in a temporary folder."""

import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# a make that a test starts is nobody's sub-make, also where make started the tests: it would print where it
# goes, and inherit -n, -j and variables
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)
# a library that was first imported in a test logs to that test's stderr, which is closed by then, and would
# say so in a traceback
logging.raiseExceptions = False
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402 (after the environment is set)
import torch  # noqa: E402 (after the environment is set)

torch.set_num_threads(min(int(os.environ["OMP_NUM_THREADS"]), 2))


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than five seconds")


def write_qwen(folder, kind, processor, vision, rope=None, **text):
    """A model of Qwen's family `kind`, all of it 32 wide, with its processor."""
    import transformers

    token = processor.tokenizer.convert_tokens_to_ids
    seen = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = dict(
        zip(
            seen, token(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]), strict=True
        )
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]} | (rope or {})
    text = tokens_of(
        processor.tokenizer,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        rope_parameters=rope,
        **text,
    )
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "initializer_range": 0.1,
    } | vision
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=vision, text_config=text, tie_word_embeddings=True, **ids
    )
    getattr(transformers, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_vlm(tmp_path_factory):
    """Qwen2.5-VL, patch 8, merge 2; windows of 2x2 tokens, so that an image of 80 px (5x5 tokens) has nine of them, uneven ones too."""
    from tiny import vlm_processor

    processor = vlm_processor(
        ["Describe the picture.", "Where is the red circle?", "a red circle and a blue star"]
    )
    vision = {"intermediate_size": 64, "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 32}
    return write_qwen(tmp_path_factory.mktemp("models") / "small-vlm", "Qwen2_5_VL", processor, vision)


def tokens_of(tokenizer, **names):
    """Ids of special tokens and what every small language model shares."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "initializer_range": 0.1,
        **names,
    }


def bare_tokenizer(**more):
    """The small models' byte-level tokenizer without their names for image tokens."""
    from transformers import PreTrainedTokenizerFast

    from tiny import vlm_processor

    return PreTrainedTokenizerFast(
        tokenizer_object=vlm_processor(["Describe the picture."]).tokenizer.backend_tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        **more,
    )


def chat(place):
    """The small models' chat template; `place` stands in it where the picture goes."""
    from tiny import CHAT

    return CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", place)


@pytest.fixture(scope="session")
def small_llavas(tmp_path_factory):
    """{kind: folder} of LLaVA and LLaVA-OneVision on SigLIP, LLaVA-NeXT on CLIP (with a class token): 48 px, patch 8, 6x6 tokens a tile."""
    import transformers as t

    base, tokenizer = tmp_path_factory.mktemp("models"), bare_tokenizer()
    tokenizer.add_tokens(["<image>", "<video>"], special_tokens=True)
    text = t.LlamaConfig(**tokens_of(tokenizer, num_attention_heads=4, num_key_value_heads=2))
    size, pinpoints = {"height": 48, "width": 48}, [[48, 96], [96, 48], [96, 96], [144, 144]]
    siglip = t.SiglipVisionConfig(**SIDE, image_size=48, patch_size=8)
    clip = t.CLIPVisionConfig(**SIDE, image_size=48, patch_size=8)
    ids = {
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "tie_word_embeddings": False,
    }
    video = {
        "video_token_id": tokenizer.convert_tokens_to_ids("<video>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
    }
    more = {"chat_template": chat("<image>"), "patch_size": 8}
    made = {
        "llava": (
            t.LlavaForConditionalGeneration,
            t.LlavaConfig(
                vision_config=siglip,
                text_config=text,
                vision_feature_select_strategy="full",
                vision_feature_layer=-1,
                **ids,
            ),
            t.LlavaProcessor(
                t.SiglipImageProcessor(size=size), tokenizer, vision_feature_select_strategy="full", **more
            ),
        ),
        "llava_next": (
            t.LlavaNextForConditionalGeneration,
            t.LlavaNextConfig(vision_config=clip, text_config=text, image_grid_pinpoints=pinpoints, **ids),
            t.LlavaNextProcessor(
                t.LlavaNextImageProcessor(
                    size={"shortest_edge": 48}, crop_size=size, image_grid_pinpoints=pinpoints
                ),
                tokenizer,
                vision_feature_select_strategy="default",
                num_additional_image_tokens=1,
                **more,
            ),
        ),
        "llava_onevision": (
            t.LlavaOnevisionForConditionalGeneration,
            t.LlavaOnevisionConfig(
                vision_config=siglip, text_config=text, image_grid_pinpoints=pinpoints, **ids, **video
            ),
            t.LlavaOnevisionProcessor(
                t.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=pinpoints),
                tokenizer,
                t.LlavaOnevisionVideoProcessor(size=size),
                num_image_tokens=36,
                vision_feature_select_strategy="full",
                chat_template=chat("<image>"),
            ),
        ),
    }
    for kind, (model_class, config, processor) in made.items():
        torch.manual_seed(0)
        model_class(config).save_pretrained(base / kind)
        processor.save_pretrained(base / kind)
    return {kind: base / kind for kind in made}


@pytest.fixture(scope="session")
def small_qwen2vl(tmp_path_factory):
    """Qwen2-VL: patch 8, merge 2, no windows."""
    from transformers import Qwen2VLProcessor

    from tiny import vlm_processor

    made = vlm_processor(["Describe the picture.", "a red circle"])
    processor = Qwen2VLProcessor(
        made.image_processor, made.tokenizer, made.video_processor, chat_template=made.chat_template
    )
    vision = {"embed_dim": 32, "mlp_ratio": 2}
    return write_qwen(tmp_path_factory.mktemp("models") / "small-qwen2vl", "Qwen2VL", processor, vision)


@pytest.fixture(scope="session")
def small_qwen3vl(tmp_path_factory):
    """Qwen3-VL: patch 8, merge 2, two DeepStack mergers whose output is added inside the first two language layers."""
    from transformers import Qwen3VLProcessor, Qwen3VLVideoProcessor

    from tiny import vlm_processor

    made = vlm_processor(["Describe the picture.", "a red circle"])
    video = Qwen3VLVideoProcessor(patch_size=8, size={"shortest_edge": 16 * 16, "longest_edge": 224 * 224})
    processor = Qwen3VLProcessor(
        made.image_processor, made.tokenizer, video, chat_template=made.chat_template
    )
    vision = {
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    folder = tmp_path_factory.mktemp("models") / "small-qwen3vl"
    return write_qwen(folder, "Qwen3VL", processor, vision, {"mrope_interleaved": True}, head_dim=16)


@pytest.fixture(scope="session")
def small_dinov3(tmp_path_factory):
    """DINOv3 of three layers, patch 8, with two registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    folder = tmp_path_factory.mktemp("models") / "small-dinov3"
    torch.manual_seed(0)
    DINOv3ViTModel(
        DINOv3ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=8,
            num_register_tokens=2,
            initializer_range=0.1,
            layerscale_value=0.5,
        )
    ).save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


SIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}


@pytest.fixture(scope="session")
def small_siglip(tmp_path_factory):
    """SigLIP, fixed at 48 px, patch 8, no CLS; its text side is never run."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    folder = tmp_path_factory.mktemp("models") / "small-siglip"
    torch.manual_seed(0)
    SiglipModel(
        SiglipConfig(
            vision_config=SIDE | {"image_size": 48, "patch_size": 8},
            text_config=SIDE | {"vocab_size": 64, "projection_size": 32},
        )
    ).save_pretrained(folder)
    SiglipImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


def write_owl(folder, kind):
    """OWL-ViT or OWLv2 with its heads, fixed at 48 px, patch 8, CLS at 0."""
    import transformers

    torch.manual_seed(0)
    text = SIDE | {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = SIDE | {"image_size": 48, "patch_size": 8}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text, projection_dim=32)
    getattr(transformers, f"{kind}ForObjectDetection")(config).save_pretrained(folder)
    getattr(transformers, f"{kind}ImageProcessor")(size={"height": 48, "width": 48}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_owlvit(tmp_path_factory):
    return write_owl(tmp_path_factory.mktemp("models") / "small-owlvit", "OwlViT")


@pytest.fixture(scope="session")
def small_owlv2(tmp_path_factory):
    return write_owl(tmp_path_factory.mktemp("models") / "small-owlv2", "Owlv2")


@pytest.fixture(scope="session")
def small_kosmos2(tmp_path_factory):
    """Kosmos-2 of 48 px, patch 8: 6x6 patches and CLS, 5 latent queries."""
    from transformers import (
        CLIPImageProcessor,
        Kosmos2Config,
        Kosmos2ForConditionalGeneration,
        Kosmos2Processor,
    )

    folder = tmp_path_factory.mktemp("models") / "small-kosmos2"
    torch.manual_seed(0)
    processor = Kosmos2Processor(
        CLIPImageProcessor(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        bare_tokenizer(bos_token="<s>", unk_token="<unk>"),
        4,
    )
    text = {
        "vocab_size": len(processor.tokenizer),
        "embed_dim": 32,
        "layers": 3,
        "ffn_dim": 64,
        "attention_heads": 2,
        "init_std": 0.1,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "bos_token_id": processor.tokenizer.bos_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }
    vision = SIDE | {"image_size": 48, "patch_size": 8, "initializer_range": 0.1}
    Kosmos2ForConditionalGeneration(
        Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=5)
    ).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def own_cell_first(model):
    """Random convolutions that overlap look at their neighbours' cells as much as at their own; trained ones do not. Weaken what lies outside."""
    for conv in model.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size > conv.stride:
            inside = torch.zeros(conv.kernel_size)
            inside[
                conv.padding[0] : conv.padding[0] + conv.stride[0],
                conv.padding[1] : conv.padding[1] + conv.stride[1],
            ] = 1
            conv.weight.data *= inside.clamp(min=0.1)


@pytest.fixture(scope="session")
def small_florence2(tmp_path_factory):
    """Florence-2 with stages of 4, 8 and 16 px a token, the second of two blocks; windows of 3x3; an encoder of three layers."""
    from transformers import (
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
    )

    folder = tmp_path_factory.mktemp("models") / "small-florence2"
    torch.manual_seed(0)
    tokenizer = bare_tokenizer(bos_token="<s>", extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessor(
        size={"height": 64, "width": 64},
        do_center_crop=False,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    )
    images.image_seq_length = 17
    processor = Florence2Processor(images, tokenizer)
    vision = {
        "depths": (1, 2, 1),
        "patch_size": (7, 3, 3),
        "patch_stride": (4, 2, 2),
        "patch_padding": (3, 1, 1),
        "patch_prenorm": (False, True, True),
        "embed_dim": (16, 32, 32),
        "num_heads": (2, 2, 2),
        "num_groups": (2, 2, 2),
        "window_size": 3,
        "projection_dim": 32,
        "max_position_embeddings": 8,
        "initializer_range": 0.1,
    }
    text = {
        "model_type": "bart",
        "vocab_size": len(tokenizer),
        "d_model": 32,
        "encoder_layers": 3,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "init_std": 0.1,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    model = Florence2ForConditionalGeneration(
        Florence2Config(vision_config=vision, text_config=text, image_token_id=tokenizer.image_token_id)
    )
    own_cell_first(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_grounding_dino(tmp_path_factory):
    """Grounding DINO on a Swin of three stages (4, 8, 16 px a token, windows of 3x3, the second shifted) with scales of 8, 16 and 32 px."""
    from transformers import (
        BertConfig,
        GroundingDinoConfig,
        GroundingDinoForObjectDetection,
        GroundingDinoImageProcessor,
        GroundingDinoProcessor,
        SwinConfig,
    )

    folder = tmp_path_factory.mktemp("models") / "small-grounding-dino"
    torch.manual_seed(0)
    tokenizer = bare_tokenizer()
    swin = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=[2, 2, 1],
        num_heads=[2, 2, 2],
        window_size=3,
        out_indices=[2, 3],
        initializer_range=0.1,
    )
    bert = BertConfig(
        **{k: v for k, v in SIDE.items() if k != "num_hidden_layers"},
        num_hidden_layers=1,
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    model = GroundingDinoForObjectDetection(
        GroundingDinoConfig(
            backbone_config=swin,
            text_config=bert,
            num_queries=4,
            encoder_layers=3,
            encoder_ffn_dim=64,
            encoder_attention_heads=2,
            decoder_layers=2,
            decoder_ffn_dim=64,
            decoder_attention_heads=2,
            d_model=32,
            num_feature_levels=3,
        )
    )
    own_cell_first(model)
    model.save_pretrained(folder)
    GroundingDinoProcessor(GroundingDinoImageProcessor(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_vjepa2(tmp_path_factory):
    """V-JEPA 2, 48 px, patch 8, two frames a time step."""
    from transformers import VJEPA2Config, VJEPA2Model, VJEPA2VideoProcessor

    folder = tmp_path_factory.mktemp("models") / "small-vjepa2"
    torch.manual_seed(0)
    VJEPA2Model(
        VJEPA2Config(
            patch_size=8,
            crop_size=48,
            frames_per_clip=6,
            hidden_size=48,
            num_attention_heads=2,
            num_hidden_layers=3,
            mlp_ratio=2,
            pred_hidden_size=24,
            pred_num_attention_heads=1,
            pred_num_hidden_layers=1,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)
    VJEPA2VideoProcessor(crop_size=48).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_internvl(tmp_path_factory):
    """InternVL of 48 px, patch 8: 6x6 patches and CLS, 3x3 tokens."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
        LlamaConfig,
    )

    folder = tmp_path_factory.mktemp("models") / "small-internvl"
    torch.manual_seed(0)
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = bare_tokenizer(extra_special_tokens=names)
    InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 48, "width": 48}),
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=9,
        chat_template=chat("<IMG_CONTEXT>"),
    ).save_pretrained(folder)
    text = LlamaConfig(**tokens_of(tokenizer, num_attention_heads=4, num_key_value_heads=2))
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": [48, 48],
        "patch_size": [8, 8],
        "attention_bias": True,
        "initializer_range": 0.1,
        "layer_scale_init_value": 1.0,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text.to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    InternVLForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_cogvlm2(tmp_path_factory):
    """CogVLM2 of 56 px, patch 14: 4x4 patches and CLS, 2x2 tokens; in the hub's layout, with a tokenizer."""
    import json

    from safetensors.torch import save_file

    from cogvlm2 import CogVLM2
    from tiny import vlm_processor

    folder = tmp_path_factory.mktemp("models") / "small-cogvlm2"
    vlm_processor(["Question: Describe the picture. Answer:"]).tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = {
        "architectures": ["CogVLMForCausalLM"],
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_multi_query_heads": 2,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "num_hidden_layers": 3,
            "num_positions": 17,
            "patch_size": 14,
            "image_size": 56,
            "in_channels": 3,
            "layer_norm_eps": 1e-6,
        },
    }
    model = CogVLM2(config)
    for name, p in model.named_parameters():
        if "norm" not in name:
            # what the picture says must not drown in what attention adds
            torch.nn.init.normal_(p, std=0.6 if "linear_proj" in name else 0.1)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_dino(tmp_path_factory):
    """Dinov2 of three layers, patch 8, made for 48 px: a grid of 6x6."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("models") / "small-dino"
    torch.manual_seed(0)
    Dinov2Model(
        Dinov2Config(
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            mlp_ratio=2,
            image_size=48,
            patch_size=8,
            initializer_range=0.1,
        )
    ).save_pretrained(folder)
    BitImageProcessor(do_resize=False, do_center_crop=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory):
    """LTX-Video's autoencoder with 8x compression in space and 2x in time, and latent statistics that are not 0 and 1."""
    from diffusers import AutoencoderKLLTXVideo

    folder = tmp_path_factory.mktemp("models") / "small-vae"
    torch.manual_seed(0)
    width = (16, 16, 16)
    model = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=width,
        decoder_block_out_channels=width,
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        spatio_temporal_scaling=(True, False, False),
        decoder_spatio_temporal_scaling=(True, False, False),
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=4,
    )
    model.latents_mean.copy_(torch.linspace(-1, 1, 8))
    model.latents_std.copy_(torch.linspace(0.5, 2, 8))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    """data.py's shapes: 60 images of 64 px."""
    import data

    folder = tmp_path_factory.mktemp("data") / "shapes"
    data.main(["shapes", "--n", "60", "--size", "64", "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def moving_folder(tmp_path_factory):
    """data.py's moving: 24 clips of 17 frames of 64 px."""
    import data

    folder = tmp_path_factory.mktemp("data") / "moving"
    data.main(["moving", "--n", "24", "--out", str(folder)])
    return folder


@pytest.fixture
def refused(capsys):
    """Call something that must end with exit code 2 and one sentence on stderr that holds every given word."""

    def check(call, *words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call()
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("error: ") == 1 and "Traceback" not in err, err
        sentence = err.split("error: ")[1].strip()
        assert len(sentence.splitlines()) == 1, sentence
        for word in words:
            assert str(word) in sentence, sentence

    return check
