"""Attention over batch-first heads, fused unless its weights are asked for.

Shapes: B batch, H heads, S queries, T keys, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Mask(NamedTuple):
    """What each query may see, made once per call.

    Attributes:
        bias: (B or 1, 1, S or 1, T), added to the scores.
        blind: (B or 1, 1, S or 1, 1), true for queries that may see nothing (padding), or
            ``None`` where there are none.
    """

    bias: Tensor
    blind: Tensor | None


def causal_mask(
    attention_mask: Tensor | None,
    queries: int,
    keys: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Mask | None:
    """Return the mask of causal attention with padding, or ``None`` where none is needed.

    The queries are the last ``queries`` of the ``keys`` positions.

    Args:
        attention_mask: (B, T), 1 for tokens and 0 for padding, or ``None``.
        queries: S.
        keys: T.
        dtype: Of the scores.
        device: Of the result.
    """
    allowed = None
    if queries > 1:
        rows = torch.arange(keys - queries, keys, device=device)[:, None]
        allowed = (torch.arange(keys, device=device) <= rows)[None, None]
    if attention_mask is not None:
        seen = attention_mask.to(device=device, dtype=torch.bool)[:, None, None, :]
        allowed = seen if allowed is None else allowed & seen
    return None if allowed is None else make_mask(allowed, dtype)


def padding_mask(attention_mask: Tensor | None, dtype: torch.dtype) -> Mask | None:
    """Return the mask of a (B, T) padding mask."""
    if attention_mask is None:
        return None
    return make_mask(attention_mask.to(torch.bool)[:, None, None, :], dtype)


def make_mask(allowed: Tensor, dtype: torch.dtype) -> Mask:
    """Return the mask of what is ``allowed``, (B or 1, 1, S or 1, T) booleans."""
    # A row of nothing but masked scores would lose all precision in the fused backward pass,
    # which recomputes weights from the row's logarithmic sum. Such a row is left open instead,
    # and its query made zero: it attends to all keys alike and passes no gradient to scores.
    blind = ~allowed.any(-1, keepdim=True)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    bias = bias.masked_fill(~(allowed | blind), torch.finfo(dtype).min / 2)
    looks = torch.compiler.is_compiling() or blind.device.type != "cpu" or bool(blind.any())
    return Mask(bias, blind if looks else None)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask | None = None,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
    head_mask: Tensor | None = None,
    need_weights: bool = False,
    scores_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: (B, H, S, K).
        key: (B, H, T, K).
        value: (B, H, T, K).
        mask: What each query may see; a query that may see nothing sees all alike.
        is_causal: Mask the future; instead of ``mask``, where S equals T.
        dropout: Probability of dropping an attention weight.
        head_mask: (H,) factor of each head.
        need_weights: Return the weights; the fused kernel cannot.
        scores_bias: (B, H, S, T) to add to the scores, which the fused kernel cannot learn.

    Returns:
        (B, H, S, K), and the (B, H, S, T) weights or ``None``.
    """
    if mask is not None and mask.blind is not None:
        query = query.masked_fill(mask.blind, 0.0)
    learns_bias = scores_bias is not None and scores_bias.requires_grad
    if not need_weights and head_mask is None and not learns_bias:
        bias = scores_bias if mask is None else mask.bias
        if scores_bias is not None and mask is not None:
            bias = mask.bias + scores_bias
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=is_causal
        )
        return mixed, None
    if is_causal:
        mask = causal_mask(None, query.shape[2], key.shape[2], query.dtype, query.device)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if scores_bias is not None:
        scores = scores + scores_bias
    if mask is not None:
        scores = scores + mask.bias
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
