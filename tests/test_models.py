"""The registry describes the published checkpoints; a name or folder loads, or exits with a remedy."""

import copy
import json
import os
import re
import shutil
from functools import cache
from types import SimpleNamespace

import huggingface_hub
import published
import pytest
import torch
import transformers
from conftest import ROOT
from helpers import random_autoencoder
from published import INTERNVL2, internvl2_config, internvl2_layout
from safetensors.torch import load_file, save_file
from test_families import SIDES, folder_of, noise

import checkpoints
import cogvlm2
import cost
import extract
import families
import ltx
import media
import models
import streaming
from models import MODELS, find_model

GOLDEN = ROOT.parent / "shared" / "golden"


class ProcessorFacts:
    """All that a family reads of a processor before it sees an image: no weights and no files are needed."""

    image_token, bos_token, eos_token = "<image>", "<s>", "</s>"
    start_image_token_id, end_image_token_id = 1, 2
    image_mean, image_std = (0.5,) * 3, (0.5,) * 3
    chat_template = "made up"
    apply_chat_template = staticmethod(lambda *args, **more: "before <image> behind")
    tokenizer = image_processor = property(lambda self: self)

    def __call__(self, text, **more):
        return SimpleNamespace(input_ids=[3, 4])


@cache
def full(name):
    """(model on the meta device, points, multiple) of an entry of the registry."""
    with torch.device("meta"):
        model = published.network(published.config_of(name))
    if MODELS[name]["kind"] == "language":
        return model, {f"language.{i}": (f"model.layers.{i}",) for i in range(len(model.model.layers))}, None
    processor = None if name.startswith("internvl2") else ProcessorFacts()
    return (model, *families.family_of(model)(model, processor)[1:3])


def numel(module):
    return sum(p.numel() for p in module.parameters())


def spelt_out(points):
    """["vision.0", "vision.1"] of "vision.0-1"."""
    words = re.sub(r"(\S+)\.0-(\d+)", lambda m: " ".join(f"{m[1]}.{i}" for i in range(int(m[2]) + 1)), points)
    return words.split()


def test_every_entry_of_the_hub_states_facts_and_is_built_here():
    stated = {n for n, e in MODELS.items() if not e["path"].startswith(models.TINY) and e["kind"] != "video"}
    assert (
        set(published.ENTRIES) == {n for n, e in MODELS.items() if "params" in e and "licence" in e} == stated
    )
    for name in stated:
        config = {"vision_config": {}} if MODELS[name]["kind"] == "vlm" else {}
        assert models.kind_of(MODELS[name]["type"], config, name) == MODELS[name]["kind"]


@pytest.mark.parametrize("name", published.ENTRIES)
def test_the_points_and_parameters_of_the_full_size_model_are_the_stated_ones(name):
    model, points, multiple = full(name)
    entry, stacks = MODELS[name], {"vision": [], "language": []}
    for point, (path, *_) in points.items():
        stacks.get(point.partition(".")[0], []).append(numel(model.get_submodule(path)))
    layers = [*stacks["vision"], *stacks["language"]]
    tied = getattr(model, "all_tied_weights_keys", {})
    head = numel(model.lm_head) if hasattr(model, "lm_head") and "lm_head.weight" not in tied else 0
    outside = numel(model) - head - sum(layers)
    found = {"params": numel(model), "head": head, "layer": max(layers, default=0), "outside": outside}
    assert found == {k: pytest.approx(1e9 * entry[k], rel=0.01) for k in found}
    numbers = set(re.findall(r"\d+", str(vars(model.config))))
    if MODELS[name]["kind"] == "language":
        assert entry["language"][0] == len(layers) and str(entry["language"][1]) in numbers
        return
    assert list(points) == spelt_out(cost.registry_row(entry)["points"])
    assert entry["size"] % multiple == 0 and entry["clip"] % multiple == 0
    assert name == "ltx" or {str(entry["vision"][k]) for k in (1, 2)} <= numbers
    if entry["language"]:
        _, merge, width = entry["language"]
        assert str(width) in numbers
        assert not name.startswith("qwen") or multiple == merge * entry["vision"][1]


@pytest.mark.parametrize("name", models.MISNOMERS)
def test_a_misnomer_is_refused_in_one_sentence_with_a_name_that_works(refused, name):
    correction = models.MISNOMERS[name]
    refused(lambda: find_model(name.upper()), f"{name.upper()!r} {correction}")
    offered = re.split(", the same weights|, which| and ask", correction.split("; use ")[1])[0]
    offered = re.findall(r"[\w./-]+", offered.replace(" or ", " "))
    assert offered and all(models.registry_name(o) in MODELS for o in offered), offered


def folder_with(folder, **config):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_model_is_found_by_name_repository_or_folder(tmp_path, monkeypatch, refused):
    for written, name in (("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"), ("dinov2-giant", "dinov2-g")):
        assert find_model(written) == find_model(name) and find_model(name)["name"] == name
    refused(lambda: find_model("vlm"), "unknown model 'vlm'")  # the folder of a small model
    monkeypatch.chdir(tmp_path)
    folder_with(tmp_path / "facebook/dinov2-large", model_type="dinov2", patch_size=8)
    assert find_model("facebook/dinov2-large")["weights"] == "unstated"
    vision = {"patch_size": 14, "spatial_merge_size": 2}
    folder_with(tmp_path / "own", model_type="qwen2_5_vl", vision_config=vision)
    found = find_model(str(tmp_path / "own"))
    assert (found["kind"], found["name"], found["size"], found["clip"]) == ("vlm", "own", 448, 224)
    (tmp_path / "own/weights.yaml").write_text("weights: small\nsize: 56\nother: 1\n")
    assert find_model("own") == found | {"path": "own", "weights": "small", "size": 56}
    folder_with(tmp_path / "fixed", model_type="siglip", vision_config={"image_size": 50})
    assert find_model("fixed")["size"] == find_model("fixed")["clip"] == 50
    index = {"model": "own", "run": {"arguments": {"model": str(tmp_path / "own")}}}
    assert models.model_of(index)["size"] == 56 and models.model_of({"model": "gone"}) == {}


def hub_error(name, status):
    """One of huggingface_hub's exceptions, as a response with this status raises it."""
    response = SimpleNamespace(status_code=status, headers={}, request=SimpleNamespace(url="", method="GET"))
    return getattr(huggingface_hub.errors, name)(f"{status} Client Error.", response=response)


LICENCE = "accept its licence at https://huggingface.co/facebook/dinov2-small, then `hf auth login`"
HUB = {
    LICENCE: hub_error("GatedRepoError", 403),
    "no such repository": hub_error("RepositoryNotFoundError", 401),
    "no revision 'v9'": hub_error("RevisionNotFoundError", 404),
    "HF_HUB_OFFLINE": huggingface_hub.errors.OfflineModeIsEnabled(""),
    "cannot be reached": TimeoutError("no network"),
}


@pytest.mark.parametrize("words", HUB)
def test_an_error_of_the_hub_becomes_one_sentence_with_the_remedy(monkeypatch, refused, words):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when it was imported

    def fail(*args, **more):
        raise OSError("a long story.\nMore of it.") from HUB[words]

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda *args, **more: None)
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", fail)
    entry = find_model("dinov2-s") | {"revision": "v9"}
    refused(lambda: models.load_encoder(entry), "cannot load facebook/dinov2-small: ", words)


def test_a_folder_that_is_no_whole_checkpoint_is_refused(small_dino, tmp_path, refused):
    folder = shutil.copytree(small_dino, tmp_path / "model")
    weights = folder / "model.safetensors"

    def refuse(word):
        for loader in (models.load_encoder, lambda entry: models.skeleton(entry, torch.float32)):
            refused(lambda loader=loader: loader(find_model(str(folder))), word)

    rest = {k: v for k, v in load_file(weights).items() if "layer.1." not in k}
    save_file(rest, weights, {"format": "pt"})
    refuse(folder)
    weights.write_bytes(weights.read_bytes()[:150])
    refuse(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt9"}))
    refuse("'gpt9'")
    (folder / "config.json").unlink()
    refuse("no config.json")


def test_a_model_is_loaded_on_its_device_and_refused_where_it_does_not_fit(small_dino, monkeypatch, refused):
    entry, asked, build = find_model(str(small_dino)), [], transformers.AutoModel.from_pretrained

    def noted(*args, **more):
        asked.append(more.get("device_map"))
        if more["dtype"] == torch.bfloat16:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return build(*args, **more)

    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", noted)
    needed = sum(x.nbytes for x in models.load_encoder(entry)[0].parameters())
    models.load_encoder(entry, "meta")
    refused(lambda: models.load_encoder(entry, "cpu", torch.bfloat16), "memory is full", "--stream")
    monkeypatch.setattr(checkpoints, "memory_left", lambda device, most: needed * 0.6)
    models.load_encoder(entry, "cpu", torch.float16)
    refused(lambda: models.load_encoder(entry), "needs 0.00 GB of weights", "of free cpu memory", "--stream")
    assert asked == [None, {"": "meta"}, None, None]
    assert checkpoints.stored_bytes(MODELS["dinov2-l"], torch.float16) == pytest.approx(0.61e9, rel=0.01)


def test_a_fingerprint_is_of_the_content_alone(small_dino, tmp_path):
    file = shutil.copytree(small_dino, tmp_path / "copied") / "model.safetensors"
    os.utime(file, (0, 0))
    assert checkpoints.fingerprint(str(file.parent)) == checkpoints.fingerprint(find_model(str(small_dino)))
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file, {"format": "pt"})
    assert checkpoints.fingerprint(str(file.parent)) != checkpoints.fingerprint(str(small_dino))
    sample, header = checkpoints.sample_of(file, 4, 64), checkpoints.header_of(file)  # as of a large file
    assert header in sample and sample[-64:] == file.read_bytes()[-64:] and len(sample) < len(header) + 300


def test_a_cached_revision_is_loaded(small_dino, shapes_folder, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "models--somebody--dino"
    (repository / "refs").mkdir(parents=True)
    for commit, ref in (("a" * 40, "main"), ("b" * 40, "v2")):
        shutil.copytree(small_dino, repository / "snapshots" / commit)
        (repository / "refs" / ref).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    entry = {"kind": "encoder", "type": "dinov2", "path": "somebody/dino", "size": 48, "clip": 48}
    monkeypatch.setitem(MODELS, "cached", entry)
    ask = ["--model", "cached", "--data", str(shapes_folder), "--points", "last", "--out"]
    for more, commit in (([], "a" * 40), (["--revision", "v2"], "b" * 40)):
        index = extract.main([*ask, str(tmp_path / commit), *more])
        assert index["weights"] == "pretrained" and index["run"]["model_revision"] == commit
    assert checkpoints.fingerprint(entry) == f"somebody/dino@{'a' * 40}"


@pytest.mark.parametrize("which", ["small_gated_dino", *(w for w in SIDES if w != "small_vae")])
def test_weights_read_one_by_one_trained_and_untrained_are_those_of_the_whole_model(request, which):
    entry, buffers = find_model(str(folder_of(request, which))), []
    if which == "small_gated_dino":  # two matrices of the library are stored as one
        assert any("weights_in" in name for name in load_file(f"{entry['path']}/model.safetensors"))
    for seed in (None, 3):
        model, _, weights = models.skeleton(entry, torch.float32, random_seed=seed)
        for name in reversed(list(weights.like)):
            checkpoints.fill(model, weights, [name])
        whole, _ = models.load_transformer(entry, random_seed=seed)
        buffers.append(dict(whole.named_buffers()))
        found, expected = ({**m.state_dict(), **dict(m.named_buffers())} for m in (model, whole))
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], x) for name, x in expected.items())
    build, *_ = models.layout_of(entry)(entry, torch.float32)
    library, untrained = dict(build().named_parameters()), dict(whole.named_parameters())
    for name, x in library.items():  # as the library draws it
        if x.numel() >= 1000 and "decoder" not in name:  # no point lies that deep
            assert untrained[name].std() == pytest.approx(x.std().item(), rel=0.15, abs=1e-3), name
    assert all(torch.equal(buffers[1][name], x) for name, x in buffers[0].items())


@pytest.mark.parametrize("name", INTERNVL2)
def test_internvl2s_own_layout_maps_onto_every_weight_of_the_native_class_at_full_size(name):
    vision, words = INTERNVL2[name]
    config = cogvlm2.internvl2_config(internvl2_config(vision, words))
    model, found = full(name)[0], {}
    for old, shape in internvl2_layout(vision, words).items():
        parts = cogvlm2.internvl2_parts(old, torch.empty(*shape, device="meta"), config)
        found |= {k: tuple(x.shape) for k, x in zip(cogvlm2.internvl2_names(old), parts, strict=True)}
    assert found == {k: tuple(x.shape) for k, x in model.state_dict().items()}


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"{GOLDEN} does not exist: outputs of the original code")
def test_internvl2_in_its_own_layout_computes_what_the_original_does_at_every_recorded_point():
    model, _ = models.load_vlm(find_model(str(GOLDEN / "internvl2-tiny-a")))
    golden = torch.load(GOLDEN / "internvl2-tiny-a/golden.pt", weights_only=True)
    points = {"vision_embeddings": "model.vision_tower.embeddings", "logits": "lm_head"}
    points["projector"] = "model.multi_modal_projector"
    points |= {f"vision_block_{i}": f"model.vision_tower.encoder.layer.{i}" for i in range(3)}
    points |= {f"llm_layer_{i}": f"model.language_model.layers.{i}" for i in range(3)}
    assert set(points) == set(golden["expected"])
    seen = streaming.capture(model, {k: golden[k] for k in ("input_ids", "pixel_values")}, points)
    for name, expected in golden["expected"].items():
        assert (seen[name].view_as(expected) - expected).abs().max() < 1e-4, name


def test_latents_are_normalised_and_decoded_back_and_stills_are_flattened_exactly(refused, monkeypatch):
    monkeypatch.setattr(ltx, "clips_at_once", lambda pixels: 2)
    torch.manual_seed(0)
    vae = random_autoencoder(patch_size=4, scaling=(True, False)).eval()
    clips = noise(3, 32, frames=5)
    z = ltx.encode_generated_clips(vae, clips)
    with torch.no_grad():
        mode = vae.encode(clips.permute(0, 4, 1, 2, 3) / 127.5 - 1).latent_dist.mode()
        expected = ((vae.decode(mode).sample + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 4, 1)
        raw = mode.permute(0, 2, 3, 4, 1)
        torch.testing.assert_close(z, (raw - vae.latents_mean) / vae.latents_std, atol=1e-5, rtol=1e-4)
        found = ltx.decode_generated_clips(vae, z)
        assert found.shape == clips.shape and (found.float() - expected).abs().max() <= 1
        for frames in (1, 5):
            x = torch.rand(2, 3, frames, 32, 32) * 2 - 1
            before, after = vae(x).sample, ltx.flatten_stills(copy.deepcopy(vae))(x).sample
            assert before.std() > 0.01 and (before - after).abs().max() < 1e-4
    shape = {"time": 8, "space": 32}
    refused(lambda: ltx.check_shape(24, 512, shape, "ltx-video"), "8k+1", "give 17 or 25")
    refused(lambda: ltx.check_shape(17, 500, shape, "ltx-video"), "multiple of 32", "480 or 512")


def test_autoencoders_are_in_fp32_and_untrained_by_seed_and_take_as_many_clips_as_fit():
    entry = find_model(MODELS["tiny-ltx"]["path"])
    assert (entry["kind"], entry["size"], entry["clip"]) == ("video", 64, 64)
    pipeline, _ = ltx.load_video_pipeline(entry, dtype=torch.bfloat16)
    assert pipeline.transformer.dtype == torch.bfloat16 and pipeline.vae.dtype == torch.float32
    entry = find_model("tiny-vae")
    vaes = [models.load_video_vae(entry, "cpu", torch.bfloat16, seed)[0] for seed in (1, 1, 2)]
    kernel, *others = (vae.state_dict()["encoder.conv_in.conv.weight"] for vae in vaes)
    assert 0.01 < kernel.std() < 0.03 and kernel.dtype == torch.float32
    assert [torch.equal(kernel, x) for x in others] == [True, False]
    assert [ltx.clips_at_once(pixels) for pixels in (1000, 10**6, 10**10)] == [7812, 7, 1]


def test_decoding_is_greedy_whatever_a_checkpoint_suggests(small_vlm, tmp_path):
    folder = shutil.copytree(small_vlm, tmp_path / "vlm")

    def answer():
        model, processor = models.load_vlm(find_model(str(folder)))
        return models.greedy_tokens(model, models.put_to(model, processor, noise(2, 48), "Where is it?"), 6)

    plain = answer()
    other = {"do_sample": True, "temperature": 9.0, "num_beams": 3, "no_repeat_ngram_size": 1}
    other |= {"repetition_penalty": 9.0, "suppress_tokens": plain[0].tolist(), "forced_bos_token_id": 7}
    other |= {"forced_eos_token_id": 7, "min_new_tokens": 20, "bad_words_ids": [[plain[0, 0].item()]]}
    (folder / "generation_config.json").write_text(json.dumps(other))
    assert torch.equal(answer(), plain)


def test_frames_of_a_clip_keep_their_times(small_qwen3vl):
    _, processor = models.load_vlm(find_model(str(small_qwen3vl)))
    texts, item = [], {"frames": noise(1, 48, frames=4)[0]}
    for times in ([0, 1, 4, 5], [0, 0.5, 2, 2.5]):
        clips = media.stacked([item | {"times": times}] * 2)
        texts.append(processor.tokenizer.decode(models.qwen_inputs(processor, clips, "?")["input_ids"][1]))
    assert "<0.5 seconds>" in texts[0] and "<4.5 seconds>" in texts[0] and "<2.2 seconds>" in texts[1]
