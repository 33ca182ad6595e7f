"""Reading and writing one ``.safetensors`` file.

Reading: the safetensors library judges the header, so that a file is accepted here exactly when
the rest of the world accepts it; the data are then read without its memory map (see `raw`).
Writing: the library wants all tensors in memory at once, so the file is streamed here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.filling import Layout, Pieces, fill
from xlmfam.common.checkpoints.raw import (
    ReadTensor,
    open_binary,
    read_array,
    read_bytes_into,
)
from xlmfam.common.checkpoints.source import (
    DTYPES,
    Spelling,
    TensorSource,
    TensorSpec,
    require_possible,
    unknown_name,
)
from xlmfam.common.errors import CheckpointError

_DTYPE_OF_CODE = {
    "F64": DTYPES["float64"],
    "F32": DTYPES["float32"],
    "F16": DTYPES["float16"],
    "BF16": DTYPES["bfloat16"],
    "F8_E4M3": DTYPES["float8_e4m3fn"],
    "F8_E5M2": DTYPES["float8_e5m2"],
    "I64": DTYPES["int64"],
    "I32": DTYPES["int32"],
    "I16": DTYPES["int16"],
    "I8": DTYPES["int8"],
    "U64": DTYPES["uint64"],
    "U32": DTYPES["uint32"],
    "U16": DTYPES["uint16"],
    "U8": DTYPES["uint8"],
    "BOOL": DTYPES["bool"],
}
_CODE_OF_DTYPE = {dtype: code for code, dtype in _DTYPE_OF_CODE.items()}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8
# A tensor has some 200 bytes in it, and the largest models have ten thousand.
_MAX_HEADER_BYTES = 2**23


class SafetensorsSource(TensorSource):
    """One open ``.safetensors`` file.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing, truncated or damaged.
    """

    spelling: Spelling = "canonical"

    def __init__(self, path: Path):
        self.path = Path(path)
        self._file, size = open_binary(self.path)
        try:
            header_size = self._header_size(size)
            _library_accepts(self.path)
            self._specs, self._offsets = self._read_header(header_size)
        except BaseException:
            self._file.close()
            raise

    def _header_size(self, size: int) -> int:
        length = np.empty(_LENGTH_BYTES, np.uint8)
        read_bytes_into(self._file, 0, length, self.path)
        header_size = int.from_bytes(length.tobytes(), "little")
        if header_size > size - _LENGTH_BYTES:
            raise CheckpointError(
                f"{self.path}: not a whole safetensors file (truncated or damaged): the header has "
                f"{header_size} bytes, the file {size}"
            )
        if header_size > _MAX_HEADER_BYTES:
            raise CheckpointError(f"{self.path}: a header of {header_size} bytes is no model's")
        return header_size

    def _read_header(self, header_size: int) -> tuple[dict[str, TensorSpec], dict[str, int]]:
        text = np.empty(header_size, np.uint8)
        read_bytes_into(self._file, _LENGTH_BYTES, text, self.path)
        header = json.loads(text.tobytes(), object_pairs_hook=self._no_duplicates)
        header.pop(_METADATA, None)
        specs, offsets = {}, {}
        for name, entry in header.items():
            specs[name] = self._spec(name, entry)
            offsets[name] = _LENGTH_BYTES + header_size + entry["data_offsets"][0]
        return specs, offsets

    def _no_duplicates(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = dict(pairs)
        if len(names) != len(pairs):
            raise CheckpointError(f"{self.path}: the header names a tensor twice")
        return names

    def _spec(self, name: str, entry: dict[str, Any]) -> TensorSpec:
        if entry["dtype"] not in _DTYPE_OF_CODE:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has the dtype {entry['dtype']!r}; "
                f"readable are {', '.join(_DTYPE_OF_CODE)}"
            )
        require_possible(tuple(entry["shape"]), f"{self.path}: tensor {name!r}")
        return TensorSpec(tuple(entry["shape"]), _DTYPE_OF_CODE[entry["dtype"]])

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor, from the header alone."""
        return dict(self._specs)

    def _require(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise unknown_name(name, self.path, self._specs)
        if self._file.closed:
            raise CheckpointError(f"{self.path}: already closed")
        return self._specs[name]

    def read(self, name: str) -> np.ndarray:
        """Read one tensor into a fresh array; see `TensorSource.read`."""
        spec = self._require(name)
        return read_array(self._file, self._offsets[name], spec, self.path)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows; see `TensorSource.read_rows`."""
        spec = self._require(name)
        rows = TensorSpec((stop - start, *spec.shape[1:]), spec.dtype)
        offset = self._offsets[name] + start * (rows.nbytes // max(1, stop - start))
        return read_array(self._file, offset, rows, self.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _library_accepts(path: Path) -> None:
    """Let the safetensors library judge the header: sizes, overlaps, holes, dtypes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a whole safetensors file (truncated or damaged): {error}"
        ) from error


def open_file(path: Path) -> TensorSource:
    """Open one file; see `SafetensorsSource`."""
    return SafetensorsSource(path)


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
        specs: The tensors.
        shard: Not needed by this format.
        architecture: Not needed by this format.
        exists: Whether it is there already, from an attempt at the same that was killed.

    Raises:
        CheckpointError: A dtype cannot be stored.
    """
    # Wide dtypes first, as the library does: every tensor then starts aligned to its own items.
    names = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header = _header(names, specs)
    places: dict[str, Pieces] = {}
    start = len(header)
    for name in names:
        places[name] = ((start, specs[name].nbytes),)
        start += specs[name].nbytes
    return Layout([(0, header)], places, exists)


def write_file(path: Path, specs: Mapping[str, TensorSpec], read: ReadTensor) -> None:
    """Write one file, holding one tensor at a time.

    Args:
        path: The file to make.
        specs: The tensors.
        read: Gives the values of a name.

    Raises:
        CheckpointError: A dtype cannot be stored, or an array is not what its spec says.
    """
    fill(path, lay_out(path, specs), specs, read)


def _header(names: list[str], specs: Mapping[str, TensorSpec]) -> bytes:
    # transformers refuses files that do not say which framework's layout they have.
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    start = 0
    for name in names:
        spec = specs[name]
        if spec.dtype not in _CODE_OF_DTYPE or name == _METADATA:
            raise CheckpointError(
                f"tensor {name!r}: safetensors cannot hold it as {spec.dtype.name}; "
                f"possible are {', '.join(d.name for d in _CODE_OF_DTYPE)}"
            )
        end = start + spec.nbytes
        header[name] = {
            "dtype": _CODE_OF_DTYPE[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def index_name(name: str, architecture: str | None = None) -> str:  # noqa: ARG001
    """How the shard index spells a tensor's name: as the shards do."""
    return name


def name_in_index(name: str) -> str:
    """The inverse of `index_name`."""
    return name
