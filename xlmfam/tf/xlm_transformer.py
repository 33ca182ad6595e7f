"""What every XLM class has as ``transformer`` in TensorFlow: embeddings and layers.

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, K head width,
D width, E source, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from xlmfam.common.checks import check_cache, check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.dict_cache import fill, filled, past_of
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import check_language_range, resolve_langs
from xlmfam.tf.attention import Tensor, causal_mask, padding_mask, sizes
from xlmfam.tf.cache import DictCache, KeyValueCache, LayerCache, empty_cache
from xlmfam.tf.checks import check_ids, check_range, is_cheap, least_and_most
from xlmfam.tf.layers import (
    Dropper,
    Embedding,
    LayerNorm,
    TableLayer,
    hold_padding,
    random_seed,
    recomputed,
    text_positions,
)
from xlmfam.tf.outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions
from xlmfam.tf.xlm_modules import XLMAttention, XLMFeedForward

Past = KeyValueCache | DictCache | dict[Any, Any]


class Span(NamedTuple):
    """Where the new tokens stand; sizes are numbers where known, else tensors.

    Attributes:
        start: Number of tokens before.
        new: S.
        total: Both together.
        keys: T, keys to attend to: with a ``KeyValueCache`` all its room.
        known: Columns of the inputs that come before the new ones: a dict's are the whole text.
    """

    start: Any
    new: Any
    total: Any
    keys: Any
    known: int = 0

    def newest(self, values: Tensor) -> Tensor:
        """Return the columns of an input that are new."""
        return values[:, self.known :] if self.known else values


class XLMTransformer(TableLayer):
    """An encoder, a causal model, or a decoder that looks at a source.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XLMConfig, **kwargs: Any):
        super().__init__(**kwargs)
        self.config = config
        self.gradient_checkpointing = False
        self.seeds = keras.random.SeedGenerator()
        self.position_embeddings = self._embedding("position_embeddings")
        if config.uses_languages:
            self.lang_embeddings = self._embedding("lang_embeddings")
        self.embeddings = self._embedding("embeddings")
        self.layer_norm_emb = self._norm("layer_norm_emb")
        layers, policy = range(config.n_layers), self.dtype_policy
        self.attentions = [XLMAttention(config, dtype=policy, name=f"attn_{i}") for i in layers]
        self.layer_norm1 = [self._norm(f"norm1_{index}") for index in layers]
        self.ffns = [XLMFeedForward(config, dtype=policy, name=f"ffn_{i}") for i in layers]
        self.layer_norm2 = [self._norm(f"norm2_{index}") for index in layers]
        if not config.is_encoder:
            self.layer_norm15 = [self._norm(f"norm15_{index}") for index in layers]
            self.encoder_attn = [
                XLMAttention(config, dtype=policy, name=f"cross_{index}") for index in layers
            ]

    def _embedding(self, name: str) -> Embedding:
        return Embedding(dtype=self.dtype_policy, name=name)

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.config.layer_norm_eps, dtype=self.dtype_policy, name=name)

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens.

        Raises:
            XlmfamError: After pruning, which leaves layers with caches of different shapes.
        """
        config = self.config
        if any(config.pruned_heads.values()):
            raise XlmfamError('a pruned model needs a dict as its cache, {"slen": 0}')
        head_width = config.emb_dim // config.n_heads
        return empty_cache(
            config.n_layers, batch_size, config.n_heads, max_length, head_width, self.compute_dtype
        )

    def dropper(self, training: bool | None) -> Dropper:
        """Return the dropouts of one call, which drop nothing outside of training."""
        return Dropper(random_seed(self.seeds) if training else None)

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
        src_enc: Tensor | None = None,
        src_len: Tensor | None = None,
        src_mask: Tensor | None = None,
        training: bool | None = None,
    ) -> BaseModelOutput | BaseModelOutputWithPastAndCrossAttentions:
        """Run the model; see ``XLMModel.call``."""
        config, dropper = self.config, self.dropper(training)
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        span, valid = self._check(
            input_ids, inputs_embeds, attention_mask, lengths, token_type_ids, cache
        )
        positions = self._positions(position_ids, valid, span, input_ids, inputs_embeds)
        hidden = self._embed(input_ids, inputs_embeds, langs, token_type_ids, positions, span)
        hidden = dropper.drop(self.layer_norm_emb(hidden), config.dropout)
        keep = None if valid is None else _columns(valid, span, cache)[..., None]
        if keep is not None:
            keep = tf.cast(keep, hidden.dtype)
            hidden = hidden * keep
        allowed = self._allowed(valid, span, cache)
        head_masks = self._head_masks(head_mask)
        source_mask = self._source_mask(src_enc, src_len, src_mask, hidden.shape[0])

        states, attentions, crossed, presents = [hidden], [], [], []
        for index in range(config.n_layers):
            hidden, weights, cross_weights, present = self._run_layer(
                index,
                hidden,
                src_enc,
                keep=keep,
                allowed=allowed,
                past=_layer_past(cache, index, config),
                source_mask=source_mask,
                head_mask=head_masks[index],
                need_weights=output_attentions,
                need_keys=cache is not None,
                seed=dropper.inner().seed,
            )
            states.append(hidden)
            attentions.append(weights)
            crossed.append(cross_weights)
            presents.append(present)

        if isinstance(cache, DictCache):
            fill(cache.values, presents, span.total)
        fields = {
            "last_hidden_state": hidden,
            "hidden_states": tuple(states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }
        buffers = cache if isinstance(cache, KeyValueCache) else None
        if config.is_encoder and buffers is None:
            return BaseModelOutput(**fields)
        return BaseModelOutputWithPastAndCrossAttentions(
            **fields,
            past_key_values=None if buffers is None else buffers.after(presents, span.new),
            cross_attentions=tuple(crossed) if output_attentions and src_enc is not None else None,
        )

    # ---- inputs -------------------------------------------------------------------------

    def _check(self, input_ids, inputs_embeds, attention_mask, lengths, token_type_ids, cache):
        """Check the inputs; return their span and the (B, T) mask of what is no padding."""
        check_inputs(input_ids, inputs_embeds, self.config.emb_dim)
        check_ids("input_ids", input_ids, self.config.vocab_size)
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        batch, width = given.shape[:2]
        check_shape("token_type_ids", token_type_ids, (batch, width))
        check_ids("token_type_ids", token_type_ids, self.config.vocab_size)
        span = self._span(cache, batch, width, sizes(given)[1])
        valid = self._valid(attention_mask, lengths, input_ids, cache, batch, span)
        return span, valid

    def _span(self, cache: Past | None, batch: int | None, known: int | None, width: Any) -> Span:
        """Return where the new tokens stand; ``known`` is ``width`` where that is a number."""
        if cache is None:
            return Span(0, width, width, width)
        if isinstance(cache, KeyValueCache):
            start, room = cache.length, cache.max_length
            if is_cheap(start):
                start = int(start)
            tokens = known
            if isinstance(start, int) and known is not None:
                tokens = start + known
            check_cache(cache.keys[0].shape[0], batch, room, tokens)
            return Span(start, width, start + width, room)
        if known is None:
            raise XlmfamError(
                "a dict as cache needs a text whose length is known when it is traced; a "
                "KeyValueCache does without"
            )
        values = cache.values if isinstance(cache, DictCache) else cache
        start = filled(values, self.config, batch, known)
        return Span(start, known - start, known, known, start)

    def _valid(self, attention_mask, lengths, input_ids, cache, batch, span) -> Tensor | None:
        """Return (B, T), false for padding, or ``None`` where nothing is known to be padded."""
        total, room = _known(span.total), _known(span.keys)
        if attention_mask is not None:
            check_shape("attention_mask", attention_mask, (batch, total), (batch, room))
            valid = tf.cast(attention_mask, tf.bool)
        elif lengths is not None:
            check_shape("lengths", lengths, (batch,))
            if total is not None:
                check_range("lengths", lengths, 0, total)
            valid = tf.range(span.keys) < tf.cast(lengths, tf.int32)[:, None]
            valid = valid[:, :total] if isinstance(cache, KeyValueCache) else valid
        elif input_ids is None or isinstance(cache, KeyValueCache):
            return None
        else:
            valid = self._tokens(input_ids)
        if is_cheap(valid) and bool(tf.reduce_all(valid[:, :total])):
            return None
        if isinstance(cache, KeyValueCache) and valid.shape[1] != room:
            valid = tf.pad(valid, [[0, 0], [0, room - sizes(valid)[1]]])
        return valid

    def _tokens(self, input_ids: Tensor) -> Tensor:
        """Return (B, T): as many tokens as there are ids that are no padding.

        They stand at the front, or in a causal model behind the padding that a row begins with.
        """
        is_token = tf.cast(input_ids != self.config.pad_index, tf.int32)
        first = tf.zeros_like(is_token[:, 0])
        if self.config.is_causal:
            first = tf.argmax(is_token, -1, output_type=tf.int32)
        last = first + tf.reduce_sum(is_token, -1)
        places = tf.range(sizes(input_ids)[1])
        return (places >= first[:, None]) & (places < last[:, None])

    def _positions(self, position_ids, valid, span: Span, input_ids, inputs_embeds) -> Tensor:
        """Return the (B or 1, S) positions of what is new."""
        most, total = self.config.max_position_embeddings, _known(span.total)
        if position_ids is not None:
            given = input_ids if inputs_embeds is None else inputs_embeds
            batch, width = given.shape[:2]
            check_shape("position_ids", position_ids, (batch, width), (1, width), (width,))
            check_range("position_ids", position_ids, 0, most - 1)
            return span.newest(tf.reshape(position_ids, [-1, sizes(given)[1]]))
        counted = valid if self.config.is_causal else None
        if counted is None and total is not None and total > most:
            raise XlmfamError(f"the text has {total} tokens, max_position_embeddings is {most}")
        positions = text_positions(counted, span.start, span.new)
        if counted is not None:
            check_range("position_ids", positions, 0, most - 1)
        return positions

    def _embed(self, input_ids, inputs_embeds, langs, token_type_ids, positions, span) -> Tensor:
        """Return the sum (B, S, D) of what embeds the new tokens."""
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, width = given.shape[:2]
        if inputs_embeds is None:
            hidden = self._words(span.newest(input_ids))
        else:
            hidden = tf.cast(span.newest(inputs_embeds), self.compute_dtype)
        hidden = hidden + self.position_embeddings(positions)
        languages = self.languages(langs, batch, width)
        if languages is not None:
            # A single column stands for all of them.
            part = languages if languages.shape[1] == 1 else span.newest(languages)
            hidden = hidden + self.lang_embeddings(part)
        if token_type_ids is not None:
            hidden = hidden + self._words(span.newest(token_type_ids))
        return hidden

    def _words(self, token_ids: Tensor) -> Tensor:
        return hold_padding(self.embeddings(token_ids), token_ids, self.config.pad_index)

    def languages(self, langs: Any, batch: int | None, width: int | None) -> Tensor | None:
        """Return (B or 1, width or 1) ids of languages, or ``None`` where they have no use."""
        langs = resolve_langs(self.config, langs)
        if langs is None or not self.config.uses_languages:
            return None
        langs = tf.convert_to_tensor(langs)
        if not langs.dtype.is_integer:
            raise XlmfamError(f"langs must hold names or ids, got {langs.dtype.name}")
        check_shape("langs", langs, *((b, s) for b in (batch, 1) for s in (width, 1)))
        if is_cheap(langs):
            check_language_range(self.config, *least_and_most(langs))
        return langs

    def _allowed(self, valid: Tensor | None, span: Span, cache: Any) -> Tensor | None:
        """Return what each token sees, ``None`` for everything."""
        if not self.config.is_causal:
            return padding_mask(valid)
        # One token alone has no future, unless a buffer has unwritten keys.
        if valid is None and _known(span.new) == 1 and not isinstance(cache, KeyValueCache):
            return None
        return causal_mask(valid, span.start, span.new, span.keys)

    def _head_masks(self, head_mask: Tensor | None) -> list[Any]:
        """Return one mask of the heads that are left, per layer, from an (L, H) or (H,) one."""
        config = self.config
        layers, heads = config.n_layers, config.n_heads
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        if head_mask is None:
            return [None] * layers
        rows = tf.unstack(tf.broadcast_to(head_mask, [layers, heads]))
        return [tf.gather(row, config.kept_heads(layer)) for layer, row in enumerate(rows)]

    def _source_mask(self, src_enc, src_len, src_mask, batch) -> Tensor | None:
        if src_enc is None:
            return None
        if self.config.is_encoder:
            raise XlmfamError("src_enc needs a decoder: set is_encoder=False in the config")
        check_shape("src_enc", src_enc, (batch, None, self.config.emb_dim))
        width = src_enc.shape[1]
        check_shape("src_mask", src_mask, (batch, width))
        check_shape("src_len", src_len, (batch,))
        if src_mask is None and src_len is not None:
            if width is not None:
                check_range("src_len", src_len, 0, width)
            src_mask = tf.range(sizes(src_enc)[1]) < tf.cast(src_len, tf.int32)[:, None]
        return padding_mask(src_mask)

    # ---- layers -------------------------------------------------------------------------

    def _run_layer(self, index: int, hidden: Tensor, source: Tensor | None, **others: Any):
        def layer(hidden, source):
            return self._layer(index, hidden, source, **others)

        if self.gradient_checkpointing and others["seed"] is not None:
            return recomputed(layer, hidden, source)
        return layer(hidden, source)

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        source: Tensor | None,
        *,
        keep: Tensor | None,
        allowed: Tensor | None,
        past: LayerCache | tuple[Tensor, ...] | None,
        source_mask: Tensor | None,
        head_mask: Tensor | None,
        need_weights: bool,
        need_keys: bool,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...] | None]:
        """Run one post-norm layer: attention, attention over a source, feed-forward.

        Returns:
            Hidden states (B, S, D), zero at padding; weights (B, H, S, T) or ``None``; weights
            over the source (B, H, S, E) or ``None``; keys and values, the source's behind the
            own, or ``None``.
        """
        dropper, rate = Dropper(seed), self.config.dropout
        own = past if past is None or isinstance(past, LayerCache) else past[:2]
        mixed, weights, present = self.attentions[index](
            hidden, allowed, own, head_mask, dropper.inner()
        )
        hidden = self.layer_norm1[index](hidden + dropper.drop(mixed, rate))
        cross_weights = None
        if source is not None:
            attention = self.encoder_attn[index]
            keys = _source_keys(attention, source, past)
            mixed, cross_weights = attention.over(
                hidden, keys, source_mask, dropper=dropper.inner()
            )
            hidden = self.layer_norm15[index](hidden + dropper.drop(mixed, rate))
            present = (*present, *keys)
        inner = dropper.drop(self.ffns[index](hidden), rate)
        hidden = self.layer_norm2[index](hidden + inner)
        hidden = hidden if keep is None else hidden * keep
        # What nobody asked for is not handed on, so that its memory is free again.
        if not need_weights:
            weights = cross_weights = None
        return hidden, weights, cross_weights, present if need_keys else None


def _layer_past(cache: Past | None, index: int, config: XLMConfig) -> Any:
    if isinstance(cache, KeyValueCache):
        return cache.layer(index)
    past = past_of(cache.values, config) if isinstance(cache, DictCache) else None
    return None if past is None else past[index]


def _source_keys(attention: XLMAttention, source: Tensor, past: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a source: those kept from an earlier step, or projected now."""
    if isinstance(past, LayerCache):
        known = past.cross
    else:
        known = () if past is None else past[2:]
    return known or attention.project_source(source)


def _columns(valid: Tensor, span: Span, cache: Past | None) -> Tensor:
    """Return the columns (B, S) of (B, T) that are about what is new."""
    if not isinstance(cache, KeyValueCache):
        return span.newest(valid)
    return tf.gather(valid, span.start + tf.range(span.new), axis=1)


def _known(size: Any) -> int | None:
    """Return a size that is a number, ``None`` for one that only running tells."""
    return None if tf.is_tensor(size) else size
