"""Session fixtures: small random checkpoints of the real library classes, and small data folders."""

import json
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
if os.environ.get("FORESIGHT_TEST_GPU") != "1":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests are the same everywhere; make test-gpu shows it
# a make that a test starts must not inherit the flags and variables of the make that started the tests
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)
# a library that a test imports first logs to that test's stderr, which is closed by the next log
logging.raiseExceptions = False
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import pytest  # noqa: E402 (after the environment is set)
import torch  # noqa: E402 (after the environment is set)
import transformers as t  # noqa: E402 (after the environment is set)
from helpers import random_autoencoder  # noqa: E402 (after the environment is set)
from safetensors.torch import save_file  # noqa: E402 (after the environment is set)

import data  # noqa: E402 (after the environment is set)
from cogvlm2 import CogVLM2  # noqa: E402 (after the environment is set)
from common import load_items  # noqa: E402 (after the environment is set)
from tiny import CHAT, vlm_processor  # noqa: E402 (after the environment is set)

torch.set_num_threads(min(int(os.environ["OMP_NUM_THREADS"]), 2))

SIDE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
DRAWN = {"initializer_range": 0.1}
LLAMA = SIDE | DRAWN | {"num_attention_heads": 4, "num_key_value_heads": 2}
WORDS = ["Describe the picture.", "Where is the red circle?", "a red circle and a blue star"]
VIT = SIDE | {"image_size": 48, "patch_size": 8}
SQUARE = {"height": 48, "width": 48}
PLACE = "<|vision_start|><|image_pad|><|vision_end|>"  # of an image in the small models' chat template


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than five seconds")
    config.addinivalue_line("markers", "gpu: runs on a GPU, if FORESIGHT_TEST_GPU is 1 and there is one")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU is shown to the tests: make test-gpu, on a machine that has one")


def bare_tokenizer(**more):
    """The small models' byte-level tokenizer without their names for image tokens."""
    backend = vlm_processor(["Describe the picture."]).tokenizer.backend_tokenizer
    more |= {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    return t.PreTrainedTokenizerFast(tokenizer_object=backend, **more)


def ids_of(tokenizer, names=("pad", "bos", "eos")):
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in names}
    return ids | {"vocab_size": len(tokenizer)}


def own_cell_first(model):
    """Weaken the random weights of overlapping convolutions outside a token's own cell, as training does."""
    for conv in model.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size > conv.stride:
            inside = torch.full(conv.kernel_size, 0.1)
            rows, columns = (slice(p, p + s) for p, s in zip(conv.padding, conv.stride, strict=True))
            inside[rows, columns] = 1
            conv.weight.data *= inside


@pytest.fixture(scope="session")
def write_checkpoint(tmp_path_factory):
    """call(name, model class, config, *processors): the folder of a checkpoint with random weights."""

    def call(name, model_class, config, *processors):
        torch.manual_seed(0)
        model, folder = model_class(config), tmp_path_factory.mktemp("models") / name
        own_cell_first(model)
        for part in (model, *processors):
            part.save_pretrained(folder)
        return folder

    return call


def qwen(kind, vision, rope, **text):
    """The fixture of a checkpoint of Qwen's family `kind`, 32 wide: patch 8, merge 2."""
    vision |= {"depth": 3, "hidden_size": 32, "num_heads": 2, "patch_size": 8} | DRAWN
    text |= SIDE | DRAWN | {"num_key_value_heads": 1, "max_position_embeddings": 2048}
    rope |= {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
    text["rope_parameters"] = rope

    @pytest.fixture(scope="session")
    def folder(write_checkpoint, request):
        made = vlm_processor(WORDS)
        video, tokenizer = made.video_processor, made.tokenizer
        if kind == "Qwen3VL":
            video = t.Qwen3VLVideoProcessor(patch_size=8, size=video.size)
        parts = made.image_processor, tokenizer, video
        processor = getattr(t, f"{kind}Processor")(*parts, chat_template=made.chat_template)
        more = ids_of(tokenizer, ("image", "video", "vision_start", "vision_end"))
        more |= {"text_config": text | ids_of(tokenizer), "tie_word_embeddings": True}
        config = getattr(t, f"{kind}Config")(vision_config=vision, **more)
        name, model = request.fixturename.replace("_", "-"), getattr(t, f"{kind}ForConditionalGeneration")
        return write_checkpoint(name, model, config, processor)

    return folder


# windows of 2x2 tokens: 80 px (5x5 tokens) have nine, some of them smaller
size = {"intermediate_size": 64, "window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 32}
small_vlm = qwen("Qwen2_5_VL", size, {})
small_qwen2vl = qwen("Qwen2VL", {"embed_dim": 32, "mlp_ratio": 2}, {})  # without windows
# the output of two DeepStack mergers is added inside the first two language layers
size = {"intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
size["deepstack_visual_indexes"] = [0, 1]
small_qwen3vl = qwen("Qwen3VL", size, {"mrope_interleaved": True}, head_dim=16)


@pytest.fixture(scope="session")
def small_llavas(write_checkpoint):
    """{kind: folder}: LLaVA and LLaVA-OneVision on SigLIP, LLaVA-NeXT on CLIP with CLS; 6x6 tokens a tile."""
    tokenizer = bare_tokenizer(extra_special_tokens={"image_token": "<image>", "video_token": "<video>"})
    text = t.LlamaConfig(**LLAMA, **ids_of(tokenizer))
    siglip, clip = t.SiglipVisionConfig(**VIT), t.CLIPVisionConfig(**VIT)
    more = {"text_config": text, "tie_word_embeddings": False, "image_token_id": tokenizer.image_token_id}
    full = {"vision_feature_select_strategy": "full"}
    tiles = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96], [144, 144]]}
    place = {"chat_template": CHAT.replace(PLACE, "<image>")}

    config = t.LlavaConfig(vision_config=siglip, vision_feature_layer=-1, **full, **more)
    images = t.SiglipImageProcessor(size=SQUARE)
    processor = t.LlavaProcessor(images, tokenizer, patch_size=8, **full, **place)
    kinds = {"llava": (t.LlavaForConditionalGeneration, config, processor)}

    config = t.LlavaNextConfig(vision_config=clip, **tiles, **more)
    images = t.LlavaNextImageProcessor(size={"shortest_edge": 48}, crop_size=SQUARE, **tiles)
    how = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1, "patch_size": 8}
    processor = t.LlavaNextProcessor(images, tokenizer, **how, **place)
    kinds["llava_next"] = t.LlavaNextForConditionalGeneration, config, processor

    more["video_token_id"] = tokenizer.video_token_id
    config = t.LlavaOnevisionConfig(vision_config=siglip, **tiles, **more)
    parts = t.LlavaOnevisionImageProcessor(size=SQUARE, **tiles), tokenizer
    parts += (t.LlavaOnevisionVideoProcessor(size=SQUARE),)
    processor = t.LlavaOnevisionProcessor(*parts, num_image_tokens=36, **full, **place)
    kinds["llava_onevision"] = t.LlavaOnevisionForConditionalGeneration, config, processor
    return {kind: write_checkpoint(kind, *made) for kind, made in kinds.items()}


@pytest.fixture(scope="session")
def small_internvl(write_checkpoint):
    """InternVL of 48 px, patch 8: 6x6 patches and CLS, 3x3 tokens."""
    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer = bare_tokenizer(extra_special_tokens=names)
    parts = t.GotOcr2ImageProcessor(size=SQUARE), tokenizer, t.InternVLVideoProcessor()
    place = {"chat_template": CHAT.replace(PLACE, "<IMG_CONTEXT>")}
    processor = t.InternVLProcessor(*parts, image_seq_length=9, **place)
    text = t.LlamaConfig(**LLAMA, **ids_of(tokenizer)).to_dict()
    vision = SIDE | {"image_size": [48, 48], "patch_size": [8, 8], "attention_bias": True}
    vision |= {"initializer_range": 0.1, "layer_scale_init_value": 1.0}
    more = {"image_token_id": tokenizer.context_image_token_id, "tie_word_embeddings": False}
    config = t.InternVLConfig(vision_config=vision, text_config=text, **more)
    return write_checkpoint("small-internvl", t.InternVLForConditionalGeneration, config, processor)


@pytest.fixture(scope="session")
def small_cogvlm2(tmp_path_factory):
    """CogVLM2 of 56 px, patch 14: 4x4 patches and CLS, 2x2 tokens; in the hub's layout, with a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "small-cogvlm2"
    vlm_processor(["Question: Describe the picture. Answer:"]).tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    vision = size | {"num_heads": 2, "num_positions": 17, "patch_size": 14, "image_size": 56}
    config = {"architectures": ["CogVLMForCausalLM"], "vocab_size": 512, **size, "num_attention_heads": 4}
    config |= {"num_multi_query_heads": 2, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
    config["vision_config"] = vision | {"in_channels": 3, "layer_norm_eps": 1e-6}
    model = CogVLM2(config)
    for name, p in model.named_parameters():
        if "norm" not in name:  # image tokens must be large beside the output of the attention layers
            torch.nn.init.normal_(p, std=0.6 if "linear_proj" in name else 0.1)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({k: v.clone() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def small_kosmos2(write_checkpoint):
    """Kosmos-2 of 48 px, patch 8: 6x6 patches and CLS, 5 latent queries."""
    tokenizer = bare_tokenizer(bos_token="<s>", unk_token="<unk>")
    images = t.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=SQUARE)
    processor = t.Kosmos2Processor(images, tokenizer, 4)
    text = {"embed_dim": 32, "layers": 3, "ffn_dim": 64, "attention_heads": 2, "init_std": 0.1}
    parts = {"text_config": text | ids_of(tokenizer), "vision_config": VIT | DRAWN}
    config = t.Kosmos2Config(**parts, latent_query_num=5)
    return write_checkpoint("small-kosmos2", t.Kosmos2ForConditionalGeneration, config, processor)


@pytest.fixture(scope="session")
def small_florence2(write_checkpoint):
    """Florence-2: stages of 4, 8 and 16 px a token (1, 2, 1 blocks); windows of 3x3; 3 encoder layers."""
    tokenizer = bare_tokenizer(bos_token="<s>", extra_special_tokens={"image_token": "<image>"})
    norm = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
    images = t.CLIPImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, **norm)
    images.image_seq_length = 17
    processor = t.Florence2Processor(images, tokenizer)
    vision = {"depths": (1, 2, 1), "patch_size": (7, 3, 3), "patch_stride": (4, 2, 2), "window_size": 3}
    vision |= {"patch_padding": (3, 1, 1), "patch_prenorm": (False, True, True), "embed_dim": (16, 32, 32)}
    vision |= {"num_heads": (2, 2, 2), "num_groups": (2, 2, 2), "projection_dim": 32}
    vision |= {"max_position_embeddings": 8, "initializer_range": 0.1}
    text = {"encoder_layers": 3, "encoder_ffn_dim": 64, "encoder_attention_heads": 2, "d_model": 32}
    text |= {"decoder_layers": 1, "decoder_ffn_dim": 64, "decoder_attention_heads": 2, "model_type": "bart"}
    text |= ids_of(tokenizer) | {"decoder_start_token_id": tokenizer.eos_token_id, "init_std": 0.1}
    text["max_position_embeddings"], image = 128, tokenizer.image_token_id
    config = t.Florence2Config(vision_config=vision, text_config=text, image_token_id=image)
    return write_checkpoint("small-florence2", t.Florence2ForConditionalGeneration, config, processor)


def of_library(kind, config, processor, head="Model", **how):
    """The fixture of a checkpoint of the library's family `kind`, with its processor of images or clips."""

    @pytest.fixture(scope="session")
    def folder(write_checkpoint, request):
        parts = getattr(t, f"{kind}Config")(**config), getattr(t, processor)(**how)
        return write_checkpoint(request.fixturename.replace("_", "-"), getattr(t, f"{kind}{head}"), *parts)

    return folder


size = {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"mlp_ratio": 2} | DRAWN
small_dino = of_library("Dinov2", size, "BitImageProcessor", do_resize=False, do_center_crop=False)
small_gated_dino = of_library("Dinov2", size | {"use_swiglu_ffn": True}, "BitImageProcessor")
size = VIT | DRAWN | {"num_register_tokens": 2, "layerscale_value": 0.5}
small_dinov3 = of_library("DINOv3ViT", size, "DINOv3ViTImageProcessor", size=SQUARE)
size = {"vision_config": VIT, "text_config": SIDE | {"vocab_size": 64, "projection_size": 32}}
small_siglip = of_library("Siglip", size, "SiglipImageProcessor", size=SQUARE)  # without CLS
text = SIDE | {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
owl = {
    "config": {"vision_config": VIT, "text_config": text, "projection_dim": 32},
    "head": "ForObjectDetection",
}
small_owlvit = of_library("OwlViT", processor="OwlViTImageProcessor", **owl, size=SQUARE)
small_owlv2 = of_library("Owlv2", processor="Owlv2ImageProcessor", **owl, size=SQUARE)
size = DRAWN | {"patch_size": 8, "crop_size": 48, "frames_per_clip": 6, "hidden_size": 48, "mlp_ratio": 2}
size |= {"num_attention_heads": 2, "num_hidden_layers": 3}  # two frames a time step
size |= {"pred_hidden_size": 24, "pred_num_attention_heads": 1, "pred_num_hidden_layers": 1}
small_vjepa2 = of_library("VJEPA2", size, "VJEPA2VideoProcessor", crop_size=48)


@pytest.fixture(scope="session")
def small_grounding_dino(write_checkpoint):
    """Grounding DINO: scales of 8, 16, 32 px; a Swin of 4, 8, 16 px a token, 3x3 windows, one shifted."""
    tokenizer = bare_tokenizer()
    swin = {"image_size": 64, "patch_size": 4, "embed_dim": 16, "depths": [2, 2, 1], "num_heads": [2, 2, 2]}
    swin = t.SwinConfig(**swin, window_size=3, out_indices=[2, 3], initializer_range=0.1)
    size = SIDE | {"num_hidden_layers": 1, "max_position_embeddings": 64, "initializer_range": 0.1}
    bert = t.BertConfig(**size, vocab_size=len(tokenizer))
    more = {"num_queries": 4, "encoder_layers": 3, "encoder_ffn_dim": 64, "encoder_attention_heads": 2}
    more |= {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 2, "d_model": 32}
    config = t.GroundingDinoConfig(backbone_config=swin, text_config=bert, num_feature_levels=3, **more)
    processor = t.GroundingDinoProcessor(t.GroundingDinoImageProcessor(), tokenizer)
    return write_checkpoint("small-grounding-dino", t.GroundingDinoForObjectDetection, config, processor)


def ltx_autoencoder(**more):
    """The fixture of LTX-Video's autoencoder, 8x in space and 2x in time."""

    @pytest.fixture(scope="session")
    def folder(tmp_path_factory, request):
        path = tmp_path_factory.mktemp("models") / request.fixturename.replace("_", "-")
        torch.manual_seed(0)
        random_autoencoder(4, (True, False, False), channels=8, **more).save_pretrained(path)
        return path

    return folder


small_vae, noncausal_vae = ltx_autoencoder(), ltx_autoencoder(encoder_causal=False)


def synthetic_set(tmp_path_factory, *arguments):
    folder = tmp_path_factory.mktemp("data") / arguments[0]
    data.main([*arguments, "--out", str(folder)])
    return folder


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    return synthetic_set(tmp_path_factory, "shapes", "--n", "60", "--size", "64")


@pytest.fixture(scope="session")
def moving_folder(tmp_path_factory):
    """24 clips of 17 frames of 64 px."""
    return synthetic_set(tmp_path_factory, "moving", "--n", "24")


@pytest.fixture(scope="session")
def trajectories_folder(tmp_path_factory):
    """80 clips of 32 frames of 48 px."""
    return synthetic_set(tmp_path_factory, "trajectories", "--n", "80", "--seed", "21")


@pytest.fixture(scope="session")
def trajectories(trajectories_folder):
    return load_items(trajectories_folder)[0]


@pytest.fixture
def printed(capsys):
    """call(f): what f, which must end with exit code 2, prints to stderr."""

    def check(call):
        capsys.readouterr()
        with pytest.raises(SystemExit, match="^2$"):
            call()
        return capsys.readouterr().err

    return check


@pytest.fixture
def refused(printed):
    """Check that a call ends with exit code 2 and one sentence on stderr that holds every given word."""

    def check(call, *words):
        err = printed(call)
        assert err.count("error: ") == 1 and "Traceback" not in err, err
        sentence = err.split("error: ")[1].strip()
        assert len(sentence.splitlines()) == 1, sentence
        for word in words:
            assert str(word) in sentence, sentence

    return check
