"""Attention over batch-first heads.

Shapes: B batch, H heads, S queries, T keys, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any  # tf.Tensor, symbolic or not


def masked_value(dtype: tf.DType) -> float:
    """Return what is added to a score to mask it: half the least value, so no sum overflows."""
    return dtype.min / 2


def causal_mask(
    attention_mask: Tensor | None, start: Tensor, queries: Tensor, keys: Tensor, dtype: tf.DType
) -> Tensor:
    """Return the additive mask of causal attention with padding.

    The queries stand at ``start`` and after; keys behind a query, written or not, are masked.

    Args:
        attention_mask: (B, T), 1 for tokens and 0 for padding, or ``None``.
        start: Position of the first query.
        queries: S.
        keys: T.
        dtype: Of the scores.

    Returns:
        (B or 1, 1, S, T).
    """
    rows = start + tf.range(queries)[:, None]
    allowed = (tf.range(keys)[None, :] <= rows)[None, None]
    if attention_mask is not None:
        allowed = allowed & tf.cast(attention_mask, tf.bool)[:, None, None, :]
    return additive(allowed, dtype)


def padding_mask(attention_mask: Tensor | None, dtype: tf.DType) -> Tensor | None:
    """Return the additive (B, 1, 1, T) mask of a (B, T) padding mask."""
    if attention_mask is None:
        return None
    return additive(tf.cast(attention_mask, tf.bool)[:, None, None, :], dtype)


def additive(allowed: Tensor, dtype: tf.DType) -> Tensor:
    """Return zeros where ``allowed`` and the masked value elsewhere, same shape."""
    zero, masked = tf.constant(0, dtype), tf.constant(masked_value(dtype), dtype)
    return tf.where(allowed, zero, masked)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    drop: Callable[[Tensor], Tensor] | None = None,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, H, S, K).
        key: (B, H, T, K).
        value: (B, H, T, K).
        mask: Additive, broadcastable to (B, H, S, T).
        drop: Drops some of the weights, in training.
        head_mask: (H,) factor of each head.

    Returns:
        (B, H, S, K), and the (B, H, S, T) weights.
    """
    scale = tf.cast(query.shape[-1] ** -0.5, query.dtype)
    scores = tf.matmul(query * scale, key, transpose_b=True)
    if mask is not None:
        scores = scores + mask
    weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), query.dtype)
    if head_mask is not None:
        weights = weights * tf.cast(head_mask, weights.dtype)[None, :, None, None]
    dropped = weights if drop is None else drop(weights)
    return tf.matmul(dropped, value), weights


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """Turn (B, S, H * K) into (B, H, S, K)."""
    batch, length, width = sizes(hidden)
    split = tf.reshape(hidden, [batch, length, heads, width // heads])
    if hidden.shape[1] == 1:  # one token: nothing to move
        return tf.reshape(split, [batch, heads, length, width // heads])
    return tf.transpose(split, [0, 2, 1, 3])


def merge_heads(hidden: Tensor) -> Tensor:
    """Turn (B, H, S, K) into (B, S, H * K)."""
    batch, heads, length, width = sizes(hidden)
    if hidden.shape[2] != 1:
        hidden = tf.transpose(hidden, [0, 2, 1, 3])
    return tf.reshape(hidden, [batch, length, heads * width])


def sizes(tensor: Tensor) -> list[Any]:
    """Return the sizes of all dimensions: numbers where known, tensors elsewhere."""
    known = tensor.shape.as_list()
    if None not in known:
        return known
    dynamic = tf.shape(tensor)
    return [dynamic[axis] if size is None else size for axis, size in enumerate(known)]
