"""The embedded default: what is committed does its job, and the training that made it learns."""

import numpy as np
import pytest
import torch

import claims
import common
import data
import media
import models
import synthetic
import tiny

CHECKPOINTS = common.HERE / "results" / "tiny" / "checkpoints"


def test_the_committed_models_do_their_job_far_above_their_floors():
    found = common.load_yaml(common.HERE / "results" / "tiny" / "tiny.yaml", "tiny")
    for model in ("vlm", "semantic"):
        assert found[f"{model}_naming"] >= 0.95 > 0.5 > found[f"{model}_naming_floor"]
    assert found["vlm_place"] >= 0.6 > 2 * found["vlm_place_floor"]
    assert found["vlm_direction"] >= 0.9 > 0.2 > found["vlm_direction_floor"]
    # never asked, so it does not even use the words
    assert found["semantic_place"] == 0 == found["semantic_direction"]
    for model in tiny.COUSINS:
        assert found[f"{model}_naming"] > 0.65 > 10 * found[f"{model}_naming_floor"]
        assert found[f"{model}_place"] > 0.8 > 3 * found[f"{model}_place_floor"]
    for kind in ("image", "clip9", "clip17"):
        assert found[f"vae_{kind}_mae"] <= found[f"vae_{kind}_mae_blank"] / 4
        assert found[f"vae_{kind}_ssim"] >= 0.9
    assert found["dinov2_masked_mae"] < 0.5 * found["dinov2_masked_mae_mean_patch"]
    for key in ("", "continued_"):
        # the measure
        assert found[f"ltx_{key}direction_real"] > 0.95 and found[f"ltx_{key}direction_frozen"] == 0
        assert found[f"ltx_{key}direction"] > 0.8 > 0.3 > found["ltx_direction_chance"]
        assert (
            found[f"ltx_{key}mae_changing_vae"]
            < found[f"ltx_{key}mae_changing"]
            < 0.8 * found[f"ltx_{key}mae_changing_frozen"]
        )
    # over all pixels, most of which stand still, the autoencoder's own error is the larger part
    assert found["ltx_mae"] < found["ltx_mae_frozen_vae"]
    assert found["ltx_told_back_direction"] > 0.8  # it is the prompt that leads, not the picture


def test_all_checkpoints_together_stay_within_40_megabytes():
    assert sum(f.stat().st_size for f in CHECKPOINTS.rglob("*") if f.is_file()) < 40e6
    assert all(sum(f.stat().st_size for f in (CHECKPOINTS / model).iterdir()) < 4e6 for model in tiny.COUSINS)
    assert sum(f.stat().st_size for f in (CHECKPOINTS / "ltx").rglob("*") if f.is_file()) < 6e6
    assert not (CHECKPOINTS / "ltx" / "vae").exists()
    assert sum(f.stat().st_size for f in (CHECKPOINTS / "words").iterdir()) <= 2.5e6


@pytest.mark.slow
def test_the_committed_vlm_reads_fresh_pictures_as_its_yaml_says(tmp_path):
    data.main(["shapes", "--n", "40", "--seed", "77", "--out", str(tmp_path / "shapes")])
    items, _ = common.load_items(tmp_path / "shapes")
    model, processor = models.load_vlm(models.find_model("tiny"))
    frames = torch.stack([media.frames_of(i, 96) for i in items])
    said = tiny.ask(model, processor, frames, ["What is in the picture?"] * len(items))
    named = [n in s for i, s in zip(items, said, strict=True) for n in i["names"]]
    assert sum(named) / len(named) > 0.9
    shuffled = [n in s for i, s in zip(items, said[1:] + said[:1], strict=True) for n in i["names"]]
    assert sum(shuffled) / len(shuffled) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("model", tiny.COUSINS)
def test_the_other_families_place_fresh_pictures(model, tmp_path):
    data.main(["shapes", "--n", "60", "--seed", "77", "--out", str(tmp_path / "shapes")])
    items, _ = common.load_items(tmp_path / "shapes")
    network, processor = models.load_vlm(models.find_model(f"tiny-{model}"))
    asked = [next(t for t in i["turns"] if t[0].startswith("Where is")) for i in items]
    frames = torch.stack([media.frames_of(i, 96) for i in items])
    said = tiny.ask(network, processor, frames, [q for q, _ in asked])
    assert np.mean([a == t for a, (_, t) in zip(said, asked, strict=True)]) > 0.7
    # another picture's answer
    assert np.mean([a == t for a, (_, t) in zip(said[1:] + said[:1], asked, strict=True)]) < 0.4


@pytest.mark.slow
def test_the_committed_vlm_tells_direction_from_motion_and_not_from_a_frame(tmp_path):
    data.main(["moving", "--n", "60", "--seed", "79", "--out", str(tmp_path / "moving")])
    items, _ = common.load_items(tmp_path / "moving")
    model, processor = models.load_vlm(models.find_model("tiny"))
    clips, truth = torch.stack([media.frames_of(i, 64) for i in items]), [i["direction"] for i in items]

    def says(x):
        return tiny.ask(model, processor, x, [i["turns"][0][0] for i in items])

    def agree(found, expected):
        return np.mean([a == b for a, b in zip(found, expected, strict=True)])

    back = [tiny.MOTION_WORDS[tuple(-c for c in synthetic.DIRECTIONS.get(d, (0, 0)))] for d in truth]
    assert agree(says(clips), truth) > 0.9 and agree(says(clips.flip(1)), back) > 0.9
    assert agree(says(clips[:, 8:9].expand(-1, 17, -1, -1, -1)), ["still"] * len(items)) > 0.9
    assert agree(says(clips.roll(2, 0)), truth) < 0.4  # another scene's clip


@pytest.mark.slow
def test_the_committed_autoencoder_reconstructs_fresh_pictures(tmp_path):
    data.main(["shapes", "--n", "24", "--seed", "78", "--out", str(tmp_path / "shapes")])
    items, _ = common.load_items(tmp_path / "shapes")
    vae, _ = models.load_video_vae(models.find_model("tiny-vae"))
    frames = torch.stack([media.frames_of(i, 64) for i in items])
    found = tiny.vae_quality(vae, frames, frames.expand(-1, 17, -1, -1, -1), "cpu")
    assert found["image_mae_ratio"] < 0.25 and found["image_ssim"] > 0.9


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    data.main(f"shapes --size 96 --n 200 --seed 5 --out {folder}/shapes".split())
    data.main(f"moving --n 60 --seed 5 --out {folder}/moving".split())
    return folder


def train(pools, out, name, steps):
    return tiny.main(
        f"--only {name} --shapes {pools}/shapes --moving {pools}/moving --out {out} --steps {steps}".split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vlm", "dinov2", "llava-next", "internvl2", "cogvlm2", "ltx"])
def test_a_short_training_learns_and_leaves_a_checkpoint_that_loads(pools, tmp_path, name):
    if name in ("vlm", "ltx"):
        with pytest.raises(SystemExit):  # goes on from `semantic`, or needs the autoencoder, and says so
            train(pools, tmp_path, name, 2)
    if name == "vlm":
        train(pools, tmp_path, "semantic", 5)
    if name == "ltx":
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "vae").symlink_to(CHECKPOINTS / "vae")
    train(pools, tmp_path, name, 40 if name == "ltx" else 60)
    found = common.load_yaml(tmp_path / f"tiny-{name}.yaml", "tiny")
    curve = list(found["loss"].values())
    assert sum(curve[-5:]) / 5 < (0.9 if name == "ltx" else 0.8) * curve[0]
    entry = models.find_model(str(tmp_path / "checkpoints" / name))
    assert entry["weights"] == "small"
    model, _ = models.LOADERS[entry["kind"]](entry)
    if name == "ltx":
        assert found["direction_real"] > 0.8 and found["direction_frozen"] == 0
        assert model.transformer.config.num_layers == 4
    else:
        assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_a_training_that_was_interrupted_ends_where_an_uninterrupted_one_does(pools, tmp_path, monkeypatch):
    train(pools, tmp_path / "whole", "dinov2", 8)
    clip, calls = torch.nn.utils.clip_grad_norm_, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return clip(*args, **kwargs)

    monkeypatch.setattr(tiny, "SAVE_EVERY", 4)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        train(pools, tmp_path / "broken", "dinov2", 8)
    train(pools, tmp_path / "broken", "dinov2", 8)
    a, b = (
        torch.load(tmp_path / k / "training" / "dinov2.pt", weights_only=True) for k in ("whole", "broken")
    )
    assert a["losses"] == b["losses"] and len(a["losses"]) == 8
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


@pytest.mark.parametrize("name", tiny.COUSINS)
def test_only_the_answers_carry_loss_in_every_family_and_only_the_pictures_own_rows_tell(name):
    what = "What is in the picture?"
    where = "Where is the red circle?"
    a = "a red circle"
    b = "top left"
    processor, model, grid, see, norm = tiny.COUSINS[name]([what, where, a, b, "user\n", "assistant\n"])
    tokenizer = getattr(processor, "tokenizer", processor)
    frames = torch.zeros(2, 1, 96, 96, 3, dtype=torch.uint8)
    batch, labels = tiny.lesson(model, processor, frames, [[(what, a), (where, b)], [(where, b)]])
    said = [
        tokenizer.decode(ids[row != -100]).replace(" ", "")
        for ids, row in zip(batch["input_ids"], labels, strict=True)
    ]
    assert said == ["aredcircle<|im_end|>topleft<|im_end|>", "topleft<|im_end|>"]
    rows, seen = tiny.picture_rows(model, batch, grid * grid), {}
    pictures = see(tiny.normalised(frames, *norm))
    assert rows.sum(1).tolist() == [grid * grid] * 2 and pictures.shape == (2, grid * grid, 128)
    first = model.model.get_submodule("layers.0" if name == "cogvlm2" else "language_model.layers.0")
    first.register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    with torch.no_grad():
        model(**batch)
    torch.testing.assert_close(seen["x"][rows].view(2, grid * grid, -1), pictures, atol=1e-4, rtol=1e-4)


def test_only_the_answers_carry_loss():
    what = "What is in the picture?"
    processor = tiny.vlm_processor([what, "a red circle", "user\n", "assistant\n"])
    frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    text = tiny.conversation(processor, frames, [(what, "a red circle"), (what, "a red")])
    ids = tiny.encode(processor, frames[None], [text])["input_ids"]
    said = processor.tokenizer.decode(ids[tiny.answer_labels(ids, processor.tokenizer) != -100])
    assert said == "a red circle<|im_end|>a red<|im_end|>"


@pytest.mark.parametrize("kind", ["shapes", "moving"])
def test_what_is_said_of_a_picture_turns_with_it(kind, shapes_folder, moving_folder):
    """The pictures here are their own masks, so after every turn the truth can be read off them again."""
    items, _ = common.load_items({"shapes": shapes_folder, "moving": moving_folder}[kind])
    masks = torch.stack([i["mask"] if kind == "moving" else i["mask"][None] for i in items])
    owner, told = tiny.truths(items, 4)
    seen = set()
    for seed in range(12):
        x, own, tell = tiny.turn(masks[..., None], owner, told, np.random.default_rng(seed))
        x = x[..., 0]
        assert torch.equal(
            own,
            tiny.truths(
                [i | {"mask": m if kind == "moving" else m[0]} for i, m in zip(items, x, strict=True)], 4
            )[0],
        )
        assert torch.equal(tell[..., 0], told[..., 0]) and torch.equal(tell == -100, told == -100)
        for item, mask, row in zip(items, x, tell, strict=True):
            k = len(item["names"])  # the last object: in clips the one that moves
            ends = [(m == k).nonzero().float() for m in mask[[0, -1]]]
            if kind == "moving":
                if min(len(e) for e in ends) > 150:  # wholly inside the frame at both ends
                    x_and_y = (ends[1].mean(0) - ends[0].mean(0)).flip(0)
                    assert row[k, 1:].tolist() == [
                        int(s) for s in torch.where(x_and_y.abs() > 4, x_and_y.sign(), 0)
                    ]
            else:
                middle = (ends[0].amin(0) + ends[0].amax(0) + 1).flip(0) / 2 / 64
                if ((middle * 3) % 1).sub(0.5).abs().max() < 0.45:  # not on the line between two places
                    assert row[k, 1:].tolist() == [int(c * 3) - 1 for c in middle]
        seen.add(tuple(tell.flatten().tolist()))
    assert len(seen) > 1  # it did turn


def test_over_one_frame_the_flattened_autoencoder_computes_what_the_library_computes():
    torch.manual_seed(0)
    model = tiny.vae_model()
    for frames in (1, 5):
        x = torch.rand(2, 3, frames, 32, 32) * 2 - 1
        with torch.no_grad():
            before = model(x).sample
            after = models.flatten_stills(model)(x).sample
        assert before.std() > 0.01 and (before - after).abs().max() < 1e-4


def test_dissimilarity_is_scikit_images():
    from skimage.metrics import structural_similarity

    x, y = torch.rand(2, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y, how = 0.7 * x + 0.3 * y, {"channel_axis": 0, "data_range": 2, "use_sample_covariance": False}
    expected = 1 - sum(structural_similarity(x[:, t].numpy(), y[:, t].numpy(), **how) for t in range(2)) / 2
    assert abs(tiny.dissimilarity(x[None], y[None]).item() - expected) < 1e-4
    assert tiny.dissimilarity(x[None], x[None]).abs() < 1e-5


def test_the_training_shortcut_computes_what_the_library_computes():
    processor = tiny.vlm_processor(["What is in the picture?", "a red circle", "user\n", "assistant\n"])
    torch.manual_seed(0)
    model = tiny.vlm_model(processor.tokenizer).eval()
    frames = torch.randint(0, 256, (3, 1, 96, 96, 3), dtype=torch.uint8)
    batch = tiny.encode(
        processor,
        frames,
        [tiny.conversation(processor, f, [("What is in the picture?", None)]) for f in frames],
    )
    with torch.no_grad():
        before, after = model(**batch).logits, tiny.for_training(model)(**batch).logits
    assert (before - after).abs().max() < 1e-4 * before.abs().max()


# ---------------------------------------------------------------- the video transformer


@pytest.fixture(scope="module")
def film():
    """The committed pipeline."""
    return models.load_video_pipeline(models.find_model("tiny-ltx"))[0]


def test_a_folder_of_the_pipeline_is_known_by_its_index_and_finds_the_autoencoder_beside_it(
    tmp_path, refused
):
    for name in ("ltx", "vae"):
        (tmp_path / name).symlink_to(CHECKPOINTS / name)
    entry = models.find_model(str(tmp_path / "ltx"))
    assert entry["kind"] == "video" and (entry["size"], entry["clip"]) == (64, 64)
    pipeline, _ = models.LOADERS["video"](entry)
    assert all(
        p.isfinite().all()
        for part in (pipeline.transformer, pipeline.text_encoder, pipeline.vae)
        for p in part.parameters()
    )
    refused(lambda: models.skeleton(entry, torch.float32), "is a video pipeline")


def test_a_whole_pipeline_as_the_hub_has_it_loads_by_the_same_function(film, tmp_path, refused):
    film.save_pretrained(tmp_path)
    pipeline, _ = models.load_video_pipeline(models.find_model("ltx") | {"path": str(tmp_path)})
    for part in ("vae", "text_encoder", "transformer"):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                getattr(film, part).parameters(), getattr(pipeline, part).parameters(), strict=True
            )
        )
    refused(
        lambda: models.load_video_pipeline(models.find_model("ltx")),
        "cannot load Lightricks/LTX-Video",
        "`hf download Lightricks/LTX-Video`",
    )


def test_the_straight_line_from_clean_to_noise_has_the_velocity_that_leads_back():
    clean, noise = torch.randn(2, 3, 16, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.linspace(0, 1, 15).view(3, 5)
    x, velocity = tiny.noised(clean, noise, sigma)
    torch.testing.assert_close(x - sigma[:, None, :, None, None] * velocity, clean, atol=1e-5, rtol=1e-5)
    assert torch.equal(x[0, :, 0], clean[0, :, 0]) and torch.allclose(x[2, :, 4], noise[2, :, 4])


@pytest.mark.parametrize("given", [1, 3])
def test_a_transformer_that_knew_the_clip_would_lead_both_pipelines_back_to_it(film, monkeypatch, given):
    """It returns noise - clean, the target of the training; the frames that are given keep time 0 and come back as they went in."""
    frames = torch.randint(
        0, 256, (2, tiny.FRAMES, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    clean = tiny.film_latents(film.vae, frames, "cpu")
    packed, times = clean.flatten(2).transpose(1, 2), []

    def knows(hidden_states, timestep, **more):
        times.append(timestep)
        return ((hidden_states - packed) / (timestep / 1000).clamp(min=1e-3)[..., None],)

    monkeypatch.setattr(film.transformer, "forward", knows)
    # the latents themselves, as a clip
    monkeypatch.setattr(film.vae, "decode", lambda z, *args, **more: (z.repeat_interleave(2, 2)[:, :3],))
    seen = {}
    monkeypatch.setattr(type(film), "_denormalize_latents", staticmethod(lambda z, *a: seen.update(z=z) or z))
    from diffusers import LTXConditionPipeline

    monkeypatch.setattr(
        LTXConditionPipeline, "_denormalize_latents", staticmethod(lambda z, *a: seen.update(z=z) or z)
    )
    tiny.continued(film, frames, 2 * given - 1, ["", ""], steps=4)
    # the given latents are drawn, with a thousandth of spread
    assert (seen["z"] - clean).abs().max() < 0.1 < (seen["z"] - clean.flip(0)).abs().max()
    first = times[0].view(2, 5, 64)
    assert (first[:, :given] == 0).all() and (first[:, given:] == 1000).all()
    assert [t.max().item() for t in times] == [1000, 750, 500, 250]


def test_the_training_calls_the_transformer_as_the_pipelines_do():
    tokenizer = tiny.t5_tokenizer(["the red circle moves left", "the blue star moves up right"])
    torch.manual_seed(0)
    model = tiny.Film(tokenizer).eval()
    words = tokenizer(
        ["the red circle moves left", ""], padding="max_length", max_length=128, return_tensors="pt"
    )
    assert words.attention_mask.sum(1).tolist()[1] == 1 and words.input_ids[1, 0] == tokenizer.eos_token_id
    x, sigma = torch.randn(2, 16, 5, 8, 8), torch.rand(2, 5)
    with torch.no_grad():
        ours = model(x, sigma, words.input_ids, words.attention_mask, 2 * torch.arange(5) / 25)
        theirs = model.transformer(
            x.flatten(2).transpose(1, 2),
            model.text_encoder(words.input_ids)[0],
            1000 * sigma.repeat_interleave(64, 1),
            words.attention_mask,
            num_frames=5,
            height=8,
            width=8,
            rope_interpolation_scale=(2 / 25, 8, 8),
            return_dict=False,
        )[0]
    assert ours.shape == x.shape and ours.std() > 0.01
    torch.testing.assert_close(ours.flatten(2).transpose(1, 2), theirs, atol=1e-4, rtol=1e-4)


def test_words_turn_with_the_films_and_only_motion_before_a_still_background_is_filmed(moving_folder):
    """The frames here are the mask of what moves, so the way it goes can be read off them."""
    items, _ = common.load_items(moving_folder)
    masks = [
        i | {"frames": (i["mask"] == len(i["names"]))[..., None].expand(-1, -1, -1, 3).byte() * 255}
        for i in items
    ]
    frames, captions = tiny.films(masks, 0, 6)
    assert (
        len(frames)
        == len(captions)
        == 6 * sum(i["direction"] != "still" and not any(i["camera"]) for i in items)
    )
    assert frames.shape[1:] == (tiny.FRAMES, 64, 64, 3)
    whole = (frames[..., 0] > 0).flatten(2).sum(2)
    kept = [k for k, area in enumerate(whole) if area.min() > 0.97 * area.max()]  # wholly in sight
    read = claims.heading(claims.whereabouts(frames[kept], frames[kept, 0, ..., 0] > 0))
    assert len(set(captions)) > len(items) / 4 and len(kept) > 10
    assert [captions[k].split(" moves ")[1] for k in kept] == read


def test_the_way_is_read_off_real_clips_and_a_frozen_one_goes_nowhere(moving_folder):
    items = [i for i in common.load_items(moving_folder)[0] if i["direction"] != "still"]
    clips = torch.stack([i["frames"] for i in items])
    masks = torch.stack([i["mask"][4] == len(i["names"]) for i in items])
    read = claims.heading(claims.whereabouts(clips[:, 4:13], masks))
    assert np.mean([a == i["direction"] for a, i in zip(read, items, strict=True)]) > 0.9
    assert set(claims.heading(claims.whereabouts(clips[:, 4:5].expand(-1, 9, -1, -1, -1), masks))) == {
        "still"
    }
    # a blank frame is no motion either
    assert set(
        claims.heading(claims.whereabouts(torch.cat([clips[:, 4:5], clips[:, :1] * 0], 1), masks))
    ) == {""}


@pytest.mark.slow
def test_the_committed_video_transformer_continues_fresh_clips(film, tmp_path):
    data.main(["moving", "--n", "60", "--seed", "83", "--out", str(tmp_path / "moving")])
    items, _ = common.load_items(tmp_path / "moving")
    found = tiny.film_quality(film, items, "cpu", count=24)
    assert found["clips"] == 24 and found["direction_chance"] < 0.35
    assert found["direction_frozen"] == found["continued_direction_frozen"] == 0
    assert found["direction"] > 0.7 and found["continued_direction"] > 0.7
    assert found["told_back_direction"] > 0.7
    for key in ("", "continued_"):
        assert found[f"{key}mae_changing"] < 0.9 * found[f"{key}mae_changing_frozen"]
    moving = [i for i in items if i["direction"] != "still" and not any(i["camera"])][:4]
    real = torch.stack([i["frames"][: tiny.FRAMES] for i in moving])
    made = tiny.continued(film, real, 1, [tiny.caption(i["names"][-1], i["direction"]) for i in moving])
    # the first frame comes back
    assert made.shape == real.shape and (made[:, 0].float() - real[:, 0].float()).abs().mean() / 255 < 0.015
