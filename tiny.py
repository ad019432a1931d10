"""Train the embedded default: small models of the real library classes, on generated data.

    python tiny.py                     all models; the README has the commands that generate their data
    python tiny.py --only vae          one model; run again to resume

Reads data/tiny-shapes, data/tiny-moving and data/tiny-trajectories (`data.py`). Writes results/tiny/checkpoints/<model>/ (fp16, `save_pretrained`),
results/tiny/tiny-<model>.yaml (loss curve; held-out quality beside its baseline) and, with the headline numbers of all, results/tiny/tiny.yaml.

    vae       AutoencoderKLLTXVideo   reconstructs 64 px images and clips of 9 and 17 frames
    semantic  Qwen2.5-VL              names colour and shape; neither place nor motion is in its loss
    vlm       Qwen2.5-VL              starts from `semantic`: also answers where objects are and, on clips, in which direction they move
    dinov2    Dinov2                  a masked image model with dense features
    tracker   a video transformer     finds a named object in the frames of a clip; is it persistent? (tracker.py)
    ltx       LTX-Video transformer   continues a clip from its first frame and a prompt with the direction, or from several frames
    words     Llama                   text only: answers from facts of an object given as text, and reports missing facts
    llava-next, internvl2, cogvlm2    LLaVA-NeXT (CLIP, no merging), InternVL (pixel shuffle) and CogVLM2 (visual expert), trained on names and places

Only this file holds the small configurations; every other stage loads these folders as it loads a hub checkpoint.

Copy with it: answering.py, checkpoints.py, claims.py, cogvlm2.py, common.py, ltx.py, media.py, models.py,
models.yaml, synthetic.py, tracker.py.
"""

import functools
import math
import time
import types
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from answering import answered, mean_answer_loss, word_prompt
from claims import DESCRIBE_NAME, directions_of, metadata_text, naming, whereabouts
from cogvlm2 import IMAGE_MEAN, IMAGE_STD, CogVLM2
from common import (
    _atomically,
    check_writable,
    fail,
    load_items,
    load_yaml,
    parser,
    print_summary,
    run_info,
    save_yaml,
    split_of,
)
from ltx import flatten_stills
from media import frames_of
from models import LOADERS, find_model, greedy_tokens
from synthetic import (
    COLOURS,
    DIRECTIONS,
    OPPOSITE,
    SHAPES,
    UNKNOWN,
    describe_track,
    place_word,
    question_about,
    spans,
    spans_words,
)
from tracker import Tracker

SAVE_EVERY = 200  # steps
CLIP_RATE = {"fps": 2.0}  # as in extract.py
NAMES = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
NAMING = ("What is", "What shape")  # the first words of questions for a name


# ---------------------------------------------------------------- one training loop


def train(name, model, loss_of, steps, lr, seed, folder, weight_decay=0.05):
    """AdamW with warm-up and cosine decay. The batch of a step depends on (seed, step) alone, so resuming changes nothing.

    loss_of(model, rng) -> scalar. Returns the losses, one a step. Raises FloatingPointError on a non-finite loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * min(s / steps, 1)))
    )
    state, losses = folder / f"{name}.pt", []
    if state.exists():
        saved = torch.load(state, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        losses = saved["losses"]
    model.train()
    for step in (
        bar := tqdm(range(len(losses), steps), initial=len(losses), total=steps, desc=name, unit="step")
    ):
        torch.manual_seed(seed * 1_000_003 + step)
        loss = loss_of(model, np.random.default_rng([seed, step]))
        if not torch.isfinite(loss):
            where = f"{name}: the loss is {loss.item()} at step {step}"
            raise FloatingPointError(f"{where}; delete {state} and lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if (step + 1) % 20 == 0:
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.4f}")
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            saved = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "losses": losses,
            }
            _atomically(state, lambda f, saved=saved: torch.save(saved, f))
    model.eval()
    return losses


def fast(device):
    """Autocast to bf16 where it is faster (a CPU's AVX512-BF16 or AMX, capability >= 8.0)."""
    native = torch.backends.mkldnn.is_available()
    if device == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
    return torch.autocast(device, torch.bfloat16, enabled=native)


# ---------------------------------------------------------------- the video autoencoder


def vae_model():
    from diffusers import AutoencoderKLLTXVideo

    width, blocks = (64, 64, 64), 3
    return AutoencoderKLLTXVideo(
        latent_channels=16,
        block_out_channels=width,
        decoder_block_out_channels=width,
        down_block_types=("LTXVideoDownBlock3D",) * blocks,
        layers_per_block=(2, 1, 1, 1),
        decoder_layers_per_block=(2, 1, 1, 1),
        spatio_temporal_scaling=(True, False, False),
        decoder_spatio_temporal_scaling=(True, False, False),
        decoder_inject_noise=(False,) * (blocks + 1),
        upsample_residual=(False,) * blocks,
        upsample_factor=(1,) * blocks,
        patch_size=4,
    )


def dissimilarity(x, y, window=7, c1=(0.01 * 2) ** 2, c2=(0.03 * 2) ** 2):
    """1 - SSIM (Wang et al. 2004, uniform window) of videos [n,3,T,H,W] in [-1, 1], differentiable; as a loss: Zhao et al. 2017."""

    def mean(z):
        return F.avg_pool2d(z.transpose(1, 2).flatten(0, 1), window, 1)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return 1 - ((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean()


def to_video(frames):
    """uint8 [n,T,H,W,3] -> float [n,3,T,H,W] in [-1, 1], the input range of LTX-Video's autoencoder."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def vae_loss(images, clips, device):
    """MSE + L1 + 0.1 (1 - SSIM) + a small KL, on 16 images or, in three of ten steps, 4 clips of 9 or 2 of 17 frames."""

    def loss_of(model, rng):
        if rng.random() < 0.3:
            length = int(rng.choice([9, 17]))
            start = int(rng.integers(0, 18 - length))
            x = clips[rng.choice(len(clips), 36 // length, replace=False)][:, start : start + length]
        else:
            x = images[rng.choice(len(images), 16, replace=False)]
        x = to_video(x).to(device).contiguous(memory_format=torch.channels_last_3d)
        with fast(device):
            latent = model.encode(x).latent_dist
            y = model.decode(latent.sample()).sample
        error = y.float() - x
        pixels = error.square().mean() + error.abs().mean() + 0.1 * dissimilarity(x, y.float())
        return pixels + 1e-5 * latent.kl().float().mean() / latent.mean[0].numel()

    return loss_of


@torch.no_grad()
def vae_quality(model, images, clips, device):
    """Mean absolute error (in [0, 1] colour) and SSIM on held-out images and clips, beside each frame's median colour."""
    from skimage.metrics import structural_similarity

    report = {}
    for kind, frames in (("image", images), ("clip9", clips[:64, :9]), ("clip17", clips[:64])):
        out, blank = [], []
        for x in to_video(frames).split(16):
            y = model(x.to(device)).sample.float().clamp(-1, 1).cpu()
            blank.append((x - x.flatten(3).median(-1).values[..., None, None]).abs().mean((1, 2, 3, 4)) / 2)
            out.append(((y - x).abs().mean((1, 2, 3, 4)) / 2, x, y))
        error, baseline = torch.cat([e for e, _, _ in out]), torch.cat(blank)
        pairs = [(a, b) for _, x, y in out for a, b in zip(x, y, strict=True)]
        ssim = [
            structural_similarity(a[:, t].numpy(), b[:, t].numpy(), channel_axis=0, data_range=2)
            for a, b in pairs[:100]
            for t in range(0, a.shape[1], 4)
        ]
        report |= {
            f"{kind}_mae": error.mean(),
            f"{kind}_mae_blank": baseline.mean(),
            f"{kind}_mae_ratio": error.mean() / baseline.mean(),
            f"{kind}_ssim": np.mean(ssim),
        }
    return report


@torch.no_grad()
def set_latent_statistics(model, images, device):
    """Store the per-channel mean and standard deviation of the latents, which normalise them."""
    parts = to_video(images[:1000]).split(50)
    z = torch.cat([model.encode(x.to(device)).latent_dist.mode().cpu() for x in parts])
    model.latents_mean.copy_(z.mean((0, 2, 3, 4)))
    model.latents_std.copy_(z.std((0, 2, 3, 4)))


# ---------------------------------------------------------------- the vision-language model

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def learned_tokenizer(texts, size=448, **names):
    """Byte-level BPE of `size` tokens learned on the training words; any text can be encoded. names: of the processor's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="right",
        extra_special_tokens=names,
    )


def vlm_processor(texts):
    """The learned tokenizer and Qwen2.5-VL's own image and video processors."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    tokenizer = learned_tokenizer(
        texts,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )
    size = {"shortest_edge": 16 * 16, "longest_edge": 224 * 224}
    return Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(patch_size=8, size=size),
        tokenizer,
        Qwen2VLVideoProcessor(patch_size=8, size=size, cap_pixels_per_frame=False),
        chat_template=CHAT,
    )


def vlm_model(tokenizer):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = tokenizer.convert_tokens_to_ids
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 4,
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_heads": 4,
                "patch_size": 8,
                "window_size": 32,
                "initializer_range": 0.06,
                "tokens_per_second": 1,
                "fullatt_block_indexes": [1, 3],
                "out_hidden_size": 128,
            },
            text_config={
                "hidden_size": 128,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.06,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": 2048,
                "bos_token_id": None,
                "eos_token_id": token("<|im_end|>"),
                "pad_token_id": token("<|endoftext|>"),
                # 16 frequencies, 4 for time, 6 for rows, 6 for columns: the common theta of 10000 would
                # rotate a grid's columns by thousandths of a radian, and a theta of 10 would leave no
                # slow frequency, which text attention needs at any distance
                "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]},
            },
            image_token_id=token("<|image_pad|>"),
            video_token_id=token("<|video_pad|>"),
            vision_start_token_id=token("<|vision_start|>"),
            vision_end_token_id=token("<|vision_end|>"),
            tie_word_embeddings=True,
        )
    )


def for_training(model):
    """The same arithmetic in half the time on a CPU: the patch embedding as a matrix product, and all attention
    windows, which have equal sizes, in one batched product."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    visual = model.model.visual
    visual.patch_embed.forward = lambda x: x @ visual.patch_embed.proj.weight.flatten(1).T

    def attend(self, hidden_states, cu_seqlens, position_embeddings, **kwargs):
        n, window = len(hidden_states), int(cu_seqlens[1])
        assert n % window == 0 and (cu_seqlens.diff() == window).all(), cu_seqlens
        q, k, v = self.qkv(hidden_states).reshape(n, 3, self.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        q, k = apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (
            x.view(n // window, window, self.num_heads, -1).transpose(1, 2).to(v.dtype) for x in (q, k, v)
        )
        weights = (q @ k.transpose(-1, -2) * self.scaling).softmax(-1).to(v.dtype)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, -1))

    for block in visual.blocks:
        block.attn.forward = types.MethodType(attend, block.attn)
    model.model.language_model.set_attn_implementation("eager")  # sdpa's gradient is slow on a CPU
    return model


# ---------------------------------------------------------------- targets of the visual tokens

# the word of a vector (x, y) from the centre, or of motion, as in `place_word` and DIRECTIONS of synthetic.py
PLACE_WORDS = {
    (x, y): f"{row} {column}".strip() or "middle"
    for y, row in enumerate(("top", "", "bottom"), -1)
    for x, column in enumerate(("left", "", "right"), -1)
}
MOTION_WORDS = {v: k for k, v in DIRECTIONS.items()} | {(0, 0): "still"}


def object_targets(items, grid, every=2):
    """owner [n, t, grid, grid]: the object that covers at least an eighth of a token's cell in every second frame (0: none).
    targets [n, 5, 3] of every object (-100 of none): number of its name, and a vector: the third of the image with
    its centre, relative to the middle, or, in clips, its direction."""
    masks = torch.stack([i["mask"] if i["mask"].ndim == 3 else i["mask"][None] for i in items])[:, ::every]
    cells = masks.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
    share = torch.stack([(cells == k).float().mean((3, 5)) for k in range(1, 5)])
    owner = torch.where(share.amax(0) >= 0.125, share.argmax(0) + 1, 0)
    targets = torch.full((len(items), 5, 3), -100)
    vectors = {word: v for v, word in [*PLACE_WORDS.items(), *MOTION_WORDS.items()]}
    for row, item in zip(targets, items, strict=True):
        for k, name in enumerate(item["names"]):
            if "direction" not in item:
                word = place_word(item["boxes"][k].numpy(), item["width"])
            else:  # the last object is the one that moves
                word = item["direction"] if k == len(item["names"]) - 1 else "still"
            row[k + 1] = torch.tensor([NAMES.index(name), *vectors[word]])
    return owner, targets


def flip_at_random(frames, owner, targets, rng):
    """Images [n,1,S,S,3] mirrored left to right at random; clips [n,T,S,S,3] also upside down, transposed and reversed
    in time; with their owners and vectors. Images stay upright, as the shapes are."""
    targets, nothing, clip = targets.clone(), targets == -100, frames.shape[1] > 1
    for axis, sign in ((3, (1, -1, 1)), *([(2, (1, 1, -1)), (1, (1, -1, -1))] if clip else [])):
        if rng.random() < 0.5:
            frames, owner, targets = frames.flip(axis), owner.flip(axis), targets * torch.tensor(sign)
    if clip and rng.random() < 0.5:
        frames, owner, targets = frames.transpose(2, 3), owner.transpose(2, 3), targets[..., [0, 2, 1]]
    return frames, owner, targets.masked_fill(nothing, -100)


def token_targets(owner, targets):
    """[3, tokens], raster order: number of the object's name, and 0, 1 or 2 for -1, 0 or 1 along x and y; -100 for none."""
    classes = torch.where(targets == -100, targets, targets + torch.tensor([0, 1, 1]))
    return classes[torch.arange(len(targets))[:, None], owner.flatten(1)].flatten(0, 1).T


def token_loss(guesses, truth, parts):
    """Sum of the cross-entropies of guesses [tokens, sum(parts)]; truth [len(parts), tokens], -100 for no target."""
    pairs = zip(guesses.float().split(parts, 1), truth.to(guesses.device), strict=True)
    return sum(F.cross_entropy(guess, t) for guess, t in pairs if (t >= 0).any())


class TowerHead(torch.nn.Module):
    """The vision tower and a linear head on its merger, to train the tower; the head is discarded."""

    def __init__(self, visual, out):
        super().__init__()
        self.visual, self.head = visual, torch.nn.Linear(visual.config.out_hidden_size, out)

    def forward(self, pixels, grid_thw):
        """-> [tokens, out], in raster order."""
        return self.head(self.visual(pixels, grid_thw=grid_thw).pooler_output).float()


def naming_loss(images, processor, device):
    """Which of the 24 names are in the image: every token scores every name, and the image's score is the soft maximum
    over its tokens (multiple-instance learning, Ilse et al. 2018)."""
    frames, items = images
    present = torch.tensor([[float(n in i["names"]) for n in NAMES] for i in items])

    def loss_of(model, rng):
        pick = rng.choice(len(items), 32, replace=False)
        x = frames[pick]
        x = x.flip(3) if rng.random() < 0.5 else x
        x = x.transpose(2, 3) if rng.random() < 0.5 else x
        batch = processor.image_processor([f[0].permute(2, 0, 1) for f in x], return_tensors="pt").to(device)
        with fast(device):
            scores = model(batch["pixel_values"], batch["image_grid_thw"])
            scores = scores.unflatten(0, (len(x), -1)).logsumexp(1)
        return F.binary_cross_entropy_with_logits(scores, present[pick].to(device))

    return loss_of


def motion_loss(clips, processor, device):
    """Predict name and direction from every token on an object, of two frames up to four apart. Adjacent frames alone
    (a pixel of motion) train nothing in 600 steps; among wider pairs they are learned too."""
    frames, items = clips
    owner, targets = object_targets(items, 4, every=1)

    def loss_of(model, rng):
        pick, gap = rng.choice(len(items), 96), rng.integers(1, 5, 96)
        first = (rng.random(96) * (frames.shape[1] - gap)).astype(int)
        pairs = torch.stack([frames[pick, first], frames[pick, first + gap]], 1)
        x, own, tell = flip_at_random(pairs, owner[pick, first][:, None], targets[pick], rng)
        x = list(x.permute(0, 1, 4, 2, 3))
        batch = processor.video_processor(x, do_sample_frames=False, return_tensors="pt").to(device)
        with fast(device):
            guesses = model(batch["pixel_values_videos"], batch["video_grid_thw"])
            return token_loss(guesses, token_targets(own, tell), (len(NAMES), 3, 3))

    return loss_of


def conversation(processor, frames, turns):
    """One chat as text: the image (one frame) or clip, then the turns; an answer of None adds the generation prompt."""
    messages = []
    for i, (question, answer) in enumerate(turns):
        media = [{"type": "image" if len(frames) == 1 else "video"}] if i == 0 else []
        messages.append({"role": "user", "content": [*media, {"type": "text", "text": question}]})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=turns[-1][1] is None)


def encode(processor, frames, texts, **more):
    """The processor's whole output for a batch of images or clips (uint8 [n,T,H,W,3]) and texts."""
    frames = frames.permute(0, 1, 4, 2, 3)
    media = {"images": [[f[0]] for f in frames]}
    if frames.shape[1] > 1:
        times = [CLIP_RATE | {"total_num_frames": frames.shape[1]}] * len(frames)
        media = {"videos": list(frames), "video_metadata": times}
        media["videos_kwargs"] = {"do_sample_frames": False}
    return processor(text=texts, return_tensors="pt", padding=True, **media, **more)


def answer_labels(ids, tokenizer):
    """Labels of the assistant's tokens and its end token; all else is -100."""
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    newline = tokenizer.encode("\n")[0]
    assistant = tokenizer.encode("assistant")
    labels = torch.full_like(ids, -100)
    for row, out in zip(ids.tolist(), labels, strict=True):
        for i, t in enumerate(row):
            if t != start or row[i + 1 : i + 1 + len(assistant)] != assistant:
                continue
            first = i + 2 + len(assistant)
            assert row[first - 1] == newline, row[i:first]
            last = row.index(end, first)
            out[first : last + 1] = torch.tensor(row[first : last + 1])
    return labels


def example(model, processor, frames, chats):
    """(inputs of `model`, labels) for images or clips (uint8 [n,T,H,W,3]) and a chat about each; labels are -100 outside the assistant's answers."""
    if isinstance(model, CogVLM2):
        return cogvlm2_example(model, processor, frames, chats)
    texts = [conversation(processor, f, turns) for f, turns in zip(frames, chats, strict=True)]
    batch = encode(processor, frames, texts)
    return batch, answer_labels(batch["input_ids"], processor.tokenizer)


def image_rows(model, batch, each):
    """[n, K] bool: the first `each` rows of every image or clip, in raster order. LLaVA-NeXT encodes an image twice,
    CogVLM2 puts it between two rows of its own."""
    if isinstance(model, CogVLM2):
        rows = (batch["token_type_ids"] == 1) & (F.pad(batch["token_type_ids"], (1, 0))[:, :-1] == 1)
    else:
        rows = batch["input_ids"] == model.config.image_token_id
        rows = rows | (batch["input_ids"] == getattr(model.config, "video_token_id", None))
    return rows & (rows.cumsum(1) <= each)


class VLMWithHead(torch.nn.Module):
    """The VLM and a linear head on its second language layer, discarded after the training.

    From every visual token on an object the head predicts its name, the thirds of columns and rows of its centre and,
    in clips, the sign of its motion along both axes. Rotary attention has relative positions only; words for places
    need absolute ones."""

    def __init__(self, vlm):
        super().__init__()
        self.vlm, self.parts = vlm, (len(NAMES), 3, 3, 3, 3)
        language = vlm.model if isinstance(vlm, CogVLM2) else vlm.model.language_model
        self.head = torch.nn.Linear(language.embed_tokens.embedding_dim, sum(self.parts))
        language.layers[1].register_forward_hook(lambda module, args, output: setattr(self, "seen", output))

    def forward(self, batch, labels, targets=None):
        """Cross-entropy of the answers and, with `targets` [5, tokens] (-100: none), of the head."""
        out = self.vlm(**batch)
        logits = out if torch.is_tensor(out) else out.logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        if targets is not None:
            rows = image_rows(self.vlm, batch, targets.shape[1] // len(labels))
            loss = loss + token_loss(self.head(self.seen[rows]), targets, self.parts)
        return loss


def vlm_loss(images, clips, processor, device, allowed, grid=6):
    """The loss on 24 images with up to six allowed turns each or, with clips, in a third of the steps on 16 clips."""
    sets = [(*images, *object_targets(images[1], grid), PLACE_WORDS)]
    if clips:
        sets.append((*clips, *object_targets(clips[1], 4), MOTION_WORDS))

    def loss_of(model, rng):
        moving = bool(clips) and rng.random() < 1 / 3
        frames, items, owner, targets, words = sets[moving]
        pick = rng.choice(len(items), 16 if moving else 24, replace=False)
        x, owner, targets = flip_at_random(frames[pick], owner[pick], targets[pick], rng)
        chats = []
        for k, i in enumerate(pick):
            answer = {}
            for name, v in zip(items[i]["names"], targets[k, 1:, 1:].tolist(), strict=False):
                for question in (f"Where is the {name}?", f"Which way does the {name} move?"):
                    answer[question] = words[tuple(v)]
            turns = [(q, answer.get(q, a)) for q, a in items[i]["turns"] if q.startswith(allowed)]
            chats.append([turns[j] for j in rng.permutation(len(turns))[:6]])
        batch, labels = example(model.vlm, processor, x, chats)
        tells = clips or "Where is" in allowed
        if tells:
            targets = token_targets(owner, targets)
            nothing = torch.full_like(targets[1:], -100)
            targets = torch.cat([targets[:1], nothing, targets[1:]] if moving else [targets, nothing])
        batch = {k: v.to(device) for k, v in batch.items()}
        with fast(device):
            return model(batch, labels.to(device), targets if tells else None)

    return loss_of


@torch.no_grad()
def ask(model, processor, frames, questions, batch=32, max_new_tokens=40):
    """Greedy answers to one question per image or clip (uint8 [n,T,H,W,3]); equal questions share a batch, so that nothing is padded."""
    answers = {}
    for question in dict.fromkeys(questions):
        for pick in torch.tensor([i for i, q in enumerate(questions) if q == question]).split(batch):
            if isinstance(model, CogVLM2):
                ids = processor(COGVLM2_CHAT.format(question)).input_ids
                inputs = model.inputs(normalised(frames[pick], *CLIP), ids)
                inputs = {k: v.to(model.lm_head.weight.device) for k, v in inputs.items()}
                tokenizer = processor
            else:
                texts = [conversation(processor, frames[i], [(question, None)]) for i in pick]
                inputs = encode(processor, frames[pick], texts).to(model.device)
                tokenizer = processor.tokenizer
            out = greedy_tokens(model, inputs, max_new_tokens)
            answers |= zip(pick.tolist(), tokenizer.batch_decode(out, skip_special_tokens=True), strict=True)
    return [answers[i].strip() for i in range(len(questions))]


def accuracy_beside_baseline(model, processor, frames, items, prefix):
    """Accuracy on held-out questions that start with `prefix`, and of the majority answer."""
    chosen = []
    for frame, item in zip(frames, items, strict=True):
        chosen += [(frame, t) for t in item["turns"] if t[0].startswith(prefix)]
    chosen = chosen[:500]
    answers = ask(model, processor, torch.stack([f for f, _ in chosen]), [t[0] for _, t in chosen])
    return accuracy_and_baseline(answers, [t[1] for _, t in chosen])


def accuracy_and_baseline(answers, truth):
    """Accuracy of the answers, and of the majority one."""
    accuracy = np.mean([a == t for a, t in zip(answers, truth, strict=True)])
    return accuracy, max(truth.count(t) for t in set(truth)) / len(truth)


def vlm_quality(model, processor, images, clips=None):
    """Held-out accuracy of every kind of answer beside its baseline. `naming`: objects whose name is in the caption."""
    frames, items = images[0][:300], images[1][:300]
    captions = ask(model, processor, frames, ["What is in the picture?"] * len(items))
    named = [set(c.removeprefix("a ").split(" and a ")) for c in captions]
    pairs = [(label, s) for item, s in zip(items, named, strict=True) for label in item["names"]]
    every = sorted({label for label, _ in pairs})
    report = {
        "naming": np.mean([label in s for label, s in pairs]),
        "naming_baseline": 1 / len(every),
        "naming_precision": np.mean(
            [name in i["names"] for i, s in zip(items, named, strict=True) for name in s]
        ),
        "colour": np.mean([any(n.startswith(label.split()[0]) for n in s) for label, s in pairs]),
        "colour_baseline": 1 / 6,
    }
    kinds = [("shape", "What shape", images), ("place", "Where is", images)]
    if clips:
        kinds.append(("direction", "Which way", clips))
    for key, prefix, (f, i) in kinds:
        report[key], report[f"{key}_baseline"] = accuracy_beside_baseline(model, processor, f, i, prefix)
    return report


# ---------------------------------------------------------------- the other families: a tower with learned positions, a projector, a language model

WIDTH = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
COGVLM2_CHAT = "Question: {} Answer:"
CLIP = IMAGE_MEAN, IMAGE_STD  # all three standardise images with these


def llama(tokenizer):
    """The language model of LLaVA-NeXT and of InternVL2."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "model_type": "llama",
        **WIDTH,
        "num_key_value_heads": 2,
        "initializer_range": 0.06,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }


def llava_next(texts):
    """96 px, patches of 12 px, 8 x 8 tokens a tile, none merged: (processor, model, tokens a side, pixels [n,3,96,96] -> [n, tokens, D], their mean and deviation)."""
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = learned_tokenizer(texts, image_token="<|image_pad|>")
    pinpoints = [[96, 96], [192, 192], [288, 288]]
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}, image_grid_pinpoints=pinpoints
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )
    vision = {
        "model_type": "clip_vision_model",
        **WIDTH,
        "image_size": 96,
        "patch_size": 12,
        "initializer_range": 0.06,
    }
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=vision,
            text_config=llama(tokenizer),
            image_grid_pinpoints=pinpoints,
            vision_feature_layer=-1,
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            tie_word_embeddings=True,
        )
    )

    def see(pixels):
        seen = model.model.vision_tower(pixels).last_hidden_state[:, 1:]
        return model.model.multi_modal_projector(seen)

    return processor, model, 8, see, CLIP


def internvl2(texts):
    """96 px, patches of 8 px, 2 x 2 of them shuffled into one of 6 x 6 tokens."""
    from transformers import (
        GotOcr2ImageProcessor,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
        InternVLVideoProcessor,
    )

    tokenizer = learned_tokenizer(
        texts,
        start_image_token="<|vision_start|>",
        end_image_token="<|vision_end|>",
        context_image_token="<|image_pad|>",
        video_token="<|video_pad|>",
    )
    images, size = GotOcr2ImageProcessor, {"height": 96, "width": 96}
    # the processor adds both tokens itself
    template = CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>")
    processor = InternVLProcessor(
        images(size=size, crop_to_patches=False),
        tokenizer,
        InternVLVideoProcessor(size=size),
        image_seq_length=36,
        chat_template=template,
    )
    vision = {
        **WIDTH,
        "image_size": [96, 96],
        "patch_size": [8, 8],
        "attention_bias": True,
        "initializer_range": 0.06,
        "layer_scale_init_value": 1.0,
    }
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=vision,
            text_config=llama(tokenizer),
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            tie_word_embeddings=True,
        )
    )
    return processor, model, 6, lambda pixels: model.model.get_image_features(pixels).pooler_output, CLIP


def cogvlm2(texts):
    """96 px, patches of 8 px, 2 x 2 of them convolved into one of 6 x 6 tokens; three language layers, each with its visual expert."""
    tokenizer = learned_tokenizer([*texts, COGVLM2_CHAT])
    token = tokenizer.convert_tokens_to_ids
    config = {
        "architectures": ["CogVLMForCausalLM"],
        "vocab_size": len(tokenizer) + 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_multi_query_heads": 2,
        "rms_norm_eps": 1e-5,
        "bos_token_id": token("<|im_start|>"),
        "eos_token_id": token("<|im_end|>"),
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "num_hidden_layers": 4,
            "num_positions": 145,
            "patch_size": 8,
            "image_size": 96,
            "in_channels": 3,
            "layer_norm_eps": 1e-6,
        },
    }
    model = CogVLM2(config)
    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
            torch.nn.init.normal_(module.weight, std=0.06)
    return tokenizer, model, 6, lambda pixels: model.model.vision(pixels)[:, 1:-1], CLIP


def normalised(frames, mean, std):
    """uint8 [n,1,S,S,3] -> [n,3,S,S], standardised per channel."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (mean, std))
    return (frames[:, 0].permute(0, 3, 1, 2) / 255 - mean) / std


def cogvlm2_example(model, tokenizer, frames, chats):
    """As `example`: pairs of Question: ... Answer: ... after the image, each answer with its end token."""
    end, rows = tokenizer.eos_token, []
    for turns in chats:
        words, scored = [], []
        for q, a in turns:
            question, answer = tokenizer(COGVLM2_CHAT.format(q)).input_ids, tokenizer(f" {a}{end}").input_ids
            words += [*question, *answer]
            scored += [*[-100] * len(question), *answer]
        rows.append((words, scored))
    longest = max(len(ids) for ids, _ in rows)
    batch = model.inputs(normalised(frames, *CLIP), [0] * longest)
    ids, labels = batch["input_ids"].clone(), torch.full_like(batch["input_ids"], -100)
    for k, (words, scored) in enumerate(rows):
        ids[k, -longest : len(ids[k]) - longest + len(words)] = torch.tensor(words)
        labels[k, -longest : len(ids[k]) - longest + len(words)] = torch.tensor(scored)
    return batch | {"input_ids": ids}, labels


class VisionHead(torch.nn.Module):
    """Tower, projector and a linear head, to train these two; the head is discarded."""

    def __init__(self, vlm, see, out):
        super().__init__()
        self.vlm, self.see, self.head = vlm, see, torch.nn.Linear(128, out)

    def forward(self, pixels):
        return self.head(self.see(pixels).flatten(0, 1)).float()


def place_loss(images, norm, device, grid):
    """Predict, from every token on an object, its name and the thirds of columns and rows of its centre."""
    frames, items = images
    owner, targets = object_targets(items, grid)

    def loss_of(model, rng):
        pick = rng.choice(len(items), 32, replace=False)
        x, own, tell = flip_at_random(frames[pick], owner[pick], targets[pick], rng)
        with fast(device):
            guesses = model(normalised(x, *norm).to(device))
            return token_loss(guesses, token_targets(own, tell), (len(NAMES), 3, 3))

    return loss_of


def train_family(name, args, device, folder, save):
    """First tower and projector, by the targets of their tokens; then the whole model, by questions of name and place."""
    images = pool(args.shapes, 96)
    processor, model, grid, see, norm = FAMILIES[name](texts_of(images[0][1]))
    model = model.to(device)
    # the gradient of the fused kernel is slow on a CPU
    with sdpa_kernel(SDPBackend.MATH):
        head = VisionHead(model, see, len(NAMES) + 6).to(device)
        loss_of = place_loss(images[0], norm, device, grid)
        train(f"{name}-tower", head, loss_of, args.steps or 4000, 1e-3, args.seed, folder)
        trained = VLMWithHead(model).to(device)
        loss_of = vlm_loss(images[0], None, processor, device, (*NAMING, "Where is"), grid)
        losses = train(name, trained, loss_of, args.steps or QUESTIONS[name], 1e-3, args.seed, folder)
    model, processor = save(model, processor)
    return losses, vlm_quality(model, processor, images[1])


FAMILIES = {"llava-next": llava_next, "internvl2": internvl2, "cogvlm2": cogvlm2}
# steps
QUESTIONS = {"llava-next": 3000, "internvl2": 1500, "cogvlm2": 3000}


# ---------------------------------------------------------------- the spatial encoder


def dinov2_model():
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(
        Dinov2Config(
            hidden_size=128,
            num_hidden_layers=6,
            num_attention_heads=4,
            mlp_ratio=3,
            image_size=96,
            patch_size=8,
            use_mask_token=True,
        )
    )


def dinov2_processor():
    from transformers import BitImageProcessor

    return BitImageProcessor(
        do_resize=False,
        do_center_crop=False,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


class MaskedPatches(torch.nn.Module):
    """SimMIM (Xie et al. 2022): hide half of the patches, predict their pixels from what is left with one linear layer."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, 3 * encoder.config.patch_size**2)

    def forward(self, pixels, generator=None):
        """pixels [n,3,H,W] -> (mean absolute error on hidden patches, the error of each image's mean patch there)."""
        p = self.encoder.config.patch_size
        # [n, hw, 3pp]
        patches = pixels.unfold(2, p, p).unfold(3, p, p).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
        hidden = torch.rand(patches.shape[:2], generator=generator) < 0.5
        hidden = hidden.to(pixels.device)
        out = self.head(self.encoder(pixels, bool_masked_pos=hidden).last_hidden_state[:, 1:])
        mean = (patches * ~hidden[..., None]).sum(1, keepdim=True) / (~hidden).sum(1)[:, None, None]
        return (out.float() - patches)[hidden].abs().mean(), (mean - patches)[hidden].abs().mean()


# ---------------------------------------------------------------- the video transformer

FRAMES = 9  # of a generated clip: 5 latent frames of 8 x 8 tokens


def generated_clips(items, seed, copies):
    """(uint8 [n,9,64,64,3], captions): `copies` windows of every clip, mirrored, flipped, transposed or reversed at random.

    Clips with camera motion are left out, because neither prompt nor first frame determines it."""
    rng, frames, captions = np.random.default_rng(seed), [], []
    for item in (i for i in items if i["direction"] != "still" and not any(i["camera"])):
        for _ in range(copies):
            first = int(rng.integers(0, len(item["frames"]) - FRAMES + 1))
            x, way = frames_of(item, 64)[None, first : first + FRAMES], DIRECTIONS[item["direction"]]
            x, _, targets = flip_at_random(x, torch.zeros(1, 1, 1, 1), torch.tensor([[[0, *way]]]), rng)
            frames.append(x[0])
            captions.append(caption(item["names"][-1], MOTION_WORDS[tuple(targets[0, 0, 1:].tolist())]))
    return torch.stack(frames), captions


def caption(name, direction):
    return f"the {name} moves {direction}"


@torch.no_grad()
def generated_clip_latents(vae, frames, device):
    """Normalised latents [n,16,5,8,8] of generated clips, as in LTX's pipelines."""
    vae = vae.to(memory_format=torch.channels_last_3d)
    mean, std = (s.view(1, -1, 1, 1, 1) for s in (vae.latents_mean, vae.latents_std))
    latents = []
    for x in tqdm(frames.split(16), desc="latents", unit="batch"):
        x = to_video(x).to(device).contiguous(memory_format=torch.channels_last_3d)
        with fast(device):
            z = vae.encode(x).latent_dist.mode()
        latents.append(((z.float() - mean) / std).cpu())
    return torch.cat(latents)


def t5_tokenizer(texts):
    """The learned tokenizer with an end token after every text, as T5's, so that an empty prompt has a token."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = learned_tokenizer(texts)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    return tokenizer


class ClipGenerator(torch.nn.Module):
    """LTX-Video's transformer and a text encoder of T5's class, trained together."""

    def __init__(self, tokenizer, width=192, layers=4):
        from diffusers import LTXVideoTransformer3DModel
        from transformers import T5Config, T5EncoderModel

        super().__init__()
        self.text_encoder = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizer),
                d_model=64,
                d_kv=16,
                d_ff=128,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                is_encoder_decoder=False,
                use_cache=False,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        self.transformer = LTXVideoTransformer3DModel(
            in_channels=16,
            out_channels=16,
            num_attention_heads=width // 32,
            attention_head_dim=32,
            cross_attention_dim=width,
            num_layers=layers,
            caption_channels=64,
        )

    def forward(self, x, sigma, ids, mask, seconds):
        """x [n,16,T,8,8] of which frame t has noise sigma [n,T]; ids and mask [n,128] of the prompts; seconds [T] -> the velocity, noise - clean, like x."""
        n, _, t, h, w = x.shape
        rows, columns = (torch.arange(side, device=x.device) * 8.0 for side in (h, w))
        places = torch.stack(torch.meshgrid(seconds, rows, columns, indexing="ij")).flatten(1)
        # the encoder gets the padding, as in the pipelines; for the transformer it is masked, and cut off
        longest = int(mask.sum(1).max())
        out = self.transformer(
            x.flatten(2).transpose(1, 2),
            self.text_encoder(ids)[0][:, :longest],
            1000 * sigma.repeat_interleave(h * w, 1),
            mask[:, :longest],
            video_coords=places.expand(n, -1, -1),
            return_dict=False,
        )[0]
        return out.transpose(1, 2).unflatten(2, (t, h, w))


def noised(clean, noise, sigma):
    """Rectified flow (Liu et al. 2022): (the straight line from clean [n,C,T,H,W] to noise at sigma [n,T], the velocity along it)."""
    s = sigma[:, None, :, None, None]
    return (1 - s) * clean + s * noise, noise - clean


def generated_clip_loss(latents, captions, tokenizer, device, batch=8):
    """Squared error of the velocity on the frames that are not given. The given latent frames are clean, at time 0: the
    first with a prompt that names the direction, or two or three, mostly without prompt. High noise is drawn more
    often, because sampling takes few steps."""
    words = tokenizer([*captions, ""], padding="max_length", max_length=128, return_tensors="pt")
    ids, mask, steps = words.input_ids, words.attention_mask, torch.arange(latents.shape[2])

    def loss_of(model, rng):
        pick = rng.choice(len(captions), batch, replace=False)
        given = np.where(rng.random(batch) < 0.6, 1, rng.integers(2, 4, batch))
        # the last text is the empty prompt
        texts = np.where(rng.random(batch) < np.where(given == 1, 0.1, 0.8), len(captions), pick)
        level = torch.from_numpy(1 - 0.95 * rng.random(batch) ** 2).float()
        free = steps >= torch.from_numpy(given)[:, None]
        clean = latents[pick].float()
        x, velocity = noised(clean, torch.randn_like(clean), level[:, None] * free)
        # LTXImageToVideoPipeline and LTXConditionPipeline differ here by a frame
        seconds = (2 * steps if rng.random() < 0.5 else (2 * steps - 1).clamp(min=0)) / 25
        with fast(device):
            out = model(*(z.to(device) for z in (x, level[:, None] * free, ids[texts], mask[texts], seconds)))
        error = (out.float().cpu() - velocity).square().mean((1, 3, 4))
        return error[free].mean()

    return loss_of


def generated_clip_folder(folder, model, tokenizer):
    """Write a pipeline for diffusers, in fp16, without the autoencoder, which is in the folder vae beside it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXImageToVideoPipeline

    parts = model.text_encoder.half(), tokenizer, model.transformer.half()
    LTXImageToVideoPipeline(FlowMatchEulerDiscreteScheduler(), None, *parts).save_pretrained(folder)


@torch.no_grad()
def continued(pipeline, frames, given, prompts, steps=6, seed=0, batch=32):
    """Generated clips uint8 [n,9,64,64,3] whose first `given` frames are those of `frames`: with one given by LTXImageToVideoPipeline, with more by LTXConditionPipeline."""
    from diffusers import LTXConditionPipeline
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    run = pipeline if given == 1 else LTXConditionPipeline(**pipeline.components)
    run.set_progress_bar_config(disable=True)
    # the time steps of the first pipeline; the defaults of the second are half near pure noise
    even = np.linspace(1000, 1000 / steps, steps)
    made = []
    for at in tqdm(torch.arange(len(frames)).split(batch), desc=f"clips from {given}", unit="batch"):
        x = frames[at, :given].permute(0, 1, 4, 2, 3).float() / 255
        start = {"image": x[:, 0], "num_inference_steps": steps}
        if given > 1:
            start = {"conditions": LTXVideoCondition(video=x), "timesteps": even}
        out = run(
            **start,
            prompt=[prompts[i] for i in at],
            height=x.shape[3],
            width=x.shape[4],
            num_frames=frames.shape[1],
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            output_type="pt",
        )
        made.append((out.frames.permute(0, 1, 3, 4, 2) * 255).round().byte().cpu())
    return torch.cat(made)


def generated_clip_quality(pipeline, items, device, count=128):
    """Scores of generated clips on the middle nine frames of held-out clips. direction: share with the true direction;
    mae, mae_changing: mean absolute error (in [0, 1] colour) of the frames that were not given, over all pixels and
    over those that change. Beside it: real clips, their reconstruction (_vae), and the last given frame repeated
    (_frozen, _frozen_vae). continued: from five frames without prompt. opposite_prompt: its direction is then true."""
    items = [i for i in items if i["direction"] != "still" and not any(i["camera"])][:count]
    at = [(len(i["frames"]) - FRAMES) // 2 for i in items]
    real = torch.stack([frames_of(i, 64)[k : k + FRAMES] for i, k in zip(items, at, strict=True)])
    masks = [i["mask"][k : k + FRAMES] == len(i["names"]) for i, k in zip(items, at, strict=True)]
    masks = torch.stack(masks)
    truth, names = [i["direction"] for i in items], [i["names"][-1] for i in items]
    back = [MOTION_WORDS[tuple(-c for c in DIRECTIONS[d])] for d in truth]

    @torch.no_grad()
    def reconstructed(generated_clips):
        parts = [pipeline.vae(to_video(x).to(device)).sample for x in generated_clips.split(16)]
        out = torch.cat([x.clamp(-1, 1).cpu() for x in parts])
        return ((out + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)

    def is_correct(generated_clips, given, expected=truth):
        found = directions_of(whereabouts(generated_clips[:, given - 1 :], masks[:, given - 1]))
        return np.mean([a == b for a, b in zip(found, expected, strict=True)])

    report = {"clips": len(items), "direction_chance": max(truth.count(t) for t in set(truth)) / len(truth)}
    for key, given, prompts in (
        ("", 1, [caption(n, d) for n, d in zip(names, truth, strict=True)]),
        ("continued_", 5, [""] * len(items)),
    ):
        generated_clips = continued(pipeline, real, given, prompts)
        still = real[:, given - 1 : given].expand_as(real)
        changing = (real[:, given:].int() - real[:, given - 1 : given].int()).abs().amax(-1) > 12
        report[f"{key}direction_real"] = is_correct(real, given)
        for suffix, x in (
            ("", generated_clips),
            ("_vae", reconstructed(real)),
            ("_frozen", still),
            ("_frozen_vae", reconstructed(still)),
        ):
            error = (x[:, given:].float() - real[:, given:].float()).abs().mean(-1) / 255
            report |= {
                f"{key}direction{suffix}": is_correct(x, given),
                f"{key}mae{suffix}": error.mean(),
                f"{key}mae_changing{suffix}": error[changing].mean(),
            }
    opposite = [caption(n, d) for n, d in zip(names, back, strict=True)]
    report["opposite_prompt_direction"] = is_correct(continued(pipeline, real, 1, opposite), 1, back)
    return report


# ---------------------------------------------------------------- the tracker

VECTORS = torch.tensor([*DIRECTIONS.values(), (0, 0)])  # [9,2], in the order of COMPASS
COMPASS = [*DIRECTIONS, "still"]
NO_TRACK = {"persistent": False, "direction": "still", "visible": [], "present": [], "hidden": []}


class TrackerWithHeads(torch.nn.Module):
    """A tracker with the heads of its training. Per patch: colour and shape of what covers it. Per single frame: visible,
    and centre. Per frame in context: present, hidden. Per embedding: frames visible, present and hidden, direction,
    count, and whether the object exists."""

    def __init__(self, tracker):
        super().__init__()
        self.tracker, self.frames = tracker, tracker.config["frames"]
        (small, width), embedding = tracker.config["widths"], tracker.config["embedding"]
        self.cover = torch.nn.Linear(small, len(COLOURS) + 1 + len(SHAPES))
        self.find = torch.nn.Linear(small, 3)
        self.there = torch.nn.Linear(width, 2)
        self.tell = torch.nn.Linear(embedding, 3 * self.frames + len(COMPASS) + 5)

    def forward(self, *asked):
        found = self.tracker(*asked)
        outputs = self.tell(found["embedding"]).split([3 * self.frames, len(COMPASS), 4, 1], -1)
        found |= {
            "found": self.find(found["looked"]),
            "frames": self.there(found["seen"]).transpose(-1, -2),
            "spans": outputs[0].unflatten(-1, (3, self.frames)),
            "direction": outputs[1],
        }
        found |= {"count": outputs[2], "there": outputs[3][..., 0]}
        return {k: v.float().cpu() for k, v in found.items()}


def tracks_truth(items, seed, asked=4):
    """Targets of every clip's objects and of absent names (the first shares a colour with an object), [n,asked] each:
    colours, shapes, there, persistent, direction (in COMPASS), count; spans [n,asked,3,T]: visible, present, hidden;
    centres [n,asked,T,2] in -1..1; shown [n,C,T]: colours of visible objects; covered [n,T,P,2]: colour and shape of
    what covers most of a patch of 8 x 8 pixels, -1 below a fifth."""
    rng, frames, rows = np.random.default_rng(seed), len(items[0]["frames"]), []
    centres = torch.zeros(len(items), asked, frames, 2)
    shown = torch.zeros(len(items), len(COLOURS), frames)
    covered = []
    for item, centre, colours in zip(items, centres, shown, strict=True):
        others, row = [n for n in rng.permutation(NAMES).tolist() if n not in item["names"]], []
        alike = next(n for n in others if n.split()[0] in {x.split()[0] for x in item["names"]})
        for k, name in enumerate([*item["names"], alike, item["absent"], *others][:asked]):
            there = k < len(item["names"])
            track = item["tracks"][k] if there else NO_TRACK
            spans = []
            for kind in ("visible", "present", "hidden"):
                spans.append([float(any(a <= t <= b for a, b in track[kind])) for t in range(frames)])
            colour, shape = name.split()
            colour, shape = list(COLOURS).index(colour), list(SHAPES).index(shape)
            colours[colour] += torch.tensor(spans[0])
            direction = COMPASS.index(track["direction"])
            row.append((colour, shape, there, track["persistent"], direction, item["count"], spans))
        rows.append(row)
        masks = F.one_hot(item["mask"].long(), asked).permute(0, 3, 1, 2).float()
        share, most = F.avg_pool2d(masks, 8).flatten(2)[:, 1:].max(1)  # [T,P]
        numbers = torch.tensor([r[:2] for r in row] + [(-1, -1)])
        covered.append(numbers[torch.where(share >= 0.2, most, asked)].char())
        centre[: len(item["names"])] = (
            (item["boxes"][..., :2] + item["boxes"][..., 2:]) / item["width"] - 1
        ).transpose(0, 1)
    kinds = ("colours", "shapes", "there", "persistent", "direction", "count", "spans")
    return {k: torch.tensor([[r[i] for r in row] for row in rows]) for i, k in enumerate(kinds)} | {
        "centres": centres,
        "shown": shown,
        "covered": torch.stack(covered),
    }


def found_loss(found, visible, centres):
    """Loss of visibility and centre: found [..., 3], visible [...] 0 or 1, centres [..., 2]."""
    apart = (found[..., 1:] - centres).abs().sum(-1)
    apart = (apart * visible).sum() / visible.sum().clamp(min=1)
    return F.binary_cross_entropy_with_logits(found[..., 0], visible) + apart


def glance_loss(frames, truth, device, batch=256):
    """The loss on single frames: what covers each patch, and where named objects are."""

    def loss_of(model, rng):
        pick = torch.from_numpy(rng.choice(len(frames), min(batch, len(frames)), replace=False))
        at = torch.from_numpy(rng.integers(0, frames.shape[1], min(batch, len(frames))))
        with fast(device), sdpa_kernel(SDPBackend.MATH):
            asked = (truth[k][pick].to(device) for k in ("colours", "shapes"))
            looked, shown, tokens = model.tracker.look(frames[pick, at][:, None].to(device), *asked)
            found = model.find(looked)[:, :, 0].float().cpu()
            shown = shown[..., 0].float().cpu()
            covered = model.cover(tokens).flatten(0, 1).float().cpu()
        colour, shape = truth["covered"][pick, at].long().flatten(0, 1).unbind(-1)
        n = len(COLOURS) + 1
        loss = F.cross_entropy(covered[:, :n], colour % n)
        loss = loss + F.cross_entropy(covered[:, n:], shape, ignore_index=-1)
        loss = loss + found_loss(found, truth["spans"][pick, :, 0, at], truth["centres"][pick, :, at])
        return loss + F.binary_cross_entropy_with_logits(shown, truth["shown"][pick, :, at])

    return loss_of


def mirrored_directions(back, down, across):
    """[9]: the direction (number in COMPASS) that each becomes in a clip played backwards, flipped, mirrored."""
    signs = torch.tensor([-1 if across else 1, -1 if down else 1]) * (-1 if back else 1)
    return (VECTORS[:, None] * signs == VECTORS).all(-1).float().argmax(1)


def tracker_loss(frames, truth, device, batch=16):
    """The loss of all heads on `batch` clips and all their names, mirrored, flipped and reversed at random."""

    def loss_of(model, rng):
        pick = torch.from_numpy(rng.choice(len(frames), min(batch, len(frames)), replace=False))
        y, (back, down, across) = {k: v[pick] for k, v in truth.items()}, (rng.random(3) < 0.5).tolist()
        signs = torch.tensor([-1 if across else 1, -1 if down else 1])
        x = frames[pick].flip([d for d, flip in ((1, back), (2, down), (3, across)) if flip])
        with fast(device), sdpa_kernel(SDPBackend.MATH):
            found = model(x.to(device), y["colours"].to(device), y["shapes"].to(device))
        spans, shown, centres, there = (y[k] for k in ("spans", "shown", "centres", "there"))
        if back:
            spans, shown, centres = spans.flip(-1), shown.flip(-1), centres.flip(-2)
        binary = F.binary_cross_entropy_with_logits
        direction = mirrored_directions(back, down, across)[y["direction"]][there]
        number = y["count"][there]
        return (
            binary(found["scores"], spans[:, :, 0])
            + 2 * binary(found["persistence"][there], y["persistent"][there].float())
            + binary(found["frames"], spans[:, :, 1:])
            + binary(found["spans"], spans)
            + binary(found["there"], there.float())
            + 0.5 * F.cross_entropy(found["direction"][there], direction)
            + 0.5 * F.cross_entropy(found["count"][there], number)
            + 0.5
            * (found_loss(found["found"], spans[:, :, 0], centres * signs) + binary(found["shown"], shown))
        )

    return loss_of


@torch.no_grad()
def tracker_quality(model, frames, truth, device):
    """Held-out scores: accuracy of persistence, F1 of visible frames (pooled, threshold 0.5), accuracy of the other heads."""
    found = []
    for at in torch.arange(len(frames)).split(32):
        with fast(device):
            outputs = model(*(x[at].to(device) for x in (frames, truth["colours"], truth["shapes"])))
        found.append({k: v.float().cpu() for k, v in outputs.items()})
    found, there = {k: torch.cat([f[k] for f in found]) for k in found[0]}, truth["there"]
    seen = truth["spans"][:, :, 0][there] > 0
    predicted = found["scores"][there] > 0
    persistent = truth["persistent"][there].float()
    spans = ((found["spans"] > 0) == (truth["spans"] > 0))[there].float().mean((0, 2))
    return {
        "persistence_accuracy": ((found["persistence"] > 0) == truth["persistent"])[there].float().mean(),
        "persistence_baseline": max(persistent.mean(), 1 - persistent.mean()),
        "frame_f1": 2 * (seen & predicted).sum() / (seen.sum() + predicted.sum()),
        "frame_f1_baseline": 2 * seen.sum() / (seen.sum() + seen.numel()),
        "direction_accuracy": (found["direction"].argmax(-1) == truth["direction"])[there].float().mean(),
        "count_accuracy": (found["count"].argmax(-1) == truth["count"])[there].float().mean(),
        "there_accuracy": ((found["there"] > 0) == there).float().mean(),
        **{f"{kind}_accuracy": spans[k] for k, kind in enumerate(("visible", "present", "hidden"))},
    }


# ---------------------------------------------------------------- text only

# kinds of questions, and their weights: harder ones more often
KINDS = {
    "persistence": 2,
    "direction": 2,
    "backwards": 2,
    "count": 1,
    "unknown": 1,
    "frames": 6,
    "hidden": 5,
    "uncovered": 5,
    "describe": 8,
    "naming": 10,
}


def made_up_track(rng, frames=32):
    """A track as synthetic.py's, with random spans and a random probability of being persistent."""
    persistent, there, t = rng.random() < 0.5, np.zeros(frames, bool), np.arange(frames)
    first, last = 0, frames - 1
    if not persistent:
        first, last = sorted(int(x) for x in rng.choice(frames, 2, replace=False))
    if not persistent and (side := rng.integers(3)):  # enters or leaves, else as drawn
        first, last = (max(first, 1), frames - 1) if side == 1 else (0, min(last, frames - 2))
    there[first : last + 1] = True
    seen = there.copy()
    for _ in range(rng.integers(3)):
        start = rng.integers(first, last + 1)
        seen &= (t < start) | (t > start + rng.integers(12))
    if not seen.any():
        return made_up_track(rng, frames)
    # now and then it disagrees with the frames
    probability = rng.random() if rng.random() < 0.1 else abs(persistent - 0.5 * rng.random() ** 2 - 0.005)
    comes, goes = first > 0, last < frames - 1
    return {
        "object": str(rng.choice(NAMES)),
        "probability": round(probability, 2),
        "persistent": round(probability, 2) >= 0.5,
        "present": spans(there),
        "visible": spans(seen),
        "hidden": spans(there & ~seen),
        "direction": str(rng.choice([*DIRECTIONS, "still"])),
        "why": "passes" if comes and goes else "enters" if comes else "leaves" if goes else "stays",
    }


def described(track, known):
    """The sentences of synthetic.py about an object, without the facts that `known` lacks."""
    way, moves, hides = (part.rstrip(".") for part in describe_track(track).split(". "))
    if "frames" not in known:
        way = way.split(":")[0] if "persistence" in known else ""
    elif "persistence" not in known:
        way = f"The {track['object']} appears in {spans_words(track['visible'])}"
    parts = [way, moves if "direction" in known else "", hides if "hidden" in known else ""]
    said = ". ".join([*filter(None, parts), ""]).strip()
    return said.replace("It ", f"The {track['object']} ", not way) if said else UNKNOWN


def word_example(rng):
    """(kind, context, question, answer) about a random object; the context may lack facts or be about another object."""
    kind = str(rng.choice(list(KINDS), p=np.array(list(KINDS.values())) / sum(KINDS.values())))
    if kind == "naming":
        return kind, *naming(rng)
    track, count = made_up_track(rng), int(rng.integers(1, 4))
    own = name = track["object"]
    facts = {
        "persistence": track["probability"],
        "visible": track["visible"],
        "direction": track["direction"],
        "hidden": track["hidden"],
        "count": count,
    }
    if kind not in ("unknown", "count") and rng.random() < 0.25:
        if rng.random() < 0.5:  # the tracker did not find it
            facts |= {"persistence": round(0.3 * rng.random(), 2), "visible": [], "hidden": []}
        else:
            others = [n for n in NAMES if n != own]
            if rng.random() < 0.5:  # of the same colour or shape
                others = [n for n in others if set(n.split()) & set(own.split())]
            name = str(rng.choice(others))
    absent = name != own or not facts["visible"]
    if rng.random() < 0.6:
        facts = {k: v for k, v in facts.items() if v == [] and absent or rng.random() < 0.7}
    if rng.random() < 0.03:
        facts, absent, context = {}, False, ""
    else:
        context = metadata_text(own, **facts)
        absent &= name != own or "visible" in facts
    known = {{"visible": "frames"}.get(k, k) for k in facts}
    needs = {
        "persistence": {"persistence"},
        "frames": {"frames"},
        "direction": {"direction"},
        "hidden": {"hidden"},
        "backwards": {"direction"},
        "uncovered": {"frames", "hidden"},
        "count": {"count"},
    }.get(kind, set())
    answers = {
        "persistence": "persistent" if track["persistent"] else "transient",
        "frames": spans_words(track["visible"]),
        "direction": track["direction"],
        "hidden": spans_words(track["hidden"]) if track["hidden"] else "it is never hidden",
        "backwards": OPPOSITE[track["direction"]],
        "uncovered": spans_words(track["present"]),
        "count": str(count),
        "describe": described(track, known),
        "unknown": UNKNOWN,
    }
    question = DESCRIBE_NAME.format(name) if kind == "describe" else question_about(rng, kind, name)
    if absent:
        return "absent" if name == own else "elsewhere", context, question, f"there is no {name}"
    answer = answers[kind] if needs <= known else UNKNOWN
    return "lacking" if answer == UNKNOWN else kind, context, question, answer


def words_model(seed):
    """(model, tokenizer): a small Llama; the tokenizer is learned on its examples."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rng = np.random.default_rng([seed, 1])
    tokenizer = learned_tokenizer(
        (x for _ in range(4000) for x in ("user\n", "assistant\n", *word_example(rng)[1:])), 576
    )
    tokenizer.chat_template = CHAT
    return LlamaForCausalLM(LlamaConfig(**llama(tokenizer), tie_word_embeddings=True)), tokenizer


def words_loss(tokenizer, device, batch=32):
    """Cross-entropy of the answers, a mean over answers of the mean over their tokens."""

    def loss_of(model, rng):
        examples = [word_example(rng) for _ in range(batch)]
        prompts = [word_prompt(tokenizer, question, context) for _, context, question, _ in examples]
        with fast(device):
            return mean_answer_loss(model, tokenizer, prompts, [x[3] for x in examples])

    return loss_of


def words_quality(model, tokenizer, seed, n=3000):
    """Exact-match accuracy on held-out examples, in all and by kind, beside the majority answer of the kind."""
    rng = np.random.default_rng([seed, 2])
    examples = [word_example(rng) for _ in range(n)]
    prompts = [word_prompt(tokenizer, question, context) for _, context, question, _ in examples]
    answers = answered(model, tokenizer, prompts)
    report = {"accuracy": np.mean([a == x[3] for a, x in zip(answers, examples, strict=True)])}
    for kind in sorted({x[0] for x in examples}):
        at = [k for k, x in enumerate(examples) if x[0] == kind]
        scores = accuracy_and_baseline([answers[k] for k in at], [examples[k][3] for k in at])
        report[kind], report[f"{kind}_baseline"] = scores
    return report


# ---------------------------------------------------------------- main


def train_and_test(folder):
    """[items to train on, held-out items]: the test part of the split by source is held out."""
    items, _ = load_items(folder)
    return [[i for i in items if (split_of(i["source"]) == "test") == held] for held in (False, True)]


def pool(folder, size):
    """((frames, items) to train on, (frames, items) held out)."""
    return [(torch.stack([frames_of(i, size) for i in part]), part) for part in train_and_test(folder)]


def texts_of(items):
    """The texts of items, from which a tokenizer is learned."""
    for item in items:
        for turn in item["turns"]:
            yield from [*turn, "user\n", "assistant\n"]


def vlm_parts(args, device):
    """(images, clips) as `pool` gives them, the processor, an untrained model."""
    images, clips = pool(args.shapes, 96), pool(args.moving, 64)
    processor = vlm_processor(texts_of([*images[0][1], *clips[0][1]]))
    return images, clips, processor, for_training(vlm_model(processor.tokenizer)).to(device)


def train_vae(args, device, folder, save):
    (images, _), (held_images, _) = pool(args.shapes, 64)
    (clips, _), (held_clips, _) = pool(args.moving, 64)
    model = vae_model().to(device, memory_format=torch.channels_last_3d)
    steps, loss_of = args.steps or 11000, vae_loss(images, clips, device)
    losses = train("vae", flatten_stills(model), loss_of, steps, 1.5e-3, args.seed, folder, weight_decay=0)
    set_latent_statistics(model, images, device)
    model, _ = save(model)
    return losses, vae_quality(model, held_images[:400], held_clips, device)


def train_semantic(args, device, folder, save):
    """First the tower alone, by names; then the whole model, by questions of names only."""
    images, clips, processor, model = vlm_parts(args, device)
    head = TowerHead(model.model.visual, len(NAMES)).to(device)
    loss_of = naming_loss(images[0], processor, device)
    train("tower", head, loss_of, args.steps or 3000, 1e-3, args.seed, folder)
    trained = VLMWithHead(model).to(device)
    loss_of = vlm_loss(images[0], None, processor, device, NAMING)
    losses = train("semantic", trained, loss_of, args.steps or 2300, 1.5e-3, args.seed, folder)
    model, processor = save(model, processor)
    return losses, vlm_quality(model, processor, images[1], clips[1])


def train_vlm(args, device, folder, save):
    """Start from `semantic`; add questions of place and, on clips, of motion."""
    if not (folder / "semantic.pt").exists():
        fail(f"{folder}/semantic.pt does not exist; run --only semantic first")
    images, clips, processor, model = vlm_parts(args, device)
    model = VLMWithHead(model).to(device)
    before = torch.load(folder / "semantic.pt", weights_only=True)["model"]
    model.load_state_dict({k: v for k, v in before.items() if k.startswith("vlm.")}, strict=False)
    head = TowerHead(model.vlm.model.visual, len(NAMES) + 6).to(device)
    loss_of = motion_loss(clips[0], processor, device)
    train("motion", head, loss_of, args.steps or 800, 1e-3, args.seed, folder)
    loss_of = vlm_loss(images[0], clips[0], processor, device, (*NAMING, "Where is", "Which way"))
    losses = train("vlm", model, loss_of, args.steps or 3000, 1e-3, args.seed, folder)
    model, processor = save(model.vlm, processor)
    return losses, vlm_quality(model, processor, images[1], clips[1])


def train_dinov2(args, device, folder, save):
    (images, _), (held, _) = pool(args.shapes, 96)
    processor = dinov2_processor()

    def pixels(frames):
        found = processor(list(frames[:, 0].permute(0, 3, 1, 2)), return_tensors="pt")
        return found["pixel_values"].to(device)

    def loss_of(model, rng):
        with fast(device):
            return model(pixels(images[rng.choice(len(images), 32, replace=False)]))[0]

    model = MaskedPatches(dinov2_model()).to(device)
    model.encoder.set_attn_implementation("eager")  # on a CPU half the time of sdpa's gradient
    losses = train("dinov2", model, loss_of, args.steps or 2500, 1e-3, args.seed, folder)
    errors = []
    with torch.no_grad():
        for x in held[:512].split(64):
            errors.append([e.item() for e in model(pixels(x), torch.Generator().manual_seed(0))])
    own, mean_patch = np.mean(errors, 0)
    save(model.encoder, processor)
    report = {"masked_mae": own, "masked_mae_mean_patch": mean_patch, "masked_mae_ratio": own / mean_patch}
    return losses, report


def train_ltx(args, device, folder, save):
    """The latents of the clips are computed once and cached beside the state of the training."""
    vae, cache = folder.parent / "checkpoints" / "vae", folder / "ltx-latents.pt"
    if not vae.is_dir():
        fail(f"{vae} does not exist; run --only vae first")
    parts = train_and_test(args.moving)
    if not cache.exists():
        frames, captions = generated_clips(parts[0], args.seed, 4)
        latents = generated_clip_latents(
            LOADERS["vae"](find_model(str(vae)), device)[0], frames, device
        ).half()
        _atomically(cache, lambda f: torch.save({"latents": latents, "captions": captions}, f))
    cached = torch.load(cache, weights_only=True)
    tokenizer = t5_tokenizer(cached["captions"])
    model = ClipGenerator(tokenizer).to(device)
    loss_of = generated_clip_loss(cached["latents"], cached["captions"], tokenizer, device)
    losses = train("ltx", model, loss_of, args.steps or 2000, 1.5e-3, args.seed, folder, weight_decay=0.01)
    pipeline, _ = save(model, tokenizer)
    return losses, generated_clip_quality(pipeline, parts[1], device)


def train_words(args, device, folder, save):
    """Examples are generated as needed; none is repeated."""
    model, tokenizer = words_model(args.seed)
    model.set_attn_implementation("eager")  # on a CPU half the time of sdpa's gradient
    loss_of = words_loss(tokenizer, device)
    losses = train("words", model.to(device), loss_of, args.steps or 2800, 2e-3, args.seed, folder)
    model, tokenizer = save(model, tokenizer)
    return losses, words_quality(model, tokenizer, args.seed)


def train_tracker(args, device, folder, save):
    """First single frames, then, with the stem frozen, whole clips."""
    (frames, items), (held, held_items) = pool(args.trajectories, 48)
    truth = tracks_truth(items, args.seed)
    config = {
        "colours": list(COLOURS),
        "shapes": list(SHAPES),
        "frames": frames.shape[1],
        "image_size": 48,
        "widths": [64, 128],
        "layers": [2, 3],
        "embedding": 512,
    }
    model = TrackerWithHeads(Tracker(config)).to(device)
    train("glance", model, glance_loss(frames, truth, device), args.steps or 3000, 2e-3, args.seed, folder)
    model.tracker.stem.requires_grad_(False)
    loss_of = tracker_loss(frames, truth, device)
    losses = train("tracker", model, loss_of, args.steps or 3400, 1e-3, args.seed, folder)
    model.tracker, _ = save(model.tracker)
    return losses, tracker_quality(model, held, tracks_truth(held_items, args.seed), device)


def get_args(argv):
    p = parser(__doc__)
    p.add_argument("--only", choices=TRAIN, help="train one model (default: all, then the summary)")
    p.add_argument("--shapes", default="data/tiny-shapes", help="training images")
    p.add_argument("--moving", default="data/tiny-moving", help="training clips")
    p.add_argument("--trajectories", default="data/tiny-trajectories", help="training clips of the tracker")
    p.add_argument("--out", default="results/tiny", help="where checkpoints and YAML go")
    p.add_argument("--steps", type=int, help="fewer steps than a full training, for a trial")
    return p.parse_args(argv)


TRAIN = {
    "vae": ("vae", train_vae),
    "semantic": ("vlm", train_semantic),
    "vlm": ("vlm", train_vlm),
    "dinov2": ("encoder", train_dinov2),
    "ltx": ("video", train_ltx),
    "words": ("language", train_words),
    "tracker": ("tracker", train_tracker),
    **{name: ("vlm", functools.partial(train_family, name)) for name in FAMILIES},
}


def main(argv=None):
    args = get_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = Path(args.out)
    check_writable(out / "tiny.yaml")
    for name in [args.only] if args.only else TRAIN:
        started, (kind, run) = time.time(), TRAIN[name]
        folder, size = out / "checkpoints" / name, {}

        def save(model, processor=None, folder=folder, kind=kind, size=size):
            """Write fp16 and read it back, so that quality is measured on the written weights."""
            size["parameters"] = sum(p.numel() for p in model.parameters())
            if isinstance(model, CogVLM2):
                model.save_pretrained(folder, torch.float16)
            elif isinstance(model, ClipGenerator):
                generated_clip_folder(folder, model, processor)
            else:
                model.half().save_pretrained(folder)
            if processor and not isinstance(model, ClipGenerator):
                processor.save_pretrained(folder)
            save_yaml(folder / "weights.yaml", {"weights": "small", "trained_by": "tiny.py"})
            if kind == "tracker":
                return Tracker.from_pretrained(folder).to(device), None
            return LOADERS[kind](find_model(str(folder)), device)

        torch.manual_seed(args.seed)
        losses, quality = run(args, device, out / "training", save)
        every = max(len(losses) // 40, 1)
        curve = {i: float(np.mean(losses[i - every : i])) for i in range(every, len(losses) + 1, every)}
        result = {
            "stage": "tiny",
            "model": name,
            "weights": "small",
            "data": "synthetic",
            "steps": len(losses),
            **size,
            **quality,
            "loss": curve,
            "run": run_info(args, started, script="tiny.py"),
        }
        save_yaml(out / f"tiny-{name}.yaml", result)
        print_summary(result)
    summary = {"stage": "tiny"}
    for name in TRAIN:
        if (out / f"tiny-{name}.yaml").is_file():
            part = load_yaml(out / f"tiny-{name}.yaml", "tiny")
            summary |= {f"{name}_{k}": v for k, v in part.items() if isinstance(v, float)}
    save_yaml(out / "tiny.yaml", summary)
    return summary


if __name__ == "__main__":
    main()
