"""Perplexity of a long text, segment by segment with carried memories (Dai et al. 2019, section 4).

Shapes: B rows that the text is cut into, S tokens of a segment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from xlmfam.common.errors import XlmfamError


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of a text.

    Attributes:
        loss: Mean of minus the natural logarithm of each token's probability.
        tokens: Number of tokens that were predicted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Number of tokens that would be as hard to choose from, were they all alike."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_token(self) -> float:
        """Mean bits of a token; of a character where tokens are characters."""
        return self.loss / math.log(2)

    def bits_per_character(self, characters: int) -> float:
        """Return the bits of all tokens by the number of characters that they stand for."""
        if characters < 1:
            raise XlmfamError(f"characters must be positive, got {characters}")
        return self.bits_per_token * self.tokens / characters


def segments(
    stream: Any, batch_size: int, segment_length: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield ids and targets, (B, S) each: the next token of every one.

    The text is cut into B rows that are read side by side; what does not fill the last column is
    left out. Every token but the first of a row is predicted once.

    Args:
        stream: Token ids of the text, one after the other.
        batch_size: B.
        segment_length: S; the last segment may be shorter.

    Raises:
        XlmfamError: For a text that is too short, or sizes below 1.
    """
    ids = np.asarray(stream)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise XlmfamError(
            f"the text must be token ids in one row, got {ids.dtype} of shape {ids.shape}"
        )
    if batch_size < 1 or segment_length < 1:
        raise XlmfamError(
            f"batch_size and segment_length must be positive, got {batch_size} and {segment_length}"
        )
    length = len(ids) // batch_size
    if length < 2:
        raise XlmfamError(
            f"{len(ids)} tokens in {batch_size} rows leave nothing to predict: give two "
            "for each row at least"
        )
    rows = ids[: length * batch_size].reshape(batch_size, length)
    for first in range(0, length - 1, segment_length):
        end = min(first + segment_length, length - 1)
        yield rows[:, first:end], rows[:, first + 1 : end + 1]


def evaluate_stream(
    step: Callable[[np.ndarray, np.ndarray, Any], tuple[float, Any]],
    stream: Any,
    batch_size: int,
    segment_length: int,
) -> Evaluation:
    """Return what a model makes of a text.

    Args:
        step: Takes ids and targets (B, S) and memories; returns the sum of the losses, and the
            memories for the next segment.
        stream: See ``segments``.
        batch_size: See ``segments``.
        segment_length: See ``segments``.
    """
    total, tokens, mems = 0.0, 0, None
    for ids, targets in segments(stream, batch_size, segment_length):
        loss, mems = step(ids, targets, mems)
        total += loss
        tokens += targets.size
    return Evaluation(total / tokens, tokens)
