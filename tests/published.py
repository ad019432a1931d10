"""The published sizes of the large models, and the names and shapes of their weights: for tests on the meta device and for benchmarks with random weights."""

COGVLM2 = {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_multi_query_heads": 8, "rms_norm_eps": 1e-5,
           "bos_token_id": 128000, "eos_token_id": [128001, 128009],
           "vision_config": {"hidden_size": 1792, "intermediate_size": 15360, "num_heads": 16, "num_hidden_layers": 63, "num_positions": 9217, "patch_size": 14, "image_size": 1344,
                             "in_channels": 3, "layer_norm_eps": 1e-6}}

INTERNVL2 = {  # vision tower, language model
    "internvl2": ({"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096, "qk_normalization": False, "norm_type": "layer_norm", "qkv_bias": True},
                  {"vocab_size": 92553, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}),
    "internvl2-26b": ({"hidden_size": 3200, "num_hidden_layers": 45, "num_attention_heads": 25, "intermediate_size": 12800, "qk_normalization": True, "norm_type": "rms_norm", "qkv_bias": False},
                      {"vocab_size": 92553, "hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 48, "num_attention_heads": 48, "num_key_value_heads": 8})}

QWEN2_5_VL_7B = {
    "vision_config": {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
                      "out_hidden_size": 3584},
    "text_config": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                    "bos_token_id": None, "eos_token_id": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}},
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "tie_word_embeddings": False}


def internvl2_config(vision, text, side=448):
    """config.json of the original layout."""
    return {"model_type": "internvl_chat", "vision_config": vision | {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "image_size": side, "patch_size": 14}, "downsample_ratio": 0.5, "select_layer": -1,
            "llm_config": text | {"rms_norm_eps": 1e-5, "hidden_act": "silu", "max_position_embeddings": 32768, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "rope_theta": 1000000,
                                  "rope_scaling": {"type": "dynamic", "factor": 2.0}}}


def internvl2_layout(vision, text, side=448):
    """{name: shape} of the original layout, from its own description."""
    d, m, n = vision["hidden_size"], vision["intermediate_size"], text["hidden_size"]
    out = {"vision_model.embeddings.class_embedding": (1, 1, d), "vision_model.embeddings.position_embedding": (1, 1 + (side // 14) ** 2, d),
           "vision_model.embeddings.patch_embedding.weight": (d, 3, 14, 14), "vision_model.embeddings.patch_embedding.bias": (d,), "mlp1.0.weight": (4 * d,), "mlp1.0.bias": (4 * d,),
           "mlp1.1.weight": (n, 4 * d), "mlp1.1.bias": (n,), "mlp1.3.weight": (n, n), "mlp1.3.bias": (n,), "language_model.model.norm.weight": (n,),
           **{f"language_model.{k}.weight": (text["vocab_size"], n) for k in ("model.tok_embeddings", "output")}}
    for i in range(vision["num_hidden_layers"]):
        layer = {"ls1": (d,), "ls2": (d,), "attn.qkv.weight": (3 * d, d), "attn.proj.weight": (d, d), "attn.proj.bias": (d,), "norm1.weight": (d,), "norm2.weight": (d,),
                 "mlp.fc1.weight": (m, d), "mlp.fc1.bias": (m,), "mlp.fc2.weight": (d, m), "mlp.fc2.bias": (d,)}
        layer |= {"attn.qkv.bias": (3 * d,)} if vision["qkv_bias"] else {}
        layer |= {"norm1.bias": (d,), "norm2.bias": (d,)} if vision["norm_type"] == "layer_norm" else {"attn.q_norm.weight": (d,), "attn.k_norm.weight": (d,)}
        out |= {f"vision_model.encoder.layers.{i}.{k}": v for k, v in layer.items()}
    q, kv, f = n, n // text["num_attention_heads"] * text["num_key_value_heads"], text["intermediate_size"]
    for i in range(text["num_hidden_layers"]):
        layer = {"attention.wqkv": (q + 2 * kv, n), "attention.wo": (n, n), "feed_forward.w1": (f, n), "feed_forward.w3": (f, n), "feed_forward.w2": (n, f), "attention_norm": (n,), "ffn_norm": (n,)}
        out |= {f"language_model.model.layers.{i}.{k}.weight": v for k, v in layer.items()}
    return out
