"""Every vision-language model answers: about clips, in batches, and where it does not fit by likelihood."""

import importlib.util
import json
import shutil
from types import SimpleNamespace

import published
import pytest
import torch
from test_families import SIDES, folder_of, noise

import answering
import explain
import models
from models import MODELS, find_model

FAMILIES = ["small_vlm", "small_qwen2vl", "small_qwen3vl", "small_internvl", "small_cogvlm2", "small_kosmos2"]
FAMILIES += ["small_florence2", "llava", "llava_next", "llava_onevision"]
CAUSAL = [which for which in FAMILIES if which not in ("small_kosmos2", "small_florence2")]
CHOICES = ["red", "a blue star", "up"]
AT = [0, 2, 5], 6


def loaded(request, which):
    return models.load_vlm(find_model(str(folder_of(request, which))))


def clips(which, n=2):
    return noise(n, SIDES.get(which, 48), frames=3)


@pytest.mark.parametrize("which", FAMILIES)
def test_every_family_answers_about_clips_the_same_in_any_batch(request, which, monkeypatch):
    model, processor = loaded(request, which)
    frames, sizes = clips(which, 3), []
    together = models.answers_to(model, processor, frames, "Where is it?", AT, 5)
    ask = models.greedy_tokens
    monkeypatch.setattr(
        models,
        "greedy_tokens",
        lambda m, given, most: sizes.append(len(next(iter(given.values())))) or ask(m, given, most),
    )
    monkeypatch.setattr(models, "TOKENS", 1)
    assert models.answers_to(model, processor, frames, "Where is it?", AT, 5) == together and len(sizes) == 3
    assert len(together) == 3 and all(isinstance(text, str) for text in together)


@pytest.mark.parametrize("name", ["internvl2", "internvl2-26b", "cogvlm2"])
def test_models_in_layouts_of_their_own_answer_about_clips_too(name, tmp_path):
    published.write_checkpoint(tmp_path / name, name, small=True)
    model, processor = answering.load_to_answer(find_model(str(tmp_path / name)), "cpu", torch.float32)
    clips, at = noise(2, 64, frames=3), ([0, 1, 2], 3)
    texts = models.answers_to(model, processor, clips, "Where is it?", at, 4)
    assert len(texts) == 2
    scores = answering.likelihoods(model, processor, clips, "Where is it?", ["left", "right"], at)
    assert scores.shape == (2, 2) and (scores < 0).all()


def test_frames_of_a_clip_are_one_tile_each_and_a_model_of_single_images_sees_one_picture(request):
    model, processor = loaded(request, "llava_next")
    given = models.put_to(model, processor, clips("llava_next"), "Where?", AT)
    prompt = models.chat(processor, "Where?", count=3)
    words = len(processor.tokenizer(prompt).input_ids) - 3
    assert given["inputs_embeds"].shape[1] == words + 3 * (36 + 1)  # the tokens of a tile, and a newline
    image = models.put_to(model, processor, clips("llava_next")[:, :1], "Where?")
    assert image["pixel_values"].shape[1] > 1  # a single image has its tiles
    clip = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 2, 4, 3)
    picture = models.sheet(clip)
    assert picture.shape == (4, 12, 3) and picture[::2, ::4, 0].tolist() == [[0, 1, 2], [3, 4, 0]]
    assert torch.equal(models.sheet(clip[3:4]), clip[3])


def test_llava_nexts_one_tile_gives_what_the_library_gives_for_the_base_tile(request):
    model, processor = loaded(request, "llava_next")
    frame = clips("llava_next", 1)[:, :1].expand(-1, 2, -1, -1, -1)
    given = models.one_tile(model, processor, frame, models.chat(processor, "Where?", count=2))
    rows = (given["inputs_embeds"][0, :, None] == model.model.image_newline).all(-1).nonzero()[:, 0]
    first = given["inputs_embeds"][0, rows[0] - 36 : rows[0]]
    image = processor(images=[frame[0, 0].permute(2, 0, 1)], text="<image>", return_tensors="pt")
    with torch.no_grad():
        packed = model.model.get_image_features(image["pixel_values"], image["image_sizes"]).pooler_output[0]
    torch.testing.assert_close(first, packed[:36], atol=1e-5, rtol=1e-4)


def apart(model, processor, frames, question, choices):
    """log p of each choice, in a forward pass of its own."""
    tokenizer, found = getattr(processor, "tokenizer", processor), []
    for choice in choices:
        ids = torch.tensor([tokenizer(choice, add_special_tokens=False).input_ids])
        given = models.put_to(model, processor, frames, question, AT)
        end = given["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            if name in given:
                fill = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}.get(
                    name, torch.zeros_like(ids)
                )
                given[name] = torch.cat([given[name], fill], 1)
        out = model(**given)
        logits = (out if torch.is_tensor(out) else out.logits)[0, end - 1 : -1].float().log_softmax(-1)
        found.append(logits.gather(1, ids[0, :, None]).sum())
    return torch.stack(found)


@pytest.mark.parametrize("which", [which for which in CAUSAL if which != "llava_next"])
@torch.inference_mode()
def test_all_choices_in_one_pass_have_the_likelihood_that_each_has_alone(request, which):
    model, processor = loaded(request, which)
    frames = clips(which)
    found = answering.likelihoods(model, processor, frames, "What is it?", CHOICES, AT)
    for k in range(len(frames)):
        expected = apart(model, processor, frames[k : k + 1], "What is it?", CHOICES)
        torch.testing.assert_close(found[k], expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("which", ["small_vlm", "small_internvl", "small_cogvlm2", "llava_next"])
def test_a_model_that_does_not_fit_is_streamed_and_chooses_what_it_would(
    request, which, monkeypatch, refused
):
    entry, frames = find_model(str(folder_of(request, which))), clips(which)
    model, processor = answering.load_to_answer(entry, "cpu", torch.float32)
    assert model.precision == "torch.float32"
    expected = answering.likelihoods(model, processor, frames, "What is it?", CHOICES, AT)
    monkeypatch.setattr(answering, "memory_left", lambda device, most: 1)
    streamed, _ = answering.load_to_answer(entry, "cpu", torch.float32, choices=True)
    assert streamed.precision == "streamed"
    found = answering.likelihoods(streamed, processor, frames, "What is it?", CHOICES, AT)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    layers = [p for name, p in streamed.named_parameters() if ".layers." in name]
    assert layers and all(p.is_meta for p in layers)  # dropped again
    texts = answering.answers_of(streamed, processor, frames, "What is it?", AT, CHOICES)
    assert texts == [CHOICES[k] for k in expected.argmax(1).tolist()]
    where = entry, "cpu", torch.float32
    refused(lambda: answering.load_to_answer(*where), "does not fit", "bitsandbytes")
    assert answering.answerable({"open": 1, "options": 2}, *where) == ({"options": 2}, "streamed")
    refused(lambda: answering.answerable({"open": 1}, *where), "does not fit", "options")


def test_a_model_that_does_not_fit_a_gpu_is_loaded_in_4_bits_where_bitsandbytes_is(small_vlm, monkeypatch):
    entry, asked = find_model(str(small_vlm)), []

    def load(*args, **more):
        asked.append(more)
        return SimpleNamespace(), None

    monkeypatch.setattr(answering, "load_transformer", load)
    needed = answering.ROOM * answering.stored_bytes(entry, torch.float16)
    for left, found, precision in ((2, False, "torch.float16"), (0.5, True, "nf4")):
        monkeypatch.setattr(answering, "memory_left", lambda device, most, left=left: left * needed)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        monkeypatch.setattr(answering, "nf4", lambda dtype: f"nf4 {dtype}")
        assert answering.load_to_answer(entry, "cuda", torch.float16)[0].precision == precision
    assert asked == [{}, {"quantised": "nf4 torch.float16"}]


def test_control_tokens_in_a_users_words_are_refused(request, refused):
    for which, token in (("small_vlm", "<|image_pad|>"), ("llava", "<image>"), ("small_vlm", "<|im_end|>")):
        model, processor = loaded(request, which)
        given = model, processor, clips(which)[:, :1], f"What is {token}?"
        refused(lambda given=given: models.put_to(*given), token, "write it in other words")
    words = "Is 3 < 4 or [5]? <b>bold</b>"
    assert models.control_token(processor, words) is None


def test_what_answers_no_questions_is_refused(refused):
    for name in ("tiny-dinov2", "tiny-vae", "tiny-words"):
        refused(lambda name=name: answering.check_asked(find_model(name)), name, "answers no questions")
    assert answering.check_asked(find_model("tiny-cogvlm2")) is None


def test_what_a_target_of_make_cannot_do_is_refused_when_make_starts(refused, tmp_path):
    for targets, names, words in (
        ("gate3", "tiny-dinov2", ("make gate3", "MODEL=tiny-dinov2", "kind encoder")),
        ("data all", "tiny-dinov2", ("make all", "tiny-dinov2")),
        ("gate2", "florence-2", ("make gate2", "florence2", "qwen2_5_vl")),
        ("tune", "tiny-cogvlm2", ("make tune", "cogvlm2")),
        ("screen", "tiny tiny-words", ("make screen", "MODEL=tiny-words")),
    ):
        refused(lambda targets=targets, names=names: answering.check_targets(targets, names), *words)
    refused(lambda: answering.check_targets("explain", "tiny", "tiny-dinov2"), "make explain", "tiny-dinov2")
    for name in ("tiny", "tiny-internvl2", "tiny-cogvlm2", "somebody/unknown", "internvl2"):
        answering.check_targets("gate1 gate2 gate3 gate4 explain binding data/x", name)
    answering.check_targets("gate1 align resolution screen", "tiny-dinov2 dinov2-l")
    assert set(answering.GROUNDED) == set(explain.GROUNDING)
    folder = shutil.copytree(models.HERE / MODELS["tiny"]["path"], tmp_path / "own")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    refused(lambda: answering.check_targets("gate1", str(folder)), "quantised with awq")
