"""Stage 5. Does anything predict better than copying the last frame; and does conditioning break a video decoder's sense of time?

    python predict.py --mode coherence --model tiny-ltx --data data/moving --judge tiny-dinov2 --out results/tiny/moving/predict-coherence.yaml
    python predict.py --mode coherence --model tiny-ltx --data data/moving --judge tiny-dinov2 --adapter results/tiny/moving/conditioning.pt --out results/tiny/moving/predict-coherence.yaml

Reads clips (data.py), a pipeline of LTX-Video's kind and, with --adapter, what a model's tokens were turned into (adapt.py). For the middle --frames of every test
clip it makes a film under each of --conditionings. The noise depends on the clip and the number of the draw alone, so that films of one clip differ in their
conditioning and in nothing else:

    none         an empty prompt, no frame            keyframes    first, middle and last frame, an empty prompt
    text         the clip's caption, no frame         all          every frame: hands over the answer, an upper bound and no prediction
    first        the first frame, an empty prompt     first+text   the first frame and the caption
    adapter      the first frame, and what --adapter holds for the clip in place of the prompt

They are compared with the clips themselves (real), their reconstruction (vae), their first frame throughout (frozen), and the frames of the first two in random order
(shuffled, vae_shuffled). Measures:

    temporal_consistency   mean cosine of adjacent frames' patch tokens in the frozen judge; a frozen picture scores 1
    temporal_closeness     with d = 1 - temporal_consistency: the smaller over the larger of a film's d and its clip's; a frozen picture scores 0 where anything moves
    decoded_closeness      the same against the clip's reconstruction: where the autoencoder blurs, the judge sees less change in everything it decodes
    temporal_ratio         motion energy (mean absolute difference of adjacent frames, colours in [0, 1]) of the films over that of their clips
    flicker_ratio          the same of flicker, the mean absolute second difference in time
    warp_error             mean absolute difference, in grey, of a frame and its successor warped back along optical flow (Lai et al. 2018, without their mask of what is covered)
    direction_right        share of films in which the object, followed by its colour, moves as in its clip; only for clips with a still camera and a moving object

Writes predict-coherence.yaml (criteria, tables of conditionings and of strengths), .png, .pt (films of a few clips, uint8 [n, T, H, W, 3]), films/ (a data folder of all
films of the first draw, id `<clip>/<conditioning>`, for extract.py --ask) and predict-coherence-parts/ (films as made: a second run makes only what is missing).

Prediction in latent space:

    python predict.py --mode latents --data data/future --features results/tiny/future-past/features --last results/tiny/future-last/features --out results/tiny/future/predict-latents.yaml

Predicts, from a model's tokens of the past (of clips that data.py cut there, so that nothing of the future was seen), the autoencoder's latents of the frame 1, 2, 4, 8 and 16 frames ahead.
Variants, with the same training loop and head of learned queries: sanity (the present itself), single (from the last frame alone), action (and told the action), multi (from the whole past),
temporal and causal (a transformer over time), delta (predicts the difference to the present), contrastive (InfoNCE), pixels (LPIPS + 0.1 L2 through the decoder), language (from the middle
language layer) and lora (that layer under LoRA, trained by pixels). Baselines: copy, linear and flow (extrapolated), mean_future, nearest (of train clips), oracle (the truth, encoded).
Controls, which read something else in place of the model's tokens: blind (the last frame's latents), latents (those of the whole past), untrained (--random: tokens of the untrained network).
Measures: cosine of latents, l1, LPIPS, l1 where the truth has moved; gain over copy (paired; Wilcoxon's p over sources, Holm over variants) by horizon and by quarter of motion. `predicts`
names the variants that gain over copy, mean_future, nearest and the controls; `scaling` is one variant on five sizes of the training set, with a power law through them.

What comes next:

    python predict.py --mode continue --model tiny-ltx --data data/future --judge tiny-dinov2 --past 8 --horizon 16 --out results/tiny/future/predict-continue.yaml
    python predict.py --mode futures --model tiny-ltx --data data/future --judge tiny-dinov2 --candidates 6 --out results/tiny/future/predict-futures.yaml

The video model alone predicts the last --horizon of the middle --past + --horizon frames of every test clip, by continuations:

    past    the last frames seen, as many as a film can be shown, and an empty prompt                           past+text    and the clip's caption
    first   the last frame seen, an empty prompt             first+text   and the caption                       text         the caption alone

Where a film is shorter than the horizon, further films (windows) follow, each shown the last frames so far. Baselines: copy (the last frame seen), flow (extrapolated), mean and nearest (of
the futures of train clips); vae is the ceiling, the real future through the autoencoder. Measures: l1, moving_l1 and still_l1 (mean absolute difference, colours in [0, 1], of the whole frame,
of where the truth has changed since the last frame seen, and of the rest) by horizon and over all frames, with paired gains over copy and flow; the measures above (motion and flicker of the
predicted frames alone, the others with the last frame seen before them); jump (the step from that frame); best_shift (by how many frames a row runs ahead); static (motion energy under a tenth
of the vae's). Writes predict-continue.yaml, .png, .gif, films/ and predict-continue-parts/.

Mode futures makes --candidates of every clip's first window, with different noise, prompt and guidance, and picks one by what is known without the outcome: agreement with the others,
continuity, flow, consistency, cycle (the same model continues the candidate's end backwards: how near does it come to the frames seen?), and the mean of these ranks. Writes
predict-futures.yaml (errors of the picked, the first, a random, the best and the worst candidate, by the number of candidates; how often the truth would be preferred), .png, and .pt (errors and
beliefs of every candidate and clip).

A film from one's own pictures (mode film):

    python predict.py --image a.jpg --prompt "the red circle moves right" --video out.mp4
    python predict.py --image a.jpg b.jpg c.jpg --model ltx-video --frames 25 --video out.mp4

Several pictures are of one scene, in order of time: they become single frames, evenly spaced over the first half of the film, and the rest is predicted. Pictures are squashed to a square; the
film gets the shape of the first one, and small films are enlarged. Writes out.mp4 (H.264), out.gif and out.yaml.
"""

import fractions
import functools
import io
import math
import shutil
import time
import types
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from common import (
    BASELINES,
    DECODE_STEP,
    HORIZONS,
    NOTHING,
    RESULT,
    SHIFTS,
    STATIC,
    Tuned,
    adjusted,
    alongside,
    attention,
    autoencoder_of,
    averaged,
    bootstrap,
    caption,
    carried_on,
    check_shape,
    check_writable,
    choose_device,
    clips_of,
    closeness,
    clusters,
    compared,
    criterion,
    decode_films,
    digest,
    encode_films,
    erred,
    film_table,
    find_model,
    fingerprint,
    flatten_stills,
    followed,
    frames_of,
    gain_columns,
    gained,
    geometry,
    goers,
    grey_of,
    holm,
    join,
    judge_tokens,
    known,
    load_encoder,
    load_features,
    load_items,
    load_lpips,
    load_pt,
    load_video_pipeline,
    load_video_vae,
    load_vlm,
    load_yaml,
    lpips_model,
    measured,
    model_of,
    paired_test,
    parser,
    pixel_errors,
    pixel_loss,
    plain,
    pyplot,
    qwen_inputs,
    ranks,
    read_picture,
    refuse,
    resample,
    ridge,
    run_info,
    save_bytes,
    save_pt,
    save_yaml,
    say,
    seeded,
    shuffled,
    split_indices,
    split_of,
    train,
    windows,
    with_bounds,
    with_grid,
    write_items,
)

# name: (frames that are shown, as fractions of the film, or "all"; what stands in the place of the prompt)
CONDITIONINGS = {
    "none": ((), "empty"),
    "text": ((), "caption"),
    "first": ((0,), "empty"),
    "first+text": ((0,), "caption"),
    "keyframes": ((0, 0.5, 1), "empty"),
    "all": ("all", "empty"),
    "adapter": ((0,), "adapter"),
}
SWEPT = {"first": "none", "adapter": "first"}  # at strength 0 the one is the other
WORDS_SEEN = 128  # tokens of a prompt, as LTX-Video's pipelines cut them
# What LTX-Video's documentation gives for autoencoders that are conditioned on a time step; others ignore it.
DECODE = {"decode_timestep": DECODE_STEP, "decode_noise_scale": 0.025}
NULLS = "real", "vae", "frozen", "shuffled", "vae_shuffled"
NOTES = {
    "all": "hands over the answer: an upper bound, not a prediction",
    "warp_error": "of the first draw",
    "temporal_consistency": "what moves too little scores above the clips, what is frozen 1",
    "strength": "of the first draw; frames are noised by 1 - strength, embeddings go from the empty prompt's (0) to the adapter's (1)",
}


# ---------------------------------------------------------------- films


def sampler(pipeline, steps, tokens):
    """(LTXConditionPipeline of the same parts, time steps for it): those that LTXImageToVideoPipeline would use for so many latent tokens.

    LTXConditionPipeline can be shown any number of frames, but spends half of its own time steps near pure noise and cannot shift them by the size of the film, as the published scheduler does.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
    from diffusers.pipelines.ltx.pipeline_ltx_image2video import calculate_shift
    from diffusers.utils import logging

    # time steps without sigmas are warned of at every batch: a scheduler that shifts nothing makes the right
    # ones of them
    logging.set_verbosity_error()
    scheduler = pipeline.scheduler
    shift = (
        scheduler.config.get(k, v)
        for k, v in (
            ("base_image_seq_len", 256),
            ("max_image_seq_len", 4096),
            ("base_shift", 0.5),
            ("max_shift", 1.15),
        )
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, *shift))
    run = LTXConditionPipeline(**pipeline.components | {"scheduler": FlowMatchEulerDiscreteScheduler()})
    run.set_progress_bar_config(disable=True)
    return run, scheduler.timesteps.tolist()


def encoded(pipeline, texts):
    """(embeddings [n, L, C], mask [n, L]) of prompts, cut to the longest: masked tokens have no weight and need not be computed."""
    different = list(dict.fromkeys(texts))
    with torch.inference_mode():
        embeds, mask, *_ = pipeline.encode_prompt(
            different, do_classifier_free_guidance=False, max_sequence_length=WORDS_SEEN
        )
    rows, longest = [different.index(t) for t in texts], int(mask.sum(1).max())
    return embeds[rows, :longest], mask[rows, :longest]


def unprompted(empty, n):
    """(embeddings, mask) of the empty prompt [K, C] for n films."""
    return empty.expand(n, -1, -1), empty.new_ones(n, len(empty))


def again(empty, tokens):
    """The empty prompt [K, C] over and over, as long as tokens [n, L, C]: attention to a token many times is attention to it once, so it says the same."""
    return empty[torch.arange(tokens.shape[1]) % len(empty)].expand_as(tokens)


def towards(empty, tokens, strength):
    """From the empty prompt (strength 0) to tokens [n, L, C] (1)."""
    return torch.lerp(again(empty, tokens), tokens, strength)


@torch.inference_mode()
def films(run, timesteps, ids, shape, shown, prompt, seed, strength=1.0, batch=16, guidance=1.0, empty=None):
    """Films uint8 [n, T, H, W, 3], shape (T, H, W), for clips `ids`.

    shown: [(frame number, uint8 [n, k, H, W, 3])], k = 1 or a length that the autoencoder takes; prompt: (embeddings [n, L, C], mask [n, L]). guidance above 1 leads
    away from the empty prompt, tokens `empty` [K, C] (classifier-free; Ho & Salimans 2022). The frames shown get no noise of their own (image_cond_noise_scale 0), so that different strengths
    differ in nothing else.
    """
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    made = []
    for at in tqdm(torch.arange(len(ids)).split(batch), desc="films", unit="batch", leave=False):
        conditions = [
            LTXVideoCondition(
                video=x[at].permute(0, 1, 4, 2, 3).float() / 255, frame_index=k, strength=strength
            )
            for k, x in shown
        ]
        away = {}
        if guidance > 1:
            away = {
                "negative_prompt_embeds": again(empty, prompt[0][at]),
                "negative_prompt_attention_mask": torch.ones_like(prompt[1][at]),
            }
        out = run(
            conditions=conditions or None,
            prompt_embeds=prompt[0][at],
            prompt_attention_mask=prompt[1][at],
            num_frames=shape[0],
            height=shape[1],
            width=shape[2],
            timesteps=timesteps,
            guidance_scale=guidance,
            **away,
            image_cond_noise_scale=0.0,
            generator=[seeded(f"{seed} {ids[i]}") for i in at],
            output_type="pt",
            **DECODE,
        )
        made.append((out.frames.float().permute(0, 1, 3, 4, 2) * 255).round().clamp(0, 255).byte().cpu())
    return torch.cat(made)


# ---------------------------------------------------------------- measures of films under conditionings, beside those of common.py


def others(d, d_real, sources):
    """closeness [seeds, n] of each clip to the films that were made for clips of other sources: the mean over these."""
    cluster = clusters(sources)
    weights = (cluster[:, None] != cluster).double()
    return (closeness(d[:, :, None], d_real) * weights).sum(1) / weights.sum(0).clamp(min=1)


def warp_error(x):
    """Mean absolute difference of a frame's grey and its successor's, warped back along iterative Lucas-Kanade flow (scikit-image)."""
    from skimage.registration import optical_flow_ilk
    from skimage.transform import warp

    grey = grey_of(x).numpy()
    grid = np.mgrid[: grey.shape[2], : grey.shape[3]].astype(np.float32)
    return torch.tensor(
        [
            np.mean(
                [
                    np.abs(
                        a - warp(b, grid + optical_flow_ilk(a, b, radius=5, num_warp=4), mode="edge")
                    ).mean()
                    for a, b in zip(clip, clip[1:], strict=False)
                ]
            )
            for clip in grey
        ],
        dtype=torch.float64,
    )


def judged(own, main, sources, seed):
    """{criteria, gains} of the main conditioning; gains are paired, over each other conditioning, with Holm's adjustment. own: {name: {measure: [seeds, n]}}."""
    names, criteria, gains = [n for n in own if n not in NULLS], {}, {}
    d = {n: 1 - x["temporal_consistency"] for n, x in own.items()}
    for measure, like, ceiling, mixed in (
        ("temporal_consistency", None, "real", "shuffled"),
        ("temporal_closeness", "real", "vae", "shuffled"),
        ("decoded_closeness", "vae", "vae", "vae_shuffled"),
    ):
        score = {n: closeness(x, d[like]) if like else 1 - x for n, x in d.items()}
        floors = {"shuffled": score[mixed]} | (
            {"frozen": score["frozen"], "other_clip": others(d[main], d[like], sources)} if like else {}
        )
        criteria[measure] = criterion(
            score[main],
            floors,
            sources,
            ceiling=score[ceiling].mean().item(),
            seed=seed,
            conditioning=main,
            draws=len(score[main]),
            controls={
                n: score[n].mean() for n in ("real", "frozen", *names) if n != main and n not in floors
            },
        )
        gains[measure] = {
            n: paired_test(score[main], score[n], sources, seed=seed) for n in names if n != main
        }
        for n, p in holm({n: t["p"] for n, t in gains[measure].items()}).items():
            gains[measure][n]["p_holm"] = p
    return {"criteria": criteria, "gains": gains}


# ---------------------------------------------------------------- prediction in latent space: a model's tokens of the past -> the autoencoder's latents of a frame to come

# reads: the tokens of the past, of its last frame alone ("last"), or of the past at the middle language layer
# ("language"); time: how they are joined over time; delta: predicts the
# difference to the present; rank: of LoRA. The last three are controls, which in place of the model's tokens
# read the last frame's latents, those of the whole past, and tokens of the
# untrained network.
VARIANTS = {
    "sanity": {"reads": "last", "horizons": (0,)},
    "single": {"reads": "last"},
    "action": {"reads": "last", "action": True},
    "multi": {"reads": "past"},
    "temporal": {"reads": "past", "time": "both"},
    "causal": {"reads": "past", "time": "causal"},
    "delta": {"reads": "past", "time": "causal", "delta": True},
    "contrastive": {"reads": "past", "time": "causal", "loss": "contrastive"},
    "pixels": {"reads": "past", "time": "causal", "loss": "pixels"},
    "language": {"reads": "language", "time": "causal"},
    "lora": {"reads": "language", "time": "causal", "loss": "pixels", "rank": 64},
    "blind": {"reads": "present", "delta": True},
    "latents": {"reads": "latents", "time": "causal", "delta": True},
    "untrained": {"reads": "random", "time": "causal", "delta": True},
}
CONTROLS = "blind", "latents", "untrained"
# what has to be beaten: none of them reads a trained model
KNOW_NOTHING = "copy", "mean_future", "nearest", *CONTROLS
FRACTIONS = 1 / 16, 1 / 8, 1 / 4, 1 / 2  # of the training clips, beside all of them
TEMPERATURE = 0.07
TRAINING = {"epochs": 60, "patience": 20, "batch": 32, "lr": 1e-3}


def merged(x):
    """Tokens [n, t, h, w, D] on a grid of at most 6 x 6: f x f neighbours are concatenated (as by Qwen's merger, without its layers), so that nothing is lost; averaged where no f divides the
    grid."""
    (h, w), most = x.shape[2:4], 6
    f = next((f for f in range(1, max(h, w) + 1) if h % f == w % f == 0 and max(h, w) // f <= most), None)
    if f is None or f * f > 16:
        return (
            F.adaptive_avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), (min(h, most), min(w, most)))
            .permute(0, 2, 3, 1)
            .unflatten(0, x.shape[:2])
        )
    return x.unflatten(3, (-1, f)).unflatten(2, (-1, f)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


class Predictor(torch.nn.Module):
    """Tokens of the past [n, t, h, w, D] -> latents [n, H, W, C] of a frame to come. `horizon` is an index into the list of horizons.

    One learned query for each latent place and horizon, plus a linear map of the tokens at that place at all time steps, attends to all tokens.
    time: None: tokens as they are; "both": tokens of one place first attend to each other over time; "causal": only to earlier ones, and the queries read the last step alone.
    actions: how many actions there are to be told one of (0: is not told). delta: the output is added to the present's latents; it begins at zero. moments: (mean, std) [D] to standardise tokens.
    """

    def __init__(
        self, grid, out_grid, channels, horizons, time=None, actions=0, delta=False, moments=None, width=64
    ):
        super().__init__()
        mean, std = moments or (torch.zeros(grid[3]), torch.ones(grid[3]))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.here = torch.nn.Linear(grid[0] * grid[3], width)
        t, h, w, d = merged(torch.empty(1, *grid, device="meta")).shape[1:]
        self.out_grid, self.time, self.delta = out_grid, time, delta
        self.embed = torch.nn.Linear(d, width)
        self.place = torch.nn.Parameter(torch.randn(h * w, width) * 0.1)
        self.moment = torch.nn.Parameter(torch.randn(t, 1, width) * 0.1)
        if time:
            self.over_time = torch.nn.TransformerEncoder(
                torch.nn.TransformerEncoderLayer(
                    width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
                ),
                2,
                enable_nested_tensor=False,
            )
        self.query = torch.nn.Parameter(torch.randn(math.prod(out_grid), width) * 0.1)
        self.horizon = torch.nn.Parameter(torch.randn(len(horizons), 1, width) * 0.1)
        self.action = torch.nn.Embedding(actions, width) if actions else None
        self.layers = torch.nn.ModuleList(attention(width) for _ in range(2))
        self.out = torch.nn.Linear(width, channels)
        # the output begins at zero, with delta at a copy: where nothing can be learned there is no noise
        torch.nn.init.zeros_(self.out.weight)
        torch.nn.init.zeros_(self.out.bias)

    def forward(self, x, horizon, present, action):
        """x [n, t, h, w, D], horizon [n], present [n, H, W, C], action [n]."""
        x = (x - self.mean) / self.std
        n, t = x.shape[:2]
        # [n, HW, t D]
        here = (
            resample(x.flatten(0, 1), self.out_grid)
            .unflatten(0, (n, t))
            .permute(0, 2, 3, 1, 4)
            .flatten(3)
            .flatten(1, 2)
        )
        memory = self.embed(merged(x).flatten(2, 3)) + self.place + self.moment  # [n, t, hw, width]
        if self.time:
            mask = (
                torch.nn.Transformer.generate_square_subsequent_mask(t, device=x.device)
                if self.time == "causal"
                else None
            )
            memory = (
                self.over_time(memory.transpose(1, 2).flatten(0, 1), mask)
                .unflatten(0, (n, -1))
                .transpose(1, 2)
            )
            memory = memory[:, -1:] if self.time == "causal" else memory
        query = self.query + self.horizon[horizon] + self.here(here)
        memory = memory.flatten(1, 2)
        if self.action is not None:
            memory = torch.cat([memory, self.action(action)[:, None]], 1)
        for layer in self.layers:
            query = layer(query, memory)
        z = self.out(query).unflatten(1, self.out_grid)
        return present + z if self.delta else z


class Through(torch.nn.Module):
    """A Predictor behind a VLM under LoRA (common.Tuned), whose tokens it reads."""

    def __init__(self, tuned, head):
        super().__init__()
        self.tuned, self.head = tuned, head

    def forward(self, x, *more):
        return self.head(self.tuned(x), *more)


def info_nce(own, truth, hard):
    """InfoNCE (van den Oord et al. 2018) of cosines: own [n, ...] shall be nearer to its truth [n, ...] than to the truths of other items and to its own `hard` negatives [n, k, ...]."""
    own = F.normalize(own.flatten(1), dim=1)
    truth = F.normalize(truth.flatten(1), dim=1)
    hard = F.normalize(hard.flatten(2), dim=2)
    others, own_others = truth @ truth.T, torch.einsum("nd,nkd->nk", truth, hard)
    # where nothing moves the present is the truth, and no negative
    same = torch.cat([others.fill_diagonal_(0), own_others], 1) > 1 - 1e-6
    scores = (
        torch.cat([own @ truth.T, torch.einsum("nd,nkd->nk", own, hard)], 1).masked_fill(same, -1)
        / TEMPERATURE
    )
    return F.cross_entropy(scores, torch.arange(len(own), device=own.device))


def latent_cosine(a, b):
    """Cosine of latents [..., H, W, C], those of a frame as one vector."""
    return F.cosine_similarity(a.flatten(-3).double(), b.flatten(-3).double(), dim=-1)


def whole_past(path, first, frames, name):
    """Refuse a data folder that is not frames first .. first + frames - 1 of the clips of `name`: only of such a cut is it certain that an encoder that mixes frames has not seen the future."""
    index = load_yaml(Path(path) / "index.yaml", "data")
    found = index.get("cut_from"), index.get("first"), index.get("frames")
    if found != (name, first, frames):
        refuse(
            f"{path} is not frames {first} to {first + frames - 1} of {name}, so its features may have seen the future; "
            f"make it with data.py cut --clips data/{name} --first {first} --frames {frames}"
        )


def positive(args, *flags):
    """Refuse a count that is given and below 1."""
    for flag in flags:
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            refuse(f"--{flag} {getattr(args, flag)} is not positive; give 1 or more")


def latent_world(args):
    """A namespace of all that mode latents works on: clips, tokens of the past, latents of every frame. What can be refused is refused before a model is loaded."""
    w = types.SimpleNamespace(args=args, seed=args.seed)
    if not args.features:
        refuse("--mode latents needs --features, those of the past: data.py cut, then extract.py")
    positive(args, "past", "seeds", "epochs", "batch")
    w.index, w.read = load_features(args.features)
    if "shown" in w.index:
        refuse(
            f"{args.features} holds features of chosen frames, and behind them nothing goes on at an even pace; extract again without --frames"
        )
    w.language = [p for p in with_grid(w.index) if p.startswith("language.")]
    # what by default is left out
    cannot = {"last": not args.last, "language": not w.language, "random": not args.random}
    entry = model_of(w.index)
    room = memory_free() > 4.8e9 * entry.get("params", 0)  # fp32, and what a step needs
    can = {"rank": entry.get("type", "").startswith("qwen") and args.past > 1 and room}
    names = (
        args.variants.split(",")
        if args.variants
        else [
            n
            for n, v in VARIANTS.items()
            if not cannot.get(v["reads"]) and can.get("rank" if "rank" in v else None, True)
        ]
    )
    for name in names:
        known(name, VARIANTS, "variant")
    w.variants = {
        name: v
        for name, v in VARIANTS.items()
        if name in names or name in CONTROLS and not cannot.get(v["reads"])
    }
    if not set(w.variants) - {"sanity", "action", *CONTROLS}:
        refuse(
            f"--variants {args.variants} leave nothing that predicts; add one of {', '.join(n for n in VARIANTS if n not in ('sanity', 'action', *CONTROLS))}"
        )
    if "lora" in w.variants and args.past < 2:
        refuse("--past 1 is one picture, and lora reads clips; leave it out of --variants")
    items, w.data = load_items(args.data)
    whole_past(w.index["data_path"], 0, args.past, w.data["name"])
    w.items = join(items, w.index | {"data_path": args.data}, args.features)
    w.split = split_indices(w.items, args.features)
    w.test_sources = [w.items[k]["source"] for k in w.split["test"]]
    w.length = min(len(i.get("frames", ())) for i in w.items)
    w.horizons = [h for h in HORIZONS if args.past + h <= w.length]
    if not w.horizons:
        refuse(
            f"{args.data} has clips of {w.length} frames, and behind --past {args.past} nothing is left to predict; give longer clips"
        )
    w.last = None
    if any(v["reads"] == "last" for v in w.variants.values()):
        if not args.last:
            refuse(
                f"the variants {', '.join(n for n, v in w.variants.items() if v['reads'] == 'last')} read the last frame alone; give --last its features, or leave them out of --variants"
            )
        last, w.read_last = load_features(args.last)
        whole_past(last["data_path"], args.past - 1, 1, w.data["name"])
        w.last = last
    random, w.read_random = load_features(args.random) if args.random else (w.index, None)
    for flag, other in (("--last", w.last or w.index), ("--random", random)):
        if other["ids"] != w.index["ids"] or other["model"] != w.index["model"]:
            refuse(
                f"{flag} is not about the clips and the model of {args.features}; extract both with the same --model of cuts of the same clips"
            )
    vae = find_model(args.vae)
    if vae["kind"] != "vae":
        refuse(f"--vae {args.vae} is a {vae['kind']}; a vae is needed")
    w.out = Path(args.out or Path(args.features).parent / "predict-latents.yaml")
    check_writable(w.out)
    points = [
        p
        for p in with_grid(w.index)
        if p != "pixels" and (w.last is None or p in w.last["points"]) and p in random["points"]
    ]
    if args.point and args.point not in points:
        refuse(
            f"--point {args.point} is not among the points of {args.features} that have a grid: {', '.join(points)}"
        )
    if not w.language and any(v["reads"] == "language" for v in w.variants.values()):
        refuse(
            f"{args.features} holds no language layer, at which language and lora read; leave them out of --variants"
        )
    w.device, w.dtype, w.why = choose_device()
    print(f"device {w.device.type} ({w.why})")
    full = torch.float32 if w.dtype == torch.float16 else w.dtype
    w.vae_entry, w.vae = vae, flatten_stills(load_video_vae(vae, w.device, full)[0]).requires_grad_(False)
    size = args.size or vae["clip"]
    # uint8 [n, T, H, W, 3]
    w.frames = torch.stack([frames_of({"frames": i["frames"][: w.length]}, size) for i in w.items])
    w.z = encode_films(w.vae, stills(w.frames), 64)[:, 0].unflatten(0, w.frames.shape[:2])  # [n, T, h, w, C]
    w.present = w.z[:, args.past - 1]
    w.future = w.z[:, [args.past - 1 + h for h in w.horizons]]
    names = [str(i.get("action", i.get("direction"))) for i in w.items]
    w.actions = {a: k for k, a in enumerate(sorted({names[k] for k in w.split["train"]}))}
    # the last number: never taught
    w.action = torch.tensor([w.actions.get(a, len(w.actions)) for a in names])
    w.lpips, w.lpips_name = load_lpips(w.device)
    w.how = TRAINING | {
        k: getattr(args, k) for k in ("epochs", "batch", "lr") if getattr(args, k) is not None
    }
    w.point, w.options = (args.point, 1) if args.point else (tells_most(w, points), len(points))
    # of the layer chosen there is one copy
    w.read, w.read_last, w.read_random = (
        read and functools.cache(read) for read in (w.read, getattr(w, "read_last", None), w.read_random)
    )
    w.tuned = tuned_model(w, w.variants["lora"]["rank"]) if "lora" in w.variants else None
    return w


def memory_free():
    """Free bytes of the GPU's memory; on a CPU, infinity."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.inf


def stills(films):
    """Every frame of films [n, T, H, W, 3] as a film of its own, [n T, 1, H, W, 3]."""
    return films.flatten(0, 1)[:, None]


def tells_most(w, points):
    """The layer from which ridge regression predicts, on val clips, the change of the latents up to the middle horizon best."""
    change = (w.future - w.present[:, None])[:, len(w.horizons) // 2].flatten(1)
    val, error = w.split["val"], {}
    for point in tqdm(points, desc="layers", unit="point"):
        error[point] = (
            (ridge(w.read(point).flatten(1), {"change": change}, w.split["train"])["change"] - change)[val]
            .square()
            .mean()
            .item()
        )
    return min(error, key=error.get)


def reading(w, name):
    """(function from items to the tokens that a variant reads, their grid, (mean, std) of their channels over train clips)."""
    v = w.variants[name]
    x = {
        "present": lambda: w.present[:, None],
        "latents": lambda: w.z[:, : w.args.past],
        "last": lambda: w.read_last(w.point),
        "past": lambda: w.read(w.point),
        "random": lambda: w.read_random(w.point),
        "language": lambda: w.read(middle(w.language)),
    }[v["reads"]]()
    rows = x[w.split["train"]].flatten(0, -2)
    return (
        lambda items: x[items].to(w.device),
        tuple(x.shape[1:]),
        (rows.mean(0), rows.std(0).clamp(min=1e-6)),
    )


def middle(points):
    """The middle one of a stack's layers."""
    return points[(len(points) - 1) // 2]


def tuned_model(w, rank):
    """(VLM under LoRA, function from items to its inputs: clips of the past, as in extract.py). Refused unless the model, before training, gives the stored features."""
    entry, size = model_of(w.index), w.index["size"]
    if not entry.get("type", "").startswith("qwen"):
        refuse(
            f"lora lies inside a language model of Qwen's family, and {w.index['model']} is a {entry.get('type')}; leave it out of --variants"
        )
    vlm, processor = load_vlm(entry, w.device, torch.float32 if w.dtype == torch.float16 else w.dtype)
    vlm.requires_grad_(False)

    def inputs(items):
        batch = qwen_inputs(
            processor,
            torch.stack([frames_of({"frames": w.items[k]["frames"][: w.args.past]}, size) for k in items]),
            "Describe the clip.",
        )
        return {
            k: v.to(w.device, vlm.dtype) if v.is_floating_point() else v.to(w.device)
            for k, v in batch.items()
        }

    point, some = middle(w.language), w.split["train"][:2]
    stored = w.read(point)
    tuned = Tuned(
        vlm, w.index["points"][point]["module"], stored.shape[1:], vlm.config.video_token_id, rank
    ).to(w.device)
    with torch.inference_mode():
        own = tuned(inputs(some)).cpu()
    if (own - stored[some]).norm() > 0.02 * stored[some].norm():
        refuse(
            f"{w.index['model']} does not give back the stored features of {point}; extract them again, or leave lora out of --variants"
        )
    return tuned, inputs


def train_variant(w, name, train_items=None):
    """([(module, record) of each seed], function from items to what they read)."""
    v, items = w.variants[name], w.split["train"] if train_items is None else train_items
    read, grid, moments = reading(w, name)
    horizons = v.get("horizons", w.horizons)
    shape = grid, tuple(w.present.shape[1:3]), w.present.shape[3], horizons
    free = {
        "time": v.get("time"),
        "delta": v.get("delta", False),
        "actions": len(w.actions) + 1 if v.get("action") else 0,
        "moments": moments,
    }
    loss = v.get("loss", "latents")
    how = w.how | {"warm": 0, "variant": name, "point": w.point, "items": len(items)}
    # an epoch has as many steps, whatever the number of clips
    over = items.repeat(-(-len(w.split["train"]) // len(items)))[: len(w.split["train"])]
    if loss == "pixels":
        few = max(how["epochs"] // 10, 1)
        how |= {
            "warm": 0 if w.trained.get("language") and "rank" in v else how["epochs"] - few,
            "epochs": few,
            "patience": None,
        }
    trained, tuned = [], None
    if "rank" in v:
        how["lr"] /= 10  # LoRA begins at the trained head: large steps would undo that
        tuned, read = w.tuned

    def loss_of(module, picked, g, part, warm):
        k = torch.randint(len(horizons), (len(picked),), generator=g)[part]
        i = picked[part]
        truth = w.present[i] if horizons == (0,) else w.future[i, k]
        z = module(read(i), k.to(w.device), w.present[i].to(w.device), w.action[i].to(w.device))
        error = (z - truth.to(z.device)).square().mean()
        if loss == "pixels" and not warm:
            return w.pixel_loss(z, w.place[i] * len(horizons) + k)
        # hard negatives, which a copy would resemble: the present, and another moment of the same clip
        if loss == "contrastive":
            others = torch.stack(
                [w.present[i], *([w.future[i, (k + 1) % len(horizons)]] if len(horizons) > 1 else [])], 1
            )
            return info_nce(z, truth.to(z.device), others.to(z.device)) + error
        return error

    if loss == "pixels" and not hasattr(w, "pixel_loss"):
        seen = torch.cat([w.split["train"], w.split["val"]])
        w.place = torch.zeros(len(w.items), dtype=torch.long).index_put((seen,), torch.arange(len(seen)))
        w.pixel_loss = pixel_loss(
            w.vae,
            lpips_model(w.device)[0],
            w.frames[seen][:, [w.args.past - 1 + h for h in w.horizons]].flatten(0, 1),
        )
    for s in tqdm(range(w.args.seeds), desc=name, unit="seed"):

        def build(s=s):
            head = Predictor(*shape, **free)
            if tuned is None:
                return head
            if start := w.trained.get("language"):  # begin where the frozen model's head ended
                head.load_state_dict(start[s][1]["weights"], strict=False)
            return Through(tuned.reset(), head)

        known_by = digest(
            w.z[items].numpy().tobytes()
            + torch.cat(moments).numpy().tobytes()
            + str(sorted(how.items())).encode()
        )
        trained.append(
            train(
                build,
                loss_of,
                {"train": over, "val": w.split["val"]},
                w.seed + s,
                how,
                w.device,
                w.out.with_suffix(".training") / f"{known_by}-{name}-{w.seed + s}.pt",
                w.index["ids"],
            )
        )
    return trained, read


@torch.inference_mode()
def foretold(w, name, trained, read, items):
    """Latents [seeds, n, horizons, H, W, C] that a variant's modules predict for `items`."""
    horizons, out = w.variants[name].get("horizons", w.horizons), []
    for module, record in trained:
        module.load_state_dict(record["weights"], strict=False)  # LoRA's seeds share one module
        head, rows = getattr(module, "head", module), []
        for p in items.split(64):
            x = module.tuned(read(p)) if head is not module else read(p)  # once for all horizons
            rows.append(
                torch.stack(
                    [
                        head(
                            x,
                            torch.full((len(p),), k, device=w.device),
                            w.present[p].to(w.device),
                            w.action[p].to(w.device),
                        )
                        .float()
                        .cpu()
                        for k in range(len(horizons))
                    ],
                    1,
                )
            )
        out.append(torch.cat(rows))
    return torch.stack(out)


def guesses(w):
    """({baseline: latents [1, n_test, horizons, H, W, C]}, {baseline: uint8 [n_test, horizons, H, W, 3]} of those that are made of pixels)."""
    test = w.split["test"]
    train_items = w.split["train"]
    p = w.args.past
    ahead = torch.tensor(w.horizons)
    past, n = w.z[:, :p], len(test)
    # of the whole past: of two frames it would be mostly noise
    slope = (past[test, -1] - past[test, 0]) / max(p - 1, 1)
    near = torch.cdist(past[test].flatten(1), past[train_items].flatten(1)).argmin(1)
    flow = carried_on(w.frames[test, :p], max(w.horizons))[:, ahead - 1]
    last = w.frames[test, p - 1][:, None].expand(-1, len(ahead), -1, -1, -1)
    latent = {
        "copy": w.present[test][:, None].expand_as(w.future[test]),
        "linear": w.present[test][:, None] + slope[:, None] * ahead.view(1, -1, 1, 1, 1),
        "flow": encode_films(w.vae, stills(flow), 64)[:, 0].unflatten(0, (n, -1)),
        "mean_future": w.future[train_items].mean(0).expand_as(w.future[test]),
        "nearest": w.future[train_items[near]],
        "oracle": w.future[test],
    }
    return {k: x[None] for k, x in latent.items()}, {"copy": last, "flow": flow}


def scored_rows(w, latent, pixels):
    """({row: {cosine, l1, moving_l1, still_l1, lpips: [seeds, n, horizons]}}, {row: uint8 [n, horizons, H, W, 3], decoded, of the first seed}).

    latent: {row: [seeds, n, horizons, ...]}, decoded by the autoencoder; pixels: {row: uint8 [n, horizons, H, W, 3]}, whose scores are added to the row as raw_<measure>.
    """
    test = w.split["test"]
    truth = w.frames[test][:, [w.args.past - 1 + h for h in w.horizons]]
    last = w.frames[test, w.args.past - 1]
    found, shown = {}, {}

    def scores_of(x):
        return pixel_errors(x, truth, last) | {
            w.lpips_name: w.lpips(x.flatten(0, 1), truth.flatten(0, 1)).unflatten(0, x.shape[:2])
        }

    for name, z in tqdm(latent.items(), desc="scored", unit="row"):
        films = [decode_films(w.vae, x.flatten(0, 1)[:, None], 64)[:, 0].unflatten(0, x.shape[:2]) for x in z]
        scores = [scores_of(x) for x in films]
        found[name] = {"cosine": latent_cosine(z, w.future[test])} | {
            k: torch.stack([s[k] for s in scores]) for k in scores[0]
        }
        shown[name] = films[0]
    for name, x in pixels.items():  # without the autoencoder between
        found[name] |= {f"raw_{k}": y[None] for k, y in scores_of(x).items()}
    return found, shown


def best_shift(w, z):
    """By how many frames the truth must be shifted to be most like latents [seeds, n, horizons, ...] of test clips: 0 if the time is right. None where no horizon allows such shifts."""
    inside = [
        (k, h)
        for k, h in enumerate(w.horizons)
        if h + min(SHIFTS) >= 0 and w.args.past - 1 + h + max(SHIFTS) < w.length
    ]
    if not inside:
        return None
    at = {
        s: torch.stack(
            [
                latent_cosine(z[:, :, k], w.z[w.split["test"], w.args.past - 1 + h + s]).mean()
                for k, h in inside
            ]
        )
        .mean()
        .item()
        for s in SHIFTS
    }
    return max(at, key=lambda s: (round(at[s], 9), -abs(s)))


def row_of(w, scores, z, shown, copy, oracle):
    """A row of the table: every score with its interval, gain and skill over copy, timing, and whether it moves at all."""
    row = {}
    for key, x in scores.items():
        x = x.nanmean(2) if "moving" in key else x.mean(2)
        if not x.isnan().any(0).all():
            row |= averaged(key, x, w.test_sources, w.seed)
    for key in ("cosine", "l1", "moving_l1", w.lpips_name):
        own, base = scores[key].nanmean(2), copy[key].nanmean(2)
        gain = (
            gained(base, own, w.test_sources, w.seed)
            if key == "cosine"
            else gained(own, base, w.test_sources, w.seed)
        )
        if gain:
            name = "" if key == "cosine" else f"{key}_"
            row |= {f"{name}{k}": gain[k] for k in ("gain", "gain_low", "gain_high")} | {
                f"{name}p": gain["p_wilcoxon"]
            }
    # from one horizon to the next
    steps = (
        [(x[:, 1:].float() - x[:, :-1].float()).abs().mean().item() for x in (shown, oracle)]
        if len(w.horizons) > 1
        else (0, 0)
    )
    moves = steps[0] / steps[1] if steps[1] > 0 else None
    return row | {
        "skill": 1 - ((1 - scores["cosine"]).mean() / (1 - copy["cosine"]).mean()).item(),
        "l1_skill": 1 - (scores["l1"].mean() / copy["l1"].mean()).item(),
        "movement": moves,
        "static": moves is not None and moves < STATIC,
        "best_shift": best_shift(w, z),
    }


def by_group(w, scores, floors, groups):
    """{group: mean cosine, and gains over copy and over the best of `floors` with intervals}. groups: {group: (numbers of test clips, numbers of horizons)}."""

    def of(x, clips, ahead):
        return x["cosine"][:, clips][:, :, ahead].mean(2)

    table = {}
    for name, (clips, ahead) in groups.items():
        own = of(scores, clips, ahead)
        others = {f: of(x, clips, ahead) for f, x in floors.items()}
        few = [w.test_sources[k] for k in clips]
        best = max(others, key=lambda f: others[f].mean())
        table[name] = {
            "cosine": own.mean(),
            "cosine_copy": others["copy"].mean(),
            "floor": others[best].mean(),
            "floor_name": best,
            "clips": len(clips),
        }
        for key, f in (("gain", "copy"), ("gain_over_floor", best)):
            t = paired_test(own, others[f], few, seed=w.seed)
            table[name] |= {key: t["gain"], f"{key}_low": t["gain_low"], f"{key}_high": t["gain_high"]}
    return table


def power_law(sizes, errors):
    """(a, b, c) of error = a + b n^-c, a >= 0, by least squares (scipy); None where there are fewer than four sizes, no error or no fit."""
    from scipy.optimize import curve_fit

    n, y = np.array(sizes, float), np.array(errors, float)
    if len(n) < 4 or y.min() <= 0:
        return None
    try:
        found, _ = curve_fit(
            lambda n, a, b, c: a + b * (n / n.max()) ** -c,
            n,
            y,
            p0=(0.5 * y.min(), 0.5 * y.min(), 0.5),
            bounds=([0, 0, 0], [y.min(), np.inf, 4]),
            maxfev=5000,
        )
    except RuntimeError:
        return None
    return {
        "floor": found[0],
        "scale": found[1],
        "exponent": found[2],
        "formula": f"floor + scale * (n / {int(n.max())}) ** -exponent",
    }


def scaling(w, name, smaller, copy_error):
    """Test error (1 - cosine) of one variant trained on five sizes of the training set, in equally many steps, and the curve through them. smaller: {clips: (trained, read)}."""
    table = {}
    for n, (trained, read) in (smaller | {len(w.split["train"]): (w.trained[name], w.reads[name])}).items():
        error = 1 - latent_cosine(
            foretold(w, name, trained, read, w.split["test"]), w.future[w.split["test"]]
        ).mean(2)
        table[n] = with_bounds("error", bootstrap(error, w.test_sources, seed=w.seed))
    fit = power_law(list(table), [r["error"] for r in table.values()])
    need = None
    if fit and fit["floor"] < copy_error < fit["floor"] + fit["scale"] and fit["exponent"] > 0.01:
        need = max(table) * (fit["scale"] / (copy_error - fit["floor"])) ** (1 / fit["exponent"])
    return {
        "variant": name,
        "copy_error": copy_error,
        "fit": fit,
        "clips_to_reach_copy": need,
        "sizes": table,
    }


def latents(args, started):
    """predict-latents.yaml's content: every variant against every baseline, on the same clips."""
    w = latent_world(args)
    w.trained, w.reads = {}, {}
    for name in w.variants:
        w.trained[name], w.reads[name] = train_variant(w, name)
    asked = [n for n in w.variants if n not in CONTROLS and n != "sanity"]
    # not delta, which is a copy where it learns nothing
    scaled = (
        None
        if args.no_scaling
        else next((n for n in ("causal", "multi", "single", *asked) if n in asked), None)
    )
    train_items = w.split["train"][
        torch.randperm(len(w.split["train"]), generator=torch.Generator().manual_seed(w.seed))
    ]
    smaller = (
        {
            len(few): train_variant(w, scaled, few)
            for few in (train_items[: max(round(f * len(train_items)), 2)] for f in FRACTIONS)
        }
        if scaled
        else {}
    )
    if ranks()[0]:
        return {}
    latent = {
        n: foretold(w, n, w.trained[n], w.reads[n], w.split["test"])
        for n in tqdm(w.variants, desc="foretold", unit="variant")
    }
    val = {
        n: latent_cosine(foretold(w, n, w.trained[n], w.reads[n], w.split["val"]), w.future[w.split["val"]])
        .mean()
        .item()
        for n in w.variants
        if n != "sanity"
    }
    # action is told what happens, so it is no candidate
    best = max((n for n in asked if n != "action"), key=val.get)
    sanity = latent.pop("sanity", None)
    guess, pixels = guesses(w)
    scores, shown = scored_rows(w, guess | latent, pixels)
    copy = scores["copy"]
    own = {name: s["cosine"].mean(2) for name, s in scores.items()}
    floors = [n for n in KNOW_NOTHING if n in scores]
    rows = {
        name: row_of(w, scores[name], z, shown[name], copy, shown["oracle"])
        for name, z in (guess | latent).items()
    }
    for name, p in holm({name: rows[name]["p"] for name in asked}).items():
        rows[name]["p_holm"] = p
        for floor in floors[1:]:
            t = paired_test(own[name], own[floor], w.test_sources, seed=w.seed)
            rows[name] |= {f"gain_over_{floor}{end}": t[f"gain{end}"] for end in ("", "_low", "_high")}
    predicts = [
        n
        for n in asked
        if n != "action"
        and rows[n]["p_holm"] < 0.05
        and all(rows[n][f"gain{over}_low"] > 0 for over in ("", *(f"_over_{f}" for f in floors[1:])))
    ]
    test = w.split["test"]
    motion = (
        w.frames[test][:, [args.past - 1 + h for h in w.horizons]].float()
        - w.frames[test, args.past - 1][:, None].float()
    ).abs().mean((1, 2, 3, 4)) / 255
    order, every = motion.argsort(), list(range(len(w.horizons)))
    quarters = {f"quarter_{k + 1}": (part.tolist(), every) for k, part in enumerate(order.tensor_split(4))}
    cosine = criterion(
        own[best],
        {k: own[k] for k in floors},
        w.test_sources,
        seed=w.seed,
        variant=best,
        layer=w.point,
        options_searched=len(asked),
    )
    beyond = criterion(
        own[best], {k: own[k] for k in ("linear", "flow")}, w.test_sources, seed=w.seed, variant=best
    )
    l1 = criterion(
        scores[best]["l1"].mean(2),
        {
            "copy": copy["l1"].mean(2)[0],
            "raw_copy": copy["raw_l1"].mean(2)[0],
            "blind": scores["blind"]["l1"].mean(2),
        },
        w.test_sources,
        ceiling=scores["oracle"]["l1"].mean().item(),
        better="lower",
        seed=w.seed,
        variant=best,
    )
    learned_rows, beside = [*asked, *(n for n in CONTROLS if n in w.variants)], {k: scores[k] for k in floors}
    result = {
        "stage": "predict",
        "mode": "latents",
        "model": w.index["model"],
        "decoder": w.vae_entry["name"],
        "weights": w.index["weights"],
        "decoder_weights": w.vae_entry["weights"],
        "data": w.data["data"],
        "data_name": w.data["name"],
        "layer": w.point,
        "layers_searched": w.options,
        "variant": best,
        "predicts": ", ".join(predicts) or "none",
        "cosine": rows[best]["cosine"],
        "cosine_low": rows[best]["cosine_low"],
        "cosine_high": rows[best]["cosine_high"],
        "cosine_copy": rows["copy"]["cosine"],
        **{
            k: rows[best][k]
            for k in ("gain", "gain_low", "gain_high", "p_holm", "skill", "static", "best_shift")
        },
        "gain_over_blind": rows[best]["gain_over_blind"],
        "l1": rows[best]["l1"],
        "l1_copy": rows["copy"]["l1"],
        "l1_raw_copy": rows["copy"]["raw_l1"],
        "l1_oracle": rows["oracle"]["l1"],
        "past": args.past,
        "clips": len(test),
        "train_clips": len(w.split["train"]),
        "sources": len(set(w.test_sources)),
        "seeds": args.seeds,
        "sanity_cosine": None if sanity is None else latent_cosine(sanity, w.present[test][:, None]).mean(),
        "sanity_cosine_mean": None
        if sanity is None
        else latent_cosine(
            w.present[w.split["train"]].mean(0).expand_as(w.present[test]), w.present[test]
        ).mean(),
        "criteria": {"prediction": cosine, "beyond_extrapolation": beyond, "prediction_l1": l1},
        "variants": {n: rows[n] for n in learned_rows},
        "baselines": {n: rows[n] for n in guess},
        "horizons": {
            n: by_group(
                w, scores[n], beside, {h: (list(range(len(test))), [k]) for k, h in enumerate(w.horizons)}
            )
            for n in (*learned_rows, *guess)
            if n != "copy"
        },
        "quarters_of_motion": {n: by_group(w, scores[n], beside, quarters) for n in learned_rows},
        "motion": [motion[part].mean() for part in order.tensor_split(4)],
        "val_cosine": val,
        "scaling": scaling(w, scaled, smaller, (1 - copy["cosine"]).mean().item()) if scaled else None,
        "notes": {
            "cosine": "of whole frames' latents, on the mean of the horizons",
            "copy": "the last frame's own latents; raw_ scores are of its pixels, without the autoencoder between",
            "blind": "a variant that reads the last frame's latents and no model",
            "latents": "the latents of the whole past in the model's place",
            "action": "is told what happens, and so is no candidate",
            "untrained": "reads the same network before it learned anything",
            "static": "from one horizon to the next a tenth of what the oracle changes, or less",
            "p": "Wilcoxon's signed rank over means of sources",
            "predicts": f"gain over copy by Holm's p below 0.05, and over {', '.join(floors[1:])} by intervals above zero",
            "moving_l1": "where the truth differs from the last frame by more than 25 of 255",
        },
        "training": {
            n: {
                "steps": [r["steps"] for _, r in t],
                "best_epoch": [r["epoch"] for _, r in t],
                "seconds_per_step": [r["seconds_per_step"] for _, r in t],
            }
            for n, t in w.trained.items()
        },
    }
    if w.lpips_name != "lpips":
        result |= {
            "lpips": None,
            "lpips_reason": "the backbone's published weights are neither in torch's cache nor within reach of the network",
        }
    result["run"] = run_info(
        args,
        started,
        script="predict.py",
        device=f"{w.device.type} ({w.why})",
        dtype=str(w.dtype),
        ranks=ranks()[1],
        **w.how,
    )
    some = torch.tensor([int(order[k]) for k in (len(order) // 2, -len(order) // 4, -1)])
    strips = {
        "past": w.frames[test[some]][:, torch.linspace(0, args.past - 1, len(w.horizons)).round().long()],
        "real": w.frames[test[some]][:, [args.past - 1 + h for h in w.horizons]],
        "copy": pixels["copy"][some],
        "flow": pixels["flow"][some],
        **{n: shown[n][some] for n in ("oracle", *learned_rows)},
    }
    save_pt(
        w.out.with_suffix(".pt"),
        RESULT,
        [w.index["ids"][test[k]] for k in some],
        {"stage": "predict", "mode": "latents", "horizons": w.horizons},
        films={k: x.clone() for k, x in strips.items()},
    )
    latent_picture(result, strips, w.out.with_suffix(".png"))
    save_yaml(w.out, result)
    shutil.rmtree(w.out.with_suffix(".training"), ignore_errors=True)
    return result


def latent_picture(result, strips, path):
    """Three clips by every variant, a column a horizon; gain over copy, by horizon and by quarter of motion; error against training clips."""
    plt = pyplot()
    names, horizons = list(strips), list(result["horizons"][result["variant"]])
    figure = plt.figure(figsize=(17, 0.95 * len(names) + 9), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[0.95 * len(names), 9])
    axes = top.subplots(len(names), 3, squeeze=False)
    for r, name in enumerate(names):
        for c in range(3):
            axis, clip = axes[r][c], strips[name][min(c, len(strips[name]) - 1)].numpy()
            axis.imshow(
                np.concatenate([np.pad(f, ((0, 0), (0, 3), (0, 0)), constant_values=255) for f in clip], 1),
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if c == 0:
                axis.set_ylabel(
                    name,
                    rotation=0,
                    ha="right",
                    va="center",
                    fontweight="bold" if name == result["variant"] else None,
                )
            if r in (0, 1):
                axis.set_title(
                    "the past, from left to right"
                    if r == 0
                    else "ahead by " + ", ".join(map(str, horizons)) + " frames",
                    fontsize=9,
                )
    (a, b), (c, d) = bottom.subplots(2, 2, gridspec_kw={"width_ratios": [3, 2]})
    rows = result["baselines"] | result["variants"]
    shown = [n for n in rows if n not in ("oracle", "copy", "mean_future")]
    value, low, high = (np.array([rows[n][k] for n in shown]) for k in ("gain", "gain_low", "gain_high"))
    colours = [
        "tab:orange"
        if n == result["variant"]
        else "tab:blue"
        if n in result["variants"] and n not in CONTROLS
        else "grey"
        for n in shown
    ]
    a.barh(shown, value, xerr=np.abs(np.stack([low, high]) - value), color=colours)
    a.axvline(0, color="black")
    a.invert_yaxis()
    a.set_title(
        "gain in cosine over copying the last frame (grey: no model; orange: chosen on val)", fontsize=10
    )
    lines = [
        n
        for n in (result["variant"], "delta", "blind", "latents", "flow", "linear")
        if n in result["horizons"]
    ]
    for name in dict.fromkeys(lines):
        t = result["horizons"][name]
        y = np.array([t[h]["gain"] for h in horizons])
        b.errorbar(
            range(len(horizons)),
            y,
            np.abs(np.array([[t[h]["gain_low"], t[h]["gain_high"]] for h in horizons]).T - y),
            label=name,
            marker="o",
            capsize=3,
        )
    b.set(xticks=range(len(horizons)), xticklabels=horizons, xlabel="frames ahead", title="gain by horizon")
    for name in dict.fromkeys(n for n in lines if n in result["quarters_of_motion"]):
        t = list(result["quarters_of_motion"][name].values())
        y = np.array([r["gain"] for r in t])
        c.errorbar(
            range(4),
            y,
            np.abs(np.array([[r["gain_low"], r["gain_high"]] for r in t]).T - y),
            label=name,
            marker="o",
            capsize=3,
        )
    c.set(
        xticks=range(4),
        xticklabels=[f"{m:.3f}" for m in plain(result["motion"])],
        xlabel="quarters of clips by their motion (mean absolute change)",
        title="gain by motion",
    )
    for axis in (b, c):
        axis.axhline(0, color="black", lw=1)
        axis.legend(fontsize=8)
    if s := result["scaling"]:
        n, rows = list(s["sizes"]), list(s["sizes"].values())
        y = np.array(plain([r["error"] for r in rows]))
        d.errorbar(
            n,
            y,
            np.abs(np.array(plain([[r["error_low"], r["error_high"]] for r in rows])).T - y),
            marker="o",
            ls="",
            capsize=3,
            label=s["variant"],
        )
        if s["fit"]:
            x = np.geomspace(min(n), 8 * max(n), 60)
            d.plot(
                x,
                s["fit"]["floor"] + s["fit"]["scale"] * (x / max(n)) ** -s["fit"]["exponent"],
                ls="--",
                label="power law, beyond the data a guess",
            )
        d.axhline(s["copy_error"], color="black", lw=1, label="copy")
        d.set(xscale="log", xlabel="training clips", title="error (1 - cosine) by training clips")
        d.legend(fontsize=8)
    figure.suptitle(
        f"{result['model']} ({result['layer']}) to {result['decoder']}: does anything predict better than copying the last frame? {result['predicts']}",
        fontsize=12,
    )
    figure.savefig(path, dpi=70)
    plt.close(figure)


# ---------------------------------------------------------------- what is refused before a model is loaded


def read_adapter(path, ids, shape):
    """(meta, the adapter's tokens for the clips `ids`, fp32 [n, L, C])."""
    found = load_pt(path, RESULT)
    if found["meta"].get("into") != "prompt":
        refuse(
            f"{path} holds {found['meta'].get('into')}, and an adapter's tokens go in as a prompt does; run adapt.py --mode video"
        )
    x, number = found.get("embeds"), {i: k for k, i in enumerate(found["ids"])}
    if missing := [i for i in ids if i not in number]:
        refuse(
            f"{path} holds nothing for {missing[0]!r} (and {len(missing) - 1} more); it was made of other clips, run adapt.py on --data"
        )
    if x is None or x.ndim != 3 or x.shape[-1] != shape["prompt"]:
        refuse(
            f"{path} holds {'nothing' if x is None else f'{tuple(x.shape)}'}, where --model takes a width of {shape['prompt']}; run adapt.py for this decoder"
        )
    x = x[[number[i] for i in ids]].float()
    if not x.isfinite().all():
        refuse(f"{path} holds {int((~x.isfinite()).sum())} values that are not finite; run adapt.py again")
    return found["meta"], x


# ---------------------------------------------------------------- picture


def draw_strips(figure, strips, words, at, bold):
    """The frames `at` of films {name: uint8 [n, T, H, W, 3]}, a row a name, a column a clip."""
    axes = figure.subplots(len(strips), len(words), squeeze=False)
    for r, (name, films) in enumerate(strips.items()):
        for c, axis in enumerate(axes[r]):
            shown = films[c][at].numpy()
            axis.imshow(
                np.concatenate([np.pad(f, ((0, 0), (0, 3), (0, 0)), constant_values=255) for f in shown], 1),
                interpolation="nearest",
            )
            axis.set(xticks=[], yticks=[], title=words[c] if r == 0 else "")
            axis.spines[:].set_visible(False)
            if c == 0:
                axis.set_ylabel(
                    name, rotation=0, ha="right", va="center", fontweight="bold" if name in bold else None
                )


def picture(result, strips, words, path):
    """Films of a few clips, a row a conditioning, a column a clip, five of their frames from left to right; below, what was measured."""
    plt = pyplot()
    names, count = list(strips), len(words)
    figure = plt.figure(figsize=(5.6 * count, 1.15 * len(names) + 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15 * len(names), 4.6])
    draw_strips(
        top,
        strips,
        words,
        [round(k * (len(strips["real"][0]) - 1) / 4) for k in range(5)],
        ("real", result["conditioning"]),
    )
    top.suptitle(
        f"Films by {result['video']}: five frames each, time from left to right (asked for, where the caption is given: above)",
        fontsize=11,
    )
    table = result["conditionings"]
    rows = [n for n in table if n not in ("real", "frozen")]
    colours = [
        "tab:orange" if n == result["conditioning"] else "lightgrey" if n in NULLS else "tab:blue"
        for n in rows
    ]
    titles = {
        "temporal_consistency": "cosine of adjacent frames\n(right: as in the clips)",
        "temporal_closeness": "closeness to the clip's change\n(right: 1)",
        "decoded_closeness": "to that of its reconstruction\n(right: 1)",
        "temporal_ratio": "motion over the clip's own\n(right: 1)",
        "direction_right": "share that moves the right way\n(right: 1)",
    }
    bottom.suptitle(
        f"The same in numbers, of all clips (orange: {result['conditioning']}; grey: not generated)",
        fontsize=11,
    )
    charts = bottom.subplots(1, len(titles), sharey=True)
    for axis, (name, title) in zip(charts, titles.items(), strict=True):
        axis.set_title(title, fontsize=10)
        if table["real"][name] is None:
            continue
        value, *ends = ([table[n][f"{name}{end}"] for n in rows] for end in ("", "_low", "_high"))
        error = np.nan_to_num(np.abs(np.array(ends) - value), posinf=0)
        axis.barh(rows, value, xerr=error, color=colours, height=0.7)
        axis.axvline(table["real"][name], color="black", label="the clips themselves")
        axis.axvline(table["frozen"][name], color="tab:red", ls="--", lw=2, label="first frame, frozen")
        if name == "temporal_consistency":  # cosines lie close together
            axis.set_xlim(min(value) - 0.2 * (1 - min(value)), 1 + 0.02 * (1 - min(value)))
        else:
            axis.set_xlim(-0.01, 1.02 if name != "temporal_ratio" else 1.1 * min(max(*value, 1.0), 5.0))
    charts[0].invert_yaxis()
    bottom.legend(*charts[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- the stage


def pipeline_of(args):
    """(entry of the pipeline, its geometry). Sets the defaults in `args`."""
    entry = find_model(args.model)
    if entry["kind"] != "video":
        refuse(
            f"--model {args.model} is a {entry['kind']}; give tiny-ltx, ltx-video, or the folder of a whole pipeline, with model_index.json"
        )
    positive(args, "steps", "seeds", "batch", "clips", "past", "horizon")
    args.frames = args.frames or entry.get("frames", 9)
    args.size = args.size or entry["clip"]
    shape = geometry(entry)
    args.batch = args.batch or 16
    args.steps = args.steps or entry.get("steps", 6)
    args.guidance = args.guidance or entry.get("guidance", 1.0)
    check_shape(args.frames, args.size, shape, entry["name"])
    return entry, shape


def checked(args):
    """(entry of the pipeline, entry of the judge, conditionings, geometry), refused as far as command line and configurations allow. Sets the defaults in `args`."""
    (entry, shape), judge = pipeline_of(args), find_model(args.judge)
    if judge["kind"] != "encoder" or not judge["type"].startswith("dino"):
        refuse(
            f"--judge {args.judge} is a {judge['kind']} of type {judge['type']}; an encoder of DINO's kind is needed, say tiny-dinov2 or dinov2-b"
        )
    names = (
        list(dict.fromkeys(args.conditionings.split(",")))
        if args.conditionings
        else [n for n in CONDITIONINGS if n != "adapter" or args.adapter]
    )
    for name in names:
        known(name, CONDITIONINGS, "conditioning")
    if ("adapter" in names) != bool(args.adapter):
        refuse("the conditioning adapter and a file --adapter go together; give both or neither")
    try:
        args.strengths = sorted({float(s) for s in str(args.strengths).split(",") if s})
    except ValueError:
        refuse(f"--strengths {args.strengths} are not numbers with commas between")
    if args.strengths and not 0 <= args.strengths[0] <= args.strengths[-1] <= 1:
        refuse(f"--strengths {','.join(f'{s:g}' for s in args.strengths)} leave the range from 0 to 1")
    return entry, judge, names, shape


def opened(entry, shape, unit, steps, words):
    """(pipeline, the empty prompt's tokens [K, C], (embeddings, mask) of words, LTXConditionPipeline, its time steps) for films of shape (T, H, W)."""
    model = load_video_pipeline(entry, *choose_device()[:2])[0]
    if model.text_encoder is None:
        refuse(
            f"{entry['path']} has no text encoder, and the empty prompt, too, has to be encoded; copy the whole checkpoint"
        )
    embeds, mask = encoded(model, [""])
    latent = (shape[0] - 1) // unit["time"] + 1, shape[1] // unit["space"], shape[2] // unit["space"]
    return model, embeds[0][mask[0].bool()], encoded(model, words), *sampler(model, steps, math.prod(latent))


def kept(folder, ids, wanted, load, make):
    """{part: {films: uint8 [n, T, H, W, 3], mapped from disk, seconds: what making them took, ...}}. wanted: {part: settings}. Parts of the same settings and clips that are in the folder are
    kept; the others are made by make(part, *load())."""

    def there(part):
        found = load_pt(folder / f"{part}.pt", RESULT) if (folder / f"{part}.pt").is_file() else None
        return found if found and found["meta"] == wanted[part] and found["ids"] == ids else None

    wanted = plain(wanted)
    todo = [part for part in wanted if not there(part)]
    pipeline = load() if todo else None
    for part in tqdm(todo, desc="films", unit="part"):
        began = time.time()
        new = make(part, *pipeline)
        # without the frames that were shown
        save_pt(
            folder / f"{part}.pt", RESULT, ids, wanted[part], films=new.clone(), seconds=time.time() - began
        )
    return {part: there(part) for part in wanted}


def made(entry, folder, parts, settings, items, adapter, batch):
    """({part: films uint8 [n, T, H, W, 3]}, seconds that making them took) of parts {name: (conditioning, strength, number of the draw)}, and `vae`, the clips' reconstruction."""
    ids = [i["id"] for i in items]
    real = torch.stack([i["frames"] for i in items])
    held = adapter and adapter[1]
    shape = real.shape[1:4]

    def film(part, model, empty, words, run, timesteps):
        if part == "vae":
            return decode_films(model.vae, encode_films(model.vae, real, batch), batch)
        name, strength, draw = parts[part]
        places, says = CONDITIONINGS[name]
        shown = (
            [(0, real)]
            if places == "all"
            else [(k, real[:, k : k + 1]) for k in (round(f * (shape[0] - 1)) for f in places)]
        )
        prompt = words if says == "caption" else unprompted(empty, len(ids))
        if says == "adapter":
            tokens = held.to(empty)
            prompt = towards(empty, tokens, strength), empty.new_ones(tokens.shape[:2])
            strength = 1.0  # of the frame
        return films(
            run,
            timesteps,
            ids,
            shape,
            shown,
            prompt,
            settings["seed"] + draw,
            strength,
            batch,
            settings["guidance"],
            empty,
        )

    wanted = {
        part: settings | {"job": job} | ({} if job and job[0] == "adapter" else {"adapter": None})
        for part, job in {"vae": None, **parts}.items()
    }
    found = kept(
        folder,
        ids,
        wanted,
        lambda: opened(
            entry, shape, settings["geometry"], settings["steps"], [caption(i) or "" for i in items]
        ),
        film,
    )
    return {part: x["films"] for part, x in found.items()}, sum(
        x["seconds"] for part, x in found.items() if part != "vae"
    )


def load_judge(entry, device, dtype):
    """look(pictures uint8 [n, H, W, 3]) -> patch tokens [n, h, w, D] of the frozen encoder by which frames are compared."""
    return functools.partial(judge_tokens, *load_encoder(entry, device, dtype), entry["clip"], device=device)


def three_of(going, ids):
    """Numbers of three clips to show: evenly from those in which something goes somewhere, else from all."""
    numbers = going or list(range(len(ids)))
    return numbers[:: max(len(numbers) // 3, 1)][:3]


def about(mode, entry, judge, data, model=None, weights=None):
    """The first lines of the YAML: what made the films, of which data, and what judged them."""
    return {
        "stage": "predict",
        "mode": mode,
        "model": model,
        "video": entry["name"],
        "video_weights": entry["weights"],
        "weights": weights or entry["weights"],
        "data": data["data"],
        "data_name": data["name"],
        "judge": judge["name"],
        "judge_weights": judge["weights"],
    }


def write_films(out, shown, items, args, entry, data, model, conditioning, acts, **more):
    """films/ beside `out`: films {name: uint8 [n, T, H, W, 3]} of the clips `items` as a data folder. acts: what happens in train clips, of which the commonest is recorded."""
    write_items(
        out.parent / "films",
        (
            item | {"id": f"{item['id']}/{n}", "frames": x[k].clone(), "conditioning": n}
            for n, x in shown.items()
            for k, item in enumerate(items)
        ),
        {
            "name": f"{data['name']}-films",
            "source_kind": "films",
            "data": data["data"],
            "seed": args.seed,
            "data_path": str(args.data),
            "model": model,
            "video": entry["name"],
            "video_weights": entry["weights"],
            "conditioning": conditioning,
            "commonest": max(sorted(set(acts)), key=acts.count) if acts else None,
        }
        | more,
    )


def settings_of(args, entry, geometry, dtype, clips, words, *more):
    """What films are made with and of; if anything of it is another, they are made again. more: names of further arguments."""
    return {
        "video": [entry["name"], fingerprint(entry["path"]), fingerprint(autoencoder_of(entry)["path"])],
        "geometry": geometry,
        "steps": args.steps,
        "guidance": args.guidance,
        "seed": args.seed,
        **{k: getattr(args, k) for k in more},
        "dtype": str(dtype),
        **DECODE,
        "clips": digest(clips.numpy().tobytes()),
        "words": digest(str(words).encode()),
    }


def coherence(args, started):
    """predict-coherence.yaml's content, and what stands beside it."""
    entry, judge_entry, names, shape = checked(args)
    every, data = load_items(args.data)
    items = clips_of(every, "test")[: args.clips]
    if not items:
        refuse(
            f"{args.data} has no clips in its test split; give a folder with clips, and more of them (data.py moving)"
        )
    items = windows(items, args.frames, args.size)
    ids = [i["id"] for i in items]
    sources = [i["source"] for i in items]
    words = [caption(i) for i in items]
    real = torch.stack([i["frames"] for i in items])
    if any(CONDITIONINGS[n][1] == "caption" for n in names) and None in words:
        refuse(
            f"{ids[words.index(None)]!r} of {args.data} has no text to ask a film for; leave text and first+text out of --conditionings"
        )
    adapter = read_adapter(args.adapter, ids, shape) if args.adapter else None
    model = adapter and adapter[0].get("model")
    args.out = out = Path(
        args.out or f"results/{model or entry['name']}/{Path(args.data).name}/predict-coherence.yaml"
    )
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    settings = settings_of(args, entry, shape, dtype, real, words) | {
        "adapter": adapter and digest(b"prompt" + adapter[1].numpy().tobytes())
    }
    # if it cannot be loaded, better now than after hours of films
    look = load_judge(judge_entry, device, dtype)
    parts = {f"{n}-{s}": (n, 1.0, s) for n in names for s in range(args.seeds)} | {
        f"{n}@{x:g}-0": (n, x, 0) for n in names if n in SWEPT for x in args.strengths if 0 < x < 1
    }
    parts, seconds = made(
        entry, out.with_name(out.stem + "-parts"), parts, settings, items, adapter, args.batch
    )
    parts = {
        "real": real,
        "vae": parts.pop("vae"),
        "frozen": real[:, :1].expand_as(real),
        "shuffled": shuffled(real, args.seed),
    } | parts
    parts["vae_shuffled"] = shuffled(parts["vae"], args.seed)

    way = goers(items, 0)
    going = way[0]
    found = {
        part: measured(x, real[:, 0], look, way)
        | ({"warp_error": warp_error(x)} if part.partition("-")[2] in ("", "0") and "@" not in part else {})
        for part, x in tqdm(parts.items(), desc="measured", unit="part")
    }
    own = {n: found[n] for n in NULLS} | {
        n: {
            k: x if k == "warp_error" else torch.stack([found[f"{n}-{s}"][k] for s in range(args.seeds)])
            for k, x in found[f"{n}-0"].items()
        }
        for n in names
    }

    def row(x):
        return compared(x, own["real"], own["vae"], sources, [sources[k] for k in going], args.seed)

    table = {n: row(x) for n, x in own.items()}
    main = next((n for n in ("adapter", "first+text") if n in names), names[-1])
    swept = {
        n: {
            x: f"{SWEPT[n]}-0" if x == 0 else f"{n}-0" if x == 1 else f"{n}@{x:g}-0"
            for x in sorted({0.0, *args.strengths, 1.0})
        }
        for n in names
        if n in SWEPT
    }
    result = about("coherence", entry, judge_entry, data, model, adapter and adapter[0].get("weights")) | {
        "conditioning": main
    }
    for name, beside in (
        ("temporal_consistency", ("real", "frozen", "shuffled")),
        ("temporal_closeness", ("vae", "frozen", "shuffled")),
        ("decoded_closeness", ("frozen",)),
        ("temporal_ratio", ()),
        ("flicker_ratio", ()),
        ("warp_error", ("real",)),
        ("direction_right", ("real",)),
    ):
        result |= {f"{name}{end}": table[main][f"{name}{end}"] for end in ("", "_low", "_high")} | {
            f"{name}_{b}": table[b][name] for b in beside
        }
    result |= {
        "clips": len(ids),
        "sources": len(set(sources)),
        "direction_clips": len(going),
        "still_clips": int((1 - own["real"]["temporal_consistency"] < NOTHING).sum()),
        "seeds": args.seeds,
        "seeds_are": "draws of noise: nothing is trained here",
        "steps": args.steps,
        "guidance": args.guidance,
        "frames": args.frames,
        "size": args.size,
        "films_seconds": seconds,
        "films_per_second": (len(parts) - len(NULLS)) * len(ids) / max(seconds, 1e-9),
        **judged(own, main, sources, args.seed),
        "conditionings": table,
        "strength": {
            n: {f"{x:g}": row(found[part]) for x, part in rows.items() if part in found}
            for n, rows in swept.items()
        },
        "notes": NOTES,
        "run": run_info(
            args, started, script="predict.py", device=f"{device.type} ({why})", dtype=str(dtype)
        ),
    }

    shown = {"real": real, "frozen": parts["frozen"]} | {n: parts[f"{n}-0"] for n in names}
    taught = [i["direction"] for i in every if "direction" in i and split_of(i["source"]) == "train"]
    write_films(out, shown, items, args, entry, data, model, main, taught)
    few = three_of(going, ids)
    strips = {n: x[few].clone() for n, x in ({"real": real, "vae": parts["vae"]} | shown).items()}
    few_words = [words[k] or ids[k] for k in few]
    save_pt(
        out.with_suffix(".pt"),
        RESULT,
        [ids[k] for k in few],
        {"stage": "predict", "mode": "coherence", "words": few_words},
        films=strips,
    )
    picture(result, strips, few_words, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


# ---------------------------------------------------------------- mode continue: what comes next

# name: (which frames are shown first, what stands in the place of the prompt). The first is the main one:
# nothing tells it the action.
CONTINUATIONS = {
    "past": ("past", "empty"),
    "past+text": ("past", "caption"),
    "first": ("last", "empty"),
    "first+text": ("last", "caption"),
    "text": ("none", "caption"),
}
CONTINUE_NOTES = {
    "temporal_ratio": "of the predicted frames alone, as flicker: the step from the last frame seen, which is real, to a decoded or another picture is no motion, but jump. "
    "What flickers scores high too: of the shuffled future (controls) it is above 1; read it beside l1 and direction_right",
    "moving_l1": "where the truth differs from the last frame seen: only of clips in which something does",
    "best_shift": "the shift of the truth, in frames, at which a row has its lowest l1: above 0 it runs ahead, below 0 it lags",
}


def span(past, frames, r):
    """How many of the last frames a window is shown: the largest r*j+1, as the autoencoder takes them, that is at most `past` and at most half of a film's `frames`, rounded up."""
    return (min(past, (frames + 1) // 2) - 1) // r * r + 1


def continued(shoot, shown, k, horizon):
    """The `horizon` frames after those shown [n, j, H, W, 3] (j may be 0), window by window: uint8 [n, horizon, H, W, 3]. shoot(frames, number of the window) -> films that begin with these
    frames; every window after the first is shown the last k frames so far."""
    x, j, number = shown, shown.shape[1], 0
    while x.shape[1] < j + horizon:
        given = x[:, -k:] if number else x
        x, number = torch.cat([x, shoot(given, number)[:, given.shape[1] :]], 1), number + 1
    return x[:, j : j + horizon]


def reconstructed(vae, clips, most, r, batch):
    """The last `most` frames of clips [n, T, H, W, 3] through the autoencoder, which takes r*j+1 frames: at least one before them is added, the clip's first repeated if it has none."""
    at = torch.arange(clips.shape[1] - 1 - -(-most // r) * r, clips.shape[1]).clamp(min=0)
    return decode_films(vae, encode_films(vae, clips[:, at], batch), batch)[:, -most:]


def asked_clips(args):
    """(all items, test clips cut to --past + --horizon frames, train clips, index), refused as far as the data alone allow."""
    every, data = load_items(args.data)
    test, train = clips_of(every, "test"), clips_of(every, "train")
    for split, found in (("test", test), ("train", train)):
        if not found:
            refuse(
                f"{args.data} has no clips in its {split} split; give a folder with clips, and more of them (data.py moving)"
            )
    if short := [i for i in train if len(i["frames"]) < args.past + args.horizon]:
        refuse(
            f"{short[0]['id']} has {len(short[0]['frames'])} frames, {args.past + args.horizon} are needed; give a smaller --past or --horizon, or longer clips"
        )
    return (
        every,
        windows(test[: args.clips], args.past + args.horizon, args.size, "--past or --horizon"),
        train,
        data,
    )


def named(items, path, why):
    """(ids, sources, captions, frames uint8 [n, T, H, W, 3]) of clips. why: what each needs a caption for, or None."""
    ids, words = [i["id"] for i in items], [caption(i) for i in items]
    if why and None in words:
        refuse(f"{ids[words.index(None)]!r} of {path} has no text to ask a film for, and {why}")
    return ids, [i["source"] for i in items], words, torch.stack([i["frames"] for i in items])


def continuation(args, started):
    """Mode continue: predict-continue.yaml's content, and what stands beside it."""
    entry, judge_entry, _, unit = checked(args)
    names = list(dict.fromkeys(args.continuations.split(",")))
    for name in names:
        known(name, CONTINUATIONS, "continuation")
    k, r = span(args.past, args.frames, unit["time"]), unit["time"]
    if k == 1 < args.past and any(CONTINUATIONS[n][0] == "past" for n in names):
        refuse(
            f"--past {args.past} shows {entry['name']} one frame: its autoencoder takes {r}j+1, and a film of --frames {args.frames} is shown half of them at most; give --past {r + 1} "
            "and longer --frames if need be, or leave past and past+text out of --continuations"
        )
    every, items, train, data = asked_clips(args)
    asking = [n for n in names if CONTINUATIONS[n][1] == "caption"]
    ids, sources, words, clips = named(
        items,
        args.data,
        f"{' and '.join(asking)} of --continuations ask for one; give others" if asking else None,
    )
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/predict-continue.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    look = load_judge(judge_entry, device, dtype)
    past, horizon, shape = args.past, args.horizon, (args.frames, args.size, args.size)
    seen = clips[:, :past]
    settings = settings_of(args, entry, unit, dtype, clips, words, "frames", "past", "horizon")
    jobs = {"vae": None} | {f"{n}-{s}": (n, s) for n in names for s in range(args.seeds)}

    def film(part, model, empty, captions, run, timesteps):
        if part == "vae":
            return reconstructed(model.vae, clips, horizon, unit["time"], args.batch)
        (places, says), draw = CONTINUATIONS[jobs[part][0]], jobs[part][1]
        prompt = captions if says == "caption" else unprompted(empty, len(ids))
        first = {"past": k, "last": 1, "none": 0}[places]

        def shoot(given, number):
            return films(
                run,
                timesteps,
                ids,
                shape,
                [(0, given)] if given.shape[1] else [],
                prompt,
                f"{args.seed + draw} {number}",
                batch=args.batch,
                # away from the empty prompt nothing leads but words
                guidance=args.guidance if says == "caption" else 1.0,
                empty=empty,
            )

        return continued(shoot, seen[:, past - first :], k, horizon)

    made = kept(
        out.with_name(out.stem + "-parts"),
        ids,
        {part: settings | {"job": job} for part, job in jobs.items()},
        lambda: opened(entry, shape, unit, args.steps, [w or "" for w in words]),
        film,
    )
    # [draws, n, horizon, H, W, 3]
    ahead = alongside(clips, past, train, made["vae"]["films"]) | {
        n: torch.stack([made[f"{n}-{s}"]["films"] for s in range(args.seeds)]) for n in names
    }
    head, told = film_table(ahead, items, clips, past, look, args.seed)
    whole = {n: torch.cat([clips[:, past - 1 : past], x[0]], 1) for n, x in ahead.items()}
    going = goers(items, past - 1)[0]
    few = three_of(going, ids)
    strips = {n: whole[n][few] for n in ("real", "vae", "copy", "flow", *names)}
    few_words = [words[i] or ids[i] for i in few]
    result = {
        **about("continue", entry, judge_entry, data),
        **head,
        "seeds_are": "draws of noise: nothing is trained here",
        "past": past,
        "horizon": horizon,
        "shown": k,
        "frames": args.frames,
        "size": args.size,
        "steps": args.steps,
        "guidance": args.guidance,
        "films_seconds": sum(made[p]["seconds"] for p in jobs if p != "vae"),
        **told,
        "seconds": {p: x["seconds"] for p, x in made.items()},
        "notes": CONTINUE_NOTES,
        "sheet": sheet(
            {n: x for n, x in strips.items() if n not in names[2:]},
            few_words,
            out.with_name(f"{out.stem}-sheet.png"),
        ),
        "run": run_info(
            args, started, script="predict.py", device=f"{device.type} ({why})", dtype=str(dtype)
        ),
    }

    shown = {n: whole[n] for n in ("real", "vae", "copy", *names)}
    acts = [
        a
        for a in (i.get("action", i.get("direction")) for i in every if split_of(i["source"]) == "train")
        if a is not None
    ]
    write_films(
        out,
        shown,
        [cut(item, past - 1) for item in items],
        args,
        entry,
        data,
        None,
        names[0],
        acts,
        actions=sorted({a for a in (i.get("action", i.get("direction")) for i in every) if a is not None})[
            :200
        ],
    )
    continued_picture(result, strips, few_words, out.with_suffix(".png"))
    animation(
        {n: x for n, x in strips.items() if n in ("real", "copy", "flow", *names[:2])},
        few_words,
        out.with_suffix(".gif"),
    )
    save_yaml(out, result)
    return result


def cut(item, first):
    """The item from frame `first` on: boxes and mask with it."""
    return {
        key: x[first:].clone() if key in ("mask", "boxes") and len(x) == len(item["frames"]) else x
        for key, x in item.items()
    }


def continued_picture(result, strips, words, path):
    """Films of a few clips: the last frame seen and the frames of every horizon, from left to right; below, the error by horizon."""
    plt = pyplot()
    names, count, horizons = list(strips), len(words), list(result["horizons"])
    figure = plt.figure(figsize=(6.6 * count, 1.15 * len(names) + 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1.15 * len(names), 5.2])
    draw_strips(top, strips, words, [0, *horizons], ("real", result["conditioning"]))
    top.suptitle(
        f"What {result['video']} makes of the last {result['shown']} frames, or of the last: from left to right the last frame seen, then {', '.join(f'+{h}' for h in horizons)}",
        fontsize=11,
    )
    bottom.suptitle(
        f"Mean absolute error by horizon, colours in [0, 1], {result['clips']} clips, 95% intervals (grey: not generated; what is not on the chart is higher)",
        fontsize=11,
    )
    colours = dict(
        zip(
            [n for n in result["continuations"] if n not in BASELINES],
            ["black", "tab:orange", "tab:red", "tab:blue", "tab:cyan", "tab:green"],
            strict=False,
        )
    )
    charts = bottom.subplots(1, 3, width_ratios=[1, 1, 0.6])
    for axis, (m, title) in zip(
        charts,
        {"l1": "whole frame", "moving_l1": "where the truth has changed since the last frame seen"}.items(),
        strict=False,
    ):
        for r, n in enumerate(result["horizons"][horizons[0]]):
            value, low, high = (
                np.array([result["horizons"][h][n][f"{m}{end}"] for h in horizons], float)
                for end in ("", "_low", "_high")
            )
            axis.errorbar(
                np.arange(len(horizons)) + 0.03 * (r - 4),
                value,
                yerr=np.nan_to_num(np.maximum([value - low, high - value], 0), posinf=0),
                label=n,
                capsize=2,
                lw=2,
                color=colours.get(n, "0.55"),
                ls="-"
                if n in colours
                else {"copy": "--", "flow": ":", "vae": "-.", "mean": (0, (1, 3)), "nearest": (0, (5, 3))}[n],
            )
        axis.set(
            title=title,
            xlabel="frames after the last one seen",
            xticks=range(len(horizons)),
            xticklabels=horizons,
            ylim=(
                0,
                1.3
                * max(
                    result["horizons"][h][n][f"{m}_high"] or 0
                    for h in horizons
                    for n in ("copy", "vae", result["conditioning"])
                )
                or 1,
            ),
        )
    rows = [
        n
        for n in result["continuations"]
        if n not in ("mean", "copy") and result["continuations"][n]["temporal_ratio"] is not None
    ]
    charts[2].barh(
        rows,
        [result["continuations"][n]["temporal_ratio"] for n in rows],
        color=[colours.get(n, "0.7") for n in rows],
    )
    charts[2].axvline(1, color="black", lw=1)
    charts[2].set_title("motion over the clips' own (right: 1)")
    charts[2].invert_yaxis()
    bottom.legend(
        *charts[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=10,
        handlelength=4,
        frameon=False,
    )
    figure.savefig(path, dpi=80)
    plt.close(figure)


def animation(strips, words, path):
    """Films of a few clips side by side as a GIF: a column a name, a row a clip; the last frame seen, then what was predicted."""
    from PIL import Image, ImageDraw, ImageFont

    clips, frames, side = next(iter(strips.values())).shape[:3]
    side = side * (160 // side) or 160
    bar = 22
    font = ImageFont.load_default(14)
    pages = []
    for t in range(frames):
        page = Image.new("RGB", ((side + 6) * len(strips), bar + clips * (side + bar)), "white")
        pen = ImageDraw.Draw(page)
        for c, (name, x) in enumerate(strips.items()):
            pen.text((c * (side + 6) + 4, 3), name, "black", font)
            for r in range(clips):
                y = bar + r * (side + bar)
                page.paste(
                    Image.fromarray(x[r, t].numpy()).resize((side, side), Image.Resampling.NEAREST),
                    (c * (side + 6) + 3, y),
                )
                if c == 0:
                    pen.text(
                        (4, y + side + 2),
                        f"{'last frame seen' if t == 0 else f'+{t}'}: {words[r]}",
                        "black",
                        font,
                    )
        pages.append(page.quantize(palette=page.quantize(256, Image.Quantize.MAXCOVERAGE)))  # dithered
    pages[0].save(
        path,
        save_all=True,
        append_images=pages[1:],
        duration=[1200, *[200] * (frames - 2), 1200][:frames],
        loop=0,
        optimize=True,
    )


def sheet(strips, words, path):
    """Whole films {name: [clips, T, H, W, 3]} pixel for pixel in one PNG: clip after clip a row a film, a column a frame, so that a page can show any frame. Returns where they lie in it."""
    from PIL import Image

    rows = torch.stack(list(strips.values()), 1).flatten(0, 1)  # [clips * films, T, H, W, 3]
    count, frames, high, wide = rows.shape[:4]
    Image.fromarray(rows.transpose(1, 2).reshape(count * high, frames * wide, 3).numpy()).save(path)
    return {"file": path.name, "clips": words, "films": list(strips), "frames": frames, "size": high}


# ---------------------------------------------------------------- mode futures: several, and which of them is believed

EXPERTS = {
    "semantics": "{}",
    "motion": "{}, steady continuous motion",
    "permanence": "{}, objects keep their shape and colour",
    "physics": "{}, natural physics",
}
COUNTS = 1, 2, 4, 6  # candidates, of the curve
FUTURES_NOTES = {
    "one": "the first candidate: the past and an empty prompt, as mode continue makes it; every other has noise of its own, a prompt and a guidance",
    "oracle": "picks the lowest error, of each measure, and so knows the outcome: what picking could reach at most; worst: the highest",
    "random": "the mean over all candidates",
    "oracle_share": "of the error that the oracle saves beside the first candidate, how much a picker does",
    "truth_preferred": "the real future through the autoencoder among the candidates: in how many pairs a belief, which does not know it, is higher of it; 0.5 is chance",
    "cycle": "the model is shown a film that runs backwards, with an empty prompt: worth what the model knows of such films. Compared are frames seen, shown are the candidate's own",
}


def candidates(n, high):
    """[(expert or None, guidance, number of the draw)]: the plain one, then the experts in turn, without guidance, with, and so on; each with noise of its own."""
    names = list(EXPERTS)
    return [(None, 1.0, 0)] + [
        (names[(i - 1) % len(names)], (1.0, high)[(i - 1) // len(names) % 2], i) for i in range(1, n)
    ]


def undone(back, seen, k):
    """How far a film that continues backwards in time, `back` [n, m, H, W, 3], ends from the last k frames of `seen` [n, P, H, W, 3]: mean absolute difference [n], colours in [0, 1]."""
    return (back[:, -k:].flip(1).float() - seen[:, -k:].float()).abs().mean((1, 2, 3, 4)).double() / 255


def beliefs(x, seen, carried, more):
    """What speaks for each candidate uint8 [c, n, h, H, W, 3] without the outcome, higher is better: {name: [c, n]}.

    agreement: nearness to the mean of the other candidates; flow: nearness to the optical flow's extrapolation, `carried` [n, h, H, W, 3]; continuity: a first step as large as the steps of the
    frames seen [n, P, H, W, 3]; `more` {name: [c, n]}: beliefs that depend on the candidate alone; mean_rank: the mean of the ranks by all of these.
    """
    from scipy.stats import rankdata

    steps = seen.float().diff(dim=1).abs().mean((1, 2, 3, 4)) if seen.shape[1] > 1 else torch.zeros(len(seen))
    total = sum(y.float() for y in x)
    found = {
        "agreement": torch.stack(
            [-((total - y.float()) / max(len(x) - 1, 1) - y.float()).abs().mean((1, 2, 3, 4)) for y in x]
        ),
        "continuity": torch.stack(
            [-((y[:, 0].float() - seen[:, -1].float()).abs().mean((1, 2, 3)) - steps).abs() for y in x]
        ),
        "flow": torch.stack([-(y.float() - carried.float()).abs().mean((1, 2, 3, 4)) for y in x]),
        **more,
    }
    return found | {
        "mean_rank": torch.from_numpy(np.mean([rankdata(s.numpy(), axis=0) for s in found.values()], axis=0))
    }


def believed(belief):
    """The number [n] of the candidate with the highest belief [c, n]; the first of equals."""
    return torch.from_numpy(belief.numpy().argmax(0))


def picked(errors, x, seen, carried, more, right):
    """{picker: {l1, moving_l1 [n], direction_right [m]}} of the candidate that each picks. errors {measure: [c, n]}; right: ([c, m], numbers of its clips); the rest as for `beliefs`."""
    right, numbers = right
    found = {
        "one": {m: e[0] for m, e in errors.items()} | {"direction_right": right[0]},
        "random": {m: e.mean(0) for m, e in errors.items()} | {"direction_right": right.mean(0)},
    }
    for name, belief in beliefs(x, seen, carried, more).items():
        pick = believed(belief)[None]
        found[name] = {m: e.gather(0, pick)[0] for m, e in errors.items()} | {
            "direction_right": right.gather(0, pick[:, numbers])[0]
        }
    return found | {
        "oracle": {m: e.amin(0) for m, e in errors.items()} | {"direction_right": right.amax(0)},
        "worst": {m: e.amax(0) for m, e in errors.items()} | {"direction_right": right.amin(0)},
    }


def futures(args, started):
    """Mode futures: predict-futures.yaml's content, and its picture."""
    entry, judge_entry, _, unit = checked(args)
    if args.candidates < 2:
        refuse(f"--candidates {args.candidates} leaves nothing to choose from; give 2 or more")
    k, shape = span(args.past, args.frames, unit["time"]), (args.frames, args.size, args.size)
    high = args.guidance if args.guidance > 1 else 2.0
    # as mode continue cuts them, so that both predict from the same moment on
    _, items, _, data = asked_clips(args)
    args.horizon = min(args.horizon, args.frames - k)
    items = [
        i | {key: i[key][: args.past + args.horizon] for key in ("frames", "mask", "boxes") if key in i}
        for i in items
    ]
    ids, sources, words, clips = named(items, args.data, "every expert's prompt is made of it")
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/predict-futures.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    look = load_judge(judge_entry, device, dtype)
    seen = clips[:, : args.past]
    last = clips[:, args.past - 1]
    truth = clips[:, args.past :]
    rows = list(EXPERTS)
    jobs = {f"candidate-{i}": job for i, job in enumerate(candidates(args.candidates, high))}
    every = jobs | {"candidate-truth": None}
    # so many of a candidate's last are shown backwards, all of them its own
    folder, back = out.with_name(out.stem + "-parts"), span(args.horizon, args.frames, unit["time"])

    def film(part, model, empty, prompts, run, timesteps):
        if part == "candidate-truth":
            return reconstructed(model.vae, clips, args.horizon, unit["time"], args.batch)
        if part not in jobs:
            end = load_pt(folder / f"{part.replace('cycle', 'candidate')}.pt", RESULT)["films"][
                :, -back:
            ].flip(1)
            # with the same noise for all candidates
            return films(
                run,
                timesteps,
                ids,
                shape,
                [(0, end)],
                unprompted(empty, len(ids)),
                f"{args.seed} 1",
                batch=args.batch,
            )[:, back:]
        expert, guidance, draw = jobs[part]
        at = slice(len(ids) * rows.index(expert), len(ids) * (rows.index(expert) + 1)) if expert else None
        prompt = tuple(x[at] for x in prompts) if expert else unprompted(empty, len(ids))
        return films(
            run,
            timesteps,
            ids,
            shape,
            [(0, seen[:, -k:])],
            prompt,
            f"{args.seed + draw} 0",
            batch=args.batch,
            guidance=guidance,
            empty=empty,
        )[:, k:]

    settings = settings_of(args, entry, unit, dtype, clips, words, "frames", "past", "horizon")
    wanted = {part: settings | {"job": job, "prompts": EXPERTS} for part, job in every.items()}
    made = kept(
        folder,
        ids,
        wanted
        | {part.replace("candidate", "cycle"): how | {"backwards": back} for part, how in wanted.items()},
        lambda: opened(
            entry,
            shape,
            unit,
            args.steps,
            [template.format(w) for template in EXPERTS.values() for w in words],
        ),
        film,
    )
    films_of = [made[part]["films"] for part in every]
    x = films_of[:-1]

    here = look(last).flatten(1).double()
    close = torch.stack(
        [
            torch.stack(
                [
                    F.cosine_similarity(a[None], look(film).flatten(1).double()).mean()
                    for a, film in zip(here, y, strict=True)
                ]
            )
            for y in tqdm(films_of, desc="measured", unit="part")
        ]
    )
    # [candidates + 1, n]
    more = {
        "consistency": close,
        "cycle": -torch.stack(
            [undone(made[part.replace("candidate", "cycle")]["films"], seen, k) for part in every]
        ),
    }
    way, carried = goers(items, args.past - 1), carried_on(seen, args.horizon)
    right = torch.stack(
        [followed(torch.cat([last[:, None], y], 1), last, way, [args.horizon])[args.horizon] for y in x]
    )
    errors = {m: e.nanmean(2) for m, e in erred(x, truth, last).items() if m != "still_l1"}  # [candidates, n]
    curve = {
        n: picked(
            {m: e[:n] for m, e in errors.items()},
            x[:n],
            seen,
            carried,
            {b: s[:n] for b, s in more.items()},
            (right[:n], way[0]),
        )
        for n in sorted({c for c in COUNTS if c <= len(x)} | {len(x)})
    }
    best, beside = curve[len(x)], beliefs(films_of, seen, carried, more)
    preferred = {
        b: averaged(
            "share",
            ((s[-1] > s[:-1]).double() + (s[-1] == s[:-1]).double() / 2).mean(0)[None],
            sources,
            args.seed,
        )
        for b, s in beside.items()
    }
    rankers = [p for p in best if p not in ("one", "random", "oracle", "worst")]

    def row(scores):
        return {
            k: v
            for m in ("l1", "moving_l1")
            for k, v in averaged(m, scores[m][None], sources, args.seed).items()
        } | averaged(
            "direction_right", scores["direction_right"][None], [sources[i] for i in way[0]], args.seed
        )

    table = {p: row(scores) for p, scores in best.items()}
    gains = {
        m: {p: gained(best[p][m][None], best["one"][m][None], sources, args.seed) for p in best if p != "one"}
        for m in errors
    }
    criteria = {}
    for m, g in gains.items():
        adjusted({p: g[p] for p in rankers})
        room = table["one"][m] - table["oracle"][m] if table["one"][m] is not None else 0
        for p in table:
            table[p][f"{m}_oracle_share"] = (table["one"][m] - table[p][m]) / room if room > 0 else None
        keep = (~errors[m][0].isnan()).nonzero().flatten().tolist()
        if keep:
            criteria[m] = criterion(
                best["mean_rank"][m][keep],
                {p: best[p][m][keep] for p in ("one", "random")},
                [sources[i] for i in keep],
                ceiling=best["oracle"][m][keep].mean().item(),
                better="lower",
                seed=args.seed,
                picker="mean_rank",
                controls={p: best[p][m][keep].mean() for p in (*rankers, "worst") if p != "mean_rank"},
            )
    result = about("futures", entry, judge_entry, data) | {"picker": "mean_rank"}
    for m in ("l1", "moving_l1"):
        prefix = m.removesuffix("l1")
        result |= {f"{m}{end}": table["mean_rank"][f"{m}{end}"] for end in ("", "_low", "_high")} | {
            f"{m}_{p}": table[p][m] for p in ("one", "random", "oracle", "worst")
        }
        result |= gain_columns(f"{prefix}gain_over_one", gains[m]["mean_rank"], "p", "p_holm") | {
            f"{prefix}oracle_share": table["mean_rank"][f"{m}_oracle_share"]
        }
    result |= {
        "direction_right": table["mean_rank"]["direction_right"],
        "direction_right_one": table["one"]["direction_right"],
        **{f"truth_preferred{end}": preferred["mean_rank"][f"share{end}"] for end in ("", "_low", "_high")},
        "clips": len(ids),
        "sources": len(set(sources)),
        "direction_clips": len(way[0]),
        "candidates": len(x),
        "past": args.past,
        "shown": k,
        "horizon": args.horizon,
        "frames": args.frames,
        "size": args.size,
        "steps": args.steps,
        "films_seconds": sum(made[part]["seconds"] for part in jobs),
        "cycle_seconds": sum(y["seconds"] for part, y in made.items() if part not in every),
        "shown_backwards": back,
        "criteria": criteria,
        "gains": gains,
        "pickers": table,
        "truth_preferred_by": preferred,
        "curve": {n: {p: row(s) for p, s in c.items()} for n, c in curve.items()},
        "experts": {
            part: {
                "expert": expert,
                "guidance": g,
                "draw": draw,
                **{m: e[i].nanmean() for m, e in errors.items()},
            }
            for i, (part, (expert, g, draw)) in enumerate(jobs.items())
        },
        "notes": FUTURES_NOTES,
        "run": run_info(
            args, started, script="predict.py", device=f"{device.type} ({why})", dtype=str(dtype)
        ),
    }
    futures_picture(result, out.with_suffix(".png"))
    found = beliefs(x, seen, carried, {b: s[: len(x)] for b, s in more.items()})
    save_pt(
        out.with_suffix(".pt"),
        RESULT,
        ids,
        {"stage": "predict", "mode": "futures"},
        sources=sources,
        candidates=list(jobs),
        beliefs=found,
        errors=errors,
        pick=believed(found["mean_rank"]),
        # from which moment on: whoever compares the films with what happened must begin there
        last=[digest(x.numpy().tobytes()) for x in last],
    )
    save_yaml(out, result)
    return result


def futures_picture(result, path):
    """The error of what every picker picks, by the number of candidates."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    style = {
        "one": ("black", "--"),
        "random": ("0.5", "--"),
        "oracle": ("tab:green", ":"),
        "worst": ("tab:red", ":"),
        "mean_rank": ("tab:orange", "-"),
        "agreement": ("tab:blue", "-"),
        "continuity": ("tab:purple", "-"),
        "flow": ("tab:cyan", "-"),
        "consistency": ("tab:brown", "-"),
        "cycle": ("tab:pink", "-"),
    }
    for axis, (m, title) in zip(
        axes,
        {"l1": "whole frame", "moving_l1": "where the truth has changed since the last frame seen"}.items(),
        strict=True,
    ):
        for p in result["pickers"]:
            colour, line = style[p]
            value = np.array([c[p][m] for c in result["curve"].values()], float)  # None: nan
            axis.plot(
                list(result["curve"]),
                value,
                marker="o",
                label=p,
                color=colour,
                ls=line,
                lw=2.5 if p == "mean_rank" else 1.5,
            )
        axis.set(
            title=title,
            xlabel="candidates",
            ylabel="mean absolute error, colours in [0, 1]",
            xticks=list(result["curve"]),
        )
    figure.suptitle(
        f"Several futures by {result['video']}: the error of the one picked (without the outcome; oracle and worst know it), {result['clips']} clips, {result['horizon']} frames ahead"
    )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=10, frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- mode film: from one's own pictures

SEEN = 256  # pixels: a film whose side is less is enlarged


def save_film(path, x, shape, fps):
    """Frames uint8 [T, S, S, 3] in the shape (height, width) of a picture, as a GIF and then as the H.264 film `path`: (height, width), both even, the shorter of S pixels or of a multiple of S."""
    import av
    from PIL import Image

    side = x.shape[1] * -(-SEEN // x.shape[1])
    # a longer panorama is squeezed
    height, width = (round(side * min(edge / min(shape), 4) / 2) * 2 for edge in shape)
    how = Image.Resampling.NEAREST if side > x.shape[1] else Image.Resampling.BICUBIC
    pages = [Image.fromarray(f.numpy()).resize((width, height), how) for f in x]
    film = io.BytesIO()
    loop = io.BytesIO()
    with av.open(film, "w", format="mp4") as file:
        stream = file.add_stream(
            "libx264", rate=fractions.Fraction(fps).limit_denominator(1000), options={"crf": "18"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on every machine
        for page in pages:
            file.mux(stream.encode(av.VideoFrame.from_image(page)))
        file.mux(stream.encode())
    pages[0].save(loop, "GIF", save_all=True, append_images=pages[1:], duration=1000 / fps, loop=0)
    save_bytes(path.with_suffix(".gif"), loop.getvalue())
    save_bytes(path, film.getvalue())
    return height, width


def filmed(args, started):
    """Mode film: the film, a GIF and a YAML beside it."""
    if not args.image:
        refuse(
            "--mode film begins with pictures; give --image the file of one, or of several in order of time"
        )
    entry, unit = pipeline_of(args)
    middle, n = (args.frames - 1) // 2, len(args.image)
    if n > middle + 1:
        refuse(
            f"--image names {n} pictures, and of a film of --frames {args.frames} the first {middle + 1} may be shown; give fewer pictures or more frames"
        )
    args.fps = args.fps or entry.get("fps", 25)
    if not 0.1 <= args.fps <= 50:
        refuse(f"--fps {args.fps:g} is no rate that a GIF can have; give 0.1 to 50")
    out = Path(args.video or f"results/{entry['name']}/{Path(args.image[0]).stem}.mp4")
    gif, facts = out.with_suffix(".gif"), Path(args.out or out.with_suffix(".yaml"))
    if gif.resolve() in [Path(p).resolve() for p in args.image]:
        refuse(f"--video {out} would put its GIF over the picture {gif}; give it another name")
    pictures = [read_picture(p) for p in args.image]
    for path in (out, gif, facts):
        check_writable(path)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    _, empty, words, run, timesteps = opened(
        entry, (args.frames, args.size, args.size), unit, args.steps, [args.prompt]
    )
    places, began = [round(k * middle / max(n - 1, 1)) for k in range(n)], time.time()
    shown = [(k, frames_of({"frames": p}, args.size)[None]) for k, p in zip(places, pictures, strict=True)]
    x = films(
        run,
        timesteps,
        ["film"],
        (args.frames, args.size, args.size),
        shown,
        words,
        args.seed,
        guidance=args.guidance if args.prompt else 1.0,
        empty=empty,
    )[0]
    height, width = save_film(out, x, pictures[0].shape[1:3], args.fps)
    result = {
        "stage": "predict",
        "mode": "film",
        "video": out,
        "gif": gif,
        "frames": args.frames,
        "seconds": time.time() - began,
        "model": entry["name"],
        "weights": entry["weights"],
        "prompt": args.prompt,
        "fps": args.fps,
        "height": height,
        "width": width,
        "size": args.size,
        "steps": args.steps,
        "guidance": args.guidance,
        "images": args.image,
        "shown_at": places,
        "run": run_info(
            args, started, script="predict.py", device=f"{device.type} ({why})", dtype=str(dtype)
        ),
    }
    save_yaml(facts, result)
    return result


MODES = {
    "coherence": coherence,
    "latents": latents,
    "continue": continuation,
    "futures": futures,
    "film": filmed,
}


def get_args(argv):
    p = parser(__doc__)
    p.add_argument(
        "--mode", help=f"what is asked: {', '.join(MODES)} (default: coherence, with --image film)"
    )
    p.add_argument(
        "--model",
        default="tiny-ltx",
        help="the pipeline: a registry name or a folder with model_index.json (default: %(default)s)",
    )
    p.add_argument(
        "--data", default="data/moving", help="a folder of clips that data.py wrote (default: %(default)s)"
    )
    p.add_argument(
        "--judge",
        default="tiny-dinov2",
        help="the frozen encoder whose features are compared (default: %(default)s)",
    )
    p.add_argument(
        "--adapter", help="what a model's tokens were turned into for this decoder, by clip (adapt.py)"
    )
    p.add_argument(
        "--conditionings",
        help=f"with commas between (default: {', '.join(n for n in CONDITIONINGS if n != 'adapter')}, and adapter where there is one)",
    )
    p.add_argument(
        "--strengths",
        default="0.25,0.5,0.75",
        help=f"between 0 and 1, tried beside these for {' and '.join(SWEPT)} (default: %(default)s)",
    )
    p.add_argument(
        "--horizon",
        type=int,
        default=16,
        help="continue: frames that are predicted; futures: as many of these as one film has (default: %(default)s)",
    )
    p.add_argument(
        "--continuations",
        default=",".join(CONTINUATIONS),
        help="continue: with commas between, the main one first (default: %(default)s)",
    )
    p.add_argument(
        "--candidates",
        type=int,
        default=6,
        help="futures: films of a clip to choose from (default: %(default)s)",
    )
    p.add_argument(
        "--frames",
        type=int,
        help="of a film, the middle ones of a clip (default: the registry's for the pipeline, else 9)",
    )
    p.add_argument(
        "--size",
        type=int,
        help="side in pixels that clips are squashed to (default: the registry's for the pipeline)",
    )
    p.add_argument(
        "--steps", type=int, help="of denoising (default: the registry's for the pipeline, else 6)"
    )
    p.add_argument(
        "--guidance",
        type=float,
        help="classifier-free, away from the empty prompt; 1 is none (default: the registry's for the pipeline, else 1)",
    )
    p.add_argument("--seeds", type=int, help="draws of noise, or of weights (default: 3, for continue 1)")
    p.add_argument("--clips", type=int, help="only so many of the test clips")
    p.add_argument(
        "--batch",
        type=int,
        help="films at a time, which changes no film (default: 16); latents: clips of a training step (default: 32)",
    )
    p.add_argument("--past", type=int, default=8, help="frames that are seen (default: %(default)s)")
    p.add_argument("--features", help="latents: what extract.py wrote of data.py's cut of the past")
    p.add_argument("--last", help="latents: the same of the past's last frame alone")
    p.add_argument(
        "--random",
        help="latents: features of the past by the untrained network (extract.py --random-init), for the control untrained",
    )
    p.add_argument(
        "--vae",
        default="tiny-vae",
        help="latents: the autoencoder whose latents are predicted (default: %(default)s)",
    )
    p.add_argument(
        "--variants",
        help=f"latents: with commas between (default: all that the features allow): {', '.join(VARIANTS)}",
    )
    p.add_argument(
        "--point",
        help="latents: the layer to read (default: the one from which a ridge predicts val clips best)",
    )
    p.add_argument("--epochs", type=int, help=f"latents: at most (default: {TRAINING['epochs']})")
    p.add_argument("--lr", type=float, help=f"latents: peak learning rate (default: {TRAINING['lr']})")
    p.add_argument(
        "--no-scaling", action="store_true", help="latents: leave out the trainings on fewer clips"
    )
    p.add_argument(
        "--image", nargs="+", metavar="FILE", help="film: a picture, or several of one scene in order of time"
    )
    p.add_argument("--prompt", default="", help="film: what happens, in words (default: none)")
    p.add_argument(
        "--video",
        metavar="FILE.mp4",
        help="film: where to write it, and a GIF and a YAML beside it (default: results/<model>/<first picture>.mp4)",
    )
    p.add_argument(
        "--fps", type=float, help="film: frames a second (default: the registry's for the pipeline, else 25)"
    )
    p.add_argument(
        "--out", help="default: results/<model>/<data>/predict-<mode>.yaml; films/ and the parts beside it"
    )
    args = p.parse_args(argv)
    args.mode = args.mode or ("film" if args.image else "coherence")
    if args.seeds is None:
        args.seeds = 1 if args.mode == "continue" else 3
    return args


def main(argv=None):
    args, started = get_args(argv), time.time()
    mode = known(args.mode, MODES, "mode")
    if args.video and (args.mode != "film" or Path(args.video).suffix.lower() != ".mp4"):
        refuse(
            f"--video {args.video} is no place for a film: it says in which .mp4 a film from --image goes, and the pipeline is named by --model"
        )
    if (args.image or args.prompt) and args.mode != "film":
        refuse(f"--image and --prompt are for a film, and not for --mode {args.mode}; leave one of these out")
    result = mode(args, started)
    say(result)
    return result


if __name__ == "__main__":
    main()
