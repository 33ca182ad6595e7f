"""Saves are all or nothing, also when the process is killed or the disk is full."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from xlmfam.common.checkpoints import atomic
from xlmfam.common.checkpoints.files import open_checkpoint, save_checkpoint
from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError

SPECS = {name: TensorSpec((4096,), np.dtype(np.float32)) for name in "abcd"}


def save(folder, value, **options):
    array = np.full(4096, value, np.float32)
    extra = {"config.json": str(value)}
    options = {"max_shard_size": 20_000, "extra_files": extra} | options
    return save_checkpoint(folder, SPECS, lambda _: array, **options)


def value_of(folder):
    """The one value that the whole folder has; fails for a mix."""
    with open_checkpoint(folder) as source:
        values = {float(x) for name in SPECS for x in np.unique(source.read(name))}
    (value,) = values
    assert float((folder / "config.json").read_text()) == value
    return value


def names(folder):
    return sorted(os.listdir(folder))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from xlmfam.common.checkpoints import atomic
import test_checkpoint_atomic as t

step, count = sys.argv[2], int(sys.argv[3])
if "nothing" in sys.argv: atomic._exchange = lambda *_: False
module = {{"rmtree": atomic.shutil}}.get(step, atomic if step.startswith("_") else os)
original, calls = getattr(module, step), 0

def killing(*args, **kwargs):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(module, step, killing)
t.save(Path(sys.argv[1]), 2)
"""


def save_killed(folder, step, count, *options):
    """Save 2 in another process, which is killed at the given call of a function."""
    script = textwrap.dedent(KILLED).format(here=os.path.dirname(__file__))
    command = [sys.executable, "-c", script, str(folder), step, str(count), *options]
    return subprocess.run(command, timeout=120, check=False).returncode


POINTS = [
    ("fsync", 1),
    ("fsync", 4),
    ("_keep_others", 1),
    ("link", 1),
    ("_swap", 1),
    ("_exchange", 1),
    ("rmtree", 1),
]


@pytest.mark.parametrize(("step", "count"), POINTS)
def test_a_killed_save_leaves_one_whole_checkpoint(tmp_path, step, count):
    folder = tmp_path / "m"
    save(folder, 1)
    (folder / "vocab.txt").write_text("kept")
    assert save_killed(folder, step, count) == -signal.SIGKILL
    # After the exchange only the sweeping is left to do.
    assert value_of(folder) == (2 if step == "rmtree" else 1)
    assert len(names(tmp_path)) == 2, "the kill came too early to test anything"
    save(folder, 3)
    assert value_of(folder) == 3
    assert names(tmp_path) == ["m"]
    assert (folder / "vocab.txt").read_text() == "kept"


def test_a_first_save_that_is_killed_leaves_no_folder(tmp_path):
    assert save_killed(tmp_path / "m", "rename", 1) == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    save(tmp_path / "m", 1)
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("count", [1, 2])
def test_without_exchange_the_next_save_restores(tmp_path, count):
    folder = tmp_path / "m"
    save(folder, 1)
    (folder / "vocab.txt").write_text("kept")
    assert save_killed(folder, "rename", count, "nothing") == -signal.SIGKILL
    save(folder, 3)
    assert value_of(folder) == 3
    assert (folder / "vocab.txt").read_text() == "kept"
    assert names(tmp_path) == ["m"]


def test_without_exchange_a_save_works(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    save(tmp_path / "m", 1)
    save(tmp_path / "m", 2)
    assert value_of(tmp_path / "m") == 2
    assert names(tmp_path) == ["m"]


LOOP = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_checkpoint_atomic as t
print("ready", flush=True)
for value in range(2, 10_000):
    t.save(Path(sys.argv[1]), value)
"""


def test_kills_at_random_moments(tmp_path):
    folder = tmp_path / "m"
    save(folder, 1)
    script = textwrap.dedent(LOOP).format(here=os.path.dirname(__file__))
    for wait in (0.003, 0.03, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.kill()
        process.wait(timeout=60)
        process.stdout.close()
        assert value_of(folder) >= 1
    save(folder, 0.5)
    assert value_of(folder) == 0.5
    assert names(tmp_path) == ["m"]


def test_a_save_that_fails_leaves_no_trace(tmp_path):
    def failing(name):
        if name == "c":
            raise CheckpointError("the source is damaged")
        return np.zeros(4096, np.float32)

    for earlier in (False, True):
        if earlier:
            save(tmp_path / "m", 1)
        with pytest.raises(CheckpointError, match="source is damaged"):
            save_checkpoint(tmp_path / "m", SPECS, failing)
        assert names(tmp_path) == (["m"] if earlier else [])
    assert value_of(tmp_path / "m") == 1


def test_another_save_that_is_under_way_is_left_alone(tmp_path):
    with atomic.atomic_folder(tmp_path / "m", replaces=lambda _: False) as first:
        (first / "x").write_text("first")
        save(tmp_path / "m", 2)
        assert (first / "x").is_file()
    assert (tmp_path / "m/x").read_text() == "first"
    assert value_of(tmp_path / "m") == 2


def test_the_working_directory_is_saved_into_in_place(tmp_path, monkeypatch):
    folder = tmp_path / "m"
    save(folder, 1)
    (folder / "vocab.txt").write_text("kept")
    monkeypatch.chdir(folder)
    before = os.stat(folder).st_ino
    for target in (folder, "."):
        save(target, 2, max_shard_size="1GB")
        assert os.stat(".").st_ino == before
        assert value_of(folder) == 2
        assert names(".") == ["config.json", "model.safetensors", "vocab.txt"]
    assert names(tmp_path) == ["m"]


def test_a_folder_that_turns_out_to_be_unmovable(tmp_path, monkeypatch):
    save(tmp_path / "m", 1, max_shard_size="1GB")
    (tmp_path / "m/vocab.txt").write_text("kept")
    inode = os.stat(tmp_path / "m").st_ino

    def rename(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", rename)
    save(tmp_path / "m", 2)
    assert os.stat(tmp_path / "m").st_ino == inode
    assert value_of(tmp_path / "m") == 2
    assert "vocab.txt" in names(tmp_path / "m")
    assert "model.safetensors" not in names(tmp_path / "m")
    assert names(tmp_path) == ["m"]


def test_in_place_the_config_and_the_index_come_last(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(b.name), replace(a, b)))
    save(tmp_path, 1)
    assert order[-2:] == ["config.json", "model.safetensors.index.json"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    save(tmp_path / "real", 1)
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", 2)
    assert (tmp_path / "link").is_symlink()
    assert value_of(tmp_path / "real") == 2


def test_reading_from_the_folder_that_is_saved_into(tmp_path):
    save(tmp_path / "m", 1)
    with open_checkpoint(tmp_path / "m") as source:
        save_checkpoint(tmp_path / "m", source.specs(), source.read, extra_files={})
        assert source.read("a")[0] == 1
    assert value_of(tmp_path / "m") == 1


def test_permissions_stay(tmp_path):
    save(tmp_path / "m", 1)
    os.chmod(tmp_path / "m", 0o750)
    save(tmp_path / "m", 2)
    assert os.stat(tmp_path / "m").st_mode & 0o777 == 0o750


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file", tmp_path / "file/m"):
        with pytest.raises(CheckpointError, match="could not be saved"):
            save(target, 1)
    assert (tmp_path / "file").read_text() == "x"


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_checkpoint_atomic as t
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    t.save(Path(sys.argv[1]), 2, max_shard_size="1GB")
except t.CheckpointError as error:
    print("refused:", error)
"""


def test_a_full_disk(tmp_path):
    save(tmp_path / "m", 1)
    script = textwrap.dedent(FULL).format(here=os.path.dirname(__file__))
    command = [sys.executable, "-c", script, str(tmp_path / "m")]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"refused: {tmp_path}/m: could not be saved: File too large")
    assert value_of(tmp_path / "m") == 1
    assert names(tmp_path) == ["m"]
