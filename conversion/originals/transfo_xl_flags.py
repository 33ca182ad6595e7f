"""The flags of kimiyoung's code: what they mean in ours, and what is known where a file is silent.

A checkpoint of TensorFlow, or a state dict alone, does not say how long the memory is, beyond
which distance all count as one, or whether all tokens see equally many before them. They come,
in this order, from

- ``settings.json`` beside the checkpoint, a JSON object of the original's flags as they are
  spelled there: ``{"mem_len": 640, "clamp_len": 400, "same_length": true}``, and ``dropout``,
  ``dropatt``, ``pre_lnorm`` and ``cutoffs``;
- the checkpoint;
- the original's scripts, for a model that has the sizes of one of theirs;
- the flags' defaults in the original.

What was assumed is among the notes of the import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xlmfam.common.configs import TransfoXLConfig
from xlmfam.common.errors import CheckpointError

SETTINGS_NAME = "settings.json"
_LARGEST = 2**20


def _is_length(value: Any) -> bool:
    return type(value) is int


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_switch(value: Any) -> bool:
    return type(value) is bool


def _is_ascending(value: Any) -> bool:
    return isinstance(value, list) and all(type(cut) is int for cut in value)


# Which flags can be given, and what they may be.
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "mem_len": (_is_length, "a number"),
    "clamp_len": (_is_length, "a number"),
    "same_length": (_is_switch, "true or false"),
    "pre_lnorm": (_is_switch, "true or false"),
    "dropout": (_is_probability, "a number from 0 to 1"),
    "dropatt": (_is_probability, "a number from 0 to 1"),
    "cutoffs": (_is_ascending, "a list of numbers"),
}
# The defaults of both codes, but for mem_len, which they are not at one about.
_DEFAULTS = {
    "mem_len": 0,
    "clamp_len": -1,
    "same_length": False,
    "pre_lnorm": False,
    "dropout": 0.1,
    "dropatt": 0.0,
}
# How the original's scripts evaluate, by (n_layer, d_model, n_head, d_inner):
# name, mem_len, clamp_len, dropout, dropatt. All of them have same_length.
_SCRIPTS = {
    (12, 512, 8, 2048): ("enwik8 and text8, base", 2100, 820, 0.1, 0.0),
    (24, 1024, 8, 3072): ("enwik8 and text8, large", 3800, 1000, 0.15, 0.15),
    (16, 410, 10, 2100): ("WikiText-103, base", 640, 400, 0.1, 0.0),
    (18, 1024, 16, 4096): ("WikiText-103, large", 1600, 1000, 0.2, 0.2),
    (18, 1024, 8, 4096): ("One Billion Word, base", 128, -1, 0.0, 0.0),
    (24, 1280, 16, 8192): ("One Billion Word, large", 128, -1, 0.05, 0.05),
}
# Where the original's data cuts its vocabularies, by their sizes.
_CUTOFFS = {267735: [20000, 40000, 200000], 793471: [60000, 100000, 640000]}


def given_flags(folder: Path) -> dict[str, Any]:
    """Return the flags in ``settings.json``; none where there is no such file.

    Raises:
        CheckpointError: It is damaged, or has a flag that cannot be given or not so.
    """
    path = folder / SETTINGS_NAME
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path} has more than {_LARGEST} bytes; flags are few")
        flags = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(flags, dict):
        raise CheckpointError(f"{path} must hold an object of flags, such as {{'mem_len': 640}}")
    for name, value in flags.items():
        if name not in _KINDS:
            raise CheckpointError(f"{path}: {name[:80]!r} is not one of {', '.join(_KINDS)}")
        check, kind = _KINDS[name]
        if not check(value):
            raise CheckpointError(f"{path}: {name} must be {kind}, got {str(value)[:80]}")
    return flags


class Flags:
    """The flags of a checkpoint, and how they came to be known.

    Args:
        path: The checkpoint, for messages.
        given: Those that a person gave (`given_flags`).
        stored: Those that the checkpoint holds.

    Attributes:
        notes: What was assumed.
    """

    def __init__(self, path: Path, given: Mapping[str, Any], stored: Mapping[str, Any]):
        self.path = path
        self.given = dict(given)
        self.stored = dict(stored)
        self.notes: list[str] = []

    def get(self, name: str) -> Any:
        """Return a flag that was given or stored, or ``None``.

        Raises:
            CheckpointError: The stored one is not what it may be.
        """
        if name in self.given:
            return self.given[name]
        value = self.stored.get(name)
        if value is not None and not _KINDS[name][0](value):
            raise CheckpointError(
                f"{self.path}: {name} must be {_KINDS[name][1]}, got {str(value)[:80]}"
            )
        return value

    def cutoffs(self, vocab_size: int, tails: int) -> list[int]:
        """Return where one table of all words is cut into clusters.

        Args:
            vocab_size: Number of words.
            tails: How many clusters there are beside the first.

        Raises:
            CheckpointError: Nothing says it, or something else than the tensors do.
        """
        cutoffs = self.get("cutoffs")
        if cutoffs is None and tails:
            cutoffs = _CUTOFFS.get(vocab_size)
            self._assumed({"cutoffs": cutoffs}, "the original's for this vocabulary")
        cutoffs = cutoffs or []
        if len(cutoffs) != tails:
            raise CheckpointError(
                f"{self.path}: the words beyond the most frequent form {tails} clusters, and "
                f"cutoffs is {cutoffs or 'not known'}; write it into {SETTINGS_NAME} beside the "
                f"file: {tails} numbers, the first id of each"
            )
        return list(cutoffs)

    def complete(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the flags that shapes do not tell, all of them.

        Args:
            sizes: ``n_layer``, ``d_model``, ``n_head`` and ``d_inner``.
        """
        names = [name for name in _DEFAULTS if self.get(name) is None]
        key = tuple(sizes[name] for name in ("n_layer", "d_model", "n_head", "d_inner"))
        known = dict(_DEFAULTS)
        source = "the default of the original's flag"
        if key in _SCRIPTS:
            title, mem_len, clamp_len, dropout, dropatt = _SCRIPTS[key]
            known |= {"mem_len": mem_len, "clamp_len": clamp_len, "same_length": True}
            known |= {"dropout": dropout, "dropatt": dropatt}
            source = f"the original's for {title}"
        self._assumed({name: known[name] for name in names}, source)
        return {name: known[name] if name in names else self.get(name) for name in _DEFAULTS}

    def _assumed(self, values: Mapping[str, Any], source: str) -> None:
        if any(value is not None for value in values.values()):
            listed = ", ".join(f"{name}={value}" for name, value in values.items())
            self.notes.append(
                f"the checkpoint does not say {listed}: {source}. {SETTINGS_NAME} beside it can"
            )


def divisor(path: Path, widths: list[int]) -> int:
    """Return ``div_val``: what the widths of the clusters' embeddings are divided by.

    Raises:
        CheckpointError: They are not those of any.
    """
    for value in range(2, widths[0] + 1):
        if all(widths[0] // value**place == width for place, width in enumerate(widths)):
            return value
    raise CheckpointError(f"{path}: embeddings of the widths {widths} follow no div_val")


def new_config(path: Path, **settings: Any) -> TransfoXLConfig:
    """Return the config of a checkpoint; what is wrong with it is wrong with the file.

    Raises:
        CheckpointError: The settings describe no model.
    """
    try:
        return TransfoXLConfig(**settings)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: its settings describe no model: {error}") from error
