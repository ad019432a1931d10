"""The scripts as one notebook for Kaggle.

    make kaggle REPOSITORY=https://...   results/foresight.ipynb; the small models are cloned from there
    python tests/notebook.py --out mine.ipynb

Its cells write every script, install missing packages, find the small models and run a gate.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import HERE, check_writable, save_text

# tiny.py trains the models that SMALL fetches
FILES = [p.name for p in sorted(HERE.glob("[a-z]*.[pty]*")) if p.stem not in ("tiny", "ruff")] + ["Makefile"]
# package: its module, where the name is another
MODULES = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn", "pyyaml": "yaml"}

INTRO = """# Foresight

Does a vision-language model carry enough to drive a video decoder, to predict what happens next, and to have
the prediction checked in pixels? Every script is a cell below. Fill in the next cell and run all of them. The
default is a small model, an instrument check that needs no GPU (10 minutes; with `MORE = "N=40 FROZEN="` 3).
A T4 computes in fp16."""

SETTINGS = """MODEL, GATE, DATA = "tiny", "gate1", "shapes"   # MODEL: a name of the registry, or a folder
MORE = ""   # more for make: "N=40 FROZEN=", "ROOT=/kaggle/input/mine FORMAT=csv"; see `!make help`
CHECKPOINTS = ""   # the repository's results/tiny/checkpoints, say in an attached dataset; empty: cloned from
REPOSITORY = "{repository}"   # which needs the internet, to be allowed in the notebook's settings"""

INSTALL = """import importlib.util
import subprocess
import sys

NEEDED = {needed}
lacking = [pin for module, pin in NEEDED.items() if importlib.util.find_spec(module) is None]
print("lacking:", *lacking or ["nothing"])
if lacking:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *lacking], check=True)"""

SMALL = """from pathlib import Path

here = Path("results/tiny/checkpoints")
if "tiny" in MODEL + MORE and not here.exists():
    assert CHECKPOINTS or REPOSITORY, "give CHECKPOINTS or REPOSITORY in the first cell, for the small models"
    if not CHECKPOINTS:
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, "repository"], check=True)
    folder = Path(CHECKPOINTS or "repository/results/tiny/checkpoints").resolve()
    assert (folder / "vlm").is_dir(), f"{folder} does not hold the small models"
    here.parent.mkdir(parents=True, exist_ok=True)
    here.symlink_to(folder)
print("small models:", *sorted(p.name for p in here.glob("*")))"""

RUN = "!make {GATE} PY={sys.executable} MODEL={MODEL} DATA={DATA} {MORE}"
HEADLINES = "!grep -rE '^(verdict|headline):' results --include=*.yaml"


def needed(requirements):
    """{module: pin} of the packages that the stages need: those before the tests' own."""
    lines = requirements.partition("# the tests")[0].splitlines()
    pins = {pin.partition("==")[0]: pin for pin in lines if pin and not pin.startswith("#")}
    return {MODULES.get(name, name): pin for name, pin in pins.items()}


def notebook(repository):
    """The notebook of nbformat 4.5, a dict."""
    pins = json.dumps(needed((HERE / "requirements.txt").read_text()), indent=4)
    code = [SETTINGS.format(repository=repository)]
    code += [f"%%writefile {name}\n{(HERE / name).read_text()}" for name in FILES]
    code += [INSTALL.format(needed=pins), SMALL, RUN, HEADLINES]
    cells = [{"cell_type": "markdown", "id": "intro", "metadata": {}, "source": INTRO.splitlines(True)}]
    for k, text in enumerate(code):
        cell = {"cell_type": "code", "id": f"cell-{k}", "metadata": {}, "source": text.splitlines(True)}
        cells.append(cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="results/foresight.ipynb", help="(default: %(default)s)")
    p.add_argument("--repository", default="", help="to clone the small models from (default: none)")
    args = p.parse_args(argv)
    check_writable(args.out)
    made = notebook(args.repository)
    save_text(args.out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print("notebook", args.out)
    print("cells", len(made["cells"]))
    return made


if __name__ == "__main__":
    main()
