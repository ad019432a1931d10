"""Every entry of the registry at full size, on the meta device: published numbers, else defaults."""

import transformers
from diffusers import AutoencoderKLLTXVideo
from published import COGVLM2, INTERNVL2, internvl2_config, qwen2_5_vl, sizes

import cogvlm2
from cogvlm2 import CogVLM2


def build(kind, task="ForConditionalGeneration", **config):
    return lambda: getattr(transformers, kind + task)(getattr(transformers, f"{kind}Config")(**config))


TOWER = transformers.LlavaOnevisionConfig().vision_config  # SigLIP so400m, 384 px
SIGLIP = {"vision_config": TOWER, "vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
INTERN, QWEN2 = ({"vision_config": x} for x in ({"attention_bias": True}, {"hidden_size": 1536}))
QWEN3 = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2048}
QWEN3 = {"vision_config": QWEN3 | {"deepstack_visual_indexes": [5, 11, 17]}}
LANGUAGE, PUBLISHED = {}, {"cogvlm2": lambda: CogVLM2(COGVLM2), "ltx": AutoencoderKLLTXVideo}  # version 0.9.0
for name, kind, more, text, tied, vocabulary, *numbers in (  # more: None for a language model
    ("qwen2-vl-2b", "Qwen2VL", QWEN2, "qwen2_vl_text", True, 151936, 1536, 8960, 28, 12, 2),
    ("qwen3-vl-2b", "Qwen3VL", QWEN3, "qwen3_vl_text", True, 151936, 2048, 6144, 28, 16, 8),
    ("llava-next", "LlavaNext", {}, "mistral", False, 32064, 4096, 14336, 32, 32, 8),
    ("llava-next-vicuna-7b", "LlavaNext", {}, "llama", False, 32064, 4096, 11008, 32, 32, 32),
    ("llava-next-vicuna-13b", "LlavaNext", {}, "llama", False, 32064, 5120, 13824, 40, 40, 40),
    ("llava-interleave-0.5b", "Llava", SIGLIP, "qwen2", True, 152000, 1024, 2816, 24, 16, 16),  # tied?
    ("llava-interleave", "Llava", SIGLIP, "qwen2", False, 152000, 4096, 11008, 32, 32, 32),
    ("llava-onevision-0.5b", "LlavaOnevision", {}, "qwen2", True, 152000, 896, 4864, 24, 14, 2),
    ("llava-onevision", "LlavaOnevision", {}, "qwen2", False, 152064, 3584, 18944, 28, 28, 4),  # or 152128
    ("internvl3-1b", "InternVL", INTERN, "qwen2", False, 151674, 896, 4864, 24, 14, 2),
    ("internvl3-8b", "InternVL", INTERN, "qwen2", False, 151674, 3584, 18944, 28, 28, 4),
    ("tinyllama", "Llama", None, "llama", False, 32000, 2048, 5632, 22, 32, 4),
    ("qwen2.5-0.5b", "Qwen2", None, "qwen2", True, 151936, 896, 4864, 24, 14, 2),
    ("smollm2-360m", "Llama", None, "llama", True, 49152, 960, 2560, 32, 15, 5),
):
    words = sizes(*numbers, vocab_size=vocabulary, model_type=text, tie_word_embeddings=tied)
    if more is None:
        LANGUAGE[name] = build(kind, "ForCausalLM", **words)
    else:
        PUBLISHED[name] = build(kind, text_config=words, tie_word_embeddings=tied, **more)
QWEN_3B = qwen2_5_vl(None, sizes(2048, 11008, 36, 16, 2, vocab_size=151936), tie_word_embeddings=True)
PUBLISHED["qwen2.5-vl-3b"] = build("Qwen2_5_VL", **QWEN_3B)
PUBLISHED["qwen2.5-vl-7b"] = build("Qwen2_5_VL", **qwen2_5_vl())
for name, parts in INTERNVL2.items():  # not sure: the larger tower's 25 heads and 12800
    PUBLISHED[name] = build("InternVL", **cogvlm2.internvl2_config(internvl2_config(*parts)).to_dict())
for name, width, layers in (("s", 384, 12), ("b", 768, 12), ("l", 1024, 24), ("g", 1536, 40)):
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    PUBLISHED[f"dinov2-{name}"] = build("Dinov2", "Model", image_size=518, use_swiglu_ffn=name == "g", **size)
BASE, BART = {"d_model": 768, "vocab_size": 51328}, {"vocab_size": 51328, "max_position_embeddings": 4096}
for part in ("encoder", "decoder"):  # not sure: 51328; microsoft's file has 51289 tokens
    BASE |= {f"{part}_layers": 6, f"{part}_ffn_dim": 3072, f"{part}_attention_heads": 12}
PUBLISHED["florence-2"] = build("Florence2", vision_config={"projection_dim": 768}, text_config=BASE)
LARGE = {"embed_dim": [256, 512, 1024, 2048], "num_heads": [8, 16, 32, 64], "num_groups": [8, 16, 32, 64]}
PUBLISHED["florence-2-large"] = build("Florence2", vision_config=LARGE, text_config=BART)
PUBLISHED |= {"dinov3": build("DINOv3ViT", "Model", num_register_tokens=4), "kosmos-2": build("Kosmos2")}
PUBLISHED["siglip2"] = build("Siglip", "Model", text_config={"vocab_size": 256000})
PUBLISHED |= {"vjepa2": build("VJEPA2", "Model"), "owlvit": build("OwlViT", "ForObjectDetection")}
PUBLISHED["owlv2"] = build("Owlv2", "ForObjectDetection", vision_config={"image_size": 960})
PUBLISHED["grounding-dino"] = build("GroundingDino", "ForObjectDetection")
