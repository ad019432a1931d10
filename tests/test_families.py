"""Features are the library's own hidden states, in raster order at the right place, time step and item."""

import copy
import functools
import shutil

import helpers_classes as classes
import huggingface_hub
import pytest
import torch
from helpers import random_language_model
from transformers import AutoProcessor, DynamicCache
from transformers.models.smolvlm import processing_smolvlm

import check
import cost
import extract
import families
import streaming
from common import write_items
from features import quarters, resolve_aliases
from models import LOADERS, MODELS, find_model, greedy_tokens

SIDES = {"small_vlm": 80, "small_qwen2vl": 64, "small_qwen3vl": 64, "small_cogvlm2": 56, "small_vae": 32}
SIDES |= {f"small_{name}": 64 for name in ("florence2", "grounding_dino", "dinov3")}
SIDES |= {f"small_{name}": 48 for name in ("internvl", "kosmos2", "dino", "siglip", "owlvit", "owlv2")}
SIDES |= {"small_vjepa2": 48, "llava": 48, "llava_next": 96, "llava_onevision": 96}
# grid of the tokens, pixels of a token, and whether the tower's patches are half a token wide
PLACES = {"small_vlm": (5, 16, True), "small_qwen2vl": (4, 16, True), "small_qwen3vl": (4, 16, True)}
PLACES |= {"small_internvl": (3, 16, True), "small_cogvlm2": (2, 28, True), "small_vjepa2": (6, 8, False)}
PLACES |= {"llava": (6, 8, False), "llava_next": (12, 8, False), "llava_onevision": (12, 8, False)}
ROWS = {"small_vlm": 25, "small_qwen2vl": 16, "small_qwen3vl": 16, "small_internvl": 9, "llava": 36}
ROWS |= {"llava_next": 36 + 12 * 13, "llava_onevision": 36 + 12 * 13}
FIRST = {"small_dino": 1, "small_dinov3": 3, "small_owlvit": 1, "small_siglip": 0, "small_vjepa2": 0}
TEMPORAL = ("small_vlm", "small_qwen2vl", "small_qwen3vl", "small_vjepa2", "small_vae", "noncausal_vae")
PLAN = {
    "llava-next": "patch_embed,vision.11,vision.22,merger,language.15",
    "internvl2-26b": "patch_embed,vision.21,vision.44,merger,language.23",
    "cogvlm2": "patch_embed,vision.62,merger,language.15",
    "llava_onevision": "patch_embed,vision.1,vision.2,merger,language.1",
}
LATE = {"small_vjepa2": {"vision.0", "vision.1", "vision.2"}, "noncausal_vae": {"latents", "latents-raw"}}


def noise(n, size, frames=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, frames, size, size, 3), generator=g, dtype=torch.uint8)


def folder_of(request, which):
    llava = which.startswith("llava")
    return request.getfixturevalue("small_llavas")[which] if llava else request.getfixturevalue(which)


@functools.cache
def load(folder):
    entry = find_model(str(folder))
    model, processor = LOADERS[entry["kind"]](entry)
    inputs, points, _, first_frame = families.family_of(model)(model, processor)
    return model, inputs, points, first_frame


def features(loaded, frames):
    """{point: [n,t,h,w,D] fp32} of uint8 frames [n,T,H,W,3], and the inputs of the model."""
    model, inputs_of, points, _ = loaded
    batch = inputs_of(frames)
    given = families.on(batch, torch.device("cpu"), torch.float32)
    if "sample" in given:  # an autoencoder
        with streaming.latents_of(model) as run:
            seen = run(given)
    else:
        seen = streaming.capture(model, given, {n: point[0] for n, point in points.items()})
    return {n: points[n][1](seen[n], batch) for n in points}, given


def same(found, expected):
    x = found.flatten(0, 1)
    torch.testing.assert_close(x, expected.reshape(x.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("which", ROWS)
@torch.inference_mode()
def test_merger_and_language_features_are_the_image_rows_without_newlines(request, which, monkeypatch):
    filled, update = [], DynamicCache.update
    monkeypatch.setattr(DynamicCache, "update", lambda *args: filled.append(1) or update(*args))
    model, *_ = loaded = load(folder_of(request, which))
    found, given = features(loaded, noise(2, SIDES[which]))
    assert not filled, "a forward pass fills a key-value cache"
    assert greedy_tokens(model, given, 2).shape == (2, 2) and filled, "generation uses none"
    hidden = model(**given, output_hidden_states=True).hidden_states
    at = given["input_ids"] == model.config.image_token_id
    rows = [x[at].view(2, -1, 32) for x in hidden]
    if which in ("llava_next", "llava_onevision"):
        mosaic = [x[:, 36:].view(2, 12, 13, 32) for x in rows]  # behind the small whole image
        assert torch.equal(mosaic[0][:, :, 12], model.model.image_newline.expand(2, 12, 32))
        rows = [x[:, :, :12] for x in mosaic]
    assert at.sum(1).tolist() == [ROWS[which]] * 2
    for point, x in zip(("merger", "language.0", "language.1"), rows, strict=False):
        same(found[point], x)


@pytest.mark.parametrize("which", FIRST)
@torch.inference_mode()
def test_features_of_encoders_are_the_hidden_states_without_the_first_tokens(request, which):
    model, *_ = loaded = load(request.getfixturevalue(which))
    found, given = features(loaded, noise(3, SIDES[which]))
    tower = getattr(getattr(model, "owlvit", model), "vision_model", model)
    given = {k: v for k, v in given.items() if k != "input_ids"}
    hidden = tower(**given, output_hidden_states=True).hidden_states
    for i in range(2):  # the last one may be after the final norm
        same(found[f"vision.{i}"], hidden[i + 1][:, FIRST[which] :])


@torch.inference_mode()
def test_kosmos2s_features_are_the_librarys_patches_queries_and_rows(small_kosmos2):
    model, *_ = loaded = load(small_kosmos2)
    found, given = features(loaded, noise(3, 48))
    out = model(**given, output_hidden_states=True)
    tower = model.vision_model(given["pixel_values"], output_hidden_states=True).hidden_states
    rows = given["image_embeds_position_mask"].bool()
    assert rows[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]  # after <s> and <image>
    same(found["merger"], out.image_embeds)
    for i in range(2):
        same(found[f"vision.{i}"], tower[i + 1][:, 1:])
        same(found[f"language.{i}"], out.hidden_states[i + 1][rows])


@torch.inference_mode()
def test_florence2s_features_are_the_librarys_blocks_and_rows_without_the_mean_token(small_florence2):
    model, *_ = loaded = load(small_florence2)
    frames = noise(3, 64)
    found, given = features(loaded, frames)
    ask = {"text": ["<CAPTION>"] * 3, "images": list(frames[:, 0].permute(0, 3, 1, 2))}
    expected = AutoProcessor.from_pretrained(small_florence2)(**ask, return_tensors="pt")
    assert (expected["pixel_values"] - given["pixel_values"]).abs().max() < 1e-5
    hidden = model(**given, output_hidden_states=True).encoder_hidden_states
    at = given["input_ids"] == model.config.image_token_id
    last = model.model.vision_tower(given["pixel_values"]).last_hidden_state
    same(found["vision.3"], last.flatten(2).transpose(1, 2))
    same(found["merger"], model.get_image_features(given["pixel_values"]).pooler_output[:, 1:])
    for i in range(3):
        same(found[f"language.{i}"], hidden[i + 1][at].view(3, 17, 32)[:, 1:])


@torch.inference_mode()
def test_grounding_dinos_features_are_the_librarys_stages_and_scales(small_grounding_dino):
    model, *_ = loaded = load(small_grounding_dino)
    found, given = features(loaded, noise(3, 64))
    encoder = model(**given, output_hidden_states=True).encoder_vision_hidden_states
    swin = model.model.backbone.conv_encoder.model
    stages = swin(given["pixel_values"], output_hidden_states=True).hidden_states
    for i, point in enumerate(("vision.1", "vision.3", "vision.4"), 1):
        assert found[point].shape[2:4] == stages[i].shape[2:]
        same(found[point], stages[i].flatten(2).transpose(1, 2))
    for i, x in enumerate(encoder[0].split([64, 16, 4], 1)):  # the encoder's input
        same(found[f"scale.{i}"], x)
    for i in range(3):
        same(found[f"encoder.{i}"], encoder[i + 1][:, 64:80])


def bright_cells(grid, cell):
    """Black, then an image for every cell of a grid, which is bright: uint8 [1 + grid*grid, 1, S, S, 3]."""
    cells = torch.cat([torch.zeros(1, grid**2), torch.eye(grid**2)]).view(-1, 1, grid, grid, 1)
    images = cells.repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    return (255 * images).byte().repeat(1, 1, 1, 1, 3)


def check_geometry(found, grid, exact):
    """Each image differs most from black at its own token; at the points `exact` it differs nowhere else."""
    for point, x in found.items():
        difference = (x[1:] - x[:1]).norm(dim=-1).mean(1)  # [n, h, w]
        factor = difference.shape[-1] // grid
        cells = difference.unflatten(2, (grid, factor)).unflatten(1, (grid, factor)).amax((2, 4)).flatten(1)
        assert cells.argmax(1).tolist() == list(range(grid * grid)), point
        if point in exact:
            assert (cells > 1e-6).sum(1).tolist() == [1] * grid**2, point


@pytest.mark.parametrize("which", PLACES)
def test_every_point_sees_a_bright_token_and_a_bright_patch_where_it_is(request, which):
    grid, cell, merged = PLACES[which]
    loaded = load(folder_of(request, which))
    found = features(loaded, bright_cells(grid, cell))[0]
    if which.startswith("llava"):  # rows of the language model attend to the whole image too
        found = {p: x for p, x in found.items() if not p.startswith("language")}
    check_geometry(found, grid, {"patch_embed"})
    assert {x.shape[2] for x in found.values()} == ({grid, 2 * grid} if merged else {grid})
    if merged:
        found = features(loaded, bright_cells(2 * grid, cell // 2))[0]
        check_geometry({p: x for p, x in found.items() if x.shape[2] == 2 * grid}, 2 * grid, {"patch_embed"})


@pytest.mark.parametrize("which", [which for which in SIDES if which not in TEMPORAL])
def test_a_clip_through_a_model_of_single_images_is_its_frames_one_by_one(request, which):
    loaded, clips = load(folder_of(request, which)), noise(2, SIDES[which], frames=3)
    found, alone = features(loaded, clips)[0], features(loaded, clips[1:, 2:])[0]
    for point, x in found.items():
        assert x.shape[:2] == (2, 3) and not families.sees_later_frames(loaded[0], point)
        torch.testing.assert_close(x[1, 2], alone[point][0, 0], atol=1e-4, rtol=1e-4)
    assert [loaded[3](step) for step in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("which", TEMPORAL)
def test_later_frames_change_a_causal_point_only_from_their_time_step_on(request, which):
    model, *_, first_frame = loaded = load(request.getfixturevalue(which))
    size, frames = (32, 5) if which.endswith("vae") else (48, 6)
    clips, moved = noise(2, size, frames=frames), {}
    x = features(loaded, clips)[0]
    for point, y in features(loaded, clips[1:])[0].items():  # alone in its batch
        assert y.shape[1] == 3
        torch.testing.assert_close(y[0], x[point][1], atol=1e-4, rtol=1e-4)
    for step in range(2):
        other, start = clips.clone(), first_frame(step + 1)
        other[:, start:] = noise(2, size, frames=frames, seed=1)[:, start:]
        for point, y in features(loaded, other)[0].items():
            difference = (y - x[point]).abs()
            moved[point] = max(moved.get(point, 0), difference[:, : step + 1].max().item())
            assert difference[:, step + 1].max() > 1e-3, "the change must be seen at its time step"
    if which.endswith("vae"):
        with torch.no_grad():
            mode = model.encode(clips.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
        same(x["latents-raw"], mode.permute(0, 2, 3, 4, 1))
        same(x["latents"], (x["latents-raw"] - model.latents_mean) / model.latents_std)
    late = {p for p in x if families.sees_later_frames(model, p)}
    assert late == LATE.get(which, set())
    assert all(by > 1e-3 if point in late else by < 1e-6 for point, by in moved.items()), moved


def test_time_steps_of_a_clip_have_positions_of_their_own(small_vlm):
    """A clip without a rate counts as 24 frames a second, and all its time steps would have one position."""
    model, inputs_of, *_ = load(small_vlm)
    given = inputs_of(noise(2, 64, frames=6))
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    positions = model.model.get_rope_index(**{name: given[name] for name in names})[0]
    time = positions[0][given["input_ids"] == model.config.video_token_id].view(2, 3, 16)
    assert (time == time[..., :1]).all() and (time[:, 1:] > time[:, :-1]).all()


@pytest.mark.parametrize("which", PLAN)
def test_the_plans_names_are_the_same_points_of_a_registry_entry_or_a_folder(request, which):
    entry = find_model(which if which in MODELS else str(folder_of(request, which)))
    letter = which.removeprefix("small_")[0].upper()
    names = ",".join(f"{letter}{k + 1}" for k in range(PLAN[which].count(",") + 1))
    assert resolve_aliases(names, entry) == PLAN[which]


def test_quarters_are_four_depths_of_a_deep_stack():
    points = ["patch_embed", *(f"vision.{i}" for i in range(12)), *(f"language.{i}" for i in range(8))]
    assert quarters(points) == ["patch_embed", *(f"vision.{i}" for i in (2, 5, 8, 11)), *points[13:]]


# ---------------------------------------------------------------- classes without a row of their own


@pytest.fixture(scope="session")
def of_class(tmp_path_factory):
    """call(name): the folder of a checkpoint of tests/classes.py."""
    made, folder = {}, tmp_path_factory.mktemp("classes")
    processing_smolvlm.num2words = processing_smolvlm.num2words or str  # a package that only its videos need

    def call(name):
        made[name] = made.get(name) or classes.write(name, folder / name)
        return made[name]

    return call


def side_of(which):
    return 256 if which == "detr" else 48


@pytest.mark.parametrize("which", [*classes.VLMS, *classes.ENCODERS])
def test_any_class_is_read_as_its_library_reads_it_and_sees_patches_where_they_are(of_class, which, capsys):
    folder, side = of_class(which), side_of(which)
    found = extract.main(["--check", "--model", str(folder), "--size", str(side)])
    layers = {"detr": 2}.get(which, 4 if which in classes.VLMS else 2)
    assert f"PASS  hidden_states: {layers} layers" in capsys.readouterr().out
    assert set(found.values()) == {"PASS"} and {"load", "features", "finite"} < set(found)
    assert ("patches" in found) == (which != "idefics2")
    found, _ = features(load(folder), noise(1, side))
    stacks = dict.fromkeys(point.partition(".")[0] for point in found)
    expected = ["patch_embed", "vision", *(["merger", "language"] if which in classes.VLMS else [])]
    expected += ["encoder"] if which == "detr" else []
    assert [stack for stack in stacks if stack != "deepstack"] == expected
    assert sum(point.startswith("vision.") for point in found) == (4 if which == "detr" else 3)


def test_every_type_whose_order_is_taken_as_proved_is_in_these_tests(request, of_class):
    folders = [of_class(which) for which in classes.VLMS | classes.ENCODERS if which != "idefics2"]
    folders += [folder_of(request, which) for which in SIDES]
    types = {find_model(str(folder))["type"] for folder in folders} - {"AutoencoderKLLTXVideo"}
    assert types | {"ltx_vae"} == families.PROVED


@pytest.mark.parametrize("which", [w for w in classes.VLMS | classes.ENCODERS if w != "idefics2"])
def test_sizes_that_are_priced_are_those_of_the_features(of_class, which):
    folder, side = of_class(which), side_of(which)
    found, _ = features(load(folder), noise(1, side))
    predicted = cost.shapes(find_model(str(folder)), list(found), side)
    shapes = {point: (*x.shape[1:],) for point, x in found.items()}
    del predicted["pixels"]
    assert predicted == (shapes if which != "detr" else predicted | {"encoder.2": (1, 8, 8, 32)})


@pytest.mark.parametrize("flags", [[], ["--stream", "--batch", "2"]])
def test_tokens_whose_order_is_not_proved_are_stored_without_a_grid(
    of_class, tmp_path, flags, capsys, monkeypatch
):
    items = [
        {"id": f"i{k}", "source": f"i{k}", "frames": x, "width": 48, "height": 48}
        for k, x in enumerate(noise(5, 48))
    ]
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "noise"})
    ask = [
        "--data",
        str(tmp_path / "data"),
        "--size",
        "48",
        "--points",
        "all",
        "--out",
        str(tmp_path / "features"),
    ]
    points = extract.main([*ask, "--model", str(of_class("idefics2")), *flags])["points"]
    assert "merger: 0." in capsys.readouterr().out
    flat = {name for name, row in points.items() if row.get("grid") is False}
    assert flat == {"merger", "language.0", "language.1", "language.2"}
    assert points["merger"]["shape"] == [1, 1, 16, 32] and points["vision.2"]["shape"] == [1, 6, 6, 32]
    assert points["pixels"]["shape"][:3] == [1, 6, 6]
    monkeypatch.setattr(check, "PROVED", ())
    more = ["--model", str(of_class("gemma3")), "--points", "vision.2,merger,language.2", "--overwrite"]
    points = extract.main([*ask, *more, *flags])["points"]
    assert not any("grid" in row for row in points.values()) and points["merger"]["shape"] == [1, 3, 3, 32]


def test_a_class_is_found_by_its_name_on_the_hub_although_the_registry_lacks_it(
    of_class, tmp_path, monkeypatch
):
    repository = tmp_path / "models--some--gemma"
    shutil.copytree(of_class("gemma3"), repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    entry = find_model("some/gemma")
    assert (entry["kind"], entry["type"], entry["size"]) == ("vlm", "gemma3", 48)
    monkeypatch.setattr(check, "ask", lambda *args: None)  # its answers are random
    assert set(extract.main(["--check", "--model", "some/gemma"]).values()) == {"PASS"}


@pytest.mark.parametrize("model_type", ["vit_mae", "siglip2", "phi4_multimodal"])
def test_a_class_that_cannot_be_served_is_refused_with_the_reason(model_type, tmp_path, refused):
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}", "image_size": 48}}')
    reasons = {
        "vit_mae": "masks most patches",
        "siglip2": "NaFlex",
        "phi4_multimodal": "no image-to-text class",
    }
    refused(lambda: find_model(str(tmp_path)), model_type, reasons[model_type], "use ")


def test_the_inputs_leave_the_configuration_as_it_was_and_native_inputs_run_beside_them(small_llavas):
    model, inputs_of, points, _ = load(small_llavas["llava_next"])
    before = copy.deepcopy(model.config.to_dict())
    processor = AutoProcessor.from_pretrained(small_llavas["llava_next"])
    image = noise(1, 96)
    native = processor(images=[image[0, 0].permute(2, 0, 1)], text="<image> where?", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**native).logits
        for side in (48, 96, 144):
            features((model, inputs_of, points, None), noise(1, side))
            assert model.config.to_dict() == before
            assert torch.equal(model(**native).logits, expected)


def test_an_image_of_the_towers_side_is_computed_once(small_llavas):
    """The whole image comes first, so in a causal model the tiles behind it change none of its rows."""
    loaded = load(small_llavas["llava_next"])
    found, given = features(loaded, noise(2, 48))
    assert given["pixel_values"].shape == (2, 1, 3, 48, 48)
    twice = given["pixel_values"].expand(2, 3, 3, 48, 48), torch.tensor([[48, 96]] * 2)
    place = given["input_ids"] == loaded[0].config.image_token_id
    start, end = place[0].nonzero()[[0, -1], 0].tolist()
    rows = torch.full((2, 36 + 6 * 13), loaded[0].config.image_token_id)
    ids = torch.cat([given["input_ids"][:, :start], rows, given["input_ids"][:, end + 1 :]], 1)
    more = {"pixel_values": twice[0], "image_sizes": twice[1], "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        hidden = loaded[0](input_ids=ids, **more, output_hidden_states=True).hidden_states
    same(found["language.0"], hidden[1][:, start : start + 36])


def test_text_models_of_any_causal_class_are_loaded(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    _, tokenizer = random_language_model(None, 0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=len(tokenizer))).save_pretrained(
        tmp_path
    )
    tokenizer.save_pretrained(tmp_path)
    entry = find_model(str(tmp_path))
    assert entry["kind"] == "language" and "size" not in entry
    model, _ = LOADERS["language"](entry)
    assert type(model) is GPT2LMHeadModel
