"""What an importer of an original release gives: a config, named tensors, a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xlmfam.common.checkpoints.source import Spelling, TensorSource, TensorSpec, unknown_name
from xlmfam.common.configs import PretrainedConfig


@dataclass(frozen=True)
class Piece:
    """One parameter of ours, made of what the original file has.

    Attributes:
        stored_as: Where it comes from, as the original calls it.
        spec: Shape and dtype in canonical layout.
        read: Gives the array.
        read_rows: Gives the rows from one number up to another, where that takes less memory.
    """

    stored_as: str
    spec: TensorSpec
    read: Callable[[], np.ndarray]
    read_rows: Callable[[int, int], np.ndarray] | None = None


class PiecesSource(TensorSource):
    """Parameters by canonical name, read from an original file one at a time.

    Args:
        path: The original file.
        pieces: The parameters.
        close: Lets go of the file.
    """

    spelling: Spelling = "canonical"

    def __init__(self, path: Path, pieces: Mapping[str, Piece], close: Callable[[], None]):
        self.path = path
        self._pieces = dict(pieces)
        self._close = close

    def specs(self) -> dict[str, TensorSpec]:
        """Name, shape and dtype of every tensor."""
        return {name: piece.spec for name, piece in self._pieces.items()}

    def stored_as(self, name: str) -> str:
        """Return what the original calls a parameter."""
        return self._pieces[name].stored_as

    def read(self, name: str) -> np.ndarray:
        """Read one parameter; see `TensorSource.read`."""
        if name not in self._pieces:
            raise unknown_name(name, self.path, self.specs())
        return self._pieces[name].read()

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read some rows of one parameter; see `TensorSource.read_rows`."""
        piece = self._pieces.get(name)
        if piece is None or piece.read_rows is None:
            return super().read_rows(name, start, stop)
        return piece.read_rows(start, stop)

    def close(self) -> None:
        """Close the file."""
        self._close()


@dataclass
class Original:
    """An open checkpoint of an original release; only its settings are read yet.

    Attributes:
        release: Which one, as `RELEASES` names it.
        config: What its settings mean in ours.
        head: The class that it is.
        source: Its parameters.
        dropped: Its names that no model needs, with the reason.
        tokenizer_files: Name and content of the tokenizer's files, from those beside it.
        notes: What the user should know.
    """

    release: str
    config: PretrainedConfig
    head: str
    source: TensorSource
    dropped: Mapping[str, str] = field(default_factory=dict)
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()
