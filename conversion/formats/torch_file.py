"""Files of ``torch.save`` that hold more than named tensors, read without PyTorch.

The public releases are training checkpoints and whole pickled models: dicts, settings and objects
of their own classes around the tensors. Here objects are placeholders and nothing is executed
(`xlmfam.common.pickles`); tensors are noted where they lie and read one at a time. Both layouts
are known: the archive of PyTorch 1.6 and later, and the row of pickles before that.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xlmfam.common.checkpoints.raw import aligned_empty, open_binary, read_bytes_into
from xlmfam.common.checkpoints.source import DTYPES, TensorSpec
from xlmfam.common.errors import CheckpointError
from xlmfam.common.pickles import (
    LARGEST,
    NO_ARCHIVE,
    TORCH_MAGIC,
    Machine,
    Placeholder,
    is_archive,
)

_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_REBUILT = {("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_tensor")}
_PARAMETERS = {
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.nn.parameter", "Parameter"),
}
_LOCAL_HEADER = 30
_MAX_DIMENSIONS = 16
# What is raised by instructions that do not fit together.
_DAMAGED = (IndexError, KeyError, TypeError, OverflowError, RecursionError, *NO_ARCHIVE)


@dataclass(frozen=True)
class Storage:
    """A row of numbers in the file.

    Attributes:
        key: Its name in the file.
        dtype: What it is a row of.
        size: How many there are.
    """

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file: a window on a storage.

    Attributes:
        storage: What it lies in.
        offset: Of its first value, in values.
        shape: The dimensions.
        strides: Steps along them, in values.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        """Shape and dtype."""
        return TensorSpec(self.shape, self.storage.dtype)


class _TensorMachine(Machine):
    """Also knows how tensors are written."""

    def made(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Placeholder) else None
        if name in _REBUILT:
            return _tensor(arguments)
        if name in _PARAMETERS and isinstance(arguments, tuple) and arguments:
            return arguments[0]
        return super().made(function, arguments)

    def kept_outside(self, key: Any) -> Any:
        kind = key[0] if isinstance(key, tuple) and key else None
        if kind == "module" and len(key) > 1:  # a class, with its source code for people to see
            return key[1]
        if kind != "storage" or len(key) < 5 or not isinstance(key[1], Placeholder):
            return super().kept_outside(key)
        name = key[1].name
        if not isinstance(name, tuple) or name[1] not in _STORAGES:
            raise ValueError(f"a storage of the type {str(name)[:80]}")
        if len(key) > 5 and key[5] is not None:
            raise ValueError("a storage that is part of another, as before PyTorch 0.4")
        _require_count(key[4])
        if not isinstance(key[2], str | int):
            raise ValueError("a storage without a name")
        return Storage(str(key[2]), DTYPES[_STORAGES[name[1]]], key[4])


def _require_count(*numbers: Any) -> None:
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError("sizes that are none")


def _tensor(arguments: Any) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple | list):
        raise ValueError("a tensor without a storage")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError("a tensor whose sizes and steps do not fit together")
    _require_count(offset, *shape, *strides)
    tensor = StoredTensor(storage, offset, tuple(shape), tuple(strides))
    if prod(shape) > storage.size or offset + _span(tensor) > storage.size:
        raise ValueError(f"a tensor of the shape {tensor.shape} in {storage.size} values")
    return tensor


def _span(tensor: StoredTensor) -> int:
    """How many values lie between its first and its last, both included."""
    if not prod(tensor.shape):
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


class _SizedMachine(_TensorMachine):
    """Remembers the storages, whose values follow after the pickle."""

    def __init__(self, size: int) -> None:  # noqa: ARG002  (what screens goes by it)
        super().__init__()
        self.storages: dict[str, Storage] = {}

    def kept_outside(self, key: Any) -> Any:
        value = super().kept_outside(key)
        if isinstance(value, Storage):
            self.storages[value.key] = value
        return value


# What may be called to make named tensors, by those who do call it.
_HARMLESS = {
    *_REBUILT,
    *_PARAMETERS,
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch.serialization", "_get_layout"),
}


class _Screen(_SizedMachine):
    """Finds what is more than tensors, and tensors that are larger than the file."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._size = size

    def made(self, function: Any, arguments: Any) -> Any:
        name = function.name if isinstance(function, Placeholder) else None
        if name not in _HARMLESS:
            raise CheckpointError(
                f"holds more than tensors ({'.'.join(name or ('?',))[:80]}), and reading that "
                "would run code from the file, which xlmfam never does"
            )
        return Placeholder(None, function, arguments)

    def kept_outside(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) > 4:
            _require_count(key[4])
            if key[4] > self._size:
                raise ValueError(f"a tensor of {key[4]} values in {self._size} bytes")
            if isinstance(key[1], Placeholder) and key[1].name and key[1].name[1] in _STORAGES:
                return super().kept_outside(key)
        return Placeholder(None, None, key)


def require_tensors_only(path: Path) -> None:
    """Hold a file against what PyTorch should be given to read.

    Its own restricted reader still makes byte arrays and storages of any size.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, or lies about their sizes.
    """
    TorchFile(path, _Screen).close()


class TorchFile:
    """One open file of ``torch.save``.

    Attributes:
        path: The file.
        value: What it holds: dicts (with strings as keys; others are left out), lists, tuples,
            strings and numbers, `StoredTensor` and, for all else, `Placeholder`.

    Args:
        path: The file.
        machine: What runs its pickle.

    Raises:
        CheckpointError: The file is missing or damaged, or is none of ``torch.save``.
    """

    def __init__(self, path: Path, machine: type[_SizedMachine] = _SizedMachine):
        self.path = Path(path)
        self._machine = machine
        self._file, self._size = open_binary(self.path)
        self._places: dict[str, tuple[int, int]] = {}  # first byte and bytes of every storage
        try:
            self.value = self._open()
        except CheckpointError as error:
            self._file.close()
            text = str(error)
            if text.startswith(str(self.path)):
                raise
            raise CheckpointError(f"{self.path}: {text}") from error
        except _DAMAGED as error:
            self._file.close()
            # What is wrong may quote the file at any length.
            raise CheckpointError(
                f"{self.path}: not a whole PyTorch file (truncated or damaged): {str(error)[:200]}"
            ) from error
        except BaseException:
            self._file.close()
            raise

    def _open(self) -> Any:
        if is_archive(self.path):
            return self._open_archive()
        return self._open_row()

    def _open_archive(self) -> Any:
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = {entry.filename: entry for entry in archive.infolist()}
                twice = len(entries) < len(archive.infolist())
        except NO_ARCHIVE as error:
            raise CheckpointError(
                f"{self.path}: truncated or damaged: {str(error)[:200]}"
            ) from error
        if twice:
            raise CheckpointError(f"{self.path}: damaged: it has two entries of one name")
        found = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(found) != 1:
            raise CheckpointError(f"{self.path}: an archive without one data.pkl")
        folder = found[0].removesuffix("data.pkl")
        for name, entry in entries.items():
            # torch never compresses, and what is compressed can unpack to any size.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{self.path}: is a compressed archive, not of torch.save")
            if name == found[0] or name.startswith(f"{folder}data/"):
                self._places[name] = (self._content_of(entry.header_offset), entry.file_size)
        start, size = self._places.pop(found[0])
        self._require_order(entries.get(f"{folder}byteorder"))
        if size > min(LARGEST, self._size - start):
            raise CheckpointError(f"{self.path}: truncated, or of more settings than any model")
        self._places = {k.removeprefix(f"{folder}data/"): v for k, v in self._places.items()}
        return self._machine(self._size).run(io.BytesIO(self._bytes(start, size)))

    def _content_of(self, header: int) -> int:
        """Where the content of an archive's entry begins."""
        head = self._bytes(header, _LOCAL_HEADER)
        name, extra = (int.from_bytes(head[i : i + 2], "little") for i in (26, 28))
        return header + _LOCAL_HEADER + name + extra

    def _require_order(self, entry: zipfile.ZipInfo | None) -> None:
        if entry is None:
            return
        order = self._bytes(self._content_of(entry.header_offset), min(entry.file_size, 16))
        if order.strip() != b"little":
            raise CheckpointError(f"{self.path}: was written on a big-endian machine")

    def _open_row(self) -> Any:
        with open(self.path, "rb") as file:
            stream = _Rest(file, self._size)
            if self._machine(self._size).run(stream) != TORCH_MAGIC:
                raise CheckpointError(f"{self.path}: not a file of torch.save")
            _TensorMachine().run(stream)  # version of the format
            _TensorMachine().run(stream)  # sizes of C's types
            machine = self._machine(self._size)
            value = machine.run(stream)
            keys = _TensorMachine().run(stream)
            if not isinstance(keys, list):
                raise CheckpointError(f"{self.path}: damaged: it does not list its tensors")
            for key in keys:
                if not isinstance(key, str):
                    raise CheckpointError(f"{self.path}: damaged: it does not list its tensors")
                storage = machine.storages[key]
                start = file.tell() + 8  # a count precedes the values
                count = int.from_bytes(stream.read(8), "little")
                if count != storage.size or start + count * storage.dtype.itemsize > self._size:
                    raise CheckpointError(f"{self.path}: truncated or damaged")
                self._places[key] = (start, count * storage.dtype.itemsize)
                file.seek(start + count * storage.dtype.itemsize)
        return value

    def _bytes(self, start: int, size: int) -> bytes:
        if start + size > self._size:
            raise CheckpointError(f"{self.path}: truncated")
        out = np.empty(size, np.uint8)
        read_bytes_into(self._file, start, out, self.path)
        return out.tobytes()

    def require(self, tensor: StoredTensor) -> None:
        """Raise ``CheckpointError`` unless the values of a tensor are in the file."""
        storage = tensor.storage
        place = self._places.get(storage.key)
        if place is None or place[1] < storage.size * storage.dtype.itemsize:
            raise CheckpointError(f"{self.path}: truncated: values of a tensor are missing")
        if sum(place) > self._size:
            raise CheckpointError(f"{self.path}: truncated: values of a tensor are missing")

    def read(
        self, tensor: StoredTensor, start: int | None = None, stop: int | None = None
    ) -> np.ndarray:
        """Read a tensor, or some of its rows, into a fresh array.

        Args:
            tensor: One of this file.
            start: The first row; all rows if it is ``None``.
            stop: The row after the last.

        Raises:
            CheckpointError: The file is closed, or ends before.
        """
        if self._file.closed:
            raise CheckpointError(f"{self.path}: already closed")
        self.require(tensor)
        if start is not None and stop is not None:
            first = tensor.offset + start * tensor.strides[0]
            tensor = StoredTensor(
                tensor.storage, first, (stop - start, *tensor.shape[1:]), tensor.strides
            )
        dtype = tensor.storage.dtype
        span = aligned_empty(_span(tensor) * dtype.itemsize)
        begin = self._places[tensor.storage.key][0] + tensor.offset * dtype.itemsize
        read_bytes_into(self._file, begin, span, self.path)
        values = span.view(dtype)
        if tensor.strides == _row_major(tensor.shape):
            return values.reshape(tensor.shape)
        steps = tuple(stride * dtype.itemsize for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(values, tensor.shape, steps).copy()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Rest:
    """A file that never promises more than it has left: lengths in it may be lies."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._left = min(size, LARGEST)

    def read(self, count: int = -1, /) -> bytes:
        data = self._file.read(self._left if count < 0 else min(count, self._left))
        self._left -= len(data)
        return data

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line


def is_torch_file(path: Path) -> bool:
    """Whether a file begins like one of ``torch.save``; its content may still be damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError:
        return False
    return start[:4] == b"PK\x03\x04" or _begins_with_magic(start)


def _begins_with_magic(start: bytes) -> bool:
    return TORCH_MAGIC.to_bytes(10, "little") in start


def tensors_of(value: Any) -> dict[str, StoredTensor]:
    """Return the tensors of a state dict by their names; what is no tensor is left out."""
    if not isinstance(value, Mapping):
        return {}
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, StoredTensor)}
