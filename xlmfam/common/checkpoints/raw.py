"""Raw bytes of one tensor from and to an open file.

Plain reads instead of a memory map: mapped pages count as the process's memory for as long as
the file stays open, so a map would show the whole checkpoint where only one tensor is held.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec, describe
from xlmfam.common.errors import CheckpointError

ReadTensor = Callable[[str], np.ndarray]
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


def checked(name: str, spec: TensorSpec, read: ReadTensor) -> np.ndarray:
    """Read a tensor that is to be written, and hold it against what was promised.

    Args:
        name: The tensor.
        spec: What headers and indices already say about it.
        read: Gives the array.

    Returns:
        The array, row-major.

    Raises:
        CheckpointError: Shape or dtype differ from the spec.
    """
    array = np.asarray(read(name))
    came = TensorSpec(array.shape, array.dtype)
    if came != spec:
        raise CheckpointError(
            f"tensor {name!r} was announced as {describe(spec)} and came as {describe(came)}"
        )
    # not ascontiguousarray: it turns a 0-d array into a 1-d one
    return np.asarray(array, order="C")


def array_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a row-major array, without a copy."""
    return array.reshape(-1).view(np.uint8).data
