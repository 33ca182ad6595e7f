"""What every checkpoint reader offers: names, shapes and dtypes first, tensors one at a time.

A model asks a source for ``specs()``, compares them with its parameter table, and only then
reads. Readers never hold more than the tensor that was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import ml_dtypes
import numpy as np

from xlmfam.common.errors import CheckpointError

Spelling = Literal["canonical", "flax", "keras_h5"]

# Every dtype a checkpoint may hold, by the one name that NumPy and JAX give it. A reader takes
# dtypes from this table only, so that a file cannot ask for object or void arrays.
_NAMES = (
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
)
DTYPES: dict[str, np.dtype] = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in _NAMES}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a stored tensor, in the layout of its file.

    Attributes:
        shape: The dimensions.
        dtype: The NumPy dtype; bfloat16 is ``ml_dtypes.bfloat16``.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return prod(self.shape) * self.dtype.itemsize


# What NumPy and HDF5 take at most; models have four.
_MOST_DIMENSIONS = 32


def require_possible(shape: tuple[int, ...], where: str) -> None:
    """Raise ``CheckpointError`` for a shape that no array can have, even one without values.

    Args:
        shape: As a file has it.
        where: File and tensor, for the message.
    """
    if len(shape) > _MOST_DIMENSIONS or prod(max(1, size) for size in shape) >= 2**56:
        text = f"{len(shape)} dimensions" if len(shape) > 8 else f"the shape {shape}"
        raise CheckpointError(f"{where} has {text}, which no array can have")


class TensorSource(Protocol):
    """An open checkpoint.

    Attributes:
        spelling: How the names are spelled. ``canonical``: PyTorch state-dict names;
            ``flax``: ``model/layers/0/self_attn/q_proj/kernel``; ``keras_h5``:
            ``model/layers.0/self_attn/q_proj/kernel``, which is the name of the HDF5 weight
            without the leading model-instance component and without ``:0``.
    """

    spelling: Spelling

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor, without reading any tensor's data."""
        ...

    def read(self, name: str) -> np.ndarray:
        """Read one tensor.

        Args:
            name: A key of `specs()`.

        Returns:
            A fresh array in the layout of the file.

        Raises:
            CheckpointError: The name is unknown or the file is damaged.
        """
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of one tensor.

        Args:
            name: A key of `specs()`, of a tensor with at least one dimension.
            start: The first row, counted along the first dimension.
            stop: The row after the last.

        Returns:
            A fresh array in the layout of the file.

        Raises:
            CheckpointError: As for `read`.
        """
        # For readers that have no better way.
        return self.read(name)[start:stop].copy()

    def is_same(self, name: str, other: str) -> bool:
        """Whether two names are known to be one tensor in the file, stored once."""
        return name == other

    def files(self) -> list[Path]:
        """The files that the checkpoint lies in."""
        return [Path(getattr(self, "path"))]  # noqa: B009  (every reader has one)

    def close(self) -> None:
        """Let go of the files; reading afterwards is an error."""
        ...

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def unknown_name(name: str, where: object, specs: dict[str, TensorSpec]) -> CheckpointError:
    """The error for reading a tensor that a file does not hold."""
    some = ", ".join(list(specs)[:3])
    return CheckpointError(f"{where}: no tensor {name!r} among its {len(specs)} ({some}, ...)")


def describe(spec: TensorSpec) -> str:
    """A spec as people read it: ``float32 (2, 3)``."""
    return f"{spec.dtype.name} {spec.shape}"
