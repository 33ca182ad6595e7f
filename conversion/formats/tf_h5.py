"""``tf_model.h5``: weights as Keras 2 wrote them for transformers' TensorFlow models.

A file has one group per top-level layer. The attribute ``weight_names`` of a group lists its
datasets as ``tfxglm_for_causal_lm/model/layers.0/fc1/kernel:0``; ``layer_names`` lists the
groups. A weight that two layers share may be listed in both their groups. Lists beyond the 64 KB
that HDF5 allows an attribute are cut into ``weight_names0``, ``weight_names1`` and so on. In a
shard there are no such groups: the datasets stand by themselves, without the leading model name,
and ``layer_names`` lists them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.filling import Layout, Pieces
from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError

_TOP_LEVEL = "top_level_model_weights"
_OLD_ROOT = "model_weights"
_MAX_ATTRIBUTE_BYTES = 60_000
_LARGEST_PIECE = 2**24
# X-MOD has some four thousand.
_MOST_LISTED = 40_000
_MOST_OF_ANY_LENGTH = 2**12
# HDF5 has no type called bfloat16, but describes it: where sign, exponent and mantissa lie.
# Readers that do not look closer get the same numbers as float32.
_BFLOAT16_FIELDS = (15, 7, 8, 0, 7)
_BFLOAT16_BIAS = 127
# What h5py raises for damaged files, depending on where the damage is.
_H5_ERRORS = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


class H5Source(TensorSource):
    """One open ``.h5`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is truncated, damaged, or not in the layout of Keras 2.
    """

    spelling: Spelling = "keras_h5"

    def __init__(self, path: Path):
        import h5py

        self.path = Path(path)
        try:
            self._size = os.path.getsize(self.path)
            self._file = h5py.File(self.path, "r", locking=False)
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: not a whole HDF5 file (truncated or damaged): {error}"
            ) from error
        try:
            self._datasets = self._find_datasets()
            self._specs = {name: self._spec_of(name) for name in self._datasets}
        except _H5_ERRORS as error:
            self._file.close()
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{self.path}: damaged: {error}") from error

    def _find_datasets(self) -> dict[str, list[Any]]:
        root = self._file
        layers = _names(root, "layer_names", self._size)
        if layers is None and _OLD_ROOT in root:
            root = self._follow(root, _OLD_ROOT)
            layers = _names(root, "layer_names", self._size)
        if layers is None:
            raise CheckpointError(
                f'{self.path}: has no "layer_names"; only the weight files of Keras 2, such as '
                "transformers' tf_model.h5, are readable"
            )
        if _TOP_LEVEL in root and _TOP_LEVEL not in layers:
            layers = [*layers, _TOP_LEVEL]
        datasets: dict[str, list[Any]] = {}
        count = 0
        for layer in dict.fromkeys(layers):
            for name, dataset in self._datasets_of(root, layer):
                datasets.setdefault(name, []).append(dataset)
                count += 1
                # A group may have any number of names, all of which list the same.
                if count > _MOST_LISTED:
                    raise CheckpointError(f"{self.path}: lists more weights than any model has")
        return datasets

    def _datasets_of(self, root: Any, layer: str) -> Iterator[tuple[str, Any]]:
        import h5py

        found = self._follow(root, layer)
        if isinstance(found, h5py.Dataset):
            yield layer.removesuffix(":0"), found
            return
        for name in dict.fromkeys(_names(found, "weight_names", self._size) or ()):
            yield _without_instance(name, layer), self._follow(found, name)

    def _follow(self, group: Any, name: str) -> Any:
        """Walk a path by hard links only: the other kinds may lead into other files."""
        import h5py

        for part in filter(None, name.split("/")):
            link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
            if not isinstance(link, h5py.HardLink):
                raise CheckpointError(f"{self.path}: lists {name!r} and does not hold it")
            group = group[part]
        return group

    def _spec_of(self, name: str) -> TensorSpec:
        first, *others = (self._spec(name, dataset) for dataset in self._datasets[name])
        if any(other != first for other in others):
            raise self._twice(name)
        return first

    def _twice(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: holds {name!r} twice, and not the same")

    def _spec(self, name: str, dataset: Any) -> TensorSpec:
        import h5py

        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise CheckpointError(f"{self.path}: {name!r} is not an array")
        dtype = "bfloat16" if _is_bfloat16(dataset) else dataset.dtype.name
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has the dtype {dtype}; readable are "
                f"{', '.join(DTYPES)}"
            )
        spec = TensorSpec(dataset.shape, DTYPES[dtype])
        compressed = dataset.id.get_create_plist().get_nfilters() > 0
        # A piece is unpacked as a whole, however little of it is the tensor's.
        piece = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
        if piece > max(self._size, _LARGEST_PIECE):
            raise CheckpointError(f"{self.path}: tensor {name!r} is stored in too large pieces")
        stored = self._size if compressed else dataset.id.get_storage_size()
        if dataset.is_virtual or dataset.external or spec.nbytes > min(stored, self._size):
            raise CheckpointError(
                f"{self.path}: tensor {name!r} claims {spec.nbytes} bytes that are not in the file"
            )
        return spec

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return dict(self._specs)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into a fresh array; see `TensorSource.read`."""
        return self._read(name, None)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        return self._read(name, slice(start, stop))

    def _read(self, name: str, rows: slice | None) -> np.ndarray:
        if name not in self._specs:
            raise unknown_name(name, self.path, self._specs)
        if not self._file:
            raise CheckpointError(f"{self.path}: already closed")
        first, *others = self._datasets[name]
        spec = self._specs[name]
        try:
            if rows is not None:
                array = _read_rows(first, spec, rows)
                same = all(_same_rows(first, other, rows) for other in others)
            else:
                array = _read(first, spec)
                same = all(_same_values(first, other) for other in others)
        except _H5_ERRORS as error:
            raise CheckpointError(f"{self.path}: tensor {name!r} is damaged: {error}") from error
        if not same:
            raise self._twice(name)
        return array

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _names(group: Any, attribute: str, size: int) -> list[str] | None:
    """A list of names from an attribute, whole or in pieces; None when there is none."""
    pieces = []
    if attribute in group.attrs:
        pieces = [attribute]
    else:
        while f"{attribute}{len(pieces)}" in group.attrs:
            pieces.append(f"{attribute}{len(pieces)}")
    if not pieces:
        return None
    count = sum(_count_of_names(group, piece, size) for piece in pieces)
    if count > _MOST_LISTED:
        raise ValueError(f"{attribute} lists {count} names")
    names = [name for piece in pieces for name in np.atleast_1d(group.attrs[piece]).tolist()]
    return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _count_of_names(group: Any, attribute: str, size: int) -> int:
    """How many names an attribute has; raises ``ValueError`` for one that is too large to read."""
    import h5py

    found = h5py.h5a.open(group.id, attribute.encode())
    kind, count = found.get_type(), math.prod(found.shape)
    if not count:  # Keras stores an empty list as one of numbers
        return 0
    if not isinstance(kind, h5py.h5t.TypeStringID):
        raise ValueError(f"{attribute} is no list of names")
    if kind.is_variable_str():
        # All of them may be one and the same long one in the file. Keras cuts its lists before.
        if count > _MOST_OF_ANY_LENGTH:
            raise ValueError(f"{attribute} has {count} names of any length")
    elif count * kind.get_size() > size:
        raise ValueError(f"{attribute} is longer than the file")
    return count


def _without_instance(name: str, layer: str) -> str:
    """Drop ``:0`` and the model-instance component that stands before the layer's own name."""
    name = name.removesuffix(":0")
    first, _, rest = name.partition("/")
    # Weights made outside any model's scope have no such component.
    if not rest or (first == layer and rest.partition("/")[0] != layer):
        return name
    return rest


def _is_bfloat16(dataset: Any) -> bool:
    import h5py

    kind = dataset.id.get_type()
    return (
        isinstance(kind, h5py.h5t.TypeFloatID)
        and kind.get_size() == 2
        and kind.get_fields() == _BFLOAT16_FIELDS
        and kind.get_ebias() == _BFLOAT16_BIAS
    )


def _read(dataset: Any, spec: TensorSpec) -> np.ndarray:
    import h5py

    if spec.dtype != DTYPES["bfloat16"]:
        return np.asarray(dataset[...], spec.dtype)
    bits = np.empty(spec.shape, np.uint16)
    if bits.size:
        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, bits, _bfloat16_type())
    return bits.view(spec.dtype)


def _read_rows(dataset: Any, spec: TensorSpec, rows: slice) -> np.ndarray:
    import h5py

    shape = (rows.stop - rows.start, *spec.shape[1:])
    if spec.dtype != DTYPES["bfloat16"]:
        return np.asarray(dataset[rows], spec.dtype)
    bits = np.empty(shape, np.uint16)
    if bits.size:
        space = dataset.id.get_space()
        space.select_hyperslab((rows.start, *(0 for _ in shape[1:])), shape)
        dataset.id.read(h5py.h5s.create_simple(shape), space, bits, _bfloat16_type())
    return bits.view(spec.dtype)


def _same_rows(one: Any, other: Any, rows: slice) -> bool:
    return one[rows].tobytes() == other[rows].tobytes()


def _same_values(one: Any, other: Any) -> bool:
    """Compare two datasets piece by piece: a second copy in memory would be a large one."""
    pieces = [()] if not one.shape else [slice(i, i + 1024) for i in range(0, len(one), 1024)]
    return all(one[piece].tobytes() == other[piece].tobytes() for piece in pieces)


def _bfloat16_type() -> Any:
    import h5py

    kind = h5py.h5t.IEEE_F16LE.copy()
    kind.set_fields(*_BFLOAT16_FIELDS)
    kind.set_ebias(_BFLOAT16_BIAS)
    return kind


def open_file(path: Path) -> TensorSource:
    """Open one file; see `H5Source`."""
    return H5Source(path)


def lay_out(
    path: Path,
    specs: Mapping[str, TensorSpec],
    *,
    shard: bool = False,
    architecture: str | None = None,
    exists: bool = False,
) -> Layout:
    """Make one file with everything but the values, and say where these go.

    Args:
        path: The file to make.
        specs: The tensors.
        shard: Whether this is one file of several; shards have a layout of their own.
        architecture: Class of the model, such as ``XGLMForCausalLM``.
        exists: Whether it is there already, from an attempt at the same that was killed.

    Raises:
        CheckpointError: The architecture is missing, or a tensor cannot be stored.
    """
    import h5py

    groups = {"": list(specs)} if shard else _by_layer(specs)
    instance = "" if shard else f"{instance_name(architecture)}/"
    try:
        if not exists:
            with h5py.File(path, "w") as file:
                _make_groups(file, groups, specs, instance, shard)
        places: dict[str, Pieces] = {}
        with h5py.File(path, "r", locking=False) as file:
            for layer, names in groups.items():
                for name in names:
                    place = file[f"{layer}/{instance}{name}:0"].id.get_offset()
                    # What has no values has no place.
                    places[name] = ((place, specs[name].nbytes),) if place is not None else ()
    except RuntimeError as error:  # how h5py reports a disk that fills up on closing
        raise CheckpointError(f"{path}: could not be written: {error}") from error
    return Layout([], places, exists=True)


def _make_groups(
    file: Any,
    groups: Mapping[str, list[str]],
    specs: Mapping[str, TensorSpec],
    instance: str,
    shard: bool,
) -> None:
    for layer, names in groups.items():
        group = file.create_group(layer) if layer else file
        stored = [f"{instance}{name}:0" for name in names]
        _set_names(group, "layer_names" if shard else "weight_names", stored)
        for name, dataset in zip(names, stored, strict=True):
            _make_room(group, dataset, specs[name])
    if not shard:
        _set_names(file, "layer_names", [layer for layer in groups if layer != _TOP_LEVEL])
        file.attrs["backend"] = "tensorflow"
        file.attrs["keras_version"] = "2.15.0"


def _by_layer(names: Mapping[str, TensorSpec]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        layer, slash, _ = name.partition("/")
        groups.setdefault(layer if slash else _TOP_LEVEL, []).append(name)
    groups.setdefault(_TOP_LEVEL, [])
    return groups


def _set_names(group: Any, attribute: str, names: list[str]) -> None:
    encoded = np.array([name.encode() for name in names]) if names else np.array([], "S1")
    per_piece = max(1, _MAX_ATTRIBUTE_BYTES // max(1, encoded.itemsize))
    if len(encoded) <= per_piece:
        group.attrs[attribute] = encoded
        return
    for number, start in enumerate(range(0, len(encoded), per_piece)):
        group.attrs[f"{attribute}{number}"] = encoded[start : start + per_piece]


def _make_room(group: Any, name: str, spec: TensorSpec) -> None:
    """Make a dataset that has its place in the file and no values yet."""
    import h5py

    if spec.dtype.name not in DTYPES or spec.dtype.name.startswith("float8"):
        raise CheckpointError(f"tensor {name!r}: .h5 cannot hold it as {spec.dtype.name}")
    is_bfloat16 = spec.dtype == DTYPES["bfloat16"]
    kind = _bfloat16_type() if is_bfloat16 else h5py.h5t.py_create(spec.dtype, logical=True)
    parent, _, leaf = name.rpartition("/")
    where = group.require_group(parent) if parent else group
    space = h5py.h5s.create_simple(spec.shape) if spec.shape else h5py.h5s.create(h5py.h5s.SCALAR)
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    h5py.h5d.create(where.id, leaf.encode(), kind, space, how)


def instance_name(architecture: str | None) -> str:
    """What Keras 2 calls a model: its class in lower case, with underscores between words.

    Args:
        architecture: Class of the model, with or without a framework's prefix.

    Returns:
        For example ``tfxglm_for_causal_lm``.

    Raises:
        CheckpointError: No architecture is given.
    """
    if not architecture:
        raise CheckpointError(
            "architecture is missing; the h5 format needs the class, such as 'XGLMForCausalLM'"
        )
    name = "TF" + re.sub("^(TF|Flax)", "", architecture)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def index_name(name: str, architecture: str | None = None) -> str:
    """How the shard index spells a tensor's name: as a single file does."""
    return f"{instance_name(architecture)}/{name}:0"


def name_in_index(name: str) -> str:
    """The inverse of `index_name`."""
    return name.removesuffix(":0").partition("/")[2] or name
