"""Several questions about one picture: what the language model holds at the end of each, with the picture computed once."""

import pytest
import torch
from test_extract import folder_of, load, noise, refused, run, write_set

import extract
import families
import models
from common import load_features
from models import LOADERS, find_model

QUESTIONS = [
    "Where is the red circle?",
    "What moves?",
    "Is there a blue square to the left of the green one?",
]
FAMILIES = {
    "small_vlm": 80,
    "small_qwen2vl": 64,
    "small_qwen3vl": 64,
    "small_internvl": 48,
    "small_cogvlm2": 56,
}
FAMILIES |= {"llava": 48, "llava_next": 96, "llava_onevision": 96}


@pytest.fixture
def questions(tmp_path):
    (tmp_path / "questions.txt").write_text("\n\n".join(QUESTIONS))
    return tmp_path / "questions.txt"


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)  # stored in fp16


def last_rows(folder, frames, monkeypatch):
    """{point: [n, questions, D]} of the last row in a full pass for every question."""
    found = []
    for question in QUESTIONS:
        monkeypatch.setattr(families, "PROMPT", question)
        model, inputs_of, points = load(folder)
        batch = inputs_of(frames)
        layers = {n: point[0] for n, point in points.items() if n.startswith("language.")}
        found.append(
            {
                n: x[:, -1]
                for n, x in extract.capture(
                    model, families.on(batch, torch.device("cpu"), torch.float32), layers
                ).items()
            }
        )
    monkeypatch.undo()
    return {n: torch.stack([f[n] for f in found], 1) for n in found[0]}


@pytest.mark.parametrize("which", FAMILIES)
def test_what_is_held_at_the_end_of_a_question_is_what_a_pass_over_picture_and_question_gives(
    request, questions, tmp_path, monkeypatch, which
):
    folder, size, frames = folder_of(request, which), FAMILIES[which], noise(5, FAMILIES[which])
    data = write_set(tmp_path / "data", frames)
    more = ("--points", "all", "--size", size, "--batch", 2)
    points = run(folder, data, tmp_path / "plain", *more)["points"]
    index = run(folder, data, tmp_path / "asked", *more, "--questions", questions)
    plain, asked = load_features(tmp_path / "plain")[1], load_features(tmp_path / "asked")[1]
    for point in points:
        close(plain(point), asked(point))
    expected = last_rows(folder, frames, monkeypatch)
    assert len(expected) == 3
    for layer, x in expected.items():
        point = layer.replace("language", "asked")
        assert (
            index["points"][point]["shape"] == [1, 1, 3, x.shape[-1]]
            and index["points"][point]["grid"] is False
        )
        close(asked(point)[:, 0, 0], x)
        # both the question and the picture matter
        assert (x[:, 0] - x[:, 1]).abs().max() > 0.01 and (x[0] - x[1]).abs().max() > 1e-3


@pytest.mark.parametrize("which", ["small_vlm", "small_qwen3vl"])
def test_questions_about_a_clip(request, questions, tmp_path, monkeypatch, which):
    clips, folder = noise(2, 64, frames=4), folder_of(request, which)
    data = write_set(tmp_path / "data", clips)
    run(folder, data, tmp_path / "asked", "--points", "language.1", "--size", 64, "--questions", questions)
    asked = load_features(tmp_path / "asked")[1]("asked.1")
    assert asked.shape == (2, 1, 1, 3, 32)
    close(asked[:, 0, 0], last_rows(folder, clips, monkeypatch)["language.1"])


def test_a_model_of_single_pictures_is_asked_about_every_frame(small_internvl, questions, tmp_path):
    clips, found = noise(2, 48, frames=3), []
    for name, frames in (("clips", clips), ("frames", clips.flatten(0, 1)[:, None])):
        data = write_set(tmp_path / name / "data", frames)
        run(small_internvl, data, tmp_path / name / "out", "--points", "language.1", "--questions", questions)
        found.append(load_features(tmp_path / name / "out")[1]("asked.1"))
    assert found[0].shape == (2, 3, 1, 3, 32)
    close(found[0].flatten(0, 1)[:, None], found[1])


def test_the_picture_is_computed_once(small_vlm, questions, tmp_path, monkeypatch):
    rows = []
    model, processor = LOADERS["vlm"](find_model(str(small_vlm)))
    kind = type(model.model.language_model.layers[0])
    forward = kind.forward
    monkeypatch.setattr(
        kind, "forward", lambda self, x, *a, **k: (rows.append(x.shape[1]), forward(self, x, *a, **k))[1]
    )
    data = write_set(tmp_path / "data", noise(1, 80))
    run(small_vlm, data, tmp_path / "out", "--points", "language.0", "--size", 80, "--questions", questions)
    wordless = len(
        processor.tokenizer(models.chat(processor, "").rpartition(processor.image_token)[2]).input_ids
    )
    asked = sum(wordless + len(processor.tokenizer(question).input_ids) for question in QUESTIONS)
    assert rows[1:] == [asked] and 25 < rows[0] < 40


def test_questions_that_cannot_be_asked_are_refused(small_vlm, small_dino, questions, tmp_path, capsys):
    data = write_set(tmp_path / "data", noise(2, 48))
    ask = ("--data", data, "--out", tmp_path / "out", "--size", 48, "--questions")
    assert "causal language model" in refused(capsys, "--model", small_dino, *ask, questions)
    assert "leave --stream out" in refused(capsys, "--model", small_vlm, *ask, questions, "--stream")
    assert "names none" in refused(capsys, "--model", small_vlm, *ask, questions, "--points", "merger")
    assert "cannot be read" in refused(capsys, "--model", small_vlm, *ask, tmp_path / "nowhere.txt")
    run(small_vlm, data, tmp_path / "out", "--size", 48)
    assert "made with questions None" in refused(capsys, "--model", small_vlm, *ask, questions)
