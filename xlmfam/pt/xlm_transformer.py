"""XLM without a head in PyTorch (Conneau and Lample 2019).

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, K head width,
D width, E source, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlmfam.common.checks import check_cache, check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.dict_cache import fill, filled, past_of
from xlmfam.common.errors import XlmfamError
from xlmfam.common.languages import check_language_range, resolve_langs
from xlmfam.pt.attention import Mask, causal_mask, padding_mask
from xlmfam.pt.base import PreTrainedModel
from xlmfam.pt.cache import KeyValueCache
from xlmfam.pt.checks import check_range, is_cheap, known_to_be_full
from xlmfam.pt.layers import embedding, text_positions
from xlmfam.pt.outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)
from xlmfam.pt.xlm_modules import XLMAttention, XLMFeedForward

Past = KeyValueCache | dict[Any, Any]


class XLMPreTrainedModel(PreTrainedModel):
    """What the XLM classes share."""

    config_class = XLMConfig
    base_model_prefix = "transformer"
    config: XLMConfig
    transformer: XLMModel

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.transformer.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding and what is tied to it."""
        self.transformer.embeddings = value
        self.tie_weights()

    def prune_heads(self, heads_to_prune: Mapping[int, Sequence[int]]) -> None:
        """Take attention heads out; ``config.pruned_heads`` remembers them.

        Args:
            heads_to_prune: Numbers of heads by layer, as they were before any pruning.

        Raises:
            ConfigError: When there is no such layer or head, or a layer would have none left.
        """
        old = self.expected_parameters()
        before = [self.config.kept_heads(layer) for layer in range(self.config.n_layers)]
        self.config.prune(heads_to_prune)
        for name, parameter in self.expected_parameters().items():
            if parameter.shape == old[name].shape:
                continue
            layer = next(int(part) for part in name.split(".") if part.isdigit())
            kept = np.flatnonzero(np.isin(before[layer], self.config.kept_heads(layer)))
            axis = parameter.axes.index("heads")
            value = self.get_parameter(name)
            heads = value.detach().unflatten(axis, (len(before[layer]), -1))
            rows = torch.as_tensor(kept, device=value.device)
            chosen = heads.index_select(axis, rows).flatten(axis, axis + 1)
            self._put(name, nn.Parameter(chosen, value.requires_grad))


class Text(NamedTuple):
    """What is new of a text, embedded.

    Attributes:
        hidden: (B, S, D).
        valid: (B, T), false for padding, or ``None`` where there is none.
        start: Number of tokens before.
    """

    hidden: Tensor
    valid: Tensor | None
    start: int


class XLMModel(XLMPreTrainedModel):
    """XLM without a head: an encoder, a causal model, or a decoder that looks at a source.

    Args:
        config: The config.
    """

    table_class = "XLMModel"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        width, layers = config.emb_dim, range(config.n_layers)
        heads = [len(config.kept_heads(layer)) for layer in layers]
        self.position_embeddings = embedding(config.max_position_embeddings, width)
        if config.uses_languages:
            self.lang_embeddings = embedding(config.n_langs, width)
        self.embeddings = embedding(config.vocab_size, width, config.pad_index)
        self.layer_norm_emb = self._norm()
        self.attentions = nn.ModuleList(XLMAttention(config, heads[layer]) for layer in layers)
        self.layer_norm1 = nn.ModuleList(self._norm() for _ in layers)
        self.ffns = nn.ModuleList(XLMFeedForward(config) for _ in layers)
        self.layer_norm2 = nn.ModuleList(self._norm() for _ in layers)
        if not config.is_encoder:
            self.layer_norm15 = nn.ModuleList(self._norm() for _ in layers)
            self.encoder_attn = nn.ModuleList(XLMAttention(config, config.n_heads) for _ in layers)
        self.post_init()

    def _norm(self) -> nn.LayerNorm:
        return nn.LayerNorm(self.config.emb_dim, self.config.layer_norm_eps)

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embeddings = value

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens.

        Raises:
            XlmfamError: After pruning, which leaves layers with caches of different shapes.
        """
        config = self.config
        if any(config.pruned_heads.values()):
            raise XlmfamError('a pruned model needs a dict as its cache, {"slen": 0}')
        return KeyValueCache(
            config.n_layers,
            batch_size,
            config.n_heads,
            max_length,
            config.emb_dim // config.n_heads,
            self.dtype,
            self.device,
        )

    def forward(
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
        src_enc: Tensor | None = None,
        src_len: Tensor | None = None,
        src_mask: Tensor | None = None,
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
            cache: A dict that is filled in place, see ``xlmfam.common.dict_cache``; or a
                ``KeyValueCache``, with which the other inputs are (B, S), only what is new, but
                for ``attention_mask``, which covers it all.
            head_mask: (L, H) or (H,) factors of attention weights.
            inputs_embeds: (B, T, D) instead of ``input_ids``.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,) lengths of the sources.
            src_mask: (B, E) instead of ``src_len``.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        config = self.config
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        text = self._embed(
            input_ids,
            inputs_embeds,
            attention_mask,
            lengths,
            langs,
            token_type_ids,
            position_ids,
            cache,
        )
        hidden, (batch, new, _) = text.hidden, text.hidden.shape
        mask, is_causal = self._mask(text)
        keep = None if text.valid is None else text.valid[:, -new:, None].to(hidden.dtype)
        head_mask = self._head_mask(head_mask)
        source_mask = self._source_mask(src_enc, src_len, src_mask, batch)
        past = past_of(cache, config) if isinstance(cache, dict) else None

        states = [hidden]
        attentions: list[Tensor] = []
        cross_attentions: list[Tensor] = []
        presents: list[tuple[Tensor, ...]] = []
        for index in range(config.n_layers):
            layer_past: Any = past and past[index]
            if isinstance(cache, KeyValueCache):
                layer_past = cache.layer(index)
            hidden, weights, cross_weights, present = self._run_layer(
                index,
                hidden,
                keep,
                mask,
                is_causal,
                layer_past,
                src_enc,
                source_mask,
                None if head_mask is None else head_mask[index][config.kept_heads(index)],
                output_attentions,
            )
            states.append(hidden)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)

        if isinstance(cache, KeyValueCache):
            cache.advance(new)
        elif cache is not None:
            fill(cache, presents, text.start + new)
        crossed = output_attentions and src_enc is not None
        fields = {
            "last_hidden_state": hidden,
            "hidden_states": tuple(states) if output_hidden_states else None,
            "attentions": tuple(attentions) if output_attentions else None,
        }
        output: Any = BaseModelOutput(**fields)
        if not config.is_encoder:
            output = BaseModelOutputWithPastAndCrossAttentions(
                **fields, cross_attentions=tuple(cross_attentions) if crossed else None
            )
        return output if return_dict else output.to_tuple()

    # ---- inputs -------------------------------------------------------------------------

    def _embed(
        self,
        input_ids,
        inputs_embeds,
        attention_mask,
        lengths,
        langs,
        token_type_ids,
        position_ids,
        cache,
    ) -> Text:
        """Check the inputs and embed what is new."""
        check_inputs(input_ids, inputs_embeds, self.config.emb_dim)
        self.check_ids("input_ids", input_ids)
        given = input_ids if inputs_embeds is None else inputs_embeds
        batch, width = given.shape[:2]
        check_shape("token_type_ids", token_type_ids, (batch, width))
        self.check_ids("token_type_ids", token_type_ids)
        start, total = self._span(cache, batch, width)
        valid = self._valid(attention_mask, lengths, input_ids, cache, batch, total)
        # Of a dict's whole text only what is new is looked at; a buffer gets nothing else.
        new = slice(start if isinstance(cache, dict) else 0, None)
        positions = self._positions(position_ids, valid, start, total, new, batch, given.device)
        vectors = self.embeddings(input_ids[:, new]) if inputs_embeds is None else given[:, new]
        hidden = vectors + self.position_embeddings(positions)
        languages = self.languages(langs, batch, width, given.device)
        if languages is not None:
            hidden = hidden + self.lang_embeddings(_part(languages, new))
        if token_type_ids is not None:
            hidden = hidden + self.embeddings(token_type_ids[:, new])
        hidden = F.dropout(self.layer_norm_emb(hidden), self.config.dropout, self.training)
        if valid is not None:
            hidden = hidden * valid[:, start:, None].to(hidden.dtype)
        return Text(hidden, valid, start)

    def _span(self, cache: Past | None, batch: int, width: int) -> tuple[int, int]:
        """Return how many tokens the cache holds, and how many there are with the new ones."""
        if cache is None:
            return 0, width
        if isinstance(cache, KeyValueCache):
            rows, total = cache.keys[0].shape[0], cache.length + width
            check_cache(rows, batch, cache.max_length, total)
            return cache.length, total
        return filled(cache, self.config, batch, width), width

    def _valid(self, attention_mask, lengths, input_ids, cache, batch, total) -> Tensor | None:
        """Return (B, T), false for padding, or ``None`` where nothing is padded."""
        if attention_mask is not None:
            room = cache.max_length if isinstance(cache, KeyValueCache) else total
            check_shape("attention_mask", attention_mask, (batch, total), (batch, room))
            valid = attention_mask[:, :total].bool()
        elif lengths is not None:
            check_shape("lengths", lengths, (batch,))
            check_range("lengths", lengths, 0, total)
            valid = torch.arange(total, device=lengths.device) < lengths[:, None]
        elif input_ids is None or isinstance(cache, KeyValueCache):
            return None
        else:
            valid = self._tokens(input_ids)
        return None if known_to_be_full(valid) else valid

    def _tokens(self, input_ids: Tensor) -> Tensor:
        """Return (B, T): as many tokens as there are ids that are no padding.

        They stand at the front, or in a causal model behind the padding that a row begins with.
        """
        is_token = input_ids != self.config.pad_index
        first = torch.zeros_like(is_token[:, :1], dtype=torch.long)
        if self.config.is_causal:
            first = is_token.int().argmax(-1, keepdim=True)
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        return (places >= first) & (places < first + is_token.sum(-1, keepdim=True))

    def _positions(self, position_ids, valid, start, total, new, batch, device) -> Tensor:
        """Return the (B or 1, S) positions of what is new."""
        most = self.config.max_position_embeddings
        if position_ids is not None:
            width = total if new.start else total - start
            check_shape("position_ids", position_ids, (batch, width), (1, width), (width,))
            check_range("position_ids", position_ids, 0, most - 1)
            return position_ids.reshape(-1, width)[:, new]
        counted = valid if self.config.is_causal else None
        if counted is None and total > most:
            raise XlmfamError(f"the text has {total} tokens, max_position_embeddings is {most}")
        positions = text_positions(counted, start, total - start, device)
        check_range("position_ids", positions, 0, most - 1)
        return positions

    def languages(self, langs: Any, batch: int, width: int, device: Any) -> Tensor | None:
        """Return (B or 1, width or 1) ids of languages, or ``None`` where they have no use."""
        langs = resolve_langs(self.config, langs)
        if langs is None or not self.config.uses_languages:
            return None
        langs = torch.as_tensor(langs, device=device)
        check_shape("langs", langs, *((b, s) for b in (batch, 1) for s in (width, 1)))
        if is_cheap(langs):
            least, most = map(int, torch.aminmax(langs))
            check_language_range(self.config, least, most)
        return langs

    def _mask(self, text: Text) -> tuple[Mask | None, bool]:
        """Return the mask of what each token sees, and whether it is plain causal instead."""
        hidden, valid, start = text
        new = hidden.shape[1]
        if not self.config.is_causal:
            return padding_mask(valid, hidden.dtype), False
        # Padding on the right is never looked at from the left, and what it sees is erased.
        if valid is not None and _known_to_be_on_the_right(valid):
            valid = None
        if valid is None and start == 0 and new > 1:
            return None, True
        return causal_mask(valid, new, start + new, hidden.dtype, hidden.device), False

    def _head_mask(self, head_mask: Tensor | None) -> Tensor | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        layers, heads = self.config.n_layers, self.config.n_heads
        check_shape("head_mask", head_mask, (layers, heads), (heads,))
        return None if head_mask is None else head_mask.expand(layers, heads)

    def _source_mask(self, src_enc, src_len, src_mask, batch) -> Mask | None:
        if src_enc is None:
            return None
        if self.config.is_encoder:
            raise XlmfamError("src_enc needs a decoder: set is_encoder=False in the config")
        check_shape("src_enc", src_enc, (batch, None, self.config.emb_dim))
        width = src_enc.shape[1]
        check_shape("src_mask", src_mask, (batch, width))
        check_shape("src_len", src_len, (batch,))
        if src_mask is None and src_len is not None:
            check_range("src_len", src_len, 0, width)
            src_mask = torch.arange(width, device=src_len.device) < src_len[:, None]
        return padding_mask(src_mask, src_enc.dtype)

    # ---- layers -------------------------------------------------------------------------

    def _run_layer(self, *arguments: Any):
        if self.gradient_checkpointing and self.training:
            return checkpoint(self._layer, *arguments, use_reentrant=False)
        return self._layer(*arguments)

    def _layer(
        self,
        index: int,
        hidden: Tensor,
        keep: Tensor | None,
        mask: Mask | None,
        is_causal: bool,
        past: Any,
        source: Tensor | None,
        source_mask: Mask | None,
        head_mask: Tensor | None,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, tuple[Tensor, ...]]:
        """Run one post-norm layer: attention, attention over a source, feed-forward.

        Returns:
            Hidden states (B, S, D), zero at padding; weights (B, H, S, T) or ``None``; weights
            over the source (B, H, S, E) or ``None``; keys and values, the source's behind the own.
        """
        own = past[:2] if isinstance(past, tuple) else past
        mixed, weights, present = self.attentions[index](
            hidden, mask, is_causal, own, head_mask, need_weights
        )
        hidden = self.layer_norm1[index](hidden + self._drop(mixed))
        cross_weights = None
        if source is not None:
            attention: Any = self.encoder_attn[index]
            keys = _source_keys(attention, source, past)
            mixed, cross_weights = attention.over_source(hidden, keys, source_mask, need_weights)
            hidden = self.layer_norm15[index](hidden + self._drop(mixed))
            present = (*present, *keys)
        hidden = self.layer_norm2[index](hidden + self.ffns[index](hidden))
        return hidden if keep is None else hidden * keep, weights, cross_weights, present

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.config.dropout, self.training)


def _source_keys(attention: XLMAttention, source: Tensor, past: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a source: those kept from an earlier step, or projected now."""
    if isinstance(past, tuple) and len(past) == 4:
        return past[2], past[3]
    if past is None or isinstance(past, tuple):
        return attention.project_source(source)
    if not past.cross:
        past.cross.extend(attention.project_source(source))
    return past.cross[0], past.cross[1]


def _part(values: Tensor, columns: slice) -> Tensor:
    """Return some columns of (B, T); a single one stands for all of them."""
    return values if values.shape[1] == 1 else values[:, columns]


def _known_to_be_on_the_right(valid: Tensor) -> bool:
    return is_cheap(valid) and bool((valid[:, :-1] >= valid[:, 1:]).all())
