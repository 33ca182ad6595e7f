"""X-MOD's language models in PyTorch (Pfeiffer et al. 2022).

Shapes: B batch, S sequence, T sequence with past, H heads, D width, E encoder sequence, L layers,
V vocabulary, N labels that count, R rows in generation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.common.languages import resolve_langs
from xlmfam.pt.cache import KeyValueCache
from xlmfam.pt.checks import IGNORED
from xlmfam.pt.generation import GenerationMixin
from xlmfam.pt.layers import causal_lm_loss
from xlmfam.pt.linear import Linear
from xlmfam.pt.losses import labelled, mean_loss
from xlmfam.pt.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from xlmfam.pt.xmod_transformer import Past, XmodModel, XmodPreTrainedModel

__all__ = ["XmodForCausalLM", "XmodForMaskedLM", "XmodModel", "XmodPreTrainedModel"]


class XmodLMHead(nn.Module):
    """A dense layer and the projection to the vocabulary.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        width = config.hidden_size
        self.dense = Linear(width, width)
        self.layer_norm = nn.LayerNorm(width, config.layer_norm_eps)
        self.decoder = Linear(width, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D)."""
        return self.decoder(self.layer_norm(F.gelu(self.dense(hidden))))


class XmodLanguageModel(XmodPreTrainedModel):
    """What the two language models share.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.roberta = XmodModel(config, add_pooling_layer=False)
        self.lm_head = XmodLMHead(config)
        self.post_init(keep=tuple(f"roberta.{n}" for n in self.roberta.state_dict()))

    def get_output_embeddings(self) -> nn.Linear:
        """Return the projection to the vocabulary."""
        return self.lm_head.decoder

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D)."""
        return self.lm_head(hidden)

    def _check_labels(self, labels, input_ids, inputs_embeds) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.hidden_size)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        self.check_ids("labels", labels.masked_fill(labels == IGNORED, 0))


class XmodForCausalLM(XmodLanguageModel, GenerationMixin):
    """X-MOD that predicts the next token; ``config.is_decoder`` makes it look back only.

    Args:
        config: The config.
    """

    table_class = "XmodForCausalLM"
    generation_arguments = (
        "lang_ids",
        "head_mask",
        "encoder_hidden_states",
        "encoder_attention_mask",
    )

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        return self.roberta.init_cache(batch_size, max_length)

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
        labels: Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        last_logits_only: bool = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.forward``, as for all but ``labels``.
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
            last_logits_only: Compute the logits of the last position only, (B, 1, V).

        Raises:
            XlmfamError: See ``XmodModel.forward``.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
            if last_logits_only:
                raise XlmfamError("labels need the logits of all positions, not the last one's")
            use_cache = False
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            past_key_values=past_key_values,
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
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return self.config.is_causal

    def prepare_generation(self, plan, prompt, mask, extra: dict[str, Any]) -> dict[str, Any]:
        """Check that there are positions enough; give every token to come its language.

        New tokens have the language of the last token of their prompt.
        """
        batch, length = prompt.shape
        padding = 0 if mask is None else int(mask.shape[1] - mask.sum(-1).max())
        room = self.config.max_position_embeddings - self.config.pad_token_id - 1
        if plan.max_length - padding - 1 > room:
            raise ConfigError(
                f"max_length {plan.max_length} needs {plan.max_length - padding - 1} positions, "
                f"the model has {room}"
            )
        langs = resolve_langs(self.config, extra.pop("lang_ids", None))
        if langs is not None:
            langs = torch.as_tensor(langs, device=prompt.device)
            check_shape("lang_ids", langs, *((b, s) for b in (batch, 1) for s in (length, 1)))
            langs = langs.expand(batch, langs.shape[1])
            if langs.shape[1] > 1:
                langs = torch.cat([langs, langs[:, -1:].expand(batch, plan.new_tokens)], 1)
            extra["lang_ids"] = langs
        return extra

    def next_logits(self, ids, length, mask, cache, extra: dict[str, Any]) -> Tensor:
        """Return the scores (R, V) of what follows ``ids``; see ``GenerationMixin``."""
        first = length - ids.shape[1]
        pad = self.config.pad_token_id
        if mask is None:
            positions = torch.arange(first, length, device=ids.device)[None] + pad + 1
        else:
            positions = (mask.cumsum(-1) * mask + pad)[:, first:]
        given = dict(extra)
        langs = given.pop("lang_ids", None)
        if langs is not None and langs.shape[1] > 1:
            langs = langs[:, first:length]
        output = self(
            input_ids=ids,
            lang_ids=langs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=False,
            last_logits_only=True,
            return_dict=True,
            **given,
        )
        return output.logits[:, -1].float()


class XmodForMaskedLM(XmodLanguageModel, FillMaskMixin):
    """X-MOD that guesses hidden tokens.

    Args:
        config: The config.
    """

    table_class = "XmodForMaskedLM"

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
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.forward``, as for all but ``labels``.
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
            labelled_logits_only: Compute logits only where there is a label, see
                ``XLMWithLMHeadModel.forward``.

        Raises:
            XlmfamError: See ``XmodModel.forward``.
        """
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
        elif labelled_logits_only:
            raise XlmfamError("labelled_logits_only needs labels")
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden, targets = output.last_hidden_state, labels
        if labelled_logits_only and labels is not None:
            hidden, targets = labelled(hidden, labels, labelled_logits_only)
        logits = self.lm_head(hidden)
        result = MaskedLMOutput(
            loss=None if targets is None else mean_loss(logits, targets),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return result if return_dict else result.to_tuple()

    @torch.no_grad()
    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, S) ids; see ``FillMaskMixin``."""
        output = self.roberta(
            input_ids=torch.as_tensor(input_ids, device=self.device),
            lang_ids=langs,
            attention_mask=torch.as_tensor(attention_mask, device=self.device),
            return_dict=True,
        )
        hidden = output.last_hidden_state[rows, columns]
        return self.lm_head(hidden).float().softmax(-1).cpu().numpy()
