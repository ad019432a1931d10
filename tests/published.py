"""Published sizes of large models, for tests on the meta device and benchmarks with random weights."""


def sizes(width, inner, layers, heads=None, groups=None, **more):
    config = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads} if heads else {}
    return config | ({"num_key_value_heads": groups} if groups else {}) | more


COGVLM2 = sizes(4096, 14336, 32, 32, vocab_size=128256, num_multi_query_heads=8, rms_norm_eps=1e-5)
COGVLM2 |= {"bos_token_id": 128000, "eos_token_id": [128001, 128009]}
COGVLM2["vision_config"] = sizes(1792, 15360, 63, num_heads=16, num_positions=9217, patch_size=14)
COGVLM2["vision_config"] |= {"image_size": 1344, "in_channels": 3, "layer_norm_eps": 1e-6}

INTERNVL2 = {  # vision tower, language model
    "internvl2": (
        sizes(1024, 4096, 24, 16, qk_normalization=False, norm_type="layer_norm", qkv_bias=True),
        sizes(4096, 14336, 32, 32, 8, vocab_size=92553),
    ),
    "internvl2-26b": (
        sizes(3200, 12800, 45, 25, qk_normalization=True, norm_type="rms_norm", qkv_bias=False),
        sizes(6144, 16384, 48, 48, 8, vocab_size=92553),
    ),
}


def qwen2_5_vl(vision=None, text=None, **more):
    """Keyword arguments of Qwen2_5_VLConfig: the published 7B, with other sizes where they are given."""
    published = sizes(3584, 18944, 28, 28, 4, vocab_size=152064, bos_token_id=None, eos_token_id=None)
    text = published | (text or {})
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    sections = [half // 4, half * 3 // 8, half * 3 // 8]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14}
    tower |= {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]} | (vision or {})
    tower["out_hidden_size"] = text["hidden_size"]
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = {name: text["vocab_size"] - 412 + k for k, name in zip((0, 1, 3, 4), names, strict=True)}
    return {"vision_config": tower, "text_config": text, "tie_word_embeddings": False} | ids | more


def internvl2_config(vision, text, side=448):
    """config.json of the original layout."""
    vision = vision | {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": side, "patch_size": 14}
    text = text | {"rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 32768}
    text |= {"rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = {"model_type": "internvl_chat", "vision_config": vision, "llm_config": text}
    return config | {"downsample_ratio": 0.5, "select_layer": -1}


def internvl2_layout(vision, text, side=448):
    """{name: shape} of the original layout."""
    (d, m), (n, f) = ((x["hidden_size"], x["intermediate_size"]) for x in (vision, text))
    out = {"class_embedding": (1, 1, d), "position_embedding": (1, 1 + (side // 14) ** 2, d)}
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
