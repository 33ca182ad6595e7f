"""The linen modules of XLM: attention, feed-forward, vocabulary projections, summary.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E source sequence, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from xlmfam.common.configs import XLMConfig
from xlmfam.flax.attention import attend, merge_heads, split_heads
from xlmfam.flax.cache import LayerCache
from xlmfam.flax.layers import ACTIVATION_FUNCTIONS, Numbered


def dense(config: XLMConfig, width: int, dtype: Any, **kwargs: Any) -> nn.Dense:
    """Return a linear layer to ``width``."""
    init = nn.initializers.normal(config.init_std)
    return nn.Dense(width, dtype=dtype, kernel_init=init, **kwargs)


def norm(config: XLMConfig, dtype: Any) -> nn.LayerNorm:
    """Return a layer norm."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False)


class XLMAttention(nn.Module):
    """Multi-head attention, over the text itself or over a source.

    Attributes:
        config: The config.
        heads: H, those that pruning has left.
        dtype: Of the computation.
    """

    config: XLMConfig
    heads: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the projections."""
        width = self.config.emb_dim
        inner = width // self.config.n_heads * self.heads
        self.q_lin = dense(self.config, inner, self.dtype)
        self.k_lin = dense(self.config, inner, self.dtype)
        self.v_lin = dense(self.config, inner, self.dtype)
        self.out_lin = dense(self.config, width, self.dtype)

    def __call__(
        self,
        hidden: Array,
        mask: Array | None,
        past: LayerCache | tuple[Array, ...] | None = None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, tuple[Array, Array]]:
        """Attend to the past and to ``hidden`` itself.

        Args:
            hidden: (B, S, D).
            mask: Booleans, broadcastable to (B, H, S, T).
            past: Keys and values before.
            head_mask: (H,).
            need_weights: Return the weights.
            deterministic: Drop nothing.

        Returns:
            (B, S, D); the (B, H, S, T) weights or ``None``; keys and values (B, H, T, K).
        """
        key, value = self.project_source(hidden)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key = jnp.concatenate([jnp.asarray(past[0], key.dtype), key], 2)
            value = jnp.concatenate([jnp.asarray(past[1], value.dtype), value], 2)
        mixed, weights = self._mix(hidden, key, value, mask, head_mask, need_weights, deterministic)
        return mixed, weights, (key, value)

    def over_source(
        self,
        hidden: Array,
        source: tuple[Array, Array],
        mask: Array | None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None]:
        """Attend to the (B, H, E, K) keys and values of a source."""
        return self._mix(hidden, *source, mask, None, need_weights, deterministic)

    def project_source(self, states: Array) -> tuple[Array, Array]:
        """Return keys and values (B, H, E, K) of (B, E, D)."""
        return (
            split_heads(self.k_lin(states), self.heads),
            split_heads(self.v_lin(states), self.heads),
        )

    def _mix(self, hidden, key, value, mask, head_mask, need_weights, deterministic):
        rate = 0.0 if deterministic else self.config.attention_dropout
        mixed, weights = attend(
            split_heads(self.q_lin(hidden), self.heads),
            key,
            value,
            mask,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate else None,
            head_mask=head_mask,
            need_weights=need_weights,
        )
        return self.out_lin(merge_heads(mixed)), weights


class XLMFeedForward(nn.Module):
    """Two linear layers with an activation between them, four times as wide inside.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layers."""
        width = self.config.emb_dim
        self.lin1 = dense(self.config, 4 * width, self.dtype)
        self.lin2 = dense(self.config, width, self.dtype)
        self.drop = nn.Dropout(self.config.dropout)

    def __call__(self, hidden: Array, deterministic: bool = True) -> Array:
        """Return (B, S, D) of (B, S, D)."""
        activation = ACTIVATION_FUNCTIONS["gelu" if self.config.gelu_activation else "relu"]
        return self.drop(self.lin2(activation(self.lin1(hidden))), deterministic)


class Projection(nn.Module):
    """A linear layer to the vocabulary, with weights of its own or those of the embedding.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, hidden: Array, embedding: Array) -> Array:
        """Return logits (..., V) of (..., D); ``embedding`` is (V, D)."""
        config = self.config
        bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))
        if not config.tie_word_embeddings:
            init = nn.initializers.normal(config.init_std)
            kernel = self.param("kernel", init, (config.emb_dim, config.vocab_size))
            hidden, kernel, bias = promote_dtype(hidden, kernel, bias, dtype=self.dtype)
            return hidden @ kernel + bias
        hidden, embedding, bias = promote_dtype(hidden, embedding, bias, dtype=self.dtype)
        return jnp.einsum("...d,vd->...v", hidden, embedding) + bias


class AdaptiveLogSoftmax(nn.Module):
    """Frequent words by themselves, rare ones in clusters of lower rank (Grave et al. 2016).

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the short list and the clusters."""
        config, cuts = self.config, self.config.asm_cuts
        self.head = dense(config, cuts[0] + len(cuts) - 1, self.dtype)
        self.tail = Numbered(lambda index: Numbered(self._maker(index), 2), len(cuts) - 1)

    def _maker(self, index: int) -> Callable[[int], nn.Dense]:
        """Return what makes a cluster's two layers: down to its width, and up to its words."""
        config, cuts = self.config, self.config.asm_cuts
        inner = int(config.emb_dim // config.asm_div_value ** (index + 1))
        widths = (inner, cuts[index + 1] - cuts[index])
        return lambda part: dense(config, widths[part], self.dtype, use_bias=False)

    def __call__(self, hidden: Array) -> Array:
        """Return log-probabilities (..., V) of (..., D), in float32 at least."""
        short_list = self.config.asm_cuts[0]
        head = _log_softmax(self.head(hidden))
        parts = [head[..., :short_list]]
        for index in range(len(self.config.asm_cuts) - 1):
            cluster = self.tail[index]
            scores = _log_softmax(cluster[1](cluster[0](hidden)))
            parts.append(scores + head[..., short_list + index, None])
        return jnp.concatenate(parts, -1)


def _log_softmax(scores: Array) -> Array:
    return jax.nn.log_softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), -1)


class XLMPredLayer(nn.Module):
    """The vocabulary projection, plain or adaptive.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build it."""
        kind: Any = AdaptiveLogSoftmax if self.config.asm else Projection
        self.proj = kind(self.config, self.dtype)

    def __call__(self, hidden: Array, embedding: Array) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities.

        Args:
            hidden: (..., D).
            embedding: (V, D), the projection's weights where they are tied.
        """
        return self.proj(hidden) if self.config.asm else self.proj(hidden, embedding)


class SequenceSummary(nn.Module):
    """One vector for a text: a position or the mean, projected as the config says.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the projection, where there is one."""
        config = self.config
        self.first_drop = nn.Dropout(config.summary_first_dropout)
        self.last_drop = nn.Dropout(config.summary_last_dropout)
        if config.summary_use_proj:
            to_labels = config.summary_proj_to_labels
            width = config.num_labels if to_labels else config.emb_dim
            self.summary = dense(config, width, self.dtype)

    def __call__(
        self, hidden: Array, cls_index: Array | None = None, deterministic: bool = True
    ) -> Array:
        """Return (B, num_labels or D).

        Args:
            hidden: (B, S, D).
            cls_index: (B,) position to read where ``summary_type`` is ``cls_index``; the last by
                default.
            deterministic: Drop nothing.
        """
        vector = self.first_drop(self._read(hidden, cls_index), deterministic)
        if self.config.summary_use_proj:
            vector = self.summary(vector)
        activation = ACTIVATION_FUNCTIONS[self.config.summary_activation or "linear"]
        return self.last_drop(activation(vector), deterministic)

    def _read(self, hidden: Array, cls_index: Array | None) -> Array:
        kind = self.config.summary_type
        if kind == "mean":
            return hidden.mean(1)
        if kind == "first":
            return hidden[:, 0]
        if kind == "last" or cls_index is None:
            return hidden[:, -1]
        return take_positions(hidden, cls_index)


def take_positions(hidden: Array, positions: Array) -> Array:
    """Return (B, D): for every row of (B, S, D) the position that (B,) names."""
    return hidden[jnp.arange(hidden.shape[0]), positions]


class StartLogits(nn.Module):
    """Scores each position as the start of an answer.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the scorer."""
        self.dense = dense(self.config, 1, self.dtype)

    def __call__(self, hidden: Array, p_mask: Array | None) -> Array:
        """Return (B, S) of (B, S, D); ``p_mask`` (B, S) is 1 where no answer may be."""
        return forbid(self.dense(hidden)[..., 0], p_mask)


class EndLogits(nn.Module):
    """Scores each position as the end of an answer with a given start.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the scorer."""
        self.dense_0 = dense(self.config, self.config.emb_dim, self.dtype)
        self.LayerNorm = norm(self.config, self.dtype)
        self.dense_1 = dense(self.config, 1, self.dtype)

    def __call__(self, hidden: Array, start: Array, p_mask: Array | None) -> Array:
        """Return (..., S).

        Args:
            hidden: (..., S, D).
            start: (..., D) state of the start.
            p_mask: (..., S), 1 where no answer may be.
        """
        pairs = jnp.concatenate([hidden, jnp.broadcast_to(start[..., None, :], hidden.shape)], -1)
        inner = self.LayerNorm(jnp.tanh(self.dense_0(pairs)))
        return forbid(self.dense_1(inner)[..., 0], p_mask)


class AnswerClass(nn.Module):
    """Scores a text as having no answer.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the scorer."""
        self.dense_0 = dense(self.config, self.config.emb_dim, self.dtype)
        self.dense_1 = dense(self.config, 1, self.dtype, use_bias=False)

    def __call__(self, hidden: Array, start: Array, cls_index: Array | None) -> Array:
        """Return (B,).

        Args:
            hidden: (B, S, D).
            start: (B, D) state of the start, or their mean by probability.
            cls_index: (B,) position to read; the last by default.
        """
        read = hidden[:, -1] if cls_index is None else take_positions(hidden, cls_index)
        pairs = jnp.concatenate([start, read], -1)
        return self.dense_1(jnp.tanh(self.dense_0(pairs)))[..., 0]


class BeamAnswers(nn.Module):
    """The three scorers of question answering with a beam (Yang et al. 2019, XLNet).

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the scorers."""
        self.start_logits = StartLogits(self.config, self.dtype)
        self.end_logits = EndLogits(self.config, self.dtype)
        self.answer_class = AnswerClass(self.config, self.dtype)


def forbid(logits: Array, p_mask: Array | None) -> Array:
    """Return ``logits`` with those where ``p_mask`` is 1 out of reach."""
    if p_mask is None:
        return logits
    lowest = -65500.0 if logits.dtype == jnp.float16 else -1e30
    p_mask = jnp.asarray(p_mask).astype(logits.dtype)
    return logits * (1 - p_mask) + lowest * p_mask
