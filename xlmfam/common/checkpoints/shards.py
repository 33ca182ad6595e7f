"""Checkpoints in several files: the index, the shards, and how tensors are dealt to them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xlmfam.common.checkpoints.source import Spelling, TensorSource, TensorSpec, unknown_name
from xlmfam.common.errors import CheckpointError

# An index names some hundred bytes per tensor; anything beyond this is no index.
_MAX_INDEX_BYTES = 2**24
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{letter}B": 10 ** (3 * (i + 1)) for i, letter in enumerate("KMGT")}
_UNITS |= {f"{letter}IB": 2 ** (10 * (i + 1)) for i, letter in enumerate("KMGT")}


def parse_size(size: int | str) -> int:
    """Turn ``"5GB"``, ``"200MiB"`` or a number of bytes into bytes.

    Args:
        size: A positive number of bytes, or digits followed by B, KB, MB, GB, TB (powers of
            1000) or KiB, MiB, GiB, TiB (powers of 1024).

    Returns:
        The number of bytes.

    Raises:
        CheckpointError: The text is none of these.
    """
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*([A-Za-z]*)\s*", str(size))
    if not match or match[2].upper() not in _UNITS or isinstance(size, bool):
        raise CheckpointError(
            f'max_shard_size is {size!r}; give bytes as an int, or a text like "500MB" or "2GiB"'
        )
    size_in_bytes = int(float(match[1]) * _UNITS[match[2].upper()])
    if size_in_bytes < 1:
        raise CheckpointError(f"max_shard_size is {size!r}; it must be at least one byte")
    return size_in_bytes


def deal(
    specs: Mapping[str, TensorSpec], max_bytes: int, twins: Mapping[str, str] | None = None
) -> list[dict[str, TensorSpec]]:
    """Deal tensors to shards in their order.

    Args:
        specs: The tensors.
        max_bytes: Most bytes of data in a shard; a larger tensor gets a shard of its own.
        twins: Names of tensors that are one and the same as another, with the other's name: they
            take no room where both are in one shard, and so they get there.

    Returns:
        The shards, at least one.
    """
    shards: list[dict[str, TensorSpec]] = [{}]
    homes: dict[str, dict[str, TensorSpec]] = {}
    filled = 0
    twins = twins or {}
    for name, spec in specs.items():
        if name in twins:
            continue
        if shards[-1] and filled + spec.nbytes > max_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = spec
        homes[name] = shards[-1]
        filled += spec.nbytes
    for name, other in twins.items():
        homes[other][name] = specs[name]
    return shards


def index_text(weight_map: Mapping[str, str], total_size: int) -> str:
    """The text of an index file.

    Args:
        weight_map: File name by tensor name.
        total_size: Bytes of all tensors.

    Returns:
        The JSON text.
    """
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(index, indent=2) + "\n"


def read_index(path: Path) -> dict[str, str]:
    """Read an index file.

    Args:
        path: The ``*.index.json`` file.

    Returns:
        File name by tensor name, as spelled in the index. All are plain file names.

    Raises:
        CheckpointError: The file is no index, or points outside its folder.
    """
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise CheckpointError(f"{path}: too large for an index of shards")
        index: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable index of shards: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f'{path}: not an index of shards: it has no "weight_map"')
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_name(file):
            raise CheckpointError(
                f"{path}: tensor {name!r} is said to lie in {file!r}; only the names of files in "
                "the same folder are allowed"
            )
    return weight_map


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file and cannot lead out of its folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\:\0")


class ShardedSource(TensorSource):
    """Several files that read as one.

    Args:
        index: The index file.
        find: Gives the path of a shard, or None when it does not exist.
        open_shard: Opens a shard.
        name_in_index: Turns a name of the index into the spelling of the shards.

    Raises:
        CheckpointError: A shard is missing or damaged, lacks a tensor that the index places
            there, or two shards hold the same tensor.
    """

    def __init__(
        self,
        index: Path,
        find: Callable[[str], Path | None],
        open_shard: Callable[[Path], TensorSource],
        name_in_index: Callable[[str], str] = str,
    ):
        self.path = index
        self._shards: dict[str, TensorSource] = {}
        self._home: dict[str, str] = {}
        self._specs: dict[str, TensorSpec] = {}
        weight_map = {name_in_index(name): file for name, file in read_index(index).items()}
        files = sorted(set(weight_map.values()))
        try:
            paths = self._find_all(files, find)
            for file in files:
                self._add(file, open_shard(paths[file]))
            self._check(weight_map)
        except BaseException:
            self.close()
            raise
        self.spelling: Spelling = self._shards[files[0]].spelling

    def _find_all(self, files: list[str], find: Callable[[str], Path | None]) -> dict[str, Path]:
        found = {file: find(file) for file in files}
        missing = [file for file, path in found.items() if path is None]
        if missing:
            raise CheckpointError(
                f"{self.path}: {len(missing)} of {len(files)} shards are missing: "
                f"{', '.join(missing[:5])}"
            )
        return {file: path for file, path in found.items() if path is not None}

    def _add(self, file: str, shard: TensorSource) -> None:
        self._shards[file] = shard
        specs = shard.specs()
        twice = sorted(specs.keys() & self._specs.keys())
        if twice:
            raise CheckpointError(
                f"{self.path}: {len(twice)} tensors lie in both {self._home[twice[0]]} and "
                f"{file}: {', '.join(twice[:5])}"
            )
        self._specs |= specs
        self._home |= dict.fromkeys(specs, file)

    def _check(self, weight_map: dict[str, str]) -> None:
        lacking = [f"{n} in {f}" for n, f in weight_map.items() if self._home.get(n) != f]
        if lacking:
            raise CheckpointError(
                f"{self.path}: {len(lacking)} tensors are not where the index places them: "
                f"{', '.join(lacking[:5])}"
            )

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor of every shard."""
        return dict(self._specs)

    def read(self, name: str) -> np.ndarray:
        """Read one tensor from its shard; see `TensorSource.read`."""
        if name not in self._home:
            raise unknown_name(name, self.path, self._specs)
        return self._shards[self._home[name]].read(name)

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows from the tensor's shard; see `TensorSource.read_rows`."""
        if name not in self._home:
            raise unknown_name(name, self.path, self._specs)
        return self._shards[self._home[name]].read_rows(name, start, stop)

    def is_same(self, name: str, other: str) -> bool:
        """Whether two names are known to be one tensor; see `TensorSource.is_same`."""
        home = self._home.get(name)
        return (
            home is not None
            and home == self._home.get(other)
            and (self._shards[home].is_same(name, other))
        )

    def files(self) -> list[Path]:
        """The index and the shards."""
        return [self.path, *(file for shard in self._shards.values() for file in shard.files())]

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards.values():
            shard.close()
