"""X-MOD's heads for classification and question answering in Flax.

Their linen modules stand in ``xmod_head_modules``.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers.
"""

from __future__ import annotations

from typing import Any

from jax import Array

from xlmfam.common.checks import check_shape
from xlmfam.common.configs.xmod import XmodConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.flax.base import Params, as_arrays
from xlmfam.flax.checks import (
    check_classes,
    check_labels,
    choice_langs,
    choices_of,
    column,
    flat,
)
from xlmfam.flax.xmod_head_modules import (
    XmodForMultipleChoiceModule,
    XmodForQuestionAnsweringModule,
    XmodForSequenceClassificationModule,
    XmodForTokenClassificationModule,
)
from xlmfam.flax.xmod_transformer import XmodPreTrainedModel


class XmodHead(XmodPreTrainedModel):
    """What the heads share: what is no encoder and no cache of a call."""

    def _prepare(self, *arguments: Any) -> dict[str, Any]:
        return super()._prepare(*arguments, None, None, None, False)


class XmodForSequenceClassification(XmodHead):
    """X-MOD with a classifier or regressor of texts.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodForSequenceClassification"
    module_class = XmodForSequenceClassificationModule

    def __call__(
        self,
        input_ids: Any = None,
        lang_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            lang_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
        )
        batch, _ = _shape(call)
        labels = check_classes(self.config, labels, batch, self.config.num_labels)
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng, labels=labels)


class XmodForMultipleChoice(XmodHead):
    """X-MOD that scores each of several texts.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodForMultipleChoice"
    module_class = XmodForMultipleChoiceModule

    def __call__(
        self,
        input_ids: Any = None,
        lang_ids: Any = None,
        token_type_ids: Any = None,
        attention_mask: Any = None,
        labels: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, C, S) token ids, see ``XmodModel.__call__``.
            lang_ids: Languages by code or number: one, one per sample, one per choice (B, C), or
                (B, C, S).
            token_type_ids: (B, C, S).
            attention_mask: (B, C, S).
            labels: (B,) number of the right choice.
            position_ids: (B, C, S).
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, C, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.__call__``.
        """
        given = as_arrays(ids=input_ids, vectors=inputs_embeds)
        batch, choices = choices_of(given["ids"], given["vectors"])
        call = self._prepare(
            flat(given["ids"]),
            choice_langs(self.config, lang_ids, batch, choices),
            flat(attention_mask),
            flat(token_type_ids),
            flat(position_ids),
            head_mask,
            flat(given["vectors"]),
        )
        labels = as_arrays(labels=labels)["labels"]
        check_shape("labels", labels, (batch,))
        check_labels(labels, choices)
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(
            call, *options, train, params, dropout_rng, labels=labels, choices=choices
        )


class XmodForTokenClassification(XmodHead):
    """X-MOD with a classifier of tokens.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XmodForTokenClassification"
    module_class = XmodForTokenClassificationModule

    def __call__(
        self,
        input_ids: Any = None,
        lang_ids: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            lang_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
        )
        labels = as_arrays(labels=labels)["labels"]
        check_shape("labels", labels, _shape(call))
        check_labels(labels, self.config.num_labels)
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng, labels=labels)


class XmodForQuestionAnswering(XmodHead):
    """X-MOD that scores each token as start and as end of the answer.

    Args:
        config: The config; ``num_labels`` must be 2.
        **kwargs: As in ``PreTrainedModel``.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XmodForQuestionAnswering"
    module_class = XmodForQuestionAnsweringModule

    def __init__(self, config: XmodConfig, *args: Any, **kwargs: Any):
        if getattr(config, "num_labels", 2) != 2:
            raise XlmfamError(
                f"question answering needs num_labels=2, start and end; got {config.num_labels}"
            )
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
        start_positions: Any = None,
        end_positions: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S) token ids, see ``XmodModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XmodModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            lang_ids,
            attention_mask,
            token_type_ids,
            position_ids,
            head_mask,
            inputs_embeds,
        )
        batch, _ = _shape(call)
        targets = {}
        if start_positions is not None and end_positions is not None:
            targets = {
                "start_positions": column("start_positions", start_positions, batch),
                "end_positions": column("end_positions", end_positions, batch),
            }
        options = (output_attentions, output_hidden_states, return_dict)
        return self._apply(call, *options, train, params, dropout_rng, **targets)


def _shape(call: dict[str, Any]) -> tuple[int, int]:
    """Return B and S of a checked call."""
    ids, vectors = call["input_ids"], call["inputs_embeds"]
    return (ids if vectors is None else vectors).shape[:2]
