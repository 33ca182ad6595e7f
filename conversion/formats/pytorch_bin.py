"""``pytorch_model.bin``: a state dict pickled by ``torch.save``.

Read with ``torch.load(weights_only=True)``, whose unpickler knows tensors and containers only:
nothing in the file is executed. Written without PyTorch, because ``torch.save`` wants all tensors
in memory at once.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.filling import Layout
from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError, MissingPackageError
from xlmfam.conversion.formats.torch_archive import TorchArchive
from xlmfam.conversion.formats.torch_file import (
    StoredTensor,
    TorchFile,
    require_tensors_only,
    tensors_of,
)

# A mapped page counts as our memory until the file is opened anew.
_BYTES_PER_MAPPING = 32 * 2**20
_UNKNOWN_TO_NUMPY = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "torch", "pytorch_model.bin", 'pip install "xlmfam[pt]"'
        ) from error
    return torch


class PytorchSource(TensorSource):
    """One open ``.bin`` file.

    Files of PyTorch 1.6 and later are mapped and read tensor by tensor. The older format has no
    index, so such a file is held in memory as a whole.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is damaged, holds more than named tensors, or would run code.
        MissingPackageError: PyTorch is not installed.
    """

    spelling: Spelling = "canonical"

    def __init__(self, path: Path):
        self.path = Path(path)
        self._torch = _torch()
        try:
            require_tensors_only(self.path)
            self._mapped = zipfile.is_zipfile(self.path)
            self._identity = _identity(self.path)
            if self._mapped:
                _require_stored(self.path)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        self._state: dict[str, Any] | None = self._load()
        self._touched = 0
        self._file: TorchFile | None = None
        self._places: dict[str, StoredTensor] | None = None
        self._specs = {name: self._spec(name, tensor) for name, tensor in self._state.items()}

    def _load(self) -> dict[str, Any]:
        try:
            state = self._torch.load(
                self.path, map_location="cpu", weights_only=True, mmap=self._mapped
            )
        except Exception as error:  # torch raises a dozen kinds for damaged files
            raise CheckpointError(self._why_not(error)) from error
        if not isinstance(state, dict):
            raise CheckpointError(
                f"{self.path}: holds a {type(state).__name__}, not tensors by their names"
            )
        for name, value in state.items():
            self._require_tensor(name, value)
        return state

    def _why_not(self, error: Exception) -> str:
        # Torch's own message advises to allow code from the file, so only its facts are passed on.
        text = str(error)
        wanted = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)", text)
        if wanted and isinstance(error, pickle.UnpicklingError):
            return (
                f"{self.path}: holds more than tensors ({wanted[1] or wanted[2]}), and reading "
                "that would run code from the file, which xlmfam never does"
            )
        reason = text.rpartition("error: ")[2].strip().partition("\n")[0]
        return f"{self.path}: not a whole PyTorch checkpoint (truncated or damaged): {reason}"

    def _require_tensor(self, name: Any, value: Any) -> None:
        if isinstance(value, dict):
            raise CheckpointError(
                f"{self.path}: {name!r} is a dict; a checkpoint has one flat level of names. This "
                f"looks like a training checkpoint: save its {name!r} part on its own"
            )
        if not isinstance(name, str) or not isinstance(value, self._torch.Tensor):
            raise CheckpointError(
                f"{self.path}: the entry {name!r} is a {type(value).__name__}, not a named tensor"
            )
        if value.layout != self._torch.strided or value.is_quantized or value.is_meta:
            raise CheckpointError(f"{self.path}: tensor {name!r} is not dense")

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has the dtype {dtype}; readable are "
                f"{', '.join(DTYPES)}"
            )
        spec = TensorSpec(tuple(tensor.shape), DTYPES[dtype])
        # Strides of zero would let a small file ask for any amount of memory.
        if spec.nbytes > max(self._identity[2], 2**16):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} claims {spec.nbytes} bytes, more than the file has"
            )
        return spec

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return dict(self._specs)

    def _require(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise unknown_name(name, self.path, self._specs)
        if self._state is None:
            raise CheckpointError(f"{self.path}: already closed")
        return self._specs[name]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into a fresh array; see `TensorSource.read`."""
        spec = self._require(name)
        if spec.shape:
            return self._mapped_rows(name, 0, spec.shape[0])
        out = np.empty(spec.shape, spec.dtype)
        out[...] = self._take(name, ..., spec.nbytes)
        return out

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        self._require(name)
        tensor = self._tensor_in_file(name)
        if tensor is None or self._file is None:
            return self._mapped_rows(name, start, stop)
        return self._file.read(tensor, start, stop)

    def is_same(self, name: str, other: str) -> bool:
        """Whether two names share their values in the file."""
        return name == other or (
            (tensor := self._tensor_in_file(name)) is not None
            and tensor == self._tensor_in_file(other)
        )

    def _tensor_in_file(self, name: str) -> StoredTensor | None:
        """Where a tensor lies, which takes no mapping to read; ``None`` for unusual ones."""
        if self._places is None:
            self._places = {}
            if self._mapped and _identity(self.path) == self._identity:
                with contextlib.suppress(CheckpointError):
                    self._file = TorchFile(self.path)
                    self._places = tensors_of(self._file.value)
        tensor = self._places.get(name)
        assert self._state is not None
        is_plain = not (self._state[name].is_neg() or self._state[name].is_conj())
        return tensor if tensor and is_plain and tensor.spec == self._specs[name] else None

    def _mapped_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        spec = self._specs[name]
        out = np.empty((stop - start, *spec.shape[1:]), spec.dtype)
        # In blocks, so that little is mapped beside the copy.
        step = max(1, len(out) * _BYTES_PER_MAPPING // max(1, out.nbytes))
        for first in range(0, len(out), step):
            block = out[first : first + step]
            rows = slice(start + first, start + first + len(block))
            block[...] = self._take(name, rows, block.nbytes)
        return out

    def _take(self, name: str, block: Any, nbytes: int) -> np.ndarray:
        self._touched += nbytes
        if self._mapped and self._touched > _BYTES_PER_MAPPING:
            self._remap()
            self._touched = nbytes
        assert self._state is not None
        return _to_numpy(self._state[name][block], self._specs[name].dtype)

    def _remap(self) -> None:
        if _identity(self.path) != self._identity:
            raise CheckpointError(f"{self.path}: the file was replaced while it was being read")
        self._state = None
        self._state = self._load()

    def close(self) -> None:
        """Let go of the file."""
        self._state = None
        if self._file is not None:
            self._file.close()


def _require_stored(path: Path) -> None:
    """Refuse archives that unpack to more than their own size: torch never compresses."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise CheckpointError(f"{path}: truncated or damaged: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path}: is a compressed archive, not a file of torch.save")


def _identity(path: Path) -> tuple[int, int, int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _to_numpy(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """A NumPy view of a tensor, also for the dtypes that torch does not hand to NumPy."""
    import torch

    tensor = tensor.detach().resolve_conj().resolve_neg()
    if dtype.name in _UNKNOWN_TO_NUMPY:
        same_width = torch.int16 if dtype.itemsize == 2 else torch.int8
        return tensor.contiguous().view(same_width).numpy().view(dtype)
    return tensor.numpy()


def open_file(path: Path) -> TensorSource:
    """Open one file; see `PytorchSource`."""
    return PytorchSource(path)


def lay_out(
    path: Path,  # noqa: ARG001  (all formats are called alike)
    specs: Mapping[str, TensorSpec],
    *,
    shard: bool = False,  # noqa: ARG001
    architecture: str | None = None,  # noqa: ARG001
    exists: bool = False,
) -> Layout:
    """Say where everything goes in one file; needs no PyTorch.

    Names for which one and the same array or `Rows` is given are stored once.

    Args:
        path: The file.
        specs: The tensors.
        shard: Not needed by this format.
        architecture: Not needed by this format.
        exists: Whether it is there already, from an attempt at the same that was killed.

    Raises:
        CheckpointError: A dtype cannot be stored.
    """
    for name, spec in specs.items():
        if spec.dtype.name not in DTYPES:
            raise CheckpointError(f"tensor {name!r}: .bin cannot hold it as {spec.dtype.name}")
    return TorchArchive(specs, exists)


def index_name(name: str, architecture: str | None = None) -> str:  # noqa: ARG001
    """How the shard index spells a tensor's name: as the shards do."""
    return name


def name_in_index(name: str) -> str:
    """The inverse of `index_name`."""
    return name
