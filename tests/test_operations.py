"""Operations at a bench: OpenPack as it is on disk, from hand-written and made-up sets whose truth is known, and what is scored of answers, from planted ones."""
import csv
import json
import re
import shutil
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import data
import explain
from common import load_items, load_yaml, split_of

NAMES = list(data.OPERATIONS.values())


def hand_written(root, users=("U0101", "U0107", "U0108"), seconds=30, rate=3, work=((100, 0, 10), (8100, 10, 12), (600, 12, 20), (100, 20, 30)), grey=lambda t: 8 * int(t)):
    """A set in OpenPack's layout: one session each, of frames of one grey that says the second; work: (id, start, end)."""
    for user in users:
        begins = datetime(2021, 11, 9, 13, 0, 30, tzinfo=data.JAPAN)
        for folder in ("openpack-operations", "openpack-operations-1hz"):
            (root / user / "annotation" / folder).mkdir(parents=True)
        with open(root / user / "annotation/openpack-operations/S0100.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["uuid", "user", "session", "box", "id", "operation", "start", "end", "actions"])
            for k, (o, a, b) in enumerate(work):
                table.writerow([f"uuid-{k}", user, "S0100", 1, o, data.OPERATIONS.get(o, "Null"), (begins + timedelta(seconds=a)).isoformat(), (begins + timedelta(seconds=b)).isoformat(), ""])
        with open(root / user / "annotation/openpack-operations-1hz/S0100.csv", "w", newline="") as f:
            table = csv.writer(f)
            table.writerow(["unixtime", "user", "session", "box", "id"])
            for t in range(seconds):
                table.writerow([int(begins.timestamp() + t) * 1000, user, "S0100", 1, next(o for o, a, b in work if a <= t < b)])
        for tick in range(seconds * rate):
            when = begins + timedelta(milliseconds=1000 * tick // rate)
            path = root / user / "kinect/color-masked/frames/S0100" / when.strftime("%Y/%m/%d/%H/%M") / f"{when:%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (grey(tick / rate),) * 3).save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return hand_written(tmp_path_factory.mktemp("openpack"))


@pytest.fixture
def own_copy(published, tmp_path):
    return shutil.copytree(published, tmp_path / "copy")


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """(the made-up set in OpenPack's layout, what is read of it)."""
    folder = tmp_path_factory.mktemp("operations")
    data.operations(folder / "raw", 16, 42, sessions=2, rate=1.0)
    data.main(["openpack", "--root", str(folder / "raw"), "--n", "400", "--asked", "360", "--seed", "42", "--out", str(folder / "operations")])
    return folder / "raw", folder / "operations"


def read(root, out, *more):
    data.main(["openpack", "--root", str(root), "--window", "4", "--count", "4", "--asked", "100", "--every", "1", "--out", str(out), *map(str, more)])
    return load_items(out)


# ---------------------------------------------------------------- as it is on disk

def test_a_published_session_is_read_to_the_frame(published, tmp_path):
    items, index = read(published, tmp_path / "out")
    assert index["subjects"] == {"U0101": "train", "U0107": "val", "U0108": "test"} and index["data"] == "real" and index["size"] == 16
    by_id = {i["id"]: i for i in items}
    assert {split_of(i["source"]) for i in items if i["subject"] == "U0108"} == {"test"} and by_id["U0108-S0100-00015"]["source"] == "test:U0108-S0100"
    own = {int(i["id"][-5:]): i for i in items if i["subject"] == "U0108"}
    assert sorted(own) == [*range(3, 10), *range(12, 30)]  # none of Null, and none before there are frames of three quarters of the window
    item = own[15]
    assert (item["operation"], item["action"], item["previous"], item["next"], item["earlier"]) == ("Attach Box Label", "Attach Box Label", "Picking", "Picking", "Attach Box Label")
    assert (item["start"], item["end"], item["seconds"], item["boundary"]) == (-3.0, 5.0, 15.0, False) and own[20]["boundary"] and own[21]["boundary"] and not own[22]["boundary"]
    assert item["turns"] == [[data.ASK_OPERATION, '{"operation": "Attach Box Label", "start": -3, "end": 5, "next": "Picking"}']]
    assert own[12]["earlier"] is None and own[20]["earlier"] == "Attach Box Label" and own[25]["next"] is None and json.loads(own[25]["turns"][0][1])["next"] is None
    greys = item["frames"].float().mean((1, 2, 3)) / 8
    assert item["frames"].shape == (4, 16, 16, 3) and greys[-1].round() == 15 and torch.allclose(greys, torch.tensor([11.0, 12, 13, 15]), atol=1.1) and item["fps"] == 0.8
    assert index["grammar"]["bigram"] == {"(start)": {"Picking": 1}, "Attach Box Label": {"Picking": 1}, "Picking": {"Attach Box Label": 1}}
    assert index["grammar"]["seconds"] == {"Attach Box Label": 8, "Picking": 20} and index["grammar"]["clock"] == ["Picking", "Attach Box Label", "Picking"]


def test_the_first_thirty_clips_of_u0108_are_the_fixed_test(made_up):
    items, _ = load_items(made_up[1])
    of_u0108 = [i["id"] for i in items if i["subject"] == "U0108"]
    assert [i["id"] for i in items if i.get("fixed")] == of_u0108[:30] == sorted(of_u0108)[:30] and len(of_u0108) > 30


def test_grammar_is_that_of_train_subjects_alone(own_copy, tmp_path):
    before = read(own_copy, tmp_path / "a")[1]["grammar"]
    for user in ("U0107", "U0108"):
        table = own_copy / user / "annotation/openpack-operations/S0100.csv"
        table.write_text(table.read_text().replace(",600,", ",700,"))
        shutil.rmtree(own_copy / user / "annotation/openpack-operations-1hz")  # whole seconds of the other table are taken then
    items, index = read(own_copy, tmp_path / "b")
    assert index["grammar"] == before and "Scan Label" in {i["operation"] for i in items if i["source"].startswith("test")}
    table = own_copy / "U0101/annotation/openpack-operations/S0100.csv"
    table.write_text(table.read_text().replace(",600,", ",700,"))
    shutil.rmtree(own_copy / "U0101/annotation/openpack-operations-1hz")
    assert read(own_copy, tmp_path / "c")[1]["grammar"] != before


def test_boundary_clips_are_drawn_more_often_in_train_and_nowhere_else(made_up, tmp_path):
    def share(folder, part):
        items = [i for i in load_items(folder)[0] if split_of(i["source"]) == part]
        return np.mean([i["boundary"] for i in items])

    data.main(["openpack", "--root", str(made_up[0]), "--n", "200", "--asked", "6", "--seed", "42", "--boundary", "0", "--out", str(tmp_path / "as-they-come")])
    assert share(made_up[1], "train") == 0.5 and share(tmp_path / "as-they-come", "train") < 0.4 and share(made_up[1], "test") < 0.4


def test_motion_chooses_the_frames_of_a_window_in_which_something_moves(tmp_path):
    root = hand_written(tmp_path / "root", seconds=24, rate=6, work=((100, 0, 24),))
    texture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8))
    for path in sorted(root.rglob("*.jpg")):
        second = datetime.strptime(path.stem, "%Y%m%d_%H%M%S_%f").replace(tzinfo=data.JAPAN) - datetime(2021, 11, 9, 13, 0, 30, tzinfo=data.JAPAN)
        picture, t = Image.new("RGB", (64, 64), (90, 90, 90)), second.total_seconds()
        picture.paste(texture.resize((20, 20), Image.NEAREST), (2 + int(16 * min(max(t - 18, 0), 2.5)), 20))  # it moves from 18 to 20.5 seconds, and not before
        picture.save(path, quality=95)
    even, moving = (read(root, tmp_path / how, "--window", 8, "--count", 8, "--frames", how, "--n", 3, "--asked", 12, "--every", 4)[0] for how in ("uniform", "motion"))
    k = next(k for k, i in enumerate(even) if i["id"] == "U0108-S0100-00020")

    def moved(item):
        return (item["frames"][1:].float() - item["frames"][:-1].float()).abs().mean((1, 2, 3)).gt(1).sum()

    assert moved(moving[k]) > 5 > moved(even[k])


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda root: (root / "U0108/annotation/openpack-operations/S0100.csv").write_text("uuid,user\n1,2\n"), ["1 problems"]),
    (lambda root: shutil.rmtree(root / "U0101/kinect"), ["1 problems", "--skip-bad"]),
    (lambda root: shutil.rmtree(root / "U0101/annotation") or shutil.rmtree(root / "U0107/annotation") or shutil.rmtree(root / "U0108/annotation"), ["holds no U####", "--root"]),
    (lambda root: next((root / "U0108/kinect").rglob("*_130041_333.jpg")).write_bytes(b"\xff\xd8 half"), ["have problems", "--skip-bad"])])
def test_what_cannot_be_read_is_refused_and_nothing_is_written(own_copy, tmp_path, refused, spoil, words):
    spoil(own_copy)
    refused(lambda: read(own_copy, tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "index.yaml").exists()


@pytest.mark.parametrize(("table", "old", "new", "reason"), [
    ("openpack-operations", "start", "begin", "openpack-operations/S0100.csv lacks the columns start; its header says"),
    ("openpack-operations", ",600,", ",650,", "line 4 of S0100.csv has id 650, which is no operation"),
    ("openpack-operations", "13:00:40+09:00,2021-11-09T13:00:42", "13:00:43+09:00,2021-11-09T13:00:42", "line 3 of S0100.csv ends before it begins"),
    ("openpack-operations", "2021-11-09T13:00:42+09:00,2021-11-09T13:00:50", "tomorrow,2021-11-09T13:00:50", "line 4 of S0100.csv is no operation"),
    ("openpack-operations", "13:00:50+09:00,\n", "13:00:58+09:00,\n", "overlap by 8.0 seconds"),
    ("openpack-operations-1hz", ",600", ",700", "8 of 30 seconds have another operation"), ("openpack-operations-1hz", "unixtime", "time", "S0100.csv lacks the columns unixtime")])
def test_every_problem_is_named_with_its_session(own_copy, tmp_path, capsys, table, old, new, reason):
    path = own_copy / "U0108/annotation" / table / "S0100.csv"
    assert old in (text := path.read_text())
    path.write_text(text.replace(old, new))
    with pytest.raises(SystemExit):
        read(own_copy, tmp_path / "out")
    assert re.search(rf"^U0108/S0100: .*{re.escape(reason)}", capsys.readouterr().err, re.MULTILINE)


def test_sessions_without_frames_are_counted_and_left_out(tmp_path):
    root = hand_written(tmp_path / "root", users=("U0101", "U0102", "U0107", "U0108"))
    shutil.rmtree(root / "U0102/kinect")
    items, index = read(root, tmp_path / "out", "--skip-bad")
    assert index["problems"] == 1 and {i["subject"] for i in items} == {"U0101", "U0107", "U0108"}


def test_subjects_can_be_named_and_a_wrong_one_is_refused(published, tmp_path, refused):
    items, index = read(published, tmp_path / "out", "--test", "U0101", "--val", "U0108")
    assert index["subjects"] == {"U0101": "test", "U0107": "train", "U0108": "val"} and not any(i.get("fixed") for i in items)
    refused(lambda: read(published, tmp_path / "out", "--test", "U0999"), "U0999", "known: U0101")
    refused(lambda: read(published, tmp_path / "out", "--frames", "12"), "'12'", "motion")
    assert load_yaml(tmp_path / "out" / "index.yaml")["subjects"]["U0101"] == "test"  # as it was


def test_the_made_up_set_has_the_published_layout_and_depends_on_the_seed_alone(made_up, tmp_path):
    raw, folder = made_up
    users = sorted(p.name for p in raw.iterdir() if p.is_dir())
    assert users == [f"U{n:04d}" for n in range(101, 111)]
    table = (raw / "U0103/annotation/openpack-operations/S0200.csv").read_text().splitlines()
    assert table[0] == "uuid,user,session,box,id,operation,start,end,actions"
    assert re.fullmatch(r"[0-9a-f-]{36},U0103,S0200,1,\d+,[A-Z][A-Za-z ]+(,2021-10-03T10:[\d:.]+\+09:00){2},", table[1])
    assert re.fullmatch(r"\d{13},U0103,S0200,1,\d+", (raw / "U0103/annotation/openpack-operations-1hz/S0200.csv").read_text().splitlines()[1])
    frames = sorted((raw / "U0103/kinect/color-masked/frames/S0200").rglob("*.jpg"))
    assert re.fullmatch(r"2021/10/03/10/\d\d/20211003_10\d{4}_000\.jpg", str(frames[0].relative_to(raw / "U0103/kinect/color-masked/frames/S0200")))
    data.operations(tmp_path, 16, 42, subjects=1, sessions=2, rate=1.0)
    for path in sorted(p for p in tmp_path.rglob("U*") if p.is_file()):
        assert path.read_bytes() == (raw / path.relative_to(tmp_path)).read_bytes(), path
    data.operations(tmp_path / "other", 16, 43, subjects=1, sessions=1, rate=0.1)
    assert (tmp_path / "other/U0101/annotation/openpack-operations/S0100.csv").read_bytes() != (raw / "U0101/annotation/openpack-operations/S0100.csv").read_bytes()
    items, index = load_items(folder)
    assert index["data"] == "synthetic" and {i["operation"] for i in items} == set(NAMES) and len({i["source"] for i in items if i["source"].startswith("test")}) == 6
    assert all(i["start"] <= 0 < i["end"] for i in items)


# ---------------------------------------------------------------- what is said of it, parsed

@pytest.mark.parametrize(("text", "parsed"), [
    ('{"operation": "Scan Label", "start": -3, "end": 5.5, "next": "Close Box"}', (6, 4, -3.0, 5.5)),
    ('```json\n{"next": "close box", "operation": " SCAN LABEL "}\n```', (6, 4, None, None)),
    ('Well: {broken} {"operation": "Scan", "start": "-3", "end": true, "next": null}', (None, None, None, 1.0)),
    ("Scan Label", None), ("", None), ('{"operation": "Scan Label"', None), ("[1, 2]", None)])
def test_answers_are_parsed(text, parsed):
    said = explain.parse_operation(text, NAMES)
    assert said["json"] == (parsed is not None)
    assert tuple(said[k] for k in ("operation", "next", "start", "end")) == (parsed or (None,) * 4)


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 8, 200), rng.integers(0, 10, 200)
    counts = explain.confusions(truth.tolist(), [None if s == 9 else int(s) for s in said], [0] * 200, 9)[0]
    assert abs(explain.macro_f1(counts).item() - f1_score(truth, said, labels=sorted(set(truth.tolist())), average="macro", zero_division=0)) < 1e-9


def test_macro_f1_of_two_who_guess_alike_is_told_apart_as_often_as_promised():
    rng, found = np.random.default_rng(0), []
    for seed in range(40):
        truth, sources = rng.integers(0, 4, 240).tolist(), np.repeat(np.arange(12), 20).tolist()
        a, b = (explain.confusions(truth, rng.integers(0, 4, 240).tolist(), sources, 4) for _ in range(2))
        found.append(explain.macro_tested(a, b, seed, 400)["p"] < 0.05)
    assert sum(found) <= 6  # of 40 at 5%: more than that one time in 50
    better = explain.confusions(truth, [t if rng.random() < 0.7 else 0 for t in truth], sources, 4)
    test = explain.macro_tested(better, b, 0, 400)
    assert test["p"] < 0.01 and 0 < test["gain_low"] < test["gain"] < test["gain_high"] and test["low"] < test["score"] < test["high"]
    same = explain.macro_tested(b, b, 0, 400)
    assert same["p"] == 1 and same["gain"] == same["gain_low"] == same["gain_high"] == 0


# ---------------------------------------------------------------- the whole stage, by writers of whom it is known what they know

def answer(operation, start=0, end=0, after=None):
    return json.dumps({"operation": operation, "start": start, "end": end, "next": after})


def truthful(item, rng):
    return item["turns"][0][1]


def mostly(item, rng):
    return item["turns"][0][1] if rng.random() < 0.8 else answer(str(rng.choice(NAMES)))


def alike(item, rng):
    """Knows all but one pair, which it cannot tell apart."""
    pair = "Attach Box Label", "Attach Shipping Label"
    return answer(pair[rng.integers(2)] if item["operation"] in pair else item["operation"], item["start"], item["end"], item["next"])


WRITERS = {"truthful": truthful, "mostly": mostly, "alike": alike, "silent": lambda item, rng: "I see somebody at a bench.", "usual": lambda item, rng: answer("Picking", -3.5, 3.5, "Insert Items"),
           "guess": lambda item, rng: answer(str(rng.choice(NAMES)), after=str(rng.choice(NAMES)))}


@pytest.fixture
def ask(monkeypatch, made_up, tmp_path):
    """explain.py of two writers, the first in the place of the model `tiny`, the second in that of `tiny-semantic`."""
    def run(*writers, again=None):
        names = dict(zip(("tiny", "tiny-semantic"), writers, strict=False))
        monkeypatch.setattr(explain, "load_vlm", again or (lambda *_: (None, SimpleNamespace(tokenizer=lambda text: SimpleNamespace(input_ids=text.split())))))

        def say(entry, model, processor, items, *_):
            rng = np.random.default_rng(len(entry["name"]))
            return [WRITERS[names[entry["name"]]](i, rng) for i in items]

        monkeypatch.setattr(explain, "operation_answers", say)
        result = explain.main(["--mode", "operations", "--data", str(made_up[1]), "--models", *names, "--out", str(tmp_path / "explain-operations.yaml")])
        assert load_yaml(tmp_path / "explain-operations.yaml")["answers"].keys() == result["answers"].keys()
        return result
    return run


def test_who_answers_no_json_is_counted_wrong_and_not_left_out(ask):
    found = ask("truthful", "silent")
    assert found["answer"] == "FAIL" and found["no_json"] == 1 and found["no_json_tiny"] == 0
    assert found["accuracy"] == found["macro_f1"] == found["next_accuracy"] == found["edit"] == found["segmental_f1_10"] == 0 and found["pair"] is None
    assert found["start_error"] > found["start_error_median"] and found["accuracy_tiny"] == found["macro_f1_tiny"] == 1
    assert found["confusion"]["Picking"] == {"none": sum(found["confusion"]["Picking"].values())}


def test_the_commonest_answer_is_not_above_the_floors(ask):
    found = ask("usual", "usual")
    assert found["answer"] == "FAIL" and abs(found["accuracy"] - found["accuracy_majority"]) < 0.05 and found["comparisons"]["macro_f1_over_tiny"]["p"] == 1
    assert abs(found["start_error"] - found["start_error_median"]) < 0.2 and found["accuracy_copy"] > 0.7 > found["accuracy_bigram"] > found["accuracy_clock"]


def test_a_guess_scores_a_tenth(ask):
    found = ask("usual", "guess")
    assert 0.04 < found["accuracy"] < 0.17 and found["answer"] == "FAIL" and found["next_accuracy"] < found["next_accuracy_bigram"]


def test_the_truth_is_above_every_floor(ask):
    found = ask("silent", "truthful")
    assert found["answer"] == "PASS" and found["accuracy"] == found["macro_f1"] == found["accuracy_fixed"] == found["edit"] == found["segmental_f1_50"] == 1
    assert found["boundary_error"] == 0 and found["start_error"] <= 0.5 and found["end_error"] <= 0.5 and found["next_accuracy"] == 1 and found["fixed"] == 30
    assert found["accuracy_tiny-semantic+grammar"] == 1  # nothing is put right that is right
    assert found["criteria"]["next_accuracy"]["floor_name"] == "bigram" and found["sessions"] == 6


def test_copying_the_truth_of_a_second_ago_is_printed_and_not_held_against(ask):
    found = ask("silent", "mostly")
    assert found["accuracy"] < found["accuracy_copy"] and explain.verdict(found["comparisons"]["macro_f1_over_copy"]) == "no"
    assert found["answer"] != "FAIL" and "copy" not in found["criteria"]["accuracy"]["floors"]


def test_grammar_puts_single_mistakes_right(ask):
    found = ask("silent", "mostly")
    assert 0.75 < found["accuracy"] < 0.87 and found["accuracy_tiny-semantic+grammar"] > found["accuracy"] + 0.05 and found["edit_tiny-semantic+grammar"] > found["edit"] + 0.1
    assert found["comparisons"]["macro_f1_of_tiny-semantic+grammar_over_tiny-semantic"]["gain_low"] > 0


def test_the_pair_confused_most_is_named_and_shown(ask, tmp_path):
    found = ask("silent", "alike")
    assert found["confused_most"] == "Attach Box Label / Attach Shipping Label" and found["pair"]["share_of_errors"] == 1 and 0.3 < found["pair"]["clips"] / found["pair"]["of"] < 0.7
    with Image.open(tmp_path / "explain-operations.png") as picture:
        assert min(picture.size) > 500
    (tmp_path / "results/tiny/operations").mkdir(parents=True)
    for name in ("explain-operations.yaml", "explain-operations.png"):
        (tmp_path / name).rename(tmp_path / "results/tiny/operations" / name)
    explain.main(["--mode", "report", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "Operations" in page and "Attach Box Label and Attach Shipping Label" in page and "tiny-semantic+grammar" in page


def test_answers_are_kept_and_asked_for_once(ask):
    first = ask("silent", "mostly")

    def never(*_):
        raise AssertionError("asked again")

    second = ask("guess", "guess", again=never)
    assert {k: v for k, v in first.items() if k not in ("run",)} == {k: v for k, v in second.items() if k not in ("run",)}


def test_wrong_folders_and_models_are_refused(made_up, moving_folder, tmp_path, refused):
    def call(*more):
        return lambda: explain.main(["--mode", "operations", "--out", str(tmp_path / "x.yaml"), *map(str, more)])

    refused(call("--data", moving_folder), "holds no operations", "data.py openpack")
    refused(call("--data", made_up[1], "--models", "tiny", "tiny"), "tiny twice")
    refused(call("--data", made_up[1], "--models", "tiny-cogvlm2"), "cogvlm2", "several frames")
    refused(call("--data", made_up[1], "--clips", "0"), "not all positive")


@pytest.mark.slow
def test_a_real_model_is_asked(made_up, tmp_path):
    found = explain.main(["--mode", "operations", "--data", str(made_up[1]), "--models", "tiny", "--clips", "6", "--batch", "64", "--out", str(tmp_path / "explain-operations.yaml")])
    assert found["clips"] == 6 and found["accuracy"] == 0 and found["no_json"] == 1  # it has been taught shapes, and no JSON
    assert found["answer"] == "INCONCLUSIVE" and found["model"] == "tiny" and found["tuned"] is None  # a single session says nothing of others
    assert (tmp_path / "explain-operations-answers.pt").is_file()
