"""``.weights.h5`` and ``.keras``, as Keras 3 writes them for xlmfam's TensorFlow models.

The HDF5 file has a group for every layer, named by the attribute that holds it or, in lists, by
its class; ``vars`` in it numbers the layer's variables and carries the layer's own name. A
``.keras`` file is a ZIP file that holds such a file, uncompressed, and ``config.json``.
"""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError
from xlmfam.common.parameters import Parameter, spell

WEIGHTS_ENDING = ".weights.h5"
MODEL_ENDING = ".keras"
WEIGHTS_NAME = "model.weights.h5"  # inside of a .keras file
CONFIG_NAME = "config.json"  # the same
_OPTIMIZER = "optimizer"
_VARS = "vars"
_MOST_CONFIG = 64 << 20
_MOST_DEPTH = 64
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
# What h5py raises for damaged files, depending on where the damage is.
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


@dataclass
class _Layer:
    """A group of the file.

    Attributes:
        path: Where it is.
        name: What the layer is called; ``None`` of a list.
        children: The groups in it.
        variables: Its own arrays, by number.
    """

    path: str
    name: str | None = None
    children: dict[str, _Layer] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)

    def every(self) -> Iterable[_Layer]:
        """This one and all below."""
        yield self
        for child in self.children.values():
            yield from child.every()

    def step(self, component: str) -> _Layer | None:
        """Return the layer that a component of a parameter's path means."""
        if component in self.children:
            return self.children[component]
        # What a model has is also found below "layers", where Keras lists it.
        below = [*self.children.values()]
        if not self.path and "layers" in self.children:
            below += self.children["layers"].children.values()
        found = [layer for layer in below if layer.name == component]
        if component.isdecimal():  # the element of a list, which its name ends in
            found = [layer for layer in below if (layer.name or "").endswith(f"_{component}")]
        return found[0] if len(found) == 1 else None


class KerasSource(TensorSource):
    """The parameters in a ``.weights.h5``, or in that of a ``.keras`` file.

    Names are those of the table where the table knows them, else paths in the file.

    Args:
        path: The file.

    Attributes:
        dropped: Arrays that belong to the optimizer, with that reason.

    Raises:
        CheckpointError: The file is truncated or damaged.
    """

    spelling: Spelling = "keras"  # type: ignore[assignment]

    def __init__(self, path: Path):
        import h5py

        self.path = Path(path)
        self.dropped: dict[str, str] = {}
        self._arrays: dict[str, Any] = {}
        raw, self._size = _open_weights(self.path)
        try:
            self._file = h5py.File(raw, "r")
            self._root = _Walk(self.path).layer(self._file, "", 0)
        except BaseException as error:
            raw.close()
            if isinstance(error, _H5_ERRORS) and not isinstance(error, CheckpointError):
                raise CheckpointError(
                    f"{self.path}: no whole file of Keras weights (truncated or damaged): "
                    f"{str(error)[:200]}"
                ) from error
            raise
        self._raw = raw
        self.name_by({})

    def name_by(self, parameters: Mapping[str, Parameter]) -> bool:
        """Give the arrays the names that the table has for a class.

        Args:
            parameters: Those of the class, by canonical name.

        Returns:
            Whether they are just the arrays of the file.
        """
        found, missing = _claim(self._root, parameters)
        claimed = {id(array) for array in found.values()}
        self._arrays, self.dropped = found, {}
        unclaimed = 0
        for layer in self._root.every():
            for number, array in layer.variables.items():
                name = f"{layer.path}/{_VARS}/{number}".lstrip("/")
                if layer.path.split("/")[0] == _OPTIMIZER:
                    self.dropped[name] = "is the optimizer's, not the model's"
                elif id(array) not in claimed:
                    self._arrays[name] = array
                    unclaimed += 1
        try:
            self._specs = {name: self._spec(name, array) for name, array in self._arrays.items()}
        except _H5_ERRORS as error:
            self.close()
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: damaged: {str(error)[:200]}") from error
        return not (missing or unclaimed)

    def _spec(self, name: str, array: Any) -> TensorSpec:
        dtype = "bfloat16" if _is_bfloat16(array) else array.dtype.name
        if dtype not in DTYPES or array.shape is None:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has the dtype {dtype}; readable are "
                f"{', '.join(DTYPES)}"
            )
        spec = TensorSpec(array.shape, DTYPES[dtype])
        compressed = array.id.get_create_plist().get_nfilters() > 0
        stored = self._size if compressed else array.id.get_storage_size()
        if array.is_virtual or array.external or spec.nbytes > min(stored, self._size):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} claims {spec.nbytes} bytes that are not in the file"
            )
        return spec

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return dict(self._specs)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor; see `TensorSource.read`."""
        return self._values(name, ())

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        return self._values(name, slice(start, stop))

    def _values(self, name: str, rows: Any) -> np.ndarray:
        if name not in self._specs:
            raise unknown_name(name, self.path, self._specs)
        if not self._file:
            raise CheckpointError(f"{self.path}: already closed")
        dtype = self._specs[name].dtype
        try:
            values = np.asarray(self._arrays[name][rows])
        except _H5_ERRORS as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} is damaged: {str(error)[:200]}"
            ) from error
        # Keras stores bfloat16 as two bytes without a meaning, and says so beside.
        return values.view(dtype) if values.dtype.kind == "V" else np.asarray(values, dtype)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()


class _Walk:
    """Lists the groups of a file by hard links only: the other kinds lead into other files."""

    def __init__(self, path: Path):
        self._path = path
        self._seen: set[int] = set()

    def layer(self, group: Any, path: str, depth: int) -> _Layer:
        """Return a group and what is in it."""
        import h5py

        self._enter(group, path, depth)
        layer = _Layer(path)
        for key in group:
            child = self._follow(group, key, path)
            if isinstance(child, h5py.Dataset):
                raise CheckpointError(
                    f"{self._path}: {path}/{key} is not where Keras has variables"
                )
            if key == _VARS:
                self._variables(layer, child, depth)
            else:
                layer.children[key] = self.layer(child, f"{path}/{key}".lstrip("/"), depth + 1)
        return layer

    def _variables(self, layer: _Layer, group: Any, depth: int) -> None:
        import h5py

        self._enter(group, layer.path, depth)
        name = group.attrs.get("name")
        layer.name = None if name is None else str(name)
        for key in group:
            array = self._follow(group, key, layer.path)
            if not isinstance(array, h5py.Dataset):
                raise CheckpointError(f"{self._path}: {layer.path}/{key} is not an array")
            layer.variables[key] = array

    def _enter(self, group: Any, path: str, depth: int) -> None:
        import h5py

        address = h5py.h5o.get_info(group.id).addr
        if address in self._seen or depth > _MOST_DEPTH:
            raise CheckpointError(f"{self._path}: {path}: the groups of the file are no tree")
        self._seen.add(address)

    def _follow(self, group: Any, key: str, path: str) -> Any:
        import h5py

        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{self._path}: {path}/{key} is a link to somewhere else")
        return group[key]


def _claim(root: _Layer, parameters: Mapping[str, Parameter]) -> tuple[dict[str, Any], list[str]]:
    """Return the array of every parameter by its name in Keras, and the names without one."""
    by_owner: dict[str, list[Parameter]] = {}
    for parameter in parameters.values():
        if parameter.tied_to is None:
            owner = spell(parameter, "keras").rpartition("/")[0]
            by_owner.setdefault(owner, []).append(parameter)
    found: dict[str, Any] = {}
    missing: list[str] = []
    for owner, own in by_owner.items():
        layer: _Layer | None = root
        for component in filter(None, owner.split("/")):
            layer = layer.step(component) if layer else None
        # The order in which xlmfam's models make the variables of a layer: the largest first.
        # Keras numbers what is never learned behind the rest.
        own = sorted(own, key=lambda parameter: (not parameter.trainable, -parameter.size))
        for number, parameter in enumerate(own):
            name = spell(parameter, "keras")
            if layer is not None and str(number) in layer.variables:
                found[name] = layer.variables[str(number)]
            else:
                missing.append(name)
    return found, missing


def _is_bfloat16(array: Any) -> bool:
    return (
        array.dtype.kind == "V"
        and array.dtype.itemsize == 2
        and array.attrs.get("dtype") == "bfloat16"
    )


# ---- ZIP files ------------------------------------------------------------------------------


class _Part(io.RawIOBase):
    """Some bytes of a file as a file of their own.

    Args:
        file: The file.
        start: Of the part.
        size: Of the part.
    """

    def __init__(self, file: BinaryIO, start: int, size: int):
        super().__init__()
        self._whole, self._start, self._length, self._place = file, start, size, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; see ``io.RawIOBase.seek``."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes."""
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._length - self._place))]
        if not len(view):  # the place may be one that no file has
            return 0
        self._whole.seek(self._start + self._place)
        count = self._whole.readinto(view)  # type: ignore[attr-defined]
        self._place += count
        return count

    def close(self) -> None:
        """Close the whole file."""
        self._whole.close()
        super().close()


def _open_weights(path: Path) -> tuple[Any, int]:
    """Open the HDF5 file, alone or in a ZIP file; return it and its size."""
    try:
        raw = open(path, "rb", buffering=0)  # noqa: SIM115  (the source closes it)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix != MODEL_ENDING:
        return _Part(raw, 0, os.fstat(raw.fileno()).st_size), os.fstat(raw.fileno()).st_size
    try:
        with zipfile.ZipFile(path) as archive:
            entry = _entry(archive, WEIGHTS_NAME, path)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(
                f"{path}: its {WEIGHTS_NAME} is compressed or encrypted, which Keras never does"
            )
        raw.seek(entry.header_offset)
        signature, name, extra = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
        start = entry.header_offset + _LOCAL_HEADER.size + name + extra
        size = os.fstat(raw.fileno()).st_size
        if signature != b"PK\3\4" or start + entry.file_size > size:
            raise CheckpointError(f"{path}: damaged: {WEIGHTS_NAME} is not where the list says")
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError) as error:
        raw.close()
        raise CheckpointError(f"{path}: not a whole .keras file: {str(error)[:200]}") from error
    except CheckpointError:
        raw.close()
        raise
    return _Part(raw, start, entry.file_size), entry.file_size


def _entry(archive: zipfile.ZipFile, name: str, path: Path) -> zipfile.ZipInfo:
    try:
        return archive.getinfo(name)
    except KeyError as error:
        raise CheckpointError(f"{path}: holds no {name}") from error


def read_config(path: Path) -> dict[str, Any]:
    """Return what a ``.keras`` file says of its model: data, of which nothing is run.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = _entry(archive, CONFIG_NAME, path)
            if entry.file_size > _MOST_CONFIG:
                raise CheckpointError(f"{path}: its {CONFIG_NAME} is too large for a config")
            with archive.open(entry) as file:
                found = json.loads(file.read(_MOST_CONFIG + 1))
    except (zipfile.BadZipFile, OSError, ValueError, RecursionError, NotImplementedError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a whole .keras file: {str(error)[:200]}") from error
    settings = found.get("config") if isinstance(found, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("config"), dict):
        raise CheckpointError(f"{path}: is of no model of xlmfam")
    return found
