"""XGLM in Flax (Lin et al. 2021, "Few-shot Learning with Multilingual Language Models").

The linen modules stand in ``xglm_modules``; here are the classes to call.

Shapes: B batch, S sequence, T sequence with past, H heads, D width, E encoder sequence,
L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from xlmfam.common.checks import check_encoder, check_inputs, check_past, check_shape
from xlmfam.common.configs import XGLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.flax.base import Params, PreTrainedModel, as_arrays
from xlmfam.flax.cache import KeyValueCache, check_mask
from xlmfam.flax.generation import GenerationMixin
from xlmfam.flax.xglm_modules import Past, XGLMForCausalLMModule, XGLMModule


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
        output: Any = self.module.apply(
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
        layers, heads = config.num_layers, config.attention_heads
        if past_key_values is not None and not isinstance(past_key_values, KeyValueCache):
            check_past(past_key_values, layers, batch, heads, None, config.d_model // heads)
        check_mask(attention_mask, past_key_values, batch, length, heads)
        check_shape("position_ids", position_ids, (batch, length), (1, length), (length,))
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        check_shape("cross_attn_head_mask", cross_attn_head_mask, (layers, heads), (heads,))
        check_encoder(config, encoder_hidden_states, encoder_attention_mask, batch)


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
        """Run the model.

        Args:
            *args: As in ``XGLMModel.__call__``.
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count.
            last_logits_only: Compute the logits of the last position only, (B, 1, V); the
                rest of a prompt's are not needed to continue it.
            **kwargs: As there.
        """
        embeds = kwargs.get("inputs_embeds")
        inputs = embeds if embeds is not None else args[0] if args else kwargs.get("input_ids")
        shape: tuple[int, ...] = () if inputs is None else np.shape(inputs)
        if labels is not None:
            labels = jnp.asarray(labels)
            check_shape("labels", labels, tuple(shape[:2]))
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
            self.check_ids("labels", jnp.where(labels == -100, jnp.zeros_like(labels), labels))
        if last_logits_only and len(shape) > 1:  # other shapes are refused below
            kwargs["logits_at"] = shape[1] - 1
        return super().__call__(*args, labels=labels, **kwargs)
