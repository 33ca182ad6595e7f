"""CRC-32C, the check sum of TensorFlow's checkpoints, of large arrays at once.

A remainder is linear in what it is of: many rows of bytes are summed side by side, and the sums
joined in pairs. To append n bytes is to move a sum by n bytes of zeros.
"""

from __future__ import annotations

from functools import cache

import numpy as np

_POLYNOMIAL = 0x82F63B78
_ALL = 0xFFFFFFFF
_MASK = 0xA282EAD8
_ROW = 256
_PIECE = 2**22  # bytes at a time


def masked_crc(data: bytes | np.ndarray) -> int:
    """Return the sum of bytes as the checkpoints store it: turned and moved.

    Args:
        data: Bytes, or a one-dimensional uint8 array.
    """
    values = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    state = _ALL
    for start in range(0, len(values), _PIECE):
        piece = values[start : start + _PIECE]
        state = _moved(state, len(piece)) ^ _sum(piece)
    state ^= _ALL
    return (((state >> 15) | (state << 17)) + _MASK) & _ALL


def _sum(piece: np.ndarray) -> int:
    """Return the remainder of some bytes, begun with zero."""
    rows = 1 << max(0, (len(piece) - 1) // _ROW).bit_length()
    # Zeros before the first byte change nothing.
    padded = np.zeros(rows * _ROW, np.uint8)
    padded[len(padded) - len(piece) :] = piece
    columns = np.ascontiguousarray(padded.reshape(rows, _ROW).T).astype(np.uint32)
    sums, table = np.zeros(rows, np.uint32), _remainders()
    for column in columns:
        sums = table[(sums ^ column) & 255] ^ (sums >> 8)
    power = _ROW.bit_length() - 1
    while len(sums) > 1:
        sums = _apply(_zeros(power), sums[::2]) ^ sums[1::2]
        power += 1
    return int(sums[0])


def _moved(state: int, count: int) -> int:
    """Return a remainder with so many zeros behind it."""
    value = np.array([state], np.uint32)
    for power in range(count.bit_length()):
        if count >> power & 1:
            value = _apply(_zeros(power), value)
    return int(value[0])


@cache
def _remainders() -> np.ndarray:
    """Return the remainder of each byte."""
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@cache
def _zeros(power: int) -> np.ndarray:
    """Return what 2**power zeros make of each bit."""
    if power == 0:
        bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return _remainders()[bits & 255] ^ (bits >> 8)
    half = _zeros(power - 1)
    return _apply(half, half)


def _apply(images: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the images of values, from those of their bits."""
    result = np.zeros_like(values)
    for bit, image in enumerate(images):
        result ^= np.where(values >> np.uint32(bit) & np.uint32(1), image, np.uint32(0))
    return result
