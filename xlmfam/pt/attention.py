"""Attention over batch-first heads, fused unless its weights are asked for.

Shapes: B batch, H heads, S queries, T keys, K head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_value(dtype: torch.dtype) -> float:
    """Return what is added to a score to mask it: half the least value, so no sum overflows."""
    return torch.finfo(dtype).min / 2


def causal_mask(
    attention_mask: Tensor | None,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor | None:
    """Return the additive mask of causal attention with padding, or ``None`` where none is needed.

    The queries are the last ``queries`` of the ``keys`` positions.

    Args:
        attention_mask: (B, T), 1 for tokens and 0 for padding, or ``None``.
        queries: S.
        keys: T.
        dtype: Of the scores.
        device: Of the result.

    Returns:
        (B or 1, 1, S, T), or ``None`` when every query sees every key.
    """
    allowed = None
    if queries > 1:
        rows = torch.arange(keys - queries, keys, device=device)[:, None]
        allowed = (torch.arange(keys, device=device) <= rows)[None, None]
    if attention_mask is not None:
        seen = attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
        allowed = seen if allowed is None else allowed & seen
    return None if allowed is None else additive(allowed, dtype)


def padding_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the additive (B, 1, 1, T) mask of a (B, T) padding mask."""
    if attention_mask is None:
        return None
    return additive(attention_mask.to(torch.bool)[:, None, None, :], dtype)


def additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros where ``allowed`` and the masked value elsewhere, same shape."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill(~allowed, masked_value(dtype))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    need_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, H, S, K).
        key: (B, H, T, K).
        value: (B, H, T, K).
        mask: Additive, broadcastable to (B, H, S, T).
        is_causal: Mask the future; instead of ``mask``, where S equals T.
        dropout: Probability of dropping an attention weight.
        head_mask: (H,) factor of each head.
        need_weights: Return the weights; the fused kernel cannot.

    Returns:
        (B, H, S, K), and the (B, H, S, T) weights or ``None``.
    """
    if not need_weights and head_mask is None:
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal
        )
        return mixed, None
    if is_causal:
        mask = causal_mask(None, query.shape[2], key.shape[2], query.dtype, query.device)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if head_mask is not None:
        weights = weights * head_mask.to(weights.dtype)[None, :, None, None]
    dropped = F.dropout(weights, dropout) if dropout else weights
    return dropped @ value, weights if need_weights else None


def split_heads(hidden: Tensor, heads: int) -> Tensor:
    """Turn (B, S, H * K) into (B, H, S, K)."""
    batch, length, width = hidden.shape
    return hidden.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(hidden: Tensor) -> Tensor:
    """Turn (B, H, S, K) into (B, S, H * K)."""
    batch, heads, length, width = hidden.shape
    return hidden.transpose(1, 2).reshape(batch, length, heads * width)
