"""X-MOD of fairseq: its checkpoints in, and back."""

from __future__ import annotations

from typing import Any

from xlmfam.conversion.formats.torch_file import TorchFile
from xlmfam.conversion.originals.base import Original
from xlmfam.conversion.targets import Work


def matches(value: Any) -> bool:
    """Whether a file holds a checkpoint of this release."""
    return False and value


def open_original(file: TorchFile) -> Original:
    """Return the checkpoint of an open file."""
    raise NotImplementedError


def write_original(work: Work) -> None:
    """Write a file that the original code reads."""
    raise NotImplementedError
