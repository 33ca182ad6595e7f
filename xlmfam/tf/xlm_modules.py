"""The modules of XLM in TensorFlow: attention, feed-forward, vocabulary projections, summary.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E source sequence, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from xlmfam.common.configs import XLMConfig
from xlmfam.tf.attention import Tensor, attend, merge_heads, sizes, split_heads
from xlmfam.tf.cache import LayerCache
from xlmfam.tf.layers import (
    ACTIVATION_FUNCTIONS,
    Dropper,
    Embedding,
    LayerNorm,
    Linear,
    TableLayer,
)


class XLMAttention(TableLayer):
    """Multi-head attention, over the text itself or over a source.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.head_width = config.emb_dim // config.n_heads
        self.rate = config.attention_dropout
        self.q_lin = Linear(dtype=policy, name="q_lin")
        self.k_lin = Linear(dtype=policy, name="k_lin")
        self.v_lin = Linear(dtype=policy, name="v_lin")
        self.out_lin = Linear(dtype=policy, name="out_lin")

    def call(
        self,
        hidden: Tensor,
        allowed: Tensor | None = None,
        past: LayerCache | tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
        dropper: Dropper | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Attend to the past and to ``hidden`` itself.

        Args:
            hidden: (B, S, D).
            allowed: Booleans, broadcastable to (B, H, S, T): what each query may see.
            past: Keys and values before.
            head_mask: (H,).
            dropper: Drops weights in training.

        Returns:
            (B, S, D); the (B, H, S, T) weights; keys and values (B, H, T, K).
        """
        key, value = self.project_source(hidden)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key, value = tf.concat([past[0], key], 2), tf.concat([past[1], value], 2)
        mixed, weights = self.over(hidden, (key, value), allowed, head_mask, dropper)
        return mixed, weights, (key, value)

    @property
    def heads(self) -> int:
        """H, those that pruning has left."""
        return self.q_lin.kernel.shape[1] // self.head_width

    def project_source(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, E, K) of (B, E, D)."""
        key = split_heads(self.k_lin(states), self.heads)
        return key, split_heads(self.v_lin(states), self.heads)

    def over(
        self,
        hidden: Tensor,
        keys_and_values: tuple[Tensor, Tensor],
        allowed: Tensor | None,
        head_mask: Tensor | None = None,
        dropper: Dropper | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend to (B, H, T, K) keys and values, own ones or a source's."""
        drop = None if dropper is None else lambda weights: dropper.drop(weights, self.rate)
        query = split_heads(self.q_lin(hidden), self.heads)
        mixed, weights = attend(query, *keys_and_values, allowed, drop=drop, head_mask=head_mask)
        return self.out_lin(merge_heads(mixed)), weights


class XLMFeedForward(TableLayer):
    """Two linear layers with an activation between them, four times as wide inside.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = ACTIVATION_FUNCTIONS["gelu" if config.gelu_activation else "relu"]
        self.lin1 = Linear(dtype=self.dtype_policy, name="lin1")
        self.lin2 = Linear(dtype=self.dtype_policy, name="lin2")

    def call(self, hidden: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S, D)."""
        return self.lin2(self.activation(self.lin1(hidden)))


class AdaptiveLogSoftmax(TableLayer):
    """Frequent words by themselves, rare ones in clusters of lower rank (Grave et al. 2016).

    Args:
        short_list: Number of frequent words.
        clusters: Number of clusters.
        **kwargs: Of the layer.
    """

    def __init__(self, short_list: int, clusters: int, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.short_list = short_list
        self.head = Linear(dtype=policy, name="head")
        self.tail = [
            [
                Linear(dtype=policy, name=f"down_{index}"),
                Linear(dtype=policy, name=f"up_{index}"),
            ]
            for index in range(clusters)
        ]

    def call(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (..., V) of (..., D), in float32."""
        head = _log_softmax(self.head(hidden))
        parts = [head[..., : self.short_list]]
        for index, (down, up) in enumerate(self.tail, self.short_list):
            parts.append(_log_softmax(up(down(hidden))) + head[..., index, None])
        return tf.concat(parts, -1)


def _log_softmax(scores: Tensor) -> Tensor:
    return tf.nn.log_softmax(tf.cast(scores, tf.float32))


class XLMPredLayer(TableLayer):
    """The vocabulary projection, plain or adaptive.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.proj: Any = Linear(dtype=policy, name="proj")  # while tied, no more than a bias
        if config.asm:
            cuts = config.asm_cuts
            self.proj = AdaptiveLogSoftmax(cuts[0], len(cuts) - 1, dtype=policy, name="proj")
        self.is_tied = config.tie_word_embeddings and not config.asm

    def call(self, hidden: Tensor, embeddings: Embedding) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities.

        Args:
            hidden: (..., D).
            embeddings: The token embedding, whose table is the projection's while they are tied.
        """
        if not self.is_tied:
            return self.proj(hidden)
        logits = embeddings.attend(hidden)
        return logits + tf.cast(self.proj.bias, logits.dtype)


class SequenceSummary(TableLayer):
    """One vector for a text: a position or the mean, projected as the config says.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = config.summary_type
        self.projects = config.summary_use_proj
        self.first_dropout = config.summary_first_dropout
        self.last_dropout = config.summary_last_dropout
        self.activation = ACTIVATION_FUNCTIONS[config.summary_activation or "linear"]
        if self.projects:
            self.summary = Linear(dtype=self.dtype_policy, name="summary")

    def call(self, hidden: Tensor, dropper: Dropper, cls_index: Tensor | None = None) -> Tensor:
        """Return (B, num_labels or D).

        Args:
            hidden: (B, S, D).
            dropper: Drops values in training.
            cls_index: (B,) position to read where ``summary_type`` is ``cls_index``; the last by
                default.
        """
        vector = dropper.drop(self._read(hidden, cls_index), self.first_dropout)
        if self.projects:
            vector = self.summary(vector)
        return dropper.drop(self.activation(vector), self.last_dropout)

    def _read(self, hidden: Tensor, cls_index: Tensor | None) -> Tensor:
        if self.kind == "mean":
            return tf.reduce_mean(hidden, 1)
        if self.kind == "first":
            return hidden[:, 0]
        if self.kind == "last" or cls_index is None:
            return hidden[:, -1]
        return take_positions(hidden, cls_index)


def take_positions(hidden: Tensor, positions: Tensor) -> Tensor:
    """Return (B, ..., D): for every row of (B, S, D) the positions that (B, ...) name."""
    return tf.gather(hidden, positions, axis=1, batch_dims=1)


class StartLogits(TableLayer):
    """Scores each position as the start of an answer.

    Args:
        **kwargs: Of the layer.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense = Linear(dtype=self.dtype_policy, name="dense")

    def call(self, hidden: Tensor, p_mask: Tensor | None) -> Tensor:
        """Return (B, S) of (B, S, D); ``p_mask`` (B, S) is 1 where no answer may be."""
        return forbid(self.dense(hidden)[..., 0], p_mask)


class EndLogits(TableLayer):
    """Scores each position as the end of an answer with a given start.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dense_0 = Linear(dtype=policy, name="dense_0")
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        self.dense_1 = Linear(dtype=policy, name="dense_1")

    def call(self, hidden: Tensor, start: Tensor, p_mask: Tensor | None) -> Tensor:
        """Return (..., S).

        Args:
            hidden: (..., S, D).
            start: (..., D) state of the start.
            p_mask: (..., S), 1 where no answer may be.
        """
        start = tf.broadcast_to(start[..., None, :], sizes(hidden))
        inner = self.LayerNorm(tf.tanh(self.dense_0(tf.concat([hidden, start], -1))))
        return forbid(self.dense_1(inner)[..., 0], p_mask)


class AnswerClass(TableLayer):
    """Scores a text as having no answer.

    Args:
        **kwargs: Of the layer.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense_0 = Linear(dtype=self.dtype_policy, name="dense_0")
        self.dense_1 = Linear(dtype=self.dtype_policy, name="dense_1")

    def call(self, hidden: Tensor, start: Tensor, cls_index: Tensor | None) -> Tensor:
        """Return (B,).

        Args:
            hidden: (B, S, D).
            start: (B, D) state of the start, or their mean by probability.
            cls_index: (B,) position to read; the last by default.
        """
        read = hidden[:, -1] if cls_index is None else take_positions(hidden, cls_index)
        return self.dense_1(tf.tanh(self.dense_0(tf.concat([start, read], -1))))[..., 0]


class BeamAnswers(TableLayer):
    """The three scorers of question answering with a beam (Yang et al. 2019, XLNet).

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.start_logits = StartLogits(dtype=policy, name="start_logits")
        self.end_logits = EndLogits(config, dtype=policy, name="end_logits")
        self.answer_class = AnswerClass(dtype=policy, name="answer_class")


def forbid(logits: Tensor, p_mask: Tensor | None) -> Tensor:
    """Return ``logits`` with those where ``p_mask`` is 1 out of reach."""
    if p_mask is None:
        return logits
    lowest = -65500.0 if logits.dtype == tf.float16 else -1e30
    p_mask = tf.cast(p_mask, logits.dtype)
    return logits * (1 - p_mask) + lowest * p_mask
