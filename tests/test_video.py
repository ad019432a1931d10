"""video.py: measures on clips of known motion, calls of the pipeline, leaks, caches, refusals, animate."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl_ltx import DiagonalGaussianDistribution
from helpers import changed, holds, video_world
from PIL import Image

import ltx
import media
import models
import motion
import synthetic
import video
from common import RESULT, load_items, load_pt, load_yaml, save_pt, split_of, write_items


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("video")
    video_world(folder)  # squares that move right: 7 frames of 32 px; the random pipeline makes 5
    return folder


def ran(at, more):
    how = f"--model {at}/ltx --evaluator {at}/evaluator --data {at}/data --frames 5 --size 32 --steps 2"
    line = f"{more} {how}".split()
    video.main(line)
    return line


@pytest.fixture(scope="module")
def cohere(world):
    how = f"--adapter {world}/conditioning.pt --seeds 2 --strengths 0.5 --out {world}/c/video-coherence.yaml"
    return ran(world, f"coherence {how}")


@pytest.fixture(scope="module")
def continued(world):
    return ran(world, f"continue --past 3 --horizon 4 --out {world}/k/video-continue.yaml")


@pytest.fixture(scope="module")
def small(world):
    """(LTXConditionPipeline, time steps, autoencoder) of the small random pipeline."""
    pipeline, _ = ltx.load_video_pipeline(models.find_model(str(world / "ltx")))
    return *video.sampler(pipeline, 2, 48), pipeline.vae


@pytest.fixture
def drawn(continued, monkeypatch, tmp_path):
    """Run a job with clips that are `new(given frames, number of the window)` after the given frames."""

    def run(new, job="continue", out="x", **more):
        def generate_clips(run, timesteps, ids, shape, shown, prompt, seed, **rest):
            given = shown[0][1]
            return torch.cat([given, new(given, int(str(seed).split()[1]))], 1)[:, : shape[0]]

        monkeypatch.setattr(video, "generate_clips", generate_clips)
        return video.main(changed(continued, job, out=tmp_path / f"{out}.yaml", **more))

    return run


@pytest.fixture
def calls(monkeypatch):
    seen, real = [], video.generate_clips
    monkeypatch.setattr(video, "generate_clips", lambda *a, **k: seen.append((a, k)) or real(*a, **k))
    return seen


def held_out(folder):
    """(items, frames [n, 7, 32, 32, 3]) of the test split."""
    items = [i for i in load_items(folder / "data")[0] if split_of(i["source"]) == "test"]
    return items, torch.stack([i["frames"] for i in items])


def part(folder, name):
    return load_pt(folder / f"{name}.pt", RESULT)["generated_clips"]


def test_measures_of_frozen_shuffled_reversed_and_lost_clips(world):
    items, real = (x[:6] for x in held_out(world))  # squares that move right
    masks = torch.stack([i["mask"][0] > 0 for i in items])
    objects, look = (list(range(6)), masks, ["right"] * 6), lambda clip: clip.float()[:, ::4, ::4] / 255
    versions = real[:, :1].expand_as(real), real, motion.shuffled(real, 0)
    frozen, own, mixed = (video.measured(x, real[:, 0], look, objects) for x in versions)
    assert (frozen["temporal_consistency"] - 1).abs().max() < 1e-12
    assert all((frozen[k] == 0).all() for k in ("motion_energy", "flicker", "direction_accuracy"))
    assert (mixed["temporal_consistency"] < own["temporal_consistency"]).all()
    assert (mixed["flicker"] > 2 * own["flicker"]).all()
    x = real.clone()
    x[1], x[2], x[3, 1:] = real[1].flip(0), real[2, :1], 0  # backwards, frozen, gone
    assert video.measured(x, real[:, 0], look, objects)["direction_accuracy"].tolist() == [1, 0, 0, 0, 1, 1]
    assert "direction_accuracy" not in video.measured(x, real[:, 0], look, ([], None, []))
    d, real = torch.tensor([[0.1, 0.2, 0.4], [0.1, 0.1, 0.4]], dtype=torch.float64)
    found = video.closeness_to_others(d[None], real, ["a", "a", "b"])
    assert found[0].tolist() == pytest.approx([0.25, 0.25, (0.25 + 0.5) / 2])


def test_noise_depends_on_the_clip_and_the_draw_alone(world, small):
    run, steps, _ = small
    real = torch.stack([i["frames"][1:2] for i in load_items(world / "data")[0][:3]])
    tokens = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))

    def make(order, seed=0, **more):
        at, prompt = torch.tensor(order), (tokens[order], torch.ones(3, 2))
        what = ["abc"[k] for k in order], (5, 32, 32), [(0, real[at])], prompt, seed
        return video.generate_clips(run, steps, *what, **more)[at].int()

    whole = make([0, 1, 2])
    assert whole.shape == (3, 5, 32, 32, 3) and (whole - make([0, 1, 2], batch=1)).abs().max() <= 1
    assert (whole - make([2, 1, 0], batch=2)).abs().max() <= 1 < (whole - make([0, 1, 2], seed=1)).abs().max()


def test_strength_0_is_no_conditioning_1_is_the_whole_and_the_prompt_has_an_effect(world, small, monkeypatch):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mean)
    run, steps, vae = small
    real = torch.stack([i["frames"][1:6] for i in load_items(world / "data")[0][:2]])
    g = torch.Generator().manual_seed(0)
    empty, tokens = torch.randn(1, 16, generator=g), torch.randn(2, 3, 16, generator=g) * 20
    prompt, first = (empty.expand(2, -1, -1), torch.ones(2, 1)), [(0, real[:, :1])]

    def make(shown, prompt=prompt, strength=1.0, **more):
        what = ["a", "b"], (5, 32, 32), shown, prompt, 0, strength
        return video.generate_clips(run, steps, *what, **more).int()

    none, given = make([]), (tokens, torch.ones(2, 3))
    assert (none - make(first, strength=0.0)).abs().max() <= 1 < (none - make(first)).abs().max()
    blended = [video.blend_prompts(empty, tokens, x) for x in (0.0, 1.0)]
    assert torch.equal(blended[1], tokens) and (make([], (blended[0], given[1])) - none).abs().max() <= 1
    through = ltx.decode_generated_clips(vae, ltx.encode_generated_clips(vae, real)).int()
    assert (make([(0, real)]) - through).abs().max() <= 1
    assert not torch.equal(make([(k, real[:, k : k + 1]) for k in (0, 2, 4)]), make(first))
    prompted, guided = make([], given), make([], given, guidance=3.0, empty=empty)
    assert (none - prompted).abs().float().mean() > 0.1 and (guided - prompted).abs().max() > 1


def test_time_steps_are_those_of_the_image_pipeline(small):
    run, steps, _ = small
    how = {"base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024, "shift_terminal": 0.1}
    shifting = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, **how)
    parts = SimpleNamespace(scheduler=shifting, components=run.components | {"scheduler": shifting})
    sigma = math.exp(0.95) / (math.exp(0.95) + 1 / np.linspace(1, 0.25, 4) - 1)
    expected = 1000 * (1 - (1 - sigma) * 0.9 / (1 - sigma[-1]))  # stretched to end at 0.1
    assert steps == [1000, 500] and video.sampler(parts, 4, 1024)[1] == pytest.approx(expected, rel=1e-4)


def generated(world, job, start, rows):
    """The index of generated/, after a check: clips of every row from frame `start` on, with their truth."""
    items, index = load_items(world / job / "generated")
    clips = {i["id"]: i for i in held_out(world)[0]}
    assert sorted(i["id"] for i in items) == sorted(f"{clip}/{name}" for clip in clips for name in rows)
    for x in items:
        own, name = clips[x["source"]], x["conditioning"]
        assert x["id"] == f"{own['id']}/{name}" and len(x["frames"]) == 5
        assert all(torch.equal(x[k], own[k][start : start + 5]) for k in ("mask", "boxes"))
        assert name != "real" or torch.equal(x["frames"], own["frames"][start : start + 5])
        assert job == "c" or torch.equal(x["frames"][0], own["frames"][start])
    return index["conditioning"], index["majority"]


def test_coherence_reports_every_conditioning_beside_the_clips_and_the_controls(world, cohere):
    found = load_yaml(world / "c/video-coherence.yaml", "video")
    names, criteria, table = list(video.CONDITIONINGS), found["criteria"], found["conditionings"]
    assert list(table) == [*video.NULLS, *names] and table["frozen"]["temporal_ratio"] == 0
    holds(found, "temporal_consistency_frozen == 1, temporal_closeness_frozen == 0")
    assert found["direction_accuracy_real"] == 1
    assert criteria["temporal_consistency"]["upper_bound"] == found["temporal_consistency_real"]
    assert set(criteria["temporal_closeness"]["baselines"]) == {"frozen", "shuffled", "other_clip"}
    first, adapter = found["strength"]["first"], found["strength"]["adapter"]
    assert adapter["0"] == first["1"] and adapter["0.5"] not in (adapter["0"], adapter["1"])
    assert video.caption(held_out(world)[0][0]) == "the square moves right"
    rows = [n for n in table if n in ("real", "frozen", *names)]
    assert generated(world, "c", 1, rows) == ("adapter", "right")


def test_cached_parts_are_reused_other_settings_anew(world, cohere, calls, tmp_path):
    line = changed(cohere, out=tmp_path / "x.yaml", clips=2, conditionings="first,adapter")
    result = video.main(line)
    for name in ("first-1", "adapter@0.5-0"):
        (tmp_path / "x-parts" / f"{name}.pt").unlink()
    count, again = len(calls), video.main(line)
    assert len(calls) - count == 2 and all(again[k] == result[k] for k in ("conditionings", "strength"))
    held = load_pt(world / "conditioning.pt", RESULT)
    save_pt(tmp_path / "other.pt", RESULT, held["ids"], held["meta"], embeds=-held["embeds"])
    count, _ = len(calls), video.main(changed(line, adapter=tmp_path / "other.pt"))
    assert len(calls) - count == 3  # the adapter's two draws and its strength


def test_bad_input_costs_one_sentence(world, cohere, continued, tmp_path, refused, monkeypatch):
    monkeypatch.setattr(video, "load_video_pipeline", None)  # before a model is loaded
    monkeypatch.setattr(video, "load_encoder", None)
    items, held = load_items(world / "data")[0], load_pt(world / "conditioning.pt", RESULT)
    mute = [{k: v for k, v in i.items() if k not in ("text", "direction")} for i in items]
    write_items(tmp_path / "mute", mute, {"data": "synthetic", "name": "squares"})
    others = tmp_path / "others.pt"
    save_pt(others, RESULT, [f"other-{i}" for i in held["ids"]], held["meta"], embeds=held["embeds"])
    bad = [(changed(cohere, adapter=others), "other clips"), (changed(continued, past=2), "--past 3")]
    bad += [(changed(continued, horizon=16), "has 7 frames, 19 are needed")]
    for line, words in [*bad, (changed(continued, "futures", data=tmp_path / "mute"), "no text")]:
        refused(lambda line=line: video.main(changed(line, out=tmp_path / "x.yaml")), words)


def test_clips_that_hold_the_last_frame_gain_nothing_over_copy_and_are_static(drawn):
    hold = lambda given, number: given[:, -1:].expand(-1, 4, -1, -1, -1)  # noqa: E731 (one line)
    found = drawn(hold, continuations="past,first")
    holds(found, "static == True, l1 == l1_copy, l1 > 0, temporal_ratio == 0, direction_accuracy == 0")
    for prefix in ("", "moving_"):
        ends = ("", "_low", "_high", "_p", "_p_wilcoxon")
        assert [found[f"{prefix}gain_over_copy{end}"] for end in ends] == [0, 0, 0, 1, 1]
        assert found[f"{prefix}gain_over_flow"] < 0  # the squares move on
    assert not found["continuations"]["vae"]["static"]
    found = drawn(hold, continuations="past", past=1, horizon=1)  # one frame has no motion
    assert found["shown"] == 1 and found["temporal_ratio"] is None and not found["static"]
    assert found["l1"] == found["l1_copy"] == found["l1_flow"] > 0 and list(found["horizons"]) == [1]


def test_clips_that_are_the_future_are_without_error_and_gain_over_copy(world, drawn):
    clips, at = held_out(world)[1], torch.arange(3, 5)
    found = drawn(lambda given, number: clips[:, at + 2 * number], continuations="past")
    assert found["l1"] == 0 and found["direction_accuracy"] == 1
    assert found["temporal_ratio"] == pytest.approx(1) and found["gain_over_copy_low"] > 0


@pytest.mark.parametrize("j, starts", [(5, (3, 7, 11, 15)), (1, (7, 11, 15)), (0, (0, 12, 16))])
def test_windows_continue_from_the_last_frames_so_far(j, starts):
    """Frames are numbers, 7 the last past one; a clip of 9 continues its given frames, without any at 8."""
    for past, frames, r, k in ((8, 9, 2, 5), (8, 17, 8, 1), (9, 17, 8, 9), (4, 9, 2, 3), (1, 9, 2, 1)):
        assert video.span(past, frames, r) == k  # r*j+1 of them, at most half of a clip
    seen = []

    def shoot(given, number):
        seen.append((given.flatten().tolist(), number))
        start = int(given[0, 0, 0, 0, 0]) if given.shape[1] else 8
        return (start + torch.arange(9)).view(1, 9, 1, 1, 1)

    out = video.continue_clips(shoot, torch.arange(8).view(1, 8, 1, 1, 1)[:, 8 - j :], 5, 16)
    given = [list(range(starts[0], starts[0] + j)), *(list(range(k, k + 5)) for k in starts[1:])]
    assert out.flatten().tolist() == list(range(8, 24)) and seen == [(x, n) for n, x in enumerate(given)]


def test_a_window_is_given_the_past_its_own_noise_and_prompt(world, continued, calls, tmp_path):
    clips = held_out(world)[1]
    video.main(changed(continued, out=tmp_path / "x.yaml", seeds=2, continuations="past,first+text,text"))
    asked = [args for args, _ in calls]
    shown = [args[4][0][1] if args[4] else None for args in asked]
    assert len(asked) == 2 * (2 + 1 + 1)  # past has 2 new frames a clip, first 4, text 5
    assert torch.equal(shown[0], clips[:, :3]) and torch.equal(shown[1][:, :1], clips[:, 2:3])
    assert torch.equal(shown[4], clips[:, 2:3]) and shown[6] is None
    assert [args[6] for args in asked] == ["0 0", "0 1", "1 0", "1 1", "0 0", "1 0", "0 0", "1 0"]
    assert asked[0][5][0].shape[1] == 1 < asked[4][5][0].shape[1]  # the empty prompt is one token


def test_no_frame_of_the_future_and_no_other_clip_reaches_a_continuation(world, continued, tmp_path):
    items = load_items(world / "data")[0]
    for i in items:
        i["frames"] = torch.cat([i["frames"][:3], 255 - i["frames"][3:].flip(0)])
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "squares"})
    line = changed(continued, continuations="past,text")
    video.main(changed(line, out=tmp_path / "x.yaml", data=tmp_path / "data"))
    for name in ("vae", "past-0", "text-0"):
        every = part(world / "k/video-continue-parts", name)
        assert torch.equal(part(tmp_path / "x-parts", name), every) == (name != "vae")


def test_the_reconstruction_has_the_frames_before_that_the_autoencoder_needs(world, small):
    vae, clips = small[2], held_out(world)[1][:2]
    whole = ltx.decode_generated_clips(vae, ltx.encode_generated_clips(vae, clips[:, 2:]))
    assert all(torch.equal(video.reconstructed(vae, clips, n, 2), whole[:, -n:]) for n in (3, 4))
    longer = torch.cat([clips[:, :1].expand(-1, 2, -1, -1, -1), clips], 1)
    longer = ltx.decode_generated_clips(vae, ltx.encode_generated_clips(vae, longer))
    assert torch.equal(video.reconstructed(vae, clips, 7, 8), longer[:, -7:])


def test_continue_reports_every_row_and_its_clips_start_with_the_last_past_frame(world, continued):
    found, names = load_yaml(world / "k/video-continue.yaml", "video"), list(video.CONTINUATIONS)
    table, criteria = found["continuations"], found["criteria"]
    holds(found, "model == None, shown == 3, l1 == continuations.past.l1, continuations.flow.l1 < l1_copy")
    assert list(table) == ["real", *motion.BASELINES, *names] and list(found["horizons"]) == ["1", "2", "4"]
    assert found["gain_over_copy"] == pytest.approx(found["l1_copy"] - found["l1"], abs=1e-5)
    assert set(criteria["l1"]["baselines"]) == set(motion.BASELINES) - {"vae"}
    assert generated(world, "k", 2, ["real", "vae", "copy", *names]) == ("past", "right")


def test_a_candidate_that_agrees_and_continues_ranks_first():
    seen = torch.full((1, 3, 4, 4, 3), 100, dtype=torch.uint8)
    seen[:, 1:] += torch.tensor([2, 4]).view(1, 2, 1, 1, 1).byte()
    steady = seen[:, -1:] + (2 * torch.arange(1, 3)).view(1, 2, 1, 1, 1).byte()  # a step of 2, as before
    more = {"consistency": torch.tensor([[0.1], [0.9], [0.8]]).double()}
    found = video.ranking_scores(torch.stack([steady + 50, steady, steady + 1]), seen, steady, more)
    assert [s.argmax(0).item() for s in found.values()] == [1 if n != "agreement" else 2 for n in found]
    assert all(s[0, 0] < s[1:, 0].min() for s in found.values())


@pytest.mark.parametrize("past, horizon", [(3, 2), (1, 4)])
def test_a_picker_that_knows_the_truth_picks_it(world, drawn, monkeypatch, past, horizon):
    first = (7 - past - 4) // 2  # of the middle past + 4 of 7 frames, a generated clip covers 5
    clips, ends = held_out(world)[1][:, first : first + 5], []
    true, still = clips[:, past:], clips[:, past - 1 : past].expand(-1, horizon, -1, -1, -1)
    futures = [255 - still, 255 - true, true, true.flip(0)]

    def new(given, number):
        ends.append(given)
        return futures[len(ends) - 1]

    monkeypatch.setattr(video, "reconstructed", lambda vae, clips, most, *_: clips[:, -most:])
    monkeypatch.setattr(video, "extrapolate_flow", lambda seen, ahead: true)
    found = drawn(new, job="futures", candidates=4, past=past)
    assert found["truth_preferred_by"]["flow"]["share"] == 3.5 / 4  # one candidate is the truth
    assert (found["shown"], found["horizon"]) == (past, horizon)
    assert all(torch.equal(x, clips[:, :past]) for x in ends)
    holds(found["pickers"], "flow.l1 == 0, flow.l1_oracle_share == 1")
    holds(found["pickers"], "one.l1_oracle_share == 0, worst.l1 > 0.1")
    oracle = [c["oracle"]["l1"] for c in found["curve"].values()]
    assert oracle == sorted(oracle, reverse=True) and list(found["curve"]) == [1, 2, 4]
    assert found["l1"] == found["pickers"]["mean_rank"]["l1"]


def test_equal_candidates_leave_no_choice(world, drawn, monkeypatch):
    still = held_out(world)[1][:, 2:3].expand(-1, 4, -1, -1, -1)
    monkeypatch.setattr(video, "reconstructed", lambda vae, clips, most, *_: still[:, :most])
    found = drawn(lambda given, number: still, job="futures", candidates=3)
    assert all(x["share"] == 0.5 for x in found["truth_preferred_by"].values())
    assert found["gain_over_one"] == 0 and found["gain_over_one_p"] == 1 and found["oracle_share"] is None


def test_the_first_candidate_is_that_of_continue(world, continued, calls, tmp_path, monkeypatch):
    line = changed(continued, "futures", out=tmp_path / "f.yaml", candidates=6, clips=3)
    found = video.main(line)
    assert [more["guidance"] for _, more in calls] == [1.0] * 5 + [2.0]
    futures = [part(tmp_path / "f-parts", f"candidate-{i}") for i in range(6)]
    assert torch.equal(futures[0], part(world / "k/video-continue-parts", "past-0")[:3, :2])
    assert not any(torch.equal(futures[0], x) for x in futures[1:])
    monkeypatch.setattr(video, "load_video_pipeline", None)
    assert video.main(line)["pickers"] == found["pickers"]


def test_an_animation_begins_with_its_images_which_stand_evenly_up_to_the_middle(tmp_path, refused):
    items = synthetic.moving(12, 64, 913)  # an object moves before a still background
    items = [i for i in items if i["direction"] != "still" and not any(i["camera"])]
    frames, end = motion.windows(items, 9, 64)[2]["frames"], {}
    paths, out = [f"{tmp_path}/{k}.png" for k in (0, 2, 4)], f"{tmp_path}/out.mp4"
    for path, k in zip(paths, (0, 2, 4), strict=True):
        Image.fromarray(frames[k].numpy()).save(path)
    for numbers, images in (([0], paths[:1]), ([0, 4], paths[::2]), ([0, 2, 4], paths)):
        result = video.main(["animate", "--image", *images, "--video", out])
        clip = media.read_clip(out, 9)
        assert result["shown_at"] == numbers and clip.times[8] == 4 and clip.frames.shape[1:3] == (256, 256)
        off = (media.frames_of({"frames": clip.frames[[0, 8]]}, 64).float() - frames[[0, 8]].float()) / 255
        off = off.abs()
        assert off[0].mean() < 0.04
        end[len(numbers)] = off[1].mean()
    assert end[1] > 1.3 * max(end[2], end[3]) and Image.open(tmp_path / "out.gif").n_frames == 9
    for images, words in ((paths[:1] * 6, "first 5"), ([f"{tmp_path}/out.gif"], "would overwrite")):
        refused(lambda files=images: video.main(["animate", "--image", *files, "--video", out]), words)
