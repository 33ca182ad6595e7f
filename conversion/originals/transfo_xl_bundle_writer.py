"""Checkpoints as TensorFlow's ``Saver`` writes them, written without TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.originals.transfo_xl_bundle import DTYPE_NAMES, MAGIC
from xlmfam.conversion.originals.transfo_xl_crc import masked_crc

# One file of values, little-endian, of version 1 of the format.
_HEADER = b"\x08\x01\x1a\x02\x08\x01"
_HANDLES = 40


def write_bundle(
    prefix: Path,
    variables: Mapping[str, tuple[TensorSpec, Callable[[], np.ndarray]]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write ``PREFIX.index`` and ``PREFIX.data-00000-of-00001``, one variable at a time.

    Args:
        prefix: Path of the files without their endings.
        variables: What each is, and what gives its values.
        progress: Called with numbers of bytes as they are written.

    Raises:
        CheckpointError: An array is not what its spec says, or of a dtype that TensorFlow lacks.
    """
    numbers = {name: number for number, name in DTYPE_NAMES.items()}
    entries, offset = {b"": _HEADER}, 0
    with open(prefix.with_name(f"{prefix.name}.data-00000-of-00001"), "wb") as file:
        for name in sorted(variables, key=str.encode):
            spec, read = variables[name]
            if spec.dtype.name not in numbers:
                raise CheckpointError(f"{name}: TensorFlow has no {spec.dtype.name}")
            array = np.ascontiguousarray(read())
            if TensorSpec(array.shape, array.dtype) != spec:
                raise CheckpointError(f"{name} is {array.dtype} {array.shape}, not {spec}")
            data = array.reshape(-1).view(np.uint8)
            file.write(data.data)
            dimensions = [_sized(2, _number(8) + _number(size)) for size in spec.shape]
            entries[name.encode()] = b"".join(
                (
                    _number(8) + _number(numbers[spec.dtype.name]),
                    _sized(2, b"".join(dimensions)),
                    _number(4 << 3) + _number(offset),
                    _number(5 << 3) + _number(data.size),
                    _number(6 << 3 | 5) + masked_crc(data).to_bytes(4, "little"),
                )
            )
            offset += data.size
            if progress is not None:
                progress(data.size)
    prefix.with_name(f"{prefix.name}.index").write_bytes(_table(entries))


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _sized(field: int, data: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(data)) + data


def _table(entries: Mapping[bytes, bytes]) -> bytes:
    """Return a table of one block: so few entries need no more."""
    out = bytearray()
    handles: list[bytes] = []
    last = max(entries)
    for content in (entries, {}, None):
        # The block of blocks comes last, and names the first.
        block = _block({last: handles[0]} if content is None else content)
        handles.append(_number(len(out)) + _number(len(block)))
        block += b"\x00"  # not compressed
        out += block + masked_crc(block).to_bytes(4, "little")
    _, others, index = handles
    return bytes(out) + (others + index).ljust(_HANDLES, b"\x00") + MAGIC.to_bytes(8, "little")


def _block(entries: Mapping[bytes, bytes]) -> bytes:
    """Return a block in which every key stands in full."""
    out, places = bytearray(), []
    for key in sorted(entries):
        places.append(len(out))
        value = entries[key]
        out += b"\x00" + _number(len(key)) + _number(len(value)) + key + value
    places = places or [0]
    for number in (*places, len(places)):
        out += number.to_bytes(4, "little")
    return bytes(out)
