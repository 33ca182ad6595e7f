"""X-MOD in TensorFlow (Pfeiffer et al. 2022), and its language models.

Shapes: B batch, S sequence, T sequence with past, H heads, D width, E encoder sequence, L layers,
V vocabulary, N labels that count, R rows in generation, C columns of its buffer.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.common.languages import check_language_range, resolve_langs
from xlmfam.common.parameters.xmod import WITHOUT_POOLING
from xlmfam.tf.attention import Tensor
from xlmfam.tf.cache import KeyValueCache
from xlmfam.tf.generation import GenerationMixin
from xlmfam.tf.layers import (
    Embedding,
    LayerNorm,
    Linear,
    TableLayer,
    causal_lm_loss,
    mean_causal_lm_loss,
    without_ignored,
)
from xlmfam.tf.losses import LabelledLogitsMixin, labelled, labelled_losses
from xlmfam.tf.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from xlmfam.tf.training import main_output
from xlmfam.tf.xmod_languages import Languages, gather_languages
from xlmfam.tf.xmod_transformer import Past, XmodPreTrainedModel, XmodTransformer

__all__ = ["XmodForCausalLM", "XmodForMaskedLM", "XmodModel", "XmodPreTrainedModel"]


@keras.saving.register_keras_serializable("xlmfam")
class XmodModel(XmodPreTrainedModel):
    """X-MOD without a head: an encoder, or a decoder where ``config.is_decoder``.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        add_pooling_layer: Have a pooling layer.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodModel"
    init_arguments = ("add_pooling_layer",)

    def __init__(
        self, config: XmodConfig, dtype: Any = None, add_pooling_layer: bool = True, **kwargs: Any
    ):
        super().__init__(config, dtype, **kwargs)
        self.add_pooling_layer = add_pooling_layer
        self.table_class = self.table_class_with(add_pooling_layer)  # type: ignore[misc]
        self.roberta = XmodTransformer(
            config, add_pooling_layer, dtype=self.dtype_policy, name="roberta"
        )
        self.post_init()

    @classmethod
    def table_class_with(cls, add_pooling_layer: bool = True) -> str:  # type: ignore[override]
        """Return the name of the class with or without pooling layer in the parameter table."""
        return "XmodModel" if add_pooling_layer else WITHOUT_POOLING

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        return self.roberta.init_cache(batch_size, max_length)

    def call(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, or a dict or list of all arguments.
            lang_ids: Languages by code or number: one, a list or (B,) with one per sample, or
                (B, S) with one per token; by default ``config.default_language``. In a graph all
                adapters are read for a tensor, and only those needed for codes and numbers.
            attention_mask: (B, T), 1 for tokens and 0 for padding, or (B, S, T) for what each
                token sees.
            token_type_ids: (B, S), zeros by default.
            position_ids: (B, S); by default counted over what is no padding, from
                ``pad_token_id + 1`` on.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            encoder_hidden_states: (B, E, D), needs a decoder with ``add_cross_attention``.
            encoder_attention_mask: (B, E), or (B, S, E) for what each token sees.
            past_key_values: Keys and values before, of a decoder; see ``xlmfam.tf.cache``.
            use_cache: Return keys and values of a decoder.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, shapes that do not
                fit, and where neither a language nor a default is given.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        return self._finished(output, return_dict)


class XmodLMHead(TableLayer):
    """A dense layer and the projection to the vocabulary.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    bias: Any = None

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.dense = Linear(dtype=policy, name="dense")
        self.layer_norm = LayerNorm(config.layer_norm_eps, dtype=policy, name="layer_norm")
        self.decoder = Linear(dtype=policy, name="decoder")  # empty while tied

    def call(self, hidden: Tensor, embeddings: Embedding | None) -> Tensor:
        """Return logits (..., V) of (..., D).

        Args:
            hidden: (..., D).
            embeddings: The token embedding, whose table is the projection's while they are tied.
        """
        hidden = self.layer_norm(tf.nn.gelu(self.dense(hidden)))
        logits = self.decoder(hidden) if embeddings is None else embeddings.attend(hidden)
        return logits + tf.cast(self.bias, logits.dtype)


class XmodLanguageModel(XmodPreTrainedModel):
    """What the two language models share.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    def __init__(self, config: XmodConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.roberta = XmodTransformer(config, dtype=self.dtype_policy, name="roberta")
        self.lm_head = XmodLMHead(config, dtype=self.dtype_policy, name="lm_head")
        self.post_init()

    def get_output_embeddings(self) -> keras.layers.Layer:
        """Return the layer that has the projection: the head's, or the embedding while tied."""
        return self._tied() or self.lm_head.decoder

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D)."""
        return self.lm_head(hidden, self._tied())

    def _tied(self) -> Embedding | None:
        return self.get_input_embeddings() if self.table.ties(self.config) else None

    def _check_labels(self, labels, input_ids, inputs_embeds) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.hidden_size)
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        self.check_ids("labels", without_ignored(labels))


@keras.saving.register_keras_serializable("xlmfam")
class XmodForCausalLM(GenerationMixin, XmodLanguageModel):
    """X-MOD that predicts the next token; ``config.is_decoder`` makes it look back only.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodForCausalLM"
    generation_arguments = (
        "lang_ids",
        "head_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
    )

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        return self.roberta.init_cache(batch_size, max_length)

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of predicting the next label."""
        return mean_causal_lm_loss(main_output(output), labels, weights)

    def call(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        last_logits_only: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.call``, as for all but ``labels``.
            lang_ids: Languages by code or number.
            attention_mask: (B, T) or (B, S, T).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count. ``loss`` is then (N,), one per label that counts; XLA,
                which cannot have that shape, trains through ``fit``.
            past_key_values: Keys and values before.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.
            last_logits_only: Compute the logits of the last position only, (B, 1, V).

        Raises:
            XlmfamError: See ``XmodModel.call``.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
            use_cache = False
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
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
        return self._finished(result, return_dict)

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return self.config.is_causal

    def prepare_generation(self, plan, prompt, mask, extra: dict[str, Any]) -> dict[str, Any]:
        """Check that there are positions enough; give every token to come its language.

        New tokens have the language of the last token of their prompt. The languages that occur
        are part of the graph, so that it reads no other adapters.
        """
        batch, length = prompt.shape
        padding = int(length - tf.reduce_max(tf.reduce_sum(mask, -1)))
        room = self.config.max_position_embeddings - self.config.pad_token_id - 1
        if plan.max_length - padding - 1 > room:
            raise ConfigError(
                f"max_length {plan.max_length} needs {plan.max_length - padding - 1} positions, "
                f"the model has {room}"
            )
        langs = extra.pop("lang_ids", None)
        if langs is None:
            langs = self.roberta.default_language()
        langs = np.asarray(resolve_langs(self.config, langs))
        check_shape("lang_ids", langs, *((b, s) for b in (batch, 1) for s in (length, 1)))
        check_language_range(self.config, int(langs.min()), int(langs.max()), "lang_ids")
        extra = super().prepare_generation(plan, prompt, mask, extra)
        present, places = np.unique(langs, return_inverse=True)
        places = np.broadcast_to(places.reshape(langs.shape), (batch, langs.shape[1]))
        extra["languages"] = tuple(self.config.languages[place] for place in present)
        extra["lang_ids"] = tf.constant(places[:, -1:], tf.int32)
        if places.shape[1] > 1:
            extra["token_lang_ids"] = tf.constant(places, tf.int32)
        return extra

    def next_logits(self, ids, mask, cache, extra: dict[str, Any]) -> tuple[Tensor, Any]:
        """Return the scores (R, V) of what follows ``ids``; see ``GenerationMixin``."""
        pad, extra = self.config.pad_token_id, dict(extra)
        if cache is None:
            positions = tf.cumsum(mask, -1) * mask + pad
            languages = _pop_languages(extra, ids.shape[1])
        else:
            before = mask * tf.cast(tf.range(mask.shape[1]) < cache.length, mask.dtype)
            positions = tf.reduce_sum(before, -1, keepdims=True) + pad + 1
            languages = _pop_languages(extra, 1)
        output = self.roberta(
            input_ids=ids,
            lang_ids=languages,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            training=False,
            **extra,
        )
        logits = self.project(output.last_hidden_state[:, -1])
        return tf.cast(logits, tf.float32), output.past_key_values

    def logits_after(self, ids, length, mask, extra: dict[str, Any]) -> Tensor:
        """Return the scores (R, V) of what follows ``length`` columns; see ``GenerationMixin``."""
        extra, columns = dict(extra), ids.shape[1]
        # A model that is no decoder would look at columns that are not filled yet.
        mask = mask * tf.cast(tf.range(columns) < length, mask.dtype)
        output = self.roberta(
            input_ids=ids,
            lang_ids=_pop_languages(extra, columns),
            attention_mask=mask,
            position_ids=tf.cumsum(mask, -1) * mask + self.config.pad_token_id,
            use_cache=False,
            training=False,
            **extra,
        )
        hidden = tf.gather(output.last_hidden_state, length - 1, axis=1)
        return tf.cast(self.project(hidden), tf.float32)


def _pop_languages(extra: dict[str, Any], columns: int) -> Languages:
    """Take the languages of R rows of ``columns`` tokens out of generation's arguments."""
    present, last = extra.pop("languages"), extra.pop("lang_ids")
    known = extra.pop("token_lang_ids", None)
    if len(present) == 1:
        return Languages(present)
    if known is None or columns == 1:
        return gather_languages(present, last)
    later = tf.repeat(last, columns - known.shape[1], axis=1)
    return gather_languages(present, tf.concat([known, later], 1))


@keras.saving.register_keras_serializable("xlmfam")
class XmodForMaskedLM(LabelledLogitsMixin, FillMaskMixin, XmodLanguageModel):
    """X-MOD that guesses hidden tokens.

    ``fit`` and ``evaluate``, with the model's own loss and no metrics, compute logits only where
    there are labels; ``labelled_logits_only`` says how, see ``XLMWithLMHeadModel``.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XmodForMaskedLM"

    def states(self, **arguments: Any) -> Any:
        """Run what stands below the projection."""
        arguments.pop("return_dict", None)
        return self.roberta(**arguments, use_cache=False)

    def call(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.call``, as for all but ``labels``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S) or (B, S, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            labels: (B, S) ids; -100 does not count. ``loss`` is then (N,), one per label that
                counts; XLA, which cannot have that shape, trains through ``fit`` or with
                ``labelled_logits_only``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.
            labelled_logits_only: Compute logits only where there is a label, see
                ``XLMWithLMHeadModel.call``.

        Raises:
            XlmfamError: See ``XmodModel.call``.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
        elif labelled_logits_only:
            raise XlmfamError("labelled_logits_only needs labels")
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        hidden, targets = output.last_hidden_state, labels
        if labelled_logits_only and labels is not None:
            hidden, targets, _ = labelled(hidden, labels, labelled_logits_only)
        logits = self.project(hidden)
        losses = None
        if targets is not None:
            losses = labelled_losses(logits, targets, labelled_logits_only)
        result = MaskedLMOutput(
            loss=losses,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)

    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, S) ids; see ``FillMaskMixin``."""
        output = self.roberta(
            input_ids=tf.convert_to_tensor(input_ids),
            lang_ids=resolve_langs(self.config, langs),
            attention_mask=tf.convert_to_tensor(attention_mask),
            use_cache=False,
            training=False,
        )
        logits = self.project(tf.gather_nd(output.last_hidden_state, tf.stack([rows, columns], -1)))
        return tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()


TFXmodPreTrainedModel = XmodPreTrainedModel
TFXmodModel = XmodModel
TFXmodForCausalLM = XmodForCausalLM
TFXmodForMaskedLM = XmodForMaskedLM
