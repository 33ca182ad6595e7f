"""XLM's heads for classification and question answering in TensorFlow.

Losses are one per sample, or per label; their mean is the loss that PyTorch returns.

Shapes: B batch, S sequence, C choices, D width, H heads, L layers, K starts kept, M ends kept.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from xlmfam.common.checks import check_shape
from xlmfam.common.configs import XLMConfig
from xlmfam.common.errors import XlmfamError
from xlmfam.common.logging import get_logger
from xlmfam.tf.attention import Tensor, sizes
from xlmfam.tf.checks import check_labels, check_range
from xlmfam.tf.layers import (
    Linear,
    label_losses,
    label_weights,
    mean_label_loss,
    token_losses,
)
from xlmfam.tf.losses import (
    choice_langs,
    choice_losses,
    classification_losses,
    column,
    flat,
    needs_all,
    span_losses,
    weighted_mean,
)
from xlmfam.tf.outputs import (
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
    XLMForQuestionAnsweringOutput,
)
from xlmfam.tf.training import main_output
from xlmfam.tf.xlm import XLMPreTrainedModel
from xlmfam.tf.xlm_modules import BeamAnswers, SequenceSummary, take_positions
from xlmfam.tf.xlm_transformer import Past

logger = get_logger(__name__)


@keras.saving.register_keras_serializable("xlmfam")
class XLMForSequenceClassification(XLMPreTrainedModel):
    """XLM with a classifier or regressor of texts.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMForSequenceClassification"

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.sequence_summary = SequenceSummary(
            config, dtype=self.dtype_policy, name="sequence_summary"
        )
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        losses = classification_losses(self.config, main_output(output), labels, none=0.0)
        return weighted_mean(losses, weights)

    def call(
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
        labels: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.call``, as for all arguments but ``labels``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B,) classes; (B, num_labels) floats for several classes at once; floats,
                (B,) or (B, num_labels), for regression. ``config.problem_type`` says which; by
                default one label is a regression, integers are classes, floats are several.
                ``loss`` is then (B,).
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.call``.
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
            training=training,
        )
        dropper = self.transformer.dropper(training)
        logits = self.sequence_summary(output.last_hidden_state, dropper)
        result = SequenceClassifierOutput(
            loss=None if labels is None else classification_losses(self.config, logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XLMForMultipleChoice(XLMPreTrainedModel):
    """XLM that scores each of several texts.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMForMultipleChoice"
    input_dimensions = 3

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.sequence_summary = SequenceSummary(
            config, dtype=self.dtype_policy, name="sequence_summary"
        )
        self.logits_proj = Linear(dtype=self.dtype_policy, name="logits_proj")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where none counts."""
        labels = tf.convert_to_tensor(labels)
        losses = choice_losses(main_output(output), column("labels", labels, None), none=0.0)
        return weighted_mean(losses, weights)

    def call(
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
        labels: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, C, S), see ``XLMModel.call``.
            attention_mask: (B, C, S).
            langs: Languages by name or id: one, one per sample, one per choice (B, C), or
                (B, C, S) ids.
            token_type_ids: (B, C, S).
            position_ids: (B, C, S).
            lengths: Not used, as in transformers: give ``attention_mask``.
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, C, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B,) number of the right choice; ``loss`` is then (B,).
            training: Drop values.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.call``.
        """
        given: Any = input_ids if inputs_embeds is None else inputs_embeds
        dimensions = 3 if inputs_embeds is None else 4
        if given is None or len(given.shape) != dimensions:
            shape = None if given is None else tuple(given.shape)
            wanted = "(batch, choices, sequence)" if dimensions == 3 else "with a width behind it"
            raise XlmfamError(f"the inputs must be {wanted}, got {shape}")
        if lengths is not None:
            logger.warning("lengths is not used for multiple choice: give attention_mask")
        batch, choices = sizes(given)[:2]
        check_shape("labels", labels, (given.shape[0],))
        check_labels(labels, given.shape[1])
        output = self.transformer(
            input_ids=flat(input_ids),
            attention_mask=flat(attention_mask),
            langs=choice_langs(self.config, langs, given),
            token_type_ids=flat(token_type_ids),
            position_ids=flat(position_ids),
            cache=cache,
            head_mask=head_mask,
            inputs_embeds=flat(inputs_embeds),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            training=training,
        )
        dropper = self.transformer.dropper(training)
        summary = self.sequence_summary(output.last_hidden_state, dropper)
        logits = tf.reshape(self.logits_proj(summary), [batch, choices])
        result = MultipleChoiceModelOutput(
            loss=None if labels is None else choice_losses(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XLMForTokenClassification(XLMPreTrainedModel):
    """XLM with a classifier of tokens.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMForTokenClassification"

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.classifier = Linear(dtype=self.dtype_policy, name="classifier")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the labels; zero where none counts."""
        weights = label_weights(weights, is_shifted=False)
        return mean_label_loss(main_output(output), tf.convert_to_tensor(labels), weights)

    def call(
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
        labels: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.call``, as for all arguments but ``labels``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            labels: (B, S) classes; -100 does not count. ``loss`` is then (N,), one per label that
                counts; XLA, which cannot have that shape, trains through ``fit``.
            training: Drop values.

        Raises:
            XlmfamError: For labels that do not fit, and see ``XLMModel.call``.
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
            training=training,
        )
        dropper = self.transformer.dropper(training)
        hidden = dropper.drop(output.last_hidden_state, self.config.dropout)
        logits = self.classifier(hidden)
        check_shape("labels", labels, tuple(logits.shape[:2]))
        check_labels(labels, self.config.num_labels)
        result = TokenClassifierOutput(
            loss=None if labels is None else label_losses(logits, labels),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XLMForQuestionAnsweringSimple(XLMPreTrainedModel):
    """XLM that scores each token as start and as end of the answer.

    In ``fit`` the targets are ``start_positions`` and ``end_positions``, and what losses and
    metrics of ``compile`` see are the logits under the same two names.

    Args:
        config: The config; ``num_labels`` must be 2.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.

    Raises:
        XlmfamError: For another number of labels.
    """

    table_class = "XLMForQuestionAnsweringSimple"
    label_names = ("start_positions", "end_positions")

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        if config.num_labels != 2:
            raise XlmfamError(
                f"question answering needs num_labels=2, start and end; got {config.num_labels}"
            )
        self.qa_outputs = Linear(dtype=self.dtype_policy, name="qa_outputs")
        self.post_init()

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples; zero where no position counts."""
        logits = self.scored(output)
        needs_all(labels, self.label_names)
        losses = [
            span_losses(name, logits[name], tf.convert_to_tensor(labels[name]), none=0.0)
            for name in self.label_names
        ]
        return weighted_mean((losses[0] + losses[1]) / 2, weights)

    def scored(self, output: Any) -> dict[str, Tensor]:
        """Return the logits by the name of what is right for them."""
        names = zip(self.label_names, ("start_logits", "end_logits"), strict=True)
        if isinstance(output, tuple):
            return dict(zip(self.label_names, output, strict=False))
        return {label: output[logits] for label, logits in names}

    def call(
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
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.call``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            start_positions: (B,) or (B, 1); one at or beyond S does not count, a negative one is 0.
                ``loss`` is then (B,), the mean of start and end; where positions do not count,
                the others of their side are scaled up so that the mean is theirs alone.
            end_positions: The same, for the end.
            training: Drop values.

        Raises:
            XlmfamError: For shapes that do not fit, and see ``XLMModel.call``.
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
            training=training,
        )
        start, end = tf.unstack(self.qa_outputs(output.last_hidden_state), axis=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            start_loss = span_losses("start_positions", start, start_positions)
            loss = (start_loss + span_losses("end_positions", end, end_positions)) / 2
        result = QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start,
            end_logits=end,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
        return self._finished(result, return_dict)


@keras.saving.register_keras_serializable("xlmfam")
class XLMForQuestionAnswering(XLMPreTrainedModel):
    """XLM that finds answers with a beam of starts and of ends, and tells where there is none.

    In ``fit`` the targets are ``start_positions``, ``end_positions`` and ``is_impossible``;
    ``cls_index``, without which the latter has no loss, and ``p_mask`` are inputs.

    Args:
        config: The config.
        dtype: Dtype policy or its name.
        **kwargs: ``name``, ``trainable``.
    """

    table_class = "XLMForQuestionAnswering"
    label_names = ("start_positions", "end_positions", "is_impossible")

    def __init__(self, config: XLMConfig, dtype: Any = None, **kwargs: Any):
        super().__init__(config, dtype, **kwargs)
        self.qa_outputs = BeamAnswers(config, dtype=self.dtype_policy, name="qa_outputs")
        self.post_init()

    def loss_inputs(self, x: dict[str, Any], y: Any) -> dict[str, Any]:
        """Return the arguments with the positions, which the scores of the ends depend on."""
        return {**x, **needs_all(y, self.label_names[:2])} if self.uses_own_loss and y else x

    def own_loss(self, output: Any, labels: Any, weights: Tensor | None) -> Tensor:
        """Return the mean loss of the samples."""
        del labels  # the call has had them
        return weighted_mean(output[0], weights)

    def call(
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
        training: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: (B, S), see ``XLMModel.call``.
            attention_mask: (B, S).
            langs: Languages by name or id.
            token_type_ids: (B, S).
            position_ids: (B, S).
            lengths: (B,).
            cache: A dict that is filled in place.
            head_mask: (L, H) or (H,).
            inputs_embeds: (B, S, D).
            start_positions: (B,) or (B, 1). With both positions there is a loss, (B,), and nothing
                else.
            end_positions: (B,) or (B, 1).
            is_impossible: (B,) or (B, 1), 1 where there is no answer; half its loss is added.
            cls_index: (B,) or (B, 1) position that tells so; the last by default. Its loss needs
                it.
            p_mask: (B, S), 1 for what cannot be in an answer (question, special tokens, padding).
            output_attentions: Return attention weights.
            output_hidden_states: Return the hidden states of all layers.
            return_dict: Return an output object rather than a tuple.
            training: Drop values.

        Raises:
            XlmfamError: For positions outside the text, a text shorter than the beam, and see
                ``XLMModel.call``.
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
            training=training,
        )
        hidden = output.last_hidden_state
        batch, length, _ = hidden.shape
        check_shape("p_mask", p_mask, (batch, length))
        if cls_index is not None:
            cls_index = _inside("cls_index", cls_index, hidden)
        if start_positions is not None and end_positions is not None:
            start = _inside("start_positions", start_positions, hidden)
            end = _inside("end_positions", end_positions, hidden)
            answers = {
                "loss": self._answer_losses(hidden, start, end, is_impossible, cls_index, p_mask)
            }
        else:
            answers = self._best(hidden, cls_index, p_mask)
        result = XLMForQuestionAnsweringOutput(
            **answers, hidden_states=output.hidden_states, attentions=output.attentions
        )
        return self._finished(result, return_dict)

    def _answer_losses(self, hidden, start, end, is_impossible, cls_index, p_mask) -> Tensor:
        """Return the (B,) losses of start and end, with half those of there being no answer."""
        scorers = self.qa_outputs
        state = take_positions(hidden, start)
        start_losses = token_losses(scorers.start_logits(hidden, p_mask), start)
        end_losses = token_losses(scorers.end_logits(hidden, state, p_mask), end)
        losses = (start_losses + end_losses) / 2
        if cls_index is None or is_impossible is None:
            return losses
        logits = tf.cast(scorers.answer_class(hidden, state, cls_index), tf.float32)
        truth = tf.cast(column("is_impossible", is_impossible, logits.shape[0]), tf.float32)
        return losses + 0.5 * tf.nn.sigmoid_cross_entropy_with_logits(truth, logits)

    def _best(self, hidden, cls_index, p_mask) -> dict[str, Tensor]:
        """Return the best starts, the best ends for each, and the score of no answer."""
        scorers, config = self.qa_outputs, self.config
        batch, length, width = sizes(hidden)
        first, last = config.start_n_top, config.end_n_top
        if not tf.is_tensor(length) and max(first, last) > length:
            raise XlmfamError(
                f"start_n_top {first} and end_n_top {last} must not exceed the {length} "
                "positions of the text"
            )
        starts = _probabilities(scorers.start_logits(hidden, p_mask))
        start_best, start_index = tf.math.top_k(starts, first)
        chosen = take_positions(hidden, start_index)  # (B, K, D)
        spread_out = tf.broadcast_to(hidden[:, None], [batch, first, length, width])
        masks = None if p_mask is None else p_mask[:, None]
        ends = _probabilities(scorers.end_logits(spread_out, chosen, masks))
        end_best, end_index = tf.math.top_k(ends, last)  # (B, K, M)
        mean_start = tf.einsum("bs,bsd->bd", tf.cast(starts, hidden.dtype), hidden)
        return {
            "start_top_log_probs": start_best,
            "start_top_index": start_index,
            "end_top_log_probs": _by_rank(end_best),
            "end_top_index": _by_rank(end_index),
            "cls_logits": scorers.answer_class(hidden, mean_start, cls_index),
        }


def _probabilities(scores: Tensor) -> Tensor:
    return tf.nn.softmax(tf.cast(scores, tf.float32))


def _by_rank(values: Tensor) -> Tensor:
    """Return (B, M * K) of (B, K, M)."""
    _, starts, ends = values.shape
    return tf.reshape(tf.transpose(values, [0, 2, 1]), [-1, starts * ends])


def _inside(name: str, values: Tensor, hidden: Tensor) -> Tensor:
    """Return (B,) positions in (B, S, D), checked where looking is cheap."""
    batch, length, _ = hidden.shape
    values = column(name, values, batch)
    if length is not None:
        check_range(name, values, 0, length - 1)
    return values


TFXLMForSequenceClassification = XLMForSequenceClassification
TFXLMForMultipleChoice = XLMForMultipleChoice
TFXLMForTokenClassification = XLMForTokenClassification
TFXLMForQuestionAnsweringSimple = XLMForQuestionAnsweringSimple
TFXLMForQuestionAnswering = XLMForQuestionAnswering
