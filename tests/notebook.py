"""The scripts as one notebook for Kaggle.

    make kaggle REPOSITORY=https://...                results/foresight.ipynb; the repository, if given, is cloned for the small models where none are attached
    python tests/notebook.py --out mine.ipynb

Its cells write every script, install what is lacking, find the small models and run a gate. Nothing of it is run here.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common import check_writable, save_text  # noqa: E402 (after the path is set)

# tiny.py trains what SMALL fetches
FILES = sorted(p.name for p in ROOT.glob("*.py") if p.name != "tiny.py")
# package: its module, where the name is another
MODULES = {"pillow": "PIL", "scikit-image": "skimage", "pyyaml": "yaml"}

INTRO = """# Foresight

Does a vision-language model carry enough to drive a video decoder, to predict what happens next, and to have that checked in pixels? Every script is a cell below, as it stands in the
repository. Fill in the next cell and run all of them. The default is a small model, an instrument check that needs no GPU (10 minutes; with `MORE = "N=40 FROZEN="` 3).
A T4 computes in fp16."""

SETTINGS = """MODEL, GATE, DATA = "tiny", "gate1", "shapes"   # MODEL: a name of the registry in models.py, or a folder
MORE = ""   # more for make: "N=40 FROZEN=", "ROOT=/kaggle/input/mine FORMAT=csv", "MEMORY=15GB"; `!make help` lists what there is
CHECKPOINTS = ""   # where results/tiny/checkpoints of the repository lies, say in an attached dataset; empty: it is cloned from
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
    assert CHECKPOINTS or REPOSITORY, "give CHECKPOINTS or REPOSITORY in the first cell: the small models are no part of this notebook"
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
    """{module: pin} of what the stages need: what stands before the tests' own."""
    pins = [
        line
        for line in requirements.partition("# the tests")[0].splitlines()
        if line and not line.startswith("#")
    ]
    return {MODULES.get(name, name): pin for pin in pins for name in [pin.partition("==")[0]]}


def notebook(repository):
    """The notebook as nbformat 4.5 wants it, a dict."""
    pins = json.dumps(needed((ROOT / "requirements.txt").read_text()), indent=4)
    files = [*FILES, "Makefile", "requirements.txt"]
    code = [
        SETTINGS.format(repository=repository),
        *(f"%%writefile {name}\n{(ROOT / name).read_text()}" for name in files),
        INSTALL.format(needed=pins),
        SMALL,
        RUN,
        HEADLINES,
    ]
    cells = [{"cell_type": "markdown", "id": "intro", "metadata": {}, "source": INTRO.splitlines(True)}]
    cells += [
        {
            "cell_type": "code",
            "id": f"cell-{k}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": text.splitlines(True),
        }
        for k, text in enumerate(code)
    ]
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="results/foresight.ipynb", help="(default: %(default)s)")
    p.add_argument(
        "--repository", default="", help="an address that the small models can be cloned from (default: none)"
    )
    args = p.parse_args(argv)
    check_writable(args.out)
    made = notebook(args.repository)
    save_text(args.out, json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    print("notebook", args.out)
    print("cells", len(made["cells"]))
    return made


if __name__ == "__main__":
    main()
