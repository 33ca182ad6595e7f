"""Checkpoints of TensorFlow's ``Saver``, read without TensorFlow.

``PREFIX.index`` is a sorted table of strings, in blocks: for each variable its dtype, its shape
and where in the ``PREFIX.data-*`` files its values lie. Every block has a check sum, and every
length in it is held against what is there before it is used. Values have sums of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xlmfam.common.checkpoints.raw import open_binary, read_bytes_into
from xlmfam.common.checkpoints.source import DTYPES, TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.originals.transfo_xl_crc import masked_crc

MAGIC = 0xDB4775248B80FB57
_FOOTER = 48
_TRAILER = 5  # behind each block: how it is compressed, and a check sum
_LARGEST_INDEX = 2**24  # the public ones have some tens of thousands of bytes
DTYPE_NAMES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    19: "float16",
    22: "uint32",
    23: "uint64",
}
# Numbers of the fields of a variable's entry, and of a shape.
_DTYPE, _SHAPE, _SHARD, _OFFSET, _SIZE, _CRC, _SLICES = 1, 2, 3, 4, 5, 6, 7
_DIMENSION, _DIMENSION_SIZE = 2, 1
_SHARDS, _ENDIANNESS = 1, 2  # of the header


@dataclass(frozen=True)
class Variable:
    """Where a variable lies.

    Attributes:
        spec: Shape and dtype.
        shard: Number of the file.
        offset: First byte in it.
        crc: Check sum of the values.
    """

    spec: TensorSpec
    shard: int
    offset: int
    crc: int


class Bundle:
    """An open checkpoint.

    Attributes:
        variables: Those with numbers, by name; strings, of which graphs may have some, are not
            among them.

    Args:
        prefix: Path of its files without their endings.

    Raises:
        CheckpointError: A file is missing or damaged.
    """

    def __init__(self, prefix: Path):
        self.prefix = prefix
        self.path = prefix.with_name(prefix.name + ".index")
        self._files: dict[int, tuple[BinaryIO, int]] = {}
        try:
            entries = dict(_table(self._index()))
            self._shards = self._header(entries.pop(b"", b""))
            found = {_text(name): self._variable(name, entry) for name, entry in entries.items()}
        except (IndexError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: truncated or damaged: {error}") from error
        self.variables = {name: v for name, v in found.items() if v is not None}

    def _index(self) -> bytes:
        try:
            size = self.path.stat().st_size
            if size > _LARGEST_INDEX:
                raise CheckpointError(f"{self.path}: {size} bytes are more than any index has")
            return self.path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error

    def _header(self, entry: bytes) -> int:
        fields = _fields(entry)
        if fields.get(_ENDIANNESS, 0) != 0:
            raise CheckpointError(f"{self.path}: was written on a big-endian machine")
        shards = fields.get(_SHARDS, 0)
        if type(shards) is not int or not 0 < shards < 100000:
            raise ValueError("no number of files")
        return shards

    def _variable(self, name: bytes, entry: bytes) -> Variable | None:
        fields = _fields(entry, repeated=_SLICES)
        if fields.get(_SLICES):
            raise CheckpointError(f"{self.path}: {_text(name)} is stored in slices")
        dtype = DTYPE_NAMES.get(fields.get(_DTYPE, 0))
        if dtype is None:
            return None
        shape = _shape(fields.get(_SHAPE, b""))
        shard, offset = fields.get(_SHARD, 0), fields.get(_OFFSET, 0)
        spec = TensorSpec(shape, DTYPES[dtype])
        if shard >= self._shards or fields.get(_SIZE, 0) != spec.nbytes:
            raise ValueError(f"sizes of {_text(name)} do not fit together")
        return Variable(spec, shard, offset, int.from_bytes(fields.get(_CRC, b""), "little"))

    def require(self) -> None:
        """Raise ``CheckpointError`` unless the values of all variables are there."""
        for name, variable in self.variables.items():
            path, size = self._path(variable.shard), self._open(variable.shard)[1]
            if variable.offset + variable.spec.nbytes > size:
                raise CheckpointError(f"{path}: truncated: values of {name} are missing")

    def read(self, name: str) -> np.ndarray:
        """Read a variable into a fresh array.

        Raises:
            CheckpointError: The values are not there, or not those that were written.
        """
        variable = self.variables[name]
        out = np.empty(variable.spec.shape, variable.spec.dtype)
        data = out.reshape(-1).view(np.uint8)
        file, _ = self._open(variable.shard)
        read_bytes_into(file, variable.offset, data, self._path(variable.shard))
        if masked_crc(data) != variable.crc:
            raise CheckpointError(
                f"{self._path(variable.shard)}: damaged: the values of {name} are not those that "
                "were written"
            )
        return out

    def _path(self, shard: int) -> Path:
        return self.prefix.with_name(f"{self.prefix.name}.data-{shard:05}-of-{self._shards:05}")

    def _open(self, shard: int) -> tuple[BinaryIO, int]:
        if shard not in self._files:
            self._files[shard] = open_binary(self._path(shard))
        return self._files[shard]

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._files.values():
            file.close()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")[:1000]


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table."""
    footer = data[-_FOOTER:]
    if len(footer) < _FOOTER or int.from_bytes(footer[-8:], "little") != MAGIC:
        raise ValueError("it does not end as an index does")
    offset, size, place = _handle(footer, 0)
    list(_block(data, offset, size))  # of other tables; here it says nothing
    end = 0
    for _, handle in _block(data, *_handle(footer, place)[:2]):
        offset, size, _ = _handle(handle, 0)
        if offset < end:
            raise ValueError("blocks within each other")
        end = offset + size
        yield from _block(data, offset, size)


def _handle(data: bytes, place: int) -> tuple[int, int, int]:
    """Return where a block is, its size, and the place behind what says so."""
    offset, place = _number(data, place)
    size, place = _number(data, place)
    return offset, size, place


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, each key told by how it differs from the last one."""
    if start + size + _TRAILER > len(data) or size < 4:
        raise ValueError("a block beyond its end")
    if not _is_whole(data, start, size):
        raise ValueError("a block that is not what was written")
    if data[start + size] != 0:
        raise ValueError("a compressed block, which TensorFlow does not write")
    block = data[start : start + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    key, place = b"", 0
    while place < end:
        shared, place = _number(block, place)
        own, place = _number(block, place)
        length, place = _number(block, place)
        if shared > len(key) or place + own + length > end:
            raise ValueError("a key or value beyond its block")
        key = key[:shared] + block[place : place + own]
        place += own
        yield key, block[place : place + length]
        place += length


def _is_whole(data: bytes, start: int, size: int) -> bool:
    """Whether a block has the sum that stands behind it."""
    end = start + size + 1
    return masked_crc(data[start:end]) == int.from_bytes(data[end : end + 4], "little")


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")


def _fields(data: bytes, repeated: int | None = None) -> dict[int, Any]:
    """Return the fields of a protocol buffer by number: the last of each, all of ``repeated``."""
    found: dict[int, Any] = {}
    place = 0
    while place < len(data):
        tag, place = _number(data, place)
        number, kind = tag >> 3, tag & 7
        value: Any
        if kind == 0:
            value, place = _number(data, place)
        elif kind in (1, 2, 5):
            size = {1: 8, 5: 4}.get(kind, 0)
            if kind == 2:
                size, place = _number(data, place)
            value, place = data[place : place + size], place + size
            if place > len(data):
                raise ValueError("a field beyond its end")
        else:
            raise ValueError("a field of no known kind")
        found[number] = [*found.get(number, []), value] if number == repeated else value
    return found


def _shape(data: bytes) -> tuple[int, ...]:
    dimensions = _fields(data, repeated=_DIMENSION).get(_DIMENSION, [])
    shape = tuple(_fields(dimension).get(_DIMENSION_SIZE, 0) for dimension in dimensions)
    if len(shape) > 16 or any(type(size) is not int or size >= 2**40 for size in shape):
        raise ValueError("a shape that is none")
    return shape
