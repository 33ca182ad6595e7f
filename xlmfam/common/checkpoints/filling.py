"""Writing a file whose every byte has its place before the first tensor is read.

A format says where headers and tensors lie (`Layout`); one function then fills the places,
block by block. So tensors of any size pass through little memory, and an attempt that was killed
goes on with the first tensor that it had not finished.
"""

from __future__ import annotations

import ctypes
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.journal import Finished, Journal
from xlmfam.common.checkpoints.raw import ReadTensor, Rows, array_bytes, row_blocks
from xlmfam.common.checkpoints.source import TensorSpec

# Offset and number of bytes of each piece of a tensor, in order.
Pieces = Sequence[tuple[int, int]]

_SYNC_FILE_RANGE_WRITE = 2
_BYTES_PER_WRITE = 32 * 2**20
_BYTES_WORTH_A_CALL = 2**20


class Layout:
    """Where everything lies in a file.

    Args:
        literals: Offset and content of what is no tensor.
        places: The pieces of every tensor, in the order in which they are to be written.
        exists: Whether the file is there already, with all that is no tensor.

    Attributes:
        names: The tensors in this order.
        shares: Whether tensors that are one and the same are stored once.
        needs_crc: Whether `filled` wants the checksums of ZIP archives.
    """

    shares = False
    needs_crc = False

    def __init__(
        self,
        literals: Iterable[tuple[int, bytes]],
        places: Mapping[str, Pieces],
        exists: bool = False,
    ):
        self.literals = list(literals)
        self.names = list(places)
        self.exists = exists
        self._places = dict(places)

    def place(self, name: str) -> Pieces:
        """Return where the next tensor goes; called once for each, in order."""
        return self._places[name]

    def filled(self, name: str, crc: int) -> None:
        """Called when a tensor is in its place."""

    def same(self, name: str, other: str) -> None:
        """Called in the place of `place` where a tensor is one that was filled before."""
        raise NotImplementedError

    def closing(self) -> Iterable[tuple[int, bytes]]:
        """Offset and content of what can only be written last."""
        return ()


def fill(
    path: Path,
    layout: Layout,
    specs: Mapping[str, TensorSpec],
    read: ReadTensor,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write a file as it is laid out.

    Args:
        path: The file.
        layout: Where everything goes.
        specs: The tensors.
        read: Gives the values of a name, whole or in blocks.
        journal: Knows what an earlier attempt has finished, and is told of what this one does.
        progress: Called with numbers of bytes as they are written.

    Raises:
        CheckpointError: The values of a tensor are not what its spec says.
        OSError: The file cannot be written.
    """
    done = journal.tensors(path.name) if journal else {}
    fresh = 0 if layout.exists or done else os.O_TRUNC
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | fresh, 0o666)
    twins = _Twins()
    try:
        for offset, data in layout.literals:
            _write(descriptor, offset, memoryview(data))
        for name in layout.names:
            given = _given(read, name)
            twin = twins.before(name, given) if layout.shares else None
            if twin is not None:
                row_blocks(name, specs[name], given)
                layout.same(name, twin)
            elif name in done:
                _take_over(layout, name, given, done[name])
            else:
                crc = _fill_one(descriptor, layout, name, specs[name], given, progress)
                _note(journal, path.name, name, given, crc)
                continue
            if progress is not None:
                progress(specs[name].nbytes)
        for offset, data in layout.closing():
            _write(descriptor, offset, memoryview(data))
    finally:
        os.close(descriptor)


def _given(read: ReadTensor, name: str) -> np.ndarray | Rows:
    given = read(name)
    return given if isinstance(given, Rows) else np.asarray(given)


def _take_over(layout: Layout, name: str, given: np.ndarray | Rows, finished: Finished) -> None:
    layout.place(name)
    layout.filled(name, finished.crc)
    if isinstance(given, Rows):
        given.remembered(finished.record)


def _note(
    journal: Journal | None, file: str, name: str, given: np.ndarray | Rows, crc: int
) -> None:
    def tell(record: Any) -> None:
        if journal is not None:
            journal.finished(file, name, Finished(record, crc))

    if isinstance(given, Rows):
        given.written(tell)
    else:
        tell(None)


def _fill_one(
    descriptor: int,
    layout: Layout,
    name: str,
    spec: TensorSpec,
    given: np.ndarray | Rows,
    progress: Callable[[int], None] | None,
) -> int:
    """Put one tensor in its place; returns its checksum if the layout needs it."""
    blocks = row_blocks(name, spec, given)
    pieces = iter(layout.place(name))
    offset, room, crc = 0, 0, 0
    for block in blocks:
        data = array_bytes(block)
        if layout.needs_crc:
            crc = zlib.crc32(data, crc)
        if progress is not None:
            progress(len(data))
        while len(data):
            if not room:
                offset, room = next(pieces)
                continue
            part = data[:room]
            _write(descriptor, offset, part)
            data = data[len(part) :]
            offset, room = offset + len(part), room - len(part)
    layout.filled(name, crc)
    return crc


def _write(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        os.lseek(descriptor, offset, os.SEEK_SET)
        count = os.write(descriptor, data[:_BYTES_PER_WRITE])
        if count >= _BYTES_WORTH_A_CALL and _sync_file_range is not None:
            # The disk is to work while we do; else everything would wait for it at the end.
            begin, size = ctypes.c_int64(offset), ctypes.c_int64(count)
            _sync_file_range(descriptor, begin, size, _SYNC_FILE_RANGE_WRITE)
        data, offset = data[count:], offset + count


def _find_sync_file_range() -> Any:
    """The system's function that begins to write to the disk without waiting; None without it."""
    try:
        return ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError, TypeError):
        return None


_sync_file_range = _find_sync_file_range()


class _Twins:
    """Which objects were given before. Arrays may be gone, and others be in their place."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Callable[[], Any], str]] = {}

    def before(self, name: str, given: np.ndarray | Rows) -> str | None:
        """Return the name for which this object was given before; None if it is new."""
        get, first = self._seen.get(id(given), (lambda: None, ""))
        if get() is given:
            return first
        held = (lambda: given) if isinstance(given, Rows) else weakref.ref(given)
        self._seen[id(given)] = (held, name)
        return None
