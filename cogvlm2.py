"""CogVLM2 (Hong et al. 2024, arXiv 2408.16500; its visual expert: Wang et al. 2023, arXiv 2311.03079).

    from cogvlm2 import CogVLM2
    model = CogVLM2.from_pretrained(folder, dtype=torch.bfloat16)   # a copy of zai-org/cogvlm2-llama3-chat-19B
    inputs = model.inputs(pixels, model.tokenizer("Question: Where is the cup? Answer:").input_ids)
    answer = model.generate(**inputs, max_new_tokens=64)

No maintained library has this architecture, and the code on the hub needs xformers and triton. Module names
match the published safetensors, so checkpoints load directly. An image is 1344 px: 96 x 96 patches and a
class token through a tower of 63 layers, 2 x 2 patches to one token by a strided convolution, then 48 x 48
tokens between `boi` and `eoi` in a language model of 32 layers, each of which has a second set of weights,
the visual expert, for image rows. Of 39.0 GB of weights in bf16, 8.6 are the tower's.

InternVL2 needs code from the hub as well: its weights, tokenizer and prompt are mapped onto transformers'
InternVL.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from checkpoints import attempt, config_of, hub_file, pin
from common import fail

IMAGE_MEAN, IMAGE_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's
# the id in `input_ids` at image rows; its embedding is never used
PLACEHOLDER = 128002


def normalised(images):
    """uint8 [n, S, S, 3] -> pixels [n, 3, S, S] as the tower expects them."""
    x = (images.float() / 255 - torch.tensor(IMAGE_MEAN)) / torch.tensor(IMAGE_STD)
    return x.permute(0, 3, 1, 2)


# ---------------------------------------------------------------- the tower


class PatchEmbedding(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.proj = nn.Conv2d(c.in_channels, c.hidden_size, c.patch_size, c.patch_size)
        self.cls_embedding = nn.Parameter(torch.zeros(1, c.hidden_size))
        self.position_embedding = nn.Embedding(c.num_positions, c.hidden_size)

    def forward(self, pixels):
        """[n, 3, S, S] -> [n, 1 + hw, D], the class token first."""
        x = self.proj(pixels).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_embedding.expand(len(x), -1, -1), x], 1) + self.position_embedding.weight


class VisionAttention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads = c.num_heads
        self.query_key_value = nn.Linear(c.hidden_size, 3 * c.hidden_size)
        self.dense = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, x):
        # each [n, heads, K, d]
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.dense(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c.hidden_size, c.intermediate_size)
        self.fc2 = nn.Linear(c.intermediate_size, c.hidden_size)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """A norm follows each sub-layer, inside the residual; none precedes, and none ends the tower."""

    def __init__(self, c):
        super().__init__()
        self.attention, self.mlp = VisionAttention(c), VisionMlp(c)
        self.input_layernorm, self.post_attention_layernorm = (
            nn.LayerNorm(c.hidden_size, eps=c.layer_norm_eps) for _ in range(2)
        )

    def forward(self, x):
        x = x + self.input_layernorm(self.attention(x))
        return x + self.post_attention_layernorm(self.mlp(x))


class Projector(nn.Module):
    def __init__(self, c, width, inner):
        super().__init__()
        self.linear_proj, self.norm1 = nn.Linear(c.hidden_size, width, bias=False), nn.LayerNorm(width)
        self.gate_proj, self.dense_h_to_4h = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        x = F.gelu(self.norm1(self.linear_proj(x)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))


class Vision(nn.Module):
    def __init__(self, c, width, inner):
        super().__init__()
        self.patch_embedding = PatchEmbedding(c)
        self.transformer = nn.Module()
        self.transformer.layers = nn.ModuleList(VisionLayer(c) for _ in range(c.num_hidden_layers))
        self.conv = nn.Conv2d(c.hidden_size, c.hidden_size, 2, 2)
        self.linear_proj = Projector(c, width, inner)
        self.boi, self.eoi = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))

    def forward(self, pixels):
        """[n, 3, S, S] -> [n, hw / 4 + 2, width]: boi, the merged patches in raster order, eoi."""
        x = self.patch_embedding(pixels)
        for layer in self.transformer.layers:
            x = layer(x)
        side = round((x.shape[1] - 1) ** 0.5)
        x = self.conv(x[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
        x = self.linear_proj(x.flatten(2).transpose(1, 2))
        return torch.cat([self.boi.expand(len(x), -1, -1), x, self.eoi.expand(len(x), -1, -1)], 1)


# ---------------------------------------------------------------- the language model and its visual expert


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        y = x.float()
        # multiplied in fp32, then cast
        return (self.weight * y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Rotary(nn.Module):
    """Half-split rotary embedding by position id; `inv_freq` is in the checkpoint."""

    def __init__(self, dim, base=500000.0):
        super().__init__()
        self.register_buffer("inv_freq", base ** (-torch.arange(0, dim, 2).float() / dim))

    def forward(self, x, position_ids):
        """x [n, heads, K, d], position_ids [n, K] -> x, rotated."""
        angle = (position_ids[:, None, :, None] * self.inv_freq.float()).repeat(1, 1, 1, 2)
        a, b = x.chunk(2, -1)
        return x * angle.cos().to(x.dtype) + torch.cat([-b, a], -1) * angle.sin().to(x.dtype)


def by_expert(x, expert, vision, language):
    """Rows [n, K, D] through `vision` where `expert` [n, K] is true, through `language` elsewhere."""
    if not expert.any():
        return language(x)
    rows = language(x[~expert])
    out = rows.new_empty(*x.shape[:2], rows.shape[-1])
    out[~expert], out[expert] = rows, vision(x[expert])
    return out


class Attention(nn.Module):
    """One causal attention over all rows; the expert has separate projections."""

    def __init__(self, c):
        super().__init__()
        self.dim = c.hidden_size // c.num_attention_heads
        self.split = [c.hidden_size, c.num_multi_query_heads * self.dim, c.num_multi_query_heads * self.dim]
        self.rotary_emb = Rotary(self.dim)
        self.vision_expert_query_key_value = nn.Linear(c.hidden_size, sum(self.split))
        self.language_expert_query_key_value = nn.Linear(c.hidden_size, sum(self.split), bias=False)
        self.vision_expert_dense, self.language_expert_dense = (
            nn.Linear(c.hidden_size, c.hidden_size, bias=False) for _ in range(2)
        )

    def forward(self, x, expert, position_ids, cache=None, mask=None):
        """cache: a dict of keys and values of earlier rows, extended here.

        mask: [n, 1, K, all rows], true where a row may attend."""
        mixed = by_expert(x, expert, self.vision_expert_query_key_value, self.language_expert_query_key_value)
        q, k, v = (z.unflatten(-1, (-1, self.dim)).transpose(1, 2) for z in mixed.split(self.split, -1))
        q, k = self.rotary_emb(q, position_ids), self.rotary_emb(k, position_ids)
        if cache is not None:
            if cache:
                k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
            cache |= {"k": k, "v": v}
        new, all_rows = q.shape[2], k.shape[2]
        if mask is None and 1 < new < all_rows:  # is_causal would count from the first key
            mask = torch.ones(new, all_rows, dtype=torch.bool, device=x.device).tril(all_rows - new)
        out = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None and new > 1, enable_gqa=True
        )
        return by_expert(
            out.transpose(1, 2).flatten(2), expert, self.vision_expert_dense, self.language_expert_dense
        )


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj, self.up_proj = (
            nn.Linear(c.hidden_size, c.intermediate_size, bias=False) for _ in range(2)
        )
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class ExpertMlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.language_mlp, self.vision_mlp = Mlp(c), Mlp(c)

    def forward(self, x, expert):
        return by_expert(x, expert, self.vision_mlp, self.language_mlp)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn, self.mlp = Attention(c), ExpertMlp(c)
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2)
        )

    def forward(self, x, expert, position_ids, cache=None, mask=None):
        x = x + self.self_attn(self.input_layernorm(x), expert, position_ids, cache, mask)
        return x + self.mlp(self.post_attention_layernorm(x), expert)


def expert_rows(token_type_ids):
    """[n, K] of 0 (text) and 1 (image) -> bool: the expert's rows. A row and the next must both be the image's: boi is included, eoi is not."""
    return (token_type_ids == 1) & (F.pad(token_type_ids[:, 1:], (0, 1)) == 1)


def image_positions(token_type_ids):
    """[n, K] -> position ids. All patches share one: BOS 0, boi 1, patches 2, eoi 3, text 4, 5, ..."""
    image = token_type_ids == 1
    before = F.pad(token_type_ids[:, :-1], (1, 0)) == 1
    after = F.pad(token_type_ids[:, 1:], (0, 1)) == 1
    inner = image & before & after  # neither boi nor eoi
    step = ~(inner & F.pad(inner[:, :-1], (1, 0)))  # only the first patch advances the position
    return step.long().cumsum(1) - 1


class CogVLM2(nn.Module):
    def __init__(self, config):
        """config: the checkpoint's config.json as a dict."""
        super().__init__()
        self.config = c = SimpleNamespace(
            **config | {"model_type": "cogvlm2", "vision_config": SimpleNamespace(**config["vision_config"])}
        )
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model.vision = Vision(c.vision_config, c.hidden_size, c.intermediate_size)
        self.model.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.model.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.expert = "vision"  # of the image's rows; "language": an ablation

    @classmethod
    def in_dtype(cls, config, dtype):
        """The network with its parameters in `dtype`; the rotary frequencies stay fp32."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return cls(config)
        finally:
            torch.set_default_dtype(before)

    @classmethod
    def from_pretrained(cls, folder, dtype=torch.float32):
        """Load a folder in the hub's layout: config.json, safetensors and, for several files, their index.

        Raises FileNotFoundError for a missing file, KeyError naming the first missing or superfluous weight.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        with torch.device("meta"):
            model = cls(json.loads((folder / "config.json").read_text()))
        index = folder / "model.safetensors.index.json"
        files = (
            sorted(set(json.loads(index.read_text())["weight_map"].values()))
            if index.is_file()
            else ["model.safetensors"]
        )
        state = {
            k: t if k.endswith("inv_freq") else t.to(dtype)
            for file in files
            for k, t in load_file(folder / file).items()
        }
        if wrong := sorted(set(model.state_dict()) ^ set(state)):
            raise KeyError(
                f"{folder} and this architecture differ in weights: {wrong[0]} and {len(wrong) - 1} more"
            )
        model.load_state_dict(state, assign=True)
        return model.eval()

    def save_pretrained(self, folder, dtype=torch.float32):
        """Write what `from_pretrained` reads; `inv_freq` stays in fp32."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {k: vars(v) if k == "vision_config" else v for k, v in vars(self.config).items()}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(
            {
                k: t.to(t.dtype if k.endswith("inv_freq") else dtype).contiguous()
                for k, t in self.state_dict().items()
            },
            folder / "model.safetensors",
        )

    def inputs(self, pixels, text_ids):
        """Arguments of `forward` for images [n, 3, S, S] and one prompt (token ids without BOS): input_ids, token_type_ids [n, K], pixels."""
        v = self.config.vision_config
        rows = (v.image_size // v.patch_size) ** 2 // 4 + 2
        ids = torch.tensor(
            [self.config.bos_token_id, *[min(PLACEHOLDER, self.config.vocab_size - 1)] * rows, *text_ids]
        )
        types = torch.tensor([0, *[1] * rows, *[0] * len(text_ids)])
        return {
            "input_ids": ids.expand(len(pixels), -1),
            "token_type_ids": types.expand(len(pixels), -1),
            "pixels": pixels,
        }

    def embed(self, input_ids, token_type_ids, pixels=None):
        """Embeddings [n, K, D], with the image tokens at the image rows."""
        x = self.model.embed_tokens(input_ids)
        if pixels is not None:
            x = x.masked_scatter((token_type_ids == 1)[..., None], self.model.vision(pixels).to(x.dtype))
        return x

    def forward(
        self,
        input_ids,
        token_type_ids,
        pixels=None,
        position_ids=None,
        cache=None,
        mask=None,
        logits_to_keep=0,
    ):
        """Logits [n, K, vocabulary] in fp32; `logits_to_keep`: of the last rows only. cache: one dict a layer; mask: see Attention."""
        x = self.embed(input_ids, token_type_ids, pixels)
        position_ids = image_positions(token_type_ids) if position_ids is None else position_ids
        expert = expert_rows(token_type_ids) & (self.expert == "vision")
        for i, layer in enumerate(self.model.layers):
            x = layer(x, expert, position_ids, None if cache is None else cache[i], mask)
        return self.lm_head(self.model.norm(x[:, -logits_to_keep:])).float()

    @torch.inference_mode()
    def generate(self, input_ids, token_type_ids, pixels=None, max_new_tokens=128, streamer=None):
        """Greedy decoding with a cache: new token ids [n, <= max_new_tokens], filled with eos after the end. streamer: transformers', for one row."""
        eos = torch.as_tensor(self.config.eos_token_id, device=input_ids.device).flatten()
        cache, out = [{} for _ in self.model.layers], []
        position = image_positions(token_type_ids)[:, -1:]
        logits = self(input_ids, token_type_ids, pixels, cache=cache, logits_to_keep=1)
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            token = logits[:, -1].argmax(-1).masked_fill(done, int(eos[0]))
            out.append(token)
            if streamer:
                streamer.put(token.cpu())
            done |= torch.isin(token, eos)
            if done.all():
                break
            position = position + 1
            logits = self(
                token[:, None], torch.zeros_like(token[:, None]), position_ids=position, cache=cache
            )
        if streamer:
            streamer.end()
        return torch.stack(out, 1)


# ---------------------------------------------------------------- InternVL2 in its original layout


def internvl2_config(old):
    """The native config for InternVL2's config.json (InternViT and InternLM2, Chen et al. 2024)."""
    from transformers import InternVLConfig, LlamaConfig

    v, t = old["vision_config"], old["llm_config"]
    shared = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act")
    vision = {k: v[k] for k in (*shared, "norm_type", "layer_norm_eps")}
    vision |= {
        "image_size": [v["image_size"]] * 2,
        "patch_size": [v["patch_size"]] * 2,
        "attention_bias": v["qkv_bias"],
        "use_qk_norm": v["qk_normalization"],
        "use_mean_pooling": True,
    }
    text_only = ("vocab_size", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings")
    text = {k: t[k] for k in (*shared, *text_only, "bos_token_id", "eos_token_id", "pad_token_id")}
    scaling = t.get("rope_scaling") or {}
    rope = {"rope_type": scaling.get("type", "default"), "rope_theta": float(t["rope_theta"])}
    rope |= {"factor": scaling["factor"]} if scaling else {}
    return InternVLConfig(
        vision_config=vision,
        text_config=LlamaConfig(**text, rope_parameters=rope, tie_word_embeddings=False).to_dict(),
        downsample_ratio=old["downsample_ratio"],
        vision_feature_layer=old["select_layer"],
        image_token_id=old.get("img_context_token_id", t["vocab_size"] - 1),
        tie_word_embeddings=False,
    )


INTERNVL2_KEYS = [  # (original, native): applied in order as regular expressions
    (r"^vision_model\.embeddings\.class_embedding", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding", "model.vision_tower.embeddings.position_embeddings"),
    (
        r"^vision_model\.embeddings\.patch_embedding",
        "model.vision_tower.embeddings.patch_embeddings.projection",
    ),
    (r"^vision_model\.encoder\.layers\.", "model.vision_tower.encoder.layer."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.([qk])_norm\.", r".attention.\1_norm."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.output\.", "lm_head."),
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
]


def internvl2_names(name):
    """The native names of a weight of the original layout; three for a fused projection."""
    for old, new in INTERNVL2_KEYS:
        name = re.sub(old, new, name)
    if ".attn.qkv." in name:
        return [name.replace("attn.qkv", f"attention.{x}_proj") for x in "qkv"]
    if ".attention.wqkv." in name:
        return [name.replace("attention.wqkv", f"self_attn.{x}_proj") for x in "qkv"]
    return [name]


def internvl2_parts(name, tensor, config):
    """The native weights of a weight of the original layout, one for each name."""
    if ".attn.qkv." in name:
        return tensor.chunk(3)
    if ".attention.wqkv." in name:  # for every key-value head: its query heads, the key, the value
        groups = config.text_config.num_key_value_heads
        per = config.text_config.num_attention_heads // groups
        return [
            part.flatten(0, 2) for part in tensor.unflatten(0, (groups, per + 2, -1)).split([per, 1, 1], 1)
        ]
    return [tensor]


# The prompt "internlm2-chat" of OpenGVLab's conversation.py; its tokenizer puts BOS before it.
SYSTEM = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
INTERNVL2_CHAT = (
    "<|im_start|>system\n"
    + SYSTEM
    + "<|im_end|>{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<IMG_CONTEXT>\n' }}"
    "{% endfor %}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def fields(message):
    """[(number, value)] of the fields of a protobuf message: an int, or bytes (of a text, message or float)."""
    found, at = [], 0

    def varint():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            found.append((number, varint()))
        else:
            length = varint() if kind == 2 else {1: 8, 5: 4}[kind]
            found.append((number, message[at : at + length]))
            at += length
    return found


def internvl2_processor(config, vocabulary, stored):
    """transformers' processor for InternVL2, whose own tokenizer is code on the hub; it sets the image token.

    vocabulary: the bytes of tokenizer.model (SentencePiece, BPE); stored: its tokenizer_config.json.
    """
    from tokenizers import AddedToken
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor, LlamaTokenizer
    from transformers.tokenization_utils_base import generate_merges

    model = fields(vocabulary)  # a ModelProto: pieces are field 1, the normaliser is field 3
    pieces = [dict(fields(value))[1].decode() for number, value in model if number == 1]
    normaliser = dict(fields(dict(model).get(3, b"")))
    added = {int(k): token["content"] for k, token in stored["added_tokens_decoder"].items()}
    for k, piece in sorted(added.items()):
        pieces[k : k + 1] = [piece]  # takes the place of an unused piece, or extends the vocabulary
    ids = {piece: k for k, piece in enumerate(pieces)}
    tokenizer = LlamaTokenizer(
        vocab=ids,
        merges=generate_merges(ids, skip_tokens=added.values()),
        legacy=True,  # every text between special tokens is encoded by itself
        add_prefix_space=bool(normaliser.get(3, True)),
        add_bos_token=stored.get("add_bos_token", True),
        pad_token=stored.get("pad_token", "</s>"),
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<unk>",  # none: a clip is given as images
        },
    )
    tokenizer.add_tokens([AddedToken(x, special=True, normalized=False) for x in added.values()], True)
    config.image_token_id = ids["<IMG_CONTEXT>"]
    side, patch = config.vision_config.image_size[0], config.vision_config.patch_size[0]
    how = {"size": {"height": side, "width": side}}
    how |= {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}  # ImageNet's
    return InternVLProcessor(
        GotOcr2ImageProcessor(**how),
        tokenizer,
        InternVLVideoProcessor(**how),
        image_seq_length=round((side // patch * config.downsample_ratio) ** 2),
        chat_template=INTERNVL2_CHAT,
    )


# ---------------------------------------------------------------- layouts of models.py


def cogvlm2_layout(entry, dtype):
    """CogVLM2 with the names of the checkpoint; the processor is the tokenizer."""
    from transformers import AutoTokenizer

    config = config_of(entry)
    tokenizer = attempt(lambda: AutoTokenizer.from_pretrained(entry["path"], **pin(entry)), entry)
    return lambda: CogVLM2.in_dtype(config, dtype), tokenizer, lambda model: (lambda name: [name],)


def internvl2_layout(entry, dtype):
    """InternVL2's own layout, mapped onto the native class; the processor is None without tokenizer.model."""
    from transformers import InternVLForConditionalGeneration

    old = config_of(entry)
    kind = old["llm_config"].get("model_type", "internlm2")
    if kind != "internlm2":
        fail(f"{entry['path']} has a {kind} language model, not internlm2; use an InternVL3 model instead")
    config, processor = internvl2_config(old), None
    if vocabulary := hub_file(entry, "tokenizer.model"):
        stored = config_of(entry, "tokenizer_config.json")
        processor = attempt(lambda: internvl2_processor(config, vocabulary.read_bytes(), stored), entry)
    else:
        print(f"{entry['path']} has no tokenizer.model: only BOS comes before the image, no chat prompt")
    return (
        lambda: InternVLForConditionalGeneration._from_config(config, dtype=dtype),
        processor,
        lambda model: (internvl2_names, lambda name, tensor: internvl2_parts(name, tensor, config)),
    )
