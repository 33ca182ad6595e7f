"""Files of ``torch.save`` written without PyTorch, one tensor at a time.

What the original releases read is more than named tensors: settings around a dict of them. Such
a file is an archive of one pickle, which says where each tensor lies, and of the tensors' values.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import TensorSpec
from xlmfam.common.errors import CheckpointError

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_UNTYPED = ("torch.storage", "UntypedStorage")
_ROOT = "model"  # the archive's one folder
_VERSION = b"3\n"


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor to write; where one stands in several places its values are stored once.

    Attributes:
        spec: Shape and dtype.
        blocks: Gives its values in row-major order, in one array or in several.
    """

    spec: TensorSpec
    blocks: Callable[[], Iterable[np.ndarray]]


@dataclass(frozen=True, eq=False)
class Made:
    """An object that the reader makes; where one stands in several places it is made once.

    Attributes:
        name: Module and name of a function, or of a class if there is a state.
        arguments: What it is called with.
        state: The attributes of the object.
    """

    name: tuple[str, str]
    arguments: tuple[Any, ...] = ()
    state: dict[str, Any] | None = None


def parameter_of(tensor: Tensor) -> Made:
    """Return a tensor as a parameter of a module."""
    hooks = Made(("collections", "OrderedDict"))
    return Made(("torch._utils", "_rebuild_parameter"), (tensor, True, hooks))


@dataclass(frozen=True)
class Namespace:
    """What ``argparse.Namespace`` is to be when the file is read.

    Attributes:
        values: Its attributes.
    """

    values: dict[str, Any]


def tensor_of(array: np.ndarray) -> Tensor:
    """Return the tensor of an array that is there already."""
    return Tensor(TensorSpec(array.shape, array.dtype), lambda: [array])


class StatePickle:
    """Writes the pickle of dicts, lists, tuples, strings, numbers, tensors and what is made.

    Attributes:
        tensors: Those met so far, in the order of their keys.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = [b"\x80\x02"]
        self.tensors: list[Tensor] = []
        self._keys: dict[int, int] = {}
        self._made: dict[int, int] = {}

    def finish(self) -> bytes:
        """Return the pickle."""
        return b"".join([*self.parts, b"."])

    def add(self, value: Any) -> None:
        """Add a value; there is to be one."""
        if value is None or isinstance(value, bool):
            self.parts.append({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.parts.append(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            text = value.encode("utf-8", "surrogatepass")
            self.parts.append(b"X" + struct.pack("<I", len(text)) + text)
        elif isinstance(value, dict):
            items = [part for pair in value.items() for part in pair]
            self._filled(b"}", items, b"u")
        elif isinstance(value, list):
            self._filled(b"]", value, b"e")
        elif isinstance(value, tuple):
            self._filled(b"", value, b"t")
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, Namespace):
            self._named("argparse", "Namespace")
            self.parts.append(b")\x81")
            self.add(value.values)
            self.parts.append(b"b")
        elif isinstance(value, Made):
            self._object(value)
        else:
            raise CheckpointError(f"a {type(value).__name__} has no place in a file of torch.save")

    def _integer(self, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        if len(data) > 255:
            raise CheckpointError("a number of more than 255 bytes is none of a checkpoint's")
        self.parts.append(b"\x8a" + bytes([len(data)]) + data)

    def _filled(self, empty: bytes, items: Iterable[Any], fill: bytes) -> None:
        self.parts.append(empty + b"(")
        for item in items:
            self.add(item)
        self.parts.append(fill)

    def _named(self, module: str, name: str) -> None:
        self.parts.append(f"c{module}\n{name}\n".encode())

    def _object(self, made: Made) -> None:
        known = self._made.get(id(made))
        if known is not None:
            self.parts.append(b"j" + struct.pack("<I", known))
            return
        self._named(*made.name)
        self.add(made.arguments)
        if made.state is None:
            self.parts.append(b"R")
        else:
            self.parts.append(b"\x81")
            self.add(made.state)
            self.parts.append(b"b")
        self._made[id(made)] = len(self._made)
        self.parts.append(b"r" + struct.pack("<I", self._made[id(made)]))

    def _tensor(self, tensor: Tensor) -> None:
        key = self._keys.setdefault(id(tensor), len(self.tensors))
        if key == len(self.tensors):
            self.tensors.append(tensor)
        shape, dtype = tensor.spec.shape, tensor.spec.dtype
        # Newer dtypes have no type of storage of their own, and are named beside the storage.
        typed = dtype.name in _STORAGES
        self._named("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3")
        self.parts.append(b"((")
        self.add("storage")
        self._named(*(("torch", _STORAGES[dtype.name]) if typed else _UNTYPED))
        for part in (str(key), "cpu", prod(shape) if typed else tensor.spec.nbytes):
            self.add(part)
        self.parts.append(b"tQ")  # the storage, which the pickle only names
        strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        for argument in (0, shape, strides, False):
            self.add(argument)
        self._named("collections", "OrderedDict")  # hooks, of which there are none
        self.parts.append(b")R")
        if not typed:
            self._named("torch", dtype.name)
        self.parts.append(b"tR")


def write_torch_file(path: Path, value: Any, progress: Callable[[int], None] | None = None) -> None:
    """Write a file that ``torch.load`` reads, and with ``weights_only=True`` if nothing is `Made`.

    Args:
        path: The file to make.
        value: Dicts, lists, tuples, strings, numbers, ``None``, `Tensor` and `Made`, nested.
        progress: Called with numbers of bytes as they are written.

    Raises:
        CheckpointError: The value holds something else, or a tensor is not what its spec says.
    """
    pickle = StatePickle()
    pickle.add(value)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            ("data.pkl", pickle.finish()),
            ("byteorder", b"little"),
            ("version", _VERSION),
        ):
            archive.writestr(_entry(name), content)
        for key, tensor in enumerate(pickle.tensors):
            # The sizes come first in an entry, so whether they fit must be known beforehand.
            large = tensor.spec.nbytes >= zipfile.ZIP64_LIMIT
            with archive.open(_entry(f"data/{key}"), "w", force_zip64=large) as file:
                _write(file, tensor, progress)


def _entry(name: str) -> zipfile.ZipInfo:
    # Always of the same date: the same checkpoint gives the same file.
    return zipfile.ZipInfo(f"{_ROOT}/{name}")


def _write(file: Any, tensor: Tensor, progress: Callable[[int], None] | None) -> None:
    left = tensor.spec.nbytes
    for block in tensor.blocks():
        if block.dtype != tensor.spec.dtype:
            raise CheckpointError(f"a tensor of {tensor.spec.dtype} came as {block.dtype}")
        data = np.ascontiguousarray(block).reshape(-1).view(np.uint8)
        file.write(data)
        left -= data.size
        if progress is not None:
            progress(data.size)
    if left:
        raise CheckpointError(f"a tensor of {tensor.spec.nbytes} bytes came with {left} missing")
