"""tune.py train: only answers teach, nothing is cut in two, a killed run is the same run, and what comes out is a model like any other."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import media
import models
import synthetic
import training
import tune
from common import Items, load_yaml, write_items
from models import find_model, load_vlm, processor_of, qwen_inputs

FAMILIES = "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "llava_onevision", "internvl"


@pytest.fixture
def family(request, small_vlm, small_qwen2vl, small_qwen3vl, small_llavas, small_internvl):
    qwens = {"qwen2_vl": small_qwen2vl, "qwen2_5_vl": small_vlm, "qwen3_vl": small_qwen3vl}
    return {**qwens, "internvl": small_internvl, **small_llavas}[request.param]


def reading_of(folder, pixels=(48 * 48, 48 * 48)):
    entry = find_model(str(folder))
    return tune.Reading(processor_of(entry), entry["type"], pixels)


def picture(seed, h=48, w=48, t=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (t, h, w, 3), generator=g, dtype=torch.uint8)


def item(k, frames=None, **more):
    turns = [["Where is it?", "left"], ["And now?", "a red star"]]
    frames = picture(k) if frames is None else frames
    return {
        "id": f"i{k}",
        "source": f"s{k}",
        "frames": frames,
        "width": 48,
        "height": 48,
        "turns": turns,
    } | more


def of_split(k, every=1):
    """A source whose name puts an item into train twice as often as into val and test."""
    return f"{('train', 'train', 'val', 'test')[k // every % 4]}:{k}"


def encoded(frames):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frames[0].numpy()).save(file, "PNG")
    return torch.from_numpy(np.frombuffer(file.getvalue(), np.uint8).copy())


@pytest.fixture(scope="module")
def lessons(tmp_path_factory):
    """Forty pictures, of which each one's middle says what is to be answered."""
    folder, made = tmp_path_factory.mktemp("tune") / "data", []
    for k in range(40):
        turns = [["Is it dark?", ("yes", "no")[k % 2]]]
        made.append(item(k, picture(k) // 8 + (k % 2) * 200, source=of_split(k, 2), turns=turns))
    write_items(folder, made, {"data": "synthetic", "name": "made-up"})
    return folder


def tuned(model, folder, out, *more):
    line = f"train --model {model} --data {folder} --out {out} --epochs 2 --batch 4 --lr 1e-2 --rank 4"
    return tune.main([*line.split(), *map(str, more)])


# ---------------------------------------------------------------- what is read, and which tokens teach


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_labels_are_the_answers_with_the_ends_of_their_turns_and_the_rest_is_what_inference_reads(family):
    reading = reading_of(family)
    row, beside = reading(item(0, chat=True), 0, 2)
    tokens = list(zip(row["input_ids"], row["labels"], row["turn"], strict=True))
    said = [reading.tokenizer.decode([x for x, _, t in tokens if t == k]).strip() for k in (1, 2)]
    assert said == ["left<|im_end|>", "a red star<|im_end|>"]
    assert all(label == (x if t else -100) for x, label, t in tokens)
    # what the model is given at inference
    prompt = reading.processed(models.chat(reading.processor, "Where is it?"), [picture(0)])
    assert row["input_ids"][: row["turn"].index(1)] == prompt["input_ids"][0].tolist()
    assert all(torch.equal(beside[name], torch.as_tensor(prompt[name])) for name in beside)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_a_whole_conversation_reads_as_the_processor_writes_it(family):
    reading = reading_of(family)
    row, _ = reading(item(0, chat=True, system="Be brief."), 0, 2)
    messages, *_ = reading.said(item(0, chat=True, system="Be brief."), 0, 2)
    text = reading.processor.apply_chat_template(messages, tokenize=False)
    whole = reading.processed(text, [picture(0)])["input_ids"][0].tolist()
    assert row["input_ids"] == whole[: len(row["input_ids"])]
    assert reading.tokenizer.decode(whole[len(row["input_ids"]) :]).strip() == "" and "Be brief." in text


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_lengths_known_beforehand_are_the_lengths_read(family):
    reading = reading_of(family)
    for k, made in enumerate(
        [item(0), item(1, chat=True), item(2, picture(2, 64, 40)), item(3, picture(3, t=4))]
    ):
        for lesson in reading.lessons(made, k):
            row, _ = reading(made, lesson.first, lesson.last)
            assert lesson.tokens == len(row["input_ids"])
            assert lesson.scored == sum(label != -100 for label in row["labels"])


def test_turns_that_are_no_conversation_are_lessons_of_their_own(small_vlm):
    reading = reading_of(small_vlm)
    assert [(x.first, x.last) for x in reading.lessons(item(0), 7)] == [(0, 1), (1, 2)]
    assert [(x.item, x.first, x.last) for x in reading.lessons(item(0, chat=True), 7)] == [(7, 0, 2)]
    row, _ = reading(item(0), 1, 2)
    assert "Where is it?" not in reading.tokenizer.decode(row["input_ids"])


def test_media_stand_where_the_placeholders_say_and_else_before_the_first_question(small_vlm):
    def said(*questions, marked=True):
        kinds = [[{"type": "image"}], [{"type": "image"}]]
        messages, brings = tune.conversation([[q, "x"] for q in questions], None, kinds, marked)
        return brings, [" ".join(c["type"] for c in m["content"]) for m in messages]

    inside = ["text image text", "text", "text image text", "text"]
    assert said("What is <image>?", "Like <image> this?") == ([1, 1], inside)
    assert said("one?", "two?", marked=False) == ([2, 0], ["image image text", "text", "text", "text"])
    album = {
        "id": "a",
        "source": "a",
        "album": [encoded(picture(0)), encoded(picture(1, 32, 64))],
        "chat": True,
    }
    album["turns"] = [["What is <image>?", "left"], ["And <image>?", "star"]]
    row, beside = reading_of(small_vlm)(album, 0, 2)
    assert beside["image_grid_thw"].tolist() == [[1, 6, 6], [1, 4, 8]]
    assert row["mm_token_type_ids"].count(1) == 9 + 8
    with pytest.raises(ValueError, match="more pictures or videos than the 2"):
        said("<image> <image> <image>")


def test_logits_are_computed_for_answers_only_and_are_those_of_the_whole_pass(small_vlm):
    model, processor = load_vlm(find_model(str(small_vlm)))
    reading = reading_of(small_vlm)
    rows = [reading(item(k, chat=True), 0, n) for k, n in ((0, 2), (1, 1), (2, 2))]
    inputs, labels, _ = tune.collated(rows, 0, True)
    rows_of_head = []
    model.lm_head.register_forward_pre_hook(lambda module, given: rows_of_head.append(given[0].shape))
    cost, likeliest = tune.Taught(model, model, ("cpu", None))(inputs, labels)
    scored = labels[:, 1:] != -100
    assert rows_of_head == [(int(scored.sum()), 32)]
    logits = model(**inputs).logits[:, :-1][scored]
    assert torch.allclose(
        cost, torch.nn.functional.cross_entropy(logits, labels[:, 1:][scored], reduction="none"), atol=1e-5
    )
    assert torch.equal(likeliest, logits.argmax(-1) == labels[:, 1:][scored])


def test_a_batch_says_of_each_lesson_what_it_alone_would(small_vlm):
    model, _ = load_vlm(find_model(str(small_vlm)))
    reading, taught = reading_of(small_vlm), tune.Taught(model, model, ("cpu", None))
    rows = [reading(item(0, picture(0, 48, 80)), 0, 1), reading(item(1, picture(1, t=4)), 1, 2)]
    together = taught(*tune.collated(rows, 0, True)[:2])[0]
    alone = torch.cat([taught(*tune.collated([row], 0, True)[:2])[0] for row in rows])
    assert torch.allclose(together, alone, atol=1e-4)


def test_what_is_called_exact_is_what_greedy_decoding_says():
    """tiny's own answers to pictures: those whose every token is the likeliest one, and no others, are generated."""
    made = next(iter(synthetic.shapes(1, 96, 3)))
    model, processor = load_vlm(find_model("tiny"))
    reading = tune.Reading(processor, "qwen2_5_vl", (96 * 96, 64 * 64))
    taught, found = tune.Taught(model, model, ("cpu", None)), []
    wrong = made | {
        "turns": [[q, a] for q, _ in made["turns"] for a in ("top", "star", "a red star")] + made["turns"]
    }
    for k, (question, answer) in enumerate(wrong["turns"]):
        inputs, labels, _ = tune.collated([reading(wrong, k, k + 1)], 0, True)
        prompt = qwen_inputs(processor, made["frames"][None], question)
        said = processor.batch_decode(
            model.generate(**prompt, do_sample=False, max_new_tokens=30)[:, prompt["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )[0]
        found.append((bool(taught(inputs, labels)[1].all()), said == answer))
    assert all(a == b for a, b in found) and {a for a, _ in found} == {True, False}


# ---------------------------------------------------------------- boxes


def test_boxes_go_to_the_processors_frame_and_back_within_a_pixel():
    rng = np.random.default_rng(0)
    for _ in range(300):
        w, h = rng.integers(60, 1400, 2).tolist()
        frame = media.fitted(w, h, 28, 700 * 700)
        assert frame[0] % 28 == frame[1] % 28 == 0 and frame[0] * frame[1] <= 700 * 700
        box = [int(rng.integers(0, w)), int(rng.integers(0, h)), w, h]
        text = f'```json\n[{{"bbox_2d": {box}, "label": "a [1, 2, 3, 4]"}}]\n```'
        there = tune.rescaled(text, (w, h), frame)
        back = json.loads(tune.rescaled(there, frame, (w, h))[8:-4])[0]["bbox_2d"]
        # a pixel, or half of one of the frame where that is much smaller
        most = [max(1, 0.5 * a / b + 0.5) for a, b in zip((w, h), frame, strict=True)] * 2
        assert all(abs(a - b) <= m for a, b, m in zip(box, back, most, strict=True))
        assert '"label": "a [1, 2, 3, 4]"' in there
    assert (
        tune.rescaled('{"bbox_2d": [1, 2, 3]} {"bbox_2d": [a]}', (10, 10), (20, 20))
        == '{"bbox_2d": [1, 2, 3]} {"bbox_2d": [a]}'
    )


SAID = {
    "qwen2_5_vl": "[8, 16, 24, 32]",
    "internvl": "[167, 333, 500, 667]",
    "llava_next": "[0.167, 0.333, 0.500, 0.667]",
}


@pytest.mark.parametrize(("family", "said"), SAID.items(), indirect=["family"])
def test_an_answers_box_is_said_as_the_family_says_boxes(family, said):
    reading, answer = reading_of(family), '{"bbox_2d": [16, 32, 48, 64]}'  # in a frame of 48 x 48, halved
    made = item(0, picture(0, 96, 96), width=96, height=96, turns=[["Where?", answer]])
    row, _ = reading(made, 0, 1)
    assert f'{{"bbox_2d": {said}}}' in reading.tokenizer.decode(row["input_ids"])
    assert made["turns"][0][1] == answer


def test_a_box_is_scaled_with_the_picture_that_it_is_in(small_vlm):
    reading, a, b = reading_of(small_vlm), '{"bbox_2d": [16, 32, 48, 48]}', '{"bbox_2d": [16, 32, 48, 64]}'
    album = {
        "id": "a",
        "source": "a",
        "album": [encoded(picture(0)), encoded(picture(1, 96, 96))],
        "chat": True,
    }
    album["turns"] = [["Where, <image>?", a], ["And <image>?", b]]
    said = reading.tokenizer.decode(reading(album, 0, 2)[0]["input_ids"])  # at most 48 x 48 pixels
    assert a in said and '{"bbox_2d": [8, 16, 24, 32]}' in said
    turns = [["Where?", '{"bbox_2d": [320, 240, 640, 480]}']]
    clip = item(0, picture(0, t=4), width=640, height=480, turns=turns)  # it was squashed to 48 x 48
    assert '{"bbox_2d": [24, 24, 48, 48]}' in reading.tokenizer.decode(reading(clip, 0, 1)[0]["input_ids"])


# ---------------------------------------------------------------- too long


def test_what_is_too_long_loses_whole_turns_from_the_end_and_never_part_of_a_picture(small_vlm, tmp_path):
    reading = reading_of(small_vlm)
    made = item(0, chat=True, turns=[[f"What is there, the {n}th time?", "a red star"] for n in range(6)])
    (whole,) = reading.lessons(made, 0)
    lengths = [reading.lessons(made | {"turns": made["turns"][:k]}, 0)[0].tokens for k in range(1, 7)]
    assert whole.tokens == lengths[-1]
    for most in range(lengths[0] - 1, lengths[-1] + 1):
        kept = sum(n <= most for n in lengths)
        found = reading.lessons(made, 0, most)
        assert [x.last for x in found] == ([kept] if kept else [])
        for lesson in found:
            row, beside = reading(made, lesson.first, lesson.last)
            assert len(row["input_ids"]) <= most
            assert row["mm_token_type_ids"].count(1) == int(beside["image_grid_thw"].prod()) // 4
    write_items(tmp_path / "d", [made, item(1)], {"data": "synthetic"})
    school = tune.School(tmp_path / "d", reading, lengths[2])
    assert school.dropped == {"lessons": 0, "turns": 3} and len(school.lessons) == 3
    school = tune.School(tmp_path / "d", reading, reading.lessons(item(1), 1)[0].tokens)
    assert school.dropped["lessons"] >= 1


# ---------------------------------------------------------------- training


def test_however_a_batch_is_cut_up_its_step_is_the_same(small_vlm, tmp_path):
    """Answers of unequal length: the mean over a part's tokens would weigh the short ones more."""
    answers = ["x", "a red star and a blue circle", "a red star and a blue circle"]
    write_items(
        tmp_path / "data",
        [item(k, source=of_split(k), turns=[["What?", answers[k % 3]]]) for k in range(24)],
        {"data": "synthetic"},
    )
    for name, more in (("one", []), ("four", ["--accumulate", 4]), ("again", ["--checkpoint"])):
        tuned(small_vlm, tmp_path / "data", tmp_path / name, *more)
    one, four, again = (
        load_yaml(tmp_path / name / "tune.yaml")["losses"] for name in ("one", "four", "again")
    )
    assert np.allclose(one, four, rtol=2e-3) and np.allclose(one, again, rtol=2e-3) and one[-1] < one[0]


def test_batches_are_of_like_length_and_every_lesson_is_in_one():
    lengths = torch.randint(1, 1000, (803,), generator=torch.Generator().manual_seed(0))
    found = tune.batches(lengths, 8, torch.Generator().manual_seed(0))
    assert len(found) == 100 and {len(x) for x in found} == {8} and len(set(torch.cat(found).tolist())) == 800
    assert np.mean([float(lengths[x].max() - lengths[x].min()) for x in found]) < 100
    assert [int(lengths[x].max()) for x in found] != sorted(int(lengths[x].max()) for x in found)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_every_family_learns_what_it_is_taught_and_its_adapter_is_a_model(
    family, lessons, tmp_path, monkeypatch, request
):
    monkeypatch.setattr(tune, "bf16_units", lambda: False)
    found = tuned(family, lessons, tmp_path / "out", "--vision", "lora", "--epochs", 6)
    assert found["answer_loss"] < found["answer_loss_base"] and found["losses"][-1] < 0.6 * found["losses"][0]
    model, processor = load_vlm(find_model(str(tmp_path / "out/adapter")))
    from peft import PeftModel

    peft = PeftModel.from_pretrained(
        load_vlm(find_model(str(family)))[0], str(tmp_path / "out/adapter")
    ).eval()
    reading = reading_of(family)
    inputs, labels, _ = tune.collated([reading(Items(lessons)[0], 0, 1)], 0, reading.as_video)
    assert torch.allclose(model(**inputs).logits, peft(**inputs).logits, atol=1e-3)
    base = load_vlm(find_model(str(family)))[0]
    assert not torch.allclose(model(**inputs).logits, base(**inputs).logits, atol=1e-1)


def test_a_killed_run_ends_with_the_very_weights_of_one_that_was_not(
    small_vlm, lessons, tmp_path, monkeypatch
):
    tuned(small_vlm, lessons, tmp_path / "whole")
    write = common._atomically
    saved = []
    steps = []
    forward = tune.Taught.forward

    def die(path, content):
        write(path, content)
        saved.append(path.name == "training.pt")
        if sum(saved) == 7:  # in the second of two epochs of five steps
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "SAVE_SECONDS", -1)
    monkeypatch.setattr(training, "_atomically", die)
    with pytest.raises(KeyboardInterrupt):
        tuned(small_vlm, lessons, tmp_path / "killed")
    assert (tmp_path / "killed/training.pt").is_file() and not (tmp_path / "killed/adapter").exists()
    monkeypatch.setattr(training, "_atomically", write)
    monkeypatch.setattr(
        tune.Taught, "forward", lambda self, *given: (steps.append(self.training), forward(self, *given))[1]
    )
    tuned(small_vlm, lessons, tmp_path / "killed")
    assert sum(steps) == 10 - 7  # it went on in the middle of an epoch
    a, b = (
        (tmp_path / name / "adapter/adapter_model.safetensors").read_bytes() for name in ("whole", "killed")
    )
    assert a == b and not (tmp_path / "killed/training.pt").exists()


def test_nothing_but_what_is_asked_for_changes(small_vlm):
    def changing(**how):
        model, _ = load_vlm(find_model(str(small_vlm)))
        how = {"method": "lora", "vision": "frozen", "rank": 2, "checkpoint": False} | how
        return set(training.learned(tune.teachable(model, how, ("cpu", None))[0]))

    lora, seen, both = changing(), changing(vision="lora"), changing(vision="full")
    assert lora and all("lora_" in n and ".language_model." in n for n in lora)
    assert lora < seen and all(".visual." in n and "patch_embed" not in n for n in seen - lora)
    assert any("merger" in n for n in seen)
    assert lora < both and all(".visual." in n and "lora" not in n for n in both - lora)
    full = changing(method="full")
    assert any("embed_tokens" in n for n in full) and not any("lora" in n or ".visual." in n for n in full)
    assert all(".visual." in n for n in changing(method="full", vision="full") - full)


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
def test_in_four_bits_are_the_language_models_matrices_and_nothing_else(family):
    """By transformers' own rule; the products themselves need a GPU."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    for name, module in load_vlm(find_model(str(family)))[0].named_modules():
        if isinstance(module, torch.nn.Linear):
            assert should_convert_module(name, tune.WHOLE) == name.startswith(
                "model.language_model.layers."
            ), name


def test_four_bits_are_asked_for_as_the_paper_has_them(monkeypatch):
    monkeypatch.setattr(tune, "load_vlm", lambda entry, device, dtype, quantised: (quantised.to_dict(), None))
    how = {"how": {"method": "qlora"}, "entry": {}, "device": "cuda", "dtype": torch.float16}
    asked = tune.load_to_tune(SimpleNamespace(**how))
    assert asked["bnb_4bit_quant_type"] == "nf4" and asked["bnb_4bit_use_double_quant"]
    assert asked["bnb_4bit_compute_dtype"] == "float16" and asked["llm_int8_skip_modules"] == tune.WHOLE


def test_merged_and_fully_trained_folders_are_models_like_any_other(
    small_vlm, lessons, tmp_path, monkeypatch
):
    monkeypatch.setattr(tune, "bf16_units", lambda: False)

    def loaded(folder):
        return load_vlm(find_model(str(folder)))[0]

    tuned(small_vlm, lessons, tmp_path / "lora", "--merge")
    entry = find_model(str(tmp_path / "lora/model"))
    assert entry["name"] == "lora" and entry["weights"] == "unstated"
    assert entry["clip"] == find_model(str(small_vlm))["clip"]
    inputs, *_ = tune.collated([reading_of(small_vlm)(Items(lessons)[0], 0, 1)], 0, True)
    merged, adapted = (loaded(tmp_path / "lora" / name)(**inputs).logits for name in ("model", "adapter"))
    assert torch.allclose(merged, adapted, atol=1e-4)
    before = loaded(small_vlm).state_dict()
    for name, flags in (("full", "--method full --vision full"), ("both", "--vision full")):
        found = tuned(small_vlm, lessons, tmp_path / name, *flags.split())
        assert found["out"].endswith("model") and not (tmp_path / name / "adapter").exists()
        assert found["answer_loss"] < found["answer_loss_base"]
        after = loaded(tmp_path / name / "model").state_dict()
        for part in ("visual.patch_embed.proj", "language_model.layers.0.mlp.up_proj"):
            assert not torch.equal(before[f"model.{part}.weight"], after[f"model.{part}.weight"])


def test_the_record_says_what_was_won_and_lost_and_nothing_where_nothing_is_learned(
    small_vlm, lessons, tmp_path
):
    write_items(tmp_path / "other", [item(k, source=of_split(k)) for k in range(16)], {"data": "synthetic"})
    tuned(small_vlm, lessons, tmp_path / "out", "--keep", tmp_path / "other")
    found = load_yaml(tmp_path / "out/tune.yaml", "tune")
    assert found["exact_commonest"] == 0.5
    assert found["criteria"]["exact"]["floors"].keys() == {"base", "commonest"}
    assert found["forgetting"] == pytest.approx(found["keep_exact_base"] - found["keep_exact"], abs=1e-6)
    assert found["forgetting_low"] <= found["forgetting"] <= found["forgetting_high"]
    found = tuned(small_vlm, lessons, tmp_path / "out", "--lr", 1e-12)
    assert found["exact_gain"] == 0 and abs(found["answer_loss"] - found["answer_loss_base"]) < 1e-3


def test_in_half_precision_the_loss_is_scaled(small_vlm, lessons, tmp_path, monkeypatch):
    """The T4's way, on a CPU: fp16 products, weights of LoRA in fp32."""
    scales, update, cpu = [], torch.amp.GradScaler.update, torch.device("cpu")

    def watched(self, *given):
        scales.append(self.get_scale() if self.is_enabled() else 0)
        update(self, *given)

    monkeypatch.setattr(tune, "choose_device", lambda: (cpu, torch.float16, "as a T4"))
    monkeypatch.setattr(tune, "bf16_units", lambda: False)
    monkeypatch.setattr(torch.amp.GradScaler, "update", watched)
    found = tuned(small_vlm, lessons, tmp_path / "out")
    assert min(scales) > 0 and scales[0] > 1 and found["losses"][-1] < found["losses"][0]
    how = {"method": "lora", "vision": "frozen", "rank": 2, "checkpoint": False}
    w = {"how": how, "entry": find_model(str(small_vlm)), "device": cpu, "dtype": torch.float16}
    model = tune.load_to_tune(SimpleNamespace(**w))
    taught, _ = tune.teachable(model, how, ("cpu", torch.float16))
    assert {p.dtype for p in training.learned(taught).values()} == {torch.float32}
    assert next(model.model.visual.parameters()).dtype == torch.float16


@pytest.mark.slow
def test_two_ranks_make_the_adapter_that_one_makes(small_vlm, lessons, tmp_path):
    from safetensors.torch import load_file

    how = f"{common.HERE}/tune.py train --model {small_vlm} --data {lessons} --epochs 2 --batch 4 --lr 1e-3 --rank 2 --accumulate 2"
    for n in (1, 2):
        command = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node={n} {how} --out {tmp_path}/{n}"
        done = subprocess.run(command.split(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / str(n) / "adapter/adapter_model.safetensors") for n in (1, 2))
    assert all((one[k] - two[k]).abs().max() < 1e-3 for k in one)
    assert max(x.abs().max() for k, x in one.items() if "lora_B" in k) > 1e-3
    a, b = (load_yaml(tmp_path / str(n) / "tune.yaml") for n in (1, 2))
    assert a["exact_base"] == b["exact_base"]
    assert a["answer_loss"] == pytest.approx(b["answer_loss"], rel=1e-2)


# ---------------------------------------------------------------- adapters as models


def test_an_adapter_answers_in_explain_and_its_features_are_its_own(tmp_path, shapes_folder):
    from PIL import Image

    import explain
    import extract

    write_items(
        tmp_path / "data",
        [item(k, source=of_split(k), turns=[["How are you?", "a red star"]]) for k in range(40)],
        {"data": "synthetic"},
    )
    tuned("tiny", tmp_path / "data", tmp_path / "out", "--epochs", 8)
    Image.fromarray(picture(3)[0].numpy()).save(tmp_path / "a.png")
    features = []
    for model, well in (("tiny", False), (str(tmp_path / "out/adapter"), True)):
        found = explain.main(
            [
                "ask",
                "--model",
                model,
                "--image",
                str(tmp_path / "a.png"),
                "--question",
                "How are you?",
                "--size",
                "48",
            ]
        )
        assert (found["answer"] == "a red star") == well
        extract.main(
            f"--model {model} --data {shapes_folder} --points language.3 --out {tmp_path}/features-{well}".split()
        )
        features.append(common.load_features(tmp_path / f"features-{well}")[1]("language.3"))
    assert found["model"] == "out"
    assert found["weights"] == load_yaml(tmp_path / "features-True/index.yaml")["weights"] == "small"
    assert features[0].shape == features[1].shape and not torch.allclose(*features, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "internvl"], indirect=True)
def test_a_tuned_model_is_asked_about_pictures_as_it_was_shown_them(family, tmp_path, monkeypatch):
    """Smaller and larger than the cap, of several shapes: the processor's pixels in training, in explain.py and in extract.py are the same."""
    from PIL import Image

    import explain

    made = []
    given = []
    put_to = models.put_to
    asking = explain.asking
    for k in range(48):
        h, w = ((40, 56), (90, 50), (32, 32))[k % 3]
        truth = {
            "boxes": torch.tensor([[4.0, 4.0, 20.0, 20.0]]),
            "labels": ["star"],
            "names": ["red star"],
            "text": "a red star",
        }
        made.append(item(k, picture(k, h, w), source=of_split(k, 3), height=h, width=w, **truth))
    write_items(tmp_path / "data", made, {"data": "synthetic", "name": "made-up"})
    tuned(family, tmp_path / "data", tmp_path / "out", "--epochs", 1, "--merge", "--max-pixels", 48 * 48)
    pixels = [reading_of(family)(i, 0, 1)[1]["pixel_values"] for i in made]
    monkeypatch.setattr(explain, "put_to", lambda *args: (given.append(put_to(*args)), given[-1])[1])
    monkeypatch.setattr(explain, "asking", lambda *args: (given.append(asking(*args)), given[-1])[1])
    monkeypatch.setattr(explain, "MOST", 4)
    monkeypatch.setattr(explain, "ANSWER_TOKENS", 4)

    def ask(model, *numbers, flags=()):
        paths = [str(tmp_path / f"{k}.png") for k in numbers]
        for path, k in zip(paths, numbers, strict=True):
            Image.fromarray(made[k]["frames"][0].numpy()).save(path)
        explain.main(
            [
                "ask",
                "--model",
                str(tmp_path / "out" / model),
                "--image",
                *paths,
                "--question",
                "Where is it?",
                *flags,
            ]
        )
        return given.pop()["pixel_values"]

    assert all(
        torch.equal(ask(model, k), pixels[k]) for model, k in (("adapter", 0), ("adapter", 1), ("model", 2))
    )
    assert not torch.equal(ask("model", 0, flags=("--size", "64")), pixels[0])
    if reading_of(family).as_video:
        assert torch.equal(ask("adapter", 0, 1), torch.cat(pixels[:2]))
        explain.main(
            f"ask --model {tmp_path}/out/adapter --data {tmp_path}/data --out {tmp_path}/answers.pt".split()
        )
        found = [x for g in given for x in g["pixel_values"].split(g["image_grid_thw"].prod(1).tolist())]
        assert len({tuple(row) for g in given for row in g["image_grid_thw"].tolist()}) == 3
        assert all(any(torch.equal(x, p) for p in pixels) for x in found)
        meta = common.load_pt(tmp_path / "answers.pt", common.ANSWERS)["meta"]
        understood = explain.understood(["[4, 4, 20, 20]"], "box", meta, made[:1])[0].tolist()
        # of 40 x 56 pixels 32 x 64 are shown
        assert understood == pytest.approx([4 / 64, 4 / 32, 20 / 64, 20 / 32])


def test_an_adapter_remembers_the_size_of_clips_and_one_of_another_model_or_kind_is_refused(
    small_vlm, tmp_path, refused
):
    made = [item(k, picture(k, 32, 32, 4), source=of_split(k)) for k in range(16)]
    write_items(tmp_path / "data", made, {"data": "synthetic"})
    tuned(small_vlm, tmp_path / "data", tmp_path / "out", "--epochs", 1, "--merge")
    folder, copy = tmp_path / "out/adapter", tmp_path / "x"
    assert find_model(str(small_vlm))["clip"] != 32
    assert find_model(str(folder))["clip"] == find_model(str(tmp_path / "out/model"))["clip"] == 32
    config = json.loads((folder / "adapter_config.json").read_text())

    def changed(**more):
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        (copy / "adapter_config.json").write_text(json.dumps(config | more))
        return find_model(str(copy))

    base, tiny = "base_model_name_or_path", models.MODELS["tiny"]["path"]
    refused(lambda: changed(use_dora=True), "plain LoRA")
    refused(lambda: changed(**{base: "nobody/nothing"}), "unknown model 'nobody/nothing'")
    refused(lambda: load_vlm(changed(**{base: tiny, "r": 4})), "cannot load", "the adapter")
    assert changed(**{base: "Qwen/Qwen2.5-VL-7B-Instruct"})["path"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert changed(use_rslora=True)["scaling"] == pytest.approx(8 / 2)
    refused(lambda: tuned(folder, tmp_path / "data", tmp_path / "again"), "is an adapter; merge it first")


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_refused_before_a_model_is_loaded(
    small_vlm, small_cogvlm2, lessons, tmp_path, refused, monkeypatch
):
    monkeypatch.setattr(tune, "load_vlm", None)

    def check(words, *flags, model=small_vlm, made=None):
        if made:
            write_items(tmp_path / "d", made, {"data": "synthetic"})
        refused(lambda: tuned(model, tmp_path / "d" if made else lessons, tmp_path / "out", *flags), words)

    check("is a cogvlm2", model=small_cogvlm2)
    check("--method qlora needs a GPU", "--preset", "t4")
    check("--vision lora goes with --method lora", "--method", "full", "--vision", "lora")
    check("a multiple of 3", "--accumulate", 3)
    check("--rank 0", "--rank", 0)
    check("no question of the train split fits", "--max-tokens", 5)
    check("'i0' has no turns", made=[{k: v for k, v in item(k).items() if k != "turns"} for k in range(9)])
    check(
        "more pictures or videos than the 1",
        made=[item(k, turns=[["<image> <image>?", "x"]]) for k in range(20)],
    )
    check("val has 0 of 20 items", made=[item(k, source=f"train:{k}") for k in range(20)])
