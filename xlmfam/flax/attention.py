"""Attention over batch-first heads; its weights leave it only when asked for.

Shapes: B batch, H heads, S queries, T keys, K head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def masked_value(dtype: jnp.dtype) -> float:
    """Return the score of what is masked: half the least value, so no sum overflows."""
    return float(jnp.finfo(dtype).min) / 2


def causal_mask(
    attention_mask: Array | None, start: int | Array, queries: int, keys: int
) -> Array | None:
    """Return which keys each query may see: causal, without padding.

    Query i stands at position ``start + i``; keys behind it may be unwritten cache.

    Args:
        attention_mask: (B, M), 1 for tokens and 0 for padding, M at most T; or ``None``.
        start: Position of the first query; an array may change without compiling again.
        queries: S.
        keys: T.

    Returns:
        (B or 1, 1, S, T) booleans, or ``None`` when every query sees every key.
    """
    allowed = None
    if queries > 1 or not isinstance(start, int) or start + queries < keys:
        rows = start + jnp.arange(queries)[:, None]
        allowed = (jnp.arange(keys) <= rows)[None, None]
    seen = padding_mask(attention_mask)
    if seen is None:
        return allowed
    # Keys that the mask does not reach come after every query.
    seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (0, keys - seen.shape[-1])))
    return seen if allowed is None else allowed & seen


def padding_mask(attention_mask: Array | None) -> Array | None:
    """Return the boolean (B, 1, 1, T) mask of a (B, T) padding mask."""
    if attention_mask is None:
        return None
    return jnp.asarray(attention_mask).astype(bool)[:, None, None, :]


def attend(
    query: Array,
    key: Array,
    value: Array,
    allowed: Array | None = None,
    *,
    dropout: float = 0.0,
    dropout_rng: Array | None = None,
    head_mask: Array | None = None,
    need_weights: bool = False,
    scores_bias: Array | None = None,
) -> tuple[Array, Array | None]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, H, S, K).
        key: (B, H, T, K), or (B * H, T, K) as a cache holds it.
        value: As ``key``.
        allowed: Booleans, broadcastable to (B, H, S, T); a row with none sees all alike.
        dropout: Probability of dropping an attention weight.
        dropout_rng: Draws what is dropped.
        head_mask: (H,) factor of each head.
        need_weights: Return the weights.
        scores_bias: Added to the scores, broadcastable to (B, H, S, T).

    Returns:
        (B, H, S, K), and the (B, H, S, T) weights or ``None``.
    """
    batch, heads, length, width = query.shape
    query = query * jnp.asarray(width**-0.5, query.dtype)
    # One batch axis, see KeyValueCache.
    query, key, value = (x.reshape(batch * heads, x.shape[-2], width) for x in (query, key, value))
    scores = jnp.einsum("nsk,ntk->nst", query, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, key.shape[1])
    if scores_bias is not None:
        scores = scores + scores_bias
    if allowed is not None:
        scores = jnp.where(allowed, scores, masked_value(scores.dtype))
    weights = jax.nn.softmax(scores, -1).astype(query.dtype)
    if head_mask is not None:
        weights = weights * head_mask.astype(weights.dtype)[:, None, None]
    dropped = weights
    if dropout and dropout_rng is not None:
        kept = jax.random.bernoulli(dropout_rng, 1.0 - dropout, weights.shape)
        # Dropping everything leaves zeros, not a division by zero.
        dropped = jnp.where(kept, weights / max(1.0 - dropout, 1e-30), 0.0).astype(weights.dtype)
    mixed = jnp.einsum("nst,ntk->nsk", dropped.reshape(batch * heads, length, key.shape[1]), value)
    return mixed.reshape(batch, heads, length, width), weights if need_weights else None


def split_heads(hidden: Array, heads: int) -> Array:
    """Turn (B, S, H * K) into (B, H, S, K)."""
    batch, length, width = hidden.shape
    return hidden.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def merge_heads(hidden: Array) -> Array:
    """Turn (B, H, S, K) into (B, S, H * K)."""
    batch, heads, length, width = hidden.shape
    return hidden.transpose(0, 2, 1, 3).reshape(batch, length, heads * width)
