"""Files come back as they were or exit with code 2; a source is in one split; items keep their order."""

import math
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import plant_features

import common


def test_the_split_of_a_source_never_changes_and_has_parts_of_60_20_20():
    # the first 8 digits of `printf %s NAME | sha256sum`, modulo 100: 7, 55, 67, 63, 43
    names = ("cat", "dog", "video-3", "photo.jpg", 7, "test:cat", "val:7")
    expected = ["train", "train", "val", "val", "train", "test", "val"]
    assert [common.split_of(name) for name in names] == expected
    splits = [common.split_of(f"source-{i}") for i in range(5000)]
    shares = {s: round(splits.count(s) / 5000, 1) for s in ("train", "val", "test")}
    assert shares == {"train": 0.6, "val": 0.2, "test": 0.2}


def test_every_item_is_in_one_split_and_a_source_in_one_split_too(refused):
    items = [{"id": f"{s}-{k}", "source": f"video-{s}"} for k in range(3) for s in range(60)]
    parts = common.split_indices(items, "a folder")
    sources = [{items[i]["source"] for i in part.tolist()} for part in parts.values()]
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(180))
    assert sum(len(s) for s in sources) == len(set.union(*sources)) == 60
    refused(lambda: common.split_indices([{"source": "one"}] * 50, "f"), "use more items")


def items_of_noise(key="frames", blank=()):
    """Sixty items with an image of noise each, of a single colour at the indices in `blank`."""
    noise = torch.randint(0, 256, (60, 1, 8, 8, 3), generator=torch.Generator().manual_seed(0)).byte()
    images = [torch.full_like(x, 7) if i in blank else x for i, x in enumerate(noise)]
    return [{"id": f"item-{i}", "source": f"item-{i}", key: x} for i, x in enumerate(images)]


def first_in(items, split):
    return next(i for i in items if common.split_of(i["source"]) == split)


@pytest.mark.parametrize("key", ["frames", "encoded"])
def test_one_image_or_one_id_in_train_and_test_is_a_split_leak(refused, key):
    items = items_of_noise(key)
    a, b = first_in(items, "train"), first_in(items, "test")
    b[key] = a[key].clone()
    words = "split leak", a["id"], b["id"], "some/folder", "the same source"
    refused(lambda: common.split_indices(items, "some/folder"), *words)
    b["source"] = a["source"]  # the remedy of the message
    common.split_indices(items, "some/folder")
    items[5]["id"] = items[3]["id"]
    refused(lambda: common.split_indices(items, "some/folder"), "split leak", "item-3", "more than once")


def test_images_that_differ_in_one_byte_or_have_one_colour_are_no_split_leak():
    items = items_of_noise(blank=range(10, 40))
    items[45]["frames"] = items[44]["frames"].clone()
    items[45]["frames"][0, 7, 7, 2] ^= 1
    assert common.twins(items) == []


TEXTS = ["no", "1e-6", "1.5", "2026-01-02", "null", "~", "", "a: b # c", "two\nlines", "é"]
NUMBERS = [1e-6, 1e22, -2.5e-9, 3.0, math.inf, -math.inf, 10**12, True, False, None, [], {}]
NATIVE = [0.5, 3, True, [1.5, 2.0], "a/b", [[1, 2]], str(torch.__version__), {"3": {"x": 1.0}}]
FOREIGN = [np.float32(0.5), np.int64(3), np.bool_(True), np.array([1.5, 2.0]), Path("a/b")]
FOREIGN += [torch.tensor([[1, 2]]), torch.__version__, {3: {"x": np.float64(1)}}]


def test_yaml_gives_back_the_value_and_the_type(tmp_path):
    for given, back in zip([*FOREIGN, *TEXTS, *NUMBERS], [*NATIVE, *TEXTS, *NUMBERS], strict=True):
        common.save_yaml(tmp_path / "x.yaml", {"stage": "s", "value": given, "nan": np.float64("nan")})
        content = common.load_yaml(tmp_path / "x.yaml", "s")
        found = content["value"]
        assert found == back and type(found) is type(back) and math.isnan(content["nan"])


def test_a_yaml_that_is_missing_or_broken_or_of_another_stage_is_refused(tmp_path, refused):
    path = tmp_path / "probe.yaml"
    refused(lambda: common.load_yaml(path, "probe"), path, "probe.py")
    for text in ("{", "just words", "", "[1, 2]"):
        path.write_text(text)
        refused(lambda: common.load_yaml(path), path)
    path.write_text("stage: align\nschema: v0\n")
    refused(lambda: common.load_yaml(path, "probe"), path, "align", "probe")
    refused(lambda: common.load_yaml(path, "align", "v1"), path, "'v0'", "'v1'")


def test_tensors_come_back_as_they_were_and_a_broken_file_or_other_schema_is_refused(tmp_path, refused):
    x, path = (
        torch.randn(30, 40, generator=torch.Generator().manual_seed(0)).half(),
        tmp_path / "deep" / "x.pt",
    )
    common.save_pt(path, "s.v1", ["a", "b", "c"], {"path": Path("p")}, x=x)
    found = common.load_pt(path, "s.v1")
    assert torch.equal(found["x"], x) and found["x"].dtype == torch.float16
    assert found["ids"] == ["a", "b", "c"] and found["meta"] == {"path": "p"}
    refused(lambda: common.load_pt(path, "s.v2"), path, "s.v1", "s.v2")
    path.write_bytes(path.read_bytes()[:999])
    refused(lambda: common.load_pt(path, "s.v1"), path, "cannot be read")
    # a class outside torch's list of safe ones would run code
    torch.save({"schema": "s.v1", "x": Path("a")}, path)
    refused(lambda: common.load_pt(path, "s.v1"), "cannot be read")


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    common.save_pt(path, "s.v1", ["old"], {})
    before = path.read_bytes()

    def half(content, f):
        f.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        common.save_pt(path, "s.v1", ["new"], {})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.pt"]


def test_an_unwritable_place_and_an_unknown_name_are_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    refused(lambda: common.check_writable(tmp_path / "file" / "deep" / "out.yaml"), "out.yaml", "--out")
    refused(lambda: common.check_writable(tmp_path), tmp_path)
    common.check_writable(tmp_path / "new" / "out.yaml")
    assert list((tmp_path / "new").iterdir()) == []
    refused(lambda: common.check_choice("shape", {"shapes": 1}, "set"), "Did you mean 'shapes'?")
    refused(lambda: common.positive(SimpleNamespace(fps=3, count=0), "fps", "count"), "--count 0")


def some_items(n, text=""):
    frames = (torch.full((1, 4, 4, 3), i % 256, dtype=torch.uint8) for i in range(n))
    return [{"id": f"{text}{i}", "source": f"s{i // 2}", "frames": x} for i, x in enumerate(frames)]


def test_items_come_back_in_order_and_stale_shards_are_deleted(tmp_path):
    common.write_items(tmp_path, some_items(common.SHARD * 2 + 3, "old"), {"name": "x"})
    common.write_items(tmp_path, iter(some_items(common.SHARD + 1)), {"name": "x"})
    items, index = common.load_items(tmp_path)
    assert [i["id"] for i in items] == [str(i) for i in range(common.SHARD + 1)] == index["ids"]
    assert (index["items"], index["shards"], len(list(tmp_path.glob("*.pt")))) == (common.SHARD + 1, 2, 2)
    splits = [common.split_of(i["source"]) for i in items]
    assert all(index[s] == splits.count(s) for s in ("train", "val", "test")) and index["sources"] == 33
    assert (items[5]["frames"] == 5).all()


def test_items_are_read_one_at_a_time_with_few_shards_open(tmp_path):
    n = common.SHARD * 6 + 3
    common.write_items(tmp_path, some_items(n), {"name": "x"})
    items, whole = common.Items(tmp_path), common.load_items(tmp_path)[0]
    assert items.ids == [i["id"] for i in whole] and items.sources == [i["source"] for i in whole]
    for k in (n - 1, 0, 70, -1, 200, 0):
        assert items[k]["id"] == whole[k]["id"] and torch.equal(items[k]["frames"], whole[k]["frames"])
    del whole
    assert [i["id"] for i in items] == items.ids  # reads every shard
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = {line.split()[-1] for line in maps if str(tmp_path) in line}
    assert 1 <= len(mapped) <= 5, mapped  # four, and that of the last item


def test_incomplete_empty_and_mixed_folders_are_refused(tmp_path, refused):
    def broken():
        yield from some_items(common.SHARD + 1, "new")
        raise KeyboardInterrupt

    for name, items in (("cut", some_items(3)), ("none", []), ("a", some_items(3))):
        common.write_items(tmp_path / name, items, {"name": "x"})
    with pytest.raises(KeyboardInterrupt):
        common.write_items(tmp_path / "cut", broken(), {"name": "x"})
    refused(lambda: common.load_items(tmp_path / "cut"), "index.yaml", "does not exist")
    refused(lambda: common.load_items(tmp_path / "none"), "holds no items")
    common.write_items(tmp_path / "b", some_items(3, "other"), {"name": "x"})
    (tmp_path / "b" / "00000.pt").rename(tmp_path / "a" / "00000.pt")
    refused(lambda: common.load_items(tmp_path / "a"), "run data.py again")


def test_features_are_read_in_fp32_and_refused_if_not_finite_or_of_other_items(tmp_path, refused):
    good = torch.arange(24.0).view(2, 1, 2, 2, 3)
    x = good.clone()
    x[1, 0, 0, 0, 0] = float("inf")
    points = {"layer.0": good, "layer.1": x, "queries": torch.ones(2, 1, 1, 4, 3)}
    plant_features(tmp_path, ["a", "b"], points, "data/x", gridless=["queries"])
    index, read = common.load_features(tmp_path)
    assert read("layer.0").dtype == torch.float32 and common.with_grid(index) == ["layer.0", "layer.1"]
    assert torch.equal(read("layer.0", [1, 0], slice(1, 3)), good[[1, 0]].flatten(1, 3)[:, 1:3])
    parts = list(read.token_slices("layer.0", [1, 0], 48))  # 2 items x 2 tokens x 3 numbers x 4 bytes
    assert [part.shape[1] for part in parts] == [2, 2]
    assert torch.equal(torch.cat(parts, 1), good[[1, 0]].flatten(1, 3))
    refused(lambda: read("layer.1"), "layer.1", "1 non-finite")
    common.save_pt(tmp_path / "layer.0/00000.pt", common.FEATURES, ["b", "a"], {}, features=x)
    refused(lambda: common.load_features(tmp_path)[1]("layer.0"), "other ids")
    assert [i["id"] for i in common.join([{"id": "b"}, {"id": "a"}], index, "f")] == ["a", "b"]
    refused(lambda: common.join([{"id": "a"}], index, "some/folder"), "'b'", "some/folder", "data/x")


def test_the_dtype_follows_the_compute_capability_and_memory_has_a_limit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert common.choose_device()[:2] == (torch.device("cpu"), torch.float32)
    assert (common.memory_size("15GB"), common.memory_size("800mb")) == (15e9, 8e8)
    assert common.memory_left(torch.device("cpu"), 1) < 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert common.choose_device()[1] == dtype


def test_every_result_names_its_versions_its_script_and_the_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 2e9)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    (tmp_path / "version").write_text("NVRM version: NVIDIA Kernel Module  580.65.06  Sun Jul 27\n")
    monkeypatch.setattr(common, "DRIVER", str(tmp_path / "version"))
    run = common.run_info(SimpleNamespace(seed=3, lr=0.1), 0, "extract.py", shards=2)
    assert run["versions"]["scikit-image"] == version("scikit-image")
    assert (run["gpu"], run["peak_gpu_gb"], run["shards"]) == ("Tesla T4", 2, 2)
    assert (run["versions"]["cuda"], run["versions"]["driver"]) == ("13.2", "580.65.06")
    assert run["arguments"] == {"seed": 3, "lr": 0.1} and run["seed"] == 3 and run["seconds"] > 1e9
    assert len(run["script_sha256"]) == 16 and 0.01 < run["peak_memory_gb"] < 1000


def test_interruptions_and_exhausted_memory_end_in_one_sentence(monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(common.os, "_exit", codes.append)
    for error in (KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()):
        common.end_in_words(type(error), error, None)
    said = capsys.readouterr().err.splitlines()
    assert codes == [130, 2, 2] and len(said) == 3 and "--batch" in said[1] and "CUDA" in said[1]


def test_a_driver_that_torch_cannot_use_is_refused_unless_the_gpu_is_hidden(tmp_path, monkeypatch, refused):
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12000).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "version").write_text("NVRM version: 525.1")
    monkeypatch.setattr(common, "DRIVER", str(tmp_path / "version"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert common.choose_device()[0].type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    refused(common.choose_device, "too old", "CUDA_VISIBLE_DEVICES=")
