"""The modules of X-MOD in TensorFlow: embeddings, attention, adapters, layer.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width, A adapter
width, E encoder sequence, R rows or blocks of tokens that are sent through one adapter.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.tf.attention import Tensor, attend, merge_heads, sizes, split_heads
from xlmfam.tf.cache import LayerCache
from xlmfam.tf.layers import (
    ACTIVATION_FUNCTIONS,
    Dropper,
    Embedding,
    LayerNorm,
    Linear,
    TableLayer,
    hold_padding,
)
from xlmfam.tf.xmod_languages import Languages, pick


class XmodEmbeddings(TableLayer):
    """Words, positions and token types.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.pad = config.pad_token_id
        self.absolute = config.position_embedding_type == "absolute"
        self.rate = config.hidden_dropout_prob
        self.word_embeddings = Embedding(dtype=policy, name="word_embeddings")
        self.position_embeddings = Embedding(dtype=policy, name="position_embeddings")
        self.token_type_embeddings = Embedding(dtype=policy, name="token_type_embeddings")
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype=policy, name="LayerNorm")

    def words(self, input_ids: Tensor) -> Tensor:
        """Return (B, S, D) of (B, S) ids."""
        return hold_padding(self.word_embeddings(input_ids), input_ids, self.pad)

    def call(
        self, vectors: Tensor, token_type_ids: Tensor, position_ids: Tensor, dropper: Dropper
    ) -> Tensor:
        """Return (B, S, D) of word vectors (B, S, D), types and positions (B or 1, S)."""
        hidden = vectors + self.token_type_embeddings(token_type_ids)
        if self.absolute:
            positions = self.position_embeddings(position_ids)
            hidden = hidden + hold_padding(positions, position_ids, self.pad)
        return dropper.drop(self.LayerNorm(hidden), self.rate)


class XmodProjections(TableLayer):
    """Query, key and value of an attention, and the embedding of distances where there is one.

    Args:
        relative: Distances count.
        **kwargs: Of the layer.
    """

    def __init__(self, relative: bool, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.query = Linear(dtype=policy, name="query")
        self.key = Linear(dtype=policy, name="key")
        self.value = Linear(dtype=policy, name="value")
        if relative:
            self.distance_embedding = Embedding(dtype=policy, name="distance_embedding")


class XmodAttentionOutput(TableLayer):
    """The projection back and the norm of an attention block.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dense = Linear(dtype=policy, name="dense")
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype=policy, name="LayerNorm")


class HasOutput(TableLayer):
    """A layer with another one as ``output``, a name that Keras keeps for something else."""

    output_layer: Any = None

    @property
    def output(self) -> Any:
        """The layer that is last."""
        return self.output_layer


class XmodAttention(HasOutput):
    """One attention block with its residual and norm, over the text or over an encoder.

    Args:
        config: The config.
        over_encoder: Attend to an encoder, where distances mean nothing.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, over_encoder: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        kind = "absolute" if over_encoder else config.position_embedding_type
        self.relative = {"relative_key": 1, "relative_key_query": 2}.get(kind, 0)
        self.pre_norm = config.pre_norm
        self.heads = config.num_attention_heads
        self.rate = config.hidden_dropout_prob
        self.attention_rate = config.attention_probs_dropout_prob
        self.self = XmodProjections(bool(self.relative), dtype=policy, name="self")
        self.output_layer = XmodAttentionOutput(config, dtype=policy, name="output")

    def call(
        self,
        hidden: Tensor,
        allowed: Tensor | None,
        dropper: Dropper,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder: tuple[Tensor, Tensor] | None = None,
        head_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Run the block.

        Args:
            hidden: (B, S, D).
            allowed: Booleans, broadcastable to (B, H, S, T): what each query may see.
            dropper: Drops values in training.
            past: Keys and values before.
            encoder: Keys and values (B, H, E, K) of an encoder, to attend to instead.
            head_mask: (H,).

        Returns:
            (B, S, D); the (B, H, S, T) weights; keys and values (B, H, T, K).
        """
        inner = self.output.LayerNorm(hidden) if self.pre_norm else hidden
        if encoder is not None:
            key, value = encoder
        else:
            key, value = self.project(inner)
            if isinstance(past, LayerCache):
                key, value = past.append(key, value)
            elif past is not None:
                key, value = tf.concat([past[0], key], 2), tf.concat([past[1], value], 2)
        query = split_heads(self.self.query(inner), self.heads)
        mixed, weights = attend(
            query,
            key,
            value,
            allowed,
            drop=lambda weights: dropper.drop(weights, self.attention_rate),
            head_mask=head_mask,
            scores_bias=self._distances(query, key, past) if self.relative else None,
        )
        hidden = hidden + dropper.drop(self.output.dense(merge_heads(mixed)), self.rate)
        return hidden if self.pre_norm else self.output.LayerNorm(hidden), weights, (key, value)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, S, K) of (B, S, D)."""
        return (
            split_heads(self.self.key(states), self.heads),
            split_heads(self.self.value(states), self.heads),
        )

    def _distances(self, query: Tensor, key: Tensor, past: Any) -> Tensor:
        """Return (B, H, S, T) scores of how far apart queries and keys are.

        Shaw et al. 2018 for queries; Huang et al. 2020, method 4, for keys as well.
        """
        queries, keys = sizes(query)[2], sizes(key)[2]
        first = past.length if isinstance(past, LayerCache) else keys - queries
        most = self.self.distance_embedding.embeddings.shape[0] - 1
        apart = first + tf.range(queries)[:, None] - tf.range(keys)[None] + most // 2
        # Buffers may have more room than the text can have tokens.
        vectors = self.self.distance_embedding(tf.clip_by_value(apart, 0, most))  # (S, T, K)
        scores = tf.einsum("bhsk,stk->bhst", query, vectors)
        if self.relative == 2:
            scores = scores + tf.einsum("bhtk,stk->bhst", key, vectors)
        return scores * tf.cast(query.shape[-1] ** -0.5, scores.dtype)


class XmodAdapter(TableLayer):
    """A bottleneck that belongs to one language (Pfeiffer et al. 2022, section 3).

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense1 = Linear(dtype=self.dtype_policy, name="dense1")
        self.dense2 = Linear(dtype=self.dtype_policy, name="dense2")

    def call(self, hidden: Tensor) -> Tensor:
        """Return (..., D) of (..., D)."""
        return self.dense2(self.activation(self.dense1(hidden)))


class XmodIntermediate(TableLayer):
    """The first half of a feed-forward block.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense = Linear(dtype=self.dtype_policy, name="dense")

    def call(self, hidden: Tensor) -> Tensor:
        """Return (B, S, inner width) of (B, S, D)."""
        return self.activation(self.dense(hidden))


class XmodOutput(TableLayer):
    """The second half of a feed-forward block, and the adapters behind it.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.rate = config.hidden_dropout_prob
        self.activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self.dense = Linear(dtype=policy, name="dense")
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype=policy, name="LayerNorm")
        if config.adapter_layer_norm:
            self.adapter_layer_norm = LayerNorm(
                config.layer_norm_eps, dtype=policy, name="adapter_layer_norm"
            )
        self.adapter_modules: dict[str, XmodAdapter] = {}
        for code in config.languages:
            self.add_adapter(code)

    def add_adapter(self, code: str) -> None:
        """Make room for the adapter of another language."""
        self.adapter_modules[code] = XmodAdapter(self.config, dtype=self.dtype_policy, name=code)

    def call(
        self, inner: Tensor, residual: Tensor, languages: Languages, dropper: Dropper
    ) -> Tensor:
        """Return (B, S, D) of (B, S, inner width) and the residual (B, S, D)."""
        config = self.config
        hidden = residual + dropper.drop(self.dense(inner), self.rate)
        normed = hidden
        if config.adapter_layer_norm:
            normed = self.adapter_layer_norm(hidden)
        elif config.adapter_reuse_layer_norm:
            normed = self.LayerNorm(hidden)
        kept = normed if config.ln_before_adapter else hidden
        return kept + dropper.drop(self.adapt(normed, languages), self.rate)

    def adapt(self, hidden: Tensor, languages: Languages) -> Tensor:
        """Send (B, S, D) through the adapters of its languages."""
        present = languages.present
        if len(present) == 1:
            return self.adapter_modules[present[0]](hidden)
        shape = sizes(hidden)
        rows = tf.reshape(hidden, [-1, shape[-1]]) if languages.by_token else hidden
        if languages.order is not None:
            rows = tf.gather(rows, languages.order)
        if languages.ids is not None:
            rows = self._gathered(rows, languages)
        else:
            pairs = zip(present, tf.split(rows, languages.sizes), strict=True)
            rows = tf.concat([self.adapter_modules[code](group) for code, group in pairs], 0)
        if languages.inverse is not None:
            rows = tf.gather(rows, languages.inverse)
        return tf.reshape(rows, shape)

    def _gathered(self, rows: Tensor, languages: Languages) -> Tensor:
        """Send every row, or block of tokens, through the adapter that it names."""
        adapters = [self.adapter_modules[code] for code in languages.present]
        every = [
            tuple(tf.convert_to_tensor(v) for v in (d1.kernel, d1.bias, d2.kernel, d2.bias))
            for d1, d2 in ((adapter.dense1, adapter.dense2) for adapter in adapters)
        ]
        kernel1, bias1, kernel2, bias2 = pick(languages.ids, every)
        shape = sizes(rows)
        if languages.by_token:
            rows = tf.reshape(rows, [*sizes(languages.ids), -1, shape[-1]])  # in blocks
        inner = self.activation(tf.matmul(rows, kernel1) + bias1[:, None])
        return tf.reshape(tf.matmul(inner, kernel2) + bias2[:, None], shape)


class XmodLayer(HasOutput):
    """One layer: attention, attention over an encoder where there is one, feed-forward, adapter.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.pre_norm = config.pre_norm
        self.attention = XmodAttention(config, dtype=policy, name="attention")
        if config.add_cross_attention:
            self.crossattention = XmodAttention(
                config, over_encoder=True, dtype=policy, name="crossattention"
            )
        self.intermediate = XmodIntermediate(config, dtype=policy, name="intermediate")
        self.output_layer = XmodOutput(config, dtype=policy, name="output")

    def call(
        self,
        hidden: Tensor,
        languages: Languages,
        allowed: Tensor | None = None,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T); weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        dropper = Dropper(seed)
        own = past if past is None or isinstance(past, LayerCache) else tuple(past[:2])
        hidden, weights, present = self.attention(
            hidden, allowed, dropper.inner(), own, None, head_mask
        )
        cross_weights = None
        if encoder_hidden_states is not None:
            encoder = self._encoder_keys(encoder_hidden_states, past)
            hidden, cross_weights, _ = self.crossattention(
                hidden, encoder_mask, dropper.inner(), None, encoder, head_mask
            )
            present = (*present, *encoder)
        normed = self.output.LayerNorm(hidden) if self.pre_norm else hidden
        hidden = self.output(self.intermediate(normed), hidden, languages, dropper.inner())
        if not self.pre_norm:
            hidden = self.output.LayerNorm(hidden)
        return hidden, weights, cross_weights, present

    def _encoder_keys(self, encoder_hidden_states: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder: those kept from an earlier step, or projected now."""
        if isinstance(past, LayerCache):
            known = past.cross
        else:
            known = () if past is None else past[2:]
        return known or self.crossattention.project(encoder_hidden_states)
