"""The package logger and progress bars that vanish when nobody watches."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def get_logger(name: str = "xlmfam") -> logging.Logger:
    """Return the logger ``name``; the root of the package is ``xlmfam``."""
    return logging.getLogger(name)


def set_verbosity(level: int | str) -> None:
    """Set the level of the whole package's logger, e.g. ``"INFO"``."""
    get_logger().setLevel(level)


def progress(
    items: Iterable[T], description: str, total: int | None = None, enabled: bool | None = None
) -> Iterator[T]:
    """Iterate over ``items`` behind a progress bar.

    Args:
        items: What to iterate over.
        description: Text before the bar.
        total: Number of items where ``len(items)`` does not tell.
        enabled: ``None`` shows the bar only where standard error is a terminal.
    """
    if enabled is None:
        enabled = sys.stderr.isatty()
    if not enabled:
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, desc=description, total=total, leave=False)
