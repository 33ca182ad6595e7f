"""XGLM in PyTorch (Lin et al. 2021, "Few-shot Learning with Multilingual Language Models").

Shapes: B batch, S sequence, T sequence with past, H heads, K head width, D width,
E encoder sequence, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlmfam.common.checks import check_cache, check_encoder, check_inputs, check_past, check_shape
from xlmfam.common.configs import XGLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.pt.attention import causal_mask, padding_mask
from xlmfam.pt.base import PreTrainedModel
from xlmfam.pt.cache import KeyValueCache, past_length
from xlmfam.pt.checks import known_to_be_full
from xlmfam.pt.generation import GenerationMixin
from xlmfam.pt.layers import (
    SinusoidalPositions,
    causal_lm_loss,
    embedding,
    text_positions,
)
from xlmfam.pt.linear import Linear
from xlmfam.pt.outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
)
from xlmfam.pt.xglm_modules import XGLMLayer

Past = KeyValueCache | tuple[tuple[Tensor, ...], ...]
POSITION_OFFSET = 2


class XGLMPreTrainedModel(PreTrainedModel):
    """What the XGLM classes share."""

    config_class = XGLMConfig
    base_model_prefix = "model"
    config: XGLMConfig


class XGLMModel(XGLMPreTrainedModel):
    """XGLM without a head.

    Args:
        config: The config.
        embed_tokens: A ready token embedding to use instead of an own one.
    """

    table_class = "XGLMModel"

    def __init__(self, config: XGLMConfig, embed_tokens: nn.Embedding | None = None):
        super().__init__(config)
        self.embed_tokens = embed_tokens or embedding(
            config.vocab_size, config.d_model, config.pad_token_id
        )
        self.embed_positions = SinusoidalPositions(
            config.d_model, POSITION_OFFSET, config.pad_token_id
        )
        self.layers = nn.ModuleList(XGLMLayer(config) for _ in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.embed_scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.post_init(keep=() if embed_tokens is None else ("embed_tokens.weight",))

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.embed_tokens = value

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        config = self.config
        return KeyValueCache(
            config.num_layers,
            batch_size,
            config.attention_heads,
            max_length,
            config.d_model // config.attention_heads,
            self.dtype,
            self.device,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, T), 1 for tokens and 0 for padding on either side; it may be as
                long as a preallocated cache.
            position_ids: (B, S); by default positions count from each row's first token.
            encoder_hidden_states: (B, E, D), needs ``add_cross_attention``.
            encoder_attention_mask: (B, E).
            head_mask: (L, H) or (H,) factors of attention weights.
            cross_attn_head_mask: (L, H) factors of the weights over the encoder.
            past_key_values: Keys and values before, see ``xlmfam.pt.cache``.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        if output_attentions is None:
            output_attentions = config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        hidden, mask, is_causal = self._embed(
            input_ids, inputs_embeds, attention_mask, position_ids, past_key_values
        )
        batch = hidden.shape[0]
        check_encoder(config, encoder_hidden_states, encoder_attention_mask, batch)
        head_mask = self._head_mask("head_mask", head_mask)
        cross_head_mask = self._head_mask("cross_attn_head_mask", cross_attn_head_mask)
        encoder_mask = padding_mask(encoder_attention_mask, hidden.dtype)

        states: list[Tensor] = []
        attentions: list[Tensor] = []
        cross_attentions: list[Tensor] = []
        presents: list[tuple[Tensor, ...]] = []
        for index, layer in enumerate(self.layers):
            states.append(hidden)
            if self._skips_layer():
                continue
            out, weights, cross_weights, present = self._run_layer(
                layer,
                hidden,
                mask,
                is_causal,
                self._layer_past(past_key_values, index),
                encoder_hidden_states,
                encoder_mask,
                None if head_mask is None else head_mask[index],
                None if cross_head_mask is None else cross_head_mask[index],
                output_attentions,
            )
            hidden = self._keep_or_skip(hidden, out)
            attentions.append(weights)
            cross_attentions.append(cross_weights)
            presents.append(present)
        hidden = self.layer_norm(hidden)
        states.append(hidden)

        cache: Past | None = tuple(presents) if use_cache else None
        if isinstance(past_key_values, KeyValueCache):
            past_key_values.advance(hidden.shape[1])
            cache = past_key_values
        crossed = output_attentions and encoder_hidden_states is not None
        output = BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if crossed else None,
        )
        return output if return_dict else output.to_tuple()

    def _embed(self, input_ids, inputs_embeds, attention_mask, position_ids, past_key_values):
        """Check the inputs; return embeddings (B, S, D), the mask, and whether plain causal."""
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        self.check_ids("input_ids", input_ids)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids) * self.embed_scale
        batch, length, _ = inputs_embeds.shape
        self._check_past(past_key_values, batch, length)
        start = past_length(past_key_values)
        if isinstance(past_key_values, KeyValueCache) and attention_mask is not None:
            room = past_key_values.max_length
            check_shape("attention_mask", attention_mask, (batch, start + length), (batch, room))
            attention_mask = attention_mask[:, : start + length]
        check_shape("attention_mask", attention_mask, (batch, start + length))
        check_shape("position_ids", position_ids, (batch, length), (1, length), (length,))
        if position_ids is None:
            position_ids = text_positions(attention_mask, start, length, inputs_embeds.device)
        position_ids = position_ids.reshape(-1, length)
        hidden = inputs_embeds + self.embed_positions(position_ids, inputs_embeds.dtype)
        hidden = F.dropout(hidden, self.config.dropout, self.training)
        if attention_mask is not None and known_to_be_full(attention_mask):
            attention_mask = None
        if attention_mask is None and start == 0 and length > 1:
            return hidden, None, True
        mask = causal_mask(attention_mask, length, start + length, hidden.dtype, hidden.device)
        return hidden, mask, False

    def _check_past(self, past_key_values: Past | None, batch: int, length: int) -> None:
        if past_key_values is None:
            return
        if isinstance(past_key_values, KeyValueCache):
            tokens = past_key_values.length + length
            rows = past_key_values.keys[0].shape[0]
            check_cache(rows, batch, past_key_values.max_length, tokens)
            return
        config = self.config
        heads = config.attention_heads
        shape = (batch, heads, None, config.d_model // heads)
        check_past(past_key_values, config.num_layers, *shape)

    def _head_mask(self, name: str, head_mask: Tensor | None) -> Tensor | None:
        """Return an (L, H) mask from an (L, H) or (H,) one."""
        layers, heads = self.config.num_layers, self.config.attention_heads
        check_shape(name, head_mask, (layers, heads), (heads,))
        return None if head_mask is None else head_mask.expand(layers, heads)

    def _layer_past(self, past_key_values: Past | None, index: int):
        if isinstance(past_key_values, KeyValueCache):
            return past_key_values.layer(index)
        return None if past_key_values is None else past_key_values[index]

    def _run_layer(self, layer: nn.Module, *arguments: Any):
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False)
        return layer(*arguments)

    def _skips_layer(self) -> bool:
        """LayerDrop (Fan et al. 2019): skip a whole layer in training, decided in eager mode."""
        rate = self.config.layerdrop
        if not (self.training and rate) or torch.compiler.is_compiling():
            return False
        return bool(torch.rand(()) < rate)

    def _keep_or_skip(self, before: Tensor, after: Tensor) -> Tensor:
        """LayerDrop where control flow cannot follow values: run the layer, maybe ignore it."""
        rate = self.config.layerdrop
        if not (self.training and rate and torch.compiler.is_compiling()):
            return after
        return torch.where(torch.rand((), device=after.device) < rate, before, after)


class XGLMForCausalLM(XGLMPreTrainedModel, GenerationMixin):
    """XGLM with the language-modelling head, tied to the token embedding by default.

    Args:
        config: The config.
    """

    table_class = "XGLMForCausalLM"

    def __init__(self, config: XGLMConfig):
        super().__init__(config)
        self.model = XGLMModel(config)
        self.lm_head: nn.Linear = Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding and, where tied, the head."""
        self.model.embed_tokens = value
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """Return the projection to the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the projection to the vocabulary."""
        self.lm_head = new_embeddings

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        return self.model.init_cache(batch_size, max_length)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        last_logits_only: bool = False,
    ) -> CausalLMOutputWithCrossAttentions | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids.
            attention_mask: (B, T), see ``XGLMModel.forward``.
            position_ids: (B, S).
            encoder_hidden_states: (B, E, D).
            encoder_attention_mask: (B, E).
            head_mask: (L, H) or (H,).
            cross_attn_head_mask: (L, H) or (H,).
            past_key_values: Keys and values before.
            inputs_embeds: (B, S, D) instead of ``input_ids``.
            labels: (B, S) ids; position i is held against the logits of position i - 1, and
                -100 does not count.
            use_cache: Return keys and values.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            last_logits_only: Compute the logits of the last position only, (B, 1, V); the
                rest of a prompt's are not needed to continue it.

        Raises:
            XlmfamError: For ids outside the vocabulary and shapes that do not fit.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds, last_logits_only)
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            head_mask=head_mask,
            cross_attn_head_mask=cross_attn_head_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = output.last_hidden_state
        logits = self.lm_head(hidden[:, -1:] if last_logits_only else hidden)
        result = CausalLMOutputWithCrossAttentions(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=output.past_key_values,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            cross_attentions=output.cross_attentions,
        )
        return result if return_dict else result.to_tuple()

    def _check_labels(self, labels, input_ids, inputs_embeds, last_logits_only) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        if last_logits_only:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        self.check_ids("labels", labels.masked_fill(labels == -100, 0))
