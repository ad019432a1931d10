"""The notebook for Kaggle is valid, complete, and its cells run in an empty folder as they stand."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import notebook
import pytest
from test_house import MODULES, STAGES

import common
from common import HERE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("notebook") / "foresight.ipynb"
    notebook.main(["--out", str(path), "--repository", "https://example.org/foresight"])
    return json.loads(path.read_text())


def sources(made):
    return ["".join(c["source"]) for c in made["cells"] if c["cell_type"] == "code"]


def execute(source, space):
    """Run one cell in the current folder, also %%writefile and the shell's; returns what the shell prints."""
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
    assert set(made) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (made["nbformat"], made["nbformat_minor"], str(HERE) in json.dumps(made)) == (4, 5, False)
    ids = [c["id"] for c in made["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", i) for i in ids)
    for c in made["cells"]:
        more = {"outputs": [], "execution_count": None} if c["cell_type"] == "code" else {}
        assert c == {k: c[k] for k in ("cell_type", "id", "source")} | {"metadata": {}} | more
        assert all(line.endswith("\n") and line.count("\n") == 1 for line in c["source"][:-1])


def test_only_what_is_lacking_is_installed_in_the_versions_required(made, monkeypatch, capsys):
    calls, find = [], importlib.util.find_spec
    (cell,) = (s for s in sources(made) if s.startswith("import importlib.util"))
    monkeypatch.setattr(subprocess, "run", lambda command, check: calls.append(command))
    execute(cell, space := {})
    assert calls == [] and "lacking: nothing" in capsys.readouterr().out
    pins = [line for line in (HERE / "requirements.txt").read_text().splitlines() if "==" in line]
    ours = ("pytest", "pytest-xdist", "ruff")
    assert set(space["NEEDED"].values()) == {p for p in pins if p.split("==")[0] not in ours}
    without = ("lpips", "skimage")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in without else find(name))
    execute(cell, {})
    lacking = [p for p in pins if p.startswith(("lpips", "scikit-image"))]
    assert [c[1:] for c in calls] == [["-m", "pip", "install", "-q", *lacking]]


def test_in_an_empty_folder_the_cells_write_every_script_and_start_the_gate(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space, printed = {}, []
    for source in sources(made):
        if not source.startswith("%%"):
            source = source.replace('CHECKPOINTS = ""', f'CHECKPOINTS = "{HERE}/results/tiny/checkpoints"')
            source = source.replace("make {GATE}", "make -n {GATE}")
        if source.startswith("!grep"):
            common.save_yaml("results/tiny/shapes/gate1.yaml", {"verdict": "STOP", "headline": "nothing"})
        printed.append(execute(source, space))
    written = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert written == {f"{s}.py" for s in [*STAGES, *MODULES]} | {
        "Makefile",
        "models.yaml",
        "requirements.txt",
    }
    assert all((tmp_path / name).read_bytes() == (HERE / name).read_bytes() for name in written)
    stages = [f"{s}.py" for s in ("data", "extract", "probe", "align", "adapt")]
    assert all(stage in printed[-2] for stage in [*stages, "gate.py evaluate 1"])
    assert "gate1.yaml:verdict: STOP" in printed[-1] and "gate1.yaml:headline: nothing" in printed[-1]
