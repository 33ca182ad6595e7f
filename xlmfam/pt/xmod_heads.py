"""X-MOD's heads for classification and question answering in PyTorch.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlmfam.common.checks import check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.pt.checks import check_labels
from xlmfam.pt.linear import Linear
from xlmfam.pt.losses import choice_langs, classification_loss, column, flat, mean_loss, within
from xlmfam.pt.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from xlmfam.pt.xmod_transformer import XmodModel, XmodPreTrainedModel


class XmodHead(XmodPreTrainedModel):
    """What the heads share: X-MOD itself, and the dropout before a classifier."""

    def __init__(self, config: XmodConfig, add_pooling_layer: bool = False):
        super().__init__(config)
        self.roberta = XmodModel(config, add_pooling_layer=add_pooling_layer)
        rate = config.classifier_dropout
        self.classifier_dropout = config.hidden_dropout_prob if rate is None else rate

    def _finish(self) -> None:
        """Draw the head's own initial values; those of the base are there."""
        self.post_init(keep=tuple(f"roberta.{n}" for n in self.roberta.state_dict()))

    def _drop(self, hidden: Tensor) -> Tensor:
        return F.dropout(hidden, self.classifier_dropout, self.training)

    def _finished(self, output: Any, return_dict: bool | None) -> Any:
        return_dict = self.config.use_return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()


class XmodClassificationHead(nn.Module):
    """Classifies a text by its first position.

    Args:
        config: The config.
    """

    def __init__(self, config: XmodConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)
        self.out_proj = Linear(config.hidden_size, config.num_labels)


class XmodForSequenceClassification(XmodHead):
    """X-MOD with a classifier or regressor of texts.

    Args:
        config: The config.
    """

    table_class = "XmodForSequenceClassification"

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.classifier = XmodClassificationHead(config)
        self._finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.forward``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats,
                (B,) or (B, num_labels), for regression. ``config.problem_type`` says which; by
                default one label is a regression, integers are classes, floats are several.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.forward``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        hidden = self._drop(output.last_hidden_state[:, 0])
        hidden = self._drop(torch.tanh(self.classifier.dense(hidden)))
        logits = self.classifier.out_proj(hidden)
        result = SequenceClassifierOutput(
            loss=None if labels is None else classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XmodForMultipleChoice(XmodHead):
    """X-MOD that scores each of several texts.

    Args:
        config: The config.
    """

    table_class = "XmodForMultipleChoice"

    def __init__(self, config: XmodConfig):
        super().__init__(config, add_pooling_layer=True)
        self.classifier = Linear(config.hidden_size, 1)
        self._finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, C, S) token ids, see ``XmodModel.forward``.
            lang_ids: Languages by code or number: one, one per sample, one per choice (B, C), or
                (B, C, S).
            attention_mask: (B, C, S).
            token_type_ids: (B, C, S).
            position_ids: (B, C, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, C, S, D).
            labels: (B,) number of the right choice.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.forward``.
        """
        given = input_ids if inputs_embeds is None else inputs_embeds
        dimensions = 3 if inputs_embeds is None else 4
        if given is None or given.dim() != dimensions:
            shape = None if given is None else tuple(given.shape)
            wanted = "(batch, choices, sequence)" if dimensions == 3 else "with a width behind it"
            raise XlmfamError(f"the inputs must be {wanted}, got {shape}")
        batch, choices = given.shape[:2]
        check_shape("labels", labels, (batch,))
        check_labels(labels, choices)
        output = self.roberta(
            input_ids=flat(input_ids),
            lang_ids=choice_langs(self.config, lang_ids, batch, choices),
            attention_mask=flat(attention_mask),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            head_mask=head_mask,
            inputs_embeds=flat(inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        pooled = F.dropout(output.pooler_output, self.config.hidden_dropout_prob, self.training)
        logits = self.classifier(pooled).view(batch, choices)
        result = MultipleChoiceModelOutput(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XmodForTokenClassification(XmodHead):
    """X-MOD with a classifier of tokens.

    Args:
        config: The config.
    """

    table_class = "XmodForTokenClassification"

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        self.classifier = Linear(config.hidden_size, config.num_labels)
        self._finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        head_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.forward``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            labels: (B, S) classes; -100 does not count.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.forward``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            head_mask=head_mask,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self._drop(output.last_hidden_state))
        check_shape("labels", labels, tuple(logits.shape[:2]))
        check_labels(labels, self.config.num_labels)
        result = TokenClassifierOutput(
            loss=None if labels is None else mean_loss(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


class XmodForQuestionAnswering(XmodHead):
    """X-MOD that scores each token as start and as end of the answer.

    Args:
        config: The config; ``num_labels`` must be 2.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XmodForQuestionAnswering"

    def __init__(self, config: XmodConfig):
        super().__init__(config)
        if config.num_labels != 2:
            raise XlmfamError(
                f"question answering needs num_labels=2, start and end; got {config.num_labels}"
            )
        self.qa_outputs = Linear(config.hidden_size, config.num_labels)
        self._finish()

    def forward(
        self,
        input_ids: Tensor | None = None,
        lang_ids: Any = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
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
            input_ids: (B, S) token ids, see ``XmodModel.forward``.
            lang_ids: Languages by code or number.
            attention_mask: (B, S).
            token_type_ids: (B, S).
            position_ids: (B, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            start_positions: (B,) or (B, 1); one at or beyond S does not count, a negative one is 0.
            end_positions: The same, for the end.
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.forward``.
        """
        output = self.roberta(
            input_ids=input_ids,
            lang_ids=lang_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
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
