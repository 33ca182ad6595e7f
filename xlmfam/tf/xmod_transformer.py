"""What every X-MOD class has as ``roberta`` in TensorFlow: embeddings, layers, pooling layer.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from xlmfam.common.checks import check_cache, check_encoder, check_inputs, check_past, check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import (
    check_language_range,
    known_languages,
    language_id,
    resolve_langs,
)
from xlmfam.common.logging import get_logger
from xlmfam.common.parameters import Parameter
from xlmfam.tf.attention import Tensor, causal_mask, padding_mask, sizes
from xlmfam.tf.base import PreTrainedModel, as_array
from xlmfam.tf.cache import KeyValueCache, empty_cache, past_length
from xlmfam.tf.checks import check_ids, check_range, is_cheap, least_and_most
from xlmfam.tf.layers import (
    Dropper,
    Embedding,
    LayerNorm,
    Linear,
    TableLayer,
    random_seed,
    recomputed,
)
from xlmfam.tf.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from xlmfam.tf.xmod_languages import Languages, assign_languages
from xlmfam.tf.xmod_modules import XmodEmbeddings, XmodLayer

logger = get_logger(__name__)

Past = KeyValueCache | tuple[tuple[Tensor, ...], ...]


class Span(NamedTuple):
    """Where the new tokens stand; sizes are numbers where known, else tensors.

    Attributes:
        start: Number of tokens before.
        new: S.
        total: T, both together.
        keys: Keys to attend to: T, or with a ``KeyValueCache`` all its room.
    """

    start: Any
    new: Any
    total: Any
    keys: Any


class XmodPooler(TableLayer):
    """The first position, through a dense layer.

    Args:
        **kwargs: Of the layer.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.dense = Linear(dtype=self.dtype_policy, name="dense")

    def call(self, hidden: Tensor) -> Tensor:
        """Return (B, D) of (B, S, D)."""
        return tf.tanh(self.dense(hidden[:, 0]))


class XmodEncoder(TableLayer):
    """The layers, and a norm behind them where norms stand first.

    Args:
        config: The config.
        **kwargs: Of the layer.
    """

    def __init__(self, config: XmodConfig, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.layer = [
            XmodLayer(config, dtype=policy, name=f"layer_{index}")
            for index in range(config.num_hidden_layers)
        ]
        if config.pre_norm:
            self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype=policy, name="LayerNorm")


class XmodTransformer(TableLayer):
    """An encoder, or a decoder where ``config.is_decoder``.

    Args:
        config: The config.
        add_pooling_layer: Have a pooling layer.
        **kwargs: Of the layer.
    """

    pooler: Any = None

    def __init__(self, config: XmodConfig, add_pooling_layer: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        policy = self.dtype_policy
        self.config = config
        self.gradient_checkpointing = False
        self.seeds = keras.random.SeedGenerator()
        self.embeddings = XmodEmbeddings(config, dtype=policy, name="embeddings")
        self.encoder = XmodEncoder(config, dtype=policy, name="encoder")
        if add_pooling_layer:
            self.pooler = XmodPooler(dtype=policy, name="pooler")

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        heads = config.num_attention_heads
        return empty_cache(
            config.num_hidden_layers,
            batch_size,
            heads,
            max_length,
            config.hidden_size // heads,
            self.compute_dtype,
        )

    def dropper(self, training: bool | None) -> Dropper:
        """Return the dropouts of one call, which drop nothing outside of training."""
        return Dropper(random_seed(self.seeds) if training else None)

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
        training: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run the model; see ``XmodModel.call``."""
        config, dropper = self.config, self.dropper(training)
        use_cache = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        check_inputs(input_ids, inputs_embeds, config.hidden_size)
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        span = self._span(past_key_values, given)
        allowed = self._allowed(attention_mask, given, span, past_key_values)
        before = _tokens_before(attention_mask, span)
        hidden = self._embed(
            input_ids, inputs_embeds, token_type_ids, position_ids, span, before, dropper.inner()
        )
        if encoder_hidden_states is not None and not config.is_decoder:
            logger.warning("encoder_hidden_states is not used: this model is no decoder")
            encoder_hidden_states = encoder_attention_mask = None
        encoder_mask = self._encoder_mask(encoder_hidden_states, encoder_attention_mask, given)
        languages = self.languages(lang_ids, given)
        head_masks = self._head_masks(head_mask)

        states: list[Tensor] = []
        attentions: list[Tensor] = []
        cross_attentions: list[Tensor] = []
        presents: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.encoder.layer):
            states.append(hidden)
            hidden, weights, cross_weights, present = self._run_layer(
                layer,
                hidden,
                languages,
                allowed,
                _layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                head_masks[index],
                dropper.inner().seed,
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        if config.pre_norm:
            hidden = self.encoder.LayerNorm(hidden)
        states.append(hidden)

        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            cache = past_key_values.after(presents, span.new)
        crossed = output_attentions and config.add_cross_attention
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden,
            pooler_output=None if self.pooler is None else self.pooler(hidden),
            hidden_states=tuple(states) if output_hidden_states else None,
            past_key_values=cache,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(w for w in cross_attentions if w is not None)
            if crossed
            else None,
        )

    # ---- inputs -------------------------------------------------------------------------

    def _span(self, past: Past | None, given: Any) -> Span:
        """Check the past; return where the new tokens stand."""
        config, (batch, known) = self.config, given.shape[:2]
        start, new = past_length(past), sizes(given)[1]
        if past is None:
            return Span(0, new, new, new)
        if not config.is_decoder:
            raise XlmfamError("past_key_values needs a decoder: set is_decoder=True in the config")
        if not isinstance(past, KeyValueCache):
            heads = config.num_attention_heads
            shape = (batch, heads, None, config.hidden_size // heads)
            check_past(past, config.num_hidden_layers, *shape)
            return Span(start, new, start + new, start + new)
        if is_cheap(start):
            start = int(start)
        tokens = start + known if isinstance(start, int) and known is not None else None
        check_cache(past.keys[0].shape[0], batch, past.max_length, tokens)
        return Span(start, new, start + new, past.max_length)

    def _embed(
        self, input_ids, inputs_embeds, token_type_ids, position_ids, span, before, dropper
    ) -> Tensor:
        """Check the inputs and embed them, (B, S, D)."""
        config = self.config
        check_ids("input_ids", input_ids, config.vocab_size)
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, known = given.shape[:2]
        rows = (batch, known), (1, known), (known,)
        check_shape("token_type_ids", token_type_ids, *rows)
        check_shape("position_ids", position_ids, *rows)
        total, most = _known(span.total), config.max_position_embeddings
        if config.position_embedding_type == "absolute":
            if position_ids is None:
                position_ids = self._positions(input_ids, before, span.new)
            check_range("position_ids", position_ids, 0, most - 1)
        elif total is not None and total > most and (position_ids is None or is_cheap(given)):
            raise XlmfamError(f"the text has {total} tokens, max_position_embeddings is {most}")
        if token_type_ids is None:
            token_type_ids = tf.zeros([1, span.new], tf.int32)
        check_range("token_type_ids", token_type_ids, 0, config.type_vocab_size - 1)
        if inputs_embeds is None:
            vectors = self.embeddings.words(input_ids)
        else:
            vectors = tf.cast(inputs_embeds, self.compute_dtype)
        if position_ids is not None:
            position_ids = tf.reshape(position_ids, [-1, span.new])
        token_type_ids = tf.reshape(token_type_ids, [-1, span.new])
        return self.embeddings(vectors, token_type_ids, position_ids, dropper)

    def _positions(self, input_ids: Tensor | None, before: Any, new: Any) -> Tensor:
        """Return (B or 1, S) positions, counted over what is no padding."""
        pad = self.config.pad_token_id
        if input_ids is None:
            return tf.range(new)[None] + before + pad + 1
        is_token = tf.cast(input_ids != pad, tf.int32)
        return (tf.cumsum(is_token, -1) + before) * is_token + pad

    def languages(self, lang_ids: Any, given: Any) -> Languages:
        """Return which adapters a batch goes through.

        Args:
            lang_ids: See ``XmodModel.call``; or what is returned here.
            given: (B, S) ids or (B, S, D).
        """
        if isinstance(lang_ids, Languages):
            return lang_ids
        config = self.config
        if lang_ids is None:
            return Languages((self.default_language(),))
        ids = tf.convert_to_tensor(resolve_langs(config, lang_ids))
        if not ids.dtype.is_integer:
            raise XlmfamError(f"lang_ids must hold codes or numbers, got {ids.dtype.name}")
        batch, length = given.shape[:2]
        check_shape("lang_ids", ids, *((b, s) for b in (batch, 1) for s in (length, 1)))
        if is_cheap(ids):
            check_language_range(config, *least_and_most(ids), "lang_ids")
        return assign_languages(ids, config.languages, *sizes(given)[:2])

    def default_language(self) -> str:
        """Return the code of the language of inputs that do not say theirs.

        Raises:
            XlmfamError: Where there is none, saying what to do.
        """
        config = self.config
        if config.default_language is None:
            raise XlmfamError(
                "give lang_ids, or say once what they are by default: "
                f"set_default_language(...), one of {known_languages(config)}"
            )
        language_id(config, config.default_language)
        return config.default_language

    def _allowed(self, attention_mask, given, span: Span, past: Past | None) -> Tensor | None:
        """Return what each token sees, ``None`` for everything."""
        batch, known = given.shape[:2]
        total, room = _known(span.total), _known(span.keys)
        allowed = ((batch, total), (batch, room), (batch, known, total))
        check_shape("attention_mask", attention_mask, *allowed)
        valid = None
        if attention_mask is not None:
            valid = tf.cast(attention_mask, tf.bool)
            if isinstance(past, KeyValueCache) and valid.shape[-1] != room:
                beyond = span.keys - sizes(valid)[-1]
                valid = tf.pad(valid, [[0, 0]] * (len(valid.shape) - 1) + [[0, beyond]])
            if len(valid.shape) == 3:
                return valid[:, None]
            if is_cheap(valid) and bool(tf.reduce_all(valid[:, :total])):
                valid = None
        if not self.config.is_decoder:
            return padding_mask(valid)
        # One token alone has no future, unless a buffer has unwritten keys.
        if valid is None and known == 1 and not isinstance(past, KeyValueCache):
            return None
        return causal_mask(valid, span.start, span.new, span.keys)

    def _encoder_mask(self, states, mask, given) -> Tensor | None:
        """Check the encoder's states; return what each token sees of them."""
        batch, length = given.shape[:2]
        if states is not None and mask is not None and len(mask.shape) == 3:
            check_encoder(self.config, states, None, batch)
            check_shape("encoder_attention_mask", mask, (batch, length, states.shape[1]))
            return tf.cast(mask, tf.bool)[:, None]
        check_encoder(self.config, states, mask, batch)
        return padding_mask(mask)

    def _head_masks(self, head_mask: Tensor | None) -> list[Any]:
        """Return one (H,) mask per layer from an (L, H) or (H,) one."""
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        if head_mask is None:
            return [None] * layers
        return tf.unstack(tf.broadcast_to(head_mask, [layers, heads]))

    def _run_layer(self, layer: XmodLayer, hidden: Tensor, *arguments: Any):
        if not (self.gradient_checkpointing and arguments[-1] is not None):
            return layer(hidden, *arguments)
        languages, allowed, past, encoder_hidden_states, *others = arguments
        return recomputed(
            lambda hidden, encoder: layer(hidden, languages, allowed, past, encoder, *others),
            hidden,
            encoder_hidden_states,
        )


class XmodPreTrainedModel(PreTrainedModel):
    """What the X-MOD classes share."""

    config_class = XmodConfig
    config: XmodConfig
    roberta: XmodTransformer

    def get_input_embeddings(self) -> Embedding:
        """Return the token embedding."""
        return self.roberta.embeddings.word_embeddings

    def train_step(self, data: Any) -> Any:
        """Take one training step; adapters of languages that do not occur stay as they are."""
        with warnings.catch_warnings():
            # Keras would list every variable of every other language.
            warnings.filterwarnings("ignore", message="Gradients do not exist for variables")
            return super().train_step(data)

    def set_default_language(self, language: str) -> None:
        """Let inputs that do not say their language be in ``language``, a code.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        self.config.default_language = language
        self.forget_traces()

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Leave embeddings and adapters as they are, so that fine-tuning serves every language.

        Section 3.2 of the paper: fine-tune on one language, then switch to another. Compile again
        before training on: the optimizer knows what learned before.
        """
        for parameter in self.expected_parameters().values():
            if parameter.part in ("embeddings", "adapters"):
                self._set_learning(parameter, False)

    def train_only_language(self, language: str) -> None:
        """Learn nothing but the embeddings and the adapters of one language.

        Section 3.3 of the paper: how a language is added afterwards. Compile again before
        training on.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        for parameter in self.expected_parameters().values():
            learns = parameter.part == "embeddings" or parameter.language == language
            self._set_learning(parameter, learns)

    def _set_learning(self, parameter: Parameter, learns: bool) -> None:
        if parameter.tied_to is None:
            self._variable(parameter).trainable = learns
        self.forget_traces()

    def add_language(self, code: str, init_from: str = "random") -> None:
        """Give every layer an adapter for another language (section 3.3 of the paper).

        Compile again before training on: the optimizer does not know the new variables.

        Args:
            code: The language's code; it comes last in ``config.languages``.
            init_from: ``random``, the ``mean`` of all adapters, or the language to copy.

        Raises:
            XlmfamError: For a code that is there already, and a beginning that is not.
        """
        self.config.check_new_language(code, init_from)
        others = self.config.languages
        self.config.languages = [*others, code]
        for layer in self.roberta.encoder.layer:
            layer.output.add_adapter(code)
        sources = others if init_from == "mean" else [init_from]
        every = [] if init_from == "random" else [self._of_language(one) for one in sources]
        for index, parameter in enumerate(self._of_language(code)):
            value = None
            if every:
                arrays = [as_array(self._variable(source[index])) for source in every]
                value = np.mean(arrays, 0, np.float32).astype(arrays[0].dtype)
            self._create(parameter, value)
        self.forget_traces()

    def remove_languages(self, codes: Sequence[str]) -> None:
        """Take the adapters of some languages out.

        Compile again before training on: the optimizer knows the old variables.

        Raises:
            XlmfamError: When one of them is not there, or none would stay.
        """
        codes = [codes] if isinstance(codes, str) else list(dict.fromkeys(codes))
        self.config.languages = self.config.without(codes)
        if self.config.default_language in codes:
            self.config.default_language = None
        for layer in self.roberta.encoder.layer:
            for code in codes:
                layer.output.adapter_modules.pop(code)
        self.forget_traces()

    def _of_language(self, code: str) -> list[Parameter]:
        return [p for p in self.expected_parameters().values() if p.language == code]

    def _arguments(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return all arguments by name, languages as numbers, which Keras hands on."""
        named = super()._arguments(args, kwargs)
        if named.get("lang_ids") is not None:
            named["lang_ids"] = resolve_langs(self.config, named["lang_ids"])
        return named

    def _finished(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


def _tokens_before(attention_mask: Tensor | None, span: Span) -> Any:
    """Return how many tokens the past holds, (B, 1) where a mask tells padding apart."""
    start = span.start
    if attention_mask is None or len(attention_mask.shape) != 2:
        return start
    if not tf.is_tensor(start) and start == 0:
        return 0
    places = tf.range(sizes(attention_mask)[1])
    past = tf.cast(attention_mask, tf.int32) * tf.cast(places < start, tf.int32)
    return tf.reduce_sum(past, -1, keepdims=True)


def _layer_past(past_key_values: Past | None, index: int):
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.layer(index)
    return None if past_key_values is None else past_key_values[index]


def _known(size: Any) -> int | None:
    """Return a size that is a number, ``None`` for one that only running tells."""
    return None if tf.is_tensor(size) else size
