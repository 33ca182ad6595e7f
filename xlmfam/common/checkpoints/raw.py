"""Raw bytes of one tensor from and to an open file.

Plain reads instead of a memory map: mapped pages count as the process's memory for as long as
the file stays open, so a map would show the whole checkpoint where only one tensor is held.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec, describe
from xlmfam.common.errors import CheckpointError

# What the frameworks' kernels want; JAX and TensorFlow take aligned arrays over without a copy.
ALIGNMENT = 64


def open_binary(path: Path) -> tuple[BinaryIO, int]:
    """Open a file for reading.

    Args:
        path: The file.

    Returns:
        The unbuffered file and its size.

    Raises:
        CheckpointError: The file cannot be opened.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115  (the source closes it)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    return file, os.fstat(file.fileno()).st_size


def read_bytes_into(file: BinaryIO, offset: int, out: np.ndarray, path: Path) -> None:
    """Fill a uint8 array from the file.

    Args:
        file: An unbuffered file.
        offset: Where the bytes start.
        out: A one-dimensional, contiguous uint8 array.
        path: For the error message.

    Raises:
        CheckpointError: The file ends too early or cannot be read.
    """
    view, done = out.data, 0
    try:
        file.seek(offset)
        while done < len(view):
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{path}: truncated: {len(view) - done} bytes are missing")
            done += count
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def aligned_empty(nbytes: int) -> np.ndarray:
    """Return a uint8 array of ``nbytes`` whose address is a multiple of ``ALIGNMENT``."""
    room = np.empty(nbytes + ALIGNMENT, np.uint8)
    begin = -room.ctypes.data % ALIGNMENT
    return room[begin : begin + nbytes]


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Return a row-major copy that lies as ``aligned_empty`` makes it."""
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    np.copyto(copy, array)
    return copy


def is_aligned(array: np.ndarray) -> bool:
    """Whether a row-major array lies as ``aligned_empty`` makes it."""
    return array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0


def read_array(file: BinaryIO, offset: int, spec: TensorSpec, path: Path) -> np.ndarray:
    """Read one row-major, little-endian tensor; arguments as in `read_bytes_into`."""
    buffer = aligned_empty(spec.nbytes)
    read_bytes_into(file, offset, buffer, path)
    return buffer.view(spec.dtype).reshape(spec.shape)


class Rows:
    """A tensor that is given in blocks of rows, because it may be too large to be held.

    Where one and the same object is given for two names, they are one tensor.

    Args:
        spec: Shape and dtype of the whole.
    """

    def __init__(self, spec: TensorSpec):
        self.spec = spec

    def blocks(self) -> Iterator[np.ndarray]:
        """Give the values in row-major order, in pieces of any size."""
        raise NotImplementedError

    def written(self, tell: Callable[[Any], None]) -> None:
        """Called when all is written; calls ``tell``, maybe later, with what to remember of it."""
        tell(None)

    def remembered(self, record: Any) -> None:
        """Called in the place of the others where an earlier attempt has written the tensor."""


ReadTensor = Callable[[str], np.ndarray | Rows]


def row_blocks(name: str, spec: TensorSpec, given: np.ndarray | Rows) -> Iterator[np.ndarray]:
    """Give a tensor that is to be written piece by piece, and hold it against what was promised.

    Args:
        name: The tensor.
        spec: What headers and indices already say about it.
        given: Its values.

    Yields:
        Row-major arrays of its dtype.

    Raises:
        CheckpointError: Shape or dtype differ from the spec.
    """
    came = given.spec if isinstance(given, Rows) else TensorSpec(given.shape, given.dtype)
    if came != spec:
        raise CheckpointError(
            f"tensor {name!r} was announced as {describe(spec)} and came as {describe(came)}"
        )
    if not isinstance(given, Rows):
        # not ascontiguousarray: it turns a 0-d array into a 1-d one
        yield np.asarray(given, order="C")
        return
    left = spec.nbytes
    for block in given.blocks():
        left -= block.nbytes
        if block.dtype != spec.dtype or left < 0:
            raise CheckpointError(f"tensor {name!r} came with more than {describe(spec)}")
        yield np.asarray(block, order="C")
    if left:
        raise CheckpointError(f"tensor {name!r} came with {left} bytes missing")


def array_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a row-major array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
