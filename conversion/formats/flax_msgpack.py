"""``flax_model.msgpack``: a tree of arrays as ``flax.serialization`` packs it.

Maps within maps; a leaf is a MessagePack extension of type 1 (array) or 3 (NumPy scalar) whose
payload is itself MessagePack: ``[shape, dtype name, bytes]``. Leaves beyond 1 GiB are maps with
a mark, a shape and flat chunks. A scan notes where the bytes of every leaf lie
(`msgpack_scan`); reading then touches one leaf at a time, which unpacking the whole file would
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.filling import Layout
from xlmfam.common.checkpoints.raw import aligned_empty, open_binary, read_bytes_into
from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError
from xlmfam.conversion.formats.msgpack_scan import CHUNKED, EXT_ARRAY, Leaf, scan

# What flax.serialization takes as the largest single leaf; readers accept any size.
_MAX_LEAF_BYTES = 2**30


class FlaxSource(TensorSource):
    """One open ``.msgpack`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is truncated, damaged, or holds more than arrays.
    """

    spelling: Spelling = "flax"

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file, size = open_binary(self.path)
        try:
            self._leaves: dict[str, Leaf] = scan(self._file, size, self.path)
        except BaseException:
            self._file.close()
            raise
        self._specs = {name: leaf.spec for name, leaf in self._leaves.items()}

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every leaf."""
        return dict(self._specs)

    def _require(self, name: str) -> Leaf:
        if name not in self._leaves:
            raise unknown_name(name, self.path, self._specs)
        if self._file.closed:
            raise CheckpointError(f"{self.path}: already closed")
        return self._leaves[name]

    def read(self, name: str) -> np.ndarray:
        """Read one leaf into a fresh array; see `TensorSource.read`."""
        spec = self._require(name).spec
        return self._read(name, 0, spec)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        spec = self._require(name).spec
        rows = TensorSpec((stop - start, *spec.shape[1:]), spec.dtype)
        return self._read(name, start * (rows.nbytes // max(1, stop - start)), rows)

    def _read(self, name: str, begin: int, spec: TensorSpec) -> np.ndarray:
        """Read so much of a leaf from a byte of it on; its pieces need not end with a row."""
        buffer = aligned_empty(spec.nbytes)
        done = 0
        for offset, count in self._leaves[name].pieces:
            skipped = min(begin, count)
            begin -= skipped
            part = buffer[done : done + count - skipped]
            read_bytes_into(self._file, offset + skipped, part, self.path)
            done += part.size
        return buffer.view(spec.dtype).reshape(spec.shape)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_file(path: Path) -> TensorSource:
    """Open one file; see `FlaxSource`."""
    return FlaxSource(path)


def lay_out(
    path: Path,  # noqa: ARG001  (all formats are called alike)
    specs: Mapping[str, TensorSpec],
    *,
    shard: bool = False,  # noqa: ARG001
    architecture: str | None = None,  # noqa: ARG001
    exists: bool = False,
) -> Layout:
    """Say where everything goes in one file.

    Args:
        path: The file.
        specs: The leaves, by their paths in the tree with ``/`` between.
        shard: Not needed by this format.
        architecture: Not needed by this format.
        exists: Whether it is there already, from an attempt at the same that was killed.

    Raises:
        CheckpointError: Two names do not fit into one tree, or a dtype cannot be stored.
    """
    for name, spec in specs.items():
        if spec.dtype.name not in DTYPES:
            raise CheckpointError(f"tensor {name!r}: .msgpack cannot hold {spec.dtype.name}")
    plan = _Plan(specs)
    plan.tree(_tree(specs))
    return Layout(plan.literals(), plan.places, exists)


def _tree(names: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """Nested dicts whose leaves are the full names."""
    tree: dict[str, Any] = {}
    for name in names:
        *path, leaf = name.split("/")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"tensor {name!r} lies inside another tensor, {node!r}")
        if leaf in node:
            raise CheckpointError(f"tensor {name!r} has other tensors inside it")
        node[leaf] = name
    return tree


class _Plan:
    """Walks the tree: every header's length is known from the specs.

    Attributes:
        places: The pieces of every leaf.
    """

    def __init__(self, specs: Mapping[str, TensorSpec]):
        import msgpack

        self._specs = specs
        self._packer = msgpack.Packer(use_bin_type=True)
        self._position = 0
        self._headers: list[tuple[int, bytes]] = []
        self.places: dict[str, list[tuple[int, int]]] = {}

    def literals(self) -> list[tuple[int, bytes]]:
        """What stands between the leaves: what has no leaf between is joined."""
        joined: list[tuple[int, bytearray]] = []
        for offset, data in self._headers:
            if joined and joined[-1][0] + len(joined[-1][1]) == offset:
                joined[-1][1].extend(data)
            else:
                joined.append((offset, bytearray(data)))
        return [(offset, bytes(data)) for offset, data in joined]

    def tree(self, tree: Mapping[str, Any]) -> None:
        self._map_header(len(tree))
        for key, value in tree.items():
            self._pack(key)
            if isinstance(value, str):
                self._leaf(value)
            else:
                self.tree(value)

    def _add(self, data: bytes) -> None:
        self._headers.append((self._position, data))
        self._position += len(data)

    def _map_header(self, count: int) -> None:
        self._add(self._packer.pack_map_header(count))

    def _pack(self, value: object) -> None:
        self._add(self._packer.pack(value))

    def _leaf(self, name: str) -> None:
        spec = self._specs[name]
        self.places[name] = []
        if spec.nbytes <= _MAX_LEAF_BYTES:
            self._array(name, spec)
            return
        size = prod(spec.shape)
        step = max(1, _MAX_LEAF_BYTES // spec.dtype.itemsize)
        self._map_header(3)
        self._pack(CHUNKED)
        self._pack(True)
        self._pack("shape")
        self._pack({str(axis): length for axis, length in enumerate(spec.shape)})
        self._pack("chunks")
        self._map_header(-(-size // step))
        for number, start in enumerate(range(0, size, step)):
            self._pack(str(number))
            self._array(name, TensorSpec((min(step, size - start),), spec.dtype))

    def _array(self, name: str, spec: TensorSpec) -> None:
        inner = self._packer.pack_array_header(3)
        inner += self._packer.pack(spec.shape) + self._packer.pack(spec.dtype.name)
        inner += b"\xc6" + spec.nbytes.to_bytes(4, "big")
        length = len(inner) + spec.nbytes
        self._add(b"\xc9" + length.to_bytes(4, "big") + bytes([EXT_ARRAY]) + inner)
        self.places[name].append((self._position, spec.nbytes))
        self._position += spec.nbytes


def index_name(name: str, architecture: str | None = None) -> str:  # noqa: ARG001
    """How the shard index spells a tensor's name: as the shards do."""
    return name


def name_in_index(name: str) -> str:
    """The inverse of `index_name`."""
    return name
