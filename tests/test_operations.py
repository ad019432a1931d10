"""Operations at a bench: OpenPack as it is on disk, from hand-written and made-up sets whose truth is known, and what is scored of answers, from planted ones."""

import json
import re
import shutil
from datetime import datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import operations
import report
import stats
import synthetic
from common import load_items, load_yaml, split_of

NAMES = list(synthetic.OPERATIONS.values())


WORK = (100, 0, 10), (8100, 10, 12), (600, 12, 20), (100, 20, 30)  # id, start, end


def hand_written(root, users=("U0101", "U0107", "U0108"), rate=3, work=WORK):
    """A set in OpenPack's layout: one session each, of frames of one grey that says the second."""
    begins = datetime(2021, 11, 9, 13, 0, 30, tzinfo=synthetic.JAPAN)
    for user in users:
        tables = {
            "": "uuid,user,session,box,id,operation,start,end,actions\n",
            "-1hz": "unixtime,user,session,box,id\n",
        }
        for k, (o, a, b) in enumerate(work):
            times = ",".join((begins + timedelta(seconds=s)).isoformat() for s in (a, b))
            tables[""] += f"uuid-{k},{user},S0100,1,{o},{synthetic.OPERATIONS.get(o, 'Null')},{times},\n"
            tables["-1hz"] += "".join(
                f"{int(begins.timestamp() + t) * 1000},{user},S0100,1,{o}\n" for t in range(a, b)
            )
        for end, text in tables.items():
            folder = root / user / f"annotation/openpack-operations{end}"
            folder.mkdir(parents=True)
            (folder / "S0100.csv").write_text(text)
        for tick in range(work[-1][2] * rate):
            when = begins + timedelta(milliseconds=1000 * tick // rate)
            name = f"{when:%Y/%m/%d/%H/%M}/{when:%Y%m%d_%H%M%S}_{when.microsecond // 1000:03d}.jpg"
            path = root / user / "kinect/color-masked/frames/S0100" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (24, 16), (8 * (tick // rate),) * 3).save(path, quality=95)
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
    synthetic.draw_operations(folder / "raw", 16, 42, sessions=2, rate=1.0)
    flags = ["--n", "400", "--asked", "360", "--seed", "42", "--out", str(folder / "operations")]
    operations.main(["read", "--root", str(folder / "raw"), *flags])
    return folder / "raw", folder / "operations"


def read(root, out, *more):
    flags = ["--window", "4", "--count", "4", "--asked", "100", "--every", "1", "--out", out, *more]
    operations.main(["read", "--root", str(root), *map(str, flags)])
    return load_items(out)


# ---------------------------------------------------------------- as it is on disk


def test_a_published_session_is_read_to_the_frame(published, tmp_path):
    items, index = read(published, tmp_path / "out")
    assert (
        index["subjects"] == {"U0101": "train", "U0107": "val", "U0108": "test"} and index["data"] == "real"
    )
    of_u0108 = [i for i in items if i["subject"] == "U0108"]
    assert (
        {i["source"] for i in of_u0108}
        == {"test:U0108-S0100"}
        == {i["source"] for i in items if split_of(i["source"]) == "test"}
    )
    own = {int(i["id"][-5:]): i for i in of_u0108}
    # none of Null, and none before there are frames of three quarters of the window
    assert sorted(own) == [*range(3, 10), *range(12, 30)]
    label, seconds = "Attach Box Label", ("start", "end", "seconds", "boundary")
    assert [own[15][k] for k in ("operation", "action", "earlier", "previous", "next")] == [label] * 3 + [
        "Picking"
    ] * 2
    assert [own[15][k] for k in seconds] == [-3.0, 5.0, 15.0, False]
    assert [own[t]["boundary"] for t in (20, 21, 22)] == [True, True, False]
    assert own[15]["turns"] == [
        [operations.ASK_OPERATION, f'{{"operation": "{label}", "start": -3, "end": 5, "next": "Picking"}}']
    ]
    assert own[12]["earlier"] is None and own[20]["earlier"] == label
    assert own[25]["next"] is None and json.loads(own[25]["turns"][0][1])["next"] is None
    greys = own[15]["frames"].float().mean((1, 2, 3)) / 8
    assert own[15]["frames"].shape == (4, 16, 16, 3) and own[15]["fps"] == 0.8
    assert greys[-1].round() == 15 and torch.allclose(greys, torch.tensor([11.0, 12, 13, 15]), atol=1.1)
    assert index["grammar"]["bigram"] == {
        "(start)": {"Picking": 1},
        label: {"Picking": 1},
        "Picking": {label: 1},
    }
    assert index["grammar"]["seconds"] == {label: 8, "Picking": 20}
    assert index["grammar"]["clock"] == ["Picking", label, "Picking"]


def test_the_first_thirty_clips_of_u0108_are_the_fixed_test(made_up):
    items, _ = load_items(made_up[1])
    of_u0108 = [i["id"] for i in items if i["subject"] == "U0108"]
    assert [i["id"] for i in items if i.get("fixed")] == sorted(of_u0108)[:30] and len(of_u0108) > 30


def test_grammar_is_that_of_train_subjects_alone(own_copy, tmp_path):
    def change(*users):
        for user in users:
            table = own_copy / user / "annotation/openpack-operations/S0100.csv"
            table.write_text(table.read_text().replace(",600,", ",700,"))
            # whole seconds of the other table are taken then
            shutil.rmtree(own_copy / user / "annotation/openpack-operations-1hz")
        return read(own_copy, tmp_path / users[-1])

    before = read(own_copy, tmp_path / "before")[1]["grammar"]
    items, index = change("U0107", "U0108")
    assert index["grammar"] == before and "Scan Label" in {
        i["operation"] for i in items if i["source"].startswith("test")
    }
    assert change("U0101")[1]["grammar"] != before


def test_boundary_clips_are_drawn_more_often_in_train_and_nowhere_else(made_up, tmp_path):
    def share(folder, part):
        return np.mean([i["boundary"] for i in load_items(folder)[0] if split_of(i["source"]) == part])

    flags = [
        "--n",
        "200",
        "--asked",
        "6",
        "--seed",
        "42",
        "--boundary",
        "0",
        "--out",
        str(tmp_path / "as-they-come"),
    ]
    operations.main(["read", "--root", str(made_up[0]), *flags])
    assert share(made_up[1], "train") == 0.5 and share(tmp_path / "as-they-come", "train") < 0.4
    assert share(made_up[1], "test") < 0.4


def test_motion_chooses_the_frames_of_a_window_in_which_something_moves(tmp_path):
    root = hand_written(tmp_path / "root", rate=6, work=((100, 0, 24),))
    texture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize(
        (20, 20), 0
    )
    for user in ("U0101", "U0107", "U0108"):
        for tick, path in enumerate(sorted((root / user).rglob("*.jpg"))):
            picture = Image.new("RGB", (64, 64), (90, 90, 90))
            # it moves from 18 to 20.5 seconds, and not before
            picture.paste(texture, (2 + int(16 * min(max(tick / 6 - 18, 0), 2.5)), 20))
            picture.save(path, quality=95)
    moved = {}
    for how in ("uniform", "motion"):
        flags = "--window", 8, "--count", 8, "--frames", how, "--n", 3, "--asked", 12, "--every", 4
        x = {i["id"]: i["frames"] for i in read(root, tmp_path / how, *flags)[0]}["U0108-S0100-00020"].float()
        moved[how] = (x[1:] - x[:-1]).abs().mean((1, 2, 3)).gt(1).sum()
    assert moved["motion"] > 5 > moved["uniform"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: shutil.rmtree(root / "U0101/kinect"), ["1 problems", "--skip-bad"]),
        (
            lambda root: [shutil.rmtree(root / user) for user in ("U0101", "U0107", "U0108")],
            ["holds no U####", "--root"],
        ),
        (
            lambda root: next((root / "U0108/kinect").rglob("*_130041_333.jpg")).write_bytes(
                b"\xff\xd8 half"
            ),
            ["have problems"],
        ),
    ],
)
def test_what_cannot_be_read_is_refused_and_nothing_is_written(own_copy, tmp_path, refused, spoil, words):
    spoil(own_copy)
    refused(lambda: read(own_copy, tmp_path / "out"), *words)
    assert not (tmp_path / "out" / "index.yaml").exists()


PROBLEMS = """
openpack-operations     | start                                   | begin    | S0100.csv lacks the columns start; its header says
openpack-operations     | ,600,                                   | ,650,    | line 4 of S0100.csv has id 650, which is no operation
openpack-operations     | 13:00:40+09:00,2021-11-09T13:00:42      | 13:00:43+09:00,2021-11-09T13:00:42 | line 3 of S0100.csv ends before it begins
openpack-operations     | 2021-11-09T13:00:42+09:00,2021-11-09T13:00:50 | tomorrow,2021-11-09T13:00:50 | line 4 of S0100.csv is no operation
openpack-operations     | 13:00:50+09:00,                         | 13:00:58+09:00, | overlap by 8.0 seconds
openpack-operations-1hz | ,600                                    | ,700     | 8 of 30 seconds have another operation"""


@pytest.mark.parametrize("line", PROBLEMS.strip().splitlines())
def test_every_problem_is_named_with_its_session(own_copy, tmp_path, capsys, line):
    table, old, new, reason = (part.strip() for part in line.split("|"))
    path = own_copy / "U0108/annotation" / table / "S0100.csv"
    assert old in (text := path.read_text())
    path.write_text(text.replace(old, new, -1 if "1hz" in table else 1))
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
    assert index["subjects"] == {"U0101": "test", "U0107": "train", "U0108": "val"} and not any(
        i.get("fixed") for i in items
    )
    refused(lambda: read(published, tmp_path / "out", "--test", "U0999"), "U0999", "known: U0101")
    refused(lambda: read(published, tmp_path / "out", "--frames", "12"), "'12'", "motion")
    assert load_yaml(tmp_path / "out" / "index.yaml")["subjects"]["U0101"] == "test"  # as it was


def test_the_made_up_set_depends_on_the_seed_alone(made_up, tmp_path):
    raw, folder = made_up
    assert sorted(p.name for p in raw.iterdir() if p.is_dir()) == [f"U{n:04d}" for n in range(101, 111)]
    synthetic.draw_operations(tmp_path, 16, 42, subjects=1, sessions=2, rate=1.0)
    for path in sorted(p for p in tmp_path.rglob("U*") if p.is_file()):
        assert path.read_bytes() == (raw / path.relative_to(tmp_path)).read_bytes(), path
    synthetic.draw_operations(tmp_path / "other", 16, 43, subjects=1, sessions=1, rate=0.1)
    table = "U0101/annotation/openpack-operations/S0100.csv"
    assert (tmp_path / "other" / table).read_bytes() != (raw / table).read_bytes()
    items, index = load_items(folder)
    assert index["data"] == "synthetic" and {i["operation"] for i in items} == set(NAMES)
    assert len({i["source"] for i in items if i["source"].startswith("test")}) == 6
    assert all(i["start"] <= 0 < i["end"] for i in items)


# ---------------------------------------------------------------- what is said of it, parsed


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ('{"operation": "Scan Label", "start": -3, "end": 5.5, "next": "Close Box"}', (6, 4, -3.0, 5.5)),
        ('```json\n{"next": "close box", "operation": " SCAN LABEL "}\n```', (6, 4, None, None)),
        (
            'Well: {broken} {"operation": "Scan", "start": "-3", "end": true, "next": null}',
            (None, None, None, 1.0),
        ),
        ("Scan Label", None),
        ("", None),
        ('{"operation": "Scan Label"', None),
        ("[1, 2]", None),
    ],
)
def test_answers_are_parsed(text, parsed):
    said = operations.parse_operation(text, NAMES)
    assert said["json"] == (parsed is not None)
    assert tuple(said[k] for k in ("operation", "next", "start", "end")) == (parsed or (None,) * 4)


def test_macro_f1_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 8, 200), rng.integers(0, 10, 200)
    counts = operations.confusions(truth.tolist(), [None if s == 9 else int(s) for s in said], [0] * 200, 9)[
        0
    ]
    other = f1_score(truth, said, labels=sorted(set(truth.tolist())), average="macro", zero_division=0)
    assert abs(operations.macro_f1(counts).item() - other) < 1e-9


def test_macro_f1_of_two_who_guess_alike_is_told_apart_as_often_as_promised():
    rng, found = np.random.default_rng(0), []
    for seed in range(40):
        truth, sources = rng.integers(0, 4, 240).tolist(), np.repeat(np.arange(12), 20).tolist()
        a, b = (operations.confusions(truth, rng.integers(0, 4, 240).tolist(), sources, 4) for _ in range(2))
        found.append(operations.macro_tested(a, b, seed, 400)["p"] < 0.05)
    assert sum(found) <= 6  # of 40 at 5%: more than that one time in 50
    better = operations.confusions(truth, [t if rng.random() < 0.7 else 0 for t in truth], sources, 4)
    test, same = operations.macro_tested(better, b, 0, 400), operations.macro_tested(b, b, 0, 400)
    assert test["p"] < 0.01 and test["low"] < test["score"] < test["high"]
    assert 0 < test["gain_low"] < test["gain"] < test["gain_high"]
    assert same["p"] == 1 and same["gain"] == same["gain_low"] == same["gain_high"] == 0


# ---------------------------------------------------------------- the whole stage, by writers of whom it is known what they know


def answer(operation, start=0, end=0, after=None):
    return json.dumps({"operation": operation, "start": start, "end": end, "next": after})


def alike(item, rng):
    """Knows all but one pair, which it cannot tell apart."""
    pair = "Attach Box Label", "Attach Shipping Label"
    said = pair[rng.integers(2)] if item["operation"] in pair else item["operation"]
    return answer(said, item["start"], item["end"], item["next"])


WRITERS = {
    "truthful": lambda item, rng: item["turns"][0][1],
    "mostly": lambda item, rng: item["turns"][0][1] if rng.random() < 0.8 else answer(str(rng.choice(NAMES))),
    "alike": alike,
    "silent": lambda item, rng: "I see somebody at a bench.",
    "usual": lambda item, rng: answer("Picking", -3.5, 3.5, "Insert Items"),
    "guess": lambda item, rng: answer(str(rng.choice(NAMES)), after=str(rng.choice(NAMES))),
}


@pytest.fixture
def ask(monkeypatch, made_up, tmp_path):
    """operations.py of two writers, the first in the place of the model `tiny`, the second in that of `tiny-semantic`."""

    def load(*_):
        return None, SimpleNamespace(tokenizer=lambda text: SimpleNamespace(input_ids=text.split()))

    def run(*writers, again=load):
        names = dict(zip(("tiny", "tiny-semantic"), writers, strict=False))
        monkeypatch.setattr(operations, "load_vlm", again)

        def say(entry, model, processor, items, *_):
            rng = np.random.default_rng(len(entry["name"]))
            return [WRITERS[names[entry["name"]]](i, rng) for i in items]

        monkeypatch.setattr(operations, "operation_answers", say)
        out = tmp_path / "results/tiny/operations/operations.yaml"
        flags = ["--data", str(made_up[1]), "--models", *names, "--out", str(out)]
        result = operations.main(["score", *flags])
        assert load_yaml(out)["answers"].keys() == result["answers"].keys()
        return result

    return run


def test_who_answers_no_json_is_counted_wrong_and_not_left_out(ask):
    found = ask("truthful", "silent")
    assert (
        found["answer"] == "FAIL"
        and found["no_json"] == 1
        and found["no_json_tiny"] == 0
        and found["pair"] is None
    )
    assert all(found[k] == 0 for k in ("accuracy", "macro_f1", "next_accuracy", "segmental_f1_10"))
    assert (
        found["start_error"] > found["start_error_median"]
        and found["accuracy_tiny"] == found["macro_f1_tiny"] == 1
    )
    assert found["confusion"]["Picking"] == {"none": sum(found["confusion"]["Picking"].values())}


def test_the_commonest_answer_is_not_above_the_floors(ask):
    found = ask("usual", "usual")
    assert found["answer"] == "FAIL" and abs(found["accuracy"] - found["accuracy_majority"]) < 0.05
    assert found["comparisons"]["macro_f1_over_tiny"]["p"] == 1
    assert abs(found["start_error"] - found["start_error_median"]) < 0.2
    assert found["accuracy_copy"] > 0.7 > found["accuracy_bigram"] > found["accuracy_clock"]


def test_a_guess_scores_a_tenth(ask):
    found = ask("usual", "guess")
    assert 0.04 < found["accuracy"] < 0.17 and found["answer"] == "FAIL"
    assert found["next_accuracy"] < found["next_accuracy_bigram"]


def test_the_truth_is_above_every_floor(ask):
    found = ask("silent", "truthful")
    keys = "accuracy", "macro_f1", "accuracy_fixed", "segmental_f1_50", "next_accuracy"
    assert found["answer"] == "PASS" and all(found[k] == 1 for k in keys) and found["fixed"] == 30
    assert found["boundary_error"] == 0 and found["start_error"] <= 0.5 and found["end_error"] <= 0.5
    assert found["criteria"]["next_accuracy"]["floor_name"] == "bigram" and found["sessions"] == 6


def test_copying_the_truth_of_a_second_ago_is_printed_and_not_held_against_and_answers_are_kept(ask):
    found = ask("silent", "mostly")
    assert 0.75 < found["accuracy"] < found["accuracy_copy"]
    assert stats.verdict(found["comparisons"]["macro_f1_over_copy"]) == "no"
    assert found["answer"] != "FAIL" and "copy" not in found["criteria"]["accuracy"]["floors"]
    again = ask("guess", "guess", again=lambda *_: pytest.fail("asked again"))
    assert found | {"run": 0} == again | {"run": 0}


def test_the_pair_confused_most_is_named_and_shown(ask, tmp_path):
    found = ask("silent", "alike")
    assert found["confused_most"] == "Attach Box Label / Attach Shipping Label"
    assert found["pair"]["share_of_errors"] == 1 and 0.3 < found["pair"]["clips"] / found["pair"]["of"] < 0.7
    report.main(["--results", str(tmp_path / "results")])
    page = (tmp_path / "results/report.html").read_text()
    assert "Attach Box Label and Attach Shipping Label" in page and "operations.png" not in page, (
        "the picture is missing"
    )


def test_wrong_folders_and_models_are_refused(made_up, moving_folder, tmp_path, refused):
    def call(*more):
        return lambda: operations.main(["score", "--out", str(tmp_path / "x.yaml"), *map(str, more)])

    refused(call("--data", moving_folder), "holds no operations", "operations.py read")
    refused(call("--data", made_up[1], "--models", "tiny", "tiny"), "tiny twice")
    refused(call("--data", made_up[1], "--models", "tiny-cogvlm2"), "cogvlm2", "several frames")
    refused(call("--data", made_up[1], "--clips", "0"), "is not positive")


@pytest.mark.slow
def test_a_real_model_is_asked(made_up, tmp_path):
    flags = ["--data", str(made_up[1]), "--models", "tiny", "--clips", "6", "--batch", "64"]
    found = operations.main(["score", *flags, "--out", str(tmp_path / "operations.yaml")])
    # it has been taught shapes, and no JSON
    assert found["clips"] == 6 and found["accuracy"] == 0 and found["no_json"] == 1
    # a single session says nothing of others
    assert found["answer"] == "INCONCLUSIVE" and found["tuned"] is None
    assert (tmp_path / "operations-answers.pt").is_file()
