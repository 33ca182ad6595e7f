"""XLM's heads for classification and question answering in PyTorch.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers, K starts kept, M ends kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger
from xlmfam.pt.checks import check_labels
from xlmfam.pt.linear import Linear
from xlmfam.pt.losses import (
    choice_langs,
    classification_loss,
    column,
    flat,
    inside,
    mean_loss,
    within,
)
from xlmfam.pt.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XLMForQuestionAnsweringOutput,
)
from xlmfam.pt.xlm_modules import BeamAnswers, SequenceSummary, take_positions
from xlmfam.pt.xlm_transformer import Past, XLMModel, XLMPreTrainedModel

logger = get_logger(__name__)


class XLMHead(XLMPreTrainedModel):
    """What the heads share: XLM itself, and calling it."""

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.transformer = XLMModel(config)

    def _finish(self) -> None:
        """Draw the head's own initial values; those of the transformer are there."""
        self.post_init(keep=tuple(f"transformer.{n}" for n in self.transformer.state_dict()))

    def _finished(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class XLMForSequenceClassification(XLMHead):
    """XLM with a classifier or regressor of texts.

    Args:
        config: The config.
    """

    table_class = "XLMForSequenceClassification"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.sequence_summary = SequenceSummary(config)
        self._finish()

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
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.forward``, as for all arguments but ``labels``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats,
                (B,) or (B, num_labels), for regression. ``config.problem_type`` says which; by
                default one label is a regression, integers are classes, floats are several.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.forward``.
        """
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
        )
        logits = self.sequence_summary(output.last_hidden_state)
        result = SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XLMForMultipleChoice(XLMHead):
    """XLM that scores each of several texts.

    Args:
        config: The config.
    """

    table_class = "XLMForMultipleChoice"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.sequence_summary = SequenceSummary(config)
        self.logits_proj = Linear(config.num_labels, 1)
        self._finish()

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
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, C, S), see ``XLMModel.forward``.
            attention_mask: (B, C, S).
            langs: Languages by name or id: one, one per sample, one per choice (B, C), or
                (B, C, S) ids.
            token_type_ids: (B, C, S).
            position_ids: (B, C, S).
            lengths: Not used, as in transformers: give ``attention_mask``.
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, C, S, D).
            labels: (B,) number of the right choice.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.forward``.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        dimensions = 3 if inputs_embeds is None else 4
        if given is None or given.dim() != dimensions:
            shape = None if given is None else tuple(given.shape)
            wanted = "(batch, choices, sequence)" if dimensions == 3 else "with a width behind it"
            raise XlmfamError(f"the inputs must be {wanted}, got {shape}")
        if lengths is not None:
            logger.warning("lengths is not used for multiple choice: give attention_mask")
        batch, choices = given.shape[:2]
        check_shape("labels", labels, (batch,))
        check_labels(labels, choices)
        output = self.transformer(
            input_ids=flat(input_ids),
            attention_mask=flat(attention_mask),
            langs=choice_langs(self.config, langs, batch, choices),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            cache=cache,
            head_mask=head_mask,
            inputs_embeds=flat(inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        summary = self.sequence_summary(output.last_hidden_state)
        logits = self.logits_proj(summary).view(batch, choices)
        result = MultipleChoiceModelOutput(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XLMForTokenClassification(XLMHead):
    """XLM with a classifier of tokens.

    Args:
        config: The config.
    """

    table_class = "XLMForTokenClassification"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.classifier = Linear(config.emb_dim, config.num_labels)
        self._finish()

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
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.forward``, as for all arguments but ``labels``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B, S) classes; -100 does not count.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.forward``.
        """
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
        )
        hidden = F.dropout(output.last_hidden_state, self.config.dropout, self.training)
        logits = self.classifier(hidden)
        check_shape("labels", labels, tuple(logits.shape[:2]))
        check_labels(labels, self.config.num_labels)
        result = TokenClassifierOutput(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XLMForQuestionAnsweringSimple(XLMHead):
    """XLM that scores each token as start and as end of the answer.

    Args:
        config: The config; ``num_labels`` must be 2.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XLMForQuestionAnsweringSimple"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        if config.num_labels != 2:
            raise XlmfamError(
                f"question answering needs num_labels=2, start and end; got {config.num_labels}"
            )
        self.qa_outputs = Linear(config.emb_dim, config.num_labels)
        self._finish()

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
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.forward``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            start_positions: (B,) or (B, 1); one at or beyond S does not count, a negative one is 0.
            end_positions: The same, for the end.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.forward``.
        """
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
        )
        start, end = self.qa_outputs(output.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            targets = (
                within(column("start_positions", start_positions, len(start)), start.shape[1]),
                within(column("end_positions", end_positions, len(end)), end.shape[1]),
            )
            loss = (mean_loss(start, targets[0]) + mean_loss(end, targets[1])) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XLMForQuestionAnswering(XLMHead):
    """XLM that finds answers with a beam of starts and of ends, and tells where there is none.

    Args:
        config: The config.
    """

    table_class = "XLMForQuestionAnswering"

    def __init__(self, config: XLMConfig):
        super().__init__(config)
        self.qa_outputs = BeamAnswers(config)
        self._finish()

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
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        is_impossible: Tensor | None = None,
        cls_index: Tensor | None = None,
        p_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.forward``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            start_positions: (B,) or (B, 1). With both positions there is a loss and nothing else.
            end_positions: (B,) or (B, 1).
            is_impossible: (B,) or (B, 1), 1 where there is no answer; half its loss is added.
            cls_index: (B,) or (B, 1) position that tells so; the last by default. Its loss needs
                it.
            p_mask: (B, S), 1 for what cannot be in an answer (question, special tokens, padding).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For positions outside the text, a text shorter than the beam, and see
                ``XLMModel.forward``.
        """
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
        )
        hidden = output.last_hidden_state
        batch, length, _ = hidden.shape
        check_shape("p_mask", p_mask, (batch, length))
        if cls_index is not None:
            cls_index = inside("cls_index", cls_index, batch, length)
        if start_positions is not None and end_positions is not None:
            start = inside("start_positions", start_positions, batch, length)
            end = inside("end_positions", end_positions, batch, length)
            answers = {"loss": self._loss(hidden, start, end, is_impossible, cls_index, p_mask)}
        else:
            answers = self._best(hidden, cls_index, p_mask)
        result = XLMForQuestionAnsweringOutput(
            **answers, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return self._finished(result, return_dict)

    def _loss(self, hidden, start, end, is_impossible, cls_index, p_mask) -> Tensor:
        """Return the mean loss of start and end, with half that of there being no answer."""
        scorers = self.qa_outputs
        state = take_positions(hidden, start)
        start_loss = mean_loss(scorers.start_logits(hidden, p_mask), start)
        end_loss = mean_loss(scorers.end_logits(hidden, state, p_mask), end)
        loss = (start_loss + end_loss) / 2
        if cls_index is None or is_impossible is None:
            return loss
        logits = scorers.answer_class(hidden, state, cls_index)
        truth = column("is_impossible", is_impossible, len(logits)).float()
        return loss + 0.5 * F.binary_cross_entropy_with_logits(logits.float(), truth)

    def _best(self, hidden, cls_index, p_mask) -> dict[str, Tensor]:
        """Return the best starts, the best ends for each, and the score of no answer."""
        scorers, config = self.qa_outputs, self.config
        batch, length, _ = hidden.shape
        if max(config.start_n_top, config.end_n_top) > length:
            raise XlmfamError(
                f"start_n_top {config.start_n_top} and end_n_top {config.end_n_top} must not "
                f"exceed the {length} positions of the text"
            )
        starts = scorers.start_logits(hidden, p_mask).float().softmax(-1)
        start_best, start_index = starts.topk(config.start_n_top, -1)
        rows = torch.arange(batch, device=hidden.device)[:, None]
        chosen = hidden[rows, start_index]  # (B, K, D)
        spread = hidden[:, None].expand(-1, config.start_n_top, -1, -1)
        masks = None if p_mask is None else p_mask[:, None]
        ends = scorers.end_logits(spread, chosen, masks).float().softmax(-1)
        end_best, end_index = ends.topk(config.end_n_top, -1)  # (B, K, M)
        mean_start = torch.einsum("bs,bsd->bd", starts.to(hidden.dtype), hidden)
        return {
            "start_top_log_probs": start_best,
            "start_top_index": start_index,
            "end_top_log_probs": end_best.transpose(1, 2).flatten(1),
            "end_top_index": end_index.transpose(1, 2).flatten(1),
            "cls_logits": scorers.answer_class(hidden, mean_start, cls_index),
        }
