"""What is said of trajectories, from files to the table: writers of whom it is known what they know, a small random language model, answers that are kept, what is refused."""

import numpy as np
import pytest
import torch
from conftest import bare_tokenizer, chat, tokens_of
from helpers import BACKWARDS

import claims
import common
import explain
import report
import synthetic
from claims import TIMES, WIDTH, track_id
from common import TRACKS, load_pt, load_yaml, save_pt, save_yaml, write_items
from explain import answer_with, true_fact
from training import Soft, save_soft

CHANGES = None, "reversed", "deleted"
KINDS = {"stays": (0, 31), "enters": (9, 31), "leaves": (0, 20), "passes": (6, 23), "vanishes": (0, 12)}


def clip(number, change=None):
    """A clip with the words and the truth of data.py, but for its frames: they only say which they are, (number of the clip, of the frame)."""
    rng, tracks = np.random.default_rng(number), []
    names = rng.permutation([f"{c} {s}" for c in synthetic.COLOURS for s in synthetic.SHAPES])[:4].tolist()
    for k in range(1 + number % 3):
        why = str(rng.choice(list(KINDS)))
        first, last = KINDS[why]
        hidden = [[(first + last) // 2, (first + last) // 2 + 3]] if rng.random() < 0.5 else []
        seen = [[first, hidden[0][0] - 1], [hidden[0][1] + 1, last]] if hidden else [[first, last]]
        way = str(rng.choice(list(synthetic.DIRECTIONS)))
        there = {"present": [[first, last]], "visible": seen, "hidden": hidden}
        tracks.append(
            {"object": names[k], "persistent": why == "stays", "why": why, "direction": way} | there
        )
    more, numbers = {}, list(range(len(tracks)))
    if change == "reversed":
        for t in tracks:
            for key in ("present", "visible", "hidden"):
                t[key] = [[31 - b, 31 - a] for a, b in t[key][::-1]]
            t["why"], t["direction"] = BACKWARDS.get(t["why"], "appears"), synthetic.OPPOSITE[t["direction"]]
    if change == "deleted":
        tracks, numbers, more = tracks[1:], numbers[1:], {"removed": names[0]}
    turns, asked = synthetic.questions_of(tracks, numbers, names[3], (0, number))
    frames = torch.zeros(TIMES, 8, 8, 3, dtype=torch.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number, torch.arange(TIMES)
    text = " ".join([*map(synthetic.told, tracks), explain.sentence_of_count(len(tracks))])
    item = {
        "id": f"clip-{number}",
        "source": f"clip-{number}",
        "width": 8,
        "height": 8,
        "frames": frames,
        "labels": [],
    }
    item |= {
        "names": [t["object"] for t in tracks],
        "count": len(tracks),
        "absent": names[3],
        "tracks": tracks,
    }
    return item | {"turns": turns, "asked": asked, "text": text, **more}


def planted(folder, n=100, change=None):
    """data/ and tracks.pt, in which an embedding begins with the numbers of its row and of the change, and scores and probabilities are the truth's. Returns (clip, name) of each row."""
    items = [clip(k, change) for k in range(n)]
    write_items(folder / "data", items, {"data": "synthetic", "name": "planted"})
    every = [
        (i, name) for i in items for name in [*i["names"], i["absent"], *filter(None, [i.get("removed")])]
    ]
    facts = [true_fact(i, name) for i, name in every]
    scores = torch.full((len(every), TIMES), 0.1)
    for row, fact in zip(scores, facts, strict=True):
        for a, b in fact["visible"]:
            row[a : b + 1] = 0.9
    x = {"embedding": torch.zeros(len(every), WIDTH), "scores": scores, "attention": scores.softmax(1)}
    x["embedding"][:, 0], x["embedding"][:, 1] = torch.arange(len(every)), CHANGES.index(change)
    x["persistence"] = torch.tensor([0.9 if f.get("persistent") else 0.1 for f in facts])
    meta = {"model": "planted", "weights": "small", "threshold": 0.5}
    ids = [track_id(i, name) for i, name in every]
    save_pt(folder / "tracks.pt", TRACKS, ids, meta, **{k: v.half() for k, v in x.items()})
    return every


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder, [(clip, name) of each row] of the clips, of those played backwards and of those without their first object)."""
    folder = tmp_path_factory.mktemp("trajectories")
    return folder, [planted(folder / str(change), change=change) for change in CHANGES]


class Reader:
    """Stands for a language model under LoRA."""

    chat_template, device, taken = "", "cpu", 0

    def unload(self):
        Reader.taken += 1


@pytest.fixture
def run(world, monkeypatch, tmp_path, small_llama):
    """run(says, *flags): the result where a language model says says(question, text that it is given, None or whom the embedding beside it is of: the truth about that object, its clip)."""
    folder, rows = world
    words = tmp_path / "words"
    for s in range(2):
        (words / f"seed{s}").mkdir(parents=True)
    training = {"parameters": 1234, "run": {"arguments": {"language": str(small_llama)}}}
    save_yaml(words / "tune-words.yaml", {"stage": "tune", "mode": "words", **training})

    def of(soft):
        row, change = abs(soft[0, :2]).long().tolist()
        every = rows[change % len(CHANGES)]
        item, name = every[row % len(every)]
        return true_fact(item, name), item

    def call(says, *flags, out="out.yaml", picture=False):
        call.asked = 0

        def answered(model, tokenizer, prompts, soft=None, most=64, batch=128):
            call.asked += len(prompts)
            return [says(*prompt, None if soft is None else of(soft[k])) for k, prompt in enumerate(prompts)]

        monkeypatch.setattr(explain, "load_language", lambda entry, device, dtype: (Reader(), Reader()))
        monkeypatch.setattr(
            explain, "load_words", lambda folder, model, name: (Reader(), lambda x: x[:, None])
        )
        monkeypatch.setattr(
            explain, "word_prompt", lambda tokenizer, question, context="": (question, context)
        )
        monkeypatch.setattr(explain, "answered", answered)
        if not picture:
            monkeypatch.setattr(explain, "draw_said", lambda *_: None)
        given = ["--data", folder / "None/data", "--embeddings", folder / "None/tracks.pt", "--words", words]
        given += ["--questions", 12, "--out", tmp_path / out, *flags]
        return explain.main(["trajectories", *map(str, given)])

    return call


def sees(question, context, about):
    """Who says what is true of whom the embedding is, and of a text nothing."""
    return answer_with(about[0], question, about[1]["count"]) if about else "I do not know."


@pytest.fixture(scope="session")
def small_llama(tmp_path_factory):
    """A random Llama of the library with the small models' chat template."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("models") / "small-llama", bare_tokenizer()
    tokenizer.chat_template = chat("")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(**tokens_of(tokenizer, num_attention_heads=4, num_key_value_heads=2))
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- nulls


def test_words_that_are_the_same_whatever_is_shown_do_not_follow_the_picture(run):
    def same(question, context, about):
        return next(
            (
                said
                for word, said in (("persistent", "persistent"), ("frames", "frames 0 to 31"))
                if word in question
            ),
            "left",
        )

    result = run(same)
    assert result["words_follow_picture"] == "no" and result["comparisons"]["soft_over_blind"]["gain"] == 0
    assert len({result[f"follow_{how}"] for how in explain.ABLATIONS if how != "swapped"}) == 1
    assert all(
        result["ablations"][how]["lost"] == 0 and result["ablations"][how]["p"] == 1
        for how in explain.ABLATIONS[1:]
    )


def test_who_says_nothing_claims_nothing_and_omits_all(run):
    row = run(lambda *_: "")["writers"]["soft"]
    assert [row[k] for k in ("accuracy", "claims", "claim_precision", "omission", "abstains")] == [
        0,
        0,
        None,
        1,
        0,
    ]


# ---------------------------------------------------------------- writers of whom it is known what they know


def test_the_truth_is_the_ceiling_and_the_notes_say_what_they_hold(run):
    result = run(sees)
    truth, notes, usual = (result["writers"][name] for name in ("truth", "metadata", "commonest"))
    for kind in (*claims.ASKED, "accuracy", "claim_precision", "frame_f1", "abstains"):
        assert truth[kind] == 1, kind
    assert truth["omission"] == truth["abstains_wrongly"] == truth["unparsed"] == 0
    for kind in ("persistence", "frames", "count", "absent", "unknown", "claim_precision", "frame_f1"):
        assert notes[kind] == 1, kind
    assert notes["direction"] == 0 and notes["omission_direction"] == 1 and 0 < notes["abstains_wrongly"] < 1
    assert (
        usual["accuracy"] < notes["accuracy"] and usual["claim_precision"] < 0.8 and usual["persistence"] < 1
    )


def test_words_that_come_from_the_embedding_follow_the_picture(run, tmp_path):
    folder = tmp_path / "results/tiny/clips"
    result = run(sees, out=folder / "explain-trajectories.yaml", picture=True)
    written = load_yaml(folder / "explain-trajectories.yaml", "trajectories")
    assert (
        written["words_follow_picture"] == result["words_follow_picture"] == "yes"
        and result["writer"] == "soft"
    )
    assert result["accuracy"] == result["claim_precision"] == result["follow_on"] == 1
    assert result["omission"] == result["follow_off"] == result["follow_label"] == 0
    ablations, writers = result["ablations"], result["writers"]
    assert (
        ablations["swapped"]["says_the_other"] == 1
        and ablations["swapped"]["questions"] < ablations["on"]["questions"]
    )
    for how in ("shuffled", "swapped", "gaussian"):
        assert 0 < result[f"follow_{how}"] < 0.6, how
        assert ablations[how]["lost_low"] > 0 and ablations[how]["p_holm"] < 0.01, how
    assert writers["blind"]["unknown"] == 1 and writers["blind"]["persistence"] == 0
    assert result["comparisons"]["soft_over_metadata"]["gain_low"] > 0
    assert writers["soft"]["training_parameters"] == 1234 and [
        writers[n]["seeds"] for n in ("text", "soft")
    ] == [1, 2]
    assert Reader.taken >= 2, "LoRA of one seed lies over that of another"
    report.main(["--results", str(tmp_path / "results")])
    page = (tmp_path / "results/report.html").read_text()
    assert "soft follow what it was shown: yes" in page and "explain-trajectories.png" not in page, (
        "the picture is missing"
    )


def test_order_of_the_options_and_abstaining_are_measured(run):
    def first_named(question, context, about):
        if "Answer with one of:" in question:
            return question.split(": ")[1].split(",")[0]
        return (
            "the clip does not show that"
            if "persistent" not in question
            else min(("persistent", "transient"), key=question.index)
        )

    row = run(first_named)["writers"]["soft"]
    assert row["order_persistence"] == 0 and row["order_direction"] < 0.5
    assert row["abstains_unknown"] == row["unknown"] == 1
    assert row["abstains_wrongly"] == pytest.approx(5 / 6), (
        "of six kinds of question that have an answer five"
    )
    assert run(sees, out="other.yaml")["writers"]["soft"]["order_persistence"] == 1


@pytest.mark.parametrize("change", CHANGES[1:])
def test_words_change_with_the_clip_or_repeat_what_was(run, world, change):
    folder, rows = world
    before = {item["id"]: item for item, _ in rows[0]}

    def remembers(question, context, about):
        if not about:
            return ""
        was = before[about[1]["id"]]
        named = next((name for name in (*was["names"], was["absent"]) if name in question), "")
        return answer_with(true_fact(was, named), question, was["count"])

    flag = "--changed", f"{change}={folder / change / 'data'}:{folder / change / 'tracks.pt'}"
    result = run(sees, *flag)
    soft, notes = (result["changed"][change][name] for name in ("soft", "metadata"))
    assert soft["new"] == result[f"{change}_new"] == 1 and soft["old"] == 0 and soft["questions"] >= 10
    assert notes["new"] > 0.2 and notes["old"] < 0.2
    result = run(remembers, *flag, out="other.yaml")
    assert result["accuracy"] == 1 and result[f"{change}_old"] == 1 and result[f"{change}_new"] == 0


def test_a_vision_language_model_is_shown_frames_from_all_over_the_clip(
    run, monkeypatch, small_qwen2vl, tmp_path
):
    shown = []

    def answers_to(model, processor, frames, question, at):
        shown.append(([int(t) for t in frames[0, :, 0, 0, 1]], question, at))
        asked, said = question.rpartition("frames 0, 10, 21, 31. ")[2], []
        for x in frames:
            item = clip(int(x[0, 0, 0, 0]))
            name = next((n for n in [*item["names"], item["absent"]] if n in question), "")
            said.append(answer_with(true_fact(item, name), asked, item["count"]))
        return said

    monkeypatch.setattr(explain, "load_vlm", lambda entry, device, dtype: (None, None))
    monkeypatch.setattr(explain, "answers_to", answers_to)
    result = run(sees, "--vlm", str(small_qwen2vl), "--frames", "4", "--size", "8")
    for numbers, question, at in shown:
        assert numbers == [0, 10, 21, 31] == list(at[0]) and at[1] == TIMES
        assert "You see frames 0, 10, 21, 31." in question
    assert result["writers"]["vlm"]["accuracy"] == 1 and result["comparisons"]["soft_over_vlm"]["gain"] == 0


# ---------------------------------------------------------------- kept answers, a model of the library, mistakes


@pytest.mark.slow
def test_what_was_answered_is_not_asked_again_unless_something_else_is_asked(run, tmp_path):
    first = run(sees)
    asked = run.asked
    again = run(sees)
    assert run.asked == 0 < asked
    assert all(again["writers"][name] == first["writers"][name] for name in ("text", "soft", "blind"))
    assert run(sees, "--seed", "1")["accuracy"] == 1 and run.asked > 0
    (tmp_path / "words/seed1/adapter_config.json").write_text("{}")
    run(sees, "--seed", "1")
    assert 0 < run.asked < asked / 2, "one seed is another: it alone is asked again"


def test_a_killed_run_goes_on(run, tmp_path):
    def stops(question, context, about):
        if about:
            raise KeyboardInterrupt
        return "left"

    with pytest.raises(KeyboardInterrupt):
        run(stops)
    kept = load_pt(tmp_path / "out-answers.pt", common.ANSWERS)["answers"]
    assert not (tmp_path / "out.yaml").exists() and {"blind/asked", "text/described"} <= set(kept)
    assert not any(key.startswith("soft") for key in kept) and run(sees)["accuracy"] == 1
    kept = load_pt(tmp_path / "out-answers.pt", common.ANSWERS)["answers"]
    assert set(kept["text/asked"]["texts"]) == {"left"}


@pytest.mark.slow
@pytest.mark.parametrize("template", [True, False])
def test_a_language_model_of_the_library_is_asked_with_and_without_soft_tokens(
    world, small_llama, tmp_path, template, capsys
):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, language = world[0], small_llama
    if not template:
        language = tmp_path / "plain"
        AutoModelForCausalLM.from_pretrained(small_llama).save_pretrained(language)
        tokenizer = AutoTokenizer.from_pretrained(small_llama)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(language)
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    for s in range(2):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(language), config)
        model.save_pretrained(tmp_path / f"words/seed{s}")
        save_soft(
            tmp_path / f"words/seed{s}/soft.safetensors", Soft(WIDTH, 32, 3, std=0.5), language=language.name
        )
    save_yaml(tmp_path / "words/tune-words.yaml", {"stage": "tune", "mode": "words"})
    given = ["--data", folder / "None/data", "--embeddings", folder / "None/tracks.pt", "--questions", 2]
    given += ["--language", language, "--words", tmp_path / "words", "--out", tmp_path / "out.yaml"]
    result = explain.main(["trajectories", *map(str, given)])
    assert set(result["writers"]) == {"truth", "metadata", "text", "soft", "commonest", "blind"}
    assert result["prompts"] == ("chat template" if template else "plain lines")
    assert ("no chat template" in capsys.readouterr().err) == (not template)
    kept = load_pt(tmp_path / "out-answers.pt", common.ANSWERS)["answers"]
    said = [kept[f"{name}/asked"]["texts"] for name in ("soft0", "soft1", "text")]
    assert said[0] != said[1] and said[0] != said[2] and result["weights"] == "unstated"


MISTAKES = """
--questions 0                                     | --questions 0
--words nowhere --embeddings TRACKS               | nowhere/tune-words.yaml
--words nowhere                                   | --embeddings
--language tiny-dinov2                            | language model
--vlm tiny-cogvlm2                                | Qwen
--vlm tiny --frames 1                             | --frames 1
--embeddings OTHERS                               | is no clip/object
--embeddings FEWER                                | lacks
--changed reversed                                | NAME=DATA:EMBEDDINGS
--changed x=nowhere:tracks.pt                     | --embeddings
--embeddings TRACKS --changed x=nowhere:tracks.pt | nowhere/index.yaml
--data MOVING                                     | data.py trajectories"""


@pytest.mark.parametrize("line", MISTAKES.strip().splitlines())
def test_mistakes_cost_one_sentence_before_a_model_is_loaded(
    world, line, moving_folder, tmp_path, monkeypatch, refused
):
    path = world[0] / "None/tracks.pt"
    monkeypatch.setattr(explain, "load_language", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(explain, "load_vlm", lambda *_: pytest.fail("a model was loaded"))
    tracks = load_pt(path, TRACKS)
    x = {k: tracks[k] for k in ("embedding", "scores", "attention", "persistence")}
    save_pt(tmp_path / "others.pt", TRACKS, [f"other-{i}" for i in tracks["ids"]], tracks["meta"], **x)
    save_pt(
        tmp_path / "fewer.pt",
        TRACKS,
        tracks["ids"][:9],
        tracks["meta"],
        **{k: v[:9].clone() for k, v in x.items()},
    )
    named = {
        "TRACKS": path,
        "OTHERS": tmp_path / "others.pt",
        "FEWER": tmp_path / "fewer.pt",
        "MOVING": moving_folder,
    }
    flags, words = (part.strip() for part in line.split("|"))
    given = [
        "--data",
        world[0] / "None/data",
        "--out",
        tmp_path / "out.yaml",
        *(named.get(f, f) for f in flags.split()),
    ]
    refused(lambda: explain.main(["trajectories", *map(str, given)]), words)
