"""What a checkpoint can be written as besides the four file formats of `common.checkpoints`.

Each target has a module with ``write(work)``, which gets a `Work` and writes its files into the
empty folder ``work.folder``. Whoever calls it adds the config and the tokenizer, and puts the
folder in its place only when everything is written.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlmfam.common.checkpoints.models import ParameterReader
from xlmfam.common.configs import PretrainedConfig
from xlmfam.common.errors import CheckpointError

TARGETS = {
    "orbax": "xlmfam.conversion.targets.orbax",
    "keras": "xlmfam.conversion.targets.keras",
    "savedmodel": "xlmfam.conversion.targets.savedmodel",
    "onnx": "xlmfam.conversion.targets.onnx",
    "original": "xlmfam.conversion.targets.original",
}
# Files of these that must not outlive a checkpoint that is replaced: they would be read with, or
# before, what has taken its place.
TARGET_FILES = (
    "model.weights.h5",
    "model.keras",
    "saved_model.pb",
    "fingerprint.pb",
    "model.onnx",
    "model.onnx.data",
)


@dataclass
class Work:
    """What a target is made of.

    Attributes:
        config: The config.
        head: The class.
        reader: The parameters, in canonical layout and in the dtype that was asked for.
        folder: An existing, empty folder to write into.
        tokenizer_files: Files of the tokenizer by name.
        progress: Called with numbers of bytes as they are written.
    """

    config: PretrainedConfig
    head: str
    reader: ParameterReader
    folder: Path
    tokenizer_files: dict[str, bytes]
    progress: Callable[[int], None] | None = None


def target_module(name: str) -> Any:
    """Import the module of a target.

    Raises:
        CheckpointError: There is no such target.
    """
    if name not in TARGETS:
        raise CheckpointError(f"format is {name!r}; possible are also {', '.join(TARGETS)}")
    return importlib.import_module(TARGETS[name])
