"""The layers of XGLM in TensorFlow (Lin et al. 2021).

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from xlmfam.common.checks import check_cache, check_encoder, check_past, check_shape
from xlmfam.common.configs import XGLMConfig
from xlmfam.tf.attention import (
    Tensor,
    attend,
    causal_mask,
    merge_heads,
    padding_mask,
    sizes,
    split_heads,
)
from xlmfam.tf.cache import KeyValueCache, LayerCache, past_length
from xlmfam.tf.layers import (
    ACTIVATION_FUNCTIONS,
    Dropper,
    Embedding,
    LayerNorm,
    Linear,
    TableLayer,
    hold_padding,
    random_seed,
    recomputed,
    sinusoidal_positions,
    text_positions,
)
from xlmfam.tf.outputs import BaseModelOutputWithPastAndCrossAttentions

Past = KeyValueCache | tuple[tuple[Tensor, ...], ...]
POSITION_OFFSET = 2


class XGLMAttention(TableLayer):
    """Multi-head attention, over the own past or over an encoder.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XGLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = config.attention_heads
        self.rate = config.attention_dropout
        self.k_proj = Linear(dtype=self.dtype_policy, name="k_proj")
        self.v_proj = Linear(dtype=self.dtype_policy, name="v_proj")
        self.q_proj = Linear(dtype=self.dtype_policy, name="q_proj")
        self.out_proj = Linear(dtype=self.dtype_policy, name="out_proj")

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
            allowed: Booleans, broadcastable to (B, H, S, T): what each query may see. Not named
                ``mask``: Keras fills an argument of that name with masks of its own.
            past: Keys and values before.
            head_mask: (H,).
            dropper: Drops weights in training.

        Returns:
            (B, S, D); the (B, H, S, T) weights; keys and values (B, H, T, K).
        """
        key, value = self.project(hidden)
        if isinstance(past, LayerCache):
            key, value = past.append(key, value)
        elif past is not None:
            key, value = tf.concat([past[0], key], 2), tf.concat([past[1], value], 2)
        mixed, weights = self.over(hidden, (key, value), allowed, head_mask, dropper)
        return mixed, weights, (key, value)

    def project(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values (B, H, S, K) of (B, S, D)."""
        key = split_heads(self.k_proj(states), self.heads)
        return key, split_heads(self.v_proj(states), self.heads)

    def over(
        self,
        hidden: Tensor,
        keys_and_values: tuple[Tensor, Tensor],
        mask: Tensor | None,
        head_mask: Tensor | None = None,
        dropper: Dropper | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend to (B, H, T, K) keys and values, own ones or an encoder's."""
        drop = None if dropper is None else lambda weights: dropper.drop(weights, self.rate)
        query = split_heads(self.q_proj(hidden), self.heads)
        mixed, weights = attend(query, *keys_and_values, mask, drop=drop, head_mask=head_mask)
        return self.out_proj(merge_heads(mixed)), weights


class XGLMLayer(TableLayer):
    """One pre-norm layer: attention, attention over the encoder where there is one, feed-forward.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XGLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.rate = config.dropout
        self.activation_rate = config.activation_dropout
        self.activation = ACTIVATION_FUNCTIONS[config.activation_function]
        self.self_attn = XGLMAttention(config, dtype=policy, name="self_attn")
        self.self_attn_layer_norm = LayerNorm(dtype=policy, name="self_attn_layer_norm")
        if config.add_cross_attention:
            self.encoder_attn = XGLMAttention(config, dtype=policy, name="encoder_attn")
            self.encoder_attn_layer_norm = LayerNorm(dtype=policy, name="encoder_attn_layer_norm")
        self.fc1 = Linear(dtype=policy, name="fc1")
        self.fc2 = Linear(dtype=policy, name="fc2")
        self.final_layer_norm = LayerNorm(dtype=policy, name="final_layer_norm")

    def call(
        self,
        hidden: Tensor,
        allowed: Tensor | None = None,
        past: LayerCache | tuple[Tensor, ...] | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_head_mask: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor, ...]]:
        """Run the layer.

        Returns:
            Hidden states (B, S, D); weights (B, H, S, T); weights over the encoder
            (B, H, S, E) or ``None``; keys and values, the encoder's behind the own.
        """
        dropper = Dropper(seed)
        own = past if past is None or isinstance(past, LayerCache) else tuple(past[:2])
        mixed, weights, present = self.self_attn(
            self.self_attn_layer_norm(hidden), allowed, own, head_mask, dropper.inner()
        )
        hidden = hidden + dropper.drop(mixed, self.rate)
        cross_weights = None
        if encoder_hidden_states is not None:
            encoder = self._encoder_keys(encoder_hidden_states, past)
            mixed, cross_weights = self.encoder_attn.over(
                self.encoder_attn_layer_norm(hidden),
                encoder,
                encoder_mask,
                cross_head_mask,
                dropper.inner(),
            )
            hidden = hidden + dropper.drop(mixed, self.rate)
            present = (*present, *encoder)
        inner = self.activation(self.fc1(self.final_layer_norm(hidden)))
        inner = dropper.drop(inner, self.activation_rate)
        return hidden + dropper.drop(self.fc2(inner), self.rate), weights, cross_weights, present

    def _encoder_keys(self, encoder_hidden_states: Tensor, past: Any) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder: those kept from an earlier step, or projected now."""
        if isinstance(past, LayerCache):
            known = past.cross
        else:
            known = () if past is None else past[2:]
        return known or self.encoder_attn.project(encoder_hidden_states)


class XGLMDecoder(TableLayer):
    """What both XGLM classes have as ``model``; ``keras.Model`` keeps ``layers`` for itself.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XGLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.gradient_checkpointing = False
        self.embed_tokens = Embedding(dtype=policy, name="embed_tokens")
        self.layers = [
            XGLMLayer(config, dtype=policy, name=f"layer_{index}")
            for index in range(config.num_layers)
        ]
        self.layer_norm = LayerNorm(dtype=policy, name="layer_norm")
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.seeds = keras.random.SeedGenerator()

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        training: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the model; see ``XGLMModel.call``."""
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        dropper = Dropper(random_seed(self.seeds) if training else None)
        hidden, mask = self._embed(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        hidden = dropper.drop(hidden, config.dropout)
        batch = hidden.shape[0]
        check_encoder(config, encoder_hidden_states, encoder_attention_mask, batch)
        head_masks = self._head_masks("head_mask", head_mask)
        cross_head_masks = self._head_masks("cross_attn_head_mask", cross_attn_head_mask)
        encoder_mask = padding_mask(encoder_attention_mask)

        states: list[Tensor] = []
        attentions: list[Tensor] = []
        cross_attentions: list[Tensor] = []
        presents: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            states.append(hidden)
            out, weights, cross_weights, present = self._run_layer(
                layer,
                hidden,
                mask,
                _layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                head_masks[index],
                cross_head_masks[index],
                dropper.inner().seed,
            )
            hidden = dropper.skip(hidden, out, config.layerdrop)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        hidden = self.layer_norm(hidden)
        states.append(hidden)
        crossed = output_attentions and encoder_hidden_states is not None
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden,
            past_key_values=_next_past(past_key_values, presents, hidden, use_cache),
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if crossed else None,
        )

    def _embed(self, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values):
        """Return embeddings (B, S, D) and what each query may see, ``None`` for everything."""
        if inputs_embeds is None:
            vectors = self.embed_tokens(input_ids)
            inputs_embeds = hold_padding(vectors, input_ids, self.config.pad_token_id)
            inputs_embeds = inputs_embeds * tf.cast(self.embed_scale, inputs_embeds.dtype)
        batch, length, _ = sizes(inputs_embeds)
        self._check_past(past_key_values, *inputs_embeds.shape[:2])
        start = past_length(past_key_values)
        fixed = isinstance(past_key_values, KeyValueCache)
        keys = past_key_values.max_length if fixed else start + length
        known = None if tf.is_tensor(keys) else keys
        rows = None if tf.is_tensor(batch) else batch
        seen = None if fixed or known is None else known
        check_shape("attention_mask", attention_mask, (rows, seen), (rows, known))
        columns = None if tf.is_tensor(length) else length
        check_shape("position_ids", position_ids, (rows, columns), (1, columns), (columns,))
        if fixed and attention_mask is not None and attention_mask.shape[1] != keys:
            beyond = keys - sizes(attention_mask)[1]
            attention_mask = tf.pad(tf.cast(attention_mask, tf.int32), [[0, 0], [0, beyond]])
        if position_ids is None:
            position_ids = text_positions(attention_mask, start, length)
        vectors = sinusoidal_positions(
            tf.reshape(position_ids, [-1, length]),
            self.config.d_model,
            POSITION_OFFSET,
            self.config.pad_token_id,
            inputs_embeds.dtype,
        )
        hidden = inputs_embeds + vectors
        if attention_mask is None and not fixed and columns == 1:
            return hidden, None
        return hidden, causal_mask(attention_mask, start, length, keys)

    def _check_past(
        self, past_key_values: Past | None, batch: int | None, length: int | None
    ) -> None:
        if past_key_values is None:
            return
        if isinstance(past_key_values, KeyValueCache):
            tokens = length
            if length is not None and hasattr(past_key_values.length, "numpy"):
                tokens = int(past_key_values.length) + length
            rows = past_key_values.keys[0].shape[0]
            check_cache(rows, batch, past_key_values.max_length, tokens)
            return
        config = self.config
        heads = config.attention_heads
        shape = (batch, heads, None, config.d_model // heads)
        check_past(past_key_values, config.num_layers, *shape)

    def _head_masks(self, name: str, head_mask: Tensor | None) -> list[Any]:
        """Return one (H,) mask per layer from an (L, H) or (H,) one."""
        layers, heads = self.config.num_layers, self.config.attention_heads
        check_shape(name, head_mask, (layers, heads), (heads,))
        if head_mask is None:
            return [None] * layers
        return tf.unstack(tf.broadcast_to(head_mask, [layers, heads]))

    def _run_layer(self, layer: XGLMLayer, hidden: Tensor, *arguments: Any):
        if not (self.gradient_checkpointing and arguments[-1] is not None):
            return layer(hidden, *arguments)
        mask, past, encoder_hidden_states, *others = arguments
        return recomputed(
            lambda hidden, encoder: layer(hidden, mask, past, encoder, *others),
            hidden,
            encoder_hidden_states,
        )


def _layer_past(past_key_values: Past | None, index: int):
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.layer(index)
    return None if past_key_values is None else past_key_values[index]


def _next_past(past: Past | None, presents: list[Any], hidden: Tensor, use_cache: bool):
    """Return the keys and values for the next call, in the form that they came in."""
    if not isinstance(past, KeyValueCache):
        return tuple(presents) if use_cache else None
    return past.after(presents, sizes(hidden)[1])
