"""XLM's translation model in Flax: an encoder, and a decoder that looks at what it read.

Conneau and Lample 2019, section 5.2; its searches stand in ``xlm_search``.

Shapes: B batch, S source, T target (S what is new of it, with a cache), H heads, K head width,
D width, L layers, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.translation import TranslationMixin, check_translation
from xlmfam.flax.base import Params, as_arrays
from xlmfam.flax.cache import KeyValueCache
from xlmfam.flax.generation import bucket, is_traced
from xlmfam.flax.losses import IGNORED, mean_loss
from xlmfam.flax.outputs import (
    BaseModelOutput,
    CausalLMOutputWithCrossAttentions,
    Seq2SeqLMOutput,
)
from xlmfam.flax.xlm_inputs import Prepared, prepare
from xlmfam.flax.xlm_modules import XLMPredLayer
from xlmfam.flax.xlm_search import Search, translate
from xlmfam.flax.xlm_transformer import XLMModule, XLMPreTrainedModel, fill_dict


class XLMDecoderModule(XLMModule):
    """The decoder with its vocabulary projection, as a linen module."""

    def setup(self) -> None:
        """Build the transformer and the projection."""
        super().setup()
        self.pred_layer = XLMPredLayer(self.config, self.dtype)

    def project(self, hidden: Array) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.pred_layer(hidden, self.embeddings.embedding)

    def source_keys(self, source: Array) -> tuple[tuple[Array, Array], ...]:
        """Return every layer's keys and values (B, H, S, K) of (B, S, D)."""
        layers = range(self.config.n_layers)
        return tuple(self.encoder_attn[layer].project_source(source) for layer in layers)


class XLMEncoderDecoderModule(nn.Module):
    """Encoder and decoder, as a linen module.

    Attributes:
        config: The config of both.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build both halves."""
        options = (self.dtype, self.gradient_checkpointing)
        self.encoder = XLMModule(self.config.half(is_encoder=True), *options)
        self.decoder = XLMDecoderModule(self.config.half(is_encoder=False), *options)

    def __call__(
        self,
        input_ids: Array,
        langs: Array | None = None,
        decoder_input_ids: Array | None = None,
        decoder_langs: Array | None = None,
    ) -> CausalLMOutputWithCrossAttentions:
        """Read a source (B, S) and a target (B, T), by default the same, without padding."""
        states = self.encode(input_ids=input_ids, langs=langs).last_hidden_state
        if decoder_input_ids is None:
            decoder_input_ids, decoder_langs = input_ids, langs
        return self.decode(input_ids=decoder_input_ids, langs=decoder_langs, src_enc=states)

    def encode(self, **kwargs: Any) -> Any:
        """Read a source; arguments and output as in ``XLMModule``."""
        return self.encoder(**kwargs)

    def decode(
        self, labels: Array | None = None, logits_at: Any = None, **kwargs: Any
    ) -> CausalLMOutputWithCrossAttentions:
        """Read a target.

        Args:
            labels: (B, T), label i of position i.
            logits_at: The one position whose logits are needed; ``None`` for all.
            **kwargs: As in ``XLMModule``.
        """
        output = self.decoder(**kwargs)
        hidden = output.last_hidden_state
        if logits_at is not None:
            hidden = lax.dynamic_slice_in_dim(hidden, logits_at, 1, 1)
        logits = self.decoder.project(hidden)
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )

    def project(self, hidden: Array) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.decoder.project(hidden)

    def source_keys(self, source: Array) -> tuple[tuple[Array, Array], ...]:
        """Return the decoder's keys and values (B, H, S, K) of a source (B, S, D), by layer."""
        return self.decoder.source_keys(source)


class XLMEncoderDecoder(XLMPreTrainedModel, TranslationMixin):
    """XLM's encoder and decoder, each with embeddings of its own.

    Args:
        config: The config of both; ``is_encoder`` and ``causal`` follow from the part.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMEncoderDecoder"
    module_class = XLMEncoderDecoderModule

    def _embedding_path(self) -> tuple[str, ...]:
        """Return where the encoder's token embedding is: the first that has a row for padding."""
        return next(path for path, row in self.paths().items() if row.padding_row is not None)

    def prune_heads(self, heads_to_prune: Any, params: Params | None = None) -> Params:  # noqa: ARG002
        """Refused: encoder and decoder have one config, and other heads that matter."""
        raise XlmfamError("prune_heads: a translation model cannot be pruned")

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        lengths: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        decoder_langs: Any = None,
        decoder_lengths: Any = None,
        encoder_outputs: Any = None,
        cache: Any = None,
        head_mask: Any = None,
        decoder_head_mask: Any = None,
        inputs_embeds: Any = None,
        decoder_inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        *,
        last_logits_only: bool = False,
    ) -> Any:
        """Read a source and predict the target.

        Args:
            input_ids: (B, S) ids of the source.
            attention_mask: (B, S), 1 for tokens and 0 for padding.
            langs: Languages of the source by name or id, see ``XLMModel.__call__``.
            lengths: (B,) instead of ``attention_mask``.
            decoder_input_ids: (B, T) ids of the target, which begins with ``eos_index``; made of
                ``labels`` where they are not given.
            decoder_attention_mask: (B, T).
            decoder_langs: Languages of the target.
            decoder_lengths: (B,).
            encoder_outputs: What the encoder gave before, or its (B, S, D) states.
            cache: For the target: a dict that is filled in place.
            head_mask: (L, H) or (H,) for the encoder.
            decoder_head_mask: (L, H) or (H,) for the decoder's attention to itself.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            decoder_inputs_embeds: (B, T, D) instead of ``decoder_input_ids``.
            labels: (B, T) ids to predict, label i at position i; -100 does not count.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.
            last_logits_only: Compute the logits of the last position only, (B, 1, V).

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        target = as_arrays(ids=decoder_input_ids, vectors=decoder_inputs_embeds, labels=labels)
        target = self._targets(last_logits_only, **target)
        check_inputs(target["ids"], target["vectors"], self.config.emb_dim)
        if isinstance(cache, KeyValueCache):
            raise XlmfamError(
                "a translation has no output for the next KeyValueCache: give a dict as its "
                'cache, {"slen": 0}'
            )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        if encoder_outputs is None:
            source = (input_ids, attention_mask, langs, None, None, lengths, None)
            call = self._half(True, *source, head_mask, inputs_embeds)
            encoder_outputs = self._apply(call, *options, method="encode")
        elif not hasattr(encoder_outputs, "last_hidden_state"):
            encoder_outputs = BaseModelOutput(last_hidden_state=encoder_outputs)
        if attention_mask is None and lengths is None and input_ids is not None:
            ids = as_arrays(ids=input_ids)["ids"]
            lengths = (ids != self.config.pad_index).sum(-1)
        call = self._half(
            False,
            target["ids"],
            decoder_attention_mask,
            decoder_langs,
            None,
            None,
            decoder_lengths,
            cache,
            decoder_head_mask,
            target["vectors"],
            src_enc=encoder_outputs.last_hidden_state,
            src_len=lengths if attention_mask is None else None,
            src_mask=attention_mask,
        )
        logits_at = -1 if last_logits_only else None
        own = {"labels": target["labels"], "logits_at": logits_at}
        output = self._apply(call, *options, method="decode", **own)
        fill_dict(cache, output.past_key_values, call)
        return self._finish(_joined(encoder_outputs, output), return_dict)

    def _half(self, is_encoder: bool, *arguments: Any, **source: Any) -> Prepared:
        """Check the call of a half; arguments as in ``prepare``."""
        return prepare(self.config.half(is_encoder), self.check_ids, *arguments, **source)

    def _targets(self, last_logits_only: bool, ids: Any, vectors: Any, labels: Any) -> dict:
        """Check the labels; return them and the ids to read, made of them if need be."""
        if labels is not None:
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
            given = ids if vectors is None else vectors
            check_shape("labels", labels, (None, None) if given is None else tuple(given.shape[:2]))
            tokens = jnp.where(labels == IGNORED, self.config.pad_index, labels)
            self.check_ids("labels", tokens)
            if given is None:
                first = jnp.full_like(tokens[:, :1], self.config.eos_index)
                ids = jnp.concatenate([first, tokens[:, :-1]], 1)
        return {"ids": ids, "vectors": vectors, "labels": labels}

    def project(self, hidden: Any, params: Params | None = None) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        values = {"params": self.params if params is None else params}
        logits: Any = self.module.apply(values, hidden, method="project")
        return logits

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        langs: Any = None,
        lengths: Any = None,
        *,
        target_lang: str | int | None = None,
        max_length: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: bool = False,
        params: Params | None = None,
    ) -> Array:
        """Translate ids, greedily or by beam search, as the original release does.

        Inside ``jax.jit`` the result has ``max_length`` columns; outside it ends with the longest
        translation.

        Args:
            input_ids: (B, S) ids of the source.
            attention_mask: (B, S).
            langs: Languages of the source by name or id.
            lengths: (B,) instead of ``attention_mask``.
            target_lang: Language to translate into, by name or id.
            max_length: Most tokens of a translation, the end tokens at both ends counted; 200 by
                default, or as many as there are positions.
            num_beams: Width of the beam; 1 is greedy search, as in the original's scripts.
            length_penalty: Beam scores are divided by ``length ** length_penalty``, the first end
                token counted and the last one not.
            early_stopping: Stop a text once ``num_beams`` translations are finished, rather than
                when none that is running can become better than the worst of them.
            params: To use instead of the model's own.

        Returns:
            (B, length) ids that begin and end with ``eos_index``, padded with ``pad_index``.

        Raises:
            XlmfamError: For an unknown language, and options and shapes that cannot be.
        """
        plan = check_translation(
            self.config, target_lang, max_length, num_beams, length_penalty, early_stopping
        )
        call = self._half(
            True, input_ids, attention_mask, langs, None, None, lengths, None, None, None
        )
        values = self.params if params is None else params
        traced = is_traced(call.arguments, values)
        source = self._source(call, bucketed=not traced)
        size = plan.max_length if traced else bucket(plan.max_length)
        search = Search(self.module, dataclasses.replace(plan, max_length=0), size)
        ids, length = translate(search, values, source, np.int32(plan.max_length))
        return ids[:, : size if traced else int(length)]

    def _source(self, call: Prepared, bucketed: bool) -> dict[str, Any]:
        """Return the encoder's arguments, padded on the right so that few lengths compile."""
        (batch, length), config = call.shape, self.config
        given, columns = call.arguments, length
        if bucketed:
            columns = min(bucket(length), config.max_position_embeddings)
        more = ((0, 0), (0, columns - length))
        valid, langs = given["attention_mask"], given["langs"]
        if valid is None:
            valid = np.ones((batch, length), bool)
        if langs is not None:
            langs = jnp.pad(jnp.broadcast_to(jnp.asarray(langs), (batch, length)), more)
        return {
            "input_ids": jnp.pad(jnp.asarray(given["input_ids"]), more),
            "attention_mask": jnp.pad(jnp.asarray(valid), more),
            "langs": langs,
        }

    def generate_ids(self, input_ids: Any, attention_mask: Any, langs: Any, **options: Any) -> Any:
        """Call ``generate`` with (B, S) NumPy arrays; return lists of ids."""
        return np.asarray(self.generate(input_ids, attention_mask, langs, **options)).tolist()


def _joined(encoded: Any, decoded: Any) -> Seq2SeqLMOutput:
    return Seq2SeqLMOutput(
        loss=decoded.loss,
        logits=decoded.logits,
        decoder_hidden_states=decoded.hidden_states,
        decoder_attentions=decoded.attentions,
        cross_attentions=decoded.cross_attentions,
        encoder_last_hidden_state=encoded.last_hidden_state,
        encoder_hidden_states=encoded.hidden_states,
        encoder_attentions=encoded.attentions,
    )
