"""XLM in PyTorch (Conneau and Lample 2019, "Cross-lingual Language Model Pretraining").

Shapes: B batch, T text, S what is new of it (all, without a cache), H heads, K head width,
D width, E source, L layers, V vocabulary, N labels that count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import ConfigError, XlmfamError
from xlmfam.common.fill_mask import FillMaskMixin
from xlmfam.pt.cache import KeyValueCache
from xlmfam.pt.checks import IGNORED
from xlmfam.pt.generation import GenerationMixin
from xlmfam.pt.layers import text_positions
from xlmfam.pt.losses import labelled, mean_loss
from xlmfam.pt.outputs import CausalLMOutputWithCrossAttentions, MaskedLMOutput
from xlmfam.pt.xlm_modules import XLMPredLayer
from xlmfam.pt.xlm_transformer import Past, XLMModel, XLMPreTrainedModel

__all__ = ["XLMModel", "XLMPreTrainedModel", "XLMWithLMHeadModel"]


class XLMWithLMHeadModel(XLMPreTrainedModel, GenerationMixin, FillMaskMixin):
    """XLM with the vocabulary projection, tied to the token embedding by default.

    Args:
        config: The config.
    """

    table_class = "XLMWithLMHeadModel"
    generation_arguments = ("langs", "head_mask")

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.transformer = XLMModel(config)
        self.pred_layer = XLMPredLayer(config)
        self.post_init(keep=tuple(f"transformer.{n}" for n in self.transformer.state_dict()))

    def get_output_embeddings(self) -> nn.Linear | None:
        """Return the projection to the vocabulary, or ``None`` of an adaptive softmax."""
        return None if self.config.asm else self.pred_layer.proj  # type: ignore[return-value]

    def init_cache(self, batch_size: int, max_length: int) -> KeyValueCache:
        """Return an empty cache for ``batch_size`` rows of up to ``max_length`` tokens."""
        return self.transformer.init_cache(batch_size, max_length)

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) of (..., D); of an adaptive softmax, log-probabilities."""
        return self.pred_layer(hidden)

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
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        src_enc: Tensor | None = None,
        src_len: Tensor | None = None,
        src_mask: Tensor | None = None,
        last_logits_only: bool = False,
        labelled_logits_only: bool | int = False,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, T) token ids.
            attention_mask: (B, T), see ``XLMModel.forward``, as for the arguments up to ``cache``.
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
            src_enc: (B, E, D) states of a source, in a decoder.
            src_len: (B,).
            src_mask: (B, E).
            last_logits_only: Compute the logits of the last position only, (B, 1, V).
            labelled_logits_only: Compute logits only where there is a label, (N, V) in the order
                of the labels; the loss is the same. A number makes room for that many, so that
                shapes do not depend on values: rows beyond the labels mean nothing, and more
                labels than that raise, or where they cannot be counted make the loss NaN.

        Raises:
            XlmfamError: For ids, languages and positions that are not there, and shapes that do
                not fit.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds, cache)
        if labelled_logits_only and labels is None:
            raise XlmfamError("labelled_logits_only needs labels")
        if last_logits_only and labels is not None:
            raise XlmfamError("labels need the logits of all positions, not the last one's")
        output = self.transformer(
            input_ids=input_ids,
            attention_mask=attention_mask,
            langs=langs,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            lengths=lengths,
            cache=cache,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            src_enc=src_enc,
            src_len=src_len,
            src_mask=src_mask,
        )
        hidden = output.last_hidden_state
        targets = None if labels is None else self._targets(labels)
        if labelled_logits_only and targets is not None:
            hidden, targets = labelled(hidden, targets, labelled_logits_only)
        logits = self.pred_layer(hidden[:, -1:] if last_logits_only else hidden)
        fields = {
            "loss": None if targets is None else mean_loss(logits, targets),
            "logits": logits,
            "hidden_states": output.hidden_states,
            "attentions": output.attentions,
        }
        result: Any = MaskedLMOutput(**fields)
        if not self.config.is_encoder:
            result = CausalLMOutputWithCrossAttentions(
                **fields, cross_attentions=output.cross_attentions
            )
        return result if return_dict else result.to_tuple()

    def _check_labels(self, labels, input_ids, inputs_embeds, cache) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.emb_dim)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        self.check_ids("labels", labels.masked_fill(labels == IGNORED, 0))
        if isinstance(cache, KeyValueCache) or (cache and cache.get("slen")):
            raise XlmfamError("labels need the whole text at once: leave the filled cache out")

    def _targets(self, labels: Tensor) -> Tensor:
        """Return (B, T): what each position is to predict."""
        return F.pad(labels[:, 1:], (0, 1), value=IGNORED) if self.config.is_causal else labels

    # ---- generation and filling in ------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether keys and values of earlier tokens stay as they are when one is added."""
        return self.config.is_causal and not any(self.config.pruned_heads.values())

    def prepare_generation(self, plan, prompt, mask, extra: dict[str, Any]) -> dict[str, Any]:
        """Check that there are positions enough; give every token to come its language.

        New tokens have the language of the last token of their prompt.
        """
        batch, length = prompt.shape
        padding = 0 if mask is None else int(mask.shape[1] - mask.sum(-1).max())
        # The last token is not read again; a masked model reads one mask token instead.
        needed = plan.max_length - padding - int(self.config.is_causal)
        if needed > self.config.max_position_embeddings:
            raise ConfigError(
                f"max_length {plan.max_length} needs {needed} positions, "
                f"max_position_embeddings is {self.config.max_position_embeddings}"
            )
        langs = extra.pop("langs", None)
        if langs is None:
            langs = self.config.lang_id if self.config.uses_languages else None
        langs = self.transformer.languages(langs, batch, length, prompt.device)
        if langs is not None:
            langs = langs.expand(batch, length)
            later = langs[:, -1:].expand(batch, plan.new_tokens)
            extra["langs"] = torch.cat([langs, later], 1)
        return extra

    def next_logits(self, ids, length, mask, cache, extra: dict[str, Any]) -> Tensor:
        """Return the scores (R, V) of what follows ``ids``; see ``GenerationMixin``."""
        langs, head_mask = extra.get("langs"), extra.get("head_mask")
        positions = None
        if not self.config.is_causal:
            ids = F.pad(ids, (0, 1), value=self.config.mask_token_id)
            length += 1
            mask = ids.new_ones(ids.shape) if mask is None else F.pad(mask, (0, 1), value=1)
            positions = text_positions(mask, 0, length, ids.device)
        elif mask is None:
            mask = ids.new_ones(ids.shape[0], length)  # a generated pad is a token like others
        output = self(
            input_ids=ids,
            attention_mask=mask,
            langs=None if langs is None else langs[:, length - ids.shape[1] : length],
            position_ids=positions,
            cache=cache,
            head_mask=head_mask,
            last_logits_only=True,
            return_dict=True,
        )
        return output.logits[:, -1].float()

    @torch.no_grad()
    def mask_probabilities(
        self, input_ids: Any, attention_mask: Any, langs: Any, rows: Any, columns: Any
    ) -> np.ndarray:
        """Return (n, V) probabilities at n positions of (B, T) ids; see ``FillMaskMixin``."""
        device = self.device
        output = self.transformer(
            input_ids=torch.as_tensor(input_ids, device=device),
            attention_mask=torch.as_tensor(attention_mask, device=device),
            langs=langs,
            return_dict=True,
        )
        hidden = output.last_hidden_state[rows, columns]
        return self.pred_layer(hidden).float().softmax(-1).cpu().numpy()
