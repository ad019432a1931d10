"""operations.py: OpenPack as it is on disk, from sets whose truth is known, and scores of planted answers."""

import json
import re
import shutil
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import holds
from PIL import Image
from sklearn.metrics import f1_score

import operations
import stats
import synthetic
from common import load_items, split_of

NAMES = list(synthetic.OPERATIONS.values())
WORK = (100, 0, 10), (8100, 10, 12), (600, 12, 20), (100, 20, 30)  # id, start, end
LABEL = "Attach Box Label"
PROBLEMS = """
openpack-operations | start | begin | S0100.csv lacks the columns start; its header is
openpack-operations | ,600, | ,650, | line 4 of S0100.csv has the unknown id 650
openpack-operations | 40+09:00,2021-11-09T13:00:42 | 43+09:00,2021-11-09T13:00:42 | S0100.csv ends before
openpack-operations | 13:00:50+09:00, | 13:00:58+09:00, | overlap by 8.0 s
openpack-operations-1hz | ,600 | ,700 | 8 of 30 seconds differ"""
PARSED = [
    ('{"operation": "Scan Label", "start": -3, "end": 5.5, "next": "Close Box"}', (6, 4, -3.0, 5.5)),
    ('```json\n{"next": "close box", "operation": " SCAN LABEL "}\n```', (6, 4, None, None)),
    ('So: {broken} {"operation": "Scan", "start": "-3", "end": true, "next": null}', (None,) * 3 + (1.0,)),
]
METHODS = {
    "truthful": lambda item, rng: item["turns"][0][1],
    "mostly": lambda item, rng: item["turns"][0][1] if rng.random() < 0.8 else METHODS["guess"](item, rng),
    "silent": lambda *_: "I see somebody at a bench.",
    "majority": lambda *_: '{"operation": "Picking", "start": -3.5, "end": 3.5, "next": "Insert Items"}',
    "guess": lambda item, rng: json.dumps(dict.fromkeys(("operation", "next"), rng.choice(NAMES))),
}


def hand_written(root, users=("U0101", "U0107", "U0108"), rate=3):
    """A set in OpenPack's layout: one session each, of grey frames whose value is the second."""
    begins = datetime(2021, 11, 9, 13, 0, 30, tzinfo=synthetic.JAPAN)
    for user in users:
        tables = {"": ["uuid,user,session,box,id,operation,start,end,actions"]}
        tables["-1hz"] = ["unixtime,user,session,box,id"]
        for k, (o, a, b) in enumerate(WORK):
            times = ",".join((begins + timedelta(seconds=s)).isoformat() for s in (a, b))
            tables[""].append(f"uuid-{k},{user},S0100,1,{o},{synthetic.OPERATIONS.get(o, 'Null')},{times},")
            tables["-1hz"] += [f"{int(begins.timestamp() + t)}000,{user},S0100,1,{o}" for t in range(a, b)]
        for end, lines in tables.items():
            path = root / user / f"annotation/openpack-operations{end}" / "S0100.csv"
            path.parent.mkdir(parents=True)
            path.write_text("\n".join(lines) + "\n")
        for tick in range(30 * rate):
            when = begins + timedelta(milliseconds=1000 * tick // rate)
            path = root / user / "kinect/color-masked/frames/S0100" / f"{when:%Y/%m/%d/%H/%M}"
            path /= f"{when:%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (8 * (tick // rate),) * 3).save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return hand_written(tmp_path_factory.mktemp("openpack"))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operations")
    raw = folder / "operations-raw"  # without --root this is read, and drawn where it does not exist
    synthetic.draw_operations(raw, 16, 42, sessions=2, rate=1.0)
    operations.main(f"read --n 400 --test-clips 360 --seed 42 --out {folder}/operations".split())
    return raw, folder / "operations"


def read(root, out, flags=""):
    line = f"read --root {root} --window 4 --count 4 --test-clips 100 --every 1 --out {out} {flags}"
    operations.main(line.split())
    return load_items(out)


def test_a_published_session_is_read_to_the_frame(published, tmp_path):
    items, index = read(published, tmp_path / "out")
    assert index["subjects"] == {"U0101": "train", "U0107": "val", "U0108": "test"}
    assert all(split_of(i["source"]) == index["subjects"][i["subject"]] for i in items)
    clips = {int(i["id"][-5:]): i for i in items if i["source"] == "test:U0108-S0100"}
    # none of Null, and none before there are frames of three quarters of the window
    assert sorted(clips) == [*range(3, 10), *range(12, 30)]
    expected = dict.fromkeys(("operation", "action", "earlier"), LABEL) | {"boundary": False}
    expected |= {"previous": "Picking", "next": "Picking", "start": -3.0, "end": 5.0, "seconds": 15.0}
    assert {k: clips[15][k] for k in expected} == expected
    assert clips[15]["times"].tolist() == pytest.approx([0, 1.333, 2.333, 3.667], abs=0.001)
    assert [clips[t]["boundary"] for t in (20, 21, 22)] == [True, True, False]
    answer = {"operation": LABEL, "start": -3, "end": 5, "next": "Picking"}
    assert clips[15]["turns"] == [[operations.ASK_OPERATION, json.dumps(answer)]]
    assert [clips[12]["earlier"], clips[20]["earlier"], clips[25]["next"]] == [None, LABEL, None]
    greys = clips[15]["frames"].float().mean((1, 2, 3)) / 8
    assert greys[-1].round() == 15 and torch.allclose(greys, torch.tensor([11.0, 12, 13, 15]), atol=1.1)
    grammar = {"bigram": {"(start)": {"Picking": 1}, LABEL: {"Picking": 1}, "Picking": {LABEL: 1}}}
    grammar |= {"seconds": {LABEL: 8, "Picking": 20}, "clock": ["Picking", LABEL, "Picking"]}
    grammar |= {"start": -4.0, "end": 5.0}
    assert {k: index["grammar"][k] for k in grammar} == grammar


def test_grammar_is_that_of_train_subjects_alone(published, tmp_path):
    found, before = [], read(published, tmp_path / "out")[1]["grammar"]
    for k, users in enumerate((("U0107", "U0108"), ("U0101",))):
        root = shutil.copytree(published, tmp_path / f"raw{k}")
        for user in users:
            table = root / user / "annotation/openpack-operations/S0100.csv"
            table.write_text(table.read_text().replace(",600,", ",700,"))
            shutil.rmtree(root / user / "annotation/openpack-operations-1hz")
        found.append(read(root, tmp_path / f"out{k}"))
    assert found[0][1]["grammar"] == before != found[1][1]["grammar"]
    assert any(i["operation"] == "Scan Label" and i["source"].startswith("test") for i in found[0][0])


def test_boundary_clips_are_drawn_more_often_in_train_alone(made_up, tmp_path):
    raw, folder = made_up
    items, index = load_items(folder)
    assert index["data"] == "synthetic" and {i["operation"] for i in items} == set(NAMES)
    assert all(i["start"] <= 0 < i["end"] for i in items)
    of_u0108 = [i["id"] for i in items if i["subject"] == "U0108"]
    assert [i["id"] for i in items if i.get("fixed")] == sorted(of_u0108)[:30] and len(of_u0108) > 30
    read(raw, tmp_path / "plain", "--n 200 --test-clips 6 --seed 42 --window 8 --count 8 --boundary 0")
    share = []
    for where, part in ((folder, "train"), (folder, "test"), (tmp_path / "plain", "train")):
        near = [i["boundary"] for i in load_items(where)[0] if split_of(i["source"]) == part]
        share.append(np.mean(near))
    assert share[0] == 0.5 and max(share[1:]) < 0.4
    for seed in (42, 43):
        synthetic.draw_operations(tmp_path / str(seed), 16, seed, subjects=1, sessions=2, rate=0.1)
        a, b = (x / "U0101/annotation/openpack-operations/S0100.csv" for x in (tmp_path / str(seed), raw))
        assert (a.read_text() == b.read_text()) == (seed == 42)


@pytest.mark.parametrize("line", PROBLEMS.strip().splitlines())
def test_every_problem_is_printed_with_its_session(published, tmp_path, printed, line):
    table, old, new, reason = (part.strip() for part in line.split("|"))
    path = shutil.copytree(published, tmp_path / "copy") / "U0108/annotation" / table / "S0100.csv"
    path.write_text(path.read_text().replace(old, new, -1 if "1hz" in table else 1))
    shown = printed(lambda: read(tmp_path / "copy", tmp_path / "out"))
    assert re.search(rf"^U0108/S0100: .*{re.escape(reason)}", shown, re.MULTILINE)
    assert not (tmp_path / "out/index.yaml").exists()


def test_unreadable_sessions_are_refused_or_left_out(published, moving_folder, tmp_path, refused):
    root, out = shutil.copytree(published, tmp_path / "copy"), tmp_path / "out"
    shutil.rmtree(hand_written(root, users=["U0102"]) / "U0102/kinect")
    refused(lambda: read(root, out), "1 problems", "--skip-bad")
    items, index = read(root, out, "--skip-bad --test U0101 --val U0108")
    assert index["problems"] == 1 and {i["subject"] for i in items} == {"U0101", "U0107", "U0108"}
    assert index["subjects"]["U0101"] == "test" and index["subjects"]["U0108"] == "val"
    shutil.rmtree(root / "U0102")
    next((root / "U0108/kinect").rglob("*_130041_333.jpg")).write_bytes(b"\xff\xd8 half")
    refused(lambda: read(root, tmp_path / "x"), "have problems")
    refused(lambda: read(published, tmp_path / "x", "--test U0999"), "U0999", "give some of U0101")
    refused(lambda: operations.main(["score", "--data", str(moving_folder)]), "operations.py read")


def test_answers_are_parsed_and_errors_are_absolute():
    for text, expected in [*PARSED, ("Scan Label", None), ('{"operation": "Scan', None), ("[1, 2]", None)]:
        found = operations.parse_operation(text, NAMES)
        assert found["json"] == (expected is not None)
        assert tuple(found[k] for k in ("operation", "next", "start", "end")) == (expected or (None,) * 4)
    items, answers = [{"start": -3.0}, {"start": -3.0}, {"start": -1.0}], {"start": [-5.0, None, 1.0]}
    assert operations.seconds_off(items, answers, "start").tolist() == [2, 3, 2]  # without a time: from 0


def test_macro_f1_is_scikit_learns_and_its_test_keeps_its_level():
    rng, found = np.random.default_rng(0), []
    truth, given = rng.integers(0, 8, 200), rng.integers(0, 10, 200)
    counts = operations.confusions(truth.tolist(), [None if s == 9 else s for s in given], [0] * 200, 9)[0]
    other = f1_score(truth, given, labels=sorted(set(truth.tolist())), average="macro", zero_division=0)
    assert abs(operations.macro_f1(counts).item() - other) < 1e-9
    sources = np.repeat(np.arange(12), 20).tolist()
    for seed in range(40):
        truth = rng.integers(0, 4, 240).tolist()
        a, b = (operations.confusions(truth, rng.integers(0, 4, 240).tolist(), sources, 4) for _ in range(2))
        found.append(operations.macro_tested(a, b, seed, 400)["p"] < 0.05)
    assert sum(found) <= 6  # of 40 at 5%: more than that one time in 50
    better = operations.confusions(truth, [t if rng.random() < 0.7 else 0 for t in truth], sources, 4)
    test, same = operations.macro_tested(better, b, 0, 400), operations.macro_tested(b, b, 0, 400)
    holds(test, "p < 0.01, low < score, score < high, gain_low > 0, gain_low < gain, gain < gain_high")
    holds(same, "p == 1, gain == 0, gain_low == 0, gain_high == 0")


@pytest.fixture
def score(monkeypatch, made_up, tmp_path):
    """operations.py score of two methods, in the place of the models `tiny` and `tiny-semantic`."""
    tokenizer = SimpleNamespace(tokenizer=lambda text: SimpleNamespace(input_ids=text.split()))

    def run(*methods, load=lambda *_: (None, tokenizer)):
        def answers(entry, model, processor, items, *_):
            method, rng = METHODS[methods[entry["name"] != "tiny"]], np.random.default_rng(len(entry["name"]))
            return [method(i, rng) for i in items]

        monkeypatch.setattr(operations, "load_to_answer", load)
        monkeypatch.setattr(operations, "operation_answers", answers)
        out = f"--data {made_up[1]} --models tiny tiny-semantic --out {tmp_path}/operations.yaml"
        return operations.main(["score", *out.split()])

    return run


def test_the_majority_answer_and_a_guess_are_not_above_the_baselines(score):
    found = score("majority", "guess")
    holds(found, "answer == FAIL, accuracy > 0.04, accuracy < 0.17, next_accuracy < next_accuracy_bigram")
    holds(found, "accuracy_copy > 0.7, accuracy_bigram < 0.7, accuracy_bigram > accuracy_clock")
    assert abs(found["accuracy_tiny"] - found["accuracy_majority"]) < 0.05
    assert abs(found["start_error_tiny"] - found["start_error_median"]) < 0.2


def test_the_truth_is_above_every_baseline_and_answers_without_json_are_wrong(score):
    found, ones = score("silent", "truthful"), "accuracy_fixed == 1, segmental_f1_50 == 1, fixed == 30"
    holds(found, f"answer == PASS, accuracy == 1, macro_f1 == 1, next_accuracy == 1, {ones}")
    holds(found, "no_json == 0, boundary_error == 0, start_error <= 0.5, end_error <= 0.5, sessions == 6")
    holds(found, "no_json_tiny == 1, accuracy_tiny == 0, macro_f1_tiny == 0, next_accuracy_tiny == 0")
    holds(found, "start_error_median < start_error_tiny, criteria.next_accuracy.baseline_name == bigram")


def test_copying_the_label_of_a_second_ago_is_no_baseline_and_answers_are_cached(score):
    found = score("silent", "mostly")
    assert 0.75 < found["accuracy"] < found["accuracy_copy"]
    assert stats.verdict(found["comparisons"]["macro_f1_over_copy"]) == "no"
    assert found["answer"] != "FAIL" and "copy" not in found["criteria"]["accuracy"]["baselines"]
    again = score("guess", "guess", load=lambda *_: pytest.fail("asked again"))
    assert found | {"run": 0} == again | {"run": 0}
