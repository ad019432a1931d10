"""What does the video model make of it: coherence, continuation, several futures, one's own image.

    python video.py coherence --data data/moving --adapter results/tiny/moving/conditioning-prompt.pt --out results/tiny/moving/video-coherence.yaml
    python video.py continue --data data/future --past 8 --horizon 16 --out results/tiny/future/video-continue.yaml
    python video.py futures --data data/future --candidates 6 --out results/tiny/future/video-futures.yaml
    python video.py animate --image a.jpg --prompt "the red circle moves right" --video out.mp4
    python video.py animate --image a.jpg b.jpg c.jpg --model ltx-video --frames 25

The noise depends on the clip and the number of the draw alone, so that generated clips differ in their conditioning and in nothing else.

`coherence`, of the middle --frames of every test clip, by --conditionings: none, text (the caption), first (the first frame),
first+text, keyframes (first, middle, last), all (every frame: an upper bound, no prediction), adapter (the first frame, and what
--adapter holds in place of the prompt). Beside them the clips themselves (real), their reconstruction (vae), their first frame
throughout (frozen), their frames in random order (shuffled, vae_shuffled). Measures:

    temporal_consistency   mean cosine of adjacent frames' patch tokens in the frozen judge; a frozen image scores 1
    temporal_closeness     d = 1 - temporal_consistency: the smaller over the larger of a generated clip's d and its clip's; frozen: 0
    decoded_closeness      the same against the clip's reconstruction
    temporal_ratio         motion energy (mean absolute difference of adjacent frames) generated / real; flicker_ratio: of flicker
    warp_error             mean absolute difference of a frame and its successor warped back along optical flow (Lai et al. 2018)
    direction_right        share in which the object, followed by its colour, moves as in its clip

`continue` predicts the last --horizon of the middle --past + --horizon frames, by continuations: past (the last frames seen), past+text,
first (the last frame), first+text, text. Baselines: copy, flow, mean and nearest; vae is the upper bound. Measures: l1, moving_l1 and
still_l1 by horizon, with paired gains over copy and flow, those above, jump, best_shift, static. `futures` makes --candidates of every
clip's first window and picks one by what is known without the outcome: agreement, continuity, flow, consistency, cycle, and the mean of
these ranks. Each writes video-<job>.yaml, .png, .pt; films/ (a data folder of the generated clips) and video-<job>-parts/ (clips as made:
a second run makes only what is missing). `animate` writes out.mp4 (H.264), out.gif and out.yaml.

Modules, to be copied with it: claims.py, cogvlm2.py, common.py, media.py, metrics.py, models.py, stats.py.
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

from claims import caption, followed, goers
from common import (
    RESULT,
    check_writable,
    choose_device,
    clips_of,
    digest,
    known,
    load_items,
    load_pt,
    plain,
    positive,
    pyplot,
    refuse,
    run_info,
    save_bytes,
    save_pt,
    save_yaml,
    say,
    split_of,
    subcommands,
    write_items,
)
from media import frames_of, grey_of, read_picture
from metrics import (
    BASELINES,
    HORIZONS,
    NOTHING,
    STATIC,
    carried_on,
    closeness,
    compared,
    consistency,
    erred,
    flicker,
    judge_tokens,
    motion_energy,
    remembered,
    running_ahead,
    shuffled,
    windows,
)
from models import (
    DECODE_STEP,
    autoencoder_of,
    check_shape,
    decode_films,
    encode_films,
    find_model,
    fingerprint,
    geometry,
    load_encoder,
    load_video_pipeline,
    seeded,
)
from stats import adjusted, averaged, clusters, criterion, gain_columns, gained, holm, paired_test, ratio

# ---------------------------------------------------------------- measures of what comes next


def measured(x, first, look, going):
    """{measure: [n]} of films. look: frames [T, H, W, 3] -> tokens [T, h, w, D]; first: real frames [n, H, W, 3], in which what goes somewhere has its colour; going: as of goers, and
    `direction_right` is theirs, [m]."""
    found = {
        "temporal_consistency": torch.cat([consistency(look(clip)[None]) for clip in x]),
        "motion_energy": motion_energy(x),
        "flicker": flicker(x),
    }
    end = x.shape[1] - 1
    return found | ({"direction_right": followed(x, first, going, [end])[end]} if going[0] else {})


def scored(errors, own, right, sources, going_sources, seed):
    """{criteria, gains, continuations, horizons} of pixel_errors {row: {measure: [draws, n, horizon]}}, measured {row: {measure: [draws, n]}} and followed {row: {h: [draws, m]}}."""
    rows = [n for n in errors if n != "real"]
    names = [n for n in rows if n not in BASELINES]
    overall = {n: {m: x.nanmean(2) for m, x in e.items()} for n, e in errors.items()}
    table = {}
    for n in errors:
        table[n] = {
            k: v for m, x in overall[n].items() for k, v in averaged(m, x, sources, seed).items()
        } | compared(own[n], own["real"], own["vae"], sources, going_sources, seed)
    gains = {
        m: {
            base: adjusted({n: gained(overall[n][m], overall[base][m], sources, seed) for n in names})
            for base in ("copy", "flow")
        }
        for m in ("l1", "moving_l1")
    }
    at = {}
    for h in right["real"]:
        e = {n: {m: x[:, :, h - 1] for m, x in errors[n].items()} for n in rows}
        at[h] = {
            n: {k: v for m in ("l1", "moving_l1") for k, v in averaged(m, e[n][m], sources, seed).items()}
            | averaged("direction_right", right[n][h], going_sources, seed)
            for n in rows
        }
        for m in ("l1", "moving_l1"):
            for base in ("copy", "flow"):
                for n, g in adjusted({n: gained(e[n][m], e[base][m], sources, seed) for n in names}).items():
                    at[h][n] |= gain_columns(f"{m.removesuffix('l1')}gain_over_{base}", g, "p_holm")
    main, criteria = names[0], {}
    energy = {n: ratio(x["motion_energy"], own["real"]["motion_energy"]) for n, x in own.items()}
    if energy["real"] is not None:
        criteria["temporal_ratio"] = criterion(
            energy[main],
            {n: energy[n] for n in ("copy", "mean")},
            sources,
            ceiling=energy["vae"].mean().item(),
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
                ceiling=score["vae"].mean().item(),
                better="lower",
                seed=seed,
                conditioning=main,
                draws=len(score[main]),
                controls={n: score[n].mean() for n in names if n != main},
            )
    return {"criteria": criteria, "gains": gains, "continuations": table, "horizons": at}


def headlines(told, main):
    """Scores of the main continuation with those of the baselines beside them, and its gains over these."""
    table, found = told["continuations"], {}
    for name, beside in (
        ("temporal_ratio", ("vae",)),
        ("l1", ("copy", "flow", "vae")),
        ("moving_l1", ("copy", "flow", "vae")),
        ("decoded_closeness", ("copy", "flow")),
        ("temporal_consistency", ("real", "vae", "copy")),
        ("direction_right", ("real", "vae", "flow")),
    ):
        found |= {f"{name}{end}": table[main][f"{name}{end}"] for end in ("", "_low", "_high")} | {
            f"{name}_{b}": table[b][name] for b in beside
        }
    for m in ("l1", "moving_l1"):
        for base, gains in told["gains"][m].items():
            found |= gain_columns(
                f"{m.removesuffix('l1')}gain_over_{base}", gains[main], "p", "p_holm", "p_wilcoxon"
            )
    return found


def alongside(clips, past, train, vae):
    """{real, and the baselines: uint8 [1, n, h, H, W, 3]} of what follows the first `past` frames of clips [n, T, H, W, 3]. train: items of the train split; vae: what follows, by the autoencoder."""
    seen, truth = clips[:, :past], clips[:, past:]
    mean, nearest = remembered(train, seen, clips.shape[1], clips.shape[2])
    found = {
        "real": truth,
        "copy": seen[:, -1:].expand_as(truth),
        "flow": carried_on(seen, truth.shape[1]),
        "vae": vae,
        "mean": mean,
        "nearest": nearest,
    }
    return {n: x[None] for n, x in found.items()}


def film_table(films, items, clips, past, look, seed):
    """(headline scalars, {criteria, gains, continuations, horizons}): all that video-continue.yaml says of pixels, from films {row: uint8 [draws, n, h, H, W, 3]} of what follows the first
    `past` frames of clips [n, T, H, W, 3]. Rows: those of `alongside`, then the continuations, the main one first; items: the clips', with what is known of them; look: as of `measured`."""
    from tqdm import tqdm

    last, truth, sources = clips[:, past - 1], clips[:, past:], [i["source"] for i in items]
    way, horizons = goers(items, past - 1), [h for h in HORIZONS if h <= truth.shape[1]]
    going_sources = [sources[i] for i in way[0]]
    own = {}
    errors = {}
    right = {}
    for n, x in tqdm(films.items(), desc="measured", unit="row"):
        whole = [torch.cat([last[:, None], y], 1) for y in x]
        found = [
            measured(y, last, look, way)
            | {
                "motion_energy": motion_energy(y[:, 1:]),
                "flicker": flicker(y[:, 1:]),
                "jump": motion_energy(y[:, :2]),
            }
            for y in whole
        ]
        own[n] = {m: torch.stack([f[m] for f in found]) for m in found[0]}
        found = [followed(y, last, way, horizons) for y in whole]
        right[n] = {h: torch.stack([f[h] for f in found]) for h in horizons}
        errors[n] = erred(x, truth, last)
    own["shuffled"] = {"motion_energy": motion_energy(shuffled(truth, seed))[None]}
    told = scored(errors, own, right, sources, going_sources, seed)
    for n, row in told["continuations"].items():
        row |= {
            "static": bool(own[n]["motion_energy"].mean() < STATIC * own["vae"]["motion_energy"].mean()),
            "best_shift": running_ahead(films[n][0], clips, past),
        }
    main = next(n for n in films if n not in ("real", *BASELINES))
    return {
        "conditioning": main,
        **headlines(told, main),
        **{k: told["continuations"][main][k] for k in ("static", "best_shift")},
        "clips": len(items),
        "sources": len(set(sources)),
        "moving_clips": int((~errors["real"]["moving_l1"].isnan()).any(2).sum()),
        "direction_clips": len(way[0]),
        "seeds": len(films[main]),
    }, told


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
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    shift = [scheduler.config.get(k, v) for k, v in defaults.items()]
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
    errors = []
    for clip in grey:
        own = []
        for a, b in zip(clip, clip[1:], strict=False):
            flow = optical_flow_ilk(a, b, radius=5, num_warp=4)
            own.append(np.abs(a - warp(b, grid + flow, mode="edge")).mean())
        errors.append(np.mean(own))
    return torch.tensor(errors, dtype=torch.float64)


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


# ---------------------------------------------------------------- what is refused before a model is loaded


def read_adapter(path, ids, shape):
    """(meta, the adapter's tokens for the clips `ids`, fp32 [n, L, C])."""
    found = load_pt(path, RESULT)
    if found["meta"].get("into") != "prompt":
        refuse(f"{path} is no adapter's prompt, but holds {found['meta'].get('into')}; run adapt.py prompt")
    x, number = found.get("embeds"), {i: k for k, i in enumerate(found["ids"])}
    if missing := [i for i in ids if i not in number]:
        refuse(f"{path} lacks {missing[0]!r} and {len(missing) - 1} more of other clips; run adapt.py prompt")
    if x is None or x.ndim != 3 or x.shape[-1] != shape["prompt"]:
        has = None if x is None else tuple(x.shape)
        refuse(f"{path} holds {has}, and --model takes a width of {shape['prompt']}; run adapt.py prompt")
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
            shown = np.pad(films[c][at].numpy(), ((0, 0), (0, 0), (0, 3), (0, 0)), constant_values=255)
            axis.imshow(np.concatenate(shown, 1), interpolation="nearest")
            axis.set(xticks=[], yticks=[], title=words[c] if r == 0 else "")
            axis.spines[:].set_visible(False)
        weight = "bold" if name in bold else None
        axes[r][0].set_ylabel(name, rotation=0, ha="right", va="center", fontweight=weight)


def picture(result, strips, words, path):
    """Five frames of a few clips, a row a conditioning, a column a clip; below, the closeness to the clips' own change."""
    plt = pyplot()
    high = 1.15 * len(strips)
    figure = plt.figure(figsize=(5.6 * len(words), high + 3.5), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[high, 3.5])
    at = [round(k * (len(strips["real"][0]) - 1) / 4) for k in range(5)]
    draw_strips(top, strips, words, at, ("real", result["conditioning"]))
    top.suptitle(f"By {result['video']}, from left to right; above, the caption", fontsize=11)
    table = result["conditionings"]
    rows = [n for n in table if n not in ("real", "frozen")]
    value, *ends = ([table[n][f"temporal_closeness{end}"] for n in rows] for end in ("", "_low", "_high"))
    error = np.nan_to_num(np.abs(np.array(ends, float) - value), posinf=0)
    axis = bottom.subplots()
    axis.barh(rows, value, xerr=error)
    axis.set_title("temporal closeness (1: changes as its clip does)", fontsize=10)
    axis.invert_yaxis()
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- coherence


def pipeline_of(args):
    """(entry of the pipeline, its geometry). Sets the defaults in `args`."""
    entry = find_model(args.model)
    if entry["kind"] != "video":
        refuse(f"--model {args.model} is a {entry['kind']}; give tiny-ltx, or a folder with model_index.json")
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
    """(entry of the pipeline, entry of the judge, geometry), refused as far as configurations allow. Sets the defaults in `args`."""
    (entry, shape), judge = pipeline_of(args), find_model(args.judge)
    if judge["kind"] != "encoder" or not judge["type"].startswith("dino"):
        refuse(f"--judge {args.judge} is no encoder of DINO's kind; give tiny-dinov2 or dinov2-b")
    return entry, judge, shape


def conditionings_of(args):
    """The names of the conditionings. Sets `args.strengths` to their numbers."""
    if args.conditionings:
        names = list(dict.fromkeys(args.conditionings.split(",")))
    else:
        names = [n for n in CONDITIONINGS if n != "adapter" or args.adapter]
    for name in names:
        known(name, CONDITIONINGS, "conditioning")
    if ("adapter" in names) != bool(args.adapter):
        refuse("the conditioning adapter and a file --adapter go together; give both or neither")
    try:
        args.strengths = sorted({float(s) for s in args.strengths.split(",") if s})
    except ValueError:
        refuse(f"--strengths {args.strengths} are not numbers with commas between")
    if args.strengths and not 0 <= args.strengths[0] <= args.strengths[-1] <= 1:
        refuse(f"--strengths {','.join(f'{s:g}' for s in args.strengths)} leave the range from 0 to 1")
    return names


def opened(entry, shape, unit, steps, words):
    """(pipeline, the empty prompt's tokens [K, C], (embeddings, mask) of words, LTXConditionPipeline, its time steps) for films of shape (T, H, W)."""
    model = load_video_pipeline(entry, *choose_device()[:2])[0]
    if model.text_encoder is None:
        refuse(f"{entry['path']} has no text encoder; copy the whole checkpoint")
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
        if places == "all":
            shown = [(0, real)]
        else:
            numbers = [round(f * (shape[0] - 1)) for f in places]
            shown = [(k, real[:, k : k + 1]) for k in numbers]
        prompt = words if says == "caption" else unprompted(empty, len(ids))
        if says == "adapter":
            tokens = held.to(empty)
            prompt = towards(empty, tokens, strength), empty.new_ones(tokens.shape[:2])
            strength = 1.0  # of the frame
        seed, guidance = settings["seed"] + draw, settings["guidance"]
        return films(run, timesteps, ids, shape, shown, prompt, seed, strength, batch, guidance, empty)

    wanted = {
        part: settings | {"job": job} | ({} if job and job[0] == "adapter" else {"adapter": None})
        for part, job in {"vae": None, **parts}.items()
    }
    texts = [caption(i) or "" for i in items]
    load = functools.partial(opened, entry, shape, settings["geometry"], settings["steps"], texts)
    found = kept(folder, ids, wanted, load, film)
    seconds = sum(x["seconds"] for part, x in found.items() if part != "vae")
    return {part: x["films"] for part, x in found.items()}, seconds


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
        "stage": "video",
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


def run_coherence(args, started):
    """video-coherence.yaml's content, and what stands beside it."""
    entry, judge_entry, shape = checked(args)
    names = conditionings_of(args)
    every, data = load_items(args.data)
    items = clips_of(every, "test")[: args.clips]
    if not items:
        refuse(f"{args.data} has no clips in its test split; give more clips")
    items = windows(items, args.frames, args.size)
    ids = [i["id"] for i in items]
    sources = [i["source"] for i in items]
    words = [caption(i) for i in items]
    real = torch.stack([i["frames"] for i in items])
    if any(CONDITIONINGS[n][1] == "caption" for n in names) and None in words:
        refuse(f"{ids[words.index(None)]!r} has no text; leave text and first+text out of --conditionings")
    adapter = read_adapter(args.adapter, ids, shape) if args.adapter else None
    model = adapter and adapter[0].get("model")
    args.out = out = Path(
        args.out or f"results/{model or entry['name']}/{Path(args.data).name}/video-coherence.yaml"
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
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
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
        {"stage": "video", "mode": "coherence", "words": few_words},
        films=strips,
    )
    picture(result, strips, few_words, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


# ---------------------------------------------------------------- continue

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
            refuse(f"{args.data} has no clips in its {split} split; give more clips")
    if short := [i for i in train if len(i["frames"]) < args.past + args.horizon]:
        name, has = short[0]["id"], len(short[0]["frames"])
        refuse(f"{name} has {has} frames, {args.past + args.horizon} are needed; lower --past or --horizon")
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


def run_continue(args, started):
    """video-continue.yaml's content, and what stands beside it."""
    entry, judge_entry, unit = checked(args)
    names = list(dict.fromkeys(args.continuations.split(",")))
    for name in names:
        known(name, CONTINUATIONS, "continuation")
    k, r = span(args.past, args.frames, unit["time"]), unit["time"]
    if k == 1 < args.past and any(CONTINUATIONS[n][0] == "past" for n in names):
        refuse(f"of --past {args.past} one frame is shown: give --past {r + 1} and more --frames")
    every, items, train, data = asked_clips(args)
    asking = [n for n in names if CONTINUATIONS[n][1] == "caption"]
    ids, sources, words, clips = named(
        items,
        args.data,
        f"{' and '.join(asking)} of --continuations ask for one; give others" if asking else None,
    )
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/video-continue.yaml")
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

        # away from the empty prompt nothing leads but words
        how = {"batch": args.batch, "guidance": args.guidance if says == "caption" else 1.0, "empty": empty}

        def shoot(given, number):
            shown = [(0, given)] if given.shape[1] else []
            return films(run, timesteps, ids, shape, shown, prompt, f"{args.seed + draw} {number}", **how)

        return continued(shoot, seen[:, past - first :], k, horizon)

    wanted = {part: settings | {"job": job} for part, job in jobs.items()}
    load = functools.partial(opened, entry, shape, unit, args.steps, [w or "" for w in words])
    made = kept(out.with_name(out.stem + "-parts"), ids, wanted, load, film)
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
    on_sheet = {n: x for n, x in strips.items() if n not in names[2:]}
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
        "sheet": sheet(on_sheet, few_words, out.with_name(f"{out.stem}-sheet.png")),
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }

    shown = {n: whole[n] for n in ("real", "vae", "copy", *names)}
    happens = [(split_of(i["source"]), i.get("action", i.get("direction"))) for i in every]
    acts = [a for split, a in happens if split == "train" and a is not None]
    actions = sorted({a for _, a in happens if a is not None})[:200]
    short = [cut(item, past - 1) for item in items]
    write_films(out, shown, short, args, entry, data, None, names[0], acts, actions=actions)
    continued_picture(result, strips, few_words, out.with_suffix(".png"))
    save_yaml(out, result)
    return result


def cut(item, first):
    """The item from frame `first` on: boxes and mask with it."""
    return {
        key: x[first:].clone() if key in ("mask", "boxes") and len(x) == len(item["frames"]) else x
        for key, x in item.items()
    }


def continued_picture(result, strips, words, path):
    """The last frame seen of a few clips and the frames of every horizon, a row a continuation, a column a clip."""
    plt = pyplot()
    horizons = list(result["horizons"])
    figure = plt.figure(figsize=(6.6 * len(words), 1.15 * len(strips)), layout="constrained")
    draw_strips(figure, strips, words, [0, *horizons], ("real", result["conditioning"]))
    figure.suptitle(f"By {result['video']}: the last frame seen, then {horizons} frames ahead", fontsize=11)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def sheet(strips, words, path):
    """Whole films {name: [clips, T, H, W, 3]} pixel for pixel in one PNG: clip after clip a row a film, a column a frame, so that a page can show any frame. Returns where they lie in it."""
    from PIL import Image

    rows = torch.stack(list(strips.values()), 1).flatten(0, 1)  # [clips * films, T, H, W, 3]
    count, frames, high, wide = rows.shape[:4]
    Image.fromarray(rows.transpose(1, 2).reshape(count * high, frames * wide, 3).numpy()).save(path)
    return {"file": path.name, "clips": words, "films": list(strips), "frames": frames, "size": high}


# ---------------------------------------------------------------- futures

EXPERTS = {
    "semantics": "{}",
    "motion": "{}, steady continuous motion",
    "permanence": "{}, objects keep their shape and colour",
    "physics": "{}, natural physics",
}
COUNTS = 1, 2, 4, 6  # candidates, of the curve
FUTURES_NOTES = {
    "one": "the first candidate: the past and an empty prompt, as video.py continue makes it; every other has noise of its own, a prompt and a guidance",
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


def run_futures(args, started):
    """video-futures.yaml's content, and its picture."""
    entry, judge_entry, unit = checked(args)
    if args.candidates < 2:
        refuse(f"--candidates {args.candidates} leaves nothing to choose from; give 2 or more")
    k, shape = span(args.past, args.frames, unit["time"]), (args.frames, args.size, args.size)
    high = args.guidance if args.guidance > 1 else 2.0
    # as run_continue cuts them, so that both predict from the same moment on
    _, items, _, data = asked_clips(args)
    args.horizon = min(args.horizon, args.frames - k)
    items = [
        i | {key: i[key][: args.past + args.horizon] for key in ("frames", "mask", "boxes") if key in i}
        for i in items
    ]
    ids, sources, words, clips = named(items, args.data, "every expert's prompt is made of it")
    args.out = out = Path(args.out or f"results/{entry['name']}/{Path(args.data).name}/video-futures.yaml")
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
            own = load_pt(folder / f"{part.replace('cycle', 'candidate')}.pt", RESULT)["films"]
            end, prompt = own[:, -back:].flip(1), unprompted(empty, len(ids))
            # with the same noise for all candidates
            seed = f"{args.seed} 1"
            x = films(run, timesteps, ids, shape, [(0, end)], prompt, seed, batch=args.batch)
            return x[:, back:]
        expert, guidance, draw = jobs[part]
        at = slice(len(ids) * rows.index(expert), len(ids) * (rows.index(expert) + 1)) if expert else None
        prompt = tuple(x[at] for x in prompts) if expert else unprompted(empty, len(ids))
        how = {"batch": args.batch, "guidance": guidance, "empty": empty}
        shown = [(0, seen[:, -k:])]
        return films(run, timesteps, ids, shape, shown, prompt, f"{args.seed + draw} 0", **how)[:, k:]

    settings = settings_of(args, entry, unit, dtype, clips, words, "frames", "past", "horizon")
    wanted = {part: settings | {"job": job, "prompts": EXPERTS} for part, job in every.items()}
    wanted |= {p.replace("candidate", "cycle"): how | {"backwards": back} for p, how in wanted.items()}
    texts = [template.format(w) for template in EXPERTS.values() for w in words]
    load = functools.partial(opened, entry, shape, unit, args.steps, texts)
    made = kept(folder, ids, wanted, load, film)
    films_of = [made[part]["films"] for part in every]
    x = films_of[:-1]

    here = look(last).flatten(1).double()
    close = torch.empty(len(films_of), len(ids), dtype=torch.float64)
    for c, y in enumerate(tqdm(films_of, desc="measured", unit="part")):
        for i, clip in enumerate(y):
            close[c, i] = F.cosine_similarity(here[i : i + 1], look(clip).flatten(1).double()).mean()
    # [candidates + 1, n]
    cycles = [made[part.replace("candidate", "cycle")]["films"] for part in every]
    more = {"consistency": close, "cycle": -torch.stack([undone(y, seen, k) for y in cycles])}
    way, carried = goers(items, args.past - 1), carried_on(seen, args.horizon)
    right = torch.stack(
        [followed(torch.cat([last[:, None], y], 1), last, way, [args.horizon])[args.horizon] for y in x]
    )
    errors = {m: e.nanmean(2) for m, e in erred(x, truth, last).items() if m != "still_l1"}  # [candidates, n]
    curve = {}
    for n in sorted({c for c in COUNTS if c <= len(x)} | {len(x)}):
        own, known_of = ({m: e[:n] for m, e in these.items()} for these in (errors, more))
        curve[n] = picked(own, x[:n], seen, carried, known_of, (right[:n], way[0]))
    best, beside = curve[len(x)], beliefs(films_of, seen, carried, more)
    preferred = {}
    for b, s in beside.items():
        share = ((s[-1] > s[:-1]).double() + (s[-1] == s[:-1]).double() / 2).mean(0)
        preferred[b] = averaged("share", share[None], sources, args.seed)
    rankers = [p for p in best if p not in ("one", "random", "oracle", "worst")]

    def row(scores):
        found = {}
        for m in ("l1", "moving_l1"):
            found |= averaged(m, scores[m][None], sources, args.seed)
        going = [sources[i] for i in way[0]]
        return found | averaged("direction_right", scores["direction_right"][None], going, args.seed)

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
    experts = {}
    for i, (part, (expert, g, draw)) in enumerate(jobs.items()):
        experts[part] = {"expert": expert, "guidance": g, "draw": draw}
        experts[part] |= {m: e[i].nanmean() for m, e in errors.items()}
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
        "experts": experts,
        "notes": FUTURES_NOTES,
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }
    futures_picture(result, out.with_suffix(".png"))
    found = beliefs(x, seen, carried, {b: s[: len(x)] for b, s in more.items()})
    save_pt(
        out.with_suffix(".pt"),
        RESULT,
        ids,
        {"stage": "video", "mode": "futures"},
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
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    for p in result["pickers"]:
        value = [c[p]["l1"] for c in result["curve"].values()]
        axis.plot(list(result["curve"]), value, "o-", label=p, lw=2.5 if p == "mean_rank" else 1.5)
    axis.set(title=f"Futures by {result['video']}", xlabel="candidates", ylabel="L1 of the one picked")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


# ---------------------------------------------------------------- animate

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


def run_animate(args, started):
    """The clip (mp4), a GIF and a YAML beside it."""
    entry, unit = pipeline_of(args)
    middle, n = (args.frames - 1) // 2, len(args.image)
    if n > middle + 1:
        refuse(f"--image names {n} images, but a clip is shown the first {middle + 1} at most; give fewer")
    args.fps = args.fps or entry.get("fps", 25)
    if not 0.1 <= args.fps <= 50:
        refuse(f"--fps {args.fps:g} is no rate that a GIF can have; give 0.1 to 50")
    out = Path(args.video or f"results/{entry['name']}/{Path(args.image[0]).stem}.mp4")
    if out.suffix.lower() != ".mp4":
        refuse(f"--video {out} is no .mp4; give the file to write, and name the pipeline by --model")
    gif, facts = out.with_suffix(".gif"), out.with_suffix(".yaml")
    if gif.resolve() in [Path(p).resolve() for p in args.image]:
        refuse(f"--video {out} would put its GIF over the picture {gif}; give it another name")
    pictures = [read_picture(p) for p in args.image]
    for path in (out, gif, facts):
        check_writable(path)

    device, dtype, why = choose_device()
    print(f"device {device.type} ({why})")
    shape = args.frames, args.size, args.size
    _, empty, words, run, timesteps = opened(entry, shape, unit, args.steps, [args.prompt])
    places, began = [round(k * middle / max(n - 1, 1)) for k in range(n)], time.time()
    shown = [(k, frames_of({"frames": p}, args.size)[None]) for k, p in zip(places, pictures, strict=True)]
    how = {"guidance": args.guidance if args.prompt else 1.0, "empty": empty}
    x = films(run, timesteps, ["film"], shape, shown, words, args.seed, **how)[0]
    height, width = save_film(out, x, pictures[0].shape[1:3], args.fps)
    result = {
        "stage": "video",
        "mode": "animate",
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
        "run": run_info(args, started, script="video.py", device=f"{device.type} ({why})", dtype=str(dtype)),
    }
    save_yaml(facts, result)
    return result


def get_args(argv):
    p, jobs = subcommands(
        __doc__,
        {
            "coherence": "gate 2: does conditioning break the video model's sense of time?",
            "continue": "gate 3: the video model predicts the frames that follow",
            "futures": "gate 3: several futures of each clip, one picked without the outcome",
            "animate": "a clip from one's own images and words",
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
        add("--judge", default="tiny-dinov2", help="the frozen encoder whose features are compared")
        add("--clips", type=int, help="only so many of the test clips")
        add("--batch", type=int, help="clips generated at a time (default: 16)")
        add("--out", help=f"default: results/<model>/<data>/video-{name}.yaml")
    add = jobs["coherence"].add_argument
    add("--adapter", help="what adapt.py prompt made of the clips' tokens")
    add("--conditionings", help=f"some of (default: all): {', '.join(CONDITIONINGS)}")
    add("--strengths", default="0.25,0.5,0.75", help=f"0 to 1, tried for {' and '.join(SWEPT)}")
    for name, seeds in (("coherence", 3), ("continue", 1)):
        jobs[name].add_argument("--seeds", type=int, default=seeds, help="draws of noise")
    for name in ("continue", "futures"):
        jobs[name].add_argument("--past", type=int, default=8, help="frames that are seen")
    jobs["continue"].add_argument("--horizon", type=int, default=16, help="frames that are predicted")
    jobs["continue"].add_argument(
        "--continuations", default=",".join(CONTINUATIONS), help="the main one first"
    )
    jobs["futures"].add_argument(
        "--horizon", type=int, default=16, help="frames, of which a clip has the first"
    )
    jobs["futures"].add_argument("--candidates", type=int, default=6, help="futures of a clip to choose from")
    add = jobs["animate"].add_argument
    add("--image", nargs="+", metavar="FILE", required=True, help="an image, or several in order of time")
    add("--prompt", default="", help="what happens, in words (default: none)")
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
    say(result)
    return result


if __name__ == "__main__":
    main()
