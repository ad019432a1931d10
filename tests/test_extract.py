"""Stage 1: features are the library's own hidden states, at the right place of the right picture, and survive a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from published import INTERNVL2, internvl2_config, internvl2_layout

import extract
import families
import models
from common import load_features, load_items, with_grid, write_items
from models import LOADERS, find_model

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT.parent / "shared" / "golden"


def write_set(folder, clips):
    """A data folder of given frames: uint8 [n,T,H,W,3]."""
    n, _, height, width, _ = clips.shape
    ids = [f"i{k:04d}" for k in range(n)]
    items = [
        {"id": i, "source": i, "width": width, "height": height, "frames": x.clone()}
        for i, x in zip(ids, clips, strict=True)
    ]
    write_items(folder, items, {"data": "synthetic", "name": folder.name})
    return folder


def noise(n, size, frames=1, seed=0):
    return torch.randint(
        0, 256, (n, frames, size, size, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def argv_of(model, data, out, *more):
    return [str(x) for x in ("--model", model, "--data", data, "--out", out, *more)]


def run(model, data, out, *more):
    return extract.main(argv_of(model, data, out, *more))


def refused(capsys, *argv):
    """Run extract.py, which must exit with code 2; what it wrote to stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as e:
        extract.main([str(a) for a in argv])
    assert e.value.code == 2
    return capsys.readouterr().err


def folder_of(request, which):
    """The folder of a small checkpoint: a fixture's, or one of the small LLaVAs'."""
    if which.startswith("llava"):
        return request.getfixturevalue("small_llavas")[which]
    return request.getfixturevalue(which)


def load(folder):
    entry = find_model(str(folder))
    model, processor = LOADERS[entry["kind"]](entry)
    return (model, *families.family_of(model)(model, processor)[:2])


def same(found, expected):
    torch.testing.assert_close(
        found.flatten(0, 1), expected.reshape(found.flatten(0, 1).shape), atol=1e-5, rtol=1e-5
    )


def stored_alike(found, expected):
    """As far as fp16 goes."""
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def features(loaded, frames):
    """{point: [n,t,h,w,D] fp32} of uint8 frames [n,T,H,W,3], and the inputs that the model was given."""
    model, inputs_of, points = loaded
    batch = inputs_of(frames)
    given = {k: v for k, v in batch.items() if type(v) is not int}
    seen = extract.capture(model, given, {n: point[0] for n, point in points.items()})
    return {n: points[n][1](seen[n], batch) for n in points}, given


@pytest.fixture(scope="module")
def vlm(small_vlm):
    return load(small_vlm)


@pytest.fixture(scope="module")
def dino(small_dino):
    return load(small_dino)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """200 items, four shards."""
    return write_set(tmp_path_factory.mktemp("data") / "many", noise(200, 48))


@pytest.fixture(scope="module")
def uninterrupted(small_dino, many, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "whole"
    run(small_dino, many, out, "--size", 48, "--points", "all", "--batch", 4)
    return out


# ---------------------------------------------------------------- the same numbers as the library's own

ROWS = {
    "small_vlm": (80, 25),
    "small_qwen2vl": (64, 16),
    "small_qwen3vl": (64, 16),
    "small_internvl": (48, 9),
}


@pytest.mark.parametrize("which", ROWS)
def test_merger_and_language_features_are_the_embeddings_and_hidden_states_of_the_image_rows(request, which):
    size, rows = ROWS[which]
    model, *_ = loaded = load(request.getfixturevalue(which))
    found, given = features(loaded, noise(2, size))
    with torch.inference_mode():
        hidden = model(**given, output_hidden_states=True).hidden_states
    at = given["input_ids"] == model.config.image_token_id
    assert at.sum(1).tolist() == [rows] * 2
    same(found["merger"], hidden[0][at])
    for i in range(2):  # the last hidden state is after the final norm
        same(found[f"language.{i}"], hidden[i + 1][at])
    if which == "small_vlm":
        same(model.model.language_model.norm(found["language.2"]), hidden[3][at])


LLAVAS = {
    ("llava", 48): 36,
    ("llava_next", 48): 78,
    ("llava_next", 96): 36 + 12 * 13,
    ("llava_onevision", 96): 36 + 12 * 13,
}


@pytest.mark.parametrize("kind, size", LLAVAS)
def test_llavas_language_features_are_the_rows_of_the_picture_or_of_its_mosaic_without_newlines(
    small_llavas, kind, size
):
    model, *_ = loaded = load(small_llavas[kind])
    found, given = features(loaded, noise(2, size))
    with torch.inference_mode():
        hidden = model(**given, output_hidden_states=True).hidden_states
    at = given["input_ids"] == model.config.image_token_id
    rows = [h[at].view(2, -1, 32) for h in hidden]
    assert rows[0].shape[1] == LLAVAS[kind, size]
    if size == 96:
        mosaic = [r[:, 36:].view(2, 12, 13, 32) for r in rows]
        assert torch.equal(mosaic[0][:, :, 12], model.model.image_newline.expand(2, 12, 32))
        rows = [m[:, :, :12] for m in mosaic]
    else:
        rows = [r[:, :36].view(2, 6, 6, 32) for r in rows]
    for point, x in zip(("merger", "language.0", "language.1"), rows, strict=False):
        same(found[point], x)


SIZES = dict.fromkeys(("small_internvl", "small_vjepa2", "llava"), (96, 48))
SIZES |= {"small_florence2": (144, 128), "small_dino": (50, 48), "small_vae": (36, 32)}


@pytest.mark.parametrize("which", SIZES)
def test_a_size_without_positions_or_whole_tokens_is_refused_with_one_that_has_them_and_leaves_nothing(
    request, few, tmp_path, capsys, which
):
    size, offered = SIZES[which]
    err = refused(
        capsys, "--model", folder_of(request, which), "--data", few, "--out", tmp_path / "out", "--size", size
    )
    assert f"give --size {offered}" in err or f"give {offered}" in err
    assert not list((tmp_path / "out").rglob("*.*"))


def test_tiles_are_the_size_of_the_whole_picture_or_twice_that(
    small_llavas, small_dino, few, tmp_path, capsys
):
    for tiles, side in (("base", 6), ("all", 12)):
        index = run(small_llavas["llava_next"], few, tmp_path / tiles, "--tiles", tiles, "--points", "merger")
        assert index["points"]["merger"]["shape"] == [1, side, side, 32] and index["size"] == 8 * side
    assert "--tiles goes with llava_next" in refused(
        capsys, "--model", small_dino, "--data", few, "--tiles", "all"
    )


@pytest.mark.parametrize("which", ["small_vlm", "small_internvl"])
def test_a_picture_that_is_not_square_is_squashed_and_a_bright_patch_stays_at_its_share_of_it(
    request, tmp_path, which
):
    frames = torch.zeros(7, 1, 24, 120, 3, dtype=torch.uint8)
    for k in range(6):
        y, x = divmod(k, 3)
        frames[1 + k, :, 12 * y : 12 * y + 12, 40 * x : 40 * x + 40] = 255
    data = write_set(tmp_path / "data", frames)
    run(request.getfixturevalue(which), data, tmp_path / "out", "--size", 48, "--points", "vision.0")
    x = load_features(tmp_path / "out")[1]("vision.0")[:, 0]
    cells = (x[1:] - x[:1]).norm(dim=-1).unflatten(1, (2, -1)).unflatten(3, (3, -1)).mean((2, 4))
    assert cells.flatten(1).argmax(1).tolist() == list(range(6))


FIRST = {"small_dino": (48, 1), "small_owlvit": (48, 1), "small_siglip": (48, 0), "small_vjepa2": (48, 0)}
FIRST["small_dinov3"] = (64, 3)


@pytest.mark.parametrize("which", FIRST)
def test_features_of_encoders_are_the_hidden_states_without_the_first_tokens(request, which):
    size, first = FIRST[which]
    model, *_ = loaded = load(request.getfixturevalue(which))
    found, given = features(loaded, noise(3, size))
    given = {k: v for k, v in given.items() if k != "input_ids"}
    with torch.inference_mode():
        tower = getattr(getattr(model, "owlvit", model), "vision_model", model)
        hidden = tower(**given, output_hidden_states=True).hidden_states
    # the last one may be after the final norm, the first one before a norm that the embeddings end in
    for i in range(2):
        same(found[f"vision.{i}"], hidden[i + 1][:, first:])
    assert (
        found["patch_embed"].shape
        == found["vision.0"].shape
        == (3, 1, size // 8, size // 8, hidden[0].shape[-1])
    )


def test_latents_are_the_mode_normalised_and_raw_and_a_draw_around_it_wherever_the_item_stands_in_a_batch(
    small_vae, tmp_path
):
    frames, read = noise(3, 32, frames=5), {}
    data = write_set(tmp_path / "data", frames)
    for batch in (1, 3):
        run(small_vae, data, tmp_path / str(batch), "--size", 32, "--batch", batch)
        read[batch] = load_features(tmp_path / str(batch))[1]
    model = LOADERS["vae"](find_model(str(small_vae)))[0]
    with torch.inference_mode():
        # [n, C, t, h, w]
        posterior = model.encode(frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1).latent_dist
    mode = posterior.mode().permute(0, 2, 3, 4, 1)
    assert mode.shape == (3, 3, 4, 4, 8) and model.latents_std.std() > 0.1
    stored_alike(read[1]("latents"), (mode - model.latents_mean) / model.latents_std)
    stored_alike(read[1]("latents-raw"), mode)
    stored_alike(read[1]("latents"), read[3]("latents"))


def test_window_order_is_undone_the_same_as_with_one_window(small_vlm, vlm):
    """With full attention in every block the order of windows cannot matter; a window as large as the image leaves merge-block order."""
    model, inputs_of, points = vlm
    frames = noise(2, 80)
    one_window = load(small_vlm)
    one_window[0].model.visual.window_size = 1000
    for visual in (model.model.visual, one_window[0].model.visual):
        full, visual.fullatt_block_indexes = visual.fullatt_block_indexes, [0, 1, 2]
    try:
        index = families.window_index(model.model.visual, torch.tensor([[1, 10, 10]]))
        assert index.tolist() != list(range(25))  # the order is a real one
        windows, single = features(vlm, frames)[0], features(one_window, frames)[0]
    finally:
        model.model.visual.fullatt_block_indexes = full
    for point in points:
        torch.testing.assert_close(windows[point], single[point], atol=1e-5, rtol=1e-5)


def test_stopping_early_gives_the_same_bits_as_a_full_pass_and_computes_nothing_deeper(vlm):
    model, inputs_of, points = vlm
    batch = inputs_of(noise(2, 80))
    wanted = {n: points[n][0] for n in ("patch_embed", "vision.1", "merger", "language.0")}
    calls = []
    handle = model.model.language_model.layers[1].register_forward_hook(lambda *a: calls.append(1))
    early = extract.capture(model, dict(batch), wanted)
    assert not calls
    full = extract.capture(model, dict(batch), wanted | {"head": "lm_head"})
    handle.remove()
    assert calls == [1] and all(torch.equal(early[n], full[n]) for n in wanted)


def test_a_batch_of_one_agrees_with_a_batch_of_eight(vlm, dino):
    for loaded, frames in ((vlm, noise(8, 80)), (vlm, noise(8, 48, frames=4)), (dino, noise(8, 48))):
        together = features(loaded, frames)[0]
        for k in (0, 5, 7):
            alone = features(loaded, frames[k : k + 1])[0]
            for point, x in alone.items():
                torch.testing.assert_close(x[0], together[point][k], atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- the right place: one bright token on black


def bright_cells(grid, cell, frames=1):
    """Black, then for every token of a grid a picture with that token's cell bright (textured): uint8 [1 + grid*grid, T, S, S, 3]."""
    pictures = torch.zeros(1 + grid * grid, frames, grid * cell, grid * cell, 3, dtype=torch.uint8)
    for k in range(grid * grid):
        y, x = divmod(k, grid)
        pictures[1 + k, :, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = 255
    return pictures


def peaks(x, grid):
    """Raster number of the token where each picture differs most from the first, [n]; and that difference, [n, grid, grid]."""
    difference = (x[1:] - x[:1]).norm(dim=-1).mean(1)  # [n, h, w]
    factor = difference.shape[-1] // grid
    difference = difference.unflatten(2, (grid, factor)).unflatten(1, (grid, factor)).amax((2, 4))
    return difference.flatten(1).argmax(1), difference


def check_geometry(found, grid, exact):
    for point, x in found.items():
        where, difference = peaks(x, grid)
        assert where.tolist() == list(range(grid * grid)), point
        if point in exact:
            assert (difference.flatten(1) > 1e-6).sum(1).tolist() == [1] * grid**2, point


# grid of the tokens, pixels of a token, and whether the tower's patches are half a token wide
# grid of the tokens, pixels of a token, and whether the tower's patches are half a token wide
# grid of the tokens, pixels of a token, and whether the tower's patches are half a token wide
PLACES = {"small_vlm": (5, 16, True), "small_qwen2vl": (4, 16, True), "small_qwen3vl": (4, 16, True)}
PLACES |= {"small_internvl": (3, 16, True), "small_cogvlm2": (2, 28, True)}
PLACES |= {"llava_next": (12, 8, False), "llava_onevision": (12, 8, False)}
PLACES |= {
    f"small_{name}": (6, 8, False)
    for name in ("dino", "dinov3", "siglip", "owlvit", "owlv2", "vjepa2", "kosmos2")
}
PLACES |= {f"small_{name}": (4, 16, False) for name in ("florence2", "grounding_dino")} | {
    "llava": (6, 8, False)
}


@pytest.mark.parametrize("which", PLACES)
def test_every_point_with_a_grid_sees_a_bright_token_and_a_bright_patch_where_it_is(request, which):
    grid, cell, merged = PLACES[which]
    loaded, pictures = load(folder_of(request, which)), bright_cells(grid, cell)
    # its group norms take out the mean over space: on plain black any patch would change all places alike
    if which == "small_grounding_dino":
        pictures = torch.where(pictures > 0, pictures, noise(1, grid * cell))
    found = {
        p: x for p, x in features(loaded, pictures)[0].items() if p not in families.without_grid(loaded[2])
    }
    if which.startswith("llava"):  # rows of the language model see the whole picture beside its tiles
        found = {p: x for p, x in found.items() if not p.startswith("language")}
    exact = set() if which == "small_florence2" else {"patch_embed"}
    check_geometry({p: x for p, x in found.items() if x.shape[2] >= grid}, grid, exact)
    assert {x.shape[2] for x in found.values()} >= ({grid, 2 * grid} if merged else {grid})
    coarse = [x for x in found.values() if x.shape[2] < grid]
    assert len(coarse) == (which == "small_grounding_dino")
    for x in coarse:
        assert (x[1:] - x[:1]).norm(dim=-1).flatten(1).argmax(1).tolist() == [
            k // 8 * 2 + k % 4 // 2 for k in range(16)
        ]
    if merged:
        found = features(loaded, bright_cells(2 * grid, cell // 2))[0]
        check_geometry({p: x for p, x in found.items() if x.shape[2] == 2 * grid}, 2 * grid, {"patch_embed"})


SINGLE = {"small_internvl": 48, "small_cogvlm2": 56, "small_kosmos2": 48, "small_florence2": 64}
SINGLE["small_grounding_dino"] = 64


@pytest.mark.parametrize("which", SINGLE)
def test_a_clip_through_a_model_of_single_pictures_is_its_frames_one_by_one(request, which):
    loaded, clips = load(request.getfixturevalue(which)), noise(2, SINGLE[which], frames=3)
    found, alone = features(loaded, clips)[0], features(loaded, clips[1:, 2:])[0]
    for point, x in found.items():
        assert x.shape[:2] == (2, 3)
        torch.testing.assert_close(x[1, 2], alone[point][0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which, size, grid", [("small_vlm", 80, 5), ("small_dino", 48, 6)])
def test_features_and_pixels_on_disk_see_a_bright_token_where_it_is(request, tmp_path, which, size, grid):
    data = write_set(tmp_path / "data", bright_cells(grid, size // grid))
    run(request.getfixturevalue(which), data, tmp_path / "out", "--size", size, "--points", "all")
    index, read = load_features(tmp_path / "out")
    assert read("pixels").shape == (1 + grid**2, 1, grid, grid, (size // grid) ** 2 * 3)
    check_geometry({p: read(p) for p in index["points"]}, grid, {"pixels"})


# ---------------------------------------------------------------- the right time step


def bright_frames(frames, size):
    """Black, then clips of which one frame is bright: uint8 [1 + T, T, S, S, 3]."""
    clips = torch.zeros(1 + frames, frames, size, size, 3, dtype=torch.uint8)
    for t in range(frames):
        clips[1 + t, t] = 255
    return clips


def times(x):
    """The time step where each clip differs most from the first, [n]."""
    return (x[1:] - x[:1]).norm(dim=-1).mean((2, 3)).argmax(1).tolist()


@pytest.mark.parametrize("which", ["small_vlm", "small_qwen2vl", "small_qwen3vl", "small_vjepa2"])
def test_two_frames_make_one_time_step(request, which):
    found = features(load(request.getfixturevalue(which)), bright_frames(6, 48))[0]
    assert found["vision.0"].shape[:4] == (7, 3, 6, 6) and all(x.shape[:2] == (7, 3) for x in found.values())
    for point, x in found.items():
        assert times(x) == [0, 0, 1, 1, 2, 2], point


def test_time_steps_of_a_clip_have_positions_of_their_own(vlm):
    """A clip without a rate counts as 24 frames a second, and the language model then gives all its time steps one position."""
    model, inputs_of, _ = vlm
    given = inputs_of(noise(2, 64, frames=6))
    positions = model.model.get_rope_index(
        given["input_ids"],
        given["mm_token_type_ids"],
        video_grid_thw=given["video_grid_thw"],
        second_per_grid_ts=given["second_per_grid_ts"],
    )[0]
    time = positions[0][given["input_ids"] == model.config.video_token_id].view(2, 3, 16)
    assert (time == time[..., :1]).all() and (time[:, 1:] > time[:, :-1]).all()


@pytest.mark.parametrize("which, first", [("small_vlm", [0, 2, 4]), ("small_vae", [0, 1, 3])])
def test_pixels_of_a_time_step_are_its_first_frame(request, tmp_path, which, first):
    clips = torch.arange(5, dtype=torch.uint8)[None, :, None, None, None].expand(1, 5, 32, 32, 3) * 40
    run(request.getfixturevalue(which), write_set(tmp_path / "data", clips), tmp_path / "out", "--size", 32)
    pixels = load_features(tmp_path / "out")[1]("pixels")[0]
    assert (pixels.mean((1, 2, 3)) * 255 / 40).round().int().tolist() == first


# ---------------------------------------------------------------- causality: no time step has seen a later frame, or the index says so

CLIPS = {
    "small_vae": (32, 5),
    "seeing_vae": (32, 5),
    "small_florence2": (64, 3),
    "small_grounding_dino": (64, 3),
}
CLIPS |= {f"small_{name}": (48, 6) for name in ("vlm", "qwen2vl", "qwen3vl", "vjepa2")} | {
    "small_cogvlm2": (56, 3)
}
CLIPS |= {
    f"small_{name}": (48, 3)
    for name in ("internvl", "dino", "dinov3", "siglip", "owlvit", "owlv2", "kosmos2")
}
CLIPS |= {name: (48, 3) for name in ("llava", "llava_next", "llava_onevision")}


@pytest.fixture(scope="module")
def seeing_vae(small_vae, tmp_path_factory):
    """The small autoencoder with an encoder that pads both ways in time."""
    from diffusers import AutoencoderKLLTXVideo

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "seeing-vae"
    AutoencoderKLLTXVideo.from_config(
        AutoencoderKLLTXVideo.load_config(small_vae), encoder_causal=False
    ).save_pretrained(folder)
    return folder


def clip_features(folder, clips):
    """{point: [n,t,h,w,D]}, the model and first_frame of any small checkpoint, the autoencoder too."""
    entry = find_model(str(folder))
    model, processor = LOADERS[entry["kind"]](entry)
    inputs_of, points, _, first_frame = families.family_of(model)(model, processor)
    if entry["kind"] != "vae":
        return features((model, inputs_of, points), clips)[0], model, first_frame
    with torch.inference_mode():
        mode = model.encode(inputs_of(clips)["sample"]).latent_dist.mode()
    return {"latents": points["latents"][1](mode, {})}, model, first_frame


@pytest.mark.parametrize("which", CLIPS)
def test_later_frames_change_no_earlier_time_step_of_a_causal_point_and_do_of_the_others(request, which):
    size, frames = CLIPS[which]
    folder = folder_of(request, which)
    clips, moved = noise(2, size, frames=frames), {}
    x, model, first_frame = clip_features(folder, clips)
    steps = next(iter(x.values())).shape[1]
    assert steps > 1 and all(f.shape[1] == steps for f in x.values())
    for step in range(steps - 1):
        other, start = clips.clone(), first_frame(step + 1)
        other[:, start:] = noise(2, size, frames=frames, seed=1)[:, start:]
        for point, y in clip_features(folder, other)[0].items():
            difference = (y - x[point]).abs()
            moved[point] = max(moved.get(point, 0), difference[:, : step + 1].max().item())
            assert difference[:, step + 1 :].max() > 1e-3, "the change must be seen where it is"
    late = {"small_vjepa2": {"vision.0", "vision.1", "vision.2"}, "seeing_vae": {"latents"}}.get(which, set())
    assert {p for p in x if families.sees_later_frames(model, p)} == late
    assert all(by > 1e-3 if point in late else by < 1e-6 for point, by in moved.items()), moved


SEEN = {
    "small_vjepa2": {"vision.0", "vision.1", "vision.2"},
    "seeing_vae": {"latents", "latents-raw"},
    "small_vae": set(),
}


@pytest.mark.parametrize("which", SEEN)
def test_the_index_marks_what_has_seen_later_frames(request, tmp_path, which):
    size, frames = CLIPS[which]
    folder, data = request.getfixturevalue(which), write_set(tmp_path / "data", noise(2, size, frames=frames))
    for _ in range(2):  # the second time nothing is computed, and the model is not loaded
        points = run(folder, data, tmp_path / "out", "--size", size)["points"]
        assert {p for p, row in points.items() if row.get("causal") is False} == SEEN[which]
        assert not any(row.get("causal", False) for row in points.values())


# ---------------------------------------------------------------- files, resume, shards


def point_files(out):
    return {str(p.relative_to(out)): p for p in sorted(out.glob("*/*.pt")) if p.parent.name != "pooled"}


def same_features(a, b):
    files, others = point_files(a), point_files(b)
    return files.keys() == others.keys() and all(
        files[k].read_bytes() == others[k].read_bytes() for k in files
    )


def test_the_index_says_what_is_on_disk_and_pooled_is_the_mean_and_the_largest_of_the_grid(
    uninterrupted, many
):
    index, read = load_features(uninterrupted)
    pooled = torch.load(uninterrupted / "pooled.pt", weights_only=True)
    assert (
        list(index["points"])
        == ["pixels", "patch_embed", "vision.0", "vision.1", "vision.2"]
        == list(pooled["pooled"])
    )
    assert (
        index["ids"] == pooled["ids"] == load_items(many)[1]["ids"]
        and index["shards"] == 4
        and index["nonfinite"] == 0
    )
    for point, entry in index["points"].items():
        x = read(point)
        assert entry["bytes"] == sum(f.stat().st_size for f in (uninterrupted / point).glob("*.pt")) > 0
        assert list(x.shape) == [200, *entry["shape"]]
        stored_alike(pooled["pooled"][point]["mean"], x.mean((2, 3)))
        stored_alike(pooled["pooled"][point]["max"], x.amax((2, 3)))


WHOLE = ("--size", "48", "--points", "all", "--batch", "4")


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bits_and_computes_no_shard_twice(
    small_dino, many, uninterrupted, tmp_path
):
    out = tmp_path / "killed"
    command = [sys.executable, ROOT / "extract.py", *argv_of(small_dino, many, out, *WHOLE)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    )
    deadline = time.time() + 60
    while not (out / "pooled/00000.pt").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read().decode()
    done = sorted(p.stem for p in (out / "pooled").glob("*.pt"))
    assert not (out / "index.yaml").exists() and 1 <= len(done) < 4
    before = {k: p.stat().st_mtime_ns for k, p in point_files(out).items() if p.stem in done}
    run(small_dino, many, out, *WHOLE)
    after = point_files(out)
    assert before and all(after[k].stat().st_mtime_ns == t for k, t in before.items())
    assert same_features(out, uninterrupted)


@pytest.mark.slow
def test_two_ranks_give_the_same_bytes_as_one_process(small_dino, many, uninterrupted, tmp_path):
    launch = [
        sys.executable,
        *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"],
        str(ROOT / "extract.py"),
    ]
    subprocess.run(
        [*launch, *argv_of(small_dino, many, tmp_path / "out", *WHOLE)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert load_items(many)[1]["ids"] == load_features(tmp_path / "out")[0]["ids"]
    assert same_features(tmp_path / "out", uninterrupted)


def test_shards_computed_apart_give_the_same_bytes_as_one_process(small_dino, many, uninterrupted, tmp_path):
    assert run(small_dino, many, tmp_path / "out", *WHOLE, "--shard", "0/2") == {"shards_missing": 2}
    assert not (tmp_path / "out/index.yaml").exists()
    index = run(small_dino, many, tmp_path / "out", *WHOLE, "--shard", "1/2")
    assert index["items"] == 200 and same_features(tmp_path / "out", uninterrupted)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "few", noise(6, 48))


def test_other_settings_items_or_weights_in_the_same_out_are_refused_by_name(
    small_dino, few, tmp_path, capsys
):
    from transformers import Dinov2Model

    run(small_dino, few, tmp_path / "out", "--size", 48)
    before = {k: p.read_bytes() for k, p in point_files(tmp_path / "out").items()}
    other = shutil.copytree(small_dino, tmp_path / "elsewhere" / small_dino.name)
    items = write_set(tmp_path / "other", noise(7, 48))
    model = Dinov2Model.from_pretrained(small_dino)
    model.encoder.layer[0].mlp.fc1.weight.data.mul_(2)
    model.save_pretrained(other)
    changes = {"size": ("--size", 64), "points": ("--points", "vision.0"), "items": ("--data", items)}
    changes |= {"weights": ("--random-init",), "checkpoint": ("--model", other)}
    for what, change in changes.items():
        assert f"made with {what} " in refused(
            capsys, *argv_of(small_dino, few, tmp_path / "out", "--size", 48, *change)
        )
    assert before == {k: p.read_bytes() for k, p in point_files(tmp_path / "out").items()}


def test_an_unknown_point_is_refused_with_the_known_ones_and_the_mended_command_runs(
    small_dino, few, tmp_path, capsys
):
    arguments = ("--model", small_dino, "--data", few, "--out", tmp_path / "out", "--size", 48)
    err = refused(capsys, *arguments, "--points", "vision.0,vision.3")
    assert "no point 'vision.3'" in err and "patch_embed, vision.0, vision.1, vision.2" in err
    assert run(small_dino, few, tmp_path / "out", "--size", 48, "--points", "vision.1")["items"] == 6


@pytest.mark.parametrize(
    "which, point", [("small_dino", "vision.2"), ("small_vlm", "language.1"), ("small_vae", "latents")]
)
def test_random_weights_differ_from_the_checkpoint_and_depend_on_the_seed_alone(
    request, few, tmp_path, which, point
):
    x = {}
    for name, seed in (("trained", None), ("a", 1), ("b", 1), ("c", 2)):
        more = ("--random-init", "--seed", seed) if seed else ()
        index = run(
            request.getfixturevalue(which), few, tmp_path / name, "--size", 48, "--points", point, *more
        )
        assert (index["weights"] == "random") == (name != "trained")
        x[name] = load_features(tmp_path / name)[1](point)
    assert torch.equal(x["a"], x["b"])
    assert (x["a"] - x["trained"]).abs().mean() > 0.01 and (x["a"] - x["c"]).abs().mean() > 0.01


def test_values_that_overflow_fp16_are_counted_and_refused_when_read(small_dino, few, tmp_path, capsys):
    from transformers import Dinov2Model

    model = Dinov2Model.from_pretrained(small_dino)
    model.encoder.layer[2].layer_scale2.lambda1.data[:4] = 1e8
    folder = shutil.copytree(small_dino, tmp_path / "model")
    model.save_pretrained(folder)
    index = run(folder, few, tmp_path / "out", "--size", 48)
    stored = torch.load(tmp_path / "out/vision.2/00000.pt", weights_only=True)["features"]
    assert (
        index["points"]["vision.2"]["nonfinite"] == index["nonfinite"] == int((~stored.isfinite()).sum()) > 0
    )
    assert index["points"]["vision.1"]["nonfinite"] == 0
    with pytest.raises(SystemExit):
        load_features(tmp_path / "out")[1]("vision.2")
    assert "non-finite" in capsys.readouterr().err


# ---------------------------------------------------------------- bad input


def test_what_does_not_exist_is_refused_with_a_remedy(
    small_dino, small_vae, few, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    write_items(tmp_path / "empty", [], {"data": "synthetic"})
    longer = write_set(tmp_path / "longer", noise(2, 32, frames=8))
    out = tmp_path / "out"
    for model, said in (
        ("dino2-s", "Did you mean 'dinov2-s'?"),
        ("dinov2-s", "hf download facebook/dinov2-small"),
    ):
        assert said in refused(capsys, *argv_of(model, few, out))
    for folder, said in (("nowhere", "does not exist"), ("empty", "no items")):
        assert said in refused(capsys, *argv_of(small_dino, tmp_path / folder, out))
    assert "8 frames of" in refused(capsys, *argv_of(small_vae, longer, out, "--size", 32))
    for shard in ("1", "2/2", "-1/2"):
        assert "--shard" in refused(capsys, *argv_of(small_dino, few, out, f"--shard={shard}"))


@pytest.mark.parametrize("broken", ["no config", "another type", "cut short", "a layer is missing"])
def test_a_folder_that_is_no_whole_checkpoint_is_refused(small_dino, few, tmp_path, capsys, broken):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_dino, tmp_path / "model")
    config, weights = folder / "config.json", folder / "model.safetensors"
    if broken == "no config":
        config.unlink()
    elif broken == "another type":
        config.write_text(json.dumps({"model_type": "gpt2"}))
    elif broken == "cut short":
        weights.write_bytes(weights.read_bytes()[:150])
    else:
        save_file(
            {k: v for k, v in load_file(weights).items() if "layer.1." not in k}, weights, {"format": "pt"}
        )
    err = refused(capsys, "--model", folder, "--data", few, "--out", tmp_path / "out", "--size", 48)
    assert {"no config": "no config.json", "another type": "unknown model type"}.get(
        broken, str(folder)
    ) in err


def test_a_cached_hub_repository_is_loaded_at_the_revision_asked_for_and_its_commit_recorded(
    small_dino, few, tmp_path, capsys, monkeypatch
):
    import huggingface_hub.constants

    repository = tmp_path / "hub" / "models--somebody--dino"
    (repository / "refs").mkdir(parents=True)
    for commit, ref in (("a" * 40, "main"), ("b" * 40, "v2")):
        shutil.copytree(small_dino, repository / "snapshots" / commit)
        (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(
        models.MODELS, "cached", {"kind": "encoder", "path": "somebody/dino", "size": 48, "clip": 48}
    )
    for more, commit in (((), "a" * 40), (("--revision", "v2"), "b" * 40)):
        index = run("cached", few, tmp_path / commit, *more)
        assert index["weights"] == "pretrained" and index["run"]["model_revision"] == commit
    assert "--revision v2" in refused(capsys, *argv_of(small_dino, few, tmp_path / "out", "--revision", "v2"))


# ---------------------------------------------------------------- InternVL2's own layout (full-size models without their weights: test_registry.py)


@pytest.mark.parametrize("name", INTERNVL2)
def test_internvl2s_own_layout_maps_onto_every_weight_of_the_native_class_at_full_size(name):
    from transformers import InternVLForConditionalGeneration

    vision, text = INTERNVL2[name]
    config = models._internvl2_config(internvl2_config(vision, text))
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
        old = {k: torch.empty(*shape) for k, shape in internvl2_layout(vision, text).items()}
    found = {}
    for name, tensor in old.items():
        parts = models._internvl2_parts(name, tensor, config)
        found |= {k: tuple(x.shape) for k, x in zip(models._internvl2_names(name), parts, strict=True)}
    assert found == {k: tuple(x.shape) for k, x in model.state_dict().items()}


@pytest.mark.skipif(
    not GOLDEN.is_dir(),
    reason=f"{GOLDEN} is not there: outputs of the original implementation come beside the repository",
)
def test_internvl2_in_its_own_layout_computes_what_the_original_does_at_every_recorded_point():
    folder = GOLDEN / "internvl2-tiny-a"
    entry = find_model(str(folder))
    assert entry["kind"] == "vlm" and entry["size"] == 56
    model, _ = LOADERS["vlm"](entry)
    golden = torch.load(folder / "golden.pt", weights_only=True)
    points = {
        "vision_embeddings": "model.vision_tower.embeddings",
        "projector": "model.multi_modal_projector",
    }
    points["logits"] = "lm_head"
    points |= {f"vision_block_{i}": f"model.vision_tower.encoder.layer.{i}" for i in range(3)}
    points |= {f"llm_layer_{i}": f"model.language_model.layers.{i}" for i in range(3)}
    assert set(points) == set(golden["expected"])
    seen = extract.capture(model, {k: golden[k] for k in ("input_ids", "pixel_values")}, points)
    for name, expected in golden["expected"].items():
        assert (seen[name].view_as(expected) - expected).abs().max() < 1e-4, name


# ---------------------------------------------------------------- towers of several grids, heads, and tokens without a place


def test_kosmos2s_features_are_the_librarys_patches_queries_and_rows(small_kosmos2):
    model, *_ = loaded = load(small_kosmos2)
    found, given = features(loaded, noise(3, 48))
    with torch.inference_mode():
        out = model(**given, output_hidden_states=True)
        tower = model.vision_model(given["pixel_values"], output_hidden_states=True).hidden_states
    rows = given["image_embeds_position_mask"].bool()
    assert rows[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]  # behind <s> and <image>
    assert all(found[p].shape == (3, 1, 1, 5, 32) for p in ("merger", "language.0", "language.2"))
    same(found["merger"], out.image_embeds)
    for i in range(3):
        same(found[f"vision.{i}"], tower[i + 1][:, 1:])
        x = found[f"language.{i}"]
        # the library's last hidden state is after the final norm
        same(model.text_model.model.layer_norm(x) if i == 2 else x, out.hidden_states[i + 1][rows])


def test_florence2s_features_are_the_librarys_blocks_tokens_and_encoder_rows_without_the_mean_of_all_places(
    small_florence2,
):
    from transformers import AutoProcessor

    model, *_ = loaded = load(small_florence2)
    frames = noise(3, 64)
    found, given = features(loaded, frames)
    processor = AutoProcessor.from_pretrained(small_florence2)
    own = processor(
        text=["<CAPTION>"] * 3, images=list(frames[:, 0].permute(0, 3, 1, 2)), return_tensors="pt"
    )
    assert (
        torch.equal(own["input_ids"], given["input_ids"])
        and (own["pixel_values"] - given["pixel_values"]).abs().max() < 1e-5
    )
    with torch.inference_mode():
        hidden = model(**given, output_hidden_states=True).encoder_hidden_states
        last = model.model.vision_tower(given["pixel_values"]).last_hidden_state
        tokens = model.get_image_features(given["pixel_values"]).pooler_output
    at = given["input_ids"] == model.config.image_token_id
    assert at.sum(1).tolist() == [17] * 3
    same(found["vision.3"], last.flatten(2).transpose(1, 2))
    same(found["merger"], tokens[:, 1:])
    for i in range(3):
        same(found[f"language.{i}"], hidden[i + 1][at].view(3, 17, 32)[:, 1:])
    assert [x.shape[2] for x in found.values()] == [16, 16, 8, 8, 4, 4, 4, 4, 4]


def test_grounding_dinos_features_are_the_librarys_stages_scales_and_the_encoders_second_scale(
    small_grounding_dino,
):
    model, *_ = loaded = load(small_grounding_dino)
    found, given = features(loaded, noise(3, 64))
    with torch.inference_mode():
        out = model(**given, output_hidden_states=True)
        stages = model.model.backbone.conv_encoder.model(
            given["pixel_values"], output_hidden_states=True
        ).hidden_states
    for i, (point, side) in enumerate(
        (("patch_embed", 16), ("vision.1", 16), ("vision.3", 8), ("vision.4", 4))
    ):
        assert found[point].shape[2:4] == (side, side)
        if i:
            same(found[point], stages[i].flatten(2).transpose(1, 2))
    encoder = out.encoder_vision_hidden_states
    assert encoder[0].shape[1] == 64 + 16 + 4 and len(encoder) == 4
    for i, x in enumerate(encoder[0].split([64, 16, 4], 1)):  # what goes into the encoder
        same(found[f"scale.{i}"], x)
    for i in range(3):
        same(found[f"encoder.{i}"], encoder[i + 1][:, 64:80])


@pytest.mark.parametrize("which, name", [("small_owlvit", "owlvit"), ("small_owlv2", "owlv2")])
def test_the_heads_of_owl_vit_and_owlv2_are_what_the_library_makes_boxes_and_class_embeddings_of(
    request, which, name
):
    model, *_ = loaded = load(request.getfixturevalue(which))
    found, given = features(loaded, noise(3, 48))
    with torch.inference_mode():
        out = model(**given)
        words = model(**{**given, "input_ids": torch.tensor([[1, 5, 7, 2]]).expand(3, -1)})
        hidden = (
            getattr(model, name).vision_model(given["pixel_values"], output_hidden_states=True).hidden_states
        )
    same((found["box_head"].flatten(1, 3) + model.box_bias).sigmoid().view(3, 1, 36, 4), out.pred_boxes)
    same(torch.nn.functional.normalize(found["class_head"], dim=-1), out.class_embeds)
    assert torch.equal(words.pred_boxes, out.pred_boxes) and torch.equal(words.class_embeds, out.class_embeds)
    assert not torch.equal(words.logits, out.logits)
    for i in range(2):
        same(found[f"vision.{i}"], hidden[i + 1][:, 1:])


MIXED = {
    "small_florence2": ("CAPTION", "merger", "language.0"),
    "small_grounding_dino": ("OBJECT", "scale.1", "encoder.0"),
}


@pytest.mark.parametrize("which", MIXED)
def test_an_encoder_that_mixes_words_and_picture_changes_with_the_words(request, which, monkeypatch):
    loaded, (words, before, behind) = load(request.getfixturevalue(which)), MIXED[which]
    found = features(loaded, noise(2, 64))[0]
    monkeypatch.setattr(families, words, "Where is the red circle?")
    other = features(loaded, noise(2, 64))[0]
    assert torch.equal(found[before], other[before]) and not torch.equal(found[behind], other[behind])


@pytest.mark.parametrize("which, size, coarsest", [("small_kosmos2", 48, 6), ("small_grounding_dino", 64, 2)])
def test_the_index_says_where_there_is_no_grid_and_pixels_have_the_coarsest_there_is(
    request, tmp_path, which, size, coarsest
):
    model, frames = request.getfixturevalue(which), noise(3, size, frames=2)
    data = write_set(tmp_path / "data", frames)
    run(model, data, tmp_path / "out", "--size", size, "--points", "all")
    (tmp_path / "out/index.yaml").unlink()
    # the index is made again without loading the model
    run(model, data, tmp_path / "out", "--size", size, "--points", "all")
    index, read = load_features(tmp_path / "out")
    loaded = load(model)
    without = {p for p, row in index["points"].items() if row.get("grid") is False}
    assert without == families.without_grid(loaded[2]) == set(index["points"]) - set(with_grid(index))
    assert (
        read("pixels").shape == (3, 2, coarsest, coarsest, (size // coarsest) ** 2 * 3)
        and index["nonfinite"] == 0
    )
    for point, x in features(loaded, frames)[0].items():
        torch.testing.assert_close(read(point), x, atol=5e-3, rtol=5e-3)  # stored in fp16


def test_a_grounding_dino_that_lacks_the_unused_norm_of_its_backbone_is_loaded(
    small_grounding_dino, tmp_path
):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(small_grounding_dino, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    without = {k: v for k, v in weights.items() if "swin.layernorm" not in k}
    assert len(without) == len(weights) - 2
    save_file(without, folder / "model.safetensors", {"format": "pt"})
    found, other = (features(load(f), noise(1, 64))[0] for f in (folder, small_grounding_dino))
    assert all(torch.equal(found[p], other[p]) for p in found)
