"""XLM in TensorFlow (Conneau and Lample 2019, "Cross-lingual Language Model Pretraining").

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, D width, E source,
L layers, V vocabulary, N labels that count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.dict_cache import past_of
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.common.languages import resolve_langs
from xlmfam.common.parameters import relayout
from xlmfam.tf.attention import Tensor
from xlmfam.tf.base import PreTrainedModel, as_array
from xlmfam.tf.cache import DictCache, KeyValueCache
from xlmfam.tf.generation import GenerationMixin
from xlmfam.tf.layers import Embedding, text_positions, without_ignored
from xlmfam.tf.losses import LabelledLogitsMixin, labelled, labelled_losses
from xlmfam.tf.outputs import (
    BaseModelOutput,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
)
from xlmfam.tf.xlm_modules import XLMPredLayer
from xlmfam.tf.xlm_transformer import Past, XLMTransformer


class XLMPreTrainedModel(PreTrainedModel):
    """What the XLM classes share."""

    config_class = XLMConfig
    config: XLMConfig
    transformer: XLMTransformer

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self._make_transformer()

    def _make_transformer(self) -> None:
        self.transformer = XLMTransformer(self.config, dtype=self.dtype_policy, name="transformer")

    def get_input_embeddings(self) -> Embedding:
        """Return the token embedding."""
        return self.transformer.embeddings

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens.

        Raises:
            XlmfamError: After pruning, which leaves layers with caches of different shapes.
        """
        return self.transformer.init_cache(batch_size, max_length)

    def prune_heads(self, heads_to_prune: Mapping[int, Sequence[int]]) -> None:
        """Take attention heads out; ``config.pruned_heads`` remembers them.

        Compile again before training on: the optimizer knows the old variables.

        Args:
            heads_to_prune: Numbers of heads by layer, as they were before any pruning.

        Raises:
            ConfigError: When there is no such layer or head, or a layer would have none left.
        """
        old = self.expected_parameters()
        before = [self.config.kept_heads(layer) for layer in range(self.config.n_layers)]
        self.config.prune(heads_to_prune)
        new = self.expected_parameters()
        changed = {_module(name) for name in new if new[name].shape != old[name].shape}
        for name, parameter in new.items():
            if _module(name) not in changed:
                continue
            value = relayout(as_array(self._variable(parameter)), parameter, "keras", "canonical")
            if parameter.shape != old[name].shape:
                layer = next(int(part) for part in name.split(".") if part.isdigit())
                kept = np.flatnonzero(np.isin(before[layer], self.config.kept_heads(layer)))
                axis = parameter.axes.index("heads")
                each = (len(before[layer]), value.shape[axis] // len(before[layer]))
                heads = value.reshape(*value.shape[:axis], *each, *value.shape[axis + 1 :])
                value = heads.take(kept, axis).reshape(parameter.shape)
            # Also what stays as it is: in .keras files variables count by their order.
            self._remove(parameter)
            self._create(parameter, relayout(value, parameter, "canonical", "keras").copy())

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, in a form that Keras hands on as it is."""
        named = super()._arguments(args, kwargs)
        if named.get("cache") is not None and isinstance(named["cache"], dict):
            named["cache"] = DictCache(named["cache"])
        for name in ("langs", "decoder_langs"):
            if named.get(name) is not None:
                named[name] = resolve_langs(self.config, named[name])
        return named

    def _finished(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


@keras.saving.register_keras_serializable("xlmfam")
class XLMModel(XLMPreTrainedModel):
    """XLM without a head: an encoder, a causal model, or a decoder that looks at a source.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMModel"

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.post_init()

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Any = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Past | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        training: bool | None = None,
        src_enc: Tensor | None = None,
        src_len: Tensor | None = None,
        src_mask: Tensor | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) token ids, or a dict or list of all arguments.
            attention_mask: (B, T), 1 for tokens and 0 for padding.
            langs: Languages by name or id: one, one per sample, or (B, T) ids.
            token_type_ids: (B, T) ids whose *word* embeddings are added.
            position_ids: (B, T); by default 0, 1, ... and, in a causal model, counted from each
                row's first token.
            lengths: (B,) tokens of each row, instead of ``attention_mask``. With neither, a row
                has as many as it has ids that are no padding.
            cache: A dict that is filled in place, see ``xlmfam.common.dict_cache``; its ``slen``
                is a Python number, in graphs too. Or a ``KeyValueCache``, with which the other
                inputs are (B, S), only what is new, but for ``attention_mask``, which covers it
                all, and perhaps the room behind it; the output then has ``past_key_values``, the
                cache with the new tokens.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,) lengths of the sources.
            src_mask: (B, E) instead of ``src_len``.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            langs=langs,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            lengths=lengths,
            cache=cache,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            src_enc=src_enc,
            src_len=src_len,
            src_mask=src_mask,
            training=training,
        )
        return self._finished(output, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XLMWithLMHeadModel(LabelledLogitsMixin, GenerationMixin, FillMaskMixin, XLMPreTrainedModel):
    """XLM with the vocabulary projection, tied to the token embedding by default.

    ``fit`` and ``evaluate``, with the model's own loss and no metrics, compute logits only where
    there are labels: a masked model has them at some 15 % of the positions, and projecting to a
    large vocabulary is up to half of all work and most of the memory. ``labelled_logits_only``
    says how. ``True``, as it is at first, does it wherever shapes may depend on values; XLA
    projects all positions then. A number makes room for that many labels in a batch, which XLA
    takes too; more of them make the loss NaN. ``False`` always projects all positions.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMWithLMHeadModel"
    generation_arguments = ("langs", "head_mask")

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.pred_layer = XLMPredLayer(config, dtype=self.dtype_policy, name="pred_layer")
        self.post_init()

    def get_output_embeddings(self) -> keras.layers.Layer | None:
        """Return the layer that has the projection to the vocabulary: the embedding while tied.

        An adaptive softmax has no such layer.
        """
        if self.config.asm:
            return None
        return self.transformer.embeddings if self.pred_layer.is_tied else self.pred_layer.proj

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.pred_layer(hidden, self.transformer.embeddings)

    def call(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        langs: Any = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: Past | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labels: Tensor | None = None,
        training: bool | None = None,
        src_enc: Tensor | None = None,
        src_len: Tensor | None = None,
        src_mask: Tensor | None = None,
        last_logits_only: bool = False,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) token ids, or a dict or list of all arguments.
            attention_mask: (B, T), see ``XLMModel.call``, as for the arguments up to ``cache``.
            langs: Languages by name or id: one, one per sample, or (B, T) ids.
            token_type_ids: (B, T).
            position_ids: (B, T).
            lengths: (B,).
            cache: A dict that is filled in place, or a ``KeyValueCache``.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B, T) ids; -100 does not count. A masked model holds label i against the
                logits of position i, a causal one against those of position i - 1. ``loss`` is
                then (N,), one per label that counts; XLA, which cannot have that shape, trains
                through ``fit`` or with ``labelled_logits_only``.
            training: Drop values.
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,).
            src_mask: (B, E).
            last_logits_only: Compute the logits of the last position only, (B, 1, V).
            labelled_logits_only: Compute logits only where there is a label, (N, V) in the order
                of the labels; the loss is the same. A number makes room for that many, so that
                shapes do not depend on values: rows beyond the labels mean nothing, their loss is
                zero and the others are scaled so that the mean stays what it is; and more labels
                than that raise, or where they cannot be counted make the loss NaN.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds, cache)
        if labelled_logits_only and labels is None:
            raise XlmfamError("labelled_logits_only needs labels")
        if last_logits_only and labels is not None:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            langs=langs,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            lengths=lengths,
            cache=cache,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            src_enc=src_enc,
            src_len=src_len,
            src_mask=src_mask,
            training=training,
        )
        hidden = output.last_hidden_state
        targets = None if labels is None else self.targets(labels)
        if labelled_logits_only and targets is not None:
            hidden, targets, _ = labelled(hidden, targets, labelled_logits_only)
        logits = self.project(hidden[:, -1:] if last_logits_only else hidden)
        losses = None
        if targets is not None:
            losses = labelled_losses(logits, targets, labelled_logits_only)
        fields = {
            "loss": losses,
            "logits": logits,
            "hidden_states": output.hidden_states,
            "attentions": output.attentions,
        }
        result: Any = MaskedLMOutput(**fields)
        if not isinstance(output, BaseModelOutput):
            result = CausalLMOutputWithCrossAttentions(
                **fields,
                past_key_values=output.past_key_values,
                cross_attentions=output.cross_attentions,
            )
        return self._finished(result, return_dict)

    def _check_labels(self, labels, input_ids, inputs_embeds, cache) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.emb_dim)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        self.check_ids("labels", without_ignored(labels))
        if isinstance(cache, KeyValueCache) or (cache and cache.values.get("slen")):
            raise XlmfamError("labels need the whole text at once: leave the filled cache out")

    @property
    def shifts_labels(self) -> bool:
        """Whether a position predicts the next label rather than its own."""
        return self.config.is_causal

    def states(self, **arguments: Any) -> Any:
        """Run what stands below the projection."""
        return self.transformer(**arguments)

    # ---- generation and filling in ------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return self.config.is_causal and not any(self.config.pruned_heads.values())

    def prepare_generation(self, plan, prompt, mask, extra: dict[str, Any]) -> dict[str, Tensor]:
        """Check that there are positions enough; return the languages as (B, C) ids.

        New tokens have the language of the last token of their prompt.
        """
        batch, length = prompt.shape
        padding = int(length - tf.reduce_max(tf.reduce_sum(mask, -1)))
        # The last token is not read again; a masked model reads one mask token instead.
        needed = plan.max_length - padding - int(self.config.is_causal)
        if needed > self.config.max_position_embeddings:
            raise ConfigError(
                f"max_length {plan.max_length} needs {needed} positions, "
                f"max_position_embeddings is {self.config.max_position_embeddings}"
            )
        langs = extra.pop("langs", None)
        if langs is None:
            langs = self.config.lang_id if self.config.uses_languages else None
        langs = self.transformer.languages(langs, batch, length)
        extra = super().prepare_generation(plan, prompt, mask, extra)
        if langs is not None:
            extra["langs"] = tf.broadcast_to(tf.cast(langs, tf.int32), [batch, length])
        return extra

    def next_logits(self, ids, mask, cache, extra: dict[str, Tensor]) -> tuple[Tensor, Any]:
        """Return the scores (R, V) of what follows ``ids``; see ``GenerationMixin``."""
        langs = extra.get("langs")
        if langs is not None and cache is not None:
            langs = langs[:, -1:]
        past = DictCache({"slen": 0}) if cache is None else cache
        output = self(
            input_ids=ids,
            attention_mask=mask,
            langs=langs,
            cache=past,
            head_mask=extra.get("head_mask"),
            last_logits_only=True,
            return_dict=True,
            training=False,
        )
        if cache is None:
            present = past_of(past.values, self.config)
        else:
            present = output.past_key_values
        return tf.cast(output.logits[:, -1], tf.float32), present

    def logits_after(self, ids, length, mask, extra: dict[str, Tensor]) -> Tensor:
        """Return the scores (R, V) of what follows ``length`` columns; see ``GenerationMixin``.

        A masked model guesses what hides behind a mask token there.
        """
        langs = extra.get("langs")
        if not self.config.is_causal:
            ids, mask = (tf.pad(values, [[0, 0], [0, 1]]) for values in (ids, mask))
            places = tf.range(ids.shape[1])
            ids = tf.where(places == length, self.config.mask_token_id, ids)
            mask = tf.where(places == length, 1, mask) * tf.cast(places <= length, mask.dtype)
            length = length + 1
        if langs is not None:
            later = tf.repeat(langs[:, -1:], ids.shape[1] - langs.shape[1], axis=1)
            langs = tf.concat([langs, later], 1)
        positions = text_positions(mask, 0, ids.shape[1])
        output = self.transformer(
            input_ids=ids,
            attention_mask=mask,
            langs=langs,
            # Columns that nobody fills need no positions of their own.
            position_ids=tf.minimum(positions, self.config.max_position_embeddings - 1),
            head_mask=extra.get("head_mask"),
            training=False,
        )
        hidden = tf.gather(output.last_hidden_state, length - 1, axis=1)
        return tf.cast(self.project(hidden), tf.float32)

    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, T) ids; see ``FillMaskMixin``."""
        output = self.transformer(
            input_ids=tf.convert_to_tensor(input_ids),
            attention_mask=tf.convert_to_tensor(attention_mask),
            langs=resolve_langs(self.config, langs),
            training=False,
        )
        places = tf.stack([rows, columns], -1)
        logits = self.project(tf.gather_nd(output.last_hidden_state, places))
        return tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()


def _module(name: str) -> str:
    return name.rpartition(".")[0]


TFXLMPreTrainedModel = XLMPreTrainedModel
TFXLMModel = XLMModel
TFXLMWithLMHeadModel = XLMWithLMHeadModel
