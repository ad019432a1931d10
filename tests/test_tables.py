"""Archives are checked before anything is written; tables are read one entry at a time."""

import json
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from helpers_data import put
from test_conversations import PATH, jpeg, llava, sets, talk

import tables

EVIL, NOISE = "../out/evil.jpg", np.random.default_rng(0).bytes(9000)
HOSTILE = [  # the archive, name, header and content of its last member, and words that are printed
    ("a.tar", EVIL, {}, b"", "a.tar: '../out/evil.jpg' leads out of the archive"),
    ("a.tar", "/tmp/evil.jpg", {}, b"", "leads out of the archive"),
    ("a.tar", PATH, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, b"", "1.jpg' is a link"),
    ("a.tar", "./images/0.jpg", {}, b"", "there twice"),
    ("a.tar.gz", PATH, {}, bytes(10**7), "expands beyond 1000000 bytes"),
    ("a.tar.gz", PATH, {"type": tarfile.XHDTYPE}, bytes(2**24), "a header of 16,777,216 bytes"),
    ("a.tar", PATH, {"pax_headers": {"path": EVIL}}, b"", "leads out of the archive"),
    ("cut.tar.gz", PATH, {}, NOISE, "cannot be read as an archive"),
    ("a.zip", "C:\\evil.jpg", {}, b"", "leads out of the archive"),
    ("a.zip", PATH, {"external_attr": 0o120777 << 16}, b"/etc/passwd", "is a link"),
    ("a.zip", PATH, {}, bytes(10**7), "expands beyond 1000000"),
    ("a.zip", "set.json", {}, json.dumps([llava(0, image="../../../x.jpg")]).encode(), "is not there"),
]


@pytest.mark.parametrize(("archive", "name", "header", "content", "words"), HOSTILE)
def test_a_hostile_archive_is_refused(tmp_path, printed, archive, name, header, content, words):
    member = (zipfile.ZipInfo if archive.endswith("zip") else tarfile.TarInfo)(name)
    for key, value in header.items():
        setattr(member, key, value)
    put(tmp_path, {"in/x.jpg": jpeg(0), "x.jpg": jpeg(0)})
    root = put(tmp_path / "in" / archive, {"images/0.jpg": jpeg(0), "images/0.txt": "a cat", member: content})
    if archive.startswith("cut"):
        root.write_bytes(root.read_bytes()[:-4000])
    before = sorted(tmp_path.rglob("*"))
    for flags in ([], ["--skip-bad"]):
        assert words in printed(lambda flags=flags: sets(root, None, *flags, max_bytes=10**6))
        assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/evil.jpg").exists()


@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_memory_does_not_grow_with_the_entries_of_a_table(tmp_path, name):
    entries = [talk("A?", "b" * 1000, image=None, id=str(k)) for k in range(8000)]
    path, peaks = put(tmp_path, {name: entries, f"few.{name[4:]}": entries[:4000]}) / name, []
    for table in (path.with_stem("few"), path):
        tracemalloc.start()
        assert sum(1 for _ in tables.read_table(table)) in (4000, 8000)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 2**23
