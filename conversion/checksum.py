"""One number for all weights of a checkpoint or model, the same in every format and framework."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from xlmfam.common.parameters import relayout
from xlmfam.conversion.sources import recognise


def checksum(source: str | os.PathLike[str] | Mapping[str, np.ndarray], **hub: Any) -> str:
    """Return the SHA-256 of all parameters: canonical names, shapes, dtypes and bytes.

    Args:
        source: A checkpoint (folder, file or hub id), or arrays by canonical name as a model's
            ``to_canonical()`` gives them.
        **hub: Where on the hub to look.

    Returns:
        64 hexadecimal digits.
    """
    if isinstance(source, Mapping):
        return _digest(source, lambda name: np.asarray(source[name]))
    with recognise(source, **hub) as checkpoint:
        plan = checkpoint.plan()
        parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)

        def read(name: str) -> np.ndarray:
            array = checkpoint.source.read(plan.sources[name])
            return relayout(array, parameters[name], checkpoint.source.spelling, "canonical")

        return _digest(plan.sources, read)


def _digest(names: Iterable[str], read: Callable[[str], np.ndarray]) -> str:
    result = hashlib.sha256()
    for name in sorted(names):
        array = np.ascontiguousarray(read(name))
        result.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        result.update(array.reshape(-1).view(np.uint8).data)
    return result.hexdigest()
