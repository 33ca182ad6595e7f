"""XLM without a head in Flax: its linen module, and the class to call.

What is checked before the module runs stands in ``xlm_inputs``.

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, K head width,
D width, E source, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array, lax

from xlmfam.common.configs import XLMConfig
from xlmfam.common.dict_cache import fill
from xlmfam.common.errors import XlmfamError
from xlmfam.common.parameters import partition
from xlmfam.flax.attention import causal_mask, padding_mask
from xlmfam.flax.base import Params, PreTrainedModel
from xlmfam.flax.cache import KeyValueCache, LayerCache, past_length
from xlmfam.flax.layers import Numbered, hold_padding, text_positions
from xlmfam.flax.outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from xlmfam.flax.xlm_inputs import Prepared, prepare
from xlmfam.flax.xlm_modules import XLMAttention, XLMFeedForward, norm

Past = KeyValueCache | tuple[tuple[Array, ...], ...]


class XLMModule(nn.Module):
    """XLM without a head, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XLMConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build embeddings and layers; those of one kind stand in a list of their own."""
        config, dtype, count = self.config, self.dtype, self.config.n_layers
        self.position_embeddings = self._embedding(config.max_position_embeddings)
        if config.uses_languages:
            self.lang_embeddings = self._embedding(config.n_langs)
        self.embeddings = self._embedding(config.vocab_size)
        self.layer_norm_emb = norm(config, dtype)
        self.attentions = Numbered(
            lambda layer: XLMAttention(config, len(config.kept_heads(layer)), dtype), count
        )
        self.layer_norm1 = Numbered(lambda _: norm(config, dtype), count)
        self.ffns = Numbered(lambda _: XLMFeedForward(config, dtype), count)
        self.layer_norm2 = Numbered(lambda _: norm(config, dtype), count)
        if not config.is_encoder:
            self.layer_norm15 = Numbered(lambda _: norm(config, dtype), count)
            self.encoder_attn = Numbered(
                lambda _: XLMAttention(config, config.n_heads, dtype), count
            )
        self.drop = nn.Dropout(config.dropout)

    def _embedding(self, rows: int) -> nn.Embed:
        init = nn.initializers.normal(self.config.embed_init_std)
        return nn.Embed(rows, self.config.emb_dim, dtype=self.dtype, embedding_init=init)

    def __call__(
        self,
        input_ids: Array | None = None,
        attention_mask: Array | None = None,
        langs: Array | None = None,
        token_type_ids: Array | None = None,
        position_ids: Array | None = None,
        past_key_values: Past | None = None,
        head_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        src_enc: Array | None = None,
        src_mask: Array | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the module; ``XLMModel.__call__`` checks and prepares what comes here.

        Args:
            input_ids: (B, S), what is new.
            attention_mask: (B, T), of the whole text; ``None`` where nothing is padded.
            langs: (B or 1, S or 1) ids.
            token_type_ids: (B, S).
            position_ids: (B or 1, S).
            past_key_values: Keys and values before.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            src_enc: (B, E, D).
            src_mask: (B, E).
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            deterministic: Drop nothing.
        """
        start = past_length(past_key_values)
        hidden = self._embed(
            input_ids, inputs_embeds, attention_mask, langs, token_type_ids, position_ids, start
        )
        keep = self._keep(attention_mask, start, hidden.shape[1])
        hidden = _erase(self.drop(self.layer_norm_emb(hidden), deterministic), keep)
        source_mask = None
        if src_enc is not None:
            src_enc, source_mask = jnp.asarray(src_enc, self.dtype), padding_mask(src_mask)
        layer = XLMModule._layer
        if self.gradient_checkpointing and not deterministic:
            layer = nn.remat(layer, static_argnums=LAYER_FLAGS)
        mask = self._mask(attention_mask, past_key_values, start, hidden.shape[1])
        states, attentions, cross_attentions, presents = [hidden], [], [], []
        for index in range(self.config.n_layers):
            hidden, weights, cross_weights, present = layer(
                self,
                index,
                hidden,
                keep,
                mask,
                _layer_past(past_key_values, index),
                src_enc,
                source_mask,
                self._head_mask(head_mask, index),
                output_attentions,
                deterministic,
            )
            states.append(hidden)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            cache = past_key_values.advance(presents, hidden.shape[1])
        crossed = output_attentions and src_enc is not None
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if crossed else None,
        )

    def _embed(
        self, input_ids, inputs_embeds, attention_mask, langs, token_type_ids, position_ids, start
    ) -> Array:
        """Return the sum (B, S, D) of the embeddings of tokens, positions and languages."""
        config = self.config
        if inputs_embeds is None:
            hidden = self._words(input_ids)
        else:
            hidden = jnp.asarray(inputs_embeds, self.dtype)
        if position_ids is None:
            counted = attention_mask if config.is_causal else None
            position_ids = text_positions(counted, start, hidden.shape[1])
        positions = self.position_embeddings(position_ids)
        if config.sinusoidal_embeddings:
            positions = lax.stop_gradient(positions)
        hidden = hidden + positions
        if langs is not None and config.uses_languages:
            hidden = hidden + self.lang_embeddings(langs)
        if token_type_ids is not None:
            hidden = hidden + self._words(token_type_ids)
        return hidden

    def _words(self, token_ids: Array) -> Array:
        return hold_padding(self.embeddings(token_ids), token_ids, self.config.pad_index)

    def _keep(self, attention_mask: Array | None, start: int | Array, length: int) -> Array | None:
        """Return (B, S, 1), zero for padding among what is new."""
        if attention_mask is None:
            return None
        valid = jnp.asarray(attention_mask) != 0
        return lax.dynamic_slice_in_dim(valid, start, length, 1)[..., None].astype(self.dtype)

    def _mask(self, attention_mask, past_key_values, start, length) -> Array | None:
        """Return which keys each token may see."""
        if not self.config.is_causal:
            return padding_mask(attention_mask)
        keys: Any = start + length
        if isinstance(past_key_values, KeyValueCache):
            keys = past_key_values.max_length
        return causal_mask(attention_mask, start, length, keys)

    def _head_mask(self, head_mask: Array | None, index: int) -> Array | None:
        """Return one layer's (H,) of an (L, H) or (H,) mask, of the heads that are left."""
        if head_mask is None:
            return None
        config = self.config
        every = jnp.broadcast_to(jnp.asarray(head_mask), (config.n_layers, config.n_heads))
        return every[index][jnp.asarray(config.kept_heads(index))]

    def _layer(
        self,
        index: int,
        hidden: Array,
        keep: Array | None,
        mask: Array | None,
        past: LayerCache | tuple[Array, ...] | None,
        source: Array | None,
        source_mask: Array | None,
        head_mask: Array | None,
        need_weights: bool,
        deterministic: bool,
    ) -> tuple[Array, Array | None, Array | None, tuple[Array, ...]]:
        """Run one post-norm layer: attention, attention over a source, feed-forward.

        Returns:
            Hidden states (B, S, D), zero at padding; weights (B, H, S, T) or ``None``; weights
            over the source (B, H, S, E) or ``None``; keys and values, the source's behind the own.
        """
        present: tuple[Array, ...]
        mixed, weights, present = self.attentions[index](
            hidden, mask, past, head_mask, need_weights, deterministic
        )
        hidden = self.layer_norm1[index](hidden + self.drop(mixed, deterministic))
        cross_weights = None
        if source is not None:
            attention = self.encoder_attn[index]
            kept = past.cross if isinstance(past, LayerCache) else (past or ())[2:]
            keys = (kept[0], kept[1]) if kept else attention.project_source(source)
            mixed, cross_weights = attention.over_source(
                hidden, keys, source_mask, need_weights, deterministic
            )
            hidden = self.layer_norm15[index](hidden + self.drop(mixed, deterministic))
            present = (*present, *keys)
        hidden = self.layer_norm2[index](hidden + self.ffns[index](hidden, deterministic))
        return _erase(hidden, keep), weights, cross_weights, present


# Places of a layer's arguments that are no arrays, for ``nn.remat``; ``self`` is 0.
LAYER_FLAGS = (1, 9, 10)


def _erase(hidden: Array, keep: Array | None) -> Array:
    return hidden if keep is None else hidden * keep


def _layer_past(past_key_values: Past | None, index: int) -> Any:
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.layer(index)
    return None if past_key_values is None else past_key_values[index]


class XLMPreTrainedModel(PreTrainedModel):
    """What the XLM classes share."""

    config_class = XLMConfig
    base_model_prefix = "transformer"
    config: XLMConfig

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens.

        Raises:
            XlmfamError: After pruning, which leaves layers with caches of different shapes.
        """
        config = self.config
        if any(config.pruned_heads.values()):
            raise XlmfamError('a pruned model needs a dict as its cache, {"slen": 0}')
        width = config.emb_dim // config.n_heads
        return KeyValueCache.empty(
            config.n_layers, batch_size, config.n_heads, max_length, width, self.dtype
        )

    def prune_heads(
        self, heads_to_prune: Mapping[int, Sequence[int]], params: Params | None = None
    ) -> Params:
        """Take attention heads out; ``config.pruned_heads`` remembers them.

        Args:
            heads_to_prune: Numbers of heads by layer, as they were before any pruning.
            params: Of a model that keeps none.

        Returns:
            The new parameters; the model's own are replaced by them where it keeps them.

        Raises:
            ConfigError: When there is no such layer or head, or a layer would have none left.
        """
        values = flatten_dict(self.params if params is None else params)
        old = self.expected_parameters()
        before = [self.config.kept_heads(layer) for layer in range(self.config.n_layers)]
        self.config.prune(heads_to_prune)
        for path, parameter in self.paths().items():
            if parameter.shape == old[parameter.name].shape:
                continue
            layer = next(int(part) for part in path if part.isdigit())
            kept = np.flatnonzero(np.isin(before[layer], self.config.kept_heads(layer)))
            value = values[path]
            axis = partition(parameter, "flax", {"heads": "heads"}).index("heads")
            shape = value.shape
            split = (*shape[:axis], len(before[layer]), -1, *shape[axis + 1 :])
            chosen = jnp.take(value.reshape(split), kept, axis)
            values[path] = chosen.reshape(*shape[:axis], -1, *shape[axis + 1 :])
        # A module of its own: what was compiled for other heads is not to be met again.
        self.module = self.module.clone()
        pruned = unflatten_dict(values)
        if params is None:
            self._params = pruned
        return pruned

    def _prepare(self, *arguments: Any, **source: Any) -> Prepared:
        """Check a call; arguments as in ``prepare``."""
        return prepare(self.config, self.check_ids, *arguments, **source)

    def _apply(
        self,
        call: Prepared,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        train: bool,
        params: Params | None,
        dropout_rng: Array | None,
        method: str | None = None,
        **own: Any,
    ) -> Any:
        """Run the module (or a method of it) on a checked call, with a head's ``own`` arguments."""
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return self.module.apply(
            {"params": self.params if params is None else params},
            **call.arguments,
            **own,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=not train,
            rngs=self._rngs(train, dropout_rng),
            method=method,
        )

    def _dropout_rates(self) -> tuple[float, ...]:
        """Return the probabilities of everything that drops out."""
        return (self.config.dropout, self.config.attention_dropout)

    def _rngs(self, train: bool, dropout_rng: Array | None) -> dict[str, Array] | None:
        if not train or not any(self._dropout_rates()):
            return None
        if dropout_rng is None:
            raise XlmfamError("train=True needs dropout_rng=..., a key that draws what is dropped")
        return {"dropout": dropout_rng}

    def _finish(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class XLMModel(XLMPreTrainedModel):
    """XLM without a head: an encoder, a causal model, or a decoder that looks at a source.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMModel"
    module_class = XLMModule

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
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), 1 for tokens and 0 for padding.
            langs: Languages by name or id: one, one per sample, or (B, T) ids.
            token_type_ids: (B, T) ids whose *word* embeddings are added.
            position_ids: (B, T); by default 0, 1, ... and, in a causal model, counted from each
                row's first token.
            lengths: (B,) tokens of each row, instead of ``attention_mask``. With neither, a row
                has as many as it has ids that are no padding.
            cache: A dict that is filled in place, see ``xlmfam.common.dict_cache``; its ``slen``
                is a Python integer inside ``jax.jit`` too. Or a ``KeyValueCache``, with which the
                other inputs are (B, S), only what is new, but for ``attention_mask``, which
                covers it all; the next one is the output's ``past_key_values``.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,) lengths of the sources.
            src_mask: (B, E) instead of ``src_len``.

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
        output = self._apply(
            call, output_attentions, output_hidden_states, train, params, dropout_rng
        )
        fill_dict(cache, output.past_key_values, call)
        if not isinstance(cache, KeyValueCache):
            output.past_key_values = None
        if self.config.is_encoder and output.past_key_values is None:
            output = BaseModelOutput(
                last_hidden_state=output.last_hidden_state,
                hidden_states=output.hidden_states,
                attentions=output.attentions,
            )
        return self._finish(output, return_dict)


def fill_dict(cache: Any, presents: Any, call: Prepared) -> None:
    """Put keys and values into the caller's cache, if it is a dict."""
    if isinstance(cache, dict):
        fill(cache, presents, call.end)
