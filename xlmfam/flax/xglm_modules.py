"""The linen modules of XGLM: attention, layer, model, head.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.configs import XGLMConfig
from xlmfam.flax.attention import attend, causal_mask, merge_heads, padding_mask, split_heads
from xlmfam.flax.cache import KeyValueCache, LayerCache, past_length
from xlmfam.flax.layers import (
    ACTIVATION_FUNCTIONS,
    hold_padding,
    sinusoidal_positions,
    text_positions,
)
from xlmfam.flax.losses import causal_lm_loss
from xlmfam.flax.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)

Past = KeyValueCache | tuple[tuple[Array, ...], ...]
POSITION_OFFSET = 2
NORM_EPSILON = 1e-5


def _dense(config: XGLMConfig, width: int, dtype: Any, **kwargs: Any) -> nn.Dense:
    init = nn.initializers.normal(config.init_std)
    return nn.Dense(width, dtype=dtype, kernel_init=init, **kwargs)


def _norm(dtype: Any) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, use_fast_variance=False)


class XGLMAttention(nn.Module):
    """Multi-head attention, over the own past or over an encoder.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XGLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the projections."""
        width = self.config.d_model
        self.k_proj = _dense(self.config, width, self.dtype)
        self.v_proj = _dense(self.config, width, self.dtype)
        self.q_proj = _dense(self.config, width, self.dtype)
        self.out_proj = _dense(self.config, width, self.dtype)

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
        key, value = self.project_encoder(hidden)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key = jnp.concatenate([past[0].astype(key.dtype), key], 2)
            value = jnp.concatenate([past[1].astype(value.dtype), value], 2)
        mixed, weights = self.over_encoder(
            hidden, (key, value), mask, head_mask, need_weights, deterministic
        )
        return mixed, weights, (key, value)

    def over_encoder(
        self,
        hidden: Array,
        encoder: tuple[Array, Array],
        mask: Array | None,
        head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None]:
        """Attend to the (B, H, E, K) keys and values of an encoder."""
        rate = 0.0 if deterministic else self.config.attention_dropout
        mixed, weights = attend(
            split_heads(self.q_proj(hidden), self.config.attention_heads),
            *encoder,
            mask,
            dropout=rate,
            dropout_rng=self.make_rng("dropout") if rate else None,
            head_mask=head_mask,
            need_weights=need_weights,
        )
        return self.out_proj(merge_heads(mixed)), weights

    def project_encoder(self, encoder_hidden_states: Array) -> tuple[Array, Array]:
        """Return keys and values (B, H, E, K) of (B, E, D)."""
        heads = self.config.attention_heads
        return (
            split_heads(self.k_proj(encoder_hidden_states), heads),
            split_heads(self.v_proj(encoder_hidden_states), heads),
        )


class XGLMLayer(nn.Module):
    """One pre-norm layer: attention, attention over the encoder where there is one, feed-forward.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XGLMConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the blocks."""
        config, dtype = self.config, self.dtype
        self.self_attn = XGLMAttention(config, dtype)
        self.self_attn_layer_norm = _norm(dtype)
        if config.add_cross_attention:
            self.encoder_attn = XGLMAttention(config, dtype)
            self.encoder_attn_layer_norm = _norm(dtype)
        self.fc1 = _dense(config, config.ffn_dim, dtype)
        self.fc2 = _dense(config, config.d_model, dtype)
        self.final_layer_norm = _norm(dtype)
        self.drop = nn.Dropout(config.dropout)
        self.drop_inner = nn.Dropout(config.activation_dropout)

    def __call__(
        self,
        hidden: Array,
        mask: Array | None,
        past: LayerCache | tuple[Array, ...] | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_mask: Array | None = None,
        head_mask: Array | None = None,
        cross_head_mask: Array | None = None,
        need_weights: bool = False,
        deterministic: bool = True,
    ) -> tuple[Array, Array | None, Array | None, tuple[Array, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T) or ``None``; weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        present: tuple[Array, ...]
        mixed, weights, present = self.self_attn(
            self.self_attn_layer_norm(hidden), mask, past, head_mask, need_weights, deterministic
        )
        hidden = hidden + self.drop(mixed, deterministic)
        cross_weights = None
        if encoder_hidden_states is not None:
            encoder = self._encoder_keys(encoder_hidden_states, past)
            mixed, cross_weights = self.encoder_attn.over_encoder(
                self.encoder_attn_layer_norm(hidden),
                encoder,
                encoder_mask,
                cross_head_mask,
                need_weights,
                deterministic,
            )
            hidden = hidden + self.drop(mixed, deterministic)
            present = (*present, *encoder)
        activation = ACTIVATION_FUNCTIONS[self.config.activation_function]
        inner = activation(self.fc1(self.final_layer_norm(hidden)))
        inner = self.drop_inner(inner, deterministic)
        hidden = hidden + self.drop(self.fc2(inner), deterministic)
        return hidden, weights, cross_weights, present

    def _encoder_keys(self, encoder_hidden_states: Array, past: Any) -> tuple[Array, Array]:
        """Keys and values of the encoder: those kept from an earlier step, or projected now."""
        kept = past.cross if isinstance(past, LayerCache) else (past or ())[2:]
        if kept:
            return kept[0], kept[1]
        return self.encoder_attn.project_encoder(encoder_hidden_states)


# Positions of the arguments that are no arrays, for ``nn.remat``; ``self`` is 0.
LAYER_FLAGS = (8, 9)


class XGLMLayers(nn.Module):
    """All layers, one after the other.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XGLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    @nn.compact
    def __call__(
        self,
        hidden: Array,
        mask: Array | None,
        past_key_values: Past | None,
        encoder_hidden_states: Array | None,
        encoder_mask: Array | None,
        head_mask: Array | None,
        cross_head_mask: Array | None,
        output_attentions: bool,
        deterministic: bool,
    ) -> tuple[list[Array], list[Any], list[Any], list[tuple[Array, ...]]]:
        """Return per layer: hidden states (the input's first), weights, weights over the encoder,
        keys and values.
        """  # noqa: D205
        layer_class = XGLMLayer
        if self.gradient_checkpointing and not deterministic:
            layer_class = nn.remat(XGLMLayer, static_argnums=LAYER_FLAGS)
        states, attentions, cross_attentions, presents = [hidden], [], [], []
        for index in range(self.config.num_layers):
            layer = layer_class(self.config, self.dtype, name=str(index))
            out, weights, cross_weights, present = layer(
                hidden,
                mask,
                _layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                None if head_mask is None else head_mask[index],
                None if cross_head_mask is None else cross_head_mask[index],
                output_attentions,
                deterministic,
            )
            hidden = out if deterministic else self._keep_or_skip(hidden, out)
            states.append(hidden)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        return states, attentions, cross_attentions, presents

    def _keep_or_skip(self, before: Array, after: Array) -> Array:
        """LayerDrop (Fan et al. 2019): ignore a whole layer; control flow cannot follow values."""
        rate = self.config.layerdrop
        if not rate:
            return after
        return jnp.where(jax.random.bernoulli(self.make_rng("dropout"), rate), before, after)


def _layer_past(past_key_values: Past | None, index: int) -> Any:
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.layer(index)
    return None if past_key_values is None else past_key_values[index]


class XGLMModule(nn.Module):
    """XGLM without a head, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XGLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build embedding, layers and norm."""
        config = self.config
        init = nn.initializers.normal(config.init_std)
        self.embed_tokens = nn.Embed(
            config.vocab_size, config.d_model, embedding_init=init, dtype=self.dtype
        )
        self.layers = XGLMLayers(config, self.dtype, self.gradient_checkpointing)
        self.layer_norm = _norm(self.dtype)
        self.drop = nn.Dropout(config.dropout)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        position_ids: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        past_key_values: Past | None = None,
        head_mask: Array | None = None,
        cross_attn_head_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the module; arguments as in ``XGLMModel.__call__``, checked there."""
        hidden, mask = self._embed(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        encoder_mask = None
        if encoder_hidden_states is not None:
            encoder_hidden_states = jnp.asarray(encoder_hidden_states, self.dtype)
            encoder_mask = padding_mask(encoder_attention_mask)
        states, attentions, cross_attentions, presents = self.layers(
            self.drop(hidden, deterministic),
            mask,
            past_key_values,
            encoder_hidden_states,
            encoder_mask,
            self._head_mask(head_mask),
            self._head_mask(cross_attn_head_mask),
            output_attentions,
            deterministic,
        )
        states[-1] = self.layer_norm(states[-1])
        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            cache = past_key_values.advance(presents, hidden.shape[1])
        crossed = output_attentions and encoder_hidden_states is not None
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=states[-1],
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if crossed else None,
        )

    def _embed(self, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values):
        """Return embeddings with positions (B, S, D), and which keys each query may see."""
        config = self.config
        if inputs_embeds is None:
            scale = config.d_model**0.5 if config.scale_embedding else 1.0
            vectors = hold_padding(self.embed_tokens(input_ids), input_ids, config.pad_token_id)
            inputs_embeds = vectors * jnp.asarray(scale, self.dtype)
        inputs_embeds = jnp.asarray(inputs_embeds, self.dtype)
        length = inputs_embeds.shape[1]
        start = past_length(past_key_values)
        if position_ids is None:
            position_ids = text_positions(attention_mask, start, length)
        positions = sinusoidal_positions(
            jnp.asarray(position_ids).reshape(-1, length),
            config.d_model,
            POSITION_OFFSET,
            config.pad_token_id,
            self.dtype,
        )
        keys: Any = start + length
        if isinstance(past_key_values, KeyValueCache):
            keys = past_key_values.max_length
        return inputs_embeds + positions, causal_mask(attention_mask, start, length, keys)

    def _head_mask(self, head_mask: Array | None) -> Array | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        if head_mask is None:
            return None
        config = self.config
        return jnp.broadcast_to(head_mask, (config.num_layers, config.attention_heads))


class XGLMForCausalLMModule(nn.Module):
    """XGLM with the language-modelling head, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XGLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build the model and, where it is not tied, the head."""
        self.model = XGLMModule(self.config, self.dtype, self.gradient_checkpointing)
        if not self.config.tie_word_embeddings:
            self.lm_head = _dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        logits_at: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Run the module; arguments as in ``XGLMForCausalLM.__call__``, checked there.

        Args:
            input_ids: (B, S).
            labels: (B, S).
            logits_at: The one position whose logits are needed; ``None`` for all.
            **kwargs: As in ``XGLMModule``.
        """
        output = self.model(input_ids, **kwargs)
        hidden = output.last_hidden_state
        if logits_at is not None:
            hidden = lax.dynamic_slice_in_dim(hidden, logits_at, 1, 1)
        if self.config.tie_word_embeddings:
            logits = self.model.embed_tokens.attend(hidden)
        else:
            logits = self.lm_head(hidden)
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )
