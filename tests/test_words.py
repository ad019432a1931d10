"""Words: what is put to a language model and what of it is learned, adapters and LoRA on disk, and what is refused."""

import re

import numpy as np
import pytest
import torch

import claims
import common
import tiny
import training
import tune
from claims import metadata_text
from common import TRACKS, load_items, load_pt, load_yaml, save_pt, write_items
from models import TINY, find_model, load_language
from synthetic import OPPOSITE, questions_of, told
from training import answer_loss, answered, load_words, word_batch, word_prompt

needs_words = pytest.mark.skipif(
    not (common.HERE / TINY / "words" / "config.json").is_file(), reason="tiny-words is not trained"
)


@pytest.fixture(scope="module")
def small():
    """(model, tokenizer): an untrained Llama of 32 numbers a token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    rng, texts = np.random.default_rng(0), []
    for _ in range(600):
        texts += ["user\n", "assistant\n", *tiny.word_lesson(rng)[1:]]
    tokenizer = tiny.learned_tokenizer(texts, 576)
    tokenizer.chat_template = tiny.CHAT
    torch.manual_seed(0)
    config = tiny.llama(tokenizer) | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**config, tie_word_embeddings=True)).eval(), tokenizer


@pytest.fixture(scope="module")
def language(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small-words"
    for part in small:
        part.save_pretrained(folder)
    return folder


def clips(n=36, seed=0):
    """What data.py says of made-up objects, two in a clip, without any frames."""
    items = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        tracks = [tiny.made_up_track(rng) for _ in range(20)]
        tracks = [tracks[0], next(t for t in tracks if t["object"] != tracks[0]["object"])]
        names = [t["object"] for t in tracks]
        absent = next(name for name in tiny.NAMES if name not in names)
        turns, asked = questions_of(tracks, [0, 1], absent, (seed, k))
        item = {
            "id": f"clip-{k}",
            "source": f"clip-{k}",
            "width": 48,
            "height": 48,
            "names": names,
            "absent": absent,
        }
        item |= {"tracks": tracks, "count": 2, "turns": turns, "asked": asked}
        items.append(item | {"text": " ".join([*map(told, tracks), "There are 2 coloured objects."])})
    return items


def embedded(items, noise=0.0):
    """(ids, embeddings [N, 512]): the truth about every object, and about the absent one that it is not there, through a fixed random map. A stand-in for a video model."""
    g = torch.Generator().manual_seed(1)
    ways = list(OPPOSITE)
    ids = []
    facts = []
    for item in items:
        of = {t["object"]: t for t in item["tracks"]}
        for name in (*item["names"], item["absent"]):
            row = torch.zeros(78)
            if track := of.get(name):
                for start, spans in ((0, track["visible"]), (32, track["present"])):
                    for a, b in spans:
                        row[start + a : start + b + 1] = 1
                row[64 + ways.index(track["direction"])], row[73], row[74] = 1, track["persistent"], 1
            row[74 + item["count"]] = 1
            ids.append(f"{item['id']}/{name}")
            facts.append(row)
    x = torch.stack(facts) @ torch.randn(78, 512, generator=g) / 6
    return ids, x + noise * torch.randn(x.shape, generator=g)


def write_tracks(path, ids, x, **changed):
    n = len(ids)
    parts = {
        "embedding": x,
        "scores": torch.zeros(n, 32),
        "attention": torch.full((n, 32), 1 / 32),
        "persistence": torch.zeros(n),
    }
    parts = {k: v.half() for k, v in (parts | changed).items()}
    save_pt(path, TRACKS, ids, {"model": "planted", "weights": "random"}, **parts)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder of data and tracks.pt with stand-in embeddings. Few questions about lists: a model that has learned nothing does not come to an end of its answers."""
    monkeypatch.setattr(tune, "NAMED", 40)
    items = clips()
    write_items(tmp_path / "data", items, {"data": "synthetic", "name": "made-up"})
    write_tracks(tmp_path / "tracks.pt", *embedded(items))
    return tmp_path


def run(world, language, *more, out="words"):
    line = f"words --embeddings {world}/tracks.pt --data {world}/data --language {language} --out {world / out} --epochs 1 --seeds 2"
    return tune.main([*line.split(), *map(str, more)])


# ---------------------------------------------------------------- facts as text, and the lessons about them


def test_every_lesson_follows_from_its_context():
    """Whatever is answered stands in the context or is computed from it by rules that are written again here."""
    rng, kinds = np.random.default_rng(5), set()
    for _ in range(4000):
        kind, context, question, answer = tiny.word_lesson(rng)
        kinds.add(kind)
        if kind == "naming":
            things = re.findall(r"(\w+) (\w+) (at \d+ \d+)", context)
            colour, shape, place = things[{"first": 0, "second": 1, "last": -1}[question.split()[-2]]]
            assert answer == {"colour": colour, "shape": shape, "is": place}[question.split()[1]]
            assert claims.named(answer, answer)
            continue
        own, _, rest = context.partition(": ")
        facts = {k: v for k, _, v in (fact.partition(" ") for fact in rest.split("; "))}
        asked = next((name for name in tiny.NAMES if name in question), None)
        if kind in ("absent", "elsewhere"):
            assert answer == f"there is no {asked}"
            assert asked != own if kind == "elsewhere" else facts["frames"] == "none"
            continue
        assert asked in (own, None) or not context
        numbers = [
            set(claims.frames_said("frames " + facts[k].replace(", ", " and ")))
            if facts.get(k, "none") not in ("none", "never")
            else set()
            for k in ("frames", "hidden")
        ]
        likely = float(facts.get("persistence", 0)) >= 0.5
        expected = {
            "persistence": "persistent" if likely else "transient",
            "direction": facts.get("direction"),
            "backwards": OPPOSITE.get(facts.get("direction")),
            "count": facts.get("count"),
            "frames": numbers[0],
            "hidden": numbers[1] or "it is never hidden",
            "uncovered": numbers[0] | numbers[1],
            "lacking": "the clip does not show that",
        }
        if kind != "describe":
            assert answer == expected[kind] or claims.frames_said(answer) == expected[kind]
        else:
            assert ("transient" in answer, "persistent" in answer) == (
                "persistence" in facts and not likely,
                "persistence" in facts and likely,
            )
            assert ("hidden" in answer) == ("hidden" in facts) and answer.startswith(f"The {own} ")
    assert kinds == {*tiny.ASKED, "absent", "elsewhere", "lacking"} - {"unknown"}


FACTS = "red circle: persistence 0.97; frames 0 to 9, 14 to 31; direction right; hidden 10 to 13; count 2"


def test_facts_as_text_go_through_the_tokenizer_and_back_and_frames_are_tokens(small):
    assert metadata_text("red circle", 0.97, [[0, 9], [14, 31]], "right", [[10, 13]], 2) == FACTS
    assert metadata_text("red circle", visible=[[7, 7]], hidden=[]) == "red circle: frames 7; hidden never"
    assert (
        metadata_text("red circle", visible=[], persistence=0.0)
        == "red circle: persistence 0.01; frames none"
    )
    for text in (FACTS, "Ünïcode, \n and words never seen: xylophone 12345"):
        assert small[1].decode(small[1](text).input_ids) == text
    assert all(len(small[1](f" {t}").input_ids) == 1 for t in range(32))


def test_a_soft_token_stands_where_the_text_of_its_facts_would(small):
    model, tokenizer = small
    (before, after), (same, told_after) = (
        word_prompt(tokenizer, "Count them."),
        word_prompt(tokenizer, "Count them.", "red circle: count 2"),
    )
    assert before == same and tokenizer.decode(before) == "<|im_start|>user\n"
    assert tokenizer.decode(after) == "\nCount them.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(told_after) == "red circle: count 2" + tokenizer.decode(after)
    soft = torch.randn(1, 3, 32)
    x = word_batch(model, tokenizer, [(before, after)], soft)["inputs_embeds"]
    assert torch.equal(x[0, len(before) : len(before) + 3], soft[0])
    assert torch.equal(x[0, -len(after) :], model.get_input_embeddings()(torch.tensor(after)))
    assert word_batch(model, tokenizer, [(before, after)])["inputs_embeds"].shape[1] == len(before) + len(
        after
    )


def test_a_model_without_a_chat_template_gets_plain_lines_and_one_beginning(small):
    tokenizer = tiny.learned_tokenizer(["Count them."])
    before, after = word_prompt(tokenizer, "Count them.", "facts")
    assert before == [] and tokenizer.decode(after) == "facts\nCount them.\nAnswer: "
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    tokenizer.bos_token = "<|vision_start|>"
    assert word_prompt(tokenizer, "Count them.")[0] == [tokenizer.bos_token_id]


# ---------------------------------------------------------------- the loss and the answers


def test_only_the_words_of_an_answer_and_its_end_are_scored(small):
    model, tokenizer = small
    prompts = [
        word_prompt(tokenizer, q) for q in ("Count them.", "Is the red circle persistent or transient?")
    ]
    answers = ["2", "frames 0 to 3 and 9"]
    soft = torch.randn(2, 4, 32)
    batch = word_batch(model, tokenizer, prompts, soft, answers)
    for row, answer in zip(batch["labels"], answers, strict=True):
        assert tokenizer.decode(row[row != -100]) == answer + "<|im_end|>"
    with torch.no_grad():
        found = answer_loss(model, batch)
        for k in range(2):  # alone, unpadded, over all positions
            own = word_batch(model, tokenizer, prompts[k : k + 1], soft[k : k + 1], answers[k : k + 1])
            logits = model(inputs_embeds=own["inputs_embeds"]).logits[0, :-1]
            assert found[k].item() == pytest.approx(
                torch.nn.functional.cross_entropy(logits, own["labels"][0, 1:]).item(), rel=1e-4
            )


def test_answers_do_not_depend_on_who_is_asked_beside_whom(small):
    questions, soft = ("Count them.", "Is the red circle persistent or transient?"), torch.randn(4, 4, 32)
    prompts = [word_prompt(small[1], q, c) for q in questions for c in ("", "red circle: count 2")]
    together = answered(*small, prompts, soft, most=6)
    assert together == [answered(*small, [p], soft[k : k + 1], most=6)[0] for k, p in enumerate(prompts)]
    assert answered(*small, prompts, most=6) != together  # soft tokens off


def test_frames_are_right_if_four_fifths_are_the_same_words_if_all_are_and_lists_in_any_words():
    assert claims.right("frames 0 to 8", "frames 0 to 9")
    assert not claims.right("frames 0 to 6", "frames 0 to 9")
    assert claims.right("up left", "up left") and not claims.right("left", "up left")
    assert not claims.right("it is never hidden", "frames 0 to 3") and not claims.right("", "frame 3")
    assert claims.named("The blue object is a star.", "star")
    assert not claims.named("a star or a circle", "star")
    assert claims.named("It is at 10 20.", "at 10 20") and not claims.named("at 20 10", "at 10 20")


# ---------------------------------------------------------------- training


def test_embeddings_of_noise_teach_no_more_than_how_answers_are_distributed(world, language):
    """The null case: nothing in the embeddings, and no language in the model."""
    ids = load_pt(world / "tracks.pt", TRACKS)["ids"]
    write_tracks(world / "tracks.pt", ids, torch.randn(len(ids), 512))
    result = run(world, language)
    assert result["accuracy"] <= result["accuracy_floor"] + 0.1
    assert result["criteria"]["accuracy"]["gain_low"] <= 0


def test_what_is_written_loads_again_and_says_the_same(world, language, refused):
    result = run(world, language)
    saved = load_yaml(world / "words" / "tune-words.yaml", "tune")
    assert len(result["accuracy_seeds"]) == 2 and saved["accuracy"] == pytest.approx(result["accuracy"])
    assert not (world / "words" / "training").exists()
    assert result["lora_parameters"] + result["soft_parameters"] == result["parameters"]
    (model, tokenizer), (plain, _) = (load_language(find_model(str(language))) for _ in range(2))
    tuned, soft = load_words(world / "words" / "seed1", model, "small-words")
    prompt = [word_prompt(tokenizer, "Is the red circle persistent or transient?")]
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(7))
    from safetensors.torch import load_file

    lora = load_file(world / "words" / "seed1" / "adapter_model.safetensors")
    with torch.no_grad():  # the same weights put together by hand: base + LoRA's product
        batch = word_batch(plain, tokenizer, prompt, soft(x))
        before = plain(**batch).logits
        for name in [k for k in lora if "lora_A" in k]:
            weight = plain.get_submodule(
                name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            ).weight
            weight += 2 * lora[name.replace("lora_A", "lora_B")] @ lora[name]
        assert torch.allclose(tuned(**batch).logits, plain(**batch).logits, atol=1e-4)
        assert not torch.allclose(before, plain(**batch).logits, atol=1e-2)
        with tuned.disable_adapter():
            assert torch.equal(tuned(**batch).logits, before)
    refused(
        lambda: load_words(world / "words" / "seed0", plain, "tinyllama"),
        "was trained on small-words (width 32), and tinyllama",
    )
    refused(
        lambda: load_words(world / "words" / "seed9", plain, "small-words"), "seed9 lacks soft.safetensors"
    )


@pytest.mark.slow
def test_a_run_that_was_killed_keeps_its_seeds_and_ends_as_if_it_had_not_been(world, language, monkeypatch):
    whole, train, trained = run(world, language), training.train, []

    def second_dies(build, loss_of, split, seed, *more):
        trained.append(seed)
        if trained == [0, 1]:
            raise KeyboardInterrupt
        return train(build, loss_of, split, seed, *more)

    monkeypatch.setattr(tune, "train", second_dies)
    with pytest.raises(KeyboardInterrupt):
        run(world, language, out="killed")
    assert (world / "killed/seed0/soft.safetensors").is_file() and not (world / "killed/seed1").exists()
    assert not list((world / "killed").glob(".*"))
    again = run(world, language, out="killed")
    assert trained == [0, 1, 1] and again["accuracy_seeds"] == whole["accuracy_seeds"]
    assert again["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    run(world, language, "--lr", 1e-3, out="killed")
    assert trained == [0, 1, 1, 0, 1]  # of other settings: not taken up


def test_forgetting_is_what_is_no_longer_answered(world, language, monkeypatch):
    """Lists are answered rightly before, and three in four of them after: by whom, and how often, is known."""
    calls = []

    def oracle(model, tokenizer, prompts, soft=None, **more):
        if soft is not None:
            return [""] * len(prompts)
        lists = [claims.naming(np.random.default_rng([0, k]))[2] for k in range(len(prompts))]
        calls.append(len(prompts))
        return lists if len(calls) == 1 else ["" if k % 4 == 0 else x for k, x in enumerate(lists)]

    monkeypatch.setattr(tune, "answered", oracle)
    result = run(world, language)
    assert calls == [tune.NAMED] * 3 and result["naming_without"] == 1 and result["naming_with"] == 0.75
    assert result["forgetting"] == 0.25 and result["forgetting_low"] > 0.1
    assert result["forgetting_p"] < 0.01 and result["accuracy"] == 0


@pytest.mark.slow
@needs_words
def test_a_short_training_reads_who_stays_and_which_way_from_embeddings(world):
    items = clips(400)
    write_items(world / "data", items, {"data": "synthetic", "name": "made-up"})
    write_tracks(world / "tracks.pt", *embedded(items, noise=0.02))
    result = run(world, "tiny-words", "--epochs", 3, "--seeds", 1)
    kinds = result["kinds"]
    assert kinds["persistence"]["accuracy"] > 0.95 and kinds["unknown"]["accuracy"] > 0.95
    assert kinds["absent"]["accuracy"] > 0.9
    assert kinds["direction"]["accuracy"] > kinds["direction"]["floor"] + 0.3
    assert result["criteria"]["accuracy"]["gain_low"] > 0.2


@needs_words
def test_the_committed_model_answers_from_facts_and_says_where_they_are_lacking():
    model, tokenizer = load_language(find_model("tiny-words"))
    facts = metadata_text("red circle", 0.97, [[0, 9], [14, 31]], "up left", [[10, 13]])
    nowhere = metadata_text("green star", 0.04, [], hidden=[], count=2)
    asked = [
        (facts, "Is the red circle persistent or transient?", "persistent"),
        (facts, "In which frames does the red circle appear?", "frames 0 to 9 and 14 to 31"),
        (facts, "In which frames is the red circle hidden?", "frames 10 to 13"),
        (facts, "How many coloured objects are there?", "the clip does not show that"),
        (nowhere, "Which way does the green star move?", "there is no green star"),
    ]
    assert answered(
        model, tokenizer, [word_prompt(tokenizer, question, context) for context, question, _ in asked]
    ) == [answer for *_, answer in asked]
    quality = load_yaml(common.HERE / "results/tiny/tiny-words.yaml", "tiny")
    assert (
        min(
            quality[kind]
            for kind in ("persistence", "frames", "hidden", "uncovered", "count", "absent", "lacking")
        )
        > 0.9
    )
    assert quality["naming"] > quality["naming_floor"] + 0.3, "what cannot be done cannot be forgotten"


def test_a_few_steps_of_the_language_model_write_all_that_loads_it_again(tmp_path, monkeypatch):
    quality = tiny.words_quality
    monkeypatch.setattr(tiny, "words_quality", lambda *args: quality(*args, n=50))
    tiny.main(f"--only words --steps 2 --out {tmp_path}".split())
    entry = find_model(str(tmp_path / "checkpoints" / "words"))
    assert entry["kind"] == "language" and entry["weights"] == "small"
    model, tokenizer = load_language(entry)
    assert len(answered(model, tokenizer, [word_prompt(tokenizer, "Count them.")], most=3)) == 1


# ---------------------------------------------------------------- what is refused


def test_embeddings_that_are_none_or_of_something_else_are_refused(world, language, refused):
    ids, x = embedded(load_items(world / "data")[0])

    def check(words, names=ids, rows=x, **changed):
        write_tracks(world / "tracks.pt", names, rows, **changed)
        refused(lambda: run(world, language), words)

    check("embedding is [108, 100] where [108, 512] is wanted", embedding=x[:, :100])
    check(
        f"512 non-finite values, the first of {ids[3]!r}",
        rows=x.index_fill(0, torch.tensor([3]), float("nan")),
    )
    check("'nobody/red circle'", ["nobody/red circle", *ids[1:]])
    check(f"lacks {ids[-1]!r}", ids[:-1], x[:-1])
    (world / "tracks.pt").unlink()
    refused(lambda: run(world, language), "tracks.pt does not exist")


def test_what_is_no_language_model_no_clips_or_no_training_is_refused(world, language, refused):
    refused(lambda: run(world, "tiny-dinov2"), "a language model is needed")
    refused(lambda: run(world, language, "--soft", 0), "give 1 or more")
    write_items(
        world / "data",
        [{k: v for k, v in i.items() if k != "tracks"} for i in clips(4)],
        {"data": "synthetic", "name": "x"},
    )
    refused(lambda: run(world, language), "says nothing of tracks")
