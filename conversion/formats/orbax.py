"""Orbax checkpoints: folders of Zarr arrays, as JAX programs save their parameters.

A file ``_METADATA`` names every array by its path in the tree that was saved; the arrays lie in a
key-value store beside it. Both are read and written with TensorStore, which Orbax is built on:
one array at a time, and without JAX.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError, MissingPackageError

METADATA = "_METADATA"
_STORE = "manifest.ocdbt"
_PARAMS = "params"
_TRAINING = "is part of the training state, not of the model"
# What a program that trains puts between the folder that a user names and the arrays: a number of
# steps, and the name of one of several things that were saved together.
_ITEMS = ("default", _PARAMS, "state", "train_state", "model", "pytree")
_MOST_METADATA = 64 << 20
_PIECE = 8 << 20  # bytes of one chunk of an array
_COMMIT = 64 << 20  # bytes that are put on the disk at once
_DICT_KEY = 2  # how Orbax numbers the kind of key that dicts have


def find(path: Path) -> Path | None:
    """Return the folder of arrays at or below a folder; ``None`` where there is none.

    Of several steps the last one counts.
    """
    if not path.is_dir():
        return None
    for folder in (path, *_steps(path)):
        for place in (folder, *(folder / item for item in _ITEMS)):
            if (place / METADATA).is_file():
                return place
    return None


def _steps(path: Path) -> list[Path]:
    """Folders of steps, such as ``1200`` or ``checkpoint_1200``, the last first."""
    numbered = [
        (int(entry.name.rpartition("_")[2]), entry)
        for entry in path.iterdir()
        if entry.is_dir() and entry.name.rpartition("_")[2].isdecimal()
    ]
    return [entry for _, entry in sorted(numbered, reverse=True)]


def tensorstore() -> Any:
    """Import TensorStore.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return importlib.import_module("tensorstore")
    except ImportError as error:
        install = 'pip install "xlmfam[orbax]"'
        raise MissingPackageError("tensorstore", "an Orbax checkpoint", install) from error


class OrbaxSource(TensorSource):
    """The parameters in a folder that Orbax wrote.

    Where the tree is that of a whole training state, the parameters are what is below ``params``.

    Args:
        path: The folder with ``_METADATA``.

    Attributes:
        dropped: Names of what else the tree has, with the reason why it is not read.

    Raises:
        CheckpointError: The folder is damaged, or was written in a way that is not known.
        MissingPackageError: TensorStore is not installed.
    """

    spelling: Spelling = "flax"

    def __init__(self, path: Path):
        self.path = path
        self._ts = tensorstore()
        self._metadata = _metadata(path / METADATA)
        self._context = self._ts.Context()
        self._arrays: dict[str, Any] = {}
        self._kept: tuple[str, np.ndarray | None] = ("", None)  # read in blocks, whole by need
        self._whole: set[str] = set()
        self.dropped: dict[str, str] = {}
        keys = _leaves(self._metadata, path)
        root = _root(keys)
        for leaf in keys:
            if leaf[: len(root)] == root:
                self._arrays["/".join(leaf[len(root) :])] = self._open(leaf)
            else:
                self.dropped["/".join(leaf)] = _TRAINING
        self._specs = {name: self._spec(name, array) for name, array in self._arrays.items()}

    def _open(self, leaf: tuple[str, ...]) -> Any:
        name = ".".join(leaf)
        store: dict[str, Any] = {"driver": "file", "path": f"{self.path.resolve()}/{name}/"}
        if self._metadata.get("use_ocdbt", (self.path / _STORE).is_file()):
            base = f"file://{self.path.resolve()}/"
            store = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
        driver = "zarr3" if self._metadata.get("use_zarr3") else "zarr"
        spec = {"driver": driver, "kvstore": store}
        try:
            opened = self._ts.open(spec, read=True, open=True, context=self._context)
            return opened.result()
        except Exception as error:  # TensorStore raises ValueError, KeyError and others
            raise CheckpointError(
                f"{self.path}: {name} cannot be read: {str(error)[:200]}"
            ) from error

    def _spec(self, name: str, array: Any) -> TensorSpec:
        dtype = array.dtype.name
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: {name} has the dtype {dtype}; readable are {', '.join(DTYPES)}"
            )
        return TensorSpec(tuple(array.shape), DTYPES[dtype])

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return dict(self._specs)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor; see `TensorSource.read`."""
        if name not in self._specs:
            raise unknown_name(name, self.path, self._specs)
        if not self._arrays:
            raise CheckpointError(f"{self.path}: already closed")
        return self._values(name, ...)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        if name not in self._specs or not self._arrays:
            return self.read(name)  # which says what is wrong
        # A chunk is unpacked as a whole, however little of it is asked for.
        chunk = self._arrays[name].chunk_layout.read_chunk.shape or self._specs[name].shape
        if chunk[0] <= 2 * (stop - start):
            return self._values(name, slice(start, stop))
        if self._kept[0] != name:
            self._kept = ("", None)
            self._kept = (name, self.read(name))
        assert self._kept[1] is not None
        return self._kept[1][start:stop].copy()

    def _values(self, name: str, rows: Any) -> np.ndarray:
        array = self._arrays[name]
        self._require_pieces(name, array)
        try:
            return np.array(array[rows].read().result(), self._specs[name].dtype)
        except Exception as error:
            raise CheckpointError(f"{self.path}: {name} is damaged: {str(error)[:200]}") from error

    def _require_pieces(self, name: str, array: Any) -> None:
        """Raise where pieces are missing, which TensorStore would take for zeros."""
        if name in self._whole:
            return
        # Releases of Orbax that do not say so left out pieces that hold nothing but zeros.
        if not self._metadata.get("store_array_data_equal_to_fill_value"):
            return
        shape = array.chunk_layout.write_chunk.shape or array.shape
        pieces = math.prod(-(-size // step) for size, step in zip(array.shape, shape, strict=True))
        there = [key for key in array.kvstore.list().result() if not _is_header(key)]
        if len(there) < pieces:
            raise CheckpointError(
                f"{self.path}: {name} is damaged: {pieces - len(there)} of its {pieces} pieces are "
                "missing"
            )
        self._whole.add(name)

    def files(self) -> list[Path]:
        """The files that the arrays lie in."""
        return sorted(file for file in self.path.rglob("*") if file.is_file())

    def close(self) -> None:
        """Let go of the arrays."""
        self._arrays, self._kept = {}, ("", None)


def _is_header(key: bytes) -> bool:
    return key.rpartition(b"/")[2] in (b".zarray", b".zattrs", b"zarr.json")


def _metadata(path: Path) -> dict[str, Any]:
    """Read what says which arrays there are."""
    try:
        size = path.stat().st_size
        if size > _MOST_METADATA:
            raise CheckpointError(f"{path}: has {size} bytes, more than any list of arrays needs")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be read: {str(error)[:200]}") from error
    if not isinstance(found, dict) or not isinstance(found.get("tree_metadata"), dict):
        raise CheckpointError(f"{path}: has no tree_metadata; Orbax 0.5 and later write it")
    return found


def _leaves(metadata: Mapping[str, Any], path: Path) -> list[tuple[str, ...]]:
    """Return the path in the tree of every array."""
    leaves = []
    for entry in metadata["tree_metadata"].values():
        try:
            leaf = tuple(str(step["key"]) for step in entry["key_metadata"])
            kind = str(entry["value_metadata"]["value_type"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path / METADATA}: damaged: {error!r}") from error
        if not leaf or any("/" in step or step in ("", ".", "..") for step in leaf):
            raise CheckpointError(f"{path / METADATA}: {leaf!r} is no path in a tree")
        # Empty dicts and missing values are listed, and have no array.
        if kind not in ("None", "Dict", "List", "Tuple", "NamedTuple", "str"):
            leaves.append(leaf)
    if not leaves:
        raise CheckpointError(f"{path}: holds no arrays")
    return leaves


def _root(leaves: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the path of the parameters in the tree: below ``params`` where there is such a key."""
    root: tuple[str, ...] = ()
    while True:
        below = {leaf[len(root)] for leaf in leaves if leaf[: len(root)] == root}
        if _PARAMS not in below:
            return root
        root = (*root, _PARAMS)


# ---- writing ------------------------------------------------------------------------------


def write_folder(
    folder: Path,
    specs: Mapping[str, TensorSpec],
    blocks: Callable[[str], Iterable[np.ndarray]],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write arrays as Orbax does, holding few of their rows at a time.

    Args:
        folder: The folder to make.
        specs: Shape and dtype by path in the tree, ``/`` between.
        blocks: Gives the array of a name, whole or in blocks of rows.
        progress: Called with numbers of bytes as they are written.

    Raises:
        MissingPackageError: TensorStore is not installed.
        CheckpointError: The folder cannot be written.
    """
    ts = tensorstore()
    folder.mkdir()
    writer = _Writer(ts, folder)
    for name, spec in specs.items():
        writer.begin(name, spec)
        step, start = _rows_of_piece(spec), 0
        for block in blocks(name):
            # Copies: the writer holds them until the commit, and frees them then.
            if not spec.shape:
                writer.write(..., np.array(block))
            for first in range(0, len(block) if spec.shape else 0, step):
                piece = np.array(block[first : first + step], order="C")
                writer.write(slice(start, start + len(piece)), piece)
                start += len(piece)
            if progress is not None:
                progress(block.nbytes)
    writer.commit()
    _write_metadata(folder, specs)


def _rows_of_piece(spec: TensorSpec) -> int:
    return max(1, _PIECE // max(1, math.prod(spec.shape[1:]) * spec.dtype.itemsize))


class _Writer:
    """Writes pieces of arrays, several in one commit: each commit writes the list of names again.

    Args:
        ts: TensorStore.
        folder: Where the arrays go.
    """

    def __init__(self, ts: Any, folder: Path):
        self._ts, self._folder = ts, folder
        self._context = ts.Context()
        self._open()

    def _open(self) -> None:
        self._transaction, self._size = self._ts.Transaction(), 0

    def begin(self, name: str, spec: TensorSpec) -> None:
        """Make the array that the next pieces belong to."""
        key, base = name.replace("/", "."), f"file://{self._folder.resolve()}/"
        rows = (min(_rows_of_piece(spec), spec.shape[0]),) if spec.shape else ()
        form = {
            "driver": "zarr",
            "kvstore": {"driver": "ocdbt", "base": base, "path": f"{key}/"},
            "dtype": spec.dtype.name,
            "metadata": {
                "shape": list(spec.shape),
                "chunks": [max(1, size) for size in (*rows, *spec.shape[len(rows) :])],
                "compressor": {"id": "zstd", "level": 1},
            },
            # Missing pieces are damage, not zeros.
            "store_data_equal_to_fill_value": True,
        }
        options = {"create": True, "context": self._context, "transaction": self._transaction}
        self._array = self._ts.open(form, **options).result()

    def write(self, rows: Any, block: np.ndarray) -> None:
        """Write some rows of the array."""
        self._array[rows].write(block).result()
        self._size += block.nbytes
        if self._size >= _COMMIT:
            self.commit()
            self._array = self._array.with_transaction(self._transaction)

    def commit(self) -> None:
        """Put on the disk what was written.

        Raises:
            CheckpointError: That did not work.
        """
        try:
            self._transaction.commit_async().result()
        except Exception as error:
            raise CheckpointError(f"{self._folder}: could not be written: {error}") from error
        self._open()


def _write_metadata(folder: Path, specs: Mapping[str, TensorSpec]) -> None:
    tree = {}
    for name in specs:
        path = tuple(name.split("/"))
        tree[str(path)] = {
            "key_metadata": [{"key": step, "key_type": _DICT_KEY} for step in path],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    about = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": False,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (folder / METADATA).write_text(json.dumps(about), encoding="utf-8")
