"""What is said of trajectories, from files to the table: writers of whom it is known what they know, a small random language model, answers that are kept, what is refused."""
import av
import numpy as np
import pytest
import torch
from conftest import bare_tokenizer, chat, tokens_of
from PIL import Image

import data
import explain
from common import TIMES, TRACKS, WIDTH, Soft, load_pt, load_yaml, save_pt, save_soft, save_yaml, track_id, write_items
from explain import answer_with, true_fact

CHANGES = None, "reversed", "deleted"
KINDS = {"stays": (0, 31), "enters": (9, 31), "leaves": (0, 20), "passes": (6, 23), "vanishes": (0, 12)}


def clip(number, change=None):
    """A clip with the words and the truth of data.py, but for its frames: they only say which they are, (number of the clip, of the frame)."""
    rng, tracks = np.random.default_rng(number), []
    names = rng.permutation([f"{c} {s}" for c in data.COLOURS for s in data.SHAPES])[:4].tolist()
    for k in range(1 + number % 3):
        why = str(rng.choice(list(KINDS)))
        first, last = KINDS[why]
        hidden = [[(first + last) // 2, (first + last) // 2 + 3]] if rng.random() < 0.5 else []
        seen = [[first, hidden[0][0] - 1], [hidden[0][1] + 1, last]] if hidden else [[first, last]]
        way = str(rng.choice(list(data.DIRECTIONS)))
        tracks.append({"object": names[k], "persistent": why == "stays", "why": why, "present": [[first, last]], "visible": seen, "hidden": hidden, "direction": way})
    more, numbers = {}, list(range(len(tracks)))
    if change == "reversed":
        tracks = [t | {key: [[31 - b, 31 - a] for a, b in t[key][::-1]] for key in ("present", "visible", "hidden")}
                  | {"why": data.BACKWARDS.get(t["why"], "appears"), "direction": data.OPPOSITE[t["direction"]]} for t in tracks]
    if change == "deleted":
        tracks, numbers, more = tracks[1:], numbers[1:], {"removed": names[0]}
    turns, asked = data.questions_of(tracks, numbers, names[3], (0, number))
    frames = torch.zeros(TIMES, 8, 8, 3, dtype=torch.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number, torch.arange(TIMES)
    text = " ".join([*map(data.told, tracks), explain.sentence_of_count(len(tracks))])
    return {"id": f"clip-{number}", "source": f"clip-{number}", "width": 8, "height": 8, "frames": frames, "names": [t["object"] for t in tracks], "labels": [], "count": len(tracks),
            "absent": names[3], "tracks": tracks, "turns": turns, "asked": asked, "text": text, **more}


def planted(folder, n=100, change=None):
    """data/ and tracks.pt, in which an embedding begins with the numbers of its row and of the change, and scores and probabilities are the truth's. Returns (clip, name) of each row."""
    items = [clip(k, change) for k in range(n)]
    write_items(folder / "data", items, {"data": "synthetic", "name": "planted"})
    every = [(i, name) for i in items for name in [*i["names"], i["absent"], *filter(None, [i.get("removed")])]]
    facts = [true_fact(i, name) for i, name in every]
    scores = torch.tensor([[0.9 if any(a <= t <= b for a, b in f["visible"]) else 0.1 for t in range(TIMES)] for f in facts])
    embedding = torch.zeros(len(every), WIDTH)
    embedding[:, 0], embedding[:, 1] = torch.arange(len(every)), CHANGES.index(change)
    save_pt(folder / "tracks.pt", TRACKS, [track_id(i, name) for i, name in every], {"model": "planted", "weights": "small", "threshold": 0.5}, embedding=embedding.half(), scores=scores.half(),
            attention=scores.softmax(1).half(), persistence=torch.tensor([0.9 if f.get("persistent") else 0.1 for f in facts]).half())
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
    training = {"seconds_per_seed": 3.0, "parameters": 1234, "forgetting": 0.01}
    save_yaml(words / "adapt-words.yaml", {"stage": "adapt", "mode": "words", **training, "run": {"arguments": {"language": str(small_llama)}}})

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
        monkeypatch.setattr(explain, "load_words", lambda folder, model, name: (Reader(), lambda x: x[:, None]))
        monkeypatch.setattr(explain, "word_prompt", lambda tokenizer, question, context="": (question, context))
        monkeypatch.setattr(explain, "answered", answered)
        if not picture:
            monkeypatch.setattr(explain, "draw_said", lambda *_: None)
        given = {"--data": folder / "None/data", "--embeddings": folder / "None/tracks.pt", "--words": words, "--questions": 12, "--out": tmp_path / out}
        return explain.main(["--mode", "trajectories", *(str(x) for pair in given.items() for x in pair), *flags])
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
    LlamaForCausalLM(LlamaConfig(**tokens_of(tokenizer, num_attention_heads=4, num_key_value_heads=2))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- nulls

def test_words_that_are_the_same_whatever_is_shown_do_not_follow_the_picture(run):
    result = run(lambda question, context, about: "persistent" if "persistent" in question else "frames 0 to 31" if "frames" in question else "left")
    assert result["words_follow_picture"] == "no" and len({result[f"follow_{how}"] for how in explain.ABLATIONS} - {result["follow_swapped"]}) == 1
    assert all(result["ablations"][how]["lost"] == 0 and result["ablations"][how]["p"] == 1 for how in explain.ABLATIONS[1:])
    assert result["comparisons"]["soft_over_blind"]["gain"] == 0


def test_who_says_nothing_claims_nothing_and_omits_all(run):
    row = run(lambda *_: "")["writers"]["soft"]
    assert row["accuracy"] == 0 and row["claims"] == 0 and row["claim_precision"] is None and row["omission"] == 1 and row["abstains"] == 0


# ---------------------------------------------------------------- writers of whom it is known what they know

def test_the_truth_is_the_ceiling_and_the_notes_say_what_they_hold(run):
    result = run(sees)
    truth, notes, usual = (result["writers"][name] for name in ("truth", "metadata", "commonest"))
    assert all(truth[kind] == 1 for kind in (*explain.ASKED, "accuracy", "claim_precision", "frame_f1", "abstains")) and truth["omission"] == truth["abstains_wrongly"] == truth["unparsed"] == 0
    assert all(notes[kind] == 1 for kind in ("persistence", "frames", "count", "absent", "unknown", "claim_precision", "frame_f1")) and notes["direction"] == 0 and notes["omission_direction"] == 1
    assert 0 < notes["abstains_wrongly"] < 1 and usual["accuracy"] < notes["accuracy"] and usual["claim_precision"] < 0.8 and usual["persistence"] < 1


def test_words_that_come_from_the_embedding_follow_the_picture(run, tmp_path):
    folder = tmp_path / "results/tiny/clips"
    result = run(sees, out=folder / "explain-trajectories.yaml", picture=True)
    assert load_yaml(folder / "explain-trajectories.yaml", "trajectories")["words_follow_picture"] == result["words_follow_picture"] == "yes"
    assert result["writer"] == "soft" and result["accuracy"] == result["claim_precision"] == result["follow_on"] == 1 and result["omission"] == result["follow_off"] == result["follow_label"] == 0
    assert result["ablations"]["swapped"]["says_the_other"] == 1 and result["ablations"]["swapped"]["questions"] < result["ablations"]["on"]["questions"]
    for how in ("shuffled", "swapped", "gaussian"):
        assert 0 < result[f"follow_{how}"] < 0.6 and result["ablations"][how]["lost_low"] > 0 and result["ablations"][how]["p_holm"] < 0.01, how
    assert result["writers"]["blind"]["unknown"] == 1 and result["writers"]["blind"]["persistence"] == 0 and result["comparisons"]["soft_over_metadata"]["gain_low"] > 0
    assert result["writers"]["soft"]["training_parameters"] == 1234 and [result["writers"][name]["seeds"] for name in ("text", "soft")] == [1, 2]
    assert Reader.taken >= 2, "LoRA of one seed lies over that of another"
    with Image.open(folder / "explain-trajectories.png") as picture:
        assert np.asarray(picture.convert("RGB")).reshape(-1, 3).std(0).min() > 20
    explain.main(["--mode", "report", "--results", str(tmp_path / "results")])
    page = (tmp_path / "results/report.html").read_text()
    assert "soft follow what it was shown: yes" in page and "when objects are there (hatched: hidden)" in page and "explain-trajectories.png" not in page, "the picture is missing"


def test_order_of_the_options_and_abstaining_are_measured(run):
    def first_named(question, context, about):
        if "Answer with one of:" in question:
            return question.split(": ")[1].split(",")[0]
        return "the clip does not show that" if "persistent" not in question else min(("persistent", "transient"), key=question.index)
    row = run(first_named)["writers"]["soft"]
    assert row["order_persistence"] == 0 and row["order_direction"] < 0.5 and row["abstains_unknown"] == row["unknown"] == 1
    assert row["abstains_wrongly"] == pytest.approx(5 / 6), "of six kinds of question that have an answer five"
    assert run(sees, out="other.yaml")["writers"]["soft"]["order_persistence"] == 1


@pytest.mark.parametrize("change", CHANGES[1:])
def test_words_change_with_the_clip_or_repeat_what_was(run, world, change):
    folder, rows = world
    before = {item["id"]: item for item, _ in rows[0]}

    def remembers(question, context, about):
        named = about and next((name for name in (*before[about[1]["id"]]["names"], about[1]["absent"]) if name in question), "")
        return answer_with(true_fact(before[about[1]["id"]], named), question, before[about[1]["id"]]["count"]) if about else ""

    flag = "--changed", f"{change}={folder / change / 'data'}:{folder / change / 'tracks.pt'}"
    result = run(sees, *flag)
    rows_of = result["changed"][change]
    assert rows_of["soft"]["new"] == result[f"{change}_new"] == 1 and rows_of["soft"]["old"] == 0 and rows_of["soft"]["questions"] >= 10
    assert rows_of["metadata"]["new"] > 0.2 and rows_of["metadata"]["old"] < 0.2 and {"new_low", "new_high", "old_low", "old_high"} <= set(rows_of["text"])
    result = run(remembers, *flag, out="other.yaml")
    assert result["accuracy"] == 1 and result[f"{change}_old"] == 1 and result[f"{change}_new"] == 0


def test_a_vision_language_model_is_shown_frames_from_all_over_the_clip(run, monkeypatch, small_qwen2vl, tmp_path):
    shown = []

    def answers_to(model, processor, frames, question, at):
        shown.append(([int(t) for t in frames[0, :, 0, 0, 1]], question, at))
        items = [clip(int(x[0, 0, 0, 0])) for x in frames]
        return [answer_with(true_fact(i, next((n for n in [*i["names"], i["absent"]] if n in question), "")), question.rpartition("frames 0, 10, 21, 31. ")[2], i["count"]) for i in items]

    monkeypatch.setattr(explain, "load_vlm", lambda entry, device, dtype: (None, None))
    monkeypatch.setattr(explain, "answers_to", answers_to)
    result = run(sees, "--vlm", str(small_qwen2vl), "--frames", "4", "--size", "8")
    assert all(numbers == [0, 10, 21, 31] == list(at[0]) and at[1] == TIMES and "You see frames 0, 10, 21, 31." in question for numbers, question, at in shown)
    assert result["vlm"] == small_qwen2vl.name and result["writers"]["vlm"]["accuracy"] == 1 and result["comparisons"]["soft_over_vlm"]["gain"] == 0


# ---------------------------------------------------------------- kept answers, a model of the library, mistakes

@pytest.mark.slow
def test_what_was_answered_is_not_asked_again_unless_something_else_is_asked(run, tmp_path):
    first = run(sees)
    asked = run.asked
    again = run(sees)
    assert run.asked == 0 < asked and all(again["writers"][name] == first["writers"][name] for name in ("text", "soft", "blind")), "templates cost nothing, and are filled in again"
    assert run(sees, "--seed", "1")["accuracy"] == 1 and run.asked > 0
    kept = load_pt(tmp_path / "out-answers.pt", explain.ANSWERS)["answers"]
    assert {"truth/asked", "soft0/described", "soft1/asked", "swapped0/follow", "blind/asked"} <= set(kept)
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
    kept = load_pt(tmp_path / "out-answers.pt", explain.ANSWERS)["answers"]
    assert not (tmp_path / "out.yaml").exists() and {"blind/asked", "text/described"} <= set(kept) and not any(key.startswith("soft") for key in kept)
    result = run(sees)
    assert result["accuracy"] == 1 and set(load_pt(tmp_path / "out-answers.pt", explain.ANSWERS)["answers"]["text/asked"]["texts"]) == {"left"}


@pytest.mark.slow
@pytest.mark.parametrize("template", [True, False])
def test_a_language_model_of_the_library_is_asked_with_and_without_soft_tokens(world, small_llama, tmp_path, template, capsys):
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
    for s in range(2):
        get_peft_model(AutoModelForCausalLM.from_pretrained(language), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).save_pretrained(tmp_path / f"words/seed{s}")
        save_soft(tmp_path / f"words/seed{s}/soft.safetensors", Soft(WIDTH, 32, 3, std=0.5), language=language.name)
    save_yaml(tmp_path / "words/adapt-words.yaml", {"stage": "adapt", "mode": "words"})
    result = explain.main(["--mode", "trajectories", "--data", str(folder / "None/data"), "--embeddings", str(folder / "None/tracks.pt"), "--questions", "2", "--language", str(language),
                           "--words", str(tmp_path / "words"), "--out", str(tmp_path / "out.yaml")])
    assert set(result["writers"]) == {"truth", "metadata", "text", "soft", "commonest", "blind"} and result["prompts"] == ("chat template" if template else "plain lines")
    assert ("no chat template" in capsys.readouterr().err) == (not template)
    kept = load_pt(tmp_path / "out-answers.pt", explain.ANSWERS)["answers"]
    assert kept["soft0/asked"]["texts"] != kept["soft1/asked"]["texts"] and kept["soft0/asked"]["texts"] != kept["text/asked"]["texts"]
    assert result["writers"]["soft"]["seconds_per_clip"] > 0 and result["weights"] == "unstated"


@pytest.fixture
def taught(small_llama, tmp_path):
    """What adapt.py --mode words writes for a language model, untrained."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    get_peft_model(AutoModelForCausalLM.from_pretrained(small_llama), LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(tmp_path / "words/seed0")
    save_soft(tmp_path / "words/seed0/soft.safetensors", Soft(WIDTH, 32, 3, std=0.5), language=small_llama.name)
    save_yaml(tmp_path / "words/adapt-words.yaml", {"stage": "adapt", "mode": "words", "language": str(small_llama), "threshold": 0.25})
    return tmp_path / "words"


def filmed(path, frames):
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264rgb", rate=8, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "rgb24"
        for frame in frames.numpy():
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return str(path)


def test_a_question_about_a_video_is_answered_from_what_the_tracker_saw_of_the_object_it_names(taught, tmp_path, capsys):
    item = next(i for i in data.trajectories(60, 48, 9) if i["count"] == 2 and 8 < sum(b - a + 1 for a, b in i["tracks"][0]["visible"]) < 24)
    path, name = filmed(tmp_path / "x.mp4", item["frames"]), item["names"][0]
    ask = ["--model", "tiny-tracker", "--words", str(taught), "--clip", path, "--ask"]
    result = explain.main([*ask, f"When does the {name} disappear?", "--out", str(tmp_path / "said.yaml")])
    seen, true = ({t for a, b in spans for t in range(a, b + 1)} for spans in (
        [[int(x) for x in (part.split(" to ") * 2)[:2]] for part in result["frames_seen"].split(", ")], item["tracks"][0]["visible"]))
    assert result["object"] == name and len(seen & true) > 0.8 * len(seen | true) and result["frames_used"] == list(range(32))
    assert load_yaml(tmp_path / "said.yaml")["answer"] == result["answer"] and result["answer"] in capsys.readouterr().out
    assert explain.main([*ask, "When does it disappear?"])["asked"].startswith("When does the ")
    colour = explain.main([*ask, f"Where is the {name.split()[0]} one?"])
    assert colour["object"].startswith(name.split()[0]) and colour["asked"] == f"Where is the {name.split()[0]} one?"


def test_of_a_video_that_cannot_be_followed_one_sentence_says_why(taught, tmp_path, refused):
    short = filmed(tmp_path / "short.mp4", torch.zeros(9, 48, 48, 3, dtype=torch.uint8))
    ask = ["--words", str(taught), "--ask", "When?"]
    refused(lambda: explain.main([*ask, "--model", "tiny-tracker", "--clip", short]), "short.mp4", "9 frames", "32")
    refused(lambda: explain.main([*ask, "--model", "tiny-dinov2", "--clip", short]), "tiny-dinov2", "tiny-tracker")
    refused(lambda: explain.main([*ask, "--model", "tiny-tracker", "--image", "x.png"]), "--clip")
    refused(lambda: explain.main(["--words", str(tmp_path), "--ask", "When?", "--model", "tiny-tracker", "--clip", short]), "adapt-words.yaml")


@pytest.mark.parametrize("flags, words", [
    (["--questions", "0"], ["--questions 0"]), (["--words", "nowhere", "--embeddings", "TRACKS"], ["nowhere/adapt-words.yaml"]), (["--words", "nowhere"], ["--embeddings"]),
    (["--language", "tiny-dinov2"], ["tiny-dinov2", "language model"]), (["--vlm", "tiny-cogvlm2"], ["tiny-cogvlm2", "Qwen"]), (["--vlm", "tiny", "--frames", "1"], ["--frames 1"]),
    (["--embeddings", "nowhere.pt"], ["nowhere.pt"]), (["--embeddings", "OTHERS"], ["is no clip/object"]), (["--changed", "reversed"], ["NAME=DATA:EMBEDDINGS"]),
    (["--changed", "x=nowhere:tracks.pt"], ["--embeddings"]), (["--embeddings", "TRACKS", "--changed", "x=nowhere:tracks.pt"], ["nowhere/index.yaml"]), (["--data", "nowhere"], ["nowhere/index.yaml"]),
    (["--embeddings", "FEWER"], ["lacks"])])
def test_mistakes_cost_one_sentence_before_a_model_is_loaded(world, flags, words, tmp_path, monkeypatch, refused):
    folder = world[0]
    monkeypatch.setattr(explain, "load_language", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(explain, "load_vlm", lambda *_: pytest.fail("a model was loaded"))
    tracks = load_pt(folder / "None/tracks.pt", TRACKS)
    content = {k: tracks[k] for k in ("embedding", "scores", "attention", "persistence")}
    save_pt(tmp_path / "others.pt", TRACKS, [f"other-{i}" for i in tracks["ids"]], tracks["meta"], **content)
    save_pt(tmp_path / "fewer.pt", TRACKS, tracks["ids"][:9], tracks["meta"], **{k: x[:9].clone() for k, x in content.items()})
    named = {"TRACKS": str(folder / "None/tracks.pt"), "OTHERS": str(tmp_path / "others.pt"), "FEWER": str(tmp_path / "fewer.pt")}
    given = ["--mode", "trajectories", "--data", str(folder / "None/data"), "--out", str(tmp_path / "out.yaml"), *(named.get(f, f) for f in flags)]
    refused(lambda: explain.main(given), *words)


def test_clips_without_tracks_are_refused(moving_folder, refused):
    refused(lambda: explain.main(["--mode", "trajectories", "--data", str(moving_folder)]), "data.py trajectories")
