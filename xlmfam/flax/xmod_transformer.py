"""X-MOD without a head in Flax: its linen module, and the class to call.

What is checked before the module runs stands in ``xmod_inputs``.

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import language_id
from xlmfam.common.parameters import Parameter
from xlmfam.common.parameters.xmod import WITHOUT_POOLING
from xlmfam.flax.attention import causal_mask, padding_mask
from xlmfam.flax.base import Params, Path_, PreTrainedModel, initialise
from xlmfam.flax.cache import KeyValueCache, past_length
from xlmfam.flax.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from xlmfam.flax.xmod_adapters import Languages
from xlmfam.flax.xmod_inputs import Past, prepare
from xlmfam.flax.xmod_modules import LAYER_FLAGS, XmodEmbeddings, XmodLayer, dense, norm


class XmodPooler(nn.Module):
    """The first position, through a dense layer.

    Attributes:
        config: The config.
        dtype: Of the computation.
    """

    config: XmodConfig
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Build the layer."""
        self.dense = dense(self.config, self.config.hidden_size, self.dtype)

    def __call__(self, hidden: Array) -> Array:
        """Return (B, D) of (B, S, D)."""
        return jnp.tanh(self.dense(hidden[:, 0]))


class XmodLayers(nn.Module):
    """All layers, one after the other.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XmodConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    @nn.compact
    def __call__(
        self,
        hidden: Array,
        languages: Languages,
        mask: Array | None,
        past_key_values: Past | None,
        encoder_hidden_states: Array | None,
        encoder_mask: Array | None,
        head_mask: Array | None,
        output_attentions: bool,
        deterministic: bool,
    ) -> tuple[list[Array], list[Any], list[Any], list[tuple[Array, ...]]]:
        """Return per layer: hidden states (the input's first), weights, weights over the encoder,
        keys and values.
        """  # noqa: D205
        layer_class = XmodLayer
        if self.gradient_checkpointing and not deterministic:
            layer_class = nn.remat(XmodLayer, static_argnums=LAYER_FLAGS)
        states, attentions, cross_attentions, presents = [hidden], [], [], []
        for index in range(self.config.num_hidden_layers):
            layer = layer_class(self.config, self.dtype, name=str(index))
            hidden, weights, cross_weights, present = layer(
                hidden,
                languages,
                mask,
                _layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                None if head_mask is None else head_mask[index],
                output_attentions,
                deterministic,
            )
            states.append(hidden)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        return states, attentions, cross_attentions, presents


def _layer_past(past_key_values: Past | None, index: int) -> Any:
    if isinstance(past_key_values, KeyValueCache):
        return past_key_values.layer(index)
    return None if past_key_values is None else past_key_values[index]


class XmodEncoder(nn.Module):
    """The layers, and a norm behind them where norms stand first.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
    """

    config: XmodConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False

    def setup(self) -> None:
        """Build the layers and the norm."""
        self.layer = XmodLayers(self.config, self.dtype, self.gradient_checkpointing)
        if self.config.pre_norm:
            self.LayerNorm = norm(self.config, self.dtype)

    def __call__(
        self, *arguments: Any
    ) -> tuple[list[Array], list[Any], list[Any], list[tuple[Array, ...]]]:
        """Run the layers; arguments and results as in ``XmodLayers``."""
        states, attentions, cross_attentions, presents = self.layer(*arguments)
        if self.config.pre_norm:
            states[-1] = self.LayerNorm(states[-1])
        return states, attentions, cross_attentions, presents


class XmodModule(nn.Module):
    """X-MOD without a head, as a linen module.

    Attributes:
        config: The config.
        dtype: Of the computation.
        gradient_checkpointing: Recompute each layer in the backward pass.
        add_pooling_layer: Have a pooling layer.
    """

    config: XmodConfig
    dtype: Any = jnp.float32
    gradient_checkpointing: bool = False
    add_pooling_layer: bool = True

    def setup(self) -> None:
        """Build embeddings, layers and pooling layer."""
        self.embeddings = XmodEmbeddings(self.config, self.dtype)
        self.encoder = XmodEncoder(self.config, self.dtype, self.gradient_checkpointing)
        if self.add_pooling_layer:
            self.pooler = XmodPooler(self.config, self.dtype)

    def __call__(
        self,
        input_ids: Array | None = None,
        languages: Languages | None = None,
        position_ids: Array | None = None,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        head_mask: Array | None = None,
        inputs_embeds: Array | None = None,
        encoder_hidden_states: Array | None = None,
        encoder_attention_mask: Array | None = None,
        past_key_values: Past | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        deterministic: bool = True,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Run the module; ``XmodModel.__call__`` checks and prepares what comes here.

        Args:
            input_ids: (B, S).
            languages: Which adapters to go through; cannot be left out.
            position_ids: (B or 1, S); cannot be left out.
            attention_mask: (B, T) or (B, S, T); ``None`` where nothing is padded.
            token_type_ids: (B or 1, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E) or (B, S, E).
            past_key_values: Keys and values before.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            deterministic: Drop nothing.
        """
        config = self.config
        hidden = self.embeddings(
            input_ids, inputs_embeds, token_type_ids, position_ids, deterministic
        )
        if encoder_hidden_states is not None:
            encoder_hidden_states = jnp.asarray(encoder_hidden_states, self.dtype)
        states, attentions, cross_attentions, presents = self.encoder(
            hidden,
            languages,
            self._mask(attention_mask, past_key_values, hidden.shape[1]),
            past_key_values,
            encoder_hidden_states,
            what_each_sees(encoder_attention_mask),
            self._head_mask(head_mask),
            output_attentions,
            deterministic,
        )
        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            cache = past_key_values.advance(presents, hidden.shape[1])
        crossed = output_attentions and config.add_cross_attention
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=states[-1],
            pooler_output=self.pooler(states[-1]) if self.add_pooling_layer else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            past_key_values=cache,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(w for w in cross_attentions if w is not None)
            if crossed
            else None,
        )

    def _mask(self, attention_mask: Any, past: Past | None, length: int) -> Array | None:
        """Return which keys each token may see."""
        start = past_length(past)
        keys: Any = past.max_length if isinstance(past, KeyValueCache) else start + length
        if attention_mask is not None and len(attention_mask.shape) == 3:
            seen = what_each_sees(attention_mask)
            # Keys that the mask does not reach are unwritten cache.
            return jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (0, keys - seen.shape[-1])))  # type: ignore[union-attr, arg-type]
        if not self.config.is_decoder:
            return padding_mask(attention_mask)
        return causal_mask(attention_mask, start, length, keys)

    def _head_mask(self, head_mask: Array | None) -> Array | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        if head_mask is None:
            return None
        config = self.config
        shape = (config.num_hidden_layers, config.num_attention_heads)
        return jnp.broadcast_to(jnp.asarray(head_mask), shape)


def what_each_sees(mask: Any) -> Array | None:
    """Return the boolean (B, 1, S or 1, T) mask of a (B, T) or (B, S, T) one."""
    if mask is None or len(mask.shape) == 2:
        return padding_mask(mask)
    return jnp.asarray(mask).astype(bool)[:, None]


class XmodPreTrainedModel(PreTrainedModel):
    """What the X-MOD classes share."""

    config_class = XmodConfig
    base_model_prefix = "roberta"
    config: XmodConfig

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        heads = config.num_attention_heads
        return KeyValueCache.empty(
            config.num_hidden_layers,
            batch_size,
            heads,
            max_length,
            config.hidden_size // heads,
            self.dtype,
        )

    # ---- languages ----------------------------------------------------------------------

    def set_default_language(self, language: str) -> None:
        """Let inputs that do not say their language be in ``language``, a code.

        What ``jax.jit`` has compiled keeps the default that it met: functions that are to serve
        several languages take ``lang_ids``.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        self.config.default_language = language

    def freeze_embeddings_and_language_adapters(self) -> Params:
        """Return which parameters to leave as they are, so that fine-tuning serves every language.

        Section 3.2 of the paper: fine-tune on one language, then switch to another.

        Returns:
            A tree like ``params`` of ``"trainable"`` and ``"frozen"``, for
            ``optax.multi_transform({"trainable": ..., "frozen": optax.set_to_zero()}, labels)``.
        """
        return self._labels(lambda row: row.part not in ("embeddings", "adapters"))

    def train_only_language(self, language: str) -> Params:
        """Return how to learn nothing but the embeddings and the adapters of one language.

        Section 3.3 of the paper: how a language is added afterwards.

        Returns:
            A tree of labels, see ``freeze_embeddings_and_language_adapters``.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        return self._labels(lambda row: row.part == "embeddings" or row.language == language)

    def _labels(self, learns: Any) -> Params:
        return self._tree(lambda row: "trainable" if learns(row) else "frozen")

    def add_language(
        self, code: str, init_from: str = "random", params: Params | None = None
    ) -> Params:
        """Give every layer an adapter for another language (section 3.3 of the paper).

        Args:
            code: The language's code; it comes last in ``config.languages``.
            init_from: ``random``, the ``mean`` of all adapters, or the language to copy.
            params: Of a model that keeps none.

        Returns:
            The new parameters; the model's own are replaced by them where it keeps them.

        Raises:
            XlmfamError: For a code that is there already, and a beginning that is not.
        """
        values = flatten_dict(self.params if params is None else params)
        self.config.check_new_language(code, init_from)
        others = self.config.languages
        sources = [init_from] if init_from in others else others
        rows = self.paths()
        alike = list(zip(*(adapters_of(rows, source) for source in sources), strict=True))
        self.config.languages = [*others, code]
        rng = jax.random.fold_in(self.key, len(others))  # other values than those of its neighbours
        rows = self.paths()
        for index, (path, same) in enumerate(zip(adapters_of(rows, code), alike, strict=True)):
            every = jnp.stack([values[source] for source in same])
            value = every.astype(jnp.float32).mean(0)
            if init_from == "random":
                value = initialise(rng, index, rows[path])
            values[path] = value.astype(every.dtype)
        return self._replaced({path: values[path] for path in rows}, params)

    def remove_languages(self, codes: str | Sequence[str], params: Params | None = None) -> Params:
        """Take the adapters of some languages out.

        Args:
            codes: One or several.
            params: Of a model that keeps none.

        Returns:
            The new parameters; the model's own are replaced by them where it keeps them.

        Raises:
            XlmfamError: When one of them is not there, or none would stay.
        """
        values = flatten_dict(self.params if params is None else params)
        codes = [codes] if isinstance(codes, str) else list(codes)
        self.config.languages = self.config.without(codes)
        if self.config.default_language in codes:
            self.config.default_language = None
        return self._replaced({path: values[path] for path in self.paths()}, params)

    def _replaced(self, values: dict[Path_, Array], params: Params | None) -> Params:
        # A module of its own: what was compiled for other languages is not to be met again.
        self.module = self.module.clone()
        tree = unflatten_dict(values)
        if params is None:
            self._params = tree
        return tree

    # ---- calls --------------------------------------------------------------------------

    def _prepare(self, *arguments: Any) -> dict[str, Any]:
        """Check a call; arguments as in ``prepare``."""
        return prepare(self.config, self.check_ids, *arguments)

    def _apply(
        self,
        call: dict[str, Any],
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        train: bool,
        params: Params | None,
        dropout_rng: Array | None,
        **own: Any,
    ) -> Any:
        """Run the module on a checked call, with a head's ``own`` arguments."""
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        output: Any = self.module.apply(
            {"params": self.params if params is None else params},
            **call,
            **own,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            deterministic=not train,
            rngs=self._rngs(train, dropout_rng),
        )
        return_dict = config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _rngs(self, train: bool, dropout_rng: Array | None) -> dict[str, Array] | None:
        config = self.config
        rates = (config.hidden_dropout_prob, config.attention_probs_dropout_prob)
        if not train or not any((*rates, config.classifier_dropout)):
            return None
        if dropout_rng is None:
            raise XlmfamError("train=True needs dropout_rng=..., a key that draws what is dropped")
        return {"dropout": dropout_rng}


def adapters_of(rows: dict[Path_, Parameter], language: str) -> list[Path_]:
    """Return the paths of one language's parameters, in the same order for every language."""
    return [path for path, row in rows.items() if row.language == language]


class XmodModel(XmodPreTrainedModel):
    """X-MOD without a head: an encoder, or a decoder where ``config.is_decoder``.

    Args:
        config: The config.
        *args: As in ``PreTrainedModel``.
        add_pooling_layer: Have a pooling layer.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodModel"
    module_class = XmodModule
    init_arguments = ("add_pooling_layer",)

    def __init__(
        self, config: XmodConfig, *args: Any, add_pooling_layer: bool = True, **kwargs: Any
    ):
        if not add_pooling_layer:
            self.table_class = WITHOUT_POOLING  # type: ignore[misc]
            self.module_class = partial(XmodModule, add_pooling_layer=False)  # type: ignore[misc, assignment]
        super().__init__(config, *args, **kwargs)

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
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            lang_ids: Languages by code or number: one, a list or (B,) with one per sample, or
                (B, S) with one per token; by default ``config.default_language``. Of languages
                that are known only inside ``jax.jit``, all adapters are read.
            attention_mask: (B, T), 1 for tokens and 0 for padding, or (B, S, T) for what each
                token sees; with a ``KeyValueCache`` of length L also up to (B, L).
            token_type_ids: (B, S), zeros by default.
            position_ids: (B, S); by default counted over what is no padding, from
                ``pad_token_id + 1`` on.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            encoder_hidden_states: (B, E, D), needs a decoder with ``add_cross_attention``.
            encoder_attention_mask: (B, E), or (B, S, E) for what each token sees.
            past_key_values: Keys and values before, of a decoder; see ``xlmfam.flax.cache``.
            use_cache: Return keys and values of a decoder.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, shapes that do not
                fit, and where neither a language nor a default is given.
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
            use_cache,
        )
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng)
