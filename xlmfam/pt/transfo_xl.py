"""Transformer-XL with its heads in PyTorch: the language model, the classifier of texts.

Shapes: B batch, S sequence, M memory, H heads, D width, L layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xlmfam.common.checks import check_inputs, check_shape
from xlmfam.common.configs.transfo_xl import TransfoXLConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.evaluation import Evaluation, evaluate_stream
from xlmfam.pt.checks import IGNORED
from xlmfam.pt.generation import GenerationMixin
from xlmfam.pt.linear import Linear
from xlmfam.pt.losses import classification_loss
from xlmfam.pt.outputs import (
    TransfoXLLMHeadModelOutput,
    TransfoXLSequenceClassifierOutputWithPast,
)
from xlmfam.pt.transfo_xl_modules import AdaptiveSoftmax
from xlmfam.pt.transfo_xl_transformer import Mems, TransfoXLModel, TransfoXLPreTrainedModel

__all__ = [
    "TransfoXLForSequenceClassification",
    "TransfoXLLMHeadModel",
    "TransfoXLModel",
    "TransfoXLPreTrainedModel",
]


class TransfoXLLMHeadModel(TransfoXLPreTrainedModel, GenerationMixin):
    """Transformer-XL with the adaptive softmax, tied to the embedding by default.

    Args:
        config: The config.
    """

    table_class = "TransfoXLLMHeadModel"
    generation_arguments = ("mems", "head_mask")

    def __init__(self, config: TransfoXLConfig):
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.crit = AdaptiveSoftmax(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
        last_logits_only: bool = False,
    ) -> TransfoXLLMHeadModelOutput | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``TransfoXLModel.forward``, as for all arguments but
                ``labels`` and ``last_logits_only``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B, S) ids; position i is held against the scores of position i - 1. -100 does
                not count, nor does a row's first token behind padding. There are ``losses``
                (B, S - 1) and their mean ``loss`` then, and no scores.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            attention_mask: (B, S).
            last_logits_only: Score the last position only, (B, 1, V).

        Raises:
            XlmfamError: For labels that do not fit, and see ``TransfoXLModel.forward``.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        if labels is not None:
            self._check_labels(labels, input_ids, inputs_embeds)
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
        )
        hidden, losses, loss, scores = output.last_hidden_state, None, None, None
        if labels is None:
            scores = self._score(hidden[:, -1:] if last_logits_only else hidden)
        else:
            targets = labels[:, 1:]
            if attention_mask is not None:  # what padding predicts means nothing
                targets = targets.masked_fill(attention_mask[:, :-1] == 0, IGNORED)
            losses = self.crit.losses(hidden[:, :-1].flatten(0, 1), targets.flatten())
            losses = losses.view_as(targets)
            loss = losses.sum() / (targets != IGNORED).sum()
        result = TransfoXLLMHeadModelOutput(
            losses=losses,
            prediction_scores=scores,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            loss=loss,
        )
        return result if return_dict else result.to_tuple()

    def _score(self, hidden: Tensor) -> Tensor:
        """Return log-probabilities (B, S, V) of states (B, S, D)."""
        return self.crit.log_prob(hidden.flatten(0, 1)).view(*hidden.shape[:2], -1)

    def _check_labels(self, labels, input_ids, inputs_embeds) -> None:
        check_inputs(input_ids, inputs_embeds, self.config.d_model)
        given = input_ids if inputs_embeds is None else inputs_embeds
        check_shape("labels", labels, tuple(given.shape[:2]))
        if given.shape[1] < 2:
            raise XlmfamError("labels need two tokens in a row at least: the first has no score")
        self.check_ids("labels", labels.masked_fill(labels == IGNORED, 0))

    # ---- evaluation ---------------------------------------------------------------------

    def token_losses(
        self,
        input_ids: Tensor,
        targets: Tensor,
        mems: Mems | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Mems | None]:
        """Return the losses (B, S) of what follows each token, and the mems for the next call.

        Args:
            input_ids: (B, S).
            targets: (B, S), what each position is to predict; -100 does not count and costs 0.
            mems: See ``TransfoXLModel.forward``.
            attention_mask: (B, S).

        Raises:
            XlmfamError: For inputs that do not fit.
        """
        check_shape("targets", targets, tuple(input_ids.shape))
        self.check_ids("targets", targets.masked_fill(targets == IGNORED, 0))
        output = self.transformer(input_ids, mems, attention_mask=attention_mask, return_dict=True)
        losses = self.crit.losses(output.last_hidden_state.flatten(0, 1), targets.flatten())
        return losses.view_as(targets), output.mems

    @torch.no_grad()
    def evaluate_perplexity(
        self,
        stream: Any,
        batch_size: int = 1,
        segment_length: int = 128,
        memory_length: int | None = None,
        clamp_length: int | None = None,
    ) -> Evaluation:
        """Evaluate a long text with carried memories, as section 4 of the paper does.

        Args:
            stream: Token ids of the text, one after the other.
            batch_size: Number of rows that the text is cut into, to be read side by side.
            segment_length: Tokens of a call.
            memory_length: Tokens that are remembered; by default those of the model.
            clamp_length: Distances beyond it count as it; by default that of the model.

        Returns:
            Loss, perplexity and bits.

        Raises:
            XlmfamError: For a text that is too short, ids outside the vocabulary, and sizes that
                cannot be.
        """

        def step(ids, targets, mems):
            ids, targets = (torch.as_tensor(a, device=self.device).long() for a in (ids, targets))
            if mems is None and self.transformer.mem_len:
                mems = self.init_cache(len(ids), segment_length)
            losses, mems = self.token_losses(ids, targets, mems)
            return float(losses.double().sum()), mems

        before = self.transformer.mem_len, self.config.clamp_len, self.training
        try:
            self.eval()
            self.reset_memory_length(before[0] if memory_length is None else memory_length)
            self.config.clamp_len = before[1] if clamp_length is None else clamp_length
            return evaluate_stream(step, stream, batch_size, segment_length)
        finally:
            self.transformer.mem_len, self.config.clamp_len, training = before
            self.train(training)

    # ---- generation ---------------------------------------------------------------------

    @property
    def generates_with_cache(self) -> bool:
        """Whether there is a memory to keep."""
        return self.transformer.mem_len > 0

    def next_logits(self, ids, length, mask, cache, extra: dict[str, Any]) -> Tensor:
        """Return scores (R, V) of the token that follows; see ``GenerationMixin``."""
        del length
        extra = dict(extra)
        mems, only_the_best = extra.pop("mems", None), extra.pop("only_the_best", False)
        if cache is not None:
            if mems is not None and not cache.is_used:
                cache.load(mems)
            # What stood behind padding has been moved; from there on rows are alike.
            mask, mems = (None if cache.is_used else mask), cache
        output = self.transformer(ids, mems, attention_mask=mask, return_dict=True, **extra)
        score = self.crit.greedy_scores if only_the_best else self.crit.log_prob
        return score(output.last_hidden_state[:, -1])

    def prepare_greedy(self, extra: dict[str, Any]) -> dict[str, Any]:
        """Let tail clusters be skipped that cannot have the best word."""
        return {**extra, "only_the_best": True}


class TransfoXLForSequenceClassification(TransfoXLPreTrainedModel):
    """Transformer-XL that classifies texts by the state of their last token.

    Args:
        config: The config.
    """

    table_class = "TransfoXLForSequenceClassification"

    def __init__(self, config: TransfoXLConfig):
        super().__init__(config)
        self.transformer = TransfoXLModel(config)
        self.score = Linear(config.d_model, config.num_labels, bias=False)
        self.post_init(keep=tuple(f"transformer.{n}" for n in self.transformer.state_dict()))

    def forward(
        self,
        input_ids: Tensor | None = None,
        mems: Mems | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        attention_mask: Tensor | None = None,
    ) -> TransfoXLSequenceClassifierOutputWithPast | tuple[Any, ...]:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``TransfoXLModel.forward``, as for all arguments but
                ``labels``. The text ends before the first ``pad_token_id``.
            mems: (M, B, D) for each layer.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D); the text is all of it.
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats, (B,)
                or (B, num_labels), for regression. ``config.problem_type`` says which; by default
                the dtype and the number of classes do.
            output_attentions: Return attention weights.
            output_hidden_states: Return the embeddings and the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            attention_mask: (B, S).

        Raises:
            XlmfamError: For labels that do not fit, for several rows of ids without a padding
                token in the config, and see ``TransfoXLModel.forward``.
        """
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        output = self.transformer(
            input_ids=input_ids,
            mems=mems,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            attention_mask=attention_mask,
        )
        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        logits = self.score(hidden[rows, self._ends(input_ids, hidden, attention_mask)])
        result = TransfoXLSequenceClassifierOutputWithPast(
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            mems=output.mems,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return result if return_dict else result.to_tuple()

    def _ends(
        self, input_ids: Tensor | None, hidden: Tensor, attention_mask: Tensor | None
    ) -> Tensor:
        """Return the place of each row's last token, (B,)."""
        batch, length = hidden.shape[:2]
        last = torch.full((batch,), length - 1, device=hidden.device)
        pad = self.config.pad_token_id
        if input_ids is None or attention_mask is not None:
            return last
        if pad is None:
            if batch > 1:
                raise XlmfamError(
                    "texts of a batch end before their padding: set pad_token_id in the config, "
                    "or give attention_mask for padding on the left"
                )
            return last
        padded = input_ids == pad
        first = padded.int().argmax(-1)
        return torch.where(padded.any(-1) & (first > 0), first - 1, last)
