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

STAGES = ["data", "extract", "probe", "align", "adapt", "predict", "video", "verify", "explain"]
STAGES += ["track", "tune", "operations", "gate", "report"]
MODULES = ["common", "stats", "metrics", "models", "families", "training", "synthetic", "conversations"]
MODULES += ["media", "claims", "cogvlm2"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "foresight.ipynb"
    notebook.main(["--out", str(path), "--repository", "https://example.org/foresight"])
    return json.loads(path.read_text())


def sources(made):
    return ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "code"]


def only(made, words):
    """The one code cell that says `words` and writes no file."""
    (found,) = (s for s in sources(made) if words in s and not s.startswith("%%"))
    return found


def execute(source, space):
    """One cell in the current folder: what a line of the shell or of %%writefile does there, in three lines."""
    if source.startswith("%%writefile "):
        name, _, text = source.removeprefix("%%writefile ").partition("\n")
        Path(name).write_text(text if text.endswith("\n") else text + "\n")
    elif source.startswith("!"):
        line = re.sub(r"\{(.+?)\}", lambda m: str(eval(m[1], space)), source[1:])
        done = subprocess.run(line, shell=True, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout
    else:
        exec(compile(source, "cell", "exec"), space)
    return ""


def test_the_notebook_is_valid_by_the_rules_of_version_4(made):
    assert (made["nbformat"], made["nbformat_minor"]) == (4, 5) and made["metadata"]["kernelspec"][
        "name"
    ] == "python3"
    assert set(made) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    ids = [c["id"] for c in made["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids)
    for c in made["cells"]:
        code = {"outputs": [], "execution_count": None} if c["cell_type"] == "code" else {}
        assert {k: x for k, x in c.items() if k not in ("cell_type", "id", "source")} == {
            "metadata": {}
        } | code
        assert all(line.endswith("\n") and line.count("\n") == 1 for line in c["source"][:-1])
    assert str(HERE) not in json.dumps(made)


def test_every_script_that_a_gate_needs_is_written_as_it_stands(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in sources(made):
        if source.startswith("%%writefile "):
            execute(source, {})
    scripts = {f"{s}.py" for s in [*STAGES, *MODULES]}
    assert {p.name for p in tmp_path.iterdir()} == scripts | {"Makefile", "requirements.txt"}
    assert all(p.read_bytes() == (HERE / p.name).read_bytes() for p in tmp_path.iterdir())


def test_only_what_is_lacking_is_installed_in_the_versions_required(made, monkeypatch, capsys):
    cell, calls, find = only(made, "NEEDED = "), [], importlib.util.find_spec
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    execute(cell, space := {})
    # all of it is here, so every module has its right name
    assert calls == [] and "lacking: nothing" in capsys.readouterr().out
    pins = [line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line]
    ours = ("pytest", "pytest-xdist", "ruff", "scikit-learn")
    assert set(space["NEEDED"].values()) == {p for p in pins if p.split("==")[0] not in ours}
    without = ("lpips", "skimage")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in without else find(name))
    execute(cell, {})
    lacking = [p for p in pins if p.startswith(("lpips", "scikit-image"))]
    assert [c[1:] for c in calls] == [["-m", "pip", "install", "-q", *lacking]]


def test_the_small_models_come_from_a_folder_or_a_clone_and_are_missed_by_name(made, tmp_path, monkeypatch):
    cell = only(made, "small models:")
    repository = tmp_path / "origin"
    here = Path("results/tiny/checkpoints/vlm/config.json")
    (repository / here).parent.mkdir(parents=True)
    (repository / here).write_text("{}")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)

    def fill_in(name, **given):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        execute(
            cell,
            {"MODEL": "tiny", "MORE": "", "CHECKPOINTS": "", "REPOSITORY": "", "subprocess": subprocess}
            | given,
        )
        return here.is_file()

    for _ in range(2):  # a cell may be run again
        assert fill_in("folder", CHECKPOINTS=str(repository / "results/tiny/checkpoints"))
        assert fill_in("clone", REPOSITORY=str(repository))
    assert not fill_in("other", MODEL="qwen2.5-vl-3b")
    for given, word in (({}, "give CHECKPOINTS"), ({"CHECKPOINTS": str(tmp_path)}, "does not hold")):
        with pytest.raises(AssertionError, match=word):
            fill_in("none", **given)


def test_make_writes_it_and_again_only_when_a_script_has_changed():
    ask = ["make", "-n", "kaggle", "PY=python", "-W", "common.py", "REPOSITORY=https://example.org/x"]
    told = subprocess.run(ask, cwd=HERE, capture_output=True, text=True).stdout
    assert (
        told
        == 'python tests/notebook.py --repository "https://example.org/x" --out results/foresight.ipynb\n'
    )


@pytest.mark.slow
def test_the_notebook_runs_gate_1_in_an_empty_folder(made, tmp_path, monkeypatch, capsys):
    """Three minutes. The settings are filled in as a person would; all else is executed as it stands."""
    monkeypatch.chdir(tmp_path)
    for name, value in (("PYTHONPATH", ""), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setenv(name, value)
    space, printed, checkpoints = {}, [], HERE / "results/tiny/checkpoints"
    for source in sources(made):
        if not source.startswith("%%"):
            source = source.replace('\nMORE = ""', '\nMORE = "N=40 FROZEN="')
            source = source.replace('\nCHECKPOINTS = ""', f'\nCHECKPOINTS = "{checkpoints}"')
        printed.append(execute(source, space))
    assert "lacking: nothing" in capsys.readouterr().out and space["MORE"] == "N=40 FROZEN="
    verdict = common.load_yaml("results/tiny/shapes/gate1.yaml")
    assert f"verdict {verdict['verdict']}" in printed[-2]
    assert "small weights, synthetic data" in verdict["headline"] and verdict["headline"][:40] in printed[-1]
    assert f"results/tiny/shapes/gate1.yaml:verdict: {verdict['verdict']}" in printed[-1]
    assert common.load_yaml("data/shapes/index.yaml")["items"] == 40
