"""The modules of XGLM in PyTorch: attention and layer.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.configs import XGLMConfig
from xlmfam.pt.attention import Mask, attend, merge_heads, split_heads
from xlmfam.pt.cache import LayerCache
from xlmfam.pt.layers import ACTIVATION_FUNCTIONS
from xlmfam.pt.linear import Linear


class XGLMAttention(nn.Module):
    """Multi-head attention, over the own past or over an encoder.

    Args:
        config: The config.
    """

    def __init__(self, config: XGLMConfig):
        super().__init__()
        width = config.d_model
        self.heads = config.attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = Linear(width, width)
        self.v_proj = Linear(width, width)
        self.q_proj = Linear(width, width)
        self.out_proj = Linear(width, width)

    def forward(
        self,
        hidden: Tensor,
        mask: Mask | None,
        is_causal: bool = False,
        past: LayerCache | tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor]]:
        """Attend to the past and to ``hidden`` itself.

        Args:
            hidden: (B, S, D).
            mask: What each query may see.
            is_causal: Mask the future instead of ``mask``.
            past: Keys and values before.
            head_mask: (H,).
            need_weights: Return the weights.

        Returns:
            (B, S, D); the (B, H, S, T) weights or ``None``; keys and values (B, H, T, K).
        """
        key = split_heads(self.k_proj(hidden), self.heads)
        value = split_heads(self.v_proj(hidden), self.heads)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed, weights = self._mix(hidden, key, value, mask, is_causal, head_mask, need_weights)
        return mixed, weights, (key, value)

    def over_encoder(
        self,
        hidden: Tensor,
        encoder: tuple[Tensor, Tensor],
        mask: Mask | None,
        head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the (B, H, E, K) keys and values of an encoder."""
        return self._mix(hidden, *encoder, mask, False, head_mask, need_weights)

    def project_encoder(self, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, E, K) of (B, E, D)."""
        return (
            split_heads(self.k_proj(encoder_hidden_states), self.heads),
            split_heads(self.v_proj(encoder_hidden_states), self.heads),
        )

    def _mix(self, hidden, key, value, mask, is_causal, head_mask, need_weights):
        mixed, weights = attend(
            split_heads(self.q_proj(hidden), self.heads),
            key,
            value,
            mask,
            is_causal=is_causal,
            dropout=self.dropout if self.training else 0.0,
            head_mask=head_mask,
            need_weights=need_weights,
        )
        return self.out_proj(merge_heads(mixed)), weights


class XGLMLayer(nn.Module):
    """One pre-norm layer: attention, attention over the encoder where there is one, feed-forward.

    Args:
        config: The config.
    """

    def __init__(self, config: XGLMConfig):
        super().__init__()
        width = config.d_model
        self.dropout = config.dropout
        self.activation_dropout = config.activation_dropout
        self.activation = ACTIVATION_FUNCTIONS[config.activation_function]
        self.self_attn = XGLMAttention(config)
        if config.add_cross_attention:
            self.encoder_attn = XGLMAttention(config)
            self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, config.ffn_dim)
        self.fc2 = Linear(config.ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(
        self,
        hidden: Tensor,
        mask: Mask | None,
        is_causal: bool = False,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_mask: Mask | None = None,
        head_mask: Tensor | None = None,
        cross_head_mask: Tensor | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T) or ``None``; weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        own = past[:2] if isinstance(past, tuple) else past
        mixed, weights, present = self.self_attn(
            self.self_attn_layer_norm(hidden), mask, is_causal, own, head_mask, need_weights
        )
        hidden = hidden + self._drop(mixed)
        cross_weights = None
        if encoder_hidden_states is not None:
            encoder = self._encoder_keys(encoder_hidden_states, past)
            mixed, cross_weights = self.encoder_attn.over_encoder(
                self.encoder_attn_layer_norm(hidden),
                encoder,
                encoder_mask,
                cross_head_mask,
                need_weights,
            )
            hidden = hidden + self._drop(mixed)
            present = (*present, *encoder)
        inner = self.activation(self.fc1(self.final_layer_norm(hidden)))
        inner = F.dropout(inner, self.activation_dropout, self.training)
        return hidden + self._drop(self.fc2(inner)), weights, cross_weights, present

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.dropout, self.training)

    def _encoder_keys(self, encoder_hidden_states: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder: those kept from an earlier step, or projected now."""
        if isinstance(past, tuple) and len(past) == 4:
            return past[2], past[3]
        if not isinstance(past, LayerCache):
            return self.encoder_attn.project_encoder(encoder_hidden_states)
        if not past.cross:
            past.cross.extend(self.encoder_attn.project_encoder(encoder_hidden_states))
        return past.cross[0], past.cross[1]
