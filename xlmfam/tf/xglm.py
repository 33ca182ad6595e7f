"""XGLM in TensorFlow (Lin et al. 2021, "Few-shot Learning with Multilingual Language Models").

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import keras

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XGLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.tf.attention import Tensor
from xlmfam.tf.base import PreTrainedModel
from xlmfam.tf.cache import KeyValueCache, empty_cache
from xlmfam.tf.generation import GenerationMixin
from xlmfam.tf.layers import (
    Embedding,
    Linear,
    causal_lm_loss,
    mean_causal_lm_loss,
    without_ignored,
)
from xlmfam.tf.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from xlmfam.tf.training import main_output
from xlmfam.tf.xglm_modules import Past, XGLMDecoder


class XGLMPreTrainedModel(PreTrainedModel):
    """What the XGLM classes share."""

    config_class = XGLMConfig
    config: XGLMConfig
    model: XGLMDecoder

    def get_input_embeddings(self) -> Embedding:
        """Return the token embedding."""
        return self.model.embed_tokens

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        return empty_cache(
            config.num_layers,
            batch_size,
            config.attention_heads,
            max_length,
            config.d_model // config.attention_heads,
            self.compute_dtype,
        )

    def _run(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, **arguments: Any):
        """Check the inputs and run the layers."""
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        self.check_ids("input_ids", input_ids)
        return self.model(input_ids=input_ids, inputs_embeds=inputs_embeds, **arguments)


@keras.saving.register_keras_serializable("xlmfam")
class XGLMModel(XGLMPreTrainedModel):
    """XGLM without a head.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        embed_tokens: A token embedding whose table to share.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XGLMModel"

    def __init__(
        self, config: XGLMConfig, dtype: Any = None, embed_tokens: Any = None, **kwargs: Any
    ):
        super().__init__(config, dtype, **kwargs)
        self.model = XGLMDecoder(config, dtype=self.dtype_policy, name="model")
        if embed_tokens is not None:
            self.model.embed_tokens.embeddings = embed_tokens.embeddings
        self.post_init()

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
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments.
            attention_mask: (B, T), 1 for tokens and 0 for padding on either side.
            position_ids: (B, S); by default positions count from each row's first token.
            encoder_hidden_states: (B, E, D), needs ``add_cross_attention``.
            encoder_attention_mask: (B, E).
            head_mask: (L, H) or (H,) factors of attention weights.
            cross_attn_head_mask: (L, H) factors of the weights over the encoder.
            past_key_values: Keys and values before, see ``xlmfam.tf.cache``.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values and layers.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        output = self._run(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


@keras.saving.register_keras_serializable("xlmfam")
class XGLMForCausalLM(GenerationMixin, XGLMPreTrainedModel):
    """XGLM with the language-modelling head, tied to the token embedding by default.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XGLMForCausalLM"

    def __init__(self, config: XGLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.model = XGLMDecoder(config, dtype=self.dtype_policy, name="model")
        self.lm_head = Linear(dtype=self.dtype_policy, name="lm_head")  # empty while tied
        self.post_init()

    def get_output_embeddings(self) -> keras.layers.Layer:
        """Return the layer that has the projection: the head, or the embedding while tied."""
        return self.model.embed_tokens if self.table.ties(self.config) else self.lm_head

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D)."""
        if self.table.ties(self.config):
            return self.model.embed_tokens.attend(hidden)
        return self.lm_head(hidden)

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of predicting the next label."""
        return mean_causal_lm_loss(main_output(output), labels, weights)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        last_logits_only: bool = False,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments.
            attention_mask: (B, T), see ``XGLMModel.call``.
            position_ids: (B, S).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            head_mask: (L, H) or (H,).
            cross_attn_head_mask: (L, H).
            past_key_values: Keys and values before, see ``xlmfam.tf.cache``.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count. ``loss`` is then (n,), one per label that counts; XLA,
                which cannot have that shape, trains through ``fit``.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values and layers.
            last_logits_only: Compute the logits of the last position only, (B, 1, V); the
                rest of a prompt's are not needed to continue it.
        """
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        if labels is not None:
            given: Any = input_ids if inputs_embeds is None else inputs_embeds
            check_shape("labels", labels, tuple(given.shape[:2]))
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
            self.check_ids("labels", without_ignored(labels))
        output = self._run(
            input_ids,
            inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        hidden = output.last_hidden_state
        logits = self.project(hidden[:, -1:] if last_logits_only else hidden)
        result = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()


TFXGLMPreTrainedModel = XGLMPreTrainedModel
TFXGLMModel = XGLMModel
TFXGLMForCausalLM = XGLMForCausalLM
