"""Attention over batch-first heads.

Shapes: B batch, H heads, S queries, T keys, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any  # tf.Tensor, symbolic or not


def masked_value(dtype: tf.DType) -> float:
    """Return the score of what is masked: half the least value, so that no sum overflows."""
    return dtype.min / 2


def causal_mask(
    attention_mask: Tensor | None, start: Tensor, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return which keys each query may see: causal, without padding.

    The queries stand at ``start`` and after; keys behind a query, written or not, are masked.

    Args:
        attention_mask: (B, T), 1 for tokens and 0 for padding, or ``None``.
        start: Position of the first query.
        queries: S.
        keys: T.

    Returns:
        (B or 1, 1, S, T) booleans.
    """
    rows = start + tf.range(queries)[:, None]
    allowed = (tf.range(keys)[None, :] <= rows)[None, None]
    seen = padding_mask(attention_mask)
    return allowed if seen is None else allowed & seen


def padding_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Return the boolean (B, 1, 1, T) mask of a (B, T) padding mask."""
    if attention_mask is None:
        return None
    return tf.cast(attention_mask, tf.bool)[:, None, None, :]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
    *,
    drop: Callable[[Tensor], Tensor] | None = None,
    head_mask: Tensor | None = None,
    scores_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, H, S, K).
        key: (B, H, T, K).
        value: (B, H, T, K).
        allowed: Booleans, broadcastable to (B, H, S, T); a row with none sees all alike.
        drop: Drops some of the weights, in training.
        head_mask: (H,) factor of each head.
        scores_bias: (B, H, S, T) to add to the scores.

    Returns:
        (B, H, S, K), and the (B, H, S, T) weights.
    """
    scale = tf.cast(query.shape[-1] ** -0.5, query.dtype)
    scores = tf.matmul(query * scale, key, transpose_b=True)
    if scores_bias is not None:
        scores = scores + scores_bias
    if allowed is not None:
        # Not a sum: what is masked passes no gradient, even where a row is masked altogether.
        scores = tf.where(allowed, scores, tf.cast(masked_value(scores.dtype), scores.dtype))
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
