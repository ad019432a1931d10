"""The published sizes of the large models, and the names and shapes of their weights: for tests on the meta device and for benchmarks with random weights."""


def sizes(width, inner, layers, heads=None, groups=None, **more):
    config = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return (
        config
        | ({"num_attention_heads": heads} if heads else {})
        | ({"num_key_value_heads": groups} if groups else {})
        | more
    )


COGVLM2 = sizes(
    4096,
    14336,
    32,
    32,
    vocab_size=128256,
    num_multi_query_heads=8,
    rms_norm_eps=1e-5,
    bos_token_id=128000,
    eos_token_id=[128001, 128009],
)
COGVLM2["vision_config"] = sizes(
    1792,
    15360,
    63,
    num_heads=16,
    num_positions=9217,
    patch_size=14,
    image_size=1344,
    in_channels=3,
    layer_norm_eps=1e-6,
)

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

ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
QWEN2_5_VL_7B = {
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
    },
    "text_config": sizes(
        3584, 18944, 28, 28, 4, vocab_size=152064, bos_token_id=None, eos_token_id=None, rope_parameters=ROPE
    ),
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "tie_word_embeddings": False,
}


def internvl2_config(vision, text, side=448):
    """config.json of the original layout."""
    vision = vision | {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": side, "patch_size": 14}
    text = text | {
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rope_theta": 1000000,
    }
    text |= {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }
    return {
        "model_type": "internvl_chat",
        "vision_config": vision,
        "llm_config": text,
        "downsample_ratio": 0.5,
        "select_layer": -1,
    }


def internvl2_layout(vision, text, side=448):
    """{name: shape} of the original layout, from its own description."""
    d = vision["hidden_size"]
    m = vision["intermediate_size"]
    n = text["hidden_size"]
    words = text["vocab_size"]
    out = {"vision_model.embeddings.class_embedding": (1, 1, d), "language_model.model.norm.weight": (n,)}
    out |= {"vision_model.embeddings.position_embedding": (1, 1 + (side // 14) ** 2, d)}
    out |= {
        f"vision_model.embeddings.patch_embedding.{k}": shape
        for k, shape in (("weight", (d, 3, 14, 14)), ("bias", (d,)))
    }
    out |= {f"mlp1.{i}.{k}": (wide,) for i, wide in ((0, 4 * d), (1, n), (3, n)) for k in ("weight", "bias")}
    out |= {"mlp1.1.weight": (n, 4 * d), "mlp1.3.weight": (n, n)}
    out |= {f"language_model.{k}.weight": (words, n) for k in ("model.tok_embeddings", "output")}
    layer = dict.fromkeys(
        ("ls1", "ls2", "attn.proj.bias", "norm1.weight", "norm2.weight", "mlp.fc2.bias"), (d,)
    )
    layer |= {
        "attn.qkv.weight": (3 * d, d),
        "attn.proj.weight": (d, d),
        "mlp.fc1.weight": (m, d),
        "mlp.fc1.bias": (m,),
        "mlp.fc2.weight": (d, m),
    }
    layer |= {"attn.qkv.bias": (3 * d,)} if vision["qkv_bias"] else {}
    bias = vision["norm_type"] == "layer_norm"
    layer |= dict.fromkeys(
        ("norm1.bias", "norm2.bias") if bias else ("attn.q_norm.weight", "attn.k_norm.weight"), (d,)
    )
    out |= {
        f"vision_model.encoder.layers.{i}.{k}": v
        for i in range(vision["num_hidden_layers"])
        for k, v in layer.items()
    }
    kv, f = n // text["num_attention_heads"] * text["num_key_value_heads"], text["intermediate_size"]
    layer = {
        "attention.wqkv": (n + 2 * kv, n),
        "attention.wo": (n, n),
        "attention_norm": (n,),
        "ffn_norm": (n,),
    }
    layer |= {f"feed_forward.{k}": (n, f) if k == "w2" else (f, n) for k in ("w1", "w2", "w3")}
    out |= {
        f"language_model.model.layers.{i}.{k}.weight": v
        for i in range(text["num_hidden_layers"])
        for k, v in layer.items()
    }
    return out
