"""One number for all weights of a checkpoint or model, the same in every format and framework."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from xlmfam.conversion.sources import recognise
from xlmfam.conversion.streaming import Reading, sum_of


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
        arrays = {name: np.asarray(array) for name, array in source.items()}
        return whole_checksum(
            {name: (a.dtype.name, a.shape, sum_of([a])) for name, a in arrays.items()}
        )
    with recognise(source, **hub) as checkpoint:
        plan = checkpoint.plan()
        parameters = checkpoint.table.expand(checkpoint.config, checkpoint.head)
        found = {}
        for name, stored in plan.sources.items():
            reading = Reading(checkpoint.source, stored, parameters[name])
            spec = reading.spec(reading.is_turned)
            found[name] = (spec.dtype.name, spec.shape, sum_of(reading.canonical()))
        return whole_checksum(found)


def whole_checksum(tensors: Mapping[str, tuple[str, tuple[int, ...], str]]) -> str:
    """Return the checksum of a checkpoint from those of its tensors.

    Args:
        tensors: Dtype, canonical shape and SHA-256 of the bytes in canonical layout, by name.
    """
    lines = [f"{name} {' '.join(map(str, tensors[name]))}\n" for name in sorted(tensors)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
