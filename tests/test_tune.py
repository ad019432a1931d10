"""tune.py: training on answers alone, adapters as models, the memory plan, language models on embeddings."""

import re

import numpy as np
import published
import pytest
import torch
from helpers import generator, holds, planted_tracks, random_language_model
from test_families import ROWS, folder_of
from torchvision.io import encode_png
from transformers.quantizers.quantizers_utils import should_convert_module

import augment
import claims
import data
import models
import synthetic
import track
import training
import tune
from common import load_items, load_yaml, write_items
from models import MODELS, find_model, load_vlm, processor_of, qwen_inputs

BOXES = {"small_vlm": "[8, 16, 24, 32]", "small_internvl": "[167, 333, 500, 667]"}
BOXES["llava_next"] = "[0.167, 0.333, 0.500, 0.667]"
LORA = {"method": "lora", "vision": "frozen", "rank": 2, "checkpoint": False}
ONE_OF_EACH = {
    MODELS[name]["type"]: name for name in published.ENTRIES if MODELS[name]["type"] in tune.TUNABLE
}
LLAMA2_7B = {"layers": 32, "d": 4096, "q": 4096, "kv": 4096, "inter": 11008, "vocab": 32000, "heads": 32}
LLAMA2_7B |= {"linear": 32 * (4 * 4096**2 + 3 * 4096 * 11008), "rest": 2 * 32000 * 4096}
LLAMA2_7B["tower"] = {"layers": 0, "d": 0, "inter": 0, "patch": 0, "merge": 1, "weights": 0}
# MB of LoRA without checkpoints; a Llama's storages at the peak of a step are within a fifth of it
PLANNED = {"weights": 12952, "embeddings_tower": 524, "trained": 640, "stored": 6500, "layer": 280}
PLANNED |= {"vision": 0, "logits": 19, "weight_copy": 0, "context": 500}


def encoder_of(folder):
    entry = find_model(str(folder))
    return tune.ExampleEncoder(processor_of(entry), entry["type"], (48 * 48, 48 * 48))


def logits_of(folder, model=None):
    encoder = encoder_of(folder)
    inputs, *_ = tune.collate([encoder(item(0), 0, 1)], 0, encoder.as_video)
    return (model or load_vlm(find_model(str(folder)))[0])(**inputs).logits


def image(seed, h=48, w=48, t=1):
    return torch.randint(0, 256, (t, h, w, 3), generator=generator(seed), dtype=torch.uint8)


def item(k, frames=None, **more):
    """An image, in train twice as often as in val and test."""
    turns, source = [["Where is it?", "left"], ["And now?", "a red star"]], ("train", "train", "val", "test")
    row = {"id": f"i{k}", "source": f"{source[k % 4]}:{k}", "width": 48, "height": 48, "turns": turns}
    return row | {"frames": image(k) if frames is None else frames} | more


def two_images(turns, *frames):
    files = [encode_png(x[0].permute(2, 0, 1)) for x in frames]
    return {"id": "a", "source": "a", "images": files, "chat": True, "turns": turns}


def written(folder, *items):
    write_items(folder, list(items), {"data": "synthetic", "name": "made-up"})
    return folder


def tuned(model, folder, out, flags=""):
    line = f"train --model {model} --data {folder} --out {out} --epochs 2 --batch 4 --lr 1e-2 --rank 4"
    return tune.main([*line.split(), *flags.split()])


@pytest.mark.parametrize("family", ROWS)
def test_every_family_is_encoded_as_at_inference_and_only_answers_carry_loss(request, family):
    encoder, made = encoder_of(folder_of(request, family)), item(0, chat=True, system="Be brief.")
    row, _ = encoder(made, 0, 2)
    tokens = list(zip(row["input_ids"], row["labels"], row["turn"], strict=True))
    answers = [encoder.tokenizer.decode([x for x, _, t in tokens if t == k]).strip() for k in (1, 2)]
    assert answers == ["left<|im_end|>", "a red star<|im_end|>"]
    assert all(label == (x if t else -100) for x, label, t in tokens)
    text = encoder.processor.apply_chat_template(encoder.chat(made, 0, 2)[0], tokenize=False)
    whole, n = encoder.processed(text, [image(0)])["input_ids"][0].tolist(), len(tokens)
    assert row["input_ids"] == whole[:n] and not encoder.tokenizer.decode(whole[n:]).strip()
    assert "Be brief." in text
    row, beside = encoder(item(0), 0, 1)
    prompt = encoder.processed(models.chat(encoder.processor, "Where is it?"), [image(0)])
    assert row["input_ids"][: row["turn"].index(1)] == prompt["input_ids"][0].tolist()
    assert beside and all(torch.equal(x, torch.as_tensor(prompt[name])) for name, x in beside.items())
    for made in (item(0), item(1, chat=True), item(2, image(2, 64, 40)), item(3, image(3, t=4))):
        for example in encoder.examples(made, 0):  # the lengths are known before anything is encoded
            labels = encoder(made, example.first, example.last)[0]["labels"]
            assert (example.tokens, example.scored) == (len(labels), sum(x != -100 for x in labels))


def test_an_answer_that_is_not_trained_stands_in_the_prompt_and_carries_no_loss(small_vlm, tmp_path):
    encoder, made = encoder_of(small_vlm), item(0, chat=True, trained=[False, True])
    whole, row = (encoder(x, 0, 2)[0] for x in (item(0, chat=True), made))
    assert row["input_ids"] == whole["input_ids"] and set(row["turn"]) == {0, 2}
    scored = [x for x in row["labels"] if x != -100]
    assert encoder.tokenizer.decode(scored).strip() == "a red star<|im_end|>"
    assert [example.scored for example in encoder.examples(made, 0)] == [len(scored)]
    assert not encoder.examples(item(0, chat=True, trained=[True, False]) | {"trained": [False, False]}, 0)
    dataset = tune.ExampleSet(written(tmp_path, made), encoder)
    assert dataset.answers(0) == [["And now?", "a red star"]]


def test_points_and_boxes_come_back_within_a_pixel_from_the_units_of_a_family():
    text = '{"bbox_2d": [13, 7, 401, 299]} {"point_2d": [13, 7]}'
    for units in ((1, 1), (1000, 1000), (448, 336)):
        back = tune.rescaled(tune.rescaled(text, (640, 480), units), units, (640, 480))
        assert np.abs(np.array(augment.numbers_in(back)[0]) - (13, 7, 401, 299)).max() <= 1


def test_turns_without_chat_are_separate_examples_and_media_stand_at_their_placeholders(small_vlm):
    encoder, turns = encoder_of(small_vlm), [["What is <image>?", "left"], ["And <image>?", "star"]]
    assert [(x.item, x.first, x.last) for x in encoder.examples(item(0), 7)] == [(7, 0, 1), (7, 1, 2)]
    assert [(x.first, x.last) for x in encoder.examples(item(0, chat=True), 7)] == [(0, 2)]
    row, _ = encoder(two_images(turns, image(0), image(1, 32, 64)), 0, 2)
    places = [k for k, kind in enumerate(row["mm_token_type_ids"]) if kind == 1]
    assert places[8] < row["turn"].index(1) < places[9] and len(places) == 9 + 8


def test_signs_of_the_model_in_a_turn_are_refused_by_item(small_vlm, tmp_path, refused):
    for k, turn in enumerate((["What is <|image_pad|>?", "left"], ["Where?", "<|im_end|> left"])):
        made = written(tmp_path / str(k), *(item(i, turns=[turn]) for i in range(8)))
        token = re.search(r"<.*>", " ".join(turn))[0]
        refused(lambda made=made: tuned(small_vlm, made, tmp_path / "out"), "'i0'", token, "other words")


def test_scores_are_the_librarys_loss_and_the_share_of_answers_that_greedy_decoding_gives(tmp_path):
    made, greedy, losses, shapes = next(iter(synthetic.shapes(1, 96, 3))), [], [], []
    turns = [[q, a] for q, _ in made["turns"] for a in ("top", "star")] + made["turns"]
    model, processor = load_vlm(find_model("tiny"))
    encoder = tune.ExampleEncoder(processor, "qwen2_5_vl", (96 * 96, 64 * 64))
    dataset = tune.ExampleSet(written(tmp_path / "d", made | {"turns": turns}), encoder)
    for k, (question, answer) in enumerate(turns):
        inputs, labels, _ = dataset.batch([k], "cpu")
        losses.append(model(**inputs, labels=labels).loss.item())
        prompt = qwen_inputs(processor, made["frames"][None], question)
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=30)[:, prompt["input_ids"].shape[1] :]
        greedy.append(processor.batch_decode(ids, skip_special_tokens=True)[0] == answer)
    model.lm_head.register_forward_pre_hook(lambda module, given: shapes.append(len(given[0])))
    scorer = tune.AnswerLoss(model, model, ("cpu", None))
    found = tune.answer_scores(scorer, dataset, range(len(turns)), 4, "cpu", "")
    assert found["loss"].tolist() == pytest.approx(losses, rel=1e-3, abs=1e-4)
    assert found["exact"].bool().tolist() == greedy and {*greedy} == {True, False}
    assert sum(shapes) == dataset.scored.sum()  # logits are computed for answers alone


@pytest.mark.parametrize(("family", "box"), BOXES.items())
def test_a_box_is_in_the_familys_units_and_in_the_frame_of_its_image(request, family, box):
    def text(made, last=1):
        return encoder.tokenizer.decode(encoder(made, 0, last)[0]["input_ids"])

    encoder = encoder_of(folder_of(request, family))
    a, b = '{"bbox_2d": [16, 32, 48, 48]}', '{"bbox_2d": [16, 32, 48, 64]}'
    made = item(0, image(0, 96, 96), width=96, height=96, turns=[["Where?", b]])  # halved to 48 x 48
    assert f'{{"bbox_2d": {box}}}' in text(made) and made["turns"][0][1] == b
    if encoder.as_video:
        made = two_images([["Where, <image>?", a], ["And <image>?", b]], image(0), image(1, 96, 96))
        assert a in text(made, 2) and f'{{"bbox_2d": {box}}}' in text(made, 2)
        turns = [["Where?", '{"bbox_2d": [320, 240, 640, 480]}']]
        clip = item(0, image(0, t=4), width=640, height=480, turns=turns)  # it was squashed to 48 x 48
        assert '{"bbox_2d": [24, 24, 48, 48]}' in text(clip)


def test_a_long_example_loses_whole_turns_from_the_end_and_no_part_of_an_image(small_vlm, tmp_path):
    encoder, turns = encoder_of(small_vlm), [[f"What, the {n}th time?", "a red star"] for n in range(6)]
    made = item(0, chat=True, turns=turns)
    lengths = [encoder.examples(made | {"turns": turns[:k]}, 0)[0].tokens for k in range(1, 7)]
    for most in range(lengths[0] - 1, lengths[-1] + 1, 3):
        fitting = sum(n <= most for n in lengths)
        found = encoder.examples(made, 0, most)
        assert [x.last for x in found] == ([fitting] if fitting else [])
        assert all(len(encoder(made, 0, x.last)[0]["input_ids"]) == x.tokens <= most for x in found)
    dataset = tune.ExampleSet(written(tmp_path / "d", made, item(1)), encoder, lengths[2])
    assert dataset.dropped == {"examples": 0, "turns": 3} and len(dataset.examples) == 3


def test_batches_are_of_like_length_and_hold_every_example_once():
    lengths = torch.randint(1, 1000, (803,), generator=torch.Generator().manual_seed(0))
    found = tune.batches(lengths, 8, torch.Generator().manual_seed(0))
    assert [len(x) for x in found] == [8] * 100 and len(set(torch.cat(found).tolist())) == 800
    assert np.mean([float(lengths[x].max() - lengths[x].min()) for x in found]) < 100


def test_checkpoints_parts_and_a_scaled_loss_do_not_change_a_step(small_vlm, tmp_path, monkeypatch):
    """With answers of unequal length, the mean over a part's tokens would weigh the short ones more."""
    answers, scales, scale = ["x", *["a red star and a blue circle"] * 2], [], torch.amp.GradScaler.scale
    folder = written(tmp_path / "data", *(item(k, turns=[["What?", answers[k % 3]]]) for k in range(24)))
    one = tuned(small_vlm, folder, tmp_path / "out")["losses"]
    parts = tuned(small_vlm, folder, tmp_path / "out", "--accumulate 4 --checkpoint")["losses"]
    assert np.allclose(one, parts, rtol=2e-3) and one[-1] < one[0]
    half, logged = (torch.device("cpu"), torch.float16, "as a T4"), lambda x: scales.append(x.get_scale())
    monkeypatch.setattr(tune, "choose_device", lambda: half)
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, x: logged(self) or scale(self, x))
    found = tuned(small_vlm, folder, tmp_path / "out", "--vision full")
    assert scales[0] > 1 and found["losses"][-1] < found["losses"][0] and found["out"].endswith("model")


def test_a_training_writes_gain_forgetting_adapter_and_the_same_merged(small_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(tune, "bf16_units", lambda: False)
    answers = [("yes", "no")[k // 4 % 2] for k in range(40)]  # the brightness is the answer
    made = [(image(k) // 8 + (k // 4 % 2) * 200, [["Is it dark?", a]]) for k, a in enumerate(answers)]
    examples = written(tmp_path / "data", *(item(k, x, turns=turns) for k, (x, turns) in enumerate(made)))
    flags = f"--vision lora --epochs 6 --merge --keep {examples}"  # so that forgetting is the gain, negative
    tuned(small_vlm, examples, tmp_path / "out", flags)
    found, base = load_yaml(tmp_path / "out/tune.yaml", "tune"), find_model(str(small_vlm))
    assert found["answer_loss"] < found["answer_loss_base"] and found["losses"][-1] < 0.6 * found["losses"][0]
    assert found["exact_majority"] == 0.5 and found["exact"] > found["exact_base"]
    assert found["forgetting"] == pytest.approx(-found["exact_gain"])
    entry = find_model(str(tmp_path / "out/model"))
    assert entry["name"] == "out" and entry["weights"] == "unstated" and entry["clip"] == base["clip"]
    assert find_model(str(tmp_path / "out/adapter"))["own_shape"] == [16, base["size"] ** 2]
    merged, adapter = map(logits_of, (tmp_path / "out/model", tmp_path / "out/adapter"))
    assert torch.allclose(merged, adapter, atol=1e-4)


@pytest.mark.parametrize("family", ROWS)
def test_an_adapter_of_every_family_is_a_model_and_4_bits_are_for_language_layers(request, family, tmp_path):
    folder = folder_of(request, family)
    entry = find_model(str(folder)) | {"own_shape": []}
    model = load_vlm(entry)[0]
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    quantised = {name for name in linear if should_convert_module(name, tune.WHOLE)}  # transformers' own rule
    assert quantised == {name for name in linear if name.startswith("model.language_model.layers.")}
    scorer, peft = tune.trainable(model, LORA | {"vision": "lora"}, ("cpu", None))
    for p in training.learned(scorer).values():
        torch.nn.init.normal_(p, std=0.3)
    tune.write_adapter_folder(tmp_path / "adapter", peft, entry)
    adapter, base = logits_of(tmp_path / "adapter"), logits_of(folder)
    assert torch.allclose(adapter, logits_of(folder, model), atol=1e-3)
    assert not torch.allclose(adapter, base, atol=1e-1)


def test_only_the_selected_parts_are_trained(small_vlm):
    def changing(**how):
        model = load_vlm(find_model(str(small_vlm)))[0]
        return set(training.learned(tune.trainable(model, LORA | how, ("cpu", None))[0]))

    lora, tower, both = changing(), changing(vision="lora"), changing(vision="full")
    assert lora and all("lora_" in n and ".language_model." in n for n in lora)
    assert lora < tower and all(".visual." in n and "patch_embed" not in n for n in tower - lora)
    assert lora < both and all(".visual." in n and "lora" not in n for n in both - lora)
    full = changing(method="full")
    assert any("embed_tokens" in n for n in full) and not any("lora" in n or ".visual." in n for n in full)
    assert all(".visual." in n for n in changing(method="full", vision="full") - full)


def test_a_training_of_nothing_gains_nothing_and_has_the_size_of_its_clips(small_vlm, tmp_path, refused):
    made = written(tmp_path / "data", *(item(k, image(k, 32, 32, 4)) for k in range(16)))
    found, adapter = tuned(small_vlm, made, tmp_path / "out", "--lr 1e-12"), tmp_path / "out/adapter"
    assert found["exact_gain"] == 0 and abs(found["answer_loss"] - found["answer_loss_base"]) < 1e-3
    assert find_model(str(small_vlm))["clip"] != 32 == find_model(str(adapter))["clip"]
    refused(lambda: tuned(adapter, made, tmp_path / "again"), "is an adapter; merge it first")


def of_full_size(name, folder):
    """(shape_of a folder with nothing but the published configuration, that model on the meta device)."""
    with torch.device("meta"):
        model = published.network(published.config_of(name))
    model.config.save_pretrained(folder / name)
    entry = find_model(str(folder / name))
    return tune.shape_of(entry, tune.published_config(entry)), model


@pytest.mark.parametrize("name", ONE_OF_EACH.values())
def test_the_sizes_in_a_configuration_are_those_of_the_model_at_full_size(name, tmp_path):
    shape, model = of_full_size(name, tmp_path)
    entry, tower, layers = MODELS[name], shape["tower"], model.model.language_model.layers
    assert entry["vision"] == (tower["layers"], tower["patch"], tower["d"])
    assert entry["language"] == (shape["layers"], tower["merge"], shape["d"])
    matrices = layers[0].self_attn.q_proj, layers[0].self_attn.k_proj, layers[0].mlp.up_proj
    assert [shape[key] for key in ("q", "kv", "inter")] == [m.weight.shape[0] for m in matrices]
    linear = [m.weight.numel() for m in layers.modules() if isinstance(m, torch.nn.Linear)]
    assert shape["linear"] == sum(linear)
    total = shape["linear"] + shape["rest"] + tower["weights"]
    assert total / 1e9 == pytest.approx(entry["params"], rel=0.02)


def test_the_plan_has_published_values_and_parts_depend_on_their_arguments_alone(tmp_path):
    for thousand, gb in ((1, 6), (2, 7), (4, 9), (8, 12), (16, 19), (32, 32)):
        # LLaMA-Factory's table: LLaMA2-7B, 4 bits, rank 8, batch 1; every token is scored
        parts = tune.memory(LLAMA2_7B, "qlora", 1024 * thousand, 1024 * thousand, rank=8)
        assert sum(parts.values()) / 1e9 == pytest.approx(gb, rel=0.15)
    found = tune.memory(LLAMA2_7B, "lora", 1000, 50, checkpoint=False)
    assert {k: round(v / 1e6) for k, v in found.items()} == PLANNED
    shape, _ = of_full_size("qwen2.5-vl-7b", tmp_path)
    base = tune.memory(shape, "lora", 1000, 50, 1024)
    grows = {"stored layer": (2000, 50, 1024), "logits": (1000, 100, 1024), "vision": (1000, 50, 2048)}
    for parts, sizes in grows.items():
        found = tune.memory(shape, "lora", *sizes)
        assert " ".join(k for k in base if abs(found[k] - base[k]) > 1) == parts
    full = tune.memory(shape, "full", 1000, 50, 1024)
    assert full["trained"] == 16 * (shape["linear"] + shape["rest"]) and full["weights"] == 0
    flags = f"--max-memory 12GB --models {tmp_path}/qwen2.5-vl-7b --out {tmp_path}/plan.yaml"
    rows = {(r["method"], r["frames"]): r for r in tune.main(["plan", *flags.split()])["plan"]}
    big, lora = rows["qlora", 8], rows["lora", 8]
    assert big["t4"] and not lora["t4"] and lora["a100_40"] and not rows["full", 1]["a100_80"]
    assert big["gb"] == pytest.approx(sum(big[k] for k in PLANNED))


def test_a_training_that_cannot_fit_or_learn_does_not_start(small_vlm, tmp_path, refused, monkeypatch):
    folder, memory, out = written(tmp_path / "d", *map(item, range(24))), tune.memory, tmp_path / "out"
    larger = lambda *args, **more: memory(*args, **more) | {"large": 1e7 * args[2]}  # noqa: E731 (short)
    monkeypatch.setattr(tune, "memory_left", lambda device, most: most)
    monkeypatch.setattr(tune, "memory", larger)
    flags = "--batch 8 --epochs 1 --accumulate 2 --max-memory"
    found = tuned(small_vlm, folder, out, f"{flags} 1000GB")
    need = found["planned_gb"]
    assert need == pytest.approx(sum(found["plan"].values()))
    assert found["plan"]["large"] == pytest.approx(0.01 * 8 / 2 * found["longest"])
    monkeypatch.setattr(tune, "load_vlm", None)  # before a model is loaded
    less = f"{flags} {0.9 * need}GB"
    refused(lambda: tuned(small_vlm, folder, out, less), f"needs about {need:.2f} GB", "large")
    refused(lambda: tuned(small_vlm, folder, out, "--preset t4"), "--method qlora needs a GPU")
    refused(lambda: tuned(small_vlm, folder, out, "--max-tokens 5"), "no question of the train split fits")
    written(folder, *(item(k, turns=[["<image> <image>?", "x"]]) for k in range(24)))
    refused(lambda: tuned(small_vlm, folder, out), "more images or videos than the 1")


def embedded(items, noise=0.0):
    """[N, 512]: the truth about every object of trajectories through a fixed random map."""
    g, facts = torch.Generator().manual_seed(1), []
    for item in items:
        for true in (*item["tracks"], None):  # the absent one
            row = torch.zeros(48)
            if true:
                row[:32], row[32], row[33] = track.frames_of_track(true), 1, true["persistent"]
                row[34 + [*synthetic.DIRECTIONS, "still"].index(true["direction"])] = 1
            row[43 + item["count"]] = 1
            facts.append(row)
    x = torch.stack(facts) @ torch.randn(48, 512, generator=g) / 6
    return (x + noise * torch.randn(x.shape, generator=g)).half()


@pytest.fixture
def run(trajectories, trajectories_folder, tmp_path, monkeypatch):
    """tune.py words on planted embeddings; few lists, because an untrained model does not end its answers."""

    def words(flags="", folder=trajectories_folder, model=tmp_path / "small-words"):
        line = f"words --embeddings {tmp_path}/tracks.pt --data {folder} --language {model} --epochs 1"
        return tune.main([*line.split(), "--seeds", "2", *flags.split()])

    random_language_model(tmp_path / "small-words", 0)
    monkeypatch.setattr(tune, "LISTS", 8)
    planted_tracks(tmp_path / "tracks.pt", trajectories, embedding=embedded(trajectories))
    return words


def test_embeddings_of_noise_gain_nothing_over_the_majority(run, trajectories, tmp_path):
    planted_tracks(tmp_path / "tracks.pt", trajectories, embedding=torch.randn(embedded(trajectories).shape))
    found = run()["criteria"]["accuracy"]
    assert found["score"] <= found["baseline"] + 0.1 and found["gain_low"] <= 0


@pytest.mark.slow
def test_a_killed_run_keeps_its_seeds_and_ends_as_one_that_was_not(run, tmp_path, monkeypatch):
    whole, train, trained, killed = run(), training.train, [], tmp_path / "killed"

    def second_dies(build, loss_of, split, seed, *more):
        trained.append(seed)
        if trained == [0, 1]:
            raise KeyboardInterrupt
        return train(build, loss_of, split, seed, *more)

    monkeypatch.setattr(tune, "train", second_dies)
    with pytest.raises(KeyboardInterrupt):
        run(f"--out {killed}")
    again = run(f"--out {killed}")
    assert trained == [0, 1, 1] and again["accuracy_seeds"] == whole["accuracy_seeds"]
    assert again["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    run(f"--lr 1e-3 --out {killed}")
    assert trained == [0, 1, 1, 0, 1]  # other settings: trained again


def test_the_majority_answer_of_a_kind_is_that_of_train():
    turns = [("where", "", answer, 0, 0) for answer in ("left", "left", "right", "right", "right")]
    found = tune.by_kind(turns, [2, 3, 4], [0, 1, 2], torch.tensor([[1.0, 0.0, 1.0]]), "abc", 0)["where"]
    assert found["majority"] == "left" and found["baseline"] == 0 and found["n"] == 3
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_forgetting_is_the_accuracy_lost_on_lists(run, monkeypatch):
    calls = []

    def oracle(model, tokenizer, prompts, soft=None, **more):
        if soft is not None:
            return [""] * len(prompts)
        calls.append(len(prompts))
        lists = [claims.naming(np.random.default_rng([0, k]))[2] for k in range(len(prompts))]
        return [x * (len(calls) == 1 or bool(k % 4)) for k, x in enumerate(lists)]

    monkeypatch.setattr(tune, "answered", oracle)
    monkeypatch.setattr(tune, "LISTS", 40)
    result = run()
    assert calls == [40] * 3 and result["naming_base"] == 1 and result["naming"] == 0.75
    assert result["forgetting"] == 0.25 and result["forgetting_low"] > 0.1
    assert result["forgetting_p"] < 0.01 and result["accuracy"] == 0


@pytest.mark.slow
def test_planted_embeddings_teach_persistence_and_direction(run, tmp_path):
    data.main(["trajectories", "--n", "400", "--out", str(tmp_path / "many")])
    items = load_items(tmp_path / "many")[0]
    planted_tracks(tmp_path / "tracks.pt", items, embedding=embedded(items, noise=0.02))
    result = run("--epochs 3 --seeds 1", tmp_path / "many", "tiny-words")
    holds(result["kinds"], "persistence.accuracy > 0.95, unknown.accuracy > 0.95, absent.accuracy > 0.9")
    assert result["kinds"]["direction"]["accuracy"] > result["kinds"]["direction"]["baseline"] + 0.3
    assert result["criteria"]["accuracy"]["gain_low"] > 0.2


def test_wrong_embeddings_models_and_data_are_refused(run, trajectories, tmp_path, refused):
    refused(lambda: run(model="tiny-dinov2"), "a language model is needed")
    refused(lambda: run(folder=written(tmp_path / "other", *map(item, range(4)))), "holds no tracks")
    planted_tracks(tmp_path / "tracks.pt", trajectories[:-1])
    refused(run, f"lacks '{trajectories[-1]['id']}/")
