"""Checks of values, made where looking at them is cheap: outside of graphs."""

from __future__ import annotations

import tensorflow as tf

from xlmfam.common.checks import check_token_range
from xlmfam.common.errors import XlmfamError
from xlmfam.tf.attention import Tensor
from xlmfam.tf.layers import IGNORED


def is_cheap(values: Tensor) -> bool:
    """Whether there are values to look at: not in graphs, where they come later."""
    return tf.executing_eagerly() and hasattr(values, "numpy") and 0 not in values.shape


def least_and_most(values: Tensor) -> tuple[int, int]:
    """Return the smallest and the largest of some integers."""
    return int(tf.reduce_min(values)), int(tf.reduce_max(values))


def check_range(name: str, values: Tensor, least: int, most: int) -> None:
    """Raise ``XlmfamError`` unless all values lie in [least, most], where looking is cheap."""
    if not is_cheap(values):
        return
    low, high = least_and_most(values)
    if low < least or high > most:
        wrong = low if low < least else high
        raise XlmfamError(f"{name} holds {wrong}, outside [{least}, {most}]")


def check_ids(name: str, token_ids: Tensor | None, vocab_size: int) -> None:
    """Raise ``XlmfamError`` for ids outside the vocabulary, where looking is cheap."""
    if token_ids is None:
        return
    if not token_ids.dtype.is_integer:
        raise XlmfamError(f"{name} must hold integers, got {token_ids.dtype.name}")
    if is_cheap(token_ids):
        check_token_range(name, *least_and_most(token_ids), vocab_size)


def check_labels(labels: Tensor | None, count: int | None) -> None:
    """Raise ``XlmfamError`` for classes that are not there, where looking is cheap."""
    if labels is None or count is None or not is_cheap(labels):
        return
    labels = tf.cast(labels, tf.int64)
    check_range("labels", tf.boolean_mask(labels, labels != IGNORED), 0, count - 1)
