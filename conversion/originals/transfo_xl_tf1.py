"""kimiyoung/transformer-xl, TensorFlow 1: its checkpoints in."""

from __future__ import annotations

from pathlib import Path

from xlmfam.conversion.originals.base import Original


def find(path: Path) -> Path | None:
    """Return the prefix of a checkpoint's files, or ``None`` where there is none."""
    return None if path else None


def open_original(prefix: Path) -> Original:
    """Return the checkpoint."""
    raise NotImplementedError
