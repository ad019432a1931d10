"""Films under conditionings: the measures on films whose answer is known, the pipeline's calls, what is refused, what a kill leaves."""

import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import changed, video_world

import claims
import common
import explain
import metrics
import models
import stats
import video
from common import RESULT, load_items, load_pt, load_yaml, save_pt, split_of, write_items


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, arguments, result) of a run on made-up squares with a small random pipeline."""
    folder = tmp_path_factory.mktemp("predict")
    video_world(folder)
    own = f"--model {folder}/ltx --judge {folder}/judge --data {folder}/data --adapter {folder}/conditioning.pt --out {folder}/video-coherence.yaml"
    arguments = f"{own} --frames 5 --size 32 --steps 2 --seeds 2 --strengths 0.5".split()
    return folder, arguments, video.main(["coherence", *arguments])


@pytest.fixture(scope="module")
def small(made):
    """(LTXConditionPipeline, time steps, autoencoder) of the small random pipeline."""
    pipeline, _ = models.load_video_pipeline(models.find_model(str(made[0] / "ltx")))
    return *video.sampler(pipeline, 2, 48), pipeline.vae


def moving(n=6, frames=9, side=32, step=2):
    """(films of a square that moves right, masks of it in the first frame), the background's grey another in every film."""
    films = (
        torch.full((n, frames, side, side, 3), 90, dtype=torch.uint8)
        + (10 * torch.arange(n).view(-1, 1, 1, 1, 1)).byte()
    )
    for t in range(frames):
        films[:, t, 12:20, 2 + step * t : 10 + step * t] = torch.tensor([210, 30, 30], dtype=torch.uint8)
    masks = torch.zeros(n, side, side, dtype=torch.bool)
    masks[:, 12:20, 2:10] = True
    return films, masks


def look(clip):
    """Tokens of a judge that sees every pixel."""
    return clip.float()[:, ::4, ::4] / 255


# ---------------------------------------------------------------- measures


def test_a_frozen_film_is_wholly_consistent_and_not_close_and_does_not_move():
    real, masks = moving()
    frozen, going = real[:, :1].expand_as(real), (list(range(6)), masks, ["right"] * 6)
    found, own = (video.measured(x, real[:, 0], look, going) for x in (frozen, real))
    d, d_real = (1 - x["temporal_consistency"] for x in (found, own))
    assert d.abs().max() < 1e-12 and (metrics.closeness(d, d_real) == 0).all()
    assert all((found[k] == 0).all() for k in ("motion_energy", "flicker", "direction_right"))
    assert video.warp_error(frozen).max() < 1e-6
    assert (own["direction_right"] == 1).all() and (own["motion_energy"] > 0).all()


def test_a_clip_is_as_close_as_can_be_to_itself_and_shuffling_it_costs_consistency_and_flickers():
    real, _ = moving()
    mixed_up = metrics.shuffled(real, 0)
    own, mixed = (video.measured(x, real[:, 0], look, ([], None, [])) for x in (real, mixed_up))
    d, energy = 1 - own["temporal_consistency"], own["motion_energy"]
    assert (metrics.closeness(d, d) == 1).all() and stats.ratio(energy, energy).mean() == pytest.approx(1)
    assert (mixed["temporal_consistency"] < own["temporal_consistency"]).all()
    assert "direction_right" not in own
    assert (mixed["flicker"] > 2 * own["flicker"]).all()
    assert (video.warp_error(mixed_up) > video.warp_error(real)).all()
    assert (metrics.closeness(1 - mixed["temporal_consistency"], d) < 0.9).all()


def test_closeness_treats_too_much_change_as_too_little_and_knows_that_nothing_moves():
    d = torch.tensor([0.1, 0.4, 0.2, 0.0, 0.1, 1e-16], dtype=torch.float64)
    real = torch.tensor([0.2, 0.2, 0.2, 0.0, 0.0, 0.2], dtype=torch.float64)
    assert metrics.closeness(d, real).tolist() == pytest.approx([0.5, 0.5, 1, 1, 0, 0])


def test_films_of_other_clips_are_those_of_other_sources():
    d = torch.tensor([[0.1, 0.2, 0.4]], dtype=torch.float64)
    found = video.others(d, torch.tensor([0.1, 0.1, 0.4], dtype=torch.float64), ["a", "a", "b"])
    assert found[0].tolist() == pytest.approx([0.25, 0.25, (0.25 + 0.5) / 2])


def test_the_ratio_is_that_of_means_and_its_interval_that_of_a_ratio():
    g = torch.Generator().manual_seed(0)
    real = torch.rand(400, generator=g).double() + 0.2
    scores = stats.ratio(2 * real[None], real)
    # films that always move twice as much leave no doubt
    assert scores.mean() == pytest.approx(2) and scores.std() < 1e-9
    noisy = stats.ratio(real[torch.randperm(400, generator=g)][None], real)
    assert noisy.mean() == pytest.approx(1) and noisy.std() > 0.1
    assert stats.ratio(real[None], 0 * real) is None


def test_a_film_that_goes_the_other_way_or_that_shows_something_else_is_not_right():
    real, masks = moving()
    going = list(range(6)), masks, ["right"] * 6
    x = real.clone()
    x[1], x[2], x[3, 1:] = real[1].flip(0), real[2, :1], 0  # backwards, frozen, gone
    assert video.measured(x, real[:, 0], look, going)["direction_right"].tolist() == [1, 0, 0, 0, 1, 1]


# ---------------------------------------------------------------- what is asked of the pipeline


def test_captions_are_those_the_small_pipeline_was_taught():
    import tiny

    item = {"names": ["blue star", "red circle"], "direction": "up left", "text": "a red circle"}
    assert claims.caption(item) == tiny.caption("red circle", "up left")
    assert claims.caption({"text": "a cat"}) == "a cat" and claims.caption({}) is None


def test_noise_is_the_clips_own_whatever_the_batch_and_the_conditioning(made, small, monkeypatch):
    run, steps, _ = small
    real = torch.stack([i["frames"][1:2] for i in load_items(made[0] / "data")[0][:3]])
    tokens = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))

    def make(order, seed=0, shown=True, **more):
        at = torch.tensor(order)
        given = [(0, real[at])] if shown else []
        x = video.films(
            run,
            steps,
            ["abc"[k] for k in order],
            (5, 32, 32),
            given,
            (tokens[at], torch.ones(3, 2)),
            seed,
            **more,
        )
        return x[at].int()  # in their own order again

    whole = make([0, 1, 2])
    assert whole.shape == (3, 5, 32, 32, 3) and (whole - make([0, 1, 2], batch=1)).abs().max() <= 1
    assert (whole - make([2, 1, 0], batch=2)).abs().max() <= 1 < (whole - make([0, 1, 2], seed=1)).abs().max()
    started, step = [], type(run.scheduler).step

    def watched(self, v, t, x, **more):
        started.append((t, x[:, -16:]))
        return step(self, v, t, x, **more)

    monkeypatch.setattr(type(run.scheduler), "step", watched)
    make([0, 1, 2])
    make([0, 1, 2], shown=False)
    # pure noise in the last latent frame
    assert torch.equal(started[0][1], started[2][1]) and started[0][0] == 1000


def test_what_is_put_in_the_place_of_the_prompt_reaches_the_transformer(small):
    run, steps, _ = small
    prompts = torch.randn(2, 2, 3, 16, generator=torch.Generator().manual_seed(0)) * 20
    one, other = (
        video.films(run, steps, ["a", "b"], (5, 32, 32), [], (x, torch.ones(2, 3)), 0) for x in prompts
    )
    assert (one.int() - other.int()).abs().float().mean() > 0.1


def test_strength_0_is_no_conditioning_at_all_and_1_is_the_whole(made, small, monkeypatch):
    from diffusers.models.autoencoders.autoencoder_kl_ltx import DiagonalGaussianDistribution

    # an untrained autoencoder's latents are drawn from far and wide
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    run, steps, vae = small
    real = torch.stack([i["frames"][1:6] for i in load_items(made[0] / "data")[0][:2]])
    g = torch.Generator().manual_seed(0)
    empty, tokens = torch.randn(1, 16, generator=g), torch.randn(2, 3, 16, generator=g) * 20
    prompt, first = (empty.expand(2, -1, -1), torch.ones(2, 1)), [(0, real[:, :1])]

    def make(shown, prompt=prompt, strength=1.0):
        return video.films(run, steps, ["a", "b"], (5, 32, 32), shown, prompt, 0, strength).int()

    none = make([])
    assert (none - make(first, strength=0.0)).abs().max() <= 1 < (none - make(first)).abs().max()
    again = make([], (video.towards(empty, tokens, 0.0), torch.ones(2, 3)))
    assert (again - none).abs().max() <= 1 and torch.equal(video.towards(empty, tokens, 1.0), tokens)
    through = models.decode_films(vae, models.encode_films(vae, real)).int()
    assert (make([(0, real)]) - through).abs().max() <= 1
    assert not torch.equal(make([(k, real[:, k : k + 1]) for k in (0, 2, 4)]), make(first))


def test_time_steps_are_those_of_the_pipeline_with_one_picture_also_where_they_depend_on_the_size(small):
    from diffusers import FlowMatchEulerDiscreteScheduler

    run, steps, _ = small
    assert steps == [1000, 500]
    how = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "shift_terminal": 0.1}
    shifting = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **how)
    parts = SimpleNamespace(scheduler=shifting, components=run.components | {"scheduler": shifting})
    again, steps = video.sampler(parts, 4, 1024)
    sigma = np.linspace(1, 0.25, 4)
    sigma = math.exp(0.95) / (math.exp(0.95) + 1 / sigma - 1)  # shifted, then stretched to end at 0.1
    assert steps == pytest.approx(1000 * (1 - (1 - sigma) * 0.9 / (1 - sigma[-1])), rel=1e-4)
    again.scheduler.set_timesteps(timesteps=steps)
    assert again.scheduler.timesteps.tolist() == pytest.approx(steps)


def test_the_published_pipeline_is_read_from_its_configurations_and_what_does_not_fit_it_is_refused(
    tmp_path, refused
):
    from accelerate import init_empty_weights
    from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

    with init_empty_weights():
        transformer, vae = LTXVideoTransformer3DModel(), AutoencoderKLLTXVideo()
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(1.92, abs=0.01)
    transformer.save_config(tmp_path / "ltx" / "transformer")
    vae.save_config(tmp_path / "ltx" / "vae")
    (tmp_path / "ltx" / "model_index.json").write_text('{"_class_name": "LTXPipeline"}')
    shape = models.geometry({"kind": "video", "name": "ltx-video", "path": str(tmp_path / "ltx")})
    assert [shape[k] for k in ("time", "space", "latents", "prompt")] == [8, 32, 128, 4096]
    models.check_shape(17, 512, shape, "ltx-video")
    refused(lambda: models.check_shape(24, 512, shape, "ltx-video"), "8k+1", "give 17 or 25")
    refused(lambda: models.check_shape(17, 500, shape, "ltx-video"), "multiple of 32", "480 or 512")
    save_pt(tmp_path / "narrow.pt", RESULT, ["a"], {"into": "prompt"}, embeds=torch.zeros(1, 3, 64))
    refused(lambda: video.read_adapter(str(tmp_path / "narrow.pt"), ["a"], shape), "64", "4096")


# ---------------------------------------------------------------- the stage


def test_the_yaml_holds_every_conditioning_beside_the_clips_and_the_nulls(made):
    folder, _, result = made
    found = load_yaml(folder / "video-coherence.yaml", "video")
    names, criteria = list(video.CONDITIONINGS), found["criteria"]
    assert list(found["conditionings"]) == [*video.NULLS, *names] and found["conditioning"] == "adapter"
    assert found["model"] == "planted"
    assert found["temporal_consistency_frozen"] == 1 and found["temporal_closeness_frozen"] == 0
    assert found["direction_right_real"] == 1
    assert found["conditionings"]["frozen"]["temporal_ratio"] == 0
    assert criteria["temporal_consistency"]["ceiling"] == found["temporal_consistency_real"]
    assert set(criteria["temporal_consistency"]["floors"]) == {"shuffled"}
    assert set(criteria["temporal_closeness"]["floors"]) == {"frozen", "shuffled", "other_clip"}
    gains = found["gains"]["temporal_closeness"]
    assert set(gains) == set(names) - {"adapter"} and all(g["p_holm"] >= g["p"] for g in gains.values())
    assert list(found["strength"]) == ["first", "adapter"]
    assert list(found["strength"]["first"]) == ["0", "0.5", "1"]
    assert found["weights"] == "random" and found["data"] == "synthetic"
    assert result["clips"] == len([i for i in range(32) if split_of(f"clip-{i}") == "test"])


def test_films_are_a_data_folder_with_the_truth_of_their_windows(made):
    films, index = load_items(made[0] / "films")
    clips = {i["id"]: i for i in load_items(made[0] / "data")[0]}
    assert index["test"] == len(films) and index["conditioning"] == "adapter"
    assert index["commonest"] == "right"
    for film in films:
        clip, _, name = film["id"].partition("/")
        own = clips[clip]
        assert film["conditioning"] == name and film["source"] == own["source"]
        assert film["frames"].shape == (5, 32, 32, 3)
        assert torch.equal(film["mask"], own["mask"][1:6]) and torch.equal(film["boxes"], own["boxes"][1:6])
        if name in ("real", "frozen"):
            assert torch.equal(
                film["frames"],
                own["frames"][1:6] if name == "real" else own["frames"][1:2].expand(5, -1, -1, -1),
            )


def test_windows_scale_boxes_and_masks_with_the_frames():
    mask, frames = torch.zeros(7, 64, 64, dtype=torch.uint8), torch.zeros(7, 64, 64, 3, dtype=torch.uint8)
    mask[:, 16:32, 8:24] = 1
    item = {"id": "a", "source": "a", "width": 64, "height": 64, "frames": frames, "mask": mask}
    (cut,) = metrics.windows([item | {"boxes": torch.tensor([[[8.0, 16, 24, 32]]] * 7)}], 5, 32)
    assert cut["frames"].shape == (5, 32, 32, 3) and cut["boxes"][0, 0].tolist() == [4, 8, 12, 16]
    assert cut["width"] == cut["height"] == 32 and cut["mask"].sum() == 5 * 64
    assert cut["mask"][0, 8:16, 4:12].all()


def test_what_was_made_is_not_made_again_and_a_run_cut_short_goes_on_to_the_same_end(
    made, tmp_path, monkeypatch
):
    folder, arguments, _ = made
    arguments = changed(arguments, out=tmp_path / "x.yaml", clips=2)
    monkeypatch.setattr(video, "picture", lambda *args: None)
    result = video.main(["coherence", *arguments])
    with monkeypatch.context() as without:
        without.setattr(video, "load_video_pipeline", None)
        again = video.main(["coherence", *changed(arguments, batch=1)])
    assert again["conditionings"] == result["conditionings"]
    assert again["films_seconds"] == result["films_seconds"]
    (tmp_path / "x-parts" / "first-1.pt").unlink()
    (tmp_path / "x-parts" / "adapter@0.5-0.pt").unlink()
    seen, films = [], video.films
    monkeypatch.setattr(video, "films", lambda *args, **more: seen.append(args[2]) or films(*args, **more))
    again = video.main(["coherence", *arguments])
    assert len(seen) == 2 and again["conditionings"] == result["conditionings"]
    assert again["strength"] == result["strength"]
    seen.clear()
    held = load_pt(folder / "conditioning.pt", RESULT)
    save_pt(tmp_path / "other.pt", RESULT, held["ids"], held["meta"], embeds=-held["embeds"])
    video.main(["coherence", *changed(arguments, adapter=tmp_path / "other.pt")])
    assert len(seen) == 3  # the adapter's two draws and its strength; the others do not know it
    seen.clear()
    video.main(["coherence", *changed(arguments, adapter=None, conditionings="none,first", steps=1)])
    assert len(seen) == 5


def test_bad_input_is_refused_in_one_sentence_before_a_model_is_loaded(made, tmp_path, refused, monkeypatch):
    folder, arguments, _ = made
    monkeypatch.setattr(video, "load_video_pipeline", None)
    monkeypatch.setattr(video, "load_encoder", None)

    def ask(**new):
        return lambda: video.main(["coherence", *changed(arguments, out=tmp_path / "x.yaml", **new)])

    for new, *words in (
        ({"frames": 6}, "--frames 6 is not 2k+1", "5 or 7"),
        ({"size": 40}, "--size 40", "32 or 64"),
        ({"frames": 9}, "clip-", "has 7 frames, 9 are needed"),
        ({"conditionings": "first,frist"}, "'frist'", "'first'"),
        ({"adapter": None, "conditionings": "adapter"}, "both or neither"),
        ({"strengths": "0.5,2"}, "0.5,2"),
        ({"seeds": 0}, "--seeds 0"),
        ({"model": "tiny-vae"}, "is a vae", "model_index.json"),
        ({"judge": "tiny-vae"}, "DINO"),
    ):
        refused(ask(**new), *words)
    items, _ = load_items(folder / "data")
    write_items(
        tmp_path / "train",
        [i for i in items if split_of(i["source"]) == "train"],
        {"data": "synthetic", "name": "train"},
    )
    refused(ask(data=tmp_path / "train"), "no clips in its test split")
    write_items(
        tmp_path / "mute",
        [{k: v for k, v in i.items() if k not in ("text", "direction")} for i in items],
        {"data": "synthetic", "name": "mute"},
    )
    refused(ask(data=tmp_path / "mute"), "no text")
    held = load_pt(folder / "conditioning.pt", RESULT)
    for into, ids, embeds, words in (
        ("prompt", held["ids"], torch.zeros(24, 3, 8), "a width of 16"),
        ("latents", held["ids"], held["embeds"], "holds latents"),
        ("prompt", [f"other-{i}" for i in held["ids"]], held["embeds"], "other clips"),
        ("prompt", held["ids"], held["embeds"] / 0, "not finite"),
    ):
        save_pt(tmp_path / "a.pt", RESULT, ids, held["meta"] | {"into": into}, embeds=embeds)
        refused(ask(adapter=tmp_path / "a.pt"), words)


@pytest.mark.parametrize(
    "part", ["transformer/diffusion_pytorch_model", "text_encoder/model", "vae/diffusion_pytorch_model"]
)
def test_a_checkpoint_that_is_cut_short_or_lacks_a_part_or_a_weight_is_refused_by_name(
    made, tmp_path, refused, part
):
    from safetensors.torch import load_file, save_file

    ask = changed(
        made[1], out=tmp_path / "x.yaml", model=tmp_path / "ltx", conditionings="none", adapter=None
    )
    shutil.copytree(made[0] / "ltx", tmp_path / "ltx")
    path = tmp_path / "ltx" / f"{part}.safetensors"
    weights, whole = load_file(path), path.read_bytes()
    gone = next(k for k in sorted(weights) if k.endswith(".weight") and "shared" not in k)
    save_file({k: v for k, v in weights.items() if k != gone}, path, {"format": "pt"})
    refused(lambda: video.main(["coherence", *ask]), tmp_path / "ltx", gone)
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: video.main(["coherence", *ask]), tmp_path / "ltx", "again")
    path.unlink()
    refused(lambda: video.main(["coherence", *ask]), tmp_path / "ltx", "again")
    assert not (tmp_path / "x.yaml").exists()


# ---------------------------------------------------------------- what a model says of films (explain.py)


def planted_films(folder, say):
    """films/ and answers about them: say(kind, conditioning, k, direction) -> the answer about the k-th clip."""
    clips, said, ways = [], [], ("left", "right", "up", "down")
    for name in ("real", "frozen", "first+text"):
        for k in range(24):
            clip = {
                "id": f"c{k}/{name}",
                "source": f"c{k}",
                "direction": ways[k % 4],
                "conditioning": name,
                "width": 8,
                "height": 8,
            }
            clip |= {
                "frames": torch.zeros(5, 8, 8, 3, dtype=torch.uint8),
                "boxes": torch.zeros(5, 1, 4),
                "labels": ["star"],
                "names": ["star"],
            }
            clips.append(clip)
            said += [
                (clip["id"], kind, say(kind, name, k, ways[k % 4]))
                for kind in ("direction", "direction_listed")
            ]
    index = {
        "name": "films",
        "conditioning": "first+text",
        "commonest": "up",
        "video": "tiny-ltx",
        "video_weights": "small",
    }
    write_items(folder / "films", clips, index | {"data": "synthetic"})
    meta = {"model": "planted", "weights": "random", "scale": "pixels", "size": 8}
    ids, kinds, answers = zip(*said, strict=True)
    save_pt(
        folder / "answers.pt", common.ANSWERS, ids, meta, kinds=list(kinds), answers={"own": list(answers)}
    )
    return explain.main(f"semantic --films {folder}/films --answers {folder}/answers.pt".split())


def test_answers_that_name_what_was_asked_for_are_counted_and_frozen_films_are_a_floor(tmp_path):
    def says(kind, name, k, direction):
        if kind != "direction":
            return "up"
        return {
            "real": f"it moves {direction}",
            "frozen": "it stands still",
            "first+text": f"to the {direction}" if k % 4 or k < 12 else "away",
        }[name]

    found = planted_films(tmp_path, says)
    assert found["kind"] == "direction" and found["semantic_accuracy"] == pytest.approx(21 / 24)
    assert found["semantic_accuracy_ceiling"] == 1 and found["unparsed"] == pytest.approx(3 / 24)
    c = load_yaml(tmp_path / "explain-semantic.yaml", "films")["criteria"]["semantic_accuracy"]
    assert c["floors"]["commonest"] == 0.25 and c["floors"]["frozen"] == 0
    assert 0 < c["floors"]["other_item"] < 0.25 and c["gain_low"] > 0
    assert found["conditionings"]["first+text"]["direction_listed"] == 0.25
    assert found["conditionings"]["real"]["direction"] == 1


def test_a_model_that_always_says_the_same_is_no_better_than_the_commonest_word(tmp_path, refused):
    found = planted_films(tmp_path, lambda *a: "up")
    assert found["semantic_accuracy"] == found["semantic_accuracy_floor"] == 0.25
    assert found["criteria"]["semantic_accuracy"]["gain_low"] <= 0
    said = load_pt(tmp_path / "answers.pt", common.ANSWERS)
    save_pt(
        tmp_path / "half.pt",
        common.ANSWERS,
        said["ids"][:100],
        said["meta"],
        kinds=said["kinds"][:100],
        answers={"own": said["answers"]["own"][:100]},
    )
    refused(
        lambda: explain.main(f"semantic --films {tmp_path}/films --answers {tmp_path}/half.pt".split()),
        "lacks answers",
        "explain.py ask",
    )


# ---------------------------------------------------------------- the small models


@pytest.mark.slow
def test_tiny_ltx_goes_where_it_is_told_and_tiny_says_so(tmp_path):
    import data

    data.main(f"moving --n 120 --seed 83 --out {tmp_path}/moving".split())
    found = video.main(
        f"coherence --data {tmp_path}/moving --clips 16 --seeds 1 --conditionings first,first+text,all --out {tmp_path}/video-coherence.yaml --strengths=".split()
    )
    table = found["conditionings"]
    assert found["conditioning"] == "first+text" and found["frames"] == 9 and found["direction_right"] > 0.6
    assert found["direction_right_real"] > 0.9
    assert table["frozen"]["direction_right"] == 0
    assert table["first"]["direction_right"] < found["direction_right"]
    assert table["all"]["direction_right"] > 0.8
    assert found["temporal_closeness"] > table["frozen"]["temporal_closeness"]
    explain.main(f"ask --model tiny --data {tmp_path}/films --out {tmp_path}/answers.pt".split())
    said = explain.main(f"semantic --films {tmp_path}/films --answers {tmp_path}/answers.pt".split())
    shares = {name: row["direction"] for name, row in said["conditionings"].items()}
    assert min(shares["first+text"], shares["real"]) > shares["frozen"] + 0.2 and said["unparsed"] == 0
