"""The embedded default: what is committed does its job, and the training that made it learns."""
import numpy as np
import pytest
import torch

import common
import data
import tiny

CHECKPOINTS = common.HERE / "results" / "tiny" / "checkpoints"


def summary():
    return common.load_yaml(common.HERE / "results" / "tiny" / "tiny.yaml", "tiny")


def test_the_committed_models_name_what_they_see():
    found = summary()
    for model in ("vlm", "semantic"):
        assert found[f"{model}_naming"] >= 0.95 > 0.5 > found[f"{model}_naming_floor"]


def test_the_place_model_answers_where_and_which_way_above_its_floor():
    found = summary()
    assert found["vlm_place"] >= 0.6 > 2 * found["vlm_place_floor"] and found["vlm_direction"] >= 0.9 > 0.2 > found["vlm_direction_floor"]
    assert found["semantic_place"] == 0 == found["semantic_direction"]  # never asked, so it does not even use the words


@pytest.mark.parametrize("model", tiny.COUSINS)
def test_the_other_families_name_and_place_far_above_their_floors(model):
    found = summary()
    assert found[f"{model}_naming"] > 0.65 > 10 * found[f"{model}_naming_floor"] and found[f"{model}_place"] > 0.8 > 3 * found[f"{model}_place_floor"]
    assert sum(f.stat().st_size for f in (CHECKPOINTS / model).iterdir()) < 4e6


def test_the_autoencoder_is_not_the_blank_frame():
    found = summary()
    for kind in ("image", "clip9", "clip17"):
        assert found[f"vae_{kind}_mae"] <= found[f"vae_{kind}_mae_blank"] / 4
        assert found[f"vae_{kind}_ssim"] >= 0.9


def test_the_encoder_fills_hidden_patches_better_than_their_mean():
    assert summary()["dinov2_masked_mae"] < 0.5 * summary()["dinov2_masked_mae_mean_patch"]


def test_all_checkpoints_together_stay_within_40_megabytes():
    assert sum(f.stat().st_size for f in CHECKPOINTS.rglob("*") if f.is_file()) < 40e6


@pytest.mark.slow
def test_the_committed_vlm_reads_fresh_pictures_as_its_yaml_says(tmp_path):
    data.main(["shapes", "--n", "40", "--seed", "77", "--out", str(tmp_path / "shapes")])
    items, _ = common.load_items(tmp_path / "shapes")
    model, processor = common.load_vlm(common.find_model("tiny"))
    frames = torch.stack([common.frames_of(i, 96) for i in items])
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
    network, processor = common.load_vlm(common.find_model(f"tiny-{model}"))
    asked = [next(t for t in i["turns"] if t[0].startswith("Where is")) for i in items]
    frames = torch.stack([common.frames_of(i, 96) for i in items])
    said = tiny.ask(network, processor, frames, [q for q, _ in asked])
    assert np.mean([a == t for a, (_, t) in zip(said, asked, strict=True)]) > 0.7
    assert np.mean([a == t for a, (_, t) in zip(said[1:] + said[:1], asked, strict=True)]) < 0.4  # another picture's answer


@pytest.mark.slow
def test_the_committed_vlm_tells_direction_from_motion_and_not_from_a_frame(tmp_path):
    data.main(["moving", "--n", "60", "--seed", "79", "--out", str(tmp_path / "moving")])
    items, _ = common.load_items(tmp_path / "moving")
    model, processor = common.load_vlm(common.find_model("tiny"))
    clips, truth = torch.stack([common.frames_of(i, 64) for i in items]), [i["direction"] for i in items]

    def says(x):
        return tiny.ask(model, processor, x, [i["turns"][0][0] for i in items])

    def agree(found, expected):
        return np.mean([a == b for a, b in zip(found, expected, strict=True)])

    back = [tiny.MOTION_WORDS[tuple(-c for c in tiny.DIRECTIONS.get(d, (0, 0)))] for d in truth]
    assert agree(says(clips), truth) > 0.9 and agree(says(clips.flip(1)), back) > 0.9
    assert agree(says(clips[:, 8:9].expand(-1, 17, -1, -1, -1)), ["still"] * len(items)) > 0.9
    assert agree(says(clips.roll(2, 0)), truth) < 0.4  # another scene's clip


@pytest.mark.slow
def test_the_committed_autoencoder_reconstructs_fresh_pictures(tmp_path):
    data.main(["shapes", "--n", "24", "--seed", "78", "--out", str(tmp_path / "shapes")])
    items, _ = common.load_items(tmp_path / "shapes")
    vae, _ = common.load_video_vae(common.find_model("tiny-vae"))
    frames = torch.stack([common.frames_of(i, 64) for i in items])
    found = tiny.vae_quality(vae, frames, frames.expand(-1, 17, -1, -1, -1), "cpu")
    assert found["image_mae_ratio"] < 0.25 and found["image_ssim"] > 0.9


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    data.main(["shapes", "--size", "96", "--n", "200", "--seed", "5", "--out", str(folder / "shapes")])
    data.main(["moving", "--n", "60", "--seed", "5", "--out", str(folder / "moving")])
    return folder


def train(pools, out, name, steps):
    return tiny.main(["--only", name, "--shapes", str(pools / "shapes"), "--moving", str(pools / "moving"), "--out", str(out), "--steps", str(steps)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vlm", "dinov2", "llava-next", "internvl2", "cogvlm2"])
def test_a_short_training_learns_and_leaves_a_checkpoint_that_loads(pools, tmp_path, name):
    if name == "vlm":
        with pytest.raises(SystemExit):  # goes on from `semantic`, and says so
            train(pools, tmp_path, name, 5)
        train(pools, tmp_path, "semantic", 5)
    train(pools, tmp_path, name, 60)
    found = common.load_yaml(tmp_path / f"tiny-{name}.yaml", "tiny")
    curve = list(found["loss"].values())
    assert sum(curve[-5:]) / 5 < 0.8 * curve[0]
    entry = common.find_model(str(tmp_path / "checkpoints" / name))
    assert entry["weights"] == "small"
    model, _ = common.LOADERS[entry["kind"]](entry)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_a_training_that_was_interrupted_ends_where_an_uninterrupted_one_does(pools, tmp_path, monkeypatch):
    train(pools, tmp_path / "whole", "dinov2", 8)
    real, calls = torch.nn.utils.clip_grad_norm_, []

    def stop(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(tiny, "SAVE_EVERY", 4)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        train(pools, tmp_path / "broken", "dinov2", 8)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", real)
    train(pools, tmp_path / "broken", "dinov2", 8)
    a, b = (torch.load(tmp_path / k / "training" / "dinov2.pt", weights_only=True) for k in ("whole", "broken"))
    assert a["losses"] == b["losses"] and len(a["losses"]) == 8
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


@pytest.mark.parametrize("name", tiny.COUSINS)
def test_only_the_answers_carry_loss_in_every_family_and_only_the_pictures_own_rows_tell(name):
    processor, model, grid, see, norm = tiny.COUSINS[name](["What is in the picture?", "Where is the red circle?", "a red circle", "top left", "user\n", "assistant\n"])
    tokenizer, frames = getattr(processor, "tokenizer", processor), torch.zeros(2, 1, 96, 96, 3, dtype=torch.uint8)
    batch, labels = tiny.lesson(model, processor, frames, [[("What is in the picture?", "a red circle"), ("Where is the red circle?", "top left")], [("Where is the red circle?", "top left")]])
    said = [tokenizer.decode(ids[row != -100]).replace(" ", "") for ids, row in zip(batch["input_ids"], labels, strict=True)]
    assert said == ["aredcircle<|im_end|>topleft<|im_end|>", "topleft<|im_end|>"]
    rows = tiny.picture_rows(model, batch, grid * grid)
    assert rows.sum(1).tolist() == [grid * grid] * 2 and see(tiny.normalised(frames, *norm)).shape == (2, grid * grid, 128)
    seen = {}
    model.model.get_submodule("layers.0" if name == "cogvlm2" else "language_model.layers.0").register_forward_hook(lambda module, args, out: seen.update(x=args[0] if args else None))
    with torch.no_grad():
        model(**batch)
        torch.testing.assert_close(seen["x"][rows].view(2, grid * grid, -1), see(tiny.normalised(frames, *norm)), atol=1e-4, rtol=1e-4)


def test_only_the_answers_carry_loss():
    processor = tiny.vlm_processor(["What is in the picture?", "a red circle", "user\n", "assistant\n"])
    frames = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    text = tiny.conversation(processor, frames, [("What is in the picture?", "a red circle"), ("What is in the picture?", "a red")])
    ids = tiny.encode(processor, frames[None], [text])["input_ids"]
    labels = tiny.answer_labels(ids, processor.tokenizer)
    assert processor.tokenizer.decode(ids[labels != -100]) == "a red circle<|im_end|>a red<|im_end|>"


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
        assert torch.equal(own, tiny.truths([i | {"mask": m if kind == "moving" else m[0]} for i, m in zip(items, x, strict=True)], 4)[0])
        assert torch.equal(tell[..., 0], told[..., 0]) and torch.equal(tell == -100, told == -100)
        for item, mask, row in zip(items, x, tell, strict=True):
            k = len(item["names"])  # the last object: in clips the one that moves
            ends = [(m == k).nonzero().float() for m in mask[[0, -1]]]
            if kind == "moving":
                if min(len(e) for e in ends) > 150:  # wholly inside the frame at both ends
                    x_and_y = (ends[1].mean(0) - ends[0].mean(0)).flip(0)
                    assert row[k, 1:].tolist() == [int(s) for s in torch.where(x_and_y.abs() > 4, x_and_y.sign(), 0)]
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
            after = tiny.flatten_stills(model)(x).sample
        assert before.std() > 0.01 and (before - after).abs().max() < 1e-4


def test_dissimilarity_is_scikit_images():
    from skimage.metrics import structural_similarity
    x, y = torch.rand(2, 3, 2, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = 0.7 * x + 0.3 * y
    expected = 1 - sum(structural_similarity(x[:, t].numpy(), y[:, t].numpy(), channel_axis=0, data_range=2, use_sample_covariance=False) for t in range(2)) / 2
    assert abs(tiny.dissimilarity(x[None], y[None]).item() - expected) < 1e-4 and tiny.dissimilarity(x[None], x[None]).abs() < 1e-5


def test_the_training_shortcut_computes_what_the_library_computes():
    processor = tiny.vlm_processor(["What is in the picture?", "a red circle", "user\n", "assistant\n"])
    torch.manual_seed(0)
    model = tiny.vlm_model(processor.tokenizer).eval()
    frames = torch.randint(0, 256, (3, 1, 96, 96, 3), dtype=torch.uint8)
    batch = tiny.encode(processor, frames, [tiny.conversation(processor, f, [("What is in the picture?", None)]) for f in frames])
    with torch.no_grad():
        before, after = model(**batch).logits, tiny.for_training(model)(**batch).logits
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
