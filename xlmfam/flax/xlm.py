"""XLM in Flax (Conneau and Lample 2019, "Cross-lingual Language Model Pretraining").

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, D width, E source,
L layers, V vocabulary, N labels that count, R rows of a search, C their columns.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.flax.base import Params, as_arrays
from xlmfam.flax.cache import KeyValueCache
from xlmfam.flax.checks import room_for
from xlmfam.flax.generation import GenerationMixin, check_extra, is_traced, read_text
from xlmfam.flax.layers import text_positions
from xlmfam.flax.losses import IGNORED, labelled, mean_loss, shift_labels
from xlmfam.flax.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from xlmfam.flax.xlm_inputs import Prepared, languages
from xlmfam.flax.xlm_modules import XLMPredLayer
from xlmfam.flax.xlm_transformer import XLMModel, XLMModule, XLMPreTrainedModel, fill_dict

__all__ = ["XLMModel", "XLMPreTrainedModel", "XLMWithLMHeadModel"]


class XLMWithLMHeadModule(nn.Module):
    """XLM with the vocabulary projection, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build the transformer and the projection."""
        self.transformer = XLMModule(self.config, self.dtype, self.gradient_checkpointing)
        self.pred_layer = XLMPredLayer(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        labels: Array | None = None,
        logits_at: Any = None,
        labels_room: int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithCrossAttentions:
        """Run the module; ``XLMWithLMHeadModel.__call__`` checks and prepares what comes here.

        Args:
            input_ids: (B, S).
            labels: (B, S).
            logits_at: The one position whose logits are needed; ``None`` for all.
            labels_room: N, to compute the logits only where there is a label.
            **kwargs: As in ``XLMModule``.
        """
        output = self.transformer(input_ids, **kwargs)
        hidden = output.last_hidden_state
        if logits_at is not None:
            hidden = lax.dynamic_slice_in_dim(hidden, logits_at, 1, 1)
        targets = labels
        if labels is not None and self.config.is_causal:
            targets = shift_labels(labels)
        if labels_room is not None:
            hidden, targets = labelled(hidden, targets, labels_room)
        logits = self.project(hidden)
        return CausalLMOutputWithCrossAttentions(
            loss=None if targets is None else mean_loss(logits, targets),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )

    def encode(self, **kwargs: Any) -> Array:
        """Return the last hidden states (B, S, D); arguments as in ``XLMModule``."""
        return self.transformer(**kwargs).last_hidden_state

    def project(self, hidden: Array) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.pred_layer(hidden, self.transformer.embeddings.embedding)


def read_xlm(
    config: XLMConfig,
    ids: Array,
    mask: Array,
    last: Any,
    cached: bool,
    extra: dict[str, Array],
) -> dict[str, Any]:
    """Return the module's arguments for the scores of the next token; see ``read_text``.

    A masked model reads one mask token behind the text so far, a causal one the text.
    """
    extra = dict(extra)
    langs = extra.pop("langs", None)
    if not config.is_causal:
        last = last + 1
        if isinstance(last, int):  # the prompt, without a buffer behind it
            ids = jnp.pad(ids, ((0, 0), (0, 1)))
        ids = lax.dynamic_update_slice_in_dim(
            ids, jnp.full_like(ids[:, :1], config.mask_token_id), last, 1
        )
        mask = mask * (jnp.arange(mask.shape[1]) <= last)
    given = read_text(config, ids, mask, last, cached, extra)
    length = given["input_ids"].shape[1]
    if not cached:
        # Buffers may be longer than texts: what stands beyond is looked at by no token, but has
        # to be a number.
        positions = text_positions(given["attention_mask"], 0, length)
        given["position_ids"] = jnp.minimum(positions, config.max_position_embeddings - 1)
    if langs is not None:
        first = last if cached else 0
        given["langs"] = lax.dynamic_slice_in_dim(langs, first, length, 1)
    return given


class XLMWithLMHeadModel(XLMPreTrainedModel, GenerationMixin, FillMaskMixin):
    """XLM with the vocabulary projection, tied to the token embedding by default.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMWithLMHeadModel"
    module_class = XLMWithLMHeadModule
    generation_arguments = ("langs", "head_mask")
    read = staticmethod(read_xlm)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
        *,
        src_enc: Any = None,
        src_len: Any = None,
        src_mask: Any = None,
        last_logits_only: bool = False,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), see ``XLMModel.__call__``, as for the arguments up to ``cache``.
            langs: Languages by name or id: one, one per sample, or (B, T) ids.
            token_type_ids: (B, T).
            position_ids: (B, T).
            lengths: (B,).
            cache: A dict that is filled in place, or a ``KeyValueCache``.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            labels: (B, T) ids; -100 does not count. A masked model holds label i against the
                logits of position i, a causal one against those of position i - 1.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,).
            src_mask: (B, E).
            last_logits_only: Compute the logits of the last position only, (B, 1, V).
            labelled_logits_only: Compute logits only where there is a label, (N, V) in the order
                of the labels; the loss is the same. A number makes room for that many, so that
                shapes do not depend on values, as ``jax.jit`` needs it: rows beyond the labels
                mean nothing, and more labels than that raise, or where they cannot be counted
                make the loss NaN.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        call = self._prepare(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            head_mask,
            inputs_embeds,
            src_enc=src_enc,
            src_len=src_len,
            src_mask=src_mask,
        )
        labels = self._check_labels(labels, call, cache)
        if last_logits_only and labels is not None:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        output = self._apply(
            call,
            output_attentions,
            output_hidden_states,
            train,
            params,
            dropout_rng,
            labels=labels,
            labels_room=room_for(self._targets(labels), labelled_logits_only),
            logits_at=-1 if last_logits_only else None,
        )
        fill_dict(cache, output.past_key_values, call)
        if not isinstance(cache, KeyValueCache):
            output.past_key_values = None
        if self.config.is_encoder and output.past_key_values is None:
            output = MaskedLMOutput(
                loss=output.loss,
                logits=output.logits,
                hidden_states=output.hidden_states,
                attentions=output.attentions,
            )
        return self._finish(output, return_dict)

    def project(self, hidden: Any, params: Params | None = None) -> Array:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self._method("project", params, hidden=hidden)

    def _method(self, method: str, params: Params | None, **arguments: Any) -> Any:
        values = {"params": self.params if params is None else params}
        return self.module.apply(values, **arguments, method=method)

    def _check_labels(self, labels: Any, call: Prepared, cache: Any) -> Any:
        """Return (B, T) labels, checked."""
        if labels is None:
            return None
        labels = as_arrays(labels=labels)["labels"]
        check_shape("labels", labels, call.shape)
        self.check_ids("labels", labels * (labels != IGNORED))
        if isinstance(cache, KeyValueCache) or call.arguments["past_key_values"] is not None:
            raise XlmfamError("labels need the whole text at once: leave the filled cache out")
        return labels

    def _targets(self, labels: Any) -> Any:
        """Return the labels that count: the first one of a causal model is never predicted."""
        return labels[:, 1:] if labels is not None and self.config.is_causal else labels

    # ---- generation and filling in ------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:  # type: ignore[override]
        """Whether earlier tokens stay as they are when one is added."""
        return self.config.is_causal

    def prepare_generation(
        self, plan: Any, prompt: Any, mask: Any, extra: dict[str, Any]
    ) -> dict[str, Array]:
        """Check that there are positions enough; give every token to come its language.

        New tokens have the language of the last token of their prompt.
        """
        config, (batch, length) = self.config, prompt.shape
        padding = length if is_traced(mask) else length - int(np.asarray(mask).sum(-1).max())
        # The last token is not read again; a masked model reads one mask token instead.
        needed = plan.max_length - padding - int(config.is_causal)
        if needed > config.max_position_embeddings:
            raise ConfigError(
                f"max_length {plan.max_length} needs {needed} positions, "
                f"max_position_embeddings is {config.max_position_embeddings}"
            )
        langs = extra.get("langs")
        if langs is None:
            langs = config.lang_id if config.uses_languages else None
        langs = languages(config, langs, batch, length)
        arrays: dict[str, Array] = {}
        if langs is not None:
            langs = jnp.broadcast_to(jnp.asarray(langs, jnp.int32), (batch, length))
            arrays["langs"] = jnp.pad(langs, ((0, 0), (0, plan.new_tokens)), mode="edge")
        if extra.get("head_mask") is not None:
            arrays["head_mask"] = jnp.asarray(extra["head_mask"])
        check_extra(config, arrays, batch)
        return arrays

    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, T) ids; see ``FillMaskMixin``."""
        call = self._prepare(input_ids, attention_mask, langs, None, None, None, None, None, None)
        hidden = self._method("encode", None, **call.arguments)[rows, columns]
        return np.asarray(jax.nn.softmax(self.project(hidden).astype(jnp.float32), -1))
