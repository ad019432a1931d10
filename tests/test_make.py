"""What make does, and does again: the real Makefile, with a program instead of Python that just writes."""

import os
import re
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
FAKE = """#!/bin/sh
echo "$@" >> log
if [ "$1" = -m ] && [ -e refused ]; then exit 2; fi
job=$2
while [ $# -gt 0 ]; do
  if [ "$1" = --out ] || [ "$1" = --choose ]; then out=$2; fi
  shift
done
case "$job:$out" in
  *: | *.yaml | *.pt) ;;
  words:*) out=$out/tune-words.yaml ;;
  train:*) out=$out/tune.yaml ;;
  screen:*) out=$out/screen.yaml ;;
  *) out=$out/index.yaml ;;
esac
if [ -n "$out" ]; then
  mkdir -p "${out%/*}"
  for key in linear_r2_layer points; do echo "$key: $(cat layer 2> /dev/null)"; done > "$out"
fi
"""


@pytest.fixture
def make(tmp_path):
    """make(*arguments) -> the commands that ran, without the verdict's print; make.says: what it printed."""
    for file in [*HERE.glob("*.py"), HERE / "Makefile", HERE / "requirements.txt"]:
        shutil.copy(file, tmp_path)
        os.utime(tmp_path / file.name, (1e9, 1e9))
    fake = tmp_path / "python"
    fake.write_text(FAKE)
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)

    def run(*arguments, status=0):
        (tmp_path / "log").write_text("")
        command = ["make", f"PY={fake}", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        run.says = done.stdout + done.stderr
        assert done.returncode == status, run.says
        ran = (tmp_path / "log").read_text().splitlines()
        return [c for c in ran if not c.startswith(("gate.py show", "report.py", "-m answering"))]

    run.folder = tmp_path
    return run


def test_what_a_model_cannot_do_is_refused_before_anything_is_made(make):
    touch(make, "refused")
    assert make("-j2", "gate3", "tune", "MODEL=other", "SEES=tiny", status=2) == []
    assert (make.folder / "log").read_text().splitlines() == ["-m answering gate3 tune other tiny"]


def scripts(commands):
    return {c.split()[0] for c in commands}


def touch(make, name):
    time.sleep(0.02)
    (make.folder / name).touch()


def would(make, *arguments):
    """The commands that `make -n` prints."""
    make("-n", *arguments)
    lines = re.findall(rf"^{re.escape(str(make.folder))}/python (.*)$", make.says, re.M)
    lines = [line for line in lines if not line.startswith("-m answering")]
    return [line.replace(">/dev/null", "").replace('"', "").rstrip() for line in lines]


STAGES = ["data", "extract", "probe", "align", "adapt", "predict", "video", "verify", "explain", "track"]
STAGES += ["tune"]
ALL = ("gate1", "gate2", "gate3", "gate4")


def test_every_target_runs_every_stage_once_and_then_nothing(make):
    targets = [*ALL, "align", "resolution", "binding", "explain", "tune"]
    first = make(*targets)
    assert len(first) == len(set(first)) and {f"{s}.py" for s in STAGES} <= scripts(first)
    assert make(*targets) == [] and not set(would(make, *targets)) & set(first)


OTHERS = [("screen", "MODELS=tiny tiny-dinov2"), ("binding", "DATA=moving"), ("tune", "DATA=trajectories-8")]


@pytest.mark.parametrize("arguments", [*OTHERS, ("gate1", "gate3", "DATA=moving")])
def test_other_models_and_data_go_through_the_stages_too(make, arguments):
    first = make(*arguments)
    assert len(first) == len(set(first)) > 3 and make(*arguments) == []


def test_seed_and_n_have_folders_of_their_own_and_destroy_nothing(make):
    plain = make("gate1")
    seeded, few = make("gate1", "SEED=1"), make("gate1", "N=40")
    assert len(seeded) == len(few) == len(plain)
    assert all("-s1" in c and "--seed 1" in c for c in seeded if c.startswith(("data", "extract", "probe")))
    assert any(c == "data.py shapes --n 40 --preview --seed 0 --out data/shapes-n40" for c in few)
    for arguments in ([], ["SEED=1"], ["N=40"]):
        assert make("gate1", *arguments) == []


@pytest.mark.parametrize(
    ("gate", "change", "again", "kept"),
    [
        ("gate1", "VAE=other", {"extract.py", "probe.py", "align.py", "adapt.py", "gate.py"}, {"data.py"}),
        ("gate1", "ENCODER=other", {"extract.py", "adapt.py", "gate.py"}, {"data.py", "align.py"}),
        ("gate1", "POINTS=last", {"extract.py", "probe.py", "align.py", "adapt.py", "gate.py"}, {"data.py"}),
        ("gate1", "FROZEN=first", {"probe.py", "gate.py"}, {"data.py", "extract.py", "adapt.py"}),
        ("gate1", "SET=bbox_iou=0.4", {"gate.py"}, {"probe.py", "extract.py", "adapt.py", "align.py"}),
        ("gate3", "FRAMES=32", {"data.py", "extract.py", "predict.py", "video.py", "gate.py"}, set()),
        ("gate3", "HORIZON=8", {"data.py", "video.py", "gate.py"}, set()),
        ("gate3", "VIDEO=other", {"video.py", "explain.py", "gate.py"}, {"predict.py", "extract.py"}),
        ("gate4", "PLANTED_POINTS=last", {"extract.py", "verify.py", "gate.py"}, {"video.py", "data.py"}),
        ("explain", "LM=other", {"tune.py", "explain.py"}, {"track.py", "data.py"}),
        ("tune", "TUNE=--epochs 1", {"tune.py", "operations.py"}, {"data.py"}),
    ],
)
def test_another_value_makes_again_what_depends_on_it_and_so_does_the_way_back(
    make, gate, change, again, kept
):
    make(gate)
    planned, done = would(make, gate, change), make(gate, change)
    assert again <= scripts(done) and not kept & scripts(done), done
    assert set(done) <= set(planned)
    assert make(gate, change) == []
    back = make(gate)  # what was overwritten is made again
    assert "gate.py" in scripts(back) or gate in ("explain", "tune")
    assert make(gate) == []


@pytest.mark.parametrize(
    ("script", "again"),
    [
        ("report.py", set()),
        ("extract.py", set()),
        ("adapt.py", set()),
        ("video.py", set()),
        ("probe.py", {"probe.py", "gate.py"}),
        ("gate.py", {"gate.py"}),
        ("align.py", {"align.py", "gate.py"}),
        ("common.py", {"probe.py", "align.py", "predict.py", "verify.py", "explain.py", "gate.py"}),
    ],
)
def test_an_edited_script_makes_again_what_is_cheap_and_warns_of_what_is_costly(make, script, again):
    make(*ALL)
    touch(make, script)
    planned = would(make, *ALL)
    assert scripts(c for c in planned if not c.startswith("gate.py show")) == again
    assert scripts(make(*ALL)) == again
    assert not any("ask" in c or "describe" in c for c in planned)
    assert (f"warning: {script} is newer than results/tiny/" in make.says) == (
        script in ("extract.py", "adapt.py", "video.py")
    )


def test_another_layer_trains_adapters_and_extracts_the_untrained_network_again_a_newer_file_does_not(make):
    make("gate1")
    (make.folder / "results/tiny/shapes/align.yaml.args").unlink()  # made again without its command
    assert "align.py" in scripts(make("gate1"))
    touch(make, "align.py")
    assert scripts(make("gate1")) == {"align.py", "gate.py"}
    (make.folder / "layer").write_text("language.2")
    touch(make, "align.py")
    ran = make("gate1")
    assert "adapt.py" in scripts(ran) and any("--random-init --points-of" in c for c in ran)


def test_ones_own_data_are_read_with_the_flags_given_and_then_used_without_them(make):
    own = ["DATA=mine", "ROOT=photos", "FORMAT=coco", "ANNOTATIONS=boxes.json", "SKIP_BAD=1"]
    read = make("gate1", *own)[0]
    assert read.startswith("data.py coco ") and "--preview --seed 0 --out data/mine" in read
    assert "--root photos" in read and "--annotations boxes.json" in read and "--skip-bad" in read
    assert make("gate1", "DATA=mine") == []
    few = make("gate1", *own, "N=40")
    assert "--n 40" in few[0] and "--out data/mine-n40" in few[0] and any("data/moving-n40" in c for c in few)
    assert make("gate1", "DATA=mine", "N=40") == []
    assert not any("data/moving" in c for c in make("gate1", *own, "N=1000"))  # 200 clips, as without N
    clips = make("gate3", "DATA=ssv2", "ROOT=videos", "FRAMES=25", "FPS=12")[0]
    assert clips.startswith("data.py ssv2 ") and "--frames 25 --fps 12" in clips


def test_data_that_are_not_there_cost_one_sentence(make):
    make("gate1", "DATA=mine", status=2)
    assert "data/mine/index.yaml does not exist; give ROOT=folder and FORMAT=" in make.says


def test_a_model_folder_is_called_by_its_last_name_and_a_tuned_adapter_by_model_and_data(make):
    assert any("--model /models/My-VLM " in c for c in make("gate1", "MODEL=/models/My-VLM"))
    assert (make.folder / "results/My-VLM/shapes/gate1.yaml").exists()
    would(make, "gate1", "MODEL=/kaggle/7b-instruct/transformers/3b/1/2")
    assert "results/3b/shapes/gate1.yaml" in make.says
    adapter = "results/tiny/mine/tuned/adapter"
    (make.folder / adapter).mkdir(parents=True)
    (make.folder / adapter / "weights.yaml").write_text("weights: small\n")
    ran = make("gate1", f"MODEL={adapter}")
    assert any(f"--model {adapter} " in c for c in ran) and not any("ltx" in c for c in ran)
    assert (make.folder / "results/tiny-mine-tuned/shapes/gate1.yaml").exists()


def test_launcher_and_memory_reach_the_stage_and_change_no_result(make):
    make("gate1")
    assert make("gate1", "MEMORY=8", f"LAUNCH={make.folder}/python") == []
    ran = make("gate1", "SEED=3", "MEMORY=8", f"LAUNCH={make.folder}/python --nproc 2")
    assert all(c.startswith("--nproc 2 ") for c in ran if "extract.py" in c or "adapt.py" in c)
    assert all(c.endswith("--max-memory 8") for c in ran if "extract.py" in c)


def test_strict_reaches_the_verdict_and_help_lists_targets_and_defaults(make):
    make("gate1")
    subprocess.run(["make", "gate1", f"PY={make.folder}/python", "STRICT=1"], cwd=make.folder, check=True)
    assert "gate.py show results/tiny/shapes/gate1.yaml --strict" in (make.folder / "log").read_text()
    make()
    assert "make gate1" in make.says and "ENCODER=tiny-dinov2" in make.says


def test_the_makefile_is_short_and_plain():
    lines = (HERE / "Makefile").read_text().splitlines()
    assert len(lines) <= 220 and max(map(len, lines)) <= 110
    assert not re.search(r"\$\(eval|\$\{eval|^define\b", "\n".join(lines), re.M)
    # a comment that touches a word is part of it
    assert not [line for line in lines if re.search(r"^[^#]*[^ #]##", line) and "grep" not in line]
