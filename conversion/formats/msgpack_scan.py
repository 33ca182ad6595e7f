"""Finding the arrays in a ``flax.serialization`` file without reading them.

Only the few MessagePack types that such a file has are known; every length is held against the
bytes that are left before anything is allocated or skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from xlmfam.common.checkpoints.raw import read_bytes_into
from xlmfam.common.checkpoints.source import DTYPES, TensorSpec, require_possible
from xlmfam.common.errors import CheckpointError

EXT_ARRAY = 1
EXT_SCALAR = 3
CHUNKED = "__msgpack_chunked_array__"

_T = TypeVar("_T")

_MAX_DEPTH = 64
_MAX_KEY_BYTES = 2**10
# Every leaf is named by its whole path.
_MAX_PATH = 2**11
_MAX_DIMENSIONS = 32
# Far beyond any model's tree; bounds the time that a file of empty maps can take.
_MAX_TOKENS = 300_000
# Token by first byte: kind and the number of bytes of its length or value.
_SIZED = {
    0xC4: ("bin", 1),
    0xC5: ("bin", 2),
    0xC6: ("bin", 4),
    0xC7: ("ext", 1),
    0xC8: ("ext", 2),
    0xC9: ("ext", 4),
    0xD9: ("str", 1),
    0xDA: ("str", 2),
    0xDB: ("str", 4),
    0xDC: ("array", 2),
    0xDD: ("array", 4),
    0xDE: ("map", 2),
    0xDF: ("map", 4),
    0xCC: ("int", 1),
    0xCD: ("int", 2),
    0xCE: ("int", 4),
    0xCF: ("int", 8),
}
_FIXED = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


@dataclass(frozen=True)
class Leaf:
    """An array in the file.

    Attributes:
        spec: Its shape and dtype.
        pieces: Offset and number of bytes of each piece of its data, in order.
    """

    spec: TensorSpec
    pieces: tuple[tuple[int, int], ...]


def scan(file: BinaryIO, size: int, path: Path) -> dict[str, Leaf]:
    """Find every array.

    Args:
        file: The open file.
        size: Its size.
        path: Its path, for error messages.

    Returns:
        The arrays by their paths in the tree, with ``/`` between.

    Raises:
        CheckpointError: The file is truncated, damaged, or holds more than arrays.
    """
    scanner = _Scanner(file, size, path)
    kind, count = scanner.token()
    if kind != "map":
        raise CheckpointError(f"{path}: not a flax checkpoint: it holds a {kind}, not a tree")
    leaves: dict[str, Leaf] = {}
    scanner.tree(count, (), leaves)
    if scanner.position != size:
        raise CheckpointError(f"{path}: {size - scanner.position} bytes follow after the tree")
    return leaves


class _Scanner:
    def __init__(self, file: BinaryIO, size: int, path: Path):
        self._file = file
        self._size = size
        self._path = path
        self.position = 0
        self._tokens = 0

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: not a whole flax checkpoint (truncated or damaged): {what} at byte "
            f"{self.position}"
        )

    def _bytes(self, count: int) -> bytes:
        self._require(count)
        out = np.empty(count, np.uint8)
        read_bytes_into(self._file, self.position, out, self._path)
        self.position += count
        return out.tobytes()

    def _require(self, count: int) -> None:
        if count > self._size - self.position:
            raise self._damaged(f"{count} bytes are announced, {self._size - self.position} left")

    def token(self) -> tuple[str, int]:
        """Kind and length, count or value of the next token; its content comes next."""
        self._tokens += 1
        if self._tokens > _MAX_TOKENS:
            raise self._damaged("more entries than a model has")
        first = self._bytes(1)[0]
        if first < 0x80:
            return "int", first
        if first < 0x90:
            return "map", first & 0x0F
        if first < 0xA0:
            return "array", first & 0x0F
        if first < 0xC0:
            return "str", first & 0x1F
        if first in (0xC2, 0xC3):
            return "bool", first & 1
        if first in _FIXED:
            return "ext", _FIXED[first]
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self._bytes(width), "big")
        return ("nothing" if first == 0xC0 else "number"), first

    def _text(self) -> str:
        kind, length = self.token()
        if kind not in ("str", "bin") or length > _MAX_KEY_BYTES:
            raise self._damaged(f"a {kind} where a name is due")
        try:
            return self._bytes(length).decode()
        except UnicodeDecodeError as error:
            raise self._damaged("a name that is not text") from error

    def _int(self) -> int:
        kind, value = self.token()
        if kind != "int":
            raise self._damaged(f"a {kind} where a whole number is due")
        return value

    def tree(self, count: int, path: tuple[str, ...], leaves: dict[str, Leaf]) -> None:
        """Scan a map of `count` entries whose header has been read."""
        if len(path) > _MAX_DEPTH:
            raise self._damaged("too deep a tree")
        for number in range(count):
            key = self._text()
            if key == CHUNKED and number == 0:
                self._add(path, self._chunked(count), leaves)
                return
            here = (*path, key)
            kind, length = self.token()
            if kind == "map":
                self.tree(length, here, leaves)
            elif kind == "ext":
                self._add(here, self._array(length), leaves)
            else:
                raise CheckpointError(
                    f"{self._path}: the entry {'/'.join(here)!r} is a {kind}, not an array; a "
                    "checkpoint holds parameters only"
                )

    def _add(self, path: tuple[str, ...], leaf: Leaf, leaves: dict[str, Leaf]) -> None:
        name = "/".join(path)
        if len(name) > _MAX_PATH:
            raise self._damaged(f"a name of {len(name)} letters")
        require_possible(leaf.spec.shape, f"{self._path}: {name!r}")
        if name in leaves:
            raise CheckpointError(f"{self._path}: holds {name!r} twice")
        leaves[name] = leaf

    def _array(self, length: int) -> Leaf:
        """Scan an extension whose header is read except for its type."""
        self._require(length + 1)
        code = self._bytes(1)[0]
        end = self.position + length
        if code not in (EXT_ARRAY, EXT_SCALAR):
            raise self._damaged(f"an extension of type {code}, which is no real array,")
        if self.token() != ("array", 3):
            raise self._damaged("an array without shape, dtype and data")
        shape = self._shape()
        dtype = self._text()
        if dtype not in DTYPES:
            raise self._damaged(f"the dtype {dtype!r} (readable are {', '.join(DTYPES)})")
        kind, count = self.token()
        spec = TensorSpec(shape, DTYPES[dtype])
        if kind != "bin" or count != spec.nbytes or self.position + count != end:
            raise self._damaged(f"data that do not fit the shape {shape} of {dtype}")
        piece = (self.position, count)
        self.position = end
        return Leaf(spec, (piece,))

    def _shape(self) -> tuple[int, ...]:
        kind, count = self.token()
        if kind != "array" or count > _MAX_DIMENSIONS:
            raise self._damaged("an array without a shape")
        return tuple(self._int() for _ in range(count))

    def _chunked(self, count: int) -> Leaf:
        """Scan the rest of a map that stands for one large array."""
        if count != 3 or self.token() != ("bool", 1):
            raise self._damaged("a chunked array that is none")
        shape: tuple[int, ...] | None = None
        chunks: list[Leaf] = []
        for _ in range(2):
            key = self._text()
            kind, length = self.token()
            if kind != "map" or key not in ("shape", "chunks"):
                raise self._damaged("a chunked array that is none")
            if key == "shape" and length <= _MAX_DIMENSIONS:
                shape = tuple(self._numbered(i, self._int) for i in range(length))
            elif key == "chunks":
                chunks = [self._numbered(i, self._chunk) for i in range(length)]
        return self._joined(shape, chunks)

    def _numbered(self, number: int, scan_value: Callable[[], _T]) -> _T:
        if self._text() != str(number):
            raise self._damaged("pieces that are not in order")
        return scan_value()

    def _chunk(self) -> Leaf:
        kind, length = self.token()
        if kind != "ext":
            raise self._damaged(f"a {kind} where a piece of an array is due")
        return self._array(length)

    def _joined(self, shape: tuple[int, ...] | None, chunks: list[Leaf]) -> Leaf:
        dtypes = {chunk.spec.dtype for chunk in chunks}
        if shape is None or len(dtypes) != 1:
            raise self._damaged("a chunked array that is none")
        spec = TensorSpec(shape, dtypes.pop())
        pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
        if sum(count for _, count in pieces) != prod(shape) * spec.dtype.itemsize:
            raise self._damaged(f"pieces that do not fit the shape {shape}")
        return Leaf(spec, pieces)
