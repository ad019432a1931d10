"""Archives (.zip, .tar) and tables (JSON, CSV, TSV, parquet) of entries, read one at a time."""

import contextlib
import csv
import itertools
import json
import os
import re
import stat
import tarfile
import zipfile

from common import fail
from media import Unusable

TABLES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
END = object()  # of an iterator

# ---------------------------------------------------------------- archives


class ShortHeader(tarfile.TarInfo):
    """A tar header. tarfile reads extensions of it (long names, pax) into memory."""

    def _proc_member(self, archive):
        if not self.isreg() and self.size > 2**20:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)


def members_of(archive):
    """Yield (member, name, bytes, is it a file or folder) of an archive. ReadError if its end is missing."""
    if isinstance(archive, zipfile.ZipFile):
        for member in archive.infolist():
            plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            yield member, member.filename, member.file_size, plain and not member.flag_bits & 1
        return
    while member := archive.next():
        archive.members.clear()  # or every header stays in memory
        yield member, member.name, member.size, member.isdir() or (member.isreg() and not member.issparse())
    tail = archive.fileobj.read(2**20)  # to the checksum of a compressed file
    if len(tail) < 512 or any(tail):
        raise tarfile.ReadError("it is truncated, or holds data after its end")


def safe_members(archive, path, max_bytes):
    """Yield the members of an archive. Exit 2 at one that is not a file of plausible size inside it."""
    names, total = set(), 0
    limit = min(max_bytes, max(2**30, 200 * path.stat().st_size))  # text compresses to about a tenth
    for member, name, size, plain in members_of(archive):
        total += size
        parts = re.split(r"[\\/]", name)
        if not parts[0] or parts[0][1:2] == ":" or ".." in parts:
            fail(f"{path}: {name!r} leads out of the archive; do not use it")
        if not plain or (os.path.normpath(name) in names and parts[-1]):
            fail(f"{path}: {name!r} is a link, a device, encrypted or there twice; do not use it")
        if total > limit:
            fail(f"{path} expands beyond {limit} bytes; unpack it, or raise --max-bytes")
        names.add(os.path.normpath(name))
        yield member


def unpack(path, folder, max_bytes):
    """A folder or file as it is; a .tar or .zip unpacked into `folder`. Exit 2 at an unsafe member."""
    if not path.exists():
        fail(f"{path} does not exist; give a JSON, CSV, parquet, .tar or .zip file, or a folder")
    if path.is_dir() or not path.name.lower().endswith((".zip", *TARS)):
        return path
    is_zip = path.name.lower().endswith(".zip")
    how = {} if is_zip else {"filter": "data"}
    try:
        with zipfile.ZipFile(path) if is_zip else tarfile.open(path, tarinfo=ShortHeader) as archive:
            for member in safe_members(archive, path, max_bytes):
                archive.extract(member, folder, **how)
    except Exception as e:  # tarfile, zipfile and the decompressors raise anything for a broken file
        fail(f"{path} cannot be read as an archive ({' '.join(str(e).split())}); download or unpack it again")
    return folder


# ---------------------------------------------------------------- tables


def json_values(file):
    """Yield the values of a JSON array, or JSON values one after the other, without reading all at once."""
    decoder, gap = json.JSONDecoder(), re.compile(r"[\s,\]]*")
    text = file.read(2**20).lstrip().removeprefix("[")
    while True:
        at = gap.match(text).end()
        with contextlib.suppress(ValueError, RecursionError):  # the value continues, or is broken
            while at < len(text):
                value, at = decoder.raw_decode(text, at)
                yield value
                at = gap.match(text, at).end()
        text = text[at:]
        added = file.read(max(2**20, len(text)))
        if not added or len(text) > 2**26:
            break
        text += added
    if text:
        raise ValueError(f"not JSON, and the rest is not read: {text[:40]!r}")


def parquet_rows(path):
    from pyarrow.parquet import ParquetFile

    for batch in ParquetFile(path).iter_batches(64):
        yield from batch.to_pylist()


def entries_in(file, path):
    """(what an entry is called, iterator of the entries) of a table."""
    if path.suffix.lower() == ".parquet":
        return "row", parquet_rows(path)
    first = file.read(2**16).lstrip().partition("\n")[0].rstrip()
    file.seek(0)
    if first[:1] not in ("[", "{"):
        csv.field_size_limit(2**30)  # for images in base64
        return "row", csv.DictReader(file, delimiter="\t" if "\t" in first else ",", strict=True)
    if first.endswith(("{", "[", ",")) or (first[0] == "[" and path.suffix.lower() != ".jsonl"):
        return "entry", json_values(file)
    return "line", map(lambda line: json.loads(line) if line.strip() else None, file)


def read_table(path):
    """Yield (place, entry) of a table: a dict of fields, a list of messages, or Unusable."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        what, entries = entries_in(file, path)
        for number in itertools.count(1):
            try:
                entry = next(entries, END)
            except (csv.Error, OSError, RecursionError, ValueError) as e:
                entry = Unusable("syntax", f"cannot be read ({e})")
            if entry is END:
                return
            if entry is not None:  # an empty line
                yield f"{what} {number}", entry
