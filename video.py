"""Generate clips with a video model: coherence, continuation, several futures, one's own image.

    python video.py coherence --data data/moving --adapter results/tiny/moving/conditioning-prompt.pt --out results/tiny/moving/video-coherence.yaml
    python video.py continue --data data/future --past 8 --horizon 16 --out results/tiny/future/video-continue.yaml
    python video.py futures --data data/future --candidates 6 --out results/tiny/future/video-futures.yaml
    python video.py animate --image a.jpg --prompt "the red circle moves right" --video out.mp4
    python video.py animate --image a.jpg b.jpg c.jpg --model ltx-video --frames 25

The noise depends only on the clip and the number of the draw, so generated clips differ only in their conditioning.

`coherence` generates the middle --frames of every test clip under --conditionings: none, text (the caption), first (the first frame),
first+text, keyframes (first, middle, last), all (every frame: an upper bound), adapter (the first frame, and --adapter in place of the
prompt). Rows to compare with: the clips themselves (real), their reconstruction (vae), their first frame repeated (frozen), their frames
in random order (shuffled, vae_shuffled). Measures:

    temporal_consistency   mean cosine of adjacent frames' patch tokens in the frozen evaluator; a frozen image scores 1
    temporal_closeness     with d = 1 - temporal_consistency of a generated clip and of its clip: the smaller d / the larger d
    decoded_closeness      the same against the clip's reconstruction
    temporal_ratio         motion energy (mean absolute difference of adjacent frames) generated / real; flicker_ratio: of flicker
    direction_accuracy     share of clips in which the object, followed by its colour, moves in the true direction

`continue` predicts the last --horizon of the middle --past + --horizon frames, by --continuations: past (all past frames), past+text,
first (the last past frame), first+text, text. Baselines: copy, flow, mean and nearest; upper bound: vae. Measures: l1, moving_l1 and still_l1
by horizon, with paired gains over copy and flow, those above, jump, static. `futures` generates --candidates for every
clip's first window and selects one without the outcome: by agreement, continuity, flow, consistency, or the mean of these ranks.
Each writes video-<job>.yaml, .png, and video-<job>-parts/ (cached clips: a second run generates only what is missing). coherence
and continue write generated/ (a data folder of the generated clips). `animate` writes out.mp4 (H.264), out.gif and out.yaml.

Needs claims.py, cogvlm2.py, common.py, ltx.py, media.py, metrics.py, models.py, motion.py, stats.py,
checkpoints.py, models.yaml.
"""

import fractions
import functools
import io
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from checkpoints import fingerprint, seeded
from claims import followed, moving_objects
from common import (
    RESULT,
    caption,
    check_choice,
    check_writable,
    choose_device,
    clips_of,
    digest,
    fail,
    load_items,
    load_pt,
    plain,
    positive,
    print_summary,
    pyplot,
    run_info,
    save_bytes,
    save_pt,
    save_yaml,
    split_of,
    subcommands,
    write_items,
)
from ltx import (
    DECODE_NOISE,
    DECODE_STEP,
    autoencoder_of,
    check_shape,
    decode_generated_clips,
    encode_generated_clips,
    geometry,
    load_video_pipeline,
)
from media import frames_of, open_image
from metrics import evaluator_tokens
from models import find_model, load_encoder
from motion import (
    BASELINES,
    HORIZONS,
    NOTHING,
    STATIC,
    closeness,
    consistency,
    errors_by_draw,
    extrapolate_flow,
    flicker,
    motion_energy,
    motion_row,
    shuffled,
    train_futures,
    windows,
)
from stats import adjusted, averaged, clusters, criterion, gain_columns, gain_of, holm, paired_test, ratio

# ---------------------------------------------------------------- measures of what comes next


def measured(x, first, look, moving):
    """{measure: [n]} of clips x. look: frames [T, H, W, 3] -> tokens [T, h, w, D]; first: real frames [n, H, W, 3] with
    the colours of the objects; moving: of `moving_objects`, for direction_accuracy [m]."""
    scores = {
        "temporal_consistency": torch.cat([consistency(look(clip)[None]) for clip in x]),
        "motion_energy": motion_energy(x),
        "flicker": flicker(x),
    }
    end = x.shape[1] - 1
    return scores | ({"direction_accuracy": followed(x, first, moving, [end])[end]} if moving[0] else {})


def scored(errors, measures, direction_correct, sources, moving_sources, seed):
    """{criteria, gains, continuations, horizons} of errors {row: {measure: [draws, n, horizon]}}, measures {row:
    {measure: [draws, n]}} and direction_correct {row: {h: [draws, m]}}."""
    rows = [n for n in errors if n != "real"]
    names = [n for n in rows if n not in BASELINES]
    overall = {n: {m: x.nanmean(2) for m, x in e.items()} for n, e in errors.items()}
    table = {}
    for n in errors:
        table[n] = {
            k: v for m, x in overall[n].items() for k, v in averaged(m, x, sources).items()
        } | motion_row(measures[n], measures["real"], measures["vae"], sources, moving_sources)
    gains = {
        m: {
            base: adjusted({n: gain_of(overall[n][m], overall[base][m], sources, seed) for n in names})
            for base in ("copy", "flow")
        }
        for m in ("l1", "moving_l1")
    }
    at = {}
    for h in direction_correct["real"]:
        e = {n: {m: x[:, :, h - 1] for m, x in errors[n].items()} for n in rows}
        at[h] = {
            n: {k: v for m in ("l1", "moving_l1") for k, v in averaged(m, e[n][m], sources).items()}
            | averaged("direction_accuracy", direction_correct[n][h], moving_sources)
            for n in rows
        }
        for m in ("l1", "moving_l1"):
            for base in ("copy", "flow"):
                for n, g in adjusted({n: gain_of(e[n][m], e[base][m], sources, seed) for n in names}).items():
                    at[h][n] |= gain_columns(f"{m.removesuffix('l1')}gain_over_{base}", g, "p_holm")
    main, criteria = names[0], {}
    energy = {n: ratio(x["motion_energy"], measures["real"]["motion_energy"]) for n, x in measures.items()}
    if energy["real"] is not None:
        criteria["temporal_ratio"] = criterion(
            energy[main],
            {n: energy[n] for n in ("copy", "mean")},
            sources,
            upper_bound=energy["vae"].mean().item(),
            seed=seed,
            conditioning=main,
            draws=len(energy[main]),
            controls={
                n: energy[n].mean() for n in ("real", "shuffled", "flow", "nearest", *names) if n != main
            },
        )
    for m in ("l1", "moving_l1"):
        keep = (~overall["real"][m][0].isnan()).nonzero().flatten().tolist()
        if keep:
            score = {n: overall[n][m][:, keep] for n in rows}
            criteria[m] = criterion(
                score[main],
                {n: score[n] for n in BASELINES if n != "vae"},
                [sources[i] for i in keep],
                upper_bound=score["vae"].mean().item(),
                better="lower",
                seed=seed,
                conditioning=main,
                draws=len(score[main]),
                controls={n: score[n].mean() for n in names if n != main},
            )
    return {"criteria": criteria, "gains": gains, "continuations": table, "horizons": at}


def headlines(tables, main):
    """Headline scores of the main continuation, scores of baselines, and the gains over these."""
    table, found = tables["continuations"], {}
    for name, beside in (
        ("temporal_ratio", ("vae",)),
        ("l1", ("copy", "flow", "vae")),
        ("moving_l1", ("copy", "flow", "vae")),
        ("decoded_closeness", ("copy", "flow")),
        ("temporal_consistency", ("real", "vae", "copy")),
        ("direction_accuracy", ("real", "vae", "flow")),
    ):
        found |= {f"{name}{end}": table[main][f"{name}{end}"] for end in ("", "_low", "_high")} | {
            f"{name}_{b}": table[b][name] for b in beside
        }
    for m in ("l1", "moving_l1"):
        for base, gains in tables["gains"][m].items():
            found |= gain_columns(
                f"{m.removesuffix('l1')}gain_over_{base}", gains[main], "p", "p_holm", "p_wilcoxon"
            )
    return found


def with_baselines(clips, past, train, vae):
    """{real and baselines: uint8 [1, n, h, H, W, 3]}: frames after the first `past` of clips [n, T, H, W, 3].
    train: items of the train split; vae: the autoencoder's reconstruction of these frames."""
    seen, truth = clips[:, :past], clips[:, past:]
    mean, nearest = train_futures(train, seen, clips.shape[1], clips.shape[2])
    found = {
        "real": truth,
        "copy": seen[:, -1:].expand_as(truth),
        "flow": extrapolate_flow(seen, truth.shape[1]),
        "vae": vae,
        "mean": mean,
        "nearest": nearest,
    }
    return {n: x[None] for n, x in found.items()}


def continuation_table(generated_clips, items, clips, past, look, seed):
    """(headline scalars, {criteria, gains, continuations, horizons}) of generated clips {row: uint8 [draws, n, h, H, W,
    3]} after the first `past` frames of clips [n, T, H, W, 3]. Rows: of `with_baselines`, then continuations, main first."""
    last, truth, sources = clips[:, past - 1], clips[:, past:], [i["source"] for i in items]
    moving, horizons = moving_objects(items, past - 1), [h for h in HORIZONS if h <= truth.shape[1]]
    moving_sources = [sources[i] for i in moving[0]]
    measures = {}
    errors = {}
    direction_correct = {}
    for n, x in tqdm(generated_clips.items(), desc="measured", unit="row"):
        whole = [torch.cat([last[:, None], y], 1) for y in x]
        found = [
            measured(y, last, look, moving)
            | {
                "motion_energy": motion_energy(y[:, 1:]),
                "flicker": flicker(y[:, 1:]),
                "jump": motion_energy(y[:, :2]),
            }
            for y in whole
        ]
        measures[n] = {m: torch.stack([f[m] for f in found]) for m in found[0]}
        found = [followed(y, last, moving, horizons) for y in whole]
        direction_correct[n] = {h: torch.stack([f[h] for f in found]) for h in horizons}
        errors[n] = errors_by_draw(x, truth, last)
    measures["shuffled"] = {"motion_energy": motion_energy(shuffled(truth, seed))[None]}
    tables = scored(errors, measures, direction_correct, sources, moving_sources, seed)
    energy = {n: x["motion_energy"].mean() for n, x in measures.items()}
    for n, row in tables["continuations"].items():
        row["static"] = bool(energy[n] < STATIC * energy["vae"])
    main = next(n for n in generated_clips if n not in ("real", *BASELINES))
    return {
        "conditioning": main,
        **headlines(tables, main),
        "static": tables["continuations"][main]["static"],
        "clips": len(items),
        "sources": len(set(sources)),
        "moving_clips": int((~errors["real"]["moving_l1"].isnan()).any(2).sum()),
        "direction_clips": len(moving[0]),
        "seeds": len(generated_clips[main]),
    }, tables


# name: (given frames, as fractions of the generated clip, or "all"; the prompt)
CONDITIONINGS = {
    "none": ((), "empty"),
    "text": ((), "caption"),
    "first": ((0,), "empty"),
    "first+text": ((0,), "caption"),
    "keyframes": ((0, 0.5, 1), "empty"),
    "all": ("all", "empty"),
    "adapter": ((0,), "adapter"),
}
SWEPT = {"first": "none", "adapter": "first"}  # name: the conditioning that it equals at strength 0
PROMPT_TOKENS = 128  # tokens of a prompt, as LTX-Video's pipelines cut them
DECODE = {"decode_timestep": DECODE_STEP, "decode_noise_scale": DECODE_NOISE}
NULLS = "real", "vae", "frozen", "shuffled", "vae_shuffled"
NOTES = {
    "all": "all true frames are given: an upper bound, not a prediction",
    "temporal_consistency": "a clip with too little motion scores above the real clips, a frozen image 1",
    "strength": "of the first draw; given frames get noise 1 - strength, prompts are blended from empty to the adapter's",
}


# ---------------------------------------------------------------- generated clips


def sampler(pipeline, steps, tokens):
    """(LTXConditionPipeline of the same parts, the time steps of LTXImageToVideoPipeline for `tokens` latent tokens).

    LTXConditionPipeline takes any number of given frames. Its own time steps are half near pure noise and are not
    shifted by the clip's size, as the published scheduler's are.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXConditionPipeline
    from diffusers.pipelines.ltx.pipeline_ltx_image2video import calculate_shift
    from diffusers.utils import logging

    # a scheduler that shifts nothing turns these time steps into the right sigmas; it warns at every batch
    logging.set_verbosity_error()
    scheduler = pipeline.scheduler
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    shift = [scheduler.config.get(k, v) for k, v in defaults.items()]
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=calculate_shift(tokens, *shift))
    run = LTXConditionPipeline(**pipeline.components | {"scheduler": FlowMatchEulerDiscreteScheduler()})
    run.set_progress_bar_config(disable=True)
    return run, scheduler.timesteps.tolist()


def encode_prompts(pipeline, texts):
    """(embeddings [n, L, C], mask [n, L]) of prompts, cut to the longest one."""
    different = list(dict.fromkeys(texts))
    with torch.inference_mode():
        embeds, mask, *_ = pipeline.encode_prompt(
            different, do_classifier_free_guidance=False, max_sequence_length=PROMPT_TOKENS
        )
    rows, longest = [different.index(t) for t in texts], int(mask.sum(1).max())
    return embeds[rows, :longest], mask[rows, :longest]


def empty_prompt(empty, n):
    """(embeddings, mask) of the empty prompt [K, C] for n generated clips."""
    return empty.expand(n, -1, -1), empty.new_ones(n, len(empty))


def repeat_prompt(empty, tokens):
    """The empty prompt [K, C], repeated to the length of tokens [n, L, C]; attention to it does not change."""
    return empty[torch.arange(tokens.shape[1]) % len(empty)].expand_as(tokens)


def blend_prompts(empty, tokens, strength):
    """From the empty prompt (strength 0) to tokens [n, L, C] (1)."""
    return torch.lerp(repeat_prompt(empty, tokens), tokens, strength)


@torch.inference_mode()
def generate_clips(
    run, timesteps, ids, shape, shown, prompt, seed, strength=1.0, batch=16, guidance=1.0, empty=None
):
    """Generated clips uint8 [n, T, H, W, 3], shape (T, H, W), for clips `ids`.

    shown: [(frame number, uint8 [n, k, H, W, 3])], k = 1 or a length that the autoencoder takes; prompt:
    (embeddings [n, L, C], mask [n, L]); guidance above 1: classifier-free (Ho & Salimans 2022), away from the empty
    prompt [K, C]. Given frames get no extra noise (image_cond_noise_scale 0).
    """
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    batches = []
    for at in tqdm(torch.arange(len(ids)).split(batch), desc="generated", unit="batch", leave=False):
        conditions = [
            LTXVideoCondition(
                video=x[at].permute(0, 1, 4, 2, 3).float() / 255, frame_index=k, strength=strength
            )
            for k, x in shown
        ]
        away = {}
        if guidance > 1:
            away = {
                "negative_prompt_embeds": repeat_prompt(empty, prompt[0][at]),
                "negative_prompt_attention_mask": torch.ones_like(prompt[1][at]),
            }
        generators = [seeded(f"{seed} {ids[i]}") for i in at]
        latents = run(
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
            generator=generators,
            output_type="latent",
        ).frames
        batches.append(decode_generated_clips(run.vae, latents.movedim(1, -1), generators))
    return torch.cat(batches)


# ---------------------------------------------------------------- measures of coherence


def closeness_to_others(d, d_real, sources):
    """Mean closeness [seeds, n] of each clip to the generated clips of other sources: a baseline."""
    cluster = clusters(sources)
    weights = (cluster[:, None] != cluster).double()
    return (closeness(d[:, :, None], d_real) * weights).sum(1) / weights.sum(0).clamp(min=1)


def coherence_criteria(measures, main, sources, seed):
    """{criteria, paired gains over the other conditionings} of the main one. measures: {name: {measure: [seeds, n]}}."""
    names, criteria, gains = [n for n in measures if n not in NULLS], {}, {}
    d = {n: 1 - x["temporal_consistency"] for n, x in measures.items()}
    for measure, like, upper_bound, mixed in (
        ("temporal_consistency", None, "real", "shuffled"),
        ("temporal_closeness", "real", "vae", "shuffled"),
        ("decoded_closeness", "vae", "vae", "vae_shuffled"),
    ):
        score = {n: closeness(x, d[like]) if like else 1 - x for n, x in d.items()}
        baselines = {"shuffled": score[mixed]}
        if like:
            baselines["frozen"] = score["frozen"]
            baselines["other_clip"] = closeness_to_others(d[main], d[like], sources)
        criteria[measure] = criterion(
            score[main],
            baselines,
            sources,
            upper_bound=score[upper_bound].mean().item(),
            seed=seed,
            conditioning=main,
            draws=len(score[main]),
            controls={
                n: score[n].mean() for n in ("real", "frozen", *names) if n != main and n not in baselines
            },
        )
        gains[measure] = {
            n: paired_test(score[main], score[n], sources, seed=seed) for n in names if n != main
        }
        for n, p in holm({n: t["p"] for n, t in gains[measure].items()}).items():
            gains[measure][n]["p_holm"] = p
    return {"criteria": criteria | energy_criterion(measures, main, sources), "gains": gains}


def energy_criterion(measures, name, sources):
    """{temporal_ratio: criterion} of the motion energy over that of the real clips, if these move."""
    energy = {
        n: ratio(measures[n]["motion_energy"], measures["real"]["motion_energy"]) for n in (name, *NULLS)
    }
    if energy["real"] is None:
        return {}
    found = criterion(energy[name], {"frozen": energy["frozen"]}, sources, energy["vae"].mean().item())
    return {"temporal_ratio": found | {"conditioning": name, "draws": len(energy[name])}}


# ---------------------------------------------------------------- the adapter's file


def read_adapter(path, ids, shape):
    """(meta, the adapter's tokens for the clips `ids`, fp32 [n, L, C])."""
    found = load_pt(path, RESULT)
    if found["meta"].get("into") != "prompt":
        fail(f"{path} holds {found['meta'].get('into')}, no prompts; run adapt.py prompt")
    x, number = found.get("embeds"), {i: k for k, i in enumerate(found["ids"])}
    if missing := [i for i in ids if i not in number]:
        fail(f"{path} lacks {missing[0]!r} and {len(missing) - 1} more of other clips; run adapt.py prompt")
    if x is None or x.ndim != 3 or x.shape[-1] != shape["prompt"]:
        has = None if x is None else tuple(x.shape)
        fail(f"{path} holds {has}, and --model needs a width of {shape['prompt']}; run adapt.py prompt")
    x = x[[number[i] for i in ids]].float()
    if not x.isfinite().all():
        fail(f"{path} holds {int((~x.isfinite()).sum())} values that are not finite; run adapt.py again")
    return found["meta"], x


# ---------------------------------------------------------------- image


def draw_strips(figure, strips, words, at, bold):
    """Draw the frames `at` of clips {name: uint8 [n, T, H, W, 3]}: one row per name, one column per clip."""
    axes = figure.subplots(len(strips), len(words), squeeze=False)
    for r, (name, clips) in enumerate(strips.items()):
        for c, axis in enumerate(axes[r]):
            shown = np.pad(clips[c][at].numpy(), ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
            axis.imshow(np.concatenate(shown, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=words[c] if r == 0 else "")
            axis.spines[:].set_visible(False)
        weight = "bold" if name in bold else None
        axes[r][0].set_ylabel(name, rotation=0, ha="right", va="center", fontweight=weight)


def draw_chart(result, strips, words, path):
    """Draw five frames of a few clips by conditioning, and the temporal closeness below."""
    plt = pyplot()
    high = 1.15 * len(strips)
    figure = plt.figure(figsize=(5.6 * len(words), high + 3.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[high, 3.5])
    at = [round(k * (len(strips["real"][0]) - 1) / 4) for k in range(5)]
    draw_strips(top, strips, words, at, ("real", result["conditioning"]))
    top.suptitle(f"Clips generated by {result['video']}, with their captions", fontsize=11)
    table = result["conditionings"]
    rows = [n for n in table if n not in ("real", "frozen")]
    value, *ends = ([table[n][f"temporal_closeness{end}"] for n in rows] for end in ("", "_low", "_high"))
    error = np.nan_to_num(np.abs(np.array(ends, float) - value), posinf=0)
    axis = bottom.subplots()
    axis.barh(rows, value, xerr=error)
    axis.set_title("temporal closeness (1: as much change as the real clip)", fontsize=10)
    axis.invert_yaxis()
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- coherence


def pipeline_of(args):
    """(entry of the pipeline, its geometry). Sets the defaults in `args`."""
    entry = find_model(args.model)
    if entry["kind"] != "video":
        fail(f"--model {args.model} is a {entry['kind']}; give tiny-ltx, or a folder with model_index.json")
    positive(args, "steps", "seeds", "batch", "clips", "past", "horizon")
    args.frames = args.frames or entry.get("frames", 9)
    args.size = args.size or entry["clip"]
    shape = geometry(entry)
    args.batch = getattr(args, "batch", None) or 16
    args.steps = args.steps or entry.get("steps", 6)
    args.guidance = args.guidance or entry.get("guidance", 1.0)
    check_shape(args.frames, args.size, shape, entry["name"])
    return entry, shape


def checked(args):
    """(entry of the pipeline, entry of the evaluator, geometry). Sets the defaults in `args`."""
    (entry, shape), evaluator = pipeline_of(args), find_model(args.evaluator)
    if evaluator["kind"] != "encoder" or not evaluator["type"].startswith("dino"):
        fail(f"--evaluator {args.evaluator} is no DINO encoder; give tiny-dinov2 or dinov2-b")
    return entry, evaluator, shape


def conditionings_of(args):
    """The names of the conditionings. Sets `args.strengths` to their numbers."""
    if args.conditionings:
        names = list(dict.fromkeys(args.conditionings.split(",")))
    else:
        names = [n for n in CONDITIONINGS if n != "adapter" or args.adapter]
    for name in names:
        check_choice(name, CONDITIONINGS, "conditioning")
    if ("adapter" in names) != bool(args.adapter):
        fail("the conditioning adapter needs a file --adapter and vice versa; give both or neither")
    try:
        args.strengths = sorted({float(s) for s in args.strengths.split(",") if s})
    except ValueError:
        fail(f"--strengths {args.strengths} are not comma-separated numbers; give such as 0.25,0.5")
    if args.strengths and not 0 <= args.strengths[0] <= args.strengths[-1] <= 1:
        fail(f"--strengths {','.join(f'{s:g}' for s in args.strengths)} are not all from 0 to 1; give others")
    return names


def open_pipeline(entry, shape, unit, steps, words):
    """(pipeline, empty prompt [K, C], (embeddings, mask) of words, LTXConditionPipeline, its time steps)."""
    model = load_video_pipeline(entry, *choose_device()[:2])[0]
    if model.text_encoder is None:
        fail(f"{entry['path']} has no text encoder; copy the whole checkpoint")
    embeds, mask = encode_prompts(model, [""])
    empty, prompts = embeds[0][mask[0].bool()], encode_prompts(model, words)
    latent = (shape[0] - 1) // unit["time"] + 1, shape[1] // unit["space"], shape[2] // unit["space"]
    return model, empty, prompts, *sampler(model, steps, math.prod(latent))


def cached_parts(folder, ids, settings, load, make):
    """{part: {generated_clips: uint8 [n, T, H, W, 3], mapped from disk; seconds}}. settings: {part: settings}. Parts in
    the folder with equal settings and clips are reused; the others are made by make(part, *load())."""

    def cached(part):
        found = load_pt(folder / f"{part}.pt", RESULT) if (folder / f"{part}.pt").is_file() else None
        return found if found and found["meta"] == settings[part] and found["ids"] == ids else None

    settings = plain(settings)
    todo = [part for part in settings if not cached(part)]
    pipeline = load() if todo else None
    for part in tqdm(todo, desc="generated", unit="part"):
        start = time.time()
        clips = make(part, *pipeline).clone()  # without the given frames
        new = {"generated_clips": clips, "seconds": time.time() - start}
        save_pt(folder / f"{part}.pt", RESULT, ids, settings[part], **new)
    return {part: cached(part) for part in settings}


def generate_parts(entry, folder, parts, settings, items, adapter, batch):
    """({part: uint8 [n, T, H, W, 3]}, seconds of generation) of parts {name: (conditioning, strength, draw)}, and `vae`."""
    ids = [i["id"] for i in items]
    real = torch.stack([i["frames"] for i in items])
    embeds = adapter and adapter[1]
    shape = real.shape[1:4]

    def generated_clip(part, model, empty, words, run, timesteps):
        if part == "vae":
            return decode_generated_clips(model.vae, encode_generated_clips(model.vae, real))
        name, strength, draw = parts[part]
        places, text = CONDITIONINGS[name]
        if places == "all":
            shown = [(0, real)]
        else:
            numbers = [round(f * (shape[0] - 1)) for f in places]
            shown = [(k, real[:, k : k + 1]) for k in numbers]
        prompt = words if text == "caption" else empty_prompt(empty, len(ids))
        if text == "adapter":
            tokens = embeds.to(empty)
            prompt = blend_prompts(empty, tokens, strength), empty.new_ones(tokens.shape[:2])
            strength = 1.0  # of the frame
        guidance = settings["guidance"] if text != "empty" else 1.0  # two branches would be alike
        how = settings["seed"] + draw, strength, batch, guidance, empty
        return generate_clips(run, timesteps, ids, shape, shown, prompt, *how)

    part_settings = {
        part: settings | {"job": job} | ({} if job and job[0] == "adapter" else {"adapter": None})
        for part, job in {"vae": None, **parts}.items()
    }
    texts = [caption(i) or "" for i in items]
    load = functools.partial(open_pipeline, entry, shape, settings["geometry"], settings["steps"], texts)
    found = cached_parts(folder, ids, part_settings, load, generated_clip)
    seconds = sum(x["seconds"] for part, x in found.items() if part != "vae")
    return {part: x["generated_clips"] for part, x in found.items()}, seconds


def load_evaluator(entry, device, dtype):
    """look(images uint8 [n, H, W, 3]) -> patch tokens [n, h, w, D] of the frozen evaluator."""
    return functools.partial(
        evaluator_tokens, *load_encoder(entry, device, dtype), entry["clip"], device=device
    )


def examples(moving, ids):
    """Numbers of three clips to show, evenly from those with a moving object, else from all."""
    numbers = moving or list(range(len(ids)))
    return numbers[:: max(len(numbers) // 3, 1)][:3]


def first_lines(mode, entry, evaluator, data, model=None, weights=None):
    """First lines of the YAML: the video model, the data, the evaluator."""
    return {
        "stage": "video",
        "mode": mode,
        "model": model,
        "video": entry["name"],
        "video_weights": entry["weights"],
        "weights": weights or entry["weights"],
        "data": data["data"],
        "data_name": data["name"],
        "evaluator": evaluator["name"],
        "evaluator_weights": evaluator["weights"],
    }


def write_generated_clips(out, shown, items, args, entry, data, model, conditioning, directions, **more):
    """Write generated/ beside `out`: a data folder of clips {name: uint8 [n, T, H, W, 3]}."""

    def generated():
        for name, x in shown.items():
            for k, item in enumerate(items):
                yield item | {"id": f"{item['id']}/{name}", "frames": x[k].clone(), "conditioning": name}

    meta = {"name": f"{data['name']}-generated", "source_kind": "generated", "data": data["data"]}
    meta |= {"seed": args.seed, "data_path": str(args.data), "model": model, "video": entry["name"]}
    meta |= {"video_weights": entry["weights"], "conditioning": conditioning}
    meta["majority"] = max(sorted(set(directions)), key=directions.count) if directions else None
    write_items(out.parent / "generated", generated(), meta | more)


def settings_of(args, entry, geometry, dtype, clips, words, *more):
    """Settings that cached clips must share; with other settings they are generated anew. more: further arguments."""
    return {
        "video": [entry["name"], fingerprint(entry), fingerprint(autoencoder_of(entry))],
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


def run_coherence(args, started):
    """The content of video-coherence.yaml; writes it and the files beside it."""
    entry, evaluator_entry, shape = checked(args)
    names = conditionings_of(args)
    every, data = load_items(args.data)
    items = clips_of(every, "test")[: args.clips]
    if not items:
        fail(f"{args.data} has no clips in its test split; give more clips")
    items = windows(items, args.frames, args.size)
    ids = [i["id"] for i in items]
    sources = [i["source"] for i in items]
    words = [caption(i) for i in items]
    real = torch.stack([i["frames"] for i in items])
    if any(CONDITIONINGS[n][1] == "caption" for n in names) and None in words:
        fail(f"{ids[words.index(None)]!r} has no text; leave text and first+text out of --conditionings")
    adapter = read_adapter(args.adapter, ids, shape) if args.adapter else None
    model = adapter and adapter[0].get("model")
    default = f"results/{model or entry['name']}/{Path(args.data).name}/video-coherence.yaml"
    args.out = out = Path(args.out or default)
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    settings = settings_of(args, entry, shape, dtype, real, words) | {
        "adapter": adapter and digest(b"prompt" + adapter[1].numpy().tobytes())
    }
    # loaded first, so that a failure costs no hours of generation
    look = load_evaluator(evaluator_entry, device, dtype)
    parts = {f"{n}-{s}": (n, 1.0, s) for n in names for s in range(args.seeds)} | {
        f"{n}@{x:g}-0": (n, x, 0) for n in names if n in SWEPT for x in args.strengths if 0 < x < 1
    }
    parts, seconds = generate_parts(
        entry, out.with_name(out.stem + "-parts"), parts, settings, items, adapter, args.batch
    )
    parts = {
        "real": real,
        "vae": parts.pop("vae"),
        "frozen": real[:, :1].expand_as(real),
        "shuffled": shuffled(real, args.seed),
    } | parts
    parts["vae_shuffled"] = shuffled(parts["vae"], args.seed)

    moving = moving_objects(items, 0)
    numbers = moving[0]
    found = {
        part: measured(x, real[:, 0], look, moving)
        for part, x in tqdm(parts.items(), desc="measured", unit="part")
    }
    measures = {n: found[n] for n in NULLS}
    for n in names:
        draws = [found[f"{n}-{s}"] for s in range(args.seeds)]
        measures[n] = {k: torch.stack([x[k] for x in draws]) for k in draws[0]}

    moving_sources = [sources[k] for k in numbers]

    def row(x):
        return motion_row(x, measures["real"], measures["vae"], sources, moving_sources)

    table = {n: row(x) for n, x in measures.items()}
    main = next((n for n in ("adapter", "first+text") if n in names), names[-1])
    swept = {}  # {conditioning: {strength: part}}
    for n in (n for n in names if n in SWEPT):
        between = {x: f"{n}@{x:g}-0" for x in args.strengths if 0 < x < 1}
        swept[n] = {0.0: f"{SWEPT[n]}-0"} | between | {1.0: f"{n}-0"}
    weights = adapter and adapter[0].get("weights")
    result = first_lines("coherence", entry, evaluator_entry, data, model, weights) | {"conditioning": main}
    for name, beside in (
        ("temporal_consistency", ("real", "frozen", "shuffled")),
        ("temporal_closeness", ("vae", "frozen", "shuffled")),
        ("decoded_closeness", ("frozen",)),
        ("temporal_ratio", ()),
        ("flicker_ratio", ()),
        ("direction_accuracy", ("real",)),
    ):
        result |= {f"{name}{end}": table[main][f"{name}{end}"] for end in ("", "_low", "_high")} | {
            f"{name}_{b}": table[b][name] for b in beside
        }
    result |= {"clips": len(ids), "sources": len(set(sources)), "direction_clips": len(numbers)}
    result["still_clips"] = int((1 - measures["real"]["temporal_consistency"] < NOTHING).sum())
    result["seeds_are"] = "draws of noise; nothing is trained"
    result |= {k: getattr(args, k) for k in ("seeds", "steps", "guidance", "frames", "size")}
    result["generated_clips_seconds"] = seconds
    result["generated_clips_per_second"] = (len(parts) - len(NULLS)) * len(ids) / max(seconds, 1e-9)
    result |= coherence_criteria(measures, main, sources, args.seed) | {
        "conditionings": table,
        "strength": {},
    }
    for n, rows in swept.items():
        result["strength"][n] = {f"{x:g}": row(found[part]) for x, part in rows.items() if part in found}
    about = {"device": f"{device.type} ({why})", "dtype": str(dtype)}
    result |= {"notes": NOTES, "run": run_info(args, started, script="video.py", **about)}

    shown = {"real": real, "frozen": parts["frozen"]} | {n: parts[f"{n}-0"] for n in names}
    directions = [i["direction"] for i in every if "direction" in i and split_of(i["source"]) == "train"]
    write_generated_clips(out, shown, items, args, entry, data, model, main, directions)
    few = examples(numbers, ids)
    strips = {n: x[few].clone() for n, x in ({"real": real, "vae": parts["vae"]} | shown).items()}
    few_words = [words[k] or ids[k] for k in few]
    draw_chart(result, strips, few_words, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


# ---------------------------------------------------------------- continue

# name: (given frames, prompt). The first is the main one, and has no text.
CONTINUATIONS = {
    "past": ("past", "empty"),
    "past+text": ("past", "caption"),
    "first": ("last", "empty"),
    "first+text": ("last", "caption"),
    "text": ("none", "caption"),
}
CONTINUE_NOTES = {
    "temporal_ratio": "of the predicted frames alone; the step from the last real frame to the first predicted one is jump. "
    "Flicker scores high too: the shuffled future (controls) is above 1, so read it beside l1 and direction_accuracy",
    "moving_l1": "where the truth differs from the last past frame, in clips where it does",
}


def span(past, frames, r):
    """Number of given frames of a window: the largest r*j+1 up to `past` and half of `frames`, rounded up."""
    return (min(past, (frames + 1) // 2) - 1) // r * r + 1


def continue_clips(shoot, shown, k, horizon):
    """The `horizon` frames after those shown [n, j, H, W, 3] (j may be 0): uint8 [n, horizon, H, W, 3]. shoot(frames,
    window) -> clips that begin with these frames; later windows are given the last k frames so far."""
    x, j, number = shown, shown.shape[1], 0
    while x.shape[1] < j + horizon:
        given = x[:, -k:] if number else x
        x, number = torch.cat([x, shoot(given, number)[:, given.shape[1] :]], 1), number + 1
    return x[:, j : j + horizon]


def reconstructed(vae, clips, most, r):
    """The last `most` frames of clips [n, T, H, W, 3] through the autoencoder, with earlier frames up to r*j+1."""
    at = torch.arange(clips.shape[1] - 1 - -(-most // r) * r, clips.shape[1]).clamp(min=0)
    return decode_generated_clips(vae, encode_generated_clips(vae, clips[:, at]))[:, -most:]


def load_clips(args):
    """(all items, test clips cut to --past + --horizon frames, train clips, index). Fails where clips are missing."""
    every, data = load_items(args.data)
    test, train = clips_of(every, "test"), clips_of(every, "train")
    for split, found in (("test", test), ("train", train)):
        if not found:
            fail(f"{args.data} has no clips in its {split} split; give more clips")
    if short := [i for i in train if len(i["frames"]) < args.past + args.horizon]:
        name, has = short[0]["id"], len(short[0]["frames"])
        fail(f"{name} has {has} frames, {args.past + args.horizon} are needed; lower --past or --horizon")
    test = windows(test[: args.clips], args.past + args.horizon, args.size, "--past or --horizon")
    return every, test, train, data


def ids_and_captions(items, path, why):
    """(ids, sources, captions, frames uint8 [n, T, H, W, 3]) of clips. why: reason to need captions, or None."""
    ids, words = [i["id"] for i in items], [caption(i) for i in items]
    if why and None in words:
        fail(f"{ids[words.index(None)]!r} of {path} has no text, and {why}")
    return ids, [i["source"] for i in items], words, torch.stack([i["frames"] for i in items])


def run_continue(args, started):
    """The content of video-continue.yaml; writes it and the files beside it."""
    entry, evaluator_entry, unit = checked(args)
    names = list(dict.fromkeys(args.continuations.split(",")))
    for name in names:
        check_choice(name, CONTINUATIONS, "continuation")
    k, r = span(args.past, args.frames, unit["time"]), unit["time"]
    if k == 1 < args.past and any(CONTINUATIONS[n][0] == "past" for n in names):
        fail(f"of --past {args.past} one frame is given; use --past {r + 1} and more --frames")
    every, items, train, data = load_clips(args)
    with_text = [n for n in names if CONTINUATIONS[n][1] == "caption"]
    need = f"--continuations {' and '.join(with_text)} need it; give others" if with_text else None
    ids, sources, words, clips = ids_and_captions(items, args.data, need)
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/video-continue.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    look = load_evaluator(evaluator_entry, device, dtype)
    past, horizon, shape = args.past, args.horizon, (args.frames, args.size, args.size)
    seen = clips[:, :past]
    settings = settings_of(args, entry, unit, dtype, clips, words, "frames", "past", "horizon")
    jobs = {"vae": None} | {f"{n}-{s}": (n, s) for n in names for s in range(args.seeds)}

    def generated_clip(part, model, empty, captions, run, timesteps):
        if part == "vae":
            return reconstructed(model.vae, clips, horizon, unit["time"])
        (places, text), draw = CONTINUATIONS[jobs[part][0]], jobs[part][1]
        prompt = captions if text == "caption" else empty_prompt(empty, len(ids))
        first = {"past": k, "last": 1, "none": 0}[places]

        # guidance needs a prompt
        how = {"batch": args.batch, "guidance": args.guidance if text == "caption" else 1.0, "empty": empty}

        def shoot(given, number):
            shown = [(0, given)] if given.shape[1] else []
            seed = f"{args.seed + draw} {number}"
            return generate_clips(run, timesteps, ids, shape, shown, prompt, seed, **how)

        return continue_clips(shoot, seen[:, past - first :], k, horizon)

    part_settings = {part: settings | {"job": job} for part, job in jobs.items()}
    load = functools.partial(open_pipeline, entry, shape, unit, args.steps, [w or "" for w in words])
    parts = cached_parts(out.with_name(out.stem + "-parts"), ids, part_settings, load, generated_clip)
    # [draws, n, horizon, H, W, 3]
    ahead = with_baselines(clips, past, train, parts["vae"]["generated_clips"]) | {
        n: torch.stack([parts[f"{n}-{s}"]["generated_clips"] for s in range(args.seeds)]) for n in names
    }
    head, tables = continuation_table(ahead, items, clips, past, look, args.seed)
    whole = {n: torch.cat([clips[:, past - 1 : past], x[0]], 1) for n, x in ahead.items()}
    moving = moving_objects(items, past - 1)[0]
    few = examples(moving, ids)
    strips = {n: whole[n][few] for n in ("real", "vae", "copy", "flow", *names)}
    few_words = [words[i] or ids[i] for i in few]
    on_sheet = {n: x for n, x in strips.items() if n not in names[2:]}
    result = {
        **first_lines("continue", entry, evaluator_entry, data),
        **head,
        "seeds_are": "draws of noise; nothing is trained",
        "past": past,
        "horizon": horizon,
        "shown": k,
        "frames": args.frames,
        "size": args.size,
        "steps": args.steps,
        "guidance": args.guidance,
        "generated_clips_seconds": sum(parts[p]["seconds"] for p in jobs if p != "vae"),
        **tables,
        "seconds": {p: x["seconds"] for p, x in parts.items()},
        "notes": CONTINUE_NOTES,
        "sheet": sheet(on_sheet, few_words, out.with_name(f"{out.stem}-sheet.png")),
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }

    shown = {n: whole[n] for n in ("real", "vae", "copy", *names)}
    happens = [(split_of(i["source"]), i.get("action", i.get("direction"))) for i in every]
    directions = [a for split, a in happens if split == "train" and a is not None]
    actions = sorted({a for _, a in happens if a is not None})[:200]
    short = [cut(item, past - 1) for item in items]
    write_generated_clips(out, shown, short, args, entry, data, None, names[0], directions, actions=actions)
    draw_continuations(result, strips, few_words, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


def cut(item, first):
    """The item from frame `first` on: boxes and mask with it."""
    return {
        key: x[first:].clone() if key in ("mask", "boxes") and len(x) == len(item["frames"]) else x
        for key, x in item.items()
    }


def draw_continuations(result, strips, words, path):
    """Draw the last past frame and the frame of every horizon, of a few clips, by continuation."""
    plt = pyplot()
    horizons = list(result["horizons"])
    figure = plt.figure(figsize=(6.6 * len(words), 1.15 * len(strips)), layout="constrained")
    draw_strips(figure, strips, words, [0, *horizons], ("real", result["conditioning"]))
    figure.suptitle(f"By {result['video']}: the last past frame, then {horizons} frames ahead", fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def sheet(strips, words, path):
    """Write clips {name: [clips, T, H, W, 3]} into one PNG, a column per frame, for the report. Returns the layout."""
    from PIL import Image

    rows = torch.stack(list(strips.values()), 1).flatten(0, 1)  # [clips * generated clips, T, H, W, 3]
    count, frames, high, wide = rows.shape[:4]
    Image.fromarray(rows.transpose(1, 2).reshape(count * high, frames * wide, 3).numpy()).save(path)
    return {"file": path.name, "clips": words, "generated": list(strips), "frames": frames, "size": high}


# ---------------------------------------------------------------- futures

EXPERTS = {
    "semantics": "{}",
    "motion": "{}, steady continuous motion",
    "permanence": "{}, objects keep their shape and colour",
    "physics": "{}, natural physics",
}
COUNTS = 1, 2, 4, 6  # candidates, of the curve
FUTURES_NOTES = {
    "one": "the first candidate: past frames and an empty prompt, as in video.py continue; the others have other noise, a prompt and a guidance",
    "oracle": "the candidate with the lowest error, an upper bound; worst: with the highest",
    "random": "the mean over all candidates",
    "oracle_share": "reduction of the error of the first candidate, as a share of the oracle's reduction",
    "truth_preferred": "share of candidates that rank below the real future through the autoencoder; 0.5 is chance",
}


def candidates(n, high):
    """[(expert or None, guidance, number of the draw)]: first without prompt, then experts in turn."""
    names = list(EXPERTS)
    return [(None, 1.0, 0)] + [
        (names[(i - 1) % len(names)], (1.0, high)[(i - 1) // len(names) % 2], i) for i in range(1, n)
    ]


def ranking_scores(x, seen, carried, more):
    """{name: [c, n]}, higher is better: scores that rank candidates uint8 [c, n, h, H, W, 3] without the outcome.

    agreement: nearness to the mean of the other candidates; flow: to the extrapolated optical flow [n, h, H, W, 3];
    continuity: a first step as large as those of `seen` [n, P, H, W, 3]; more: further scores {name: [c, n]};
    mean_rank: the mean rank over all of these.
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


def best_candidate(score):
    """The number [n] of the candidate with the highest score [c, n]; the first of equals."""
    return torch.from_numpy(score.numpy().argmax(0))


def selections(errors, x, seen, carried, more, correct):
    """{picker: {l1, moving_l1 [n], direction_accuracy [m]}}. errors: {measure: [c, n]}; correct: ([c, m], clips)."""
    correct, numbers = correct
    found = {
        "one": {m: e[0] for m, e in errors.items()} | {"direction_accuracy": correct[0]},
        "random": {m: e.mean(0) for m, e in errors.items()} | {"direction_accuracy": correct.mean(0)},
    }
    for name, score in ranking_scores(x, seen, carried, more).items():
        pick = best_candidate(score)[None]
        found[name] = {m: e.gather(0, pick)[0] for m, e in errors.items()} | {
            "direction_accuracy": correct.gather(0, pick[:, numbers])[0]
        }
    return found | {
        "oracle": {m: e.amin(0) for m, e in errors.items()} | {"direction_accuracy": correct.amax(0)},
        "worst": {m: e.amax(0) for m, e in errors.items()} | {"direction_accuracy": correct.amin(0)},
    }


def run_futures(args, started):
    """The content of video-futures.yaml; writes it and the files beside it."""
    entry, evaluator_entry, unit = checked(args)
    if args.candidates < 2:
        fail(f"--candidates {args.candidates} is too few to choose from; give 2 or more")
    k, shape = span(args.past, args.frames, unit["time"]), (args.frames, args.size, args.size)
    high = args.guidance if args.guidance > 1 else 2.0
    # cut as in run_continue, so that both predict the same frames
    _, items, _, data = load_clips(args)
    args.horizon = min(args.horizon, args.frames - k)
    items = [
        i | {key: i[key][: args.past + args.horizon] for key in ("frames", "mask", "boxes") if key in i}
        for i in items
    ]
    ids, sources, words, clips = ids_and_captions(
        items, args.data, "every expert's prompt needs it; give clips with text"
    )
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/video-futures.yaml")
    check_writable(out)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    look = load_evaluator(evaluator_entry, device, dtype)
    seen = clips[:, : args.past]
    last = clips[:, args.past - 1]
    truth = clips[:, args.past :]
    rows = list(EXPERTS)
    jobs = {f"candidate-{i}": job for i, job in enumerate(candidates(args.candidates, high))}
    every = jobs | {"candidate-truth": None}
    folder = out.with_name(out.stem + "-parts")

    def generated_clip(part, model, empty, prompts, run, timesteps):
        if part == "candidate-truth":
            return reconstructed(model.vae, clips, args.horizon, unit["time"])
        expert, guidance, draw = jobs[part]
        at = slice(len(ids) * rows.index(expert), len(ids) * (rows.index(expert) + 1)) if expert else None
        prompt = tuple(x[at] for x in prompts) if expert else empty_prompt(empty, len(ids))
        how = {"batch": args.batch, "guidance": guidance, "empty": empty}
        shown = [(0, seen[:, -k:])]
        x = generate_clips(run, timesteps, ids, shape, shown, prompt, f"{args.seed + draw} 0", **how)
        return x[:, k:]

    settings = settings_of(args, entry, unit, dtype, clips, words, "frames", "past", "horizon")
    part_settings = {part: settings | {"job": job, "prompts": EXPERTS} for part, job in every.items()}
    texts = [template.format(w) for template in EXPERTS.values() for w in words]
    load = functools.partial(open_pipeline, entry, shape, unit, args.steps, texts)
    parts = cached_parts(folder, ids, part_settings, load, generated_clip)
    generated_clips_of = [parts[part]["generated_clips"] for part in every]
    x = generated_clips_of[:-1]

    here = look(last).flatten(1).double()
    close = torch.empty(len(generated_clips_of), len(ids), dtype=torch.float64)
    for c, y in enumerate(tqdm(generated_clips_of, desc="measured", unit="part")):
        for i, clip in enumerate(y):
            close[c, i] = F.cosine_similarity(here[i : i + 1], look(clip).flatten(1).double()).mean()
    more = {"consistency": close}  # [candidates + 1, n]
    moving, carried = moving_objects(items, args.past - 1), extrapolate_flow(seen, args.horizon)
    correct = torch.stack(
        [followed(torch.cat([last[:, None], y], 1), last, moving, [args.horizon])[args.horizon] for y in x]
    )
    # [candidates, n]
    errors = {m: e.nanmean(2) for m, e in errors_by_draw(x, truth, last).items() if m != "still_l1"}
    curve = {}
    for n in sorted({c for c in COUNTS if c <= len(x)} | {len(x)}):
        few_errors, few_more = ({m: e[:n] for m, e in these.items()} for these in (errors, more))
        curve[n] = selections(few_errors, x[:n], seen, carried, few_more, (correct[:n], moving[0]))
    best, beside = curve[len(x)], ranking_scores(generated_clips_of, seen, carried, more)
    preferred = {}
    for b, s in beside.items():
        share = ((s[-1] > s[:-1]).double() + (s[-1] == s[:-1]).double() / 2).mean(0)
        preferred[b] = averaged("share", share[None], sources)
    rankers = [p for p in best if p not in ("one", "random", "oracle", "worst")]

    def row(scores):
        found = {}
        for m in ("l1", "moving_l1"):
            found |= averaged(m, scores[m][None], sources)
        accuracy, of_moving = scores["direction_accuracy"][None], [sources[i] for i in moving[0]]
        return found | averaged("direction_accuracy", accuracy, of_moving)

    table = {p: row(scores) for p, scores in best.items()}
    gains = {
        m: {
            p: gain_of(best[p][m][None], best["one"][m][None], sources, args.seed) for p in best if p != "one"
        }
        for m in errors
    }
    criteria = {}
    for m, g in gains.items():
        adjusted({p: g[p] for p in rankers})
        most = table["one"][m] - table["oracle"][m] if table["one"][m] is not None else 0
        for p in table:
            table[p][f"{m}_oracle_share"] = (table["one"][m] - table[p][m]) / most if most > 0 else None
        keep = (~errors[m][0].isnan()).nonzero().flatten().tolist()
        if keep:
            criteria[m] = criterion(
                best["mean_rank"][m][keep],
                {p: best[p][m][keep] for p in ("one", "random")},
                [sources[i] for i in keep],
                upper_bound=best["oracle"][m][keep].mean().item(),
                better="lower",
                seed=args.seed,
                picker="mean_rank",
                controls={p: best[p][m][keep].mean() for p in (*rankers, "worst") if p != "mean_rank"},
            )
    experts = {}
    for i, (part, (expert, g, draw)) in enumerate(jobs.items()):
        experts[part] = {"expert": expert, "guidance": g, "draw": draw}
        experts[part] |= {m: e[i].nanmean() for m, e in errors.items()}
    result = first_lines("futures", entry, evaluator_entry, data) | {"picker": "mean_rank"}
    for m in ("l1", "moving_l1"):
        prefix = m.removesuffix("l1")
        result |= {f"{m}{end}": table["mean_rank"][f"{m}{end}"] for end in ("", "_low", "_high")} | {
            f"{m}_{p}": table[p][m] for p in ("one", "random", "oracle", "worst")
        }
        result |= gain_columns(f"{prefix}gain_over_one", gains[m]["mean_rank"], "p", "p_holm") | {
            f"{prefix}oracle_share": table["mean_rank"][f"{m}_oracle_share"]
        }
    result |= {
        "direction_accuracy": table["mean_rank"]["direction_accuracy"],
        "direction_accuracy_one": table["one"]["direction_accuracy"],
        **{f"truth_preferred{end}": preferred["mean_rank"][f"share{end}"] for end in ("", "_low", "_high")},
        "clips": len(ids),
        "sources": len(set(sources)),
        "direction_clips": len(moving[0]),
        "candidates": len(x),
        "past": args.past,
        "shown": k,
        "horizon": args.horizon,
        "frames": args.frames,
        "size": args.size,
        "steps": args.steps,
        "generated_clips_seconds": sum(parts[part]["seconds"] for part in jobs),
        "criteria": criteria,
        "gains": gains,
        "pickers": table,
        "truth_preferred_by": preferred,
        "curve": {n: {p: row(s) for p, s in c.items()} for n, c in curve.items()},
        "experts": experts,
        "notes": FUTURES_NOTES,
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }
    draw_futures(result, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


def draw_futures(result, path):
    """Draw the error of every picker's selection by the number of candidates."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for p in result["pickers"]:
        value = [c[p]["l1"] for c in result["curve"].values()]
        axis.plot(list(result["curve"]), value, "o-", label=p, lw=2.5 if p == "mean_rank" else 1.5)
    axis.set(title=f"Futures by {result['video']}", xlabel="candidates", ylabel="L1 of the selected one")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- animate

MIN_SIDE = 256  # pixels: smaller generated clips are enlarged


def save_generated_clip(path, x, shape, fps):
    """Write frames uint8 [T, S, S, 3] as GIF and H.264, with an image's aspect ratio `shape`. Returns (height, width)."""
    import av
    from PIL import Image

    side = x.shape[1] * -(-MIN_SIDE // x.shape[1])
    # an aspect ratio above 4 is squeezed to 4
    height, width = (round(side * min(edge / min(shape), 4) / 2) * 2 for edge in shape)
    how = Image.Resampling.NEAREST if side > x.shape[1] else Image.Resampling.BICUBIC
    pages = [Image.fromarray(f.numpy()).resize((width, height), how) for f in x]
    generated_clip = io.BytesIO()
    loop = io.BytesIO()
    with av.open(generated_clip, "w", format="mp4") as file:
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
    save_bytes(path, generated_clip.getvalue())
    return height, width


def run_animate(args, started):
    """Write the clip (mp4), a GIF and a YAML beside it; returns the YAML's content."""
    entry, unit = pipeline_of(args)
    middle, n = (args.frames - 1) // 2, len(args.image)
    if n > middle + 1:
        fail(f"--image names {n} images, but a clip takes the first {middle + 1} at most; give fewer")
    args.fps = args.fps or entry.get("fps", 25)
    if not 0.1 <= args.fps <= 50:
        fail(f"--fps {args.fps:g} is not possible in a GIF; give 0.1 to 50")
    out = Path(args.video or f"results/{entry['name']}/{Path(args.image[0]).stem}.mp4")
    if out.suffix.lower() != ".mp4":
        fail(f"--video {out} is no .mp4; give the file to write, and the pipeline as --model")
    gif, facts = out.with_suffix(".gif"), out.with_suffix(".yaml")
    if gif.resolve() in [Path(p).resolve() for p in args.image]:
        fail(f"--video {out} would overwrite the image {gif}; give another name")
    images = [open_image(p)[None] for p in args.image]
    for path in (out, gif, facts):
        check_writable(path)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    shape = args.frames, args.size, args.size
    _, empty, words, run, timesteps = open_pipeline(entry, shape, unit, args.steps, [args.prompt])
    places, start = [round(k * middle / max(n - 1, 1)) for k in range(n)], time.time()
    shown = [(k, frames_of({"frames": p}, args.size)[None]) for k, p in zip(places, images, strict=True)]
    how = {"guidance": args.guidance if args.prompt else 1.0, "empty": empty}
    x = generate_clips(run, timesteps, ["generated_clip"], shape, shown, words, args.seed, **how)[0]
    height, width = save_generated_clip(out, x, images[0].shape[1:3], args.fps)
    result = {
        "stage": "video",
        "mode": "animate",
        "video": out,
        "gif": gif,
        "frames": args.frames,
        "seconds": time.time() - start,
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
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }
    save_yaml(facts, result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "coherence": "gate 2: does conditioning reduce temporal coherence?",
            "continue": "gate 3: the video model predicts the frames that follow",
            "futures": "gate 3: several futures of each clip, one selected without the outcome",
            "animate": "a clip from one's own images and a prompt",
        },
    )
    for q in jobs.values():
        add = q.add_argument
        add("--model", default="tiny-ltx", help="a registry name or a folder with model_index.json")
        add("--size", type=int, help="side in pixels (default: the registry's)")
        add("--steps", type=int, help="of denoising (default: the registry's, else 6)")
        add("--guidance", type=float, help="classifier-free; 1 is none (default: the registry's, else 1)")
        add("--frames", type=int, help="of a generated clip (default: the registry's, else 9)")
    for name in ("coherence", "continue", "futures"):
        add = jobs[name].add_argument
        add("--data", default="data/moving" if name == "coherence" else "data/future", help="clips")
        add("--evaluator", default="tiny-dinov2", help="the frozen encoder whose features are compared")
        add("--clips", type=int, help="number of test clips (default: all)")
        add("--batch", type=int, help="clips generated at a time (default: 16)")
        add("--out", help=f"default: results/<model>/<data>/video-{name}.yaml")
    add = jobs["coherence"].add_argument
    add("--adapter", help="conditioning-prompt.pt of adapt.py prompt or apply")
    add("--conditionings", help=f"some of (default: all): {', '.join(CONDITIONINGS)}")
    add("--strengths", default="0.25,0.5,0.75", help=f"0 to 1, for {' and '.join(SWEPT)}")
    for name, seeds in (("coherence", 3), ("continue", 1)):
        jobs[name].add_argument("--seeds", type=int, default=seeds, help="draws of noise")
    for name in ("continue", "futures"):
        jobs[name].add_argument("--past", type=int, default=8, help="frames of the past")
    jobs["continue"].add_argument("--horizon", type=int, default=16, help="predicted frames")
    jobs["continue"].add_argument(
        "--continuations", default=",".join(CONTINUATIONS), help="the main one first"
    )
    jobs["futures"].add_argument("--horizon", type=int, default=16, help="predicted frames, at most a window")
    jobs["futures"].add_argument("--candidates", type=int, default=6, help="futures of a clip to choose from")
    add = jobs["animate"].add_argument
    add("--image", nargs="+", metavar="FILE", required=True, help="an image, or several in order of time")
    add("--prompt", default="", help="description of the clip (default: none)")
    add("--fps", type=float, help="frames a second (default: the registry's, else 25)")
    add("--video", metavar="FILE.mp4", help="(default: results/<model>/<first image>.mp4)")
    return p.parse_args(argv)


def main(argv=None):
    args, started = get_args(argv), time.time()
    run = {
        "coherence": run_coherence,
        "continue": run_continue,
        "futures": run_futures,
        "animate": run_animate,
    }
    result = run[args.mode](args, started)
    print_summary(result)
    return result


if __name__ == "__main__":
    main()
