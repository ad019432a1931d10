"""The training loop resumes exactly and selects on val; soft tokens have their place; LoRA starts at zero."""

from types import SimpleNamespace

import pytest
import torch
from helpers import random_language_model
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F

import answering
import training
from answering import answer_loss, answered, word_batch, word_prompt
from models import find_model, load_language

PARTS = {"train": torch.arange(50), "val": torch.arange(50, 70)}
HOW = {"lr": 3e-2, "batch": 16, "warm": 1, "epochs": 4}


def planted(noise=False):
    """x [70, 6], and a rotation of x or noise."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 70, 6, generator=g)
    return x, y if noise else x @ torch.linalg.qr(torch.randn(6, 6, generator=g))[0]


def fitted(data, seed=0, loss=None, noise=0.01, **more):
    """`training.train` of a linear map, with noise on the target that is drawn from the loop's generator."""
    x, y = data
    drive = {k: more.pop(k) for k in ("state", "ids", "arrange") if k in more}

    def loss_of(module, items, g, part, warm):
        drawn = noise * torch.randn(len(items), 6, generator=g) if noise else torch.zeros(len(items), 6)
        return (module(x[items[part]]) - y[items[part]] - drawn[part]).square().mean()

    return training.train(lambda: torch.nn.Linear(6, 6), loss or loss_of, PARTS, seed, HOW | more, **drive)


def test_a_planted_map_is_learned_and_noise_is_not():
    found, null = (fitted(planted(noise), epochs=80)[1] for noise in (False, True))
    assert found["val"] < 0.02 and null["val"] > 0.9 and found["steps"] == len(found["losses"]) == 81 * 3


def test_a_killed_training_continues_exactly_and_a_state_of_another_training_is_refused(
    tmp_path, monkeypatch, refused
):
    (whole, record), write = fitted(planted()), training._atomically

    def die(path, content):
        write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_atomically", die)
    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):  # after the first epoch
        fitted(planted(), state=state)
    monkeypatch.setattr(training, "_atomically", write)
    other = {"batch": {"batch": 8}, "lr": {"lr": 1e-2}, "seed": {"seed": 1}, "data": {"ids": list("ab" * 35)}}
    for key, new in other.items():
        refused(lambda new=new: fitted(planted(), state=state, **new), "state.pt", key)
    resumed, again = fitted(planted(), state=state)
    assert again["val"] == record["val"] and again["losses"] == record["losses"]
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)


def test_the_rate_rises_then_falls_to_zero_with_constant_betas_and_the_best_epoch_on_val_is_kept(monkeypatch):
    """The map moves from 0 towards 1; val is best on the way."""
    calls, betas, step = [], set(), torch.optim.AdamW.step

    def loss_of(module, items, g, part, warm):
        calls.append((len(items), warm, module.training))
        return (module.bias.mean() - (0.5 if items[0] >= 50 else 1.0)).square()

    def seen(optimizer, *given, **more):
        betas.add(optimizer.param_groups[0]["betas"])
        return step(optimizer, *given, **more)

    monkeypatch.setattr(torch.optim.AdamW, "step", seen)
    arrange = lambda g: list(PARTS["train"].split(10))  # noqa: E731 (one line)
    model, found = fitted(planted(), loss=loss_of, arrange=arrange, epochs=30, batch=10)
    with torch.no_grad():
        assert loss_of(model, PARTS["val"], None, None, False).item() == pytest.approx(found["val"])
    assert found["val"] < 1e-2 and found["epoch"] < 31 and len(found["losses"]) == 31 * 5
    assert calls[:5] == [(10, True, True)] * 5 and calls[5] == (10, False, True)
    assert torch.equal(found["weights"]["bias"], model.bias) and len(betas) == 1
    rates = [training.rate_at(k, 100) for k in range(100)]
    assert rates[4] == 1 == max(rates) and rates[0] == 0.2 and rates[52] == pytest.approx(0.51, abs=0.02)
    assert rates[99] < 1e-3


def test_a_batch_in_parts_takes_the_same_steps_and_an_infinite_loss_fails():
    one, four = (fitted(planted(), noise=0, accumulate=k)[1]["losses"] for k in (1, 4))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(four), atol=1e-5, rtol=1e-4)
    x, y = planted()
    y[7] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step \d, epoch 0, items .*item-7\b"):
        fitted((x, y), ids=[f"item-{k}" for k in range(70)])
    x, y = planted()
    y[60] = float("nan")  # an item of val
    with pytest.raises(FloatingPointError, match=r"loss on val is nan at step 6, epoch 2, items .*60"):
        fitted((x, y))


def test_settings_that_train_nothing_are_refused_and_a_flag_overrides_its_default(refused):
    defaults = {"seeds": 5, "warm": 2, "epochs": 60, "batch": 32, "lr": 1e-3}
    for flag, value in (("seeds", 0), ("warm", -1), ("lr", 3.0)):
        args = SimpleNamespace(**{flag: value})
        refused(lambda args=args: training.training_settings(args, defaults, 40), f"--{flag} {value}", "give")
    found = training.training_settings(SimpleNamespace(epochs=3, lr=None), defaults, 20)
    assert found == defaults | {"epochs": 3, "batch": 20}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(model, tokenizer): an untrained Llama whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("models") / "small-words"
    random_language_model(folder, 0)
    model, tokenizer = load_language(find_model(str(folder)))
    for p in model.parameters():  # larger weights, so that the soft tokens matter
        torch.nn.init.normal_(p, mean=float(p.ndim == 1), std=0.5 * (p.ndim > 1))
    tokenizer.chat_template = "<u>{{ messages[0].content }}<end>"
    return model, tokenizer


def test_a_soft_token_stands_where_the_text_of_its_facts_would(small):
    model, tokenizer = small
    (before, after), (_, with_facts) = (word_prompt(tokenizer, "Count.", c) for c in ("", "red: 2"))
    assert tokenizer.decode(after) == "\nCount.<end>" and tokenizer.decode(before) == "<u>"
    assert tokenizer.decode(with_facts) == "red: 2\nCount.<end>"
    soft = torch.randn(1, 3, 16)
    x = word_batch(model, tokenizer, [(before, after)], soft)["inputs_embeds"]
    assert torch.equal(x[0, len(before) : len(before) + 3], soft[0])
    assert torch.equal(x[0, -len(after) :], model.get_input_embeddings()(torch.tensor(after)))


def test_only_the_words_of_an_answer_and_its_end_are_scored(small):
    model, tokenizer = small
    prompts = [word_prompt(tokenizer, q) for q in ("Count.", "Is the red circle here?")]
    answers, soft = ["2", "frames 0 to 3"], torch.randn(2, 4, 16)
    batch = word_batch(model, tokenizer, prompts, soft, answers)
    for row, answer in zip(batch["labels"], answers, strict=True):
        assert tokenizer.decode(row[row != -100]) == answer + "<end>"
    with torch.no_grad():
        found = answer_loss(model, batch)
        for k in range(2):  # alone, unpadded, over all positions
            alone = word_batch(model, tokenizer, prompts[k : k + 1], soft[k : k + 1], answers[k : k + 1])
            logits = model(inputs_embeds=alone["inputs_embeds"]).logits[0, :-1]
            expected = F.cross_entropy(logits, alone["labels"][0, 1:])
            torch.testing.assert_close(found[k], expected, atol=1e-5, rtol=1e-4)
    together = answered(*small, prompts, soft, most=6)  # an answer does not depend on the other prompts
    assert together == [answered(*small, [p], soft[k : k + 1], most=6)[0] for k, p in enumerate(prompts)]


def test_soft_tokens_and_lora_are_saved_load_again_and_fit_one_language_model(small, tmp_path, refused):
    tuned = get_peft_model(small[0], LoraConfig(r=2, target_modules=["q_proj"]))
    for p in training.learned(tuned).values():
        torch.nn.init.normal_(p)
    soft, x = answering.Soft(5, 16, k=3, inner=7, std=0.1), torch.randn(2, 5)
    tuned.save_pretrained(tmp_path)
    answering.save_soft(tmp_path / "soft.safetensors", soft, language="small-words")
    with torch.no_grad():
        expected = tuned(inputs_embeds=soft(x)).logits
        training.reset_lora(tuned)
        unchanged = tuned(inputs_embeds=soft(x)).logits
        bare = tuned.unload()
        assert torch.equal(bare(inputs_embeds=soft(x)).logits, unchanged)
        refused(lambda: answering.load_words(tmp_path, bare, "tinyllama"), "small-words (width 16)")
        again, soft_again = answering.load_words(tmp_path, bare, "small-words")
        assert soft(x).shape == (2, 3, 16) and not torch.equal(unchanged, expected)
        assert torch.equal(again(inputs_embeds=soft_again(x)).logits, expected)
