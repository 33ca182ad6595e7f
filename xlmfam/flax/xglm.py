"""XGLM in Flax (Lin et al. 2021, "Few-shot Learning with Multilingual Language Models").

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XGLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.flax.attention import attend, causal_mask, merge_heads, padding_mask, split_heads
from xlmfam.flax.base import Params, PreTrainedModel, is_concrete
from xlmfam.flax.cache import KeyValueCache, LayerCache, past_length
from xlmfam.flax.generation import GenerationMixin
from xlmfam.flax.layers import (
    ACTIVATION_FUNCTIONS,
    causal_lm_loss,
    sinusoidal_positions,
    text_positions,
)
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
            inputs_embeds = self.embed_tokens(input_ids) * jnp.asarray(scale, self.dtype)
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
            self.lm_head = _dense(
                self.config, self.config.vocab_size, self.dtype, use_bias=False
            )

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        logits_at: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Run the module; arguments as in ``XGLMForCausalLM.__call__``, checked there, and:

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


class XGLMPreTrainedModel(PreTrainedModel):
    """What the XGLM classes share."""

    config_class = XGLMConfig
    base_model_prefix = "model"
    config: XGLMConfig

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        return KeyValueCache.empty(
            config.num_layers,
            batch_size,
            config.attention_heads,
            max_length,
            config.d_model // config.attention_heads,
            self.dtype,
        )

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        past_key_values: Past | None = None,
        dropout_rng: Array | None = None,
        *,
        head_mask: Any = None,
        cross_attn_head_mask: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, T), 1 for tokens and 0 for padding on either side; with a
                ``KeyValueCache`` of length L also up to (B, L).
            position_ids: (B, S); by default positions count from each row's first token.
            encoder_hidden_states: (B, E, D), needs ``add_cross_attention``.
            encoder_attention_mask: (B, E).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            past_key_values: Keys and values before, see ``xlmfam.flax.cache``.
            dropout_rng: Draws what is dropped.
            head_mask: (L, H) or (H,) factors of attention weights.
            cross_attn_head_mask: (L, H) factors of the weights over the encoder.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            use_cache: Return keys and values.
            **kwargs: A head's own arguments.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        config = self.config
        return_dict = config.use_return_dict if return_dict is None else return_dict
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        arrays = as_arrays(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            inputs_embeds=inputs_embeds,
        )
        self._check(past_key_values, **arrays)
        output = self.module.apply(
            {"params": self.params if params is None else params},
            **arrays,
            past_key_values=past_key_values,
            use_cache=config.use_cache if use_cache is None else use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=not train,
            rngs=self._rngs(train, dropout_rng),
            **kwargs,
        )
        return output if return_dict else output.to_tuple()

    def _rngs(self, train: bool, dropout_rng: Array | None) -> dict[str, Array] | None:
        config = self.config
        rates = (config.dropout, config.attention_dropout, config.activation_dropout)
        if not train or not any((*rates, config.layerdrop)):
            return None
        if dropout_rng is None:
            raise XlmfamError("train=True needs dropout_rng=..., a key that draws what is dropped")
        return {"dropout": dropout_rng}

    def _check(
        self,
        past_key_values: Past | None,
        input_ids: Any,
        inputs_embeds: Any,
        attention_mask: Any,
        position_ids: Any,
        encoder_hidden_states: Any,
        encoder_attention_mask: Any,
        head_mask: Any,
        cross_attn_head_mask: Any,
    ) -> None:
        """Raise ``XlmfamError`` for inputs that do not fit together."""
        config = self.config
        check_inputs(input_ids, inputs_embeds, config.d_model)
        self.check_ids("input_ids", input_ids)
        batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        check_mask(attention_mask, past_key_values, batch, length)
        check_shape("position_ids", position_ids, (batch, length), (1, length), (length,))
        layers, heads = config.num_layers, config.attention_heads
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        check_shape("cross_attn_head_mask", cross_attn_head_mask, (layers, heads), (heads,))
        if encoder_hidden_states is None:
            return
        if not config.add_cross_attention:
            raise XlmfamError(
                "encoder_hidden_states needs a model with cross-attention: "
                "set add_cross_attention=True in the config"
            )
        wanted = (batch, None, config.d_model)
        check_shape("encoder_hidden_states", encoder_hidden_states, wanted)
        encoder_length = encoder_hidden_states.shape[1]
        check_shape("encoder_attention_mask", encoder_attention_mask, (batch, encoder_length))


class XGLMModel(XGLMPreTrainedModel):
    """XGLM without a head.

    Args:
        config: The config.
        embed_tokens: A ready (V, D) token embedding to use instead of drawing one.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XGLMModel"
    module_class = XGLMModule

    def __init__(self, config: XGLMConfig, *args: Any, embed_tokens: Any = None, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        if embed_tokens is not None:
            self.set_input_embeddings(embed_tokens)


class XGLMForCausalLM(XGLMPreTrainedModel, GenerationMixin):
    """XGLM with the language-modelling head, tied to the token embedding by default.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XGLMForCausalLM"
    module_class = XGLMForCausalLMModule

    def __call__(
        self, *args: Any, labels: Any = None, last_logits_only: bool = False, **kwargs: Any
    ) -> Any:
        """Run the model; arguments as in ``XGLMModel.__call__``, and:

        Args:
            *args: As there.
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count.
            last_logits_only: Compute the logits of the last position only, (B, 1, V); the
                rest of a prompt's are not needed to continue it.
            **kwargs: As there.
        """
        embeds = kwargs.get("inputs_embeds")
        inputs = embeds if embeds is not None else args[0] if args else kwargs.get("input_ids")
        if labels is not None:
            labels = jnp.asarray(labels)
            check_shape("labels", labels, tuple(jnp.shape(inputs))[:2])
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
        if last_logits_only:
            kwargs["logits_at"] = jnp.shape(inputs)[1] - 1
        return super().__call__(*args, labels=labels, **kwargs)


def as_arrays(**values: Any) -> dict[str, Any]:
    """Return lists and the like as arrays; ids keep the range they came with until checked."""
    return {
        name: value if value is None or hasattr(value, "dtype") else jnp.asarray(value)
        for name, value in values.items()
    }


def check_mask(attention_mask: Any, past: Past | None, batch: int, length: int) -> None:
    """Raise ``XlmfamError`` for an attention mask or a cache that ``length`` tokens do not fit."""
    if not isinstance(past, KeyValueCache):
        total = int(past_length(past)) + length
        check_shape("attention_mask", attention_mask, (batch, total))
        return
    check_shape("attention_mask", attention_mask, (batch, None))
    if attention_mask is not None and attention_mask.shape[1] > past.max_length:
        raise XlmfamError(
            f"attention_mask reaches {attention_mask.shape[1]} tokens, the cache {past.max_length}"
        )
    if length > past.max_length or (
        is_concrete(past.length) and int(past.length) + length > past.max_length
    ):
        raise XlmfamError(f"the cache holds {past.max_length} tokens, more are needed")
