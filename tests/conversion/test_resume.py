"""A conversion that is killed leaves nothing or the whole, and the next one goes on from there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest
from tiny_checkpoints import change_json, make, make_arrays, make_config

from xlmfam.common.checkpoints import filling, journal
from xlmfam.common.checkpoints.files import FORMATS
from xlmfam.common.checkpoints.safetensors_files import SafetensorsSource
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion import checksum, convert

SIZE = "4KB"  # some shards of several tensors

KILLED = """
import os, signal, sys
from xlmfam.common.checkpoints import atomic, filling, journal
from xlmfam.conversion import convert

step, count = sys.argv[4], int(sys.argv[5])
owner, name = {
    "write": (os, "write"),
    "fill": (filling, "fill"),
    "tensor": (filling, "_fill_one"),
    "noted": (journal.Journal, "finished"),
    "fsync": (os, "fsync"),
    "link": (os, "link"),
    "rename": (os, "rename"),
    "exchange": (atomic, "_exchange"),
    "rmtree": (atomic.shutil, "rmtree"),
}[step]
original, calls = getattr(owner, name), 0

def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(owner, name, killing)
convert(*sys.argv[1:4], max_shard_size="4KB", overwrite=True)
"""


def killed(source, target, to, step, count):
    """Convert in another process, which is killed at the given call of a function."""
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(source), str(target), to]
    done = subprocess.run([*command, step, str(count)], timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL


def names(folder):
    return sorted(os.listdir(folder))


def of(seed):
    return checksum(make_arrays(make_config(), seed=seed))


POINTS = [
    ("safetensors", "write", 1),
    ("safetensors", "noted", 20),
    ("flax", "tensor", 2),
    ("flax", "fsync", 4),
    ("tf", "tensor", 17),
    ("pt", "write", 40),
    ("pt", "noted", 35),
    ("flax", "rename", 1),
]


@pytest.mark.parametrize(("to", "step", "count"), POINTS)
def test_killed_at_many_points(tmp_path, to, step, count):
    source = make(tmp_path / "source")
    target = tmp_path / "target"
    killed(source, target, to, step, count)
    assert not target.exists()
    assert len(names(tmp_path)) == 2  # the hidden folder
    report = convert(source, target, to, max_shard_size=SIZE)
    assert checksum(target) == report.checksum == of(0)
    assert names(tmp_path) == ["source", "target"]
    assert not any(name.startswith(".") for name in names(target))
    if step == "noted":  # the note of the last may be late, not that of those before
        assert count - 1 <= report.resumed < report.tensors
    if (step, count) == ("fsync", 4):  # everything was written
        assert report.resumed == report.tensors


@pytest.mark.parametrize(
    ("step", "count", "left"),
    [("noted", 9, 1), ("link", 1, 1), ("exchange", 1, 1), ("rmtree", 1, 0)],
)
def test_killed_while_it_replaces_another(tmp_path, step, count, left):
    source, target = make(tmp_path / "source"), make(tmp_path / "target", seed=5)
    (target / "README.md").write_text("mine")
    killed(source, target, "safetensors", step, count)
    # After the exchange there is only something to clear away.
    assert checksum(target) == of(5 if left else 0)
    report = convert(source, target, max_shard_size=SIZE, overwrite=True)
    assert checksum(target) == report.checksum == of(0)
    assert (target / "README.md").read_text() == "mine"
    assert names(tmp_path) == ["source", "target"]
    assert "conversion_report.json" in names(target)


@pytest.fixture
def half_done(tmp_path):
    """A conversion to safetensors that was killed after 20 of 35 tensors."""
    source = make(tmp_path / "source")
    killed(source, tmp_path / "target", "safetensors", "noted", 21)
    return source, tmp_path / "target"


def hidden(folder):
    (found,) = (path for path in folder.iterdir() if path.name.startswith("."))
    return found


def test_what_is_done_is_not_done_again(half_done, monkeypatch):
    source, target = half_done
    read = set()
    rows = SafetensorsSource.read_rows

    def noting(self, name, start, stop):
        read.add(name)
        return rows(self, name, start, stop)

    monkeypatch.setattr(SafetensorsSource, "read_rows", noting)
    report = convert(source, target, max_shard_size=SIZE)
    assert report.resumed == 20
    assert len(read) == 15
    assert report.checksum == checksum(target)
    assert "20 tensors were there" in str(report)
    assert json.loads((target / "conversion_report.json").read_text())["resumed"] == 20


def test_the_kept_values_count(half_done):
    """Were they written again, this would go unnoticed and the other tests would prove nothing."""
    source, target = half_done
    shard = sorted(hidden(target.parent).glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    report = convert(source, target, max_shard_size=SIZE)
    assert checksum(target) != report.checksum


@pytest.mark.parametrize("change", ["options", "touched", "replaced", "version"])
def test_another_conversion_begins_anew(half_done, monkeypatch, change):
    source, target = half_done
    options = {"max_shard_size": SIZE}
    path = source / "model.safetensors"
    if change == "options":
        options["dtype"] = "float16"
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "replaced":
        status = path.stat()
        shutil.copy2(path, source / "copy")
        os.replace(source / "copy", path)
        assert path.stat().st_mtime_ns == status.st_mtime_ns
    else:
        monkeypatch.setattr("xlmfam.conversion.writing.__version__", "99")
    report = convert(source, target, **options)
    assert report.resumed == 0
    assert checksum(target) == report.checksum
    assert names(target.parent) == ["source", "target"]


def test_a_note_that_was_cut_off(half_done):
    source, target = half_done
    path = hidden(target.parent) / journal.JOURNAL
    path.write_bytes(path.read_bytes()[:-9])
    assert convert(source, target, max_shard_size=SIZE).resumed == 19
    assert checksum(target) == of(0)


@pytest.mark.parametrize("content", [b"", b"rubbish\n", b"[]\n", b'{"key": 3}\n', b"\xff\n{}\n"])
def test_notes_that_are_none(half_done, content):
    source, target = half_done
    (hidden(target.parent) / journal.JOURNAL).write_bytes(content)
    (hidden(target.parent) / "stray").write_text("x")
    assert convert(source, target, max_shard_size=SIZE).resumed == 0
    assert checksum(target) == of(0)
    assert "stray" not in names(target)


def test_after_a_crash_only_what_had_reached_the_disk_counts(half_done, monkeypatch):
    source, target = half_done
    lines = (hidden(target.parent) / journal.JOURNAL).read_text().splitlines()
    notes = [json.loads(line) for line in lines]
    synced = {note["synced"] for note in notes if "synced" in note}
    safe = [note for note in notes if note.get("file") in synced]
    monkeypatch.setattr(journal, "_boot", lambda: "another start")
    assert convert(source, target, max_shard_size=SIZE).resumed == len(safe) < 20
    assert checksum(target) == of(0)


def test_one_that_is_under_way_is_left_alone(tmp_path, monkeypatch):
    source, target = make(tmp_path / "source"), tmp_path / "target"
    fill, inner = filling.fill, []

    def twice(*args, **kwargs):
        if not inner:
            inner.append(None)
            inner[0] = convert(source, target, max_shard_size=SIZE)
        return fill(*args, **kwargs)

    monkeypatch.setattr("xlmfam.common.checkpoints.files.fill", twice)
    outer = convert(source, target, max_shard_size=SIZE)
    assert outer.resumed == inner[0].resumed == 0
    assert checksum(target) == of(0)
    assert names(tmp_path) == ["source", "target"]


# ---- where it cannot be written -----------------------------------------------------------


@pytest.mark.parametrize("to", FORMATS)
def test_a_disk_that_fills_up(tmp_path, monkeypatch, to):
    source, target = make(tmp_path / "source"), make(tmp_path / "target", seed=5)
    write, left = os.write, [3000]

    def full(descriptor, data):
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=r"target: could not be saved: No space left"):
        convert(source, target, to, overwrite=True)
    monkeypatch.undo()
    assert checksum(target) == of(5)
    assert names(tmp_path) == ["source", "target"]


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    source = make(tmp_path / "source")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(CheckpointError, match=r"no space left.*take 12.5 kB, and 1 kB are free"):
        convert(source, tmp_path / "target")
    assert names(tmp_path) == ["source"]


def test_a_disk_that_is_read_only(tmp_path, monkeypatch):
    source = make(tmp_path / "source")

    def mkdir(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", mkdir)
    with pytest.raises(CheckpointError, match="could not be saved: Read-only file system"):
        convert(source, tmp_path / "target")


def test_a_source_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    source = make(tmp_path / "source")

    def damaged(*_):
        raise CheckpointError("the disk has a bad sector")

    monkeypatch.setattr(SafetensorsSource, "read_rows", damaged)
    with pytest.raises(CheckpointError, match="bad sector"):
        convert(source, tmp_path / "target")
    assert names(tmp_path) == ["source"]


def test_a_target_that_exists(tmp_path):
    source, target = make(tmp_path / "source"), make(tmp_path / "target", seed=5)
    with pytest.raises(CheckpointError, match="--overwrite"):
        convert(source, target)
    change_json(source / "config.json", my_key=1)
    convert(source, target, overwrite=True)
    assert checksum(target) == of(0)
