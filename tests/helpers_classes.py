"""Small random checkpoints of library classes that the registry does not name, by save_pretrained."""

import torch
import transformers as t
from conftest import (
    DRAWN,
    LLAMA,
    PLACE,
    SIDE,
    SQUARE,
    VIT,
    bare_tokenizer,
    ids_of,
    own_cell_first,
    vlm_processor,
)

from tiny import CHAT

SIZE = {"shortest_edge": 48}
TEXT = LLAMA | {"head_dim": 8, "max_position_embeddings": 2048}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
DEEP = {"depth": 3, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "intermediate_size": 64} | DRAWN
DEEP |= {"out_hidden_size": 32}
MERGED = {"patch_size": 8, "size": {"shortest_edge": 16 * 16, "longest_edge": 224 * 224}}
INTERNVL = {"start_image_token": "<img>", "end_image_token": "</img>", "video_token": "<video>"}
INTERNVL |= {"context_image_token": "<IMG_CONTEXT>"}


def template(place="<image>"):
    return {"chat_template": CHAT.replace(PLACE, place)}


def with_tokens(*names, **known):
    """A tokenizer with special tokens, some of them under a name of the processor's."""
    return bare_tokenizer(
        bos_token="<s>", extra_special_tokens={f"t{k}": x for k, x in enumerate(names)} | known
    )


# ---------------------------------------------------------------- (model class, config, processor) of each


def llava_like(kind, processor, images, videos=None, **config):
    """LLaVA's classes on a CLIP tower, whose class token is left out."""
    tokenizer = with_tokens(image_token="<image>", video_token="<video>")
    more = {"text_config": t.LlamaConfig(**LLAMA, **ids_of(tokenizer)), "tie_word_embeddings": False}
    more |= {"image_token_index": tokenizer.image_token_id, "video_token_index": tokenizer.video_token_id}
    config = getattr(t, f"{kind}Config")(vision_config=t.CLIPVisionConfig(**VIT), **more, **config)
    how = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    parts = {"image_processor": images, "tokenizer": tokenizer} | (
        {"video_processor": videos} if videos else {}
    )
    return f"{kind}ForConditionalGeneration", config, processor(**parts, **how, **template())


def llava15():
    images = t.CLIPImageProcessor(size=SIZE, crop_size=SQUARE)
    return llava_like("Llava", t.LlavaProcessor, images)


def llava_next_video():
    tiles = {"image_grid_pinpoints": [[48, 96], [96, 48], [96, 96]]}
    images = t.LlavaNextImageProcessor(size=SIZE, crop_size=SQUARE, **tiles)
    videos = t.LlavaNextVideoVideoProcessor(size=SIZE, crop_size=SQUARE)
    return llava_like(
        "LlavaNextVideo", t.LlavaNextVideoProcessor, images, videos, **tiles, spatial_pool_stride=2
    )


def video_llava():
    images = t.VideoLlavaImageProcessor(size=SIZE, crop_size=SQUARE)
    videos = t.VideoLlavaVideoProcessor(size=SIZE, crop_size=SQUARE)
    return llava_like("VideoLlava", t.VideoLlavaProcessor, images, videos)


def pixtral_of(kind, merge, **more):
    """Pixtral's tower, of any side, in Mistral 3 and (Pixtral 12B) in LLaVA's class."""
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    tokenizer = with_tokens(**names)
    images = t.PixtralImageProcessor(size={"longest_edge": 96}, patch_size=8)
    merged = {"patch_size": 8, "spatial_merge_size": merge}
    config = getattr(t, f"{kind}Config")(
        vision_config=t.PixtralVisionConfig(**VIT | {"image_size": 96}, head_dim=16),
        text_config=t.MistralConfig(**TEXT, **ids_of(tokenizer)),
        image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1,
        **more,
    )
    processor = t.PixtralProcessor(images, tokenizer, **merged, **template("[IMG]"))
    return f"{kind}ForConditionalGeneration", config, processor


def mistral3():
    return pixtral_of("Mistral3", 2, spatial_merge_size=2)


def pixtral_12b():
    return pixtral_of("Llava", 1, vision_feature_select_strategy="full")


def idefics(kind, processor, **config):
    tokenizer = processor.tokenizer
    config = getattr(t, f"{kind}Config")(
        vision_config=VIT | DRAWN,
        text_config=t.LlamaConfig(**LLAMA, **ids_of(tokenizer)).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        **config,
    )
    return f"{kind}ForConditionalGeneration", config, processor


def idefics3(kind="Idefics3"):
    names = {"fake_image_token": "<fake_token_around_image>", "image_token": "<image>"}
    names |= {"end_of_utterance_token": "<end_of_utterance>", "global_image_token": "<global-img>"}
    size = {"size": {"longest_edge": 96}, "max_image_size": {"longest_edge": 48}}
    parts = [getattr(t, f"{kind}ImageProcessor")(**size), with_tokens(**names, video_token="<video>")]
    parts += [t.SmolVLMVideoProcessor(**size)] if kind == "SmolVLM" else []
    processor = getattr(t, f"{kind}Processor")(*parts, image_seq_len=9, **template())
    return idefics(kind, processor, scale_factor=2)


def idefics2():
    """Sixteen latents pool the patches: they have no place in the image."""
    images = t.Idefics2ImageProcessor(
        size={"longest_edge": 48, "shortest_edge": 48}, do_image_splitting=False
    )
    processor = t.Idefics2Processor(images, with_tokens(), image_seq_len=16, **template())
    pooled = {
        "resampler_n_latents": 16,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 16,
    }
    pooled |= {"hidden_size": 32, "num_key_value_heads": 1}
    return idefics("Idefics2", processor, perceiver_config=pooled)


def smolvlm():
    return idefics3("SmolVLM")


def gemma3():
    tokenizer = with_tokens(boi_token="<start_of_image>", image_token="<image_soft_token>", eoi_token="<end>")
    images = t.Gemma3ImageProcessor(size=SQUARE)
    processor = t.Gemma3Processor(images, tokenizer, image_seq_length=9, **template("<start_of_image>"))
    text = TEXT | ids_of(tokenizer) | {"sliding_window": 64, "query_pre_attn_scalar": 8}
    config = t.Gemma3Config(
        vision_config=t.SiglipVisionConfig(**VIT),
        text_config=text,
        mm_tokens_per_image=9,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )
    return "Gemma3ForConditionalGeneration", config, processor


def paligemma():
    tokenizer = with_tokens(image_token="<image>")
    images = t.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = 36
    processor = t.PaliGemmaProcessor(images, tokenizer)
    text = TEXT | ids_of(processor.tokenizer) | {"model_type": "gemma2", "query_pre_attn_scalar": 8}
    config = t.PaliGemmaConfig(
        vision_config=t.SiglipVisionConfig(**VIT, projection_dim=32).to_dict(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    return "PaliGemmaForConditionalGeneration", config, processor


def aya_vision():
    names = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<image>", "<|IMG_LINE_BREAK|>"]
    tokenizer = with_tokens(*names, "TILE", "TILE_GLOBAL")
    how = {"patch_size": 8, "img_size": 48, "downsample_factor": 2}
    processor = t.AyaVisionProcessor(t.GotOcr2ImageProcessor(size=SQUARE), tokenizer, **how, **template())
    config = t.AyaVisionConfig(
        vision_config=t.SiglipVisionConfig(**VIT, vision_use_head=False),
        text_config=t.Cohere2Config(**TEXT, **ids_of(tokenizer)),
        downsample_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return "AyaVisionForConditionalGeneration", config, processor


def ovis2():
    names = ["<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = with_tokens(*names)
    _, image, *indicators = tokenizer.convert_tokens_to_ids(names)
    images = t.Ovis2ImageProcessor(size=SQUARE)
    processor = t.Ovis2Processor(images, tokenizer, image_seq_length=9, **template())
    vision = VIT | DRAWN | {"vocab_size": 40, "hidden_stride": 2, "tokenize_function": "softmax"}
    config = t.Ovis2Config(
        vision_config=vision | {"num_visual_indicator_tokens": 5},
        text_config=t.Qwen2Config(**TEXT, **ids_of(tokenizer)).to_dict(),
        image_token_id=image,
        visual_indicator_token_ids=indicators,
        vocab_size=len(tokenizer),
        hidden_size=32,
    )
    return "Ovis2ForConditionalGeneration", config, processor


def qwen_like(kind, text, vision=None, config=None):
    made = vlm_processor(["Describe the picture."])
    video = t.Qwen3VLVideoProcessor(patch_size=8, size=made.video_processor.size)
    processor = t.Qwen3VLProcessor(
        made.image_processor, made.tokenizer, video, chat_template=made.chat_template
    )
    tokenizer = made.tokenizer
    more = ids_of(tokenizer, ("image", "video", "vision_start", "vision_end"))
    rope = MROPE | {"mrope_interleaved": True}
    text = (
        TEXT | {"head_dim": 16, "num_key_value_heads": 1, "rope_parameters": rope} | text | ids_of(tokenizer)
    )
    vision = DEEP | {"num_position_embeddings": 64} | (vision or {})
    return getattr(t, f"{kind}Config")(text_config=text, vision_config=vision, **more), processor


def qwen3_vl_moe():
    config, processor = qwen_like("Qwen3VLMoe", MOE, {"deepstack_visual_indexes": [0, 1]})
    return "Qwen3VLMoeForConditionalGeneration", config, processor


def qwen3_5():
    size = {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    size |= {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    size |= {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    size |= {"rope_parameters": MROPE | {"mrope_interleaved": True, "partial_rotary_factor": 1.0}}
    config, processor = qwen_like("Qwen3_5", size)
    return "Qwen3_5ForConditionalGeneration", config, processor


def glm4v():
    places = {f"{kind}_token_id": f"<|{kind}|>" for kind in ("image", "video")}
    for kind in ("image", "video"):
        places |= {
            f"{kind}_start_token_id": f"<|begin_of_{kind}|>",
            f"{kind}_end_token_id": f"<|end_of_{kind}|>",
        }
    tokenizer = with_tokens(*places.values(), image_token="<|image|>", video_token="<|video|>")
    parts = t.Glm4vImageProcessor(**MERGED), tokenizer, t.Glm4vVideoProcessor(**MERGED)
    processor = t.Glm4vProcessor(*parts, **template("<|begin_of_image|><|image|><|end_of_image|>"))
    text = SIDE | DRAWN | {"num_key_value_heads": 1, "rope_parameters": MROPE} | ids_of(tokenizer)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in places.items()}
    config = t.Glm4vConfig(vision_config=DEEP | {"image_size": 48}, text_config=text, **ids)
    return "Glm4vForConditionalGeneration", config, processor


def internvl35():
    tokenizer = bare_tokenizer(extra_special_tokens=INTERNVL)
    parts = t.GotOcr2ImageProcessor(size=SQUARE), tokenizer, t.InternVLVideoProcessor()
    processor = t.InternVLProcessor(*parts, image_seq_length=9, **template("<IMG_CONTEXT>"))
    text = t.Qwen3Config(**TEXT, **ids_of(tokenizer)).to_dict()
    vision = SIDE | DRAWN | {"image_size": [48, 48], "patch_size": [8, 8], "layer_scale_init_value": 1.0}
    more = {"image_token_id": tokenizer.context_image_token_id, "tie_word_embeddings": False}
    config = t.InternVLConfig(vision_config=vision, text_config=text, **more)
    return "InternVLForConditionalGeneration", config, processor


# ---------------------------------------------------------------- encoders


def encoder(kind, config, processor, **how):
    return lambda: (f"{kind}Model", getattr(t, f"{kind}Config")(**config), getattr(t, processor)(**how))


def detr():
    resnet = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 2, 1]}
    resnet = t.ResNetConfig(**resnet, layer_type="basic", out_features=["stage4"])
    size = {"d_model": 32, "encoder_layers": 3, "encoder_ffn_dim": 64, "encoder_attention_heads": 2}
    size |= {"decoder_layers": 2, "decoder_ffn_dim": 64, "decoder_attention_heads": 2, "num_queries": 4}
    config = t.DetrConfig(backbone_config=resnet, use_timm_backbone=False, backbone=None, **size)
    return "DetrForObjectDetection", config, t.DetrImageProcessor()


words = SIDE | {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
dual = {"vision_config": VIT, "text_config": words}
registers = {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"mlp_ratio": 2} | DRAWN
cropped = {"size": SIZE, "crop_size": SQUARE}
ENCODERS = {
    "clip": encoder("CLIP", dual | {"projection_dim": 32}, "CLIPImageProcessor", **cropped),
    "vit": encoder("ViT", VIT | DRAWN, "ViTImageProcessor", size=SQUARE),
    "ijepa": encoder("IJepa", VIT | DRAWN, "ViTImageProcessor", size=SQUARE),
    "siglip": encoder("Siglip", dual, "SiglipImageProcessor", size=SQUARE),
    "dinov2_with_registers": encoder("Dinov2WithRegisters", registers, "BitImageProcessor", **cropped),
    "pixtral": encoder("PixtralVision", VIT | {"head_dim": 16}, "PixtralImageProcessor", patch_size=8),
    "detr": detr,
}
VLMS = (llava15, llava_next_video, video_llava, idefics3, smolvlm, gemma3, paligemma, mistral3, pixtral_12b)
VLMS += (aya_vision, ovis2, qwen3_vl_moe, qwen3_5, glm4v, internvl35, idefics2)
VLMS = {function.__name__: function for function in VLMS}


def write(which, folder):
    """The folder of a checkpoint of VLMS or ENCODERS."""
    torch.manual_seed(0)
    name, config, processor = (VLMS | ENCODERS)[which]()
    model = getattr(t, name)(config)
    own_cell_first(model)
    for name, weight in model.named_parameters():
        if "mm_input_projection" in name or "visual.merger" in name:  # Gemma 3's is zero; GLM-4V's is small
            torch.nn.init.normal_(weight, std=0.3)
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder
