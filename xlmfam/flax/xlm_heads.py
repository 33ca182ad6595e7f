"""XLM's heads for classification and question answering in Flax.

Their linen modules stand in ``xlm_head_modules``.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers, K starts kept, M ends kept.
"""

from __future__ import annotations

from typing import Any

from jax import Array

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger
from xlmfam.flax.base import Params, as_arrays
from xlmfam.flax.cache import KeyValueCache
from xlmfam.flax.checks import (
    check_classes,
    check_labels,
    choice_langs,
    choices_of,
    column,
    flat,
    inside,
)
from xlmfam.flax.xlm_head_modules import (
    XLMForMultipleChoiceModule,
    XLMForQuestionAnsweringModule,
    XLMForQuestionAnsweringSimpleModule,
    XLMForSequenceClassificationModule,
    XLMForTokenClassificationModule,
)
from xlmfam.flax.xlm_inputs import Prepared
from xlmfam.flax.xlm_transformer import XLMPreTrainedModel, fill_dict

logger = get_logger(__name__)


class XLMHead(XLMPreTrainedModel):
    """What the heads share: calling them."""

    def _prepare(self, *arguments: Any, **source: Any) -> Prepared:
        call = super()._prepare(*arguments, **source)
        if isinstance(call.arguments["past_key_values"], KeyValueCache):
            raise XlmfamError(
                "this head has no output for the next KeyValueCache: give a dict as its cache, "
                '{"slen": 0}'
            )
        return call

    def _run(
        self, call: Prepared, cache: Any, return_dict: bool | None, options: tuple, **own: Any
    ) -> Any:
        """Run the module; ``options`` are the last arguments of ``_apply``."""
        output, presents = self._apply(call, *options, **own)
        fill_dict(cache, presents, call)
        return self._finish(output, return_dict)


class XLMForSequenceClassification(XLMHead):
    """XLM with a classifier or regressor of texts.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMForSequenceClassification"
    module_class = XLMForSequenceClassificationModule

    def _dropout_rates(self) -> tuple[float, ...]:
        config = self.config
        summary = (config.summary_first_dropout, config.summary_last_dropout)
        return (*super()._dropout_rates(), *summary)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
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
            input_ids: (B, S), see ``XLMModel.__call__``, as for all arguments but ``labels``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            head_mask,
            inputs_embeds,
        )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        labels = check_classes(self.config, labels, call.shape[0], logits_width(self.config))
        return self._run(call, cache, return_dict, options, labels=labels)


class XLMForMultipleChoice(XLMHead):
    """XLM that scores each of several texts.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMForMultipleChoice"
    module_class = XLMForMultipleChoiceModule

    def _dropout_rates(self) -> tuple[float, ...]:
        config = self.config
        summary = (config.summary_first_dropout, config.summary_last_dropout)
        return (*super()._dropout_rates(), *summary)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
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
            input_ids: (B, C, S), see ``XLMModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.__call__``.
        """
        given = as_arrays(ids=input_ids, vectors=inputs_embeds)
        batch, choices = choices_of(given["ids"], given["vectors"])
        if lengths is not None:
            logger.warning("lengths is not used for multiple choice: give attention_mask")
        call = self._prepare(
            flat(given["ids"]),
            flat(attention_mask),
            choice_langs(self.config, langs, batch, choices),
            flat(token_type_ids),
            flat(position_ids),
            None,
            cache,
            head_mask,
            flat(given["vectors"]),
        )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        labels = as_arrays(labels=labels)["labels"]
        check_shape("labels", labels, (batch,))
        check_labels(labels, choices)
        return self._run(call, cache, return_dict, options, labels=labels, choices=choices)


class XLMForTokenClassification(XLMHead):
    """XLM with a classifier of tokens.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMForTokenClassification"
    module_class = XLMForTokenClassificationModule

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
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
            input_ids: (B, S), see ``XLMModel.__call__``, as for all arguments but ``labels``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            head_mask,
            inputs_embeds,
        )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        labels = as_arrays(labels=labels)["labels"]
        # With a filled dict the output is of what is new, and so are the labels.
        check_shape("labels", labels, (call.shape[0], call.new))
        check_labels(labels, self.config.num_labels)
        return self._run(call, cache, return_dict, options, labels=labels)


class XLMForQuestionAnsweringSimple(XLMHead):
    """XLM that scores each token as start and as end of the answer.

    Args:
        config: The config; ``num_labels`` must be 2.
        **kwargs: As in ``PreTrainedModel``.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XLMForQuestionAnsweringSimple"
    module_class = XLMForQuestionAnsweringSimpleModule

    def __init__(self, config: XLMConfig, *args: Any, **kwargs: Any):
        if getattr(config, "num_labels", 2) != 2:
            raise XlmfamError(
                f"question answering needs num_labels=2, start and end; got {config.num_labels}"
            )
        super().__init__(config, *args, **kwargs)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
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
            input_ids: (B, S), see ``XLMModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            head_mask,
            inputs_embeds,
        )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        targets = {}
        if start_positions is not None and end_positions is not None:
            targets = {
                "start_positions": column("start_positions", start_positions, call.shape[0]),
                "end_positions": column("end_positions", end_positions, call.shape[0]),
            }
        return self._run(call, cache, return_dict, options, **targets)


class XLMForQuestionAnswering(XLMHead):
    """XLM that finds answers with a beam of starts and of ends, and tells where there is none.

    Args:
        config: The config.
        **kwargs: As in ``PreTrainedModel``.
    """

    table_class = "XLMForQuestionAnswering"
    module_class = XLMForQuestionAnsweringModule

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        langs: Any = None,
        token_type_ids: Any = None,
        position_ids: Any = None,
        lengths: Any = None,
        cache: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        start_positions: Any = None,
        end_positions: Any = None,
        is_impossible: Any = None,
        cls_index: Any = None,
        p_mask: Any = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        train: bool = False,
        params: Params | None = None,
        dropout_rng: Array | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.__call__``.
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
            train: Drop out, with ``dropout_rng``.
            params: To use instead of the model's own.
            dropout_rng: Draws what is dropped.

        Raises:
            XlmfamError: For positions outside the text, a text shorter than the beam, and see
                ``XLMModel.__call__``.
        """
        call = self._prepare(
            input_ids,
            attention_mask,
            langs,
            token_type_ids,
            position_ids,
            lengths,
            cache,
            head_mask,
            inputs_embeds,
        )
        options = (output_attentions, output_hidden_states, train, params, dropout_rng)
        own = self._answers(call, start_positions, end_positions, is_impossible, cls_index, p_mask)
        return self._run(call, cache, return_dict, options, **own)

    def _answers(self, call, start, end, is_impossible, cls_index, p_mask) -> dict[str, Any]:
        """Return the head's arguments, checked."""
        (batch, _), length, config = call.shape, call.new, self.config
        own: dict[str, Any] = {"p_mask": as_arrays(p_mask=p_mask)["p_mask"]}
        check_shape("p_mask", own["p_mask"], (batch, length))
        if cls_index is not None:
            own["cls_index"] = inside("cls_index", cls_index, batch, length)
        if start is not None and end is not None:
            own["start_positions"] = inside("start_positions", start, batch, length)
            own["end_positions"] = inside("end_positions", end, batch, length)
            if is_impossible is not None and cls_index is not None:
                own["is_impossible"] = column("is_impossible", is_impossible, batch)
        elif max(config.start_n_top, config.end_n_top) > length:
            raise XlmfamError(
                f"start_n_top {config.start_n_top} and end_n_top {config.end_n_top} must not "
                f"exceed the {length} positions of the text"
            )
        return own


def logits_width(config: XLMConfig) -> int:
    """Return the width of what a text is classified by."""
    to_labels = config.summary_use_proj and config.summary_proj_to_labels
    return config.num_labels if to_labels else config.emb_dim
