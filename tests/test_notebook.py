"""The notebook for Kaggle: valid, complete, and it runs a gate from an empty folder. Its cells are executed as they stand, magic lines by a few of our own."""
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import notebook
import pytest

import common
from common import HERE

STAGES = ["data", "extract", "probe", "align", "adapt", "predict", "verify", "explain"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "foresight.ipynb"
    notebook.main(["--out", str(path), "--repository", "https://example.org/foresight"])
    return json.loads(path.read_text())


def sources(made):
    return ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "code"]


def only(made, words):
    """The one code cell that says `words` and writes no file."""
    found, = (s for s in sources(made) if words in s and not s.startswith("%%"))
    return found


def execute(source, space):
    """One cell in the current folder: what a line of the shell or of %%writefile does there, in three lines."""
    if source.startswith("%%writefile "):
        name, _, text = source.removeprefix("%%writefile ").partition("\n")
        Path(name).write_text(text if text.endswith("\n") else text + "\n")
        return ""
    if source.startswith("!"):
        done = subprocess.run(re.sub(r"\{(.+?)\}", lambda m: str(eval(m[1], space)), source[1:]), shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
    exec(compile(source, "cell", "exec"), space)
    return ""


def test_the_notebook_is_valid_by_the_rules_of_version_4(made):
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5)
    assert set(made) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert made["metadata"]["kernelspec"]["name"] == "python3"
    assert made["metadata"]["kernelspec"]["display_name"]
    ids = [c["id"] for c in made["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids)
    for c in made["cells"]:
        assert set(c) == {"cell_type", "id", "metadata", "source"} | ({"outputs", "execution_count"} if c["cell_type"] == "code" else set())
        assert all(line.endswith("\n") and line.count("\n") == 1 for line in c["source"][:-1])
        assert c["metadata"] == {}
        assert c["cell_type"] == "markdown" or (c["outputs"], c["execution_count"]) == ([], None)
    assert str(HERE) not in json.dumps(made)


def test_every_script_that_a_gate_needs_is_written_as_it_stands(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in sources(made):
        if source.startswith("%%writefile "):
            execute(source, {})
    assert {p.name for p in tmp_path.iterdir()} == {f"{s}.py" for s in [*STAGES, "common", "cogvlm2"]} | {"Makefile", "requirements.txt"}
    assert all(p.read_bytes() == (HERE / p.name).read_bytes() for p in tmp_path.iterdir())


def test_only_what_is_lacking_is_installed_in_the_versions_required(made, monkeypatch, capsys):
    cell, calls, find = only(made, "NEEDED = "), [], importlib.util.find_spec
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    execute(cell, space := {})
    # all of it is here, so every module has its right name
    assert calls == [] and "lacking: nothing" in capsys.readouterr().out
    pins = [line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line]
    assert set(space["NEEDED"].values()) == {p for p in pins if p.split("==")[0] not in ("pytest", "pytest-xdist", "ruff", "scikit-learn")}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("lpips", "skimage") else find(name))
    execute(cell, {})
    assert [c[1:] for c in calls] == [["-m", "pip", "install", "-q", *(p for p in pins if p.startswith(("lpips", "scikit-image")))]]


def test_the_small_models_come_from_a_folder_or_a_clone_and_are_missed_by_name(made, tmp_path, monkeypatch):
    cell, repository = only(made, "small models:"), tmp_path / "origin"
    (repository / "results/tiny/checkpoints/vlm").mkdir(parents=True)
    (repository / "results/tiny/checkpoints/vlm/config.json").write_text("{}")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", *command], cwd=repository, check=True)
    here = Path("results/tiny/checkpoints/vlm/config.json")
    for name, given, there in (("folder", {"CHECKPOINTS": str(repository / "results/tiny/checkpoints")}, True), ("clone", {"REPOSITORY": str(repository)}, True),
                               ("other", {"MODEL": "qwen2.5-vl-3b"}, False)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        for _ in range(2):  # a cell may be run again
            execute(cell, {"MODEL": "tiny", "MORE": "", "CHECKPOINTS": "", "REPOSITORY": "", "subprocess": subprocess} | given)
        assert here.is_file() == there
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path / "none")
    for given, word in (({}, "give CHECKPOINTS"), ({"CHECKPOINTS": str(tmp_path)}, "does not hold")):
        with pytest.raises(AssertionError, match=word):
            execute(cell, {"MODEL": "tiny", "MORE": "", "CHECKPOINTS": "", "REPOSITORY": "", "subprocess": subprocess} | given)


def test_make_writes_it_and_again_only_when_a_script_has_changed():
    told = subprocess.run(["make", "-n", "kaggle", "PY=python", "-W", "common.py", "REPOSITORY=https://example.org/x"], cwd=HERE, capture_output=True, text=True).stdout
    assert told == 'python tests/notebook.py --repository "https://example.org/x" --out results/foresight.ipynb\n'


@pytest.mark.slow
def test_the_notebook_runs_gate_1_in_an_empty_folder(made, tmp_path, monkeypatch, capsys):
    """Three minutes: every stage on 40 pictures and 40 clips. The settings are filled in as a person would; all else is executed as it stands."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("PYTHONPATH", ""), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    space, printed = {}, []
    for source in sources(made):
        for setting, value in (("MORE", "N=40 FROZEN="), ("CHECKPOINTS", str(HERE / "results/tiny/checkpoints"))):
            source = source if source.startswith("%%") else source.replace(f'\n{setting} = ""', f'\n{setting} = "{value}"')
        printed.append(execute(source, space))
    assert "lacking: nothing" in capsys.readouterr().out and space["MORE"] == "N=40 FROZEN="
    verdict = common.load_yaml("results/tiny/shapes/gate1.yaml")
    assert f"verdict {verdict['verdict']}" in printed[-2]
    assert "small weights, synthetic data" in verdict["headline"]
    assert f"results/tiny/shapes/gate1.yaml:verdict: {verdict['verdict']}" in printed[-1]
    assert verdict["headline"][:40] in printed[-1]
    assert common.load_yaml("data/shapes/index.yaml")["items"] == 40
    assert verdict["run"]["arguments"]["gate"] == 1
