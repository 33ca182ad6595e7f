"""Sinusoidal positions (Vaswani et al. 2017, section 3.5): as plain numbers."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=32)
def halves_frequencies(width: int) -> np.ndarray:
    """Return the ``width // 2`` frequencies of the "sine half, then cosine half" layout.

    They fall geometrically from 1 to 1/10000, both ends included (tensor2tensor, fairseq).
    """
    half = width // 2
    step = math.log(10000.0) / max(half - 1, 1)
    frequencies = np.exp(np.arange(half, dtype=np.float32) * np.float32(-step))
    frequencies.setflags(write=False)
    return frequencies


def interleaved_sinusoids(rows: int, width: int) -> np.ndarray:
    """Return the (``rows``, ``width``) table with sines in even and cosines in odd columns."""
    columns = np.arange(width)
    angles = np.arange(rows)[:, None] / 10000.0 ** (2 * (columns // 2) / width)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
