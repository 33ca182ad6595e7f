"""X-MOD without a head in PyTorch (Pfeiffer et al. 2022).

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
from xlmfam.common.parameters.xmod import WITHOUT_POOLING
from xlmfam.pt.attention import Mask, causal_mask, make_mask, padding_mask
from xlmfam.pt.base import PreTrainedModel
from xlmfam.pt.cache import KeyValueCache, past_length
from xlmfam.pt.checks import check_range, is_cheap, known_to_be_full
from xlmfam.pt.linear import Linear
from xlmfam.pt.outputs import BaseModelOutputWithPoolingAndCrossAttentions
from xlmfam.pt.xmod_modules import Languages, XmodAdapter, XmodEmbeddings, XmodLayer

logger = get_logger(__name__)

Past = KeyValueCache | tuple[tuple[Tensor, ...], ...]


class XmodPreTrainedModel(PreTrainedModel):
    """What the X-MOD classes share."""

    config_class = XmodConfig
    base_model_prefix = "roberta"
    config: XmodConfig
    roberta: XmodModel

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.roberta.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding and what is tied to it."""
        self.roberta.embeddings.word_embeddings = value
        self.tie_weights()

    def _layers(self) -> Any:
        base: Any = self.base_model
        return base.encoder.layer

    def set_default_language(self, language: str) -> None:
        """Let inputs that do not say their language be in ``language``, a code.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        self.config.default_language = language

    def freeze_embeddings_and_language_adapters(self) -> None:
        """Leave embeddings and adapters as they are, so that fine-tuning serves every language.

        Section 3.2 of the paper: fine-tune on one language, then switch to another.
        """
        for name, parameter in self.expected_parameters().items():
            if parameter.part in ("embeddings", "adapters"):
                self.get_parameter(name).requires_grad_(False)

    def train_only_language(self, language: str) -> None:
        """Learn nothing but the embeddings and the adapters of one language.

        Section 3.3 of the paper: how a language is added afterwards.

        Raises:
            XlmfamError: When there is no such language, with those that there are.
        """
        language_id(self.config, language)
        for name, parameter in self.expected_parameters().items():
            learns = parameter.part == "embeddings" or parameter.language == language
            self.get_parameter(name).requires_grad_(learns)

    def add_language(self, code: str, init_from: str = "random") -> None:
        """Give every layer an adapter for another language (section 3.3 of the paper).

        Args:
            code: The language's code; it comes last in ``config.languages``.
            init_from: ``random``, the ``mean`` of all adapters, or the language to copy.

        Raises:
            XlmfamError: For a code that is there already, and a beginning that is not.
        """
        self.config.check_new_language(code, init_from)
        others = self.config.languages
        self.config.languages = [*others, code]
        for layer in self._layers():
            adapters = layer.output.adapter_modules
            adapters[code] = XmodAdapter(self.config).to(self.device, self.dtype)
            adapters[code].train(self.training)
            if init_from == "random":
                continue
            sources = others if init_from == "mean" else [init_from]
            with torch.no_grad():
                for name, value in adapters[code].named_parameters():
                    every = [adapters[source].get_parameter(name) for source in sources]
                    value.copy_(torch.stack(every).mean(0))
        if init_from == "random":
            added = self.expected_parameters().items()
            self.init_weights([name for name, p in added if p.language == code])

    def remove_languages(self, codes: Sequence[str]) -> None:
        """Take the adapters of some languages out.

        Raises:
            XlmfamError: When one of them is not there, or none would stay.
        """
        codes = [codes] if isinstance(codes, str) else list(codes)
        self.config.languages = self.config.without(codes)
        if self.config.default_language in codes:
            self.config.default_language = None
        for layer in self._layers():
            for code in codes:
                del layer.output.adapter_modules[code]


class XmodPooler(nn.Module):
    """The first position, through a dense layer.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (B, D) of (B, S, D)."""
        return torch.tanh(self.dense(hidden[:, 0]))


class XmodEncoder(nn.Module):
    """The layers, and a norm behind them where norms stand first.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.layer = nn.ModuleList(XmodLayer(config) for _ in range(config.num_hidden_layers))
        if config.pre_norm:
            self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class XmodModel(XmodPreTrainedModel):
    """X-MOD without a head: an encoder, or a decoder where ``config.is_decoder``.

    Args:
        config: The config.
        add_pooling_layer: Have a pooling layer.
    """

    table_class = "XmodModel"
    init_arguments = ("add_pooling_layer",)

    def __init__(self, config: XmodConfig, add_pooling_layer: bool = True):
        super().__init__(config)
        self.embeddings = XmodEmbeddings(config)
        self.encoder = XmodEncoder(config)
        if add_pooling_layer:
            self.pooler = XmodPooler(config)
        else:
            self.table_class = WITHOUT_POOLING  # type: ignore[misc]
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embeddings.word_embeddings = value

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        heads = config.num_attention_heads
        return KeyValueCache(
            config.num_hidden_layers,
            batch_size,
            heads,
            max_length,
            config.hidden_size // heads,
            self.dtype,
            self.device,
        )

    def forward(
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
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            lang_ids: Languages by code or number: one, a list or (B,) with one per sample, or
                (B, S) with one per token; by default ``config.default_language``.
            attention_mask: (B, T), 1 for tokens and 0 for padding, or (B, S, T) for what each
                token sees.
            token_type_ids: (B, S), zeros by default.
            position_ids: (B, S); by default counted over what is no padding, from
                ``pad_token_id + 1`` on.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            encoder_hidden_states: (B, E, D), needs a decoder with ``add_cross_attention``.
            encoder_attention_mask: (B, E), or (B, S, E) for what each token sees.
            past_key_values: Keys and values before, of a decoder; see ``xlmfam.pt.cache``.
            use_cache: Return keys and values of a decoder.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, shapes that do not
                fit, and where neither a language nor a default is given.
        """
        config = self.config
        use_cache = config.is_decoder and (config.use_cache if use_cache is None else use_cache)
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        start = past_length(past_key_values)
        before = self._tokens_before(attention_mask, start)
        hidden = self._embed(input_ids, inputs_embeds, token_type_ids, position_ids, start, before)
        batch, length, _ = hidden.shape
        self._check_past(past_key_values, batch, length)
        if encoder_hidden_states is not None and not config.is_decoder:
            logger.warning("encoder_hidden_states is not used: this model is no decoder")
            encoder_hidden_states = encoder_attention_mask = None
        encoder_mask = self._encoder_mask(encoder_hidden_states, encoder_attention_mask, hidden)
        languages = self._languages(lang_ids, batch, length, hidden.device)
        mask, is_causal = self._mask(attention_mask, past_key_values, hidden, start)
        head_mask = self._head_mask(head_mask)

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
                mask,
                is_causal,
                self._layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                None if head_mask is None else head_mask[index],
                output_attentions,
            )
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        if config.pre_norm:
            hidden = self.encoder.LayerNorm(hidden)
        states.append(hidden)

        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            past_key_values.advance(length)
            cache = past_key_values
        crossed = output_attentions and config.add_cross_attention
        output = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden,
            pooler_output=self.pooler(hidden) if hasattr(self, "pooler") else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            past_key_values=cache,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(w for w in cross_attentions if w is not None)
            if crossed
            else None,
        )
        return output if return_dict else output.to_tuple()

    # ---- inputs -------------------------------------------------------------------------

    def _embed(
        self, input_ids, inputs_embeds, token_type_ids, position_ids, start, before
    ) -> Tensor:
        """Check the inputs and embed them, (B, S, D)."""
        check_inputs(input_ids, inputs_embeds, self.config.hidden_size)
        self.check_ids("input_ids", input_ids)
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, length = given.shape[:2]
        rows = (batch, length), (1, length), (length,)
        check_shape("token_type_ids", token_type_ids, *rows)
        check_shape("position_ids", position_ids, *rows)
        if position_ids is None:
            position_ids = self._positions(input_ids, before, length, given.device)
        if self.config.position_embedding_type == "absolute":
            most = self.config.max_position_embeddings - 1
            check_range("position_ids", position_ids, 0, most)
        elif start + length > self.config.max_position_embeddings:
            raise XlmfamError(
                f"the text has {start + length} tokens, max_position_embeddings is "
                f"{self.config.max_position_embeddings}"
            )
        if token_type_ids is None:
            token_type_ids = torch.zeros((1, length), dtype=torch.long, device=given.device)
        check_range("token_type_ids", token_type_ids, 0, self.config.type_vocab_size - 1)
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        return self.embeddings(
            inputs_embeds, token_type_ids.reshape(-1, length), position_ids.reshape(-1, length)
        )

    def _tokens_before(self, attention_mask: Tensor | None, start: int) -> Tensor | int:
        """Return how many tokens the past holds, (B, 1) where a mask tells padding apart."""
        if not start or attention_mask is None or attention_mask.dim() != 2:
            return start
        # One more column: of an exported graph, the past may be empty.
        return F.pad(attention_mask[:, :start].long(), (1, 0)).sum(-1, keepdim=True)

    def _positions(self, input_ids: Tensor | None, before: Any, length: int, device: Any) -> Tensor:
        """Return (B or 1, S) positions, counted over what is no padding."""
        pad = self.config.pad_token_id
        if input_ids is None:
            return torch.arange(length, device=device)[None] + before + pad + 1
        is_token = (input_ids != pad).long()
        return (is_token.cumsum(-1) + before) * is_token + pad

    def _languages(self, lang_ids: Any, batch: int, length: int, device: Any) -> Languages:
        """Return which adapters the batch goes through."""
        config = self.config
        if lang_ids is None:
            if config.default_language is None:
                raise XlmfamError(
                    "give lang_ids, or say once what they are by default: "
                    f"set_default_language(...), one of {known_languages(config)}"
                )
            language_id(config, config.default_language)
            return Languages((config.default_language,))
        ids = torch.as_tensor(resolve_langs(config, lang_ids), device=device)
        check_shape("lang_ids", ids, *((b, s) for b in (batch, 1) for s in (length, 1)))
        if is_cheap(ids):
            least, most = map(int, torch.aminmax(ids))
            check_language_range(config, least, most, "lang_ids")
        by_token = ids.shape[1] != 1
        ids = ids.expand(batch, length if by_token else 1).reshape(-1)
        return group_languages(ids, config.languages, by_token)

    def _mask(self, attention_mask, past, hidden, start) -> tuple[Mask | None, bool]:
        """Return the mask of what each token sees, and whether it is plain causal instead."""
        batch, length, _ = hidden.shape
        total = start + length
        room = past.max_length if isinstance(past, KeyValueCache) else total
        allowed = ((batch, total), (batch, room), (batch, length, total))
        check_shape("attention_mask", attention_mask, *allowed)
        if attention_mask is not None and attention_mask.dim() == 3:
            return make_mask(attention_mask.bool()[:, None], hidden.dtype), False
        if attention_mask is not None:
            attention_mask = attention_mask[:, :total]
            if known_to_be_full(attention_mask):
                attention_mask = None
        if not self.config.is_decoder:
            return padding_mask(attention_mask, hidden.dtype), False
        if attention_mask is None and start == 0 and length > 1:
            return None, True
        return causal_mask(attention_mask, length, total, hidden.dtype, hidden.device), False

    def _encoder_mask(self, states, mask, hidden) -> Mask | None:
        """Check the encoder's states; return what each token sees of them."""
        batch, length, _ = hidden.shape
        if states is not None and mask is not None and mask.dim() == 3:
            check_encoder(self.config, states, None, batch)
            check_shape("encoder_attention_mask", mask, (batch, length, states.shape[1]))
            return make_mask(mask.bool()[:, None], hidden.dtype)
        check_encoder(self.config, states, mask, batch)
        return padding_mask(mask, hidden.dtype)

    def _check_past(self, past_key_values: Past | None, batch: int, length: int) -> None:
        if past_key_values is None:
            return
        config = self.config
        if not config.is_decoder:
            raise XlmfamError("past_key_values needs a decoder: set is_decoder=True in the config")
        if isinstance(past_key_values, KeyValueCache):
            tokens = past_key_values.length + length
            rows = past_key_values.keys[0].shape[0]
            check_cache(rows, batch, past_key_values.max_length, tokens)
            return
        heads = config.num_attention_heads
        shape = (batch, heads, None, config.hidden_size // heads)
        check_past(past_key_values, config.num_hidden_layers, *shape)

    def _head_mask(self, head_mask: Tensor | None) -> Tensor | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        layers, heads = self.config.num_hidden_layers, self.config.num_attention_heads
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        return None if head_mask is None else head_mask.expand(layers, heads)

    def _layer_past(self, past_key_values: Past | None, index: int):
        if isinstance(past_key_values, KeyValueCache):
            return past_key_values.layer(index)
        return None if past_key_values is None else past_key_values[index]

    def _run_layer(self, layer: nn.Module, *arguments: Any):
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)


def group_languages(ids: Tensor, codes: list[str], by_token: bool) -> Languages:
    """Return the rows of a batch grouped by language, once for all layers.

    Args:
        ids: (R,) language of each row.
        codes: Of all languages.
        by_token: Rows are tokens.
    """
    if len(codes) == 1:
        return Languages((codes[0],))
    if torch.compiler.is_compiling() or type(ids) is not Tensor:
        return Languages(tuple(codes), by_token=by_token, ids=ids)
    present, counts = ids.unique(return_counts=True)
    named = tuple(codes[number] for number in present.tolist())
    if len(named) == 1:
        return Languages(named)
    order = ids.argsort(stable=True)
    return Languages(named, tuple(counts.tolist()), order, order.argsort(), by_token)
