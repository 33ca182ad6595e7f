"""Reading a sentencepiece ``.model`` file: pieces, scores, and how it normalises text.

The file is a protocol buffer of a few fields, so that reading it takes this page and not the
``protobuf`` package.
"""

from __future__ import annotations

import dataclasses
import enum
import os
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from xlmfam.common.errors import CheckpointError

SPACE = "\u2581"


class PieceType(enum.IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclasses.dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary."""

    text: str
    score: float
    type: PieceType


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message; integers, or the bytes of others."""
    at = 0
    while at < len(data):
        key, at = _number(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _number(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _number(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of unknown wire type {kind}")
        if at + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, data[at : at + size]
        at += size


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, PieceType.NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = value.decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", value)
        elif number == 3:
            kind = PieceType(value)
    return Piece(text, score, kind)


@dataclasses.dataclass(frozen=True)
class SentencePieceModel:
    """What a ``.model`` file says.

    Attributes:
        pieces: The vocabulary, in the order of ids.
        is_bpe: BPE; unigram otherwise.
        byte_fallback: Characters that no piece has are written as bytes.
        charsmap: The compiled table of replacements, empty for none.
        add_dummy_prefix: A space is put before the text.
        remove_extra_whitespaces: Space at both ends goes, and double space becomes single.
    """

    pieces: tuple[Piece, ...]
    is_bpe: bool
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @classmethod
    def parse(cls, data: bytes, name: str = "the sentencepiece model") -> SentencePieceModel:
        """Read the bytes of a ``.model`` file.

        Raises:
            CheckpointError: they are damaged, or a kind of model without pieces of text.
        """
        try:
            return cls._parse(data)
        except (ValueError, IndexError, struct.error) as error:
            raise CheckpointError(
                f"{name} cannot be read as a sentencepiece model: {error}"
            ) from error

    @classmethod
    def _parse(cls, data: bytes) -> SentencePieceModel:
        pieces: list[Piece] = []
        trainer: dict[int, Any] = {}
        normalizer: dict[int, Any] = {}
        for number, value in _fields(data):
            if number == 1:
                pieces.append(_piece(value))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        if not pieces:
            raise ValueError("it has no pieces")
        model_type = trainer.get(3, 1)
        if model_type not in (1, 2):
            raise ValueError("it splits into words or characters; unigram and BPE are supported")
        return cls(
            pieces=tuple(pieces),
            is_bpe=model_type == 2,
            byte_fallback=bool(trainer.get(35, 0)),
            charsmap=normalizer.get(2, b""),
            add_dummy_prefix=bool(normalizer.get(3, 1)),
            remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SentencePieceModel:
        """Read a ``.model`` file.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        return cls.parse(read_bytes(path), os.fspath(path))


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a vocabulary file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, TypeError) as error:
        raise CheckpointError(f"the vocabulary file {path} cannot be read: {error}") from error


class CharsMap:
    """The table by which a model normalises text: longest match first.

    Args:
        compiled: The bytes of the model: the size of a double-array trie, the trie, and the
            replacements, each ended by a zero byte.
    """

    def __init__(self, compiled: bytes):
        (size,) = struct.unpack_from("<I", compiled)
        self._trie = memoryview(compiled[4 : 4 + size]).cast("I")
        self._replacements = compiled[4 + size :]
        self._starts: dict[str, tuple[str | None, bool]] = {}

    def _replacement(self, at: int) -> str:
        return self._replacements[at : self._replacements.index(b"\0", at)].decode("utf-8")

    @cached_property
    def _root(self) -> int:
        return self._child_base(self._trie[0])

    @staticmethod
    def _child_base(unit: int) -> int:
        return (unit >> 10) << ((unit & (1 << 9)) >> 6)

    def _step(self, node: int, data: bytes) -> tuple[int, int | None] | None:
        """Follow bytes down the trie; return the node and the replacement that ends there."""
        end: int | None = None
        for byte in data:
            at = node ^ byte
            if at >= len(self._trie):
                return None
            unit = self._trie[at]
            if unit & 0x800000FF != byte:
                return None
            node = at ^ self._child_base(unit)
            end = self._trie[node] & 0x7FFFFFFF if (unit >> 8) & 1 else None
        return node, end

    def starts(self, char: str) -> tuple[str | None, bool]:
        """Return what ``char`` alone becomes, and whether longer entries may begin with it."""
        known = self._starts.get(char)
        if known is None:
            found = self._step(self._root, char.encode("utf-8"))
            if found is None:
                known = (None, False)
            else:
                alone = None if found[1] is None else self._replacement(found[1])
                known = (alone, self._has_children(found[0]))
            self._starts[char] = known
        return known

    def _has_children(self, node: int) -> bool:
        limit = len(self._trie)
        return any(
            node ^ byte < limit and self._trie[node ^ byte] & 0x800000FF == byte
            for byte in range(1, 256)
        )

    def longest(self, text: str, at: int) -> tuple[int, str] | None:
        """Return where the longest entry that begins at ``at`` ends, and its replacement."""
        node, best = self._root, None
        for end in range(at, len(text)):
            found = self._step(node, text[end].encode("utf-8"))
            if found is None:
                break
            node = found[0]
            if found[1] is not None:
                best = (end + 1, found[1])
        return None if best is None else (best[0], self._replacement(best[1]))
