"""The modules of XLM in PyTorch: attention, feed-forward, vocabulary projections, summary.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E source sequence, V vocabulary.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.configs import XLMConfig
from xlmfam.pt.attention import Mask, attend, merge_heads, split_heads
from xlmfam.pt.cache import LayerCache
from xlmfam.pt.layers import ACTIVATION_FUNCTIONS
from xlmfam.pt.linear import Linear


class XLMAttention(nn.Module):
    """Multi-head attention, over the text itself or over a source.

    Args:
        config: The config.
        heads: H, those that pruning has left.
    """

    def __init__(self, config: XLMConfig, heads: int):
        super().__init__()
        width = config.emb_dim
        self.head_width = width // config.n_heads
        inner = self.head_width * heads
        self.dropout = config.attention_dropout
        self.q_lin = Linear(width, inner)
        self.k_lin = Linear(width, inner)
        self.v_lin = Linear(width, inner)
        self.out_lin = Linear(inner, width)

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
        key, value = self.project_source(hidden)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        mixed, weights = self._mix(hidden, key, value, mask, is_causal, head_mask, need_weights)
        return mixed, weights, (key, value)

    def over_source(
        self,
        hidden: Tensor,
        source: tuple[Tensor, Tensor],
        mask: Mask | None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend to the (B, H, E, K) keys and values of a source."""
        return self._mix(hidden, *source, mask, False, None, need_weights)

    @property
    def heads(self) -> int:
        """H."""
        return self.q_lin.weight.shape[0] // self.head_width

    def project_source(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, E, K) of (B, E, D)."""
        return (
            split_heads(self.k_lin(states), self.heads),
            split_heads(self.v_lin(states), self.heads),
        )

    def _mix(self, hidden, key, value, mask, is_causal, head_mask, need_weights):
        mixed, weights = attend(
            split_heads(self.q_lin(hidden), self.heads),
            key,
            value,
            mask,
            is_causal=is_causal,
            dropout=self.dropout if self.training else 0.0,
            head_mask=head_mask,
            need_weights=need_weights,
        )
        return self.out_lin(merge_heads(mixed)), weights


class XLMFeedForward(nn.Module):
    """Two linear layers with an activation between them, four times as wide inside.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.dropout = config.dropout
        self.activation = ACTIVATION_FUNCTIONS["gelu" if config.gelu_activation else "relu"]
        self.lin1 = Linear(config.emb_dim, 4 * config.emb_dim)
        self.lin2 = Linear(4 * config.emb_dim, config.emb_dim)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S, D)."""
        hidden = self.lin2(self.activation(self.lin1(hidden)))
        return F.dropout(hidden, self.dropout, self.training)


class AdaptiveLogSoftmax(nn.Module):
    """Frequent words by themselves, rare ones in clusters of lower rank (Grave et al. 2016).

    Args:
        width: D.
        cuts: First id of each cluster, and V.
        div_value: Each cluster's width is that of the one before divided by this.
    """

    def __init__(self, width: int, cuts: list[int], div_value: float):
        super().__init__()
        clusters = list(pairwise(cuts))
        self.head = Linear(width, cuts[0] + len(clusters))
        self.short_list = cuts[0]
        self.tail = nn.ModuleList()
        for index, (first, end) in enumerate(clusters, 1):
            inner = int(width // div_value**index)
            down, up = Linear(width, inner, bias=False), Linear(inner, end - first, bias=False)
            self.tail.append(nn.Sequential(down, up))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (..., V) of (..., D), in float32 at least."""
        head = _log_softmax(self.head(hidden))
        parts = [head[..., : self.short_list]]
        for index, cluster in enumerate(self.tail, self.short_list):
            parts.append(_log_softmax(cluster(hidden)) + head[..., index, None])
        return torch.cat(parts, -1)


def _log_softmax(scores: Tensor) -> Tensor:
    return scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))


class XLMPredLayer(nn.Module):
    """The vocabulary projection, plain or adaptive.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        if config.asm:
            self.proj: nn.Module = AdaptiveLogSoftmax(
                config.emb_dim, config.asm_cuts, config.asm_div_value
            )
        else:
            self.proj = Linear(config.emb_dim, config.vocab_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.proj(hidden)


class SequenceSummary(nn.Module):
    """One vector for a text: a position or the mean, projected as the config says.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.kind = config.summary_type
        self.first_dropout = config.summary_first_dropout
        self.last_dropout = config.summary_last_dropout
        self.activation = ACTIVATION_FUNCTIONS[config.summary_activation or "linear"]
        if config.summary_use_proj:
            to_labels = config.summary_proj_to_labels
            self.summary = Linear(
                config.emb_dim, config.num_labels if to_labels else config.emb_dim
            )

    def forward(self, hidden: Tensor, cls_index: Tensor | None = None) -> Tensor:
        """Return (B, num_labels or D).

        Args:
            hidden: (B, S, D).
            cls_index: (B,) position to read where ``summary_type`` is ``cls_index``; the last by
                default.
        """
        vector = F.dropout(self._read(hidden, cls_index), self.first_dropout, self.training)
        if hasattr(self, "summary"):
            vector = self.summary(vector)
        return F.dropout(self.activation(vector), self.last_dropout, self.training)

    def _read(self, hidden: Tensor, cls_index: Tensor | None) -> Tensor:
        if self.kind == "mean":
            return hidden.mean(1)
        if self.kind == "first":
            return hidden[:, 0]
        if self.kind == "last" or cls_index is None:
            return hidden[:, -1]
        return take_positions(hidden, cls_index)


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Return (B, D): for every row of (B, S, D) the position that (B,) names."""
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, positions]


class StartLogits(nn.Module):
    """Scores each position as the start of an answer.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.dense = Linear(config.emb_dim, 1)

    def forward(self, hidden: Tensor, p_mask: Tensor | None) -> Tensor:
        """Return (B, S) of (B, S, D); ``p_mask`` (B, S) is 1 where no answer may be."""
        return forbid(self.dense(hidden)[..., 0], p_mask)


class EndLogits(nn.Module):
    """Scores each position as the end of an answer with a given start.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.dense_0 = Linear(2 * config.emb_dim, config.emb_dim)
        self.LayerNorm = nn.LayerNorm(config.emb_dim, config.layer_norm_eps)
        self.dense_1 = Linear(config.emb_dim, 1)

    def forward(self, hidden: Tensor, start: Tensor, p_mask: Tensor | None) -> Tensor:
        """Return (..., S).

        Args:
            hidden: (..., S, D).
            start: (..., D) state of the start.
            p_mask: (..., S), 1 where no answer may be.
        """
        pairs = torch.cat([hidden, start[..., None, :].expand_as(hidden)], -1)
        inner = self.LayerNorm(torch.tanh(self.dense_0(pairs)))
        return forbid(self.dense_1(inner)[..., 0], p_mask)


class AnswerClass(nn.Module):
    """Scores a text as having no answer.

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.dense_0 = Linear(2 * config.emb_dim, config.emb_dim)
        self.dense_1 = Linear(config.emb_dim, 1, bias=False)

    def forward(self, hidden: Tensor, start: Tensor, cls_index: Tensor | None) -> Tensor:
        """Return (B,).

        Args:
            hidden: (B, S, D).
            start: (B, D) state of the start, or their mean by probability.
            cls_index: (B,) position to read; the last by default.
        """
        read = hidden[:, -1] if cls_index is None else take_positions(hidden, cls_index)
        return self.dense_1(torch.tanh(self.dense_0(torch.cat([start, read], -1))))[..., 0]


class BeamAnswers(nn.Module):
    """The three scorers of question answering with a beam (Yang et al. 2019, XLNet).

    Args:
        config: The config.
    """

    def __init__(self, config: XLMConfig):
        super().__init__()
        self.start_logits = StartLogits(config)
        self.end_logits = EndLogits(config)
        self.answer_class = AnswerClass(config)


def forbid(logits: Tensor, p_mask: Tensor | None) -> Tensor:
    """Return ``logits`` with those where ``p_mask`` is 1 out of reach."""
    if p_mask is None:
        return logits
    lowest = -65500.0 if logits.dtype is torch.float16 else -1e30
    p_mask = p_mask.to(logits.dtype)
    return logits * (1 - p_mask) + lowest * p_mask
