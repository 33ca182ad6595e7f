"""What of a save is finished, so that one that was killed can be taken up where it was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JOURNAL = ".xlmfam-journal"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Finished:
    """A tensor that is written.

    Attributes:
        record: What its giver wants to know of it again (`Rows.written`); data for JSON.
        crc: Its checksum, where the format needs one.
    """

    record: Any
    crc: int


class Journal:
    """The list of finished tensors in a folder that is being written.

    Lines are added when a tensor is written and when a file is on the disk. What a killed process
    has written is kept by the system; after a crash of the whole machine only files that had
    reached the disk count.

    Args:
        folder: The folder. What an earlier attempt left and did not list is removed.
        key: Says what is being saved; the list of another save is worth nothing.
    """

    def __init__(self, folder: Path, key: str):
        self._path = folder / JOURNAL
        self._lock = threading.Lock()
        self._syncing: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="xlmfam-sync")
        self._files, synced = _read(self._path, key)
        for entry in list(os.scandir(folder)):
            if entry.name == JOURNAL or (entry.name in self._files and entry.is_file()):
                continue
            _remove(entry)
        self._files = {n: t for n, t in self._files.items() if (folder / n).is_file()}
        self._begin_anew(key, synced)

    def _begin_anew(self, key: str, synced: set[str]) -> None:
        """Write the list again: the last line may have been cut off."""
        beside = self._path.with_name(f"{JOURNAL}.new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        self._descriptor = descriptor
        self._add({"key": key, "boot": _boot()})
        for file, tensors in self._files.items():
            for name, finished in tensors.items():
                self.finished(file, name, finished)
            if file in synced:
                self._add({"synced": file})
        os.replace(beside, self._path)

    def tensors(self, file: str) -> Mapping[str, Finished]:
        """Return the tensors of a file that an earlier attempt has finished."""
        return dict(self._files.get(file, {}))

    def finished(self, file: str, name: str, finished: Finished) -> None:
        """Note a tensor; may be called from any thread."""
        self._add({"file": file, "tensor": name, "record": finished.record, "crc": finished.crc})

    def _add(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            os.write(self._descriptor, (json.dumps(line) + "\n").encode())

    def sync(self, path: Path) -> None:
        """Force a file to the disk, beside other work, and note that it is there."""

        def run() -> None:
            with open(path, "rb") as file, contextlib.suppress(OSError):
                os.fsync(file.fileno())  # once more by whoever moves it, who minds errors
                self._add({"synced": path.name})

        self._syncing.append(self._thread.submit(run))

    def close(self) -> None:
        """Wait for the disk, and add nothing more."""
        self._thread.shutdown(wait=True)
        os.close(self._descriptor)


def _boot() -> str:
    """What differs between two starts of the machine."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _read(path: Path, key: str) -> tuple[dict[str, dict[str, Finished]], set[str]]:
    """The finished tensors by file, of an attempt at the same, and the files on the disk."""
    files: dict[str, dict[str, Finished]] = {}
    synced: set[str] = set()
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        head = json.loads(first)
        if head.get("key") != key:
            return {}, set()
        for line in lines:
            entry = json.loads(line)
            if "synced" in entry:
                synced.add(entry["synced"])
            else:
                finished = Finished(entry["record"], entry["crc"])
                files.setdefault(entry["file"], {})[entry["tensor"]] = finished
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        # Cut off where the process was killed: all before it counts.
        if not files:
            return {}, set()
    if not head.get("boot") or head["boot"] != _boot():
        files = {name: tensors for name, tensors in files.items() if name in synced}
    return files, synced


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        os.unlink(entry.path)
