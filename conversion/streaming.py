"""Parameters of an open checkpoint, read in blocks of rows, turned, cast and summed on the way.

A block is a few MB. A tensor that lies the other way round in its target is turned in strips, so
that not even an embedding of several GB is ever held as a whole.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.raw import Rows
from xlmfam.common.checkpoints.source import TensorSource, TensorSpec
from xlmfam.common.parameters import Parameter
from xlmfam.common.parameters.spelling import is_transposed

BYTES_PER_BLOCK = 4 * 2**20
# Two may be there for a moment.
BYTES_PER_STRIP = 128 * 2**20
# Rows and columns that are turned at once: both sides of so much lie in a processor's cache.
_TILE = 64
_BLOCKS_WAITING = 4


@dataclass(frozen=True)
class Reading:
    """A parameter in an open checkpoint.

    Attributes:
        source: The checkpoint.
        stored: Its name there.
        parameter: What it is.
        dtype: The dtype to give it in; ``None`` for its own.
    """

    source: TensorSource
    stored: str
    parameter: Parameter
    dtype: np.dtype | None = None

    @property
    def is_turned(self) -> bool:
        """Whether it lies transposed in the file."""
        return is_transposed(self.parameter, self.source.spelling)

    def spec(self, turned: bool) -> TensorSpec:
        """Return what `blocks` gives."""
        stored = self.source.specs()[self.stored]
        return TensorSpec(
            stored.shape[::-1] if turned else stored.shape, self.dtype or stored.dtype
        )

    def canonical(self) -> Iterator[np.ndarray]:
        """Give it in canonical layout."""
        return self.blocks(self.is_turned)

    def blocks(
        self, turned: bool, seen: Callable[[np.ndarray], None] | None = None
    ) -> Iterator[np.ndarray]:
        """Give it in blocks of rows.

        Where the blocks of two tensors end depends only on the shape and dtype given.

        Args:
            turned: Transposed against the file.
            seen: Called with each block of the file's own layout, once and in order.
        """
        spec = self.spec(turned)
        if turned and len(spec.shape) > 1:
            return self._turned(spec, seen)
        return self._straight(spec, seen)

    def _straight(
        self, spec: TensorSpec, seen: Callable[[np.ndarray], None] | None
    ) -> Iterator[np.ndarray]:
        for start, stop in _steps(spec):
            block = self._rows(start, stop) if spec.shape else self.source.read(self.stored)
            block = self._cast(block)
            if seen is not None:
                seen(block)
            yield block

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self.source.read_rows(self.stored, start, stop)

    def _cast(self, block: np.ndarray) -> np.ndarray:
        if self.dtype is None or block.dtype == self.dtype:
            return np.asarray(block, order="C")
        with np.errstate(over="ignore"):  # beyond the range is infinite, as in every framework
            return np.ascontiguousarray(block.astype(self.dtype)).reshape(block.shape)

    def _turned(
        self, spec: TensorSpec, seen: Callable[[np.ndarray], None] | None
    ) -> Iterator[np.ndarray]:
        if len(spec.shape) > 2:  # no parameter is like that
            whole = self._cast(self.source.read(self.stored))
            if seen is not None:
                seen(whole)
            yield np.ascontiguousarray(whole.T)
            return
        height, width = spec.shape
        step = _rows_per_block(spec)
        row_bytes = max(1, width * spec.dtype.itemsize)
        strip_height = max(1, BYTES_PER_STRIP // row_bytes // step) * step
        for top in range(0, height, strip_height):
            bottom = min(top + strip_height, height)
            strip = np.empty((bottom - top, width), spec.dtype)
            left = 0
            for block in self._straight(self.spec(turned=False), seen if top == 0 else None):
                _turn_into(strip[:, left : left + len(block)], block[:, top:bottom])
                left += len(block)
            for start in range(0, bottom - top, step):
                yield strip[start : start + step]


def _rows_per_block(spec: TensorSpec) -> int:
    return max(1, BYTES_PER_BLOCK // max(1, prod(spec.shape[1:]) * spec.dtype.itemsize))


def _steps(spec: TensorSpec) -> Iterator[tuple[int, int]]:
    count = spec.shape[0] if spec.shape else 1
    step = _rows_per_block(spec)
    for start in range(0, count, step):
        yield start, min(start + step, count)


def _turn_into(out: np.ndarray, block: np.ndarray) -> None:
    """``out[...] = block.T`` with both of them visited tile by tile."""
    for row in range(0, block.shape[0], _TILE):
        for column in range(0, block.shape[1], _TILE):
            tile = block[row : row + _TILE, column : column + _TILE]
            out[column : column + _TILE, row : row + _TILE] = tile.T


class Sums:
    """Takes SHA-256 sums in a thread of its own, beside the reading and the writing.

    What it is given it does in the order in which it came; few blocks wait at a time.
    """

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(_BLOCKS_WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="xlmfam-sums", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                if self._error is None:
                    work()
            except BaseException as error:
                self._error = error
            del work  # and with it the block

    def do(self, work: Callable[[], None]) -> None:
        """Do something after everything before it."""
        self._raise()
        self._work.put(work)

    def add(self, digest: Any, block: np.ndarray) -> None:
        """Add a row-major array to a sum."""
        self.do(lambda: digest.update(bytes_of(block)))

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def wait(self) -> None:
        """Wait until all is done.

        Raises:
            OSError: What was to be noted could not be written.
        """
        done = threading.Event()
        self._work.put(done.set)
        while not done.wait(0.05):
            self._raise()
        self._raise()

    def close(self) -> None:
        """Let go of the thread."""
        self._work.put(None)
        self._thread.join()

    def __enter__(self) -> Sums:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def bytes_of(array: np.ndarray) -> memoryview:
    """The bytes of a row-major array."""
    return array.reshape(-1).view(np.uint8).data


def sum_of(blocks: Iterable[np.ndarray]) -> str:
    """Return the SHA-256 of blocks in a row."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(bytes_of(np.asarray(block, order="C")))
    return digest.hexdigest()


# The bits that are all set in infinite values, in those that are no number, and in no others.
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000, "float64": 0x7FF << 52}


def not_finite(array: np.ndarray) -> int:
    """Return how many values are infinite or no number; takes a fraction of a checksum's time."""
    exponent = _EXPONENTS.get(array.dtype.name)
    if exponent is None:  # float8, of which no model is made
        return int(np.count_nonzero(~np.isfinite(array.astype(np.float32))))
    width = array.dtype.itemsize
    bits = np.asarray(array, order="C").reshape(-1).view(f"u{width}")
    # As whole numbers they are the largest: positive ones as signed, negative ones as unsigned.
    sign = 1 << (8 * width - 1)
    if not bits.size or (bits.max() < exponent | sign and bits.view(f"i{width}").max() < exponent):
        return 0
    bits = bits & bits.dtype.type(exponent)
    return int(np.count_nonzero(bits == exponent))


class Carried(Rows):
    """A parameter on its way from one checkpoint to another.

    Args:
        reading: Where it comes from.
        turned: Whether it lies the other way round where it goes.
        sums: Takes its sum.

    Attributes:
        sha256: Of the bytes in canonical layout, in the dtype that is written; known when all
            is written and ``sums`` has done its work.
        not_finite: Number of values that are infinite or no number, known at the same time.
    """

    def __init__(self, reading: Reading, turned: bool, sums: Sums):
        super().__init__(reading.spec(turned))
        self.reading = reading
        self.turned = turned
        self.sha256: str | None = None
        self.not_finite = 0
        self.resumed = False
        self._sums = sums
        self._digest: Any = None

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Rows.blocks`."""
        reading, turned = self.reading, self.turned
        if self._digest is not None:  # written under a second name
            yield from reading.blocks(turned)
            return
        self._digest = hashlib.sha256()
        if turned == reading.is_turned:
            for block in reading.blocks(turned):
                self._add(block)
                yield block
        elif turned:
            yield from reading.blocks(turned, self._add)
        else:  # canonical neither here nor there
            yield from reading.blocks(turned)
            for block in reading.canonical():
                self._add(block)

    def _add(self, block: np.ndarray) -> None:
        self._sums.add(self._digest, block)
        self._sums.do(lambda: self._count(block))

    def _count(self, block: np.ndarray) -> None:
        self.not_finite += not_finite(block)

    def written(self, tell: Callable[[Any], None]) -> None:
        """See `Rows.written`."""

        def finish() -> None:
            self.sha256 = self._digest.hexdigest()
            tell({"sha256": self.sha256, "not_finite": self.not_finite})

        self._sums.do(finish)

    def remembered(self, record: Any) -> None:
        """See `Rows.remembered`."""
        self.sha256 = record["sha256"]
        self.not_finite = record.get("not_finite", 0)
        self.resumed = True
