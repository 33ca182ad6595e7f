"""X-MOD's language models in Flax (Pfeiffer et al. 2022).

Shapes: B batch, S sequence, T sequence with past, H heads, D width, E encoder sequence, L layers,
V vocabulary, N labels that count, R rows of a search, C their columns.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from xlmfam.common.checks import check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.flax.base import Params, as_arrays
from xlmfam.flax.checks import room_for
from xlmfam.flax.generation import GenerationMixin, check_extra, is_traced, read_text
from xlmfam.flax.losses import IGNORED, causal_lm_loss, labelled, mean_loss
from xlmfam.flax.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from xlmfam.flax.xmod_adapters import Languages
from xlmfam.flax.xmod_inputs import Past, languages
from xlmfam.flax.xmod_modules import dense, norm
from xlmfam.flax.xmod_transformer import (
    XmodModel,
    XmodModule,
    XmodPreTrainedModel,
    adapters_of,
)

__all__ = ["XmodForCausalLM", "XmodForMaskedLM", "XmodModel", "XmodPreTrainedModel"]


class XmodLMHead(nn.Module):
    """A dense layer and the projection to the vocabulary.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layers; the projection, unless it is the embedding's."""
        config, dtype = self.config, self.dtype
        self.dense = dense(config, config.hidden_size, dtype)
        self.layer_norm = norm(config, dtype)
        if not config.tie_word_embeddings:
            self.decoder = dense(config, config.vocab_size, dtype, use_bias=False)
        self.bias = self.param("bias", nn.initializers.zeros_init(), (config.vocab_size,))

    def __call__(self, hidden: Array, embedding: Array) -> Array:
        """Return logits (..., V) of (..., D); ``embedding`` is (V, D)."""
        hidden = self.layer_norm(jax.nn.gelu(self.dense(hidden), approximate=False))
        hidden, embedding, bias = promote_dtype(hidden, embedding, self.bias, dtype=self.dtype)
        if not self.config.tie_word_embeddings:
            return self.decoder(hidden) + bias
        return jnp.einsum("...d,vd->...v", hidden, embedding) + bias


class XmodLanguageModule(nn.Module):
    """What the two language models share, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XmodConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build X-MOD and the head."""
        self.roberta = XmodModule(self.config, self.dtype, self.gradient_checkpointing, False)
        self.lm_head = XmodLMHead(self.config, self.dtype)

    def encode(self, **kwargs: Any) -> Array:
        """Return the last hidden states (B, S, D); arguments as in ``XmodModule``."""
        return self.roberta(**kwargs).last_hidden_state

    def project(self, hidden: Array) -> Array:
        """Return logits (..., V) of (..., D)."""
        return self.lm_head(hidden, self.roberta.embeddings.word_embeddings.embedding)


class XmodForCausalLMModule(XmodLanguageModule):
    """X-MOD that predicts the next token, as a linen module."""

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        logits_at: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Run the module; ``XmodForCausalLM.__call__`` checks and prepares what comes here.

        Args:
            input_ids: (B, S).
            labels: (B, S).
            logits_at: The one position whose logits are needed; ``None`` for all.
            **kwargs: As in ``XmodModule``.
        """
        output = self.roberta(input_ids, **kwargs)
        hidden = output.last_hidden_state
        if logits_at is not None:
            hidden = lax.dynamic_slice_in_dim(hidden, logits_at, 1, 1)
        logits = self.project(hidden)
        return CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )


class XmodForMaskedLMModule(XmodLanguageModule):
    """X-MOD that guesses hidden tokens, as a linen module."""

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        labels_room: int | None = None,
        **kwargs: Any,
    ) -> MaskedLMOutput:
        """Run the module; ``XmodForMaskedLM.__call__`` checks and prepares what comes here.

        Args:
            input_ids: (B, S).
            labels: (B, S).
            labels_room: N, to compute the logits only where there is a label.
            **kwargs: As in ``XmodModule``.
        """
        output = self.roberta(input_ids, **kwargs)
        hidden, targets = output.last_hidden_state, labels
        if labels_room is not None:
            hidden, targets = labelled(hidden, targets, labels_room)
        logits = self.project(hidden)
        return MaskedLMOutput(
            loss=None if targets is None else mean_loss(logits, targets),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )


class XmodLanguageModel(XmodPreTrainedModel):
    """What the two language models share."""

    def project(self, hidden: Any, params: Params | None = None) -> Array:
        """Return logits (..., V) of (..., D)."""
        return self._method("project", params, hidden=hidden)

    def _method(self, method: str, params: Params | None, **arguments: Any) -> Any:
        values = {"params": self.params if params is None else params}
        return self.module.apply(values, **arguments, method=method)

    def _check_labels(self, labels: Any, call: dict[str, Any]) -> Any:
        """Return (B, S) labels, checked."""
        labels = as_arrays(labels=labels)["labels"]
        if labels is None:
            return None
        given = call["input_ids"] if call["inputs_embeds"] is None else call["inputs_embeds"]
        check_shape("labels", labels, tuple(given.shape[:2]))
        self.check_ids("labels", labels * (labels != IGNORED))
        return labels


def read_xmod(
    config: XmodConfig,
    ids: Array,
    mask: Array,
    last: Any,
    cached: bool,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Return the module's arguments for the scores of the next token; see ``read_text``."""
    extra = dict(extra)
    langs = extra.pop("lang_ids")
    if not config.is_decoder:
        mask = mask * (jnp.arange(mask.shape[1]) <= last)  # what is to come would be seen
    given = read_text(config, ids, mask, last, cached, extra)
    length = given["input_ids"].shape[1]
    first = last if cached else 0
    # Buffers may be longer than texts: what stands beyond is looked at by no token, but has to
    # be a number.
    positions = mask.cumsum(-1) * mask + config.pad_token_id
    positions = jnp.minimum(positions, config.max_position_embeddings - 1)
    given["position_ids"] = lax.dynamic_slice_in_dim(positions, first, length, 1)
    given["languages"] = langs.columns(first, length)
    return given


class XmodForCausalLM(XmodLanguageModel, GenerationMixin):
    """X-MOD that predicts the next token; ``config.is_decoder`` makes it look back only.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodForCausalLM"
    module_class = XmodForCausalLMModule
    generation_arguments = (
        "lang_ids",
        "head_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
    )
    read = staticmethod(read_xmod)

    def __call__(
        self,
        input_ids: Any = None,
        lang_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        *,
        last_logits_only: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.__call__``, as for all but ``labels``.
            lang_ids: Languages by code or number.
            attention_mask: (B, T) or (B, S, T).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count.
            past_key_values: Keys and values before.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.
            last_logits_only: Compute the logits of the last position only, (B, 1, V).

        Raises:
            XlmfamError: See ``XmodModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            lang_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            past_key_values,
            use_cache if labels is None else False,
        )
        labels = self._check_labels(labels, call)
        if last_logits_only and labels is not None:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        own = {"labels": labels, "logits_at": -1 if last_logits_only else None}
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng, **own)

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:  # type: ignore[override]
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return self.config.is_causal

    def prepare_generation(
        self, plan: Any, prompt: Any, mask: Any, extra: dict[str, Any]
    ) -> dict[str, Any]:
        """Check that there are positions enough; give every token to come its language.

        New tokens have the language of the last token of their prompt.
        """
        config, (batch, length) = self.config, prompt.shape
        padding = length if is_traced(mask) else length - int(np.asarray(mask).sum(-1).max())
        room = config.max_position_embeddings - config.pad_token_id - 1
        if plan.max_length - padding - 1 > room:
            raise ConfigError(
                f"max_length {plan.max_length} needs {plan.max_length - padding - 1} positions, "
                f"the model has {room}"
            )
        langs = languages(config, extra.pop("lang_ids", None), batch, length)
        arrays = {name: jnp.asarray(x) for name, x in extra.items() if x is not None}
        check_extra(config, arrays, batch)
        return {**arrays, "lang_ids": langs.continued(plan.new_tokens)}

    def place(self, params: Any, extra: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return parameters with the adapters that occur in the place of the first languages.

        What is compiled then serves all sets of as many languages.
        """
        langs, rows, values = extra["lang_ids"], self.paths(), flatten_dict(params)
        places = tuple(self.config.languages[: len(langs.present)])
        kept = {path: values[path] for path, row in rows.items() if row.language is None}
        for place, code in zip(places, langs.present, strict=True):
            pairs = zip(adapters_of(rows, place), adapters_of(rows, code), strict=True)
            kept |= {path: values[source] for path, source in pairs}
        return unflatten_dict(kept), {**extra, "lang_ids": Languages(places, langs.ids)}


class XmodForMaskedLM(XmodLanguageModel, FillMaskMixin):
    """X-MOD that guesses hidden tokens.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodForMaskedLM"
    module_class = XmodForMaskedLMModule

    def __call__(
        self,
        input_ids: Any = None,
        lang_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        *,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.__call__``, as for all but ``labels``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S) or (B, S, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            labels: (B, S) ids; -100 does not count.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.
            labelled_logits_only: Compute logits only where there is a label, see
                ``XLMWithLMHeadModel.__call__``.

        Raises:
            XlmfamError: See ``XmodModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            lang_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
            encoder_hidden_states,
            encoder_attention_mask,
            None,
            False,
        )
        labels = self._check_labels(labels, call)
        own = {"labels": labels, "labels_room": room_for(labels, labelled_logits_only)}
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng, **own)

    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, S) ids; see ``FillMaskMixin``."""
        call = self._prepare(input_ids, langs, attention_mask, None, None, None, None)
        hidden = self._method("encode", None, **call)[rows, columns]
        return np.asarray(jax.nn.softmax(self.project(hidden).astype(jnp.float32), -1))
