"""The linen modules of X-MOD: embeddings, attention, layer; adapters in ``xmod_adapters``.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.flax.attention import attend, merge_heads, split_heads
from xlmfam.flax.cache import LayerCache
from xlmfam.flax.layers import ACTIVATION_FUNCTIONS, hold_padding
from xlmfam.flax.xmod_adapters import Languages, XmodAdapters


def dense(config: XmodConfig, width: int, dtype: Any, **kwargs: Any) -> nn.Dense:
    """Return a linear layer to ``width``."""
    init = nn.initializers.normal(config.initializer_range)
    return nn.Dense(width, dtype=dtype, kernel_init=init, **kwargs)


def norm(config: XmodConfig, dtype: Any) -> nn.LayerNorm:
    """Return a layer norm."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, dtype=dtype, use_fast_variance=False)


def embedding(config: XmodConfig, rows: int, width: int, dtype: Any) -> nn.Embed:
    """Return an embedding of ``rows``."""
    init = nn.initializers.normal(config.initializer_range)
    return nn.Embed(rows, width, dtype=dtype, embedding_init=init)


class XmodEmbeddings(nn.Module):
    """Words, positions and token types.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the tables and the norm."""
        config, dtype, width = self.config, self.dtype, self.config.hidden_size
        self.word_embeddings = embedding(config, config.vocab_size, width, dtype)
        self.position_embeddings = embedding(config, config.max_position_embeddings, width, dtype)
        self.token_type_embeddings = embedding(config, config.type_vocab_size, width, dtype)
        self.LayerNorm = norm(config, dtype)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: Any,
        inputs_embeds: Any,
        token_type_ids: Array | None,
        position_ids: Any,
        deterministic: bool = True,
    ) -> Array:
        """Return (B, S, D) of ids (B, S) or vectors (B, S, D), types and positions (B or 1, S)."""
        config, pad = self.config, self.config.pad_token_id
        if inputs_embeds is None:
            hidden = hold_padding(self.word_embeddings(input_ids), input_ids, pad)
        else:
            hidden = jnp.asarray(inputs_embeds, self.dtype)
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, hidden.shape[1]), jnp.int32)
        hidden = hidden + self.token_type_embeddings(token_type_ids)
        if config.position_embedding_type == "absolute":
            positions = self.position_embeddings(position_ids)
            hidden = hidden + hold_padding(positions, position_ids, pad)
        elif self.is_initializing():
            self.position_embeddings(position_ids)  # the table is there all the same
        return self.drop(self.LayerNorm(hidden), deterministic)


class XmodProjections(nn.Module):
    """Query, key and value of an attention, and the embedding of distances where there is one.

    Attributes:
        config: The config.
        relative: Distances count.
        dtype: Of the computation.
    """

    config: XmodConfig
    relative: bool
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build them."""
        config, dtype, width = self.config, self.dtype, self.config.hidden_size
        self.query = dense(config, width, dtype)
        self.key = dense(config, width, dtype)
        self.value = dense(config, width, dtype)
        if self.relative:
            rows = 2 * config.max_position_embeddings - 1
            head = width // config.num_attention_heads
            self.distance_embedding = embedding(config, rows, head, dtype)


class XmodAttentionOutput(nn.Module):
    """The projection back and the norm of an attention block.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build them."""
        self.dense = dense(self.config, self.config.hidden_size, self.dtype)
        self.LayerNorm = norm(self.config, self.dtype)


class XmodAttention(nn.Module):
    """One attention block with its residual and norm, over the text or over an encoder.

    Attributes:
        config: The config.
        over_encoder: Attend to an encoder, where distances mean nothing.
        dtype: Of the computation.
    """

    config: XmodConfig
    over_encoder: bool = False
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build projections and norm."""
        kind = "absolute" if self.over_encoder else self.config.position_embedding_type
        self.relative = {"relative_key": 1, "relative_key_query": 2}.get(kind, 0)
        self.self = XmodProjections(self.config, bool(self.relative), self.dtype)
        self.output = XmodAttentionOutput(self.config, self.dtype)
        self.drop = nn.Dropout(self.config.hidden_dropout_prob)

    def __call__(
        self,
        hidden: Array,
        mask: Array | None,
        past: LayerCache | tuple[Array, ...] | None = None,
        encoder: tuple[Array, Array] | None = None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, tuple[Array, Array]]:
        """Run the block.

        Args:
            hidden: (B, S, D).
            mask: Booleans, broadcastable to (B, H, S, T), what each query may see.
            past: Keys and values before.
            encoder: Keys and values (B, H, E, K) of an encoder, to attend to instead.
            head_mask: (H,).
            need_weights: Return the weights.
            deterministic: Drop nothing.

        Returns:
            (B, S, D); the (B, H, S, T) weights or ``None``; keys and values (B, H, T, K).
        """
        config = self.config
        inner = self.output.LayerNorm(hidden) if config.pre_norm else hidden
        start: Any = 0
        key, value = self.project(inner) if encoder is None else encoder
        if isinstance(past, LayerCache):
            start = past.start
            key, value = past.append(key, value)
        elif past is not None:
            start = past[0].shape[2]
            key = jnp.concatenate([jnp.asarray(past[0], key.dtype), key], 2)
            value = jnp.concatenate([jnp.asarray(past[1], value.dtype), value], 2)
        query = split_heads(self.self.query(inner), config.num_attention_heads)
        rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        mixed, weights = attend(
            query,
            key,
            value,
            mask,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate else None,
            head_mask=head_mask,
            need_weights=need_weights,
            scores_bias=self._distances(query, key, start) if self.relative else None,
        )
        mixed = self.output.dense(merge_heads(mixed))
        hidden = hidden + self.drop(mixed, deterministic)
        return hidden if config.pre_norm else self.output.LayerNorm(hidden), weights, (key, value)

    def project(self, states: Array) -> tuple[Array, Array]:
        """Return keys and values (B, H, S, K) of (B, S, D)."""
        heads = self.config.num_attention_heads
        return split_heads(self.self.key(states), heads), split_heads(
            self.self.value(states), heads
        )

    def _distances(self, query: Array, key: Array, start: Any) -> Array:
        """Return (B, H, S, T) scores of how far apart queries and keys are.

        Shaw et al. 2018 for queries; Huang et al. 2020, method 4, for keys as well.
        """
        batch, heads, length, width = query.shape
        key = key.reshape(batch, heads, -1, width)
        table = self.self.distance_embedding.embedding.astype(query.dtype)
        apart = start + jnp.arange(length)[:, None] - jnp.arange(key.shape[2])[None]
        # A buffer may be longer than texts: how far what is not there yet stands is of no matter.
        rows = jnp.clip(apart + (table.shape[0] - 1) // 2, 0, table.shape[0] - 1)
        vectors = table[rows]  # (S, T, K)
        kind = {"preferred_element_type": jnp.float32}
        scores = jnp.einsum("bhsk,stk->bhst", query, vectors, **kind)
        if self.relative == 2:
            scores = scores + jnp.einsum("bhtk,stk->bhst", key, vectors, **kind)
        return scores * width**-0.5


class XmodIntermediate(nn.Module):
    """The first half of a feed-forward block.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layer."""
        self.dense = dense(self.config, self.config.intermediate_size, self.dtype)

    def __call__(self, hidden: Array) -> Array:
        """Return (B, S, inner width) of (B, S, D)."""
        return ACTIVATION_FUNCTIONS[self.config.hidden_act](self.dense(hidden))


class XmodOutput(nn.Module):
    """The second half of a feed-forward block, and the adapters behind it.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build projection, norms and adapters."""
        config, dtype = self.config, self.dtype
        self.dense = dense(config, config.hidden_size, dtype)
        self.LayerNorm = norm(config, dtype)
        if config.adapter_layer_norm:
            self.adapter_layer_norm = norm(config, dtype)
        self.adapter_modules = XmodAdapters(config, dtype)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def __call__(
        self, inner: Array, residual: Array, languages: Languages, deterministic: bool = True
    ) -> Array:
        """Return (B, S, D) of (B, S, inner width) and the residual (B, S, D)."""
        hidden = residual + self.drop(self.dense(inner), deterministic)
        normed = hidden
        if self.config.adapter_layer_norm:
            normed = self.adapter_layer_norm(hidden)
        elif self.config.adapter_reuse_layer_norm:
            normed = self.LayerNorm(hidden)
        kept = normed if self.config.ln_before_adapter else hidden
        return kept + self.drop(self.adapter_modules(normed, languages), deterministic)


class XmodLayer(nn.Module):
    """One layer: attention, attention over an encoder where there is one, feed-forward, adapter.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the blocks."""
        config, dtype = self.config, self.dtype
        self.attention = XmodAttention(config, dtype=dtype)
        if config.add_cross_attention:
            self.crossattention = XmodAttention(config, True, dtype)
        self.intermediate = XmodIntermediate(config, dtype)
        self.output = XmodOutput(config, dtype)

    def __call__(
        self,
        hidden: Array,
        languages: Languages,
        mask: Array | None,
        past: LayerCache | tuple[Array, ...] | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_mask: Array | None = None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, Array | None, tuple[Array, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T) or ``None``; weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        present: tuple[Array, ...]
        hidden, weights, present = self.attention(
            hidden, mask, past, None, head_mask, need_weights, deterministic
        )
        cross_weights = None
        if encoder_hidden_states is not None:
            kept = past.cross if isinstance(past, LayerCache) else (past or ())[2:]
            encoder: Any = kept or self.crossattention.project(encoder_hidden_states)
            hidden, cross_weights, _ = self.crossattention(
                hidden, encoder_mask, None, encoder, head_mask, need_weights, deterministic
            )
            present = (*present, *encoder)
        pre_norm = self.config.pre_norm
        normed = self.output.LayerNorm(hidden) if pre_norm else hidden
        hidden = self.output(self.intermediate(normed), hidden, languages, deterministic)
        if not pre_norm:
            hidden = self.output.LayerNorm(hidden)
        return hidden, weights, cross_weights, present


# Places of the arguments that are no arrays, for ``nn.remat``; ``self`` is 0.
LAYER_FLAGS = (8, 9)
